"""COPY, ADD and WORKDIR's directory: from a FileStep and two trees of files to the entries of a layer.

    check(step, files, ...)     what can be found wrong before the first RUN
    step_parts(step)            what the step itself adds to its key
    inputs(step, files, ...)    what the files that it takes add: names, kinds, modes, contents; never times
    perform(step, files, ...)   the layer's entries

The rules are BuildKit's, seen in its recorded outcomes. Those that surprise: a directory as a source stands for its
contents, and the directory that they go to keeps its owner and mode if it is there, while directories below it take
over those of the source; a symlink is followed when it is the source or on the way to the destination, and copied as
it is when it is found inside a source; `--chmod` and `--chown` hold for the parents made on the way, too; a wildcard
without a match copies nothing, a name without a file is an error.

Nothing is mounted and nothing is copied to a place in between: contents stay where they are until the layer is written.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from builder.context import ROOT, Directory, Unpacked, View, begins_tar, below, parts_of
from builder.errors import BuildError
from builder.handlers.owners import names_in, owner
from builder.model import FileStep, GitSource, InlineSource, Origin, PathSource, UrlSource
from cache.entries import BytesContent, Content, Entry, Files, Kind
from grammar.ignore import Ignore, PatternError, glob_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from builder.fetch import Fetcher
    from cache.reasons import Part
    from grammar.source import Source, Span

_EXECUTE = 0o111


# ---------------------------------------------------------------- which files


class _Match(Struct, frozen=True):
    """One path that a source stands for. name: as matched, its last part names the copy. entry: symlinks followed."""

    source: PathSource
    name: bytes
    entry: Entry
    include: Ignore | None = None
    reach: Ignore | None = None


class _Picked(Struct, frozen=True):
    """One entry of a match. rest: its path below it, empty for the match. implied: only there for what is below."""

    entry: Entry
    rest: bytes
    implied: bool = False


class _NotThereError(BuildError):
    """A source that names nothing. path: what was looked for."""

    def __init__(self, path: bytes, span: Span) -> None:
        super().__init__(f'"/{_show(path)}": not found', span=span)
        self.path = path


def _matches(step: FileStep, source: PathSource, files: Files) -> list[_Match]:
    """The paths that a source stands for, in order. BuildError for a source that is not there or a broken pattern."""
    try:
        if step.parents:
            return _pivoted(source, files)
        return [_Match(source, name, entry) for name, entry in _expand(source.pattern, source, files)]
    except _NotThereError as error:
        raise _explained(error, files, step.origin, source.pattern) from None


def _expand(pattern: str, source: PathSource, files: Files) -> list[tuple[bytes, Entry]]:
    """A pattern's paths, each with what it is once symlinks are followed."""
    names = parts_of(os.fsencode(pattern))
    plain = next((at for at, name in enumerate(names) if _is_wildcard(name)), len(names))
    start = b"/".join(names[:plain])
    if plain == len(names):
        return [(start, _required(start, source, files))]
    globs = [os.fsdecode(name) for name in names[plain:]]
    base = files.resolve(start)
    _required(start, source, files)
    found = [base]
    for depth, glob in enumerate(globs, 1):
        found = [
            entry.path
            for directory in found
            for entry in files.children(directory)
            if _fits(glob, entry.name, source) and (depth == len(globs) or entry.kind is Kind.DIRECTORY)
        ]
    _fits(pattern, b"", source)
    matches = []
    for path in found:
        followed = files.entry(files.resolve(path))
        if followed is None:
            raise _NotThereError(path, source.span)
        matches.append((path, followed))
    return matches


def _is_wildcard(name: bytes) -> bool:
    """Whether the name has a `*`, `?` or `[` that no backslash takes the meaning from."""
    return re.search(rb"^(?:[^\\*?\[]|\\.)*[*?\[]", name, re.DOTALL) is not None


def _fits(glob: str, name: bytes, source: PathSource) -> bool:
    try:
        return glob_match(glob, os.fsdecode(name))
    except PatternError:
        raise BuildError(
            f"{source.pattern!r}: syntax error in pattern",
            span=source.span,
            hint="write [[] for a bracket that means itself",
        ) from None


def _required(path: bytes, source: PathSource, files: Files) -> Entry:
    entry = files.entry(files.resolve(path)) if path else ROOT
    if entry is None:
        raise _NotThereError(path, source.span)
    return entry


def _pivoted(source: PathSource, files: Files) -> list[_Match]:
    """--parents: the directory at `/./`, or the root, with the rest of the source as the pattern of what to take."""
    head, pivot, tail = source.pattern.partition("/./")
    pattern = b"/".join(parts_of(os.fsencode(tail if pivot else source.pattern)))
    start = head if pivot else "/"
    names = parts_of(os.fsencode(start))
    if not any(_is_wildcard(name) for name in (*names, *pattern.split(b"/"))):
        # Symlinks lead to the pivot, but from there on a pattern does not follow them.
        wanted = below(files.resolve(b"/".join(names)), pattern)
        found = files.entry(wanted) if wanted else ROOT
        if found is None or found.path != wanted:
            raise _NotThereError(below(b"/".join(names), pattern), source.span)
    text = os.fsdecode(pattern)
    try:
        include = Ignore.of([text]) if text else None
        # Read the other way round: left out is what the pattern can not match, so that `prunable` tells where to stop.
        reach = Ignore.of(["*", "!" + text]) if text else None
    except PatternError as error:
        raise BuildError(f"{source.pattern!r}: {error.message}", span=source.span) from None
    return [_Match(source, name, entry, include, reach) for name, entry in _expand(start, source, files)]


def _excluding(step: FileStep) -> Ignore | None:
    try:
        return Ignore.of(step.excludes) if step.excludes else None
    except PatternError as error:
        raise BuildError(f"--exclude: {error.message}") from None


def _select(files: Files, match: _Match, exclude: Ignore | None) -> Iterator[_Picked]:
    """What a match stands for, directories before what they hold. What is named outright is taken, excluded or not."""
    top, include, reach = match.entry, match.include, match.reach
    yield _Picked(top, b"")
    if top.kind is not Kind.DIRECTORY:
        return
    skip = len(top.path) + 1 if top.path else 0
    levels = [iter(files.children(top.path))]
    # Directories on the way down that are not taken themselves: they follow once something below them is.
    waiting: list[_Picked | None] = [None]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            waiting.pop()
            continue
        rest = entry.path[skip:]
        excluded = exclude is not None and exclude.match(rest)
        taken = not excluded and (include is None or include.match(rest))
        if taken:
            for level, held in enumerate(waiting):
                if held is not None:
                    yield held
                    waiting[level] = None
            yield _Picked(entry, rest)
        if entry.kind is not Kind.DIRECTORY:
            continue
        if excluded and exclude is not None and exclude.prunable(rest):
            continue
        if not taken and reach is not None and reach.prunable(rest):
            continue
        levels.append(iter(files.children(entry.path)))
        waiting.append(None if taken else _Picked(entry, rest, implied=True))


# ---------------------------------------------------------------- found wrong early


def check(step: FileStep, files: Files | None, *, source: Source | None = None) -> None:
    """Raise BuildError for what is wrong with a step whose source files are there before the build begins.

    files: the context, or None when the files are a stage's. A source that is not there is told with the nearest name,
    or with the line of the ignore file that hides it.
    """
    if step.chmod:
        parse_mode(step.chmod)
    _check_link(step)
    _excluding(step)
    if files is None:
        return
    try:
        for item in step.sources:
            if isinstance(item, PathSource):
                _matches(step, item, files)
    except BuildError as error:
        error.source = error.source or source
        raise


def _explained(error: _NotThereError, files: Files, origin: Origin, pattern: str) -> BuildError:
    """The error for a missing source with what helps: the ignore file's line, or the nearest name."""
    from grammar.suggest import did_you_mean

    names = error.path.split(b"/")
    seen = b""
    depth = 0
    for name in names[:-1]:
        further = files.resolve(below(seen, name))
        found = files.entry(further)
        if found is None or found.kind is not Kind.DIRECTORY:
            break
        seen = further
        depth += 1
    hint = did_you_mean(_show(names[depth]), [_show(entry.name) for entry in files.children(seen)])
    if depth == len(names) - 1 and (link := files.entry(below(seen, names[depth]))) is not None:
        hint = f"it is a symlink to {_show(link.target)}, which leads to no file in there"
    if isinstance(files, Directory) and (rule := files.hidden_by(error.path)) is not None:
        hint = f"line {rule.line} of {files.ignore_name} leaves it out: {rule.text}"
    if origin.context is not None:
        place = f"the build context {origin.context}".rstrip()
    else:
        place = "the stage" if origin.image is None else f"the image {origin.image}"
    if not hint and posixpath.normpath(pattern.lstrip("/")).startswith(".."):
        hint = f"no path climbs out of {place}: there is nothing above its root"
    return BuildError(f"{error.message} in {place}", span=error.span, hint=hint)


def _check_link(step: FileStep) -> None:
    names = names_in(step.chown) if step.link else ()
    if names:
        raise BuildError(
            f"--link and --chown={step.chown}: {names[0]} can not be looked up in /etc/passwd without the base",
            hint="give numbers, such as --chown=1000:1000, or leave out --link",
        )


# ---------------------------------------------------------------- keys


MEANING = "1"
"""Part of every key of a FileStep: to be raised when the same step of the same files makes another layer than before.

`tests/builder/test_meaning.py` tells when that is.
"""


def step_parts(step: FileStep) -> list[Part]:
    """What a step's key has of the step itself, readable. Where files come from does not count, only what they are."""
    parts = [("COPY and ADD of pybuild", MEANING), ("to", step.destination + ("/" if step.into else ""))]
    parts += [
        (name, str(value))
        for name, value in (
            ("chown", step.chown),
            ("chmod", step.chmod),
            ("link", step.link or ""),
            ("parents", step.parents or ""),
            ("unpack", "" if step.unpack is False else step.unpack),
        )
        if value != ""
    ]
    parts += [("exclude", pattern) for pattern in step.excludes]
    return parts


def inputs(step: FileStep, files: Files | None, fetch: Fetcher | None = None) -> list[Part]:
    """What a step's key has of the files that it takes: one part per path, `("file src/a.py", "644 sha256:...")`.

    A path counts by its name, kind, content, mode (but under an octal --chmod), link target and xattrs, for a stage by
    its owner too (but under --chown); never by its time. A URL counts by its content, a repository by its commit.
    Raises BuildError for a source that is not there.
    """
    exclude = _excluding(step)
    picked: list[tuple[_Match, _Picked]] = []
    parts: list[Part] = []
    for item in step.sources:
        match item:
            case PathSource():
                assert files is not None
                for found in _matches(step, item, files):
                    picked += [(found, one) for one in _select(files, found, exclude)]
            case InlineSource(name=name, data=data):
                import hashlib

                parts.append((f"inline {name}", hashlib.sha256(data).hexdigest()))
            case UrlSource():
                checksum = item.checksum or "sha256:" + _fetcher(fetch, item.url).download(item.url).sha256
                parts.append((f"url {item.url}", checksum))
            case GitSource():
                parts.append((f"git {item.url}", _fetcher(fetch, item.url).commit_of(item)))
    if not picked:
        return parts
    assert files is not None
    if isinstance(files, Directory):
        files.hash_all([one.entry for _, one in picked])
    describe = _Describer(step, files)
    return [*parts, *(describe(found, one) for found, one in picked)]


def stamp(step: FileStep, files: Directory) -> tuple[str, bool] | None:
    """What changes when `inputs` does, found without looking at files one by one; see `Directory.stamp`.

    None where that can not be had.
    """
    stamps = []
    for item in step.sources:
        if not isinstance(item, PathSource) or step.parents:
            return None
        names = parts_of(os.fsencode(item.pattern))
        plain = next((at for at, name in enumerate(names) if _is_wildcard(name)), len(names))
        found = files.stamp(files.resolve(b"/".join(names[:plain])), through_links=plain < len(names))
        if found is None:
            return None
        stamps.append((item.pattern, *found))
    return repr([(pattern, digest) for pattern, digest, _ in stamps]), all(sure for *_, sure in stamps)


class _Describer:
    """Makes the part for one path, as the key of one step has it."""

    def __init__(self, step: FileStep, files: Files) -> None:
        self._files = files
        self._modes = not step.chmod or not step.chmod.isdigit()
        self._owners = not step.chown and not isinstance(files, Directory)
        self._firsts: dict[tuple[int, object], str] = {}

    def __call__(self, match: _Match, picked: _Picked) -> Part:
        entry = picked.entry
        # Names that are no UTF-8 must stay apart from each other, so they are not made pretty here.
        name = (below(match.name, picked.rest) or b".").decode("utf-8", "surrogateescape")
        kind = entry.kind
        words = [f"{entry.mode:o}"] if self._modes else []
        if self._owners:
            words.append(f"{entry.uid}:{entry.gid}")
        if kind is Kind.FILE:
            words.append("sha256:" + self._files.digest(entry))
            inode = self._files.links(entry)
            if inode is not None:
                words.append("inode " + self._firsts.setdefault((id(match), inode), name))
        elif kind is Kind.DIRECTORY:
            if not picked.rest:
                # Only its contents are copied: the directory that they go to is another one.
                return f"directory {name}", "contents"
            if picked.implied:
                words.append("for what is below")
        elif kind is Kind.SYMLINK:
            words.append("-> " + entry.target.decode("utf-8", "surrogateescape"))
        else:
            words.append(f"{entry.device[0]}:{entry.device[1]}")
        if entry.xattrs:
            words += [f"{xattr}={value.hex()}" for xattr, value in entry.xattrs]
        return f"{kind.value} {name}", " ".join(words)


def _fetcher(fetch: Fetcher | None, url: str) -> Fetcher:
    if fetch is None:
        raise BuildError(f"{url} can not be fetched here")
    return fetch


# ---------------------------------------------------------------- modes


class Mode(Struct, frozen=True):
    """What --chmod makes of a mode. octal: the mode itself, None when it is symbolic. changes: the symbolic clauses."""

    octal: int | None
    changes: tuple[tuple[str, int, str], ...] = ()

    @property
    def for_made(self) -> int:
        """The mode of directories made on the way. BuildKit gives them an octal one without its special bits."""
        return 0o755 if self.octal is None else self.octal & 0o777

    def apply(self, mode: int, *, directory: bool) -> int:
        """The mode that a copy of something of this mode has."""
        if self.octal is not None:
            return self.octal
        new = mode
        for operator, who, what in self.changes:
            new = _changed(new, mode, operator, who, what, directory=directory)
        return new


_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o6777}
_PERMISSIONS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def parse_mode(text: str) -> Mode:
    """--chmod as octal number or as chmod(1) takes it, without a umask. BuildError for anything else."""
    if re.fullmatch("[0-7]+", text):
        if int(text, 8) > 0o7777:
            raise _bad_mode(text)
        return Mode(int(text, 8))
    if text[:1].isdigit():
        raise _bad_mode(text)
    changes: list[tuple[str, int, str]] = []
    for clause in text.split(","):
        found = re.fullmatch(r"([ugoa]*)((?:[-+=][rwxXstugo]*)+)", clause)
        if found is None:
            raise BuildError(f"invalid chmod parameter: {text!r}", hint="such as 644, u=rwX,go=rX or a+x")
        who = 0
        for letter in found[1]:
            who |= _WHO[letter]
        changes += [(part[0], who, part[1:]) for part in re.findall(r"[-+=][rwxXstugo]*", found[2])]
    return Mode(None, tuple(changes))


def _bad_mode(text: str) -> BuildError:
    return BuildError(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")


def _changed(mode: int, original: int, operator: str, who: int, what: str, *, directory: bool) -> int:
    """`mode` after one operator. `X` asks for the mode as it was before all of them."""
    bits = copied = 0
    reach = who or 0o6777
    for letter in what:
        if letter in "ugo":
            three = mode >> {"u": 6, "g": 3, "o": 0}[letter] & 0o7
            copied |= three << 6 | three << 3 | three
        elif letter == "X":
            bits |= _EXECUTE if directory or original & _EXECUTE or operator == "-" else 0
        elif letter in {"t", "s"}:
            # `o+s` and `o+t` mean nothing: these bits are nobody's.
            if not who or who & ~0o7:
                bits |= _PERMISSIONS[letter]
                reach |= 0o1000 if letter == "t" else 0
        else:
            bits |= _PERMISSIONS[letter]
    bits = (bits | copied) & reach
    if operator == "-":
        return mode & ~bits
    if operator == "=":
        # Copying permissions, as in g=u, leaves the set-id bits alone.
        mode &= ~((who or 0o6777) & (0o777 if copied and not bits & ~copied else 0o7777))
    return mode | bits


# ---------------------------------------------------------------- the destination


class _Member(Struct, frozen=True):
    """The content of a file that is the `index`th entry of an archive: it streams when the archive is read again."""

    archive: int
    index: int

    def open(self) -> BinaryIO:
        """An archive's member can not be opened alone."""
        raise AssertionError(self)


class _Target(View):
    """The tree that is copied into: the parent's files, and over them what this step makes."""

    def __init__(self, parent: Files) -> None:
        self._parent = parent
        self._listed: dict[bytes, dict[bytes, Entry]] = {}
        self._made: dict[bytes, Entry] = {}
        self._inodes: dict[bytes, object] = {}
        self._gone: dict[bytes, Entry] = {}
        self.archives: list[tuple[Content, str]] = []

    def listing(self, directory: bytes) -> Mapping[bytes, Entry]:
        """See `View.listing`."""
        return self._list(directory)

    def _list(self, directory: bytes) -> dict[bytes, Entry]:
        listed = self._listed.get(directory)
        if listed is None:
            listed = self._listed[directory] = {entry.name: entry for entry in self._parent.children(directory)}
        return listed

    def put(self, entry: Entry, inode: object | None = None) -> None:
        """Lay an entry over what is there. Equal `inode`s make names of one file."""
        path = entry.path
        if not path:
            return
        directory, _, name = path.rpartition(b"/")
        listed = self._list(directory)
        old = listed.get(name)
        if old is not None and (old.kind is Kind.DIRECTORY) != (entry.kind is Kind.DIRECTORY):
            self.remove(path)
            old = None
        listed[name] = entry
        self._made[path] = entry
        if inode is None:
            self._inodes.pop(path, None)
        else:
            self._inodes[path] = inode
        if old is None and entry.kind is Kind.DIRECTORY:
            self._listed[path] = {}

    def remove(self, path: bytes) -> None:
        """Take away what is at a path, and all below it."""
        directory, _, name = path.rpartition(b"/")
        old = self._list(directory).pop(name, None)
        if old is None:
            return
        if old.kind is Kind.DIRECTORY:
            for child in list(self._list(path)):
                self.remove(path + b"/" + child)
            self._listed[path] = {}
        self._made.pop(path, None)
        self._inodes.pop(path, None)
        hidden = self._parent.entry(path)
        if hidden is not None and hidden.path == path:
            self._gone[path] = hidden

    def link(self, entry: Entry, path: bytes) -> None:
        """Make `path` another name of the file that `entry` is. A file of the parent gets into the layer for it."""
        inode = self._inodes.get(entry.path) or object()
        self.put(entry, inode)
        self.put(replace(entry, path=path), inode)

    def make_directories(self, path: bytes, like: Entry) -> None:
        """Make a directory and those above it where they are missing. `like`: their owner, mode and time."""
        missing: list[bytes] = []
        while (entry := self.get(path)) is None:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        if entry.kind is not Kind.DIRECTORY:
            raise BuildError(f"mkdir /{_show(path)}: not a directory")
        for name in reversed(missing):
            self.put(replace(like, path=name, kind=Kind.DIRECTORY))

    def entries(self) -> Iterator[Entry]:
        """The layer: what was made, with the directories that hold it as they are, each before what it holds."""
        shown = dict(self._made)
        for path in (*self._made, *self._gone):
            above = path.rpartition(b"/")[0]
            while above and above not in shown:
                entry = self.get(above)
                if entry is None:
                    break
                shown[above] = entry
                above = above.rpartition(b"/")[0]
        firsts: dict[object, bytes] = {}
        for path in sorted(self._inodes):
            firsts.setdefault(self._inodes[path], path)
        streamed: dict[int, dict[int, bytes]] = {}
        late: list[Entry] = []
        for path in sorted({*shown, *self._gone}):
            entry = shown.get(path)
            if path in self._gone:
                yield from self._whiteouts(path, entry)
            if entry is None:
                continue
            first = firsts[self._inodes[path]] if path in self._inodes else path
            member = entry.content
            if first != path:
                link = replace(entry, kind=Kind.HARDLINK, size=0, target=first, content=None, digest="", xattrs=())
                if isinstance(member, _Member):
                    late.append(link)
                else:
                    yield link
            elif isinstance(member, _Member):
                streamed.setdefault(member.archive, {})[member.index] = path
            else:
                yield entry
        for number, wanted in streamed.items():
            content, name = self.archives[number]
            for index, member_entry in enumerate(_read_archive(content, name)):
                found = wanted.get(index)
                if found is not None:
                    yield replace(shown[found], content=member_entry.content)
        yield from late

    def _whiteouts(self, path: bytes, entry: Entry | None) -> Iterator[Entry]:
        """What hides an entry of the parent that was taken away, unless something above it hides it already."""
        above = path.rpartition(b"/")[0]
        while above:
            if above in self._gone:
                return
            above = above.rpartition(b"/")[0]
        if entry is None:
            yield Entry(path, Kind.WHITEOUT)
        elif entry.kind is Kind.DIRECTORY and self._gone[path].kind is Kind.DIRECTORY:
            yield Entry(path, Kind.OPAQUE)


# ---------------------------------------------------------------- carried out


def perform(
    step: FileStep,
    files: Files | None,
    parent: Files,
    fetch: Fetcher | None = None,
    *,
    epoch: int | None = None,
) -> Iterator[Entry]:
    """The entries of the layer that a step makes; none when it changes nothing.

    files: those of the step's origin, None when it takes none. parent: what the layer will lie upon; with --link nobody
    looks at it. epoch: the time, in seconds, of what has none of its own (made directories, here-documents), else now.
    Directories that hold something new are among the entries as they are, so that the layer can stand alone.

    Raises BuildError: a source that is not there, a file where a directory has to go or the reverse, an unknown owner,
    an archive or a download that is broken.
    """
    placing = _Placing(step, Unpacked() if step.link else parent, epoch)
    if not step.sources:
        placing.make_destination()
    exclude = _excluding(step)
    for item in sorted(step.sources, key=lambda item: isinstance(item, InlineSource)):
        match item:
            case PathSource():
                assert files is not None
                for found in _matches(step, item, files):
                    content = found.entry.content
                    if step.unpack is not False and content is not None and is_archive(content):
                        placing.unpack(content, _show(found.name))
                    else:
                        placing.copy(found, files, exclude)
            case InlineSource(name=name, data=data):
                made = Entry(os.fsencode(name), Kind.FILE, 0o644, size=len(data), mtime_ns=placing.now)
                placing.copy_file(replace(made, content=BytesContent(data)))
            case UrlSource():
                download = _fetcher(fetch, item.url).download(item.url, item.checksum)
                entry = download.entry(os.fsencode(download.name))
                if step.unpack is True and entry.content is not None and is_archive(entry.content):
                    placing.unpack(entry.content, item.url)
                else:
                    placing.copy_file(entry)
            case GitSource():
                checkout = _fetcher(fetch, item.url).repository(item)
                placing.copy(
                    _Match(PathSource(item.url, item.span), b"", replace(ROOT, mtime_ns=placing.now)),
                    checkout,
                    exclude,
                    whole=True,
                )
    return placing.target.entries()


class _Placing:
    """One step while it fills its target."""

    def __init__(self, step: FileStep, parent: Files, epoch: int | None) -> None:
        self.step = step
        self.parent = parent
        _check_link(step)
        # Whole seconds: a fraction costs a header of its own in the tar.
        self.now = (int(time.time()) if epoch is None else epoch) * 10**9
        self.target = _Target(self.parent)
        self.mode = parse_mode(step.chmod) if step.chmod else None
        # A user that is nobody's yet is no error for WORKDIR: FROM scratch has no names at all.
        self.owner = owner(step.chown, self.parent, strict=bool(step.sources)) if step.chown else None
        uid, gid = self.owner or (0, 0)
        mode = self.mode.for_made if self.mode is not None else 0o755
        self.made = Entry(b"", Kind.DIRECTORY, mode, uid, gid, mtime_ns=self.now)
        self.destination = os.fsencode(step.destination)

    def make_destination(self) -> None:
        """WORKDIR: the directory and those above it, made if missing as the stage's user's."""
        self.target.make_directories(self.target.resolve(self.destination), self.made)

    def copy(self, match: _Match, files: Files, exclude: Ignore | None, *, whole: bool = False) -> None:
        """Copy what a match stands for. whole: a missing destination is a copy of the directory, not made afresh."""
        top = match.entry
        to = self._destination_of(match.name, top, whole=whole)
        inodes: dict[object, object] = {}
        for picked in _select(files, match, exclude):
            entry = picked.entry
            path = below(to, picked.rest)
            inode = files.links(entry) if entry.kind is Kind.FILE else None
            if inode is not None:
                # Names of one file stay names of one file within one copy, as with cp -a.
                inode = inodes.setdefault(inode, object())
            self._place(picked, path, inode)

    def copy_file(self, entry: Entry) -> None:
        """Copy one made or downloaded file to where a file of its name goes."""
        to = self._destination_of(entry.path, entry, whole=False)
        self._place(_Picked(entry, b""), to, None)

    def _destination_of(self, name: bytes, top: Entry, *, whole: bool) -> bytes:
        """Where a copy goes, with the directories above it made."""
        target = self.target
        directory = self.destination if self.step.into else self.destination.rpartition(b"/")[0]
        target.make_directories(target.resolve(directory), self.made)
        to = target.resolve(self.destination)
        there = target.get(to)
        is_directory = top.kind is Kind.DIRECTORY
        if not is_directory and there is not None and there.kind is Kind.DIRECTORY:
            to = below(to, name.rpartition(b"/")[2])
        above = to if is_directory and there is None and not whole else to.rpartition(b"/")[0]
        target.make_directories(above, self.made)
        return to

    def _place(self, picked: _Picked, path: bytes, inode: object | None) -> None:
        entry = picked.entry
        there = self.target.get(path)
        if entry.kind is not Kind.DIRECTORY:
            if there is not None and there.kind is Kind.DIRECTORY:
                raise BuildError(f"cannot replace to directory /{_show(path)} with file")
            self.target.put(self._copied(entry, path), inode)
            return
        if there is None:
            self.target.put(self._copied(entry, path))
        elif there.kind is not Kind.DIRECTORY:
            raise BuildError(
                f"cannot copy to non-directory: /{_show(path)}",
                hint="the destination has a file or a symlink where the source has a directory",
            )
        elif not picked.rest:
            self.target.put(replace(there, mtime_ns=entry.mtime_ns))
        elif picked.implied:
            self.target.put(replace(there, mode=entry.mode))
        else:
            xattrs = dict(there.xattrs) | dict(entry.xattrs)
            self.target.put(replace(self._copied(entry, path), xattrs=tuple(sorted(xattrs.items()))))

    def _copied(self, entry: Entry, path: bytes) -> Entry:
        """The entry at its new path, with the step's owner and mode."""
        uid, gid = self.owner or (entry.uid, entry.gid)
        mode = entry.mode
        if self.mode is not None and entry.kind is not Kind.SYMLINK:
            mode = self.mode.apply(mode, directory=entry.kind is Kind.DIRECTORY)
        return Entry(
            path,
            entry.kind,
            mode,
            uid,
            gid,
            entry.size,
            entry.mtime_ns,
            entry.target,
            entry.device,
            entry.xattrs,
            entry.content,
            entry.digest,
        )

    # ------------------------------------------------------------ archives

    def unpack(self, content: Content, name: str) -> None:
        """Lay an archive's entries into the destination, as if it were the archive's root.

        What is in the way is replaced, but a directory by a directory of the archive, which takes over its owner and
        mode. The archive's own root changes nothing. Paths and links resolve inside the destination and never lead out.
        """
        target = self.target
        uid, gid = self.owner or (0, 0)
        root = target.resolve(self.destination)
        target.make_directories(root, replace(self.made, mode=0o755))
        # Whatever directory the archive leaves out is root's, also under --chown.
        implied = replace(self.made, mode=0o755, uid=0, gid=0)
        number = len(target.archives)
        target.archives.append((content, name))
        for index, entry in enumerate(_read_archive(content, name)):
            if not entry.path:
                continue
            above = target.resolve(entry.parent, root)
            target.make_directories(above, implied)
            path = below(above, entry.name)
            there = target.get(path)
            if there is not None and not (there.kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY):
                if entry.kind is Kind.OPAQUE:
                    for child in target.children(path):
                        target.remove(child.path)
                    continue
                if entry.kind is Kind.HARDLINK and target.resolve(entry.target, root) == path:
                    continue
                target.remove(path)
            if entry.kind in {Kind.WHITEOUT, Kind.OPAQUE}:
                continue
            if entry.kind is Kind.HARDLINK:
                first = target.get(_name_in(target, entry.target, root))
                if first is None or first.kind is Kind.DIRECTORY:
                    raise BuildError(f"{name}: the hard link {_show(entry.path)} names no file: {_show(entry.target)}")
                target.link(first, path)
                continue
            content_of = _Member(number, index) if entry.kind is Kind.FILE else None
            put = replace(entry, path=path, content=content_of, digest="")
            target.put(put if self.owner is None else replace(put, uid=uid, gid=gid))


def _name_in(target: _Target, path: bytes, root: bytes) -> bytes:
    """A path of an archive in the target: what leads to it resolved inside `root`, its last part not."""
    directory, _, name = path.rpartition(b"/")
    return below(target.resolve(directory, root), name)


def is_archive(content: Content) -> bool:
    """Whether it is a tar, plain or compressed, by what it begins with: a tar that breaks off later is one, too.

    BuildError where its compression can not be read on this machine.
    """
    from cache.errors import CorruptError, StoreError

    try:
        return begins_tar(_first_bytes(content, 512))
    except CorruptError:
        return False
    except StoreError as error:
        raise BuildError(error.message, hint=error.hint) from None


def _first_bytes(content: Content, size: int) -> bytes:
    """The first `size` bytes, decompressed, of what may break off soon after them; fewer if there are none."""
    with content.open() as stream:
        head = stream.read(1 << 14)
        match head[:4]:
            case b"\x28\xb5\x2f\xfd":
                return _first_of_zstd(content, size)
            case _ if head.startswith(b"\x1f\x8b\x08"):
                import zlib

                decode = zlib.decompressobj(31).decompress
            case _ if head.startswith(b"BZh"):
                import bz2

                decode = bz2.BZ2Decompressor().decompress
            case _ if head.startswith(b"\xfd7zXZ\x00"):
                import lzma

                decode = lzma.LZMADecompressor().decompress
            case _:
                return head[:size]
        plain = b""
        with contextlib.suppress(Exception):  # each of the three has its own errors for damaged data
            while head and len(plain) < size:
                plain += decode(head, size)
                head = stream.read(1 << 14)
        return plain[:size]


def _first_of_zstd(content: Content, size: int) -> bytes:
    from cache.compression import decompressed

    plain = b""
    with content.open() as stream, decompressed(stream) as decoded:
        while len(plain) < size and (more := decoded.read(size - len(plain))):
            plain += more
    return plain


def _read_archive(content: Content, name: str) -> Iterator[Entry]:
    from cache import layers
    from cache.errors import StoreError

    with content.open() as stream:
        try:
            yield from layers.read(stream)
        except StoreError as error:
            raise BuildError(f"{name}: {error.message}", hint=error.hint) from None


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")

"""Where the files of a COPY or ADD come from when they are no stage's: build contexts, and the Dockerfile with them.

A context is a `Files`: a `Directory` of this machine, read as far as it is asked for and with its ignore file applied,
or an `Unpacked` archive. What is in it belongs to root, whoever owns it on the disk, and has no extended attributes:
what is built must not depend on who builds it.

    front = open_contexts("app", file="", stdin=sys.stdin.buffer, ...)
    front.source                    the Dockerfile
    front.files("")                 the main context; other names: those of --build-context
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from msgspec import Struct
from msgspec.structs import replace

from builder.errors import BuildError
from cache.contents import Pieces, opened
from cache.digests import RACY
from cache.entries import Entry, Files, Kind
from grammar.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from builder.fetch import Fetcher
    from cache.digests import Digests
    from grammar.ignore import Ignore, Rule

_MOST_LINKS = 255
_TYPE = 0o170000
_STAMP = struct.Struct("=IIQqqQQ").pack
_NAME = itemgetter(0)
_LONGEST_DOCKERFILE = 16 << 20
_IMAGE_CONTEXT = re.compile(r"(docker-image|oci-layout|docker-archive):(//)?|host:")
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}
_KINDS_OF_CONTEXT = (
    "a folder, a URL, a git repository, docker-image://NAME, oci-layout://DIR[:TAG], docker-archive://FILE or host:"
)
ROOT = Entry(b"", Kind.DIRECTORY, 0o755)


def parts_of(path: bytes) -> list[bytes]:
    """The names in a path, without empty ones and `.`; `..` takes one away and stays at the root."""
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in {b"", b"."}:
            names.append(name)
    return names


def below(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`; either may be empty."""
    return b"/".join(filter(None, (directory, name)))


class View(ABC):
    """A tree of entries, known by the children of each directory; symlinks are resolved inside it.

    An implementation of `cache.entries.Files` but for `links` and `digest`.
    """

    @abstractmethod
    def listing(self, directory: bytes) -> Mapping[bytes, Entry]:
        """The entries directly in a directory, which has no symlinks in it, by name; none if it is no directory."""

    def get(self, path: bytes) -> Entry | None:
        """The entry at a path of which no part but the last is a symlink."""
        if not path:
            return ROOT
        directory, _, name = path.rpartition(b"/")
        return self.listing(directory).get(name)

    def entry(self, path: bytes) -> Entry | None:
        """See `Files.entry`."""
        directory, _, name = path.strip(b"/").rpartition(b"/")
        if name in {b"", b".", b".."}:
            return self.get(self.resolve(path))
        return self.get(below(self.resolve(directory), name))

    def children(self, path: bytes) -> list[Entry]:
        """See `Files.children`."""
        listed = self.listing(path)
        return [listed[name] for name in sorted(listed)]

    def resolve(self, path: bytes, root: bytes = b"") -> bytes:
        """See `Files.resolve`. root: a directory, as if it were the root: neither `..` nor `/` leads out of it."""
        pending = deque(path.split(b"/"))
        done: list[bytes] = []
        follows = 0
        while pending:
            name = pending.popleft()
            if name in {b"", b"."}:
                continue
            if name == b"..":
                del done[-1:]
                continue
            done.append(name)
            entry = self.get(below(root, b"/".join(done)))
            if entry is None or entry.kind is not Kind.SYMLINK:
                continue
            follows += 1
            if follows > _MOST_LINKS:
                raise BuildError(f"too many levels of symbolic links: /{path.decode('utf-8', 'backslashreplace')}")
            done.pop()
            if entry.target.startswith(b"/"):
                done.clear()
            pending.extendleft(reversed(entry.target.split(b"/")))
        return below(root, b"/".join(done))


@Pieces.register  # not by inheritance: a Struct has a metaclass of its own
class PinnedContent(Struct, frozen=True):
    """A context's file, to be read as it was when the context was listed: a file that changed since is an error."""

    path: bytes
    facts: os.stat_result

    def open(self) -> BinaryIO:
        """See `Content.open`. BuildError when the file can not be read or is not the one that was listed."""
        return os.fdopen(self._opened(), "rb", buffering=0)

    def pieces(self) -> Iterator[bytes]:
        """See `Pieces.pieces`. BuildError as of `open`."""
        return opened(self._opened(), self.facts.st_size)

    def _opened(self) -> int:
        try:
            # O_NONBLOCK: a fifo in the file's place would else hold the open until someone writes to it.
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        then, now = self.facts, os.fstat(file)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (then.st_size, then.st_mtime_ns, then.st_ino):
            os.close(file)
            raise BuildError(
                f"{_show(self.path)} changed during the build", hint="build again when nothing writes to it"
            )
        return file


class Directory(View):
    """A directory of this machine as a build context. Each directory in it is listed once, when first asked for.

    ignore: what is left out, or None. An ignored directory is not even looked into unless a `!` line may bring back
    something below it; it then shows if anything does. Safe to ask from several threads.
    """

    def __init__(
        self,
        root: Path,
        ignore: Ignore | None = None,
        digests: Digests | None = None,
        *,
        ignore_name: str = ".dockerignore",
    ) -> None:
        self.root = root
        self.ignore = ignore
        self.ignore_name = ignore_name
        self._digests = digests
        self._place = os.fsencode(os.path.realpath(root))
        self._listed: dict[bytes, dict[bytes, Entry]] = {}
        self._scanned: dict[bytes, list[tuple[bytes, os.stat_result]]] = {}
        self._stats: dict[bytes, os.stat_result] = {}
        self._hashes: dict[bytes, str] = {}
        self._lock = threading.RLock()

    def listing(self, directory: bytes) -> Mapping[bytes, Entry]:
        """See `View.listing`. BuildError when the directory can not be read."""
        known = self._listed.get(directory)
        if known is None:
            with self._lock:
                known = self._listed.get(directory)
                if known is None:
                    known = self._listed[directory] = self._list(directory)
        return known

    def _list(self, directory: bytes) -> dict[bytes, Entry]:
        if directory and not self._is_directory(directory):
            return {}
        place = os.path.join(self._place, directory)
        prefix = directory + b"/" if directory else b""
        ignore = self.ignore
        found: dict[bytes, Entry] = {}
        for name, facts in self._scan(directory):
            path = prefix + name
            self._stats[path] = facts
            # The directory is not listed yet where `listing` would look for it.
            if ignore is not None and ignore.match(path) and not self.listing(path):
                continue
            try:
                entry = _entry(path, os.path.join(place, name), facts)
            except OSError as error:
                raise _unreadable(place, error, self.ignore_name) from None
            if entry is not None:
                found[name] = entry
        return found

    def _scan(self, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
        """What lies in a directory, sorted by name, but for what the ignore file leaves out with all below it."""
        known = self._scanned.get(directory)
        if known is not None:
            return known
        place = os.path.join(self._place, directory)
        prefix = directory + b"/" if directory else b""
        ignore = self.ignore
        try:
            with os.scandir(place) as items:
                if ignore is None:
                    found = [(item.name, item.stat(follow_symlinks=False)) for item in items]
                else:
                    found = [
                        (item.name, item.stat(follow_symlinks=False))
                        for item in items
                        if not ignore.match(path := prefix + item.name)
                        or (item.is_dir(follow_symlinks=False) and not ignore.prunable(path))
                    ]
        except OSError as error:
            raise _unreadable(place, error, self.ignore_name) from None
        found.sort(key=_NAME)
        self._scanned[directory] = found
        return found

    def stamp(self, path: bytes, *, through_links: bool = False) -> tuple[str, bool] | None:
        """What changes when anything at or below `path`, resolved, does; and whether that is so already.

        It is made of names and of what `lstat` says, no file is read. False: something is so young that a change of it
        might leave the stamp as it is, as in `cache.digests`. None for a path that is not there, and with
        `through_links` for a tree that has symlinks, whose targets lie elsewhere. Files that the ignore file leaves out
        may count, too.
        """
        with self._lock:
            top = None
            if path:
                parent, _, name = path.rpartition(b"/")
                if (top := dict(self._scan(parent) if self._leads(parent) else ()).get(name)) is None:
                    return None
            top_is_file = top is not None and not stat.S_ISDIR(top.st_mode)
            rules = self.ignore.rules if self.ignore is not None else ()
            pieces = [repr((rules, top_is_file)).encode("utf-8", "surrogateescape")]
            young = time.time_ns() - RACY
            sure = True
            waiting = [path]
            while waiting:
                directory = waiting.pop()
                scanned = [(b"", top)] if top_is_file and top is not None else self._scan(directory)
                pieces.append(b"%d %d:%b" % (len(scanned), len(directory), directory))
                for name, facts in scanned:
                    mode = facts.st_mode
                    kind = mode & _TYPE
                    if kind == stat.S_IFDIR:
                        waiting.append(directory + b"/" + name if directory else name)
                        pieces += (_STAMP(len(name), mode, 0, 0, 0, 0, 0), name)
                        continue
                    if kind == stat.S_IFLNK and through_links:
                        return None
                    changed, modified = facts.st_ctime_ns, facts.st_mtime_ns
                    if changed >= young or young <= modified <= young + 2 * RACY:
                        sure = False
                    pieces += (
                        _STAMP(len(name), mode, facts.st_size, modified, changed, facts.st_ino, facts.st_dev),
                        name,
                    )
            return hashlib.sha256(b"".join(pieces)).hexdigest(), sure

    def _leads(self, directory: bytes) -> bool:
        """Whether a path, resolved, is a directory of this view."""
        return not directory or self._is_directory(directory)

    def _is_directory(self, path: bytes) -> bool:
        """Whether a path is a directory of this view. The kernel must not be asked: it follows symlinks out of it."""
        facts = self._stats.get(path)
        if facts is None:
            parent, _, name = path.rpartition(b"/")
            return (entry := self.listing(parent).get(name)) is not None and entry.kind is Kind.DIRECTORY
        return stat.S_ISDIR(facts.st_mode)

    def links(self, entry: Entry) -> object | None:
        """See `Files.links`."""
        facts = self._stats.get(entry.path)
        if facts is None or facts.st_nlink < 2 or entry.kind is not Kind.FILE:
            return None
        return facts.st_dev, facts.st_ino

    def digest(self, entry: Entry) -> str:
        """See `Files.digest`."""
        if entry.path not in self._hashes:
            self.hash_all([entry])
        return self._hashes[entry.path]

    def hash_all(self, entries: Iterable[Entry]) -> None:
        """Find the digests of many files at once, which costs far less than one by one."""
        with self._lock:
            missing = [entry for entry in entries if entry.kind is Kind.FILE and entry.path not in self._hashes]
            if not missing:
                return
            if self._digests is None:
                digests = [_sha256(entry) for entry in missing]
            else:
                files = [(entry.path, self._stats[entry.path]) for entry in missing]
                try:
                    digests = self._digests.of_files(self._place, files, None)
                except OSError as error:
                    raise _unreadable(error.filename or self._place, error, self.ignore_name) from None
            self._hashes.update(zip((entry.path for entry in missing), digests, strict=True))

    def hidden_by(self, path: bytes) -> Rule | None:
        """The line of the ignore file that leaves out `path`, which is there on the disk; None when none does."""
        if self.ignore is None:
            return None
        names = parts_of(path)
        if not names or not os.path.lexists(os.path.join(self._place, *names)):
            return None
        rule = self.ignore.decide(b"/".join(names))
        return rule if rule is not None and not rule.negated else None


def _entry(path: bytes, place: bytes, facts: os.stat_result) -> Entry | None:
    """What lies at `place` on the disk as an entry of a context; None for a socket, of no use on another machine."""
    kind = _KINDS.get(stat.S_IFMT(facts.st_mode))
    mode = facts.st_mode & 0o7777
    match kind:
        case None:
            return None
        case Kind.FILE:
            content = PinnedContent(place, facts)
            return Entry(path, kind, mode, 0, 0, facts.st_size, facts.st_mtime_ns, content=content)
        case Kind.SYMLINK:
            return Entry(path, kind, 0o777, mtime_ns=facts.st_mtime_ns, target=os.readlink(place))
        case Kind.CHARACTER | Kind.BLOCK:
            device = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
            return Entry(path, kind, mode, mtime_ns=facts.st_mtime_ns, device=device)
        case _:
            return Entry(path, kind, mode, mtime_ns=facts.st_mtime_ns)


class Unpacked(View):
    """A tree held in memory, put together of entries: an archive that came over a pipe, a download, a test's files.

    Of entries for one path the last counts; directories that the entries imply are 0755. HARDLINKs become FILEs that
    `links` knows to be one.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._listed: dict[bytes, dict[bytes, Entry]] = {b"": {}}
        self._links: dict[bytes, object] = {}
        self._hashes: dict[bytes, str] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Put an entry in, or in the place of the one that is there."""
        if not entry.path:
            return
        if entry.kind is Kind.HARDLINK:
            first = self.get(entry.target)
            if first is None:
                raise BuildError(f"the hard link {_show(entry.path)} names no earlier file: {_show(entry.target)}")
            self._links[entry.path] = self._links.setdefault(first.path, first.path)
            entry = replace(first, path=entry.path)
        parent, _, name = entry.path.rpartition(b"/")
        if parent not in self._listed:
            self.add(Entry(parent, Kind.DIRECTORY, 0o755, mtime_ns=entry.mtime_ns))
        self._listed[parent][name] = entry
        if entry.kind is Kind.DIRECTORY:
            self._listed.setdefault(entry.path, {})

    def listing(self, directory: bytes) -> Mapping[bytes, Entry]:
        """See `View.listing`."""
        return self._listed.get(directory, {})

    def links(self, entry: Entry) -> object | None:
        """See `Files.links`."""
        return self._links.get(entry.path)

    def digest(self, entry: Entry) -> str:
        """See `Files.digest`."""
        if entry.digest:
            return entry.digest
        if entry.path not in self._hashes:
            self._hashes[entry.path] = _sha256(entry)
        return self._hashes[entry.path]


def _sha256(entry: Entry) -> str:
    import hashlib

    assert entry.content is not None
    with entry.content.open() as stream:
        hasher = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _unreadable(path: bytes, error: OSError, ignore_name: str = ".dockerignore") -> BuildError:
    return BuildError(
        f"can not read {_show(path)}: {error.strerror or error}",
        hint=f"a line in {ignore_name} leaves it out of the context" if isinstance(error, PermissionError) else "",
    )


# ---------------------------------------------------------------- archives as contexts


class _Stretch(Struct, frozen=True):
    """Some bytes of a temporary file, which lives as long as `holder`."""

    holder: BinaryIO
    start: int
    size: int

    def open(self) -> BinaryIO:
        """See `Content.open`."""
        return io.BufferedReader(_StretchReader(self.holder.fileno(), self.start, self.size))


class _StretchReader(io.RawIOBase):
    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor = descriptor
        self._at = start
        self._end = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._descriptor, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def unpack_context(stream: BinaryIO, what: str, spool: BinaryIO) -> Unpacked:
    """A tar, compressed or not, as a context: owners 0:0, no xattrs. Contents go to `spool`, which must stay open.

    BuildError, naming `what`, when it is no sound archive.
    """
    from cache import layers
    from cache.errors import StoreError

    files = Unpacked()
    at = 0
    try:
        for entry in layers.read(stream):
            if entry.kind in {Kind.WHITEOUT, Kind.OPAQUE}:
                continue
            content = entry.content
            if entry.kind is Kind.FILE and content is not None:
                with content.open() as data:
                    start = at
                    while chunk := data.read(1 << 20):
                        at += spool.write(chunk)
                content = _Stretch(spool, start, at - start)
            files.add(replace(entry, uid=0, gid=0, xattrs=(), content=content, digest=""))
    except StoreError as error:
        raise BuildError(f"{what} is no sound archive: {error.message}", hint=error.hint) from None
    spool.flush()
    return files


def looks_like_archive(head: bytes) -> bool:
    """Whether these first bytes (512 or more, if there are as many) begin a tar, or what a tar is compressed with."""
    return head.startswith((b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")) or begins_tar(head)


def begins_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a tar's header, by its checksum: what every tar has, the oldest ones too."""
    if len(head) < 512:
        return False
    digits = head[148:156].strip(b" \x00")
    if not digits or not all(0x30 <= char < 0x38 for char in digits):
        return False
    summed = head[:148] + b" " * 8 + head[156:512]
    # Some old programs took bytes for signed numbers.
    signed = sum(summed) - 256 * sum(char > 0x7F for char in summed)
    return int(digits, 8) in {sum(summed), signed}


# ---------------------------------------------------------------- the front door


class Contexts:
    """The contexts of one build and its Dockerfile. Made by `open_contexts`, closed when the build ends.

    name: what tells this context from others, for records that outlive the build. title: what messages call the main
    context. named: the contexts of --build-context that are files and not images.
    """

    def __init__(
        self,
        *,
        name: str,
        title: str,
        source: Source,
        main: Files,
        named: Mapping[str, Callable[[], Files]],
        resources: contextlib.ExitStack,
        fetcher: Callable[[], Fetcher] | None = None,
    ) -> None:
        self.name = name
        self.title = title
        self.source = source
        self.fetcher = fetcher
        self._views: dict[str, Files] = {"": main}
        self._named = dict(named)
        self._lock = threading.Lock()
        self._resources = resources

    def files(self, name: str = "") -> Files:
        """The context of this name, empty for the main one; opened when first asked for. BuildError if that fails."""
        with self._lock:
            found = self._views.get(name)
            if found is None:
                if name not in self._named:
                    raise BuildError(f"there is no build context {name}")
                found = self._views[name] = self._named[name]()
            return found

    def close(self) -> None:
        """Remove what was fetched for this build only. Idempotent."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_image(value: str) -> bool:
    """Whether the value of a --build-context names an image, to be resolved by `builder.bases`, and not files."""
    return _IMAGE_CONTEXT.match(value) is not None


def open_contexts(
    context: str,
    file: str,
    stdin: BinaryIO,
    *,
    named: Sequence[tuple[str, str]] = (),
    digests: Digests | None = None,
    fetcher: Callable[[], Fetcher] | None = None,
    ignore_file: str = "",
    keep_git_dir: bool = False,
    working_dir: Path | None = None,
) -> Contexts:
    """Find the build's files and read its Dockerfile.

    context: a folder, `-` (a tar or a Dockerfile on `stdin`), or a URL of a git repository, a tar or a Dockerfile.
    file: the Dockerfile: a path (of this machine for a folder, else in the context), `-`, a URL, or empty. named:
    (name, value) of --build-context; images among them are left to `builder.bases`. fetcher: None when nothing may come
    from elsewhere. ignore_file: used instead of the context's own. keep_git_dir: of a repository that is the main
    context, `.git` is kept.

    Raises BuildError when something is not there; DockerfileError for a broken ignore file.
    """
    resources = contextlib.ExitStack()
    try:
        door = _Door(stdin, digests, fetcher, ignore_file, keep_git_dir, working_dir or Path(), resources)
        return door.open(context, file, named)
    except BaseException:
        resources.close()
        raise


class _Door(Struct):
    stdin: BinaryIO
    digests: Digests | None
    fetcher: Callable[[], Fetcher] | None
    ignore_file: str
    keep_git_dir: bool
    here: Path
    resources: contextlib.ExitStack

    def open(self, context: str, file: str, named: Sequence[tuple[str, str]]) -> Contexts:
        if context == "-" and file == "-":
            raise BuildError("the context and the Dockerfile can not both be standard input", hint="give one as a path")
        if context == "-":
            source, main, title = self._from_stdin(file)
        elif is_remote(context):
            source, main, title = self._from_elsewhere(context, file)
        else:
            source, main, title = self._from_folder(context, file)
        return Contexts(
            name=title if title != "." else str(self.here.resolve()),
            title=title,
            source=source,
            main=main,
            named={name: self._opener(name, value) for name, value in named if not is_image(value)},
            fetcher=self.fetcher,
            resources=self.resources,
        )

    # ------------------------------------------------------------ the main context

    def _from_folder(self, context: str, file: str) -> tuple[Source, Files, str]:
        folder = self.here / context
        if not folder.is_dir():
            if folder.exists():
                raise BuildError(f"the build context {context} is not a directory", hint="name the folder with -f FILE")
            raise BuildError(f"the build context {context} does not exist", hint=_neighbours(folder))
        if file == "-":
            source = self._read(self.stdin, "-")
            beside = None
        elif file and is_remote(file):
            source, beside = self._remote_dockerfile(file), None
        else:
            path = self._dockerfile(folder, file)
            source = _read_path(path, _title(path, self.here))
            beside = path.with_name(path.name + ".dockerignore")
        return source, self._directory(folder, beside), str(folder.resolve())

    def _dockerfile(self, folder: Path, file: str) -> Path:
        """The path of the build file: `-f` as given, else Dockerfile or dockerfile in the context."""
        if file:
            path = self.here / file
            if path.is_file():
                return path
            if path.is_dir():
                raise BuildError(f"the Dockerfile {file} is a directory", hint=f"-f {file.rstrip('/')}/Dockerfile?")
            inside = os.path.join(_title(folder, self.here), file)
            hint = f"-f is read from the working directory; did you mean -f {inside}?"
            raise BuildError(
                f"there is no Dockerfile {file}", hint=hint if (folder / file).is_file() else _neighbours(path)
            )
        for name in ("Dockerfile", "dockerfile"):
            if (folder / name).is_file():
                return folder / name
        alike = re.compile("(?i)dockerfile|containerfile")
        names = sorted(item.name for item in folder.iterdir() if alike.search(item.name))
        found = [name for name in names if not name.endswith(".dockerignore")]
        raise BuildError(
            f"there is no Dockerfile in {_title(folder, self.here)}",
            hint=f"name it with -f: {', '.join(found)}" if found else "name it with -f FILE",
        )

    def _directory(self, folder: Path, beside: Path | None) -> Directory:
        """A folder with its ignore file: the one given, the one beside the Dockerfile, or the folder's own."""
        if self.ignore_file:
            chosen = self.here / self.ignore_file
            if not chosen.is_file():
                raise BuildError(f"there is no ignore file {self.ignore_file}", hint=_neighbours(chosen))
        else:
            chosen = beside if beside is not None and beside.is_file() else folder / ".dockerignore"
        if not chosen.is_file():
            return Directory(folder, None, self.digests)
        from grammar.ignore import Ignore

        name = _title(chosen, self.here)
        return Directory(folder, Ignore.parse(_text(chosen), name), self.digests, ignore_name=name)

    def _from_stdin(self, file: str) -> tuple[Source, Files, str]:
        stream = io.BufferedReader(_Raw(self.stdin), 1 << 16)
        head = stream.peek(512)
        if not looks_like_archive(head):
            if file:
                raise BuildError("standard input holds a Dockerfile, and -f names another one", hint="leave out one")
            return self._read(stream, "-"), Unpacked(), "-"
        files = unpack_context(stream, "standard input", self._spool())
        return self._inside(files, file, "standard input"), files, "-"

    def _from_elsewhere(self, context: str, file: str) -> tuple[Source, Files, str]:
        files, only = self._fetch_context(context, keep_git_dir=self.keep_git_dir)
        if file == "-":
            return self._read(self.stdin, "-"), files, context
        if only and not file:
            return self._inside(files, only, context), files, context
        return self._inside(files, file, context), files, context

    def _fetch_context(self, url: str, *, keep_git_dir: bool = False) -> tuple[Files, str]:
        """The files behind a URL; with the name of the only one when it is no archive."""
        fetcher = self._fetcher(url)
        git = fetcher.git_ref(url, context=True)
        if git is not None:
            return fetcher.checkout(replace(git, keep_git_dir=True) if keep_git_dir else git), ""
        download = fetcher.download(url)
        with download.path.open("rb") as stream:
            if looks_like_archive(stream.read(512)):
                stream.seek(0)
                return unpack_context(stream, url, self._spool()), ""
        return Unpacked([download.entry(b"context")]), "context"

    def _inside(self, files: Files, file: str, where: str) -> Source:
        """The Dockerfile that lies in the context itself."""
        for name in [file] if file else ["Dockerfile", "dockerfile"]:
            entry = files.entry(files.resolve(b"/".join(parts_of(os.fsencode(name)))))
            if entry is not None and entry.kind is Kind.FILE and entry.content is not None:
                with entry.content.open() as stream:
                    return self._read(stream, name)
        names = ", ".join(_show(entry.path) for entry in files.children(b"")[:10])
        raise BuildError(f"there is no {file or 'Dockerfile'} in {where}", hint=f"it has {names}" if names else "")

    def _remote_dockerfile(self, url: str) -> Source:
        with self._fetcher(url).download(url).path.open("rb") as stream:
            return self._read(stream, url)

    def _read(self, stream: BinaryIO, name: str) -> Source:
        data = stream.read(_LONGEST_DOCKERFILE + 1)
        if len(data) > _LONGEST_DOCKERFILE:
            raise BuildError(f"the Dockerfile {name} has more than {_LONGEST_DOCKERFILE >> 20} MiB")
        return Source("Dockerfile" if name == "-" else name, _decode(data))

    def _spool(self) -> BinaryIO:
        import tempfile

        return self.resources.enter_context(tempfile.TemporaryFile(prefix="pybuild-context-"))

    def _fetcher(self, url: str) -> Fetcher:
        if self.fetcher is None:
            raise BuildError(f"{url} can not be fetched here")
        return self.fetcher()

    # ------------------------------------------------------------ named contexts

    def _opener(self, name: str, value: str) -> Callable[[], Files]:
        """What opens a named context when it is first asked for; one that is not there is an error at once."""
        folder = self.here / value
        if not is_remote(value) and not folder.is_dir():
            scheme, sign, _ = value.partition("://")
            if sign:
                raise BuildError(
                    f"the build context {name}={value} is of no known kind: {scheme}", hint=_KINDS_OF_CONTEXT
                )
            raise BuildError(f"the build context {name}={value} is no directory", hint=_neighbours(folder))

        def opened() -> Files:
            if is_remote(value):
                return self._fetch_context(value)[0]
            chosen = folder / ".dockerignore"
            if not chosen.is_file():
                return Directory(folder, None, self.digests)
            from grammar.ignore import Ignore

            title = _title(chosen, self.here)
            return Directory(folder, Ignore.parse(_text(chosen), title), self.digests, ignore_name=title)

        return opened


class _Raw(io.RawIOBase):
    """Any readable binary stream as a raw one, so that its first bytes can be looked at without taking them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def is_remote(text: str) -> bool:
    """Whether it is a URL, or another spelling of a git repository."""
    return re.match(r"(?:https?|git|ssh|file)://|[\w.-]+@[\w.-]+:|github\.com/", text) is not None


def _neighbours(path: Path) -> str:
    """A hint: names beside a path that is not there."""
    from grammar.suggest import did_you_mean

    with contextlib.suppress(OSError):
        return did_you_mean(path.name, [item.name for item in path.parent.iterdir()])
    return f"{path.parent} does not exist either"


def _title(path: Path, here: Path) -> str:
    """How messages call a path: relative where it lies below the working directory."""
    try:
        return str(path.relative_to(here)) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def _text(path: Path) -> str:
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise _unreadable(os.fsencode(path), error) from None


def _read_path(path: Path, name: str) -> Source:
    return Source(name, _text(path))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def walk(files: Files, path: bytes = b"") -> Iterator[Entry]:
    """Every entry below a directory, each before its children, sorted."""
    for entry in files.children(path):
        yield entry
        if entry.kind is Kind.DIRECTORY:
            yield from walk(files, entry.path)

"""COPY, ADD and WORKDIR lowered to a FileStep: where from, where to, as whom. Nothing is looked at on a disk here."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.handlers.expansion import Expander, error
from builder.model import (
    CONTEXT,
    FileSource,
    FileStep,
    Finding,
    GitSource,
    InlineSource,
    Lowered,
    Origin,
    PathSource,
    Scope,
    StageState,
)
from builder.origins import resolve, uses
from builder.remotes import is_git, is_url, remote_source
from grammar.instructions import Add, Word

if TYPE_CHECKING:
    from grammar.instructions import Copy, Workdir

_MOST_MODE = 0o7777
_OCTAL = re.compile(r"[0-7]+")
_NUMBER = re.compile(r"[+-]?[0-9]+")
# chmod(1): clauses of who, operator and permissions, one who for several operators.
_SYMBOLIC = re.compile(r"[ugoa]*(?:[+=-](?:[rwxXst]*|[ugo]))+(?:,[ugoa]*(?:[+=-](?:[rwxXst]*|[ugo]))+)*")


def lower_copy(instruction: Copy, state: StageState, scope: Scope) -> Lowered:
    """COPY [--from=] SOURCE ... DESTINATION."""
    named = uses(instruction)
    origin = resolve(named[0], scope) if named else CONTEXT
    return _transfer(instruction, state, scope, origin=origin, parents=_flag(instruction.parents) is True)


def lower_add(instruction: Add, state: StageState, scope: Scope) -> Lowered:
    """ADD [--checksum=] [--keep-git-dir] [--unpack] SOURCE ... DESTINATION."""
    return _transfer(instruction, state, scope, origin=CONTEXT, parents=False)


def _transfer(instruction: Copy | Add, state: StageState, scope: Scope, *, origin: Origin, parents: bool) -> Lowered:
    expander = Expander(state, scope)
    adding = isinstance(instruction, Add)
    chown = expander.word(instruction.chown)
    chmod = _mode(expander.word(instruction.chmod), instruction.chmod, scope)
    link = _flag(instruction.link) is True
    paths = [Word(expander.word(word), word.span) for word in instruction.sources]
    written = expander.word(instruction.destination)
    sources: list[FileSource] = []
    if isinstance(instruction, Add):
        checksum = _checksum(instruction, paths, expander, scope)
        keep = _flag(instruction.keep_git_dir)
        unpack = _flag(instruction.unpack)
        for word in paths:
            remote = remote_source(word, checksum, keep_git_dir=keep, source=scope.source)
            sources.append(remote or PathSource(word.text, word.span))
    else:
        unpack = False
        sources.extend(_path(word, scope) for word in paths)
    sources += [
        InlineSource(doc.name, expander.body(doc).encode("utf-8", "surrogateescape")) for doc in instruction.heredocs
    ]
    _note_ineffective(instruction, sources, expander)
    destination, into = join(state.config.working_dir, written)
    step = FileStep(
        origin=origin,
        sources=tuple(sources),
        destination=destination,
        into=into,
        chown=chown,
        chmod=chmod,
        # With --chmod BuildKit copies onto the base even when --link is given, which shows in followed symlinks.
        link=link and not chmod,
        parents=parents,
        excludes=tuple(word.text for word in instruction.excludes),
        unpack=unpack,
    )
    parts = [
        "ADD" if adding else "COPY",
        *(["--parents"] if parents else []),
        *([f"--chown={chown}"] if chown else []),
        *([f"--chmod={chmod}"] if chmod else []),
        *(word.text for word in paths),
        *(f"<<{heredoc.name}" for heredoc in instruction.heredocs),
        written,
    ]
    return Lowered(
        instruction,
        state,
        step,
        created_by=f"{expander.masked(' '.join(parts))} # buildkit",
        findings=tuple(expander.findings),
        secrets=frozenset(expander.secrets),
    )


def _note_ineffective(instruction: Copy | Add, sources: list[FileSource], expander: Expander) -> None:
    """Flags that BuildKit takes and that do nothing here: said, not passed over."""
    source = expander.scope.source
    for word in instruction.excludes:
        if "$" in word.text:
            message = f"--exclude={word.text} is not expanded: a variable in it is a plain text"
            expander.findings.append(Finding("ExcludeNotExpanded", message, word.span, source))
    keep = instruction.keep_git_dir if isinstance(instruction, Add) else None
    if keep is not None and not any(isinstance(each, GitSource) for each in sources):
        message = "--keep-git-dir has no effect: no source is a git repository"
        expander.findings.append(Finding("FlagWithoutEffect", message, keep.span, source))


def _path(word: Word, scope: Scope) -> PathSource:
    """A source of COPY; BuildError for what only ADD can take."""
    if is_git(word.text):
        raise error(scope, "source can't be a git ref for COPY", word.span, "use ADD, or COPY --from with a stage")
    if is_url(word.text):
        raise error(scope, "source can't be a URL for COPY", word.span, "use ADD")
    return PathSource(word.text, word.span)


def _checksum(instruction: Add, paths: list[Word], expander: Expander, scope: Scope) -> str:
    word = instruction.checksum
    checksum = expander.word(word)
    if word is None or not checksum:
        return ""
    if len(paths) != 1 or instruction.heredocs:
        raise error(scope, "checksum can't be specified for multiple sources", word.span, "write one ADD for each")
    if not is_url(paths[0].text) and not is_git(paths[0].text):
        raise error(scope, "checksum requires HTTP(S) or Git sources", word.span)
    return checksum


def _flag(word: Word | None) -> bool | None:
    """A flag's truth, which the parser has made sure of; None when it is not there."""
    return None if word is None else word.text == "true"


def _mode(mode: str, word: Word | None, scope: Scope) -> str:
    """The mode when it is an octal number up to 7777 or what chmod(1) takes."""
    if not mode or word is None:
        return ""
    octal = _OCTAL.fullmatch(mode)
    if octal and int(mode, 8) <= _MOST_MODE:
        return mode
    if octal or _NUMBER.fullmatch(mode):
        msg = f"invalid chmod parameter: '{mode}'. it should be octal string and between 0 and 07777"
        raise error(scope, msg, word.span)
    if not _SYMBOLIC.fullmatch(mode):
        raise error(scope, f"invalid chmod parameter: '{mode}'", word.span, "write 0644, or u=rw,go=r")
    return mode


def join(working_dir: str, path: str) -> tuple[str, bool]:
    """A destination as a clean absolute path, and whether it names a directory: `dir/`, `dir/.`, `.` or nothing."""
    into = path in {"", "."} or path.endswith(("/", "/."))
    return _absolute(posixpath.join("/", working_dir, path)), into


def _absolute(path: str) -> str:
    # normpath keeps two leading slashes, which POSIX lets mean something.
    return "/" + posixpath.normpath(path).lstrip("/")


def lower_workdir(instruction: Workdir, state: StageState, scope: Scope) -> Lowered:
    """WORKDIR: the directory is made, if missing, as the current USER's. An absolute path stays as it is written."""
    expander = Expander(state, scope)
    path = expander.word(instruction.path)
    current = state.config.working_dir or "/"
    if not path:
        path = current
    elif not path.startswith("/"):
        path = _absolute(posixpath.join("/", current, path))
    after = replace(state, config=replace(state.config, working_dir=path), workdir_set=True)
    clean = _absolute(path)
    step = None
    if clean != "/":
        step = FileStep(origin=CONTEXT, sources=(), destination=clean, into=True, chown=state.config.user)
    return Lowered(instruction, after, step, created_by=f"WORKDIR {path}", findings=tuple(expander.findings))

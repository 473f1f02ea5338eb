"""`pybuild lint --fix` and `--diff`: the changes shown, asked for, and written in one piece."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.flags import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.lint.settings import Known, Settings
    from builder.model import BuildRequest


def mended(request: BuildRequest, settings: Settings, known: Known, given: Given, around: Surroundings) -> int:
    """Show the changes, and with --fix write them once they are agreed to. 1 when some are left unwritten, else 0.

    UsageError when there is no file to write, or nobody to ask.
    """
    from msgspec.structs import replace

    from builder.cli.looking import contexts_of, judged
    from builder.lint import every
    from builder.lint.fixing import Look, mend
    from builder.lint.running import runs_of
    from builder.survey import glance
    from grammar.ignore import Ignore
    from grammar.source import DockerfileError, Source

    writing = given.on("fix")
    if writing and "-" in {request.context, request.file}:
        raise UsageError(
            "--fix has no file to write: the Dockerfile is standard input", hint="--diff shows the changes"
        )
    with contexts_of(request, around) as contexts:
        before = contexts.source
        place = _ignore_file(request, before.name)
        ignore_text = _read(place) if place.is_file() else None

        def look(text: str, ignore: str | None) -> Look:
            try:
                rules = None if ignore is None else Ignore.parse(ignore, str(place))
            except DockerfileError:
                rules = None
            seen = glance(request, contexts, Source(before.name, text), rules)
            subject = replace(seen.subject, runs=runs_of(seen.subject))
            return Look(subject, tuple(judged(seen, settings, known)), bool(seen.failures))

        done = mend(before.text, ignore_text, look, every())
    changes = [
        (Path(before.name), before.text, done.text),
        (place, ignore_text or "", done.ignore or ""),
    ]
    changes = [change for change in changes if change[1] != change[2]]
    if not changes:
        if writing:
            print("nothing to mend", file=around.stderr)
        return 0
    shown = "".join(line for path, old, new in changes for line in _diff(path, old, new))
    if not writing:
        around.say(shown.rstrip("\n"))
        return 1
    print(shown, end="", file=around.stderr)
    if not given.on("yes") and not _sure(changes, around):
        print("nothing was written", file=around.stderr)
        return 1
    for path, old, new in changes:
        _write(path, old, new)
    count = len(done.done)
    print(f"mended {count} finding{'s' * (count != 1)}", file=around.stderr)
    return 0


def _ignore_file(request: BuildRequest, dockerfile: str) -> Path:
    """Where lines of an ignore file belong: the one that counts, else the context's own, to be made."""
    if request.ignore_file:
        return Path(request.ignore_file)
    beside = Path(f"{dockerfile}.dockerignore")
    return beside if beside.is_file() else Path(request.context, ".dockerignore")


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _diff(path: Path, old: str, new: str) -> Iterator[str]:
    """A unified diff, as `patch` and `git apply` read it."""
    import difflib

    name = os.path.relpath(path)
    made = "/dev/null" if not path.exists() else f"a/{name}"
    for line in difflib.unified_diff(_lines(old), _lines(new), made, f"b/{name}"):
        shown = line.encode("utf-8", "backslashreplace").decode()
        yield shown if shown.endswith("\n") else f"{shown}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    # Only "\n" ends a line; str.splitlines() knows more ends.
    *lines, rest = text.split("\n")
    return [f"{line}\n" for line in lines] + ([rest] if rest else [])


def _sure(changes: list[tuple[Path, str, str]], around: Surroundings) -> bool:
    """Ask; a script can not answer, so it has to say --yes."""
    if not around.stdin.isatty():
        raise UsageError("--fix asks before it writes, and there is no terminal", hint="--yes does not ask")
    names = " and ".join(os.path.relpath(path) for path, _, _ in changes)
    print(f"Write {names}? [y/N] ", end="", file=around.stderr, flush=True)
    return around.stdin.readline().strip().lower() in {b"y", b"yes"}


def _write(path: Path, old: str, new: str) -> None:
    """Put the new text in the file's place at once, with its mode and owner; a link stays one.

    UsageError when somebody else has changed it since, or it can not be written.
    """
    import contextlib
    import tempfile

    target = Path(os.path.realpath(path))
    try:
        facts = target.stat() if target.exists() else None
        if (_read(target) if facts else "") != old:
            raise UsageError(f"{path} has changed in the meantime", hint="nothing was written; try again")
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
            try:
                file.write(new.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fchmod(file.fileno(), facts.st_mode & 0o7777 if facts else 0o666 & ~_umask())
                if facts is not None and (facts.st_uid, facts.st_gid) != (os.geteuid(), os.getegid()):
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), facts.st_uid, facts.st_gid)
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UsageError(f"{path} can not be written: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

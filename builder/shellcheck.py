"""What shellcheck has to say of the scripts in a build file: one start of the program for all of them.

Each RUN that a shell of its kind reads becomes a file, with a line in front that names the shell, and what is found
comes back as findings `SC####` at the places in the build file. https://www.shellcheck.net.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import msgspec

from builder.errors import BuildError
from builder.model import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from builder.lint.running import Running
    from grammar.source import Source

_DIALECTS: Final = {"sh": "sh", "bash": "bash", "dash": "dash", "ash": "dash", "ksh": "ksh", "mksh": "ksh"}
_SEVERITIES: Final = {"error": Severity.ERROR, "warning": Severity.WARNING}
_OUT_OF_REACH: Final = "SC1090,SC1091,SC2187"
"""Sourced files, which are in the image and not here, and that ash is read as dash."""
_SECONDS: Final = 60
_WITHOUT: Final = "--ignore ShellCheck does without it"


class _Comment(msgspec.Struct):
    file: str
    line: int
    column: int
    end_line: int = msgspec.field(name="endLine")
    end_column: int = msgspec.field(name="endColumn")
    level: str
    code: int
    message: str


class _Answer(msgspec.Struct):
    comments: list[_Comment]


def findings(program: str, runs: Sequence[Running], source: Source, folder: Path) -> list[Finding]:
    """What the program finds in these RUNs. folder: an empty one, for the scripts.

    BuildError when it can not be started, takes longer than a minute, or says what nobody understands.
    """
    scripts = [run for run in runs if run.pieces and run.shell in _DIALECTS and run.script.text.strip()]
    if not scripts:
        return []
    for number, run in enumerate(scripts):
        text = "".join(f"{line}\n" for line in _head(run)) + run.script.text
        (folder / f"{number}.sh").write_bytes(text.encode("utf-8", "surrogateescape"))
    command = [program, "--norc", "--format=json1", f"--exclude={_OUT_OF_REACH}"]
    names = [f"{number}.sh" for number in range(len(scripts))]
    try:
        done = subprocess.run(
            [*command, *names], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(
            f"{program} did not do its work: {error}", hint="--ignore ShellCheck does without it"
        ) from None
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except msgspec.DecodeError:
        said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise BuildError(f"{program} ended with status {done.returncode}: {said}", hint=_WITHOUT) from None
    return list(_located(answer, scripts, source))


def _head(run: Running) -> list[str]:
    """The lines in front of a script: its shell, and the variables that ENV and ARG give it."""
    names = sorted(name for name in run.env if name.isidentifier() and name.isascii())
    lines = [f"# shellcheck shell={_DIALECTS[run.shell]}"]
    # One line, which gives them a value: what is lower-case and never set would be called a mistake.
    lines.append("export " + " ".join(f"{name}=x" for name in names) if names else ":")
    return lines


def _located(answer: _Answer, scripts: Sequence[Running], source: Source) -> Iterator[Finding]:
    for comment in answer.comments:
        run = scripts[int(comment.file.partition(".")[0])]
        ahead = len(_head(run))
        if comment.line <= ahead:
            continue
        start = _offset(run.script.text, comment.line - ahead, comment.column)
        end = _offset(run.script.text, comment.end_line - ahead, comment.end_column)
        severity = _SEVERITIES.get(comment.level, Severity.INFO)
        yield Finding(f"SC{comment.code:04}", comment.message, run.place(start, end), source, "", severity)


def _offset(text: str, line: int, column: int) -> int:
    """The offset of a line and column, both from 1."""
    at = 0
    for _ in range(line - 1):
        found = text.find("\n", at)
        if found < 0:
            return len(text)
        at = found + 1
    return min(at + column - 1, len(text))

"""A `Dockerfile` back to text: one line for each instruction, keywords in capitals, here-documents below their line.

What is printed parses to the same instructions, apart from their places: `parse(to_text(parse(x)))` is stable. What
continuations, flags and JSON looked like is not kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from grammar.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    ExecForm,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    Stopsignal,
    Transfer,
    User,
    Volume,
    Workdir,
)
from grammar.words import BLANKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grammar.instructions import Command, Dockerfile, Heredoc, Instruction, Pair, Word

_FLAG_FIELDS: Final = (
    ("platform", "platform"),
    ("mount", "mounts"),
    ("network", "network"),
    ("security", "security"),
    ("from", "from_"),
    ("chown", "chown"),
    ("chmod", "chmod"),
    ("link", "link"),
    ("parents", "parents"),
    ("exclude", "excludes"),
    ("checksum", "checksum"),
    ("keep-git-dir", "keep_git_dir"),
    ("unpack", "unpack"),
    ("interval", "interval"),
    ("timeout", "timeout"),
    ("start-period", "start_period"),
    ("start-interval", "start_interval"),
    ("retries", "retries"),
)


def to_text(file: Dockerfile) -> str:
    """The whole file, ending in a line feed."""
    directives = file.directives
    out: list[str] = []
    if directives.syntax:
        out.append(f"# syntax={directives.syntax}")
    if directives.escape != "\\":
        out.append(f"# escape={directives.escape}")
    if directives.check:
        out.append(f"# check={directives.check}")
    # A blank line ends the directives: the first comment may look like one.
    out.append("")
    for argument in file.global_args:
        out += (*_comments(argument.comments), instruction_text(argument, directives.escape))
    for stage in file.stages:
        if out[-1]:
            out.append("")
        for instruction in (stage.from_, *stage.instructions):
            out += (*_comments(instruction.comments), instruction_text(instruction, directives.escape))
    out += _comments(file.trailing_comments)
    if not out[0] and not _begins_with_comment(file):
        out = out[1:]
    return "\n".join(out) + "\n"


def instruction_text(instruction: Instruction, escape: str = "\\") -> str:
    """One instruction, with its here-documents, without a line feed at the end."""
    keyword = type(instruction).__name__.upper()
    if isinstance(instruction, Onbuild):
        return f"{keyword} {instruction.trigger_text}"
    arguments = _arguments(instruction)
    if arguments.startswith("--"):
        arguments = f"-- {arguments}"
    parts = [keyword, *_flags(instruction, escape)]
    if arguments:
        parts.append(arguments)
    line = " ".join(parts)
    if re.search(rf"(?:[^{re.escape(escape)}]|^){re.escape(escape)}\Z", line):
        # The escape character is data here; a blank that is neither space nor tab keeps it from continuing the line.
        line += "\f"
    bodies = [f"\n{heredoc.body}{heredoc.name}" for heredoc in _heredocs(instruction)]
    return line + "".join(bodies)


def _begins_with_comment(file: Dockerfile) -> bool:
    first = file.global_args[0] if file.global_args else file.stages[0].from_
    return bool(first.comments)


def _comments(comments: Iterable[str]) -> list[str]:
    return [f"# {comment}" for comment in comments]


def _heredocs(instruction: Instruction) -> tuple[Heredoc, ...]:
    return instruction.heredocs if isinstance(instruction, Run | Transfer) else ()


def _flags(instruction: Instruction, escape: str) -> list[str]:
    found: list[str] = []
    for flag, name in _FLAG_FIELDS:
        value: Word | tuple[Word, ...] | None = getattr(instruction, name, None)
        if value is None:
            continue
        for word in value if isinstance(value, tuple) else (value,):
            special = f"{BLANKS}'\"{escape}"
            text = "".join(escape + char if char in special else char for char in word.text)
            found.append(f"--{flag}={text}")
    return found


def _arguments(instruction: Instruction) -> str:
    match instruction:
        case From():
            name = f" {instruction.as_word} {instruction.name_as_written}" if instruction.name else ""
            return instruction.image.text + name
        case Arg():
            return _pairs(instruction.pairs)
        case Env() | Label():
            if instruction.legacy:
                return f"{instruction.pairs[0].name} {instruction.pairs[0].value}"
            return _pairs(instruction.pairs)
        case Run() | Cmd() | Entrypoint():
            return _command(instruction.command)
        case Healthcheck():
            return "NONE" if instruction.command is None else f"CMD {_command(instruction.command)}"
        case Copy() | Add():
            words = [*instruction.sources, instruction.destination]
            if instruction.json:
                return _array(word.text for word in words)
            return " ".join((*(heredoc.raw for heredoc in instruction.heredocs), *(word.text for word in words)))
        case Volume():
            if instruction.json:
                return _array(word.text for word in instruction.paths)
            return " ".join(word.text for word in instruction.paths)
        case Expose():
            return " ".join(word.text for word in instruction.ports)
        case Shell():
            return _array(instruction.argv)
        case User():
            return instruction.user.text
        case Workdir():
            return instruction.path.text
        case Stopsignal():
            return instruction.signal.text
        case Maintainer():
            return instruction.name
        case _:
            raise TypeError(type(instruction))


def _pairs(pairs: Iterable[Pair]) -> str:
    return " ".join(pair.name if pair.value is None else f"{pair.name}={pair.value}" for pair in pairs)


def _command(command: Command) -> str:
    return _array(command.argv) if isinstance(command, ExecForm) else command.text


def _array(items: Iterable[str]) -> str:
    import json

    return json.dumps(list(items), ensure_ascii=False)

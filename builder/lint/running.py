"""The RUNs of a build file as rules judge them: each with its commands, its shell, its mounts, and the way back.

Read from the instructions themselves, so that a file that can not be planned has them too; where a stage was lowered,
its state says what the words of SHELL, ENV and USER really came to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.lint.shell import SHELLS, Command, Pipeline, Script, Word, read, unwrapped
from grammar.instructions import Arg, Env, ExecForm, Onbuild, Run, Shell, User
from grammar.lines import LogicalLine, Scanner
from grammar.mounts import mount_fields
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from builder.lint.subject import Subject
    from builder.model import StageState
    from grammar.instructions import Instruction, Stage
    from grammar.source import Source

DEFAULT_SHELL = ("/bin/sh", "-c")

_PRAGMA = re.compile(r"hadolint[ \t]+(?:global[ \t]+)?shell[ \t]*=[ \t]*(\S+)")
_SHEBANG = re.compile(r"#![ \t]*(\S+)(?:[ \t]+(.*))?")


class MountTarget(Struct, frozen=True):
    """A mount of a RUN. target: as written, without a slash at its end; variables are not expanded."""

    type: str
    target: str


class Running(Struct, frozen=True):
    """One RUN.

    stage: the index of its stage. number: which instruction of the stage it is, from 0. shell: the name of what reads
    the script, such as `bash`; empty for a program that is started without one. argv: of the shell. script: its
    commands; a JSON array is one command, or the script that it hands to a shell. env, user: as far as the file, or a
    known base, says. mounts: what is not part of the layer. pieces: where in the file the script's characters stand;
    empty when only the whole instruction can be named. onbuild: it runs in other people's builds.
    """

    stage: int
    number: int
    instruction: Run
    shell: str
    argv: tuple[str, ...]
    script: Script
    env: Mapping[str, str]
    user: str = ""
    mounts: tuple[MountTarget, ...] = ()
    pieces: tuple[tuple[int, int, int], ...] = ()
    onbuild: bool = False
    span: Span = Span(1, 1, 1, 1)

    @property
    def commands(self) -> tuple[Command, ...]:
        """The script's commands, `sudo` and other wrappers taken off."""
        return tuple(unwrapped(command) for command in self.script.commands)

    def place(self, start: int, end: int) -> Span:
        """The place in the file of a part of the script."""
        if not self.pieces:
            return self.span
        return LogicalLine(self.script.text, self.pieces, 0, 0).span(start, max(end, start + 1))

    def at(self, thing: Command | Word | Pipeline) -> Span:
        """The place of a command, a word or a pipeline."""
        return self.place(thing.start, thing.end)

    def mounted(self, path: str, *types: str) -> bool:
        """Whether a mount of one of these types (any but bind when none is given) is at the path or above it."""
        wanted = types or ("cache", "tmpfs")
        return any(
            mount.type in wanted and (path == mount.target or path.startswith(mount.target.rstrip("/") + "/"))
            for mount in self.mounts
        )

    def pipefail(self) -> bool:
        """Whether the shell is started so that a pipeline fails with any of its parts."""
        return "pipefail" in self.argv


def runs_of(subject: Subject) -> tuple[Running, ...]:
    """Every RUN of the file in the order of their places, those behind ONBUILD too."""
    dockerfile = subject.plan.dockerfile
    scanner = Scanner(dockerfile.source)
    states = {id(lowered.instruction): before for stage in subject.stages for before, lowered in stage.steps()}
    ends: dict[str, _Fold] = {}
    every: list[_Fold] = []
    found: list[Running] = []
    whole = _shell_of(_head(dockerfile.source), everywhere=True)
    for stage in dockerfile.stages:
        below = ends.get(stage.from_.image.text.lower())
        fold = below.copy() if below else _Fold()
        if whole and below is None:
            fold.shell = (whole, "-c")
        found += _stage(stage, fold, scanner, dockerfile.source, states)
        every.append(fold)
        if stage.name:
            ends[stage.name] = fold
    return tuple(found)


class _Fold(Struct):
    """What the instructions so far say, as written."""

    shell: tuple[str, ...] = DEFAULT_SHELL
    user: str = ""
    env: dict[str, str] = {}

    def copy(self) -> _Fold:
        return _Fold(self.shell, self.user, dict(self.env))

    def take(self, instruction: Instruction) -> None:
        match instruction:
            case Shell():
                self.shell = instruction.argv
            case User():
                self.user = instruction.user.text
            case Env() | Arg():
                self.env |= {pair.name: (pair.value or "").strip("'\"") for pair in instruction.pairs}
            case _:
                pass


def _stage(
    stage: Stage, fold: _Fold, scanner: Scanner, source: Source, states: Mapping[int, StageState]
) -> Iterator[Running]:
    for number, instruction in enumerate(stage.instructions):
        pragma = _shell_of(instruction.comments, everywhere=False)
        if pragma:
            # As hadolint has it: from here on, for a base whose SHELL the file can not tell.
            fold.shell = (pragma, "-c")
        before = states.get(id(instruction))
        run: Instruction = instruction.trigger if isinstance(instruction, Onbuild) else instruction
        if isinstance(run, Run):
            argv, user, env = fold.shell, fold.user, dict(fold.env)
            if before is not None:
                argv, user = before.config.shell or argv, before.config.user or user
                env |= dict(before.environment)
            line = scanner.line_at(instruction.span.line)
            yield _running(run, instruction, (stage.index, number), argv, user, env, line, source)
        fold.take(instruction)


def _running(
    run: Run,
    whole: Instruction,
    place: tuple[int, int],
    argv: tuple[str, ...],
    user: str,
    env: Mapping[str, str],
    line: LogicalLine | None,
    source: Source,
) -> Running:
    name = _name(argv)
    pieces: tuple[tuple[int, int, int], ...] = ()
    script = Script("")
    if isinstance(run.command, ExecForm):
        name, argv, script = _executed(run.command.argv)
    else:
        text = run.command.text
        docs = run.heredocs
        if docs and text.strip() == docs[0].raw:
            text = docs[0].body
            found = _SHEBANG.match(text)
            if found:
                argv = (found[1], *(found[2] or "").split())
                name = _name(argv)
            if line is not None:
                pieces = tuple(_body_pieces(text, line.last + 1, source))
        elif line is not None:
            pieces = _shifted(line, line.text.rfind(text))
            at = line.last + 1
            for doc in docs:
                # As the shell gets it: the line, and behind it the documents that it asks for.
                body = doc.body + doc.name
                offset = len(text) + 1
                pieces += tuple((offset + begin, row, column) for begin, row, column in _body_pieces(body, at, source))
                text += f"\n{body}"
                at += body.count("\n") + 1
        script = read(text) if name in SHELLS else Script(text, whole=False)
    return Running(
        stage=place[0],
        number=place[1],
        instruction=run,
        shell=name,
        argv=argv,
        script=script,
        env=env,
        user=user,
        mounts=tuple(_mounts(run)),
        pieces=pieces,
        onbuild=isinstance(whole, Onbuild),
        span=whole.span,
    )


def _name(argv: tuple[str, ...]) -> str:
    """The name of the interpreter: of `/usr/bin/env -S bash` it is `bash`."""
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0].rpartition("/")[2] in {"env", "busybox"} and len(words) > 1:
        words = words[1:]
    return words[0].rpartition("/")[2].removesuffix(".exe").lower() if words else ""


def _executed(argv: tuple[str, ...]) -> tuple[str, tuple[str, ...], Script]:
    """A JSON array: the script behind `sh -c`, or one command of plain words."""
    name = _name(argv[:1])
    if name in SHELLS:
        options = [index for index, word in enumerate(argv) if re.fullmatch(r"-[a-z]*c", word)]
        if options and len(argv) > options[0] + 1:
            return name, argv[: options[0] + 1], read(argv[options[0] + 1])
    words = tuple(Word(word, word, 0, 0) for word in argv)
    return "", (), Script(" ".join(argv), (Command(words),) if words else ())


def _shifted(line: LogicalLine, offset: int) -> tuple[tuple[int, int, int], ...]:
    """The pieces of what begins at `offset` of a logical line."""
    if offset < 0:
        return ()
    first = line.place(offset)
    later = [(start - offset, number, column) for start, number, column in line.pieces if start > offset]
    return ((0, *first), *later)


def _body_pieces(body: str, first: int, source: Source) -> Iterator[tuple[int, int, int]]:
    """Where a here-document's lines stand; leading tabs may have been taken off."""
    offset = 0
    lines = body.split("\n")
    written = source.lines(first, first + len(lines) - 1)
    for number, text in enumerate(lines):
        whole = written[number] if number < len(written) else text
        yield offset, first + number, max(len(whole) - len(text.rstrip("\r")), 0) + 1
        offset += len(text) + 1


def _mounts(run: Run) -> Iterator[MountTarget]:
    for word in run.mounts:
        try:
            fields = dict(field.partition("=")[::2] for field in mount_fields(word.text))
        except ValueError:
            continue
        keys = {key.strip().lower(): value for key, value in fields.items()}
        target = keys.get("target") or keys.get("dst") or keys.get("destination") or ""
        yield MountTarget(keys.get("type", "bind"), target.rstrip("/") or target)


def _shell_of(comments: Iterable[str], *, everywhere: bool) -> str:
    """What `# hadolint shell=` says; `everywhere` for the file's head."""
    for comment in comments:
        found = _PRAGMA.match(comment)
        if found and (everywhere or "global" not in found[0]):
            return found[1]
    return ""


def _head(source: Source) -> list[str]:
    """The comments above the first instruction."""
    comments = []
    for line in source.lines(1, source.text.count("\n") + 1):
        text = line.strip()
        if text.startswith("#"):
            comments.append(text[1:].strip())
        elif text:
            break
    return comments

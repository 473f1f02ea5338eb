"""Rules about COPY and ADD: what they take, from where, and what a RUN behind them does to it."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final

from builder.lint.subject import Edit, Rule, Subject
from builder.model import Severity
from grammar.instructions import Add, Copy, Run, ShellForm, Workdir
from grammar.source import Span
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.running import Running
    from builder.lint.shell import Command
    from builder.model import Finding
    from grammar.instructions import AnyInstruction, Stage

_ARCHIVE: Final = re.compile(r"\.(?:tar|tgz|tbz2?|txz|tar\.(?:gz|bz2|xz|zst|lz|lzma|Z)|tzst|tlz)\Z")
_REMOTE: Final = re.compile(r"[a-z]+://|git@|[^/]*\.git(?:#|\Z)")
_UNPACKERS: Final = frozenset({"tar", "bsdtar", "gtar", "unzip", "gunzip", "bunzip2", "unxz", "7z"})
JUNK: Final = frozenset({
    ".DS_Store", ".git", ".gradle", ".hg", ".idea", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".svn",
    ".terraform", ".tox", ".venv", ".vscode", "__pycache__", "node_modules", "venv",
})  # fmt: skip
"""What lies in a folder of source code and belongs in no image."""
_PRIVATE: Final = frozenset({".env", ".npmrc", ".netrc", ".pypirc", "id_rsa", "id_ed25519", "id_ecdsa", ".aws", ".ssh"})


def copy_instead_of_add(subject: Subject) -> Iterator[Finding]:
    """COPY should be used for files of the context.

    Why: ADD unpacks what happens to be an archive and fetches what looks like a URL; COPY does what it says.

    Bad:
        FROM scratch
        ADD requirements.txt /app/

    Good:
        FROM scratch
        COPY requirements.txt /app/
    """
    for _, instruction in _instructions(subject):
        if isinstance(instruction, Add) and _only_files(instruction):
            span = _keyword(instruction)
            yield subject.finding("CopyInsteadOfAdd", "ADD does no more here than COPY", span, "write COPY")


def _only_files(instruction: Add) -> bool:
    special = instruction.checksum or instruction.keep_git_dir or instruction.unpack
    return not special and not any(
        _ARCHIVE.search(word.text.strip("\"'"))
        or _REMOTE.match(word.text.strip("\"'"))
        or re.search(r"[$*?[]", word.text)
        for word in instruction.sources
    )


def _write_copy(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for _, instruction in _instructions(subject):
        if isinstance(instruction, Add) and _keyword(instruction) == finding.span:
            yield Edit(_keyword(instruction), "copy" if instruction.keyword.islower() else "COPY")


def archive_unpacked_by_run(subject: Subject) -> Iterator[Finding]:
    """ADD unpacks archives of the context.

    Why: copied first and unpacked by a RUN, the archive stays in the image beside what was in it.

    Bad:
        FROM debian:12
        COPY root.tar.gz /tmp/
        RUN tar -xzf /tmp/root.tar.gz -C /

    Good:
        FROM debian:12
        ADD root.tar.gz /
    """
    for stage, instruction in _instructions(subject):
        if not isinstance(instruction, Copy) or instruction.from_ is not None:
            continue
        for word in instruction.sources:
            name = posixpath.basename(word.text.strip("\"'"))
            if not _ARCHIVE.search(name) or re.search(r"[$*?[]", name):
                continue
            for run in subject.runs:
                behind = run.stage == stage.index and run.span.line > instruction.span.line
                unpacks = behind and any(
                    command.name in _UNPACKERS
                    and any(posixpath.basename(each.literal) == name for each in command.arguments)
                    and (command.name != "tar" or _extracts(command))
                    for command in run.commands
                )
                if unpacks:
                    message = f"{name} is copied, and unpacked by the RUN in line {run.span.line}"
                    hint = "ADD it to the folder where it is to be unpacked"
                    yield subject.finding("ArchiveUnpackedByRun", message, word.span, hint)
                    break


def _extracts(command: Command) -> bool:
    first = command.arguments[0].literal if command.arguments else ""
    return command.switch("x") or command.has("--extract", "--get") or bool(re.match(r"[a-zA-Z]*x", first))


def copy_from_unknown_stage(subject: Subject) -> Iterator[Finding]:
    """COPY --from should name a stage, or an image with its tag.

    Why: a name that no stage has is taken for an image; mistyped, the files come from somebody else's.

    Bad:
        FROM scratch AS build
        FROM scratch
        COPY --from=biuld /app /app

    Good:
        FROM scratch AS build
        FROM scratch
        COPY --from=build /app /app
    """
    names: list[str] = []
    contexts = frozenset(name for scope in subject.plan.scopes[:1] for name in scope.contexts.values())
    for stage in subject.plan.dockerfile.stages:
        for instruction in stage.instructions:
            word = instruction.from_ if isinstance(instruction, Copy) else None
            if word is None or "$" in word.text or word.text.isdecimal() or word.text.lower() in names:
                continue
            if word.text in contexts or re.search(r"[:@/.]", word.text) or word.text == "scratch":
                continue
            hint = did_you_mean(word.text.lower(), names) or "write the image with its tag, if one is meant"
            message = f"there is no stage {word.text} above"
            yield subject.finding("CopyFromUnknownStage", message, word.span, hint)
        if stage.name:
            names.append(stage.name)


def copy_relative_destination(subject: Subject) -> Iterator[Finding]:
    """COPY to a relative destination needs a WORKDIR.

    Why: it goes to the base image's WORKDIR, which may be another one tomorrow.

    Bad:
        FROM debian:12
        COPY app.py .

    Good:
        FROM debian:12
        WORKDIR /app
        COPY app.py .
    """
    set_in: dict[str, bool] = {}
    for stage in subject.plan.dockerfile.stages:
        known = set_in.get(stage.from_.image.text.lower(), False)
        for instruction in stage.instructions:
            if isinstance(instruction, Workdir):
                known = True
            elif isinstance(instruction, Copy) and not known:
                path = instruction.destination.text.strip("\"'")
                if not path.startswith(("/", "$")) and not re.match(r"[A-Za-z]:", path):
                    message = f"{path} is below a WORKDIR that only the base image knows"
                    hint = "write WORKDIR above, or the whole path"
                    yield subject.finding("CopyRelativeDestination", message, instruction.destination.span, hint)
        if stage.name:
            set_in[stage.name] = known


def copy_of_whole_stage(subject: Subject) -> Iterator[Finding]:
    """A whole file system should not be copied onto another.

    Why: two systems are mixed, and every byte is shipped once more. From scratch it is a way to make one layer of many,
    and images that are made to be copied whole are taken as they are: of both nothing is said.

    Bad:
        FROM debian:12 AS build
        RUN make install
        FROM debian:12
        COPY --from=build / /

    Good:
        FROM debian:12 AS build
        RUN make install
        FROM debian:12
        COPY --from=build /usr/local/bin/app /usr/local/bin/
    """
    made = {stage.name for stage in subject.plan.dockerfile.stages if stage.instructions}
    for stage, instruction in _instructions(subject):
        if not isinstance(instruction, Copy) or instruction.from_ is None or stage.from_.image.text == "scratch":
            continue
        if instruction.from_.text.lower() not in made and not instruction.from_.text.isdecimal():
            continue
        roots = {"/", "/.", "/*"}
        if instruction.destination.text in roots and any(word.text in roots for word in instruction.sources):
            message = f"everything in {instruction.from_.text} is copied over the base"
            hint = "copy what is needed, or build on that stage with FROM"
            yield subject.finding("CopyOfWholeStage", message, instruction.span, hint)


# ---------------------------------------------------------------- owners and modes


def changed_after_copy(subject: Subject) -> Iterator[Finding]:
    """Owner and mode should be given with COPY.

    Why: a chown or chmod in a RUN of its own puts every file that it touches into another layer once more. A build
    knows the bytes; without one it is a guess.

    Bad:
        FROM debian:12
        COPY app /srv/app
        RUN chown -R www-data:www-data /srv/app

    Good:
        FROM debian:12
        COPY --chown=www-data:www-data app /srv/app
    """
    for stage, instruction in _instructions(subject):
        if not isinstance(instruction, Copy | Add):
            continue
        found = _changing(subject, stage, instruction)
        if found is not None:
            run, command = found
            verb = command.name
            message = f"{verb} ships once more what line {instruction.span.line} copied"
            hint = f"write {instruction.keyword} --{verb}=... there"
            span = run.at(command)
            finding = subject.finding("ChangedAfterCopy", message, span, hint)
            from msgspec.structs import replace

            yield replace(finding, related=(instruction.span,))


def _changing(subject: Subject, stage: Stage, copied: Copy | Add) -> tuple[Running, Command] | None:
    """The first command behind a COPY that changes owner or mode of just what it copied."""
    path = copied.destination.text.strip("\"'")
    into = path.endswith("/") or len(copied.sources) > 1
    names = {posixpath.basename(word.text.strip("\"'").rstrip("/")) for word in copied.sources}
    targets = {path.rstrip("/") or "/"}
    if into or path in {".", "./"}:
        targets |= {posixpath.normpath(posixpath.join(path, name)) for name in names if name not in {".", ""}}
    targets |= {posixpath.normpath(posixpath.join(path, name)) for name in names if name not in {".", ""}}
    for run in subject.runs:
        if run.stage != stage.index or run.span.line < copied.span.line:
            continue
        for command in run.commands:
            if command.name not in {"chown", "chmod"} or command.has("--reference"):
                continue
            given = copied.chown if command.name == "chown" else copied.chmod
            words = command.operands()
            if given is None and any(posixpath.normpath(word.literal) in targets - {"/"} for word in words[1:]):
                return run, command
    return None


def _give_with_copy(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """The flag at the COPY, and the RUN away, where it does nothing else and stands right behind."""
    for stage, instruction in _instructions(subject):
        if not isinstance(instruction, Copy | Add) or instruction.span not in finding.related:
            continue
        found = _changing(subject, stage, instruction)
        if found is None:
            return
        run, command = found
        words = command.operands()
        path = instruction.destination.text.rstrip("/")
        behind = stage.instructions.index(instruction) + 1 == run.number
        alone = len(run.script.commands) == 1 and not run.onbuild and run.script.whole and not run.instruction.mounts
        if not behind or not alone or len(words) != 2 or not all(word.plain for word in words):
            return
        whole = words[1].literal.rstrip("/") == path and (command.switch("R") or not path.endswith("/"))
        single = len(instruction.sources) == 1 and posixpath.basename(words[1].literal) == posixpath.basename(
            instruction.sources[0].text.rstrip("/")
        )
        if not whole and not single:
            return
        value = _value(command.name, words[0].literal)
        if not value or not isinstance(run.instruction.command, ShellForm):
            return
        place = _keyword(instruction)
        at = Span(place.end_line, place.end_column, place.end_line, place.end_column)
        yield Edit(at, f" --{command.name}={value}")
        yield Edit(Span(run.span.line, 1, run.span.end_line + 1, 1), "")
        return


def _value(verb: str, text: str) -> str:
    """What the flag takes; empty where it would mean something else."""
    if verb == "chmod":
        return text if re.fullmatch(r"[0-7]{3,4}", text) else ""
    if re.fullmatch(r"[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+", text):
        return text
    # chown leaves the group alone, which is root's for what was copied; the flag would take the user's.
    return f"{text}:0" if re.fullmatch(r"[A-Za-z0-9_-]+", text) else ""


# ---------------------------------------------------------------- the context


def junk_in_context(subject: Subject) -> Iterator[Finding]:
    """What belongs in no image should stand in the ignore file.

    Why: COPY of the whole folder takes version control, environments and caches along: they are large, they change the
    cache's keys, and some hold secrets. A build knows what was copied; without one it is a guess.

    Context:
        .git app.py

    Bad:
        FROM scratch
        COPY . /app/

    Good:
        FROM scratch
        COPY app.py /app/
    """
    junk = [name for name in subject.names or () if name in JUNK or name in _PRIVATE]
    if not junk:
        return
    for _, instruction in _instructions(subject):
        if not isinstance(instruction, Copy | Add) or (isinstance(instruction, Copy) and instruction.from_ is not None):
            continue
        if any(posixpath.normpath("/" + word.text.strip("\"'")) == "/" for word in instruction.sources):
            shown = ", ".join(junk[:4]) + (f" and {len(junk) - 4} more" if len(junk) > 4 else "")
            message = f"{instruction.keyword} of the whole context takes {shown} along"
            hint = f"put {'it' if len(junk) == 1 else 'them'} into .dockerignore"
            yield subject.finding("JunkInContext", message, instruction.span, hint)


def _ignore_junk(subject: Subject, _: Finding) -> Iterator[Edit]:
    junk = [name for name in subject.names or () if name in JUNK or name in _PRIVATE]
    end = Span(1 << 30, 1, 1 << 30, 1)
    yield Edit(end, "".join(f"{name}\n" for name in junk), ".dockerignore")


# ---------------------------------------------------------------- places


def _instructions(subject: Subject) -> Iterator[tuple[Stage, AnyInstruction]]:
    for stage in subject.plan.dockerfile.stages:
        for instruction in stage.instructions:
            yield stage, instruction


def _keyword(instruction: Run | Copy | Add) -> Span:
    start = instruction.span
    return Span(start.line, start.column, start.line, start.column + len(instruction.keyword))


RULES = (
    Rule(
        "CopyInsteadOfAdd",
        "COPY should be used for files of the context",
        copy_instead_of_add,
        aliases=("DL3020",),
        severity=Severity.INFO,
        fix=_write_copy,
    ),
    Rule(
        "ArchiveUnpackedByRun",
        "ADD unpacks archives of the context",
        archive_unpacked_by_run,
        aliases=("DL3010",),
        severity=Severity.INFO,
    ),
    Rule(
        "CopyFromUnknownStage",
        "COPY --from should name a stage, or an image with its tag",
        copy_from_unknown_stage,
        aliases=("DL3022",),
        whole=True,
    ),
    Rule(
        "CopyRelativeDestination",
        "COPY to a relative destination needs a WORKDIR",
        copy_relative_destination,
        aliases=("DL3045",),
        whole=True,
    ),
    Rule(
        "CopyOfWholeStage",
        "A whole file system should not be copied onto another",
        copy_of_whole_stage,
        aliases=("DL3067",),
    ),
    Rule(
        "ChangedAfterCopy",
        "Owner and mode should be given with COPY",
        changed_after_copy,
        preview=True,
        fix=_give_with_copy,
    ),
    Rule(
        "JunkInContext",
        "What belongs in no image should stand in the ignore file",
        junk_in_context,
        preview=True,
        fix=_ignore_junk,
    ),
)

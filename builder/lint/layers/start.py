"""Rules about how a container starts: the program, its interpreter and loader, the user, the folder, the ports."""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.lint.layers.subject import NOTHING, LayerRule, amount, worst
from builder.model import Severity
from cache.entries import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.layers.subject import ImageSubject, Maker
    from builder.model import Finding
    from cache.entries import Entry
    from cache.traits import Traits

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where runtimes look when the image sets no PATH."""

_MACHINES = {
    "386": (3,), "amd64": (62, 3), "arm": (40,), "arm64": (183, 40), "loong64": (258,), "mips": (8,), "mips64": (8,),
    "mips64le": (8,), "mipsle": (8,), "ppc64": (21,), "ppc64le": (21,), "riscv64": (243,), "s390x": (22,),
}  # fmt: skip
"""What a platform's processor runs, as ELF numbers machines (https://refspecs.linuxfoundation.org/elf/gabi4+/)."""

_NAMES = {3: "386", 8: "mips", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64",
          258: "loong64"}  # fmt: skip

_SHELLS = re.compile(r"^(?:/usr)?(?:/bin/)?(?:ba|da|a|z)?sh$")
_PLAIN = re.compile(r"^[A-Za-z0-9_./+-]+$")
_BUILTINS = frozenset({
    "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "echo", "eval", "exit", "export", "fg",
    "for", "function", "if", "let", "local", "printf", "pushd", "pwd", "read", "return", "set", "shift", "source",
    "test", "time", "trap", "true", "false", "type", "ulimit", "umask", "unset", "until", "wait", "while", ".", "[",
})  # fmt: skip


class _Program(Struct, frozen=True):
    """A program that was looked for. problem: why it can not be started; empty when it can."""

    problem: str = ""
    hint: str = ""
    path: bytes = b""


def command_can_not_start(subject: ImageSubject) -> Iterator[Finding]:
    """ENTRYPOINT and CMD should name a program that can be started.

    Why: "no such file or directory" and "exec format error" come when the container starts, and say little. They mean a
    name that is on no PATH, a file without its x bit, a script whose interpreter is missing or whose first line ends as
    on Windows, a program whose loader is missing (glibc's on a musl image) or which is another processor's.

    Bad:
        FROM base
        COPY --chmod=755 <<EOF /run.sh
        #!/usr/bin/python3
        print()
        EOF
        ENTRYPOINT ["/run.sh"]

    Good:
        FROM base
        COPY --chmod=755 <<EOF /run.sh
        #!/bin/sh
        echo
        EOF
        ENTRYPOINT ["/run.sh"]
    """
    config = subject.config.config
    argv = [*(config.entrypoint or ()), *(config.cmd or ())]
    maker = subject.last("ENTRYPOINT") if config.entrypoint else None
    maker = maker or subject.last("CMD", "ENTRYPOINT")
    if not argv or subject.config.platform.os != "linux" or (maker is None and not all_own(subject)):
        return
    found = _program(subject, argv[0])
    severity = Severity.ERROR
    word = argv[0]
    if not found.problem and _SHELLS.match(argv[0]) and len(argv) > 2 and argv[1] == "-c":
        # What a shell is told may be made when the container starts.
        severity = Severity.WARNING
        word = _first_word(argv[2])
        found = _program(subject, word) if word else found
    elif not found.problem and _SHELLS.match(argv[0]) and len(argv) > 1 and not argv[1].startswith("-"):
        word = argv[1]
        found = _script_of_shell(subject, word)
    if found.problem:
        keyword = "ENTRYPOINT" if config.entrypoint else "CMD"
        message = f"{keyword} can not start {word}: {found.problem}"
        paths = [found.path] if found.path else []
        yield subject.finding("CommandCanNotStart", message, maker, found.hint, severity=severity, paths=paths)


def all_own(subject: ImageSubject) -> bool:
    """Whether the image stands on nothing."""
    return all(layer.own for layer in subject.layers)


def _first_word(text: str) -> str:
    """The program that a shell's command begins with, where that is plain to see; else empty."""
    try:
        words = shlex.split(text.split("\n", maxsplit=1)[0], comments=True)
    except ValueError:
        return ""
    while words and (words[0] == "exec" or re.fullmatch(r"[A-Za-z_]\w*=.*", words[0])):
        words = words[1:]
    word = words[0].rstrip(";") if words else ""
    return word if _PLAIN.match(word) and word not in _BUILTINS else ""


def _program(subject: ImageSubject, word: str, depth: int = 0) -> _Program:
    """What becomes of starting `word`, with its interpreters."""
    entry = _found(subject, word)
    if entry is None:
        where = "there is no such file" if "/" in word else f"it is in no folder of PATH ({_search_path(subject)})"
        return _Program(where, _meant(subject, word))
    path = entry.path
    if entry.kind is Kind.DIRECTORY:
        return _Program("it is a folder", path=path)
    if entry.kind is not Kind.FILE:
        return _Program(f"it is a {entry.kind.value}", path=path)
    if not entry.mode & 0o111:
        return _Program("it has no x bit", "COPY --chmod=755, or chmod +x in the RUN that makes it", path)
    traits = _traits(subject, path)
    if traits.elf is not None:
        return _loaded(subject, traits, path)
    if traits.crlf:
        interpreter = traits.script
        return _Program(
            f"its first line, #!{interpreter}, ends as on Windows, so that no such interpreter is found",
            "store it with line ends of Unix: dos2unix, or eol=lf in .gitattributes",
            path,
        )
    if traits.script:
        return _interpreted(subject, traits.script, path, depth)
    return _Program("it is no program, and has no #! line that says what reads it (exec format error)",
                    'begin it with #!/bin/sh, or start it by a shell: ["/bin/sh", "FILE"]', path)  # fmt: skip


def _loaded(subject: ImageSubject, traits: Traits, path: bytes) -> _Program:
    elf = traits.elf
    assert elf is not None
    architecture = subject.config.platform.architecture
    wanted = _MACHINES.get(architecture)
    if wanted is not None and elf.machine not in wanted:
        machine = _NAMES.get(elf.machine, f"machine {elf.machine}")
        return _Program(
            f"it is a program for {machine}, and the image is for {architecture} (exec format error)",
            f"build it for {architecture}, or the image with --platform linux/{machine}",
            path,
        )
    if elf.kind not in {2, 3}:
        return _Program("it is an object file and no program", path=path)
    if elf.loader and _found(subject, elf.loader) is None:
        hint = "link it statically, or use a base with that C library"
        hint += " (it was linked for musl)" if "musl" in elf.loader else " (it was linked for glibc)"
        return _Program(f"its loader {elf.loader} is not in the image", hint, path)
    return _Program()


def _interpreted(subject: ImageSubject, line: str, path: bytes, depth: int) -> _Program:
    """A script: what its first line names has to start, too."""
    words = line.split()
    if not words:
        return _Program("its first line is #! and nothing", path=path)
    if depth >= 4:
        return _Program("its interpreters never come to a program", path=path)
    inner = _program(subject, words[0], depth + 1)
    if inner.problem:
        return _Program(f"its interpreter {words[0]}: {inner.problem}", inner.hint or "name one that is there", path)
    rest = words[1:]
    if posixpath.basename(words[0]) == "env" and rest:
        rest = [word for word in rest if not word.startswith("-") and "=" not in word]
        if rest:
            inner = _program(subject, rest[0], depth + 1)
            if inner.problem:
                return _Program(f"its interpreter {rest[0]}: {inner.problem}", "install it, or name another", path)
    return _Program()


def _script_of_shell(subject: ImageSubject, word: str) -> _Program:
    """A script that a shell reads: it has to be there, with line ends that a shell understands."""
    entry = _found(subject, word if "/" in word else "./" + word)
    if entry is None:
        return _Program("there is no such file", _meant(subject, word))
    if _traits(subject, entry.path).crlf:
        return _Program("its lines end as on Windows", "store it with line ends of Unix", entry.path)
    return _Program()


def _found(subject: ImageSubject, word: str) -> Entry | None:
    """The file that a runtime would start for `word`, links followed."""
    home = subject.config.config.working_dir or "/"
    if "/" in word:
        return _at(subject, posixpath.join("/", home, word))
    for folder in _search_path(subject).split(":"):
        entry = _at(subject, posixpath.join("/", home, folder, word))
        if entry is not None and entry.kind is not Kind.DIRECTORY:
            return entry
    return None


def _at(subject: ImageSubject, path: str) -> Entry | None:
    return subject.files.entry(subject.files.resolve(path.lstrip("/").encode("utf-8", "surrogateescape")))


def _search_path(subject: ImageSubject) -> str:
    lines = [line for line in subject.config.config.env if line.startswith("PATH=")]
    return lines[-1].removeprefix("PATH=") if lines else _PATH


def _traits(subject: ImageSubject, path: bytes) -> Traits:
    return next((item.traits for item in subject.shipped if path in item.names), NOTHING)


def _meant(subject: ImageSubject, word: str) -> str:
    """Where a file of that name does lie."""
    name = word.rpartition("/")[2].encode("utf-8", "surrogateescape")
    places = [each for item in subject.shipped for each in item.names if each.rpartition(b"/")[2] == name]
    if places:
        return f"did you mean /{min(places, key=len).decode('utf-8', 'backslashreplace')}?"
    if " " in word:
        return "each word is a string of its own in the JSON form"
    return "install it, or copy it into the image"


# ---------------------------------------------------------------- user, folder, volumes, ports


def unknown_user(subject: ImageSubject) -> Iterator[Finding]:
    """USER should name a user that the image has.

    Why: a container of an image whose user is not in /etc/passwd does not start.

    Bad:
        FROM base
        USER web

    Good:
        FROM base
        USER app
    """
    if subject.user_problem and subject.last("USER") is not None:
        hint = "make the user in a RUN above, or name it by its number"
        yield subject.finding("UnknownUser", subject.user_problem, subject.last("USER"), hint)


def missing_workdir(subject: ImageSubject) -> Iterator[Finding]:
    """WORKDIR should be a folder that the user can enter.

    Why: a container starts there. A folder that a later RUN removes, or that belongs to root with mode 700, stops it.

    Bad:
        FROM base
        WORKDIR /srv
        RUN chmod 700 /srv
        USER app

    Good:
        FROM base
        WORKDIR /srv
        RUN chown app /srv && chmod 700 /srv
        USER app
    """
    path = subject.config.config.working_dir
    maker = subject.last("WORKDIR")
    if not path or maker is None:
        return
    inside = subject.files.resolve(path.strip("/").encode("utf-8", "surrogateescape"))
    entry = subject.files.entry(inside)
    if entry is None or entry.kind is not Kind.DIRECTORY:
        what = "is not there at the end" if entry is None else "is no folder"
        yield subject.finding("MissingWorkdir", f"WORKDIR {path} {what}", maker, "make it anew after what removes it")
        return
    user = subject.user
    if user is None or user.uid == 0:
        return
    parts = inside.split(b"/")
    for number in range(1, len(parts) + 1):
        step = subject.files.entry(b"/".join(parts[:number]))
        if step is not None and not _may_enter(step, user.uid, user.groups):
            name = "/" + step.path.decode("utf-8", "backslashreplace")
            message = f"USER {subject.config.config.user} may not enter {name}"
            message += "" if name == path else f" on the way to WORKDIR {path}"
            hint = f"its mode is {step.mode:o}, its owner {step.uid}:{step.gid}: chown or chmod it"
            yield subject.finding("MissingWorkdir", message, maker, hint, paths=[step.path])
            return


def _may_enter(entry: Entry, uid: int, groups: tuple[int, ...]) -> bool:
    if entry.uid == uid:
        return bool(entry.mode & 0o100)
    return bool(entry.mode & (0o010 if entry.gid in groups else 0o001))


def volume_shadows(subject: ImageSubject) -> Iterator[Finding]:
    """What goes into a VOLUME should be there before the VOLUME is declared.

    Why: a container mounts a volume over it. Docker's classic builder drops what later instructions write there, and a
    volume that is not new hides it.

    Bad:
        FROM base
        VOLUME /data
        RUN mkdir -p /data && echo x > /data/file

    Good:
        FROM base
        RUN mkdir -p /data && echo x > /data/file
        VOLUME /data
    """
    volumes = [path.strip("/").encode("utf-8", "surrogateescape") for path in subject.config.config.volumes]
    declared = {
        volume: number
        for volume in volumes
        for number, maker in reversed(list(enumerate(subject.makers)))
        if maker.keyword == "VOLUME" and volume in (maker.created_by + maker.title).encode("utf-8", "surrogateescape")
    }
    for layer in subject.layers:
        place = next((number for number, maker in enumerate(subject.makers) if maker is layer.maker), -1)
        for volume, number in declared.items():
            files = [
                item
                for item in subject.own()
                if item.layer == layer.number and item.path.startswith(volume + b"/") and place > number
            ]
            if files:
                size = sum(item.size for item in files)
                message = f"{len(files)} files, {amount(size)}, go into a volume that is declared above: {worst(files)}"
                message = message.replace("1 files", "1 file") if len(files) == 1 else message
                finding = subject.finding("VolumeShadows", message, layer, "put VOLUME below it", files=files)
                yield _also_at(finding, subject.makers[number])


def _also_at(finding: Finding, maker: Maker) -> Finding:
    from msgspec.structs import replace

    if maker.span is None or maker.source is not finding.source:
        return finding
    return replace(finding, related=(maker.span,))


def privileged_port(subject: ImageSubject) -> Iterator[Finding]:
    """A user other than root should not have to open a port below 1024.

    Why: where the runtime does not lower the limit, only root may; the program fails when it starts.

    Bad:
        FROM base
        USER app
        EXPOSE 80

    Good:
        FROM base
        USER app
        EXPOSE 8080
    """
    user = subject.config.config.user.partition(":")[0]
    maker = subject.last("EXPOSE")
    if user in {"", "0", "root"} or maker is None:
        return
    ports = [port for port in subject.config.config.exposed_ports if 0 < _port(port) < 1024]
    if ports:
        message = f"user {user} may not open port {', '.join(ports)} everywhere"
        hint = "listen on a port above 1023, and publish it as the other one"
        yield subject.finding("PrivilegedPort", message, maker, hint, severity=Severity.INFO)


def _port(text: str) -> int:
    number = text.partition("/")[0].partition("-")[0]
    return int(number) if number.isdecimal() else 0


RULES = (
    LayerRule(
        "CommandCanNotStart",
        "ENTRYPOINT and CMD should name a program that can be started.",
        command_can_not_start,
        Severity.ERROR,
    ),
    LayerRule("UnknownUser", "USER should name a user that the image has.", unknown_user),
    LayerRule("MissingWorkdir", "WORKDIR should be a folder that the user can enter.", missing_workdir),
    LayerRule(
        "VolumeShadows", "What goes into a VOLUME should be there before the VOLUME is declared.", volume_shadows
    ),
    LayerRule(
        "PrivilegedPort",
        "A user other than root should not have to open a port below 1024.",
        privileged_port,
        Severity.INFO,
    ),
)

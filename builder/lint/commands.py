"""Rules about what a RUN calls, package managers apart."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from builder.lint import shell
from builder.lint.packages import call_of
from builder.lint.subject import Rule, Subject
from builder.model import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.running import Running
    from builder.model import Finding

_POINTLESS: Final = {
    "free": "it tells of the machine that builds",
    "ifconfig": "there is no network of the image's own",
    "mount": "a mount ends with the RUN; --mount= is there for it",
    "ps": "there is nothing else running",
    "service": "what is started ends with the RUN; a service starts by CMD",
    "shutdown": "there is nothing to shut down",
    "reboot": "there is nothing to start again",
    "systemctl": "there is no systemd in a RUN; a service starts by CMD",
    "ssh": "use --mount=type=ssh for git and the like, and ADD for files",
    "top": "there is nothing else running",
    "vi": "nobody is there to edit",
    "vim": "nobody is there to edit",
    "nano": "nobody is there to edit",
}
_FETCHERS: Final = frozenset({"curl", "wget", "aria2c", "http", "fetch", "gsutil", "aws"})
_NEVER_FAIL: Final = frozenset({"echo", "printf", "yes", "true", ":", "seq", "cat", "pwd", "ls", "env", "date", "id"})


def pointless_command(subject: Subject) -> Iterator[Finding]:
    """Some commands make no sense in a build.

    Why: what they start ends with the RUN, what they show nobody reads.

    Bad:
        FROM debian:12
        RUN service ssh start

    Good:
        FROM debian:12
        CMD ["/usr/sbin/sshd", "-D"]
    """
    for run in subject.runs:
        for command in run.commands:
            if command.name not in _POINTLESS or command.has("--version", "-V", "--help"):
                continue
            if command.name == "systemctl" and command.has("enable", "disable", "mask", "unmask", "set-default"):
                continue
            if command.name in {"ps", "free"} and command.pipes > 1:
                continue
            message = f"{command.name} makes no sense in a build"
            yield subject.finding("PointlessCommand", message, run.at(command.words[0]), _POINTLESS[command.name])


def cd_instead_of_workdir(subject: Subject) -> Iterator[Finding]:
    """WORKDIR should be used to change to a folder.

    Why: a `cd` is forgotten at the end of its RUN, and does not make the folder.

    Bad:
        FROM debian:12
        RUN cd /src && make

    Good:
        FROM debian:12
        WORKDIR /src
        RUN make
    """
    for run in subject.runs:
        first = run.commands[0] if run.commands else None
        if first is None or first.name != "cd" or first.depth or first.condition or first.pipes > 1:
            continue
        if len(first.arguments) == 1 and first.arguments[0].literal.startswith("/"):
            folder = first.arguments[0].text
            hint = f"write WORKDIR {folder} above" if len(run.commands) > 1 else "it is forgotten at once: use WORKDIR"
            yield subject.finding("CdInsteadOfWorkdir", f"cd {folder} begins the RUN", run.at(first), hint)


def sudo_in_run(subject: Subject) -> Iterator[Finding]:
    """Sudo should not be used.

    Why: a RUN is root already, or what USER says; sudo has to be installed, and reads a terminal and signals its own
    way.

    Bad:
        FROM debian:12
        RUN sudo make install

    Good:
        FROM debian:12
        RUN make install
    """
    for run in subject.runs:
        for command in run.script.commands:
            if command.name == "sudo":
                hint = "leave it out; USER root above and USER NAME below change who runs it"
                yield subject.finding("SudoInRun", "sudo is used in a RUN", run.at(command.words[0]), hint)


def useradd_large_uid(subject: Subject) -> Iterator[Finding]:
    """Useradd with a large number should have --no-log-init.

    Why: it grows /var/log/lastlog and faillog to the number times 292 bytes, as sparse files that a layer may not keep
    sparse.

    Bad:
        FROM debian:12
        RUN useradd -u 1234567 app

    Good:
        FROM debian:12
        RUN useradd --no-log-init -u 1234567 app
    """
    for run in subject.shipped_runs():
        for command in run.commands:
            if command.name != "useradd" or command.switch("l") or command.has("--no-log-init"):
                continue
            text = " ".join(word.literal for word in command.arguments)
            found = re.search(r"(?:\A|\s)(?:-[a-zA-Z]*u|--uid)[ =]?([0-9]{6,})\b", text)
            if found:
                message = f"useradd with the number {found[1]} makes large log files"
                yield subject.finding("UseraddLargeUid", message, run.at(command), "add --no-log-init")


def wget_progress(subject: Subject) -> Iterator[Finding]:
    """Wget should not show its progress.

    Why: without a terminal it writes a line for every 50 kB, which makes logs of builds long.

    Bad:
        FROM debian:12
        RUN wget https://example.com/large.tar

    Good:
        FROM debian:12
        RUN wget -nv https://example.com/large.tar
    """
    quiet = ("--quiet", "--no-verbose", "-nv", "--progress", "--output-file", "--append-output", "--version", "--help")
    for run in subject.runs:
        for command in run.commands:
            if command.name != "wget" or not command.arguments or command.has(*quiet):
                continue
            short = (word.literal for word in command.arguments)
            if any(re.match(r"-[a-zA-Z]*[qoa]", text) for text in short) or command.redirects:
                continue
            hint = "add -nv, or -q, which busybox has, too"
            yield subject.finding("WgetProgress", "wget writes its progress into the log", run.at(command), hint)


def wget_and_curl(subject: Subject) -> Iterator[Finding]:
    """One of wget and curl is enough.

    Why: each brings its libraries along.

    Bad:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl wget && rm -rf /var/lib/apt/lists/*

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
    """
    seen: dict[int, str] = {}
    for run in subject.shipped_runs():
        for command in run.commands:
            call = call_of(command)
            if call is None or call.does not in {"install", "add", "in"}:
                continue
            for word in call.packages:
                name = re.split(r"[=<>~]", word.literal)[0]
                if name not in {"wget", "curl"}:
                    continue
                if seen.setdefault(run.stage, name) != name:
                    message = f"{name} is installed, and {seen[run.stage]} already"
                    yield subject.finding("WgetAndCurl", message, run.at(word), f"{seen[run.stage]} can do it, too")


def shell_replaced(subject: Subject) -> Iterator[Finding]:
    """SHELL should be used to change the default shell.

    Why: scripts of the system count on the /bin/sh that it came with.

    Bad:
        FROM debian:12
        RUN ln -sf /bin/bash /bin/sh

    Good:
        FROM debian:12
        SHELL ["/bin/bash", "-c"]
    """
    for run in subject.runs:
        for command in run.commands:
            words = [word.literal for word in command.operands()]
            if command.name in {"ln", "cp", "mv"} and len(words) > 1 and words[-1] in {"/bin/sh", "/usr/bin/sh"}:
                hint = 'write SHELL ["/bin/bash", "-c"]'
                yield subject.finding("ShellReplaced", "/bin/sh is replaced by another shell", run.at(command), hint)


def download_piped(subject: Subject) -> Iterator[Finding]:
    """A download should not be piped where its failure is not seen.

    Why: the status of a pipeline is that of its last part: what came half, or not at all, goes on as if it were whole.

    Bad:
        FROM debian:12
        RUN curl -fsSL https://example.com/list | sort > /list

    Good:
        FROM debian:12
        SHELL ["/bin/bash", "-o", "pipefail", "-c"]
        RUN curl -fsSL https://example.com/list | sort > /list
    """
    for run in subject.runs:
        for pipeline in _unseen(run):
            first = next((part for part in pipeline.parts[:-1] if part and _name(part) in _FETCHERS), None)
            if first is not None:
                message = f"nobody sees when {_name(first)} fails: only the last command of a pipeline counts"
                yield subject.finding("DownloadPiped", message, run.at(first), _pipefail(run))


def pipe_hides_failure(subject: Subject) -> Iterator[Finding]:
    """A pipeline should fail with any of its parts.

    Why: the status of a pipeline is that of its last part; the others may fail without the build failing.

    Bad:
        FROM debian:12
        RUN ./generate | tee /output

    Good:
        FROM debian:12
        SHELL ["/bin/bash", "-o", "pipefail", "-c"]
        RUN ./generate | tee /output
    """
    for run in subject.runs:
        for pipeline in _unseen(run):
            names = [_name(part) for part in pipeline.parts[:-1] if part is not None]
            if any(name in _FETCHERS for name in names) or all(name in _NEVER_FAIL for name in names):
                continue
            name = next(name for name in names if name not in _NEVER_FAIL)
            message = f"nobody sees when {name or 'the first part'} fails: only the last command of a pipeline counts"
            span = run.place(pipeline.start, pipeline.end)
            yield subject.finding("PipeHidesFailure", message, span, _pipefail(run))


def _unseen(run: Running) -> Iterator[shell.Pipeline]:
    """Pipelines whose first parts may fail without anybody asking."""
    if run.pipefail():
        return
    for pipeline in run.script.pipelines:
        if len(pipeline.parts) < 2 or pipeline.checked:
            continue
        if not _sets_pipefail(run, pipeline.start):
            yield pipeline


def _sets_pipefail(run: Running, before: int) -> bool:
    return any(
        command.start < before and command.name == "set" and command.has("pipefail") for command in run.script.commands
    )


def _name(command: shell.Command) -> str:
    return shell.unwrapped(command).name


def _pipefail(run: Running) -> str:
    if run.shell in {"bash", "zsh", "ksh", "mksh"}:
        return f'begin the RUN with set -o pipefail; or write SHELL ["{run.argv[0]}", "-o", "pipefail", "-c"] above'
    return 'write SHELL ["/bin/bash", "-o", "pipefail", "-c"] above, where there is bash; busybox has it for ash'


def consecutive_runs(subject: Subject) -> Iterator[Finding]:
    """RUNs in a row may be one.

    Why: each makes a layer. Off unless it is selected: what is apart is in the cache apart, and a layer costs next to
    nothing; `pybuild build --lint` tells of layers that are in vain.

    Bad:
        FROM debian:12
        RUN touch /one
        RUN touch /two

    Good:
        FROM debian:12
        RUN touch /one && touch /two
    """
    before: Running | None = None
    for run in subject.runs:
        joined = before is not None and before.stage == run.stage and before.number + 1 == run.number
        if joined and before is not None and not before.instruction.mounts and not run.instruction.mounts:
            yield subject.finding("ConsecutiveRuns", "the RUN above could do this, too", run.span, "join them with &&")
        before = run


RULES = (
    Rule(
        "PointlessCommand",
        "Some commands make no sense in a build",
        pointless_command,
        aliases=("DL3001",),
        severity=Severity.INFO,
    ),
    Rule(
        "CdInsteadOfWorkdir",
        "WORKDIR should be used to change to a folder",
        cd_instead_of_workdir,
        aliases=("DL3003",),
        severity=Severity.INFO,
    ),
    Rule("SudoInRun", "Sudo should not be used", sudo_in_run, aliases=("DL3004",)),
    Rule(
        "UseraddLargeUid",
        "Useradd with a large number should have --no-log-init",
        useradd_large_uid,
        aliases=("DL3046",),
        preview=True,
    ),
    Rule(
        "WgetProgress",
        "Wget should not show its progress",
        wget_progress,
        aliases=("DL3047",),
        severity=Severity.INFO,
    ),
    Rule(
        "WgetAndCurl",
        "One of wget and curl is enough",
        wget_and_curl,
        aliases=("DL4001",),
        severity=Severity.INFO,
    ),
    Rule("ShellReplaced", "SHELL should be used to change the default shell", shell_replaced, aliases=("DL4005",)),
    Rule(
        "DownloadPiped",
        "A download should not be piped where its failure is not seen",
        download_piped,
        aliases=("DL4006",),
    ),
    Rule(
        "PipeHidesFailure",
        "A pipeline should fail with any of its parts",
        pipe_hides_failure,
        aliases=("DL4006",),
        severity=Severity.INFO,
    ),
    Rule(
        "ConsecutiveRuns",
        "RUNs in a row may be one",
        consecutive_runs,
        optional=True,
        aliases=("DL3059",),
        severity=Severity.INFO,
    ),
)

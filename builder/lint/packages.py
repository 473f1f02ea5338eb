"""Rules about package managers in RUN: of the system, and of languages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from builder.lint.subject import Edit, Rule, Subject, inserted
from builder.model import Severity
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.running import Running
    from builder.lint.shell import Command, Word
    from builder.model import Finding

_APT: Final = frozenset({"apt", "apt-get", "aptitude"})
_YUM: Final = frozenset({"yum", "dnf", "dnf5", "microdnf", "tdnf"})
_PIP: Final = re.compile(r"pip(?:[0-9](?:\.[0-9]+)?)?\Z")
_PYTHON: Final = re.compile(r"(?:python|pypy)(?:[0-9](?:\.[0-9]+)?)?\Z")
_VALUED: Final[dict[str, frozenset[str]]] = {
    "apt": frozenset({"-o", "--option", "-c", "--config-file", "-t", "--target-release", "--default-release"}),
    "apk": frozenset({"-t", "--virtual", "-X", "--repository", "-p", "--root", "--repositories-file", "--keys-dir",
                      "--arch", "--cache-dir", "--wait"}),
    "yum": frozenset({"-c", "--config", "--enablerepo", "--disablerepo", "-x", "--exclude", "--releasever", "--repo",
                      "--installroot", "--setopt", "-d", "-e", "--repofrompath"}),
    "zypper": frozenset({"-r", "--repo", "-R", "--root", "-D", "--reposd-dir", "-t", "--type", "--from", "-p"}),
    "pip": frozenset({"-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url", "-f",
                      "--find-links", "-t", "--target", "--prefix", "--root", "--src", "--platform", "--trusted-host",
                      "--python-version", "--implementation", "--abi", "--no-binary", "--only-binary", "--timeout",
                      "--retries", "--proxy", "--cert", "--cache-dir", "--log", "-e", "--editable", "--python", "-C",
                      "--config-settings", "--global-option", "--progress-bar", "--upgrade-strategy", "--report"}),
    "npm": frozenset({"--prefix", "--registry", "--cache", "--loglevel", "-w", "--workspace", "--omit", "--include"}),
    "gem": frozenset({"-i", "--install-dir", "-n", "--bindir", "-P", "--trust-policy", "-s", "--source", "--platform"}),
    "go": frozenset({"-C", "-p", "-tags", "-ldflags", "-gcflags", "-asmflags", "-mod", "-o", "-buildmode", "-modfile"}),
    "cargo": frozenset(),
}  # fmt: skip
"""Options whose value is the next word, so that it is not taken for a package."""


class Call(Struct, frozen=True):
    """A package manager at work. manager: its family. does: the word that says what, such as `install`."""

    manager: str
    does: str
    packages: tuple[Word, ...]
    command: Command
    word: Word
    """The word of `does`, behind which an option may be put."""


def call_of(command: Command) -> Call | None:
    """What a command asks a package manager for; None for any other command."""
    family = command.name
    rest = command
    if family in _APT:
        family = "apt"
    elif family in _YUM:
        family = "yum"
    elif _PIP.match(family):
        family = "pip"
    elif _PYTHON.match(family) and [word.literal for word in command.arguments[:2]] == ["-m", "pip"]:
        family, rest = "pip", _without(command, 2)
    elif family == "uv" and [word.literal for word in command.arguments[:1]] == ["pip"]:
        family, rest = "uv", _without(command, 1)
    elif family in {"npm", "yarn", "pnpm"}:
        pass
    elif family not in {"apk", "zypper", "gem", "go", "cargo"}:
        return None
    valued = _VALUED.get({"yarn": "npm", "pnpm": "npm", "uv": "pip"}.get(family, family), frozenset())
    found = rest.operands(valued)
    if not found:
        return None
    if family == "yarn" and found[0].literal == "global" and len(found) > 1:
        found = found[1:]
    return Call(family, found[0].literal, found[1:], rest, found[0])


def _without(command: Command, count: int) -> Command:
    from msgspec.structs import replace

    return replace(command, words=(command.words[0], *command.words[1 + count :]))


def calls(run: Running) -> Iterator[Call]:
    """Every package manager at work in a RUN."""
    for command in run.commands:
        found = call_of(command)
        if found is not None:
            yield found


_SYSTEM_INSTALL: Final = {
    "apt": frozenset({"install"}),
    "apk": frozenset({"add"}),
    "yum": frozenset({"install", "groupinstall", "localinstall", "reinstall"}),
    "zypper": frozenset({"install", "in"}),
}
_APT_ASKS: Final = frozenset({
    "install", "reinstall", "remove", "purge", "upgrade", "dist-upgrade", "full-upgrade", "safe-upgrade",
    "autoremove", "build-dep",
})  # fmt: skip


# ---------------------------------------------------------------- answers and recommendations


def install_asks_questions(subject: Subject) -> Iterator[Finding]:
    """A package manager must not ask questions.

    Why: nobody is there to answer; without -y the command gives up, or waits for ever.

    Bad:
        FROM debian:12
        RUN apt-get update && apt-get install --no-install-recommends curl && rm -rf /var/lib/apt/lists/*

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
    """
    for run in subject.runs:
        for call in calls(run):
            option = _missing_yes(call, run, subject)
            if option:
                message = f"{call.command.name} {call.does} asks before it goes on"
                yield subject.finding("InstallAsksQuestions", message, run.at(call.word), f"add {option}")


def _missing_yes(call: Call, run: Running, subject: Subject) -> str:
    """The option that is missing, or empty."""
    command = call.command
    if command.before == "|" or command.has("--assumeno", "--simulate", "--just-print", "--dry-run", "--download-only"):
        return ""
    match call.manager:
        case "apt" if call.does in _APT_ASKS:
            given = (
                command.switch("y")
                or command.has("--yes", "--assume-yes", "--force-yes", "--print-uris", "--no-act", "--recon")
                or command.switch("s")
                or sum(word.literal.count("q") for word in command.arguments if re.match(r"-[a-zA-Z]+\Z", word.literal))
                > 1
                or command.has("--quiet=2", "-q=2")
                or any(re.search(r"Assume-Yes\W*(?:true|1|yes)", word.literal, re.IGNORECASE) for word in command.words)
                or _configured(subject, run, "Assume-Yes")
            )
            return "" if given or run.env.get("APT_CONFIG") else "-y"
        case "yum" if call.does in _SYSTEM_INSTALL["yum"]:
            given = command.switch("y") or command.has("--assumeyes", "--setopt=assumeyes")
            return "" if given or _configured(subject, run, "assumeyes") else "-y"
        case "zypper" if call.does in _SYSTEM_INSTALL["zypper"]:
            given = command.switch("y") or command.switch("n") or command.has("--non-interactive", "--no-confirm")
            return "" if given else "-y"
        case _:
            return ""


def _configured(subject: Subject, run: Running, setting: str) -> bool:
    """Whether a RUN up to this one writes a setting, such as into /etc/apt/apt.conf.d."""
    return any(setting in each.script.text for each in subject.runs if each.span.line <= run.span.line)


def _add_yes(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for run, call in _calls_at(subject, finding):
        option = _missing_yes(call, run, subject)
        if option:
            yield from inserted(run, call.word, f" {option}")


def _calls_at(subject: Subject, finding: Finding) -> Iterator[tuple[Running, Call]]:
    """The call that a finding is about, where it has a place of its own."""
    for run in subject.runs:
        if run.pieces:
            for call in calls(run):
                if run.at(call.word) == finding.span:
                    yield run, call
                    return


def recommended_packages(subject: Subject) -> Iterator[Finding]:
    """Packages that are only recommended should not be installed.

    Why: apt takes along what may be useful on a desktop, often several times the size of what was asked for.

    Bad:
        FROM debian:12
        RUN apt-get update && apt-get install -y curl && rm -rf /var/lib/apt/lists/*

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
    """
    for run in subject.runs:
        for call in calls(run):
            if _takes_recommended(call, run, subject):
                message = f"{call.command.name} install takes along what is only recommended"
                hint = "add --no-install-recommends"
                yield subject.finding("RecommendedPackages", message, run.at(call.word), hint)


def _takes_recommended(call: Call, run: Running, subject: Subject) -> bool:
    command = call.command
    return (
        call.manager == "apt"
        and call.does == "install"
        and not command.switch("s")
        and not command.has("--simulate", "--dry-run", "--print-uris", "--download-only")
        and not command.has("--no-install-recommends", "--install-recommends", "--without-recommends")
        and not (command.name == "aptitude" and command.switch("R"))
        and not any("Install-Recommends" in word.literal for word in command.words)
        and not _configured(subject, run, "Install-Recommends")
    )


def _leave_recommended_out(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for run, call in _calls_at(subject, finding):
        option = "--without-recommends" if call.command.name == "aptitude" else "--no-install-recommends"
        yield from inserted(run, call.word, f" {option}")


_APT_WORDS: Final = frozenset({"install", "update", "upgrade", "remove", "purge", "autoremove", "clean", "autoclean"})


def apt_in_script(subject: Subject) -> Iterator[Finding]:
    """Scripts should call apt-get, not apt.

    Why: apt is for people at a terminal; it says itself that its command line is not stable.

    Bad:
        FROM debian:12
        RUN apt update

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
    """
    for run in subject.runs:
        for command in run.commands:
            if command.name == "apt" and command.arguments:
                word = command.words[0]
                hint = "write apt-get, or apt-cache to search"
                yield subject.finding("AptInScript", "apt has no stable command line", run.at(word), hint)


def _call_apt_get(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for run in subject.runs:
        for command in run.commands if run.pieces else ():
            if command.name == "apt" and run.at(command.words[0]) == finding.span:
                call = call_of(command)
                if call is not None and call.does in _APT_WORDS and command.words[0].text == "apt":
                    yield Edit(finding.span, "apt-get")
                return


# ---------------------------------------------------------------- what is left behind


def package_lists_left(subject: Subject) -> Iterator[Finding]:
    r"""The lists and caches of the system's package manager should not stay in a layer.

    Why: they are of no use in the image, old the day after, and tens of megabytes. Only the RUN that made them can
    take them away: a later one only hides them. A build knows this to the byte; without one it is a guess.

    Bad:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl

    Good:
        FROM debian:12
        RUN --mount=type=cache,target=/var/lib/apt/lists --mount=type=cache,target=/var/cache/apt \
            apt-get update && apt-get install -y --no-install-recommends curl
    """
    for run in subject.shipped_runs():
        for found in _left_lists(run):
            call, hint = found
            message = f"{call.command.name} {call.does} leaves its lists or caches in the layer"
            yield subject.finding("PackageListsLeft", message, run.at(call.word), hint)


def _left_lists(run: Running) -> Iterator[tuple[Call, str]]:
    """The last command of each manager that leaves something, with what to do."""
    made = list(calls(run))
    updates = [call for call in made if call.manager == "apt" and call.does == "update"]
    if updates:
        last = updates[-1]
        cleaned = (
            _mentioned_after(run, last, "/var/lib/apt/lists")
            or _removed_after(run, last, "/var/lib/apt")
            or any(call.does in {"dist-clean", "distclean"} and call.word.start > last.word.start for call in made)
        )
        if not cleaned and not run.mounted("/var/lib/apt/lists"):
            yield last, "end the RUN with rm -rf /var/lib/apt/lists/*, or mount a cache at /var/lib/apt/lists"
    for call in made:
        if call.manager == "apk" and call.does == "add" and _keeps_index(call, run):
            yield call, "add --no-cache"
    for manager, words, paths, hint in (
        (
            "yum",
            ("clean",),
            ("/var/cache/yum", "/var/cache/dnf", "/var/cache/libdnf5"),
            "end the RUN with {} clean all",
        ),
        ("zypper", ("clean", "cc"), ("/var/cache/zypp",), "end the RUN with {} clean --all"),
    ):
        installs = [call for call in made if call.manager == manager and call.does in _SYSTEM_INSTALL[manager]]
        if not installs:
            continue
        last = installs[-1]
        cleaned = any(
            call.manager == manager and call.does in words and call.word.start > last.word.start for call in made
        ) or any(_mentioned_after(run, last, path) for path in paths)
        if not cleaned and not any(run.mounted(path) for path in paths):
            yield last, hint.format(last.command.name)


def _keeps_index(call: Call, run: Running) -> bool:
    return not (
        call.command.has("--no-cache", "--cache-dir")
        or run.mounted("/var/cache/apk")
        or run.mounted("/etc/apk/cache")
        or _mentioned_after(run, call, "/var/cache/apk")
        or _removed_after(run, call, "/var/cache")
    )


def _mentioned_after(run: Running, call: Call, path: str) -> bool:
    """Whether a later command of the script that takes things away names the path, or something in it."""
    return any(
        command.start > call.command.start
        and command.name in {"rm", "find", "truncate", "shred", "unlink", "rmdir"}
        and any(word.literal == path or word.literal.startswith(f"{path}/") for word in command.arguments)
        for command in run.commands
    )


def _removed_after(run: Running, call: Call, folder: str) -> bool:
    """Whether a later `rm` takes the folder itself, or everything in it."""
    gone = {folder, f"{folder}/", f"{folder}/*"}
    return any(
        command.start > call.command.start
        and command.name == "rm"
        and any(w.literal in gone for w in command.arguments)
        for command in run.commands
    )


def _no_lists(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for run, call in _calls_at(subject, finding):
        if call.manager == "apk" and _keeps_index(call, run):
            yield from inserted(run, call.word, " --no-cache")
        elif call.manager == "apt":
            last = run.script.commands[-1]
            # Only where nothing but && is in the RUN, and what the lists are for is done in it.
            plain = run.script.whole and all(
                each.after in {"&&", ""} and not each.depth for each in run.script.commands
            )
            installs = any(each.does == "install" for each in calls(run))
            if plain and installs and len(run.script.pipelines) == len(run.script.commands) and last.pipes == 1:
                end = run.place(last.end - 1, last.end)
                at = Span(end.end_line, end.end_column, end.end_line, end.end_column)
                yield Edit(at, " && rm -rf /var/lib/apt/lists/*")


def language_cache_left(subject: Subject) -> Iterator[Finding]:
    """The caches of pip, npm and yarn should not stay in a layer.

    Why: what was downloaded is installed already; the copy in the cache doubles its size. A build knows this to the
    byte; without one it is a guess.

    Bad:
        FROM python:3.12
        RUN pip install flask==3.0.0

    Good:
        FROM python:3.12
        RUN --mount=type=cache,target=/root/.cache/pip pip install flask==3.0.0
    """
    for run in subject.shipped_runs():
        for call in calls(run):
            hint = _keeps_downloads(call, run)
            if hint:
                message = f"{call.command.name} {call.does} leaves its cache in the layer"
                yield subject.finding("LanguageCacheLeft", message, run.at(call.word), hint)


def _keeps_downloads(call: Call, run: Running) -> str:
    """What to do about the cache, empty when nothing is left."""
    match call.manager, call.does:
        case "pip", "install":
            if (
                call.command.has("--no-cache-dir", "--cache-dir", "--dry-run")
                or _set(run, call, "PIP_NO_CACHE_DIR")
                or _set(run, call, "PIP_CACHE_DIR")
                or _is_mounted(run, "/.cache/pip")
                or "no-cache-dir" in run.script.text
                or _cleared(run, call, (".cache",), ("pip", "cache", "purge"))
            ):
                return ""
            return "add --no-cache-dir, or mount a cache at /root/.cache/pip"
        case "yarn", "install" | "add":
            if _is_mounted(run, "/yarn") or _set(run, call, "YARN_CACHE_FOLDER"):
                return ""
            if call.command.has("--cache-folder") or _cleared(
                run, call, ("yarn", ".cache"), ("yarn", "cache", "clean")
            ):
                return ""
            return "end the RUN with yarn cache clean, or mount a cache at /usr/local/share/.cache/yarn"
        case "npm", "install" | "i" | "ci" | "add":
            if _is_mounted(run, "/.npm") or _set(run, call, "NPM_CONFIG_CACHE") or call.command.has("--cache"):
                return ""
            if _cleared(run, call, (".npm",), ("npm", "cache", "clean")) or _set(run, call, "npm_config_cache"):
                return ""
            return "end the RUN with npm cache clean --force, or mount a cache at /root/.npm"
        case _:
            return ""


def _set(run: Running, call: Call, name: str) -> bool:
    """Whether a variable is set for the call: by ENV or ARG, in front of it, or by an `export` above."""
    if name in run.env or any(word.text.startswith(f"{name}=") for word in call.command.assignments):
        return True
    return any(
        command.start < call.command.start
        and any(word.literal.startswith(f"{name}=") for word in (*command.words, *command.assignments))
        for command in run.commands
    )


def _is_mounted(run: Running, tail: str) -> bool:
    """Whether a cache or tmpfs mount lies where such a path ends, wherever the home folder is."""
    first = tail.strip("/").partition("/")[0]
    return any(
        mount.type in {"cache", "tmpfs"} and (tail in f"{mount.target}/" or mount.target.endswith(f"/{first}"))
        for mount in run.mounts
    )


def _cleared(run: Running, call: Call, parts: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether the script later removes a folder of such a name, or calls the manager's own clean-up."""
    for command in run.commands:
        if command.start <= call.command.start:
            continue
        literals = tuple(word.literal for word in command.words)
        if command.name == "rm" and any(part in word for part in parts for word in literals):
            return True
        if literals[1 : len(words)] == words[1:] and (command.name == words[0] or command.name.startswith(words[0])):
            return True
        if len(literals) > 2 and literals[1:3] == ("-m", words[0]) and literals[3 : len(words) + 2] == words[1:]:
            return True
    return False


def _no_cache_dir(subject: Subject, finding: Finding) -> Iterator[Edit]:
    for run, call in _calls_at(subject, finding):
        if call.manager == "pip" and _keeps_downloads(call, run):
            yield from inserted(run, call.word, " --no-cache-dir")


def apt_update_alone(subject: Subject) -> Iterator[Finding]:
    """Package lists should be fetched in the RUN that installs from them.

    Why: from the cache, `apt-get update` alone is as old as its first run, and a later install asks for versions that
    the mirror has no more.

    Bad:
        FROM debian:12
        RUN apt-get update
        RUN apt-get install -y --no-install-recommends curl

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
    """
    for run in subject.runs:
        made = [call for call in calls(run) if call.manager == "apt"]
        updates = [call for call in made if call.does == "update"]
        if not updates or any(call.does in _APT_ASKS | {"download", "source"} for call in made):
            continue
        if run.mounted("/var/lib/apt/lists") or not _installs_without_update(subject, run):
            continue
        hint = "put the install behind it with &&"
        yield subject.finding(
            "AptUpdateAlone", "apt-get update stands in a RUN of its own", run.at(updates[0].word), hint
        )


def _installs_without_update(subject: Subject, run: Running) -> bool:
    for later in subject.runs:
        if later.stage == run.stage and later.number > run.number:
            done = [call.does for call in calls(later) if call.manager == "apt"]
            if "update" in done:
                return False
            if "install" in done:
                return True
    return False


# ---------------------------------------------------------------- versions


def unpinned_system_package(subject: Subject) -> Iterator[Finding]:
    """Packages of the system should be asked for with a version.

    Why: the same file installs something else next month. Off unless it is selected: distributions take old versions
    away, so that pinned files stop to build; a base image by its digest and a snapshot mirror hold better.

    Bad:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*

    Good:
        FROM debian:12
        RUN apt-get update && apt-get install -y --no-install-recommends curl=7.88.1-10 && rm -rf /var/lib/apt/lists/*
    """
    for run in subject.runs:
        for call in calls(run):
            if call.does not in _SYSTEM_INSTALL.get(call.manager, ()):
                continue
            for word in call.packages:
                if not _SYSTEM_PINNED[call.manager].search(word.literal) and _is_package(word):
                    message = f"{word.literal} is installed in whatever version there is"
                    yield subject.finding("UnpinnedSystemPackage", message, run.at(word), _PIN[call.manager])


_SYSTEM_PINNED: Final = {
    "apt": re.compile(r"=|/|\.deb\Z|[+-]\Z"),
    "apk": re.compile(r"[=<>~]|/|\.apk\Z|\A\."),
    "yum": re.compile(r"-[0-9]|/|\.rpm\Z|\A@|="),
    "zypper": re.compile(r"[=<>]|/|\.rpm\Z|-[0-9]|\A-"),
}
_PIN: Final = {
    "apt": "write package=version",
    "apk": "write package=version, or package~version",
    "yum": "write package-version",
    "zypper": "write package=version",
}


def _is_package(word: Word) -> bool:
    """Whether a word names a package, as against a variable or a glob that may hold anything."""
    return word.plain and bool(re.match(r"[A-Za-z0-9@]", word.literal))


def unpinned_language_package(subject: Subject) -> Iterator[Finding]:
    """Packages of a language should be asked for with a version.

    Why: the same file installs something else next month.

    Bad:
        FROM python:3.12
        RUN pip install --no-cache-dir flask

    Good:
        FROM python:3.12
        RUN pip install --no-cache-dir flask==3.0.0
    """
    for run in subject.runs:
        for call in calls(run):
            family = {"uv": "pip", "yarn": "npm", "pnpm": "npm"}.get(call.manager, call.manager)
            if family not in _LANGUAGE or call.does not in _LANGUAGE[family][0]:
                continue
            _, pinned, hint, given = _LANGUAGE[family]
            if call.command.has(*given):
                continue
            for word in call.packages:
                if not pinned.search(word.literal) and _is_package(word):
                    message = f"{word.literal} is installed in whatever version there is"
                    yield subject.finding("UnpinnedLanguagePackage", message, run.at(word), hint)


_LANGUAGE: Final = {
    "pip": (
        frozenset({"install"}),
        re.compile(r"[=<>~@]|/|\A\.|\.(?:whl|zip|tar\.gz)\Z"),
        "write package==version",
        ("-c", "--constraint", "-r", "--requirement"),
    ),
    "npm": (
        frozenset({"install", "i", "add"}),
        re.compile(r".@[^@]*[0-9]|/.*/|\A\.|\A/|#|\.tgz\Z|:|\A@[^@/]+/[^@]+@"),
        "write package@version",
        (),
    ),
    "gem": (
        frozenset({"install"}),
        re.compile(r":[0-9]|\.gem\Z"),
        "write package:version, or --version",
        ("-v", "--version"),
    ),
    "go": (frozenset({"install"}), re.compile(r"@(?!latest\Z)|\A\.|\A(?:cmd|std|all)\Z"), "write path@version", ()),
}


def distribution_upgrade(subject: Subject) -> Iterator[Finding]:
    """An image should not be moved to another release of its distribution.

    Why: FROM names the release; an upgrade in a layer carries both, and takes what happens to be newest.

    Bad:
        FROM opensuse/leap:15.5
        RUN zypper -n dist-upgrade && zypper clean --all

    Good:
        FROM opensuse/leap:15.6
    """
    for run in subject.runs:
        for call in calls(run):
            if call.manager == "zypper" and call.does in {"dist-upgrade", "dup"}:
                message = f"zypper {call.does} moves the image to another release"
                yield subject.finding("DistributionUpgrade", message, run.at(call.word), "take a newer base image")


RULES = (
    Rule(
        "InstallAsksQuestions",
        "A package manager must not ask questions",
        install_asks_questions,
        aliases=("DL3014", "DL3030", "DL3034", "DL3038"),
        fix=_add_yes,
    ),
    Rule(
        "RecommendedPackages",
        "Packages that are only recommended should not be installed",
        recommended_packages,
        aliases=("DL3015",),
        severity=Severity.INFO,
        fix=_leave_recommended_out,
    ),
    Rule(
        "AptInScript",
        "Scripts should call apt-get, not apt",
        apt_in_script,
        aliases=("DL3027",),
        fix=_call_apt_get,
    ),
    Rule(
        "PackageListsLeft",
        "The lists and caches of the system's package manager should not stay in a layer",
        package_lists_left,
        aliases=("DL3009", "DL3019", "DL3032", "DL3036", "DL3040"),
        severity=Severity.INFO,
        preview=True,
        fix=_no_lists,
    ),
    Rule(
        "LanguageCacheLeft",
        "The caches of pip, npm and yarn should not stay in a layer",
        language_cache_left,
        aliases=("DL3042", "DL3060"),
        severity=Severity.INFO,
        preview=True,
        fix=_no_cache_dir,
    ),
    Rule("AptUpdateAlone", "Package lists should be fetched in the RUN that installs from them", apt_update_alone),
    Rule(
        "UnpinnedSystemPackage",
        "Packages of the system should be asked for with a version",
        unpinned_system_package,
        optional=True,
        aliases=("DL3008", "DL3018", "DL3033", "DL3037", "DL3041"),
        severity=Severity.INFO,
    ),
    Rule(
        "UnpinnedLanguagePackage",
        "Packages of a language should be asked for with a version",
        unpinned_language_package,
        aliases=("DL3013", "DL3016", "DL3028", "DL3062"),
        severity=Severity.INFO,
    ),
    Rule(
        "DistributionUpgrade",
        "An image should not be moved to another release of its distribution",
        distribution_upgrade,
        aliases=("DL3035",),
    ),
)

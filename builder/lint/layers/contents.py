"""Rules about files that do not belong into an image: of version control, editors, builds, one host, compilers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.lint.layers.subject import LayerRule, amount, by_layer, count, named, worst
from builder.model import FileStep, Severity
from cache.entries import Kind
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from builder.lint.layers.subject import ImageLayer, ImageSubject, Shipped
    from builder.model import Finding

_DEBUG = 1 << 20
_BYTECODE = 1 << 20
_TOOLS = 10 << 20
_UNUSED = 1_000_000


def _from_context(layer: ImageLayer) -> bool:
    """Whether the layer holds files of a build context, not of another stage."""
    step = layer.maker.step
    return isinstance(step, FileStep) and step.origin.context is not None


def _own(subject: ImageSubject, matches: Callable[[bytes], object]) -> Iterator[tuple[ImageLayer, list[Shipped]]]:
    """The visible files of own layers whose path is of a kind, by their layer."""
    found = by_layer(item for item in subject.own() if any(matches(name) for name in item.names))
    return ((subject.layers[number], items) for number, items in found.items())


def _folders(files: list[Shipped], pattern: re.Pattern[bytes]) -> list[bytes]:
    """What a pattern's `at` is in the paths of files: each once."""
    return sorted({match["at"] for item in files if (match := pattern.search(item.path))})


def _names(files: list[Shipped], pattern: re.Pattern[bytes]) -> list[str]:
    """The last parts of `_folders`: what a line of .dockerignore would name."""
    names = {path.rpartition(b"/")[2].decode("utf-8", "backslashreplace") for path in _folders(files, pattern)}
    return sorted(names)


# ---------------------------------------------------------------- what a context brings along

_VCS = re.compile(rb"^(?P<at>(?:.*?/)?\.(?:git|hg|svn|bzr))(?:/|$)")


def version_control(subject: ImageSubject) -> Iterator[Finding]:
    """No data of version control should be in an image.

    Why: `.git` holds each file that ever was, the deleted secrets among them, and often is larger than the sources.

    Bad:
        FROM base
        COPY <<EOF /app/.git/HEAD
        ref: refs/heads/main
        EOF

    Good:
        FROM base
        COPY <<EOF /app/main.c
        int main(void) { return 0; }
        EOF
    """
    for layer, files in _own(subject, _VCS.search):
        size = sum(item.size for item in files)
        message = (
            f"data of version control, {amount(size)} in {count(len(files), 'file')}: {named(_folders(files, _VCS))}"
        )
        hint = "add " + " and ".join(f"**/{name}" for name in _names(files, _VCS)) + " to .dockerignore"
        if layer.maker.keyword == "RUN":
            hint = "remove it in the same RUN, or let ADD fetch the repository"
        yield subject.finding("VersionControl", message, layer, hint, files=files)


_JUNK = re.compile(
    rb"^(?P<at>(?:.*?/)?(?:node_modules|bower_components|\.venv|venv|\.virtualenv|__pycache__|\.tox|\.nox|\.mypy_cache"
    rb"|\.pytest_cache|\.ruff_cache|\.hypothesis|\.ipynb_checkpoints|\.idea|\.vscode|\.vs|htmlcov|\.nyc_output"
    rb"|\.terraform|\.gradle|\.eggs|[^/]+\.egg-info|\.sass-cache|\.parcel-cache|\.DS_Store|Thumbs\.db|desktop\.ini"
    rb"|\.coverage|[^/]+\.pyc))(?:/|$)"
)
_NEVER = re.compile(
    rb"^(?P<at>(?:.*?/)?(?:\.tox|\.nox|\.mypy_cache|\.pytest_cache|\.ruff_cache|\.idea|\.vscode|\.DS_Store|Thumbs\.db"
    rb"|desktop\.ini|\.nyc_output|\.terraform))(?:/|$)"
)
"""What nobody makes on purpose: junk also where nothing says whether a COPY took it out of a context."""


def build_junk(subject: ImageSubject) -> Iterator[Finding]:
    """What tools and editors leave in a working copy should not be copied.

    Why: `node_modules` and virtual environments of the host are large, and made for the host; caches of tests and
    editors are of no use to anyone. What a COPY --from takes out of another stage is not meant.

    Bad:
        FROM base
        COPY <<EOF /app/.pytest_cache/README.md
        cache
        EOF

    Good:
        FROM base
        COPY <<EOF /app/README.md
        manual
        EOF
    """
    for layer, matching in _own(subject, _JUNK.search):
        heredoc = layer.maker.instruction is not None and bool(getattr(layer.maker.instruction, "heredocs", ()))
        pattern = _JUNK if _from_context(layer) and not heredoc else _NEVER
        files = [item for item in matching if pattern.search(item.path)]
        if layer.maker.keyword not in {"COPY", "ADD"} or not files:
            continue
        size = sum(item.size for item in files)
        message = f"left by tools and editors, {amount(size)} in {count(len(files), 'file')}: "
        message += named(_folders(files, pattern))
        names = [f"**/{'*.pyc' if name.endswith('.pyc') else name}" for name in _names(files, pattern)]
        hint = "add to .dockerignore: " + " ".join(dict.fromkeys(names))
        yield subject.finding("BuildJunk", message, layer, hint, files=files)


_BUILD_FILES = re.compile(
    rb"(?:^|/)(?:(?:Dockerfile|Containerfile)(?:\.[^/]+)?|[^/]+\.Dockerfile|\.dockerignore|docker-compose[^/]*\.ya?ml"
    rb"|compose\.ya?ml|\.env(?:\.[^/]+)?|\.envrc|\.gitlab-ci\.yml|Jenkinsfile|Vagrantfile)$"
)
_EXAMPLE = re.compile(rb"\.env\.(?:example|sample|template|dist|defaults?)$")


def build_files(subject: ImageSubject) -> Iterator[Finding]:
    """Files of the build and the environment should not be copied.

    Why: `.env` holds passwords more often than not. A Dockerfile or compose file in the image changes the layer each
    time that it changes itself, and tells others what they need not know.

    Bad:
        FROM base
        COPY <<EOF /app/.env
        NAME=value
        EOF

    Good:
        FROM base
        COPY <<EOF /app/settings
        NAME=value
        EOF
    """
    for layer, matching in _own(subject, _BUILD_FILES.search):
        files = [item for item in matching if item.entry.kind is Kind.FILE and not _EXAMPLE.search(item.path)]
        if layer.maker.keyword not in {"COPY", "ADD"} or not files:
            continue
        message = f"{count(len(files), 'file')} of the build and its environment: {worst(files)}"
        names = dict.fromkeys(item.entry.name.decode("utf-8", "backslashreplace") for item in files)
        hint = "add to .dockerignore: " + " ".join(f"**/{name}" for name in names)
        yield subject.finding("BuildFiles", message, layer, hint, files=files)


def python_bytecode(subject: ImageSubject) -> Iterator[Finding]:
    """Compiled Python files should be there on purpose.

    Why: they are about as large as the sources, are made again when they are missing, and have times in them that make
    each build another one. A program that starts often wants them all the same.

    Bad:
        FROM base
        RUN mkdir -p /app/__pycache__ && truncate -s 1100000 /app/__pycache__/main.cpython-311.pyc

    Good:
        FROM base
        RUN mkdir -p /app && truncate -s 1100000 /app/main.py
    """
    for layer, matching in _own(subject, lambda path: path.endswith(b".pyc") and not path.startswith(b"usr/lib/")):
        files = [item for item in matching if item.entry.kind is Kind.FILE]
        size = sum(item.size for item in files)
        if size >= _BYTECODE and not _from_context(layer):
            message = f"{count(len(files), 'compiled Python file')}, {amount(size)}: {worst(files, 1)}"
            hint = "ENV PYTHONDONTWRITEBYTECODE=1, pip install --no-compile, if they are not wanted"
            yield subject.finding("PythonBytecode", message, layer, hint, severity=Severity.INFO, files=files)


# ---------------------------------------------------------------- what belongs to one machine

_HOST = re.compile(
    rb"^(?:etc/machine-id|var/lib/dbus/machine-id|etc/ssh/ssh_host_[^/]*_key|etc/resolv\.conf|etc/hostname"
    rb"|var/lib/systemd/random-seed|var/lib/urandom/random-seed|etc/ssl/private/ssl-cert-snakeoil\.key)$"
)
_KEY = re.compile(rb"_key$|\.key$")


def host_files(subject: ImageSubject) -> Iterator[Finding]:
    """What identifies one machine should not be in an image of which many are made.

    Why: all containers then have one machine id, one random seed, and, worst, one ssh host key that everyone with the
    image knows.

    Bad:
        FROM base
        RUN echo 0123456789abcdef0123456789abcdef > /etc/machine-id

    Good:
        FROM base
        RUN : > /etc/machine-id
    """
    for layer, matching in _own(subject, _HOST.match):
        files = [item for item in matching if item.entry.kind is Kind.FILE and item.size and not _unset(item)]
        if files:
            keys = [item for item in files if _KEY.search(item.path)]
            message = f"{count(len(files), 'file')} of one machine: {worst(keys or files)}"
            hint = "remove the keys in the same RUN, and make them when the container starts" if keys else (
                "empty it where it is made, or leave it out: an empty /etc/machine-id is filled when a machine starts"
            )  # fmt: skip
            severity = Severity.ERROR if keys else Severity.WARNING
            yield subject.finding("HostFiles", message, layer, hint, severity=severity, files=files)


def _unset(item: Shipped) -> bool:
    """Whether a machine id says that there is none yet: `uninitialized`."""
    return item.entry.name == b"machine-id" and item.size < 32


# ---------------------------------------------------------------- what only a build needs

_TOOLCHAIN = re.compile(
    rb"^usr/(?:local/)?(?:bin/(?:[a-z0-9_]+-linux-gnu[a-z]*-)?(?:gcc|g\+\+|cc|c\+\+|cpp|ld|as|clang|rustc|cargo|cmake)"
    rb"(?:[.-][0-9.]+|\.bfd)?|lib/gcc/.|libexec/gcc/.|include/.|lib/(?:[^/]+/)?[^/]+\.(?:a|la)|local/go/pkg/tool/.)"
    rb"|^opt/[^/]+/include/."
)


def toolchain_left(subject: ImageSubject) -> Iterator[Finding]:
    """Compilers, headers and static libraries should stay in the stage that builds.

    Why: they are large, nobody runs them in a container, and each of them is something more to keep up to date.

    Bad:
        FROM base
        RUN mkdir -p /usr/include && truncate -s 10485760 /usr/include/all.h

    Good:
        FROM base AS build
        RUN mkdir -p /usr/include && truncate -s 10485760 /usr/include/all.h && echo program > /program
        FROM base
        COPY --from=build /program /program
    """
    for layer, files in _own(subject, _TOOLCHAIN.match):
        size = sum(item.size for item in files)
        if size >= _TOOLS:
            message = f"compilers, headers and static libraries, {amount(size)} in {count(len(files), 'file')}: "
            message += worst(files)
            hint = "build in a stage of its own, and COPY --from it what it made"
            yield subject.finding("ToolchainLeft", message, layer, hint, severity=Severity.INFO, files=files)


def unstripped_programs(subject: ImageSubject) -> Iterator[Finding]:
    """Programs should be shipped without their debugging information.

    Why: a program with it is several times as large, and runs no better. The bytes told are those of the `.debug_`
    sections.

    Bad:
        FROM base
        COPY unstripped /program

    Good:
        FROM base
        COPY stripped /program
    """
    programs = [
        item
        for item in subject.own()
        if item.traits.elf is not None and item.traits.elf.kind in {2, 3} and item.traits.elf.debug > 0
    ]
    for number, items in by_layer(programs).items():
        size = sum(item.traits.elf.debug for item in items if item.traits.elf is not None)
        if size >= _DEBUG:
            message = f"{count(len(items), 'program')} with debugging information, {amount(size)} of it: {worst(items)}"
            hint = "strip --strip-debug, or the linker's -s, in the stage that builds"
            yield subject.finding(
                "UnstrippedPrograms",
                message,
                subject.layers[number],
                hint,
                severity=Severity.INFO,
                files=items,
                size=size,
            )


_LATER = re.compile(rb"^(?:proc|sys|dev|run|var/run|mnt|media|tmp)(?:/|$)")


def broken_links(subject: ImageSubject) -> Iterator[Finding]:
    """A link should lead to something.

    Why: what it led to was deleted, or is at another place in the image than on the machine where the link was made.

    Bad:
        FROM base
        RUN ln -s /usr/share/nothing /etc/link

    Good:
        FROM base
        RUN ln -s passwd /etc/link
    """
    broken: list[Shipped] = []
    for item in subject.own():
        if item.entry.kind is not Kind.SYMLINK:
            continue
        try:
            goal = subject.files.resolve(item.path)
            there = subject.files.entry(goal) is not None
        except StoreError:  # links in a circle
            there, goal = False, b""
        if not there and not _LATER.match(goal):
            broken.append(item)
    for number, items in by_layer(broken).items():
        targets = [f"/{item.path.decode('utf-8', 'backslashreplace')} -> "
                   f"{item.entry.target.decode('utf-8', 'backslashreplace')}" for item in items[:3]]  # fmt: skip
        more = f" and {len(items) - 3} more" if len(items) > 3 else ""
        message = f"{count(len(items), 'link leads', 'links lead')} to nothing: {', '.join(targets)}{more}"
        yield subject.finding(
            "BrokenLinks", message, subject.layers[number], severity=Severity.INFO, files=items, size=0
        )


def unused_context(subject: ImageSubject) -> Iterator[Finding]:
    """The context should hold what the build uses.

    Why: pybuild reads only what a step takes, but docker and buildah send all of it, each time, and `COPY . .` would
    put it into the image. Less than 1 MB is not told.
    """
    size = sum(size for _, size in subject.unused)
    if size < _UNUSED:
        return
    worst_first = sorted(subject.unused, key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({amount(bytes_)})" for name, bytes_ in worst_first[:3])
    more = f" and {len(worst_first) - 3} more" if len(worst_first) > 3 else ""
    message = f"{amount(size)} of the context are taken by no instruction: {shown}{more}"
    hint = "add to .dockerignore: " + " ".join("/" + name for name, _ in worst_first[:10])
    paths = [name.encode("utf-8", "surrogateescape") for name, _ in worst_first]
    yield subject.finding("UnusedContext", message, None, hint, severity=Severity.INFO, paths=paths, size=size)


RULES = (
    LayerRule("VersionControl", "No data of version control should be in an image.", version_control),
    LayerRule("BuildJunk", "What tools and editors leave in a working copy should not be copied.", build_junk),
    LayerRule("BuildFiles", "Files of the build and the environment should not be copied.", build_files),
    LayerRule("PythonBytecode", "Compiled Python files should be there on purpose.", python_bytecode, Severity.INFO),
    LayerRule("HostFiles", "What identifies one machine should not be in an image of which many are made.", host_files),
    LayerRule(
        "ToolchainLeft",
        "Compilers, headers and static libraries should stay in the stage that builds.",
        toolchain_left,
        Severity.INFO,
    ),
    LayerRule(
        "UnstrippedPrograms",
        "Programs should be shipped without their debugging information.",
        unstripped_programs,
        Severity.INFO,
    ),
    LayerRule("UnusedContext", "The context should hold what the build uses.", unused_context, Severity.INFO),
    LayerRule("BrokenLinks", "A link should lead to something.", broken_links, Severity.INFO),
)

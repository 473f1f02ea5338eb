"""Rules about what a command left behind: temporary files, lists and caches of package managers, logs, core dumps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.lint.layers.subject import LayerRule, amount, by_layer, count, worst
from builder.model import FileStep, Severity
from cache.entries import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from builder.lint.layers.subject import ImageLayer, ImageSubject, Shipped
    from builder.model import Finding

_FLOOR = 64 << 10
"""Caches of fewer bytes are not worth a word."""

_LOGS = 1 << 20
"""Logs of fewer bytes are told, and no reason for a warning: each installation leaves some."""


def _matching(subject: ImageSubject, matches: Callable[[bytes], object]) -> Iterator[tuple[ImageLayer, list[Shipped]]]:
    """The visible files of own layers whose path is of a kind, by their layer."""
    files = (item for item in subject.own() if item.entry.kind is Kind.FILE)
    found = by_layer(item for item in files if any(matches(name) for name in item.names))
    return ((subject.layers[number], items) for number, items in found.items())


def _not_copied(layer: ImageLayer) -> str:
    """What to do about files that a COPY or ADD brought along; empty for what a RUN made."""
    if layer.maker.keyword not in {"COPY", "ADD"}:
        return ""
    step = layer.maker.step
    if isinstance(step, FileStep) and step.origin.context is None:
        return "remove them where they come from, or copy only what is needed"
    return "leave them out by .dockerignore, or copy only what is needed"


# ---------------------------------------------------------------- temporary files

_PLACES = re.compile(rb"^(?:tmp|var/tmp|run|var/run|dev/shm)/")
_NAMES = re.compile(
    rb"(?:^|/)(?:[^/]*(?:\.tmp|\.temp|\.bak|~|\.swp|\.swo|\.orig|\.rej)|\.#[^/]*|\.nfs[0-9a-f]{8,}"
    rb"|\.(?:bash|zsh|ash|python|node_repl|psql|mysql|sqlite)_history|\.viminfo|\.lesshst|\.wget-hsts)$"
    rb"|(?:^|/)\.Trash(?:-\d+)?/|/\.local/share/Trash/"
)
_OF_PACKAGES = re.compile(
    rb"^(?:usr/(?:share|lib|include)|lib|var/lib/dpkg)/|(?:^|/)(?:node_modules|site-packages|dist-packages)/"
)
_MKTEMP = re.compile(rb"^(?:var/)?tmp/(?:tmp\.[A-Za-z0-9]{6,}|tmp[a-z0-9_]{8})$")


def _is_temporary(path: bytes) -> bool:
    return bool(_PLACES.match(path) or (_NAMES.search(path) and not _OF_PACKAGES.search(path)))


def temporary_files(subject: ImageSubject) -> Iterator[Finding]:
    """No temporary files should be left behind in a layer.

    Why: what lies in /tmp, /var/tmp or /run, backups of editors and patches, histories of shells: nobody reads them
    in a container, and everyone who pulls the image pays for them.

    Bad:
        FROM base
        RUN echo scratch > /tmp/download && cp /tmp/download /kept

    Good:
        FROM base
        RUN --mount=type=tmpfs,target=/tmp echo scratch > /tmp/download && cp /tmp/download /kept
    """
    found = {layer.number: files for layer, files in _matching(subject, _is_temporary)}
    for layer in subject.layers:
        files = found.get(layer.number, [])
        folders = [
            entry.path
            for entry in layer.entries
            if layer.own
            and entry.kind is Kind.DIRECTORY
            and _MKTEMP.match(entry.path)
            and not subject.files.children(entry.path)
            and subject.files.entry(entry.path) is not None
        ]
        if not files and not folders:
            continue
        size = sum(item.size for item in files)
        what = [count(len(files), "temporary file")] if files else []
        what += [count(len(folders), "temporary folder")] if folders else []
        examples = worst(files) if files else "/" + folders[0].decode("utf-8", "backslashreplace")
        message = f"{' and '.join(what)} left behind, {amount(size)}: {examples}"
        hint = _not_copied(layer)
        if not hint and (any(_PLACES.match(item.path) for item in files) or folders):
            only = {item.path.partition(b"tmp/")[0] for item in files} == {b"var/"}
            target = "var/tmp" if only else "tmp"
            hint = f"remove them in the same RUN, or give it RUN --mount=type=tmpfs,target=/{target}"
        hint = hint or "remove them in the same RUN"
        # Locks and marks in /run that packages leave are empty, and cost nothing.
        trifle = not size and not folders and all(item.path.startswith(b"run/") for item in files)
        yield subject.finding(
            "TemporaryFiles",
            message,
            layer,
            hint,
            severity=Severity.INFO if trifle else Severity.WARNING,
            files=files,
            paths=folders,
            size=size,
        )


# ---------------------------------------------------------------- package managers


_DEBCONF = b"var/cache/debconf/"
"""Where debconf keeps what was there before the last change: small, and left by nearly every installation."""


def _is_apt(path: bytes) -> bool:
    if path.startswith(b"var/lib/apt/lists/"):
        return not path.endswith(b"/lock")
    return bool(_APT.match(path))


_APT = re.compile(rb"^var/cache/apt/(?:archives/(?:partial/)?[^/]+\.deb|[^/]+\.bin)$|^var/cache/debconf/[^/]+-old$")


def apt_leftovers(subject: ImageSubject) -> Iterator[Finding]:
    r"""Package lists and archives of apt should not stay in a layer.

    Why: the lists are out of date by the time that the image runs, and the archives have been unpacked. Removing them
    in a later RUN removes nothing from the layer that has them.

    Bad:
        FROM base
        RUN mkdir -p /var/lib/apt/lists /var/cache/apt/archives \
            && for n in 1 2 3 4 5 6 7 8 9; do cat /bin/busybox; done > /var/lib/apt/lists/deb_Packages \
            && echo deb > /var/cache/apt/archives/curl.deb

    Good:
        FROM base
        RUN --mount=type=cache,target=/var/lib/apt,sharing=locked --mount=type=cache,target=/var/cache/apt \
            mkdir -p /var/lib/apt/lists && cat /bin/busybox > /var/lib/apt/lists/deb_Packages
    """
    for layer, files in _matching(subject, _is_apt):
        size = sum(item.size for item in files)
        if size < _FLOOR:
            continue
        lists = [item for item in files if item.path.startswith(b"var/lib/apt/lists/")]
        archives = [item for item in files if item.path.endswith(b".deb")]
        what = [f"{count(len(lists), 'package list')} of apt"] if lists else []
        what += [count(len(archives), "package archive")] if archives else []
        rest = len(files) - len(lists) - len(archives)
        what += [f"{count(rest, 'cache')} of apt"] if rest else []
        message = f"{' and '.join(what)} left behind, {amount(size)}: {worst(files)}"
        clean = "apt-get clean && " if len(lists) < len(files) else ""
        hint = (
            f"end the same RUN with `{clean}rm -rf /var/lib/apt/lists/*`" if lists else "end the RUN with apt-get clean"
        )
        hint += ", or RUN --mount=type=cache,target=/var/cache/apt --mount=type=cache,target=/var/lib/apt"
        severity = Severity.WARNING
        if all(item.path.startswith(_DEBCONF) for item in files):
            severity, hint = Severity.INFO, "end the same RUN with rm -f /var/cache/debconf/*-old"
        yield subject.finding("AptLeftovers", message, layer, hint, severity=severity, files=files)


_MANAGERS: tuple[tuple[str, re.Pattern[bytes], str], ...] = (
    ("apk", re.compile(rb"^(?:var/cache/apk|etc/apk/cache|lib/apk/cache)/."), "apk add --no-cache"),
    ("dnf", re.compile(rb"^var/(?:cache/(?:dnf|libdnf5)/|lib/dnf/history)."), "dnf clean all in the same RUN"),
    ("yum", re.compile(rb"^var/cache/yum/."), "yum clean all in the same RUN"),
    ("zypper", re.compile(rb"^var/cache/zypp/."), "zypper clean --all in the same RUN"),
    ("pacman", re.compile(rb"^var/(?:cache/pacman|lib/pacman/sync)/."), "pacman -Scc --noconfirm in the same RUN"),
)
_TARGETS = {"apk": "/var/cache/apk", "dnf": "/var/cache/libdnf5", "yum": "/var/cache/yum", "zypper": "/var/cache/zypp",
            "pacman": "/var/cache/pacman"}  # fmt: skip


def package_cache(subject: ImageSubject) -> Iterator[Finding]:
    """Caches of apk, dnf, yum, zypper and pacman should not stay in a layer.

    Why: what was downloaded to be installed is there twice.

    Bad:
        FROM base
        RUN mkdir -p /var/cache/apk && cat /bin/busybox > /var/cache/apk/APKINDEX.tar.gz

    Good:
        FROM base
        RUN --mount=type=cache,target=/var/cache/apk cat /bin/busybox > /var/cache/apk/APKINDEX.tar.gz
    """
    for name, pattern, remedy in _MANAGERS:
        for layer, files in _matching(subject, pattern.match):
            size = sum(item.size for item in files)
            if size < _FLOOR:
                continue
            message = f"the cache of {name} left behind, {amount(size)}: {worst(files)}"
            hint = f"{remedy}, or RUN --mount=type=cache,target={_TARGETS[name]}"
            yield subject.finding("PackageCache", message, layer, hint, files=files)


# ---------------------------------------------------------------- languages

_CACHES: tuple[tuple[str, str, re.Pattern[bytes]], ...] = tuple(
    (name, remedy, re.compile(rb"^(?P<target>(?:.*/)?" + where + rb")/."))
    for name, remedy, where in (
        ("pip", "pip install --no-cache-dir", rb"\.cache/pip"),
        ("uv", "uv --no-cache", rb"\.cache/uv"),
        ("poetry", "", rb"\.cache/pypoetry"),
        ("pre-commit", "", rb"\.cache/pre-commit"),
        ("go", "", rb"\.cache/go-build"),
        ("go", "", rb"(?:go|gopath)/pkg/mod"),
        ("yarn", "yarn cache clean", rb"(?:\.cache/yarn|\.yarn/(?:berry/)?cache|usr/local/share/\.cache/yarn)"),
        ("node-gyp", "", rb"\.(?:cache/)?node-gyp"),
        ("npm", "npm cache clean --force", rb"\.npm/_cacache"),
        ("pnpm", "pnpm store prune", rb"(?:\.pnpm-store|\.local/share/pnpm/store)"),
        ("Playwright", "", rb"\.cache/ms-playwright"),
        ("Homebrew", "brew cleanup", rb"\.cache/Homebrew"),
        ("cargo", "", rb"(?:\.cargo|usr/local/cargo)/(?:registry|git/db)"),
        ("cargo", "", rb"target/(?:debug|release)/(?:deps|build|incremental|\.fingerprint)"),
        ("Maven", "", rb"\.m2/repository"),
        ("Gradle", "", rb"\.gradle/(?:caches|wrapper/dists)"),
        ("composer", "composer clear-cache", rb"\.(?:cache/composer|composer/cache)"),
        ("gem", "", rb"(?:\.gem|\.bundle/cache|usr/local/bundle/cache)"),
        ("conda", "conda clean --all --yes", rb"(?:\.conda|(?:ana|mini)conda[^/]*|miniforge[^/]*|conda)/pkgs"),
        ("NuGet", "", rb"\.nuget/packages"),
        ("Hugging Face", "", rb"\.cache/huggingface/hub"),
    )
)


_WANTED = frozenset({"Playwright", "Hugging Face"})
"""Caches that programs also read when they run: browsers and models are put there on purpose as often as not."""


def language_cache(subject: ImageSubject) -> Iterator[Finding]:
    """Caches of pip, npm, go, cargo and their like should not stay in a layer.

    Why: they are there to make the next installation quick, and an image does not install again.

    Bad:
        FROM base
        RUN mkdir -p /root/.cache/pip && cat /bin/busybox > /root/.cache/pip/wheel

    Good:
        FROM base
        RUN --mount=type=cache,target=/root/.cache/pip cat /bin/busybox > /root/.cache/pip/wheel
    """
    for name, remedy, pattern in _CACHES:
        for layer, files in _matching(subject, pattern.match):
            size = sum(item.size for item in files)
            if size < _FLOOR:
                continue
            match = pattern.match(files[0].path)
            target = "/" + match["target"].decode("utf-8", "backslashreplace") if match else ""
            message = (
                f"the cache of {name} left behind, {amount(size)} in {count(len(files), 'file')}: {worst(files, 1)}"
            )
            hint = f"RUN --mount=type=cache,target={target}" + (f", or {remedy}" if remedy else "")
            hint = _not_copied(layer) or hint
            severity = Severity.INFO if name in _WANTED else Severity.WARNING
            yield subject.finding("LanguageCache", message, layer, hint, severity=severity, files=files)


# ---------------------------------------------------------------- logs and dumps

_LOG = re.compile(rb"^var/log/.|(?:^|/)(?:npm-debug|yarn-error|yarn-debug|pip)\.log$|^root/\.npm/_logs/")


def log_files(subject: ImageSubject) -> Iterator[Finding]:
    """Logs of the build should not stay in a layer.

    Why: they tell of the build and not of the program, they grow, and they are different in each build. `lastlog` and
    `faillog` are as large as the highest user id asks for, and an image holds their holes as zeros. Less than 1 MB is
    told without a warning: every installation of packages leaves some.

    Bad:
        FROM base
        RUN mkdir -p /var/log && truncate -s 2000000 /var/log/lastlog

    Good:
        FROM base
        RUN --mount=type=tmpfs,target=/var/log truncate -s 2000000 /var/log/lastlog
    """
    for layer, found in _matching(subject, _LOG.search):
        files = [item for item in found if item.size]
        size = sum(item.size for item in files)
        if not size:
            continue
        message = f"{count(len(files), 'log')} left behind, {amount(size)}: {worst(files)}"
        sparse = any(item.entry.name in {b"lastlog", b"faillog"} for item in files)
        hint = "useradd --no-log-init makes none" if sparse else "remove them in the same RUN"
        severity = Severity.WARNING if size >= _LOGS else Severity.INFO
        yield subject.finding("LogFiles", message, layer, hint, severity=severity, files=files)


_CRASH = re.compile(rb"(?:^|/)(?:hs_err_pid\d+\.log|core\.\d+|[^/]+\.core|vgcore\.\d+|[^/]+\.stackdump)$|^var/crash/.")


def core_dumps(subject: ImageSubject) -> Iterator[Finding]:
    """No core dumps or crash reports should be left in a layer.

    Why: a dump is the whole memory of a program that failed during the build, with what secrets it knew.

    Bad:
        FROM base
        RUN echo crash > /hs_err_pid17.log

    Good:
        FROM base
        RUN echo fine > /report
    """
    files = [item for item in subject.own() if item.entry.kind is Kind.FILE]
    dumps = [
        item
        for item in files
        if (item.traits.elf is not None and item.traits.elf.kind == 4) or _CRASH.search(item.path)
    ]
    for number, items in by_layer(dumps).items():
        size = sum(item.size for item in items)
        message = f"{count(len(items), 'core dump or crash report', 'core dumps or crash reports')}, {amount(size)}: "
        hint = "remove it, and look why the program failed"
        yield subject.finding("CoreDumps", message + worst(items), subject.layers[number], hint, files=items)


RULES = (
    LayerRule("TemporaryFiles", "No temporary files should be left behind in a layer.", temporary_files),
    LayerRule(
        "AptLeftovers",
        "Package lists and archives of apt should not stay in a layer.",
        apt_leftovers,
        aliases=("DL3009",),
    ),
    LayerRule(
        "PackageCache",
        "Caches of apk, dnf, yum, zypper and pacman should not stay in a layer.",
        package_cache,
        aliases=("DL3019", "DL3032", "DL3036", "DL3040"),
    ),
    LayerRule(
        "LanguageCache",
        "Caches of pip, npm, go, cargo and their like should not stay in a layer.",
        language_cache,
        aliases=("DL3042", "DL3060"),
    ),
    LayerRule("LogFiles", "Logs of the build should not stay in a layer.", log_files, aliases=("DL3046",)),
    LayerRule("CoreDumps", "No core dumps or crash reports should be left in a layer.", core_dumps),
)

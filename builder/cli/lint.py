"""`pybuild lint`: what is wrong with a build file, told before anything is built."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.looking import configured, contexts_of, judged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.lint.efficiency import Efficiency
    from builder.lint.formats import Page, Report
    from builder.lint.settings import Known, Settings
    from builder.model import Budget, BuildRequest, Finding
    from builder.survey import Glance

LINT = Command(
    name="lint",
    usage="[OPTIONS] [PATH | IMAGE]",
    summary="Say what is wrong with a Dockerfile, without building it, or with the layers of an image.",
    words=(0, 1),
    flags=(
        Flag("file", "the Dockerfile, `-` for standard input (default: Dockerfile in PATH)", "f", "PATH"),
        Flag("select", "look for these rules only; `all`, `default` and other linters' names too", value="RULE,...",
             many=True),
        Flag("ignore", "do not look for these rules", value="RULE,...", many=True),
        Flag("severity", "a rule's severity: RULE=error, RULE=warning, RULE=info", value="RULE=LEVEL", many=True),
        Flag("fail-on", "the mildest finding that fails: error, warning, info, never (default: warning)",
             value="LEVEL"),
        Flag("format", "text, json, sarif, github, gitlab, junit, checkstyle (default: text)", value="FORMAT"),
        Flag("output", "write the findings to a file", "o", "FILE"),
        Flag("config", "the file with settings (default: the nearest .pybuild.toml or pyproject.toml)", value="FILE"),
        Flag("build-arg", "a value for an ARG; NAME alone takes the environment's", value="NAME[=VALUE]", many=True),
        Flag("build-context", "a named context, which FROM and --from may mean", value="NAME=SOURCE", many=True),
        Flag("ignorefile", "the ignore file (default: <Dockerfile>.dockerignore, .dockerignore)", value="FILE"),
        Flag("fix", "mend what can be mended mechanically; the changes are shown first, and asked for"),
        Flag("diff", "print the changes that --fix would make, instead of the findings; nothing is written"),
        Flag("yes", "do not ask before --fix writes", "y"),
        Flag("base", "of an image: what it stands on, whose layers are not its own (default: what the store has)",
             value="IMAGE"),
        Flag("max-size", "of an image: an error when its layers are larger together", value="SIZE"),
        Flag("max-layer", "of an image: an error when one of its own layers is larger", value="SIZE"),
        Flag("max-waste", "of an image: an error when more is shipped in vain, as bytes or in percent",
             value="SIZE|N%"),
        Flag("explain", "print a rule's page", value="RULE"),
        Flag("rules", "list the rules"),
    ),
    notes="""\
PATH is a context folder, or a Dockerfile; the current folder when it is left out. Of a Dockerfile, no base image and no
store is needed. IMAGE is a name or id in the store, docker-archive:FILE[:TAG], oci-archive:FILE[:TAG],
oci-layout:DIR[:TAG]; docker-image:NAME where a folder has the same name.

# pybuild: ignore=RULE,RULE reason       above an instruction, or above the first one for the whole file
# hadolint ignore=DL3008                 and # check=skip=RULE count, too
[tool.pybuild.lint] in pyproject.toml, or [lint] in .pybuild.toml, up to the repository's root: select, ignore,
severity, fail-on, trusted-registries, required-labels, strict-labels, shellcheck, max-size, max-layer, max-waste.

Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 wrong command line or configuration.""",
)  # fmt: skip


def lint(given: Given, around: Surroundings) -> int:
    """Look, and tell."""
    from builder.cli.build import sizes_of
    from builder.lint import known as known_rules
    from builder.lint.formats import formats
    from builder.lint.settings import SettingsError, budget

    known = known_rules()
    if given.on("rules"):
        around.say(_table(known))
        return 0
    if given.has("explain"):
        around.say(_explained(given.one("explain"), known))
        return 0
    form = given.one("format", "text")
    if form not in formats():
        from grammar.suggest import did_you_mean

        hint = did_you_mean(form, formats()) or f"one of {', '.join(formats())}"
        raise UsageError(f"--format={form} is not known", hint=hint)
    if given.on("diff") and given.on("fix"):
        raise UsageError("--diff writes nothing, and --fix writes", hint="leave out one of them")
    meant = _meant(given, around)
    try:
        settings = _settings(given, meant.folder, known, around)
        limits = budget(settings, sizes_of(given))
    except SettingsError as error:
        raise UsageError(error.message, hint=error.hint) from None
    if meant.image:
        return _lint_image(meant.image, settings, limits, known, form, given, around)
    request = _request(meant, given, around)
    if given.on("diff") or given.on("fix"):
        from builder.cli.mending import mended

        written = mended(request, settings, known, given, around)
        if given.on("diff"):
            return written
    found, glance = _text_findings(request, settings, known, around)
    _write(_report(glance.subject.plan.dockerfile.source.name, found, known), form, given, around)
    return int(settings.fails(found))


# ---------------------------------------------------------------- what is meant


class Meant(Struct, frozen=True):
    """What the word on the command line means: a context folder with its build file, or an image.

    image: a name in the store, or `docker-archive://FILE[:tag]`, `oci-layout://DIR[:tag]`; empty for a folder.
    """

    context: str = "."
    file: str = ""
    image: str = ""

    @property
    def folder(self) -> Path:
        """Where settings are looked for first."""
        return Path() if self.image or self.context == "-" else Path(self.context)


_SCHEMES = {
    "docker-image": "",
    "docker-archive": "docker-archive",
    "oci-archive": "docker-archive",
    "oci-layout": "oci-layout",
    "oci": "oci-layout",
}
"""How an image may be named, and what `builder.bases` calls it. Tars of layouts are read as docker's are."""


def _meant(given: Given, around: Surroundings) -> Meant:
    """What is to be looked at. UsageError when it is nothing, or two things."""
    word, file = given.words[0] if given.words else ".", given.one("file")
    if not word:
        raise UsageError("the path is empty", hint="`.` is the current folder")
    scheme, colon, rest = word.partition(":")
    if colon and scheme in _SCHEMES:
        rest = rest.removeprefix("//")
        found = Meant(image=f"{_SCHEMES[scheme]}://{rest}" if _SCHEMES[scheme] else rest)
        return _without_text(found, word, given)
    path = Path(word)
    if word == "-":
        return Meant(word, file)
    stored = _is_stored(word, given, around)
    if path.exists() and stored:
        kind = "folder" if path.is_dir() else "file"
        raise UsageError(
            f"{word} is a {kind} here and an image in the store",
            hint=f"./{word} is the {kind}, docker-image:{word} the image",
        )
    if stored:
        return _without_text(Meant(image=word), word, given)
    if path.is_dir():
        if (path / "oci-layout").is_file() and not file and not any((path / name).exists() for name in _USUAL):
            return _without_text(Meant(image=f"oci-layout://{word}"), word, given)
        return Meant(word, file)
    if not path.exists():
        hint = _neighbour(path) or "an image has to be in the store: pybuild images lists them"
        raise UsageError(f"there is no folder, Dockerfile or image {word}", hint=hint)
    if file:
        raise UsageError(f"{word} is a file, and -f names another one", hint="leave out one of them")
    if _is_archive(path):
        return _without_text(Meant(image=f"docker-archive://{word}"), word, given)
    return Meant(str(path.parent), word)


_USUAL = ("Dockerfile", "dockerfile")
_OF_TEXT = ("file", "build-arg", "build-context", "ignorefile", "fix", "diff", "yes")
_OF_IMAGES = ("base", "max-size", "max-layer", "max-waste")


def _without_text(meant: Meant, word: str, given: Given) -> Meant:
    """The same, once no flag was given that is about a Dockerfile."""
    for flag in _OF_TEXT:
        if given.has(flag):
            raise UsageError(f"--{flag} is about a Dockerfile, and {word} is an image")
    return meant


def _is_stored(word: str, given: Given, around: Surroundings) -> bool:
    """Whether the store has such an image. No store is made for the question."""
    from builder.cli.opened import open_store
    from builder.cli.surroundings import store_root
    from cache.errors import NotFoundError, StoreError

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", word):
        return False
    try:
        root = store_root(given.one("root"), around.environ)
    except UsageError:  # no home folder, so no store either
        return False
    if not (root / "index.json").exists():
        return False
    with open_store(given, around.environ) as store:
        try:
            store.image(word)
        except NotFoundError:
            return False
        except StoreError as error:
            # The beginning of several ids is an image, if none in particular; what is no name is none.
            return "several" in error.message
    return True


def _is_archive(path: Path) -> bool:
    from builder.context import looks_like_archive

    try:
        with path.open("rb") as stream:
            return looks_like_archive(stream.read(512))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _request(meant: Meant, given: Given, around: Surroundings) -> BuildRequest:
    """The build that would be, as far as lint has to know it."""
    from builder.cli.build import build_args, named_context
    from builder.model import BuildRequest

    for flag in _OF_IMAGES:
        if given.has(flag):
            raise UsageError(
                f"--{flag} is about an image, and {meant.context} is a folder", hint="pybuild build --lint"
            )
    return BuildRequest(
        context=meant.context,
        file=meant.file,
        build_args=build_args(given.all("build-arg"), around.environ),
        build_contexts=tuple(named_context(text) for text in given.all("build-context")),
        ignore_file=given.one("ignorefile"),
    )


def _neighbour(path: Path) -> str:
    from grammar.suggest import did_you_mean

    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _settings(given: Given, folder: Path, known: Known, around: Surroundings) -> Settings:
    """Configuration, and the flags above it. SettingsError for what can not be read."""
    from builder.lint.settings import Settings, overlaid

    chosen = Path(given.one("config")) if given.has("config") else None
    return overlaid(
        configured(folder, chosen, known, around) or Settings(),
        known,
        select=_names(given, "select"),
        ignore=_names(given, "ignore"),
        severities=[text for each in given.all("severity") for text in each.split(",")],
        fail_on=given.one("fail-on"),
    )


def _names(given: Given, flag: str) -> list[str]:
    return [name.strip() for text in given.all(flag) for name in text.split(",") if name.strip()]


# ---------------------------------------------------------------- looking


def _text_findings(
    request: BuildRequest, settings: Settings, known: Known, around: Surroundings
) -> tuple[list[Finding], Glance]:
    """What there is to say of a build file, the mistakes that keep it from being built among it."""
    import tempfile

    from builder.lint.itself import BROKEN
    from builder.model import Finding, Severity
    from builder.survey import glance
    from grammar.source import DockerfileError

    unread: list[Finding] = []
    try:
        with contexts_of(request, around) as contexts:
            seen = glance(request, contexts)
    except DockerfileError as error:
        if request.file == "-":
            raise  # which can be read once only
        # The ignore file is broken, which keeps nobody from looking at the Dockerfile.
        unread = [Finding(BROKEN, error.message, error.span, error.source, error.hint, Severity.ERROR)]
        with (
            tempfile.NamedTemporaryFile() as empty,
            contexts_of(replace(request, ignore_file=empty.name), around) as contexts,
        ):
            seen = glance(request, contexts)
    source = seen.subject.plan.dockerfile.source
    broken = unread + [
        Finding(BROKEN, failure.message, failure.span, failure.source or source, failure.hint, Severity.ERROR)
        for failure in seen.failures
    ]
    shell, program = _shellcheck(seen, settings, around)
    looked = {finding.rule for finding in shell} | {"ShellCheck"} if program else set()
    return [*broken, *judged(seen, settings, known, shell, looked)], seen


def _shellcheck(seen: Glance, settings: Settings, around: Surroundings) -> tuple[list[Finding], str]:
    """What shellcheck finds, and where it lies; nothing where there is none, or nobody wants it."""
    import shutil

    from builder.lint.settings import SHELLCHECK

    wanted = settings.runs(SHELLCHECK) or any(name.startswith("SC") for name in settings.select or ())
    program = shutil.which("shellcheck", path=around.environ.get("PATH", ""))
    if program is None or not wanted or not settings.shellcheck:
        return [], ""
    import tempfile

    from builder.lint.running import runs_of
    from builder.shellcheck import findings

    with tempfile.TemporaryDirectory(prefix="pybuild-lint-") as folder:
        runs = runs_of(seen.subject)
        return findings(program, runs, seen.subject.plan.dockerfile.source, Path(folder)), program


def _lint_image(
    image: str,
    settings: Settings,
    limits: Budget,
    known: Known,
    form: str,
    given: Given,
    around: Surroundings,
) -> int:
    """Look into the layers of an image that has no build file, and tell."""
    from builder.bases import resolve
    from builder.cli.opened import open_store
    from builder.inspection import subject_of
    from builder.lint import layers
    from builder.lint.efficiency import efficiency
    from builder.lint.settings import judge
    from builder.platforms import normal_platform
    from cache.oci import host_platform

    with open_store(given, around.environ) as store, store.lease():
        named = {image: image} if "://" in image else {}
        found = resolve(image, normal_platform(host_platform()), named, store) if named else store.image(image)
        assert found is not None, "only FROM knows scratch"
        subject = subject_of(found, store, base=given.one("base"), budget=limits)
        raw = layers.examine(subject)
        shipped = efficiency(subject)
    demanded = [rule.name for rule in layers.RULES if rule.demanded]
    findings = judge(raw, settings, None, ran=known.rules, known=known, always=demanded)
    title = image.partition("://")[2] or image
    report = replace(_report(title, findings, known), shipped=shipped.shipped, visible=shipped.visible)
    _write(report, form, given, around, shipped)
    return int(settings.fails(findings))


# ---------------------------------------------------------------- telling


def _report(subject: str, found: Sequence[Finding], known: Known) -> Report:
    from builder.cli.about import version_text
    from builder.lint.formats import Report, pages_of

    return Report(subject, tuple(found), pages_of(known.rules.values()), version_text())


def _write(report: Report, form: str, given: Given, around: Surroundings, shipped: Efficiency | None = None) -> None:
    """The findings to -o, else to standard output; what they amount to, for people, to standard error."""
    from builder.lint.formats import FORMATS

    target = given.one("output")
    to_file = bool(target) and target != "-"
    if form == "text":
        colour = not to_file and around.colour(around.stdout)
        text = _as_text(report, shipped, colour=colour)
    else:
        text = FORMATS[form](report)
    if to_file:
        try:
            Path(target).write_bytes(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise UsageError(f"--output {target}: {error.strerror}") from None
        print(_summary(report), file=around.stderr)
    elif text:
        around.say(text.rstrip("\n"))


def _as_text(report: Report, shipped: Efficiency | None, *, colour: bool) -> str:
    from builder.terminal import render_efficiency, render_finding

    parts = [render_finding(finding, colour=colour) for finding in report.findings]
    if shipped is not None:
        parts.append(render_efficiency(shipped, colour=colour))
    return "\n".join([*parts, _summary(report) + "\n"])


def _summary(report: Report) -> str:
    from builder.terminal import printable

    counts = []
    for word, plural in (("error", "errors"), ("warning", "warnings"), ("info", "notes")):
        count = sum(finding.severity.value == word for finding in report.findings)
        if count:
            one = {"info": "note"}.get(word, word)
            counts.append(f"{count} {one if count == 1 else plural}")
    return f"{printable(report.subject)}: {', '.join(counts) or 'nothing to say'}"


def _table(known: Known) -> str:
    """Every rule in a line; `off` is one that has to be selected."""
    from builder.lint import RULES
    from builder.lint.formats import pages_of
    from builder.lint.layers import RULES as OF_LAYERS
    from builder.terminal import columns

    off = known.optional | {rule.name for rule in RULES if rule.experimental}
    layers = {rule.name for rule in OF_LAYERS}
    rows = [("RULE", "SEVERITY", "LOOKS AT", "ALSO", "WHAT IT ASKS FOR")]
    for page in pages_of(known.rules.values()).values():
        level = "off" if page.name in off else page.severity.value
        where = "layers" if page.name in layers else "text"
        rows.append((page.name, level, where, " ".join(page.aliases), " ".join(page.summary.rstrip(".").split())))
    return columns(rows)


def _explained(name: str, known: Known) -> str:
    """The page of a rule, or of each that another linter's name stands for."""
    from builder.lint.formats import pages_of
    from builder.lint.settings import WITHOUT_RULE, SettingsError

    try:
        names = known.resolve(name)
    except SettingsError as error:
        raise UsageError(error.message, hint=error.hint) from None
    pages = [page for page in pages_of(known.rules.values()).values() if page.name in names]
    if not pages:
        reason = WITHOUT_RULE.get(name.upper()) or f"it is shellcheck's: https://www.shellcheck.net/wiki/{name.upper()}"
        return f"{name.upper()} is no rule of pybuild's: {reason}"
    return "\n\n".join(_page(page) for page in pages)


def _page(page: Page) -> str:
    lines = [f"{page.name} ({page.severity.value})"]
    if page.aliases:
        lines[0] += f", also {', '.join(page.aliases)}"
    lines += ["", page.text]
    if page.url:
        lines += ["", page.url]
    return "\n".join(lines)

"""`pybuild lint`: what is wrong with a build file, told before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.lint import Rule
    from builder.lint.formats import Page, Report
    from builder.lint.settings import Known, Settings
    from builder.model import BuildRequest, Finding
    from builder.survey import Glance

LINT = Command(
    name="lint",
    usage="[OPTIONS] [PATH]",
    summary="Say what is wrong with a Dockerfile. Nothing is built, and no base image is needed.",
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
        Flag("explain", "print a rule's page", value="RULE"),
        Flag("rules", "list the rules"),
    ),
    notes="""\
PATH is a context folder, or a Dockerfile; the current folder when it is left out.

# pybuild: ignore=RULE,RULE reason       above an instruction, or above the first one for the whole file
# hadolint ignore=DL3008                 and # check=skip=RULE count, too
[tool.pybuild.lint] in pyproject.toml, or [lint] in .pybuild.toml, up to the repository's root: select, ignore,
severity, fail-on, trusted-registries, required-labels, strict-labels, shellcheck.

Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 wrong command line or configuration.""",
)  # fmt: skip


def lint(given: Given, around: Surroundings) -> int:
    """Look, and tell."""
    from builder.lint.formats import formats
    from builder.lint.settings import Known, SettingsError

    rules = _rules()
    known = Known(rules, (rule.name for rule in rules if rule.optional))
    if given.on("rules"):
        around.say(_table(rules))
        return 0
    if given.has("explain"):
        around.say(_explained(given.one("explain"), known))
        return 0
    form = given.one("format", "text")
    if form not in formats():
        from grammar.suggest import did_you_mean

        hint = did_you_mean(form, formats()) or f"one of {', '.join(formats())}"
        raise UsageError(f"--format={form} is not known", hint=hint)
    request = _request(given, around)
    try:
        settings = _settings(given, _folder(request), known)
    except SettingsError as error:
        raise UsageError(error.message, hint=error.hint) from None
    found, glance = _text_findings(request, settings, known, around)
    report = _report(glance.subject.plan.dockerfile.source.name, found, known)
    _write(report, form, given, around)
    return int(settings.fails(found))


def _rules() -> tuple[Rule, ...]:
    """Every rule that may be named."""
    from builder.lint import every

    return every()


# ---------------------------------------------------------------- what is meant


def _request(given: Given, around: Surroundings) -> BuildRequest:
    """The build that would be, as far as lint has to know it. UsageError when there is nothing to look at."""
    from builder.cli.build import build_args, named_context
    from builder.model import BuildRequest

    word, file = given.words[0] if given.words else ".", given.one("file")
    if not word:
        raise UsageError("the path is empty", hint="`.` is the current folder")
    path = Path(word)
    if word != "-" and not path.is_dir():
        if not path.exists():
            raise UsageError(f"there is no folder or Dockerfile {word}", hint=_neighbour(path))
        if file:
            raise UsageError(f"{word} is a file, and -f names another one", hint="leave out one of them")
        word, file = str(path.parent), word
    return BuildRequest(
        context=word,
        file=file,
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


def _folder(request: BuildRequest) -> Path:
    return Path() if request.context == "-" else Path(request.context)


def _settings(given: Given, folder: Path, known: Known) -> Settings:
    """Configuration, and the flags above it. SettingsError for what can not be read."""
    from builder.lint.settings import Settings, overlaid

    chosen = Path(given.one("config")) if given.has("config") else None
    return overlaid(
        _configured(folder, chosen, known) or Settings(),
        known,
        select=_names(given, "select"),
        ignore=_names(given, "ignore"),
        severities=[text for each in given.all("severity") for text in each.split(",")],
        fail_on=given.one("fail-on"),
    )


def _names(given: Given, flag: str) -> list[str]:
    return [name.strip() for text in given.all(flag) for name in text.split(",") if name.strip()]


def _configured(folder: Path, chosen: Path | None, known: Known) -> Settings | None:
    """The nearest settings from a folder upwards to its repository's root."""
    from builder.lint.settings import FILES, read_config

    if chosen is not None:
        found = read_config(_text(chosen), str(chosen), known)
        if found is None:
            raise UsageError(f"{chosen} has no settings of pybuild lint", hint="[tool.pybuild.lint], or [lint]")
        return found
    here = folder.resolve()
    for each in (here, *here.parents):
        for name in FILES:
            path = each / name
            if path.is_file():
                found = read_config(_text(path), os.path.relpath(path), known)
                if found is not None:
                    return found
        if (each / ".git").exists():
            break
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="--config names the file with settings") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8", hint="TOML is") from None


# ---------------------------------------------------------------- looking


def _text_findings(
    request: BuildRequest, settings: Settings, known: Known, around: Surroundings
) -> tuple[list[Finding], Glance]:
    """What there is to say of a build file, the mistakes that keep it from being built among it."""
    from builder.context import open_contexts
    from builder.lint import RULES, look
    from builder.lint.itself import BROKEN
    from builder.lint.settings import judge
    from builder.model import Finding, Severity
    from builder.survey import glance

    with open_contexts(
        request.context,
        request.file,
        around.stdin,
        named=request.build_contexts,
        ignore_file=request.ignore_file,
    ) as contexts:
        seen = glance(request, contexts)
    source = seen.subject.plan.dockerfile.source
    broken = [
        Finding(BROKEN, failure.message, failure.span, failure.source or source, failure.hint, Severity.ERROR)
        for failure in seen.failures
    ]
    found, ran = look(seen.subject, settings, seen.checks)
    shell, program = _shellcheck(seen, settings, around)
    errors = [rule.name for rule in RULES] if seen.checks.error else []
    looked = ran | ({finding.rule for finding in shell} | {"ShellCheck"} if program else set())
    judged = judge([*found, *shell], settings, seen.subject.plan.dockerfile, ran=looked, known=known, errors=errors)
    return [*broken, *judged], seen


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


# ---------------------------------------------------------------- telling


def _report(subject: str, found: Sequence[Finding], known: Known) -> Report:
    from builder.cli.about import version_text
    from builder.lint.formats import Report, pages_of

    return Report(subject, tuple(found), pages_of(known.rules.values()), version_text())


def _write(report: Report, form: str, given: Given, around: Surroundings) -> None:
    """The findings to -o, else to standard output; what they amount to, for people, to standard error."""
    from builder.lint.formats import FORMATS

    target = given.one("output")
    to_file = bool(target) and target != "-"
    if form == "text":
        colour = not to_file and around.colour(around.stdout)
        text = _as_text(report, colour=colour)
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


def _as_text(report: Report, *, colour: bool) -> str:
    from builder.terminal import render_finding

    return (
        "\n".join([render_finding(finding, colour=colour) for finding in report.findings] + [_summary(report)]) + "\n"
    )


def _summary(report: Report) -> str:
    from builder.terminal import printable

    counts = []
    for word, plural in (("error", "errors"), ("warning", "warnings"), ("info", "notes")):
        count = sum(finding.severity.value == word for finding in report.findings)
        if count:
            one = {"info": "note"}.get(word, word)
            counts.append(f"{count} {one if count == 1 else plural}")
    return f"{printable(report.subject)}: {', '.join(counts) or 'nothing to say'}"


def _table(rules: Sequence[Rule]) -> str:
    from builder.lint.formats import pages_of
    from builder.terminal import columns

    off = {rule.name for rule in rules if rule.optional or rule.experimental}
    rows = [("RULE", "SEVERITY", "ALSO", "WHAT IT ASKS FOR")]
    for page in pages_of(rules).values():
        level = "off" if page.name in off else page.severity.value
        rows.append((page.name, level, " ".join(page.aliases), " ".join(page.summary.split())))
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

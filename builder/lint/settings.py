"""Which rules count, how bad their findings are, and what fails: configuration, flags and comments.

    settings = read_config(text, "pyproject.toml", known)       [tool.pybuild.lint], [lint] of .pybuild.toml
    judge(found, settings, subject, ran=names, known=known)     what of the findings is to be told

`Known` are all rules that may be named, those on the layers too; names of other linters stand for ours. `judge` is the
one door: it takes what any rules found, applies settings and comments, and adds what is wrong with the comments. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from builder.lint.subject import Options
from builder.model import Budget, Finding, Severity
from grammar.suggest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from grammar.instructions import Dockerfile, Instruction
    from grammar.source import Source, Span

UNUSED: Final = "UnusedSuppression"
SHELLCHECK: Final = "ShellCheck"
"""The name that stands for all that shellcheck says."""

WITHOUT_RULE: Final = {
    "DL1001": "comments that suppress nothing are UnusedSuppression",
    "DL3011": "a port that is none is an error of the build itself",
    "DL3021": "several sources without a folder are an error of the build itself",
    "DL3023": "a stage that copies from itself is an error of the build itself",
    "DL3043": "FROM, MAINTAINER and ONBUILD behind ONBUILD are errors of the build itself",
    "DL3061": "what stands in front of FROM is an error of the build itself",
}
"""What hadolint has a rule for and this linter has not, with the reason: to be named without harm."""

_LEVELS: Final = {severity.value: severity for severity in Severity} | {"style": Severity.INFO}
_SHELLCHECK_CODE: Final = re.compile(r"SC[0-9]{4}\Z")
_COMMENT: Final = re.compile(r"[ \t]*#[ \t]*(.*?)[ \t]*\Z")
_NAMES: Final = r"([A-Za-z][A-Za-z0-9_-]*(?:[ \t]*,[ \t]*[A-Za-z][A-Za-z0-9_-]*)*)"
_OURS: Final = re.compile(rf"pybuild[ \t]*:[ \t]*ignore[ \t]*=[ \t]*{_NAMES}(?:[ \t]+(.*))?\Z")
_OURS_BEGIN: Final = re.compile(r"pybuild[ \t]*:")
_HADOLINT: Final = re.compile(rf"hadolint[ \t]+(global[ \t]+)?ignore[ \t]*=[ \t]*{_NAMES}")
_CHECK: Final = re.compile(r"check[ \t]*=[ \t]*(\S+)", re.IGNORECASE)

FILES: Final = (".pybuild.toml", "pyproject.toml")
"""Where settings may stand, in the order in which one folder is looked at."""


class Named(Protocol):
    """What every rule has, be it on the syntax or on the layers."""

    @property
    def name(self) -> str:
        """Its own, which never changes."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """What other linters call it."""
        ...

    @property
    def severity(self) -> Severity:
        """How bad its findings are when nobody says otherwise."""
        ...


class SettingsError(ValueError):
    """A setting can not be read. message: one sentence; hint: what to do, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Known:
    """All rules that may be named, by their names and those that other linters have for them, in any case."""

    def __init__(self, rules: Iterable[Named], optional: Iterable[str] = ()) -> None:
        self.rules: dict[str, Named] = {rule.name: rule for rule in rules}
        self.optional = frozenset(optional)
        self._names: dict[str, set[str]] = {}
        for rule in self.rules.values():
            for name in (rule.name, *rule.aliases):
                self._names.setdefault(name.lower(), set()).add(rule.name)

    def resolve(self, name: str) -> frozenset[str]:
        """The rules that a name stands for. SettingsError, with the nearest name, when there is none."""
        if name.lower() == "all":
            return frozenset({*self.rules, SHELLCHECK})
        if name.lower() == "default":
            return frozenset({*self.rules, SHELLCHECK}) - self.optional
        found = self._names.get(name.lower())
        if found:
            return frozenset(found)
        if name.upper() in WITHOUT_RULE:
            return frozenset()
        if _SHELLCHECK_CODE.match(name.upper()):
            return frozenset({name.upper()})
        if name.lower() == SHELLCHECK.lower():
            return frozenset({SHELLCHECK})
        aliases = {alias for rule in self.rules.values() for alias in rule.aliases}
        meant = nearest(name, [*self.rules, *sorted(aliases), SHELLCHECK], ignore_case=True)
        raise SettingsError(
            f"there is no rule {name}", f"did you mean {meant}?" if meant else "pybuild lint --rules lists them"
        )

    def resolve_all(self, names: Iterable[str]) -> frozenset[str]:
        """The rules that any of these names stands for."""
        return frozenset(rule for name in names for rule in self.resolve(name))


class Settings(Struct, frozen=True):
    """What counts. select: the only rules that run, None for those that run by default. ignore: these do not.

    severities: of rules that are worse or better than they think. fail_on: the mildest finding that fails; None for
    never. options: what rules are told. shellcheck: it is asked, where there is one. limits: sizes in bytes that an
    image may have, by the names of their flags: max-size, max-layer, max-waste.
    """

    select: frozenset[str] | None = None
    ignore: frozenset[str] = frozenset()
    severities: tuple[tuple[str, Severity], ...] = ()
    fail_on: Severity | None = Severity.WARNING
    options: Options = Options()
    shellcheck: bool = True
    limits: tuple[tuple[str, str], ...] = ()

    def runs(self, rule: str, optional: frozenset[str] = frozenset()) -> bool:
        """Whether a rule counts. optional: those that have to be asked for."""
        group = SHELLCHECK if _SHELLCHECK_CODE.match(rule) else rule
        if rule in self.ignore or group in self.ignore:
            return False
        if self.select is not None:
            return rule in self.select or group in self.select
        return rule not in optional

    def severity(self, finding: Finding) -> Severity:
        """How bad a finding is."""
        table = dict(self.severities)
        group = SHELLCHECK if _SHELLCHECK_CODE.match(finding.rule) else finding.rule
        return table.get(finding.rule) or table.get(group) or finding.severity

    def fails(self, findings: Iterable[Finding]) -> bool:
        """Whether one of these findings, as `judge` returned them, is bad enough."""
        if self.fail_on is None:
            return False
        order = list(Severity)
        return any(order.index(finding.severity) <= order.index(self.fail_on) for finding in findings)


# ---------------------------------------------------------------- configuration


def level(text: str) -> Severity:
    """`error`, `warning`, `info`. SettingsError for anything else."""
    found = _LEVELS.get(text.lower())
    if found is None:
        raise SettingsError(f"{text!r} is no severity", "it is error, warning or info")
    return found


def threshold(text: str) -> Severity | None:
    """`error`, `warning`, `info`, or `never`, which is None. SettingsError for anything else."""
    if text.lower() in {"never", "none"}:
        return None
    try:
        return level(text)
    except SettingsError:
        raise SettingsError(f"{text!r} is no threshold", "it is error, warning, info or never") from None


def read_config(text: str, name: str, known: Known) -> Settings | None:
    """The settings of a configuration file, None when it has none.

    `.pybuild.toml` has them in `[lint]`, anything else in `[tool.pybuild.lint]`. SettingsError, with the file's name,
    for what is no TOML, for unknown keys and rules, and for values of another type.
    """
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{name}: {error}", "it is read as TOML: https://toml.io") from None
    own = name.rpartition("/")[2] == FILES[0]
    if own:
        _only_keys(document, ("lint",), name, "")
    path = ("lint",) if own else ("tool", "pybuild", "lint")
    table: object = document
    for depth, key in enumerate(path):
        if not isinstance(table, dict):
            raise SettingsError(f"{name}: {'.'.join(path[:depth])} is no table")
        if depth == 2:
            _only_keys(table, ("lint",), name, "tool.pybuild")
        if key not in table:
            return None
        table = table[key]
    where = ".".join(path)
    if not isinstance(table, dict):
        raise SettingsError(f"{name}: {where} is no table", f"write [{where}]")
    try:
        return _settings(table, known, name, where)
    except SettingsError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise SettingsError(message, error.hint) from None


_KEYS: Final = (
    "select", "ignore", "severity", "fail-on", "trusted-registries", "required-labels", "strict-labels", "shellcheck",
    "max-size", "max-layer", "max-waste",
)  # fmt: skip
LIMITS: Final = ("max-size", "max-layer", "max-waste")
LABEL_TYPES: Final = ("text", "url", "rfc3339", "semver", "spdx", "hash", "email")


def _settings(table: Mapping[str, object], known: Known, name: str, where: str) -> Settings:
    _only_keys(table, _KEYS, name, where)
    severities: list[tuple[str, Severity]] = []
    for rule, text in _table(table, "severity").items():
        if not isinstance(text, str):
            raise SettingsError(f"severity of {rule} is no string", 'write RULE = "error"')
        severities += [(each, level(text)) for each in sorted(known.resolve(rule))]
    labels = []
    for label, kind in _table(table, "required-labels").items():
        if kind not in LABEL_TYPES:
            raise SettingsError(f"label {label} has the unknown type {kind!r}", f"one of {', '.join(LABEL_TYPES)}")
        labels.append((label, str(kind)))
    fail_on: Severity | None = Severity.WARNING
    if "fail-on" in table:
        if not isinstance(table["fail-on"], str):
            raise SettingsError("fail-on is no string", 'write fail-on = "error"')
        fail_on = threshold(table["fail-on"])
    limits = []
    for key in LIMITS:
        if key in table:
            if not isinstance(table[key], str | int) or isinstance(table[key], bool):
                raise SettingsError(f"{key} is no size", f'write {key} = "500MB"')
            limits.append((key, str(table[key])))
    return Settings(
        select=known.resolve_all(_strings(table, "select")) if "select" in table else None,
        ignore=known.resolve_all(_strings(table, "ignore")),
        severities=tuple(severities),
        fail_on=fail_on,
        options=Options(
            registries=tuple(_strings(table, "trusted-registries")),
            labels=tuple(labels),
            only_labels=_truth(table, "strict-labels", default=False),
        ),
        shellcheck=_truth(table, "shellcheck", default=True),
        limits=tuple(limits),
    )


def _only_keys(table: Mapping[str, object], keys: Sequence[str], name: str, where: str) -> None:
    for key in table:
        if key not in keys:
            meant = nearest(key, keys)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(keys)}"
            raise SettingsError(f"{name}: there is no setting {f'{where}.{key}' if where else key}", hint)


def _strings(table: Mapping[str, object], key: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SettingsError(f"{key} is no list of strings", f'write {key} = ["...", "..."]')
    return value


def _table(table: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise SettingsError(f"{key} is no table", f"write {key} = {{ ... }}")
    return value


def _truth(table: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise SettingsError(f"{key} is neither true nor false")
    return value


_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def budget(settings: Settings, given: Budget) -> Budget:
    """What an image may take: as the flags say, else as the configuration does. SettingsError for what is no size."""
    limits: dict[str, int] = {}
    percent: float | None = None
    for key, text in settings.limits:
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([bkmgt]?)(?:i?b)?|(%))", text.strip().lower())
        if found is None or (found[3] and key != "max-waste"):
            raise SettingsError(f"{key} = {text!r} is no size", 'such as "500m"; max-waste also "5%"')
        if found[3]:
            percent = float(found[1])
        else:
            limits[key.replace("-", "_")] = int(float(found[1]) * _UNITS[found[2] or ""])
    chosen = {name: getattr(given, name) for name in ("max_size", "max_layer")}
    waste = given.max_waste is not None or given.waste_percent is not None
    return Budget(
        **{name: limits.get(name) if value is None else value for name, value in chosen.items()},
        max_waste=given.max_waste if waste else limits.get("max_waste"),
        waste_percent=given.waste_percent if waste else percent,
    )


def overlaid(
    settings: Settings,
    known: Known,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    severities: Iterable[str] = (),
    fail_on: str = "",
) -> Settings:
    """What a command line adds: its select and fail_on replace, the rest is added. SettingsError as `read_config`."""
    chosen = tuple(select)
    table = dict(settings.severities)
    for text in severities:
        name, sign, value = text.partition("=")
        if not sign:
            raise SettingsError(f"{text!r} has no level", "write RULE=error, RULE=warning or RULE=info")
        table |= dict.fromkeys(known.resolve(name), level(value))
    return replace(
        settings,
        select=known.resolve_all(chosen) if chosen else settings.select,
        ignore=settings.ignore | known.resolve_all(ignore),
        severities=tuple(table.items()),
        fail_on=threshold(fail_on) if fail_on else settings.fail_on,
    )


# ---------------------------------------------------------------- comments


class Suppression(Struct, frozen=True):
    """One name in a comment that silences findings. lines: where it counts, None for everywhere.

    rules: what the name stands for; empty, with a `problem`, when nobody knows it.
    """

    name: str
    rules: frozenset[str]
    span: Span
    lines: tuple[int, int] | None = None
    problem: str = ""

    def covers(self, finding: Finding, own: Source) -> bool:
        """Whether it silences the finding."""
        group = SHELLCHECK if _SHELLCHECK_CODE.match(finding.rule) else finding.rule
        if finding.rule not in self.rules and group not in self.rules:
            return False
        if self.lines is None:
            return True
        if finding.span is None or (finding.source is not None and finding.source.name != own.name):
            return False
        return self.lines[0] <= finding.span.line <= self.lines[1]


def suppressions(dockerfile: Dockerfile, known: Known) -> list[Suppression]:
    """Every name that a comment of the file silences.

    `# pybuild: ignore=RULE,RULE reason` counts for the instruction below it, or, above the first one, for the file;
    `# hadolint ignore=` for the instruction below, `# hadolint global ignore=` for the file; `# check=skip=` as
    BuildKit has it: as a directive at the head for the file, above an instruction for that one.
    """
    source = dockerfile.source
    spans = sorted((item.span.line, item.span.end_line) for item in instructions_of(dockerfile))
    found: list[Suppression] = []
    taken = 0
    for number, line in enumerate(source.lines(1, source.text.count("\n") + 1), start=1):
        while taken < len(spans) and spans[taken][1] < number:
            taken += 1
        if taken < len(spans) and spans[taken][0] <= number:
            continue
        comment = _COMMENT.match(line)
        if comment is None:
            continue
        below = spans[taken] if taken < len(spans) else (number, number)
        span = source.line_span(number)
        text = comment[1]
        head = taken == 0
        if _OURS_BEGIN.match(text):
            ours = _OURS.match(text)
            if ours is None:
                problem = "write # pybuild: ignore=RULE[,RULE] reason"
                found.append(Suppression(text, frozenset(), span, None, problem))
                continue
            found += _named(ours[1], span, None if head else below, known)
        elif hadolint := _HADOLINT.match(text):
            found += _named(hadolint[2], span, None if hadolint[1] else below, known)
        elif check := _CHECK.match(text):
            directive = head and dockerfile.directives.check == check[1]
            for part in check[1].split(";"):
                key, _, names = part.partition("=")
                if key.strip().lower() == "skip":
                    found += _named(names, span, None if directive else below, known, lenient=True)
    return found


def _named(
    names: str, span: Span, lines: tuple[int, int] | None, known: Known, *, lenient: bool = False
) -> Iterator[Suppression]:
    for name in filter(None, (each.strip() for each in names.split(","))):
        try:
            yield Suppression(name, known.resolve(name), span, lines)
        except SettingsError as error:
            if not lenient:
                yield Suppression(name, frozenset(), span, lines, f"{error.message}: {error.hint}")


def instructions_of(dockerfile: Dockerfile) -> Iterator[Instruction]:
    """Every instruction of a file in the order of their places."""
    yield from dockerfile.global_args
    for stage in dockerfile.stages:
        yield stage.from_
        yield from stage.instructions


# ---------------------------------------------------------------- the judge


def judge(
    found: Iterable[Finding],
    settings: Settings,
    dockerfile: Dockerfile | None,
    *,
    ran: Iterable[str],
    known: Known,
    errors: Iterable[str] = (),
    always: Iterable[str] = (),
    unused: bool = True,
) -> list[Finding]:
    """Of what the rules found, what counts, with its severity; the file's order, then that of the layers.

    dockerfile: None for an image without one. ran: the names of the rules that looked, so that only a comment that
    could have silenced something is called unused. errors: rules whose findings the file itself calls errors. always:
    rules that count whatever is selected, since a flag asked for them. unused: comments that silence nothing are told.
    """
    strict, demanded = frozenset(errors), frozenset(always)
    silencing = suppressions(dockerfile, known) if dockerfile is not None else []
    used: set[int] = set()
    kept: list[Finding] = []
    chosen = dict(settings.severities)
    for finding in found:
        if finding.rule not in demanded and not settings.runs(finding.rule, known.optional):
            continue
        by = [
            number
            for number, each in enumerate(silencing)
            if dockerfile is not None and each.covers(finding, dockerfile.source)
        ]
        used.update(by)
        if not by:
            severity = settings.severity(finding)
            if finding.rule in strict and finding.rule not in chosen:
                severity = Severity.ERROR
            kept.append(replace(finding, severity=severity))
    if unused and dockerfile is not None and settings.runs(UNUSED, known.optional):
        looked = frozenset(name for name in ran if settings.runs(name, known.optional))
        idle = [_unused(each, looked, dockerfile.source) for number, each in enumerate(silencing) if number not in used]
        # What is said of a comment can be silenced for the whole file, but by no comment of its own line.
        wide = any(each.lines is None and UNUSED in each.rules for each in silencing)
        kept += [
            replace(finding, severity=settings.severity(finding))
            for finding in idle
            if finding is not None and not wide
        ]
    return sorted(kept, key=_order)


def _order(finding: Finding) -> tuple[int, int, int]:
    if finding.span is None:
        return 1 << 30, finding.layer or 0, 0
    return finding.span.line, finding.span.column, 0


def _unused(suppression: Suppression, ran: frozenset[str], source: Source) -> Finding | None:
    if suppression.problem:
        message = f"the comment silences nothing: {suppression.name}"
        return Finding(UNUSED, message, suppression.span, source, suppression.problem, Severity.INFO)
    rules = {SHELLCHECK if _SHELLCHECK_CODE.match(rule) else rule for rule in suppression.rules}
    if suppression.name.lower() == "all" or UNUSED in rules or not rules & ran:
        return None
    where = "in the file" if suppression.lines is None else "in the instruction below"
    message = f"{suppression.name} is silenced {where}, and would say nothing there"
    return Finding(UNUSED, message, suppression.span, source, "remove the comment", Severity.INFO)

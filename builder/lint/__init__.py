"""Findings about a build file before anything is built.

    run(subject, settings_of(plan))     what BuildKit's checks have to say, in the file's order
    look(subject, settings, checks)     what every rule on the syntax finds, for `settings.judge` to judge

A rule is one pure function from a `Subject` to findings; its docstring says why, with a bad and a good file, which the
tests build. `Settings` are what the file asks for with `# check=` at its head and, for one instruction, in the comments
above it; `builder.lint.settings` holds everything else that one may ask for. Stands on model, plan and handlers; the
engine knows nothing of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.lint import instructions, stages, values
from builder.lint.subject import LintStage, Options, Rule, Subject
from grammar.words import BLANKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from builder.lint import settings as given
    from builder.lint.layers import LayerRule
    from builder.model import Finding
    from grammar.instructions import Instruction

__all__ = [
    "RULES",
    "LintStage",
    "Options",
    "Rule",
    "Settings",
    "Subject",
    "every",
    "instruction_at",
    "known",
    "look",
    "run",
]

RULES = (*stages.RULES, *instructions.RULES, *values.RULES)
"""BuildKit's checks; the order is that of findings in one line."""


def every() -> tuple[Rule, ...]:
    """All rules on the syntax, BuildKit's first. A function, since a build does without most of them."""
    from builder.lint import commands, images, itself, packages, transfers

    return (
        *RULES, *images.RULES, *packages.RULES, *commands.RULES, *transfers.RULES, *itself.RULES,
    )  # fmt: skip


CHECK = "BUILDKIT_DOCKERFILE_CHECK"
"""The build argument that stands in for the file's own `# check=` line."""

_COMMENT = re.compile(r"check[ \t]*=[ \t]*(.+)", re.IGNORECASE)
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_ALL = "all"


class Settings(Struct, frozen=True):
    """Which rules run, and whether a finding is an error. A name `all` in a set stands for every rule."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    @staticmethod
    def parse(text: str) -> Settings:
        """`skip=A,B|all;error=true;experimental=A,B|all`, any of the three. ValueError says what is wrong."""
        if not text.strip(BLANKS):
            return Settings()
        from grammar.lines import check_problem  # the scanner, which a build of a known file does not load

        problem = check_problem(text.strip(BLANKS))
        if problem:
            raise ValueError(problem)
        skip: frozenset[str] = frozenset()
        experimental: frozenset[str] = frozenset()
        error = False
        for part in text.strip(BLANKS).split(";", 2):
            key, _, value = part.partition("=")
            names = frozenset(name.strip(BLANKS) for name in value.split(","))
            match key.strip(BLANKS):
                case "skip":
                    skip = names
                case "experimental":
                    experimental = names
                case _:
                    error = value.strip(BLANKS) in _TRUE
        return Settings(skip, experimental, error)

    def with_comments(self, comments: Sequence[str]) -> Settings:
        """These, and what the comments above an instruction add: the first `check=` among them; never `error`."""
        found = next((match for match in map(_COMMENT.match, comments) if match), None)
        if found is None:
            return self
        try:
            more = Settings.parse(found[1].split(" ")[0])
        except ValueError:
            return self
        return Settings(self.skip | more.skip, self.experimental | more.experimental, self.error)

    def allow(self, rule: Rule | LayerRule) -> bool:
        """Whether the rule runs."""
        if rule.experimental:
            return rule.name in self.experimental or _ALL in self.experimental
        return rule.name not in self.skip and _ALL not in self.skip


def known() -> given.Known:
    """All rules that may be named, on the syntax and on the layers."""
    from builder.lint.layers import RULES as OF_LAYERS
    from builder.lint.settings import Known

    rules = every()
    return Known((*rules, *OF_LAYERS), (rule.name for rule in rules if rule.optional))


def run(subject: Subject, settings: Settings, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """The findings of `rules`, in the order of their lines. Pure, and equal for equal arguments.

    A finding in a line whose instruction has a `# check=skip=` above it does not count.
    """
    own = subject.plan.dockerfile.source
    commented = [item for item in (*subject.plan.dockerfile.global_args, *subject.instructions()) if item.comments]
    found: list[Finding] = []
    for rule in rules:
        if not commented and not settings.allow(rule):
            continue
        for finding in rule.check(subject):
            here = settings
            if commented and finding.span is not None and finding.source is own:
                place = instruction_at(commented, finding.span.line)
                here = settings.with_comments(place.comments) if place is not None else settings
            if here.allow(rule):
                found.append(finding)
    return sorted(found, key=lambda finding: finding.span.line if finding.span else 0)


def look(
    subject: Subject, settings: given.Settings, checks: Settings, *, built: bool = False
) -> tuple[list[Finding], frozenset[str]]:
    """What every rule that counts finds, unjudged, and the names of the rules that looked.

    checks: what `# check=` asks for. built: the layers are there, so that nobody has to guess at them from the text.
    """
    from msgspec.structs import replace

    from builder.lint.running import runs_of

    subject = replace(subject, runs=runs_of(subject), options=settings.options)
    rules = every()
    optional = frozenset(rule.name for rule in rules if rule.optional)
    found: list[Finding] = []
    looked: set[str] = set()
    for rule in rules:
        if not settings.runs(rule.name, optional) or (built and rule.preview) or (subject.partial and rule.whole):
            continue
        asked = settings.select is not None and rule.name in settings.select
        if rule.experimental and not asked:
            found += run(subject, Settings(experimental=checks.experimental), (rule,))
        else:
            found += (replace(finding, severity=rule.severity) for finding in rule.check(subject))
        looked.add(rule.name)
    return found, frozenset(looked)


def instruction_at(among: Iterable[Instruction], line: int) -> Instruction | None:
    """The one of these instructions that a line belongs to."""
    return next((item for item in among if item.span.line <= line <= item.span.end_line), None)

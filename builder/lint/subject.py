"""What rules look at, and what a rule is. Nouns only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.model import Severity
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from builder.lint.running import Running
    from builder.lint.shell import Word
    from builder.model import Finding, Lowered, Plan, StagePlan, StageState
    from cache.oci import ImageConfig
    from grammar.ignore import Ignore
    from grammar.instructions import Instruction
    from grammar.source import Source

_DOCS = "https://docs.docker.com/go/dockerfile/rule/"
_BEFORE_A_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class LintStage(Struct, frozen=True):
    """One stage, lowered. base: its image's config, None for scratch, files and other stages.

    known: the base was there to be looked at; otherwise nobody can say which variables it brings along.
    """

    plan: StagePlan
    first: StageState
    lowered: tuple[Lowered, ...] = ()
    base: ImageConfig | None = None
    known: bool = True

    def steps(self) -> Iterator[tuple[StageState, Lowered]]:
        """Each lowered instruction with the state that it found."""
        state = self.first
        for lowered in self.lowered:
            yield state, lowered
            state = lowered.state


class Options(Struct, frozen=True):
    """What rules are told by the configuration.

    registries: patterns of those that bases may come from, none for any. labels: the required ones, with the type of
    their values. only_labels: no others are allowed.
    """

    registries: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    only_labels: bool = False


class Subject(Struct, frozen=True):
    """All that is known before anything is built.

    stages: the lowered ones. ignore: of the main context, if any. names: what lies in the main context's folder itself
    and is not ignored, None when nobody looked. runs: the RUNs of every stage, as `builder.lint.running` makes them.
    partial: the file has mistakes, so that something may be missing from the plan.
    """

    plan: Plan
    stages: tuple[LintStage, ...] = ()
    ignore: Ignore | None = None
    names: tuple[str, ...] | None = None
    runs: tuple[Running, ...] = ()
    options: Options = Options()
    partial: bool = False

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction of the file, needed or not, with each FROM in front of its stage's."""
        for stage in self.plan.dockerfile.stages:
            yield stage.from_
            yield from stage.instructions

    def shipped_runs(self) -> Iterator[Running]:
        """The RUNs whose layers get into an image: of stages that others only copy from, they do not."""
        shipped = self.shipped()
        return (run for run in self.runs if run.stage in shipped)

    def shipped(self) -> frozenset[int]:
        """The stages whose layers get into an image: the last one, those that nothing uses, and what they build on."""
        stages = self.plan.dockerfile.stages
        below: dict[int, int] = {}
        names: dict[str, int] = {}
        used: set[int] = set()
        for stage in stages:
            base = names.get(stage.from_.image.text.lower())
            if base is not None:
                below[stage.index] = base
                used.add(base)
            for instruction in stage.instructions:
                words = getattr(instruction, "mounts", ()) or filter(None, (getattr(instruction, "from_", None),))
                for word in words:
                    for field in word.text.split(","):
                        name = field.partition("from=")[2] if "=" in field else field
                        used |= {names[name.lower()]} if name.lower() in names else set()
                        used |= {int(name)} if name.isdecimal() else set()
            if stage.name:
                names[stage.name] = stage.index
        ends = {stage.index for stage in stages if stage.index not in used} | {stages[-1].index} if stages else set()
        found: set[int] = set()
        for end in ends:
            at: int | None = end
            while at is not None and at not in found:
                found.add(at)
                at = below.get(at)
        return frozenset(found)

    def finding(self, rule: str, message: str, span: Span, hint: str = "", source: Source | None = None) -> Finding:
        """A finding in the build file, or in another text: a trigger that comes with a base image."""
        from builder.model import Finding

        return Finding(rule, message, span, source or self.plan.dockerfile.source, hint)


class Edit(Struct, frozen=True):
    """One change of a text: what stands at `span` becomes `text`. file: empty for the build file, else its ignore file.

    An empty span is a place to insert at; a line behind the last one is the file's end.
    """

    span: Span
    text: str
    file: str = ""


class Rule(Struct, frozen=True):
    """A named check. summary: what it asks for, in a sentence. check: pure; its docstring says why, with examples.

    experimental: runs only when the file or the command line asks for it, as BuildKit has it. documented: Docker has a
    page about it. aliases: what other linters call it. optional: runs only when it is selected. preview: a guess from
    the text at what a rule on the layers knows better, so it counts only when nothing is built. whole: says nothing
    sensible of a file with mistakes. fix: the edits that mend a finding, none where there is no safe way.
    """

    name: str
    summary: str
    check: Callable[[Subject], Iterable[Finding]]
    experimental: bool = False
    documented: bool = False
    aliases: tuple[str, ...] = ()
    severity: Severity = Severity.WARNING
    optional: bool = False
    preview: bool = False
    whole: bool = False
    fix: Callable[[Subject, Finding], Iterable[Edit]] | None = None

    @property
    def url(self) -> str:
        """Docker's page about it, or empty."""
        return f"{_DOCS}{_BEFORE_A_WORD.sub('-', self.name).lower()}/" if self.documented else ""


def inserted(run: Running, word: Word, text: str) -> Iterator[Edit]:
    """The edit that puts text behind a word of a script, none where the script has no places of its own."""
    if run.pieces:
        end = run.at(word)
        yield Edit(Span(end.end_line, end.end_column, end.end_line, end.end_column), text)

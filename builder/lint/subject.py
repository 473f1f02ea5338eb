"""What rules look at, and what a rule is. Nouns only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from builder.model import Finding, Lowered, Plan, StagePlan, StageState
    from cache.oci import ImageConfig
    from grammar.ignore import Ignore
    from grammar.instructions import Instruction
    from grammar.source import Source, Span

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


class Subject(Struct, frozen=True):
    """All that is known before anything is built. stages: the lowered ones. ignore: of the main context, if any."""

    plan: Plan
    stages: tuple[LintStage, ...] = ()
    ignore: Ignore | None = None

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction of the file, needed or not, with each FROM in front of its stage's."""
        for stage in self.plan.dockerfile.stages:
            yield stage.from_
            yield from stage.instructions

    def finding(self, rule: str, message: str, span: Span, hint: str = "", source: Source | None = None) -> Finding:
        """A finding in the build file, or in another text: a trigger that comes with a base image."""
        from builder.model import Finding

        return Finding(rule, message, span, source or self.plan.dockerfile.source, hint)


class Rule(Struct, frozen=True):
    """A named check. summary: what it asks for, in a sentence. check: pure; its docstring says why, with examples.

    experimental: runs only when the file or the command line asks for it. aliases: what other linters call it.
    """

    name: str
    summary: str
    check: Callable[[Subject], Iterable[Finding]]
    experimental: bool = False
    documented: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Docker's page about it, or empty."""
        return f"{_DOCS}{_BEFORE_A_WORD.sub('-', self.name).lower()}/" if self.documented else ""

"""Findings about what is in an image's layers: which line shipped what, how many bytes, and what to write instead.

    examine(subject, settings)     what there is to say, in the order of lines and layers

A rule is one pure function from an `ImageSubject` to findings; its docstring says why, with a bad and a good file, both
of which the tests build. Nothing here reads bytes: what they say is gathered while a layer is written (`cache.traits`)
and kept with it, so that an image made of cached layers is looked at as fully as a new one.

What a base ships is not this build's doing: rules speak of own layers, and at most note what those do to the base's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from builder.lint.layers import contents, leftovers, permissions, secrets, start, waste
from builder.lint.layers.subject import ImageLayer, ImageSubject, LayerRule, Maker, Shipped, lives
from builder.model import Budget

if TYPE_CHECKING:
    from collections.abc import Iterable

    from builder.model import Finding

__all__ = [
    "BY_NAME",
    "RULES",
    "Budget",
    "ImageLayer",
    "ImageSubject",
    "LayerRule",
    "Maker",
    "Shipped",
    "examine",
    "lives",
]

RULES = (
    *leftovers.RULES,
    *waste.RULES,
    *contents.RULES,
    *secrets.RULES,
    *permissions.RULES,
    *start.RULES,
)
"""Every rule; the order is that of findings in one line."""

BY_NAME = {rule.name: rule for rule in RULES}


class Selection(Protocol):
    """Which rules run: `builder.lint.Settings` is one."""

    def allow(self, rule: LayerRule, /) -> bool:
        """Whether the rule does."""
        ...


def examine(
    subject: ImageSubject, settings: Selection | None = None, rules: Iterable[LayerRule] = RULES
) -> list[Finding]:
    """The findings of `rules`, in the order of lines, then of layers. Pure, and equal for equal arguments.

    settings: None for every rule. Rules about a limit that a flag set run in any case.
    """
    found = [
        finding
        for rule in rules
        if settings is None or rule.demanded or settings.allow(rule)
        for finding in rule.check(subject)
    ]
    return sorted(found, key=lambda finding: (finding.span.line if finding.span else 1 << 30, finding.layer or 0))

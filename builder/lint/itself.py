"""Rules about what the linter itself is told, and about files that it can not make sense of.

Their findings are made where the facts are known, by `settings.judge` and by the survey; the functions here hold the
pages, and find nothing themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.lint.subject import Rule, Subject
from builder.model import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.model import Finding

BROKEN = "DoesNotBuild"
"""The rule that a mistake of the file itself is told under."""


def unused_suppression(_: Subject) -> Iterator[Finding]:
    """A comment that silences a rule should silence something.

    Why: what was silenced is mended, or the name is mistyped; either way the comment misleads.

    Bad:
        FROM scratch
        # pybuild: ignore=WorkdirRelativePath the base has none
        WORKDIR /app

    Good:
        FROM scratch
        WORKDIR /app
    """
    yield from ()


def does_not_build(_: Subject) -> Iterator[Finding]:
    """The file must be one that can be built.

    Why: this is an error, not an opinion. The rules that look at single instructions have looked at the rest.
    """
    yield from ()


RULES = (
    Rule(
        "UnusedSuppression",
        "A comment that silences a rule should silence something",
        unused_suppression,
        severity=Severity.INFO,
    ),
    Rule(BROKEN, "The file must be one that can be built", does_not_build, severity=Severity.ERROR),
)

"""What goes wrong while building, said so that a person can act on it.

Every error knows its message, its hint and, where there is one, the place in the Dockerfile. `terminal` renders them
all; `exit_code` is what the command ends with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from grammar.source import Source, Span


class BuildError(Exception):
    """The build can not go on.

    message: one sentence without a full stop. source and span: the place in the build file, or None. hint: what to do,
    or empty. notes: further lines of context, such as a command's last output.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        span: Span | None = None,
        source: Source | None = None,
        hint: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.source = source
        self.hint = hint
        self.notes = notes

    def mask(self, secrets: Iterable[str]) -> None:
        """Put `***` where the message or the hint has one of these values, none of them empty. Idempotent."""
        for secret in sorted(secrets, key=len, reverse=True):
            self.message, self.hint = self.message.replace(secret, "***"), self.hint.replace(secret, "***")
        self.args = (self.message,)


class BuildErrors(BuildError):
    """Several independent mistakes, in the order of their places; the first one stands for all."""

    def __init__(self, errors: tuple[BuildError, ...]) -> None:
        first = errors[0]
        super().__init__(first.message, span=first.span, source=first.source, hint=first.hint, notes=first.notes)
        self.errors = errors


def raise_all(errors: Sequence[BuildError]) -> None:
    """Raise nothing for no error, the error for one, BuildErrors for several (flat, however deep)."""
    flat = tuple(one for error in errors for one in (error.errors if isinstance(error, BuildErrors) else (error,)))
    if len(flat) == 1:
        raise flat[0]
    if flat:
        raise BuildErrors(flat)


class RunError(BuildError):
    """A RUN ended with another status than 0. `status` is its exit code, 128 + n when signal n ended it."""

    def __init__(
        self,
        message: str,
        status: int,
        *,
        span: Span | None = None,
        source: Source | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, span=span, source=source, notes=notes)
        self.status = status


class UnsupportedError(BuildError):
    """What was asked for can not be had here; the hint says what would help."""


class CancelledError(BuildError):
    """The user stopped the build."""

    exit_code = 130

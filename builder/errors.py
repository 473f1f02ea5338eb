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


class gathered:  # noqa: N801 - reads as what it does: with gathered(errors)
    """A block whose BuildError goes to the end of `errors` instead of up: what comes after it may be wrong, too."""

    def __init__(self, errors: list[BuildError]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Take the error, if it is one of the build's."""
        if isinstance(error, BuildError) and not isinstance(error, CancelledError):
            self._errors.append(error)
            return True
        return False


def raise_all(errors: Sequence[BuildError]) -> None:
    """Raise nothing for no error, the error for one, BuildErrors for several: flat, in the order of their lines."""
    flat = [one for error in errors for one in (error.errors if isinstance(error, BuildErrors) else (error,))]
    if len(flat) == 1:
        raise flat[0]
    if flat:
        raise BuildErrors(tuple(sorted(flat, key=lambda error: error.span.line if error.span else 0)))


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


class DamagedError(BuildError):
    """Image data that the build was given is not what it says it is."""

    exit_code = 3


class CancelledError(BuildError):
    """The user stopped the build."""

    exit_code = 130

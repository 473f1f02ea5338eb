"""A build file's text, places in it, and the one error that parsing raises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters in one source, with what a reader needs to find it.

    Lines and columns count from 1; columns count characters, not bytes. `end_line` and `end_column` name the place
    just after the last character.
    """

    line: int
    column: int
    end_line: int
    end_column: int

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of `other`."""
        return Span(self.line, self.column, other.end_line, other.end_column)


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one build file. `name` is what messages call it, usually its path as the user gave it."""

    name: str
    text: str

    def lines(self, first: int, last: int) -> list[str]:
        """The physical lines `first` to `last` (from 1, inclusive), without their line ends."""
        return self.text.splitlines()[first - 1 : last]


class DockerfileError(Exception):
    """The build file is wrong at a known place.

    message: one sentence without a full stop. span: where. hint: what to do, or empty.
    """

    def __init__(self, message: str, span: Span, source: Source, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.source = source
        self.hint = hint


class DockerfileErrors(DockerfileError):
    """Several independent mistakes of one file, in the order of their places; the first one stands for all."""

    def __init__(self, errors: tuple[DockerfileError, ...]) -> None:
        first = errors[0]
        super().__init__(first.message, first.span, first.source, first.hint)
        self.errors = errors

"""A build file's text, places in it, and the one error that parsing raises."""

from __future__ import annotations

from msgspec import Struct


class Span(Struct, frozen=True):
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


class Source(Struct, frozen=True):
    """The text of one build file. `name` is what messages call it, usually its path as the user gave it.

    The text is as in the file, line ends and byte order mark included: here-documents keep their carriage returns.
    """

    name: str
    text: str

    @classmethod
    def decode(cls, name: str, data: bytes) -> Source:
        """From the file's bytes. What is not UTF-8 becomes lone surrogates, and the same bytes when encoded back."""
        return cls(name, data.decode("utf-8", "surrogateescape"))

    def lines(self, first: int, last: int) -> list[str]:
        """The physical lines `first` to `last` (from 1, inclusive), without their line ends and byte order mark."""
        # Only "\n" ends a line; str.splitlines() knows eight more ends, and line numbers would drift.
        lines = self.text.removeprefix("\ufeff").split("\n")[max(first - 1, 0) : last]
        return [line.rstrip("\r") for line in lines]

    def line_span(self, line: int) -> Span:
        """One physical line from its first to its last character that is not blank."""
        found = self.lines(line, line)
        text = found[0] if found else ""
        start = len(text) - len(text.lstrip())
        return Span(line, start + 1, line, max(len(text.rstrip()), start) + 1)


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

"""Physical lines to logical ones: directives, comments, continuations, here-documents, and the way back to the file.

All of this depends on the line before, so that no context-free grammar can say it; it runs in front of the grammar. A
`Scanner` hands out one logical line after the other. Whether here-documents follow a line is known only once the line
is parsed (a JSON array has none), so the parser asks for them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Final

from msgspec import Struct

from grammar.instructions import Directives, Heredoc
from grammar.source import DockerfileError, Source, Span
from grammar.words import BLANKS, WordError, split

# The buffer of BuildKit's line reader. Python could do without a limit, but a file that builds should build there, too.
LONGEST_LINE: Final = 65535

_DIRECTIVE: Final = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*\Z")
_REDIRECTION: Final = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)\Z")
_LEADING_TABS: Final = re.compile(r"^\t+", re.MULTILINE)
_QUOTES: Final = str.maketrans("", "", "'\"")


class LogicalLine(Struct, frozen=True):
    """One instruction's line: continuations joined, comments and blank lines gone.

    pieces: where in `text` each physical line begins, and the line and column that this is in the file. first, last:
    the physical lines, here-documents not counted.
    """

    text: str
    pieces: tuple[tuple[int, int, int], ...]
    first: int
    last: int
    comments: tuple[str, ...] = ()
    empty_continuations: tuple[int, ...] = ()

    def place(self, offset: int) -> tuple[int, int]:
        """The line and column of the character at `offset`."""
        index = max(bisect_right(self.pieces, offset, key=lambda piece: piece[0]) - 1, 0)
        start, line, column = self.pieces[index]
        return line, column + offset - start

    def span(self, start: int, end: int) -> Span:
        """The place in the file of `text[start:end]`. An empty range is a place between two characters."""
        line, column = self.place(start)
        if end <= start:
            return Span(line, column, line, column)
        end_line, end_column = self.place(end - 1)
        return Span(line, column, end_line, end_column + 1)


class Scanner:
    """Reads one file from top to bottom. `errors` are those that do not keep the rest from being read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.directives = Directives()
        self.errors: list[DockerfileError] = []
        self._at = 0
        self._comments: list[str] = []
        self._lines = self.source.text.removeprefix("\ufeff").split("\n")
        if self._lines[-1] == "":
            self._lines.pop()
        self._read_directives()
        escape = re.escape(self.directives.escape)
        # A doubled escape character at the end of a line is data.
        self._continuation = re.compile(rf"(?:(?<=[^{escape}])|^){escape}[ \t]*\Z")

    @property
    def trailing_comments(self) -> tuple[str, ...]:
        """The comments since the last line that was handed out."""
        return tuple(self._comments)

    def next(self) -> LogicalLine | None:
        """The next logical line, or None at the end of the file."""
        while self._at < len(self._lines):
            physical = self._take()
            body = physical.lstrip(BLANKS)
            if not body:
                continue
            if body.startswith("#"):
                self._comment(body)
                continue
            return self._join(body, len(physical) - len(body))
        return None

    def line_at(self, number: int) -> LogicalLine | None:
        """The logical line that begins on a physical one, whatever was read before: for a second look at a file."""
        self._at = number - 1
        return self.next()

    def heredocs(self, line: LogicalLine) -> tuple[tuple[Heredoc, ...], tuple[str, ...], Span | None]:
        """Read the here-documents that the line asks for.

        Returns them, their bodies as they stand in the file (leading tabs kept), and the place of the last line. Raises
        DockerfileError when one does not end; nothing is left to be read then.
        """
        found: list[Heredoc] = []
        bodies: list[str] = []
        last: Span | None = None
        for redirection, span in self._redirections(line):
            opened = len(self._lines)
            raw: list[str] = []
            while self._at < len(self._lines):
                text = self._lines[self._at]
                self._take()
                name = text.rstrip("\r\n")
                if redirection.strip_tabs:
                    name = name.lstrip("\t")
                if name == redirection.name:
                    opened = 0
                    break
                raw.append(text + "\n")
            if opened:
                hint = f"end it with a line that is {redirection.name} and nothing else"
                if any(text.strip(BLANKS) == redirection.name for text in raw):
                    hint += "; blanks around it are not allowed"
                raise DockerfileError(f"unterminated heredoc {redirection.name}", span, self.source, hint)
            last = self._line_span(self._at)
            text = "".join(raw)
            bodies.append(text)
            body = _LEADING_TABS.sub("", text) if redirection.strip_tabs else text
            found.append(
                Heredoc(
                    redirection.name,
                    body,
                    redirection.expand,
                    redirection.strip_tabs,
                    redirection.fd,
                    redirection.raw,
                    span,
                )
            )
        return tuple(found), tuple(bodies), last

    def _redirections(self, line: LogicalLine) -> list[tuple[Redirection, Span]]:
        if "<<" not in line.text:
            return []
        try:
            words = split(line.text)
        except WordError:
            return []
        found: list[tuple[Redirection, Span]] = []
        at = 0
        for word in words:
            start = line.text.find(word, at)
            at = max(start, at)
            redirection = read_redirection(word)
            if redirection is not None:
                span = line.span(start, start + len(word)) if start >= 0 else line.span(0, len(line.text))
                found.append((redirection, span))
        return found

    def _take(self) -> str:
        text = self._lines[self._at]
        self._at += 1
        # A character is at most four bytes.
        if len(text) > LONGEST_LINE // 4 and len(text.encode("utf-8", "surrogateescape")) > LONGEST_LINE:
            span = Span(self._at, 1, self._at, len(text) + 1)
            message = f"dockerfile line greater than max allowed size of {LONGEST_LINE}"
            self.errors.append(DockerfileError(message, span, self.source, "split it with continuations"))
        return text.rstrip("\r\n")

    def _comment(self, body: str) -> None:
        comment = body[1:].strip(BLANKS)
        if comment:
            self._comments.append(comment)
        else:
            self._comments.clear()

    def _join(self, body: str, indent: int) -> LogicalLine:
        first = last = self._at
        text, more = self._cut(body)
        parts = [text]
        pieces = [(0, first, indent + 1)]
        length = len(text)
        empty: list[int] = []
        while more and self._at < len(self._lines):
            physical = self._take()
            last = self._at
            trimmed = physical.lstrip(BLANKS)
            if trimmed.startswith("#"):
                continue
            if not trimmed:
                empty.append(last)
                continue
            text, more = self._cut(physical)
            pieces.append((length, last, 1))
            parts.append(text)
            length += len(text)
        comments = tuple(self._comments)
        self._comments.clear()
        return LogicalLine("".join(parts), tuple(pieces), first, last, comments, tuple(empty))

    def _cut(self, text: str) -> tuple[str, bool]:
        found = self._continuation.search(text)
        return (text[: found.start()], True) if found else (text, False)

    def _read_directives(self) -> None:
        """Directives stand above everything else, comments included; the first line that is none ends them."""
        values: dict[str, str] = {}
        shebang = bool(self._lines) and self._lines[0].startswith("#!")
        for number, physical in enumerate(self._lines[shebang:], start=1 + shebang):
            found = _DIRECTIVE.match(physical.strip(BLANKS))
            name = found[1].lower() if found else ""
            if found is None or name not in ("syntax", "escape", "check"):
                break
            # With a `#!` line in front only what other tools read from outside counts; for the file it is a comment.
            if not shebang:
                self._at = number
            if name in values:
                self._directive_error(number, f"only one {name} parser directive can be used", "remove one of them")
            elif name == "escape" and found[2] not in ("\\", "`"):
                message = f"invalid escape token '{found[2]}' does not match ` or \\"
                self._directive_error(number, message, "write # escape=` or # escape=\\")
            elif name == "escape" and shebang:
                continue
            else:
                value = found[2] if name == "escape" else found[2].split(" ")[0]
                problem = check_problem(value) if name == "check" else ""
                if problem:
                    self._directive_error(number, problem, "write # check=skip=RULE,RULE;error=true")
                values[name] = value
        self.directives = Directives(values.get("syntax", ""), values.get("escape", "\\"), values.get("check", ""))

    def _directive_error(self, number: int, message: str, hint: str) -> None:
        self.errors.append(DockerfileError(message, self._line_span(number), self.source, hint))

    def _line_span(self, number: int) -> Span:
        text = self._lines[number - 1].rstrip("\r\n")
        return Span(number, len(text) - len(text.lstrip(BLANKS)) + 1, number, len(text.rstrip(BLANKS)) + 1)


class Redirection(Struct, frozen=True):
    """`[FD]<<[-]NAME`. raw: as written."""

    name: str
    expand: bool
    strip_tabs: bool
    fd: str
    raw: str


def read_redirection(word: str) -> Redirection | None:
    """The here-document that the word asks for, or None. The name may be quoted, and is one word without quotes."""
    found = _REDIRECTION.match(word)
    if found is None or not found[3]:
        return None
    try:
        names = split(found[3], keep_quotes=False, keep_escapes=False)
        quoted = split(found[3], keep_quotes=True, keep_escapes=False)
    except WordError:
        return None
    if len(names) != 1 or len(quoted) != 1:
        return None
    # A quote that is gone was a quoting one.
    expand = _count_quotes(names[0]) == _count_quotes(quoted[0])
    return Redirection(names[0], expand, found[2] == "-", found[1], word)


def _count_quotes(text: str) -> int:
    return len(text) - len(text.translate(_QUOTES))


def check_problem(value: str) -> str:
    """What is wrong with a `check` directive's value, or empty."""
    for part in value.split(";", 2):
        name, equals, setting = part.partition("=")
        if not equals:
            return f'invalid check option "{part}"'
        if name.strip(BLANKS) not in ("skip", "experimental", "error"):
            return f'invalid check option "{name.strip(BLANKS)}"'
        # The spellings of Go's strconv.ParseBool.
        spellings = ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")
        if name.strip(BLANKS) == "error" and setting.strip(BLANKS) not in spellings:
            return f'failed to parse check option "{part}": error is true or false'
    return ""

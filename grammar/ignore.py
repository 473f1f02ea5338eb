r"""Which paths a `.dockerignore` leaves out, which line decided, and the two kinds of pattern the language has.

Pure: text and paths in, answers out. The rules are those of
https://docs.docker.com/build/concepts/context/#dockerignore-files as moby/patternmatcher has them, and not git's:
a pattern is anchored at the context's root (`foo` is not `a/foo`), a trailing slash means nothing, what matches a
directory holds for all below it, and the last line that matches decides, so that `!dir/file` brings a file back from an
ignored directory.

    *  ?  [a-z] [^a]   within one name, as Go's filepath.Match       \x   x itself
    **                 any number of names, none included

`COPY --exclude` and the patterns of `COPY --parents` are this kind as well: `Ignore.of`. The wildcards of a plain COPY
are Go's filepath.Match alone: `glob_match`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from posixpath import normpath
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from grammar.source import DockerfileError, Source
from grammar.words import BLANKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class PatternError(ValueError):
    """A pattern that is not one. message: one sentence without a full stop; offset: where in the pattern."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class Rule(Struct, frozen=True):
    """One pattern. line: its number from 1; text: as written; pattern: cleaned, without the `!` of `negated`."""

    line: int
    text: str
    pattern: str
    negated: bool


def read_lines(text: str) -> list[tuple[int, str]]:
    """The patterns of an ignore file with their line numbers: comments gone, trimmed, cleaned, leading `/` removed."""
    found: list[tuple[int, str]] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if raw.startswith("#"):
            continue
        line = raw.strip(BLANKS)
        if not line:
            continue
        negated = line.startswith("!")
        if negated:
            line = line[1:].strip(BLANKS)
        if line:
            line = clean(line)
            if len(line) > 1:
                line = line.removeprefix("/")
        found.append((number, "!" * negated + line))
    return found


class Ignore:
    """A list of patterns, compiled once. Asking about a path costs one look-up for its directory and then its name.

    Safe to use from several threads.
    """

    __slots__ = ("_exact", "_known", "_matchers", "rules")

    rules: tuple[Rule, ...]

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Raises PatternError."""
        self.rules = tuple(rules)
        # The last rule for each literal path, and all others from the last to the first.
        self._exact: dict[str, int] = {}
        self._matchers: list[tuple[int, Callable[[str], object]]] = []
        # For directories seen: the index of the last rule that matches it or one of its parents, or -1.
        self._known: dict[str, int] = {}
        for index, rule in enumerate(self.rules):
            matcher = _matcher(rule.pattern)
            if matcher is None:
                self._exact[rule.pattern] = index
            else:
                self._matchers.append((index, matcher))
        self._matchers.reverse()

    @classmethod
    def parse(cls, text: str, name: str = ".dockerignore") -> Ignore:
        """Read an ignore file's text; `name` is what messages call it. Raises DockerfileError at the wrong line."""
        source = Source(name, text)
        lines = text.split("\n")
        rules: list[Rule] = []
        for number, pattern in read_lines(text):
            try:
                found = _rules(pattern, number, lines[number - 1].rstrip("\r"))
                for rule in found:
                    _matcher(rule.pattern)
            except PatternError as error:
                span = source.line_span(number)
                hint = "a lone '!' brings nothing back; write '!' and a pattern" if pattern == "!" else ""
                raise DockerfileError(error.message, span, source, hint) from None
            rules += found
        return cls(rules)

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Ignore:
        """From patterns alone, such as those of COPY --exclude. A leading `/` is kept. Raises PatternError."""
        rules: list[Rule] = []
        for number, pattern in enumerate(patterns, start=1):
            rules += _rules(pattern, number, pattern)
        return cls(rules)

    @property
    def patterns(self) -> list[str]:
        """The patterns, cleaned, with their `!`."""
        return ["!" * rule.negated + rule.pattern for rule in self.rules]

    def match(self, path: bytes | str) -> bool:
        """Is the path, relative to the root and clean, left out? Unlike in git, it makes no difference what it is."""
        rule = self.decide(path)
        return rule is not None and not rule.negated

    def decide(self, path: bytes | str) -> Rule | None:
        """The rule that decides: the path is left out or, when it is `negated`, brought back. None: no rule matches."""
        index = self._last(_text(path))
        return self.rules[index] if index >= 0 else None

    def prunable(self, directory: bytes | str) -> bool:
        """Is the directory left out, with no later `!` line that may match below it? Then it need not be searched."""
        path = _text(directory)
        index = self._last(path)
        if index < 0 or self.rules[index].negated:
            return False
        return not any(rule.negated and _may_match_below(rule.pattern, path) for rule in self.rules[index + 1 :])

    def _last(self, path: str) -> int:
        """The index of the last rule that matches the path or one of its parents, or -1."""
        if path in ("", "."):
            return -1
        parent = path.rpartition("/")[0]
        floor = -1
        if parent:
            known = self._known.get(parent)
            floor = self._climb(parent) if known is None else known
        return self._own(path, floor)

    def _climb(self, directory: str) -> int:
        floor = -1
        end = -1
        while end < len(directory):
            end = directory.find("/", end + 1)
            if end < 0:
                end = len(directory)
            prefix = directory[:end]
            if not prefix:
                continue
            known = self._known.get(prefix)
            if known is None:
                known = self._known[prefix] = self._own(prefix, floor)
            floor = known
        return floor

    def _own(self, path: str, floor: int) -> int:
        """The index of the last rule after `floor` that matches exactly this path, or `floor`."""
        floor = max(floor, self._exact.get(path, -1))
        for index, matches in self._matchers:
            if index <= floor:
                break
            if matches(path):
                return index
        return floor


def glob_match(pattern: str, name: str) -> bool:
    """Go's filepath.Match on unix: the whole name; `*`, `?` do not match `/`. Raises PatternError."""
    return _glob(pattern).fullmatch(name) is not None


def has_wildcard(pattern: str) -> bool:
    r"""Does a COPY source have to be matched rather than looked up? Any of `*`, `?`, `[`, `\` makes it so."""
    return any(char in pattern for char in "*?[\\")


def clean(path: str) -> str:
    """Go's filepath.Clean: no doubled or trailing slashes, no `.`, no `..` that can be resolved; empty is `.`."""
    cleaned = normpath(path)
    # POSIX lets two leading slashes mean something; Go does not.
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _text(path: bytes | str) -> str:
    return path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")


def _rules(pattern: str, number: int, text: str) -> list[Rule]:
    """The rule of one pattern, or none for a blank one. Raises PatternError for a syntax that Go refuses."""
    pattern = pattern.strip(BLANKS)
    if not pattern:
        return []
    pattern = clean(pattern)
    negated = pattern.startswith("!")
    if pattern == "!":
        msg = 'illegal exclusion pattern: "!"'
        raise PatternError(msg)
    pattern = pattern[negated:]
    _glob(pattern)
    return [Rule(number, text, pattern, negated)]


def _may_match_below(pattern: str, directory: str) -> bool:
    """Could the pattern match a path below the directory? Errs on the side of yes."""
    parts = pattern.split("/")
    names = directory.split("/")
    for part, name in zip(parts, names, strict=False):
        # A class, or an escaped letter, may match a slash.
        if "**" in part or "[" in part or "\\" in part:
            return True
        if not glob_match(part, name):
            return False
    return len(parts) > len(names)


# ---------------------------------------------------------------- Go's filepath.Match


@lru_cache(maxsize=512)
def _glob(pattern: str) -> re.Pattern[str]:
    """filepath.Match as a regular expression. What stands between stars is taken where it first fits, as Go does."""
    chunks: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            chunks.append([])
            at += 1
        elif char == "[":
            text, at = _glob_class(pattern, at)
            chunks[-1].append(text)
        else:
            if char == "\\":
                at += 1
                if at == len(pattern):
                    raise _bad(pattern, at - 1)
            chunks[-1].append("[^/]" if char == "?" else re.escape(pattern[at]))
            at += 1
    texts = ["".join(chunk) for chunk in chunks]
    middle = "".join(f"(?>[^/]*?{text})" for text in texts[1:-1])
    last = f"[^/]*{texts[-1]}" if len(texts) > 1 else ""
    return re.compile(texts[0] + middle + last)


def _glob_class(pattern: str, start: int) -> tuple[str, int]:
    """The class that begins at `start`, as a regular expression, and where it ends. Raises PatternError."""
    at = start + 1
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not (ranges and pattern.startswith("]", at)):
        low, at = _glob_class_char(pattern, start, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _glob_class_char(pattern, start, at + 1)
        # A range the wrong way round is valid in Go, and matches nothing.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    members = "".join(ranges)
    if not members:
        return ("(?s:.)" if negated else "(?!)"), at + 1
    return f"[{'^' * negated}{members}]", at + 1


def _glob_class_char(pattern: str, start: int, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise _bad(pattern, start)
    if pattern[at] == "\\":
        at += 1
    # A class must be closed, so something has to follow the character.
    if at + 1 >= len(pattern):
        raise _bad(pattern, start)
    return pattern[at], at + 1


def _bad(pattern: str, offset: int) -> PatternError:
    return PatternError(f"syntax error in pattern {pattern!r}", offset)


# ---------------------------------------------------------------- moby/patternmatcher

_ANY_DIRECTORIES: Final = "(.*/)?"

# Characters that are ordinary in a pattern but not in Go's regular expressions. `^` is not among them: in a pattern
# with a wildcard it means the beginning, as in BuildKit.
_ORDINARY: Final = frozenset(".+()|{}$")

_POSIX_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": "\\x00-\\x7f",
    "blank": "\\t ",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\t-\\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


@lru_cache(maxsize=512)
def _matcher(pattern: str) -> Callable[[str], object] | None:
    """A test for one path, or None when only the path that is the pattern matches. Raises PatternError."""
    regex, kind = _go_regex(pattern)
    if kind == "exact":
        return None
    if kind == "prefix":
        prefix = pattern[:-2]
        return lambda path: path.startswith(prefix)
    if kind == "suffix":
        suffix = pattern[2:]
        return lambda path: path.endswith(suffix) or (suffix[:1] == "/" and path == suffix[1:])
    return _from_go(regex, pattern).fullmatch


def _go_regex(pattern: str) -> tuple[str, str]:
    """The pattern as the regular expression that BuildKit makes of it, and which short cut it takes instead, if any.

    The expression is kept in Go's words first, since whatever stands in brackets goes through the same substitutions
    (`[*]` matches what the class `[^/]` and a bracket do); only so does every odd pattern mean what it means there.
    """
    out: list[str] = []
    kind = "exact"
    at = 0
    first = True
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern.startswith("*", at):
            at += 1
            at += pattern.startswith("/", at)
            if at < len(pattern):
                if out[-1:] != [_ANY_DIRECTORIES]:
                    out.append(_ANY_DIRECTORIES)
                kind = "regex"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "regex"
            if first:
                kind = "suffix"
        elif char in "*?":
            out.append("[^/]*" if char == "*" else "[^/]")
            kind = "regex"
        elif char in _ORDINARY:
            out.append("\\" + char)
        elif char == "\\" and at < len(pattern):
            out.append("\\" + pattern[at])
            at += 1
            kind = "regex"
        else:
            out.append(char)
            if char in "[]":
                kind = "regex"
        first = False
    return "".join(out), kind


def _from_go(regex: str, pattern: str) -> re.Pattern[str]:
    """Compile one of Go's regular expressions, of the few forms that `_go_regex` makes. Raises PatternError."""
    out: list[str] = []
    at = 0
    while at < len(regex):
        char = regex[at]
        if char == "[":
            text, at = _go_class(regex, at, pattern)
            out.append(text)
        elif char == "\\":
            text, at = _go_escape(regex, at, pattern)
            out.append(text)
        else:
            out.append(char if char in "^.*?()" else re.escape(char))
            at += 1
    try:
        return re.compile("".join(out), re.ASCII)
    except re.error:
        raise _bad(pattern, 0) from None


def _go_escape(regex: str, at: int, pattern: str, *, in_class: bool = False) -> tuple[str, int]:
    r"""`\` and what follows. Escaped letters are classes and anchors in Go's regular expressions, or not allowed."""
    char = regex[at + 1 : at + 2]
    end = at + 2
    if char in tuple("dDsSwW") or (char in tuple("bBA") and not in_class):
        return "\\" + char, end
    if char == "z" and not in_class:
        return "\\Z", end
    if char in tuple("afnrtv"):
        return "\\" + char, end
    if not char or char.isalnum() or not char.isascii():
        raise _bad(pattern, max(pattern.find("\\" + char), 0))
    return re.escape(char), end


def _go_class(regex: str, start: int, pattern: str) -> tuple[str, int]:
    at = start + 1
    negated = regex.startswith("^", at)
    at += negated
    members: list[str] = []
    while not (members and regex.startswith("]", at)):
        named = re.compile(r"\[:(\^?)(\w+):\]").match(regex, at)
        if named and named[2] in _POSIX_CLASSES and not named[1]:
            members.append(_POSIX_CLASSES[named[2]])
            at = named.end()
            continue
        low, at = _go_class_char(regex, at, pattern)
        if regex.startswith("-", at) and not regex.startswith("-]", at):
            high, at = _go_class_char(regex, at + 1, pattern)
            members.append(f"{low}-{high}")
        else:
            members.append(low)
    return f"[{'^' * negated}{''.join(members)}]", at + 1


def _go_class_char(regex: str, at: int, pattern: str) -> tuple[str, int]:
    char = regex[at : at + 1]
    if not char:
        raise _bad(pattern, max(pattern.find("["), 0))
    if char == "\\":
        return _go_escape(regex, at, pattern, in_class=True)
    return re.escape(char), at + 1

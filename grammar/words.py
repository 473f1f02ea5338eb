r"""Words of an instruction: quotes, escapes, `$name` and its many `${...}` forms, splitting at blanks.

Pure functions from a word as written and an environment to text. The language is the one of
https://docs.docker.com/reference/dockerfile/#environment-replacement as BuildKit's lexer speaks it, which is close to a
POSIX shell's but not it:

    $name ${name}            the value, or nothing
    ${name:-w} ${name-w}     w when unset or empty / when unset
    ${name:+w} ${name+w}     w when set and not empty / when set
    ${name:?m} ${name?m}     an error with message m when unset or empty / when unset
    ${name#p} ${name##p}     without the shortest / longest beginning that the pattern matches
    ${name%p} ${name%%p}     without the shortest / longest end
    ${name/p/r} ${name//p/r} the first / every match replaced

w, m, p and r may hold variables again. Patterns know `*`, `?` and `\`, no brackets. Single quotes keep everything as it
is, double quotes keep blanks, the escape character (a backslash, or a backtick where the file says so) keeps the next
character.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

# What Go's unicode.IsSpace holds for a blank; str.isspace() would add the separators 0x1c to 0x1f.
BLANKS: Final = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)

# Each `${` inside another one costs a few Python frames; nobody nests by hand as deep as this.
_DEEPEST: Final = 60

_SPECIAL_NAMES: Final = frozenset("@*#?-$!")
_NOTHING: Final[Mapping[str, str]] = {}


class WordError(ValueError):
    """A word that can not be expanded. message: one sentence without a full stop. offset: where in the word."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class Expansion(Struct, frozen=True):
    """A word, expanded. used: the names that had a value; missing: those that had none, in branches not taken too."""

    text: str
    used: frozenset[str]
    missing: frozenset[str]


def expand(word: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """The word with quotes and escapes resolved and variables replaced; one word stays one. Raises WordError."""
    if _is_plain(word, escape):
        return word
    return _Reader(word, env, escape).read()


def expand_with_names(word: str, env: Mapping[str, str], escape: str = "\\") -> Expansion:
    """As `expand`, also telling which variables the word names. Raises WordError."""
    reader = _Reader(word, env, escape)
    text = reader.read()
    return Expansion(text, frozenset(reader.used), frozenset(reader.missing))


def expand_words(word: str, env: Mapping[str, str], escape: str = "\\") -> list[str]:
    """As `expand`, then split at blanks that are neither quoted nor escaped, those in unquoted values included."""
    reader = _Reader(word, env, escape, splitter=_Splitter())
    reader.read()
    return reader.words()


def expand_heredoc(body: str, env: Mapping[str, str]) -> Expansion:
    """A here-document's body of COPY or ADD: variables are replaced, quotes are ordinary characters. Raises WordError.

    The escape character is a backslash here, whatever the file's `escape` directive says.
    """
    reader = _Reader(body, env, "\\", quotes=False)
    text = reader.read()
    return Expansion(text, frozenset(reader.used), frozenset(reader.missing))


def split(text: str, *, keep_quotes: bool = True, keep_escapes: bool = True) -> list[str]:
    """Split a command at blanks as `expand_words` does, leaving variables as they are. Raises WordError."""
    reader = _Reader(
        text, _NOTHING, "\\", splitter=_Splitter(), keep_quotes=keep_quotes, keep_escapes=keep_escapes, keep_unset=True
    )
    reader.read()
    return reader.words()


def _is_plain(word: str, escape: str) -> bool:
    return "$" not in word and "'" not in word and '"' not in word and escape not in word


class _Splitter:
    """Collects words from characters: `add` splits at blanks, `add_raw` does not."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.word: list[str] = []

    def add(self, text: str) -> None:
        for char in text:
            if char in BLANKS:
                self.flush()
            else:
                self.word.append(char)

    def add_raw(self, text: str) -> None:
        if text:
            self.word.append(text)

    def flush(self) -> None:
        if self.word:
            self.done.append("".join(self.word))
            self.word.clear()


class _Reader:
    """One pass over one word."""

    def __init__(
        self,
        text: str,
        env: Mapping[str, str],
        escape: str,
        *,
        splitter: _Splitter | None = None,
        quotes: bool = True,
        keep_quotes: bool = False,
        keep_escapes: bool = False,
        keep_unset: bool = False,
    ) -> None:
        self.text = text
        self.at = 0
        self.env = env
        self.escape = escape
        self.splitter = splitter
        self.quotes = quotes
        self.keep_quotes = keep_quotes
        self.keep_escapes = keep_escapes
        self.keep_unset = keep_unset
        self.used: set[str] = set()
        self.missing: set[str] = set()
        self.depth = 0

    def words(self) -> list[str]:
        if self.splitter is None:
            return []
        self.splitter.flush()
        return self.splitter.done

    def read(self) -> str:
        return self._until("", self.splitter, keep_escapes=self.keep_escapes)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _next(self) -> str:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        return char

    def _until(self, stop: str, splitter: _Splitter | None, *, keep_escapes: bool) -> str:
        """Text up to the unquoted character `stop`, which is consumed, or to the end when it is empty."""
        out: list[str] = []
        while self.at < len(self.text):
            char = self._peek()
            raw = True
            if char == stop:
                self.at += 1
                return "".join(out)
            if char == "$":
                piece = self._dollar()
                raw = False
            elif char == "'" and self.quotes:
                piece = self._single()
            elif char == '"' and self.quotes:
                piece = self._double(keep_escapes=keep_escapes)
            elif char == "<":
                piece = self._angle()
            elif char == self.escape:
                self.at += 1
                piece = (char if keep_escapes else "") + self._next()
            else:
                piece = self._next()
                raw = False
            out.append(piece)
            if splitter is not None:
                if raw:
                    splitter.add_raw(piece)
                else:
                    splitter.add(piece)
        if stop:
            msg = f"unexpected end of statement while looking for matching {stop}"
            raise WordError(msg, len(self.text))
        return "".join(out)

    def _single(self) -> str:
        start = self.at
        end = self.text.find("'", start + 1)
        if end < 0:
            msg = "unexpected end of statement while looking for matching single-quote"
            raise WordError(msg, start)
        self.at = end + 1
        return self.text[start : end + 1] if self.keep_quotes else self.text[start + 1 : end]

    def _double(self, *, keep_escapes: bool) -> str:
        start = self.at
        self.at += 1
        out = ['"'] if self.keep_quotes else []
        while self.at < len(self.text):
            char = self._peek()
            if char == '"':
                self.at += 1
                if self.keep_quotes:
                    out.append('"')
                return "".join(out)
            if char == "$":
                out.append(self._dollar())
                continue
            self.at += 1
            if char == self.escape:
                if keep_escapes:
                    out.append(char)
                following = self._peek()
                if not following:
                    break
                # Inside double quotes only these can be escaped; before others the escape character is itself.
                if following in ('"', "$", self.escape):
                    char = self._next()
            out.append(char)
        msg = "unexpected end of statement while looking for matching double-quote"
        raise WordError(msg, start)

    def _angle(self) -> str:
        """`<`, or `<<` with the blanks behind it: a here-document's name may stand apart and still be one word."""
        start = self.at
        self.at += 1
        if self._peek() == "<":
            self.at += 1
            while self._peek() and self._peek() in "\t\r ":
                self.at += 1
        return self.text[start : self.at]

    def _dollar(self) -> str:
        start = self.at
        self.at += 1
        if self._peek() == "{":
            self.at += 1
            return self._braces(start)
        name = self._name()
        if not name:
            return "$"
        value = self._value(name)
        if value is None:
            return f"${name}" if self.keep_unset else ""
        return value

    def _name(self) -> str:
        """The longest name from here: digits, one special character, or letters, digits and `_`; may be empty."""
        start = self.at
        if self._peek() in _SPECIAL_NAMES:
            self.at += 1
        elif self._peek().isdecimal():
            while self._peek().isdecimal():
                self.at += 1
        else:
            while self._peek().isalpha() or self._peek().isdecimal() or self._peek() == "_":
                self.at += 1
        return self.text[start : self.at]

    def _value(self, name: str) -> str | None:
        value = self.env.get(name)
        (self.missing if value is None else self.used).add(name)
        return value

    def _braces(self, start: int) -> str:
        """The rest of a `${`; `start` is where its `$` stands."""
        opening = self._peek()
        if not opening:
            msg = "syntax error: missing '}'"
            raise WordError(msg, start)
        if opening in "{}:":
            msg = "syntax error: bad substitution"
            raise WordError(msg, start)
        name = self._name()
        modifier = self._next()
        if modifier == "}":
            value = self._value(name)
            if value is None:
                return f"${{{name}}}" if self.keep_unset else ""
            return value
        if modifier == "/":
            return self._replace(name, start)
        empty_counts = modifier == ":"
        if empty_counts:
            modifier += self._next()
        kind = modifier[-1:]
        if not kind:
            msg = "syntax error: missing '}'"
            raise WordError(msg, start)
        if kind not in "-+?#%" or (empty_counts and kind in "#%"):
            msg = f"unsupported modifier ({modifier}) in substitution"
            raise WordError(msg, self.at - len(modifier))
        at = self.at
        operand = self._operand("}", start, keep_escapes=kind in "#%")
        value = self._value(name)
        if value is None and self.keep_unset:
            return f"${{{name}{modifier}{operand}}}"
        if kind in "#%":
            return _trim(value or "", operand, kind, at)
        return self._choose(name, value, kind, operand, empty_counts=empty_counts, start=start)

    def _choose(self, name: str, value: str | None, kind: str, operand: str, *, empty_counts: bool, start: int) -> str:
        given = value is not None and not (empty_counts and value == "")
        if kind == "-":
            return (value or "") if given else operand
        if kind == "+":
            return operand if given else ""
        if not given:
            reason = operand or f"is not allowed to be {'unset' if value is None else 'empty'}"
            raise WordError(f"{name}: {reason}", start)
        return value or ""

    def _operand(self, stop: str, start: int, *, keep_escapes: bool) -> str:
        self.depth += 1
        if self.depth > _DEEPEST:
            msg = f"substitutions are nested more than {_DEEPEST} deep"
            raise WordError(msg, start)
        if self.splitter is not None:
            # BuildKit's lexer keeps one buffer for all nesting levels, so the beginning of the word in front of a
            # `${name:-...}` is lost when words are split (EXPOSE): `80${X:-81}` is 81. Images depend on behaviour.
            self.splitter.word.clear()
        try:
            operand = self._until(stop, None, keep_escapes=keep_escapes)
        except WordError as error:
            if self.at >= len(self.text) and "matching" in error.message and error.message.endswith(stop):
                missing = "'/' in ${}" if stop == "/" else "'}'"
                msg = f"syntax error: missing {missing}"
                raise WordError(msg, start) from None
            raise
        self.depth -= 1
        return operand

    def _replace(self, name: str, start: int) -> str:
        every = self._peek() == "/"
        if every:
            self.at += 1
        at = self.at
        pattern = self._operand("/", start, keep_escapes=True)
        replacement = self._operand("}", start, keep_escapes=True)
        value = self._value(name)
        if value is None and self.keep_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        regex = _compile(_tokens(pattern, at), greedy=True)
        if every:
            return _replace_all(regex, value or "", replacement)
        found = regex.search(value or "")
        if value is None or found is None:
            return value or ""
        return value[: found.start()] + replacement + value[found.end() :]


# ---------------------------------------------------------------- patterns

_STAR: Final = "*"
_ANY: Final = "?"


def _tokens(pattern: str, offset: int) -> list[tuple[str, str]]:
    r"""The pattern as (kind, character) pairs; kind is `*`, `?` or empty. Raises WordError."""
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char in (_STAR, _ANY):
            # `**` matches what `*` does; one star keeps the search linear.
            if char != _STAR or tokens[-1:] != [(_STAR, "")]:
                tokens.append((char, ""))
            continue
        if char == "\\":
            following = pattern[at : at + 1]
            # `\}` and `\/` had to be written so for the substitution's own sake: the backslash is not the pattern's.
            if following not in tuple("}/*?\\"):
                msg = f"invalid pattern ({pattern}) in substitution: invalid escape '\\{following}'"
                raise WordError(msg, offset)
            char = following
            at += 1
        tokens.append(("", char))
    return tokens


def _compile(tokens: list[tuple[str, str]], *, greedy: bool) -> re.Pattern[str]:
    """A regular expression for the tokens, anchored nowhere.

    Every piece between stars is taken where it first occurs, and only the last one where it last occurs (greedy): that
    finds what backtracking through all stars would find, in linear time. A wildcard does not match a line's end.
    """
    pieces: list[list[str]] = [[]]
    for kind, char in tokens:
        if kind == _STAR:
            pieces.append([])
        else:
            pieces[-1].append("." if kind == _ANY else re.escape(char))
    texts = ["".join(piece) for piece in pieces]
    out = [texts[0]]
    for index, text in enumerate(texts[1:], start=1):
        last = index == len(texts) - 1
        out.append(f"(?>{'.*' if last and greedy else '.*?'}{text})")
    return re.compile("".join(out))


def _trim(value: str, operand: str, kind: str, offset: int) -> str:
    greedy = operand.startswith(kind)
    tokens = _tokens(operand[1:] if greedy else operand, offset)
    if kind == "#":
        found = _compile(tokens, greedy=greedy).match(value)
        return value[found.end() :] if found else value
    # The shortest end is the shortest beginning of the reversed text.
    found = _compile(tokens[::-1], greedy=greedy).match(value[::-1])
    return value[: len(value) - found.end()] if found else value


# `$$`, `${name}` and `$name` in a replacement, as Go's regexp.ReplaceAllString reads them.
_TEMPLATE: Final = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")


def _replace_all(regex: re.Pattern[str], value: str, replacement: str) -> str:
    """Every match replaced. An empty match right behind another one does not count."""
    out: list[str] = []
    copied = 0
    for found in regex.finditer(value):
        if found.end() == copied and found.start() != 0:
            continue
        out += (value[copied : found.start()], _fill(replacement, found.group()))
        copied = found.end()
    out.append(value[copied:])
    return "".join(out)


def _fill(template: str, whole: str) -> str:
    """BuildKit's `//` takes the replacement for a template of Go's regexp, in which only group 0 exists here."""

    def part(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        return "" if (found[2] or found[3]).strip("0") else whole

    return _TEMPLATE.sub(part, template)

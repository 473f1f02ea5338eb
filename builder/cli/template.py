"""Go's templates, as far as `--format` uses them: https://pkg.go.dev/text/template, with docker's functions.

    {{.Field.Inner}} {{json .}} {{index .Config.Labels "name"}} {{join .Config.Cmd " "}} {{printf "%.12s" .Id}}
    {{if .Tags}}...{{else if .Id}}...{{else}}...{{end}} {{with .Config}}...{{end}} {{range $i, $tag := .Tags}}...{{end}}
    {{.Size | upper}} {{len (index .Tags 0)}} {{$x := .Id}} {{- trimmed -}} {{/* comment */}}

Values are what JSON has. A field that a dict does not have is an error, as it is of a struct in Go; of a `Map`, one of
Go's maps with any keys, it is `<no value>`. There are no templates inside of templates (define, template, block).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Evaluate = Callable[["_Scope"], Any]
    Render = Callable[["_Scope", list[str]], None]


class Map(dict[str, Any]):
    """A value with any keys: labels, annotations."""


class Fields(dict[str, Any]):
    """A struct some fields of which are not written as JSON: `unset` has what Go has there, `[]` or `map[]`."""

    unset: Mapping[str, Any]

    def __init__(self, fields: Mapping[str, Any], unset: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.unset = unset


class NilList(list[Any]):
    """Go's nil of a list: prints as an empty one, in JSON it is null."""


class NilMap(Map):
    """Go's nil of a map."""


class TemplateError(Exception):
    """The template is wrong, or does not fit the value. message: one sentence; hint: what to do, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Template:
    """A template, read once. TemplateError for what is no template."""

    def __init__(self, text: str) -> None:
        self._render = _Reader(_pieces(text)).whole()

    def render(self, value: Any) -> str:
        """The text that the template makes of a value. TemplateError where they do not fit."""
        out: list[str] = []
        self._render(_Scope(value, {"": value}), out)
        return "".join(out)


# ---------------------------------------------------------------- text and actions


class _Piece(Struct, frozen=True):
    """Literal text, or the words of an action."""

    text: str
    words: tuple[str, ...] | None = None


_ACTION = re.compile(r"\{\{((?:\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|'(?:\\.|[^'\\\n])*'|(?!\}\})[^\"`'])*?)\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*(-)?\}\}", re.DOTALL)
_WORD = re.compile(
    r"""\s+ | "(?:\\.|[^"\\\n])*" | `[^`]*` | '(?:\\.|[^'\\\n])*'
    | [+-]?(?:0[xX][0-9a-fA-F_]+|\d[\d_]*(?:\.\d+)?)(?![\w.])
    | \$?(?:\w+)?(?:\.\w+)+ | \$\w* | \w+ | := | [.|(),=]""",
    re.VERBOSE,
)


def _pieces(text: str) -> list[_Piece]:
    """The template cut at its actions, blanks trimmed where `{{-` and `-}}` say so."""
    found: list[_Piece] = []
    at, trim = 0, False
    while (start := text.find("{{", at)) >= 0:
        match = _COMMENT.match(text, start) or _ACTION.match(text, start)
        if match is None:
            raise TemplateError("a quote is not closed" if "}}" in text[start:] else "there is {{ without }}")
        comment = match.re is _COMMENT
        inside = "" if comment else match[1]
        left = bool(match[1]) if comment else bool(re.match(r"-\s", inside))
        right = bool(match[2]) if comment else bool(re.search(r"\s-$", inside))
        found.append(_Piece(_plain(text[at:start], trim, left)))
        if not comment:
            found.append(_Piece(inside, _words(inside[1 if left else 0 : len(inside) - 1 if right else None])))
        at, trim = match.end(), right
    return [*found, _Piece(_plain(text[at:], trim, False))]


def _plain(text: str, left: bool, right: bool) -> str:
    """Literal text. As in docker's lists, a backslash with t or n is a tab or the end of a line."""
    text = text.lstrip() if left else text
    return (text.rstrip() if right else text).replace("\\t", "\t").replace("\\n", "\n")


def _words(text: str) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise TemplateError(f"{{{{{text.strip()}}}}} has {text[at]!r}, which means nothing there")
        # A blank parts `(index .a 0) .b` from `(index .a 0).b`.
        found.append(" " if match[0].isspace() else match[0])
        at = match.end()
    return tuple(found)


# ---------------------------------------------------------------- reading


class _Scope:
    """The dot and the variables of one place. A block's own variables end with it."""

    __slots__ = ("above", "dot", "names")

    def __init__(self, dot: Any, names: dict[str, Any], above: _Scope | None = None) -> None:
        self.dot = dot
        self.names = names
        self.above = above

    def inner(self, dot: Any) -> _Scope:
        return _Scope(dot, {}, self)

    def find(self, name: str) -> _Scope:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope
            scope = scope.above
        raise TemplateError(f"there is no variable ${name}")


class _Loop(Exception):
    """No error: `break` or `continue` on the way to its range."""

    def __init__(self, *, stop: bool) -> None:
        super().__init__("break or continue outside of range")
        self.stop = stop


class _Reader:
    """Pieces to a function that renders. One pass, from the outside in."""

    def __init__(self, pieces: list[_Piece]) -> None:
        self._pieces = pieces
        self._at = 0
        self._loops = 0

    def whole(self) -> Render:
        body, ended = self._block()
        if ended is not None:
            raise TemplateError(f"{{{{{' '.join(ended)}}}}} stands alone")
        return body

    def _block(self) -> tuple[Render, tuple[str, ...] | None]:
        """What stands up to the next `else` or `end`, and that one's words; None at the end of the text."""
        steps: list[Render] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            self._at += 1
            if piece.words is None:
                if piece.text:
                    steps.append(_literal(piece.text))
                continue
            words = tuple(word for word in piece.words if word != " ")
            head = words[0] if words else ""
            if head in {"end", "else"}:
                return _sequence(steps), words
            if head in {"if", "with", "range"}:
                steps.append(self._branch(head, piece))
            elif head in {"break", "continue"} and len(words) == 1:
                if not self._loops:
                    raise TemplateError(f"{{{{{head}}}}} outside of range")
                steps.append(_leave(stop=head == "break"))
            elif head in {"define", "template", "block"}:
                raise TemplateError(f"{{{{{head}}}}} is not supported", "write its text in place")
            else:
                steps.append(_action(_Expression(piece)))
        return _sequence(steps), None

    def _branch(self, head: str, piece: _Piece) -> Render:
        """`if`, `with` or `range`, up to its end."""
        question = _Expression(_Piece(piece.text, _after(piece.words or (), head)), loop=head == "range")
        self._loops += head == "range"
        body, ended = self._block()
        self._loops -= head == "range"
        other: Render = _sequence([])
        if ended is not None and ended[0] == "else":
            if len(ended) > 1:
                if ended[1] not in {"if", "with"} or head == "range":
                    raise TemplateError(f"{{{{{' '.join(ended)}}}}} does not belong to {head}")
                # `else if` is an `if` inside of the else, with one end for both.
                before = self._pieces[self._at - 1]
                inner = _Piece(before.text, _after(before.words or (), "else"))
                return _chosen(head, question, body, self._branch(ended[1], inner))
            other, ended = self._block()
        if ended != ("end",):
            raise TemplateError(f"{{{{{head}}}}} has no {{{{end}}}}")
        return _loop(question, body, other) if head == "range" else _chosen(head, question, body, other)


def _after(words: Sequence[str], head: str) -> tuple[str, ...]:
    return tuple(words[list(words).index(head) + 1 :])


def _sequence(steps: list[Render]) -> Render:
    def render(scope: _Scope, out: list[str]) -> None:
        for step in steps:
            step(scope, out)

    return render


def _literal(text: str) -> Render:
    return lambda _, out: out.append(text)


def _leave(*, stop: bool) -> Render:
    def render(_: _Scope, __: list[str]) -> None:
        raise _Loop(stop=stop)

    return render


def _action(expression: _Expression) -> Render:
    def render(scope: _Scope, out: list[str]) -> None:
        value = expression.value(scope)
        if not expression.names:
            out.append(text_of(value))

    return render


def _chosen(head: str, question: _Expression, body: Render, other: Render) -> Render:
    def render(scope: _Scope, out: list[str]) -> None:
        inner = scope.inner(scope.dot)
        value = question.value(inner)
        if not _truth(value):
            other(inner, out)
            return
        if head == "with":
            inner.dot = value
        body(inner, out)

    return render


def _loop(question: _Expression, body: Render, other: Render) -> Render:
    def render(scope: _Scope, out: list[str]) -> None:
        value = question.evaluate(scope)
        done = False
        for key, item in _items(value):
            done = True
            inner = scope.inner(item)
            inner.names.update(zip(question.names[::-1], (item, key), strict=False))
            try:
                body(inner, out)
            except _Loop as leaving:
                if leaving.stop:
                    break
        if not done:
            other(scope.inner(scope.dot), out)

    return render


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    match value:
        case None:
            return
        case list() | tuple():
            yield from enumerate(value)
        case dict():
            yield from sorted(value.items())
        case bool():
            raise TemplateError(f"range can not go over {text_of(value)}")
        case int():
            yield from ((number, number) for number in range(value))
        case _:
            raise TemplateError(f"range can not go over {text_of(value)!r}")


# ---------------------------------------------------------------- expressions


class _Expression:
    """A pipeline, perhaps with variables before it: `$x := .Id | upper`."""

    def __init__(self, piece: _Piece, *, loop: bool = False) -> None:
        self._text = piece.text.strip()
        self._words = list(piece.words or ())
        self._at = 0
        self.names: list[str] = []
        self._new = True
        self._declaration(loop=loop)
        self.evaluate = self._pipeline()
        if self._next():
            raise self._wrong(f"{self._next()} is one too many")

    def value(self, scope: _Scope) -> Any:
        """The value, which the variable gets as well."""
        value = self.evaluate(scope)
        if self.names:
            name = self.names[0]
            (scope if self._new else scope.find(name)).names[name] = value
        return value

    def _declaration(self, *, loop: bool) -> None:
        words = [word for word in self._words if word != " "]
        for sign in (":=", "="):
            if sign in words:
                left = words[: words.index(sign)]
                names = [word[1:] for word in left if word != ","]
                if not all(re.fullmatch(r"\$\w+", word) for word in left[::2]) or left[1::2] != [","] * (
                    len(left) // 2
                ):
                    raise self._wrong(f"what stands before {sign} is no variable")
                if len(names) > (2 if loop else 1) or (loop and sign == "="):
                    raise self._wrong(f"{', '.join(left[::2])} {sign} is not supported there")
                self.names, self._new = names, sign == ":="
                self._at = self._words.index(sign) + 1
                return

    def _next(self) -> str:
        """The word to come, blanks left out."""
        while self._at < len(self._words) and self._words[self._at] == " ":
            self._at += 1
        return self._words[self._at] if self._at < len(self._words) else ""

    def _wrong(self, what: str) -> TemplateError:
        return TemplateError(f"{{{{{self._text}}}}}: {what}", _HINT)

    def _pipeline(self) -> Evaluate:
        evaluate = self._command(None)
        while self._next() == "|":
            self._at += 1
            evaluate = self._command(evaluate)
        return evaluate

    def _command(self, piped: Evaluate | None) -> Evaluate:
        """A function with its arguments, the piped one last; or one operand."""
        word = self._next()
        if re.fullmatch(r"[A-Za-z_]\w*", word) and word not in _CONSTANTS:
            if word not in _FUNCTIONS:
                raise self._wrong(f"there is no function {word}")
            self._at += 1
            arguments: list[Evaluate] = []
            while self._next() not in {"", "|", ")"}:
                arguments.append(self._operand())
            if piped is not None:
                arguments.append(piped)
            return self._call(word, arguments)
        if piped is not None:
            raise self._wrong(f"a value can not be piped into {word or 'nothing'}")
        operand = self._operand()
        if self._next() not in {"", "|", ")"}:
            raise self._wrong("a value takes no argument")
        return operand

    def _call(self, name: str, arguments: list[Evaluate]) -> Evaluate:
        if name in {"and", "or"}:
            if not arguments:
                raise self._wrong(f"{name} needs an argument")
            return _lazy(name, arguments)
        function, least, most = _FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            wanted = str(least) if least == most else f"at least {least}" if most > 9 else f"{least} to {most}"
            raise self._wrong(f"{name} takes {wanted} argument" + "s" * (wanted != "1"))

        def evaluate(scope: _Scope) -> Any:
            values = [argument(scope) for argument in arguments]
            try:
                return function(*values)
            except TemplateError as error:
                raise self._wrong(error.message) from None
            except (TypeError, ValueError, AttributeError):
                raise self._wrong(f"{name} can not take {', '.join(map(_shown, values))}") from None

        return evaluate

    def _operand(self) -> Evaluate:
        word = self._next()
        self._at += 1
        if word == "(":
            evaluate = self._pipeline()
            if self._next() != ")":
                raise self._wrong("there is ( without )")
            self._at += 1
            # Fields of what stands in parentheses, without a blank between.
            if self._at < len(self._words) and self._words[self._at].startswith(".") and self._words[self._at] != ".":
                evaluate = self._fields(evaluate, self._words[self._at])
                self._at += 1
            return evaluate
        if word == ".":
            return lambda scope: scope.dot
        if word.startswith("."):
            return self._fields(lambda scope: scope.dot, word)
        if word.startswith("$"):
            name, _, rest = word[1:].partition(".")
            variable: Evaluate = lambda scope: scope.find(name).names[name]  # noqa: E731  as above
            return self._fields(variable, f".{rest}") if rest else variable
        if word in _CONSTANTS:
            constant = _CONSTANTS[word]
            return lambda _: constant
        if word in _FUNCTIONS:
            return self._call(word, [])
        value = self._constant(word)
        return lambda _: value

    def _constant(self, word: str) -> Any:
        if word[:1] == "`":
            return word[1:-1]
        if word[:1] in {'"', "'"}:
            text = re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", _unescaped, word[1:-1])
            return ord(text) if word[0] == "'" and len(text) == 1 else text
        try:
            return float(word) if "." in word and not word.startswith("0x") else int(word, 0)
        except ValueError:
            raise self._wrong(f"{word or 'an empty action'} is no value") from None

    def _fields(self, evaluate: Evaluate, path: str) -> Evaluate:
        names = path[1:].split(".")

        def follow(scope: _Scope) -> Any:
            value = evaluate(scope)
            for name in names:
                if isinstance(value, Map):
                    value = value.get(name, _ABSENT)
                elif isinstance(value, dict) and name in value:
                    value = value[name]
                elif isinstance(value, Fields) and name in value.unset:
                    value = value.unset[name]
                elif value is None or value is _ABSENT:
                    raise self._wrong(f"what should have {name} has no value")
                else:
                    hint = "it has " + ", ".join(value) if isinstance(value, dict) else ""
                    raise TemplateError(f"there is no field {name!r} in {{{{{self._text}}}}}", hint)
            return value

        return follow


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    if len(code) == 3:
        return chr(int(code, 8))
    return {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}.get(code, code)


def _lazy(name: str, arguments: list[Evaluate]) -> Evaluate:
    """`and`, `or`: the first argument that decides, else the last one."""

    def evaluate(scope: _Scope) -> Any:
        value: Any = None
        for argument in arguments:
            value = argument(scope)
            if _truth(value) == (name == "or"):
                break
        return value

    return evaluate


# ---------------------------------------------------------------- values


class _Absent:
    """What a map gives for a key that it has not."""

    def __bool__(self) -> bool:
        return False


_ABSENT = _Absent()
_CONSTANTS = {"true": True, "false": False, "nil": None}


def _truth(value: Any) -> bool:
    return bool(value)


def text_of(value: Any) -> str:
    """A value as Go prints it: `[a b]`, `map[a:b]`, `<nil>`."""
    match value:
        case None:
            return "<nil>"
        case _Absent():
            return "<no value>"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "[" + " ".join(map(text_of, value)) + "]"
        case dict():
            return "map[" + " ".join(f"{name}:{text_of(value[name])}" for name in sorted(value)) + "]"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def json_of(value: Any) -> str:
    """JSON in one line as Go writes it."""
    import json

    nothing = value is _ABSENT or isinstance(value, NilList | NilMap)
    return json.dumps(None if nothing else value, ensure_ascii=False, separators=(",", ":"))


def _shown(value: Any) -> str:
    return json_of(value)[:60]


def _index(value: Any, *keys: Any) -> Any:
    """Go's index: a key that is not there is empty, a place that is not there is an error."""
    for key in keys:
        match value, key:
            case dict(), str():
                value = value.get(key, "")
            case ((list() | tuple() | str()), int()) if not isinstance(key, bool):
                if not 0 <= key < len(value):
                    raise TemplateError(f"there is no element {key} of {len(value)}")
                value = ord(value[key]) if isinstance(value, str) else value[key]
            case _:
                raise TemplateError(f"index {_shown(key)} does not fit {_shown(value)}")
    return value


def _slice(value: Any, *ends: int) -> Any:
    if not isinstance(value, str | list):
        raise TypeError
    start, end = (*ends, len(value))[:2] if len(ends) != 1 else (ends[0], len(value))
    if not ends:
        start = 0
    if not 0 <= start <= end <= len(value):
        raise TemplateError(f"there is no part {start}:{end} of {len(value)}")
    return value[start:end]


def _length(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise TypeError
    return len(value.encode()) if isinstance(value, str) else len(value)


def _same(one: Any, other: Any) -> bool:
    def family(value: Any) -> object:
        if value is None or value is _ABSENT:
            return None
        return bool if isinstance(value, bool) else int if isinstance(value, int | float) else type(value)

    if family(one) != family(other) and None not in {family(one), family(other)}:
        raise TemplateError(f"{_shown(one)} and {_shown(other)} are of different types")
    return bool(one == other)


def _less(one: Any, other: Any) -> bool:
    _same(one, other)
    if isinstance(one, bool | dict | list) or one is None:
        raise TypeError
    return bool(one < other)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _join(items: Any, between: Any) -> str:
    if not isinstance(items, list):
        raise TypeError
    return _text(between).join(map(text_of, items))


def _title(text: Any) -> str:
    return re.sub(r"(?<![\w'])[^\W\d_]", lambda match: match[0].upper(), _text(text))


def _pad(text: Any, before: int, after: int) -> str:
    return " " * before + _text(text) + " " * after if _text(text) else ""


def _truncate(text: Any, length: int) -> str:
    return _text(text)[:length]


def _spaced(*values: Any) -> str:
    """Go's Sprint: a blank between two values that are both no text."""
    out = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            out += " "
        out += text_of(value)
    return out


_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?([a-zA-Z%])")


def _printf(form: Any, *values: Any) -> str:
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        text = _verb(verb, flags, precision, rest.pop(0))
        zero = "0" in flags and "-" not in flags and verb not in "sqv"
        return text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0), "0" if zero else " ")

    text = _VERB.sub(one, _text(form))
    extra = ", ".join(f"{_TYPES.get(type(value), 'value')}={text_of(value)}" for value in rest)
    return text + (f"%!(EXTRA {extra})" if rest else "")


_TYPES = {str: "string", int: "int", float: "float64", bool: "bool"}


def _verb(verb: str, flags: str, precision: str | None, value: Any) -> str:
    """One value by one verb of https://pkg.go.dev/fmt."""
    from builder.handlers.gotext import quoted

    number = isinstance(value, int) and not isinstance(value, bool)
    match verb:
        case "v":
            return text_of(value)
        case "s" if not isinstance(value, int | float):
            return text_of(value)[: None if precision is None else int(precision or 0)]
        case "q" if isinstance(value, str):
            return quoted(value)
        case "q" if isinstance(value, list):
            return "[" + " ".join(quoted(text_of(item)) for item in value) + "]"
        case "x" | "X" if isinstance(value, str):
            return value.encode().hex() if verb == "x" else value.encode().hex().upper()
        case "d" | "x" | "X" | "o" | "b" if number:
            return ("+" if "+" in flags and value >= 0 else "") + format(value, verb)
        case "c" if number:
            return chr(value)
        case "t" if isinstance(value, bool):
            return text_of(value)
        case "f" | "e" | "g" if isinstance(value, int | float) and not isinstance(value, bool):
            return format(float(value), f".{precision or 6 if precision is None else precision or 0}{verb}")
        case "T":
            return _TYPES.get(type(value), "map[string]interface {}" if isinstance(value, dict) else "[]interface {}")
        case _:
            return f"%!{verb}({_TYPES.get(type(value), 'value')}={text_of(value)})"


_MANY = 99
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "and": (_spaced, 1, _MANY),
    "or": (_spaced, 1, _MANY),
    "not": (lambda value: not _truth(value), 1, 1),
    "eq": (lambda one, *others: any(_same(one, other) for other in others), 2, _MANY),
    "ne": (lambda one, other: not _same(one, other), 2, 2),
    "lt": (_less, 2, 2),
    "le": (lambda one, other: _less(one, other) or _same(one, other), 2, 2),
    "gt": (lambda one, other: not _less(one, other) and not _same(one, other), 2, 2),
    "ge": (lambda one, other: not _less(one, other), 2, 2),
    "json": (json_of, 1, 1),
    "index": (_index, 1, _MANY),
    "slice": (_slice, 1, 3),
    "len": (_length, 1, 1),
    "print": (_spaced, 0, _MANY),
    "println": (lambda *values: " ".join(map(text_of, values)) + "\n", 0, _MANY),
    "printf": (_printf, 1, _MANY),
    "join": (_join, 2, 2),
    "split": (lambda text, at: _text(text).split(at) if at else list(_text(text)), 2, 2),
    "lower": (lambda text: _text(text).lower(), 1, 1),
    "upper": (lambda text: _text(text).upper(), 1, 1),
    "title": (_title, 1, 1),
    "pad": (_pad, 3, 3),
    "truncate": (_truncate, 2, 2),
}
"""name: (what it does, the fewest and the most arguments). `and` and `or` are read by `_lazy`."""

_HINT = '{{.ID}}, {{json .Config}}, {{index .Labels "x"}}, {{if .Tags}}...{{end}}, {{range .Env}}...{{end}} are known'

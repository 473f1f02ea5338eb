"""A build file's text to a `Dockerfile`: scanner, grammar, instructions; the only module that knows lark.

`parse` reads a whole file, `parse_trigger` one ONBUILD trigger out of an image's configuration. Both raise
DockerfileError with the place and, where there is one, the remedy; several independent mistakes come together in one
DockerfileErrors. Nothing here expands variables: what an expanded word must look like is checked when it is lowered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from msgspec import Struct, field

from grammar.durations import nanoseconds
from grammar.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    ExecForm,
    Expose,
    From,
    Healthcheck,
    Heredoc,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    ShellForm,
    Stage,
    Stopsignal,
    User,
    Volume,
    Word,
    Workdir,
)
from grammar.lines import LogicalLine, Scanner, read_redirection
from grammar.mounts import mount_fields
from grammar.source import DockerfileError, DockerfileErrors, Source, Span
from grammar.suggest import did_you_mean
from grammar.words import BLANKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark import Lark, Token
    from lark.exceptions import UnexpectedInput

    from grammar.instructions import AnyInstruction, Command

_KEYWORD: Final = re.compile(r"[^\t\v\f\r ]+")
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_SURROGATES: Final = re.compile("[\ud800-\udfff]")

# Flags by instruction: a bool takes true or false or no value, a list may stand several times.
_FLAGS: Final[dict[str, dict[str, str]]] = {
    "from": {"platform": "string"},
    "run": {"mount": "list", "network": "string", "security": "string"},
    "copy": {
        "from": "string",
        "chown": "string",
        "chmod": "string",
        "link": "bool",
        "parents": "bool",
        "exclude": "list",
    },
    "add": {
        "chown": "string",
        "chmod": "string",
        "link": "bool",
        "exclude": "list",
        "checksum": "string",
        "keep-git-dir": "bool",
        "unpack": "bool",
    },
    "healthcheck": {
        "interval": "string",
        "timeout": "string",
        "start-period": "string",
        "start-interval": "string",
        "retries": "string",
    },
}

# Known elsewhere, refused here; the reason is the hint.
_UNSUPPORTED_FLAGS: Final = {("run", "device"): "devices are not passed into a RUN"}

_TAKES_HEREDOCS: Final = frozenset({"run", "copy", "add"})

# What is wrong when an instruction's arguments end too early.
_TOO_FEW: Final = {
    "from": ("FROM requires either one or three arguments", "write FROM image, or FROM image AS name"),
    "copy": (
        "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        "write COPY source ... destination",
    ),
    "add": (
        "ADD requires at least two arguments, but only one was provided. Destination could not be determined",
        "write ADD source ... destination",
    ),
    "env": ("ENV requires at least one argument", "write ENV name=value"),
    "label": ("LABEL requires at least one argument", "write LABEL name=value"),
    "arg": ("ARG requires at least one argument", "write ARG name or ARG name=default"),
    "shell": ("SHELL requires at least one argument", 'write SHELL ["/bin/sh", "-c"]'),
    "volume": ("VOLUME requires at least one argument", "write VOLUME /path"),
    "expose": ("EXPOSE requires at least one argument", "write EXPOSE port, or EXPOSE port/udp"),
    "healthcheck": ("HEALTHCHECK requires at least one argument", "write HEALTHCHECK CMD command, or HEALTHCHECK NONE"),
    "onbuild": ("ONBUILD requires at least one argument", "write an instruction behind ONBUILD"),
    "user": ("USER requires exactly one argument", "write USER name, or USER name:group"),
    "workdir": ("WORKDIR requires exactly one argument", "write WORKDIR /path"),
    "stopsignal": ("STOPSIGNAL requires exactly one argument", "write STOPSIGNAL SIGTERM"),
    "maintainer": (
        "MAINTAINER requires exactly one argument",
        "use LABEL org.opencontainers.image.authors=... instead",
    ),
}


def parse(source: Source) -> Dockerfile:
    """Read a whole build file. Raises DockerfileError, or DockerfileErrors when there is more than one mistake."""
    dockerfile, errors = parse_through(source)
    if errors:
        raise errors[0] if len(errors) == 1 else DockerfileErrors(errors)
    return dockerfile


def parse_through(source: Source) -> tuple[Dockerfile, tuple[DockerfileError, ...]]:
    """What can be read of a build file, and its mistakes in the order of their places.

    With mistakes the file holds the instructions that could be read, for those who judge each by itself; what stands in
    front of any FROM, and is no ARG, then stands in a first stage from scratch.
    """
    scanner = Scanner(source)
    reader = _Reader(scanner)
    instructions: list[From | AnyInstruction] = []
    errors = scanner.errors
    after_unknown = False
    seen = False
    try:
        while (line := scanner.next()) is not None:
            seen = True
            try:
                instructions.append(reader.instruction(line, 0))
                after_unknown = False
            except _UnknownInstructionError as error:
                # A forgotten continuation makes nonsense of every line that follows; the first one is the mistake.
                if not after_unknown:
                    errors.append(error)
                after_unknown = True
            except DockerfileError as error:
                errors.append(error)
                after_unknown = False
    except _EndOfFileError as stop:
        errors.append(stop.error)
    if not seen:
        hint = "a build file begins with FROM"
        errors.append(DockerfileError("file with no instructions", Span(1, 1, 1, 1), source, hint))
    global_args, stages = _stages(instructions, source, errors)
    errors.sort(key=lambda error: (error.span.line, error.span.column))
    return Dockerfile(source, scanner.directives, global_args, stages, scanner.trailing_comments), tuple(errors)


def parse_trigger(text: str, name: str = "ONBUILD trigger") -> From | AnyInstruction:
    """Read what an image's `OnBuild` list holds: one instruction, here-documents included. Raises DockerfileError."""
    source = Source(name, text)
    scanner = Scanner(source)
    line = scanner.next()
    if line is None:
        raise DockerfileError("file with no instructions", Span(1, 1, 1, 1), source, "the trigger is empty")
    reader = _Reader(scanner)
    try:
        instruction = reader.instruction(line, 0)
    except _EndOfFileError as stop:
        raise stop.error from None
    if scanner.errors:
        raise scanner.errors[0]
    _refuse_trigger(instruction.keyword, instruction.span, source)
    more = scanner.next()
    if more is not None:
        span = more.span(0, len(more.text))
        raise DockerfileError("onbuild trigger should be a single expression", span, source)
    return instruction


def _stages(
    instructions: list[From | AnyInstruction], source: Source, errors: list[DockerfileError]
) -> tuple[tuple[Arg, ...], tuple[Stage, ...]]:
    """Sort the instructions under their FROM; what is wrong goes to `errors`."""
    global_args: list[Arg] = []
    stages: list[tuple[From, list[AnyInstruction]]] = []
    lost: list[AnyInstruction] = []
    for instruction in instructions:
        if isinstance(instruction, From):
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            global_args.append(instruction)
        else:
            if not any(error.span.line < instruction.span.line for error in errors):
                # With a mistake above, that line may have been the FROM.
                hint = "only ARG may stand in front of the first FROM"
                errors.append(DockerfileError("no build stage in current context", instruction.span, source, hint))
            lost.append(instruction)
    if lost:
        span = Span(lost[0].span.line, lost[0].span.column, lost[0].span.line, lost[0].span.column)
        scratch = From(span=span, text="", keyword=lost[0].keyword, image=Word("scratch", span))
        stages.insert(0, (scratch, lost))
    if not stages and not errors:
        span = instructions[-1].span
        errors.append(DockerfileError("dockerfile contains no stages to build", span, source, "add a FROM"))
    return tuple(global_args), tuple(Stage(index, base, tuple(rest)) for index, (base, rest) in enumerate(stages))


def _refuse_trigger(keyword: str, span: Span, source: Source) -> None:
    name = keyword.upper()
    if name == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", span, source, "write one ONBUILD")
    if name in ("FROM", "MAINTAINER"):
        hint = "every other instruction is" if name == "FROM" else "use ONBUILD LABEL"
        raise DockerfileError(f"{name} isn't allowed as an ONBUILD trigger", span, source, hint)


class _UnknownInstructionError(DockerfileError):
    """The first word of a line is no instruction."""


class _EndOfFileError(Exception):
    """A mistake that swallowed the rest of the file."""

    def __init__(self, error: DockerfileError) -> None:
        super().__init__(error.message)
        self.error = error


class _Common(TypedDict):
    """What every instruction's constructor takes."""

    span: Span
    text: str
    keyword: str
    comments: tuple[str, ...]
    empty_continuations: tuple[int, ...]


class _Statement(Struct):
    """One instruction while it is being read: its line, where its parts begin, and the grammar's terminals.

    start, arguments, end: offsets in the line's text of the keyword, of what is behind it, and of its end.
    """

    line: LogicalLine
    source: Source
    escape: str
    keyword: str
    name: str
    start: int
    arguments: int
    end: int
    flags: list[Token] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    mistake: UnexpectedInput | None = None
    heredocs: tuple[Heredoc, ...] = ()
    bodies: tuple[str, ...] = ()
    last: Span | None = None

    def common(self) -> _Common:
        return {
            "span": self.span(),
            "text": self.line.text[self.start : self.end],
            "keyword": self.keyword,
            "comments": self.line.comments,
            "empty_continuations": self.line.empty_continuations,
        }

    def span(self) -> Span:
        span = self.line.span(self.start, self.end)
        return span.to(self.last) if self.last else span

    def keyword_span(self) -> Span:
        return self.line.span(self.start, self.start + len(self.keyword))

    def token_span(self, token: Token, start: int = 0, end: int | None = None) -> Span:
        at = self.arguments + (token.start_pos or 0)
        return self.line.span(at + start, at + (len(token) if end is None else end))

    def word(self, token: Token) -> Word:
        return Word(str(token), self.token_span(token))

    def error(self, message: str, span: Span, hint: str = "") -> DockerfileError:
        return DockerfileError(message, span, self.source, hint)

    def value(self, kind: str) -> Token | None:
        """The first terminal of that kind."""
        return next((token for token in self.tokens if token.type == kind), None)


class _Reader:
    """Turns logical lines to instructions; `scanner` is asked for the here-documents that follow."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.source = scanner.source
        self.escape = scanner.directives.escape

    def instruction(self, line: LogicalLine, start: int) -> From | AnyInstruction:
        """The instruction that begins at `start`. Raises DockerfileError, having read its here-documents still."""
        statement = self._open(line, start)
        innermost = statement
        if statement.name == "onbuild" and statement.tokens and statement.mistake is None:
            inner = self._open(line, statement.arguments + (statement.tokens[0].start_pos or 0))
            _refuse_trigger(inner.keyword, inner.keyword_span(), self.source)
            innermost = inner
        if innermost.name in _TAKES_HEREDOCS and innermost.value("EXEC") is None:
            try:
                innermost.heredocs, innermost.bodies, innermost.last = self.scanner.heredocs(line)
            except DockerfileError as error:
                raise _EndOfFileError(error) from None
        if innermost is statement:
            return _read(statement)
        _check_flags(statement)
        trigger = _read(innermost)
        assert not isinstance(trigger, From), "refused above"
        statement.last = innermost.last
        # What the image's configuration keeps: the trigger's line as it is, blanks at its end included.
        text = line.text[innermost.start :]
        for heredoc, body in zip(innermost.heredocs, innermost.bodies, strict=True):
            text += f"\n{body}{heredoc.name}"
        return Onbuild(trigger=trigger, trigger_text=text, **statement.common())

    def _open(self, line: LogicalLine, start: int) -> _Statement:
        """Find the keyword, and what the grammar says of the rest. Raises DockerfileError for an unknown keyword."""
        text = line.text
        end = len(text.rstrip(BLANKS))
        start += len(text[start:end]) - len(text[start:end].lstrip(BLANKS))
        found = _KEYWORD.match(text, start, end)
        keyword = found[0] if found else ""
        name = keyword.lower()
        if name not in _READERS:
            hint = did_you_mean(keyword.upper(), (key.upper() for key in _READERS))
            if not keyword:
                hint = "the line continuation continues nothing"
            elif not hint and line.first > 1:
                hint = f"to continue the line above, end it with {self.escape}"
            span = line.span(start, start + len(keyword))
            raise _UnknownInstructionError(f"unknown instruction: {keyword}", span, self.source, hint)
        arguments = start + len(keyword)
        arguments += len(text[arguments:end]) - len(text[arguments:end].lstrip(BLANKS))
        statement = _Statement(line, self.source, self.escape, keyword, name, start, min(arguments, end), end)
        _match(statement)
        return statement


@lru_cache(maxsize=2)
def _grammar(escape: str) -> Lark:
    """The compiled grammar, for one escape character.

    One LALR parser with all start rules: 15 ms once, where a parser for each rule takes 6 ms for each. To import lark
    takes longer than that, so it is imported only where something is parsed.
    """
    from lark import Lark

    text = Path(__file__).with_name("dockerfile.lark").read_text("utf-8")
    if escape != "\\":
        text = text.replace("\\\\", escape)
    return Lark(text, start=list(_READERS), parser="lalr", maybe_placeholders=False)


def _match(statement: _Statement) -> None:
    """Put the arguments through the grammar: terminals into `flags` and `tokens`, the first misfit into `mistake`."""
    from lark.exceptions import UnexpectedInput

    text = statement.line.text[statement.arguments : statement.end]
    session = _grammar(statement.escape).parse_interactive(text, start=statement.name)
    try:
        for token in session.iter_parse():
            if token.type == "FLAG":
                statement.flags.append(token)
            elif token.type != "END_OF_FLAGS":
                statement.tokens.append(token)
        session.feed_eof()  # type: ignore[no-untyped-call]
    except UnexpectedInput as error:
        statement.mistake = error


def _read(statement: _Statement) -> From | AnyInstruction:
    """The instruction, or a DockerfileError that says what is wrong with its arguments."""
    _refuse_other_json(statement)
    if statement.mistake is not None:
        raise _explain(statement, statement.mistake)
    return _READERS[statement.name](statement)


# ---------------------------------------------------------------- what is wrong


def _explain(statement: _Statement, mistake: UnexpectedInput) -> DockerfileError:
    """The grammar's complaint in the language's words."""
    name = statement.name
    keyword = name.upper()
    text = statement.line.text[statement.arguments : statement.end]
    token = getattr(mistake, "token", None)
    # At the end lark names the last terminal's place, which is not where something is missing.
    at_end = token is not None and token.type == "$END"
    at = len(text) if at_end else mistake.pos_in_stream or 0
    length = 0 if at_end else len((_KEYWORD.match(text, at) or [""])[0])
    place = statement.line.span(statement.arguments + at, statement.arguments + at + length)
    whole = statement.line.span(statement.start, statement.end)
    if at_end and not statement.tokens:
        message, hint = _TOO_FEW[name]
        return statement.error(message, whole, hint)
    if name in ("env", "label"):
        if at_end:
            hint = f"write {keyword} {statement.tokens[0]}=value"
            return statement.error(f"{keyword} must have two arguments", whole, hint)
        message = f'Syntax error - can\'t find = in "{text[at : at + length]}". Must be of the form: name=value'
        return statement.error(
            message, place, "put quotes around a value that holds blanks; a comment needs its own line"
        )
    if name == "shell":
        return statement.error(
            "SHELL requires the arguments to be in JSON form",
            place,
            'write SHELL ["/bin/sh", "-c"], with double quotes',
        )
    if name == "healthcheck":
        first = statement.tokens[0] if statement.tokens else None
        if first is None:
            word = text[at : at + length].upper()
            hint = did_you_mean(word, ("CMD", "NONE")) or "write HEALTHCHECK CMD command"
            return statement.error(f'Unknown type "{word}" in HEALTHCHECK (try CMD)', place, hint)
        if first.type == "NONE":
            return statement.error("HEALTHCHECK NONE takes no arguments", place, "remove what stands behind NONE")
        return statement.error("Missing command after HEALTHCHECK CMD", place, "write HEALTHCHECK CMD command")
    if name in ("copy", "add") and text[at : at + length].startswith("["):
        hint = "a JSON array must be closed, its strings in double quotes"
        return statement.error(_TOO_FEW[name][0], whole, hint)
    message, hint = _TOO_FEW.get(name, (f"{keyword} does not take this argument", ""))
    return statement.error(message, place if length else whole, hint)


def _refuse_other_json(statement: _Statement) -> None:
    """A JSON array that holds anything but strings is an error, not a shell's command."""
    if statement.name not in ("run", "cmd", "entrypoint", "shell", "copy", "add", "volume", "healthcheck"):
        return
    text = statement.line.text[statement.arguments : statement.end]
    first = statement.tokens[0] if statement.tokens else None
    if statement.name == "healthcheck" and first is not None and len(statement.tokens) > 1:
        first = statement.tokens[1]
    at = (first.start_pos or 0) if first is not None else _misfit(statement)
    if not text.startswith("[", at) or (first is not None and first.type == "EXEC"):
        return
    import json

    try:
        found = json.loads(text[at:], parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return
    if isinstance(found, list) and not all(isinstance(item, str) for item in found):
        span = statement.line.span(statement.arguments + at, statement.end)
        message = "when using JSON array syntax, arrays must be comprised of strings only"
        raise statement.error(message, span, "put every element in double quotes")


def _misfit(statement: _Statement) -> int:
    return (statement.mistake.pos_in_stream or 0) if statement.mistake is not None else 0


def _no_constant(text: str) -> object:
    """Python reads NaN and Infinity, JSON does not."""
    raise ValueError(text)


# ---------------------------------------------------------------- flags


class _Flags(Struct):
    """The flags of one statement, checked; `one` and `many` hand out their values."""

    given: dict[str, list[Word]]

    def one(self, name: str) -> Word | None:
        words = self.given.get(name)
        return words[0] if words else None

    def many(self, name: str) -> tuple[Word, ...]:
        return tuple(self.given.get(name, ()))


def _check_flags(statement: _Statement) -> _Flags:
    """Flags by name. Their values are without quotes and escapes, as BuildKit hands them to everything behind it."""
    known = _FLAGS.get(statement.name, {})
    given: dict[str, list[Word]] = {}
    for token in statement.flags:
        text = _unquote(token, statement.escape)
        flag, equals, value = text.partition("=")
        name = flag[2:]
        raw_name, _, _ = token.partition("=")
        span = statement.token_span(token)
        name_span = statement.token_span(token, 0, len(raw_name))
        kind = known.get(name)
        if kind is None:
            if (statement.name, name) in _UNSUPPORTED_FLAGS:
                hint = _UNSUPPORTED_FLAGS[statement.name, name]
                raise statement.error(f"unsupported flag: {flag}", name_span, hint)
            raise statement.error(f"unknown flag: {flag}", name_span, _flag_hint(statement, name, known))
        if name in given and kind != "list":
            raise statement.error(f"duplicate flag specified: {flag}", span, f"give {flag} once")
        if kind == "bool":
            if equals and not value:
                raise statement.error(f"missing a value on flag: {flag}", span, f"write {flag} or {flag}=true")
            if value.lower() not in ("", "true", "false"):
                message = f"expecting boolean value for flag {flag}, not: {value}"
                raise statement.error(message, span, f"write {flag}=true or {flag}=false")
            value = value.lower() or "true"
        elif not equals:
            raise statement.error(f"missing a value on flag: {flag}", span, f"write {flag}=VALUE, with a '='")
        value_span = statement.token_span(token, len(raw_name) + 1) if equals else span
        given.setdefault(name, []).append(Word(value, value_span))
    return _Flags(given)


def _flag_hint(statement: _Statement, name: str, known: dict[str, str]) -> str:
    found = did_you_mean(name, known, prefix="--")
    if found:
        return found
    keyword = statement.name.upper()
    others = [other.upper() for other, flags in _FLAGS.items() if name in flags]
    if others:
        return f"--{name} is a flag of {' and '.join(others)}"
    if not known:
        return f"{keyword} takes no flags; write {keyword} -- if the argument itself begins with --"
    return f"{keyword} takes {', '.join('--' + flag for flag in known)}"


def _unquote(token: str, escape: str) -> str:
    """A flag without its quotes and escapes; here even single quotes know escapes."""
    if escape not in token and '"' not in token and "'" not in token:
        return str(token)
    out: list[str] = []
    quote = ""
    at = 0
    while at < len(token):
        char = token[at]
        at += 1
        if char == escape:
            out.append(token[at : at + 1])
            at += 1
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            out.append(char)
    return "".join(out)


# ---------------------------------------------------------------- instructions


def _json_strings(token: Token) -> tuple[str, ...]:
    import json

    # Go turns what is no valid text into U+FFFD.
    return tuple(_SURROGATES.sub("\ufffd", item) for item in json.loads(token))


def _json_words(statement: _Statement, token: Token) -> list[Word]:
    places = _JSON_STRING.finditer(token)
    return [
        Word(text, statement.token_span(token, place.start(), place.end()))
        for text, place in zip(_json_strings(token), places, strict=True)
    ]


def _words(statement: _Statement) -> tuple[list[Word], bool]:
    """The arguments, and whether they were a JSON array."""
    array = statement.value("EXEC")
    if array is not None:
        return _json_words(statement, array), True
    return [statement.word(token) for token in statement.tokens], False


def _command(statement: _Statement) -> Command:
    array = statement.value("EXEC")
    if array is not None:
        return ExecForm(_json_strings(array))
    text = statement.value("TEXT")
    return ShellForm(str(text) if text is not None else "")


def _from(statement: _Statement) -> From:
    flags = _check_flags(statement)
    image, *rest = statement.tokens
    name = ""
    written = ""
    if rest:
        written = str(rest[1])
        name = written.lower()
        if not _STAGE_NAME.fullmatch(name):
            message = f'invalid name for build stage: "{written}", name can\'t start with a number or contain symbols'
            hint = "begin with a letter; letters, digits, '-', '_' and '.' may follow"
            raise statement.error(message, statement.token_span(rest[1]), hint)
    return From(
        image=statement.word(image),
        platform=flags.one("platform"),
        name=name,
        name_as_written=written,
        as_word=str(rest[0]) if rest else "",
        **statement.common(),
    )


def _pairs(statement: _Statement) -> tuple[Pair, ...]:
    found: list[Pair] = []
    for token in statement.tokens:
        text = str(token)
        # An escape character at the very end of the line escapes nothing.
        if token is statement.tokens[-1] and (len(text) - len(text.rstrip(statement.escape))) % 2:
            text = text[:-1]
        name, equals, value = text.partition("=")
        if not name and equals:
            raise _blank_name(statement, token)
        if text:
            found.append(Pair(name, value if equals else None, statement.token_span(token)))
    if not found:
        message, hint = _TOO_FEW[statement.name]
        raise statement.error(message, statement.span(), hint)
    return tuple(found)


def _blank_name(statement: _Statement, token: Token) -> DockerfileError:
    message = f"{statement.name.upper()} names can not be blank"
    return statement.error(message, statement.token_span(token), "write a name in front of the '='")


def _assignments(statement: _Statement) -> tuple[tuple[Pair, ...], bool]:
    """The pairs of ENV and LABEL, and whether they are in the old form, a name and the rest of the line."""
    if statement.tokens[0].type == "PAIR":
        return _pairs(statement), False
    name, value = statement.tokens
    span = statement.token_span(name).to(statement.token_span(value))
    return (Pair(str(name), str(value), span),), True


def _arg(statement: _Statement) -> Arg:
    _check_flags(statement)
    return Arg(pairs=_pairs(statement), **statement.common())


def _env(statement: _Statement) -> Env:
    _check_flags(statement)
    pairs, legacy = _assignments(statement)
    return Env(pairs=pairs, legacy=legacy, **statement.common())


def _label(statement: _Statement) -> Label:
    _check_flags(statement)
    pairs, legacy = _assignments(statement)
    return Label(pairs=pairs, legacy=legacy, **statement.common())


def _run(statement: _Statement) -> Run:
    flags = _check_flags(statement)
    network = flags.one("network")
    if network is not None and network.text not in ("default", "none", "host"):
        hint = did_you_mean(network.text, ("default", "none", "host")) or "it is default, none or host"
        raise statement.error(f'invalid network mode "{network.text}"', network.span, hint)
    security = flags.one("security")
    if security is not None and security.text not in ("sandbox", "insecure"):
        hint = did_you_mean(security.text, ("sandbox", "insecure")) or "it is sandbox or insecure"
        raise statement.error(f'security "{security.text}" is not valid', security.span, hint)
    for mount in flags.many("mount"):
        _check_mount(statement, mount)
    return Run(
        command=_command(statement),
        heredocs=statement.heredocs,
        mounts=flags.many("mount"),
        network=network,
        security=security,
        **statement.common(),
    )


def _check_mount(statement: _Statement, mount: Word) -> None:
    """What can be said of a mount before its values are expanded."""
    try:
        fields = mount_fields(mount.text)
    except ValueError as error:
        hint = "write --mount=type=TYPE,target=PATH and more such keys, with commas between them"
        raise statement.error(f"failed to parse csv mounts: {error}", mount.span, hint) from None
    for text in fields:
        key, _, value = text.partition("=")
        at = value.find("$")
        if key.lower() == "from" and 0 <= at < len(value) - 1:
            message = "'from' doesn't support variable expansion, define alias stage instead"
            hint = "write FROM with the variable AS a name above, and from=that name"
            raise statement.error(message, mount.span, hint)


class _Transfer(TypedDict):
    """What COPY and ADD share."""

    sources: tuple[Word, ...]
    destination: Word
    heredocs: tuple[Heredoc, ...]
    json: bool
    chown: Word | None
    chmod: Word | None
    link: Word | None
    excludes: tuple[Word, ...]


def _transfer(statement: _Statement, flags: _Flags) -> _Transfer:
    words, array = _words(statement)
    if len(words) < 2:
        message, hint = _TOO_FEW[statement.name]
        raise statement.error(message, statement.span(), hint)
    *sources, destination = words
    if read_redirection(destination.text) is not None:
        message = f"{statement.name.upper()} cannot accept a heredoc as a destination"
        raise statement.error(message, destination.span, "write the destination behind it")
    by_name = {heredoc.name: heredoc for heredoc in statement.heredocs}
    heredocs: list[Heredoc] = []
    paths: list[Word] = []
    for word in sources:
        redirection = read_redirection(word.text)
        if redirection is None:
            paths.append(word)
            continue
        body = by_name.get(redirection.name)
        if body is None:
            message = f"no text follows for the heredoc {redirection.name}"
            raise statement.error(message, word.span, "a JSON array has no heredocs")
        heredocs.append(
            Heredoc(
                redirection.name,
                body.body,
                redirection.expand,
                redirection.strip_tabs,
                redirection.fd,
                redirection.raw,
                word.span,
            )
        )
    if len(heredocs) < len(statement.heredocs):
        names = {heredoc.name for heredoc in heredocs}
        lost = next((item for item in statement.heredocs if item.name not in names), statement.heredocs[0])
        message = f"{statement.name.upper()} cannot accept the heredoc {lost.raw}"
        raise statement.error(message, lost.span, "its name must follow << at once, and hold no blanks")
    return {
        "sources": tuple(paths),
        "destination": destination,
        "heredocs": tuple(heredocs),
        "json": array,
        "chown": flags.one("chown"),
        "chmod": flags.one("chmod"),
        "link": flags.one("link"),
        "excludes": flags.many("exclude"),
    }


def _copy(statement: _Statement) -> Copy:
    flags = _check_flags(statement)
    return Copy(
        from_=flags.one("from"),
        parents=flags.one("parents"),
        **_transfer(statement, flags),
        **statement.common(),
    )


def _add(statement: _Statement) -> Add:
    flags = _check_flags(statement)
    return Add(
        checksum=flags.one("checksum"),
        keep_git_dir=flags.one("keep-git-dir"),
        unpack=flags.one("unpack"),
        **_transfer(statement, flags),
        **statement.common(),
    )


def _cmd(statement: _Statement) -> Cmd:
    _check_flags(statement)
    return Cmd(command=_command(statement), **statement.common())


def _entrypoint(statement: _Statement) -> Entrypoint:
    _check_flags(statement)
    return Entrypoint(command=_command(statement), **statement.common())


def _shell(statement: _Statement) -> Shell:
    _check_flags(statement)
    argv = _json_strings(statement.tokens[0])
    if not argv:
        message, hint = _TOO_FEW["shell"]
        raise statement.error(message, statement.span(), hint)
    return Shell(argv=argv, **statement.common())


def _healthcheck(statement: _Statement) -> Healthcheck:
    flags = _check_flags(statement)
    for name in ("interval", "timeout", "start-period", "start-interval"):
        _check_duration(statement, name, flags.one(name))
    _check_retries(statement, flags.one("retries"))
    command = _command(statement) if statement.tokens[0].type == "CMD" else None
    if command == ExecForm(()):
        span = statement.token_span(statement.tokens[1])
        raise statement.error("Missing command after HEALTHCHECK CMD", span, "write HEALTHCHECK CMD command")
    return Healthcheck(
        command=command,
        interval=flags.one("interval"),
        timeout=flags.one("timeout"),
        start_period=flags.one("start-period"),
        start_interval=flags.one("start-interval"),
        retries=flags.one("retries"),
        **statement.common(),
    )


def _check_duration(statement: _Statement, name: str, word: Word | None) -> None:
    if word is None or not word.text:
        return
    try:
        duration = nanoseconds(word.text)
    except ValueError as error:
        raise statement.error(str(error), word.span, "write a number with its unit, such as 30s or 1m30s") from None
    if duration != 0 and duration < 10**6:
        raise statement.error(f'Interval "{name}" cannot be less than 1ms', word.span, "write 1ms or more")


def _check_retries(statement: _Statement, word: Word | None) -> None:
    if word is None or not word.text:
        return
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", word.text, re.ASCII) or abs(int(word.text)) >= 1 << 31:
        raise statement.error(f'--retries must be a number, not "{word.text}"', word.span, "write a whole number")
    if int(word.text) < 0:
        raise statement.error(f"--retries cannot be negative ({int(word.text)})", word.span, "write a whole number")


def _onbuild(statement: _Statement) -> From | AnyInstruction:
    """Without a trigger behind it, which the grammar has refused already."""
    message, hint = _TOO_FEW["onbuild"]
    raise statement.error(message, statement.span(), hint)


def _only(statement: _Statement) -> Word:
    _check_flags(statement)
    return statement.word(statement.tokens[0])


def _stopsignal(statement: _Statement) -> Stopsignal:
    return Stopsignal(signal=_only(statement), **statement.common())


def _user(statement: _Statement) -> User:
    return User(user=_only(statement), **statement.common())


def _workdir(statement: _Statement) -> Workdir:
    return Workdir(path=_only(statement), **statement.common())


def _maintainer(statement: _Statement) -> Maintainer:
    return Maintainer(name=_only(statement).text, **statement.common())


def _volume(statement: _Statement) -> Volume:
    _check_flags(statement)
    words, array = _words(statement)
    if not words:
        message, hint = _TOO_FEW["volume"]
        raise statement.error(message, statement.span(), hint)
    paths = tuple(Word(word.text.strip(BLANKS), word.span) for word in words)
    for word in paths:
        if not word.text:
            raise statement.error("VOLUME specified can not be an empty string", word.span, "write a path")
    return Volume(paths=paths, json=array, **statement.common())


def _expose(statement: _Statement) -> Expose:
    _check_flags(statement)
    return Expose(ports=tuple(statement.word(token) for token in statement.tokens), **statement.common())


_READERS: Final[dict[str, Callable[[_Statement], From | AnyInstruction]]] = {
    "from": _from,
    "arg": _arg,
    "env": _env,
    "label": _label,
    "run": _run,
    "copy": _copy,
    "add": _add,
    "workdir": _workdir,
    "user": _user,
    "cmd": _cmd,
    "entrypoint": _entrypoint,
    "expose": _expose,
    "volume": _volume,
    "healthcheck": _healthcheck,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "onbuild": _onbuild,
    "maintainer": _maintainer,
}

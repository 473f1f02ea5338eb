"""A shell's script to its commands, with the place of every word: enough of POSIX sh and bash to judge a RUN by.

    read("apt-get update && apt-get install -y curl")       Script of two commands

Nothing is expanded and nothing is run. Compound commands are looked into, command substitutions too; what they do is
kept only as far as a rule may ask for it: what stands before and behind a command, how deep in subshells it is, whether
its status is a condition. A script that a shell would refuse gives the commands up to there. Pure.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh"})
"""The shells whose language this is, near enough."""

_DEEPEST: Final = 60
_BLANK: Final = " \t\r\f\v"
_ENDS_WORD: Final = frozenset(" \t\r\f\v\n;&|<>()")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\[[^]]*\])?\+?=")
_REDIRECT: Final = re.compile(r"(?:[0-9]+|\{[A-Za-z_][A-Za-z0-9_]*\})?(?:<<<|<<-|<<|<>|<&|>&|>>|>\||<|>)|&>>|&>")
_OPERATOR: Final = re.compile(r"&&|\|\||;;&|;;|;&|\|&|[|&;\n]")
_FUNCTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*[ \t]*\([ \t]*\)")
_RESERVED_ENDS: Final = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})
_COMPOUND: Final = frozenset({"if", "while", "until", "for", "select", "case", "{", "function"})


class Word(Struct, frozen=True):
    """One word. text: as written. literal: without quotes, expansions left as written. start, end: offsets.

    plain: nothing in it is expanded, so `literal` is what the program gets (but for globs and `~`).
    """

    text: str
    literal: str
    start: int
    end: int
    plain: bool = True


class Redirect(Struct, frozen=True):
    """`2>/dev/null` and the like. target: the word behind the operator."""

    operator: str
    target: Word


class Command(Struct, frozen=True):
    """One simple command. words: its name and arguments; none when it only assigns.

    before, after: the operators around it, empty at an end. depth: how many subshells and substitutions are around it.
    condition: its status is asked for by `if`, `while`, `!`, `&&` or `||` behind it. pipe: which part of a pipeline it
    is, from 0, and `pipes` how many parts there are.
    """

    words: tuple[Word, ...]
    assignments: tuple[Word, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    start: int = 0
    end: int = 0
    before: str = ""
    after: str = ""
    depth: int = 0
    condition: bool = False
    pipe: int = 0
    pipes: int = 1

    @property
    def name(self) -> str:
        """The program's name, without its folder; empty when it only assigns."""
        return self.words[0].literal.rpartition("/")[2] if self.words else ""

    @property
    def arguments(self) -> tuple[Word, ...]:
        """The words behind the name."""
        return self.words[1:]

    def has(self, *names: str) -> bool:
        """Whether an argument is one of these words, `--name=value` counting as `--name`."""
        return any(word.literal in names or word.literal.partition("=")[0] in names for word in self.arguments)

    def switch(self, letter: str) -> bool:
        """Whether a single letter is among the short options: `-y`, `-qy`."""
        return any(re.fullmatch(rf"-[A-Za-z]*{letter}[A-Za-z]*", word.literal) for word in self.arguments)

    def operands(self, valued: Iterable[str] = ()) -> tuple[Word, ...]:
        """The arguments that are no options; the word behind an option in `valued` belongs to that option."""
        takes, rest = frozenset(valued), iter(self.arguments)
        found: list[Word] = []
        for word in rest:
            if word.literal == "--":
                found.extend(rest)
            elif word.literal in takes:
                next(rest, None)
            elif not word.literal.startswith("-") or word.literal == "-":
                found.append(word)
        return tuple(found)


class Pipeline(Struct, frozen=True):
    """Commands with `|` between them. parts: None for a compound command. start, end: offsets.

    checked: its status is asked for, as by `if` or `||`. depth: as of Command.
    """

    parts: tuple[Command | None, ...]
    start: int
    end: int
    checked: bool = False
    depth: int = 0


class Script(Struct, frozen=True):
    """What a script has. commands: in the order of their places. whole: it was understood up to its end."""

    text: str
    commands: tuple[Command, ...] = ()
    pipelines: tuple[Pipeline, ...] = ()
    whole: bool = True


def read(text: str) -> Script:
    """The commands of a script. Never raises."""
    reader = _Reader(text)
    whole = True
    try:
        reader.script()
    except (_StopError, RecursionError):
        whole = False
    commands = sorted(reader.commands, key=lambda command: (command.start, -command.end))
    return Script(text, tuple(commands), tuple(sorted(reader.pipelines, key=lambda each: each.start)), whole)


def unwrapped(command: Command) -> Command:
    """The command behind `sudo`, `env A=1`, `exec`, `time` and the like; the same one when there is none."""
    while command.name in _WRAPPERS and command.arguments:
        valued = _WRAPPERS[command.name]
        rest = list(command.arguments)
        while rest and (rest[0].literal.startswith("-") or (command.name == "env" and "=" in rest[0].literal)):
            option = rest.pop(0).literal
            if option in valued and rest:
                rest.pop(0)
            if option == "--":
                break
        if command.name == "timeout" and rest:
            rest.pop(0)
        if not rest:
            break
        command = _with_words(command, tuple(rest))
    return command


_WRAPPERS: Final[dict[str, frozenset[str]]] = {
    "sudo": frozenset({"-u", "-g", "-h", "-p", "-C", "-r", "-t", "--user", "--group"}),
    "env": frozenset({"-u", "-C", "-S"}),
    "exec": frozenset({"-a"}),
    "command": frozenset(),
    "time": frozenset({"-f", "-o"}),
    "nice": frozenset({"-n"}),
    "nohup": frozenset(),
    "timeout": frozenset({"-s", "-k", "--signal", "--kill-after"}),
    "eatmydata": frozenset(),
    "builtin": frozenset(),
}


def _with_words(command: Command, words: tuple[Word, ...]) -> Command:
    from msgspec.structs import replace

    return replace(command, words=words)


class _StopError(Exception):
    """The script can not be understood from here on."""


class _Open(Struct):
    """What a command is read in. depth: subshells around. condition: its status is asked for."""

    depth: int = 0
    condition: bool = False


class _Reader:
    """One script, read from left to right. `commands` and `pipelines` fill up on the way."""

    def __init__(self, text: str, at: int = 0, end: int | None = None) -> None:
        self.text = text if end is None else text[:end]
        self.at = at
        self.commands: list[Command] = []
        self.pipelines: list[Pipeline] = []
        self._nested = 0
        self._heredocs: list[tuple[str, bool]] = []

    # ------------------------------------------------------------ lists

    def script(self) -> None:
        """Everything to the end of the text; what closes nothing is passed over."""
        while True:
            self._list(_Open(), frozenset())
            self._skip(lines=True)
            if self.at >= len(self.text):
                return
            if self._peek() in _RESERVED_ENDS:
                self.at += len(self._peek())
            else:
                self.at += 1

    def _list(self, around: _Open, ends: frozenset[str], close: str = "") -> None:
        """Pipelines with operators between them, up to a reserved word in `ends` or the character `close`, not read."""
        self._nested += 1
        if self._nested > _DEEPEST:
            raise _StopError
        before = ""
        while True:
            self._skip(lines=True)
            if self.at >= len(self.text):
                break
            if close and self.text[self.at] == close:
                break
            word = self._peek()
            if word in _RESERVED_ENDS or (ends and word in ends):
                break
            if self.text[self.at] == ")" or self.text.startswith(";;", self.at) or self.text.startswith(";&", self.at):
                break
            start = self.at
            before = self._pipeline(around, before)
            if self.at == start:
                break
        self._nested -= 1

    def _pipeline(self, around: _Open, before: str) -> str:
        """Commands with `|` between them. Returns the operator behind the last one, which is read."""
        first, start = len(self.commands), self.at
        parts: list[Command | None] = []
        negated = False
        while self._peek() == "!":
            negated = True
            self.at += 1
            self._skip()
        marks = []
        operator = before
        while True:
            self._skip(lines=bool(parts))
            mark = len(self.commands)
            made = self._command(_Open(around.depth, around.condition or negated), operator)
            marks.append((mark, made))
            parts.append(made)
            end = self.at
            self._skip()
            found = _OPERATOR.match(self.text, self.at)
            operator = found[0] if found else ""
            if operator not in {"|", "|&"}:
                break
            self.at += len(operator)
        if operator in {";;", ";&", ";;&"}:
            operator = ""
        self.at += len(operator)
        if operator == "\n":
            self._bodies()
        checked = around.condition or negated or (operator in {"&&", "||"} and operator == "||")
        for number, made in enumerate(parts):
            if made is None:
                continue
            place = next(i for i in range(first, len(self.commands)) if self.commands[i] is made)
            after = "|" if number + 1 < len(parts) else operator
            done = _placed(made, after, number, len(parts), checked=checked or after == "||")
            self.commands[place] = parts[number] = done
        self.pipelines.append(Pipeline(tuple(parts), start, end, checked, around.depth))
        return operator

    # ------------------------------------------------------------ commands

    def _command(self, around: _Open, before: str) -> Command | None:
        """One command; None for a compound one, whose own commands are kept."""
        self._skip()
        if self.at >= len(self.text):
            return None
        if self.text.startswith("((", self.at):
            self._arithmetic(2, "))")
            return None
        if self.text[self.at] == "(":
            self.at += 1
            self._list(_Open(around.depth + 1, around.condition), frozenset(), ")")
            self._expect(")")
            self._redirects()
            return None
        word = self._peek()
        if word in _COMPOUND:
            self._compound(word, around)
            self._redirects()
            return None
        if word == "[[":
            return self._test(around, before)
        found = _FUNCTION.match(self.text, self.at)
        if found:
            self.at = found.end()
            self._skip(lines=True)
            self._command(around, "")
            return None
        return self._simple(around, before)

    def _compound(self, word: str, around: _Open) -> None:
        self.at += len(word)
        asked = _Open(around.depth, condition=True)
        match word:
            case "{":
                self._list(around, frozenset({"}"}))
                self._expect("}")
            case "if":
                self._list(asked, frozenset({"then"}))
                self._expect("then")
                self._list(around, frozenset({"elif", "else", "fi"}))
                while self._peek() == "elif":
                    self._expect("elif")
                    self._list(asked, frozenset({"then"}))
                    self._expect("then")
                    self._list(around, frozenset({"elif", "else", "fi"}))
                if self._peek() == "else":
                    self._expect("else")
                    self._list(around, frozenset({"fi"}))
                self._expect("fi")
            case "while" | "until":
                self._list(asked, frozenset({"do"}))
                self._body(around)
            case "for" | "select":
                self._skip()
                if self.text.startswith("((", self.at):
                    self._arithmetic(2, "))")
                else:
                    self._word(around)
                    self._skip(lines=True)
                    if self._peek() == "in":
                        self.at += 2
                        while self._skip() or (self.at < len(self.text) and self.text[self.at] not in ";\n"):
                            self._word(around)
                self._skip()
                if self.text.startswith(";", self.at):
                    self.at += 1
                self._skip(lines=True)
                self._body(around)
            case "case":
                self._case(around)
            case _:
                self._skip()
                self._word(around)
                self._skip()
                found = re.compile(r"\([ \t]*\)").match(self.text, self.at)
                if found:
                    self.at = found.end()
                self._skip(lines=True)
                self._command(around, "")

    def _body(self, around: _Open) -> None:
        self._expect("do")
        self._list(around, frozenset({"done"}))
        self._expect("done")

    def _case(self, around: _Open) -> None:
        self._skip()
        self._word(around)
        self._skip(lines=True)
        self._expect("in")
        while True:
            self._skip(lines=True)
            if self._peek() == "esac":
                break
            if self.at >= len(self.text):
                raise _StopError
            if self.text[self.at] == "(":
                self.at += 1
            while True:
                self._skip()
                self._word(around)
                self._skip()
                if self.text.startswith("|", self.at):
                    self.at += 1
                else:
                    break
            self._expect(")")
            self._list(around, frozenset({"esac"}))
            found = re.compile(r";;&|;;|;&").match(self.text, self.at)
            if found:
                self.at = found.end()
        self._expect("esac")

    def _test(self, around: _Open, before: str) -> Command:
        """`[[ ... ]]`, whose operators are no shell operators: one word of it."""
        start = self.at
        end = re.compile(r"\]\](?=[\s;&|)]|\Z)").search(self.text, self.at)
        if end is None:
            raise _StopError
        self.at = end.end()
        text = self.text[start : self.at]
        made = Command((Word("[[", "[[", start, start + 2), Word(text[2:], text[2:], start + 2, self.at, plain=False)),
                       (), (), start, self.at, before, "", around.depth, around.condition)  # fmt: skip
        self.commands.append(made)
        return made

    def _simple(self, around: _Open, before: str) -> Command:
        start = self.at
        words: list[Word] = []
        assignments: list[Word] = []
        redirects: list[Redirect] = []
        end = start
        while True:
            self._skip()
            if self.at >= len(self.text):
                break
            redirect = self._redirect(around)
            if redirect is not None:
                redirects.append(redirect)
                end = self.at
                continue
            if self.text[self.at] in "\n;&|)(" or (self.text[self.at] in "<>" and not self._is_process(self.at)):
                break
            at = self.at
            assigns = not words and _ASSIGNMENT.match(self.text, at)
            word = self._word(around)
            if assigns and self.text.startswith("(", self.at) and self.text[self.at - 1] == "=":
                word = self._array(around, word)
            (assignments if assigns else words).append(word)
            end = self.at
        if self.at == start:
            raise _StopError
        made = Command(
            tuple(words), tuple(assignments), tuple(redirects), start, end, before, "", around.depth, around.condition
        )
        self.commands.append(made)
        return made

    def _array(self, around: _Open, word: Word) -> Word:
        """`name=(a b c)`."""
        self.at += 1
        while True:
            self._skip(lines=True)
            if self.at >= len(self.text):
                raise _StopError
            if self.text[self.at] == ")":
                break
            at = self.at
            self._word(around)
            if self.at == at:
                raise _StopError
        self.at += 1
        text = self.text[word.start : self.at]
        return Word(text, text, word.start, self.at, plain=False)

    def _redirects(self) -> None:
        while True:
            self._skip()
            if self._redirect(_Open()) is None:
                return

    def _redirect(self, around: _Open) -> Redirect | None:
        found = _REDIRECT.match(self.text, self.at)
        if found is None or self._is_process(self.at):
            return None
        self.at = found.end()
        self._skip()
        target = self._word(around)
        operator = found[0].lstrip("0123456789")
        if operator in {"<<", "<<-"}:
            self._heredocs.append((target.literal, operator == "<<-"))
        return Redirect(operator, target)

    def _is_process(self, at: int) -> bool:
        return self.text.startswith(("<(", ">("), at)

    # ------------------------------------------------------------ words

    def _word(self, around: _Open) -> Word:
        """One word; an empty one where none begins."""
        start = self.at
        literal: list[str] = []
        plain = True
        while self.at < len(self.text):
            char = self.text[self.at]
            if self._is_process(self.at) and self.at == start:
                self.at += 2
                self._inside(around)
                literal.append(self.text[start : self.at])
                plain = False
                continue
            if char in _ENDS_WORD:
                break
            if char == "\\":
                if self.text.startswith("\\\n", self.at):
                    self.at += 2
                    continue
                literal.append(self.text[self.at + 1 : self.at + 2])
                self.at += 2
            elif char == "'":
                end = self.text.find("'", self.at + 1)
                if end < 0:
                    raise _StopError
                literal.append(self.text[self.at + 1 : end])
                self.at = end + 1
            elif char == '"':
                plain = self._quoted(around, literal) and plain
            elif char == "$":
                plain = self._dollar(around, literal) and plain
            elif char == "`":
                self._backticks(around, literal)
                plain = False
            else:
                literal.append(char)
                self.at += 1
        self.at = min(self.at, len(self.text))
        return Word(self.text[start : self.at], "".join(literal), start, self.at, plain)

    def _quoted(self, around: _Open, literal: list[str]) -> bool:
        """A string in double quotes. Returns whether nothing in it is expanded."""
        self.at += 1
        plain = True
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return plain
            if char == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                if following != "\n":
                    literal.append(following if following in '$`"\\' else "\\" + following)
                self.at += 2
            elif char == "$":
                plain = self._dollar(around, literal, quoted=True) and plain
            elif char == "`":
                self._backticks(around, literal)
                plain = False
            else:
                literal.append(char)
                self.at += 1
        raise _StopError

    def _dollar(self, around: _Open, literal: list[str], *, quoted: bool = False) -> bool:
        """What `$` begins. Returns whether it is no expansion."""
        start = self.at
        following = self.text[self.at + 1 : self.at + 2]
        if self.text.startswith("$((", self.at):
            self._arithmetic(3, "))")
        elif following == "(":
            self.at += 2
            self._inside(around)
        elif following == "{":
            self.at += 2
            self._braces(around)
        elif following in {"'", '"'} and not quoted:
            if following == '"':
                self.at += 1
                return self._quoted(around, literal)
            found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.text, self.at)
            if found is None:
                raise _StopError
            self.at = found.end()
            literal.append(found[1])
            return True
        else:
            found = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|[0-9*@#?$!-])").match(self.text, self.at)
            if found is None:
                literal.append("$")
                self.at += 1
                return True
            self.at = found.end()
        literal.append(self.text[start : self.at])
        return False

    def _inside(self, around: _Open) -> None:
        """The commands of a substitution, and its closing parenthesis."""
        waiting, self._heredocs = self._heredocs, []
        self._list(_Open(around.depth + 1, condition=False), frozenset(), ")")
        self._expect(")")
        self._heredocs = waiting

    def _braces(self, around: _Open) -> None:
        """`${...}` behind its brace: quotes and expansions may be in it."""
        ignored: list[str] = []
        self._nested += 1
        if self._nested > _DEEPEST:
            raise _StopError
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "}":
                self.at += 1
                self._nested -= 1
                return
            if char == "\\":
                self.at += 2
            elif char == '"':
                self._quoted(around, ignored)
            elif char == "'":
                end = self.text.find("'", self.at + 1)
                self.at = end + 1 if end >= 0 else self.at + 1
            elif char == "$":
                self._dollar(around, ignored)
            elif char == "`":
                self._backticks(around, ignored)
            else:
                self.at += 1
        raise _StopError

    def _backticks(self, around: _Open, literal: list[str]) -> None:
        found = re.compile(r"`(?:[^`\\]|\\.)*`", re.DOTALL).match(self.text, self.at)
        if found is None:
            raise _StopError
        inner = _Reader(self.text, self.at + 1, found.end() - 1)
        inner._nested = self._nested + 1
        if inner._nested <= _DEEPEST:
            with contextlib.suppress(_StopError):
                inner._list(_Open(around.depth + 1), frozenset())
        self.commands += inner.commands
        self.pipelines += inner.pipelines
        literal.append(found[0])
        self.at = found.end()

    def _arithmetic(self, opening: int, closing: str) -> None:
        """`((...))` and `$((...))`, parentheses inside counted."""
        level = 0
        at = self.at + opening
        while at < len(self.text):
            if level == 0 and self.text.startswith(closing, at):
                self.at = at + len(closing)
                return
            level += {"(": 1, ")": -1}.get(self.text[at], 0)
            at += 1
        raise _StopError

    # ------------------------------------------------------------ between words

    def _skip(self, *, lines: bool = False) -> bool:
        """Pass over blanks, joined lines and comments; with `lines` over ends of lines and empty commands. False."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in _BLANK:
                self.at += 1
            elif self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char == "#" and (self.at == 0 or self.text[self.at - 1] in _ENDS_WORD):
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif lines and char == "\n":
                self.at += 1
                self._bodies()
            else:
                break
        return False

    def _bodies(self) -> None:
        """Pass over the here-documents that the line before asked for."""
        waiting, self._heredocs = self._heredocs, []
        for name, tabs in waiting:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                line = self.text[self.at : end if end >= 0 else len(self.text)]
                self.at = end + 1 if end >= 0 else len(self.text)
                if (line.lstrip("\t") if tabs else line) == name:
                    break

    def _peek(self) -> str:
        """The unquoted word that begins here, not read: for reserved words."""
        found = re.compile(r"[^\s;&|<>()'\"\\$`]+").match(self.text, self.at)
        if found is None or self.text[found.end() : found.end() + 1] in {"'", '"', "\\", "$", "`"}:
            return ""
        return found[0] or ""

    def _expect(self, word: str) -> None:
        self._skip(lines=True)
        if not self.text.startswith(word, self.at):
            raise _StopError
        self.at += len(word)


def _placed(command: Command, after: str, pipe: int, pipes: int, *, checked: bool) -> Command:
    from msgspec.structs import replace

    return replace(command, after=after, pipe=pipe, pipes=pipes, condition=command.condition or checked)


def names(script: Script) -> Iterator[str]:
    """The programs that a script starts, wrappers left out."""
    for command in script.commands:
        inner = unwrapped(command)
        if inner.name:
            yield inner.name

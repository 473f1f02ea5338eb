"""Words of a command line to flags and arguments, by the rules that docker's own command line follows.

Those are Go's pflag: `--name value`, `--name=value`, `-n value`, `-nvalue`, `-n=value`, single letters run together
(`-qt app`), flags after arguments, `--` to end them, and switches that take a value only with a sign
(`--no-cache=false`). Neither argparse nor click reads that last form, which scripts written for docker use; and
importing click would add 25 ms to each start, argparse 7 ms, this file none. Hence a table and one loop.
"""

from __future__ import annotations

from msgspec import Struct

TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class UsageError(Exception):
    """The command line can not be understood. message: one sentence; hint: what to do, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Flag(Struct, frozen=True):
    """One flag. name and short: without dashes. value: what the help calls its value; empty for a switch.

    many: may be given again. bare: the value may be left out, and never is the next word. unsupported: why it can not
    be had, for a flag of docker's that must not be passed over in silence; giving it (a switch: switching it on) is an
    error.
    """

    name: str
    help: str = ""
    short: str = ""
    value: str = ""
    many: bool = False
    unsupported: str = ""
    bare: bool = False


class Command(Struct, frozen=True):
    """What one command is called with. words: the fewest and the most arguments, -1 for any number.

    verbatim: all that follows the first argument belongs to it, flags as well.
    """

    name: str
    usage: str
    summary: str
    flags: tuple[Flag, ...] = ()
    words: tuple[int, int] = (0, 0)
    notes: str = ""
    verbatim: bool = False


class Given(Struct, frozen=True):
    """A command line, read. values: what was given for each flag, in order; switches as `true` or `false`."""

    values: dict[str, list[str]]
    words: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether the flag was given at all."""
        return name in self.values

    def on(self, name: str) -> bool:
        """Whether a switch is on; the last one given counts."""
        return self.values.get(name, ["false"])[-1] == "true"

    def one(self, name: str, default: str = "") -> str:
        """The flag's value; the last one given counts."""
        return self.values.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        """Every value given, in order."""
        return self.values.get(name, [])


COMMON = (
    Flag("root", "where the store is (default: $PYBUILD_ROOT, else the user's data folder)", value="DIR"),
    Flag("debug", "show the traceback of an internal error", short="D"),
    Flag("help", "show this text", short="h"),
)
"""What every command takes."""


def read(command: Command, arguments: list[str]) -> Given:
    """The flags and words of `arguments`. UsageError when they do not fit `command`."""
    flags = (*command.flags, *COMMON)
    long = {flag.name: flag for flag in flags}
    short = {flag.short: flag for flag in flags if flag.short}
    values: dict[str, list[str]] = {}
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            words.extend(rest)
        elif command.verbatim and words:
            words += [argument, *rest]
        elif argument.startswith("--"):
            name, sign, value = argument[2:].partition("=")
            flag = long.get(name)
            if flag is None:
                raise _unknown(command, f"--{name}", list(long))
            _take(values, flag, f"--{name}", value if sign else None, rest)
        elif argument.startswith("-") and argument != "-":
            letters = argument[1:]
            while letters:
                flag = short.get(letters[0])
                spelling, letters = f"-{letters[0]}", letters[1:]
                if flag is None:
                    wanted = list(long) if len(argument) > 2 else []
                    raise _unknown(command, argument if len(argument) > 2 else spelling, wanted)
                value = None
                if letters and (flag.value or letters[0] == "="):
                    value, letters = letters.removeprefix("="), ""
                _take(values, flag, spelling, value, rest)
        else:
            words.append(argument)
    given = Given(values, tuple(words))
    if not given.on("help"):
        _check_words(command, words)
    return given


def _take(values: dict[str, list[str]], flag: Flag, spelling: str, value: str | None, rest: object) -> None:
    """Record one flag, with the next word as its value where it needs one."""
    if not flag.value:
        if value is not None and value not in TRUE | FALSE:
            raise UsageError(f"{spelling} is a switch: {value!r} is neither true nor false")
        value = "false" if value in FALSE else "true"
    elif value is None and flag.bare:
        value = ""
    elif value is None:
        value = next(rest, None)  # type: ignore[call-overload]
        if value is None:
            raise UsageError(f"{spelling} needs a value: {flag.value}")
    if flag.unsupported and value != "false":
        raise UsageError(f"{spelling} is not supported", hint=flag.unsupported)
    values.setdefault(flag.name, []).append(value)


def _check_words(command: Command, words: list[str]) -> None:
    least, most = command.words
    if least <= len(words) and (len(words) <= most or most < 0):
        return
    wanted = {(0, 0): "no argument", (1, 1): "exactly one argument"}.get(
        command.words, f"{least} arguments" if least == most else f"at least {least}" + " argument" + "s" * (least != 1)
    )
    if len(words) > most >= 0 and least != most:
        wanted = f"at most {most}" + " argument" + "s" * (most != 1)
    got = "none" if not words else " ".join(words[:6]) + (" ..." if len(words) > 6 else "")
    raise UsageError(
        f"pybuild {command.name} takes {wanted}, and got {got}",
        hint=f"pybuild {command.name} {command.usage}".rstrip(),
    )


def _unknown(command: Command, spelling: str, known: list[str]) -> UsageError:
    from grammar.suggest import did_you_mean

    hint = did_you_mean(spelling.lstrip("-"), known, prefix="--")
    return UsageError(f"unknown flag {spelling}", hint=hint or f"pybuild {command.name} --help lists the flags")


def describe(command: Command, width: int = 100) -> str:
    """The help text of one command."""
    lines = [f"Usage: pybuild {command.name} {command.usage}".rstrip(), "", command.summary]
    flags = [flag for flag in (*command.flags, *COMMON) if not flag.unsupported]
    left = [
        (f"-{flag.short}, " if flag.short else "    ")
        + f"--{flag.name}"
        + (f"[={flag.value}]" if flag.bare else f" {flag.value}" if flag.value else "")
        for flag in flags
    ]
    column = min(max(map(len, left)), 34) + 4
    lines += ["", "Options:"]
    for flag, head in zip(flags, left, strict=True):
        text = _wrapped(flag.help, max(width - column, 30))
        if len(head) + 4 > column:
            lines.append(f"  {head}")
            lines += [" " * column + line for line in text]
        else:
            lines.append(f"  {head}".ljust(column) + text[0])
            lines += [" " * column + line for line in text[1:]]
    if command.notes:
        lines += ["", command.notes]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] += (" " if lines[-1] else "") + word
    return lines


def fields(text: str, flag: str) -> list[str]:
    """The comma-separated fields of a value, with CSV's quotes: `type=oci,"dest=a,b.tar"`."""
    found: list[str] = []
    current, quoted, position = "", False, 0
    while position < len(text):
        char = text[position]
        if quoted and char == '"' and text[position + 1 : position + 2] == '"':
            current += '"'
            position += 1
        elif char == '"' and (quoted or not current):
            quoted = not quoted
        elif char == "," and not quoted:
            found.append(current)
            current = ""
        else:
            current += char
        position += 1
    if quoted:
        raise UsageError(f"--{flag} {text!r} has an opening quote without a closing one")
    return [*found, current]


def pairs(text: str, flag: str) -> list[tuple[str, str]]:
    """The `key=value` fields of a value; a bare key has an empty value. Keys in lower case."""
    found = []
    for item in fields(text, flag):
        key, _, value = item.partition("=")
        found.append((key.strip().lower(), value))
    return found

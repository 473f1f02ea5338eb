"""Texts as Go prints and reads them: BuildKit's history lines are made of these.

https://pkg.go.dev/strconv#Quote, https://pkg.go.dev/time#Duration.String
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ESCAPES = {
    "\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": r"\\", '"': r"\"",
}  # fmt: skip
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+) ?(?:b|([kmgtp])(?:i?b)?)?", re.IGNORECASE)
_SMALL_ESCAPE, _WIDE_ESCAPE = 0x80, 0x10000


def quoted(text: str) -> str:
    """`%q` of a string."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < _SMALL_ESCAPE:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < _WIDE_ESCAPE else f"\\U{code:08x}"


def quoted_list(words: Iterable[str]) -> str:
    """`%q` of a slice of strings."""
    return "[" + " ".join(map(quoted, words)) + "]"


def plain_list(words: Iterable[str]) -> str:
    """`%v` of a slice of strings."""
    return "[" + " ".join(words) + "]"


def duration(nanoseconds: int) -> str:
    """A duration as Go prints it: `1m30s`, `1.5s`, `0s`."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if rest < size * 1000:
            return f"{sign}{_decimal(rest, size)}{unit}"
    minutes, rest = divmod(rest, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 10**9)}s"
    if hours:
        text = f"{hours}h{minutes}m{text}"
    elif minutes:
        text = f"{minutes}m{text}"
    return sign + text


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).rjust(len(str(unit)) - 1, "0").rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def parse_size(text: str) -> int:
    """Bytes of a text such as `64m` or `1.5 GiB`, in powers of 1024; ValueError when it is none."""
    found = _SIZE.fullmatch(text)
    if found is None:
        msg = f"invalid size {text!r}: it should look like 64m or 1g"
        raise ValueError(msg)
    power = "kmgtp".index(found[2].lower()) + 1 if found[2] else 0
    return int(float(found[1]) * 1024**power)


def parse_bool(text: str) -> bool:
    """A truth value in any of the spellings of https://pkg.go.dev/strconv#ParseBool; ValueError for others."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    msg = f"{text!r} is neither true nor false"
    raise ValueError(msg)

"""Lengths of time as Go writes them: `1m30s`, `1.5h`, `250ms`."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_LONGEST: Final = (1 << 63) - 1


def nanoseconds(text: str) -> int:
    """Go's time.ParseDuration: the duration in nanoseconds, negative ones too. Raises ValueError."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total = 0
    at = 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None or not (part[1] or part[2]):
            break
        unit = _UNITS[part[3]]
        total += int(part[1] or "0") * unit
        if part[2]:
            total += int(part[2][:18]) * unit // 10 ** len(part[2][:18])
        at = part.end()
    if at < len(rest) or not rest or total > _LONGEST:
        msg = f'invalid duration "{text}"'
        raise ValueError(msg)
    return sign * total

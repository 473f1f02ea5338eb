"""Go's spelling of durations."""

from __future__ import annotations

import pytest

from grammar.durations import nanoseconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("30s", 30 * 10**9),
        ("1m30s", 90 * 10**9),
        ("1.5h", 5400 * 10**9),
        (".5s", 5 * 10**8),
        ("5.s", 5 * 10**9),
        ("-2ms", -2 * 10**6),
        ("+3us", 3000),
        ("4µs7ns", 4007),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert nanoseconds(text) == expected


@pytest.mark.parametrize("text", ["", "3", "s", ".s", "1 s", "1d", "soon", "-", "1s2", "٣s", "9999999h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        nanoseconds(text)

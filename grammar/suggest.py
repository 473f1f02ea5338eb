"""The word that was probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str], *, ignore_case: bool = False) -> str:
    """The choice that two slips of the finger (a letter more, less, other, or two swapped) make of `word`, or empty.

    A word of up to three letters has room for one: two of them make anything of it.
    """
    sought = word.lower() if ignore_case else word
    best = ""
    fewest = min(3, len(sought) // 2 + 1)
    for choice in choices:
        candidate = choice.lower() if ignore_case else choice
        if candidate == sought or abs(len(candidate) - len(sought)) >= fewest:
            continue
        slips = _slips(sought, candidate)
        if slips < fewest:
            best, fewest = choice, slips
    return best


def did_you_mean(word: str, choices: Iterable[str], *, ignore_case: bool = False, prefix: str = "") -> str:
    """A hint for an error: `did you mean X?`, or empty."""
    found = nearest(word, choices, ignore_case=ignore_case)
    return f"did you mean {prefix}{found}?" if found else ""


def _slips(left: str, right: str) -> int:
    """Damerau's distance: `RNU` is one slip away from `RUN`."""
    before: list[int] = []
    above = list(range(len(right) + 1))
    for row, one in enumerate(left, start=1):
        line = [row]
        for column, other in enumerate(right, start=1):
            cost = min(above[column] + 1, line[-1] + 1, above[column - 1] + (one != other))
            if before and column > 1 and one == right[column - 2] and left[row - 2] == other:
                cost = min(cost, before[column - 2] + 1)
            line.append(cost)
        before, above = above, line
    return above[-1]

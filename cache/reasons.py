"""Why a step was not in the cache: two lists of parts of keys compared, and what differs in words.

What a step's key is made of is kept in parts that people can read; `cache.index` keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

Part = tuple[str, str]
"""A readable name and a readable value: `("parent", "sha256:...")`, `("file app.py", "file 644 sha256:...")`."""

_SHORT = 40
_LINES = 50
"""Differences that are told one by one; a changed umask is one of every file."""


class Difference(Struct, frozen=True):
    """A part that is not as it was. before, after: its values; None where there is no such part.

    cause: of the parent, what made it another one, in words; empty where that is not known.
    """

    name: str
    before: str | None
    after: str | None
    cause: str = ""

    def __str__(self) -> str:
        if self.cause:
            return f"{self.name} changed by {self.cause}"
        kind, blank, rest = self.name.partition(" ")
        subject = rest if kind == "file" and blank else self.name
        if self.before is None:
            return f"{subject} added"
        if self.after is None:
            return f"{subject} removed"
        if blank and kind in _FILE_KINDS:
            before, after = self.before.split(" "), self.after.split(" ")
            changed = [pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]]
            if len(before) == len(after) and len(changed) == 1:
                meaning = _meaning(changed[0][1])
                if all(len(word) <= _SHORT for word in changed[0]):
                    return f"{subject}: {meaning} {changed[0][0]} → {changed[0][1]}".replace(":  ", ": ")
                return f"{subject}: {meaning} changed" if meaning else f"{subject} changed"
        elif len(self.before) <= _SHORT and len(self.after) <= _SHORT:
            return f"{subject}: {self.before or 'nothing'} → {self.after or 'nothing'}"
        return f"{subject} changed"

    @property
    def detail(self) -> str:
        """The same in full: which part, what it was, what it is."""
        kind, blank, _ = self.name.partition(" ")
        if not blank or kind not in _FILE_KINDS:
            if self.before is None:
                return f"{self.name} added: {_shortened(self.after or '')}"
            if self.after is None:
                return f"{self.name} removed: {_shortened(self.before)}"
            before, after = _apart(self.before, self.after)
            by = f" by {self.cause}" if self.cause else ""
            return f"{self.name}: {before or 'nothing'} → {after or 'nothing'}{by}"
        if self.before is None:
            return f"{self.name} added ({_words(self.after or '')})"
        if self.after is None:
            return f"{self.name} removed ({_words(self.before)})"
        old, new = self.before.split(" "), self.after.split(" ")
        if len(old) != len(new) or "\n" in self.before + self.after:
            return f"{self.name}: {_words(self.before)} → {_words(self.after)}"
        changed = [
            f"{_meaning(after)} {_shortened(before)} → {_shortened(after)}".lstrip()
            for before, after in zip(old, new, strict=True)
            if before != after
        ]
        return f"{self.name}: {', '.join(changed)}"


class Why(Struct, frozen=True):
    """Why a step was not in the cache: in few words, and all that differed from the nearest record."""

    reason: str
    differences: tuple[Difference, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """A line for each difference; one at least that says what is known, and one for all that are too many."""
        if not self.differences:
            return (_LONGER.get(self.reason, self.reason),)
        lines = [each.detail for each in self.differences[:_LINES]]
        rest = self.differences[_LINES:]
        if rest:
            added = sum(each.before is None for each in rest)
            removed = sum(each.after is None for each in rest)
            counts = ((added, "added"), (removed, "removed"), (len(rest) - added - removed, "changed"))
            lines.append("and " + ", ".join(f"{count} more {word}" for count, word in counts if count))
        return tuple(lines)


NEVER = "first build"
"""The reason where nothing is known of any build of this context."""
NEW = "new step"
"""The reason where earlier builds of this context had no step like it."""
_LONGER = {
    NEVER: "no earlier build of this context is known",
    NEW: "no earlier build of this context had a step like it",
}


_FILE_KINDS = frozenset({"file", "directory", "symlink", "character", "block", "fifo", "socket"})
_LONG = 100


def _meaning(word: str) -> str:
    """What a word of a file's part stands for."""
    if word.startswith("sha256:"):
        return "content"
    if word.isdigit():
        return "mode"
    name, sign, _ = word.partition("=")
    return f"xattr {name}" if sign else "owner" if ":" in word else ""


def _words(value: str) -> str:
    return " ".join(_shortened(word) for word in value.split(" "))


def _shortened(text: str) -> str:
    """A digest by its beginning, a long text by both ends, on one line."""
    if text.startswith("sha256:") and len(text) == 71:
        return text[:19]
    text = text.replace("\n", "\\n")
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]}…{text[-_LONG // 2 :]}"


def _apart(before: str, after: str) -> tuple[str, str]:
    """Two values so cut that what differs is seen: what both begin with is left out but for its end."""
    if max(len(before), len(after)) <= _LONG:
        return _shortened(before), _shortened(after)
    pairs = zip(before, after, strict=False)
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(before), len(after)))
    start = max(0, same - _LONG // 4)
    mark = "…" if start else ""
    ends = [text[start : start + _LONG] + ("…" if len(text) > start + _LONG else "") for text in (before, after)]
    return (mark + ends[0]).replace("\n", "\\n"), (mark + ends[1]).replace("\n", "\\n")


def by_name(parts: Iterable[Part]) -> dict[str, str]:
    """The parts by name; the values of a name that comes several times, in order, on lines of their own."""
    found: dict[str, str] = {}
    for name, value in parts:
        found[name] = value if name not in found else f"{found[name]}\n{value}"
    return found


def compared(before: Iterable[Part], after: Iterable[Part]) -> list[Difference]:
    """How two lists of parts differ: what is new or changed in the order of `after`, then what is gone."""
    old, new = by_name(before), by_name(after)
    found = [Difference(name, old.get(name), value) for name, value in new.items() if old.get(name) != value]
    found += [Difference(name, value, None) for name, value in old.items() if name not in new]
    return found

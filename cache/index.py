"""The instruction cache: which layer a step gave when all that it depends on was the same.

A step's key is a hash of *parts*, each a readable name and a readable value. The parts are kept beside the record, so
that a miss can be explained by the part that differs; what must not be readable goes into the key by `hidden` only.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import TYPE_CHECKING

from msgspec import Struct, convert, structs

from cache.oci import Descriptor, Digest, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache.database import Database

Part = tuple[str, str]
"""A readable name and a readable value: `("parent", "sha256:...")`, `("file app.py", "file 644 sha256:...")`."""

_SCHEMA = b"pybuild step 1"
_KEPT = 4
"""Records of one step that keep their parts: as many as there are likely to be branches that take turns."""

_SHORT = 40
_DAY = 86400

_FOLDED = 5000
"""Parts that are kept behind a digest of them; more cost more than their explanation is worth."""

_BUILDS = 10
"""Builds of which it is kept how their steps fared."""


def key(parts: Iterable[Part], *, hidden: Iterable[bytes] = ()) -> str:
    """The key of a step, in hex. The order of the parts counts.

    Every name, value and hidden value goes in with its length, so no two lists run together to the same bytes.
    """
    state = hashlib.sha256(_SCHEMA)
    pieces: list[bytes] = []
    for name, value in parts:
        first, second = name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")
        pieces += (b"p%d:%d:" % (len(first), len(second)), first, second)
    for secret in hidden:
        pieces += (b"h%d:" % len(secret), secret)
    state.update(b"".join(pieces))
    return state.hexdigest()


class Record(Struct, frozen=True):
    """What a step gave.

    layer: None when it changed nothing. size: bytes of content, uncompressed. files: how many entries. created: when,
    in seconds since 1970, as the image has it. seconds: how long it took.
    """

    key: str
    layer: Layer | None
    size: int
    files: int
    created: float
    seconds: float


class Fate(Struct, frozen=True):
    """How one step of a build fared. number, total: as progress counts it. line: in the build file.

    reason: why it was not taken from the cache, in few words. changes: every part that differed, a line for each.
    """

    stage: str
    number: int
    total: int
    line: int
    title: str
    cached: bool
    reason: str = ""
    changes: tuple[str, ...] = ()


class LastBuild(Struct, frozen=True):
    """What is kept of a build: its context's name, when it ended in seconds since 1970, and how its steps fared."""

    name: str
    ended: float
    steps: tuple[Fate, ...]


class Difference(Struct, frozen=True):
    """A part that is not as it was. before, after: its values; None where there is no such part."""

    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        kind, blank, rest = self.name.partition(" ")
        subject = rest if kind == "file" and blank else self.name
        if self.before is None:
            return f"{subject} added"
        if self.after is None:
            return f"{subject} removed"
        before, after = self.before.split(" "), self.after.split(" ")
        if len(before) == len(after):
            changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
            if len(changed) == 1 and all(len(word) <= _SHORT for word in changed[0]):
                return f"{subject}: {changed[0][0] or 'nothing'} → {changed[0][1] or 'nothing'}"
        if len(self.before) <= _SHORT and len(self.after) <= _SHORT:
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
            return f"{self.name}: {before or 'nothing'} → {after or 'nothing'}"
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
    """Why a step was not in the cache: in few words (empty when it was never seen), and all that differed."""

    reason: str
    differences: tuple[Difference, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """A line for each difference; one at least that says what is known."""
        if self.differences:
            return tuple(each.detail for each in self.differences)
        return (self.reason or "no earlier build has done this step",)


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


class Index:
    """The records of one store. Safe from threads and processes, as its database is."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs = os.path.join(database.path.parent, "blobs", "sha256", "")
        self._today = int(time.time() / _DAY)
        self._touched: set[str] = set()
        self._touched_memos: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def lookup(self, key: str) -> Record | None:
        """The record of a key; None when there is none, or when its layer's blob is missing or short."""
        rows = self._database.query(
            "SELECT diff_id, digest, blob_size, media_type, size, files, created, seconds, used FROM records "
            "WHERE key = ?",
            (key,),
        )
        if not rows:
            return None
        diff_id, digest, blob_size, media_type, size, files, created, seconds, used = rows[0]
        if used != self._today:
            with self._lock:
                self._touched.add(key)
        if digest is None:
            return Record(key, None, size, files, created, seconds)
        try:
            if os.stat(self._blobs + digest[7:]).st_size != blob_size:
                return None
        except FileNotFoundError:
            return None
        layer = Layer(Digest(diff_id), Descriptor(media_type, Digest(digest), blob_size))
        return Record(key, layer, size, files, created, seconds)

    def age(self, key: str) -> float:
        """Seconds since the step of this key was done, by the clock. 0 when there is no record."""
        rows = self._database.query("SELECT written FROM records WHERE key = ?", (key,))
        return time.time() - float(rows[0][0]) if rows else 0.0

    def record(self, record: Record, parts: Iterable[Part], step_id: str, written: float | None = None) -> None:
        """Keep a record; one of the same key gives way. step_id: the step's place, the same from build to build.

        written: when the step was done, in seconds since 1970; None for now.
        """
        kept = json.dumps(list(parts))
        step = _storable(step_id)
        layer: tuple[object, ...] = (None,) * 4
        if record.layer is not None:
            blob = record.layer.descriptor
            layer = (record.layer.diff_id, blob.digest, blob.size, blob.media_type)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO records (key, step, diff_id, digest, blob_size, media_type, size, files, "
                "created, seconds, parts, written, used) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(record.key, step, *layer, record.size, record.files, record.created, record.seconds, kept),
                    *(time.time() if written is None else written, self._today),
                ),
            )
            connection.execute(
                "UPDATE records SET parts = NULL WHERE number = "
                "(SELECT number FROM records WHERE step = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (step, _KEPT),
            )

    def differences(self, step_id: str, parts: Sequence[Part]) -> list[Difference] | None:
        """How these parts differ from those of the nearest record of the same step; None when it has no record.

        The nearest is the one with the fewest parts that differ, the newest of several. What is new or changed comes in
        the order of `parts`, then what is gone.
        """
        rows = self._database.query(
            "SELECT parts FROM records WHERE step = ? ORDER BY number DESC LIMIT ?", (_storable(step_id), _KEPT)
        )
        now = _by_name(parts)
        nearest: list[Difference] | None = None
        for (text,) in rows:
            if text is None:
                continue
            before = _by_name((name, value) for name, value in json.loads(text))
            found = [
                Difference(name, before.get(name), value) for name, value in now.items() if before.get(name) != value
            ]
            found += [Difference(name, value, None) for name, value in before.items() if name not in now]
            if nearest is None or len(found) < len(nearest):
                nearest = found
        return nearest

    def explain(self, step_id: str, parts: Sequence[Part]) -> str:
        """Why the step is not in the cache, in a few words; empty when it was never seen."""
        return self.why(step_id, parts).reason

    def why(self, step_id: str, parts: Sequence[Part], identity: str = "") -> Why:
        """Why the step is not in the cache. identity: its key, where it has hidden parts."""
        found = self.differences(step_id, parts)
        if found is None:
            return Why("")
        if not found:
            rows = self._database.query("SELECT 1 FROM records WHERE key = ?", (identity or key(parts),))
            return Why("its layer is gone from the store" if rows else "a value that is kept secret changed")
        found = [inner for each in found for inner in self._unfolded(each)]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return Why(str(found[0]) + more, tuple(found))

    def fold(self, parts: Sequence[Part]) -> str:
        """A digest that stands for these parts; the parts of not too many are kept, for `why` to say what differs."""
        digest = key(parts)
        if len(parts) <= _FOLDED:
            self.memoise("folded", digest, json.dumps(list(parts)))
        return digest

    def _unfolded(self, difference: Difference) -> list[Difference]:
        """What differs inside two values that `fold` gave."""
        if difference.before is None or difference.after is None or not difference.name.endswith("files"):
            return [difference]
        texts = [self.memo("folded", value) for value in (difference.before, difference.after)]
        if texts[0] is None or texts[1] is None:
            return [difference]
        before, after = (_by_name((name, value) for name, value in json.loads(text)) for text in texts if text)
        names = [*after, *(name for name in before if name not in after)]
        found = [Difference(name, before.get(name), after.get(name)) for name in names]
        return [each for each in found if each.before != each.after] or [difference]

    def settle(self) -> None:
        """Write down that what was looked up is in use: at a build's end, at most once a day for each."""
        with self._lock:
            records, self._touched = self._touched, set()
            memos, self._touched_memos = self._touched_memos, set()
        if records or memos:
            with self._database.transaction() as connection:
                connection.executemany(
                    "UPDATE records SET used = ? WHERE key = ?", [(self._today, key) for key in records]
                )
                connection.executemany(
                    "UPDATE memos SET used = ? WHERE kind = ? AND key = ?", [(self._today, *memo) for memo in memos]
                )

    def keep_build(self, name: str, steps: Sequence[Fate]) -> None:
        """Keep how the steps of a build fared, for `last_build`. The same as before writes nothing."""
        name = _storable(name)
        text = json.dumps([structs.asdict(step) for step in steps], separators=(",", ":"))
        last = self._database.query("SELECT name, steps FROM builds ORDER BY number DESC LIMIT 1")
        if last == [(name, text)]:
            return
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO builds (name, ended, steps) VALUES (?, ?, ?)", (name, time.time(), text))
            connection.execute("DELETE FROM builds WHERE number <= (SELECT max(number) FROM builds) - ?", (_BUILDS,))

    def last_build(self) -> LastBuild | None:
        """How the steps of the last build fared; None before any."""
        rows = self._database.query("SELECT name, ended, steps FROM builds ORDER BY number DESC LIMIT 1")
        if not rows:
            return None
        name, ended, text = rows[0]
        return LastBuild(name, ended, convert(json.loads(text), tuple[Fate, ...]))

    def memo(self, kind: str, key: str) -> str | None:
        """A fact that was worked out before, or None."""
        name = _storable(key)
        rows = self._database.query("SELECT value, used FROM memos WHERE kind = ? AND key = ?", (kind, name))
        if not rows:
            return None
        value, used = rows[0]
        if used != self._today:
            with self._lock:
                self._touched_memos.add((kind, name))
        return bytes(value).decode("utf-8", "surrogateescape")

    def memoise(self, kind: str, key: str, value: str) -> None:
        """Remember a fact that follows from its key alone, or that whoever asks can check."""
        row = (kind, _storable(key), value.encode("utf-8", "surrogateescape"), self._today)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO memos (kind, key, value, used) VALUES (?, ?, ?, ?)", row)


def _by_name(parts: Iterable[Part]) -> dict[str, str]:
    """The parts by name; the values of a name that comes several times, in order, on lines of their own."""
    found: dict[str, str] = {}
    for name, value in parts:
        found[name] = value if name not in found else f"{found[name]}\n{value}"
    return found


def _storable(text: str) -> str:
    """SQLite's text is UTF-8; names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode()

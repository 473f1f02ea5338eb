"""The instruction cache: which layer a step gave when all that it depends on was the same.

A step's key is a hash of *parts*, each a readable name and a readable value. The parts are kept beside the record, so
that a miss can be explained by the part that differs; what must not be readable goes into the key by `hidden` only.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from msgspec import Struct

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
    in seconds since 1970. seconds: how long it took.
    """

    key: str
    layer: Layer | None
    size: int
    files: int
    created: float
    seconds: float


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


class Index:
    """The records of one store. Safe from threads and processes, as its database is."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs = os.path.join(database.path.parent, "blobs", "sha256", "")

    def lookup(self, key: str) -> Record | None:
        """The record of a key; None when there is none, or when its layer's blob is missing or short."""
        rows = self._database.query(
            "SELECT diff_id, digest, blob_size, media_type, size, files, created, seconds FROM records WHERE key = ?",
            (key,),
        )
        if not rows:
            return None
        diff_id, digest, blob_size, media_type, size, files, created, seconds = rows[0]
        if digest is None:
            return Record(key, None, size, files, created, seconds)
        try:
            if os.stat(self._blobs + digest[7:]).st_size != blob_size:
                return None
        except FileNotFoundError:
            return None
        layer = Layer(Digest(diff_id), Descriptor(media_type, Digest(digest), blob_size))
        return Record(key, layer, size, files, created, seconds)

    def record(self, record: Record, parts: Iterable[Part], step_id: str) -> None:
        """Keep a record; one of the same key gives way. step_id: the step's place, the same from build to build."""
        kept = json.dumps(list(parts))
        step = _storable(step_id)
        layer: tuple[object, ...] = (None,) * 4
        if record.layer is not None:
            blob = record.layer.descriptor
            layer = (record.layer.diff_id, blob.digest, blob.size, blob.media_type)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO records (key, step, diff_id, digest, blob_size, media_type, size, files, "
                "created, seconds, parts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (record.key, step, *layer, record.size, record.files, record.created, record.seconds, kept),
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
        found = self.differences(step_id, parts)
        if found is None:
            return ""
        if not found:
            rows = self._database.query("SELECT 1 FROM records WHERE key = ?", (key(parts),))
            return "its layer is gone from the store" if rows else "a value that is kept secret changed"
        return str(found[0]) + (f" and {len(found) - 1} more" if len(found) > 1 else "")

    def memo(self, kind: str, key: str) -> str | None:
        """A fact that was worked out before, or None."""
        rows = self._database.query("SELECT value FROM memos WHERE kind = ? AND key = ?", (kind, _storable(key)))
        return bytes(rows[0][0]).decode("utf-8", "surrogateescape") if rows else None

    def memoise(self, kind: str, key: str, value: str) -> None:
        """Remember a fact that follows from its key alone, or that whoever asks can check."""
        row = (kind, _storable(key), value.encode("utf-8", "surrogateescape"))
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO memos VALUES (?, ?, ?)", row)


def _by_name(parts: Iterable[Part]) -> dict[str, str]:
    """The parts by name; the values of a name that comes several times, in order, on lines of their own."""
    found: dict[str, str] = {}
    for name, value in parts:
        found[name] = value if name not in found else f"{found[name]}\n{value}"
    return found


def _storable(text: str) -> str:
    """SQLite's text is UTF-8; names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode()

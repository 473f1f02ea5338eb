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
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct, convert, structs
from msgspec.structs import replace

from cache.oci import Descriptor, Digest, Layer
from cache.reasons import NEVER, NEW, Difference, Part, Why, compared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cache.database import Database

    Elsewhere = Callable[["Place"], tuple[Sequence[Part], Sequence[Part]] | None]

_SCHEMA = b"pybuild step 1"
_KEPT = 4
"""Records of one step that keep their parts: as many as there are likely to be branches that take turns."""

_TITLE = 300
"""Letters of a step's words that are kept to find its record again when it has moved."""
_LOOKED_AT = 100
_ALIKE = 0.6
"""How much of two steps' words has to be the same for the one to be taken for the other, edited and moved."""

HOUR = 3600
"""Seconds: how exactly it is kept when a record or a memo was last used, so that most builds have nothing to write."""

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


class Place(Struct, frozen=True):
    """Where a step stands, and what is known of it beside its key. It finds the record that explains a miss.

    build: the context's name. stage, number: as progress counts. title: what the step says, as progress shows it.
    notes: readable facts that tell more than the key's parts: the base's name and digest, the variables that the title
    names. others: titles of all the build's steps: a record of one of them explains that one, wherever it stood. names:
    what the user calls parts. cause: the step above this one that was done anew, empty for none. parts: to be kept and
    told in place of the key's, which may hold a digest of many.
    """

    build: str
    stage: str
    number: int
    title: str
    notes: tuple[Part, ...] = ()
    others: frozenset[str] = frozenset()
    names: tuple[Part, ...] = ()
    cause: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def step(self) -> str:
        """The place in one line, the same from build to build."""
        return _storable(f"{self.build} {self.stage} {self.number}")


class Index:
    """The records of one store. Safe from threads and processes, as its database is."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs = os.path.join(database.path.parent, "blobs", "sha256", "")
        self._hour = int(time.time() / HOUR)
        self._touched: set[str] = set()
        self._touched_memos: set[tuple[str, str]] = set()
        self._known: dict[str, bool] = {}
        self._whys: dict[str, Why] = {}
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
        if used != self._hour:
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

    def record(self, record: Record, parts: Iterable[Part], place: Place, written: float | None = None) -> None:
        """Keep a record; one of the same key gives way. place: whose it is, for later builds' explanations.

        written: when the step was done, in seconds since 1970; None for now.
        """
        kept = json.dumps(place.parts or list(parts))
        step = place.step
        layer: tuple[object, ...] = (None,) * 4
        if record.layer is not None:
            blob = record.layer.descriptor
            layer = (record.layer.diff_id, blob.digest, blob.size, blob.media_type)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO records (key, step, diff_id, digest, blob_size, media_type, size, files, "
                "created, seconds, parts, written, used, build, title, notes) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(record.key, step, *layer, record.size, record.files, record.created, record.seconds, kept),
                    *(time.time() if written is None else written, self._hour),
                    *(_storable(place.build), _title(place), json.dumps(place.notes)),
                ),
            )
            connection.execute(
                "UPDATE records SET parts = NULL WHERE number = "
                "(SELECT number FROM records WHERE step = ? AND parts IS NOT NULL ORDER BY number DESC "
                "LIMIT 1 OFFSET ?)",
                (step, _KEPT),
            )

    def differences(self, place: Place, parts: Sequence[Part]) -> list[Difference] | None:
        """How these parts differ from those of the nearest record; None when there is none of a step like this one.

        The nearest is the one with the fewest parts that differ; of several, one of the same place, the newest. What is
        new or changed comes in the order of `parts`, then what is gone, the layers below at the end.
        """
        return self._nearest(self._candidates(place), place, parts) or self._nearest(
            self._elsewhere(place), place, parts, len(parts) // 3
        )

    def _nearest(
        self, candidates: Iterable[tuple[int, str]], place: Place, parts: Sequence[Part], most: int | None = None
    ) -> list[Difference] | None:
        """The differences from the nearest of these records that has no more than `most` of them."""
        nearest: tuple[int, bool, list[Difference]] | None = None
        for number, step in candidates:
            for text, notes in self._database.query("SELECT parts, notes FROM records WHERE number = ?", (number,)):
                found = compared([(name, value) for name, value in json.loads(text)], parts)
                rank = (len(found), step != place.step)
                if (nearest is None or rank < nearest[:2]) and (most is None or len(found) <= most):
                    noted = [(name, value) for name, value in json.loads(notes or "[]")]
                    nearest = (*rank, _told(found, noted, place))
            if nearest is not None and nearest[0] <= 1:
                break  # large lists of parts take long to read, and none can be much nearer
        return None if nearest is None else nearest[2]

    def _candidates(self, place: Place) -> list[tuple[int, str]]:
        """The records that may explain a step, by number and step: those of the same place first, the newest first.

        Those of the same words wherever they stood, those of the same place, and where there are none of either, those
        that say nearly the same.
        """
        title, build = _title(place), _storable(place.build)
        rows = self._database.query(_SAME_TITLE, (build, title, _KEPT))
        rows += self._database.query(_SAME_STEP, (place.step, _KEPT))
        others = {_shown(other) for other in place.others} - {title}
        # A record of a step that is still there explains that one; of another kind, none of the parts is comparable.
        fit = {row for row in rows if row[2] == title or (row[2] not in others and _kind(row[2]) == _kind(title))}
        if not fit:
            from difflib import SequenceMatcher

            matcher = SequenceMatcher(b=title, autojunk=False)
            for row in self._database.query(_SAME_BUILD, (build, _LOOKED_AT)):
                matcher.set_seq1(row[2])
                if row[2] not in others and _kind(row[2]) == _kind(title) and matcher.ratio() >= _ALIKE:
                    fit.add(row)
        ordered = sorted(fit, key=lambda row: (row[1] != place.step, -row[0]))
        return [(number, step) for number, step, _ in ordered][: 2 * _KEPT]

    def _elsewhere(self, place: Place) -> list[tuple[int, str]]:
        """Records of the same words in builds of other contexts: this one may be another checkout of the same files."""
        return self._database.query(_SAME_WORDS, (_title(place), _KEPT))

    def explain(self, place: Place, parts: Sequence[Part]) -> str:
        """Why the step is not in the cache, in a few words."""
        return self.why(place, parts).reason

    def why(
        self,
        place: Place,
        parts: Sequence[Part],
        identity: str = "",
        elsewhere: Elsewhere | None = None,
    ) -> Why:
        """Why the step is not in the cache. identity: its key, where it has hidden parts.

        elsewhere: asked for the parts and the notes of such a step's record where the store has none.
        """
        if not identity:
            return self._why(place, place.parts or parts, key(parts), elsewhere)
        if identity not in self._whys:
            self._whys[identity] = self._why(place, place.parts or parts, identity, elsewhere)
        return self._whys[identity]

    def _why(self, place: Place, parts: Sequence[Part], identity: str, elsewhere: Elsewhere | None) -> Why:
        found = self.differences(place, parts)
        if found is None and elsewhere is not None and (known := elsewhere(place)) is not None:
            found = _told(compared(known[0], parts), known[1], place) or None
        if found is None:
            return Why(NEW if self._is_known(place.build) else NEVER)
        if not found:
            rows = self._database.query("SELECT 1 FROM records WHERE key = ?", (identity,))
            return Why("its layer is gone from the store" if rows else "a value that is kept secret changed")
        found = [inner for each in found for inner in self._unfolded(each)]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return Why(str(found[0]) + more, tuple(found))

    def _is_known(self, build: str) -> bool:
        """Whether there were records of this context before this build began to make some."""
        with self._lock:
            if build not in self._known:
                self._known[build] = bool(self._database.query(_SAME_BUILD, (_storable(build), 1)))
            return self._known[build]

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
        before, after = ([(name, value) for name, value in json.loads(text)] for text in texts if text)
        return compared(before, after) or [difference]

    def settle(self) -> None:
        """Write down that what was looked up is in use: at a build's end, at most once an hour for each."""
        with self._lock:
            records, self._touched = self._touched, set()
            memos, self._touched_memos = self._touched_memos, set()
        if records or memos:
            with self._database.transaction() as connection:
                connection.executemany(
                    "UPDATE records SET used = ? WHERE key = ?", [(self._hour, key) for key in records]
                )
                connection.executemany(
                    "UPDATE memos SET used = ? WHERE kind = ? AND key = ?", [(self._hour, *memo) for memo in memos]
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
        if used != self._hour:
            with self._lock:
                self._touched_memos.add((kind, name))
        return bytes(value).decode("utf-8", "surrogateescape")

    def memoise(self, kind: str, key: str, value: str) -> None:
        """Remember a fact that follows from its key alone, or that whoever asks can check."""
        row = (kind, _storable(key), value.encode("utf-8", "surrogateescape"), self._hour)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO memos (kind, key, value, used) VALUES (?, ?, ?, ?)", row)

    def agree(self, kind: str, key: str, value: str) -> str:
        """The fact that is remembered, this one when there is none: whoever asks at the same time gets the same."""
        with self._database.transaction():
            known = self.memo(kind, key)
            if known is None:
                self.memoise(kind, key, value)
            return value if known is None else known


_SAME_TITLE = (
    "SELECT number, step, title FROM records WHERE build = ? AND title = ? AND parts IS NOT NULL "
    "ORDER BY number DESC LIMIT ?"
)
_SAME_STEP = "SELECT number, step, title FROM records WHERE step = ? AND parts IS NOT NULL ORDER BY number DESC LIMIT ?"
_SAME_BUILD = (
    "SELECT number, step, title FROM records WHERE build = ? AND parts IS NOT NULL ORDER BY number DESC LIMIT ?"
)
_SAME_WORDS = "SELECT number, step FROM records WHERE title = ? AND parts IS NOT NULL ORDER BY number DESC LIMIT ?"


_BELOW = ("base", "base layers", "after")
"""Notes that speak of the layers below."""


def _told(found: list[Difference], notes: Sequence[Part], place: Place) -> list[Difference]:
    """Differences as the user would say them: the cause before what follows from it, the layers below at the end."""
    if not found:
        return found
    before, after, names = dict(notes), dict(place.notes), dict(place.names)
    first = [
        Difference(name, before[name], value)
        for name, value in after.items()
        if name in before and before[name] != value and name not in _BELOW
    ]
    told = [replace(each, name=names.get(each.name, each.name)) for each in found if each.name != "parent"]
    seen = {each.name for each in told}
    below = [_below(each, before, after, place.cause) for each in found if each.name == "parent"]
    return [*(each for each in first if each.name not in seen), *told, *below]


def _below(parent: Difference, before: dict[str, str], after: dict[str, str], cause: str) -> Difference:
    """What made the layers below a step others: the base, a step above, or the lines above."""
    if "base" in before and "base" in after and before["base layers"] != after["base layers"]:
        names = [note.rpartition("@") for note in (before["base"], after["base"])]
        if names[0][0] != names[1][0]:
            return Difference("base", before["base"], after["base"])
        return Difference(f"base {names[1][0]}", names[0][2], names[1][2])
    if before.get("after") != after.get("after"):
        return Difference("step above", before.get("after"), after.get("after"))
    return replace(parent, cause=cause)


def _title(place: Place) -> str:
    return _shown(place.title)


@lru_cache(maxsize=1 << 10)
def _shown(title: str) -> str:
    return _storable(title[:_TITLE])


def _kind(title: str) -> str:
    """RUN, WORKDIR, or what COPY and ADD have in common."""
    word = title.partition(" ")[0]
    return "COPY" if word == "ADD" else word


def _storable(text: str) -> str:
    """SQLite's text is UTF-8; names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode()

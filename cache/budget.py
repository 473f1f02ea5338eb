"""What the cache may take of the disk, kept at the end of builds.

A build that was all in the cache looks at nothing. One that wrote layers adds up how much; only when that may have
filled the budget, when the disk runs short, or after a day is the cache measured, and of that only what is new: a
snapshot does not change once it is in place, a cache mount not while nobody mounts it. What is removed is moved aside
first, and deleted for as long as nobody minds waiting; the ends of later builds go on with it.

The default is that of BuildKit: 80 % of the disk but no more than 100 GB, and where less than 20 % of it is free,
down to 10 % of it or 10 GB. https://docs.docker.com/build/cache/garbage-collection/
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from cache.store import Store
    from cache.usage import Cut

_GB = 10**9
_DAY = 86400.0
_AGAIN = 600.0
"""Seconds for which a disk that is short of space, or a cache that could not be cut down, is not looked at again."""

_LOW = 0.9
"""Of the budget: what is left once it was full, so that not every build has something to remove."""

_PATIENCE = 0.5
"""Seconds that deleting may take at a build's end."""


class Budget(Struct, frozen=True):
    """In bytes. most: what the cache may take, None for any amount. free: what is to be free on the disk.

    reserved: what the cache may take even when the disk is short of space.
    """

    most: int | None
    free: int = 0
    reserved: int = 0


def default(store: Store) -> Budget:
    """The budget where none is asked for, by the size of the disk that the store is on."""
    disk = os.statvfs(store.root)
    size = disk.f_blocks * disk.f_frsize
    return Budget(min(size * 8 // 10, 100 * _GB), size * 2 // 10, min(size // 10, 10 * _GB))


def keep(store: Store, budget: Budget, written: int) -> Cut | None:
    """Cut the cache down where it is over its budget; what was removed, None when nothing had to be.

    written: bytes of layers that the build has made, uncompressed. To be called without a lease of one's own. Nothing
    goes that an image which is listed needs, that a running build may rely on, or that a RUN has mounted.
    """
    if budget.most is None:
        return None
    # A layer is there as a blob and, once a RUN stands on it, as a directory.
    grown = 2 * written
    before = _read(store)
    short = budget.free - _free(store)
    now = time.time()
    expected = before.size + before.grown + grown
    recent = before.at <= now <= before.at + _AGAIN
    # What was left over the budget is in use: it takes its time.
    full = expected > budget.most and not (recent and before.size > budget.most)
    due = full or not before.at <= now <= before.at + _DAY
    if short > 0 and expected > budget.reserved and not recent:
        due = True
    if not due:
        _write(store, Measured(before.at, before.size, before.grown + grown), before)
        return None
    # Of several builds that end at once, one looks.
    if not _write(store, Measured(now, before.size, 0), before):
        return None
    from cache.usage import PRUNABLE, cut, measure

    items = measure(store, remembered=True)
    size = sum(item.size for item in items if item.kind in PRUNABLE)
    limit = budget.most
    if short > 0:
        limit = min(limit, max(budget.reserved, size - short))
    done = None
    if size > limit:
        done = cut(store, keep=int(limit * _LOW), items=items, seconds=_PATIENCE)
        size -= sum(item.size for item in done.items)
    _write(store, Measured(now, size, 0), None)
    return done if done is not None and done.items else None


class Measured(Struct, frozen=True):
    """What is known of the cache's size. at: when it was measured, in seconds since 1970; 0 for never.

    size: bytes, then. grown: bytes that builds have written since, about.
    """

    at: float = 0.0
    size: int = 0
    grown: int = 0


def _read(store: Store) -> Measured:
    rows = store.database.query("SELECT value FROM meta WHERE name = 'budget'")
    return Measured(*json.loads(rows[0][0])) if rows else Measured()


def _write(store: Store, found: Measured, before: Measured | None) -> bool:
    """Keep what is known, unless somebody else has measured since `before` was read."""
    with store.database.transaction() as connection:
        if before is not None and _read(store).at != before.at:
            return False
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('budget', ?)", (json.dumps([found.at, found.size, found.grown]),)
        )
    return True


def _free(store: Store) -> int:
    disk = os.statvfs(store.root)
    return disk.f_bavail * disk.f_frsize

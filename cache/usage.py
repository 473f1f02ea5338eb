"""What of the store takes how much of the disk, and cutting the cache down to a size.

Everything below the store's folder is counted once, by the blocks that it occupies, so that the sum is what `du` says:

    image       blobs of the images that are listed, and of the steps in their history; never pruned here
    step        what only the instruction cache and intermediate images have: layers of stages that were copied from
    snapshot    layers laid out as directories for RUN; made again from their blobs
    listing     what layers hold; made again from their blobs
    fetched     downloads and git checkouts
    mount       folders of RUN --mount=type=cache
    database    pybuild.db and its log
    other       the rest: folders, locks, index.json, what is being written
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from cache.index import HOUR
from cache.prune import GRACE, doom, drop_intermediates, empty, forget, sweep, to_trash
from cache.removal import take_away

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cache.database import Connection
    from cache.store import Store

KINDS = ("image", "step", "snapshot", "listing", "fetched", "mount", "database", "other")
PRUNABLE = ("step", "snapshot", "listing", "fetched", "mount")


class Item(Struct, frozen=True):
    """Something on the disk. path: below the store. used, made: seconds since 1970, as well as they are known."""

    kind: str
    name: str
    path: str
    size: int
    used: float
    made: float


class Cut(Struct, frozen=True):
    """What a prune of the cache took. items: gone, or going when the builds that run have ended. bytes: off the disk.

    held: so many items were left, as they are in use.
    """

    items: tuple[Item, ...]
    bytes: int
    held: int


def measure(store: Store, *, remembered: bool = False) -> list[Item]:
    """All that is in the store. The sizes add up to what the folder occupies on the disk.

    remembered: only what can be pruned, and for snapshots and cache mounts that are as they were the size of last time.
    """
    disk = _Disk(str(store.root), _Sizes(store) if remembered else None)
    items = [*_blobs(store, disk), *_derived(store, disk), *_fetched(disk), *_mounts(disk)]
    if disk.sizes is not None:
        disk.sizes.keep()
        return [item for item in items if item.kind in PRUNABLE]
    for name in ("pybuild.db", "pybuild.db-wal", "pybuild.db-shm"):
        items += disk.take("database", name, name)
    rest = disk.take("other", "other", "")
    return [*items, *rest]


_CHEAP = ("listing", "snapshot", "fetched", "step", "mount")
"""What is cheap to have again before what is not: the order among those last used in the same hour."""


def cut(
    store: Store,
    *,
    keep: int | None = None,
    older_than: float | None = None,
    kinds: Iterable[str] = PRUNABLE,
    items: Iterable[Item] | None = None,
    seconds: float | None = None,
) -> Cut:
    """Remove from the cache what has not been used for longest.

    items: what `measure` gave a moment ago. seconds: how long files may be deleted; what is left by then, moved aside,
    goes at the end of later builds.
    kinds: of `PRUNABLE`, what may go. older_than: only what was not used for so many seconds. keep: until what is left
    of these kinds takes no more than so many bytes; None for nothing at all. Images that are listed lose nothing; what
    a running build may rely on stays until it has ended. Idempotent.
    """
    store.ready()
    kinds = frozenset(kinds)
    found = measure(store) if items is None else items
    candidates = sorted(
        (item for item in found if item.kind in kinds),
        key=lambda item: (int(item.used / HOUR), _CHEAP.index(item.kind), item.made),
    )
    before = time.time() - older_than if older_than is not None else None
    left = sum(item.size for item in candidates)
    chosen: list[Item] = []
    for item in candidates:
        if keep is not None and left <= keep:
            break
        if before is None or item.used < before:
            chosen.append(item)
            left -= item.size
    with store.database.transaction() as connection:
        if "step" in kinds:
            _drop_steps(connection, [item for item in chosen if item.kind == "step"])
            if keep is None:
                hour = int((before or time.time() + HOUR) / HOUR)
                connection.execute("DELETE FROM records WHERE digest IS NULL AND used < ?", (hour,))
        forget(connection)
    trash: list[str] = []
    gone: list[Item] = []
    with _idle(store) as idle:
        for item in chosen:
            if item.kind == "step":
                gone.append(item)
                continue
            moved = (
                _free_mount(store, item.path) if item.kind == "mount" else to_trash(store, item.path) if idle else None
            )
            if moved is not None:
                gone.append(item)
                trash += moved
    freed = empty(trash, seconds) + sweep(store, seconds)
    store.database.compact()
    return Cut(tuple(gone), freed, len(chosen) - len(gone))


def remove_mount(store: Store, item: Item) -> int | None:
    """Remove the folder of a cache mount; the bytes that it occupied, None when a RUN is using it."""
    moved = _free_mount(store, item.path)
    return None if moved is None else sum(map(take_away, moved))


# ---------------------------------------------------------------- what is there


def _blobs(store: Store, disk: _Disk) -> Iterator[Item]:
    query = store.database.query
    needed = {digest for (digest,) in query(_KEPT_BLOBS)}
    used = {digest: _latest(hour) for digest, hour in query("SELECT digest, max(used) FROM records GROUP BY digest")}
    steps = dict(query("SELECT digest, step FROM records WHERE digest IS NOT NULL ORDER BY number"))
    for image_id, manifest, last in query(_LAST_LAYERS):
        used[image_id] = used[manifest] = used.get(last, 0.0)
        steps[image_id] = steps[manifest] = f"image after {steps.get(last, last)}"
    for entry in disk.names("blobs/sha256"):
        digest = "sha256:" + entry.name
        path = f"blobs/sha256/{entry.name}"
        if digest in needed:
            yield from disk.take("image", digest, path)
        else:
            yield from disk.take("step", steps.get(digest, digest), path, used.get(digest, 0.0))


def _latest(hour: int) -> float:
    """The latest time that may be meant by an hour: what was used in this one was used a moment ago."""
    return min(float((hour + 1) * HOUR), time.time())


# What an image was built on shows its steps in `history` and costs two small blobs: its layers are the image's own.
_KEPT = """
    WITH RECURSIVE kept (number) AS (
        SELECT number FROM images WHERE intermediate = 0
        UNION SELECT images.parent FROM images JOIN kept ON kept.number = images.number WHERE parent IS NOT NULL
    )
"""
_KEPT_BLOBS = (
    _KEPT  # noqa: S608  nothing but constants
    + """
    SELECT id FROM images JOIN kept USING (number) UNION SELECT manifest FROM images JOIN kept USING (number)
    UNION SELECT l.digest FROM kept JOIN image_layers i ON i.image = kept.number JOIN layers l ON l.number = i.layer
    """
)
_LAST_LAYERS = """
    SELECT m.id, m.manifest, (SELECT l.digest FROM image_layers i JOIN layers l ON l.number = i.layer
                              WHERE i.image = m.number ORDER BY i.position DESC LIMIT 1)
    FROM images m WHERE m.intermediate = 1
"""


def _derived(store: Store, disk: _Disk) -> Iterator[Item]:
    query = store.database.query
    used = {
        row[0]: _latest(row[1])
        for row in query("SELECT diff_id, max(used) FROM records WHERE diff_id IS NOT NULL GROUP BY diff_id")
    }
    chains = {chain[7:31]: used.get(diff_id, 0.0) for chain, diff_id in query("SELECT chain, diff_id FROM layers")}
    for entry in disk.names("snapshots"):
        if not entry.name.startswith("."):
            path = f"snapshots/{entry.name}"
            yield from disk.take("snapshot", entry.name, path, chains.get(entry.name, 0.0))
    for entry in disk.names("listings"):
        digest = "sha256:" + entry.name
        yield from disk.take("listing", digest, f"listings/{entry.name}", used.get(digest, 0.0))


def _fetched(disk: _Disk) -> Iterator[Item]:
    for folder in ("fetched/http", "fetched/git"):
        for entry in disk.names(folder):
            yield from disk.take("fetched", entry.name, f"{folder}/{entry.name}")


def _mounts(disk: _Disk) -> Iterator[Item]:
    for entry in disk.names("mounts"):
        if entry.is_dir(follow_symlinks=False):
            try:
                with open(os.path.join(entry.path, "id"), "rb") as file:
                    name = os.fsdecode(file.read())
            except OSError:
                name = entry.name
            try:
                used = os.stat(entry.path + ".lock").st_mtime
            except OSError:
                used = 0.0
            yield from disk.take("mount", name, f"mounts/{entry.name}", used)


class _Sizes:
    """The sizes of folders that are as they were when they were last measured."""

    def __init__(self, store: Store) -> None:
        self._store = store
        rows = store.database.query("SELECT path, stamp, size FROM sizes")
        self._known: dict[str, tuple[str, int]] = {path: (stamp, size) for path, stamp, size in rows}
        self._seen: dict[str, tuple[str, int]] = {}

    def of(self, path: str, stamp: str) -> int | None:
        """The size of a folder that had this stamp."""
        stamp_then, size = self._known.get(path, ("", 0))
        if stamp_then != stamp:
            return None
        self._seen[path] = stamp, size
        return size

    def put(self, path: str, stamp: str, size: int) -> None:
        """Remember a size."""
        self._seen[path] = stamp, size

    def keep(self) -> None:
        """Write down what is new, and forget what is gone."""
        if self._seen == self._known:
            return
        with self._store.database.transaction() as connection:
            connection.executemany(
                "DELETE FROM sizes WHERE path = ?", [(path,) for path in self._known.keys() - self._seen.keys()]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)",
                [(path, *fact) for path, fact in self._seen.items() if self._known.get(path) != fact],
            )


class _Disk:
    """The store's folder, each inode of which is counted once. sizes: what need not be counted."""

    def __init__(self, root: str, sizes: _Sizes | None = None) -> None:
        self.sizes = sizes
        self._root = root
        self._seen: set[tuple[int, int]] = set()
        self._taken: set[str] = set()

    def names(self, folder: str) -> list[os.DirEntry[str]]:
        """What lies in a folder, sorted; nothing where there is none."""
        try:
            return sorted(os.scandir(os.path.join(self._root, folder)), key=lambda entry: entry.name)
        except OSError:
            return []

    def take(self, kind: str, name: str, path: str, used: float = 0.0) -> list[Item]:
        """What lies at a path, but for what was taken already, as an item; none when it is gone."""
        full = os.path.join(self._root, path) if path else self._root
        try:
            status = os.lstat(full)
        except OSError:
            return []
        size = 0
        queue = [(full, status)]
        self._taken.add(full)
        stamp = ""
        if self.sizes is not None and kind in {"snapshot", "mount"}:
            # The last use of a mount is that of its lock.
            stamp = f"{status.st_ino} {status.st_ctime_ns if kind == 'snapshot' else used}"
            if (known := self.sizes.of(path, stamp)) is not None:
                return [Item(kind, name, path, known, used or status.st_ctime, status.st_ctime)]
        while queue:
            place, about = queue.pop()
            size += self._once(about)
            if stat.S_ISDIR(about.st_mode):
                with suppress(OSError):
                    for entry in os.scandir(place):
                        # An item of its own is in nobody else's size.
                        if entry.path not in self._taken:
                            with suppress(OSError):
                                queue.append((entry.path, entry.stat(follow_symlinks=False)))
        if self.sizes is not None and stamp:
            self.sizes.put(path, stamp, size)
        recent = max(status.st_ctime, 0 if stat.S_ISDIR(status.st_mode) else status.st_atime)
        return [Item(kind, name, path, size, used or recent, status.st_ctime)]

    def _once(self, status: os.stat_result) -> int:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            inode = (status.st_dev, status.st_ino)
            if inode in self._seen:
                return 0
            self._seen.add(inode)
        return status.st_blocks * 512


# ---------------------------------------------------------------- taking away


def _drop_steps(connection: Connection, steps: list[Item]) -> None:
    """Inside a transaction: forget the records and intermediate images of these blobs; their files are doomed."""
    paths: list[str] = []
    for item in steps:
        digest = "sha256:" + item.path.rpartition("/")[2]
        # A build that ended since may have made an image of it.
        if connection.execute(_IN_IMAGE, (digest,)).fetchone():
            continue
        drop_intermediates(connection, [digest])
        layers = connection.execute("SELECT chain, diff_id FROM layers WHERE digest = ?", (digest,)).fetchall()
        records = connection.execute("SELECT diff_id FROM records WHERE digest = ?", (digest,)).fetchall()
        if not layers and not records and time.time() - item.used < GRACE:
            continue  # one that is being loaded; its image is about to be named
        connection.execute("DELETE FROM layers WHERE digest = ?", (digest,))
        connection.execute("DELETE FROM records WHERE digest = ?", (digest,))
        paths.append(item.path)
        paths += [f"snapshots/{chain[7:31]}" for chain, _ in layers]
        paths += [f"listings/{diff_id[7:]}" for diff_id in {row[-1] for row in (*layers, *records)}]
    doom(connection, paths)


_IN_IMAGE = (
    _KEPT  # noqa: S608  nothing but constants
    + """
    SELECT 1 FROM images JOIN kept USING (number) WHERE id = ?1 OR manifest = ?1 UNION ALL
    SELECT 1 FROM layers l JOIN image_layers i ON i.layer = l.number JOIN kept ON kept.number = i.image
    WHERE l.digest = ?1
    """
)


@contextmanager
def _idle(store: Store) -> Iterator[bool]:
    """Whether no build is running; while the block lasts, none begins."""
    folder = os.open(os.path.join(store.root, "leases"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(folder)


def _free_mount(store: Store, path: str) -> list[str] | None:
    """Move a cache mount's folder to the trash, where it is; None when a RUN is using it."""
    lock = os.open(os.path.join(store.root, path + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return to_trash(store, path)
    except BlockingIOError:
        return None
    finally:
        os.close(lock)

"""What is alive, and taking off the disk what is not.

An image is alive while it has a name, is dangling but not yet pruned, or while another one needs it. A blob is alive
while an image or a record of the instruction cache names it; a snapshot and a listing while a layer of theirs is.

Removal goes in two steps. A transaction deletes the rows and writes the paths that nothing names any more into the
table `doomed`; after it, and after `index.json`, `sweep` takes them off the disk. A kill between the two loses nothing:
the next sweep goes on. A running build holds a lease: it may have found a blob, a record or a snapshot that another
process dooms a moment later, so what was doomed after a lease began stays until that lease ends.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from cache.errors import InUseError, StoreError
from cache.reference import familiar_name
from cache.removal import TRASH, make_movable, take_away

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cache.database import Connection
    from cache.store import Store
    from cache.uses import Use

GRACE = 60.0
"""Seconds for which a file that nothing names yet is taken for one whose writer, holding no lease, is about to."""

_UNASKED_DAYS = 30
"""Days after which the stat cache of a context folder that no build has asked for is dropped."""

_PATIENCE = 1.0
"""Seconds for which the end of a build may delete what it or others left."""

_HEX = re.compile("[0-9a-f]{24}|[0-9a-f]{64}")

_BELOW = """
    WITH RECURSIVE below (number) AS (
        VALUES (?)
        UNION SELECT images.number FROM images JOIN below ON images.parent = below.number
        UNION SELECT needs.image FROM needs JOIN below ON needs.needed = below.number
    )
"""
"""An image and all that are built on it or copied from it."""


class Pruned(Struct, frozen=True):
    """What a prune did. deleted: lines as `Store.remove` gives them. bytes: taken off the disk."""

    deleted: tuple[str, ...]
    bytes: int


class Lease:
    """A context manager: a file in `leases/`, locked for as long as the build runs.

    The kernel drops the lock of a process that dies, so a lease never outlives its holder; the file of such a one is
    removed by whoever meets it. The end of a lease sweeps what had waited for it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = ""
        self._file = -1
        self._folder = -1

    def __enter__(self) -> Self:
        import fcntl

        folder = os.path.join(self._store.root, "leases")
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"can not use the store {self._store.root}: {error.strerror}") from error
        # Waits while what any build may rely on is being moved away: see `cache.usage`.
        fcntl.flock(self._folder, fcntl.LOCK_SH)
        while True:
            path = os.path.join(self._store.root, "leases", f"{os.getpid()}-{os.urandom(4).hex()}")
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            except OSError as error:
                os.close(self._folder)
                raise StoreError(f"can not write to the store {self._store.root}: {error.strerror}") from error
            fcntl.flock(file, fcntl.LOCK_EX)
            # Between open and flock another process may have taken the file for a dead one's.
            if os.fstat(file).st_nlink:
                now = time.time_ns()
                os.utime(file, ns=(now, now))
                self._path, self._file = path, file
                self._store.held.append(self)
                return self
            os.close(file)

    def note(self, image_id: str) -> None:
        """Say that the build stands on this image, so that nobody removes it meanwhile without being told."""
        with suppress(OSError):
            os.write(self._file, image_id.encode() + b"\n")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._store.held.remove(self)
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._file)
        os.close(self._folder)
        # What can not be swept now waits for the next one; the build's own error, if any, is the one to show.
        with suppress(StoreError):
            sweep(self._store, _PATIENCE)


def oldest_lease(store: Store) -> float | None:
    """When the oldest of the running builds began, in seconds since 1970; None when there is none."""
    import fcntl

    oldest: float | None = None
    for entry in os.scandir(os.path.join(store.root, "leases")):
        with suppress(FileNotFoundError):
            file = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.unlink(entry.path)
            except BlockingIOError:
                began = os.fstat(file).st_mtime
                oldest = began if oldest is None else min(oldest, began)
            finally:
                os.close(file)
    return oldest


def remove(store: Store, name_or_id: str, *, force: bool, keep_parents: bool = False) -> list[str]:
    """See `Store.remove`."""
    busy = _busy(store)
    with store.database.transaction() as connection:
        number, given = store.find(name_or_id)
        names = [
            name for (name,) in connection.execute("SELECT name FROM names WHERE image = ? ORDER BY name", (number,))
        ]
        users = _users(connection, number)
        if given:
            taken = [given]
        else:
            taken = names
            short = name_or_id.removeprefix("sha256:")[:12]
            if users:
                raise InUseError(
                    f"the image {short} can not be removed: other images are built on it",
                    "remove first " + _some(users),
                )
            if len(names) > 1 and not force:
                several = ", ".join(map(familiar_name, names))
                raise InUseError(f"the image {short} has several names: {several}", "remove the names, or use --force")
        if len(taken) == len(names) and not users:
            _refuse_busy(connection, number, busy, name_or_id, force=force)
        connection.executemany("DELETE FROM names WHERE name = ?", [(name,) for name in taken])
        lines = [f"Untagged: {familiar_name(name)}" for name in taken]
        if len(taken) == len(names):
            if users:
                connection.execute("UPDATE images SET intermediate = 1 WHERE number = ?", (number,))
            else:
                lines += _delete(connection, number, keep_parents=keep_parents)
        store.list_changed(connection)
        store.database.after_commit(lambda: sweep(store))
    return lines


def _busy(store: Store) -> dict[str, Use]:
    """The images in use, each with one of its uses, a mount before a build."""
    from cache.uses import uses

    return {use.image: use for use in sorted(uses(store), key=lambda use: bool(use.place))}


def _refuse_busy(connection: Connection, number: int, busy: dict[str, Use], shown: str, *, force: bool) -> None:
    """InUseError when the image, or an intermediate one built on it, is in use. force: a build's use does not count."""
    for image_id in _ids_below(connection, number) if busy else ():
        use = busy.get(image_id)
        if use is not None and (use.place or not force):
            hint = use.remedy if use.place else f"{use.remedy}, or use --force: it keeps what it needs"
            raise InUseError(f"the image {shown} can not be removed: it is {use.reason}", hint)


def _ids_below(connection: Connection, number: int) -> list[str]:
    """An image's id, and those of all that are built on it."""
    query = _BELOW + "SELECT i.id FROM images i JOIN below b ON b.number = i.number"  # noqa: S608
    return [image_id for (image_id,) in connection.execute(query, (number,))]


def prune(store: Store, *, every: bool, only: Callable[[str], bool] | None = None) -> Pruned:
    """See `Store.prune`."""
    lines: list[str] = []
    store.ready()
    busy = _busy(store)
    with store.database.transaction() as connection:
        wanted = {
            number
            for number, image_id in connection.execute("SELECT number, id FROM images WHERE intermediate = 0")
            if (only is None or only(image_id))
            and not busy.keys() & set(_ids_below(connection, number) if busy else ())
        }
        if every:
            names = [
                (name,)
                for name, image in connection.execute("SELECT name, image FROM names ORDER BY name")
                if image in wanted
            ]
            lines += [f"Untagged: {familiar_name(name)}" for (name,) in names]
            connection.executemany("DELETE FROM names WHERE name = ?", names)
        dangling = [
            number
            for (number,) in connection.execute(
                "SELECT number FROM images WHERE intermediate = 0 AND number NOT IN (SELECT image FROM names) "
                "ORDER BY number DESC"
            )
            if number in wanted
        ]
        # A dangling image may be built on another one: as long as one goes, look again at the rest.
        while gone := [number for number in dangling if not _users(connection, number)]:
            for number in gone:
                lines += _delete(connection, number)
            dangling = [number for number in dangling if number not in gone]
        # What is left carries images that stay; it becomes what it is, one of their intermediates.
        connection.executemany("UPDATE images SET intermediate = 1 WHERE number = ?", [(n,) for n in dangling])
        if every and only is None:
            for (number,) in connection.execute("SELECT number FROM images ORDER BY number DESC").fetchall():
                if not busy.keys() & set(_ids_below(connection, number) if busy else ()):
                    lines += _delete(connection, number)
        if lines or dangling:
            store.list_changed(connection)
        _doom(connection, _orphans(store, connection))
        _forget_contexts(connection)
    freed = sweep(store)
    store.database.compact()
    return Pruned(tuple(lines), freed)


def free(connection: Connection, layers: Iterable[int], blobs: Iterable[str]) -> None:
    """Inside a transaction: doom those of these layers (numbers) and other blobs (digests) that no image has any more.

    The records of the instruction cache that lead to such a layer go with it.
    """
    paths = [_blob(digest) for digest in blobs]
    for layer in layers:
        row = connection.execute(
            "SELECT chain, diff_id, digest FROM layers WHERE number = ?1 "
            "AND NOT EXISTS (SELECT 1 FROM image_layers WHERE layer = ?1)",
            (layer,),
        ).fetchone()
        if row is None:
            continue
        chain, diff_id, digest = row
        chains = [chain]
        connection.execute("DELETE FROM layers WHERE number = ?", (layer,))
        if not connection.execute(_IN_ANY_IMAGE, (digest,)).fetchone():
            # Other places of it are those of intermediates that the cache has lost.
            chains += [one for (one,) in connection.execute("SELECT chain FROM layers WHERE digest = ?", (digest,))]
            connection.execute("DELETE FROM layers WHERE digest = ?", (digest,))
            connection.execute("DELETE FROM records WHERE digest = ?", (digest,))
        paths += [_blob(digest), *map(_snapshot, chains), _listing(diff_id)]
        if not connection.execute("SELECT 1 FROM layers WHERE diff_id = ?", (diff_id,)).fetchone():
            # The same layer as some output wanted it compressed: see `cache.repack`.
            step = (f"compression {diff_id} 0",)
            paths += [
                _blob(other) for (other,) in connection.execute("SELECT digest FROM records WHERE step = ?", step)
            ]
            connection.execute("DELETE FROM records WHERE step = ?", step)
    _doom(connection, [path for path in paths if not _needed(connection, path)])


_IN_ANY_IMAGE = "SELECT 1 FROM layers l JOIN image_layers i ON i.layer = l.number WHERE l.digest = ?"


def empty(trash: Iterable[str], seconds: float | None = None) -> int:
    """Delete what was moved aside; the bytes that it occupied. After so many seconds the rest is left to `sweep`."""
    until = None if seconds is None else time.monotonic() + seconds
    freed = 0
    for path in trash:
        if until is not None and time.monotonic() > until:
            break
        freed += take_away(path)
    return freed


def sweep(store: Store, seconds: float | None = None) -> int:
    """Take off the disk what is doomed, unless it has been named again or a running build may rely on it.

    The number of bytes freed. seconds: for how long files may be deleted; the next sweep goes on with the rest.
    Idempotent; safe beside anything that other processes do.
    """
    trash = [entry.path for entry in os.scandir(os.path.join(store.root, "tmp")) if entry.name.startswith(TRASH)]
    if store.database.query("SELECT 1 FROM doomed LIMIT 1"):
        with store.database.transaction() as connection:
            lease = oldest_lease(store)
            for path, since in connection.execute("SELECT path, since FROM doomed").fetchall():
                if lease is not None and lease <= since and not _needed(connection, path):
                    continue
                full = os.path.join(store.root, path)
                status = _status(full)
                if status is not None and not _needed(connection, path):
                    if status.st_mtime > since:
                        # Written once more since; its writer is about to name it.
                        connection.execute("UPDATE doomed SET since = ? WHERE path = ?", (status.st_mtime, path))
                        continue
                    # The removal of a large tree takes long; the lock is held for a rename only.
                    moved = os.path.join(store.root, "tmp", TRASH + os.urandom(8).hex())
                    try:
                        make_movable(full, status)
                        os.rename(full, moved)
                    except PermissionError:
                        continue  # a subordinate user's directory; the next build will be in the namespace that has it
                    except FileNotFoundError:
                        pass
                    else:
                        trash.append(moved)
                connection.execute("DELETE FROM doomed WHERE path = ?", (path,))
    return empty(trash, seconds) + _clear_temporary(store)


def drop_intermediates(connection: Connection, digests: Iterable[str]) -> None:
    """Inside a transaction: delete the intermediate images that have one of these blobs. Their layers stay the cache's.

    What was built on them no longer knows that it was.
    """
    find = (
        "SELECT number, id, manifest FROM images WHERE intermediate = 1 AND (id = ?1 OR manifest = ?1 OR number IN "
        "(SELECT i.image FROM image_layers i JOIN layers l ON l.number = i.layer WHERE l.digest = ?1))"
    )
    for digest in digests:
        for number, image_id, manifest in connection.execute(find, (digest,)).fetchall():
            connection.execute("DELETE FROM image_layers WHERE image = ?", (number,))
            connection.execute("DELETE FROM needs WHERE image = ?1 OR needed = ?1", (number,))
            connection.execute("UPDATE images SET parent = NULL WHERE parent = ?", (number,))
            connection.execute("DELETE FROM images WHERE number = ?", (number,))
            doom(connection, (_blob(image_id), _blob(manifest)))


def forget(connection: Connection) -> None:
    """Inside a transaction: drop facts that no build has asked for in a long time."""
    _forget_contexts(connection)
    oldest = (int(time.time() / 86400) - _UNASKED_DAYS) * 24
    connection.execute("DELETE FROM memos WHERE used < ? AND kind != 'image created'", (oldest,))


def doom(connection: Connection, paths: Iterable[str]) -> None:
    """Inside a transaction: have `sweep` take these paths off the disk, those of them that nothing needs."""
    _doom(connection, [path for path in paths if not _needed(connection, path)])


def to_trash(store: Store, path: str) -> list[str]:
    """Move what lies at a path of the store to where `take_away` or the next sweep removes it; none when it is gone."""
    full = os.path.join(store.root, path)
    status = _status(full)
    if status is None:
        return []
    moved = os.path.join(store.root, "tmp", TRASH + os.urandom(8).hex())
    try:
        make_movable(full, status)
        os.rename(full, moved)
    except (FileNotFoundError, PermissionError):
        return []
    return [moved]


def _delete(connection: Connection, number: int, *, keep_parents: bool = False) -> list[str]:
    """Delete an image, all that are built on it, and the intermediates below it that nothing else needs.

    keep_parents: those below become dangling images instead, which are listed.
    """
    lines: list[str] = []
    built_on = _BELOW + "SELECT number FROM below ORDER BY number DESC"  # noqa: S608
    queue = [n for (n,) in connection.execute(built_on, (number,))]
    for gone in queue:
        row = connection.execute("SELECT id, manifest, parent FROM images WHERE number = ?", (gone,)).fetchone()
        if row is None:
            continue
        image_id, manifest, parent = row
        layers = [n for (n,) in connection.execute("SELECT layer FROM image_layers WHERE image = ?", (gone,))]
        above = [n for (n,) in connection.execute("SELECT needed FROM needs WHERE image = ?", (gone,))]
        connection.execute("DELETE FROM image_layers WHERE image = ?", (gone,))
        connection.execute("DELETE FROM needs WHERE image = ?1 OR needed = ?1", (gone,))
        connection.execute("DELETE FROM images WHERE number = ?", (gone,))
        lines.append(f"Deleted: {image_id}")
        free(connection, layers, (image_id, manifest))
        unneeded = [
            other
            for other in (parent, *above)
            if connection.execute(
                "SELECT 1 FROM images WHERE number = ?1 AND intermediate = 1 "
                "AND NOT EXISTS (SELECT 1 FROM images WHERE parent = ?1) "
                "AND NOT EXISTS (SELECT 1 FROM needs WHERE needed = ?1)",
                (other,),
            ).fetchone()
        ]
        if keep_parents:
            connection.executemany("UPDATE images SET intermediate = 0 WHERE number = ?", [(n,) for n in unneeded])
        else:
            queue.extend(unneeded)
    return lines


def _users(connection: Connection, number: int) -> list[str]:
    """The full images that are built on this one, or copied from it: their names, or the beginnings of their ids."""
    return [
        familiar_name(name) if name else image_id[7:19]
        for name, image_id in connection.execute(
            _BELOW + "SELECT (SELECT min(name) FROM names WHERE image = i.number), i.id FROM images i "  # noqa: S608
            "JOIN below b ON b.number = i.number WHERE i.intermediate = 0 AND i.number != ?",
            (number, number),
        )
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------- paths


def _blob(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _snapshot(chain: str) -> str:
    return "snapshots/" + chain.removeprefix("sha256:")[:24]


def _listing(diff_id: str) -> str:
    return "listings/" + diff_id.removeprefix("sha256:")


def _needed(connection: Connection, path: str) -> bool:
    """Whether a row names what lies at this path of the store."""
    folder, _, name = path.rpartition("/")
    return connection.execute(_NEEDED[folder], ("sha256:" + name,)).fetchone() is not None


_NEEDED = {
    "blobs/sha256": """
        SELECT 1 FROM images WHERE id = ?1 UNION ALL SELECT 1 FROM images WHERE manifest = ?1 UNION ALL
        SELECT 1 FROM layers WHERE digest = ?1 UNION ALL SELECT 1 FROM records WHERE digest = ?1
    """,
    # "g" follows the last hex digit.
    "snapshots": "SELECT 1 FROM layers WHERE chain >= ?1 AND chain < ?1 || 'g'",
    "listings": "SELECT 1 FROM layers WHERE diff_id = ?1 UNION ALL SELECT 1 FROM records WHERE diff_id = ?1",
}


def _doom(connection: Connection, paths: Iterable[str]) -> None:
    now = time.time()
    connection.executemany("INSERT OR REPLACE INTO doomed VALUES (?, ?)", [(path, now) for path in paths])


def _orphans(store: Store, connection: Connection) -> list[str]:
    """What lies in the store and no row names: left by killed builds."""
    before = time.time() - GRACE
    needed = {
        path
        for sql, of in (
            ("SELECT id FROM images UNION SELECT manifest FROM images", _blob),
            ("SELECT digest FROM layers UNION SELECT digest FROM records WHERE digest IS NOT NULL", _blob),
            ("SELECT chain FROM layers", _snapshot),
            ("SELECT diff_id FROM layers UNION SELECT diff_id FROM records WHERE diff_id IS NOT NULL", _listing),
        )
        for path in map(of, (digest for (digest,) in connection.execute(sql)))
    }
    found: list[str] = []
    for folder in ("blobs/sha256", "snapshots", "listings"):
        for entry in os.scandir(os.path.join(store.root, folder)):
            path = f"{folder}/{entry.name}"
            if _HEX.fullmatch(entry.name) and path not in needed:
                status = _status(entry.path)
                if status is not None and status.st_mtime < before:
                    found.append(path)
    return found


def _clear_temporary(store: Store) -> int:
    """Remove what dead processes left in `tmp/`: files that no `BlobWriter` has locked, and directories.

    What is younger than a running build is left to it; whoever makes directories there holds a lease.
    """
    import fcntl

    freed = 0
    now = time.time()
    lease = oldest_lease(store) or now
    for entry in os.scandir(os.path.join(store.root, "tmp")):
        status = _status(entry.path)
        if status is None or entry.name.startswith(TRASH) or status.st_mtime > min(lease, now - GRACE):
            continue
        if stat.S_ISREG(status.st_mode):
            with suppress(OSError):
                file = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    freed += take_away(entry.path)
                finally:
                    os.close(file)
        else:
            freed += take_away(entry.path)
    return freed


def _forget_contexts(connection: Connection) -> None:
    """Drop the stat cache of context folders that no build has asked for in a long time."""
    oldest = int(time.time() / 86400) - _UNASKED_DAYS
    connection.execute("DELETE FROM files WHERE root IN (SELECT number FROM roots WHERE used < ?)", (oldest,))
    connection.execute("DELETE FROM roots WHERE used < ?", (oldest,))


# ---------------------------------------------------------------- the disk


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None

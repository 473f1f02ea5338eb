"""The stat cache: sha256 of context files that are not read again while their inodes say that they did not change.

What counts as unchanged is size, mtime, ctime, inode number and device, as for git's index. A file whose times are so
young that a further change could leave them equal is hashed but not remembered ("racily clean",
https://git-scm.com/docs/racy-git); any write sets the ctime, which no program can set back.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.database import Database

RACY = 2_000_000_000
"""Nanoseconds. File times are as coarse as that on FAT, and on some network file systems."""

_CHUNK = 1 << 20
_BIG = 4 << 20
"""Bytes in all from which it pays to hash with several threads."""

_FEW = 64
"""Up to so many files are looked up one by one, more with all of their folder's."""

_STAMP = struct.Struct("=QqqQQ").pack


class Digests:
    """The stat cache of one store. Safe from threads and processes, as its database is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_files(
        self,
        root: bytes,
        files: Sequence[tuple[bytes, os.stat_result]],
        read: Callable[[bytes], str] | None = None,
    ) -> list[str]:
        """The sha256 in hex of the content of each of these regular files, in their order.

        root: the context folder, absolute; what is remembered is remembered for it. files: paths relative to it and
        what `lstat` said before this call. read: hashes one file, given its relative path; by default the file below
        `root` is read, without following a link. Raises OSError for a file that can not be read.
        """
        known = self._known(root, [path for path, _ in files])
        stamps = [_STAMP(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) for _, s in files]
        found: list[str] = []
        missing: list[int] = []
        for number, ((path, _), stamp) in enumerate(zip(files, stamps, strict=True)):
            row = known.get(path)
            if row is not None and row[0] == stamp:
                found.append(row[1])
            else:
                found.append("")
                missing.append(number)
        if missing:
            young = time.time_ns() - RACY
            self._hash(root, files, read, missing, found)
            self._remember(
                root,
                [
                    (files[number][0], stamps[number], found[number])
                    for number in missing
                    if files[number][1].st_ctime_ns < young and not _recent(files[number][1].st_mtime_ns, young)
                ],
            )
        return found

    def _known(self, root: bytes, paths: Sequence[bytes]) -> dict[bytes, tuple[bytes, str]]:
        rows = self._database.query("SELECT number, used FROM roots WHERE path = ?", (root,))
        if not rows:
            return {}
        number, used = rows[0]
        if used != (today := _today()):
            with self._database.transaction() as connection:
                connection.execute("UPDATE roots SET used = ? WHERE number = ?", (today, number))
        sql = "SELECT path, stamp, digest FROM files WHERE root = ?"
        if len(paths) > _FEW:
            return {path: (stamp, digest) for path, stamp, digest in self._database.query(sql, (number,))}
        known = {}
        for wanted in paths:
            for path, stamp, digest in self._database.query(sql + " AND path = ?", (number, wanted)):
                known[path] = (stamp, digest)
        return known

    def _hash(
        self,
        root: bytes,
        files: Sequence[tuple[bytes, os.stat_result]],
        read: Callable[[bytes], str] | None,
        missing: Sequence[int],
        found: list[str],
    ) -> None:
        """Hash the files of these numbers into `found`."""

        def one(number: int) -> None:
            path = files[number][0]
            found[number] = read(path) if read is not None else _digest(os.path.join(root, path))

        if len(missing) == 1 or sum(files[number][1].st_size for number in missing) < _BIG:
            for number in missing:
                one(number)
            return
        from concurrent.futures import ThreadPoolExecutor

        # OpenSSL hashes without the interpreter's lock; the largest first, so that none is left to a single thread.
        with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
            for _ in pool.map(one, sorted(missing, key=lambda number: -files[number][1].st_size)):
                pass

    def _remember(self, root: bytes, rows: Sequence[tuple[bytes, bytes, str]]) -> None:
        if not rows:
            return
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO roots (path, used) VALUES (?, ?)", (root, _today()))
            (number,) = connection.execute("SELECT number FROM roots WHERE path = ?", (root,)).fetchone()
            connection.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [(number, *row) for row in sorted(rows)]
            )


def _today() -> int:
    return int(time.time() / 86400)


def _recent(mtime: int, young: int) -> bool:
    """Whether a time of change lies within the racy span around now; on some file systems there is no true ctime."""
    return young <= mtime <= young + 2 * RACY


def _digest(path: bytes) -> str:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = hashlib.sha256()
        while data := os.read(file, _CHUNK):
            state.update(data)
    finally:
        os.close(file)
    return state.hexdigest()

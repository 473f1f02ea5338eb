"""The store's SQLite database: the only door to sqlite3.

Many processes and threads use one file. Readers never wait (WAL); writers take the one write lock for a short time and
wait for each other up to `busy` seconds. `synchronous=NORMAL`: a power cut may undo the last transactions but not tear
the file, and all that is kept here can be made again or is found again in `index.json`.
https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache.errors import CorruptError, StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Connection = sqlite3.Connection

# One script for each version of the schema; a store of version n is brought up to date by the scripts after the nth.
_MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    -- Images and their names. parent: the image that this one was built on, or NULL.
    CREATE TABLE images (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        manifest TEXT NOT NULL, manifest_size INTEGER NOT NULL, manifest_type TEXT NOT NULL,
        platform TEXT NOT NULL, created TEXT NOT NULL, size INTEGER NOT NULL,
        parent INTEGER, intermediate INTEGER NOT NULL
    );
    CREATE INDEX images_manifest ON images (manifest);
    CREATE INDEX images_parent ON images (parent) WHERE parent IS NOT NULL;
    CREATE INDEX images_listed ON images (created, number) WHERE intermediate = 0;
    CREATE TABLE names (name TEXT PRIMARY KEY, image INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX names_image ON names (image);
    -- Images beside the parent that an image was built with: stages that it copied from.
    CREATE TABLE needs (image INTEGER, needed INTEGER, PRIMARY KEY (image, needed)) WITHOUT ROWID;
    CREATE INDEX needs_needed ON needs (needed);

    -- A layer at its place: on top of the chain that `chain` ends.
    CREATE TABLE layers (
        number INTEGER PRIMARY KEY, chain TEXT NOT NULL, diff_id TEXT NOT NULL,
        digest TEXT NOT NULL, size INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX layers_place ON layers (chain, digest);
    CREATE INDEX layers_digest ON layers (digest);
    CREATE INDEX layers_diff_id ON layers (diff_id);
    CREATE TABLE image_layers (image INTEGER, position INTEGER, layer INTEGER NOT NULL, PRIMARY KEY (image, position))
        WITHOUT ROWID;
    CREATE INDEX image_layers_layer ON image_layers (layer);

    -- The instruction cache. digest is NULL where a step changed nothing. parts: the key's parts in readable form.
    CREATE TABLE records (
        number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, step TEXT NOT NULL,
        diff_id TEXT, digest TEXT, blob_size INTEGER, media_type TEXT,
        size INTEGER NOT NULL, files INTEGER NOT NULL, created REAL NOT NULL, seconds REAL NOT NULL, parts TEXT
    );
    CREATE INDEX records_step ON records (step, number);
    CREATE INDEX records_digest ON records (digest) WHERE digest IS NOT NULL;
    CREATE INDEX records_diff_id ON records (diff_id) WHERE diff_id IS NOT NULL;
    CREATE TABLE memos (kind TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;

    -- The stat cache of context files. used: the day (since 1970) on which a build last asked.
    CREATE TABLE roots (number INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, used INTEGER NOT NULL);
    CREATE TABLE files (root INTEGER, path BLOB, stamp BLOB NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (root, path))
        WITHOUT ROWID;

    -- What nothing needs any more and is still to be taken off the disk: a path below the store, and since when.
    CREATE TABLE doomed (path TEXT PRIMARY KEY, since REAL NOT NULL) WITHOUT ROWID;
    """,
    """
    -- written: when the step was done; `created` is what the layer says, which SOURCE_DATE_EPOCH decides.
    -- used: the day (since 1970) on which a build last took the record or the memo.
    ALTER TABLE records ADD COLUMN written REAL NOT NULL DEFAULT 0;
    ALTER TABLE records ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    UPDATE records SET written = created, used = CAST(strftime('%s', 'now') AS INTEGER) / 86400;
    ALTER TABLE memos ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    UPDATE memos SET used = CAST(strftime('%s', 'now') AS INTEGER) / 86400;

    -- The last builds, each a JSON document of how its steps fared: see cache.index.Fate.
    CREATE TABLE builds (number INTEGER PRIMARY KEY, name TEXT NOT NULL, ended REAL NOT NULL, steps TEXT NOT NULL);
    """,
    """
    -- build, title: the context's name and what the step says, to find the record of a step that stands elsewhere now.
    -- notes: JSON as parts, facts beside the key. Only records that keep their parts can explain anything.
    ALTER TABLE records ADD COLUMN build TEXT NOT NULL DEFAULT '';
    ALTER TABLE records ADD COLUMN title TEXT NOT NULL DEFAULT '';
    ALTER TABLE records ADD COLUMN notes TEXT;
    DROP INDEX records_step;
    CREATE INDEX records_step ON records (step, number) WHERE parts IS NOT NULL;
    CREATE INDEX records_title ON records (build, title, number) WHERE parts IS NOT NULL;
    CREATE INDEX records_words ON records (title, number) WHERE parts IS NOT NULL;
    CREATE INDEX records_build ON records (build, number) WHERE parts IS NOT NULL;
    """,
    """
    -- What registries had: see cache.whence. image: an id; tag: may be empty; digest: of the manifest or index.
    CREATE TABLE origins (
        image TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL, platform TEXT NOT NULL, digest TEXT NOT NULL,
        PRIMARY KEY (image, repository, tag, platform)
    ) WITHOUT ROWID;
    CREATE INDEX origins_repository ON origins (repository, tag);
    CREATE INDEX origins_digest ON origins (digest);
    CREATE TRIGGER origins_gone AFTER DELETE ON images BEGIN DELETE FROM origins WHERE image = OLD.id; END;
    CREATE TABLE holders (digest TEXT NOT NULL, repository TEXT NOT NULL, UNIQUE (digest, repository));
    CREATE TRIGGER holders_gone AFTER DELETE ON layers WHEN NOT EXISTS (SELECT 1 FROM layers WHERE digest = OLD.digest)
        BEGIN DELETE FROM holders WHERE digest = OLD.digest; END;
    """,
    """
    -- records.used and memos.used are hours since 1970 from here on.
    UPDATE records SET used = used * 24 + 23;
    UPDATE memos SET used = used * 24 + 23;

    -- What folders of the store took of the disk when they were last measured; stamp: by which they are the same still.
    CREATE TABLE sizes (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
    """,
)


class Database:
    """One SQLite file, opened at the first use. Safe from threads (one connection, one lock) and after a fork.

    path: the file; its folder must exist. busy: seconds to wait for another writer. Every error of SQLite comes out as
    StoreError, CorruptError where the file is damaged.
    """

    def __init__(self, path: Path, busy: float = 30.0) -> None:
        self.path = path
        self._busy = busy
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None
        self._owner = 0
        self._depth = 0
        self._after: list[Callable[[], object]] = []

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock: all that is done on the connection given happens, or none of it.

        Nests: an inner one belongs to the outermost. Raises StoreError when the lock can not be had.
        """
        import sqlite3

        with self._lock:
            connection = self._open()
            if self._depth:
                yield connection
                return
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._depth = 1
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    self._after.clear()
                    # A full disk makes SQLite roll back by itself.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                finally:
                    self._depth = 0
            except sqlite3.Error as error:
                raise self._translated(error) from error
            actions, self._after = self._after, []
            for action in actions:
                action()

    def after_commit(self, action: Callable[[], object]) -> None:
        """Call `action` once when the running transaction has been committed, or at once when there is none."""
        with self._lock:
            if not self._depth:
                action()
            elif action not in self._after:
                self._after.append(action)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        import sqlite3

        with self._lock:
            try:
                return self._open().execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def compact(self) -> None:
        """Give the pages that deleted rows have left back to the file system."""
        import sqlite3

        with self._lock:
            try:
                # It is done one page at a time, and `execute` takes only the first step of what gives no columns.
                self._open().executescript("PRAGMA incremental_vacuum")
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._owner == os.getpid():
                connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():
            # A connection must not be used, not even closed, in a forked child:
            # https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
            self._inherited, self._connection = self._connection, None
            self._connection = self._connect()
            self._owner = os.getpid()
            self._depth = 0
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        try:
            connection = sqlite3.connect(
                self.path, timeout=self._busy, isolation_level=None, check_same_thread=False, cached_statements=256
            )
        except sqlite3.Error as error:
            raise self._translated(error) from error
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            # Each checkpoint waits for the disk, which has the layers to write; a build's rows fit into 16 MB.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            if self._version(connection) < len(_MIGRATIONS):
                self._migrate(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._translated(error) from error
            raise
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"the store {self.path.parent} was written by a newer pybuild (schema {version}, known "
                f"{len(_MIGRATIONS)})",
                "update pybuild, or choose another store with --root",
            )
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        import fcntl

        # Going over to WAL does not wait for other processes as the busy timeout has it, but fails at once.
        with open(self.path.with_suffix(".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            version = self._version(connection)
            if version == len(_MIGRATIONS):
                return
            if version == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
            script = "".join(_MIGRATIONS[version:])
            connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {len(_MIGRATIONS)}; COMMIT;")

    def _translated(self, error: sqlite3.Error) -> StoreError:
        import sqlite3

        text = str(error)
        if "locked" in text or "busy" in text:
            return StoreError(
                f"the store {self.path.parent} is busy: another process has held its write lock for {self._busy:.0f} s"
            )
        if "malformed" in text or "not a database" in text:
            return CorruptError(
                f"the database {self.path} is damaged: {text}",
                "remove it: the images that index.json lists are found again, the build cache starts empty",
            )
        if isinstance(error, sqlite3.OperationalError) and ("readonly" in text or "unable to open" in text):
            return StoreError(f"can not write to the store {self.path.parent}: {text}", "choose another with --root")
        return StoreError(f"the database {self.path}: {text}")

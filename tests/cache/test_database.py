"""The door to SQLite: transactions, threads, forks, other processes, damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cache.database import Database
from cache.errors import CorruptError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(tmp_path / "pybuild.db")
    yield found
    found.close()


def put(database: Database, name: str, value: str = "") -> None:
    with database.transaction() as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def names(database: Database) -> list[str]:
    return [name for (name,) in database.query("SELECT name FROM meta ORDER BY name")]


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    put(database, "kept")

    def fail_late() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO meta VALUES ('lost', '')")
            with database.transaction() as inner:
                inner.execute("INSERT INTO meta VALUES ('lost too', '')")
            raise KeyError

    with pytest.raises(KeyError):
        fail_late()
    assert names(database) == ["kept"]


def test_actions_run_after_the_outermost_commit_and_once(database: Database) -> None:
    seen: list[list[str]] = []
    other = Database(database.path)

    def look() -> None:
        seen.append(names(other))

    with database.transaction():
        with database.transaction():
            put(database, "a")
            database.after_commit(look)
        database.after_commit(look)
        assert seen == []
    assert seen == [["a"]]
    database.after_commit(look)
    assert len(seen) == 2
    other.close()


def test_actions_of_a_failed_transaction_never_run(database: Database) -> None:
    seen: list[int] = []

    def fail() -> None:
        with database.transaction():
            database.after_commit(lambda: seen.append(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    put(database, "a")
    assert seen == []


def test_threads_share_it(database: Database) -> None:
    def work(number: int) -> None:
        for round_ in range(20):
            put(database, f"{number} {round_}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(database)) == 80


def test_a_forked_child_opens_its_own(database: Database) -> None:
    put(database, "parent")
    child = os.fork()
    if not child:
        code = 1
        try:
            put(database, "child")
            code = 0 if names(database) == ["child", "parent"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names(database) == ["child", "parent"]


def test_processes_that_create_it_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from cache.database import Database\n"
        "d = Database(pathlib.Path(sys.argv[1]))\n"
        "sys.stdin.read()\n"
        "for n in range(25):\n"
        "    with d.transaction() as c: c.execute('INSERT INTO meta VALUES (?, ?)', (f'{sys.argv[2]} {n}', ''))\n"
        "d.close()\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "pybuild.db"), str(number)], stdin=subprocess.PIPE
        )
        for number in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0] * 4
    database = Database(tmp_path / "pybuild.db")
    assert len(names(database)) == 100
    database.close()


def test_a_newer_schema_is_refused(database: Database) -> None:
    put(database, "a")
    database.close()
    raw = sqlite3.connect(database.path)
    raw.execute("PRAGMA user_version = 1000")
    raw.close()
    with pytest.raises(StoreError, match="newer pybuild"):
        names(database)


def test_a_writer_that_never_ends_is_named(database: Database) -> None:
    put(database, "a")
    impatient = Database(database.path, busy=0.1)
    with database.transaction(), pytest.raises(StoreError, match="busy"):
        put(impatient, "b")
    assert names(impatient) == ["a"]
    put(impatient, "b")
    impatient.close()


def test_damage_is_said(database: Database) -> None:
    put(database, "a")
    database.close()
    database.path.write_bytes(b"\xff" * 8192)
    with pytest.raises(CorruptError, match="damaged"):
        names(database)


def test_a_mistake_in_the_program_comes_out_as_one_kind_of_error(database: Database) -> None:
    with pytest.raises(StoreError, match="syntax"):
        database.query("SELEKT")


def test_sqlite_is_loaded_at_the_first_use_only() -> None:
    program = (
        "import sys, pathlib, cache.store as s; s.Store(pathlib.Path('/nonexistent'));"
        "assert not {'sqlite3', 'tempfile', 'shutil', 'subprocess', 'difflib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_compact_gives_pages_back(database: Database) -> None:
    put(database, "big", "x" * 1_000_000)
    with database.transaction() as connection:
        connection.execute("DELETE FROM meta")
    before = database.query("PRAGMA page_count")[0][0]
    database.compact()
    assert database.query("PRAGMA page_count")[0][0] < before / 2

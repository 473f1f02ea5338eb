"""The budget that builds keep: when the cache is looked at at all, how far it is cut down, and what stays."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from cache import budget, prune, usage
from cache.budget import Budget, keep
from cache.check import check
from cache.store import Store
from tests.cache.test_usage import layer, put, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KB = 1000
GB = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[list[usage.Item]]:
    """What was found each time that the cache was measured."""
    found: list[list[usage.Item]] = []
    measure = usage.measure

    def noted(store: Store, *, remembered: bool = False) -> list[usage.Item]:
        found.append(measure(store, remembered=remembered))
        return found[-1]

    monkeypatch.setattr(usage, "measure", noted)
    return found


def test_the_cache_is_measured_only_when_it_may_be_full(
    store: Store, looks: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(store, layer(store, b"a"))
    limit = Budget(1000 * KB)
    assert keep(store, limit, 0) is None
    assert len(looks) == 1  # never before
    for _ in range(4):
        keep(store, limit, 100 * KB)
    assert len(looks) == 1
    keep(store, limit, 100 * KB)  # five of them, as blobs and as directories
    assert len(looks) == 2
    keep(store, limit, 400 * KB)
    assert len(looks) == 2  # from what was found there on
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86401)
    keep(store, limit, 0)
    assert len(looks) == 3  # after a day
    monkeypatch.setattr(time, "time", lambda: now - 86401)
    keep(store, limit, 0)
    assert len(looks) == 4  # a clock that was put back
    assert keep(store, Budget(None), 10**12) is None
    assert len(looks) == 4


def test_what_was_not_used_for_longest_goes(store: Store) -> None:
    layers = [layer(store, bytes([n]) * 20000) for n in range(10)]
    for days, item in enumerate(layers):
        record(store, item, days)
    named = put(store, layers[9], name="app")
    size = sum(item.size for item in usage.measure(store) if item.kind in usage.PRUNABLE)
    done = keep(store, Budget(size // 2), 0)
    assert done is not None
    left = sum(item.size for item in usage.measure(store) if item.kind in usage.PRUNABLE)
    assert size * 0.35 <= left <= size * 0.45
    assert store.holds(layers[0].descriptor)
    assert not store.holds(layers[8].descriptor)
    assert store.holds(layers[9].descriptor)
    assert store.image("app").id == named.id
    assert check(store).faults == ()
    assert keep(store, Budget(size // 2), 0) is None


def test_of_what_was_used_in_the_same_hour_the_cheap_goes_first(store: Store) -> None:
    item = layer(store, b"x" * 20000)
    record(store, item)
    size = sum(one.size for one in usage.measure(store) if one.kind in usage.PRUNABLE)
    done = keep(store, Budget(size - 1), 0)
    assert done is not None
    assert {one.kind for one in done.items} == {"listing"}
    assert store.holds(item.descriptor)


def test_a_disk_that_is_short_of_space(store: Store, looks: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    for days in range(10):
        record(store, layer(store, bytes([days]) * 20000), days)
    size = sum(item.size for item in usage.measure(store) if item.kind in usage.PRUNABLE)
    looks.clear()
    free = 50 * KB
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_frsize=1, f_bavail=free, f_blocks=10**9))
    assert keep(store, Budget(10**12, free=50 * KB), 0) is None
    assert len(looks) == 1
    assert keep(store, Budget(10**12, free=150 * KB), 0) is None
    assert len(looks) == 1  # not so soon again
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert keep(store, Budget(10**12, free=150 * KB), 0) is not None
    left = sum(item.size for item in usage.measure(store) if item.kind in usage.PRUNABLE)
    assert left <= size - 100 * KB
    # What is reserved stays, whatever is missing.
    monkeypatch.setattr(time, "time", lambda: now + 1300)
    keep(store, Budget(10**12, free=10**12, reserved=left), 0)
    assert sum(item.size for item in usage.measure(store) if item.kind in usage.PRUNABLE) >= left * 0.8


def test_the_default_is_a_share_of_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(size: int) -> object:
        return SimpleNamespace(f_frsize=1000, f_bavail=0, f_blocks=size // 1000)

    monkeypatch.setattr(os, "statvfs", lambda path: disk(1000 * GB))
    assert budget.default(store) == Budget(100 * GB, 200 * GB, 10 * GB)
    monkeypatch.setattr(os, "statvfs", lambda path: disk(50 * GB))
    assert budget.default(store) == Budget(40 * GB, 10 * GB, 5 * GB)


def test_a_running_build_loses_nothing_and_nobody_measures_twice(store: Store, looks: list[object]) -> None:
    item = layer(store, b"x" * 20000)
    record(store, item)
    with Store(store.root).lease():
        keep(store, Budget(1), 0)
        assert store.holds(item.descriptor)
        assert len(os.listdir(store.root / "snapshots")) == 1
        # What is in use is not looked for at the end of each build.
        keep(store, Budget(1), 0)
        assert len(looks) == 1
    with Store(store.root).lease():
        pass
    assert not store.holds(item.descriptor)
    before = budget._read(store)
    assert not budget._write(store, before, budget.Measured(before.at - 1))


def test_snapshots_that_are_known_are_not_walked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store, layer(store, b"a"))
    first = [item for item in usage.measure(store, remembered=True) if item.kind == "snapshot"]
    walked: list[str] = []
    scandir = os.scandir

    def noted(path: str) -> Iterator[os.DirEntry[str]]:
        walked.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    assert [item for item in usage.measure(store, remembered=True) if item.kind == "snapshot"] == first
    assert not [path for path in walked if "/snapshots/" in path]
    monkeypatch.undo()
    usage.cut(store)
    usage.measure(store, remembered=True)
    assert store.database.query("SELECT path FROM sizes") == []


def test_what_can_not_be_deleted_in_time_is_left_to_later_builds(store: Store) -> None:
    for number in range(5):
        place = store.root / "tmp" / f"trash-{number}"
        place.mkdir()
        (place / "file").write_bytes(b"x")
    prune.sweep(store, seconds=-1)
    assert len(os.listdir(store.root / "tmp")) == 5
    with store.lease():
        pass
    assert os.listdir(store.root / "tmp") == []

"""What the store takes of the disk, cutting the cache down, and whether a store is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from cache import database, usage
from cache.check import check
from cache.index import Index, Place, Record, key
from cache.oci import LAYER, History, ImageConfig, Layer, chain_ids, digest_of
from cache.reference import Reference
from cache.store import Image, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOUR = int(time.time() / 3600)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def layer(store: Store, data: bytes) -> Layer:
    return Layer(digest_of(b"tar of " + data), store.put_blob(data, LAYER))


def put(store: Store, *layers: Layer, name: str = "", intermediate: bool = False, parent: Image | None = None) -> Image:
    config = ImageConfig(
        diff_ids=tuple(item.diff_id for item in layers), history=tuple(History(created_by=repr(i)) for i in layers)
    )
    image = store.put_image(config, layers, intermediate=intermediate, parent=parent.id if parent else None)
    if name:
        store.tag(Reference.parse(name), image.id)
    return image


def record(store: Store, item: Layer, days_ago: int = 0) -> str:
    """A record of a layer, its listing and a snapshot, last used so many days ago."""
    parts = [("layer", item.diff_id)]
    Index(store.database).record(Record(key(parts), item, 1, 1, 1.0, 1.0), parts, Place("/src", "build", 1, "RUN make"))
    with store.database.transaction() as connection:
        connection.execute("UPDATE records SET used = ? WHERE key = ?", (HOUR - 24 * days_ago, key(parts)))
    (store.root / "listings" / item.diff_id[7:]).write_bytes(b"x" * 5000)
    folder = store.root / "snapshots" / chain_ids((item.diff_id,))[0][7:31]
    folder.mkdir()
    (folder / "file").write_bytes(b"y" * 9000)
    return key(parts)


def disk(root: Path) -> int:
    """What du(1) says of a folder."""
    words = ["du", "-s", "-B1", str(root)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


def full(store: Store) -> tuple[Layer, Layer, Layer]:
    """A named image of one layer, and two steps that nothing else needs, the first of them not used for 9 days."""
    one, two, three = (layer(store, data * 10000) for data in (b"a", b"b", b"c"))
    put(store, one, name="app")
    record(store, one, 20)
    record(store, two, 9)
    record(store, three)
    http = store.root / "fetched" / "http"
    http.mkdir(parents=True)
    (http / ("ab" * 32)).write_bytes(b"z" * 20000)
    os.link(http / ("ab" * 32), http / ("cd" * 32))
    (store.root / "mounts" / "m1" / "data").mkdir(parents=True)
    (store.root / "mounts" / "m1" / "id").write_text("/root/.cache")
    (store.root / "mounts" / "m1" / "data" / "wheel").write_bytes(b"w" * 30000)
    (store.root / "mounts" / "m1.lock").write_bytes(b"")
    return one, two, three


@pytest.mark.skipif(shutil.which("du") is None, reason="needs du")
def test_the_sizes_add_up_to_the_disk(store: Store) -> None:
    assert sum(item.size for item in usage.measure(store)) == disk(store.root)
    full(store)
    (store.root / "tmp" / "half").write_bytes(b"h" * 10000)
    items = usage.measure(store)
    assert sum(item.size for item in items) == disk(store.root)
    counts = {kind: sum(item.kind == kind for item in items) for kind in usage.KINDS}
    assert (counts["image"], counts["step"], counts["snapshot"], counts["listing"]) == (3, 2, 3, 3)
    assert (counts["fetched"], counts["mount"], counts["other"]) == (2, 1, 1)
    assert [item.name for item in items if item.kind == "mount"] == ["/root/.cache"]


def test_all_of_the_cache_goes_and_no_image(store: Store) -> None:
    one, two, three = full(store)
    before = sum(item.size for item in usage.measure(store))
    done = usage.cut(store)
    assert before - sum(item.size for item in usage.measure(store) if item.kind != "database") >= done.bytes > 100_000
    assert not [item for item in usage.measure(store) if item.kind in usage.PRUNABLE]
    assert store.holds(one.descriptor)
    assert not store.holds(two.descriptor)
    assert not store.holds(three.descriptor)
    assert store.image("app").names == ("app:latest",)
    assert check(store).faults == ()
    assert usage.cut(store).items == ()


def test_what_was_not_used_for_long_goes(store: Store) -> None:
    one, two, three = full(store)
    index = Index(store.database)
    usage.cut(store, older_than=7 * 86400, kinds=["step"])
    assert (store.holds(one.descriptor), store.holds(two.descriptor), store.holds(three.descriptor)) == (1, 0, 1)
    assert index.lookup(key([("layer", two.diff_id)])) is None
    assert index.lookup(key([("layer", one.diff_id)])) is not None
    assert index.lookup(key([("layer", three.diff_id)])) is not None
    assert not (store.root / "listings" / two.diff_id[7:]).exists()
    usage.cut(store, older_than=3600, kinds=["step"])
    assert store.holds(three.descriptor)  # used today


def test_a_budget_takes_the_least_recently_used_first(store: Store) -> None:
    _, two, three = full(store)
    size = sum(item.size for item in usage.measure(store) if item.kind == "step")
    assert usage.cut(store, keep=size, kinds=["step"]).items == ()
    usage.cut(store, keep=size - 1, kinds=["step"])
    assert (store.holds(two.descriptor), store.holds(three.descriptor)) == (False, True)


def test_only_the_types_that_are_named_go(store: Store) -> None:
    full(store)
    for kind in ("mount", "fetched", "snapshot", "listing"):
        assert {item.kind for item in usage.cut(store, kinds=[kind]).items} == {kind}
        assert not [item for item in usage.measure(store) if item.kind == kind]
    assert len([item for item in usage.measure(store) if item.kind == "step"]) == 2


def test_a_running_build_loses_nothing(store: Store) -> None:
    _, two, _ = full(store)
    with Store.open(store.root) as other, other.lease():
        done = usage.cut(store)
        assert {item.kind for item in done.items} == {"step", "mount"}
        assert done.held == 8
        assert store.holds(two.descriptor)
        assert list((store.root / "snapshots").iterdir())
        # The build makes an image of a step that it has found.
        put(other, two, name="late")
    assert store.holds(two.descriptor)
    assert check(store).faults == ()
    usage.cut(store)
    assert store.holds(two.descriptor)


def test_intermediates_go_with_the_steps_that_they_are_of(store: Store) -> None:
    one, two, three = (layer(store, data) for data in (b"1", b"2", b"3"))
    copied = put(store, one, two, intermediate=True)
    below = put(store, one, intermediate=True)
    put(store, one, three, name="app", parent=below)
    store.put_image(store.config(store.image("app")), (one, three), needs=[copied.id])
    record(store, two)
    record(store, one, 30)
    usage.cut(store, older_than=60, kinds=["step"])
    assert {image.id for image in store.images(all=True)} >= {below.id, copied.id}
    usage.cut(store)
    assert [store.holds(item.descriptor) for item in (one, two, three)] == [True, False, True]
    # What an image was built on are the steps of its history.
    assert {image.id for image in store.images(all=True)} == {below.id, store.image("app").id}
    assert store.image("app").parent == below.id
    assert check(store).faults == ()
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == 6


def test_a_cache_mount_in_use_stays(store: Store) -> None:
    import fcntl

    full(store)
    with (store.root / "mounts" / "m1.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert usage.cut(store, kinds=["mount"]).held == 1
        (item,) = (item for item in usage.measure(store) if item.kind == "mount")
        assert usage.remove_mount(store, item) is None
    assert usage.remove_mount(store, item) == item.size


def test_lookups_are_written_down_once_an_hour(store: Store) -> None:
    identity = record(store, layer(store, b"x"), 3)
    query = "SELECT used FROM records"
    index = Index(store.database)
    index.lookup(identity)
    assert store.database.query(query) == [(HOUR - 72,)]
    index.settle()
    assert store.database.query(query) == [(HOUR,)]
    index.lookup(identity)
    assert not index._touched


# ---------------------------------------------------------------- whole


def test_a_whole_store_has_no_faults(store: Store) -> None:
    assert check(store).faults == ()
    full(store)
    done = check(store)
    assert (done.faults, done.images, done.records, done.blobs) == ((), 1, 3, 5)


def test_a_damaged_blob_is_found_and_repaired(store: Store) -> None:
    one, two, _ = full(store)
    for item in (one, two):
        store.blob_path(item.descriptor.digest).write_bytes(b"q" * 10000)
    told = " ".join(fault.what for fault in check(store).faults)
    assert told.count("is damaged: its bytes") == 2
    assert "the image app:latest: its blob" in told
    assert told.count("the record of the step '/src build 1'") == 2
    check(store, repair=True)
    assert Index(store.database).lookup(key([("layer", two.diff_id)])) is None
    left = check(store).faults
    assert [fault.what.endswith("is missing") for fault in left] == [True]
    layer(store, b"a" * 10000)
    assert check(store).faults == ()


@pytest.mark.parametrize("text", ["", "{", '{"schemaVersion":2,"manifests":[]}'])
def test_an_index_that_says_something_else_is_found(store: Store, text: str) -> None:
    full(store)
    assert check(store).faults == ()
    (store.root / "index.json").write_text(text)
    assert "index.json" in check(store).faults[0].what
    check(store, repair=True)
    assert check(store).faults == ()


def test_what_is_no_blob_and_what_is_missing(store: Store) -> None:
    one, two, _ = full(store)
    (store.root / "blobs" / "sha256" / "README").write_text("x")
    store.blob_path(two.descriptor.digest).unlink()
    store.blob_path(one.descriptor.digest).unlink()
    told = [fault.what for fault in check(store).faults]
    assert "blobs/sha256/README is no blob's name" in told
    assert sum(text.endswith("is missing") for text in told) == 3


def test_a_store_of_the_first_schema_keeps_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as first:
        first.setattr(database, "_MIGRATIONS", database._MIGRATIONS[:1])
        with Store.open(tmp_path / "store") as old, old.database.transaction() as connection:
            connection.execute(
                "INSERT INTO records (key, step, size, files, created, seconds, parts) "
                "VALUES ('k', 's', 0, 0, 5, 1, '[]')"
            )
            connection.execute("INSERT INTO memos VALUES ('kind', 'key', x'41')")
    with Store.open(tmp_path / "store") as new:
        index = Index(new.database)
        assert index.lookup("k") == Record("k", None, 0, 0, 5.0, 1.0)
        assert index.age("k") > 1e9
        assert new.database.query("SELECT used FROM records") == [(HOUR // 24 * 24 + 23,)]  # of the day it is known
        assert index.memo("kind", "key") == "A"
        assert index.last_build() is None

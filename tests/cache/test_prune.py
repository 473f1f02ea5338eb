"""What is alive and what goes: leases, leftovers of killed processes, trees that do not want to be removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cache import prune
from cache.digests import Digests
from cache.index import Index, Place, Record, key
from cache.oci import LAYER, Digest, History, ImageConfig, Layer, chain_ids, digest_of
from cache.reference import Reference
from cache.store import Image, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG_AGO = time.time() - 7200


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def layer(store: Store, data: bytes) -> Layer:
    return Layer(digest_of(b"tar of " + data), store.put_blob(data, LAYER))


def put(
    store: Store, *contents: bytes, parent: Image | None = None, intermediate: bool = False, name: str = ""
) -> Image:
    layers = [layer(store, data) for data in contents]
    config = ImageConfig(
        diff_ids=tuple(item.diff_id for item in layers),
        history=tuple(History(created_by=repr(data[:9])) for data in contents),
    )
    image = store.put_image(config, layers, parent=parent.id if parent else None, intermediate=intermediate)
    if name:
        store.tag(Reference.parse(name), image.id)
        return store.image(name)
    return image


def recorded(store: Store, *items: Layer) -> list[str]:
    """A record, a snapshot and a listing for each layer of a chain, as a build leaves them."""
    index = Index(store.database)
    keys = []
    for item, chain in zip(items, chain_ids(tuple(item.diff_id for item in items)), strict=True):
        parts = [("layer", item.diff_id), ("chain", chain)]
        keys.append(key(parts))
        index.record(Record(keys[-1], item, 1, 1, 1.0, 1.0), parts, Place("/src", "build", 1, "RUN make"))
        snapshot = store.root / "snapshots" / chain[7:31]
        snapshot.mkdir(exist_ok=True)
        (snapshot / "file").write_bytes(b"x" * 5000)
        (store.root / "listings" / item.diff_id[7:]).write_bytes(b"listing")
    return keys


def there(store: Store) -> set[str]:
    """What lies in the store for layers and images, each as folder/beginning."""
    return {
        f"{folder}/{name}"
        for folder in ("blobs/sha256", "snapshots", "listings")
        for name in os.listdir(store.root / folder)
    }


def blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest[7:]}"


def as_user(program: str, folder: Path) -> None:
    """Run a program that gives root up, if it has it, with a folder that anyone may write to."""
    folder.mkdir()
    folder.chmod(0o777)
    for above in folder.parents:
        if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o755)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def age(store: Store, *folders: str) -> None:
    for folder in folders:
        for entry in os.scandir(store.root / folder):
            os.utime(entry.path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def deleted(*images: Image) -> tuple[str, ...]:
    return tuple(f"Deleted: {image.id}" for image in images)


# ---------------------------------------------------------------- what goes


def test_dangling_images_go_and_named_ones_stay(store: Store) -> None:
    old = put(store, b"shared", b"old", name="app")
    new = put(store, b"shared", b"new", name="app")
    pruned = store.prune()
    assert pruned.deleted == deleted(old)
    assert pruned.bytes > 0
    assert store.images(all=True) == [new]
    assert there(store) == {blob(new.id), blob(new.manifest.digest), *(blob(digest_of(d)) for d in (b"shared", b"new"))}
    assert store.prune() == prune.Pruned((), 0)


def test_with_the_image_go_its_records_snapshots_and_listings(store: Store) -> None:
    shared, own = layer(store, b"shared"), layer(store, b"own")
    keys = recorded(store, shared, own)
    kept = put(store, b"shared", name="kept")
    put(store, b"shared", b"own", name="app")
    index = Index(store.database)
    assert len(there(store)) == 2 + 4 + 2 + 2
    store.remove("app")
    assert [index.lookup(k) is not None for k in keys] == [True, False]
    chain = chain_ids((shared.diff_id,))[0]
    assert there(store) == {
        blob(kept.id),
        blob(kept.manifest.digest),
        blob(shared.descriptor.digest),
        f"snapshots/{chain[7:31]}",
        f"listings/{shared.diff_id[7:]}",
    }


def test_one_layer_in_two_places(store: Store) -> None:
    """The same layer on top of two others: two snapshots, one listing, one blob."""
    one, two, top = layer(store, b"1"), layer(store, b"2"), layer(store, b"top")
    recorded(store, one, top)
    recorded(store, two, top)
    put(store, b"1", b"top", name="a")
    put(store, b"2", b"top", name="b")
    assert len(os.listdir(store.root / "snapshots")) == 4
    store.remove("a")
    chains = chain_ids((two.diff_id, top.diff_id))
    assert set(os.listdir(store.root / "snapshots")) == {chain[7:31] for chain in chains}
    assert f"listings/{top.diff_id[7:]}" in there(store)
    assert blob(top.descriptor.digest) in there(store)
    store.remove("b")
    assert there(store) == set()


def test_a_chain_of_dangling_images_goes_whole(store: Store) -> None:
    base = put(store, b"1")
    step = put(store, b"1", b"2", parent=base, intermediate=True)
    top = put(store, b"1", b"2", b"3", parent=step)
    assert set(store.prune().deleted) == set(deleted(base, step, top))
    assert there(store) == set()


def test_a_dangling_image_that_a_named_one_is_built_on_becomes_its_intermediate(store: Store) -> None:
    old = put(store, b"1", name="app")
    new = put(store, b"1", b"2", parent=old, name="app")
    assert store.image(old.id).dangling
    assert store.prune().deleted == ()
    assert store.image(old.id).intermediate
    assert store.images() == [new]
    store.remove("app")
    assert store.images(all=True) == []


def test_intermediates_of_failed_builds_stay_for_the_next_one(store: Store) -> None:
    step = put(store, b"1", intermediate=True)
    put(store, b"2")
    store.prune()
    assert store.images(all=True) == [step]


def test_all_takes_everything(store: Store) -> None:
    base = put(store, b"1", name="base")
    step = put(store, b"1", b"2", parent=base, intermediate=True)
    app = put(store, b"1", b"2", b"3", parent=step, name="app:1")
    store.tag(Reference.parse("app:2"), app.id)
    failed = put(store, b"failed", intermediate=True)
    pruned = store.prune(all=True)
    assert pruned.deleted[:3] == ("Untagged: app:1", "Untagged: app:2", "Untagged: base:latest")
    assert set(pruned.deleted[3:]) == set(deleted(base, step, app, failed))
    assert there(store) == set()
    assert store.images(all=True) == []


def test_the_bytes_are_those_of_the_disk(store: Store) -> None:
    put(store, b"x" * 1_000_000, name="app")
    put(store, b"y", name="app")
    assert 1_000_000 <= store.prune().bytes < 1_050_000


# ---------------------------------------------------------------- leases


def test_what_a_running_build_may_rely_on_stays_until_it_ends(store: Store) -> None:
    put(store, b"a", name="app")
    with Store.open(store.root) as other:
        with other.lease():
            before = there(store)
            store.remove("app")
            assert store.images(all=True) == []
            assert there(store) == before
            assert store.prune().bytes == 0
            # The build goes on with the blob that it had found.
            again = put(other, b"a", name="mine")
        assert there(store) == before
        assert store.images() == [again]
        with other.lease():
            store.remove("mine")
            assert there(store) == before
        assert there(store) == set()
    assert os.listdir(store.root / "leases") == []


def test_a_build_that_began_later_holds_nothing_up(store: Store) -> None:
    put(store, b"a", name="app")
    with store.lease():
        store.remove("app")
        later = store.lease()
        later.__enter__()
    assert there(store) == set()
    later.__exit__(None, None, None)


def test_what_was_put_again_since_is_not_taken_from_a_later_build(store: Store) -> None:
    put(store, b"a", name="app")
    first, second = store.lease(), store.lease()
    with first:
        store.remove("app")
        second.__enter__()
        item = layer(store, b"a")
    assert blob(item.descriptor.digest) in there(store)
    put(store, b"a")
    second.__exit__(None, None, None)
    assert len(store.images()) == 1
    assert len(there(store)) == 3


def test_the_lease_of_a_dead_process_does_not_count(store: Store) -> None:
    program = (
        "import os, sys, pathlib; from cache.store import Store\n"
        "Store.open(pathlib.Path(sys.argv[1])).lease().__enter__()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    put(store, b"a", name="app")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert prune.oldest_lease(store) is not None
        store.remove("app")
        assert len(there(store)) == 3
        child.kill()
    assert prune.oldest_lease(store) is None
    assert os.listdir(store.root / "leases") == []
    store.prune()
    assert there(store) == set()


def test_a_lease_survives_a_child_that_forks_and_ends(store: Store) -> None:
    with store.lease():
        subprocess.run(["true"], check=True)
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert prune.oldest_lease(store) is not None


# ---------------------------------------------------------------- leftovers


def test_a_removal_that_was_killed_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, b"a", name="app")
    with monkeypatch.context() as patch:
        patch.setattr(prune, "sweep", lambda store: 0)
        store.remove("app")
    assert len(there(store)) == 3
    with Store.open(store.root) as again, again.lease():
        pass
    assert there(store) == set()


def test_what_is_named_again_after_a_killed_removal_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(store, b"a", name="app")
    with monkeypatch.context() as patch:
        patch.setattr(prune, "sweep", lambda store: 0)
        store.remove("app")
    # As if nothing had touched the files since: only the rows speak for them.
    put(store, b"a", name="app")
    age(store, "blobs/sha256")
    store.prune()
    assert store.image("app").id == image.id
    assert len(there(store)) == 3


def test_blobs_that_no_row_names(store: Store) -> None:
    kept = put(store, b"a", name="app")
    store.put_blob(b"left by a killed build", "x")
    record = layer(store, b"of a record")
    recorded(store, record)
    (store.root / "snapshots" / ("a" * 24)).mkdir()
    (store.root / "listings" / ("b" * 64)).touch()
    before = there(store)
    # Their writer may be about to name them.
    store.prune()
    assert there(store) == before
    age(store, "blobs/sha256", "snapshots", "listings")
    store.prune()
    assert before - there(store) == {
        blob(digest_of(b"left by a killed build")),
        "snapshots/" + "a" * 24,
        "listings/" + "b" * 64,
        # A record names a layer, not what it lies on.
        f"snapshots/{record.diff_id[7:31]}",
    }
    assert blob(kept.id) in there(store)


def test_temporary_files_of_dead_processes(store: Store) -> None:
    folder = store.root / "tmp"
    (folder / "dead file").write_bytes(b"x")
    (folder / "dead folder").mkdir()
    (folder / "dead folder" / "inside").touch()
    (folder / "trash-0").mkdir()
    writer = store.writer()
    writer.write(b"alive")
    age(store, "tmp")
    (folder / "young file").touch()
    store.prune()
    assert sorted(os.listdir(folder)) == sorted([os.path.basename(writer._path), "young file"])
    writer.commit()


def test_a_running_build_keeps_its_temporary_folders(store: Store) -> None:
    with store.lease():
        os.utime(next((store.root / "leases").iterdir()), (LONG_AGO - 10, LONG_AGO - 10))
        (store.root / "tmp" / "upper").mkdir()
        (store.root / "tmp" / "archive").touch()
        age(store, "tmp")
        store.prune()
        assert sorted(os.listdir(store.root / "tmp")) == ["archive", "upper"]
    store.prune()
    assert os.listdir(store.root / "tmp") == []


def test_the_stat_cache_of_forgotten_folders(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    status = os.lstat(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.digests.time.time_ns", lambda: status.st_ctime_ns + 10_000_000_000)
        for root in (b"/one", b"/two"):
            Digests(store.database).of_files(root, [(b"a", status)], lambda _: "x")
    with store.database.transaction() as connection:
        connection.execute("UPDATE roots SET used = used - 31 WHERE path = ?", (b"/one",))
    store.prune()
    assert store.database.query("SELECT path FROM roots") == [(b"/two",)]
    assert store.database.query("SELECT path FROM files") == [(b"a",)]


REMOVE_SNAPSHOT_AS_USER = """
import os, sys, pathlib
from cache.store import Store
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
store = Store.open(pathlib.Path(sys.argv[1]) / "store")
snapshot = store.root / "snapshots" / ("a" * 24)
snapshot.mkdir()
(snapshot / "file").touch()
os.utime(snapshot, (0, 0))
snapshot.chmod(0o555)
store.prune()
assert os.listdir(store.root / "snapshots") == os.listdir(store.root / "tmp") == []
"""


def test_a_snapshot_whose_owner_may_not_write_to_it(tmp_path: Path) -> None:
    as_user(REMOVE_SNAPSHOT_AS_USER, tmp_path / "folder")

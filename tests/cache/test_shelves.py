"""The contract of a shelf, and what a folder does beyond it."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

import pytest

from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import Descriptor, Manifest, digest_of
from cache.registry import Registry
from cache.shelves import Directory, Repository, read_small
from cache.store import Store
from tests.registries import PlayedRegistry, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.shelves import Shelf

TYPE = "application/vnd.pybuild.test"


def described(data: bytes) -> Descriptor:
    return Descriptor(TYPE, digest_of(data), len(data))


def put(shelf: Shelf, data: bytes) -> Descriptor:
    blob = described(data)
    shelf.put(blob, lambda: io.BytesIO(data))
    return blob


def sheet(shelf: Shelf, note: str, *layers: bytes) -> Manifest:
    config = put(shelf, b"{}")
    return Manifest(config, tuple(put(shelf, data) for data in layers), annotations=(("note", note),))


@pytest.fixture(params=["folder", "registry"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    if request.param == "folder":
        yield Directory(tmp_path / "shelf")
        return
    with PlayedRegistry() as registry, Store.open(tmp_path / "store") as store:
        yield Repository(Registry(registry.name), "team/cache", "main", store)


# ---------------------------------------------------------------- the contract


def test_a_new_shelf_has_nothing(shelf: Shelf) -> None:
    assert shelf.find("step-1") is None
    assert not shelf.has(described(b"x"))
    with pytest.raises(NotFoundError):
        shelf.read(described(b"x"), io.BytesIO())


def test_a_blob_is_sent_once(shelf: Shelf) -> None:
    blob = described(b"some bytes")
    opened = []

    def source() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(b"some bytes")

    assert shelf.put(blob, source)
    assert not shelf.put(blob, source)
    assert len(opened) == 1
    assert shelf.has(blob)
    out = io.BytesIO()
    shelf.read(blob, out)
    assert out.getvalue() == b"some bytes"


def test_a_blob_that_fails_half_way_is_not_there(shelf: Shelf) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise CorruptError("the store's blob is damaged")

    with pytest.raises(CorruptError):
        shelf.put(described(b"x" * 100), Failing)
    with pytest.raises(StoreError):
        shelf.put(described(b"x" * 100), lambda: io.BytesIO(b"x" * 50))
    assert not shelf.has(described(b"x" * 100))


def test_a_sheet_comes_back_as_it_was_put(shelf: Shelf) -> None:
    kept = sheet(shelf, "1", b"one", b"two")
    shelf.keep("step-1", kept)
    found = shelf.find("step-1")
    assert found is not None
    assert (found.config, found.layers, found.annotations) == (kept.config, kept.layers, kept.annotations)
    shelf.keep("step-1", sheet(shelf, "2", b"one"))
    assert shelf.find("step-1") == sheet(shelf, "2", b"one")
    assert shelf.find("step-2") is None


def test_many_writers_lose_nothing(shelf: Shelf) -> None:
    def write(number: int) -> None:
        for each in range(5):
            shelf.keep(f"step-{number}-{each}", sheet(shelf, f"{number} {each}", b"shared", f"own {number}".encode()))
            shelf.keep("step-all", sheet(shelf, "same", b"shared"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        for each in range(5):
            found = shelf.find(f"step-{number}-{each}")
            assert found is not None
            assert dict(found.annotations)["note"] == f"{number} {each}"
            assert all(shelf.has(layer) for layer in found.layers)


def test_small_blobs_are_verified(shelf: Shelf) -> None:
    blob = put(shelf, b"true")
    assert read_small(shelf, blob, 100) == b"true"
    with pytest.raises(CorruptError):
        read_small(shelf, blob, 3)
    with pytest.raises(NotFoundError):
        read_small(shelf, described(b"other"), 100)


# ---------------------------------------------------------------- a folder


def test_a_folder_is_an_oci_layout(tmp_path: Path) -> None:
    shelf = Directory(tmp_path / "shelf")
    assert not (tmp_path / "shelf").exists()
    blob = put(shelf, b"data")
    assert (tmp_path / "shelf/oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
    assert (tmp_path / "shelf/index.json").exists()
    assert (tmp_path / "shelf/blobs" / blob.digest.replace(":", "/")).read_bytes() == b"data"
    assert not [path.name for path in (tmp_path / "shelf").rglob(".*")]


def test_a_damaged_blob_of_a_folder_is_found_out(tmp_path: Path) -> None:
    shelf = Directory(tmp_path)
    blob = put(shelf, b"data")
    path = tmp_path / "blobs" / blob.digest.replace(":", "/")
    path.write_bytes(b"dada")
    with pytest.raises(CorruptError):
        read_small(shelf, blob, 100)
    path.write_bytes(b"da")
    assert not shelf.has(blob)
    assert shelf.put(blob, lambda: io.BytesIO(b"data"))
    assert path.read_bytes() == b"data"


def test_what_is_no_manifest_is_told(tmp_path: Path) -> None:
    shelf = Directory(tmp_path)
    shelf.keep("step-1", sheet(shelf, "1"))
    (tmp_path / "sheets/step-1").write_bytes(b"{")
    with pytest.raises(CorruptError):
        shelf.find("step-1")
    (tmp_path / "sheets/step-1").write_bytes(b"[]")
    with pytest.raises(CorruptError):
        shelf.find("step-1")


def test_a_folder_is_kept_below_a_limit(tmp_path: Path) -> None:
    shelf = Directory(tmp_path)
    for number in range(6):
        shelf.keep(f"step-{number}", sheet(shelf, str(number), b"shared" * 100, f"{number}".encode() * 10_000))
    assert shelf.trim(1) == 0  # all of it is young
    for number in range(6):
        os.utime(tmp_path / f"sheets/step-{number}", (1000 + number, 1000 + number))
    for path in (tmp_path / "blobs/sha256").iterdir():
        os.utime(path, (1000, 1000))
    (tmp_path / "sheets/.step-9.1-2").write_text("of a process that was killed")
    os.utime(tmp_path / "sheets/.step-9.1-2", (1000, 1000))
    assert shelf.find("step-1") is not None  # so it is used
    os.utime(tmp_path / "sheets/step-1", (2000, 2000))
    assert shelf.trim(25_000) > 30_000
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["step-1", "step-5"]
    for name in ("step-1", "step-5"):
        kept = shelf.find(name)
        assert kept is not None
        assert all(shelf.has(blob) for blob in (kept.config, *kept.layers))
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 4
    assert shelf.trim(25_000) == 0
    # What was just asked for is about to be relied on, though no sheet names it yet.
    shelf.put(described(b"new"), lambda: io.BytesIO(b"new"))
    shelf.trim(0)
    assert shelf.has(described(b"new"))
    assert Directory(tmp_path / "none").trim(0) == 0


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can not write"):
        put(Directory(tmp_path / "file/below"), b"x")


# ---------------------------------------------------------------- a repository


@pytest.fixture
def played() -> Iterator[PlayedRegistry]:
    with PlayedRegistry() as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def test_sheets_stand_beside_images(played: PlayedRegistry, store: Store) -> None:
    shelf = Repository(Registry(played.name), "app", "main", store)
    shelf.keep("step-1", sheet(shelf, "1", b"layer"))
    assert [tag for _, tag in played.manifests if ":" not in tag] == ["main-step-1"]
    assert Repository(Registry(played.name), "app", "other", store).find("step-1") is None
    assert shelf.title == f"{played.name}/app:main"


def test_a_blob_of_another_repository_is_not_sent(played: PlayedRegistry, store: Store) -> None:
    registry = Registry(played.name)
    first = Repository(registry, "app", "main", store)
    blob = put(first, b"a layer")
    sent = len(played.requests("PUT", "/blobs/uploads/"))
    # Known from what was read, too: another store than that which has written it.
    first.keep("step-1", sheet(first, "1", b"a layer"))
    second = Repository(registry, "cache", "main", store)
    assert not second.put(blob, lambda: pytest.fail("opened"))
    assert played.has["cache"] == {blob.digest}
    assert len(played.requests("PUT", "/blobs/uploads/")) == sent + 1  # the sheet's config


def test_a_blob_that_a_manifest_promises_and_that_is_gone_is_sent_again(played: PlayedRegistry, store: Store) -> None:
    shelf = Repository(Registry(played.name), "app", "main", store)
    shelf.keep("step-1", sheet(shelf, "1", b"layer"))
    blob = described(b"layer")
    played.has["app"].discard(blob.digest)
    with pytest.raises(NotFoundError):
        shelf.read(blob, io.BytesIO())
    assert shelf.put(blob, lambda: io.BytesIO(b"layer"))
    assert blob.digest in played.has["app"]


def test_a_registry_that_fails_is_told(played: PlayedRegistry, store: Store) -> None:
    shelf = Repository(Registry(played.name, sleep=lambda _: None), "app", "main", store)
    played.fail("GET", "/manifests/", *[status(403)] * 3)
    with pytest.raises(StoreError):
        shelf.find("step-1")


def test_the_images_of_an_index_are_all_looked_at(played: PlayedRegistry, store: Store) -> None:
    shelf = Repository(Registry(played.name), "app", "main", store)
    one = sheet(shelf, "one", b"layer")
    digest = played.put_manifest("app", "", one.to_json(), one.media_type)
    media_type = "application/vnd.oci.image.index.v1+json"
    index = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [{"mediaType": one.media_type, "digest": digest, "size": 1}],
    }
    played.put_manifest("app", "1.0", index, media_type)
    assert [dict(each.annotations) for each in shelf.images("1.0")] == [{"note": "one"}]
    assert shelf.images("2.0") == []

"""The store: blobs that verify themselves, images and names as docker has them, a layout that others read at any time.

The attacks are here too: every blob damaged in turn, processes killed at random moments, four of them at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from cache.errors import CorruptError, InUseError, NotFoundError, StoreError
from cache.oci import (
    CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    INDEX,
    LAYER,
    LAYER_GZIP,
    MANIFEST,
    REF_NAME,
    Descriptor,
    Digest,
    History,
    ImageConfig,
    Layer,
    Manifest,
    Platform,
    canonical,
    digest_of,
)
from cache.reference import Reference
from cache.store import FULL_NAME, Image, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = Reference.parse("app:1.0")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def layer(store: Store, data: bytes) -> Layer:
    return Layer(digest_of(data), store.put_blob(data, LAYER))


def put(
    store: Store,
    *contents: bytes,
    parent: Image | None = None,
    intermediate: bool = False,
    needs: tuple[Image, ...] = (),
    created: str = "2024-01-01T00:00:00Z",
) -> Image:
    """An image of one layer for each of `contents`."""
    layers = tuple(layer(store, data) for data in contents)
    config = ImageConfig(
        platform=Platform("linux", "amd64"),
        diff_ids=tuple(item.diff_id for item in layers),
        history=tuple(History(created_by=f"RUN {data!r}", created=created) for data in contents),
        created=created,
    )
    return store.put_image(
        config,
        layers,
        parent=None if parent is None else parent.id,
        intermediate=intermediate,
        needs=[other.id for other in needs],
    )


def tagged(store: Store, name: str, *contents: bytes, parent: Image | None = None) -> Image:
    image = put(store, *contents, parent=parent)
    store.tag(Reference.parse(name), image.id)
    return store.image(name)


def listed(store: Store) -> list[tuple[str, str]]:
    """Digest and name of each descriptor of index.json."""
    index = json.loads((store.root / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == INDEX
    return [(item["digest"], item.get("annotations", {}).get(REF_NAME, "")) for item in index["manifests"]]


def blobs(store: Store) -> set[str]:
    return {f"sha256:{name}" for name in os.listdir(store.root / "blobs" / "sha256")}


def read_slowly(store: Store, blob: Descriptor | Digest) -> None:
    with store.open_blob(blob) as stream:
        while stream.read(8192):
            pass


def whole(store: Store) -> None:
    """Everything that is listed, by the database and by index.json, is there and is what its digest says."""
    images = store.images(all=True)
    for image in images:
        manifest = store.manifest(image)
        assert manifest.config.digest == image.id
        for descriptor in (manifest.config, *manifest.layers):
            with store.open_blob(descriptor) as stream:
                stream.read()
    expected = sorted(
        (image.manifest.digest, name) for image in images if not image.intermediate for name in image.names or ("",)
    )
    assert sorted(listed(store)) == expected


# ---------------------------------------------------------------- blobs


def test_a_new_store_is_a_layout(store: Store) -> None:
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert listed(store) == []


def test_opening_again_changes_nothing(store: Store) -> None:
    image = tagged(store, "app", b"a")
    before = {path: os.stat(store.root / path).st_mtime_ns for path in ("index.json", "oci-layout")}
    with Store.open(store.root) as again:
        assert again.image("app") == image
    assert {path: os.stat(store.root / path).st_mtime_ns for path in before} == before


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(StoreError, match="can not use") as caught:
        Store.open(tmp_path / "store")
    assert "--root" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_folder_that_may_not_be_written_is_an_error(store: Store) -> None:
    program = (
        "import os, sys, pathlib; from cache.store import Store; from cache.errors import StoreError\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: Store.open(pathlib.Path(sys.argv[1]))\n"
        "except StoreError as error: sys.exit(error.message)\n"
    )
    for folder in (store.root, *store.root.parents):
        # The test's own folders only: those above let everybody through already.
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", program, str(store.root)], capture_output=True, text=True, check=False)
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_blob_comes_back(store: Store) -> None:
    descriptor = store.put_blob(b"hello", "text/plain")
    assert descriptor == Descriptor("text/plain", digest_of(b"hello"), 5)
    assert store.put_blob(b"hello", "text/plain") == descriptor
    assert store.has(descriptor.digest)
    assert store.holds(descriptor)
    assert store.blob_path(descriptor.digest).read_bytes() == b"hello"
    assert store.read_blob(descriptor) == b"hello"
    with store.open_blob(descriptor.digest) as stream:
        assert [stream.read(2), stream.read(2), stream.read(2), stream.read(2)] == [b"he", b"ll", b"o", b""]
    assert os.listdir(store.root / "tmp") == []


def test_the_empty_blob(store: Store) -> None:
    assert store.read_blob(store.put_blob(b"", "x")) == b""


def test_a_missing_blob(store: Store) -> None:
    absent = digest_of(b"never")
    assert not store.has(absent)
    with pytest.raises(NotFoundError, match=absent):
        store.open_blob(absent)


def test_a_blob_that_is_too_large_to_read_at_once(store: Store) -> None:
    with pytest.raises(CorruptError, match="more than 3"):
        store.read_blob(store.put_blob(b"long", "x"), limit=3)


def test_a_writer_computes_the_digest(store: Store) -> None:
    with store.writer() as writer:
        assert writer.write(b"he") == 2
        writer.write(bytearray(b"l"))
        writer.write(memoryview(b"lo"))
        assert writer.commit() == (digest_of(b"hello"), 5)
    assert store.blob_path(digest_of(b"hello")).read_bytes() == b"hello"


@pytest.mark.parametrize("hashing", [True, False])
def test_a_writer_believes_nothing_else(store: Store, *, hashing: bool) -> None:
    with store.writer(hashing=hashing) as writer:
        writer.write(b"hello")
        with pytest.raises(CorruptError, match="have the digest"):
            writer.commit(digest_of(b"other"))
        with pytest.raises(CorruptError, match="announced"):
            writer.commit(digest_of(b"hello"), 6)
        assert blobs(store) == set()
        assert writer.commit(digest_of(b"hello"), 5) == (digest_of(b"hello"), 5)


def test_a_writer_trusts_who_says_so(store: Store) -> None:
    with store.writer(hashing=False) as writer:
        writer.write(b"hello")
        writer.commit(digest_of(b"hello"), trusted=True)
    assert blobs(store) == {digest_of(b"hello")}


def test_an_abandoned_writer_leaves_nothing(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"x" * 100)
    with store.writer() as writer, pytest.raises(CorruptError):
        writer.commit(digest_of(b"x"))
    assert blobs(store) == set()
    assert os.listdir(store.root / "tmp") == []


def test_a_full_disk_is_said(store: Store) -> None:
    writer = store.writer()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file)
    os.close(full)
    with pytest.raises(StoreError, match="No space left") as caught:
        writer.write(b"x")
    assert "prune" in caught.value.hint
    writer.close()


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty"])
@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_a_damaged_blob_is_never_read_to_its_end(store: Store, damage: str, size: int) -> None:
    descriptor = store.put_blob(b"x" * size, "x")
    path = store.blob_path(descriptor.digest)
    data = bytearray(path.read_bytes())
    match damage:
        case "flip":
            data[size // 2] ^= 1
        case "short":
            del data[-1:]
        case "long":
            data += b"x"
        case _:
            data.clear()
    path.write_bytes(data)
    for asked in (descriptor, descriptor.digest):
        with pytest.raises(CorruptError):
            read_slowly(store, asked)
    with pytest.raises(CorruptError):
        store.read_blob(descriptor)
    # Put again, in either way, it is whole again.
    store.put_blob(b"x" * size, "x")
    assert store.read_blob(descriptor) == b"x" * size
    path.write_bytes(data)
    with store.writer() as writer:
        writer.write(b"x" * size)
        writer.commit()
    assert store.read_blob(descriptor) == b"x" * size


def test_a_blob_cut_while_it_is_read(store: Store) -> None:
    descriptor = store.put_blob(b"x" * 100, "x")
    with store.open_blob(descriptor) as stream:
        stream.read(10)
        os.truncate(store.blob_path(descriptor.digest), 20)
        stream.read(10)
        with pytest.raises(CorruptError, match="changed its size"):
            stream.read(10)


def test_every_blob_of_an_image_damaged_in_turn(store: Store) -> None:
    image = tagged(store, "app", b"first layer", b"second layer")
    manifest = store.manifest(image)
    victims = [image.manifest, manifest.config, *manifest.layers]
    assert len(victims) == 4
    for victim in victims:
        path = store.blob_path(victim.digest)
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(CorruptError):
            whole(store)
        path.write_bytes(good)
        whole(store)


# ---------------------------------------------------------------- images and names


def test_an_image_comes_back(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a", b"bc")
    assert image.names == ("app:1.0",)
    assert image.size == 3
    assert image.created == "2024-01-01T00:00:00Z"
    assert image.parent is None
    assert not image.intermediate
    assert not image.dangling
    config = store.config(image)
    assert digest_of(canonical(config.to_json())) == image.id
    assert [item.diff_id for item in store.layers(image)] == list(config.diff_ids)
    assert [item.descriptor.size for item in store.layers(image)] == [1, 2]
    assert listed(store) == [(image.manifest.digest, "app:1.0")]
    whole(store)


@pytest.mark.parametrize(
    "spelling", ["app:1.0", "docker.io/app:1.0", "docker.io/library/app:1.0", "index.docker.io/library/app:1.0"]
)
def test_any_spelling_of_a_name_finds_it(store: Store, spelling: str) -> None:
    image = tagged(store, "app:1.0", b"a")
    assert store.image(spelling) == image


def test_an_id_finds_it_whole_or_begun(store: Store) -> None:
    image = tagged(store, "app", b"a")
    tagged(store, "other", b"b")
    for text in (image.id, image.id[7:], image.id[7:19], image.id[:19], image.manifest.digest, f"app@{image.id}"):
        assert store.image(text) == image
    assert store.image(f"app@{image.manifest.digest}") == image


def test_a_name_comes_before_the_beginning_of_an_id(store: Store) -> None:
    image = tagged(store, "app", b"a")
    other = tagged(store, image.id[7:11], b"b")
    assert store.image(image.id[7:11]) == other
    assert store.image(image.id[7:12]) == image


def test_a_beginning_of_several_ids_is_refused(store: Store) -> None:
    # Seventeen ids begin with at most sixteen digits.
    ids = sorted(put(store, b"%d" % number).id for number in range(17))
    twin = next(second for first, second in pairwise(ids) if first[7] == second[7])
    with pytest.raises(StoreError, match="several"):
        store.image(twin[7])


def test_an_unknown_name_gets_the_nearest_ones(store: Store) -> None:
    tagged(store, "webservice:1.0", b"a")
    tagged(store, "db", b"b")
    tagged(store, "localhost:5000/hello", b"c")
    for wrong, right in (
        ("webservcie:1.0", "webservice:1.0"),
        ("webservice", "webservice:1.0"),
        ("webservice:completely-different", "webservice:1.0"),
        ("dbb", "db:latest"),
        ("localhost:5000/hallo", "localhost:5000/hello:latest"),
    ):
        with pytest.raises(NotFoundError, match=wrong) as caught:
            store.image(wrong)
        assert caught.value.hint == f"did you mean {right}?"
    with pytest.raises(NotFoundError) as caught:
        store.image("zzzzzzzzzz")
    assert caught.value.hint == ""


@pytest.mark.parametrize("text", ["", "A B", "app:", "f" * 64, "sha256:" + "f" * 64, "ffff"])
def test_what_is_not_there(store: Store, text: str) -> None:
    tagged(store, "app", b"a")
    with pytest.raises(StoreError):
        store.image(text)


def test_newest_first(store: Store) -> None:
    old = put(store, b"old", created="2023-01-01T00:00:00Z")
    new = put(store, b"new", created="2025-01-01T00:00:00Z")
    between = put(store, b"between", created="2024-01-01T00:00:00Z")
    later = put(store, b"put later", created="2024-01-01T00:00:00Z")
    assert [image.id for image in store.images()] == [new.id, later.id, between.id, old.id]


def test_a_retag_leaves_the_previous_image_dangling(store: Store) -> None:
    first = tagged(store, "app:1.0", b"a")
    second = put(store, b"b")
    assert store.tag(NAME, second.id) == first.id
    assert store.image("app:1.0").id == second.id
    assert store.image(first.id).dangling
    assert sorted(listed(store)) == sorted([(first.manifest.digest, ""), (second.manifest.digest, "app:1.0")])
    whole(store)


def test_the_same_tag_again_writes_nothing(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a")

    def state() -> list[tuple[str, int, int, int]]:
        found = []
        for folder, _, files in os.walk(store.root):
            for name in files:
                status = os.stat(os.path.join(folder, name))
                if not name.endswith("-shm"):
                    found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
        return sorted(found)

    before = state()
    assert store.tag(NAME, image.id) is None
    assert state() == before


def test_the_same_image_again_writes_no_row(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a")
    before = (store.root / "index.json").stat().st_ino, (store.root / "pybuild.db-wal").stat().st_size
    assert put(store, b"a") == image
    assert ((store.root / "index.json").stat().st_ino, (store.root / "pybuild.db-wal").stat().st_size) == before


def test_several_names(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a")
    assert store.tag(Reference.parse("ghcr.io/me/app"), image.id) is None
    assert store.image("app:1.0").names == ("app:1.0", "ghcr.io/me/app:latest")
    assert listed(store) == [(image.manifest.digest, "app:1.0"), (image.manifest.digest, "ghcr.io/me/app:latest")]
    full = [
        item["annotations"][FULL_NAME] for item in json.loads((store.root / "index.json").read_bytes())["manifests"]
    ]
    assert full == ["docker.io/library/app:1.0", "ghcr.io/me/app:latest"]


def test_a_digest_is_no_tag(store: Store) -> None:
    image = put(store, b"a")
    with pytest.raises(StoreError, match="digest"):
        store.tag(Reference.parse(f"app@{image.id}"), image.id)


def test_a_name_for_an_unknown_image(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.tag(NAME, digest_of(b"x"))
    assert listed(store) == []


def test_an_intermediate_image_is_not_listed(store: Store) -> None:
    step = put(store, b"a", intermediate=True)
    image = put(store, b"a", b"b", parent=step)
    assert store.images() == [image]
    assert store.images(all=True) == [image, step]
    assert image.parent == step.id
    assert listed(store) == [(image.manifest.digest, "")]
    whole(store)


def test_intermediate_never_demotes_and_full_promotes(store: Store) -> None:
    image = put(store, b"a", intermediate=True)
    assert put(store, b"a", intermediate=True).intermediate
    assert not put(store, b"a").intermediate
    assert not put(store, b"a", intermediate=True).intermediate
    assert listed(store) == [(image.manifest.digest, "")]


def test_a_name_promotes_too(store: Store) -> None:
    image = put(store, b"a", intermediate=True)
    store.tag(NAME, image.id)
    assert not store.image("app:1.0").intermediate
    assert listed(store) == [(image.manifest.digest, "app:1.0")]


def test_layers_must_be_those_of_the_config(store: Store) -> None:
    first, second = layer(store, b"a"), layer(store, b"b")
    config = ImageConfig(diff_ids=(first.diff_id,))
    for wrong in ((), (second,), (first, second)):
        with pytest.raises(StoreError, match="not those"):
            store.put_image(config, wrong)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_an_image_without_its_blobs_is_refused(store: Store, damage: str) -> None:
    item = layer(store, b"abc")
    path = store.blob_path(item.descriptor.digest)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"ab")
    with pytest.raises(NotFoundError, match="layer"):
        store.put_image(ImageConfig(diff_ids=(item.diff_id,)), [item])
    assert store.images(all=True) == []


def test_the_same_image_in_other_blobs(store: Store) -> None:
    image = tagged(store, "app", b"plain")
    (item,) = store.layers(image)
    other = Layer(item.diff_id, store.put_blob(b"compressed", LAYER_GZIP))
    again = store.put_image(store.config(image), [other])
    assert again.id == image.id
    assert store.layers(again) == (other,)
    assert listed(store) == [(again.manifest.digest, "app:latest")]
    # What carried it before is freed.
    store.prune()
    assert blobs(store) == {again.id, again.manifest.digest, other.descriptor.digest}
    whole(store)


def test_layers_of_docker_get_the_types_of_oci(store: Store) -> None:
    blob = store.put_blob(b"x", DOCKER_LAYER_GZIP)
    image = store.put_image(ImageConfig(diff_ids=(digest_of(b"y"),)), [Layer(digest_of(b"y"), blob)])
    assert [item.descriptor.media_type for item in store.layers(image)] == [LAYER_GZIP]


def test_an_adopted_image_keeps_its_bytes(store: Store) -> None:
    item = layer(store, b"a")
    # Blanks and unknown keys, as other tools write them.
    document = ImageConfig(diff_ids=(item.diff_id,)).to_json() | {"container": "abc"}
    config = store.put_blob(json.dumps(document, indent=3).encode(), CONFIG)
    text = json.dumps(Manifest(config, (item.descriptor,), DOCKER_MANIFEST).to_json(), indent=3).encode()
    manifest = store.put_blob(text, DOCKER_MANIFEST)
    image = store.adopt(manifest)
    assert (image.id, image.manifest) == (config.digest, manifest)
    assert store.adopt(manifest) == image
    assert store.layers(image) == (item,)
    whole(store)


def test_an_adopted_image_must_be_whole(store: Store) -> None:
    item = layer(store, b"a")
    config = store.put_blob(canonical(ImageConfig(diff_ids=(item.diff_id,)).to_json()), CONFIG)

    def adopt(document: object) -> None:
        store.adopt(store.put_blob(canonical(document), MANIFEST))

    with pytest.raises(CorruptError, match="0 layers"):
        adopt(Manifest(config, ()).to_json())
    with pytest.raises(CorruptError, match="manifest"):
        adopt([])
    gone = Descriptor(LAYER, digest_of(b"gone"), 4)
    with pytest.raises(NotFoundError):
        adopt(Manifest(config, (gone,)).to_json())
    with pytest.raises(NotFoundError):
        adopt(Manifest(gone, ()).to_json())
    assert store.images(all=True) == []


def test_many_puts_in_one_transaction(store: Store) -> None:
    with store.database.transaction():
        parent = None
        for depth in range(1, 11):
            parent = put(store, *(b"%d" % n for n in range(depth)), parent=parent, intermediate=depth < 10)
        assert parent is not None
        store.tag(NAME, parent.id)
        assert listed(store) == []
    assert listed(store) == [(parent.manifest.digest, "app:1.0")]
    assert len(store.images(all=True)) == 10


# ---------------------------------------------------------------- the layout


def test_index_json_is_made_anew_when_it_is_lost(store: Store) -> None:
    tagged(store, "app", b"a")
    put(store, b"b")
    good = (store.root / "index.json").read_bytes()
    for damage in (None, b"", b"{}", b"nonsense"):
        store.close()
        if damage is None:
            (store.root / "index.json").unlink()
        else:
            (store.root / "index.json").write_bytes(damage)
        with Store.open(store.root) as again:
            assert len(again.images()) == 2
            assert (store.root / "index.json").read_bytes() == good


def test_a_change_whose_index_json_was_never_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(store, b"a")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write_index", lambda self: None)
        store.tag(NAME, image.id)
    assert listed(store) == [(image.manifest.digest, "")]
    with Store.open(store.root) as again:
        again.images()
    assert listed(store) == [(image.manifest.digest, "app:1.0")]


def test_a_lost_database_is_found_again_in_index_json(store: Store) -> None:
    first = tagged(store, "app:1.0", b"a", b"b")
    store.tag(Reference.parse("ghcr.io/me/app"), first.id)
    dangling = put(store, b"c")
    broken = tagged(store, "broken", b"d")
    store.close()
    store.blob_path(broken.id).unlink()
    for path in store.root.glob("pybuild.db*"):
        path.unlink()
    with Store.open(store.root) as again:
        assert {image.id for image in again.images()} == {first.id, dangling.id}
        assert again.image("app:1.0").names == ("app:1.0", "ghcr.io/me/app:latest")
        whole(again)


def test_a_layout_of_another_tool_opens_as_a_store(store: Store, tmp_path: Path) -> None:
    image = tagged(store, "app:1.0", b"a")
    store.close()
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    (store.root / "blobs" / "sha256").rename(layout / "blobs" / "sha256")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [image.manifest.to_json() | {"annotations": {REF_NAME: "app:1.0"}}]}
    (layout / "index.json").write_text(json.dumps(index))
    with Store.open(layout) as opened:
        assert opened.image("app:1.0").id == image.id


@pytest.mark.peer("skopeo")
def test_skopeo_reads_the_store_while_it_is_in_use(store: Store) -> None:
    image = tagged(store, "app:1.0", b"")
    tagged(store, "other:2", b"b")
    put(store, b"dangling")
    put(store, b"intermediate", intermediate=True)
    done = subprocess.run(
        ["skopeo", "inspect", f"oci:{store.root}:app:1.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["Digest"] == image.manifest.digest
    raw = subprocess.run(["skopeo", "inspect", "--raw", f"oci:{store.root}:app:1.0"], capture_output=True, check=True)
    assert digest_of(raw.stdout) == image.manifest.digest


@pytest.mark.peer("umoci")
def test_umoci_lists_the_store_while_it_is_in_use(store: Store) -> None:
    tagged(store, "app:1.0", b"a")
    tagged(store, "app:2.0", b"a")
    put(store, b"dangling")
    done = subprocess.run(["umoci", "ls", "--layout", store.root], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["app:1.0", "app:2.0"]
    subprocess.run(["umoci", "stat", "--image", f"{store.root}:app:1.0"], capture_output=True, check=True)


# ---------------------------------------------------------------- removal


def test_removing_the_last_name_removes_the_image(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a")
    store.tag(Reference.parse("app:2.0"), image.id)
    assert store.remove("app:1.0") == ["Untagged: app:1.0"]
    assert store.image("app:2.0").id == image.id
    assert store.remove("docker.io/library/app:2.0") == ["Untagged: app:2.0", f"Deleted: {image.id}"]
    assert store.images(all=True) == []
    assert blobs(store) == set()
    assert listed(store) == []
    assert os.listdir(store.root / "tmp") == []


def test_removing_by_id(store: Store) -> None:
    image = tagged(store, "app:1.0", b"a")
    store.tag(Reference.parse("app:2.0"), image.id)
    with pytest.raises(InUseError, match=r"app:1\.0, app:2\.0"):
        store.remove(image.id[7:19])
    assert store.remove(image.id[7:19], force=True) == [
        "Untagged: app:1.0",
        "Untagged: app:2.0",
        f"Deleted: {image.id}",
    ]
    single = tagged(store, "app:1.0", b"b")
    assert store.remove(single.id) == ["Untagged: app:1.0", f"Deleted: {single.id}"]
    dangling = put(store, b"c")
    assert store.remove(dangling.id[:20]) == [f"Deleted: {dangling.id}"]
    assert blobs(store) == set()


def test_removing_what_is_not_there(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.remove("app")


def test_intermediates_go_with_the_last_image_that_needs_them(store: Store) -> None:
    one = put(store, b"1", intermediate=True)
    two = put(store, b"1", b"2", parent=one, intermediate=True)
    app = tagged(store, "app", b"1", b"2", b"3", parent=two)
    other = tagged(store, "other", b"1", b"4", parent=one)
    assert store.remove("app") == ["Untagged: app:latest", f"Deleted: {app.id}", f"Deleted: {two.id}"]
    whole(store)
    assert store.remove("other") == ["Untagged: other:latest", f"Deleted: {other.id}", f"Deleted: {one.id}"]
    assert blobs(store) == set()


def test_intermediates_of_a_stage_that_was_copied_from(store: Store) -> None:
    compiler = put(store, b"compiler", intermediate=True)
    built = put(store, b"compiler", b"built", parent=compiler, intermediate=True)
    app = put(store, b"copied", needs=(built,))
    store.tag(NAME, app.id)
    assert store.prune().deleted == ()
    assert store.remove("app:1.0") == [
        "Untagged: app:1.0",
        f"Deleted: {app.id}",
        f"Deleted: {built.id}",
        f"Deleted: {compiler.id}",
    ]
    assert blobs(store) == set()


def test_an_image_that_others_are_built_on(store: Store) -> None:
    base = tagged(store, "base", b"1")
    step = put(store, b"1", b"2", parent=base, intermediate=True)
    app = tagged(store, "app", b"1", b"2", b"3", parent=step)
    for force in (False, True):
        with pytest.raises(InUseError, match="built on it") as caught:
            store.remove(base.id, force=force)
        assert "app:latest" in caught.value.hint
    # As docker does: the name goes, the image stays as one of the other's intermediates.
    assert store.remove("base") == ["Untagged: base:latest"]
    assert store.image(base.id).intermediate
    whole(store)
    assert len(store.remove("app")) == 4
    assert store.images(all=True) == []
    assert app.id not in blobs(store)


def test_what_only_failed_builds_left_on_an_image_goes_with_it(store: Store) -> None:
    base = tagged(store, "base", b"1")
    step = put(store, b"1", b"2", parent=base, intermediate=True)
    assert store.remove(base.id) == ["Untagged: base:latest", f"Deleted: {step.id}", f"Deleted: {base.id}"]
    assert blobs(store) == set()


def test_a_shared_layer_stays(store: Store) -> None:
    tagged(store, "app", b"shared", b"own")
    other = tagged(store, "other", b"shared")
    store.remove("app")
    assert blobs(store) == {other.id, other.manifest.digest, digest_of(b"shared")}
    whole(store)


# ---------------------------------------------------------------- attacks

CHURN = textwrap.dedent(
    """
    import random, sys, pathlib
    from cache.errors import StoreError
    from cache.oci import LAYER, History, ImageConfig, Layer, digest_of
    from cache.reference import Reference
    from cache.store import Store

    root, seed, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    chance = random.Random(seed)
    store = Store.open(root)
    print("ready", flush=True)
    for round_ in range(rounds):
        act = chance.random()
        name = f"app{chance.randrange(4)}:{chance.randrange(2)}"
        try:
            if act < 0.6:
                with store.lease():
                    layers, parent = [], None
                    for depth in range(chance.randrange(1, 4)):
                        data = b"%d" % chance.randrange(6) * 3000
                        with store.writer() as writer:
                            writer.write(data)
                            digest, size = writer.commit()
                        layers.append(Layer(digest_of(data), store.put_blob(data, LAYER)))
                        config = ImageConfig(
                            diff_ids=tuple(layer.diff_id for layer in layers),
                            history=(History(created_by=f"{depth}"),),
                        )
                        parent = store.put_image(config, layers, parent=parent, intermediate=True).id
                    store.tag(Reference.parse(name), store.put_image(config, layers).id)
            elif act < 0.7:
                image = chance.choice(store.images() or [None])
                if image is not None:
                    store.tag(Reference.parse(name), image.id)
            elif act < 0.95:
                store.remove(name)
            else:
                store.prune()
        except StoreError as error:
            # Another process, or an earlier round, removed what this one wanted.
            known = ("no such image", "can not be removed", "several names")
            if not any(word in error.message for word in known):
                raise
    store.close()
    """
)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(4)
    root = tmp_path / "store"
    survivors = 0
    for round_ in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", CHURN, str(root), f"kill {round_}", "100000"], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.06))
            child.send_signal(signal.SIGKILL)
        # What other tools would find at this very moment.
        index = json.loads((root / "index.json").read_bytes())
        for item in index["manifests"]:
            manifest = json.loads((root / "blobs" / "sha256" / item["digest"][7:]).read_bytes())
            for blob in (manifest["config"], *manifest["layers"]):
                assert (root / "blobs" / "sha256" / blob["digest"][7:]).stat().st_size == blob["size"]
        with Store.open(root) as store:
            survivors += len(store.images(all=True))
            whole(store)
    assert survivors > 25
    with Store.open(root) as store:
        # A killed process's leftovers go, once they are old enough for nobody to be about to name them.
        old = time.time() - 7200
        for folder in ("tmp", "blobs/sha256"):
            for entry in os.scandir(root / folder):
                os.utime(entry.path, (old, old))
        store.prune(all=True)
        assert store.images(all=True) == []
        assert [os.listdir(root / folder) for folder in ("blobs/sha256", "tmp", "leases")] == [[], [], []]


def test_four_processes_at_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHURN, str(root), f"process {number}", "60"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    errors = [child.communicate(timeout=120)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0] * 4, errors
    with Store.open(root) as store:
        whole(store)
        store.prune(all=True)
        assert os.listdir(root / "tmp") == []
        assert store.database.query("SELECT * FROM doomed") == []


def test_index_json_of_many_images_is_written_from_the_database_alone(store: Store) -> None:
    with store.database.transaction():
        for number in range(50):
            tagged(store, f"app{number}", b"%d" % number)
    image = store.image("app1").id
    with pytest.MonkeyPatch.context() as patch:
        for reader in ("read_blob", "open_blob"):
            patch.setattr(Store, reader, lambda *_: pytest.fail("no blob need be read"))
        store.tag(Reference.parse("new:1"), image)
    assert len(listed(store)) == 51

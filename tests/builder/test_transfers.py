"""Images between store and registries: what comes is checked, what fails leaves nothing, what is there is not moved."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from builder import bases, transfers
from builder.errors import BuildError, CancelledError
from builder.events import BlobMoved, TransferFinished
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    INDEX,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    Platform,
    canonical,
)
from cache.reference import Reference
from cache.registry import Registry
from cache.store import Store
from tests.registries import PlayedRegistry, cut, endless, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from builder.events import Event

AMD64 = Platform("linux", "amd64")
JSON = dict[str, Any]


@pytest.fixture
def played() -> Iterator[PlayedRegistry]:
    with PlayedRegistry() as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Made:
    """An image put into a played registry by hand."""

    def __init__(
        self,
        played: PlayedRegistry,
        repository: str = "team/app",
        tag: str = "1",
        *,
        architecture: str = "amd64",
        docker: bool = False,
        files: int = 3,
        seed: str = "",
    ) -> None:
        tars = [tar_of(f"file{seed}{number}", b"x" * 1000 * number) for number in range(files)]
        self.blobs = [gzip.compress(tar, mtime=0) for tar in tars]
        self.config: JSON = {
            "architecture": architecture, "os": "linux", "config": {"Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": [sha(tar) for tar in tars]},
            "history": [{"created_by": "x"} for _ in tars],
        }  # fmt: skip
        self.config_data = canonical(self.config)
        layer_type = DOCKER_LAYER_GZIP if docker else LAYER_GZIP
        self.manifest: JSON = {
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST if docker else MANIFEST,
            "config": described(self.config_data, DOCKER_CONFIG if docker else CONFIG),
            "layers": [described(blob, layer_type) for blob in self.blobs],
        }  # fmt: skip
        for blob in (*self.blobs, self.config_data):
            played.put(repository, blob)
        self.digest = played.put_manifest(repository, tag, self.manifest, self.manifest["mediaType"])
        self.size = len(json.dumps(self.manifest))

    def line(self, media_type: str, platform: JSON) -> JSON:
        return {"mediaType": media_type, "digest": self.digest, "size": self.size, "platform": platform}


def described(data: bytes, media_type: str) -> JSON:
    return {"mediaType": media_type, "digest": sha(data), "size": len(data)}


def place(played: PlayedRegistry, name: str = "team/app:1") -> transfers.Place:
    client = Registry(played.name, plain_http=True, sleep=lambda _: None)
    return transfers.Place(Reference.parse(f"{played.name}/{name}"), client)


def pull(
    played: PlayedRegistry,
    store: Store,
    name: str = "team/app:1",
    platform: Platform | None = None,
    events: list[Event] | None = None,
) -> transfers.Pulled:
    report = (lambda _: None) if events is None else events.append
    return transfers.pull(place(played, name), platform, store=store, report=report)


def pull_made(played: PlayedRegistry, store: Store) -> str:
    """The id of an image that was made and pulled."""
    Made(played)
    return pull(played, store).image.id


def nothing_in(store: Store) -> bool:
    """No image, no name, no half-written file."""
    return not store.images(all=True) and not list((store.root / "tmp").iterdir())


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_an_image_comes_as_it_is(played: PlayedRegistry, store: Store, docker: bool) -> None:
    made = Made(played, docker=docker)
    events: list[Event] = []
    done = pull(played, store, events=events)
    assert (done.digest, done.new) == (made.digest, True)
    assert done.image.manifest.digest == made.digest
    assert done.image.names == (f"{played.name}/team/app:1",)
    assert [layer.descriptor.digest for layer in store.layers(done.image)] == [sha(blob) for blob in made.blobs]
    finished = events[-1]
    assert isinstance(finished, TransferFinished)
    assert (finished.size, finished.blobs) == (sum(map(len, made.blobs)), 3)
    before = len(played.seen)
    again = pull(played, store)
    assert not again.new
    # A HEAD is not counted by registries that limit pulls.
    assert [seen.method for seen in played.seen[before:]] == ["HEAD"]
    # Under another name, all that is asked for is the manifest.
    played.put_manifest("team/app", "2", made.manifest, made.manifest["mediaType"])
    before = len(played.seen)
    assert pull(played, store, "team/app:2", events=events).new
    assert [seen.method for seen in played.seen[before:]] == ["GET"]
    assert {event.state for event in events[-4:-1] if isinstance(event, BlobMoved)} == {"present"}


def test_a_name_that_was_moved_here_comes_back(played: PlayedRegistry, store: Store) -> None:
    image = pull_made(played, store)
    Made(played, tag="2", seed="other")
    other = pull(played, store, "team/app:2").image
    store.tag(Reference.parse(f"{played.name}/team/app:1"), other.id)
    again = pull(played, store)
    assert (again.image.id, again.new) == (image, True)
    assert store.image(f"{played.name}/team/app:1").id == image
    store.blob_path(store.manifest(again.image).layers[1].digest).unlink()
    assert pull(played, store).image.id == image
    assert all(store.holds(layer) for layer in store.manifest(again.image).layers)


def test_by_digest_it_has_no_name(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    done = pull(played, store, f"team/app@{made.digest}")
    assert done.image.dangling
    assert store.image(f"{played.name}/team/app@{made.digest}").id == done.image.id


def test_the_platform_picks(played: PlayedRegistry, store: Store) -> None:
    images = {
        name: Made(played, tag=name, architecture=name.partition("-")[0], seed=name)
        for name in ("amd64", "arm64", "arm-v6", "arm-v7")
    }
    platforms = {"arm-v6": {"variant": "v6"}, "arm-v7": {"variant": "v7"}, "arm64": {"variant": "v8"}}
    lines = [
        made.line(MANIFEST, {"os": "linux", "architecture": name.partition("-")[0], **platforms.get(name, {})})
        for name, made in images.items()
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": lines}
    top = played.put_manifest("team/app", "all", index, INDEX)
    for wanted, name in {
        Platform("linux", "arm", "v7"): "arm-v7",
        Platform("linux", "arm", "v6"): "arm-v6",
        Platform("linux", "arm", "v8"): "arm-v7",
        Platform("linux", "arm64"): "arm64",
        Platform("linux", "amd64", "v3"): "amd64",
    }.items():
        done = pull(played, store, "team/app:all", wanted)
        assert (done.image.manifest.digest, done.digest) == (images[name].digest, top), wanted
    store.image(f"{played.name}/team/app@{top}")
    with pytest.raises(BuildError, match="has no image for linux/s390x") as caught:
        pull(played, store, "team/app:all", Platform("linux", "s390x"))
    assert caught.value.hint.startswith("it has linux/amd64, linux/arm64, linux/arm/v6, linux/arm/v7")
    with pytest.raises(BuildError, match="has no image for linux/arm/v5"):
        pull(played, store, "team/app:all", Platform("linux", "arm", "v5"))


def test_an_image_for_one_platform_alone(played: PlayedRegistry, store: Store) -> None:
    Made(played, architecture="arm64")
    with pytest.raises(BuildError, match="has no image for linux/amd64") as caught:
        pull(played, store, platform=AMD64)
    assert "it has linux/arm64" in caught.value.hint
    assert nothing_in(store)
    pull(played, store)


def test_attestations_are_no_images(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    unknown = {**made.line(MANIFEST, {"os": "unknown", "architecture": "unknown"}), "digest": sha(b"other")}
    lines = [unknown, made.line(MANIFEST, {"os": "linux", "architecture": "amd64"})]
    index = {"schemaVersion": 2, "manifests": lines}
    played.put_manifest("team/app", "2", index, DOCKER_INDEX)
    assert pull(played, store, "team/app:2", AMD64).image.manifest.digest == made.digest


def test_a_missing_tag_names_the_nearest(played: PlayedRegistry, store: Store) -> None:
    for tag in ("1.0.0", "1.0.1", "2.0.0", "latest"):
        Made(played, tag=tag)
    with pytest.raises(NotFoundError, match=r"has no team/app:1\.0: manifest unknown") as caught:
        pull(played, store, "team/app:1.0")
    assert "it has 1.0.1, 1.0.0" in caught.value.hint or "it has 1.0.0, 1.0.1" in caught.value.hint


def broken(played: PlayedRegistry, **changes: object) -> None:
    """Another manifest under the tag."""
    made = Made(played)
    played.put_manifest("team/app", "1", {**made.manifest, **changes}, MANIFEST)


def test_what_is_no_image(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    chart = {**made.manifest["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}
    broken(played, config=chart)
    with pytest.raises(BuildError, match=r"is no image: its config is application/vnd\.cncf"):
        pull(played, store)
    odd = [{**layer, "mediaType": LAYER_ZSTD + "+encrypted"} for layer in made.manifest["layers"]]
    broken(played, layers=odd)
    with pytest.raises(BuildError, match="a kind that is not known"):
        pull(played, store)
    played.put_manifest("team/app", "1", {"schemaVersion": 2}, "application/vnd.made.up+json")
    with pytest.raises(BuildError, match="is no image but application/vnd"):
        pull(played, store)
    assert nothing_in(store)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[]", "image config is not a JSON object"),
        (b"{", "it is not JSON"),
        (b'{"rootfs":{"diff_ids":["md5:1","md5:2","md5:3"]}}', "not a sha256 digest"),
        (b'{"rootfs":{"diff_ids":[]}}', "has 3 layers and the image config 0"),
        (b'{"config":[],"rootfs":{"diff_ids":[]}}', "config is not a JSON object"),
    ],
)
def test_a_malformed_config(played: PlayedRegistry, store: Store, config: bytes, message: str) -> None:
    played.put("team/app", config)
    broken(played, config=described(config, CONFIG))
    with pytest.raises(CorruptError, match=message):
        pull(played, store)
    assert nothing_in(store)


@pytest.mark.parametrize("manifest", [b"{}", b"[]", b"nonsense", b'{"schemaVersion":2,"layers":[{}],"config":{}}'])
def test_a_malformed_manifest(played: PlayedRegistry, store: Store, manifest: bytes) -> None:
    played.put_manifest("team/app", "1", manifest, MANIFEST)
    with pytest.raises(StoreError):
        pull(played, store)
    assert nothing_in(store)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(status(200, {}, b"short"), id="truncated at the server"),
        pytest.param(endless, id="without an end"),
        pytest.param(status(404), id="gone"),
    ],
)
def test_a_layer_that_can_not_be_had_leaves_no_image(played: PlayedRegistry, store: Store, fault: Any) -> None:
    made = Made(played)
    played.fail("GET", made.manifest["layers"][1]["digest"], fault)
    with pytest.raises(StoreError):
        pull(played, store)
    assert nothing_in(store)
    assert pull(played, store).new


def test_layers_that_no_disk_would_hold(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    layers = [{**layer, "size": 10**17} for layer in made.manifest["layers"]]
    broken(played, layers=layers)
    with pytest.raises(StoreError, match=r"needs 300000000\.0 GB more"):
        pull(played, store)
    assert not played.requests("GET", f"/blobs/{layers[0]['digest']}")
    assert nothing_in(store)


def test_a_cut_layer_is_no_failure(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    blob = made.blobs[2]
    played.fail("GET", sha(blob), cut(blob[: len(blob) // 2], len(blob)), status(503))
    assert pull(played, store).new


def test_a_pull_can_be_stopped(played: PlayedRegistry, store: Store) -> None:
    Made(played)
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        transfers.pull(place(played), None, store=store, report=lambda _: None, stop=stop)
    assert nothing_in(store)


# ---------------------------------------------------------------- push


def test_what_was_pulled_goes_back_byte_for_byte(played: PlayedRegistry, store: Store) -> None:
    made = Made(played, docker=True)
    image = pull(played, store).image
    with PlayedRegistry() as other:
        there = place(other, "mine/copy:3")
        transfers.push(there, image.manifest, store=store, report=lambda _: None)
        assert other.manifests["mine/copy", "3"] == (DOCKER_MANIFEST, json.dumps(made.manifest).encode())
        assert {sha(blob) for blob in made.blobs} <= other.has["mine/copy"]
        # Once more: only questions.
        before = len(other.seen)
        transfers.push(there, image.manifest, store=store, report=lambda _: None)
        assert {seen.method for seen in other.seen[before:]} == {"HEAD", "PUT"}
        assert len(other.requests("PUT")[-1:]) == 1


def test_layers_are_mounted_from_where_they_came(played: PlayedRegistry, store: Store) -> None:
    Made(played)
    image = pull(played, store).image
    events: list[Event] = []
    transfers.push(place(played, "new/name:1"), image.manifest, store=store, report=events.append)
    assert len(played.requests("POST", "mount=.*&from=team/app")) == 3
    states = [event.state for event in events if isinstance(event, BlobMoved)]
    assert states.count("mounted") == 3


def test_an_index_takes_its_images_along(played: PlayedRegistry, store: Store) -> None:
    made = [Made(played, tag=name, architecture=name, seed=name) for name in ("amd64", "arm64")]
    for name in ("amd64", "arm64"):
        pull(played, store, f"team/app:{name}")
    lines = [
        each.line(MANIFEST, {"os": "linux", "architecture": name})
        for each, name in zip(made, ("amd64", "arm64"), strict=True)
    ]
    top = store.put_blob(canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": lines}), INDEX)
    with PlayedRegistry() as other:
        transfers.push(place(other), top, store=store, report=lambda _: None)
        assert other.manifests["team/app", "1"][0] == INDEX
        assert {reference for _, reference in other.manifests} == {"1", top.digest, made[0].digest, made[1].digest}


def test_foreign_layers_stay_where_they_are(played: PlayedRegistry, store: Store) -> None:
    made = Made(played, docker=True)
    with PlayedRegistry() as vendor:
        vendor.put("x", made.blobs[0])
        played.has["team/app"].remove(sha(made.blobs[0]))
        foreign = {
            **made.manifest["layers"][0],
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "urls": [f"http://{vendor.name}/v2/x/blobs/{sha(made.blobs[0])}"],
        }
        document = {**made.manifest, "layers": [foreign, *made.manifest["layers"][1:]]}
        played.put_manifest("team/app", "1", document, DOCKER_MANIFEST)
        image = pull(played, store).image
        assert len(vendor.seen) == 1
    with PlayedRegistry() as other:
        transfers.push(place(other), image.manifest, store=store, report=lambda _: None)
        assert sha(made.blobs[0]) not in other.has["team/app"]


def test_a_push_that_fails_names_no_tag(played: PlayedRegistry, store: Store) -> None:
    Made(played)
    image = pull(played, store).image
    with PlayedRegistry() as other:
        other.fail("POST", "uploads", status(403))
        with pytest.raises(StoreError, match="access is denied"):
            transfers.push(place(other), image.manifest, store=store, report=lambda _: None)
        assert not other.manifests


def test_a_blob_that_the_store_lost(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    image = pull(played, store).image
    store.blob_path(sha(made.blobs[1])).unlink()  # type: ignore[arg-type]
    with PlayedRegistry() as other, pytest.raises(NotFoundError, match="the store has no blob"):
        transfers.push(place(other), image.manifest, store=store, report=lambda _: None)


# ---------------------------------------------------------------- bases


def remote(played: PlayedRegistry, store: Store, *, always: bool = False) -> bases.Remote:
    def get(reference: Reference, platform: Platform) -> Any:
        client = Registry(played.name, plain_http=True, sleep=lambda _: None)
        where = transfers.Place(reference, client)
        return transfers.pull(where, platform, store=store, report=lambda _: None, strict=False).image

    return bases.Remote(get, always)


def test_a_base_is_pulled_once(played: PlayedRegistry, store: Store) -> None:
    made = Made(played)
    name = f"{played.name}/team/app:1"
    base = bases.resolve(name, AMD64, {}, store, remote=remote(played, store))
    assert base is not None
    assert base.digest == made.digest
    before = len(played.seen)
    assert bases.resolve(name, AMD64, {}, store, remote=remote(played, store)) == base
    assert len(played.seen) == before
    newer = Made(played, seed="newer")
    assert bases.resolve(name, AMD64, {}, store, remote=remote(played, store)) == base
    found = bases.resolve(name, AMD64, {}, store, remote=remote(played, store, always=True))
    assert found is not None
    assert found.digest == newer.digest


def test_a_base_of_another_platform_is_pulled_beside(played: PlayedRegistry, store: Store) -> None:
    images = {name: Made(played, tag=name, architecture=name, seed=name) for name in ("amd64", "arm64")}
    lines = [made.line(MANIFEST, {"os": "linux", "architecture": name}) for name, made in images.items()]
    played.put_manifest("team/app", "1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": lines}, INDEX)
    name = f"{played.name}/team/app:1"
    for _ in range(2):
        for architecture, made in images.items():
            base = bases.resolve(name, Platform("linux", architecture), {}, store, remote=remote(played, store))
            assert base is not None
            assert base.digest == made.digest
    # The second round asked nobody.
    assert len(played.requests("", "manifests/1$")) == 2


def test_a_base_that_is_nowhere(played: PlayedRegistry, store: Store) -> None:
    Made(played, tag="1.1")
    with pytest.raises(BuildError, match=r"is not in the store: .* has no team/app:1\.0") as caught:
        bases.resolve(f"{played.name}/team/app:1.0", AMD64, {}, store, remote=remote(played, store))
    assert "it has 1.1" in caught.value.hint
    with pytest.raises(BuildError, match="is not in the store"):
        bases.resolve("nothing", AMD64, {}, store)

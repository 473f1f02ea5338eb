"""Builds for several platforms: an index in the store and in what is written."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from cache.oci import host_platform
from cache.store import Store
from tests.building import Bench

if TYPE_CHECKING:
    from pathlib import Path

HERE = host_platform().architecture
THREE = "linux/amd64,linux/arm64,linux/arm/v7"
DOCKERFILE = """\
FROM scratch
ARG TARGETPLATFORM TARGETARCH TARGETVARIANT
COPY common /common
COPY <<EOF /platform
$TARGETPLATFORM $TARGETARCH $TARGETVARIANT
EOF
"""
PLATFORMS = [
    {"architecture": "amd64", "os": "linux"},
    {"architecture": "arm64", "os": "linux"},
    {"architecture": "arm", "os": "linux", "variant": "v7"},
]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def index_of(bench: Bench, name: str = "app:latest") -> dict[str, Any]:
    """What index.json has under a name."""
    listed = json.loads((bench.root / "index.json").read_text())["manifests"]
    full = f"docker.io/library/{name}"
    (found,) = [each for each in listed if each.get("annotations", {}).get("io.containerd.image.name") == full]
    data = (bench.root / "blobs/sha256" / found["digest"][7:]).read_bytes()
    assert len(data) == found["size"]
    document = json.loads(data)
    assert document["mediaType"] == found["mediaType"]
    return dict(document)


def blob(bench: Bench, digest: str) -> dict[str, Any]:
    return dict(json.loads((bench.root / "blobs/sha256" / digest[7:]).read_bytes()))


def test_an_index_has_an_image_for_each_platform(bench: Bench) -> None:
    done = bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE)
    index = index_of(bench)
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert [each["platform"] for each in index["manifests"]] == PLATFORMS
    layers = set()
    for entry in index["manifests"]:
        manifest = blob(bench, entry["digest"])
        config = blob(bench, manifest["config"]["digest"])
        assert {key: config[key] for key in entry["platform"]} == entry["platform"]
        layers.add(tuple(layer["digest"] for layer in manifest["layers"]))
    assert len(layers) == 3
    assert len({first for first, _ in layers}) == 1, "what is the same is there once"
    assert {step.stage for step in done.steps} == {f"{name} stage-0" for name in THREE.split(",")}
    again = bench.build(None, None, "--platform", THREE)
    assert again.image == done.image
    assert all(step.cached for step in again.steps)


def test_one_line_for_all(bench: Bench) -> None:
    done = bench.build(DOCKERFILE, {"common": "c"}, "--platform=linux/amd64", "--platform=linux/arm64")
    assert bench.listed() == [done.image]
    (document,) = json.loads(bench.pybuild("inspect", "app").out)
    assert document["Id"] == document["Descriptor"]["digest"] == done.image
    assert [each["Descriptor"]["platform"]["architecture"] for each in document["Manifests"]] == ["amd64", "arm64"]
    assert document["Architecture"] == (HERE if HERE in {"amd64", "arm64"} else "amd64")
    assert bench.pybuild("history", "-q", "app").out
    assert bench.pybuild("tag", "app", "other:1").code == 0
    assert bench.listed() == [done.image, done.image] or bench.listed() == [done.image]
    bench.pybuild("image", "prune", "-f")
    bench.pybuild("cache", "prune", "-y")
    assert "whole" in bench.pybuild("fsck").out
    assert len(index_of(bench)["manifests"]) == 2
    bench.pybuild("rmi", "app", "other:1")
    assert bench.listed("-a") == []
    assert list((bench.root / "blobs/sha256").iterdir()) == []


def test_stages_that_do_not_depend_on_the_platform_are_built_once(bench: Bench) -> None:
    dockerfile = (
        "FROM --platform=$BUILDPLATFORM base AS tool\nRUN cat /proc/sys/kernel/random/uuid >/tool\n"
        "FROM --platform=$BUILDPLATFORM base AS cross\nARG TARGETARCH\nRUN echo $TARGETARCH >/for\n"
        "FROM scratch\nCOPY --from=tool /tool /\nCOPY --from=cross /for /\n"
    )
    done = bench.build(
        dockerfile, None, "--platform=linux/amd64,linux/s390x", "--no-cache", "-o", str(bench.folder / "o")
    )
    runs = [(step.title, step.cached) for step in done.steps if step.title.startswith("RUN")]
    assert sorted(runs) == [
        ("RUN cat /proc/sys/kernel/random/uuid >/tool", False), ("RUN cat /proc/sys/kernel/random/uuid >/tool", True),
        ("RUN echo $TARGETARCH >/for", False), ("RUN echo $TARGETARCH >/for", False),
    ]  # fmt: skip
    texts = {path.relative_to(bench.folder / "o").as_posix(): path.read_text() for path in bench.folder.glob("o/*/*")}
    assert [texts[f"linux_{machine}/for"] for machine in ("amd64", "s390x")] == ["amd64\n", "s390x\n"]
    assert texts["linux_amd64/tool"] == texts["linux_s390x/tool"]


def test_a_base_is_chosen_by_platform(bench: Bench) -> None:
    bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE, tag="mine:1")
    bench.build("FROM mine:1\nCOPY common /more\n", None, "--platform=linux/arm64,linux/arm")
    for entry, wanted in zip(
        index_of(bench)["manifests"], ("linux/arm64 arm64 \n", "linux/arm/v7 arm v7\n"), strict=True
    ):
        layer = blob(bench, entry["digest"])["layers"][1]["digest"]
        with tarfile.open(bench.root / "blobs/sha256" / layer[7:]) as tar:
            assert (tar.extractfile("platform") or io.BytesIO()).read().decode() == wanted
    done = bench.build("FROM mine:1\nCOPY common /more\n", None, "--platform=linux/riscv64", code=1)
    assert "linux/riscv64" in done.err
    assert "linux/amd64, linux/arm64, linux/arm/v7" in done.err


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_has_the_index(bench: Bench, kind: str) -> None:
    out = bench.folder / "out.tar"
    bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE, "-o", f"type={kind},dest={out}")
    with tarfile.open(out) as tar:
        read = {name: (tar.extractfile(name) or io.BytesIO()).read() for name in tar.getnames()}
    (entry,) = json.loads(read["index.json"])["manifests"]
    assert entry["mediaType"] == "application/vnd.oci.image.index.v1+json"
    index = json.loads(read["blobs/sha256/" + entry["digest"][7:]])
    assert [each["platform"] for each in index["manifests"]] == PLATFORMS
    for each in index["manifests"]:
        manifest = json.loads(read["blobs/sha256/" + each["digest"][7:]])
        assert all("blobs/sha256/" + layer["digest"][7:] in read for layer in (manifest["config"], *manifest["layers"]))
    if kind == "docker":
        (told,) = json.loads(read["manifest.json"])
        config = json.loads(read[told["Config"]])
        assert config["architecture"] == (HERE if HERE in {"amd64", "arm64", "arm"} else "amd64")
        assert told["RepoTags"] == ["app:latest"]


def test_an_index_in_another_form(bench: Bench) -> None:
    out = bench.folder / "out.tar"
    bench.build(
        DOCKERFILE, {"common": "c"}, "--platform", THREE,
        "-o", f"type=oci,dest={out},oci-mediatypes=false,compression=uncompressed",
    )  # fmt: skip
    with tarfile.open(out) as tar:
        read = {name: (tar.extractfile(name) or io.BytesIO()).read() for name in tar.getnames()}
    (entry,) = json.loads(read["index.json"])["manifests"]
    assert entry["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json"
    index = json.loads(read["blobs/sha256/" + entry["digest"][7:]])
    assert index["mediaType"] == entry["mediaType"]
    assert [each["platform"] for each in index["manifests"]] == PLATFORMS
    for each in index["manifests"]:
        manifest = json.loads(read["blobs/sha256/" + each["digest"][7:]])
        assert manifest["mediaType"] == each["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
        assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.docker.image.rootfs.diff.tar"}


def test_files_go_to_a_folder_of_their_platform(bench: Bench) -> None:
    out = bench.folder / "files"
    flags = ("-o", f"type=local,dest={out}", "-o", f"type=tar,dest={out}.tar")
    bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE, *flags)
    assert sorted(path.name for path in out.iterdir()) == ["linux_amd64", "linux_arm64", "linux_arm_v7"]
    assert (out / "linux_arm_v7" / "platform").read_text() == "linux/arm/v7 arm v7\n"
    with tarfile.open(f"{out}.tar") as tar:
        assert "linux_arm64/common" in tar.getnames()
    bench.build(None, None, "--platform=linux/arm64", "-o", f"type=local,dest={bench.folder}/one,platform-split=true")
    assert [path.name for path in (bench.folder / "one").iterdir()] == ["linux_arm64"]
    bench.build(None, None, "--platform=linux/arm64", "-o", f"type=local,dest={bench.folder}/two")
    assert sorted(path.name for path in (bench.folder / "two").iterdir()) == ["common", "platform"]
    done = bench.build(None, None, "--platform", THREE, "-o", f"type=local,dest={out}2,platform-split=false", code=1)
    assert "platform-split" in done.err
    assert not done.steps


def test_files_that_tell_what_was_built(bench: Bench) -> None:
    iid, facts = bench.folder / "iid", bench.folder / "facts"
    done = bench.build(
        DOCKERFILE, {"common": "c"}, "--platform", THREE, "--iidfile", str(iid), "--metadata-file", str(facts)
    )
    assert iid.read_text() == done.image
    found = json.loads(facts.read_text())
    assert found["containerimage.digest"] == done.image
    assert found["containerimage.descriptor"]["mediaType"] == "application/vnd.oci.image.index.v1+json"


def test_a_store_that_lost_its_database_finds_the_index_again(bench: Bench) -> None:
    done = bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE)
    for path in bench.root.glob("pybuild.db*"):
        path.unlink()
    assert bench.names() == {"app:latest": done.image}
    assert len(json.loads(bench.pybuild("inspect", "app").out)[0]["Manifests"]) == 3


def test_squashed_and_reproducible(bench: Bench) -> None:
    flags = ("--platform", THREE, "--squash", "--reproducible")
    first = bench.build(DOCKERFILE, {"common": "c"}, *flags)
    assert {len(blob(bench, each["digest"])["layers"]) for each in index_of(bench)["manifests"]} == {1}
    assert bench.listed() == [first.image]
    assert bench.build(None, None, *flags, "--no-cache").image == first.image


def test_the_plan_of_each(bench: Bench) -> None:
    words = bench.words(DOCKERFILE, {"common": "c"})
    out = bench.pybuild(*words[:1], "--dry-run", "--platform", THREE, *words[1:]).out
    assert [line for line in out.splitlines() if line in {f"{name}:" for name in THREE.split(",")}] == [
        f"{name}:" for name in THREE.split(",")
    ]
    done = bench.pybuild("build", "--platform", "linux/amd64,nonsense/x/y/z", str(bench.context), code=2)
    assert "nonsense" in done.err


def test_platforms_that_are_the_same_make_one_image(bench: Bench) -> None:
    bench.build(DOCKERFILE, {"common": "c"}, "--platform", "linux/arm64,linux/arm64/v8,linux/aarch64")
    assert bench.image().config["architecture"] == "arm64"


@pytest.mark.peer("skopeo")
def test_skopeo_finds_each_platform(bench: Bench, tmp_path: Path) -> None:
    bench.build(DOCKERFILE, {"common": "c"}, "--platform", THREE)
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{bench.root}:app:latest"], capture_output=True, check=True
    )
    assert json.loads(raw.stdout) == index_of(bench)
    for machine, variant in (("amd64", ""), ("arm64", ""), ("arm", "v7")):
        words = ["skopeo", "--override-os=linux", f"--override-arch={machine}", f"--override-variant={variant}"]
        found = subprocess.run(
            [*words, "inspect", "--config", f"oci:{bench.root}:app:latest"], capture_output=True, check=True
        )
        assert json.loads(found.stdout)["architecture"] == machine
    subprocess.run(
        ["skopeo", "copy", "-q", "--all", f"oci:{bench.root}:app:latest", f"oci:{tmp_path}/copy:x"], check=True
    )
    with Store.open(tmp_path / "copy") as store:
        assert len(store.variants(store.image("x"))) == 3

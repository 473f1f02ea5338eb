"""All that pybuild writes of the OCI image spec keeps to the spec's own JSON schemas, and to what they can not say.

The schemas in tests/schemas are those of https://github.com/opencontainers/image-spec; see the README there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it comes without types
import pytest
import referencing
from hypothesis import given
from hypothesis import strategies as st
from referencing.jsonschema import DRAFT4

from cache.oci import (
    CONFIG,
    Descriptor,
    Digest,
    Healthcheck,
    History,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    RuntimeConfig,
    canonical,
)
from tests.building import Bench

FOLDER = Path(__file__).parent / "schemas"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
KINDS = {
    "application/vnd.oci.image.index.v1+json": "image-index-schema",
    "application/vnd.oci.image.manifest.v1+json": "image-manifest-schema",
    CONFIG: "config-schema",
}
LAYERS = re.compile(r"application/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?")


@cache
def validator(name: str) -> jsonschema.Draft4Validator:
    # Files refer to each other by names that are relative to their ids, which lie in two folders.
    resources = [
        (f"https://opencontainers.org/schema/{place}{path.name}", DRAFT4.create_resource(json.loads(path.read_text())))
        for path in FOLDER.glob("*.json")
        for place in ("", "image/")
    ]
    registry = referencing.Registry().with_resources(resources)
    return jsonschema.Draft4Validator(json.loads((FOLDER / f"{name}.json").read_text()), registry=registry)


def check(document: object, schema: str) -> None:
    mistakes = [
        f"{error.json_path}: {error.message}"
        for error in validator(schema).iter_errors(document)
        # manifest.md says SHOULD; BuildKit and every other builder write an empty array for an image without layers.
        if not (schema == "image-manifest-schema" and error.json_path == "$.layers" and error.instance == [])
    ]
    assert not mistakes, f"{schema}: {mistakes}"


def check_layout(files: dict[str, bytes]) -> int:
    """Check a layout's documents, and that each descriptor says what its blob is; how many blobs it has."""
    check(json.loads(files["oci-layout"]), "image-layout-schema")
    index = json.loads(files["index.json"])
    check(index, "image-index-schema")
    seen: set[str] = set()
    left = list(index["manifests"])
    while left:
        descriptor = left.pop()
        check(descriptor, "content-descriptor")
        data = files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        assert hashlib.sha256(data).hexdigest() == descriptor["digest"].removeprefix("sha256:")
        seen.add(descriptor["digest"])
        kind = descriptor["mediaType"]
        if LAYERS.fullmatch(kind):
            if kind.endswith("gzip"):
                data = gzip.decompress(data)
            if not kind.endswith("zstd"):
                tarfile.open(fileobj=io.BytesIO(data)).close()
            continue
        document = json.loads(data)
        assert data == canonical(document), "what we write is canonical"
        check(document, KINDS[kind])
        if kind == CONFIG:
            check_config(document)
        else:
            assert document["mediaType"] == kind
            left += [*document.get("manifests", ()), *document.get("layers", ())]
            left += [document["config"]] if "config" in document else []
    assert seen == {f"sha256:{name.rpartition('/')[2]}" for name in files if name.startswith("blobs/")}
    return len(seen)


def check_config(config: dict[str, Any]) -> None:
    """What config.md says in words."""
    for line in (config, *config.get("history", ())):
        assert TIME.fullmatch(line.get("created", "2020-01-01T00:00:00Z"))
    lines = [line for line in config.get("history", ()) if not line.get("empty_layer")]
    assert len(lines) == len(config["rootfs"]["diff_ids"])
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", diff_id) for diff_id in config["rootfs"]["diff_ids"])


def read(place: Path) -> dict[str, bytes]:
    """The files of a layout, in a folder or in a tar."""
    if place.is_dir():
        top = ("oci-layout", "index.json")
        return {
            name: (place / name).read_bytes()
            for name in (*top, *(f"blobs/sha256/{path.name}" for path in (place / "blobs/sha256").iterdir()))
        }
    with tarfile.open(place) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isreg()}  # type: ignore[union-attr]


DOCKERFILE = """\
FROM scratch AS one
COPY f /f
FROM scratch
ARG A=1
COPY --from=one f /a/b
ENV A=$A B="two words"
LABEL org.example=x empty=
EXPOSE 80 53/udp
VOLUME ["/data", "/x y"]
USER 1:2
WORKDIR /w
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --retries=2 CMD true
ONBUILD LABEL on=build
SHELL ["/bin/bash", "-c"]
ENTRYPOINT ["/a/b"]
CMD ["x"]
MAINTAINER me
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("schemas"))
    bench.build(DOCKERFILE, {"f": "f"}, tag="full:1")
    bench.build("FROM full:1\nCOPY f /g\n", {}, tag="child:1")
    bench.build("FROM scratch\nENV A=1\n", {}, tag="bare:1")
    bench.build("FROM scratch\nCOPY f /h\n", {}, tag="")
    return bench


def test_the_store(bench: Bench) -> None:
    files = read(bench.root)
    reached = set()
    for manifest in json.loads(files["index.json"])["manifests"]:
        document = json.loads(files["blobs/" + manifest["digest"].replace(":", "/")])
        reached |= {each["digest"] for each in (manifest, document["config"], *document["layers"])}
    # The blobs of intermediate images are in none of the index's images.
    kept = {name: data for name, data in files.items() if "blobs/" not in name or f"sha256:{name[13:]}" in reached}
    assert check_layout(kept) >= 9


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_save(bench: Bench, tmp_path: Path, form: str) -> None:
    bench.pybuild("save", "--format", form, "-o", f"{tmp_path}/saved", "full:1", "child:1", "bare:1")
    assert check_layout(read(tmp_path / "saved")) >= 9


@pytest.mark.parametrize("spec", ["type=oci", "type=docker", "type=oci,tar=false"])
def test_outputs(bench: Bench, tmp_path: Path, spec: str) -> None:
    bench.build(None, {"Dockerfile": DOCKERFILE}, "-o", f"{spec},dest={tmp_path}/out", tag="full:1")
    assert check_layout(read(tmp_path / "out")) == 4


def test_imported_and_loaded(bench: Bench, tmp_path: Path) -> None:
    bench.pybuild("image", "export", "full:1", f"{tmp_path}/files.tar")
    bench.pybuild("import", "-c", 'CMD ["x"]', "-m", "a message", f"{tmp_path}/files.tar", "imported:1")
    bench.pybuild("save", "--format=oci-dir", "-o", f"{tmp_path}/imported", "imported:1")
    assert check_layout(read(tmp_path / "imported")) == 3
    # A docker archive without a layout gets a manifest that pybuild writes.
    bench.pybuild("save", "-o", f"{tmp_path}/docker.tar", "child:1")
    with tarfile.open(tmp_path / "docker.tar") as old, tarfile.open(tmp_path / "old.tar", "w") as new:
        for info in old:
            if info.name not in {"index.json", "oci-layout"}:
                new.addfile(info, old.extractfile(info))
    other = Bench(tmp_path / "other")
    other.pybuild("load", "-i", f"{tmp_path}/old.tar")
    other.pybuild("save", "--format=oci-dir", "-o", f"{tmp_path}/loaded", "child:1")
    assert check_layout(read(tmp_path / "loaded")) == 5


TEXTS = st.text(max_size=20)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: Digest(f"sha256:{data.hex()}"))
PAIRS = st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda table: tuple(sorted(table.items())))
WORDS = st.lists(TEXTS, max_size=3).map(tuple)
PLATFORMS = st.builds(Platform, *(st.sampled_from(some) for some in (["linux"], ["amd64", "arm"], ["", "v7"])))
DESCRIPTORS = st.builds(
    Descriptor, st.sampled_from(list(KINDS)), DIGESTS, st.integers(0, 2**63 - 1), PAIRS, st.none() | PLATFORMS
)


@given(
    st.builds(
        ImageConfig,
        PLATFORMS,
        st.builds(
            RuntimeConfig, TEXTS, WORDS, st.none() | WORDS, st.none() | WORDS, TEXTS, PAIRS, WORDS, WORDS, TEXTS,
            st.none() | st.builds(Healthcheck, WORDS, st.integers(0, 10**12)), WORDS, st.none() | WORDS, st.booleans(),
        ),
        st.lists(DIGESTS, max_size=3).map(tuple),
        st.lists(st.builds(History, TEXTS, st.just(""), TEXTS, TEXTS, st.booleans()), max_size=3).map(tuple),
        st.just("2020-01-01T00:00:00Z"), TEXTS, TEXTS, WORDS,
    )
)  # fmt: skip
def test_any_config(config: ImageConfig) -> None:
    document = json.loads(canonical(config.to_json()))
    check(document, "config-schema")
    assert ImageConfig.from_json(document).to_json() == config.to_json()


@given(DESCRIPTORS, st.lists(DESCRIPTORS, max_size=3), PAIRS)
def test_any_manifest_and_index(
    config: Descriptor, others: list[Descriptor], notes: tuple[tuple[str, str], ...]
) -> None:
    manifest = Manifest(config, tuple(others), annotations=notes)
    document = json.loads(canonical(manifest.to_json()))
    check(document, "image-manifest-schema")
    assert Manifest.from_json(document) == manifest
    index = Index((config, *others), notes)
    document = json.loads(canonical(index.to_json()))
    check(document, "image-index-schema")
    assert Index.from_json(document) == index


@pytest.mark.parametrize(
    "schema, document",
    [
        ("image-manifest-schema", {"schemaVersion": 1}),
        ("image-index-schema", {"schemaVersion": 2, "manifests": [{"digest": "x"}]}),
        ("config-schema", {"os": "linux"}),
        ("image-layout-schema", {}),
        ("content-descriptor", {"mediaType": "x", "digest": "sha256:00", "size": -1}),
    ],
)
def test_the_schemas_can_fail(schema: str, document: object) -> None:
    with pytest.raises(AssertionError, match=schema):
        check(document, schema)

"""The nouns of the image spec: round trips, what is left out, what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CorruptError
from cache.oci import (
    CONFIG,
    LAYER_GZIP,
    MANIFEST,
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
    chain_id,
    chain_ids,
    digest,
    digest_of,
    host_platform,
    parse_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

A = Digest("sha256:" + "a" * 64)
B = Digest("sha256:" + "b" * 64)

TEXT = st.text(max_size=8)
NAME = st.text(min_size=1, max_size=8)
ARGV = st.none() | st.lists(TEXT, max_size=3).map(tuple)
PAIRS = st.dictionaries(NAME, TEXT, max_size=3).map(lambda found: tuple(sorted(found.items())))
NAMES = st.lists(NAME, max_size=3, unique=True).map(tuple)
TIMES = st.integers(0, 2**40)

RUNTIME = st.builds(
    RuntimeConfig,
    user=TEXT,
    env=st.lists(TEXT, max_size=3).map(tuple),
    entrypoint=ARGV,
    cmd=ARGV,
    working_dir=TEXT,
    labels=PAIRS,
    exposed_ports=NAMES,
    volumes=NAMES,
    stop_signal=TEXT,
    healthcheck=st.none()
    | st.builds(
        Healthcheck,
        test=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
        interval=TIMES,
        timeout=TIMES,
        start_period=TIMES,
        start_interval=TIMES,
        retries=TIMES,
    ),
    on_build=st.lists(TEXT, max_size=3).map(tuple),
    shell=ARGV,
    args_escaped=st.booleans(),
)
CONFIGS = st.builds(
    ImageConfig,
    platform=st.builds(Platform, os=NAME, architecture=TEXT, variant=TEXT),
    config=RUNTIME,
    diff_ids=st.lists(st.sampled_from([A, B]), max_size=3).map(tuple),
    history=st.lists(
        st.builds(History, created_by=TEXT, created=TEXT, author=TEXT, comment=TEXT, empty_layer=st.booleans()),
        max_size=3,
    ).map(tuple),
    created=TEXT,
    author=TEXT,
    os_version=TEXT,
    os_features=st.lists(NAME, max_size=2).map(tuple),
)


@given(CONFIGS)
def test_a_config_comes_back(config: ImageConfig) -> None:
    data = canonical(config.to_json())
    again = ImageConfig.from_json(parse_json(data, "config"))
    assert canonical(again.to_json()) == data
    assert again.diff_ids == config.diff_ids
    assert again.history == config.history
    assert dict(again.config.labels) == dict(config.config.labels)
    assert again.config.env == config.config.env
    assert again.config.healthcheck == config.config.healthcheck


def test_what_is_unset_and_what_is_empty_stay_apart() -> None:
    for entrypoint in (None, ("x",)):
        config = RuntimeConfig(entrypoint=entrypoint, cmd=None)
        assert RuntimeConfig.from_json(config.to_json()).entrypoint == entrypoint
    assert "Cmd" not in RuntimeConfig().to_json()
    assert RuntimeConfig().to_json() == {}


def test_keys_that_only_others_know_are_kept() -> None:
    document = {"Env": ["A=1"], "Hostname": "h", "OpenStdin": True, "Custom": {"b": [1, 2], "a": None}, "Image": None}
    config = RuntimeConfig.from_json(document)
    assert config.to_json() == {k: v for k, v in document.items() if v is not None}


def test_a_config_as_docker_writes_it() -> None:
    text = """{
      "architecture": "arm64", "variant": "v8", "os": "linux", "created": "2024-05-01T00:00:00.123456789Z",
      "config": {
        "User": "nobody", "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin"], "Cmd": ["sh"], "Volumes": {"/v": {}},
        "WorkingDir": "/w", "Entrypoint": null, "OnBuild": null, "Labels": null,
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30000000000, "Retries": 3}
      },
      "rootfs": {"type": "layers", "diff_ids": ["%s"]},
      "history": [{"created": "2024-05-01T00:00:00Z", "created_by": "ADD", "empty_layer": true}, {"comment": "c"}]
    }"""
    config = ImageConfig.from_json(json.loads(text % A))
    assert str(config.platform) == "linux/arm64/v8"
    assert config.diff_ids == (A,)
    assert config.config == RuntimeConfig(
        user="nobody",
        env=("PATH=/bin",),
        cmd=("sh",),
        working_dir="/w",
        exposed_ports=("80/tcp",),
        volumes=("/v",),
        healthcheck=Healthcheck(("CMD", "true"), interval=30_000_000_000, retries=3),
    )
    assert config.history == (History("ADD", "2024-05-01T00:00:00Z", empty_layer=True), History(comment="c"))


def test_an_empty_config_is_allowed() -> None:
    config = ImageConfig.from_json({})
    assert (config.diff_ids, config.history, config.config) == ((), (), RuntimeConfig())


MANIFESTS = Manifest(
    Descriptor(CONFIG, A, 1),
    (Descriptor(LAYER_GZIP, B, 2, urls=("https://example.org/x",)), Descriptor(LAYER_GZIP, A, 3)),
    annotations=(("k", "v"),),
)


def test_manifests_and_indexes_come_back() -> None:
    assert Manifest.from_json(MANIFESTS.to_json()) == MANIFESTS
    index = Index(
        (
            Descriptor(MANIFEST, A, 1, annotations=(("n", "v"),), platform=Platform("linux", "arm", "v7")),
            Descriptor(MANIFEST, B, 2),
        ),
        (("k", "v"),),
    )
    assert Index.from_json(index.to_json()) == index


def test_what_is_empty_is_left_out() -> None:
    assert Descriptor(MANIFEST, A, 0).to_json() == {"mediaType": MANIFEST, "digest": A, "size": 0}
    assert "annotations" not in Manifest(Descriptor(CONFIG, A, 1), ()).to_json()
    assert History().to_json() == {}


def broken(**changes: object) -> dict[str, object]:
    return {"mediaType": MANIFEST, "digest": A, "size": 1} | changes


# What is not of the spec's form, and who refuses it.
CHANGES: tuple[dict[str, object], ...] = (
    {"size": None}, {"size": -1}, {"size": "1"}, {"size": True}, {"size": 1.5}, {"digest": "sha256:abc"},
    {"digest": None}, {"digest": "sha512:" + "a" * 128}, {"mediaType": ""}, {"mediaType": 1}, {"annotations": []},
    {"platform": "linux"}, {"urls": "x"},
)  # fmt: skip
REFUSED: list[tuple[Callable[[object], object], object]] = [
    *((Descriptor.from_json, broken(**change)) for change in CHANGES),
    (Descriptor.from_json, None),
    (Manifest.from_json, []),
    (Manifest.from_json, {}),
    (Manifest.from_json, {"config": broken(), "layers": {}}),
    (Manifest.from_json, {"config": broken(), "layers": [1]}),
    (Index.from_json, {"manifests": "x"}),
    (Index.from_json, {"manifests": [{}]}),
    (ImageConfig.from_json, None),
    (ImageConfig.from_json, {"rootfs": []}),
    (ImageConfig.from_json, {"rootfs": {"diff_ids": ["x"]}}),
    (ImageConfig.from_json, {"rootfs": {"diff_ids": "x"}}),
    (ImageConfig.from_json, {"history": [1]}),
    (ImageConfig.from_json, {"history": {"a": 1}}),
    (ImageConfig.from_json, {"config": [1]}),
    (ImageConfig.from_json, {"config": {"Env": "x"}}),
    (ImageConfig.from_json, {"config": {"Cmd": "x"}}),
    (ImageConfig.from_json, {"config": {"Labels": ["x"]}}),
    (ImageConfig.from_json, {"config": {"Volumes": ["x"]}}),
    (ImageConfig.from_json, {"config": {"Healthcheck": "x"}}),
    (ImageConfig.from_json, {"config": {"Healthcheck": {"Interval": "30s"}}}),
]  # fmt: skip


@pytest.mark.parametrize(("read", "document"), REFUSED)
def test_what_is_not_of_the_form_is_refused(read: Callable[[object], object], document: object) -> None:
    with pytest.raises(CorruptError):
        read(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "rootfs", "diff_ids", "history", "layers", "manifests", "size", "digest", "Env"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(document: object) -> None:
    for read in (Descriptor.from_json, Manifest.from_json, Index.from_json, ImageConfig.from_json):
        try:
            read(document)
        except CorruptError:
            continue


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nonsense"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError, match="the thing is not JSON"):
        parse_json(data, "the thing")


def test_a_digest_is_what_the_spec_says() -> None:
    assert digest(A) == A
    for text in ("", "sha256:", A[:-1], A + "a", A.upper(), "md5:" + "a" * 64, A + "\n"):
        with pytest.raises(CorruptError):
            digest(text)
    assert digest_of(b"") == "sha256:" + hashlib.sha256(b"").hexdigest()


def test_chain_ids_are_those_of_the_spec() -> None:
    # ChainID(A) = A; ChainID(A|B) = Digest(ChainID(A) + " " + B)
    both = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    assert chain_ids(()) == ()
    assert chain_ids((A,)) == (A,)
    assert chain_ids((A, B)) == (A, both)
    assert chain_ids((A, B, A))[2] == chain_id(Digest(both), A)


def test_canonical_json_is_one_for_equal_documents() -> None:
    assert canonical({"b": 1, "a": [1, "é"]}) == canonical({"a": [1, "é"], "b": 1}) == '{"a":[1,"é"],"b":1}'.encode()


def test_bytes_that_json_can_not_hold_are_replaced_as_in_go() -> None:
    config = ImageConfig(history=(History(created_by="RUN echo \udcff \udc80é"),))
    data = canonical(config.to_json())
    assert ImageConfig.from_json(parse_json(data, "config")).history[0].created_by == "RUN echo \ufffd \ufffdé"
    # A half of a pair, which JSON can spell but UTF-8 can not.
    assert canonical(json.loads('"a\\ud800b"')) == '"a\ufffdb"'.encode()


def test_this_machine_has_a_platform() -> None:
    assert host_platform().os == "linux"
    assert host_platform().architecture
    assert str(Platform("linux", "", "")) == "linux"

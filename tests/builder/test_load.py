"""`save` and `load`: round trips, archives of every age, and archives that are not sound."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import signal
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.entries import BytesContent, Entry, Kind
from cache.layers import write
from cache.oci import (
    CONFIG,
    INDEX,
    LAYER_GZIP,
    MANIFEST,
    History,
    ImageConfig,
    RuntimeConfig,
)
from cache.reference import Reference
from cache.store import Store
from tests.builder.test_cli_images import Shell
from tests.building import Bench, archive, command, environment, member

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "store")


def tar_of(files: Mapping[str, bytes]) -> bytes:
    return archive(*((member(name), data) for name, data in files.items()))


ONE = tar_of({"etc/name": b"one\n"})
TWO = tar_of({"etc/other": b"two\n" * 1000})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_of(*layers: bytes, **more: Any) -> bytes:
    document = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Unknown": 1},
        "created": "2020-01-02T03:04:05.123456789Z", "docker_version": "1.12.0",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(layer)}" for layer in layers]},
        "history": [{"created_by": "x"} for _ in layers], **more,
    }  # fmt: skip
    return json.dumps(document, indent=1).encode()


def docker_files(*layers: bytes, tags: list[str] | None, config: bytes | None = None) -> dict[str, bytes]:
    """A docker-archive as `docker save` of 1.10 to 24 writes it."""
    data = config_of(*layers) if config is None else config
    name = f"{sha(data)}.json"
    names = [f"{sha(layer)[:32]}/layer.tar" for layer in layers]
    manifest = [{"Config": name, "RepoTags": tags, "Layers": names}]
    return {
        name: data,
        **dict(zip(names, layers, strict=True)),
        "manifest.json": json.dumps(manifest).encode(),
        "repositories": b"{}",
    }


def layout_files(*layers: bytes, names: list[dict[str, str]], **more: Any) -> dict[str, bytes]:
    """A tar of an OCI layout, layers compressed."""
    config = config_of(*layers, **more)
    blobs = [gzip.compress(layer, mtime=0) for layer in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, config),
            "layers": [described(LAYER_GZIP, blob) for blob in blobs],
        }
    ).encode()  # fmt: skip
    entries = [{**described(MANIFEST, manifest), **({"annotations": notes} if notes else {})} for notes in names]
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index_of(*entries)}
    return files | {f"blobs/sha256/{sha(data)}": data for data in (config, manifest, *blobs)}


def described(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha(data)}", "size": len(data)}


def index_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


CONTAINERD = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"


def blobs(root: Path) -> list[str]:
    return sorted(os.listdir(root / "blobs/sha256"))


# ---------------------------------------------------------------- what can be read


def test_an_archive_of_docker_before_25(shell: Shell) -> None:
    out = shell("load", stdin=tar_of(docker_files(ONE, TWO, tags=["app:1", "localhost:5000/x/app:2"])))
    assert out == "Loaded image: app:1\nLoaded image: localhost:5000/x/app:2\n"
    (document,) = json.loads(shell("inspect", "app:1"))
    assert document["Id"] == f"sha256:{sha(config_of(ONE, TWO))}"
    with Store.open(shell.root) as store:
        image = store.image("localhost:5000/x/app:2")
        # The config's bytes are kept, with what pybuild does not know.
        assert b"docker_version" in store.read_blob(store.manifest(image).config)


def test_layers_that_are_symlinks_or_shared(shell: Shell) -> None:
    config = config_of(ONE, TWO, ONE)
    names = ["a/layer.tar", "b/layer.tar", "c/layer.tar"]
    table: list[dict[str, Any]] = [{"Config": "c.json", "RepoTags": ["x:1"], "Layers": names}]
    table += [{"Config": "d.json", "RepoTags": None, "Layers": names[:1]}]
    data = archive(
        (member("c.json"), config), (member("d.json"), config_of(ONE)),
        (member("a/layer.tar"), ONE), (member("b/layer.tar"), TWO),
        (member("c/layer.tar", tarfile.SYMTYPE, linkname="../a/layer.tar"), b""),
        (member("manifest.json"), json.dumps(table).encode()),
    )  # fmt: skip
    lines = shell("load", stdin=data).splitlines()
    assert lines == ["Loaded image: x:1", f"Loaded image ID: sha256:{sha(config_of(ONE))}"]


def test_docker_before_1_10(shell: Shell) -> None:
    def layer(name: str, parent: str, command: str) -> dict[str, bytes]:
        table = {
            "id": name, "created": "2014-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["A=b"]}, "container_config": {"Cmd": ["/bin/sh", "-c", command]},
            **({"parent": parent} if parent else {}),
        }  # fmt: skip
        return {f"{name}/VERSION": b"1.0", f"{name}/json": json.dumps(table).encode()}

    files = {**layer("aaa", "", "first"), "aaa/layer.tar": ONE, **layer("bbb", "aaa", "second"), "bbb/layer.tar": TWO}
    files["repositories"] = json.dumps({"old": {"1": "bbb", "latest": "bbb"}, "base": {"1": "aaa"}}).encode()
    assert shell("load", stdin=tar_of(files)).splitlines() == [
        "Loaded image: old:1", "Loaded image: old:latest", "Loaded image: base:1",
    ]  # fmt: skip
    assert "/bin/sh -c second" in shell("history", "--no-trunc", "old:1")
    assert json.loads(shell("inspect", "old"))[0]["Config"] == {"Cmd": ["sh"], "Env": ["A=b"]}
    before = shell("images", "--no-trunc", "--format", "{{.ID}}")
    shell("load", stdin=tar_of(files))
    assert shell("images", "--no-trunc", "--format", "{{.ID}}") == before


@pytest.mark.parametrize(
    "notes, names",
    [
        ([{CONTAINERD: "docker.io/library/app:1", REF: "1"}, {CONTAINERD: "docker.io/library/web:2", REF: "2"}],
         {"app:1", "web:2"}),
        ([{REF: "docker.io/library/app:1"}], {"app:1"}),
        ([{REF: "app:1"}], {"app:1"}),
        ([{REF: "latest"}], set()),
        ([{}], set()),
    ],
)  # fmt: skip
def test_names_of_layouts(shell: Shell, tmp_path: Path, notes: list[dict[str, str]], names: set[str]) -> None:
    files = layout_files(ONE, names=notes)
    out = shell("load", stdin=gzip.compress(tar_of(files)))
    assert {line.removeprefix("Loaded image: ") for line in out.splitlines() if "ID" not in line} == names
    assert ("Loaded image ID: sha256:" in out) == (not names)
    for name, data in files.items():
        path = tmp_path / "layout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert shell("load", "-i", str(tmp_path / "layout"), "-t", "mine:1").splitlines()[0] == "Loaded image: mine:1"


def test_compressions(shell: Shell, tmp_path: Path) -> None:
    plain = tar_of(docker_files(ONE, tags=["app:1"]))
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        (tmp_path / "packed").write_bytes(compress(plain))
        assert shell("load", "--input", str(tmp_path / "packed")) == "Loaded image: app:1\n"
        assert shell("load", stdin=compress(plain)) == "Loaded image: app:1\n"


def test_an_index_of_platforms(shell: Shell) -> None:
    files: dict[str, bytes] = {}
    entries = []
    for system, machine in (("linux", "s390x"), ("linux", "riscv64")):
        some = layout_files(ONE if machine == "s390x" else TWO, names=[{}], architecture=machine)
        entries += [
            {**json.loads(some["index.json"])["manifests"][0], "platform": {"os": system, "architecture": machine}}
        ]
        files |= some
    attestation = {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}
    inner = index_of(*entries, attestation)
    files[f"blobs/sha256/{sha(inner)}"] = inner
    files["index.json"] = index_of({**described(INDEX, inner), "annotations": {CONTAINERD: "docker.io/library/m:1"}})
    data = tar_of(files)
    shell("load", stdin=data, code=1)
    assert "has no image for" in shell.err
    assert "it has linux/s390x, linux/riscv64" in shell.err
    shell("load", "--platform", "linux/riscv64", stdin=data)
    assert shell("inspect", "-f", "{{.Architecture}}", "m:1") == "riscv64\n"


def test_a_name_that_moves_is_told(shell: Shell) -> None:
    shell("load", stdin=tar_of(docker_files(ONE, tags=["app:1"])))
    out = shell("load", stdin=tar_of(docker_files(TWO, tags=["app:1"])))
    assert (
        out.splitlines()[0]
        == f"The image app:1 existed already; the old one, {sha(config_of(ONE))[:12]}, is <none> now"
    )
    assert out.splitlines()[1] == "Loaded image: app:1"


# ---------------------------------------------------------------- what is not sound


def _without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__delitem__(next(each for each in files if name in each))


def _with(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({next((each for each in files if name in each), name): data})


def _manifest(**change: Any) -> Callable[[dict[str, bytes]], None]:
    def spoil(files: dict[str, bytes]) -> None:
        table = json.loads(files["manifest.json"])
        table[0].update(change)
        files["manifest.json"] = json.dumps(table).encode()

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_without("layer.tar"), "has no "),
        (_with("layer.tar", TWO), "not what its diff id says"),
        (_with("layer.tar", gzip.compress(TWO)), "unpacks to"),
        (_with("layer.tar", gzip.compress(ONE)[:-20]), "end too early"),
        (_without(".json"), "has no "),
        (_with("manifest.json", b"{"), "is not JSON"),
        (_with("manifest.json", b'{"a": 1}'), "not an array"),
        (_with("manifest.json", b"[]"), "names no image"),
        (_with("manifest.json", b"[1]"), "does not name a config"),
        (_manifest(Layers=[]), "0 layers, and 1 in its config"),
        (_manifest(Layers=["../../../etc/passwd"]), "has no ../../../etc/passwd"),
        (_manifest(Config="/etc/passwd"), "has no /etc/passwd"),
        (_manifest(Config=7), "does not name a config"),
        (_manifest(RepoTags=["UPPER:1"]), "names an image wrongly"),
        (_manifest(RepoTags=["app:1", "a b"]), "names an image wrongly"),
        (_manifest(RepoTags="app:1"), "does not name a config"),
        (_with("../../evil", b"x"), "leads out of it"),
    ],
)
def test_bad_docker_archives_leave_nothing(
    shell: Shell, spoil: Callable[[dict[str, bytes]], None], message: str
) -> None:
    files = docker_files(ONE, tags=["app:1"])
    spoil(files)
    _refused(shell, tar_of(files), message)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"created": "yesterday"}, "time 'yesterday'"),
        ({"created": "2020-01-02T03:04:05Z\ud800"}, "time"),
        ({"os": "li nux"}, "platform"),
        ({"config": []}, "not a JSON object"),
        ({"config": {"Env": "A=b"}}, "Env is not a JSON array"),
        ({"history": 3}, "history is not a JSON array"),
        ({"history": [3]}, "history is not a JSON object"),
        ({"rootfs": {"diff_ids": ["md5:x"]}}, "not a sha256 digest"),
        ({"rootfs": None}, "1 layers, and 0 in its config"),
    ],
)
def test_malformed_configs(shell: Shell, change: dict[str, Any], message: str) -> None:
    _refused(shell, tar_of(docker_files(ONE, tags=["app:1"], config=config_of(ONE, **change))), message)
    _refused(shell, tar_of(layout_files(ONE, names=[{REF: "app:1"}], **change)), message)


@pytest.mark.parametrize("where", ["blobs", "index.json", "cut", "size", "name"])
def test_bad_layouts_leave_nothing(shell: Shell, where: str) -> None:
    files = layout_files(ONE, TWO, names=[{CONTAINERD: "docker.io/library/app:1"}])
    if where == "blobs":
        for name in [each for each in files if each.startswith("blobs/")]:
            bad = {**files, name: files[name][:-1] + b"~"}
            _refused(shell, tar_of(bad), "not what its digest says")
            _refused(shell, tar_of({each: data for each, data in files.items() if each != name}), f"has no {name}")
    elif where == "index.json":
        _refused(shell, tar_of({**files, "index.json": b"[]"}), "index is not a JSON object")
        _refused(shell, tar_of({**files, "index.json": index_of()}), "names no image")
    elif where == "cut":
        data = tar_of(files)
        last = len(data.rstrip(b"\0"))  # what follows is tar's own padding
        for size in (600, last // 2, last - 1):
            _refused(shell, data[:size], "")
        _refused(shell, gzip.compress(data)[:-100], "")
    elif where == "size":
        table = json.loads(files["index.json"])
        table["manifests"][0]["size"] += 1
        _refused(shell, tar_of({**files, "index.json": json.dumps(table).encode()}), "not what its digest says")
    else:
        table = json.loads(files["index.json"])
        table["manifests"][0]["digest"] = "sha256:../../../../etc/passwd"
        _refused(shell, tar_of({**files, "index.json": json.dumps(table).encode()}), "is not a sha256 digest")


def test_a_layer_that_leads_out_of_the_root(shell: Shell) -> None:
    _refused(shell, tar_of(docker_files(tar_of({"../evil": b"x"}), tags=["app:1"])), "..")


def test_two_files_of_one_name(shell: Shell) -> None:
    files = docker_files(ONE, tags=["app:1"])
    members = [(member(name), data) for name, data in files.items()]
    _refused(shell, archive(*members, (member("manifest.json"), b"[]")), "two different files called manifest.json")
    assert "Loaded" in shell("load", stdin=archive(*members, *members))


def test_no_archive_at_all(shell: Shell, tmp_path: Path) -> None:
    _refused(shell, b"", "")
    _refused(shell, b"hello" * 1000, "not a sound tar")
    _refused(shell, ONE, "brought in with `pybuild import`")
    shell("load", "-i", str(tmp_path / "nothing"), code=2)
    shell("load", "-i", str(tmp_path), code=2)


def test_a_bomb_is_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.archives._FREE", 1 << 20)
    monkeypatch.setattr("builder.archives._RATIO", 50)
    _refused(shell, gzip.compress(tar_of({"zeros": bytes(8 << 20)})), "unpacks to more than 50 times")


def test_one_bad_image_of_several_keeps_all_out(shell: Shell) -> None:
    files = docker_files(ONE, tags=["good:1"])
    bad = docker_files(TWO, tags=["bad:1"])
    bad.pop(next(name for name in bad if name.endswith("layer.tar")))
    table = json.loads(files["manifest.json"]) + json.loads(bad["manifest.json"])
    _refused(shell, tar_of({**files, **bad, "manifest.json": json.dumps(table).encode()}), "has no ")


def _refused(shell: Shell, data: bytes, message: str) -> None:
    """`load` refuses the archive, with code 3, and the store is as it was."""
    listed = ("images", "-a", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
    before = shell(*listed), blobs(shell.root), os.listdir(shell.root / "listings")
    shell("load", stdin=data, code=3)
    assert message in shell.err
    assert "Traceback" not in shell.err
    assert "internal error" not in shell.err
    assert (shell(*listed), blobs(shell.root), os.listdir(shell.root / "listings")) == before
    assert os.listdir(shell.root / "tmp") == []


def test_a_failed_load_drops_nothing_that_was_there(shell: Shell) -> None:
    good = layout_files(ONE, TWO, names=[{CONTAINERD: "docker.io/library/app:1"}])
    shell("load", stdin=tar_of(good))
    bad = layout_files(ONE, names=[{CONTAINERD: "docker.io/library/Bad:1"}])
    _refused(shell, tar_of(bad), "names an image wrongly")
    assert shell("fsck").endswith("whole\n")


def test_a_damaged_blob_is_put_right(shell: Shell) -> None:
    data = tar_of(layout_files(ONE, names=[{CONTAINERD: "docker.io/library/app:1"}]))
    shell("load", stdin=data)
    with Store.open(shell.root) as store:
        layer = store.layers(store.image("app:1"))[0].descriptor
        path = store.blob_path(layer.digest)
        path.write_bytes(path.read_bytes()[:-1] + b"~")
    shell("fsck", code=3)
    shell("load", stdin=data)
    assert shell("fsck").endswith("whole\n")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_load_that_is_stopped_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    bench = Bench(tmp_path)
    data = tar_of(layout_files(ONE, names=[{CONTAINERD: "docker.io/library/app:1"}]))
    with subprocess.Popen(
        command("load"), env=bench.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(data[:-600])
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while not any((tmp_path / "store").glob("leases/*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        process.stdin.close()
        assert process.wait(20) == code
    assert os.listdir(tmp_path / "store/tmp") == []
    assert blobs(tmp_path / "store") == []


# ---------------------------------------------------------------- save


@pytest.fixture
def made(shell: Shell) -> Shell:
    """app:1, app:2 and other:1 on shared layers, and a dangling image."""
    with Store.open(shell.root) as store:

        def image(name: str, *contents: bytes) -> None:
            layers = tuple(
                write([Entry(b"f", Kind.FILE, 0o644, size=len(data), content=BytesContent(data))], store).layer
                for data in contents
            )  # fmt: skip
            config = ImageConfig(
                config=RuntimeConfig(cmd=(name,)), diff_ids=tuple(layer.diff_id for layer in layers),
                history=tuple(History("RUN x") for _ in layers), created="2020-01-01T00:00:00Z",
            )  # fmt: skip
            put = store.put_image(config, layers)
            if name:
                store.tag(Reference.parse(name), put.id)

        image("app:1", b"1", b"2")
        image("app:2", b"1", b"3")
        image("other:1", b"1")
        image("", b"4")
    return shell


def test_save_takes_every_tag_of_a_bare_name(made: Shell, tmp_path: Path) -> None:
    made("save", "-o", str(tmp_path / "a.tar"), "app")
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert [image["RepoTags"] for image in manifest] == [["app:1"], ["app:2"]]
    assert len(names) == len(set(names))
    made("save", "-o", str(tmp_path / "b.tar"), "app:1", "app:2")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    made("save", "-o", str(tmp_path / "c.tar"), "app:3", code=1)
    assert "app:1" in made.err
    assert not (tmp_path / "c.tar").exists()
    made("save", "app:1", "-o", str(tmp_path), code=2)
    made("save", "app:1", "--format", "oci-dir", code=2)
    made("save", "app:1", "-o", str(tmp_path / "no/such/file"), code=2)
    made("image", "export", "app:1", str(tmp_path / "no/such/folder"), code=2)
    assert not (tmp_path / "no").exists()
    made("save", "app:1", "--format", "x", code=2)


def test_the_files_of_an_image(made: Shell, tmp_path: Path) -> None:
    made("image", "export", "app:2", str(tmp_path / "files"))
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "files").iterdir()] == [("f", b"3")]
    made("image", "export", "app:2", str(tmp_path / "files.tar"))
    with tarfile.open(tmp_path / "files.tar") as tar:
        assert tar.getnames() == ["f"]
    with subprocess.Popen(
        command("image", "export", "app:2", "-"), env=environment(PYBUILD_ROOT=str(made.root)), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == (tmp_path / "files.tar").read_bytes()
    (tmp_path / "files/kept").touch()
    made("export", "app:1", str(tmp_path / "files"))
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"f", "kept"}
    made("image", "export", "app:1", str(tmp_path / "files.tar.gz"), code=2)
    made("image", "export", "app:3", str(tmp_path / "more"), code=1)
    made("image", "export", "app:1", str(tmp_path / "files/f"), code=1)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_what_was_saved_loads_the_same(made: Shell, tmp_path: Path, form: str) -> None:
    place = str(tmp_path / "saved")
    dangling = made("images", "-q", "-f", "dangling=true").strip()
    made("save", "--format", form, "-o", place, "app", "other:1", dangling)
    other = Shell(tmp_path / "second")
    lines = other("load", "-i", place).splitlines()
    assert lines[:3] == ["Loaded image: app:1", "Loaded image: app:2", "Loaded image: other:1"]
    assert lines[3].startswith("Loaded image ID: sha256:" + dangling)
    assert other("images", "--digests", "--no-trunc") == made("images", "--digests", "--no-trunc")
    assert blobs(other.root) == blobs(made.root)


def test_the_store_itself_is_a_layout_to_load(made: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path / "second")
    other("load", "-i", str(made.root))
    assert other("images", "--digests") == made("images", "--digests")


NAMES = st.sampled_from(["app:1", "app:2", "x.example/y/z:v", "localhost:5000/a:b", "other:latest"])
FILES = st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), st.binary(max_size=40), min_size=1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sets(NAMES, max_size=2), st.lists(FILES, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_load_undoes_save(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[set[str], list[dict[bytes, bytes]]]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    one, two = Shell(folder / "one"), Shell(folder / "two")
    with Store.open(one.root) as store:
        for names, contents in images:
            layers = tuple(
                write(
                    [
                        Entry(path, Kind.FILE, 0o600, 7, 8, len(data), 10**18, content=BytesContent(data))
                        for path, data in sorted(files.items())
                    ],
                    store,
                ).layer
                for files in contents
            )
            config = ImageConfig(diff_ids=tuple(layer.diff_id for layer in layers), author=str(sorted(names)))
            put = store.put_image(config, layers)
            for name in names:
                store.tag(Reference.parse(name), put.id)
        words = [name for image in store.images() for name in image.names or (image.id,)]
    one("save", "-o", str(folder / "saved.tar"), *words)
    two("load", "-i", str(folder / "saved.tar"))
    facts = ["images", "--digests", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"]
    assert sorted(two(*facts).splitlines()) == sorted(one(*facts).splitlines())
    assert blobs(two.root) == blobs(one.root)
    assert two("fsck").endswith("whole\n")


KEYS = """config layers digest size mediaType rootfs diff_ids history manifests os annotations platform created Config
Layers RepoTags Env Healthcheck Test urls container_config parent"""
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([f"sha256:{sha(ONE)}", MANIFEST]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["index.json", "manifest.json", "config", "manifest", "repositories"]), DOCUMENTS)
def test_no_document_is_an_internal_error(tmp_path: Path, where: str, document: object) -> None:
    shell = Shell(tmp_path / "fuzz")
    data = json.dumps(document).encode()
    if where == "config":
        files = docker_files(ONE, tags=["app:1"], config=data)
    elif where == "manifest":
        files = layout_files(ONE, names=[{}]) | {f"blobs/sha256/{sha(data)}": data}
        files["index.json"] = index_of(described(MANIFEST, data))
    else:
        files = {where: data}
    shell("load", stdin=tar_of(files), code=3)
    assert "internal error" not in shell.err

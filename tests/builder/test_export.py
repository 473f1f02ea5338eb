from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from builder.errors import BuildError, UnsupportedError
from builder.events import Event, ExportFinished, ExportStarted
from builder.export import check, export
from builder.model import ImageResult, OutputSpec
from cache.entries import BytesContent, Entry, Kind
from cache.errors import CorruptError
from cache.layers import write
from cache.oci import History, ImageConfig, RuntimeConfig, host_platform
from cache.store import Store
from tests.conformance import compare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("docker.io/library/app:1.0", "example.org:5000/team/app:latest")


def file(path: str, text: str, mode: int = 0o644, uid: int = 0) -> Entry:
    data = text.encode()
    return Entry(
        path.encode(), Kind.FILE, mode, uid, uid, len(data), 1_600_000_000_000_000_000, content=BytesContent(data)
    )


def directory(path: str, mode: int = 0o755, uid: int = 0) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode, uid, uid, mtime_ns=1_600_000_000_000_000_000)


LOWER = (
    directory("bin"),
    file("bin/tool", "tool\n", 0o755),
    Entry(b"bin/again", Kind.HARDLINK, 0o755, target=b"bin/tool"),
    directory("etc"),
    file("etc/gone", "gone\n"),
    file("etc/kept", "old\n"),
    directory("opt"),
    file("opt/hidden", "hidden\n"),
    directory("tmp", 0o1777),
    Entry(b"up", Kind.SYMLINK, 0o777, target=b"/../../outside"),
)
UPPER = (
    directory("etc"),
    Entry(b"etc/gone", Kind.WHITEOUT),
    file("etc/kept", "new\n", 0o640, 12),
    directory("opt"),
    Entry(b"opt", Kind.OPAQUE),
    file("opt/shown", "shown\n"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def image(store: Store) -> ImageResult:
    layers = tuple(write(entries, store).layer for entries in (LOWER, UPPER))
    config = ImageConfig(
        platform=host_platform(),
        config=RuntimeConfig(env=("A=1",), cmd=("tool",)),
        diff_ids=tuple(layer.diff_id for layer in layers),
        history=(History("one"), History("two")),
        created="2020-09-13T12:26:40Z",
    )
    made = store.put_image(config, layers)
    return ImageResult(made.id, config, layers, made.manifest)


def put(image: ImageResult, store: Store, kind: str, dest: object, **attributes: str) -> list[Event]:
    seen: list[Event] = []
    export(image, OutputSpec(kind, str(dest), tuple(attributes.items())), NAMES, store, seen.append)
    return seen


def listing(path: Path) -> dict[str, dict[str, object]]:
    return compare.load_image(path).files


# ---------------------------------------------------------------- archives and layouts


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_holds_the_image(image: ImageResult, store: Store, tmp_path: Path, kind: str) -> None:
    events = put(image, store, kind, tmp_path / "out.tar")
    assert isinstance(events[0], ExportStarted)
    assert isinstance(events[1], ExportFinished)
    assert events[1].size == (tmp_path / "out.tar").stat().st_size
    found = compare.load_image(tmp_path / "out.tar")
    assert found.config == {"Env": ["A=1"], "Cmd": ["tool"]}
    assert "/etc/gone" not in found.files
    assert "/opt/hidden" not in found.files
    assert found.files["/etc/kept"]["text"] == "new\n"
    assert found.files["/etc/kept"]["uid"] == 12
    assert found.files["/bin/tool"]["links"] == ["/bin/again"]


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_equal_images_give_equal_archives(image: ImageResult, store: Store, tmp_path: Path, kind: str) -> None:
    put(image, store, kind, tmp_path / "one.tar")
    put(image, store, kind, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_an_archive_tells_the_names(image: ImageResult, store: Store, tmp_path: Path) -> None:
    put(image, store, "docker", tmp_path / "out.tar", name="third")
    with tarfile.open(tmp_path / "out.tar") as tar:
        manifest = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        index = json.load(tar.extractfile("index.json") or io.BytesIO())
        names = tar.getnames()
    assert manifest[0]["RepoTags"] == ["app:1.0", "example.org:5000/team/app:latest", "third:latest"]
    assert manifest[0]["Config"] in names
    assert set(manifest[0]["Layers"]) <= set(names)
    assert [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]] == [
        *NAMES, "docker.io/library/third:latest",
    ]  # fmt: skip
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]] == [
        "1.0", "latest", "latest",
    ]  # fmt: skip


def test_an_image_without_a_name(image: ImageResult, store: Store, tmp_path: Path) -> None:
    export(image, OutputSpec("docker", str(tmp_path / "out.tar")), (), store, lambda _: None)
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert json.load(tar.extractfile("manifest.json") or io.BytesIO())[0]["RepoTags"] is None


def test_a_layer_twice_is_written_once(store: Store, tmp_path: Path) -> None:
    layer = write([file("f", "x")], store).layer
    config = ImageConfig(diff_ids=(layer.diff_id,) * 2, history=(History("a"), History("b")))
    made = store.put_image(config, (layer, layer))
    export(
        ImageResult(made.id, config, (layer, layer), made.manifest), OutputSpec("oci", str(tmp_path / "out.tar")), (),
        store, lambda _: None,
    )  # fmt: skip
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert len(tar.getnames()) == len(set(tar.getnames()))


def test_what_is_exported_can_be_a_base(image: ImageResult, store: Store, tmp_path: Path) -> None:
    from builder.bases import resolve

    put(image, store, "oci", tmp_path / "oci.tar")
    put(image, store, "docker", tmp_path / "docker.tar")
    put(image, store, "oci", tmp_path / "layout", tar="false")
    with Store.open(tmp_path / "other") as other:
        for where in ("docker-archive://{}/oci.tar", "docker-archive://{}/docker.tar", "oci-layout://{}/layout:1.0"):
            found = resolve("base", host_platform(), {"base": where.format(tmp_path)}, other)
            assert found is not None
            assert (found.config, found.layers) == (image.config, image.layers)


def test_a_layout_keeps_its_other_images(image: ImageResult, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    put(image, store, "oci", folder, tar="false")
    other = store.put_image(ImageConfig(author="other"), ())
    result = ImageResult(other.id, store.config(other), (), other.manifest)
    export(
        result,
        OutputSpec("oci", str(folder), (("tar", "false"),)),
        ("docker.io/library/app:1.0",),
        store,
        lambda _: None,
    )
    index = json.loads((folder / "index.json").read_text())
    by_name = {entry["annotations"]["io.containerd.image.name"]: entry["digest"] for entry in index["manifests"]}
    assert by_name == {NAMES[0]: other.manifest.digest, NAMES[1]: image.manifest.digest}
    assert compare.load_image(folder) is not None


def test_a_layout_twice_is_the_same(image: ImageResult, store: Store, tmp_path: Path) -> None:
    put(image, store, "oci", tmp_path / "layout", tar="false")
    before = (tmp_path / "layout" / "index.json").read_bytes()
    put(image, store, "oci", tmp_path / "layout", tar="false")
    assert (tmp_path / "layout" / "index.json").read_bytes() == before


def test_a_folder_with_other_things_is_refused(image: ImageResult, store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(BuildError, match="no OCI layout"):
        put(image, store, "oci", tmp_path / "mine", tar="false")


def test_a_damaged_store_leaves_what_was_there(image: ImageResult, store: Store, tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_text("precious")
    blob = store.blob_path(image.layers[0].descriptor.digest)
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(CorruptError):
        put(image, store, "oci", tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tar", "store"]


def test_the_place_can_not_be_written(image: ImageResult, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="can not write"):
        put(image, store, "oci", tmp_path / "file" / "out.tar")


def test_a_device_is_written_as_it_is(image: ImageResult, store: Store) -> None:
    put(image, store, "oci", "/dev/null")
    assert not os.path.isfile("/dev/null")


def test_standard_output(
    image: ImageResult, store: Store, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    put(image, store, "oci", "-")
    (tmp_path / "out.tar").write_bytes(capfdbinary.readouterr().out)
    assert "/bin/tool" in listing(tmp_path / "out.tar")


def test_a_terminal_gets_no_archive(image: ImageResult, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    try:
        monkeypatch.setattr("builder.export._STDOUT", follower)
        for dest in ("-", ""):
            with pytest.raises(BuildError, match="terminal"):
                put(image, store, "oci", dest)
    finally:
        os.close(leader)
        os.close(follower)


# ---------------------------------------------------------------- compression


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({"compression": "zstd"}, ["tar+gzip", "tar+zstd"]),
        ({"compression": "zstd", "force-compression": "true"}, ["tar+zstd", "tar+zstd"]),
        ({"compression": "uncompressed", "force-compression": "1"}, ["tar", "tar"]),
        ({"compression": "gzip"}, ["tar+gzip", "tar+gzip"]),
        ({"compression-level": "9"}, ["tar+gzip", "tar+gzip"]),
        ({"oci-mediatypes": "false"}, ["diff.tar.gzip", "diff.tar.gzip"]),
    ],
)
def test_layers_are_compressed_as_wanted(
    image: ImageResult, store: Store, tmp_path: Path, kind: str, attributes: dict[str, str], expected: list[str]
) -> None:
    own = ImageResult(image.id, image.config, image.layers, image.manifest, inherited=1)
    put(own, store, kind, tmp_path / "out.tar", **attributes)
    with tarfile.open(tmp_path / "out.tar") as tar:
        index = json.load(tar.extractfile("index.json") or io.BytesIO())
        described = index["manifests"][0]
        data = (tar.extractfile("blobs/sha256/" + described["digest"][7:]) or io.BytesIO()).read()
        manifest = json.loads(data)
        assert len(data) == described["size"]
        assert described["mediaType"] == manifest["mediaType"]
        names = tar.getnames()
    assert [layer["mediaType"].removeprefix("application/vnd.oci.image.layer.v1.").removeprefix(
        "application/vnd.docker.image.rootfs.") for layer in manifest["layers"]] == expected  # fmt: skip
    assert all("blobs/sha256/" + layer["digest"][7:] in names for layer in manifest["layers"])
    assert manifest["config"]["digest"] == image.id
    if "zstd" not in str(attributes) or shutil.which("zstd"):
        assert listing(tmp_path / "out.tar") == listing_of(image, store, tmp_path)


def listing_of(image: ImageResult, store: Store, folder: Path) -> dict[str, dict[str, object]]:
    put(image, store, "oci", folder / "as-it-is.tar")
    return listing(folder / "as-it-is.tar")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "spec, message",
    [
        (OutputSpec("registry"), "registry"),
        (OutputSpec("nonsense", "x"), "not known"),
        (OutputSpec("docker"), "running Docker"),
        (OutputSpec("local"), "directory"),
        (OutputSpec("oci", "x", (("compression", "lzma"),)), "lzma"),
        (OutputSpec("oci", "x", (("compression", "estargz"),)), "estargz"),
        (OutputSpec("oci", "x", (("compression", "zstd"), ("compression-level", "23"))), "compression-level=23"),
        (OutputSpec("oci", "x", (("compression-level", "10"),)), "compression-level=10"),
        (OutputSpec("oci", "x", (("compression", "uncompressed"), ("compression-level", "1"))), "compression-level"),
        (OutputSpec("docker", "x", (("compression", "zstd"), ("oci-mediatypes", "false"))), "schema 2"),
        (OutputSpec("docker", "x", (("force-compression", "perhaps"),)), "perhaps"),
        (OutputSpec("tar", "x", (("compression", "zstd"),)), "compression"),
        (OutputSpec("oci", "x", (("tar", "maybe"),)), "maybe"),
        (OutputSpec("oci", "", (("tar", "false"),)), "directory"),
        (OutputSpec("local", "x", (("mode", "delete"),)), "mode"),
        (OutputSpec("local", "x", (("platform-split", "perhaps"),)), "platform-split"),
    ],
)
def test_what_can_not_be_done_is_said(spec: OutputSpec, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        check(spec)


def test_unknown_attributes_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="the attribute 'push'"):
        check(OutputSpec("oci", "x", (("push", "true"),)))


# ---------------------------------------------------------------- files


def test_local_puts_the_layers_together(image: ImageResult, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(image, store, "local", out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        "bin", "bin/again", "bin/tool", "etc", "etc/kept", "opt", "opt/shown", "tmp", "up",
    ]  # fmt: skip
    assert (out / "etc" / "kept").read_text() == "new\n"
    assert (out / "bin" / "tool").stat().st_ino == (out / "bin" / "again").stat().st_ino
    assert (out / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert os.readlink(out / "up") == "/../../outside"
    assert (out / "etc" / "kept").stat().st_uid == (12 if os.geteuid() == 0 else os.geteuid())


def test_local_merges_and_keeps_what_is_there(image: ImageResult, store: Store, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / "etc").mkdir(parents=True)
    (out / "etc" / "mine").write_text("mine")
    (out / "etc" / "kept").write_text("mine")
    outside.mkdir()
    (out / "bin").symlink_to(outside)
    put(image, store, "local", out)
    assert (out / "etc" / "mine").read_text() == "mine"
    assert (out / "etc" / "kept").read_text() == "new\n"
    assert not list(outside.iterdir())
    assert not (out / "bin").is_symlink()


def test_local_does_not_replace_a_directory_by_a_file(image: ImageResult, store: Store, tmp_path: Path) -> None:
    (tmp_path / "out" / "up" / "precious").mkdir(parents=True)
    with pytest.raises(BuildError, match="is a directory"):
        put(image, store, "local", tmp_path / "out")
    assert (tmp_path / "out" / "up" / "precious").is_dir()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".pybuild")]


def test_local_of_a_damaged_store_writes_nothing(image: ImageResult, store: Store, tmp_path: Path) -> None:
    blob = store.blob_path(image.layers[1].descriptor.digest)
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(CorruptError):
        put(image, store, "local", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_local_as_an_ordinary_user(image: ImageResult, store: Store, tmp_path: Path) -> None:
    from builder import flatten

    # The files are what matters here, not who asks: the owners are those of the caller, set-id bits are dropped.
    own = list(flatten._as_own([file("f", "x", 0o4755, 12), Entry(b"dev", Kind.CHARACTER, 0o666, device=(1, 3))]))
    assert [(entry.path, entry.uid, entry.mode) for entry in own] == [(b"f", 0, 0o755)]


def test_tar_puts_the_layers_together(image: ImageResult, store: Store, tmp_path: Path) -> None:
    put(image, store, "tar", tmp_path / "fs.tar")
    with tarfile.open(tmp_path / "fs.tar") as tar:
        members = {member.name: member for member in tar}
        assert list(members) == ["bin", "bin/again", "bin/tool", "etc", "etc/kept", "opt", "opt/shown", "tmp", "up"]
        assert (tar.extractfile("etc/kept") or io.BytesIO()).read() == b"new\n"
        assert (tar.extractfile("bin/tool") or io.BytesIO()).read() == b"tool\n"
    assert members["etc/kept"].uid == 12
    assert {members["bin/again"].islnk(), members["bin/tool"].islnk()} == {True, False}
    listed = subprocess.run(["tar", "-tf", tmp_path / "fs.tar"], check=True, capture_output=True, text=True)
    assert "etc/kept" in listed.stdout.split()


def test_cacheonly_writes_nothing(image: ImageResult, store: Store) -> None:
    assert put(image, store, "cacheonly", "") == []


@pytest.mark.parametrize("dest, place", [("shut/x.tar", "shut"), ("shut/new/x.tar", "shut"), ("shut", "shut")])
def test_a_place_that_may_not_be_written_to_is_told_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dest: str, place: str
) -> None:
    (tmp_path / "shut").mkdir()
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "shut")
    with pytest.raises(BuildError, match=f"can not write .*{dest}: .*{place} may not be written to"):
        check(OutputSpec("local" if dest == "shut" else "oci", str(tmp_path / dest), ()))
    check(OutputSpec("oci", str(tmp_path / "open.tar"), ()))

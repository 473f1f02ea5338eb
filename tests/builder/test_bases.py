from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from builder import bases, host
from builder.errors import BuildError, UnsupportedError
from cache.errors import CorruptError, StoreError
from cache.oci import INDEX, Digest, Platform, host_platform
from cache.reference import Reference
from cache.store import Store
from tests.conformance.bases import write_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = host_platform()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def tar_of(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(text), 1_600_000_000
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


LAYER = tar_of({"etc/hello": "hello\n"})


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An OCI layout of one image with the tag `latest`."""
    folder = tmp_path / "layout"
    write_layout(folder, LAYER, {"Env": ["A=1"], "Cmd": ["sh"]})
    return folder


def index_of(layout: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads((layout / "index.json").read_text())
    return found


def resolve(where: str, store: Store, platform: Platform = HERE) -> bases.BaseImage:
    found = bases.resolve("base", platform, {"base": where}, store)
    assert found is not None
    return found


# ---------------------------------------------------------------- names


def test_scratch_is_no_image(store: Store) -> None:
    assert bases.resolve("scratch", HERE, {}, store) is None
    assert bases.resolve("base", HERE, {"base": "docker-image://scratch"}, store) is None


def test_a_named_context_wins_over_scratch(store: Store, layout: Path) -> None:
    assert bases.resolve("scratch", HERE, {"scratch": f"oci-layout://{layout}"}, store) is not None


@pytest.mark.parametrize("name", ["app", "app:latest", "docker.io/library/app", "index.docker.io/library/app:latest"])
def test_contexts_match_every_spelling_of_a_name(name: str) -> None:
    assert bases.context_for(name, {"app": "host:"}) == "app"
    assert bases.context_for("app", {name: "host:"}) == name


def test_another_tag_is_another_name() -> None:
    assert bases.context_for("app:2", {"app": "host:"}) is None


def test_an_unknown_name_says_what_to_do(store: Store) -> None:
    with pytest.raises(BuildError, match=r"base image alpine:3 is not in the store") as error:
        bases.resolve("alpine:3", HERE, {}, store)
    assert "pybuild import" in error.value.hint
    assert "--build-context alpine:3=" in error.value.hint


def test_an_unknown_name_shows_the_nearest(store: Store, layout: Path) -> None:
    image = resolve(f"oci-layout://{layout}", store)
    store.tag(Reference.parse("alpine:3.20"), store.put_image(image.config, image.layers).id)
    with pytest.raises(BuildError) as error:
        bases.resolve("alpine:3.2", HERE, {}, store)
    assert "alpine:3.20" in error.value.hint


def test_an_image_of_the_store_by_name_and_by_id(store: Store, layout: Path) -> None:
    image = resolve(f"oci-layout://{layout}", store)
    made = store.put_image(image.config, image.layers)
    store.tag(Reference.parse("app:1"), made.id)
    for text, named in (("app:1", {}), (made.id, {}), ("x", {"x": "docker-image://app:1"})):
        found = bases.resolve(text, HERE, named, store)
        assert found is not None
        assert (found.config, found.layers) == (image.config, image.layers)


def test_a_context_of_files_needs_files(store: Store) -> None:
    with pytest.raises(UnsupportedError):
        bases.resolve("base", HERE, {"base": "some/folder"}, store)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("suffix", ["", ":latest"])
def test_a_layout_comes_into_the_store(store: Store, layout: Path, suffix: str) -> None:
    image = resolve(f"oci-layout://{layout}{suffix}", store)
    assert image.config.config.env == ("A=1",)
    assert image.digest == index_of(layout)["manifests"][0]["digest"]
    (layer,) = image.layers
    with store.open_blob(layer.descriptor) as stream:
        assert gzip.decompress(stream.read()) == LAYER


def test_a_layout_by_digest(store: Store, layout: Path) -> None:
    digest = index_of(layout)["manifests"][0]["digest"]
    assert resolve(f"oci-layout://{layout}@{digest}", store).digest == digest
    with pytest.raises(BuildError, match="no image sha256:0000"):
        resolve(f"oci-layout://{layout}@sha256:{'0' * 64}", store)


def test_a_folder_with_a_colon(store: Store, layout: Path, tmp_path: Path) -> None:
    layout.rename(tmp_path / "a:b")
    assert resolve(f"oci-layout://{tmp_path}/a:b", store).layers
    assert resolve(f"oci-layout://{tmp_path}/a:b:latest", store).layers


def test_a_relative_layout(store: Store, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout.parent)
    assert resolve("oci-layout://layout", store).layers


def test_the_layout_is_not_read_again(store: Store, layout: Path) -> None:
    first = resolve(f"oci-layout://{layout}", store)
    blob = layout / "blobs" / "sha256" / first.layers[0].descriptor.digest[7:]
    blob.unlink()
    assert resolve(f"oci-layout://{layout}", store) == first


def test_an_unknown_tag_names_those_there_are(store: Store, layout: Path) -> None:
    with pytest.raises(BuildError, match="no image 'next'") as error:
        resolve(f"oci-layout://{layout}:next", store)
    assert "latest" in error.value.hint


def test_no_layout(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no OCI layout"):
        resolve(f"oci-layout://{tmp_path}/nowhere:1", store)
    with pytest.raises(BuildError, match=r"no index\.json"):
        resolve(f"oci-layout://{tmp_path}", store)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "flipped":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "short":
            path.write_bytes(data[:-1])
        case "long":
            path.write_bytes(data + b"x")
        case _:
            path.unlink()


@pytest.mark.parametrize("how", ["flipped", "short", "long", "missing"])
@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_damaged_layout_leaves_nothing(store: Store, layout: Path, which: str, how: str) -> None:
    blobs = layout / "blobs" / "sha256"
    manifest_path = blobs / str(index_of(layout)["manifests"][0]["digest"])[7:]
    manifest = json.loads(manifest_path.read_text())
    paths = {
        "manifest": manifest_path,
        "config": blobs / manifest["config"]["digest"][7:],
        "layer": blobs / manifest["layers"][0]["digest"][7:],
    }
    damage(paths[which], how)
    with pytest.raises(CorruptError):
        resolve(f"oci-layout://{layout}", store)
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert not list((store.root / "tmp").iterdir())


def platforms(layout: Path, *texts: str, nested: bool = False) -> None:
    """Give the layout an image for each of these platforms, told apart by a layer of their own."""
    entries = []
    for text in texts:
        os_name, architecture, variant = (*text.split("/"), "")[:3]
        write_layout(layout, tar_of({"platform": text}), {"Env": [f"P={text}"]})
        descriptor = index_of(layout)["manifests"][0]
        where = {"os": os_name, "architecture": architecture}
        entries.append({**descriptor, "annotations": {}, "platform": where | ({"variant": variant} if variant else {})})
    inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    if nested:
        from hashlib import sha256

        digest = sha256(inner).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(inner)
        outer = {"mediaType": INDEX, "digest": f"sha256:{digest}", "size": len(inner)}
        inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [outer]}).encode()
    (layout / "index.json").write_bytes(inner)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "wanted, chosen",
    [
        (Platform("linux", "amd64"), "linux/amd64"),
        (Platform("linux", "arm64", "v8"), "linux/arm64"),
        (Platform("linux", "arm", "v6"), "linux/arm/v6"),
        (Platform("linux", "arm"), "linux/arm/v7"),
    ],
)
def test_the_platform_picks(store: Store, layout: Path, wanted: Platform, chosen: str, nested: bool) -> None:
    platforms(layout, "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64", "unknown/unknown", nested=nested)
    assert resolve(f"oci-layout://{layout}", store, wanted).config.config.env == (f"P={chosen}",)


def test_no_image_for_the_platform(store: Store, layout: Path) -> None:
    platforms(layout, "linux/s390x", "linux/arm64")
    with pytest.raises(BuildError, match="no image for linux/riscv64") as error:
        resolve(f"oci-layout://{layout}", store, Platform("linux", "riscv64"))
    assert "linux/s390x" in error.value.hint


def test_indexes_that_nest_without_end(store: Store, layout: Path) -> None:
    from hashlib import sha256

    inner = (layout / "index.json").read_bytes()
    for _ in range(10):
        digest = sha256(inner).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(inner)
        entry = {"mediaType": INDEX, "digest": f"sha256:{digest}", "size": len(inner)}
        inner = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    (layout / "index.json").write_bytes(inner)
    with pytest.raises(CorruptError, match="too deep"):
        resolve(f"oci-layout://{layout}", store)


# ---------------------------------------------------------------- archives


def docker_archive(
    path: Path, *, names: tuple[str, ...] = ("app:1",), layer: bytes = LAYER, shared: bool = False
) -> Path:
    """An archive as `docker save` wrote it before version 25."""
    from hashlib import sha256

    diff_id = "sha256:" + sha256(LAYER).hexdigest()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"]}, "rootfs": {"diff_ids": [diff_id]}}
    ).encode()
    name = sha256(config).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": list(names), "Layers": ["one/layer.tar"]}]
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        add("two/layer.tar" if shared else "one/layer.tar", layer)
        if shared:
            info = tarfile.TarInfo("one/layer.tar")
            info.type, info.linkname = tarfile.SYMTYPE, "../two/layer.tar"
            tar.addfile(info)
        add(name, config)
        add("manifest.json", json.dumps(manifest).encode())
    return path


@pytest.mark.parametrize("shared", [False, True])
def test_a_docker_archive(store: Store, tmp_path: Path, shared: bool) -> None:
    path = docker_archive(tmp_path / "app.tar", shared=shared)
    image = resolve(f"docker-archive://{path}", store)
    assert image.config.config.env == ("A=1",)
    with store.open_blob(image.layers[0].descriptor) as stream:
        assert stream.read() == LAYER


def test_a_docker_archive_is_read_once(store: Store, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "app.tar")
    first = resolve(f"docker-archive://{path}", store)
    status = path.stat()
    # The same inode, size and times with other bytes: only somebody who reads would notice. The ctime can not be set,
    # so the damage is done through what was remembered before it.
    assert resolve(f"docker-archive://{path}", store) == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    path.write_bytes(b"")
    with pytest.raises(StoreError):
        resolve(f"docker-archive://{path}", store)


@pytest.mark.parametrize("tag", ["app:1", "1", "docker.io/library/app:1"])
def test_a_docker_archive_by_tag(store: Store, tmp_path: Path, tag: str) -> None:
    path = docker_archive(tmp_path / "app.tar")
    assert resolve(f"docker-archive://{path}:{tag}", store).layers


def test_a_docker_archive_without_the_tag(store: Store, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "app.tar")
    with pytest.raises(BuildError, match="no image 'other:1'") as error:
        resolve(f"docker-archive://{path}:other:1", store)
    assert "app:1" in error.value.hint


def test_a_docker_archive_with_a_wrong_layer(store: Store, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "app.tar", layer=tar_of({"etc/hello": "hullo\n"}))
    with pytest.raises(CorruptError, match="diff id"):
        resolve(f"docker-archive://{path}", store)
    assert not list((store.root / "blobs" / "sha256").iterdir())


@pytest.mark.parametrize("at", [100, 600, 2000])
def test_a_truncated_archive(store: Store, tmp_path: Path, at: int) -> None:
    path = docker_archive(tmp_path / "app.tar")
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(StoreError):
        resolve(f"docker-archive://{path}", store)
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert not list((store.root / "tmp").iterdir())


def test_a_rootfs_is_no_archive_of_an_image(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rootfs.tar").write_bytes(LAYER)
    with pytest.raises(CorruptError) as error:
        resolve(f"docker-archive://{tmp_path}/rootfs.tar", store)
    assert "pybuild import" in error.value.hint


def test_no_archive(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="can not read the archive"):
        resolve(f"docker-archive://{tmp_path}/nowhere.tar", store)


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_of_a_layout(store: Store, layout: Path, tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "oci.tar"
    with tarfile.open(path, "w:gz" if packed else "w") as tar:
        tar.add(layout, ".")
    image = resolve(f"docker-archive://{path}", store)
    assert image.config.config.env == ("A=1",)
    assert not list((store.root / "tmp").iterdir())
    path.unlink()
    path.write_bytes(b"not the same any more")
    with pytest.raises(StoreError):
        resolve(f"docker-archive://{path}", store)


# ---------------------------------------------------------------- the host


@pytest.fixture(scope="module")
def host_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("host")) as opened:
        yield opened


def test_the_host_base_has_a_shell(host_store: Store) -> None:
    from cache.tree import Tree

    image = resolve("host:", host_store)
    assert image.config.config.cmd == ("/bin/sh",)
    tree = Tree(host_store, image.layers)
    shell = tree.entry(tree.resolve(b"bin/sh"))
    assert shell is not None
    assert shell.mode & 0o111
    tmp = tree.entry(b"tmp")
    assert tmp is not None
    assert tmp.mode == 0o1777


def test_the_host_base_is_the_same_each_time(host_store: Store, tmp_path: Path) -> None:
    first = resolve("host:", host_store)
    assert resolve("host:", host_store) == first
    with Store.open(tmp_path / "other") as other:
        assert resolve("host:", other) == first


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the root directory")
def test_the_programs_of_the_host_base_start(host_store: Store, tmp_path: Path) -> None:
    image = resolve("host:", host_store)
    subprocess.run(
        ["tar", "-xzf", host_store.blob_path(Digest(image.layers[0].descriptor.digest)), "-C", tmp_path], check=True
    )
    script = (
        "ls / && echo a b | sed s/a/c/ | awk '{print $2}' && id && find /etc | sort | head -1 && tar --version && env"
    )
    done = subprocess.run(
        ["chroot", tmp_path, "/bin/sh", "-ec", script], check=False, capture_output=True, text=True,
        env={"PATH": bases.PATH},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "uid=0(root) gid=0(root)" in done.stdout
    for name in host.PROGRAMS:
        if (path := host._program(name)) and name not in {"su", "yes", "tee"}:
            started = subprocess.run(
                ["chroot", tmp_path, path, "--version"], check=False, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=10, env={"PATH": bases.PATH},
            )  # fmt: skip
            assert b"error while loading shared libraries" not in started.stderr, name
            assert started.returncode != 127, name


def test_the_host_base_takes_no_options(store: Store) -> None:
    with pytest.raises(UnsupportedError):
        resolve("host:all", store)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_broken_elf_files_are_value_errors(data: bytes) -> None:
    stream = io.BytesIO(data)
    with contextlib.suppress(ValueError):
        assert host._Elf.read(stream).needed == ()


def test_elf_finds_what_the_linker_finds() -> None:
    import shutil
    import sys

    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("needs ldd")
    program = os.path.realpath(shutil.which("tar") or sys.executable)
    text = subprocess.run([ldd, program], check=True, capture_output=True, text=True).stdout
    wanted = {os.path.realpath(line.split("=>")[1].split()[0]) for line in text.splitlines() if "=> /" in line}
    found = {os.fsdecode(path) for path in host.collect([program])}
    assert wanted <= found


# ---------------------------------------------------------------- import


def test_import_makes_an_image(store: Store) -> None:
    image = bases.import_rootfs(
        io.BytesIO(gzip.compress(tar_of({"./bin/sh": "x", "./etc/passwd": "y"}))), "mine:1", store,
        changes=['CMD ["sh"]', "ENV A=1 B=2", "WORKDIR /srv", "LABEL a=b"], message="by hand",
    )  # fmt: skip
    assert image.names == ("mine:1",)
    config = store.config(image)
    assert config.config.cmd == ("sh",)
    assert config.config.env == ("A=1", "B=2")
    assert config.config.working_dir == "/srv"
    assert config.history[0].comment == "by hand"
    assert config.created == "2020-09-13T12:26:40Z"
    assert config.platform == HERE


def test_import_twice_gives_the_same_image(store: Store) -> None:
    tar = tar_of({"f": "x"})
    one = bases.import_rootfs(io.BytesIO(tar), "one", store)
    two = bases.import_rootfs(io.BytesIO(gzip.compress(tar)), "two", store)
    assert one.id == two.id


def test_import_without_changes_has_an_empty_config(store: Store) -> None:
    image = bases.import_rootfs(io.BytesIO(tar_of({"f": "x"})), "plain", store)
    assert store.config(image).config.to_json() == {}


@pytest.mark.parametrize("text", ["RUN true", "COPY a b", "FROM x", "NONSENSE"])
def test_import_refuses_what_is_no_config(store: Store, text: str) -> None:
    with pytest.raises(Exception, match=r"(?i)change|trigger|instruction|FROM"):
        bases.import_rootfs(io.BytesIO(tar_of({"f": "x"})), "plain", store, changes=[text])
    assert store.images() == []


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, tar_of({"f": "x" * 3000})[:1500]])
def test_import_of_no_tar_leaves_nothing(store: Store, data: bytes) -> None:
    with pytest.raises(StoreError):
        bases.import_rootfs(io.BytesIO(data), "broken", store)
    assert store.images() == []
    assert not list((store.root / "blobs" / "sha256").iterdir())


def test_import_refuses_a_bad_name_before_it_reads(store: Store) -> None:
    with pytest.raises(StoreError):
        bases.import_rootfs(io.BytesIO(tar_of({"f": "x"})), "BAD NAME", store)
    assert not list((store.root / "blobs" / "sha256").iterdir())


# ---------------------------------------------------------------- files


def test_files_as_a_base(store: Store, tmp_path: Path) -> None:
    from builder.context import Directory
    from cache.digests import Digests
    from cache.tree import Tree

    folder = tmp_path / "rootfs"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "tool").write_text("tool")
    (folder / "bin" / "same").hardlink_to(folder / "bin" / "tool")
    (folder / "link").symlink_to("bin/tool")

    def base() -> bases.BaseImage:
        image = bases.resolve(
            "base", HERE, {"base": str(folder)}, store, lambda name: Directory(folder, None, Digests(store.database))
        )
        assert image is not None
        return image

    image = base()
    tree = Tree(store, image.layers)
    one, two = tree.entry(b"bin/tool"), tree.entry(b"bin/same")
    assert one is not None
    assert two is not None
    assert tree.links(one) == tree.links(two) is not None
    assert (one.uid, one.gid) == (0, 0)
    assert base() == image
    (folder / "bin" / "tool").write_text("other")
    assert base().layers != image.layers

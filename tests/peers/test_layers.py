"""Layers with all that is hard about them, unpacked by real tools: these show the tree that pybuild shows."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from cache import layers
from cache.disk import Dialect, entry_of
from cache.entries import BytesContent, Entry, Kind
from cache.oci import ImageConfig, RuntimeConfig
from cache.reference import Reference
from cache.store import Store
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.peers.tools import Tool

pytestmark = [pytest.mark.slow, pytest.mark.peer("skopeo", "umoci")]

SECOND = 10**9
CAPABILITY = ("security.capability", struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0))


def file(path: bytes, data: bytes = b"", mode: int = 0o644, owner: int = 0, seconds: int = 0) -> Entry:
    return Entry(path, Kind.FILE, mode, owner, owner, len(data), seconds * SECOND, content=BytesContent(data))


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, target=target)


def hardlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, 0o644, target=target)


def gone(path: bytes) -> Entry:
    return Entry(path, Kind.WHITEOUT)


LAYERS: list[list[Entry]] = [
    [
        directory(b"odd"),
        file(b"odd/caf\xc3\xa9", b"utf-8"),
        file(b"odd/raw-\xff\xfe", b"no utf-8"),
        file(b"odd/" + b"n" * 200, b"long"),
        directory(b"odd/" + b"d" * 120),
        file(b"odd/" + b"d" * 120 + b"/" + b"e" * 120, b"deep"),
        file(b"odd/new\nline", b"x"),
        file(b"odd/old", b"x", seconds=-5),
        file(b"odd/young", b"x", seconds=2**33, owner=3_000_000),
        file(b"odd/suid", b"x", 0o6755, owner=7),
        Entry(b"odd/capable", Kind.FILE, 0o755, size=1, xattrs=(CAPABILITY,), content=BytesContent(b"x")),
        file(b"odd/zeros", bytes(3 << 20)),
        hardlink(b"odd/same", b"odd/raw-\xff\xfe"),
        symlink(b"odd/link", b"raw-\xff\xfe"),
        symlink(b"odd/longlink", b"t" * 300),
        Entry(b"odd/fifo", Kind.FIFO, 0o622),
        Entry(b"odd/null", Kind.CHARACTER, 0o666, device=(1, 3)),
        directory(b"odd/sticky", 0o1777),
    ],
    [
        directory(b"over"),
        *(directory(b"over/" + name) for name in (b"gone", b"opaque", b"to-file", b"kept")),
        *(file(b"over/" + name + b"/f", b"lower") for name in (b"gone", b"opaque", b"to-file", b"kept")),
        file(b"over/file", b"lower"),
        file(b"over/to-dir", b"lower"),
        symlink(b"over/to-dir-too", b"kept"),
        directory(b"over/again"),
        file(b"over/again/old", b"lower"),
        file(b"over/linked", b"linked"),
    ],
    [
        directory(b"over"),
        directory(b"over/again", 0o711),
        Entry(b"over/again", Kind.OPAQUE),
        file(b"over/again/new", b"upper"),
        gone(b"over/file"),
        gone(b"over/gone"),
        directory(b"over/kept"),
        file(b"over/kept/g", b"upper"),
        directory(b"over/opaque"),
        Entry(b"over/opaque", Kind.OPAQUE),
        directory(b"over/to-dir"),
        file(b"over/to-dir/f", b"upper"),
        directory(b"over/to-dir-too"),
        file(b"over/to-dir-too/f", b"upper"),
        file(b"over/to-file", b"upper"),
    ],
    [directory(b"over"), directory(b"over/gone"), file(b"over/gone/new", b"top"), file(b"over/opaque/below", b"top")],
]

Shown = tuple[Kind, int, int, int, int, int, bytes, bytes, tuple[int, int]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Tree]]:
    with Store.open(tmp_path_factory.mktemp("layers")) as store:
        made = tuple(layers.write(entries, store).layer for entries in LAYERS)
        config = ImageConfig(config=RuntimeConfig(cmd=("/none",)), diff_ids=tuple(layer.diff_id for layer in made))
        store.tag(Reference.parse("odd:1"), store.put_image(config, made).id)
        yield store, Tree(store, made)


@pytest.fixture(scope="module")
def archive(image: tuple[Store, Tree], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "odd.tar"
    command = ["skopeo", "--insecure-policy", "copy", f"oci:{image[0].root}:odd:1", f"docker-archive:{path}:odd:1"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def shown(entries: Iterable[Entry]) -> dict[bytes, Shown]:
    """What counts of the entries below the two directories. Names of one inode come as files each."""
    found: dict[bytes, Shown] = {}
    for entry in entries:
        if entry.path.startswith((b"odd/", b"over/")):
            if entry.kind is Kind.HARDLINK:
                found[entry.path] = found[entry.target]
                continue
            data = b""
            if entry.content is not None:
                with entry.content.open() as stream:
                    data = stream.read()
            # Engines give symlinks the times that they like, and nothing one before 1970.
            seconds = 0 if entry.kind in {Kind.SYMLINK, Kind.DIRECTORY} else max(0, entry.mtime_ns // SECOND)
            found[entry.path] = (
                entry.kind, 0 if entry.kind is Kind.SYMLINK else entry.mode, entry.uid, entry.gid, entry.size, seconds,
                entry.target, data, entry.device,
            )  # fmt: skip
    return found


def same(found: dict[bytes, Shown], view: Tree) -> None:
    expected = shown(view.walk())
    assert sorted(found) == sorted(expected)
    for path, values in expected.items():
        assert (path, found[path]) == (path, values)


@pytest.mark.root
def test_umoci(image: tuple[Store, Tree], tmp_path: Path) -> None:
    store, view = image
    command = ["umoci", "raw", "unpack", "--image", f"{store.root}:odd:1", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    same(shown(_walk(tmp_path / "out")), view)
    capable = next(entry for entry in _walk(tmp_path / "out") if entry.path == b"odd/capable")
    assert capable.xattrs == (CAPABILITY,)


@pytest.mark.root
def test_pybuild_itself(image: tuple[Store, Tree], tmp_path: Path) -> None:
    store, view = image
    (tmp_path / "out").mkdir()
    for number, layer in enumerate(view.layers):
        with layers.unpacked(store, layer) as source:
            layers.apply(source.entries, tmp_path / "out", Dialect.PLAIN, Tree(store, view.layers[:number]))
    same(shown(_walk(tmp_path / "out")), view)


def _walk(root: Path) -> Iterator[Entry]:
    base = os.fsencode(root)
    for folder, directories, files in os.walk(base):
        for name in (*directories, *files):
            full = folder + b"/" + name
            found = entry_of(full[len(base) + 1 :], full, os.lstat(full))
            assert found is not None
            yield found[0]


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_engines(
    request: pytest.FixtureRequest, engine: str, image: tuple[Store, Tree], archive: Path, tmp_path: Path
) -> None:
    tool: Tool = request.getfixturevalue(engine)
    tool("load", "--input", archive)
    name = "odd:1" if engine == "docker" else "docker.io/library/odd:1"
    container = tool("create", name, "/none").strip()
    try:
        tool("export", "--output", tmp_path / "out.tar", container)
    finally:
        tool("rm", "--force", container)
    with (tmp_path / "out.tar").open("rb") as stream:
        same(shown(layers.read(stream)), image[1])

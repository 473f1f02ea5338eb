from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cache import layers
from cache.entries import BytesContent, Entry, FileContent, Kind
from cache.errors import CorruptError, StoreError
from cache.oci import Layer, digest_of
from cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECOND = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def file(path: bytes, data: bytes = b"", mode: int = 0o644, **more: Any) -> Entry:
    return replace(Entry(path, Kind.FILE, mode, size=len(data), content=BytesContent(data)), **more)


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def unpack(store: Store, layer: Layer) -> bytes:
    with store.open_blob(layer.descriptor) as blob, layers.decompressed(blob) as plain:
        return plain.read()


def contents(entries: Iterator[Entry]) -> dict[bytes, bytes]:
    return {e.path: e.content.open().read() for e in entries if e.content is not None}


def known(entries: Iterator[Entry]) -> list[Entry]:
    return list(layers.hashed(entries))


def tar(*members: tuple[str, bytes | str | None], form: int = tarfile.PAX_FORMAT) -> bytes:
    """name and: bytes of a file, a str for a symlink's target, `=name` for a hardlink's, None for a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if what is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(what, str):
                info.type = tarfile.LNKTYPE if what.startswith("=") else tarfile.SYMTYPE
                info.linkname = what.removeprefix("=")
            else:
                info.size = len(what)
            archive.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return out.getvalue()


def read(data: bytes) -> list[Entry]:
    return known(layers.read(io.BytesIO(data)))


# ---------------------------------------------------------------- any tree


names = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=90, max_size=250),
    st.sampled_from([b"a", b"b", "café".encode(), b"\xff\xfe", b"with space", b"new\nline", b"=", b"-rf", b"..."]),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."} and name[:4] != b".wh.")

times = st.one_of(st.integers(-(10**10), 10**11), st.integers(-(2**62), 2**62), st.just(0)).map(lambda s: s * SECOND)
metadata = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.one_of(st.integers(0, 70000), st.integers(0, 2**32 - 2)),
        "gid": st.one_of(st.integers(0, 70000), st.just(2**21)),
        "mtime_ns": times,
        "xattrs": st.dictionaries(
            st.sampled_from(["user.a", "user.é", "user.b c"]), st.binary(max_size=40), max_size=2
        ).map(lambda found: tuple(sorted(found.items()))),
    }
)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """A layer as a walk would give it."""
    out: list[Entry] = []

    def fill(path: bytes, depth: int) -> None:
        for name in sorted(draw(st.sets(names, max_size=4))):
            full = path + b"/" + name if path else name
            files = [entry.path for entry in out if entry.kind is Kind.FILE]
            kinds = [Kind.FILE, Kind.SYMLINK, Kind.FIFO, Kind.CHARACTER, Kind.BLOCK, Kind.WHITEOUT]
            kinds += [Kind.DIRECTORY] * 3 if depth else []
            kinds += [Kind.HARDLINK] if files else []
            kind = draw(st.sampled_from(kinds))
            if kind is Kind.WHITEOUT:
                out.append(Entry(full, kind))
                continue
            entry = replace(Entry(full, kind), **draw(metadata))
            if kind is Kind.FILE:
                data = draw(st.one_of(st.binary(max_size=600), st.just(bytes(9000)), st.just(b"x" + bytes(20000))))
                entry = replace(entry, size=len(data), content=BytesContent(data))
            elif kind is Kind.HARDLINK:
                entry = replace(entry, target=draw(st.sampled_from(files)), xattrs=())
            elif kind is Kind.SYMLINK:
                entry = replace(entry, mode=0o777, target=draw(names), xattrs=())
            elif kind in {Kind.CHARACTER, Kind.BLOCK}:
                entry = replace(entry, device=draw(st.sampled_from([(1, 3), (7, 300), (0, 5)])), xattrs=())
            elif kind is Kind.FIFO:
                entry = replace(entry, xattrs=())
            out.append(entry)
            if kind is Kind.DIRECTORY:
                if draw(st.booleans()):
                    out.append(Entry(full, Kind.OPAQUE))
                fill(full, depth - 1)

    fill(b"", 3)
    return out


@settings(max_examples=60)
@given(trees())
def test_any_tree_comes_back_as_it_was_written(tree: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
        written = layers.write(tree, store)
        expected = [
            replace(e, content=None, digest=hashlib.sha256(e.content.data).hexdigest())
            if isinstance(e.content, BytesContent)
            else e
            for e in tree
        ]
        assert list(written.entries) == expected
        with store.open_blob(written.layer.descriptor) as blob:
            assert known(layers.read(blob)) == expected
        assert layers.listing(store, written.layer) == written.entries
        assert written.layer.diff_id == digest_of(unpack(store, written.layer))
        assert layers.write(tree, store) == written


# ---------------------------------------------------------------- writing


def test_a_layer_is_a_tar_that_the_standard_library_reads(store: Store) -> None:
    written = layers.write(
        [
            directory(b"app", 0o2755),
            file(b"app/run", b"#!/bin/sh\n", 0o4755, uid=7, gid=8, mtime_ns=5 * SECOND + 999),
            Entry(b"app/same", Kind.HARDLINK, 0o4755, target=b"app/run"),
            Entry(b"app/link", Kind.SYMLINK, 0o777, target=b"/etc/\xff"),
            Entry(b"app", Kind.OPAQUE),
            Entry(b"app/gone", Kind.WHITEOUT),
            Entry(b"gone", Kind.WHITEOUT),
        ],
        store,
    )
    with tarfile.open(fileobj=io.BytesIO(unpack(store, written.layer)), errors="surrogateescape") as archive:
        found = archive.getmembers()
    assert [m.name for m in found] == [
        "app", "app/run", "app/same", "app/link", "app/.wh..wh..opq", "app/.wh.gone", ".wh.gone",
    ]  # fmt: skip
    run, same, link = found[1:4]
    assert (run.mode, run.uid, run.gid, run.mtime, run.uname) == (0o4755, 7, 8, 5, "")
    assert (same.islnk(), same.linkname) == (True, "app/run")
    assert os.fsencode(link.linkname) == b"/etc/\xff"
    assert [m.size for m in found[4:]] == [0, 0, 0]
    assert (written.size, written.files) == (10, 7)


def test_plain_names_need_no_pax_header(store: Store) -> None:
    written = layers.write([file(b"a" * 100, b"x")], store)
    assert len(unpack(store, written.layer)) == 512 + 512 + 1024


def test_the_blob_is_gzip_without_name_and_time(store: Store) -> None:
    written = layers.write([file(b"a", b"x" * 5000)], store)
    blob = store.blob_path(written.layer.descriptor.digest).read_bytes()
    assert blob[:8] == b"\x1f\x8b\x08\0\0\0\0\0"
    assert digest_of(blob) == written.layer.descriptor.digest
    assert len(blob) == written.layer.descriptor.size
    assert gzip.decompress(blob) == unpack(store, written.layer)


def test_uncompressed_the_blob_is_the_tar(store: Store) -> None:
    written = layers.write([file(b"a", b"x")], store, layers.NONE)
    assert written.layer.descriptor.digest == written.layer.diff_id
    assert written.layer.descriptor.media_type.endswith(".tar")


def test_nothing_is_younger_than_the_epoch(store: Store) -> None:
    entries = [file(b"old", mtime_ns=50 * SECOND), file(b"young", mtime_ns=500 * SECOND)]
    assert [e.mtime_ns // SECOND for e in layers.write(entries, store, epoch=100).entries] == [50, 100]


def test_a_layer_of_many_pieces(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "big"
    data = os.urandom(1 << 20) * 9 + b"end"
    path.write_bytes(data)
    entry = Entry(b"big", Kind.FILE, 0o644, size=len(data), content=FileContent(os.fsencode(path)))
    written = layers.write([entry], store)
    assert written.entries[0].digest == hashlib.sha256(data).hexdigest()
    with layers.unpacked(store, written.layer) as source:
        assert contents(source.entries) == {b"big": data}


def test_holes_are_read_as_zeros(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.seek(3 << 20)
        out.write(b"middle")
        out.truncate(5 << 20)
    entry = Entry(b"sparse", Kind.FILE, 0o644, size=5 << 20, content=FileContent(os.fsencode(path)))
    written = layers.write([entry], store)
    assert written.entries[0].digest == hashlib.sha256(path.read_bytes()).hexdigest()


def _make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(b"longer than it was"), id="grew"),
        pytest.param(lambda path: path.write_bytes(b""), id="shrank"),
        pytest.param(lambda path: path.write_bytes(b"other!"), id="same size"),
        pytest.param(lambda path: path.unlink(), id="went"),
        pytest.param(_make_fifo, id="became a fifo"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), id="became a symlink"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="became a directory"),
    ],
)
def test_a_file_that_changed_is_named_and_nothing_kept(store: Store, tmp_path: Path, change: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    entry = Entry(
        b"app/file", Kind.FILE, 0o644, size=6, content=FileContent(os.fsencode(path)),
        digest=hashlib.sha256(b"before").hexdigest(),
    )  # fmt: skip
    change(path)  # type: ignore[operator]
    with pytest.raises(StoreError, match="file"):
        layers.write([entry], store)
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert not list((store.root / "tmp").iterdir())
    assert not list((store.root / "listings").iterdir())


def test_a_marker_as_a_name_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"x/\.wh\.a begins with \.wh\."):
        layers.write([file(b"x/.wh.a")], store)


def test_an_error_while_entries_are_made_comes_through(store: Store) -> None:
    def entries() -> Iterator[Entry]:
        yield file(b"a", b"x" * (6 << 20))
        raise LookupError

    with pytest.raises(LookupError):
        layers.write(entries(), store)
    assert not list((store.root / "tmp").iterdir())


def test_a_full_disk_is_a_store_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) > 100_000:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError, match="No space left"):
        layers.write([file(b"a%d" % n, os.urandom(1 << 20)) for n in range(20)], store)


def test_marks_of_overlayfs_and_pybuild_never_get_into_a_layer(store: Store) -> None:
    marks = [
        ("security.capability", b"c"), ("trusted.overlay.opaque", b"y"), ("user.overlay.redirect", b"/etc"),
        ("user.pybuild.owner", b"1:1:644"), ("user.ours", b"v"), ("security.selinux", b"l"),
    ]  # fmt: skip
    written = layers.write([replace(directory(b"d"), xattrs=tuple(sorted(marks)))], store)
    assert written.entries[0].xattrs == (("security.capability", b"c"), ("user.ours", b"v"))
    assert b"overlay" not in unpack(store, written.layer)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_cleaned(form: int) -> None:
    data = tar(
        ("./", None), ("./a/", None), ("./a//b", b"b"), ("/abs", b"c"), ("a/./h", "=./a/b"), ("l", "../up"), form=form
    )
    assert [(e.path, e.kind, e.target) for e in read(data)] == [
        (b"", Kind.DIRECTORY, b""),
        (b"a", Kind.DIRECTORY, b""),
        (b"a/b", Kind.FILE, b""),
        (b"abs", Kind.FILE, b""),
        (b"a/h", Kind.HARDLINK, b"a/b"),
        (b"l", Kind.SYMLINK, b"../up"),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_each_format(form: int) -> None:
    name = "/".join(["d" * 90] * 4)
    entries = read(tar((name, b"x"), ("l", name), ("h", "=" + name), form=form))
    assert entries[0].path.decode() == entries[1].target.decode() == entries[2].target.decode() == name


@pytest.mark.parametrize(
    "members",
    [
        [("../x", b"")],
        [("a/../../x", b"")],
        [("a/..", None)],
        [("/../etc/passwd", b"")],
        [("a", b""), ("h", "=../../etc/passwd")],
        [("h", "=a/../../b")],
        [(".wh.", b"")],
        [("a/.wh...", b"")],
        [("", b"x")],
    ],
)
def test_what_leads_out_is_corrupt(members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(CorruptError):
        read(tar(*members))


def test_below_a_symlink_means_where_it_leads_inside_the_root() -> None:
    data = tar(
        ("lib", "usr/lib"), ("lib/a", b""), ("out", "../../../.."), ("out/b", b""), ("abs", "/usr/../etc"),
        ("abs/c", b""), ("h", "=lib/a"), ("lib/.wh.old", b""), ("lib", None), ("lib/d", b""),
    )  # fmt: skip
    assert [(e.path, e.target) for e in read(data)] == [
        (b"lib", b"usr/lib"), (b"usr/lib/a", b""), (b"out", b"../../../.."), (b"b", b""), (b"abs", b"/usr/../etc"),
        (b"etc/c", b""), (b"h", b"usr/lib/a"), (b"usr/lib/old", b""), (b"lib", b""), (b"lib/d", b""),
    ]  # fmt: skip


def test_symlinks_in_a_circle_are_corrupt() -> None:
    with pytest.raises(CorruptError, match="circle"):
        read(tar(("a", "b"), ("b", "a"), ("a/x", b"")))


def test_markers() -> None:
    data = tar(
        ("d/.wh..wh..opq", b""), ("d/.wh.x", b""), (".wh..wh.plnk/1", b""), (".wh..wh.aufs", b""), (".wh.y", b"")
    )
    assert [(e.path, e.kind) for e in read(data)] == [
        (b"d", Kind.OPAQUE), (b"d/x", Kind.WHITEOUT), (b"y", Kind.WHITEOUT),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1.5", 1_500_000_000),
        ("1700000000.123456789123", 1700000000_123456789),
        ("-1.25", -1_250_000_000),
        ("-0.5", -500_000_000),
        ("99999999999999999999", (1 << 62) * SECOND),
    ],
)
def test_pax_times(text: str, nanoseconds: int) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"mtime": text}
    assert read(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))[0].mtime_ns == nanoseconds


def test_capabilities_of_version_3_lose_their_user_namespace() -> None:
    third = struct.pack("<6I", 0x03000001, 0x400, 0, 0, 0, 100000)
    info = tarfile.TarInfo("a")
    info.pax_headers = {"SCHILY.xattr.security.capability": third.decode("utf-8", "surrogateescape")}
    data = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + bytes(1024)
    assert read(data)[0].xattrs == (("security.capability", struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)),)


def _zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("needs the program zstd")
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "several gzip members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": _zstd,
    "several zstd frames": lambda data: _zstd(data[:700]) + _zstd(data[700:]),
}


class Trickle(io.RawIOBase):
    """A pipe that delivers few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return self._data.read(min(7, 7 if size is None or size < 0 else size))


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression(name: str) -> None:
    packed = COMPRESSIONS[name](tar(("a", b"x" * 3000), ("b", os.urandom(3000))))
    assert [e.path for e in read(packed)] == [b"a", b"b"]
    assert [e.path for e in known(layers.read(Trickle(packed)))] == [b"a", b"b"]  # type: ignore[arg-type]
    stream = io.BytesIO(b"before" + packed)
    stream.seek(6)
    assert layers.compressed(stream) == (name != "none")
    assert stream.tell() == 6


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_every_compression_cut_short(name: str, keep: float) -> None:
    packed = COMPRESSIONS[name](tar(("a", os.urandom(30000)), ("b", os.urandom(30000)))[: 60000 + 4 * 512])
    with pytest.raises(CorruptError):
        read(packed[: int(len(packed) * keep)])


@pytest.mark.parametrize("name", [name for name in COMPRESSIONS if name != "none"])
def test_every_compression_damaged(name: str) -> None:
    packed = bytearray(COMPRESSIONS[name](tar(("a", os.urandom(30000)))))
    packed[len(packed) // 2] ^= 0x55
    packed[len(packed) // 2 + 1] ^= 0x55
    with layers.decompressed(io.BytesIO(bytes(packed))) as plain, pytest.raises(CorruptError):
        plain.read()


@pytest.mark.parametrize(
    "data",
    [
        b"not a tar archive at all",
        os.urandom(4096),
        b"\x7fELF" + bytes(2000),
        tar(("a", b"x"))[:1024] + os.urandom(2048),
        tar(("a", b"x" * 600))[:900],
        tar(("a", b"x" * 600))[:1100],
        tar(("a", b"x"))[:100],
        tar(("a" * 200, b"x"))[:700],
    ],
)
def test_what_is_no_sound_tar_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        read(data)


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_an_empty_layer(data: bytes) -> None:
    assert read(data) == []


@settings(max_examples=150)
@given(st.integers(0, 6000), st.integers(1, 255), st.integers(0, 6000))
def test_a_damaged_tar_is_read_or_refused_but_nothing_else(at: int, flip: int, cut: int) -> None:
    whole = tar(("a/b", b"x" * 700), ("é" * 60, b"y"), ("l", "a"), ("h", "=a/b"), (".wh.z", b""))
    data = bytearray(whole)
    data[at % len(data)] ^= flip
    try:
        entries = read(bytes(data[: len(data) - cut]))
    except CorruptError:
        return
    assert all(b".." not in entry.path.split(b"/") for entry in entries)


def test_content_is_readable_once_and_in_time() -> None:
    entries = list(layers.read(io.BytesIO(tar(("a", b"x"), ("b", b"y")))))
    for entry in entries:
        assert entry.content is not None
        with pytest.raises(CorruptError, match="too late"):
            entry.content.open().read()


def test_a_file_is_found_without_reading_what_lies_before() -> None:
    class Counting(io.BytesIO):
        done = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.done += len(data)
            return data

    stream = Counting(tar(("big", bytes(40 << 20)), ("wanted", b"found")))
    entry = next(e for e in layers.read(stream) if e.path == b"wanted")
    assert entry.content is not None
    assert entry.content.open().read() == b"found"
    assert stream.done < 4 << 20


@pytest.mark.parametrize("form", ["--format=gnu", "--posix"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    if shutil.which("tar") is None or b"GNU" not in subprocess.check_output(["tar", "--version"]):
        pytest.skip("needs GNU tar")
    with (tmp_path / "sparse").open("wb") as out:
        out.seek(1 << 20)
        out.write(b"one")
        out.seek(4 << 20)
        out.write(b"two")
        out.truncate(6 << 20)
    (tmp_path / "after").write_bytes(b"after")
    packed = subprocess.run(
        ["tar", form, "-S", "-cf", "-", "sparse", "after"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert len(packed) < 1 << 20
    assert contents(layers.read(io.BytesIO(packed))) == {
        b"sparse": (tmp_path / "sparse").read_bytes(),
        b"after": b"after",
    }


# ---------------------------------------------------------------- stored layers


def test_a_listing_that_is_missing_or_damaged_is_made_again(store: Store) -> None:
    written = layers.write([directory(b"d"), file(b"d/f", b"text", xattrs=(("user.x", b"\xff\0"),))], store)
    (path,) = (store.root / "listings").iterdir()
    kept = path.read_bytes()
    for damage in (kept[:-5], b"", kept.replace(b"644", b"645"), b"pybuild listing 9 x\n{}", kept[1:]):
        path.write_bytes(damage)
        assert layers.listing(store, written.layer) == written.entries
        assert path.read_bytes() == kept
    path.unlink()
    assert layers.listing(store, written.layer) == written.entries
    assert path.exists()


def test_a_layer_that_is_not_its_diff_id_is_corrupt(store: Store) -> None:
    written = layers.write([file(b"f", b"text")], store)
    wrong = Layer(digest_of(b"another"), written.layer.descriptor)
    with pytest.raises(CorruptError, match="unpacks to"):
        layers.listing(store, wrong)
    assert not (store.root / "listings" / wrong.diff_id.removeprefix("sha256:")).exists()


def test_a_damaged_blob_is_corrupt(store: Store) -> None:
    written = layers.write([file(b"f", os.urandom(5 << 20)), file(b"g", b"x")], store)
    path = store.blob_path(written.layer.descriptor.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    (store.root / "listings" / written.layer.diff_id[7:]).unlink()
    with pytest.raises(CorruptError):
        layers.listing(store, written.layer)


def test_a_layer_need_not_be_read_to_its_end(store: Store) -> None:
    written = layers.write([file(b"f%d" % n, os.urandom(1 << 20)) for n in range(20)], store)
    with layers.unpacked(store, written.layer) as source:
        assert next(source.entries).path == b"f0"


def test_an_imported_tar_has_all_parents(store: Store) -> None:
    packed = gzip.compress(
        tar(("./a/b/c", b"x"), ("./a", None), ("./a/d", b"y"), ("./", None), ("z/.wh..wh..opq", b""))
    )
    written = layers.import_tar(io.BytesIO(packed), store)
    assert [(e.path, e.kind, e.mode) for e in written.entries] == [
        (b"a", Kind.DIRECTORY, 0o755), (b"a/b", Kind.DIRECTORY, 0o755), (b"a/b/c", Kind.FILE, 0o644),
        (b"a", Kind.DIRECTORY, 0o644), (b"a/d", Kind.FILE, 0o644), (b"", Kind.DIRECTORY, 0o644),
        (b"z", Kind.DIRECTORY, 0o755), (b"z", Kind.OPAQUE, 0),
    ]  # fmt: skip


def test_an_import_is_checked_to_the_end_of_its_compression(store: Store) -> None:
    packed = bytearray(gzip.compress(tar(("a", os.urandom(3000)))))
    packed[-6] ^= 1
    with pytest.raises(CorruptError):
        layers.import_tar(io.BytesIO(bytes(packed)), store)


def test_a_broken_import_leaves_nothing(store: Store) -> None:
    packed = tar(("a", os.urandom(3 << 20)), ("b", b"x" * 9000))
    with pytest.raises(CorruptError):
        layers.import_tar(io.BytesIO(packed[: (3 << 20) + 4000]), store)
    assert not list((store.root / "tmp").iterdir())
    assert not list((store.root / "blobs" / "sha256").iterdir())


# ---------------------------------------------------------------- other tools


def _layout(store: Store, entries: list[Entry]) -> str:
    from cache.oci import ImageConfig
    from cache.reference import Reference

    written = layers.write(entries, store)
    image = store.put_image(ImageConfig(diff_ids=(written.layer.diff_id,)), [written.layer])
    store.tag(Reference.parse("odd:1"), image.id)
    return f"{store.root}:odd:1"


ODD = [
    directory(b"d"),
    file(b"d/caf\xc3\xa9", b"utf-8"),
    file(b"d/raw-\xff\xfe", b"no utf-8"),
    file(b"d/" + b"n" * 200, b"long", mtime_ns=-5 * SECOND),
    file(b"d/young", b"x", mtime_ns=2**33 * SECOND, uid=3_000_000, gid=3_000_000),
    file(b"d/run", b"x", 0o755, xattrs=(("security.capability", struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)),)),
    Entry(b"d/same", Kind.HARDLINK, 0o644, target=b"d/raw-\xff\xfe"),
    Entry(b"d/link", Kind.SYMLINK, 0o777, target=b"raw-\xff\xfe"),
]


@pytest.mark.root
@pytest.mark.peer("umoci")
def test_umoci_unpacks_what_is_odd(store: Store, tmp_path: Path) -> None:
    layout = _layout(store, ODD)
    subprocess.run(["umoci", "raw", "unpack", "--image", layout, tmp_path / "out"], check=True, capture_output=True)
    out = os.fsencode(tmp_path / "out")
    assert sorted(os.listdir(out + b"/d")) == sorted(e.path[2:] for e in ODD[1:])
    with open(out + b"/d/raw-\xff\xfe", "rb") as raw:
        assert raw.read() == b"no utf-8"
    assert os.readlink(out + b"/d/link") == b"raw-\xff\xfe"
    assert os.stat(out + b"/d/young").st_uid == 3_000_000
    assert int(os.stat(out + b"/d/" + b"n" * 200).st_mtime) == -5
    assert os.getxattr(out + b"/d/run", "security.capability") == ODD[5].xattrs[0][1]
    assert os.stat(out + b"/d/same").st_ino == os.stat(out + b"/d/raw-\xff\xfe").st_ino


@pytest.mark.peer("skopeo")
def test_skopeo_copies_what_is_odd(store: Store, tmp_path: Path) -> None:
    layout = _layout(store, ODD)
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"oci:{layout}", f"docker-archive:{tmp_path}/out.tar:odd:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "out.tar").stat().st_size


def test_reading_takes_a_stream_of_any_kind(store: Store) -> None:
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as out:
        out.write(tar(("a", b"x")))
    with open(read_end, "rb") as stream:
        entries: BinaryIO = stream
        assert [e.path for e in layers.import_tar(entries, store).entries] == [b"a"]

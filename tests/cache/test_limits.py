from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from cache import limits
from cache.compression import Compression, decompressed
from cache.entries import BytesContent, Entry, Kind
from cache.errors import CorruptError, StoreError
from cache.layers import import_tar, listing, read, write
from cache.limits import LimitError, Limits, check_path, check_target, limit
from cache.oci import Layer, digest_of
from cache.store import Store
from tests.building import Bench, archive, member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_current", Limits())


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test reaches."""
    monkeypatch.setattr(limits, "_current", Limits(entries=10, size=4 << 20, ratio=50))
    monkeypatch.setattr(limits, "FLOOR", 1 << 20)


def names(data: bytes) -> list[bytes]:
    return [entry.path for entry in read(io.BytesIO(data))]


def zeros(size: int, count: int = 1) -> bytes:
    return archive(*((member(f"f{number}"), bytes(size)) for number in range(count)))


def foreign(store: Store, data: bytes, packed: bytes) -> Layer:
    """A layer that pybuild has neither written nor read."""
    return Layer(digest_of(data), store.put_blob(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))


def test_defaults_leave_real_layers_alone() -> None:
    assert Limits().entries >= 1_000_000
    assert len(names(zeros(0, 2000))) == 2000
    data = gzip.compress(zeros(3 << 20))
    assert len(data) * 200 < 3 << 20, "small archives may be as full of zeros as they like"
    assert names(data) == [b"f0"]


@pytest.mark.usefixtures("low")
def test_too_many_entries() -> None:
    assert len(names(zeros(0, 10))) == 10
    with pytest.raises(LimitError, match="more than 10 entries"):
        names(zeros(0, 11))


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("pack", [gzip.compress, lambda data: compressed("zstd", data)], ids=["gzip", "zstd"])
def test_a_bomb_is_known_by_its_ratio(pack: object) -> None:
    assert callable(pack)
    assert names(pack(zeros(1 << 19))) == [b"f0"]
    with pytest.raises(LimitError, match="50 times as much") as caught:
        list(read(io.BytesIO(pack(zeros(3 << 20)))))
    assert "PYBUILD_LIMITS=ratio=N" in caught.value.hint


def compressed(name: str, data: bytes) -> bytes:
    made = Compression(name).compressor()  # type: ignore[arg-type]
    return made.compress(data) + made.flush()


@pytest.mark.usefixtures("low")
def test_too_much_in_all() -> None:
    import random

    data = zeros(0) + random.Random(1).randbytes(5 << 20)
    with decompressed(io.BytesIO(gzip.compress(data, 1))) as plain, pytest.raises(LimitError, match="more than 4 MiB"):
        plain.read()


@pytest.mark.usefixtures("low")
def test_a_sparse_file_says_how_much_it_is() -> None:
    # GNU tar's old form: a file of 1 TiB of which nothing is in the archive.
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o " % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(LimitError, match="more than"):
        names(bytes(header) + bytes(1024))


def test_a_header_is_not_read_into_all_of_memory() -> None:
    info = member("./PaxHeaders/x", tarfile.XHDTYPE)
    info.size = 1 << 40
    with pytest.raises(LimitError, match="header"):
        names(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@pytest.mark.parametrize(
    "info",
    [
        member("a/" * 2100 + "x"),
        member("n" * 300),
        member("link", tarfile.SYMTYPE, linkname="t" * 5000),
        member("x", pax_headers={"SCHILY.xattr.user.big": "v" * 70_000}),
        member("x", pax_headers={f"SCHILY.xattr.user.{number}": "v" * 60_000 for number in range(20)}),
    ],
    ids=["path", "name", "target", "attribute", "attributes"],
)
def test_what_linux_has_no_room_for(info: tarfile.TarInfo) -> None:
    with pytest.raises(LimitError):
        names(archive((info, b"")))


def test_a_gzip_in_a_gzip_is_no_archive() -> None:
    with pytest.raises(CorruptError, match="not a sound tar"):
        names(gzip.compress(gzip.compress(zeros(10_000))))


# ---------------------------------------------------------------- stored layers


@pytest.mark.usefixtures("low")
def test_a_foreign_layer_is_named_and_leaves_nothing(store: Store) -> None:
    data = zeros(3 << 20)
    layer = foreign(store, data, gzip.compress(data))
    with pytest.raises(LimitError, match=f"the layer {layer.descriptor.digest}: its first"):
        listing(store, layer)
    assert not list((store.root / "listings").iterdir())
    assert not list((store.root / "tmp").iterdir())
    limit("ratio=5000")
    assert [entry.path for entry in listing(store, layer)] == [b"f0"]


@pytest.mark.usefixtures("low")
def test_what_was_written_here_is_not_measured(store: Store) -> None:
    data = bytes(3 << 20)
    layer = write([Entry(b"f", Kind.FILE, 0o644, size=len(data), content=BytesContent(data))], store).layer
    from cache.tree import Tree

    entry = Tree(store, (layer,)).entry(b"f")
    assert entry is not None
    assert entry.content is not None
    with entry.content.open() as stream:
        assert stream.read() == data


@pytest.mark.usefixtures("low")
def test_an_import_that_is_too_much_leaves_nothing(store: Store) -> None:
    with pytest.raises(LimitError):
        import_tar(io.BytesIO(gzip.compress(zeros(3 << 20))), store)
    assert not list((store.root / "blobs/sha256").iterdir())
    assert not list((store.root / "tmp").iterdir())


# ---------------------------------------------------------------- as a user sets and sees them


def test_limits_are_set_in_words() -> None:
    limit("entries=5,size=2T , ratio=7")
    assert limits.limits() == Limits(5, 2 << 40, 7)
    limit("size=1MiB,ratio=0")
    assert limits.limits().size == 1 << 20
    limits.limits().measure(1000, 0)
    for wrong in ("entries", "entries=x", "files=3", "size=-1"):
        with pytest.raises(StoreError, match="no limit"):
            limit(wrong)


def test_an_archive_that_is_added(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"PYBUILD_LIMITS": "entries=3"})
    done = bench.alone(*bench.words("FROM scratch\nADD a.tar /\n", {"a.tar": zeros(1, 4)}))
    assert done.code == 1
    assert "a.tar: it has more than 3 entries" in done.err
    assert "PYBUILD_LIMITS=entries=N" in done.err
    assert not list((bench.root / "tmp").iterdir())
    done = Bench(tmp_path, {"PYBUILD_LIMITS": "entries=4"}).alone(*bench.words(None))
    assert done.code == 0, done.err
    done = Bench(tmp_path, {"PYBUILD_LIMITS": "entries"}).alone("images")
    assert done.code == 2
    assert "PYBUILD_LIMITS" in done.err


def test_a_base_that_is_too_much(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"PYBUILD_LIMITS": "entries=3"})
    data = zeros(1, 4)
    (tmp_path / "rootfs.tar").write_bytes(data)
    done = bench.alone("import", str(tmp_path / "rootfs.tar"), "base")
    assert done.code == 3
    assert "rootfs.tar" in done.err
    assert "more than 3 entries" in done.err
    assert bench.alone("images", "-a", "-q").out == ""


def test_a_symlink_may_say_what_no_path_can_be() -> None:
    """Linux takes any text as its target; only to follow it fails."""
    check_target(b"x" * 300)
    with pytest.raises(LimitError, match="a part of 300 bytes"):
        check_path(b"x" * 300)
    with pytest.raises(LimitError, match="5000 bytes"):
        check_target(b"x" * 5000)

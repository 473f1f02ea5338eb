from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cache.contents import PIECE, Pieces, chunks
from cache.entries import BytesContent, Entry, FileContent, Kind
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


@pytest.mark.parametrize(
    ("path", "parent", "name"),
    [(b"", b"", b""), (b"a", b"", b"a"), (b"a/b", b"a", b"b"), (b"a/b/c\xff", b"a/b", b"c\xff")],
)
def test_the_parts_of_a_path(path: bytes, parent: bytes, name: bytes) -> None:
    entry = Entry(path, Kind.DIRECTORY)
    assert (entry.parent, entry.name) == (parent, name)


def test_contents_open_twice(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"text")
    for content in (BytesContent(b"text"), FileContent(os.fsencode(tmp_path / "f"))):
        with content.open() as one, content.open() as other:
            assert one.read(1) + other.read() + one.read() == b"ttextext"


def test_a_symlink_is_not_followed_for_content(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        FileContent(os.fsencode(tmp_path / "l")).open()


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize("size", [0, 1, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_pieces_of_a_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    for content in (FileContent(os.fsencode(tmp_path / "f")), BytesContent(data)):
        assert b"".join(chunks(Entry(b"f", Kind.FILE, size=size, content=content))) == data


@pytest.mark.parametrize(
    "layout", [[], [(0, 5)], [(PIECE * 2, 5)], [(0, 5000), (PIECE + 17, PIECE), (PIECE * 3 - 1, 1)]]
)
def test_pieces_of_a_sparse_file(tmp_path: Path, layout: list[tuple[int, int]]) -> None:
    path = tmp_path / "f"
    with path.open("wb") as out:
        for at, length in layout:
            out.seek(at)
            out.write(b"x" * length)
        out.truncate(PIECE * 3)
    entry = Entry(b"f", Kind.FILE, size=PIECE * 3, content=FileContent(os.fsencode(path)))
    assert b"".join(chunks(entry)) == path.read_bytes()


def test_a_file_that_grew_is_read_by_one_byte_too_many(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 * PIECE))
    for size in (0, 10, PIECE, 2 * PIECE):
        entry = Entry(b"f", Kind.FILE, size=size, content=FileContent(os.fsencode(tmp_path / "f")))
        assert len(b"".join(chunks(entry))) == size + 1


def test_other_contents_give_their_stream_or_their_pieces() -> None:
    class Streamed:
        def open(self) -> BinaryIO:
            return BytesContent(b"text").open()

    class InPieces(Pieces):
        def open(self) -> BinaryIO:
            raise AssertionError

        def pieces(self) -> Iterator[bytes]:
            yield from (b"te", b"xt")

    for content in (Streamed(), InPieces()):
        assert b"".join(chunks(Entry(b"f", Kind.FILE, size=4, content=content))) == b"text"
    assert list(chunks(Entry(b"f", Kind.FILE))) == []
    with pytest.raises(StoreError, match="not known"):
        chunks(Entry(b"f", Kind.FILE, size=4))


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    entry = Entry(b"f", Kind.FILE, size=4, content=FileContent(os.fsencode(tmp_path / "gone")))
    with pytest.raises(StoreError, match="gone: No such file"):
        list(chunks(entry))

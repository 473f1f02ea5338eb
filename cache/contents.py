"""Reading a file entry's bytes, in pieces, however they are kept."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, BinaryIO

from cache.entries import BytesContent, Entry, FileContent
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 20
_ZEROS = bytes(PIECE)

# O_NONBLOCK: a fifo that took the file's place would else hold the open until someone writes to it.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Pieces(ABC):
    """A `Content` that can give its bytes in pieces, without a stream in between."""

    @abstractmethod
    def pieces(self) -> Iterator[bytes]:
        """The bytes."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """See `cache.entries.Content.open`."""


def chunks(entry: Entry) -> Iterator[bytes]:
    """The bytes of a FILE entry, in pieces of at most 1 MiB, but never more than one byte beyond its size.

    So a file that has grown is found out without being read to its end. Holes of files on disk are not read. StoreError
    when a file can not be read.
    """
    content = entry.content
    if type(content) is FileContent:
        return _file(content.path, entry.size)
    if type(content) is BytesContent:
        return iter((content.data,) if content.data else ())
    if content is None:
        if entry.size:
            raise StoreError(f"the content of {_show(entry.path)} is not known")
        return iter(())
    if isinstance(content, Pieces):
        return content.pieces()
    return _stream(entry)


def _file(path: bytes, size: int) -> Iterator[bytes]:
    try:
        yield from opened(os.open(path, _READ), size)
    except OSError as error:
        raise StoreError(f"can not read {_show(path)}: {error.strerror}") from error


def opened(file: int, size: int) -> Iterator[bytes]:
    """The bytes of an open file, as `chunks` gives them. Closes it."""
    try:
        data = os.read(file, min(size + 1, PIECE))
        if len(data) == size < PIECE:
            if data:
                yield data
            return
        status = os.fstat(file)
        if status.st_blocks * 512 < size == status.st_size:
            yield from _holes(file, size)
            return
        left = size + 1
        while data:
            yield data
            left -= len(data)
            data = os.read(file, min(left, PIECE)) if left > 0 else b""
    finally:
        os.close(file)


def _holes(file: int, size: int) -> Iterator[bytes]:
    """The bytes of a sparse file: only where there are data is it read."""
    at = 0
    while at < size:
        try:
            data = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: nothing but a hole up to the end.
            if error.errno != errno.ENXIO:
                raise
            data = size
        for start in range(at, min(data, size), PIECE):
            length = min(PIECE, min(data, size) - start)
            yield _ZEROS if length == PIECE else _ZEROS[:length]
        if data >= size:
            return
        end = min(os.lseek(file, data, os.SEEK_HOLE), size)
        os.lseek(file, data, os.SEEK_SET)
        while data < end and (piece := os.read(file, min(end - data, PIECE))):
            yield piece
            data += len(piece)
        if data < end:
            return
        at = end


def _stream(entry: Entry) -> Iterator[bytes]:
    assert entry.content is not None
    try:
        with entry.content.open() as stream:
            left = entry.size + 1
            while left > 0 and (data := stream.read(min(left, PIECE))):
                yield data
                left -= len(data)
    except OSError as error:
        raise StoreError(f"can not read {_show(entry.path)}: {error.strerror or error}") from error


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")

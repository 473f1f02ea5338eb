"""Image layouts and archives as collections of named files: to read, and to write.

A layout is a folder, an archive the same in a tar file; docker's own archives have other names in them. What the files
mean is the business of `builder.bases` and `builder.export`.
"""

from __future__ import annotations

import io
import os
import posixpath
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from msgspec import Struct

from cache.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHUNK = 1 << 20
_MAX_LINKS = 20


class Named(Protocol):
    """Files by name. title: what messages call the whole."""

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A stream of the file's bytes, which the caller closes. FileNotFoundError."""
        ...


class Folder(Struct, frozen=True):
    """The files below a folder."""

    root: Path

    @property
    def title(self) -> str:
        """See `Named`."""
        return str(self.root)

    def open(self, name: str) -> BinaryIO:
        """See `Named`."""
        return open(self.root / name, "rb", buffering=0)


class Archive:
    """The files of an uncompressed tar file, whose headers are read once.

    Raises CorruptError when the file is no tar, or ends inside of a member.
    """

    def __init__(self, path: Path, title: str) -> None:
        # tarfile takes 15 ms to load, which a build whose bases are layouts need not pay.
        import tarfile

        self._path = path
        self._title = title
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
                for member in tar:
                    name = posixpath.normpath(member.name.lstrip("/"))
                    if member.isreg():
                        if member.offset_data + member.size > size:
                            raise CorruptError(f"{title} ends in the middle of {name}", "copy or make it again")
                        self._places[name] = (member.offset_data, member.size)
                    elif member.issym():
                        self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():
                        self._links[name] = posixpath.normpath(member.linkname.lstrip("/"))
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise CorruptError(f"{title} is not a sound tar archive: {error}", "copy or make it again") from None

    @property
    def title(self) -> str:
        """See `Named`."""
        return self._title

    def open(self, name: str) -> BinaryIO:
        """See `Named`."""
        # `docker save` before version 25 writes a layer that two images share as a symlink.
        for _ in range(_MAX_LINKS):
            if name in self._places:
                return cast("BinaryIO", _Stretch(self._path, *self._places[name]))
            if name not in self._links:
                break
            name = self._links[name]
        raise FileNotFoundError(name)


class _Stretch(io.RawIOBase):
    """A part of a file as a stream."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._at, self._end = start, start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._file, [memoryview(buffer)[: self._end - self._at]], self._at)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


# ---------------------------------------------------------------- writing


class Member(Struct, frozen=True):
    """One file to write: `data`, or what `open` gives, of exactly `size` bytes."""

    name: str
    size: int
    data: bytes = b""
    open: Callable[[], BinaryIO] | None = None

    def copy(self, out: BinaryIO) -> None:
        """Write the bytes to `out`. CorruptError when there are fewer than announced."""
        if self.open is None:
            out.write(self.data)
            return
        left = self.size
        with self.open() as stream:
            while left and (chunk := stream.read(min(_CHUNK, left))):
                out.write(chunk)
                left -= len(chunk)
        if left:
            raise CorruptError(f"{self.name} is shorter than what was announced")


def write_tar(members: Iterator[Member], out: BinaryIO) -> int:
    """Write `members` as a tar, with the folders they lie in; the number of bytes. Equal members give equal bytes."""
    import tarfile

    total = 0
    made: set[str] = set()
    for member in members:
        for folder in _parents(member.name):
            if folder not in made:
                made.add(folder)
                info = tarfile.TarInfo(folder + "/")
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                total += out.write(info.tobuf(tarfile.USTAR_FORMAT))
        info = tarfile.TarInfo(member.name)
        info.size, info.mode = member.size, 0o644
        # A size from 8 GiB on does not fit into the plain format's octal digits.
        total += out.write(info.tobuf(tarfile.USTAR_FORMAT if member.size < 1 << 33 else tarfile.GNU_FORMAT))
        member.copy(out)
        total += member.size + out.write(bytes(-member.size % 512))
    return total + out.write(bytes(1024))


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    yield from ("/".join(parts[: depth + 1]) for depth in range(len(parts)))

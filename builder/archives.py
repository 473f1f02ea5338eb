"""Image layouts and archives as collections of named files: to read, and to write.

A layout is a folder, an archive the same in a tar file; docker's own archives have other names in them. What the files
mean is the business of `builder.bases` and `builder.export`.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from msgspec import Struct

from cache.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 1 << 20
_MAX_LINKS = 20
_MOST_MEMBERS = 200_000
_FREE = 1 << 30
_RATIO = 2000
"""A compressed archive of more than 1 GiB that is blown up more than so many times is a bomb, no image."""


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

    Raises CorruptError when the file is no tar, or ends inside of a member, and for what readers would take in
    different ways: names that lead out of the archive, two different files of one name, sparse files.
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
                    if name.startswith("../") or name == "..":
                        raise CorruptError(f"{title} has the member {_show(member.name)}, which leads out of it")
                    if len(self._places) + len(self._links) > _MOST_MEMBERS:
                        raise CorruptError(f"{title} has more than {_MOST_MEMBERS} members: that is no image")
                    if member.issparse():
                        raise CorruptError(f"{title} has the sparse member {_show(name)}", "tar --sparse made it")
                    if member.isreg():
                        if member.offset_data + member.size > size:
                            raise CorruptError(f"{title} ends in the middle of {_show(name)}", "copy or make it again")
                        self._put(name, (member.offset_data, member.size))
                    elif member.issym():
                        self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():
                        self._links[name] = posixpath.normpath(member.linkname.lstrip("/"))
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise CorruptError(f"{title} is not a sound tar archive: {error}", "copy or make it again") from None

    def _put(self, name: str, place: tuple[int, int]) -> None:
        before = self._places.setdefault(name, place)
        if before == place:
            return
        with _Stretch(self._path, *before) as one, _Stretch(self._path, *place) as other:
            same = before[1] == place[1]
            while same and (data := one.read(_CHUNK)):
                same = data == other.read(_CHUNK)
        if not same:
            raise CorruptError(f"{self._title} has two different files called {_show(name)}")

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


@contextlib.contextmanager
def opened(source: Path | BinaryIO, title: str, scratch: Path) -> Iterator[Archive]:
    """The archive in a file or a stream, compressed or not; what can not be read in place is copied into `scratch`.

    Raises CorruptError as `Archive` does, and for one that unpacks to far more than an image can; OSError.
    """
    from cache import compression

    with contextlib.ExitStack() as stack:
        stream = source
        if isinstance(source, Path):
            stream = stack.enter_context(source.open("rb"))
            if not compression.compressed(stream):
                yield Archive(source, title)
                return
        import tempfile

        counted = _Counted(cast("BinaryIO", stream))
        plain = stack.enter_context(compression.decompressed(cast("BinaryIO", counted)))
        # A file without a name is gone whatever becomes of this process.
        copy = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
        size = 0
        while chunk := plain.read(_CHUNK):
            size += len(chunk)
            if size > _FREE and size > _RATIO * counted.count:
                raise CorruptError(f"{title} unpacks to more than {_RATIO} times its size: that is no image")
            copy.write(chunk)
        copy.flush()
        yield Archive(Path(f"/proc/self/fd/{copy.fileno()}"), title)


class _Counted(io.RawIOBase):
    """A stream that counts what is read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self.count += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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


def _show(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

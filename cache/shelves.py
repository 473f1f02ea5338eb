"""Places outside the store in which cache data are kept: a folder, or a repository of a registry.

A shelf holds *blobs*, by their digests, and *sheets*: manifests of the OCI image spec under short names, each naming
the blobs that it needs, so that a registry's own garbage collection keeps them. Nothing that several writers share is
ever read, changed and written back: a registry knows no compare-and-swap, and of two writers of one list the slower
one would undo the other's work. So every step has a sheet of its own (see `cache.remote`), and of two writers of one
sheet either may stay, since both say the same.

A folder:

    oci-layout, index.json       so that it is an OCI image layout without images
    blobs/sha256/<hex>           complete and in place by one rename
    sheets/<name>                manifests, likewise; the time of the file is that of its last use
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import INDEX, Manifest, canonical, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cache.oci import Descriptor

_PIECE = 1 << 20
_LARGEST = 4 << 20
"""Bytes of a manifest; registries take no larger ones."""


class Sink(Protocol):
    """Something that bytes can be written to."""

    def write(self, data: bytes, /) -> object:
        """Take bytes."""
        ...


class Shelf(Protocol):
    """A place for blobs and sheets. Safe from several threads and processes. All raise StoreError when it fails.

    Nothing that comes from a shelf is believed: whoever reads a blob checks its digest, and whoever reads a sheet that
    it says what its name says.
    """

    @property
    def title(self) -> str:
        """How messages call it."""
        ...

    @property
    def settling(self) -> float:
        """Seconds after which a sheet that another machine has put is seen here."""
        ...

    def find(self, name: str) -> Manifest | None:
        """The sheet of this name, or None. CorruptError when it is no manifest."""
        ...

    def keep(self, name: str, sheet: Manifest) -> None:
        """Put a sheet in the place of the one of its name. Its blobs are there already."""
        ...

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there."""
        ...

    def read(self, blob: Descriptor, out: Sink) -> None:
        """Give the bytes of a blob to `out`, unverified. NotFoundError when it is not there."""
        ...

    def put(self, blob: Descriptor, source: Callable[[], BinaryIO]) -> bool:
        """Have the blob there; False when it was already, and no bytes were moved. source: opens its bytes."""
        ...


class Directory:
    """A folder as a `Shelf`. It is made at the first thing that is put."""

    settling = 0.05

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def title(self) -> str:
        """See `Shelf.title`."""
        return str(self._path)

    def find(self, name: str) -> Manifest | None:
        """See `Shelf.find`."""
        path = self._path / "sheets" / name
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"can not read {path}: {error.strerror}") from error
        with suppress(OSError):
            os.utime(path)  # by which the least recently used is found
        return Manifest.from_json(parse_json(data, str(path)))

    def keep(self, name: str, sheet: Manifest) -> None:
        """See `Shelf.keep`."""
        self._write("sheets", name, lambda file: file.write(canonical(sheet.to_json())))

    def has(self, blob: Descriptor) -> bool:
        """See `Shelf.has`. One of another size is none."""
        try:
            return self._blob(blob).stat().st_size == blob.size
        except OSError:
            return False

    def read(self, blob: Descriptor, out: Sink) -> None:
        """See `Shelf.read`."""
        path = self._blob(blob)
        try:
            with path.open("rb") as file:
                while data := file.read(_PIECE):
                    out.write(data)
        except FileNotFoundError:
            raise NotFoundError(f"there is no {path}") from None
        except OSError as error:
            raise StoreError(f"can not read {path}: {error.strerror}") from error

    def put(self, blob: Descriptor, source: Callable[[], BinaryIO]) -> bool:
        """See `Shelf.put`."""
        if self.has(blob):
            return False

        def copy(file: BinaryIO) -> None:
            left = blob.size
            with source() as stream:
                while data := stream.read(_PIECE):
                    left -= len(data)
                    file.write(data)
            if left:
                raise CorruptError(f"the blob {blob.digest} has another size than {blob.size} bytes")

        self._write("blobs/sha256", blob.digest.removeprefix("sha256:"), copy)
        return True

    def _blob(self, blob: Descriptor) -> Path:
        return self._path / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")

    def _write(self, folder: str, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Write a file at one stroke."""
        place = self._path / folder
        # A name of which no other tool, nor a look for sheets, takes notice.
        temporary = place / f".{name[:80]}.{os.getpid()}-{os.urandom(4).hex()}"
        try:
            if not place.is_dir():
                self._set_up()
                place.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                fill(file)
            temporary.replace(place / name)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError):
                raise StoreError(f"can not write {place}: {error.strerror}") from error
            raise

    def _set_up(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        for name, data in (
            ("index.json", canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ):
            with suppress(FileExistsError), (self._path / name).open("xb") as file:
                file.write(data)


def read_small(shelf: Shelf, blob: Descriptor, limit: int) -> bytes:
    """The bytes of a small blob, verified. NotFoundError; CorruptError for what is larger than `limit`, too."""
    from cache.oci import digest_of

    out = _Collected(min(blob.size, limit))
    shelf.read(blob, out)
    data = b"".join(out.pieces)
    if len(data) != blob.size or digest_of(data) != blob.digest:
        raise CorruptError(f"the blob {blob.digest} of {shelf.title} is damaged: its bytes have another digest")
    return data


class _Collected:
    def __init__(self, limit: int) -> None:
        self.pieces: list[bytes] = []
        self._left = limit

    def write(self, data: bytes, /) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise CorruptError("a blob has more bytes than its descriptor says, or than it may have")
        self.pieces.append(bytes(data))

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

A repository has the sheets under the tags `<tag>-<name>`, beside whatever images it has.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cache import whence
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST, Index, Manifest, canonical, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.oci import Descriptor, Digest
    from cache.registry import Registry
    from cache.store import Store

_PIECE = 1 << 20
_GRACE = 3600.0
_ABANDONED = 86400.0
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

    def drop(self, name: str) -> None:
        """Nobody needs this sheet any more. It may stay: not every registry lets anything be removed. Never raises."""
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

    def drop(self, name: str) -> None:
        """See `Shelf.drop`."""
        with suppress(OSError):
            (self._path / "sheets" / name).unlink()

    def has(self, blob: Descriptor) -> bool:
        """See `Shelf.has`. One of another size is none."""
        path = self._blob(blob)
        try:
            if path.stat().st_size != blob.size:
                return False
        except OSError:
            return False
        with suppress(OSError):
            os.utime(path)  # whoever asks is about to rely on it: see `trim`
        return True

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

    def trim(self, limit: int) -> int:
        """Take sheets away that were not used for longest, until all takes no more than `limit` bytes; the bytes freed.

        Blobs go with the last sheet that names them. What anybody has put or asked for within the last hour stays,
        whatever it takes. Idempotent, and safe beside other builds: at worst a step is done once more.
        """
        young = time.time() - _GRACE
        blobs = {entry.name: entry.stat() for entry in _entries(self._path / "blobs" / "sha256")}
        sheets = [(entry.stat().st_mtime, entry.stat().st_size, entry) for entry in _entries(self._path / "sheets")]
        kept: set[str] = set()
        total = freed = 0
        for used, size, entry in sorted(sheets, key=lambda item: -item[0]):
            try:
                sheet = Manifest.from_json(parse_json(Path(entry.path).read_bytes(), entry.name))
                names = {blob.digest.removeprefix("sha256:") for blob in (sheet.config, *sheet.layers)} & blobs.keys()
            except (OSError, CorruptError):
                names = set()
            more = size + sum(blobs[name].st_size for name in names - kept)
            # Once there is no room, all that is older goes: else small old things would stay for ever.
            if used < young and (freed or total + more > limit):
                freed += _taken(entry.path, size)
            else:
                kept |= names
                total += more
        for name, status in blobs.items():
            if name not in kept and status.st_mtime < young:
                freed += _taken(os.path.join(self._path, "blobs", "sha256", name), status.st_size)
        return freed

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


class Repository:
    """A repository of a registry as a `Shelf`. tag: what the tags of all sheets begin with.

    A blob that the store's notes say another repository of the registry has is taken over from there by the registry.
    """

    settling = 0.05

    def __init__(self, registry: Registry, repository: str, tag: str, store: Store) -> None:
        self.registry = registry
        self.repository = repository
        self.tag = tag
        self._store = store
        self._there: set[Digest] = set()

    @property
    def title(self) -> str:
        """See `Shelf.title`."""
        return f"{self.name}:{self.tag}"

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry.name}/{self.repository}"

    def find(self, name: str) -> Manifest | None:
        """See `Shelf.find`."""
        return self.manifest(f"{self.tag}-{name}")

    def manifest(self, reference: str) -> Manifest | None:
        """The image manifest of a tag or a digest, or None. CorruptError when it is no manifest."""
        try:
            described, data = self.registry.manifest(self.repository, reference)
        except NotFoundError:
            return None
        return self._read(described, data)

    def _read(self, described: Descriptor, data: bytes) -> Manifest:
        found = Manifest.from_json(parse_json(data, f"the manifest {described.digest} of {self.name}"))
        self._note([blob.digest for blob in (found.config, *found.layers)])
        return found

    def images(self, reference: str) -> list[Manifest]:
        """The manifests of the images of a tag or a digest: one, those that an index names, or none."""
        try:
            described, data = self.registry.manifest(self.repository, reference)
        except NotFoundError:
            return []
        if described.media_type not in {INDEX, DOCKER_INDEX}:
            return [self._read(described, data)]
        listed = Index.from_json(parse_json(data, f"the index {described.digest} of {self.name}")).manifests
        manifests = [self.manifest(each.digest) for each in listed if each.media_type in {MANIFEST, DOCKER_MANIFEST}]
        return [each for each in manifests if each is not None]

    def keep(self, name: str, sheet: Manifest) -> None:
        """See `Shelf.keep`."""
        self.registry.put_manifest(self.repository, f"{self.tag}-{name}", canonical(sheet.to_json()), sheet.media_type)

    def drop(self, name: str) -> None:
        """See `Shelf.drop`: it stays. Few registries let a tag be removed, and all of them want the right to delete."""

    def has(self, blob: Descriptor) -> bool:
        """See `Shelf.has`."""
        return blob.digest in self._there or self.registry.has_blob(self.repository, blob.digest)

    def read(self, blob: Descriptor, out: Sink) -> None:
        """See `Shelf.read`."""
        try:
            self.registry.read_blob(self.repository, blob, out)
        except StoreError:
            # What a manifest names need not be there: it is looked for before it is relied on again.
            self._there.discard(blob.digest)
            raise

    def put(self, blob: Descriptor, source: Callable[[], BinaryIO]) -> bool:
        """See `Shelf.put`."""
        if blob.digest in self._there:
            return False
        others = whence.repositories_with(self._store, blob.digest, self.registry.name)
        sent = self.registry.put_blob(
            self.repository, blob, lambda: _Forward(source()), mount_from=[name for name in others if name != self.name]
        )
        self._note([blob.digest])
        return sent

    def _note(self, digests: Sequence[Digest]) -> None:
        fresh = [digest for digest in digests if digest not in self._there]
        if fresh:
            self._there.update(fresh)
            whence.note_blobs(self._store, self.name, fresh)


class _Forward:
    """A stream that can be put at an offset when it has not been read yet: an upload that goes on after a break."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        """See `io.RawIOBase.read`."""
        return self._stream.read(size)

    def seek(self, offset: int, /) -> int:
        """Skip so many bytes from the start."""
        left = offset
        while left and (data := self._stream.read(min(left, _PIECE))):
            left -= len(data)
        return offset - left

    def close(self) -> None:
        """See `io.RawIOBase.close`."""
        self._stream.close()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The files of a folder, with those that a killed process was writing a day ago gone; none where there is none."""
    found = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if not entry.name.startswith("."):
                found.append(entry)
            elif entry.stat().st_mtime < time.time() - _ABANDONED:
                _taken(entry.path, 0)
    return found


def _taken(path: str, size: int) -> int:
    """Remove a file; `size`, or 0 where somebody else has."""
    try:
        os.unlink(path)
    except OSError:
        return 0
    return size


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

"""The store: blobs by digest, images, and the names that point at them.

A store is a folder, and at all times a valid OCI image layout that other tools may read while it is in use (what they
write into `index.json` is overwritten):

    oci-layout, index.json      every image but the intermediate ones, once for each of its names
    blobs/sha256/<hex>          manifests, configs, layers; complete and in place by one rename
    pybuild.db                  images, names, instruction cache, stat cache; `index.json` can be made from it
    snapshots/ listings/        what `cache.snapshots` and `cache.layers` derive from layers
    mounts/                     cache mounts
    leases/                     a locked file for each running build (see `cache.prune`)
    tmp/                        what is being written; one file system with the rest

Order of writing: blobs, then the database, then `index.json`; order of removal: the reverse. So whatever the moment at
which a process is killed, all that is listed is there. Blobs are not forced to the disk: after a power cut one may be
missing or short. Reading finds that out (`open_blob`), so does looking up a step (`cache.index`), and building again or
loading again puts it right.

Vocabulary. An image's id is the digest of its config. An image without a name is dangling. An intermediate image is the
state after one step: in the database only, without a name, freed with the last image that needs it.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from cache.database import Database
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import Descriptor, Digest, digest_of

if TYPE_CHECKING:
    from pathlib import Path

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY_INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
_FOLDERS = ("blobs/sha256", "snapshots", "listings", "mounts", "leases", "tmp")


class Store:
    """See the module. Safe to use from several threads, and from several processes on one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = Database(root / "pybuild.db")
        self._blobs = os.path.join(root, "blobs", "sha256", "")

    @classmethod
    def open(cls, root: Path) -> Store:
        """The store in the folder `root`, which is made if missing. Idempotent.

        Raises StoreError when the folder can not be written. The database is opened later, at the first use; that
        raises StoreError when a newer pybuild has written it.
        """
        store = cls(root.absolute())
        try:
            for folder in _FOLDERS:
                path = os.path.join(store.root, folder)
                if not os.path.isdir(path):
                    os.makedirs(path, exist_ok=True)
            if not os.access(store.root, os.W_OK):
                raise PermissionError(13, "Permission denied")
            # An empty file is what a power cut can leave of one that was just renamed.
            for name, data in (("index.json", _EMPTY_INDEX), ("oci-layout", _LAYOUT)):
                if _size(os.path.join(store.root, name)) in {None, 0}:
                    store.replace_file(name, data)
        except OSError as error:
            raise StoreError(
                f"can not use {store.root} as a store: {error.strerror}", "choose another folder with --root"
            ) from error
        return store

    def close(self) -> None:
        """Close the database. A later use opens it again."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    # ------------------------------------------------------------ blobs

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies, or would lie."""
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        """Whether there is a blob of this digest; its bytes are not read."""
        return _size(self._blobs + digest[7:]) is not None

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether there is a blob of this digest and this size."""
        return _size(self._blobs + descriptor.digest[7:]) == descriptor.size

    def open_blob(self, descriptor: Descriptor | Digest) -> BinaryIO:
        """A stream of the blob, from the first byte to the last, that verifies itself.

        Raises NotFoundError; CorruptError at once when the size is wrong, and from the read that delivers the last
        bytes when the digest is.
        """
        digest = descriptor if isinstance(descriptor, str) else descriptor.digest
        try:
            file = open(self._blobs + digest[7:], "rb", buffering=0)  # noqa: SIM115  the reader closes it
        except FileNotFoundError:
            raise NotFoundError(f"the store has no blob {digest}") from None
        size = os.fstat(file.fileno()).st_size
        if not isinstance(descriptor, str) and size != descriptor.size:
            file.close()
            raise CorruptError(f"the blob {digest} has {size} bytes instead of {descriptor.size}", _DAMAGED)
        return cast("BinaryIO", _VerifyingReader(file, digest, size))

    def read_blob(self, descriptor: Descriptor, limit: int = 4 << 20) -> bytes:
        """The bytes of a small blob, verified. Raises as `open_blob`, and CorruptError when larger than `limit`."""
        if descriptor.size > limit:
            raise CorruptError(f"the blob {descriptor.digest} has {descriptor.size} bytes, more than {limit}")
        with self.open_blob(descriptor) as stream:
            return stream.read()

    def put_blob(self, data: bytes, media_type: str) -> Descriptor:
        """Keep `data` as a blob. Idempotent."""
        digest = digest_of(data)
        path = self._blobs + digest[7:]
        if not _refresh(path, len(data)):
            with self.writer(hashing=False) as writer:
                writer.write(data)
                writer.commit(digest, len(data), trusted=True)
        return Descriptor(media_type, digest, len(data))

    def writer(self, *, hashing: bool = True) -> BlobWriter:
        """A blob to be written in pieces. hashing=False: the caller computes the digest, see `BlobWriter.commit`."""
        return BlobWriter(self, hashing=hashing)

    # ------------------------------------------------------------ files

    def temporary(self) -> str:
        """A fresh path in `tmp/`, for something that will be renamed to its place."""
        return os.path.join(self.root, "tmp", f"{os.getpid()}-{os.urandom(8).hex()}")

    def replace_file(self, name: str, data: bytes) -> None:
        """Write the file `name` of the store's top folder at one stroke."""
        temporary = self.temporary()
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.rename(temporary, os.path.join(self.root, name))
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise


class BlobWriter:
    """A blob in the making: bytes go to a temporary file that `commit` renames to its place.

    A context manager; leaving it without a commit leaves nothing behind. Not for several threads at once.
    """

    def __init__(self, store: Store, *, hashing: bool = True) -> None:
        self._store = store
        self._path = store.temporary()
        self._hash = hashlib.sha256() if hashing else None
        self._size = 0
        try:
            # 0644 whatever the umask says: other users' tools may read the layout.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_write(store, error) from error

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; the number of bytes, all of them, as a file's `write` gives it."""
        view = memoryview(data)
        if self._hash is not None:
            self._hash.update(view)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._file, view[done:] if done else view)
        except OSError as error:
            raise _cannot_write(self._store, error) from error
        self._size += done
        return done

    def commit(
        self, digest: Digest | None = None, size: int | None = None, *, trusted: bool = False
    ) -> tuple[Digest, int]:
        """Put the blob in its place; its digest and size.

        digest, size: what the blob must be, else CorruptError and nothing is kept. trusted: the caller has computed
        `digest` from these bytes, so they are not hashed here.
        """
        if size is not None and size != self._size:
            raise CorruptError(f"a blob of {size} bytes was announced, {self._size} came")
        if digest is None or not trusted:
            found = self._computed()
            if digest is not None and found != digest:
                raise CorruptError(f"the bytes of the blob {digest} have the digest {found}")
            digest = found
        target = self._store._blobs + digest[7:]  # noqa: SLF001  the writer is the store's other half
        try:
            # A blob of the right size is kept: a reader may be in it. One that a power cut made short is replaced.
            if not _refresh(target, self._size):
                os.rename(self._path, target)
                self._path = ""
        except OSError as error:
            raise _cannot_write(self._store, error) from error
        self.close()
        return digest, self._size

    def close(self) -> None:
        """Drop what was not committed. Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        path, self._path = self._path, ""
        if path:
            with suppress(OSError):
                os.unlink(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _computed(self) -> Digest:
        if self._hash is None:
            self._hash = hashlib.sha256()
            offset = 0
            while data := os.pread(self._file, 1 << 20, offset):
                self._hash.update(data)
                offset += len(data)
        return Digest("sha256:" + self._hash.hexdigest())


class _VerifyingReader(io.RawIOBase):
    """The bytes of a blob file. The read that delivers the last of them fails if the whole is not what it should be."""

    def __init__(self, file: io.FileIO, digest: Digest, size: int) -> None:
        self._file = file
        self._digest = digest
        self._left = size
        self._hash = hashlib.sha256()
        if not size:
            self._verify()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        self._took(memoryview(buffer)[:count])
        return count

    def read(self, size: int | None = -1) -> bytes:
        if size == 0:
            return b""
        data = self._file.read(self._left + 1 if size is None or size < 0 else size) or b""
        self._took(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def _took(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._left -= len(data)
        if not self._left:
            self._verify()
        elif self._left < 0 or not len(data):
            raise CorruptError(f"the blob {self._digest} changed its size while it was read", _DAMAGED)

    def _verify(self) -> None:
        if self._hash.hexdigest() != self._digest[7:]:
            self._file.close()
            raise CorruptError(f"the blob {self._digest} is damaged: its bytes have another digest", _DAMAGED)


_DAMAGED = "build or load the image again with --no-cache to replace it"


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _refresh(path: str, size: int) -> bool:
    """Whether a file of this size is there; its time becomes now, by which `cache.prune` sees that it is wanted."""
    if _size(path) != size:
        return False
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _cannot_write(store: Store, error: OSError) -> StoreError:
    hint = "pybuild image prune frees space" if error.errno == 28 else ""
    return StoreError(f"can not write to the store {store.root}: {error.strerror}", hint)

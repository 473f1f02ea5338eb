"""Layers: entries to tar, tar to entries, and what a stored layer holds.

https://github.com/opencontainers/image-spec/blob/main/layer.md. What is written: headers of the standard library's
`tarfile`, with PAX records only where a field needs one (long names, names that are not ASCII, attributes, big or
negative numbers); no user names, no access times; whole seconds, as BuildKit's differ writes them, so that a file's
time is the same whether a layer was just made or pulled. Contents are written in full, holes as zeros: GNU's sparse
formats are not part of the image spec. A name that is no UTF-8 is written as it is, and declared by
`hdrcharset=BINARY`.

The same entries in the same order give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import tarfile
import threading
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from msgspec import Struct
from msgspec.structs import replace

from cache import listings, traits
from cache.compression import GZIP, NONE, Compression, compressed, decompressed
from cache.contents import PIECE, Pieces, chunks
from cache.disk import Dialect, apply, kept, portable_capability
from cache.entries import Entry, Kind
from cache.errors import CorruptError, StoreError
from cache.limits import HEADER, LimitError, check_path, check_target, check_xattrs, limits
from cache.oci import Descriptor, Digest, Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from cache.store import BlobWriter, Store
    from cache.traits import Traits

__all__ = [
    "GZIP",
    "NONE",
    "Compression",
    "Dialect",
    "Unpacked",
    "Written",
    "apply",
    "compressed",
    "decompressed",
    "import_tar",
    "listed_traits",
    "listing",
    "pack",
    "read",
    "unpacked",
    "write",
    "write_changes",
]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_BLOCK = 512
_SECOND = 1_000_000_000
_XATTR = "SCHILY.xattr."

_QUEUED = 4
"""Pieces of 1 MiB between two threads: all the memory that a layer of any size takes."""

_MAX_LINKS = 255


class Written(Struct, frozen=True):
    """A layer that was just put in the store.

    size: the bytes of its files. files: how many entries it has. entries: as a reading of the layer would give them,
    with digests and without contents.
    """

    layer: Layer
    size: int
    files: int
    entries: tuple[Entry, ...]


# ---------------------------------------------------------------- writing


def write(entries: Iterable[Entry], store: Store, compression: Compression = GZIP, epoch: int | None = None) -> Written:
    """Put a layer of `entries`, in their order, in the store, together with its listing. Idempotent.

    Each file is read once, in this thread; another thread hashes and compresses. epoch: a time in seconds that nothing
    in the layer is to be younger than.

    Raises StoreError when a file can not be read, when it is not of the size or digest that its entry says (it changed
    meanwhile), or when a name begins with `.wh.`, which to every reader of layers is a deletion. Then nothing is kept.
    """
    done: list[Entry] = []
    seen: dict[int, Traits] = {}
    size = 0
    with store.writer() as blob, _Sink(blob, compression) as sink:
        for plain in pack(entries, sink.add, epoch, seen):
            size += plain.size
            done.append(plain)
        diff_id = sink.finish()
        digest, length = blob.commit()
    layer = Layer(diff_id, Descriptor(compression.media_type, digest, length))
    found = tuple(done)
    _remember(store, diff_id, found, seen)
    return Written(layer, size, len(found), found)


def pack(
    entries: Iterable[Entry],
    add: Callable[[bytes], None],
    epoch: int | None = None,
    seen: dict[int, Traits] | None = None,
) -> Iterator[Entry]:
    """Give a tar of `entries` to `add`, piece by piece; each entry as the tar says it, once it is written.

    The tar ends when the iterator does. seen: gets what the files' bytes say of them, by the number of the entry.
    Raises as `write` does.
    """
    for number, entry in enumerate(entries):
        header, plain = _header(entry, epoch)
        add(header)
        if entry.kind is Kind.FILE:
            digest, found = _copy(entry, add, look=seen is not None)
            plain = replace_digest(plain, digest)
            if found is not None and seen is not None:
                seen[number] = found
            if padding := -entry.size % _BLOCK:
                add(_PADDING[padding])
        yield plain
    # The two blocks that end an archive. Go's writer, which made most layers there are, fills up no further.
    add(bytes(2 * _BLOCK))


def write_changes(
    entries: Iterator[Entry], store: Store, compression: Compression = GZIP, epoch: int | None = None
) -> Written | None:
    """`write` for what a step changed; None, with nothing written, when it changed nothing."""
    first = next(entries, None)
    return None if first is None else write(chain((first,), entries), store, compression, epoch)


_PADDING = tuple(bytes(count) for count in range(_BLOCK))


def _copy(entry: Entry, add: Callable[[bytes], None], *, look: bool) -> tuple[str, Traits | None]:
    """Write a FILE's content; its sha256 and, if they are asked for, its traits."""
    digest = hashlib.sha256()
    count = 0
    size = entry.size
    watch: traits.Look | None = None
    seen: Traits | None = None
    for piece in chunks(entry):
        count += len(piece)
        if count > size:
            break
        digest.update(piece)
        add(piece)
        if look and len(piece) == size:
            seen = traits.look(entry.path, piece)
        elif look:
            watch = watch or traits.Look(entry.path)
            watch.add(piece)
    found = digest.hexdigest()
    if count != entry.size or (entry.digest and found != entry.digest):
        raise StoreError(
            f"{_show(entry.path)} changed while it was read", "let no other program write to it during a build"
        )
    return found, seen if watch is None else watch.found()


def replace_digest(entry: Entry, digest: str) -> Entry:
    """`entry` with another digest. By hand, as this is done for each file."""
    return Entry(
        entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.target,
        entry.device, entry.xattrs, entry.content, digest,
    )  # fmt: skip


_TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
    Kind.CHARACTER: tarfile.CHRTYPE,
    Kind.BLOCK: tarfile.BLKTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}


def _header(entry: Entry, epoch: int | None) -> tuple[bytes, Entry]:
    """The entry's header blocks, and the entry as they say it."""
    path, kind = entry.path, entry.kind
    name = path.rpartition(b"/")[2]
    if name.startswith(_WHITEOUT):
        raise StoreError(
            f"the name of {_show(path)} begins with .wh., which marks a deletion in a layer",
            "no image can hold such a file: rename or remove it",
        )
    info = tarfile.TarInfo()
    if kind is Kind.WHITEOUT or kind is Kind.OPAQUE:
        marker = path + b"/" + _OPAQUE if kind is Kind.OPAQUE else path[: len(path) - len(name)] + _WHITEOUT + name
        info.name = marker.lstrip(b"/").decode("utf-8", "surrogateescape")
        info.mode = 0
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"), Entry(path, kind)
    seconds = entry.mtime_ns // _SECOND
    if epoch is not None and seconds > epoch:
        seconds = int(epoch)
    info.name = path.decode("utf-8", "surrogateescape") or "."
    info.type = _TYPES[kind]
    info.mode = entry.mode
    info.uid = entry.uid
    info.gid = entry.gid
    info.mtime = seconds
    size, target, device = 0, b"", (0, 0)
    if kind is Kind.FILE:
        info.size = size = entry.size
    elif kind is Kind.SYMLINK or kind is Kind.HARDLINK:
        target = entry.target
        info.linkname = target.decode("utf-8", "surrogateescape")
    elif kind is Kind.CHARACTER or kind is Kind.BLOCK:
        info.devmajor, info.devminor = device = entry.device
    xattrs = entry.xattrs
    if xattrs:
        # A PAX key ends at the first `=`, so an attribute with one in its name can not be written.
        xattrs = tuple((key, value) for key, value in xattrs if kept(key) and "=" not in key)
        info.pax_headers = {_XATTR + key: value.decode("utf-8", "surrogateescape") for key, value in xattrs}
    if kind is Kind.HARDLINK:
        # All but the name and the target is the target's, and readers differ in whether they look.
        info.pax_headers = {}
        xattrs = ()
    return (
        info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"),
        Entry(path, kind, entry.mode, entry.uid, entry.gid, size, seconds * _SECOND, target, device, xattrs),
    )


class _Sink:
    """A second thread that hashes a tar's bytes, compresses them and writes them to a blob."""

    def __init__(self, blob: BlobWriter, compression: Compression) -> None:
        self._blob = blob
        self._compressor = compression.compressor()
        self._digest = hashlib.sha256()
        self._queue: queue.Queue[list[bytes] | None] = queue.Queue(_QUEUED)
        self._failure: BaseException | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name="layer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            if error is not None:
                # Nobody wants the rest: the thread only empties the queue from here on.
                self._failure = self._failure or error
            self._queue.put(None)
            self._thread.join()

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting >= PIECE:
            self._queue.put(self._pieces)
            self._pieces = []
            self._waiting = 0
            if self._failure is not None:
                raise self._failure

    def finish(self) -> Digest:
        """Wait until all is written; the digest of the uncompressed bytes."""
        self._queue.put(self._pieces)
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return Digest("sha256:" + self._digest.hexdigest())

    def _work(self) -> None:
        while (pieces := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                    self._digest.update(data)
                    if ready := self._compressor.compress(data):
                        self._blob.write(ready)
                except BaseException as error:  # raised again in the thread that gave the bytes
                    self._failure = error
        if self._failure is None:
            try:
                self._blob.write(self._compressor.flush())
            except BaseException as error:  # as above
                self._failure = error


# ---------------------------------------------------------------- reading


def read(stream: BinaryIO, *, trusted: bool = False) -> Iterator[Entry]:
    """The entries of a layer's or a root file system's tar, compressed or not, in their order.

    Deletion markers come as WHITEOUT and OPAQUE. Names are cleaned of `./` and leading slashes. What lies below a
    symlink of the same layer comes under the path that the link leads to, inside the root, as other tools would put it.
    A FILE's content can be read until the next entry is asked for, once.

    Raises CorruptError, when it gets there, for `..` in a name or a hardlink's target, and for what is no tar or ends
    too early; LimitError for what goes beyond the limits, but when it is trusted. An empty stream is an empty layer.
    """
    source = _Source(decompressed(stream, trusted=trusted))
    first = source.peek()
    if not first:
        return
    try:
        archive = tarfile.TarFile(
            fileobj=cast("BinaryIO", source), mode="r", encoding="utf-8", errors="surrogateescape"
        )
        info = archive.firstmember  # type: ignore[attr-defined]
        links = _Links()
        allowed, count, size = limits(), 0, 0
        while info is not None:
            if not trusted:
                count += 1
                allowed.count(count)
                # Of a sparse file most is not in the archive; the rest has been measured, or is as long as it says.
                if info.issparse():
                    size += info.size
                    allowed.measure(size, archive.offset)
            entry = _entry(info, source, links, trusted=trusted)
            if entry is not None:
                yield entry
            source.seek(archive.offset)
            info = _next(archive)
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError) as error:
        raise CorruptError(f"this is not a sound tar archive: {error}") from None


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member. `TarFile.next` takes garbage after the first member for the end."""
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        # Zeros, or an end of file where a member could begin: Go's reader takes both for the end.
        return None


def _entry(info: tarfile.TarInfo, source: _Source, links: _Links, *, trusted: bool) -> Entry | None:
    """One member as an entry; None for what only belongs to the archive."""
    path = _clean(info.name.encode("utf-8", "surrogateescape"), "name")
    if not trusted:
        check_path(path)
    parent, _, name = path.rpartition(b"/")
    parent = links.resolve(parent)
    path = parent + b"/" + name if parent else name
    if name.startswith(_WHITEOUT):
        return _marker(parent, name, path)
    if _HIDDEN in b"/" + path:
        return None
    kind = _KINDS.get(info.type)
    if kind is None:
        if info.type == b"V":
            return None
        raise CorruptError(f"{_show(path)} is of type {info.type!r}, which no layer can hold")
    if not path and kind is not Kind.DIRECTORY:
        raise CorruptError("a tar member has no name")
    links.placed(path, kind, info.linkname)
    size, target, device, content = 0, b"", (0, 0), None
    if kind is Kind.FILE:
        size = info.size
        content = _Member(source, info, path)
    elif kind is Kind.SYMLINK:
        target = info.linkname.encode("utf-8", "surrogateescape")
        if not trusted:
            check_target(target)
    elif kind is Kind.HARDLINK:
        target = _clean(info.linkname.encode("utf-8", "surrogateescape"), "hardlink target")
        folder, _, last = target.rpartition(b"/")
        folder = links.resolve(folder)
        target = folder + b"/" + last if folder else last
    elif kind in {Kind.CHARACTER, Kind.BLOCK}:
        device = (info.devmajor, info.devminor)
    if not (0 <= info.uid < 1 << 32 and 0 <= info.gid < 1 << 32):
        raise CorruptError(f"{_show(path)} belongs to {info.uid}:{info.gid}, which are no ids")
    return Entry(
        path, kind, info.mode & 0o7777, info.uid, info.gid, size, _time(info), target, device,
        _xattrs(info.pax_headers) if info.pax_headers else (), content,
    )  # fmt: skip


_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}

_HIDDEN = b"/.wh..wh."
"""AUFS kept its own files under such names, and old layers have them."""


def _marker(parent: bytes, name: bytes, path: bytes) -> Entry | None:
    if name == _OPAQUE:
        return Entry(parent, Kind.OPAQUE)
    if name.startswith(_HIDDEN[1:]):
        return None
    gone = name[len(_WHITEOUT) :]
    if gone in {b"", b".", b".."}:
        raise CorruptError(f"{_show(path)} deletes nothing that has a name")
    return Entry(parent + b"/" + gone if parent else gone, Kind.WHITEOUT)


def _clean(name: bytes, what: str) -> bytes:
    """A member's name in the form of `Entry.path`."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts or b"\0" in name:
        raise CorruptError(f"the {what} {_show(name)!r} of a tar member leads out of the archive")
    return b"/".join(parts)


def _time(info: tarfile.TarInfo) -> int:
    """Nanoseconds since the epoch. tarfile makes PAX times floats, which hold no nanoseconds of this century."""
    text = info.pax_headers.get("mtime")
    if text is None:
        seconds, nanoseconds = int(info.mtime), 0
    else:
        whole, _, fraction = text.partition(".")
        seconds = int(whole or "0")
        nanoseconds = int((fraction + "000000000")[:9])
        if whole.startswith("-"):
            nanoseconds = -nanoseconds
    # What a kernel can be told: 64 bits of seconds.
    limit = 1 << 62
    return max(-limit, min(seconds, limit)) * _SECOND + nanoseconds


def _xattrs(headers: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    found = [
        (key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
        for key, value in headers.items()
        if key.startswith(_XATTR)
    ]
    attributes = tuple(
        sorted(
            (key, portable_capability(value) if key == "security.capability" else value)
            for key, value in found
            if kept(key)
        )
    )
    check_xattrs(attributes)
    return attributes


class _Links:
    """The symlinks of a layer so far. Nearly always no member lies below one, which costs a set look-up to see."""

    def __init__(self) -> None:
        self._targets: dict[bytes, bytes] = {}
        self._known: dict[bytes, bytes] = {b"": b""}

    def placed(self, path: bytes, kind: Kind, target: str) -> None:
        """A member was placed at a resolved path: it may be a link, or may have replaced one."""
        if kind is Kind.SYMLINK:
            self._targets[path] = target.encode("utf-8", "surrogateescape")
            self._known = {b"": b""}
        elif path in self._targets:
            del self._targets[path]
            self._known = {b"": b""}

    def resolve(self, path: bytes) -> bytes:
        """The directory `path` with every link followed, inside the root."""
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._walk(path) if self._targets else path
        return known

    def _walk(self, path: bytes) -> bytes:
        done: list[bytes] = []
        left = path.split(b"/")[::-1]
        hops = 0
        while left:
            part = left.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                del done[-1:]
                continue
            done.append(part)
            target = self._targets.get(b"/".join(done))
            if target is None:
                continue
            hops += 1
            if hops > _MAX_LINKS:
                raise CorruptError(f"{_show(path)} leads through symlinks that go round in a circle")
            done = [] if target.startswith(b"/") else done[:-1]
            left.extend(target.split(b"/")[::-1])
        return b"/".join(done)


class _Source:
    """A forward-only stream, with the calls of a file that `tarfile` makes: read, tell, seek."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._start = 0

    def peek(self) -> bytes:
        """Some of the bytes to come; none at the end."""
        if self._at == len(self._buffer):
            self._start += self._at
            self._buffer = self._stream.read(PIECE) or b""
            self._at = 0
        return self._buffer

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end. What is read so is a header; contents come in pieces."""
        if size > HEADER:
            raise LimitError(f"a header in it has {size} bytes")
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """`size` bytes as they come, fewer only at the end."""
        while size > 0:
            buffer = self.peek()
            if not buffer:
                return
            piece = buffer[self._at : self._at + size] if self._at or size < len(buffer) else buffer
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def tell(self) -> int:
        """How many bytes have gone by."""
        return self._start + self._at

    def seek(self, position: int) -> int:
        """Go on at `position`."""
        size = position - self.tell()
        if size < 0:
            raise CorruptError("a tar member refers back to bytes that have gone by")
        inside = min(size, len(self._buffer) - self._at)
        self._at += inside
        size -= inside
        skip = getattr(self._stream, "skip", None)
        if size > PIECE and skip is not None and skip(size):
            self._start += self._at + size
            self._buffer = b""
            self._at = 0
            return position
        for piece in self.pieces(size):
            size -= len(piece)
        if size:
            raise CorruptError("the tar archive ends too early")
        return position


class _Member(Pieces):
    """The content of the member that a `_Source` stands at."""

    def __init__(self, source: _Source, info: tarfile.TarInfo, path: bytes) -> None:
        self._source = source
        self._info = info
        self._path = path

    def open(self) -> BinaryIO:
        return cast("BinaryIO", io.BufferedReader(PiecesReader(self.pieces()), 1 << 16))

    def pieces(self) -> Iterator[bytes]:
        if self._source.tell() != self._info.offset_data:
            raise CorruptError(f"{_show(self._path)} of a tar archive was read twice, or too late")
        return self._sparse() if self._info.issparse() else self._plain()

    def _plain(self) -> Iterator[bytes]:
        left = self._info.size
        for piece in self._source.pieces(left):
            left -= len(piece)
            yield piece
        if left:
            raise self._short()

    def _sparse(self) -> Iterator[bytes]:
        """Zeros where GNU tar left them out. https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html."""
        at = 0
        # Unused places of the header's table are in the list as well.
        segments = [segment for segment in cast("list[tuple[int, int]]", self._info.sparse or []) if segment[1]]
        for offset, length in (*segments, (self._info.size, 0)):
            while at < offset:
                count = min(offset - at, PIECE)
                yield bytes(count)
                at += count
            for piece in self._source.pieces(length):
                at += len(piece)
                yield piece
            if at != offset + length:
                raise self._short()

    def _short(self) -> CorruptError:
        return CorruptError(f"{_show(self._path)} ends too early in the tar archive")


class PiecesReader(io.RawIOBase):
    """A stream of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


# ---------------------------------------------------------------- stored layers


class Unpacked:
    """A stored layer, being read: `entries`, once; a context manager.

    Another thread reads ahead, unpacks and hashes. After the last entry the digests of the blob and of the unpacked
    bytes are checked: CorruptError from the iterator's end when one is not what it should be. So whatever was made of
    the entries counts only then. A layer that has no listing yet was made by somebody else and is read within limits.
    """

    def __init__(self, store: Store, layer: Layer) -> None:
        self._layer = layer
        self._trusted = has_listing(store, layer.diff_id)
        self._ahead = _Ahead(store.open_blob(layer.descriptor), self._named, trusted=self._trusted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        self._ahead.close()

    @property
    def entries(self) -> Iterator[Entry]:
        """See the class."""
        try:
            yield from read(cast("BinaryIO", self._ahead), trusted=self._trusted)
        except LimitError as error:
            raise self._named(error) from None
        while self._ahead.read(PIECE):
            pass
        found = self._ahead.digest
        if found != self._layer.diff_id:
            raise CorruptError(
                f"the layer {self._layer.descriptor.digest} unpacks to {found} instead of {self._layer.diff_id}"
            )

    def _named(self, error: LimitError) -> LimitError:
        """The error with the layer's name in it, once."""
        start = f"the layer {self._layer.descriptor.digest}: "
        return error if error.message.startswith(start) else LimitError(start + error.message, error.hint)


def unpacked(store: Store, layer: Layer) -> Unpacked:
    """The layer's blob, to be read. Raises NotFoundError and CorruptError as `Store.open_blob` does."""
    return Unpacked(store, layer)


class _Ahead(io.RawIOBase):
    """A blob, unpacked and hashed by a thread that is a few pieces ahead."""

    def __init__(self, blob: BinaryIO, named: Callable[[LimitError], LimitError], *, trusted: bool) -> None:
        self._blob = blob
        self._named = named
        self._trusted = trusted
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)
        self._hash = hashlib.sha256()
        self._rest = b""
        self._ended = False
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="unpack", daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        """Of the unpacked bytes, after the last was read."""
        return "sha256:" + self._hash.hexdigest()

    def read(self, size: int | None = -1) -> bytes:
        if not self._rest and not self._ended:
            got = self._queue.get()
            if isinstance(got, BaseException):
                self._ended = True
                raise got
            self._rest = got
            self._ended = not got
        if size is None or size < 0 or size >= len(self._rest):
            data, self._rest = self._rest, b""
        else:
            data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        if not self.closed:
            self._stopped = True
            # The thread may be waiting for room.
            while self._thread.is_alive():
                try:
                    self._queue.get(timeout=0.01)
                except queue.Empty:
                    continue
            self._thread.join()
            self._blob.close()
        super().close()

    def _work(self) -> None:
        try:
            with decompressed(self._blob, trusted=self._trusted) as plain:
                while not self._stopped and (data := plain.read(PIECE)):
                    self._hash.update(data)
                    self._queue.put(data)
            # A decoder may stop before the end of the blob, which has to be read for its digest.
            while not self._stopped and self._blob.read(PIECE):
                pass
            self._queue.put(b"")
        except LimitError as error:
            self._queue.put(self._named(error))
        except BaseException as error:  # raised again in the thread that reads
            self._queue.put(error)


def listing(store: Store, layer: Layer) -> tuple[Entry, ...]:
    """What the layer holds: its entries, with digests and without contents.

    From the listing that is kept in the store, else from the place `Store.elsewhere` where the layer lies, else by one
    pass over the blob, which verifies it and leaves a listing. Raises NotFoundError when the blob is missing too,
    CorruptError when it is not what its digests say.
    """
    data = _listing_data(store, layer)
    found = listings.decode(data) if data is not None else None
    return _listed(store, layer) if found is None else found


def listed_traits(store: Store, layer: Layer) -> dict[int, Traits]:
    """What the bytes of the layer's files say of them, by the number of the entry in `listing`. Raises as that does."""
    found = listings.decode_traits(listing_data(store, layer))
    return {} if found is None else found


def listing_data(store: Store, layer: Layer) -> bytes:
    """The listing as `listings.encode` made it. Raises as `listing` does."""
    data = _listing_data(store, layer)
    if data is not None and listings.is_sound(data):
        return data
    entries = _listed(store, layer)
    return _listing_data(store, layer) or listings.encode(entries)


def _listing_data(store: Store, layer: Layer) -> bytes | None:
    try:
        with open(_listing_path(store, layer.diff_id), "rb") as file:
            return file.read()
    except FileNotFoundError:
        # Not kept here: it is as true as whoever wrote it, and others will believe what the store has.
        return None if store.elsewhere is None else store.elsewhere.listing(layer)


def _listed(store: Store, layer: Layer) -> tuple[Entry, ...]:
    """Make a listing by one pass over the blob."""
    seen: dict[int, Traits] = {}
    with unpacked(store, layer) as source:
        found = tuple(hashed(source.entries, seen))
    _remember(store, layer.diff_id, found, seen)
    return found


def hashed(entries: Iterable[Entry], seen: dict[int, Traits] | None = None) -> Iterator[Entry]:
    """The entries without their contents, which are read for their digests, and for `seen`, as in `pack`."""
    for number, entry in enumerate(entries):
        if entry.kind is Kind.FILE:
            content = _Hashed(entry)
            for _ in content.pieces():
                pass
            if seen is not None and (found := content.look.found()) is not None:
                seen[number] = found
            yield replace(entry, content=None, digest=content.digest.hexdigest())
        else:
            yield entry


def recorded(entries: Iterable[Entry], store: Store, layer: Layer) -> Iterator[Entry]:
    """The entries of a stored layer, passed on; its listing is left in the store at the end.

    The reader of these entries reads the content of each file. Nothing is left when the entries end in an error.
    """
    found: list[Entry] = []
    seen: dict[int, Traits] = {}
    for entry in entries:
        if entry.kind is Kind.FILE:
            content = _Hashed(entry)
            yield replace(entry, content=content)
            if (facts := content.look.found()) is not None:
                seen[len(found)] = facts
            found.append(replace(entry, content=None, digest=content.digest.hexdigest()))
        else:
            yield entry
            found.append(entry)
    _remember(store, layer.diff_id, tuple(found), seen)


class _Hashed(Pieces):
    """A content that is hashed and looked at when it is read."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self.digest = hashlib.sha256()
        self.look = traits.Look(entry.path)

    def open(self) -> BinaryIO:
        return cast("BinaryIO", io.BufferedReader(PiecesReader(self.pieces()), 1 << 16))

    def pieces(self) -> Iterator[bytes]:
        for piece in chunks(self._entry):
            self.digest.update(piece)
            self.look.add(piece)
            yield piece


def has_listing(store: Store, diff_id: Digest) -> bool:
    """Whether the store has a listing of the layer."""
    return os.path.exists(_listing_path(store, diff_id))


def import_tar(stream: BinaryIO, store: Store) -> Written:
    """A root file system's tar, compressed or not, as a layer in the store.

    Directories that the archive has no member for come in as root's, mode 0755, and time 0. Raises CorruptError as
    `read` does, StoreError when it can not be written.
    """
    with decompressed(stream) as plain:
        return write(_whole(plain), store)


def _whole(plain: BinaryIO) -> Iterator[Entry]:
    """The entries of a tar with all their parents, read to the stream's end, where compressions have a checksum."""
    yield from _with_parents(read(plain))
    while plain.read(PIECE):
        pass


def _with_parents(entries: Iterable[Entry]) -> Iterator[Entry]:
    known = {b""}
    for entry in entries:
        missing: list[bytes] = []
        parent = entry.path if entry.kind is Kind.OPAQUE else entry.parent
        while parent not in known:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for path in reversed(missing):
            known.add(path)
            yield Entry(path, Kind.DIRECTORY, 0o755)
        if entry.kind is Kind.DIRECTORY:
            known.add(entry.path)
        yield entry


def _listing_path(store: Store, diff_id: Digest) -> str:
    return os.path.join(store.root, "listings", diff_id.removeprefix("sha256:"))


def _remember(store: Store, diff_id: Digest, entries: tuple[Entry, ...], seen: Mapping[int, Traits]) -> None:
    store.replace_file("listings/" + diff_id.removeprefix("sha256:"), listings.encode(entries, seen))


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")

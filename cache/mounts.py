"""Folders of `RUN --mount=type=cache` kept on a shelf, so that a fresh machine gets its package caches back.

A folder is cut into *packs*: runs of entries of its walk, each a compressed tar that is called by what it holds (names,
kinds, modes, owners, times, contents), before compression. Where a run ends follows from the names in it, so a file
that comes or goes changes one pack and not all that follow; a large file is a pack of its own. A pack that an earlier
save has made is found by what it holds, and neither packed nor sent again.

The sheet `mount-<hash of the id>` lists the packs of a folder, with the time at which anything of each was last read or
written; what is over the limit goes, the least recently used first. Two machines that save one folder at a time do not
undo each other: what somebody has added since the folder was restored or saved here, of which a note lies beside the
folder (`shelves.json`), stays in the list, below what is saved. In
the moment between reading that list and writing it another machine's additions may get lost; they are a cache's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cache import listings
from cache.compression import GZIP
from cache.disk import apply, entry_of
from cache.entries import Entry, FileContent, Kind
from cache.errors import CorruptError, StoreError
from cache.layers import pack, read
from cache.oci import LAYER_GZIP, Descriptor, Digest, Manifest, digest_of
from cache.removal import remove_tree
from cache.shelves import read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cache.disk import Dialect
    from cache.shelves import Shelf
    from cache.store import Store

FOLDER = "application/vnd.pybuild.mount.v1+json"

_LARGE = 2 << 20
"""Bytes of a file that is a pack of its own, and of which a pack of several is full."""
_RUN = 64
"""About so many entries make a pack."""
_DOCUMENT = 8 << 20
_NOTE = "shelves.json"
_SHELVES = 8
"""Of so many shelves it is noted what a folder has from them."""
_PIECE = 1 << 20


class Pack(Struct, frozen=True):
    """A part of a folder. holds: a digest of what is in it. used: the last time, in seconds since 1970."""

    holds: str
    blob: Descriptor
    used: float


class Folder(Struct, frozen=True):
    """What a shelf has of a folder. packs: where two have one path, the later one's counts."""

    id: str
    packs: tuple[Pack, ...] = ()


class Saved(Struct, frozen=True):
    """What saving a folder came to. left_out: bytes of packs for which there was no room. sent: bytes moved."""

    packs: int
    size: int
    left_out: int
    sent: int


def sheet_name(identity: str) -> str:
    """The name of the sheet of the folder of this id."""
    return "mount-" + hashlib.sha256(os.fsencode(identity)).hexdigest()


def look(shelf: Shelf, identity: str) -> Folder | None:
    """What the shelf has of the folder of this id; None for nothing. CorruptError for what is no such list."""
    sheet = shelf.find(sheet_name(identity))
    if sheet is None:
        return None
    try:
        found = msgspec.json.decode(read_small(shelf, sheet.config, _DOCUMENT), type=Folder)
    except msgspec.DecodeError as error:
        raise CorruptError(f"a cache mount's list in {shelf.title} is damaged: {error}") from None
    if found.id != _shown(identity):
        raise CorruptError(f"a cache mount's list in {shelf.title} is that of {found.id!r}")
    return found


def restore(shelf: Shelf, folder: Folder, place: Path, dialect: Dialect, store: Store) -> int:
    """Lay out a folder in the empty directory `place`; the bytes fetched.

    Beside it stays a note of what was laid out, for `save`. Raises StoreError when something of it can not be had
    whole; the directory is empty then, too.
    """
    fetched = 0
    temporary = store.temporary()
    try:
        for each in folder.packs:
            with open(temporary, "w+b") as file:
                checked = _Checked(file, each.blob)
                shelf.read(each.blob, checked)
                checked.finish(shelf.title)
                file.seek(0)
                apply((entry for entry in read(file) if entry.kind not in _MARKS | _DEVICES), place, dialect)
            fetched += each.blob.size
    except (OSError, StoreError) as error:
        for name in os.listdir(place):
            path = place / name
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()
        if isinstance(error, OSError):
            raise StoreError(f"can not write {place}: {error.strerror}") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _remember(shelf, place, {each.holds for each in folder.packs})
    return fetched


_MARKS = frozenset({Kind.WHITEOUT, Kind.OPAQUE})
_DEVICES = frozenset({Kind.CHARACTER, Kind.BLOCK, Kind.FIFO})


def save(shelf: Shelf, identity: str, place: Path, store: Store, *, limit: int, stop: Callable[[], bool]) -> Saved:
    """Have on the shelf what lies in `place`, packed in no more than `limit` bytes.

    stop: whether to give up, with nothing changed. Files that change while they are read are left out, with the others
    of their pack.
    """
    old = look(shelf, identity) or Folder(_shown(identity))
    by_content = {each.holds: each for each in old.packs}
    before = _known(shelf, place)
    now = time.time()
    wanted: list[_Wanted] = []
    for run in _runs(place):
        entries = tuple(_described(run.entries))
        if stop():
            return Saved(0, 0, 0, 0)
        if entries:
            holds = digest_of(listings.encode(entries))
            earlier = by_content.get(holds)
            # Reading a file moves its access time only past the time of its last change, or once a day.
            used = now if earlier is None or run.folders else max(earlier.used, run.read)
            wanted.append(_Wanted(holds, used, run, earlier.blob if earlier is not None else None))
    own = {each.holds for each in wanted}
    others = [each for each in old.packs if each.holds not in before and each.holds not in own]
    wanted = [*(_Wanted(each.holds, each.used, _Run([]), each.blob) for each in others), *wanted]
    kept: dict[int, Pack] = {}
    left_out = sent = 0
    left = limit
    temporary = store.temporary()
    try:
        # Folders first: without them the files below would come back into folders of another owner.
        for number, each in sorted(enumerate(wanted), key=lambda item: (not item[1].run.folders, -item[1].used)):
            if stop():
                return Saved(0, 0, 0, 0)
            blob = each.blob or _packed(each.run.entries, temporary)
            if blob is None:
                continue
            if blob.size > left:
                left_out += blob.size
                continue
            if each.blob is None and shelf.put(blob, FileContent(os.fsencode(temporary)).open):
                sent += blob.size
            left -= blob.size
            kept[number] = Pack(each.holds, blob, each.used)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    fresh = Folder(_shown(identity), tuple(kept[number] for number in sorted(kept)))
    if [each.holds for each in fresh.packs] != [each.holds for each in old.packs] or _older(old, fresh):
        sent += _put_list(shelf, identity, fresh)
    _remember(shelf, place, own)
    return Saved(len(kept), limit - left, left_out, sent)


def _known(shelf: Shelf, place: Path) -> set[str]:
    """The packs of the shelf that were in the folder once: what of them is not in it now has been taken out here."""
    with suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode((place.parent / _NOTE).read_bytes(), type=dict[str, list[str]])
        return set(kept.get(shelf.title, ()))
    return set()


def _remember(shelf: Shelf, place: Path, packs: set[str]) -> None:
    """Note which packs of the shelf are in the folder: a file beside it. That it can not be written is no matter."""
    path = place.parent / _NOTE
    kept: dict[str, list[str]] = {}
    with suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    kept.pop(shelf.title, None)
    kept[shelf.title] = sorted(packs)
    while len(kept) > _SHELVES:
        del kept[next(iter(kept))]
    temporary = path.with_name(f"{_NOTE}.{os.getpid()}")
    with suppress(OSError):
        temporary.write_bytes(msgspec.json.encode(kept))
        temporary.replace(path)


def _older(old: Folder, fresh: Folder) -> bool:
    """Whether the times in the list are worth writing it anew: to the day."""
    return any(after.used - before.used > 86400 for before, after in zip(old.packs, fresh.packs, strict=True))


def _put_list(shelf: Shelf, identity: str, folder: Folder) -> int:
    import io

    data = msgspec.json.encode(folder)
    config = Descriptor(FOLDER, digest_of(data), len(data))
    sent = len(data) if shelf.put(config, lambda: io.BytesIO(data)) else 0
    layers = tuple(dict.fromkeys(each.blob for each in folder.packs))
    shelf.keep(sheet_name(identity), Manifest(config, layers or (config,)))
    return sent


def _shown(identity: str) -> str:
    """The id as JSON can hold it."""
    return os.fsencode(identity).decode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- packs


class _Run(Struct):
    """Entries that make one pack. read: when any of them was last read or written. folders: there are no others."""

    entries: list[Entry]
    size: int = 0
    read: float = 0.0
    folders: bool = False


class _Wanted(Struct):
    """A pack that may be kept. blob: where it has been made already."""

    holds: str
    used: float
    run: _Run
    blob: Descriptor | None


def _runs(place: Path) -> Iterator[_Run]:
    """What lies below a folder, cut into runs: first the folders, then the rest."""
    folders: list[tuple[Entry, float]] = []
    rest: list[tuple[Entry, float]] = []
    for entry, used in _walk(place):
        (folders if entry.kind is Kind.DIRECTORY else rest).append((entry, used))
    yield from _cut(folders, folders=True)
    yield from _cut(rest, folders=False)


def _cut(found: list[tuple[Entry, float]], *, folders: bool) -> Iterator[_Run]:
    run = _Run([], folders=folders)
    for entry, used in found:
        if entry.size >= _LARGE:
            yield _Run([entry], entry.size, used)
            continue
        run.entries.append(entry)
        run.size += entry.size
        run.read = max(run.read, used)
        if run.size >= _LARGE or int.from_bytes(hashlib.sha256(entry.path).digest()[:4], "big") % _RUN == 0:
            yield run
            run = _Run([], folders=folders)
    if run.entries:
        yield run


def _walk(place: Path) -> Iterator[tuple[Entry, float]]:
    """What lies below a folder, each directory before what is in it, sorted; and when it was last used."""
    queue = [b""]
    top = os.fsencode(place)
    while queue:
        folder = queue.pop()
        try:
            names = sorted(os.listdir(os.path.join(top, folder) if folder else top))
        except FileNotFoundError:
            continue
        below = []
        for name in names:
            path = folder + b"/" + name if folder else name
            full = top + b"/" + path
            try:
                status = os.lstat(full)
                found = entry_of(path, full, status)
            except FileNotFoundError:
                continue
            if found is None or found[0].kind in _DEVICES or name.startswith(b".wh."):
                continue
            entry = found[0]
            if entry.kind is Kind.FILE:
                entry = replace(entry, content=_Unnoticed(full))
            elif entry.kind is Kind.DIRECTORY:
                below.append(path)
            used = max(status.st_atime, status.st_mtime) if stat.S_ISREG(status.st_mode) else 0.0
            yield entry, used
        queue += reversed(below)


def _described(entries: list[Entry]) -> Iterator[Entry]:
    """The entries as a tar would say them, files with the digests of their contents; none where one can not be read."""
    found = []
    try:
        for entry in entries:
            digest = ""
            if entry.kind is Kind.FILE:
                assert entry.content is not None
                state = hashlib.sha256()
                with entry.content.open() as stream:
                    while data := stream.read(_PIECE):
                        state.update(data)
                digest = state.hexdigest()
            # Whole seconds, as a tar has them: else a folder that was restored would be another one.
            seconds = entry.mtime_ns // 1_000_000_000 * 1_000_000_000
            # The time of a folder changes with what is in it, and nobody looks at it.
            seconds = 0 if entry.kind is Kind.DIRECTORY else seconds
            found.append(replace(entry, content=None, digest=digest, mtime_ns=seconds))
    except OSError:
        return
    yield from found


def _packed(entries: list[Entry], path: str) -> Descriptor | None:
    """Write the pack of some entries to a file; None when one of them changed meanwhile."""
    with open(path, "wb") as file:
        compressor = GZIP.compressor()
        state = hashlib.sha256()
        size = 0

        def add(data: bytes) -> None:
            nonlocal size
            state.update(data)
            size += len(data)
            file.write(data)

        try:
            for _ in pack(entries, lambda data: add(compressor.compress(data))):
                pass
        except StoreError:
            return None
        add(compressor.flush())
    return Descriptor(LAYER_GZIP, Digest("sha256:" + state.hexdigest()), size)


class _Unnoticed(Struct, frozen=True):
    """A file whose time of last access stays what it was, where that is allowed: it tells when a RUN last read it."""

    path: bytes

    def open(self) -> BinaryIO:
        """See `cache.entries.Content.open`."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            file = os.open(self.path, flags | os.O_NOATIME)
        except PermissionError:
            return FileContent(self.path).open()
        return os.fdopen(file, "rb", buffering=0)


class _Checked:
    """A file that is being filled with a blob."""

    def __init__(self, file: BinaryIO, blob: Descriptor) -> None:
        self._file = file
        self._blob = blob
        self._state = hashlib.sha256()
        self._left = blob.size

    def write(self, data: bytes, /) -> None:
        """Take bytes."""
        self._left -= len(data)
        if self._left < 0:
            raise CorruptError(f"the blob {self._blob.digest} has more than {self._blob.size} bytes")
        self._state.update(data)
        self._file.write(data)

    def finish(self, title: str) -> None:
        """CorruptError when the bytes were not those of the blob."""
        if self._left or self._state.hexdigest() != self._blob.digest.removeprefix("sha256:"):
            raise CorruptError(f"the blob {self._blob.digest} of {title} is damaged: its bytes have another digest")

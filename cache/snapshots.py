"""Directories by chain id: what a RUN stands on, and what it changed.

`Root` describes a root file system; an executor mounts it. Nothing here mounts anything.

    <store>/snapshots/<first 24 hex digits of a chain id>/    overlay: the chain's topmost layer, laid out
    <store>/snapshots/.kind                                   by whom: see `_claim`
    <store>/tmp/<pid>-<random>/                               a root being worked in, or a layer being laid out

A layer's directory is complete and in place by one rename, so several threads and processes may make the same one.
Lifecycle: `prepare` gives a `Working`; an executor runs in its `root`; `changes` reads what happened; `layers.write`
makes a layer of it; `commit` keeps the result for the next `prepare`, or `discard` throws it away. A directory made by
`commit` has what the layer says, times to the nanosecond where the layer has whole seconds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from cache.contents import chunks
from cache.disk import OWNER, Dialect, apply, attributes, entry_of
from cache.entries import Entry, Kind
from cache.errors import StoreError
from cache.layers import has_listing, recorded, unpacked
from cache.oci import chain_id, chain_ids
from cache.removal import TRASH, remove_tree
from cache.tree import Tree, directory_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from cache.entries import Files
    from cache.layers import Written
    from cache.oci import Digest, Layer
    from cache.store import Store

__all__ = [
    "DirectoryRoot",
    "OverlayRoot",
    "OverlaySnapshots",
    "Root",
    "Seen",
    "Snapshots",
    "Working",
    "WorkingCopySnapshots",
    "contents_of",
]


class OverlayRoot(Struct, frozen=True):
    """A union of directories. base: the folder that the relative `lowers` (topmost first) are in.

    upper: where writes go; work: overlayfs's own, an empty folder of the same file system. userxattr: mount with
    `userxattr`, so that overlayfs marks things in `user.overlay.*`, as it must inside a user namespace. To be mounted
    with `redirect_dir=nofollow` and `metacopy=off`: what these do can not be said in a layer.
    """

    base: Path
    lowers: tuple[str, ...]
    upper: Path
    work: Path
    userxattr: bool


class DirectoryRoot(Struct, frozen=True):
    """A root file system that is simply a directory."""

    path: Path


Root = OverlayRoot | DirectoryRoot


class Working(ABC):
    """A root to work in. A context manager: what was not committed is discarded."""

    @property
    @abstractmethod
    def root(self) -> Root:
        """What to mount and run in."""

    @abstractmethod
    def changes(self) -> Iterator[Entry]:
        """What differs from the layers below, when no process works in the root any more. Does not change the root.

        Entries in the order of a walk, sorted by name; a directory comes when it differs or anything in it does,
        deletions as WHITEOUT and OPAQUE. Files' contents are read from the root, so before `commit`. A root in which
        nothing changed gives none. Sockets are left out. Raises StoreError for what no layer can say.
        """

    @abstractmethod
    def commit(self, written: Written) -> None:
        """Keep the root for the chain that `written`, made of `changes`, continues. Ends this Working."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the root. Nothing to do after `commit` or a first `discard`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class Snapshots(Protocol):
    """Makes roots of layers. Serves several threads at once; raises NotFoundError and CorruptError for bad layers."""

    @property
    def dialect(self) -> Dialect:
        """How deletions are marked in its directories."""
        ...

    def materialise(self, layers: tuple[Layer, ...]) -> None:
        """Do all for a chain that can be done before a root of it is wanted. Idempotent."""
        ...

    def prepare(self, layers: tuple[Layer, ...]) -> Working:
        """A fresh root that shows `layers`; of no layers, an empty one."""
        ...

    def view(self, layers: tuple[Layer, ...]) -> Root:
        """A root that shows `layers`, to be read. It lasts until `close`."""
        ...

    def close(self) -> None:
        """Remove the views. Idempotent."""
        ...


# ---------------------------------------------------------------- overlay


class OverlaySnapshots:
    """One directory for each layer, united by overlayfs: see `Snapshots`.

    userxattr: inside a user namespace. Raises StoreError when builds of another kind, as another user, use this store.
    """

    def __init__(self, store: Store, *, userxattr: bool) -> None:
        self._store = store
        self._userxattr = userxattr
        self._folder = os.path.join(store.root, "snapshots")
        self._lock = threading.Lock()
        self._views: list[Working] = []
        self._claim = _claim(store, self.dialect.opaque)

    @property
    def dialect(self) -> Dialect:
        """See `Snapshots.dialect`."""
        return Dialect.OVERLAY_USER if self._userxattr else Dialect.OVERLAY

    def materialise(self, layers: tuple[Layer, ...]) -> None:
        """Lay out each layer that has no directory yet. Idempotent. CorruptError for a layer that is not sound."""
        chains = chain_ids(tuple(layer.diff_id for layer in layers))
        if not self._missing(chains):
            return
        with self._lock:
            missing = self._missing(chains)
            made: list[_LaidOut] = []
            try:
                if len(missing) > 1:
                    self._lay_out_several(layers, missing, made)
                else:
                    made += [self._lay_out(layers, number) for number in missing]
                for place in sorted(made, key=lambda place: place.number):
                    self._keep(place, chains)
            finally:
                for place in made:
                    remove_tree(place.temporary)

    def prepare(self, layers: tuple[Layer, ...]) -> Working:
        """See `Snapshots.prepare`."""
        self.materialise(layers)
        chains = chain_ids(tuple(layer.diff_id for layer in layers))
        temporary = self._store.temporary()
        os.mkdir(temporary, 0o700)
        top = temporary
        if not chains:
            # Executors may cover the folder that holds the upper: the empty lower must not stand in it.
            top = os.path.join(temporary, "top")
            os.mkdir(top, 0o700)
        upper, work = os.path.join(top, "upper"), os.path.join(top, "work")
        os.mkdir(upper, 0o755)
        os.mkdir(work, 0o700)
        lowers = tuple(directory_name(chain) for chain in reversed(chains))
        if not lowers:
            empty = os.path.join(temporary, "empty")
            os.mkdir(empty)
            _set_up_root(None, empty)
            lowers = (os.path.relpath(empty, self._folder),)
        # The root directory of the union is that of the upper.
        _set_up_root(os.path.join(self._folder, lowers[0]), upper)
        root = OverlayRoot(Path(self._folder), lowers, Path(upper), Path(work), self._userxattr)
        return _OverlayWorking(root, temporary, chains[-1] if chains else None, self.dialect)

    def view(self, layers: tuple[Layer, ...]) -> Root:
        """See `Snapshots.view`. The upper directory is there to be written to or to be left out of the mount."""
        working = self.prepare(layers)
        with self._lock:
            self._views.append(working)
        return working.root

    def close(self) -> None:
        """See `Snapshots.close`."""
        while self._views:
            self._views.pop().discard()
        claim, self._claim = self._claim, -1
        if claim >= 0:
            os.close(claim)

    def __del__(self) -> None:
        if getattr(self, "_claim", -1) >= 0:
            os.close(self._claim)

    # ------------------------------------------------------------ laying out

    def _directory(self, chain: Digest) -> str:
        return os.path.join(self._folder, directory_name(chain))

    def _missing(self, chains: tuple[Digest, ...]) -> list[int]:
        return [number for number, chain in enumerate(chains) if not os.path.isdir(self._directory(chain))]

    def _lay_out_several(self, layers: tuple[Layer, ...], missing: list[int], made: list[_LaidOut]) -> None:
        """Two at a time: unpacking leaves the interpreter lock for half of its time."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2, "unpack") as pool:
            futures = [pool.submit(self._lay_out, layers, number) for number in missing]
            try:
                made.extend(future.result() for future in futures)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                for future in futures:
                    if not future.cancelled() and future.exception() is None and future.result() not in made:
                        made.append(future.result())
                raise

    def _lay_out(self, layers: tuple[Layer, ...], number: int) -> _LaidOut:
        """Unpack one layer into a temporary directory, verified."""
        layer = layers[number]
        place = _LaidOut(number, self._store.temporary())
        os.mkdir(place.temporary, 0o700)
        try:
            os.mkdir(place.content, 0o700)
            with unpacked(self._store, layer) as source:
                entries = _watch_root(source.entries, place)
                if not has_listing(self._store, layer.diff_id):
                    entries = recorded(entries, self._store, layer)
                apply(entries, Path(place.content), self.dialect, Tree(self._store, layers[:number]))
        except BaseException:
            remove_tree(place.temporary)
            raise
        return place

    def _keep(self, place: _LaidOut, chains: tuple[Digest, ...]) -> None:
        """Put a laid out layer in its place. The root directory is as below where the layer says nothing of it."""
        if not place.has_root:
            below = self._directory(chains[place.number - 1]) if place.number else None
            _set_up_root(below, place.content)
        _rename(place.content, self._directory(chains[place.number]))


class _LaidOut(Struct):
    """A layer in a temporary directory. number: its place in the chain. has_root: it has an entry for the root."""

    number: int
    temporary: str
    has_root: bool = False

    @property
    def content(self) -> str:
        return os.path.join(self.temporary, "layer")


def _watch_root(entries: Iterator[Entry], place: _LaidOut) -> Iterator[Entry]:
    for entry in entries:
        if not entry.path and entry.kind is Kind.DIRECTORY:
            place.has_root = True
        yield entry


def _rename(source: str, target: str) -> None:
    """Move a directory to its place, unless another has put one there, which is then the same."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise StoreError(f"can not move {source} to {target}: {error.strerror}") from error


def _set_up_root(source: str | None, directory: str) -> None:
    """Give a root directory the owner, mode, attributes and time of another; without one, root's, 0755 and time 0."""
    if source is None:
        entry = Entry(b"", Kind.DIRECTORY, 0o755)
    else:
        found = entry_of(b"", os.fsencode(source), os.stat(source))
        assert found is not None
        entry = found[0]
    # PLAIN: the directory is not new, so it may have the owner of another.
    apply((entry,), Path(directory), Dialect.PLAIN)


class _OverlayWorking(Working):
    def __init__(self, root: OverlayRoot, temporary: str, parent: Digest | None, dialect: Dialect) -> None:
        self._root = root
        self._temporary = temporary
        self._parent = parent
        self._dialect = dialect
        self._sockets: list[bytes] = []

    @property
    def root(self) -> OverlayRoot:
        return self._root

    def changes(self) -> Iterator[Entry]:
        base = os.fsencode(self._root.base)
        below = [os.path.join(base, os.fsencode(lower)) for lower in self._root.lowers]
        self._sockets = []
        return read_upper(os.fsencode(self._root.upper), below, self._dialect, self._sockets)

    def commit(self, written: Written) -> None:
        # A socket is nothing that the next RUN would find had the layer been pulled.
        for path in self._sockets:
            os.unlink(path)
        target = os.path.join(self._root.base, directory_name(chain_id(self._parent, written.layer.diff_id)))
        _rename(os.fspath(self._root.upper), target)
        self.discard()

    def discard(self) -> None:
        temporary, self._temporary = self._temporary, ""
        if temporary:
            remove_tree(temporary)


def read_upper(
    upper: bytes, lowers: list[bytes], dialect: Dialect, sockets: list[bytes] | None = None
) -> Iterator[Entry]:
    """What an overlay's upper directory says on top of the lowers, topmost first: see `Working.changes`.

    sockets: gets the paths of those that were left out.
    """
    return _Upper(upper, lowers, dialect, [] if sockets is None else sockets).changes()


class _Upper:
    """An overlay's upper directory, read as the entries of a layer."""

    def __init__(self, upper: bytes, lowers: list[bytes], dialect: Dialect, sockets: list[bytes]) -> None:
        self._upper = upper
        self._lowers = lowers
        self._opaque = dialect.opaque
        self._sockets = sockets
        self._inodes: dict[tuple[int, int], bytes] = {}

    def changes(self) -> Iterator[Entry]:
        """See `Working.changes`."""
        # Directories on the way that are as below; they come when something in them does.
        pending: list[Entry] = []
        yield from self._root()
        stack = [(iter(_sorted(self._upper)), b"", self._lowers)]
        while stack:
            names, parent, below = stack[-1]
            item = next(names, None)
            if item is None:
                stack.pop()
                if pending and pending[-1].path == parent:
                    pending.pop()
                continue
            path = parent + b"/" + item.name if parent else item.name
            status = item.stat(follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                if _seen(below, item.name) is not None:
                    yield from pending
                    pending.clear()
                    yield Entry(path, Kind.WHITEOUT)
                continue
            found = entry_of(path, item.path, status)
            if found is None:
                self._sockets.append(item.path)
                continue
            entry, marks = found
            if entry.kind is Kind.DIRECTORY:
                self._refuse(path, marks)
                inner = _merged(below, item.name, self._opaque)
                hides = marks.get(self._opaque) == b"y"
                gone = hides and _seen(below, item.name) is not None
                if hides:
                    inner = []
                if inner and _like(entry, inner[0]):
                    pending.append(entry)
                else:
                    yield from pending
                    pending.clear()
                    yield entry
                if gone:
                    yield Entry(path, Kind.OPAQUE)
                stack.append((iter(_sorted(item.path)), path, inner))
                continue
            if status.st_nlink > 1:
                first = self._inodes.setdefault((status.st_dev, status.st_ino), path)
                if first != path:
                    entry = replace(entry, kind=Kind.HARDLINK, target=first, size=0, content=None, xattrs=())
            elif _unchanged(entry, below):
                continue
            yield from pending
            pending.clear()
            yield entry

    def _root(self) -> Iterator[Entry]:
        """The root directory, if it is other than below."""
        found = entry_of(b"", self._upper, os.stat(self._upper))
        assert found is not None
        if not _like(found[0], self._lowers[0]):
            yield found[0]

    @staticmethod
    def _refuse(path: bytes, marks: dict[str, bytes]) -> None:
        if any(name.endswith(".overlay.redirect") for name in marks):
            raise StoreError(
                f"overlayfs moved the directory {path.decode('utf-8', 'backslashreplace')} without copying it",
                "a layer can not say that: the root has to be mounted with redirect_dir=nofollow",
            )


def _sorted(path: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as found:
            return sorted(found, key=lambda item: item.name)
    except OSError as error:
        raise StoreError(f"can not read the directory {os.fsdecode(path)}: {error.strerror}") from error


def _seen(lowers: list[bytes], name: bytes) -> os.stat_result | None:
    """What the lower directories show under a name."""
    for lower in lowers:
        try:
            status = os.lstat(lower + b"/" + name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return None
        return status
    return None


def _merged(lowers: list[bytes], name: bytes, opaque: str) -> list[bytes]:
    """The lower directories that overlayfs unites under a name: down to one that is opaque, or to what is none."""
    found: list[bytes] = []
    for lower in lowers:
        path = lower + b"/" + name
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            break
        found.append(path)
        with suppress(OSError):
            if os.getxattr(path, opaque, follow_symlinks=False) == b"y":
                break
    return found


def _like(entry: Entry, lower: bytes) -> bool:
    """Whether a directory has the metadata of one below; its time says only that something in it changed."""
    found = entry_of(entry.path, lower, os.lstat(lower))
    if found is None:
        return False
    other = found[0]
    return (entry.mode, entry.uid, entry.gid, entry.xattrs) == (other.mode, other.uid, other.gid, other.xattrs)


def _unchanged(entry: Entry, below: list[bytes]) -> bool:
    """Whether a file is a mere copy of that below: chmod to the mode that it has, and the like, copy it up.

    Its bytes count, not its times alone: a program may set those.
    """
    if not below or entry.kind not in {Kind.FILE, Kind.SYMLINK}:
        return False
    status = _seen(below, entry.name)
    if status is None or status.st_mtime_ns != entry.mtime_ns or status.st_nlink > 1:
        return False
    for lower in below:
        full = lower + b"/" + entry.name
        if os.path.lexists(full):
            found = entry_of(entry.path, full, status)
            if found is None or replace(found[0], content=entry.content) != entry:
                return False
            return entry.kind is Kind.SYMLINK or all(
                one == other for one, other in zip(chunks(entry), chunks(found[0]), strict=True)
            )
    return False


def _claim(store: Store, dialect: str) -> int:
    """Say who makes the snapshots of this store; a descriptor to keep open while that holds.

    Directories laid out as another user, or with the marks of the other kind of overlay, would be read wrongly: owners
    are those of the user namespace. What another kind of build left is removed. Raises StoreError while such a build
    runs.
    """
    import fcntl

    with open("/proc/self/uid_map", encoding="ascii") as file:
        wanted = f"{dialect} {os.geteuid()} {' '.join(file.read().split())}".encode()
    lock = os.open(os.path.join(store.root, "snapshots", ".kind"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if os.pread(lock, 4096, 0) == wanted:
            return lock
        for _ in range(50):
            # A lock is not made exclusive in place: it is given up first, so another may have come in between.
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.pread(lock, 4096, 0) != wanted:
                    _forget_all(store)
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, wanted, 0)
                fcntl.flock(lock, fcntl.LOCK_SH)
                return lock
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.pread(lock, 4096, 0) == wanted:
                return lock
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.02)
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    raise StoreError(
        f"a build by another kind of user is using {store.root}",
        "wait for its end, or choose another folder with --root",
    )


def _forget_all(store: Store) -> None:
    """Remove every snapshot; each can be made again."""
    folder = os.path.join(store.root, "snapshots")
    for name in os.listdir(folder):
        if not name.startswith("."):
            moved = os.path.join(store.root, "tmp", TRASH + os.urandom(8).hex())
            os.rename(os.path.join(folder, name), moved)
            # Another user's may resist; whoever prunes as that user removes it.
            with suppress(StoreError):
                remove_tree(moved)


# ---------------------------------------------------------------- working copy

_Stamp = tuple[object, ...]
"""What changes of an inode whenever anything of it does. Of a directory: mode, owner and attributes."""


class WorkingCopySnapshots:
    """A full copy of all layers for each root, and its changes by comparing two scans: see `Snapshots`.

    For places where nothing can be mounted. A committed root is kept, until `close`, for the next `prepare` of its
    chain or of one that continues it, so that a stage has one root from its first RUN to its last.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._idle: dict[Digest, _Copy] = {}
        self._views: dict[str, _Copy] = {}

    @property
    def dialect(self) -> Dialect:
        """See `Snapshots.dialect`."""
        return Dialect.PLAIN

    def materialise(self, layers: tuple[Layer, ...]) -> None:
        """Nothing can be done for a chain before a root of it is wanted."""

    def prepare(self, layers: tuple[Layer, ...]) -> Working:
        """See `Snapshots.prepare`."""
        return _CopyWorking(self._copy(layers), layers, Tree(self._store, layers), self._put_back)

    def view(self, layers: tuple[Layer, ...]) -> Root:
        """See `Snapshots.view`. The same root each time."""
        key = Tree(self._store, layers).chain
        with self._lock:
            if key not in self._views:
                copy = _Copy(self._store.temporary())
                try:
                    self._unpack(copy, layers, 0)
                except BaseException:
                    remove_tree(copy.temporary)
                    raise
                self._views[key] = copy
            return DirectoryRoot(Path(self._views[key].root))

    def close(self) -> None:
        """Remove the roots that are kept, too."""
        for kept in (self._idle, self._views):
            while kept:
                remove_tree(kept.popitem()[1].temporary)

    def _put_back(self, chain: Digest, copy: _Copy) -> None:
        with self._lock:
            before = self._idle.pop(chain, None)
            self._idle[chain] = copy
        if before is not None:
            remove_tree(before.temporary)

    def _copy(self, layers: tuple[Layer, ...]) -> _Copy:
        """A root that shows the layers: the one left by the highest of them that left one, or a new one."""
        chains = chain_ids(tuple(layer.diff_id for layer in layers))
        copy = None
        done = len(layers)
        with self._lock:
            while done and copy is None:
                copy = self._idle.pop(chains[done - 1], None)
                done -= copy is None
        if copy is None:
            copy = _Copy(self._store.temporary())
        try:
            if not os.path.isdir(copy.root) or done < len(layers):
                self._unpack(copy, layers, done)
                copy.stamps = _scan(copy.root)
                _wait_for_clock(copy.stamps)
        except BaseException:
            remove_tree(copy.temporary)
            raise
        return copy

    def _unpack(self, copy: _Copy, layers: tuple[Layer, ...], done: int) -> None:
        """Bring the layers from number `done` on into a root."""
        if not os.path.isdir(copy.root):
            os.mkdir(copy.temporary, 0o700)
            os.mkdir(copy.root)
            _set_up_root(None, copy.root)
        for number in range(done, len(layers)):
            with unpacked(self._store, layers[number]) as source:
                entries = source.entries
                if not has_listing(self._store, layers[number].diff_id):
                    entries = recorded(entries, self._store, layers[number])
                apply(entries, Path(copy.root), Dialect.PLAIN, Tree(self._store, layers[:number]))


class _Copy(Struct):
    """A working copy on disk, and what a scan of it saw."""

    temporary: str
    stamps: dict[bytes, _Stamp] | None = None

    @property
    def root(self) -> str:
        return os.path.join(self.temporary, "root")


class _CopyWorking(Working):
    def __init__(
        self, copy: _Copy, layers: tuple[Layer, ...], parent: Files, put_back: Callable[[Digest, _Copy], None]
    ) -> None:
        self._copy: _Copy | None = copy
        self._put_back = put_back
        self._view = parent
        self._parent = chain_ids(tuple(layer.diff_id for layer in layers))[-1] if layers else None
        self._root = DirectoryRoot(Path(copy.root))
        self._after: dict[bytes, _Stamp] = {}
        self._sockets: list[bytes] = []

    @property
    def root(self) -> DirectoryRoot:
        return self._root

    def changes(self) -> Iterator[Entry]:
        assert self._copy is not None
        assert self._copy.stamps is not None
        self._sockets = []
        self._after = _scan(self._copy.root, self._sockets)
        yield from _difference(self._copy.root, self._copy.stamps, self._after, self._view)

    def commit(self, written: Written) -> None:
        copy, self._copy = self._copy, None
        assert copy is not None
        for path in self._sockets:
            os.unlink(path)
        copy.stamps = self._after
        _wait_for_clock(self._after)
        self._put_back(chain_id(self._parent, written.layer.diff_id), copy)

    def discard(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            remove_tree(copy.temporary)


class Seen:
    """A directory as it is now, to say later what has changed in it; nothing may be at work in it now or then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamps = _scan(path)
        _wait_for_clock(self._stamps)

    def changes(self) -> Iterator[Entry]:
        """What differs now: see `Working.changes`."""
        yield from _difference(self._path, self._stamps, _scan(self._path), None)


def contents_of(path: str) -> Iterator[Entry]:
    """All of a directory as entries, itself first as the empty path."""
    yield from _difference(path, {}, _scan(path), None)


def _difference(
    root: str, before: dict[bytes, _Stamp], after: dict[bytes, _Stamp], view: Files | None
) -> Iterator[Entry]:
    """What changed between two scans. view: what the root showed before, for which a mere copy is no change."""
    base = os.fsencode(root)
    inodes: dict[tuple[int, int], bytes] = {}
    # Directories on the way that are as they were; they come when something in them does.
    pending: list[Entry] = []
    for path in sorted(before.keys() | after.keys(), key=lambda path: path.split(b"/") if path else []):
        old, new = before.get(path), after.get(path)
        while pending and not path.startswith(pending[-1].path + b"/"):
            pending.pop()
        if new is None:
            holder = after.get(path.rpartition(b"/")[0])
            if holder is not None and holder[0] == "directory":
                yield from pending
                pending.clear()
                yield Entry(path, Kind.WHITEOUT)
            continue
        if old == new and (new[0] != "directory" or not path):
            continue
        full = base + b"/" + path if path else base
        status = os.lstat(full)
        found = entry_of(path, full, status)
        assert found is not None
        entry = _as_root(*found)
        if old == new:
            pending.append(entry)
            continue
        if entry.kind is not Kind.DIRECTORY and status.st_nlink > 1:
            first = inodes.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                entry = replace(entry, kind=Kind.HARDLINK, target=first, size=0, content=None, xattrs=())
        elif view is not None and old is not None and old[2:] == new[2:] and _mere_copy(entry, view):
            continue
        yield from pending
        pending.clear()
        yield entry


def _as_root(entry: Entry, marks: dict[str, bytes]) -> Entry:
    """What an ordinary user's process made as root's: in such a place every command believes that it is root."""
    uid, gid = os.geteuid(), os.getegid()
    if not uid or OWNER in marks or (entry.uid, entry.gid) != (uid, gid):
        return entry
    return replace(entry, uid=0, gid=0)


def _mere_copy(entry: Entry, view: Files) -> bool:
    """Whether a file of the same size and time is that of the layers.

    It was given the mode that it has, or moved away and back. An overlay copies it up, where it is no change either.
    """
    if entry.kind not in {Kind.FILE, Kind.SYMLINK}:
        return False
    other = view.entry(entry.path)
    if other is None or (
        (other.kind, other.mode, other.uid, other.gid, other.size, other.target, other.xattrs)
        != (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.target, entry.xattrs)
    ):
        return False
    if entry.kind is Kind.SYMLINK:
        return True
    content = hashlib.sha256()
    for piece in chunks(entry):
        content.update(piece)
    return content.hexdigest() == view.digest(other)


def _scan(root: str, sockets: list[bytes] | None = None) -> dict[bytes, _Stamp]:
    """The stamp of each path below `root`, and of the root under the empty path. Sockets are listed apart."""
    base = os.fsencode(root)
    found: dict[bytes, _Stamp] = {b"": _directory_stamp(base, os.stat(base))}
    left = [b""]
    while left:
        parent = left.pop()
        start = parent + b"/" if parent else b""
        for item in _sorted(base + b"/" + parent if parent else base):
            status = item.stat(follow_symlinks=False)
            path = start + item.name
            if stat.S_ISDIR(status.st_mode):
                found[path] = _directory_stamp(item.path, status)
                left.append(path)
            elif stat.S_ISSOCK(status.st_mode):
                if sockets is not None:
                    sockets.append(item.path)
            else:
                found[path] = (
                    status.st_ctime_ns,
                    status.st_ino,
                    status.st_mtime_ns,
                    status.st_size,
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_rdev,
                )
    return found


def _directory_stamp(path: bytes, status: os.stat_result) -> _Stamp:
    xattrs, marks = attributes(path)
    return ("directory", status.st_mode, status.st_uid, status.st_gid, xattrs, marks.get(OWNER))


def _wait_for_clock(stamps: dict[bytes, _Stamp]) -> None:
    """Wait until a change would get another time than the newest here.

    The kernel stamps inodes with a clock that ticks every few milliseconds (CONFIG_HZ): a change in the same tick as
    the scan, of the same size, would not show.
    """
    newest = max((stamp[0] for stamp in stamps.values() if isinstance(stamp[0], int)), default=0)
    if time.time_ns() - newest < _TICK:
        time.sleep(_TICK / 1e9)


_TICK = 20_000_000

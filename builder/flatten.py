"""An image's files with its layers put together: in a directory, or as a tar."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec.structs import replace

from builder.errors import BuildError
from cache.disk import Dialect
from cache.entries import Entry, Kind
from cache.layers import apply, pack, unpacked
from cache.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cache.entries import Files
    from cache.oci import Layer
    from cache.store import Store

_ALL_IDS = ["0", "0", "4294967295"]


def to_directory(layers: Iterable[Layer], place: Path, store: Store) -> int:
    """Put the files of `layers` into the directory `place`, made if missing; how many bytes of content there were.

    As root, files keep their owners; otherwise, and in a user namespace, whose other ids nobody outside could remove
    again, they become the caller's, and device nodes are left out.

    What `place` holds already stays, unless something of the same name comes in its place. All files are written
    beside their places first and then renamed one by one, directories merged, so that an error while writing leaves
    `place` as it was.
    """
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".pybuild-{os.getpid()}-{os.urandom(4).hex()}"
    fresh.mkdir(mode=0o700)
    size = 0
    try:
        for layer in layers:
            with unpacked(store, layer) as reading:
                found = reading.entries if _is_root() else _as_own(reading.entries)
                apply(found, fresh, Dialect.PLAIN)
        _check(fresh, place)
        size = _merge(fresh, place)
    finally:
        remove_tree(fresh)
    return size


def _is_root() -> bool:
    """Whether this process may give files away: root, and not in a user namespace."""
    if os.geteuid() != 0:
        return False
    try:
        return Path("/proc/self/uid_map").read_text().split() == _ALL_IDS
    except OSError:
        return True


def _as_own(entries: Iterable[Entry]) -> Iterator[Entry]:
    uid, gid = os.geteuid(), os.getegid()
    for entry in entries:
        if entry.kind is Kind.CHARACTER or entry.kind is Kind.BLOCK:
            continue
        # Without its owner a set-id program would run as whoever unpacked it, and capabilities are root's to give.
        yield replace(entry, uid=uid, gid=gid, mode=entry.mode & 0o1777, xattrs=())


def _check(source: Path, target: Path) -> None:
    """BuildError when something that is no directory would take a directory's place."""
    with os.scandir(source) as listing:
        items = list(listing)
    for item in items:
        there = target / item.name
        try:
            old = there.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(old.st_mode):
            if not item.is_dir(follow_symlinks=False):
                raise BuildError(
                    f"{there} is a directory, and the image has a file of that name", hint="remove it first"
                )
            _check(Path(item.path), there)


def _merge(source: Path, target: Path) -> int:
    """Move what lies in `source` into `target`, directories into directories. Symlinks are never followed."""
    size = 0
    with os.scandir(source) as listing:
        items = sorted(listing, key=lambda item: item.name)
    for item in items:
        there = target / item.name
        try:
            old = there.lstat()
        except FileNotFoundError:
            old = None
        is_directory = item.is_dir(follow_symlinks=False)
        if is_directory and old is not None and stat.S_ISDIR(old.st_mode):
            size += _merge(Path(item.path), there)
            _describe(Path(item.path), there)
            continue
        size += _size(Path(item.path))
        if old is not None and is_directory:
            there.unlink()
        os.rename(item.path, there)
    return size


def _describe(source: Path, target: Path) -> None:
    """Give the directory `target` owner, mode and time of `source`."""
    status = source.stat()
    with suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _size(path: Path) -> int:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return sum(_size(path / name) for name in os.listdir(path))


def to_tar(layers: tuple[Layer, ...], out: BinaryIO, store: Store) -> int:
    """Write the files of `layers` to `out` as a tar, sorted, with their owners; how many bytes."""
    return folders_to_tar([("", layers)], out, store)


def folders_to_tar(parts: Iterable[tuple[str, tuple[Layer, ...]]], out: BinaryIO, store: Store) -> int:
    """The same for several images. parts: folders of the tar, empty for its top, and the layers that go into each."""
    from cache.tree import Tree

    total = 0

    def add(data: bytes) -> None:
        nonlocal total
        total += len(data)
        out.write(data)

    def entries() -> Iterator[Entry]:
        for folder, layers in parts:
            tree = Tree(store, layers)
            found = linked(tree.walk(), tree)
            if folder:
                yield Entry(folder.encode(), Kind.DIRECTORY, 0o755)
            yield from (_below(folder.encode(), entry) for entry in found) if folder else found

    for _ in pack(entries(), add):
        pass
    return total


def _below(folder: bytes, entry: Entry) -> Entry:
    """The entry in a folder."""
    target = folder + b"/" + entry.target if entry.kind is Kind.HARDLINK else entry.target
    return replace(entry, path=folder + b"/" + entry.path, target=target)


def linked(entries: Iterable[Entry], files: Files) -> Iterator[Entry]:
    """The entries, those that are further names of one inode as hardlinks to its first."""
    first: dict[object, bytes] = {}
    for entry in entries:
        group = files.links(entry) if entry.kind is Kind.FILE else None
        target = first.setdefault(group, entry.path) if group is not None else entry.path
        if target == entry.path:
            yield entry
        else:
            yield replace(entry, kind=Kind.HARDLINK, target=target, size=0, content=None, digest="")

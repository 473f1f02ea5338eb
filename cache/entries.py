"""Entries: the language between steps, layers, snapshots, trees and lint.

An `Entry` is one path of a layer. A layer is an ordered run of entries; a tree is what a chain of layers shows.
"""

from __future__ import annotations

import enum
import io
import os
from typing import BinaryIO, Protocol

from msgspec import Struct


class Kind(enum.Enum):
    """What an entry is. WHITEOUT and OPAQUE exist in layers only, never in a tree.

    WHITEOUT: `path` is the deleted name itself, not the `.wh.` marker. OPAQUE: `path` is the directory whose lower
    content is hidden. https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
    """

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"


class Content(Protocol):
    """Where a regular file's bytes lie. Opening twice gives two independent streams from the first byte."""

    def open(self) -> BinaryIO:
        """A stream of exactly the entry's `size` bytes; the caller closes it."""
        ...


class FileContent(Struct, frozen=True):
    """The bytes of a file on this machine's disk. `path` is opened without following a final symlink."""

    path: bytes

    def open(self) -> BinaryIO:
        """See `Content.open`."""
        return os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)


class BytesContent(Struct, frozen=True):
    """Bytes held in memory: heredocs and other small, made files."""

    data: bytes

    def open(self) -> BinaryIO:
        """See `Content.open`."""
        return io.BytesIO(self.data)


class Entry(Struct, frozen=True):
    """One path of a layer or a tree, with its true owner and mode, whatever the disk below could hold.

    path: bytes without a leading or trailing slash and without `.` and `..`; empty for the root directory itself.
    mode: permission bits and set-id bits only (0o7777). size: bytes of a FILE, else 0. mtime_ns: since the epoch,
    may be negative. target: a SYMLINK's text; for a HARDLINK the path, in the same form as `path`, of an earlier
    entry of the same layer. device: major and minor. xattrs: name and value, sorted by name; never those by which
    overlayfs or pybuild mark things. content: for a FILE where its bytes lie; None where only metadata is known.
    digest: sha256 of the content in hex when it is known already, else empty.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    content: Content | None = None
    digest: str = ""

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def parent(self) -> bytes:
        """The path of the directory that holds this entry; empty for the root."""
        return self.path.rpartition(b"/")[0]


class Files(Protocol):
    """A read-only view of a directory tree: a build context, a chain of layers, an unpacked archive.

    Paths have the form of `Entry.path`. Symlinks are resolved inside the view's root, never by the kernel's walk of the
    host; a `..` at the root stays at the root.
    """

    def entry(self, path: bytes) -> Entry | None:
        """The entry at `path`, its last part not followed, its parents resolved; None when there is none.

        The entry returned has the resolved path. Hardlinks appear as FILE (see `links`).
        """
        ...

    def children(self, path: bytes) -> list[Entry]:
        """The entries directly in the directory `path` (a resolved path), by name; empty if it is no directory."""
        ...

    def resolve(self, path: bytes) -> bytes:
        """`path` with every symlink followed, the last part too; parts that do not exist are kept as they are."""
        ...

    def links(self, entry: Entry) -> object | None:
        """Something equal for entries that are names of one inode with several names; None for a lone file."""
        ...

    def digest(self, entry: Entry) -> str:
        """The sha256 in hex of a FILE's content, from a record of it where there is one."""
        ...

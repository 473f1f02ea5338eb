"""Images made by hand, entry by entry, for tests of what is said of layers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.errors import BuildError
from builder.handlers.owners import known_ids, lookup
from builder.lint.layers import ImageLayer, ImageSubject, Maker, lives
from cache import layers
from cache.entries import BytesContent, Entry, Kind
from cache.layers import listed_traits
from cache.oci import ImageConfig, Platform, RuntimeConfig
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache.store import Store

PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n"


def file(path: str, size: int, fill: bytes = b"x", **facts: int) -> Entry:
    """A file of so many bytes."""
    return holding(path, (fill * size)[:size], **facts)


def holding(path: str, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    """A file of these bytes."""
    return Entry(path.encode(), Kind.FILE, mode, uid, gid, size=len(data), content=BytesContent(data))


def folder(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    """A directory."""
    return Entry(path.encode(), Kind.DIRECTORY, mode, uid, gid)


def gone(path: str) -> Entry:
    """A deletion."""
    return Entry(path.encode(), Kind.WHITEOUT)


def opaque(path: str) -> Entry:
    """A directory whose lower content is hidden."""
    return Entry(path.encode(), Kind.OPAQUE)


def link(path: str, target: str, kind: Kind = Kind.HARDLINK) -> Entry:
    """A hard link; or a symlink."""
    return Entry(path.encode(), kind, 0o777, target=target.encode())


def program(loader: str = "", machine: int = 62, debug: int = 0, kind: int = 2, *, big: bool = False) -> bytes:
    """A file that looks like a program of 64 bits. big: its most significant byte comes first."""
    order = ">" if big else "<"
    path = loader.encode() + b"\0" if loader else b""
    names = b"\0.shstrtab\0.debug_info\0"
    body = 64 + 56 * bool(loader)
    table = body + len(path) + debug + len(names)
    head = b"\x7fELF\x02" + (b"\x02" if big else b"\x01") + b"\x01" + bytes(9)
    head += struct.pack(order + "HHIQQQIHHHHHH", kind, machine, 1, 0, 64, table, 0, 64, 56, bool(loader), 64, 3, 1)
    if loader:
        head += struct.pack(order + "IIQQQQQQ", 3, 4, body, 0, 0, len(path), len(path), 1)
    sections = bytes(64)
    sections += struct.pack(order + "IIQQQQIIQQ", 1, 3, 0, 0, body + len(path) + debug, len(names), 0, 0, 1, 0)
    sections += struct.pack(order + "IIQQQQIIQQ", 11, 1, 0, 0, body + len(path), debug, 0, 0, 1, 0)
    return head + path + bytes(debug) + names + sections


def subject(
    store: Store,
    *runs: Sequence[Entry],
    base: int = 0,
    lines: Sequence[str] = (),
    config: RuntimeConfig | None = None,
    architecture: str = "amd64",
) -> ImageSubject:
    """An image of these layers. lines: the history of each, a RUN where there is none; further ones have no layer."""
    written = [layers.write(run, store) for run in runs]
    titles = [*lines, *(f"RUN {number}" for number in range(len(lines), len(runs)))]
    makers = [Maker(title, title) for title in titles]
    found = tuple(
        ImageLayer(
            number, number >= base, makers[number], each.entries, listed_traits(store, each.layer),
            each.layer.descriptor.size,
        )
        for number, each in enumerate(written)
    )  # fmt: skip
    tree = Tree(store, tuple(each.layer for each in written))
    image = ImageConfig(Platform("linux", architecture), config or RuntimeConfig())
    user, problem = None, ""
    try:
        user = lookup(image.config.user, tree)
    except BuildError as error:
        problem = error.message
    made = ImageSubject(image, found, tree, lives(found), (), tuple(makers[base:]))
    return replace(made, user=user, user_problem=problem, ids=known_ids(tree))

"""How much may come out of an archive or a layer that somebody else has made.

A few kilobytes can be made to unpack to more than any disk holds, or to more names than memory does. What pybuild wrote
itself, or has read through before, is not measured again. The limits are the process's: they guard the machine.
"""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.structs import replace

from cache.errors import CorruptError, StoreError

FLOOR = 4 << 30
"""Bytes that any archive may unpack to, however small it is: zeros are compressed a thousandfold by rights."""

PATH = 4096
NAME = 255
"""Bytes of a path and of one name in it: what Linux takes."""

XATTR = 1 << 16
XATTRS = 1 << 20
"""Bytes of one attribute's value, and of all of one file: the kernel takes no longer value."""

HEADER = 8 << 20
"""Bytes of a header of one member, which are read at once."""


class LimitError(CorruptError):
    """An archive would unpack to more than the limits allow."""


class Limits(Struct, frozen=True):
    """entries: of one archive. size: bytes that it unpacks to. ratio: how many times its own size, beyond `FLOOR`."""

    entries: int = 2_000_000
    size: int = 512 << 30
    ratio: int = 200

    def count(self, entries: int) -> None:
        """LimitError when an archive has more entries than may be."""
        if entries > self.entries:
            raise LimitError(f"it has more than {self.entries} entries", _hint("entries"))

    def measure(self, size: int, packed: int) -> None:
        """LimitError when `packed` bytes have come to `size` and that is more than may be."""
        if size > self.size:
            raise LimitError(f"it unpacks to more than {_human(self.size)}", _hint("size"))
        if size > FLOOR and size > packed * self.ratio:
            raise LimitError(
                f"its first {_human(packed)} unpack to more than {self.ratio} times as much, as if to fill the disk",
                _hint("ratio"),
            )


_current = Limits()


def limits() -> Limits:
    """Those that hold."""
    return _current


def limit(text: str) -> None:
    """Change limits of this process: `entries=N,size=N[KMGT],ratio=N`; 0 for none. StoreError for anything else."""
    global _current  # noqa: PLW0603  see the module: there is one set of them
    found = _current
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
        if name not in Limits.__struct_fields__ or match is None:
            raise StoreError(f"{part!r} is no limit", "such as entries=5000000,size=2T,ratio=1000; 0 for none")
        number = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]
        found = replace(found, **{name: number or 1 << 62})
    _current = found


def check_path(path: bytes) -> None:
    """LimitError for a path that no file of Linux can have."""
    _check_length(path, "path")
    if len(path) > NAME:
        for name in path.split(b"/"):
            if len(name) > NAME:
                raise LimitError(f"a path in it has a part of {len(name)} bytes, and Linux takes no more than {NAME}")


def check_target(target: bytes) -> None:
    """LimitError for what no symlink can say. It need not be a path that there can be: Linux takes any text."""
    _check_length(target, "symlink's target")


def _check_length(path: bytes, what: str) -> None:
    if len(path) > PATH:
        raise LimitError(f"a {what} in it has {len(path)} bytes, and Linux takes no more than {PATH}")


def check_xattrs(xattrs: tuple[tuple[str, bytes], ...]) -> None:
    """LimitError for attributes that no file can have."""
    for name, value in xattrs:
        if len(value) > XATTR or len(name.encode("utf-8", "surrogateescape")) > NAME:
            raise LimitError(f"the attribute {name[:60]} of a file in it has {len(value)} bytes, more than Linux takes")
    if sum(len(value) for _, value in xattrs) > XATTRS:
        raise LimitError(f"a file in it has attributes of more than {_human(XATTRS)}")


def _hint(name: str) -> str:
    return f"if it is what it should be, PYBUILD_LIMITS={name}=N raises the limit, and {name}=0 takes it away"


def _human(size: int) -> str:
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} bytes"

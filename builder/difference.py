"""What differs between the files of two images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from cache.entries import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cache.tree import Tree


class Change(Struct, frozen=True):
    """A path that differs. before, after: None where it was added or removed. parts: of a changed one, what differs.

    parts: of `type`, `content`, `mode`, `owner`, `target`, `device`, `attributes` and `time`, in this order.
    """

    path: bytes
    before: Entry | None
    after: Entry | None
    parts: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        """What happened to the path."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    @property
    def growth(self) -> int:
        """By how many bytes the content grew."""
        return (self.after.size if self.after else 0) - (self.before.size if self.before else 0)


def differences(before: Tree, after: Tree, *, times: bool = False) -> Iterator[Change]:
    """Every path that `after` shows otherwise than `before`, in the order of a walk.

    times: a path also differs when its time does. Which names share an inode does not count. Contents are compared by
    their digests and not read. Raises as `Tree` does.
    """
    one, other = _walk(before), _walk(after)
    left, right = next(one, None), next(other, None)
    while left is not None or right is not None:
        # A walk is sorted by the parts of the paths, not by the paths: `a/b` comes before `a-b`.
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield Change(left[1].path, left[1], None)
            left = next(one, None)
        elif left is None or right[0] < left[0]:
            yield Change(right[1].path, None, right[1])
            right = next(other, None)
        else:
            parts = tuple(_parts(left[1], right[1], before, after, times=times))
            if parts:
                yield Change(left[1].path, left[1], right[1], parts)
            left, right = next(one, None), next(other, None)


def _walk(tree: Tree) -> Iterator[tuple[list[bytes], Entry]]:
    root = tree.entry(b"")
    if root is not None:
        yield [], root
    for entry in tree.walk():
        yield entry.path.split(b"/"), entry


def _parts(one: Entry, other: Entry, before: Tree, after: Tree, *, times: bool) -> Iterator[str]:
    if one.kind is not other.kind:
        yield "type"
    elif one.kind is Kind.FILE and (one.size != other.size or before.digest(one) != after.digest(other)):
        yield "content"
    # Linux gives every symlink the mode 0777, whatever a layer says.
    if one.mode != other.mode and Kind.SYMLINK not in (one.kind, other.kind):
        yield "mode"
    if (one.uid, one.gid) != (other.uid, other.gid):
        yield "owner"
    if one.kind is other.kind and one.target != other.target:
        yield "target"
    if one.kind is other.kind and one.device != other.device:
        yield "device"
    if one.xattrs != other.xattrs:
        yield "attributes"
    if times and one.mtime_ns // 10**9 != other.mtime_ns // 10**9:
        yield "time"

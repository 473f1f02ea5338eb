"""How much of what an image ships can be seen in it.

Bytes are those of file contents, uncompressed; each inode counts once, however many names it has. What a whiteout or an
opaque marker hides, below whatever directory, and what a later layer has again, is shipped and not visible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from builder.lint.layers.subject import ImageLayer, ImageSubject


class Row(Struct, frozen=True):
    """A layer, or all layers of one line or of the base. line: 0 where there is none. compressed: bytes of blobs."""

    layers: tuple[int, ...]
    title: str
    line: int = 0
    own: bool = True
    shipped: int = 0
    visible: int = 0
    files: int = 0
    compressed: int = 0

    @property
    def wasted(self) -> int:
        """Bytes that are shipped and not seen."""
        return self.shipped - self.visible


class Waste(Struct):
    """A node in the tree of what is shipped and not seen: a directory or file with the bytes below it.

    why: for a file, which layer brought it and which took it away.
    """

    name: str
    size: int = 0
    files: int = 0
    why: str = ""
    children: dict[str, Waste] = field(default_factory=dict)


class Efficiency(Struct, frozen=True):
    """See the module. layers: one row each; lines: by instruction, the base's layers in one."""

    layers: tuple[Row, ...]
    lines: tuple[Row, ...]
    waste: Waste

    @property
    def shipped(self) -> int:
        """Bytes in all layers."""
        return sum(row.shipped for row in self.layers)

    @property
    def visible(self) -> int:
        """Bytes of what the image shows."""
        return sum(row.visible for row in self.layers)

    @property
    def wasted(self) -> int:
        """Bytes that are shipped and not seen."""
        return self.shipped - self.visible

    @property
    def ratio(self) -> float:
        """Visible of shipped bytes, 1.0 where nothing is shipped."""
        return self.visible / self.shipped if self.shipped else 1.0


def efficiency(subject: ImageSubject) -> Efficiency:
    """Count. Pure; each layer once, base layers included."""
    shipped = [0] * len(subject.layers)
    visible = [0] * len(subject.layers)
    files = [0] * len(subject.layers)
    tree = Waste("/")
    for item in subject.shipped:
        shipped[item.layer] += item.size
        files[item.layer] += 1
        if item.names:
            visible[item.layer] += item.size
        elif item.size:
            last = item.gone[-1]
            here, there = (
                layer.short if layer.own else "the base"
                for layer in (subject.layers[item.layer], subject.layers[last.by])
            )
            verb = "deleted" if last.successor is None else "written again"
            _add(tree, item.entry.path, item.size, f"of {here}, {verb} by {there}")
    rows = tuple(
        Row(
            (layer.number,),
            *_called(layer),
            layer.own,
            shipped[number],
            visible[number],
            files[number],
            layer.compressed,
        )
        for number, layer in enumerate(subject.layers)
    )
    merged: dict[tuple[bool, str, int], Row] = {}
    for row in rows:
        key = (row.own, row.title if row.own else "", row.line)
        before = merged.get(key)
        title = row.title if row.own else "the base"
        merged[key] = _sum(before, row) if before else Row(
            row.layers, title, row.line, row.own, row.shipped, row.visible, row.files, row.compressed
        )  # fmt: skip
    return Efficiency(rows, tuple(merged.values()), tree)


def _called(layer: ImageLayer) -> tuple[str, int]:
    maker = layer.maker
    return maker.title or maker.created_by, maker.span.line if maker.span else 0


def _sum(one: Row, other: Row) -> Row:
    return Row(
        (*one.layers, *other.layers),
        one.title,
        one.line,
        one.own,
        one.shipped + other.shipped,
        one.visible + other.visible,
        one.files + other.files,
        one.compressed + other.compressed,
    )


def _add(tree: Waste, path: bytes, size: int, why: str) -> None:
    tree.size += size
    tree.files += 1
    node = tree
    for part in path.decode("utf-8", "backslashreplace").split("/"):
        node = node.children.setdefault(part, Waste(part))
        node.size += size
        node.files += 1
    node.why = why

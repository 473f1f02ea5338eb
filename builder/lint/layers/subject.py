"""What rules on the layers look at, and what such a rule is. Nouns, and `lives`: what became of each file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from builder.model import Budget, Finding, Severity
from builder.quantities import human_size
from cache.entries import Entry, Kind
from cache.traits import Traits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from builder.handlers.owners import User
    from builder.model import Step
    from cache.entries import Files
    from cache.oci import ImageConfig
    from grammar.instructions import Instruction
    from grammar.source import Source, Span

_MAX_LINKS = 40
_PATHS = 100
"""So many paths a finding names at most."""

NOTHING = Traits()


class Maker(Struct, frozen=True):
    """What made a layer, or could have: an instruction with its place, or a line of an image's history.

    title: the instruction on one line; of an image without its build file, its history. step: what was carried out.
    """

    title: str = ""
    created_by: str = ""
    instruction: Instruction | None = None
    span: Span | None = None
    source: Source | None = None
    step: Step | None = None

    @property
    def keyword(self) -> str:
        """`RUN`, `COPY`, ...; for a line of history as far as it can be told, else empty."""
        if self.instruction is not None:
            return type(self.instruction).__name__.upper()
        words = self.created_by.replace("/bin/sh -c #(nop)", "").split()
        first = words[0] if words else ""
        return "RUN" if first == "/bin/sh" or first.startswith("|") else first if first.isupper() else ""


class ImageLayer(Struct, frozen=True):
    """One layer. number: its place in the image, from 0. own: not the base's. compressed: bytes of its blob.

    traits: what files' bytes say of them, by the number of the entry. damage: why it could not be looked into.
    """

    number: int
    own: bool
    maker: Maker
    entries: tuple[Entry, ...]
    traits: Mapping[int, Traits] = field(default_factory=dict)
    compressed: int = 0
    damage: str = ""

    @property
    def place(self) -> str:
        """How messages call it."""
        title = self.maker.title if self.maker.span is None else ""
        return self.short + (f" ({title[:60]}{'…' if len(title) > 60 else ''})" if title else "")

    @property
    def short(self) -> str:
        """`line 7`, or `layer 3` where there is no build file."""
        return f"layer {self.number}" if self.maker.span is None else f"line {self.maker.span.line}"


class Gone(Struct, frozen=True):
    """A name of a file that a layer took away. by: that layer's number. successor: what took its place, if anything."""

    path: bytes
    by: int
    successor: int | None = None


class Shipped(Struct):
    """One inode of one layer: a file with all its names, a symlink, a device; directories are none.

    entry: under its first name, resolved. names: those by which it can be seen in the image. gone: those that it lost.
    """

    layer: int
    entry: Entry
    traits: Traits = NOTHING
    names: list[bytes] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)

    @property
    def path(self) -> bytes:
        """By which it is called: one that can be seen, where there is one."""
        return self.names[0] if self.names else self.entry.path

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.entry.size


class ImageSubject(Struct, frozen=True):
    """An image as rules see it. layers: the lowest first. files: what they show together. shipped: see `lives`.

    idle: the instructions that could have made a layer and changed nothing. makers: all instructions but the base's,
    in order, those for the config among them. user: whom the image runs as; user_problem: why that is not known. ids:
    the users and the groups that the image has names for; None where it has no such files. unused: names at the top of
    the context that no step takes, with their bytes. budget: what is allowed.
    """

    config: ImageConfig
    layers: tuple[ImageLayer, ...]
    files: Files
    shipped: tuple[Shipped, ...] = ()
    idle: tuple[Maker, ...] = ()
    makers: tuple[Maker, ...] = ()
    user: User | None = None
    user_problem: str = ""
    ids: tuple[frozenset[int], frozenset[int]] | None = None
    unused: tuple[tuple[str, int], ...] = ()
    budget: Budget = Budget()

    def own(self) -> Iterator[Shipped]:
        """What the image's own layers hold and can be seen at the end."""
        return (item for item in self.shipped if item.names and self.layers[item.layer].own)

    def last(self, *keywords: str) -> Maker | None:
        """The last instruction of these kinds that is known."""
        return next((maker for maker in reversed(self.makers) if maker.keyword in keywords), None)

    def finding(
        self,
        rule: str,
        message: str,
        at: ImageLayer | Maker | None,
        hint: str = "",
        *,
        severity: Severity = Severity.WARNING,
        files: Sequence[Shipped] = (),
        paths: Sequence[bytes] = (),
        size: int | None = None,
        related: Iterable[ImageLayer] = (),
    ) -> Finding:
        """A finding at a layer, or an instruction. files: what it speaks of; else paths and size."""
        maker = at.maker if isinstance(at, ImageLayer) else at or Maker()
        worst = sorted(files, key=lambda item: (-item.size, item.path))
        names = [item.path for item in worst] if files else list(paths)
        return Finding(
            rule,
            message,
            maker.span,
            maker.source,
            hint,
            severity,
            tuple(
                other.maker.span
                for other in related
                if other.maker.span is not None and other.maker.source is maker.source and other.maker is not maker
            ),
            sum(item.size for item in files) if size is None else size,
            tuple(name.decode("utf-8", "backslashreplace") for name in names[:_PATHS]),
            at.number if isinstance(at, ImageLayer) else None,
            maker.created_by,
        )


class LayerRule(Struct, frozen=True):
    """A named check of an image's layers. summary: what it asks for, in a sentence.

    check: pure; its docstring says why, with examples. severity: of most of its findings. aliases: what other linters
    call it. demanded: runs whatever is selected, since a flag asked for it.
    """

    name: str
    summary: str
    check: Callable[[ImageSubject], Iterable[Finding]]
    severity: Severity = Severity.WARNING
    aliases: tuple[str, ...] = ()
    experimental: bool = False
    demanded: bool = False

    @property
    def url(self) -> str:
        """Of a page about it on the web: there is none."""
        return ""


# ---------------------------------------------------------------- lives


def lives(layers: Iterable[ImageLayer]) -> tuple[Shipped, ...]:
    """Every inode of every layer, in order, and what became of its names.

    As when the layers are unpacked one on the other: deletions first, links followed inside the root. What can not be
    unpacked, such as a hardlink to nothing, is passed over. Pure.
    """
    found: list[Shipped] = []
    names = _Names(found)
    for layer in layers:
        for entry in layer.entries:
            if entry.kind is Kind.WHITEOUT:
                names.delete(names.located(entry.path), layer.number)
            elif entry.kind is Kind.OPAQUE:
                names.empty(names.located(entry.path), layer.number)
        for number, entry in enumerate(layer.entries):
            if entry.kind is not Kind.WHITEOUT and entry.kind is not Kind.OPAQUE:
                names.put(entry, layer.number, layer.traits.get(number))
    return tuple(found)


class _Names:
    """The names of a chain of layers so far: in each directory the place of an inode in `found`, -1 for a directory."""

    def __init__(self, found: list[Shipped]) -> None:
        self._found = found
        self._directories: dict[bytes, dict[bytes, int]] = {b"": {}}

    def located(self, path: bytes) -> bytes:
        """`path` with its parents resolved."""
        parent, _, name = path.rpartition(b"/")
        if parent not in self._directories:
            parent = self._resolve(parent)
        return parent + b"/" + name if parent else name

    def put(self, entry: Entry, layer: int, traits: Traits | None) -> None:
        """An entry that is no marker."""
        path = self.located(entry.path)
        if not path:
            return
        parent, _, name = path.rpartition(b"/")
        self._imply(parent)
        if entry.kind is Kind.DIRECTORY:
            if path not in self._directories:
                self._lose(path, layer, None)
                self._directories[parent][name] = -1
                self._directories[path] = {}
            return
        if entry.kind is Kind.HARDLINK:
            place = self._at(self.located(entry.target))
            if place is None or place < 0:
                return  # to nothing: no name of anything
        else:
            place = len(self._found)
            self._found.append(Shipped(layer, entry, traits or NOTHING))
        if path in self._directories:
            self.delete(path, layer)
        self._lose(path, layer, place)
        self._directories[parent][name] = place
        self._found[place].names.append(path)

    def delete(self, path: bytes, layer: int) -> None:
        """Take a name, and all below it, away."""
        self.empty(path, layer)
        self._directories.pop(path, None)
        self._lose(path, layer, None)

    def empty(self, path: bytes, layer: int) -> None:
        """Take all below a directory away."""
        left = [path] if path in self._directories else []
        while left:
            directory = left.pop()
            for name, place in self._directories[directory].items():
                full = directory + b"/" + name if directory else name
                if place < 0:
                    left.append(full)
                else:
                    self._gone(place, full, layer, None)
            self._directories[directory] = {}
            if directory != path:
                del self._directories[directory]

    def _at(self, path: bytes) -> int | None:
        parent, _, name = path.rpartition(b"/")
        return self._directories.get(parent, {}).get(name)

    def _lose(self, path: bytes, layer: int, successor: int | None) -> None:
        """Take one name away, if it is there."""
        parent, _, name = path.rpartition(b"/")
        place = self._directories.get(parent, {}).pop(name, None)
        if place is not None and place >= 0:
            self._gone(place, path, layer, successor)

    def _gone(self, place: int, path: bytes, layer: int, successor: int | None) -> None:
        item = self._found[place]
        item.names.remove(path)
        item.gone.append(Gone(path, layer, successor))

    def _imply(self, path: bytes) -> None:
        """A directory that no layer has an entry for."""
        while path not in self._directories:
            parent, _, name = path.rpartition(b"/")
            self._imply(parent)
            self._directories[parent][name] = -1
            self._directories[path] = {}

    def _resolve(self, path: bytes) -> bytes:
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
            place = self._at(b"/".join(done))
            if place is None or place < 0 or self._found[place].entry.kind is not Kind.SYMLINK:
                continue
            hops += 1
            if hops > _MAX_LINKS:
                return path  # round in a circle: to nothing
            target = self._found[place].entry.target
            done = [] if target.startswith(b"/") else done[:-1]
            left.extend(target.split(b"/")[::-1])
        return b"/".join(done)


# ---------------------------------------------------------------- words


def amount(size: int) -> str:
    """Bytes for a message."""
    return human_size(size)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def named(paths: Sequence[bytes], most: int = 3) -> str:
    """The first of some paths, for a message: `/a, /b and 2 more`."""
    shown = ["/" + path.decode("utf-8", "backslashreplace") for path in paths[:most]]
    if len(paths) > most:
        return ", ".join(shown) + f" and {len(paths) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def worst(files: Sequence[Shipped], most: int = 3) -> str:
    """`named` for files, the largest first."""
    return named([item.path for item in sorted(files, key=lambda item: (-item.size, item.path))], most)


def by_layer(files: Iterable[Shipped]) -> dict[int, list[Shipped]]:
    """Files by the layer that they came with, in order."""
    found: dict[int, list[Shipped]] = {}
    for item in files:
        found.setdefault(item.layer, []).append(item)
    return dict(sorted(found.items()))

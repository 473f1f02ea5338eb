"""The union view of a chain of layers: the one place where a path is followed, and where it can not get out.

Symlinks are resolved inside the root, by name, never by the kernel. Whiteouts and opaque markers of a layer act on the
layers below it and not on its own entries, wherever in the layer they stand. A layer's entry below something that the
layers under it show as a symlink goes where the link leads, as when the layer is unpacked on top of them.

A view is made of listings, read at the first question. What a chain shows is worked out from what the chain below
shows, which it shares, and kept for the next view: a stage of thirty steps reads its base once.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO, cast

from cache.contents import Pieces, chunks, opened
from cache.disk import open_below
from cache.entries import Entry, Kind
from cache.errors import CorruptError, StoreError
from cache.layers import Unpacked, listing
from cache.oci import chain_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cache.oci import Digest, Layer
    from cache.store import Store

_MAX_LINKS = 40
"""As many as the kernel follows before it says ELOOP."""

_KEPT = 8
_CURSORS = 4
_IN_MEMORY = 4 << 20

_Node = tuple[Entry, int, bytes | None]
"""An entry; the place of its layer in the chain; the path in that layer of the inode that it shares with others."""


def directory_name(chain: Digest) -> str:
    """The name in `snapshots/` of the directory that holds the topmost layer of a chain."""
    return chain.removeprefix("sha256:")[:24]


class Tree:
    """What the layers show, as `cache.entries.Files`. Safe from several threads; layers are read when first needed.

    contents: called with the layers up to the one that holds a file before it is read, when their directories are not
    there; it is to make them (`Snapshots.materialise`). Without it contents come from the blobs: quickest in the order
    of the layer, when there is no directory of it.

    Raises NotFoundError and CorruptError, at the first question, for layers that the store has not, or not whole;
    StoreError from `entry` and `resolve` for symlinks that go round in a circle.
    """

    def __init__(
        self,
        store: Store,
        layers: tuple[Layer, ...],
        contents: Callable[[tuple[Layer, ...]], object] | None = None,
    ) -> None:
        self.layers = layers
        self._store = store
        self._contents = contents
        self._chains = chain_ids(tuple(layer.diff_id for layer in layers))
        self._made: _State | None = None
        self._depth = len(layers)

    @property
    def chain(self) -> str:
        """The chain id of the layers; `scratch` when there are none. A changed view has that of its unchanged one."""
        return self._chains[-1] if self._chains else "scratch"

    @property
    def _state(self) -> _State:
        if self._made is None:
            self._made = _shared(self._store).state(self._store, self.layers, self._chains)
        return self._made

    # ------------------------------------------------------------ Files

    def entry(self, path: bytes) -> Entry | None:
        """See `Files.entry`."""
        parent, _, name = path.rpartition(b"/")
        state = self._state
        if parent not in state.directories or name in {b"", b".", b".."}:
            if path in {b"", b"."}:
                return self._give(state.root, b"")
            parent, name = _split(path)
            parent = self.resolve(parent)
            if name == b"..":
                return self.entry(parent.rpartition(b"/")[0])
            if parent not in state.directories:
                return None
        node = state.directories[parent].get(name)
        return None if node is None else self._give(node, parent + b"/" + name if parent else name)

    def children(self, path: bytes) -> list[Entry]:
        """See `Files.children`."""
        found = self._state.directories.get(path)
        if not found:
            return []
        start = path + b"/" if path else b""
        return [self._give(found[name], start + name) for name in sorted(found)]

    def resolve(self, path: bytes) -> bytes:
        """See `Files.resolve`."""
        if path in self._state.directories:
            return path
        return self._state.resolve(path)

    def links(self, entry: Entry) -> object | None:
        """See `Files.links`."""
        node = self._state.node(entry.path)
        return None if node is None or node[2] is None else (node[1], node[2])

    def digest(self, entry: Entry) -> str:
        """See `Files.digest`."""
        if entry.digest or entry.kind is not Kind.FILE:
            return entry.digest
        digest = hashlib.sha256()
        for piece in chunks(entry):
            digest.update(piece)
        return digest.hexdigest()

    # ------------------------------------------------------------ more

    def changed(self, entries: Iterable[Entry]) -> Tree:
        """This view with one more run of entries on top; their contents are their own. This one stays as it is."""
        other = Tree(self._store, self.layers, self._contents)
        other._made = self._state.with_layer(entries, self._depth)
        other._depth = self._depth + 1
        return other

    def place(self, path: bytes) -> tuple[int, bytes]:
        """Where the bytes of the file at a resolved path lie: the layer's number in `layers`, and the path in it."""
        node = self._state.node(path)
        assert node is not None
        return node[1], node[2] or node[0].path

    def walk(self, path: bytes = b"") -> Iterator[Entry]:
        """All below the directory `path` (a resolved one), each directory before what it holds, sorted by name.

        Names of one inode come as a FILE each, see `links`. The directory itself is not among them.
        """
        directories = self._state.directories
        stack = [(path, iter(sorted(directories.get(path, ()))))]
        while stack:
            parent, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                continue
            full = parent + b"/" + name if parent else name
            yield self._give(directories[parent][name], full)
            if full in directories:
                stack.append((full, iter(sorted(directories[full]))))

    def _give(self, node: _Node, path: bytes) -> Entry:
        """The node's entry under `path`, with its content."""
        entry, depth, origin = node
        if entry.kind is not Kind.FILE:
            return entry
        content = entry.content
        if depth < len(self.layers):
            content = LayerFile(
                self._store, self.layers[: depth + 1], self._chains[depth], origin or entry.path, entry, self._contents
            )
        return Entry(
            path, Kind.FILE, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, b"", (0, 0), entry.xattrs,
            content, entry.digest,
        )  # fmt: skip


class _State:
    """What a chain shows: the names in each directory. Never changed once made; parts are shared with others."""

    __slots__ = ("directories", "root")

    def __init__(self, directories: dict[bytes, dict[bytes, _Node]], root: _Node) -> None:
        self.directories = directories
        self.root = root

    def node(self, path: bytes) -> _Node | None:
        """What lies at a resolved path."""
        parent, _, name = path.rpartition(b"/")
        return self.directories.get(parent, {}).get(name) if path else self.root

    def resolve(self, path: bytes) -> bytes:
        """`path` with every symlink followed inside the root; names that do not exist are kept."""
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
            node = self.directories.get(b"/".join(done), {}).get(part)
            if node is None or node[0].kind is not Kind.SYMLINK:
                done.append(part)
                continue
            hops += 1
            if hops > _MAX_LINKS:
                raise StoreError(f"{_show(path)} leads through symlinks that go round in a circle")
            target = node[0].target
            if target.startswith(b"/"):
                done.clear()
            left.extend(target.split(b"/")[::-1])
        return b"/".join(done)

    def with_layer(self, entries: Iterable[Entry], depth: int) -> _State:
        """What shows when a layer comes on top."""
        rows = entries if isinstance(entries, tuple) else tuple(entries)
        union = _Union(self, depth)
        for entry in rows:
            if entry.kind is Kind.WHITEOUT:
                union.delete(union.located(entry.path))
            elif entry.kind is Kind.OPAQUE:
                union.empty(union.located(entry.path))
        for entry in rows:
            if entry.kind is not Kind.WHITEOUT and entry.kind is not Kind.OPAQUE:
                union.put(entry)
        return union.state


_EMPTY = _State({b"": {}}, (Entry(b"", Kind.DIRECTORY, 0o755), -1, None))


class _Union:
    """A state being made from the one below: directories are copied at their first change."""

    def __init__(self, below: _State, depth: int) -> None:
        self._depth = depth
        self._directories = dict(below.directories)
        self.state = _State(self._directories, below.root)
        self._own: set[bytes] = set()

    def put(self, entry: Entry) -> None:
        """An entry that is no marker."""
        path = entry.path
        if not path:
            self.state.root = (entry, self._depth, None)
            return
        parent, _, name = path.rpartition(b"/")
        if parent not in self._directories:
            parent = self.state.resolve(parent)
            self._imply(parent)
            path = parent + b"/" + name if parent else name
        # A FILE keeps the path that it has in its layer, under which its content is found.
        node: _Node = (
            entry if path == entry.path or entry.kind is Kind.FILE else _moved(entry, path),
            self._depth,
            None,
        )
        if entry.kind is Kind.HARDLINK:
            node = self._link(entry, path)
        if path in self._directories and entry.kind is not Kind.DIRECTORY:
            self.delete(path)
        self._children(parent)[name] = node
        if entry.kind is Kind.DIRECTORY and path not in self._directories:
            self._directories[path] = {}
            self._own.add(path)

    def delete(self, path: bytes) -> None:
        """Take a name, and all below it, away."""
        self.empty(path)
        self._directories.pop(path, None)
        parent, _, name = path.rpartition(b"/")
        if name in self._directories.get(parent, ()):
            del self._children(parent)[name]

    def empty(self, path: bytes) -> None:
        """Take all below a directory away."""
        if path not in self._directories:
            return
        left = [path]
        while left:
            directory = left.pop()
            for name in self._directories[directory]:
                inner = directory + b"/" + name if directory else name
                if inner in self._directories:
                    left.append(inner)
            if directory != path:
                del self._directories[directory]
                self._own.discard(directory)
        self._directories[path] = {}
        self._own.add(path)

    def located(self, path: bytes) -> bytes:
        """`path` with its parents resolved."""
        parent, _, name = path.rpartition(b"/")
        if parent not in self._directories:
            parent = self.state.resolve(parent)
        return parent + b"/" + name if parent else name

    def _children(self, path: bytes) -> dict[bytes, _Node]:
        if path not in self._own:
            self._own.add(path)
            self._directories[path] = dict(self._directories[path])
        return self._directories[path]

    def _imply(self, path: bytes) -> None:
        """A directory that no layer has an entry for. What lies at its place and is none gives way."""
        missing: list[bytes] = []
        while path not in self._directories:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for each in reversed(missing):
            parent, _, name = each.rpartition(b"/")
            self._children(parent)[name] = (Entry(each, Kind.DIRECTORY, 0o755), self._depth, None)
            self._directories[each] = {}
            self._own.add(each)

    def _link(self, entry: Entry, path: bytes) -> _Node:
        """The inode that a hardlink names, which from now on has several names."""
        place = self.located(entry.target)
        node = self.state.node(place)
        if node is None or place == path or node[0].kind is Kind.DIRECTORY:
            raise CorruptError(f"{_show(path)} is a hardlink to {_show(entry.target)}, which is not there")
        target, depth, origin = node
        if target.kind is not Kind.FILE:
            return (_moved(target, path), depth, None)
        if origin is None:
            node = (target, depth, target.path)
            parent, _, name = place.rpartition(b"/")
            self._children(parent)[name] = node
        return node


def _moved(entry: Entry, path: bytes) -> Entry:
    return Entry(
        path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.target, entry.device,
        entry.xattrs, entry.content, entry.digest,
    )  # fmt: skip


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and name; `.` and slashes at the end do not count."""
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    return b"/".join(parts[:-1]), parts[-1] if parts else b".."


# ---------------------------------------------------------------- contents


class LayerFile(Pieces):
    """A file of a layer: in the layer's directory when there is one, else in its blob."""

    __slots__ = ("_chain", "_contents", "_entry", "_layers", "_path", "_store")

    def __init__(
        self,
        store: Store,
        layers: tuple[Layer, ...],
        chain: Digest,
        path: bytes,
        entry: Entry,
        contents: Callable[[tuple[Layer, ...]], object] | None,
    ) -> None:
        self._store = store
        self._layers = layers
        self._chain = chain
        self._path = path
        self._entry = entry
        self._contents = contents

    def open(self) -> BinaryIO:
        """See `Content.open`. Raises StoreError, CorruptError or NotFoundError."""
        file = self._file()
        if file is not None:
            return os.fdopen(file, "rb")
        return self._from_blob()

    def _from_blob(self) -> BinaryIO:
        return _shared(self._store).cursor(self._store, self._layers[-1]).take(self._store, self._path, self._entry)

    def pieces(self) -> Iterator[bytes]:
        """See `Pieces.pieces`."""
        file = self._file()
        if file is not None:
            yield from opened(file, self._entry.size)
            return
        with self._from_blob() as stream:
            while data := stream.read(1 << 20):
                yield data

    def _file(self) -> int | None:
        """A descriptor of the file in the layer's directory."""
        directory = os.path.join(self._store.root, "snapshots", directory_name(self._chain))
        for attempt in range(2):
            try:
                file = open_below(directory, self._path)
            except FileNotFoundError:
                if attempt or self._contents is None:
                    return None
                self._contents(self._layers)
                continue
            except OSError:
                return None
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_size == self._entry.size:
                return file
            os.close(file)
            return None
        return None


class _Cursor:
    """A layer's blob, read forward from file to file. Keeps no store alive: it is kept for as long as one is."""

    def __init__(self, store: Store, layer: Layer) -> None:
        self._layer = layer
        self._lock = threading.Lock()
        # Later ones win, as when unpacking.
        self._places = {
            entry.path: number for number, entry in enumerate(listing(store, layer)) if entry.kind is Kind.FILE
        }
        self._unpacked: Unpacked | None = None
        self._entries: Iterator[Entry] = iter(())
        self._next = 0

    def close(self) -> None:
        """Close the blob."""
        if self._unpacked is not None:
            self._unpacked.close()
            self._unpacked = None

    def __del__(self) -> None:
        self.close()

    def take(self, store: Store, path: bytes, wanted: Entry) -> BinaryIO:
        """The bytes of the file at `path`, checked against the digest of its entry."""
        place = self._places.get(path)
        if place is None:
            raise CorruptError(f"the layer {self._layer.descriptor.digest} has no file {_show(path)}")
        with self._lock:
            if self._unpacked is None or place < self._next:
                self.close()
                self._unpacked = Unpacked(store, self._layer)
                self._entries = self._unpacked.entries
                self._next = 0
            entry = None
            while self._next <= place:
                self._next += 1
                entry = next(self._entries, None)
            if entry is None or entry.path != path or entry.kind is not Kind.FILE:
                raise CorruptError(f"the layer {self._layer.descriptor.digest} is not as its listing says")
            return self._copy(store, entry, wanted)

    def _copy(self, store: Store, entry: Entry, wanted: Entry) -> BinaryIO:
        stream: BinaryIO
        if entry.size <= _IN_MEMORY:
            stream = io.BytesIO()
        else:
            import tempfile

            stream = cast("BinaryIO", tempfile.TemporaryFile(dir=os.path.join(store.root, "tmp")))  # noqa: SIM115
        digest = hashlib.sha256()
        for piece in chunks(entry):
            digest.update(piece)
            stream.write(piece)
        if wanted.digest and digest.hexdigest() != wanted.digest:
            stream.close()
            raise CorruptError(f"{_show(entry.path)} of the layer {self._layer.descriptor.digest} is damaged")
        stream.seek(0)
        return stream


# ---------------------------------------------------------------- kept for the next view


class _Shared:
    """What the views of one store share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._cursors: OrderedDict[str, _Cursor] = OrderedDict()

    def state(self, store: Store, layers: tuple[Layer, ...], chains: tuple[Digest, ...]) -> _State:
        """What the chain shows, from the highest layer down that is known."""
        with self._lock:
            depth = len(layers)
            while depth and chains[depth - 1] not in self._states:
                depth -= 1
            state = _EMPTY
            if depth:
                state = self._states[chains[depth - 1]]
                self._states.move_to_end(chains[depth - 1])
            for number in range(depth, len(layers)):
                state = state.with_layer(listing(store, layers[number]), number)
            if layers:
                self._states[chains[-1]] = state
                while len(self._states) > _KEPT:
                    self._states.popitem(last=False)
            return state

    def cursor(self, store: Store, layer: Layer) -> _Cursor:
        """The layer's cursor."""
        with self._lock:
            cursor = self._cursors.get(layer.diff_id)
            if cursor is None:
                cursor = self._cursors[layer.diff_id] = _Cursor(store, layer)
                while len(self._cursors) > _CURSORS:
                    self._cursors.popitem(last=False)
            self._cursors.move_to_end(layer.diff_id)
            return cursor


_stores: weakref.WeakKeyDictionary[Store, _Shared] = weakref.WeakKeyDictionary()
_stores_lock = threading.Lock()


def _shared(store: Store) -> _Shared:
    with _stores_lock:
        found = _stores.get(store)
        if found is None:
            found = _stores[store] = _Shared()
        return found


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")

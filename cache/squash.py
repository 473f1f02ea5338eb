"""Several layers as one: what they show together, and nothing that a later one of them replaced or deleted.

The contents of the layers are read once each, in their order, into a temporary file, since the new layer has its files
sorted by name; what it does not need is passed over.
"""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, BinaryIO, cast

from msgspec.structs import replace

from cache.contents import PIECE, Pieces, chunks
from cache.entries import Entry, Kind
from cache.index import Index, Place, Record, key
from cache.layers import PiecesReader, unpacked, write_changes
from cache.oci import chain_ids
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cache.compression import Compression
    from cache.oci import Layer
    from cache.store import Store


def squash(store: Store, layers: tuple[Layer, ...], kept: int, compression: Compression) -> tuple[Layer, ...]:
    """The lowest `kept` of `layers`, and one in the place of those above; none when they show nothing of their own.

    One layer alone stays as it is. Idempotent; done before for the same layers, it costs a look at the cache. Raises
    NotFoundError and CorruptError for layers that are not there or not whole.
    """
    if len(layers) <= kept + 1:
        return layers
    chain = chain_ids(tuple(layer.diff_id for layer in layers))
    below = chain[kept - 1] if kept else "scratch"
    parts = [("squash", below), ("layers", chain[-1]), ("compression", str(compression))]
    index = Index(store.database)
    identity = key(parts)
    record = index.lookup(identity)
    if record is None:
        started = time.monotonic()
        written = write_changes(_contents(store, layers, list(difference(store, layers, kept))), store, compression)
        made, size, files = (written.layer, written.size, written.files) if written else (None, 0, 0)
        record = Record(identity, made, size, files, time.time(), time.monotonic() - started)
        index.record(record, parts, Place("squash", below, 0, "squash"))
    index.settle()
    return (*layers[:kept], *([record.layer] if record.layer else []))


def difference(store: Store, layers: tuple[Layer, ...], kept: int) -> Iterator[Entry]:
    """What one layer has to hold for it to show, above the lowest `kept`, what all of `layers` show.

    Entries sorted by path, each below its directories, which are there for the sake of readers that would make missing
    ones anew; deletions as WHITEOUT; the names of one inode as a FILE and HARDLINKs to it.
    """
    below, whole = Tree(store, layers[:kept]), Tree(store, layers)
    entries = list(whole.walk())
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        group = whole.links(entry)
        if group is not None:
            groups.setdefault(group, []).append(entry)
    first = {token: names[0].path for token, names in groups.items()}
    # The names of an inode stay together: either all of them are as they were, or all of them come anew.
    fresh = {token for token, names in groups.items() if any(not _same(entry, whole, below) for entry in names)}
    emitted: dict[bytes, Entry] = {}
    for found in entries:
        entry, token = found, whole.links(found)
        if not (token in fresh if token is not None else not _same(entry, whole, below)):
            continue
        if token is not None and first[token] != entry.path:
            entry = replace(entry, kind=Kind.HARDLINK, target=first[token], size=0, content=None, digest="", xattrs=())
        emitted[entry.path] = entry
    directories = {b"", *(entry.path for entry in entries if entry.kind is Kind.DIRECTORY)}
    for path in directories:
        there = {entry.name for entry in whole.children(path)}
        for entry in below.children(path):
            if entry.name not in there:
                emitted[entry.path] = Entry(entry.path, Kind.WHITEOUT)
    known = {entry.path: entry for entry in entries if entry.kind is Kind.DIRECTORY}
    for path in list(emitted):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in emitted:
            emitted[parent] = known[parent]
            parent = parent.rpartition(b"/")[0]
    root = whole.entry(b"")
    if root is not None and root != below.entry(b""):
        yield root
    for path in sorted(emitted, key=lambda path: path.split(b"/")):
        yield emitted[path]


def _same(entry: Entry, whole: Tree, below: Tree) -> bool:
    """Whether the layers below show the very entry."""
    old = below.entry(entry.path)
    if old is None or old.path != entry.path or whole.links(entry) != below.links(old):
        return False
    return replace(old, content=None) == replace(entry, content=None)


def _contents(store: Store, layers: tuple[Layer, ...], entries: list[Entry]) -> Iterator[Entry]:
    """The entries, those of files with contents that can be read in any order."""
    import tempfile

    whole = Tree(store, layers)
    wanted: dict[int, dict[bytes, list[bytes]]] = {}
    for entry in entries:
        if entry.kind is Kind.FILE and entry.size:
            place = whole.place(entry.path)
            wanted.setdefault(place[0], {}).setdefault(place[1], []).append(entry.path)
    with tempfile.TemporaryFile(dir=os.path.join(store.root, "tmp")) as spool:
        found: dict[bytes, Pieces] = {}
        for number in sorted(wanted):
            found |= _spooled(store, layers[number], wanted[number], cast("BinaryIO", spool))
        spool.flush()
        for entry in entries:
            yield replace(entry, content=found[entry.path]) if entry.path in found else entry


def _spooled(store: Store, layer: Layer, wanted: Mapping[bytes, list[bytes]], spool: BinaryIO) -> dict[bytes, Pieces]:
    """Copy files of one layer, by their paths in it, to the end of `spool`; what can be read there, by their names."""
    found: dict[bytes, Pieces] = {}
    with unpacked(store, layer) as reading:
        for entry in reading.entries:
            names = wanted.get(entry.path)
            if names is None or entry.kind is not Kind.FILE:
                continue
            start = spool.tell()
            spool.writelines(chunks(entry))
            # Of several entries of one path the last counts.
            stretch = _Stretch(spool, start, entry.size)
            found.update(dict.fromkeys(names, stretch))
    return found


class _Stretch(Pieces):
    """Some bytes of a file that is open."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size

    def open(self) -> BinaryIO:
        return cast("BinaryIO", io.BufferedReader(PiecesReader(self.pieces()), 1 << 16))

    def pieces(self) -> Iterator[bytes]:
        at, end = self._start, self._start + self._size
        while at < end and (data := os.pread(self._file.fileno(), min(end - at, PIECE), at)):
            yield data
            at += len(data)

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.compression import GZIP
from cache.entries import BytesContent, Entry, Kind
from cache.layers import listing, write
from cache.squash import difference, squash
from cache.store import Store
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.oci import Layer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def file(path: str, data: bytes = b"", mode: int = 0o644, **more: object) -> Entry:
    return Entry(path.encode(), Kind.FILE, mode, size=len(data), content=BytesContent(data), **more)  # type: ignore[arg-type]


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode)


def hardlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), Kind.HARDLINK, target=target.encode())


def gone(path: str) -> Entry:
    return Entry(path.encode(), Kind.WHITEOUT)


def chain(store: Store, *layers: list[Entry]) -> tuple[Layer, ...]:
    return tuple(write(entries, store).layer for entries in layers)


def shown(store: Store, layers: tuple[Layer, ...]) -> list[tuple[object, ...]]:
    """All that can be seen of a chain of layers, contents and which names are one inode included."""
    tree = Tree(store, layers)
    names: dict[object, bytes] = {}
    found: list[tuple[object, ...]] = []
    for entry in tree.walk():
        links = tree.links(entry)
        data = b""
        if entry.content is not None:
            with entry.content.open() as stream:
                data = stream.read()
        first = names.setdefault(links, entry.path) if links is not None else None
        found.append((entry.path, entry.kind, entry.mode, entry.uid, entry.xattrs, entry.target, data, first))
    # An inode whose other names are gone is a file like any other.
    firsts = [row[-1] for row in found]
    return [(*row[:-1], row[-1] if firsts.count(row[-1]) > 1 else None) for row in found]


def made(store: Store, layers: tuple[Layer, ...], kept: int) -> list[tuple[bytes, Kind]]:
    """The squashed layer's entries, after looking that nothing else shows than before."""
    after = squash(store, layers, kept, GZIP)
    assert len(after) <= kept + 1
    assert after[:kept] == layers[:kept]
    assert shown(store, after) == shown(store, layers)
    return [(entry.path, entry.kind) for entry in listing(store, after[-1])] if len(after) > kept else []


BASE = [directory("d"), file("d/kept", b"kept"), file("d/gone", b"gone"), file("f", b"base")]


def test_dead_bytes_and_their_deletions_go(store: Store) -> None:
    layers = chain(store, BASE, [file("big", bytes(100_000))], [gone("big"), file("small", b"x")])
    assert made(store, layers, 1) == [(b"small", Kind.FILE)]


def test_what_the_base_has_and_is_gone_stays_deleted(store: Store) -> None:
    layers = chain(store, BASE, [gone("d/gone")], [file("new", b"x")])
    assert made(store, layers, 1) == [
        (b"d", Kind.DIRECTORY), (b"d/gone", Kind.WHITEOUT), (b"new", Kind.FILE),
    ]  # fmt: skip


def test_a_folder_that_was_made_anew_hides_what_was_in_it(store: Store) -> None:
    layers = chain(
        store, BASE, [gone("d")], [directory("d", 0o700), file("d/other", b"y")],
    )  # fmt: skip
    assert made(store, layers, 1) == [
        (b"d", Kind.DIRECTORY), (b"d/gone", Kind.WHITEOUT), (b"d/kept", Kind.WHITEOUT), (b"d/other", Kind.FILE),
    ]  # fmt: skip


def test_kinds_change(store: Store) -> None:
    layers = chain(store, BASE, [gone("d"), file("d", b"now a file")], [gone("f"), directory("f"), file("f/x", b"x")])
    assert made(store, layers, 1) == [(b"d", Kind.FILE), (b"f", Kind.DIRECTORY), (b"f/x", Kind.FILE)]


def test_what_is_as_it_was_is_left_out(store: Store) -> None:
    layers = chain(store, BASE, [file("f", b"else")], [file("f", b"base")])
    assert made(store, layers, 1) == []


def test_names_of_one_inode_stay_that(store: Store) -> None:
    layers = chain(
        store, [file("a", b"one"), hardlink("b", "a")], [file("c", b"two"), hardlink("e", "c")],
        [file("c", b"three"), hardlink("d", "c")], [gone("b"), file("z", b"z")],
    )  # fmt: skip
    # e is alone with what c was; a is the base's, though b is gone.
    assert made(store, layers, 1) == [
        (b"b", Kind.WHITEOUT), (b"c", Kind.FILE), (b"d", Kind.HARDLINK), (b"e", Kind.FILE), (b"z", Kind.FILE),
    ]  # fmt: skip


def test_a_new_name_of_an_old_file_brings_all_its_names(store: Store) -> None:
    layers = chain(store, BASE, [file("f", b"base"), hardlink("g", "f")], [file("x")])
    assert made(store, layers, 1) == [(b"f", Kind.FILE), (b"g", Kind.HARDLINK), (b"x", Kind.FILE)]


def test_attributes_and_owners_come_along(store: Store) -> None:
    layers = chain(
        store, BASE, [file("x", b"1", 0o4755, uid=7, xattrs=(("user.a", b"\0\xff"),))], [file("y", b"2", uid=1 << 30)],
    )  # fmt: skip
    made(store, layers, 1)


def test_without_a_base_all_is_one_layer(store: Store) -> None:
    layers = chain(store, BASE, [gone("f")])
    assert (b"f", Kind.WHITEOUT) not in made(store, layers, 0)


def test_one_layer_stays_as_it_is(store: Store) -> None:
    layers = chain(store, BASE, [file("x")])
    assert squash(store, layers, 1, GZIP) == layers
    assert squash(store, layers, 2, GZIP) == layers


def test_doing_it_again_reads_nothing(store: Store) -> None:
    layers = chain(store, BASE, [file("x", b"1")], [file("y", b"2")])
    first = squash(store, layers, 1, GZIP)
    for layer in layers[1:]:
        store.blob_path(layer.descriptor.digest).unlink()
    assert squash(store, layers, 1, GZIP) == first


def test_it_is_done_again_when_its_blob_is_gone(store: Store) -> None:
    layers = chain(store, BASE, [file("x", b"1")], [file("y", b"2")])
    first = squash(store, layers, 1, GZIP)
    store.blob_path(first[-1].descriptor.digest).unlink()
    assert squash(store, layers, 1, GZIP) == first
    assert store.holds(first[-1].descriptor)


_names = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a"])
_entries = st.one_of(
    st.builds(file, _names, st.sampled_from([b"", b"1", b"22"]), st.sampled_from([0o644, 0o755])),
    st.builds(directory, _names, st.sampled_from([0o755, 0o700])),
    st.builds(gone, _names),
)


def _sound(entries: list[Entry]) -> list[Entry]:
    """A layer that says one thing of each name, folders before what is in them."""
    found = {entry.path: entry for entry in entries}
    for path in list(found):
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            above = b"/".join(parts[:depth])
            if above not in found or found[above].kind is not Kind.DIRECTORY:
                found[above] = directory(above.decode())
    return [found[path] for path in sorted(found)]


@settings(max_examples=40)
@given(layers=st.lists(st.lists(_entries, min_size=1, max_size=5).map(_sound), min_size=2, max_size=4), data=st.data())
def test_any_layers_show_the_same_when_squashed(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Entry]], data: st.DataObject
) -> None:
    with Store.open(tmp_path_factory.mktemp("store")) as store:
        made_of = chain(store, *layers)
        kept = data.draw(st.integers(0, len(layers) - 1))
        made(store, made_of, kept)
        assert len({entry.path for entry in difference(store, made_of, kept)}) == len(
            list(difference(store, made_of, kept))
        )

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cache.disk import Dialect, apply
from cache.entries import BytesContent, Entry, Kind
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.layers import write
from cache.oci import Descriptor, Layer, chain_ids, digest_of
from cache.store import Store
from cache.tree import Tree, directory_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def file(path: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    return Entry(path.encode(), Kind.FILE, mode, size=len(data), content=BytesContent(data))


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode)


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), Kind.SYMLINK, 0o777, target=target.encode())


def hardlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), Kind.HARDLINK, target=target.encode())


def gone(path: str) -> Entry:
    return Entry(path.encode(), Kind.WHITEOUT)


def opaque(path: str) -> Entry:
    return Entry(path.encode(), Kind.OPAQUE)


def tree(store: Store, *layers: list[Entry]) -> Tree:
    return Tree(store, tuple(write(entries, store).layer for entries in layers))


def paths(view: Tree, path: bytes = b"") -> list[str]:
    return [os.fsdecode(entry.path) for entry in view.walk(path)]


def text(view: Tree, path: str) -> bytes:
    entry = view.entry(path.encode())
    assert entry is not None
    assert entry.content is not None
    with entry.content.open() as stream:
        return stream.read()


# ---------------------------------------------------------------- the union


def test_no_layers(store: Store) -> None:
    view = Tree(store, ())
    assert view.entry(b"") == Entry(b"", Kind.DIRECTORY, 0o755)
    assert view.entry(b"a") is None
    assert view.entry(b"a/b") is None
    assert view.children(b"") == []
    assert view.resolve(b"a/../b") == b"b"
    assert paths(view) == []
    assert view.chain == "scratch"


def test_later_layers_win(store: Store) -> None:
    view = tree(
        store,
        [directory("d", 0o700), file("d/a", b"1"), file("d/b", b"1")],
        [directory("d", 0o711), file("d/b", b"22"), file("d/c", b"2")],
        [file("d/c", b"333")],
    )
    assert paths(view) == ["d", "d/a", "d/b", "d/c"]
    assert [text(view, f"d/{name}") for name in "abc"] == [b"1", b"22", b"333"]
    entry = view.entry(b"d")
    assert entry is not None
    assert entry.mode == 0o711
    assert view.chain == chain_ids(tuple(layer.diff_id for layer in view.layers))[-1]


def test_whiteouts_and_opaque_directories(store: Store) -> None:
    below = [directory("a"), file("a/1"), file("a/2"), directory("b"), directory("b/c"), file("b/c/3"), file("f")]
    assert paths(tree(store, below, [gone("a/1"), gone("f"), gone("never")])) == ["a", "a/2", "b", "b/c", "b/c/3"]
    assert paths(tree(store, below, [gone("a"), gone("b")])) == ["f"]
    assert paths(tree(store, below, [directory("b"), opaque("b"), file("b/new")])) == [
        "a",
        "a/1",
        "a/2",
        "b",
        "b/new",
        "f",
    ]
    assert paths(tree(store, below, [opaque("")])) == []


def test_a_layers_deletions_act_on_what_lies_below_it_only(store: Store) -> None:
    below = [directory("d"), file("d/old")]
    for own in (
        [directory("d"), file("d/new"), gone("d")],
        [gone("d"), directory("d"), file("d/new")],
        [directory("d"), file("d/new"), opaque("d")],
    ):
        assert paths(tree(store, below, own)) == ["d", "d/new"]


def test_directories_and_files_replace_each_other(store: Store) -> None:
    below = [directory("d"), file("d/x"), file("f"), symlink("l", "d")]
    assert paths(tree(store, below, [file("d"), directory("f"), file("f/y"), directory("l")])) == ["d", "f", "f/y", "l"]
    again = tree(store, below, [file("d")], [directory("d")])
    assert paths(again, b"d") == []


def test_parents_that_no_layer_has(store: Store) -> None:
    view = tree(store, [file("a/b/c", b"x")])
    assert view.entry(b"a/b") == Entry(b"a/b", Kind.DIRECTORY, 0o755)
    assert text(view, "a/b/c") == b"x"


def test_parents_are_those_of_the_layers_below(store: Store) -> None:
    view = tree(store, [directory("a", 0o700)], [file("a/b")])
    entry = view.entry(b"a")
    assert entry is not None
    assert entry.mode == 0o700


def test_a_layer_is_unpacked_through_the_symlinks_below(store: Store) -> None:
    view = tree(
        store,
        [symlink("lib", "usr/lib"), directory("usr"), directory("usr/lib"), file("usr/lib/old")],
        [file("lib/new", b"new"), gone("lib/old"), Entry(b"lib/sub", Kind.FIFO)],
    )
    assert paths(view) == ["lib", "usr", "usr/lib", "usr/lib/new", "usr/lib/sub"]
    assert text(view, "usr/lib/new") == b"new"
    assert [entry.path for entry in view.children(b"usr/lib")] == [b"usr/lib/new", b"usr/lib/sub"]


def test_the_root_directory_can_have_an_entry(store: Store) -> None:
    view = tree(store, [Entry(b"", Kind.DIRECTORY, 0o700, 5, 6)], [file("a")])
    assert view.entry(b"") == Entry(b"", Kind.DIRECTORY, 0o700, 5, 6)
    assert paths(view) == ["a"]


def test_walk_is_sorted_by_name_within_each_directory(store: Store) -> None:
    view = tree(store, [file("b"), file("a/z"), file("a-b"), file("a/b/c"), file("a.b")])
    assert paths(view) == ["a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"]
    assert paths(view, b"a") == ["a/b", "a/b/c", "a/z"]
    assert paths(view, b"b") == []


def test_changes_on_top_leave_the_view_below_as_it_is(store: Store) -> None:
    below = tree(store, [directory("d"), file("d/a", b"1")])
    above = below.changed([file("d/b", b"2"), gone("d/a"), hardlink("d/c", "d/b")])
    further = above.changed([file("d/a", b"3")])
    assert paths(below) == ["d", "d/a"]
    assert paths(above) == ["d", "d/b", "d/c"]
    assert paths(further) == ["d", "d/a", "d/b", "d/c"]
    assert [text(further, f"d/{name}") for name in "abc"] == [b"3", b"2", b"2"]
    assert text(below, "d/a") == b"1"


# ---------------------------------------------------------------- symlinks


LINKS = [
    directory("usr"), directory("usr/lib"), file("usr/lib/so", b"so"), file("etc/passwd", b"root"),
    symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"), symlink("out", "../../../etc"),
    symlink("usr/up", "../etc/passwd"),
    symlink("dangling", "usr/never"), symlink("chain", "lib"), symlink("self", "self"), symlink("one", "two"),
    symlink("two", "one"), symlink("dot", "."), symlink("file", "etc/passwd"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("lib/so", "usr/lib/so"),
        ("chain", "usr/lib"),
        ("abs/so", "usr/lib/so"),
        ("out", "etc"),
        ("out/passwd", "etc/passwd"),
        ("usr/up", "etc/passwd"),
        ("dangling", "usr/never"),
        ("dangling/x", "usr/never/x"),
        ("../../..", ""),
        ("lib/..", "usr"),
        ("lib/../../etc", "etc"),
        ("dot/dot/lib", "usr/lib"),
        ("never/below/here", "never/below/here"),
        ("/etc//./passwd/", "etc/passwd"),
    ],
)
def test_resolving_stays_inside_the_root(store: Store, path: str, resolved: str) -> None:
    assert tree(store, LINKS).resolve(path.encode()) == resolved.encode()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("lib", "lib"),
        ("lib/so", "usr/lib/so"),
        ("usr/up", "usr/up"),
        ("out/passwd", "etc/passwd"),
        ("out/never", None),
        ("never/x", None),
        ("file/x", None),
        ("etc/passwd/x", None),
        ("lib/..", "usr"),
        (".", ""),
        ("etc/", "etc"),
        ("..", ""),
    ],
)
def test_entries_are_found_through_links_but_are_not_followed(store: Store, path: str, found: str | None) -> None:
    entry = tree(store, LINKS).entry(path.encode())
    assert (None if entry is None else entry.path.decode()) == found


@pytest.mark.parametrize("path", ["self", "self/x", "one", "two/x"])
def test_circles_of_links_are_an_error(store: Store, path: str) -> None:
    view = tree(store, LINKS)
    with pytest.raises(StoreError, match="circle"):
        view.resolve(path.encode())
    if "/" in path:
        with pytest.raises(StoreError, match="circle"):
            view.entry(path.encode())


# ---------------------------------------------------------------- hardlinks


def test_names_of_one_inode(store: Store) -> None:
    view = tree(store, [file("a", b"text", 0o600), hardlink("b", "a"), hardlink("c", "b"), file("d", b"text")])
    entries = {entry.path: entry for entry in view.walk()}
    assert all(entry.kind is Kind.FILE and entry.size == 4 for entry in entries.values())
    assert [entries[name].mode for name in (b"a", b"b", b"c")] == [0o600] * 3
    groups = [view.links(entries[name]) for name in (b"a", b"b", b"c", b"d")]
    assert groups[0] == groups[1] == groups[2] is not None
    assert groups[3] is None
    assert text(view, "c") == b"text"


def test_a_hardlink_to_a_file_of_a_lower_layer(store: Store) -> None:
    view = tree(store, [file("d/a", b"lower")], [hardlink("b", "d/a")])
    a, b = view.entry(b"d/a"), view.entry(b"b")
    assert a is not None
    assert b is not None
    assert view.links(a) == view.links(b) is not None
    assert text(view, "b") == b"lower"


def test_a_link_outlives_the_first_name(store: Store) -> None:
    view = tree(store, [file("a", b"text"), hardlink("b", "a")], [gone("a")], [file("a", b"new")])
    assert text(view, "b") == b"text"
    assert text(view, "a") == b"new"
    a, b = view.entry(b"a"), view.entry(b"b")
    assert a is not None
    assert b is not None
    assert view.links(a) is None
    assert view.links(b) is not None


def test_a_hardlink_to_nothing_is_corrupt(store: Store) -> None:
    with pytest.raises(CorruptError, match="not there"):
        paths(tree(store, [hardlink("b", "a")]))


# ---------------------------------------------------------------- contents


def test_contents_come_from_blobs_in_any_order(store: Store) -> None:
    data = {f"f{number}": os.urandom(1 << 18) for number in range(12)}
    view = tree(store, [file(name, data[name]) for name in sorted(data)])
    for name in ("f3", "f7", "f1", "f1", "f9", "f11", "f0"):
        assert text(view, name) == data[name]


def test_contents_of_big_files_leave_nothing_behind(store: Store) -> None:
    data = os.urandom(6 << 20)
    view = tree(store, [file("big", data)])
    assert text(view, "big") == data
    assert list((store.root / "tmp").iterdir()) == []


def test_two_streams_of_one_file_are_independent(store: Store) -> None:
    entry = tree(store, [file("a", b"text"), file("b", b"more")]).entry(b"a")
    assert entry is not None
    assert entry.content is not None
    with entry.content.open() as one, entry.content.open() as other:
        assert one.read(2) == b"te"
        assert other.read() == b"text"
        assert one.read() == b"xt"


def test_a_directory_of_the_layer_is_read_first(store: Store) -> None:
    view = tree(store, [file("d/a", b"text")], [file("b")])
    place = store.root / "snapshots" / directory_name(view.layers[0].diff_id)
    (place / "d").mkdir(parents=True)
    (place / "d/a").write_bytes(b"disk")
    assert text(view, "d/a") == b"disk"


def test_a_directory_that_is_not_as_listed_is_left_alone(store: Store, tmp_path: Path) -> None:
    view = tree(store, [file("d/a", b"text"), file("b", b"text")])
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/a").write_bytes(b"evil")
    place = store.root / "snapshots" / directory_name(view.layers[0].diff_id)
    place.mkdir()
    (place / "d").symlink_to(tmp_path / "secret")
    (place / "b").write_bytes(b"longer")
    assert text(view, "d/a") == b"text"
    assert text(view, "b") == b"text"


def test_the_layers_are_made_when_a_way_to_do_so_is_given(store: Store) -> None:
    asked: list[int] = []

    def materialise(layers: tuple[Layer, ...]) -> None:
        asked.append(len(layers))
        place = store.root / "snapshots" / directory_name(chain_ids(tuple(layer.diff_id for layer in layers))[-1])
        place.mkdir()
        (place / "a").write_bytes(b"text")

    layers = tree(store, [file("0")], [file("a", b"text")], [file("z")]).layers
    view = Tree(store, layers, materialise)
    assert paths(view) == ["0", "a", "z"]
    assert asked == []
    assert text(view, "a") == b"text"
    assert text(view, "a") == b"text"
    assert asked == [2]


def test_digests_come_from_the_listing(store: Store) -> None:
    view = tree(store, [file("a", b"text"), directory("d")])
    store.blob_path(view.layers[0].descriptor.digest).unlink()
    for entry in view.walk():
        expected = digest_of(b"text").removeprefix("sha256:") if entry.kind is Kind.FILE else ""
        assert view.digest(entry) == expected
    made = view.changed([file("b", b"more")])
    fresh = made.entry(b"b")
    assert fresh is not None
    assert made.digest(fresh) == digest_of(b"more").removeprefix("sha256:")


def test_a_layer_that_is_not_there(store: Store) -> None:
    nothing = digest_of(b"nothing")
    view = Tree(store, (Layer(nothing, Descriptor("x", nothing, 7)),))
    with pytest.raises(NotFoundError):
        view.entry(b"a")


def test_a_damaged_file_is_found_out(store: Store) -> None:
    from cache import layers, listings

    view = tree(store, [file("a", b"text")])
    (listing,) = (store.root / "listings").iterdir()
    entry = replace(layers.listing(store, view.layers[0])[0], digest="0" * 63 + "1")
    listing.write_bytes(listings.encode([entry]))
    with pytest.raises(CorruptError, match="damaged"):
        text(view, "a")


def test_a_store_is_let_go(tmp_path: Path) -> None:
    import gc
    import weakref

    store = Store.open(tmp_path / "other")
    view = tree(store, [file("a", b"text"), file("b")])
    text(view, "a")
    gone_store = weakref.ref(store)
    store.close()
    del view, store
    gc.collect()
    assert gone_store() is None


# ---------------------------------------------------------------- the same as on disk


simple = st.sampled_from(["a", "b", "c", "d"])
where = st.lists(simple, min_size=1, max_size=3).map("/".join)


@st.composite
def runs(draw: st.DrawFn) -> list[list[Entry]]:
    """Layers of few names, so that much meets. Directories come before what they hold."""
    out = []
    for _ in range(draw(st.integers(1, 4))):
        layer: list[Entry] = []
        for path in sorted(draw(st.sets(where, max_size=7))):
            what = draw(st.sampled_from(["file", "file", "directory", "directory", "gone", "opaque"]))
            if what == "file":
                layer.append(file(path, draw(st.binary(max_size=3))))
            elif what == "directory":
                layer.append(directory(path, draw(st.sampled_from([0o755, 0o700]))))
            elif what == "opaque":
                layer += [directory(path), opaque(path)]
            else:
                layer.append(gone(path))
        # A name below a file of the same layer is no tree.
        files = {entry.path for entry in layer if entry.kind is Kind.FILE}
        out.append([e for e in layer if not any(e.path.startswith(path + b"/") for path in files)])
    return out


@settings(max_examples=150)
@given(runs())
def test_a_tree_shows_what_unpacking_gives(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "store")) as store:
        place = Path(folder, "place")
        place.mkdir()
        done: list[Layer] = []
        for layer in layers:
            mine = [replace(entry, uid=os.geteuid(), gid=os.getegid()) for entry in layer]
            apply(mine, place, Dialect.PLAIN, Tree(store, tuple(done)))
            done.append(write(layer, store).layer)
        view = Tree(store, tuple(done))
        shown = {os.fsdecode(e.path): (e.mode, e.content.open().read() if e.content else None) for e in view.walk()}
        found = {}
        for path in place.rglob("*"):
            status = path.lstat()
            found[str(path.relative_to(place))] = (
                stat.S_IMODE(status.st_mode), path.read_bytes() if path.is_file() else None
            )  # fmt: skip
        assert shown == found

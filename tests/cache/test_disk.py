from __future__ import annotations

import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cache.disk import OWNER, Dialect, apply, entry_of, portable_capability
from cache.entries import BytesContent, Entry, FileContent, Kind
from cache.errors import CorruptError, StoreError
from cache.layers import write
from cache.removal import remove_tree
from cache.store import Store
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 10**9

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, device nodes, trusted attributes")


def file(path: bytes, data: bytes = b"", mode: int = 0o644, **more: Any) -> Entry:
    entry = Entry(path, Kind.FILE, mode, os.geteuid(), os.getegid(), size=len(data), content=BytesContent(data))
    return replace(entry, **more)


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode, os.geteuid(), os.getegid())


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, os.geteuid(), os.getegid(), target=target)


def hardlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, target=target)


def gone(path: bytes) -> Entry:
    return Entry(path, Kind.WHITEOUT)


def opaque(path: bytes) -> Entry:
    return Entry(path, Kind.OPAQUE)


def names(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir()
    return made


# ---------------------------------------------------------------- laying out


def test_modes_times_and_links(place: Path) -> None:
    apply(
        [
            directory(b"d", 0o555),
            file(b"d/f", b"text", 0o4711, mtime_ns=-5 * SECOND + 7),
            hardlink(b"h", b"d/f"),
            symlink(b"d/l", b"../../nowhere"),
            Entry(b"p", Kind.FIFO, 0o622, os.geteuid(), os.getegid(), mtime_ns=9 * SECOND),
            replace(directory(b"d/e", 0o1777), mtime_ns=3 * SECOND),
            file(b"d/e/x"),
        ],
        place,
        Dialect.PLAIN,
    )
    f = (place / "d/f").stat()
    assert (stat.S_IMODE(f.st_mode), f.st_mtime_ns, f.st_nlink) == (0o4711, -5 * SECOND + 7, 2)
    assert (place / "h").read_bytes() == b"text"
    assert os.readlink(place / "d/l") == "../../nowhere"
    assert stat.S_ISFIFO((place / "p").stat().st_mode)
    assert (place / "d/e").stat().st_mtime_ns == 3 * SECOND
    assert stat.S_IMODE((place / "d/e").stat().st_mode) == 0o1777
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o555


def test_the_umask_does_not_count(place: Path) -> None:
    before = os.umask(0o777)
    try:
        apply([directory(b"d", 0o777), file(b"d/f", b"", 0o666)], place, Dialect.PLAIN)
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "d/f").stat().st_mode) == 0o666
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o777


def test_names_of_any_bytes(place: Path) -> None:
    odd = [b"\xff\xfe", b"n" * 255, "é".encode(), b"-rf", b"new\nline"]
    apply([file(name, name) for name in odd], place, Dialect.PLAIN)
    assert sorted(os.listdir(os.fsencode(place))) == sorted(odd)


def test_missing_parents_are_made(place: Path) -> None:
    apply([file(b"a/b/c", b"x")], place, Dialect.PLAIN)
    assert stat.S_IMODE((place / "a/b").stat().st_mode) == 0o755
    assert (place / "a").stat().st_mtime == 0


def test_later_entries_replace_earlier_ones(place: Path) -> None:
    apply(
        [
            directory(b"a"), file(b"a/x"), file(b"a", b"now a file"),
            file(b"b"), directory(b"b"), file(b"b/x"),
            directory(b"c", 0o700), file(b"c/x"), directory(b"c", 0o711),
            symlink(b"d", b"/etc"), directory(b"d"), file(b"d/x"),
            file(b"e", b"1"), hardlink(b"f", b"e"), file(b"e", b"2"),
        ],
        place,
        Dialect.PLAIN,
    )  # fmt: skip
    assert names(place) == ["a", "b", "b/x", "c", "c/x", "d", "d/x", "e", "f"]
    assert (place / "a").read_bytes() == b"now a file"
    assert stat.S_IMODE((place / "c").stat().st_mode) == 0o711
    assert ((place / "e").read_bytes(), (place / "f").read_bytes()) == (b"2", b"1")


def test_a_replaced_directory_is_left_before_it_goes(place: Path) -> None:
    apply([file(b"a/b/c/d"), file(b"a/b"), file(b"a/c/d")], place, Dialect.PLAIN)
    assert names(place) == ["a", "a/b", "a/c", "a/c/d"]


@pytest.mark.parametrize("size", [4096, 3 << 20, (1 << 20) + 5])
def test_zeros_become_holes(place: Path, size: int) -> None:
    middle = os.urandom(5000)
    data = bytes(size) + middle + bytes(size)
    apply([file(b"f", data), file(b"zero", bytes(size))], place, Dialect.PLAIN)
    assert (place / "f").read_bytes() == data
    assert (place / "f").stat().st_blocks * 512 <= 5000 + 3 * 4096
    assert (place / "zero").read_bytes() == bytes(size)
    assert (place / "zero").stat().st_blocks == 0


def test_content_of_another_size_is_corrupt(place: Path) -> None:
    for size in (3, 5):
        with pytest.raises(CorruptError):
            apply([file(b"f", b"four", size=size)], place, Dialect.PLAIN)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([file(b"../escaped")], id="dotdot"),
        pytest.param([file(b"a/../../escaped")], id="dotdot inside"),
        pytest.param([file(b"/escaped")], id="absolute"),
        pytest.param([file(b"a//b")], id="two slashes"),
        pytest.param([file(b".")], id="dot"),
        pytest.param([file(b"a\0b")], id="zero byte"),
        pytest.param([symlink(b"l", b"../outside"), file(b"l/escaped")], id="symlink"),
        pytest.param([symlink(b"l", b"/tmp"), directory(b"l/escaped")], id="absolute symlink"),
        pytest.param([symlink(b"l", b"../outside"), opaque(b"l")], id="opaque symlink"),
        pytest.param([symlink(b"l", b"../outside"), gone(b"l/kept")], id="whiteout through a symlink"),
        pytest.param([symlink(b"l", b"../outside"), hardlink(b"h", b"l/kept")], id="hardlink through a symlink"),
        pytest.param([hardlink(b"h", b"../outside/kept")], id="hardlink outside"),
        pytest.param([hardlink(b"h", b"missing")], id="hardlink to nothing"),
        pytest.param([directory(b"d"), hardlink(b"h", b"d")], id="hardlink to a directory"),
        pytest.param([hardlink(b"h", b"h")], id="hardlink to itself"),
        pytest.param([file(b"f"), file(b"f/below")], id="below a file"),
        pytest.param([file(b"")], id="the root is a file"),
        pytest.param([symlink(b"l", b"")], id="empty symlink"),
    ],
)
@pytest.mark.parametrize("dialect", [Dialect.PLAIN, Dialect.OVERLAY_USER])
def test_nothing_gets_out(tmp_path: Path, place: Path, entries: list[Entry], dialect: Dialect) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    with pytest.raises(CorruptError):
        apply(entries, place, dialect)
    assert names(tmp_path / "outside") == ["kept"]
    assert (tmp_path / "outside/kept").stat().st_nlink == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outside", "place"]


def test_a_file_written_over_a_symlink_replaces_it(tmp_path: Path, place: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    apply([symlink(b"l", b"../victim"), file(b"l", b"new")], place, Dialect.PLAIN)
    assert (tmp_path / "victim").read_text() == "kept"
    assert (place / "l").read_text() == "new"


# ---------------------------------------------------------------- plain: onto the layers below


def test_deletions_are_carried_out_on_the_layers_below(place: Path) -> None:
    apply(
        [file(b"a/1"), file(b"a/2"), file(b"b/1"), file(b"c/1"), file(b"c/d/2"), file(b"e"), symlink(b"s", b"/")],
        place,
        Dialect.PLAIN,
    )
    apply(
        [
            gone(b"a/1"),
            gone(b"b"),
            gone(b"never"),
            directory(b"c"), file(b"c/new"), opaque(b"c"),
            gone(b"e"), directory(b"e"), file(b"e/x"),
            gone(b"s"), file(b"s/x"),
        ],
        place,
        Dialect.PLAIN,
    )  # fmt: skip
    assert names(place) == ["a", "a/2", "c", "c/new", "e", "e/x", "s", "s/x"]


def test_a_layers_deletions_do_not_touch_its_own(place: Path) -> None:
    apply([file(b"d/lower"), file(b"f")], place, Dialect.PLAIN)
    apply(
        [directory(b"d"), file(b"d/upper"), gone(b"d"), file(b"f", b"2"), gone(b"f"), opaque(b"")], place, Dialect.PLAIN
    )
    assert names(place) == ["d", "d/upper", "f"]


# ---------------------------------------------------------------- overlay


@root
def test_whiteouts_and_opaque_directories_of_overlayfs(place: Path) -> None:
    apply(
        [
            directory(b"d"), opaque(b"d"), gone(b"f"), gone(b"deep/er/x"),
            gone(b"again"), directory(b"again"), file(b"again/x"),
            directory(b"first"), gone(b"first"),
            gone(b"file"), file(b"file"),
            gone(b"implied"), file(b"implied/x"),
        ],
        place,
        Dialect.OVERLAY,
    )  # fmt: skip

    def is_opaque(name: str) -> bool:
        return "trusted.overlay.opaque" in os.listxattr(place / name)

    for name in ("f", "deep/er/x"):
        status = (place / name).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    assert [n for n in ("d", "again", "first", "implied", "deep") if is_opaque(n)] == ["d", "again", "first", "implied"]
    assert (place / "file").is_file()


def test_attributes_that_overlayfs_acts_on_are_not_set(place: Path) -> None:
    marks = (("trusted.overlay.redirect", b"/etc"), ("user.overlay.opaque", b"y"), ("user.ours", b"1"))
    apply([replace(directory(b"d"), xattrs=marks), file(b"f", xattrs=marks)], place, Dialect.OVERLAY_USER)
    for name in ("d", "f"):
        found = os.listxattr(place / name)
        assert [mark for mark in found if "overlay" in mark] == []


@pytest.fixture
def lower(tmp_path: Path) -> Iterator[Tree]:
    with Store.open(tmp_path / "store") as store:
        layer = write(
            [
                directory(b"etc", 0o700),
                file(b"etc/conf", b"lower", 0o640),
                symlink(b"lib", b"usr/lib"),
                directory(b"usr"),
                directory(b"usr/lib", 0o711),
                symlink(b"loop", b"loop"),
            ],
            store,
        ).layer
        yield Tree(store, (layer,))


def test_parents_that_the_layer_leaves_out_are_as_below(place: Path, lower: Tree) -> None:
    apply([file(b"etc/new"), file(b"lib/so")], place, Dialect.OVERLAY_USER, lower)
    assert names(place) == ["etc", "etc/new", "usr", "usr/lib", "usr/lib/so"]
    assert stat.S_IMODE((place / "etc").stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "usr/lib").stat().st_mode) == 0o711


def test_a_directory_of_the_layer_replaces_a_symlink_below(place: Path, lower: Tree) -> None:
    apply([directory(b"lib"), file(b"lib/so")], place, Dialect.OVERLAY_USER, lower)
    assert names(place) == ["lib", "lib/so"]


def test_a_loop_of_symlinks_below_is_an_error(place: Path, lower: Tree) -> None:
    with pytest.raises(StoreError, match="circle"):
        apply([file(b"loop/x")], place, Dialect.OVERLAY_USER, lower)


def test_a_hardlink_to_a_file_of_a_lower_layer_copies_it_up(place: Path, lower: Tree) -> None:
    apply([hardlink(b"etc/link", b"etc/conf")], place, Dialect.OVERLAY_USER, lower)
    assert names(place) == ["etc", "etc/conf", "etc/link"]
    assert (place / "etc/link").read_bytes() == b"lower"
    status = (place / "etc/conf").stat()
    assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (2, 0o640)


# ---------------------------------------------------------------- what the disk can not hold


class Refused:
    """chown and mknod as for a user without privileges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        mknod = os.mknod

        def whiteouts_only(path: bytes, mode: int, device: int = 0, **more: int) -> None:
            if device:
                refuse()
            mknod(path, mode, device, **more)

        for name in ("chown", "fchown", "lchown"):
            monkeypatch.setattr(os, name, refuse)
        monkeypatch.setattr(os, "mknod", whiteouts_only)


def test_owners_that_can_not_be_given_are_read_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Refused(monkeypatch)
    entries = [
        Entry(b"d", Kind.DIRECTORY, 0o2750, 33, 34, mtime_ns=SECOND),
        Entry(b"f", Kind.FILE, 0o6755, 1000, 2**31, 3, 2 * SECOND, content=BytesContent(b"abc")),
        Entry(b"null", Kind.CHARACTER, 0o666, 0, 7, 0, SECOND, device=(1, 3)),
    ]
    apply(entries, place, Dialect.PLAIN)
    for entry in entries:
        full = os.fsencode(place) + b"/" + entry.path
        found = entry_of(entry.path, full, os.lstat(full))
        assert found is not None
        assert replace(found[0], content=entry.content) == entry


def test_a_later_chmod_wins_over_the_kept_mode(place: Path) -> None:
    (place / "f").touch(0o644)
    os.setxattr(place / "f", OWNER, b"5:6:4755")
    (place / "f").chmod(0o600)
    found = entry_of(b"f", os.fsencode(place / "f"), os.lstat(place / "f"))
    assert found is not None
    assert (found[0].uid, found[0].gid, found[0].mode) == (5, 6, 0o600)


@pytest.mark.parametrize("mark", [b"", b"x", b"1:2", b"1:2:9", b"\xff:0:0"])
def test_a_broken_mark_counts_for_nothing(place: Path, mark: bytes) -> None:
    (place / "f").touch(0o644)
    os.setxattr(place / "f", OWNER, mark)
    found = entry_of(b"f", os.fsencode(place / "f"), os.lstat(place / "f"))
    assert found is not None
    assert (found[0].uid, found[0].mode) == (os.geteuid(), 0o644)


@root
def test_capabilities_are_written_and_read(place: Path) -> None:
    second = struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)
    apply([file(b"f", b"x", 0o755, xattrs=(("security.capability", second),))], place, Dialect.OVERLAY)
    found = entry_of(b"f", os.fsencode(place / "f"), os.lstat(place / "f"))
    assert found is not None
    assert found[0].xattrs == (("security.capability", second),)


def test_capabilities_of_other_lengths_stay() -> None:
    for value in (b"", b"\1\0\0\2" + bytes(16), bytes(24)):
        assert portable_capability(value) == value


# ---------------------------------------------------------------- any tree, and back


plain_names = st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from([b"a", b"b", b"c"])).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."} and name[:4] != b".wh."
)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Entry], list[Entry]]:
    """A layer in the order of a walk, and a lower one that has all that it deletes."""
    out: list[Entry] = []
    below: list[Entry] = []
    owners = st.integers(0, 100000)

    def fill(path: bytes, depth: int, *, hidden: bool) -> None:
        for name in sorted(draw(st.sets(plain_names, max_size=4))):
            full = path + b"/" + name if path else name
            files = [entry.path for entry in out if entry.kind is Kind.FILE]
            kinds = [Kind.FILE, Kind.SYMLINK, Kind.FIFO, Kind.CHARACTER]
            kinds += [] if hidden else [Kind.WHITEOUT]
            kinds += [Kind.DIRECTORY] * 3 if depth else []
            kinds += [Kind.HARDLINK] if files else []
            kind = draw(st.sampled_from(kinds))
            if kind is Kind.WHITEOUT:
                out.append(gone(full))
                below.append(file(full, b"old"))
                continue
            if kind is Kind.HARDLINK:
                path_of = draw(st.sampled_from(files))
                target = next(entry for entry in out if entry.path == path_of)
                out.append(replace(target, path=full, kind=kind, target=target.path, size=0, content=None, xattrs=()))
                continue
            mode = draw(st.integers(0, 0o7777))
            entry = Entry(full, kind, mode, draw(owners), draw(owners), 0, draw(st.integers(-(2**31), 2**33)) * SECOND)
            if kind is Kind.FILE:
                data = draw(st.one_of(st.binary(max_size=60), st.just(bytes(9000) + b"x" + bytes(5000))))
                xattrs = draw(st.sampled_from([(), (("user.a", b"\xff"),)]))
                entry = replace(entry, size=len(data), content=BytesContent(data), xattrs=xattrs)
            elif kind is Kind.SYMLINK:
                entry = replace(entry, mode=0o777, target=draw(plain_names))
            elif kind is Kind.CHARACTER:
                entry = replace(entry, device=(1, 3))
            out.append(entry)
            if kind is Kind.DIRECTORY:
                opaque_one = not hidden and draw(st.booleans())
                if opaque_one:
                    out.append(opaque(full))
                    below.append(directory(full, mode ^ 1))
                    below.append(file(full + b"/old"))
                elif not hidden:
                    below.append(directory(full, mode ^ 1))
                fill(full, depth - 1, hidden=hidden or opaque_one)

    fill(b"", 3, hidden=False)
    return out, below


@root
@settings(max_examples=60)
@given(layers())
def test_any_layer_is_read_back_from_its_directory(both: tuple[list[Entry], list[Entry]]) -> None:
    from cache.snapshots import read_upper

    entries, below = both
    with tempfile.TemporaryDirectory() as folder:
        upper, lower = Path(folder, "upper"), Path(folder, "lower")
        upper.mkdir()
        lower.mkdir()
        apply(below, lower, Dialect.OVERLAY)
        apply(entries, upper, Dialect.OVERLAY)
        found = list(read_upper(os.fsencode(upper), [os.fsencode(lower)], Dialect.OVERLAY))
        assert [replace(entry, content=None) for entry in found] == [replace(e, content=None) for e in entries]
        for one, other in zip(found, entries, strict=True):
            if isinstance(other.content, BytesContent):
                assert isinstance(one.content, FileContent)
                assert Path(os.fsdecode(one.content.path)).read_bytes() == other.content.data
        remove_tree(upper)
        assert not upper.exists()

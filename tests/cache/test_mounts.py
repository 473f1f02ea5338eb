"""Folders of cache mounts on a shelf: what comes back, what is sent, what goes when there is no room."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cache.disk import Dialect
from cache.errors import CorruptError, StoreError
from cache.mounts import look, restore, save, sheet_name
from cache.shelves import Directory
from cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.mounts import Folder, Saved

AMPLE = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def shelf(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "shelf")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mount/data").mkdir(parents=True)
    return tmp_path / "mount/data"


def kept(shelf: Directory, place: Path, store: Store, *, limit: int = AMPLE, name: str = "pip") -> Saved:
    return save(shelf, name, place, store, limit=limit, stop=lambda: False)


def given(shelf: Directory, place: Path, store: Store, name: str = "pip") -> Folder:
    """The folder, laid out in a new directory, in a folder of its own as each mount's is."""
    place.mkdir(parents=True)
    found = look(shelf, name)
    assert found is not None
    restore(shelf, found, place, Dialect.PLAIN, store)
    return found


def listing(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = stat.S_IMODE(status.st_mode)
        seconds = None if path.is_dir() else int(status.st_mtime)
        found[str(path.relative_to(place))] = (mode, status.st_uid, status.st_gid, content, seconds)
    return found


def many(place: Path, count: int = 500) -> None:
    for number in range(count):
        path = place / f"d{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"{number}".encode() * 50)


def test_a_folder_comes_back_as_it_was(shelf: Directory, place: Path, store: Store, tmp_path: Path) -> None:
    many(place, 100)
    (place / "empty").mkdir()
    (place / "locked").mkdir(mode=0o700)
    (place / "locked/run").write_text("#!/bin/sh")
    (place / "locked/run").chmod(0o4755)
    (place / "link").symlink_to("../outside")
    (place / "large").write_bytes(os.urandom(3 << 20))
    (place / b"caf\xe9".decode("utf-8", "surrogateescape")).write_text("latin")
    os.utime(place / "large", (1_000_000_000, 1_000_000_000))
    if os.geteuid() == 0:
        os.chown(place / "locked", 42, 43)
    assert look(shelf, "pip") is None
    kept(shelf, place, store)
    given(shelf, tmp_path / "again/data", store)
    assert listing(tmp_path / "again/data") == listing(place)
    assert look(shelf, "other") is None


def test_what_did_not_change_is_not_sent_again(shelf: Directory, place: Path, store: Store, tmp_path: Path) -> None:
    many(place, 2000)
    first = kept(shelf, place, store)
    assert first.packs > 10
    assert first.sent >= first.size
    assert kept(shelf, place, store).sent == 0
    # Another machine, whose folder was restored: the same packs.
    given(shelf, tmp_path / "again/data", store)
    assert kept(shelf, tmp_path / "again/data", store).sent == 0
    (tmp_path / "again/data/d3/file3").write_text("changed")
    (tmp_path / "again/data/d3/new").write_text("new")
    (tmp_path / "again/data/d4/file4").unlink()
    third = kept(shelf, tmp_path / "again/data", store)
    assert 0 < third.sent < first.sent / 2
    given(shelf, tmp_path / "third/data", store)
    assert listing(tmp_path / "third/data") == listing(tmp_path / "again/data")


def test_the_least_recently_used_goes_first(shelf: Directory, place: Path, store: Store, tmp_path: Path) -> None:
    for number in range(6):
        (place / f"large{number}").write_bytes(os.urandom(3 << 20))
        os.utime(place / f"large{number}", (1_000_000 + number, 1_000_000 + number))
    kept(shelf, place, store)
    place = tmp_path / "again/data"
    given(shelf, place, store)
    for number in (1, 4):
        status = (place / f"large{number}").stat()
        os.utime(place / f"large{number}", ns=(status.st_mtime_ns + 4_000_000_000_000_000_000, status.st_mtime_ns))
    saved = kept(shelf, place, store, limit=7 << 20)
    assert saved.size <= 7 << 20
    assert saved.left_out > 11 << 20
    given(shelf, tmp_path / "third/data", store)
    assert sorted(path.name for path in (tmp_path / "third/data").iterdir()) == ["large1", "large4"]


def test_looking_does_not_count_as_use(shelf: Directory, place: Path, store: Store) -> None:
    (place / "file").write_text("x")
    os.utime(place / "file", (1_000_000, 1_000_000))
    before = (place / "file").stat().st_atime
    kept(shelf, place, store)
    assert (place / "file").stat().st_atime == before


def test_what_others_have_added_meanwhile_is_kept(shelf: Directory, place: Path, store: Store, tmp_path: Path) -> None:
    many(place, 50)
    kept(shelf, place, store)
    one, two = tmp_path / "one/data", tmp_path / "two/data"
    given(shelf, one, store)
    given(shelf, two, store)
    (one / "from-one").write_text("1")
    (two / "from-two").write_text("2")
    (two / "d1/file1").unlink()
    kept(shelf, one, store)
    kept(shelf, two, store)
    kept(shelf, two, store)  # and so it is when nothing was restored in between
    given(shelf, tmp_path / "last/data", store)
    assert (tmp_path / "last/data/from-one").read_text() == "1"
    assert (tmp_path / "last/data/from-two").read_text() == "2"
    assert (tmp_path / "last/data/d2/file2").exists()


def test_ids_have_folders_of_their_own(shelf: Directory, place: Path, store: Store, tmp_path: Path) -> None:
    (place / "a").write_text("pip")
    kept(shelf, place, store)
    (place / "a").write_text("apt")
    kept(shelf, place, store, name="apt/../../x")
    given(shelf, tmp_path / "pip/data", store)
    given(shelf, tmp_path / "apt/data", store, "apt/../../x")
    assert (tmp_path / "pip/data/a").read_text() == "pip"
    assert (tmp_path / "apt/data/a").read_text() == "apt"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_pack_leaves_an_empty_folder(
    shelf: Directory, place: Path, store: Store, tmp_path: Path, damage: str
) -> None:
    many(place)
    kept(shelf, place, store)
    found = look(shelf, "pip")
    assert found is not None
    path = tmp_path / "shelf/blobs" / found.packs[-1].blob.digest.replace(":", "/")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    (tmp_path / "again/data").mkdir(parents=True)
    with pytest.raises(StoreError):
        restore(shelf, found, tmp_path / "again/data", Dialect.PLAIN, store)
    assert list((tmp_path / "again/data").iterdir()) == []
    assert list((tmp_path / "store/tmp").iterdir()) == []


def test_the_list_of_another_folder_is_not_believed(shelf: Directory, place: Path, store: Store) -> None:
    (place / "a").write_text("pip")
    kept(shelf, place, store)
    sheet = shelf.find(sheet_name("pip"))
    assert sheet is not None
    shelf.keep(sheet_name("apt"), sheet)
    with pytest.raises(CorruptError):
        look(shelf, "apt")


def test_saving_can_be_stopped(shelf: Directory, place: Path, store: Store) -> None:
    many(place, 10)
    assert save(shelf, "pip", place, store, limit=AMPLE, stop=lambda: True).packs == 0
    assert look(shelf, "pip") is None


def test_a_file_that_can_not_be_read_takes_only_its_pack_along(
    shelf: Directory, place: Path, store: Store, tmp_path: Path
) -> None:
    many(place, 300)
    os.mkfifo(place / "fifo")
    (place / ".wh.odd").write_text("x")
    kept(shelf, place, store)
    given(shelf, tmp_path / "again/data", store)
    assert len(listing(tmp_path / "again/data")) == len(listing(place)) - 2


def test_what_was_changed_here_leaves_no_old_packs_behind(
    shelf: Directory, place: Path, store: Store, tmp_path: Path
) -> None:
    many(place, 300)
    first = kept(shelf, place, store)
    for number in range(5):
        (place / "d3/file3").write_bytes(os.urandom(1000 + number))
        assert kept(shelf, place, store).packs == first.packs
    for path in place.rglob("file*"):
        path.unlink()
    assert kept(shelf, place, store).packs == 1
    # A note that is damaged makes packs stay, and loses none.
    (place.parent / "shelves.json").write_text("{")
    (place / "new").write_text("new")
    kept(shelf, place, store)
    given(shelf, tmp_path / "again/data", store)
    assert (tmp_path / "again/data/new").read_text() == "new"

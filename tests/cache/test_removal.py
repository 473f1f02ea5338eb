"""Removing trees: closed to their owner, very deep, being removed by others too, and never what a link points at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from cache.removal import remove_tree, take_away
from tests.cache.test_prune import as_user

if TYPE_CHECKING:
    from pathlib import Path

Remove = Callable[[str], int]


@pytest.fixture(params=[remove_tree, take_away], ids=["strict", "patient"])
def remove(request: pytest.FixtureRequest) -> Remove:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def test_a_tree_goes_and_what_it_points_at_stays(tmp_path: Path, remove: Remove) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "link").symlink_to(outside)
    (tree / "absolute").symlink_to("/etc")
    os.mkfifo(tree / "fifo")
    os.mkdir(bytes(tree) + b"/\xff")
    remove(str(tree))
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(outside) == ["file"]
    assert remove(str(tree)) == 0
    (tmp_path / "link").symlink_to(outside)
    remove(str(tmp_path / "link"))
    assert os.listdir(outside) == ["file"]


def test_a_tree_without_permissions_is_removed(place: Path, remove: Remove) -> None:
    (place / "a/b/c").mkdir(parents=True)
    (place / "a/b/c/f").touch()
    (place / "a/b/c").chmod(0)
    (place / "a/b").chmod(0o500)
    (place / "a").chmod(0)
    remove(str(place))
    assert not place.exists()


def test_removing_nothing(tmp_path: Path, remove: Remove) -> None:
    remove(str(tmp_path / "never"))
    remove(str(tmp_path / "never" / "below"))


def test_a_tree_deeper_than_a_path_may_be_long(place: Path, remove: Remove) -> None:
    # Than files may be open and than Python's stack, too.
    here = os.open(place, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("directory", dir_fd=here)
        inner = os.open("directory", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    remove(str(place))
    assert not place.exists()


def test_the_bytes_that_went(tmp_path: Path, place: Path, remove: Remove) -> None:
    (place / "f").write_bytes(b"x" * 100_000)
    (place / "kept").write_bytes(b"x" * 100_000)
    os.link(place / "kept", tmp_path / "name")
    size = sum(path.lstat().st_blocks * 512 for path in (place, place / "f"))
    assert remove(str(place)) == size
    assert (tmp_path / "name").exists()


REMOVE_AS_USER = """
import os, sys
from cache.removal import take_away
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
os.chdir(sys.argv[1])
os.makedirs("tree/closed/inner")
for name in ("tree/closed/inner/file", "tree/file"):
    open(name, "w").close()
os.chmod("tree/closed/inner", 0o500)
os.chmod("tree/closed", 0)
os.chmod("tree", 0o100)
take_away(os.path.abspath("tree"))
assert not os.path.lexists("tree")
"""


def test_directories_that_their_owner_may_not_enter(tmp_path: Path) -> None:
    as_user(REMOVE_AS_USER, tmp_path / "folder")


def test_two_that_remove_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(300):
        (tree / f"{number % 20}").mkdir(parents=True, exist_ok=True)
        (tree / f"{number % 20}" / f"{number}").touch()
    program = "import sys; from cache.removal import take_away; take_away(sys.argv[1])"
    children = [subprocess.Popen([sys.executable, "-c", program, str(tree)]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert os.listdir(tmp_path) == []


FOREIGN = """
import os, sys
from cache.errors import StoreError
from cache.removal import remove_tree, take_away
os.chdir(sys.argv[1])
os.makedirs("foreign/tree")
open("foreign/tree/file", "w").close()
os.chmod(".", 0o777)
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
take_away(os.path.abspath("foreign/tree"))
try:
    remove_tree(os.path.abspath("foreign/tree"))
except StoreError as error:
    assert "Permission denied" in error.message, error.message
else:
    raise AssertionError
assert os.path.exists("foreign/tree/file")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make another user's files")
def test_what_another_user_owns(tmp_path: Path) -> None:
    as_user(FOREIGN, tmp_path / "folder")

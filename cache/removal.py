"""Taking files and trees off the disk: whatever modes their directories have, however deep they are, no link followed.

A tree may be deeper than a path may be long, its directories may be closed to their owner, and other processes may be
removing it as well.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from cache.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

TRASH = "trash-"
"""How names of a store's `tmp/` begin that anyone may remove at any time."""

_DEPTH = 100
"""Directories below this depth are moved up before they are removed: open files and the stack are limited."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path | str) -> int:
    """Remove a file, or a directory and all in it; the bytes that it occupied. Nothing there: nothing to do.

    Raises StoreError for what can not be removed: another user's files.
    """
    try:
        return _remove_from(os.fspath(path), patient=False)
    except OSError as error:
        raise StoreError(f"can not remove {path}: {error.strerror}") from error


def take_away(path: str) -> int:
    """The same for what others may be removing too; what another user owns stays, for a process that may remove it."""
    return _remove_from(path, patient=True)


def make_movable(path: str, status: os.stat_result) -> None:
    """An ordinary user needs to write to a directory to give it another parent."""
    if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o700 != 0o700:
        os.chmod(path, 0o700)


def remove_in(folder: int, name: bytes, *, patient: bool = False) -> int:
    """Remove `name` of an open directory; the bytes that it occupied. patient: what another user owns stays."""
    freed = 0
    names = [name]
    for each in names:
        with suppress(FileNotFoundError, *([PermissionError] if patient else [])):
            freed += _remove(each, folder, folder, names, 0)
    return freed


def _remove_from(path: str, *, patient: bool) -> int:
    folder, name = os.path.split(path)
    try:
        top = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return remove_in(top, os.fsencode(name), patient=patient)
    finally:
        os.close(top)


def _remove(name: bytes, parent: int, top: int, more: list[bytes], depth: int) -> int:
    """Remove `name` of the directory `parent`. What lies too deep moves to `top`, under a name that `more` gets."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        # A file with further names keeps its bytes.
        return status.st_blocks * 512 if status.st_nlink == 1 else 0
    if status.st_mode & 0o700 != 0o700:
        # An ordinary user needs all three bits to empty a directory. Before Linux 6.6 there is no chmod that does not
        # follow links; nobody else writes in here, so what was a directory still is one.
        with suppress(PermissionError):
            os.chmod(name, 0o700, dir_fd=parent)
    if depth >= _DEPTH:
        moved = f"{TRASH}{os.urandom(8).hex()}".encode()
        os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=top)
        more.append(moved)
        return 0
    directory = os.open(name, _DIRECTORY, dir_fd=parent)
    freed = status.st_blocks * 512
    try:
        for inner in os.listdir(directory):
            with suppress(FileNotFoundError):
                freed += _remove(os.fsencode(inner), directory, top, more, depth + 1)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)
    return freed

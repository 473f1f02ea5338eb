"""The folders behind `RUN --mount=type=cache`: kept from build to build, shared between processes by file locks.

mounts/<hash of the id>/data            the files
mounts/<hash of the id>.<n>/data        further ones, for `sharing=private` while the first is held
mounts/<...>.lock                       held for the time of a RUN: shared for `shared`, exclusive for the others
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import CancelledError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

    from builder.model import CacheMount, Origin

Fill = Callable[[str, Path], bool]
"""(id, an empty folder): lay out what a cache elsewhere has of the mount; whether it has any."""

_SHARING = ("shared", "private", "locked")
"""From the weakest to the strongest: for mounts of one RUN that have one id, the strongest counts for all."""

_WAIT_SECONDS = 0.05


def hold(
    mounts: Iterable[CacheMount],
    root: Path,
    seed: Callable[[Origin, str, Path], None],
    stop: threading.Event,
    stack: contextlib.ExitStack,
    fill: Fill | None = None,
) -> dict[str, Path]:
    """The folder of each cache mount of one RUN, by id, held until `stack` is closed.

    shared: a shared lock on the one folder of the id. locked: an exclusive one, waited for. private: the first folder
    of the id that nobody holds. seed: fills a new folder, unless `fill` has; that one is asked about an empty one, too.
    Locks are taken in the order of the folders' names, the same
    for every RUN of every process, so that no two wait for each other. CancelledError when `stop` is set while waiting.
    """
    by_id: dict[str, list[CacheMount]] = {}
    for mount in mounts:
        by_id.setdefault(mount.id, []).append(mount)
    found: dict[str, Path] = {}
    for name, identity in sorted((_name(identity), identity) for identity in by_id):
        group = by_id[identity]
        sharing = max((mount.sharing for mount in group), key=_SHARING.index)
        if fill is not None:
            _drop_empty(root / name)
        folder = _locked(root, name, sharing, stop, stack)
        found[identity] = _data(folder, group[0], seed, stop, fill)
    return found


def _drop_empty(folder: Path) -> None:
    """Remove a folder in which nothing lies, and which nobody holds, for it to be made and filled anew."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        if not any((folder / "data").iterdir()) and _take(
            folder.with_name(folder.name + ".lock"), exclusive=True, wait=False, stop=None, stack=held
        ):
            (folder / "data").rmdir()


def _name(identity: str) -> str:
    return hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]


def _locked(root: Path, name: str, sharing: str, stop: threading.Event, stack: contextlib.ExitStack) -> Path:
    number = 0
    while True:
        folder = root / (name if number == 0 else f"{name}.{number}")
        lock = folder.with_name(folder.name + ".lock")
        if _take(lock, exclusive=sharing != "shared", wait=sharing != "private", stop=stop, stack=stack):
            return folder
        number += 1


def _data(
    folder: Path,
    mount: CacheMount,
    seed: Callable[[Origin, str, Path], None],
    stop: threading.Event,
    fill: Fill | None,
) -> Path:
    """The files' folder, made when it is not there: by one process, however many want it, and never half."""
    data = folder / "data"
    if data.is_dir():
        return data
    with contextlib.ExitStack() as making:
        _take(folder.with_name(folder.name + ".new.lock"), exclusive=True, wait=True, stop=stop, stack=making)
        if data.is_dir():
            return data
        fresh = folder / "new"
        if fresh.exists():
            from cache.removal import remove_tree

            remove_tree(fresh)  # of a process that was killed
        fresh.mkdir(parents=True)
        (folder / "id").write_bytes(os.fsencode(mount.id))
        if not (fill is not None and fill(mount.id, fresh)) and mount.origin is not None:
            seed(mount.origin, mount.source, fresh)
        fresh.chmod(mount.mode)
        with contextlib.suppress(OSError):  # with one id there is nobody else
            os.chown(fresh, mount.uid, mount.gid)
        fresh.rename(data)
    return data


def _take(
    path: Path, *, exclusive: bool, wait: bool, stop: threading.Event | None, stack: contextlib.ExitStack
) -> bool:
    """Lock a file until `stack` is closed; False when it is held by another and not waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait or stop is None:
                    os.close(descriptor)
                    return False
                # Not a waiting flock: nothing could end that one when the user stops the build.
                if stop.wait(_WAIT_SECONDS):
                    raise CancelledError("the build was stopped") from None
            else:
                break
    except CancelledError:
        os.close(descriptor)
        raise
    with contextlib.suppress(OSError):
        os.utime(descriptor)  # by which the least recently used is found
    stack.callback(os.close, descriptor)
    return True

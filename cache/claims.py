"""One step at a time: of several builds that come to the same step, one does it and the others wait for its result.

A claim is a locked file in the store's `tmp/`. The kernel drops the lock of a process that dies, so a claim never
outlives its holder. Whoever holds one is doing the step and asks for no other meanwhile, so no two can wait for each
other.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_INTERVAL = 0.05


class Claim:
    """A context manager: the right to do the step of this key, waited for as long as another has it.

    root: the store's folder. wait: called with a number of seconds each time that another one is found to hold the
    claim; it returns after that time, or raises to give up. Raises StoreError when the store can not be written.
    """

    def __init__(self, root: Path, key: str, wait: Callable[[float], object]) -> None:
        self._path = os.path.join(root, "tmp", f"step-{key}")
        self._wait = wait
        self._file = -1

    def __enter__(self) -> Self:
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StoreError(f"can not write {self._path}: {error.strerror}") from error
            try:
                # Not a waiting flock: nothing could end that one when the user stops the build.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                self._wait(_INTERVAL)
                continue
            # Between open and flock the holder before may have removed the file: then another one is the claim.
            if os.fstat(file).st_nlink:
                self._file = file
                return self
            os.close(file)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._file)

"""Directories by chain id: what a RUN stands on, and what it changed.

`Root` describes a root file system; an executor mounts it. Nothing here mounts anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OverlayRoot:
    """A union of directories. base: the folder that the relative `lowers` (topmost first) are in.

    upper: where writes go; work: overlayfs's own, an empty folder of the same file system. userxattr: mount with
    `userxattr`, so that overlayfs marks things in `user.overlay.*`, as it must inside a user namespace.
    """

    base: Path
    lowers: tuple[str, ...]
    upper: Path
    work: Path
    userxattr: bool


@dataclass(frozen=True, slots=True)
class DirectoryRoot:
    """A root file system that is simply a directory."""

    path: Path


Root = OverlayRoot | DirectoryRoot

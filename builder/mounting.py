"""Images as folders, without copying: the layers' directories united by a read-only overlay.

This takes the right to mount in the mount namespace that is to show the image: real root has it, and so has whoever is
inside `pybuild unshare`, or another user namespace with a mount namespace of its own. Elsewhere `image export` copies.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from builder import sandbox
from builder.errors import BuildError, UnsupportedError
from builder.isolation import mount_problem
from cache import uses
from cache.errors import StoreError
from cache.oci import chain_ids
from cache.snapshots import OverlaySnapshots
from cache.tree import directory_name

if TYPE_CHECKING:
    from cache.store import Image, Store
    from cache.uses import Mount

_OURS = "pybuild-mount-"


def mount(store: Store, image: Image, place: Path | None = None) -> Path:
    """Show the files of `image`, read-only, at `place`, an empty directory or one to be made; where it is.

    Without a place a fresh directory is made among the temporary files. The mount stays until `unmount`; meanwhile the
    image can not be removed. To be called with a lease held. Raises UnsupportedError where nothing can be mounted,
    BuildError for a place that will not do.
    """
    problem = mount_problem()
    if problem:
        raise UnsupportedError(
            f"an image can not be mounted here: {problem}",
            hint="inside `pybuild unshare` it can; `pybuild image export` copies the files anywhere",
        )
    inside = sandbox.in_user_namespace()
    error = sandbox.try_overlay(str(store.root / "tmp"), inside)
    if error:
        raise UnsupportedError(
            f"an image can not be mounted: the file system of {store.root} carries no overlay ({error.strerror})",
            hint="choose a store on another one with --root, or copy the files with `pybuild image export`",
        )
    made = place is None or not place.exists()
    target: Path | None = None
    layers = store.layers(image)
    snapshots = OverlaySnapshots(store, userxattr=inside)
    folder = uses.begin_mount(store)
    try:
        target = _prepared(place)
        names = [directory_name(chain) for chain in reversed(chain_ids(tuple(layer.diff_id for layer in layers)))]
        # Recorded before the layers are laid out: from now on nobody prunes them.
        uses.record_mount(store, folder, image, target, names)
        snapshots.materialise(layers)
        top = os.path.join(folder, "top")
        snapshots.set_up_root(names[0] if names else None, top)
        # A union without an upper directory has at least two lower ones.
        lowers = [os.path.relpath(top, store.root / "snapshots"), *(names or [_empty(folder, store)])]
        sandbox.show_union(str(target), lowers, str(store.root / "snapshots"), inside)
    except BaseException as failure:
        uses.discard(folder)
        if made and target is not None:
            with suppress(OSError):
                target.rmdir()
        if isinstance(failure, OSError):
            raise BuildError(f"can not mount the image: {failure.strerror or failure}") from failure
        raise
    finally:
        snapshots.close()
    return target


def _prepared(place: Path | None) -> Path:
    if place is None:
        return Path(tempfile.mkdtemp(prefix=_OURS))
    try:
        place.mkdir(parents=True, exist_ok=True)
        place = place.resolve()
        if any(place.iterdir()):
            raise BuildError(f"{place} is not empty", hint="choose an empty or a new directory to mount at")
    except FileExistsError:
        raise BuildError(f"{place} is not a directory") from None
    except OSError as error:
        raise BuildError(f"can not mount at {place}: {error.strerror}") from error
    return place


def _empty(folder: str, store: Store) -> str:
    path = os.path.join(folder, "empty")
    os.mkdir(path)
    return os.path.relpath(path, store.root / "snapshots")


def unmount(found: Mount) -> None:
    """Take a mount away, and its directory if `mount` made it by itself. BuildError while files in it are in use."""
    try:
        sandbox.unmount(found.place)
    except PermissionError:
        raise UnsupportedError(
            f"{found.place} can not be unmounted here", hint="by root, or inside the `pybuild unshare` that mounted it"
        ) from None
    except OSError as error:
        raise BuildError(
            f"can not unmount {found.place}: {error.strerror or error}",
            hint="leave it with every shell and program" if error.errno == 16 else "",
        ) from None
    uses.discard(found.folder)
    if os.path.basename(found.place).startswith(_OURS):
        with suppress(OSError):
            os.rmdir(found.place)


def meant(store: Store, word: str) -> list[Mount]:
    """The mounts that a word means: a place, or an image's name or id. StoreError when there is none."""
    mounts = uses.mounts(store)
    place = os.path.realpath(word)
    found = [each for each in mounts if each.place in {word, place}]
    if not found:
        with suppress(StoreError):
            image = store.image(word)
            found = [each for each in mounts if each.image == image.id]
    if not found:
        raise StoreError(f"no image is mounted at, or called, {word}", "pybuild image mount lists them")
    return found

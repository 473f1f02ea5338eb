"""What is in use: images that a running build stands on, and images that are mounted.

    leases/<pid>-<random>          a running build's (see `cache.prune`): the ids of the images that it has taken
    mounted/<random>/use.json      a mount: image, place, and the mount namespace that it is in
    mounted/<random>/top           the mount's uppermost layer: an empty directory with the root's owner and mode

A mount lasts longer than the process that made it, so no lock can stand for it. It is alive while that process is, or
one of its mount namespace shows it in its `mountinfo`; the record of one that is not is removed by whoever meets it.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from cache.errors import StoreError
from cache.oci import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cache.store import Image, Store


class Use(Struct, frozen=True):
    """Why an image may not go. place: where it is mounted; empty for a build. process: a build's, else 0."""

    image: Digest
    place: str = ""
    process: int = 0

    @property
    def reason(self) -> str:
        """For a message: `... is` and this."""
        return f"mounted at {self.place}" if self.place else f"in use by a running build (process {self.process})"

    @property
    def remedy(self) -> str:
        """What to do first."""
        return f"pybuild image umount {self.place}" if self.place else "wait until it has ended"


class Mount(Struct, frozen=True):
    """A mounted image. folder: its record's, with `top` in it. layers: names of directories in `snapshots/`."""

    image: Digest
    place: str
    folder: str
    layers: tuple[str, ...]


def uses(store: Store) -> list[Use]:
    """Every use of an image there is."""
    return [*_builds(store), *(Use(mount.image, place=mount.place) for mount in mounts(store))]


def _builds(store: Store) -> list[Use]:
    found = []
    for entry in os.scandir(os.path.join(store.root, "leases")):
        with suppress(FileNotFoundError), open(entry.path, "rb", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                process = int(entry.name.partition("-")[0])
                # The last line may be in the making.
                lines = file.read().decode("ascii", "replace").split("\n")[:-1]
                found += [Use(Digest(line), process=process) for line in dict.fromkeys(lines)]
    return found


# ---------------------------------------------------------------- mounts


def begin_mount(store: Store) -> str:
    """A fresh folder for a mount's record, with an empty directory `top` in it."""
    folder = os.path.join(store.root, "mounted", os.urandom(8).hex())
    try:
        os.makedirs(os.path.join(folder, "top"))
    except OSError as error:
        raise StoreError(f"can not write to the store {store.root}: {error.strerror}") from error
    return folder


def record_mount(store: Store, folder: str, image: Image, place: Path, layers: Iterable[str]) -> Mount:
    """Say, before it is done, that `image` will be mounted at `place`."""
    mount = Mount(image.id, str(place), folder, tuple(layers))
    document: dict[str, object] = {"image": mount.image, "place": mount.place, "layers": mount.layers}
    document |= {"namespace": _namespace("self"), "process": os.getpid()}
    name = os.path.join("mounted", os.path.basename(folder), "use.json")
    store.replace_file(name, json.dumps(document).encode("utf-8", "surrogateescape"))
    return mount


def discard(folder: str) -> None:
    """Remove a mount's record, and what `begin_mount` made for it. Idempotent."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def mounts(store: Store) -> list[Mount]:
    """The images that are mounted, wherever this process can see that they are."""
    found = []
    folder = os.path.join(store.root, "mounted")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    for name in names:
        try:
            with open(os.path.join(folder, name, "use.json"), "rb") as file:
                document = json.loads(file.read().decode("utf-8", "surrogateescape"))
        except (OSError, ValueError):
            continue  # in the making
        mount = Mount(
            Digest(document["image"]), document["place"], os.path.join(folder, name), tuple(document["layers"])
        )
        if _alive(mount, document["namespace"]) or os.path.exists(f"/proc/{document['process']}"):
            found.append(mount)
        else:
            discard(mount.folder)
    return found


def mounted_layers(store: Store) -> set[str]:
    """The paths, below the store, of directories that a mount shows."""
    return {f"snapshots/{name}" for mount in mounts(store) for name in mount.layers}


def _alive(mount: Mount, namespace: str) -> bool:
    for process in ["self", *(entry for entry in os.listdir("/proc") if entry.isdigit())]:
        if _namespace(process) == namespace:
            with suppress(OSError):
                return mount.place in _places(process)
    return False


def _namespace(process: str) -> str:
    """The mount namespace of a process; empty for one that may not be looked at."""
    try:
        return os.readlink(f"/proc/{process}/ns/mnt")
    except OSError:
        return ""


def _places(process: str) -> set[str]:
    """The mount points that a process sees."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return {_unescaped(line.split(b" ")[4]) for line in file}


def _unescaped(path: bytes) -> str:
    # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html: blank, tab, newline and backslash are octal.
    for code in (b"040", b"011", b"012", b"134"):
        path = path.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(path)

"""Whether a store is whole: blobs are what their names say, images and records have all theirs, index.json is right.

Reading only, unless asked to repair; then what is damaged goes, so that building or loading again puts it back.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import REF_NAME, Digest, Index, parse_json
from cache.reference import familiar_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cache.store import Store


class Fault(Struct, frozen=True):
    """Something that is wrong. what: one sentence. hint: what to do."""

    what: str
    hint: str


class Checked(Struct, frozen=True):
    """What was looked at, and what is wrong with it."""

    blobs: int
    images: int
    records: int
    faults: tuple[Fault, ...]


_AGAIN = "build, load or import the image again"
_REPAIR = "pybuild fsck --repair removes it; then "


def check(store: Store, *, repair: bool = False) -> Checked:
    """Look at all of a store; builds may be running. Idempotent.

    repair: remove blobs that are damaged, and records without theirs, and write index.json anew. Raises CorruptError
    when the database itself can not be read.
    """
    # With a lease nothing that is seen in the database is taken off the disk meanwhile.
    with store.lease():
        (sound,) = store.database.query("PRAGMA quick_check(1)")[0]
        if sound != "ok":
            raise CorruptError(
                f"the database of {store.root} is damaged: {sound}", "remove pybuild.db: it is made anew"
            )
        store.ready()
        images = store.database.query(
            "SELECT i.number, i.id, i.manifest, i.manifest_size, i.intermediate, "
            "(SELECT min(name) FROM names WHERE image = i.number) FROM images i"
        )
        records = store.database.query("SELECT key, digest, blob_size, step FROM records WHERE digest IS NOT NULL")
        faults = [*_layout(store)]
        names = [entry.name for entry in os.scandir(os.path.join(store.root, "blobs", "sha256"))]
        damaged: set[str] = set()
        for name in sorted(names):
            fault = _blob(store, name)
            if fault is not None:
                faults.append(fault)
                damaged.add(f"sha256:{name}")
        for number, image_id, manifest, _, intermediate, name in images:
            called = familiar_name(name) if name else image_id[7:19]
            needed = store.database.query(
                "SELECT l.digest, l.size FROM image_layers i JOIN layers l ON l.number = i.layer WHERE i.image = ? "
                "ORDER BY i.position",
                (number,),
            )
            for digest, size in ((image_id, None), (manifest, None), *needed):
                problem = "is damaged" if digest in damaged else _missing(store, digest, size)
                if problem:
                    kind = "the intermediate image" if intermediate else "the image"
                    faults.append(Fault(f"{kind} {called}: its blob {digest} {problem}", _AGAIN))
        lost: list[str] = []
        for key, digest, size, step in records:
            problem = "is damaged" if digest in damaged else _missing(store, digest, size)
            if problem:
                lost.append(key)
                faults.append(
                    Fault(f"the record of the step {step!r}: its layer {digest} {problem}", "the step is done again")
                )
        faults += _names(store)
        if repair:
            _repair(store, damaged, lost)
        return Checked(len(names), len(images), len(records), tuple(faults))


def _layout(store: Store) -> Iterator[Fault]:
    try:
        with open(os.path.join(store.root, "oci-layout"), "rb") as file:
            parse_json(file.read(), "oci-layout")
    except (OSError, CorruptError):
        yield Fault("oci-layout is missing or no JSON", "remove it: the next build writes it")


def _blob(store: Store, name: str) -> Fault | None:
    """What is wrong with one file in blobs/sha256."""
    if not re.fullmatch("[0-9a-f]{64}", name):
        return Fault(f"blobs/sha256/{name} is no blob's name", "remove it")
    try:
        with store.open_blob(Digest(f"sha256:{name}")) as stream:
            while stream.read(1 << 20):
                pass
    except NotFoundError:
        return None  # gone since
    except CorruptError as error:
        return Fault(error.message, _REPAIR + _AGAIN)
    except OSError as error:
        return Fault(
            f"blobs/sha256/{name} can not be read: {error.strerror}", "look at its owner and mode, or the disk"
        )
    return None


def _missing(store: Store, digest: str, size: int | None) -> str:
    try:
        found = store.blob_path(Digest(digest)).stat().st_size
    except FileNotFoundError:
        return "is missing"
    return f"has {found} bytes instead of {size}" if size is not None and found != size else ""


def _names(store: Store) -> Iterator[Fault]:
    """Whether index.json says what the database says."""
    hint = "pybuild fsck --repair writes index.json anew from the database"
    # A build that ends meanwhile writes both, one after the other, within this lock.
    with store.database.transaction() as connection:
        wanted = {
            (manifest, familiar_name(name) if name else "")
            for manifest, name in connection.execute(
                "SELECT i.manifest, n.name FROM images i LEFT JOIN names n ON n.image = i.number "
                "WHERE i.intermediate = 0"
            )
        }
        try:
            with open(os.path.join(store.root, "index.json"), "rb") as file:
                index = Index.from_json(parse_json(file.read(), "index.json"))
        except (OSError, CorruptError):
            yield Fault("index.json is missing or damaged", hint)
            return
    listed = {(each.digest, dict(each.annotations).get(REF_NAME, "")) for each in index.manifests}
    for manifest, name in sorted(wanted - listed):
        yield Fault(f"index.json does not list {name or 'the image without a name'} ({manifest})", hint)
    for manifest, name in sorted(listed - wanted):
        yield Fault(f"index.json lists {name or 'an image without a name'} ({manifest}), which the store has not", hint)


def _repair(store: Store, damaged: set[str], lost: list[str]) -> None:
    for digest in damaged:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(store.root, "blobs", "sha256", digest.removeprefix("sha256:")))
    with store.database.transaction() as connection:
        connection.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in lost])
        with suppress(StoreError):
            os.truncate(os.path.join(store.root, "index.json"), 0)
        store.list_changed(connection)

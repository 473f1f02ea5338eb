"""Images between the store and registries: pull and push.

A blob is kept as it came, byte for byte: pulled again it is not fetched, pushed back it is not compressed anew. Blobs
move side by side. An image is in the store, and its name moves, when all that belongs to it is there and has been
checked; a pull that fails leaves whole blobs at most, which the next one need not fetch and `image prune` frees. A push
writes blobs, then manifests, then the tag: a reader never finds half of it.
"""

from __future__ import annotations

import io
import os
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, Self

from msgspec import Struct

from builder.errors import BuildError, CancelledError
from builder.events import BlobMoved, TransferFinished, TransferStarted
from builder.platforms import choose, normal_platform, runs
from cache import whence
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Digest,
    ImageConfig,
    Index,
    Layer,
    Manifest,
    Platform,
    host_platform,
    parse_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from builder.events import Reporter
    from cache.reference import Reference
    from cache.registry import Registry
    from cache.store import Image, Store

_PARALLEL = 6
_MAX_INDEXES = 4
_CONFIG_LIMIT = 8 << 20
_EVERY = 0.1
"""Seconds between two reports of one blob."""
_FOREIGN = (".foreign.", ".nondistributable.")
"""In the media types of layers that are fetched from their own addresses and never pushed."""
_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_CONFIGS = (CONFIG, DOCKER_CONFIG, "application/octet-stream", "text/html", "")
"""Media types of image configs: the last three are old registries' mistakes."""


class Pulled(Struct, frozen=True):
    """What a pull brought. digest: of what the name means in the registry; new: it was another one before, or none."""

    image: Image
    digest: Digest
    new: bool


class Place(Struct, frozen=True):
    """An image's name and the registry that it is in."""

    reference: Reference
    registry: Registry

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest, where there is one."""
        return self.reference.digest or self.reference.tag


# ---------------------------------------------------------------- pull


def pull(
    place: Place,
    platform: Platform | None,
    *,
    store: Store,
    report: Reporter,
    stop: threading.Event | None = None,
    strict: bool = True,
) -> Pulled:
    """Bring an image into the store and give it its name. Idempotent; what is there already is not fetched.

    platform: picks from images for several; None is this machine's. strict: an image that comes for one platform alone
    has to be for `platform`, if that is given. Raises BuildError where there is no image for the platform, or it is
    none; NotFoundError, with the nearest tags as its hint, where there is no such name; CorruptError for what is not
    as its digest or size says; RegistryError.
    """
    wanted = platform or host_platform()
    with store.lease():
        if (kept := _unchanged(place, wanted, store, strict=strict and platform is not None)) is not None:
            return kept
        top, data = _named(place)
        found, data = _for_platform(place, top, data, wanted, store)
        manifest = _manifest(place, found, data)
        what = f"pulling {place.reference.full}"
        with _Transfer(what, place.registry, report, stop) as transfer:
            config_data = _config(place, manifest.config, store)
            _check_config(place, manifest, config_data, platform if strict and top.digest == found.digest else None)
            layers = {layer.digest: layer for layer in manifest.layers}
            _check_room(place, [layer for layer in layers.values() if not store.holds(layer)], store)
            transfer.run(list(layers.values()), lambda layer: _pull_layer(place, layer, store, transfer))
        store.put_blob(config_data, manifest.config.media_type)
        store.put_blob(data, found.media_type)
        with store.database.transaction():
            before = {image.id for image in _known(store, place.reference)}
            image = store.adopt(Descriptor(found.media_type, found.digest, found.size))
            if place.reference.tag and not place.reference.digest:
                store.tag(place.reference, image.id)
            whence.note_image(store, image.id, place.reference, top.digest, str(normal_platform(wanted)))
            held = [layer.digest for layer in manifest.layers if not layer.urls]
            whence.note_blobs(store, place.reference.name, held)
    return Pulled(store.image(image.id), top.digest, image.id not in before)


def _unchanged(place: Place, platform: Platform, store: Store, *, strict: bool) -> Pulled | None:
    """What the store has, if a HEAD says that the name still means it: Docker Hub does not count that as a pull.

    None where the store lacks something of it, or never had it.
    """
    reference = place.reference
    for image_id, wanted in whence.images_of(store, reference):
        if wanted != str(normal_platform(platform)):
            continue
        origins = whence.origins(store, [image_id])[image_id]
        digests = {each.digest for each in origins if (each.repository, each.tag) == (reference.name, reference.tag)}
        try:
            image = store.image(image_id)
            whole = all(store.holds(layer) or layer.urls for layer in store.manifest(image).layers)
            unfit = strict and normal_platform(store.config(image).platform) not in runs(platform)
        except StoreError:
            return None
        if unfit or not whole:
            return None
        found = place.registry.head(reference.repository, place.wanted)
        if found is None or found.digest not in digests:
            return None
        new = image.id not in {known.id for known in _known(store, reference)}
        if reference.tag and not reference.digest:
            store.tag(reference, image.id)
        return Pulled(store.image(image.id), found.digest, new)
    return None


def _known(store: Store, reference: Reference) -> list[Image]:
    try:
        return [store.image(reference.full)]
    except StoreError:
        return []


def _named(place: Place) -> tuple[Descriptor, bytes]:
    """The manifest or index that the name means now. NotFoundError with the tags that may be meant."""
    reference = place.reference
    try:
        return place.registry.manifest(reference.repository, place.wanted)
    except NotFoundError as error:
        if not reference.digest:
            error.hint = _nearest_tags(place) or error.hint
        raise


def _nearest_tags(place: Place) -> str:
    from difflib import get_close_matches
    from itertools import islice

    reference = place.reference
    try:
        tags = list(islice(place.registry.tags(reference.repository), 10_000))
    except StoreError:
        return ""
    if not tags:
        return f"{reference.repository} has no tags at all"
    near = get_close_matches(reference.tag, tags, 5, 0.4) or tags[-5:]
    return f"it has {', '.join(near)}" + (f" and {len(tags) - len(near)} more" if len(tags) > len(near) else "")


def _for_platform(
    place: Place, found: Descriptor, data: bytes, platform: Platform, store: Store
) -> tuple[Descriptor, bytes]:
    """The manifest of one image, which an index may have to be asked for."""
    title = place.reference.full
    for _ in range(_MAX_INDEXES):
        if found.media_type not in {INDEX, DOCKER_INDEX}:
            return found, data
        chosen = choose(title, Index.from_json(parse_json(data, f"the index of {title}")).manifests, platform)
        if store.holds(chosen):
            data = store.read_blob(chosen)
            # What lies here is checked, and says as little of its type as the index does.
            found = chosen
            continue
        found, data = place.registry.manifest(place.reference.repository, chosen.digest)
        if found.size != chosen.size:
            raise CorruptError(f"{title}: the index gives {chosen.digest} {chosen.size} bytes, and it has {found.size}")
    raise CorruptError(f"{title}: indexes nest too deep")


def _manifest(place: Place, found: Descriptor, data: bytes) -> Manifest:
    title = place.reference.full
    if found.media_type not in {MANIFEST, DOCKER_MANIFEST}:
        raise BuildError(f"{title} is no image but {found.media_type}")
    manifest = Manifest.from_json(parse_json(data, f"the manifest of {title}"))
    if manifest.config.media_type not in _CONFIGS:
        raise BuildError(f"{title} is no image: its config is {manifest.config.media_type}")
    for layer in manifest.layers:
        if not layer.media_type.startswith(_LAYERS) or layer.media_type.endswith("+encrypted"):
            raise BuildError(f"{title} has a layer of a kind that is not known: {layer.media_type}")
    return manifest


def _config(place: Place, config: Descriptor, store: Store) -> bytes:
    """The bytes of the image config, from the store where it has them."""
    if config.size > _CONFIG_LIMIT:
        raise CorruptError(f"{place.reference.full}: the image config is larger than {_CONFIG_LIMIT >> 20} MiB")
    if store.holds(config):
        return store.read_blob(config, _CONFIG_LIMIT)
    out = io.BytesIO()
    place.registry.read_blob(place.reference.repository, config, out)
    return out.getvalue()


def _check_config(place: Place, manifest: Manifest, data: bytes, platform: Platform | None) -> None:
    """CorruptError for a config that can not be used; BuildError for one that is not for `platform`, where given."""
    title = place.reference.full
    try:
        config = ImageConfig.from_json(parse_json(data, "it"))
    except CorruptError as error:
        raise CorruptError(f"{title}: the image config can not be used: {error.message}", error.hint) from None
    if len(config.diff_ids) != len(manifest.layers):
        raise CorruptError(
            f"{title}: the manifest has {len(manifest.layers)} layers and the image config {len(config.diff_ids)}"
        )
    if platform is not None and config.platform.architecture and normal_platform(config.platform) not in runs(platform):
        raise BuildError(
            f"{title} has no image for {platform}", hint=f"it has {config.platform}; choose with --platform"
        )


def _check_room(place: Place, missing: Sequence[Descriptor], store: Store) -> None:
    """Sooner than when the disk is full: a manifest may name layers of any size."""
    wanted = sum(layer.size for layer in missing)
    found = os.statvfs(store.root)
    if wanted > (room := found.f_bavail * found.f_frsize):
        raise StoreError(
            f"{place.reference.full} needs {wanted / 1e9:.1f} GB more, and {store.root} has {room / 1e9:.1f} GB",
            "pybuild image prune and pybuild cache prune free space",
        )


def _pull_layer(place: Place, layer: Descriptor, store: Store, transfer: _Transfer) -> None:
    if store.holds(layer):
        transfer.moved(layer, layer.size, "present")
        return
    with store.writer(hashing=False) as writer:
        place.registry.read_blob(place.reference.repository, layer, writer, lambda count: transfer.add(layer, count))
        # The bytes were hashed as they came.
        writer.commit(layer.digest, layer.size, trusted=True)
    transfer.moved(layer, layer.size, "done")


class Glanced(Struct, frozen=True):
    """An image of which the manifest and the config were got, and kept as blobs, but no layer.

    top: the digest of what the name means; manifest: the image's own. asked: the platform.
    """

    place: Place
    top: Digest
    manifest: Descriptor
    config: ImageConfig
    layers: tuple[Layer, ...]
    asked: Platform


def glance(place: Place, platform: Platform, *, store: Store) -> Glanced:
    """What `pull` would bring, by its manifest and its config; the caller holds a lease. Raises as `pull`."""
    top, data = _named(place)
    found, data = _for_platform(place, top, data, platform, store)
    manifest = _manifest(place, found, data)
    config_data = _config(place, manifest.config, store)
    _check_config(place, manifest, config_data, None)
    store.put_blob(config_data, manifest.config.media_type)
    described = store.put_blob(data, found.media_type)
    config = ImageConfig.from_json(parse_json(config_data, "the image config"))
    layers = tuple(Layer(*pair) for pair in zip(config.diff_ids, manifest.layers, strict=True))
    whence.note_blobs(store, place.reference.name, [layer.digest for layer in manifest.layers if not layer.urls])
    return Glanced(place, top.digest, described, config, layers, platform)


def adopt(glanced: Glanced, store: Store) -> None:
    """Have the image in the store by its name, as `pull` leaves it, once all its layers are there. Idempotent."""
    reference = glanced.place.reference
    with store.database.transaction():
        image = store.adopt(glanced.manifest)
        if reference.tag and not reference.digest:
            store.tag(reference, image.id)
        whence.note_image(store, image.id, reference, glanced.top, str(normal_platform(glanced.asked)))


# ---------------------------------------------------------------- push


def push(
    place: Place,
    top: Descriptor,
    *,
    store: Store,
    report: Reporter,
    stop: threading.Event | None = None,
) -> None:
    """Put a manifest or an index of the store, and all that belongs to it, into a registry by the name's tag or digest.

    Idempotent; blobs that the repository has are not sent, those that another one has are taken from it. Foreign layers
    stay where they are. A name with a digest must have that of `top`. Raises RegistryError, NotFoundError or
    CorruptError where the store lacks something or is damaged.
    """
    reference = place.reference
    if reference.digest and reference.digest != top.digest:
        raise BuildError(f"can not push as {reference.full}: the image has the digest {top.digest}")
    with store.lease():
        manifests, blobs = _contents(top, store)
        with _Transfer(f"pushing {reference.full}", place.registry, report, stop) as transfer:
            transfer.run(blobs, lambda blob: _push_blob(place, blob, store, transfer))
            for described, data in manifests:
                named = reference.tag if described is top and not reference.digest else described.digest
                place.registry.put_manifest(reference.repository, named, data, described.media_type)
        whence.note_blobs(store, reference.name, [blob.digest for blob in blobs])


def note(place: Place, image_id: Digest, top: Descriptor, platform: Platform, store: Store) -> None:
    """Remember that a registry has an image by a name now, as `image ls --digests` and `name@digest` want to know."""
    whence.note_image(store, image_id, place.reference, top.digest, str(normal_platform(platform)))


def _contents(top: Descriptor, store: Store) -> tuple[list[tuple[Descriptor, bytes]], list[Descriptor]]:
    """The manifests below `top`, itself last, with their bytes; and the blobs that they need, each once."""
    manifests: list[tuple[Descriptor, bytes]] = []
    blobs: dict[Digest, Descriptor] = {}

    def walk(described: Descriptor, depth: int) -> None:
        data = store.read_blob(described, _CONFIG_LIMIT)
        document = parse_json(data, f"the manifest {described.digest}")
        if described.media_type in {INDEX, DOCKER_INDEX}:
            if depth >= _MAX_INDEXES:
                raise CorruptError("indexes nest too deep")
            for child in Index.from_json(document).manifests:
                walk(child, depth + 1)
        else:
            manifest = Manifest.from_json(document)
            for blob in (manifest.config, *manifest.layers):
                if not any(word in blob.media_type for word in _FOREIGN):
                    blobs[blob.digest] = blob
        manifests.append((described, data))

    walk(top, 0)
    return manifests, list(blobs.values())


def _push_blob(place: Place, blob: Descriptor, store: Store, transfer: _Transfer) -> None:
    registry, repository = place.registry, place.reference.repository
    path = store.blob_path(blob.digest)

    def source() -> BinaryIO:
        if not store.holds(blob):
            # It has the right words for what is missing or damaged, and fetches what lies elsewhere.
            store.open_blob(blob).close()
        # Not `open_blob`, which would hash it once more: the registry does, and refuses what is not the digest's.
        return open(path, "rb", buffering=0)

    if store.elsewhere is None and not store.holds(blob):
        store.open_blob(blob).close()
    sent = 0

    def progress(count: int) -> None:
        nonlocal sent
        sent += count
        transfer.add(blob, count)

    known = whence.repositories_with(store, blob.digest, registry.name)
    if registry.put_blob(repository, blob, source, mount_from=known, progress=progress):
        transfer.moved(blob, blob.size, "done")
    else:
        others = [name for name in known if name != repository]
        transfer.moved(blob, blob.size, "mounted" if others and repository not in known else "present")


# ---------------------------------------------------------------- side by side


class _Transfer:
    """Blobs that move side by side; tells how far they are, and stops all of them when one can not go on."""

    def __init__(self, what: str, registry: Registry, report: Reporter, stop: threading.Event | None) -> None:
        self._what = what
        self._registry = registry
        self._report = report
        self._stop = stop
        self._failed = threading.Event()
        self._lock = threading.Lock()
        self._done: dict[Digest, int] = {}
        self._told: dict[Digest, float] = {}
        self._moved = 0
        self._blobs = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._report(TransferStarted(self._what))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        seconds = time.monotonic() - self._started
        self._report(TransferFinished(self._what, seconds, self._moved, self._blobs, kind is not None))

    def run(self, blobs: Sequence[Descriptor], action: Callable[[Descriptor], None]) -> None:
        """Do `action` for each blob, several at once. The first error is raised when all have stopped."""
        from concurrent.futures import ThreadPoolExecutor, wait

        self._blobs += len(blobs)
        errors: list[BaseException] = []

        def one(blob: Descriptor) -> None:
            if self._failed.is_set():
                return
            try:
                self._check()
                action(blob)
            except BaseException as error:  # raised again below, when nothing is running any more
                if not self._failed.is_set():
                    errors.append(error)
                self._failed.set()

        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="transfer") as pool:
            # The large ones first, so that none of them is left alone at the end.
            waiting = {pool.submit(one, blob) for blob in sorted(blobs, key=lambda blob: -blob.size)}
            while waiting:
                waiting = wait(waiting, _EVERY).not_done
                if self._stop is not None and self._stop.is_set():
                    self._registry.abort()
        if errors:
            raise errors[0]

    def add(self, blob: Descriptor, count: int) -> None:
        """So many more bytes of a blob have moved; fewer than none where it starts again. CancelledError to stop it."""
        self._check()
        now = time.monotonic()
        with self._lock:
            self._moved += count
            done = self._done[blob.digest] = self._done.get(blob.digest, 0) + count
            if now - self._told.get(blob.digest, 0.0) < _EVERY:
                return
            self._told[blob.digest] = now
        self._report(BlobMoved(self._what, blob.digest, done, blob.size, "moving"))

    def moved(self, blob: Descriptor, done: int, state: str) -> None:
        """A blob is through."""
        self._report(BlobMoved(self._what, blob.digest, done, blob.size, state))

    def _check(self) -> None:
        if self._failed.is_set() or (self._stop is not None and self._stop.is_set()):
            raise CancelledError("the transfer was stopped")

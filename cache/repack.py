"""An image in other blobs: its layers compressed otherwise, its documents in Docker's words.

What is in the layers stays, so the diff ids stay, and with them the config and the image's id; the manifest is another.
A layer that was compressed anew is remembered as a step of the instruction cache, so that doing it again is free, and
what removes unused steps removes it.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from cache.compression import Compression, decompressed
from cache.errors import CorruptError
from cache.index import Index, Place, Record, key
from cache.layers import has_listing
from cache.oci import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    Descriptor,
    Digest,
    ImageConfig,
    Layer,
    Manifest,
    canonical,
    parse_json,
)
from cache.store import oci_typed

if TYPE_CHECKING:
    from cache.store import Store

_CHUNK = 1 << 20
_NAMES = {LAYER: "none", LAYER_GZIP: "gzip", LAYER_ZSTD: "zstd"}


class Form(Struct, frozen=True):
    """How the blobs of an image are wanted.

    compression: None leaves the layers as they are. force: the base's layers, too, and those that have the compression
    already, at whatever level. docker: media types of Docker's schema 2 instead of OCI's.
    """

    compression: Compression | None = None
    force: bool = False
    docker: bool = False


def repacked(store: Store, manifest: Descriptor, form: Form, inherited: int = 0) -> Descriptor:
    """The manifest of the same image in the wanted form; it and all that it names are in the store. Idempotent.

    inherited: so many of the lowest layers came with the base; they are compressed anew only when forced, as BuildKit
    has it. Raises NotFoundError and CorruptError for blobs that are not there or not whole.
    """
    document = Manifest.from_json(parse_json(store.read_blob(manifest), "the manifest"))
    config = ImageConfig.from_json(parse_json(store.read_blob(document.config), "the image config"))
    if len(config.diff_ids) != len(document.layers):
        raise CorruptError(f"the manifest {manifest.digest} has other layers than its config")
    layers = []
    for number, layer in enumerate(map(Layer, config.diff_ids, map(oci_typed, document.layers))):
        made = layer
        if form.compression is not None and (form.force or number >= inherited):
            made = compress(store, layer, form.compression, force=form.force)
        layers.append(_worded(made.descriptor, form))
    described = replace(document.config, media_type=DOCKER_CONFIG if form.docker else CONFIG)
    made_of = Manifest(
        described,
        tuple(layers),
        DOCKER_MANIFEST if form.docker else MANIFEST,
        () if form.docker else document.annotations,
    )
    found = store.put_blob(canonical(made_of.to_json()), made_of.media_type)
    return replace(found, platform=manifest.platform)


def compress(store: Store, layer: Layer, compression: Compression, *, force: bool = False) -> Layer:
    """The layer, compressed as wanted, in the store. One that is stays; so does one that can not be had (`urls`).

    force: compress it even when it has this compression at some level. What was done before is taken from then.
    """
    present = _NAMES.get(layer.descriptor.media_type)
    if present is None or layer.descriptor.urls:
        return layer
    if present == compression.name and not force and compression.level is None:
        return layer
    index = Index(store.database)
    parts = [("compression", str(compression)), ("layer", layer.diff_id)]
    identity = key(parts)
    record = index.lookup(identity)
    if record is None or record.layer is None:
        started = time.monotonic()
        made = _compressed(store, layer, compression)
        record = Record(identity, made, 0, 0, time.time(), time.monotonic() - started)
        index.record(record, parts, Place("compression", layer.diff_id, 0, f"compression {compression}"))
    assert record.layer is not None
    index.settle()
    return record.layer


def _compressed(store: Store, layer: Layer, compression: Compression) -> Layer:
    """The layer's bytes in another blob, both checked on the way."""
    compressor = compression.compressor()
    digest = hashlib.sha256()
    with store.open_blob(layer.descriptor) as blob, store.writer() as writer:
        with decompressed(blob, trusted=has_listing(store, layer.diff_id)) as plain:
            while data := plain.read(_CHUNK):
                digest.update(data)
                if ready := compressor.compress(data):
                    writer.write(ready)
        # What follows the compressed data counts for the blob's digest, which is checked with its last byte.
        while blob.read(_CHUNK):
            pass
        found = Digest("sha256:" + digest.hexdigest())
        if found != layer.diff_id:
            raise CorruptError(f"the layer {layer.descriptor.digest} unpacks to {found} instead of {layer.diff_id}")
        writer.write(compressor.flush())
        made, size = writer.commit()
    return Layer(layer.diff_id, Descriptor(compression.media_type, made, size))


_DOCKER = {LAYER: DOCKER_LAYER, LAYER_GZIP: DOCKER_LAYER_GZIP}
_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def _worded(descriptor: Descriptor, form: Form) -> Descriptor:
    """A layer's descriptor in the words of OCI, which the store has, or of Docker, which has none for zstd."""
    if not form.docker:
        return descriptor
    kind = {**_DOCKER, _NONDISTRIBUTABLE: _FOREIGN}.get(descriptor.media_type)
    if kind is None:
        raise CorruptError(
            f"Docker's schema 2 has no word for a layer of type {descriptor.media_type}",
            "leave out oci-mediatypes=false, or add compression=gzip,force-compression=true",
        )
    return replace(descriptor, media_type=kind, annotations=())

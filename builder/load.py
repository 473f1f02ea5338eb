"""Archives and layouts into the store: `pybuild load`.

Read are OCI image layouts, as folders and as tars, and docker's archives of all ages:

    index.json, oci-layout       an OCI layout; docker writes one since 25, beside manifest.json
    manifest.json                docker since 1.10, podman, skopeo: config and layers by file names
    repositories                 docker before 1.10: a folder with `json` and `layer.tar` for each layer

An image keeps its bytes, so its id and, where the archive has one, its manifest's digest. Every blob is checked against
its digest, every layer unpacked once and checked against its diff id. What an archive does not say is made up in one
way only, so that loading twice gives the same. Either all images of an archive come in, with their names, or none does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct
from msgspec.structs import replace

from builder.assembly import layer_history
from builder.errors import BuildError
from builder.platforms import normal_platform
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.layers import has_listing, listing
from cache.oci import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    INDEX,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    MAX_LAYERS,
    REF_NAME,
    Descriptor,
    Digest,
    History,
    ImageConfig,
    Index,
    JSONObject,
    Layer,
    Manifest,
    Platform,
    RuntimeConfig,
    canonical,
    digest_of,
    parse_json,
)
from cache.reference import Reference
from cache.store import FULL_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from builder.archives import Named
    from cache.store import Image, Store

_JSON_LIMIT = 8 << 20
_CHUNK = 1 << 20
_MOST_IMAGES = 1000
_MAX_INDEXES = 4
_MAGIC = ((b"\x1f\x8b", LAYER_GZIP), (b"\x28\xb5\x2f\xfd", LAYER_ZSTD))
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_AGAIN = "copy or make it again"


class Loaded(Struct, frozen=True):
    """An image that came in. names: what it was called in the archive. moved: a name and the id that had it before."""

    image: Image
    names: tuple[str, ...]
    moved: tuple[tuple[str, Digest], ...] = ()


def load(files: Named, store: Store, platform: Platform, names: Sequence[str] = ()) -> list[Loaded]:
    """Take in every image of `files`, with its names; of an image for several platforms the one for `platform`.

    names: other names, for an archive of one image. To be called with a lease held. Idempotent. CorruptError for what
    is no sound archive, StoreError for names that are none, BuildError when there is none for the platform; then the
    store is as it was.
    """
    with _Intake(files, store, platform) as intake:
        try:
            found = intake.images()
        except CorruptError as error:
            # What the nouns of `cache.oci` raise does not know of files.
            if error.message.startswith(files.title):
                raise
            raise CorruptError(f"{files.title}: {error.message}", error.hint) from None
        if names and len(found) != 1:
            raise BuildError(
                f"{files.title} has {len(found)} images, and names were given for one", hint="leave out --tag"
            )
        given = [Reference.parse(name) for name in names]
        wanted = [(manifest, [*given, *(_reference(files, name) for name in own)]) for manifest, own in found]
        # One transaction: the names of all images move, or none does.
        with store.database.transaction():
            return [_kept(store, manifest, dict.fromkeys(references)) for manifest, references in wanted]


def _kept(store: Store, manifest: Descriptor, references: Iterable[Reference]) -> Loaded:
    image = store.adopt(manifest)
    moved = [(reference.familiar, store.tag(reference, image.id)) for reference in references]
    names = tuple(name for name, _ in moved)
    return Loaded(store.image(image.id), names, tuple((name, old) for name, old in moved if old is not None))


def _reference(files: Named, name: str) -> Reference:
    try:
        reference = Reference.parse(name)
    except StoreError as error:
        raise CorruptError(f"{files.title} names an image wrongly: {error.message}", error.hint) from None
    return replace(reference, digest="", tag=reference.tag or "latest")


_Found = list[tuple[Descriptor, tuple[str, ...]]]
"""Manifests, their blobs in the store, and the names of each."""


class _Intake:
    """The blobs of one archive on their way into the store.

    Leaving it by an exception drops those of them that nothing else needs.
    """

    def __init__(self, files: Named, store: Store, platform: Platform) -> None:
        self._files = files
        self._store = store
        self._platform = platform
        self._fresh: list[str] = []
        self._layers: dict[tuple[str, str], Descriptor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None and self._fresh:
            from cache.prune import doom

            with self._store.database.transaction() as connection:
                doom(connection, self._fresh)

    def images(self) -> _Found:
        """Take in what the archive holds. CorruptError when it holds no image."""
        for name, read in (
            ("index.json", self._layout),
            ("manifest.json", self._docker),
            ("repositories", self._ancient),
        ):
            if self._has(name):
                found = read()
                if not found:
                    raise CorruptError(f"{self._files.title}: {name} names no image")
                return found
        raise CorruptError(
            f"{self._files.title} holds no image: it has none of index.json, manifest.json and repositories",
            "a root file system is brought in with `pybuild import`",
        )

    # ------------------------------------------------------------ OCI layouts

    def _layout(self) -> _Found:
        index = Index.from_json(self._json("index.json"))
        tags = self._docker_names() if self._has("manifest.json") else {}
        groups: dict[object, list[tuple[Descriptor, tuple[str, ...]]]] = {}
        for number, descriptor in enumerate(index.manifests):
            # Manifests of one name are those of its platforms; one manifest may have several names.
            names = _names_of(descriptor)
            groups.setdefault(names or number, []).append((descriptor, names))
        chosen: dict[Digest, tuple[Descriptor, list[str]]] = {}
        for members in groups.values():
            manifest = self._for_platform([descriptor for descriptor, _ in members])
            if manifest is not None:
                place = chosen.setdefault(manifest.digest, (manifest, []))
                place[1].extend(members[0][1])
        found: _Found = []
        for manifest, own in chosen.values():
            config = self._image(manifest)
            found.append((manifest, tuple(dict.fromkeys((*own, *tags.get(config, ()))))))
        return found

    def _for_platform(self, candidates: list[Descriptor], depth: int = 0) -> Descriptor | None:
        """The image's manifest for the platform, its blob taken in; None where there are only attestations."""
        images = [each for each in candidates if each.platform is None or each.platform.os != "unknown"]
        if not images:
            return None
        manifest = _matching(images, self._platform)
        if manifest is None:
            known = ", ".join(str(each.platform) for each in images)
            raise BuildError(
                f"{self._files.title} has no image for {self._platform}", hint=f"it has {known}; choose with --platform"
            )
        if manifest.media_type in {INDEX, DOCKER_INDEX}:
            if depth == _MAX_INDEXES:
                raise CorruptError(f"{self._files.title}: indexes nest too deep")
            inner = Index.from_json(self._json(_blob_name(manifest.digest), manifest))
            return self._for_platform(list(inner.manifests), depth + 1)
        return Descriptor(manifest.media_type, manifest.digest, manifest.size)

    def _image(self, described: Descriptor) -> Digest:
        """Take in a manifest and all that it names; the digest of its config."""
        data = self._read(_blob_name(described.digest), described)
        manifest = Manifest.from_json(parse_json(data, f"{self._files.title}: the manifest"))
        if manifest.config.media_type not in {CONFIG, DOCKER_CONFIG}:
            raise CorruptError(f"{self._files.title} holds no image but {manifest.config.media_type}")
        text = self._read(_blob_name(manifest.config.digest), manifest.config)
        config = self._config(text, len(manifest.layers))
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True):
            if layer.urls and not self._has(_blob_name(layer.digest)):
                continue  # one that may not be passed on; whoever runs the image fetches it
            self._take(_blob_name(layer.digest), layer)
            self._verify(Layer(diff_id, layer))
        self._put(text, CONFIG)
        self._put(data, described.media_type)
        return manifest.config.digest

    # ------------------------------------------------------------ docker's archives

    def _docker_names(self) -> dict[Digest, list[str]]:
        """The names that manifest.json has, by the digests of their configs."""
        names: dict[Digest, list[str]] = {}
        for config, tags, _ in self._docker_images():
            names.setdefault(digest_of(self._read(config)), []).extend(tags)
        return names

    def _docker_images(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Config's name, names and layers' names of each image in manifest.json."""
        table = self._json("manifest.json")
        if not isinstance(table, list) or len(table) > _MOST_IMAGES:
            raise CorruptError(f"{self._files.title}: manifest.json is not an array of images")
        for image in table:
            fields = image if isinstance(image, dict) else {}
            config, tags, layers = fields.get("Config"), fields.get("RepoTags") or [], fields.get("Layers") or []
            if not (isinstance(config, str) and config and _are_texts(tags) and _are_texts(layers)):
                raise CorruptError(f"{self._files.title}: manifest.json does not name a config and layers")
            yield config, tags, layers

    def _docker(self) -> _Found:
        found: dict[Digest, tuple[Descriptor, list[str]]] = {}
        for name, tags, names in self._docker_images():
            data = self._read(name)
            config = self._config(data, len(names))
            layers = [self._unnamed(layer, diff_id) for diff_id, layer in zip(config.diff_ids, names, strict=True)]
            manifest = self._made(data, layers)
            found.setdefault(digest_of(data), (manifest, []))[1].extend(tags)
        return [(manifest, tuple(tags)) for manifest, tags in found.values()]

    def _ancient(self) -> _Found:
        """Docker before 1.10: an image is its topmost layer's id; configs have to be made of those of the layers."""
        table = self._json("repositories")
        found: dict[str, list[str]] = {}
        for repository, tags in table.items() if isinstance(table, dict) else ():
            for tag, top in tags.items() if isinstance(tags, dict) else ():
                if not isinstance(top, str) or not top or not _WORD.fullmatch(top):
                    raise CorruptError(f"{self._files.title}: repositories does not name layers")
                found.setdefault(top, []).append(f"{repository}:{tag}")
        return [(self._ancient_image(top), tuple(names)) for top, names in found.items()]

    def _ancient_image(self, top: str) -> Descriptor:
        chain: list[tuple[str, JSONObject]] = []
        at = top
        while at:
            table = self._json(f"{at}/json")
            if not isinstance(table, dict) or len(chain) == MAX_LAYERS:
                raise CorruptError(f"{self._files.title}: {at}/json describes no layer")
            chain.insert(0, (at, table))
            at = table.get("parent") or ""
            if not isinstance(at, str) or not _WORD.fullmatch(at):
                raise CorruptError(f"{self._files.title}: {chain[0][0]}/json names no parent layer")
        layers = [self._unnamed(f"{name}/layer.tar", None) for name, _ in chain]
        diff_ids = tuple(layer.diff_id for layer in layers)
        fields = {key: chain[-1][1].get(key) for key in ("architecture", "os", "config", "created", "author")}
        document = {**fields, "rootfs": {"type": "layers", "diff_ids": list(diff_ids)}}
        history = tuple(_ancient_line(table) for _, table in chain)
        config = ImageConfig.from_json(document)
        made = ImageConfig(
            platform=Platform(config.platform.os, config.platform.architecture or "amd64"),
            config=config.config,
            diff_ids=diff_ids,
            history=layer_history(history, len(diff_ids)),
            created=config.created,
            author=config.author,
        )
        data = canonical(made.to_json())
        self._config(data, len(layers))
        return self._made(data, layers)

    def _made(self, config: bytes, layers: list[Layer]) -> Descriptor:
        """A manifest for an image whose archive has none: the one that the store has, where it has the image whole."""
        try:
            known = self._store.image(digest_of(config))
            if all(self._store.holds(layer.descriptor) for layer in self._store.layers(known)):
                return known.manifest
        except (NotFoundError, CorruptError):
            pass
        blob = self._put(config, CONFIG)
        manifest = Manifest(blob, tuple(layer.descriptor for layer in layers))
        return self._put(canonical(manifest.to_json()), MANIFEST)

    def _unnamed(self, name: str, diff_id: Digest | None) -> Layer:
        """Take in a layer of which at most the diff id is known."""
        known = self._layers.get((name, diff_id or ""))
        if known is not None and diff_id is not None:
            return Layer(diff_id, known)
        try:
            stream = self._files.open(name)
        except FileNotFoundError:
            raise self._missing(name) from None
        with stream, self._store.writer() as writer:
            chunk = stream.read(_CHUNK)
            media_type = next((kind for magic, kind in _MAGIC if chunk.startswith(magic)), LAYER)
            while chunk:
                writer.write(chunk)
                chunk = stream.read(_CHUNK)
            try:
                digest, size = writer.commit(diff_id if media_type == LAYER else None)
            except CorruptError:
                raise CorruptError(f"{self._files.title}: {name} is not what its diff id says", _AGAIN) from None
        self._fresh.append(_blob_name(digest))
        descriptor = Descriptor(media_type, digest, size)
        if diff_id is None:
            diff_id = digest if media_type == LAYER else self._unpacked(descriptor)
        self._verify(Layer(diff_id, descriptor))
        self._layers[name, diff_id] = descriptor
        return Layer(diff_id, descriptor)

    def _unpacked(self, descriptor: Descriptor) -> Digest:
        """The diff id of a compressed layer."""
        import hashlib

        from cache.compression import decompressed

        digest = hashlib.sha256()
        with self._store.open_blob(descriptor) as blob, decompressed(blob) as plain:
            while chunk := plain.read(_CHUNK):
                digest.update(chunk)
        return Digest("sha256:" + digest.hexdigest())

    # ------------------------------------------------------------ files of the archive

    def _has(self, name: str) -> bool:
        try:
            self._files.open(name).close()
        except FileNotFoundError:
            return False
        return True

    def _json(self, name: str, expected: Descriptor | None = None) -> Any:
        return parse_json(self._read(name, expected), f"{self._files.title}: {name}")

    def _read(self, name: str, expected: Descriptor | None = None) -> bytes:
        """A small file's bytes, checked against `expected`."""
        try:
            with self._files.open(name) as stream:
                data = stream.read(_JSON_LIMIT + 1)
        except FileNotFoundError:
            raise self._missing(name) from None
        if len(data) > _JSON_LIMIT:
            raise CorruptError(f"{self._files.title}: {name} is larger than {_JSON_LIMIT >> 20} MiB")
        if expected is not None and (len(data) != expected.size or digest_of(data) != expected.digest):
            raise CorruptError(f"{self._files.title}: {name} is not what its digest says", _AGAIN)
        return data

    def _missing(self, name: str) -> CorruptError:
        return CorruptError(f"{self._files.title} has no {name}", _AGAIN)

    def _config(self, data: bytes, layers: int) -> ImageConfig:
        """An image config that the store can keep. CorruptError."""
        config = ImageConfig.from_json(parse_json(data, f"{self._files.title}: the image config"))
        if len(config.diff_ids) != layers:
            raise CorruptError(
                f"{self._files.title}: an image has {layers} layers, and {len(config.diff_ids)} in its config"
            )
        if layers > MAX_LAYERS:
            raise CorruptError(f"{self._files.title}: an image has {layers} layers, more than {MAX_LAYERS}")
        if config.created and not _TIME.fullmatch(config.created):
            raise CorruptError(f"{self._files.title}: the image config's time {config.created!r} is none")
        platform = config.platform
        if not all(map(_WORD.fullmatch, (platform.os, platform.architecture, platform.variant))):
            raise CorruptError(f"{self._files.title}: the image config's platform {str(platform)!r} is none")
        return config

    # ------------------------------------------------------------ the store

    def _put(self, data: bytes, media_type: str) -> Descriptor:
        self._fresh.append(_blob_name(digest_of(data)))
        return self._store.put_blob(data, media_type)

    def _take(self, name: str, expected: Descriptor) -> None:
        """Copy a blob into the store, unless it is there and sound."""
        if self._sound(expected):
            return
        try:
            stream = self._files.open(name)
        except FileNotFoundError:
            raise self._missing(name) from None
        with stream, self._store.writer() as writer:
            size = 0
            # One byte too many is enough to know; a huge file in the place of a small one is not copied first.
            while size <= expected.size and (chunk := stream.read(_CHUNK)):
                writer.write(chunk)
                size += len(chunk)
            if size != expected.size:
                count = f"more than {expected.size}" if size > expected.size else str(size)
                raise CorruptError(f"{self._files.title}: {name} has {count} bytes instead of {expected.size}", _AGAIN)
            try:
                writer.commit(expected.digest, expected.size)
            except CorruptError:
                raise CorruptError(f"{self._files.title}: {name} is not what its digest says", _AGAIN) from None
        self._fresh.append(_blob_name(expected.digest))

    def _sound(self, expected: Descriptor) -> bool:
        if not self._store.holds(expected):
            return False
        try:
            with self._store.open_blob(expected) as blob:
                while blob.read(_CHUNK):
                    pass
        except (CorruptError, NotFoundError):
            return False
        return True

    def _verify(self, layer: Layer) -> None:
        """Unpack a layer once, which checks its diff id and its names; its listing stays."""
        if has_listing(self._store, layer.diff_id):
            return
        self._fresh.append("listings/" + layer.diff_id.removeprefix("sha256:"))
        try:
            listing(self._store, layer)
        except CorruptError as error:
            raise CorruptError(f"{self._files.title}: {error.message}", error.hint or _AGAIN) from None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _names_of(descriptor: Descriptor) -> tuple[str, ...]:
    """What an index calls a manifest. A bare tag, as umoci and buildx write it, is no name of an image."""
    notes = dict(descriptor.annotations)
    name = notes.get(FULL_NAME) or notes.get(REF_NAME) or ""
    return (name,) if notes.get(FULL_NAME) or ":" in name or "/" in name else ()


def _matching(images: Sequence[Descriptor], wanted: Platform) -> Descriptor | None:
    """The manifest for a platform; the only one there is does for any."""
    if len(images) == 1:
        return images[0]
    wanted = normal_platform(wanted)
    having = [(image, normal_platform(image.platform)) for image in images if image.platform is not None]
    for image, has in having:
        if has == wanted:
            return image
    for image, has in having:
        if (has.os, has.architecture) == (wanted.os, wanted.architecture):
            return image
    return next((image for image in images if image.platform is None), None)


def _ancient_line(table: JSONObject) -> History:
    run = table.get("container_config")
    how = RuntimeConfig.from_json(run).cmd if isinstance(run, dict) else None
    return History(
        created_by=" ".join(how or ()),
        created=str(table.get("created") or ""),
        author=str(table.get("author") or ""),
        comment=str(table.get("comment") or ""),
    )

"""Where base images come from: the store, layouts and archives on disk, files, this machine itself.

Everything that a base needs is copied into the store on the way, each blob checked against its digest, so that what
follows reads from one place. A base that was copied before costs a look at its index, manifest and config.

What is not there may be pulled from a registry, by whoever calls: nothing here reaches a network.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from msgspec import Struct
from msgspec.structs import replace

from builder.archives import Archive, Folder, opened
from builder.assembly import rfc3339
from builder.errors import BuildError, UnsupportedError
from builder.origins import familiar
from builder.platforms import choose, normal_platform, runs
from cache import whence
from cache.entries import Kind
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.index import Index as StepIndex
from cache.index import key
from cache.oci import (
    DOCKER_INDEX,
    INDEX,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    REF_NAME,
    Descriptor,
    Digest,
    History,
    ImageConfig,
    Index,
    Layer,
    Manifest,
    Platform,
    RuntimeConfig,
    canonical,
    digest,
    digest_of,
    host_platform,
    parse_json,
)
from cache.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from builder.archives import Named
    from builder.model import StageState
    from builder.transfers import Glanced
    from cache.entries import Entry, Files
    from cache.store import Image, Store

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH that docker gives an image which has none of its own."""

_CONTAINERD_NAME = "io.containerd.image.name"
_JSON_LIMIT = 8 << 20
_CHUNK = 1 << 20
_MAX_INDEXES = 4


class BaseImage(Struct, frozen=True):
    """An image to start from, its layers in the store, or where `Store.elsewhere` has them from.

    digest: of the manifest where the source has one, else of the config. name: how messages and history call it.
    """

    config: ImageConfig
    layers: tuple[Layer, ...]
    digest: Digest
    name: str


class Remote(Struct, frozen=True):
    """Where to get images that the store has not. pull: brings one into the store; always: even if it has one.

    glance: gets what a build has to know before it needs bytes of layers; None where those are wanted at once.
    """

    pull: Callable[[Reference, Platform], Image]
    always: bool = False
    glance: Callable[[Reference, Platform], Glanced] | None = None


def resolve(
    text: str,
    platform: Platform,
    named: Mapping[str, str],
    store: Store,
    files: Callable[[str], Files] | None = None,
    remote: Remote | None = None,
) -> BaseImage | None:
    """The image that `FROM text` means; None for `scratch`.

    named: the named contexts, which win over everything else: `oci-layout://DIR[:tag|@digest]`,
    `docker-archive://FILE[:tag]`, `docker-image://NAME`, `host:`; of any other the files are the root file system,
    which `files` gives by the context's name. Anything else is a name or an id in the store, or a name that `remote`
    gets. platform: picks from images for several.

    Repeating it is cheap. BuildError when there is no such image; CorruptError when bytes are not what their digest
    says, with nothing of the bad blob left in the store.
    """
    name = context_for(text, named)
    if name is None:
        return None if text == "scratch" else _from_store(text, platform, store, remote)
    scheme, colon, rest = named[name].partition(":")
    rest = rest.removeprefix("//")
    if colon:
        if scheme == "oci-layout":
            return _from_layout(rest, text, platform, store)
        if scheme == "docker-archive":
            return _from_archive(rest, text, platform, store)
        if scheme == "docker-image":
            return None if rest == "scratch" else _from_store(rest, platform, store, remote)
        if scheme == "host":
            return _from_host(rest, text, store)
    if files is None:
        raise UnsupportedError(f"the build context {name}={named[name]} is no image")
    return from_files(files(name), text, platform, store)


def context_for(text: str, named: Mapping[str, str]) -> str | None:
    """The name of the context that `text` means, compared as docker does: `docker.io/library/a:latest` is `a`."""
    if not named:
        return None
    if text in named:
        return text
    wanted = familiar(text)
    return next((name for name in named if wanted and familiar(name) == wanted), None)


# ---------------------------------------------------------------- the store


def _for_platform_of(image: Image, text: str, platform: Platform, store: Store) -> Image:
    """Of an index the image for `platform`; any other image itself. BuildError where it has none."""
    variants = [(each, found) for each, found in store.variants(image) if each is not None]
    if not variants:
        return image
    chosen = choose(text, [replace(found.manifest, platform=each) for each, found in variants], platform)
    return next(found for _, found in variants if found.manifest.digest == chosen.digest)


def _from_store(text: str, platform: Platform, store: Store, remote: Remote | None) -> BaseImage:
    image = None if remote is not None and remote.always else _local(text, platform, store, lenient=remote is None)
    if image is None and remote is not None:
        found = _got(text, platform, store, remote)
        if isinstance(found, BaseImage):
            return found
        image = found
    if image is None:
        raise _missing(text, store)
    store.note_use(image.id)
    return BaseImage(store.config(image), store.layers(image), image.manifest.digest, text)


def _local(text: str, platform: Platform, store: Store, *, lenient: bool) -> Image | None:
    """The image that the store has by this name or id. lenient: of another platform, where it has no better one.

    An image that was built or loaded here is taken as it is. Of what came from a registry, each platform's is known.
    """
    try:
        image = store.image(text)
        image = _for_platform_of(image, text, platform, store)
    except NotFoundError:
        image = None
    try:
        reference = Reference.parse(text)
    except StoreError:
        return image
    known = {wanted: image_id for image_id, wanted in whence.images_of(store, reference)}
    if known and (image is None or image.id in known.values()):
        if (chosen := known.get(str(normal_platform(platform)))) is not None:
            return store.image(chosen)
        if image is not None and not lenient and normal_platform(store.config(image).platform) not in runs(platform):
            return None
    return image


def _got(text: str, platform: Platform, store: Store, remote: Remote) -> Image | BaseImage:
    try:
        reference = Reference.parse(text)
    except StoreError:
        # An id, or its beginning, which no registry knows.
        return store.image(text)
    try:
        if remote.glance is None:
            return remote.pull(reference, platform)
        glanced = remote.glance(reference, platform)
        return BaseImage(glanced.config, glanced.layers, glanced.manifest.digest, text)
    except CorruptError:
        raise
    except StoreError as error:
        head = f"base image {text}" + ("" if remote.always else " is not in the store")
        raise BuildError(f"{head}: {error.message}", hint=error.hint) from error


def _missing(text: str, store: Store) -> BuildError:
    hint = ""
    try:
        store.image(text)
    except NotFoundError as error:
        hint = error.hint
    ways = (
        f"bring one in with `pybuild pull {text}`, `pybuild import ROOTFS.tar {text}`, or with "
        f"--build-context {text}=oci-layout://DIR, docker-archive://FILE or host:"
    )
    return BuildError(f"base image {text} is not in the store", hint="; ".join(part for part in (hint, ways) if part))


# ---------------------------------------------------------------- layouts and archives


def _read(files: Named, name: str, expected: Descriptor | None = None) -> bytes:
    """A small file's bytes, checked against `expected`."""
    try:
        with files.open(name) as stream:
            data = stream.read(_JSON_LIMIT + 1)
    except FileNotFoundError:
        raise CorruptError(f"{files.title} has no {name}") from None
    if len(data) > _JSON_LIMIT:
        raise CorruptError(f"{files.title}: {name} is larger than {_JSON_LIMIT >> 20} MiB")
    if expected is not None and (len(data) != expected.size or digest_of(data) != expected.digest):
        raise CorruptError(f"{files.title}: {name} is not what its digest says", "copy or make it again")
    return data


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _from_layout(where: str, name: str, platform: Platform, store: Store) -> BaseImage:
    folder, tag = _split_layout(where)
    if not folder.is_dir():
        raise BuildError(f"there is no OCI layout at {folder}")
    if not (folder / "index.json").is_file():
        raise BuildError(f"{folder} is not an OCI layout: it has no index.json")
    return _from_index(Folder(folder), tag, name, platform, store)


def _split_layout(where: str) -> tuple[Path, str]:
    """DIR[:tag|@digest], where DIR itself may hold colons: the longest DIR that exists wins."""
    if Path(where).is_dir():
        return Path(where), ""
    cuts = [at for at, letter in enumerate(where) if letter in ":@"]
    for at in cuts:
        if at and Path(where[:at]).is_dir():
            tag = where[at + 1 :]
            return Path(where[:at]), tag.rpartition("@")[2] if "@sha256:" in tag else tag
    return Path(where[: cuts[0]] if cuts else where), ""


def _from_index(files: Named, tag: str, name: str, platform: Platform, store: Store) -> BaseImage:
    """The image of an OCI layout."""
    found = _pick(files, tag, platform)
    manifest = Manifest.from_json(parse_json(_read(files, _blob(found.digest), found), f"{files.title}: the manifest"))
    config = ImageConfig.from_json(
        parse_json(_read(files, _blob(manifest.config.digest), manifest.config), f"{files.title}: the image config")
    )
    if len(config.diff_ids) != len(manifest.layers):
        raise CorruptError(
            f"{files.title}: the manifest has {len(manifest.layers)} layers and the config {len(config.diff_ids)}"
        )
    layers = []
    for diff_id, descriptor in zip(config.diff_ids, manifest.layers, strict=True):
        _take(files, _blob(descriptor.digest), descriptor, store)
        layers.append(Layer(diff_id, replace(descriptor, media_type=_oci_type(descriptor.media_type))))
    return BaseImage(config, tuple(layers), found.digest, name)


def _oci_type(media_type: str) -> str:
    """Docker's names for layers, which mean the same bytes, in the words of the OCI spec."""
    if media_type.startswith("application/vnd.docker.image.rootfs."):
        if media_type.endswith(".gzip"):
            return LAYER_GZIP
        return LAYER_ZSTD if media_type.endswith(".zstd") else LAYER
    return media_type.replace(".layer.nondistributable.v1.", ".layer.v1.")


def _pick(files: Named, tag: str, platform: Platform) -> Descriptor:
    """The manifest of an index that `tag` names, for `platform`; nested indexes are followed."""
    index = Index.from_json(parse_json(_read(files, "index.json"), f"{files.title}/index.json"))
    candidates = _tagged(files.title, index.manifests, tag)
    for _ in range(_MAX_INDEXES):
        found = choose(files.title, candidates, platform)
        if found.media_type not in (INDEX, DOCKER_INDEX):
            return found
        data = _read(files, _blob(found.digest), found)
        candidates = list(Index.from_json(parse_json(data, f"{files.title}: an index")).manifests)
    raise CorruptError(f"{files.title}: indexes nest too deep")


def _tagged(title: str, manifests: Sequence[Descriptor], tag: str) -> list[Descriptor]:
    """Those that `tag` names: a digest, a full or a short name, or a tag alone. Without one: all, or `latest`."""
    if tag.startswith("sha256:"):
        return [_only(title, manifests, digest(tag))]
    names = {manifest: _names(manifest) for manifest in manifests}
    if not tag:
        distinct = {tuple(sorted(found)) for found in names.values()}
        if len(distinct) <= 1:
            return list(manifests)
        tag = "latest"
    chosen = [manifest for manifest, found in names.items() if tag in found]
    if not chosen:
        known = sorted({name for manifest in manifests for name in _names(manifest)[:1]})
        raise BuildError(
            f"{title} has no image {tag!r}", hint=f"it has {', '.join(known)}" if known else "its images have no names"
        )
    return chosen


def _only(title: str, manifests: Sequence[Descriptor], wanted: Digest) -> Descriptor:
    for manifest in manifests:
        if manifest.digest == wanted:
            return manifest
    raise BuildError(f"{title} has no image {wanted}")


def _names(manifest: Descriptor) -> tuple[str, ...]:
    """Every spelling that names a manifest, the one written in the index first."""
    found: list[str] = []
    notes = dict(manifest.annotations)
    for text in (notes.get(REF_NAME, ""), notes.get(_CONTAINERD_NAME, "")):
        if text:
            found.append(text)
            try:
                reference = Reference.parse(text)
            except StoreError:
                continue
            if ":" in text.rpartition("/")[2]:
                found += [reference.full, reference.familiar, reference.tag]
    return tuple(dict.fromkeys(found))


def _take(files: Named, name: str, expected: Descriptor, store: Store) -> None:
    """Copy a blob into the store unless it is there, checking it on the way."""
    if store.holds(expected):
        return
    try:
        stream = files.open(name)
    except FileNotFoundError:
        raise CorruptError(f"{files.title} has no {name}", "copy or make it again") from None
    with stream, store.writer() as writer:
        size = 0
        # One byte too many is enough to know; a huge file in the place of a small one is not copied first.
        while size <= expected.size and (chunk := stream.read(_CHUNK)):
            writer.write(chunk)
            size += len(chunk)
        if size != expected.size:
            raise CorruptError(
                f"{files.title}: {name} has {'more than ' * (size > expected.size)}"
                f"{min(size, expected.size)} bytes instead of {expected.size}",
                "copy or make it again",
            )
        try:
            writer.commit(expected.digest, expected.size)
        except CorruptError:
            raise CorruptError(f"{files.title}: {name} is not what its digest says", "copy or make it again") from None


def _from_archive(where: str, name: str, platform: Platform, store: Store) -> BaseImage:
    """An image of a `docker save` archive or a tar of an OCI layout, compressed or not.

    What was found is remembered by the file's inode, size and times, so that the next build need not read it.
    """
    path, tag = _split_archive(where)
    try:
        status = path.stat()
    except OSError as error:
        raise BuildError(f"can not read the archive {path}: {error.strerror}") from None
    index = StepIndex(store.database)
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    wanted = key([("archive", " ".join(map(str, seen))), ("tag", tag), ("platform", str(platform))])
    if (text := index.memo("archive", wanted)) and (image := _recall(text, name, store)):
        return image
    with opened(path, str(path), store.root / "tmp") as files:
        image = _read_archive(files, tag, name, platform, store)
    index.memoise("archive", wanted, _remember(image))
    return image


def _split_archive(where: str) -> tuple[Path, str]:
    if Path(where).exists() or ":" not in where:
        return Path(where), ""
    for at in (at for at, letter in enumerate(where) if letter == ":"):
        if Path(where[:at]).is_file():
            return Path(where[:at]), where[at + 1 :]
    return Path(where), ""


def _remember(image: BaseImage) -> str:
    return canonical(
        {
            "config": image.config.to_json(),
            "digest": image.digest,
            "layers": [[layer.diff_id, layer.descriptor.to_json()] for layer in image.layers],
        }
    ).decode("utf-8", "surrogateescape")


def _recall(text: str, name: str, store: Store) -> BaseImage | None:
    """What `_remember` wrote, while the store still has the layers."""
    found = json.loads(text)
    layers = tuple(Layer(digest(diff_id), Descriptor.from_json(descriptor)) for diff_id, descriptor in found["layers"])
    if not all(store.holds(layer.descriptor) for layer in layers):
        return None
    return BaseImage(ImageConfig.from_json(found["config"]), layers, digest(found["digest"]), name)


def _read_archive(files: Archive, tag: str, name: str, platform: Platform, store: Store) -> BaseImage:
    try:
        files.open("index.json").close()
    except FileNotFoundError:
        return _from_docker(files, tag, name, store)
    return _from_index(files, tag, name, platform, store)


def _from_docker(files: Archive, tag: str, name: str, store: Store) -> BaseImage:
    """The image of an archive that has only docker's manifest.json.

    Its layers have no digests of their own; what is not compressed is checked against its diff id.
    """
    try:
        table = parse_json(_read(files, "manifest.json"), f"{files.title}: manifest.json")
    except CorruptError:
        raise CorruptError(
            f"{files.title} holds no image: it has neither index.json nor manifest.json",
            "a root file system is brought in with `pybuild import`",
        ) from None
    chosen = _docker_image(files.title, table, tag)
    try:
        config_name, layer_names = str(chosen["Config"]), [str(layer) for layer in chosen["Layers"] or ()]
    except (KeyError, TypeError):
        raise CorruptError(f"{files.title}: manifest.json does not name a config and layers") from None
    data = _read(files, config_name)
    config = ImageConfig.from_json(parse_json(data, f"{files.title}: {config_name}"))
    if len(config.diff_ids) != len(layer_names):
        raise CorruptError(
            f"{files.title}: manifest.json has {len(layer_names)} layers and the config {len(config.diff_ids)}"
        )
    layers = [
        Layer(diff_id, _take_unnamed(files, layer_name, diff_id, store))
        for diff_id, layer_name in zip(config.diff_ids, layer_names, strict=True)
    ]
    return BaseImage(config, tuple(layers), digest_of(data), name)


def _docker_image(title: str, table: object, tag: str) -> Mapping[str, Any]:
    images = [image for image in table if isinstance(image, dict)] if isinstance(table, list) else []
    if not images:
        raise CorruptError(f"{title}: manifest.json names no image")
    if not tag:
        return images[0]
    known = [name for image in images for name in image.get("RepoTags") or ()]
    wanted = {tag, familiar(tag), Reference.parse(tag).familiar} if "/" in tag or ":" in tag else {tag}
    for image in images:
        for repo_tag in image.get("RepoTags") or ():
            if wanted & {repo_tag, familiar(repo_tag), repo_tag.rpartition(":")[2]}:
                return image
    raise BuildError(f"{title} has no image {tag!r}", hint=f"it has {', '.join(known)}" if known else "")


_MAGIC = ((b"\x1f\x8b", LAYER_GZIP), (b"\x28\xb5\x2f\xfd", LAYER_ZSTD))


def _take_unnamed(files: Archive, name: str, diff_id: Digest, store: Store) -> Descriptor:
    """Copy a layer of which only the diff id is known into the store."""
    try:
        stream = files.open(name)
    except FileNotFoundError:
        raise CorruptError(f"{files.title} has no {name}", "copy or make it again") from None
    with stream, store.writer() as writer:
        chunk = stream.read(_CHUNK)
        media_type = next((kind for magic, kind in _MAGIC if chunk.startswith(magic)), LAYER)
        while chunk:
            writer.write(chunk)
            chunk = stream.read(_CHUNK)
        try:
            found, size = writer.commit(diff_id if media_type == LAYER else None)
        except CorruptError:
            raise CorruptError(f"{files.title}: {name} is not what its diff id says", "copy or make it again") from None
    return Descriptor(media_type, found, size)


# ---------------------------------------------------------------- made here


def _empty(platform: Platform, *, layer: Layer, how: str, created: str = "") -> ImageConfig:
    """The config of an image of one layer, with docker's defaults for one that has no config of its own."""
    return ImageConfig(
        platform=platform,
        config=RuntimeConfig(env=(f"PATH={PATH}",), working_dir="/"),
        diff_ids=(layer.diff_id,),
        history=(History(created_by=how, created=created),),
        created=created,
    )


def _from_host(options: str, name: str, store: Store) -> BaseImage:
    from builder import host

    if options:
        raise UnsupportedError(f"host:{options} is not known", hint="host: takes nothing after the colon")
    layer, newest = host.layer(store)
    config = _empty(host_platform(), layer=layer, how="shell and core utilities of the host", created=rfc3339(newest))
    config = replace(config, config=replace(config.config, cmd=("/bin/sh",)))
    return BaseImage(config, (layer,), digest_of(canonical(config.to_json())), name)


def from_files(files: Files, name: str, platform: Platform, store: Store) -> BaseImage:
    """An image of one layer with all of `files`, which BuildKit allows for a named context that is no image.

    The layer is remembered by what is in it, so that the same files are packed once.
    """
    from builder.context import walk
    from builder.flatten import linked
    from cache import layers

    entries = list(linked(walk(files), files))
    index = StepIndex(store.database)
    wanted = key([("files", "1"), *((_show(entry), _facts(entry, files)) for entry in entries)])
    text = index.memo("files", wanted)
    image = _recall(text, name, store) if text else None
    if image is None:
        layer = layers.write(entries, store).layer
        config = _empty(platform, layer=layer, how=f"files of the build context {name}")
        image = BaseImage(config, (layer,), digest_of(canonical(config.to_json())), name)
        index.memoise("files", wanted, _remember(image))
    return image


def _show(entry: Entry) -> str:
    return entry.path.decode("utf-8", "surrogateescape")


def _facts(entry: Entry, files: Files) -> str:
    """All that counts of an entry but its time."""
    content = files.digest(entry) if entry.kind is Kind.FILE else ""
    xattrs = [(name, value.hex()) for name, value in entry.xattrs]
    return (
        f"{entry.kind.value} {entry.mode:o} {entry.uid}:{entry.gid} {content} {entry.target!r} {entry.device} {xattrs}"
    )


# ---------------------------------------------------------------- import


def import_rootfs(
    source: BinaryIO,
    name: str,
    store: Store,
    *,
    changes: Sequence[str] = (),
    message: str = "",
    platform: Platform | None = None,
) -> Image:
    """Make an image of one layer of a root file system's tar, compressed or not, and give it `name`.

    changes: lines of a Dockerfile, such as `CMD ["sh"]`, that set the config, as for `docker import`; without them
    it is empty. message: the history's comment. An empty `name` gives none. The image's date is that of its newest
    file, so that the same tar gives the same image. StoreError when it is no tar, with nothing left of it.
    """
    from cache import layers

    reference = Reference.parse(name) if name else None
    state = _changed(changes, platform or host_platform())
    buffered = io.BufferedReader(source)  # type: ignore[type-var]
    try:
        if not buffered.peek(1):
            raise CorruptError("there is nothing to import: the archive is empty")
        written = layers.import_tar(cast("BinaryIO", buffered), store)
    finally:
        buffered.detach()
    newest = max((entry.mtime_ns for entry in written.entries), default=0)
    created = rfc3339(max(newest, 0) // 1_000_000_000)
    config = ImageConfig(
        platform=state.platform,
        config=state.config,
        diff_ids=(written.layer.diff_id,),
        history=(History(created_by="pybuild import", created=created, comment=message),),
        created=created,
        author=state.author,
    )
    image = store.put_image(config, (written.layer,))
    if reference is not None:
        store.tag(reference, image.id)
        image = store.image(image.id)
    return image


def _changed(changes: Sequence[str], platform: Platform) -> StageState:
    """The state of a stage without a base after `changes`."""
    from builder import model
    from builder.handlers import lower
    from grammar import instructions
    from grammar.parser import parse_trigger
    from grammar.source import Source

    refused = (instructions.Run, instructions.Copy, instructions.Add, instructions.Arg)
    state = model.StageState(platform=platform)
    for text in changes:
        source = Source("--change", text)
        scope = model.Scope(source, 0, ("import",), {}, {}, {}, {}, platform)
        instruction = parse_trigger(text, source.name)
        if isinstance(instruction, refused):
            raise BuildError(
                f"--change {text}: an import runs and copies nothing",
                hint="CMD, ENV, LABEL, USER and the like can stand",
            )
        state = lower(instruction, state, scope).state
    return state

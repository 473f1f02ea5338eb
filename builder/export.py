"""Where a finished image goes besides the store: archives, layouts, a directory, a tar of its files.

Whatever is written stands complete or not at all: it is made under another name beside its place and renamed. Equal
images give equal bytes; no time of writing is in them.

    type=oci,dest=FILE|-            a tar of an OCI image layout; tar=false: the layout as a folder
    type=docker,dest=FILE|-         what `docker load` and `podman load` read; a layout too, as docker writes since 25
    type=tar,dest=FILE|-            the image's files, layers put together
    type=local,dest=DIR             the same as files in a directory
    type=image,name=NAME,push=true  the store; with push, the registry of each name, too
    type=registry                   the same as type=image,push=true
    type=cacheonly                  nothing

How the layers of an image are compressed and in whose words its documents are written: `form_of`.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from msgspec.structs import replace

from builder.archives import Member, write_tar
from builder.errors import BuildError, UnsupportedError
from builder.events import ExportFinished, ExportStarted, Reporter
from cache.errors import CorruptError
from cache.oci import (
    DOCKER_INDEX,
    INDEX,
    REF_NAME,
    Descriptor,
    Index,
    JSONObject,
    Manifest,
    canonical,
    host_platform,
    is_index,
    parse_json,
)
from cache.reference import Reference

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from builder.model import ImageResult, OutputSpec
    from builder.registries import Registries
    from cache.repack import Form
    from cache.store import Store

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CONTAINERD_NAME = "io.containerd.image.name"
_CHUNK = 1 << 20
_STDOUT = 1

FORM = frozenset({"compression", "compression-level", "force-compression", "oci-mediatypes"})
"""The attributes of an output that `form_of` reads; the names are buildx's."""

_ATTRIBUTES: dict[str, frozenset[str] | set[str]] = {
    "oci": {"name", "tar"} | FORM,
    "docker": {"name", "tar"} | FORM,
    "tar": {"platform-split"},
    "local": {"platform-split", "mode"},
    "image": {"name", "push", "push-by-digest", "registry.insecure", "store", "unpack"} | FORM,
    "registry": {"name", "push-by-digest", "registry.insecure"} | FORM,
    "cacheonly": set[str](),
}


def export(
    image: ImageResult,
    spec: OutputSpec,
    names: Sequence[str],
    store: Store,
    report: Reporter,
    registries: Callable[[], Registries] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Write `image` as `spec` says. names: full references, which archives and layouts carry, and that are pushed.

    stop: ends a push, with CancelledError.

    Repeating it writes the same again. BuildError when the place can not be written or is a terminal; UnsupportedError
    for a type or an attribute that is not known; CorruptError when the store is damaged. After an error the place is as
    it was, but that a directory may have got some of the files (see `type=local`).
    """
    check(spec, names)
    attributes = dict(spec.attributes)
    if spec.type == "cacheonly":
        return
    names = (*names, *(Reference.parse(name).full for name in attributes.get("name", "").split(",") if name))
    names = tuple(dict.fromkeys(names))
    if spec.type in _KEPT:
        if pushes(spec):
            _push(image, spec, names, store, report, registries, stop)
        return
    where = spec.dest or "-"
    what = f"{_TITLES[spec.type]} {'to standard output' if where == '-' else where}"
    report(ExportStarted(what))
    started = time.monotonic()
    image = in_form(image, form_of(spec), store)
    try:
        size = _write(image, spec, where, names, store, folder=not _flag(attributes.get("tar", "true"), "tar"))
    except OSError as error:
        if where == "-" and isinstance(error, BrokenPipeError):
            raise  # the reader has seen enough: no mistake of anybody's
        raise BuildError(f"can not write {where}: {error.strerror or error}") from error
    report(ExportFinished(what, time.monotonic() - started, size))


_TITLES = {"oci": "oci archive", "docker": "docker archive", "tar": "file system tar", "local": "files"}


_KEPT = ("image", "registry")
"""The outputs that write nothing but what the store and registries have."""


def pushes(spec: OutputSpec) -> bool:
    """Whether an output goes to registries."""
    return spec.type == "registry" or _flag(dict(spec.attributes).get("push", "false"), "push")


def names_of(spec: OutputSpec) -> tuple[Reference, ...]:
    """The names that the image gets in the store by this output. StoreError for what is none."""
    if spec.type not in _KEPT:
        return ()
    return tuple(Reference.parse(name) for name in dict(spec.attributes).get("name", "").split(",") if name)


def _push(
    image: ImageResult,
    spec: OutputSpec,
    names: Sequence[str],
    store: Store,
    report: Reporter,
    registries: Callable[[], Registries] | None,
    stop: threading.Event | None,
) -> None:
    from builder import transfers

    attributes = dict(spec.attributes)
    if registries is None:
        raise UnsupportedError("this build is not to speak to registries")
    insecure = _flag(attributes.get("registry.insecure", "false"), "registry.insecure")
    image = in_form(image, form_of(spec), store)
    for name in names:
        reference = Reference.parse(name)
        if _flag(attributes.get("push-by-digest", "false"), "push-by-digest"):
            reference = replace(reference, tag="", digest=image.manifest.digest)
        place = transfers.Place(reference, registries().get(reference.registry, insecure=insecure))
        transfers.push(place, image.manifest, store=store, report=report, stop=stop)
        transfers.note(place, image.id, image.manifest, image.config.platform, store)


def check(spec: OutputSpec, names: Sequence[str] = ()) -> None:
    """Say before a build what of `spec` can not be done after it. names: those of the image. BuildError and others."""
    known = _ATTRIBUTES.get(spec.type)
    if known is None:
        hint = f"this version writes {', '.join(_ATTRIBUTES)}"
        raise UnsupportedError(f"output type {spec.type!r} is not known", hint=hint)
    attributes = dict(spec.attributes)
    for name in attributes:
        if name not in known:
            raise UnsupportedError(
                f"output type={spec.type}: the attribute {name!r} is not known",
                hint=f"it takes {', '.join(['dest', *sorted(known)])}",
            )
    if attributes.get("mode", "copy") != "copy":
        raise UnsupportedError(f"output type=local: mode={attributes['mode']} is not supported", hint="mode=copy is")
    splits(spec, several=False)
    form_of(spec)
    if spec.type in _KEPT:
        _check_kept(spec, names)
        return
    folder = not _flag(attributes.get("tar", "true"), "tar")
    if spec.type == "local" and spec.dest in {"", "-"}:
        raise BuildError("output type=local needs a directory", hint="-o type=local,dest=DIR")
    if spec.type == "docker" and not spec.dest:
        raise UnsupportedError(
            "output type=docker without dest is for a running Docker, not for a file",
            hint="--load hands the image to it; dest=FILE writes an archive",
        )
    if folder and spec.dest in {"", "-"}:
        raise BuildError(f"output type={spec.type},tar=false needs a directory", hint="add dest=DIR")
    if spec.type in {"oci", "docker", "tar"} and not folder:
        if spec.dest in {"", "-"}:
            if os.isatty(_STDOUT):
                raise BuildError(
                    f"output type={spec.type}: refusing to write an archive to a terminal",
                    hint="add dest=FILE, or redirect standard output",
                )
        elif Path(spec.dest).is_dir():
            raise BuildError(
                f"output type={spec.type}: {spec.dest} is a directory", hint="dest names the file to write"
            )
    elif Path(spec.dest).exists() and not Path(spec.dest).is_dir():
        raise BuildError(f"output type={spec.type}: {spec.dest} is not a directory")
    if spec.dest not in {"", "-"}:
        _check_writable(Path(spec.dest).absolute())


def _check_kept(spec: OutputSpec, names: Sequence[str]) -> None:
    """The same for what goes to the store and to registries."""
    where = f"output type={spec.type}"
    if spec.dest:
        raise BuildError(f"{where} has no dest", hint="type=oci,dest=FILE writes an archive")
    attributes = dict(spec.attributes)
    for name in ("push", "push-by-digest", "registry.insecure"):
        _flag(attributes.get(name, "false"), name)
    if not _flag(attributes.get("store", "true"), "store"):
        raise UnsupportedError(f"{where}: store=false is not supported", hint="a build always keeps its image")
    if _flag(attributes.get("unpack", "false"), "unpack"):
        raise UnsupportedError(
            f"{where}: unpack=true is not supported", hint="layers are unpacked when a RUN needs them"
        )
    if not pushes(spec) and FORM & attributes.keys():
        raise UnsupportedError(
            f"{where}: {min(FORM & attributes.keys())} counts for what is pushed or written to a file",
            hint="add push=true, or use type=oci",
        )
    if pushes(spec) and not (names or names_of(spec)):
        raise BuildError(f"{where}: the image has no name to push it by", hint="-t REGISTRY/NAME:TAG, or name=")


_NAMES: dict[str, Literal["gzip", "zstd", "none"]] = {"gzip": "gzip", "zstd": "zstd", "uncompressed": "none"}


def form_of(spec: OutputSpec) -> Form | None:
    """How an output wants the image's blobs; None for as they are. BuildError for what can not be.

    compression: gzip, zstd or uncompressed, for the layers that the build made; force-compression: for the base's, too.
    oci-mediatypes: false for Docker's schema 2.
    """
    attributes = {name: value for name, value in spec.attributes if name in FORM}
    if not attributes:
        return None
    from cache.compression import LEVELS, Compression
    from cache.repack import Form

    name, level = attributes.get("compression", ""), attributes.get("compression-level", "")
    where = f"output type={spec.type}"
    if name == "estargz":
        raise UnsupportedError(f"{where}: compression=estargz is not supported", hint="gzip, zstd and uncompressed are")
    if name and name not in _NAMES:
        raise BuildError(f"{where}: there is no compression {name!r}", hint="gzip, zstd or uncompressed")
    force = _flag(attributes.get("force-compression", "false"), "force-compression")
    docker = not _flag(attributes.get("oci-mediatypes", "true"), "oci-mediatypes")
    if docker and name == "zstd":
        raise BuildError(
            f"{where}: Docker's schema 2 has no zstd", hint="leave out oci-mediatypes=false, or compress with gzip"
        )
    if not name and (level or force):
        name = "gzip"
    if not name:
        return Form(docker=docker)
    kind = _NAMES[name]
    if level and not (level.isdecimal() and int(level) in LEVELS[kind]):
        known = LEVELS[kind]
        hint = f"{name} has the levels {known[0]} to {known[-1]}" if known else f"{name} has no levels"
        raise BuildError(f"{where}: compression-level={level} is not possible", hint=hint)
    return Form(Compression(kind, int(level) if level else None), force, docker)


def in_form(image: ImageResult, form: Form | None, store: Store, *, exact: bool = False) -> ImageResult:
    """The image with its blobs as `form` says, all of them in the store. Idempotent, and free when done before.

    exact: as `Compression.exact`. Raises NotFoundError and CorruptError for blobs that are not there or not whole.
    """
    if form is None:
        return image
    from cache.repack import repacked

    if exact and form.compression is not None:
        form = replace(form, compression=replace(form.compression, exact=True))
    if not image.variants:
        return replace(image, manifest=repacked(store, image.manifest, form, image.inherited))
    variants = tuple(in_form(each, form, store, exact=exact) for each in image.variants)
    described = tuple(replace(each.manifest, platform=each.config.platform) for each in variants)
    index = Index(described, media_type=DOCKER_INDEX if form.docker else INDEX)
    return replace(image, variants=variants, manifest=store.put_blob(canonical(index.to_json()), index.media_type))


def _check_writable(dest: Path) -> None:
    """A build of an hour is not to end with a folder that may not be written to. The folder may be yet to be made."""
    place = dest if dest.is_dir() else dest.parent
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise BuildError(f"can not write {dest}: {place} may not be written to")


def _flag(text: str, name: str) -> bool:
    if text.lower() in {"true", "1", ""}:
        return True
    if text.lower() in {"false", "0"}:
        return False
    raise BuildError(f"output: {name}={text} is neither true nor false")


def splits(spec: OutputSpec, *, several: bool) -> bool:
    """Whether the files of an image go into a folder of its platform. several: there are images of more than one."""
    return _flag(dict(spec.attributes).get("platform-split", "true" if several else "false"), "platform-split")


def _write(
    image: ImageResult, spec: OutputSpec, where: str, names: Sequence[str], store: Store, *, folder: bool
) -> int:
    kind = spec.type
    images = image.variants or (image,)
    split = splits(spec, several=len(images) > 1)
    parts = [(str(each.config.platform).replace("/", "_") if split else "", each) for each in images]
    if kind == "local":
        from builder import flatten

        return sum(flatten.to_directory(each.layers, Path(where) / name, store) for name, each in parts)
    if kind == "tar":
        from builder import flatten

        with sink(where) as out:
            return flatten.folders_to_tar(((name, each.layers) for name, each in parts), out, store)
    members = layout_members([(image.manifest, names)], store, docker=kind == "docker")
    if folder:
        return to_folder(members, Path(where))
    with sink(where) as out:
        return write_tar(members, out)


# ---------------------------------------------------------------- layouts and their archives


def layout_members(
    images: Sequence[tuple[Descriptor, Sequence[str]]], store: Store, *, docker: bool
) -> Iterator[Member]:
    """The files of a layout of images, each a manifest and its full names; those that say what the others are first.

    docker: with `manifest.json` as `docker load` wants it, which of an index has one image: this machine's, or the
    first. A blob that several images have is there once. Raises as `Store.open_blob`.
    """
    found = [(each, names, _of_index(each, store)) for each, names in images]
    manifests = {
        one.digest: Manifest.from_json(parse_json(store.read_blob(one), "the image's manifest"))
        for _, _, variants in found
        for one in variants
    }
    yield _made("oci-layout", _LAYOUT)
    yield _made("index.json", _index([entry for manifest, names in images for entry in _entries(manifest, names)]))
    if docker:
        chosen = [(manifests[_for_here(variants).digest], names) for _, names, variants in found]
        yield _made("manifest.json", canonical([_docker_entry(*each) for each in chosen]))
    done: set[str] = set()
    for described_by, _, variants in found:
        blobs = [described_by]
        for one in variants:
            blobs += [one, manifests[one.digest].config, *manifests[one.digest].layers]
        for blob in blobs:
            # A layer that may not be passed on is fetched by whoever runs the image.
            if blob.digest not in done and not (blob.urls and not store.has(blob.digest)):
                done.add(blob.digest)
                yield Member(_path(blob.digest), blob.size, open=lambda blob=blob: store.open_blob(blob))  # type: ignore[misc]


def _of_index(descriptor: Descriptor, store: Store) -> tuple[Descriptor, ...]:
    """The manifests of an index, those that the store has; any other descriptor itself."""
    if not is_index(descriptor.media_type):
        return (descriptor,)
    index = Index.from_json(parse_json(store.read_blob(descriptor), "the index"))
    return tuple(each for each in index.manifests if store.holds(each))


def _for_here(manifests: Sequence[Descriptor]) -> Descriptor:
    here = host_platform().architecture
    alike = [each for each in manifests if each.platform is not None and each.platform.architecture == here]
    return (alike or list(manifests))[0]


def _made(name: str, data: bytes) -> Member:
    return Member(name, len(data), data)


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _index(entries: Sequence[JSONObject]) -> bytes:
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def _entries(manifest: Descriptor, names: Sequence[str]) -> Iterator[JSONObject]:
    """An image's lines of index.json: containerd, docker, skopeo and buildah each look for the names elsewhere."""
    plain = replace(manifest, annotations=())
    for name in names or ("",):
        document = plain.to_json()
        if name:
            document["annotations"] = {_CONTAINERD_NAME: name, REF_NAME: Reference.parse(name).tag or "latest"}
        yield document


def _docker_entry(manifest: Manifest, names: Sequence[str]) -> JSONObject:
    """A line of `docker save`'s manifest.json; https://github.com/moby/docker-image-spec/blob/main/spec.md."""
    return {
        "Config": _path(manifest.config.digest),
        "RepoTags": [Reference.parse(name).familiar for name in names] or None,
        "Layers": [_path(layer.digest) for layer in manifest.layers],
    }


def to_folder(members: Iterator[Member], folder: Path) -> int:
    """Put the layout into `folder`; one that is there already keeps its other images.

    Blobs come first and `index.json` last, each by a rename: a reader never sees a name without its blobs.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "oci-layout").is_file():
        raise BuildError(f"{folder} is not empty and no OCI layout", hint="choose an empty or a new directory")
    total = 0
    last: list[Member] = []
    for member in members:
        total += member.size
        if "/" not in member.name:
            last.append(member)
            continue
        place = folder / member.name
        if not place.is_file() or place.stat().st_size != member.size:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _renamed(place) as out:
                member.copy(out)
    for member in last:
        data = member.data
        if member.name == "index.json" and (folder / member.name).is_file():
            data = _merged((folder / member.name).read_bytes(), data, str(folder))
        with _renamed(folder / member.name) as out:
            out.write(data)
    return total


def _merged(old: bytes, new: bytes, title: str) -> bytes:
    """The index `old` with the images of `new` in it, each in the place of an older one of its name."""
    before, after = parse_json(old, f"{title}/index.json"), parse_json(new, "index.json")
    if not isinstance(before, dict) or not isinstance(after, dict):
        raise CorruptError(f"{title}/index.json is not an index")
    added = after["manifests"]
    names = {_name_of(image) for image in added} - {""}
    digests = {image["digest"] for image in added}
    kept = [
        image
        for image in before.get("manifests") or ()
        if _name_of(image) not in names and not (image.get("digest") in digests and not _name_of(image))
    ]
    return canonical({**before, "manifests": [*kept, *added]})


def _name_of(image: Mapping[str, object]) -> str:
    notes = image.get("annotations")
    if not isinstance(notes, dict):
        return ""
    return str(notes.get(_CONTAINERD_NAME) or notes.get(REF_NAME) or "")


# ---------------------------------------------------------------- places


@contextmanager
def sink(where: str) -> Iterator[BinaryIO]:
    """A stream to a new file that takes its place at the end, or to standard output, a pipe or a device as it is."""
    if where == "-":
        with os.fdopen(os.dup(_STDOUT), "wb") as out:
            yield out
        return
    path = Path(where)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as out:
                yield out
            return
    with _renamed(Path(os.path.realpath(path))) as out:
        yield out


@contextmanager
def _renamed(place: Path) -> Iterator[BinaryIO]:
    """A file beside `place` that takes its name when the block ends well, and is gone when it does not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name[:200]}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb", buffering=_CHUNK) as out:
            yield out
        temporary.replace(place)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise

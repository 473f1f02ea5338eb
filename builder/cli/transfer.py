"""`pybuild save`, `load`, `image export`, `mount` and `unshare`: images and their files, out of the store and in."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import choose_isolation, open_store
from builder.cli.stopping import cleanly
from builder.cli.surroundings import ROOT, store_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from builder.archives import Named
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from cache.oci import Descriptor
    from cache.store import Image, Store

SAVE = Command(
    name="save",
    usage="[OPTIONS] IMAGE...",
    summary="Write images, with their names, to one archive.",
    words=(1, -1),
    flags=(
        Flag("output", "the file to write (default: standard output)", "o", "FILE"),
        Flag("format", "docker-archive (default), oci-archive, or oci-dir", value="FORMAT"),
        Flag("platform", value="PLATFORM", unsupported="an image of the store has one platform"),
    ),
    notes="""\
A docker-archive is what docker load, podman load and pybuild load read; it is an OCI layout in a tar as well. A name
without a tag means every tag of it, as in docker; an id gives an image without a name. The same images give the same
bytes.""",
)
LOAD = Command(
    name="load",
    usage="[OPTIONS] [IMAGE...]",
    summary="Take images from an archive into the store; with IMAGE: hand images to a running Docker, or to podman.",
    words=(0, -1),
    flags=(
        Flag("to", "who gets the images: docker, podman, or auto (default): the first that is there", value="ENGINE"),
        Flag("input", "the archive, or the folder of an OCI layout (default: standard input)", "i", "FILE"),
        Flag("quiet", "no word about names that moved", "q"),
        Flag("platform", "which image of several platforms (default: this machine's)", value="OS/ARCH"),
        Flag("tag", "another name for the one image of the archive", "t", "NAME", many=True),
    ),
    notes="""\
Archives of docker, of any version, of podman, skopeo and others, and OCI layouts, plain or compressed with gzip, zstd,
xz or bzip2. Every digest is checked; of an archive that is not sound nothing is kept.

With IMAGE, images of the store go the other way, as `pybuild build --load` does it: into the Docker that DOCKER_HOST,
docker's context or the usual sockets lead to, else into podman.""",
)
EXPORT = Command(
    name="image export",
    usage="[OPTIONS] IMAGE DIR|FILE.tar|-",
    summary="Write the files of an image, its layers put together: into a folder, or as a tar.",
    words=(2, 2),
    notes="""\
What the folder holds already stays, unless the image has something of the same name. As root, files keep their owners;
otherwise they become yours and device nodes are left out; a tar has everything.""",
)

MOUNT = Command(
    name="image mount",
    usage="[OPTIONS] [IMAGE [DIR]]",
    summary="Show the files of an image, read-only, in a folder, without copying; without IMAGE: list what is mounted.",
    words=(0, 2),
    flags=(Flag("format", "of the list: table, json, or a template of .ID, .Names, .Place", value="FORMAT"),),
    notes="""\
Prints the folder; without DIR it is a fresh one. It takes the right to mount: root's, or that of an ordinary user
inside `pybuild unshare`, where the mount lasts as long as that shell. Elsewhere `image export` copies the files. An
image that is mounted can not be removed.""",
)
UMOUNT = Command(
    name="image umount",
    usage="[OPTIONS] DIR|IMAGE...",
    summary="Take mounted images away again.",
    words=(0, -1),
    flags=(Flag("all", "every one", "a"),),
)
UNSHARE = Command(
    name="unshare",
    usage="[COMMAND [ARGUMENT...]]",
    summary="Run a command, or a shell, where an ordinary user may mount images and sees files' true owners.",
    words=(0, -1),
    notes="""\
That is the user namespace in which RUN runs, with a mount namespace of its own: what is mounted there ends with the
command. The exit code is the command's.""",
    verbatim=True,
)

_FORMATS = ("docker-archive", "oci-archive", "oci-dir")
_STDOUT = 1


# ---------------------------------------------------------------- save


@cleanly()
def save(given: Given, around: Surroundings) -> int:
    """Write the archive, complete or not at all."""
    from builder.archives import write_tar
    from builder.errors import BuildError
    from builder.export import layout_members, sink, to_folder

    form = given.one("format", _FORMATS[0])
    if form not in _FORMATS:
        raise UsageError(f"--format {form!r} is not known", hint="one of " + ", ".join(_FORMATS))
    where = given.one("output") or "-"
    if form == "oci-dir" and where == "-":
        raise UsageError("--format oci-dir needs a folder", hint="-o DIR")
    if form != "oci-dir" and where == "-" and os.isatty(_STDOUT):
        raise UsageError("refusing to write an archive to a terminal", hint="-o FILE, or redirect standard output")
    if form != "oci-dir" and os.path.isdir(where):
        raise UsageError(f"{where} is a folder", hint="-o names the file to write, or add --format oci-dir")
    _check_folder(where)
    with open_store(given, around.environ) as store, store.lease():
        images = _named(given.words, store)
        members = layout_members(images, store, docker=form == "docker-archive")
        try:
            if form == "oci-dir":
                to_folder(members, Path(where))
            else:
                with sink(where) as out:
                    write_tar(members, out)
        except OSError as error:
            if where == "-" and isinstance(error, BrokenPipeError):
                raise  # the reader has seen enough: no mistake of anybody's
            raise BuildError(f"can not write {where}: {error.strerror or error}") from error
    return 0


def _check_folder(where: str) -> None:
    """UsageError for a file in a folder that there is not: as in docker, a slip is not made true by making it."""
    folder = os.path.dirname(where.rstrip("/")) or "."
    if where != "-" and not os.path.isdir(folder):
        raise UsageError(f"can not write {where}: there is no folder {folder}")


def _named(words: Sequence[str], store: Store) -> list[tuple[Descriptor, list[str]]]:
    """The images that the words mean, each once, with the full names by which they were asked for."""
    found: dict[str, tuple[Image, list[str]]] = {}
    for word in words:
        for image, name in _meant(word, store):
            names = found.setdefault(image.id, (image, []))[1]
            if name and name not in names:
                names.append(name)
    return [(image.manifest, names) for image, names in found.values()]


def _meant(word: str, store: Store) -> Iterator[tuple[Image, str]]:
    from cache.errors import StoreError
    from cache.reference import Reference

    try:
        wanted: Reference | None = Reference.parse(word)
    except StoreError:
        wanted = None
    if wanted is not None and not wanted.digest and ":" not in word.rpartition("/")[2]:
        tags = [
            (image, reference.full)
            for image in store.images()
            for reference in map(Reference.parse, image.names)
            if reference.name == wanted.name
        ]
        if tags:
            yield from sorted(tags, key=lambda pair: pair[1])
            return
    yield store.image(word), store.find(word)[1]


# ---------------------------------------------------------------- load


@cleanly()
def load(given: Given, around: Surroundings) -> int:
    """Take the archive in and print what it held, as docker does; or hand images over."""
    if given.words or given.has("to"):
        return _hand_over(given, around)
    from builder.cli.build import platform_of
    from builder.load import load as take_in
    from cache.oci import host_platform

    with open_store(given, around.environ) as store, store.lease(), _archive(given, around, store) as files:
        platform = platform_of(given.one("platform")) or host_platform()
        loaded = take_in(files, store, platform, given.all("tag"))
    for each in loaded:
        for name, old in () if given.on("quiet") else each.moved:
            around.say(f"The image {name} existed already; the old one, {old[7:19]}, is <none> now")
        for name in each.names:
            around.say(f"Loaded image: {name}")
        if not each.names:
            around.say(f"Loaded image ID: {each.image.id}")
    return 0


def _hand_over(given: Given, around: Surroundings) -> int:
    """Give images of the store to an engine and print what it says."""
    from builder.engines import KINDS, find, hand_over
    from cache.errors import NotFoundError, StoreError

    unfit = [f"--{name}" for name in ("input", "platform", "tag") if given.has(name)]
    if unfit:
        raise UsageError(f"{unfit[0]} is for loading an archive, not for handing over images of the store")
    kind = given.one("to", KINDS[0])
    if kind not in KINDS:
        raise UsageError(f"--to {kind!r} is not known", hint="one of " + ", ".join(KINDS))
    if not given.words:
        raise UsageError("--to is for images of the store, and none is named", hint="pybuild load --to docker app:1.0")
    with open_store(given, around.environ) as store, store.lease():
        try:
            images = _named(given.words, store)
        except StoreError as error:
            file = next((word for word in given.words if os.path.isfile(word)), "")
            if not file:
                raise
            raise NotFoundError(error.message, f"pybuild load -i {file} reads a file") from None
        engine = find(around.environ, kind)
        try:
            said = hand_over(engine, images, store, lambda _: None)
        finally:
            engine.close()
    for line in () if given.on("quiet") else said:
        around.say(line)
    return 0


@contextmanager
def _archive(given: Given, around: Surroundings, store: Store) -> Iterator[Named]:
    """What --input names, or standard input, opened."""
    from builder.archives import Folder, opened

    name = given.one("input") or "-"
    if name != "-" and os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "index.json")):
            raise UsageError(f"{name} is no OCI layout: it has no index.json", hint="-i names an archive or a layout")
        yield Folder(Path(name))
        return
    if name != "-" and not os.path.exists(name):
        raise UsageError(f"there is no file {name}", hint="pybuild load -i IMAGES.tar")
    source: Path | BinaryIO = Path(name)
    if name == "-":
        if around.stdin.isatty():
            raise UsageError("there is no archive: standard input is a terminal", hint="-i FILE, or redirect it")
        name, source = "standard input", _in_place(around.stdin) or around.stdin
    with opened(source, name, store.root / "tmp") as files:
        yield files


def _in_place(stream: BinaryIO) -> Path | None:
    """The path of standard input where it is a file, read from its beginning, that need not be copied."""
    try:
        number = stream.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode) and os.lseek(number, 0, os.SEEK_CUR) == 0:
            return Path(f"/proc/self/fd/{number}")
    except OSError:
        pass
    return None


# ---------------------------------------------------------------- export


@cleanly()
def export(given: Given, around: Surroundings) -> int:
    """Write the image's files, a tar complete or not at all."""
    from builder import flatten
    from builder.errors import BuildError
    from builder.export import sink

    name, where = given.words
    if where == "-" and os.isatty(_STDOUT):
        raise UsageError("refusing to write a tar to a terminal", hint="redirect standard output")
    packed = where == "-" or (where.endswith(".tar") and not os.path.isdir(where))
    _check_folder(where)
    if not packed and where.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")):
        raise UsageError(f"{where}: a compressed tar is not written", hint=f"pybuild image export {name} - | gzip")
    with open_store(given, around.environ) as store, store.lease():
        layers = store.layers(store.image(name))
        try:
            if packed:
                with sink(where) as out:
                    flatten.to_tar(layers, out, store)
            else:
                flatten.to_directory(layers, Path(where), store)
        except OSError as error:
            if where == "-" and isinstance(error, BrokenPipeError):
                raise
            raise BuildError(f"can not write {where}: {error.strerror or error}") from error
    return 0


# ---------------------------------------------------------------- mount


@cleanly()
def mount(given: Given, around: Surroundings) -> int:
    """Mount the image and print where, or list the mounts."""
    if not given.words:
        return _list_mounts(given, around)
    from builder.mounting import mount as show

    with open_store(given, around.environ) as store, store.lease():
        place = Path(given.words[1]) if len(given.words) > 1 else None
        around.say(str(show(store, store.image(given.words[0]), place)))
    return 0


def _list_mounts(given: Given, around: Surroundings) -> int:
    from builder.cli.images import formatted
    from builder.terminal import columns
    from cache.uses import mounts

    form = given.one("format", "table")
    with open_store(given, around.environ) as store:
        names = {image.id: image.names for image in store.images(all=True)}
        rows = [
            {"ID": each.image[7:19], "Names": ", ".join(names.get(each.image) or ("<none>",)), "Place": each.place}
            for each in mounts(store)
        ]
    if form == "table":
        around.say(columns([("IMAGE ID", "NAMES", "FOLDER"), *([*row.values()] for row in rows)]))
    else:
        for row in rows:
            around.say(formatted(form, row))
    return 0


def umount(given: Given, around: Surroundings) -> int:
    """Unmount each; the first that can not be is an error after the others are gone."""
    from builder.errors import BuildError
    from builder.mounting import meant, unmount
    from cache.errors import StoreError
    from cache.uses import mounts

    if bool(given.words) == given.on("all"):
        raise UsageError(
            "pybuild image umount takes folders or images, or --all", hint="pybuild image mount lists them"
        )
    failure: BuildError | StoreError | None = None
    with open_store(given, around.environ) as store:
        for word in given.words or [each.place for each in mounts(store)]:
            try:
                for found in meant(store, word):
                    unmount(found)
                    around.say(found.place)
            except (BuildError, StoreError) as error:
                failure = failure or error
    if failure is not None:
        raise failure
    return 0


def unshare(given: Given, around: Surroundings) -> int:
    """Become the command, inside the namespaces."""
    from builder import sandbox
    from builder.errors import BuildError

    # Asked before: inside everybody looks like root.
    root = str(store_root(given.one("root"), around.environ))
    if choose_isolation("namespaces").tier == "privileged":
        sandbox.unshare(sandbox.CLONE_NEWNS)
        sandbox.propagation(sandbox.MS_SLAVE)
    words = list(given.words) or [around.environ.get("SHELL") or "/bin/sh"]
    around.stdout.flush()
    try:
        os.execvpe(words[0], words, {**around.environ, ROOT: root})  # noqa: S606  no shell: words as they are
    except OSError as error:
        raise BuildError(f"can not run {words[0]}: {error.strerror}") from error

"""Images made ready to be looked at by the rules on layers: whose layer is whose, and what it holds.

Reads listings and traits, no blobs, but for layers that nobody has looked into yet: those once.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from builder.assembly import layer_history
from builder.bases import BaseImage
from builder.errors import BuildError
from builder.handlers.owners import known_ids, lookup
from builder.lint.layers import ImageLayer, ImageSubject, Maker, lives
from builder.model import Budget, FileStep, ImageResult, Origin, PathSource, RunStep
from cache.entries import Kind
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.layers import listed_traits, listing
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from builder.assembly import Made
    from builder.context import Contexts
    from builder.engine import StageWork
    from cache.entries import Entry
    from cache.oci import History, ImageConfig, Layer
    from cache.store import Image, Store
    from cache.traits import Traits
    from grammar.source import Source


def subject_of(
    image: Image | ImageResult | BaseImage,
    store: Store,
    *,
    work: Sequence[Made] | None = None,
    base: str = "",
    budget: Budget = Budget(),  # noqa: B008 - frozen
    unused: tuple[tuple[str, int], ...] = (),
) -> ImageSubject:
    """An image of the store as rules see it.

    work: how the build that just made it did so, from the base on (`Engine.trail`), which gives places in the build
    file. unused: see `unused_context`. base: the name of an image of the store that it stands on. Without either, the
    base is the largest image of the store that it begins with; else its first layer, where its history says that it is
    a root file system.

    A layer that is not there, or not what it should be, is looked at as an empty one that says so. Raises StoreError
    when `base` is not what the image begins with.
    """
    config, layers = _parts(image, store)
    if work is None:
        below, before = _base_of(image, layers, config, store, base)
        makers, every = _from_history(config, len(layers))
        every = every[before:]
        idle = [maker for maker in every if maker.keyword == "RUN" and not any(maker is other for other in makers)]
        if any(line.comment.startswith("merge ") for line in config.history):
            idle = []  # squashed: no line but the last has a layer
    else:
        every = [_maker(step) for step in work]
        pairs = list(zip(every, work, strict=True))
        with_layers = [maker for maker, step in pairs if step.layer is not None]
        below = len(layers) - len(with_layers)
        makers = [*_from_history(config, len(layers))[0][:below], *with_layers]
        idle = [maker for maker, step in pairs if step.layer is None and step.lowered.step is not None]
    found: list[ImageLayer] = []
    sound: list[Layer] = []
    for number, (layer, maker) in enumerate(zip(layers, makers, strict=True)):
        damage = ""
        entries: tuple[Entry, ...] = ()
        traits: Mapping[int, Traits] = {}
        try:
            entries, traits = listing(store, layer), listed_traits(store, layer)
            sound.append(layer)
        except (CorruptError, NotFoundError) as error:
            damage = error.message
        found.append(ImageLayer(number, number >= below, maker, entries, traits, layer.descriptor.size, damage))
    files = Tree(store, tuple(sound))
    user, problem = None, ""
    try:
        user = lookup(config.config.user, files)
    except BuildError as error:
        problem = error.message
    return ImageSubject(
        config,
        tuple(found),
        files,
        lives(found),
        tuple(idle),
        tuple(every),
        user,
        problem,
        known_ids(files),
        unused,
        budget,
    )


def _parts(image: Image | ImageResult | BaseImage, store: Store) -> tuple[ImageConfig, tuple[Layer, ...]]:
    if isinstance(image, ImageResult | BaseImage):
        return image.config, image.layers
    return store.config(image), store.layers(image)


def _maker(step: Made) -> Maker:
    lowered = step.lowered
    return Maker(
        lowered.title, lowered.created_by, lowered.instruction, lowered.instruction.span, lowered.source, lowered.step
    )


def unused_context(stages: Iterable[StageWork], contexts: Contexts, source: Source) -> tuple[tuple[str, int], ...]:
    """What stands at the top of the main context, is not ignored, and goes into no step: names and bytes.

    source: the build file; what it names anywhere counts as used, be it by a stage that is not built. Nothing for a
    context of more than 50,000 files, where looking would take longer than it is worth.
    """
    text, own = source.text, posixpath.basename(source.name)
    from fnmatch import fnmatchcase

    heads: list[str] = []
    for stage in stages:
        for lowered in stage.lowered:
            match lowered.step:
                case FileStep(origin=Origin(context=""), sources=sources):
                    heads += [source.pattern for source in sources if isinstance(source, PathSource)]
                case RunStep(mounts=mounts):
                    origins = [(getattr(mount, "origin", None), getattr(mount, "source", "")) for mount in mounts]
                    heads += [source for origin, source in origins if origin is not None and origin.context == ""]
    first = {posixpath.normpath("/" + head).split("/")[1] for head in heads}
    if "" in first or "**" in first:
        return ()
    view = contexts.files()
    found: list[tuple[str, int]] = []
    left = _WALKED
    for entry in view.children(b""):
        name = entry.path.decode("utf-8", "backslashreplace")
        if name in text or name == own or name.endswith(".dockerignore"):
            continue
        if any(fnmatchcase(name, each) for each in first):
            continue
        size, waiting = entry.size, [entry.path] if entry.kind is Kind.DIRECTORY else []
        while waiting:
            for inner in view.children(waiting.pop()):
                left -= 1
                size += inner.size
                waiting += [inner.path] if inner.kind is Kind.DIRECTORY else []
            if left < 0:
                return ()
        found.append((name, size))
    return tuple(found)


_WALKED = 50_000

# ---------------------------------------------------------------- without a build file


def _from_history(config: ImageConfig, layers: int) -> tuple[list[Maker], list[Maker]]:
    """What made each layer; and every line, those without a layer too."""
    history = layer_history(config.history, layers)
    every = [Maker(_short(line.created_by), line.created_by) for line in history]
    return [maker for maker, line in zip(every, history, strict=True) if not line.empty_layer], every


def _short(created_by: str) -> str:
    """A line of history as its instruction would be titled."""
    text = " ".join(created_by.removesuffix(" # buildkit").replace("/bin/sh -c #(nop)", "").split())
    shell = "/bin/sh -c "
    head, found, command = text.partition(shell)
    if found and (head in {"", "RUN "} or head.removeprefix("RUN ").startswith("|")):
        return f"RUN {command}"
    return text


def _base_of(
    image: Image | ImageResult | BaseImage, layers: tuple[Layer, ...], config: ImageConfig, store: Store, base: str
) -> tuple[int, int]:
    """How many of the layers, and how many lines of history, are the base's."""
    diff_ids = tuple(layer.diff_id for layer in layers)
    if isinstance(image, ImageResult):
        return image.inherited, _lines_up_to(config, len(layers), image.inherited)
    if base:
        below = store.config(store.image(base))
        if diff_ids[: len(below.diff_ids)] != below.diff_ids:
            raise StoreError(f"the image does not stand on {base}", "its layers do not begin with those of that image")
        return len(below.diff_ids), _lines_of(below)
    longest: ImageConfig | None = None
    for other in store.images():
        if (not isinstance(image, BaseImage) and other.id == image.id) or not other.names:
            continue
        below = store.config(other)
        count = len(below.diff_ids)
        if (len(longest.diff_ids) if longest else 0) < count < len(diff_ids) and diff_ids[:count] == below.diff_ids:
            longest = below
    if longest is not None:
        return len(longest.diff_ids), _lines_of(longest)
    history = layer_history(config.history, len(layers))
    first = next((number for number, line in enumerate(history) if not line.empty_layer), 0)
    if len(layers) > 1 and _is_root_file_system(history[first]):
        return 1, first + 1
    return 0, 0


def _lines_up_to(config: ImageConfig, layers: int, count: int) -> int:
    """How many lines of history the first `count` layers are the last of."""
    seen = 0
    for number, line in enumerate(layer_history(config.history, layers)):
        if seen == count:
            return number
        seen += not line.empty_layer
    return 0


def _lines_of(config: ImageConfig) -> int:
    return len(layer_history(config.history, len(config.diff_ids)))


def _is_root_file_system(line: History) -> bool:
    """Whether a first layer is an unpacked distribution: how docker's official images begin."""
    text = line.created_by.replace("/bin/sh -c #(nop)", "").strip()
    return text.startswith(("ADD file:", "ADD rootfs", "ADD alpine", "ADD layer.tar", "# debian.sh", "import"))

"""Images made ready to be looked at by the rules on layers: whose layer is whose, and what it holds.

Reads listings and traits, no blobs, but for layers that nobody has looked into yet: those once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.assembly import layer_history
from builder.lint.layers import ImageLayer, ImageSubject, Maker, lives
from builder.model import Budget, ImageResult
from cache.errors import StoreError
from cache.layers import listed_traits, listing
from cache.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builder.assembly import Made
    from cache.oci import History, ImageConfig, Layer
    from cache.store import Image, Store


def subject_of(
    image: Image | ImageResult,
    store: Store,
    *,
    work: Sequence[Made] | None = None,
    base: str = "",
    budget: Budget = Budget(),  # noqa: B008 - frozen
) -> ImageSubject:
    """An image of the store as rules see it.

    work: how the build that just made it did so, from the base on (`Engine.trail`), which gives places in the build
    file. base: the name of an image of the store that it stands on. Without either, the base is the largest image of
    the store that it begins with; else its first layer, where its history says that it is a root file system.

    Raises NotFoundError and CorruptError for layers that are not there, or not what they should be; StoreError when
    `base` is not what the image begins with.
    """
    config, layers = _parts(image, store)
    if work is None:
        makers, idle, every = _from_history(config, len(layers))
        below = _base_of(image, layers, config, store, base)
    else:
        made = [_maker(step) for step in work]
        with_layers = [maker for maker, step in zip(made, work, strict=True) if step.layer is not None]
        below = len(layers) - len(with_layers)
        lines = _lines(config, len(layers))[:below]
        makers = [*(Maker(_short(line.created_by), line.created_by) for line in lines), *with_layers]
        idle = [
            maker
            for maker, step in zip(made, work, strict=True)
            if step.layer is None and step.lowered.step is not None
        ]
        every = made
    found = tuple(
        ImageLayer(
            number,
            number >= below,
            maker,
            listing(store, layer),
            listed_traits(store, layer),
            layer.descriptor.size,
        )
        for number, (layer, maker) in enumerate(zip(layers, makers, strict=True))
    )
    return ImageSubject(config, found, Tree(store, layers), lives(found), tuple(idle), tuple(every), budget)


def _parts(image: Image | ImageResult, store: Store) -> tuple[ImageConfig, tuple[Layer, ...]]:
    if isinstance(image, ImageResult):
        return image.config, image.layers
    return store.config(image), store.layers(image)


def _maker(step: Made) -> Maker:
    lowered = step.lowered
    return Maker(
        lowered.title, lowered.created_by, lowered.instruction, lowered.instruction.span, lowered.source, lowered.step
    )


# ---------------------------------------------------------------- without a build file


def _lines(config: ImageConfig, layers: int) -> list[History]:
    """The lines of history that have a layer, one for each."""
    return [line for line in layer_history(config.history, layers) if not line.empty_layer]


def _from_history(config: ImageConfig, layers: int) -> tuple[list[Maker], list[Maker], list[Maker]]:
    """What made each layer; RUNs that made none; all."""
    history = layer_history(config.history, layers)
    every = [Maker(_short(line.created_by), line.created_by) for line in history]
    pairs = list(zip(every, history, strict=True))
    idle = [maker for maker, line in pairs if line.empty_layer and maker.keyword == "RUN"]
    return [maker for maker, line in pairs if not line.empty_layer], idle, every


def _short(created_by: str) -> str:
    """A line of history as its instruction would be titled."""
    text = " ".join(created_by.removesuffix(" # buildkit").replace("/bin/sh -c #(nop)", "").split())
    shell = "/bin/sh -c "
    head, found, command = text.partition(shell)
    if found and (head in {"", "RUN "} or head.removeprefix("RUN ").startswith("|")):
        return f"RUN {command}"
    return text


def _base_of(
    image: Image | ImageResult, layers: tuple[Layer, ...], config: ImageConfig, store: Store, base: str
) -> int:
    """How many of the layers are the base's."""
    diff_ids = tuple(layer.diff_id for layer in layers)
    if base:
        found = tuple(layer.diff_id for layer in store.layers(store.image(base)))
        if diff_ids[: len(found)] != found:
            raise StoreError(f"the image does not stand on {base}", "its layers do not begin with those of that image")
        return len(found)
    longest = 0
    for other in store.images():
        if other.id == image.id or not other.names:
            continue
        found = tuple(layer.diff_id for layer in store.layers(other))
        if longest < len(found) < len(diff_ids) and diff_ids[: len(found)] == found:
            longest = len(found)
    if longest:
        return longest
    lines = _lines(config, len(layers))
    return 1 if len(lines) > 1 and _is_root_file_system(lines[0]) else 0


def _is_root_file_system(line: History) -> bool:
    """Whether a first layer is an unpacked distribution: how docker's official images begin."""
    text = line.created_by.replace("/bin/sh -c #(nop)", "").strip()
    return text.startswith(("ADD file:", "ADD rootfs", "ADD alpine", "ADD layer.tar", "# debian.sh", "import"))

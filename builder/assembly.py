"""From lowered instructions and their layers to an image config. Pure.

History follows docker's form: one line per instruction, `empty_layer` where the instruction added none, so that the
lines that are not empty count as many as the diff ids (image-spec config.md, `history`).
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from cache.oci import Digest, History, ImageConfig, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from builder.model import ImageResult, Lowered, StageState

COMMENT = "buildkit.dockerfile.v0"
"""The comment by which docker's tools know a line that a Dockerfile made."""


class Made(Struct, frozen=True):
    """One lowered instruction carried out.

    layer: None when it added nothing. created: in seconds since the epoch; None for an instruction that only changes
    metadata, which has no time of its own.
    """

    lowered: Lowered
    layer: Layer | None = None
    created: float | None = None


@lru_cache(maxsize=1 << 10)
def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as the spec writes times, in UTC, to the microsecond."""
    whole_seconds, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    whole = datetime.datetime.fromtimestamp(whole_seconds, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{micro:06}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


def layer_history(history: Sequence[History], layers: int) -> tuple[History, ...]:
    """A base's history, made to count as many layers as there are.

    Bases in the wild have none, or too few lines; docker refuses images whose counts differ.
    """
    named = sum(not line.empty_layer for line in history)
    if named > layers:
        return tuple(History(created_by="unknown") for _ in range(layers))
    return (*history, *(History(created_by="unknown") for _ in range(layers - named)))


def assemble(
    base: ImageConfig | None,
    state: StageState,
    made: Iterable[Made],
    *,
    labels: Sequence[tuple[str, str]] = (),
    created: float | None,
    fixed: bool = False,
) -> ImageConfig:
    """The config of an image that stands on `base` and went through `made`, ending in `state`.

    labels: from the command line, winning over the file's. created: the image's time, or None to leave all times out
    (a fingerprint). fixed: every new line gets `created`, whatever its own time (SOURCE_DATE_EPOCH).
    """
    config = state.config
    if labels:
        config = replace(config, labels=tuple({**dict(config.labels), **dict(labels)}.items()))
    diff_ids = base.diff_ids if base else ()
    history = list(layer_history(base.history, len(diff_ids)) if base else ())
    new: list[Digest] = []
    last: float | None = None
    for step in made:
        last = step.created if step.created is not None else last
        if step.layer is not None:
            new.append(step.layer.diff_id)
        if step.lowered.created_by:
            time = "" if created is None else rfc3339(created if fixed or last is None else last)
            history.append(
                History(
                    created_by=step.lowered.created_by, created=time, comment=COMMENT, empty_layer=step.layer is None
                )
            )
    return ImageConfig(
        platform=state.platform,
        config=config,
        diff_ids=(*diff_ids, *new),
        history=tuple(history),
        created="" if created is None else rfc3339(created),
        author=state.author,
        os_version=base.os_version if base else "",
        os_features=base.os_features if base else (),
    )


def squashed(image: ImageResult, layers: Sequence[Layer]) -> ImageConfig:
    """The config of `image` with all that is above its base made one layer, or none: `layers` are those it has then.

    History as docker's --squash writes it: the build's own lines added nothing, a line at the end did.
    """
    history: list[History] = []
    seen = 0
    for line in image.config.history:
        seen += not line.empty_layer
        history.append(replace(line, empty_layer=True) if seen > image.inherited else line)
    if len(layers) > image.inherited:
        below = layers[image.inherited - 1].diff_id if image.inherited else "scratch"
        history.append(History(created=image.config.created, comment=f"merge {image.id} to {below}"))
    return replace(image.config, diff_ids=tuple(layer.diff_id for layer in layers), history=tuple(history))

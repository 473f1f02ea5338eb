"""--cache-from and --cache-to: from what was asked for to the `Remotes` that a build looks into and puts into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builder.events import Warned
from builder.model import Finding
from cache.remote import Remotes, Steps, Target
from cache.shelves import Directory

if TYPE_CHECKING:
    from builder.events import Reporter
    from builder.model import BuildRequest, CachePlace
    from cache.shelves import Shelf
    from cache.store import Store

RULE = "Cache"
"""What warnings of caches are called."""


def open_caches(request: BuildRequest, store: Store, report: Reporter) -> Remotes:
    """The caches that a request names, to be entered. A place that is named twice is one shelf.

    A folder that is to be read and is not there is warned of, unless this very build is to make it.
    """

    def warn(sentence: str) -> None:
        report(Warned(Finding(RULE, sentence)))

    shelves: dict[tuple[str, str], Shelf] = {}

    def shelf(place: CachePlace) -> Shelf:
        return shelves.setdefault((place.type, place.place), Directory(Path(place.place)))

    targets = [
        Target(shelf(place), place.mode, place.required, place.mounts_max if place.mounts else None)
        for place in request.cache_to
    ]
    made = {place.place for place in request.cache_to}
    sources = []
    for place in request.cache_from:
        if place.type == "local" and place.place not in made and not Path(place.place).is_dir():
            warn(f"--cache-from: there is no folder {place.place}; nothing is taken from it")
        else:
            sources.append(Steps(shelf(place), mounts=place.mounts))
    return Remotes(store, sources, targets, warn)

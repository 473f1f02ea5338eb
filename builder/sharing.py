"""--cache-from and --cache-to: from what was asked for to the `Remotes` that a build looks into and puts into."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builder import transfers
from builder.errors import UnsupportedError
from builder.events import TransferFinished, TransferStarted, Warned
from builder.model import Finding
from cache.reference import Reference
from cache.remote import Inline, Remotes, Steps, Target
from cache.shelves import Directory, Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from builder.events import Reporter
    from builder.model import BuildRequest, CachePlace
    from builder.registries import Registries
    from builder.transfers import Glanced
    from cache.oci import Platform
    from cache.remote import Source
    from cache.shelves import Shelf
    from cache.store import Store

RULE = "Cache"
"""What warnings of caches are called."""


def open_caches(
    request: BuildRequest,
    store: Store,
    report: Reporter,
    registries: Callable[[], Registries] | None,
    stopped: Callable[[], bool],
) -> Remotes:
    """The caches that a request names, to be entered. A place that is named twice is one shelf.

    A folder that is to be read and is not there is warned of, unless this very build is to make it. BuildError for a
    registry where there are none to be had.
    """

    def warn(sentence: str) -> None:
        report(Warned(Finding(RULE, sentence)))

    shelves: dict[str, Shelf] = {}

    def shelf(place: CachePlace) -> Shelf:
        if place.place not in shelves:
            if place.type == "local":
                shelves[place.place] = Directory(Path(place.place))
            else:
                shelves[place.place] = _repository(place, store, registries)
        return shelves[place.place]

    targets = [
        Target(shelf(place), place.mode, place.required, place.mounts_max if place.mounts else None)
        for place in request.cache_to
        if place.type != "inline"
    ]
    made = {place.place for place in request.cache_to}
    sources: list[Source] = []
    for place in request.cache_from:
        if place.type == "local" and place.place not in made and not Path(place.place).is_dir():
            warn(f"--cache-from: there is no folder {place.place}; nothing is taken from it")
            continue
        found = shelf(place)
        reference = Reference.parse(place.place) if place.type == "registry" else None
        if reference is None or not reference.digest:
            sources.append(Steps(found, mounts=place.mounts))
        if reference is not None and isinstance(found, Repository):
            sources.append(Inline(found, reference.digest or reference.tag))

    @contextmanager
    def moving(what: str, size: int) -> Iterator[None]:
        report(TransferStarted(what))
        started = time.monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            report(TransferFinished(what, time.monotonic() - started, size, 1, failed))

    return Remotes(store, sources, targets, warn, moving, stopped)


def trim(request: BuildRequest) -> None:
    """Bring the folders that have a limit below it."""
    for place in request.cache_to:
        if place.type == "local" and place.keep:
            Directory(Path(place.place)).trim(place.keep)


def glancing(
    registries: Callable[[], Registries], store: Store, remotes: Remotes
) -> Callable[[Reference, Platform], Glanced]:
    """What gets bases of registries but for their layers, each once; those are had from `remotes` when they are wanted.

    A base whose layers have all come to the store is in it by its name at the end, as if it had been pulled.
    """
    known: dict[tuple[Reference, Platform], Glanced] = {}

    def glance(reference: Reference, platform: Platform) -> Glanced:
        key = (reference, platform)
        if key not in known:
            registry = registries().get(reference.registry)
            found = known[key] = transfers.glance(transfers.Place(reference, registry), platform, store=store)
            shelf = Repository(registry, reference.repository, reference.tag or "cache", store)
            remotes.stand_on(shelf, found.layers, lambda: transfers.adopt(found, store))
        return known[key]

    return glance


def _repository(place: CachePlace, store: Store, registries: Callable[[], Registries] | None) -> Repository:
    if registries is None:
        raise UnsupportedError("this build is not to speak to registries")
    reference = Reference.parse(place.place)
    registry = registries().get(reference.registry, insecure=place.insecure)
    return Repository(registry, reference.repository, reference.tag or "cache", store)

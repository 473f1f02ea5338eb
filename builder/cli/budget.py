"""The cache's budget on the command line: read before a build, kept after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from cache.store import Store

_AUTO = -1


def budget_of(given: Given, environ: Mapping[str, str]) -> int | None:
    """How many bytes the cache may take: None for any number, a negative one for what the disk's size makes of it."""
    text = given.one("cache-budget") or environ.get("PYBUILD_CACHE_BUDGET") or "auto"
    if text in {"auto", "none"}:
        return _AUTO if text == "auto" else None
    from builder.cli.build import size

    return size(text, "cache-budget")


def keep_budget(store: Store, limit: int | None, written: int, around: Surroundings | None) -> None:
    """Cut the cache down to its budget, the last thing of a build. around: who is told of it, if anyone is."""
    from cache import budget
    from cache.errors import StoreError

    most = budget.default(store) if limit == _AUTO else budget.Budget(limit)
    try:
        with store:
            done = budget.keep(store, most, written)
    except StoreError:
        return  # the build is done; the next one tries again
    if done is not None and around is not None:
        from builder.terminal import human_size

        count = len(done.items)
        print(
            f"the cache was over its budget: {human_size(sum(item.size for item in done.items))} of it removed, "
            f"{count} thing{'s' * (count != 1)} not used for longest",
            file=around.stderr,
        )

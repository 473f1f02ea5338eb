"""The cache's budget, kept after a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from builder.cli.surroundings import Surroundings
    from cache.store import Store

AUTO = -1
"""A number of bytes that stands for what the disk's size makes of it."""


def keep_budget(store: Store, limit: int | None, written: int, around: Surroundings | None) -> None:
    """Cut the cache down to its budget, the last thing of a build.

    limit: in bytes, None for no limit. around: who is told of it, if anyone is.
    """
    from cache import budget
    from cache.errors import StoreError

    most = budget.default(store) if limit == AUTO else budget.Budget(limit)
    try:
        with store:
            done = budget.keep(store, most, written)
    except StoreError:
        return  # the build is done; the next one tries again
    if done is not None and around is not None:
        from builder.quantities import human_size

        count = len(done.items)
        print(
            f"the cache was over its budget: {human_size(sum(item.size for item in done.items))} of it removed, "
            f"{count} thing{'s' * (count != 1)} not used for longest",
            file=around.stderr,
        )

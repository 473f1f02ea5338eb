"""What commands open: the store, and the place where processes may run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.cli.failure import StoreUnusableError
from builder.cli.flags import UsageError
from builder.cli.surroundings import LIMITS, store_root
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from builder.cli.flags import Given
    from builder.isolation import Isolation
    from cache.store import Store


def open_store(given: Given, environ: Mapping[str, str]) -> Store:
    """The store that flags and environment say. StoreUnusableError when it can not be used."""
    from cache.store import Store

    if environ.get(LIMITS):
        from cache.limits import limit

        try:
            limit(environ[LIMITS])
        except StoreError as error:
            raise UsageError(f"{LIMITS}: {error.message}", hint=error.hint) from None
    try:
        return Store.open(store_root(given.one("root"), environ))
    except StoreError as error:
        raise StoreUnusableError(error) from error


def choose_isolation(forced: str = "auto", required: str = "") -> Isolation:
    """The tier of this process, which may enter a user namespace for it: before any thread, at most once.

    required: the least that may isolate a RUN, or empty.

    Commands that remove snapshots need it too: in a rootless store they belong to subordinate ids.
    """
    from builder.isolation import choose

    found = choose(forced)
    if required:
        from builder.isolation import require

        require(found, required)
    return found

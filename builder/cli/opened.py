"""What commands open: the store, and the place where processes may run."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from builder.cli.failure import StoreUnusableError
from builder.cli.flags import Flag, UsageError
from builder.cli.surroundings import LIMITS, store_root
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from builder.cli.flags import Given
    from builder.isolation import Isolation
    from builder.registries import Registries
    from cache.store import Store


INSECURE = (
    Flag("insecure", "do not check the registry's certificate; speak plain HTTP where it has none"),
    Flag("tls-verify", "=false is the same as --insecure"),
)
"""The flags of commands that speak to registries."""


def open_registries(
    given: Given, environ: Mapping[str, str], sleep: Callable[[float], object] = time.sleep
) -> Registries:
    """The registries, as the user's settings and logins have them. BuildError for settings that are wrong.

    sleep: see `cache.registry.Registry`.
    """
    from builder.cli.surroundings import certificate_folders, config_file, login_files
    from builder.logins import Logins
    from builder.registries import Registries, Settings

    return Registries(
        Logins(login_files(environ)),
        Settings.load(config_file(environ)),
        insecure=given.on("insecure") or (given.has("tls-verify") and not given.on("tls-verify")),
        certificates=certificate_folders(environ),
        sleep=sleep,
    )


def pull_policy(environ: Mapping[str, str]) -> str:
    """When builds ask registries for bases, as the user's settings have it."""
    from builder.cli.surroundings import config_file

    path = config_file(environ)
    if path is None or not os.path.isfile(path):
        return "missing"
    from builder.registries import Settings

    return Settings.load(path).pull or "missing"


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

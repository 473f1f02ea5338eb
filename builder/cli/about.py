"""`pybuild info` and `pybuild version`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag
from builder.cli.opened import choose_isolation, open_store

if TYPE_CHECKING:
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings

VERSION = Command(name="version", usage="", summary="Show the version.")
INFO = Command(
    name="info",
    usage="[OPTIONS]",
    summary="Show the store, the tier in which RUN works here, and which programs this machine has.",
    flags=(Flag("format", "text or json (default: text)", value="FORMAT"),),
)

_PROGRAMS = {
    "newuidmap": "RUN as an ordinary user, with every id",
    "proot": "RUN where neither namespaces nor chroot are allowed",
    "crun": "RUN with --isolation=crun",
    "runc": "RUN with --isolation=runc",
    "git": "contexts and ADD from git repositories",
}


def version(_given: Given, around: Surroundings) -> int:
    """Print name and version."""
    around.say(f"pybuild {version_text()}, Python {sys.version.split()[0]}")
    return 0


def version_text() -> str:
    """The version of this installation."""
    from importlib import metadata

    try:
        return metadata.version("pybuild")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def info(given: Given, around: Surroundings) -> int:
    """Print what was found out."""
    import shutil

    from builder.cli.flags import UsageError
    from builder.errors import BuildError
    from builder.quantities import human_size
    from cache.oci import host_platform

    form = given.one("format", "text")
    if form not in {"text", "json"}:
        raise UsageError(f"--format {form!r} is neither text nor json")
    # Debian keeps runc where ordinary users do not look.
    path = f"{around.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    with open_store(given, around.environ) as store:
        images = store.images(all=True)
        facts: dict[str, object] = {
            "version": version_text(),
            "python": sys.version.split()[0],
            "platform": str(host_platform()),
            "kernel": os.uname().release,
            "processors": os.cpu_count(),
            "store": str(store.root),
            "images": sum(not image.intermediate for image in images),
            "intermediate": sum(image.intermediate for image in images),
            "blobs": sum(entry.stat().st_size for entry in os.scandir(store.root / "blobs" / "sha256")),
        }
    for program, use in _PROGRAMS.items():
        facts[program] = shutil.which(program, path=path) or f"not found (for {use})"
    try:
        isolation = choose_isolation()
        facts["tier"], facts["reason"] = isolation.tier, isolation.reason
        facts["RUN"] = f"by {isolation.mechanism}" if isolation.mechanism else "can not work here"
        facts["network"] = f"by {isolation.network}" if isolation.network else f"shared: {isolation.shared}"
        if isolation.hint:
            facts["for more"] = isolation.hint
    except BuildError as error:
        facts["tier"], facts["reason"] = "none", error.message
    if form == "json":
        import json

        around.say(json.dumps(facts, indent=2))
        return 0
    facts["blobs"] = human_size(int(str(facts["blobs"])))
    for name, value in facts.items():
        around.say(f"{name + ':':<15}{value}")
    return 0

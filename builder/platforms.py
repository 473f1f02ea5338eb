"""Platform names as users write them: `linux/aarch64`, `arm64`, `linux/arm/v7`.

The rules are those of https://github.com/containerd/platforms, with the result always in normal form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.errors import BuildError
from cache.oci import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache.oci import Descriptor

_SYSTEMS = {
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "windows", "zos",
}  # fmt: skip
_MACHINES = {
    "386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "ppc64", "ppc64le", "loong64", "mips", "mipsle",
    "mips64", "mips64le", "mips64p32", "mips64p32le", "ppc", "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64",
    "wasm",
}  # fmt: skip
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_MOST_PARTS = 3


def parse_platform(text: str, host: Platform) -> Platform:
    """`text` as a platform in normal form; what it leaves out comes from `host`. ValueError when it is not one."""
    parts = text.split("/")
    if len(parts) > _MOST_PARTS or not all(_PART.fullmatch(part) for part in parts):
        msg = f"{text!r} is not a platform: it should look like linux/amd64 or linux/arm/v7"
        raise ValueError(msg)
    if len(parts) > 1:
        return normal_platform(Platform(parts[0], parts[1], parts[2] if len(parts) == _MOST_PARTS else ""))
    if parts[0].lower() in {*_SYSTEMS, "macos"}:
        return normal_platform(Platform(parts[0], host.architecture, host.variant))
    alone = normal_platform(Platform(host.os, parts[0]))
    if alone.architecture not in _MACHINES:
        msg = f"{text!r} is not a platform: neither an operating system nor an architecture is called so"
        raise ValueError(msg)
    return alone


def normal_platform(platform: Platform) -> Platform:
    """The one spelling of a platform: `aarch64` is `arm64`, `arm` is `arm/v7`, ... Idempotent."""
    system = platform.os.lower()
    machine, variant = platform.architecture.lower(), platform.variant.lower()
    match machine:
        case "i386":
            machine, variant = "386", ""
        case "x86_64" | "x86-64" | "amd64":
            machine, variant = "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            machine = "arm64"
            variant = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}.get(variant, variant)
        case "armhf":
            machine, variant = "arm", "v7"
        case "armel":
            machine, variant = "arm", "v6"
        case "arm":
            variant = "v7" if not variant else f"v{variant}" if variant in {"5", "6", "7", "8"} else variant
        case _:
            pass
    return Platform("darwin" if system == "macos" else system, machine, variant)


def runs(platform: Platform) -> tuple[Platform, ...]:
    """What a machine of `platform` runs, the best first: an arm/v7 also arm/v6, an arm64 also arm, an amd64/v3 also v1.

    https://github.com/containerd/platforms/blob/main/compare.go.
    """
    wanted = normal_platform(platform)
    arms = [Platform(wanted.os, "arm", f"v{number}") for number in (8, 7, 6, 5)]
    match wanted.architecture:
        case "arm64":
            newer = [wanted] if wanted.variant else []
            return (*newer, Platform(wanted.os, "arm64"), *arms)
        case "arm" if wanted in arms:
            return tuple(arms[arms.index(wanted) :])
        case "amd64" if re.fullmatch(r"v[2-9]", wanted.variant):
            older = [Platform(wanted.os, "amd64", f"v{number}") for number in range(int(wanted.variant[1:]), 1, -1)]
            return (*older, Platform(wanted.os, "amd64"))
        case _:
            return (wanted,)


def choose(title: str, manifests: Sequence[Descriptor], platform: Platform) -> Descriptor:
    """The manifest of an index that runs on `platform`, the best one. BuildError with what there is instead."""
    # BuildKit's attestations stand in the index beside the images, for a platform that no machine has.
    images = [found for found in manifests if found.platform is None or found.platform.os != "unknown"]
    if not images:
        raise BuildError(f"{title} holds no image")
    having = [(found, normal_platform(found.platform)) for found in images if found.platform is not None]
    for wanted in runs(platform):
        for found, has in having:
            if has == wanted:
                return found
    unsaid = [found for found in images if found.platform is None]
    if unsaid:
        return unsaid[0]
    known = ", ".join(dict.fromkeys(str(has) for _, has in having))
    raise BuildError(f"{title} has no image for {platform}", hint=f"it has {known}; choose with --platform")

"""Platform names as users write them: `linux/aarch64`, `arm64`, `linux/arm/v7`.

The rules are those of https://github.com/containerd/platforms, with the result always in normal form.
"""

from __future__ import annotations

import re

from cache.oci import Platform

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

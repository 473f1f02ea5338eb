"""What --cache-from and --cache-to say: docker's comma-separated `type=...`, or a bare repository.

https://docs.docker.com/build/cache/backends/.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from builder.cli.flags import FALSE, TRUE, UsageError, fields
from builder.errors import UnsupportedError
from builder.model import CachePlace
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

_SERVICES = ("gha", "s3", "azblob")
_KNOWN = {
    ("cache-from", "local"): ("src", "mounts"),
    ("cache-to", "local"): ("dest", "mode", "mounts", "mounts-max", "ignore-error", "oci-mediatypes", "image-manifest"),
}
_AS_IT_IS = "a cache takes layers as the build makes them"
_REFUSED = {
    "compression": _AS_IT_IS,
    "compression-level": _AS_IT_IS,
    "force-compression": _AS_IT_IS,
    "tag": "a folder holds one cache: take another folder",
    "digest": "a folder holds one cache, whose steps are found by their content",
    "reset": "remove the folder",
}
"""Attributes of docker's that can not be honoured, and why."""


def cache_place(text: str, flag: str, size: Callable[[str, str], int]) -> CachePlace:
    """One value of `flag`. UsageError for what is not understood, UnsupportedError for what can not be had here.

    size: reads a number of bytes; raises UsageError, naming the flag that it is given.
    """
    found: dict[str, str] = {"type": "registry", "ref": text}
    if "=" in text:
        found = {}
        for item in fields(text, flag):
            name, sign, value = item.partition("=")
            if not sign:
                raise UsageError(f"--{flag} {text!r}: {item!r} has no value", hint=_example(flag))
            found[name.strip().lower()] = value
    kind = found.pop("type", "")
    if kind in _SERVICES or kind in {"inline", "registry"}:
        raise UnsupportedError(f"--{flag} type={kind} is not supported", hint="type=local keeps the cache in a folder")
    if (flag, kind) not in _KNOWN:
        raise UsageError(f"--{flag} {text!r}: there is no type {kind!r}", hint=_example(flag))
    for name in found:
        if name in _REFUSED:
            raise UnsupportedError(f"--{flag} type={kind}: {name} is not supported", hint=_REFUSED[name])
        if name not in _KNOWN[flag, kind]:
            known = _KNOWN[flag, kind]
            raise UsageError(
                f"--{flag} type={kind}: there is no attribute {name!r}",
                hint=did_you_mean(name, known) or f"it takes {', '.join(known)}",
            )
    for name in ("oci-mediatypes", "image-manifest"):
        if not _truth(found, name, flag, default=True):
            raise UnsupportedError(f"--{flag} type={kind}: {name}=false is not supported", hint="manifests are OCI's")
    place = found.get("src" if flag == "cache-from" else "dest", "")
    if not place:
        raise UsageError(f"--{flag} {text!r} does not say where", hint=_example(flag))
    return CachePlace(
        type="local",
        place=os.path.abspath(place),
        mode=_mode(found, flag),
        required=not _truth(found, "ignore-error", flag, default=True),
        mounts=_truth(found, "mounts", flag, default=True),
        mounts_max=size(found["mounts-max"], f"{flag}: mounts-max") if "mounts-max" in found else 2 << 30,
    )


def _mode(found: dict[str, str], flag: str) -> Literal["min", "max"]:
    match found.get("mode", "max"):
        case "max":
            return "max"
        case "min":
            return "min"
        case other:
            raise UsageError(f"--{flag}: mode={other} is neither min nor max")


def _truth(found: dict[str, str], name: str, flag: str, *, default: bool) -> bool:
    value = found.get(name, "true" if default else "false")
    if value not in TRUE | FALSE:
        raise UsageError(f"--{flag}: {name}={value} is neither true nor false")
    return value in TRUE


def _example(flag: str) -> str:
    return "type=local,src=DIR" if flag == "cache-from" else "type=local,dest=DIR"

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
_PUT = ("mode", "mounts", "mounts-max", "ignore-error", "oci-mediatypes", "image-manifest")
_KNOWN = {
    ("cache-from", "local"): ("src", "mounts"),
    ("cache-from", "registry"): ("ref", "mounts", "registry.insecure"),
    ("cache-to", "local"): ("dest", "keep", *_PUT),
    ("cache-to", "registry"): ("ref", "registry.insecure", *_PUT),
    ("cache-to", "inline"): (),
}
_AS_IT_IS = "a cache takes layers as the build makes them"
_ONE = "a folder holds one cache: take another folder"
_REFUSED = {
    "compression": _AS_IT_IS,
    "compression-level": _AS_IT_IS,
    "force-compression": _AS_IT_IS,
    "tag": _ONE,
    "digest": _ONE,
    "reset": "remove the folder, or give it a limit with keep=SIZE",
}
"""Attributes of docker's that can not be honoured, and why."""

_LONGEST_TAG = 50
"""Letters; what is added to it for each step makes 121 of the 128 that a tag may have."""


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
    if kind in _SERVICES:
        raise UnsupportedError(
            f"--{flag} type={kind} is not supported",
            hint="type=registry keeps the cache in a registry, type=local in a folder",
        )
    if kind == "inline" and flag == "cache-from":
        raise UsageError("--cache-from type=inline: say which image", hint="--cache-from type=registry,ref=IMAGE")
    if (flag, kind) not in _KNOWN:
        raise UsageError(f"--{flag} {text!r}: there is no type {kind!r}", hint=_example(flag))
    known = _KNOWN[flag, kind]
    for name in found:
        if name in _REFUSED:
            raise UnsupportedError(f"--{flag} type={kind}: {name} is not supported", hint=_REFUSED[name])
        if name not in known:
            hint = did_you_mean(name, known) or (f"it takes {', '.join(known)}" if known else "it takes none")
            raise UsageError(f"--{flag} type={kind}: there is no attribute {name!r}", hint=hint)
    for name in ("oci-mediatypes", "image-manifest"):
        if not _truth(found, name, flag, default=True):
            raise UnsupportedError(f"--{flag} type={kind}: {name}=false is not supported", hint="manifests are OCI's")
    if kind == "inline":
        return CachePlace("inline")
    place = found.get("ref" if kind == "registry" else "src" if flag == "cache-from" else "dest", "")
    if not place:
        raise UsageError(f"--{flag} {text!r} does not say where", hint=_example(flag))
    return CachePlace(
        type="registry" if kind == "registry" else "local",
        place=_reference(place, flag) if kind == "registry" else os.path.abspath(place),
        mode=_mode(found, flag),
        required=not _truth(found, "ignore-error", flag, default=True),
        mounts=_truth(found, "mounts", flag, default=True),
        mounts_max=size(found["mounts-max"], f"{flag}: mounts-max") if "mounts-max" in found else 2 << 30,
        keep=size(found["keep"], f"{flag}: keep") if "keep" in found else 0,
        insecure=_truth(found, "registry.insecure", flag, default=False),
    )


def _reference(text: str, flag: str) -> str:
    """A repository, with the tag that those of all steps begin with."""
    from cache.errors import StoreError
    from cache.reference import Reference

    try:
        found = Reference.parse(text)
    except StoreError as error:
        raise UsageError(f"--{flag}: {error.message}", hint=error.hint) from None
    if flag == "cache-to" and found.digest:
        raise UsageError(f"--{flag} {text!r} has a digest, under which nothing can be put", hint=found.name)
    if len(found.tag) > _LONGEST_TAG:
        raise UsageError(f"--{flag} {text!r}: the tag is longer than {_LONGEST_TAG} letters")
    return found.full


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
    folder = "src" if flag == "cache-from" else "dest"
    return f"type=registry,ref=HOST/REPOSITORY[:TAG] or type=local,{folder}=DIR"

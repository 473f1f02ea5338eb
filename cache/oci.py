"""The nouns of the OCI image spec, with Docker's additions that every tool reads.

https://github.com/opencontainers/image-spec (v1.1). All frozen. `to_json` leaves out what is empty, as Go's `omitempty`
does; `from_json` raises CorruptError on what is not of the spec's form, and keeps the unknown keys of how a container
starts (`RuntimeConfig.other`), so that nothing of them is lost with a base image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import lru_cache
from typing import Any, NewType

from msgspec import Struct, field
from msgspec.structs import replace

from cache.errors import CorruptError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits."""

JSONObject = dict[str, Any]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
REF_NAME = "org.opencontainers.image.ref.name"

MAX_LAYERS = 127
"""Docker refuses an image of more layers."""

MOST_MOUNTED = 500
"""overlayfs takes no more lower directories."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest(text: str) -> Digest:
    """`text` as a Digest; CorruptError when it is not one."""
    if not _DIGEST.fullmatch(text):
        msg = f"{text!r} is not a sha256 digest"
        raise CorruptError(msg)
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    """The sha256 digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def canonical(document: object) -> bytes:
    """JSON with sorted keys and no blanks: equal documents give equal bytes.

    Text that stands for bytes that are no UTF-8 (`surrogateescape`) has U+FFFD in their place, as in what Go writes:
    JSON could not hold them.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


class Platform(Struct, frozen=True):
    """os/architecture[/variant] in Go's words: https://go.dev/doc/install/source#environment."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


_MACHINES = {
    "x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "i686": ("386", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""), "riscv64": ("riscv64", ""),
}  # fmt: skip


def host_platform() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


class Descriptor(Struct, frozen=True):
    """A reference to a blob: https://github.com/opencontainers/image-spec/blob/main/descriptor.md."""

    media_type: str
    digest: Digest
    size: int
    annotations: tuple[tuple[str, str], ...] = ()
    platform: Platform | None = None
    urls: tuple[str, ...] = ()

    def to_json(self) -> JSONObject:
        """The descriptor as the spec writes it."""
        document: JSONObject = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform:
            document["platform"] = {
                k: v
                for k, v in (
                    ("os", self.platform.os),
                    ("architecture", self.platform.architecture),
                    ("variant", self.platform.variant),
                )
                if v
            }
        if self.urls:
            document["urls"] = list(self.urls)
        return document

    @staticmethod
    def from_json(document: object) -> Descriptor:
        """Read a descriptor; CorruptError when something that must be there is not."""
        table = _object(document, "descriptor")
        size = table.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            msg = "a descriptor without a size"
            raise CorruptError(msg)
        where = table.get("platform")
        return Descriptor(
            media_type=_text(table, "mediaType", "descriptor"),
            digest=digest(_text(table, "digest", "descriptor")),
            size=size,
            annotations=_strings(table, "annotations"),
            platform=None if where is None else _platform_from(_object(where, "platform")),
            urls=tuple(_list(table, "urls")),
        )


class Layer(Struct, frozen=True):
    """A layer as an image holds it: the digest of its tar, and the blob that carries it."""

    diff_id: Digest
    descriptor: Descriptor


# A build asks for the ids of each chain again at every step above it.
@lru_cache(maxsize=1 << 13)
def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid."""
    return diff_id if parent is None else digest_of(f"{parent} {diff_id}".encode())


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """The chain id at each depth, from the lowest layer up."""
    found: list[Digest] = []
    for diff_id in diff_ids:
        found.append(chain_id(found[-1] if found else None, diff_id))
    return tuple(found)


class Manifest(Struct, frozen=True):
    """https://github.com/opencontainers/image-spec/blob/main/manifest.md."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MANIFEST
    annotations: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> JSONObject:
        """The manifest as the spec writes it."""
        document: JSONObject = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        return document

    @staticmethod
    def from_json(document: object) -> Manifest:
        """Read an OCI or Docker schema 2 manifest; CorruptError when it is not one."""
        table = _object(document, "manifest")
        return Manifest(
            config=Descriptor.from_json(table.get("config")),
            layers=tuple(Descriptor.from_json(layer) for layer in _list(table, "layers")),
            media_type=str(table.get("mediaType") or MANIFEST),
            annotations=_strings(table, "annotations"),
        )


class Index(Struct, frozen=True):
    """https://github.com/opencontainers/image-spec/blob/main/image-index.md."""

    manifests: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> JSONObject:
        """The index as the spec writes it."""
        document: JSONObject = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        return document

    @staticmethod
    def from_json(document: object) -> Index:
        """Read an index or a Docker manifest list; CorruptError when it is not one."""
        table = _object(document, "index")
        return Index(
            manifests=tuple(Descriptor.from_json(item) for item in _list(table, "manifests")),
            annotations=_strings(table, "annotations"),
        )


class Healthcheck(Struct, frozen=True):
    """Docker's health check. `test` starts with NONE, CMD or CMD-SHELL; times are in nanoseconds, 0 is the default."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RuntimeConfig(Struct, frozen=True):
    """The `config` part of an image config: how a container of the image starts.

    env: `NAME=value` in order. entrypoint, cmd and shell: None where unset. other: keys that pybuild does not know, as
    the base had them (name, canonical JSON).
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    args_escaped: bool = False
    other: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> JSONObject:
        """The object as docker and the spec write it."""
        document: JSONObject = {name: json.loads(text) for name, text in self.other}
        named = {
            "User": self.user,
            "Env": list(self.env),
            "WorkingDir": self.working_dir,
            "Labels": dict(self.labels),
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Volumes": {path: {} for path in self.volumes},
            "StopSignal": self.stop_signal,
            "OnBuild": list(self.on_build),
        }
        document.update({key: value for key, value in named.items() if value})
        for key, argv in (("Entrypoint", self.entrypoint), ("Cmd", self.cmd), ("Shell", self.shell)):
            if argv is not None:
                document[key] = list(argv)
        if self.args_escaped:
            document["ArgsEscaped"] = True
        if self.healthcheck is not None:
            check = self.healthcheck
            document["Healthcheck"] = {
                key: value
                for key, value in (
                    ("Test", list(check.test)),
                    ("Interval", check.interval),
                    ("Timeout", check.timeout),
                    ("StartPeriod", check.start_period),
                    ("StartInterval", check.start_interval),
                    ("Retries", check.retries),
                )
                if value
            }
        return document

    @staticmethod
    def from_json(document: object) -> RuntimeConfig:
        """Read the object; absent and null keys are empty."""
        table = dict(_object({} if document is None else document, "config"))
        check = table.pop("Healthcheck", None)

        def argv(key: str) -> tuple[str, ...] | None:
            return None if table.get(key) is None else tuple(map(str, _list(table, key)))

        config = RuntimeConfig(
            user=str(table.get("User") or ""),
            env=tuple(map(str, _list(table, "Env"))),
            entrypoint=argv("Entrypoint"),
            cmd=argv("Cmd"),
            working_dir=str(table.get("WorkingDir") or ""),
            labels=_strings(table, "Labels"),
            exposed_ports=tuple(_mapping(table, "ExposedPorts")),
            volumes=tuple(_mapping(table, "Volumes")),
            stop_signal=str(table.get("StopSignal") or ""),
            healthcheck=_healthcheck(check),
            on_build=tuple(map(str, _list(table, "OnBuild"))),
            shell=argv("Shell"),
            args_escaped=bool(table.get("ArgsEscaped")),
        )
        other = {key: value for key, value in table.items() if key not in _RUNTIME_KEYS and value is not None}
        return replace(config, other=tuple((key, canonical(value).decode()) for key, value in sorted(other.items())))


_RUNTIME_KEYS = {
    "User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "ExposedPorts", "Volumes", "StopSignal", "OnBuild",
    "Shell", "ArgsEscaped",
}  # fmt: skip


class History(Struct, frozen=True):
    """One line of an image's history. `created` is RFC 3339 or empty."""

    created_by: str = ""
    created: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    def to_json(self) -> JSONObject:
        """The line as the spec writes it."""
        document: JSONObject = {
            key: value
            for key, value in (
                ("created", self.created),
                ("created_by", self.created_by),
                ("author", self.author),
                ("comment", self.comment),
            )
            if value
        }
        if self.empty_layer:
            document["empty_layer"] = True
        return document


class ImageConfig(Struct, frozen=True):
    """An image config: https://github.com/opencontainers/image-spec/blob/main/config.md."""

    platform: Platform = field(default_factory=Platform)
    config: RuntimeConfig = field(default_factory=RuntimeConfig)
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def to_json(self) -> JSONObject:
        """The config as the spec writes it."""
        document: JSONObject = {
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": self.config.to_json(),
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            "history": [line.to_json() for line in self.history],
        }
        optional = {
            "variant": self.platform.variant,
            "created": self.created,
            "author": self.author,
            "os.version": self.os_version,
            "os.features": list(self.os_features),
        }
        document.update({key: value for key, value in optional.items() if value})
        return document

    @staticmethod
    def from_json(document: object) -> ImageConfig:
        """Read a config. Absent history is allowed by the spec; an absent rootfs only when there are no layers."""
        table = _object(document, "image config")
        rootfs = _mapping(table, "rootfs")
        history = tuple(
            History(
                created_by=str(line.get("created_by") or ""),
                created=str(line.get("created") or ""),
                author=str(line.get("author") or ""),
                comment=str(line.get("comment") or ""),
                empty_layer=bool(line.get("empty_layer")),
            )
            for line in (_object(item, "history") for item in _list(table, "history"))
        )
        return ImageConfig(
            platform=_platform_from(table),
            config=RuntimeConfig.from_json(table.get("config")),
            diff_ids=tuple(digest(str(item)) for item in _list(rootfs, "diff_ids")),
            history=history,
            created=str(table.get("created") or ""),
            author=str(table.get("author") or ""),
            os_version=str(table.get("os.version") or ""),
            os_features=tuple(map(str, _list(table, "os.features"))),
        )


def parse_json(data: bytes, what: str) -> object:
    """`data` as JSON; CorruptError, naming `what`, when it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not JSON: {error}"
        raise CorruptError(msg) from None


def _object(value: object, what: str) -> JSONObject:
    if not isinstance(value, dict):
        msg = f"{what} is not a JSON object"
        raise CorruptError(msg)
    return value


def _mapping(table: JSONObject, key: str) -> JSONObject:
    value = table.get(key)
    return {} if value is None else _object(value, key)


def _list(table: JSONObject, key: str) -> list[Any]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        msg = f"{key} is not a JSON array"
        raise CorruptError(msg)
    return value


def _text(table: JSONObject, key: str, what: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        msg = f"a {what} without {key}"
        raise CorruptError(msg)
    return value


def _strings(table: JSONObject, key: str) -> tuple[tuple[str, str], ...]:
    value = _mapping(table, key)
    return tuple((str(name), str(text)) for name, text in value.items())


def _platform_from(table: JSONObject) -> Platform:
    return Platform(
        os=str(table.get("os") or "linux"),
        architecture=str(table.get("architecture") or ""),
        variant=str(table.get("variant") or ""),
    )


def _healthcheck(value: object) -> Healthcheck | None:
    if value is None:
        return None
    table = _object(value, "Healthcheck")

    def number(key: str) -> int:
        found = table.get(key) or 0
        if not isinstance(found, int):
            msg = f"Healthcheck {key} is not a number"
            raise CorruptError(msg)
        return found

    return Healthcheck(
        test=tuple(map(str, _list(table, "Test"))),
        interval=number("Interval"),
        timeout=number("Timeout"),
        start_period=number("StartPeriod"),
        start_interval=number("StartInterval"),
        retries=number("Retries"),
    )

"""A RunStep made concrete: from the step and a root to the `RunSpec` that an executor carries out.

What is opened for one RUN (locks on cache mounts, copies of sources) is closed with the `ExitStack` that the caller
gives; secrets travel in memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.errors import BuildError
from builder.executors import Bind, RunSpec, Tmpfs
from builder.handlers.caches import Fill, hold
from builder.handlers.owners import lookup
from builder.model import (
    BindMount,
    CacheMount,
    Origin,
    RunOptions,
    RunStep,
    SecretMount,
    SecretSource,
    SshMount,
    TmpfsMount,
)
from cache.snapshots import Root

if TYPE_CHECKING:
    import contextlib
    import threading

    from cache.entries import Files

Locate = Callable[[Origin, str], tuple[Path | Root, str]]
"""(origin, path in it) → where those files can be mounted from, and the path inside that; FileNotFoundError."""

Seed = Callable[[Origin, str, Path], None]
"""(origin, path in it, an empty folder of the host): copy the files below the path into the folder."""


class Surroundings(Struct, frozen=True):
    """What every RUN of one build shares. mounts: the folder of persistent cache mounts. resolv_conf: its content.

    agent: the socket of an ssh mount, None when no agent was given for it. fill: see `caches.Fill`.
    """

    options: RunOptions
    mounts: Path
    locate: Locate
    seed: Seed
    secrets: Mapping[str, SecretSource]
    agent: Callable[[SshMount], Path | None]
    resolv_conf: bytes
    fill: Fill | None = None


def describe(
    step: RunStep,
    root: Root,
    parent: Files,
    around: Surroundings,
    stack: contextlib.ExitStack,
    stop: threading.Event,
) -> RunSpec:
    """The process of `step` in `root`, whose files `parent` shows.

    stack: closed after the RUN. stop: set, it ends waiting for a cache mount that is locked.

    Raises BuildError for an unknown user, a required secret or agent that was not given, a mount source that is not
    there.
    """
    user = lookup(step.user, parent)
    binds: list[Bind] = []
    tmpfs: list[Tmpfs] = []
    files: list[tuple[str, bytes, int, int, int]] = [(path, data, 0o755, 0, 0) for path, data in step.scripts]
    env = list(step.env)
    wanted = [mount for mount in step.mounts if isinstance(mount, CacheMount)]
    caches = hold(wanted, around.mounts, around.seed, stop, stack, around.fill)
    for mount in step.mounts:
        match mount:
            case BindMount():
                binds.append(_bind(mount, around))
            case CacheMount():
                binds.append(Bind(caches[mount.id], mount.target, readonly=mount.readonly))
            case TmpfsMount():
                tmpfs.append(Tmpfs(mount.target, mount.size))
            case SecretMount():
                value = _secret(mount, around)
                if value is not None and mount.target:
                    files.append((mount.target, value, mount.mode, mount.uid, mount.gid))
                if value is not None and mount.env:
                    env = [line for line in env if not line.startswith(mount.env + "=")]
                    env.append(f"{mount.env}={value.decode('utf-8', 'surrogateescape')}")
            case SshMount():
                socket = _agent(mount, around)
                if socket is not None:
                    binds.append(Bind(socket, mount.target, readonly=False))
                    env.append(f"SSH_AUTH_SOCK={mount.target}")
    options = around.options
    hostname = step.hostname or options.hostname
    return RunSpec(
        root=root,
        argv=step.argv,
        env=tuple(_with_home(env, user.home)),
        cwd=step.cwd,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        binds=tuple(binds),
        tmpfs=tuple(tmpfs),
        files=tuple(files),
        network=step.network if step.network != "default" else options.network,
        insecure=step.security == "insecure",
        hostname=hostname,
        hosts=_hosts(options, hostname),
        resolv_conf=around.resolv_conf,
        shm_size=options.shm_size,
        ulimits=options.ulimits,
    )


def _with_home(env: list[str], home: str) -> list[str]:
    """A HOME of the user's, as runc sets it, unless the image or an ARG has one."""
    return env if any(line.startswith("HOME=") for line in env) else [*env, f"HOME={home}"]


def _hosts(options: RunOptions, hostname: str) -> bytes:
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", f"127.0.1.1\t{hostname}"]
    lines += [f"{address}\t{name}" for name, address in options.hosts]
    return ("\n".join(lines) + "\n").encode()


def _bind(mount: BindMount, around: Surroundings) -> Bind:
    try:
        source, inside = around.locate(mount.origin, mount.source)
    except FileNotFoundError:
        raise BuildError(f"bind mount source {mount.source!r} not found", span=mount.span) from None
    return Bind(source, mount.target, readonly=not mount.writable, discard_writes=mount.writable, inside=inside)


def _secret(mount: SecretMount, around: Surroundings) -> bytes | None:
    found = around.secrets.get(mount.id)
    if found is None:
        if mount.required:
            raise BuildError(
                f"secret {mount.id}: not found",
                span=mount.span,
                hint=f"give it with --secret id={mount.id},src=FILE or id={mount.id},env=NAME",
            )
        return None
    try:
        return found.read()
    except OSError as error:
        raise BuildError(f"secret {mount.id}: {found.path}: {error.strerror}", span=mount.span) from None


def _agent(mount: SshMount, around: Surroundings) -> Path | None:
    found = around.agent(mount)
    if found is None and mount.required:
        raise BuildError(
            f"unset ssh forward key {mount.id}",
            span=mount.span,
            hint=f"give it with --ssh {mount.id}, with an agent in SSH_AUTH_SOCK, or --ssh {mount.id}=SOCKET|KEY",
        )
    return found

"""The seam between what a RUN is and where it can run.

A snapshotter produces a description of a root file system (`Root`), the handlers describe the process (`RunSpec`), an
executor carries it out. Nothing here mounts anything outside the process that runs: mounts live and die in the RUN's
own mount namespace, so that a crash leaves none behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from cache.snapshots import Root


class Bind(Struct, frozen=True):
    """A path of the host shown at `target` in the root: a directory, a file or a socket.

    source: a host path, or a root (of a stage or an image) that is mounted read-only first; `inside` is then the path
    in it, its symlinks resolved inside that root. discard_writes: writable for the command, on an overlay that is
    thrown away. target: absolute, to be resolved inside the root.
    """

    source: Path | Root
    target: str
    readonly: bool = True
    discard_writes: bool = False
    inside: str = ""


class Tmpfs(Struct, frozen=True):
    """A fresh tmpfs at `target`. size: bytes, 0 for the kernel's default."""

    target: str
    size: int = 0
    mode: int = 0o1777


class RunSpec(Struct, frozen=True):
    """One process to run in a root.

    argv: the program is looked up on the env's PATH inside the root when it has no slash. env: `NAME=value`. cwd: made
    if missing. uid, gid, groups: numbers of the root's own ids. network: default, none or host. insecure: every
    capability, no masked paths. hosts and resolv_conf: contents of /etc/hosts and /etc/resolv.conf. files: small
    files shown read-only at a path (scripts, secrets): (target, content, mode, uid, gid). shm_size: bytes. ulimits:
    (name without RLIMIT_, soft, hard), -1 for unlimited.
    """

    root: Root
    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    files: tuple[tuple[str, bytes, int, int, int], ...] = ()
    network: str = "default"
    insecure: bool = False
    hostname: str = "buildkitsandbox"
    hosts: bytes = b""
    resolv_conf: bytes = b""
    shm_size: int = 64 << 20
    ulimits: tuple[tuple[str, int, int], ...] = ()


class Executor(Protocol):
    """Runs processes in roots. One executor serves a whole build, from several threads at once."""

    @property
    def tier(self) -> str:
        """Its tier's name: privileged, rootless, ..."""
        ...

    def run(self, spec: RunSpec, output: Callable[[bytes], None], stop: threading.Event) -> int:
        """Run the process to its end and return its exit code, 128 + n when signal n ended it.

        Standard output and error go to `output`, in order, unclipped; standard input is at end-of-file. When `stop` is
        set, the process and all its descendants are killed and CancelledError is raised. No process outlives the call.
        BuildError when the process could not be started (program missing or not executable: exit codes 127 and 126 are
        returned as a shell would, with a line on `output` saying so).
        """
        ...

    def close(self) -> None:
        """End the helper processes. Idempotent."""
        ...

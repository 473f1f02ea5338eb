"""RUN in Linux namespaces: real root, and user namespaces that the process entered at its start.

The server in builder/sandbox.py does the work. The first RUN starts it, once for a build; it serves all threads.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from builder.errors import BuildError, UnsupportedError
from builder.executors.conversation import Ended, check, converse
from cache.disk import mark_new
from cache.snapshots import DirectoryRoot, OverlayRoot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from builder.executors import RunSpec
    from cache.snapshots import Root


class NamespaceExecutor:
    """Runs in namespaces. tier: its name. userns: this process is in a user namespace; single: with one id only.

    network: the path of slirp4netns or pasta, by which a RUN with the default network gets one of its own; without, it
    shares this machine's.
    """

    _SERVER = "builder.sandbox"

    def __init__(self, tier: str, *, userns: bool = False, single: bool = False, network: str = "") -> None:
        self._tier = tier
        self._network = network
        self._userns = userns
        self._single = single
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        self._said = False

    @property
    def tier(self) -> str:
        """The tier's name."""
        return self._tier

    @property
    def name(self) -> str:
        """What errors call it."""
        return self._tier

    def run(self, spec: RunSpec, output: Callable[[bytes], None], stop: threading.Event) -> int:
        """Run to the end: see `Executor.run`."""
        check(spec, stop)
        if self._single and (spec.uid or spec.gid):
            self._stand_in(spec, output)
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        try:
            with ours:
                with theirs:
                    try:
                        self._request(theirs, writing, spec)
                    finally:
                        os.close(writing)
                status = self._converse(ours, reading, spec, output, stop)
                if self._single and (spec.uid or spec.gid) and isinstance(spec.root, OverlayRoot):
                    mark_new(os.fsencode(spec.root.upper), spec.uid, spec.gid)
                return status
        finally:
            os.close(reading)

    def close(self) -> None:
        """End the server, and with it whatever still runs."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            with server:
                server.shutdown(socket.SHUT_WR)
                server.recv(1)  # its end closes when it ends

    def _stand_in(self, spec: RunSpec, output: Callable[[bytes], None]) -> None:
        """Say what the one id is not, when it stands for another user: once for a build."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            user = f"{spec.uid}:{spec.gid}"
            text = (
                f"pybuild: there is one id in tier {self._tier}: user {user} owns all files, may write to them, and is "
                "in no other group; more ids take newuidmap and ranges in /etc/subuid and /etc/subgid\n"
            )
            output(text.encode())

    def _request(self, theirs: socket.socket, writing: int, spec: RunSpec) -> None:
        from builder import sandbox

        kind = sandbox.WITHOUT_NETWORK
        if spec.network == "default":
            # With every capability a command may change the network itself.
            kind = sandbox.WITH_NETWORK_TO_SPOIL if spec.insecure else sandbox.WITH_NETWORK
        with self._lock:
            if self._server is None:
                self._server = _start_server(self._SERVER, self._network)
            try:
                socket.send_fds(self._server, [kind], [theirs.fileno(), writing])
            except OSError as error:
                raise BuildError(f"the process that starts RUNs has ended: {error}") from error

    def _converse(
        self, ours: socket.socket, reading: int, spec: RunSpec, output: Callable[[bytes], None], stop: threading.Event
    ) -> int:
        ended = Ended()
        try:
            converse(ours, reading, self.describe(spec), output, stop, ended)
        finally:
            if not isinstance(spec.root, OverlayRoot):
                _remove_mount_points(spec.root.path, ended.made, ended.times)
        if ended.failure is not None:
            raise _failure(self.name, *ended.failure)
        return ended.status

    def describe(self, spec: RunSpec) -> dict[str, Any]:
        """The request to the server."""
        return {
            "root": _root(spec.root),
            "argv": spec.argv,
            "env": spec.env,
            "cwd": spec.cwd,
            "uid": spec.uid,
            "gid": spec.gid,
            "groups": spec.groups,
            "binds": [(_source(b.source), b.target, b.readonly, b.discard_writes, b.inside) for b in spec.binds],
            "tmpfs": [(t.target, t.size, t.mode) for t in spec.tmpfs],
            "files": spec.files,
            "network": spec.network,
            "insecure": spec.insecure,
            "hostname": spec.hostname,
            "hosts": spec.hosts,
            "resolv_conf": spec.resolv_conf,
            "shm_size": spec.shm_size,
            "ulimits": spec.ulimits,
            "userns": self._userns,
            "single": self._single,
        }


def _root(root: Root) -> tuple[Any, ...]:
    if isinstance(root, OverlayRoot):
        return ("overlay", str(root.base), root.lowers, str(root.upper), str(root.work), root.userxattr)
    return ("directory", str(root.path))


def _source(source: Path | Root) -> tuple[Any, ...]:
    """What a bind shows: a path of this machine, or a root, whose upper directory is no part of it."""
    if isinstance(source, OverlayRoot):
        return ("overlay", str(source.base), source.lowers, source.userxattr)
    if isinstance(source, DirectoryRoot):
        return ("directory", str(source.path))
    return ("path", str(source))


def _failure(name: str, number: int, text: str) -> BuildError:
    import errno

    if number == errno.ENOSPC and "unshare" in text:
        return UnsupportedError("no more namespaces can be made", hint="raise the limits in /proc/sys/user")
    return BuildError(f"the command's sandbox could not be set up ({name}): {text}")


def _remove_mount_points(root: Path, made: list[str], times: list[tuple[str, int, int]]) -> None:
    """Take away the mount points made in a directory that are still empty; give their parents' times back."""
    for name in reversed(made):
        path = os.path.join(root, name)
        try:
            if os.path.isdir(path):
                os.rmdir(path)
            elif os.lstat(path).st_size == 0:
                os.unlink(path)
        except OSError:
            continue  # the command put something there, or removed it
    for name, atime, mtime in times:
        try:
            os.utime(os.path.join(root, name), ns=(atime, mtime), follow_symlinks=False)
        except FileNotFoundError:
            continue


def _start_server(module: str, network: str) -> socket.socket:
    """Start builder/sandbox.py, or another module's `main` that serves, and return the socket that it listens to."""
    from builder import sandbox

    folder = os.path.dirname(os.path.dirname(os.path.abspath(sandbox.__file__)))
    ours, theirs = socket.socketpair()
    try:
        # A container's process may be made to execute /proc/self/exe before it is what it should become
        # (CVE-2019-5736); through this read-only mount it never gets at the interpreter's file.
        interpreter = sandbox.clone_tree(os.path.realpath(sys.executable), recursive=False)
        try:
            sandbox.set_attributes(interpreter, sandbox.RDONLY)
            # By import, so that it is compiled once and not at every start.
            start = f"import sys; sys.path.insert(0, {folder!r}); from {module} import main; main(program={network!r})"
            argv = [sys.executable, "-I", "-S", "-c", start]
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            pid = os.posix_spawn(f"/proc/self/fd/{interpreter}", argv, {"LC_ALL": "C.UTF-8"}, file_actions=actions)
        finally:
            os.close(interpreter)
    except OSError as error:
        ours.close()
        raise BuildError(f"the process that starts RUNs can not be started: {error.strerror}") from error
    finally:
        theirs.close()
    # It forks the server into a pid namespace and ends.
    _, status = os.waitpid(pid, 0)
    if status:
        ours.close()
        raise BuildError("the process that starts RUNs can not be started")
    return ours

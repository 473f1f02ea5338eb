"""SSH agents for `RUN --mount=type=ssh`: the user's own, or one for the build that holds the keys of --ssh.

What a RUN is given is never the agent's socket itself but one of ours, with the owner and mode that the mount asks for,
and we pass on what is said: an agent talks to its own user only, and a RUN may be somebody else.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from builder.errors import BuildError, UnsupportedError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

    from builder.model import SshMount, SshSource

_START_SECONDS = 10.0
_CHUNK = 1 << 16


class Agents:
    """The agents of one build, by the ids of --ssh. Nothing is started before a RUN asks; used from several threads."""

    def __init__(self, sources: Mapping[str, SshSource]) -> None:
        self._sources = sources
        self._lock = threading.Lock()
        self._relays: dict[tuple[str, int, int, int], Relay] = {}
        self._started: dict[str, Path] = {}
        self._opened = contextlib.ExitStack()
        self._folder = Path()

    def socket(self, mount: SshMount) -> Path | None:
        """The socket to show to a RUN; None when --ssh has nothing of that id. BuildError when it can not be had."""
        source = self._sources.get(mount.id)
        if source is None:
            return None
        with self._lock:
            key = (mount.id, mount.mode, mount.uid, mount.gid)
            if key not in self._relays:
                if not self._relays and not self._started:
                    self._folder = self._scratch()
                agent = source.socket if source.socket is not None else self._serve(source)
                path = self._folder / f"{len(self._relays)}.sock"
                self._relays[key] = self._opened.enter_context(Relay(path, agent, mount.mode, mount.uid, mount.gid))
            return self._relays[key].path

    def close(self) -> None:
        """End the agents that were started, by their ids, and remove the sockets. Idempotent."""
        self._opened.close()

    def _scratch(self) -> Path:
        import shutil
        import tempfile

        folder = tempfile.mkdtemp(prefix="pybuild-ssh-")
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _serve(self, source: SshSource) -> Path:
        """Start an agent that holds the keys of `source`; the path of its socket."""
        if source.id in self._started:
            return self._started[source.id]
        import subprocess

        # Relative to the folder: a socket's whole name has room for 107 bytes only.
        name = f"agent-{len(self._started)}"
        try:
            agent = subprocess.Popen(
                ["ssh-agent", "-D", "-a", name],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            raise UnsupportedError(
                f"--ssh {source.id}: key files are served by the program ssh-agent, which is not there",
                hint=f"install openssh-client, or give a running agent: --ssh {source.id}=SOCKET",
            ) from None
        self._opened.callback(_end, agent)
        path = self._folder / name
        deadline = time.monotonic() + _START_SECONDS
        while not path.exists():
            if agent.poll() is not None or time.monotonic() > deadline:
                raise BuildError(f"--ssh {source.id}: ssh-agent did not start")
            time.sleep(0.005)
        for key in source.keys:
            self._add(source.id, key, name)
        self._started[source.id] = path
        return path

    def _add(self, name: str, key: Path, agent: str) -> None:
        import subprocess

        try:
            data = key.read_bytes()
        except OSError as error:
            raise BuildError(f"--ssh {name}: {key}: {error.strerror}") from None
        # From standard input: of a file, ssh-add wants that nobody else may read it. No passphrase can be asked for.
        command = ["env", f"SSH_AUTH_SOCK={agent}", "SSH_ASKPASS=/bin/false", "SSH_ASKPASS_REQUIRE=force"]
        try:
            done = subprocess.run(
                [*command, "ssh-add", "-q", "-"],
                cwd=self._folder,
                input=data.rstrip(b"\n") + b"\n",
                capture_output=True,
                check=False,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"--ssh {name}: ssh-add took too long over {key}") from None
        if done.returncode == 127:
            raise UnsupportedError(f"--ssh {name}: the program ssh-add is not there", hint="install openssh-client")
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").splitlines()
            raise BuildError(
                f"--ssh {name}: ssh-add does not take the key {key}",
                hint=f"a key with a passphrase: ssh-add it to an agent of your own, then --ssh {name}",
                notes=tuple(lines[-5:]),
            )


def _end(agent: subprocess.Popen[bytes]) -> None:
    agent.terminate()
    try:
        agent.wait(5)
    except Exception:  # of subprocess, which is not loaded here: it did not listen
        agent.kill()
        agent.wait()


class Relay:
    """A socket at `path` of which every connection is passed on to the agent. A context manager."""

    def __init__(self, path: Path, agent: Path, mode: int, uid: int, gid: int) -> None:
        self.path = path
        self._agent = agent
        self._listening = socket.socket(socket.AF_UNIX)
        self._closing = threading.Event()
        try:
            with _short(path) as name:
                self._listening.bind(name)
            # Our own user, who may be another one than the mount's owner, has no need to connect.
            path.chmod(mode)
            if (uid, gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(OSError):  # with one id there is nobody else
                    os.chown(path, uid, gid)
            self._listening.listen()
        except OSError:
            self._listening.close()
            raise
        self._thread = threading.Thread(target=self._accept, name=f"ssh {path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # Closing alone would leave the thread in accept().
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        """Carry bytes both ways until either side ends. An agent that is gone ends the connection at once."""
        with client, socket.socket(socket.AF_UNIX) as agent, selectors.DefaultSelector() as ready:
            try:
                with _short(self._agent) as name:
                    agent.connect(name)
                ready.register(client, selectors.EVENT_READ, agent)
                ready.register(agent, selectors.EVENT_READ, client)
                while not self._closing.is_set():
                    for key, _ in ready.select(0.5):
                        source = client if key.fileobj is client else agent
                        data = source.recv(_CHUNK)
                        if not data:
                            return
                        key.data.sendall(data)
            except OSError:
                return


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the path that fits into a socket's address, however long the path is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

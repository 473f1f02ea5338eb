"""A Docker or podman on this machine, to hand images to.

Docker is spoken to over its socket: `POST /images/load` of https://docs.docker.com/reference/api/engine/, with a tar as
`docker save` writes it, in chunks. Where it is found, as docker's own client finds it:

    DOCKER_HOST                                        unix://, tcp://
    DOCKER_CONTEXT, config.json's currentContext       meta.json of the context, in the folder DOCKER_CONFIG
    /var/run/docker.sock, $XDG_RUNTIME_DIR/docker.sock

Podman has no daemon: its program is given the same tar on standard input. Of the two docker is taken first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from builder.errors import BuildError, UnsupportedError
from builder.events import ExportFinished, ExportStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from http.client import HTTPConnection, HTTPResponse

    from builder.events import Reporter
    from cache.oci import Descriptor
    from cache.store import Store

KINDS = ("auto", "docker", "podman")

_SYSTEM_SOCKET = "/var/run/docker.sock"
_CONNECT = 10.0
_ANSWER = 3600.0
"""Seconds without a word from docker after which it is taken for gone: unpacking a large image takes its time."""

_CHUNK = 1 << 20


class Engine(Protocol):
    """Something that takes images."""

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    def load(self, write: Callable[[BinaryIO], object]) -> list[str]:
        """Give it the archive that `write` writes; what it says of what it loaded. Once. BuildError."""
        ...

    def close(self) -> None:
        """Let go of it. Idempotent."""
        ...


def hand_over(
    engine: Engine, images: Sequence[tuple[Descriptor, Sequence[str]]], store: Store, report: Reporter
) -> list[str]:
    """Give the engine images of the store, each a manifest and its full names; what it says of them. BuildError."""
    from builder.archives import write_tar
    from builder.export import layout_members

    what = f"to {engine.title}"
    report(ExportStarted(what))
    started = time.monotonic()
    size = 0

    def write(out: BinaryIO) -> None:
        nonlocal size
        size = write_tar(layout_members(images, store, docker=True), out)

    said = engine.load(write)
    report(ExportFinished(what, time.monotonic() - started, size))
    return said


def find(environ: Mapping[str, str], kind: str = "auto") -> Engine:
    """The engine that runs here, tried by asking it. kind: one of KINDS.

    To be called before this process enters a user namespace, in which podman would take it for root. Raises
    UnsupportedError when there is none, or when the one that the environment names does not answer.
    """
    named = _named(environ) if kind != "podman" else ""
    if named:
        docker = Docker(named, environ)
        docker.ping()
        return docker
    problems = []
    if kind != "podman":
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        for place in (_SYSTEM_SOCKET, f"{runtime}/docker.sock" if runtime else ""):
            if not place or not os.path.exists(place):
                continue
            docker = Docker(f"unix://{place}", environ)
            try:
                docker.ping()
            except UnsupportedError as error:
                problems.append(error)
            else:
                return docker
    if kind != "docker" and (program := shutil.which("podman", path=environ.get("PATH", os.defpath))):
        return Podman(program)
    if problems:
        raise problems[0]
    raise UnsupportedError(
        "there is no running Docker and no podman to load the image into"
        if kind == "auto"
        else f"there is no {'running Docker' if kind == 'docker' else 'podman'} to load the image into",
        hint="start it, or set DOCKER_HOST; -o type=docker,dest=FILE writes an archive for later",
    )


def _named(environ: Mapping[str, str]) -> str:
    """The address of the Docker that the environment or docker's configuration names; empty for the usual one."""
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/"), ".docker"))
    context = environ.get("DOCKER_CONTEXT") or str(_document(folder / "config.json").get("currentContext") or "")
    if not context or context == "default":
        return ""
    meta = _document(folder / "contexts" / "meta" / hashlib.sha256(context.encode()).hexdigest() / "meta.json")
    endpoints = meta.get("Endpoints")
    docker = endpoints.get("docker") if isinstance(endpoints, dict) else None
    host = docker.get("Host") if isinstance(docker, dict) else None
    if not isinstance(host, str) or not host:
        raise UnsupportedError(
            f"docker's context {context!r} is not in {folder}", hint="docker context ls; or set DOCKER_HOST"
        )
    return host


def _document(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- docker


class Docker:
    """A Docker daemon at an address. Nothing is sent before `ping` or `load`."""

    def __init__(self, address: str, environ: Mapping[str, str]) -> None:
        self._address = address
        self._environ = environ
        scheme, separator, self._place = address.partition("://")
        if not separator or scheme not in {"unix", "tcp", "http"} or not self._place:
            raise UnsupportedError(
                f"can not load into Docker at {address}: only unix:// and tcp:// are spoken",
                hint="-o type=docker,dest=- | docker load goes through docker's own client",
            )
        self._unix = scheme == "unix"

    @property
    def title(self) -> str:
        """See `Engine.title`."""
        return f"docker at {self._address}"

    def close(self) -> None:
        """See `Engine.close`. Nothing stays open between calls."""

    def ping(self) -> None:
        """Ask whether it is there. UnsupportedError when it is not."""
        connection = self._connection(_CONNECT)
        try:
            connection.request("GET", "/_ping")
            response = connection.getresponse()
            response.read()
        except Exception as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        if response.status != 200:
            raise UnsupportedError(f"{self.title} answers /_ping with {response.status} {response.reason}")

    def load(self, write: Callable[[BinaryIO], object]) -> list[str]:
        """See `Engine.load`."""
        connection = self._connection(_ANSWER)
        broken: OSError | None = None
        try:
            try:
                connection.putrequest("POST", "/images/load?quiet=1")
                connection.putheader("Content-Type", "application/x-tar")
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders()
            except OSError as error:
                raise self._unreachable(error) from None
            out = _Chunks(connection)
            try:
                write(cast("BinaryIO", out))
                out.finish()
            except (BrokenPipeError, ConnectionResetError) as error:
                # It has stopped reading; why is in its answer.
                broken = error
            try:
                return self._answer(connection.getresponse())
            except OSError as error:
                raise BuildError(f"{self.title} broke off: {(broken or error).strerror or error}") from None
        finally:
            connection.close()

    def _answer(self, response: HTTPResponse) -> list[str]:
        """The lines that docker says; BuildError for what went wrong there."""
        said: list[str] = []
        with response:
            text = response.read().decode("utf-8", "replace")
        for line in text.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if not isinstance(message, dict):
                continue
            if "error" in message or (response.status != 200 and "message" in message):
                raise BuildError(f"{self.title} does not take the image: {message.get('error') or message['message']}")
            said += str(message.get("stream") or "").splitlines()
        if response.status != 200:
            raise BuildError(f"{self.title} does not take the image: {response.status} {response.reason}")
        return [line for line in said if line]

    def _connection(self, timeout: float) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        if self._unix:
            return _over(self._place, timeout)
        where = self._place.partition("/")[0]
        if not self._environ.get("DOCKER_TLS_VERIFY"):
            return HTTPConnection(where, timeout=timeout)
        import ssl

        folder = self._environ.get("DOCKER_CERT_PATH") or os.path.join(self._environ.get("HOME", "/"), ".docker")
        try:
            context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
            context.load_cert_chain(os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
        except OSError as error:
            raise UnsupportedError(
                f"can not use the certificates of {self.title} in {folder}: {error.strerror or error}"
            ) from None
        return HTTPSConnection(where, timeout=timeout, context=context)

    def _unreachable(self, error: Exception) -> UnsupportedError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "start it, or unset DOCKER_HOST"
        if isinstance(error, PermissionError):
            hint = "be in the group docker, or use a rootless Docker or podman"
        elif not self._environ.get("DOCKER_HOST"):
            hint = "start it; -o type=docker,dest=FILE writes an archive for later"
        return UnsupportedError(f"can not reach {self.title}: {reason}", hint=hint)


def _over(path: str, timeout: float) -> HTTPConnection:
    """A connection over a unix socket."""
    import socket
    from http.client import HTTPConnection

    class Connection(HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(path)

    return Connection("docker", timeout=timeout)


class _Chunks:
    """What is written goes out in HTTP's chunks."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> int:
        """As a file's."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _CHUNK:
            self._send()
        return len(data)

    def finish(self) -> None:
        """Send what is left, and the end."""
        self._send()
        self._connection.send(b"0\r\n\r\n")

    def _send(self) -> None:
        if self._size:
            self._connection.send(b"".join((b"%x\r\n" % self._size, *self._parts, b"\r\n")))
            self._parts, self._size = [], 0


# ---------------------------------------------------------------- podman


class Podman:
    """Podman's program. Made, it waits in a process of its own: see `find` on namespaces."""

    # The shell reads one line, byte by byte, and leaves the rest to podman; without that line it ends.
    _WAIT = 'read -r go && exec "$0" load --quiet'

    def __init__(self, program: str) -> None:
        import subprocess
        import tempfile

        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", self._WAIT, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def title(self) -> str:
        """See `Engine.title`."""
        return "podman"

    def close(self) -> None:
        """See `Engine.close`. Ends the program if it still waits."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def load(self, write: Callable[[BinaryIO], object]) -> list[str]:
        """See `Engine.load`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out = cast("BinaryIO", self._process.stdin)
        try:
            try:
                out.write(b"go\n")
                write(out)
            finally:
                out.close()
        except BrokenPipeError:
            pass  # it has ended; why, it has said
        except BaseException:
            # What it has of the archive by now is no whole one, which it says and refuses.
            self._process.wait()
            raise
        said = self._process.stdout.read().decode("utf-8", "replace")
        if self._process.wait():
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
            raise BuildError(f"podman load failed: {lines[-1] if lines else f'status {self._process.returncode}'}")
        return [line for line in said.splitlines() if line]

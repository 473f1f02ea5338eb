"""Images handed to a Docker that a thread plays, and to a podman that is a script."""

from __future__ import annotations

import hashlib
import io
import json
import socketserver
import tarfile
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builder.engines import Docker, find
from builder.errors import BuildError, UnsupportedError
from tests.building import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADED = b'{"stream":"Loaded image: app:1\\n"}\n'


class Daemon:
    """A Docker on a socket: what it was sent, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "d.sock"
        self.status, self.answer = 200, LOADED
        self.hang_up_after: int | None = None
        self.paths: list[str] = []
        self.body = b""

    @property
    def environ(self) -> dict[str, str]:
        return {"DOCKER_HOST": f"unix://{self.socket}", "PATH": "/nonexistent", "HOME": "/nonexistent"}

    @contextmanager
    def running(self) -> Iterator[Daemon]:
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self) -> str:
                return "socket"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._say(200, b"OK")

            def do_POST(self) -> None:
                daemon.paths.append(self.path)
                assert self.headers["Transfer-Encoding"] == "chunked"
                body = io.BytesIO()
                while size := int(self.rfile.readline(), 16):
                    body.write(self.rfile.read(size))
                    assert self.rfile.readline() == b"\r\n"
                    if daemon.hang_up_after is not None and body.tell() > daemon.hang_up_after:
                        self.close_connection = True
                        self._say(daemon.status, daemon.answer)
                        return
                self.rfile.readline()
                daemon.body = body.getvalue()
                self._say(daemon.status, daemon.answer)

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        with Server(str(self.socket), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    # A socket's path may have no more than 107 bytes, and pytest's folders have nearly that many.
    with tempfile.TemporaryDirectory(prefix="pb", dir="/tmp") as folder, Daemon(Path(folder)).running() as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_build_is_loaded(daemon: Daemon, bench: Bench) -> None:
    bench.environ.update(daemon.environ)
    done = bench.build("FROM scratch\nCOPY f /f\n", {"f": "f"}, "--load", tag="app:1")
    assert daemon.paths == ["/images/load?quiet=1"]
    with tarfile.open(fileobj=io.BytesIO(daemon.body)) as tar:
        table = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert table[0]["RepoTags"] == ["app:1"]
    assert table[0]["Config"].endswith(done.image[7:])
    events = [event for event in done.events if event["event"].startswith("export")]
    assert events[0]["what"] == f"to docker at unix://{daemon.socket}"
    assert events[1]["size"] == len(daemon.body)
    daemon.body = b""
    bench.build("FROM scratch\nCOPY f /f\n", {}, "-o", "type=docker")
    assert daemon.body
    bench.build("FROM scratch\nCOPY f /f\n", {}, "-o", "type=docker,compression=gzip", code=2)


def test_layers_that_lie_in_a_cache_elsewhere_are_loaded_too(daemon: Daemon, bench: Bench, tmp_path: Path) -> None:
    text = "FROM scratch\nCOPY f /f\n"
    bench.build(text, {"f": "f"}, f"--cache-to=type=local,dest={tmp_path}/shelf")
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second", dict(daemon.environ))
    done = second.build(
        text, {"f": "f"}, f"--cache-from=type=local,src={tmp_path}/shelf", "--output=type=cacheonly", "--load", tag=""
    )
    assert all(done.cached.values())
    with tarfile.open(fileobj=io.BytesIO(daemon.body)) as tar:
        assert len([name for name in tar.getnames() if name.startswith("blobs/sha256/")]) == 3


def test_a_failed_build_loads_nothing(daemon: Daemon, bench: Bench) -> None:
    bench.environ.update(daemon.environ)
    bench.build("FROM scratch\nCOPY nothing /f\n", {"f": ""}, "--load", code=1)
    assert daemon.paths == []


def test_images_of_the_store_are_handed_over(daemon: Daemon, bench: Bench) -> None:
    bench.environ.update(daemon.environ)
    bench.build("FROM scratch\nCOPY f /f\n", {"f": "f"}, tag="app:1")
    assert bench.pybuild("load", "app:1").out == "Loaded image: app:1\n"
    assert bench.pybuild("load", "-q", "--to=docker", "app").out == ""
    assert "did you mean app:1" in bench.pybuild("load", "apq:1", code=1).err
    (bench.folder / "x.tar").write_bytes(b"")
    assert f"pybuild load -i {bench.folder}/x.tar" in bench.pybuild("load", f"{bench.folder}/x.tar", code=1).err
    bench.pybuild("load", "--to", "docker", code=2)
    bench.pybuild("load", "--to", "dokcer", "app:1", code=2)
    bench.pybuild("load", "-i", "x", "app:1", code=2)


@pytest.mark.parametrize(
    "status, answer, message",
    [
        (200, b'{"stream":"x"}\n{"errorDetail":{"message":"no space"},"error":"no space"}\n', "no space"),
        (500, b'{"message":"broken"}', "broken"),
        (404, b"not json", "404 Not Found"),
    ],
)
def test_what_docker_refuses_is_an_error(
    daemon: Daemon, bench: Bench, status: int, answer: bytes, message: str
) -> None:
    bench.environ.update(daemon.environ)
    daemon.status, daemon.answer = status, answer
    done = bench.build("FROM scratch\nCOPY f /f\n", {"f": "f"}, "--load", tag="app:1", code=1)
    assert f"does not take the image: {message}" in done.err
    assert "app:1" not in bench.names()


def test_docker_may_stop_reading(daemon: Daemon) -> None:
    daemon.hang_up_after, daemon.status, daemon.answer = 1 << 20, 500, b'{"message":"no space left"}'
    docker = Docker(f"unix://{daemon.socket}", {})

    def write(out: object) -> None:
        for _ in range(200):
            out.write(bytes(1 << 20))  # type: ignore[attr-defined]

    with pytest.raises(BuildError, match=r"no space left|broke off"):
        docker.load(write)


@pytest.mark.parametrize(
    "environ, message, hint",
    [
        (
            {"DOCKER_HOST": "unix:///nonexistent/d.sock"},
            "can not reach docker at unix:///nonexistent/d.sock",
            "unset DOCKER_HOST",
        ),
        ({"DOCKER_HOST": "tcp://127.0.0.1:1"}, "can not reach docker at tcp://127.0.0.1:1", "unset"),
        ({"DOCKER_HOST": "ssh://me@host"}, "only unix:// and tcp://", "docker load"),
        ({"DOCKER_HOST": "nonsense"}, "only unix:// and tcp://", "docker load"),
        ({"DOCKER_CONTEXT": "gone"}, "context 'gone' is not in", "docker context ls"),
        ({}, "no running Docker and no podman", "type=docker,dest=FILE"),
    ],
)
def test_none_runs(
    environ: dict[str, str], message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.engines._SYSTEM_SOCKET", str(tmp_path / "none"))
    with pytest.raises(UnsupportedError, match=message) as caught:
        find({"PATH": str(tmp_path), "HOME": str(tmp_path), **environ})
    assert hint in caught.value.hint


def test_docker_is_found_where_its_client_finds_it(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.engines._SYSTEM_SOCKET", str(daemon.socket))
    plain = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    assert find(plain).title == f"docker at unix://{daemon.socket}"
    monkeypatch.setattr("builder.engines._SYSTEM_SOCKET", str(tmp_path / "none"))
    meta = tmp_path / ".docker/contexts/meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": "mine", "Endpoints": {"docker": {"Host": f"unix://{daemon.socket}"}}}))
    assert find({**plain, "DOCKER_CONTEXT": "mine"}).title.endswith(str(daemon.socket))
    (tmp_path / ".docker/config.json").write_text('{"currentContext": "mine"}')
    assert find(plain).title.endswith(str(daemon.socket))
    daemon.socket.rename(daemon.socket.parent / "docker.sock")
    (tmp_path / ".docker/config.json").unlink()
    assert find({**plain, "XDG_RUNTIME_DIR": str(daemon.socket.parent)}).title.endswith("/docker.sock")


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for PATH with a podman that keeps what it gets in `got`, or fails where there is a file `fail`."""
    monkeypatch.setattr("builder.engines._SYSTEM_SOCKET", str(tmp_path / "none"))
    script = tmp_path / "bin/podman"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\nPATH=/bin:/usr/bin\ncd ${0%/*}\n"
        "[ -e fail ] && { echo 'first line' >&2; echo 'Error: no space' >&2; exit 125; }\n"
        'echo "$@" > words\ncat > got\necho "Loaded image: localhost/app:1"\n'
    )
    script.chmod(0o755)
    return script.parent


def test_podman_gets_the_image(podman: Path, bench: Bench) -> None:
    bench.environ.update(PATH=str(podman), HOME=str(podman))
    bench.build("FROM scratch\nCOPY f /f\n", {"f": "f"}, "--load", tag="app:1")
    assert (podman / "words").read_text() == "load --quiet\n"
    with tarfile.open(podman / "got") as tar:
        assert "manifest.json" in tar.getnames()
    (podman / "got").unlink()
    assert bench.pybuild("load", "--to=podman", "app:1").out == "Loaded image: localhost/app:1\n"
    (podman / "got").unlink()
    bench.build("FROM scratch\nCOPY nothing /f\n", {}, "--load", code=1)
    assert not (podman / "got").exists()
    (podman / "fail").touch()
    assert "podman load failed: Error: no space" in bench.pybuild("load", "app:1", code=1).err


def test_the_environment_decides_before_podman(podman: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="can not reach"):
        find({"PATH": str(podman), "DOCKER_HOST": f"unix://{tmp_path}/none"})
    engine = find({"PATH": str(podman), "DOCKER_HOST": f"unix://{tmp_path}/none"}, "podman")
    assert engine.title == "podman"
    engine.close()
    engine.close()

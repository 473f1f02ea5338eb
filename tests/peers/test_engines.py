"""What pybuild built runs under real Docker and real podman."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.peers.tools import CERTIFICATES, EXAMPLES, LIMITS, Tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.peer]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(engine: Tool, image: str) -> dict[str, str]:
    """Start the web service on a port of the loopback, ask it, stop it."""
    port = free_port()
    container = engine(
        "run", "--detach", "--network=host", *LIMITS, "--env", f"PORT={port}", "--env", "HOST=127.0.0.1", image
    ).strip()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    found: dict[str, str] = json.load(response)
                    return found
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline, engine.run("logs", container).stderr
                time.sleep(0.1)
    finally:
        engine.run("kill", container)  # a stop would wait for a service that, as pid 1, ignores SIGTERM
        engine.run("rm", "--force", container)


@pytest.fixture(scope="module")
def archive(pybuild: Tool, web_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archives") / "web.tar"
    pybuild("build", "-t", web_image, "-o", f"type=docker,dest={path}", *_again())
    return path


def _again() -> list[str | Path]:
    secret = ["--secret", f"id=ca,src={CERTIFICATES}"] if CERTIFICATES.exists() else []
    return [*secret, EXAMPLES / "python-web"]


@pytest.mark.docker
def test_docker_loads_and_runs_the_web_service(docker: Tool, archive: Path, web_image: str) -> None:
    assert f"Loaded image: {web_image}" in docker("load", "--input", archive)
    config = json.loads(docker("image", "inspect", web_image))[0]["Config"]
    assert config["User"] == "web"
    assert "8000/tcp" in config["ExposedPorts"]
    assert config["Healthcheck"]["Interval"] == 30_000_000_000
    assert answer(docker, web_image)["hello"] == "world"


def test_podman_loads_and_runs_the_web_service(podman: Tool, archive: Path, web_image: str) -> None:
    podman("load", "--input", archive)
    found = answer(podman, f"docker.io/library/{web_image}")
    assert found["hello"] == "world"
    assert found["uid"] != "0"


@pytest.mark.docker
def test_docker_runs_what_stands_on_the_host_base(pybuild: Tool, docker: Tool, tmp_path: Path) -> None:
    path = tmp_path / "hello.tar"
    pybuild(
        "build", "-t", "hello:1", "--build-context", "base=host:", "-o", f"type=docker,dest={path}", EXAMPLES / "hello"
    )
    docker("load", "--input", path)
    out = docker("run", "--rm", "--network=none", *LIMITS, "hello:1")
    assert out == "Hello, world, from Linux.\n"


def test_docker_load_reads_a_stream(pybuild: Tool, docker: Tool, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    env = {**os.environ, **dict(pybuild.env)}
    build = subprocess.run(
        [*pybuild.words, "build", "-t", "streamed:1", "-o", "type=docker,dest=-", tmp_path],
        check=True, capture_output=True, env=env,
    )  # fmt: skip
    loaded = subprocess.run(
        [*docker.words, "load"], check=True, input=build.stdout, capture_output=True, env={**env, **dict(docker.env)}
    )
    assert b"streamed:1" in loaded.stdout

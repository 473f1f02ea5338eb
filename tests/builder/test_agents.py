"""Agents for ssh mounts: keys served by an agent of the build's own, sockets with the owner that the mount asks for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from builder.agents import Agents
from builder.errors import BuildError, UnsupportedError
from builder.model import SshMount, SshSource
from tests.building import Bench, needs_run, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_ssh = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("ssh-agent", "ssh-add", "ssh-keygen")), reason="needs openssh-client"
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a test", "-f", str(path)], check=True)
    path.chmod(0o644)
    return path


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Path]:
    """An agent that says again what it is told, at a path as long as paths may be."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    listening = socket.socket(socket.AF_UNIX)
    descriptor = os.open(folder, os.O_PATH)
    listening.bind(f"/proc/self/fd/{descriptor}/s")
    os.close(descriptor)
    listening.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(100):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield folder / "s"
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    listening.close()


def agents(*sources: SshSource) -> Agents:
    return Agents({source.id: source for source in sources})


def told(path: Path) -> str:
    done = subprocess.run(
        ["ssh-add", "-l"], env={**os.environ, "SSH_AUTH_SOCK": str(path)}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@needs_ssh
def test_keys_are_served_and_the_agent_ends_with_the_build(key: Path) -> None:
    made = agents(SshSource("default", keys=(key,)))
    path = made.socket(SshMount("default", "/a"))
    assert path is not None
    assert "a test (ED25519)" in told(path)
    assert made.socket(SshMount("default", "/b")) == path
    made.close()
    made.close()
    assert not path.parent.exists()


@needs_ssh
def test_a_key_with_a_passphrase_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)], check=True)
    made = agents(SshSource("k", keys=(path,)))
    with pytest.raises(BuildError, match="does not take the key") as caught:
        made.socket(SshMount("k", "/a"))
    assert "passphrase" in caught.value.hint
    made.close()


@needs_ssh
def test_what_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "no-key").write_text("hello")
    made = agents(SshSource("k", keys=(tmp_path / "no-key",)))
    with pytest.raises(BuildError, match="does not take the key"):
        made.socket(SshMount("k", "/a"))
    made.close()


def test_without_the_program_keys_are_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = agents(SshSource("k", keys=(tmp_path / "key",)))
    with pytest.raises(UnsupportedError, match="ssh-agent") as caught:
        made.socket(SshMount("k", "/a"))
    assert "--ssh k=SOCKET" in caught.value.hint
    made.close()


def test_an_id_that_was_not_given_is_none() -> None:
    assert agents().socket(SshMount("default", "/a")) is None


def test_a_socket_is_passed_on_with_the_mounts_mode(echo: Path) -> None:
    made = agents(SshSource("default", socket=echo))
    path = made.socket(SshMount("default", "/a", mode=0o640))
    assert path is not None
    assert path.stat().st_mode & 0o7777 == 0o640
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
    made.close()


def test_an_agent_that_is_gone_ends_the_connection(tmp_path: Path) -> None:
    made = agents(SshSource("default", socket=tmp_path / "gone"))
    path = made.socket(SshMount("default", "/a"))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        assert client.recv(1) == b""
    made.close()


@needs_ssh
def test_a_run_gets_the_socket_that_it_asks_for(tmp_path: Path, key: Path) -> None:
    needs_run()
    bench = Bench(tmp_path / "bench")
    write(
        bench.context,
        {
            "Dockerfile": """\
FROM base
RUN --mount=type=ssh,mode=0666 --mount=type=ssh,id=other,target=/run/two.sock \\
    echo "$SSH_AUTH_SOCK"; test -S "$SSH_AUTH_SOCK" && stat -c '%a %u' "$SSH_AUTH_SOCK" /run/two.sock 2>&1; true
"""
        },
    )
    from tests.building import busybox

    done = bench.pybuild(
        "build", f"--ssh=default={key}", f"--build-context=base={busybox()}", "--progress=rawjson", str(bench.context)
    )
    assert "/run/buildkit/ssh_agent.0\n666 0\n" in done.output
    done = bench.pybuild(
        "build", "--no-cache", f"--ssh=other={key}", f"--build-context=base={busybox()}", "--progress=rawjson",
        str(bench.context),
    )  # fmt: skip
    assert "/run/two.sock\n600 0\n600 0" in done.output

"""Real tools beside pybuild: each found, or started on a folder and a socket of its own, or skipped with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import debian
from tests.peers.tools import CERTIFICATES, EXAMPLES, ROOT, Tool

if TYPE_CHECKING:
    from collections.abc import Iterator


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to run other builders and engines")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pybuild")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pybuild(store: Path) -> Tool:
    return Tool((sys.executable, "-m", "builder.cli"), (("PYBUILD_ROOT", str(store)), ("PYTHONPATH", str(ROOT))))


@pytest.fixture(scope="session")
def debian_base(pybuild: Tool) -> str:
    """The name of a Debian image in pybuild's store."""
    tar, reason = debian.rootfs()
    if tar is None:
        pytest.skip(reason)
    pybuild("import", tar, f"debian:{debian.SUITE}")
    return f"debian:{debian.SUITE}"


@pytest.fixture(scope="session")
def web_image(pybuild: Tool, debian_base: str) -> str:
    """The example python-web, built."""
    secret = ("--secret", f"id=ca,src={CERTIFICATES}") if CERTIFICATES.exists() else ()
    done = pybuild.run("build", "-t", "web:1.0", *secret, EXAMPLES / "python-web")
    if done.returncode and ("Temporary failure resolving" in done.stderr or "Could not resolve" in done.stderr):
        pytest.skip("needs Debian's package servers, which can not be reached")
    assert done.returncode == 0, done.stderr[-4000:]
    return "web:1.0"


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """Docker's client on a daemon of its own: a private folder and socket, no bridge, no firewall rules."""
    as_root()
    client, daemon = program("docker"), program("dockerd")
    folder = tmp_path_factory.mktemp("docker")
    (folder / "daemon.json").write_text("{}")
    # A socket's path may have no more than 107 bytes.
    socket = Path(f"/tmp/pybuild-docker-{os.getpid()}.sock")
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            daemon, "--host", f"unix://{socket}", "--data-root", str(folder / "data"),
            "--exec-root", str(folder / "exec"),
            "--pidfile", str(folder / "pid"), "--config-file", str(folder / "daemon.json"),
            "--bridge=none", "--iptables=false", "--ip6tables=false",
        ],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    tool = Tool((client,), (("DOCKER_HOST", f"unix://{socket}"), ("DOCKER_CONFIG", str(folder / "config"))))
    try:
        deadline = time.monotonic() + 60
        while tool.run("version").returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.2)
        yield tool
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
        socket.unlink(missing_ok=True)
        unmount(folder)


@pytest.fixture(scope="session")
def podman() -> Iterator[Tool]:
    as_root()
    # Podman takes no runroot of more than 50 characters, and pytest's folders have that many.
    folder = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
    # runc, where there is one: Debian 12's crun refuses machines with both kinds of cgroups.
    runtime = ("--runtime", "runc") if shutil.which("runc", path=os.environ.get("PATH", "") + ":/usr/sbin") else ()
    yield Tool(
        (
            program("podman"), "--root", str(folder / "root"), "--runroot", str(folder / "run"),
            "--tmpdir", str(folder / "tmp"), "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs",
            "--events-backend", "none", *runtime,
        )
    )  # fmt: skip
    unmount(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    as_root()
    folder = tmp_path_factory.mktemp("buildah")
    yield Tool(
        (
            program("buildah"),
            "--root",
            str(folder / "root"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "overlay",
        )
    )
    unmount(folder)


def unmount(folder: Path) -> None:
    """Take away what a tool has left mounted below `folder`, then the folder."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def skopeo() -> Tool:
    return Tool((program("skopeo"),))


@pytest.fixture(scope="session")
def umoci() -> Tool:
    return Tool((program("umoci"),))

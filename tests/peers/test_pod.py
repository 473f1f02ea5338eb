"""Builds where people have to build: in a default container of real Docker, and a real application in every tier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import debian, test_tiers
from tests.building import environment, image_of
from tests.peers.tools import CERTIFICATES, EXAMPLES, LIMITS, ROOT, Tool
from tests.test_tiers import emulated, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.peer]

PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL")

WEB = """
set -e
"$0" -m builder import "$1" debian:bookworm
"$0" -m builder build --progress=plain -t web $3 "$2"
"$0" -m builder history --format '{{.Size}}' web
"""


class Container:
    """Docker's default container with this machine's programs in it, and pybuild; the store goes with it."""

    def __init__(self, docker: Tool) -> None:
        self._docker = docker

    def run(self, *words: str, options: tuple[str, ...] = (), shared: Path | None = None) -> tuple[int, str, str]:
        """Exit code, output and errors of `words` in a new container. shared: a folder that it sees, read-only."""
        places = {"/usr", str(ROOT), sys.prefix, sys.base_prefix, *(str(shared),) * bool(shared)}
        mounts = [f"--volume={place}:{place}:ro" for place in sorted(places) if place == "/usr" or place[:5] != "/usr/"]
        variables = [f"--env={name}" for name in PROXIES if name in os.environ]
        for again in (True, True, True, False):
            done = self._docker.run(
                "run", "--rm", "--network=host", *LIMITS, *mounts, *variables, "--env=PYTHONDONTWRITEBYTECODE=1",
                f"--env=PYTHONPATH={ROOT}", *options, "machine", *words,
            )  # fmt: skip
            # dockerd 20.10 on a new kernel sometimes starts before the container's mounts are to be seen.
            if not again or not done.stderr.startswith("exec "):
                return done.returncode, done.stdout, done.stderr
        raise AssertionError


@pytest.fixture(scope="module")
def container(docker: Tool, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """An image of nothing but the links by which this machine's programs are found."""
    root = tmp_path_factory.mktemp("machine")
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("usr", "etc", "root", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    archive = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    docker("import", archive, "machine")
    return Container(docker)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not test_tiers.BUSYBOX.exists():
        pytest.skip("needs /bin/busybox (busybox-static)")
    folder = tmp_path_factory.mktemp("context")
    test_tiers.fill(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pybuild-pod-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_tier_is_told_with_its_reason(container: Container) -> None:
    code, out, err = container.run(sys.executable, "-m", "builder", "info")
    assert code == 0, err
    assert "\ntier:          pod\n" in out
    assert "root without the right to mount" in out
    assert "seccomp" in next(line for line in out.splitlines() if line.startswith("for more:"))


@pytest.mark.parametrize("options", [(), ("--security-opt=no-new-privileges",)], ids=["default", "no-new-privs"])
@pytest.mark.parametrize("name", ["files", "runs"])
def test_the_layers_are_those_of_a_machine_of_ones_own(
    container: Container, context: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    if reason := missing("privileged"):
        pytest.skip(reason)
    expected = test_tiers.built("privileged", context, name, tmp_path)
    code, out, err = container.run(
        "sh", "-c", '"$0" -m builder build -o type=oci,dest=/tmp/out.tar "$@" >&2 && base64 /tmp/out.tar',
        sys.executable, "--progress=plain", "-f", str(context / name), str(context),
        options=(*options, "--env=SOURCE_DATE_EPOCH=1000000000"), shared=context,
    )  # fmt: skip
    assert code == 0, err[-3000:]
    layout = tmp_path / "in-docker"
    layout.mkdir()
    packed = subprocess.run(["base64", "-d"], input=out.encode(), check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", layout, "-x"], input=packed, check=True)
    image = image_of(layout)
    assert image.files == expected.files
    # In the last, an overlay says that a directory is opaque, and a scan which names are gone.
    assert image.diff_ids[:-1] == expected.diff_ids[:-1]


def test_what_a_container_can_not_do_is_said(container: Container, context: Path) -> None:
    code, _, err = container.run(
        sys.executable, "-m", "builder", "build", "--require-isolation=namespaces", "-f", str(context / "runs"),
        str(context), shared=context,
    )  # fmt: skip
    assert code == 1
    assert "namespaces" in err
    assert "pod" in err


@pytest.mark.parametrize("tier", ["rootless", "rootless-single", "hardened", "docker"])
def test_a_real_application_in_every_tier(request: pytest.FixtureRequest, tier: str, open_folder: Path) -> None:
    """apt-get, useradd, a virtual environment, mounts, COPY with owners: which peers' tests build as root."""
    rootfs, reason = debian.rootfs()
    if rootfs is None:
        pytest.skip(reason)
    shutil.copy(rootfs, open_folder / "debian.tar")
    shutil.copytree(EXAMPLES / "python-web", open_folder / "web")
    shutil.copy(CERTIFICATES, open_folder / "ca") if CERTIFICATES.exists() else (open_folder / "ca").write_text("")
    words = [
        sys.executable,
        str(open_folder / "debian.tar"),
        str(open_folder / "web"),
        f"--secret=id=ca,src={open_folder / 'ca'}",
    ]
    if tier == "docker":
        container: Container = request.getfixturevalue("container")
        code, out, err = container.run("sh", "-c", WEB, *words, shared=open_folder)
    else:
        if reason := missing(tier, run=True):
            pytest.skip(reason)
        done = subprocess.run(
            [*emulated(tier), "sh", "-c", WEB, *words], cwd="/", env=environment(PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        code, out, err = done.returncode, done.stdout, done.stderr
    if "Temporary failure resolving" in err or "Could not resolve" in err:
        pytest.skip("needs Debian's package servers, which can not be reached")
    assert code == 0, err[-4000:]
    assert len(out.splitlines()) > 10

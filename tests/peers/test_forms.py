"""Other tools accept what pybuild writes in every form: compressions, Docker's media types, squashed, for platforms."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance import compare
from tests.peers.conftest import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.tools import Tool

pytestmark = [pytest.mark.slow, pytest.mark.peer]

DOCKERFILE = """\
FROM base
RUN mkdir /data && echo one > /data/a && ln /data/a /data/b && chmod 4711 /data/a \\
    && truncate -s 2000000 /data/zeros && echo x > /gone
RUN rm /gone && mkdir /later
COPY f /data/kept/
CMD ["cat", "/data/a"]
"""
SEVERAL = """\
FROM scratch
ARG TARGETARCH
COPY f /f
COPY <<EOF /for
$TARGETARCH
EOF
CMD ["/f"]
"""
FORMS = (
    "compression=zstd,force-compression=true",
    "compression=zstd,compression-level=19,force-compression=true",
    "compression=uncompressed,force-compression=true",
    "compression-level=9,force-compression=true",
    "oci-mediatypes=false",
    "oci-mediatypes=false,compression=uncompressed,force-compression=true",
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "several").write_text(SEVERAL)
    (folder / "f").write_text("f\n")
    return folder


@pytest.fixture(scope="module")
def plain(pybuild: Tool, context: Path) -> compare.Image:
    out = context.with_name("plain.tar")
    pybuild("build", "-t", "forms:1", "--build-context", "base=host:", "-o", f"type=oci,dest={out}", context)
    return compare.load_image(out)


@pytest.mark.parametrize("form", FORMS)
def test_skopeo_copies_every_form(
    pybuild: Tool, skopeo: Tool, context: Path, plain: compare.Image, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out.tar"
    pybuild("build", "-t", "forms:1", "--build-context", "base=host:", "-o", f"type=oci,dest={out},{form}", context)
    # To uncompressed layers, so that every one is unpacked and its diff id compared.
    skopeo("copy", "-q", "--dest-decompress", f"oci-archive:{out}", f"dir:{tmp_path}/dir")
    found = compare.load_image(out)
    assert found.files == plain.files
    assert found.config == plain.config


def test_umoci_unpacks_a_squashed_image(
    pybuild: Tool, umoci: Tool, skopeo: Tool, context: Path, plain: compare.Image, tmp_path: Path
) -> None:
    out = tmp_path / "layout"
    pybuild(
        "build", "-t", "squashed:1", "--squash", "--build-context", "base=host:",
        "-o", f"type=oci,tar=false,dest={out}", context,
    )  # fmt: skip
    assert len(json.loads(skopeo("inspect", f"oci:{out}:1"))["Layers"]) == 2
    if shutil.which("newuidmap") is not None or Path("/proc/self/uid_map").read_text().split()[0] == "0":
        umoci("unpack", "--image", f"{out}:1", tmp_path / "bundle")
        root = tmp_path / "bundle" / "rootfs"
        assert (root / "data/a").read_text() == "one\n"
        assert (root / "data/a").stat().st_ino == (root / "data/b").stat().st_ino
        assert not (root / "gone").exists()
    found = compare.load_image(out)
    assert found.files == plain.files


def test_podman_runs_a_squashed_image_in_zstd(pybuild: Tool, podman: Tool, context: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    pybuild(
        "build", "-t", "squashed:1", "--squash", "--build-context", "base=host:",
        "-o", f"type=oci,dest={out},compression=zstd,force-compression=true", context,
    )  # fmt: skip
    podman("load", "-q", "-i", out)
    listed = podman("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
    assert "squashed:1" in listed


# ---------------------------------------------------------------- several platforms


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on a free port of loopback."""
    import socket

    daemon = program("docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: {address}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([daemon, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            import urllib.request

            deadline = time.monotonic() + 30
            while True:
                try:
                    with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
                        break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        pytest.skip(f"docker-registry does not start: {(folder / 'log').read_text()[-500:]}")
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def index(pybuild: Tool, skopeo: Tool, registry: str, context: Path) -> str:
    """The name of an index of three platforms, in the registry."""
    platforms = "linux/amd64,linux/arm64,linux/arm/v7"
    out = context.with_name("index.tar")
    pybuild(
        "build", "-t", "several:1", "--platform", platforms, "-f", context / "several", "-o", f"type=oci,dest={out}",
        context,
    )  # fmt: skip
    name = f"{registry}/several:1"
    skopeo("copy", "-q", "--all", "--dest-tls-verify=false", f"oci-archive:{out}", f"docker://{name}")
    return name


def test_skopeo_shows_the_index(skopeo: Tool, index: str) -> None:
    raw = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{index}"))
    assert raw["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert [each["platform"] for each in raw["manifests"]] == [
        {"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
    ]  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", "linux/arm/v7"])
def test_docker_pulls_each_platform(docker: Tool, index: str, platform: str) -> None:
    docker("pull", "-q", "--platform", platform, index)
    (found,) = json.loads(docker("image", "inspect", index))
    wanted = platform.split("/")
    assert (found["Os"], found["Architecture"]) == (wanted[0], wanted[1])
    docker("rmi", "-f", index)


def test_podman_pulls_a_platform(podman: Tool, index: str) -> None:
    podman("pull", "-q", "--tls-verify=false", "--platform", "linux/arm64", index)
    (found,) = json.loads(podman("image", "inspect", index))
    assert found["Architecture"] == "arm64"


@pytest.mark.docker
def test_docker_loads_an_archive_of_several_platforms(
    docker: Tool, pybuild: Tool, context: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tar"
    pybuild(
        "build", "-t", "loaded:1", "--platform", "linux/amd64,linux/arm64", "-f", context / "several",
        "-o", f"type=docker,dest={out}", context,
    )  # fmt: skip
    docker("load", "-q", "-i", out)
    (found,) = json.loads(docker("image", "inspect", "loaded:1"))
    assert found["Architecture"] == "amd64"

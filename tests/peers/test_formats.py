"""skopeo and umoci accept pybuild's store, its archives and its layouts."""

from __future__ import annotations

import json
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.conformance import compare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.tools import Tool

pytestmark = [pytest.mark.slow, pytest.mark.peer]

DOCKERFILE = """\
FROM base AS one
RUN mkdir -p /data/old /data/kept && echo one > /data/old/file && ln -s kept /data/link \\
    && echo x > /data/a && ln /data/a /data/b && chmod 4711 /data/a && mkfifo /data/pipe
RUN rm -r /data/old && mkdir /data/old && echo two > /data/old/other
COPY --chown=12:34 --chmod=0640 f /data/kept/
RUN rm /data/link && chmod 1777 /data/kept
ENV A=1 B="two words"
LABEL org.example.title="A title"
EXPOSE 80 53/udp
VOLUME /data/kept
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /data/a"]
"""


@pytest.fixture(scope="module")
def built(pybuild: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image as oci.tar, docker.tar, layout/ and fs.tar; in the store it is formats:1."""
    folder = tmp_path_factory.mktemp("formats")
    context = folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "f").write_text("f\n")
    pybuild(
        "build", "-t", "formats:1", "--build-context", "base=host:",
        "-o", f"type=oci,dest={folder}/oci.tar", "-o", f"type=docker,dest={folder}/docker.tar",
        "-o", f"type=oci,tar=false,dest={folder}/layout", "-o", f"type=tar,dest={folder}/fs.tar", context,
    )  # fmt: skip
    return folder


def test_skopeo_inspects_all_of_them(skopeo: Tool, built: Path, store: Path) -> None:
    transports = [
        f"oci:{store}:formats:1",
        f"oci-archive:{built}/oci.tar:1",
        f"oci:{built}/layout:1",
        f"docker-archive:{built}/docker.tar:formats:1",
    ]
    found = [json.loads(skopeo("inspect", "--config", transport)) for transport in transports]
    assert all(config == found[0] for config in found)
    assert found[0]["config"]["Env"][-2:] == ["A=1", "B=two words"]


def test_skopeo_copies_and_checks_every_digest(skopeo: Tool, built: Path, store: Path, tmp_path: Path) -> None:
    skopeo("copy", "--insecure-policy", f"oci:{store}:formats:1", f"oci:{tmp_path}/a:1")
    skopeo("copy", "--insecure-policy", f"docker-archive:{built}/docker.tar", f"oci:{tmp_path}/b:1")
    left, right = compare.load_image(tmp_path / "a"), compare.load_image(tmp_path / "b")
    assert compare.diff_images(left, right, compare.Rules(history=True, created=True)) == []


@pytest.mark.root
@pytest.mark.parametrize("where", ["store", "layout"])
def test_umoci_unpacks_what_compare_reads(umoci: Tool, built: Path, store: Path, tmp_path: Path, where: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to unpack foreign owners")
    image = f"{store}:formats:1" if where == "store" else f"{built}/layout:1"
    umoci("raw", "unpack", "--image", image, tmp_path / "rootfs")
    data = tmp_path / "rootfs" / "data"
    assert sorted(path.name for path in data.iterdir()) == ["a", "b", "kept", "old", "pipe"]
    assert [path.name for path in (data / "old").iterdir()] == ["other"]
    assert (data / "a").stat().st_ino == (data / "b").stat().st_ino
    assert (data / "a").stat().st_mode & 0o7777 == 0o4711
    assert (data / "kept" / "f").stat().st_uid == 12
    assert (data / "kept").stat().st_mode & 0o7777 == 0o1777


def test_umoci_lists_the_store(umoci: Tool, built: Path, store: Path) -> None:
    # umoci takes no reference with a colon in some versions; listing shows what the index holds.
    assert "formats:1" in umoci("list", "--layout", store).splitlines()


@pytest.mark.root
def test_the_examples_outputs_agree(pybuild: Tool, umoci: Tool, built: Path, tmp_path: Path) -> None:
    """The flattened tar holds what an independent tool unpacks from the layers."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to unpack foreign owners")
    umoci("raw", "unpack", "--image", f"{built}/layout:1", tmp_path / "rootfs")
    with tarfile.open(built / "fs.tar") as tar:
        names = {member.name.removeprefix("./").rstrip("/"): member for member in tar}
    names.pop("", None)
    names.pop(".", None)
    root = tmp_path / "rootfs"
    there = {str(path.relative_to(root)): path for path in root.rglob("*")}
    assert set(names) == set(there)
    for name, member in names.items():
        status = there[name].lstat()
        assert (member.uid, member.gid) == (status.st_uid, status.st_gid), name
        if not member.issym():
            assert member.mode & 0o7777 == status.st_mode & 0o7777, name
        if member.isreg():
            assert member.size == status.st_size, name

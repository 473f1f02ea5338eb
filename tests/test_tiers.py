"""One context gives the same layers wherever it is built: by root, by an ordinary user, in a pod, with nothing."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests import building
from tests.building import ROOT, archive, environment, image_of, member, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.building import Image

TIER = ROOT / "tests" / "tiers" / "tier.py"
TIERS = ("privileged", "rootless", "rootless-single", "pod", "hardened")
BUSYBOX = Path("/bin/busybox")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs /bin/busybox (busybox-static)"),
]

FILES = """
FROM scratch
COPY base /
COPY --chown=1000:50 tree /owned/
COPY --chown=app --chmod=4750 tree/f /set-id
COPY --chown=0:7 --chmod=u=rwX,go= tree /private
ADD members.tar /unpacked/
ADD --chown=3:4 members.tar /given/
WORKDIR /made/by/workdir
USER app
COPY tree/f .
LABEL a=b
"""

RUNS = """
FROM scratch
COPY base /
COPY --chown=1000:50 tree /owned/
RUN echo made > /new && chmod 2755 /new && mkdir -p /d/e && ln -s ../new /d/link && ln /new /d/hard && mkfifo /d/p
RUN rm /owned/f && rm -r /owned/sub && mkdir /owned/new && echo x > /owned/new/other
RUN --mount=type=cache,target=/c --mount=type=bind,target=/b --mount=type=tmpfs,target=/t echo c > /c/x && ls /b /t
RUN cat /etc/hosts /dev/null && chmod 644 /etc/passwd && ls -la /etc && touch /tmp/a && rm /tmp/a
RUN echo more >> /etc/passwd && mv /d/e /d/f
RUN rm -r /tmp /owned/new && mkdir /owned/new && echo y > /owned/new/y
"""
"""In the last, an overlay says that the directory is opaque, and a scan which names are gone: the same result."""


class Member(NamedTuple):
    name: str
    kind: bytes
    mode: int
    owner: tuple[int, int]
    link: str
    content: str


@pytest.fixture(scope="module")
def context() -> Iterator[Path]:
    """A context that every user can read, which pytest's own folders are not for."""
    with tempfile.TemporaryDirectory(prefix="pybuild-tiers-") as name:
        Path(name).chmod(0o755)
        fill(Path(name))
        yield Path(name)


def fill(folder: Path) -> None:
    write(folder, {"base/etc/passwd": building.PASSWD, "base/etc/group": building.GROUP, "base/etc/hosts": "image\n"})
    write(folder, {"tree/f": "f\n", "tree/sub/g": "g\n", "base/tmp/": "", "base/bin/": ""})
    shutil.copy(BUSYBOX, folder / "base/bin/busybox")
    for name in ["sh", "cat", "chmod", "echo", "ls", "ln", "mkdir", "mkfifo", "mv", "rm", "touch"]:
        (folder / "base/bin" / name).symlink_to("busybox")
    (folder / "tree/link").symlink_to("f")
    members = (
        (member("a", uid=1234, gid=99, mode=0o640, size=1), b"a"),
        (member("d", tarfile.DIRTYPE, uid=5, gid=6, mode=0o1770), b""),
        (member("d/l", tarfile.SYMTYPE, uid=7, gid=8, linkname="../a"), b""),
        (member("d/null", tarfile.CHRTYPE, uid=7, gid=8, mode=0o666, devmajor=1, devminor=3), b""),
    )
    (folder / "members.tar").write_bytes(archive(*members))
    write(folder, {"files": FILES, "runs": RUNS})


@functools.cache
def missing(tier: str, *, run: bool = False) -> str:
    """Why the tier can not be had here."""
    if tier == "rootless" and not shutil.which("newuidmap"):
        return "needs newuidmap (package uidmap)"
    if tier == "hardened" and run and not (shutil.which("proot") and os.stat("/tmp").st_mode & 0o002):
        return "needs proot, which needs a /tmp that all may write to"
    if tier == "privileged":
        return "" if building.privileged() else "needs the right to mount"
    done = subprocess.run(
        [*emulated(tier), sys.executable, "-m", "builder", "info", "--format=json"],
        cwd="/", env=environment(PYTHONDONTWRITEBYTECODE="1"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if f'"tier": "{tier}"' not in done.stdout:
        return f"can not be emulated here: {(done.stdout + done.stderr)[-300:]}"
    return ""


def emulated(tier: str) -> list[str]:
    return [] if tier == "privileged" else [sys.executable, str(TIER), tier, "--"]


def built(tier: str, context: Path, name: str, folder: Path) -> Image:
    """The image of a Dockerfile, built in a tier, with a store of its own."""
    store = ["--root", str(folder / "store")] if tier == "privileged" else []
    done = subprocess.run(
        [*emulated(tier), sys.executable, "-m", "builder", "build", "--progress=plain", *store,
         "-f", str(context / name), "-o", "type=oci,dest=-", str(context)],
        cwd="/", env=environment(PYTHONDONTWRITEBYTECODE="1", SOURCE_DATE_EPOCH="1000000000"), capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    layout = folder / "layout"
    layout.mkdir()
    subprocess.run(["tar", "-C", layout, "-x"], input=done.stdout, check=True)
    return image_of(layout)


def layers(image: Image) -> list[list[Member]]:
    """What is in each layer, but for the times."""
    found = []
    for path in image.layers:
        with tarfile.open(path) as tar:
            members: list[Any] = []
            for info in tar:
                stream = tar.extractfile(info) if info.isreg() else None
                content = hashlib.sha256(stream.read()).hexdigest() if stream else ""
                owner = (info.uid, info.gid)
                members.append(Member(info.name, info.type, info.mode, owner, info.linkname, content))
        found.append(members)
    return found


@pytest.fixture(scope="module")
def expected(context: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    if reason := missing("privileged"):
        pytest.skip(reason)
    return {name: built("privileged", context, name, tmp_path_factory.mktemp(name)) for name in ("files", "runs")}


@pytest.mark.parametrize("tier", TIERS[1:])
def test_files_have_their_true_owners_in_every_tier(
    tier: str, context: Path, expected: dict[str, Image], tmp_path: Path
) -> None:
    if reason := missing(tier):
        pytest.skip(reason)
    image = built(tier, context, "files", tmp_path)
    found = {entry.name: entry for layer in layers(image) for entry in layer}
    assert found["owned/sub/g"].owner == (1000, 50)
    assert (found["set-id"].owner, found["set-id"].mode) == ((1000, 1000), 0o4750)
    assert found["unpacked/a"].owner == (1234, 99)
    assert (found["unpacked/d"].owner, found["unpacked/d"].mode) == ((5, 6), 0o1770)
    assert layers(image) == layers(expected["files"])
    assert image.config["config"] == expected["files"].config["config"]
    assert image.diff_ids == expected["files"].diff_ids


@pytest.mark.parametrize("tier", TIERS[1:])
def test_runs_change_the_same_in_every_tier(
    tier: str, context: Path, expected: dict[str, Image], tmp_path: Path
) -> None:
    if reason := missing(tier, run=True):
        pytest.skip(reason)
    image = built(tier, context, "runs", tmp_path)
    assert layers(image)[:-1] == layers(expected["runs"])[:-1]
    assert image.diff_ids[:-1] == expected["runs"].diff_ids[:-1]
    assert image.files == expected["runs"].files


def test_no_run_without_proot_is_said_plainly(context: Path) -> None:
    if reason := missing("hardened"):
        pytest.skip(reason)
    done = subprocess.run(
        [*emulated("hardened"), sys.executable, "-m", "builder", "build", "-f", str(context / "runs"), str(context)],
        cwd="/", env=environment(PYTHONDONTWRITEBYTECODE="1", PATH="/nowhere"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "RUN can not work in tier hardened: not root; user namespaces with mounts are refused" in done.stderr
    assert "no proot on PATH" in done.stderr
    assert "install proot" in done.stderr

"""The same Dockerfiles, built by Debian's buildah and by pybuild, give the same file system and configuration."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests import debian
from tests.conformance import compare
from tests.peers.tools import CERTIFICATES, EXAMPLES, LIMITS, Tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.peer]

# What differs from run to run of one and the same builder: logs with dates, and caches that hold times.
VOLATILE = [
    "/var/log/*", "/var/cache/*", "/var/lib/apt/lists*", "/root/.cache*", "*/__pycache__*",
]  # fmt: skip


@pytest.fixture(scope="session")
def buildah_debian(buildah: Tool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same Debian base, as pybuild has it, in buildah's store."""
    tar, reason = debian.rootfs()
    if tar is None:
        pytest.skip(reason)
    context = tmp_path_factory.mktemp("debian")
    shutil.copy(tar, context / "base.tar")
    (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
    buildah("build", "--format=oci", "-t", f"docker.io/library/debian:{debian.SUITE}", context)


def both(pybuild: Tool, buildah: Tool, context: Path, out: Path, *extra: str) -> list[str]:
    """How the two builders' images of `context` differ."""
    pybuild("build", "-t", "peer:1", "-o", f"type=oci,dest={out}/pybuild.tar", *extra, context)
    buildah(
        "build", "--format=oci", "--layers=false", "--pull=never", "--identity-label=false", "--isolation=oci",
        "--runtime=runc", "--network=host", *LIMITS, *extra, "-t", "peer:1", "-f", context / "Dockerfile", context,
    )  # fmt: skip
    buildah("push", "-q", "peer:1", f"oci-archive:{out}/buildah.tar:peer")
    ours, theirs = compare.load_image(out / "pybuild.tar"), compare.load_image(out / "buildah.tar")
    # buildah signs with a label, whatever --identity-label says; some versions keep no health check in OCI images, and
    # it has no ArgsEscaped, by which BuildKit and pybuild mark a CMD in shell form.
    theirs.config.get("Labels", {}).pop("io.buildah.version", None)
    if not theirs.config.get("Labels"):
        theirs.config.pop("Labels", None)
    rules = compare.Rules(ignore_globs=tuple(VOLATILE), ignore_config=("Healthcheck", "ArgsEscaped"))
    return compare.diff_images(ours, theirs, rules)


def test_multi_stage_example(
    pybuild: Tool, buildah: Tool, debian_base: str, buildah_debian: None, tmp_path: Path
) -> None:
    differences = both(pybuild, buildah, EXAMPLES / "c-multistage", tmp_path)
    # scratch: BuildKit and pybuild give it a PATH and a working directory, buildah nothing.
    assert [line for line in differences if not line.startswith(("config Env", "config WorkingDir"))] == []


def test_web_service_example(
    pybuild: Tool, buildah: Tool, debian_base: str, buildah_debian: None, web_image: str, tmp_path: Path
) -> None:
    secret = ["--secret", f"id=ca,src={CERTIFICATES}"] if CERTIFICATES.exists() else []
    differences = both(pybuild, buildah, EXAMPLES / "python-web", tmp_path, *secret)
    assert [line for line in differences if not line.startswith(("config Env", "config WorkingDir"))] == []


def test_files_owners_and_links(
    pybuild: Tool, buildah: Tool, debian_base: str, buildah_debian: None, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    (context / "tree" / "deep").mkdir(parents=True)
    (context / "tree" / "deep" / "run.sh").write_text("#!/bin/sh\necho run\n")
    (context / "tree" / "deep" / "run.sh").chmod(0o755)
    (context / "tree" / "link").symlink_to("deep/run.sh")
    (context / "Dockerfile").write_text(
        f"FROM debian:{debian.SUITE}\n"
        "ENV GREETING=hello\n"
        "WORKDIR /srv/app\n"
        "COPY --chown=daemon:daemon tree tree\n"
        "RUN ./tree/deep/run.sh > out && ln out other && rm -rf /usr/share/doc && touch -h tree/link\n"
        "RUN mkdir d && echo 1 > d/1 && chown 1000:1000 d/1 && chmod 6755 d/1\n"
        "RUN rm d/1 && rmdir d && echo file > d\n"
        "USER daemon\n"
        'CMD ["./out"]\n'
    )
    assert both(pybuild, buildah, context, tmp_path) == []

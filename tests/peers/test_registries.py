"""A real registry (Debian's docker-registry) between pybuild and docker, podman and skopeo, in both directions."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers.conftest import program
from tests.peers.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.peer("docker-registry")]

# `secret`, as htpasswd -B has it.
HTPASSWD = "me:$2b$05$4jgTCWmNp1yLjwvjwa8ZTugixj/gt0GeIGWrpP0L2TFFkM/iCnGOa\n"

DOCKERFILE = """\
FROM base
RUN mkdir /data && echo one > /data/file && ln /data/file /data/hard
COPY --chown=12:34 Dockerfile /data/
RUN rm /data/hard
ENV A=1
CMD ["cat", "/data/file"]
"""


@dataclass(frozen=True)
class Served:
    """A registry that runs. name: HOST:PORT; certificate: of its authority, where it has one."""

    name: str
    folder: Path
    certificate: Path | None = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", key, "-out", cert,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def serve(folder: Path, *, login: bool = False, tls: bool = False) -> Iterator[Served]:
    port = free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    document: dict[str, object] = {
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": http,
    }  # fmt: skip
    cert = None
    if tls:
        cert, key = certificate(folder)
        http["tls"] = {"certificate": str(cert), "key": str(key)}
    if login:
        (folder / "htpasswd").write_text(HTPASSWD)
        document["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(document))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program("docker-registry"), "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"docker-registry does not start here: {(folder / 'log').read_text()[-300:]}")
                time.sleep(0.05)
        yield Served(f"localhost:{port}" if tls else f"127.0.0.1:{port}", folder, cert)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("closed"), login=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("secure"), login=True, tls=True)


@pytest.fixture(scope="module")
def built(pybuild: Tool, tmp_path_factory: pytest.TempPathFactory) -> str:
    context = tmp_path_factory.mktemp("exchanged")
    (context / "Dockerfile").write_text(DOCKERFILE)
    pybuild("build", "-t", "exchanged:1", "--build-context", "base=host:", context)
    return pybuild("images", "--no-trunc", "-q", "exchanged:1").strip()


def another(pybuild: Tool, folder: Path, **environ: str) -> Tool:
    """pybuild on an empty store and with a home of its own."""
    more = {"PYBUILD_ROOT": str(folder / "store"), "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    return Tool(pybuild.words, (*pybuild.env, *{**more, "DOCKER_CONFIG": str(folder / "docker"), **environ}.items()))


def test_there_and_back(pybuild: Tool, built: str, plain: Served, tmp_path: Path) -> None:
    said = pybuild("push", "exchanged:1", f"{plain.name}/a/b:1")
    digest = said.splitlines()[-1].split()[2]
    other = another(pybuild, tmp_path)
    assert f"Digest: {digest}" in other("pull", f"{plain.name}/a/b:1")
    assert other("images", "--no-trunc", "-q").strip() == built
    assert "Pushed" not in other("push", f"{plain.name}/a/b:1")
    other("pull", f"{plain.name}/a/b@{digest}")
    missing = other.run("pull", f"{plain.name}/a/b:2")
    assert missing.returncode == 1
    assert "it has 1" in missing.stderr


def test_a_build_with_a_base_from_a_registry(pybuild: Tool, built: str, plain: Served, tmp_path: Path) -> None:
    pybuild("push", "exchanged:1", f"{plain.name}/base:1")
    (tmp_path / "Dockerfile").write_text(f"FROM {plain.name}/base:1\nRUN cat /data/file > /copy\n")
    other = another(pybuild, tmp_path)
    other("build", "-t", f"{plain.name}/made:1", "--push", tmp_path)
    # The base's layers were not sent: the registry took them over.
    log = other.run("push", f"{plain.name}/made:1", f"{plain.name}/again:1").stderr
    assert "taken over from another repository" in log
    assert built


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.peer("skopeo")
def test_skopeo_both_ways(pybuild: Tool, skopeo: Tool, built: str, plain: Served, tmp_path: Path, kind: str) -> None:
    form = [] if kind == "oci" else ["-o", f"type=registry,name={plain.name}/sk/{kind}:1,oci-mediatypes=false"]
    if form:
        (tmp_path / "Dockerfile").write_text("FROM exchanged:1\n")
        pybuild("build", *form, tmp_path)
    else:
        pybuild("push", "exchanged:1", f"{plain.name}/sk/{kind}:1")
    source = f"docker://{plain.name}/sk/{kind}:1"
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", source))
    assert inspected["Env"]
    skopeo("copy", "--insecure-policy", "--src-tls-verify=false", source, f"oci:{tmp_path}/layout:1")
    target = f"docker://{plain.name}/sk/back-{kind}:1"
    skopeo(
        "copy", "--insecure-policy", "--dest-tls-verify=false", "--format", "oci" if kind == "oci" else "v2s2",
        "--dest-compress-format", "zstd" if kind == "oci" else "gzip", f"oci:{tmp_path}/layout:1", target,
    )  # fmt: skip
    other = another(pybuild, tmp_path)
    other("pull", target.removeprefix("docker://"))
    assert json.loads(other("inspect", target.removeprefix("docker://")))[0]["Config"]["Cmd"] == ["cat", "/data/file"]
    out = tmp_path / "files"
    (tmp_path / "Dockerfile").write_text(f"FROM {target.removeprefix('docker://')}\n")
    other("build", "-o", out, tmp_path)
    assert (out / "data" / "file").read_text() == "one\n"
    assert not (out / "data" / "hard").exists()


@pytest.mark.peer("podman")
def test_podman_both_ways(pybuild: Tool, podman: Tool, built: str, plain: Served, tmp_path: Path) -> None:
    name = f"{plain.name}/pod/app:1"
    pybuild("push", "exchanged:1", name)
    podman("pull", "--tls-verify=false", name)
    assert podman("images", "--no-trunc", "-q", name).strip() == built
    podman("tag", name, f"{plain.name}/pod/back:1")
    podman("push", "--tls-verify=false", f"{plain.name}/pod/back:1")
    other = another(pybuild, tmp_path)
    other("pull", f"{plain.name}/pod/back:1")
    assert other("images", "--no-trunc", "-q").strip() == built


@pytest.mark.docker
def test_docker_both_ways(pybuild: Tool, docker: Tool, built: str, plain: Served, tmp_path: Path) -> None:
    name = f"{plain.name}/dock/app:1"
    pybuild("push", "exchanged:1", name)
    docker("pull", name)
    assert docker("images", "--no-trunc", "-q", name).strip() == built
    docker("tag", name, f"{plain.name}/dock/back:1")
    docker("push", f"{plain.name}/dock/back:1")
    other = another(pybuild, tmp_path)
    other("pull", f"{plain.name}/dock/back:1")
    assert other("images", "--no-trunc", "-q").strip() == built


def login(tool: Tool, registry: str, password: str = "secret", *flags: str) -> subprocess.CompletedProcess[str]:
    return tool.run("login", "-u", "me", "-p", password, *flags, registry)


def test_a_registry_that_asks_for_a_password(pybuild: Tool, built: str, closed: Served, tmp_path: Path) -> None:
    tool = Tool(pybuild.words, (*pybuild.env, ("DOCKER_CONFIG", str(tmp_path / "docker"))))
    name = f"{closed.name}/a/b:1"
    refused = tool.run("push", "exchanged:1", name)
    assert refused.returncode == 1
    assert f"pybuild login {closed.name}" in refused.stderr
    wrong = login(tool, closed.name, "wrong")
    assert (wrong.returncode, "is wrong" in wrong.stderr) == (1, True)
    assert login(tool, closed.name).returncode == 0
    assert (tmp_path / "docker" / "config.json").stat().st_mode & 0o777 == 0o600
    tool("push", "exchanged:1", name)
    tool("logout", closed.name)
    assert tool.run("pull", name).returncode == 1
    assert built


@pytest.mark.docker
def test_dockers_login_is_pybuilds(pybuild: Tool, docker: Tool, built: str, closed: Served, tmp_path: Path) -> None:
    mine = (("DOCKER_CONFIG", str(tmp_path / "docker")),)
    docker = Tool(docker.words, (*docker.env, *mine))
    tool = Tool(pybuild.words, (*pybuild.env, *mine))
    docker("login", "-u", "me", "-p", "secret", closed.name)
    tool("push", "exchanged:1", f"{closed.name}/a/docker:1")
    docker("logout", closed.name)
    assert login(tool, closed.name).returncode == 0
    docker("pull", f"{closed.name}/a/docker:1")
    assert built


def test_tls(pybuild: Tool, built: str, secure: Served, tmp_path: Path) -> None:
    assert secure.certificate is not None
    tool = Tool(pybuild.words, (*pybuild.env, ("HOME", str(tmp_path)), ("DOCKER_CONFIG", str(tmp_path / "docker"))))
    name = f"{secure.name}/a/b:1"
    refused = login(tool, secure.name)
    assert refused.returncode == 1
    assert "is not trusted" in refused.stderr
    assert login(tool, secure.name, "secret", "--insecure").returncode == 0
    tool("push", "--tls-verify=false", "exchanged:1", name)
    folder = tmp_path / ".docker" / "certs.d" / secure.name
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(secure.certificate.read_bytes())
    assert login(tool, secure.name).returncode == 0
    tool("push", "exchanged:1", name)
    settings = tmp_path / "config" / "pybuild" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[registries."{secure.name}"]\nca = "{secure.certificate}"\n')
    other = another(pybuild, tmp_path, DOCKER_CONFIG=str(tmp_path / "docker"), HOME="/nonexistent")
    other("pull", name)
    assert other("images", "--no-trunc", "-q").strip() == built


def test_an_ordinary_user_pulls(
    pybuild: Tool, built: str, plain: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become an ordinary user")
    pybuild("push", "exchanged:1", f"{plain.name}/user:1")
    with tempfile.TemporaryDirectory(prefix="pybuild-user-", dir="/tmp") as folder:
        os.chown(folder, 65534, 65534)
        tool = another(pybuild, Path(folder))
        tool = Tool(("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *tool.words), tool.env)
        done = tool.run("pull", "-q", f"{plain.name}/user:1")
        if "Permission denied" in done.stderr and "python" in done.stderr:
            pytest.skip("this checkout can not be read by other users")
        assert done.returncode == 0, done.stderr
        assert tool("images", "--no-trunc", "-q").strip() == built


def test_a_blob_that_rots_in_the_registry(pybuild: Tool, plain: Served, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    (tmp_path / "large").write_bytes(os.urandom(300_000))
    name = f"{plain.name}/rotten:1"
    pybuild("build", "-t", name, "--push", tmp_path)

    kept = max(
        (plain.folder / "data").rglob("data"), key=lambda path: path.stat().st_mtime_ns * (path.stat().st_size > 2e5)
    )
    whole = kept.read_bytes()
    for damaged, message in (
        (whole[:-1000], "bytes of it instead of"),
        (whole + b"more", "bytes of it instead of"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "has the digest"),
    ):
        kept.write_bytes(damaged)
        other = another(pybuild, tmp_path)
        done = other.run("pull", name)
        assert (done.returncode, message in done.stderr) == (3, True), done.stderr
        assert "Traceback" not in done.stderr
        assert other("images", "-aq") == ""
        assert not list((tmp_path / "store" / "tmp").iterdir())
    kept.write_bytes(whole)
    assert "Downloaded" in another(pybuild, tmp_path)("pull", name)

#!/usr/bin/env python3
"""Push and pull an image of many layers with pybuild, skopeo and docker in turns; medians and ratios.

    registries.py                          500 MB in 20 layers, 5 rounds, all tools that are here
    registries.py --rounds 3 --size 100 --tools pybuild,skopeo

Needs docker-registry; docker needs root. Before each push the registry is started on an empty folder, so that nothing
is there or can be mounted; before each pull the store is empty. Tools take turns within a round, the order changes from
round to round. Times are of the whole command, with its start. What the three do is not quite the same: pybuild and
skopeo keep a pulled layer as it came, docker also unpacks it; docker compresses layers anew for a push.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
SEED = 20200102

if TYPE_CHECKING:
    from collections.abc import Callable


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layout(folder: Path, megabytes: int, layers: int) -> None:
    """An OCI layout with one image, whose layers hold noise: they are as large compressed as they are plain."""
    dice = random.Random(SEED)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_ids, described = [], []

    def keep(data: bytes, kind: str) -> dict[str, object]:
        (blobs / digest(data)[7:]).write_bytes(data)
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    for number in range(layers):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for part in range(4):
                data = dice.randbytes(megabytes * 1_000_000 // layers // 4)
                info = tarfile.TarInfo(f"layer{number}/{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        diff_ids.append(digest(out.getvalue()))
        packed = gzip.compress(out.getvalue(), 1, mtime=0)
        described.append(keep(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": keep(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"), "layers": described,
    }  # fmt: skip
    line = keep(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    line["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [line]}))


class Registry:
    """docker-registry on a folder that can be emptied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        self.name = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        document = {
            "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}}, "http": {"addr": self.name},
        }  # fmt: skip
        (folder / "config.yml").write_text(json.dumps(document))

    def fresh(self) -> None:
        self.stop()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.process = subprocess.Popen(
            ["docker-registry", "serve", self.folder / "config.yml"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


class Tool:
    """One tool: its image is ready, then push and pull are timed. clean: empties what a pull fills."""

    def __init__(
        self,
        push: list[str],
        pull: list[str],
        clean: Callable[[], object],
        env: dict[str, str],
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self.commands = {"push": push, "pull": pull}
        self.clean = clean
        self.env = env
        self.stop = stop

    def timed(self, what: str) -> float:
        started = time.monotonic()
        done = subprocess.run(self.commands[what], env={**os.environ, **self.env}, capture_output=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            raise SystemExit(f"{' '.join(self.commands[what])}\n{done.stderr.decode()[-2000:]}")
        return seconds


def pybuild(folder: Path, image: Path, registry: str) -> Tool:
    env = {"PYTHONPATH": str(ROOT), "PYBUILD_ROOT": str(folder / "store"), "HOME": str(folder)}
    words = [sys.executable, "-m", "builder"]
    (folder / "Dockerfile").write_text("FROM base\n")
    build = ["build", "-t", f"{registry}/bench:1", "--build-context", f"base=oci-layout://{image}:1", str(folder)]
    subprocess.run([*words, *build], env={**os.environ, **env}, check=True, capture_output=True)
    pulled = folder / "pulled"
    return Tool(
        [*words, "push", f"{registry}/bench:1"],
        [*words, "pull", "--root", str(pulled), f"{registry}/bench:1"],
        lambda: shutil.rmtree(pulled, ignore_errors=True),
        env,
    )


def skopeo(folder: Path, image: Path, registry: str) -> Tool:
    words = ["skopeo", "copy", "--insecure-policy"]
    pulled = folder / "pulled"

    def clean() -> None:
        shutil.rmtree(pulled, ignore_errors=True)
        # It remembers where blobs were.
        shutil.rmtree(folder / ".local", ignore_errors=True)
        shutil.rmtree("/var/lib/containers/cache", ignore_errors=True) if os.environ.get("BENCH_ROOT_CACHE") else None

    return Tool(
        [*words, "--dest-tls-verify=false", f"oci:{image}:1", f"docker://{registry}/bench:1"],
        [*words, "--src-tls-verify=false", f"docker://{registry}/bench:1", f"oci:{pulled}:1"],
        clean,
        {"HOME": str(folder), "XDG_DATA_HOME": str(folder / ".local")},
    )


def docker(folder: Path, image: Path, registry: str) -> Tool:
    address = f"unix:///tmp/pybuild-bench-{os.getpid()}.sock"
    env = {"DOCKER_HOST": address, "DOCKER_CONFIG": str(folder / "config")}
    (folder / "daemon.json").write_text("{}")
    daemon = subprocess.Popen(
        [
            "dockerd", "--host", address, "--data-root", folder / "data", "--exec-root", folder / "exec",
            "--pidfile", folder / "pid", "--config-file", folder / "daemon.json", "--bridge=none", "--iptables=false",
            "--ip6tables=false",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", *words], env={**os.environ, **env}, check=check, capture_output=True)

    while run("version", check=False).returncode:
        if daemon.poll() is not None:
            raise SystemExit("dockerd does not start")
        time.sleep(0.2)
    archive = folder / "image.tar"
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{image}:1", f"docker-archive:{archive}:{registry}/bench:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    run("load", "-i", str(archive))
    archive.unlink()

    def stop() -> None:
        daemon.terminate()
        daemon.wait()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", line.split()[4]], check=False)

    def clean() -> None:
        run("rmi", "-f", f"{registry}/pulled/bench:1", f"{registry}/bench:1", check=False)

    return Tool(["docker", "push", f"{registry}/bench:1"], ["docker", "pull", f"{registry}/bench:1"], clean, env, stop)


MAKERS = {"pybuild": pybuild, "skopeo": skopeo, "docker": docker}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--size", type=int, default=500, help="megabytes")
    options.add_argument("--layers", type=int, default=20)
    options.add_argument("--tools", default="pybuild,skopeo,docker")
    given = options.parse_args()
    names = [name for name in given.tools.split(",") if name == "pybuild" or shutil.which(name)]
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="pybuild-bench-") as top:
        folder = Path(top)
        layout(folder / "image", given.size, given.layers)
        (folder / "registry").mkdir()
        registry = Registry(folder / "registry")
        tools: dict[str, Tool] = {}
        try:
            for name in names:
                (folder / name).mkdir()
                tools[name] = MAKERS[name](folder / name, folder / "image", registry.name)
            for what in ("push", "pull"):
                # All pushes come first, as docker's image is gone after its pull.
                for number in range(given.rounds + 1):
                    order = names[number % len(names) :] + names[: number % len(names)]
                    for name in order:
                        if what == "push":
                            registry.fresh()
                        tools[name].clean() if what == "pull" or name != "docker" else None
                        seconds = tools[name].timed(what)
                        if number:  # the first round warms the page cache
                            times.setdefault((what, name), []).append(seconds)
        finally:
            registry.stop()
            for tool in tools.values():
                tool.stop()
    print(f"{given.size} MB in {given.layers} layers, {given.rounds} rounds, medians")
    for what in ("push", "pull"):
        base = statistics.median(times[what, names[0]])
        for name in names:
            found = times[what, name]
            middle = statistics.median(found)
            print(
                f"{what}  {name:8}  {middle:6.2f} s  {given.size / middle:6.0f} MB/s  {middle / base:5.2f}x"
                f"   ({min(found):.2f} to {max(found):.2f})"
            )


if __name__ == "__main__":
    main()

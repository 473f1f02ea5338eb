"""Several machines and one registry: who builds what, what goes over the wire, how long it takes.

    python -m tests.benchmarks.builders [--builders 8] [--seconds 1.0] [--megabytes 4]

Each builder is a network namespace of its own with a store of its own, joined by a bridge to the one in which Debian's
docker-registry runs. Needs root, `ip`, `unshare`, `nsenter`, `docker-registry` and a static busybox; all that it makes
is gone at the end. Bytes are those that the registry's side of each builder's cable has counted, headers and all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.building import busybox, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBNET = "10.213.77"
PORT = 5000

STAGE = """\
FROM base AS {name}
RUN sleep {seconds}; dd if=/dev/urandom of=/{name}1 bs=1048576 count={megabytes} 2>/dev/null
RUN sleep {seconds}; dd if=/dev/urandom of=/{name}2 bs=1048576 count={megabytes} 2>/dev/null
RUN sleep {seconds}; cat /{name}1 /{name}2 > /{name}
"""
LAST = """\
FROM base
COPY --from=a /a /a
COPY --from=b /b /b
COPY --from=c /c /c
COPY file /file
RUN sleep {seconds}; cat /a /b /c | wc -c > /size
"""


@dataclass(frozen=True)
class Run:
    """What one round came to."""

    title: str
    seconds: float
    built: int
    hits: int
    to_registry: int
    from_registry: int
    images: int


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Place:
    """A builder and its namespace. cable: the end of its cable at the bridge. holder: a process that keeps it alive."""

    cable: str
    holder: int

    def words(self, *words: str) -> list[str]:
        """A command line that is carried out in it."""
        return ["nsenter", f"--net=/proc/{self.holder}/ns/net", *words]

    def counted(self, what: str) -> int:
        return int(Path(f"/sys/class/net/{self.cable}/statistics/{what}_bytes").read_text())


@contextmanager
def network(count: int) -> Iterator[list[Place]]:
    """A bridge, and for each builder a network namespace that is joined to it."""
    mark = f"pb{os.getpid() % 100000}"
    own = os.readlink("/proc/self/ns/net")
    places = []
    with ExitStack() as undo:
        ip("link", "add", mark, "type", "bridge")
        undo.callback(ip, "link", "del", mark)
        ip("addr", "add", f"{SUBNET}.1/24", "dev", mark)
        ip("link", "set", mark, "up")
        for number in range(count):
            holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
            undo.callback(holder.wait)
            undo.callback(holder.terminate)
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                time.sleep(0.01)
            place = Place(f"{mark}v{number}", holder.pid)
            ip("link", "add", place.cable, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
            ip("link", "set", place.cable, "master", mark, "up")
            for words in (
                ("addr", "add", f"{SUBNET}.{10 + number}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                subprocess.run(place.words("ip", *words), check=True)
            places.append(place)
        yield places


def moved(places: list[Place]) -> tuple[int, int]:
    """Bytes that came from the builders, and that went to them."""
    return sum(place.counted("rx") for place in places), sum(place.counted("tx") for place in places)


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """docker-registry on the bridge; its name."""
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n"
        f"    rootdirectory: {folder}/data\nhttp:\n  addr: {SUBNET}.1:{PORT}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        import socket

        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((f"{SUBNET}.1", PORT), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit((folder / "log").read_text()) from None
                time.sleep(0.05)
        yield f"{SUBNET}.1:{PORT}"
    finally:
        process.terminate()
        process.wait()


def build(title: str, places: list[Place], stores: Path, context: Path, cache: str) -> Run:
    """One round: a build in each namespace, all begun at once, each with a new store."""
    shutil.rmtree(stores, ignore_errors=True)
    words = [sys.executable, "-m", "builder", "build", "--progress=rawjson", f"--build-context=base={busybox()}"]
    words += [f"--cache-from=type=registry,ref={cache},registry.insecure=true"] if cache else []
    words += [f"--cache-to=type=registry,ref={cache},registry.insecure=true"] if cache else []
    before = moved(places)
    started = time.monotonic()
    running = [
        subprocess.Popen(
            place.words(*words, "-t", "app", str(context)),
            env=environment(PYBUILD_ROOT=str(stores / place.cable)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    outputs = [process.communicate()[1] for process in running]
    seconds = time.monotonic() - started
    after = moved(places)
    ended = []
    images = set()
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise SystemExit(f"{title}: exit code {process.returncode}\n{output}")
        events = [json.loads(line) for line in output.splitlines() if line.startswith('{"time"')]
        for event in events:
            if event["event"] == "warning":
                print(f"{title}: warning: {event['message']}", file=sys.stderr)
        ended += [event for event in events if event["event"] == "step-finished"]
        images |= {event["image"] for event in events if event["event"] == "build-finished"}
    built = sum(not event["cached"] for event in ended)
    return Run(title, seconds, built, len(ended) - built, after[0] - before[0], after[1] - before[1], len(images))


def main() -> None:
    """Measure and print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builders", type=int, default=8)
    parser.add_argument("--seconds", default="1", help="how long each RUN takes")
    parser.add_argument("--megabytes", type=int, default=4, help="what each RUN makes")
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("ip") or not shutil.which("docker-registry"):
        raise SystemExit("needs root, ip (iproute2) and docker-registry")
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="pybuild-builders-")))
        context = folder / "context"
        context.mkdir()
        (context / "file").write_text("a file\n")
        stages = [STAGE.format(name=name, **vars(options)) for name in "abc"]
        (context / "Dockerfile").write_text("".join([*stages, LAST.format(**vars(options))]))
        places = opened.enter_context(network(options.builders))
        host = opened.enter_context(registry(folder / "registry"))
        stores = folder / "stores"
        count = options.builders
        runs = [
            build("1 builder, no cache", places[:1], stores, context, ""),
            build(f"{count} builders, no cache", places, stores, context, ""),
            build("1 builder, empty cache", places[:1], stores, context, f"{host}/one"),
            build(f"{count} builders, empty cache", places, stores, context, f"{host}/many"),
            build(f"{count} builders, full cache", places, stores, context, f"{host}/many"),
        ]
    print("| round | steps built | hits | MB to the registry | MB from it | images | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        print(
            f"| {run.title} | {run.built} | {run.hits} | {run.to_registry / 1e6:.1f} | {run.from_registry / 1e6:.1f} "
            f"| {run.images} | {run.seconds:.1f} |"
        )


if __name__ == "__main__":
    main()

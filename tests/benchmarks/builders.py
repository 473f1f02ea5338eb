"""Several machines and one registry: who builds what, what goes over the wire, how long it takes.

    python -m tests.benchmarks.builders [--builders 8] [--seconds 1.0] [--megabytes 4]

Each builder is a network namespace of its own with a store of its own, joined by a bridge to the one in which Debian's
docker-registry runs. Needs root, `ip`, `docker-registry` and a static busybox; all that it makes is gone at the end.
Bytes are those that the registry's side of each builder's cable has counted, headers and all.
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


@contextmanager
def network(count: int) -> Iterator[list[str]]:
    """A bridge, and for each builder a namespace that is joined to it; their names."""
    mark = f"pb{os.getpid() % 100000}"
    names = [f"{mark}-{number}" for number in range(count)]
    with ExitStack() as undo:
        ip("link", "add", mark, "type", "bridge")
        undo.callback(ip, "link", "del", mark)
        ip("addr", "add", f"{SUBNET}.1/24", "dev", mark)
        ip("link", "set", mark, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            cable = f"{mark}v{number}"
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", cable, "master", mark, "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{10 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def moved(names: list[str]) -> tuple[int, int]:
    """Bytes that came from the builders, and that went to them."""
    came = went = 0
    for name in names:
        mark, _, number = name.rpartition("-")
        counters = Path(f"/sys/class/net/{mark}v{number}/statistics")
        came += int((counters / "rx_bytes").read_text())
        went += int((counters / "tx_bytes").read_text())
    return came, went


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


def build(title: str, names: list[str], stores: Path, context: Path, cache: str) -> Run:
    """One round: a build in each namespace, all begun at once, each with a new store."""
    shutil.rmtree(stores, ignore_errors=True)
    words = [sys.executable, "-m", "builder", "build", "--progress=rawjson", f"--build-context=base={busybox()}"]
    words += [f"--cache-from=type=registry,ref={cache},registry.insecure=true"] if cache else []
    words += [f"--cache-to=type=registry,ref={cache},registry.insecure=true"] if cache else []
    before = moved(names)
    started = time.monotonic()
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *words, "-t", "app", str(context)],
            env=environment(PYBUILD_ROOT=str(stores / name)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    outputs = [process.communicate()[1] for process in running]
    seconds = time.monotonic() - started
    after = moved(names)
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
        names = opened.enter_context(network(options.builders))
        host = opened.enter_context(registry(folder / "registry"))
        stores = folder / "stores"
        count = options.builders
        runs = [
            build("1 builder, no cache", names[:1], stores, context, ""),
            build(f"{count} builders, no cache", names, stores, context, ""),
            build("1 builder, empty cache", names[:1], stores, context, f"{host}/one"),
            build(f"{count} builders, empty cache", names, stores, context, f"{host}/many"),
            build(f"{count} builders, full cache", names, stores, context, f"{host}/many"),
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

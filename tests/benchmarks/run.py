#!/usr/bin/env python3
"""Build the same contexts with pybuild, buildah and Docker's BuildKit in turns, and print medians and ratios.

    run.py                             all cases, all builders that are here, 3 rounds
    run.py --rounds 5 --cases runs,noop --builders pybuild,buildkit
    run.py --scale 0.1                 smaller contexts, for a first look
    run.py --cases steps10,steps100,steps1000,files1000,files100000
                                       rebuilds of which all is in the cache, by their size: not done unless asked for

Needs root, and a static busybox for the base. Every builder gets a store of its own in a temporary folder; dockerd is
started on a private socket and stopped by its process id. The builders take turns within a round, so that a machine
that slows down slows all of them. Peak memory is that of all the builder's processes together: for a daemon, of the
daemon's with its children.

What each case times is the build alone, from the command's start to its end, the image kept in the builder's store.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.conformance import bases  # noqa: E402 - found from anywhere by the line above

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=8192:8192")
SEED = 20200102


# ---------------------------------------------------------------- contexts


@dataclass(frozen=True)
class Case:
    """One measured build. prepare: makes the context. change: what happens before each timed build but the first.

    warm: the timed build comes after one that filled the cache; otherwise the builder's cache is dropped first.
    """

    name: str
    title: str
    prepare: Callable[[Path, float], None]
    change: Callable[[Path, int], None] | None = None
    warm: bool = False


def runs(context: Path, scale: float) -> None:
    write_runs(context, [max(1, int(30 * scale))])


def chain(context: Path, scale: float) -> None:
    write_runs(context, [max(1, int(100 * scale))])


def stages(context: Path, scale: float) -> None:
    write_runs(context, [max(1, int(25 * scale))] * 4)


def write_runs(context: Path, counts: list[int]) -> None:
    """A stage of so many RUNs for each count; the last takes a file of each other."""
    lines: list[str] = []
    for stage, count in enumerate(counts):
        lines.append(f"FROM busybox AS s{stage}")
        lines += [f"RUN echo {stage} {number} > /file{number}" for number in range(count)]
    lines += [f"COPY --from=s{stage} /file0 /from{stage}" for stage in range(len(counts) - 1)]
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")


def many_files(context: Path, scale: float) -> None:
    """20,000 files, 120 MB, half of it text that compresses."""
    (context / "Dockerfile").write_text("FROM busybox\nCOPY tree /tree\n")
    tree(context / "tree", int(20_000 * scale), 6_000)


def tree(folder: Path, count: int, size: int) -> None:
    dice = random.Random(SEED)
    noise = dice.randbytes(size * 4)
    text = b"the quick brown fox jumps over the lazy dog\n" * (size // 44 + 1)
    for number in range(count):
        directory = folder / f"{number // 2000:02d}" / f"{number // 100 % 20:02d}"
        directory.mkdir(parents=True, exist_ok=True)
        start = dice.randrange(size * 3)
        half = size // 2
        (directory / f"{number}.txt").write_bytes(b"%d\n" % number + noise[start : start + half] + text[:half])


def big_file(context: Path, scale: float) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCOPY big /big\n")
    dice = random.Random(SEED)
    with (context / "big").open("wb") as out:
        # Runs of zeros between noise: neither all alike nor incompressible.
        for _ in range(int(250 * scale)):
            out.write(dice.randbytes(1 << 19))
            out.write(bytes(1 << 19))


def unpack(context: Path, scale: float) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\n"
        "RUN --mount=type=bind,source=tree.tar,target=/tree.tar mkdir /tree && tar -xf /tree.tar -C /tree\n"
    )
    folder = context / "tree"
    tree(folder, int(20_000 * scale), 3_000)
    with tarfile.open(context / "tree.tar", "w") as tar:
        tar.add(folder, ".")
    shutil.rmtree(folder)


def small_app(context: Path, scale: float) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\nWORKDIR /app\nCOPY requirements.txt .\nRUN mkdir lib && cp requirements.txt lib/\n"
        'COPY . .\nRUN wc -l app.py > lines && echo compiled > app.pyc\nCMD ["sh"]\n'
    )
    (context / "requirements.txt").write_text("bottle\n")
    for number in range(50):
        (context / f"module{number}.py").write_text(f"VALUE = {number}\n" * 100)
    (context / "app.py").write_text("print('hello')\n")


def steps(count: int) -> Callable[[Path, float], None]:
    """Half of the steps are RUNs, half COPYs; a hundred in a stage, as an image may have 127 layers."""

    def prepare(context: Path, scale: float) -> None:
        lines = []
        for number in range(max(1, int(count * scale))):
            stage, within = divmod(number, 100)
            if within == 0:
                lines.append(f"FROM busybox AS s{stage}")
                if stage:
                    # Each stage needs the one before, so that all of them are done, one after the other.
                    lines.append(f"COPY --from=s{stage - 1} /f{number - 1} /before")
                    continue
            lines.append(f"RUN echo {number} >/f{number}" if within % 2 else f"COPY f{number % 7} /f{number}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        for number in range(7):
            (context / f"f{number}").write_text(f"{number}\n")

    return prepare


def files(count: int) -> Callable[[Path, float], None]:
    """Small files, a hundred in a folder."""

    def prepare(context: Path, scale: float) -> None:
        (context / "Dockerfile").write_text("FROM busybox\nCOPY tree /tree\n")
        for number in range(max(1, int(count * scale))):
            folder = context / "tree" / f"{number // 100:04d}"
            if number % 100 == 0:
                folder.mkdir(parents=True)
            (folder / f"{number}").write_text(f"{number}\n")

    return prepare


def edit(context: Path, number: int) -> None:
    (context / "app.py").write_text(f"print('hello {number} {time.time_ns()}')\n")


CASES = (
    Case("runs", "30 trivial RUNs", runs),
    Case("chain", "100 trivial RUNs", chain),
    Case("stages", "100 trivial RUNs in 4 stages", stages),
    Case("noop", "no-op rebuild of a small app", small_app, warm=True),
    Case("edit", "one changed file in a small app", small_app, edit, warm=True),
    Case("files", "COPY of 20,000 files, 120 MB", many_files),
    Case("big", "COPY of one file of 250 MB", big_file),
    Case("unpack", "RUN that unpacks 20,000 files", unpack),
)
REBUILDS = (
    *(Case(f"steps{count}", f"no-op rebuild of {count:,} steps", steps(count), warm=True) for count in (10, 100, 1000)),
    *(
        Case(f"files{count}", f"no-op rebuild, {count:,} files", files(count), warm=True)
        for count in (1000, 20_000, 100_000)
    ),
)


# ---------------------------------------------------------------- builders


@dataclass
class Builder:
    """A builder with a store of its own. `daemon`: the process whose memory counts besides the command's."""

    name: str
    command: Callable[[Path], list[str]]
    forget: Callable[[], None]
    env: dict[str, str] = field(default_factory=dict)
    daemon: int = 0
    close: Callable[[], None] = lambda: None
    version: str = ""


def quietly(words: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{done.stdout[-800:]}{done.stderr[-2000:]}")
    return done.stdout


def pybuild(work: Path, base: Path) -> Builder:
    store = work / "pybuild"
    # As installed: compiled modules are there, wherever the environment says that none are to be written.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(work / "compiled")}
    env = {"PYBUILD_ROOT": str(store), "PYTHONPATH": str(ROOT), **compiled}
    program = shutil.which("pybuild")
    words = [program] if program else [sys.executable, "-m", "builder.cli"]

    def command(context: Path) -> list[str]:
        return [*words, "build", "-q", "-t", "bench", "--build-context", f"busybox=oci-layout://{base}", str(context)]

    def forget() -> None:
        shutil.rmtree(store, ignore_errors=True)
        warm_up(command, env, work)

    return Builder("pybuild", command, forget, env, version="this checkout")


def warm_up(command: Callable[[Path], list[str]], env: dict[str, str], work: Path) -> None:
    """The base in place and a first RUN done, as on a machine where one builds every day."""
    context = work / "warm-up"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    quietly(command(context), env)


def buildah(work: Path, base: Path) -> Builder | None:
    program, runc = shutil.which("buildah"), shutil.which("runc", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        return None
    tool = [program, "--root", str(work / "buildah"), "--runroot", str(work / "buildah-run")]
    image = quietly([*tool, "pull", "-q", f"oci:{base}:latest"]).split()[-1]
    quietly([*tool, "tag", image, "docker.io/library/busybox:latest"])
    runtime = ["--runtime", runc] if runc else []

    def command(context: Path) -> list[str]:
        return [
            *tool, "build", "-q", "--layers", "--pull=never", "--isolation=oci", *runtime, "--network=host", *LIMITS,
            "-t", "bench", "-f", str(context / "Dockerfile"), str(context),
        ]  # fmt: skip

    def forget() -> None:
        for line in quietly([*tool, "images", "--all", "--quiet", "--no-trunc"]).split():
            if line.removeprefix("sha256:") != image.removeprefix("sha256:"):
                subprocess.run([*tool, "rmi", "--force", line], check=False, capture_output=True)
        warm_up(command, {}, work)

    return Builder(
        "buildah", command, forget, close=lambda: unmount(work), version=quietly([program, "--version"]).strip()
    )


def unmount(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


def buildkit(work: Path, base: Path) -> Builder | None:
    """The BuildKit inside of dockerd. Clients from version 23 on need buildx for it; the distribution's own may not."""
    daemon = shutil.which("dockerd", path=os.environ["PATH"] + ":/usr/sbin")
    client = next(
        (path for path in ("/usr/bin/docker", shutil.which("docker")) if path and os.access(path, os.X_OK)), None
    )
    if daemon is None or client is None:
        return None
    folder, socket = work / "docker", f"/tmp/pybuild-bench-{os.getpid()}.sock"
    folder.mkdir()
    (folder / "daemon.json").write_text("{}")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                daemon, "--host", f"unix://{socket}", "--data-root", str(folder / "data"),
                "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"),
                "--config-file", str(folder / "daemon.json"), "--bridge=none", "--iptables=false", "--ip6tables=false",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    env = {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "1", "DOCKER_CONFIG": str(folder / "config")}

    def close() -> None:
        process.terminate()
        process.wait()
        Path(socket).unlink(missing_ok=True)
        unmount(folder)

    deadline = time.monotonic() + 60
    while subprocess.run([client, "version"], check=False, capture_output=True, env={**os.environ, **env}).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            print(f"dockerd does not start: {(folder / 'log').read_text()[-400:]}", file=sys.stderr)
            return None
        time.sleep(0.2)

    layout = json.loads((base / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads((base / "blobs" / layout.replace(":", "/")).read_text())
    archive = folder / "base.tar"
    with tarfile.open(archive, "w") as tar:
        names = {}
        for blob in (manifest["config"], *manifest["layers"]):
            names[blob["digest"]] = blob["digest"][7:]
            tar.add(base / "blobs" / blob["digest"].replace(":", "/"), blob["digest"][7:])
        text = json.dumps(
            [
                {
                    "Config": names[manifest["config"]["digest"]],
                    "RepoTags": ["busybox:latest"],
                    "Layers": [names[layer["digest"]] for layer in manifest["layers"]],
                }
            ]
        )
        (folder / "manifest.json").write_text(text)
        tar.add(folder / "manifest.json", "manifest.json")
    quietly([client, "load", "--quiet", "--input", str(archive)], env)

    def command(context: Path) -> list[str]:
        return [client, "build", "-q", "--network=host", "-t", "bench", str(context)]

    def forget() -> None:
        quietly([client, "builder", "prune", "--all", "--force"], env)
        subprocess.run(
            [client, "image", "rm", "--force", "bench"], check=False, capture_output=True, env={**os.environ, **env}
        )
        warm_up(command, env, work)

    version = quietly([client, "version", "--format", "dockerd {{.Server.Version}}"], env).strip()
    return Builder("buildkit", command, forget, env, process.pid, close, version)


# ---------------------------------------------------------------- measuring


def tree_of(pid: int) -> set[int]:
    """The process and all its descendants that are alive."""
    found, todo = set[int](), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                todo += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def memory(pids: set[int]) -> int:
    """Their memory in bytes, shared pages counted once for each page (proportional set size)."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total


def timed(builder: Builder, context: Path, *, watch: bool) -> tuple[float, int]:
    """Seconds that one build takes; with `watch`, instead of a good time, its peak memory in bytes."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            builder.command(context),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **builder.env},
        )
        peak, done = 0, threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, memory(tree_of(process.pid) | (tree_of(builder.daemon) if builder.daemon else set())))

        watcher = threading.Thread(target=sample)
        if watch:
            watcher.start()
        try:
            status = process.wait(900)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        finally:
            done.set()
            if watch:
                watcher.join()
        seconds = time.monotonic() - started
        if status:
            log.seek(0)
            raise SystemExit(f"{builder.name} fails:\n{log.read().decode('utf-8', 'replace')[-3000:]}")
    return seconds, peak


@dataclass
class Measured:
    seconds: list[float] = field(default_factory=list)
    peak: int = 0


def measure(case: Case, builders: list[Builder], work: Path, rounds: int, scale: float) -> dict[str, Measured]:
    found = {builder.name: Measured() for builder in builders}
    context = work / "contexts" / case.name
    context.mkdir(parents=True)
    case.prepare(context, scale)
    if case.warm:
        for builder in builders:
            builder.forget()
            timed(builder, context, watch=False)
    # One more round than asked for, in which the memory is watched: watching costs time.
    for number in range(rounds + 1):
        turn = builders[number % len(builders) :] + builders[: number % len(builders)]
        for builder in turn:
            if not case.warm:
                builder.forget()
            if case.change:
                case.change(context, number)
            seconds, peak = timed(builder, context, watch=number == rounds)
            if number == rounds:
                found[builder.name].peak = peak
            else:
                found[builder.name].seconds.append(seconds)
    shutil.rmtree(context)
    return found


def show(results: dict[str, dict[str, Measured]], builders: list[Builder]) -> None:
    names = [builder.name for builder in builders]
    first = names[0]
    print("\n" + "; ".join(f"{builder.name}: {builder.version}" for builder in builders))
    print(f"\n{'median seconds':<36}" + "".join(f"{name:>12}" for name in names)
          + "".join(f"{'/ ' + name:>12}" for name in names[1:]))  # fmt: skip
    for case in (*CASES, *REBUILDS):
        if case.name in results:
            found = results[case.name]
            medians = {name: statistics.median(found[name].seconds) for name in names}
            print(f"{case.title:<36}" + "".join(f"{medians[name]:>12.3f}" for name in names)
                  + "".join(f"{medians[name] / medians[first]:>11.1f}x" for name in names[1:]))  # fmt: skip
    print(f"\n{'peak memory in MB':<36}" + "".join(f"{name:>12}" for name in names))
    for case in (*CASES, *REBUILDS):
        if case.name in results:
            found = results[case.name]
            print(f"{case.title:<36}" + "".join(f"{found[name].peak / 1e6:>12.0f}" for name in names))
    print(f"\nN x: how many times as long as {first} the builder takes.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--builders", default="pybuild,buildah,buildkit")
    parser.add_argument("--scale", type=float, default=1.0, help="how large the contexts are, 1 being full size")
    parser.add_argument("--busybox", default="/bin/busybox", help="a static busybox")
    parser.add_argument("--json", type=Path, help="write all times here")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for buildah and dockerd")
    cases = [case for case in (*CASES, *REBUILDS) if case.name in options.cases.split(",")]
    work = Path(tempfile.mkdtemp(prefix="pybuild-bench-"))
    builders: list[Builder] = []
    try:
        bases.make_bases(work / "bases", options.busybox)
        for make in (pybuild, buildah, buildkit):
            if make.__name__ in options.builders.split(","):
                builder = make(work, work / "bases" / "busybox")
                if builder is None:
                    print(f"{make.__name__} is not here: left out", file=sys.stderr)
                else:
                    builders.append(builder)
        results = {}
        for case in cases:
            print(f"{case.title} ...", file=sys.stderr, flush=True)
            results[case.name] = measure(case, builders, work, options.rounds, options.scale)
    finally:
        for builder in builders:
            builder.close()
        shutil.rmtree(work, ignore_errors=True)
    show(results, builders)
    if options.json:
        table = {
            name: {who: {"seconds": one.seconds, "peak": one.peak} for who, one in found.items()}
            for name, found in results.items()
        }
        options.json.write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

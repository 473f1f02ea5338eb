#!/usr/bin/env python3
"""A store under siege: builds with random edits, kills, prunes and removals side by side, for as long as one likes.

    python tests/benchmarks/soak.py --builds 200 --workers 4

Several workers share one store. Each has a context of its own that it edits at random: files, modes, lines of the
Dockerfile; now and then it kills its build with SIGKILL at any moment, prunes the cache, prunes images, or removes one.
Some images are kept: what `pybuild save` writes of one right after its build is what it has to write at the end, byte
for byte. At the end `pybuild fsck` has to find the store whole, before and after everything else is pruned away, no
process and no mount may be left, and nothing in `tmp/`.

RUNs need a static busybox. Exit code 1 and a line for each thing that was found wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = 12


class Soak:
    """One siege. `wrong` collects what was found wrong, a line each."""

    def __init__(self, folder: Path, base: Path, builds: int, workers: int, seed: int, *, quiet: bool = False) -> None:
        self.store = folder / "store"
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.slowest = 0.0
        self._folder = folder
        self._base = base
        self._builds = builds
        self._workers = workers
        self._seed = seed
        self._quiet = quiet
        self._kept: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Build, kill and prune; then look."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._settle()
        self._look("after the siege")
        self._pybuild("image", "prune", "--force")
        self._pybuild("cache", "prune", "--yes")
        self._look("with the cache gone")
        self._pybuild("image", "prune", "--all", "--force")
        self._pybuild("cache", "prune", "--yes")
        left = [
            path for name in ("blobs/sha256", "snapshots", "listings", "leases", "tmp") for path in self._names(name)
        ]
        if left:
            self.wrong.append(f"left when nothing needs it: {left[:5]}")
        if mounts := [line for line in Path("/proc/mounts").read_text().splitlines() if str(self._folder) in line]:
            self.wrong.append(f"left mounted: {mounts[:3]}")

    def _names(self, folder: str) -> list[str]:
        return [f"{folder}/{name}" for name in os.listdir(self.store / folder) if not name.startswith(".")]

    # ------------------------------------------------------------ one worker

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        context = self._folder / f"context{number}"
        for index in range(8):
            write(context / "src" / f"f{index}", f"{number % 2} {index}")
        lines = ["RUN echo one >/one", "COPY src /src", "RUN cat /src/* >/all || true", "WORKDIR /w"]
        while True:
            with self._lock:
                turn = self.done["builds"]
                if turn >= self._builds:
                    return
                self.done["builds"] += 1
            edit(context, lines, rng)
            self._build(number, turn, context, rng)
            self._disturb(number, rng)

    def _build(self, number: int, turn: int, context: Path, rng: random.Random) -> None:
        name = f"w{number}-{rng.randrange(3)}"
        words = ["build", "-q", f"--build-context=base={self._base}", "-t", name]
        words += rng.choice(
            [
                [],
                [],
                [],
                ["--no-cache"],
                ["--cache-budget=200kB"],
                ["--cache-ttl=1s"],
                ["-o", "type=oci,dest=/dev/null"],
            ]
        )
        started = time.monotonic()
        process = self._start(*words, str(context))
        if rng.random() < 0.2:
            try:
                process.wait(rng.uniform(0.02, 0.6))
            except subprocess.TimeoutExpired:
                process.kill()
                self.done["killed"] += 1
        out, err = process.communicate()
        self.slowest = max(self.slowest, time.monotonic() - started)
        if process.returncode not in {0, -9}:
            if b"exit code: 7" not in err:
                self.wrong.append(f"build {turn} of worker {number}: {process.returncode}: {err.decode()[-600:]}")
            self.done["failed as it has to"] += 1
        elif process.returncode == 0:
            self.done["built"] += 1
            with self._lock:
                keep = len(self._kept) < KEPT and rng.random() < 0.25
                kept = f"kept{len(self._kept)}"
                if keep:
                    self._kept[kept] = ""
            if keep and self._pybuild("tag", out.decode().strip(), kept, missing=True) == 0:
                self._kept[kept] = self._saved(kept)
            elif keep:
                # Another worker has taken the image away between the two commands.
                self._kept.pop(kept)

    def _disturb(self, number: int, rng: random.Random) -> None:
        chance = rng.random()
        if chance < 0.06:
            kind = rng.choice(["step", "snapshot", "listing", "mount", "step,snapshot"])
            self._pybuild("cache", "prune", *rng.choice([["--yes"], ["--keep=50kB"], ["-f", f"type={kind}"]]))
            self.done["prunes of the cache"] += 1
        elif chance < 0.12:
            self._pybuild("image", "prune", "--force")
            self.done["prunes of images"] += 1
        elif chance < 0.16:
            self._pybuild("rmi", "--force", f"w{number}-{rng.randrange(3)}", missing=True)
            self.done["removals"] += 1
        elif chance < 0.18:
            self._pybuild("fsck")
            self.done["checks meanwhile"] += 1

    # ------------------------------------------------------------ pybuild

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "builder", *words],
            env={**os.environ, "PYBUILD_ROOT": str(self.store), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def _pybuild(self, *words: str, missing: bool = False) -> int:
        process = self._start(*words)
        out, err = process.communicate()
        refused = missing and process.returncode == 1 and b"Traceback" not in err
        if process.returncode != 0 and not refused:
            self.wrong.append(f"pybuild {' '.join(words)}: {process.returncode}: {(out + err).decode()[-600:]}")
        return process.returncode

    def _saved(self, name: str) -> str:
        """The digest of what `save` writes."""
        state = hashlib.sha256()
        with self._start("save", name) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while data := process.stdout.read(1 << 20):
                state.update(data)
            err = process.stderr.read()
        if process.returncode != 0:
            self.wrong.append(f"pybuild save {name}: {err.decode()[-600:]}")
        return state.hexdigest()

    # ------------------------------------------------------------ afterwards

    def _settle(self) -> None:
        """Let what killed builds left be taken: what is young may have a writer that is about to name it."""
        for folder in ("tmp", "blobs/sha256", "snapshots", "listings"):
            for name in self._names(folder):
                os.utime(self.store / name, (1, 1))

    def _look(self, when: str) -> None:
        before = len(self.wrong)
        self._pybuild("fsck")
        for name, digest in self._kept.items():
            if self._saved(name) != digest:
                self.wrong.append(f"{when}, {name} is saved as other bytes")
        if not self._quiet:
            print(f"{when}: {'whole' if len(self.wrong) == before else 'NOT whole'}, {len(self._kept)} images compared")


def edit(context: Path, lines: list[str], rng: random.Random) -> None:
    """Change a file or two, and now and then a line."""
    for _ in range(rng.randrange(3)):
        path = context / "src" / f"f{rng.randrange(8)}"
        match rng.randrange(4):
            case 0 if path.exists():
                path.unlink()
            case 1 if path.exists():
                path.chmod(rng.choice([0o644, 0o755, 0o600]))
            case _:
                write(path, f"{rng.randrange(6)}" * rng.choice([1, 100, 20000]))
    match rng.randrange(8):
        case 0:
            lines.insert(rng.randrange(len(lines) + 1), f"RUN echo {rng.randrange(20)} >/line{rng.randrange(5)}")
        case 1 if len(lines) > 2:
            lines.pop(rng.randrange(len(lines)))
        case 2:
            rng.shuffle(lines)
        case 3:
            lines.insert(0, f"RUN --mount=type=cache,target=/c,id=c{rng.randrange(2)} date >>/c/log")
        case 4:
            lines.append(rng.choice(["RUN rm -rf /src", "RUN exit 7", "COPY --link src /linked", "ENV A=1"]))
    del lines[9:]
    if rng.random() < 0.7 and "RUN exit 7" in lines:
        lines.remove("RUN exit 7")
    write(
        context / "Dockerfile",
        "FROM base AS one\n" + "\n".join(lines) + "\nFROM base AS two\nRUN echo two >/two\nCOPY src /copied\n"
        "FROM one\nCOPY --from=two /two /copied /last/\nRUN ls /last >/list\n",
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_base(folder: Path, busybox: str) -> Path:
    """A root file system of a static busybox."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for applet in ("sh", "cat", "date", "echo", "ls", "rm", "true"):
        (folder / "bin" / applet).symlink_to("busybox")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--builds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--busybox", default="/bin/busybox", help="a static busybox")
    parser.add_argument("--keep", action="store_true", help="leave the store there for a look at it")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pybuild-soak-"))
    started = time.monotonic()
    soak = Soak(folder, make_base(folder / "base", options.busybox), options.builds, options.workers, options.seed)
    soak.run()
    for line in soak.wrong:
        print(line, file=sys.stderr)
    facts = ", ".join(f"{count} {what}" for what, count in soak.done.items())
    print(
        f"seed {options.seed}: {facts}; the slowest took {soak.slowest:.1f} s, "
        f"all of it {time.monotonic() - started:.0f} s; {len(soak.wrong) or 'nothing'} wrong"
    )
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(soak.wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Builds that are ended from outside: killed at any moment, interrupted, asked to end.

Afterwards the store lists, builds and exports as if nothing had been, no mount and no process is left, and what was
left in `tmp/` does not grow from build to build.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, image_of, mounts_below, needs_run, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = itertools.count()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def marker() -> str:
    """A number of seconds that no other process of this machine sleeps for."""
    return f"8{os.getpid()}{next(NUMBER)}{time.monotonic_ns() % 10**5}"


def sound(bench: Bench) -> None:
    """Every blob is what its name says, and everything that the index names is there."""
    for path in (bench.root / "blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert json.loads((bench.root / "oci-layout").read_text())["imageLayoutVersion"]
    for descriptor in json.loads((bench.root / "index.json").read_text())["manifests"]:
        manifest = json.loads((bench.root / "blobs" / descriptor["digest"].replace(":", "/")).read_text())
        for blob in (manifest["config"], *manifest["layers"]):
            assert (bench.root / "blobs" / blob["digest"].replace(":", "/")).stat().st_size == blob["size"]


def gone(marker: str, seconds: float = 5) -> None:
    """No process of this marker lives any more, at the latest after a while."""
    until = time.monotonic() + seconds
    while left := processes(marker):
        assert time.monotonic() < until, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.02)


def rubbish(bench: Bench) -> set[str]:
    return {name for name in os.listdir(bench.root / "tmp") if not name.startswith("trash-")}


DOCKERFILE = """\
FROM base AS one
RUN mkdir /d && for i in 1 2 3 4 5 6 7 8 9; do echo $i >/d/$i; done
COPY many /many
RUN rm /d/3 && rm -r /many && mkdir /many && echo new >/many/new
FROM base AS two
COPY many /copied
RUN sleep {marker} & echo two >/two
FROM one
COPY --from=two /two /copied /all/
RUN find /all /d /many | sort >/list
"""


@pytest.mark.slow
@pytest.mark.parametrize("no_cache", [False, True])
def test_a_build_that_is_killed_at_any_moment_leaves_a_store_that_works(
    bench: Bench, marker: str, *, no_cache: bool
) -> None:
    needs_run()
    files: dict[str, str | bytes | None] = {f"many/{number}": f"{number}\n" * 50 for number in range(200)}
    words = bench.words(DOCKERFILE.format(marker=marker[:4]), files)
    words = [words[0], "-t", "app", *(["--no-cache"] if no_cache else []), *words[1:]]
    whole = Bench(bench.folder / "whole")
    whole.folder.mkdir()
    started = time.monotonic()
    assert whole.alone(*words).code == 0
    seconds = time.monotonic() - started
    wanted = whole.image().files
    rng = random.Random(os.getpid())
    killed = 0
    for _ in range(8):
        process = bench.start(*words, start_new_session=True)
        try:
            process.communicate(timeout=rng.uniform(0.05, seconds if no_cache else seconds / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        assert mounts_below(bench.folder) == []
        if (bench.root / "index.json").exists():
            sound(bench)
    assert killed
    gone(str(bench.root))
    bench.pybuild("images", "-a", alone=True)
    left = rubbish(bench) if (bench.root / "tmp").exists() else set()
    for _ in range(2):
        done = bench.alone(*words)
        assert done.code == 0, done.err
        assert rubbish(bench) <= left
    sound(bench)
    found = bench.image().files
    for name, entry in wanted.items():
        assert {**found[name], "mtime": 0} == {**entry, "mtime": 0}, name
    assert found.keys() == wanted.keys()
    bench.pybuild("image", "prune", "--all", "--force", code=None, alone=True)
    sound(bench)
    assert bench.alone(*words).code == 0


def test_what_a_killed_build_left_in_tmp_is_removed_in_time(bench: Bench, marker: str) -> None:
    words = bench.words(f"FROM base\nRUN echo begun && mkdir -p /a/b && echo x >/a/b/c && sleep {marker}\n")
    for _ in range(2):
        process = bench.start(*words)
        begun(process)
        process.kill()
        process.communicate()
    gone(marker)
    assert rubbish(bench)
    for name in rubbish(bench):
        os.utime(bench.root / "tmp" / name, (1, 1))
    bench.pybuild("image", "prune", "--force", code=None, alone=True)
    bench.pybuild("image", "prune", "--force", code=None, alone=True)
    assert not os.listdir(bench.root / "tmp")


def begun(process: subprocess.Popen[bytes], word: bytes = b"begun") -> None:
    """Wait until the RUN says so."""
    assert process.stderr is not None
    seen = b""
    for line in process.stderr:
        seen += line
        if b"step-output" in line and word in line:
            return
    raise AssertionError(seen.decode())


TREE = (
    "FROM base\n"
    "RUN touch /before\n"
    "RUN sleep {m} & (setsid sleep {m} &) ; setsid sh -c 'sleep {m} & trap \"\" TERM INT HUP; sleep {m}' & "
    "sleep 0.1; echo begun; trap '' TERM INT HUP; sleep {m}\n"
)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_a_signal_stops_the_whole_tree_of_a_run(bench: Bench, marker: str, number: signal.Signals, code: int) -> None:
    """Processes that ignore signals, that are sessions of their own and that nobody waits for, too."""
    bench.build("FROM base\nRUN touch /old\n")
    names = bench.names()
    command, *rest = bench.words(TREE.format(m=marker))
    out = bench.folder / "out.tar"
    process = bench.start(command, "-t", "app", f"--output=type=oci,dest={out}", *rest)
    begun(process)
    assert len(processes(marker)) >= 4
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err.decode()
    assert time.monotonic() - started < 5
    assert f"stopped by {number.name}" in err.decode()
    assert "Traceback" not in err.decode()
    gone(marker)
    assert mounts_below(bench.folder) == []
    assert rubbish(bench) == set()
    assert not list(bench.folder.glob("out.tar*"))
    sound(bench)
    assert bench.names() == names
    # What was done before is done.
    bench.build("FROM base\nRUN touch /before\n", tag="other")
    assert bench.listed("-f", "dangling=true") == []
    done = bench.build("FROM base\nRUN touch /before\nRUN touch /after\n")
    assert done.cached == {"RUN touch /before": True, "RUN touch /after": False}


def test_a_second_signal_does_not_wait(bench: Bench, marker: str) -> None:
    process = bench.start(*bench.words(TREE.format(m=marker)))
    begun(process)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in {130, -signal.SIGINT}
    gone(marker)
    assert mounts_below(bench.folder) == []
    sound(bench)
    bench.build("FROM base\nRUN touch /after\n")


def test_a_killed_build_takes_its_run_with_it(bench: Bench, marker: str) -> None:
    process = bench.start(*bench.words(TREE.format(m=marker)))
    begun(process)
    process.kill()
    process.communicate()
    gone(marker)
    assert mounts_below(bench.folder) == []
    assert bench.build("FROM base\nRUN touch /before\n").cached == {"RUN touch /before": True}


def starter(pid: int) -> int:
    """The process above a RUN's that starts them all."""
    while b"builder.sandbox" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert pid > 1
    return pid


def test_a_helper_that_dies_is_an_error_and_no_hang(bench: Bench, marker: str) -> None:
    """The process that starts RUNs is a child of the builder: whoever kills it gets an error, not silence."""
    process = bench.start(*bench.words(TREE.format(m=marker)))
    begun(process)
    os.kill(starter(processes(marker)[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1, err.decode()
    assert "Traceback" not in err.decode()
    gone(marker)


def test_a_signal_while_parallel_stages_run(bench: Bench, marker: str) -> None:
    stages = "".join(f"FROM base AS s{n}\nRUN echo begun{n}; sleep {marker}\n" for n in range(3))
    copies = "".join(f"COPY --from=s{n} /etc/passwd /{n}\n" for n in range(3))
    process = bench.start(*bench.words(f"{stages}FROM scratch\n{copies}"))
    for _ in range(3):
        begun(process)
    assert len(processes(marker)) >= 3
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    gone(marker)
    assert rubbish(bench) == set()


def test_a_reader_that_went_away_ends_the_export(bench: Bench) -> None:
    words = bench.words("FROM scratch\nCOPY f /f\n", {"f": os.urandom(1 << 20)})
    process = bench.start(words[0], "--output=-", *words[1:])
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=20)
    assert process.returncode == 141, err
    assert b"Traceback" not in err


def test_other_tools_see_a_layout_at_every_moment(bench: Bench) -> None:
    """While builds and retags go on, index.json parses, and what it names is there."""
    words = bench.words("FROM scratch\nARG N\nCOPY f /f$N\n", {"f": "x"})
    bench.pybuild(words[0], "-t", "app", *words[1:])
    running = [
        bench.start(words[0], "-t", "app", "-t", f"n{number}", f"--build-arg=N={number}", *words[1:])
        for number in range(4)
    ]
    seen = 0
    while any(process.poll() is None for process in running):
        image_of(bench.root, "app:latest")
        seen += 1
    for process in running:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()
    assert seen > 3
    assert {f"n{number}:latest" for number in range(4)} | {"app:latest"} == set(bench.names())

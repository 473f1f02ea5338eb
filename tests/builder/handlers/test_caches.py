"""Cache mounts: which folder a RUN is given, and who waits for whom."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from builder.errors import CancelledError
from builder.handlers.caches import hold
from builder.model import CacheMount, Origin

ROOT = Path(__file__).resolve().parents[3]
NEVER = threading.Event()


def no_seed(*_: object) -> None:
    raise AssertionError("nothing is to be seeded")


def mount(name: str, sharing: str = "shared", **more: object) -> CacheMount:
    return CacheMount("/c", name, sharing, **more)  # type: ignore[arg-type]


@contextlib.contextmanager
def held(root: Path, *mounts: CacheMount):  # type: ignore[no-untyped-def]  # noqa: ANN201
    with contextlib.ExitStack() as stack:
        yield hold(mounts, root, no_seed, NEVER, stack)


def waits(root: Path, *mounts: CacheMount) -> bool:
    """Whether a RUN with these mounts would have to wait."""
    stop = threading.Event()
    stop.set()
    with contextlib.ExitStack() as stack:
        try:
            hold(mounts, root, no_seed, stop, stack)
        except CancelledError:
            return True
    return False


def test_the_same_id_is_the_same_folder(tmp_path: Path) -> None:
    with held(tmp_path, mount("a")) as one, held(tmp_path, mount("a"), mount("b")) as two:
        assert one["a"] == two["a"] != two["b"]
        assert one["a"].is_dir()
    assert (one["a"].parent / "id").read_text() == "a"


def test_ids_may_be_any_text(tmp_path: Path) -> None:
    with held(tmp_path, mount("../x/\udcff"), mount("x" * 5000)) as found:
        assert all(path.parent.parent == tmp_path for path in found.values())


def test_mode_and_owner_are_those_of_the_first(tmp_path: Path) -> None:
    with held(tmp_path, mount("a", mode=0o2750)) as found:
        assert found["a"].stat().st_mode & 0o7777 == 0o2750
    with held(tmp_path, mount("a", mode=0o700)) as found:
        assert found["a"].stat().st_mode & 0o7777 == 0o2750


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("shared", "shared", False),
        ("shared", "locked", True),
        ("locked", "shared", True),
        ("locked", "locked", True),
        ("locked", "private", False),
        ("private", "private", False),
        ("shared", "private", False),
        ("private", "locked", True),
    ],
)
def test_who_waits(tmp_path: Path, first: str, second: str, expected: bool) -> None:
    with held(tmp_path, mount("a", first)):
        assert waits(tmp_path, mount("a", second)) == expected
    assert not waits(tmp_path, mount("a", second))


def test_private_is_a_folder_of_its_own_and_is_used_again(tmp_path: Path) -> None:
    with held(tmp_path, mount("a", "private")) as one, held(tmp_path, mount("a", "private")) as two:
        assert one["a"] != two["a"]
    with held(tmp_path, mount("a", "private")) as three:
        assert three["a"] == one["a"]


def test_one_run_does_not_wait_for_itself(tmp_path: Path) -> None:
    twice = (mount("a", "locked"), mount("a", "locked"), mount("a"))
    with held(tmp_path, *twice) as found:
        assert len(found) == 1
        assert waits(tmp_path, mount("a"))


def test_two_runs_that_want_the_same_two_do_not_wait_for_each_other(tmp_path: Path) -> None:
    names = [mount(name, "locked") for name in "abcd"]

    def many(mounts: list[CacheMount]) -> None:
        for _ in range(30):
            with held(tmp_path, *mounts):
                pass

    threads = [threading.Thread(target=many, args=(order,), daemon=True) for order in (names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_locks_hold_between_processes(tmp_path: Path) -> None:
    script = f"""\
import contextlib, pathlib, sys, threading
from builder.handlers.caches import hold
from builder.model import CacheMount
with contextlib.ExitStack() as stack:
    hold([CacheMount("/c", "a", "locked")], pathlib.Path({str(tmp_path)!r}), None, threading.Event(), stack)
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert waits(tmp_path, mount("a", "locked"))
        assert waits(tmp_path, mount("a"))
        other.communicate(b"", timeout=20)
    assert not waits(tmp_path, mount("a", "locked"))


def test_a_folder_is_filled_once_and_never_half(tmp_path: Path) -> None:
    seeded: list[Path] = []

    def fill(origin: Origin, path: str, folder: Path) -> None:
        seeded.append(folder)
        if len(seeded) == 1:
            (folder / "half").write_text("")
            raise OSError("no space")
        assert (origin, path) == (Origin(stage=0), "/x")
        (folder / "file").write_text("x")

    wanted = mount("a", origin=Origin(stage=0), source="/x", mode=0o500)
    with contextlib.ExitStack() as stack, pytest.raises(OSError, match="no space"):
        hold([wanted], tmp_path, fill, NEVER, stack)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            found = hold([wanted], tmp_path, fill, NEVER, stack)
            assert [item.name for item in found["a"].iterdir()] == ["file"]
    assert len(seeded) == 2

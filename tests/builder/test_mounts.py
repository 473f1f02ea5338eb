"""RUN mounts, end to end: where their files come from, what becomes of writes, who shares a cache with whom."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, needs_ids, needs_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOOLS = "FROM base AS tools\nRUN mkdir /t && echo tool > /t/x && ln -s /t /link\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    needs_run()
    made = Bench(tmp_path)
    made.context.mkdir()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("mount", "command", "output"),
    [
        pytest.param("from=tools,source=/t,target=/m", "cat /m/x; echo y > /m/x || echo kept", "tool", id="stage"),
        pytest.param("from=tools,source=/link/x,target=/m/x", "cat /m/x", "tool", id="through a symlink"),
        pytest.param("from=tools,source=/t,target=/m,rw", "echo new > /m/x; cat /m/x", "new", id="writable"),
        pytest.param("from=tools,source=/t/x,target=/m/x,rw", "echo new > /m/x; cat /m/x", "new", id="writable file"),
        pytest.param("target=/m", "cat /m/f; ls -a /m", "file", id="context"),
        pytest.param("target=/m,rw", "echo new > /m/f; cat /m/f", "new", id="writable context"),
        pytest.param("from=other,target=/m", "cat /m/g", "other", id="named context"),
        pytest.param("from=base,source=/etc,target=/m", "grep -c root /m/passwd", "1", id="image context"),
        pytest.param("type=cache,from=tools,source=/t,target=/m", "cat /m/x; echo y > /m/x", "tool", id="seeded cache"),
        pytest.param("type=cache,from=other,target=/m", "cat /m/g", "other", id="cache seeded by a context"),
        pytest.param("type=tmpfs,target=/m,size=64k", "grep ' /m ' /proc/mounts", "size=64k", id="tmpfs"),
    ],
)
def test_mounts(bench: Bench, mount: str, command: str, output: str) -> None:
    other = bench.folder / "other"
    other.mkdir()
    (other / "g").write_text("other\n")
    text = f"{TOOLS}FROM base\nRUN --mount={mount} {command}\nRUN ls /m && echo left || true\n"
    done = bench.build(
        text, {"f": "file\n", "hidden": "x", ".dockerignore": "hidden\n"}, f"--build-context=other={other}"
    )
    assert output in done.output
    assert "left" not in done.output
    assert "hidden" not in done.output
    assert (bench.context / "f").read_text() == "file\n"
    assert not [path for path in bench.image().files if path == "/m"]


def test_a_changed_mount_source_is_a_miss_and_an_unchanged_one_is_not(bench: Bench) -> None:
    text = "FROM base\nRUN --mount=target=/m,source=d cat /m/f\n"
    assert "one" in bench.build(text, {"d/f": "one", "e": "1"}).output
    assert list(bench.build(text, {"e": "2"}).cached.values()) == [True]
    assert "two" in bench.build(text, {"d/f": "two"}).output


def test_a_cache_is_kept_between_builds_and_apart_by_namespace(bench: Bench) -> None:
    text = "FROM base\nRUN --mount=type=cache,target=/c echo x >> /c/n; echo lines=$(grep -c x /c/n)\n"
    assert "lines=1" in bench.build(text, {}, "--no-cache").output
    assert "lines=2" in bench.build(text, {}, "--no-cache").output
    assert "lines=1" in bench.build(text, {}, "--no-cache", "--build-arg=BUILDKIT_CACHE_MOUNT_NS=mine").output
    assert "lines=2" in bench.build(text, {}, "--no-cache", "--build-arg=BUILDKIT_CACHE_MOUNT_NS=mine").output
    assert "lines=3" in bench.build(text, {}, "--no-cache").output


def test_a_caches_owner_and_mode(bench: Bench) -> None:
    needs_ids()
    mount = "--mount=type=cache,target=/c,uid=1000,gid=50,mode=0750"
    text = f"FROM base\nUSER app\nRUN {mount} touch /c/f; stat -c '%a %u:%g' /c\n"
    assert "750 1000:50" in bench.build(text).output


def test_two_builds_do_not_hold_a_locked_cache_at_once(bench: Bench) -> None:
    """Each build notes that it came and that it went; no other may be in between."""
    text = (
        "FROM base\nARG WHO\nRUN --mount=type=cache,target=/c,sharing=locked "
        "echo come $WHO >> /c/log; sleep 0.4; echo go $WHO >> /c/log\n"
    )
    words = bench.words(text)
    threads = [
        threading.Thread(target=bench.alone, args=(words[0], f"--build-arg=WHO={who}", *words[1:])) for who in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    done = bench.build("FROM base\nRUN --mount=type=cache,target=/c cat /c/log\n", {}, "--no-cache")
    lines = [line.split() for line in done.output.splitlines()]
    assert len(lines) == 6
    for come, go in zip(lines[::2], lines[1::2], strict=True):
        assert (come[0], go[0], come[1]) == ("come", "go", go[1])


def test_the_hostname_of_a_run(bench: Bench) -> None:
    text = "FROM base\nRUN cat /proc/sys/kernel/hostname; grep -c told /etc/hosts || true\n"
    assert bench.build(text).output == "buildkitsandbox\n0\n"
    done = bench.build(text, {}, "--build-arg=BUILDKIT_SANDBOX_HOSTNAME=told")
    assert done.output == "told\n1\n"
    assert "no host name" in bench.build(text, {}, "--build-arg=BUILDKIT_SANDBOX_HOSTNAME=a b", code=1).err


def test_what_the_command_line_says_for_every_run_counts(bench: Bench) -> None:
    text = "FROM base\nRUN true\n"
    bench.build(text, {}, "--add-host=a:10.0.0.1")
    for flags, cached in (
        (["--add-host=a:10.0.0.2"], True),
        (["--add-host=b:10.0.0.2"], False),
        ([], False),
        (["--shm-size=1m"], False),
        (["--ulimit=nofile=100"], False),
        (["--network=none"], False),
        (["--network=default", "--shm-size=64m"], True),
    ):
        assert list(bench.build(text, {}, *flags).cached.values()) == [cached], flags

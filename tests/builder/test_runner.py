from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from builder.context import Unpacked
from builder.runner import Tail, spelled_out
from cache.entries import Entry, Kind
from tests.building import Bench, mounts_below, needs_ids

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b""], ()),
        ([b"one\ntwo"], ("one", "two")),
        ([b"on", b"e\n", b"two\n"], ("one", "two")),
        ([b"caf\xc3", b"\xa9\n"], ("café",)),
        ([b"\xff\n"], ("\ufffd",)),
        ([b"%d\n" % number for number in range(100)], tuple(str(number) for number in range(80, 100))),
    ],
)
def test_the_tail_of_an_output(pieces: list[bytes], lines: tuple[str, ...]) -> None:
    tail = Tail()
    for piece in pieces:
        tail.add(piece)
    assert tail.lines() == lines


def test_the_tail_of_an_endless_line_is_bounded() -> None:
    tail = Tail()
    for _ in range(100):
        tail.add(b"x" * 1000)
    assert sum(map(len, tail.lines())) <= Tail.BYTES


def test_changes_become_a_layer_and_nothing_becomes_none(bench: Bench) -> None:
    image = bench.made("FROM base\nRUN true\nRUN echo x >/x && mkdir -p /a/b && touch /a/b/c && chmod 700 /a/b\n")
    assert len(image.layers) == 2
    assert sorted(image.names()) == ["a", "a/b", "a/b/c", "x"]
    assert image.files["/a/b"]["mode"] == "0700"


def test_what_a_run_is_shown_leaves_nothing_in_the_layer(bench: Bench) -> None:
    """Mount points, /etc/hosts, /dev, secrets: they are there while it runs."""
    mounts = "--mount=type=tmpfs,target=/new/t --mount=type=cache,target=/new/c --mount=target=/new/ctx,source=d"
    image = bench.made(
        f"FROM base\nRUN {mounts} test -s /etc/hosts && test -c /dev/null && test -d /proc/1 && touch /new/t/x "
        "&& touch /new/c/x && test -e /new/ctx/f\nRUN test ! -e /new && touch /done\n",
        {"d/f": "x"},
    )
    assert image.names() == ["done"]
    assert not [name for name in image.files if name.startswith(("/new", "/dev", "/proc", "/sys", "/etc/hosts"))]
    assert mounts_below(bench.folder) == []


def test_a_failing_run_keeps_nothing_and_shows_its_last_lines(bench: Bench) -> None:
    done = bench.build(
        "FROM base\nRUN touch /x; i=0; while test $i -lt 30; do i=$((i+1)); echo line $i; done; exit 42\n", code=1
    )
    assert "exit code: 42" in done.err
    assert "  line 30\n" in done.err
    assert "  line 11\n" in done.err
    assert "  line 10\n" not in done.err
    assert [path for path in (bench.root / "tmp").iterdir()] == []  # noqa: C416 - shown when it fails
    snapshots = [path for path in (bench.root / "snapshots").iterdir() if not path.name.startswith(".")]
    assert len(snapshots) == 1  # the base's


def test_output_comes_in_order_and_unclipped(bench: Bench) -> None:
    """More than docker's two megabytes, from both streams."""
    count = 3000
    line = "x" * 1000
    done = bench.build(
        f"FROM base\nRUN i=0; while test $i -lt {count}; do echo $i {line}; echo $i e >&2; i=$((i+1)); done\n"
    )
    lines = done.output.splitlines()
    assert lines == [text for number in range(count) for text in (f"{number} {line}", f"{number} e")]


def test_standard_input_is_at_its_end(bench: Bench) -> None:
    assert bench.build("FROM base\nRUN cat; echo done\n").output == "done\n"


def test_writes_to_a_bind_mount_are_discarded(bench: Bench) -> None:
    dockerfile = (
        "FROM base AS one\nRUN mkdir /d && echo old >/d/f\nFROM base\n"
        "RUN --mount=from=one,source=/d,target=/m,rw echo new >/m/f && cat /m/f >/out\n"
        "RUN --mount=from=one,source=/d,target=/m cat /m/f >>/out; echo x >/m/f || echo refused >>/out\n"
        "RUN --mount=target=/m,rw echo changed >/m/f && rm /m/Dockerfile\n"
    )
    image = bench.made(dockerfile, {"f": "mine"})
    assert image.text("/out") == "new\nold\nrefused\n"
    assert (bench.context / "f").read_text() == "mine"
    assert (bench.context / "Dockerfile").exists()


def test_a_mounted_context_is_as_copy_would_see_it(bench: Bench) -> None:
    if os.geteuid() == 0:
        files = {"d/f": "x", "d/skip": "y", ".dockerignore": "d/skip\n"}
        bench.words("FROM base\nRUN --mount=target=/m,source=d ls /m && stat -c %u:%g /m/f\n", files)
        os.chown(bench.context / "d/f", 1234, 1234)
        assert bench.build().output == "f\n0:0\n"
    else:
        files = {"d/f": "x", "d/skip": "y", ".dockerignore": "d/skip\n"}
        assert bench.build("FROM base\nRUN --mount=target=/m,source=d ls /m\n", files).output == "f\n"


def test_a_locked_cache_mount_is_had_by_one_at_a_time(bench: Bench) -> None:
    mount = "--mount=type=cache,target=/c,sharing=locked"
    work = "test ! -e /c/held && touch /c/held && sleep 0.2 && rm /c/held && echo x >>/c/log"
    stages = "".join(f"FROM base AS s{n}\nRUN {mount} {work} && echo {n} >/{n}\n" for n in range(3))
    copies = "".join(f"COPY --from=s{n} /{n} /\n" for n in range(3))
    bench.build(f"{stages}FROM base\n{copies}RUN {mount} cat /c/log >/log\n")
    assert bench.image().text("/log") == "x\n" * 3


def test_private_cache_mounts_are_nobody_else_s(bench: Bench) -> None:
    mount = "--mount=type=cache,target=/c,sharing=private"
    work = "test ! -e /c/held && touch /c/held && sleep 0.3 && rm /c/held"
    stages = "".join(f"FROM base AS s{n}\nRUN {mount} {work} && echo {n} >/{n}\n" for n in range(2))
    bench.build(f"{stages}FROM scratch\nCOPY --from=s0 /0 /\nCOPY --from=s1 /1 /\n")
    folders = [path for path in (bench.root / "mounts").iterdir() if path.is_dir()]
    assert len(folders) in {1, 2}


def test_a_cache_mount_begins_with_what_from_has(bench: Bench) -> None:
    needs_ids()
    mount = "--mount=type=cache,target=/c,from=one,source=/d,uid=1000,gid=50,mode=0770"
    done = bench.build(
        f"FROM base AS one\nRUN mkdir /d && echo seed >/d/f\nFROM base\nRUN {mount} cat /c/f; stat -c %a:%u:%g /c\n"
    )
    assert done.output == "seed\n770:1000:50\n"


def test_scripts_of_heredocs_are_no_part_of_the_layer(bench: Bench) -> None:
    image = bench.made("FROM base\nRUN <<END\n#!/bin/sh\necho $0 >/out\nEND\nRUN <<A cat >/b\nbody\nA\n")
    assert image.names(1) == ["out"]
    assert image.text("/b") == "body\n"


def test_environment_and_home(bench: Bench) -> None:
    done = bench.build(
        "FROM base\nENV A=1\nARG B=2\nRUN echo $A$B $HOME $PWD $(cat /proc/sys/kernel/hostname)\n"
        "WORKDIR /made/here\nENV HOME=/h\nRUN echo $HOME $PWD\n"
    )
    assert done.output.splitlines() == ["12 /root / buildkitsandbox", "/h /made/here"]


def test_a_user_s_home(bench: Bench) -> None:
    needs_ids()
    assert bench.build("FROM base\nUSER app\nRUN echo $HOME\n").output == "/home/app\n"


def test_no_network_no_way_out(bench: Bench) -> None:
    done = bench.build("FROM base\nRUN --network=none cat /proc/net/dev | grep -c :\nRUN true\n")
    assert done.output.strip() == "1"  # lo


def test_options_of_the_command_line(bench: Bench) -> None:
    done = bench.build(
        "FROM base\nRUN grep -c my.host /etc/hosts; ulimit -n; grep shm /proc/mounts | grep -c size=1024k\n",
        None, "--add-host=my.host:10.0.0.1", "--ulimit=nofile=100:100", "--shm-size=1m",
    )  # fmt: skip
    assert done.output.split() == ["1", "100", "1"]


def test_deletions_are_told_by_name() -> None:
    def entry(path: str, kind: Kind = Kind.FILE) -> Entry:
        return Entry(path.encode(), kind, 0o755)

    parent = Unpacked([entry(path) for path in ("d/gone", "d/kept", "d/sub/gone", "d/sub/kept", "d/old/x", "e/x")])
    changes = [
        entry("d", Kind.DIRECTORY), entry("d", Kind.OPAQUE), entry("d/kept"), entry("d/sub", Kind.DIRECTORY),
        entry("d/sub/kept"), entry("z"),
    ]  # fmt: skip
    told = [(each.path.decode(), each.kind) for each in spelled_out(changes, parent)]
    assert told == [
        ("d", Kind.DIRECTORY), ("d/gone", Kind.WHITEOUT), ("d/kept", Kind.FILE), ("d/old", Kind.WHITEOUT),
        ("d/sub", Kind.DIRECTORY), ("d/sub/gone", Kind.WHITEOUT), ("d/sub/kept", Kind.FILE), ("z", Kind.FILE),
    ]  # fmt: skip
    assert list(spelled_out(changes[2:], parent)) == changes[2:]

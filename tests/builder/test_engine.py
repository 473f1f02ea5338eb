from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest

from builder.build import build
from builder.cli.build import BUILD, request_of
from builder.cli.flags import read
from builder.errors import CancelledError
from cache.store import Store
from tests.building import Bench, busybox, mounts_below, needs_run, privileged, write

if TYPE_CHECKING:
    from pathlib import Path

RUN_X = "RUN echo x >/x"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---------------------------------------------------------------- what is taken from the cache


def test_a_second_build_does_nothing_and_gives_the_same_image(bench: Bench) -> None:
    dockerfile = f"FROM base\n{RUN_X}\nCOPY f /f\nWORKDIR /w\nENV A=b\n"
    first = bench.build(dockerfile, {"f": "y"})
    assert set(first.cached.values()) == {False}
    second = bench.build()
    assert set(second.cached.values()) == {True}
    assert second.image == first.image
    assert len(bench.listed()) == 1
    assert "tier-chosen" not in {event["event"] for event in second.events}  # nothing was made ready for a RUN


def test_steps_are_shared_by_names_dockerfiles_and_targets(bench: Bench) -> None:
    bench.build(f"FROM base AS one\n{RUN_X}\nFROM one AS two\nRUN echo y >/y\n", None, "--target=two", tag="first")
    assert bench.build(None, None, tag="second").cached == {RUN_X: True, "RUN echo y >/y": True}
    assert bench.build(None, None, "--target=one", tag="third").cached == {RUN_X: True}
    write(bench.folder / "other", {"Other": f"FROM base AS another\nLABEL a=b\n{RUN_X}\nRUN echo z >/z\n"})
    done = bench.pybuild(
        "build", "-t", "fourth", "-f", str(bench.folder / "other/Other"), "--progress=rawjson",
        f"--build-context=base={busybox()}", str(bench.folder / "other"),
    )  # fmt: skip
    assert done.cached == {RUN_X: True, "RUN echo z >/z": False}


@pytest.mark.parametrize(
    "line", ["LABEL a=2", "EXPOSE 80", 'CMD ["b"]', "STOPSIGNAL 9", "VOLUME /v", "HEALTHCHECK NONE", "MAINTAINER me"]
)
def test_metadata_above_a_run_does_not_rebuild_it(bench: Bench, line: str) -> None:
    first = bench.made(f"FROM base\nLABEL a=1\n{RUN_X}\n")
    done = bench.build(f"FROM base\n{line}\n{RUN_X}\n")
    assert done.cached == {RUN_X: True}
    assert bench.image().diff_ids == first.diff_ids
    assert bench.image().config != first.config


@pytest.mark.parametrize(
    ("above", "miss"),
    [
        ("ENV A=1", True),
        ("ARG A=1", True),
        ("USER 0:0", True),
        ("WORKDIR /tmp", True),
        ('SHELL ["/bin/sh", "-ec"]', True),
        ("ARG A", False),
    ],
)
def test_what_a_run_sees_rebuilds_it(bench: Bench, above: str, *, miss: bool) -> None:
    bench.build(f"FROM base\n{RUN_X}\n")
    assert bench.build(f"FROM base\n{above}\n{RUN_X}\n").cached[RUN_X] is not miss


def test_a_rebuilt_step_with_equal_bytes_stops_the_avalanche(bench: Bench) -> None:
    """The step above changes, what it makes does not: what stands on it is still the same."""
    rest = "COPY one /one\nRUN cat /one >/two\nRUN cat /two >/three\n"
    dockerfile = f"FROM base\nRUN mkdir /d; chmod 755 /d; touch -d @1 /d/f /d{{}}\n{rest}"
    bench.build(dockerfile.format(""), {"one": "1"})
    # Times of a layer count, so they are made equal; / is not in the layer.
    done = bench.build(dockerfile.format(" && true"))
    steps = done.steps
    assert not steps[0].cached
    assert [step.cached for step in steps[1:]] == [True, True, True]


def test_copy_counts_by_content_and_not_by_time(bench: Bench) -> None:
    dockerfile = "FROM scratch\nCOPY d /d\n"
    bench.build(dockerfile, {"d/f": "x", "d/g": "y"})
    os.utime(bench.context / "d/f", (1, 1))
    assert bench.build().cached == {"COPY d /d": True}
    (bench.context / "d/f").chmod(0o600)
    done = bench.build()
    assert done.cached == {"COPY d /d": False}
    assert "644 → 600" in done.steps[0].reason
    (bench.context / "d/f").chmod(0o644)
    bench.build(None, {"d/f": "z"})
    done = bench.build(None, {"d/f": "x"})
    assert done.cached == {"COPY d /d": True}  # back to what was there before


def test_a_miss_says_why(bench: Bench) -> None:
    dockerfile = f"FROM base\nCOPY d /d\n{RUN_X}\n"
    bench.build(dockerfile, {"d/f": "x"})
    done = bench.build(None, {"d/f": "changed"})
    assert "d/f" in done.steps[0].reason
    assert "parent" in done.steps[1].reason
    assert bench.build(None, None, "--no-cache").steps[0].reason == "no cache"


def test_no_cache_does_every_step_anew_and_keeps_what_it_made(bench: Bench) -> None:
    dockerfile = "FROM base\nRUN cat /proc/uptime >/when\nCOPY f /f\n"
    first = bench.made(dockerfile, {"f": "x"})
    time.sleep(0.02)
    done = bench.build(None, None, "--no-cache")
    assert set(done.cached.values()) == {False}
    assert bench.image().text("/when") != first.text("/when")
    assert set(bench.build().cached.values()) == {True}
    assert bench.build().image == done.image


def test_no_cache_filter_is_about_the_stages_it_names(bench: Bench) -> None:
    dockerfile = (
        "FROM base AS one\nRUN cat /proc/uptime >/1\nFROM base AS two\nRUN cat /proc/uptime >/2\n"
        "FROM base AS three\nRUN cat /proc/uptime >/3\n"
        "FROM scratch\nCOPY --from=one /1 /\nCOPY --from=two /2 /\nCOPY --from=three /3 /\n"
    )
    first = bench.made(dockerfile)
    time.sleep(0.02)
    done = bench.build(None, None, "--no-cache-filter=two,three")
    again = {step.stage for step in done.steps if not step.cached}
    assert again == {"two", "three", "stage-3"}
    image = bench.image()
    assert image.text("/1") == first.text("/1")
    assert image.text("/2") != first.text("/2")
    assert image.text("/3") != first.text("/3")


def test_a_layer_that_is_gone_is_a_miss(bench: Bench) -> None:
    image = bench.made("FROM scratch\nCOPY f /f\n", {"f": "x"})
    image.layers[0].unlink()
    done = bench.build()
    assert done.cached == {"COPY f /f": False}
    assert bench.image().text("/f") == "x"


# ---------------------------------------------------------------- COPY --from and mounts


def test_copy_from_a_stage_counts_by_what_is_copied(bench: Bench) -> None:
    dockerfile = "FROM base AS one\nCOPY a /a\nRUN cat /a >/b\nFROM scratch\nCOPY --from=one /b /b\n"
    bench.build(dockerfile, {"a": "x"})
    changed = dockerfile.replace("cat /a >/b", "cat /a >/b; echo >/unasked")
    done = bench.build(changed)
    assert done.cached["RUN cat /a >/b; echo >/unasked"] is False
    assert done.cached["COPY --from=one /b /b"] is True
    done = bench.build(changed, {"a": "y"})
    assert done.cached["COPY --from=one /b /b"] is False
    assert bench.image().text("/b") == "y"


def test_what_a_selection_amounts_to_is_worked_out_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if privileged() is None:
        pytest.skip("needs root that may mount, for a build in this process")
    from builder.handlers import files

    dockerfile = "FROM scratch AS one\nCOPY d /d\nFROM scratch\nCOPY --from=one /d /e\n"
    bench.build(dockerfile, {f"d/{number}": str(number) for number in range(5)})
    asked = []
    real = files.inputs

    def inputs(step: object, *words: object) -> object:
        asked.append(step)
        return real(step, *words)  # type: ignore[arg-type]

    monkeypatch.setattr("builder.engine.file_steps.inputs", inputs)
    done = bench.build()
    assert set(done.cached.values()) == {True}
    assert len(asked) == 1  # the context's; the stage's is remembered by its layers
    bench.build(None, {"d/1": "changed"})
    assert bench.image().text("/e/1") == "changed"


@pytest.mark.parametrize("origin", ["context", "stage", "named", "image"])
def test_a_mounted_source_counts_by_its_content(bench: Bench, origin: str) -> None:
    line = {
        "context": "RUN --mount=source=d,target=/m cat /m/f >/out",
        "stage": "RUN --mount=from=one,source=/d,target=/m cat /m/f >/out",
        "named": "RUN --mount=from=more,source=d,target=/m cat /m/f >/out",
        "image": "RUN --mount=from=other,source=/d,target=/m cat /m/f >/out",
    }[origin]
    named = [f"--build-context=more={bench.context}"] if origin == "named" else []
    dockerfile = f"FROM scratch AS one\nCOPY d /d\nFROM base\n{line}\n"

    def again(files: dict[str, str | bytes | None]) -> bool:
        write(bench.context, files)
        if origin == "image":
            bench.build("FROM scratch\nCOPY d /d\n", None, tag="other")
        return bench.build(dockerfile, None, *named).cached[line]

    assert not again({"d/f": "one", ".dockerignore": "d/skip\n"})
    assert again({})
    assert again({"outside": "x", "d/skip": "ignored"})
    assert not again({"d/f": "two"})
    assert bench.image().text("/out") == "two"
    assert not again({"d/new": ""})
    assert again({"d/new": None})


def test_cache_mounts_stay_and_count_for_nothing(bench: Bench) -> None:
    dockerfile = "FROM base\nRUN --mount=type=cache,target=/c echo {} >>/c/log; cat /c/log >/out\n"
    bench.build(dockerfile.format("one"))
    bench.build(dockerfile.format("two"))
    assert bench.image().text("/out") == "one\ntwo\n"
    assert "/c" not in bench.image().files
    assert bench.build(dockerfile.format("one")).steps[0].cached


# ---------------------------------------------------------------- stages


def test_stages_run_at_the_same_time(bench: Bench) -> None:
    """Two RUNs that wait for each other through a cache mount: one after the other they would never end."""
    needs_run()
    mount = "--mount=type=cache,target=/c,sharing=shared"

    def meet(mine: str, other: str) -> str:
        wait = f"until test -e /c/{other}; do sleep 0.02; i=$((i+1)); test $i -lt 500 || exit 9; done"
        return f"touch /c/{mine}; i=0; {wait}"

    bench.build(
        f"FROM base AS one\nRUN {mount} {meet('a', 'b')}\nFROM base AS two\nRUN {mount} {meet('b', 'a')}\n"
        "FROM scratch\nCOPY --from=one /etc/passwd /1\nCOPY --from=two /etc/passwd /2\n"
    )


def test_stages_that_nothing_needs_are_not_built(bench: Bench) -> None:
    done = bench.build("FROM base AS one\nRUN exit 1\nFROM base AS two\nRUN true\nFROM two\nRUN true\n")
    assert {step.stage for step in done.steps} == {"two", "stage-2"}


def test_the_failure_of_a_stage_stops_the_others_and_moves_no_name(bench: Bench) -> None:
    bench.build(f"FROM base\n{RUN_X}\n")
    names = bench.names()
    started = time.monotonic()
    done = bench.build(
        "FROM base AS one\nRUN echo begun; sleep 60\nFROM base AS two\nRUN sleep 0.3; exit 3\n"
        "FROM scratch\nCOPY --from=one /x /\nCOPY --from=two /x /\n",
        None,
        f"--output=type=oci,dest={bench.folder / 'out.tar'}",
        code=1,
    )
    assert time.monotonic() - started < 20
    assert "exit code: 3" in done.err
    assert "Dockerfile:4:" in done.err
    assert done.err.count("error: ") == 1
    assert bench.names() == names
    assert not (bench.folder / "out.tar").exists()
    assert os.listdir(bench.root / "tmp") == []


# ---------------------------------------------------------------- images


def test_every_step_leaves_an_intermediate_image(bench: Bench) -> None:
    bench.build(f"FROM base\n{RUN_X}\nCOPY f /f\nLABEL a=b\n", {"f": "y"})
    named = bench.listed()
    every = bench.listed("-a")
    assert len(named) == 1
    assert len(every) >= 3
    parents = []
    image = named[0]
    while image:
        parents.append(image)
        image = json.loads(bench.pybuild("inspect", image).out)[0]["Parent"]
    assert set(parents) == set(every)
    counts = [len(json.loads(bench.pybuild("inspect", each).out)[0]["RootFS"]["Layers"]) for each in parents]
    assert counts == sorted(counts, reverse=True)
    bench.build()
    assert bench.listed("-a") == every


def test_a_name_that_moves_leaves_a_dangling_image(bench: Bench) -> None:
    first = bench.build("FROM scratch\nCOPY f /f\n", {"f": "1"})
    second = bench.build(None, {"f": "2"})
    assert bench.names() == {"app:latest": second.image}
    assert bench.listed("-f", "dangling=true") == [first.image]
    third = bench.build(None, {"f": "1"})
    assert third.image == first.image
    assert bench.listed("-f", "dangling=true") == [second.image]


def test_a_failed_build_leaves_no_dangling_image(bench: Bench) -> None:
    bench.build("FROM base\nRUN touch /x\nRUN exit 1\n", code=1)
    assert bench.listed() == []
    assert bench.listed("-f", "dangling=true") == []


def test_history_counts_the_layers(bench: Bench) -> None:
    image = bench.made(
        "FROM base AS one\nENV A=b\nRUN true\nRUN touch /1\nONBUILD RUN touch /triggered\n"
        "FROM one\nLABEL a=b\nCOPY f /f\nCOPY f /f\nWORKDIR /\nWORKDIR /new\nUSER root\nCMD true\n",
        {"f": "x"},
    )
    assert sum(not empty for _, empty in image.history) == len(image.diff_ids) == len(image.layers)
    assert [line for line, empty in image.history if "triggered" in line and not empty]
    lines = [line for line, _ in image.history]
    assert [at for at, line in enumerate(lines) if line.startswith(("ENV", "LABEL", "CMD"))] == [1, 5, len(lines) - 1]


def test_one_layer_too_many_is_told_before_anything_runs(bench: Bench) -> None:
    lines = "".join(f"COPY f /{number}\n" for number in range(127))
    bench.build(f"FROM scratch\n{lines}", {"f": "x"})
    assert len(bench.image().layers) == 127
    done = bench.build(f"FROM scratch\n{lines}COPY f /more\n", code=1)
    assert "127" in done.err
    assert not done.steps
    assert "--squash" in done.err
    # A chain of stages counts as one, and is told once.
    chain = f"FROM scratch AS one\n{lines}FROM one AS two\nCOPY f /more\nFROM two\nCOPY f /last\n"
    done = bench.build(chain, code=1)
    assert "stage two would have 128 layers, 127 of them from one" in done.err
    assert done.err.count("would have") == 1
    assert not done.steps
    # A stage that stands on another is not meant where it is only copied from.
    bench.build(f"FROM scratch AS one\n{lines}FROM scratch AS two\nCOPY --from=one / /\nCOPY f /more\n")
    bench.build(chain, None, "--squash")
    assert len(bench.image().layers) == 1
    assert {"/0", "/126", "/more", "/last"} <= set(bench.image().files)


def test_more_layers_than_can_be_mounted_are_no_way_out(bench: Bench) -> None:
    lines = "".join(f"COPY f /{number}\n" for number in range(501))
    done = bench.build(f"FROM scratch\n{lines}", {"f": "x"}, "--squash", code=1)
    assert "no more than 500" in done.err
    assert "--squash" not in done.err
    assert not done.steps


# ---------------------------------------------------------------- one layer


def test_squash(bench: Bench) -> None:
    dockerfile = (
        "FROM base AS one\nRUN echo one >/one && truncate -s 1000000 /big\nENV A=b\n"
        "FROM one\nRUN rm /big /etc/group && ln /one /two\nCOPY f /f\nUSER app\n"
    )
    plain = bench.made(dockerfile, {"f": "x"})
    done = bench.build(dockerfile, None, "--squash", tag="squashed")
    image = bench.image("squashed")
    assert all(done.cached.values()), "the steps were not done anew"
    assert image.files == plain.files
    assert len(image.layers) == 2
    assert image.diff_ids[0] == plain.diff_ids[0], "the base stays as it is"
    assert image.config["config"] == plain.config["config"]
    assert "big" not in "".join(image.names())
    assert "etc/.wh.group" in image.names()
    assert [empty for _, empty in image.history] == [False, *[True] * 5, False]
    assert image.config["history"][-1]["comment"].startswith(f"merge {bench.names()['app:latest']} to sha256:")
    again = bench.build(dockerfile, None, "--squash", tag="squashed")
    assert again.image == done.image
    assert all(again.cached.values())


def test_a_squashed_image_without_a_name_leaves_one_image(bench: Bench) -> None:
    done = bench.build("FROM scratch\nCOPY f /f\nCOPY f /g\n", {"f": "x"}, "--squash")
    assert bench.listed() == [done.image]
    assert len(bench.listed("-a")) > 1
    bench.pybuild("rmi", "app")
    assert bench.listed("-a") == []


def test_squash_where_there_is_nothing_to_do(bench: Bench) -> None:
    dockerfile = "FROM scratch\nCOPY f /f\nLABEL a=b\n"
    bench.build(dockerfile, {"f": "x"}, "--squash")
    assert len(bench.image().layers) == 1
    bench.build("FROM base\nENV A=b\n", None, "--squash")
    assert bench.image().history[-1] == ("ENV A=b", True)
    done = bench.build("FROM base\nRUN touch /x\nRUN rm /x\n", None, "--squash")
    assert len(bench.image().layers) == 1
    assert sum(not empty for _, empty in bench.image().history) == 1
    assert done.code == 0


# ---------------------------------------------------------------- several builds at once


def test_two_processes_build_at_once_on_one_store(bench: Bench) -> None:
    dockerfile = (
        "FROM base AS one\nRUN for i in 1 2 3 4 5; do echo $i >/$i; done\nCOPY d /d\n"
        "FROM one\nRUN cat /1 /d/1 >/x\nRUN rm /2\n"
    )
    words = bench.words(dockerfile, {f"d/{number}": str(number) * 100 for number in range(50)})
    running = [bench.start(words[0], "-t", f"app{number}", "-t", "app", *words[1:]) for number in range(3)]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
    assert set(bench.names()) == {"app:latest", "app0:latest", "app1:latest", "app2:latest"}
    for number in range(3):
        image = bench.image(f"app{number}")
        assert "/2" not in image.files
        assert "/d/49" in image.files
        assert all(layer.exists() for layer in image.layers)
    assert set(bench.build(dockerfile).cached.values()) == {True}
    assert mounts_below(bench.folder) == []
    assert os.listdir(bench.root / "tmp") == []


def test_pruning_while_a_build_runs_takes_nothing_from_it(bench: Bench) -> None:
    needs_run()
    words = bench.words("FROM base\nRUN touch /1\nCOPY f /f\nRUN sleep 0.7; touch /2\nRUN cat /f /1 >/3\n", {"f": "x"})
    process = bench.start(words[0], "-t", "app", *words[1:])
    while process.poll() is None:
        bench.pybuild("image", "prune", "--all", "--force", alone=True)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()


# ---------------------------------------------------------------- being stopped


def test_a_stop_before_the_first_step_does_nothing(bench: Bench) -> None:
    isolation = privileged()
    if isolation is None:
        pytest.skip("needs root that may mount, for a build in this process")
    words = bench.words(f"FROM base\n{RUN_X}\n")
    stop = threading.Event()
    stop.set()
    with Store.open(bench.root) as store, pytest.raises(CancelledError):
        build(
            request_of(read(BUILD, ["-t", "app", *words[1:]]), {}),
            store=store,
            isolation=isolation,
            report=lambda _event: None,
            stop=stop,
            stdin=io.BytesIO(),
        )
    assert bench.names() == {}


def test_the_store_may_be_moved(bench: Bench) -> None:
    """Nothing in it says where it stands."""
    bench.build(f"FROM base\n{RUN_X}\n")
    other = Bench(bench.folder / "elsewhere")
    shutil.copytree(bench.root, other.root, symlinks=True)
    shutil.copytree(bench.context, other.context)
    shutil.rmtree(bench.root)
    assert other.build(None).cached == {RUN_X: True}
    assert other.build(f"FROM app\n{RUN_X}\n", tag="next").steps

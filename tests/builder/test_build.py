from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from builder.build import build
from builder.cli.build import BUILD, request_of
from builder.cli.flags import read
from builder.errors import BuildError, BuildErrors
from builder.events import BuildFinished, BuildPlanned, Warned
from cache.store import Store
from tests.building import Bench, archive, image_of, member, write

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from builder.events import Event
    from builder.model import BuildResult


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class NoGround:
    """A place without RUN, which must not be asked for either: what is tested here needs none."""

    tier = "none"
    reason = ""
    shared = ""

    def executor(self) -> None:
        raise AssertionError

    def snapshots(self, store: Store) -> None:
        raise AssertionError(store)


def built(bench: Bench, *words: str) -> tuple[BuildResult, list[Event]]:
    import io
    import threading

    events: list[Event] = []
    stop: threading.Event = threading.Event()
    with Store.open(bench.root) as store:
        result = build(
            request_of(read(BUILD, [*words, str(bench.context)]), {}),
            store=store,
            isolation=NoGround(),  # type: ignore[arg-type]
            report=events.append,
            stop=stop,
            stdin=io.BytesIO(),
        )
    return result, events


def test_a_build_of_files_asks_for_no_place_to_run(bench: Bench) -> None:
    write(bench.context, {"Dockerfile": "FROM scratch\nCOPY f /f\nENV A=b\n", "f": "x"})
    result, events = built(bench, "-t", "app:1.0", "-t", "other")
    assert result.names == ("docker.io/library/app:1.0", "docker.io/library/other:latest")
    assert (result.steps, result.cached) == (1, 0)
    assert isinstance(events[0], BuildPlanned)
    assert isinstance(events[-1], BuildFinished)
    assert events[-1].result == result
    assert bench.names() == {"app:1.0": result.image.id, "other:latest": result.image.id}
    assert built(bench)[0].cached == 1


def test_independent_mistakes_come_together_and_before_any_step(bench: Bench) -> None:
    write(
        bench.context,
        {"Dockerfile": "FROM scratch AS one\nCOPY no1 /\nFROM scratch\nCOPY no2 /\nCOPY --from=one /x /x\n"},
    )
    with pytest.raises(BuildErrors) as caught:
        built(bench, "-t", "app")
    assert [error.message.split(":")[0] for error in caught.value.errors] == ['"/no1"', '"/no2"']
    assert bench.names() == {}


def test_findings_are_told_and_kept_in_the_result(bench: Bench) -> None:
    write(bench.context, {"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "x"})
    result, events = built(bench, "--build-arg=UNASKED=1")
    told = [event.finding for event in events if isinstance(event, Warned)]
    assert any("UNASKED" in finding.message for finding in told)
    assert tuple(told) == result.findings


@pytest.mark.parametrize("words", [["-o", "type=nothing,dest=x"], ["-o", "type=oci,dest=x,colour=red"]])
def test_an_output_that_can_not_be_is_told_before_the_build(bench: Bench, words: list[str]) -> None:
    write(bench.context, {"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "x"})
    with pytest.raises(BuildError):
        built(bench, "-t", "app", *words)
    assert bench.names() == {}
    assert bench.listed("-a") == []


def test_labels_are_the_target_s(bench: Bench) -> None:
    dockerfile = "FROM scratch AS one\nLABEL a=1 b=2\nCOPY f /f\nFROM one\nCOPY f /g\n"
    image = bench.made(dockerfile, {"f": "x"}, "--label", "b=mine", "--label", "c=3")
    assert image.config["config"]["Labels"] == {"a": "1", "b": "mine", "c": "3"}
    image = bench.made(dockerfile, None, "--target=one")
    assert image.config["config"]["Labels"] == {"a": "1", "b": "2"}


def test_a_target_in_any_case(bench: Bench) -> None:
    dockerfile = "FROM scratch AS One\nCOPY f /1\nFROM scratch AS two\nCOPY f /2\nFROM scratch\nCOPY f /3\n"
    for target, name in (("one", "/1"), ("TWO", "/2"), ("", "/3")):
        assert set(bench.made(dockerfile, {"f": "x"}, f"--target={target}").files) == {name}


def test_triggers_of_a_base_bring_their_stages_in(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY f /f\nONBUILD COPY --from=more /f /triggered\n", {"f": "x"}, tag="base-image")
    image = bench.made("FROM scratch AS more\nCOPY g /f\nFROM base-image\nCOPY f /after\n", {"g": "y"})
    assert image.text("/triggered") == "y"
    assert "OnBuild" not in image.config["config"] or not image.config["config"]["OnBuild"]
    done = bench.build("FROM base-image\n", None, code=1)
    assert "more" in done.err


@pytest.mark.parametrize("kind", ["folder", "oci", "docker", "image", "rootfs"])
def test_every_kind_of_base(bench: Bench, kind: str) -> None:
    out = bench.folder / "out"
    bench.build(
        "FROM scratch\nCOPY f /f\nENV A=b\n", {"f": "x"}, f"--output=type=oci,tar=false,dest={out}",
        f"--output=type=docker,dest={out}.docker.tar", tag="known",
    )  # fmt: skip
    other = Bench(bench.folder / "other")
    write(other.context, {"f": "x"})
    where = {
        "folder": str(write(bench.folder / "rootfs", {"f": "x"})),
        "oci": f"oci-layout://{out}",
        "docker": f"docker-archive://{out}.docker.tar",
        "image": "docker-image://known",
        "rootfs": "docker-image://imported",
    }[kind]
    if kind == "image":
        other = bench
    if kind == "rootfs":
        (bench.folder / "r.tar").write_bytes(archive((member("f"), b"x")))
        other.pybuild("import", str(bench.folder / "r.tar"), "imported")
    image = other.made("FROM b\nCOPY f /g\n", None, f"--build-context=b={where}")
    assert set(image.files) == {"/f", "/g"}
    if kind in {"oci", "docker", "image"}:
        assert "A=b" in image.config["config"]["Env"]


def test_a_context_in_the_place_of_a_stage(bench: Bench) -> None:
    write(bench.folder / "given", {"f": "given"})
    dockerfile = "FROM scratch AS one\nCOPY missing /f\nFROM scratch\nCOPY --from=one /f /f\n"
    image = bench.made(dockerfile, {"x": ""}, f"--build-context=one={bench.folder / 'given'}")
    assert image.text("/f") == "given"


def test_files_of_the_result(bench: Bench) -> None:
    iid, meta = bench.folder / "iid", bench.folder / "meta"
    done = bench.build("FROM scratch\nCOPY f /f\n", {"f": "x"}, f"--iidfile={iid}", f"--metadata-file={meta}")
    assert iid.read_text() == done.image
    told = json.loads(meta.read_text())
    assert told["containerimage.config.digest"] == done.image
    assert told["image.name"] == "docker.io/library/app:latest"
    bench.build("FROM scratch\nCOPY gone /f\n", None, f"--iidfile={iid}", f"--metadata-file={meta}", code=1)
    assert not iid.exists()
    assert not meta.exists()


def test_several_outputs_of_one_build(bench: Bench) -> None:
    out = bench.folder / "out"
    done = bench.build(
        "FROM scratch\nCOPY f /d/f\n", {"f": "x"}, f"--output=type=oci,dest={out}.oci", f"--output={out}",
        f"--output=type=tar,dest={out}.tar", f"--output=type=oci,tar=false,dest={out}.layout",
    )  # fmt: skip
    assert (out / "d/f").read_text() == "x"
    with tarfile.open(f"{out}.tar") as tar:
        assert "d/f" in tar.getnames()
    with tarfile.open(f"{out}.oci") as tar:
        assert "index.json" in tar.getnames()
    assert image_of(bench.folder / "out.layout").config == bench.image().config
    assert [event["what"] for event in done.events if event["event"] == "export-finished"]


def test_a_dockerfile_from_standard_input_and_no_context(bench: Bench) -> None:
    bench.pybuild("build", "-t", "app", "-", stdin=b"FROM scratch\nCOPY <<END /f\nx\nEND\n")
    assert bench.image().text("/f") == "x\n"
    write(bench.context, {"f": "y"})
    bench.pybuild("build", "-t", "app", "-f", "-", str(bench.context), stdin=b"FROM scratch\nCOPY f /f\n")
    assert bench.image().text("/f") == "y"
    packed = archive((member("Dockerfile"), b"FROM scratch\nCOPY f /f\n"), (member("f"), b"z"))
    bench.pybuild("build", "-t", "app", "-", stdin=packed)
    assert bench.image().text("/f") == "z"


def test_a_build_twice_in_two_stores_is_the_same_with_an_epoch(bench: Bench) -> None:
    ids = set()
    for number in (1, 2):
        other = Bench(bench.folder / str(number), {"SOURCE_DATE_EPOCH": "1700000000"})
        ids.add(other.build("FROM base\nRUN echo x >/x\nCOPY f /f\n", {"f": "y"}).image)
    assert len(ids) == 1

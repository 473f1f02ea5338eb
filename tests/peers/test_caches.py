"""The cache in a real registry (Debian's docker-registry), used by several builders at once."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, busybox, needs_run, write
from tests.peers.test_registries import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.test_registries import Served

pytestmark = [pytest.mark.slow, pytest.mark.peer("docker-registry")]

TEXT = """\
FROM base AS one
RUN sleep 0.3; cat /proc/sys/kernel/random/uuid > /id
RUN --mount=type=cache,id=pip,target=/c echo kept > /c/file; cat /id > /b
FROM base
COPY --from=one /b /b
COPY file /file
RUN sleep 0.3; cat /b > /c
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Bench]]:
    needs_run()
    made = [Bench(tmp_path / f"machine{number}") for number in range(4)]
    for machine in made:
        write(machine.folder / "context", {"Dockerfile": TEXT, "file": "f"})
    yield made
    for machine in made:
        machine.close()


def build(machine: Bench, *words: str) -> subprocess.Popen[bytes]:
    named = f"--build-context=base={busybox()}"
    return machine.start("build", "--progress=rawjson", named, *words, str(machine.context))


def ended(processes: list[subprocess.Popen[bytes]]) -> list[dict[str, object]]:
    """The steps that were finished."""
    found = []
    for process in processes:
        _, err = process.communicate(timeout=120)
        text = err.decode()
        assert process.returncode == 0, text
        assert '"event":"warning"' not in text, text
        found += [json.loads(line) for line in text.splitlines() if '"step-finished"' in line]
    return found


def test_builders_share_the_work_and_the_layers(there: Served, machines: list[Bench]) -> None:
    cache = [f"--cache-to={there.name}/shared", f"--cache-from={there.name}/shared"]
    steps = ended([build(machine, *cache, "-t", "app") for machine in machines])
    assert len(steps) == 5 * len(machines)
    assert sum(not step["cached"] for step in steps) == 5
    assert len({machine.names()["app:latest"] for machine in machines}) == 1
    assert {machine.image().text("/c") for machine in machines} == {machines[0].image().text("/b")}


def test_a_fresh_builder_gets_all_and_pushes_without_a_layer(
    there: Served, machines: list[Bench], tmp_path: Path
) -> None:
    cache = [f"--cache-to={there.name}/again", f"--cache-from={there.name}/again"]
    assert not any(step["cached"] for step in ended([build(machines[0], *cache, "-t", "app")]))
    steps = ended([build(machines[1], *cache, "--push", "-t", f"{there.name}/app:1")])
    assert all(step["cached"] for step in steps)
    # The base is a folder of the machine itself; of the rest no layer came.
    above = [layer["digest"].replace(":", "/") for layer in machines[0].image().manifest["layers"][1:]]
    assert not [name for name in above if (machines[1].root / "blobs" / name).exists()]
    # What was pushed is what the first one has.
    done = machines[2].alone("pull", f"{there.name}/app:1")
    assert done.code == 0, done.err
    assert set(machines[2].names().values()) == set(machines[0].names().values())
    # A changed step: the cache mount of the others is there.
    machine = machines[3]
    write(machine.context, {"Dockerfile": TEXT.replace("echo kept > /c/file;", "cat /c/file > /kept;")})
    ended([build(machine, *cache, "-t", "app")])
    assert next((machine.root / "mounts").glob("*/data/file")).read_text() == "kept\n"


def test_the_records_of_an_image_survive_skopeo(there: Served, machines: list[Bench]) -> None:
    import shutil

    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    ended([build(machines[0], "--cache-to=type=inline", "--push", "-t", f"{there.name}/inline:1")])
    subprocess.run(
        [
            "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
            f"docker://{there.name}/inline:1", f"docker://{there.name}/copied:2",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    steps = ended([build(machines[1], f"--cache-from={there.name}/copied:2", "-t", "app")])
    # Those of the last stage; the first one is not part of the image.
    assert [step["cached"] for step in steps] == [False, False, *[step["cached"] for step in steps[2:]]]
    assert machines[0].image(f"{there.name}/inline:1").diff_ids[0] == machines[1].image().diff_ids[0]

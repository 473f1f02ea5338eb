"""Every case of the corpus, built by pybuild and compared with what BuildKit made of it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import debian
from tests.conformance import bases, run

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CASES = run.find_cases("*", None)
DIFFERENCES = tomllib.loads((HERE / "differences.toml").read_text())
BUSYBOX = "/bin/busybox"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the cases make device nodes and foreign owners: needs root"),
    pytest.mark.skipif(not Path(BUSYBOX).exists(), reason="needs a static busybox (package busybox-static)"),
]


def options(work: Path) -> argparse.Namespace:
    command = shlex.join([sys.executable, "-m", "builder.cli"])
    return argparse.Namespace(
        builder="pybuild", command=command, bases=work / "bases", busybox=BUSYBOX, keep=False, timeout=60.0, ref=None,
        record=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[run.Runner]:
    work = tmp_path_factory.mktemp("conformance")
    bases.make_bases(work / "bases", BUSYBOX)
    made = run.Runner(options(work), work)
    yield made
    made.close()
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="session")
def debian_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[run.Runner]:
    tar, reason = debian.rootfs()
    if tar is None:
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("conformance-debian")
    bases.make_bases(work / "bases", BUSYBOX, str(tar))
    made = run.Runner(options(work), work)
    yield made
    made.close()
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One store for all cases, and nothing of the user's own settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYBUILD_ROOT", str(tmp_path_factory.mktemp("store")))
        patch.setenv("PYTHONPATH", str(HERE.parents[1]))
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        yield


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_case(case: run.Case, request: pytest.FixtureRequest) -> None:
    runner: run.Runner = request.getfixturevalue("debian_runner" if "debian" in case.needs else "runner")
    result = runner.run(case)
    agrees = result.status in {"pass", "quirk"}
    reason = DIFFERENCES.get(case.slug)
    if reason is not None:
        assert not agrees, f"{case.slug} agrees: take it out of differences.toml"
        return
    assert agrees, "\n".join([result.status, *result.notes])


def test_differences_name_cases() -> None:
    assert set(DIFFERENCES) <= {case.slug for case in CASES}

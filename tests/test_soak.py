"""A short siege of a store; `tests/benchmarks/soak.py` does a long one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.soak import Soak
from tests.building import busybox, needs_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_builds_kills_and_prunes_side_by_side_leave_a_whole_store(tmp_path: Path) -> None:
    needs_run()
    seed = int(os.environ.get("PYBUILD_SOAK_SEED", str(os.getpid())))
    soak = Soak(tmp_path, busybox(), builds=24, workers=3, seed=seed, quiet=True)
    soak.run()
    assert not soak.wrong, f"PYBUILD_SOAK_SEED={seed}\n" + "\n".join(soak.wrong)
    assert soak.done["built"] + soak.done["killed"] >= 12

"""A real distribution: what its package manager does properly is no reason for a warning, and the careless is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import debian
from tests.building import ROOT, Bench, needs_run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.network]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    needs_run()
    base, reason = debian.rootfs()
    if base is None:
        pytest.skip(reason)
    made = Bench(tmp_path_factory.mktemp("debian"))
    made.pybuild("import", str(base), "debian:bookworm")
    return made


def looked(bench: Bench, context: Path, *flags: str) -> list[dict[str, Any]]:
    """What a build of a folder says of its layers; skipped where no mirror can be reached."""
    done = bench.pybuild("build", "--progress=rawjson", "--lint", *flags, str(context), code=None)
    if done.code and ("apt-get" in done.err or "pip" in done.err):
        pytest.skip(f"needs a mirror of Debian: {done.err.strip().splitlines()[-1][:200]}")
    assert done.code == 0, done.err
    return [event for event in done.events if event["event"] == "warning"]


def test_python_installed_and_cleaned_is_no_warning(bench: Bench) -> None:
    text = """\
FROM debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends python3 \\
    && apt-get clean && rm -rf /var/lib/apt/lists/*
CMD ["python3"]
"""
    bench.context.mkdir(exist_ok=True)
    (bench.context / "Dockerfile").write_text(text)
    events = looked(bench, bench.context)
    assert [event for event in events if event["severity"] != "info"] == []


def test_a_good_example_is_no_warning(bench: Bench) -> None:
    assert [e for e in looked(bench, ROOT / "examples" / "c-multistage") if e["severity"] != "info"] == []


def test_the_careless_example_is_told_line_by_line(bench: Bench) -> None:
    events = [event for event in looked(bench, ROOT / "examples" / "leftovers") if event["severity"] == "warning"]
    found = [(event["rule"], event["line"]) for event in events if "layer" in event]
    assert found == [
        ("AptLeftovers", 5),
        ("AptLeftovers", 6),
        ("RewrittenFiles", 6),
        ("DeletedLater", 9),
        ("TemporaryFiles", 17),
    ]
    (deleted,) = [event for event in events if event["rule"] == "DeletedLater"]
    assert (deleted["size"], deleted["related"], deleted["paths"]) == (8 << 20, [10], ["tmp/download.bin"])

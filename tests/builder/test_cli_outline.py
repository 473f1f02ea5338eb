"""`--dry-run`, on the examples held by the files of tests/golden/dry-run.

To change those, run this file with PYBUILD_UPDATE_GOLDEN=1 and read the difference.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dry-run"
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/Dockerfile"))


def dry_run(store: Path, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    around = Surroundings({"PYBUILD_ROOT": str(store)}, io.BytesIO(), out, err)
    code = run(["build", "--dry-run", "--platform", "linux/amd64", *words], around)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples(example: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    contexts = [f"--build-context={name}={base}" for name in ("base", "debian:bookworm")]
    code, out, err = dry_run(tmp_path / "store", *contexts, str(ROOT / "examples" / example))
    assert (code, err) == (0, "")
    out = out.replace(f"{ROOT}/", "")
    golden = GOLDEN / f"{example}.txt"
    if os.environ.get("PYBUILD_UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(out)
    assert out == golden.read_text()


def test_every_golden_file_has_its_example() -> None:
    assert [path.stem for path in sorted(GOLDEN.glob("*.txt"))] == EXAMPLES


def test_values_of_build_arguments_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nARG TOKEN\nENV SHOWN=yes\nRUN login\n")
    code, out, _ = dry_run(tmp_path / "store", "--build-arg", "TOKEN=hush", str(tmp_path))
    assert code == 0
    assert "hush" not in out
    assert "TOKEN SHOWN=yes" in out


def test_every_kind_of_step(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch AS one\n"
        "ADD --checksum=sha256:" + "0" * 64 + " https://example.org/f /f\n"
        "COPY --chown=1:2 --link --parents --exclude=*.o a /d/\n"
        "RUN --mount=type=bind,target=/b --mount=type=tmpfs,target=/t --mount=type=secret,id=s,env=S \\\n"
        "    --mount=type=ssh --mount=type=cache,target=/c true\n"
        "FROM scratch\n"
        "RUN --network=none <<E\necho\nE\n"
    )
    code, out, err = dry_run(tmp_path / "store", "--target", "one", str(tmp_path))
    assert code == 0, err
    for text in (
        "https://example.org/f with sha256:000",
        "a of the context -> /d/",
        "owner 1:2, on a layer of its own, with parents, without *.o",
        "bind / of the context at /b",
        "tmpfs at /t",
        "secret s as S",
        "cache /c at /c, shared",
        "not needed: stage-1",
    ):
        assert text in out
    assert not list((tmp_path / "store" / "blobs" / "sha256").iterdir())


def test_mistakes_are_errors_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY none /\n")
    code, out, err = dry_run(tmp_path / "store", str(tmp_path))
    assert (code, out) == (1, "")
    assert "Dockerfile:2:" in err

"""Several independent mistakes are told together, in the order of their lines, before anything runs."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings
from builder.errors import BuildError, BuildErrors, CancelledError, gathered, raise_all
from grammar.source import Span

if TYPE_CHECKING:
    from pathlib import Path


def mistakes(folder: Path, text: str, *words: str) -> list[tuple[str, int]]:
    """Message and line of each error of a build."""
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(text)
    err = io.StringIO()
    around = Surroundings({"PYBUILD_ROOT": str(folder / "store")}, io.BytesIO(), io.StringIO(), err)
    assert run(["build", "--dry-run", "--pull=never", *words, str(context)], around) == 1
    found = re.findall(r"error: (.*)\n(?: --> [^:]*:(\d+):)?", err.getvalue())
    return [(message, int(line or 0)) for message, line in found]


def test_of_the_plan(tmp_path: Path) -> None:
    text = "FROM --platform=a/b/c/d x\nFROM $NOTHING\nFROM scratch\nCOPY --from=9 a b\nCOPY --from=$NO a b\n"
    assert [line for _, line in mistakes(tmp_path, text, "--target=nowhere")] == [0, 1, 2, 4, 5]


def test_of_bases_instructions_files_and_copied_images(tmp_path: Path) -> None:
    text = """\
FROM scratch AS one
COPY nosuch /
STOPSIGNAL nonsense
EXPOSE 99999
FROM nobody:1 AS two
STOPSIGNAL unknown-state
FROM nobody:1 AS same
FROM two AS three
STOPSIGNAL unknown-state
FROM scratch
COPY --from=one / /
COPY --from=three / /
COPY --from=same / /
COPY --from=nobody:2 / /
WORKDIR /x
COPY --chmod=9 a b
ADD --checksum=sha256:1 a b
"""
    assert mistakes(tmp_path, text) == [
        ('"/nosuch": not found in the build context', 2),
        ("invalid signal: nonsense", 3),
        ("invalid containerPort: 99999", 4),
        ("base image nobody:1 is not in the store", 5),
        ("base image nobody:2 is not in the store", 14),
        ("invalid chmod parameter: '9'. it should be octal string and between 0 and 07777", 16),
        ("checksum requires HTTP(S) or Git sources", 17),
    ]


def test_errors_are_put_in_the_order_of_their_lines() -> None:
    errors: list[BuildError] = []
    for line in (3, 1):
        with gathered(errors):
            raise BuildError(f"line {line}", span=Span(line, 1, line, 2))
    with pytest.raises(BuildErrors) as caught:
        raise_all([BuildErrors(tuple(errors)), BuildError("of the command line")])
    assert [error.message for error in caught.value.errors] == ["of the command line", "line 1", "line 3"]


def test_a_stop_is_no_mistake() -> None:
    errors: list[BuildError] = []
    with pytest.raises(CancelledError), gathered(errors):
        raise CancelledError("stopped")
    assert not errors


def test_a_filter_that_names_no_stage_is_said(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch AS Build\nFROM scratch\n")
    err = io.StringIO()
    around = Surroundings({"PYBUILD_ROOT": str(tmp_path / "store")}, io.BytesIO(), io.StringIO(), err)
    assert run(["build", "--dry-run", "--no-cache-filter=BUILD,stage-1,buidl", str(tmp_path)], around) == 0
    assert "--no-cache-filter buidl: no stage is called so\nhint: did you mean build?" in err.getvalue()
    assert err.getvalue().count("no stage is called so") == 1

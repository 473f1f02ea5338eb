"""Ignore patterns against BuildKit's recorded tables, and against a naive matcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grammar.ignore import Ignore, PatternError, read_lines

TABLES = Path(__file__).parents[1] / "conformance/tables"


def rows(name: str, columns: int) -> list[list[str]]:
    lines = (TABLES / name).read_text("utf-8").split("\n")
    return [
        line.split("\t") for line in lines if line and not line.startswith("# ") and line.count("\t") == columns - 1
    ]


def test_tables_are_whole() -> None:
    assert len(rows("ignore.tsv", 4)) == 177
    assert len(rows("ignorefile.tsv", 2)) == 23


@pytest.mark.parametrize(("patterns", "path", "is_dir", "expected"), rows("ignore.tsv", 4))
def test_table(patterns: str, path: str, is_dir: str, expected: str) -> None:
    if expected == "ERROR":
        with pytest.raises(PatternError):
            Ignore.of(patterns.split("|"))
        return
    ignore = Ignore.of(patterns.split("|"))
    assert ignore.match(path, is_dir == "1") == (expected == "1")
    assert ignore.match(path.encode()) == (expected == "1")


@pytest.mark.parametrize(("text", "patterns"), rows("ignorefile.tsv", 2))
def test_file_table(text: str, patterns: str) -> None:
    assert [pattern for _, pattern in read_lines(json.loads(text))] == json.loads(patterns)

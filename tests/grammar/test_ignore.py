"""Ignore patterns against BuildKit's recorded tables, and against a naive matcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grammar.ignore import Ignore, PatternError, glob_match, read_lines
from grammar.source import DockerfileError

TABLES = Path(__file__).parents[1] / "conformance/tables"


def rows(name: str, columns: int) -> list[list[str]]:
    lines = (TABLES / name).read_text("utf-8").split("\n")
    return [
        line.split("\t") for line in lines if line and not line.startswith("# ") and line.count("\t") == columns - 1
    ]


def test_tables_are_whole() -> None:
    assert len(rows("ignore.tsv", 4)) == 177
    assert len(rows("ignorefile.tsv", 2)) == 23


@pytest.mark.parametrize(("patterns", "path", "_is_dir", "expected"), rows("ignore.tsv", 4))
def test_table(patterns: str, path: str, _is_dir: str, expected: str) -> None:
    if expected == "ERROR":
        with pytest.raises(PatternError):
            Ignore.of(patterns.split("|"))
        return
    ignore = Ignore.of(patterns.split("|"))
    assert ignore.match(path) == (expected == "1")
    assert ignore.match(path.encode()) == (expected == "1")


@pytest.mark.parametrize(("text", "patterns"), rows("ignorefile.tsv", 2))
def test_file_table(text: str, patterns: str) -> None:
    assert [pattern for _, pattern in read_lines(json.loads(text))] == json.loads(patterns)


@pytest.mark.parametrize(
    ("text", "path", "line", "negated"),
    [
        ("# head\n\nnode_modules\n", "node_modules/a/b.js", 3, False),
        ("*\n!src\nsrc/*.tmp\n", "src/a.tmp", 3, False),
        ("*\n!src\nsrc/*.tmp\n", "src/a.c", 2, True),
        ("*\n!src\n", "src", 2, True),
        ("*.md", "docs/a.md", 0, False),
        ("a\r\n!a/b\r\n", "a/b/c", 2, True),
    ],
)
def test_the_line_that_decides(text: str, path: str, line: int, negated: bool) -> None:
    rule = Ignore.parse(text).decide(path)
    if not line:
        assert rule is None
    else:
        assert rule is not None
        assert (rule.line, rule.negated) == (line, negated)
        assert rule.text == text.split("\n")[line - 1].rstrip("\r")


def test_what_is_ignored_does_not_depend_on_what_was_asked_before() -> None:
    patterns = ["**/*.log", "a/**", "!a/b", "a/b/c*"]
    paths = ["a", "a/b", "a/b/c", "a/b/c/d", "a/x/y", "b/x.log", "b/x.log/z", "b"]
    together = Ignore.of(patterns)
    assert [together.match(path) for path in paths] == [Ignore.of(patterns).match(path) for path in paths]
    assert [together.match(path) for path in reversed(paths)] == [Ignore.of(patterns).match(p) for p in reversed(paths)]


@pytest.mark.parametrize(
    ("patterns", "directory", "prunable"),
    [
        (["node_modules"], "node_modules", True),
        (["node_modules"], "node_modules/a", True),
        (["node_modules"], "src", False),
        (["*", "!src"], "docs", True),
        (["*", "!src"], "src", False),
        (["*", "!src/keep"], "src", False),
        (["*", "!src/keep"], "docs", True),
        (["*", "!*/keep"], "docs", False),
        (["*", "!**/keep"], "docs", False),
        (["!docs/keep", "*"], "docs", True),
        (["*", "!d[a-z]cs/keep"], "docs", False),
    ],
)
def test_prunable(patterns: list[str], directory: str, prunable: bool) -> None:
    assert Ignore.of(patterns).prunable(directory) == prunable


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a\n!\n", 2, "illegal exclusion pattern"),
        ("[a\n", 1, "syntax error in pattern"),
        ("a\n\n  [b-a]\n", 3, "syntax error in pattern"),
        ("end\\\n", 1, "syntax error in pattern"),
    ],
)
def test_a_wrong_line_is_named(text: str, line: int, message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        Ignore.parse(text, "ctx/.dockerignore")
    assert caught.value.source.name == "ctx/.dockerignore"
    assert caught.value.span.line == line


def test_names_that_are_no_text() -> None:
    assert Ignore.of(["*.\udcff"]).match(b"a.\xff")
    assert Ignore.of(["a?b"]).match(b"a\xffb")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "a", True),
        ("*", "a/b", False),
        ("*", "", True),
        ("a*/b", "abc/b", True),
        ("a*", "ab/c", False),
        ("**/b", "a/b", True),
        ("**/b", "a/c/b", False),
        ("[a-c]", "b", True),
        ("[^a-c]", "b", False),
        ("[^a]", "/", True),
        ("[c-a]", "b", False),
        ("[^c-a]", "b", True),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("[\\]]", "]", True),
        ("a?c", "a/c", False),
        ("*x*y", "axbxy", True),
        ("*ab*ab", "abxab", True),
        ("*ab*ab", "xab", False),
    ],
)
def test_go_filepath_match(pattern: str, name: str, expected: bool) -> None:
    assert glob_match(pattern, name) == expected


@pytest.mark.parametrize("pattern", ["[", "[a", "[]", "[]a]", "[-a]", "[a-]", "a\\", "[a\\", "a[", "[^", "[\\"])
def test_go_filepath_match_refuses(pattern: str) -> None:
    with pytest.raises(PatternError):
        glob_match(pattern, "x")

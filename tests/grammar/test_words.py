"""The word expander against BuildKit's recorded table, its own rules, and a plain reference evaluator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grammar.words import WordError, expand, expand_heredoc, expand_with_names, expand_words

TABLE = Path(__file__).parents[1] / "conformance/tables/words.tsv"


def rows() -> list[tuple[str, str, str, dict[str, str], object]]:
    found = []
    for line in TABLE.read_text("utf-8").split("\n"):
        if line and not line.startswith("#"):
            mode, escape, word, env, expected = line.split("\t")
            found.append(
                (
                    mode,
                    escape,
                    json.loads(word),
                    json.loads(env),
                    expected if expected == "ERROR" else json.loads(expected),
                )
            )
    return found


def test_table_is_whole() -> None:
    assert len(rows()) == 213


@pytest.mark.parametrize(("mode", "escape", "word", "env", "expected"), rows())
def test_table(mode: str, escape: str, word: str, env: dict[str, str], expected: object) -> None:
    function = expand if mode == "word" else expand_words
    if expected == "ERROR":
        with pytest.raises(WordError):
            function(word, env, escape)
    else:
        assert function(word, env, escape) == expected


def test_names() -> None:
    found = expand_with_names("$A ${B:-$C} ${D:+${E}} '$F' \\$G", {"A": "1", "D": ""})
    assert found.text == "1   $F $G"
    assert found.used == {"A", "D"}
    assert found.missing == {"B", "C", "E"}


@pytest.mark.parametrize(
    ("word", "message", "offset"),
    [
        ("ab'c", "single-quote", 2),
        ('ab"c', "double-quote", 2),
        ("x${A", "missing '}'", 1),
        ("x${A:-b", "missing '}'", 1),
        ("x${A/b", "missing '/'", 1),
        ("x${}", "bad substitution", 1),
        ("x${A:=b}", r"unsupported modifier \(:=\)", 4),
        ("x${A?why not}", "A: why not", 1),
        ("x${A:?}", "A: is not allowed to be unset", 1),
        ("${A#\\x}", "invalid escape", 4),
    ],
)
def test_errors_say_where(word: str, message: str, offset: int) -> None:
    with pytest.raises(WordError, match=message) as caught:
        expand(word, {})
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("it's $A\n", "it's 1\n"),
        ('"${A}" \\$A \\\\', '"1" $A \\'),
        ("<< $none>", "<< >"),
    ],
)
def test_heredocs_have_no_quotes(body: str, expected: str) -> None:
    assert expand_heredoc(body, {"A": "1"}).text == expected


@pytest.mark.parametrize(
    ("word", "value", "expected"),
    [
        ("${V//a*/-}", "xaya", "x-"),
        ("${V//*/-}", "ab", "-"),
        ("${V///-}", "ab", "-a-b-"),
        ("${V//a/$R}", "xax", "x[a]$x"),
        ("${V/a/$R}", "xax", "x[${0}]$$$1x"),
        ("${V%%*/}", "a/b/", ""),
        ("${V#*\n}", "a\nb", "b"),
        ("${V##*b}", "a\nb", "a\nb"),
    ],
)
def test_corners_of_patterns(word: str, value: str, expected: str) -> None:
    assert expand(word, {"V": value, "R": "[${0}]$$$1"}) == expected


def test_split_words_lose_what_stands_before_an_operand() -> None:
    # As BuildKit does; see the comment in the lexer.
    assert expand_words("80${X:-81} 90", {}) == ["81", "90"]
    assert expand_words("80${X} 90", {"X": "1"}) == ["801", "90"]

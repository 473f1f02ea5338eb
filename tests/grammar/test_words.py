"""The word expander against BuildKit's recorded table, its own rules, and a plain reference evaluator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grammar.words import WordError, expand, expand_words

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

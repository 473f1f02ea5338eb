"""What was probably meant."""

from __future__ import annotations

import pytest

from grammar.suggest import did_you_mean, nearest

KEYWORDS = ("FROM", "RUN", "ENV", "ADD", "ARG", "COPY", "CMD", "USER", "LABEL", "EXPOSE")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("RNU", "RUN"),
        ("FORM", "FROM"),
        ("COPPY", "COPY"),
        ("LABL", "LABEL"),
        ("EXPOSES", "EXPOSE"),
        ("WIBBLE", ""),
        ("FOO", ""),
        ("", ""),
    ],
)
def test_nearest(word: str, meant: str) -> None:
    assert nearest(word, KEYWORDS) == meant


def test_the_word_itself_is_no_suggestion() -> None:
    assert nearest("RUN", ["RUN"]) == ""
    assert nearest("run", ["RUN"], ignore_case=True) == ""


def test_hint() -> None:
    assert did_you_mean("chwon", ["chown", "chmod"], prefix="--") == "did you mean --chown?"
    assert did_you_mean("x", ["chown"]) == ""

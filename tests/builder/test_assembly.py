from __future__ import annotations

import pytest

from builder.assembly import COMMENT, Made, assemble, layer_history, rfc3339
from builder.model import Lowered, StageState
from cache.oci import LAYER, Descriptor, History, ImageConfig, Layer, Platform, RuntimeConfig, digest_of
from grammar.parser import parse
from grammar.source import Source

INSTRUCTION = parse(Source("Dockerfile", "FROM scratch\nRUN true\n")).stages[0].instructions[0]
PLATFORM = Platform("amd64", "linux")
HERE = StageState(PLATFORM, RuntimeConfig(env=("A=b",), labels=(("a", "1"), ("b", "2"))), author="me")


def layer(text: str) -> Layer:
    data = text.encode()
    return Layer(digest_of(data), Descriptor(LAYER, digest_of(data + b"packed"), len(data)))


def made(line: str, content: str = "", created: float | None = None) -> Made:
    return Made(Lowered(INSTRUCTION, HERE, created_by=line), layer(content) if content else None, created)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_000_000_000.5, "2001-09-09T01:46:40.5Z"),
        (1.000001, "1970-01-01T00:00:01.000001Z"),
        (253402300799, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_written_as_the_spec_has_them(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.9999996, "1970-01-01T00:00:02Z"), (1_700_000_000.9999998, "2023-11-14T22:13:21Z")]
)
def test_a_fraction_that_rounds_up_takes_the_second_with_it(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text


@pytest.mark.parametrize(
    ("empty", "layers", "lines"),
    [
        ([], 0, []),
        ([], 2, [False, False]),
        ([False], 2, [False, False]),
        ([True, False], 1, [True, False]),
        ([True, False], 2, [True, False, False]),
        ([False, False], 1, [False]),
        ([True], 0, [True]),
    ],
)
def test_a_base_s_history_is_made_to_count_its_layers(empty: list[bool], layers: int, lines: list[bool]) -> None:
    history = [History(created_by=str(at), empty_layer=one) for at, one in enumerate(empty)]
    found = layer_history(history, layers)
    assert [line.empty_layer for line in found] == lines
    assert sum(not line.empty_layer for line in found) == layers


def test_a_fresh_image() -> None:
    config = assemble(
        None, HERE, [made("RUN one", "1", 5.0), made("ENV A=b"), made("RUN nothing", created=7.0)], created=9.0
    )
    assert config.diff_ids == (layer("1").diff_id,)
    assert [(line.created_by, line.empty_layer) for line in config.history] == [
        ("RUN one", False), ("ENV A=b", True), ("RUN nothing", True)
    ]  # fmt: skip
    assert {line.comment for line in config.history} == {COMMENT}
    # Metadata is as old as the step above it.
    assert [line.created for line in config.history] == [rfc3339(5), rfc3339(5), rfc3339(7)]
    assert config.created == rfc3339(9)
    assert config.author == "me"
    assert config.platform == PLATFORM


def test_what_stands_on_a_base_keeps_its_layers_and_lines() -> None:
    base = ImageConfig(
        platform=PLATFORM, diff_ids=(layer("base").diff_id,),
        history=(History(created_by="theirs", created="2001-01-01T00:00:00Z", comment="old"),),
        created="2001-01-01T00:00:00Z", os_version="10.0", os_features=("win32k",),
    )  # fmt: skip
    config = assemble(base, HERE, [made("COPY", "new", 5.0)], created=9.0)
    assert config.diff_ids == (layer("base").diff_id, layer("new").diff_id)
    assert config.history[0] == base.history[0]
    assert config.os_version == "10.0"
    assert config.os_features == ("win32k",)


def test_labels_of_the_command_line_win_and_keep_the_others() -> None:
    config = assemble(None, HERE, [], labels=(("b", "mine"), ("c", "3")), created=0)
    assert dict(config.config.labels) == {"a": "1", "b": "mine", "c": "3"}
    assert dict(HERE.config.labels) == {"a": "1", "b": "2"}


def test_a_fingerprint_has_no_times() -> None:
    one = assemble(None, HERE, [made("RUN", "x", 1.0), made("ENV")], created=None)
    other = assemble(None, HERE, [made("RUN", "x", 2.0), made("ENV")], created=None)
    assert one == other
    assert "T00:" not in str(one.to_json())


def test_a_fixed_time_is_that_of_every_new_line() -> None:
    config = assemble(None, HERE, [made("RUN", "x", 1.0), made("ENV")], created=50, fixed=True)
    assert {line.created for line in config.history} == {config.created} == {rfc3339(50)}


def test_instructions_without_a_line_leave_none() -> None:
    assert assemble(None, HERE, [made("")], created=0).history == ()

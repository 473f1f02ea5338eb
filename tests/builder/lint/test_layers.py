"""The rules on layers: what each one's page calls bad is found when it is built, what it calls good is not."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from builder.inspection import subject_of
from builder.lint.layers import RULES, LayerRule, examine
from builder.model import Finding, Severity
from cache.errors import StoreError
from cache.store import Store
from tests.building import Bench, busybox, needs_run
from tests.handmade import program

if TYPE_CHECKING:
    from pathlib import Path

PAGED = [rule for rule in RULES if "Bad:" in (inspect.getdoc(rule.check) or "")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    needs_run()
    return Bench(tmp_path)


def sections(rule: LayerRule) -> dict[str, str]:
    """The indented blocks of a rule's page, by their titles."""
    page = inspect.getdoc(rule.check) or ""
    found = re.findall(r"^(\S[^\n]*):\n((?:(?:    [^\n]*)?\n?)+)", page, re.MULTILINE)
    return {title: textwrap.dedent(body).strip() + "\n" for title, body in found}


def warnings(done: Any) -> list[dict[str, Any]]:
    names = {rule.name for rule in RULES}
    found = [event for event in done.events if event["event"] == "warning" and event["rule"] in names]
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def found(bench: Bench, dockerfile: str, *flags: str, files: Any = None, code: int = 0) -> list[dict[str, Any]]:
    """What building with --lint says of the layers."""
    return warnings(bench.build(dockerfile, files, "--lint", *flags, code=code))


def brief(events: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Rule, line and bytes."""
    return [(event["rule"], event["line"], event.get("size", 0)) for event in events]


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("rule", PAGED, ids=lambda rule: rule.name)
def test_the_bad_file_is_found_and_the_good_one_is_not(rule: LayerRule, bench: Bench) -> None:
    page = sections(rule)
    files = {"unstripped": program(debug=1 << 20), "stripped": program()}
    bad = [event for event in found(bench, page["Bad"], files=files) if event["rule"] == rule.name]
    assert bad, "Bad is not found"
    assert all(event["line"] for event in bad)
    good = found(bench, page["Good"])
    assert rule.name not in {event["rule"] for event in good}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_page_says_why(rule: LayerRule) -> None:
    page = inspect.getdoc(rule.check) or ""
    assert " ".join(page.split("\n\n")[0].split()) == rule.summary
    assert "\nWhy: " in page


# ---------------------------------------------------------------- planted junk

JUNK = """\
FROM base
RUN mkdir -p /var/lib/apt/lists /var/log && printf 12345 > /tmp/five && truncate -s 70000 /var/lib/apt/lists/x
COPY a.txt~ notes /docs/
RUN mkdir /data && printf 123 > /data/a && printf 4567 > /data/b && ln /data/b /data/c
RUN rm -r /data
RUN truncate -s 1000000 /big
RUN chmod 600 /big
RUN printf x >> /big
RUN mkdir -p /root/.cache/pip && truncate -s 65536 /root/.cache/pip/wheel && truncate -s 1048576 /var/log/lastlog
RUN true
"""

CLEAN = """\
FROM base
RUN --mount=type=tmpfs,target=/tmp --mount=type=cache,target=/var/lib/apt/lists printf 12345 > /tmp/five && \\
    truncate -s 70000 /var/lib/apt/lists/x && cat /tmp/five > /five
COPY notes /docs/
RUN mkdir /data && printf 123 > /data/a && rm -r /data && truncate -s 1000000 /big && printf x >> /big && chmod 600 /big
RUN --mount=type=cache,target=/root/.cache/pip truncate -s 65536 /root/.cache/pip/wheel && touch /done
"""

FILES = {"a.txt~": "backup", "notes": "notes"}


def test_planted_junk_is_found_on_its_line_with_its_bytes(bench: Bench) -> None:
    dockerfile = JUNK
    assert brief(found(bench, dockerfile, files=FILES)) == [
        ("TemporaryFiles", 2, 5),
        ("AptLeftovers", 2, 70000),
        ("TemporaryFiles", 3, 6),
        ("DeletedLater", 4, 7),
        ("MetadataRewrite", 7, 1000000),
        ("RewrittenFiles", 8, 1000000),
        ("LanguageCache", 9, 65536),
        ("LogFiles", 9, 1048576),
        ("EmptyLayer", 10, 0),
    ]


def test_the_same_from_the_cache_says_the_same(bench: Bench) -> None:
    first = bench.build(JUNK, FILES, "--lint")
    again = bench.build(None, None, "--lint")
    assert all(again.cached.values())
    assert warnings(again) == warnings(first)


def test_the_same_cleaned_is_silent(bench: Bench) -> None:
    assert found(bench, CLEAN, files={**FILES, ".dockerignore": "*~\n"}) == []


def test_both_lines_of_a_deletion_are_named(bench: Bench) -> None:
    events = found(bench, JUNK, files=FILES)
    (deleted,) = [event for event in events if event["rule"] == "DeletedLater"]
    assert (deleted["line"], deleted["related"], deleted["layer"]) == (4, [5], 3)
    assert sorted(deleted["paths"]) == ["data/a", "data/b"]
    assert "line 4 ships what line 5 deletes" in deleted["message"]


def test_lint_is_silent_without_the_flag(bench: Bench) -> None:
    assert warnings(bench.build("FROM base\nRUN printf 1 > /tmp/x\n")) == []


def test_error_fails_before_any_name_moves(bench: Bench) -> None:
    done = bench.build("FROM base\nRUN printf 1 > /tmp/x\n", None, "--lint=error", code=1)
    assert "TemporaryFiles" in done.err
    assert bench.names() == {}
    assert "no name was given" in done.err
    bench.build("FROM base\nRUN printf 1 > /x\n", None, "--lint=error")
    assert list(bench.names()) == ["app:latest"]


def test_an_info_is_no_error(bench: Bench) -> None:
    done = bench.build("FROM base\nRUN true\n", None, "--lint=error")
    assert [event["severity"] for event in warnings(done)] == ["info"]


def test_a_check_comment_leaves_a_rule_out(bench: Bench) -> None:
    assert found(bench, "# check=skip=TemporaryFiles\nFROM base\nRUN printf 1 > /tmp/x\n") == []


def test_a_bad_value(bench: Bench) -> None:
    assert "--lint=eror" in bench.build("FROM base\n", None, "--lint=eror", code=2).err
    assert "--max-waste" in bench.build("FROM base\n", None, "--max-waste=200%", code=2).err
    assert "--max-size" in bench.build("FROM base\n", None, "--max-size=big", code=2).err


# ---------------------------------------------------------------- budgets


def test_budgets_count_to_the_byte(bench: Bench) -> None:
    text = "FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY c /a\n"
    files = {"a": b"x" * 700_001, "b": b"y" * 300_000, "c": b"z" * 10}
    bench.build(text, files, "--max-size=1000011", "--max-layer=700001", "--max-waste=700001")
    done = bench.build(text, files, "--max-size=1000010", "--max-layer=700000", "--max-waste=700000", code=1)
    assert brief(warnings(done)) == [("LayerOverBudget", 2, 1), ("ImageOverBudget", 0, 1), ("WasteOverBudget", 0, 1)]
    assert {event["severity"] for event in warnings(done)} == {"error"}


def test_a_share_of_waste(bench: Bench) -> None:
    files = {"a": b"x" * 10, "b": b"y" * 90}
    bench.build("FROM scratch\nCOPY a /a\nCOPY b /a\n", files, "--max-waste=10%")
    done = bench.build(None, None, "--max-waste=9%", code=1)
    assert "10 bytes (10B, 10.0% of what the own layers ship) are shipped and not seen" in done.err


# ---------------------------------------------------------------- the base is nobody's fault


def test_what_the_base_ships_is_not_told(bench: Bench) -> None:
    bench.build("FROM base\nRUN printf 12345 > /tmp/five\nRUN rm /tmp/five\n", tag="below")
    store = Store.open(bench.root)
    try:
        bench.build("FROM below\nRUN printf x > /x\n", None, tag="above")
        subject = subject_of(store.image("above"), store)
        assert [layer.own for layer in subject.layers] == [False, False, False, True]
        assert examine(subject) == []
    finally:
        store.close()


def test_deleting_what_the_base_ships_is_told_without_a_warning(bench: Bench) -> None:
    (event,) = found(bench, "FROM base\nRUN rm /etc/group\n")
    assert (event["rule"], event["severity"], event["line"]) == ("DeletedLater", "info", 2)
    assert event["size"] == (busybox() / "etc/group").stat().st_size


def test_an_image_without_its_build_file_tells_layers_and_history(bench: Bench) -> None:
    bench.build("FROM base\nRUN printf 12345 > /tmp/five\nRUN rm /tmp/five\nCOPY notes /tmp/\n", FILES)
    store = Store.open(bench.root)
    try:
        subject = subject_of(store.image("app"), store)
        first, second = examine(subject)
    finally:
        store.close()
    assert isinstance(first, Finding)
    assert (first.rule, first.layer, first.size, first.paths, first.span) == ("DeletedLater", 1, 5, ("tmp/five",), None)
    assert first.severity is Severity.INFO
    assert "RUN printf 12345" in first.message
    assert first.created_by.startswith("RUN /bin/sh -c printf")
    assert (second.rule, second.layer, second.size, second.paths) == ("TemporaryFiles", 3, 5, ("tmp/notes",))


# ---------------------------------------------------------------- bad input


def test_a_damaged_layer_is_a_finding_and_the_rest_is_looked_at(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY a /tmp/\nCOPY b /tmp/\n", {"a": "1", "b": "22"})
    path = bench.image().layers[0]
    for listed in (bench.root / "listings").iterdir():
        listed.unlink()
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with Store.open(bench.root) as store:
        damaged, other = examine(subject_of(store.image("app"), store))
    assert (damaged.rule, damaged.layer, damaged.severity) == ("DamagedLayer", 0, Severity.ERROR)
    assert (other.rule, other.layer, other.size) == ("TemporaryFiles", 1, 2)


def test_a_base_that_is_none(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY a /tmp/\n", {"a": "1", "b": "22"}, tag="one")
    bench.build("FROM scratch\nCOPY b /tmp/\nCOPY a /a\n", None, tag="two")
    with Store.open(bench.root) as store:
        with pytest.raises(StoreError, match="does not stand on one"):
            subject_of(store.image("two"), store, base="one")
        assert [layer.own for layer in subject_of(store.image("two"), store).layers] == [True, True]


def test_layers_that_were_loaded_say_the_same(bench: Bench, tmp_path: Path) -> None:
    bench.build("FROM scratch\nCOPY a /tmp/\nCOPY b /etc/\n", {"a": "1", "b": "token AKIAQ2W3E4R5T6Y7U8I9\n"})
    with Store.open(bench.root) as store:
        before = examine(subject_of(store.image("app"), store))
        for listed in (bench.root / "listings").iterdir():
            listed.unlink()
        assert examine(subject_of(store.image("app"), store)) == before
    assert [finding.rule for finding in before] == ["TemporaryFiles", "SecretInFile"]


def test_stages_below_count_as_own(bench: Bench) -> None:
    text = "FROM scratch AS a\nCOPY a /tmp/\nFROM a AS b\nCOPY b /tmp/\nFROM b\nCOPY c /tmp/\n"
    events = found(bench, text, files={"a": "1", "b": "22", "c": "333"})
    assert brief(events) == [("TemporaryFiles", 2, 1), ("TemporaryFiles", 4, 2), ("TemporaryFiles", 6, 3)]


def test_what_a_stage_leaves_that_is_only_copied_from_is_not_shipped(bench: Bench) -> None:
    text = "FROM scratch AS a\nCOPY a /tmp/\nCOPY b /b\nFROM scratch\nCOPY --from=a /b /b\n"
    assert found(bench, text, files={"a": "1", "b": "22"}) == []


def test_secrets_that_are_mounted_are_in_no_layer(bench: Bench) -> None:
    text = "FROM base\nRUN --mount=type=secret,id=k,target=/root/.netrc cat /root/.netrc > /dev/null && touch /x\n"
    secret = bench.folder / "secret"
    secret.write_text("machine a login b password hunter22\n")
    assert found(bench, text, f"--secret=id=k,src={secret}") == []


def test_a_squashed_image_has_one_layer_of_nobodys(bench: Bench) -> None:
    text = "FROM base\nRUN printf 12345 > /tmp/five\nRUN printf 1 > /x\nRUN rm /x\n"
    assert brief(found(bench, text, "--squash")) == [("TemporaryFiles", 0, 5)]


# ---------------------------------------------------------------- comments


def test_a_comment_silences_a_rule_for_its_instruction(bench: Bench) -> None:
    text = "FROM base\n# pybuild: ignore=TemporaryFiles wanted\nRUN printf 1 > /tmp/x\nRUN printf 22 > /tmp/y\n"
    assert brief(found(bench, text)) == [("TemporaryFiles", 4, 2)]


def test_another_linters_name_means_the_same(bench: Bench) -> None:
    text = "RUN mkdir -p /var/lib/apt/lists && truncate -s 70000 /var/lib/apt/lists/x\n"
    assert brief(found(bench, "FROM base\n" + text)) == [("AptLeftovers", 2, 70000)]
    assert found(bench, "FROM base\n# hadolint ignore=DL3009\n" + text) == []


def test_a_comment_that_silences_nothing_is_told(bench: Bench) -> None:
    done = bench.build("FROM base\n# pybuild: ignore=TemporaryFiles\nRUN printf 1 > /x\n", None, "--lint")
    told = [event for event in done.events if event["event"] == "warning"]
    assert [(event["rule"], event["severity"], event["line"]) for event in told] == [("UnusedSuppression", "info", 2)]


# ---------------------------------------------------------------- the context


@pytest.mark.parametrize(
    ("copies", "ignore", "expected"),
    [
        ("COPY src /src", "", 1_000_007),
        ("COPY src /src", "docs\n", 0),
        ("COPY . /", "", 0),
        ("COPY src do* /src/", "", 0),
        ("COPY src /src\nRUN --mount=type=bind,source=docs,target=/mnt touch /x", "", 0),
        ("COPY src /src\nFROM scratch AS docs\nCOPY docs /\nFROM base\nCOPY src /src", "", 0),
    ],
)
def test_what_of_the_context_nobody_takes(bench: Bench, copies: str, ignore: str, expected: int) -> None:
    files = {"src/a": "1", "docs/a": b"x" * 1_000_000, "docs/deep/b": "1234567", ".dockerignore": ignore}
    events = [
        event for event in found(bench, f"FROM base\n{copies}\n", files=files) if event["rule"] == "UnusedContext"
    ]
    assert [event["size"] for event in events] == ([expected] if expected else [])
    assert all(event["paths"][0] == "docs" and "/docs" in event["hint"] for event in events)


@pytest.mark.parametrize(
    ("line", "hint"),
    [("COPY a /tmp/", ".dockerignore"), ("COPY --from=first /tmp/a /tmp/", "where they come from")],
)
def test_what_to_do_about_files_that_were_copied(bench: Bench, line: str, hint: str) -> None:
    (event,) = found(bench, f"FROM scratch AS first\nCOPY a /tmp/\nFROM scratch\n{line}\n", files={"a": "1"})
    assert (event["rule"], event["line"]) == ("TemporaryFiles", 4)
    assert hint in event["hint"]

"""The instruction cache: keys that no two lists of parts share, lookups that never promise a missing blob, reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cache.index import Index, Place, Record, key
from cache.oci import LAYER_GZIP, Layer, digest_of
from cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cache.reasons import Part

TEXT = st.text(max_size=6)
PARTS = st.lists(st.tuples(TEXT, TEXT), max_size=4)
HIDDEN = st.lists(st.binary(max_size=6), max_size=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def index(store: Store) -> Index:
    return Index(store.database)


def plain(identity: str, created: float = 1.0) -> Record:
    return Record(identity, None, 0, 0, created, 0.5)


def at(title: str = "RUN make", number: int = 1, stage: str = "build", **more: Any) -> Place:
    return Place(more.pop("build", "/src"), stage, number, title, **more)


def see(index: Index, parts: list[Part], place: Place | None = None, notes: tuple[Part, ...] = ()) -> None:
    index.record(plain(key([*parts, *notes])), parts, replace(place or at(), notes=notes))


# ---------------------------------------------------------------- keys


@given(PARTS, HIDDEN, PARTS, HIDDEN)
def test_other_parts_have_another_key(
    one: list[Part], secret: list[bytes], two: list[Part], other: list[bytes]
) -> None:
    assert (key(one, hidden=secret) == key(two, hidden=other)) == ((one, secret) == (two, other))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([("ab", "c")], [("a", "bc")]),
        ([("a", "b"), ("c", "d")], [("a", "bc"), ("", "d")]),
        ([("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")]),
        ([("a", "")], []),
        ([("a", "p1:1:bc")], [("a", ""), ("b", "c")]),
    ],
)
def test_parts_do_not_run_together(one: list[Part], two: list[Part]) -> None:
    assert key(one) != key(two)


def test_a_hidden_value_is_no_part() -> None:
    assert len({key([]), key([], hidden=[b""]), key([("", "")]), key([], hidden=[b"", b""])}) == 4


def test_names_that_are_no_utf8_have_keys() -> None:
    assert key([("file \udcff", "")]) != key([("file \udcfe", "")])


def test_keys_stay_what_they_were() -> None:
    # A change of this value makes every cache in the world miss; _SCHEMA says so when that is meant.
    assert key([("parent", "scratch")], hidden=[b"s"]) == (
        "3ed1a76cd528d34c5c3de865a6a5e6169b2d59b05a1901946d714d290bf09bd9"
    )


# ---------------------------------------------------------------- records


def layered(store: Store, data: bytes = b"layer") -> tuple[str, Record]:
    identity = key([("data", data.decode())])
    layer = Layer(digest_of(b"tar of " + data), store.put_blob(data, LAYER_GZIP))
    return identity, Record(identity, layer, 10, 2, 1700000000.25, 1.5)


def test_a_record_comes_back(store: Store, index: Index) -> None:
    identity, record = layered(store)
    assert index.lookup(identity) is None
    index.record(record, [("data", "layer")], at())
    assert index.lookup(identity) == record
    with Store.open(store.root) as again:
        assert Index(again.database).lookup(identity) == record


def test_a_step_that_changed_nothing(index: Index) -> None:
    index.record(plain("k"), [], at())
    assert index.lookup("k") == plain("k")


def test_a_new_record_of_a_key_gives_the_old_one_up(index: Index) -> None:
    index.record(plain("k"), [], at())
    index.record(plain("k", created=2.0), [], at())
    assert index.lookup("k") == plain("k", created=2.0)


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_record_whose_blob_is_lost_is_a_miss(store: Store, index: Index, damage: str) -> None:
    identity, record = layered(store)
    parts = [("data", "layer")]
    index.record(record, parts, at())
    assert record.layer is not None
    path = store.blob_path(record.layer.descriptor.digest)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"laye" if damage == "short" else b"")
    assert index.lookup(identity) is None
    assert index.explain(at(), parts) == "its layer is gone from the store"
    # The step is done again, and its record holds again.
    layered(store)
    assert index.lookup(identity) == record


# ---------------------------------------------------------------- reasons

OLD = "sha256:" + "a" * 64
NEW = "sha256:" + "b" * 64
BEFORE = [
    ("platform", "linux/amd64"),
    ("parent", OLD),
    ("argv 2", "make"),
    ("env CC", "gcc"),
    ("env EMPTY", ""),
    ("file app.py", f"file 644 {OLD}"),
    ("file lib/a b.py", f"file 644 {OLD}"),
    ("file link", "symlink 777 /usr/bin/python3"),
]


def changed(name: str, value: str | None) -> list[Part]:
    return [(n, v if n != name else value) for n, v in BEFORE if n != name or value is not None]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (changed("file app.py", f"file 755 {OLD}"), "app.py: mode 644 → 755"),
        (changed("file app.py", f"file 644 {NEW}"), "app.py: content changed"),
        (changed("file app.py", f"file 755 {NEW}"), "app.py changed"),
        (changed("file lib/a b.py", None), "lib/a b.py removed"),
        ([*BEFORE, ("file new.py", f"file 644 {NEW}")], "new.py added"),
        (changed("file link", "symlink 777 /usr/bin/python2"), "link: /usr/bin/python3 → /usr/bin/python2"),
        (changed("parent", NEW), "parent changed"),
        (changed("platform", "linux/arm64"), "platform: linux/amd64 → linux/arm64"),
        (changed("argv 2", "make all"), "argv 2: make → make all"),
        (changed("argv 2", "make " * 30), "argv 2 changed"),
        (changed("env CC", "clang"), "env CC: gcc → clang"),
        (changed("env EMPTY", "now"), "env EMPTY: nothing → now"),
        (
            [("platform", "linux/arm64"), *changed("file app.py", None)[1:]],
            "platform: linux/amd64 → linux/arm64 and 1 more",
        ),
        (BEFORE, "a value that is kept secret changed"),
    ],
)
def test_a_miss_is_explained(index: Index, parts: list[Part], reason: str) -> None:
    index.record(plain("with a secret"), BEFORE, at())
    assert index.explain(at(), parts) == reason


def test_a_step_never_seen(index: Index) -> None:
    assert index.explain(at(), BEFORE) == "first build"
    see(index, BEFORE, at("COPY . /src", 2))
    assert Index(index._database).explain(at(), BEFORE) == "new step"
    assert index.differences(at(), BEFORE) is None


def test_a_first_build_stays_one_while_its_own_steps_are_recorded(index: Index) -> None:
    assert index.explain(at(), BEFORE) == "first build"
    see(index, BEFORE)
    assert index.explain(at("COPY . /src", 2), BEFORE) == "first build"


def test_a_step_is_compared_with_itself_wherever_it_stood(index: Index) -> None:
    lines = ["RUN one", "COPY a /a", "RUN make", "RUN make test"]
    for number, title in enumerate(lines):
        see(index, [("parent", OLD), ("argv 2", title)], at(title, number))
    now = frozenset({*lines, "RUN inserted"})
    for number, title in enumerate(["RUN inserted", *reversed(lines)]):
        place = at(title, number, "renamed", others=now, cause="[renamed 1/5]")
        wanted = "new step" if number == 0 else "parent changed by [renamed 1/5]"
        assert index.explain(place, [("parent", NEW), ("argv 2", title)]) == wanted


def test_a_line_that_was_edited_is_compared_with_what_it_was(index: Index) -> None:
    see(index, [("argv 2", "apt-get install -y curl")], at("RUN apt-get install -y curl", 1))
    see(index, [("argv 2", "true")], at("RUN true", 2))
    # Where it stood, and moved and in a stage of another name.
    for number, stage in ((1, "build"), (7, "renamed")):
        place = at("RUN apt-get install -y curl git", number, stage, names=(("argv 2", "command"),))
        assert index.explain(place, [("argv 2", "apt-get install -y curl git")]) == (
            "command: apt-get install -y curl → apt-get install -y curl git"
        )
    # What stands elsewhere now is not what this line was; neither is what another kind of instruction was.
    others = frozenset({"RUN apt-get install -y curl"})
    assert index.explain(at("RUN apt-get install -y git", 1, others=others), [("argv 2", "x")]) == "new step"
    assert index.explain(at("COPY apt-get /install", 1), [("to", "/install")]) == "new step"


def test_another_checkout_of_the_same_files_is_compared(index: Index) -> None:
    see(index, BEFORE, at("COPY . /src", 1))
    elsewhere = at("COPY . /src", 3, "renamed", build="/elsewhere")
    assert index.explain(elsewhere, changed("file app.py", f"file 755 {OLD}")) == "app.py: mode 644 → 755"
    # Files of another project are not.
    assert index.explain(elsewhere, [("file main.go", f"file 644 {OLD}"), ("to", "/src")]) == "first build"


NOTES = (("base", f"busybox:1@{OLD}"), ("base layers", OLD), ("after", "RUN a"), ("ARG V", "1"))


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ({"base": f"busybox:1@{NEW}", "base layers": NEW}, "base busybox:1 changed"),
        ({"base": "alpine:3@" + NEW, "base layers": NEW}, "base changed"),
        ({"base": f"busybox:1@{NEW}"}, "parent changed by [build 2/3]"),
        ({"after": "RUN b"}, "step above: RUN a → RUN b"),
        ({"ARG V": "2"}, "ARG V: 1 → 2 and 1 more"),
        ({}, "parent changed by [build 2/3]"),
    ],
)
def test_what_changed_the_layers_below(index: Index, notes: dict[str, str], reason: str) -> None:
    see(index, BEFORE, notes=NOTES)
    place = at(notes=tuple({**dict(NOTES), **notes}.items()), cause="[build 2/3]")
    why = index.why(place, changed("parent", NEW))
    assert why.reason == reason
    if reason.startswith("base"):
        assert OLD[:19] in why.changes[0]
        assert NEW[:19] in why.changes[0]


def test_of_very_many_differences_the_rest_is_counted(index: Index) -> None:
    see(index, [(f"file {n}", f"file 644 {OLD}") for n in range(1000)])
    now = [(f"file {n}", f"file {'600' if n < 900 else '644'} {OLD}") for n in range(950)] + [("file new", "file 644")]
    changes = index.why(at(), now).changes
    assert len(changes) == 51
    assert changes[0] == "file 0: mode 644 → 600"
    assert changes[-1] == "and 1 more added, 50 more removed, 850 more changed"


def test_notes_alone_are_no_change(index: Index) -> None:
    see(index, BEFORE, notes=NOTES)
    assert index.explain(at(notes=(("base", f"busybox:1@{NEW}"),)), BEFORE) == "a value that is kept secret changed"


def test_the_nearest_record_explains(index: Index) -> None:
    see(index, changed("env CC", "tcc"))
    see(index, [("platform", "linux/riscv64"), ("parent", NEW)])
    assert index.explain(at(), changed("env CC", "clang")) == "env CC: tcc → clang"


def test_a_name_that_comes_several_times(index: Index) -> None:
    see(index, [("arg", "A=1"), ("arg", "B=2")])
    assert index.explain(at(), [("arg", "A=1"), ("arg", "B=3")]) != ""
    assert index.explain(at(), [("arg", "A=1")]) != ""


def test_names_that_are_no_utf8_are_kept(index: Index) -> None:
    see(index, [("file \udcff", "file 644 x")], at("COPY \udcff /", build="\udcff"))
    found = index.differences(at("COPY \udcff /", build="\udcff"), [("file \udcff", "file 600 x")])
    assert [(part.name, part.before, part.after) for part in found or []] == [
        ("file \udcff", "file 644 x", "file 600 x")
    ]


def test_only_the_newest_records_of_a_step_keep_their_parts(store: Store, index: Index) -> None:
    for number in range(10):
        see(index, [("n", str(number))])
    see(index, [("n", "0")], at(number=2))
    kept = store.database.query(
        "SELECT key FROM records WHERE parts IS NOT NULL AND step = '/src build 1' ORDER BY number"
    )
    assert kept == [(key([("n", str(number))]),) for number in range(6, 10)]
    assert index.lookup(key([("n", "3")])) is not None
    assert index.explain(at(), [("n", "3")]) == "n: 9 → 3"


# ---------------------------------------------------------------- memos


def test_a_memo_comes_back(index: Index) -> None:
    assert index.memo("kind", "key") is None
    index.memoise("kind", "key", "value")
    index.memoise("kind", "other \udcff", "value \udcff")
    index.memoise("another kind", "key", "another")
    assert index.memo("kind", "key") == "value"
    assert index.memo("kind", "other \udcff") == "value \udcff"
    index.memoise("kind", "key", "newer")
    assert index.memo("kind", "key") == "newer"


def test_who_asks_at_once_is_told_the_same(store: Store, index: Index) -> None:
    assert index.agree("kind", "key", "first") == "first"
    with Store.open(store.root) as other:
        assert Index(other.database).agree("kind", "key", "second") == "first"


# ---------------------------------------------------------------- speed


def test_every_question_of_a_step_is_answered_by_an_index(store: Store, index: Index) -> None:
    """As SQLite itself tells: no scan, and no sorting of what it found."""
    asked: list[tuple[str, Sequence[object]]] = []
    query = store.database.query

    def noted(sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        asked.append((sql, parameters))
        return query(sql, parameters)

    with patch.object(store.database, "query", noted):
        index.lookup("k")
        index.age("k")
        see(index, BEFORE)
        index.explain(at("RUN never seen", 9), BEFORE)
        index.explain(at(), changed("parent", NEW))
        index.explain(at(), BEFORE)
        index.memo("kind", "key")
        index.last_build()
    assert len(asked) >= 9
    for sql, parameters in asked:
        for *_, plan in query(f"EXPLAIN QUERY PLAN {sql}", parameters):
            assert plan.startswith("SEARCH") or (plan == "SCAN builds" and "LIMIT 1" in sql), f"{plan}: {sql}"

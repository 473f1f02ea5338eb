"""The instruction cache: keys that no two lists of parts share, lookups that never promise a missing blob, reasons."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.index import Index, Part, Record, key
from cache.oci import LAYER_GZIP, Layer, digest_of
from cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def see(index: Index, parts: list[Part], step: str = "step") -> None:
    index.record(plain(key(parts)), parts, step)


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
    index.record(record, [("data", "layer")], "step")
    assert index.lookup(identity) == record
    with Store.open(store.root) as again:
        assert Index(again.database).lookup(identity) == record


def test_a_step_that_changed_nothing(index: Index) -> None:
    index.record(plain("k"), [], "step")
    assert index.lookup("k") == plain("k")


def test_a_new_record_of_a_key_gives_the_old_one_up(index: Index) -> None:
    index.record(plain("k"), [], "step")
    index.record(plain("k", created=2.0), [], "step")
    assert index.lookup("k") == plain("k", created=2.0)


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_record_whose_blob_is_lost_is_a_miss(store: Store, index: Index, damage: str) -> None:
    identity, record = layered(store)
    parts = [("data", "layer")]
    index.record(record, parts, "step")
    assert record.layer is not None
    path = store.blob_path(record.layer.descriptor.digest)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"laye" if damage == "short" else b"")
    assert index.lookup(identity) is None
    assert index.explain("step", parts) == "its layer is gone from the store"
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
        (changed("file app.py", f"file 755 {OLD}"), "app.py: 644 → 755"),
        (changed("file app.py", f"file 644 {NEW}"), "app.py changed"),
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
    index.record(plain("with a secret"), BEFORE, "step")
    assert index.explain("step", parts) == reason


def test_a_step_never_seen_has_no_reason(index: Index) -> None:
    see(index, BEFORE, "another step")
    assert index.explain("step", BEFORE) == ""
    assert index.differences("step", BEFORE) is None


def test_the_nearest_record_explains(index: Index) -> None:
    see(index, changed("env CC", "tcc"))
    see(index, [("platform", "linux/riscv64"), ("parent", NEW)])
    assert index.explain("step", changed("env CC", "clang")) == "env CC: tcc → clang"


def test_a_name_that_comes_several_times(index: Index) -> None:
    see(index, [("arg", "A=1"), ("arg", "B=2")])
    assert index.explain("step", [("arg", "A=1"), ("arg", "B=3")]) != ""
    assert index.explain("step", [("arg", "A=1")]) != ""


def test_names_that_are_no_utf8_are_kept(index: Index) -> None:
    see(index, [("file \udcff", "file 644 x")], "step \udcff")
    found = index.differences("step \udcff", [("file \udcff", "file 600 x")])
    assert [(part.name, part.before, part.after) for part in found or []] == [
        ("file \udcff", "file 644 x", "file 600 x")
    ]


def test_only_the_newest_records_of_a_step_keep_their_parts(store: Store, index: Index) -> None:
    for number in range(10):
        see(index, [("n", str(number))])
    see(index, [("n", "0")], "another step")
    kept = store.database.query("SELECT key FROM records WHERE parts IS NOT NULL AND step = 'step' ORDER BY number")
    assert kept == [(key([("n", str(number))]),) for number in range(6, 10)]
    assert index.lookup(key([("n", "3")])) is not None
    assert index.explain("step", [("n", "3")]) == "n: 9 → 3"


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


# ---------------------------------------------------------------- speed


def test_a_lookup_takes_as_long_among_many(store: Store, index: Index) -> None:
    def middle() -> float:
        times = []
        for number in range(200):
            started = time.perf_counter()
            index.lookup(f"{number % 7}")
            times.append(time.perf_counter() - started)
        return sorted(times)[100]

    for number in range(10):
        index.record(plain(f"{number}"), [], "step")
    among_few = middle()
    with store.database.transaction() as connection:
        connection.executemany(
            "INSERT INTO records (key, step, size, files, created, seconds) VALUES (?, ?, 0, 0, 0, 0)",
            [(f"many {number}", f"step {number % 50}") for number in range(50_000)],
        )
    assert middle() < 4 * among_few
    started = time.perf_counter()
    for number in range(20):
        index.record(plain(f"new {number}"), [], "step 7")
    assert (time.perf_counter() - started) / 20 < 0.01

"""What is shipped and what can be seen: exact on layers made by hand, and where dive says something else.

The cases that other tools get wrong: a directory deleted as a whole, an opaque directory, a change of owner counted
twice, junk that is never deleted, the same content twice, a whiteout of what is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from builder.lint.efficiency import Waste, efficiency
from builder.lint.layers import examine
from builder.terminal import render_efficiency
from cache.entries import Entry, Kind
from cache.store import Store
from tests.handmade import file, folder, gone, link, opaque, subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from builder.model import Finding

MB = 10_000
"""Small enough for a test, and above every floor."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def of(store: Store, *runs: list[Entry]) -> tuple[int, int]:
    """Shipped and visible bytes."""
    found = efficiency(subject(store, *runs))
    return found.shipped, found.visible


def findings(store: Store, rule: str, *runs: list[Entry], base: int = 0) -> list[Finding]:
    return [finding for finding in examine(subject(store, *runs, base=base)) if finding.rule == rule]


# ---------------------------------------------------------------- what dive gets wrong


def test_a_directory_that_a_later_layer_deletes(store: Store) -> None:
    runs = [[folder("d"), file("d/a", 60 * MB), folder("d/e"), file("d/e/b", 40 * MB, b"y")], [gone("d")]]
    assert of(store, *runs) == (100 * MB, 0)
    (found,) = findings(store, "DeletedLater", *runs)
    assert (found.size, found.paths, found.layer) == (100 * MB, ("d/a", "d/e/b"), 0)


def test_a_single_file_that_a_later_layer_deletes(store: Store) -> None:
    runs = [[file("a", 100 * MB)], [gone("a")]]
    assert of(store, *runs) == (100 * MB, 0)
    assert [found.size for found in findings(store, "DeletedLater", *runs)] == [100 * MB]


def test_a_change_of_owner_is_counted_once(store: Store) -> None:
    runs = [[file("a", 100 * MB)], [file("a", 100 * MB, uid=7)]]
    assert of(store, *runs) == (200 * MB, 100 * MB)
    (found,) = findings(store, "MetadataRewrite", *runs)
    assert (found.size, found.layer) == (100 * MB, 1)
    assert "to change owner: /a" in found.message
    assert findings(store, "RewrittenFiles", *runs) == []


def test_junk_that_nobody_deletes_is_seen_and_told(store: Store) -> None:
    runs = [[folder("tmp"), file("tmp/a", 60 * MB), file("var/lib/apt/lists/b", 40 * MB, b"y")]]
    assert of(store, *runs) == (100 * MB, 100 * MB)
    assert [found.size for found in findings(store, "TemporaryFiles", *runs)] == [60 * MB]
    assert [found.size for found in findings(store, "AptLeftovers", *runs)] == [40 * MB]


def test_the_same_content_at_two_paths(store: Store) -> None:
    runs = [[file("a", 50 * MB)], [file("b", 50 * MB)]]
    assert of(store, *runs) == (100 * MB, 100 * MB)
    (found,) = findings(store, "DuplicateFiles", *runs)
    assert (found.size, found.paths) == (50 * MB, ("b",))
    assert "/b is /a" in found.message


def test_a_whiteout_of_what_is_not_there(store: Store) -> None:
    runs = [[file("a", 7)], [gone("b"), gone("c/d"), opaque("e")]]
    assert of(store, *runs) == (7, 7)
    assert findings(store, "DeletedLater", *runs) == []


def test_an_opaque_directory_hides_what_is_below(store: Store) -> None:
    runs = [[folder("d"), file("d/a", 5), file("d/b", 3)], [folder("d"), opaque("d"), file("d/b", 2)]]
    assert of(store, *runs) == (10, 2)
    assert [(found.size, found.paths) for found in findings(store, "DeletedLater", *runs)] == [(8, ("d/a", "d/b"))]


# ---------------------------------------------------------------- each inode once


def test_hard_links_count_once(store: Store) -> None:
    assert of(store, [file("a", 10), link("b", "a"), link("c", "b")]) == (10, 10)


def test_a_file_that_keeps_a_name_can_be_seen(store: Store) -> None:
    runs = [[file("a", 10), link("b", "a")], [gone("a")]]
    assert of(store, *runs) == (10, 10)
    assert findings(store, "DeletedLater", *runs) == []
    assert of(store, *runs, [gone("b")]) == (10, 0)


def test_a_file_written_three_times(store: Store) -> None:
    runs = [[file("a", 10)], [file("a", 20)], [file("a", 40)]]
    found = efficiency(subject(store, *runs))
    assert [(row.shipped, row.visible, row.wasted) for row in found.layers] == [(10, 0, 10), (20, 0, 20), (40, 40, 0)]
    assert found.ratio == 40 / 70


def test_a_name_twice_in_one_layer(store: Store) -> None:
    assert of(store, [file("a", 10), file("a", 20)]) == (30, 20)


def test_a_file_in_the_place_of_a_directory_and_back(store: Store) -> None:
    runs = [[folder("d"), file("d/a", 5)], [file("d", 7)], [folder("d"), file("d/a", 9)]]
    assert of(store, *runs) == (21, 9)


def test_what_comes_below_a_link_lies_where_it_leads(store: Store) -> None:
    runs = [[folder("usr"), folder("usr/bin"), file("usr/bin/a", 5), link("bin", "usr/bin", Kind.SYMLINK)]]
    assert of(store, *runs, [file("bin/a", 6)]) == (11, 6)
    assert of(store, *runs, [gone("bin/a")]) == (5, 0)


def test_deleted_and_made_again_later(store: Store) -> None:
    runs = [[file("a", 5)], [gone("a")], [file("a", 6)]]
    assert of(store, *runs) == (11, 6)
    assert [found.size for found in findings(store, "DeletedLater", *runs)] == [5]


def test_an_empty_image_wastes_nothing(store: Store) -> None:
    assert efficiency(subject(store)).ratio == 1.0


def test_the_visible_bytes_are_those_of_the_tree(store: Store) -> None:
    image = subject(
        store,
        [folder("d"), file("d/a", 11), link("d/b", "d/a"), file("c", 3), link("l", "d", Kind.SYMLINK)],
        [gone("c"), file("d/a", 5), file("l/x", 7)],
        [opaque("d"), file("d/z", 2)],
        [file("e", 1)],
    )
    seen: dict[object, int] = {}
    for entry in image.files.walk():  # type: ignore[attr-defined]
        if entry.kind is Kind.FILE:
            seen[image.files.links(entry) or entry.path] = entry.size
    assert efficiency(image).visible == sum(seen.values()) == 3


# ---------------------------------------------------------------- rows, tree, text


def test_the_bases_layers_are_one_row(store: Store) -> None:
    found = efficiency(subject(store, [file("a", 1)], [file("b", 2)], [file("c", 4)], base=2))
    assert [(row.layers, row.title, row.own, row.shipped) for row in found.lines] == [
        ((0, 1), "the base", False, 3),
        ((2,), "RUN 2", True, 4),
    ]
    assert all(row.compressed for row in found.layers)


def test_the_tree_of_the_waste_adds_up(store: Store) -> None:
    found = efficiency(subject(store, [file("d/a", 5), file("d/e/b", 3), file("c", 2)], [gone("d"), file("c", 1)]))

    def check(node: Waste) -> None:
        if node.children:
            assert node.size == sum(child.size for child in node.children.values())
            assert node.files == sum(child.files for child in node.children.values())
            for child in node.children.values():
                check(child)
        else:
            assert node.why

    check(found.waste)
    assert found.waste.size == found.wasted == 10


def test_the_table_and_the_tree(store: Store) -> None:
    found = efficiency(subject(store, [file("d/a", 5000), file("d/e/b", 3000), file("c", 2)], [gone("d")]))
    assert (
        render_efficiency(found)
        == """\
LAYER     SHIPPED   VISIBLE   WASTED    INSTRUCTION
0         8kB       2B        8kB       RUN 0
1         0B        0B        -         RUN 1
2B of 8kB shipped bytes can be seen: 0.0%

Shipped and not seen:
└──     8kB  d/  2 files
    ├──     5kB  a  (of layer 0, deleted by layer 1)
    └──     3kB  e/b  (of layer 0, deleted by layer 1)
"""
    )


def test_the_bases_layers_are_marked(store: Store) -> None:
    text = render_efficiency(efficiency(subject(store, [file("a", 1)], [file("b", 1)], base=1)))
    assert "RUN 0 (base)\n1 " in text


def test_a_wide_tree_is_cut(store: Store) -> None:
    text = render_efficiency(efficiency(subject(store, [file(f"d/{n:02}", 100 - n) for n in range(30)], [gone("d")])))
    assert "23 more names  23 files" in text
    assert len(text.splitlines()) == 15


def test_names_that_act_on_a_terminal_do_not(store: Store) -> None:
    text = render_efficiency(efficiency(subject(store, [file("a\x1b[31mb\n", 10)], [gone("a\x1b[31mb\n")])))
    assert "\x1b" not in text
    assert "ab?" in text


# ---------------------------------------------------------------- what the base ships


def test_the_bases_own_waste_is_not_told(store: Store) -> None:
    runs = [[file("a", 10 * MB), file("tmp/x", 5)], [gone("a")], [file("b", 1)]]
    assert examine(subject(store, *runs, base=2)) == []


def test_deleting_the_bases_files_is_no_warning(store: Store) -> None:
    (found,) = findings(store, "DeletedLater", [file("a", 10 * MB)], [gone("a")], base=1)
    assert (found.severity.value, found.layer, found.size) == ("info", 1, 10 * MB)

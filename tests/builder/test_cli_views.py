from __future__ import annotations

import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.difference import differences
from builder.terminal import Branch, branches
from cache.entries import BytesContent, Entry, Kind
from cache.layers import write
from cache.oci import History, ImageConfig, RuntimeConfig
from cache.reference import Reference
from cache.store import Store
from cache.tree import Tree
from tests.builder.test_cli_images import Shell

if TYPE_CHECKING:
    from pathlib import Path

    from cache.oci import Digest, Layer


def file(path: bytes, data: bytes = b"", mode: int = 0o644, uid: int = 0, **more: Any) -> Entry:
    return Entry(path, Kind.FILE, mode, uid, uid, len(data), content=BytesContent(data), **more)


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def put(store: Store, name: str, *layers: list[Entry], **more: Any) -> Digest:
    written = tuple(write(entries, store).layer for entries in layers)
    config = ImageConfig(
        config=RuntimeConfig(**more), diff_ids=tuple(layer.diff_id for layer in written),
        created="2020-01-01T00:00:00Z", history=tuple(History(f"RUN step {number}") for number in range(len(layers))),
    )  # fmt: skip
    image = store.put_image(config, written)
    if name:
        store.tag(Reference.parse(name), image.id)
    return image.id


BASE = [directory(b"etc"), file(b"etc/name", b"one"), file(b"etc/same", b"same"), file(b"gone", b"12345")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path / "store")
    with Store.open(shell.root) as store:
        put(store, "base:1", BASE)
        put(store, "app:1", BASE, [file(b"etc/name", b"other", 0o600), Entry(b"gone", Kind.WHITEOUT)], cmd=("sh",))
        put(store, "app:2", BASE, [Entry(b"link", Kind.SYMLINK, 0o777, target=b"etc")], [directory(b"new")])
        put(store, "", [file(b"alone", b"x")])
    return shell


# ---------------------------------------------------------------- diff


def test_diff_says_what_changed(shell: Shell) -> None:
    lines = shell("image", "diff", "base:1", "app:1", code=1).splitlines()
    assert lines[0] == 'config Cmd: null → ["sh"]'
    assert [line.split(None, 1 if "→" not in line else 3)[-1] for line in lines[1:3]] == [
        "C /etc/name  (content, mode 0644 → 0600)", "D /gone",
    ]  # fmt: skip
    assert lines[1].startswith("3B → 5B")
    assert lines[3] == "1 removed (-5B), 1 changed (+2B)"
    assert shell("image", "diff", "app:1", "app:1") == ""
    assert shell("image", "diff", "-q", "base:1", "app:1", code=1) == ""


def test_diff_as_json(shell: Shell) -> None:
    rows = [json.loads(line) for line in shell("image", "diff", "--format=json", "app:2", "app:1", code=1).splitlines()]
    assert rows[0] == {"config": "Cmd", "before": None, "after": ["sh"]}
    assert [(row["path"], row["change"]) for row in rows[1:]] == [
        ("/etc/name", "changed"), ("/gone", "removed"), ("/link", "removed"), ("/new", "removed"),
    ]  # fmt: skip
    assert rows[1]["parts"] == ["content", "mode"]
    assert rows[1]["before"]["size"] == 3
    assert rows[3]["before"]["target"] == "etc"
    assert rows[3]["after"] is None


def test_trouble_is_no_difference(shell: Shell) -> None:
    for words in (["base:1", "nothing"], ["base:1"], ["base:1", "app:1", "--format=x"], ["Base", "app:1"]):
        shell("image", "diff", *words, code=2)
    with Store.open(shell.root) as store:
        layer = store.layers(store.image("app:1"))[0]
        (shell.root / "listings" / layer.diff_id[7:]).unlink()
        store.blob_path(layer.descriptor.digest).write_bytes(b"damaged")
    shell("image", "diff", "base:1", "app:1", code=3)


def test_times_count_when_asked(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "store")
    with Store.open(shell.root) as store:
        put(store, "a:1", [file(b"f", b"x", mtime_ns=10**9)])
        put(store, "a:2", [file(b"f", b"x", mtime_ns=2 * 10**9)])
    assert shell("image", "diff", "a:1", "a:2") == ""
    assert "(time)" in shell("image", "diff", "--times", "a:1", "a:2", code=1)


NAMES = [b"a", b"a-b", b"a.b", b"b", b"\xff"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)


@st.composite
def layers(draw: st.DrawFn) -> list[Entry]:
    """A layer: any run of entries whose parents are there."""
    entries: dict[bytes, Entry] = {}
    for path in draw(st.lists(PATHS, max_size=6)):
        parents = [path[:at] for at, letter in enumerate(path) if letter == ord("/")]
        if any(each in entries and entries[each].kind is not Kind.DIRECTORY for each in parents) or path in entries:
            continue
        for each in parents:
            entries.setdefault(each, directory(each))
        kind = draw(st.sampled_from(["file", "directory", "link", "gone"]))
        mode = draw(st.sampled_from([0o644, 0o755]))
        entries[path] = {
            "file": file(path, draw(st.sampled_from([b"", b"x", b"y"])), mode, draw(st.sampled_from([0, 7]))),
            "directory": directory(path, mode),
            "link": Entry(path, Kind.SYMLINK, 0o777, target=draw(st.sampled_from([b"x", b"../y"]))),
            "gone": Entry(path, Kind.WHITEOUT),
        }[kind]
    return list(entries.values())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("diff"))


def exported(store: Store, chain: tuple[Layer, ...]) -> dict[str, tuple[object, ...]]:
    """What another reader of the exported tar sees."""
    from builder import flatten

    out = io.BytesIO()
    flatten.to_tar(chain, out, store)
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), errors="surrogateescape") as tar:
        for info in tar:
            data = tar.extractfile(info).read() if info.isreg() else b""  # type: ignore[union-attr]
            found[info.name] = (info.type, info.mode, info.uid, info.gid, data, info.linkname)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(layers(), max_size=3), st.lists(layers(), max_size=3))
def test_diff_agrees_with_a_comparison_of_exports(
    opened: Store, one: list[list[Entry]], two: list[list[Entry]]
) -> None:
    chains = [tuple(write(entries, opened).layer for entries in each) for each in (one, two)]
    before, after = (Tree(opened, chain) for chain in chains)
    assert list(differences(before, before, times=True)) == []
    left, right = (exported(opened, chain) for chain in chains)
    expected = {name for name in left.keys() | right.keys() if left.get(name) != right.get(name)}
    changes = list(differences(before, after))
    assert {os.fsdecode(change.path) for change in changes} == expected
    assert [(each.path, each.kind) for each in changes if each.kind == "added"] == [
        (each.path, "added") for each in differences(after, before) if each.kind == "removed"
    ]
    assert [each.path for each in changes] == sorted((each.path for each in changes), key=lambda path: path.split(b"/"))


# ---------------------------------------------------------------- tree


def test_branches_are_drawn() -> None:
    tree = Branch(("a", "of a"), (Branch(("b", "of b"), (Branch(("c",)),)), Branch(("d", "of d"))))
    assert branches(tree) == ["a", "│   of a", "├── b", "│   │   of b", "│   └── c", "└── d", "        of d"]


def test_images_stand_on_each_other(shell: Shell) -> None:
    ids = dict(line.split() for line in shell("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines())
    lines = shell("image", "tree").splitlines()
    assert lines[0].startswith(f"base:1 ({ids['base:1']})  ")
    assert lines[0].endswith("B  1 layer")
    assert lines[1].startswith(f"├── app:1 ({ids['app:1']})  ")
    assert lines[2].startswith(f"└── app:2 ({ids['app:2']})  ")
    assert lines[2].endswith("  2 layers")
    assert lines[3].startswith("<none> (")
    assert lines[4].startswith("5 layers, ")
    assert "without sharing it would be" in lines[4]
    assert "alone" not in shell("image", "tree", "app:1")
    assert "<none>" not in shell("image", "tree", "app:1")
    assert "  RUN step 1" in shell("image", "tree", "--layers")
    shell("image", "tree", "nothing", code=1)


def test_a_fork_without_an_image(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "store")
    with Store.open(shell.root) as store:
        put(store, "a:1", BASE, [file(b"m")], [file(b"a")])
        put(store, "b:1", BASE, [file(b"m")], [file(b"b")])
        put(store, "b:2", BASE, [file(b"m")], [file(b"b")], cmd=("x",))
        put(store, "void:1")
    lines = shell("image", "tree").splitlines()
    assert lines[0].startswith("(shared by 3 images)  ")
    assert lines[0].endswith("  2 layers")
    assert lines[1].startswith("├── a:1 (")
    assert lines[2].startswith("└── b:1 (")
    assert ", b:2 (" in lines[2]
    assert lines[3].startswith("void:1 (")
    (fork, void) = json.loads(shell("image", "tree", "--format", "json"))
    assert [child["images"][0]["names"] for child in fork["children"]] == [["a:1"], ["b:1"]]
    assert void["layers"] == []


def test_stages_are_named(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "store")
    with Store.open(shell.root) as store:
        one, two = (write([file(name)], store).layer for name in (b"one", b"two"))
        stage = store.put_image(ImageConfig(diff_ids=(one.diff_id,)), (one,), intermediate=True)
        image = store.put_image(ImageConfig(diff_ids=(two.diff_id,)), (two,), needs=[stage.id])
        store.tag(Reference.parse("app:1"), image.id)
    assert "stage" not in shell("image", "tree")
    assert "<stage of app:1> (" in shell("image", "tree", "-a")


def test_one_layer_is_no_layers(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "store")
    with Store.open(shell.root) as store:
        put(store, "a:1", BASE)
    assert shell("image", "tree").splitlines()[1].startswith("1 layer, ")


def test_an_empty_store(tmp_path: Path) -> None:
    assert Shell(tmp_path / "store")("image", "tree") == ""

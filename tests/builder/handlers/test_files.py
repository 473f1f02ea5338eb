"""COPY, ADD and WORKDIR as BuildKit does them: the recorded outcomes of its own suites, written as tables."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from builder.context import Directory, Unpacked
from builder.errors import BuildError
from builder.handlers.files import check, inputs, parse_mode, perform, step_parts
from builder.model import CONTEXT, FileSource, FileStep, InlineSource, Origin, PathSource
from cache.entries import BytesContent, Content, Entry, Files, Kind
from grammar.source import Source, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SPAN = Span(2, 6, 2, 9)
KINDS = {"file": Kind.FILE, "dir": Kind.DIRECTORY, "link": Kind.SYMLINK, "fifo": Kind.FIFO, "char": Kind.CHARACTER}


def tree(text: str) -> Unpacked:
    """Files from lines: `path [dir|fifo|char] [mode] [uid:gid] [= content] [-> target] [== other name]`."""
    files = Unpacked()
    for line in text.strip().splitlines():
        files.add(entry_of(line.strip()))
    return files


def entry_of(line: str) -> Entry:
    line, _, content = line.partition(" = ")
    line, _, other = line.partition(" == ")
    line, _, target = line.partition(" -> ")
    words = line.split()
    path = words[0].strip("/").encode()
    kind, mode, uid, gid = Kind.FILE, 0o644, 0, 0
    for word in words[1:]:
        if word in KINDS:
            kind = KINDS[word]
            mode = 0o755 if kind is Kind.DIRECTORY else mode
        elif ":" in word:
            uid, gid = map(int, word.split(":"))
        else:
            mode = int(word, 8)
    if other:
        return Entry(path, Kind.HARDLINK, target=other.encode())
    if target:
        return Entry(path, Kind.SYMLINK, 0o777, uid, gid, target=target.encode())
    data = (content or path.decode()).encode() if kind is Kind.FILE else b""
    return Entry(
        path,
        kind,
        mode,
        uid,
        gid,
        size=len(data),
        mtime_ns=7 * 10**9,
        content=BytesContent(data) if kind is Kind.FILE else None,
        device=(1, 3) if kind is Kind.CHARACTER else (0, 0),
    )


def shown(entries: Iterable[Entry]) -> list[str]:
    """Entries as lines of the same form; what is 0644 or 0755 and root's is not said."""
    return [show(entry) for entry in entries]


def show(entry: Entry) -> str:
    path = entry.path.decode()
    if entry.kind is Kind.HARDLINK:
        return f"{path} == {entry.target.decode()}"
    if entry.kind in {Kind.WHITEOUT, Kind.OPAQUE}:
        return f"{path} {entry.kind.value}"
    words = [path]
    usual = 0o755 if entry.kind is Kind.DIRECTORY else 0o644
    if entry.kind not in {Kind.FILE, Kind.SYMLINK}:
        words.append(next(word for word, kind in KINDS.items() if kind is entry.kind))
    if entry.kind is not Kind.SYMLINK and entry.mode != usual:
        words.append(f"{entry.mode:o}")
    if entry.uid or entry.gid:
        words.append(f"{entry.uid}:{entry.gid}")
    line = " ".join(words)
    if entry.kind is Kind.SYMLINK:
        return f"{line} -> {entry.target.decode()}"
    if entry.kind is Kind.FILE:
        assert entry.content is not None
        with entry.content.open() as stream:
            content = stream.read().decode()
        return line if content == path else f"{line} = {content}"
    return line


def step(*sources: str | FileSource, to: str, **flags: object) -> FileStep:
    made = tuple(PathSource(item, SPAN) if isinstance(item, str) else item for item in sources)
    into = to.endswith("/")
    made_step = FileStep(CONTEXT, made, "/" + to.strip("/"), into=into)
    return replace(made_step, **flags)


def copied(what: FileStep, files: Files | None, parent: Files | None = None) -> list[str]:
    if files is not None:
        inputs(what, files)
    return shown(perform(what, files, parent or Unpacked(), epoch=1000))


# ---------------------------------------------------------------- COPY: names and places


CONTEXT_FILES = """
a.txt = A
b.txt = B
c.md = C
.hid.txt = hidden
dir/x = x
dir/sub/y = y
"""


@pytest.mark.parametrize(
    ("sources", "to", "expected"),
    [
        pytest.param(["a.txt"], "f", ["f = A"], id="file to name"),
        pytest.param(["a.txt"], "d/", ["d dir", "d/a.txt = A"], id="file to directory"),
        pytest.param(["a.txt"], "/", ["a.txt = A"], id="file to root"),
        pytest.param(["a.txt"], "e/f/g", ["e dir", "e/f dir", "e/f/g = A"], id="parents made"),
        pytest.param(["a.txt", "b.txt"], "d/", ["d dir", "d/a.txt = A", "d/b.txt = B"], id="several"),
        pytest.param(["a.txt", "b.txt"], "dest", ["dest = B"], id="several to one name, the last wins"),
        pytest.param(["dir"], "d", ["d dir", "d/sub dir", "d/sub/y = y", "d/x = x"], id="contents of a directory"),
        pytest.param(["dir/"], "d/", ["d dir", "d/sub dir", "d/sub/y = y", "d/x = x"], id="slashes"),
        pytest.param(["../a.txt"], "f", ["f = A"], id="dots stay inside"),
        pytest.param(["dir/../b.txt"], "f", ["f = B"], id="dots resolved"),
        pytest.param(["/dir/x"], "f", ["f = x"], id="absolute"),
        pytest.param(["//a.txt"], "f", ["f = A"], id="doubled slash"),
        pytest.param(
            ["*.txt"], "d/", ["d dir", "d/.hid.txt = hidden", "d/a.txt = A", "d/b.txt = B"], id="star takes hidden ones"
        ),
        pytest.param(["?.md"], "d/", ["d dir", "d/c.md = C"], id="question mark"),
        pytest.param(["*/x"], "d/", ["d dir", "d/x = x"], id="star as directory"),
        pytest.param(["*/sub/*"], "d/", ["d dir", "d/y = y"], id="stars"),
        pytest.param(["**/x"], "d/", ["d dir", "d/x = x"], id="two stars are one"),
        pytest.param(["d*"], "o/", ["o dir", "o/sub dir", "o/sub/y = y", "o/x = x"], id="star gives contents"),
        pytest.param(["*.none"], "d/", [], id="star without match"),
        pytest.param(["[ab].txt"], "d/", ["d dir", "d/a.txt = A", "d/b.txt = B"], id="class"),
        pytest.param(["*.none", "c.md"], "d/", ["d dir", "d/c.md = C"], id="star without match beside a file"),
    ],
)
def test_copy(sources: list[str], to: str, expected: list[str]) -> None:
    assert copied(step(*sources, to=to), tree(CONTEXT_FILES)) == expected


def test_a_backslash_makes_a_star_plain() -> None:
    files = tree("a*b = star\naxb = x")
    assert copied(step("a[*]b", to="c/"), files) == ["c dir", "c/a*b = star"]
    # As in BuildKit, what is no wildcard is a name, its backslash too.
    with pytest.raises(BuildError, match="not found"):
        copied(step(r"a\*b", to="c/"), files)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/thing", '"/no/such/thing": not found'),
        ("A.TXT", '"/A.TXT": not found'),
        ("nodir/*", '"/nodir": not found'),
        ("[a", "syntax error in pattern"),
    ],
)
def test_what_can_not_be_copied(source: str, message: str) -> None:
    for run in (check_it, copied):
        with pytest.raises(BuildError) as caught:
            run(step("a.txt", source, to="d/"), tree(CONTEXT_FILES))
        assert message in caught.value.message
        assert caught.value.span == SPAN


def check_it(what: FileStep, files: Files) -> None:
    check(what, files)


PARENT = """
to dir 711 50:60
to/sub dir 51:61
to/sub/keep = keep
to/x = old
f = file
"""


def test_existing_directories() -> None:
    """The destination keeps owner and mode; directories below it take over the source's."""
    files = tree("d dir 700 9:9\nd/sub dir 700 2:2\nd/sub/y 2:2 = y\nd/x = x")
    assert copied(step("d", to="to"), files, tree(PARENT)) == [
        "to dir 711 50:60",
        "to/sub dir 700 2:2",
        "to/sub/y 2:2 = y",
        "to/x = x",
    ]


def test_parents_that_are_there_come_along_as_they_are() -> None:
    assert copied(step("a.txt", to="to/sub/new"), tree(CONTEXT_FILES), tree(PARENT)) == [
        "to dir 711 50:60",
        "to/sub dir 51:61",
        "to/sub/new = A",
    ]


@pytest.mark.parametrize(
    ("source", "to", "message"),
    [
        ("dir", "f", "cannot copy to non-directory: /f"),
        ("a.txt", "f/g", "mkdir /f: not a directory"),
        ("a.txt", "f/", "mkdir /f: not a directory"),
        ("a.txt", "f/g/h", "mkdir /f: not a directory"),
    ],
)
def test_files_and_directories_do_not_mix(source: str, to: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        copied(step(source, to=to), tree(CONTEXT_FILES), tree(PARENT))


def test_a_file_can_not_take_the_place_of_a_directory_inside() -> None:
    with pytest.raises(BuildError, match="cannot replace to directory /to/sub with file"):
        copied(step("s", to="to"), tree("s/sub = file"), tree(PARENT))


def test_a_file_onto_a_directorys_name_goes_into_it() -> None:
    assert copied(step("a.txt", to="to"), tree(CONTEXT_FILES), tree(PARENT))[-1] == "to/a.txt = A"


def test_the_destinations_time_is_the_sources() -> None:
    """As BuildKit leaves it; directories made on the way and here-documents have the build's time."""
    files = tree("d dir\nd/e dir\nd/f = f")
    times = {
        entry.path: entry.mtime_ns // 10**9 for entry in perform(step("d", to="n/m"), files, Unpacked(), epoch=1000)
    }
    assert times == {b"n": 1000, b"n/m": 7, b"n/m/e": 7, b"n/m/f": 7}
    inline = InlineSource("h", b"x")
    before = int(time.time())
    (entry,) = perform(step(inline, to="h"), None, Unpacked())
    assert before <= entry.mtime_ns // 10**9 <= time.time() + 1
    assert entry.mtime_ns % 10**9 == 0


def test_a_later_copy_sees_an_earlier_one() -> None:
    files = tree("one/l -> t\none/t dir\ntwo/x = x")
    assert copied(step("one", "two", to="d"), files) == ["d dir", "d/l -> t", "d/t dir", "d/x = x"]


def test_modes_are_kept() -> None:
    files = tree("m/f0 0000\nm/f1 4755\nm/f2 2711\nm/d dir 1777\nm/e dir 2750")
    assert copied(step("m", to="m"), files) == [
        "m dir",
        "m/d dir 1777",
        "m/e dir 2750",
        "m/f0 0",
        "m/f1 4755",
        "m/f2 2711",
    ]


def test_special_files() -> None:
    assert copied(step("d", to="d"), tree("d/n char 666\nd/p fifo 640 3:4")) == [
        "d dir",
        "d/n char 666",
        "d/p fifo 640 3:4",
    ]


def test_xattrs_of_a_stage_are_kept() -> None:
    capability = (("security.capability", b"\x01"),)
    files = Unpacked([replace(entry_of("ping 755"), xattrs=capability)])
    (entry,) = perform(step("ping", to="ping"), files, Unpacked())
    assert entry.xattrs == capability


# ---------------------------------------------------------------- symlinks


def test_a_symlink_as_source_is_followed() -> None:
    files = tree("real/x = x\nlink -> real\nabs -> /real/x\nup -> ../../real/x")
    assert copied(step("link", to="d"), files) == ["d dir", "d/x = x"]
    assert copied(step("link/x", to="y"), files) == ["y = x"]
    assert copied(step("abs", to="a"), files) == ["a = x"]
    assert copied(step("up", to="a"), files) == ["a = x"]
    assert copied(step("link/*", to="d/"), files) == ["d dir", "d/x = x"]


def test_matches_that_are_symlinks_are_followed_and_keep_their_names() -> None:
    files = tree("d/target = t\nd/l0 -> target\nd/l1 -> l2x\nd/l2x -> second\nd/second = s")
    assert copied(step("d/l*", to="all/"), files) == ["all dir", "all/l0 = t", "all/l1 = s", "all/l2x = s"]


def test_symlinks_inside_a_source_are_kept() -> None:
    lines = ["d dir", "d/abs -> /etc/passwd", "d/dangling -> nowhere", "d/dir -> .", "d/up -> ../out"]
    files = tree("d/abs -> /etc/passwd\nd/dangling -> nowhere\nd/dir -> .\nd/up -> ../out")
    assert copied(step("d", to="d"), files) == lines


@pytest.mark.parametrize("target", ["nothing", "../../../../etc/hostname"])
def test_a_symlink_to_nothing_is_not_there(target: str) -> None:
    with pytest.raises(BuildError, match='"/l": not found'):
        copied(step("l", to="a"), tree(f"l -> {target}"))


def test_symlinks_in_a_ring() -> None:
    with pytest.raises(BuildError, match="too many levels"):
        copied(step("a", to="x"), tree("a -> b\nb -> a"))


@pytest.mark.parametrize(
    ("parent", "to", "expected"),
    [
        pytest.param(
            "deep/real dir\none -> deep\ndeep/two -> ../deep/real",
            "one/two/made/a",
            ["deep dir", "deep/real dir", "deep/real/made dir", "deep/real/made/a = a"],
            id="on the way",
        ),
        pytest.param("target = old\nl -> target", "l", ["target = a"], id="to a file: written through"),
        pytest.param("l -> ../../../x", "l/a", ["x dir", "x/a = a"], id="that leads out stays in"),
        pytest.param("l -> /gone/b", "l", ["gone dir", "gone/b = a"], id="to nothing: what it means is made"),
        pytest.param("d/a -> /elsewhere", "d/", ["d dir", "d/a = a"], id="in the directory: replaced"),
    ],
)
def test_symlinks_at_the_destination(parent: str, to: str, expected: list[str]) -> None:
    assert copied(step("a", to=to), tree("a = a"), tree(parent)) == expected


def test_a_directory_does_not_replace_a_symlink_inside() -> None:
    with pytest.raises(BuildError, match="cannot copy to non-directory: /d/s"):
        copied(step("t", to="d"), tree("t/s/f"), tree("x dir\nd/s -> ../x"))


def test_usrmerge() -> None:
    parent = tree("usr/lib/libx\nlib -> usr/lib")
    assert copied(step("a", to="lib/a"), tree("a = a"), parent) == ["usr dir", "usr/lib dir", "usr/lib/a = a"]


# ---------------------------------------------------------------- hardlinks


def test_hardlinks_are_kept_within_a_copy() -> None:
    files = tree("d/a = 1\nd/e/b == d/a\noutside == d/a")
    assert copied(step("d", to="d"), files) == ["d dir", "d/a = 1", "d/e dir", "d/e/b == d/a"]
    assert copied(step("d/a", "outside", to="o/"), files) == ["o dir", "o/a = 1", "o/outside = 1"]


def test_a_name_that_is_overwritten_leaves_its_links() -> None:
    files = tree("d/a = 1\nd/b == d/a\nd/c == d/a\nnew/a = 2")
    assert copied(step("d", "new", to="o"), files) == ["o dir", "o/a = 2", "o/b = 1", "o/c == o/b"]


# ---------------------------------------------------------------- --chown and --chmod

USERS = """
etc/passwd = daemon:x:1:1::/:/bin/sh
etc/group = wheel:x:10:
to dir 500:600
to/sub dir 500:600
"""


def test_chown() -> None:
    assert copied(step("dir", to="to", chown="300:400"), tree(CONTEXT_FILES), tree(USERS)) == [
        "to dir 500:600",
        "to/sub dir 300:400",
        "to/sub/y 300:400 = y",
        "to/x 300:400 = x",
    ]
    assert copied(step("a.txt", to="n/m/f", chown="daemon:wheel"), tree(CONTEXT_FILES), tree(USERS)) == [
        "n dir 1:10",
        "n/m dir 1:10",
        "n/m/f 1:10 = A",
    ]


def test_chown_of_symlinks_and_over_a_stages_owners() -> None:
    files = tree("d/l 1:2 -> f\nd/f 1:2 = f")
    assert copied(step("d", to="d", chown="5:6"), files) == ["d dir 5:6", "d/f 5:6 = f", "d/l 5:6 -> f"]
    assert copied(step("d", to="d"), files) == ["d dir", "d/f 1:2 = f", "d/l 1:2 -> f"]


def test_an_unknown_owner() -> None:
    with pytest.raises(BuildError, match="unable to find user eve"):
        copied(step("a.txt", to="f", chown="eve"), tree(CONTEXT_FILES), tree(USERS))


@pytest.mark.parametrize(
    ("chmod", "expected"),
    [
        ("755", ["e dir", "e/sub dir", "e/sub/y 755 = y", "e/x 755 = x"]),
        ("600", ["e dir 600", "e/sub dir 600", "e/sub/y 600 = y", "e/x 600 = x"]),
        # The made directory loses the special bits, nothing else does.
        ("1777", ["e dir 777", "e/sub dir 1777", "e/sub/y 1777 = y", "e/x 1777 = x"]),
        ("go=", ["e dir", "e/sub dir 700", "e/sub/y 600 = y", "e/x 600 = x"]),
        ("+t", ["e dir", "e/sub dir 1755", "e/sub/y 1644 = y", "e/x 1644 = x"]),
    ],
)
def test_chmod(chmod: str, expected: list[str]) -> None:
    assert copied(step("dir", to="e", chmod=chmod), tree(CONTEXT_FILES)) == expected


def test_chmod_holds_for_parents_and_not_for_symlinks() -> None:
    assert copied(step("a", to="m/p/f", chmod="600"), tree("a = a")) == ["m dir 600", "m/p dir 600", "m/p/f 600 = a"]
    assert copied(step("d", to="d", chmod="600"), tree("d/l -> f"))[-1] == "d/l -> f"


@pytest.mark.parametrize(
    ("text", "mode", "directory", "expected"),
    [
        ("0", 0o644, False, 0),
        ("4750", 0o644, False, 0o4750),
        ("go-w", 0o666, False, 0o644),
        ("u=rw,g=r,o=", 0o666, False, 0o640),
        ("a+X", 0o666, False, 0o666),
        ("a+X", 0o600, True, 0o711),
        ("a+X", 0o610, False, 0o711),
        ("u+s,g+x", 0o666, False, 0o4676),
        ("u=rwX,go=rX", 0o700, True, 0o755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o710, False, 0o755),
        ("+x", 0o666, False, 0o777),
        ("-r", 0o666, False, 0o222),
        ("g=u", 0o640, False, 0o660),
        ("go=u-w", 0o700, False, 0o755),
        ("o+s", 0o644, False, 0o644),
        ("u=", 0o4755, False, 0o055),
        ("+t", 0o700, True, 0o1700),
        ("u+rw-x", 0o100, False, 0o600),
        ("x-X", 0o755, False, None),
        ("a-X", 0o644, False, 0o644),
    ],
)
def test_modes(text: str, mode: int, directory: bool, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(BuildError, match="invalid chmod"):
            parse_mode(text)
        return
    assert parse_mode(text).apply(mode, directory=directory) == expected


@pytest.mark.parametrize("text", ["10000", "888", "0o644", "u+q", "rwx", "u=rw,"])
def test_modes_that_are_none(text: str) -> None:
    with pytest.raises(BuildError, match="invalid chmod"):
        parse_mode(text)


# ---------------------------------------------------------------- --link


def test_link_does_not_look_at_the_base() -> None:
    parent = tree("real/f\nlink -> real\np dir 700 3:4")
    assert copied(step("a", to="link/a", link=True), tree("a = a"), parent) == ["link dir", "link/a = a"]
    assert copied(step("a", to="p/a", link=True), tree("a = a"), parent) == ["p dir", "p/a = a"]


def test_link_knows_no_names() -> None:
    what = step("a", to="a", link=True, chown="daemon")
    for run in (check_it, copied):
        with pytest.raises(BuildError, match=r"daemon.*passwd"):
            run(what, tree("a = a"))
    assert copied(step("a", to="a", link=True, chown="1:2"), tree("a")) == ["a 1:2"]


# ---------------------------------------------------------------- --parents and --exclude


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        pytest.param(["x/a.txt", "x/y/b.txt"], ["x dir", "x/a.txt", "x/y dir", "x/y/b.txt"], id="names"),
        pytest.param(["x/y/*.txt"], ["x dir", "x/y dir", "x/y/b.txt", "x/y/c.txt"], id="star"),
        pytest.param(["x/./y/*.txt"], ["y dir", "y/b.txt", "y/c.txt"], id="pivot"),
        pytest.param(["./x/./a.txt"], ["a.txt"], id="pivot after a dot"),
        pytest.param(["x/y"], ["x dir", "x/y dir", "x/y/b.txt", "x/y/c.txt", "x/y/d"], id="directory"),
        pytest.param(["**/b.txt"], ["x dir", "x/y dir", "x/y/b.txt", "z dir", "z/b.txt"], id="two stars"),
        pytest.param(["x/**/c.txt"], ["x dir", "x/y dir", "x/y/c.txt"], id="two stars below"),
        pytest.param(["*.none"], [], id="no match"),
    ],
)
def test_parents(sources: list[str], expected: list[str]) -> None:
    files = tree("x/a.txt\nx/y/b.txt\nx/y/c.txt\nx/y/d\nz/b.txt\nz/empty dir")
    lines = shown(perform(step(*sources, to="p/", parents=True), files, Unpacked()))
    assert [line.partition(" = ")[0] for line in lines] == ["p dir", *(f"p/{line}" for line in expected)]


def test_parents_take_owner_and_mode_of_the_source() -> None:
    files = tree("t/a dir 750 3:4\nt/a/b dir 700 5:6\nt/a/b/f 5:6 = f")
    assert copied(step("/t/a/b/f", to="o/", parents=True), files) == [
        "o dir",
        "o/t dir",
        "o/t/a dir 750 3:4",
        "o/t/a/b dir 700 5:6",
        "o/t/a/b/f 5:6 = f",
    ]
    assert copied(step("t/./a/b/f", to="o/", parents=True, chown="7:8", chmod="640"), files) == [
        "o dir 640 7:8",
        "o/a dir 640 7:8",
        "o/a/b dir 640 7:8",
        "o/a/b/f 640 7:8 = f",
    ]


def test_parents_do_not_follow_symlinks_after_the_pivot() -> None:
    files = tree("x/a.txt\nlink -> x")
    assert copied(step("link/./a.txt", to="p/", parents=True), files) == ["p dir", "p/a.txt = x/a.txt"]
    assert copied(step("link", to="p/", parents=True), files) == ["p dir", "p/link -> x"]
    with pytest.raises(BuildError, match=r'"/link/a.txt": not found'):
        copied(step("link/a.txt", to="p/", parents=True), files)


def test_parents_need_what_is_named() -> None:
    for run in (check_it, copied):
        with pytest.raises(BuildError, match=r'"/x/none.txt": not found'):
            run(step("x/none.txt", to="p/", parents=True), tree("x/a.txt"))


@pytest.mark.parametrize(
    ("sources", "excludes", "expected"),
    [
        (["src"], ["**/*.o"], ["d dir", "d/a.c", "d/store dir", "d/store/keep", "d/store/no"]),
        (["src"], ["*.o"], ["d dir", "d/a.c", "d/store dir", "d/store/b.o", "d/store/keep", "d/store/no"]),
        (["src"], ["store", "!store/keep"], ["d dir", "d/a.c", "d/a.o", "d/store dir", "d/store/keep"]),
        (["src"], ["*"], ["d dir"]),
        # What is named outright, or by a wildcard, is copied all the same.
        (["src/a.o"], ["a.o"], ["d dir", "d/a.o"]),
    ],
)
def test_exclude(sources: list[str], excludes: list[str], expected: list[str]) -> None:
    files = tree("src/a.c\nsrc/a.o\nsrc/store/keep\nsrc/store/no\nsrc/store/b.o")
    lines = shown(perform(step(*sources, to="d/", excludes=tuple(excludes)), files, Unpacked()))
    assert [line.partition(" = ")[0] for line in lines] == expected


def test_exclude_and_parents() -> None:
    files = tree("x/a\nx/y/b.tmp\nx/y/c")
    lines = shown(perform(step("x", to="p/", parents=True, excludes=("**/*.tmp",)), files, Unpacked()))
    assert [line.partition(" = ")[0] for line in lines] == ["p dir", "p/x dir", "p/x/a", "p/x/y dir", "p/x/y/c"]


# ---------------------------------------------------------------- here-documents and WORKDIR


def test_here_documents() -> None:
    one, two = InlineSource("a.txt", b"A"), InlineSource("b.txt", b"B")
    assert copied(step(one, "real", two, to="d/"), tree("real = r")) == [
        "d dir",
        "d/a.txt = A",
        "d/b.txt = B",
        "d/real = r",
    ]
    assert copied(step(one, to="f", chmod="755", chown="1:2"), None) == ["f 755 1:2 = A"]
    assert copied(step(one, to="to"), None, tree(PARENT)) == ["to dir 711 50:60", "to/a.txt = A"]


@pytest.mark.parametrize(
    ("to", "chown", "expected"),
    [
        ("made/deep/", "daemon", ["made dir 1:1", "made/deep dir 1:1"]),
        ("to/more/", "7:8", ["to dir 500:600", "to/more dir 7:8"]),
        ("to/", "7:8", []),
        ("link/inner/", "", ["to dir 500:600", "to/inner dir"]),
        ("dangling/", "", ["to dir 500:600", "to/new dir"]),
        ("nobody/", "stranger", ["nobody dir"]),
    ],
)
def test_workdir(to: str, chown: str, expected: list[str]) -> None:
    parent = tree(USERS + "link -> to\ndangling -> /to/new")
    assert copied(step(to=to, chown=chown), None, parent) == expected


def test_workdir_on_a_file() -> None:
    with pytest.raises(BuildError, match="mkdir /f: not a directory"):
        copied(step(to="f/d/"), None, tree(PARENT))


# ---------------------------------------------------------------- archives


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def archive(*lines: str, compress: str = "") -> Content:
    """A tar; a line `path == other` is a hardlink."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for line in lines:
            entry = entry_of(line)
            info = tarfile.TarInfo(line.split()[0])
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, 9
            info.type = {
                Kind.FILE: tarfile.REGTYPE,
                Kind.DIRECTORY: tarfile.DIRTYPE,
                Kind.SYMLINK: tarfile.SYMTYPE,
                Kind.HARDLINK: tarfile.LNKTYPE,
                Kind.FIFO: tarfile.FIFOTYPE,
            }[entry.kind]
            info.linkname = entry.target.decode()
            content = b""
            if entry.content is not None:
                with entry.content.open() as stream:
                    content = stream.read()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return BytesContent(COMPRESS[compress](data.getvalue()))


def with_archive(content: Content, name: bytes = b"t.tar") -> Unpacked:
    return Unpacked([Entry(name, Kind.FILE, 0o644, content=content)])


def added(what: FileStep, files: Files, parent: Files | None = None) -> list[str]:
    return copied(replace(what, unpack=None), files, parent)


ARCHIVE = ("./ dir 700 11:12", "link 11:12 -> one", "one 11:12 = one", "sub dir 700 11:12", "sub/two 640 11:12 = two")
UNPACKED = ["link 11:12 -> one", "one 11:12 = one", "sub dir 700 11:12", "sub/two 640 11:12 = two"]


@pytest.mark.parametrize("compress", ["", "gz", "bz2", "xz"])
def test_add_unpacks(compress: str) -> None:
    lines = added(step("t.tar", to="out/"), with_archive(archive(*ARCHIVE, compress=compress)))
    assert lines[0] == "out dir"
    assert sorted(lines[1:]) == [f"out/{line}" for line in UNPACKED]


def test_add_into_what_is_there() -> None:
    """Trap: the archive's own root entry does not touch the destination; its other directories take over."""
    parent = tree("out dir 711\nout/one = old\nout/sub dir 711 5:6\nout/sub/keep = keep")
    lines = added(step("t.tar", to="out"), with_archive(archive(*ARCHIVE)), parent)
    assert sorted(lines) == ["out dir 711", *(f"out/{line}" for line in UNPACKED)]


def test_add_chown() -> None:
    lines = added(step("t.tar", to="out/", chown="100:200"), with_archive(archive(*ARCHIVE)))
    assert sorted(lines)[:3] == ["out dir 100:200", "out/link 100:200 -> one", "out/one 100:200 = one"]


def test_copy_and_unpack_false_do_not_unpack() -> None:
    files = with_archive(archive("one = 1"))
    for what in (step("t.tar", to="d/"), step("t.tar", to="d/", unpack=False)):
        assert [entry.path for entry in perform(what, files, Unpacked())] == [b"d", b"d/t.tar"]


def test_what_is_no_archive_is_copied() -> None:
    files = with_archive(BytesContent(gzip.compress(b"just text")), b"plain.gz")
    for unpack in (None, True):
        entries = perform(step("plain.gz", to="d/", unpack=unpack), files, Unpacked())
        assert [entry.path for entry in entries] == [b"d", b"d/plain.gz"]


@pytest.mark.parametrize("compress", ["", "gz"])
def test_add_a_broken_archive(compress: str) -> None:
    """It is an archive since it begins as one: that it breaks off is an error, not a reason to copy it as it is."""
    noise = random.Random(1).randbytes(3000).hex()
    content = archive("one = " + noise, "two = " + noise, compress=compress)
    assert isinstance(content, BytesContent)
    with pytest.raises(BuildError, match=r"t\.tar: "):
        added(step("t.tar", to="d/"), with_archive(BytesContent(content.data[:2000])))


def test_an_empty_tar_is_copied() -> None:
    files = with_archive(BytesContent(bytes(10240)))
    assert [entry.path for entry in perform(step("t.tar", to="d/", unpack=None), files, Unpacked())] == [
        b"d",
        b"d/t.tar",
    ]


def test_add_several() -> None:
    files = Unpacked(
        [replace(entry_of("b.tar"), content=archive("fb = b")), replace(entry_of("a.tar"), content=archive("fa = a"))]
    )
    assert added(step("*.tar", to="dest"), files) == ["dest dir", "dest/fa = a", "dest/fb = b"]


def test_add_links_and_implied_parents() -> None:
    content = archive("d dir 2750 5:6", "d/f 4711 5:6 = f", "d/hard == d/f", "pipe fifo 600", "x/y/z 3:4 = z")
    assert sorted(added(step("t.tar", to="/"), with_archive(content))) == [
        "d dir 2750 5:6",
        "d/f 4711 5:6 = f",
        "d/hard == d/f",
        "pipe fifo 600",
        "x dir",
        "x/y dir",
        "x/y/z 3:4 = z",
    ]


def test_add_a_later_entry_wins() -> None:
    content = archive("f = first", "f 600 = second", "l -> f", "l = now a file")
    assert added(step("t.tar", to="/"), with_archive(content)) == ["f 600 = second", "l = now a file"]


def test_add_a_directory_over_a_symlink() -> None:
    parent = tree("r/real/old\nr/link -> real")
    content = archive("link dir", "link/new = n")
    assert added(step("t.tar", to="r"), with_archive(content), parent) == ["r dir", "r/link dir", "r/link/new = n"]


def test_add_a_file_over_a_directory_and_back() -> None:
    parent = tree("r/d/old")
    assert added(step("t.tar", to="r"), with_archive(archive("d = file")), parent) == ["r dir", "r/d = file"]
    again = with_archive(archive("d = file", "d dir"))
    assert added(step("t.tar", to="r"), again, parent) == ["r dir", "r/d opaque", "r/d dir"]


def test_add_follows_symlinks_inside_the_destination_only() -> None:
    """Trap: an archive's path through a symlink never leads out of where it is unpacked."""
    content = archive("real dir", "via -> real", "via/f = f")
    assert sorted(added(step("t.tar", to="in/"), with_archive(content))) == [
        "in dir",
        "in/real dir",
        "in/real/f = f",
        "in/via -> real",
    ]
    parent = tree("etc/passwd = p\nin/out -> ../../etc")
    assert sorted(added(step("t.tar", to="in"), with_archive(archive("out/passwd = evil")), parent)) == [
        "in dir",
        "in/etc dir",
        "in/etc/passwd = evil",
    ]


def test_add_a_hardlink_to_a_file_of_the_base() -> None:
    parent = tree("d/base = base")
    content = archive("first = f", "new == base")
    assert sorted(added(step("t.tar", to="d"), with_archive(content), parent)) == [
        "d dir",
        "d/base = base",
        "d/first = f",
        "d/new == d/base",
    ]
    with pytest.raises(BuildError, match="names no file: none"):
        added(step("t.tar", to="d"), with_archive(archive("new == none")), parent)


def test_add_whiteouts_delete() -> None:
    """Trap: deletion markers are no files."""
    parent = tree("d/gone\nd/kept")
    content = archive(".wh.gone = ", "new = n")
    assert added(step("t.tar", to="d"), with_archive(content), parent) == ["d dir", "d/gone whiteout", "d/new = n"]


# ---------------------------------------------------------------- keys


def keys(what: FileStep, text: str) -> list[tuple[str, str]]:
    return inputs(what, tree(text))


BASE = "src/a = 1\nsrc/d/b 600 = 2\nsrc/l -> a"


def test_keys_are_readable() -> None:
    assert keys(step("src", to="x"), "src/a = 8\nsrc/l -> a\nsrc/d dir 700 1:2") == [
        ("directory src", "contents"),
        ("file src/a", "644 0:0 sha256:2c624232cdd221771294dfbb310aca000a0df6ac8b66b696d90ef06fdefb64a3"),
        ("directory src/d", "700 1:2"),
        ("symlink src/l", "777 0:0 -> a"),
    ]


@pytest.mark.parametrize(
    ("other", "flags", "same"),
    [
        pytest.param(BASE, {}, True, id="equal"),
        pytest.param("src/a = 1\nsrc/d/b 600 = 2\nsrc/l -> a\nother = 3", {}, True, id="a file that is not copied"),
        pytest.param("src/a = X\nsrc/d/b 600 = 2\nsrc/l -> a", {}, False, id="content"),
        pytest.param("src/A = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {}, False, id="name"),
        pytest.param("src/a 755 = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {}, False, id="mode"),
        pytest.param("src/a 755 = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {"chmod": "644"}, True, id="mode under chmod"),
        pytest.param(
            "src/a 755 = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {"chmod": "go-w"}, False, id="mode under symbolic chmod"
        ),
        pytest.param("src/a 1:1 = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {}, False, id="owner"),
        pytest.param("src/a 1:1 = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {"chown": "5:5"}, True, id="owner under chown"),
        pytest.param("src/a = 1\nsrc/d/b 600 = 2\nsrc/l -> d", {}, False, id="link target"),
        pytest.param("src/a = 1\nsrc/d/b 600 = 2\nsrc/l = a", {}, False, id="kind"),
        pytest.param("src/a = 1\nsrc/d dir 700\nsrc/d/b 600 = 2\nsrc/l -> a", {}, False, id="mode of a directory"),
        pytest.param(
            "src dir 700\nsrc/a = 1\nsrc/d/b 600 = 2\nsrc/l -> a", {}, True, id="mode of the source directory"
        ),
        pytest.param("src/a = 1\nsrc/d/b 600 = 2\nsrc/l -> a\nsrc/e dir", {}, False, id="an empty directory"),
        pytest.param("src/a = 1\nsrc/d/b 600 = 2\nsrc/l -> a\nsrc/e.o", {"excludes": ("*.o",)}, True, id="excluded"),
    ],
)
def test_what_a_key_knows(other: str, flags: dict[str, object], same: bool) -> None:
    what = step("src", to="x", **flags)
    assert (keys(what, BASE) == keys(what, other)) is same


def test_keys_know_hardlinks() -> None:
    what = step("d", to="d")
    assert keys(what, "d/a = 1\nd/b == d/a") != keys(what, "d/a = 1\nd/b = 1")


def test_keys_do_not_know_times() -> None:
    what = step("a", to="a")
    files = Unpacked([replace(entry_of("a = 1"), mtime_ns=5)])
    assert inputs(what, files) == keys(what, "a = 1")


def test_keys_tell_names_that_are_no_text_apart() -> None:
    what = step("d", to="d")

    def named(name: bytes) -> list[tuple[str, str]]:
        return inputs(what, Unpacked([Entry(b"d/" + name, Kind.FILE, content=BytesContent(b""))]))

    assert named(b"\xff") != named(b"\\xff")
    assert named(b"\xff") != named(b"\xfe")


@pytest.mark.parametrize(
    "flags",
    [
        {"chown": "1:1"},
        {"chmod": "644"},
        {"link": True},
        {"parents": True},
        {"unpack": True},
        {"unpack": None},
        {"into": True},
        {"destination": "/y"},
        {"excludes": ("a",)},
    ],
)
def test_the_step_counts(flags: dict[str, object]) -> None:
    what = step("a", to="x")
    assert step_parts(what) != step_parts(replace(what, **flags))


def test_the_origin_does_not_count() -> None:
    what = step("a", to="x")
    assert step_parts(what) == step_parts(replace(what, origin=Origin(stage=3)))


def test_inline_sources_count_by_content() -> None:
    assert inputs(step(InlineSource("f", b"1"), to="x"), None) != inputs(step(InlineSource("f", b"2"), to="x"), None)


# ---------------------------------------------------------------- from a real directory


def test_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("data")
    (tmp_path / "d" / "f").chmod(0o640)
    os.link(tmp_path / "d" / "f", tmp_path / "d" / "g")
    os.symlink("f", tmp_path / "d" / "l")
    os.utime(tmp_path / "d" / "f", (5, 5))
    context = Directory(tmp_path)
    assert copied(step("d", to="x"), context) == ["x dir", "x/f 640 = data", "x/g == x/f", "x/l -> f"]
    (_, entry, *_) = perform(step("d", to="x"), context, Unpacked())
    assert entry.mtime_ns == 5 * 10**9


def test_a_file_that_changes_while_building(tmp_path: Path) -> None:
    """What a key says must be what the layer has."""
    (tmp_path / "f").write_text("one")
    context = Directory(tmp_path)
    what = step("f", to="f")
    inputs(what, context)
    (tmp_path / "f").write_text("other")
    (entry,) = perform(what, context, Unpacked())
    assert entry.content is not None
    with pytest.raises(BuildError, match="changed during the build"):
        entry.content.open()


def test_check_says_which_line_hides_a_file(tmp_path: Path) -> None:
    from grammar.ignore import Ignore

    (tmp_path / "app.log").write_text("x")
    (tmp_path / "main.py").write_text("x")
    context = Directory(tmp_path, Ignore.parse("# logs\n\n*.log\n", ".dockerignore"))
    source = Source("Dockerfile", "FROM scratch\nCOPY app.log /\n")
    with pytest.raises(BuildError) as caught:
        check(step("app.log", to="/"), context, source=source)
    assert caught.value.hint == "line 3 of .dockerignore leaves it out: *.log"
    assert caught.value.message == '"/app.log": not found in the build context'
    assert caught.value.source is source
    with pytest.raises(BuildError) as caught:
        check(step("mian.py", to="/"), context)
    assert caught.value.hint == "did you mean main.py?"


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        (Origin(context=""), "the build context"),
        (Origin(context="extra"), "the build context extra"),
        (Origin(stage=0), "the stage"),
        (Origin(image="busybox"), "the image busybox"),
    ],
)
def test_errors_say_where_they_looked(origin: Origin, place: str) -> None:
    with pytest.raises(BuildError) as caught:
        inputs(replace(step("none", to="x"), origin=origin), tree("a"))
    assert caught.value.message == f'"/none": not found in {place}'


def test_check_looks_below_symlinks_for_names() -> None:
    with pytest.raises(BuildError) as caught:
        check(step("link/fiel", to="x"), tree("real/file\nlink -> real"))
    assert caught.value.hint == "did you mean file?"

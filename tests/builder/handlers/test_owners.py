from __future__ import annotations

import pytest

from builder.context import Unpacked
from builder.errors import BuildError
from builder.handlers.owners import lookup, names_in, owner
from cache.entries import BytesContent, Entry, Kind

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment, and a broken line
short
kim:x:1001:1001::/home/kim:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
"""
GROUP = b"root:x:0:\nkim:x:1001:\nwheel:x:10:root,kim\nextra:x:1002:kim\ndaemon:x:1:\n"


def files(*, link: bool = False) -> Unpacked:
    place = b"usr/etc" if link else b"etc"
    entries = [
        Entry(place + b"/passwd", Kind.FILE, 0o644, size=len(PASSWD), content=BytesContent(PASSWD)),
        Entry(place + b"/group", Kind.FILE, 0o644, size=len(GROUP), content=BytesContent(GROUP)),
    ]
    if link:
        entries.append(Entry(b"etc", Kind.SYMLINK, 0o777, target=b"/usr/etc"))
    return Unpacked(entries)


@pytest.mark.parametrize(
    ("spec", "uid", "gid", "groups"),
    [
        ("", 0, 0, (0, 10)),
        ("root", 0, 0, (0, 10)),
        ("kim", 1001, 1001, (1001, 10, 1002)),
        ("1001", 1001, 1001, (1001, 10, 1002)),
        ("kim:extra", 1001, 1002, (1002,)),
        ("kim:1002", 1001, 1002, (1002,)),
        ("1042", 1042, 0, (0,)),
        ("1042:1043", 1042, 1043, (1043,)),
        ("7:wheel", 7, 10, (10,)),
    ],
)
def test_a_process_runs_as(spec: str, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    user = lookup(spec, files())
    assert (user.uid, user.gid, set(user.groups)) == (uid, gid, set(groups))
    assert user.groups[0] == gid or gid in user.groups


@pytest.mark.parametrize(
    ("spec", "home"), [("kim", "/home/kim"), ("1001:5", "/home/kim"), ("4711", "/"), ("", "/root")]
)
def test_home(spec: str, home: str) -> None:
    assert lookup(spec, files()).home == home


def test_nobody_needs_a_file_for_root() -> None:
    assert lookup("", Unpacked()).uid == 0
    assert lookup("12:34", Unpacked()).groups == (34,)


@pytest.mark.parametrize(
    ("spec", "message"), [("eve", "unable to find user eve"), ("kim:eve", "unable to find group eve")]
)
def test_an_unknown_name_can_not_run(spec: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        lookup(spec, files())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kim", (1001, 1001)),
        ("daemon:wheel", (1, 10)),
        ("1000:wheel", (1000, 10)),
        ("daemon:77", (1, 77)),
        ("5", (5, 5)),
        ("3000000:2147483646", (3000000, 2147483646)),
        ("daemon:", (1, 0)),
        (":5", (0, 5)),
        ("root", (0, 0)),
    ],
)
@pytest.mark.parametrize("link", [False, True], ids=["plain", "etc is a symlink"])
def test_a_file_belongs_to(spec: str, expected: tuple[int, int], link: bool) -> None:
    assert owner(spec, files(link=link)) == expected


def test_an_unknown_owner_is_an_error_where_names_are_known() -> None:
    with pytest.raises(BuildError, match="unable to find group ghosts"):
        owner("daemon:ghosts", files())
    assert owner("daemon:ghosts", files(), strict=False) == (1, 1)
    assert owner("app:app", Unpacked()) == (0, 0)


def test_ids_beyond_the_kernels() -> None:
    with pytest.raises(BuildError, match="ids go from 0"):
        owner("4294967295", files())


def test_names_in() -> None:
    assert names_in("daemon:5") == ("daemon",)
    assert names_in("1:2") == names_in("root") == names_in("") == ()
    assert names_in("a:b") == ("a", "b")

"""Names of users and groups, looked up in the /etc/passwd and /etc/group of the files that they are names in.

Two rules, as BuildKit has them: `lookup` for the user of a process (USER), `owner` for the owner of files (--chown,
and the directory that WORKDIR makes). They differ in what a lone number means: `USER 7` has the group that passwd gives
to 7, else 0; `--chown=7` is 7:7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from builder.errors import BuildError
from cache.entries import Kind

if TYPE_CHECKING:
    from cache.entries import Files

_PASSWD = b"etc/passwd"
_GROUP = b"etc/group"
_LONGEST_FILE = 10 << 20
_LARGEST_ID = 2**31 - 1


class User(Struct, frozen=True):
    """Whom a process runs as. groups: the supplementary ones and `gid`. home: from passwd, `/` when it is not there."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = "/"


def lookup(spec: str, files: Files) -> User:
    """The user of a process for `user[:group]`, names or numbers; empty is root. BuildError for an unknown name.

    Supplementary groups are those of /etc/group that list the user, unless a group is given. `uid:gid`, both numbers,
    needs no file.
    """
    user, _, group = spec.partition(":")
    uid, gid = _number(user), _number(group)
    if uid is not None and gid is not None:
        return User(uid, gid, (gid,), _home(uid, files))
    if not user:
        uid = 0
    record = next((line for line in _lines(files, _PASSWD) if _is_user(line, user, uid)), None)
    name = ""
    home = "/"
    primary = 0
    if record is not None:
        name, uid, primary, home = record[0], _int(record, 2), _int(record, 3), _text(record, 5) or "/"
    elif uid is None:
        raise BuildError(
            f"unable to find user {user}: no matching entries in passwd file",
            hint="make the user in an earlier RUN, or name it by its number",
        )
    groups: list[int] = []
    if gid is not None:
        primary = gid
    elif group:
        found = next((line for line in _lines(files, _GROUP) if line[0] == group), None)
        if found is None:
            raise BuildError(
                f"unable to find group {group}: no matching entries in group file",
                hint="make the group in an earlier RUN, or name it by its number",
            )
        primary = _int(found, 2)
    elif name:
        groups = [_int(line, 2) for line in _lines(files, _GROUP) if name in _text(line, 3).split(",")]
    if primary not in groups:
        groups.insert(0, primary)
    return User(uid, primary, tuple(groups), home)


def owner(spec: str, files: Files, *, strict: bool = True) -> tuple[int, int]:
    """The uid and gid for `user[:group]` of --chown. A user alone: its group from passwd, or the same number.

    strict: a name that the file does not have is an error; without it, and where there is no such file at all, the name
    means 0 (a group: the user's), as in BuildKit.
    """
    user, colon, group = spec.partition(":")
    uid = gid = 0
    number = _number(user)
    if number is not None:
        uid = gid = number
    elif user:
        record = _named(files, _PASSWD, user, "user", spec, strict=strict)
        if record is not None:
            uid, gid = _int(record, 2), _int(record, 3)
    if colon:
        number = _number(group) if group else 0
        if number is not None:
            gid = number
        else:
            record = _named(files, _GROUP, group, "group", spec, strict=strict)
            if record is not None:
                gid = _int(record, 2)
    return uid, gid


def known_ids(files: Files) -> tuple[frozenset[int], frozenset[int]] | None:
    """The ids of the users and of the groups that have names; None where /etc/passwd is missing."""
    users, groups = _lines(files, _PASSWD), _lines(files, _GROUP)
    if not users:
        return None
    return frozenset(_int(line, 2) for line in users), frozenset(_int(line, 2) for line in groups)


def names_in(spec: str) -> tuple[str, ...]:
    """The parts of `user[:group]` that are names and not numbers, so that a file must be asked."""
    return tuple(part for part in spec.split(":", 1) if part and _number(part) is None)


def _named(files: Files, path: bytes, name: str, what: str, spec: str, *, strict: bool) -> list[str] | None:
    lines = _lines(files, path)
    found = next((line for line in lines if line[0] == name), None)
    if found is None and strict and lines:
        raise BuildError(
            f"unable to find {what} {name}: no such {what} in /{path.decode()}",
            hint=f"in --chown={spec}; make the {what} in an earlier RUN, or name it by its number",
        )
    return found


def _is_user(record: list[str], name: str, uid: int | None) -> bool:
    return record[0] == name if uid is None else _int(record, 2) == uid


def _home(uid: int, files: Files) -> str:
    return next((_text(line, 5) for line in _lines(files, _PASSWD) if _int(line, 2) == uid), "") or "/"


def _lines(files: Files, path: bytes) -> list[list[str]]:
    """The records of a passwd or group file; none when there is no such file."""
    entry = files.entry(files.resolve(path))
    if entry is None or entry.kind is not Kind.FILE or entry.content is None:
        return []
    if entry.size > _LONGEST_FILE:
        raise BuildError(f"/{path.decode()} has more than {_LONGEST_FILE} bytes")
    with entry.content.open() as stream:
        text = stream.read().decode("utf-8", "surrogateescape")
    stripped = (line.strip() for line in text.split("\n"))
    return [line.split(":") for line in stripped if line and not line.startswith("#")]


def _number(text: str) -> int | None:
    if text == "root":
        return 0
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number > _LARGEST_ID:
        raise BuildError(f"{text} is no user or group id: ids go from 0 to {_LARGEST_ID}")
    return number


def _text(record: list[str], index: int) -> str:
    return record[index] if index < len(record) else ""


def _int(record: list[str], index: int) -> int:
    text = _text(record, index)
    return int(text) if text.isascii() and text.isdigit() else 0

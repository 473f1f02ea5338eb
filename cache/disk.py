"""Entries on this machine's disk: laying a layer's entries out in a directory, and reading a directory's back.

Nothing here follows a symlink or leaves the directory it was given: each parent is opened by its name alone
(`dir_fd`, `O_NOFOLLOW`), starting at the top.

What the disk can not hold lies in extended attributes, read back first:

    user.pybuild.owner    `uid:gid:mode`, the owner and octal permissions of an entry that could not be given them;
                          of a device node that could not be made: `uid:gid:mode:c|b:major:minor` on an empty file
    *.overlay.opaque      overlayfs's mark of a directory that hides what lies below it
                          https://docs.kernel.org/filesystems/overlayfs.html#whiteouts-and-opaque-directories

Symlinks can carry no `user.*` attribute: in a place that can not chown, theirs is the owner of the process.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from cache.contents import chunks
from cache.entries import Entry, FileContent, Kind
from cache.errors import CorruptError
from cache.removal import remove_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cache.entries import Files

OWNER = "user.pybuild.owner"
_CAPABILITY = "security.capability"
_OVERLAY = ("trusted.overlay.", "user.overlay.")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
_LATEST = (1 << 62) - 1
"""Seconds. The kernel takes 64 bits of them, and a file system clamps what it has no room for."""

_MAX_LINKS = 40


class Dialect(enum.Enum):
    """How deletions are marked in a directory that a layer is laid out in.

    OVERLAY and OVERLAY_USER: the directory holds this one layer, for overlayfs without and with `userxattr`. PLAIN: the
    directory holds the layers below already, and deletions are carried out.
    """

    OVERLAY = "trusted.overlay.opaque"
    OVERLAY_USER = "user.overlay.opaque"
    PLAIN = ""

    @property
    def opaque(self) -> str:
        """The name of the attribute that marks an opaque directory."""
        return self.value


# ---------------------------------------------------------------- attributes


def kept(name: str) -> bool:
    """Whether an extended attribute is part of an image: what containerd keeps, and the users' own.

    Not the marks of overlayfs, which would change what a mount shows, nor pybuild's, nor what belongs to one machine:
    SELinux labels, ACLs with its users' numbers, trusted.*.
    """
    return name == _CAPABILITY or (name.startswith("user.") and not name.startswith(("user.overlay.", "user.pybuild.")))


def portable_capability(value: bytes) -> bytes:
    """File capabilities of version 3, which name the user namespace that they hold in, as version 2.

    The kernel makes the one of the other where they are set inside a user namespace. See `vfs_cap_data` in
    linux/capability.h: a little-endian word of version and flags, two pairs of sets, and the root's uid in version 3.
    """
    if len(value) == 24 and value[3] == 3:
        return value[:3] + b"\x02" + value[4:20]
    return value


def attributes(path: bytes | int) -> tuple[tuple[tuple[str, bytes], ...], dict[str, bytes]]:
    """The attributes of an image that `path` has, sorted, and those by which overlayfs and pybuild mark things."""
    follow = isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return (), {}
        raise
    if not names:
        return (), {}
    found: list[tuple[str, bytes]] = []
    marks: dict[str, bytes] = {}
    for name in names:
        mark = name == OWNER or name.startswith(_OVERLAY)
        if mark or kept(name):
            with suppress(OSError):
                value = os.getxattr(path, name, follow_symlinks=follow)
                if mark:
                    marks[name] = value
                else:
                    found.append((name, portable_capability(value) if name == _CAPABILITY else value))
    return tuple(sorted(found)), marks


def mark_new(upper: bytes, uid: int, gid: int) -> None:
    """Note an owner, whom this machine can not give it, on each file and directory that a RUN made.

    upper: an overlay's upper directory, in a user namespace. What overlayfs copied up it has marked with its origin:
    that keeps the owner it has, and so does what is noted already. Symlinks, fifos and devices can hold no note.
    """
    with os.scandir(upper) as found:
        entries = list(found)
    for entry in entries:
        directory = entry.is_dir(follow_symlinks=False)
        if directory or entry.is_file(follow_symlinks=False):
            names = os.listxattr(entry.path, follow_symlinks=False)
            if OWNER not in names and "user.overlay.origin" not in names:
                mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                os.setxattr(entry.path, OWNER, b"%d:%d:%o" % (uid, gid, mode), follow_symlinks=False)
        if directory:
            mark_new(entry.path, uid, gid)


_MARK = re.compile(rb"(\d{1,10}):(\d{1,10}):([0-7]{1,4})(?::([cb]):(\d{1,10}):(\d{1,10}))?")

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def entry_of(path: bytes, full: bytes, status: os.stat_result) -> tuple[Entry, dict[str, bytes]] | None:
    """What lies at `full` as the entry of `path`, and its marks; None for a socket, which no layer can hold."""
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    xattrs, marks = attributes(full)
    mode, uid, gid = status.st_mode & 0o7777, status.st_uid, status.st_gid
    device = (0, 0)
    if kind in {Kind.CHARACTER, Kind.BLOCK}:
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if OWNER in marks and (mark := _MARK.fullmatch(marks[OWNER])):
        uid, gid, wanted = int(mark[1]), int(mark[2]), int(mark[3], 8)
        # Set-id bits get lost where a file's group is not the process's; any other difference is a later chmod.
        if wanted & 0o1777 == mode & 0o1777:
            mode = wanted
        if mark[4] and kind is Kind.FILE and not status.st_size:
            kind = Kind.CHARACTER if mark[4] == b"c" else Kind.BLOCK
            device = (int(mark[5]), int(mark[6]))
            mode = wanted
    return (
        Entry(
            path,
            kind,
            mode,
            uid,
            gid,
            status.st_size if kind is Kind.FILE else 0,
            status.st_mtime_ns,
            os.readlink(full) if kind is Kind.SYMLINK else b"",
            device,
            xattrs,
            FileContent(full) if kind is Kind.FILE else None,
        ),
        marks,
    )


# ---------------------------------------------------------------- laying out


def apply(entries: Iterable[Entry], directory: Path, dialect: Dialect, below: Files | None = None) -> None:
    """Lay one layer's entries out in `directory`, which exists.

    below: what the layers below show. Needed where an entry's parent directories are not in the layer, which then get
    the metadata of those below, or lead on where there is a symlink below; and for a hardlink to a file of a lower
    layer, which is copied up. Runs of zero bytes become holes. What already lies there is replaced, except that a
    directory stays one.

    Raises CorruptError for entries that lead out of the directory or through something that is no directory, for a
    hardlink to nothing, and for contents that end too early. What was laid out until then stays.
    """
    extraction = _Extraction(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), dialect, below)
    try:
        for entry in entries:
            extraction.place(entry)
        extraction.finish()
    finally:
        extraction.close()


class _Redirected(Exception):
    """The way to an entry leads through a symlink of a lower layer."""

    def __init__(self, path: bytes, target: bytes) -> None:
        super().__init__()
        self.path = path
        self.target = target


class _Extraction:
    """One layer being laid out. Directories are open to us until the end, when they get their modes and times."""

    def __init__(self, root: int, dialect: Dialect, below: Files | None) -> None:
        self._root = root
        self._dialect = dialect
        self._below = below
        self._own = (os.geteuid(), os.getegid())
        # The way from the top to the directory of the last entry: names, and one descriptor more than names.
        self._names: list[bytes] = []
        self._files = [root]
        self._parent = b""
        self._directories: dict[bytes, Entry] = {}
        # Only where lower layers' files lie beside this layer's: what whiteouts must not touch.
        self._made: set[bytes] | None = set() if dialect is Dialect.PLAIN else None

    def close(self) -> None:
        for file in reversed(self._files):
            os.close(file)
        self._files = []

    def place(self, entry: Entry) -> None:
        """Lay out one entry."""
        # A layer is meant to be unpacked on top of those below: there, a parent may be a symlink.
        for _ in range(_MAX_LINKS):
            try:
                self._place(entry)
                return
            except _Redirected as moved:
                entry = replace(entry, path=moved.target + entry.path[len(moved.path) :])
        raise CorruptError(f"{_show(entry.path)} leads through symlinks that go round in a circle")

    def _place(self, entry: Entry) -> None:
        path = entry.path
        parent, _, name = path.rpartition(b"/")
        if not path:
            if entry.kind is Kind.DIRECTORY:
                self._directories[b""] = entry
            elif entry.kind is Kind.OPAQUE:
                self._hide(b"", self._root)
            else:
                raise CorruptError(f"the root directory is a {entry.kind.value} in a layer")
            return
        if name in {b"", b".", b".."} or path.startswith(b"/") or b"\0" in path:
            raise _outside(path)
        if entry.kind is Kind.WHITEOUT or entry.kind is Kind.OPAQUE:
            # Where there is no such directory, nothing is deleted, and no directory made for it.
            if self._reaches(parent if entry.kind is Kind.WHITEOUT else path):
                if entry.kind is Kind.WHITEOUT:
                    self._delete(path, self._enter(parent), name)
                else:
                    self._hide(path, self._enter(path))
            return
        file = self._files[-1] if parent == self._parent else self._enter(parent)
        if entry.kind is Kind.FILE:
            self._place_file(entry, file, name)
        elif entry.kind is Kind.DIRECTORY:
            self._place_directory(entry, file, name)
        elif entry.kind is Kind.HARDLINK:
            self._place_link(entry, file, name)
        else:
            self._place_special(entry, file, name)
        if self._made is not None:
            self._made.add(path)

    def finish(self) -> None:
        """Give the directories what they are to have, children before parents."""
        for path in sorted(self._directories, reverse=True):
            entry = self._directories[path]
            if not path:
                self._leave_to(0)
                self._describe(entry, self._root)
                continue
            parent, _, name = path.rpartition(b"/")
            file = os.open(name, _DIRECTORY, dir_fd=self._enter(parent))
            try:
                self._describe(entry, file)
            finally:
                os.close(file)

    # ------------------------------------------------------------ the way

    def _leave_to(self, depth: int) -> None:
        while len(self._names) > depth:
            os.close(self._files.pop())
            self._names.pop()
        self._parent = b"/".join(self._names)

    def _enter(self, path: bytes) -> int:
        """A descriptor of the directory `path`, made where missing. Valid until the next call."""
        wanted = path.split(b"/") if path else []
        same = 0
        for mine, other in zip(self._names, wanted, strict=False):
            if mine != other:
                break
            same += 1
        self._leave_to(same)
        for depth in range(same, len(wanted)):
            name = wanted[depth]
            if name in {b"", b".", b".."}:
                raise _outside(path)
            file = self._step(self._files[-1], name, b"/".join(wanted[: depth + 1]))
            self._files.append(file)
            self._names.append(name)
        self._parent = path
        return self._files[-1]

    def _reaches(self, path: bytes) -> bool:
        """Whether there is a directory at `path`, in this layer or below, as far as is known."""
        names = path.split(b"/") if path else []
        depth = 0
        file = os.dup(self._root)
        try:
            for name in names:
                if name in {b"", b".", b".."}:
                    raise _outside(path)
                inner = os.open(name, _DIRECTORY, dir_fd=file)
                os.close(file)
                file = inner
                depth += 1
        except FileNotFoundError:
            # PLAIN: the directory holds the layers below, as far as this one has left them.
            if self._made is not None or self._below is None:
                return self._made is None
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            blocked = b"/".join(names[: depth + 1])
            if self._is_own(blocked):
                if _is_whiteout(file, names[depth]):
                    return False
                raise CorruptError(f"a layer deletes below {_show(blocked)}, which is no directory in it") from None
            if self._below is None:
                return False
        else:
            return True
        finally:
            os.close(file)
        lower = self._below.entry(self._below.resolve(path))
        return lower is not None and lower.kind is Kind.DIRECTORY

    def _step(self, file: int, name: bytes, path: bytes) -> int:
        """Open the directory `name`, an ancestor of an entry."""
        try:
            return os.open(name, _DIRECTORY, dir_fd=file)
        except FileNotFoundError:
            self._imply(file, name, path)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            if self._is_own(path) and not _is_whiteout(file, name):
                raise CorruptError(f"a layer has entries below {_show(path)}, which is no directory in it") from None
            if self._made is not None:
                self._follow(path)
            opaque = self._clear(file, name, path)
            self._imply(file, name, path, fresh=opaque)
            if opaque:
                self._mark_opaque(file, name)
        return os.open(name, _DIRECTORY, dir_fd=file)

    def _follow(self, path: bytes) -> Entry | None:
        """What lies at `path` in the layers below; when a symlink does, the entry has to go where it leads."""
        lower = self._below.entry(path) if self._below is not None else None
        if lower is not None and lower.kind is Kind.SYMLINK and self._below is not None:
            raise _Redirected(path, self._below.resolve(path))
        return lower

    def _imply(self, file: int, name: bytes, path: bytes, *, fresh: bool = False) -> None:
        """Make a directory that the layer has no entry for, as the layers below have it unless it is a fresh one."""
        # PLAIN: what lay below and is not there any more was deleted by this layer.
        lower = None if fresh or self._made is not None else self._follow(path)
        os.mkdir(name, 0o700, dir_fd=file)
        if lower is None or lower.kind is not Kind.DIRECTORY or lower.path != path:
            lower = Entry(path, Kind.DIRECTORY, 0o755)
        self._directories[path] = lower
        if self._made is not None:
            self._made.add(path)

    def _is_own(self, path: bytes) -> bool:
        """Whether what lies at `path` came from this layer."""
        return self._made is None or path in self._made

    # ------------------------------------------------------------ making

    def _clear(self, file: int, name: bytes, path: bytes) -> bool:
        """Take away what lies at `path`; whether it was this layer's whiteout."""
        if self._names[: path.count(b"/") + 1] == path.split(b"/"):
            self._leave_to(path.count(b"/"))
        status = os.stat(name, dir_fd=file, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            remove_in(file, name)
            for known in [each for each in self._directories if each == path or each.startswith(path + b"/")]:
                del self._directories[known]
            if self._made is not None:
                self._made = {each for each in self._made if not each.startswith(path + b"/")}
            return False
        os.unlink(name, dir_fd=file)
        return self._made is None and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _place_directory(self, entry: Entry, file: int, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=file)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=file, follow_symlinks=False).st_mode):
                opaque = self._clear(file, name, entry.path)
                os.mkdir(name, 0o700, dir_fd=file)
                if opaque:
                    self._mark_opaque(file, name)
        self._directories[entry.path] = entry

    def _place_file(self, entry: Entry, file: int, name: bytes) -> None:
        try:
            made = os.open(name, _NEW_FILE, 0o600, dir_fd=file)
        except FileExistsError:
            self._clear(file, name, entry.path)
            made = os.open(name, _NEW_FILE, 0o600, dir_fd=file)
        try:
            _fill(made, entry)
            self._describe(entry, made)
        finally:
            os.close(made)

    def _place_link(self, entry: Entry, file: int, name: bytes) -> None:
        if entry.target == entry.path:
            raise CorruptError(f"{_show(entry.path)} is a hardlink to itself")
        folder, _, target = entry.target.rpartition(b"/")
        if target in {b"", b".", b".."}:
            raise _outside(entry.target)
        if self._made is None and self._missing(entry.target):
            self._copy_up(entry)
            file = self._enter(entry.parent)
        source = file if folder == entry.parent else self._walk(folder, entry)
        try:
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=file, follow_symlinks=False)
            except FileExistsError:
                self._clear(file, name, entry.path)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=file, follow_symlinks=False)
        except FileNotFoundError:
            raise _dangling(entry) from None
        except PermissionError:
            raise CorruptError(f"{_show(entry.path)} is a hardlink to {_show(entry.target)}, a directory") from None
        finally:
            if source != file:
                os.close(source)

    def _missing(self, path: bytes) -> bool:
        """Whether this layer has nothing at `path`."""
        file = os.dup(self._root)
        try:
            for name in path.split(b"/")[:-1]:
                inner = os.open(name, _DIRECTORY, dir_fd=file)
                os.close(file)
                file = inner
            last = path.rpartition(b"/")[2]
            os.stat(last, dir_fd=file, follow_symlinks=False)
            return _is_whiteout(file, last)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        finally:
            os.close(file)

    def _copy_up(self, link: Entry) -> None:
        """Lay the lower layers' file that `link` names out in this layer too, as overlayfs does before it links."""
        lower = self._below.entry(link.target) if self._below is not None else None
        if lower is None:
            raise _dangling(link)
        self.place(replace(lower, path=link.target))

    def _walk(self, path: bytes, link: Entry) -> int:
        """A fresh descriptor of the directory `path`, which must be there."""
        file = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else ():
                if name in {b"", b".", b".."}:
                    raise _outside(link.target)
                inner = os.open(name, _DIRECTORY, dir_fd=file)
                os.close(file)
                file = inner
        except OSError as error:
            os.close(file)
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise _dangling(link) from None
            raise
        except CorruptError:
            os.close(file)
            raise
        return file

    def _place_special(self, entry: Entry, file: int, name: bytes) -> None:
        """A symlink, a device node or a fifo."""
        try:
            placeholder = _make_special(entry, file, name)
        except FileExistsError:
            self._clear(file, name, entry.path)
            placeholder = _make_special(entry, file, name)
        if placeholder:
            letter = "c" if entry.kind is Kind.CHARACTER else "b"
            mark = f"{entry.uid}:{entry.gid}:{entry.mode:o}:{letter}:{entry.device[0]}:{entry.device[1]}"
            made = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=file)
            try:
                os.setxattr(made, OWNER, mark.encode())
                _set_time(made, entry)
            finally:
                os.close(made)
            return
        if self._made is not None or (entry.uid, entry.gid) != self._own:
            with suppress(OSError):
                os.chown(name, entry.uid, entry.gid, dir_fd=file, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            # It was made a moment ago under a name that was free, so it is no symlink to follow.
            os.chmod(name, entry.mode, dir_fd=file)
        if entry.xattrs:
            # There is no call that sets an attribute by descriptor and name.
            full = b"/proc/self/fd/%d/%s" % (file, name)
            for key, value in entry.xattrs:
                if kept(key):
                    with suppress(OSError):
                        os.setxattr(full, key, value, follow_symlinks=False)
        _set_time(name, entry, file)

    def _describe(self, entry: Entry, file: int) -> None:
        """Owner, mode, attributes and time, in the order in which none undoes another."""
        owned = True
        if self._made is not None or (entry.uid, entry.gid) != self._own:
            try:
                os.fchown(file, entry.uid, entry.gid)
            except OSError as error:
                # EINVAL: an id that the user namespace does not map.
                if error.errno not in {errno.EPERM, errno.EINVAL}:
                    raise
                owned = False
        os.fchmod(file, entry.mode)
        if not owned:
            os.setxattr(file, OWNER, f"{entry.uid}:{entry.gid}:{entry.mode:o}".encode())
        for key, value in entry.xattrs:
            if kept(key):
                try:
                    os.setxattr(file, key, value)
                except OSError as error:
                    # Capabilities need CAP_SETFCAP, and some file systems hold no attributes at all.
                    if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EINVAL}:
                        raise
        _set_time(file, entry)

    # ------------------------------------------------------------ deletions

    def _delete(self, path: bytes, file: int, name: bytes) -> None:
        """A whiteout: `path` of the lower layers goes, this layer's own stays."""
        try:
            status = os.stat(name, dir_fd=file, follow_symlinks=False)
        except FileNotFoundError:
            if self._made is None:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=file)
            return
        if self._made is None:
            if stat.S_ISDIR(status.st_mode):
                self._mark_opaque(file, name)
        elif path not in self._made:
            self._clear(file, name, path)
        elif stat.S_ISDIR(status.st_mode):
            self._empty(path)

    def _hide(self, path: bytes, file: int) -> None:
        """An opaque directory."""
        if self._made is not None:
            self._empty(path)
        else:
            os.setxattr(file, self._dialect.opaque, b"y")
            if path:
                self._directories.setdefault(path, Entry(path, Kind.DIRECTORY, 0o755))

    def _empty(self, path: bytes) -> None:
        """Remove all below a directory but what this layer put there."""
        assert self._made is not None
        file = os.dup(self._enter(path))
        try:
            for name in os.listdir(file):
                raw = os.fsencode(name)
                inner = path + b"/" + raw if path else raw
                if inner not in self._made:
                    self._clear(file, raw, inner)
                elif stat.S_ISDIR(os.stat(raw, dir_fd=file, follow_symlinks=False).st_mode):
                    self._empty(inner)
        finally:
            os.close(file)

    def _mark_opaque(self, file: int, name: bytes) -> None:
        inner = os.open(name, _DIRECTORY, dir_fd=file)
        try:
            os.setxattr(inner, self._dialect.opaque, b"y")
        finally:
            os.close(inner)


def _make_special(entry: Entry, file: int, name: bytes) -> bool:
    """Make the node. True: only an empty file could be made in its place."""
    if entry.kind is Kind.SYMLINK:
        if not entry.target or b"\0" in entry.target:
            raise CorruptError(f"the symlink {_show(entry.path)} has no target")
        os.symlink(entry.target, name, dir_fd=file)
    elif entry.kind is Kind.FIFO:
        os.mkfifo(name, 0o600, dir_fd=file)
    else:
        form = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
        if form == stat.S_IFCHR and entry.device == (0, 0):
            raise CorruptError(f"{_show(entry.path)} is the device 0:0, which marks a deletion to overlayfs")
        try:
            os.mknod(name, form | 0o600, os.makedev(*entry.device), dir_fd=file)
        except PermissionError:
            os.close(os.open(name, _NEW_FILE, 0o600, dir_fd=file))
            return True
    return False


def _fill(file: int, entry: Entry) -> None:
    """Write a FILE's content, and holes where it is zero."""
    left = entry.size
    holes = False
    for piece in chunks(entry):
        if len(piece) > left:
            raise CorruptError(f"{_show(entry.path)} has more bytes than its {entry.size}")
        left -= len(piece)
        if len(piece) < _BLOCK or entry.size < _BLOCK:
            _write_all(file, piece)
            holes = False
        else:
            holes = _write_sparse(file, piece)
    if left:
        raise CorruptError(f"{_show(entry.path)} ends {left} bytes too early")
    if holes:
        os.ftruncate(file, entry.size)


def _write_all(file: int, data: bytes | memoryview) -> None:
    done = os.write(file, data)
    while done < len(data):
        done += os.write(file, data[done:])


def _write_sparse(file: int, data: bytes) -> bool:
    """Write `data` at the file's position, skipping blocks of zeros; whether its last block was skipped."""
    if _ZEROS not in data:
        _write_all(file, data)
        return False
    view = memoryview(data)
    start = 0
    for at in range(0, len(data), _BLOCK):
        block = view[at : at + _BLOCK]
        if block == _ZEROS[: len(block)]:
            if start < at:
                _write_all(file, view[start:at])
            start = at + len(block)
            os.lseek(file, len(block), os.SEEK_CUR)
    if start < len(data):
        _write_all(file, view[start:])
        return False
    return True


def _set_time(target: int | bytes, entry: Entry, directory: int | None = None) -> None:
    seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
    nanoseconds = max(-_LATEST, min(seconds, _LATEST)) * 1_000_000_000 + rest
    if directory is None:
        os.utime(target, ns=(nanoseconds, nanoseconds))
    else:
        os.utime(target, ns=(nanoseconds, nanoseconds), dir_fd=directory, follow_symlinks=False)


def _is_whiteout(file: int, name: bytes) -> bool:
    status = os.stat(name, dir_fd=file, follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _outside(path: bytes) -> CorruptError:
    return CorruptError(f"the path {_show(path)!r} of a layer leads out of it")


def _dangling(link: Entry) -> CorruptError:
    return CorruptError(f"{_show(link.path)} is a hardlink to {_show(link.target)}, which is not there")


# ---------------------------------------------------------------- opening


def open_below(directory: str, path: bytes) -> int:
    """A descriptor of the file at `path` below `directory`, no symlink followed. OSError as `os.open` raises it."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = path.split(b"/")
        for part in parents:
            inner = os.open(part, _DIRECTORY, dir_fd=file)
            os.close(file)
            file = inner
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=file)
    finally:
        os.close(file)

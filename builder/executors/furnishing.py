"""What a RUN finds in a root where nothing can be mounted: put there before it, taken out after it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.errors import BuildError, UnsupportedError
from cache.disk import Dialect, apply, entry_of
from cache.removal import remove_tree
from cache.snapshots import DirectoryRoot, OverlayRoot, Seen, contents_of

if TYPE_CHECKING:
    from builder.executors import Bind, RunSpec
    from cache.snapshots import Root

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_DEVICE = 0o666

_Fill = tuple[str, Callable[[str, contextlib.ExitStack], None]]
"""`dir` or `file`, and what makes it at a path, where nothing is; what it leaves on the stack is done after the RUN."""


def directory_of(root: Root) -> str:
    """The directory that a root is. UnsupportedError for an overlay."""
    if isinstance(root, OverlayRoot):
        raise UnsupportedError("without mounts a root is a plain directory, not an overlay")
    return str(root.path)


class Furnished:
    """A root in which, until the stack is closed, lies what is mounted elsewhere. No process runs in it before that.

    nodes: device nodes can be made. Else /dev has empty files in their places, and whoever runs the command shows
    devices there, and a /proc. Everything is taken out through descriptors opened before the RUN: paths may lead
    elsewhere after it.
    """

    def __init__(self, root: str, stack: contextlib.ExitStack, *, nodes: bool) -> None:
        self._root = root
        self._stack = stack
        self._nodes = nodes
        self._folders: dict[str, tuple[int, tuple[int, int]]] = {}
        self._aside = tempfile.mkdtemp(prefix="aside-", dir=os.path.dirname(root))
        self._moved = 0
        stack.callback(remove_tree, self._aside)
        stack.callback(self._close)

    def fill(self, spec: RunSpec) -> tuple[int, int]:
        """Put all in its place, outer things first; the two ends of the output."""
        for name in ("/proc", "/sys"):
            self._place(name, ("dir", _Empty(0o555)))
        device = _Devices(None if self._nodes else f"{self._aside}/output")
        self._place("/dev", ("dir", device))
        wanted: list[tuple[str, _Fill]] = [
            ("/etc/hosts", ("file", _File(spec.hosts, 0o644, 0, 0))),
            ("/etc/resolv.conf", ("file", _File(spec.resolv_conf, 0o644, 0, 0))),
        ]
        wanted += [(bind.target, _bound(bind)) for bind in spec.binds]
        wanted += [(tmpfs.target, ("dir", _Empty(tmpfs.mode))) for tmpfs in spec.tmpfs]
        wanted += [(target, ("file", _File(data, mode, uid, gid))) for target, data, mode, uid, gid in spec.files]
        wanted.sort(key=lambda item: item[0].strip("/").count("/"))
        for target, fill in wanted:
            self._place(target, fill)
        for folder, (atime, mtime) in self._folders.values():
            os.utime(folder, ns=(atime, mtime))
        self._stack.callback(self._note_times)
        return device.reading, device.writing

    def _place(self, target: str, fill: _Fill) -> None:
        from builder import sandbox

        kind, make = fill
        what = "a directory" if kind == "dir" else "a file"
        try:
            parts, found = sandbox.locate(self._root, target)
            if not parts or (found and found != kind):
                number = errno.EISDIR if kind == "file" else errno.ENOTDIR
                raise OSError(number, os.strerror(number))
            for end in range(1, len(parts)):
                self._make_folder(parts[:end])
            path = "/".join((self._root, *parts))
            folder = self._folder(parts[:-1])
            if found:
                self._move_aside(path, folder, parts[-1])
            # Whatever lies there then: in place of a mount point nothing of the command's could be.
            self._stack.callback(remove_tree, f"/proc/self/fd/{folder}/{parts[-1]}")
            make(path, self._stack)
        except OSError as error:
            text = error.strerror or str(error)
            raise OSError(error.errno, f"can not mount {what} at {target}: {text}") from None

    def _make_folder(self, parts: list[str]) -> None:
        path = "/".join((self._root, *parts))
        if os.path.lexists(path):
            return
        folder = self._folder(parts[:-1])
        make_folder(path)
        self._stack.callback(_remove_if_empty, folder, parts[-1])

    def _folder(self, parts: list[str]) -> int:
        """A descriptor of a directory that something is about to be made in."""
        path = "/".join((self._root, *parts))
        if path not in self._folders:
            folder = os.open(path, _FOLDER)
            status = os.fstat(folder)
            self._folders[path] = (folder, (status.st_atime_ns, status.st_mtime_ns))
        return self._folders[path][0]

    def _move_aside(self, path: str, folder: int, name: str) -> None:
        self._moved += 1
        kept = f"{self._aside}/{self._moved}"
        os.rename(path, kept)

        def put_back() -> None:
            # The command may have removed the directory that it was in.
            with contextlib.suppress(FileNotFoundError):
                os.rename(kept, name, dst_dir_fd=folder)

        self._stack.callback(put_back)

    def _note_times(self) -> None:
        """Before anything is taken out: the times of the directories, which the command may have changed."""
        for path, (folder, _) in self._folders.items():
            status = os.fstat(folder)
            self._folders[path] = (folder, (status.st_atime_ns, status.st_mtime_ns))

    def _close(self) -> None:
        for folder, (atime, mtime) in self._folders.values():
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder, ns=(atime, mtime))
            os.close(folder)


def make_folder(path: str, mode: int = 0o755) -> None:
    """Make a directory of exactly this mode, whatever the process's mask."""
    os.mkdir(path)
    os.chmod(path, mode)


def _remove_if_empty(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=folder)


class _Empty:
    """An empty directory."""

    def __init__(self, mode: int) -> None:
        self._mode = mode

    def __call__(self, path: str, _stack: contextlib.ExitStack) -> None:
        make_folder(path, self._mode)


class _File:
    """A small file: a script, a secret, /etc/hosts."""

    def __init__(self, data: bytes, mode: int, uid: int, gid: int) -> None:
        self._data = data
        self._mode, self._uid, self._gid = mode, uid, gid

    def __call__(self, path: str, stack: contextlib.ExitStack) -> None:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(self._data)
            while view:
                view = view[os.write(file, view) :]
            # Not for writing, which would keep it from being executed.
            kept = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, kept)
            if (self._uid, self._gid) != (os.geteuid(), os.getegid()):
                # An ordinary user can give nothing away.
                with contextlib.suppress(PermissionError):
                    os.fchown(file, self._uid, self._gid)
            os.fchmod(file, self._mode)
        finally:
            os.close(file)

        def forget() -> None:
            status = os.fstat(kept)
            in_place = os.path.lexists(path) and os.path.samestat(os.lstat(path), status)
            if status.st_nlink > in_place:
                os.fchmod(kept, 0o600)
                os.truncate(f"/proc/self/fd/{kept}", 0)
                folder, name = os.path.split(path)
                raise BuildError(
                    f"the command moved or linked {name}, which was mounted in {os.path.basename(folder)}",
                    hint="copy it: what is mounted is no part of the image",
                )

        stack.callback(forget)


class _Devices:
    """/dev. reading and writing: the ends of the output.

    pipe: where the output's pipe is made; None: it is /dev/stderr, since there is no /proc to lead to it.
    """

    reading = writing = -1

    def __init__(self, pipe: str | None) -> None:
        self._pipe = pipe

    def __call__(self, path: str, stack: contextlib.ExitStack) -> None:
        from builder import sandbox

        make_folder(path)
        for name, major, minor in sandbox.DEVICES:
            if self._pipe is None:
                os.mknod(f"{path}/{name}", stat.S_IFCHR | _DEVICE, os.makedev(major, minor))
                os.chmod(f"{path}/{name}", _DEVICE)
            else:
                os.close(os.open(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        for name, target in sandbox.LINKS:
            if name != "stderr" or self._pipe is not None:
                os.symlink(target, f"{path}/{name}")
        for name, mode in (("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)):
            make_folder(f"{path}/{name}", mode)
        pipe = self._pipe or f"{path}/stderr"
        os.mkfifo(pipe)
        os.chmod(pipe, _DEVICE)
        # Open for both, so that it never looks ended while a writer may still come.
        self.reading = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, self.reading)
        self.writing = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, self.writing)


def _bound(bind: Bind) -> _Fill:
    """What shows a bind: a copy of its source. FileNotFoundError when there is none."""
    from builder import sandbox

    source = directory_of(bind.source) if isinstance(bind.source, DirectoryRoot | OverlayRoot) else str(bind.source)
    if bind.inside:
        parts, found = sandbox.locate(source, bind.inside)
        if not found:
            raise FileNotFoundError(errno.ENOENT, f"/{bind.inside.lstrip('/')}: {os.strerror(errno.ENOENT)}")
        source = "/".join((source, *parts))
    mode = os.stat(source).st_mode
    kept = not bind.readonly and not bind.discard_writes
    if stat.S_ISDIR(mode):
        return "dir", _Copy(source, kept=kept)
    if stat.S_ISSOCK(mode):
        return "file", _Socket(source)
    return "file", _CopiedFile(source, kept=kept)


class _Copy:
    """A copy of a directory; kept: what the command changes in it is carried over to the original."""

    def __init__(self, source: str, *, kept: bool) -> None:
        self._source = source
        self._kept = kept

    def __call__(self, path: str, stack: contextlib.ExitStack) -> None:
        os.mkdir(path)
        apply(contents_of(self._source), Path(path), Dialect.PLAIN)
        if not self._kept:
            return
        copy = os.open(path, _FOLDER)
        stack.callback(os.close, copy)
        seen = Seen(f"/proc/self/fd/{copy}")
        stack.callback(lambda: apply(seen.changes(), Path(self._source), Dialect.PLAIN))


class _CopiedFile:
    """A copy of a file; kept: what the command writes to it is written to the original."""

    def __init__(self, source: str, *, kept: bool) -> None:
        self._source = source
        self._kept = kept

    def __call__(self, path: str, stack: contextlib.ExitStack) -> None:
        full = os.fsencode(self._source)
        found = entry_of(os.fsencode(os.path.basename(path)), full, os.stat(full))
        assert found is not None
        apply([replace(found[0], path=os.fsencode(os.path.basename(path)))], Path(path).parent, Dialect.PLAIN)
        if self._kept:
            copy = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            before = os.fstat(copy)
            stack.callback(self._carry_over, copy, before.st_mtime_ns, before.st_size)

    def _carry_over(self, copy: int, mtime: int, size: int) -> None:
        with os.fdopen(copy, "rb") as changed:
            status = os.fstat(copy)
            if (status.st_mtime_ns, status.st_size) != (mtime, size):
                with open(self._source, "wb") as original:
                    while data := changed.read(1 << 20):
                        original.write(data)


class _Socket:
    """A socket under a second name, by which it can be connected to as well."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __call__(self, path: str, _stack: contextlib.ExitStack) -> None:
        try:
            os.link(self._source, path)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OSError(error.errno, f"{self._source} is not on the store's file system") from None
            raise

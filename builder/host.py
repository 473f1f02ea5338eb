"""`host:`: a small base image put together from this machine's own shell and core utilities.

With it a RUN works where there is no network and no image at all. It holds those of PROGRAMS that the machine has, the
shared libraries they need, found as the dynamic linker finds them, and the few files and directories without which
programs stumble. Every path is the host's own, with the symlinks on the way, so a merged /usr stays merged.

The layer depends on nothing but the files it is made of: built again from the same files it has the same digest. What
was read is remembered by inode, size and times, so that it is read once.
"""

from __future__ import annotations

import glob
import json
import os
import stat
import struct
from typing import TYPE_CHECKING

from msgspec import Struct, field

from builder.errors import UnsupportedError
from cache.entries import BytesContent, Entry, FileContent, Kind
from cache.index import Index, key
from cache.oci import Descriptor, Layer, canonical, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from cache.store import Store

PROGRAMS = (
    "sh", "bash", "awk", "basename", "cat", "chgrp", "chmod", "chown", "cksum", "cmp", "comm", "cp", "csplit", "cut",
    "date", "dd", "df", "diff", "dirname", "du", "echo", "env", "expand", "expr", "false", "find", "fold", "getconf",
    "getopt", "grep", "egrep", "fgrep", "head", "hostname", "id", "install", "join", "kill", "link", "ln", "logname",
    "ls", "md5sum", "mkdir", "mkfifo", "mknod", "mktemp", "mv", "nice", "nl", "nohup", "nproc", "numfmt", "od",
    "paste", "patch", "pathchk", "pr", "printenv", "printf", "pwd", "readlink", "realpath", "rm", "rmdir", "sed",
    "seq", "sha1sum", "sha256sum", "sha512sum", "shuf", "sleep", "sort", "split", "stat", "stdbuf", "stty", "sum",
    "sync", "tac", "tail", "tee", "test", "[", "timeout", "touch", "tr", "true", "truncate", "tsort", "tty", "uname",
    "unexpand", "uniq", "unlink", "wc", "which", "who", "whoami", "xargs", "yes", "tar", "gzip", "gunzip", "zcat",
    "bzip2", "bunzip2", "xz", "unxz", "cpio",
)  # fmt: skip
"""What the image has of programs, as far as the machine has them."""

_BIN = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_ELSEWHERE = ("/run/current-system/sw/bin",)  # NixOS has nothing but sh and env in the usual places
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_LIB = ("/lib/*-linux-*", "/usr/lib/*-linux-*", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
"""Where a dynamic linker looks without being told; Debian's has a directory for each architecture."""
_CACHE = "/etc/ld.so.cache"
# Loaded by name while running, which no DT_NEEDED says: before version 2.34 glibc reads /etc/passwd there.
_BY_NAME = ("libnss_files.so.2",)

_DIRECTORIES = {
    "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755, "sys": 0o755,
    "tmp": 0o1777, "usr": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755, "var": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
_FILES = {
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
}

_MAX_LINKS = 40
_MAX_HEADER = 1 << 12
_MAX_TABLE = 64 << 20


def layer(store: Store) -> tuple[Layer, int]:
    """The layer, in the store, and the time of its newest file in seconds since the epoch.

    UnsupportedError when the machine has no shell to put in.
    """
    index = Index(store.database)
    programs = [path for name in PROGRAMS if (path := _program(name))]
    if not programs or os.path.basename(programs[0]) != "sh":
        raise UnsupportedError("host: needs a shell at /bin/sh on this machine")
    wanted = key([("host", "1"), *((path, _seen(path)) for path in programs)])
    if text := index.memo("host", wanted):
        found = json.loads(text)
        descriptor = Descriptor.from_json(found["layer"])
        if all(_seen(path) == seen for path, seen in found["files"]) and store.holds(descriptor):
            return Layer(digest(found["diff_id"]), descriptor), found["newest"]
    from cache.layers import write

    collected = collect(programs)
    newest = max((entry.mtime_ns for entry in collected.values() if entry.kind is Kind.FILE), default=0)
    newest -= newest % 1_000_000_000
    written = write(list(_entries(collected, newest)), store).layer
    document = {
        "diff_id": written.diff_id,
        "layer": written.descriptor.to_json(),
        "newest": newest // 1_000_000_000,
        "files": [[path, _seen(path)] for path in map(os.fsdecode, sorted(collected))],
    }
    index.memoise("host", wanted, canonical(document).decode("utf-8", "surrogateescape"))
    return written, newest // 1_000_000_000


def collect(programs: Sequence[str]) -> dict[bytes, Entry]:
    """`programs` with all that they need to start: host path to entry. What can not be read is left out."""
    found = _Collection()
    for path in (*_MERGED, *programs):
        found.add(path)
    for name in _BY_NAME:
        if path := found.library(name, (), 0):
            found.add(path)
    return found.entries


def _program(name: str) -> str:
    return next(
        (path for folder in (*_BIN, *_ELSEWHERE) if os.access(path := f"{folder}/{name}", os.X_OK)),
        "",
    )


def _seen(path: str) -> str:
    """All that tells whether a file is still the one that was read; directories count by their mode alone."""
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    if stat.S_ISDIR(status.st_mode):
        return f"directory {status.st_mode:o}"
    return f"{status.st_mode:o} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _entries(collected: dict[bytes, Entry], newest: int) -> Iterator[Entry]:
    """The layer's entries, sorted, parents first; hardlinks point to the first name of their file."""
    made: dict[bytes, Entry] = {}
    for path, mode in _DIRECTORIES.items():
        name = path.encode()
        made[name] = Entry(name, Kind.DIRECTORY, mode, mtime_ns=newest)
    for path, text in _FILES.items():
        name, data = path.encode(), text.encode()
        made[name] = Entry(name, Kind.FILE, 0o644, size=len(data), mtime_ns=newest, content=BytesContent(data))
    names: dict[object, bytes] = {}
    for found, entry in sorted(collected.items()):
        name = found.lstrip(b"/")
        if entry.kind is Kind.DIRECTORY:
            made.setdefault(name, Entry(name, Kind.DIRECTORY, entry.mode, mtime_ns=newest))
            continue
        inode = entry.device
        first = names.setdefault(inode, name)
        if entry.kind is Kind.FILE and first != name:
            made[name] = Entry(name, Kind.HARDLINK, entry.mode, mtime_ns=entry.mtime_ns, target=first)
        else:
            made[name] = Entry(
                name, entry.kind, entry.mode, size=entry.size, mtime_ns=entry.mtime_ns, target=entry.target,
                content=entry.content,
            )  # fmt: skip
    yield from (made[name] for name in sorted(made))


class _Collection(Struct):
    """Paths of the host that were found to be needed. An entry's `device` holds its inode here."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    usual: tuple[str, ...] = field(default_factory=lambda: tuple(_folders(_LIB)))
    configured: tuple[str, ...] = field(default_factory=lambda: tuple(_configured("/etc/ld.so.conf")))

    def add(self, path: str) -> None:
        """Take `path` in, with its parents, the symlinks on the way and what it needs to be loaded."""
        real = self._walk(path)
        if real is None or not stat.S_ISREG(os.stat(real).st_mode) or os.fsencode(real) in self.entries:
            return
        try:
            with open(real, "rb") as stream:
                head = stream.read(_MAX_HEADER)
                status = os.fstat(stream.fileno())
                elf = _Elf.read(stream) if head.startswith(b"\x7fELF") else None
        except OSError:
            return
        self.entries[os.fsencode(real)] = Entry(
            os.fsencode(real), Kind.FILE, status.st_mode & 0o755 | 0o444, size=status.st_size,
            mtime_ns=status.st_mtime_ns, content=FileContent(os.fsencode(real)), device=(status.st_dev, status.st_ino),
        )  # fmt: skip
        if elf is None:
            if head.startswith(b"#!"):
                words = head.split(b"\n", 1)[0][2:].split()
                if words:
                    self.add(os.fsdecode(words[0]))
            return
        if elf.interpreter:
            self.add(elf.interpreter)
        for name in elf.needed:
            if library := self.library(name, elf.search(os.path.dirname(real)), elf.machine):
                self.add(library)

    def library(self, name: str, first: Sequence[str], machine: int) -> str:
        """Where the dynamic linker would find `name`; empty when nowhere."""
        if "/" in name:
            return name
        for folder in (*first, *self.usual, *self.configured):
            path = f"{folder}/{name}"
            try:
                with open(path, "rb") as stream:
                    # A 32-bit library of the same name may lie in an earlier directory.
                    if machine not in (0, _Elf.read(stream).machine):
                        continue
            except (OSError, ValueError):
                continue
            if folder not in first and folder not in self.usual:
                self.add(_CACHE)  # the linker in the image would not look there without it
            return path
        return ""

    def _walk(self, path: str) -> str | None:
        """Note each part of `path`, following symlinks as the kernel would; the real path, None when it is nowhere."""
        todo = [part for part in path.split("/") if part]
        at, hops = "", 0
        while todo:
            part = todo.pop(0)
            if part in (".", ".."):
                at = at if part == "." else at.rpartition("/")[0]
                continue
            at = f"{at}/{part}"
            try:
                status = os.lstat(at)
            except OSError:
                return None
            name = os.fsencode(at)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(at)
                hops += 1
                if hops > _MAX_LINKS:
                    return None
                self.entries[name] = Entry(
                    name, Kind.SYMLINK, 0o777, mtime_ns=status.st_mtime_ns, target=os.fsencode(target),
                    device=(status.st_dev, status.st_ino),
                )  # fmt: skip
                at = "" if target.startswith("/") else at.rpartition("/")[0]
                todo = [step for step in target.split("/") if step] + todo
            elif stat.S_ISDIR(status.st_mode):
                self.entries[name] = Entry(name, Kind.DIRECTORY, status.st_mode & 0o7777)
            elif todo:
                return None
        return at


class _Elf(Struct, frozen=True):
    """What the dynamic linker reads of a program or library: https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html."""

    machine: int
    interpreter: str = ""
    needed: tuple[str, ...] = ()
    run_path: tuple[str, ...] = ()

    def search(self, origin: str) -> tuple[str, ...]:
        """Its own search directories, $ORIGIN put in."""
        return tuple(part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in self.run_path if part)

    @staticmethod
    def read(stream: BinaryIO) -> _Elf:
        """Read the headers and the dynamic section; ValueError when the file is no ELF file, or a broken one."""
        stream.seek(0)
        head = stream.read(64)
        if len(head) < 52 or head[:4] != b"\x7fELF":
            raise ValueError("not an ELF file")
        wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
        try:
            machine, programs = _program_headers(stream, head, order, wide=wide)
            return _Elf._dynamic(stream, machine, programs, order, wide=wide)
        except (struct.error, IndexError, OverflowError) as error:
            raise ValueError(f"a broken ELF file: {error}") from None

    @staticmethod
    def _dynamic(stream: BinaryIO, machine: int, programs: Sequence[_Segment], order: str, *, wide: bool) -> _Elf:
        interpreter, entries = "", list[tuple[int, int]]()
        for segment in programs:
            if segment.kind == _PT_INTERP:
                interpreter = os.fsdecode(_at(stream, segment.offset, segment.size).rstrip(b"\0"))
            elif segment.kind == _PT_DYNAMIC:
                form = order + ("qQ" if wide else "iI")
                data = _at(stream, segment.offset, segment.size)
                entries += struct.iter_unpack(form, data[: len(data) - len(data) % struct.calcsize(form)])
        table = dict(entries)
        if _DT_STRTAB not in table:
            return _Elf(machine, interpreter)
        start = next(
            segment.offset + table[_DT_STRTAB] - segment.address
            for segment in programs
            if segment.kind == _PT_LOAD and 0 <= table[_DT_STRTAB] - segment.address < segment.size
        )
        strings = _at(stream, start, table.get(_DT_STRSZ, 0))

        def text(offset: int) -> str:
            return os.fsdecode(strings[offset : strings.index(b"\0", offset)])

        paths = [text(value) for tag, value in entries if tag in (_DT_RUNPATH, _DT_RPATH)]
        return _Elf(
            machine,
            interpreter,
            tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
            tuple(":".join(paths).split(":")),
        )


_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29


class _Segment(Struct, frozen=True):
    kind: int
    offset: int
    address: int
    size: int


def _program_headers(stream: BinaryIO, head: bytes, order: str, *, wide: bool) -> tuple[int, list[_Segment]]:
    (machine,) = struct.unpack_from(order + "H", head, 18)
    (offset,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    table = _at(stream, offset, size * count)
    found = []
    for at in range(0, len(table) - size + 1, size):
        if wide:
            kind, _, start, address, _, length = struct.unpack_from(order + "IIQQQQ", table, at)
        else:
            kind, start, address, _, length = struct.unpack_from(order + "IIIII", table, at)
        found.append(_Segment(kind, start, address, length))
    return machine, found


def _at(stream: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MAX_TABLE:
        raise ValueError("a table larger than any real one")
    stream.seek(offset)
    return stream.read(size)


def _folders(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from (path for path in sorted(glob.glob(pattern)) if os.path.isdir(path))


def _configured(path: str) -> Iterator[str]:
    """The directories of ld.so.conf(5), `include` lines followed."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for inner in sorted(glob.glob(os.path.join(os.path.dirname(path), pattern))):
                    if inner != path:
                        yield from _configured(inner)
        elif words and words[0].startswith("/"):
            yield words[0]

"""The kernel calls behind a RUN, and the program that makes them.

As a module it is the library of what a builder asks of the kernel before any thread exists: entering a user namespace,
finding out by doing what may be mounted. As a program (`python -I -S sandbox.py`, a socket as standard input) it is a
single-threaded server that forks once for each RUN: the child becomes process 1 of a fresh pid namespace, builds its
root in a mount namespace of its own and executes. All mounts live in that namespace and die with it, so that nothing
is ever left to unmount, not even by a crash.

It imports nothing of this project and little of the standard library, since its start is paid by the first RUN.

Protocol: one message on standard input per RUN carries two descriptors, the RUN's socket and the pipe for its output,
and one byte, which says what network the RUN gets. On the RUN's socket the request comes in as one frame (length, then
marshal: both ends are one interpreter), and frames of `shared`, `made`, `failed` and `exit` go out. Shutting down the
sending side kills the RUN.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import fcntl
import marshal
import os
import resource
import select
import stat
import sys

# As type checkers read it; importing typing would cost a third of the server's start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

    Mount = tuple[str, str, Callable[..., int], tuple[Any, ...]]
    """Target, `dir` or `file`, what makes the mount, and that function's arguments."""

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_REC, MS_PRIVATE, MS_SLAVE = 0x4000, 1 << 18, 1 << 19
MNT_DETACH = 2
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_EMPTY_PATHS = 0x4 | 0x40
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
UMOUNT_NOFOLLOW = 8
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
# System calls since 5.0 have the same number on every architecture that this runs on.
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 428, 429, 430, 431, 432
SYS_CLOSE_RANGE, SYS_OPENAT2, SYS_MOUNT_SETATTR = 436, 437, 442
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
CLOSE_RANGE_CLOEXEC = 4

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 1, 22, 24, 47
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
SIGKILL, SIGPIPE, SIGXFSZ, SIG_SETMASK = 9, 13, 25, 2

# Docker's default set: chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot
# mknod audit_write setfcap.
CAPABILITIES = 0xA80425FB

MASKED = (
    "proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/sched_debug",
    "proc/scsi", "proc/timer_list", "proc/timer_stats", "sys/devices/virtual/powercap", "sys/firmware",
)  # fmt: skip
READ_ONLY = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
SYMLINKS_AT_MOST = 255

MSG_CMSG_CLOEXEC = 0x40000000
NOT_FOUND, NOT_EXECUTABLE, FAILED = 127, 126, 125

WITHOUT_NETWORK, WITH_NETWORK, WITH_NETWORK_TO_SPOIL = b"-", b"+", b"!"
"""What a request's first byte says: no namespace is to be joined; one is; one is, and no other RUN gets it after."""


# ---------------------------------------------------------------- system calls


def _result(result: int, what: str) -> int:
    """The result, or OSError with the name of what was tried."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(number: int, what: str, *arguments: int | bytes | ctypes.Array[Any] | None) -> int:
    """A system call by number. Integers go as longs: a variadic C function would take 32 bits of them."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _result(libc.syscall(ctypes.c_long(number), *values), what)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _result(libc.unshare(ctypes.c_int(flags)), "unshare")


def _setns(fd: int, kind: int) -> None:
    _result(libc.setns(fd, ctypes.c_int(kind)), "setns")


def enter_mounts(fd: int) -> None:
    """Join the mount namespace that a descriptor is of. / and the current folder are its root from here on."""
    _setns(fd, CLONE_NEWNS)


def propagation(flags: int) -> None:
    """Say for every mount of this namespace how mounts and unmounts propagate."""
    _result(libc.mount(b"none", b"/", None, ctypes.c_ulong(flags | MS_REC), None), "mount propagation of /")


def filesystem(kind: str, options: Iterable[tuple[str, str | None]] = (), attributes: int = 0) -> int:
    """Make a file system and return a descriptor of its mount, which is attached nowhere yet.

    options: (name, value), None for a flag. OSError carries the kernel's own words when it has some.
    """
    fs = _call(SYS_FSOPEN, f"fsopen {kind}", kind.encode(), 1)
    try:
        try:
            for name, value in (("source", kind), *options):
                command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
                text = None if value is None else os.fsencode(value)
                _call(SYS_FSCONFIG, f"{kind} option {name}", fs, command, name.encode(), text, 0)
            _call(SYS_FSCONFIG, f"new {kind}", fs, FSCONFIG_CMD_CREATE, None, None, 0)
            return _call(SYS_FSMOUNT, f"mount {kind}", fs, 1, attributes)
        except OSError as error:
            try:
                words = os.read(fs, 4096).decode("utf-8", "replace").strip()
            except OSError:
                words = ""
            raise OSError(error.errno, f"{error.strerror} ({words})" if words else error.strerror) from None
    finally:
        os.close(fs)


def clone_tree(path: str, *, at: int = -100, recursive: bool = True) -> int:
    """A descriptor of a new mount of what is at `path` (of `at` itself when empty): a bind, attached nowhere yet."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return _call(SYS_OPEN_TREE, f"bind {path}".strip(), at, os.fsencode(path), flags)


def set_attributes(mount: int, attributes: int, *, recursive: bool = True) -> None:
    """Set mount attributes such as RDONLY."""
    packed = attributes.to_bytes(8, sys.byteorder) + bytes(24)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call(SYS_MOUNT_SETATTR, "mount_setattr", mount, b"", flags, packed, 32)


def attach(mount: int, target: int) -> None:
    """Attach a mount at a descriptor, and close both."""
    try:
        _call(SYS_MOVE_MOUNT, "move_mount", mount, b"", target, b"", MOVE_MOUNT_EMPTY_PATHS)
    finally:
        os.close(mount)
        os.close(target)


def detach(path: str) -> None:
    """Take away the mount at a path, and all in it."""
    _result(libc.umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")


def open_in_root(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path` with `root` as /, whatever symlinks say; flags as for open(2)."""
    how = (flags | os.O_CLOEXEC).to_bytes(8, sys.byteorder) + bytes(8)
    how += (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).to_bytes(8, sys.byteorder)
    while True:
        try:
            return _call(SYS_OPENAT2, path, root, os.fsencode(path), how, 24)
        except OSError as error:
            # At a `..`, where something was renamed or mounted meanwhile, wherever on the machine: openat2(2).
            if error.errno != errno.EAGAIN:
                raise


def _prctl(option: int, value: int, what: str) -> None:
    _result(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), what)


# ---------------------------------------------------------------- where am I, and what may I do


def in_user_namespace() -> bool:
    """Whether this process sees other ids than the kernel does."""
    with open("/proc/self/uid_map", "rb") as lines:
        return lines.read().split() != [b"0", b"0", b"4294967295"]


def attempt(act: Callable[[], None]) -> OSError | None:
    """Do `act` in a child process, whose changes to its namespaces end with it. Returns its OSError, or None."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except OSError as error:
            os.write(writing, marshal.dumps((error.errno, error.strerror)))
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return None
    number, text = marshal.loads(said) if said else (0, f"status {status}")  # noqa: S302 - from a child of ours
    return OSError(number, text)


def try_mounts() -> None:
    """Do what a RUN will: new namespaces, a file system mounted in them, /proc of a new pid namespace. OSError."""
    unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
    propagation(MS_PRIVATE)
    attach(filesystem("tmpfs"), os.open("/", os.O_PATH | os.O_CLOEXEC))
    error = attempt(lambda: os.close(filesystem("proc", (), NOSUID | NODEV | NOEXEC)))
    if error:
        raise error


def try_overlay(folder: str, userxattr: bool) -> OSError | None:
    """Whether an overlay can be written to on the file system of `folder`, which exists: None, or why not.

    Makes and removes a folder in it. The mount is attached nowhere. Needs the right to mount.
    """
    name = f"{folder}/overlay.{os.getpid()}.{os.urandom(4).hex()}"
    fds = []
    try:
        os.mkdir(name, 0o700)
    except OSError as error:
        return error
    try:
        for part in ("lower", "upper", "work"):
            os.mkdir(f"{name}/{part}", 0o700)
            fds.append(_open_path(f"{name}/{part}"))
        options = _overlay_options(userxattr, fds[1], fds[2])
        os.close(filesystem("overlay", [("lowerdir", f"/proc/self/fd/{fds[0]}"), *options]))
    except OSError as error:
        return error
    finally:
        for fd in fds:
            os.close(fd)
        _remove(name)
    return None


def _remove(folder: str) -> None:
    """Remove a folder of ours, and in it what overlayfs made: directories in directories, one file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(folder)


Ranges = tuple[tuple[int, int], ...]
"""(first, count) of subordinate ids."""


def enter_user_namespace(uids: Ranges, gids: Ranges, tools: tuple[str, str] | None, *, own: bool = False) -> str:
    """Become root of a new user namespace and of a mount namespace in it. Before any thread exists.

    Inside, 0 is the present user and 1, 2, ... are the subordinate ids, mapped by the programs `tools` (newuidmap and
    newgidmap). own: this process may map ids itself (CAP_SETUID and CAP_SETGID); all ids that exist are mapped to
    themselves. Without tools, or when they fail, only 0 is mapped and setgroups(2) is refused. Returns why only one id
    is mapped, or empty. OSError when there can be no user namespace.
    """
    uid, gid = os.geteuid(), os.getegid()
    helper = None
    if own:
        helper = _start_helper(_map_own)
    elif tools:
        maps = [["0", str(uid), "1"], ["0", str(gid), "1"]]
        for arguments, ranges in zip(maps, (uids, gids), strict=True):
            inside = 1
            for first, count in ranges:
                arguments += [str(inside), str(first), str(count)]
                inside += count
        helper = _start_helper(lambda pid: _map_with(tools, maps, pid))
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    problem = helper() if helper else "no tools"
    if problem:
        _map_single(uid, gid)
    propagation(MS_SLAVE)
    return problem


def _map_single(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from None


def try_user_namespace() -> None:
    """Do all of it with a single id. Ubuntu lets unshare(2) succeed and then withholds the capabilities."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    _map_single(uid, gid)
    try_mounts()


def stand_for(uid: int, gid: int) -> None:
    """Enter a user namespace in which this process's only user and group have other numbers."""
    unshare(CLONE_NEWUSER)
    for name, inside in (("uid_map", uid), ("gid_map", gid)):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, b"%d 0 1" % inside)
        os.close(file)


def _start_helper(act: Callable[[int], str]) -> Callable[[], str]:
    """Fork a process that stays outside. The result, called after unshare(2), lets it act on this process's maps."""
    go_reading, go = os.pipe()
    said_reading, said = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(go)
            if os.read(go_reading, 1):
                text = act(parent)
                os.write(said, text.encode("utf-8", "replace")[:4000])
                status = 0
        finally:
            os._exit(status)
    os.close(go_reading)
    os.close(said)

    def finish() -> str:
        os.write(go, b"1")
        os.close(go)
        with open(said_reading, encoding="utf-8", errors="replace") as stream:
            text = stream.read()
        _, status = os.waitpid(pid, 0)
        return text or ("the process that maps ids failed" if status else "")

    return finish


def _map_own(pid: int) -> str:
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/self/{name}", encoding="ascii") as file:
                lines = [line.split() for line in file]
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write("".join(f"{inside} {inside} {count}\n" for inside, _, count in lines))
    except OSError as error:
        return f"mapping of ids: {error.strerror}"
    return ""


def _map_with(tools: tuple[str, str], maps: list[list[str]], pid: int) -> str:
    problems = []
    children = []
    for tool, arguments in zip(tools, maps, strict=True):
        reading, writing = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
        argv = [tool, str(pid), *arguments]
        children.append((tool, os.posix_spawn(tool, argv, os.environ, file_actions=actions), reading))
        os.close(writing)
    for tool, child, reading in children:
        text = os.read(reading, 1000).decode("utf-8", "replace").strip()
        _, status = os.waitpid(child, 0)
        if status:
            name = os.path.basename(tool)
            problems.append(text if text.startswith(name) else f"{name}: {text or 'failed'}")
    return "; ".join(problems)


# ---------------------------------------------------------------- seccomp

# Per architecture as the kernel's audit calls it: clone, personality, socket, and the calls below 424 that Docker's
# default profile does not allow to a process with Docker's default capabilities, as single numbers and first-last.
# https://github.com/moby/profiles/blob/main/seccomp/default.json
_X86_64 = (
    "103 134 136 139 153 155-156 163-185 212 227 236-239 246 248-250 256 272 279 298 300 304 308 312-313 320-321 323 "
    "336"
)
_I386 = (
    "17-18 21-22 25 28 31-32 34-35 44 48 51-53 56 58-59 62 67-69 72-74 79 84 86-89 98 101 103 109-113 115 121 127-131 "
    "134-135 137 149 166-167 169 188-189 217 253 264 273-276 283 286-288 294 310 317 336 338 342 346 349-350 357 374 "
    "404"
)
_AARCH64 = (
    "18 39-42 58 60 89 97 104-106 112 116 142 161-162 170 217-219 224-225 235-239 241 262 265 268 272-273 280 282 294"
)
_ARM = (
    "21 34 51-52 62 67 72-74 79 86-88 103 111 115 121 128-129 131 134-135 149 169 218 249 262 271-273 309-311 313 "
    "319-321 337 344 347 364 367 371 375 378-379 386 388 400-401 404"
)
_ARCHITECTURES = {
    0xC000003E: ((56, 135, 41), _X86_64),
    0x40000003: ((120, 136, 359), _I386),
    0xC00000B7: ((220, 92, 198), _AARCH64),
    0x40000028: ((120, 136, 281), _ARM),
}
# io_uring, the newer mount calls, pidfd_getfd, process_madvise, quotactl_fd, set_mempolicy_home_node, lsm_*.
_DENIED_EVERYWHERE = "425-433 438 440 442-443 450 459-461"
_CLONE3, _LAST_KNOWN, _ARM_PRIVATE = 435, 466, 0xF0001
NAMESPACE_FLAGS = 0x7E020000
PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)
AF_ALG, AF_VSOCK = 38, 40

# The calls that need a second id, for a user namespace with one: chown and set*id in all spellings; then mknod (its
# mode is argument 1) and mknodat (argument 2), answered for devices only. These and no others are answered "done".
_PRETENDED = {
    0xC000003E: ("92-94 260 105-106 113-114 116-117 119 122-123", 133, 259),
    0x40000003: ("16 95 182 198 207 212 298 23 46 70-71 81 138-139 164 170 203-204 206 208 210 213-216", 14, 297),
    0xC00000B7: ("54-55 143-147 149 151-152 159", 0, 33),
    0x40000028: ("16 95 182 198 207 212 325 23 46 70-71 81 138-139 164 170 203-204 206 208 210 213-216", 14, 324),
}
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _AND, _JUMP, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x05, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    order = sys.byteorder
    return code.to_bytes(2, order) + bytes((yes, no)) + value.to_bytes(4, order)


def _on(test: int, value: int, answer: int) -> list[bytes]:
    """Return the answer when the test holds, else go on."""
    return [_instruction(test, value, 0, 1), _instruction(_RETURN, answer)]


def _within(ranges: str, answer: int) -> list[bytes]:
    """The answer for numbers in `ranges`, else go on. Two jumps for each range."""
    code: list[bytes] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        if last:
            code += [_instruction(_AT_LEAST, int(first), 0, 2), _instruction(_GREATER, int(last), 1, 0)]
            code.append(_instruction(_RETURN, answer))
        else:
            code += _on(_EQUAL, int(first), answer)
    return code


def _when(number: int, argument: int, tests: list[bytes]) -> list[bytes]:
    """For system call `number`, load an argument's low word and run `tests`, which must end in a return."""
    load = _instruction(_LOAD, _ARGUMENTS + 8 * argument + (0 if sys.byteorder == "little" else 4))
    return [_instruction(_EQUAL, number, 0, len(tests) + 1), load, *tests]


def _per_architecture(blocks: dict[int, list[bytes]], otherwise: int) -> bytes:
    code = [_instruction(_LOAD, _ARCHITECTURE)]
    for architecture, block in blocks.items():
        body = [_instruction(_LOAD, _NUMBER), *block, _instruction(_RETURN, _ALLOW)]
        # A conditional jump reaches 255 instructions; here it decides about the unconditional one over the block.
        code += [_instruction(_EQUAL, architecture, 1, 0), _instruction(_JUMP, len(body)), *body]
    return b"".join([*code, _instruction(_RETURN, otherwise)])


def docker_filter() -> bytes:
    """A seccomp program equal in effect to Docker's default profile, for x86-64, aarch64 and their 32-bit modes.

    Calls that the profile does not know (newer ones, x32's) are answered ENOSYS, so that programs fall back, as runc
    does; those that it knows and does not allow, EPERM.
    """
    refused, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    blocks = {}
    for architecture, ((clone, personality, socket), denied) in _ARCHITECTURES.items():
        code = _on(_EQUAL, _CLONE3, unknown)
        if architecture == 0x40000028:
            code += [_instruction(_AT_LEAST, _ARM_PRIVATE, 0, 1), _instruction(_RETURN, _ALLOW)]
        code += _on(_GREATER, _LAST_KNOWN, unknown)
        code += _within(_DENIED_EVERYWHERE, refused) + _within(denied, refused)
        allow, refuse = _instruction(_RETURN, _ALLOW), _instruction(_RETURN, refused)
        code += _when(clone, 0, [*_on(_ANY_BIT, NAMESPACE_FLAGS, refused), allow])
        code += _when(socket, 0, [*_on(_EQUAL, AF_ALG, refused), *_on(_EQUAL, AF_VSOCK, refused), allow])
        code += _when(personality, 0, [x for p in PERSONALITIES for x in _on(_EQUAL, p, _ALLOW)] + [refuse])
        blocks[architecture] = code
    return _per_architecture(blocks, unknown)


def pretending_filter() -> bytes:
    """A seccomp program that answers "done" to what can not be done in a user namespace with a single id."""
    done = _ERRNO | 0
    blocks = {}
    for architecture, (calls, mknod, mknodat) in _PRETENDED.items():
        code = _within(calls, done)
        for number, argument in ((mknod, 1), (mknodat, 2)):
            if number:
                kind = [
                    _instruction(_AND, 0o170000),
                    *_on(_EQUAL, stat.S_IFCHR, done),
                    *_on(_EQUAL, stat.S_IFBLK, done),
                ]
                code += _when(number, argument, [*kind, _instruction(_RETURN, _ALLOW)])
        blocks[architecture] = code
    return _per_architecture(blocks, _ALLOW)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install_filter(code: bytes) -> None:
    """Install a seccomp filter on this thread. Needs CAP_SYS_ADMIN or no-new-privs."""
    program = _Program(len(code) // 8, code)
    pointer = ctypes.c_ulong(ctypes.addressof(program))
    _result(libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), pointer, 0, 0), "seccomp")


# ---------------------------------------------------------------- without namespaces


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1, "subreaper")


def end_with_parent() -> None:
    """Have this process killed when its parent ends. A change of its ids undoes it."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL, "death signal")


def no_new_privileges() -> None:
    """From here on no exec gives more rights: set-id bits and file capabilities do nothing."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")


def landlock_version() -> int:
    """What the kernel knows of Landlock, 0 being nothing.

    https://docs.kernel.org/userspace-api/landlock.html
    """
    try:
        return _call(SYS_LANDLOCK_CREATE_RULESET, "landlock", None, 0, 1)
    except OSError:
        return 0


def confine(folder: int) -> bool:
    """Keep this process and its descendants to the files below `folder`, opened already ones excepted.

    Where the kernel has it (version 6), they can not send signals to other processes, either. Returns whether the
    kernel could do it. Needs no-new-privs.
    """
    version = landlock_version()
    if version < 2:
        return False  # the first version refuses every rename from one directory to another
    # Every right to files that there is: 13 of version 1, then refer, truncate (3), ioctl of devices (5).
    rights = (1 << 14) - 1 | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    scopes = 3 if version >= 6 else 0
    words = (rights, 0, scopes)[: 3 if version >= 6 else 2 if version >= 4 else 1]
    attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    rules = _call(SYS_LANDLOCK_CREATE_RULESET, "landlock", attributes, len(attributes), 0)
    try:
        beneath = rights.to_bytes(8, sys.byteorder) + folder.to_bytes(4, sys.byteorder)
        _call(SYS_LANDLOCK_ADD_RULE, "landlock rule", rules, 1, beneath, 0)
        _call(SYS_LANDLOCK_RESTRICT_SELF, "landlock", rules, 0)
    finally:
        os.close(rules)
    return True


def try_chroot() -> None:
    """Do what a RUN in a chroot needs: another root, a device node. OSError."""
    name = f"/tmp/chroot.{os.getpid()}.{os.urandom(4).hex()}"  # noqa: S108 - a new name, by mkdir
    os.mkdir(name, 0o700)
    try:
        os.mknod(f"{name}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.unlink(f"{name}/null")
        os.chown(name, 1, 1)
        here = _open_path("/")
        os.chroot(name)
        os.fchdir(here)
        os.chroot(".")
    finally:
        os.rmdir(name)


# ---------------------------------------------------------------- the root


def locate(root: str, target: str) -> tuple[list[str], str]:
    """Where `target` is when `root` is /: its canonical parts, and what is there: `dir`, `file` or empty for nothing.

    Nobody else may change `root` meanwhile. What does not exist is resolved as if it were made of directories. OSError
    when a part on the way is no directory.
    """
    parts: list[str] = []
    todo = [p for p in reversed(target.split("/")) if p]
    kind = "dir"
    links = 0
    while todo:
        part = todo.pop()
        if part == ".":
            continue
        if part == "..":
            if parts:
                parts.pop()
            kind = _kind(root, parts)
            continue
        if kind == "file":
            raise NotADirectoryError(errno.ENOTDIR, f"{target}: /{'/'.join(parts)} is not a directory")
        parts.append(part)
        path = root + "/" + "/".join(parts)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            kind = ""
            continue
        if stat.S_ISLNK(mode):
            links += 1
            if links > SYMLINKS_AT_MOST:
                raise OSError(errno.ELOOP, f"{target}: {os.strerror(errno.ELOOP)}")
            link = os.readlink(path)
            parts.pop()
            if link.startswith("/"):
                parts.clear()
            todo += [p for p in reversed(link.split("/")) if p]
            kind = "dir"
        else:
            kind = "dir" if stat.S_ISDIR(mode) else "file"
    return parts, kind


def _kind(root: str, parts: Sequence[str]) -> str:
    try:
        return "dir" if stat.S_ISDIR(os.lstat("/".join((root, *parts))).st_mode) else "file"
    except FileNotFoundError:
        return ""


def _copy_attributes(source: str, target: str) -> None:
    """Give a directory the owner, mode, xattrs and times of another."""
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        try:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        except OSError as error:
            # tmpfs keeps user.* since Linux 6.6 only; security.* may be another namespace's.
            if error.errno not in {errno.ENOTSUP, errno.EPERM}:
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _make_mount_points(view: str, place: str, points: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Make under `place` what is missing in `view`: the folders on the way, and a directory or empty file at the end.

    points: (target, `dir` or `file`). Returns the paths made, parents first, and the existing directories in which
    something was made, both relative. `place` may be `view` itself.
    """
    made: dict[str, None] = {}
    touched: dict[str, None] = {}
    for target, wanted in points:
        parts, found = locate(view, target)
        if found:
            continue
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            if path in made or path in touched:
                continue
            if _kind(view, parts[:end]):
                if place != view:
                    os.mkdir(f"{place}/{path}")
                touched[path] = None
                continue
            if end == 1:
                touched[""] = None
            if end == len(parts) and wanted == "file":
                os.close(os.open(f"{place}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            else:
                os.mkdir(f"{place}/{path}", 0o755)
            made[path] = None
    return list(made), list(touched)


def _overlay_options(userxattr: bool, upper: int, work: int) -> list[tuple[str, str | None]]:
    # nofollow: a layer from elsewhere may carry redirect xattrs, which no tar ever means.
    options: list[tuple[str, str | None]] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")]
    if userxattr:
        options.append(("userxattr", None))
    if upper >= 0:
        options += [("upperdir", f"/proc/self/fd/{upper}"), ("workdir", f"/proc/self/fd/{work}"), ("volatile", None)]
    return options


def overlay(lowers: Sequence[str], userxattr: bool, upper: int = -1, work: int = -1, attributes: int = 0) -> int:
    """An overlay mount, attached nowhere yet. lowers: topmost first, relative to the current folder or absolute.

    upper and work: descriptors, or -1 for a read-only union. Written pages are not forced to disk by its end
    (`volatile`): the layer's blob is made from them at once.
    """
    options = _overlay_options(userxattr, upper, work)
    return filesystem("overlay", [*(("lowerdir+", lower) for lower in lowers), *options], attributes)


def _attach_overlay(
    target: str,
    lowers: Sequence[str],
    userxattr: bool,
    base: int,
    scratch: int,
    upper: int = -1,
    work: int = -1,
    attributes: int = 0,
) -> None:
    """Mount an overlay at `target`, a path in `scratch`, with lowers relative to `base`."""
    os.fchdir(base)
    place = os.open(target, os.O_PATH | os.O_CLOEXEC, dir_fd=scratch)
    try:
        attach(overlay(lowers, userxattr, upper, work, attributes), place)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Linux 6.7 was the first to take lowers one by one. Before, all are in one page of options, so that they must
        # be short; commas and colons would need escapes, which relative names of snapshots never do.
        pairs = [("lowerdir", ":".join(lowers)), *_overlay_options(userxattr, upper, work)]
        data = ",".join(name if value is None else f"{name}={value}" for name, value in pairs).encode()
        if len(data) > 4095:
            raise OSError(errno.E2BIG, f"{len(lowers)} layers are more than this kernel mounts") from None
        path = f"/proc/self/fd/{scratch}/{target}".encode()
        if libc.mount(b"overlay", path, b"overlay", ctypes.c_ulong(attributes), data):
            raise
    os.fchdir(scratch)


def show_union(place: str, lowers: Sequence[str], base: str, userxattr: bool) -> None:
    """Mount a read-only union of directories at `place`. lowers: topmost first, two at least, relative to `base`."""
    folder, name = os.path.split(place)
    fds = [_open_path(each) for each in (".", base, folder)]
    try:
        _attach_overlay(name, lowers, userxattr, fds[1], fds[2], attributes=RDONLY | NOSUID | NODEV)
    finally:
        os.fchdir(fds[0])
        for fd in fds:
            os.close(fd)


def unmount(place: str) -> None:
    """Unmount what is mounted last at `place`, a path without symlinks. OSError, EBUSY while it is in use."""
    _result(libc.umount2(os.fsencode(place), ctypes.c_int(UMOUNT_NOFOLLOW)), f"umount {place}")


def _open_path(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


# ---------------------------------------------------------------- networks

# Where each of the programs answers for this machine's resolvers, in the namespace; then its arguments: the namespace
# is its standard input, its first word on descriptor 1 or 3 says that it is ready.
_CONNECTORS = {
    "slirp4netns": (
        b"10.0.2.3",
        ("--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--ready-fd=3",
         "--netns-type=path", "/proc/self/fd/0", "eth0"),
    ),
    "pasta": (
        b"169.254.1.1",
        ("--foreground", "--quiet", "--config-net", "--no-map-gw", "-t", "none", "-u", "none", "-T", "none",
         "-U", "none", "--dns-forward", "169.254.1.1", "--pid", "/proc/self/fd/1", "--netns-only",
         "--netns", "/proc/self/fd/0"),
    ),
}  # fmt: skip


class Network:
    """A network namespace with a way out, by a program that stands in both: slirp4netns or pasta, by its path.

    What listens on this machine's loopback addresses is not reached from it, and nothing reaches into it. It is made at
    once, and ready a little later.
    """

    def __init__(self, program: str) -> None:
        name = os.path.basename(program)
        self.resolver, arguments = _CONNECTORS[name]
        self.namespace = _new_network()
        self._ready, ready = os.pipe()
        self._log = os.memfd_create("log")
        actions = [
            (os.POSIX_SPAWN_DUP2, self.namespace, 0),
            (os.POSIX_SPAWN_DUP2, ready, 1),
            (os.POSIX_SPAWN_DUP2, self._log, 2),
            (os.POSIX_SPAWN_DUP2, ready, 3),
        ]
        # pasta does not stay root, whom alone the namespace obeys; it goes into an empty root by itself.
        root = ("--runas", "0:0") if name == "pasta" and not in_user_namespace() else ()
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        try:
            self._pid = os.posix_spawn(
                program, [name, *root, *arguments], environment, file_actions=actions, setsigdef=(SIGPIPE, SIGXFSZ)
            )
        finally:
            os.close(ready)

    def problem(self) -> str:
        """Wait until it is ready. What went wrong, or empty."""
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        if any(event & select.POLLIN for _, event in poll.poll(10_000)):
            return ""
        lines = os.pread(self._log, 1 << 12, 0).decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line), "it does not get ready")

    def usable(self) -> bool:
        """Whether its program still runs."""
        return os.waitpid(self._pid, os.WNOHANG)[0] == 0

    def close(self) -> None:
        """End it. The program must not have been found ended."""
        os.kill(self._pid, SIGKILL)
        os.waitpid(self._pid, 0)
        for fd in (self.namespace, self._ready, self._log):
            os.close(fd)


def _new_network() -> int:
    """A descriptor of a new network namespace. Made by a child: in a user namespace there is no way back from it."""
    ours, theirs = _socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWNET)
            _loopback_up()
            fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            theirs.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])
            os._exit(0)
        except OSError as error:
            theirs.send((error.strerror or "no network").encode())
        finally:
            os._exit(1)
    theirs.close()
    said, rights, _, _ = ours.recvmsg(1000, 256, MSG_CMSG_CLOEXEC)
    ours.close()
    os.waitpid(pid, 0)
    if not rights:
        raise OSError(0, said.decode("utf-8", "replace"))
    return int.from_bytes(rights[0][2][:4], sys.byteorder)


def forwarding(configuration: bytes, resolver: bytes) -> bytes:
    """The resolver configuration of a network whose program answers at `resolver`, from this machine's own.

    Its other resolvers are kept as far as they can be reached from there: by IPv4, and not on a loopback address.
    """
    others = []
    for line in configuration.splitlines():
        words = line.split()
        if words[:1] == [b"nameserver"] and (len(words) != 2 or words[1].startswith(b"127.") or b":" in words[1]):
            continue
        others.append(line)
    return b"\n".join([b"nameserver " + resolver, *others, b""])


class Run:
    """One RUN, in the child that becomes it. Methods are called once, in the order of `start`."""

    def __init__(
        self, request: dict[str, Any], output: int, builder: _socket.socket, network: Network | None = None
    ) -> None:
        self.request = request
        self.output = output
        self.builder = builder
        self.network = network
        self.root = -1
        self.scratch = -1
        # Docker lets a RUN make device nodes and has a device cgroup refuse to open them; mounts without devices do the
        # same with no cgroup, and are what user namespaces have anyway.
        self.nodev = 0 if request["insecure"] else NODEV
        self.points: list[tuple[str, str]] = [("/proc", "dir"), ("/sys", "dir"), ("/dev", "dir")]
        self.mounts: list[Mount] = []

    def start(self, filters: Sequence[bytes]) -> NoReturn:
        """Become the command."""
        self.leave()
        self.make_root()
        self._mount_all()
        os.fchdir(self.root)
        _result(libc.pivot_root(b".", b"."), "pivot_root")
        detach(".")
        os.chdir("/")
        self._become(filters)

    def leave(self) -> None:
        """Leave session, keyring and namespaces of the builder."""
        request = self.request
        libc.setsid()
        new_keyring()
        kinds = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
        unshare(kinds | (CLONE_NEWNET if request["network"] == "none" else 0))
        if self.network is not None:
            self._join_network(self.network)
        try:
            unshare(CLONE_NEWCGROUP)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EPERM, errno.ENOSPC}:
                raise
        if request["network"] == "none":
            _loopback_up()
        name = os.fsencode(request["hostname"])
        _result(libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")
        propagation(MS_PRIVATE)
        os.umask(0o022)

    def _join_network(self, network: Network) -> None:
        problem = network.problem()
        if problem:
            send_frame(self.builder, ("shared", problem))
            return
        _setns(network.namespace, CLONE_NEWNET)
        self.request["resolv_conf"] = forwarding(self.request["resolv_conf"], network.resolver)

    # -- the root and its mount points

    def make_root(self) -> None:
        """Mount the root, attached to the scratch file system as `root`, with all the mount points it needs."""
        kind, *root = self.request["root"]
        near = os.path.dirname(root[2] if kind == "overlay" else root[0])
        # Everything outside is opened before the scratch file system covers a part of it.
        opened = [_open_path(path) for path in ((root[0], *root[2:4]) if kind == "overlay" else root)]
        sources = [self._open_source(source) for source, *_ in self.request["binds"]]
        self._make_scratch(near)
        self._gather(sources)
        if kind == "overlay":
            _, lowers, _, _, userxattr = root
            self._make_union(lowers, userxattr, *opened)
        else:
            mount = clone_tree("", at=opened[0])
            set_attributes(mount, self.nodev)
            attach(mount, _open_path("root"))
            self._make_in_place()
        self.root = _open_path("root")

    def _make_scratch(self, place: str) -> None:
        """A tmpfs for all that is no layer: it never touches a disk and is gone with the last process.

        It covers the folder that holds `upper`, which is there in any case and has nothing else that is needed.
        """
        mount = filesystem("tmpfs", [("mode", "0700")], NOSUID)
        self.scratch = os.dup(mount)
        attach(mount, _open_path(place))
        os.fchdir(self.scratch)
        for name in ("root", "view", "stub", "empty", "files"):
            os.mkdir(name, 0o755)

    def _make_union(self, lowers: Sequence[str], userxattr: bool, base: int, upper: int, work: int) -> None:
        """Mount the overlay. Mount points that it lacks are in a layer of their own, above the others.

        So the upper directory never sees them, and there is nothing to take away afterwards. The directories of that
        layer look like those that they cover: overlayfs shows, and copies up, the attributes of the topmost.
        """
        scratch = f"/proc/self/fd/{self.scratch}"
        below = [f"/proc/self/fd/{upper}"] if os.listdir(f"/proc/self/fd/{upper}") else []
        view = [f"{scratch}/empty", *below, *lowers]
        if len(view) > 1:
            _attach_overlay("view", view, userxattr, base, self.scratch)
        self._tell_apt("view")
        made, touched = _make_mount_points("view", "stub", self.points)
        for name in reversed(touched):
            if name:
                _copy_attributes(f"view/{name}", f"stub/{name}")
        stub = [f"{scratch}/stub"] if made or not lowers else []
        _attach_overlay("root", [*stub, *lowers], userxattr, base, self.scratch, upper, work, self.nodev)

    def _make_in_place(self) -> None:
        """Without an overlay mount points are made in the directory itself; the builder is told, to remove them."""
        directory = "root"
        self._tell_apt(directory)
        times = {}
        for target, _ in self.points:
            parts, _ = locate(directory, target)
            for end in range(len(parts)):
                path = "/".join(parts[:end])
                if path not in times and _kind(directory, parts[:end]) == "dir":
                    status = os.lstat(f"{directory}/{path}")
                    times[path] = (status.st_atime_ns, status.st_mtime_ns)
        made, touched = _make_mount_points(directory, directory, self.points)
        if made:
            send_frame(self.builder, ("made", made, [(path, *times[path]) for path in touched]))
        for path in touched:
            os.utime(f"{directory}/{path}", ns=times[path])

    def _tell_apt(self, view: str) -> None:
        """With one id only, apt has no user to drop to: it would check, and not believe what it is told."""
        folder = "/etc/apt/apt.conf.d"
        if self.request["single"] and locate(view, folder)[1] == "dir":
            target = f"{folder}/zz-one-id"
            self.points.append((target, "file"))
            self.mounts.append((target, "file", self._file, (b'APT::Sandbox::User "root";\n', 0o644, 0, 0)))

    # -- what is mounted

    @staticmethod
    def _open_source(source: tuple[Any, ...]) -> int:
        """What a bind's source needs to be opened now: itself, or the folder that a root's layers are in."""
        return _open_path(source[1])

    def _gather(self, sources: Sequence[int]) -> None:
        """Put the requested mounts in order, outer ones first."""
        request = self.request
        wanted: list[Mount] = []
        for target, data in (("/etc/hosts", request["hosts"]), ("/etc/resolv.conf", request["resolv_conf"])):
            wanted.append((target, "file", self._file, (data, 0o644, 0, 0)))
        for (source, target, readonly, discard, inside), opened in zip(request["binds"], sources, strict=True):
            fd = opened if source[0] == "path" else self._source_root(source, opened, discard)
            if inside or source[0] != "path":
                fd = open_in_root(fd, "/" + inside)
            kind = "dir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
            if discard and source[0] != "overlay":
                wanted.append((target, kind, self._discarding, (fd, kind)))
            else:
                wanted.append((target, kind, self._bind, (fd, readonly and not discard)))
        for target, size, mode in request["tmpfs"]:
            wanted.append((target, "dir", self._tmpfs, (size, mode)))
        for target, *rest in request["files"]:
            wanted.append((target, "file", self._file, tuple(rest)))
        wanted.sort(key=lambda mount: mount[0].strip("/").count("/"))
        self.mounts = wanted
        # A point inside another mount is looked for, and made, in that one, when it is there.
        outer = {"/proc", "/sys", "/dev"}
        for target, kind, _, _ in wanted:
            above = target.split("/")
            if not any("/".join(above[:end]) in outer for end in range(2, len(above))):
                self.points.append((target, kind))
            if kind == "dir":
                outer.add(target.rstrip("/"))

    def _source_root(self, source: tuple[Any, ...], opened: int, discard: bool) -> int:
        """A descriptor of the root that a bind shows a part of; with `discard`, writes to it stay in memory."""
        if source[0] == "directory":
            return opened
        _, _, lowers, userxattr = source
        name = self._fresh()
        for part in ("", "/mount", "/upper", "/work"):
            os.mkdir(name + part, 0o755)
        if discard:
            upper, work = _open_path(f"{name}/upper"), _open_path(f"{name}/work")
            _attach_overlay(f"{name}/mount", lowers, userxattr, opened, self.scratch, upper, work)
        else:
            union = [f"/proc/self/fd/{self.scratch}/empty", *lowers]
            _attach_overlay(f"{name}/mount", union, userxattr, opened, self.scratch)
        return _open_path(f"{name}/mount")

    @staticmethod
    def _fresh() -> str:
        return f"files/{len(os.listdir('files'))}"

    def _bind(self, fd: int, readonly: bool) -> int:
        mount = clone_tree("", at=fd)
        set_attributes(mount, self.nodev | (RDONLY if readonly else 0))
        return mount

    def _tmpfs(self, size: int, mode: int) -> int:
        options = [("mode", f"{mode:o}"), *([("size", str(size))] if size else [])]
        return filesystem("tmpfs", options, NOSUID | self.nodev)

    def _file(self, data: bytes, mode: int, uid: int, gid: int) -> int:
        name = self._fresh()
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if uid or gid:
            _chown(fd, uid, gid)
        os.fchmod(fd, mode)
        os.close(fd)
        mount = clone_tree(name, recursive=False)
        set_attributes(mount, RDONLY | NOSUID | NODEV)
        return mount

    def _discarding(self, fd: int, kind: str) -> int:
        """What is at fd, writable; writes go to this namespace's memory."""
        name = self._fresh()
        if kind == "dir":
            status = os.fstat(fd)
            for part in ("", "/mount", "/upper", "/work"):
                os.mkdir(name + part)
            _chown(f"{name}/upper", status.st_uid, status.st_gid)
            os.chmod(f"{name}/upper", stat.S_IMODE(status.st_mode))
            upper, work = _open_path(f"{name}/upper"), _open_path(f"{name}/work")
            userxattr, lowers = self.request["userns"], [f"/proc/self/fd/{fd}"]
            _attach_overlay(f"{name}/mount", lowers, userxattr, self.scratch, self.scratch, upper, work, self.nodev)
            return clone_tree(f"{name}/mount", recursive=False)
        status = os.fstat(fd)
        source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        while os.sendfile(target, source, None, 1 << 24):
            pass
        _chown(target, status.st_uid, status.st_gid)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.close(source)
        os.close(target)
        return clone_tree(name, recursive=False)

    def _mount_all(self) -> None:
        self._at("proc", filesystem("proc", (), NOSUID | NODEV | NOEXEC))
        self.mount_system()
        if not self.request["insecure"]:
            self._mask()
        self.mount_requested()

    def mount_system(self) -> None:
        """Mount /sys and /dev."""
        attributes = 0 if self.request["insecure"] else RDONLY
        unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self._at("sys", _sys(attributes))
        self._cgroup(unified, attributes)
        self._dev(self.request["userns"])

    def mount_requested(self) -> None:
        """Mount what the RUN asks for, and /etc/hosts and /etc/resolv.conf."""
        for target, kind, make, arguments in self.mounts:
            self._at(target, make(*arguments), kind)

    def _at(self, target: str, mount: int, kind: str = "dir") -> None:
        """Attach a mount at a path of the root, making a point that lies inside another mount."""
        try:
            try:
                place = open_in_root(self.root, target)
            except FileNotFoundError:
                place = self._make_inside(target, kind)
            attach(mount, place)
        except OSError as error:
            what = "a directory" if kind == "dir" else "a file"
            raise OSError(error.errno, f"can not mount {what} at {target}: {os.strerror(error.errno or 0)}") from None

    def _make_inside(self, target: str, kind: str) -> int:
        parts = [p for p in target.split("/") if p]
        folder = os.dup(self.root)
        for end in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:end])
            last = end == len(parts)
            flags = os.O_PATH if last else os.O_PATH | os.O_DIRECTORY
            try:
                found = open_in_root(self.root, path, flags)
            except FileNotFoundError:
                if last and kind == "file":
                    new = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(parts[end - 1], new, 0o644, dir_fd=folder))
                else:
                    os.mkdir(parts[end - 1], 0o755, dir_fd=folder)
                found = open_in_root(self.root, path, flags)
            os.close(folder)
            folder = found
        return folder

    def _cgroup(self, unified: bool, attributes: int) -> None:
        """Show the RUN's own cgroups where the host has the unified hierarchy, else none: never the host's tree."""
        try:
            place = open_in_root(self.root, "sys/fs/cgroup")
        except FileNotFoundError:
            return
        mount = -1
        if unified:
            try:
                mount = filesystem("cgroup2", (), attributes | NOSUID | NODEV | NOEXEC)
            except OSError:
                mount = -1  # a user namespace that did not get a cgroup namespace
        attach(mount if mount >= 0 else self._empty(), place)

    @staticmethod
    def _empty() -> int:
        mount = clone_tree("empty", recursive=False)
        set_attributes(mount, RDONLY)
        return mount

    def _dev(self, userns: bool) -> None:
        dev = filesystem("tmpfs", [("mode", "0755"), ("size", "65536k")], NOSUID | self.nodev)
        inside = os.dup(dev)
        nodes = "/dev"
        previous = os.umask(0)
        if not userns:
            # In a user namespace nodes can not be made: there the host's are shown.
            nodes = "nodes"
            os.mkdir(nodes)
            for name, major, minor in DEVICES:
                os.mknod(f"{nodes}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        for name, _, _ in DEVICES:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=inside))
        for name, target in LINKS:
            os.symlink(target, name, dir_fd=inside)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=inside)
        os.umask(previous)
        os.close(inside)
        self._at("dev", dev)
        for name, _, _ in DEVICES:
            self._at(f"dev/{name}", clone_tree(f"{nodes}/{name}", recursive=False), "file")
        pts: list[tuple[str, str | None]] = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
        try:
            terminals = filesystem("devpts", [*pts, ("gid", "5")], NOSUID | NOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Group 5 is not mapped in a user namespace with a single id.
            terminals = filesystem("devpts", pts, NOSUID | NOEXEC)
        self._at("dev/pts", terminals)
        size = self.request["shm_size"]
        shm = [("mode", "1777"), ("size", str(size))]
        self._at("dev/shm", filesystem("tmpfs", shm, NOSUID | NODEV | NOEXEC))
        try:
            self._at("dev/mqueue", filesystem("mqueue", (), NOSUID | NODEV | NOEXEC))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def _mask(self) -> None:
        for name in MASKED:
            try:
                place = open_in_root(self.root, name)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(os.fstat(place).st_mode):
                mount = self._empty()
            else:
                mount = clone_tree("dev/null", at=self.root, recursive=False)
            attach(mount, place)
        for name in READ_ONLY:
            try:
                place = open_in_root(self.root, name)
            except FileNotFoundError:
                continue
            mount = clone_tree("", at=place)
            set_attributes(mount, RDONLY)
            attach(mount, place)

    # -- the process

    def stand(self, null: int) -> None:
        """Standard input at its end, output to the builder; only the builder's socket is open until the next exec."""
        os.dup2(null, 0)
        if self.request["uid"]:
            # /dev/stdout is opened anew by programs that run as another user.
            _chown(self.output, self.request["uid"], self.request["gid"])
        os.dup2(self.output, 1)
        os.dup2(self.output, 2)
        close_others(self.builder.fileno())

    def take_ids(self) -> None:
        """Become the user with its groups. OSError names them."""
        request = self.request
        uid, gid = request["uid"], request["gid"]
        if request["single"]:
            return  # `stand_for` gave it the only id there is
        try:
            os.setgroups(request["groups"])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            ids = ",".join(str(n) for n in (gid, *request["groups"]))
            raise OSError(error.errno, f"user {uid} with groups {ids}: {os.strerror(error.errno or 0)}") from None

    def _become(self, filters: Sequence[bytes]) -> NoReturn:
        request = self.request
        self.stand(os.open("/dev/null", os.O_RDONLY))
        enter_folder(request["cwd"])
        limit(request["ulimits"])
        # Python ignores these two; handlers end by themselves with exec, and `main` saw to the others.
        default_signals((SIGPIPE, SIGXFSZ))
        if request["single"] and (request["uid"] or request["gid"]):
            stand_for(request["uid"], request["gid"])
        if not request["insecure"]:
            bound_capabilities()
            for code in filters:
                install_filter(code)
        self.take_ids()
        execute(request["argv"], [os.fsencode(e) for e in request["env"]])


def close_others(kept: int) -> None:
    """Close all descriptors but the three standard ones and `kept`, which ends with the next exec."""
    if kept > 3:
        _call(SYS_CLOSE_RANGE, "close_range", 3, kept - 1, 0)
    _call(SYS_CLOSE_RANGE, "close_range", kept + 1, 0xFFFFFFFF, 0)
    _call(SYS_CLOSE_RANGE, "close_range", kept, kept, CLOSE_RANGE_CLOEXEC)


def enter_folder(path: str) -> None:
    """Change to a folder of the command's root, made if missing.

    An image may call it `/proc/self/fd/8`: a folder of the machine that was open would be entered with it
    (CVE-2024-21626). So all others are closed by now, and what was entered has to have a place below the root.
    """
    try:
        os.chdir(path)
    except FileNotFoundError:
        os.makedirs(path, 0o755)
        os.chdir(path)
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"the working directory {path} is not in the image") from None


def _chown(target: int | str, uid: int, gid: int) -> None:
    """Change owner where the id exists here: in a user namespace with few ids it may not."""
    try:
        os.chown(target, uid, gid)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EPERM}:
            raise


def _sys(attributes: int) -> int:
    attributes |= NOSUID | NODEV | NOEXEC
    try:
        return filesystem("sysfs", (), attributes)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    # sysfs shows a network namespace, and can not be mounted by a user namespace that does not own it.
    mount = clone_tree("/sys")
    set_attributes(mount, attributes)
    return mount


def _loopback_up() -> None:
    with_flags = b"lo".ljust(16, b"\0") + (1).to_bytes(2, sys.byteorder) + bytes(22)
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    fcntl.ioctl(sock.fileno(), 0x8914, with_flags)
    sock.close()


def default_signals(numbers: Iterable[int]) -> None:
    """Give signals their default effects, which a builder started by nohup, say, does not pass on.

    Not by signal(3): glibc refuses 32 and 33, its own, and yet starts programs with these ignored.
    """
    sigaction = {"x86_64": 13, "aarch64": 134}.get(os.uname().machine)
    for number in numbers:
        if sigaction is None:
            libc.signal(number, None)
        else:
            libc.syscall(ctypes.c_long(sigaction), ctypes.c_long(number), bytes(32), None, ctypes.c_long(8))


def new_keyring() -> None:
    """A session keyring of its own: the builder's keys are not for a RUN."""
    number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine)
    if number is not None:
        # Refused where keys are switched off or used up; then there are none to see, since the masked call is denied.
        libc.syscall(ctypes.c_long(number), ctypes.c_long(1), None, None, None, None)


def bound_capabilities(kept: int = CAPABILITIES) -> None:
    """Leave Docker's default capabilities, or the set given, to whatever is executed from here."""
    _result(libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(PR_CAP_AMBIENT_CLEAR_ALL), *(ctypes.c_ulong(0),) * 3), "prctl")
    for capability in range(64):
        if not kept >> capability & 1:
            try:
                _prctl(PR_CAPBSET_DROP, capability, "drop capability")
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # the last that this kernel knows was the one before
                raise
    # Nothing inheritable; permitted and effective stay until exec, where they become the bounding set for uid 0 and
    # nothing for others.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _result(libc.capget(header, data), "capget")
    data[2] = data[5] = 0
    _result(libc.capset(header, data), "capset")


def limit(limits: Sequence[tuple[str, int, int]]) -> None:
    """Set resource limits, as far as this process may."""
    if not limits:
        return
    for name, soft, hard in limits:
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        try:
            resource.setrlimit(number, (soft, hard))
        except (PermissionError, ValueError):
            # CAP_SYS_RESOURCE may be missing, even for root: what is there stays the ceiling.
            _, ceiling = resource.getrlimit(number)
            hardest = _lower(hard, ceiling)
            resource.setrlimit(number, (_lower(soft, hardest), hardest))


def _lower(one: int, other: int) -> int:
    """The lower of two limits, of which -1 is none."""
    return max(one, other) if -1 in {one, other} else min(one, other)


def ask_to_be_traced() -> bool:
    """Have the parent trace this process, so that it stops at its next exec. Returns whether that is allowed."""
    return bool(libc.ptrace(ctypes.c_long(0), ctypes.c_long(0), None, None) == 0)


def execute(argv: Sequence[str], environment: Sequence[bytes]) -> NoReturn:
    """Execute argv, looked up on the environment's PATH when it has no slash. Ends with 127 or 126 when that fails."""
    name = argv[0]
    arguments = [os.fsencode(a) for a in argv]
    variables = dict(e.split(b"=", 1) for e in environment if b"=" in e)
    if "/" in name:
        candidates = [arguments[0]]
    else:
        default = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        folders = variables.get(b"PATH", default).split(b":")
        candidates = [folder + b"/" + arguments[0] for folder in folders if folder] if name else []
    seen: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, arguments, variables)  # noqa: S606 - that is what a RUN is
        except FileNotFoundError as error:
            # A script whose interpreter is missing is found, and yet "not found".
            if "/" in name or os.path.exists(path):
                seen = error
        except OSError as error:
            if error.errno != errno.ENOTDIR:
                seen = error
    if seen is None or seen.errno == errno.ENOENT:
        text = "executable file not found in $PATH" if "/" not in name and seen is None else "no such file or directory"
        status = NOT_FOUND
    else:
        text = os.strerror(seen.errno or 0).lower()
        status = NOT_EXECUTABLE
    os.write(2, os.fsencode(f'exec: "{name}": {text}\n'))
    os._exit(status)


# ---------------------------------------------------------------- the server


def send_frame(sock: _socket.socket, message: Any) -> None:
    """Send one message, length first."""
    data = marshal.dumps(message)
    sock.sendall(len(data).to_bytes(4, "little") + data)


def receive_frame(sock: _socket.socket) -> Any:
    """The next message, or None when the other side is gone."""
    header = _receive_exactly(sock, 4)
    body = header and _receive_exactly(sock, int.from_bytes(header, "little"))
    return marshal.loads(body) if body else None  # noqa: S302 - from the process that started this one


def _receive_exactly(sock: _socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def failure(error: BaseException) -> tuple[str, int, str]:
    """The message that tells the builder of a set-up that failed."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
    return ("failed", getattr(error, "errno", 0) or 0, text)


def _child(
    kind: type[Run],
    sock: _socket.socket,
    output: int,
    network: Network | None,
    filters: dict[bool, list[bytes]],
) -> NoReturn:
    try:
        request = receive_frame(sock)
        if request is not None:
            kind(request, output, sock, network).start(filters[request["single"]])
    except BaseException as error:
        # Whatever it is, it is the builder's to tell; this process has nobody to tell it to.
        try:
            send_frame(sock, failure(error))
        finally:
            os._exit(FAILED)
    os._exit(FAILED)


class _Server:
    """Forks RUNs of a kind. program: what connects network namespaces, or empty."""

    def __init__(self, kind: type[Run], program: str) -> None:
        self._kind = kind
        self._program = program
        self._home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        docker = docker_filter()
        self._filters = {False: [docker], True: [pretending_filter(), docker]}
        self._poll = select.poll()
        self._running: dict[int, _Running] = {}
        self._networks: list[Network] = []

    def serve(self) -> None:
        """Fork RUNs until standard input ends."""
        control = _socket.socket(fileno=0)
        self._poll.register(0, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == 0:
                    received = control.recvmsg(1, 256, MSG_CMSG_CLOEXEC)
                    if not received[0]:
                        return  # and with this process all of its pid namespace
                    data = received[1][0][2]
                    sock, output = (int.from_bytes(data[i : i + 4], sys.byteorder) for i in (0, 4))
                    self._start(received[0], _socket.socket(fileno=sock), output)
                elif fd in self._running:
                    run = self._running[fd]
                    if fd == run.pidfd:
                        self._end(run)
                    else:
                        run.stopped = True
                        self._poll.unregister(fd)
                        os.kill(run.pid, SIGKILL)

    def _start(self, kind: bytes, sock: _socket.socket, output: int) -> None:
        try:
            network = self._network() if kind != WITHOUT_NETWORK and self._program else None
            # The next fork is process 1 of a new pid namespace; then ours again, for the one after.
            unshare(CLONE_NEWPID)
            pid = os.fork()
            if pid == 0:
                _child(self._kind, sock, output, network, self._filters)
            _setns(self._home, CLONE_NEWPID)
        except OSError as error:
            send_frame(sock, ("failed", error.errno, error.strerror))
            sock.close()
            return
        finally:
            os.close(output)
        run = _Running(pid, sock, network, kind == WITH_NETWORK)
        self._running[run.pidfd] = self._running[sock.fileno()] = run
        self._poll.register(run.pidfd, select.POLLIN)
        self._poll.register(sock, select.POLLRDHUP)

    def _end(self, run: _Running) -> None:
        _, status = os.waitpid(run.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._poll.unregister(run.pidfd)
        if not run.stopped:
            self._poll.unregister(run.sock)
        for fd in (run.pidfd, run.sock.fileno()):
            del self._running[fd]
        if run.network is not None:
            self._take_back(run.network, keep=run.keep)
        try:
            send_frame(run.sock, ("exit", code if code >= 0 else 128 - code))
        except BrokenPipeError:
            code = -1  # the builder is gone, and so will be this process
        os.close(run.pidfd)
        run.sock.close()

    def _network(self) -> Network:
        """One that no other RUN is in; what one RUN after the other listens to and leaves is nothing."""
        while self._networks:
            network = self._networks.pop()
            if network.usable():
                return network
        return Network(self._program)

    def _take_back(self, network: Network, *, keep: bool) -> None:
        if not network.usable():
            self._program = ""  # the builder was told why
        elif keep:
            self._networks.append(network)
        else:
            network.close()


class _Running:
    """A RUN, as the server knows it. keep: its network is as good as new after it."""

    def __init__(self, pid: int, sock: _socket.socket, network: Network | None, keep: bool) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.sock = sock
        self.network = network
        self.keep = keep
        self.stopped = False


def main(kind: type[Run] = Run, program: str = "") -> None:
    """Serve as process 1 of a pid namespace, so that the kernel kills all that is left when the server ends, however.

    program: the path of what connects network namespaces, or empty: RUNs share this machine's then.

    A RUN's own pid namespace is inside it. setns(2) back to it between two forks needs no privilege outside.
    """
    libc.setsid()
    # What a builder was left by those who started it is not for the programs that this one starts.
    os.closerange(3, 1 << 30)
    default_signals({*range(1, 65)} - {SIGPIPE, SIGXFSZ})
    libc.sigprocmask(SIG_SETMASK, bytes(128), None)
    # From here on nothing is imported: after pivot_root the folders of sys.path would be those of the image.
    sys.path.clear()
    sys.meta_path.clear()
    unshare(CLONE_NEWPID)
    if os.fork() == 0:
        _Server(kind, program).serve()
    os._exit(0)


if __name__ == "__main__":
    main()

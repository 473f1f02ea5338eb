"""Run a command as on one of the machines that people build on: `tier.py NAME -- COMMAND...`, started as root.

    rootless         an ordinary user with subordinate ids
    rootless-single  an ordinary user without: one id can be mapped
    unmountable      root without CAP_SYS_ADMIN, which may still make user namespaces
    pod              root with docker's default capabilities, which can neither mount nor make any namespace
    hardened         an ordinary user who can make no user namespace

The user of `rootless` and its ranges exist for the command only: copies of the account files, with a line more, are
bound over them in a mount namespace of its own. What a real machine adds (AppArmor, a masked /proc) is not emulated.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
import tempfile

UID, FIRST, COUNT = 54321, 2_200_000, 65536
CLONE_NEWNS, CLONE_NEWUSER, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 0x1000, 0x4000, 1 << 18
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 38, 22, 24
CAP_SYS_ADMIN = 21
DOCKER_CAPABILITIES = 0xA80425FB
NAMESPACES = 0x7E020000

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def add_user(name: str) -> None:
    """Make the user known to this mount namespace."""
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    lines = {
        "/etc/passwd": f"{name}:x:{UID}:{UID}::/nonexistent:/bin/sh",
        "/etc/subuid": f"{name}:{FIRST}:{COUNT}",
        "/etc/subgid": f"{name}:{FIRST}:{COUNT}",
    }
    for path, line in lines.items():
        with open(path) as original, tempfile.NamedTemporaryFile("w") as copy:
            copy.write(f"{original.read().rstrip()}\n{line}\n")
            copy.flush()
            os.chmod(copy.name, 0o644)
            check(libc.mount(copy.name.encode(), path.encode(), None, ctypes.c_ulong(MS_BIND), None))


# mount, umount2, pivot_root, setns, sethostname, keyctl; then the newer mount calls, the same everywhere.
MOUNTS = {"x86_64": (165, 166, 155, 308, 170, 250), "aarch64": (40, 39, 41, 268, 161, 219)}
NEW_MOUNTS = (428, 429, 430, 431, 432, 433, 442)


def refuse_namespaces(*, mounts: bool) -> None:
    """unshare(2), the clones that ask for namespaces and `mounts` fail, as by a container's filter. x86-64, aarch64."""
    unshare, clone = {"x86_64": (272, 56), "aarch64": (97, 220)}[os.uname().machine]
    rows = [(0x20, 0, 0, 0)]
    rows += [(0x15, 0, 1, unshare), (0x06, 0, 0, 0x50001)]
    rows += [(0x15, 0, 1, 435), (0x06, 0, 0, 0x50026)]
    for number in (*MOUNTS[os.uname().machine], *NEW_MOUNTS) if mounts else ():
        rows += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50001)]
    rows += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 0, 1, NAMESPACES), (0x06, 0, 0, 0x50001)]
    rows += [(0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0))


def main() -> None:
    name, dashes, *command = sys.argv[1:]
    if dashes != "--":
        sys.exit(__doc__)
    home = tempfile.mkdtemp(prefix="tier-")
    for variable in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "TMPDIR"):
        os.environ.pop(variable, None)
    os.environ.update(HOME=home, TMPDIR=home)
    pid = os.fork()
    if pid == 0:
        become(name, home)
        os.execvp(command[0], command)
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(home)
    sys.exit(os.waitstatus_to_exitcode(status) & 255)


def become(name: str, home: str) -> None:
    if name == "unmountable":
        check(libc.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0))
        return
    if name == "pod":
        for capability in range(41):
            if not DOCKER_CAPABILITIES >> capability & 1:
                check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        refuse_namespaces(mounts=True)
        return
    os.chown(home, UID, UID)
    if name == "rootless":
        add_user("tier-user")
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    if name == "hardened":
        refuse_namespaces(mounts=True)


if __name__ == "__main__":
    main()

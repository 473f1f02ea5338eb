"""The program that runs one RUN in a chroot or by proot, where nothing can be mounted and no namespace made.

Its files are there already: see builder/executors/chroot.py. This process, single-threaded and started for one RUN,
forks the command and stays behind as the reaper of all its descendants, however they detach themselves: when the
command ends, or the builder does, or says so, it kills what is left and ends when there is nothing more to reap.

What the command can not do: gain rights by exec (no-new-privs), make device nodes, use more than Docker's default
capabilities and system calls; and, where the kernel has Landlock, open any file outside its root, even after leaving
the chroot, or signal a process that is not its own.

What is not promised here and is in the tiers with namespaces: processes, network, host name, System V IPC and kernel
settings are those of the container around it, and without Landlock a hostile root leaves a chroot easily.
"""

from __future__ import annotations

import _socket
import os
import select
import sys

from builder import sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MKNOD = 27
REAP_MILLISECONDS = 200


def main() -> None:
    """Run what comes as one request on standard input; output goes to standard output's file."""
    control = _socket.socket(fileno=os.dup(0))
    request = sandbox.receive_frame(control)
    if request is None:
        return
    sandbox.libc.setsid()
    sandbox.default_signals({*range(1, 65)} - {sandbox.SIGPIPE, sandbox.SIGXFSZ})
    sandbox.libc.sigprocmask(sandbox.SIG_SETMASK, bytes(128), None)
    sandbox.become_subreaper()
    code = sandbox.docker_filter()
    # From here on nothing is imported: in the chroot the folders of sys.path would be those of the image.
    sys.path.clear()
    sys.meta_path.clear()
    pid = os.fork()
    if pid == 0:
        _child(control, request, code)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    status = _watch(control, pid)
    try:
        sandbox.send_frame(control, ("exit", status))
    except BrokenPipeError:
        return  # the builder is gone


def _child(control: _socket.socket, request: dict[str, Any], code: bytes) -> NoReturn:
    try:
        (_trace if request["program"] else _become)(request, code, control.fileno())
    except BaseException as error:
        # Whatever it is, it is the builder's to tell; this process has nobody to tell it to.
        try:
            sandbox.send_frame(control, sandbox.failure(error))
        finally:
            os._exit(sandbox.FAILED)
    os._exit(sandbox.FAILED)


def _become(request: dict[str, Any], code: bytes, control: int) -> NoReturn:
    uid, gid = request["uid"], request["gid"]
    sandbox.libc.setsid()
    sandbox.new_keyring()
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDONLY)
    os.chdir(request["root"])
    os.chroot(".")
    output = os.dup(1)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sandbox.close_others(control)
    sandbox.enter_folder(request["cwd"])
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    sandbox.limit(request["ulimits"])
    # Python ignores these two; handlers end by themselves with exec, and `main` saw to the others.
    sandbox.default_signals((sandbox.SIGPIPE, sandbox.SIGXFSZ))
    sandbox.bound_capabilities(sandbox.CAPABILITIES & ~(1 << MKNOD))
    sandbox.no_new_privileges()
    sandbox.confine(root)
    sandbox.install_filter(code)
    try:
        os.setgroups(request["groups"])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        ids = ",".join(str(n) for n in (gid, *request["groups"]))
        raise OSError(error.errno, f"user {uid} with groups {ids}: {os.strerror(error.errno or 0)}") from None
    sandbox.end_with_parent()
    sandbox.execute(request["argv"], [os.fsencode(e) for e in request["env"]])


def _trace(request: dict[str, Any], code: bytes, control: int) -> NoReturn:
    """Become proot, which shows another root and other ids to what it traces."""
    sandbox.libc.setsid()
    os.umask(0o022)
    output = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sandbox.close_others(control)
    sandbox.limit(request["ulimits"])
    sandbox.default_signals((sandbox.SIGPIPE, sandbox.SIGXFSZ))
    sandbox.no_new_privileges()
    sandbox.install_filter(code)
    sandbox.end_with_parent()
    arguments = [os.fsencode(a) for a in request["argv"]]
    variables = dict(os.fsencode(e).split(b"=", 1) for e in request["env"])
    os.execve(request["program"], arguments, variables)  # noqa: S606 - that is what a RUN is


def _watch(control: _socket.socket, child: int) -> int:
    """Reap until the command ends or the builder says to stop; then kill all that is left. Its exit code."""
    status = 0
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLRDHUP)
    running = True
    while running:
        for fd, _ in poll.poll(REAP_MILLISECONDS):
            running = running and fd != control.fileno()
        reaped = _reap()
        if child in reaped:
            status = os.waitstatus_to_exitcode(reaped[child])
            running = False
    while (reaped := _reap()) is not _NONE_LEFT:
        if child in reaped:
            status = os.waitstatus_to_exitcode(reaped[child])
        for pid in _children():
            # Not reaped yet, so the number is still its own. What it leaves behind is the next round's.
            os.kill(pid, sandbox.SIGKILL)
        select.select((), (), (), 0.001)
    return status if status >= 0 else 128 - status


_NONE_LEFT: dict[int, int] = {}


def _reap() -> dict[int, int]:
    """The children that have ended, and their statuses; `_NONE_LEFT` itself when there are no children."""
    found: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return found
            found[pid] = status
    except ChildProcessError:
        return found or _NONE_LEFT


def _children() -> list[int]:
    """The processes whose parent is this one."""
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name, in parentheses, may hold anything.
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if parent == own:
            found.append(int(name))
    return found


if __name__ == "__main__":
    main()

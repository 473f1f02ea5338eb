"""What a builder and the process that starts its RUN say to each other, whichever that process is.

The frames are those of builder/sandbox.py: a request goes out; `made`, `failed` and at last `exit` come in. The RUN's
output comes by a pipe of its own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from builder.errors import BuildError, CancelledError, UnsupportedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from builder.executors import RunSpec

# How long a stop may take to be noticed while a command is silent.
STOP_CHECK_MILLISECONDS = 50


class Ended(Struct):
    """How a RUN went. failure: (errno, text) of a process that could not be set up.

    made and times: mount points made in the root, and what the directories that hold them had as times.
    """

    status: int = -1
    failure: tuple[int, str] | None = None
    made: list[str] = []
    times: list[tuple[str, int, int]] = []


def check(spec: RunSpec, stop: threading.Event) -> None:
    """Refuse what no executor can run. CancelledError when it is to stop already."""
    if stop.is_set():
        raise CancelledError("the build was stopped")
    if not spec.argv:
        raise BuildError("there is no command to run")
    for name, _, _ in spec.ulimits:
        if not hasattr(resource, f"RLIMIT_{name.upper()}"):
            raise UnsupportedError(f"unknown ulimit {name!r}")


def converse(
    ours: socket.socket,
    reading: int,
    request: dict[str, Any],
    output: Callable[[bytes], None],
    stop: threading.Event,
    ended: Ended,
) -> None:
    """Send the request, hand on the output, fill in `ended`. Returns, or raises CancelledError, when all is over."""
    from builder import sandbox

    stopped = False
    try:
        sandbox.send_frame(ours, request)
    except OSError as error:
        raise BuildError(f"the process that starts RUNs has ended: {error}") from error
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(ours, select.POLLIN)
    running = True
    while running:
        for fd, _ in poll.poll(STOP_CHECK_MILLISECONDS):
            if fd == reading:
                data = os.read(reading, 1 << 16)
                if data:
                    output(data)
                else:
                    poll.unregister(reading)
                continue
            match sandbox.receive_frame(ours):
                case ("exit", code):
                    ended.status = code
                    running = False
                case ("failed", number, text):
                    ended.failure = (number, text)
                case ("shared", text):
                    output(f"pybuild: RUN shares this machine's network: {text}\n".encode())
                case ("made", paths, times):
                    ended.made, ended.times = paths, times
                case _:
                    raise BuildError("the process that starts RUNs has ended")
        if stop.is_set() and not stopped:
            stopped = True
            ours.shutdown(socket.SHUT_WR)
    # Every writer is dead by now, so what the pipe holds is all there is.
    os.set_blocking(reading, False)
    try:
        while data := os.read(reading, 1 << 16):
            output(data)
    except BlockingIOError:
        pass
    if stopped:
        raise CancelledError("the build was stopped")


def converse_jailed(
    reading: int,
    writing: int,
    request: dict[str, Any],
    output: Callable[[bytes], None],
    stop: threading.Event,
    ended: Ended,
) -> None:
    """As `converse`, with a process of builder/jail.py's of its own, whose output goes to `writing`."""
    from builder import sandbox

    folder = os.path.dirname(os.path.dirname(os.path.abspath(sandbox.__file__)))
    # By import, so that it is compiled once and not at every start.
    start = f"import sys; sys.path.insert(0, {folder!r}); from builder.jail import main; main()"
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            actions = [
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
            ]
            argv = [sys.executable, "-I", "-S", "-c", start]
            pid = os.posix_spawn(sys.executable, argv, {"LC_ALL": "C.UTF-8"}, file_actions=actions)
        try:
            converse(ours, reading, request, output, stop, ended)
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            os.waitpid(pid, 0)

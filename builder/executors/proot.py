"""RUN by proot, for a user who may do nothing but trace processes of its own (tier `hardened`).

proot rewrites the paths and ids of the system calls of what it runs. What is mounted elsewhere is put into the root as
for a chroot, see builder/executors/furnishing.py and the differences told in builder/executors/chroot.py; /proc and
the devices are those of the machine. Owners that the command gives to files are lost: all belong to one user, and are
root's in the layer. Nothing here confines a hostile command but what holds the user who builds.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from builder.errors import BuildError, UnsupportedError
from builder.executors.conversation import Ended, check, converse_jailed
from builder.executors.furnishing import Furnished, directory_of, make_folder
from cache.errors import StoreError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from builder.executors import RunSpec

_MISSING = "no such file or directory"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProotExecutor:
    """Runs by proot. tier: its name. program: the path of proot."""

    def __init__(self, tier: str, program: str) -> None:
        self._tier = tier
        self._program = program

    @property
    def tier(self) -> str:
        """The tier's name."""
        return self._tier

    def run(self, spec: RunSpec, output: Callable[[bytes], None], stop: threading.Event) -> int:
        """Run to the end: see `Executor.run`. Needs a DirectoryRoot."""
        check(spec, stop)
        for what in (f"network={spec.network}" * (spec.network == "none"), "security=insecure" * spec.insecure):
            if what:
                raise UnsupportedError(
                    f"{what} can not be had in tier {self._tier}, where RUN is by proot",
                    hint="build where user namespaces are allowed, or as root that may mount",
                )
        root = directory_of(spec.root)
        ended = Ended()
        try:
            with contextlib.ExitStack() as stack:
                reading, writing = Furnished(root, stack, nodes=False).fill(spec)
                cwd = _enter(root, spec.cwd)
                found = _find(root, spec, cwd)
                if isinstance(found, tuple):
                    status, text = found
                    output(os.fsencode(f'exec: "{spec.argv[0]}": {text}\n'))
                    return status
                request = {
                    "program": self._program,
                    "argv": self._command(root, cwd, found, spec),
                    "env": (*(line for line in spec.env if "=" in line), *_room(os.path.dirname(root))),
                    "ulimits": spec.ulimits,
                }
                converse_jailed(reading, writing, request, output, stop, ended)
        except (OSError, StoreError) as error:
            raise self._failure(getattr(error, "strerror", None) or str(error)) from error
        if ended.failure is not None:
            raise self._failure(ended.failure[1])
        return ended.status

    def close(self) -> None:
        """Nothing is left of a RUN."""

    def _command(self, root: str, cwd: str, program: str, spec: RunSpec) -> tuple[str, ...]:
        from builder import sandbox

        shown = ["/proc", *(f"/dev/{name}" for name, _, _ in sandbox.DEVICES)]
        binds = [word for path in shown for word in ("-b", path)]
        ids = ["-0"] if not (spec.uid or spec.gid) else ["-i", f"{spec.uid}:{spec.gid}"]
        return (self._program, "-v", "-1", "-r", root, "-w", cwd, *ids, *binds, program, *spec.argv[1:])

    def _failure(self, text: str) -> BuildError:
        return BuildError(f"the command's sandbox could not be set up ({self._tier}): {text}")


def _room(folder: str) -> tuple[str, ...]:
    """Proot puts a small program where its tracees can execute it: in /tmp, unless told otherwise by a variable."""
    return () if os.access("/tmp", os.W_OK) else (f"PROOT_TMP_DIR={folder}",)  # noqa: S108 - proot's default


def _enter(root: str, cwd: str) -> str:
    """The working directory, made if missing, as a path of the root without symlinks."""
    from builder import sandbox

    parts, found = sandbox.locate(root, cwd)
    if found == "file":
        raise NotADirectoryError(20, f"{cwd}: Not a directory")
    for end in range(1, len(parts) + 1):
        path = "/".join((root, *parts[:end]))
        if not os.path.lexists(path):
            make_folder(path)
    return "/" + "/".join(parts)


def _find(root: str, spec: RunSpec, cwd: str) -> str | tuple[int, str]:
    """The command's program, looked up as a shell would; else exit code and message. proot itself says it otherwise."""
    from builder import sandbox

    name = spec.argv[0]
    if "/" in name:
        candidates = [name if name.startswith("/") else f"{cwd}/{name}"]
    else:
        path = next((line[5:] for line in spec.env if line.startswith("PATH=")), _PATH)
        candidates = [f"{folder}/{name}" for folder in path.split(":") if folder and name]
    seen = False
    for candidate in candidates:
        try:
            parts, found = sandbox.locate(root, candidate)
        except OSError:
            continue
        if found == "file" and os.access("/".join((root, *parts)), os.X_OK):
            return candidate if _interpreted(root, "/".join((root, *parts))) else (sandbox.NOT_FOUND, _MISSING)
        seen = seen or bool(found)
    if seen:
        return sandbox.NOT_EXECUTABLE, "permission denied"
    return sandbox.NOT_FOUND, _MISSING if "/" in name else "executable file not found in $PATH"


def _interpreted(root: str, path: str) -> bool:
    """Whether the interpreter of a script, if it is one, is there."""
    from builder import sandbox

    try:
        with open(path, "rb") as file:
            words = file.readline(256).split() if file.read(2) == b"#!" else []
    except OSError:
        return True  # it may be executable and not readable
    return not words or sandbox.locate(root, os.fsdecode(words[0]))[1] == "file"

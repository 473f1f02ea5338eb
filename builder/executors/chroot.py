"""RUN in a chroot: for root in an ordinary container, which may neither mount nor make namespaces (tier `pod`).

What the tiers with namespaces mount is put into the root for the time of the RUN and taken out again: `Furnished`.
Nothing of it is left in a layer, and after a crash nothing but the working root itself, which the store removes.
The command is started, watched and ended with all its descendants by builder/jail.py, which says what confines it.

What differs from a mount, and can not be helped without one:

- read-only binds, files and secrets are copies: writing to them succeeds and is lost;
- cache mounts are copies, too: what changed in them is carried over at the RUN's end, however it ends, and RUNs that
  share one at a time see each other's changes afterwards only;
- the sizes of tmpfs mounts and /dev/shm are no limits;
- /proc and /sys are empty. /dev/stderr is a pipe to the output, whereas /dev/fd, /dev/stdin and /dev/stdout lead into
  the missing /proc, so that a program which insists on them fails and does not write to the wrong place;
- the host name is that of the container; --network=none and --security=insecure are refused.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from builder.errors import BuildError, UnsupportedError
from builder.executors.conversation import Ended, check, converse_jailed
from builder.executors.furnishing import Furnished, directory_of
from cache.errors import StoreError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from builder.executors import RunSpec


class ChrootExecutor:
    """Runs in a chroot. tier: its name."""

    def __init__(self, tier: str = "pod") -> None:
        self._tier = tier

    @property
    def tier(self) -> str:
        """The tier's name."""
        return self._tier

    def run(self, spec: RunSpec, output: Callable[[bytes], None], stop: threading.Event) -> int:
        """Run to the end: see `Executor.run`. Needs a DirectoryRoot."""
        check(spec, stop)
        if spec.network == "none":
            raise UnsupportedError(
                f"network=none can not be had in tier {self._tier}, which can make no namespace",
                hint="build where user namespaces are allowed, or as root that may mount",
            )
        if spec.insecure:
            raise UnsupportedError(f"security=insecure can not be had in tier {self._tier}")
        ended = Ended()
        try:
            with contextlib.ExitStack() as stack:
                furnished = Furnished(directory_of(spec.root), stack, nodes=True)
                reading, writing = furnished.fill(spec)
                converse_jailed(reading, writing, _describe(spec), output, stop, ended)
        except (OSError, StoreError) as error:
            raise self._failure(getattr(error, "strerror", None) or str(error)) from error
        if ended.failure is not None:
            raise self._failure(ended.failure[1])
        return ended.status

    def close(self) -> None:
        """Nothing is left of a RUN."""

    def _failure(self, text: str) -> BuildError:
        return BuildError(f"the command's sandbox could not be set up ({self._tier}): {text}")


def _describe(spec: RunSpec) -> dict[str, Any]:
    return {
        "root": directory_of(spec.root),
        "argv": spec.argv,
        "env": spec.env,
        "cwd": spec.cwd,
        "uid": spec.uid,
        "gid": spec.gid,
        "groups": spec.groups,
        "ulimits": spec.ulimits,
        "program": "",
    }

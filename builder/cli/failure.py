"""The one door through which an error leaves: text on standard error, and an exit code."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from builder.cli import DAMAGED, FAILED, INTERNAL, USAGE
from builder.cli.flags import UsageError
from builder.errors import BuildError
from cache.errors import CorruptError, StoreError
from grammar.source import DockerfileError

if TYPE_CHECKING:
    from builder.cli.surroundings import Surroundings


class StoreUnusableError(Exception):
    """The store itself can not be opened, as against something in it that is missing."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(error.message)
        self.message = error.message
        self.hint = error.hint


def report(error: Exception, around: Surroundings, *, debug: bool = False) -> int:
    """Tell the user, once, and return what the process should exit with."""
    from builder.terminal import render

    code = exit_code(error)
    text = render(error, colour=around.colour(around.stderr)) if code != INTERNAL else _internal(error, debug=debug)
    try:
        print(text, end="", file=around.stderr, flush=True)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), end="", file=around.stderr, flush=True)
    except OSError:
        pass  # nobody is left to tell
    return code


def exit_code(error: Exception) -> int:
    """The number that stands for an error; INTERNAL for those that no one was meant to see."""
    match error:
        case UsageError():
            return USAGE
        case CorruptError() | StoreUnusableError():
            return DAMAGED
        case BuildError():
            return error.exit_code
        case StoreError() | DockerfileError():
            return FAILED
        # EBADF, EFAULT and the like are our own doing, not the user's files.
        case OSError() if error.errno not in {None, errno.EBADF, errno.EFAULT, errno.EINVAL}:
            return FAILED
        case _:
            return INTERNAL


def _internal(error: Exception, *, debug: bool) -> str:
    """A fault of pybuild's own: short, with the traceback in a file, or right here when asked for."""
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    head = f"internal error: {type(error).__name__}: {error}\n"
    if debug:
        return trace + head
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pybuild-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(trace)
    except OSError:
        return trace + head
    return f"{head}hint: this is a fault of pybuild; the traceback is in {file.name}, PYBUILD_DEBUG=1 shows it here\n"

"""Ctrl-C, SIGTERM and hanging up: the first asks the build to stop and clean up, a second ends it at once."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from types import FrameType

    from builder.cli.surroundings import Surroundings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cleanly() -> Iterator[None]:
    """While entered, SIGTERM and hanging up end the program by an exception, as Ctrl-C does: nothing stays half-made.

    For commands that ask nobody to stop. Only where nobody has said otherwise (nohup), and in the main thread.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class Stop:
    """While entered, those signals set `stop`.

    Hanging up stays ignored where it was (nohup). Ctrl-C does not: shells ignore it for what a script starts with `&`,
    and a build would then go on after the script's end.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._before: dict[int, object] = {}
        self._seen = 0

    @property
    def code(self) -> int | None:
        """What the process should exit with, 128 + the signal; None when none came."""
        return 128 + self._seen if self._seen else None

    def tell(self, around: Surroundings) -> int:
        """Say that the build was stopped, and return `code`."""
        print(f"stopped by {signal.Signals(self._seen).name}", file=around.stderr, flush=True)
        return 128 + self._seen

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._seen:
            # The RUN's processes die with their parent, so nothing is left behind but temporary files.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._seen = number
        self._stop.set()

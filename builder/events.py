"""What can happen during a build, as values. The engine emits them; terminal renders them; nothing else prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from builder.lint.efficiency import Efficiency
    from builder.model import BuildResult, Finding, Plan


class BuildPlanned(Struct, frozen=True):
    """The plan is made. totals: per stage index, how many steps progress will count (`[2/5]`)."""

    plan: Plan
    totals: tuple[tuple[int, int], ...]


class TierChosen(Struct, frozen=True):
    """Where RUNs will run. tier: privileged, rootless, ...; reason: why this one and not a better one."""

    tier: str
    reason: str


class StepStarted(Struct, frozen=True):
    """Step `number` of `total` of a stage begins. `step` identifies it in later events; number 1 is FROM."""

    step: int
    stage: str
    number: int
    total: int
    title: str
    line: int


class StepMissed(Struct, frozen=True):
    """The step is not in the cache; told when asked for. changes: every part that differs from the nearest record."""

    step: int
    changes: tuple[str, ...]


class StepOutput(Struct, frozen=True):
    """Bytes that the step's command wrote, as they came, in any cut."""

    step: int
    data: bytes


class StepFinished(Struct, frozen=True):
    """The step is done. size: bytes it added, uncompressed; files: entries in its layer.

    reason: why it was not in the cache; of one that was found in a cache outside the store, which.
    """

    step: int
    cached: bool
    seconds: float
    size: int = 0
    files: int = 0
    reason: str = ""


class StepFailed(Struct, frozen=True):
    """The step ended the build; the error itself is raised, and rendered once, by the CLI.

    cancelled: not by a fault of its own, but since the user or the fault of another step stopped it.
    """

    step: int
    seconds: float
    cancelled: bool = False


class Warned(Struct, frozen=True):
    """A finding to show."""

    finding: Finding


class ExportStarted(Struct, frozen=True):
    """An output is being written. what: such as `oci archive app.tar`."""

    what: str


class ExportFinished(Struct, frozen=True):
    """An output is written. size: bytes, 0 when not known."""

    what: str
    seconds: float
    size: int = 0


class Inspected(Struct, frozen=True):
    """The layers were looked at; what was found came as `Warned`."""

    efficiency: Efficiency


class TransferStarted(Struct, frozen=True):
    """Blobs are about to cross the network. what: such as `pulling docker.io/library/debian:12`."""

    what: str


class BlobMoved(Struct, frozen=True):
    """A blob of a transfer: how many of its bytes have moved. state: moving, done, present or mounted.

    While it moves, this comes every now and then; `done` may fall, when an upload has to start again.
    """

    what: str
    blob: str
    done: int
    size: int
    state: str


class TransferFinished(Struct, frozen=True):
    """A transfer is over. size: bytes that crossed the network; blobs: how many there were; failed: by an error."""

    what: str
    seconds: float
    size: int
    blobs: int
    failed: bool = False


class BuildFinished(Struct, frozen=True):
    """The build is done and its names are set."""

    result: BuildResult


Event = (
    BuildPlanned
    | TierChosen
    | StepStarted
    | StepMissed
    | StepOutput
    | StepFinished
    | StepFailed
    | Warned
    | ExportStarted
    | ExportFinished
    | Inspected
    | TransferStarted
    | BlobMoved
    | TransferFinished
    | BuildFinished
)

Reporter = Callable[[Event], None]
"""Called from several threads at once; must return quickly and never raise."""

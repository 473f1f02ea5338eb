"""What can happen during a build, as values. The engine emits them; terminal renders them; nothing else prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from builder.model import BuildResult, Finding, Plan


@dataclass(frozen=True, slots=True)
class BuildPlanned:
    """The plan is made. totals: per stage index, how many steps progress will count (`[2/5]`)."""

    plan: Plan
    totals: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TierChosen:
    """Where RUNs will run. tier: privileged, rootless, ...; reason: why this one and not a better one."""

    tier: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepStarted:
    """Step `number` of `total` of a stage begins. `step` identifies it in later events; number 1 is FROM."""

    step: int
    stage: str
    number: int
    total: int
    title: str
    line: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Bytes that the step's command wrote, as they came, in any cut."""

    step: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The step is done. size: uncompressed bytes it added; files: entries in its layer; reason: why it was not cached."""

    step: int
    cached: bool
    seconds: float
    size: int = 0
    files: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step ended the build; the error itself is raised, and rendered once, by the CLI."""

    step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """A finding to show."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class ExportStarted:
    """An output is being written. what: such as `oci archive app.tar`."""

    what: str


@dataclass(frozen=True, slots=True)
class ExportFinished:
    """An output is written. size: bytes, 0 when not known."""

    what: str
    seconds: float
    size: int = 0


@dataclass(frozen=True, slots=True)
class BuildFinished:
    """The build is done and its names are set."""

    result: BuildResult


Event = (
    BuildPlanned
    | TierChosen
    | StepStarted
    | StepOutput
    | StepFinished
    | StepFailed
    | Warned
    | ExportStarted
    | ExportFinished
    | BuildFinished
)

Reporter = Callable[[Event], None]
"""Called from several threads at once; must return quickly and never raise."""

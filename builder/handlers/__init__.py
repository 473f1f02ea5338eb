"""The 18 instructions, in two acts: `lower` (pure, here) and perform (files, process).

Lowering turns an instruction and the state so far into the next state and at most one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.errors import gathered, raise_all
from builder.handlers.base import (
    image_triggers,
    inherited_state,
    initial_state,
    lower_arg,
    lower_onbuild,
    lower_shell,
)
from builder.handlers.config import (
    lower_cmd,
    lower_entrypoint,
    lower_env,
    lower_expose,
    lower_healthcheck,
    lower_label,
    lower_maintainer,
    lower_stopsignal,
    lower_user,
    lower_volume,
)
from builder.handlers.run import lower_run
from builder.handlers.transfer import lower_add, lower_copy, lower_workdir
from grammar.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from builder.errors import BuildError
    from builder.model import Lowered, Scope, StageState
    from grammar.source import Source

__all__ = ["image_triggers", "inherited_state", "initial_state", "lower", "lower_all"]


def lower(instruction: Instruction, state: StageState, scope: Scope) -> Lowered:
    """The state after `instruction`, the step that it asks for, its history and its warnings.

    FROM is not lowered: see `initial_state` and `inherited_state`. Equal arguments give equal results. Raises
    BuildError with a place in `scope.source`.
    """
    return replace(_lower(instruction, state, scope), title=title(instruction), source=scope.source)


def lower_all(
    instructions: Iterable[Instruction],
    state: StageState,
    scope: Scope,
    sources: Sequence[Source] = (),
    errors: list[BuildError] | None = None,
) -> tuple[Lowered, ...]:
    """`lower` for a stage's instructions in their order, each with the state after the one before.

    sources: the texts of the first instructions where they stand in others than `scope.source`
    (`StagePlan.trigger_sources`). Raises BuildError, or BuildErrors when several instructions are wrong: one that is
    does not hide the others. errors: where mistakes go instead; what is wrong is left out of the result then.
    """
    found: list[Lowered] = []
    wrong: list[BuildError] = []
    for index, instruction in enumerate(instructions):
        here = scope.of(sources[index]) if index < len(sources) else scope
        with gathered(wrong):
            found.append(lower(instruction, state, here))
            state = found[-1].state
    if errors is None:
        raise_all(wrong)
    else:
        errors += wrong
    return tuple(found)


def title(instruction: Instruction) -> str:
    """The progress line: the instruction as written on one line, the keyword in capitals, heredocs shortened.

    Variables stay as they are: their values may be secrets.
    """
    text = " ".join(instruction.text.split())
    keyword, _, rest = text.partition(" ")
    line = f"{keyword.upper()} {rest}".rstrip()
    if isinstance(instruction, Run) and instruction.heredocs:
        body = instruction.heredocs[0].body.strip().splitlines() or [""]
        line += f" ({body[0]}{'...' if len(body) > 1 else ''})"
    return line


def _lower(instruction: Instruction, state: StageState, scope: Scope) -> Lowered:
    match instruction:
        case Run():
            return lower_run(instruction, state, scope)
        case Copy():
            return lower_copy(instruction, state, scope)
        case Add():
            return lower_add(instruction, state, scope)
        case Env():
            return lower_env(instruction, state, scope)
        case Arg():
            return lower_arg(instruction, state, scope)
        case Workdir():
            return lower_workdir(instruction, state, scope)
        case Label():
            return lower_label(instruction, state, scope)
        case User():
            return lower_user(instruction, state, scope)
        case Cmd():
            return lower_cmd(instruction, state, scope)
        case Entrypoint():
            return lower_entrypoint(instruction, state, scope)
        case Expose():
            return lower_expose(instruction, state, scope)
        case Volume():
            return lower_volume(instruction, state, scope)
        case Stopsignal():
            return lower_stopsignal(instruction, state, scope)
        case Healthcheck():
            return lower_healthcheck(instruction, state, scope)
        case Shell():
            return lower_shell(instruction, state, scope)
        case Onbuild():
            return lower_onbuild(instruction, state, scope)
        case Maintainer():
            return lower_maintainer(instruction, state, scope)
        case _:
            msg = f"{type(instruction).__name__} is not lowered"
            raise TypeError(msg)

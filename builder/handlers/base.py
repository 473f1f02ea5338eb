"""FROM, ARG, SHELL and ONBUILD: what a stage starts with, and what later instructions are read by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.errors import BuildError, raise_all
from builder.handlers import gotext
from builder.handlers.expansion import Expander, masked
from builder.model import Lowered, Scope, StageState
from cache.oci import Platform, RuntimeConfig

if TYPE_CHECKING:
    from cache.oci import ImageConfig
    from grammar.instructions import Arg, Instruction, Onbuild, Shell
    from grammar.source import Source

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of an image that has none: https://docs.docker.com/reference/dockerfile/#env."""

DEFAULT_SHELL = ("/bin/sh", "-c")

# Arguments to the builder itself, which no RUN sees (BuildKit, nonEnvArgs).
_NOT_ENVIRONMENT = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})


def initial_state(base: ImageConfig | None, scope: Scope) -> StageState:
    """The state of a stage after `FROM image`; None stands for scratch and for a context of plain files.

    The base's own ONBUILD triggers are not in it: they are consumed by this FROM (see `image_triggers`).
    """
    if base is None:
        config, platform, author = RuntimeConfig(working_dir="/"), scope.platform, ""
    else:
        config, author = base.config, base.author
        platform = base.platform if base.platform.architecture else scope.platform
    env = config.env
    if not any(line.startswith("PATH=") for line in env):
        env = (*env, f"PATH={DEFAULT_PATH}")
    working_dir = config.working_dir
    if working_dir and not working_dir.startswith("/"):
        working_dir = "/" + working_dir
    pairs = (line.partition("=") for line in env)
    return StageState(
        platform=_bearing(platform, scope),
        config=replace(config, env=env, working_dir=working_dir, on_build=()),
        environment=tuple({name: value for name, _, value in pairs}.items()),
        author=author,
    )


def inherited_state(below: StageState, scope: Scope) -> StageState:
    """The state of a stage after `FROM stage`: ARGs come along, triggers do not."""
    return replace(
        below,
        platform=_bearing(below.platform, scope),
        config=replace(below.config, on_build=()),
        cmd_set=False,
    )


def image_triggers(base: ImageConfig | None, name: str) -> tuple[tuple[Source, Instruction], ...]:
    """The ONBUILD triggers that a base image carries, parsed; `name` is what messages call the image.

    Raises BuildError, or BuildErrors, for triggers that can not be read: an image may carry any text.
    """
    if base is None or not base.config.on_build:
        return ()
    from grammar.parser import parse_trigger  # few bases have triggers
    from grammar.source import DockerfileError, Source

    found: list[tuple[Source, Instruction]] = []
    errors: list[BuildError] = []
    for text in base.config.on_build:
        source = Source(f"ONBUILD of {name}", text)
        try:
            found.append((source, parse_trigger(text, source.name)))
        except DockerfileError as failure:
            errors.append(BuildError(failure.message, span=failure.span, source=source, hint=failure.hint))
    raise_all(errors)
    return tuple(found)


def _bearing(platform: Platform, scope: Scope) -> Platform:
    """The platform that the image will bear: for the target, what the user asked for, whatever the base says."""
    forced = scope.forced_platform
    if forced is None:
        return platform
    same = (forced.os, forced.architecture) == (platform.os, platform.architecture)
    return replace(forced, variant=forced.variant or (platform.variant if same else ""))


def lower_arg(instruction: Arg, state: StageState, scope: Scope) -> Lowered:
    """ARG: a value comes from --build-arg, else from the default, else from the global ARG of that name.

    Each default is expanded with what the ARGs before it on the same line set, unlike ENV.
    """
    expander = Expander(state, scope)
    args = list(state.args)
    lines = []
    for pair in instruction.pairs:
        if pair.name in scope.build_args:
            value: str | None = scope.build_args[pair.name]
        elif pair.value is not None:
            value = expander.text(pair.value, pair.span)
        else:
            value = scope.global_args.get(pair.name)
        if value is not None and pair.name not in _NOT_ENVIRONMENT:
            expander.environment[pair.name] = value
        args.append((pair.name, value))
        lines.append(pair.name if value is None else f"{pair.name}={masked(pair.name, value)}")
    after = replace(state, args=tuple(args), environment=tuple(expander.environment.items()))
    return Lowered(instruction, after, created_by=f"ARG {' '.join(lines)}", findings=tuple(expander.findings))


def lower_shell(instruction: Shell, state: StageState, scope: Scope) -> Lowered:
    """SHELL: what shell forms are given to from here on, in the image too."""
    del scope
    after = replace(state, config=replace(state.config, shell=instruction.argv))
    return Lowered(instruction, after, created_by=f"SHELL {gotext.plain_list(instruction.argv)}")


def lower_onbuild(instruction: Onbuild, state: StageState, scope: Scope) -> Lowered:
    """ONBUILD: kept as text for whoever builds on this image. It leaves no history."""
    del scope
    config = replace(state.config, on_build=(*state.config.on_build, instruction.trigger_text))
    return Lowered(instruction, replace(state, config=config))


def with_shell(text: str, config: RuntimeConfig) -> tuple[str, ...]:
    """A shell form as an argv."""
    return (*(config.shell or DEFAULT_SHELL), text)

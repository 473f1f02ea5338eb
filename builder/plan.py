"""From a parsed build file and the user's choices to the stages that have to be built. Pure.

Every word of FROM is expanded here, with global ARGs only; every `--from` becomes an edge; what the target does not
need is left out. Meaning follows BuildKit's, down to which mistakes of an unused stage count.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from builder.errors import BuildError, gathered, raise_all
from builder.model import CONTEXT, Finding, GitSource, Origin, Plan, Scope, StageBase, StagePlan, UrlSource
from builder.origins import Use, check_earlier, check_reference, context_named, familiar, stage_named, uses
from builder.platforms import normal_platform, parse_platform
from cache.oci import Platform, host_platform
from grammar.instructions import Add, Arg, Dockerfile, From, Instruction, Onbuild, Stage, Word
from grammar.suggest import did_you_mean
from grammar.words import Expansion, WordError, expand_with_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from grammar.source import Source

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
"""Build arguments that a RUN sees without an ARG, in either case."""

EPOCH = "SOURCE_DATE_EPOCH"
HOSTNAME = "BUILDKIT_SANDBOX_HOSTNAME"
KEEP_GIT_DIR = "BUILDKIT_CONTEXT_KEEP_GIT_DIR"

_PLATFORM_ARGS = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
]
_CONSUMED = {
    *_PLATFORM_ARGS, *PROXIES, *(name.lower() for name in PROXIES), EPOCH, HOSTNAME, KEEP_GIT_DIR,
    "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_DOCKERFILE_CHECK",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "BUILDKIT_SYNTAX": "pybuild reads the language itself and runs no frontend image",
    "BUILDKIT_INLINE_CACHE": "no cache is written into images",
    "BUILDKIT_MULTI_PLATFORM": "an image is built for one platform",
    "BUILDKIT_BUILD_NAME": "it is a name for attestations, and there are none",
    "BUILDKIT_SBOM_SCAN_CONTEXT": "no SBOM is made",
    "BUILDKIT_SBOM_SCAN_STAGE": "no SBOM is made",
}
"""Arguments to BuildKit itself that ask for something that is not there, and why they do nothing."""


def plan(
    dockerfile: Dockerfile,
    target: str = "",
    build_args: Mapping[str, str] | None = None,
    platform: Platform | None = None,
    contexts: Collection[str] = (),
    *,
    build_platform: Platform | None = None,
    allow: Collection[str] = (),
) -> Plan:
    """The plan of a build. Equal arguments give equal plans.

    target: a stage's name, in any case; empty for the last stage. platform: what `--platform` says; None for the
    machine's own, in which case the image bears the platform of its base. contexts: the names of named contexts.
    build_platform: the platform of this machine, found out when None. allow: granted entitlements.

    Raises BuildError, or BuildErrors when several independent things are wrong.
    """
    build_args = dict(build_args or {})
    host = normal_platform(build_platform or host_platform())
    wanted = host if platform is None else normal_platform(platform)
    stages = dockerfile.stages
    if not stages:
        msg = "there are no stages to build: the file has no FROM"
        raise BuildError(msg, source=dockerfile.source, hint="begin with FROM IMAGE, or FROM scratch")
    predefined = _predefined(host, wanted, target or stages[-1].name, build_args)
    global_args = _global_args(dockerfile, predefined, build_args)
    known_contexts = {familiar(name): name for name in contexts if familiar(name)}
    epoch, epoch_source = _epoch(dockerfile, build_args, global_args, known_contexts)
    titles = tuple(stage.name or f"stage-{stage.index}" for stage in stages)
    scope = Scope(
        source=dockerfile.source,
        stage=0,
        titles=titles,
        names={stage.name: stage.index for stage in stages if stage.name},
        contexts=known_contexts,
        build_args=build_args,
        global_args=global_args,
        platform=wanted,
        allow=frozenset(allow),
        escape=dockerfile.directives.escape,
    )
    findings: list[Finding] = []
    errors: list[BuildError] = []
    bases, scopes = _bases(stages, scope, host, findings, errors)
    # An ARG without a value is declared, and empty: BuildKit says nothing of it.
    declared = {f"FROM argument '{pair.name}' is not declared" for arg in dockerfile.global_args for pair in arg.pairs}
    findings = [finding for finding in findings if finding.message not in declared]
    last = stages[-1].index
    with gathered(errors):
        last = _target(target, stages, scope)
    if platform is not None:
        scopes[last] = replace(scopes[last], forced_platform=wanted)
    items = _drafts(stages, bases, scopes, errors)
    raise_all(errors)
    needed, unused = _split(items, last, scopes)
    findings += _unconsumed(build_args, dockerfile.global_args, (i for item in items for i in item.instructions))
    return Plan(
        dockerfile=dockerfile,
        stages=needed,
        unused=unused,
        target=last,
        global_args=tuple(global_args.items()),
        findings=tuple(findings),
        scopes=tuple(scopes),
        platform=wanted,
        build_args=tuple(build_args.items()),
        epoch=epoch,
        epoch_source=epoch_source,
    )


def with_triggers(old: Plan, stage: int, triggers: Sequence[Instruction], source: Source) -> Plan:
    """The plan with ONBUILD triggers of a stage's base image put before the stage's own instructions.

    Triggers that were added before stay in front of these. They may take files from stages that nothing needed so far:
    those move from `unused` to `stages`. source: the text that the triggers were parsed from, for messages. Raises as
    `plan` does.
    """
    scope = old.scope(stage).of(source)
    edges = _edges(triggers, scope)
    for edge in edges:
        check_earlier(edge.stage, edge.use, scope)
    items = sorted((*old.stages, *old.unused), key=lambda item: item.stage.index)
    checked = {item.stage.index for item in old.stages}
    items[stage] = replace(
        items[stage],
        triggers=(*items[stage].triggers, *triggers),
        trigger_sources=(*items[stage].trigger_sources, *([source] * len(triggers))),
        needs=items[stage].needs | {edge.stage for edge in edges},
    )
    needed, unused = _split(items, old.target, old.scopes, checked)
    left = _unconsumed(
        dict(old.build_args), old.dockerfile.global_args, (i for item in items for i in item.instructions)
    )
    others = (finding for finding in old.findings if finding.rule not in {UNCONSUMED, WITHOUT_EFFECT})
    return replace(old, stages=needed, unused=unused, findings=(*others, *left))


# ---------------------------------------------------------------- arguments


def _predefined(host: Platform, wanted: Platform, target: str, build_args: Mapping[str, str]) -> dict[str, str]:
    values = [
        str(host), host.os, "", host.architecture, host.variant,
        str(wanted), wanted.os, "", wanted.architecture, wanted.variant, target or "default",
    ]  # fmt: skip
    return {name: build_args.get(name, value) for name, value in zip(_PLATFORM_ARGS, values, strict=True)}


def _global_args(
    dockerfile: Dockerfile, predefined: Mapping[str, str], build_args: Mapping[str, str]
) -> dict[str, str]:
    """The ARGs before the first FROM, each default expanded with those above it."""
    values = dict(predefined)
    errors: list[BuildError] = []
    for arg in dockerfile.global_args:
        for pair in arg.pairs:
            if pair.name in build_args:
                values[pair.name] = build_args[pair.name]
            elif pair.value is not None:
                try:
                    values[pair.name] = expand_with_names(pair.value, values, dockerfile.directives.escape).text
                except WordError as error:
                    errors.append(
                        BuildError(
                            f"failed to process {pair.value!r}: {error}", span=pair.span, source=dockerfile.source
                        )
                    )
    raise_all(errors)
    return values


def _epoch(
    dockerfile: Dockerfile, build_args: Mapping[str, str], global_args: Mapping[str, str], contexts: Mapping[str, str]
) -> tuple[int | None, Origin | UrlSource | GitSource | None]:
    """SOURCE_DATE_EPOCH: a number, or the source whose time it is."""
    value = build_args.get(EPOCH, global_args.get(EPOCH, ""))
    if not value:
        return None, None
    if re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value), None
    if value == "context":
        return None, CONTEXT
    if familiar(value) in contexts:
        return None, Origin(context=contexts[familiar(value)])
    for stage in dockerfile.stages:
        if stage.name and stage.name == value.lower():
            return None, _epoch_of_stage(stage, dockerfile, build_args, global_args)
    msg = f"invalid {EPOCH}: {value!r} is neither a number of seconds nor context, a named context or a stage"
    span = next((p.span for a in dockerfile.global_args for p in a.pairs if p.name == EPOCH), None)
    raise BuildError(msg, span=None if EPOCH in build_args else span, source=dockerfile.source)


def _epoch_of_stage(
    stage: Stage, dockerfile: Dockerfile, build_args: Mapping[str, str], global_args: Mapping[str, str]
) -> UrlSource | GitSource:
    """The one remote ADD of a stage that does nothing else: its time is the epoch."""
    from builder.remotes import remote_source

    def refuse(message: str, place: Instruction) -> BuildError:
        return BuildError(message, span=place.span, source=dockerfile.source)

    escape = dockerfile.directives.escape
    env = {name: value for name, value in global_args.items() if name != EPOCH}
    if expand_with_names(stage.from_.image.text, env, escape).text != "scratch":
        raise refuse(f"a stage that {EPOCH} names must use FROM scratch", stage.from_)
    found: UrlSource | GitSource | None = None
    for instruction in stage.instructions:
        match instruction:
            case Arg():
                for pair in instruction.pairs:
                    if pair.name in build_args:
                        env[pair.name] = build_args[pair.name]
                    elif pair.value is not None:
                        env[pair.name] = expand_with_names(pair.value, env, escape).text
            case Add() if found is None and len(instruction.sources) == 1 and not instruction.heredocs:
                word = instruction.sources[0]
                sum_word = instruction.checksum
                checksum = expand_with_names(sum_word.text, env, escape).text if sum_word else ""
                text = expand_with_names(word.text, env, escape).text
                remote = remote_source(Word(text, word.span), checksum, keep_git_dir=None, source=dockerfile.source)
                if remote is None:
                    raise refuse(f"a stage that {EPOCH} names must ADD one URL or git repository", instruction)
                found = remote
            case _:
                raise refuse(f"a stage that {EPOCH} names may hold one remote ADD, and ARGs, only", instruction)
    if found is None:
        raise refuse(f"a stage that {EPOCH} names must ADD one URL or git repository", stage.from_)
    return found


UNCONSUMED = "UnconsumedBuildArg"
WITHOUT_EFFECT = "BuildArgWithoutEffect"


def _unconsumed(
    build_args: Mapping[str, str], global_args: Iterable[Arg], instructions: Iterable[Instruction]
) -> list[Finding]:
    """A finding for each `--build-arg` that nothing declares, and for arguments to the builder that do nothing here."""
    declared = {pair.name for arg in global_args for pair in arg.pairs}
    for instruction in instructions:
        inner = instruction.trigger if isinstance(instruction, Onbuild) else instruction
        if isinstance(inner, Arg):
            declared.update(pair.name for pair in inner.pairs)
    found = [
        Finding(WITHOUT_EFFECT, f"the build argument {name} has no effect: {_WITHOUT_EFFECT[name]}")
        for name in _WITHOUT_EFFECT
        if name in build_args or name in declared
    ]
    return found + [
        Finding(
            UNCONSUMED,
            f"build argument {name!r} was not consumed: no ARG declares it",
            hint=did_you_mean(name, declared) or f"add ARG {name}, or drop --build-arg {name}",
        )
        for name in build_args
        if name not in declared and name not in _CONSUMED and name not in _WITHOUT_EFFECT
    ]


def truth(build_args: Mapping[str, str], name: str) -> bool:
    """Whether a switch among the build arguments is on. BuildError for what is neither true nor false."""
    value = build_args.get(name, "")
    if value in {"", "0", "f", "F", "false", "FALSE", "False"}:
        return False
    if value not in {"1", "t", "T", "true", "TRUE", "True"}:
        raise BuildError(f"--build-arg {name}={value}: it is true or false")
    return True


# ---------------------------------------------------------------- FROM


def _bases(
    stages: Sequence[Stage], scope: Scope, host: Platform, findings: list[Finding], errors: list[BuildError]
) -> tuple[list[StageBase], list[Scope]]:
    """What each stage stands on, and the scope of its instructions. Mistakes go to `errors`."""
    bases: list[StageBase] = []
    scopes: list[Scope] = []
    names: dict[str, int] = {}
    for stage in stages:
        here = replace(scope, stage=stage.index, forced_platform=None)
        base = StageBase(image="scratch", platform=here.platform)
        with gathered(errors):
            base = _base(stage.from_, here, names, host, findings)
        if base.stage is not None:
            here = replace(here, platform=scopes[base.stage].platform)
        elif base.platform is not None:
            here = replace(here, platform=base.platform)
        bases.append(base)
        scopes.append(here)
        if stage.name:
            names[stage.name] = stage.index
    return bases, scopes


def _base(from_: From, scope: Scope, names: Mapping[str, int], host: Platform, findings: list[Finding]) -> StageBase:
    platform = _from_platform(from_, scope, host, findings)
    found = _expand_from(from_.image, scope, findings)
    if not found.text:
        msg = f"base name ({from_.image.text}) should not be blank"
        hint = "".join(did_you_mean(name, scope.global_args) for name in sorted(found.missing))
        raise BuildError(
            msg,
            span=from_.image.span,
            source=scope.source,
            hint=hint or "give the ARG a default before the first FROM, or use --build-arg",
        )
    context = scope.contexts.get(from_.name) if from_.name else None
    if context is not None:
        return StageBase(context=context, platform=platform or scope.platform)
    if found.text in names:
        return StageBase(stage=names[found.text])
    if found.text == "scratch":
        # A scratch stage has the target's platform whatever --platform says (BuildKit, resolveReachableStages).
        return StageBase(image="scratch", platform=scope.platform)
    check_reference(found.text, from_.image.span, scope)
    context = context_named(found.text, scope)
    if context is not None:
        return StageBase(context=context, platform=platform or scope.platform)
    return StageBase(image=found.text, platform=platform or scope.platform)


def _from_platform(from_: From, scope: Scope, host: Platform, findings: list[Finding]) -> Platform | None:
    if from_.platform is None:
        return None
    found = _expand_from(from_.platform, scope, findings)
    if not found.text:
        msg = f"empty platform value from expression {from_.platform.text}"
        hint = "".join(did_you_mean(name, scope.global_args) for name in sorted(found.missing))
        raise BuildError(msg, span=from_.platform.span, source=scope.source, hint=hint)
    try:
        return parse_platform(found.text, host)
    except ValueError as error:
        msg = f"failed to parse platform {from_.platform.text}: {error}"
        raise BuildError(msg, span=from_.platform.span, source=scope.source) from None


def _expand_from(word: Word, scope: Scope, findings: list[Finding]) -> Expansion:
    try:
        found = expand_with_names(word.text, scope.global_args, scope.escape)
    except WordError as error:
        raise BuildError(f"failed to process {word.text!r}: {error}", span=word.span, source=scope.source) from None
    for name in sorted(found.missing):
        hint = did_you_mean(name, scope.global_args)
        findings.append(
            Finding("UndefinedArgInFrom", f"FROM argument '{name}' is not declared", word.span, scope.source, hint)
        )
    return found


def _target(target: str, stages: Sequence[Stage], scope: Scope) -> int:
    if not target:
        return stages[-1].index
    index = scope.names.get(target.lower())
    if index is None:
        hint = did_you_mean(target, scope.names, ignore_case=True)
        if not hint and scope.names:
            hint = f"the stages are called {', '.join(scope.names)}"
        elif not hint:
            hint = "no stage has a name; give it one with FROM ... AS NAME"
        raise BuildError(f'target stage "{target}" could not be found', source=scope.source, hint=hint)
    return index


# ---------------------------------------------------------------- edges


class _Edge(Struct, frozen=True):
    use: Use
    stage: int


def _drafts(
    stages: Sequence[Stage], bases: Sequence[StageBase], scopes: Sequence[Scope], errors: list[BuildError]
) -> list[StagePlan]:
    """Every stage with its edges, whether anything needs it or not. Mistakes and circles go to `errors`."""
    items: list[StagePlan] = []
    edges: list[list[_Edge]] = []
    for stage, base, scope in zip(stages, bases, scopes, strict=True):
        item = StagePlan(stage, base, triggers=_stage_triggers(base, items), replaced=_replaced(stage, base, scope))
        edges.append([])
        with gathered(errors):
            edges[-1] = _edges(item.instructions, scope)
        needs = {edge.stage for edge in edges[-1]} | ({base.stage} if base.stage is not None else set())
        items.append(replace(item, needs=frozenset(needs)))
    with gathered(errors):
        _check_circles(edges, scopes)
    return items


def _stage_triggers(base: StageBase, items: Sequence[StagePlan]) -> tuple[Instruction, ...]:
    """The ONBUILD instructions of the stage below; those of an image below are known only when it is there."""
    if base.stage is None or items[base.stage].replaced:
        return ()
    return tuple(item.trigger for item in items[base.stage].stage.instructions if isinstance(item, Onbuild))


def _replaced(stage: Stage, base: StageBase, scope: Scope) -> bool:
    return bool(stage.name) and base.context is not None and scope.contexts.get(stage.name) == base.context


def _edges(instructions: Iterable[Instruction], scope: Scope) -> list[_Edge]:
    """The stages that instructions take files from, be they earlier or later."""
    found: list[_Edge] = []
    errors: list[BuildError] = []
    for instruction in instructions:
        try:
            for use in uses(instruction):
                index = stage_named(use, scope)
                if index is not None:
                    found.append(_Edge(use, index))
        except BuildError as error:
            errors.append(error)
    raise_all(errors)
    return found


def _check_circles(edges: Sequence[Sequence[_Edge]], scopes: Sequence[Scope]) -> None:
    """BuildError for stages that take files from each other in a circle, needed or not."""
    done: set[int] = set()
    for start in range(len(edges)):
        path = [start]
        waiting = [iter(edges[start])]
        while waiting:
            for edge in waiting[-1]:
                if edge.stage in path:
                    raise _circle(path[path.index(edge.stage) :], edge, scopes[path[-1]])
                if edge.stage not in done:
                    path.append(edge.stage)
                    waiting.append(iter(edges[edge.stage]))
                    break
            else:
                waiting.pop()
                done.add(path.pop())


def _circle(circle: Sequence[int], edge: _Edge, scope: Scope) -> BuildError:
    if len(circle) == 1:
        try:
            check_earlier(edge.stage, edge.use, scope)
        except BuildError as error:
            return error
    titles = scope.titles
    names = " -> ".join(titles[index] for index in (*circle, edge.stage))
    msg = f"circular dependency detected on stage: {titles[circle[-1]]}"
    return BuildError(msg, span=edge.use.span, source=scope.source, hint=f"each needs the next one: {names}")


def _split(
    items: Sequence[StagePlan], target: int, scopes: Sequence[Scope], checked: Collection[int] = ()
) -> tuple[tuple[StagePlan, ...], tuple[StagePlan, ...]]:
    """The stages that the target needs, and the others. Only a needed stage may not take files from a later one.

    checked: stages whose edges are known to be right.
    """
    reached: set[int] = set()
    waiting = [target]
    errors: list[BuildError] = []
    while waiting:
        index = waiting.pop()
        if index in reached:
            continue
        reached.add(index)
        waiting.extend(items[index].needs)
        if index not in checked:
            errors += _late(items[index], scopes[index])
    raise_all(sorted(errors, key=lambda error: error.span.line if error.span else 0))
    return (
        tuple(item for item in items if item.stage.index in reached),
        tuple(item for item in items if item.stage.index not in reached),
    )


def _late(item: StagePlan, scope: Scope) -> list[BuildError]:
    found = []
    for edge in _edges(item.instructions, scope):
        try:
            check_earlier(edge.stage, edge.use, scope)
        except BuildError as error:
            found.append(error)
    return found

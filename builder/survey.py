"""What can be said of a build without building: its warnings, its parameters, its targets.

`examine` serves a build that is prepared already; `survey` serves `--call`, which must also work where bases are
missing and for stages that nothing needs. Both move no bytes but those of bases that the store takes in. `glance`
serves `pybuild lint`: it asks for no base and no store, and makes the best of a file that can not be built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from builder import bases, handlers, lint
from builder.epoch import plan_of
from builder.errors import BuildError, BuildErrors, raise_all
from builder.model import Plan
from builder.plan import with_triggers
from grammar.source import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from builder.bases import BaseImage
    from builder.context import Contexts
    from builder.engine import StageWork
    from builder.lint.settings import Settings
    from builder.model import BuildRequest, Finding, StageState
    from cache.store import Store
    from grammar.ignore import Ignore
    from grammar.instructions import Dockerfile
    from grammar.source import Source


class Examined(Struct, frozen=True):
    """The warnings about a build. findings: of the checks, by their names. notes: about the command line and the rest.

    error: the file asks for findings to be errors. raw, looked: what rules on the syntax found before it was judged,
    and which rules looked, where there are settings.
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    error: bool = False
    raw: tuple[Finding, ...] = ()
    looked: frozenset[str] = frozenset()

    @property
    def all(self) -> tuple[Finding, ...]:
        """All of them, in the order in which they are told."""
        return (*self.findings, *self.notes)

    def enforce(self) -> None:
        """BuildError when a finding counts as an error."""
        checks = {rule.name for rule in lint.RULES}
        names = ", ".join(dict.fromkeys(finding.rule for finding in self.findings if finding.rule in checks))
        if self.error and names:
            hint = "error=true in `# check=` makes errors of them; skip=RULE there leaves one out"
            raise BuildError(f"lint violation found for rules: {names}", hint=hint)


class Survey(Struct, frozen=True):
    """A build file looked at as a whole. failure: what keeps it from being built, if anything does.

    unknown: bases that were not to be had, so that nobody knows what they define.
    """

    plan: Plan | None
    stages: tuple[lint.LintStage, ...] = ()
    examined: Examined = Examined()
    failure: BuildError | DockerfileError | None = None
    unknown: tuple[str, ...] = ()


def examine(made: Plan, work: Iterable[StageWork], contexts: Contexts, settings: Settings | None = None) -> Examined:
    """The warnings about a prepared build. BuildError when its check settings can not be read.

    settings: every rule on the syntax looks, and what counts is as they say; None for BuildKit's checks alone.
    """
    stages = tuple(
        lint.LintStage(item.plan, item.first, item.lowered, item.base.config if item.base else None) for item in work
    )
    return _examined(lint.Subject(made, stages, ignore_of(contexts)), settings)


def ignore_of(contexts: Contexts) -> Ignore | None:
    """The rules of the main context's ignore file; None when there is none."""
    ignore: Ignore | None = getattr(contexts.files(), "ignore", None)
    return ignore


def _examined(subject: lint.Subject, wanted: Settings | None = None) -> Examined:
    made = subject.plan
    settings = settings_of(made)
    known = {rule.name for rule in lint.RULES}
    lowered = (finding for stage in subject.stages for each in stage.lowered for finding in each.findings)
    notes = tuple(finding for finding in (*made.findings, *lowered) if finding.rule not in known)
    if wanted is None:
        return Examined(tuple(lint.run(subject, settings)), notes, settings.error)
    from builder.lint.settings import judge

    raw, looked = lint.look(subject, wanted, settings, built=True)
    errors = lint.RULES if settings.error else ()
    # What silences nothing is known only once the layers have been looked at.
    judged = judge(
        raw, wanted, made.dockerfile, ran=(), known=lint.known(), errors=[rule.name for rule in errors], unused=False
    )
    return Examined(tuple(judged), notes, settings.error, tuple(raw), looked)


def settings_of(made: Plan) -> lint.Settings:
    """What `# check=`, or the build argument in its place, says. BuildError when that can not be read."""
    given = dict(made.build_args).get(lint.CHECK)
    try:
        return lint.Settings.parse(made.dockerfile.directives.check if given is None else given)
    except ValueError as error:
        raise BuildError(f"--build-arg {lint.CHECK}: {error}", hint="write skip=RULE,RULE;error=true") from None


def survey(request: BuildRequest, store: Store, contexts: Contexts, *, everything: bool) -> Survey:
    """Look at a request's file, at every stage or at those that the target needs. Mistakes are in the answer."""
    from grammar.parser import parse

    try:
        dockerfile = parse(contexts.source)
    except DockerfileError as error:
        return Survey(None, failure=error)
    named = dict(request.build_contexts)
    try:
        made = plan_of(request, dockerfile, contexts)
    except BuildError as error:
        return Survey(None, examined=_without_plan(dockerfile, request, contexts), failure=error)
    found: dict[int, BaseImage | None] = {}
    unknown: dict[int, str] = {}
    errors: list[BuildError] = []
    while True:
        wanted = _all_of(made) if everything else made
        missing = [s for s in wanted.stages if s.base.stage is None and s.stage.index not in found]
        if not missing:
            break
        for stage in missing:
            index = stage.stage.index
            name = stage.base.context if stage.base.context is not None else stage.base.image
            try:
                found[index] = bases.resolve(name, stage.base.platform or made.platform, named, store, contexts.files)
            except BuildError:
                found[index] = None
                unknown[index] = name
            base = found[index]
            try:
                for source, trigger in handlers.image_triggers(base.config if base else None, name):
                    made = with_triggers(made, index, [trigger], source)
            except BuildError as error:
                errors.append(error)
    made = wanted
    stages, wrong = _lowered(made, found, unknown)
    failure = _one([*errors, *wrong])
    examined = _examined(lint.Subject(made, stages, ignore_of(contexts)))
    return Survey(made, stages, examined, failure, tuple(dict.fromkeys(unknown.values())))


def _all_of(made: Plan) -> Plan:
    """The plan with every stage of the file in it."""
    stages = sorted((*made.stages, *made.unused), key=lambda item: item.stage.index)
    return replace(made, stages=tuple(stages), unused=())


def _lowered(
    made: Plan, found: dict[int, BaseImage | None], unknown: dict[int, str]
) -> tuple[tuple[lint.LintStage, ...], list[BuildError]]:
    """Every planned stage that can be lowered, and what is wrong with the others."""
    done: dict[int, lint.LintStage] = {}
    states: dict[int, StageState] = {}
    errors: list[BuildError] = []
    for stage in sorted(made.stages, key=lambda item: item.stage.index):
        index, below = stage.stage.index, stage.base.stage
        scope = made.scope(index)
        base = found.get(index)
        if below is None:
            first = handlers.initial_state(base.config if base else None, scope)
        elif below in states:
            first = handlers.inherited_state(states[below], scope)
        else:
            continue
        lowered = handlers.lower_all(stage.instructions, first, scope, stage.trigger_sources, errors)
        known = index not in unknown if below is None else done[below].known
        states[index] = lowered[-1].state if lowered else first
        done[index] = lint.LintStage(stage, first, lowered, base.config if base else None, known)
    return tuple(done.values()), errors


class Glance(Struct, frozen=True):
    """A build file as its text alone shows it. failures: what keeps it from being built, in the order of the lines.

    checks: what `# check=` asks for.
    """

    subject: lint.Subject
    failures: tuple[BuildError | DockerfileError, ...] = ()
    checks: lint.Settings = lint.Settings()


def glance(
    request: BuildRequest, contexts: Contexts, source: Source | None = None, ignore: Ignore | None = None
) -> Glance:
    """Look at every stage of a request's file without any base. Mistakes are in the answer, also those of words.

    source, ignore: looked at instead of the file and the ignore file that are there.
    """
    from grammar.parser import parse_through

    dockerfile, mistakes = parse_through(source or contexts.source)
    failures: list[BuildError | DockerfileError] = list(mistakes)
    made = Plan(dockerfile=dockerfile, stages=(), target=0, build_args=request.build_args)
    stages: tuple[lint.LintStage, ...] = ()
    if not mistakes:
        try:
            made = _all_of(plan_of(request, dockerfile, contexts))
            unknown = {
                stage.stage.index: stage.base.image or str(stage.base.context)
                for stage in made.stages
                if stage.base.stage is None and stage.base.image != "scratch"
            }
            stages, wrong = _lowered(made, {}, unknown)
            failures += wrong
        except BuildError as error:
            failures.append(error)
    try:
        checks = settings_of(made)
    except BuildError as error:
        checks = lint.Settings()
        if not mistakes:
            failures.append(error)
    flat = [one for error in failures for one in getattr(error, "errors", (error,))]
    flat.sort(key=lambda error: error.span.line if error.span else 0)
    files = contexts.files()
    names = tuple(entry.path.decode("utf-8", "surrogateescape") for entry in files.children(b""))
    if ignore is not None:
        names = tuple(name for name in names if not ignore.match(name))
    subject = lint.Subject(made, stages, ignore or ignore_of(contexts), names, partial=bool(flat))
    return Glance(subject, tuple(flat), checks)


def _one(errors: list[BuildError]) -> BuildError | None:
    try:
        raise_all(errors)
    except BuildErrors as several:
        return several
    except BuildError as error:
        return error
    return None


def _without_plan(dockerfile: Dockerfile, request: BuildRequest, contexts: Contexts) -> Examined:
    """What the text alone tells, where no plan can be made of it."""
    bare = Plan(dockerfile=dockerfile, stages=(), target=0, build_args=request.build_args)
    return _examined(lint.Subject(bare, (), ignore_of(contexts)))

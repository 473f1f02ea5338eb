"""A build from its request to its outputs: read, plan, lower, check, perform, name, export.

Everything up to `perform` moves no bytes: a mistake that can be seen in the text, in the arguments or in the lists of
files is an error before the first step.
"""

from __future__ import annotations

import io
import itertools
import os
import time
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

from msgspec.structs import replace

import grammar
from builder import bases, handlers
from builder.context import is_image, open_contexts
from builder.engine import Engine, StageWork, Work
from builder.epoch import plan_of
from builder.errors import BuildError, CancelledError, DamagedError, gathered, raise_all
from builder.events import BuildFinished, BuildPlanned, ExportFinished, ExportStarted, Inspected, Warned
from builder.handlers import files
from builder.model import BuildResult, CacheUse, FileStep, Finding, ImageResult, Origin, Supplies
from builder.plan import KEEP_GIT_DIR, truth, with_triggers
from builder.survey import examine, settings_of
from cache.digests import Digests
from cache.errors import CorruptError
from cache.index import Index
from cache.oci import MAX_LAYERS, MOST_MOUNTED, digest_of
from cache.reference import Reference
from grammar.instructions import Dockerfile
from grammar.source import Source

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from builder.bases import BaseImage
    from builder.context import Contexts
    from builder.engine import Ground
    from builder.events import Reporter
    from builder.fetch import Fetcher
    from builder.model import BuildRequest, OutputSpec, Plan, StageState
    from builder.registries import Registries
    from builder.survey import Examined
    from cache.oci import Platform
    from cache.remote import Remotes
    from cache.store import Image, Store
    from grammar.source import Span


def build(
    request: BuildRequest,
    *,
    store: Store,
    isolation: Ground,
    report: Reporter,
    stop: threading.Event,
    stdin: BinaryIO | None = None,
    registries: Callable[[], Registries] | None = None,
) -> BuildResult:
    """Build what was asked for and say what came out; the image and its names are in the store then.

    registries: called when one is needed, to pull a base or to push; None: the build keeps to the store. stop: set it
    to end the build; CancelledError is raised soon after. stdin: where a context or a Dockerfile called `-` is read
    from. Raises DockerfileError, BuildError or StoreError; then no name has moved and no output is half-written.
    """
    started = time.monotonic()
    _check_outputs(request)
    with (
        store.lease(),
        open_request(request, store, stdin) as contexts,
        _caches(request, store, report, registries, stop) as remotes,
    ):
        made, work = prepare(request, store, contexts, remote_of(request, store, registries, report, stop, remotes))
        examined = examine(made, work.stages, contexts, request.lint.settings)
        findings = examined.all
        for finding in findings:
            report(Warned(finding))
        examined.enforce()
        report(BuildPlanned(made, tuple((stage.plan.stage.index, stage.total) for stage in work.stages)))
        references = _references(request)
        names = tuple(reference.full for reference in references)

        def put_out(engine: Engine) -> tuple[ImageResult, list[Finding]]:
            image = engine.image(made.target, intermediate=request.squash)
            if request.squash:
                image = _squashed(image, store, exact=made.epoch is not None)
            found: list[Finding] = []
            if request.lint.layers or request.lint.budget:
                found = _inspect(image, engine, made, work, request, store, report, examined)
            for spec in request.outputs:
                _export(image, spec, names, store, report, registries, stop)
            return image, found

        engine, image, found = _carried_out(work, request, store, isolation, report, stop, remotes, put_out)
        findings = (*findings, *found)
        if engine.is_whole(made.target):
            for reference in references:
                store.tag(reference, image.id)
        if remotes is not None:
            remotes.adopt()
        if remotes is not None and any(place.type != "inline" for place in request.cache_to):
            _finish(remotes, request, report, stop)
    steps, cached = engine.counts()
    result = BuildResult(image, names, steps, cached, time.monotonic() - started, findings, engine.written)
    report(BuildFinished(result))
    return result


def _inspect(
    image: ImageResult,
    engine: Engine,
    made: Plan,
    done: Work,
    request: BuildRequest,
    store: Store,
    report: Reporter,
    examined: Examined,
) -> list[Finding]:
    """Look at the layers of what was built, and return what is new. BuildError when a finding is to be an error."""
    from builder import lint
    from builder.inspection import subject_of, unused_context
    from builder.lint import layers
    from builder.lint.efficiency import efficiency
    from builder.lint.settings import Settings, judge

    use = request.lint
    # A squashed layer is no one instruction's.
    work = None if request.squash else engine.trail(made.target)
    unused = unused_context(done.stages, done.contexts, made.dockerfile.source) if use.layers else ()
    subject = subject_of(image, store, work=work, budget=use.budget, unused=unused)
    rules = layers.RULES if use.layers else [rule for rule in layers.RULES if rule.demanded]
    demanded = {rule.name for rule in rules if rule.demanded}
    before = examined.findings
    if use.settings is None:
        found = layers.examine(subject, settings_of(made), rules)
    else:
        checks = [rule.name for rule in lint.RULES] if examined.error else []
        judged = judge(
            [*examined.raw, *layers.examine(subject, None, rules)],
            use.settings,
            made.dockerfile,
            ran={*examined.looked, *(rule.name for rule in rules)},
            known=lint.known(),
            errors=checks,
            always=demanded,
        )
        found = [finding for finding in judged if finding not in before]
    for finding in found:
        report(Warned(finding))
    if use.layers:
        report(Inspected(efficiency(subject)))
    settings = use.settings or Settings()
    failing = [
        finding.rule
        for finding in (*before, *found)
        if finding.rule in demanded or (use.error and settings.fails([finding]))
    ]
    if failing:
        names = ", ".join(dict.fromkeys(failing))
        hint = "the image is in the store without a name"
        raise BuildError(f"lint violation found for rules: {names}; no name was given and nothing written", hint=hint)
    return found


@contextmanager
def _caches(
    request: BuildRequest,
    store: Store,
    report: Reporter,
    registries: Callable[[], Registries] | None,
    stop: threading.Event,
) -> Iterator[Remotes | None]:
    """The caches that the request names; None where it names none."""
    if not request.cache_from and not request.cache_to:
        yield None
        return
    from builder.sharing import open_caches

    with open_caches(request, store, report, registries, stop.is_set) as remotes:
        try:
            yield remotes
        except CancelledError:
            remotes.drop()
            raise


def _is_kept(request: BuildRequest) -> bool:
    """Whether all bytes of the image are wanted here."""
    elsewhere = {"cacheonly", "registry"}
    if request.lint.layers or request.lint.budget:
        return True  # to be looked into
    if request.squash or not request.outputs or any(spec.type not in elsewhere for spec in request.outputs):
        return True
    # A name is for the store, unless it says where to push to.
    return bool(request.tags) and all(spec.type != "registry" for spec in request.outputs)


def _carried_out(
    work: Work,
    request: BuildRequest,
    store: Store,
    ground: Ground,
    report: Reporter,
    stop: threading.Event,
    remotes: Remotes | None,
    put_out: Callable[[Engine], tuple[ImageResult, list[Finding]]],
) -> tuple[Engine, ImageResult, list[Finding]]:
    """The build, carried out and put out, with the bytes of the target's layers in the store where they are wanted.

    A layer that was found elsewhere, counted on and then lost makes it begin anew, without that layer; what was done
    until then is in the cache.
    """
    numbers = itertools.count(1)
    inline = any(place.type == "inline" for place in request.cache_to)
    while True:
        lost = remotes.lost if remotes is not None else 0
        engine = Engine(
            work, store=store, ground=ground, report=report, stop=stop, remotes=remotes, numbers=numbers, inline=inline
        )
        try:
            engine.run()
            if remotes is not None and _is_kept(request):
                remotes.complete(engine.layers(work.target))
            return engine, *put_out(engine)
        except CancelledError:
            raise
        except Exception:
            if remotes is None or remotes.lost == lost:
                raise
            stop.clear()


def _finish(remotes: Remotes, request: BuildRequest, report: Reporter, stop: threading.Event) -> None:
    """Wait until the caches have got what they were offered, and what lies in cache mounts."""
    what = "cache " + ", ".join(dict.fromkeys(place.place for place in request.cache_to if place.place))
    report(ExportStarted(what))
    started = time.monotonic()
    remotes.save(stop.is_set)
    if not remotes.finish():
        raise CancelledError("the build was stopped")
    from builder.sharing import trim

    trim(request)
    report(ExportFinished(what, time.monotonic() - started, remotes.traffic.sent))


def _check_outputs(request: BuildRequest) -> None:
    """Say before the build what of the outputs can not be done after it."""
    for spec in request.outputs:
        from builder.export import check

        check(spec, request.tags)


def _references(request: BuildRequest) -> list[Reference]:
    """The names that the image gets in the store."""
    found = [Reference.parse(tag) for tag in request.tags]
    for spec in request.outputs:
        from builder.export import names_of

        found += names_of(spec)
    return list(dict.fromkeys(found))


def _squashed(image: ImageResult, store: Store, *, exact: bool) -> ImageResult:
    """The image with one layer above its base, in the store; the other one becomes what it was made of."""
    from builder.assembly import squashed
    from cache.compression import Compression
    from cache.squash import squash

    layers = squash(store, image.layers, image.inherited, Compression("gzip", exact=exact))
    config = squashed(image, layers)
    made = store.put_image(config, layers, parent=image.id)
    return ImageResult(made.id, config, layers, made.manifest, image.inherited)


def _export(
    image: ImageResult,
    spec: OutputSpec,
    names: Sequence[str],
    store: Store,
    report: Reporter,
    registries: Callable[[], Registries] | None,
    stop: threading.Event,
) -> None:
    from builder.export import export

    export(image, spec, names, store, report, registries, stop)


def remote_of(
    request: BuildRequest,
    store: Store,
    registries: Callable[[], Registries] | None,
    report: Reporter,
    stop: threading.Event | None = None,
    remotes: Remotes | None = None,
) -> bases.Remote | None:
    """Where the build gets bases that the store has not, as `--pull` has it; each is asked for once. None: nowhere.

    remotes: have the layers of a base when their bytes are wanted; without them they are pulled at once.
    """
    if registries is None or request.pull == "never":
        return None
    if remotes is not None:
        from builder.sharing import glancing

        glance = glancing(registries, store, remotes)
    else:
        glance = None
    pulled: dict[tuple[Reference, Platform], Image] = {}

    def pull(reference: Reference, platform: Platform) -> Image:
        from builder import transfers

        key = (reference, platform)
        if key not in pulled:
            place = transfers.Place(reference, registries().get(reference.registry))
            done = transfers.pull(place, platform, store=store, report=report, stop=stop, strict=False)
            pulled[key] = done.image
        return pulled[key]

    return bases.Remote(pull, request.pull == "always", glance)


def open_request(request: BuildRequest, store: Store, stdin: BinaryIO | None) -> Contexts:
    """The contexts of a request and its Dockerfile's text."""
    return open_contexts(
        request.context,
        request.file,
        stdin or io.BytesIO(),
        named=request.build_contexts,
        digests=Digests(store.database),
        fetcher=_fetcher(request, store),
        ignore_file=request.ignore_file,
        keep_git_dir=truth(dict(request.build_args), KEEP_GIT_DIR),
    )


def _fetcher(request: BuildRequest, store: Store) -> Callable[[], Fetcher]:
    """What makes the build's fetcher, once, when something is to be fetched."""
    sources = {source.id: source for source in request.secrets}

    def secret(name: str) -> bytes | None:
        source = sources.get(name)
        return None if source is None else source.read()

    @cache
    def make() -> Fetcher:
        from builder.fetch import Fetcher

        return Fetcher(store.root / "fetched", secret)

    return make


def parsed(source: Source, store: Store) -> Dockerfile:
    """The build file, parsed; remembered by its text, so that only a changed one costs the grammar.

    What is read back is checked against the types of `grammar.instructions`. DockerfileError for a file with mistakes.
    """
    from msgspec import DecodeError, json, structs

    index = Index(store.database)
    text = source.text.encode("utf-8", "surrogateescape")
    identity = f"{_grammar_stamp()} {digest_of(text)}"
    known = index.memo("build file", identity)
    if known is not None:
        # A damaged record is one that is not there.
        with suppress(DecodeError):
            return structs.replace(json.decode(known, type=Dockerfile), source=source)
    from grammar.parser import parse

    dockerfile = parse(source)
    # Names that are no UTF-8 have no place in JSON; such a file is parsed each time.
    with suppress(UnicodeEncodeError):
        bare = structs.replace(dockerfile, source=Source(source.name, ""))
        index.memoise("build file", identity, json.encode(bare).decode())
    return dockerfile


def _grammar_stamp() -> str:
    """What changes when the grammar does: an edited checkout must not be given an older one's parse."""
    folder = os.path.dirname(grammar.__file__)
    facts = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder) if entry.is_file())
    return digest_of(repr(facts).encode())


def prepare(
    request: BuildRequest, store: Store, contexts: Contexts, remote: bases.Remote | None = None
) -> tuple[Plan, Work]:
    """Plan, lower and check; changes nothing but that bases come into the store.

    remote: where bases are got that it has not. Raises BuildError, or BuildErrors: mistakes of one kind do not hide
    those of another.
    """
    made = plan_of(request, parsed(contexts.source, store), contexts)
    named = dict(request.build_contexts)
    errors: list[BuildError] = []
    made, found = _with_bases(made, named, store, contexts, errors, remote)
    stages = lower_stages(made, found, errors)
    images = _images(stages, made, named, store, errors, remote)
    check_steps(stages, contexts, images, errors)
    check_layers(stages, made, contexts, errors, squash=request.squash)
    raise_all(errors)
    made = _with_unmet_filters(made, request)
    supplies = Supplies(request.run, request.secrets, request.ssh)
    fresh = None if request.no_cache else frozenset(name.lower() for name in request.no_cache_filter)
    use = _cache_use(made, request)
    return made, Work(stages, made.target, contexts, images, request.labels, fresh, made.epoch, supplies, use)


def _cache_use(made: Plan, request: BuildRequest) -> CacheUse:
    """What was asked of the cache, in the plan's own words. BuildError for a stage or a line that is not there."""
    from grammar.suggest import did_you_mean

    use = request.cache
    titles = made.scope(made.target).titles
    for name in sorted(use.required or ()):
        if name.lower() not in titles:
            raise BuildError(f"--require-cache={name}: no stage is called so", hint=did_you_mean(name, titles))
    lines = made.dockerfile.source.text.count("\n") + 1
    if use.from_line > lines:
        raise BuildError(f"--no-cache-from {use.from_line}: {made.dockerfile.source.name} has {lines} lines")
    return replace(use, required=use.required and frozenset(name.lower() for name in use.required))


def _with_unmet_filters(made: Plan, request: BuildRequest) -> Plan:
    """The plan, with a finding for each --no-cache-filter that no stage is called by."""
    from grammar.suggest import did_you_mean

    titles = made.scope(made.target).titles
    found = [
        Finding("UnknownStage", f"--no-cache-filter {name}: no stage is called so", hint=did_you_mean(name, titles))
        for name in sorted(request.no_cache_filter)
        if name.lower() not in titles
    ]
    return replace(made, findings=(*made.findings, *found)) if found else made


def _with_bases(
    made: Plan,
    named: dict[str, str],
    store: Store,
    contexts: Contexts,
    errors: list[BuildError],
    remote: bases.Remote | None,
) -> tuple[Plan, dict[int, BaseImage | None]]:
    """The base image of every planned stage that has one, by the stage's index; None for scratch.

    One that is not to be had is left out, and what is wrong with it goes to `errors`, once for each name. Triggers of
    bases may bring further stages into the plan, which then want their bases, too.
    """
    found: dict[int, BaseImage | None] = {}
    seen: dict[tuple[str, Platform], BaseImage | None] = {}
    asked: set[int] = set()
    lost: set[tuple[str, Platform]] = set()
    while True:
        missing = [s for s in made.stages if s.base.stage is None and s.stage.index not in asked]
        if not missing:
            return made, found
        for stage in missing:
            index = stage.stage.index
            wanted = stage.base.context if stage.base.context is not None else stage.base.image
            name = (wanted, stage.base.platform or made.platform)
            asked.add(index)
            if name not in seen and name not in lost:
                lost.add(name)
                with gathered(errors), _told_at(stage.stage.from_.image.span, made.dockerfile.source, wanted, made):
                    seen[name] = bases.resolve(*name, named, store, contexts.files, remote)
                    lost.remove(name)
            if name in lost:
                continue
            base = found[index] = seen[name]
            with gathered(errors):
                for source, trigger in handlers.image_triggers(base.config if base else None, wanted):
                    made = with_triggers(made, index, [trigger], source)


def _images(
    stages: tuple[StageWork, ...],
    made: Plan,
    named: dict[str, str],
    store: Store,
    errors: list[BuildError],
    remote: bases.Remote | None,
) -> dict[str, BaseImage | None]:
    """The images that COPY --from and mounts name. A context that is files and no image is none of them."""
    found: dict[str, BaseImage | None] = {}
    for stage in stages:
        for lowered in stage.lowered:
            for origin in _origins(lowered.step):
                name = origin.image
                if origin.context and is_image(named[origin.context]):
                    name = origin.context
                if name is not None and name not in found:
                    found[name] = None
                    with gathered(errors), _told_at(lowered.instruction.span, lowered.source, name, made):
                        found[name] = bases.resolve(name, made.platform, named, store, remote=remote)
    return found


@contextmanager
def _told_at(span: Span, source: Source | None, wanted: str, made: Plan) -> Iterator[None]:
    """Give the errors of an image that can not be had their place, and the name of the stage that may be meant."""
    try:
        yield
    except CorruptError as error:
        raise DamagedError(error.message, span=span, source=source, hint=error.hint) from error
    except BuildError as error:
        from grammar.suggest import did_you_mean

        error.span = error.span or span
        error.source = error.source or source
        stages = [stage.name for stage in made.dockerfile.stages if stage.name]
        error.hint = did_you_mean(wanted, stages, prefix="the stage ") or error.hint
        raise


def lower_stages(made: Plan, found: dict[int, BaseImage | None], errors: list[BuildError]) -> tuple[StageWork, ...]:
    """Every planned stage whose base is there lowered, in the plan's order. Pure. Mistakes go to `errors`."""
    work: list[StageWork] = []
    states: dict[int, StageState] = {}
    for stage in made.stages:
        index = stage.stage.index
        scope = made.scope(index)
        base = found.get(index)
        if stage.base.stage is not None:
            if stage.base.stage not in states:
                continue  # its base is not there, which is told
            first = handlers.inherited_state(states[stage.base.stage], scope)
        elif index in found:
            first = handlers.initial_state(base.config if base else None, scope)
        else:
            continue
        lowered = handlers.lower_all(stage.instructions, first, scope, stage.trigger_sources, errors)
        item = StageWork(stage, base, first, lowered)
        states[index] = item.state
        work.append(item)
    return tuple(work)


def check_steps(
    work: tuple[StageWork, ...], contexts: Contexts, images: dict[str, BaseImage | None], errors: list[BuildError]
) -> None:
    """What can be found wrong before anything runs goes to `errors`: sources that are not there."""
    for stage in work:
        for lowered in stage.lowered:
            step = lowered.step
            if isinstance(step, FileStep) and step.origin.context is not None and step.origin.context not in images:
                with gathered(errors):
                    files.check(step, contexts.files(step.origin.context), source=lowered.source)


def check_layers(
    work: tuple[StageWork, ...], made: Plan, contexts: Contexts, errors: list[BuildError], *, squash: bool
) -> None:
    """A stage that would have too many layers goes to `errors`, the lowest of a chain of stages only.

    squash: the target's own layers become one, so its chain may have as many as can be mounted.
    """
    counts: dict[int, int] = {}
    chain: set[int | None] = set()
    at: int | None = made.target if squash else None
    bases = {stage.plan.stage.index: stage.plan.base.stage for stage in work}
    while at is not None and at in bases:
        chain.add(at)
        at = bases[at]
    for stage in work:
        index, below = stage.plan.stage.index, stage.plan.base.stage
        steps = sum(lowered.step is not None for lowered in stage.lowered)
        inherited = len(stage.base.layers) if stage.base else counts.get(below, 0) if below is not None else 0
        counts[index] = inherited + steps
        limit = MOST_MOUNTED if index in chain else MAX_LAYERS
        if counts[index] > limit and (below is None or inherited <= limit):
            errors.append(
                BuildError(
                    f"stage {stage.plan.title} would have {counts[index]} layers"
                    + (f", {inherited} of them from {stage.plan.stage.from_.image.text}; " if inherited else "; ")
                    + ("overlayfs mounts" if index in chain else "docker takes")
                    + f" no more than {limit}",
                    span=stage.plan.stage.from_.span,
                    source=contexts.source,
                    hint="join RUN instructions, copy the result into a fresh stage"
                    + ("" if index in chain else ", or build with --squash"),
                )
            )


def _origins(step: object) -> list[Origin]:
    if isinstance(step, FileStep):
        return [step.origin]
    return [origin for mount in getattr(step, "mounts", ()) if (origin := getattr(mount, "origin", None)) is not None]

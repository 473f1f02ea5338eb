"""The engine: ensure each stage, each step looked up by its key or performed, committed, recorded, told.

It knows two kinds of steps and not eighteen instructions, and nothing of how they were asked for: `build` prepares the
work, and this is only carrying it out. Stages are threads, each waiting for the stages it needs; within a stage, order
is the language's own meaning.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from builder.assembly import Made, assemble
from builder.context import Directory
from builder.errors import BuildError, CancelledError
from builder.events import StepFailed, StepFinished, StepMissed, StepOutput, StepStarted, TierChosen
from builder.handlers import files as file_steps
from builder.handlers import run as run_steps
from builder.handlers.base import DEFAULT_SHELL
from builder.handlers.expansion import looks_secret
from builder.model import (
    BindMount,
    CacheUse,
    FileStep,
    GitSource,
    ImageResult,
    Origin,
    PathSource,
    RunStep,
    SecretMount,
    Supplies,
    UrlSource,
)
from cache.claims import Claim
from cache.errors import LostError, StoreError
from cache.index import Fate, Index, Place, Record, key
from cache.oci import canonical, chain_ids, digest_of
from cache.reasons import Why

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from builder.bases import BaseImage
    from builder.context import Contexts
    from builder.events import Reporter
    from builder.executors import Executor
    from builder.fetch import Fetcher
    from builder.model import Lowered, StagePlan, StageState
    from builder.runner import Runner
    from cache.entries import Files
    from cache.layers import Written
    from cache.oci import Digest, ImageConfig, Layer
    from cache.reasons import Part
    from cache.remote import Found, Remotes
    from cache.snapshots import Snapshots
    from cache.store import Store


class Ground(Protocol):
    """Where RUNs can run; see `builder.isolation`."""

    @property
    def tier(self) -> str:
        """Its name."""
        ...

    @property
    def reason(self) -> str:
        """Why this one and no better one."""
        ...

    @property
    def shared(self) -> str:
        """Why RUNs share this machine's network, or empty when they do not."""
        ...

    def executor(self) -> Executor:
        """A new executor, to be closed."""
        ...

    def snapshots(self, store: Store) -> Snapshots:
        """The snapshots that its executor can mount."""
        ...


class StageWork(Struct, frozen=True):
    """A stage with all its instructions lowered: triggers of the base first, then its own."""

    plan: StagePlan
    base: BaseImage | None
    first: StageState
    lowered: tuple[Lowered, ...]

    @property
    def state(self) -> StageState:
        """The state after the last instruction."""
        return self.lowered[-1].state if self.lowered else self.first

    @property
    def total(self) -> int:
        """How many steps progress counts; FROM is the first."""
        return 1 + sum(lowered.step is not None for lowered in self.lowered)


class Tally(Struct):
    """What the builds for several platforms of one file have in common.

    numbers: what events call steps by. fates: how each fared. done: keys of the steps that were done anew, which are
    not done again for the next platform, whatever is asked of the cache.
    """

    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    fates: dict[int, Fate] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


class Work(Struct, frozen=True):
    """All that is carried out, and what it draws on.

    stages: in the plan's order. images: those that FROM, COPY --from and mounts name, by that name. labels: of the
    command line, for the target. fresh: titles of stages whose steps are not looked up, None for all. epoch: the time
    of everything that is made, in seconds, None for now. label: what stands before the names of stages, to tell one
    platform's from another's.
    """

    stages: tuple[StageWork, ...]
    target: int
    contexts: Contexts
    images: Mapping[str, BaseImage | None]
    labels: tuple[tuple[str, str], ...] = ()
    fresh: frozenset[str] | None = frozenset()
    epoch: int | None = None
    supplies: Supplies = field(default_factory=Supplies)
    cache: CacheUse = CacheUse()
    label: str = ""
    tally: Tally = field(default_factory=Tally)


class StageRun(Struct):
    """A stage while it is built. `done` is set when it ended, one way or the other.

    base: the config it stands on. dirty: some step was not in the cache. far: some step came from a cache elsewhere.
    origin: which, of the step at hand. parent: the last intermediate image. changed: the last step that was not in the
    cache, of this stage or of those that it stands on. inherited: so many of the layers came with the image that it, or
    the stage below, stands on. written: bytes of layers, uncompressed.
    """

    work: StageWork
    inherited: int = 0
    base: ImageConfig | None = None
    config: ImageConfig | None = None
    layers: tuple[Layer, ...] = ()
    made: list[Made] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    cached: int = 0
    steps: int = 0
    dirty: bool = False
    far: bool = False
    origin: str = ""
    parent: Digest | None = None
    changed: str = ""
    written: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class Engine:
    """One build's moving parts; it lives for one call of `run`.

    remotes: caches outside the store, looked into after its own. inline: the image carries the records of its steps.
    """

    def __init__(
        self,
        work: Work,
        *,
        store: Store,
        ground: Ground,
        report: Reporter,
        stop: threading.Event,
        remotes: Remotes | None = None,
        inline: bool = False,
    ) -> None:
        self._work = work
        self._remotes = remotes
        self._inline = inline
        self._store = store
        self._ground = ground
        self._report = report
        self._stop = stop
        self._index = Index(store.database)
        self._stages = {item.plan.stage.index: StageRun(item) for item in work.stages}
        self._numbers = work.tally.numbers
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._made_runner: Runner | None = None
        self._fates = work.tally.fates
        self._selections: dict[FileStep, list[Part]] = {}
        self._titles = frozenset(
            lowered.title for stage in work.stages for lowered in stage.lowered if lowered.step is not None
        )

    # ------------------------------------------------------------ stages

    def run(self) -> None:
        """Build every stage; raises the first failure after all stages have ended."""
        try:
            if len(self._stages) == 1:
                self._guard(*self._stages.values())
            else:
                threads = [
                    threading.Thread(target=self._guard, args=(stage,), name=stage.work.plan.title)
                    for stage in self._stages.values()
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            if self._made_runner is not None:
                self._made_runner.close()
            # Notes for later; that they can not be written is no reason for the build to fail.
            with contextlib.suppress(StoreError):
                self._index.keep_build(self._work.contexts.name, [self._fates[n] for n in sorted(self._fates)])
                self._index.settle()
        if self._failure is not None:
            raise self._failure

    def _guard(self, stage: StageRun) -> None:
        """Build one stage; the first failure of any stage stops the others."""
        try:
            for index in sorted(stage.work.plan.needs):
                self._stages[index].done.wait()
            if self._failure is None:
                self._build_stage(stage)
        except BaseException as error:
            with self._lock:
                if self._failure is None:
                    self._failure = error
            self._stop.set()
        finally:
            stage.done.set()

    def _build_stage(self, stage: StageRun) -> None:
        """Do every instruction of a stage, in order."""
        base_config, stage.layers = self._base_of(stage)
        stage.base = base_config
        last = None
        if stage.work.lowered and stage.work.plan.stage.index == self._work.target:
            last = stage.work.lowered[-1]
        for lowered in stage.work.lowered:
            if lowered.step is None:
                stage.made.append(Made(lowered))
            else:
                self._do(stage, lowered)
            # The target's last instruction leaves the image itself.
            if stage.dirty and lowered is not last and self._has(stage.layers):
                self._leave_intermediate(stage)
        stage.config = self._config(stage)

    def _has(self, layers: tuple[Layer, ...]) -> bool:
        """Whether the store has the bytes of all these layers, none of them lying elsewhere."""
        return self._remotes is None or all(self._store.holds(layer.descriptor) for layer in layers)

    def _base_of(self, stage: StageRun) -> tuple[ImageConfig | None, tuple[Layer, ...]]:
        below = stage.work.plan.base.stage
        if below is not None:
            other = self._stages[below]
            stage.inherited = other.inherited
            stage.changed = other.changed
            return other.config, other.layers
        if stage.work.base is None:
            return None, ()
        stage.inherited = len(stage.work.base.layers)
        return stage.work.base.config, stage.work.base.layers

    def _config(self, stage: StageRun) -> ImageConfig:
        """The stage's image config. Its time is that of the first build that gave this very content.

        A rebuild that changes nothing so keeps the image's id, as docker's cache does, on another machine, too.
        """
        state = stage.work.state
        labels = self._work.labels if stage.work.plan.stage.index == self._work.target else ()
        if self._work.epoch is not None:
            return assemble(stage.base, state, stage.made, labels=labels, created=self._work.epoch, fixed=True)
        bare = assemble(stage.base, state, stage.made, labels=labels, created=None)
        fingerprint = digest_of(canonical(bare.to_json()))
        known = self._index.memo("image created", fingerprint)
        done = [made.created for made in stage.made if made.created is not None] if stage.dirty or stage.far else []
        created = float(known) if known else done[-1] if done else time.time()
        if not known:
            # Of builds that come to the same image at once, all have to call it by one id.
            created = float(self._index.agree("image created", fingerprint, repr(created)))
        return assemble(stage.base, state, stage.made, labels=labels, created=created)

    def _leave_intermediate(self, stage: StageRun) -> None:
        """The image of the stage as it is after the last instruction done, seen with `image ls -a`."""
        parent = stage.parent or self._intermediate(stage, len(stage.made) - 1)
        config = self._config_after(stage, len(stage.made))
        stage.parent = self._store.put_image(config, stage.layers, parent=parent, intermediate=True).id

    def _intermediate(self, stage: StageRun, count: int) -> Digest | None:
        """The id of the image that the first `count` instructions leave; None before the first step.

        An earlier build has left it, when all of them came from the cache; it may be gone since.
        """
        if not any(made.created is not None for made in stage.made[:count]):
            return None
        return digest_of(canonical(self._config_after(stage, count).to_json()))

    def _config_after(self, stage: StageRun, count: int) -> ImageConfig:
        """The stage's config after its first `count` instructions, its time that of the last step among them."""
        made = stage.made[:count]
        times = [one.created for one in made if one.created is not None]
        epoch = self._work.epoch
        return assemble(
            stage.base,
            made[-1].lowered.state,
            made,
            created=times[-1] if epoch is None and times else epoch,
            fixed=epoch is not None,
        )

    def layers(self, index: int) -> tuple[Layer, ...]:
        """The layers of the finished stage. The bytes of those that were found elsewhere may still lie there."""
        return self._stages[index].layers

    def is_whole(self, index: int) -> bool:
        """Whether the store has the bytes of all layers of the finished stage."""
        return self._has(self._stages[index].layers)

    def image(self, index: int, *, intermediate: bool = False) -> ImageResult:
        """The finished stage as an image in the store. Idempotent. intermediate: something else is made of it.

        Where layers of it lie elsewhere, only its manifest and config are there, and the store does not list it.
        """
        stage = self._stages[index]
        assert stage.config is not None
        if not self._has(stage.layers):
            image_id, manifest = self._store.describe(stage.config, stage.layers, self._notes(stage))
            return ImageResult(image_id, stage.config, stage.layers, manifest, stage.inherited)
        parent, needs = None, set()
        if any(other.dirty for other in self._stages.values()):
            parent = stage.parent or self._intermediate(stage, len(stage.made) - 1)
            for need in stage.work.plan.needs:
                other = self._stages[need]
                needs.add(other.parent or self._intermediate(other, len(other.made)))
        image = self._store.put_image(
            stage.config,
            stage.layers,
            parent=parent,
            intermediate=intermediate,
            needs=[need for need in needs if need is not None],
            annotations=self._notes(stage),
        )
        return ImageResult(image.id, stage.config, stage.layers, image.manifest, stage.inherited)

    def made(self) -> tuple[tuple[str, tuple[Made, ...]], ...]:
        """Every stage's title and what its instructions made, in the plan's order."""
        return tuple((stage.work.plan.title, tuple(stage.made)) for stage in self._stages.values())

    def trail(self, index: int) -> tuple[Made, ...]:
        """All that was carried out on the way from the base image to the end of a stage, through the stages below."""
        stage = self._stages[index]
        below = stage.work.plan.base.stage
        return (*(() if below is None else self.trail(below)), *stage.made)

    def _notes(self, stage: StageRun) -> tuple[tuple[str, str], ...]:
        """The annotations of the image's manifest."""
        if not self._inline:
            return ()
        from cache.remote import inline_note

        records = list(stage.records)
        below = stage.work.plan.base.stage
        while below is not None:
            records = [*self._stages[below].records, *records]
            below = self._stages[below].work.plan.base.stage
        return (inline_note(records, stage.layers),)

    def counts(self) -> tuple[int, int]:
        """How many steps there were, and how many of them came from the cache."""
        return sum(s.steps for s in self._stages.values()), sum(s.cached for s in self._stages.values())

    @property
    def written(self) -> int:
        """Bytes of the layers of steps that were done."""
        return sum(stage.written for stage in self._stages.values())

    # ------------------------------------------------------------ steps

    def _do(self, stage: StageRun, lowered: Lowered) -> None:
        """One step: key, hit or perform, record, tell."""
        step = lowered.step
        assert step is not None
        if self._stop.is_set():
            raise CancelledError("the build was stopped")
        stage.steps += 1
        stage.origin = ""
        number = next(self._numbers)
        self._report(
            StepStarted(
                number,
                self._work.label + stage.work.plan.title,
                stage.steps + 1,
                stage.work.total,
                lowered.title,
                lowered.instruction.span.line,
            )
        )
        started = time.monotonic()
        try:
            parts, hidden = self._parts(stage, lowered)
            identity = key(parts, hidden=hidden)
            place = self._place(stage, lowered)
            fresh = self._is_fresh(stage, lowered) and identity not in self._work.tally.done
            record, why = (None, Why("no cache")) if fresh else self._lookup(stage, identity, place, parts)
            hit = record is not None
            self._fates[number] = Fate(
                self._work.label + stage.work.plan.title,
                stage.steps + 1,
                stage.work.total,
                lowered.instruction.span.line,
                lowered.title,
                hit,
                "" if hit else why.reason,
                () if hit else why.changes,
            )
            if record is None:
                self._miss(stage, number, why)
                with contextlib.nullcontext() if fresh else self._claim(identity, number):
                    # Another build may have done the step since it was looked up.
                    record = None if fresh else self._lookup(stage, identity, place, parts)[0]
                    hit = record is not None
                    if record is None:
                        with self._turn(identity, fresh, stage, number) as found:
                            if found is not None:
                                record, hit = self._taken(stage, found, parts, place), True
                            else:
                                record = self._perform(stage, lowered, number, identity, started)
                                record = self._keep(stage, record, parts, place, fresh)
                                stage.dirty = True
                                self._work.tally.done.add(identity)
                                if record.layer is not None:
                                    stage.changed = f"[{stage.work.plan.title} {stage.steps + 1}/{stage.work.total}]"
                                self._offer(stage, record, parts, place, anew=True)
                if hit:
                    self._fates[number] = replace(self._fates[number], cached=True, reason="", changes=())
            if hit:
                self._offer(stage, record, parts, place)
            stage.cached += hit
        except BaseException as error:
            # A layer that was lost is told by itself, and its step done again.
            cancelled = isinstance(error, CancelledError | KeyboardInterrupt | LostError)
            self._report(StepFailed(number, time.monotonic() - started, cancelled))
            if isinstance(error, BuildError):
                error.mask(lowered.secrets)
                error.source = error.source or lowered.source
                error.span = error.span or lowered.instruction.span
            raise
        stage.written += 0 if hit else record.size
        if record.layer is not None:
            stage.layers = (*stage.layers, record.layer)
        stage.made.append(Made(lowered, record.layer, record.created))
        stage.records.append(record)
        seconds = time.monotonic() - started
        self._report(StepFinished(number, hit, seconds, record.size, record.files, stage.origin if hit else why.reason))

    def _is_fresh(self, stage: StageRun, lowered: Lowered) -> bool:
        """Whether the step is to be done anew, whatever the cache has."""
        if self._work.fresh is None or stage.work.plan.title in self._work.fresh:
            return True
        line = self._work.cache.from_line
        # The triggers of a base stand in another text, whose lines are not meant.
        own = lowered.source is None or lowered.source.name == self._work.contexts.source.name
        return bool(line) and own and lowered.instruction.span.line >= line

    def _place(self, stage: StageRun, lowered: Lowered) -> Callable[[], Place]:
        """What makes, once it is wanted, what is known of a step beside its key."""
        # By the time that it is wanted the stage may be further on.
        now = replace(stage, made=list(stage.made))

        @functools.cache
        def make() -> Place:
            parts, _ = self._parts(now, lowered, readable=True)
            return place_of(now, lowered, self._work, self._titles, tuple(parts))

        return make

    def _lookup(
        self, stage: StageRun, identity: str, place: Callable[[], Place], parts: list[Part]
    ) -> tuple[Record | None, Why]:
        """The record of a step, here or elsewhere, or why there is none that may be used."""
        oldest = self._work.cache.oldest
        age = 0.0
        record = self._index.lookup(identity)
        if record is not None and (oldest is None or (age := self._index.age(identity)) <= oldest):
            return record, Why("")
        if self._remotes is not None and (found := self._remotes.find(identity)) is not None:
            if oldest is None or (age := time.time() - found.written) <= oldest:
                return self._taken(stage, found, parts, place), Why("")
            record = found.record
        if record is not None and oldest is not None:
            return None, Why(f"made {_span(age)} ago, more than {_span(oldest)}")
        elsewhere = self._remotes.explanation if self._remotes is not None else None
        return None, self._index.why(place(), parts, identity, elsewhere)

    def _taken(self, stage: StageRun, found: Found, parts: list[Part], place: Callable[[], Place]) -> Record:
        """A record that lies elsewhere; the store's own index has it as soon as the store has its layer."""
        assert self._remotes is not None
        stage.far, stage.origin = True, f"from {found.shelf.title}"
        record, written = found.record, found.written
        self._remotes.on_arrival(found, lambda: self._index.record(record, parts, place(), written))
        return record

    def _keep(
        self, stage: StageRun, record: Record, parts: list[Part], place: Callable[[], Place], fresh: bool
    ) -> Record:
        """Keep what was just done. Where another machine was quicker, its record is the one that counts for all."""
        if self._remotes is not None and not fresh:
            found = self._remotes.earlier(record.key)
            if found is not None and found.record.layer != record.layer:
                return self._taken(stage, found, parts, place)
        self._index.record(record, parts, place())
        return record

    def _offer(
        self, stage: StageRun, record: Record, parts: list[Part], place: Callable[[], Place], *, anew: bool = False
    ) -> None:
        """Have the record in the caches that this build is to fill."""
        if self._remotes is not None:
            written = time.time() - self._index.age(record.key)
            self._remotes.offer(record, parts, place, final=self._is_final(stage), written=written, anew=anew)

    def _is_final(self, stage: StageRun) -> bool:
        """Whether the built image stands on the stage's steps."""
        index: int | None = self._work.target
        while index is not None and index != stage.work.plan.stage.index:
            index = self._stages[index].work.plan.base.stage
        return index is not None

    def _turn(
        self, identity: str, fresh: bool, stage: StageRun, number: int
    ) -> contextlib.AbstractContextManager[Found | None]:
        """The right to do the step among all machines that share a cache, or what another one has made of it."""
        if self._remotes is None or fresh:
            return contextlib.nullcontext()
        wait = self._waiting(number, b"another machine is doing this step: waiting for its result\n")
        return self._remotes.turn(identity, wait, final=self._is_final(stage))

    def _claim(self, identity: str, number: int) -> Claim:
        """The right to do the step; whoever else comes to the same one meanwhile waits for its result."""
        wait = self._waiting(number, b"another build is doing this step: waiting for its result\n")
        return Claim(self._store.root, identity, wait)

    def _waiting(self, number: int, words: bytes) -> Callable[[float], None]:
        """What waits for so many seconds, tells why at the first call, and ends when the build is stopped."""
        told = False

        def wait(seconds: float) -> None:
            nonlocal told
            if not told:
                self._report(StepOutput(number, words))
                told = True
            if self._stop.wait(seconds):
                raise CancelledError("the build was stopped")

        return wait

    def _miss(self, stage: StageRun, number: int, why: Why) -> None:
        """Tell that a step is not in the cache; BuildError where it has to be."""
        if self._work.cache.explain:
            self._report(StepMissed(number, why.changes))
        required = self._work.cache.required
        if required is None or stage.work.plan.title in required:
            raise BuildError(
                f"this step is not in the cache: {why.reason or why.changes[0]}",
                notes=why.changes if why.differences else (),
                hint="--require-cache lets no step be done anew",
            )

    def _parts(self, stage: StageRun, lowered: Lowered, *, readable: bool = False) -> tuple[list[Part], list[bytes]]:
        """What the step's result depends on, and what of it may not be kept readable.

        readable: each path that it takes of a context is a part, to be told; else a digest stands for them, in the key.
        """
        chain = chain_ids(tuple(layer.diff_id for layer in stage.layers))
        parent = ("parent", chain[-1] if chain else "scratch")
        parts: list[Part] = [("platform", str(lowered.state.platform))]
        if self._work.epoch is not None:
            # It decides about times and, by them, about bytes.
            parts.append(("epoch", str(self._work.epoch)))
        hidden: list[bytes] = []
        match lowered.step:
            case RunStep() as step:
                parts += [parent, *run_steps.run_parts(step, self._work.supplies.options)]
                hidden += run_steps.run_secrets(step)
                if self._work.cache.secrets:
                    hidden += self._sealed(step)
                for mount in step.mounts:
                    if isinstance(mount, BindMount):
                        selection = FileStep(mount.origin, (PathSource(mount.source, lowered.instruction.span),), "/")
                        found = [*self._inputs(selection, readable=readable), *self._mounted(mount)]
                        parts += [(f"mount {mount.target} {name}", value) for name, value in found]
            case FileStep() as step:
                parts += [*([] if step.link else [parent]), *file_steps.step_parts(step)]
                parts += self._inputs(step, readable=readable)
            case None:
                raise AssertionError(lowered)
        for secret in lowered.secrets:
            parts = [(name.replace(secret, "***"), value.replace(secret, "***")) for name, value in parts]
            hidden.append(secret.encode("utf-8", "surrogateescape"))
        return parts, hidden

    def _sealed(self, step: RunStep) -> list[bytes]:
        """What stands for the values of the secrets that a RUN mounts: without the store's own key it tells nothing."""
        import hmac

        sources = {source.id: source for source in self._work.supplies.secrets}
        found = []
        for mount in step.mounts:
            if isinstance(mount, SecretMount) and mount.id in sources:
                # One that can not be read is told when the RUN wants it.
                with contextlib.suppress(OSError):
                    found.append(hmac.digest(self._store.own_key(), sources[mount.id].read(), "sha256"))
        return found

    def _inputs(self, step: FileStep, *, readable: bool) -> list[Part]:
        """What of the files that a step takes counts for its key. readable: a part for each path of a context.

        The files of a stage or an image are named by their layers, so what a selection of them amounts to is worked out
        once and remembered.
        """
        layers = self._layers(step.origin)
        if layers is None or not any(isinstance(source, PathSource) for source in step.sources):
            return self._selected(step) if readable else [("files", self._selection(step))]
        question = key(
            [
                *(("layer", layer.diff_id) for layer in layers),
                *(("path", source.pattern) for source in step.sources if isinstance(source, PathSource)),
                *file_steps.step_parts(step),
            ]
        )
        answer = self._index.memo("selection", question)
        if answer is None:
            answer = self._index.fold(file_steps.inputs(step, self._view(step.origin)))
            self._index.memoise("selection", question, answer)
        return [("files", answer)]

    def _mounted(self, mount: BindMount) -> list[Part]:
        """What a RUN sees of the very directory that it mounts from layers. One of a context is made for it."""
        layers = self._layers(mount.origin)
        if layers is None:
            return []
        question = key([*(("layer", layer.diff_id) for layer in layers), ("path", mount.source)])
        answer = self._index.memo("mounted", question)
        if answer is None:
            view = self._view(mount.origin)
            entry = view.entry(view.resolve(os.fsencode(mount.source.strip("/"))))
            answer = f"{entry.mode:o} {entry.uid}:{entry.gid}" if entry is not None else "missing"
            self._index.memoise("mounted", question, answer)
        return [("top", answer)]

    def _selection(self, step: FileStep) -> str:
        """A digest of all that a step takes of a context; where nothing has changed since, no file is looked into."""
        files = self._view(step.origin)
        stamp = file_steps.stamp(step, files) if isinstance(files, Directory) else None
        question = ""
        if stamp is not None:
            question = key([("stamp", stamp[0]), *file_steps.step_parts(step)])
            known = self._index.memo("selection", question)
            if known is not None:
                return known
        answer = key(self._selected(step))
        if stamp is not None and stamp[1]:
            self._index.memoise("selection", question, answer)
        return answer

    def _selected(self, step: FileStep) -> list[Part]:
        """What a step takes of a context, a part for each path."""
        if step not in self._selections:
            self._selections[step] = file_steps.inputs(step, self._view(step.origin), self._fetcher(step))
        return self._selections[step]

    def _perform(self, stage: StageRun, lowered: Lowered, number: int, identity: str, started: float) -> Record:
        """Carry the step out and write what it changed as a layer."""
        match lowered.step:
            case FileStep() as step:
                written = self._copy(stage, step)
            case RunStep() as step:
                written = self._runner().run(
                    step, stage.layers, lambda data: self._report(StepOutput(number, data)), self._stop
                )
            case _:
                raise AssertionError(lowered)
        now = time.time() if self._work.epoch is None else self._work.epoch
        seconds = time.monotonic() - started
        if written is None:
            return Record(identity, None, 0, 0, now, seconds)
        return Record(identity, written.layer, written.size, written.files, now, seconds)

    def _copy(self, stage: StageRun, step: FileStep) -> Written | None:
        from cache.compression import Compression
        from cache.layers import write_changes
        from cache.tree import Tree

        parent = Tree(self._store, () if step.link else stage.layers)
        entries = file_steps.perform(step, self._view(step.origin), parent, self._fetcher(step), epoch=self._work.epoch)
        epoch = self._work.epoch
        return write_changes(entries, self._store, Compression("gzip", exact=epoch is not None), epoch)

    # ------------------------------------------------------------ places

    def _layers(self, origin: Origin) -> tuple[Layer, ...] | None:
        """The layers of an origin that is a stage or an image; None for a context of files."""
        if origin.stage is not None:
            return self._stages[origin.stage].layers
        name = (origin.image if origin.image is not None else origin.context) or ""
        if name not in self._work.images:
            return None
        image = self._work.images[name]
        return image.layers if image else ()

    def _view(self, origin: Origin) -> Files:
        """The files that an origin stands for."""
        layers = self._layers(origin)
        if layers is None:
            return self._work.contexts.files(origin.context or "")
        from cache.tree import Tree

        return Tree(self._store, layers)

    def _fetcher(self, step: FileStep) -> Fetcher | None:
        """What fetches, for a step that has something to fetch."""
        make = self._work.contexts.fetcher
        remote = any(isinstance(source, UrlSource | GitSource) for source in step.sources)
        return make() if make is not None and remote else None

    def _runner(self) -> Runner:
        """What only a RUN needs, made at the first one."""
        from builder.runner import Runner

        with self._lock:
            if self._made_runner is None:
                reason, shared = self._ground.reason, self._ground.shared
                reason += f"; RUN shares this machine's network: {shared}" if shared else ""
                self._report(TierChosen(self._ground.tier, reason))
                self._made_runner = Runner(
                    self._store,
                    self._ground.executor(),
                    self._ground.snapshots(self._store),
                    self._work.supplies,
                    self._view,
                    self._work.epoch,
                    self._remotes,
                )
            return self._made_runner


def place_of(stage: StageRun, lowered: Lowered, work: Work, titles: frozenset[str], parts: tuple[Part, ...]) -> Place:
    """What is known of a step beside its key, in the words of the build file and without secrets."""
    before = stage.made[-1].lowered.state if stage.made else stage.work.first
    step = lowered.step
    notes: list[Part] = []
    names = []
    if isinstance(step, RunStep):
        declared = {name for name, _ in before.args}
        for line in step.env:
            name = line.partition("=")[0]
            names.append((f"env {name}", f"{'ARG' if name in declared else 'ENV'} {name}"))
        if step.argv[:-1] == (before.config.shell or DEFAULT_SHELL):
            names.append((f"argv {len(step.argv) - 1}", "command"))
    else:
        values = dict(before.environment)
        declared = {name for name, _ in before.args}
        notes += [
            (f"{'ARG' if name in declared else 'ENV'} {name}", values[name])
            for name in dict.fromkeys(_VARIABLE.findall(lowered.title))
            if name in values and not looks_secret(name)
        ]
    base = stage.work.base
    if base is not None:
        chain = chain_ids(tuple(layer.diff_id for layer in base.layers))
        notes += [("base", f"{base.name}@{base.digest}"), ("base layers", chain[-1] if chain else "")]
    above = [made.lowered.title for made in stage.made if made.lowered.step is not None]
    notes.append(("after", above[-1] if above else "the base"))
    return Place(
        work.contexts.name,
        stage.work.plan.title,
        stage.steps,
        lowered.title,
        tuple(notes),
        titles,
        tuple(names),
        stage.changed,
        parts,
    )


_VARIABLE = re.compile(r"\$\{?(\w+)")


def _span(seconds: float) -> str:
    """A span of time, in the largest unit that leaves a whole number of at least 1: `9 days`."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {name}" + "s" * (count != 1)
    return f"{seconds:.0f} second" + "s" * (round(seconds) != 1)

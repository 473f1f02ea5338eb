"""`--dry-run`: the plan of a build and what each instruction was lowered to, as text.

Each stage that would be built, in an order in which what it needs comes first; each instruction with its line, and
below it the step that it comes to, if any. Values of build arguments are not shown: they may be secrets that the user
passes where nobody should.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from builder.model import (
    BindMount,
    CacheMount,
    FileStep,
    GitSource,
    InlineSource,
    PathSource,
    RunStep,
    SecretMount,
    SshMount,
    TmpfsMount,
    UrlSource,
)
from builder.terminal import columns, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from builder.engine import StageWork
    from builder.model import FileSource, Lowered, Mount, Origin, Plan


def outline(plan: Plan, stages: Sequence[StageWork]) -> str:
    """The text; equal for equal builds, whatever the machine. stages: lowered, in the plan's order."""
    title = plan.scope(plan.target).titles[plan.target]
    lines = [f"{printable(plan.dockerfile.source.name)}: target {title}, platform {plan.platform}"]
    for work in stages:
        lines += ["", *_stage(work, plan)]
    if plan.unused:
        lines += ["", "not needed: " + ", ".join(stage.title for stage in plan.unused)]
    return "\n".join(lines) + "\n"


def _stage(work: StageWork, plan: Plan) -> Iterator[str]:
    base = work.plan.base
    titles = plan.scope(work.plan.stage.index).titles
    below = titles[base.stage] if base.stage is not None else base.context or base.image
    needs = ", ".join(titles[index] for index in sorted(work.plan.needs))
    yield f"stage {work.plan.title} from {below}" + (f", needs {needs}" if needs else "")
    rows = []
    for lowered in work.lowered:
        rows.append((f"  {lowered.instruction.span.line}", printable(" ".join(lowered.title.split()))))
        rows += [("", f"    {line}") for line in _step(lowered, titles)]
    if rows:
        width = max(len(number) for number, _ in rows) + 2
        yield from (number.ljust(width) + text for number, text in rows)
    config = work.state.config
    facts = [
        ("user", config.user),
        ("directory", config.working_dir),
        ("entrypoint", shlex.join(config.entrypoint) if config.entrypoint else ""),
        ("command", shlex.join(config.cmd) if config.cmd else ""),
        ("ports", " ".join(config.exposed_ports)),
        ("volumes", " ".join(config.volumes)),
    ]
    told = [(f"    {name}", printable(value)) for name, value in facts if value]
    if told and work.plan.stage.index == plan.target:
        yield "  the image"
        yield columns(told)


def _step(lowered: Lowered, titles: tuple[str, ...]) -> Iterator[str]:
    match lowered.step:
        case FileStep() as step:
            yield from _files(step, titles)
        case RunStep() as step:
            public = set(lowered.state.config.env)
            # A newline is data here, to be seen as what it is.
            yield "run " + printable(shlex.join(step.argv).replace("\n", "\\n"))
            shown = [shlex.quote(each) if each in public else each.partition("=")[0] for each in step.env]
            yield f"env {printable(' '.join(shown))}"
            facts = [f"in {step.cwd}", f"as {step.user or '0'}"]
            if step.network != "default":
                facts.append(f"network {step.network}")
            if step.security != "sandbox":
                facts.append(f"security {step.security}")
            yield printable(", ".join(facts))
            yield from (f"script {path}, {len(data)} bytes" for path, data in step.scripts)
            yield from (printable(_mount(mount, titles)) for mount in step.mounts)
        case None:
            pass


def _files(step: FileStep, titles: tuple[str, ...]) -> Iterator[str]:
    to = printable(step.destination) + ("/" if step.into and step.destination != "/" else "")
    if not step.sources:
        yield f"directory {to}"
    for source in step.sources:
        yield f"{printable(_source(source, step.origin, titles))} -> {to}"
    facts = [
        f"owner {step.chown or '0:0'}",
        f"mode {step.chmod}" if step.chmod else "",
        "on a layer of its own" if step.link else "",
        "with parents" if step.parents else "",
        {True: "unpacked", False: "", None: "archives unpacked"}[step.unpack],
        f"without {' '.join(step.excludes)}" if step.excludes else "",
    ]
    yield printable(", ".join(filter(None, facts)))


def _source(source: FileSource, origin: Origin, titles: tuple[str, ...]) -> str:
    match source:
        case PathSource():
            return f"{source.pattern} of {_origin(origin, titles)}"
        case InlineSource():
            return f"{source.name}, {len(source.data)} bytes written here"
        case UrlSource():
            return source.url + (f" with {source.checksum}" if source.checksum else "")
        case GitSource():
            return f"git {source.url}" + (f" at {source.checksum}" if source.checksum else "")


def _origin(origin: Origin, titles: tuple[str, ...]) -> str:
    if origin.stage is not None:
        return f"stage {titles[origin.stage]}"
    if origin.image is not None:
        return f"image {origin.image}"
    return f"context {origin.context}" if origin.context else "the context"


def _mount(mount: Mount, titles: tuple[str, ...]) -> str:
    match mount:
        case BindMount():
            return f"bind {mount.source} of {_origin(mount.origin, titles)} at {mount.target}" + (
                ", writes discarded" if mount.writable else ""
            )
        case CacheMount():
            return f"cache {mount.id} at {mount.target}, {mount.sharing}"
        case TmpfsMount():
            return f"tmpfs at {mount.target}"
        case SecretMount():
            where = [mount.target and f"at {mount.target}", mount.env and f"as {mount.env}"]
            return f"secret {mount.id} " + ", ".join(filter(None, where)) + (", required" if mount.required else "")
        case SshMount():
            return f"ssh {mount.id} at {mount.target}" + (", required" if mount.required else "")

"""`pybuild cache ...`: what the cache knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import open_store

if TYPE_CHECKING:
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from cache.index import Fate, LastBuild

WHY = Command(
    name="cache why",
    usage="[OPTIONS] [STEP]",
    summary="Say of the last build, for each step that was not in the cache, every part that had changed.",
    words=(0, 2),
    flags=(Flag("format", "text, or json (an object a line)", value="FORMAT"),),
    notes="STEP is a step as progress shows it (3, build 3), a stage, or a line of the Dockerfile (line 7).",
)


def why(given: Given, around: Surroundings) -> int:
    """Print how the steps of the last build fared, or one of them."""
    from cache.index import Index

    form = given.one("format", "text")
    if form not in {"text", "json"}:
        raise UsageError(f"--format {form!r} is neither text nor json")
    with open_store(given, around.environ) as store:
        last = Index(store.database).last_build()
    if last is None:
        raise UsageError("no build has been done with this store")
    steps = _asked(last, " ".join(given.words)) if given.words else [step for step in last.steps if not step.cached]
    if form == "json":
        import json

        from msgspec.structs import asdict

        for step in steps:
            around.say(json.dumps(asdict(step)))
        return 0
    if not steps:
        around.say(f"all {len(last.steps)} steps of the last build were in the cache")
    for step in steps:
        _tell(step, around)
    return 0


def _asked(last: LastBuild, word: str) -> list[Fate]:
    """The steps that a word of the command line means. UsageError when there is none."""
    wanted = word.strip("[]").split("/")[0].lower().split()
    if wanted[:1] == ["line"]:
        found = [step for step in last.steps if [str(step.line)] == wanted[1:]]
    else:
        found = [
            step
            for step in last.steps
            if wanted in ([str(step.number)], [step.stage.lower()], [step.stage.lower(), str(step.number)])
        ]
    if not found:
        steps = ", ".join(f"'{step.stage} {step.number}'" for step in last.steps[:8])
        raise UsageError(f"the last build had no step {word!r}", hint=f"its steps: {steps}" if steps else "")
    return found


def _tell(step: Fate, around: Surroundings) -> None:
    from builder.terminal import printable

    around.say(
        f"[{step.stage} {step.number}/{step.total}] {printable(' '.join(step.title.split()))}  (line {step.line})"
    )
    for line in ("CACHED",) if step.cached else step.changes:
        around.say(f"  {printable(line)}")

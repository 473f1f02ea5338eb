"""`pybuild cache ...` and `pybuild du`: why steps missed, what the store takes of the disk, cutting it down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import choose_isolation, open_store

if TYPE_CHECKING:
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from cache.index import Fate, LastBuild
    from cache.usage import Item

WHY = Command(
    name="cache why",
    usage="[OPTIONS] [STEP]",
    summary="Say of the last build, for each step that was not in the cache, every part that had changed.",
    words=(0, 2),
    flags=(Flag("format", "text, or json (an object a line)", value="FORMAT"),),
    notes="STEP is a step as progress shows it (3, build 3), a stage, or a line of the Dockerfile (line 7).",
)

DU = Command(
    name="du",
    usage="[OPTIONS]",
    summary="Show what the store takes of the disk, by type. The sizes add up to those of du(1).",
    flags=(
        Flag("verbose", "each thing by itself, the largest first", "v"),
        Flag("format", "table, or json (an object a line)", value="FORMAT"),
    ),
    notes="Of `image`, `database` and `other`, `cache prune` takes nothing.",
)
PRUNE = Command(
    name="cache prune",
    usage="[OPTIONS]",
    summary="Remove from the cache what has not been used for longest; images lose nothing.",
    flags=(
        Flag("keep", "until what is left takes no more than this, such as 20GB", value="SIZE"),
        Flag("older-than", "only what was not used for so long, such as 7d", value="TIME"),
        Flag("filter", "type=step|snapshot|listing|fetched|mount, several by commas", "f", "FILTER", many=True),
        Flag("yes", "do not ask before everything is removed", "y"),
    ),
    notes="""\
Without --keep, --older-than or --filter all of the cache goes, after asking. What a running build may rely on stays
until it has ended. `image prune` removes images.""",
)
FSCK = Command(
    name="fsck",
    usage="[OPTIONS]",
    summary="Look whether the store is whole: each blob's bytes, each image's blobs, each record's layer, index.json.",
    flags=(
        Flag("repair", "remove damaged blobs and records without theirs, write index.json anew"),
        Flag("quiet", "print nothing; the exit code tells", "q"),
    ),
    notes="Exit codes: 0 whole, 3 something is wrong, and each line says what to do.",
)
LIST_MOUNTS = Command(
    name="cache mounts ls",
    usage="[OPTIONS]",
    summary="List the folders of RUN --mount=type=cache, the last used first.",
    flags=(
        Flag("quiet", "only ids", "q"),
        Flag("format", "table, or json (an object a line)", value="FORMAT"),
    ),
)
REMOVE_MOUNTS = Command(
    name="cache mounts rm",
    usage="[OPTIONS] ID...",
    summary="Remove the folders of cache mounts, by their ids.",
    words=(0, -1),
    flags=(Flag("all", "every one", "a"),),
)


def du(given: Given, around: Surroundings) -> int:
    """Print a row for each type, or for each thing."""
    from builder.quantities import human_size
    from builder.terminal import columns, printable
    from cache.usage import KINDS, PRUNABLE, measure

    form = _form(given)
    choose_isolation()
    with open_store(given, around.environ) as store:
        items = measure(store)
    if form == "json":
        _say_json(items, around)
        return 0
    rows: list[tuple[str, ...]]
    if given.on("verbose"):
        rows = [("TYPE", "SIZE", "LAST USED", "NAME")]
        rows += [
            (item.kind, human_size(item.size), _ago(item.used), printable(item.name) or item.path)
            for item in sorted(items, key=lambda item: -item.size)
        ]
    else:
        rows = [("TYPE", "COUNT", "SIZE", "PRUNABLE")]
        for kind in KINDS:
            sizes = [item.size for item in items if item.kind == kind]
            rows.append((kind, str(len(sizes)), human_size(sum(sizes)), "yes" if kind in PRUNABLE else ""))
    total = sum(item.size for item in items)
    free = sum(item.size for item in items if item.kind in PRUNABLE)
    around.say(columns(rows))
    around.say(f"total {human_size(total, 4)} ({total} bytes), prunable {human_size(free, 4)}")
    return 0


def prune(given: Given, around: Surroundings) -> int:
    """Cut the cache down and say by how much."""
    from builder.cli.build import duration, size
    from builder.quantities import human_size
    from cache.usage import PRUNABLE, cut

    kinds = [kind for text in given.all("filter") for kind in _kinds(text)]
    keep = None
    if given.has("keep"):
        keep = 0 if given.one("keep") == "0" else size(given.one("keep"), "keep")
    age = duration(given.one("older-than"), "older-than") if given.has("older-than") else None
    limited = given.has("filter") or keep is not None or age is not None
    if not limited and not given.on("yes") and not _sure(around):
        return 0
    choose_isolation()
    with open_store(given, around.environ) as store:
        done = cut(store, keep=keep, older_than=age, kinds=kinds or PRUNABLE)
    for kind in PRUNABLE:
        sizes = [item.size for item in done.items if item.kind == kind]
        if sizes:
            around.say(f"{kind}: {len(sizes)}, {human_size(sum(sizes))}")
    if done.held:
        around.say(f"left, as they are in use: {done.held}")
    around.say(f"Total reclaimed space: {human_size(done.bytes, 4)}")
    return 0


def _kinds(text: str) -> list[str]:
    from cache.usage import PRUNABLE

    name, _, value = text.partition("=")
    kinds = [word for word in value.split(",") if word]
    if name != "type" or not kinds or not set(kinds) <= set(PRUNABLE):
        raise UsageError(f"--filter {text!r} is not known", hint="type=" + "|".join(PRUNABLE))
    return kinds


def _sure(around: Surroundings) -> bool:
    if not around.stdin.isatty():
        raise UsageError(
            "this will remove all of the cache, and there is no terminal to ask on", hint="-y does not ask"
        )
    print("This will remove all of the cache. Are you sure? [y/N] ", end="", file=around.stderr, flush=True)
    return around.stdin.readline().strip().lower() in {b"y", b"yes"}


def fsck(given: Given, around: Surroundings) -> int:
    """Print a line for each fault and what to do; what is repaired still counts as found."""
    from builder.cli import DAMAGED
    from builder.terminal import printable
    from cache.check import check

    choose_isolation()
    with open_store(given, around.environ) as store:
        done = check(store, repair=given.on("repair"))
    if not given.on("quiet"):
        for fault in done.faults:
            around.say(f"{printable(fault.what)}\n  {printable(fault.hint)}")
        count = f"{done.blobs} blobs, {done.images} images, {done.records} records of steps"
        found = f"{len(done.faults)} fault" + "s" * (len(done.faults) != 1) if done.faults else "whole"
        around.say(f"{count}: {found}" + (", repaired" if done.faults and given.on("repair") else ""))
    return DAMAGED if done.faults else 0


def list_mounts(given: Given, around: Surroundings) -> int:
    """Print a row for each folder."""
    from builder.quantities import human_size
    from builder.terminal import columns, printable
    from cache.usage import measure

    form = _form(given)
    choose_isolation()
    with open_store(given, around.environ) as store:
        items = [item for item in measure(store) if item.kind == "mount"]
    items.sort(key=lambda item: -item.used)
    if given.on("quiet"):
        for name in dict.fromkeys(item.name for item in items):
            around.say(name)
    elif form == "json":
        _say_json(items, around)
    else:
        rows = [(printable(item.name), human_size(item.size), _ago(item.used), item.path) for item in items]
        around.say(columns([("ID", "SIZE", "LAST USED", "FOLDER"), *rows]))
    return 0


def remove_mounts(given: Given, around: Surroundings) -> int:
    """Remove what is named; an id that no folder has, or one that is in use, is an error after the others are gone."""
    from builder.quantities import human_size
    from cache.errors import InUseError, NotFoundError, StoreError
    from cache.usage import measure, remove_mount

    if bool(given.words) == given.on("all"):
        raise UsageError("pybuild cache mounts rm takes ids, or --all", hint="pybuild cache mounts ls lists them")
    choose_isolation()
    failure: StoreError | None = None
    freed = 0
    with open_store(given, around.environ) as store:
        items = [item for item in measure(store) if item.kind == "mount"]
        for word in dict.fromkeys(given.words or (item.name for item in items)):
            named = [item for item in items if word in (item.name, item.path.rpartition("/")[2])]
            if not named:
                failure = failure or NotFoundError(
                    f"no cache mount has the id {word}", "pybuild cache mounts ls lists them"
                )
            for item in named:
                size = remove_mount(store, item)
                if size is None:
                    failure = failure or InUseError(f"the cache mount {word} is in use by a RUN", "try again after it")
                freed += size or 0
    around.say(f"Total reclaimed space: {human_size(freed, 4)}")
    if failure is not None:
        raise failure
    return 0


def _form(given: Given) -> str:
    form = given.one("format", "table")
    if form not in {"table", "json"}:
        raise UsageError(f"--format {form!r} is neither table nor json")
    return form


def _say_json(items: list[Item], around: Surroundings) -> None:
    import json

    from msgspec.structs import asdict

    for item in items:
        around.say(json.dumps(asdict(item)))


def _ago(when: float) -> str:
    import time

    from builder.quantities import human_age

    return f"{human_age(max(time.time() - when, 0))} ago"


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

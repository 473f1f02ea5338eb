"""Rules about bytes that are shipped in vain: deleted later, written again, there twice, more than was allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.lint.layers.subject import LayerRule, amount, by_layer, count, named, worst
from builder.model import Severity
from cache.entries import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.layers.subject import ImageLayer, ImageSubject, Shipped
    from builder.model import Finding
    from cache.entries import Entry

_FLOOR = 4 << 10
"""So few bytes written again, such as of /etc/passwd, are not worth a word."""

_DUPLICATE = 64 << 10
_LARGE = 100 << 20


_DATABASES = (
    b"var/lib/dpkg/", b"var/cache/debconf/", b"var/lib/apt/", b"var/log/", b"lib/apk/db/", b"usr/lib/sysimage/",
    b"var/lib/rpm/", b"var/lib/pacman/", b"etc/ld.so.cache", b"var/cache/ldconfig/", b"etc/passwd", b"etc/shadow",
    b"etc/group", b"etc/gshadow",
)  # fmt: skip
"""What each installation of packages writes anew: told, but no reason to join everything to one RUN."""


def _dead(subject: ImageSubject, *, rewritten: bool) -> Iterator[tuple[ImageLayer, ImageLayer, list[Shipped]]]:
    """What one layer brought and another took away: by deleting it, or by having it again."""
    found: dict[tuple[int, int], list[Shipped]] = {}
    for item in subject.shipped:
        if item.names or item.entry.kind is not Kind.FILE:
            continue
        last = item.gone[-1]
        if (last.successor is not None) == rewritten and subject.layers[last.by].own:
            found.setdefault((item.layer, last.by), []).append(item)
    for (brought, took), files in sorted(found.items()):
        yield subject.layers[brought], subject.layers[took], files


def deleted_later(subject: ImageSubject) -> Iterator[Finding]:
    """A file should be deleted by the instruction that made it, or not be made.

    Why: a later layer only hides it. Its bytes are still pushed, pulled and kept on each machine.

    Bad:
        FROM base
        RUN mkdir /data && cat /bin/busybox > /data/download
        RUN cp /data/download /opt && rm -rf /data

    Good:
        FROM base
        RUN mkdir /data && cat /bin/busybox > /data/download && cp /data/download /kept && rm -rf /data
    """
    for brought, took, files in _dead(subject, rewritten=False):
        size = sum(item.size for item in files)
        if not size:
            continue
        what = f"{count(len(files), 'file')}, {amount(size)}: {worst(files)}"
        if not brought.own:
            message = f"{took.place} deletes what the base ships, {what}; the bytes stay in the base"
            hint = "choose a base without it"
            yield subject.finding(
                "DeletedLater", message, took, hint, severity=Severity.INFO, files=files, related=(brought,)
            )
            continue
        message = f"{brought.place} ships what {took.place} deletes, {what}"
        severity = Severity.WARNING if size >= _FLOOR else Severity.INFO
        yield subject.finding(
            "DeletedLater", message, brought, _merge(brought, took), severity=severity, files=files, related=(took,)
        )


def _merge(brought: ImageLayer, took: ImageLayer) -> str:
    if brought.maker.keyword == "RUN" == took.maker.keyword:
        return f"join {brought.place} and {took.place} to one RUN, or copy what is wanted out of another stage"
    if brought.maker.keyword == "ADD" and took.maker.keyword == "RUN":
        return "RUN --mount=type=bind reads it without shipping it"
    if brought.maker.keyword == "COPY" and took.maker.keyword == "RUN":
        return "leave it out by COPY --exclude or .dockerignore, or read it by RUN --mount=type=bind"
    return "make it in another stage, and copy only what is wanted"


def rewritten_files(subject: ImageSubject) -> Iterator[Finding]:
    """A file should be written by one instruction.

    Why: each layer that changes a file holds all of it, and those below keep theirs. A change of the base's files is
    told without a warning: the base is not this file's to change.

    Bad:
        FROM base
        RUN cat /bin/busybox > /tool
        RUN echo more >> /tool

    Good:
        FROM base
        RUN cat /bin/busybox > /tool && echo more >> /tool
    """
    for brought, took, files in _dead(subject, rewritten=True):
        changed = [item for item in files if not _same(subject, item)]
        size = sum(item.size for item in changed)
        if size < _FLOOR:
            continue
        own = brought.own
        message = f"{took.place} writes what {brought.place if own else 'the base'} ships again: "
        message += f"{count(len(changed), 'file')}, {amount(size)}: {worst(changed)}"
        hint = "write it once, in one instruction" if own else "the base's copy stays below it"
        heavy = sum(item.size for item in changed if not item.path.startswith(_DATABASES))
        severity = Severity.WARNING if own and heavy >= _DUPLICATE else Severity.INFO
        yield subject.finding(
            "RewrittenFiles", message, took, hint, severity=severity, files=changed, related=(brought,)
        )


def metadata_rewrite(subject: ImageSubject) -> Iterator[Finding]:
    """Owner and mode should be right from the start.

    Why: `chown -R`, `chmod -R` and `touch` on files of an earlier layer put a second copy of each into the image, for
    the sake of a few bits.

    Bad:
        FROM base
        COPY --from=base /bin/busybox /tool
        RUN chmod 700 /tool

    Good:
        FROM base
        COPY --from=base --chmod=700 /bin/busybox /tool
    """
    for brought, took, files in _dead(subject, rewritten=True):
        same = [item for item in files if _same(subject, item)]
        size = sum(item.size for item in same)
        if not size:
            continue
        what = _changes(subject, same)
        of = brought.place if brought.own else "the base"
        message = (
            f"{took.place} copies {count(len(same), 'file')} of {of}, {amount(size)}, to change {what}: {worst(same)}"
        )
        severity = Severity.WARNING if size >= _FLOOR else Severity.INFO
        yield subject.finding(
            "MetadataRewrite", message, took, _once(brought, what), severity=severity, files=same, related=(brought,)
        )


def _same(subject: ImageSubject, item: Shipped) -> bool:
    """Whether what took the file's place has the same content."""
    successor = item.gone[-1].successor
    if successor is None:
        return False
    other = subject.shipped[successor].entry
    return other.kind is Kind.FILE and other.size == item.size and other.digest == item.entry.digest


def _changes(subject: ImageSubject, files: list[Shipped]) -> str:
    """What the layer above changed about files: `owner and mode`."""
    found: dict[str, None] = {}
    for item in files:
        successor = item.gone[-1].successor
        assert successor is not None
        for what in _differences(item.entry, subject.shipped[successor].entry):
            found[what] = None
    if not found:
        return "nothing but times"
    return "owner, mode and attributes" if len(found) == 3 else " and ".join(sorted(found, reverse=True))


def _differences(one: Entry, other: Entry) -> Iterator[str]:
    if (one.uid, one.gid) != (other.uid, other.gid):
        yield "owner"
    if one.mode != other.mode:
        yield "mode"
    if one.xattrs != other.xattrs:
        yield "attributes"


def _once(brought: ImageLayer, what: str) -> str:
    if not brought.own:
        return "change as little of the base as possible"
    if brought.maker.keyword in {"COPY", "ADD"}:
        flags = [flag for word, flag in (("owner", "--chown"), ("mode", "--chmod")) if word in what]
        if flags:
            return f"{brought.maker.keyword} {' '.join(flags)} in {brought.place} does it without a copy"
    return f"do it in {brought.place}, where the files are made"


def duplicate_files(subject: ImageSubject) -> Iterator[Finding]:
    """The same content should be in the image once.

    Why: two copies of a file are two files, to a registry and to a disk. A link takes no room.

    Bad:
        FROM base
        RUN cat /bin/busybox /bin/busybox > /one && cat /one > /two

    Good:
        FROM base
        RUN cat /bin/busybox /bin/busybox > /one && ln /one /two
    """
    first: dict[str, Shipped] = {}
    found: dict[int, list[tuple[Shipped, Shipped]]] = {}
    for item in subject.shipped:
        if not item.names or item.entry.kind is not Kind.FILE or item.size < _DUPLICATE or not item.entry.digest:
            continue
        other = first.setdefault(item.entry.digest, item)
        if other is not item and subject.layers[item.layer].own:
            found.setdefault(item.layer, []).append((item, other))
    for number, pairs in sorted(found.items()):
        copies = sorted((item for item, _ in pairs), key=lambda item: (-item.size, item.path))
        size = sum(item.size for item in copies)
        original = next(other for item, other in pairs if item is copies[0])
        more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
        message = f"{count(len(copies), 'copy', 'copies')} of files that the image has, {amount(size)}: "
        message += f"{named([copies[0].path])} is {named([original.path])}{more}"
        layer = subject.layers[number]
        yield subject.finding(
            "DuplicateFiles",
            message,
            layer,
            "a link takes no room: ln, or ln -s",
            severity=Severity.INFO,
            files=copies,
            related=[subject.layers[other.layer] for _, other in pairs if subject.layers[other.layer].own][:1],
        )


def empty_layer(subject: ImageSubject) -> Iterator[Finding]:
    """A RUN should change something.

    Why: what it found out or printed is lost, and it costs time in each build. A layer of nothing but folders' times
    counts as one of the few that an image may have.

    Bad:
        FROM base
        RUN echo hello

    Good:
        FROM base
        RUN echo hello > /greeting
    """
    for maker in subject.idle:
        if maker.keyword == "RUN":
            message = "this RUN changes no file"
            hint = "drop it, or join it with the RUN that it prepares"
            yield subject.finding("EmptyLayer", message, maker, hint, severity=Severity.INFO)
    for layer in subject.layers:
        if (
            layer.own
            and layer.maker.keyword == "RUN"
            and all(_touched(layer, entry, subject) for entry in layer.entries)
        ):
            message = "this RUN changes nothing but times of folders" if layer.entries else "this RUN changes no file"
            hint = "drop it, or join it with the RUN that it prepares"
            yield subject.finding("EmptyLayer", message, layer, hint, severity=Severity.INFO)


def _touched(layer: ImageLayer, entry: Entry, subject: ImageSubject) -> bool:
    """Whether an entry is a folder that was there before, as it is now."""
    if entry.kind is not Kind.DIRECTORY:
        return False
    for below in reversed(subject.layers[: layer.number]):
        for other in below.entries:
            if other.path == entry.path:
                return other.kind is Kind.DIRECTORY and not any(_differences(other, entry))
    return False


def large_file(subject: ImageSubject) -> Iterator[Finding]:
    """A file of more than 100 MiB should be there on purpose.

    Why: one file that is most of the image is often a download, a model or a data base that was meant to be mounted.

    Bad:
        FROM base
        RUN truncate -s 104857601 /model

    Good:
        FROM base
        RUN truncate -s 1048576 /model
    """
    files = (item for item in subject.own() if item.entry.kind is Kind.FILE and item.size > _LARGE)
    for number, items in by_layer(files).items():
        size = sum(item.size for item in items)
        message = f"{count(len(items), 'large file')}, {amount(size)}: {worst(items)}"
        hint = "mount it when the container runs, if it need not be in the image"
        yield subject.finding("LargeFile", message, subject.layers[number], hint, severity=Severity.INFO, files=items)


def damaged_layer(subject: ImageSubject) -> Iterator[Finding]:
    """A layer should be what its digest says.

    Why: nothing can be said of what is in one that is missing or damaged, and nobody can run the image.
    """
    for layer in subject.layers:
        if layer.damage:
            message = f"layer {layer.number} can not be looked into: {layer.damage}"
            hint = "build or load the image again; pybuild fsck says what else is damaged"
            yield subject.finding("DamagedLayer", message, layer, hint, severity=Severity.ERROR)


# ---------------------------------------------------------------- budgets


def image_over_budget(subject: ImageSubject) -> Iterator[Finding]:
    """The image should not be larger than --max-size says.

    Why: sizes creep up; a limit in CI is where it is noticed.
    """
    limit = subject.budget.max_size
    size = sum(item.size for item in subject.shipped)
    if limit is not None and size > limit:
        largest = max(subject.layers, key=lambda layer: _bytes(subject, layer))
        message = f"the image ships {size} bytes ({amount(size)}), {size - limit} more than --max-size {limit} allows; "
        message += f"the largest layer is {largest.place} with {amount(_bytes(subject, largest))}"
        yield subject.finding("ImageOverBudget", message, None, severity=Severity.ERROR, size=size - limit, related=())


def layer_over_budget(subject: ImageSubject) -> Iterator[Finding]:
    """No layer should be larger than --max-layer says.

    Why: a large layer is pulled as a whole, by each machine, whenever a byte of it changes.
    """
    limit = subject.budget.max_layer
    for layer in subject.layers:
        size = _bytes(subject, layer)
        if limit is not None and layer.own and size > limit:
            files = [item for item in subject.shipped if item.layer == layer.number and item.size]
            message = (
                f"{layer.place} ships {size} bytes ({amount(size)}), {size - limit} more than --max-layer {limit} "
            )
            message += f"allows: {worst(files)}"
            hint = "split it, so that what seldom changes has a layer of its own"
            yield subject.finding(
                "LayerOverBudget", message, layer, hint, severity=Severity.ERROR, files=files, size=size - limit
            )


def waste_over_budget(subject: ImageSubject) -> Iterator[Finding]:
    """No more should be shipped in vain than --max-waste says.

    Why: bytes that no container can see are bytes that each machine pays for.
    """
    budget = subject.budget
    if budget.max_waste is None and budget.waste_percent is None:
        return
    files = [item for item in subject.shipped if item.size and not item.names and subject.layers[item.layer].own]
    wasted = sum(item.size for item in files)
    shipped = sum(_bytes(subject, layer) for layer in subject.layers if layer.own)
    limit = budget.max_waste if budget.max_waste is not None else int(shipped * (budget.waste_percent or 0) / 100)
    if wasted > limit:
        asked = budget.max_waste if budget.max_waste is not None else f"{budget.waste_percent:g}%"
        share = f"{100 * wasted / shipped:.1f}% of what the own layers ship"
        message = f"{wasted} bytes ({amount(wasted)}, {share}) are shipped and not seen, more than --max-waste {asked} "
        message += f"allows: {worst(files)}"
        yield subject.finding(
            "WasteOverBudget", message, None, severity=Severity.ERROR, files=files, size=wasted - limit
        )


def _bytes(subject: ImageSubject, layer: ImageLayer) -> int:
    """What a layer ships."""
    return sum(item.size for item in subject.shipped if item.layer == layer.number)


RULES = (
    LayerRule(
        "DeletedLater", "A file should be deleted by the instruction that made it, or not be made.", deleted_later
    ),
    LayerRule("RewrittenFiles", "A file should be written by one instruction.", rewritten_files),
    LayerRule("MetadataRewrite", "Owner and mode should be right from the start.", metadata_rewrite),
    LayerRule("DuplicateFiles", "The same content should be in the image once.", duplicate_files, Severity.INFO),
    LayerRule("EmptyLayer", "A RUN should change something.", empty_layer, Severity.INFO),
    LayerRule("LargeFile", "A file of more than 100 MiB should be there on purpose.", large_file, Severity.INFO),
    LayerRule("DamagedLayer", "A layer should be what its digest says.", damaged_layer, Severity.ERROR),
    LayerRule(
        "ImageOverBudget",
        "The image should not be larger than --max-size says.",
        image_over_budget,
        Severity.ERROR,
        demanded=True,
    ),
    LayerRule(
        "LayerOverBudget",
        "No layer should be larger than --max-layer says.",
        layer_over_budget,
        Severity.ERROR,
        demanded=True,
    ),
    LayerRule(
        "WasteOverBudget",
        "No more should be shipped in vain than --max-waste says.",
        waste_over_budget,
        Severity.ERROR,
        demanded=True,
    ),
)

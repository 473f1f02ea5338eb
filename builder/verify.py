"""Whether a build gives the same image twice, and where it does not: step, path, bytes, likely cause.

The first build is as any other without a cache. The second has another store in another folder, begins at another
second, and sees its context as another checkout would show it: with other times, and modes of another umask. What
pybuild keeps the same for all builds (host name, environment, umask and user of a RUN) is no source of differences.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from builder import causes
from builder.build import open_request, prepare, remote_of
from builder.causes import Cause, Sample
from builder.engine import Engine
from builder.errors import BuildError
from builder.survey import examine
from cache.entries import Kind
from cache.oci import canonical
from cache.reference import Reference
from cache.store import Store
from cache.tree import Tree

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from builder.assembly import Made
    from builder.context import Change
    from builder.engine import Ground, Work
    from builder.events import Reporter
    from builder.model import BuildRequest, ImageResult
    from builder.registries import Registries
    from cache.entries import Entry
    from cache.oci import Layer

MOST_RANGES = 100
"""Of one file; more are counted and not kept."""

_SAMPLES = 8
_GAP = 8
_PIECE = 1 << 20
_SHORTEST = 1.1
_LATER = 401 * 86400 + 11 * 3600
_LINES = 4 << 20


class Difference(Struct, frozen=True):
    """One thing that differs. stage, step, line, title: of the instruction that made it; step 0 for the config.

    path: in the image, without a leading slash; a key's path in the config. fact: `content`, `time`, `mode`, `owner`,
    `kind`, `target`, `attributes`, `only in the first` or `second`, `value`. first, second: what it is; of a
    content, how long. ranges: offsets of the first byte that differs and of the first after it; `more` are left out.
    """

    stage: str
    step: int
    line: int
    title: str
    path: str
    fact: str
    cause: Cause
    first: str = ""
    second: str = ""
    ranges: tuple[tuple[int, int], ...] = ()
    more: int = 0


class Verdict(Struct, frozen=True):
    """What came of it. first, second: digests of the manifests. differences: in the order of stages and steps.

    inner: differences in stages that did not reach the image.
    """

    first: str
    second: str
    differences: tuple[Difference, ...] = ()
    inner: tuple[Difference, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both builds gave the same image, to the last byte of its manifest."""
        return self.first == self.second


class _Built(Struct, frozen=True):
    store: Store
    image: ImageResult
    stages: tuple[tuple[str, tuple[Made, ...]], ...]
    target: str


def verify(
    request: BuildRequest,
    *,
    store: Store,
    scratch: Path,
    isolation: Ground,
    report: Reporter,
    stop: threading.Event,
    keep: Path | None = None,
    registries: Callable[[], Registries] | None = None,
) -> Verdict:
    """Build twice and compare. store: where bases come from; nothing else is read from it or written to it.

    scratch: an empty folder for the two stores, to be removed by the caller. keep: a folder to write both versions of
    the files that differ to, below `1` and `2`. registries: as of `build`. Raises as `build` does.
    """
    if request.context == "-" or request.file == "-":
        raise BuildError("verify builds twice, and standard input can be read once", hint="name a folder or a file")
    if request.platforms:
        raise BuildError("verify compares builds for one platform", hint="--platform with one of them")
    request = replace(request, no_cache=True, tags=(), outputs=())
    with ExitStack() as stack:
        started = time.time()
        one = stack.enter_context(Store.open(scratch / "one"))
        first = _once(request, store, one, isolation, report, stop, registries, None)
        # Times are told in seconds: a step of both builds is not to fall into one.
        left = _SHORTEST - (time.time() - started)
        if left > 0 and stop.wait(left):
            raise BuildError("the build was stopped")
        (scratch / "another-place").mkdir()
        other = Store.open(scratch / "another-place" / "two")
        umask = os.umask(0o027)
        try:
            second = _once(request, store, stack.enter_context(other), isolation, report, stop, registries, _elsewhere)
        finally:
            os.umask(umask)
        return _compared(first, second, keep)


def _elsewhere(entry: Entry) -> Entry:
    """The entry in another checkout: at another time, by someone with another umask."""
    mode = entry.mode
    if entry.kind in {Kind.FILE, Kind.DIRECTORY}:
        mode = mode & ~0o020 if mode & 0o020 else mode | 0o020
    return replace(entry, mode=mode, mtime_ns=entry.mtime_ns - _LATER * 10**9)


def _once(
    request: BuildRequest,
    bases: Store,
    store: Store,
    isolation: Ground,
    report: Reporter,
    stop: threading.Event,
    registries: Callable[[], Registries] | None,
    change: Change | None,
) -> _Built:
    with bases.lease(), store.lease(), open_request(request, store, None) as contexts:
        if change is not None:
            contexts.alter(change)
        _bring_bases(bases, store)
        made, work = prepare(request, store, contexts, remote_of(request, store, registries, report, stop))
        examine(made, work.stages, contexts).enforce()
        engine = Engine(work, store=store, ground=isolation, report=report, stop=stop)
        engine.run()
        image = engine.image(made.target)
        return _Built(store, image, engine.made(), _title(work))


def _title(work: Work) -> str:
    return next(stage.plan.title for stage in work.stages if stage.plan.stage.index == work.target)


def _bring_bases(bases: Store, store: Store) -> None:
    """Give the scratch store every image that has a name: which of them the build wants is known only from inside."""
    for image in bases.images():
        if not image.names:
            continue
        manifest = bases.manifest(image)
        for blob in (image.manifest, manifest.config, *manifest.layers):
            source, target = bases.blob_path(blob.digest), store.blob_path(blob.digest)
            if not target.exists() and source.exists():
                target.symlink_to(source)
        adopted = store.adopt(image.manifest)
        for name in image.names:
            store.tag(Reference.parse(name), adopted.id)


# ---------------------------------------------------------------- comparing


def _compared(first: _Built, second: _Built, keep: Path | None) -> Verdict:
    differences: list[Difference] = []
    inner: list[Difference] = []
    for (title, ones), (_, others) in zip(first.stages, second.stages, strict=True):
        found = differences if title == first.target else inner
        for number, (one, other) in enumerate(zip(ones, others, strict=True), 2):
            if one.layer == other.layer or (one.layer and other.layer and one.layer.diff_id == other.layer.diff_id):
                continue
            place = Difference(
                title, number, one.lowered.instruction.span.line, one.lowered.title, "", "", causes.UNKNOWN
            )
            found += _of_layers(place, (first.store, one.layer), (second.store, other.layer), keep)
    differences += _of_configs(first, second)
    return Verdict(first.image.manifest.digest, second.image.manifest.digest, tuple(differences), tuple(inner))


def _of_configs(first: _Built, second: _Built) -> Iterator[Difference]:
    """Values of the config that differ, but those that follow from the layers."""
    bare = [
        replace(built.image.config, diff_ids=()).to_json() for built in (first, second)
    ]  # fmt: skip
    place = Difference(first.target, 0, 0, "the image's config", "", "value", causes.UNKNOWN)
    for path, one, other in _unequal("", *bare):
        cause = causes.of_fact("time") if path.rpartition(".")[2] == "created" else causes.UNKNOWN
        yield replace(place, path=path, first=one, second=other, cause=cause)


def _unequal(path: str, one: object, other: object) -> Iterator[tuple[str, str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _unequal(f"{path}.{key}" if path else key, one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _unequal(f"{path}.{number}", *pair)
    elif one != other:
        yield path, canonical(one).decode(), canonical(other).decode()


def _of_layers(
    place: Difference, first: tuple[Store, Layer | None], second: tuple[Store, Layer | None], keep: Path | None
) -> Iterator[Difference]:
    """What differs between two layers of one instruction."""
    views = [Tree(store, (layer,) if layer else ()) for store, layer in (first, second)]
    rows = [{entry.path: entry for entry in _listed(store, layer)} for store, layer in (first, second)]
    for path in sorted({*rows[0], *rows[1]}, key=lambda path: path.split(b"/")):
        one, other = rows[0].get(path), rows[1].get(path)
        here = replace(place, path=path.decode("utf-8", "backslashreplace"))
        if one is None or other is None:
            which = "first" if other is None else "second"
            yield replace(here, fact=f"only in the {which}", cause=causes.of_name(path))
            continue
        for fact, values in _facts(one, other):
            cause = causes.of_fact(fact)
            yield replace(here, fact=fact, first=values[0], second=values[1], cause=cause)
        if one.kind is other.kind is Kind.FILE and one.digest != other.digest:
            contents = [view.entry(path) for view in views]
            if contents[0] is not None and contents[1] is not None:
                yield _of_contents(here, path, contents[0], contents[1], keep)


def _listed(store: Store, layer: Layer | None) -> Sequence[Entry]:
    from cache.layers import listing

    return listing(store, layer) if layer else ()


def _facts(one: Entry, other: Entry) -> Iterator[tuple[str, tuple[str, str]]]:
    """What is told of a path beside its content, where it differs."""
    if one.kind is not other.kind:
        yield "kind", (one.kind.value, other.kind.value)
        return
    if one.mode != other.mode:
        yield "mode", (f"{one.mode:04o}", f"{other.mode:04o}")
    if (one.uid, one.gid) != (other.uid, other.gid):
        yield "owner", (f"{one.uid}:{one.gid}", f"{other.uid}:{other.gid}")
    if one.mtime_ns != other.mtime_ns:
        yield "time", (_when(one.mtime_ns), _when(other.mtime_ns))
    if (one.target, one.device) != (other.target, other.device):
        yield "target", (_leads(one), _leads(other))
    if one.xattrs != other.xattrs:
        yield "attributes", (repr(dict(one.xattrs)), repr(dict(other.xattrs)))


def _leads(entry: Entry) -> str:
    return entry.target.decode("utf-8", "backslashreplace") or "{}:{}".format(*entry.device)


def _when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def _of_contents(here: Difference, path: bytes, one: Entry, other: Entry, keep: Path | None) -> Difference:
    """Which bytes of a file differ."""
    assert one.content is not None
    assert other.content is not None
    ranges: list[tuple[int, int]] = []
    samples: list[Sample] = []
    more = 0
    head = b""
    lines: list[list[bytes]] | None = [[], []] if max(one.size, other.size) <= _LINES else None
    with ExitStack() as stack:
        streams = [stack.enter_context(entry.content.open()) for entry in (one, other) if entry.content]
        copies = [stack.enter_context(_kept(keep, number, path)) for number in (1, 2)] if keep else []
        at, tail = 0, (b"", b"")
        while True:
            pieces = [_exactly(stream, _PIECE) for stream in streams]
            if not any(pieces):
                break
            for copy, piece in zip(copies, pieces, strict=False):
                copy.write(piece)
            head = head or pieces[0][: causes.HEAD]
            if lines is not None:
                for kept, piece in zip(lines, pieces, strict=True):
                    kept.append(piece)
            for start, end in _apart(pieces[0], pieces[1]):
                if ranges and at + start - ranges[-1][1] < _GAP:
                    ranges[-1] = (ranges[-1][0], at + end)
                elif len(ranges) < MOST_RANGES:
                    ranges.append((at + start, at + end))
                    if len(samples) < _SAMPLES:
                        samples.append(_sample(at, start, end, pieces, tail))
                else:
                    more += 1
            tail = (pieces[0][-causes.AROUND :], pieces[1][-causes.AROUND :])
            at += _PIECE
    reordered = lines is not None and sorted(b"".join(lines[0]).split(b"\n")) == sorted(b"".join(lines[1]).split(b"\n"))
    return replace(
        here,
        fact="content",
        first=f"{one.size} bytes",
        second=f"{other.size} bytes",
        ranges=tuple(ranges),
        more=more,
        cause=causes.likely(path, head, samples, reordered=reordered),
    )


def _kept(keep: Path, number: int, path: bytes) -> BinaryIO:
    place = Path(os.fsdecode(os.path.join(os.fsencode(keep), str(number).encode(), path)))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.open("wb")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _apart(one: bytes, other: bytes) -> Iterator[tuple[int, int]]:
    """The ranges in which two pieces differ; those that are near each other as one."""
    length = min(len(one), len(other))
    start = end = -1
    for base in range(0, length, 4096):
        if one[base : base + 4096] == other[base : base + 4096]:
            continue
        for at in range(base, min(base + 4096, length)):
            if one[at] != other[at]:
                if start >= 0 and at - end >= _GAP:
                    yield start, end
                    start = at
                start = at if start < 0 else start
                end = at + 1
    if len(one) != len(other):
        if start >= 0 and length - end >= _GAP:
            yield start, end
            start = length
        start, end = (length if start < 0 else start), max(len(one), len(other))
    if start >= 0:
        yield start, end


def _sample(at: int, start: int, end: int, pieces: list[bytes], tail: tuple[bytes, bytes]) -> Sample:
    around = []
    for piece, before in zip(pieces, tail, strict=True):
        low = start - causes.AROUND
        ahead = before[low:] if low < 0 else b""
        around.append(ahead + piece[max(low, 0) : min(end, start + 256) + causes.AROUND])
    return Sample(at + start, at + end, around[0], around[1])

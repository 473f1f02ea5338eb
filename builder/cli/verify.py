"""`pybuild verify`: build twice, and tell where the two images differ."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.build import BUILD, request_of, style_of
from builder.cli.flags import Command, Flag, UsageError
from builder.cli.opened import choose_isolation, open_registries, open_store
from builder.terminal import progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from builder.causes import Cause
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.verify import Difference, Verdict

_TAKEN = {
    "file", "target", "build-arg", "build-context", "label", "platform", "reproducible", "progress", "quiet", "secret",
    "ssh", "add-host", "network", "shm-size", "ulimit", "allow", "ignorefile", "isolation", "pull", "insecure",
}  # fmt: skip

VERIFY = Command(
    name="verify",
    usage="[OPTIONS] PATH | URL",
    summary="Build twice without a cache, and name every path and byte that differs, with the likely cause.",
    words=(1, 1),
    flags=(
        *(flag for flag in BUILD.flags if flag.name in _TAKEN),
        Flag("format", "text or json (default: text)", value="FORMAT"),
        Flag("keep", "write both versions of the files that differ below DIR/1 and DIR/2", value="DIR"),
    ),
    notes="""\
Both builds are --reproducible, unless --reproducible=false is given. The second one has another store in another
folder, runs at another time, and sees the context with other times and modes. Neither touches the store's images or
its cache. What differs only between days, machines or processors is not found.

Exit codes: 0 the same image twice, 1 it differs, or a build failed (which standard error says).""",
)

_MOST_ROWS = 200
_MOST_RANGES = 6


def verify(given: Given, around: Surroundings) -> int:
    """Build twice and print what differs."""
    import tempfile

    from builder.cli.stopping import Stop
    from builder.verify import verify as perform
    from cache.removal import remove_tree

    form = given.one("format", "text")
    if form not in {"text", "json"}:
        raise UsageError(f"--format {form!r} is neither text nor json")
    given.values.setdefault("reproducible", ["true"])
    request = request_of(given, around.environ)
    style = style_of(given, around.environ)
    isolation = choose_isolation(given.one("isolation", "auto"))
    stop = threading.Event()
    keep = Path(given.one("keep")) if given.has("keep") else None
    scratch = Path(tempfile.mkdtemp(prefix="pybuild-verify-"))
    with Stop(stop) as stopped, open_store(given, around.environ) as store:
        display = progress(
            style,
            around.stderr,
            colour=around.colour(around.stderr),
            dumb=around.environ.get("TERM", "dumb") == "dumb",
        )
        try:
            verdict = perform(
                request,
                store=store,
                scratch=scratch,
                isolation=isolation,
                report=display,
                stop=stop,
                keep=keep,
                registries=functools.cache(lambda: open_registries(given, around.environ)),
            )
        except Exception:
            if stopped.code is not None:
                display.close()
                return stopped.tell(around)
            raise
        finally:
            display.close()
            remove_tree(scratch)
    if form == "json":
        import json

        around.say(json.dumps(_document(verdict), indent=2, ensure_ascii=False))
    else:
        for line in _lines(verdict):
            around.say(line)
    return 0 if verdict.same else 1


def _document(verdict: Verdict) -> dict[str, object]:
    from msgspec import to_builtins

    return {
        "same": verdict.same,
        "first": verdict.first,
        "second": verdict.second,
        "differences": to_builtins(verdict.differences),
        "inner": to_builtins(verdict.inner),
    }


def _lines(verdict: Verdict) -> Iterator[str]:
    from builder.terminal import printable

    if verdict.same:
        yield f"the same image twice: {verdict.first}"
    else:
        yield f"the two builds differ: {verdict.first} and {verdict.second}"
        yield from map(printable, _told(verdict.differences))
    if verdict.inner:
        yield ""
        yield (
            "in stages that are copied from, and not in the image:"
            if verdict.same
            else "in stages that are copied from, where it may begin:"
        )
        yield from map(printable, _told(verdict.inner))


def _told(differences: Iterable[Difference]) -> Iterator[str]:
    """A heading for each step, a line for each path, and the cause below those that have it in common."""
    place: tuple[str, int] | None = None
    cause: Cause | None = None
    for number, each in enumerate(differences):
        if cause is not None and (number == _MOST_ROWS or each.cause != cause or (each.stage, each.step) != place):
            yield f"      likely: {cause.what}; {cause.hint}"
        if number == _MOST_ROWS:
            cause = None
            yield "  and more, all of which --format json tells"
            break
        if (each.stage, each.step) != place:
            place = (each.stage, each.step)
            yield ""
            yield f"[{each.stage} {each.step}] {each.title} (line {each.line})" if each.step else each.title
        cause = each.cause
        yield f"  {'/' if each.step else ''}{each.path}: {_what(each)}"
    if cause is not None:
        yield f"      likely: {cause.what}; {cause.hint}"


def _what(each: Difference) -> str:
    if each.fact == "content":
        shown = [f"{start}" if end == start + 1 else f"{start}-{end - 1}" for start, end in each.ranges[:_MOST_RANGES]]
        more = len(each.ranges) + each.more - len(shown)
        size = each.first if each.first == each.second else f"{each.first} and {each.second}"
        return f"bytes {', '.join(shown)}{f' and {more} more places' if more else ''} of {size}"
    if each.first or each.second:
        return f"{each.fact} {each.first} and {each.second}"
    return each.fact

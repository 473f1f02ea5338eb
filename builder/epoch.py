"""SOURCE_DATE_EPOCH where it names a source and not a number: the time of that source.

`context`, a named context, or a stage that does nothing but one remote ADD. A repository's time is its commit's, also
that of a folder which is a checkout; a URL's its Last-Modified, and otherwise it is that of the newest file: of the
archive, or of the folder. BuildKit leaves the folders out: their times say when they were checked out, unless somebody
has set them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.context import is_image, is_remote, looks_like_archive, walk
from builder.errors import BuildError
from builder.model import GitSource, Origin, UrlSource
from builder.plan import EPOCH, plan
from cache.entries import Kind
from cache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from builder.context import Contexts
    from builder.fetch import Fetcher
    from builder.model import BuildRequest, Plan
    from cache.entries import Entry
    from grammar.instructions import Dockerfile


def plan_of(request: BuildRequest, dockerfile: Dockerfile, contexts: Contexts) -> Plan:
    """The plan of a request, in which SOURCE_DATE_EPOCH is a number, or unset when the source it names has no time.

    Raises what `plan` and `resolve` do.
    """
    build_args = dict(request.build_args)
    named = dict(request.build_contexts)

    def planned() -> Plan:
        return plan(
            dockerfile,
            request.target,
            build_args,
            request.platform,
            list(named),
            allow=request.run.allow,
            reproducible=request.reproducible,
        )

    made = planned()
    if made.epoch_source is None:
        return made
    epoch = resolve(made.epoch_source, request.context, named, contexts)
    build_args[EPOCH] = "" if epoch is None else str(epoch)
    return planned()


def resolve(
    source: Origin | UrlSource | GitSource, context: str, named: Mapping[str, str], contexts: Contexts
) -> int | None:
    """The time of a source in seconds; None when it has none.

    context and named: what the main and the named contexts were called on the command line. BuildError when the source
    can not be had, or is an image.
    """
    match source:
        case UrlSource():
            return _of_url(source.url, source.checksum, _fetcher(contexts, source.url))
        case GitSource():
            fetcher = _fetcher(contexts, source.url)
            return fetcher.committed(fetcher.ref_of(source))
        case Origin(context=str(name)):
            return _of_context(name, named[name] if name else context, contexts)
        case _:
            raise AssertionError(source)


def _of_context(name: str, value: str, contexts: Contexts) -> int | None:
    if name and is_image(value):
        raise BuildError(f"SOURCE_DATE_EPOCH={name}: the context is an image, which has no time of its own")
    if is_remote(value):
        fetcher = _fetcher(contexts, value)
        git = fetcher.git_ref(value, context=True)
        if git is not None:
            return fetcher.committed(git)
        modified = fetcher.download(value).modified
        if modified:
            return modified
    elif (committed := _checked_out(value)) is not None:
        return committed
    return newest(walk(contexts.files(name)))


def _checked_out(folder: str) -> int | None:
    """When the commit was made that a folder of this machine is the top of a checkout of; None when it is none.

    The commit object itself is read: nothing that the repository's own configuration names is started.
    """
    import os
    import subprocess

    if not os.path.exists(os.path.join(folder, ".git")):
        return None
    words = ["git", "-C", folder, "--no-replace-objects", "cat-file", "commit", "HEAD"]
    try:
        done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    for line in done.stdout.split(b"\n\n")[0].splitlines():
        if line.startswith(b"committer "):
            return int(line.split()[-2])
    return None


def _of_url(url: str, checksum: str, fetcher: Fetcher) -> int | None:
    download = fetcher.download(url, checksum)
    if download.modified:
        return download.modified
    from cache import layers

    with download.path.open("rb") as stream:
        if not looks_like_archive(stream.read(512)):
            return None
        stream.seek(0)
        try:
            return newest(layers.read(stream))
        except StoreError:
            return None  # it only looked like an archive


def newest(entries: Iterable[Entry]) -> int | None:
    """The time of the newest regular file, in whole seconds; None without one."""
    return max((entry.mtime_ns // 10**9 for entry in entries if entry.kind is Kind.FILE), default=None)


def _fetcher(contexts: Contexts, url: str) -> Fetcher:
    if contexts.fetcher is None:
        raise BuildError(f"{url} can not be fetched here")
    return contexts.fetcher()

"""RunSteps carried out: a snapshot to write in, the process described, executed, its changes written as a layer.

One `Runner` serves a whole build, from several threads at once. It is made at the first RUN that is not in the cache:
what it needs (an executor with its helper process, snapshots, copies of mounted sources) no other build pays for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from builder.agents import Agents
from builder.errors import RunError
from builder.handlers import files as file_steps
from builder.handlers.process import Surroundings, describe
from builder.model import CacheMount, FileStep, Origin, PathSource
from cache.compression import Compression
from cache.entries import Entry, Kind
from cache.layers import apply, write_changes
from cache.tree import Tree
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from builder.executors import Executor
    from builder.model import RunStep, Supplies
    from cache.entries import Files
    from cache.layers import Written
    from cache.oci import Layer
    from cache.remote import Remotes
    from cache.snapshots import Root, Snapshots
    from cache.store import Store

_NOWHERE = Span(1, 1, 1, 1)


class Runner:
    """See the module. view: the files of an origin, None for scratch. epoch: the time of what is made, or None.

    remotes: caches outside the store, which may have the folders of cache mounts.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        snapshots: Snapshots,
        supplies: Supplies,
        view: Callable[[Origin], Files | None],
        epoch: int | None,
        remotes: Remotes | None = None,
    ) -> None:
        self._store = store
        self._executor = executor
        self._snapshots = snapshots
        self._view = view
        self._epoch = epoch
        self._remotes = remotes
        self._copying = threading.Lock()
        self._copies: dict[tuple[Origin, bytes], Path] = {}
        self._opened = contextlib.ExitStack()
        self._opened.callback(executor.close)
        self._opened.callback(snapshots.close)
        agents = Agents({source.id: source for source in supplies.ssh})
        self._opened.callback(agents.close)
        self._around = Surroundings(
            options=supplies.options,
            secrets={source.id: source for source in supplies.secrets},
            agent=agents.socket,
            resolv_conf=_resolv_conf(),
            mounts=store.root / "mounts",
            locate=self._locate,
            seed=self._seed,
            fill=None if remotes is None else lambda name, place: remotes.fill(name, place, snapshots.dialect),
        )

    def run(
        self, step: RunStep, layers: tuple[Layer, ...], output: Callable[[bytes], None], stop: threading.Event
    ) -> Written | None:
        """Run the step's command on top of `layers`; the layer of its changes, None when there are none.

        Raises RunError, with the last lines of output, when the command fails; nothing of it is kept then.
        """
        tail = Tail()

        def both(data: bytes) -> None:
            tail.add(data)
            output(data)

        with self._snapshots.prepare(layers) as working, contextlib.ExitStack() as opened:
            spec = describe(step, working.root, Tree(self._store, layers), self._around, opened, stop)
            status = self._executor.run(spec, both, stop)
            if status != 0:
                command = " ".join(step.argv).replace("\n", "\\n")
                raise RunError(
                    f'process "{command}" did not complete successfully: exit code: {status}',
                    status,
                    notes=tail.lines(),
                )
            if self._remotes is not None:
                folders = {bind.target: bind.source for bind in spec.binds}
                for mount in step.mounts:
                    folder = folders.get(mount.target) if isinstance(mount, CacheMount) else None
                    if isinstance(mount, CacheMount) and not mount.readonly and isinstance(folder, Path):
                        self._remotes.mounted(mount.id, folder)
            compression = Compression("gzip", exact=self._epoch is not None)
            changes = working.changes()
            if self._epoch is not None:
                changes = spelled_out(changes, Tree(self._store, layers))
            written = write_changes(changes, self._store, compression, self._epoch)
            # The root has other times than the layer says, and the next RUN is not to see them.
            if written is not None and self._epoch is None:
                working.commit(written)
            return written

    def close(self) -> None:
        """End the helper processes and remove the copies. Idempotent."""
        self._opened.close()

    def _locate(self, origin: Origin, path: str) -> tuple[Path | Root, str]:
        """Where the files below `path` of an origin can be mounted from, and the path there. FileNotFoundError.

        Layers are a root that is mounted read-only. A context is shown as a COPY would see it, ignore file applied and
        owned by root: as a copy, made once per build for each path asked for.
        """
        view = self._view(origin)
        if view is None:
            raise FileNotFoundError(path)
        inside = view.resolve(os.fsencode(path.strip("/")))
        entry = view.entry(inside)
        if entry is None and inside:
            raise FileNotFoundError(path)
        if isinstance(view, Tree):
            return self._snapshots.view(view.layers), os.fsdecode(inside)
        with self._copying:
            place = self._copies.get((origin, inside))
            if place is None:
                place = self._scratch() / str(len(self._copies))
                place.mkdir()
                place.chmod(0o755)  # mkdir's mode is the umask's
                self._seed(origin, path, place)
                self._copies[origin, inside] = place
        single = entry is not None and entry.kind is not Kind.DIRECTORY
        return (place / os.fsdecode(inside.rpartition(b"/")[2]) if single else place), ""

    def _seed(self, origin: Origin, path: str, folder: Path) -> None:
        """Copy what lies below `path` of an origin into a folder of this machine."""
        step = FileStep(origin, (PathSource(path, _NOWHERE),), "/", into=True)
        entries = file_steps.perform(step, self._view(origin), Tree(self._store, ()), epoch=self._epoch)
        apply(entries, folder, self._snapshots.dialect)
        if self._epoch is not None:
            os.utime(folder, (self._epoch, self._epoch))

    def _scratch(self) -> Path:
        if not self._copies:
            import tempfile

            from cache.removal import remove_tree

            place = tempfile.mkdtemp(prefix="mounts-", dir=self._store.root / "tmp")
            self._opened.callback(remove_tree, Path(place))
            self._place = Path(place)
        return self._place


def spelled_out(entries: Iterable[Entry], parent: Files) -> Iterator[Entry]:
    """The entries, with each deletion by its name in the place of opaque directories, in the order of a walk.

    So every tier says the same of the same changes: one that compares what was there with what is there knows nothing
    of a directory that was removed and made anew.
    """
    found = {(entry.path, entry.kind is Kind.OPAQUE): entry for entry in entries}
    opaque = [path for path, is_opaque in found if is_opaque]
    for path in opaque:
        del found[path, True]
    waiting = list(opaque)
    while waiting:
        for below in parent.children(waiting.pop()):
            there = found.get((below.path, False))
            if there is None:
                found[below.path, False] = Entry(below.path, Kind.WHITEOUT)
            elif there.kind is below.kind is Kind.DIRECTORY:
                waiting.append(below.path)
    yield from sorted(found.values(), key=lambda entry: entry.path.split(b"/")) if opaque else found.values()


def _resolv_conf() -> bytes:
    """This machine's resolver configuration: a RUN shares its network."""
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return b""


class Tail:
    """The last lines of a command's output, for the error that it may end in."""

    LINES = 20
    BYTES = 8 << 10

    def __init__(self) -> None:
        self._data = b""

    def add(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._data = (self._data + data)[-self.BYTES :]

    def lines(self) -> tuple[str, ...]:
        """What is kept, as lines of text."""
        text = self._data.decode("utf-8", "replace")
        return tuple(text.splitlines()[-self.LINES :])

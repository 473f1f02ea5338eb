"""The instruction cache kept elsewhere: records and layers on shelves, for other machines and for later.

A step's record is a sheet `step-<key>` (see `cache.shelves`): an OCI manifest whose config holds the readable parts of
the key, whose layers are the step's layer and its listing, and whose annotation is the record. Looking one up is one
request, whatever the size of the cache; writing one touches nothing that anybody else writes. The same sheet, as
`place-<hash of what the step says>`, explains misses where the own store has nothing to compare with. The listing is so
that destinations of COPY, users' names and rules that look into layers need none of the layer's own bytes.

A layer that is found elsewhere stays there until bytes of it are wanted: `Remotes` stands behind the store
(`Store.elsewhere`), which asks it for blobs that it has not. Then the blob is fetched, verified and kept, and the
record goes into the store's own index. A blob that was promised and can not be had is *lost*: the build begins anew
without it, and finds all else that it has done in its own cache.

Several machines that read and write one shelf share the work. Who is about to do a step puts a sheet `claim-<key>`
with a random id, waits until it would see anybody else's, and reads it back: of several the last one stands, and has
the step. The others ask again and again for the record. A claim is renewed while the step is done and its layer is
sent; one that stands still for `_EXPIRY` seconds, by the clock of whoever watches it, counts no more. This is no lock:
two may do the same step when their claims cross on the way. That costs work and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
import zlib
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, Self, cast

import msgspec
from msgspec import Struct

from cache import listings
from cache.compression import decompressed
from cache.contents import PIECE
from cache.errors import CorruptError, LostError, StoreError
from cache.index import Record
from cache.layers import listing_data
from cache.oci import Descriptor, Digest, ImageConfig, Layer, Manifest, digest, digest_of, parse_json
from cache.shelves import read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cache.disk import Dialect
    from cache.index import Place
    from cache.reasons import Part
    from cache.shelves import Repository, Shelf
    from cache.store import Store

PARTS = "application/vnd.pybuild.step.v1+gzip"
LISTING = "application/vnd.pybuild.listing.v1+gzip"
EMPTY = Descriptor(
    "application/vnd.oci.empty.v1+json",
    Digest("sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    2,
)
"""https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidance-for-an-empty-descriptor."""

_RECORD = "pybuild.step"
_CLAIM = "pybuild.claim"
_INLINE = "pybuild.cache"

_EXPIRY = 30.0
_BEAT = 8.0
_LONG_AGO = 600.0
"""Seconds after which a claim is dead by any clock; those of two machines may differ by minutes."""

_POLL = (0.1, 1.0)
_WORKERS = 3
_LARGE = 1 << 20
"""Bytes of a blob whose fetching is told."""
_PAUSE = 0.02
_LAST_WORDS = 1.0
_PATIENCE = 10.0
"""Seconds to wait for a cache mount that another build has for itself."""
_LISTING_LIMIT = 256 << 20
_PARTS_LIMIT = 64 << 20
_CONFIG_LIMIT = 8 << 20


class Found(Struct, frozen=True):
    """A record that lies elsewhere. written: when its step was done, in seconds since 1970.

    blob, listing, parts: where its layer, the layer's listing and the key's parts lie; None where there is none.
    """

    record: Record
    written: float
    shelf: Shelf
    listing: Descriptor | None = None
    parts: Descriptor | None = None


class Source(Protocol):
    """Something that records are taken from. StoreError when it can not be asked, CorruptError for one bad record."""

    @property
    def title(self) -> str:
        """How messages call it."""
        ...

    @property
    def shelf(self) -> Shelf:
        """Where the blobs are that its records name."""
        ...

    def find(self, key: str) -> Found | None:
        """The record of this key, or None."""
        ...


class Target(Struct, frozen=True):
    """A shelf that records are put on. mode: max for every step, min for those that the built image consists of.

    required: that it can not be written is an error of the build. mounts: the folders of cache mounts are put there,
    too, in no more than so many bytes; None for not.
    """

    shelf: Shelf
    mode: Literal["min", "max"] = "max"
    required: bool = False
    mounts: int | None = None

    def takes(self, *, final: bool) -> bool:
        """Whether a step is put there. final: the built image consists of it."""
        return final or self.mode == "max"


class Steps:
    """The records of a shelf, as a `Source`. mounts: folders of cache mounts are taken from it, too."""

    def __init__(self, shelf: Shelf, *, mounts: bool = False) -> None:
        self.shelf = shelf
        self.mounts = mounts

    @property
    def title(self) -> str:
        """See `Source.title`."""
        return self.shelf.title

    def find(self, key: str) -> Found | None:
        """See `Source.find`."""
        sheet = self.shelf.find(f"step-{key}")
        return None if sheet is None else read_record(sheet, key, self.shelf)


class Inline:
    """The records that an image in a registry carries (`inline_note`), as a `Source`. reference: a tag or a digest."""

    mounts = False

    def __init__(self, shelf: Repository, reference: str) -> None:
        self.shelf = shelf
        self._reference = reference
        self._records: dict[str, Found] | None = None
        self._lock = threading.Lock()

    @property
    def title(self) -> str:
        """See `Source.title`."""
        return f"{self.shelf.name}{'@' if ':' in self._reference else ':'}{self._reference}"

    def find(self, key: str) -> Found | None:
        """See `Source.find`. The image's manifest is read at the first call."""
        with self._lock:
            if self._records is None:
                self._records = {}
                for manifest in self.shelf.images(self._reference):
                    self._records.update(self._of(manifest))
        return self._records.get(key)

    def _of(self, manifest: Manifest) -> dict[str, Found]:
        text = dict(manifest.annotations).get(_INLINE)
        if text is None:
            return {}
        try:
            steps = msgspec.json.decode(text, type=tuple[_Step, ...])
        except msgspec.DecodeError as error:
            raise CorruptError(f"the records of the image {self.title} are damaged: {error}") from None
        config = parse_json(read_small(self.shelf, manifest.config, _CONFIG_LIMIT), "the image config")
        diff_ids = ImageConfig.from_json(config).diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise CorruptError(f"the image {self.title} has {len(manifest.layers)} layers, its config {len(diff_ids)}")
        found = {}
        for step in steps:
            layer = None
            if step.layer >= 0:
                if step.layer >= len(diff_ids):
                    raise CorruptError(f"the records of the image {self.title} name a layer that it has not")
                layer = Layer(diff_ids[step.layer], manifest.layers[step.layer])
            record = Record(step.key, layer, step.size, step.files, step.created, 0.0)
            found[step.key] = Found(record, step.created, self.shelf)
        return found


class _Step(Struct, frozen=True, array_like=True):
    """A record in an image. layer: its number in the image, from 0; -1 for none."""

    key: str
    layer: int
    size: int
    files: int
    created: float


def inline_note(records: Sequence[Record], layers: Sequence[Layer]) -> tuple[str, str]:
    """The annotation by which an image's manifest carries the records of its own steps.

    It is in the manifest and not in the config, so that the image's id is the same with it and without. The time that a
    step took is left out: it would make every build's image another one.
    """
    places = {layer.descriptor.digest: number for number, layer in enumerate(layers)}
    steps = [
        _Step(
            record.key,
            -1 if record.layer is None else places[record.layer.descriptor.digest],
            record.size,
            record.files,
            record.created,
        )
        for record in records
        if record.layer is None or record.layer.descriptor.digest in places
    ]
    return _INLINE, msgspec.json.encode(steps).decode()


class _Written(Struct, frozen=True):
    record: Record
    written: float


def record_sheet(record: Record, written: float, parts: Descriptor, entries: Descriptor | None) -> Manifest:
    """The sheet of a record whose blobs are on the shelf: those of its layer, its parts and its layer's entries."""
    layers: tuple[Descriptor, ...] = (EMPTY,)
    if record.layer is not None:
        layers = (record.layer.descriptor,) if entries is None else (record.layer.descriptor, entries)
    text = msgspec.json.encode(_Written(record, written)).decode()
    return Manifest(parts, layers, annotations=((_RECORD, text),))


def read_record(sheet: Manifest, key: str, shelf: Shelf) -> Found:
    """What a sheet says of the step of this key. CorruptError when it does not say it of this one, or not soundly."""
    try:
        kept = msgspec.json.decode(dict(sheet.annotations).get(_RECORD, ""), type=_Written)
    except msgspec.DecodeError as error:
        raise CorruptError(f"the record of a step in {shelf.title} is damaged: {error}") from None
    record = kept.record
    if record.key != key:
        raise CorruptError(f"the record of a step in {shelf.title} is another step's")
    if record.layer is None:
        return Found(record, kept.written, shelf, parts=sheet.config)
    digest(record.layer.diff_id)
    blob = record.layer.descriptor
    if not sheet.layers or (sheet.layers[0].digest, sheet.layers[0].size) != (digest(blob.digest), blob.size):
        raise CorruptError(f"the record of a step in {shelf.title} names another layer than its manifest")
    entries = next((layer for layer in sheet.layers[1:] if layer.media_type == LISTING), None)
    return Found(record, kept.written, shelf, entries, sheet.config)


# ---------------------------------------------------------------- remotes


class Traffic(Struct):
    """Bytes of blobs that one build moved."""

    sent: int = 0
    fetched: int = 0


class Remotes:
    """All the caches elsewhere that one build uses; a context manager. Serves several threads at once.

    warn: called with a sentence, once for each thing that goes wrong; the build goes on. moving: makes a context for
    the time in which a large blob is fetched, of what it is to be called and its bytes. stopped: whether the build is
    to end, so that nothing need be fetched any more. An error other than the user's stopping (`drop`) lets what was
    done until then be sent before the context ends.
    """

    def __init__(
        self,
        store: Store,
        sources: Sequence[Source],
        targets: Sequence[Target],
        warn: Callable[[str], object],
        moving: Callable[[str, int], AbstractContextManager[object]] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.traffic = Traffic()
        self._store = store
        self._sources = list(sources)
        self._targets = list(targets)
        self._warn = warn
        self._moving = moving
        self._stopped = stopped
        self._dropped = threading.Event()
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._found: dict[str, Found] = {}
        self._far: dict[str, Found] = {}
        self._below: dict[str, tuple[Shelf, Descriptor]] = {}
        self._bases: list[tuple[tuple[Layer, ...], Callable[[], object]]] = []
        self._listings: dict[str, bytes] = {}
        self._arrivals: dict[str, list[Callable[[], object]]] = {}
        self._lost: set[str] = set()
        self._refusal: StoreError | None = None
        self._told: set[str] = set()
        self._mounted: dict[str, Path] = {}
        self._asked: set[str] = set()
        self._workers = _Workers(_WORKERS)
        shared = [s for s in sources if isinstance(s, Steps) and any(s.shelf is t.shelf for t in targets)]
        self._claims = Claims(shared[0].shelf) if shared else None

    def __enter__(self) -> Self:
        self._store.elsewhere = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._store.elsewhere = None
        if kind is not None and not issubclass(kind, Exception):
            self._dropped.set()
        try:
            self._workers.close(drop=self._dropped.is_set())
        finally:
            if self._claims is not None:
                self._claims.close()
        if self._refusal is not None and error is None:
            raise self._refusal

    def complete(self, layers: Sequence[Layer]) -> None:
        """Have the bytes of all these layers in the store. LostError."""
        far = [layer.descriptor.digest for layer in layers if not self._store.holds(layer.descriptor)]
        if len(far) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(_WORKERS, "fetch") as pool:
                list(pool.map(self.bring, far))
        elif far:
            self.bring(far[0])

    def finish(self) -> bool:
        """Wait until all that was offered is sent; False when the build is stopped meanwhile."""
        while not self._workers.idle:
            if self._stopped():
                return False
            time.sleep(_PAUSE)
        return True

    def drop(self) -> None:
        """Send nothing more, not even what is on its way: the user does not wait."""
        self._dropped.set()
        self._workers.close(drop=True)

    # ------------------------------------------------------------ taking

    def find(self, key: str, *, again: bool = False) -> Found | None:
        """The record of a step, from the first source that has it. again: what was found out before does not count."""
        with self._lock:
            found = self._found.get(key)
            sources = list(self._sources)
        if found is not None and not again:
            return found if self._usable(found) else None
        for source in sources:
            try:
                found = source.find(key)
                layer = found.record.layer if found is not None else None
                if layer is not None and self._store.holds(layer.descriptor):
                    _check_known(self._store, layer)
            except CorruptError as error:
                self._tell(f"{source.title}: {error.message}; the step is looked for elsewhere, or done")
                continue
            except StoreError as error:
                self._give_up(source, error)
                continue
            if found is not None and self._usable(found):
                with self._lock:
                    self._found[key] = found
                    if found.record.layer is not None:
                        self._far[found.record.layer.descriptor.digest] = found
                return found
        return None

    def explanation(self, place: Place) -> tuple[Sequence[Part], Sequence[Part]] | None:
        """The parts and notes of the last record that was made of a step of this stage and these words; or None."""
        for source in self._sources:
            if isinstance(source, Steps):
                # It is for reading only: what is wrong with it is no matter.
                with suppress(StoreError, msgspec.DecodeError):
                    sheet = source.shelf.find(_place_name(place))
                    if sheet is not None:
                        data = _gunzipped(read_small(source.shelf, sheet.config, _PARTS_LIMIT), _PARTS_LIMIT)
                        found = msgspec.json.decode(data, type=_Explained)
                        return found.parts, found.notes
        return None

    def on_arrival(self, found: Found, action: Callable[[], object]) -> None:
        """Do something when the record's layer is in the store: now, or when its bytes have been fetched."""
        layer = found.record.layer
        if layer is None or self._store.holds(layer.descriptor):
            action()
            return
        with self._lock:
            self._arrivals.setdefault(layer.descriptor.digest, []).append(action)

    def bring(self, digest: Digest) -> bool:
        """Have a blob in the store that was found elsewhere; False for one that was not. See `cache.store.Elsewhere`.

        LostError when a step's layer should be there and can not be had whole, StoreError when a base's can not.
        """
        with self._lock:
            found, below = self._far.get(digest), self._below.get(digest)
            if found is None and below is None:
                return False
            lock = self._fetching.setdefault(digest, threading.Lock())
        with lock:
            if below is not None and not self._store.holds(below[1]):
                try:
                    self._fetch(*below)
                except StoreError as error:
                    if found is None or isinstance(error, StoppedError):
                        raise
            if found is not None and found.record.layer is not None:
                try:
                    if self._fetch(found.shelf, found.record.layer.descriptor):
                        _check_contents(self._store, found.record.layer)
                except StoppedError:
                    raise
                except StoreError as error:
                    raise self._lose(found, error) from error
        with self._lock:
            arrived = self._arrivals.pop(digest, [])
        for action in arrived:
            action()
        return True

    def _fetch(self, shelf: Shelf, blob: Descriptor) -> bool:
        """Have a blob of a shelf in the store, verified; whether it had to be fetched."""
        if self._store.holds(blob):
            return False
        what = f"fetching {blob.digest[7:19]} from {shelf.title}"
        told = self._moving if blob.size >= _LARGE else None
        with told(what, blob.size) if told is not None else nullcontext(), self._store.writer() as writer:
            shelf.read(blob, _Watched(writer, self._stopped))
            writer.commit(blob.digest, blob.size)
        with self._lock:
            self.traffic.fetched += blob.size
        return True

    def stand_on(self, shelf: Shelf, layers: Sequence[Layer], arrived: Callable[[], object]) -> None:
        """The build stands on an image whose layers lie on a shelf until they are wanted.

        arrived: called by `adopt` when all of them have been.
        """
        with self._lock:
            self._below.update({layer.descriptor.digest: (shelf, layer.descriptor) for layer in layers})
            self._bases.append((tuple(layers), arrived))

    def adopt(self) -> None:
        """Call what waits for all the layers of an image to be in the store, where they are now."""
        for layers, arrived in self._bases:
            if all(self._store.holds(layer.descriptor) for layer in layers):
                arrived()

    def listing(self, layer: Layer) -> bytes | None:
        """What a layer holds that lies elsewhere; None where that has to be found out from the layer's bytes."""
        with self._lock:
            known = self._listings.get(layer.diff_id)
            found = self._far.get(layer.descriptor.digest)
        if known is not None or found is None or found.listing is None:
            return known
        try:
            data = read_small(found.shelf, found.listing, _LISTING_LIMIT)
            plain = _gunzipped(data, _LISTING_LIMIT)
            if not listings.is_sound(plain):
                return None  # of another version
        except StoreError as error:
            self._tell(f"{found.shelf.title}: {error.message}; the layer itself is read")
            return None
        with self._lock:
            self.traffic.fetched += len(data)
            self._listings[layer.diff_id] = plain
        return plain

    @property
    def lost(self) -> int:
        """How many blobs were promised and could not be had."""
        return len(self._lost)

    def _usable(self, found: Found) -> bool:
        return found.record.layer is None or found.record.layer.descriptor.digest not in self._lost

    def _lose(self, found: Found, error: StoreError) -> LostError:
        assert found.record.layer is not None
        blob = found.record.layer.descriptor.digest
        with self._lock:
            self._lost.add(blob)
            self._far.pop(blob, None)
            self._arrivals.pop(blob, None)
        self._tell(f"{found.shelf.title}: a layer can not be had: {error.message}; its step is done again")
        return LostError(f"the layer {blob} of {found.shelf.title} can not be had: {error.message}", error.hint)

    def _give_up(self, source: Source, error: StoreError) -> None:
        with self._lock:
            if source not in self._sources:
                return
            self._sources = [other for other in self._sources if other.shelf is not source.shelf]
            if self._claims is not None and self._claims.shelf is source.shelf:
                self._claims = None
            gone = _is_unreachable(error)
            for target in [target for target in self._targets if gone and target.shelf is source.shelf]:
                self._drop_target(target, error)
        if gone:
            self._tell(f"the cache {source.title} is not used: {error.message}")
        else:
            self._tell(f"nothing more is taken from the cache {source.title}: {error.message}")

    def _tell(self, sentence: str) -> None:
        with self._lock:
            if sentence in self._told:
                return
            self._told.add(sentence)
        self._warn(sentence)

    # ------------------------------------------------------------ sharing

    @contextmanager
    def turn(self, key: str, wait: Callable[[float], object], *, final: bool) -> Iterator[Found | None]:
        """The right to do a step, while the block lasts and until it is sent; or its record, where another has done it.

        wait: called with seconds to wait, again and again while another machine does the step; it may raise. final: as
        in `offer`. Without a cache that is both read and written, this step too, there is nothing to wait for.
        """
        claims = self._claims
        if claims is not None and not any(t.shelf is claims.shelf and t.takes(final=final) for t in self._targets):
            claims = None
        found: Found | None = None
        if claims is not None:
            try:
                while not claims.take(key):
                    pause = _POLL[0]
                    while claims.others(key):
                        wait(pause)
                        pause = min(pause * 1.5, _POLL[1])
                        if (found := self.find(key, again=True)) is not None:
                            yield found
                            return
                found = self.find(key, again=True)
            except StoreError as error:
                self._claims = None
                self._tell(f"the work is not shared by {claims.title}: {error.message}")
        try:
            yield found
        except BaseException:
            if claims is not None:
                claims.free(key)
            raise
        if claims is not None and found is not None:
            claims.free(key)

    def earlier(self, key: str) -> Found | None:
        """After doing a step that others may have done as well: the record that came first, for all to go on from.

        So machines whose claims crossed agree on what the steps that follow stand on.
        """
        return None if self._claims is None else self.find(key, again=True)

    # ------------------------------------------------------------ giving

    def offer(
        self,
        record: Record,
        parts: Sequence[Part],
        place: Callable[[], Place],
        *,
        final: bool,
        written: float,
        anew: bool = False,
    ) -> None:
        """Have a step's record and its layer on every shelf that takes it, soon.

        place: makes what `Index.record` is given. final: the built image consists of the step. anew: it was done just
        now, so that a record of it that is there gives way.
        """
        with self._lock:
            found = self._found.get(record.key)
        takers = [
            target
            for target in self._targets
            if target.takes(final=final) and (anew or found is None or found.shelf is not target.shelf)
        ]
        if found is not None and not anew:
            written = found.written
        for target in takers:
            self._workers.add(partial(self._send, target, record, parts, place, written, anew=anew))
        if not takers and self._claims is not None:
            self._claims.free(record.key)

    def _send(
        self,
        target: Target,
        record: Record,
        parts: Sequence[Part],
        place: Callable[[], Place],
        written: float,
        *,
        anew: bool,
    ) -> None:
        shelf = target.shelf
        try:
            if target not in self._targets or (not anew and self._is_there(shelf, record)):
                return
            entries = None
            if record.layer is not None:
                layer = record.layer
                self._put(shelf, layer.descriptor, lambda: self._store.open_blob(layer.descriptor))
                data = _gzipped(listing_data(self._store, layer))
                entries = self._put_bytes(shelf, data, LISTING)
            else:
                self._put_bytes(shelf, b"{}", EMPTY.media_type)
            config = self._put_bytes(shelf, _gzipped(_parts_text(parts, place())), PARTS)
            sheet = record_sheet(record, written, config, entries)
            shelf.keep(f"step-{record.key}", sheet)
            if anew:
                shelf.keep(_place_name(place()), sheet)
        except (LostError, StoppedError):
            return  # told, and done again; not wanted any more
        except StoreError as error:
            with self._lock:
                if target not in self._targets:
                    return
                self._drop_target(target, error)
            self._tell(f"nothing more is put into the cache {shelf.title}: {error.message}")
        finally:
            if self._claims is not None and self._claims.shelf is shelf:
                self._claims.done(record.key)

    def _drop_target(self, target: Target, error: StoreError) -> None:
        """Put nothing more there. With the lock held."""
        self._targets.remove(target)
        if target.required:
            self._refusal = StoreError(
                f"the cache {target.shelf.title} can not be written: {error.message}", error.hint
            )

    # ------------------------------------------------------------ cache mounts

    def fill(self, identity: str, place: Path, dialect: Dialect) -> bool:
        """Lay out the folder of a cache mount in the empty directory `place`, where a source has it.

        A folder is looked for once in a build.
        """
        with self._lock:
            if identity in self._asked:
                return False
            self._asked.add(identity)
            sources = [source for source in self._sources if isinstance(source, Steps) and source.mounts]
        if not sources:
            return False
        from cache import mounts

        for source in sources:
            try:
                found = mounts.look(source.shelf, identity)
                if found is not None:
                    fetched = mounts.restore(source.shelf, found, place, dialect, self._store)
                    with self._lock:
                        self.traffic.fetched += fetched
                    return True
            except StoreError as error:
                self._tell(f"{source.title}: the cache mount {identity} can not be had: {error.message}; it is empty")
        return False

    def mounted(self, identity: str, place: Path) -> None:
        """A RUN has had this folder as its cache mount, to write to: `save` is to save it."""
        with self._lock:
            self._mounted[identity] = place

    def save(self, stop: Callable[[], bool]) -> None:
        """Put the folders of cache mounts that were written to on all shelves that take them. stop: whether to end."""
        takers = [target for target in self._targets if target.mounts is not None]
        if not takers or not self._mounted:
            return
        from cache import mounts

        for target in takers:
            left = target.mounts or 0
            for identity, place in sorted(self._mounted.items()):
                try:
                    with _held(place, stop) as free:
                        if not free:
                            self._tell(f"the cache mount {identity} is not saved: another build is using it")
                            continue
                        saved = mounts.save(target.shelf, identity, place, self._store, limit=left, stop=stop)
                except (OSError, StoreError) as error:
                    reason = error.message if isinstance(error, StoreError) else error.strerror
                    self._tell(f"the cache mount {identity} is not saved in {target.shelf.title}: {reason}")
                    continue
                left -= saved.size
                with self._lock:
                    self.traffic.sent += saved.sent

    def _is_there(self, shelf: Shelf, record: Record) -> bool:
        try:
            return Steps(shelf).find(record.key) is not None
        except CorruptError:
            return False  # it is put anew

    def _put(self, shelf: Shelf, blob: Descriptor, source: Callable[[], BinaryIO]) -> None:
        if shelf.put(blob, lambda: cast("BinaryIO", _Watched(source(), self._dropped.is_set))):
            with self._lock:
                self.traffic.sent += blob.size

    def _put_bytes(self, shelf: Shelf, data: bytes, media_type: str) -> Descriptor:
        import io

        blob = Descriptor(media_type, digest_of(data), len(data))
        self._put(shelf, blob, lambda: io.BytesIO(data))
        return blob


class StoppedError(StoreError):
    """The build was stopped while bytes moved."""


class _Watched:
    """A stream, to or from a shelf, that ends with the build."""

    def __init__(self, stream: Any, stopped: Callable[[], bool]) -> None:
        self._stream = stream
        self._stopped = stopped

    def read(self, size: int, /) -> bytes:
        """See `io.RawIOBase.read`. StoppedError."""
        self._check()
        return bytes(self._stream.read(size))

    def write(self, data: bytes, /) -> object:
        """See `io.RawIOBase.write`. StoppedError."""
        self._check()
        return self._stream.write(data)

    def close(self) -> None:
        """See `io.RawIOBase.close`."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _check(self) -> None:
        if self._stopped():
            raise StoppedError("the build was stopped")


# ---------------------------------------------------------------- claims


class _Claim(Struct, frozen=True):
    """id: of whoever wants the step; empty when it is free. beat: counts up while it is done. at: by its own clock."""

    id: str
    beat: int
    at: float


class Claims:
    """Who does which step, on a shelf that several machines share. See the module. StoreError when the shelf fails."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._own: dict[str, _Claim] = {}
        self._seen: dict[str, tuple[_Claim, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._ready = False

    @property
    def title(self) -> str:
        """How messages call it."""
        return self.shelf.title

    def take(self, key: str) -> bool:
        """Claim a step; whether it is ours. Then it is renewed until `done` or `free`."""
        if self.others(key):
            return False
        mine = _Claim(os.urandom(8).hex(), 0, time.time())
        started = time.monotonic()
        self._write(key, mine)
        # Whoever looked before this was written writes within about as long as looking and writing took here.
        time.sleep(max(self.shelf.settling, 2 * (time.monotonic() - started)))
        if self._read(key) != mine:
            return False
        with self._lock:
            self._own[key] = mine
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._thread.start()
        return True

    def others(self, key: str) -> bool:
        """Whether someone else is doing the step."""
        claim = self._read(key)
        if claim is None or not claim.id or time.time() - claim.at > _LONG_AGO:
            return False
        now = time.monotonic()
        seen = self._seen.get(key)
        if seen is None or seen[0] != claim:
            self._seen[key] = (claim, now)
            return True
        return now - seen[1] < _EXPIRY

    def done(self, key: str) -> None:
        """The record is there: nobody looks at the claim any more. Idempotent."""
        with self._lock:
            mine = self._own.pop(key, None)
        if mine is not None:
            self.shelf.drop(f"claim-{key}")

    def free(self, key: str) -> None:
        """Give the step to whoever wants it. Idempotent."""
        with self._lock:
            mine = self._own.pop(key, None)
        if mine is not None:
            with suppress(StoreError):
                self._write(key, _Claim("", mine.beat, time.time()))

    def close(self) -> None:
        """Free what is left. Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for key in list(self._own):
            self.free(key)

    def _renew(self) -> None:
        while not self._ended.wait(_BEAT):
            with self._lock:
                keys = list(self._own)
            for key in keys:
                with self._lock:
                    mine = self._own.get(key)
                    if mine is None:
                        continue
                    mine = self._own[key] = _Claim(mine.id, mine.beat + 1, time.time())
                # One that can not be written lapses; then another machine does the step as well.
                with suppress(StoreError):
                    self._write(key, mine)

    def _read(self, key: str) -> _Claim | None:
        try:
            sheet = self.shelf.find(f"claim-{key}")
            if sheet is None:
                return None
            return msgspec.json.decode(dict(sheet.annotations).get(_CLAIM, ""), type=_Claim)
        except (CorruptError, msgspec.DecodeError):
            return None

    def _write(self, key: str, claim: _Claim) -> None:
        import io

        if not self._ready:
            self.shelf.put(EMPTY, lambda: io.BytesIO(b"{}"))
            self._ready = True
        text = msgspec.json.encode(claim).decode()
        self.shelf.keep(f"claim-{key}", Manifest(EMPTY, (EMPTY,), annotations=((_CLAIM, text),)))


# ---------------------------------------------------------------- in the background


class _Workers:
    """Threads that do jobs in the order in which they were added, begun when they are wanted.

    A job is not expected to raise; the first error of one is raised by `close`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._dropped = False
        self._failure: BaseException | None = None

    def add(self, job: Callable[[], object]) -> None:
        """Have a job done soon."""
        with self._lock:
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name="cache", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(job)

    @property
    def idle(self) -> bool:
        """Whether all that was added is done."""
        return not self._queue.unfinished_tasks

    def close(self, *, drop: bool) -> None:
        """End the threads; with `drop` what they are at ends by itself, or with the process. Idempotent."""
        with self._lock:
            self._dropped = self._dropped or drop
            threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        until = time.monotonic() + _LAST_WORDS
        for thread in threads:
            # One may be waiting for a registry's answer.
            thread.join(max(until - time.monotonic(), 0) if drop else None)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if not self._dropped:
                    job()
            except BaseException as error:  # raised again in the thread that closes
                self._failure = self._failure or error
            finally:
                self._queue.task_done()
        self._queue.task_done()


@contextmanager
def _held(place: Path, stop: Callable[[], bool]) -> Iterator[bool]:
    """Keep a cache mount's folder from being held by a RUN alone; False where one does, for some seconds."""
    import fcntl

    lock = os.open(f"{place.parent}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop() or time.monotonic() > until:
                    yield False
                    return
                time.sleep(_POLL[0])
            else:
                yield True
                return
    finally:
        os.close(lock)


class _Explained(Struct, frozen=True):
    """What explains a miss of a step like the one of these parts."""

    title: str
    notes: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...]


def _parts_text(parts: Sequence[Part], place: Place) -> bytes:
    # Not by msgspec: names of files need not be UTF-8, and JSON's escapes can say what stands for other bytes.
    document = {"title": place.title, "notes": list(place.notes), "parts": list(place.parts or parts)}
    return json.dumps(document, separators=(",", ":")).encode()


def _place_name(place: Place) -> str:
    """The name of the sheet that explains misses of a step. The context's place counts not: machines differ in it."""
    return "place-" + hashlib.sha256(f"{place.stage}\n{place.title}".encode("utf-8", "backslashreplace")).hexdigest()


def _check_known(store: Store, layer: Layer) -> None:
    """`_check_contents` for a blob that is here already, unless the store knows what it unpacks to."""
    rows = store.database.query(
        "SELECT 1 FROM records WHERE digest = ?1 AND diff_id = ?2 UNION ALL "
        "SELECT 1 FROM layers WHERE digest = ?1 AND diff_id = ?2 LIMIT 1",
        (layer.descriptor.digest, layer.diff_id),
    )
    if not rows:
        _check_contents(store, layer)


def _check_contents(store: Store, layer: Layer) -> None:
    """CorruptError where a layer's blob does not unpack to what the record says that it does.

    An image would be made of it in which that is wrong, and steps above it would get other keys than they should.
    """
    state = hashlib.sha256()
    with store.open_blob(layer.descriptor) as blob, decompressed(blob) as plain:
        while data := plain.read(PIECE):
            state.update(data)
    if f"sha256:{state.hexdigest()}" != layer.diff_id:
        raise CorruptError(f"the blob {layer.descriptor.digest} unpacks to something else than {layer.diff_id}")


def _is_unreachable(error: StoreError) -> bool:
    """Whether a registry gave no answer at all, so that there is no point in asking it for anything else."""
    return getattr(error, "status", None) == 0


def _gzipped(data: bytes) -> bytes:
    """Without a name and a time, so that equal bytes stay equal."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def _gunzipped(data: bytes, limit: int) -> bytes:
    try:
        decompressor = zlib.decompressobj(31)
        plain = decompressor.decompress(data, limit)
    except zlib.error as error:
        raise CorruptError(f"what should be compressed is damaged: {error}") from None
    if not decompressor.eof:
        raise CorruptError("what was compressed ends too early, or is too large")
    return plain

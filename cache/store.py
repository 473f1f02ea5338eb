"""The store: blobs by digest, images, and the names that point at them.

A store is a folder, and at all times a valid OCI image layout that other tools may read while it is in use (what they
write into `index.json` is overwritten):

    oci-layout, index.json      every image but the intermediate ones, once for each of its names
    blobs/sha256/<hex>          manifests, configs, layers; complete and in place by one rename
    pybuild.db                  images, names, instruction cache, stat cache; `index.json` can be made from it
    snapshots/ listings/        what `cache.snapshots` and `cache.layers` derive from layers
    mounts/                     cache mounts
    own.key                     a random key, once secrets have been part of a step's key
    leases/                     a locked file for each running build (see `cache.prune`)
    mounted/                    records of mounted images (see `cache.uses`)
    tmp/                        what is being written; one file system with the rest

Order of writing: blobs, then the database, then `index.json`; order of removal: the reverse. So whatever the moment at
which a process is killed, all that is listed is there. Blobs are not forced to the disk: after a power cut one may be
missing or short. Reading finds that out (`open_blob`), so does looking up a step (`cache.index`), and building again or
loading again puts it right.

Vocabulary. An image's id is the digest of its config. An image without a name is dangling. An intermediate image is the
state after one step: in the database only, without a name, freed with the last image that needs it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, cast

from msgspec import Struct
from msgspec.structs import replace

from cache.database import Database
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import (
    CONFIG,
    DOCKER_LAYER_GZIP,
    INDEX,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    REF_NAME,
    Descriptor,
    Digest,
    ImageConfig,
    Index,
    JSONObject,
    Layer,
    Manifest,
    canonical,
    chain_ids,
    digest_of,
    parse_json,
)
from cache.reference import Reference, familiar_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from cache.database import Connection
    from cache.prune import Lease, Pruned

FULL_NAME = "io.containerd.image.name"
"""The annotation by which containerd keeps a name in full."""

_LONG_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_SHORT_ID = re.compile(r"(?:sha256:)?[0-9a-f]{1,63}")

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_FOLDERS = ("blobs/sha256", "snapshots", "listings", "mounts", "leases", "tmp")


class Image(Struct, frozen=True):
    """An image of the store at the time of asking.

    id: the digest of its config. names: familiar spellings, sorted. created: RFC 3339, or empty. size: of its layers'
    blobs. parent: the image that it was built on, if the store has it.
    """

    id: Digest
    manifest: Descriptor
    names: tuple[str, ...]
    created: str
    size: int
    parent: Digest | None
    intermediate: bool

    @property
    def dangling(self) -> bool:
        """Whether it is a full image that has no name: `<none>`."""
        return not self.names and not self.intermediate


class Elsewhere(Protocol):
    """What stands behind a store while a build goes on: layers that lie elsewhere until their bytes are wanted."""

    def bring(self, digest: Digest, /) -> bool:
        """Have the blob in the store; False for one that nothing is known of. StoreError when it can not be had."""
        ...

    def listing(self, layer: Layer, /) -> bytes | None:
        """What the layer holds, as `cache.listings` has it, known without the layer's bytes; else None."""
        ...


class Store:
    """See the module. Safe to use from several threads, and from several processes on one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = Database(root / "pybuild.db")
        self.held: list[Lease] = []
        self._blobs = os.path.join(root, "blobs", "sha256", "")
        self._checked = False
        self.elsewhere: Elsewhere | None = None

    @classmethod
    def open(cls, root: Path) -> Store:
        """The store in the folder `root`, which is made if missing. Idempotent.

        Raises StoreError when the folder can not be written. The database is opened later, at the first use; that
        raises StoreError when a newer pybuild has written it.
        """
        store = cls(root.absolute())
        try:
            for folder in _FOLDERS:
                path = os.path.join(store.root, folder)
                if not os.path.isdir(path):
                    os.makedirs(store.root.parent, exist_ok=True)
                    # Set-user-id programs of images lie here, old ones too: nobody else may come near them.
                    for place in (os.fspath(store.root), os.path.dirname(path), path):
                        with suppress(FileExistsError):
                            os.mkdir(place, 0o700)
            if not os.access(store.root, os.W_OK):
                raise PermissionError(13, "Permission denied")
            # An empty file is what a power cut can leave of one that was just renamed.
            for name, data in (("index.json", _index(())), ("oci-layout", _LAYOUT)):
                if _size(os.path.join(store.root, name)) in {None, 0}:
                    store.replace_file(name, data)
        except OSError as error:
            raise StoreError(
                f"can not use {store.root} as a store: {error.strerror}", "choose another folder with --root"
            ) from error
        return store

    def close(self) -> None:
        """Close the database. A later use opens it again."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    # ------------------------------------------------------------ blobs

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies, or would lie."""
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        """Whether there is a blob of this digest; its bytes are not read."""
        return _size(self._blobs + digest[7:]) is not None

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether there is a blob of this digest and this size."""
        return _size(self._blobs + descriptor.digest[7:]) == descriptor.size

    def open_blob(self, descriptor: Descriptor | Digest) -> BinaryIO:
        """A stream of the blob, from the first byte to the last, that verifies itself.

        One that lies `elsewhere` is fetched first. Raises NotFoundError; CorruptError at once when the size is wrong,
        and from the read that delivers the last bytes when the digest is.
        """
        digest = descriptor if isinstance(descriptor, str) else descriptor.digest
        path = self._blobs + digest[7:]
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115  the reader closes it
        except FileNotFoundError:
            if self.elsewhere is None or not self.elsewhere.bring(digest):
                raise NotFoundError(f"the store has no blob {digest}") from None
            file = open(path, "rb", buffering=0)  # noqa: SIM115  as above
        size = os.fstat(file.fileno()).st_size
        if not isinstance(descriptor, str) and size != descriptor.size:
            file.close()
            raise CorruptError(f"the blob {digest} has {size} bytes instead of {descriptor.size}", _DAMAGED)
        return cast("BinaryIO", _VerifyingReader(file, digest, size))

    def read_blob(self, descriptor: Descriptor, limit: int = 4 << 20) -> bytes:
        """The bytes of a small blob, verified. Raises as `open_blob`, and CorruptError when larger than `limit`."""
        if descriptor.size > limit:
            raise CorruptError(f"the blob {descriptor.digest} has {descriptor.size} bytes, more than {limit}")
        with self.open_blob(descriptor) as stream:
            return stream.read()

    def put_blob(self, data: bytes, media_type: str) -> Descriptor:
        """Keep `data` as a blob. Idempotent."""
        digest = digest_of(data)
        if not self._same(digest, data):
            with self.writer(hashing=False) as writer:
                writer.write(data)
                writer.commit(digest, len(data), trusted=True)
        return Descriptor(media_type, digest, len(data))

    def writer(self, *, hashing: bool = True) -> BlobWriter:
        """A blob to be written in pieces. hashing=False: the caller computes the digest, see `BlobWriter.commit`."""
        return BlobWriter(self, hashing=hashing)

    def _same(self, digest: Digest, data: bytes) -> bool:
        """Whether the blob is there and whole; its time becomes now, by which `cache.prune` sees that it is wanted."""
        path = self._blobs + digest[7:]
        try:
            with open(path, "rb", buffering=0) as file:
                if file.read(len(data) + 1) != data:
                    return False
            now = time.time_ns()
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return False
        return True

    # ------------------------------------------------------------ images

    def put_image(
        self,
        config: ImageConfig,
        layers: Sequence[Layer],
        *,
        parent: Digest | None = None,
        intermediate: bool = False,
        needs: Iterable[Digest] = (),
        annotations: tuple[tuple[str, str], ...] = (),
    ) -> Image:
        """Keep an image of blobs that the store has. Idempotent; an unchanged image writes nothing.

        parent: the image that it was built on. needs: other images whose intermediates shall live as long as this one:
        the last image of each stage that it copied from. Ids of either that the store does not know are left out.
        intermediate: False makes an image that is there as an intermediate one a full one; True changes nothing about
        one that is there. annotations: of the manifest. Raises StoreError when layers and config disagree,
        NotFoundError when the blob of a layer is missing.
        """
        if config.diff_ids != tuple(layer.diff_id for layer in layers):
            raise StoreError("the layers of an image are not those that its config names")
        image_id, described = self.describe(config, layers, annotations)
        blobs = [oci_typed(layer.descriptor) for layer in layers]
        return self._keep(image_id, described, config, blobs, parent, intermediate, tuple(needs))

    def describe(
        self, config: ImageConfig, layers: Sequence[Layer], annotations: tuple[tuple[str, str], ...] = ()
    ) -> tuple[Digest, Descriptor]:
        """Keep an image's config and manifest alone, as blobs that nothing names: its layers lie elsewhere.

        annotations: the manifest's. The image's id, and where its manifest is. They stay for as long as the running
        build. Idempotent.
        """
        blob = self.put_blob(canonical(config.to_json()), CONFIG)
        manifest = Manifest(blob, tuple(oci_typed(layer.descriptor) for layer in layers), annotations=annotations)
        return blob.digest, self.put_blob(canonical(manifest.to_json()), MANIFEST)

    def adopt(self, manifest: Descriptor) -> Image:
        """Keep the image of a manifest that was stored, with its config and layers, as blobs: pulled, loaded, copied.

        Its bytes, so its id and digest, stay as they were. Idempotent. Raises NotFoundError for a missing blob and
        CorruptError for a manifest or config that is none.
        """
        document = Manifest.from_json(parse_json(self.read_blob(manifest), "the manifest"))
        config = ImageConfig.from_json(parse_json(self.read_blob(document.config), "the image config"))
        if len(config.diff_ids) != len(document.layers):
            raise CorruptError(
                f"the manifest {manifest.digest} has {len(document.layers)} layers, its config {len(config.diff_ids)}"
            )
        return self._keep(document.config.digest, manifest, config, document.layers, None, False, ())

    def image(self, name_or_id: str) -> Image:
        """The image of this name (any spelling), id, or beginning of an id.

        As in docker, a name comes before the beginning of an id. Raises NotFoundError with the nearest names as its
        hint, StoreError when the text is no name, or the beginning of several ids.
        """
        found = self._images("WHERE i.number = ?", (self.find(name_or_id)[0],))
        if not found:  # another process has removed it since
            raise NotFoundError(f"no such image: {name_or_id}")
        return found[0]

    def images(self, *, all: bool = False) -> list[Image]:  # noqa: A002  the flag's name in docker
        """The images, newest first. all: the intermediate ones too."""
        self.ready()
        where = "" if all else "WHERE i.intermediate = 0"
        return self._images(where + " ORDER BY i.created DESC, i.number DESC", ())

    def manifest(self, image: Image) -> Manifest:
        """The image's manifest, verified."""
        return Manifest.from_json(parse_json(self.read_blob(image.manifest), "the manifest"))

    def config(self, image: Image) -> ImageConfig:
        """The image's config, verified."""
        return ImageConfig.from_json(parse_json(self.read_blob(self.manifest(image).config), "the image config"))

    def layers(self, image: Image) -> tuple[Layer, ...]:
        """The image's layers, the lowest first. Their blobs are not read."""
        manifest = self.manifest(image)
        config = ImageConfig.from_json(parse_json(self.read_blob(manifest.config), "the image config"))
        return tuple(Layer(*pair) for pair in zip(config.diff_ids, manifest.layers, strict=True))

    def tag(self, name: Reference, image_id: Digest) -> Digest | None:
        """Point `name` at an image; the id of the image that lost it, or None. Atomic.

        The name that is there already writes nothing. An intermediate image becomes a full one. An image that lost its
        last name stays, dangling. Raises NotFoundError for an unknown image, StoreError for a name with a digest.
        """
        self.ready()
        if name.digest or not name.tag:
            raise StoreError(f"{name} has a digest: only a tag can be given to an image", f"use {name.name}:TAG")
        owner = "SELECT i.id, i.number FROM names n JOIN images i ON i.number = n.image WHERE n.name = ?"
        if (found := self.database.query(owner, (name.full,))) and found[0][0] == image_id:
            return None
        with self.database.transaction() as connection:
            image = connection.execute("SELECT number FROM images WHERE id = ?", (image_id,)).fetchone()
            if image is None:
                raise NotFoundError(f"no such image: {image_id}")
            loser = connection.execute(owner, (name.full,)).fetchone()
            connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name.full, *image))
            connection.execute("UPDATE images SET intermediate = 0 WHERE number = ?", image)
            self.list_changed(connection)
        return None if loser is None or loser[0] == image_id else Digest(loser[0])

    def remove(self, name_or_id: str, *, force: bool = False, keep_parents: bool = False) -> list[str]:
        """Take a name away, and with its last name the image and what only it needed; docker's `rmi`.

        What was done, as lines `Untagged: NAME` and `Deleted: ID`. By name: an image that others are built on only
        loses the name. By id: InUseError when others are built on it, and when it has several names unless `force`.
        InUseError also for an image that is mounted, and unless `force` for one that a running build stands on.
        keep_parents: intermediates that only it needed stay, dangling. Raises NotFoundError as `image` does.
        """
        from cache import prune

        return prune.remove(self, name_or_id, force=force, keep_parents=keep_parents)

    def prune(self, *, all: bool = False, only: Callable[[str], bool] | None = None) -> Pruned:  # noqa: A002
        """Delete the dangling images, or with `all` every image, what only they needed, and what killed builds left.

        only: asked with an image's id whether it may go. What is in use stays (see `cache.uses`).
        """
        from cache import prune

        return prune.prune(self, every=all, only=only)

    def note_use(self, image_id: Digest) -> None:
        """Say that a build which holds a lease here stands on an image; without a lease nothing is said."""
        for lease in self.held:
            lease.note(image_id)

    def lease(self) -> Lease:
        """A context manager to hold while building: until then nothing that the build may rely on is freed."""
        from cache import prune

        return prune.Lease(self)

    def find(self, name_or_id: str) -> tuple[int, str]:
        """The database's number of an image, and the full name when it was found by one. Raises as `image`."""
        self.ready()
        query = self.database.query
        text = name_or_id
        if _LONG_ID.fullmatch(text):
            digest = "sha256:" + text[-64:]
            rows = query("SELECT number FROM images WHERE id = ?1 OR manifest = ?1 ORDER BY id = ?1 DESC", (digest,))
            if rows:
                return rows[0][0], ""
            raise NotFoundError(f"no such image: {text}")
        refusal: StoreError | None = None
        try:
            name = Reference.parse(text)
        except StoreError as error:
            refusal = error
        else:
            if name.digest:
                rows = query(
                    "SELECT number FROM images WHERE manifest = ?1 OR id = ?1 UNION ALL "
                    "SELECT number FROM images WHERE id IN (SELECT image FROM origins WHERE digest = ?1)",
                    (name.digest,),
                )
            else:
                rows = query("SELECT image FROM names WHERE name = ?", (name.full,))
            if rows:
                return rows[0][0], "" if name.digest else name.full
        if _SHORT_ID.fullmatch(text):
            start = "sha256:" + text.removeprefix("sha256:")
            # "g" follows the last hex digit.
            rows = query("SELECT number, id FROM images WHERE id >= ? AND id < ? LIMIT 5", (start, start + "g"))
            if len(rows) == 1:
                return rows[0][0], ""
            if rows:
                raise StoreError(
                    f"{text} is the beginning of several image ids",
                    "more digits: " + ", ".join(r[1][7:23] for r in rows),
                )
        if refusal is not None:
            raise refusal
        raise NotFoundError(f"no such image: {text}", self._nearest(text))

    def list_changed(self, connection: Connection) -> None:
        """Inside a transaction that changes what `index.json` has to say: have it written after the commit."""
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('index', '')")
        self.database.after_commit(self._write_index)

    def _keep(
        self,
        image_id: Digest,
        manifest: Descriptor,
        config: ImageConfig,
        layers: Sequence[Descriptor],
        parent: Digest | None,
        intermediate: bool,
        needs: tuple[Digest, ...],
    ) -> Image:
        self.ready()
        known = self._images("WHERE i.id = ?", (image_id,))
        if (
            known
            and known[0].manifest.digest == manifest.digest
            and (intermediate or not known[0].intermediate)
            and (parent is None or known[0].parent is not None)
            and not needs
        ):
            return known[0]
        with self.database.transaction() as connection:
            # Inside the transaction, since blobs are only ever freed inside one: see `cache.prune.sweep`.
            for layer in layers:
                if not self.holds(layer) and not layer.urls:
                    raise NotFoundError(
                        f"the store has no blob {layer.digest} of {layer.size} bytes, which a layer needs"
                    )
            for blob in (image_id, manifest.digest):
                if not self.has(blob):
                    raise NotFoundError(f"the store has no blob {blob}")
            number = self._put_rows(connection, image_id, manifest, config, layers, intermediate)
            ids = [parent, *needs] if parent is not None else list(needs)
            numbers = {
                other: found[0]
                for other in ids
                if other != image_id
                and (found := connection.execute("SELECT number FROM images WHERE id = ?", (other,)).fetchone())
            }
            if parent in numbers:
                connection.execute(
                    "UPDATE images SET parent = ? WHERE number = ? AND parent IS NULL", (numbers[parent], number)
                )
            connection.executemany(
                "INSERT OR IGNORE INTO needs VALUES (?, ?)", [(number, numbers[n]) for n in needs if n in numbers]
            )
            return self._images("WHERE i.number = ?", (number,))[0]

    def _put_rows(
        self,
        connection: Connection,
        image_id: Digest,
        manifest: Descriptor,
        config: ImageConfig,
        layers: Sequence[Descriptor],
        intermediate: bool,
    ) -> int:
        """Write the rows of one image and its layers; its number."""
        row = connection.execute(
            "SELECT number, manifest, intermediate FROM images WHERE id = ?", (image_id,)
        ).fetchone()
        size = sum(layer.size for layer in layers)
        described = (manifest.digest, manifest.size, manifest.media_type)
        if row is None:
            number = connection.execute(
                "INSERT INTO images (id, manifest, manifest_size, manifest_type, platform, created, size, "
                "intermediate) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (image_id, *described, str(config.platform), config.created, size, intermediate),
            ).lastrowid
            assert number is not None
            self._link_layers(connection, number, config, layers)
            if not intermediate:
                self.list_changed(connection)
            return number
        number, known, was_intermediate = row
        if known != manifest.digest:
            # The same image in other blobs: compressed anew. The last one put is the one to have.
            from cache import prune

            connection.execute(
                "UPDATE images SET manifest = ?, manifest_size = ?, manifest_type = ?, size = ? WHERE number = ?",
                (*described, size, number),
            )
            before = [n for (n,) in connection.execute("SELECT layer FROM image_layers WHERE image = ?", (number,))]
            connection.execute("DELETE FROM image_layers WHERE image = ?", (number,))
            self._link_layers(connection, number, config, layers)
            self.list_changed(connection)
            prune.free(connection, before, [known])
        if was_intermediate and not intermediate:
            connection.execute("UPDATE images SET intermediate = 0 WHERE number = ?", (number,))
            self.list_changed(connection)
        return int(number)

    @staticmethod
    def _link_layers(connection: Connection, number: int, config: ImageConfig, layers: Sequence[Descriptor]) -> None:
        chains = chain_ids(config.diff_ids)
        marks = ",".join("?" * len(chains))
        known = {
            (chain, blob): layer
            for layer, chain, blob in connection.execute(
                f"SELECT number, chain, digest FROM layers WHERE chain IN ({marks})",  # noqa: S608  question marks only
                chains,
            )
        }
        for chain, diff_id, layer in zip(chains, config.diff_ids, layers, strict=True):
            if (chain, layer.digest) not in known:
                known[chain, layer.digest] = connection.execute(
                    "INSERT INTO layers (chain, diff_id, digest, size) VALUES (?, ?, ?, ?)",
                    (chain, diff_id, layer.digest, layer.size),
                ).lastrowid
        connection.executemany(
            "INSERT INTO image_layers VALUES (?, ?, ?)",
            [
                (number, position, known[chain, layer.digest])
                for position, (chain, layer) in enumerate(zip(chains, layers, strict=True))
            ],
        )

    def _images(self, clause: str, parameters: tuple[object, ...]) -> list[Image]:
        rows = self.database.query(  # one statement, so that it shows one moment; the clauses are this class's own
            "SELECT i.id, i.manifest, i.manifest_size, i.manifest_type, i.created, i.size, i.intermediate, p.id, "  # noqa: S608
            "(SELECT group_concat(name, ' ') FROM names WHERE image = i.number) "
            "FROM images i LEFT JOIN images p ON p.number = i.parent " + clause,
            parameters,
        )
        return [
            Image(
                id=Digest(image_id),
                manifest=Descriptor(media_type, Digest(manifest), manifest_size),
                names=tuple(sorted(map(familiar_name, names.split()))) if names else (),
                created=created,
                size=size,
                parent=None if parent is None else Digest(parent),
                intermediate=bool(intermediate),
            )
            for image_id, manifest, manifest_size, media_type, created, size, intermediate, parent, names in rows
        ]

    def _nearest(self, text: str) -> str:
        from difflib import get_close_matches

        names = [familiar_name(name) for (name,) in self.database.query("SELECT name FROM names")]
        tagged = ":" in text.rpartition("/")[2]
        found = get_close_matches(text, names, 3) if tagged else []
        if not found:
            # A tag that is the same would make any two short names alike.
            wanted = text.rpartition(":")[0] if tagged else text
            alike = get_close_matches(wanted, sorted({name.rpartition(":")[0] for name in names}), 3)
            found = [name for each in alike for name in sorted(names) if name.rpartition(":")[0] == each][:3]
        return f"did you mean {' or '.join(found)}?" if found else ""

    # ------------------------------------------------------------ index.json

    def ready(self) -> None:
        """Before the first use of images: finish what a killed process left undone. Called here where it has to be."""
        if self._checked:
            return
        stamp = self._index_stamp()
        if stamp is None:
            self._recover()
        elif not stamp or stamp != self._file_stamp():
            self._write_index()
        self._checked = True

    def _index_stamp(self) -> str | None:
        rows = self.database.query("SELECT value FROM meta WHERE name = 'index'")
        return rows[0][0] if rows else None

    def _file_stamp(self) -> str:
        """What changes when anyone writes `index.json`."""
        try:
            status = os.stat(os.path.join(self.root, "index.json"))
        except FileNotFoundError:
            return ""
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def _write_index(self) -> None:
        """Make `index.json` from the database, if it is not the newest. The write lock keeps other processes out."""
        with self.database.transaction() as connection:
            if (stamp := self._index_stamp()) and stamp == self._file_stamp():
                return
            rows = connection.execute(
                "SELECT i.manifest_type, i.manifest, i.manifest_size, i.platform, n.name "
                "FROM images i LEFT JOIN names n ON n.image = i.number WHERE i.intermediate = 0 "
                "ORDER BY i.created, i.number, n.name"
            )
            self.replace_file("index.json", _index(_listed(*row) for row in rows))
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('index', ?)", (self._file_stamp(),))

    def _recover(self) -> None:
        """Fill a new database with what `index.json` lists: a store whose database is gone, or a layout of others."""
        with self.database.transaction() as connection:
            if self._index_stamp() is not None:
                return
            self._checked = True
            try:
                with open(os.path.join(self.root, "index.json"), "rb") as file:
                    index = Index.from_json(parse_json(file.read(), "index.json"))
            except (FileNotFoundError, CorruptError):
                index = Index(())
            for descriptor in index.manifests:
                # What can not be used is left out, as no command could do anything with it.
                with suppress(StoreError):
                    image = self.adopt(Descriptor(descriptor.media_type, descriptor.digest, descriptor.size))
                    notes = dict(descriptor.annotations)
                    if name := notes.get(FULL_NAME) or notes.get(REF_NAME):
                        self.tag(Reference.parse(name), image.id)
            self.list_changed(connection)

    # ------------------------------------------------------------ files

    def temporary(self) -> str:
        """A fresh path in `tmp/`, for something that will be renamed to its place."""
        return os.path.join(self.root, "tmp", f"{os.getpid()}-{os.urandom(8).hex()}")

    def own_key(self) -> bytes:
        """32 random bytes that belong to this store and that only its owner can read. Made at the first use."""
        path = os.path.join(self.root, "own.key")
        while True:
            with suppress(FileNotFoundError), open(path, "rb") as file:
                return file.read()
            temporary = self.temporary()
            try:
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(os.urandom(32))
                # Of two processes that make it at once, the first one's is the key.
                with suppress(FileExistsError):
                    os.link(temporary, path)
                os.unlink(temporary)
            except OSError as error:
                raise _cannot_write(self, error) from error

    def replace_file(self, name: str, data: bytes) -> None:
        """Write a file, `name` below the store's top folder, at one stroke. Raises StoreError."""
        temporary = self.temporary()
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.rename(temporary, os.path.join(self.root, name))
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise _cannot_write(self, error) from error


class BlobWriter:
    """A blob in the making: bytes go to a temporary file that `commit` renames to its place.

    A context manager; leaving it without a commit leaves nothing behind. Not for several threads at once.
    """

    def __init__(self, store: Store, *, hashing: bool = True) -> None:
        self._store = store
        self._path = store.temporary()
        self._hash = hashlib.sha256() if hashing else None
        self._size = 0
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_write(store, error) from error
        # Held until the file is closed: `cache.prune` removes what a dead process left in tmp/.
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; the number of bytes, all of them, as a file's `write` gives it."""
        view = memoryview(data)
        if self._hash is not None:
            self._hash.update(view)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._file, view[done:] if done else view)
        except OSError as error:
            raise _cannot_write(self._store, error) from error
        self._size += done
        return done

    def commit(
        self, digest: Digest | None = None, size: int | None = None, *, trusted: bool = False
    ) -> tuple[Digest, int]:
        """Put the blob in its place; its digest and size.

        digest, size: what the blob must be, else CorruptError and nothing is kept. trusted: the caller has computed
        `digest` from these bytes, so they are not hashed here.
        """
        if size is not None and size != self._size:
            raise CorruptError(f"a blob of {size} bytes was announced, {self._size} came")
        if digest is None or not trusted:
            found = self._computed()
            if digest is not None and found != digest:
                raise CorruptError(f"the bytes of the blob {digest} have the digest {found}")
            digest = found
        target = self._store._blobs + digest[7:]  # noqa: SLF001  the writer is the store's other half
        try:
            # The kernel's own file times are some milliseconds old; `cache.prune` compares them with the clock.
            now = time.time_ns()
            os.utime(self._file, ns=(now, now))
            # Over one that is there already too: that one may be damaged, and whoever is reading it keeps it.
            os.rename(self._path, target)
            self._path = ""
        except OSError as error:
            raise _cannot_write(self._store, error) from error
        self.close()
        return digest, self._size

    def close(self) -> None:
        """Drop what was not committed. Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        path, self._path = self._path, ""
        if path:
            with suppress(OSError):
                os.unlink(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _computed(self) -> Digest:
        if self._hash is None:
            self._hash = hashlib.sha256()
            offset = 0
            while data := os.pread(self._file, 1 << 20, offset):
                self._hash.update(data)
                offset += len(data)
        return Digest("sha256:" + self._hash.hexdigest())


class _VerifyingReader(io.RawIOBase):
    """The bytes of a blob file. The read that delivers the last of them fails if the whole is not what it should be."""

    def __init__(self, file: io.FileIO, digest: Digest, size: int) -> None:
        self._file = file
        self._digest = digest
        self._left = size
        self._hash = hashlib.sha256()
        if not size:
            self._verify()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        self._took(memoryview(buffer)[:count])
        return count

    def read(self, size: int | None = -1) -> bytes:
        if size == 0:
            return b""
        data = self._file.read(self._left + 1 if size is None or size < 0 else size) or b""
        self._took(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def _took(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._left -= len(data)
        if not self._left:
            self._verify()
        elif self._left < 0 or not len(data):
            raise CorruptError(f"the blob {self._digest} changed its size while it was read", _DAMAGED)

    def _verify(self) -> None:
        if self._hash.hexdigest() != self._digest[7:]:
            self._file.close()
            raise CorruptError(f"the blob {self._digest} is damaged: its bytes have another digest", _DAMAGED)


_DAMAGED = "build or load the image again with --no-cache to replace it"


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


_OCI_TYPES = {
    DOCKER_LAYER_GZIP: LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}


def oci_typed(descriptor: Descriptor) -> Descriptor:
    """A layer of a Docker image as an OCI manifest may name it."""
    other = _OCI_TYPES.get(descriptor.media_type)
    return descriptor if other is None else replace(descriptor, media_type=other)


def _index(manifests: Iterable[JSONObject]) -> bytes:
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)})


def _listed(media_type: str, digest: str, size: int, platform: str, name: str | None) -> JSONObject:
    """One descriptor of `index.json`."""
    descriptor: JSONObject = {"mediaType": media_type, "digest": digest, "size": size}
    if name is not None:
        descriptor["annotations"] = {REF_NAME: familiar_name(name), FULL_NAME: name}
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    if architecture:
        descriptor["platform"] = {"os": system, "architecture": architecture} | (
            {"variant": variant} if variant else {}
        )
    return descriptor


def _cannot_write(store: Store, error: OSError) -> StoreError:
    hint = "pybuild image prune frees space" if error.errno == 28 else ""
    return StoreError(f"can not write to the store {store.root}: {error.strerror}", hint)

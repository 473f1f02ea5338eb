"""A client of one image registry: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md.

    Registry("docker.io").manifest("library/debian", "12")

What crosses the network is checked here: a manifest against the digest by which it was asked for, a blob against its
descriptor's size and digest, the digest that a registry says it stored. What breaks on the way is tried again, after as
long as `Retry-After` says or a little longer each time; a blob goes on where it stopped (`Range`). Only for something
that will not pass is an error raised at once.

`cache.connection` carries the requests: it knows where credentials may go, and what is tried again.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

from cache.challenges import Credentials, Rights, rights
from cache.connection import CHUNK, REMARK_LIMIT, Answer, Connection, PassingError, RegistryError, json_of, told
from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST, Descriptor, Digest, digest, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Credentials", "Mirror", "Registry", "RegistryError"]

_T = TypeVar("_T")

_ACCEPT = f"{INDEX}, {MANIFEST}, {DOCKER_INDEX}, {DOCKER_MANIFEST}, */*"
_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
_BINARY = "application/octet-stream"
_PIECE = 16 << 20
"""The least length of one PATCH where a blob does not go up in one request."""
_MOST_PAGES = 10_000
_MOST_MOUNTS = 3


class Writable(Protocol):
    """Where a blob is written to: a file, a `cache.store.BlobWriter`."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


class Readable(Protocol):
    """Where a blob is read from. Closed after use."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""

    def seek(self, offset: int, /) -> object:
        """Go to an offset from the start; only asked for when an upload goes on after a break."""

    def close(self) -> None:
        """Done."""


class Mirror(NamedTuple):
    """Another registry that has the same blobs and manifests, below `prefix` (`cache/hub`, or empty)."""

    registry: Registry
    prefix: str = ""


class Registry:
    """One registry, by the name that stands in references. Safe for threads; keeps connections and tokens.

    credentials: asked once, with `name`, when the registry wants to know who calls. plain_http: True for http, False
    for https; None for https, and http where a loopback or insecure host speaks no TLS. insecure: certificates are not
    checked. ca_file: PEM certificates to trust beside the system's, in one file or several; client_cert, client_key: to
    show when asked. mirrors: asked first, in their order, for what is read by `manifest`, `head` and `read_blob`;
    whatever a mirror can not give is got from the registry itself. sleep: how to wait before another attempt, which is
    not made when it gives True: `Event.wait` of an event that means the end.

    Repositories are written in full, `library/debian`. Every method may raise RegistryError.
    """

    def __init__(
        self,
        name: str,
        *,
        credentials: Callable[[str], Credentials | None] | None = None,
        plain_http: bool | None = None,
        insecure: bool = False,
        ca_file: str | Sequence[str] = (),
        client_cert: str = "",
        client_key: str = "",
        mirrors: Sequence[Mirror] = (),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.name = name
        self.connection = Connection(
            name,
            credentials=credentials,
            plain_http=plain_http,
            insecure=insecure,
            ca_file=ca_file,
            client_cert=client_cert,
            client_key=client_key,
            sleep=sleep,
        )
        self.mirrors = tuple(mirrors)

    def close(self) -> None:
        """Close the connections. A later use opens others."""
        self.connection.close()
        for mirror in self.mirrors:
            mirror.registry.close()

    def abort(self) -> None:
        """Break off what other threads are reading, for good: their calls end with an error, soon."""
        for where in (self.connection, *(mirror.registry.connection for mirror in self.mirrors)):
            where.abort()

    # ------------------------------------------------------------ reading

    def check(self) -> None:
        """Ask whether this is a registry that takes the credentials. RegistryError, status 401, when it does not."""
        answer = self.connection.call(f"log in to {self.name}", "GET", self.connection.url(""), frozenset())
        if answer.status != 200:
            raise self.connection.refusal(f"log in to {self.name}", answer)

    def manifest(self, repository: str, reference: str) -> tuple[Descriptor, bytes]:
        """The manifest or index of a tag or a digest, its bytes as they came, checked against the digest.

        NotFoundError when there is none; CorruptError when it is not what was asked for.
        """
        return self._first(repository, lambda where, name: _manifest(where, name, reference))

    def head(self, repository: str, reference: str) -> Descriptor | None:
        """What a tag or digest is, as the registry says and unchecked; None when it has none."""
        try:
            return self._first(repository, lambda where, name: _head(where, name, reference))
        except NotFoundError:
            return None

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository itself has a blob. Mirrors are not asked."""
        return self._has_blob(f"ask {self.name}/{repository} for a blob", repository, digest, _pulling(repository))

    def _has_blob(self, what: str, repository: str, digest: Digest, wanted: Rights) -> bool:
        answer = self.connection.call(what, "HEAD", self.connection.url(f"{repository}/blobs/{digest}"), wanted)
        if answer.status not in {200, 404}:
            raise self.connection.refusal(what, answer)
        return answer.status == 200

    def read_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        out: Writable,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write a blob to `out`, piece by piece. After it returns, `out` has got the blob; after an error, rubbish.

        progress: is told of each piece's number of bytes. A blob that the registry does not have is got from the
        descriptor's urls, if it has any (foreign layers). NotFoundError when it is nowhere; CorruptError for another
        size or digest: no more than `descriptor.size` bytes are ever written.
        """
        pull = _Pull(descriptor, out, progress)
        short = _short(descriptor.digest)

        def fetch(where: Connection, name: str) -> None:
            url = where.url(f"{name}/blobs/{descriptor.digest}")
            pull.run(where, f"get the blob {short} of {where.name}/{name}", url, _pulling(name))

        try:
            self._first(repository, fetch)
        except NotFoundError as missing:
            failure: StoreError | None = missing
            for url in descriptor.urls:
                what = f"get the blob {short} of {self.name}/{repository} from {urlsplit(url).netloc}"
                try:
                    pull.run(self.connection, what, url, frozenset())
                except StoreError as error:
                    failure = error
                else:
                    failure = None
                    break
            if failure is not None:
                raise failure from None
        pull.verify(f"{self.name}/{repository}")

    def tags(self, repository: str) -> Iterator[str]:
        """The tags of a repository, page by page, in the registry's order. NotFoundError when there is no such one."""
        what = f"list the tags of {self.name}/{repository}"
        url = self.connection.url(f"{repository}/tags/list?n=1000")
        seen = {url}
        for _ in range(_MOST_PAGES):
            answer = self.connection.call(what, "GET", url, _pulling(repository))
            if answer.status == 404:
                raise NotFoundError(f"{self.name} has no repository {repository}{_remark(answer)}")
            if answer.status != 200:
                raise self.connection.refusal(what, answer)
            document = json_of(answer.body)
            names = document.get("tags") if isinstance(document, dict) else None
            yield from (str(name) for name in (names if isinstance(names, list) else ()))
            if not (further := _next_page(answer)):
                return
            url = self.connection.target(what, answer.url, further)
            if url in seen:
                return
            seen.add(url)

    # ------------------------------------------------------------ writing

    def put_manifest(self, repository: str, reference: str, data: bytes, media_type: str) -> Digest:
        """Store a manifest or index by a tag or by its digest; its digest. Its blobs have to be there. Idempotent."""
        full = _named(self.connection, repository, reference)
        what = f"push {full}"
        url = self.connection.url(f"{repository}/manifests/{reference}")
        answer = self.connection.call(
            what, "PUT", url, _pushing(repository), {"Content-Type": media_type}, lambda: iter((data,)), len(data)
        )
        if answer.status not in {200, 201, 202}:
            raise self.connection.refusal(what, answer)
        found = digest_of(data)
        said = answer.headers.get("Docker-Content-Digest", "")
        if said.startswith("sha256:") and said != found:
            raise CorruptError(f"{self.name} stored {full} as {said}, and it is {found}")
        return found

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Take a manifest (by digest) or a tag away. NotFoundError when it is not there."""
        what = f"delete {_named(self.connection, repository, reference)}"
        wanted = rights([f"repository:{repository}:delete,pull"])
        answer = self.connection.call(
            what, "DELETE", self.connection.url(f"{repository}/manifests/{reference}"), wanted
        )
        if answer.status == 404:
            raise NotFoundError(f"can not {what}: it is not there")
        if answer.status not in {200, 202, 204}:
            raise self.connection.refusal(what, answer)

    def put_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        open: Callable[[], Readable],  # noqa: A002  what it is
        *,
        mount_from: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> bool:
        """Have the repository hold a blob; whether bytes had to be sent for it. Idempotent.

        A blob that is there is left alone; one that a repository of `mount_from` has is taken from it by the registry.
        open: the blob from its start; may be called several times. progress: is told of bytes sent; a negative number
        takes back what has to be sent again.
        """
        wanted = _pushing(repository)
        if self._has_blob(f"push to {self.name}/{repository}", repository, descriptor.digest, wanted):
            return False
        location = ""
        for source in [name for name in dict.fromkeys(mount_from) if name != repository][:_MOST_MOUNTS]:
            if location:
                self._cancel(location, wanted)
            mounted, location = self._mount(repository, descriptor.digest, source)
            if mounted:
                return False
        _Upload(self.connection, repository, descriptor, open, progress).run(location)
        return True

    def _mount(self, repository: str, digest: Digest, source: str) -> tuple[bool, str]:
        """Try to take a blob over from another repository; where to upload it when that fails, if a place was given."""
        query = urlencode({"mount": digest, "from": source}, safe=":/")
        wanted = _pushing(repository) | _pulling(source)
        url = self.connection.url(f"{repository}/blobs/uploads/?{query}")
        try:
            answer = self.connection.call(f"mount a blob of {self.name}/{source}", "POST", url, wanted, length=0)
        except RegistryError as error:
            # Not being let in there is no reason not to upload it here.
            if error.status in {401, 403, 404}:
                return False, ""
            raise
        if answer.status == 201:
            return True, ""
        return False, self.connection.location(answer) if answer.status == 202 else ""

    def _cancel(self, location: str, wanted: Rights) -> None:
        try:
            self.connection.call("cancel an upload", "DELETE", location, wanted, attempts=1)
        except StoreError:
            return  # the registry cleans up by itself

    def _first(self, repository: str, action: Callable[[Connection, str], _T]) -> _T:
        """What a mirror gives, the first that does; else the registry itself."""
        failures = []
        for mirror in self.mirrors:
            where = mirror.registry.connection
            if where.failed:
                continue
            try:
                return action(where, "/".join(part for part in (mirror.prefix, repository) if part))
            except NotFoundError:
                continue
            except StoreError as error:
                where.failed = True
                failures.append(f"the mirror {where.name} did not help either: {error.message}")
        try:
            return action(self.connection, repository)
        except StoreError as error:
            if failures and not isinstance(error, NotFoundError):
                error.hint = "; ".join(part for part in (error.hint, *failures) if part)
            raise


class _Pull:
    """One blob on its way down: how much has come, and what it hashes to. It may come in parts, from several places."""

    def __init__(self, descriptor: Descriptor, out: Writable, progress: Callable[[int], None] | None) -> None:
        self._descriptor = descriptor
        self._out = out
        self._progress = progress
        self._done = 0
        self._hash = hashlib.sha256()

    def run(self, where: Connection, what: str, url: str, wanted: Rights) -> None:
        """Get what is still missing, with as many requests as it takes."""
        where.retried(lambda: self._once(where, what, url, wanted), lambda: self._done)

    def verify(self, title: str) -> None:
        """CorruptError when what came is not what it should be."""
        found = "sha256:" + self._hash.hexdigest()
        if found != self._descriptor.digest:
            raise CorruptError(
                f"the blob {self._descriptor.digest} of {title} has the digest {found}",
                "the registry, or something on the way to it, changes what it stores",
            )

    def _once(self, where: Connection, what: str, url: str, wanted: Rights) -> None:
        size, start = self._descriptor.size, self._done
        if start and start == size:
            return
        with where.stream(what, url, wanted, {"Range": f"bytes={start}-"} if start else {}) as body:
            if body.status == 404:
                raise NotFoundError(f"can not {what}: it is not there")
            if body.status not in {200, 206}:
                raise where.refusal(what, body.taken())
            skip = start if body.status == 200 else 0
            if body.status == 206:
                place = re.match(r"bytes (\d+)-", body.headers.get("Content-Range", ""))
                if place is None or int(place[1]) != start:
                    raise RegistryError(f"can not {what}: the server goes on at another place than it was asked for")
            left = size - start + skip
            length = body.headers.get("Content-Length", "")
            if length.isdecimal() and int(length) != left:
                raise CorruptError(
                    f"can not {what}: the registry has {int(length) + start - skip} bytes of it instead of {size}"
                )
            while left:
                chunk = body.read(min(CHUNK, left))
                if not chunk:
                    raise PassingError(f"can not {what}: the connection ended after {size - left} of {size} bytes")
                left -= len(chunk)
                passed = min(skip, len(chunk))
                skip -= passed
                self._take(chunk[passed:] if passed else chunk)
            # Where no length was announced, only this shows a body that does not end.
            if body.read(1):
                raise CorruptError(f"can not {what}: more than the {size} bytes come that it should have")

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._out.write(chunk)
        self._done += len(chunk)
        if chunk and self._progress is not None:
            self._progress(len(chunk))


class _Upload:
    """One blob on its way up: in one request where the registry takes it so, else in pieces; going on after breaks."""

    def __init__(
        self,
        where: Connection,
        repository: str,
        descriptor: Descriptor,
        open_: Callable[[], Readable],
        progress: Callable[[int], None] | None,
    ) -> None:
        self._where = where
        self._repository = repository
        self._descriptor = descriptor
        self._open = open_
        self._progress = progress
        self._what = f"push the blob {_short(descriptor.digest)} to {where.name}/{repository}"
        self._wanted = _pushing(repository)
        self._told = 0
        self._offset = 0
        self._piece = 0
        self._failures = 0
        self._location = ""

    def run(self, location: str) -> None:
        """Send it. location: where, if an upload has been begun."""
        self._location = location
        self._where.retried(self._attempt, lambda: self._offset)

    def _attempt(self) -> None:
        if not self._location:
            self._begin()
        try:
            if self._offset or self._piece:
                self._in_pieces()
            else:
                self._in_one()
        except PassingError:
            self._failures += 1
            if self._failures > 1 and self._descriptor.size > _PIECE:
                self._piece = self._piece or _PIECE
            self._recover()
            raise

    def _begin(self) -> None:
        url = self._where.url(f"{self._repository}/blobs/uploads/")
        answer = self._where.call(self._what, "POST", url, self._wanted, length=0)
        if answer.status not in {201, 202}:
            raise self._where.refusal(self._what, answer)
        self._location = self._where.location(answer)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        if least.isdecimal() and self._piece:
            self._piece = max(self._piece, int(least))
        self._at(0)

    def _in_one(self) -> None:
        size = self._descriptor.size
        answer = self._put(self._done_url(), "PUT", {"Content-Type": _BINARY}, 0, size)
        if answer.status == 413:
            # Proxies in front of registries limit the length of a request.
            self._location, self._piece = "", _PIECE
            self._begin()
            self._in_pieces()
            return
        self._finish(answer)

    def _in_pieces(self) -> None:
        size = self._descriptor.size
        while self._offset < size:
            length = min(self._piece or size, size - self._offset)
            headers = {"Content-Type": _BINARY, "Content-Range": f"{self._offset}-{self._offset + length - 1}"}
            answer = self._put(self._location, "PATCH", headers, self._offset, length)
            if answer.status == 416:
                raise PassingError(f"can not {self._what}: the registry has lost its place")
            if answer.status not in {201, 202, 204}:
                raise self._where.refusal(self._what, answer)
            self._location = self._where.location(answer)
            self._at(self._offset + length)
        self._finish(self._put(self._done_url(), "PUT", {"Content-Type": _BINARY}, size, 0))

    def _put(self, url: str, method: str, headers: Mapping[str, str], start: int, length: int) -> Answer:
        opened: list[Readable] = []

        def body() -> Iterator[bytes | memoryview]:
            self._at(start)
            stream = self._open()
            opened.append(stream)
            if start:
                stream.seek(start)
            left = length
            while left:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise CorruptError(
                        f"the blob {self._descriptor.digest} is shorter than its {self._descriptor.size} bytes",
                        "pybuild fsck says whether the store is whole",
                    )
                yield chunk
                left -= len(chunk)
                self._told += len(chunk)
                if self._progress is not None:
                    self._progress(len(chunk))

        try:
            response, place = self._where.follow(
                self._what, method, url, self._wanted, headers, body if length else None, length
            )
            return self._where.taken(self._what, response, place, REMARK_LIMIT)
        finally:
            for stream in opened:
                stream.close()

    def _at(self, offset: int) -> None:
        """The registry has `offset` bytes: what was told beyond that is taken back."""
        if self._told != offset and self._progress is not None:
            self._progress(offset - self._told)
        self._told = self._offset = offset

    def _done_url(self) -> str:
        # What is there may be signed, and stays as it is.
        parts = urlsplit(self._location)
        return urlunsplit(parts._replace(query=f"{parts.query}&digest={self._descriptor.digest}".lstrip("&")))

    def _finish(self, answer: Answer) -> None:
        if answer.status not in {200, 201, 204}:
            raise self._where.refusal(self._what, answer)
        said = answer.headers.get("Docker-Content-Digest", "")
        if said.startswith("sha256:") and said != self._descriptor.digest:
            raise CorruptError(f"{self._where.name} stored a blob as {said}, and it is {self._descriptor.digest}")

    def _recover(self) -> None:
        """After a break: find out how far the upload got; from the start where the registry does not say."""
        location, self._location = self._location, ""
        try:
            answer = self._where.call(self._what, "GET", location, self._wanted, attempts=1)
        except StoreError:
            answer = None
        said = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", "")) if answer else None
        if answer is None or answer.status not in {200, 202, 204} or said is None or int(said[1]) == 0:
            self._at(0)
            return
        self._at(min(int(said[1]) + 1, self._descriptor.size))
        self._location = self._where.location(answer) if answer.headers.get("Location") else location


# ---------------------------------------------------------------- words


def _pulling(repository: str) -> Rights:
    return rights([f"repository:{repository}:pull"])


def _pushing(repository: str) -> Rights:
    return rights([f"repository:{repository}:pull,push"])


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _plain(content_type: str) -> str:
    return content_type.partition(";")[0].strip()


def _named(where: Connection | None, repository: str, reference: str) -> str:
    return f"{where.name + '/' if where else ''}{repository}{'@' if ':' in reference else ':'}{reference}"


def _manifest(where: Connection, repository: str, reference: str) -> tuple[Descriptor, bytes]:
    full = _named(where, repository, reference)
    what = f"get the manifest of {full}"
    url = where.url(f"{repository}/manifests/{reference}")
    answer = where.call(what, "GET", url, _pulling(repository), {"Accept": _ACCEPT})
    if answer.status == 404:
        raise NotFoundError(f"{where.name} has no {_named(None, repository, reference)}{_remark(answer)}")
    if answer.status != 200:
        raise where.refusal(what, answer)
    media_type = _media_type(answer, full)
    found = digest_of(answer.body)
    said = answer.headers.get("Docker-Content-Digest", "")
    wanted = reference if ":" in reference else said if said.startswith("sha256:") else ""
    if wanted and found != wanted:
        raise CorruptError(
            f"the manifest of {full} has the digest {found}"
            + (", not the one asked for" if ":" in reference else f" and {where.name} says {said}"),
            "the registry, or something on the way to it, changes what it stores",
        )
    return Descriptor(media_type, found, len(answer.body)), answer.body


def _head(where: Connection, repository: str, reference: str) -> Descriptor:
    full = _named(where, repository, reference)
    what = f"ask for {full}"
    url = where.url(f"{repository}/manifests/{reference}")
    answer = where.call(what, "HEAD", url, _pulling(repository), {"Accept": _ACCEPT})
    if answer.status == 404:
        raise NotFoundError(f"{where.name} has no {_named(None, repository, reference)}")
    if answer.status != 200:
        raise where.refusal(what, answer)
    headers = answer.headers
    said, size = headers.get("Docker-Content-Digest", ""), headers.get("Content-Length", "")
    if said.startswith("sha256:") and size.isdecimal() and headers.get("Content-Type"):
        return Descriptor(_plain(headers["Content-Type"]), digest(said), int(size))
    # Older registries say no digest.
    return _manifest(where, repository, reference)[0]


def _media_type(answer: Answer, full: str) -> str:
    """What a manifest is. Its own word counts, as the digest covers it; the header's where it has none.

    A document that could be read as both an image and an index is neither:
    https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh.
    """
    header = _plain(answer.headers.get("Content-Type", ""))
    document = json_of(answer.body)
    if not isinstance(document, dict):
        raise CorruptError(f"the manifest of {full} is not a JSON object", "is it a registry?")
    if header in _SCHEMA_1 or document.get("schemaVersion") == 1:
        raise StoreError(
            f"{full} is a schema 1 manifest, a form that registries gave up in 2019",
            "push it again with a current docker",
        )
    if "manifests" in document and ("layers" in document or "config" in document):
        raise CorruptError(f"the manifest of {full} is an image and an index at once")
    own = document.get("mediaType")
    if isinstance(own, str) and own:
        return own
    if "manifests" in document:
        return header if header == DOCKER_INDEX else INDEX
    return header if header.endswith("+json") else MANIFEST


def _remark(answer: Answer) -> str:
    _, said = told(answer)
    return f": {said}" if said else ""


def _next_page(answer: Answer) -> str:
    """The target of `Link: <...>; rel="next"` (RFC 8288), or empty."""
    for target, parameters in re.findall(r"<([^>]*)>([^<]*)", answer.headers.get("Link", "")):
        if re.search(r";\s*rel\s*=\s*\"?next\b", parameters):
            return str(target)
    return ""

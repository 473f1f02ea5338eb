"""The client of a registry, against one that plays faults: all is verified, tried again, and told to no stranger."""

from __future__ import annotations

import io
import json
import random
import threading
from typing import TYPE_CHECKING

import pytest

from cache.errors import CorruptError, NotFoundError, StoreError
from cache.oci import DOCKER_INDEX, INDEX, LAYER_GZIP, MANIFEST, Descriptor, Digest, digest_of
from cache.registry import Credentials, Mirror, Registry, RegistryError
from tests.registries import Handler, PlayedRegistry, cut, endless, redirect, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = "library/app"
DATA = random.Random(1).randbytes(3_000_000)
BLOB = Descriptor(LAYER_GZIP, digest_of(DATA), len(DATA))


@pytest.fixture
def played() -> Iterator[PlayedRegistry]:
    with PlayedRegistry() as registry:
        registry.put(REPOSITORY, DATA)
        yield registry


class Waits(list[float]):
    """How long the client would have waited."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(played: PlayedRegistry, login: Credentials | None = None, **options: object) -> Registry:
    options.setdefault("sleep", Waits())
    return Registry(played.name, credentials=lambda _: login, plain_http=True, **options)  # type: ignore[arg-type]


def read(registry: Registry, blob: Descriptor = BLOB) -> bytes:
    out = io.BytesIO()
    registry.read_blob(REPOSITORY, blob, out)
    return out.getvalue()


def send(registry: Registry, data: bytes = DATA, **options: object) -> bool:
    blob = Descriptor(LAYER_GZIP, digest_of(data), len(data))
    return registry.put_blob(REPOSITORY, blob, lambda: io.BytesIO(data), **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- manifests and tags


def test_a_manifest_by_tag_and_by_digest(played: PlayedRegistry) -> None:
    digest = played.put_manifest(REPOSITORY, "1.0", {"schemaVersion": 2, "mediaType": MANIFEST}, MANIFEST)
    registry = client(played)
    found, data = registry.manifest(REPOSITORY, "1.0")
    assert (found.media_type, found.digest, found.size) == (MANIFEST, digest, len(data))
    assert registry.manifest(REPOSITORY, digest) == (found, data)
    assert registry.head(REPOSITORY, "1.0") == found
    assert registry.head(REPOSITORY, "2.0") is None
    assert DOCKER_INDEX in played.requests("GET", "manifests")[0].headers["accept"]


def test_no_such_manifest(played: PlayedRegistry) -> None:
    with pytest.raises(NotFoundError, match=r"127.0.0.1:\d+ has no library/app:2: manifest unknown"):
        client(played).manifest(REPOSITORY, "2")


def test_a_manifest_that_is_not_what_was_asked_for(played: PlayedRegistry) -> None:
    played.put_manifest(REPOSITORY, "1", {"schemaVersion": 2}, MANIFEST)
    other = digest_of(b"other")
    played.manifests[REPOSITORY, other] = played.manifests[REPOSITORY, "1"]
    with pytest.raises(CorruptError, match="not the one asked for"):
        client(played).manifest(REPOSITORY, other)
    played.fail("GET", "manifests/1", status(200, {"Docker-Content-Digest": other}, b"{}"))
    with pytest.raises(CorruptError, match="says sha256"):
        client(played).manifest(REPOSITORY, "1")


@pytest.mark.parametrize(
    ("document", "header", "expected"),
    [
        pytest.param({"mediaType": INDEX, "manifests": []}, MANIFEST, INDEX, id="the document's own word counts"),
        pytest.param({"manifests": []}, DOCKER_INDEX, DOCKER_INDEX, id="header"),
        pytest.param({"manifests": []}, "application/json", INDEX, id="an index without a word"),
        pytest.param({"layers": []}, "text/plain; charset=utf-8", MANIFEST, id="an image without a word"),
    ],
)
def test_what_a_manifest_is(played: PlayedRegistry, document: dict[str, object], header: str, expected: str) -> None:
    played.put_manifest(REPOSITORY, "1", {"schemaVersion": 2, **document}, header)
    assert client(played).manifest(REPOSITORY, "1")[0].media_type == expected


@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (b"<html>", "text/html", "not a JSON object"),
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1 manifest"),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', INDEX, "an image and an index at once"),
    ],
)
def test_manifests_that_are_none(played: PlayedRegistry, body: bytes, header: str, message: str) -> None:
    played.put_manifest(REPOSITORY, "1", body, header)
    with pytest.raises(StoreError, match=message):
        client(played).manifest(REPOSITORY, "1")


def test_a_manifest_without_an_end(played: PlayedRegistry) -> None:
    played.fail("GET", "manifests", endless)
    with pytest.raises(CorruptError, match="larger than 8 MiB"):
        client(played).manifest(REPOSITORY, "1")


def test_tags_come_in_pages(played: PlayedRegistry) -> None:
    played.page = 3
    names = [f"v{number:02}" for number in range(10)]
    for name in names:
        played.put_manifest(REPOSITORY, name, {}, MANIFEST)
    registry = client(played)
    assert list(registry.tags(REPOSITORY)) == names
    assert len(played.requests("GET", "tags")) == 4
    with pytest.raises(NotFoundError, match="no repository library/other"):
        list(registry.tags("library/other"))


def test_a_page_that_leads_to_itself_ends(played: PlayedRegistry) -> None:
    path = f"/v2/{REPOSITORY}/tags/list?n=1000"
    page = status(200, {"Link": f'<{path}>; rel="next"'}, b'{"tags":["a"]}')
    played.fail("GET", "tags", page, page)
    assert list(client(played).tags(REPOSITORY)) == ["a"]


def test_a_manifest_goes_up_and_can_be_deleted(played: PlayedRegistry) -> None:
    registry = client(played)
    digest = registry.put_manifest(REPOSITORY, "1", b'{"schemaVersion":2}', MANIFEST)
    assert digest == digest_of(b'{"schemaVersion":2}')
    assert played.manifests[REPOSITORY, "1"] == (MANIFEST, b'{"schemaVersion":2}')
    registry.delete_manifest(REPOSITORY, digest)
    assert registry.head(REPOSITORY, digest) is None
    with pytest.raises(NotFoundError):
        registry.delete_manifest(REPOSITORY, digest)


# ---------------------------------------------------------------- blobs down


def test_a_blob_comes_whole_and_is_counted(played: PlayedRegistry) -> None:
    out, told = io.BytesIO(), list[int]()
    client(played).read_blob(REPOSITORY, BLOB, out, told.append)
    assert out.getvalue() == DATA
    assert sum(told) == len(DATA)


def test_an_empty_blob(played: PlayedRegistry) -> None:
    played.put(REPOSITORY, b"")
    empty = Descriptor(LAYER_GZIP, digest_of(b""), 0)
    assert read(client(played), empty) == b""
    assert send(client(played), b"") is False
    played.has[REPOSITORY].clear()
    assert send(client(played), b"") is True


def test_a_cut_blob_goes_on_where_it_stopped(played: PlayedRegistry) -> None:
    played.fail("GET", "/blobs/", cut(DATA[:1_500_000], len(DATA)), cut(), None)
    waits = Waits()
    assert read(client(played, sleep=waits)) == DATA
    ranges = [seen.headers.get("range") for seen in played.requests("GET", "/blobs/")]
    assert ranges[0] is None
    assert ranges[1:] == [ranges[1]] * 2
    # What the client had when the connection ended is a whole number of its reads.
    assert 1_000_000 < int(str(ranges[1])[6:-1]) <= 1_500_000
    assert len(waits) == 2


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(played: PlayedRegistry) -> None:
    played.fail("GET", "/blobs/", cut(DATA[:2_000_000], len(DATA)), status(200, {}, DATA))
    assert read(client(played)) == DATA


def test_a_server_that_goes_on_elsewhere(played: PlayedRegistry) -> None:
    wrong = status(206, {"Content-Range": "bytes 5-9/10"}, DATA[5:])
    played.fail("GET", "/blobs/", cut(DATA[:2_000_000], len(DATA)), wrong)
    with pytest.raises(RegistryError, match="goes on at another place"):
        read(client(played))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(status(200, {}, DATA[:-1]), f"has {len(DATA) - 1} bytes of it instead of {len(DATA)}", id="short"),
        pytest.param(status(200, {}, DATA + b"x"), f"has {len(DATA) + 1} bytes of it instead of", id="long"),
        pytest.param(endless, f"more than the {len(DATA)} bytes", id="without an end"),
        pytest.param(status(200, {}, bytes(len(DATA))), "has the digest sha256:", id="other bytes"),
    ],
)
def test_a_blob_that_is_another(played: PlayedRegistry, answer: Callable[[Handler, bytes], None], message: str) -> None:
    played.fail("GET", "/blobs/", answer)
    out = io.BytesIO()
    with pytest.raises(CorruptError, match=message):
        client(played).read_blob(REPOSITORY, BLOB, out)
    assert len(out.getvalue()) <= len(DATA)
    assert len(played.requests("GET", "/blobs/")) == 1


def test_a_blob_that_is_not_there(played: PlayedRegistry) -> None:
    with pytest.raises(NotFoundError, match="it is not there"):
        read(client(played), Descriptor(LAYER_GZIP, digest_of(b"x"), 1))


def test_a_connection_that_is_always_cut(played: PlayedRegistry) -> None:
    played.fail("GET", "/blobs/", *[cut()] * 20)
    waits = Waits()
    with pytest.raises(RegistryError, match=r"can not get the blob .* the connection to .* broke off"):
        read(client(played, sleep=waits))
    assert len(waits) == 5
    assert waits == sorted(waits)


def test_a_foreign_layer_comes_from_its_address(played: PlayedRegistry) -> None:
    data = b"foreign" * 1000
    with PlayedRegistry() as other:
        digest = other.put("x", data)
        urls = ("http://127.0.0.1:1/gone", f"http://{other.name}/v2/x/blobs/{digest}")
        blob = Descriptor(LAYER_GZIP, Digest(digest), len(data), urls=urls)
        assert read(client(played, Credentials("me", "secret")), blob) == data
        assert not any(seen.authorization for seen in other.seen)


# ---------------------------------------------------------------- blobs up


def test_a_blob_goes_up_in_one_request(played: PlayedRegistry) -> None:
    data, told = DATA[:2_500_000], list[int]()
    assert send(client(played), data, progress=told.append) is True
    assert played.blobs[digest_of(data)] == data
    assert sum(told) == len(data)
    assert [seen.method for seen in played.seen] == ["HEAD", "POST", "PUT"]
    assert "state=a%2Fb&digest=sha256:" in played.seen[-1].path


def test_a_blob_that_is_there_is_not_sent(played: PlayedRegistry) -> None:
    assert send(client(played)) is False
    assert [seen.method for seen in played.seen] == ["HEAD"]


def test_a_blob_of_another_repository_is_mounted(played: PlayedRegistry) -> None:
    data = b"mounted"
    digest = played.put("base/image", data)
    assert send(client(played), data, mount_from=["no/where", "base/image"]) is False
    assert digest in played.has[REPOSITORY]
    assert [seen.method for seen in played.seen] == ["HEAD", "POST", "DELETE", "POST"]


def test_a_mount_that_fails_is_an_upload(played: PlayedRegistry) -> None:
    played.fail("POST", "mount=", status(403))
    assert send(client(played), b"new", mount_from=["secret/base"]) is True
    assert send(client(played), b"newer", mount_from=["no/where"]) is True
    # The place that the failed mount gave is used.
    assert [seen.method for seen in played.seen] == ["HEAD", "POST", "POST", "PUT", "HEAD", "POST", "PUT"]


def test_a_cut_upload_goes_on_where_it_stopped(played: PlayedRegistry) -> None:
    data, told = DATA[:2_500_000], list[int]()

    def half(handler: Handler, body: bytes) -> None:
        played.uploads["0"] += body[:1_200_000]
        handler.cut()

    played.fail("PUT", "uploads/0", half)
    assert send(client(played), data, progress=told.append) is True
    assert played.blobs[digest_of(data)] == data
    assert sum(told) == len(data)
    assert min(told) < 0
    patch = played.requests("PATCH")[0]
    assert patch.headers["content-range"] == f"1200000-{len(data) - 1}"
    assert [seen.method for seen in played.seen] == ["HEAD", "POST", "PUT", "GET", "PATCH", "PUT"]


def test_a_cut_upload_of_which_the_registry_knows_nothing_starts_again(played: PlayedRegistry) -> None:
    def lost(handler: Handler, _: bytes) -> None:
        played.uploads.clear()
        played.uploads["lost"] = bytearray()
        handler.cut()

    played.fail("PUT", "uploads/0", lost)
    assert send(client(played), b"data" * 1000) is True
    assert [seen.method for seen in played.seen] == ["HEAD", "POST", "PUT", "GET", "POST", "PUT"]


def test_a_blob_too_large_for_one_request_goes_in_pieces(played: PlayedRegistry) -> None:
    data = random.Random(2).randbytes((16 << 20) + 5)
    played.fail("PUT", "uploads", status(413))
    assert send(client(played), data) is True
    assert played.blobs[digest_of(data)] == data
    assert [seen.headers["content-range"] for seen in played.requests("PATCH")] == [
        f"0-{(16 << 20) - 1}",
        f"{16 << 20}-{(16 << 20) + 4}",
    ]


def test_bytes_that_are_not_the_blob(played: PlayedRegistry) -> None:
    blob = Descriptor(LAYER_GZIP, digest_of(b"right"), 5)
    with pytest.raises(RegistryError, match="did not match") as caught:
        client(played).put_blob(REPOSITORY, blob, lambda: io.BytesIO(b"wrong"))
    assert (caught.value.status, caught.value.code) == (400, "DIGEST_INVALID")
    with pytest.raises(CorruptError, match="shorter than its 5 bytes"):
        client(played).put_blob(REPOSITORY, blob, lambda: io.BytesIO(b"shor"))


def test_uploads_go_where_the_registry_says_without_the_password(played: PlayedRegistry) -> None:
    played.login = "me:secret"
    with PlayedRegistry() as storage:
        storage.uploads["7"] = bytearray()
        played.fail("POST", "uploads", status(202, {"Location": f"http://{storage.name}/v2/x/blobs/uploads/7?sig=1"}))
        assert send(client(played, Credentials("me", "secret")), b"data") is True
        assert storage.blobs[digest_of(b"data")] == b"data"
        assert not any(seen.authorization for seen in storage.seen)


# ---------------------------------------------------------------- trying again


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(played: PlayedRegistry, code: int) -> None:
    played.put_manifest(REPOSITORY, "1", {}, MANIFEST)
    waits = Waits()
    played.fail("GET", "manifests", status(code), status(code))
    client(played, sleep=waits).manifest(REPOSITORY, "1")
    assert len(waits) == 2
    assert 0.2 < waits[0] < waits[1] < 2


def test_retry_after_is_honoured(played: PlayedRegistry) -> None:
    played.put_manifest(REPOSITORY, "1", {}, MANIFEST)
    waits = Waits()
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    played.fail("GET", "manifests", status(429, {"Retry-After": "7"}), status(503, past), None)
    client(played, sleep=waits).manifest(REPOSITORY, "1")
    assert waits == [7.0, 0.0]
    played.fail("GET", "manifests", status(429, {"Retry-After": "3600"}))
    with pytest.raises(RegistryError, match="429 Too Many Requests") as caught:
        client(played).manifest(REPOSITORY, "1")
    assert caught.value.status == 429
    assert "come back in 3600 seconds" in caught.value.hint


def test_a_wait_can_be_the_end(played: PlayedRegistry) -> None:
    played.fail("GET", "manifests", *[status(503)] * 3)
    stop = threading.Event()
    stop.set()
    with pytest.raises(RegistryError, match="503 Service Unavailable"):
        client(played, sleep=stop.wait).manifest(REPOSITORY, "1")
    assert len(played.seen) == 1


@pytest.mark.parametrize("code", [400, 403, 405, 501])
def test_what_will_not_pass_is_not_tried_again(played: PlayedRegistry, code: int) -> None:
    played.fail("GET", "manifests", *[status(code)] * 3)
    with pytest.raises(RegistryError) as caught:
        client(played).manifest(REPOSITORY, "1")
    assert caught.value.status == code
    assert len(played.seen) == 1


def test_what_a_server_says_moves_no_cursor(played: PlayedRegistry) -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "no\x1b[2J\nway"}]}).encode()
    played.fail("GET", "manifests", status(403, {}, body))
    with pytest.raises(RegistryError, match=r"access is denied: no \[2J way$"):
        client(played).manifest(REPOSITORY, "1")


def test_hosts_that_are_not_there() -> None:
    registry = Registry("registry.invalid", sleep=Waits())
    with pytest.raises(RegistryError, match=r"the host registry\.invalid is not known") as caught:
        registry.manifest(REPOSITORY, "1")
    assert "name right" in caught.value.hint
    with pytest.raises(RegistryError, match=r"can not connect to 127\.0\.0\.1:1: connection refused"):
        Registry("127.0.0.1:1", sleep=Waits()).manifest(REPOSITORY, "1")


# ---------------------------------------------------------------- who one is


def test_basic(played: PlayedRegistry) -> None:
    played.login = "me:sécret"
    registry = client(played, Credentials("me", "sécret"))
    assert read(registry) == DATA
    assert read(registry) == DATA
    # Only the first request had to be asked.
    assert [bool(seen.authorization) for seen in played.seen] == [False, True, True]


@pytest.mark.parametrize(
    ("login", "message", "hint"),
    [
        (None, "it asks for a login", "pybuild login 127.0.0.1:{}"),
        (Credentials("me", "wrong"), "the user name or the password is wrong", "again"),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_credentials_that_do_not_do(
    played: PlayedRegistry, login: Credentials | None, message: str, hint: str, tokens: bool
) -> None:
    played.login, played.tokens = "me:secret", tokens
    with pytest.raises(RegistryError, match=message) as caught:
        read(client(played, login))
    assert caught.value.status == 401
    assert hint.format(played.name.rpartition(":")[2]) in caught.value.hint
    assert len(played.seen) <= 3


@pytest.mark.parametrize("login", ["", "me:secret"])
def test_tokens_are_for_what_is_done_and_are_kept(played: PlayedRegistry, login: str) -> None:
    played.login, played.tokens = login, True
    registry = client(played, Credentials("me", "secret") if login else None)
    assert read(registry) == DATA
    assert read(registry) == DATA
    assert send(registry, b"up") is True
    assert send(registry, b"upper") is True
    assert read(registry) == DATA
    asked = [seen.path for seen in played.requests("GET", "/token")]
    assert len(asked) == 2
    assert "scope=repository:library/app:pull&" in asked[0] + "&"
    assert "service=played" in asked[0]
    assert "scope=repository:library/app:pull,push" in asked[1]


def test_a_mount_asks_for_both_repositories(played: PlayedRegistry) -> None:
    played.tokens = True
    played.put("base/image", b"mounted")
    assert send(client(played), b"mounted", mount_from=["base/image"]) is False
    assert any(
        "scope=repository:base/image:pull" in seen.path and "scope=repository:library/app:pull,push" in seen.path
        for seen in played.requests("GET", "/token")
    )


def test_a_token_that_has_ended_is_renewed(played: PlayedRegistry) -> None:
    played.tokens = True
    registry = client(played)
    assert read(registry) == DATA
    played.given.clear()
    played.given["other"] = ""
    assert read(registry) == DATA
    assert len(played.requests("GET", "/token")) == 2


def test_a_token_is_not_used_after_its_end(played: PlayedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    played.tokens, played.expires = True, 0.001
    registry = client(played)
    assert read(registry) == DATA
    threading.Event().wait(0.01)
    assert read(registry) == DATA
    # The second token was got before the request, not after its refusal.
    assert [seen.path == "/token" or "token" in seen.path for seen in played.seen] == [False, True, False, True, False]


def test_an_identity_token_is_exchanged(played: PlayedRegistry) -> None:
    played.login, played.tokens = "<token>:refresh-me", True
    assert read(client(played, Credentials(identity_token="refresh-me"))) == DATA
    post = played.requests("POST", "/token")[0]
    assert b"grant_type=refresh_token" in post.body
    assert b"refresh_token=refresh-me" in post.body


def test_one_token_serves_many_threads(played: PlayedRegistry) -> None:
    played.tokens = True
    registry = client(played)
    with_data = list[bytes]()
    threads = [threading.Thread(target=lambda: with_data.append(read(registry))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert with_data == [DATA] * 6
    assert len(played.requests("GET", "/token")) == 1


def test_the_password_does_not_follow_a_redirect(played: PlayedRegistry) -> None:
    played.login = "me:secret"
    with PlayedRegistry() as storage:
        storage.put("x", DATA)
        target = f"http://{storage.name}/v2/x/blobs/{BLOB.digest}?signature=1"
        played.fail("GET", "/blobs/", None, redirect(target))
        assert read(client(played, Credentials("me", "secret"))) == DATA
        assert [seen.authorization for seen in storage.seen] == [""]


def test_the_password_does_not_follow_to_a_host_that_asks_for_it(played: PlayedRegistry) -> None:
    with PlayedRegistry(login="me:secret") as greedy:
        played.fail("GET", "/blobs/", redirect(f"http://{greedy.name}/v2/x/blobs/{BLOB.digest}"))
        with pytest.raises(RegistryError) as caught:
            read(client(played, Credentials("me", "secret")))
        assert caught.value.status == 401
        assert [seen.authorization for seen in greedy.seen] == [""]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://:80/x"])
def test_redirects_to_what_is_no_server(played: PlayedRegistry, target: str) -> None:
    played.fail("GET", "/blobs/", redirect(target))
    with pytest.raises(RegistryError, match="which is no address"):
        read(client(played))


def test_redirects_in_a_circle(played: PlayedRegistry) -> None:
    path = f"/v2/{REPOSITORY}/blobs/{BLOB.digest}"
    played.fail("GET", "/blobs/", *[redirect(path)] * 20)
    with pytest.raises(RegistryError, match="redirects in a circle"):
        read(client(played))


def test_a_token_server_that_is_no_address(played: PlayedRegistry) -> None:
    played.fail("GET", "/blobs/", status(401, {"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'}))
    with pytest.raises(RegistryError, match="names 'file:///etc/passwd' as its token server"):
        read(client(played, Credentials("me", "secret")))


def test_no_password_goes_without_tls_to_another_machine(played: PlayedRegistry) -> None:
    played.fail("GET", "/blobs/", status(401, {"WWW-Authenticate": 'Bearer realm="http://auth.invalid/token"'}))
    registry = Registry(played.name, credentials=lambda _: Credentials("me", "secret"), sleep=Waits())
    with pytest.raises(RegistryError, match=r"wants the password sent without TLS, to http://auth"):
        read(registry)


def test_what_one_may_not_do_needs_no_other_password(played: PlayedRegistry) -> None:
    played.tokens = True
    challenge = f'Bearer realm="http://{played.name}/token",scope="repository:x:push",error="insufficient_scope"'
    played.fail("HEAD", "/blobs/", *[status(401, {"WWW-Authenticate": challenge})] * 4)
    with pytest.raises(RegistryError, match=r"can not push to .*: access is denied") as caught:
        send(client(played, Credentials("me", "secret")), b"new")
    assert caught.value.hint == ""


# ---------------------------------------------------------------- addresses and mirrors


def test_docker_io_lives_elsewhere() -> None:
    registry = Registry("docker.io")
    assert registry.connection.host == "registry-1.docker.io"
    assert registry.connection.url("library/debian/tags/list").startswith("https://registry-1.docker.io/v2/")


def test_a_loopback_registry_may_speak_plain_http(played: PlayedRegistry) -> None:
    assert read(Registry(played.name)) == DATA
    with pytest.raises(RegistryError, match="does not speak TLS"):
        read(Registry(played.name, plain_http=False))


def test_a_mirror_is_asked_first(played: PlayedRegistry) -> None:
    with PlayedRegistry() as mirror:
        mirror.put(f"hub/{REPOSITORY}", DATA)
        played.put_manifest(REPOSITORY, "1", {}, MANIFEST)
        registry = client(played, mirrors=[Mirror(client(mirror), "hub")])
        assert read(registry) == DATA
        assert not played.seen
        # What the mirror has not comes from the registry, and goes to it.
        registry.manifest(REPOSITORY, "1")
        assert len(played.seen) == 1
        send(registry, b"up")
        assert not mirror.requests("POST")


def test_a_mirror_that_is_down_is_left_alone(played: PlayedRegistry) -> None:
    waits = Waits()
    registry = client(played, mirrors=[Mirror(Registry("127.0.0.1:1", plain_http=True, sleep=waits))])
    assert read(registry) == DATA
    before = len(waits)
    assert read(registry) == DATA
    assert len(waits) == before


def test_a_mirror_that_breaks_off_leaves_the_rest_to_the_registry(played: PlayedRegistry) -> None:
    with PlayedRegistry() as mirror:
        mirror.fail("GET", "/blobs/", cut(DATA[:2_000_000], len(DATA)), *[cut()] * 20)
        assert read(client(played, mirrors=[Mirror(client(mirror))])) == DATA
        assert "range" in played.seen[-1].headers

"""A registry in this process that does as a test says: right by itself, wrong where a fault is scripted.

    with PlayedRegistry() as registry:
        registry.fail("GET", "/blobs/", status(503), status(503))
        Registry(registry.name).read_blob(...)

A fault is a function that is given the request and answers it; `None` lets the request through. Each is used up by one
request that it is for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Seen(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


class _Fault(NamedTuple):
    method: str
    path: str
    action: Callable[[Handler, bytes], None] | None


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *words: object) -> None:
        """Silence."""

    def answer(self, code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        headers = dict(headers or {})
        headers.setdefault("Content-Length", str(len(body)))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        """Close the connection, with a reset where bytes are still to be read."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def error(self, code: int, word: str, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": word, "message": message}]}).encode()
        self.answer(code, {"Content-Type": "application/json", **(headers or {})}, body)

    def _do(self) -> None:
        played = self.server.played
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        with played.lock:
            played.seen.append(seen)
            fault = next(
                (
                    each
                    for each in played.faults
                    if each.method in {"", self.command} and re.search(each.path, self.path)
                ),
                None,
            )
            if fault is not None:
                played.faults.remove(fault)
        if fault is not None and fault.action is not None:
            fault.action(self, body)
            return
        played.serve(self, seen)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    played: PlayedRegistry

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that clients break off are part of the play."""


class PlayedRegistry:
    """Blobs, manifests, tags and uploads in memory, on a free port of the loopback.

    login: `user:password`, asked for by Basic. tokens: ask for tokens, which `/token` gives; login then counts there.
    """

    def __init__(self, *, login: str = "", tokens: bool = False, page: int = 0) -> None:
        self.login = login
        self.tokens = tokens
        self.page = page
        self.expires: object = 300
        self.lock = threading.RLock()
        self.faults: list[_Fault] = []
        self.seen: list[Seen] = []
        self.blobs: dict[str, bytes] = {}
        self.has: dict[str, set[str]] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.given: dict[str, str] = {}
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.played = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method: str, path: str, *actions: Callable[[Handler, bytes], None] | None) -> None:
        """Answer the next requests like this; an action each. None: rightly."""
        self.faults += [_Fault(method, path, action) for action in actions]

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        return [seen for seen in self.seen if method in {"", seen.method} and re.search(path, seen.path)]

    def put(self, repository: str, data: bytes) -> str:
        """Have a blob in a repository."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        self.has.setdefault(repository, set()).add(digest)
        return digest

    def put_manifest(self, repository: str, tag: str, document: object, media_type: str) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        for reference in (tag, digest):
            if reference:
                self.manifests[repository, reference] = (media_type, data)
        return digest

    # ------------------------------------------------------------ right answers

    def serve(self, handler: Handler, seen: Seen) -> None:
        path = urlsplit(seen.path).path
        if path == "/token":
            self._token(handler, seen)
            return
        if not self._allowed(handler, seen):
            return
        if path == "/v2/":
            handler.answer(200, body=b"{}")
        elif found := re.fullmatch(r"/v2/(.+)/(blobs/uploads)/([^/]*)", path):
            self._upload(handler, seen, found[1], found[3])
        elif found := re.fullmatch(r"/v2/(.+)/(blobs|manifests|tags)/([^/]+)", path):
            {"blobs": self._blob, "manifests": self._manifest, "tags": self._tags}[found[2]](
                handler, seen, found[1], found[3]
            )
        else:
            handler.error(404, "UNSUPPORTED")

    def _allowed(self, handler: Handler, seen: Seen) -> bool:
        if self.tokens:
            scope = self.given.get(seen.authorization.removeprefix("Bearer "))
            wanted = self._scope(seen)
            if scope is not None and all(
                word in scope.split() or self._covered(word, scope) for word in wanted.split()
            ):
                return True
            challenge = f'Bearer realm="http://{self.name}/token",service="played",scope="{wanted}"'
            handler.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
            return False
        if self.login and seen.authorization != "Basic " + base64.b64encode(self.login.encode()).decode():
            handler.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="played"'})
            return False
        return True

    @staticmethod
    def _covered(wanted: str, scope: str) -> bool:
        resource, _, actions = wanted.rpartition(":")
        return any(
            each.rpartition(":")[0] == resource and set(actions.split(",")) <= set(each.rpartition(":")[2].split(","))
            for each in scope.split()
        )

    @staticmethod
    def _scope(seen: Seen) -> str:
        found = re.match(r"/v2/(.+)/(?:blobs|manifests|tags)/", seen.path)
        if found is None:
            return ""
        what = "pull" if seen.method in {"GET", "HEAD"} else "pull,push"
        source = parse_qs(urlsplit(seen.path).query).get("from", [""])[0]
        return f"repository:{found[1]}:{what}" + (f" repository:{source}:pull" if source else "")

    def _token(self, handler: Handler, seen: Seen) -> None:
        fields = parse_qs(seen.body.decode() if seen.method == "POST" else urlsplit(seen.path).query)
        if seen.method == "POST":
            allowed = fields.get("refresh_token") == [self.login.partition(":")[2]]
        else:
            allowed = not self.login or seen.authorization == "Basic " + base64.b64encode(self.login.encode()).decode()
        if not allowed:
            handler.error(401, "UNAUTHORIZED", "incorrect username or password")
            return
        token = f"token-{len(self.given)}"
        self.given[token] = " ".join(fields.get("scope", []))
        document = {"access_token" if seen.method == "POST" else "token": token, "expires_in": self.expires}
        handler.answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _blob(self, handler: Handler, seen: Seen, repository: str, digest: str) -> None:
        if digest not in self.has.get(repository, set()):
            handler.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        data = self.blobs[digest]
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            handler.answer(206, headers, data[start:])
        elif handler.command == "HEAD":
            handler.answer(200, {**headers, "Content-Length": str(len(data))})
        else:
            handler.answer(200, headers, data)

    def _manifest(self, handler: Handler, seen: Seen, repository: str, reference: str) -> None:
        if handler.command == "PUT":
            digest = self.put_manifest(repository, reference, seen.body, seen.headers.get("content-type", ""))
            handler.answer(201, {"Docker-Content-Digest": digest, "Location": f"/v2/{repository}/manifests/{digest}"})
            return
        found = self.manifests.get((repository, reference))
        if found is None:
            handler.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        if handler.command == "DELETE":
            del self.manifests[repository, reference]
            handler.answer(202)
            return
        digest = "sha256:" + hashlib.sha256(found[1]).hexdigest()
        headers = {"Content-Type": found[0], "Docker-Content-Digest": digest, "Content-Length": str(len(found[1]))}
        handler.answer(200, headers, found[1])

    def _tags(self, handler: Handler, seen: Seen, repository: str, _: str) -> None:
        names = sorted(tag for name, tag in self.manifests if name == repository and ":" not in tag)
        if not names:
            handler.error(404, "NAME_UNKNOWN", "repository name not known to registry")
            return
        last = parse_qs(urlsplit(seen.path).query).get("last", [""])[0]
        names = [name for name in names if name > last]
        headers = {"Content-Type": "application/json"}
        if self.page and len(names) > self.page:
            names = names[: self.page]
            headers["Link"] = f'</v2/{repository}/tags/list?n={self.page}&last={names[-1]}>; rel="next"'
        handler.answer(200, headers, json.dumps({"name": repository, "tags": names}).encode())

    def _upload(self, handler: Handler, seen: Seen, repository: str, number: str) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(seen.path).query).items()}
        if seen.method == "POST":
            if query.get("mount") in self.has.get(query.get("from", ""), set()):
                self.has.setdefault(repository, set()).add(query["mount"])
                handler.answer(201, {"Location": f"/v2/{repository}/blobs/{query['mount']}"})
                return
            with self.lock:
                number = str(len(self.uploads))
                self.uploads[number] = bytearray()
            handler.answer(202, {"Location": f"/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"})
            return
        kept = self.uploads.get(number)
        if kept is None:
            handler.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
            return
        place = {"Location": f"/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"}
        if seen.method == "PATCH":
            asked = re.match(r"(\d+)-", seen.headers.get("content-range", ""))
            if asked and int(asked[1]) != len(kept):
                handler.error(416, "RANGE_INVALID")
                return
        if seen.method in {"PATCH", "PUT"}:
            kept += seen.body
        if seen.method == "DELETE":
            del self.uploads[number]
            handler.answer(204)
        elif seen.method == "PUT":
            digest = "sha256:" + hashlib.sha256(kept).hexdigest()
            if digest != query.get("digest"):
                handler.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            self.put(repository, bytes(kept))
            handler.answer(201, {"Docker-Content-Digest": digest, "Location": f"/v2/{repository}/blobs/{digest}"})
        else:
            code = 202 if seen.method == "PATCH" else 204
            handler.answer(code, {**place, "Range": f"0-{max(len(kept) - 1, 0)}"})


# ---------------------------------------------------------------- faults


def status(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Callable[[Handler, bytes], None]:
    """Answer with a status and nothing more."""
    return lambda handler, _: handler.answer(code, headers, body)


def cut(data: bytes = b"", length: int | None = None) -> Callable[[Handler, bytes], None]:
    """Close the connection: at once, or after these bytes of an answer that announced `length`."""

    def act(handler: Handler, _: bytes) -> None:
        if length is not None:
            handler.answer(200, {"Content-Length": str(length)}, data)
        handler.cut()

    return act


def endless(handler: Handler, body: bytes) -> None:
    """A body of unknown length that never ends."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(100_000):
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    handler.cut()


def redirect(target: str, code: int = 307) -> Callable[[Handler, bytes], None]:
    """Send the client elsewhere."""
    return lambda handler, _: handler.answer(code, {"Location": target})

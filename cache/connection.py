"""Requests to one registry: connections and TLS, proving who we are, redirects, and trying again.

What a request is for is said by its caller (`what`: "push a blob to ..."), so that every error here can name it. What
may be over soon (a cut connection, 429, 500, 502, 503, 504) is a PassingError, and `retried` tries that again: after as
long as `Retry-After` says, or a little longer each time.

Where credentials go: to the registry's own origin (scheme, host and port), and to the token server that it names. A
redirect or an upload address elsewhere is followed without them. Nothing goes from https to plain http.
https://distribution.github.io/distribution/spec/auth/token/, /oauth/.

The only door to urllib3 for registries.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
)

from cache.challenges import Challenge, Credentials, Rights, Tokens, challenges, preferred, rights, scopes
from cache.errors import CorruptError, StoreError
from cache.reference import DOCKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from urllib3 import BaseHTTPResponse

_T = TypeVar("_T")

CHUNK = 1 << 20
"""Bytes that are read or sent at once."""
ATTEMPTS = 6

_DOCKER_HOST = "registry-1.docker.io"
_ANSWER_LIMIT = 8 << 20
"""Bytes. The spec has registries take manifests of 4 MiB at least; nobody takes more than twice that."""
REMARK_LIMIT = 64 << 10
_PROGRESS_MADE = 1 << 20
"""A connection that has brought so many bytes was no failure: the count of attempts starts again."""
_MOST_REDIRECTS = 10
_LONGEST_WAIT = 120.0
_TIMEOUT = urllib3.Timeout(connect=20.0, read=60.0)
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN_SECONDS = 60
_CLIENT = "pybuild"


class RegistryError(StoreError):
    """A registry that can not be reached, or says no. status: of HTTP, 0 without an answer; code: the spec's word."""

    def __init__(self, message: str, hint: str = "", *, status: int = 0, code: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code


class PassingError(RegistryError):
    """What may be over at the next attempt. wait: seconds that the server asks for; attempts: how many are enough."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int = 0,
        code: str = "",
        wait: float | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        super().__init__(message, hint, status=status, code=code)
        self.wait = wait
        self.attempts = attempts


class Answer(NamedTuple):
    """An answer whose body is small and here."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


class Body:
    """An answer whose body is read piece by piece. A context manager; errors come out as PassingError."""

    def __init__(self, connection: Connection, what: str, response: BaseHTTPResponse, url: str) -> None:
        self._connection = connection
        self._what = what
        self._response = response
        self._url = url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, and none at the end."""
        try:
            # As much as has come: a reader has to get the word when bytes come slowly, to see that it is to stop.
            return self._response.read1(size, decode_content=False)
        except HTTPError as error:
            raise self._connection.broken(self._what, error) from None

    def taken(self) -> Answer:
        """The whole of it, which has to be small: an error's."""
        return self._connection.taken(self._what, self._response, self._url, REMARK_LIMIT)

    def shutdown(self) -> None:
        """Have a `read` that waits in another thread end now."""
        with suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def __enter__(self) -> Self:
        self._connection.bodies.add(self)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._connection.bodies.discard(self)
        _release(self._response)


class Connection:
    """One registry, by the name that stands in references. Safe for threads; keeps connections and tokens.

    The parameters are those of `cache.registry.Registry`. failed: for whoever has other places to ask. bodies: that are
    being read.
    """

    def __init__(
        self,
        name: str,
        *,
        credentials: Callable[[str], Credentials | None] | None,
        plain_http: bool | None,
        insecure: bool,
        ca_file: str | Sequence[str],
        client_cert: str,
        client_key: str,
        sleep: Callable[[float], object],
    ) -> None:
        self.name = name
        self.host = _DOCKER_HOST if name == DOCKER else name
        self._ask = credentials
        self._plain_http = plain_http
        self._insecure = insecure
        self._ca_files = (ca_file,) if isinstance(ca_file, str) else tuple(ca_file)
        self._client = (client_cert, client_key)
        self._sleep = sleep
        self._lock = threading.RLock()
        self._pools: dict[tuple[bool, str], urllib3.PoolManager] = {}
        self._base = ""
        self._challenge: Challenge | None = None
        self._credentials: Credentials | None = None
        self._asked = False
        self._tokens = Tokens()
        self.failed = False
        self.bodies: set[Body] = set()
        self._over = False

    def abort(self) -> None:
        """Break off what is being read, in whatever thread, and try nothing again. For good."""
        self._over = True
        for body in self.bodies.copy():
            body.shutdown()

    def close(self) -> None:
        """Close the connections. A later use opens others."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.clear()

    # ------------------------------------------------------------ one request

    def call(
        self,
        what: str,
        method: str,
        url: str,
        wanted: Rights,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterator[bytes | memoryview]] | None = None,
        length: int | None = None,
        attempts: int = ATTEMPTS,
    ) -> Answer:
        """The small answer to a request, tried as often as it takes. A status that may pass is no answer."""

        def once() -> Answer:
            response, place = self.follow(what, method, url, wanted, headers, body, length)
            return self.taken(what, response, place, _ANSWER_LIMIT)

        return self.retried(once, attempts=attempts)

    def stream(self, what: str, url: str, wanted: Rights, headers: Mapping[str, str]) -> Body:
        """What is at `url`, to be read piece by piece. Not tried again: see `retried`."""
        return Body(self, what, *self.follow(what, "GET", url, wanted, headers))

    def retried(self, action: Callable[[], _T], done: Callable[[], int] = lambda: 0, *, attempts: int = ATTEMPTS) -> _T:
        """Do `action` until it succeeds, fails for good, or has failed too often. done: the bytes got so far."""
        count = 0
        before = done()
        while True:
            try:
                return action()
            except PassingError as failure:
                if done() - before >= _PROGRESS_MADE:
                    count, before = 0, done()
                count += 1
                wait = 0.25 * 2**count * random.uniform(0.75, 1.25) if failure.wait is None else failure.wait
                if self._over or count >= min(attempts, failure.attempts):
                    raise
                if wait > _LONGEST_WAIT:
                    failure.hint = f"the server asks to come back in {wait:.0f} seconds"
                    raise
                if self._sleep(wait):
                    raise

    def follow(
        self,
        what: str,
        method: str,
        url: str,
        wanted: Rights,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterator[bytes | memoryview]] | None = None,
        length: int | None = None,
    ) -> tuple[BaseHTTPResponse, str]:
        """One request with all that belongs to it: proving who we are, and redirects. Its answer, and whence it came.

        Raises PassingError for what may pass, RegistryError for what will not; other statuses are the caller's.
        """
        proved = 0
        redirects = 0
        while True:
            ours = self._is_ours(url)
            sent = {"User-Agent": _CLIENT, "Accept-Encoding": "identity", **(headers or {})}
            if length is not None:
                sent["Content-Length"] = str(length)
            token = self._authorization(wanted) if ours else ""
            if token:
                sent["Authorization"] = token
            response = self._send(what, method, url, sent, None if body is None else body())
            status = response.status
            if status in {301, 302, 303, 307, 308} and (target := response.headers.get("Location")):
                # A 303 means: get it from there. What was sent is not to be sent there as well.
                if status == 303 and method != "HEAD":
                    method, body, length = "GET", None, None
                _release(response)
                redirects += 1
                if redirects > _MOST_REDIRECTS:
                    raise RegistryError(f"can not {what}: the server redirects in a circle")
                url = self.target(what, url, target)
            elif status == 401 and ours and proved < 2:
                proved += 1
                answer = self.taken(what, response, url, REMARK_LIMIT)
                if not self._prove(response.headers.getlist("WWW-Authenticate"), wanted, token):
                    raise self.refusal(what, answer)
            elif status in _TRANSIENT:
                answer = self.taken(what, response, url, REMARK_LIMIT)
                raise self._passing(what, answer)
            elif status == 401:
                raise self.refusal(what, self.taken(what, response, url, REMARK_LIMIT))
            else:
                return response, url

    def _send(
        self,
        what: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Iterator[bytes | memoryview] | bytes | None,
    ) -> BaseHTTPResponse:
        try:
            return self._pool(url).urlopen(
                method,
                url,
                body=body,
                headers=dict(headers),
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=_TIMEOUT,
            )
        except LocationParseError:
            raise RegistryError(f"can not {what}: {url!r} is no address") from None
        except HTTPError as error:
            raise self.broken(what, error, url) from None

    def taken(self, what: str, response: BaseHTTPResponse, url: str, limit: int) -> Answer:
        """The body of an answer that has to be small."""
        try:
            body = response.read(limit + 1, decode_content=False) if response.status != 204 else b""
        except HTTPError as error:
            raise self.broken(what, error) from None
        finally:
            _release(response)
        if len(body) > limit:
            if response.status >= 400:
                body = b""
            else:
                raise CorruptError(f"can not {what}: the answer is larger than {limit >> 20} MiB")
        return Answer(response.status, response.headers, body, url)

    def _pool(self, url: str) -> urllib3.PoolManager:
        """The connections for an address. The client's certificate is shown to the registry alone."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = "" if _is_loopback(host) or proxy_bypass(host) else getproxies().get(parts.scheme, "")
        ours = self._is_ours(url)
        with self._lock:
            pool = self._pools.get((ours, proxy))
            if pool is None:
                options: dict[str, Any] = {"maxsize": 16, "ssl_context": self._tls(ours), "blocksize": CHUNK}
                pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                self._pools[ours, proxy] = pool
            return pool

    def _tls(self, ours: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        cert, key = self._client
        try:
            for path in self._ca_files:
                if path:
                    context.load_verify_locations(path)
            if ours and cert:
                context.load_cert_chain(cert, key or None)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or "not PEM certificates"
            raise RegistryError(
                f"can not read the certificates for {self.name}: {(*self._ca_files, cert)[0]}: {reason}"
            ) from None
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    # ------------------------------------------------------------ addresses

    def url(self, path: str) -> str:
        """The address of something below `/v2/`."""
        return f"{self._origin()}/v2/{path}"

    def _origin(self) -> str:
        """Scheme and host. Where both schemes may be, TLS is tried first, once, as docker does."""
        if self._base:
            return self._base
        with self._lock:
            if not self._base:
                lenient = self._plain_http is None and (self._insecure or _is_loopback(_host_of(self.host)))
                scheme = "http" if self._plain_http or (lenient and not self._speaks_tls()) else "https"
                self._base = f"{scheme}://{self.host}"
            return self._base

    def _speaks_tls(self) -> bool:
        url = f"https://{self.host}/v2/"
        pool = urllib3.PoolManager(ssl_context=self._tls(ours=False))
        try:
            response = pool.urlopen("HEAD", url, preload_content=False, redirect=False, retries=False, timeout=5.0)
            _release(response)
        except SSLError as error:
            # A certificate that is not trusted is one nevertheless.
            return isinstance(_cause(error), ssl.SSLCertVerificationError)
        except HTTPError:
            return False
        finally:
            pool.clear()
        return True

    def _is_ours(self, url: str) -> bool:
        return _origin_of(url) == _origin_of(self._base)

    def target(self, what: str, url: str, target: str) -> str:
        """Where a redirect or an upload leads."""
        found = urljoin(url, target)
        parts, before = urlsplit(found), urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RegistryError(f"can not {what}: the server sends to {found!r}, which is no address")
        if parts.scheme == "http" and before.scheme == "https":
            if parts.hostname == before.hostname and parts.port in {None, 80, before.port}:
                # A registry behind a proxy that does TLS for it, and that it knows nothing of.
                return urlunsplit(parts._replace(scheme="https", netloc=before.netloc))
            if not self._insecure:
                raise RegistryError(
                    f"can not {what}: the server sends to {parts.scheme}://{parts.netloc}, out of TLS",
                    "--insecure allows it",
                )
        return found

    def location(self, answer: Answer) -> str:
        """Where an upload goes on."""
        place = answer.headers.get("Location", "")
        if not place:
            raise RegistryError(f"{self.name} does not say where to upload to (no Location)")
        return self.target("upload", answer.url, place)

    # ------------------------------------------------------------ who we are

    def _authorization(self, wanted: Rights) -> str:
        """The Authorization header to send at once, as far as it is known what the registry wants; or empty."""
        challenge = self._challenge
        if challenge is None:
            return ""
        if challenge.scheme == "basic":
            credentials = self._known()
            return credentials.basic if credentials is not None and credentials.username else ""
        with self._lock:
            token = self._tokens.find(wanted)
            if token is None:
                token, seconds = self._fetch_token(challenge, wanted)
                self._tokens.keep(wanted, token, seconds)
        return "Bearer " + token

    def _prove(self, headers: Sequence[str], wanted: Rights, refused: str) -> bool:
        """Learn from a 401 how to prove who we are; whether it is worth another attempt. refused: what did not do."""
        challenge = preferred(challenges(headers))
        if challenge is None:
            return False
        with self._lock:
            if challenge.scheme == "basic":
                credentials = self._known()
                self._challenge = challenge
                return credentials is not None and bool(credentials.username) and refused != credentials.basic
            self._challenge = challenge
            if refused.startswith("Bearer "):
                self._tokens.drop(refused.removeprefix("Bearer "))
            if self._tokens.find(wanted) is None:
                # The registry knows best what it wants, and may want more than it should need.
                wanted |= rights(challenge.scopes)
                self._tokens.keep(wanted, *self._fetch_token(challenge, wanted))
            return True

    def _known(self) -> Credentials | None:
        with self._lock:
            if not self._asked:
                self._credentials = None if self._ask is None else self._ask(self.name)
                self._asked = True
            return self._credentials

    def _fetch_token(self, challenge: Challenge, wanted: Rights) -> tuple[str, float]:
        """A token from the server that the registry names, and for how many seconds it is good."""
        realm = urlsplit(challenge.realm)
        what = f"get a token for {self.name} from {realm.netloc}"
        if realm.scheme not in {"http", "https"} or not realm.hostname:
            raise RegistryError(f"{self.name} names {challenge.realm!r} as its token server, which is no address")
        credentials = self._known()
        plain = realm.scheme == "http" and not _is_loopback(realm.hostname)
        if credentials is not None and plain and not (self._insecure or self._plain_http):
            raise RegistryError(
                f"{self.name} wants the password sent without TLS, to {challenge.realm}", "--insecure allows it"
            )
        asked = scopes(wanted)
        query = parse_qsl(realm.query, keep_blank_values=True)
        headers = {"User-Agent": _CLIENT, "Accept": "application/json", "Accept-Encoding": "identity"}
        body = None
        if credentials is not None and credentials.identity_token:
            method = "POST"
            fields = {
                "grant_type": "refresh_token",
                "service": challenge.service,
                "client_id": _CLIENT,
                "scope": " ".join(asked),
                "refresh_token": credentials.identity_token,
            }
            body = urlencode(fields).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            method = "GET"
            query += [("service", challenge.service)] if challenge.service else []
            query += [("scope", scope) for scope in asked]
            if credentials is not None and credentials.username:
                headers["Authorization"] = credentials.basic
        url = urlunsplit(realm._replace(query=urlencode(query, safe=":/,"), fragment=""))

        def once() -> Answer:
            answer = self.taken(what, self._send(what, method, url, headers, body), url, _ANSWER_LIMIT)
            if answer.status in _TRANSIENT:
                raise self._passing(what, answer)
            return answer

        answer = self.retried(once)
        if answer.status != 200:
            raise self.refusal(what, answer)
        document = json_of(answer.body)
        token = ""
        seconds: object = None
        if isinstance(document, dict):
            token = str(document.get("token") or document.get("access_token") or "")
            seconds = document.get("expires_in")
        if not token or not token.isprintable() or " " in token:
            raise RegistryError(f"can not {what}: there is no token in the answer")
        return token, float(seconds) if isinstance(seconds, int | float) and seconds > 0 else _TOKEN_SECONDS

    # ------------------------------------------------------------ what went wrong

    def refusal(self, what: str, answer: Answer) -> RegistryError:
        """The error for a status that will not pass."""
        code, said = told(answer)
        status = answer.status
        known = self._credentials is not None
        hint = ""
        if status == 401 and "insufficient_scope" in answer.headers.get("WWW-Authenticate", "") and known:
            # Who we are is known, and that it is not enough: Docker Hub has no 403 for that.
            status = 403
        if status == 401:
            reason = "the user name or the password is wrong" if known else "it asks for a login"
            hint = f"pybuild login {self.name}" + (" again" if known else "")
            reason += f" ({said})" if said else ""
        elif status == 403:
            reason = "access is denied" + (f": {said}" if said else "")
            hint = "" if known else f"pybuild login {self.name}"
        elif status == 404 and not said:
            reason = "there is no such repository, or this is no registry"
        elif said:
            reason = said
        else:
            reason = f"the server answers {status} {_phrase(status)}".rstrip()
        if code == "DIGEST_INVALID":
            hint = "pybuild fsck says whether the store is whole"
        return RegistryError(f"can not {what}: {reason}", hint, status=status, code=code)

    def _passing(self, what: str, answer: Answer) -> PassingError:
        code, said = told(answer)
        reason = f"the server answers {answer.status} {_phrase(answer.status)}".rstrip() + (f": {said}" if said else "")
        hint = ""
        if answer.status == 429:
            hint = "it limits how often it is asked" + (
                "" if self._credentials is not None else f"; pybuild login {self.name} may raise the limit"
            )
        wait = _retry_after(answer.headers.get("Retry-After", ""))
        return PassingError(f"can not {what}: {reason}", hint, status=answer.status, code=code, wait=wait)

    def broken(self, what: str, error: HTTPError, url: str = "") -> RegistryError:
        """The error for a connection that did not come about, or broke off."""
        host = urlsplit(url).netloc if url else self.host
        if isinstance(error, ProxyError):
            return PassingError(f"can not {what}: the proxy does not let it through: {_reason(error)}", attempts=2)
        if isinstance(error, NameResolutionError):
            return PassingError(
                f"can not {what}: the host {urlsplit(url).hostname} is not known",
                "is its name right, and is there a network?",
                attempts=2,
            )
        if isinstance(error, SSLError):
            return self._untrusted(what, host, error)
        if isinstance(error, NewConnectionError):
            return PassingError(f"can not {what}: can not connect to {host}: {_reason(error)}", attempts=3)
        if isinstance(error, ConnectTimeoutError):
            return PassingError(f"can not {what}: {host} does not answer", attempts=2)
        return PassingError(f"can not {what}: the connection to {host} broke off: {_reason(error)}")

    def _untrusted(self, what: str, host: str, error: SSLError) -> RegistryError:
        cause = _cause(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RegistryError(
                f"can not {what}: the certificate of {host} is not trusted: {cause.verify_message or cause}",
                f"put its authority into /etc/containers/certs.d/{self.host}/ca.crt; --insecure goes without",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in {
            "WRONG_VERSION_NUMBER",
            "RECORD_LAYER_FAILURE",
            "HTTP_REQUEST",
        }:
            return RegistryError(
                f"can not {what}: {host} does not speak TLS", "if it speaks plain HTTP, --insecure allows that"
            )
        return PassingError(f"can not {what}: no TLS with {host}: {_reason(error)}", attempts=3)


# ---------------------------------------------------------------- words


def json_of(data: bytes) -> object:
    """`data` read as JSON; None when it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def told(answer: Answer) -> tuple[str, str]:
    """The code and the message of the registry's own error, as far as there is one."""
    document = json_of(answer.body)
    errors = document.get("errors") if isinstance(document, dict) else None
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        code = str(errors[0].get("code") or "")
        message = str(errors[0].get("message") or code.lower().replace("_", " "))
        return code, _printable(message)
    if isinstance(document, dict):
        for key in ("details", "message", "error_description", "error"):
            if isinstance(document.get(key), str):
                return "", _printable(document[key])
    return "", ""


def _printable(text: str) -> str:
    """A server's words on one line, without what would move the cursor."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:300]


def _retry_after(text: str) -> float | None:
    """Seconds, which are given as such or as the date of their end."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _cause(error: BaseException) -> BaseException:
    """What lies at the bottom of an error of urllib3."""
    for _ in range(5):
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((each for each in error.args if isinstance(each, BaseException)), None)
        if inner is None:
            break
        error = inner
    return error


def _reason(error: BaseException) -> str:
    """What went wrong, without the names of the library's classes."""
    cause = _cause(error)
    text = str(getattr(cause, "strerror", None) or (cause.args[-1] if cause.args else cause))
    text = re.sub(r"^<[^>]*>:? *", "", text)
    text = re.sub(r"^.*?\[Errno -?\d+\] *", "", text)
    return _printable(text[:1].lower() + text[1:] if text[1:2].islower() else text)


def _host_of(netloc: str) -> str:
    return urlsplit(f"//{netloc}").hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin_of(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _release(response: BaseHTTPResponse) -> None:
    """Give the connection back for the next request; close it where much of the answer has not been read."""
    left = getattr(response, "length_remaining", None)
    if left is not None and left <= REMARK_LIMIT:
        with suppress(HTTPError, OSError):
            response.drain_conn()
        response.release_conn()
    response.close()

"""How a registry asks who is calling, and the tokens that it gave: words and values only, nothing is sent from here.

https://distribution.github.io/distribution/spec/auth/token/ and RFC 9110, section 11: a server that wants to know
answers 401 with `WWW-Authenticate: Bearer realm="https://auth.example/token",service="...",scope="..."`, or `Basic`.
"""

from __future__ import annotations

import base64
import re
import time
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SCHEME = re.compile(r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|$|(?=,))")
_PARAMETER = re.compile(r"""\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))\s*""")
_MARGIN = 5.0
"""Seconds before its end at which a token is not used any more: the request has to arrive, too."""


class Credentials(Struct, frozen=True):
    """Who one is to a registry. identity_token: an OAuth2 refresh token, which stands in the place of a password."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Challenge(Struct, frozen=True):
    """One way of proving oneself that a server offers. scheme: in lower case."""

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()
    error: str = ""


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """What `WWW-Authenticate` headers offer, in their order; what can not be read is left out."""
    found = []
    for header in headers:
        at = 0
        while at < len(header):
            scheme = _SCHEME.match(header, at)
            if scheme is None:
                break
            at = scheme.end()
            values: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, at):
                name, quoted, plain = parameter.groups()
                values[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                at = parameter.end()
                # After the comma comes another parameter, or the next scheme, which has no `=` behind it.
                if header[at : at + 1] == ",":
                    at += 1
            found.append(
                Challenge(
                    scheme[1].lower(),
                    values.get("realm", ""),
                    values.get("service", ""),
                    tuple(values.get("scope", "").split()),
                    values.get("error", ""),
                )
            )
            while header[at : at + 1] in {",", " "}:
                at += 1
    return found


def preferred(offered: Sequence[Challenge]) -> Challenge | None:
    """The one to take: a token, which does not show the password to the registry, before Basic. None: none is known."""
    for scheme in ("bearer", "basic"):
        for challenge in offered:
            if challenge.scheme == scheme and (challenge.realm or scheme == "basic"):
                return challenge
    return None


Rights = frozenset[tuple[str, str]]
"""What a token is for: pairs of a resource (`repository:library/app`) and an action (`pull`)."""


def rights(scopes: Iterable[str]) -> Rights:
    """The single rights in scopes such as `repository:library/app:pull,push`."""
    found = set()
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        found |= {(resource, action) for action in actions.split(",") if action}
    return frozenset(found)


def scopes(wanted: Rights) -> list[str]:
    """The rights as scopes, one for each resource, in a fixed order."""
    resources = sorted({resource for resource, _ in wanted})
    return [f"{each}:{','.join(sorted(action for name, action in wanted if name == each))}" for each in resources]


class Tokens:
    """The tokens that one registry gave, each with what it is for and its end. Not locked: the registry does that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: list[tuple[Rights, str, float]] = []

    def find(self, wanted: Rights) -> str | None:
        """A token that is good for all that is wanted, and for some seconds more."""
        now = self._clock()
        self._kept = [kept for kept in self._kept if kept[2] > now]
        return next((token for has, token, _ in self._kept if wanted <= has), None)

    def keep(self, has: Rights, token: str, seconds: float) -> None:
        """Remember a token that was given for `has` and `seconds`."""
        self._kept.insert(0, (has, token, self._clock() + max(seconds - _MARGIN, seconds / 2)))

    def drop(self, token: str) -> None:
        """Forget a token that was refused."""
        self._kept = [kept for kept in self._kept if kept[1] != token]

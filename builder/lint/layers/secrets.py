"""Rules about keys, tokens and passwords that an image gives away. No message has a value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from builder.lint.layers.subject import LayerRule, named
from builder.model import Severity
from cache.entries import Kind
from cache.traits import secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.lint.layers.subject import ImageLayer, ImageSubject, Maker, Shipped
    from builder.model import Finding

_PATHS = re.compile(
    rb"(?:^|/)(?:\.ssh/id_[^/.]+|\.aws/credentials|\.netrc|\.git-credentials|\.config/gcloud/(?:credentials\.db"
    rb"|application_default_credentials\.json|access_tokens\.db)|\.azure/(?:accessTokens\.json|msal_token_cache\.json)"
    rb"|\.kube/config|\.vault-token|\.config/gh/hosts\.yml|\.terraform\.d/credentials\.tfrc\.json"
    rb"|\.pgpass|\.my\.cnf|\.htpasswd)$"
)
"""Files that are there for nothing but a secret."""

_HOST_KEY = re.compile(rb"^etc/ssh/ssh_host_[^/]*_key$")
_LOCKED = "encrypted private key"


def secret_in_file(subject: ImageSubject) -> Iterator[Finding]:
    """No layer should hold a private key, a token or a password.

    Why: who has the image has the secret, also when a later layer deletes the file: each layer can be unpacked by
    itself. One that was published has to be replaced, not only removed.

    Bad:
        FROM base
        RUN mkdir /root && echo "machine example.com login me password hunter2hunter2" > /root/.netrc
        RUN rm /root/.netrc

    Good:
        FROM base
        RUN --mount=type=secret,id=netrc,target=/root/.netrc,required=false test ! -e /root/.netrc && touch /done
    """
    found: dict[int, list[tuple[Shipped, tuple[str, ...]]]] = {}
    for item in subject.shipped:
        if item.entry.kind is not Kind.FILE or not item.size or not subject.layers[item.layer].own:
            continue
        if item.names and _HOST_KEY.search(item.path):
            continue  # told by HostFiles
        kinds = item.traits.secrets
        if not kinds and _PATHS.search(item.entry.path):
            kinds = ("credentials",)
        if kinds:
            found.setdefault(item.layer, []).append((item, kinds))
    for number, pairs in sorted(found.items()):
        layer = subject.layers[number]
        kinds = tuple(dict.fromkeys(kind for _, each in pairs for kind in each))
        files = [item for item, _ in pairs]
        lost = [item for item in files if not item.names]
        message = f"{' and '.join(kinds) if len(kinds) < 3 else f'{len(kinds)} kinds of secrets'} in "
        message += named([item.path for item in files])
        takers: list[ImageLayer] = []
        if lost:
            takers = [subject.layers[by] for by in sorted({item.gone[-1].by for item in lost})]
            message += f"; {takers[0].place} removes it from sight, not from {layer.place}"
        severity = Severity.WARNING if set(kinds) <= {_LOCKED} else Severity.ERROR
        yield subject.finding(
            "SecretInFile", message, layer, _remedy(layer), severity=severity, files=files, related=takers
        )


def _remedy(layer: ImageLayer) -> str:
    if layer.maker.keyword in {"COPY", "ADD"}:
        return "leave it out by .dockerignore; a RUN that needs it has RUN --mount=type=secret. Replace what leaked"
    return "RUN --mount=type=secret,id=NAME gives it to one RUN and to no layer. Replace what leaked"


# ---------------------------------------------------------------- in metadata

_NAMES = re.compile(
    r"(?:^|[_.-])(?:apikey|api_key|auth|credentials?|key|password|passwd|pword|pwd|secret|token)(?:$|[_.-])",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"(?:^|[_.-])(?:public|file|path|dir|version|url|name|id|type|length|size|ttl|gpg|pgp)(?:$|[_.-])", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"^(?:\*+|x+|none|null|true|false|changeme|\$.*|<.*>|/.*|[0-9]{1,5})$", re.IGNORECASE)
_ARGUMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(\S+)")
_FLAG = re.compile(
    r"--?(?:[a-z-]*-)?(?:password|passwd|token|secret|api-?key)[= ]([^\s\"',\]-][^\s\"',\]]{5,})", re.IGNORECASE
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@$*{]{4,})@")


def secret_in_metadata(subject: ImageSubject) -> Iterator[Finding]:
    """ENV, LABEL, CMD and the history should hold no secret.

    Why: `docker inspect` and `docker history` show them to everyone who has the image, and each process of a container
    inherits ENV. The value of an ARG is in the history of every RUN below it, unless its name tells what it is.

    Bad:
        FROM base
        ENV DB_PASSWORD=hunter2hunter2

    Good:
        FROM base
        RUN --mount=type=secret,id=db,env=DB_PASSWORD,required=false echo fine > /done
    """
    config = subject.config.config
    for line in config.env:
        name, _, value = line.partition("=")
        kinds = _judged(name, value)
        maker = _maker(subject, "ENV", name)
        if kinds and maker is not None:
            yield _told(subject, f"ENV {name}", kinds, maker)
    for name, value in config.labels:
        kinds = _judged(name, value)
        maker = _maker(subject, "LABEL", name)
        if kinds and (maker is not None or all(layer.own for layer in subject.layers)):
            yield _told(subject, f"LABEL {name}", kinds, maker)
    for word, argv in (("ENTRYPOINT", config.entrypoint), ("CMD", config.cmd)):
        kinds = _in_words(" ".join(argv or ()))
        maker = subject.last(word)
        if kinds and maker is not None:
            yield _told(subject, word, kinds, maker)
    for maker in subject.makers:
        words = _in_words(maker.created_by)
        kinds = (*words, *_arguments(maker.created_by)) if maker.keyword == "RUN" else ()
        if kinds:
            yield _told(subject, "the history of this RUN", tuple(dict.fromkeys(kinds)), maker)


def _told(subject: ImageSubject, where: str, kinds: tuple[str, ...], maker: Maker | None) -> Finding:
    message = f"{where} has a secret in it ({' and '.join(kinds)}), and everyone who has the image can read it"
    hint = "RUN --mount=type=secret,id=NAME,env=NAME for the build; for the container, set it when that starts"
    return subject.finding("SecretInMetadata", message, maker, hint, severity=Severity.ERROR)


def _judged(name: str, value: str) -> tuple[str, ...]:
    """What a value under a name is, as far as it looks like a secret."""
    kinds = _in_words(value)
    if kinds:
        return kinds
    if len(value) < 6 or _PLACEHOLDER.match(value) or not _NAMES.search(name) or _HARMLESS.search(name):
        return ()
    return ("by its name",)


def _in_words(text: str) -> tuple[str, ...]:
    """Secrets that a text shows by their form."""
    kinds = list(secrets_in(text))
    if any(not _PLACEHOLDER.match(match[1]) for match in _URL.finditer(text)):
        kinds.append("a password in a URL")
    if any(not _PLACEHOLDER.match(match[1]) for match in _FLAG.finditer(text)):
        kinds.append("the value of a flag")
    return tuple(dict.fromkeys(kinds))


def _arguments(created_by: str) -> tuple[str, ...]:
    """Of `RUN |2 A=1 B=2 /bin/sh -c ...`: what the arguments give away."""
    head, found, rest = created_by.partition("|")
    if not found or head.strip() not in {"", "RUN"}:
        return ()
    count, _, rest = rest.partition(" ")
    kinds: list[str] = []
    for word in rest.split(" ")[: int(count) if count.isdecimal() else 0]:
        match = _ARGUMENT.fullmatch(word)
        if match and (judged := _judged(match[1], match[2])):
            kinds += [f"{kind}: ARG {match[1]}" for kind in judged]
    return tuple(kinds)


def _maker(subject: ImageSubject, keyword: str, name: str) -> Maker | None:
    """The last instruction that sets a name; None where it comes from the base, or the command line."""
    of_kind = (maker for maker in reversed(subject.makers) if maker.keyword == keyword)
    return next((maker for maker in of_kind if name in maker.created_by), None)


RULES = (
    LayerRule(
        "SecretInFile",
        "No layer should hold a private key, a token or a password.",
        secret_in_file,
        Severity.ERROR,
    ),
    LayerRule(
        "SecretInMetadata",
        "ENV, LABEL, CMD and the history should hold no secret.",
        secret_in_metadata,
        Severity.ERROR,
        aliases=("DL3064",),
    ),
)

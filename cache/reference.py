"""Image references: `[registry/]repository[:tag][@digest]`, with Docker's defaults.

https://github.com/distribution/reference defines the grammar: a first part with a dot, a colon or a capital, or
`localhost`, is a registry; without one it is docker.io, and a repository of one part there lies in `library/`.
"""

from __future__ import annotations

import re

from msgspec import Struct

from cache.errors import StoreError

DOCKER = "docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{64}")


class Reference(Struct, frozen=True):
    """A parsed image reference. registry and repository are never empty; tag, digest or both may be."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @staticmethod
    def parse(text: str) -> Reference:
        """Read a reference in any of its spellings; `latest` stands in where there is neither tag nor digest.

        Raises StoreError, with a hint, for what is not one; a bare image id of 64 digits is none either.
        """
        if not text:
            raise StoreError("an image name is empty")
        if _ID.fullmatch(text):
            raise StoreError(f"{text} is an image id, not an image name", "a name looks like app:1.0")
        name, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise StoreError(f"invalid image name {text!r}: {digest!r} is not a sha256 digest", _digest_hint(digest))
        head, colon, tag = name.rpartition(":")
        if colon and "/" not in tag:
            name = head
            if not _TAG.fullmatch(tag):
                raise StoreError(f"invalid image name {text!r}: {tag!r} is not a tag", _tag_hint(tag))
        else:
            tag = ""
        registry, repository = _split(name)
        if not _REGISTRY.fullmatch(registry):
            raise StoreError(f"invalid image name {text!r}: {registry!r} is not a host name")
        if not _REPOSITORY.fullmatch(repository):
            raise StoreError(
                f"invalid image name {text!r}: {repository.removeprefix(_OFFICIAL)!r} is not a repository name",
                _repository_hint(repository, text),
            )
        if len(registry) + 1 + len(repository) > _MAX_NAME:
            raise StoreError(f"an image name is longer than {_MAX_NAME} characters: {text[:40]}...")
        return Reference(registry, repository, tag or ("" if digest else "latest"), digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def full(self) -> str:
        """Every part written out: `docker.io/library/app:1.0`."""
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """As people write it, with the tag but without default registry: `app:1.0`."""
        return familiar_name(self.full)

    def __str__(self) -> str:
        return self.familiar


def familiar_name(full: str) -> str:
    """The familiar spelling of a full one, as `Reference.full` gives it."""
    if not full.startswith(DOCKER + "/"):
        return full
    short = full[len(DOCKER) + 1 :]
    if short.count("/") == 1:
        short = short.removeprefix(_OFFICIAL)
    # docker.io/a.b/c keeps its registry: a.b would be read as one.
    return full if "/" in short and _is_registry(short.partition("/")[0]) else short


def _is_registry(first: str) -> bool:
    """Whether the part before the first slash of a name is a registry."""
    return "." in first or ":" in first or first == "localhost" or first.lower() != first


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not _is_registry(first):
        registry, repository = DOCKER, name
    else:
        registry, repository = first, rest
    if registry == "index.docker.io":
        registry = DOCKER
    if registry == DOCKER and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _repository_hint(repository: str, text: str) -> str:
    written = repository if repository in text else repository.removeprefix(_OFFICIAL)
    if _REPOSITORY.fullmatch(written.lower()):
        return f"repository names are lower case: {text.replace(written, written.lower(), 1)}"
    if "://" in text:
        return "an image name has no scheme such as https://"
    return "repository names are made of a-z, 0-9 and the separators . _ __ - /"


def _tag_hint(tag: str) -> str:
    if not tag:
        return "leave the colon out, or write a tag after it"
    return "a tag is up to 128 letters, digits, _ . and -, and starts with none of . and -"


def _digest_hint(digest: str) -> str:
    if ":" in digest and not digest.startswith("sha256:"):
        return "only sha256 digests are supported"
    return "a digest is sha256: and 64 lower-case hex digits"

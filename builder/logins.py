"""Who one is to registries, as docker and podman keep it: files of credentials, and programs that keep them better.

    {"auths": {"registry.lan:5000": {"auth": "<base64 of user:password>"}},
     "credHelpers": {"registry.lan:5000": "pass"}, "credsStore": "secretservice"}

https://docs.docker.com/reference/cli/docker/login/ and containers-auth.json(5). A registry's helper comes before the
store for all, that before the files. A helper is the program `docker-credential-<name>`, which speaks JSON over its
standard streams: https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from cache.challenges import Credentials
from cache.reference import DOCKER

_DOCKER_KEY = "https://index.docker.io/v1/"
_DOCKER_NAMES = {DOCKER, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
_HELPER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_TOKEN = "<token>"  # noqa: S105  the user's name by which a helper says that the secret is an identity token
_NOT_FOUND = "credentials not found"
_TIMEOUT = 60


def registry_of(key: str) -> str:
    """The registry that a key of `auths`, or a word of the user, means: `https://reg.lan/v1/` is `reg.lan`."""
    host = re.sub(r"^https?://", "", key).partition("/")[0]
    return DOCKER if host in _DOCKER_NAMES else host


def key_of(registry: str) -> str:
    """How docker writes a registry in its files, and calls it to helpers."""
    return _DOCKER_KEY if registry == DOCKER else registry


class Logins:
    """The credentials in some files: read from all of them, the first that has some counts; written to the first."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files

    def find(self, registry: str) -> Credentials | None:
        """What is known for a registry; None: nothing. BuildError for a file or a helper that can not be used."""
        for path in self._files:
            document = _read(path)
            helper = _helper(document, registry)
            if helper and (found := _from_helper(helper, registry)) is not None:
                return found
            if (found := _from_file(document, registry, path)) is not None:
                return found
        return None

    def store(self, registry: str, credentials: Credentials) -> str:
        """Keep credentials; where, for a message: a file's path, or the name of a helper. BuildError."""
        path = self._files[0]
        document = _read(path)
        if helper := _helper(document, registry):
            secret = credentials.identity_token or credentials.password
            user = _TOKEN if credentials.identity_token else credentials.username
            _run(helper, "store", json.dumps({"ServerURL": key_of(registry), "Username": user, "Secret": secret}))
            return f"docker-credential-{helper}"
        auths = document.setdefault("auths", {})
        for key in [key for key in auths if registry_of(key) == registry]:
            del auths[key]
        word = f"{credentials.username}:{credentials.password}".encode()
        auths[key_of(registry)] = {"auth": base64.b64encode(word).decode()}
        _write(path, document)
        return str(path)

    def erase(self, registry: str) -> bool:
        """Forget what is kept for a registry; whether there was anything. BuildError."""
        found = False
        for path in self._files:
            document = _read(path)
            helper = _helper(document, registry)
            if helper and _from_helper(helper, registry) is not None:
                _run(helper, "erase", key_of(registry))
                found = True
            auths = document.get("auths", {})
            keys = [key for key in auths if registry_of(key) == registry]
            if keys:
                for key in keys:
                    del auths[key]
                _write(path, document)
                found = True
        return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BuildError(f"can not read the credentials in {path}: {error.strerror}") from None
    try:
        document = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}", hint="docker and podman keep credentials in it") from None
    if not isinstance(document, dict):
        raise BuildError(f"{path} is not a JSON object", hint="docker and podman keep credentials in it")
    for name in ("auths", "credHelpers"):
        if document.get(name) is None:
            document.pop(name, None)
        elif not isinstance(document[name], dict):
            raise BuildError(f"{path}: {name} is not a JSON object")
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    """At one stroke, for the owner alone; a link is followed, as people keep such files elsewhere."""
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(json.dumps(document, indent="\t", ensure_ascii=False) + "\n")
        temporary.replace(place)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise BuildError(f"can not write the credentials to {path}: {error.strerror}") from None


def _from_file(document: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    auths = document.get("auths", {})
    for key in sorted(auths, key=lambda key: key != key_of(registry)):
        entry = auths[key]
        if registry_of(key) != registry or not isinstance(entry, dict):
            continue
        user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            try:
                word = base64.b64decode(str(entry["auth"]), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                word = ""
            if ":" not in word:
                raise BuildError(f"{path}: the credentials for {key} can not be read", hint=f"pybuild login {registry}")
            user, _, password = word.partition(":")
        token = str(entry.get("identitytoken") or "")
        if user or token:
            # Docker ends passwords with zero bytes in files of its old clients.
            return Credentials(user, password.rstrip("\0"), token)
    return None


# ---------------------------------------------------------------- helpers


def _helper(document: dict[str, Any], registry: str) -> str:
    for key, name in document.get("credHelpers", {}).items():
        if registry_of(key) == registry:
            return _checked(name)
    return _checked(document.get("credsStore") or "")


def _checked(name: object) -> str:
    if name and not _HELPER.fullmatch(str(name)):
        raise BuildError(f"{name!r} can not be the name of a credential helper")
    return str(name)


def _from_helper(helper: str, registry: str) -> Credentials | None:
    text = _run(helper, "get", key_of(registry))
    if text is None:
        return None
    try:
        document = json.loads(text)
        user, secret = str(document["Username"]), str(document["Secret"])
    except (ValueError, KeyError, TypeError):
        raise BuildError(f"docker-credential-{helper} does not answer as a credential helper does") from None
    return Credentials(identity_token=secret) if user == _TOKEN else Credentials(user, secret)


def _run(helper: str, command: str, text: str) -> str | None:
    """What the helper prints; None where it has no such credentials. BuildError when it fails."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, command], input=text, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise BuildError(
            f"the credential helper {program} is not on PATH",
            hint="docker's config.json names it in credHelpers or credsStore",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the credential helper {program} does not answer: {error}") from None
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        if _NOT_FOUND in done.stdout.lower():
            return None
        raise BuildError(f"the credential helper {program} failed", notes=tuple(said[:5]))
    return done.stdout

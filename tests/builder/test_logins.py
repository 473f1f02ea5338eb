"""Credentials as docker and podman keep them: their files, their helpers, and what pybuild writes there."""

from __future__ import annotations

import base64
import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from builder.errors import BuildError
from builder.logins import Logins, key_of, registry_of
from cache.challenges import Credentials

if TYPE_CHECKING:
    from pathlib import Path

HELPER = """#!/bin/sh
# A credential helper on a file beside it, in docker's protocol.
kept="$(dirname "$0")/kept"
case "$1" in
get) read -r server; [ "$server" = "$(head -n 1 "$kept" 2>/dev/null)" ] && tail -n 1 "$kept" && exit 0
     echo "credentials not found in native keychain"; exit 1 ;;
store) { echo reg.lan; cat; echo; } > "$kept" ;;
erase) rm -f "$kept" ;;
esac
"""


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def file(folder: Path, document: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "docker-credential-box"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("reg.lan", "reg.lan"),
        ("https://reg.lan/v1/", "reg.lan"),
        ("http://reg.lan:5000", "reg.lan:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_keys(key: str, registry: str) -> None:
    assert registry_of(key) == registry
    assert registry_of(key_of(registry)) == registry


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("me:se:cret"), Credentials("me", "se:cret")),
        ({"username": "me", "password": "secret"}, Credentials("me", "secret")),
        ({**auth("me:"), "identitytoken": "tok"}, Credentials("me", "", "tok")),
        ({"identitytoken": "tok"}, Credentials("", "", "tok")),
        ({}, None),
    ],
)
def test_reading(tmp_path: Path, entry: dict[str, str], expected: Credentials | None) -> None:
    logins = Logins((file(tmp_path, {"auths": {"https://reg.lan/v2/": entry, "other.lan": auth("a:b")}}),))
    assert logins.find("reg.lan") == expected
    assert logins.find("nothing.lan") is None


def test_the_first_file_that_has_some_counts(tmp_path: Path) -> None:
    first = file(tmp_path, {"auths": {"a.lan": auth("one:1")}})
    second = file(tmp_path, {"auths": {"a.lan": auth("two:2"), "b.lan": auth("two:2")}}, "auth.json")
    logins = Logins((tmp_path / "missing.json", first, second))
    assert logins.find("a.lan") == Credentials("one", "1")
    assert logins.find("b.lan") == Credentials("two", "2")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ([], "is not a JSON object"),
        ({"auths": []}, "auths is not a JSON object"),
        ({"auths": {"reg.lan": {"auth": "&&&"}}}, "the credentials for reg.lan can not be read"),
        ({"auths": {"reg.lan": auth("nocolon")}}, "the credentials for reg.lan can not be read"),
        ({"credsStore": "../../bin/sh"}, "can not be the name of a credential helper"),
        ({"credsStore": "nosuchhelper"}, "docker-credential-nosuchhelper is not on PATH"),
    ],
)
def test_files_that_can_not_be_used(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Logins((file(tmp_path, document),)).find("reg.lan")


def test_storing_keeps_the_rest_and_is_for_the_owner_alone(tmp_path: Path) -> None:
    real = file(tmp_path, {"auths": {"other.lan": auth("a:b"), "https://reg.lan": auth("old:x")}, "psFormat": "x"})
    real.chmod(0o644)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    logins = Logins((link,))
    assert logins.store("reg.lan", Credentials("me", "secret")) == str(link)
    assert link.is_symlink()
    document = json.loads(real.read_text())
    assert document == {"auths": {"other.lan": auth("a:b"), "reg.lan": auth("me:secret")}, "psFormat": "x"}
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert logins.erase("reg.lan")
    assert not logins.erase("reg.lan")
    assert logins.find("other.lan")


def test_a_new_file_for_docker_io(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.json"
    Logins((path,)).store("docker.io", Credentials("me", "secret"))
    assert list(json.loads(path.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("where", [{"credsStore": "box"}, {"credHelpers": {"reg.lan": "box"}}])
def test_a_helper(tmp_path: Path, helper: Path, where: dict[str, object]) -> None:
    path = file(tmp_path, {**where, "auths": {"reg.lan": auth("file:1")}})
    logins = Logins((path,))
    assert logins.find("reg.lan") == Credentials("file", "1")
    assert logins.store("reg.lan", Credentials("me", "secret")) == "docker-credential-box"
    assert logins.find("reg.lan") == Credentials("me", "secret")
    assert "secret" not in path.read_text()
    logins.store("reg.lan", Credentials(identity_token="tok"))
    assert logins.find("reg.lan") == Credentials(identity_token="tok")
    assert logins.erase("reg.lan")
    assert logins.find("reg.lan") is None


def test_helpers_that_fail(tmp_path: Path, helper: Path) -> None:
    logins = Logins((file(tmp_path, {"credsStore": "box"}),))
    (helper / "docker-credential-box").write_text("#!/bin/sh\necho locked; exit 3\n")
    with pytest.raises(BuildError, match="docker-credential-box failed") as caught:
        logins.find("reg.lan")
    assert caught.value.notes == ("locked",)
    (helper / "docker-credential-box").write_text("#!/bin/sh\necho '{}'\n")
    with pytest.raises(BuildError, match="does not answer as a credential helper does"):
        logins.find("reg.lan")

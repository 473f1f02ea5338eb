"""`pybuild pull`, `push`, `login`, `logout` and builds with registries, as a user calls them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings
from tests.building import privileged
from tests.registries import PlayedRegistry, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Shell:
    """`pybuild` with a store and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.err = ""
        self.more: dict[str, str] = {}

    @property
    def logins(self) -> Path:
        return self.folder / ".docker" / "config.json"

    def __call__(self, *words: str, stdin: bytes = b"", code: int = 0, store: str = "store") -> str:
        out, err = io.StringIO(), io.StringIO()
        environ = {"PYBUILD_ROOT": str(self.folder / store), "HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        found = run(list(words), Surroundings({**environ, **self.more}, io.BytesIO(stdin), out, err))
        self.err = err.getvalue()
        assert found == code, self.err
        return out.getvalue()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def played() -> Iterator[PlayedRegistry]:
    with PlayedRegistry() as registry:
        yield registry


@pytest.fixture
def app(shell: Shell, played: PlayedRegistry) -> str:
    """The name of an image that was built and pushed."""
    if privileged() is None:
        pytest.skip("builds in this process need root that may mount")
    context = shell.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /a\nENV A=1\nCOPY Dockerfile /b\n")
    name = f"{played.name}/team/app:1"
    shell("build", "--isolation=privileged", "-t", name, "--push", str(context))
    return name


def manifest(played: PlayedRegistry, repository: str = "team/app", tag: str = "1") -> str:
    return next(
        digest
        for (name, digest), kept in played.manifests.items()
        if name == repository and digest != tag and kept == played.manifests[repository, tag]
    )


def test_pull_and_push_speak_as_docker_does(shell: Shell, played: PlayedRegistry, app: str) -> None:
    digest = manifest(played)
    said = shell("pull", app, store="other").splitlines()
    assert said == ["1: Pulling from team/app", f"Digest: {digest}", f"Status: Downloaded newer image for {app}", app]
    assert "Status: Image is up to date" in shell("image", "pull", app, store="other")
    assert shell("pull", "-q", app, store="other") == f"{app}\n"
    assert shell.err == ""
    size = len(played.manifests["team/app", "1"][1])
    said = shell("push", app, f"{played.name}/mine/copy:2", store="other").splitlines()
    assert said == [f"The push refers to repository [{played.name}/mine/copy]", f"2: digest: {digest} size: {size}"]
    assert played.manifests["mine/copy", "2"] == played.manifests["team/app", "1"]
    assert digest in shell("images", "--digests", store="other")


def test_all_tags(shell: Shell, played: PlayedRegistry, app: str) -> None:
    for tag in ("2", "3"):
        shell("tag", app, f"{played.name}/team/app:{tag}")
    shell("push", "--all-tags", f"{played.name}/team/app")
    assert {tag for _, tag in played.manifests if ":" not in tag} == {"1", "2", "3"}
    shell("pull", "-a", f"{played.name}/team/app", store="other")
    assert shell("images", "--format", "{{.Tag}}", store="other").split() == ["1", "2", "3"]
    shell("pull", "-a", app, code=2)
    assert "neither tag nor digest" in shell.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pull", "Team/App"], 1, "did you mean|repository names are lower case|is not a"),
        (["pull", "{host}/team/App:1"], 1, "repository names are lower case"),
        (["pull", "{host}/team/app:2"], 1, "hint: it has 1"),
        (["pull", "{host}/team/other:2"], 1, "has no team/other:2"),
        (["pull", "{host}/team/app@sha256:0"], 1, "is not a sha256 digest"),
        (["pull", "registry.invalid/app"], 1, "the host registry.invalid is not known"),
        (["push", "nosuch"], 1, "no such image: nosuch"),
        (["push", "--all-tags", "{host}/nosuch"], 2, "has no image called"),
        (["pull", "--platform=s390x", "{host}/team/app:1"], 1, "has no image for linux/s390x"),
        (["build", "--push", "."], 1, "the image has no name to push it by"),
        (["build", "-o", "type=registry,dest=x", "."], 1, "has no dest"),
        (["build", "-o", "type=image,push=maybe", "."], 1, "neither true nor false"),
    ],
)
def test_mistakes(
    shell: Shell,
    played: PlayedRegistry,
    app: str,
    words: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shell.folder / "context")
    words = [word.format(host=played.name) for word in words]
    shell(*words, code=code, store="other" if words[0] == "pull" else "store")
    import re

    assert re.search(message, shell.err), shell.err
    assert "Traceback" not in shell.err
    if words[0] == "pull":
        assert shell("images", "-aq", store="other") == ""


def test_a_base_comes_from_the_registry(shell: Shell, played: PlayedRegistry, app: str) -> None:
    context = shell.folder / "context"
    (context / "Dockerfile").write_text(
        f"FROM {app} AS one\nCOPY --from=other /a /c\nFROM {app}\nCOPY --from={app} /b /d\n"
    )
    words = ["--isolation=privileged", f"--build-context=other=docker-image://{app}", str(context)]
    shell("build", "--pull=never", *words, store="other", code=1)
    assert "is not in the store" in shell.err
    shell("build", *words, store="other")
    assert "pulling" in shell.err
    before = len(played.seen)
    shell("build", *words, store="other")
    assert len(played.seen) == before
    shell("build", "--pull", *words, store="other")
    # Asked for once, and nothing was fetched.
    assert [seen.method for seen in played.seen[before:] if "/manifests/" in seen.path] == ["HEAD"]
    assert not [seen for seen in played.seen[before:] if "/blobs/" in seen.path]
    digest = manifest(played)
    (context / "Dockerfile").write_text(f"FROM {played.name}/team/app@{digest}\n")
    shell("build", *words, store="third")


def test_outputs_to_registries(shell: Shell, played: PlayedRegistry, app: str) -> None:
    context = str(shell.folder / "context")
    name = f"{played.name}/out/app"
    shell("build", "-o", f"type=image,name={name}:1,push=true", context)
    assert ("out/app", "1") in played.manifests
    assert name in shell("images")
    shell("build", "-o", f"type=registry,name={name}:2,push-by-digest=true", context)
    assert ("out/app", "2") not in played.manifests
    shell("build", "-t", f"{name}:3", "-o", "type=image", context)
    assert ("out/app", "3") not in played.manifests
    shell("build", "-t", f"{name}:3", "-o", "type=image", "--push", context)
    assert ("out/app", "3") in played.manifests


def test_a_failed_push_moves_no_name(shell: Shell, played: PlayedRegistry, app: str) -> None:
    played.fail("PUT", "/manifests/", status(507))
    shell("build", "--label=x=y", "-t", f"{played.name}/team/app:9", "--push", str(shell.folder / "context"), code=1)
    assert "507 Insufficient Storage" in shell.err
    assert "9" not in shell("images", "--format", "{{.Tag}}").split()


# ---------------------------------------------------------------- login


@pytest.mark.parametrize("tokens", [False, True])
def test_login_asks_first_and_keeps_it_for_docker(shell: Shell, played: PlayedRegistry, tokens: bool) -> None:
    played.login, played.tokens = "me:sécret", tokens
    assert shell("login", "-u", "me", "--password-stdin", played.name, stdin="sécret\n".encode()) == "Login Succeeded\n"
    assert list(json.loads(shell.logins.read_text())["auths"]) == [played.name]
    played.put_manifest("team/app", "1", {"schemaVersion": 2}, "application/json")
    shell("pull", f"{played.name}/team/app:1", code=3)
    assert "login" not in shell.err
    before = shell.logins.read_text()
    shell("login", "-u", "me", "-p", "wrong", played.name, code=1)
    assert "the user name or the password is wrong" in shell.err
    assert "wrong" not in shell.logins.read_text()
    assert shell.logins.read_text() == before
    assert shell("logout", played.name) == f"Removed login credentials for {played.name}\n"
    assert shell("logout", played.name) == f"Not logged in to {played.name}\n"
    shell("pull", f"{played.name}/team/app:1", code=1)
    assert f"pybuild login {played.name}" in shell.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["login", "reg.lan"], "there is no terminal"),
        (["login", "--password-stdin", "reg.lan"], "needs --username"),
        (["login", "-u", "x", "-p", "y", "--password-stdin", "reg.lan"], "can not both be had"),
        (["login", "-u", "x", "-p", "", "reg.lan"], "are needed"),
        (["login", "-u", "x", "-p", "y", "no host"], "is not a registry's name"),
    ],
)
def test_login_mistakes(shell: Shell, words: list[str], message: str) -> None:
    shell(*words, code=2)
    assert message in shell.err
    assert not shell.logins.exists()


def test_podmans_file_and_settings(shell: Shell, played: PlayedRegistry, app: str) -> None:
    played.login = "me:secret"
    shell.more["REGISTRY_AUTH_FILE"] = str(shell.folder / "auth.json")
    shell("login", "-u", "me", "--password-stdin", played.name, stdin=b"secret")
    assert not shell.logins.exists()
    settings = shell.folder / ".config" / "pybuild" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[registries."hub.invalid"]\nmirrors = ["http://{played.name}"]\n')
    assert "Downloaded newer image for hub.invalid/team/app:1" in shell("pull", "hub.invalid/team/app:1", store="other")
    settings.write_text("registrie = 1")
    shell("pull", app, code=1)
    assert "did you mean registries?" in shell.err

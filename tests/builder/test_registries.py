"""What the user says of registries in his settings, and the clients that come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from builder.errors import BuildError
from builder.logins import Logins
from builder.registries import About, Mirror, Registries, Settings

if TYPE_CHECKING:
    from pathlib import Path


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return Settings.load(path)


def test_the_whole_file(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        """
        pull = "always"
        [registries."docker.io"]
        mirrors = ["mirror.lan:5000/hub", "http://plain.lan", "https://tls.lan/a/b/"]
        [registries."reg.lan:5000"]
        insecure = true
        ca = "lan.pem"
        """,
    )
    assert found.pull == "always"
    assert dict(found.registries) == {
        "docker.io": About(
            (Mirror("mirror.lan:5000", "hub"), Mirror("plain.lan", "", True), Mirror("tls.lan", "a/b", False))
        ),
        "reg.lan:5000": About(insecure=True, ca=str(tmp_path / "lan.pem")),
    }


def test_no_file(tmp_path: Path) -> None:
    assert Settings.load(tmp_path / "config.toml") == Settings.load(None) == Settings()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("pul = 1", "pul is no key", "did you mean pull?"),
        ('pull = "alway"', "pull is one of missing, always, never", "did you mean always?"),
        ("registries = 1", "registries is not a table", ""),
        ('[registries."docker.io"]\nmirror = []', r'registries."docker.io".mirror is no key', "did you mean mirrors?"),
        ('[registries."docker.io"]\nmirrors = "x"', "mirrors is not a list", ""),
        ('[registries."docker.io"]\nmirrors = ["x"]', "mirrors has 'x', which is no address", "mirror.lan"),
        ('[registries."docker.io"]\nmirrors = ["ftp://x.lan"]', "which is no address", ""),
        ('[registries."reg.lan"]\ninsecure = "yes"', "insecure is neither true nor false", ""),
        ('[registries."reg.lan"]\nca = 5', "ca is not a file's path", ""),
        ('[registries."https://reg.lan"]', "is no registry's name", "no scheme"),
        ("[registries.reg]", "is no registry's name", ""),
        ("x =", "is not TOML", ""),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        settings(tmp_path, text)
    assert "config.toml" in caught.value.message
    assert hint in caught.value.hint


def test_one_client_for_each(tmp_path: Path) -> None:
    found = settings(tmp_path, '[registries."docker.io"]\nmirrors = ["mirror.lan/hub"]')
    registries = Registries(Logins((tmp_path / "none",)), found)
    assert registries.get("docker.io") is registries.get("docker.io")
    assert registries.get("docker.io") is not registries.get("docker.io", insecure=True)
    assert registries.get("docker.io").mirrors[0].prefix == "hub"


def test_folders_of_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "certs.d" / "reg.lan:5000"
    folder.mkdir(parents=True)
    for name in ("a.crt", "b.crt", "me.cert", "me.key", "lonely.cert", "x.txt"):
        (folder / name).write_text("")
    registries = Registries(Logins((tmp_path / "none",)), certificates=(tmp_path / "missing", tmp_path / "certs.d"))
    assert registries.certificates("reg.lan:5000") == (
        (str(folder / "a.crt"), str(folder / "b.crt")), str(folder / "me.cert"), str(folder / "me.key"),
    )  # fmt: skip
    assert registries.certificates("other.lan") == ((), "", "")

"""What a command finds around it: environment, standard streams, and where they say that the store is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from msgspec import Struct

from builder.cli.flags import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = "PYBUILD_ROOT"
DEBUG = "PYBUILD_DEBUG"
LIMITS = "PYBUILD_LIMITS"


class Surroundings(Struct, frozen=True):
    """The process's environment and streams, as values, so that a test can hand in others."""

    environ: Mapping[str, str]
    stdin: BinaryIO
    stdout: TextIO
    stderr: TextIO

    def colour(self, stream: TextIO) -> bool:
        """Whether to colour what goes to `stream`. https://no-color.org."""
        return stream.isatty() and not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        """One line, or several, of a command's result."""
        print(text, file=self.stdout)

    def width(self) -> int:
        """The columns of the terminal, 100 where there is none."""
        try:
            return os.get_terminal_size(self.stdout.fileno()).columns
        except (OSError, ValueError):
            return 100


def store_root(flag: str, environ: Mapping[str, str]) -> Path:
    """Where the store is: --root, else PYBUILD_ROOT, else the user's data folder.

    sudo may leave HOME at the calling user's; files of root in there would lock that user out of his own store, so root
    then takes its own home. To be asked before a user namespace is entered: inside, everybody looks like root.
    """
    if flag:
        return Path(flag).absolute()
    if environ.get(ROOT):
        return Path(environ[ROOT]).absolute()
    home = environ.get("HOME", "")
    if not environ.get("XDG_DATA_HOME") and os.geteuid() == 0 and (not home or _owner(home) != 0):
        import pwd

        return Path(pwd.getpwuid(0).pw_dir, ".local", "share", "pybuild")
    import platformdirs

    try:
        return platformdirs.user_data_path("pybuild")
    except RuntimeError:
        raise UsageError(
            "there is no home folder to keep a store in", hint="give --root DIR or set PYBUILD_ROOT"
        ) from None


def config_file(environ: Mapping[str, str]) -> Path | None:
    """The user's own settings; None where there is no home folder to have them in.

    What platformdirs says, too; a build of cached steps asks for this and has no time to load it.
    """
    home = environ.get("HOME", "")
    folder = environ.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    return Path(folder, "pybuild", "config.toml") if folder else None


def login_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where docker and podman keep credentials; `login` writes to the first.

    https://docs.docker.com/reference/cli/docker/#environment-variables, containers-auth.json(5).
    """
    if environ.get("REGISTRY_AUTH_FILE"):
        return (Path(environ["REGISTRY_AUTH_FILE"]).absolute(),)
    home = Path(environ.get("HOME") or "/")
    docker = Path(environ.get("DOCKER_CONFIG") or home / ".docker").absolute() / "config.json"
    runtime = environ.get("XDG_RUNTIME_DIR")
    podman = (
        *((Path(runtime, "containers", "auth.json"),) if runtime else ()),
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "containers", "auth.json"),
    )
    return (docker, *podman)


def certificate_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where docker and podman look for the certificates of registries: containers-certs.d(5)."""
    home = Path(environ.get("HOME") or "/")
    own = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return (
        Path("/etc/docker/certs.d"),
        Path("/etc/containers/certs.d"),
        home / ".docker" / "certs.d",
        own / "containers" / "certs.d",
    )


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1

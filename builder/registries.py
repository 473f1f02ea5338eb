"""The registries of this run: one client each, with what the user has said about it and who he is to it.

What he says stands in a TOML file in the platform's config folder, all of it optional:

    pull = "missing"                                # or always, never: when a build asks registries for its bases

    [registries."docker.io"]
    mirrors = ["mirror.lan:5000/hub", "https://other.example"]

    [registries."reg.lan:5000"]
    insecure = true                                 # certificates are not checked, and plain HTTP will do
    ca = "/etc/ssl/lan.pem"                         # to trust beside the system's authorities

and, as for docker and podman, in folders of certificates: `certs.d/HOST[:PORT]/*.crt`, `*.cert` with `*.key`.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from builder.errors import BuildError
from cache.errors import StoreError
from cache.reference import Reference
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from builder.logins import Logins
    from cache.challenges import Credentials
    from cache.registry import Registry

POLICIES = ("missing", "always", "never")


class Mirror(Struct, frozen=True):
    """A registry that has another one's images below `prefix`. plain_http: as its address says, None without a word."""

    host: str
    prefix: str = ""
    plain_http: bool | None = None


class About(Struct, frozen=True):
    """What the user says about one registry."""

    mirrors: tuple[Mirror, ...] = ()
    insecure: bool = False
    ca: str = ""


class Settings(Struct, frozen=True):
    """The whole file. pull: empty where it says nothing."""

    pull: str = ""
    registries: tuple[tuple[str, About], ...] = ()

    @staticmethod
    def load(path: Path | None) -> Settings:
        """Read the file; one that is not there says nothing. BuildError, naming the key, for anything that is wrong."""
        if path is None:
            return Settings()
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # Where HOME is still another user's, his settings are not to be had, and not meant either.
            return Settings()
        except OSError as error:
            raise BuildError(f"can not read {path}: {error.strerror}") from None
        import tomllib

        try:
            document = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BuildError(f"{path} is not TOML: {error}") from None
        reader = _Reader(path)
        reader.known(document, "", ("pull", "registries"))
        policy = document.get("pull", "")
        if policy and policy not in POLICIES:
            raise reader.wrong("pull", f"is one of {', '.join(POLICIES)}", did_you_mean(str(policy), POLICIES))
        tables = reader.table(document, "registries", "")
        return Settings(str(policy), tuple((name, reader.about(tables, name)) for name in tables))


class _Reader:
    """The file's tables, with errors that name it and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrong(self, key: str, problem: str, hint: str = "") -> BuildError:
        return BuildError(f"{self._path}: {key} {problem}", hint=hint)

    def known(self, table: Mapping[str, Any], where: str, names: tuple[str, ...]) -> None:
        for name in table:
            if name not in names:
                hint = did_you_mean(name, names) or f"it knows {', '.join(names)}"
                raise self.wrong(f"{where}{name}", "is no key that is known", hint)

    def table(self, table: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
        found = table.get(name, {})
        if not isinstance(found, dict):
            raise self.wrong(where + name, "is not a table", f'write [{where}{name}."docker.io"]')
        return found

    def about(self, tables: Mapping[str, Any], name: str) -> About:
        where = f'registries."{name}".'
        try:
            if Reference.parse(f"{name}/x").registry != name:
                raise self.wrong(where[:-1], "is no registry's name", 'such as [registries."reg.lan:5000"]')
        except StoreError:
            raise self.wrong(where[:-1], "is no registry's name", "it has no scheme, and no path") from None
        table = self.table(tables, name, "registries.")
        self.known(table, where, ("mirrors", "insecure", "ca"))
        insecure, ca, mirrors = table.get("insecure", False), table.get("ca", ""), table.get("mirrors", [])
        if not isinstance(insecure, bool):
            raise self.wrong(where + "insecure", "is neither true nor false")
        if not isinstance(ca, str):
            raise self.wrong(where + "ca", "is not a file's path")
        if not isinstance(mirrors, list) or not all(isinstance(each, str) for each in mirrors):
            raise self.wrong(where + "mirrors", "is not a list of addresses", 'mirrors = ["mirror.lan:5000"]')
        # A path in a file is the file's, not that of wherever one stands.
        place = str(self._path.parent / Path(ca).expanduser()) if ca else ""
        return About(tuple(self._mirror(each, where) for each in mirrors), insecure, place)

    def _mirror(self, text: str, where: str) -> Mirror:
        scheme, sign, rest = text.rpartition("://")
        host, _, prefix = rest.strip("/").partition("/")
        try:
            # A mirror needs a host that can be told from a repository, as in references.
            if Reference.parse(f"{host}/{prefix or 'x'}").registry != host or (
                sign and scheme not in {"http", "https"}
            ):
                raise StoreError("")
        except StoreError:
            raise self.wrong(
                f"{where}mirrors", f"has {text!r}, which is no address", "mirror.lan:5000/prefix"
            ) from None
        return Mirror(host, prefix, scheme == "http" if sign else None)


class Registries:
    """The clients, each made when it is first asked for. Safe for threads.

    insecure: of every registry, whatever the settings say (`--insecure`). certificates: folders that hold a folder for
    each host, the later ones on top. sleep: see `cache.registry.Registry`.
    """

    def __init__(
        self,
        logins: Logins,
        settings: Settings = Settings(),  # noqa: B008  frozen
        *,
        insecure: bool = False,
        certificates: tuple[Path, ...] = (),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.settings = settings
        self._logins = logins
        self._about = dict(settings.registries)
        self._insecure = insecure
        self._folders = certificates
        self._sleep = sleep
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, bool], Registry] = {}

    def get(self, name: str, *, insecure: bool = False) -> Registry:
        """The client of the registry that references call `name`. insecure: for this client, whatever else is said."""
        with self._lock:
            found = self._clients.get((name, insecure))
            if found is None:
                found = self._clients[name, insecure] = self._made(name, insecure=insecure)
            return found

    def check(self, name: str, credentials: Credentials) -> None:
        """Ask a registry whether it takes these credentials, whatever is kept. RegistryError when it does not."""
        self._client(name, self._about.get(name, About()), (), None, lambda _: credentials).check()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _made(self, name: str, *, insecure: bool) -> Registry:
        from cache import registry

        about = self._about.get(name, About())
        about = replace(about, insecure=about.insecure or insecure)
        mirrors = []
        for mirror in about.mirrors:
            client = self._client(mirror.host, self._about.get(mirror.host, About()), (), mirror.plain_http)
            mirrors.append(registry.Mirror(client, mirror.prefix))
        return self._client(name, about, tuple(mirrors), None)

    def _client(
        self,
        name: str,
        about: About,
        mirrors: tuple[Any, ...],
        plain_http: bool | None,
        credentials: Callable[[str], Credentials | None] | None = None,
    ) -> Registry:
        from cache.registry import Registry

        authorities, cert, key = self.certificates(name)
        return Registry(
            name,
            credentials=credentials or self._logins.find,
            plain_http=plain_http,
            insecure=self._insecure or about.insecure,
            ca_file=(*((about.ca,) if about.ca else ()), *authorities),
            client_cert=cert,
            client_key=key,
            mirrors=mirrors,
            sleep=self._sleep,
        )

    def certificates(self, name: str) -> tuple[tuple[str, ...], str, str]:
        """The authorities, the client's certificate and its key in the folders for a host."""
        authorities: list[str] = []
        cert = key = ""
        for folder in self._folders:
            try:
                names = sorted(path.name for path in (folder / name).iterdir())
            except OSError:
                continue
            authorities += [str(folder / name / each) for each in names if each.endswith(".crt")]
            for each in names:
                if each.endswith(".cert") and each[:-5] + ".key" in names:
                    cert, key = str(folder / name / each), str(folder / name / (each[:-5] + ".key"))
        return tuple(authorities), cert, key

"""Files from elsewhere: http(s) downloads, and git repositories through the git program.

What was fetched is kept:

    <root>/http/<sha256 of the URL>.json     ETag, Last-Modified, and which body they belong to
    <root>/http/<sha256 of the body>         bodies
    <root>/git/<hash>/                       a checkout: of one commit, with or without submodules and .git

A kept body is asked about with If-None-Match or If-Modified-Since; a checkout is a commit's, so it never ages. All of
it can be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from builder.context import Directory
from builder.errors import BuildError, UnsupportedError
from cache.entries import Entry, FileContent, Files, Kind

if TYPE_CHECKING:
    from builder.model import GitSource

Secret = Callable[[str], bytes | None]
"""The value of a secret by its id; None when it was not given."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SCP = re.compile(r"(?P<remote>[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_CHUNK = 1 << 20
_TIMEOUT = 60.0
_MOST_REDIRECTS = 10


class Download(Struct, frozen=True):
    """A body that was fetched. modified: the server's Last-Modified in seconds, 0 without. name: as the URL has it."""

    path: Path
    sha256: str
    size: int
    modified: int
    name: str

    def entry(self, path: bytes) -> Entry:
        """It as a file: 0600 and root's, as ADD has it."""
        content = FileContent(os.fsencode(self.path))
        return Entry(
            path,
            Kind.FILE,
            0o600,
            size=self.size,
            mtime_ns=self.modified * 10**9,
            content=content,
            digest=self.sha256,
        )


class GitRef(Struct, frozen=True):
    """A repository and what of it: https://docs.docker.com/build/concepts/context/#git-repositories.

    remote: what git is given. ref: a branch, a tag, a full ref or a commit; empty for the default branch. checksum: the
    beginning of the commit that it has to be.
    """

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True
    commit_times: bool = False

    @staticmethod
    def parse(text: str, *, context: bool = False) -> GitRef | None:
        """Read a repository's URL with its fragment `#ref:subdir` and its query; None when it is no repository's.

        context: for the build context, `github.com/owner/name` and `file:///repository` are as well. BuildError for a
        query that is wrong.
        """
        if context and text.startswith("github.com/"):
            text = "https://" + text
            if not re.search(r"\.git(?:[?#]|$)", text):
                head, mark, tail = re.fullmatch(r"([^?#]*)([?#]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
                text = f"{head}.git{mark}{tail}"
        found = re.fullmatch(r"(?P<remote>[A-Za-z0-9]+://[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?", text)
        if found is not None:
            scheme = text.partition("://")[0].lower()
            if scheme not in {"git", "ssh", "http", "https"} and not (context and scheme == "file"):
                return None
            if scheme in {"http", "https"} and not found["remote"].endswith(".git"):
                return None
        else:
            found = _SCP.fullmatch(text)
            if found is None:
                return None
        ref, _, subdir = (found["fragment"] or "").partition(":")
        return _with_query(GitRef(found["remote"], ref, _clean(subdir)), found["query"] or "", text)


def _clean(subdir: str) -> str:
    from builder.context import parts_of

    return os.fsdecode(b"/".join(parts_of(os.fsencode(subdir))))


def _with_query(ref: GitRef, query: str, url: str) -> GitRef:
    from urllib.parse import parse_qsl

    def agree(what: str, one: str, other: str) -> str:
        if one and one != other:
            raise BuildError(f"{url}: {what} conflicts: {one!r} and {other!r}")
        return other

    named = ""
    for name, value in parse_qsl(query, keep_blank_values=True):
        match name:
            case "ref":
                ref = replace(ref, ref=agree("ref", ref.ref, value))
            case "tag":
                named = agree("ref", named, _full(value, "refs/tags/"))
            case "branch":
                named = agree("ref", named, _full(value, "refs/heads/"))
            case "subdir":
                ref = replace(ref, subdir=agree("subdir", ref.subdir, _clean(value)))
            case "checksum" | "commit":
                ref = replace(ref, checksum=value)
            case "keep-git-dir":
                ref = replace(ref, keep_git_dir=not value or value in _TRUE)
            case "submodules":
                ref = replace(ref, submodules=not value or value in _TRUE)
            case "mtime":
                ref = replace(ref, commit_times=value == "commit")
            case "fetch-by-commit":
                pass  # how a commit is fetched, not what it is: a known commit is always asked for first
            case _:
                raise BuildError(f"{url}: unexpected query {name!r}")
    return replace(ref, ref=agree("ref", ref.ref, named)) if named else ref


def _full(name: str, prefix: str) -> str:
    return name if name.startswith(prefix) else prefix + name


class Fetcher:
    """Fetches for one build and keeps what it fetched below `root`. What was asked for twice is fetched once.

    secret: where credentials come from: HTTP_AUTH_TOKEN_<host>, HTTP_AUTH_HEADER_<host>, GIT_AUTH_TOKEN[.<host>],
    GIT_AUTH_HEADER[.<host>], as BuildKit names them. git: the program. Used from several threads.
    """

    def __init__(self, root: Path, secret: Secret | None = None, git: str = "git") -> None:
        self._root = root
        self._secret = secret or (lambda _: None)
        self._git = git
        self._lock = threading.Lock()
        self._downloads: dict[str, Download] = {}
        self._commits: dict[GitRef, str] = {}
        self._checkouts: dict[tuple[GitRef, str], Files] = {}

    # ------------------------------------------------------------ http

    def download(self, url: str, checksum: str = "") -> Download:
        """The body behind a URL. checksum: `sha256:...` that it must have; a kept body that has it needs no server.

        Raises BuildError when there is no such body, or another one.
        """
        with self._lock:
            wanted = checksum.removeprefix("sha256:")
            folder = self._root / "http"
            if wanted and (folder / wanted).is_file():
                return self._kept(url, wanted, 0)
            found = self._downloads.get(url)
            if found is None:
                found = self._downloads[url] = self._get(url, folder)
            if wanted and found.sha256 != wanted:
                raise BuildError(f"digest mismatch for {url}: sha256:{found.sha256} (expected: {checksum})")
            return found

    def _kept(self, url: str, sha256: str, modified: int) -> Download:
        path = self._root / "http" / sha256
        if not modified:
            modified = _seconds(_read_json(self._note(url)).get("modified", ""))
        return Download(path, sha256, path.stat().st_size, modified, _name_of(url))

    def _note(self, url: str) -> Path:
        return self._root / "http" / (hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest() + ".json")

    def _get(self, url: str, folder: Path) -> Download:
        from urllib.parse import urlsplit
        from urllib.request import getproxies, proxy_bypass

        import urllib3

        host = urlsplit(url).hostname or ""
        headers = {"User-Agent": "pybuild", "Accept": "*/*", "Accept-Encoding": "gzip"}
        token, header = self._secret(f"HTTP_AUTH_TOKEN_{host}"), self._secret(f"HTTP_AUTH_HEADER_{host}")
        if token is not None:
            headers["Authorization"] = "Bearer " + token.decode().strip()
        elif header is not None:
            headers["Authorization"] = header.decode().strip()
        note = _read_json(self._note(url))
        body = str(note.get("body", ""))
        if body and (folder / body).is_file():
            if note.get("etag"):
                headers["If-None-Match"] = note["etag"]
            elif note.get("modified"):
                headers["If-Modified-Since"] = note["modified"]
        proxy = "" if proxy_bypass(host) else getproxies().get(urlsplit(url).scheme, "")
        pool = urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager()
        retries = urllib3.Retry(total=None, connect=2, read=2, redirect=_MOST_REDIRECTS, status=0, backoff_factor=0.2)
        try:
            response = pool.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                decode_content=True,
                timeout=_TIMEOUT,
                retries=retries,
            )
            with contextlib.closing(response):
                if response.status == 304 and body:
                    return self._kept(url, body, _seconds(note.get("modified", "")))
                if not 200 <= response.status < 300:
                    raise BuildError(
                        f"can not get {url}: invalid response status {response.status}", hint=_hint(response)
                    )
                etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
                sha256 = self._save(response.stream(_CHUNK, decode_content=True), folder)
        except urllib3.exceptions.HTTPError as error:
            raise BuildError(f"can not get {url}: {_reason(error)}") from None
        finally:
            pool.clear()
        # The address itself is not kept: it may hold a password.
        _write_json(self._note(url), {"body": sha256, "etag": etag, "modified": modified})
        return self._kept(url, sha256, _seconds(modified))

    def _save(self, chunks: Iterator[bytes], folder: Path) -> str:
        """Keep a body under its digest; nothing is left of one that breaks off."""
        import tempfile

        folder.mkdir(parents=True, exist_ok=True)
        hasher = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=folder, prefix="tmp-")
        try:
            with os.fdopen(descriptor, "wb") as out:
                for chunk in chunks:
                    hasher.update(chunk)
                    out.write(chunk)
            os.replace(name, folder / hasher.hexdigest())
        except BaseException:
            os.unlink(name)
            raise
        return hasher.hexdigest()

    # ------------------------------------------------------------ git

    @staticmethod
    def git_ref(url: str, *, context: bool = False) -> GitRef | None:
        """See `GitRef.parse`."""
        return GitRef.parse(url, context=context)

    @staticmethod
    def ref_of(source: GitSource) -> GitRef:
        """The reference that an ADD of a repository names. BuildError for a query that is wrong."""
        return _ref_of(source)

    def commit_of(self, source: GitSource) -> str:
        """What an ADD of a repository takes, as its key has it: the commit, the folder in it, what else is kept."""
        ref = _ref_of(source)
        words = [self.resolve(ref)]
        words += [f"subdir={ref.subdir}"] if ref.subdir else []
        words += ["keep-git-dir"] if ref.keep_git_dir else []
        words += [] if ref.submodules else ["without submodules"]
        return " ".join(words)

    def repository(self, source: GitSource) -> Files:
        """The files that an ADD of a repository takes."""
        return self.checkout(_ref_of(source))

    def resolve(self, ref: GitRef) -> str:
        """The commit that a reference means now. BuildError when there is none or it is not the one it has to be."""
        with self._lock:
            if ref not in self._commits:
                self._commits[ref] = self._resolve(ref)
            return self._commits[ref]

    def _resolve(self, ref: GitRef) -> str:
        if _COMMIT.fullmatch(ref.ref):
            return _checked(ref, [ref.ref])
        if not ref.ref and _COMMIT.fullmatch(ref.checksum):
            return ref.checksum
        name = ref.ref or "HEAD"
        lines = self._run(ref, ["ls-remote", "--", ref.remote, name, name + "^{}"]).splitlines()
        refs = {line.partition("\t")[2]: line.partition("\t")[0] for line in lines}
        for candidate in (
            name if name == "HEAD" else "refs/" + name.removeprefix("refs/"),
            "refs/heads/" + name.removeprefix("refs/heads/"),
            "refs/tags/" + name.removeprefix("refs/tags/"),
        ):
            if candidate in refs:
                commit = refs.get(candidate + "^{}", refs[candidate])
                return _checked(ref, [commit, refs[candidate]])
        raise BuildError(f"the repository {_shown(ref.remote)} has no branch or tag {name}")

    def checkout(self, ref: GitRef) -> Files:
        """The files of a reference, without `.git` unless it is kept. BuildError when they can not be had."""
        commit = self.resolve(ref)
        with self._lock:
            found = self._checkouts.get((ref, commit))
            if found is None:
                place = self._checked_out(ref, commit) / ref.subdir
                if not place.is_dir() or place.is_symlink():
                    raise BuildError(f"the repository {_shown(ref.remote)} has no folder {ref.subdir}")
                found = self._checkouts[(ref, commit)] = Directory(place)
            return found

    def _checked_out(self, ref: GitRef, commit: str) -> Path:
        facts = [ref.remote, commit, str(ref.keep_git_dir), str(ref.submodules), str(ref.commit_times)]
        # With .git, what is at the root depends on what else was asked for, too.
        facts += [ref.ref, str(bool(ref.subdir))] if ref.keep_git_dir else []
        folder = self._root / "git"
        kept = folder / hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]
        if kept.is_dir():
            return kept
        import shutil
        import tempfile

        folder.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=folder, prefix="tmp-"))
        try:
            self._fetch(ref, commit, working)
            working.chmod(0o755)
            with contextlib.suppress(OSError):
                # Another build may have been quicker; its checkout is as good.
                os.rename(working, kept)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return kept

    def committed(self, ref: GitRef) -> int:
        """When the commit of a reference was made, in seconds since the epoch."""
        import tempfile

        commit = self.resolve(ref)
        folder = self._root / "git"
        kept = folder / f"{commit}.time"
        with contextlib.suppress(OSError, ValueError):
            return int(kept.read_text())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="tmp-") as working:
            self._bring(ref, commit, Path(working))
            seconds = int(self._run(ref, ["show", "-s", "--format=%ct", commit], Path(working)).split()[-1])
        temporary = folder / f"tmp-{os.getpid()}-{commit}"
        temporary.write_text(str(seconds))
        os.replace(temporary, kept)
        return seconds

    def _bring(self, ref: GitRef, commit: str, working: Path) -> None:
        """Make a repository in an empty folder that has the commit."""

        def git(*arguments: str) -> str:
            return self._run(ref, arguments, working)

        git("-c", "init.defaultBranch=master", "init", "-q")
        git("remote", "add", "origin", ref.remote)
        wanted = [ref.ref] if ref.ref and not _COMMIT.fullmatch(ref.ref) else []
        for attempt in (
            ["--depth=1", "--no-tags", "origin", commit],
            ["--depth=1", "origin", *wanted],
            ["--tags", "origin"],
        ):
            with contextlib.suppress(_GitError):
                self._shallow(git, attempt)
                if git("cat-file", "-t", commit + "^{commit}").strip() == "commit":
                    break
        else:
            self._shallow(git, ["--tags", "origin"])

    def _fetch(self, ref: GitRef, commit: str, working: Path) -> None:
        import shutil

        def git(*arguments: str) -> str:
            return self._run(ref, arguments, working)

        self._bring(ref, commit, working)
        git("checkout", "-q", "--detach", commit)
        if ref.submodules and (working / ".gitmodules").exists():
            self._shallow(git, [], "submodule", "update", "--init", "--recursive")
        if ref.commit_times:
            seconds = int(git("show", "-s", "--format=%ct", "HEAD").split()[-1])
            for path in working.rglob("*"):
                os.utime(path, (seconds, seconds), follow_symlinks=False)
        if ref.keep_git_dir and not ref.subdir:
            git("reflog", "expire", "--all", "--expire=now")
            (working / ".git" / "FETCH_HEAD").unlink(missing_ok=True)
        else:
            shutil.rmtree(working / ".git")
            for link in working.rglob(".git"):
                link.unlink()

    @staticmethod
    def _shallow(git: Callable[..., str], arguments: list[str], *command: str) -> None:
        """Fetch, and once more with the whole history if the server knows no other way (plain files over http)."""
        words = command or ("fetch", "-q")
        try:
            git(*words, *(["--depth=1"] if command else []), *arguments)
        except _GitError as error:
            if not re.search("depth|shallow", error.output):
                raise
            git(*words, *(word for word in arguments if word != "--depth=1"))

    def _run(self, ref: GitRef, arguments: Sequence[str], folder: Path | None = None) -> str:
        """Run git without the user's and the system's settings, which must not decide what is built."""
        import subprocess

        with self._credentials(ref) as settings:
            # `env`, since only the command line reads this process's environment.
            command = [
                "env",
                "GIT_TERMINAL_PROMPT=0",
                "GIT_CONFIG_NOSYSTEM=1",
                "GIT_CONFIG_GLOBAL=/dev/null",
                "LC_ALL=C",
                self._git,
                "-c",
                "protocol.file.allow=user",
                *settings,
                *arguments,
            ]
            try:
                done = subprocess.run(
                    command, cwd=folder, check=False, stdin=subprocess.DEVNULL, capture_output=True, umask=0o022
                )
            except FileNotFoundError:
                raise _no_git(ref) from None
        output = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode == 127:
            raise _no_git(ref)
        if done.returncode:
            raise _GitError(ref, output)
        return done.stdout.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _credentials(self, ref: GitRef) -> Iterator[list[str]]:
        """Settings that carry a token or header: in a file, for a command line can be read by every user."""
        import base64
        from urllib.parse import urlsplit

        parts = urlsplit(ref.remote)
        host = parts.hostname or ""
        header = self._secret(f"GIT_AUTH_HEADER.{host}") or self._secret("GIT_AUTH_HEADER")
        token = self._secret(f"GIT_AUTH_TOKEN.{host}") or self._secret("GIT_AUTH_TOKEN")
        if parts.scheme not in {"http", "https"} or not (header or token):
            yield []
            return
        if header is None:
            header = b"basic " + base64.b64encode(b"x-access-token:" + (token or b"").strip())
        import tempfile

        with tempfile.NamedTemporaryFile("w", prefix="pybuild-git-") as file:
            value = f"Authorization: {header.decode().strip()}".replace("\\", "\\\\").replace('"', '\\"')
            file.write(f'[http "{parts.scheme}://{parts.netloc}/"]\n\textraheader = "{value}"\n')
            file.flush()
            yield ["-c", f"include.path={file.name}"]


class _GitError(BuildError):
    def __init__(self, ref: GitRef, output: str) -> None:
        lines = tuple(_shown(line) for line in output.splitlines())
        super().__init__(f"git could not fetch {_shown(ref.remote)}", notes=lines[-10:])
        self.output = output


def _no_git(ref: GitRef) -> BuildError:
    return UnsupportedError(f"{_shown(ref.remote)} needs the git program, which is not there", hint="install git")


def _ref_of(source: GitSource) -> GitRef:
    ref = GitRef.parse(source.url)
    if ref is None:
        raise BuildError(f"{source.url} is no git repository", span=source.span)
    return replace(ref, checksum=source.checksum or ref.checksum, keep_git_dir=source.keep_git_dir)


def _checked(ref: GitRef, commits: Sequence[str]) -> str:
    """The first of the commits, when one of them begins as it has to."""
    if ref.checksum and not any(commit.startswith(ref.checksum) for commit in commits):
        got = " or ".join(dict.fromkeys(commits))
        raise BuildError(f"expected checksum to match {ref.checksum}, got {got}: {_shown(ref.remote)}")
    return commits[0]


def _shown(text: str) -> str:
    """A URL, or text with one, without the password in it."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def _name_of(url: str) -> str:
    """The name of the file that a URL's path ends in, decoded; `__unnamed__` when it has none."""
    from urllib.parse import unquote, urlsplit

    name = unquote(urlsplit(url).path, errors="surrogateescape").rstrip("/").rpartition("/")[2].strip()
    if not name:
        return "__unnamed__"
    return "download" if name in {".", ".."} or any(ord(char) < 0x20 or ord(char) == 0x7F for char in name) else name


def _seconds(date: object) -> int:
    """An HTTP date in seconds since the epoch; 0 for none or a broken one."""
    from email.utils import parsedate_to_datetime

    try:
        return int(parsedate_to_datetime(str(date)).timestamp()) if date else 0
    except ValueError:
        return 0


def _reason(error: BaseException) -> str:
    """What went wrong, without the names of the library's classes."""
    inner = getattr(error, "reason", None) or error
    text = str(inner.args[-1] if isinstance(inner, BaseException) and inner.args else inner)
    return re.sub(r"^<[^>]*>:? *|^.*?: (?=Failed to|\[)", "", text)


def _hint(response: Any) -> str:
    return (
        "the server asks for credentials: --secret id=HTTP_AUTH_TOKEN_<host>" if response.status in {401, 403} else ""
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    temporary.write_text(json.dumps(document))
    os.replace(temporary, path)

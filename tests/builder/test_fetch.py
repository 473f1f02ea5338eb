"""Downloads and repositories, from servers on this machine's loopback."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from builder.context import Directory, Unpacked, open_contexts, walk
from builder.errors import BuildError
from builder.fetch import Fetcher, GitRef
from builder.handlers.files import inputs, perform
from builder.model import CONTEXT, FileStep, GitSource, UrlSource
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPAN = Span(1, 1, 1, 1)
MODIFIED = "Fri, 13 Feb 2009 23:31:30 GMT"


@dataclass(slots=True)
class Page:
    """One answer of the server."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Server:
    """What the server has, and what it was asked: (method, path, headers)."""

    url: str
    pages: dict[str, Page]
    asked: list[tuple[str, dict[str, str]]]
    folder: Path | None = None


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server("", {}, [])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            state.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            page = state.pages.get(path)
            if page is None and state.folder is not None:
                self.directory = str(state.folder)
                super().do_GET()
                return
            page = page or Page(status=404)
            etag = page.headers.get("ETag")
            unchanged = etag is not None and self.headers.get("If-None-Match") == etag
            unchanged |= "If-Modified-Since" in self.headers
            body = b"" if unchanged else page.body
            self.send_response(304 if unchanged else page.status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in page.headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "kept")


def again(fetcher: Fetcher) -> Fetcher:
    """The next build's fetcher, with the same kept files."""
    return Fetcher(fetcher._root)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- http


def test_a_download(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"remote\n", headers={"Last-Modified": MODIFIED})
    found = fetcher.download(server.url + "/f")
    assert found.path.read_bytes() == b"remote\n"
    assert (found.sha256, found.size, found.modified, found.name) == (sha256(b"remote\n"), 7, 1234567890, "f")
    entry = found.entry(b"x")
    assert (entry.mode, entry.uid, entry.mtime_ns) == (0o600, 0, 1234567890 * 10**9)
    assert fetcher.download(server.url + "/f") == found
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a%20b.txt", "a b.txt"),
        ("/f.bin?version=2", "f.bin"),
        ("/dir/", "dir"),
        ("/", "__unnamed__"),
        ("/..", "download"),
        ("/a%2Fb", "b"),
        ("/a%0Ab", "download"),
    ],
)
def test_names_of_downloads(server: Server, fetcher: Fetcher, path: str, name: str) -> None:
    server.pages[path.partition("?")[0]] = Page(b"x")
    server.pages["/"] = Page(b"x")
    assert fetcher.download(server.url + path).name == name


def test_a_body_is_asked_about_and_not_fetched_again(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"one", headers={"ETag": '"1"', "Last-Modified": MODIFIED})
    first = fetcher.download(server.url + "/f")
    assert again(fetcher).download(server.url + "/f") == first
    assert server.asked[1][1]["if-none-match"] == '"1"'
    server.pages["/f"] = Page(b"two", headers={"ETag": '"2"'})
    assert again(fetcher).download(server.url + "/f").sha256 == sha256(b"two")


def test_a_body_without_etag_is_asked_about_by_time(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"one", headers={"Last-Modified": MODIFIED})
    first = fetcher.download(server.url + "/f")
    assert again(fetcher).download(server.url + "/f") == first
    assert server.asked[1][1]["if-modified-since"] == MODIFIED


def test_a_checksum(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"body")
    url = server.url + "/f"
    with pytest.raises(BuildError, match="digest mismatch"):
        fetcher.download(url, "sha256:" + "0" * 64)
    good = "sha256:" + sha256(b"body")
    assert fetcher.download(url, good).path.read_bytes() == b"body"
    asked = len(server.asked)
    assert again(fetcher).download(url, good).size == 4
    assert len(server.asked) == asked


def test_redirects(server: Server, fetcher: Fetcher) -> None:
    server.pages["/first.txt"] = Page(status=302, headers={"Location": server.url + "/second.txt"})
    server.pages["/second.txt"] = Page(b"second")
    found = fetcher.download(server.url + "/first.txt")
    assert (found.name, found.path.read_bytes()) == ("first.txt", b"second")
    server.pages["/ring"] = Page(status=302, headers={"Location": server.url + "/ring"})
    with pytest.raises(BuildError, match=r"can not get .*/ring"):
        fetcher.download(server.url + "/ring")


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_status(server: Server, fetcher: Fetcher, status: int) -> None:
    server.pages["/f"] = Page(b"sorry", status)
    with pytest.raises(BuildError, match=f"invalid response status {status}") as caught:
        fetcher.download(server.url + "/f")
    assert bool(caught.value.hint) is (status == 403)


def test_nobody_listens(fetcher: Fetcher) -> None:
    with pytest.raises(BuildError, match=r"can not get http://127.0.0.1:1/f: .*refused"):
        fetcher.download("http://127.0.0.1:1/f")


def test_a_body_that_breaks_off_leaves_nothing(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"beginning", headers={"Content-Length": "100"})
    with pytest.raises(BuildError, match=r"can not get .*/f"):
        fetcher.download(server.url + "/f")
    server.pages["/f"] = Page(b"good")
    assert fetcher.download(server.url + "/f").sha256 == sha256(b"good")
    assert not [path for path in fetcher._root.rglob("tmp-*") if path.stat().st_size]


def test_credentials(server: Server, tmp_path: Path) -> None:
    server.pages["/f"] = Page(b"x")
    secrets = {"HTTP_AUTH_TOKEN_127.0.0.1": b"s3cret\n"}
    Fetcher(tmp_path, secrets.get).download(server.url + "/f")
    assert server.asked[0][1]["authorization"] == "Bearer s3cret"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def added(source: UrlSource | GitSource, to: str, fetcher: Fetcher, **flags: object) -> list[str]:
    what = FileStep(CONTEXT, (source,), to.rstrip("/") or "/", into=to.endswith("/"), **flags)  # type: ignore[arg-type]
    assert inputs(what, None, fetcher)
    return [f"{entry.path.decode()} {entry.mode:o}" for entry in perform(what, None, Unpacked(), fetcher)]


def test_add_a_url(server: Server, fetcher: Fetcher) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("inside"))
    server.pages["/t.tar"] = Page(data.getvalue())
    source = UrlSource(server.url + "/t.tar", "", SPAN)
    assert added(source, "/new/name", fetcher) == ["new 755", "new/name 600"]
    assert added(source, "/d/", fetcher) == ["d 755", "d/t.tar 600"]
    assert added(source, "/d/", fetcher, chmod="413") == ["d 413", "d/t.tar 413"]
    assert added(source, "/d/", fetcher, unpack=True) == ["d 755", "d/inside 644"]


def test_the_key_of_a_url_is_its_content(server: Server, fetcher: Fetcher) -> None:
    server.pages["/f"] = Page(b"one")
    url = server.url + "/f"
    what = FileStep(CONTEXT, (UrlSource(url, "", SPAN),), "/f")
    assert inputs(what, None, fetcher) == [(f"url {url}", "sha256:" + sha256(b"one"))]
    pinned = FileStep(CONTEXT, (UrlSource(url + "?no-server", "sha256:" + "1" * 64, SPAN),), "/f")
    assert inputs(pinned, None, fetcher) == [(f"url {url}?no-server", "sha256:" + "1" * 64)]


# ---------------------------------------------------------------- git


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/r.git", GitRef("https://h/r.git")),
        ("https://h/r.git#v1", GitRef("https://h/r.git", "v1")),
        ("https://h/r.git#v1:sub/dir", GitRef("https://h/r.git", "v1", "sub/dir")),
        ("https://h/r.git#:/sub/../x", GitRef("https://h/r.git", "", "x")),
        ("git@h:o/r.git#main", GitRef("git@h:o/r.git", "main")),
        ("ssh://h/r", GitRef("ssh://h/r")),
        ("git://h/r", GitRef("git://h/r")),
        ("https://h/r.git?tag=v1&subdir=s", GitRef("https://h/r.git", "refs/tags/v1", "s")),
        ("https://h/r.git?branch=b&checksum=abc", GitRef("https://h/r.git", "refs/heads/b", checksum="abc")),
        ("https://h/r.git?ref=x&keep-git-dir", GitRef("https://h/r.git", "x", keep_git_dir=True)),
        (
            "https://h/r.git?submodules=false&mtime=commit",
            GitRef("https://h/r.git", submodules=False, commit_times=True),
        ),
        ("https://h/r.tar", None),
        ("r.git", None),
        ("./r.git", None),
        ("github.com/o/r", None),
    ],
)
def test_repositories_by_their_names(text: str, expected: GitRef | None) -> None:
    assert GitRef.parse(text) == expected


def test_github_as_context() -> None:
    assert GitRef.parse("github.com/o/r#main", context=True) == GitRef("https://github.com/o/r.git", "main")


@pytest.mark.parametrize("query", ["tag=a&branch=b", "ref=a&ref=b", "colour=red"])
def test_queries_that_are_wrong(query: str) -> None:
    with pytest.raises(BuildError, match=r"conflicts|unexpected"):
        GitRef.parse(f"https://h/r.git?{query}")


@pytest.fixture
def repository(tmp_path: Path, server: Server) -> str:
    """A repository behind the server, as plain files; its commits are in the file `commits`."""
    work = tmp_path / "work"
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "GIT_AUTHOR_DATE": "1234567890 +0000",
        "GIT_COMMITTER_DATE": "1234567890 +0000",
    }
    script = """
        git init -q -b main . && mkdir sub && echo one > file && echo s > sub/s && ln -s file link
        echo '#!/bin/sh' > run.sh && chmod 755 run.sh && printf 'FROM scratch\\n' > Dockerfile
        git add -A && git commit -q -m one && git tag v1 && git tag -a -m note v1a && git rev-parse HEAD
        echo two > file && git commit -q -a -m two && git rev-parse HEAD && git update-server-info
    """
    work.mkdir()
    try:
        done = subprocess.run(["sh", "-ec", script], cwd=work, env=env, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not there")
    (tmp_path / "www").mkdir()
    (work / ".git").rename(tmp_path / "www" / "repo.git")
    (tmp_path / "commits").write_text(done.stdout)
    server.folder = tmp_path / "www"
    return server.url + "/repo.git"


def content(files: object, path: str) -> str:
    assert isinstance(files, Directory)
    entry = files.entry(path.encode())
    assert entry is not None
    assert entry.content is not None
    with entry.content.open() as stream:
        return stream.read().decode()


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("", "two"),
        ("#v1", "one"),
        ("#v1a", "one"),
        ("#main", "two"),
        ("?tag=v1", "one"),
        ("?ref=refs/heads/main", "two"),
    ],
)
def test_a_checkout(repository: str, fetcher: Fetcher, suffix: str, expected: str) -> None:
    ref = GitRef.parse(repository + suffix)
    assert ref is not None
    files = fetcher.checkout(ref)
    assert content(files, "file") == expected + "\n"
    assert isinstance(files, Directory)
    modes = [f"{entry.path.decode()} {entry.mode:o}" for entry in walk(files)]
    assert modes == ["Dockerfile 644", "file 644", "link 777", "run.sh 755", "sub 755", "sub/s 644"]


def test_a_commit_and_its_checksum(repository: str, fetcher: Fetcher, tmp_path: Path) -> None:
    one, two = (tmp_path / "commits").read_text().split()
    ref = GitRef.parse(f"{repository}#{one}")
    assert ref is not None
    assert content(fetcher.checkout(ref), "file") == "one\n"
    assert fetcher.resolve(GitRef(repository, "main", checksum=two[:8])) == two
    with pytest.raises(BuildError, match=f"expected checksum to match {one[:8]}, got {two}"):
        fetcher.resolve(GitRef(repository, "main", checksum=one[:8]))


def test_a_kept_checkout_needs_no_server(repository: str, fetcher: Fetcher, tmp_path: Path, server: Server) -> None:
    one = (tmp_path / "commits").read_text().split()[0]
    ref = GitRef(repository, one)
    fetcher.checkout(ref)
    server.folder = None
    assert content(again(fetcher).checkout(ref), "file") == "one\n"


def test_the_git_folder_and_times(repository: str, fetcher: Fetcher) -> None:
    files = fetcher.checkout(GitRef(repository, keep_git_dir=True))
    assert content(files, ".git/HEAD")
    files = fetcher.checkout(GitRef(repository, commit_times=True))
    assert isinstance(files, Directory)
    assert {entry.mtime_ns for entry in walk(files)} == {1234567890 * 10**9}


def test_what_git_has_not(repository: str, fetcher: Fetcher) -> None:
    with pytest.raises(BuildError, match="has no branch or tag none"):
        fetcher.checkout(GitRef(repository, "none"))
    with pytest.raises(BuildError, match="has no folder nodir"):
        fetcher.checkout(GitRef(repository, "main", "nodir"))
    with pytest.raises(BuildError, match=r"git could not fetch .*/none\.git"):
        fetcher.checkout(GitRef(repository.replace("repo", "none")))


def test_without_the_git_program(repository: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="needs the git program"):
        Fetcher(tmp_path / "kept", git="no-such-git").checkout(GitRef(repository))


def test_passwords_are_not_shown(fetcher: Fetcher) -> None:
    with pytest.raises(BuildError) as caught:
        fetcher.checkout(GitRef("http://me:s3cret@127.0.0.1:1/r.git"))
    assert "s3cret" not in caught.value.message + "".join(caught.value.notes)


def test_git_credentials(repository: str, tmp_path: Path, server: Server) -> None:
    secrets = {"GIT_AUTH_TOKEN": b"s3cret"}
    Fetcher(tmp_path / "kept", secrets.get).checkout(GitRef(repository))
    assert {headers.get("authorization") for _, headers in server.asked} == {"basic eC1hY2Nlc3MtdG9rZW46czNjcmV0"}


def test_add_a_repository(repository: str, fetcher: Fetcher, tmp_path: Path) -> None:
    one = (tmp_path / "commits").read_text().split()[0]
    source = GitSource(f"{repository}#v1", "", keep_git_dir=False, span=SPAN)
    assert added(source, "/src", fetcher)[:3] == ["src 755", "src/Dockerfile 644", "src/file 644"]
    assert inputs(FileStep(CONTEXT, (source,), "/src"), None, fetcher) == [(f"git {repository}#v1", one)]
    below = GitSource(f"{repository}#v1:sub", "", keep_git_dir=False, span=SPAN)
    assert added(below, "/src/", fetcher) == ["src 755", "src/s 644"]


# ---------------------------------------------------------------- contexts from elsewhere


def front(context: str, fetcher: Fetcher, file: str = "") -> tuple[str, list[str]]:
    with open_contexts(context, file, io.BytesIO(b"from stdin"), fetcher=lambda: fetcher) as contexts:
        files = contexts.files()
        assert isinstance(files, Directory | Unpacked)
        return contexts.source.text, [entry.path.decode() for entry in walk(files)]


def test_a_repository_as_context(repository: str, fetcher: Fetcher) -> None:
    text, names = front(repository, fetcher)
    assert text == "FROM scratch\n"
    assert names == ["Dockerfile", "file", "link", "run.sh", "sub", "sub/s"]
    assert front(repository + "#main:sub", fetcher, "s") == ("s\n", ["s"])


def test_a_repository_of_this_machine_as_context(repository: str, fetcher: Fetcher, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/www/repo.git"
    assert front(place, fetcher)[0] == "FROM scratch\n"
    assert front(f"{place}#v1:sub", fetcher, "s") == ("s\n", ["s"])
    assert GitRef.parse(place) is None, "ADD knows no such repositories"


def test_a_repository_as_context_keeps_git_when_asked_to(repository: str, fetcher: Fetcher) -> None:
    with open_contexts(repository, "", io.BytesIO(), fetcher=lambda: fetcher, keep_git_dir=True) as contexts:
        assert contexts.files().entry(b".git/HEAD") is not None


def test_a_tar_behind_a_url_as_context(server: Server, fetcher: Fetcher) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo("Dockerfile")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"tar"))
    server.pages["/ctx.tgz"] = Page(data.getvalue())
    assert front(server.url + "/ctx.tgz", fetcher) == ("tar", ["Dockerfile"])
    assert front(server.url + "/ctx.tgz", fetcher, "-") == ("from stdin", ["Dockerfile"])


def test_a_dockerfile_behind_a_url(server: Server, fetcher: Fetcher, tmp_path: Path) -> None:
    server.pages["/Dockerfile"] = Page(b"FROM scratch\n")
    assert front(server.url + "/Dockerfile", fetcher) == ("FROM scratch\n", ["context"])
    assert front(str(tmp_path), fetcher, server.url + "/Dockerfile")[0] == "FROM scratch\n"

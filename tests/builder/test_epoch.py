"""SOURCE_DATE_EPOCH that names a source: the time of what it names."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest

from builder.context import Contexts, open_contexts
from builder.epoch import plan_of
from builder.errors import BuildError
from builder.fetch import Fetcher
from builder.model import BuildRequest
from grammar.parser import parse
from tests.building import archive, member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
SECONDS = 1445412480


class Handler(http.server.SimpleHTTPRequestHandler):
    def send_head(self) -> io.BytesIO | None:
        name = self.path.strip("/")
        body = self.server.files.get(name)  # type: ignore[attr-defined]
        if body is None:
            self.send_error(404)
            return None
        self.send_response(200)
        if name.startswith("dated"):
            self.send_header("Last-Modified", MODIFIED)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    tar = archive(
        (member("old", mtime=100), b"a"), (member("new", mtime=300), b"b"),
        (member("dir", tarfile.DIRTYPE, mtime=900), b""),
    )  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files = {  # type: ignore[attr-defined]
            "dated": b"x", "plain": b"x", "a.tar": tar, "a.tar.gz": gzip.compress(tar), "dated.tar": tar,
        }  # fmt: skip
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def epoch(tmp_path: Path, text: str, value: str = "", *, context: str = "", **named: str) -> int | None:
    """What SOURCE_DATE_EPOCH comes to; the main context is tmp_path/ctx unless another one is given."""
    folder = tmp_path / "ctx"
    folder.mkdir(exist_ok=True)
    fetcher = Fetcher(tmp_path / "kept")
    (tmp_path / "Dockerfile").write_text(text)
    args = (("SOURCE_DATE_EPOCH", value),) if value else ()
    request = BuildRequest(
        context=context or str(folder), build_args=args, build_contexts=tuple(named.items()), file="-"
    )
    stdin = io.BytesIO(text.encode())
    contexts: Contexts = open_contexts(
        request.context, "-", stdin, named=request.build_contexts, fetcher=lambda: fetcher
    )
    with contexts:
        made = plan_of(request, parse(contexts.source), contexts)
    assert made.epoch_source is None
    assert made.scope(0).global_args.get("SOURCE_DATE_EPOCH", "") in {"", str(made.epoch)}
    return made.epoch


def test_a_number_is_a_number(tmp_path: Path) -> None:
    assert epoch(tmp_path, "FROM scratch\n", "7") == 7
    assert epoch(tmp_path, "ARG SOURCE_DATE_EPOCH=8\nFROM scratch\n") == 8


def test_the_newest_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "ctx/sub").mkdir(parents=True)
    for name, time in (("a", 100), ("sub/b", 200), (".dockerignore", 50), ("ignored", 900)):
        (tmp_path / "ctx" / name).write_text("ignored\n")
        os.utime(tmp_path / "ctx" / name, (time, time))
    assert epoch(tmp_path, "FROM scratch\n", "context") == 200
    assert epoch(tmp_path, "FROM scratch\n", "other", other=str(tmp_path / "ctx/sub")) == 200


def test_an_empty_folder_has_no_time(tmp_path: Path) -> None:
    assert epoch(tmp_path, "FROM scratch\n", "context") is None


def test_an_archive_as_context(tmp_path: Path, server: str) -> None:
    assert epoch(tmp_path, "FROM scratch\n", "context", context=f"{server}/a.tar.gz") == 300
    assert epoch(tmp_path, "FROM scratch\n", "context", context=f"{server}/dated.tar") == SECONDS
    assert epoch(tmp_path, "FROM scratch\n", "other", other=f"{server}/a.tar") == 300


@pytest.mark.parametrize(("name", "expected"), [("dated", SECONDS), ("plain", None), ("a.tar", 300), ("a.tar.gz", 300)])
def test_a_stage_that_adds_a_url(tmp_path: Path, server: str, name: str, expected: int | None) -> None:
    text = f"FROM scratch AS src\nARG F={name}\nADD {server}/$F /\nFROM scratch\n"
    assert epoch(tmp_path, text, "src") == expected


def test_a_commit(tmp_path: Path) -> None:
    repository = tmp_path / "repo.git"
    environ = {
        **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_DATE": "@100 +0000",
        "GIT_COMMITTER_DATE": "@1234567 +0000",
    }  # fmt: skip
    for command in (
        ["init", "-q", "-b", "main", str(repository)],
        [
            "-C",
            str(repository),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ],
    ):
        subprocess.run(["git", *command], check=True, env=environ)
    fetcher = Fetcher(tmp_path / "kept")
    from builder.fetch import GitRef

    assert fetcher.committed(GitRef(str(repository), "main")) == 1234567
    subprocess.run(["rm", "-r", str(repository)], check=True)
    assert fetcher.committed(GitRef(str(repository), "main")) == 1234567


def test_an_image_has_no_time(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is an image"):
        epoch(tmp_path, "FROM scratch\n", "base", base="docker-image://busybox")

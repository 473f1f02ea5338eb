"""Secrets stay where they are needed: in the RUN that asks for them, for as long as it runs.

The whole store is searched for the value: blobs unpacked, the database with its write-ahead log, snapshots, mounts.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.building import Bench, contents, needs_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VALUE = "c2VjcmV0-hunter2-Zm9v"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def found(folder: Path, value: str = VALUE) -> list[str]:
    """The files of a folder that hold a value: as it is, in base64, in hex, or packed by gzip; and names that do."""
    needles = [value.encode(), base64.b64encode(value.encode()).rstrip(b"="), value.encode().hex().encode()]
    hits = [str(path) for path in folder.rglob("*") if value in path.name]
    for path, raw in contents(folder):
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        if any(needle in data for needle in needles):
            hits.append(str(path))
    return hits


def nowhere(bench: Bench, *words: str) -> None:
    """Build in every style of progress; the value is in no log, in nothing that is kept and in nothing that is told."""
    command, *rest = bench.words(None)
    for style in ("plain", "rawjson", "quiet"):
        done = bench.pybuild(command, "-t", "app", *words, *rest, f"--progress={style}", "--no-cache", alone=True)
        assert VALUE not in done.out + done.err, style
        assert found(bench.root) == [], style
    # Again, so that what is explained and what comes from the cache is looked at, too.
    done = bench.pybuild(command, "-t", "app", *words, *rest, "--progress=plain")
    assert VALUE not in done.out + done.err
    for told in (("history", "--no-trunc", "app"), ("inspect", "app"), ("images", "-a")):
        assert VALUE not in bench.pybuild(*told).out
    dry = bench.pybuild(command, *words, *rest, "--dry-run")
    assert VALUE not in dry.out + dry.err
    assert found(bench.root) == []


def test_the_search_finds_what_it_is_looking_for(bench: Bench) -> None:
    """The tests below would pass with a search that finds nothing."""
    bench.build(f"FROM scratch\nCOPY f /f\nLABEL a={VALUE}\n", {"f": VALUE})
    hits = found(bench.root)
    assert len([hit for hit in hits if "/blobs/" in hit]) >= 2  # the layer and the config
    assert f"LABEL a={VALUE}" in bench.pybuild("history", "--no-trunc", "app").out


@pytest.mark.parametrize("given", ["file", "env"])
def test_a_mounted_secret_is_nowhere(bench: Bench, given: str) -> None:
    (bench.folder / "token").write_text(VALUE)
    bench.environ["TOKEN"] = VALUE
    source = f"src={bench.folder / 'token'}" if given == "file" else "env=TOKEN"
    bench.words(
        "FROM base\n"
        f"RUN --mount=type=secret,id=t,required=true test $(cat /run/secrets/t | wc -c) = {len(VALUE)} && touch /seen\n"
        "RUN --mount=type=secret,id=t,target=/etc/deep/er/token test -s /etc/deep/er/token\n"
        f"RUN --mount=type=secret,id=t,env=TOKEN test ${{#TOKEN}} = {len(VALUE)} && touch /seen-env\n"
        'RUN test ! -e /run/secrets/t && test ! -e /etc/deep && test -z "$TOKEN"\n'
    )
    nowhere(bench, f"--secret=id=t,{source}")
    files = bench.image().files
    assert {"/seen", "/seen-env"} <= set(files)
    assert not [name for name in files if name.startswith(("/run", "/etc/deep"))]


def test_a_secret_is_its_owner_s_alone(bench: Bench) -> None:
    needs_ids()
    (bench.folder / "token").write_text(VALUE)
    flag = f"--secret=id=t,src={bench.folder / 'token'}"
    done = bench.build(
        "FROM base\nUSER app\n"
        "RUN --mount=type=secret,id=t stat -c 1:%a:%u:%g /run/secrets/t; cat /run/secrets/t >/dev/null || echo denied\n"
        "RUN --mount=type=secret,id=t,uid=1000,gid=50,mode=0440 stat -c 2:%a:%u:%g /run/secrets/t\n",
        None,
        flag,
    )
    lines = done.output.splitlines()
    assert lines[0] == "1:400:0:0"
    assert "denied" in lines
    assert lines[-1] == "2:440:1000:50"
    assert found(bench.root) == []


def test_another_value_of_a_secret_is_no_miss(bench: Bench) -> None:
    """As in docker: the value is in no key, readable or not."""
    dockerfile = "FROM base\nRUN --mount=type=secret,id=t touch /x\n"
    for value, cached in ((VALUE, False), ("another", True)):
        (bench.folder / "token").write_text(value)
        done = bench.build(dockerfile, None, f"--secret=id=t,src={bench.folder / 'token'}")
        assert done.cached == {"RUN --mount=type=secret,id=t touch /x": cached}


def test_a_secret_that_is_required_and_not_given(bench: Bench) -> None:
    done = bench.build(
        "FROM base\nRUN touch /x\nRUN --mount=type=secret,id=tok,required cat /run/secrets/tok\n", code=1
    )
    assert "secret tok: not found" in done.err
    assert "Dockerfile:3:" in done.err
    assert "hint: give it with --secret id=tok,src=FILE" in done.err
    assert bench.names() == {}


def test_a_secret_that_is_not_required_leaves_no_file(bench: Bench) -> None:
    bench.build("FROM base\nRUN --mount=type=secret,id=tok test ! -e /run/secrets/tok\n")


@pytest.mark.parametrize("name", ["API_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_API_KEY"])
def test_an_arg_that_looks_like_a_secret_is_nowhere(bench: Bench, name: str) -> None:
    bench.words(
        f"FROM base\nARG {name}\nRUN test ${{#{name}}} = {len(VALUE)} && touch /seen\n"
        f"RUN echo x${name} >/dev/null && touch /seen2\nCOPY Dockerfile /d\n"
    )
    nowhere(bench, f"--build-arg={name}={VALUE}")
    assert {"/seen", "/seen2"} <= set(bench.image().files)


def test_an_arg_that_looks_like_a_secret_still_decides(bench: Bench) -> None:
    dockerfile = "FROM base\nARG API_TOKEN\nRUN echo ${#API_TOKEN} >/length\n"
    bench.build(dockerfile, None, "--build-arg=API_TOKEN=sh0rt-secret")
    done = bench.build(dockerfile, None, f"--build-arg=API_TOKEN={VALUE}")
    assert bench.image().text("/length") == f"{len(VALUE)}\n"
    assert "sh0rt-secret" not in done.err
    assert VALUE not in done.err
    (step,) = done.steps
    assert step.reason
    assert found(bench.root, "sh0rt-secret") == []


def test_an_arg_without_a_secret_s_name_is_in_the_history_as_docker_has_it(bench: Bench) -> None:
    image = bench.made("FROM base\nARG MODE\nRUN touch /x\n", None, "--build-arg=MODE=fast")
    assert any("|1 MODE=fast /bin/sh -c touch /x" in line for line, _ in image.history)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/here") else 404)
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["here", "here?key=", "gone", "gone?key="])
def test_a_secret_arg_in_an_added_url_is_nowhere(bench: Bench, server: str, path: str) -> None:
    url = f"http://{server}/{path}$API_TOKEN" if "?" in path else f"http://user:$API_TOKEN@{server}/{path}"
    command, *rest = bench.words(f"FROM scratch\nARG API_TOKEN\nADD {url} /f\n")
    for style in ("plain", "rawjson"):
        done = bench.pybuild(
            command, "-t", "app", f"--build-arg=API_TOKEN={VALUE}", *rest, f"--progress={style}",
            code=0 if "here" in path else 1, alone=True,
        )  # fmt: skip
        assert VALUE not in done.out + done.err
        assert found(bench.root) == []
    if "here" in path:
        assert VALUE not in bench.pybuild("history", "--no-trunc", "app").out


def test_failing_runs_leave_no_secret(bench: Bench) -> None:
    (bench.folder / "token").write_text(VALUE)
    bench.build(
        "FROM base\nRUN --mount=type=secret,id=t cp /run/secrets/t /copied && false\n",
        None,
        f"--secret=id=t,src={bench.folder / 'token'}",
        code=1,
    )
    assert found(bench.root) == []
    assert not os.listdir(bench.root / "tmp")

"""What a step's key says it means, held against what it does: tests/golden/meaning.json.

A key is a promise that the same step gives the same result. When the code of a step changes what comes out of it and
the key stays, caches of an older pybuild are taken for results of this one. So for a table of steps both are kept: the
key, and a digest of what came out. Another result under the same key fails here; MEANING in the step's module is then
to be raised. What stays undone is up to the table: a flag that is not in it is not held.

`PYBUILD_UPDATE_GOLDEN=1` writes the file anew, but never the same key with another result.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import asdict

from builder.handlers.run import run_parts
from builder.model import CacheMount, RunOptions, RunStep, SecretMount, SecretSource, TmpfsMount
from cache.index import key
from cache.store import Store
from tests.builder.handlers.test_process import Desk
from tests.building import Bench, archive, member, write

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(__file__).parents[1] / "golden" / "meaning.json"

FILES: dict[str, str | bytes | None] = {
    "a": "a\n",
    "run.sh": "#!/bin/sh\n",
    "tree/b": "b\n",
    "tree/sub/c": "c\n",
    "tree/x.log": "log\n",
    "tree/sub/empty/": "",
    "files.tar": archive(
        (member("in", tarfile.DIRTYPE, mode=0o700, uid=7, gid=8), b""),
        (member("in/f", mode=0o640, uid=7, gid=8, mtime=5), b"f"),
        (member("in/l", tarfile.SYMTYPE, linkname="f"), b""),
        (member("in/h", tarfile.LNKTYPE, linkname="in/f"), b""),
        (member("in/p", tarfile.FIFOTYPE, mode=0o600), b""),
    ),
}
PASSWD = "COPY <<E /etc/passwd\nroot:x:0:0::/:/bin/sh\napp:x:5:6::/:/bin/sh\nE\n"

COPIES = {
    "a file": "COPY a /x",
    "a file to a folder": "COPY a /x/",
    "a file to the folder of the stage": "WORKDIR /w\nCOPY a .",
    "several files": "COPY a run.sh /x/",
    "a tree": "COPY tree /x",
    "a tree onto another": "COPY tree /x\nCOPY tree/sub /x",
    "a file onto a file": "COPY a /x\nCOPY run.sh /x",
    "everything": "COPY . /",
    "a pattern": "COPY tree/* /x/",
    "--parents": "COPY --parents tree/./sub/c tree/b /x/",
    "--exclude": "COPY --exclude=*.log --exclude=**/c tree /x",
    "--chown": "COPY --chown=3:4 tree /x",
    "--chown by name": PASSWD + "COPY --chown=app a /x",
    "--chmod": "COPY --chmod=4750 tree /x",
    "--chmod in signs": "COPY --chmod=u+x,go-r tree /x",
    "--link": "COPY --link a /x/y",
    "through a link": "COPY link /x",
    "a here-document": "COPY <<E <<'F' /x/\n$HOME\nE\n$HOME\nF",
    "an archive": "ADD files.tar /x/",
    "an archive as it is": "ADD --unpack=false files.tar /x/",
    "an archive, copied": "COPY files.tar /x/",
    "a folder": "WORKDIR /w/x",
    "a folder of a user": PASSWD + "USER app\nWORKDIR /w",
    "from another stage": "COPY tree /x\nFROM scratch\nCOPY --from=0 /x/sub /y",
}

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"argv": ("/bin/sh", "-c", "make"), "env": ("A=b",), "cwd": "/w"},
    "a user": {"argv": ("make",), "user": "app"},
    "a user with a group": {"argv": ("make",), "user": "1000:50"},
    "no network": {"argv": ("make",), "network": "none"},
    "the machine's network": {"argv": ("make",), "network": "host"},
    "insecure": {"argv": ("make",), "security": "insecure"},
    "a script": {"argv": ("/s",), "scripts": (("/s", b"#!/bin/sh\n"),)},
    "another machine's name": {"argv": ("make",), "hostname": "box"},
    "tmpfs": {"argv": ("make",), "mounts": (TmpfsMount("/t", 1 << 20),)},
    "a cache": {"argv": ("make",), "mounts": (CacheMount("/c", "pip", uid=5, gid=6, mode=0o700),)},
    "a secret": {"argv": ("make",), "mounts": (SecretMount("token", "/run/secrets/token", "TOKEN"),)},
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("meaning"), {"SOURCE_DATE_EPOCH": "1000"})
    write(bench.context, FILES)
    (bench.context / "link").symlink_to("tree/sub")
    write(bench.context, {".dockerignore": "Dockerfile\n.dockerignore\n"})
    for folder, _, names in os.walk(bench.context):
        os.chmod(folder, 0o755)
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o755 if name.endswith(".sh") else 0o644)
    yield bench
    bench.close()


def held(name: str, identity: str, result: str) -> None:
    """Whether what came out is what its key says that it is."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    known, before = golden.get(name, ["", ""])
    if result != before:
        assert identity != known, f"{name}: another result under the same key: raise MEANING in the step's module"
    if os.environ.get("PYBUILD_UPDATE_GOLDEN"):
        golden[name] = [identity, result]
        GOLDEN.write_text(json.dumps(golden, indent=0, sort_keys=True) + "\n")
        return
    assert known, f"{name} is not in {GOLDEN}: PYBUILD_UPDATE_GOLDEN=1 puts it there"
    assert identity == known, f"{name}: its key is another: all caches miss; PYBUILD_UPDATE_GOLDEN=1 if it must be"
    assert result == before


@pytest.mark.parametrize("what", COPIES)
def test_a_step_of_files_does_what_its_key_says(context: Bench, what: str) -> None:
    context.build(f"FROM scratch\n{COPIES[what]}\n", {}, "--platform=linux/amd64", "--no-cache")
    with Store.open(context.root) as store:
        rows = store.database.query("SELECT key, diff_id FROM records ORDER BY number DESC LIMIT 1")
    held(f"files: {what}", *rows[0])


@pytest.mark.parametrize("what", RUNS)
def test_a_run_does_what_its_key_says(tmp_path: Path, what: str) -> None:
    desk = Desk(tmp_path)
    desk.options = RunOptions(hosts=(("near", "10.0.0.1"),))
    desk.secrets = {"token": SecretSource("token", value=b"x")}
    with desk.stack:
        spec = desk(**RUNS[what])
    # What is empty counts for nothing, so that a new field does not change what a step saw without it.
    seen = repr([(name, value) for name, value in asdict(spec).items() if value]).replace(str(tmp_path), "")
    identity = key(run_parts(RunStep(**RUNS[what]), desk.options))
    held(f"run: {what}", identity, hashlib.sha256(seen.encode()).hexdigest())

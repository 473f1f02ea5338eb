"""The matrix of cache keys: each thing that can change, and exactly the steps that it makes anew.

One Dockerfile has a stage for each way in which something can come into a step. A change has to miss in the stages that
are named beside it and to hit in all others: that holds both that what counts does count, and that nothing else does.
All share one store, so no two changes may come to the same step.
"""

# mypy: disable-error-code="func-returns-value"
from __future__ import annotations

import os
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.building import Bench, archive, busybox, member, needs_run, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STAGES = {
    "tree": "COPY tree /x",
    "chmod": "COPY --chmod=600 tree /x",
    "signs": "COPY --chmod=u+w tree /x",
    "link": "COPY --link tree /x",
    "exclude": "COPY --exclude=*.log tree /x",
    "pattern": "COPY tree/*.txt /x/",
    "parents": "COPY --parents tree/./sub /x/",
    "other": "COPY other /x",
    "archive": "ADD files.tar /x/",
    "owner": "ARG OWNER=1:1\nCOPY --chown=$OWNER other /x",
    "target": "ARG TO=/to\nCOPY other $TO",
    "inline": "ARG TEXT=t\nCOPY <<E /x\n$TEXT\nE",
    "workdir": "ARG DIR=/w\nWORKDIR $DIR",
    "stage": "COPY --from=tree /x/sub /y",
    "context": "COPY --from=named f /x",
}
RUNS = {
    "run": "RUN true",
    "argument": "ARG A=1\nRUN echo $A",
    "environment": "ENV E=1\nRUN true e",
    "user": "USER 0\nRUN true u",
    "folder": "WORKDIR /w\nRUN true w",
    "bind": "RUN --mount=type=bind,source=tree,target=/t true b",
    "bind-stage": "RUN --mount=type=bind,from=tree,source=/x/sub,target=/t true s",
    "cache": "RUN --mount=type=cache,target=/c,id=c true c",
    "secret": "RUN --mount=type=secret,id=token true t",
    "sealed": "ARG API_TOKEN=hunter2\nRUN true $API_TOKEN",
    "script": "RUN <<E\ntrue\nE",
}
TREE = {"tree", "chmod", "signs", "link", "exclude", "pattern", "bind"}
LAYERS = {"stage", "bind-stage"}
ALL_RUNS = set(RUNS)


def text_of(**changed: str) -> str:
    """The Dockerfile, with some stages' lines being others."""
    stages = {name: f"FROM scratch AS {name}\n{changed.get(name, text)}\n" for name, text in STAGES.items()}
    stages |= {name: f"FROM base AS {name}\n{changed.get(name, text)}\n" for name, text in RUNS.items()}
    last = "".join(f"COPY --from={name} / /{name}\n" for name in stages)
    return "".join(stages.values()) + "FROM scratch AS last\n" + last


def lay_out(bench: Bench) -> None:
    """The contexts as they are before each change."""
    for folder in ("context", "named", "base"):
        shutil.rmtree(bench.folder / folder, ignore_errors=True)
    shutil.copytree(busybox(), bench.folder / "base", symlinks=True)
    write(bench.folder / "named", {"f": "named"})
    write(bench.context, {"tree/a.txt": "a", "tree/b": "b", "tree/x.log": "l", "tree/sub/c": "c", "other": "o"})
    tar = archive((member("in", mode=0o640), b"in"))
    write(bench.context, {"files.tar": tar, "Dockerfile": text_of(), "unused": "u"})
    (bench.context / "tree/link").symlink_to("a.txt")
    for folder, _, names in os.walk(bench.context):
        os.chmod(folder, 0o755)
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o644)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    needs_run()
    bench = Bench(tmp_path_factory.mktemp("matrix"), {"token": "t", "HOME": "/root"})
    lay_out(bench)
    missed(bench)
    assert missed(bench) == set()
    yield bench
    bench.close()


def missed(bench: Bench, *flags: str, base: str = "base") -> set[str]:
    """The stages in which a step was done anew; the last one only gathers them."""
    named = [f"--build-context=base={bench.folder / base}", f"--build-context=named={bench.folder / 'named'}"]
    near = [] if any(flag.startswith("--add-host") for flag in flags) else ["--add-host=near:10.0.0.1"]
    secret = [] if any(flag.startswith("--secret") for flag in flags) else ["--secret=id=token,env=token"]
    done = bench.pybuild("build", "--progress=rawjson", *named, *near, *secret, *flags, str(bench.context))
    return {step.stage for step in done.steps if not step.cached} - {"last"}


Change = tuple["Callable[[Path], object]", set[str]]
FILES: dict[str, Change] = {
    "a file's content": (lambda c: (c / "tree/a.txt").write_text("A"), TREE),
    "the content of a file below": (
        lambda c: (c / "tree/sub/c").write_text("C"),
        TREE - {"pattern"} | {"parents"} | LAYERS,
    ),
    "a file's mode": (lambda c: (c / "tree/a.txt").chmod(0o755), TREE - {"chmod"}),
    "a folder's mode": (
        lambda c: (c / "tree/sub").chmod(0o700),
        TREE - {"pattern", "chmod"} | {"parents", "bind-stage"},
    ),
    "a file's name": (lambda c: (c / "tree/b").rename(c / "tree/z"), TREE - {"pattern"}),
    "a file more": (lambda c: (c / "tree/new.txt").write_text(""), TREE),
    "a file less": (lambda c: (c / "tree/b").unlink(), TREE - {"pattern"}),
    "a file's type": (lambda c: ((c / "tree/b").unlink(), (c / "tree/b").symlink_to("a.txt")), TREE - {"pattern"}),
    "a link's target": (lambda c: ((c / "tree/link").unlink(), (c / "tree/link").symlink_to("b")), TREE - {"pattern"}),
    "a file that one step excludes": (lambda c: (c / "tree/x.log").write_text("L"), TREE - {"exclude", "pattern"}),
    "a file of its own": (lambda c: (c / "other").write_text("O"), {"other", "owner", "target"}),
    "the mode of that file": (lambda c: (c / "other").chmod(0o755), {"other", "owner", "target"}),
    "an archive's content": (
        lambda c: (c / "files.tar").write_bytes(archive((member("in", mode=0o600), b"in"))),
        {"archive"},
    ),
    "a file of a named context": (lambda c: (c / "../named/f").write_text("N"), {"context"}),
    "a file that no step takes": (lambda c: (c / "unused").write_text("U"), set()),
    "times": (lambda c: [os.utime(c / name, (5, 5)) for name in ("tree", "tree/a.txt", "tree/sub", "other")], set()),
    "a file in a base": (lambda c: (c / "../base/etc/motd").write_text("hi"), ALL_RUNS),
    "a base's times": (lambda c: os.utime(c / "../base/etc/passwd", (9, 9)), set()),
    "what an ignore file hides": (lambda c: write(c, {".dockerignore": "unused\nDockerfile\n"}), set()),
    "an ignore file that hides a file": (lambda c: write(c, {".dockerignore": "tree/link\n"}), TREE - {"pattern"}),
}


@pytest.mark.parametrize("what", FILES)
def test_what_changes_in_a_context(built: Bench, what: str) -> None:
    lay_out(built)
    change, wanted = FILES[what]
    change(built.context)
    assert missed(built) == wanted


LINES: dict[str, tuple[dict[str, str], set[str]]] = {
    "an option's value": ({"chmod": "COPY --chmod=640 tree /x"}, {"chmod"}),
    "a destination": ({"pattern": "COPY tree/*.txt /y/"}, {"pattern"}),
    "the same files, named otherwise": ({"tree": "COPY ./tree/ /x"}, set()),
    "ADD in place of COPY": ({"other": "ADD other /x"}, {"other"}),
    "a command": ({"run": "RUN true 2"}, {"run"}),
    "a command's form": ({"run": 'RUN ["true"]'}, {"run"}),
    "a here-document": ({"script": "RUN <<E\ntrue 2\nE"}, {"script"}),
    "an ENV": ({"environment": "ENV E=2\nRUN true e"}, {"environment"}),
    "another ENV": ({"environment": "ENV E=1 F=2\nRUN true e"}, {"environment"}),
    "a USER": ({"user": "USER 1\nRUN true u"}, {"user"}),
    "a WORKDIR": ({"folder": "WORKDIR /v\nRUN true w"}, {"folder"}),
    "a SHELL": ({"run": 'SHELL ["/bin/sh", "-e", "-c"]\nRUN true'}, {"run"}),
    "where a mount is": ({"cache": "RUN --mount=type=cache,target=/d,id=c true c"}, {"cache"}),
    "a mount more": ({"cache": "RUN --mount=type=tmpfs,target=/d --mount=type=cache,target=/c,id=c true c"}, {"cache"}),
    "a cache's id and sharing": ({"cache": "RUN --mount=type=cache,target=/c,id=d,sharing=locked true c"}, set()),
    "a secret's id": ({"secret": "RUN --mount=type=secret,id=other true t"}, {"secret"}),
    "what holds anyway": ({"run": "RUN --network=default --security=sandbox true"}, set()),
    "labels, commands, ports": ({"run": "LABEL a=b\nCMD x\nEXPOSE 1\nVOLUME /v\nSTOPSIGNAL 9\nRUN true"}, set()),
    "comments and continuations": ({"run": "# why\nRUN \\\n  true"}, set()),
    "an ARG that nobody names, above a COPY": ({"tree": "ARG Z=1\nCOPY tree /x"}, set()),
    "an ARG above a RUN": ({"run": "ARG Z=1\nRUN true"}, {"run"}),
}


@pytest.mark.parametrize("what", LINES)
def test_what_changes_in_the_file(built: Bench, what: str) -> None:
    lay_out(built)
    changed, wanted = LINES[what]
    write(built.context, {"Dockerfile": text_of(**changed)})
    assert missed(built) == wanted


FLAGS: dict[str, tuple[list[str], set[str]]] = {
    "an owner's ARG": (["--build-arg=OWNER=1:2"], {"owner"}),
    "a destination's ARG": (["--build-arg=TO=/y"], {"target"}),
    "the same value by ARG": (["--build-arg=TO=/to"], set()),
    "a here-document's ARG": (["--build-arg=TEXT=u"], {"inline"}),
    "a WORKDIR's ARG": (["--build-arg=DIR=/v"], {"workdir"}),
    "a RUN's ARG": (["--build-arg=A=2"], {"argument"}),
    "an ARG that looks like a secret": (["--build-arg=API_TOKEN=hunter3"], {"sealed"}),
    "a proxy": (["--build-arg=HTTPS_PROXY=http://p/", "--build-arg=no_proxy=a"], set()),
    "a host's address": (["--add-host=near:10.0.0.2"], set()),
    "a host's name": (["--add-host=far:10.0.0.1"], ALL_RUNS),
    "the network": (["--network=none"], ALL_RUNS),
    "shared memory": (["--shm-size=32m"], ALL_RUNS),
    "a limit": (["--ulimit=nofile=100"], ALL_RUNS),
    "the machine's name": (["--build-arg=BUILDKIT_SANDBOX_HOSTNAME=box"], ALL_RUNS),
    "a namespace of caches": (["--build-arg=BUILDKIT_CACHE_MOUNT_NS=other"], set()),
    "a secret's value": (["--secret=id=token,env=HOME"], set()),
    "a secret's value, asked for": (["--key-secrets"], {"secret"}),
    "names, labels, outputs": (["-t", "a:1", "--label=a=b", "-o", "type=oci,dest=/dev/null"], set()),
    "how progress is shown": (["--explain"], set()),
    "an age that none has": (["--cache-ttl=10d"], set()),
    "a budget": (["--cache-budget=none"], set()),
    # The times in a layer are cut down to it.
    "a time of all that is made": (["--build-arg=SOURCE_DATE_EPOCH=5"], {*STAGES, *RUNS}),
}


@pytest.mark.parametrize("what", FLAGS)
def test_what_changes_on_the_command_line(built: Bench, what: str) -> None:
    lay_out(built)
    flags, wanted = FLAGS[what]
    assert missed(built, *flags) == wanted


# ---------------------------------------------------------------- files of layers

LAYER: dict[str, dict[str, Any]] = {
    "d": {"kind": tarfile.DIRTYPE},
    "d/f": {"uid": 5, "gid": 6, "mtime": 1, "pax_headers": {"SCHILY.xattr.user.a": "1"}},
    "d/l": {"kind": tarfile.SYMTYPE, "linkname": "f"},
    "d/c": {"kind": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    "d/other": {},
    "unused": {},
}
IN_LAYERS: dict[str, tuple[dict[str, dict[str, Any]], bool]] = {
    "nothing": ({}, False),
    "an xattr's value": ({"d/f": {"uid": 5, "gid": 6, "pax_headers": {"SCHILY.xattr.user.a": "2"}}}, True),
    "an xattr less": ({"d/f": {"uid": 5, "gid": 6}}, True),
    "an owner": ({"d/f": {"uid": 7, "gid": 6, "pax_headers": {"SCHILY.xattr.user.a": "1"}}}, True),
    "a group": ({"d/f": {"uid": 5, "gid": 7, "pax_headers": {"SCHILY.xattr.user.a": "1"}}}, True),
    "a time": ({"d/f": {**LAYER["d/f"], "mtime": 99}}, False),
    "a mode": ({"d/other": {"mode": 0o600}}, True),
    "a link's target": ({"d/l": {"kind": tarfile.SYMTYPE, "linkname": "other"}}, True),
    "a device's number": ({"d/c": {"kind": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}}, True),
    "a device's kind": ({"d/c": {"kind": tarfile.BLKTYPE, "devmajor": 1, "devminor": 3}}, True),
    "a hard link in place of a copy": ({"d/other": {"kind": tarfile.LNKTYPE, "linkname": "d/f"}}, True),
    "a file that is not copied": ({"unused": {"mode": 0o600}}, False),
    "a file more": ({"d/new": {}}, True),
}


@pytest.mark.parametrize("what", IN_LAYERS)
def test_what_counts_of_files_in_layers(tmp_path: Path, what: str) -> None:
    """Whoever copies from an image, or mounts it, depends on all that its entries say but their times."""
    bench = Bench(tmp_path)
    changed, counts = IN_LAYERS[what]
    text = "FROM scratch\nCOPY --from=src d /x\n"
    for table, wanted in ((LAYER, True), ({**LAYER, **changed}, counts)):
        tar = archive(*((member(name, **facts), b"") for name, facts in table.items()))
        write(tmp_path, {"src.tar": tar})
        bench.pybuild("import", str(tmp_path / "src.tar"), "src:latest")
        done = bench.build(text, {})
        assert done.steps[0].cached != wanted, done.steps[0].reason

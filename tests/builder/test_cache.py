"""The cache seen from the command line: why a step missed, what exactly is in its key, and how far it is trusted."""

# mypy: disable-error-code="func-returns-value"
from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from builder.cli.build import duration
from builder.cli.flags import UsageError
from builder.events import StepFinished, StepMissed, StepStarted
from builder.terminal import progress
from cache.store import Store
from cache.usage import measure
from tests.building import Bench, busybox, needs_run, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


STAGES = "FROM scratch AS one\nCOPY a /a\nFROM scratch\nARG V=1\nCOPY --from=one /a /x\nCOPY d /d\nCOPY a /v$V\n"
FILES = {"a": "1", "d/b": "2", "d/c": "3"}


# ---------------------------------------------------------------- why


def test_each_part_that_changed_is_told_below_the_step(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    (bench.context / "d/c").chmod(0o755)
    done = bench.build(None, {"a": "11", "d/b": None, "d/new": "n"}, "--explain", "--build-arg=V=2")
    missed = {event["step"]: event["changes"] for event in done.events if event["event"] == "step-missed"}
    told = [" ".join(changes) for _, changes in sorted(missed.items())]
    assert told[0].startswith("file a: content sha256:6b86b273ff34 → sha256:4fc82b26aecb")
    assert told[1].startswith("file a: content sha256:6b86b273ff34 → ")  # of a stage's files, too
    assert [part in told[2] for part in ("file d/c: mode 644 → 755", "file d/new added", "file d/b removed")] == [
        True
    ] * 3
    assert "to: /v1 → /v2" in told[3]


def test_the_plain_display_has_the_parts_between_a_step_and_its_output(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    words = [word for word in bench.words(None, {"a": "2"}) if not word.startswith("--progress")]
    err = bench.pybuild("build", "--explain", *words[1:]).err
    assert "#1 [one 2/2] COPY a /a\n#1 not cached: file a: content sha256:" in err
    assert "not cached: " not in bench.pybuild("build", "--explain", *words[1:]).err


def test_the_last_build_is_explained_afterwards(bench: Bench) -> None:
    assert "no build" in bench.pybuild("cache", "why", code=2).err
    bench.build(STAGES, FILES)
    assert "no earlier build of this context is known" in bench.pybuild("cache", "why").out
    bench.build(STAGES, {"d/b": "22"})
    out = bench.pybuild("cache", "why").out
    assert out.startswith("[stage-1 3/4] COPY d /d  (line 6)\n  file d/b: content sha256:")
    assert bench.pybuild("cache", "why", "one", "2").out == "[one 2/2] COPY a /a  (line 2)\n  CACHED\n"
    assert bench.pybuild("cache", "why", "line", "6").out in out
    assert "'stage-1 3'" in bench.pybuild("cache", "why", "nope", code=2).err
    lines = [json.loads(line) for line in bench.pybuild("cache", "why", "--format=json").out.splitlines()]
    assert [(line["stage"], line["number"]) for line in lines] == [("stage-1", 3), ("stage-1", 4)]
    bench.build()
    assert bench.pybuild("cache", "why").out == "all 4 steps of the last build were in the cache\n"


def test_a_build_that_failed_is_explained_too(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    bench.build(STAGES, {"a": "2"}, "--require-cache", code=1)
    assert "file a: content" in bench.pybuild("cache", "why").out


def test_lines_that_moved_are_compared_with_themselves(bench: Bench) -> None:
    """Across inserted, removed and reordered lines, an edited one, and a stage of another name."""
    text = "FROM scratch AS one\nCOPY a /a\nCOPY d /d\nARG V=1\nCOPY a /v$V\nWORKDIR /w\n"
    reasons = [step.reason for step in bench.build(text, FILES).steps]
    assert reasons == ["first build"] * 4
    text = text.replace("AS one\n", "AS two\nCOPY d/b /new\n").replace("WORKDIR /w", "WORKDIR /w/x")
    text = text.replace("COPY a /a\nCOPY d /d\n", "COPY d /d\nCOPY a /a\n").replace("V=1", "V=2")
    reasons = [step.reason for step in bench.build(text, {"d/b": "B"}).steps]
    assert reasons == [
        "new step",
        "d/b: content changed and 1 more",  # and the layers below
        "step above: the base → COPY d /d",
        "ARG V: 1 → 2 and 2 more",
        "to: /w/ → /w/x/ and 1 more",
    ]
    text = text.replace("COPY d/b /new\n", "")
    done = bench.build(text)
    assert done.steps[0].reason == "step above: COPY d/b /new → the base"
    assert "parent: sha256:" in bench.pybuild("cache", "why", "two", "3").out
    assert "by [two 2/5]" in bench.pybuild("cache", "why", "two", "3").out


def test_a_base_that_moved_is_told(bench: Bench) -> None:
    text = "FROM base\nCOPY a /a\n"
    write(bench.folder / "one", {"f": "1"})
    base = f"--build-context=base={bench.folder / 'one'}"
    write(bench.context, {"Dockerfile": text, **FILES})
    words = ["build", "--progress=rawjson", base, str(bench.context)]
    bench.pybuild(*words)
    write(bench.folder / "one", {"f": "2"})
    (step,) = bench.pybuild(*words).steps
    assert step.reason == "base base changed"
    assert "base base: sha256:" in bench.pybuild("cache", "why").out


def test_another_checkout_of_the_same_files_is_explained(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    shutil.copytree(bench.context, bench.folder / "other")
    write(bench.folder / "other", {"d/c": "33"})
    done = bench.pybuild("build", "--progress=rawjson", str(bench.folder / "other"))
    assert next(step.reason for step in done.steps if not step.cached) == "d/c: content changed"


def test_a_secret_is_in_no_explanation(bench: Bench) -> None:
    text = "FROM scratch\nARG API_TOKEN\nCOPY a /$API_TOKEN\n"
    bench.build(text, FILES, "--build-arg=API_TOKEN=hunter2")
    done = bench.build(text, FILES, "--build-arg=API_TOKEN=hunter3", "--explain")
    assert not done.steps[0].cached
    out = bench.pybuild("cache", "why").out
    assert "kept secret" in out
    assert "hunter" not in done.err + out


# ---------------------------------------------------------------- how far it is trusted


def test_a_required_cache_fails_at_the_first_miss(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    assert all(bench.build(None, {}, "--require-cache").cached.values())
    done = bench.build(None, {}, "--require-cache", "--build-arg=V=2", tag="other", code=1)
    assert "error: this step is not in the cache: ARG V: 1 → 2 and 1 more" in done.err
    assert "Dockerfile:7:1" in done.err
    assert list(bench.names()) == ["app:latest"]
    assert not bench.build(None, {}, "--require-cache=one", "--build-arg=V=3").steps[3].cached
    assert "did you mean one?" in bench.build(None, {}, "--require-cache=onne", code=1).err
    bench.build(None, {}, "--require-cache", "--no-cache", code=2)


def test_steps_from_a_line_on_are_done_anew(bench: Bench) -> None:
    bench.build(STAGES, FILES)
    assert [step.cached for step in bench.build(None, {}, "--no-cache-from=6").steps] == [True, True, False, False]
    assert [step.cached for step in bench.build(None, {}, "--no-cache-from", "2").steps] == [False] * 4
    assert "has 8 lines" in bench.build(None, {}, "--no-cache-from=99", code=1).err
    bench.build(None, {}, "--no-cache-from=0", code=2)
    bench.build(None, {}, "--no-cache-from=RUN", code=2)


def test_a_record_that_is_too_old_is_a_miss(bench: Bench) -> None:
    bench.build(STAGES, FILES, "--build-arg=SOURCE_DATE_EPOCH=1")
    flags = ("--build-arg=SOURCE_DATE_EPOCH=1",)
    assert all(bench.build(None, {}, "--cache-ttl=1h", *flags).cached.values())
    done = bench.build(None, {}, "--cache-ttl=0s", *flags)
    assert not any(done.cached.values())
    assert "ago, more than 0 seconds" in done.steps[0].reason
    # They were written anew, with the time of now.
    assert all(bench.build(None, {}, "--cache-ttl=1m", *flags).cached.values())


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604800), ("1h30m", 5400), ("2w", 1209600), ("0.5h", 1800), ("0", 0)]
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert duration(text, "cache-ttl") == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "-1d", "1h7"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(UsageError):
        duration(text, "cache-ttl")


# ---------------------------------------------------------------- what is in a key

COPY = "FROM scratch\nCOPY --exclude=*.log tree /tree\n"
TREE = {"tree/a": "a", "tree/b": "b", "tree/x.log": "log", "tree/sub/c": "c", "other": "o"}


def copied(bench: Bench, *flags: str, dockerfile: str | None = None) -> bool:
    """Whether the COPY came from the cache."""
    return bench.build(dockerfile, {}, *flags).steps[0].cached


def xattr(path: Path) -> None:
    try:
        os.setxattr(path, "user.pybuild.test", b"1")
    except OSError:
        pytest.skip("needs a file system with user xattrs")


COUNTS: dict[str, Callable[[Path], object]] = {
    "a content": lambda c: (c / "tree/a").write_text("A"),
    "a content of the same size and time": lambda c: (
        (c / "tree/a").write_text("A"),
        os.utime(c / "tree/a", ns=(1, 1)),
    ),
    "a name": lambda c: (c / "tree/a").rename(c / "tree/z"),
    "two names swapped": lambda c: (
        (c / "tree/a").rename(c / "t"),
        (c / "tree/b").rename(c / "tree/a"),
        (c / "t").rename(c / "tree/b"),
    ),
    "a file moved down": lambda c: (c / "tree/b").rename(c / "tree/sub/b"),
    "a mode": lambda c: (c / "tree/a").chmod(0o755),
    "a directory's mode": lambda c: (c / "tree/sub").chmod(0o700),
    "the setuid bit": lambda c: (c / "tree/a").chmod(0o4644),
    "a file added": lambda c: (c / "tree/n").write_text(""),
    "a file removed": lambda c: (c / "tree/b").unlink(),
    "an empty directory added": lambda c: (c / "tree/e").mkdir(),
    "a file turned into a symlink": lambda c: ((c / "tree/b").unlink(), (c / "tree/b").symlink_to("a")),
    "a file turned into a directory": lambda c: ((c / "tree/b").unlink(), (c / "tree/b").mkdir()),
    "a file turned into a fifo": lambda c: ((c / "tree/b").unlink(), os.mkfifo(c / "tree/b")),
    "a symlink's target": lambda c: ((c / "tree/link").unlink(), (c / "tree/link").symlink_to("b")),
    "a hard link": lambda c: ((c / "tree/same").unlink(), os.link(c / "tree/a", c / "tree/same")),
}
IGNORED: dict[str, Callable[[Path], object]] = {
    "times": lambda c: [os.utime(path, ns=(5, 5)) for path in (c / "tree/a", c / "tree/sub", c / "tree/sub/c")],
    "a file written anew with the same content": lambda c: ((c / "tree/a").unlink(), (c / "tree/a").write_text("a")),
    "a file that is excluded": lambda c: (c / "tree/x.log").write_text("LOG"),
    "a file that is not copied": lambda c: (c / "other").write_text("O"),
    "the mode of the directory whose contents are copied": lambda c: (c / "tree").chmod(0o700),
    "the Dockerfile's comments": lambda c: (c / "Dockerfile").write_text("# hi\n" + COPY),
    "config above the step": lambda c: (c / "Dockerfile").write_text(COPY.replace("COPY", "LABEL a=b\nENV C=d\nCOPY")),
}


def laid(bench: Bench) -> None:
    write(bench.context, {"Dockerfile": COPY, **TREE, "tree/same": "a"})
    (bench.context / "tree/link").symlink_to("a")
    for folder, _, names in os.walk(bench.context):
        os.chmod(folder, 0o755)
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o644)


@pytest.fixture(params=["read", "trusted"])
def seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether files are looked into, as those that are seconds old are, or their times are enough."""
    if request.param == "trusted":
        monkeypatch.setattr("builder.context.RACY", 0)
        monkeypatch.setattr("cache.digests.RACY", 0)
    return str(request.param)


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("what", COUNTS)
def test_what_counts_of_a_copied_tree(bench: Bench, what: str) -> None:
    laid(bench)
    assert not copied(bench)
    assert copied(bench)
    COUNTS[what](bench.context)
    assert not copied(bench)
    assert copied(bench)


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("what", IGNORED)
def test_what_does_not_count_of_a_copied_tree(bench: Bench, what: str) -> None:
    laid(bench)
    copied(bench)
    IGNORED[what](bench.context)
    assert copied(bench)


def test_xattrs_count(bench: Bench) -> None:
    laid(bench)
    copied(bench)
    xattr(bench.context / "tree/a")
    assert copied(bench) == ("user.pybuild.test" not in _kept_xattrs(bench))


def _kept_xattrs(bench: Bench) -> set[str]:
    """The xattrs in the last layer of the image."""
    return {name.removeprefix("SCHILY.xattr.") for member in bench.image().members() for name in member.pax_headers}


WATCHED = """
import sys
counts = {"open": 0, "os.scandir": 0}
def hook(event, arguments):
    if event in counts and isinstance(arguments[0], bytes) and b"/tree" in arguments[0]:
        counts[event] += 1
sys.addaudithook(hook)
from builder.cli import _outermost
code = _outermost(sys.argv[1:])
print(counts["open"], counts["os.scandir"], "builder.handlers.mounts" in sys.modules)
sys.exit(code)
"""


def test_a_rebuild_of_unchanged_files_opens_none_of_them(bench: Bench) -> None:
    files = {f"tree/{n % 7}/{n}": f"{n}" for n in range(200)}
    text = "FROM scratch\nCOPY tree /tree\nCOPY --link tree/0 tree/[12] /some/\nCOPY --link tree/3/3 /f\n"
    bench.build(text, {**files, ".dockerignore": "**/*.log\n"})
    time.sleep(2.1)  # files that may still change within the tick of their time are read
    bench.build()
    words = [sys.executable, "-c", WATCHED, "build", "-q", str(bench.context)]
    done = subprocess.run(words, env=bench.environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].split()[:2] == ["0", "8"]  # `tree` and the seven in it, once each
    write(bench.context, {"tree/4/4": "five"})
    assert [step.cached for step in bench.build().steps] == [False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: (c / "tree/link").symlink_to("../other"),
        lambda c: (c / "outside/f").write_text("F"),
        lambda c: ((c / "door").unlink(), (c / "door").symlink_to("tree")),
    ],
    ids=["a link that a pattern follows", "what a link leads to", "where a link leads"],
)
@pytest.mark.usefixtures("seen")
def test_links_in_the_way_to_files(bench: Bench, change: Callable[[Path], object]) -> None:
    write(bench.context, {"tree/f": "1", "other": "2", "outside/f": "3"})
    bench.environ["SOURCE_DATE_EPOCH"] = "1"
    (bench.context / "door").symlink_to("outside")
    (bench.context / "tree/one").symlink_to("../outside/f")
    text = "FROM scratch\nCOPY tree/* /a/\nCOPY door /b\nCOPY door/f /c\n"
    for _ in range(2):
        bench.build(text)
    change(bench.context)
    first = bench.build(text)
    assert not all(step.cached for step in first.steps)
    assert bench.build(text, None, "--no-cache").image == first.image


FLAGS = {
    "a destination": ("COPY a /x", "COPY a /y"),
    "a destination that is a directory": ("COPY a /x", "COPY a /x/"),
    "an owner": ("COPY a /x", "COPY --chown=1:1 a /x"),
    "another owner": ("COPY --chown=1:2 a /x", "COPY --chown=1:1 a /x"),
    "--chmod": ("COPY a /x", "COPY --chmod=600 a /x"),
    "--link": ("COPY a /x", "COPY --link a /x"),
    "--parents": ("COPY sub/a /x/", "COPY --parents sub/a /x/"),
    "another file of the same content": ("COPY a /x/", "COPY same /x/"),
    "a here-document": ("COPY <<E /x\n1\nE", "COPY <<E /x\n2\nE"),
    "the user of WORKDIR": ("USER 1\nWORKDIR /x", "USER 2\nWORKDIR /x"),
}


@pytest.mark.parametrize("what", FLAGS)
def test_what_counts_of_a_file_step(bench: Bench, what: str) -> None:
    one, two = (f"FROM scratch\n{step}\n" for step in FLAGS[what])
    write(bench.context, {"a": "a", "same": "a", "sub/a": "a"})
    assert not copied(bench, dockerfile=one)
    assert not copied(bench, dockerfile=two)
    assert copied(bench, dockerfile=one)
    assert copied(bench, dockerfile=two)


def test_an_octal_chmod_takes_the_sources_mode_out_of_the_key(bench: Bench) -> None:
    write(bench.context, {"a": "a"})
    for flag, cached in (("--chmod=640", True), ("--chmod=u+x", False)):
        (bench.context / "a").chmod(0o644)
        copied(bench, dockerfile=f"FROM scratch\nCOPY {flag} a /x\n")
        (bench.context / "a").chmod(0o600)
        assert copied(bench) == cached


def test_secrets_count_when_asked(bench: Bench) -> None:
    needs_run()
    text = "FROM base\nRUN --mount=type=secret,id=token wc -c /run/secrets/token\n"

    def cached(value: str, *flags: str) -> bool:
        bench.environ["token"] = value
        done = bench.build(text, {}, "--secret=id=token,env=token", *flags)
        assert value not in done.err
        return done.steps[0].cached

    assert [cached("hunter2"), cached("hunter3")] == [False, True]
    keyed = [cached(value, "--key-secrets") for value in ("hunter2", "hunter2", "hunter3", "hunter3", "hunter2")]
    assert keyed == [False, True, False, True, True]
    assert cached("hunter4")
    assert not cached("hunter4", "--key-secrets")
    assert "kept secret" in bench.pybuild("cache", "why").out
    assert (bench.root / "own.key").stat().st_mode & 0o777 == 0o600
    assert not [path for path in bench.root.rglob("*") if path.is_file() and b"hunter" in path.read_bytes()]


def test_a_rebuilt_step_of_equal_bytes_stops_the_avalanche(bench: Bench) -> None:
    text = "FROM scratch AS one\nCOPY a b /in/\nFROM scratch\nCOPY --from=one /in/a /a\nCOPY a /last\n"
    bench.build(text, {"a": "a", "b": "b"})
    done = bench.build(text, {"b": "B"})
    assert [step.cached for step in done.steps] == [False, True, True]


RUN = "FROM base\nARG ONE\nENV E=e\nWORKDIR /w\nRUN echo hi\n"
RUN_COUNTS = {
    "the command": (RUN.replace("hi", "ho"),),
    "an ENV": (RUN.replace("E=e", "E=f"),),
    "an ARG": (RUN, "--build-arg=ONE=2"),
    "the user": (RUN.replace("RUN", "USER 1000\nRUN"),),
    "the folder": (RUN.replace("/w", "/v"),),
    "the shell": (RUN.replace("RUN", 'SHELL ["/bin/sh","-e","-c"]\nRUN'),),
    "the network": (RUN, "--network=none"),
    "a host's name": (RUN, "--add-host=other:10.0.0.1"),
    "/dev/shm": (RUN, "--shm-size=1m"),
    "a limit": (RUN, "--ulimit=nofile=64"),
    "a mount": (RUN.replace("RUN", "RUN --mount=type=tmpfs,target=/t"),),
    "a proxy that an ARG declares": (RUN.replace("RUN", "ARG http_proxy\nRUN"), "--build-arg=http_proxy=http://p/"),
}
RUN_IGNORED = {
    "a proxy": (RUN, "--build-arg=HTTP_PROXY=http://p/", "--build-arg=no_proxy=x"),
    "a host's address": (RUN, "--add-host=near:10.0.0.2"),
    "an output": (RUN, "-o", "type=cacheonly"),
    "another name": (RUN, "-t", "more:1"),
    "a label of the command line": (RUN, "--label=a=b"),
    "a LABEL": (RUN.replace("RUN", "LABEL a=b\nRUN"),),
    "CMD, EXPOSE, STOPSIGNAL": (RUN.replace("RUN", "CMD x\nEXPOSE 1\nSTOPSIGNAL 9\nRUN"),),
    "comments and blanks": (RUN.replace("RUN", "# why\nRUN  "),),
    "a secret that is not mounted": (RUN, "--secret=id=x,env=HOME"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A store in which RUN has been done once."""
    needs_run()
    bench = Bench(tmp_path_factory.mktemp("keys"), {"HOME": "/root"})
    bench.build(RUN, {}, "--add-host=near:10.0.0.1")
    return bench


@pytest.mark.parametrize("what", RUN_COUNTS)
def test_what_counts_of_a_run(built: Bench, what: str) -> None:
    text, *flags = RUN_COUNTS[what]
    assert not built.build(text, {}, "--add-host=near:10.0.0.1", *flags).steps[-1].cached


@pytest.mark.parametrize("what", RUN_IGNORED)
def test_what_does_not_count_of_a_run(built: Bench, what: str) -> None:
    text, *flags = RUN_IGNORED[what]
    hosts = [] if any("near" in flag for flag in flags) else ["--add-host=near:10.0.0.1"]
    assert built.build(text, {}, *hosts, *flags).steps[-1].cached


# ---------------------------------------------------------------- the same step in two builds


def test_two_builds_at_once_do_a_step_once(bench: Bench) -> None:
    needs_run()
    words = bench.words("FROM base\nRUN echo done $RANDOM && sleep 1 && cat /proc/uptime >/f\n", {})
    builds = [bench.start(*words) for _ in range(3)]
    events = [[json.loads(line) for line in build.communicate(timeout=60)[1].splitlines()] for build in builds]
    assert [build.returncode for build in builds] == [0] * 3
    ended = [event for each in events for event in each if event["event"] == "step-finished"]
    assert sorted(event["cached"] for event in ended) == [False, True, True]
    assert len({each[-1]["image"] for each in events}) == 1
    told = "".join(event["text"] for each in events for event in each if event["event"] == "step-output")
    assert told.count("waiting for its result") == 2
    assert not [name for name in os.listdir(bench.root / "tmp") if name.startswith("step-")]


@pytest.mark.slow
def test_twenty_builds_at_once_do_each_step_once(bench: Bench) -> None:
    """Four Dockerfiles that have a stage in common, five builds of each, all on a store that none has used yet."""
    needs_run()
    common = "FROM base AS common\nRUN cat /proc/uptime >/common\nCOPY a /a\n"
    builds = []
    for number in range(20):
        own = bench.folder / f"context{number}"
        last = f"FROM common\nRUN cat /proc/uptime >/own{number % 4}\nCOPY --from=common /common /copied\n"
        write(own, {"Dockerfile": common + last, "a": "1"})
        builds.append(
            bench.start(
                "build", "--progress=rawjson", f"--build-context=base={busybox()}", "-t", f"app{number}", str(own)
            )
        )
    events = []
    for build in builds:
        err = build.communicate(timeout=240)[1].decode()
        assert build.returncode == 0, err
        events.append([json.loads(line) for line in err.splitlines()])
    done = [event for each in events for event in each if event["event"] == "step-finished" and not event["cached"]]
    # Two of the common stage, and of each of the four its own RUN and, on top of that, its own COPY.
    assert len(done) == 2 + 4 * 2
    assert len({each[-1]["image"] for each in events}) == 4
    # Nobody has waited in silence: who waited for a step has said so.
    waited = [event for each in events for event in each if "waiting for its result" in event.get("text", "")]
    late = sum(bool(event["reason"]) for each in events for event in each if event["event"] == "step-finished")
    assert late == len(done)
    assert len(waited) <= 20 * 4
    assert "whole" in bench.pybuild("fsck").out


def test_the_step_of_a_killed_build_is_free(bench: Bench) -> None:
    needs_run()
    text = "FROM base\nRUN --mount=type=cache,target=/c test -e /c/f || { touch /c/f; echo begun; sleep 60; }\n"
    words = bench.words(text, {})
    first = bench.start(*words)
    assert first.stderr is not None
    while b'"begun' not in first.stderr.readline():
        pass
    second = bench.start(*words)
    assert second.stderr is not None
    while b"waiting for its result" not in (line := second.stderr.readline()):
        assert line
    first.kill()
    first.wait()
    assert second.wait(timeout=30) == 0


def test_a_step_that_fails_is_tried_by_who_waited(bench: Bench) -> None:
    needs_run()
    text = "FROM base\nRUN --mount=type=cache,target=/c test -e /c/f || { touch /c/f; sleep 1; false; }\n"
    words = bench.words(text, {})
    builds = [bench.start(*words) for _ in range(2)]
    for build in builds:
        build.communicate(timeout=60)
    assert sorted(build.returncode for build in builds) == [0, 1]


# ---------------------------------------------------------------- the disk


def random_bytes(size: int) -> bytes:
    return Random(os.urandom(8)).randbytes(size)


def disk(root: Path) -> int:
    """The blocks of all below a store's folder but the database, each inode once."""
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for path in (folder, *(os.path.join(folder, n) for n in names if not n.startswith("pybuild.db"))):
            status = os.lstat(path)
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def test_du_says_what_the_disk_says_and_prune_leaves_images_alone(bench: Bench) -> None:
    needs_run()
    text = "FROM base AS one\nRUN --mount=type=cache,id=pip,target=/c echo hi >/c/f; echo 1 >/1; echo 2 >/2\n"
    text += "FROM base\nCOPY --from=one /1 /1\nCOPY a /a\n"
    bench.build(text, {"a": "1"})
    bench.build(text, {"a": "2"})
    before = bench.image()
    lines = [json.loads(line) for line in bench.pybuild("du", "--format=json").out.splitlines()]
    # While it is open, the database has a log and a file of shared memory beside it.
    assert sum(line["size"] for line in lines if line["kind"] != "database") == disk(bench.root)
    assert {"image", "step", "snapshot", "mount", "database"} <= {line["kind"] for line in lines}
    table = bench.pybuild("du").out
    assert table.startswith("TYPE")
    assert "TYPE" in bench.pybuild("du", "-v").out
    assert "no terminal" in bench.pybuild("cache", "prune", code=2).err
    out = bench.pybuild("cache", "prune", "-y").out
    assert "snapshot: " in out
    assert "Total reclaimed space: " in out
    lines = [json.loads(line) for line in bench.pybuild("du", "--format=json").out.splitlines()]
    assert not {"step", "snapshot", "mount", "listing"} & {line["kind"] for line in lines}
    assert bench.image().files == before.files
    assert "whole" in bench.pybuild("fsck").out
    done = bench.build(text, {"a": "2"})
    assert [step.cached for step in done.steps] == [False, True, True]  # the layers of the last are the image's
    assert done.image == json.loads(bench.pybuild("image", "inspect", "app").out)[0]["Id"]


def test_du_says_what_du_says(bench: Bench) -> None:
    """With the very program, while the database is open with its log and shared memory beside it."""
    program = shutil.which("du")
    if program is None:
        pytest.skip("needs du(1)")
    needs_run()
    text = "FROM base AS one\nRUN --mount=type=cache,id=pip,target=/c echo >/c/f; echo 1 >/1; ln /1 /2\n"
    bench.build(text + "FROM base\nCOPY --from=one /1 /1\nCOPY a /a\n", {"a": "1"})
    with Store.open(bench.root) as store:
        items = measure(store)
        total = subprocess.run([program, "-s", "--block-size=1", bench.root], capture_output=True, check=True).stdout
    assert sum(item.size for item in items) == int(total.split()[0])


def test_a_build_keeps_the_cache_within_its_budget(bench: Bench) -> None:
    text = "FROM scratch AS one\nCOPY a b /\nFROM scratch\nCOPY --from=one /a /a\n"
    bench.build(text, {"a": "1", "b": random_bytes(200_000)})
    write(bench.context, {"a": "2", "b": random_bytes(200_000)})
    blobs = bench.root / "blobs/sha256"

    def size() -> int:
        return sum(entry.stat().st_size for entry in os.scandir(blobs))

    done = bench.pybuild("build", "--progress=plain", "--cache-budget=300kB", "-t", "app", str(bench.context))
    assert "the cache was over its budget: " in done.err
    assert size() < 300_000
    assert "whole" in bench.pybuild("fsck").out
    # A rebuild out of the cache looks at nothing.
    bench.environ["PYBUILD_CACHE_BUDGET"] = "1"
    before = size()
    assert "over its budget" not in bench.pybuild("build", "--progress=plain", str(bench.context)).err
    assert size() == before
    bench.environ["PYBUILD_CACHE_BUDGET"] = "much"
    assert "cache-budget" in bench.pybuild("build", str(bench.context), code=2).err


def test_the_history_of_an_image_outlives_the_cache(bench: Bench) -> None:
    text = "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one /a /b\nENV A=1\nCOPY d /d\n"
    bench.build(text, FILES)
    before = bench.pybuild("history", "--no-trunc", "-q", "app").out.split()
    assert len(set(before) - {"<missing>"}) == 3
    bench.pybuild("cache", "prune", "-y")
    assert bench.pybuild("history", "--no-trunc", "-q", "app").out.split() == before
    assert len(bench.listed("-a")) == 3  # the other stage's is gone
    # With the image goes all that only it needs.
    bench.build(text)
    bench.pybuild("rmi", "app")
    assert bench.listed("-a") == []
    assert os.listdir(bench.root / "blobs/sha256") == os.listdir(bench.root / "listings") == []


def test_prune_by_age_size_and_type(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY a /a\n", {"a": "1"}, tag="")
    bench.pybuild("image", "prune", "-f")
    bench.build("FROM scratch AS x\nCOPY a /a\nFROM scratch\nCOPY --from=x /a /b\n", {"a": "2"})
    for words in (["--older-than=7d"], ["--keep=1GB"], ["-f", "type=mount"], ["--filter=type=step", "--older-than=1d"]):
        assert bench.pybuild("cache", "prune", *words).out == "Total reclaimed space: 0B\n"
    for words in (["-f", "type=image"], ["-f", "colour=red"], ["--keep=much"], ["--older-than=1"]):
        bench.pybuild("cache", "prune", *words, code=2)
    bench.pybuild("cache", "prune", "--keep=0")
    assert "whole" in bench.pybuild("fsck").out


def test_cache_mounts_are_listed_and_removed(bench: Bench) -> None:
    needs_run()
    bench.build("FROM base\nRUN --mount=type=cache,id=pip,target=/c --mount=type=cache,target=/d echo >/c/f\n", {})
    assert sorted(bench.pybuild("cache", "mounts", "ls", "-q").out.split()) == ["/d", "pip"]
    assert "LAST USED" in bench.pybuild("cache", "mounts", "ls").out
    assert "no cache mount has the id pop" in bench.pybuild("cache", "mounts", "rm", "pop", "pip", code=1).err
    assert bench.pybuild("cache", "mounts", "ls", "-q").out == "/d\n"
    bench.pybuild("cache", "mounts", "rm", "--all")
    assert bench.pybuild("cache", "mounts", "ls", "-q").out == ""
    bench.pybuild("cache", "mounts", "rm", code=2)


def test_a_damaged_store_is_told_repaired_and_built_anew(bench: Bench) -> None:
    bench.build("FROM scratch\nCOPY a /a\n", {"a": "1"})
    (layer,) = bench.image().layers
    layer.write_bytes(b"x" * layer.stat().st_size)
    done = bench.pybuild("fsck", code=3)
    assert "the image app:latest: its blob" in done.out
    assert "pybuild fsck --repair removes it; then build" in done.out
    assert bench.pybuild("fsck", "--repair", "-q", code=3).out == ""
    bench.pybuild("fsck", code=3)
    assert not bench.build().steps[0].cached
    assert "whole" in bench.pybuild("fsck").out


def test_builds_prunes_and_kills_side_by_side_leave_a_whole_store(bench: Bench) -> None:
    needs_run()
    random = Random(5)
    text = "FROM base AS one\nARG A=0\nCOPY a$A /a\nRUN cat /a >/b\n"
    text += "FROM base\nARG B=0\nCOPY --from=one /b /b\nCOPY a$B /c\nRUN echo >/d\n"
    first = bench.build(text, {"a0": "0", "a1": "1", "a2": "2"}, tag="kept").image
    running = []
    for number in range(16):
        words = [["-t", f"app{number % 3}"], ["--no-cache"]][number % 4 == 0]
        words = [*words, f"--build-arg=A={random.randrange(3)}", f"--build-arg=B={random.randrange(3)}"]
        build, *rest = bench.words(None)
        running.append(bench.start(build, *words, *rest))
        if number % 3 == 1:
            running.append(
                bench.start("cache", "prune", *random.choice([["-y"], ["--keep=10kB"], ["-f", "type=step"]]))
            )
        if number % 5 == 2:
            running.append(bench.start("image", "prune", "-f"))
        if number % 7 == 3:
            time.sleep(random.random())
            running[-1].kill()
        while sum(process.poll() is None for process in running) > 3:
            time.sleep(0.02)
    for process in running:
        err = process.communicate(timeout=60)[1]
        assert process.returncode in {0, -9}, err.decode()
    assert "whole" in bench.pybuild("fsck").out
    assert bench.names()["kept:latest"] == first
    assert bench.image("kept").text("/b") == "0"
    bench.pybuild("image", "prune", "-f")
    bench.pybuild("cache", "prune", "-y")
    kinds = [json.loads(line)["kind"] for line in bench.pybuild("du", "--format=json").out.splitlines()]
    assert set(kinds) <= {"image", "database", "other"}
    assert "whole" in bench.pybuild("fsck").out


@pytest.mark.parametrize("style", ["tty", "plain", "rawjson", "quiet", "none"])
def test_every_display_knows_of_misses(style: str) -> None:
    stream = io.StringIO()
    display = progress(style, stream)
    display(StepStarted(1, "one", 2, 2, "COPY a /a", 2))
    display(StepMissed(1, ("file a: mode 644 → 755", "file \x1b[2Jb added")))
    display(StepFinished(1, cached=False, seconds=0.1, reason="a: 644 → 755"))
    display.close()
    shown = stream.getvalue()
    assert ("mode 644" in shown) == (style not in {"quiet", "none"})
    assert "\x1b[2J" not in shown

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from builder.cli import run
from builder.cli.build import BUILD, host, output, request_of, secret, size, ssh, style_of, ulimit
from builder.cli.flags import UsageError, read
from builder.cli.surroundings import Surroundings, store_root
from builder.errors import BuildError, CancelledError
from builder.model import BuildResult, ImageResult, OutputSpec, SecretSource, SshSource
from cache.errors import CorruptError, NotFoundError
from cache.oci import Descriptor, Digest, ImageConfig, Platform
from grammar.source import DockerfileError, Source, Span

if TYPE_CHECKING:
    import threading

    from builder.model import BuildRequest

ROOT = Path(__file__).resolve().parents[2]
ID = Digest("sha256:" + "ab" * 32)
RESULT = BuildResult(
    ImageResult(ID, ImageConfig(), (), Descriptor("application/vnd.oci.image.manifest.v1+json", ID, 12)),
    ("docker.io/library/app:1.0",), 3, 1, 0.25,
)  # fmt: skip


@dataclass
class Desk:
    """A command line with streams of its own and an engine that only notes what it was asked."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    asked: list[BuildRequest] = field(default_factory=list)
    outcome: Any = RESULT
    out: str = ""
    err: str = ""

    def __call__(self, *words: str) -> int:
        out, err = io.StringIO(), io.StringIO()
        around = Surroundings({"PYBUILD_ROOT": str(self.root), **self.environ}, io.BytesIO(self.stdin), out, err)
        code = run(list(words), around)
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def build(self, request: BuildRequest, *, stop: threading.Event, **_rooms: object) -> BuildResult:
        self.asked.append(request)
        if callable(self.outcome):
            self.outcome(stop)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return RESULT


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk(tmp_path / "store")
    engine, isolation = ModuleType("builder.build"), ModuleType("builder.isolation")
    engine.build = made.build  # type: ignore[attr-defined]
    isolation.choose = lambda forced="auto": SimpleNamespace(tier=forced, reason="")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "builder.build", engine)
    monkeypatch.setitem(sys.modules, "builder.isolation", isolation)
    return made


def request(*words: str, **environ: str) -> BuildRequest:
    return request_of(read(BUILD, [*words, "."]), environ)


def refused(*words: str, **environ: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        request(*words, **environ)
    return caught.value


# ---------------------------------------------------------------- flags to request


def test_everything_of_a_command_line_reaches_the_request(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    made = request(
        "-t", "app:1.0", "-t", "localhost:5000/x", "-f", "D", "--target", "base", "--build-arg", "A=1=2",
        "--build-context", "debian=oci-layout:///x", "--label", "a=b", "--label", "c", "--no-cache",
        "--no-cache-filter", "one,two", "--platform", "linux/aarch64", "-o", "type=oci,dest=F",
        "--secret", f"id=s,src={tmp_path / 's'}", "--add-host", "h:10.0.0.1", "--network", "none", "--shm-size", "1m",
        "--ulimit", "nofile=1:2", "--allow", "network.host,security.insecure", "--ignorefile", "I",
    )  # fmt: skip
    assert made.tags == ("app:1.0", "localhost:5000/x")
    assert (made.file, made.target, made.ignore_file, made.context) == ("D", "base", "I", ".")
    assert made.build_args == (("A", "1=2"),)
    assert made.build_contexts == (("debian", "oci-layout:///x"),)
    assert made.labels == (("a", "b"), ("c", ""))
    assert made.no_cache
    assert made.no_cache_filter == {"one", "two"}
    assert made.platform == Platform("linux", "arm64")
    assert made.outputs == (OutputSpec("oci", "F"),)
    assert made.secrets == (SecretSource("s", path=tmp_path / "s"),)
    assert made.run.hosts == (("h", "10.0.0.1"),)
    assert (made.run.network, made.run.shm_size, made.run.ulimits) == ("none", 1 << 20, (("nofile", 1, 2),))
    assert made.run.allow == {"network.host", "security.insecure"}


def test_a_bare_build_arg_takes_the_environments_value_or_none() -> None:
    assert request("--build-arg", "A", "--build-arg", "B", A="here").build_args == (("A", "here"),)


def test_source_date_epoch_comes_along_unless_given() -> None:
    assert request(SOURCE_DATE_EPOCH="7").build_args == (("SOURCE_DATE_EPOCH", "7"),)
    assert request("--build-arg", "SOURCE_DATE_EPOCH=8", SOURCE_DATE_EPOCH="7").build_args == (
        ("SOURCE_DATE_EPOCH", "8"),
    )


@pytest.mark.parametrize(
    "text, spec",
    [
        ("out", OutputSpec("local", "out")),
        ("-", OutputSpec("tar", "-")),
        ("type=tar", OutputSpec("tar", "-")),
        ("type=docker,dest=F,name=a", OutputSpec("docker", "F", (("name", "a"),))),
        ('type=oci,"dest=a,b",tar=false', OutputSpec("oci", "a,b", (("tar", "false"),))),
    ],
)
def test_outputs(text: str, spec: OutputSpec) -> None:
    assert output(text) == spec


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("x")
    env = {"TOKEN": "t", "other": "o"}
    assert secret("id=TOKEN", env) == SecretSource("TOKEN", value=b"t")
    assert secret("id=a,env=TOKEN", env) == SecretSource("a", value=b"t")
    assert secret("type=env,id=a,src=TOKEN", env) == SecretSource("a", value=b"t")
    assert secret(f"src={file}", env) == SecretSource("key", path=file)
    assert "hush" not in repr(secret("id=S", {"S": "hush"}))
    for wrong in ("id=none", "id=a,env=NONE", "id=a,src=/none", "id=a,sorce=x", "type=x,id=a", "", "id=a,src=x,env=y"):
        with pytest.raises(UsageError):
            secret(wrong, env)


def test_ssh(tmp_path: Path) -> None:
    key = tmp_path / "id"
    key.write_text("x")
    assert ssh("default", {"SSH_AUTH_SOCK": "/dev/null"}) == SshSource("default", socket=Path("/dev/null"))
    assert ssh(f"a={key},{key}", {}) == SshSource("a", keys=(key, key))
    with pytest.raises(UsageError, match="SSH_AUTH_SOCK"):
        ssh("default", {})
    with pytest.raises(UsageError, match="there is no"):
        ssh("a=/nowhere", {})


def test_hosts_sizes_and_limits() -> None:
    assert host("a:::1") == ("a", "::1")
    assert host("a=[fe80::1]") == ("a", "fe80::1")
    for wrong in ("a", "a:b", ":1.2.3.4", "a:host-gateway"):
        with pytest.raises(UsageError):
            host(wrong)
    assert [size(text, "x") for text in ("64m", "1G", "2gb", "10", "1.5k", "1gib")] == [
        64 << 20, 1 << 30, 2 << 30, 10, 1536, 1 << 30,
    ]  # fmt: skip
    for wrong in ("", "m", "-1", "64x", "0"):
        with pytest.raises(UsageError):
            size(wrong, "x")
    assert ulimit("core=0") == ("core", 0, 0)
    assert ulimit("memlock=-1") == ("memlock", -1, -1)
    for wrong in ("nofile", "nofile=", "nofile=2:1", "nofiles=1", "nofile=-1:5"):
        with pytest.raises(UsageError):
            ulimit(wrong)


@pytest.mark.parametrize(
    "words, message",
    [
        (["-t", "App"], "lower case"),
        (["-t", "a@sha256:" + "0" * 64], "digest"),
        (["--platform", "linux/amd64,nonsense"], "nonsense"),
        (["--platform", "nonsense"], "--platform"),
        (["--network", "bridge"], "--network 'bridge' is not supported"),
        (["--network", "hots"], "did you mean host?"),
        (["--allow", "all"], "--allow 'all' is not supported"),
        (["--build-arg", "=x"], "no name"),
        (["--build-context", "x"], "NAME=SOURCE"),
        (["-o", "dest=x"], "has no type"),
    ],
)
def test_values_that_are_wrong(words: list[str], message: str) -> None:
    error = refused(*words)
    assert message in error.message + error.hint


def test_standard_input_can_not_be_two_things() -> None:
    with pytest.raises(UsageError, match="standard input"):
        request_of(read(BUILD, ["-f", "-", "-"]), {})


def test_the_style_of_progress() -> None:
    def style(*words: str, **environ: str) -> str:
        return style_of(read(BUILD, [*words, "."]), environ)

    assert style() == "auto"
    assert style(BUILDKIT_PROGRESS="plain") == "plain"
    assert style("--progress=tty", BUILDKIT_PROGRESS="plain") == "tty"
    assert style("-q", "--progress=plain") == "quiet"
    with pytest.raises(UsageError):
        style("--progress=plan")


@pytest.mark.parametrize("flag", [flag for flag in BUILD.flags if flag.unsupported], ids=lambda flag: flag.name)
def test_what_can_not_be_had_is_an_error(flag: Any, desk: Desk) -> None:
    assert desk("build", f"--{flag.name}={'x' if flag.value else 'true'}", ".") == 2
    assert f"--{flag.name} is not supported\nhint: " in desk.err
    assert not desk.asked


# ---------------------------------------------------------------- the command


def test_build_may_be_left_out(desk: Desk) -> None:
    assert desk("-t", "app:1.0", ".") == 0
    assert desk("build", "-t", "app:1.0", ".") == 0
    assert desk.asked[0] == desk.asked[1]
    assert desk.out == ""


def test_quiet_prints_the_id_alone(desk: Desk) -> None:
    assert desk("-q", ".") == 0
    assert (desk.out, desk.err) == (f"{ID}\n", "")


def test_result_files(desk: Desk, tmp_path: Path) -> None:
    iid, metadata = tmp_path / "iid", tmp_path / "meta"
    assert desk("--iidfile", str(iid), "--metadata-file", str(metadata), ".") == 0
    assert iid.read_text() == ID
    document = json.loads(metadata.read_text())
    assert document["containerimage.config.digest"] == ID
    assert document["image.name"] == "docker.io/library/app:1.0"
    assert document["containerimage.descriptor"]["size"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iid", "meta", "store"]


def test_a_failed_build_leaves_no_result_of_an_earlier_one(desk: Desk, tmp_path: Path) -> None:
    iid = tmp_path / "iid"
    iid.write_text("old")
    desk.outcome = BuildError("no")
    assert desk("--iidfile", str(iid), ".") == 1
    assert not iid.exists()


@pytest.mark.parametrize(
    "error, code, text",
    [
        (BuildError("boom", hint="less"), 1, "error: boom\nhint: less\n"),
        (DockerfileError("bad", Span(1, 1, 1, 2), Source("D", "X")), 1, " --> D:1:1"),
        (NotFoundError("no image"), 1, "error: no image"),
        (CorruptError("damaged"), 3, "error: damaged"),
        (FileNotFoundError(2, "No such file or directory", "f"), 1, "error: f: No such file"),
        (CancelledError("stopped"), 130, "error: stopped"),
        (RuntimeError("oops"), 70, "internal error: RuntimeError: oops\n"),
    ],
)
def test_exit_codes(desk: Desk, error: Exception, code: int, text: str) -> None:
    desk.outcome = error
    assert desk(".") == code
    assert text in desk.err
    assert "Traceback" not in desk.err


def test_a_fault_of_our_own_keeps_its_traceback_in_a_file(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    desk.outcome = RuntimeError("oops")
    assert desk(".") == 70
    (file,) = tmp_path.glob("pybuild-*.txt")
    assert "RuntimeError: oops" in file.read_text()
    assert str(file) in desk.err
    desk.environ["PYBUILD_DEBUG"] = "1"
    assert desk(".") == 70
    assert "Traceback" in desk.err


def test_an_unusable_store_is_another_exit_code(desk: Desk) -> None:
    desk.root.write_text("a file")
    assert desk(".") == 3
    assert "can not use" in desk.err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_stop_the_build(desk: Desk, number: int, code: int) -> None:
    def interrupted(stop: threading.Event) -> None:
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        raise CancelledError("the build was stopped")

    before = signal.getsignal(number)
    desk.outcome = interrupted
    assert desk(".") == code
    assert desk.err == f"stopped by {signal.Signals(number).name}\n"
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once() -> None:
    script = (
        "import os, signal, threading, time\n"
        "from builder.cli.stopping import Stop\n"
        "with Stop(threading.Event()):\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=20, check=False)
    assert done.returncode == -signal.SIGINT


def test_the_program_says_when_its_reader_went_away() -> None:
    script = f"exec 3>&1; {{ {sys.executable} -m builder --help; echo $? >&3; }} | true"
    codes = set()
    for _ in range(5):
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
        assert done.stderr == ""
        codes.add(done.stdout.strip())
    assert codes <= {"0", "141"}


def test_closed_streams_are_no_fault() -> None:
    script = f"{sys.executable} -m builder --help <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=ROOT, timeout=20, check=False).returncode == 0


# ---------------------------------------------------------------- where the store is


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert store_root("x", {"PYBUILD_ROOT": "/y"}) == Path.cwd() / "x"
    assert store_root("", {"PYBUILD_ROOT": "/y"}) == Path("/y")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store_root("", dict(os.environ)) == tmp_path / "pybuild"


def test_root_does_not_write_into_the_home_of_who_called_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("builder.cli.surroundings._owner", lambda _home: 1000)
    expected = Path(pwd.getpwuid(0).pw_dir) / ".local" / "share" / "pybuild"
    assert store_root("", {"HOME": str(tmp_path)}) == expected


def test_rm_is_what_happens_anyway() -> None:
    assert request_of(read(BUILD, ["--rm", "--force-rm", "."]), {}) == request_of(read(BUILD, ["."]), {})
    with pytest.raises(UsageError, match="--rm=false is not supported"):
        request_of(read(BUILD, ["--rm=false", "."]), {})


def test_several_platforms() -> None:
    assert request("--platform", "linux/arm64").platforms == ()
    several = request("--platform", "linux/arm64,linux/arm/v7", "--platform=linux/arm64/v8", "--platform=linux/amd64")
    assert [str(each) for each in several.platforms] == ["linux/arm64", "linux/arm/v7", "linux/amd64"]
    assert several.platform == several.platforms[0]
    assert request().platform is None

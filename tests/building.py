"""Builds for tests: small contexts, the command line in this process or in one of its own, images read back.

Images are read by `tests.conformance.compare` and not by pybuild's own code, so that what pybuild believes of them does
not decide what a test sees.
"""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings
from tests.conformance import compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from builder.isolation import Isolation

ROOT = Path(__file__).resolve().parents[1]

_APPLETS = (
    "sh", "cat", "chmod", "chown", "cp", "echo", "find", "grep", "id", "kill", "ln", "ls", "mkdir", "mkfifo", "mv",
    "ps", "readlink", "rm", "rmdir", "sed", "setsid", "sleep", "sort", "stat", "test", "touch", "tr", "true",
    "truncate", "wc",
)  # fmt: skip

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nstaff:x:50:app,other\naudio:x:29:app\nextra:x:60:root\n"


@functools.cache
def privileged() -> Isolation | None:
    """The tier of this very process when it is root that may mount; None where builds need a process of their own."""
    from builder import isolation
    from builder.errors import UnsupportedError

    with warnings.catch_warnings():
        # Trying forks, which Python >= 3.12 warns of where there are threads, such as those of xdist.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return isolation.choose("privileged")
        except UnsupportedError:
            return None


@functools.cache
def tier() -> str:
    """The tier that a build gets here."""
    if privileged() is not None:
        return "privileged"
    words = command("info", "--format=json")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["tier"])


@functools.cache
def why_no_run() -> str:
    """Why no RUN can be tested here; empty where it can."""
    program = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "")
    if not program:
        return "needs busybox-static"
    if b"/ld-" in Path(program).read_bytes()[:4096]:
        return "needs a busybox that is linked statically (busybox-static)"
    if tier() == "hardened":
        return "needs root that may mount, or user namespaces"
    return ""


def needs_run() -> None:
    """Skip the test where no RUN works."""
    reason = why_no_run()
    if reason:
        pytest.skip(reason)


def needs_ids() -> None:
    """Skip the test where a RUN can only be root."""
    needs_run()
    if tier() == "rootless-single":
        pytest.skip("needs subordinate ids (newuidmap and /etc/subuid)")


def command(*words: str) -> list[str]:
    """The command line of `pybuild WORDS` in a process of its own."""
    return [sys.executable, "-m", "builder", *words]


def environment(**more: str) -> dict[str, str]:
    """The environment of such a process: this checkout's code."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@functools.cache
def busybox() -> Path:
    """A root file system of busybox, some of its applets, and users: the context `base` of every test's build."""
    needs_run()
    kept = tempfile.TemporaryDirectory(prefix="pybuild-busybox-")
    _KEPT.append(kept)
    root = Path(kept.name, "base")
    write(root, {"etc/passwd": PASSWD, "etc/group": GROUP})
    (root / "bin").mkdir()
    program = next(path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path))
    (root / "bin/busybox").write_bytes(Path(program).read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "tmp").mkdir()
    return root


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def write(folder: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Files below a folder; None removes one, a name that ends in a slash is a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name
        if data is None:
            path.unlink()
            continue
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar in PAX format."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **facts: Any) -> tarfile.TarInfo:
    """One member of a tar, with what it differs in from the default."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


@dataclass(frozen=True)
class Step:
    """A step as a build's events tell it."""

    stage: str
    title: str
    cached: bool
    reason: str


@dataclass(frozen=True)
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of --progress=rawjson."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith('{"time"')]

    @property
    def steps(self) -> list[Step]:
        """The steps that were finished, in the order of their beginning."""
        begun = {event["step"]: event for event in self.events if event["event"] == "step-started"}
        ended = {event["step"]: event for event in self.events if event["event"] == "step-finished"}
        return [
            Step(event["stage"], event["title"], ended[step]["cached"], ended[step]["reason"])
            for step, event in sorted(begun.items())
            if step in ended
        ]

    @property
    def cached(self) -> dict[str, bool]:
        """By each step's title, whether it was taken from the cache."""
        return {step.title: step.cached for step in self.steps}

    @property
    def output(self) -> str:
        """What the RUNs wrote."""
        return "".join(event["text"] for event in self.events if event["event"] == "step-output")

    @property
    def image(self) -> str:
        """The id of the image that was built."""
        return str(next(event["image"] for event in self.events if event["event"] == "build-finished"))


@dataclass(frozen=True)
class Image:
    """An image read back from a layout. layers: paths of blobs. files: the flattened tree, by absolute path."""

    config: dict[str, Any]
    manifest: dict[str, Any]
    layers: tuple[Path, ...]

    @functools.cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Every path of the image and what `compare.listing` tells of it."""
        root = compare.Node("dir", implied=True)
        for layer in self.layers:
            with layer.open("rb") as packed, compare.unpacked(packed) as stream:
                compare.apply_layer(root, stream)
        return compare.listing(root)

    def text(self, path: str) -> str:
        """The content of a small text file."""
        return str(self.files[path]["text"])

    def members(self, layer: int = -1) -> list[tarfile.TarInfo]:
        """The headers of one layer's tar."""
        with tarfile.open(self.layers[layer], errors="surrogateescape") as tar:
            return tar.getmembers()

    def names(self, layer: int = -1) -> list[str]:
        """The names in one layer's tar."""
        return [info.name for info in self.members(layer)]

    @property
    def history(self) -> list[tuple[str, bool]]:
        """(created_by, empty_layer) of each line."""
        return [(line.get("created_by", ""), line.get("empty_layer", False)) for line in self.config["history"]]

    @property
    def diff_ids(self) -> list[str]:
        """Of the config."""
        return list(self.config["rootfs"]["diff_ids"])


def image_of(layout: Path, name: str = "") -> Image:
    """The image of this name in an OCI layout; without a name, the only one there is."""
    found = [
        descriptor
        for descriptor in json.loads((layout / "index.json").read_text())["manifests"]
        if not name or descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name") == name
    ]
    assert len(found) == 1, f"{name}: {len(found)} of them in {layout}"

    def blob(descriptor: dict[str, Any]) -> Path:
        return layout / "blobs" / str(descriptor["digest"]).replace(":", "/")

    manifest = json.loads(blob(found[0]).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    return Image(config, manifest, tuple(blob(layer) for layer in manifest["layers"]))


@dataclass
class Bench:
    """One store, one context folder, and the command line. Nothing outside `folder` is written."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The store."""
        return self.folder / "store"

    @property
    def context(self) -> Path:
        """The main build context."""
        return self.folder / "context"

    def pybuild(self, *words: str, code: int | None = 0, stdin: bytes = b"", alone: bool = False) -> Done:
        """Do a command line; `code` is what it has to exit with, None for anything.

        In this process where it is root that may mount, which spares starting one; an ordinary user's would enter a
        user namespace for good. alone: in a process of its own anyway.
        """
        isolation = None if alone else privileged()
        if isolation is None:
            done = self.alone(*words, stdin=stdin)
        else:
            out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
            around = Surroundings({"PYBUILD_ROOT": str(self.root), **self.environ}, io.BytesIO(stdin), out, err)
            with patch("builder.isolation.choose", lambda forced="auto": isolation), redirect_stdout(out):
                ended = run(list(words), around)
            out.flush()
            done = Done(ended, out.buffer.getvalue().decode("utf-8", "replace"), err.getvalue())
        assert code is None or done.code == code, f"exit code {done.code}\n{done.err}\n{done.out}"
        assert "Traceback" not in done.err, done.err
        return done

    def alone(self, *words: str, stdin: bytes = b"", timeout: float = 60) -> Done:
        """Do a command line in a process of its own."""
        done = subprocess.run(
            command(*words), env=self.environment, cwd=self.folder, input=stdin, capture_output=True, check=False,
            timeout=timeout,
        )  # fmt: skip
        return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    @property
    def environment(self) -> dict[str, str]:
        """Of a process of its own."""
        return environment(PYBUILD_ROOT=str(self.root), **self.environ)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Begin a command line in a process of its own; `close` ends it when the test did not."""
        process = subprocess.Popen(
            command(*words), env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, **more,
        )  # fmt: skip
        self.running.append(process)
        return process

    def close(self) -> None:
        """Kill what `start` began and a failing test left."""
        for process in self.running:
            process.kill()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()

    def words(self, dockerfile: str | None, files: Mapping[str, str | bytes | None] | None = None) -> list[str]:
        """The words of a build of this Dockerfile and these files, which are written for it.

        None: those that are there. The context `base` is busybox's where the Dockerfile speaks of it.
        """
        if dockerfile is not None:
            write(self.context, {"Dockerfile": dockerfile})
        write(self.context, files or {})
        text = (self.context / "Dockerfile").read_text()
        named = [f"--build-context=base={busybox()}"] if "base" in text else []
        return ["build", "--progress=rawjson", *named, str(self.context)]

    def build(
        self,
        dockerfile: str | None = None,
        files: Mapping[str, str | bytes | None] | None = None,
        *flags: str,
        tag: str = "app",
        code: int | None = 0,
    ) -> Done:
        """Build, as `words` says, with more flags, and call the image `tag`."""
        first, *rest = self.words(dockerfile, files)
        return self.pybuild(first, *flags, *(["-t", tag] if tag else []), *rest, code=code)

    def image(self, name: str = "app") -> Image:
        """The image of this name."""
        return image_of(self.root, name if ":" in name else f"{name}:latest")

    def made(self, dockerfile: str, files: Mapping[str, str | bytes | None] | None = None, *flags: str) -> Image:
        """The image that a build gives."""
        self.build(dockerfile, files, *flags)
        return self.image()

    def names(self) -> dict[str, str]:
        """The names of the store and the ids that they stand for, in full."""
        done = self.pybuild("images", "--no-trunc", "--format", "json")
        lines = [json.loads(line) for line in done.out.splitlines()]
        return {f"{line['Repository']}:{line['Tag']}": line["ID"] for line in lines if line["Repository"] != "<none>"}

    def listed(self, *flags: str) -> list[str]:
        """The ids that `images` lists."""
        return self.pybuild("images", "-q", "--no-trunc", *flags).out.split()


def processes(marker: str) -> list[int]:
    """The processes of this machine whose command line holds `marker`, zombies not counted."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in words:
            found.append(int(entry.name))
    return found


def mounts_below(folder: Path) -> list[str]:
    """The mounts of this process's namespace that lie in a folder."""
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    return [line for line in lines if str(folder) in line]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()

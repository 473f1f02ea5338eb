from __future__ import annotations

import contextlib
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from builder.errors import BuildError, CancelledError
from builder.executors import Bind, Tmpfs
from builder.handlers.process import Surroundings, describe
from builder.model import (
    BindMount,
    CacheMount,
    Origin,
    RunOptions,
    RunStep,
    SecretMount,
    SecretSource,
    SshMount,
    TmpfsMount,
)
from cache.entries import BytesContent, Entry, Kind
from cache.snapshots import DirectoryRoot
from grammar.source import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.executors import RunSpec

SPAN = Span(3, 5, 3, 9)
STAGE = Origin(stage=0)
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\nstaff:x:50:app\n"


class Parent:
    """Files of which there are two."""

    def __init__(self, **files: bytes) -> None:
        self._files = {b"etc/" + name.encode(): data for name, data in files.items()}

    def entry(self, path: bytes) -> Entry | None:
        data = self._files.get(path)
        if data is None:
            return None
        return Entry(path, Kind.FILE, 0o644, size=len(data), content=BytesContent(data))

    def resolve(self, path: bytes) -> bytes:
        return path

    def children(self, path: bytes) -> list[Entry]:
        return []

    def links(self, entry: Entry) -> object | None:
        return None

    def digest(self, entry: Entry) -> str:
        return ""


class Desk:
    """Surroundings, and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.located: list[tuple[Origin, str]] = []
        self.seeded: list[tuple[Origin, str]] = []
        self.options = RunOptions()
        self.secrets: dict[str, SecretSource] = {}
        self.agents: dict[str, Path] = {}
        self.broken = False
        self.stop = threading.Event()
        self.stack = contextlib.ExitStack()

    def locate(self, origin: Origin, path: str) -> tuple[Path, str]:
        self.located.append((origin, path))
        if path == "/gone":
            raise FileNotFoundError(path)
        return self.folder / "located", path.strip("/")

    def seed(self, origin: Origin, path: str, folder: Path) -> None:
        self.seeded.append((origin, path))
        (folder / ("half" if self.broken else "seed")).write_text("x")
        if self.broken:
            raise BuildError("no such stage")

    def __call__(self, stack: contextlib.ExitStack | None = None, **step: Any) -> RunSpec:
        around = Surroundings(
            options=self.options, mounts=self.folder / "mounts", locate=self.locate, seed=self.seed,
            secrets=self.secrets, agent=lambda mount: self.agents.get(mount.id), resolv_conf=b"nameserver 10.0.0.1\n",
        )  # fmt: skip
        parent = Parent(passwd=PASSWD, group=GROUP)
        step = {"argv": ("true",), **step}
        return describe(RunStep(**step), DirectoryRoot(self.folder), parent, around, stack or self.stack, self.stop)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    with made.stack:
        yield made


def test_a_plain_step(desk: Desk) -> None:
    spec = desk(argv=("/bin/sh", "-c", "x"), env=("A=b",), cwd="/w", scripts=(("/s", b"#!"),))
    assert spec.argv == ("/bin/sh", "-c", "x")
    assert spec.env == ("A=b", "HOME=/root")
    assert (spec.cwd, spec.uid, spec.gid) == ("/w", 0, 0)
    assert spec.files == (("/s", b"#!", 0o755, 0, 0),)
    assert spec.resolv_conf == b"nameserver 10.0.0.1\n"
    assert not spec.insecure
    assert spec.network == "default"


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("", (0, 0, ()), "/root"),
        ("app", (1000, 100, (50,)), "/home/app"),
        ("app:staff", (1000, 50, ()), "/home/app"),
        ("77:88", (77, 88, ()), "/"),
    ],
)
def test_users(desk: Desk, user: str, ids: tuple[int, int, tuple[int, ...]], home: str) -> None:
    spec = desk(user=user)
    assert (spec.uid, spec.gid) == ids[:2]
    assert set(spec.groups) - {spec.gid} == set(ids[2])
    assert f"HOME={home}" in spec.env


def test_a_home_that_the_image_has_stays(desk: Desk) -> None:
    assert desk(env=("HOME=/mine",)).env == ("HOME=/mine",)


def test_an_unknown_user_is_an_error(desk: Desk) -> None:
    with pytest.raises(BuildError, match="nobody"):
        desk(user="nobody")


def test_options_and_what_the_step_says_itself(desk: Desk) -> None:
    desk.options = RunOptions(
        network="none", hosts=(("db", "10.0.0.2"),), shm_size=5, ulimits=(("nofile", 1, 2),), hostname="h"
    )
    spec = desk()
    assert (spec.network, spec.shm_size, spec.ulimits, spec.hostname) == ("none", 5, (("nofile", 1, 2),), "h")
    lines = spec.hosts.decode().splitlines()
    assert "10.0.0.2\tdb" in lines
    assert "127.0.0.1\tlocalhost" in lines
    assert any(line.split()[-1] == "h" for line in lines)
    assert desk(network="host").network == "host"
    assert desk(security="insecure").insecure


def test_bind_mounts(desk: Desk) -> None:
    spec = desk(mounts=(BindMount("/a", STAGE, "/d/f"), BindMount("/b", STAGE, writable=True)))
    assert spec.binds == (
        Bind(desk.folder / "located", "/a", readonly=True, discard_writes=False, inside="d/f"),
        Bind(desk.folder / "located", "/b", readonly=False, discard_writes=True, inside=""),
    )
    with pytest.raises(BuildError, match="'/gone' not found") as caught:
        desk(mounts=(BindMount("/a", STAGE, "/gone", span=SPAN),))
    assert caught.value.span == SPAN


def test_tmpfs_mounts(desk: Desk) -> None:
    assert desk(mounts=(TmpfsMount("/t", 7),)).tmpfs == (Tmpfs("/t", 7),)


# ---------------------------------------------------------------- secrets and agents


def test_secrets_as_file_and_variable(desk: Desk) -> None:
    (desk.folder / "s").write_bytes(b"file\n")
    desk.secrets = {"s": SecretSource("s", path=desk.folder / "s"), "v": SecretSource("v", value=b"caf\xc3\xa9\xff")}
    spec = desk(
        env=("V=old", "W=1"),
        mounts=(SecretMount("s", "/run/secrets/s", mode=0o440, uid=1, gid=2), SecretMount("v", env="V")),
    )
    assert spec.files == (("/run/secrets/s", b"file\n", 0o440, 1, 2),)
    assert [line for line in spec.env if line.startswith("V=")] == ["V=café\udcff"]
    assert "W=1" in spec.env


def test_secrets_that_are_not_there(desk: Desk) -> None:
    spec = desk(mounts=(SecretMount("s", "/run/secrets/s", env="S"),))
    assert spec.files == ()
    assert not [line for line in spec.env if line.startswith("S=")]
    with pytest.raises(BuildError, match="secret s: not found") as caught:
        desk(mounts=(SecretMount("s", "/x", required=True, span=SPAN),))
    assert caught.value.span == SPAN
    assert "--secret id=s" in caught.value.hint
    desk.secrets = {"s": SecretSource("s", path=desk.folder / "deleted")}
    with pytest.raises(BuildError, match="No such file") as caught:
        desk(mounts=(SecretMount("s", "/x", span=SPAN),))
    assert caught.value.span == SPAN


def test_the_agent_s_socket(desk: Desk) -> None:
    desk.agents = {"default": desk.folder / "agent"}
    spec = desk(mounts=(SshMount("default", "/run/agent"),))
    assert [(bind.source, bind.target) for bind in spec.binds] == [(desk.folder / "agent", "/run/agent")]
    assert "SSH_AUTH_SOCK=/run/agent" in spec.env


def test_an_agent_that_is_not_there(desk: Desk) -> None:
    spec = desk(mounts=(SshMount("default", "/run/agent"),))
    assert spec.binds == ()
    assert not [line for line in spec.env if line.startswith("SSH_AUTH_SOCK")]
    with pytest.raises(BuildError, match="default") as caught:
        desk(mounts=(SshMount("default", "/run/agent", required=True, span=SPAN),))
    assert caught.value.span == SPAN


# ---------------------------------------------------------------- cache mounts


def source_of(spec: RunSpec) -> Path:
    (bind,) = spec.binds
    assert isinstance(bind.source, Path)
    return bind.source


def test_a_cache_mount_is_the_same_folder_again(desk: Desk) -> None:
    first = source_of(desk(mounts=(CacheMount("/c", "id", mode=0o700),)))
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    (first / "kept").write_text("x")
    assert source_of(desk(mounts=(CacheMount("/other", "id"),))) == first
    assert source_of(desk(mounts=(CacheMount("/c", "another"),))) != first
    assert desk(mounts=(CacheMount("/c", "id", readonly=True),)).binds[0].readonly


def test_ids_that_are_no_names_of_files(desk: Desk) -> None:
    found = {
        source_of(desk(mounts=(CacheMount("/c", name),))) for name in ("../../x", "/a/b", "a\udcff", "x" * 5000, "")
    }
    assert len(found) == 5
    for path in found:
        assert desk.folder / "mounts" in path.parents
        assert ".." not in path.parts


def test_a_seed_is_laid_once(desk: Desk) -> None:
    mount = CacheMount("/c", "id", origin=STAGE, source="/d")
    assert (source_of(desk(mounts=(mount,))) / "seed").exists()
    desk(mounts=(mount,))
    assert desk.seeded == [(STAGE, "/d")]


def test_a_seed_that_fails_leaves_no_half_made_mount(desk: Desk) -> None:
    mount = CacheMount("/c", "id", origin=STAGE, source="/d")
    desk.broken = True
    with pytest.raises(BuildError), contextlib.ExitStack() as stack:
        desk(stack, mounts=(mount,))
    desk.broken = False
    assert {path.name for path in source_of(desk(mounts=(mount,))).iterdir()} == {"seed"}


def test_shared_ones_are_had_together_and_private_ones_apart(desk: Desk) -> None:
    shared, private = CacheMount("/c", "a", "shared"), CacheMount("/c", "b", "private")
    with contextlib.ExitStack() as one, contextlib.ExitStack() as two:
        assert source_of(desk(one, mounts=(shared,))) == source_of(desk(two, mounts=(shared,)))
        first = source_of(desk(one, mounts=(private,)))
        assert source_of(desk(two, mounts=(private,))) != first
    # Given back: the first folder is had again.
    assert source_of(desk(mounts=(private,))) == first


def test_a_locked_one_is_waited_for(desk: Desk) -> None:
    mount = CacheMount("/c", "id", "locked")
    got = threading.Event()

    def second() -> None:
        with contextlib.ExitStack() as stack:
            desk(stack, mounts=(mount,))
            got.set()

    with contextlib.ExitStack() as stack:
        desk(stack, mounts=(mount,))
        thread = threading.Thread(target=second)
        thread.start()
        assert not got.wait(0.1)
    assert got.wait(10)
    thread.join()


def test_waiting_for_a_locked_one_ends_with_the_build(desk: Desk) -> None:
    mount = CacheMount("/c", "id", "locked")
    with contextlib.ExitStack() as one, contextlib.ExitStack() as two:
        desk(one, mounts=(mount,))
        threading.Timer(0.1, desk.stop.set).start()
        with pytest.raises(CancelledError):
            desk(two, mounts=(mount,))

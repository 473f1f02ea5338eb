"""One suite for every executor: what a RUN may rely on, and what it can not do.

Run directly it tests the tier of this process, real root. `test_the_suite_elsewhere` runs the same file again as other
users, with PYBUILD_TEST_TIER saying which tier that process is to choose, and PYBUILD_TEST_RUNTIME by which runtime.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from builder.errors import BuildError, CancelledError, UnsupportedError
from builder.executors import Bind, Executor, RunSpec, Tmpfs
from builder.executors.runtime import RuntimeExecutor
from builder.isolation import choose, connector, runtime_path
from builder.sandbox import landlock_version
from cache.disk import OWNER, Dialect
from cache.snapshots import DirectoryRoot, OverlayRoot, Root, read_upper

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve()
ASKED = os.environ.get("PYBUILD_TEST_TIER", "")
RUNTIME = os.environ.get("PYBUILD_TEST_RUNTIME", "")
BUSYBOX = Path("/bin/busybox")
APPLETS = """
    sh cat ls id ps mount umount mkdir mknod chown chmod touch rm stat sleep wc head seq dd df
    hostname env pwd grep kill cp true false ip find tr cut awk sed ln unshare
    chroot sysctl md5sum printf readlink nohup setsid test mkfifo nc
"""

pytestmark = [
    pytest.mark.skipif(not BUSYBOX.exists(), reason="needs /bin/busybox (busybox-static)"),
    pytest.mark.skipif(not ASKED and os.geteuid() != 0, reason="needs root; other users run it by their own tier"),
]


PLAIN = {"pod", "hardened"}
"""The tiers whose roots are plain directories, and in which nothing can be mounted."""

NOT_PROMISED = {
    "pod": {
        "test_standard_input_is_at_its_end": "there is no /proc to look in",
        "test_mask_and_session_are_its_own": "processes are numbered by the container",
        "test_signals_have_their_default_effects": "there is no /proc to look in",
        "test_only_standard_descriptors": "there is no /proc to look in",
        "test_sees_no_other_process": "there is no /proc to look in",
        "test_hostname": "the host name is the container's",
        "test_memory_of_processes_is_not_dumped_elsewhere": "there is no /proc",
        "test_another_user": "looks into /proc",
        "test_another_user_may_open_its_output_again": "/dev/stdout needs /proc",
        "test_read_only": "read-only mounts are copies",
        "test_tmpfs": "sizes are no limits",
        "test_files": "files are copies, and writing to them is lost",
        "test_shared_memory_size": "sizes are no limits",
        "test_capabilities_are_dockers": "there is no /proc to look in",
        "test_insecure_has_all_of_them": "refused",
        "test_no_network": "refused",
        "test_network_of_the_host": "looks into /sys",
        "test_nothing_of_the_host_is_in_sight": "there is no /proc to look in",
        "test_cgroups_of_others_are_not_shown": "there is no /proc",
        "test_interpreter_of_the_server_can_not_be_written": "there is no /proc",
        "test_part_of_another_root": "read-only mounts are copies",
    },
}
"""Per tier the tests of what it does not promise, and why."""
_NEEDLESS = {
    "test_standard_input_is_at_its_end",
    "test_signals_have_their_default_effects",
    "test_another_user_may_open_its_output_again",
}
NOT_PROMISED["hardened"] = {
    **{name: reason for name, reason in NOT_PROMISED["pod"].items() if name not in _NEEDLESS},
    "test_environment_is_what_was_given": "proot adds PWD",
    "test_only_standard_descriptors": "proot's own are seen",
    "test_script_without_interpreter_line": "proot gives it to a shell",
    "test_sees_no_other_process": "/proc is the machine's",
    "test_memory_of_processes_is_not_dumped_elsewhere": "/proc is the machine's",
    "test_another_user": "the other id is faked",
    "test_owners_can_be_changed": "owners are faked",
    "test_refused": "what is refused is the machine's to say",
    "test_masked": "/proc is the machine's",
    "test_cgroups_of_others_are_not_shown": "/proc is the machine's",
    "test_leaving_by_chroot_stays_inside": "proot knows no second root",
}


@pytest.fixture(autouse=True)
def _promised(request: pytest.FixtureRequest) -> None:
    reason = NOT_PROMISED.get(ASKED, {}).get(request.node.originalname)
    if reason:
        pytest.skip(f"not promised in tier {ASKED}: {reason}")


class CopiedRoot(DirectoryRoot, frozen=True):
    """A working copy that tests prepare and look at as they do with an overlay's upper directory."""

    @property
    def upper(self) -> Path:
        return self.path


@dataclass
class Ground:
    """An executor, and the roots that its commands run in."""

    executor: Executor
    userxattr: bool
    folder: Path
    shared: str
    made: int = field(default=0)

    def overlay(self, *above: str) -> OverlayRoot | CopiedRoot:
        """A fresh overlay on the base; `above` are further lowers, topmost first. A copy where nothing is mounted."""
        self.made += 1
        if self.executor.tier in PLAIN:
            path = self.folder / f"run{self.made}" / "root"
            for name in ("base", *reversed(above)):
                copy_tree(self.folder / "layers" / name, path)
            BEFORE[path] = scan(path)
            return CopiedRoot(path)
        place = self.folder / f"run{self.made}"
        for name in ("upper", "work"):
            (place / name).mkdir(parents=True)
        (place / "upper").chmod(0o755)
        lowers = (*above, "base")
        return OverlayRoot(self.folder / "layers", lowers, place / "upper", place / "work", self.userxattr)

    def layer(self, name: str) -> Path:
        """A directory that can be named as a further lower."""
        path = self.folder / "layers" / name
        path.mkdir()
        path.chmod(0o755)
        return path

    def directory(self) -> DirectoryRoot:
        """A fresh working copy of the base."""
        self.made += 1
        path = self.folder / f"run{self.made}" / "root"
        shutil.copytree(self.folder / "layers" / "base", path, symlinks=True)
        return DirectoryRoot(path)

    def run(self, script: str, root: Root | None = None, **changes: Any) -> tuple[int, str]:
        """Run a script by the root's shell; its exit code and output."""
        return self.execute("/bin/sh", "-c", script, root=root, **changes)

    def execute(self, *argv: str, root: Root | None = None, **changes: Any) -> tuple[int, str]:
        spec = RunSpec(root=root or self.overlay(), argv=argv, env=("PATH=/bin",))
        output: list[bytes] = []
        status = self.executor.run(replace(spec, **changes), output.append, threading.Event())
        return status, b"".join(output).decode("utf-8", "surrogateescape")

    def says(self, script: str, **changes: Any) -> str:
        """The output of a script that succeeds."""
        status, text = self.run(script, **changes)
        assert status == 0, text
        return text.rstrip("\n")


BEFORE: dict[Path, dict[str, tuple[object, ...]]] = {}


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def scan(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        kind = () if stat.S_ISDIR(status.st_mode) else (status.st_ino, status.st_size)
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, *kind)
    return found


def changed(root: OverlayRoot | CopiedRoot) -> list[str]:
    """What is in the upper directory; of a copy, what differs and the directories on the way, as there."""
    if isinstance(root, CopiedRoot):
        before, after = BEFORE[root.path], scan(root.path)
        names = {Path(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return sorted({str(part) for name in names for part in (name, *name.parents)} - {"."})
    return sorted(str(path.relative_to(root.upper)) for path in root.upper.rglob("*"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    if ASKED:
        isolation = choose(RUNTIME or {"pod": "chroot", "hardened": "proot"}.get(ASKED, ASKED))
    else:
        # In a process of its own: forking for a trial is not for a test runner with threads.
        script = "from builder.isolation import choose; choose('privileged')"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=HERE.parents[2], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no right to mount: {done.stderr.splitlines()[-1]}")
        from builder.isolation import Isolation

        program, shared = connector()
        isolation = Isolation("privileged", "", network=program, shared=shared)
    folder = tmp_path_factory.mktemp("roots")
    base = folder / "layers" / "base"
    for name in ("bin", "tmp", "etc", "home/user", "root"):
        (base / name).mkdir(parents=True)
    (folder / "layers").chmod(0o755)
    base.chmod(0o755)
    (base / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, base / "bin/busybox")
    for name in APPLETS.split():
        (base / "bin" / name).symlink_to("busybox")
    executor = isolation.executor()
    assert executor.tier == (ASKED or "privileged")
    yield Ground(executor, isolation.userns, folder, isolation.shared)
    executor.close()


@pytest.mark.skipif(bool(ASKED), reason="this is the suite elsewhere")
@pytest.mark.parametrize(
    "tier, runtime, classes",
    [
        ("rootless", "", ""),
        ("rootless-single", "", ""),
        ("pod", "", ""),
        ("hardened", "", ""),
        ("privileged", "crun", ""),
        ("privileged", "runc", "TestProcess or TestUsers or TestConfinement or TestByRuntime"),
        ("rootless", "crun", "TestUsers or TestConfinement or TestManyAtOnce"),
        ("rootless-single", "runc", "TestUsers or TestByRuntime"),
    ],
)
def test_the_suite_elsewhere(tier: str, runtime: str, classes: str) -> None:
    if runtime and not runtime_path(runtime):
        pytest.skip(f"needs {runtime}")
    if tier == "rootless" and not shutil.which("newuidmap"):
        pytest.skip("needs newuidmap (package uidmap)")
    if tier == "hardened" and not (shutil.which("proot") and os.stat("/tmp").st_mode & 0o002):
        pytest.skip("needs proot, which needs a /tmp that all may write to")
    emulated = [sys.executable, str(HERE.parents[1] / "tiers" / "tier.py"), tier, "--"]
    started = [*(emulated if tier != "privileged" else []), sys.executable]
    reach = subprocess.run([*started, "-c", "import pytest"], capture_output=True, text=True, check=False)
    if reach.returncode:
        pytest.skip(f"another user can not run {sys.executable}: {reach.stderr.strip()[-200:]}")
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", str(HERE)]
    done = subprocess.run(
        [*started, "-m", "pytest", *options, *(("-k", classes) if classes else ())],
        cwd=HERE.parents[2],
        env={
            **os.environ,
            "PYBUILD_TEST_TIER": tier,
            "PYBUILD_TEST_RUNTIME": runtime,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > (5 if classes else 40), done.stdout


class TestProcess:
    @pytest.mark.parametrize("code", [0, 1, 3, 126, 255])
    def test_exit_code(self, ground: Ground, code: int) -> None:
        assert ground.run(f"exit {code}") == (code, "")

    def test_death_by_signal(self, ground: Ground) -> None:
        assert ground.run("sleep 30 & kill -9 $!; wait $!")[0] == 137

    def test_output_of_both_kinds_in_order(self, ground: Ground) -> None:
        assert ground.run("echo a; echo b >&2; echo c; echo d >&2") == (0, "a\nb\nc\nd\n")

    def test_big_output_is_whole(self, ground: Ground) -> None:
        _, text = ground.run("seq 1 750000")
        assert len(text) > 5_000_000
        assert text == "".join(f"{n}\n" for n in range(1, 750_001))

    def test_standard_input_is_at_its_end(self, ground: Ground) -> None:
        assert ground.says("wc -c; readlink /proc/self/fd/0") == "0\n/dev/null"

    def test_environment_is_what_was_given(self, ground: Ground) -> None:
        text = ground.execute("/bin/env", env=("PATH=/bin", "HOME=/", "B=x y", "A==", "N=é"))[1]
        assert sorted(text.splitlines()) == ["A==", "B=x y", "HOME=/", "N=é", "PATH=/bin"]

    def test_arguments_arrive_as_they_are(self, ground: Ground) -> None:
        assert ground.execute("/bin/printf", "%s|", "a b", "", "*", "é")[1] == "a b||*|é|"

    def test_bytes_that_are_no_text(self, ground: Ground) -> None:
        words: tuple[str, ...] = ("/bin/sh", "-c", 'printf "%s|%s" "$1" "$N"', "sh", "\udcfe")
        if RUNTIME:
            for line in ("N=é\udcff", "N=é"):
                with pytest.raises(UnsupportedError, match="is not UTF-8"):
                    ground.execute(*words, env=("PATH=/bin", line))
            return
        assert ground.execute(*words, env=("PATH=/bin", "N=é\udcff"))[1] == "\udcfe|é\udcff"

    def test_program_is_looked_up_on_path(self, ground: Ground) -> None:
        assert ground.execute("echo", env=("PATH=/nowhere:/bin",))[0] == 127
        assert ground.execute("printf", "x", env=("PATH=/nowhere:/bin",)) == (0, "x")

    def test_path_when_there_is_none(self, ground: Ground) -> None:
        assert ground.execute("printf", "x", env=()) == (0, "x")

    @pytest.mark.parametrize("name", ["nosuchprogram", "/nosuch/program", "./nosuch"])
    def test_unknown_program(self, ground: Ground, name: str) -> None:
        status, text = ground.execute(name, "x")
        assert status == 127
        assert name in text
        assert "not found" in text or "no such file" in text

    def test_file_that_is_not_executable(self, ground: Ground) -> None:
        root = ground.overlay()
        (root.upper / "script").write_text("#!/bin/sh\n")
        (root.upper / "script").chmod(0o644)
        status, text = ground.execute("/script", root=root)
        assert status == 126
        assert "permission denied" in text

    def test_script_without_interpreter_line(self, ground: Ground) -> None:
        root = ground.overlay()
        (root.upper / "script").write_text("echo\n")
        (root.upper / "script").chmod(0o755)
        status, text = ground.execute("/script", root=root)
        assert status == 126
        assert "exec format error" in text

    def test_script_whose_interpreter_is_missing(self, ground: Ground) -> None:
        root = ground.overlay()
        (root.upper / "script").write_text("#!/nowhere\n")
        (root.upper / "script").chmod(0o755)
        assert ground.execute("/script", root=root)[0] == 127

    def test_no_command(self, ground: Ground) -> None:
        with pytest.raises(BuildError, match="no command"):
            ground.execute()

    def test_working_directory(self, ground: Ground) -> None:
        assert ground.says("pwd", cwd="/home/user") == "/home/user"

    def test_working_directory_is_made(self, ground: Ground) -> None:
        assert ground.says("pwd; stat -c '%a %u:%g' . ..", cwd="/a/b") == "/a/b\n755 0:0\n755 0:0"

    def test_mask_and_session_are_its_own(self, ground: Ground) -> None:
        assert ground.says("umask; echo $$; cut -d' ' -f1,5,6 /proc/1/stat") == "0022\n1\n1 1 1"

    def test_signals_have_their_default_effects(self, ground: Ground) -> None:
        text = ground.execute("/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status")[1]
        assert set(re.findall(r"[0-9a-f]{16}", text)) == {"0" * 16}

    def test_only_standard_descriptors(self, ground: Ground) -> None:
        text = ground.execute("/bin/ls", "/proc/self/fd")[1]
        assert text.split() == ["0", "1", "2", "3"]  # the last is that folder itself, read by ls

    def test_background_processes_end_with_it(self, ground: Ground) -> None:
        mark = f"pybuild-{os.getpid()}-{time.time_ns()}"
        before = time.monotonic()
        assert ground.run(f"(exec -a {mark} nohup setsid sleep 300) & sleep 0.1; exit 4")[0] == 4
        assert time.monotonic() - before < 5
        commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        assert not any(mark.encode() in command for command in commands)

    def test_sees_no_other_process(self, ground: Ground) -> None:
        assert ground.says("ls /proc | grep -c '^[0-9]'") in {"1", "2", "3", "4"}

    def test_hostname(self, ground: Ground) -> None:
        outside = os.uname().nodename
        assert ground.says("hostname", hostname="there") == "there"
        assert os.uname().nodename == outside

    def test_limits(self, ground: Ground) -> None:
        assert ground.says("ulimit -n; ulimit -Hn", ulimits=(("nofile", 64, 128),)) == "64\n128"

    def test_limits_beyond_what_is_allowed_are_kept_in_reach(self, ground: Ground) -> None:
        text = ground.says("ulimit -Hn", ulimits=(("nofile", 1 << 29, 1 << 29),))
        assert int(text) > 0

    def test_unknown_limit(self, ground: Ground) -> None:
        with pytest.raises(UnsupportedError, match="'files'"):
            ground.run("true", ulimits=(("files", 1, 1),))

    def test_memory_of_processes_is_not_dumped_elsewhere(self, ground: Ground) -> None:
        text = ground.run("cat /proc/1/environ | tr '\\0' '\\n'", env=("PATH=/bin", "HOME=/"))[1]
        assert text == "PATH=/bin\nHOME=/\n"


class TestUsers:
    def test_root_is_the_default(self, ground: Ground) -> None:
        assert ground.says("id -u; id -g; id -G") == "0\n0\n0"

    def test_another_user(self, ground: Ground) -> None:
        if ground.executor.tier == "rootless-single":
            pytest.skip("has one id only")
        text = ground.says("id -u; id -g; id -G; touch /tmp/x; stat -c %u:%g /tmp/x", uid=1000, gid=100, groups=(7, 8))
        assert text == "1000\n100\n100 7 8\n1000:100"
        assert ground.run("touch /x", uid=1000, gid=100)[0] == 1
        assert ground.says("grep CapEff /proc/self/status", uid=1000, gid=100).split()[1] == "0" * 16

    def test_one_id_stands_for_another_user(self, ground: Ground) -> None:
        if ground.executor.tier != "rootless-single":
            pytest.skip("has many ids")
        if RUNTIME:
            with pytest.raises(UnsupportedError, match="user 1000:100 can not be had"):
                ground.run("true", uid=1000, gid=100)
            return
        root = ground.overlay()
        assert isinstance(root, OverlayRoot)
        (root.upper / "etc").mkdir()
        marked = root.upper / "etc/theirs"
        marked.write_text("x\n")
        os.setxattr(marked, OWNER, b"7:8:644")
        (ground.folder / "layers/base/etc/below").write_text("x\n")
        script = """
            mkdir -p /tmp/d; echo a > /tmp/d/f; chmod 600 /tmp/d/f; ln -s f /tmp/d/l; mkfifo /tmp/d/p
            echo b >> /etc/below; echo b >> /etc/theirs
            id -u; id -g; id -G; grep CapEff /proc/self/status; stat -c %u:%g /tmp/d/f
        """
        status, text = ground.run(script, root=root, uid=1000, gid=100, groups=(7, 8))
        assert status == 0
        lines = [line for line in text.splitlines() if not line.startswith("pybuild: there is one id")]
        assert lines == ["1000", "100", "100", "CapEff:\t" + "0" * 16, "1000:100"]
        assert "there is one id" not in ground.run("true", uid=1001, gid=100)[1]
        below = [os.fsencode(ground.folder / "layers/base")]
        found = {entry.path: entry for entry in read_upper(os.fsencode(root.upper), below, Dialect.OVERLAY_USER)}
        owners = {path.decode(): (found[path].uid, found[path].gid, oct(found[path].mode)) for path in found}
        assert owners["tmp/d"] == (1000, 100, "0o755")
        assert owners["tmp/d/f"] == (1000, 100, "0o600")
        assert owners["etc/below"][:2] == (0, 0)
        assert owners["etc/theirs"][:2] == (7, 8)

    def test_another_user_may_open_its_output_again(self, ground: Ground) -> None:
        if RUNTIME and ground.executor.tier == "rootless-single":
            pytest.skip("has one id only")
        text = ground.says("echo a > /dev/stdout; echo b > /dev/stderr", uid=1000, gid=100)
        assert text.splitlines()[-2:] == ["a", "b"]

    def test_owners_can_be_changed(self, ground: Ground) -> None:
        text = ground.says("touch /x && chown 5:6 /x && stat -c %u:%g /x")
        assert text == ("0:0" if ground.executor.tier == "rootless-single" else "5:6")

    def test_users_that_can_not_be_had(self, ground: Ground) -> None:
        if ground.executor.tier != "rootless":
            pytest.skip("about the ids of a user namespace")
        with pytest.raises(BuildError, match="user 70000 with groups 1"):
            ground.run("true", uid=70000, gid=1)

    def test_apt_is_told_that_there_is_one_id(self, ground: Ground) -> None:
        for name in ("overlay", "directory"):
            root = ground.overlay() if name == "overlay" else ground.directory()
            folder = (root.upper if isinstance(root, OverlayRoot) else root.path) / "etc/apt/apt.conf.d"
            folder.mkdir(parents=True)
            text = ground.says("cat /etc/apt/apt.conf.d/* 2>/dev/null; true", root=root)
            assert ("APT::Sandbox::User" in text) == (ground.executor.tier == "rootless-single")
            assert list(folder.iterdir()) == []

    def test_devices(self, ground: Ground) -> None:
        status, _ = ground.run("mknod /d c 1 3")
        assert status == (1 if ground.executor.tier in {"rootless", "pod"} else 0)
        assert ground.says("mkfifo /p && stat -c %F /p") == "fifo"


class TestFiles:
    def test_changes_go_to_the_upper_directory(self, ground: Ground) -> None:
        root = ground.overlay()
        ground.says("echo x > /new; rm /bin/true", root=root)
        assert changed(root) == ["bin", "bin/true", "new"]
        assert (ground.folder / "layers/base/bin/true").is_symlink()

    @pytest.mark.parametrize("script", ["true", "touch /dev/x /dev/shm/y; cat /etc/hosts", "cat /etc/resolv.conf"])
    def test_nothing_is_left_of_the_surroundings(self, ground: Ground, script: str) -> None:
        root = ground.overlay()
        mounts = (Bind(ground.folder / "layers", "/deep/er/bind"),)
        changes = {"binds": mounts, "tmpfs": (Tmpfs("/t/t"),), "files": (("/run/secrets/s", b"x", 0o400, 0, 0),)}
        ground.says(f"{script}; ls /deep/er/bind /t/t", root=root, hosts=b"h", resolv_conf=b"r", **changes)
        assert changed(root) == []
        assert sorted(os.listdir(root.upper.parent)) in (["upper", "work"], ["root"])

    def test_folders_of_mount_points_look_as_before(self, ground: Ground) -> None:
        if not ground.made or not (ground.folder / "layers" / "odd").exists():
            etc = ground.layer("odd") / "etc"
            etc.mkdir()
            etc.chmod(0o2751)
            os.utime(etc, ns=(1, 1_234_567_890_123_456_789))
        root = ground.overlay("odd")
        assert ground.says("stat -c '%a %Y' /etc; echo x > /etc/new", root=root, hosts=b"h") == "2751 1234567890"
        assert changed(root) == ["etc", "etc/new"]
        assert stat.S_IMODE((root.upper / "etc").stat().st_mode) == 0o2751

    def test_mount_points_in_a_directory_are_removed_again(self, ground: Ground) -> None:
        root = ground.directory()
        os.utime(root.path / "etc", ns=(5, 6_000_000_000))
        os.utime(root.path, ns=(5, 7_000_000_000))
        before = sorted(str(p) for p in root.path.rglob("*"))
        binds = (Bind(ground.folder / "layers", "/deep/er/bind"),)
        text = ground.says("cat /etc/hosts; ls /deep/er/bind", root=root, hosts=b"hosts\n", binds=binds)
        assert text.splitlines()[:2] == ["hosts", "base"]
        assert sorted(str(p) for p in root.path.rglob("*")) == before
        assert root.path.joinpath("etc").stat().st_mtime_ns == 6_000_000_000
        assert root.path.stat().st_mtime_ns == 7_000_000_000

    def test_directory_keeps_changes(self, ground: Ground) -> None:
        root = ground.directory()
        ground.says("echo x > /new; rm /bin/true; mkdir /dev/pts/x 2>/dev/null; true", root=root)
        assert (root.path / "new").read_text() == "x\n"
        assert not (root.path / "bin/true").is_symlink()
        assert not (root.path / "dev").exists()

    def test_hosts_and_resolver(self, ground: Ground) -> None:
        text = ground.says(
            "cat /etc/hosts /etc/resolv.conf", hosts=b"1.2.3.4 x\n", resolv_conf=b"nameserver 1.1.1.1\n", network="host"
        )
        assert text == "1.2.3.4 x\nnameserver 1.1.1.1"

    def test_resolver_that_is_a_dangling_link(self, ground: Ground) -> None:
        root = ground.overlay()
        (root.upper / "etc").mkdir(exist_ok=True)
        (root.upper / "etc/resolv.conf").symlink_to("../run/systemd/stub.conf")
        assert ground.says("cat /etc/resolv.conf", root=root, resolv_conf=b"r\n", network="host") == "r"
        assert changed(root) == ["etc", "etc/resolv.conf"]

    def test_many_layers(self, ground: Ground) -> None:
        names = [f"{n:024x}" for n in range(120)]
        for name in names:
            (ground.layer(name) / name).write_text(name)
        root = ground.overlay(*names)
        assert ground.says("ls / | grep -c '^0'; cat /000000000000000000000077", root=root) == f"120\n{119:024x}"

    def test_root_of_no_layers(self, ground: Ground) -> None:
        if ground.executor.tier in PLAIN:
            pytest.skip("about overlays")
        root = replace(ground.overlay(), lowers=())
        (root.upper / "busybox").write_bytes(BUSYBOX.read_bytes())
        (root.upper / "busybox").chmod(0o755)
        assert ground.execute("/busybox", "ls", "/", root=root)[1].split() == ["busybox", "dev", "etc", "proc", "sys"]


class TestMounts:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        folder.chmod(0o755)
        (folder / "f").write_text("original\n")
        return folder

    def test_read_only(self, ground: Ground, source: Path) -> None:
        binds = (Bind(source, "/m"), Bind(source / "f", "/one/file"))
        assert ground.says("cat /m/f /one/file", binds=binds) == "original\noriginal"
        assert ground.run("echo x > /m/f", binds=binds)[0] == 1
        assert ground.run("echo x > /one/file", binds=binds)[0] == 1

    def test_writable(self, ground: Ground, source: Path) -> None:
        ground.says("echo new > /m/f; touch /m/g", binds=(Bind(source, "/m", readonly=False),))
        assert (source / "f").read_text() == "new\n"
        assert (source / "g").exists()

    def test_writes_discarded(self, ground: Ground, source: Path) -> None:
        binds = (Bind(source, "/m", discard_writes=True), Bind(source / "f", "/file", discard_writes=True))
        text = ground.says("echo new > /m/f; touch /m/g; echo other > /file; cat /m/f /file; ls /m", binds=binds)
        assert text == "new\nother\nf\ng"
        assert sorted(os.listdir(source)) == ["f"]
        assert (source / "f").read_text() == "original\n"

    @pytest.mark.parametrize("discard", [False, True])
    def test_part_of_another_root(self, ground: Ground, discard: bool) -> None:
        name = f"other{discard}"
        other = ground.layer(name)
        (other / "data").mkdir()
        (other / "data/f").write_text("theirs\n")
        (other / "data/passwd").symlink_to("/data/f")
        root = ground.overlay(name)
        whole = Bind(root, "/w", discard_writes=discard)
        part = Bind(root, "/p", discard_writes=discard, inside="data")
        file = Bind(root, "/f", discard_writes=discard, inside="/data/passwd")
        assert ground.says("cat /w/data/f /p/f /f", binds=(whole, part, file)) == "theirs\ntheirs\ntheirs"
        status, _ = ground.run("echo x > /p/f", binds=(part,))
        assert status == (0 if discard else 1)
        assert (other / "data/f").read_text() == "theirs\n"

    def test_source_inside_a_root_does_not_leave_it(self, ground: Ground) -> None:
        layer = ground.layer("escaping")
        (layer / "way").symlink_to("/etc")
        (layer / "up").symlink_to("../../../../../../etc")
        root = ground.overlay("escaping")
        for inside in ("way/hostname-of-the-host", "../../../../../../../../etc/passwd", "up/passwd"):
            with pytest.raises(BuildError, match="could not be set up"):
                ground.run("true", binds=(Bind(root, "/m", inside=inside),))

    def test_target_links_are_resolved_inside(self, ground: Ground, source: Path) -> None:
        root = ground.overlay()
        (root.upper / "way").symlink_to("/../../../../../../tmp/in")
        assert ground.says("cat /tmp/in/f; ls /way", root=root, binds=(Bind(source, "/way"),)) == "original\nf"
        assert changed(root) == ["way"]

    def test_target_inside_another_mount_does_not_leave_the_root(self, ground: Ground, source: Path) -> None:
        (source / "link").symlink_to("/etc")
        (source / "sub").mkdir()
        binds = (Bind(source, "/m", discard_writes=True), Bind(source / "f", "/m/link/inside"))
        root = ground.overlay()
        assert ground.says("cat /etc/inside /m/link/inside", root=root, binds=binds) == "original\noriginal"
        assert not Path("/etc/inside").exists()

    def test_nested_in_any_order(self, ground: Ground, source: Path) -> None:
        binds = (Bind(source, "/t/a/b"), Bind(source / "f", "/t/file"))
        assert (
            ground.says("ls /t /t/a/b; touch /t/x", binds=binds, tmpfs=(Tmpfs("/t"),)) == "/t:\na\nfile\n\n/t/a/b:\nf"
        )

    def test_over_something_there(self, ground: Ground, source: Path) -> None:
        assert ground.says("ls /home", binds=(Bind(source, "/home"),)) == "f"
        with pytest.raises(BuildError, match="/bin/busybox"):
            ground.run("true", binds=(Bind(source, "/bin/busybox"),))

    def test_source_that_is_missing(self, ground: Ground, source: Path) -> None:
        with pytest.raises(BuildError, match="could not be set up"):
            ground.run("true", binds=(Bind(source / "none", "/m"),))

    def test_tmpfs(self, ground: Ground) -> None:
        root = ground.overlay()
        changes: dict[str, Any] = {"tmpfs": (Tmpfs("/t", size=1 << 20), Tmpfs("/u", mode=0o700))}
        text = ground.says("stat -c '%a %u:%g' /t /u; df -k /t | awk 'END{print $2}'; touch /t/x", root=root, **changes)
        assert text == "1777 0:0\n700 0:0\n1024"
        assert ground.run("dd if=/dev/zero of=/t/x bs=1024 count=2048", **changes)[0] == 1
        assert changed(root) == []

    def test_files(self, ground: Ground) -> None:
        files = (("/run/secrets/key", b"hidden", 0o400, 0, 0), ("/scripts/s", b"#!/bin/sh\necho ran\n", 0o755, 0, 0))
        assert ground.says("cat /run/secrets/key; /scripts/s; stat -c %a /run/secrets/key", files=files) == (
            "hiddenran\n400"
        )
        assert ground.run("echo x > /run/secrets/key", files=files)[0] == 1
        if ground.executor.tier != "rootless-single":
            assert ground.says("stat -c %u:%g /key", files=(("/key", b"hidden", 0o440, 3, 4),)) == "3:4"

    def test_shared_memory_size(self, ground: Ground) -> None:
        script = "df -k /dev/shm | awk 'END{print $2}'"
        assert ground.says(script) == "65536"
        assert ground.says(script, shm_size=32 << 20) == "32768"


class TestConfinement:
    def test_capabilities_are_dockers(self, ground: Ground) -> None:
        lines = ground.says("grep Cap /proc/self/status; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status").splitlines()
        values = dict(line.split() for line in lines)
        docker = "00000000a80425fb"
        assert values == {
            "CapInh:": "0" * 16, "CapPrm:": docker, "CapEff:": docker, "CapBnd:": docker, "CapAmb:": "0" * 16,
            "NoNewPrivs:": "0", "Seccomp:": "2",
        }  # fmt: skip

    def test_insecure_has_all_of_them(self, ground: Ground) -> None:
        bounding, effective = (
            int(ground.says(f"grep {name} /proc/self/status", insecure=True).split()[1], 16)
            for name in ("CapBnd", "CapEff")
        )
        assert bounding == effective
        assert effective & 1 << 21
        ground.says("mkdir /m && mount -t tmpfs none /m", insecure=True)

    @pytest.mark.parametrize(
        "script",
        [
            "mkdir /m; mount -t tmpfs none /m",
            "umount /proc",
            "mount -o remount,rw,bind /proc/sys",
            "unshare -m true",
            "unshare -U true",
            "hostname other",
            "touch /sys/x",
            "touch /proc/x",
            "echo 1 > /proc/sys/kernel/domainname",
            "echo b > /proc/sysrq-trigger",
            "echo 1 > /sys/kernel/uevent_helper",
            "sysctl -w kernel.domainname=x",
        ],
    )
    def test_refused(self, ground: Ground, script: str) -> None:
        if ground.executor.tier in PLAIN and ("/proc" in script or "/sys" in script):
            pytest.skip("these are empty directories, and nothing of the machine's")
        assert ground.run(script)[0] != 0

    def test_masked(self, ground: Ground) -> None:
        for name in ("kcore", "keys", "latency_stats", "timer_list", "sched_debug", "interrupts"):
            assert ground.run(f"cat /proc/{name} 2>/dev/null")[1] == ""
        for name in ("/proc/scsi", "/proc/acpi", "/sys/firmware"):
            assert ground.run(f"ls -A {name} 2>/dev/null")[1] == ""

    def test_cgroups_of_others_are_not_shown(self, ground: Ground) -> None:
        assert "/docker" not in ground.says("cat /proc/self/cgroup; find /sys/fs/cgroup -type d")
        assert ground.run("mkdir /sys/fs/cgroup/x")[0] != 0

    def test_devices_are_few(self, ground: Ground) -> None:
        expected = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
        assert ground.says("ls /dev").split() == expected.split()
        assert ground.says("echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c") == "3\n3"

    @pytest.mark.parametrize("folder", ["/tmp", "/dev", "/t", "/cache", "/dev/shm"])
    def test_made_devices_open_nothing(self, ground: Ground, folder: str, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        cache.mkdir()
        script = f"mknod {folder}/made c 1 5 && head -c 1 {folder}/made >/dev/null && echo OPENED; rm -f {folder}/made"
        mounts: dict[str, Any] = {"binds": (Bind(cache, "/cache", readonly=False),), "tmpfs": (Tmpfs("/t"),)}
        assert "OPENED" not in ground.run(script, **mounts)[1]
        if ground.executor.tier == "privileged" and folder != "/dev/shm":
            assert ground.run(script, insecure=True, **mounts)[1] == "OPENED\n"

    def test_nothing_of_the_host_is_in_sight(self, ground: Ground) -> None:
        assert ground.says("ls -a / | tr '\\n' ' '").split() == [
            ".", "..", "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp"
        ]  # fmt: skip
        mounts = ground.says("cut -d' ' -f5 /proc/self/mountinfo").splitlines()
        allowed = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf")
        assert [m for m in mounts if m != "/" and not m.startswith(allowed)] == []

    def test_leaving_by_chroot_stays_inside(self, ground: Ground) -> None:
        script = "mkdir -p /j/bin; cp /bin/busybox /j/bin/sh; exec chroot /j /bin/sh -c 'cd ../../../../../..; echo *'"
        assert ground.says(script) == "bin"

    def test_interpreter_of_the_server_can_not_be_written(self, ground: Ground) -> None:
        # CVE-2019-5736: what executes /proc/self/exe in a container may be the program outside.
        status, text = ground.execute("/proc/self/exe", "-c", "open('/proc/self/exe', 'r+b')")
        assert status != 0
        assert os.path.getsize(os.path.realpath(sys.executable)) > 0
        assert "Traceback" not in text or "Read-only" in text or "busy" in text

    def test_no_network(self, ground: Ground) -> None:
        text = ground.says("ip -o link | cut -d: -f2; ip -o addr show lo | grep -c 127.0.0.1", network="none")
        assert text.split()[0] == "lo"
        assert text.splitlines()[-1] == "1"
        assert "UP" in ground.says("ip -o link show lo", network="none")

    def test_network_of_the_host(self, ground: Ground) -> None:
        outside = sorted(os.listdir("/sys/class/net"))
        inside = ground.says("ip -o link | cut -d: -f2 | tr -d ' '", network="host").split()
        assert sorted(name.split("@")[0] for name in inside) == outside


class TestNetworkOfItsOwn:
    """What the default network is where there is slirp4netns or pasta."""

    @pytest.fixture(autouse=True)
    def _connected(self, ground: Ground) -> None:
        if ground.shared:
            pytest.skip(f"RUN shares this machine's network: {ground.shared}")

    def test_loopback_is_its_own(self, ground: Ground) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                server.accept()[0].close()

            threading.Thread(target=answer, daemon=True).start()
            reach = f"nc 127.0.0.1 {server.getsockname()[1]} </dev/null && echo REACHED"
            assert ground.run(reach)[0] != 0
            assert ground.says(reach, network="host") == "REACHED"
        text = ground.says("(echo in | nc -l -p 7777 &) ; sleep 0.3; nc 127.0.0.1 7777 </dev/null")
        assert text == "in"

    def test_abstract_sockets_of_this_machine_are_not_in_it(self, ground: Ground) -> None:
        mark = f"pybuild-{os.getpid()}-{time.time_ns()}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"\0{mark}")
            assert ground.run(f"grep {mark} /proc/net/unix") == (1, "")
            assert mark in ground.says(f"grep {mark} /proc/net/unix", network="host")

    def test_it_has_a_way_out_and_a_resolver(self, ground: Ground) -> None:
        text = ground.says("ip route; cat /etc/resolv.conf", resolv_conf=b"nameserver 127.0.0.53\nsearch there\n")
        assert text.startswith("default via ")
        assert re.search(r"\nnameserver (10\.0\.2\.3|169\.254\.1\.1)\nsearch there$", text)

    def test_those_at_the_same_time_have_one_each(self, ground: Ground) -> None:
        results: list[tuple[int, str]] = []
        script = "(echo in | nc -l -p 7777) & sleep 0.4; nc 127.0.0.1 7777 </dev/null"
        threads = [threading.Thread(target=lambda: results.append(ground.run(script))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [(0, "in\n")] * 3

    def test_it_is_not_passed_on_when_a_run_could_change_it(self, ground: Ground) -> None:
        ground.says("ip addr add 10.9.9.9/32 dev lo", insecure=True)
        assert "10.9.9.9" not in ground.says("ip -o addr")


class TestByRuntime:
    """What a runtime adds to go wrong."""

    @pytest.fixture(autouse=True)
    def _runtime(self) -> None:
        if not RUNTIME:
            pytest.skip("about OCI runtimes")

    def test_nothing_is_left_of_it(self, ground: Ground) -> None:
        """By the container's name: other tests have containers of their own meanwhile."""

        def seen() -> list[Path]:
            cgroups = [path for path in Path("/sys/fs/cgroup").glob("**/run") if path.is_dir()]
            return sorted([*cgroups, *Path("/run").glob("crun/run"), *Path("/run").glob("runc/run")])

        before = seen()
        assert ground.run("exit 3")[0] == 3
        assert seen() == before

    def test_its_complaints_are_no_failing_command(self, ground: Ground, tmp_path: Path) -> None:
        program = tmp_path / RUNTIME
        program.write_text(
            '#!/bin/sh\nwhile [ "$1" != --log ]; do shift; done\n'
            'echo \'{"level":"error","msg":"no such luck"}\' > "$2"; exit 1\n'
        )
        program.chmod(0o755)
        tier = ground.executor.tier
        executor = RuntimeExecutor(tier, str(program), userns=ground.userxattr, single=tier == "rootless-single")
        output: list[bytes] = []
        spec = RunSpec(root=ground.overlay(), argv=("/bin/true",), env=("PATH=/bin",))
        try:
            with pytest.raises(BuildError, match=rf"could not be set up \({tier}, by {RUNTIME}\): no such luck"):
                executor.run(spec, output.append, threading.Event())
        finally:
            executor.close()
        assert output == []

    def test_devices_of_the_image_open_nothing(self, ground: Ground) -> None:
        if ground.executor.tier != "privileged":
            pytest.skip("in a user namespace there are none")
        os.mknod(ground.layer("noded") / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        assert ground.run("head -c 1 /zero", root=ground.overlay("noded"))[0] != 0


class TestWithoutMounts:
    """What the tiers without mounts promise instead."""

    @pytest.fixture(autouse=True)
    def _plain(self) -> None:
        if ASKED not in PLAIN:
            pytest.skip("about the tiers without mounts")

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "source"
        (folder / "sub").mkdir(parents=True)
        (folder / "f").write_text("original\n")
        (folder / "sub/gone").write_text("x")
        return folder

    def test_another_user(self, ground: Ground) -> None:
        assert ground.says("id -u; id -g", uid=1000, gid=100) == "1000\n100"
        if ASKED == "pod":
            text = ground.says("id -G; touch /tmp/x; stat -c %u:%g /tmp/x", uid=1000, gid=100, groups=(7, 8))
            assert text == "100 7 8\n1000:100"
            assert ground.run("touch /x", uid=1000, gid=100)[0] == 1

    def test_read_only_mounts_keep_their_originals(self, ground: Ground, source: Path) -> None:
        root = ground.overlay()
        binds = (Bind(source, "/m"), Bind(source / "f", "/one/file"))
        ground.says("cat /m/f /one/file; echo x > /m/f; rm -r /m/sub; echo y > /one/file", root=root, binds=binds)
        assert (source / "f").read_text() == "original\n"
        assert (source / "sub/gone").exists()
        assert changed(root) == []

    @pytest.mark.parametrize("status", [0, 3])
    def test_changes_of_writable_mounts_are_kept(self, ground: Ground, source: Path, status: int) -> None:
        root = ground.overlay()
        script = f"echo new > /m/f; rm -r /m/sub; mkdir /m/d; ln -s f /m/d/l; ln /m/f /m/d/h; exit {status}"
        assert ground.run(script, root=root, binds=(Bind(source, "/m", readonly=False),)) == (status, "")
        assert sorted(str(path.relative_to(source)) for path in source.rglob("*")) == ["d", "d/h", "d/l", "f"]
        assert (source / "d/h").read_text() == "new\n"
        assert changed(root) == []

    def test_writable_mount_that_became_a_link(self, ground: Ground, source: Path, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/secret").write_text("s")
        script = f"rm -r /m; ln -s {tmp_path}/outside /m"
        root = ground.overlay()
        ground.says(script, root=root, binds=(Bind(source, "/m", readonly=False),))
        assert list(source.iterdir()) == []
        assert (tmp_path / "outside/secret").exists()
        assert changed(root) == []

    def test_parents_that_became_links(self, ground: Ground, source: Path, tmp_path: Path) -> None:
        (tmp_path / "outside/b").mkdir(parents=True)
        (tmp_path / "outside/b/kept").write_text("k")
        root = ground.overlay()
        ground.says(f"mv /a /c; ln -s {tmp_path}/outside /a", root=root, binds=(Bind(source, "/a/b"),))
        assert (tmp_path / "outside/b/kept").exists()
        assert "c/b" not in changed(root)

    @pytest.mark.parametrize("script", ["mv /run/s /kept", "ln /run/s /kept"])
    def test_secrets_are_not_kept_by_moving_them(self, ground: Ground, script: str) -> None:
        root = ground.overlay()
        with pytest.raises(BuildError, match="moved or linked s"):
            ground.run(script, root=root, files=(("/run/s", b"not to be kept", 0o400, 0, 0),))
        assert not any(path.is_file() and b"not to be kept" in path.read_bytes() for path in root.upper.rglob("*"))

    def test_tmpfs_and_files(self, ground: Ground) -> None:
        root = ground.overlay()
        files = (("/run/secrets/key", b"hidden", 0o400, 0, 0), ("/scripts/s", b"#!/bin/sh\necho ran\n", 0o755, 0, 0))
        script = "stat -c '%a %u' /t; touch /t/x /dev/shm/y; cat /run/secrets/key; /scripts/s"
        text = ground.says(script, root=root, files=files, tmpfs=(Tmpfs("/t", mode=0o1770),))
        assert text == "1770 0\nhiddenran"
        assert changed(root) == []

    def test_what_was_there_comes_back(self, ground: Ground) -> None:
        root = ground.overlay()
        (root.upper / "etc/hosts").write_text("image's\n")
        (root.upper / "dev").mkdir()
        (root.upper / "dev/theirs").write_text("x")
        BEFORE[root.upper] = scan(root.upper)
        assert (
            ground.says("cat /etc/hosts; echo y > /etc/hosts; ls /dev/theirs || true", root=root, hosts=b"h\n")[:2]
            == "h\n"
        )
        assert changed(root) == []
        assert (root.upper / "etc/hosts").read_text() == "image's\n"

    @pytest.mark.parametrize("changes", [{"network": "none"}, {"insecure": True}])
    def test_what_can_not_be_had(self, ground: Ground, changes: dict[str, Any]) -> None:
        with pytest.raises(UnsupportedError, match=f"can not be had in tier {ASKED}"):
            ground.run("true", **changes)

    def test_other_processes_are_out_of_reach(self, ground: Ground) -> None:
        if ASKED != "pod" or landlock_version() < 6:
            pytest.skip("needs Landlock, version 6, and the pod tier")
        assert ground.run("kill -9 $PPID")[0] != 0
        assert ground.run(f"kill -0 {os.getpid()}")[0] != 0

    def test_builder_that_ends_takes_its_run_along(self, ground: Ground, tmp_path: Path) -> None:
        root = ground.overlay()
        mark = f"{time.time_ns() % 100000 + 200000}"
        script = """
import sys, threading
from pathlib import Path
from builder.isolation import Isolation
from builder.executors import RunSpec
from cache.snapshots import DirectoryRoot
spec = RunSpec(root=DirectoryRoot(Path(sys.argv[1])), argv=("/bin/sh", "-c", sys.argv[2]), env=("PATH=/bin",))
executor = Isolation(sys.argv[3], "", proot=sys.argv[4]).executor()
executor.run(spec, lambda data: print(data, flush=True), threading.Event())
"""
        command = f"(setsid sleep {mark} &) ; echo up; sleep {mark}"
        words = [sys.executable, "-c", script, str(root.upper), command, ASKED, shutil.which("proot") or ""]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=HERE.parents[2]) as builder:
            assert builder.stdout is not None
            builder.stdout.readline()
            builder.kill()
        for _ in range(100):
            commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
            if not any(f"sleep\0{mark}".encode() in command for command in commands):
                return
            time.sleep(0.05)
        pytest.fail("the command outlived the builder")


class TestManyAtOnce:
    def test_stop_kills_all_of_it(self, ground: Ground) -> None:
        mark = f"{time.time_ns() % 100000 + 100000}"
        stop = threading.Event()
        output: list[bytes] = []

        def write(data: bytes) -> None:
            output.append(data)
            stop.set()

        spec = RunSpec(
            root=ground.overlay(),
            argv=("/bin/sh", "-c", f"(setsid sleep {mark} &) ; trap '' TERM INT; echo up; sleep {mark}"),
            env=("PATH=/bin",),
        )
        before = time.monotonic()
        with pytest.raises(CancelledError):
            ground.executor.run(spec, write, stop)
        assert time.monotonic() - before < 3
        commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
        assert not any(f"sleep\0{mark}".encode() in command for command in commands)
        assert ground.run("true")[0] == 0

    def test_stopped_before(self, ground: Ground) -> None:
        stop = threading.Event()
        stop.set()
        spec = RunSpec(root=ground.overlay(), argv=("/bin/true",), env=())
        with pytest.raises(CancelledError):
            ground.executor.run(spec, lambda _: None, stop)

    def test_runs_are_parallel(self, ground: Ground) -> None:
        results: list[tuple[int, str]] = []
        roots = [ground.overlay() for _ in range(6)]
        threads = [
            threading.Thread(target=lambda n=n: results.append(ground.run(f"sleep 0.5; echo {n}; exit {n}", roots[n])))
            for n in range(6)
        ]
        before = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [(n, f"{n}\n") for n in range(6)]
        assert time.monotonic() - before < 2

    def test_nothing_stays_mounted_or_open(self, ground: Ground) -> None:
        ground.run("true")

        # Not of the whole machine: other programs mount and unmount at any time.
        def mounts() -> list[str]:
            lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
            return [line for line in lines if str(ground.folder) in line]

        before, opened = mounts(), len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            ground.run("true")
        assert mounts() == before
        assert len(os.listdir("/proc/self/fd")) == opened

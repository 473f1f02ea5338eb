from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from builder import emulation
from builder.emulation import _MACHINES, _handler, _problem, program
from cache.oci import Platform, host_platform
from tests.building import Bench, command, environment, write

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN = "arm64" if host_platform().architecture != "arm64" else "riscv64"
QEMU = {"arm64": "aarch64", "amd64": "x86_64", "386": "i386", "mips64le": "mips64el", "loong64": "loongarch64"}
INSIDE = """\
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    # New user and mount namespaces, whose mounts do not get out.
    libc = ctypes.CDLL(None)
    done = libc.unshare(0x10020000)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    if done != 0 or libc.mount(None, b"/", None, 0x44000, None) != 0:
        os._exit(77)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(ready[0], 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file:
        file.write("0 0 65536")
os.write(go[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
# As QEMU's own script registers it: scripts/qemu-binfmt-conf.sh.
ARM64 = (
    "magic 7f454c460201010000000000000000000200b700\n"
    "mask ffffffffffffff00fffffffffffffffffeffffff\n"
)  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def binfmt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "binfmt_misc"
    write(folder, {"register": "", "status": "enabled\n"})
    monkeypatch.setattr(emulation, "BINFMT", str(folder))
    return folder


def tried(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(emulation, "_tried", lambda *_: status)


def test_the_program_of_this_machine_ends_well(tmp_path: Path) -> None:
    architecture = host_platform().architecture
    if program(architecture) is None:
        pytest.skip(f"no program is known for {architecture}")
    assert emulation._tried(architecture, tmp_path) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("architecture", sorted(_MACHINES))
def test_the_programs_are_sound(tmp_path: Path, architecture: str) -> None:
    name = f"qemu-{QEMU.get(architecture, architecture)}"
    qemu = shutil.which(f"{name}-static") or shutil.which(name)
    if qemu is None:
        pytest.skip(f"needs {name}")
    path = tmp_path / "try"
    path.write_bytes(program(architecture) or b"")
    path.chmod(0o755)
    assert subprocess.run([qemu, path], check=False).returncode == 0


def test_a_program_says_what_it_is_for() -> None:
    data = program("arm64") or b""
    assert data[:5] == b"\x7fELF\x02"
    assert int.from_bytes(data[18:20], "little") == 183
    assert program("z80") is None


def test_this_machine_needs_nothing(tmp_path: Path) -> None:
    assert _problem(host_platform(), tmp_path, lambda _: False) is None


def test_nothing_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(monkeypatch, errno.ENOEXEC)
    problem = _problem(Platform("linux", FOREIGN), tmp_path, lambda _: True)
    assert problem is not None
    assert f"linux/{FOREIGN}" in problem.message
    assert "qemu-user-static" in problem.hint
    other = _problem(Platform("windows", "amd64"), tmp_path, lambda _: True)
    assert other is not None
    assert "windows/amd64" in other.message


@pytest.mark.parametrize(
    "flags, status, inside, message",
    [
        ("flags: F", 0, False, ""),
        ("flags: OCF", 0, False, ""),
        ("flags: ", 0, True, ""),
        ("flags: P", 0, False, "without the flag F"),
        ("flags: P", errno.ENOENT, True, ""),
        ("flags: P", errno.ENOENT, False, "neither here nor in the base"),
    ],
)
def test_the_interpreter_has_to_be_where_the_run_finds_it(
    tmp_path: Path, binfmt: Path, monkeypatch: pytest.MonkeyPatch, flags: str, status: int, inside: bool, message: str
) -> None:
    write(binfmt, {"qemu-arm": "enabled\ninterpreter /x\nflags: F\noffset 0\nmagic 7f454c4601\n"})
    write(binfmt, {"qemu-aarch64": f"enabled\ninterpreter /usr/bin/qemu-aarch64\n{flags}\noffset 0\n{ARM64}"})
    if FOREIGN != "arm64":
        pytest.skip("arm64 is no foreign processor here")
    tried(monkeypatch, status)
    problem = _problem(Platform("linux", "arm64"), tmp_path, lambda path: inside and path == "/usr/bin/qemu-aarch64")
    assert (
        (problem.message if problem else "") == "" if not message else message in (problem.message if problem else "")
    )


def test_handlers_that_are_off_do_not_count(binfmt: Path) -> None:
    write(binfmt, {"qemu-aarch64": f"disabled\ninterpreter /usr/bin/qemu-aarch64\nflags: F\noffset 0\n{ARM64}"})
    assert _handler("arm64") is None
    write(binfmt, {"python": "enabled\ninterpreter /usr/bin/python3\nflags: \nextension .py\n"})
    assert _handler("arm64") is None


def test_a_run_that_can_not_start_is_told_before_the_first_step(bench: Bench) -> None:
    if emulation._tried(FOREIGN, bench.folder) == 0:
        pytest.skip(f"programs of {FOREIGN} can be started here")
    write(bench.folder, {"foreign/bin/sh": program(FOREIGN)})
    dockerfile = "FROM scratch AS one\nCOPY f /f\nFROM foreign\nCOPY --from=one /f /f\nRUN true\nRUN false\n"
    done = bench.build(
        dockerfile, {"f": "x"}, f"--platform=linux/{FOREIGN},linux/{host_platform().architecture}",
        f"--build-context=foreign={bench.folder / 'foreign'}", code=1,
    )  # fmt: skip
    assert done.err.count("error: ") == 1
    assert f"RUN can not start programs of linux/{FOREIGN}" in done.err
    assert "Dockerfile:5" in done.err
    assert not done.steps
    # Copies need no program to be started.
    bench.build(
        "FROM foreign\nCOPY f /f\n", None, f"--platform=linux/{FOREIGN}",
        f"--build-context=foreign={bench.folder / 'foreign'}",
    )  # fmt: skip


@pytest.mark.root
def test_an_interpreter_runs_what_the_processor_can_not(bench: Bench) -> None:
    """In a user namespace with a binfmt_misc of its own (Linux 6.7 and newer), which changes nothing outside."""
    name = f"qemu-{QEMU.get(FOREIGN, FOREIGN)}"
    qemu = shutil.which(f"{name}-static") or os.environ.get("PYBUILD_TEST_QEMU")
    if qemu is None or FOREIGN != "arm64":
        pytest.skip(f"needs {name}-static")
    write(bench.folder, {"foreign/bin/sh": program(FOREIGN)})
    (bench.folder / "foreign/bin/sh").chmod(0o755)
    fields = dict(line.split(" ") for line in ARM64.splitlines())
    magic, mask = ("".join(f"\\x{fields[each][at : at + 2]}" for at in range(0, 40, 2)) for each in ("magic", "mask"))
    build = command(
        "build", "--root", str(bench.folder / "inner"), "--progress=plain", f"--platform=linux/{FOREIGN}",
        f"--build-context=foreign={bench.folder / 'foreign'}", str(bench.context),
    )  # fmt: skip
    write(bench.context, {"Dockerfile": "FROM foreign\nRUN anything\n"})
    script = (
        "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 77\n"
        f"printf '%s' ':try:M::{magic}:{mask}:{qemu}:F' >/proc/sys/fs/binfmt_misc/register || exit 77\n"
        f"exec {' '.join(build)}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, "sh", "-c", script], capture_output=True, text=True, check=False,
        env=environment(),
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"no binfmt_misc in a user namespace here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "RUN anything" in done.stderr

"""The parts of the sandbox that need no RUN: the filters as programs, the way to a mount point, trials."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder import sandbox

HERE = Path(__file__).resolve()
X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW = 0x7FFF0000
EPERM, ENOSYS, DONE = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x50000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a seccomp program says to a system call: the kernel's interpreter of classic BPF, as far as it is used."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = int.from_bytes(data[value : value + 4], sys.byteorder)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += yes if accumulator == value else no
            case 0x25:
                at += yes if accumulator > value else no
            case 0x35:
                at += yes if accumulator >= value else no
            case 0x45:
                at += yes if accumulator & value else no
            case 0x06:
                return value
            case _:
                pytest.fail(f"unknown operation {operation:#x}")


# number: of x86-64, i386, aarch64, arm; None where the architecture has no such call
@pytest.mark.parametrize(
    "name, numbers, expected",
    [
        ("read", (0, 3, 63, 3), ALLOW),
        ("chroot", (161, 61, 51, 61), ALLOW),
        ("mknodat", (259, 297, 33, 324), ALLOW),
        ("ptrace", (101, 26, 117, 26), ALLOW),
        ("setns", (308, 346, 268, 375), EPERM),
        ("mount", (165, 21, 40, 21), EPERM),
        ("umount2", (166, 52, 39, 52), EPERM),
        ("pivot_root", (155, 217, 41, 218), EPERM),
        ("unshare", (272, 310, 97, 337), EPERM),
        ("reboot", (169, 88, 142, 88), EPERM),
        ("keyctl", (250, 288, 219, 311), EPERM),
        ("add_key", (248, 286, 217, 309), EPERM),
        ("bpf", (321, 357, 280, 386), EPERM),
        ("perf_event_open", (298, 336, 241, 364), EPERM),
        ("init_module", (175, 128, 105, 128), EPERM),
        ("finit_module", (313, 350, 273, 379), EPERM),
        ("kexec_load", (246, 283, 104, 347), EPERM),
        ("open_by_handle_at", (304, 342, 265, 371), EPERM),
        ("name_to_handle_at", (303, 341, 264, 370), ALLOW),
        ("settimeofday", (164, 79, 170, 79), EPERM),
        ("clock_settime", (227, 264, 112, 262), EPERM),
        ("swapon", (167, 87, 224, 87), EPERM),
        ("syslog", (103, 103, 116, 103), EPERM),
        ("acct", (163, 51, 89, 51), EPERM),
        ("userfaultfd", (323, 374, 282, 388), EPERM),
        ("io_uring_setup", (425,) * 4, EPERM),
        ("open_tree", (428,) * 4, EPERM),
        ("fsopen", (430,) * 4, EPERM),
        ("pidfd_open", (434,) * 4, ALLOW),
        ("clone3", (435,) * 4, ENOSYS),
        ("close_range", (436,) * 4, ALLOW),
        ("openat2", (437,) * 4, ALLOW),
        ("pidfd_getfd", (438,) * 4, EPERM),
        ("mount_setattr", (442,) * 4, EPERM),
        ("landlock_create_ruleset", (444,) * 4, ALLOW),
        ("removexattrat", (466,) * 4, ALLOW),
        ("newer than the profile", (467,) * 4, ENOSYS),
        ("far newer", (5000,) * 4, ENOSYS),
        ("sethostname", (170, 74, 161, 74), EPERM),
        ("iopl", (172, 110, None, None), EPERM),
        ("arch_prctl", (158, 384, None, None), ALLOW),
        ("modify_ldt", (154, 123, None, None), ALLOW),
        ("vm86", (None, 166, None, None), EPERM),
        ("cacheflush", (None, None, None, 983042), ALLOW),
    ],
)
def test_dockers_profile(name: str, numbers: tuple[int | None, ...], expected: int) -> None:
    program = sandbox.docker_filter()
    for architecture, number in zip((X86_64, I386, AARCH64, ARM), numbers, strict=True):
        if number is not None:
            assert answer(program, architecture, number) == expected, (name, hex(architecture))


@pytest.mark.parametrize("architecture, clone", [(X86_64, 56), (I386, 120), (AARCH64, 220), (ARM, 120)])
def test_clone_may_start_threads_and_make_no_namespaces(architecture: int, clone: int) -> None:
    program = sandbox.docker_filter()
    assert answer(program, architecture, clone, 0x3D0F00) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(program, architecture, clone, flag | 17) == EPERM


@pytest.mark.parametrize("architecture, socket", [(X86_64, 41), (I386, 359), (AARCH64, 198), (ARM, 281)])
def test_sockets(architecture: int, socket: int) -> None:
    program = sandbox.docker_filter()
    assert [answer(program, architecture, socket, family) for family in (1, 2, 10, 16, 37, 39, 41)] == [ALLOW] * 7
    assert [answer(program, architecture, socket, family) for family in (38, 40)] == [EPERM] * 2


@pytest.mark.parametrize("architecture, personality", [(X86_64, 135), (I386, 136), (AARCH64, 92), (ARM, 136)])
def test_personalities(architecture: int, personality: int) -> None:
    program = sandbox.docker_filter()
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert answer(program, architecture, personality, value) == ALLOW
    for value in (0x0040000, 0x8000000, 1):
        assert answer(program, architecture, personality, value) == EPERM


def test_other_modes_and_machines_get_no_calls() -> None:
    x32 = 0x40000000
    assert answer(sandbox.docker_filter(), X86_64, x32 | 165) == ENOSYS
    assert answer(sandbox.docker_filter(), 0xC0000015, 21) == ENOSYS


def test_pretending() -> None:
    program = sandbox.pretending_filter()
    for number in (92, 93, 94, 260, 105, 106, 113, 114, 116, 117, 119, 122, 123):
        assert answer(program, X86_64, number, 5, 6) == DONE
    for number in (0, 1, 59, 102, 104, 107, 115, 118, 120, 121, 90, 132):
        assert answer(program, X86_64, number) == ALLOW
    assert answer(program, X86_64, 133, 0, 0o020666) == DONE
    assert answer(program, X86_64, 259, 0, 0, 0o060600) == DONE
    assert answer(program, X86_64, 133, 0, 0o010666) == ALLOW
    assert answer(program, X86_64, 259, 0, 0, 0o100600) == ALLOW
    assert answer(program, AARCH64, 33, 0, 0, 0o020666) == DONE


@pytest.fixture
def tree(tmp_path: Path) -> str:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "f").touch()
    for name, target in {
        "abs": "/d",
        "rel": "d/e",
        "up": "../../../../d",
        "loop": "loop",
        "gone": "/n/o",
        "d/back": "../f",
        "climb": "..",
    }.items():
        (tmp_path / name).symlink_to(target)
    return str(tmp_path)


@pytest.mark.parametrize(
    "target, parts, kind",
    [
        ("/", "", "dir"),
        ("/d", "d", "dir"),
        ("//d/./e/", "d/e", "dir"),
        ("/f", "f", "file"),
        ("/abs/e", "d/e", "dir"),
        ("/rel", "d/e", "dir"),
        ("/up/e", "d/e", "dir"),
        ("/climb/d", "d", "dir"),
        ("/d/back", "f", "file"),
        ("/d/../../../f", "f", "file"),
        ("/gone", "n/o", ""),
        ("/gone/x", "n/o/x", ""),
        ("/new/../d", "d", "dir"),
        ("/new/deep", "new/deep", ""),
        ("/rel/new", "d/e/new", ""),
    ],
)
def test_locate(tree: str, target: str, parts: str, kind: str) -> None:
    found, there = sandbox.locate(tree, target)
    assert ("/".join(found), there) == (parts, kind)


@pytest.mark.parametrize(
    "target, number", [("/loop", errno.ELOOP), ("/f/x", errno.ENOTDIR), ("/d/back/x", errno.ENOTDIR)]
)
def test_locate_refuses(tree: str, target: str, number: int) -> None:
    with pytest.raises(OSError) as caught:
        sandbox.locate(tree, target)
    assert caught.value.errno == number


def test_starts_with_little() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import builder.sandbox;"
        "heavy = {'typing', 're', 'enum', 'socket', 'signal', 'json', 'collections'}; print(*heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(HERE.parents[2])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def in_own_process(body: str, *arguments: str) -> str:
    """Run Python in a process without threads, as forking wants it, and return what it prints."""
    script = f"import sys\nfrom builder import sandbox\n{body}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=HERE.parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_attempt_tells_why_it_failed() -> None:
    body = """
def fail():
    raise OSError(13, "because")
print(repr(sandbox.attempt(fail)), sandbox.attempt(lambda: None))
print(repr(sandbox.attempt(lambda: 1 / 0).strerror))
"""
    assert in_own_process(body).splitlines() == ["PermissionError(13, 'because') None", "'status 256'"]


@needs_root
def test_a_trial_overlay_leaves_nothing(tmp_path: Path) -> None:
    assert sandbox.try_overlay(str(tmp_path), userxattr=False) is None
    assert list(tmp_path.iterdir()) == []
    assert sandbox.try_overlay(str(tmp_path / "none"), userxattr=False) is not None
    assert isinstance(sandbox.try_overlay("/proc/self", userxattr=False), OSError)


@needs_root
@pytest.mark.parametrize("layers, expected", [(120, "120 True"), (400, "400 layers are more than this kernel mounts")])
def test_kernels_that_take_all_lowers_at_once(tmp_path: Path, layers: int, expected: str) -> None:
    body = """
import os, errno
place, layers = sys.argv[1], int(sys.argv[2])
names = [f"{n:024x}" for n in range(layers)]
for name in (*names, "upper", "work", "mount"):
    os.mkdir(f"{place}/{name}")
for name in names:
    open(f"{place}/{name}/{name}", "w").close()
def refuse(*_):
    raise OSError(errno.EINVAL, "as older kernels do")
sandbox.overlay = refuse
sandbox.unshare(sandbox.CLONE_NEWNS)
sandbox.propagation(sandbox.MS_PRIVATE)
base, upper, work = (os.open(p, os.O_PATH) for p in (place, place + "/upper", place + "/work"))
try:
    sandbox._attach_overlay("mount", names, False, base, base, upper, work, sandbox.NODEV)
    flags = os.statvfs(place + "/mount").f_flag
    print(len(os.listdir(place + "/mount")), bool(flags & os.ST_NODEV))
except OSError as error:
    print(error.strerror)
"""
    assert in_own_process(body, str(tmp_path), str(layers)) == expected


@needs_root
def test_the_kernels_own_words_are_told() -> None:
    with pytest.raises(OSError, match="nosuchoption"):
        sandbox.filesystem("tmpfs", [("nosuchoption", "1")])


@needs_root
@pytest.mark.skipif(not shutil.which("/bin/busybox"), reason="needs /bin/busybox (busybox-static)")
def test_a_killed_builder_takes_its_runs_along(tmp_path: Path) -> None:
    mark = str(100_000_000 + time.time_ns() % 100_000_000)
    for name in ("layers/base/bin", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tmp_path / "layers/base/bin/busybox")
    body = """
import threading
from pathlib import Path
from builder.executors import RunSpec
from builder.executors.namespaces import NamespaceExecutor
from cache.snapshots import OverlayRoot
place = Path(sys.argv[1])
root = OverlayRoot(place / "layers", ("base",), place / "upper", place / "work", False)
sleep = f"busybox sleep {sys.argv[2]}"
argv = ("/bin/busybox", "sh", "-c", f"trap '' TERM; busybox setsid {sleep} & echo up; {sleep}")
show = lambda data: print(data.decode(), end="", flush=True)
NamespaceExecutor("privileged").run(RunSpec(root, argv, ("PATH=/bin",)), show, threading.Event())
"""
    script = f"import sys\n{body}"
    builder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), mark], cwd=HERE.parents[2], stdout=subprocess.PIPE, text=True
    )
    with builder:
        assert builder.stdout
        try:
            assert builder.stdout.readline() == "up\n"
            # The command says so before its children have become what they are to be.
            for _ in range(500):
                if len(sleepers(mark)) == 2:
                    break
                time.sleep(0.02)
            assert len(sleepers(mark)) == 2
        finally:
            # Otherwise leaving the block would wait for it for ever.
            builder.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not sleepers(mark):
            break
        time.sleep(0.02)
    assert not sleepers(mark)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


OUTSIDE = """
import os, sys
from builder import sandbox
os.chdir(sys.argv[1])
os.chroot(sys.argv[2])
try:
    sandbox.enter_folder(".")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to chroot")
def test_a_working_directory_outside_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "other").mkdir()
    for place in ("other", "."):
        done = subprocess.run(
            [sys.executable, "-c", OUTSIDE, str(tmp_path / place), str(tmp_path / "root")], cwd=HERE.parents[2],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "the working directory . is not in the image\n"


def sleepers(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if f"sleep\0{mark}\0".encode() in command:
            found.append(path.parent.name)
    return found


CONFINED = """
import os, sys
from builder import sandbox
folder = os.open(sys.argv[1], os.O_PATH | os.O_DIRECTORY)
sandbox.no_new_privileges()
print(sandbox.confine(folder))
open(sys.argv[1] + "/inside", "w").write("x")
os.mkdir(sys.argv[1] + "/d")
os.rename(sys.argv[1] + "/inside", sys.argv[1] + "/d/moved")
for act in (
    lambda: open(sys.argv[2]),
    lambda: open(sys.argv[2], "w"),
    lambda: os.listdir("/"),
    lambda: os.unlink(sys.argv[2]),
    lambda: os.kill(os.getppid(), 0),
):
    try:
        act()
        print("allowed")
    except PermissionError:
        print("refused")
"""


def test_landlock_confines_to_a_folder(tmp_path: Path) -> None:
    version = sandbox.landlock_version()
    if version < 2:
        pytest.skip("needs Landlock, version 2")
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, str(tmp_path / "root"), str(tmp_path / "outside")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    signals = "refused" if version >= 6 else "allowed"
    assert done.stdout.split() == ["True", "refused", "refused", "refused", "refused", signals]
    assert (tmp_path / "root/d/moved").read_text() == "x"
    assert (tmp_path / "outside").read_text() == "x"

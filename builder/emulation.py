"""Whether RUN can start programs of another processor here, found out by starting one.

The kernel hands such programs to an interpreter, most often QEMU's, that somebody has registered with it:
https://docs.kernel.org/admin-guide/binfmt-misc.html. One that was registered with the flag F was opened then and works
in every root; any other one has to lie in the root itself, under the same path.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.errors import BuildError
from builder.model import RunStep
from builder.platforms import normal_platform
from cache.oci import host_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from builder.engine import StageWork
    from cache.oci import Layer, Platform

BINFMT = "/proc/sys/fs/binfmt_misc"


class _Machine(Struct, frozen=True):
    """How a program of one processor looks: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html.

    number: e_machine. code: instructions that end the process with status 0.
    """

    number: int
    code: bytes
    wide: bool = True
    order: str = "<"
    flags: int = 0


_MACHINES = {
    "amd64": _Machine(62, bytes.fromhex("b83c00000031ff0f05")),
    "386": _Machine(3, bytes.fromhex("b80100000031dbcd80"), wide=False),
    "arm64": _Machine(183, bytes.fromhex("a80b80d2000080d2010000d4")),
    "arm": _Machine(40, bytes.fromhex("0170a0e30000a0e3000000ef"), wide=False, flags=0x5000000),
    "riscv64": _Machine(243, bytes.fromhex("9308d0051305000073000000"), flags=4),
    "ppc64le": _Machine(21, bytes.fromhex("010000380000603802000044"), flags=2),
    "s390x": _Machine(22, bytes.fromhex("a72900000a01"), order=">"),
    "mips64le": _Machine(8, bytes.fromhex("c2130224000004240c000000"), flags=0x60000000),
    "loong64": _Machine(258, bytes.fromhex("0b7481030400150000002b00"), flags=3),
}


def program(architecture: str) -> bytes | None:
    """The smallest program of a processor that does nothing; None where it is not known how one looks."""
    machine = _MACHINES.get(architecture)
    if machine is None:
        return None
    start = 0x400000 if machine.wide else 0x10000
    head, row = (64, 56) if machine.wide else (52, 32)
    size = head + row + len(machine.code)
    ident = b"\x7fELF" + bytes([2 if machine.wide else 1, 1 if machine.order == "<" else 2, 1]) + bytes(9)
    word = "Q" if machine.wide else "I"
    header = struct.pack(
        machine.order + "HHI" + 3 * word + "IHHHHHH",
        *(2, machine.number, 1, start + head + row, head, 0, machine.flags, head, row, 1, 0, 0, 0),
    )
    if machine.wide:
        segment = struct.pack(machine.order + "IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x10000)
    else:
        segment = struct.pack(machine.order + "IIIIIIII", 1, 0, start, start, size, size, 5, 0x10000)
    return ident + header + segment + machine.code


def check(stages: Sequence[StageWork], folder: Path, has: Callable[[tuple[Layer, ...], str], bool]) -> list[BuildError]:
    """What keeps RUNs of these stages from starting: an error for each processor, at its first RUN.

    folder: where a program can be put to be tried. has: whether layers have a file of this path.
    """
    found: dict[Platform, BuildError | None] = {}
    platforms: dict[int, tuple[Platform | None, tuple[Layer, ...]]] = {}
    for stage in stages:
        below = stage.plan.base.stage
        platform, layers = platforms.get(below, (None, ())) if below is not None else (None, ())
        if stage.base is not None:
            # What the programs in the root are made for; the stage's own platform is what the image will bear.
            platform, layers = normal_platform(stage.base.config.platform), stage.base.layers
        platforms[stage.plan.stage.index] = (platform, layers)
        run = next((lowered for lowered in stage.lowered if isinstance(lowered.step, RunStep)), None)
        if run is None or platform is None or not platform.architecture or platform in found:
            continue
        problem = _problem(platform, folder, lambda path, layers=layers: has(layers, path))  # type: ignore[misc]
        found[platform] = problem
        if problem is not None:
            problem.span, problem.source = run.instruction.span, run.source
    return [problem for problem in found.values() if problem is not None]


def _problem(platform: Platform, folder: Path, has: Callable[[str], bool]) -> BuildError | None:
    here = normal_platform(host_platform())
    if platform.os != "linux":
        return BuildError(f"RUN can not start programs of {platform} here", hint="only those of linux can be started")
    if platform.architecture == here.architecture:
        return None
    status = _tried(platform.architecture, folder)
    if status == 0:
        # Registered, and the interpreter is on this machine; without the flag F it has to be in the root as well.
        handler = _handler(platform.architecture)
        if handler is None or "F" in handler[1] or has(handler[0]):
            return None
        return BuildError(
            f"RUN can not start programs of {platform}: their interpreter {handler[0]} is registered without the flag "
            "F, and is not in the base image",
            hint=_HINT.format(platform.architecture),
        )
    if status == errno.ENOENT:
        handler = _handler(platform.architecture)
        if handler is not None and has(handler[0]):
            return None
        name = handler[0] if handler else "their interpreter"
        return BuildError(
            f"RUN can not start programs of {platform}: {name} is registered, and neither here nor in the base image",
            hint=_HINT.format(platform.architecture),
        )
    return BuildError(
        f"RUN can not start programs of {platform} on {here}: nothing is registered for them with the kernel",
        hint=_HINT.format(platform.architecture),
    )


_HINT = (
    "apt-get install qemu-user-static binfmt-support, or docker run --privileged --rm tonistiigi/binfmt --install {0}; "
    "a stage FROM --platform=$BUILDPLATFORM needs neither, nor does one without RUN"
)


def _tried(architecture: str, folder: Path) -> int:
    """0 when a program of this processor ends well here, else the number of the error that starting it came to."""
    import subprocess

    data = program(architecture)
    if data is None:
        return errno.ENOEXEC
    path = os.path.join(folder, f"try-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700), "wb") as file:
            file.write(data)
        done = subprocess.run([path], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    except OSError as error:
        return error.errno or errno.ENOEXEC
    except subprocess.TimeoutExpired:
        return errno.ENOEXEC
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return 0 if done.returncode == 0 else errno.ENOEXEC


def _handler(architecture: str) -> tuple[str, str] | None:
    """The interpreter that is registered for a processor's programs, and its flags, as far as the kernel shows them."""
    sample = program(architecture) or b""
    try:
        names = sorted(os.listdir(BINFMT))
    except OSError:
        return None
    for name in names:
        if name in {"register", "status"}:
            continue
        try:
            with open(os.path.join(BINFMT, name), encoding="ascii", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        facts = dict(line.partition(" ")[::2] for line in lines)
        if "enabled" not in facts or "magic" not in facts:
            continue
        magic = bytes.fromhex(facts["magic"])
        mask = bytes.fromhex(facts.get("mask", "ff" * len(magic)))
        start = int(facts.get("offset", "0"))
        seen = sample[start : start + len(magic)]
        if len(seen) == len(magic) and all(a & m == b & m for a, b, m in zip(seen, magic, mask, strict=False)):
            flags = next((line.partition(":")[2].strip() for line in lines if line.startswith("flags:")), "")
            return facts.get("interpreter", ""), flags
    return None

"""What an OCI runtime is told: the filter by names is the filter by numbers."""

from __future__ import annotations

import ctypes
import errno
import json
from pathlib import Path

import pytest

from builder import bundle, sandbox
from tests.builder.test_sandbox import answer

ARCHITECTURES = {"x86_64": (0xC000003E, 0x40000003), "aarch64": (0xC00000B7, 0x40000028)}
ALLOW, ENOSYS = "SCMP_ACT_ALLOW", 0x50000 | errno.ENOSYS
CONDITIONAL = {"clone", "personality", "socket"}


def names_of(architecture: int) -> dict[int, str]:
    """The names of an architecture's calls, as runtimes resolve them."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("needs libseccomp")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    found = ((n, library.seccomp_syscall_resolve_num_arch(architecture, n)) for n in range(467))
    return {number: name.decode() for number, name in found if name}


@pytest.mark.parametrize("machine, architecture", [(m, a) for m, both in ARCHITECTURES.items() for a in both])
@pytest.mark.parametrize("single", [False, True])
def test_names_say_what_numbers_say(machine: str, architecture: int, single: bool) -> None:
    rules: dict[str, dict[str, object]] = {}
    for rule in bundle.seccomp(machine, single)["syscalls"]:
        for name in rule["names"]:
            assert rule.get("args") or name not in rules, f"{name} is there twice"
            rules[name] = rule
    programs = [sandbox.docker_filter(), *([sandbox.pretending_filter()] if single else [])]
    for number, name in names_of(architecture).items():
        if name in CONDITIONAL or (single and name in {"mknod", "mknodat"}):
            continue
        rule = rules.get(name)
        said = (
            ENOSYS if rule is None else 0x7FFF0000 if rule["action"] == ALLOW else 0x50000 | int(str(rule["errnoRet"]))
        )
        assert said == min(answer(program, architecture, number) for program in programs), name


@pytest.mark.parametrize("machine", [*ARCHITECTURES, "riscv64"])
def test_it_is_plain_json(machine: str) -> None:
    profile = json.loads(json.dumps(bundle.seccomp(machine, True)))
    assert ("architectures" in profile) == (machine in ARCHITECTURES)
    assert profile["defaultErrnoRet"] == errno.ENOSYS


def test_capabilities_have_their_numbers() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("needs the kernel's headers")
    lines = (line.split() for line in header.read_text().splitlines() if line.startswith("#define CAP_"))
    numbers = {words[1].removeprefix("CAP_"): int(words[2]) for words in lines if words[2].isdecimal()}
    assert {name: numbers[name] for name in bundle.CAPABILITIES} == {n: i for i, n in enumerate(bundle.CAPABILITIES)}

"""The choice of a tier, made by processes that stand where users do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import isolation
from builder.errors import UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
TIER = ROOT / "tests" / "tiers" / "tier.py"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")

SCRIPT = """
import sys, os
from builder.isolation import choose, require
from builder.errors import UnsupportedError
try:
    forced, _, least = sys.argv[1].partition(",")
    chosen = choose(forced)
    if least:
        require(chosen, least)
    print(chosen.tier, chosen.userns, os.geteuid(), sep="|")
    print(chosen.reason)
    print(chosen.hint)
    chosen.executor().close()
except UnsupportedError as error:
    print("unsupported", error.message, error.hint, sep="|")
"""


def choose_as(tier: str, forced: str = "auto", *before: str, path: str | None = None) -> list[str]:
    """What a process of an emulated tier chooses."""
    emulated = [sys.executable, str(TIER), tier, "--"] if tier else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(
        [*emulated, *before, sys.executable, "-c", SCRIPT, forced],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and ("Permission denied" in done.stderr or "PermissionError" in done.stderr):
        pytest.skip(f"another user can not run {sys.executable}: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_root
def test_real_root() -> None:
    assert choose_as("") == ["privileged|False|0", "real root with the right to mount", ""]


@needs_root
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs newuidmap (package uidmap)")
def test_user_with_subordinate_ids() -> None:
    assert choose_as("rootless") == ["rootless|True|0", "user namespace with 65536 subordinate ids", ""]


@needs_root
def test_user_without_subordinate_ids() -> None:
    who, reason, hint = choose_as("rootless-single")
    assert who == "rootless-single|True|0"
    assert reason.startswith("user namespace with one id: ")
    assert hint


@needs_root
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs newuidmap (package uidmap)")
def test_one_id_may_be_asked_for() -> None:
    who, reason, _ = choose_as("rootless", "rootless-single")
    assert (who, reason) == ("rootless-single|True|0", "user namespace with one id: asked for")


@needs_root
def test_more_ids_than_there_are_can_not_be_forced() -> None:
    (line,) = choose_as("rootless-single", "rootless")
    assert line.startswith("unsupported|isolation rootless is not to be had: ")
    assert "usermod --add-subuids" in line or "uidmap" in line


@needs_root
def test_root_that_may_not_mount_makes_a_user_namespace() -> None:
    assert choose_as("unmountable") == ["rootless|True|0", "user namespace with all ids of this machine", ""]


@needs_root
def test_where_nothing_goes_files_still_do() -> None:
    who, reason, hint, refused = choose_as("hardened", path="/nowhere")
    assert who.startswith("hardened|False|")
    assert who != "hardened|False|0"
    assert reason.startswith("not root; user namespaces with mounts are refused (unshare: ")
    assert reason.endswith("; no proot on PATH")
    assert "seccomp" in hint
    assert refused == f"unsupported|RUN can not work in tier hardened: {reason}|{hint}; or install proot"


@needs_root
@pytest.mark.skipif(not shutil.which("proot"), reason="needs proot")
@pytest.mark.skipif(not os.stat("/tmp").st_mode & 0o002, reason="proot needs a /tmp that all may write to")
def test_proot_is_taken_where_nothing_else_goes() -> None:
    who, reason, hint = choose_as("hardened")
    assert who.startswith("hardened|False|")
    assert reason.startswith(f"RUN by {shutil.which('proot')}; not root; ")
    assert hint
    assert choose_as("hardened", "proot,proot")[0] == who


@needs_root
def test_a_proot_that_fails_is_not_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "proot").write_text("#!/bin/sh\nexit 5\n")
    (tmp_path / "proot").chmod(0o755)
    (line,) = choose_as("hardened", "proot", path=str(tmp_path))
    assert "proot does not work (status 5" in line or "no proot on PATH" in line


@needs_root
def test_root_in_a_pod_may_chroot() -> None:
    who, reason, hint = choose_as("pod")
    assert who == "pod|False|0"
    assert reason.startswith("root that may chroot; root without the right to mount (unshare: ")
    assert "user namespaces with mounts are refused" in reason
    assert "seccomp" in hint


@needs_root
def test_a_chroot_may_be_asked_for() -> None:
    assert choose_as("", "chroot") == ["pod|False|0", "root that may chroot", ""]
    (line,) = choose_as("hardened", "chroot")
    assert line.startswith("unsupported|isolation chroot is not to be had: not root|")


@needs_root
def test_less_than_what_is_required_is_refused() -> None:
    assert choose_as("pod", "auto,chroot")[0] == "pod|False|0"
    assert choose_as("", "auto,chroot")[0] == "privileged|False|0"
    (line,) = choose_as("pod", "auto,namespaces")
    assert line.startswith(
        "unsupported|isolation by namespaces is required, and here there is chroot (tier pod): root that"
    )
    (line,) = choose_as("hardened", "auto,proot", path="/nowhere")
    assert line.startswith(
        "unsupported|isolation by proot is required, and here there is no RUN at all (tier hardened): "
    )
    (line,) = choose_as("", "auto,most")
    assert line == "unsupported|isolation 'most' can not be required|there are: namespaces, chroot, proot"


@needs_root
def test_forced_where_nothing_goes() -> None:
    (line,) = choose_as("hardened", "namespaces")
    assert line.startswith("unsupported|isolation namespaces is not to be had: not root; ")


@needs_root
def test_user_namespaces_switched_off_are_named() -> None:
    switch = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    (line,) = choose_as("", "rootless", "unshare", "-Urm", "sh", "-c", switch, "sh")
    assert "user.max_user_namespaces=0" in line
    assert "sysctl -w user.max_user_namespaces=" in line


@needs_root
def test_root_of_a_user_namespace_is_known_as_such() -> None:
    who, reason, _ = choose_as("", "auto", "unshare", "-Ur")
    assert who == "privileged|True|0"
    assert "user namespace" in reason


def test_unknown_name() -> None:
    with pytest.raises(UnsupportedError, match="'jail' is not supported") as caught:
        isolation.choose("jail")
    assert "rootless-single" in caught.value.hint


def test_subordinate_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_user", lambda: "me")
    path = tmp_path / "subuid"
    path.write_text(f"# comment\nyou:1:2\nme:100:200\n{os.geteuid()}:300:400\nme:bad:1\nme:5:0\n\nmenot:7:8\n")
    assert isolation._subordinate(str(path)) == ((100, 200), (300, 400))
    assert isolation._subordinate(str(tmp_path / "none")) == ()


def test_a_masked_proc_is_explained() -> None:
    reason, hint = isolation._why_not(PermissionError(1, "new proc: Operation not permitted"))
    assert "masks parts of /proc" in reason
    assert "systempaths=unconfined" in hint


@needs_root
@pytest.mark.skipif(not isolation.runtime_path("crun"), reason="needs crun")
def test_runtime_that_is_there() -> None:
    path = isolation.runtime_path("crun")
    assert choose_as("", "crun") == ["privileged|False|0", f"real root with the right to mount; RUN by {path}", ""]
    assert choose_as("", "crun,namespaces")[0] == "privileged|False|0"


def test_runtime_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "runtime_path", lambda _name: "")
    with pytest.raises(UnsupportedError, match="there is no runc on PATH") as caught:
        isolation.choose("runc")
    assert caught.value.hint == "install the package runc, or choose crun"

"""Every folder of examples/ builds, and what it builds works."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.peers.tools import EXAMPLES, Tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def in_root(folder: Path, *argv: str, text: str = "") -> str:
    """What a program prints with `folder` as its root directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to change the root directory")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        ["chroot", folder, *argv], check=True, input=text, capture_output=True, text=True, env=env
    ).stdout


def test_hello(pybuild: Tool, tmp_path: Path) -> None:
    pybuild(
        "build", "-t", "hello", "--build-context", "base=host:", "-o", f"type=local,dest={tmp_path}", EXAMPLES / "hello"
    )
    assert (tmp_path / "hello" / "greeting.txt").read_text() == "Hello, builder, from Linux.\n"
    assert in_root(tmp_path, "/hello/greet.sh", "tester") == "Hello, tester, from Linux.\n"
    assert not (tmp_path / "hello" / "README.md").exists()


def test_c_multistage(pybuild: Tool, debian_base: str, tmp_path: Path) -> None:
    pybuild("build", "--target", "test", EXAMPLES / "c-multistage")
    pybuild("build", "-t", "count", "-o", f"type=local,dest={tmp_path}", EXAMPLES / "c-multistage")
    assert [path.name for path in tmp_path.iterdir()] == ["count"]
    assert in_root(tmp_path, "/count", text="a b\nc\n") == "2 lines, 3 words\n"
    (config,) = json.loads(pybuild("image", "inspect", "count"))
    assert config["Config"]["User"] == "65534:65534"


def test_leftovers(pybuild: Tool, debian_base: str) -> None:
    pybuild("build", "-t", "leftovers", EXAMPLES / "leftovers")
    history = pybuild("history", "leftovers")
    assert "dd if=/dev/urandom" in history


def test_every_example_has_a_test(pybuild: Tool) -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == {
        "hello", "c-multistage", "leftovers", "python-web",
    }  # fmt: skip

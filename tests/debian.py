"""A minimal Debian root file system for tests that need a real distribution, made once for all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SUITE = "bookworm"
"""What is made."""


def rootfs() -> tuple[Path | None, str]:
    """(tar, "") or (None, why there is none). Kept for later sessions in a temporary folder of this user's."""
    if os.geteuid() != 0:
        return None, "needs root, to make a Debian root file system"
    program = shutil.which("mmdebstrap")
    if program is None:
        return None, "needs mmdebstrap"
    folder = Path(tempfile.gettempdir()) / f"pybuild-tests-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        return None, f"{folder} belongs to somebody else"
    made = folder / f"{SUITE}.tar"
    with (folder / f"{SUITE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            fresh = folder / f"{SUITE}.new.tar"
            done = subprocess.run(
                [program, "--variant=minbase", "--quiet", SUITE, fresh],
                check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            if done.returncode:
                fresh.unlink(missing_ok=True)
                return None, f"mmdebstrap failed, perhaps without a network: {done.stderr.strip()[-300:]}"
            fresh.rename(made)
    return made, ""

"""How the tests call another tool, and what they say to all of them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Where CAP_SYS_RESOURCE is missing, runtimes fail on raising limits that they were not told to leave alone.
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=8192:8192")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Tool:
    """A command line with what every call of it needs. Calling it gives its standard output."""

    words: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()

    def run(self, *args: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, *map(str, args)], check=False, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, env={**os.environ, **dict(self.env)},
        )  # fmt: skip

    def __call__(self, *args: str | Path, timeout: float = 600) -> str:
        done = self.run(*args, timeout=timeout)
        assert done.returncode == 0, (
            f"{self.words[0]} {' '.join(map(str, args))}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

"""RUN by an OCI runtime that is installed, crun or runc: for users who want the one that their platform vouches for.

As in builder/executors/namespaces.py, by a server of the same kind: builder/bundle.py, which says what the runtime is
asked to do, and what it finds done.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from builder.errors import UnsupportedError
from builder.executors.namespaces import NamespaceExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from builder.executors import RunSpec


class RuntimeExecutor(NamespaceExecutor):
    """Runs by a runtime. program: its path, whose last part is crun or runc; the rest as for its base."""

    _SERVER = "builder.bundle"

    def __init__(
        self, tier: str, program: str, *, userns: bool = False, single: bool = False, network: str = ""
    ) -> None:
        super().__init__(tier, userns=userns, single=single, network=network)
        self._program = program

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.tier}, by {os.path.basename(self._program)}"

    def _stand_in(self, spec: RunSpec, output: Callable[[bytes], None]) -> None:  # noqa: ARG002 - nothing is run
        raise UnsupportedError(
            f"user {spec.uid}:{spec.gid} can not be had in tier {self.tier} by a runtime",
            hint="more ids take newuidmap and ranges in /etc/subuid and /etc/subgid",
        )

    def describe(self, spec: RunSpec) -> dict[str, Any]:
        """The request to the server. UnsupportedError for what a runtime can not be told."""
        for line in (*spec.argv, *spec.env):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise UnsupportedError(
                    f"{line!r} is not UTF-8, which a runtime must have", hint="build without --isolation=crun or runc"
                ) from error
        return {**super().describe(spec), "runtime": (os.path.basename(self._program), self._program)}

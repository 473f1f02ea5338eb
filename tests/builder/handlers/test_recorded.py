"""Config and history of every recorded build, as far as planning and lowering decide them.

The cases are those of tests/conformance; here nothing is built, so that all of them take a second. An error that only
files or a running command can bring about is not expected here.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from builder.errors import BuildError
from builder.handlers import inherited_state, initial_state, lower_all
from builder.handlers.expansion import MASK
from builder.plan import plan
from builder.platforms import parse_platform
from cache.oci import ImageConfig, RuntimeConfig, host_platform
from grammar.parser import parse
from grammar.source import DockerfileError, Source

if TYPE_CHECKING:
    from builder.model import StageState

CASES = Path(__file__).parents[2] / "conformance" / "cases"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IMAGES = {"busybox": ("sh",), "debian": ("bash",)}

# Outcomes that come from files, images, commands or users that have to be there.
NEEDS_A_BUILD = re.compile(
    r"parse-json-run-trailing|shell-missing|user-unknown|run-unknown|run-not-exec|run-signal|bind-from-unknown|"
    r"ssh-missing|wildcard-plus|bad-pattern|source-outside|missing|dir-onto-file|file-in-path|case-sensitive|chown-name|"
    r"flag-after-source|add-tar|source-escape|dangling|ignore-|shows-command|second-stage|from-unknown|file-as-dir"
)


def made(case: Path, spec: dict[str, object]) -> tuple[StageState, list[str]]:
    """The target's state and history. BuildError and DockerfileError as a build would raise them."""
    build_args: dict[str, str] = {}
    labels: dict[str, str] = {}
    contexts = list(IMAGES)
    target, platform, file = "", None, case / "ctx" / "Dockerfile"
    if (case / "www").exists():
        build_args["HTTP_BASE"] = f"http://127.0.0.1:<port>/{case.name.partition('-')[2]}"
    for argument in spec.get("args", []):  # type: ignore[attr-defined]
        flag, _, value = argument.partition("=")
        name, given, text = value.partition("=")
        match flag:
            case "--build-arg":
                build_args[name] = text if given else spec["env"][name]  # type: ignore[index]
            case "--label":
                labels[name] = text
            case "--target":
                target = value
            case "--platform":
                platform = parse_platform(value, host_platform())
            case "--build-context":
                contexts.append(name)
            case "--file":
                file = next(path for path in (case / value, case / "ctx" / value) if path.exists())
            case _:
                pass
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    found = plan(parse(Source("Dockerfile", text)), target, build_args, platform, contexts)
    states: dict[int, StageState] = {}
    histories: dict[int, list[str]] = {}
    for stage in found.stages:
        index = stage.stage.index
        scope = found.scope(index)
        histories[index] = []
        if stage.base.stage is not None:
            state = inherited_state(states[stage.base.stage], scope)
            histories[index] = list(histories[stage.base.stage])
        elif stage.base.context in IMAGES:
            config = RuntimeConfig(env=(PATH,), cmd=IMAGES[stage.base.context])
            state = initial_state(ImageConfig(platform=host_platform(), config=config), scope)
            histories[index] = ["conformance base"]
        elif stage.base.image in {"", "scratch"}:
            state = initial_state(None, scope)
        else:
            raise BuildError(f"there is no image {stage.base.image}")
        for lowered in lower_all(stage.instructions, state, scope):
            state = lowered.state
            histories[index] += [lowered.created_by] if lowered.created_by else []
        states[index] = state
    state = states[found.target]
    if labels:
        merged = tuple({**dict(state.config.labels), **labels}.items())
        state = replace(state, config=replace(state.config, labels=merged))
    return state, histories[found.target]


def complaint(case: Path, spec: dict[str, object]) -> str:
    """What is wrong with the case before anything is built; empty for nothing."""
    try:
        made(case, spec)
    except (BuildError, DockerfileError) as error:
        return f"line {error.span.line if error.span else 0}: {error.message} {error.hint}"
    return ""


def cases() -> list[Path]:
    """The cases whose Dockerfile lies in the folder as it is."""
    if not CASES.is_dir():
        return []
    return sorted(path for path in CASES.iterdir() if any(path.rglob("*ockerfile*")))


@pytest.mark.skipif(not cases(), reason="tests/conformance/cases is not there")
@pytest.mark.parametrize("case", cases(), ids=lambda path: path.name)
def test_recorded(case: Path) -> None:
    spec = tomllib.loads((case / "case.toml").read_text())
    expected = json.loads((case / "expected.json").read_text())
    if spec["expect"] == "error":
        said = complaint(case, spec)
        if said or not NEEDS_A_BUILD.search(case.name):
            assert re.search(spec["error_contains"], said, re.IGNORECASE)
        return
    try:
        state, history = made(case, spec)
    except StopIteration:
        pytest.skip("the Dockerfile is made by the case's set-up")
    got = state.config.to_json()
    for key in ("Volumes", "ExposedPorts"):
        if key in got:
            got[key] = sorted(got[key])
    assert got == expected["config"]
    lines = [line for line, _ in expected["history"] if not line.startswith("[")]
    if any(MASK in line for line in history):
        # BuildKit keeps secrets in the history.
        assert len(history) == len(lines)
        return
    assert history == lines

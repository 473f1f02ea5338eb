"""`--call` and `--check`: what is told instead of building, in BuildKit's forms."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from builder.cli import run
from builder.cli.surroundings import Surroundings

if TYPE_CHECKING:
    from pathlib import Path

FILE = """\
# TAG is the tag
ARG TAG=1
# VERSION what to build
ARG VERSION=2.${TAG}
ARG UNUSED
FROM scratch AS tools
# out is what you want
FROM scratch AS other
ARG OTHER=x
FROM busybox:$VERSION AS out
# FLAG turns it on
ARG FLAG=on
ARG TARGETARCH
RUN --mount=type=secret,id=s,required=true --mount=type=ssh --mount=type=cache,target=/c,id=go true
COPY --from=tools / /
CMD x
"""


class Desk:
    """A command line in a folder with a Dockerfile and no bases."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.out = self.err = ""

    def __call__(self, text: str, *words: str) -> int:
        (self.folder / "Dockerfile").write_text(text)
        out, err = io.StringIO(), io.StringIO()
        around = Surroundings({"PYBUILD_ROOT": str(self.root)}, io.BytesIO(), out, err)
        code = run(["build", *words, str(self.folder)], around)
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def json(self, text: str, *words: str) -> Any:
        self(text, *words)
        return json.loads(self.out)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "ctx"
    folder.mkdir()
    return Desk(folder, tmp_path / "store")


def place(*lines: int) -> dict[str, Any]:
    return {"ranges": [{"start": {"line": line}, "end": {"line": line}} for line in lines]}


def test_outline(desk: Desk) -> None:
    found = desk.json(FILE, "--call=outline,format=json")
    assert found == {
        "name": "out",
        "args": [
            {"name": "TAG", "description": "is the tag", "value": "1", "location": place(2)},
            {"name": "VERSION", "description": "what to build", "value": "2.1", "location": place(4)},
            {"name": "FLAG", "description": "turns it on", "value": "on", "location": place(12)},
        ],
        "secrets": [{"name": "s", "required": True, "location": place(14)}],
        "ssh": [{"name": "default", "location": place(14)}],
        "cache": [{"ID": "go", "location": place(14)}],
        "sources": [base64.b64encode(FILE.encode()).decode()],
    }


def test_outline_has_the_values_of_this_command_line_and_target(desk: Desk) -> None:
    found = desk.json(FILE, "--call=outline,format=json", "--build-arg=OTHER=y", "--target=other")
    assert found["args"] == [{"name": "OTHER", "value": "y", "location": place(9)}]
    assert found["name"] == "other"


def test_outline_as_text(desk: Desk) -> None:
    assert desk(FILE, "--call=outline") == 0
    assert (
        desk.out
        == """\
TARGET: out

BUILD ARG   VALUE   DESCRIPTION
TAG         1       is the tag
VERSION     2.1     what to build
FLAG        on      turns it on

SECRET   REQUIRED
s        true

SSH       REQUIRED
default

CACHE
go
"""
    )


def test_targets(desk: Desk) -> None:
    text = "# a is first\nFROM scratch AS a\nFROM --platform=$BUILDPLATFORM a\n"
    assert desk.json(text, "--call=targets,format=json") == {
        "targets": [
            {"name": "a", "description": "is first", "base": "scratch", "location": place(2)},
            {"default": True, "base": "a", "platform": "$BUILDPLATFORM", "location": place(3)},
        ],
        "sources": [base64.b64encode(text.encode()).decode()],
    }
    assert desk(text, "--call=targets") == 0
    assert desk.out == "TARGET    DESCRIPTION\na         is first\n(default)\n"


def test_a_check_that_finds_nothing(desk: Desk) -> None:
    assert desk("FROM scratch\n", "--check") == 0
    assert desk.out == "Check complete, no warnings found.\n"


def test_a_check_that_finds_something(desk: Desk) -> None:
    text = "FROM scratch AS Base\nCMD x\n"
    assert desk(text, "--check") == 1
    assert desk.out.startswith(
        "Check complete, 2 warnings have been found!\n\n"
        "WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/\n"
        "Stage name 'Base' should be lowercase\n"
    )
    assert desk(text, "--call=check,ignorestatus") == 0
    found = desk.json("FROM scratch\nENV A=$HOEM \\\n  B=1\nENV HOME=1\n", "--call=lint,format=json")
    assert found["warnings"] == [
        {
            "ruleName": "UndefinedVar",
            "description": "Variables should be defined before their use",
            "url": "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
            "detail": "Usage of undefined variable '$HOEM'",
            "location": place(2, 3),
        }
    ]
    assert found["sources"][0]["language"] == "Dockerfile"
    assert "buildError" not in found


def test_a_check_looks_at_every_stage_unless_a_target_is_named(desk: Desk) -> None:
    text = "FROM scratch AS unused\nCMD x\nFROM scratch AS other\n"
    assert desk(text, "--check") == 1
    assert desk(text, "--check", "--target=other") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM scratch\nENVV A=1\n", "unknown instruction"),
        ("FROM scratch\nCOPY --from=7 a b\n", "invalid stage index"),
        ("FROM scratch AS a\nSTOPSIGNAL nonsense\nFROM scratch\n", "invalid signal"),
    ],
)
def test_a_check_of_a_file_that_does_not_build(desk: Desk, text: str, message: str) -> None:
    assert desk(text, "--check") == 1
    assert message in desk.out
    found = desk.json(text, "--call=check,format=json")
    assert message in found["buildError"]["message"]
    assert found["buildError"]["location"]["ranges"]


def test_what_the_text_tells_is_told_even_without_a_plan(desk: Desk) -> None:
    found = desk.json("FROM scratch AS A\nFROM $NOTHING\n", "--call=check,format=json")
    assert [warning["ruleName"] for warning in found["warnings"]] == ["StageNameCasing", "InvalidDefaultArgInFrom"]
    assert "should not be blank" in found["buildError"]["message"]


@pytest.mark.parametrize(
    "words", [["--call=nonsense"], ["--call=check,format=xml"], ["--check", "--call=outline"], ["--call=check,what"]]
)
def test_what_can_not_be_called(desk: Desk, words: list[str]) -> None:
    assert desk("FROM scratch\n", *words) == 2


def test_a_missing_base_is_said(desk: Desk) -> None:
    assert desk("FROM debian\nENV A=$B\n", "--check") == 0
    assert "debian is not here" in desk.err


def test_findings_can_be_made_errors(desk: Desk) -> None:
    """A build, which needs no tier as long as nothing runs."""
    text = "# check=error=true\nFROM scratch\nCMD x\nMAINTAINER y\n"
    assert desk(text, "--dry-run") == 1
    assert "lint violation found for rules: JSONArgsRecommended, MaintainerDeprecated" in desk.err
    assert desk(text, "--dry-run", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=all;error=true") == 0
    assert "not consumed" not in desk.err
    assert desk(text, "--dry-run", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=nonsense") == 1
    assert "BUILDKIT_DOCKERFILE_CHECK" in desk.err
    assert (
        desk("FROM scratch\n", "--dry-run", "--build-arg=BUILDKIT_DOCKERFILE_CHECK=error=true", "--build-arg=X=1") == 0
    )
    assert "not consumed" in desk.err

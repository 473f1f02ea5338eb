"""Files and what the parser makes of them: tests/golden/parse/NAME.Dockerfile and NAME.result.

To add one, write the Dockerfile and run these tests with PYBUILD_UPDATE_GOLDEN=1; then read what has been written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grammar.parser import parse
from grammar.source import DockerfileError, DockerfileErrors, Source, Span

FOLDER = Path(__file__).parents[1] / "golden/parse"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    found = result(Source.decode(path.name, path.read_bytes()))
    expected = path.with_suffix(".result")
    if os.environ.get("PYBUILD_UPDATE_GOLDEN"):
        expected.write_text(found, "utf-8")
    assert found == expected.read_text("utf-8")


def test_every_result_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.result")} == {path.stem for path in FOLDER.glob("*.Dockerfile")}
    assert len(list(FOLDER.glob("*.result"))) > 20


def result(source: Source) -> str:
    try:
        file = parse(source)
    except DockerfileErrors as errors:
        return "\n".join(render(error) for error in errors.errors)
    except DockerfileError as error:
        return render(error)
    lines = [f"directives: {shown(file.directives)}"]
    instructions = [*file.global_args, *(item for stage in file.stages for item in (stage.from_, *stage.instructions))]
    for instruction in instructions:
        lines += ["", f"{place(instruction.span)} {type(instruction).__name__} {instruction.text!r}"]
        lines += fields(instruction)
    if file.trailing_comments:
        lines += ["", f"trailing_comments: {file.trailing_comments}"]
    return "\n".join(lines) + "\n"


def render(error: DockerfileError) -> str:
    """The error as a reader sees it, roughly: the line it begins in, marks below the part that is wrong."""
    span = error.span
    (text,) = error.source.lines(span.line, span.line) or [""]
    end = span.end_column if span.end_line == span.line else len(text) + 1
    marks = " " * (span.column - 1) + "^" * max(end - span.column, 1)
    lines = [
        f"error: {error.message}",
        f"  {error.source.name}:{span.line}:{span.column}",
        f"  | {text}",
        f"  | {marks}",
    ]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines) + "\n"


def fields(value: Any) -> list[str]:
    """The fields that say more than their default does."""
    lines = []
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        if field.name in {"span", "text", "keyword"} or item == field.default:
            continue
        lines.append(f"  {field.name}: {shown(item)}")
    return lines


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(item) for item in value) + ")"
    if not isinstance(value, msgspec.Struct):
        return repr(value)
    pairs = [(field.name, getattr(value, field.name)) for field in msgspec.structs.fields(value)]
    inner = " ".join(place(item) if isinstance(item, Span) else f"{name}={shown(item)}" for name, item in pairs)
    return f"{type(value).__name__}[{inner}]"


def place(span: Span) -> str:
    return f"{span.line}:{span.column}-{span.end_line}:{span.end_column}"

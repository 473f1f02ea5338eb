"""The parser against BuildKit's recorded table of files, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grammar import instructions as nouns
from grammar.parser import parse
from grammar.source import DockerfileError, Source

TABLE = Path(__file__).parents[1] / "conformance/tables/parse.jsonl"
ROWS = [json.loads(line) for line in TABLE.read_text("utf-8").split("\n") if line]


def test_table_is_whole() -> None:
    assert len(ROWS) == 88


def text_of(row: dict[str, Any]) -> str:
    if "text_repeat" in row:
        before, unit, count, after = row["text_repeat"]
        return str(before + unit * count + after)
    return str(row["text"])


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_table(row: dict[str, Any]) -> None:
    source = Source("Dockerfile", text_of(row))
    if "parse_error" in row or "instruction_error" in row:
        with pytest.raises(DockerfileError):
            parse(source)
        return
    file = parse(source)
    assert file.directives.escape == row["escape"]
    found: list[nouns.Instruction] = [*file.global_args]
    for stage in file.stages:
        found += [stage.from_, *stage.instructions]
    assert [describe(instruction) for instruction in found] == [
        {key: value for key, value in item.items() if value not in (False, [])} for item in row["instructions"]
    ]
    assert sum(bool(instruction.empty_continuations) for instruction in found) == row["warnings"]


def describe(instruction: nouns.Instruction) -> dict[str, Any]:
    """The instruction as the table writes it, without what is false or empty."""
    found = {
        "instruction": instruction.keyword.lower(),
        "start": instruction.span.line,
        "end": max(instruction.span.end_line, *instruction.empty_continuations, 0)
        if instruction.empty_continuations
        else instruction.span.end_line,
        "args": arguments(instruction),
        "flags": flags(instruction),
        "json": is_json(instruction),
        "heredocs": heredocs(instruction),
    }
    return {key: value for key, value in found.items() if value not in (False, [])}


def arguments(item: nouns.Instruction) -> list[Any]:
    match item:
        case nouns.From():
            return [item.image.text, *([item.as_word, item.name_as_written] if item.as_word else [])]
        case nouns.Arg():
            return [pair.name if pair.value is None else f"{pair.name}={pair.value}" for pair in item.pairs]
        case nouns.Env() | nouns.Label():
            return [[pair.name, pair.value, "" if item.legacy else "="] for pair in item.pairs]
        case nouns.Run() | nouns.Cmd() | nouns.Entrypoint():
            return command(item.command)
        case nouns.Healthcheck():
            return ["CMD", *command(item.command)] if item.command else ["NONE"]
        case nouns.Transfer():
            return [*(h.raw for h in item.heredocs), *(word.text for word in item.sources), item.destination.text]
        case nouns.Onbuild():
            inner = item.trigger
            return [
                {
                    "instruction": inner.keyword,
                    "args": arguments(inner),
                    "flags": flags(inner),
                    "json": is_json(inner),
                }
            ]
        case nouns.Shell():
            return list(item.argv)
        case nouns.Volume():
            return [word.text for word in item.paths]
        case nouns.Expose():
            return [word.text for word in item.ports]
        case nouns.Maintainer():
            return [item.name]
        case _:
            pytest.fail(f"no row for {item}")


def command(form: nouns.Command) -> list[str]:
    return list(form.argv) if isinstance(form, nouns.ExecForm) else [form.text] if form.text else []


def is_json(item: nouns.Instruction) -> bool:
    if isinstance(item, nouns.Shell):
        return True
    return bool(getattr(item, "json", False)) or isinstance(getattr(item, "command", None), nouns.ExecForm)


def flags(item: nouns.Instruction) -> list[str]:
    found = [(word.span.column, f"--{name}={word.text}") for name, word in flag_words(item)]
    # A bare --link reads as true.
    return [text.replace("--link=true", "--link") for _, text in sorted(found)]


def flag_words(item: nouns.Instruction) -> list[tuple[str, nouns.Word]]:
    names = ("chown", "chmod", "link", "network", "retries")
    found = [(name, getattr(item, name, None)) for name in names]
    found.append(("from", getattr(item, "from_", None) if isinstance(item, nouns.Copy) else None))
    found += [("mount", word) for word in getattr(item, "mounts", ())]
    return [(name, word) for name, word in found if word is not None]


def heredocs(item: nouns.Instruction) -> list[dict[str, Any]]:
    return [
        {
            "name": h.name,
            "content": h.body if not h.strip_tabs else "\t" + h.body,
            "expand": h.expand,
            "chomp": h.strip_tabs,
            "fd": int(h.fd or 0),
        }
        for h in getattr(item, "heredocs", ())
    ]

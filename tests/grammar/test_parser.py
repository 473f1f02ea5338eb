"""The parser against BuildKit's recorded table of files, right and wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grammar import instructions as nouns
from grammar import parser
from grammar.mounts import mount_fields
from grammar.parser import parse, parse_trigger
from grammar.source import DockerfileError, Source

ROOT = Path(__file__).parents[2]
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


def test_trigger_with_heredoc() -> None:
    (onbuild,) = parse(Source("Dockerfile", "FROM a\nonbuild copy <<-E /x \n\ty\n\tE\n")).stages[0].instructions
    assert isinstance(onbuild, nouns.Onbuild)
    assert onbuild.trigger_text == "copy <<-E /x \n\ty\nE"
    trigger = parse_trigger(onbuild.trigger_text)
    assert isinstance(trigger, nouns.Copy)
    assert trigger.heredocs[0].body == "y\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUN a\nRUN b", "single expression"),
        ("FROM a", "isn't allowed"),
        ("ONBUILD RUN a", "isn't allowed"),
        ("", "no instructions"),
        ("COPY a", "two arguments"),
        ("RUN <<E\nx", "unterminated heredoc"),
    ],
)
def test_wrong_triggers(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        parse_trigger(text)


def test_every_instruction_has_a_rule_a_reader_and_a_noun() -> None:
    rules = re.findall(
        r"^([a-z]+): ", Path(parser.__file__).with_name("dockerfile.lark").read_text("utf-8"), re.MULTILINE
    )
    assert set(rules) == set(parser._READERS)
    subclasses = [*nouns.Instruction.__subclasses__(), *nouns.Transfer.__subclasses__()]
    assert {noun.__name__.lower() for noun in subclasses} - {"transfer"} == set(rules)


def test_every_flag_has_a_field() -> None:
    for name, flags in parser._FLAGS.items():
        noun = getattr(nouns, name.capitalize())
        fields = set(noun.__struct_fields__)
        for flag in flags:
            wanted = flag.replace("-", "_")
            assert fields & {wanted, wanted + "_", wanted + "s"}, (name, flag)


def test_backtick_files_are_read_with_their_own_grammar() -> None:
    text = '# escape=`\nFROM a\nENV a=`"b c=d\\ e=f\nCOPY --chown="x` y" a` b /c\n'
    env, copy = parse(Source("Dockerfile", text)).stages[0].instructions
    assert isinstance(env, nouns.Env)
    assert [(pair.name, pair.value) for pair in env.pairs] == [("a", '`"b'), ("c", "d\\"), ("e", "f")]
    assert isinstance(copy, nouns.Copy)
    assert copy.chown is not None
    assert copy.chown.text == "x y"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("type=cache,target=/x", ["type=cache", "target=/x"]),
        ('type=bind,"source=a,b",target=/x', ["type=bind", "source=a,b", "target=/x"]),
        ('"a""b",', ['a"b', ""]),
    ],
)
def test_mount_fields(text: str, fields: list[str]) -> None:
    assert mount_fields(text) == fields


@pytest.mark.parametrize("text", ["", 'a"b', '"a', '"a"b'])
def test_wrong_mount_fields(text: str) -> None:
    with pytest.raises(ValueError, match=r"quot|empty"):
        mount_fields(text)


def test_what_a_build_without_changes_need_not_load() -> None:
    code = "import sys, grammar.parser, grammar.ignore; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"lark", "json", "tempfile", "subprocess", "asyncio", "logging"} & set(loaded.split())

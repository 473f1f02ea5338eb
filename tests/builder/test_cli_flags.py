from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from builder.cli import ALIASES, COMMANDS, find, overview
from builder.cli.flags import Command, Flag, UsageError, describe, fields, pairs, read

if TYPE_CHECKING:
    from pathlib import Path

    from builder.cli.flags import Given

COMMAND = Command(
    name="demo",
    usage="[OPTIONS] PATH",
    summary="Show.",
    words=(1, 1),
    flags=(
        Flag("tag", "a name", "t", "NAME", many=True),
        Flag("quiet", "less", "q"),
        Flag("no-cache", "anew"),
        Flag("push", unsupported="there is no registry"),
        Flag("memory", short="m", value="SIZE", unsupported="no limits"),
    ),
)


def given(*words: str) -> Given:
    return read(COMMAND, list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "app", "."],
        ["-tapp", "."],
        ["-t=app", "."],
        ["--tag", "app", "."],
        ["--tag=app", "."],
        [".", "--tag=app"],
        ["-qt", "app", "."],
        ["-qtapp", "."],
        ["-t", "app", "--", "."],
    ],
)
def test_every_spelling_of_a_value(words: list[str]) -> None:
    found = given(*words)
    assert found.all("tag") == ["app"]
    assert found.words == (".",)


@pytest.mark.parametrize(
    "words, on",
    [
        (["--no-cache"], True),
        (["--no-cache=true"], True),
        (["--no-cache=1"], True),
        (["--no-cache=false"], False),
        (["--no-cache", "--no-cache=f"], False),
        ([], False),
    ],
)
def test_switches_read_like_dockers(words: list[str], on: bool) -> None:
    assert given(*words, ".").on("no-cache") is on


def test_a_switch_takes_no_word_of_its_own() -> None:
    assert given("--no-cache", "false").words == ("false",)


def test_the_last_value_counts_and_all_are_kept() -> None:
    found = given("-t", "a", "-t", "b", ".")
    assert (found.one("tag"), found.all("tag")) == ("b", ["a", "b"])


def test_a_lone_dash_is_a_word_and_an_empty_value_a_value() -> None:
    assert given("-").words == ("-",)
    assert given("--tag=", ".").all("tag") == [""]


@pytest.mark.parametrize(
    "words, message, hint",
    [
        (["--tga", "a", "."], "unknown flag --tga", "did you mean --tag?"),
        (["-x", "."], "unknown flag -x", "--help"),
        (["-tag", "a", "b"], "takes exactly one argument", "PATH"),
        (["--tag"], "needs a value", ""),
        (["--quiet=maybe", "."], "neither true nor false", ""),
        (["--push", "."], "--push is not supported", "no registry"),
        (["-m", "4g", "."], "-m is not supported", "no limits"),
        ([], "takes exactly one argument, and got none", "PATH"),
        (["a", "b"], "takes exactly one argument, and got a b", "PATH"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        given(*words)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_unsupported_switch_may_be_switched_off() -> None:
    assert not given("--push=false", ".").on("push")


def test_fields_have_quotes() -> None:
    assert fields('type=oci,"dest=a,b ""c"".tar"', "output") == ["type=oci", 'dest=a,b "c".tar']
    assert pairs("Type=oci,dest=F,flag", "output") == [("type", "oci"), ("dest", "F"), ("flag", "")]
    with pytest.raises(UsageError, match="closing"):
        fields('"a', "output")


def test_help_names_every_flag_that_works() -> None:
    text = describe(COMMAND, 60)
    assert "-t, --tag NAME" in text
    assert "--push" not in text
    assert max(map(len, text.splitlines())) <= 60


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "words, name, rest",
    [
        ([], "", []),
        (["--help"], "", []),
        (["-t", "app", "."], "build", ["-t", "app", "."]),
        (["."], "build", ["."]),
        (["-"], "build", ["-"]),
        (["build", "."], "build", ["."]),
        (["./images"], "build", ["./images"]),
        (["https://example.org/x.git"], "build", ["https://example.org/x.git"]),
        (["images", "-q"], "image ls", ["-q"]),
        (["image", "ls", "-a"], "image ls", ["-a"]),
        (["rmi", "x"], "image rm", ["x"]),
        (["--root", "R", "images"], "image ls", ["--root", "R"]),
        (["--root=R", "-t", "a", "."], "build", ["--root=R", "-t", "a", "."]),
        (["help", "image", "rm"], "image rm", ["--help"]),
        (["--version"], "version", []),
        (["-v"], "version", []),
    ],
)
def test_the_command_is_found(words: list[str], name: str, rest: list[str]) -> None:
    assert find(words) == (name, rest)


@pytest.mark.parametrize(
    "words, hint",
    [
        (["iamges", "x"], "did you mean pybuild images?"),
        (["image", "lss"], "did you mean pybuild image ls?"),
        (["image"], "image prune"),
        (["imags"], "did you mean pybuild images?"),
        (["run", "debian"], "pybuild only builds"),
        (["buildx", "build", "."], "leave the word out"),
        (["bud"], "pybuild build"),
    ],
)
def test_a_mistyped_command_is_no_build(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(words)
    assert hint in caught.value.hint


@pytest.mark.parametrize("words", [["imags"], ["run"], ["run", "-t", "app"], ["nowhere"], ["a/run"], ["run."]])
def test_a_folder_that_is_called_like_a_mistake_is_a_context(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imags").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find(words) == ("build", words)


def test_every_command_is_there_and_explained() -> None:
    from importlib import import_module

    text = overview()
    for name, (module, function, summary) in COMMANDS.items():
        home = import_module(module)
        assert callable(getattr(home, function))
        command = getattr(home, function.upper())
        assert command.name == name
        assert describe(command, 100)
        assert summary in text
    assert set(ALIASES.values()) <= set(COMMANDS)

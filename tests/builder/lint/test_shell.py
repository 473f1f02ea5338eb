"""Commands of a script and where they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.lint.shell import Script, read, unwrapped


def words(script: Script) -> list[list[str]]:
    return [[word.literal for word in command.words] for command in script.commands]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apt-get update && apt-get install -y curl", [["apt-get", "update"], ["apt-get", "install", "-y", "curl"]]),
        ("a; b | c || d & e\nf", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a 'b c' \"d $E\" f\\ g", [["a", "b c", "d $E", "f g"]]),
        ('a "b\\"c\\d\\$e"', [["a", 'b"c\\d$e']]),
        ("A=1 B='x y' cmd A=2", [["cmd", "A=2"]]),
        ("cmd >/dev/null 2>&1 <in &>all arg", [["cmd", "arg"]]),
        ("a # comment && b\nc#d", [["a"], ["c#d"]]),
        ("(a; b) && { c; d; }", [["a"], ["b"], ["c"], ["d"]]),
        ("if a; then b; elif c; then d; else e; fi", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("for x in 1 2 'then'; do a $x; done", [["a", "$x"]]),
        ("for x; do a; done", [["a"]]),
        ("for ((i=0; i<3; i++)); do a; done", [["a"]]),
        ("while a; do b; done < <(c)", [["a"], ["b"], ["c"]]),
        ("case $x in a|b) one;; (c) two;& *) three; esac; four", [["one"], ["two"], ["three"], ["four"]]),
        ("f() { a; }; function g { b; }; f", [["a"], ["b"], ["f"]]),
        ("echo $(a | b) `c d` $((1 + (2))) ${V:-$(e)}", None),
        ("cat <<EOF >/x && a\nrm -rf / && b\nEOF\nc", [["cat"], ["a"], ["c"]]),
        ("cat <<-'E O'\n\tx\n\tE O\na", [["cat"], ["a"]]),
        ("[[ -f a && b ]] && c", [["[[", " -f a && b ]]"], ["c"]]),
        ("[ -f a ] || exit 1", [["[", "-f", "a", "]"], ["exit", "1"]]),
        ("x=(a b); c", [[], ["c"]]),
        ("! a | b", [["a"], ["b"]]),
        ("a \\\n  b", [["a", "b"]]),
        ("echo if then fi", [["echo", "if", "then", "fi"]]),
        ("echo a;echo b;", [["echo", "a"], ["echo", "b"]]),
        ("", []),
        ("# nothing", []),
    ],
)
def test_commands(text: str, expected: list[list[str]] | None) -> None:
    script = read(text)
    assert script.whole
    if expected is None:
        assert sorted(command.name for command in script.commands) == ["a", "b", "c", "e", "echo"]
    else:
        assert words(script) == expected


@pytest.mark.parametrize(
    "text", ["a 'b", 'a "b', "a $(b", "a ${b", "a `b", "if a; then b", "(a", "case a in b) c", "x=(a", "for x in"]
)
def test_a_script_that_does_not_end_gives_what_it_has(text: str) -> None:
    assert not read(text).whole


def test_what_is_in_front_of_a_mistake_is_kept() -> None:
    assert words(read("a && b && 'c"))[:2] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("text", "name", "facts"),
    [
        ("a && b || c", "b", ("&&", "||", 0, True)),
        ("a; (b; c)", "c", (";", "", 1, False)),
        ("if a; then b; fi", "a", ("", ";", 0, True)),
        ("! a", "a", ("", "", 0, True)),
        ("x $(a)", "a", ("", "", 1, False)),
        ("a | b", "a", ("", "|", 0, False)),
    ],
)
def test_what_stands_around(text: str, name: str, facts: tuple[str, str, int, bool]) -> None:
    (found,) = [command for command in read(text).commands if command.name == name]
    assert (found.before, found.after, found.depth, found.condition) == facts


def test_pipelines() -> None:
    script = read("a | b | c; d; if e | f; then g | while h; do i; done; fi; j | k || l")
    many = [pipeline for pipeline in script.pipelines if len(pipeline.parts) > 1]
    shown = [([part and part.name for part in pipeline.parts], pipeline.checked) for pipeline in many]
    assert shown == [(["a", "b", "c"], False), (["e", "f"], True), (["g", None], False), (["j", "k"], True)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sudo -u app make x", "make"),
        ("env -u A B=1 C=2 make", "make"),
        ("exec nice -n 5 time make", "make"),
        ("timeout -s KILL 5m make", "make"),
        ("sudo -i", "sudo"),
        ("/usr/bin/make", "make"),
    ],
)
def test_wrappers(text: str, name: str) -> None:
    (command,) = read(text).commands
    assert unwrapped(command).name == name


def test_options() -> None:
    (command,) = read("apt-get -qq -o A=b install -y --no-install-recommends curl -- -x").commands
    assert command.switch("y")
    assert not command.switch("x") or command.has("-x")
    assert command.has("--no-install-recommends")
    assert [word.literal for word in command.operands({"-o"})] == ["install", "curl", "-x"]


_PIECES = st.sampled_from(
    ["a", "b1", "-x", "$V", "${V:-d}", "$(", ")", "(", "`", "'", '"', "\\", "\n", " ", "  ", ";", ";;", "&", "&&", "|",
     "||", "<", ">", "<<E", "E", "#", "if", "then", "fi", "case", "in", "esac", "do", "done", "for", "while", "{", "}",
     "[[", "]]", "!", "=", "A=", "((", "))", "\t", "é", "function", "<(", "$((", "$'", "*"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=25).map("".join))
def test_anything_is_read_and_every_place_is_right(text: str) -> None:
    script = read(text)
    for command in script.commands:
        assert 0 <= command.start <= command.end <= len(text)
        for word in (*command.words, *command.assignments):
            assert text[word.start : word.end] == word.text
            if word.plain and not set("\\'\"$") & set(word.text):
                assert word.literal == word.text
    for pipeline in script.pipelines:
        assert 0 <= pipeline.start <= pipeline.end <= len(text)


@given(
    st.lists(st.text("abcxyz0189./_-", min_size=1, max_size=8), min_size=1, max_size=6),
    st.sampled_from([" && ", " ; ", "\n", " | ", " || ", " & "]),
)
def test_plain_commands_come_back(names: list[str], operator: str) -> None:
    reserved = {"if", "then", "do", "for", "in", "fi", "done", "case", "esac", "while", "until", "elif", "else"}
    kept = [name for name in names if name not in reserved | {"function", "select"}] or ["x"]
    assert [command.words[0].literal for command in read(operator.join(kept)).commands] == kept


def test_depth_has_an_end() -> None:
    assert not read("$(" * 5000).whole
    assert not read("(" * 5000).whole
    assert read("${a:-" * 5000).whole is False

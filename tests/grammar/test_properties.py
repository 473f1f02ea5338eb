"""What holds for any text: the parser's one kind of error, printing, and agreement with slower, plainer code."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from grammar import instructions as nouns
from grammar import lines, parser
from grammar.ignore import Ignore, PatternError, glob_match
from grammar.parser import parse, parse_trigger
from grammar.printer import to_text
from grammar.source import DockerfileError, DockerfileErrors, Source, Span
from grammar.words import WordError, expand, expand_heredoc, expand_with_names, expand_words

QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ---------------------------------------------------------------- the parser

KEYWORDS = [name.upper() for name in parser._READERS]
# fmt: off
# ruff: noqa: E501
PIECES = [
    *KEYWORDS, *(word.lower() for word in KEYWORDS), "AS", "RNU",
    "a", "b=c", "/d", "'e f'", '"g h"', "<<E", "<<-E", "<<'E'", "E", '["x"]', "[", "]", "[1]", "{}", "$a", "${b:-c}", "=",
    ",", "#", "--from=x", "--link", "--mount=type=bind,from=$x", "--x", "--interval=5s", "--", "--exclude='a", "1",
    "--chown=\\ ", "# escape=`", "# syntax=x", "# check=x", " ", "  ", "\t", "\n", "\r\n", "\\\n", "`\n", "\\", "`",
    "\\\r\n# c\n", "\x0b", "\xa0", "\ufeff", "é", "\udc80",
]
LINES = [
    "# comment", "", "RUN {}", "RUN -- --{}", "RUN --network=none --mount=type=cache,target={0} {0}", "run {} \\\n  {}",
    "CMD {}", 'ENTRYPOINT ["{q}"]', 'SHELL ["{q}", "-c"]', "ENV a={} b={}", "ENV a {}", "LABEL {0}={0}", "ARG x={}",
    "COPY {} {}", "COPY --link --exclude={} --exclude=b --chown={} {} {}", 'ADD ["{q}", "{q}"]', "VOLUME {} {}",
    "COPY <<E b <<-'F' {}\n{}\nE\n\t{}\n\tF", "RUN cat <<E 3<<-F\n{}\nE\n\t\tx\n\tF", 'VOLUME ["/{q}"]', "EXPOSE {} 80",
    "USER {}", "WORKDIR {}", "STOPSIGNAL {}", "MAINTAINER {}", "HEALTHCHECK --interval=5s --retries=3 CMD {}",
    "HEALTHCHECK NONE", "ONBUILD run {}", "onbuild COPY <<-E {}\n\t{}\n\tE", "FROM {} aS Stage",
]
WORDS = [
    "a", "a$b", "'a  b'", '"c d"', "\\\\ ", "x\\ y", "é", "${a:-b c}", "a=b", "<", "#", "# x", "[x", "--y", "'", '"', "`", "\x0b",
    "\\\xa0", "\\", "\udc80",
]
# fmt: on
RIGHT_LINES = st.tuples(
    st.sampled_from(LINES), st.lists(st.sampled_from(WORDS), min_size=6, max_size=6), st.sampled_from(["a", "b c", "é"])
).map(lambda drawn: drawn[0].format(*drawn[1], q=drawn[2]))
HEADS = st.sampled_from(
    ["", "# escape=`\n", "# syntax=x/y\n# check=skip=all\n", "# a\n# escape=`\n", "ARG v=1\n", "#\n"]
)
MOSTLY_RIGHT = st.tuples(HEADS, st.lists(RIGHT_LINES, max_size=3)).map(
    lambda drawn: drawn[0] + "\n".join(["FROM a", *drawn[1]])
)
FILES = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=40).map("".join),
    st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=30).map(lambda pieces: "FROM a\n" + " ".join(pieces)),
)


@QUICK
@given(FILES)
@example("RUN <<E")
@example("ONBUILD")
@example("ONBUILD " * 500)
@example("FROM a\nRUN " + "[" * 5000)
@example("FROM a\nENV a=" + "${a:-" * 5000)
@example("FROM a\nCOPY <<" + "${a:-" * 5000 + " /x")
def test_no_text_makes_the_parser_raise_anything_but_its_error(text: str) -> None:
    source = Source("Dockerfile", text)
    mistakes: list[DockerfileError] = []
    try:
        parse(source)
    except DockerfileErrors as errors:
        assert len(errors.errors) > 1  # noqa: PT017
        mistakes += errors.errors
    except DockerfileError as error:
        mistakes.append(error)
    try:
        parse_trigger(text)
    except DockerfileError as error:
        mistakes.append(error)
    for mistake in mistakes:
        assert_placed(mistake, mistake.source)


def parse_or_skip(source: Source) -> nouns.Dockerfile:
    try:
        return parse(source)
    except DockerfileError:
        reject()


def assert_placed(error: DockerfileError, source: Source) -> None:
    """A caret can be drawn: the place is in the text, and the message one line."""
    lines = [*source.text.removeprefix("\ufeff").split("\n"), ""]
    span = error.span
    assert 1 <= span.line <= span.end_line <= len(lines)
    assert 1 <= span.column <= len(lines[span.line - 1]) + 1
    assert 1 <= span.end_column <= len(lines[span.end_line - 1]) + 1
    assert (span.line, span.column) <= (span.end_line, span.end_column)
    assert error.message
    assert "\n" not in error.message


@QUICK
@given(MOSTLY_RIGHT)
@example("FROM a\nRUN x \\\xa0\nRUN y")
@example('FROM a\nCOPY --chown="a b" --exclude=\\\'  <<E x /y\nz\nE')
@example("# escape=`\nFROM --platform=`  a AS B\nONBUILD RUN <<-E\n\tx\n\tE\n# end")
@example("# a\n\n# escape=`\nFROM a")
@example('FROM a\nLABEL a="b c')
@example("FROM a\nRUN -- --x")
def test_printing_is_stable(text: str) -> None:
    first = parse_or_skip(Source("Dockerfile", text))
    printed = to_text(first)
    second = parse(Source("Dockerfile", printed))
    assert bare(second) == bare(first)
    assert to_text(second) == printed


def bare(value: Any) -> Any:
    """The value without places, and without what the layout of the text decides."""
    if isinstance(value, Span | Source):
        return None
    if isinstance(value, tuple):
        return tuple(bare(item) for item in value)
    if not isinstance(value, msgspec.Struct):
        return value
    skipped = (
        {"span", "source", "text", "keyword", "empty_continuations"} if isinstance(value, nouns.Instruction) else set()
    )
    fields = {
        field.name: getattr(value, field.name) for field in msgspec.structs.fields(value) if field.name not in skipped
    }
    return type(value).__name__, {name: bare(item) for name, item in fields.items()}


@QUICK
@given(MOSTLY_RIGHT)
def test_every_word_stands_where_its_span_says(text: str) -> None:
    source = Source("Dockerfile", text)
    file = parse_or_skip(source)
    for stage in file.stages:
        for instruction in stage.instructions:
            if isinstance(instruction, nouns.Transfer) and not instruction.json:
                for word in (*instruction.sources, instruction.destination):
                    if word.span.line == word.span.end_line:
                        (line,) = source.lines(word.span.line, word.span.line)
                        assert line[word.span.column - 1 : word.span.end_column - 1].startswith(word.text[:1])


def test_parsing_takes_time_in_proportion_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in characters that pass through the line scanner and the grammar, not in seconds."""
    counted = 0
    take, match = lines.Scanner._take, parser._match

    def counting_take(scanner: lines.Scanner) -> str:
        nonlocal counted
        text = take(scanner)
        counted += len(text)
        return text

    def counting_match(statement: parser._Statement) -> None:
        nonlocal counted
        counted += statement.end - statement.arguments
        match(statement)

    monkeypatch.setattr(lines.Scanner, "_take", counting_take)
    monkeypatch.setattr(parser, "_match", counting_match)
    counts = []
    for size in (50, 100, 200):
        counted = 0
        body = 'ENV a=b c="d e"\nRUN x \\\n  y\nCOPY <<E /f\ntext\nE\n' * size
        parse(Source("Dockerfile", "FROM a\n" + body))
        counts.append(counted - len("FROM a") - len("a"))
    assert counts[1] == 2 * counts[0]
    assert counts[2] == 4 * counts[0]


# ---------------------------------------------------------------- words

NAMES = ("A", "B", "empty", "none")
ENVIRONMENT = {"A": "alpha", "B": "b/c.b", "empty": ""}
LITERALS = st.text("ab*?/.:- ", max_size=4)


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> tuple[str, str | None]:
    """A piece of a word, and what it means; None where it is an error."""
    kind = draw(st.sampled_from(["text", "plain", "single", "double", "escape", *(["-", "+", "?"] if depth else [])]))
    if kind == "text":
        text = draw(LITERALS)
        return text, text
    if kind == "single":
        text = draw(st.text('a$\\"{} ', max_size=4))
        return f"'{text}'", text
    if kind == "escape":
        char = draw(st.sampled_from("a$'\"\\{} "))
        return f"\\{char}", char
    name = draw(st.sampled_from(NAMES))
    value = ENVIRONMENT.get(name)
    if kind == "plain":
        return f"${{{name}}}", value or ""
    if kind == "double":
        return f'"x ${{{name}}} y"', f"x {value or ''} y"
    inner, meaning = draw(trees(depth - 1))
    colon = draw(st.sampled_from(["", ":"]))
    given_ = value is not None and not (colon and not value)
    word = f"${{{name}{colon}{kind}{inner}}}"
    if meaning is None:
        return word, None
    if kind == "-":
        return word, value if given_ else meaning
    if kind == "+":
        return word, meaning if given_ else ""
    return word, value if given_ else None


@QUICK
@given(st.lists(trees(), max_size=5))
def test_expansion_agrees_with_a_reference(pieces: list[tuple[str, str | None]]) -> None:
    word = "".join(piece for piece, _ in pieces)
    meanings = [meaning for _, meaning in pieces]
    if None in meanings:
        with pytest.raises(WordError):
            expand(word, ENVIRONMENT)
    else:
        assert expand(word, ENVIRONMENT) == "".join(meaning for meaning in meanings if meaning is not None)


def shell_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern))


@QUICK
@given(st.text("ab*?.", min_size=1, max_size=6), st.text("ab.", max_size=8), st.sampled_from(["#", "##", "%", "%%"]))
def test_trimming_agrees_with_a_search_of_all_cuts(pattern: str, value: str, operator: str) -> None:
    regex = shell_pattern(pattern)
    at_start = operator[0] == "#"
    cuts = range(len(value) + 1)
    fits = [cut for cut in cuts if regex.fullmatch(value[:cut] if at_start else value[cut:])]
    shortest_first = fits if at_start else fits[::-1]
    expected = value
    if fits:
        cut = shortest_first[-1 if len(operator) == 2 else 0]
        expected = value[cut:] if at_start else value[:cut]
    assert expand(f"${{V{operator}{pattern}}}", {"V": value}) == expected


@QUICK
@given(st.text("ab*?.", min_size=1, max_size=5), st.text("ab.", max_size=8))
def test_replacing_once_agrees_with_a_search_of_all_cuts(pattern: str, value: str) -> None:
    regex = shell_pattern(pattern)
    expected = value
    starts = (start for start in range(len(value) + 1) if regex.match(value, start))
    start = next(starts, None)
    if start is not None:
        end = max(end for end in range(start, len(value) + 1) if regex.fullmatch(value, start, end))
        expected = value[:start] + "X" + value[end:]
    assert expand(f"${{V/{pattern}/X}}", {"V": value}) == expected


@QUICK
@given(st.text("ab$\\`'\"{}<>:-+?#%/* \n", max_size=30), st.sampled_from("\\`"))
@example("${a:-" * 3000, "\\")
@example('"' + "${a:-" * 3000, "\\")
def test_any_word_expands_or_says_where_it_is_wrong(word: str, escape: str) -> None:
    for function in (expand, expand_words, expand_with_names, lambda body, env, _: expand_heredoc(body, env)):
        offset = 0
        try:
            function(word, {"a": "x y"}, escape)
        except WordError as error:
            offset = error.offset
        assert 0 <= offset <= len(word)


# ---------------------------------------------------------------- ignore patterns

SEGMENTS = st.lists(st.sampled_from(["a", "b", "*", "?", "**", "ab", "a*", "*b"]), min_size=1, max_size=3)
PATTERNS = st.lists(
    st.tuples(st.booleans(), SEGMENTS.map("/".join)).map(lambda pair: "!" * pair[0] + pair[1]), max_size=5
)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "bb"]), min_size=1, max_size=4)


def naive_match(segments: list[str], names: list[str]) -> bool:
    """Does the pattern match the whole path? Straight from the words of the documentation."""
    if not segments:
        return not names
    first, *rest = segments
    if first == "**":
        # At the end everything below; elsewhere any number of directories, none included.
        return bool(names) if not rest else any(naive_match(rest, names[cut:]) for cut in range(len(names) + 1))
    return bool(names) and re.fullmatch(translate(first), names[0]) is not None and naive_match(rest, names[1:])


def naive_ignored(patterns: list[str], names: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        segments = pattern.removeprefix("!").split("/")
        if any(naive_match(segments, names[: cut + 1]) for cut in range(len(names))):
            ignored = not pattern.startswith("!")
    return ignored


@QUICK
@given(PATTERNS, st.lists(PATHS, min_size=1, max_size=4))
@example(["**", "!a/**/b"], [["a"], ["a", "b"]])
def test_ignoring_agrees_with_a_naive_matcher(patterns: list[str], paths: list[list[str]]) -> None:
    ignore = Ignore.of(patterns)
    for names in paths:
        assert ignore.match("/".join(names)) == naive_ignored(patterns, names)


@QUICK
@given(PATTERNS, PATHS, PATHS)
def test_a_prunable_directory_hides_all_below(patterns: list[str], directory: list[str], below: list[str]) -> None:
    ignore = Ignore.of(patterns)
    if ignore.prunable("/".join(directory)):
        assert ignore.match("/".join(directory))
        assert ignore.match("/".join(directory + below))


@QUICK
@given(st.text("ab*?[]^!-\\/.{}()+|$", max_size=10), st.text("ab-]/.^", max_size=6))
def test_any_pattern_matches_or_is_refused(pattern: str, path: str) -> None:
    for function in (glob_match, lambda pattern, path: Ignore.of([pattern]).match(path)):
        offset = 0
        try:
            function(pattern, path)
        except PatternError as error:
            offset = error.offset
        assert 0 <= offset <= len(pattern)

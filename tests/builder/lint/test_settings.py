"""Configuration, flags and comments: which findings count."""

from __future__ import annotations

import pytest

from builder.lint import every
from builder.lint.settings import (
    UNUSED,
    WITHOUT_RULE,
    Known,
    Settings,
    SettingsError,
    budget,
    judge,
    overlaid,
    read_config,
    suppressions,
)
from builder.model import Budget, Finding, Severity
from grammar.parser import parse
from grammar.source import Source, Span

EVERY = every()
KNOWN = Known(EVERY, [rule.name for rule in EVERY if rule.optional])
DEFAULT = Settings()


def at(rule: str, line: int, severity: Severity = Severity.WARNING, source: Source | None = None) -> Finding:
    return Finding(rule, "message", Span(line, 1, line, 2), source, severity=severity)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("SudoInRun", {"SudoInRun"}),
        ("sudoinrun", {"SudoInRun"}),
        ("DL3004", {"SudoInRun"}),
        ("dl4006", {"DownloadPiped", "PipeHidesFailure"}),
        ("DL3008", {"UnpinnedSystemPackage"}),
        ("SC2086", {"SC2086"}),
        ("shellcheck", {"ShellCheck"}),
        ("DL3021", set()),
    ],
)
def test_names(name: str, rules: set[str]) -> None:
    assert KNOWN.resolve(name) == rules


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SudoInRum", "did you mean SudoInRun?"),
        ("DL3oo4", "did you mean DL3004?"),
        ("Nonsense", "pybuild lint --rules lists them"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"there is no rule {name}") as caught:
        KNOWN.resolve(name)
    assert caught.value.hint == hint


HADOLINT = (
    *(number for number in range(3000, 3068) if number not in {3005, 3017, 3031, 3039}),
    *(4000, 4001, 4003, 4004, 4005, 4006),
)


def test_every_rule_of_hadolint_is_known() -> None:
    ids = ["DL1001", *(f"DL{number}" for number in HADOLINT)]
    assert len(ids) == 71
    assert all(KNOWN.resolve(each) or each in WITHOUT_RULE for each in ids)


def test_names_are_unique() -> None:
    names = [rule.name for rule in EVERY]
    assert len(names) == len(set(names))


# ---------------------------------------------------------------- configuration


def test_all_settings() -> None:
    text = """
        [tool.other]
        [tool.pybuild.lint]
        select = ["default", "DL3008"]
        ignore = ["DL3059", "SC2086"]
        fail-on = "error"
        trusted-registries = ["docker.io"]
        required-labels = {"org.example.url" = "url"}
        strict-labels = true
        shellcheck = false
        max-size = "500MB"
        max-layer = 100
        [tool.pybuild.lint.severity]
        DL3004 = "error"
    """
    found = read_config(text, "pyproject.toml", KNOWN)
    assert found is not None
    assert found.select is not None
    assert "UnpinnedSystemPackage" in found.select
    assert "ConsecutiveRuns" not in found.select
    assert found.ignore == {"ConsecutiveRuns", "SC2086"}
    assert found.severities == (("SudoInRun", Severity.ERROR),)
    assert found.fail_on is Severity.ERROR
    assert found.options.registries == ("docker.io",)
    assert found.options.labels == (("org.example.url", "url"),)
    assert found.options.only_labels
    assert not found.shellcheck
    assert found.limits == (("max-size", "500MB"), ("max-layer", "100"))


def test_the_own_file_has_its_own_table() -> None:
    found = read_config("[lint]\nignore = ['SudoInRun']\n", "x/.pybuild.toml", KNOWN)
    assert found is not None
    assert found.ignore == {"SudoInRun"}


@pytest.mark.parametrize("text", ["", "[tool.pybuild]\n", "[tool]\nx = 1\n", "[project]\nname = 'x'\n"])
def test_a_file_without_settings(text: str) -> None:
    assert read_config(text, "pyproject.toml", KNOWN) is None


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("ignore = ['SudoInRum']", "there is no rule SudoInRum", "did you mean SudoInRun?"),
        ("ignroe = []", "there is no setting tool.pybuild.lint.ignroe", "did you mean ignore?"),
        ("ignore = 'x'", "ignore is no list of strings", 'write ignore = ["...", "..."]'),
        ("fail-on = 'often'", "'often' is no threshold", "it is error, warning, info or never"),
        ("fail-on = 1", "fail-on is no string", 'write fail-on = "error"'),
        ("severity = {SudoInRun = 'bad'}", "'bad' is no severity", "it is error, warning or info"),
        ("severity = 1", "severity is no table", "write severity = { ... }"),
        ("strict-labels = 'x'", "strict-labels is neither true nor false", ""),
        ("required-labels = {a = 'x'}", "label a has the unknown type 'x'", "one of text, url"),
        ("max-size = true", "max-size is no size", 'write max-size = "500MB"'),
        ("x = ", "Invalid value", "it is read as TOML: https://toml.io"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(line: str, message: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_config(f"[tool.pybuild.lint]\n{line}\n", "pyproject.toml", KNOWN)
    assert caught.value.message.startswith("pyproject.toml: ")
    assert message in caught.value.message
    assert caught.value.hint.startswith(hint)


def test_flags_go_before_the_configuration() -> None:
    given = Settings(select=frozenset({"SudoInRun"}), ignore=frozenset({"AptInScript"}), fail_on=Severity.ERROR)
    found = overlaid(given, KNOWN, select=["DL3007"], ignore=["DL3006"], severities=["DL3007=info"], fail_on="never")
    assert found.select == frozenset({"LatestBase"})
    assert found.ignore == {"AptInScript", "UntaggedBase"}
    assert found.severities == (("LatestBase", Severity.INFO),)
    assert found.fail_on is None
    assert overlaid(given, KNOWN) == given
    with pytest.raises(SettingsError, match="has no level"):
        overlaid(given, KNOWN, severities=["DL3007"])


@pytest.mark.parametrize(
    ("fail_on", "severity", "fails"),
    [
        (Severity.WARNING, Severity.ERROR, True),
        (Severity.WARNING, Severity.WARNING, True),
        (Severity.WARNING, Severity.INFO, False),
        (Severity.ERROR, Severity.WARNING, False),
        (Severity.INFO, Severity.INFO, True),
        (None, Severity.ERROR, False),
    ],
)
def test_thresholds(fail_on: Severity | None, severity: Severity, fails: bool) -> None:
    assert Settings(fail_on=fail_on).fails([at("X", 1, severity)]) is fails


@pytest.mark.parametrize(
    ("limits", "given", "expected"),
    [
        ((), Budget(), Budget()),
        ((("max-size", "500MB"),), Budget(), Budget(max_size=500 << 20)),
        ((("max-size", "1.5 GiB"), ("max-layer", "100")), Budget(), Budget(max_size=3 << 29, max_layer=100)),
        ((("max-waste", "5%"),), Budget(), Budget(waste_percent=5)),
        ((("max-waste", "5%"),), Budget(max_waste=0), Budget(max_waste=0)),
        ((("max-waste", "5m"),), Budget(waste_percent=1), Budget(waste_percent=1)),
        ((("max-size", "5m"),), Budget(max_size=1), Budget(max_size=1)),
    ],
)
def test_budgets(limits: tuple[tuple[str, str], ...], given: Budget, expected: Budget) -> None:
    assert budget(Settings(limits=limits), given) == expected


@pytest.mark.parametrize("limit", [("max-size", "5%"), ("max-size", "much"), ("max-layer", "-1"), ("max-waste", "")])
def test_what_is_no_budget(limit: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="is no size"):
        budget(Settings(limits=(limit,)), Budget())


# ---------------------------------------------------------------- comments


FILE = """\
# pybuild: ignore=LatestBase all of them

# hadolint global ignore=DL3001
FROM a:latest
# pybuild: ignore=SudoInRun, AptInScript no other way
RUN sudo apt \\
    # pybuild: ignore=WgetProgress inside of an instruction
    update
# hadolint ignore=DL3020,SC2086
# another comment

ADD x /
# check=skip=WorkdirRelativePath
WORKDIR x
RUN <<EOF
# pybuild: ignore=CdInsteadOfWorkdir
EOF
"""


def test_comments() -> None:
    found = [
        (each.name, sorted(each.rules), each.span.line, each.lines)
        for each in suppressions(parse(Source("D", FILE)), KNOWN)
    ]
    assert found == [
        ("LatestBase", ["LatestBase"], 1, None),
        ("DL3001", ["PointlessCommand"], 3, None),
        ("SudoInRun", ["SudoInRun"], 5, (6, 8)),
        ("AptInScript", ["AptInScript"], 5, (6, 8)),
        ("DL3020", ["CopyInsteadOfAdd"], 9, (12, 12)),
        ("SC2086", ["SC2086"], 9, (12, 12)),
        ("WorkdirRelativePath", ["WorkdirRelativePath"], 13, (14, 14)),
    ]


def judged(
    text: str, findings: list[Finding], settings: Settings = DEFAULT, **options: object
) -> list[tuple[str, str]]:
    ran = options.pop("ran", {finding.rule for finding in findings})
    kept = judge(findings, settings, parse(Source("D", text)), ran=ran, known=KNOWN, **options)  # type: ignore[arg-type]
    return [(finding.rule, finding.severity.value) for finding in kept]


def test_a_comment_counts_for_its_instruction() -> None:
    text = "FROM a\n# pybuild: ignore=SudoInRun why\nRUN a \\\n b\nRUN c\n"
    assert judged(text, [at("SudoInRun", 4), at("SudoInRun", 5)]) == [("SudoInRun", "warning")]


def test_a_comment_at_the_head_counts_for_the_file() -> None:
    text = "# pybuild: ignore=SudoInRun\nFROM a\nRUN b\n"
    assert judged(text, [at("SudoInRun", 3), Finding("SudoInRun", "of a layer")]) == []


def test_a_directive_counts_for_the_file_and_errors() -> None:
    text = "# check=skip=StageNameCasing;error=true\nFROM a AS B\n"
    assert judged(text, [at("StageNameCasing", 2)]) == []
    assert judged("FROM a\n", [at("StageNameCasing", 1)], errors=["StageNameCasing"]) == [("StageNameCasing", "error")]


def test_a_text_of_another_file_is_not_silenced_by_its_line() -> None:
    text = "FROM a\n# pybuild: ignore=SudoInRun\nRUN b\n"
    other = at("SudoInRun", 3, source=Source("ONBUILD of a", "RUN sudo b"))
    assert judged(text, [other]) == [(UNUSED, "info"), ("SudoInRun", "warning")]


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("# pybuild: ignore=SudoInRun", "SudoInRun is silenced in the instruction below, and would say nothing there"),
        ("# hadolint ignore=DL3004", "DL3004 is silenced in the instruction below, and would say nothing there"),
        ("# pybuild: ignore=SudoInRum", "the comment silences nothing: SudoInRum"),
        ("# pybuild: ignore", "the comment silences nothing: pybuild: ignore"),
        ("# pybuild:ignore SudoInRun", "the comment silences nothing: pybuild:ignore SudoInRun"),
    ],
)
def test_what_silences_nothing_is_told(comment: str, message: str) -> None:
    dockerfile = parse(Source("D", f"FROM a\n{comment}\nRUN b\n"))
    (finding,) = judge([], DEFAULT, dockerfile, ran={"SudoInRun"}, known=KNOWN)
    assert (finding.rule, finding.message) == (UNUSED, message)
    assert finding.span == Span(2, 1, 2, len(comment) + 1)


@pytest.mark.parametrize("name", ["DL3008", "SC2086", "DL3021", "all", "UnusedSuppression"])
def test_what_nobody_looked_for_is_not_called_unused(name: str) -> None:
    dockerfile = parse(Source("D", f"FROM a\n# pybuild: ignore={name}\nRUN b\n"))
    assert judge([], DEFAULT, dockerfile, ran={"SudoInRun", UNUSED}, known=KNOWN) == []


def test_a_code_of_shellcheck_is_unused_once_it_has_looked() -> None:
    dockerfile = parse(Source("D", "FROM a\n# hadolint ignore=SC2086\nRUN b\n"))
    (finding,) = judge([], DEFAULT, dockerfile, ran={"ShellCheck"}, known=KNOWN)
    assert finding.message.startswith("SC2086 is silenced")


def test_a_comment_for_a_rule_that_does_not_count_is_not_unused() -> None:
    dockerfile = parse(Source("D", "FROM a\n# pybuild: ignore=SudoInRun\nRUN b\n"))
    settings = Settings(ignore=frozenset({"SudoInRun"}))
    assert judge([], settings, dockerfile, ran={"SudoInRun"}, known=KNOWN) == []


def test_unused_comments_can_be_left_out() -> None:
    text = "FROM a\n# pybuild: ignore=SudoInRun\nRUN b\n"
    dockerfile = parse(Source("D", text))
    settings = Settings(ignore=frozenset({UNUSED}))
    assert judge([], settings, dockerfile, ran={"SudoInRun"}, known=KNOWN) == []
    dockerfile = parse(Source("D", f"# pybuild: ignore={UNUSED}\n\n{text}"))
    assert judge([], DEFAULT, dockerfile, ran={"SudoInRun"}, known=KNOWN) == []


def test_severities_and_order() -> None:
    settings = Settings(severities=(("ShellCheck", Severity.INFO), ("SudoInRun", Severity.ERROR)))
    findings = [Finding("Late", "layer", layer=2), at("SudoInRun", 9), at("SC2086", 3), Finding("Early", "l", layer=1)]
    assert judged("FROM a\n", findings, settings) == [
        ("SC2086", "info"),
        ("SudoInRun", "error"),
        ("Early", "warning"),
        ("Late", "warning"),
    ]


def test_select_and_ignore() -> None:
    findings = [at("SC2086", 1), at("SudoInRun", 1), at("UnpinnedSystemPackage", 1)]
    assert [rule for rule, _ in judged("FROM a\n", findings)] == ["SC2086", "SudoInRun"]
    only = Settings(select=frozenset({"UnpinnedSystemPackage"}))
    assert [rule for rule, _ in judged("FROM a\n", findings, only)] == ["UnpinnedSystemPackage"]
    without = Settings(ignore=frozenset({"ShellCheck"}))
    assert [rule for rule, _ in judged("FROM a\n", findings, without)] == ["SudoInRun"]

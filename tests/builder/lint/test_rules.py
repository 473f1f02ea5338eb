"""Each rule's own page: what it calls bad gives the finding, what it calls good gives none."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from builder.lint import RULES, LintStage, Rule, Settings, Subject, every, look, run
from builder.lint.settings import UNUSED, Known, judge
from builder.lint.settings import Settings as Wanted
from builder.model import Severity
from builder.plan import plan, with_triggers
from builder.survey import _lowered
from cache.oci import ImageConfig, Platform
from grammar.ignore import Ignore
from grammar.parser import parse, parse_trigger
from grammar.source import Source

if TYPE_CHECKING:
    from builder.model import Finding, Plan

AMD = Platform("linux", "amd64")
BY_NAME = {rule.name: rule for rule in RULES}
EVERY = every()
KNOWN = Known(EVERY, [rule.name for rule in EVERY if rule.optional])
DEFAULT = Wanted()
PAGED = [rule for rule in EVERY if "Bad:" in (inspect.getdoc(rule.check) or "")]


def subject(text: str, ignore: str = "", **options: object) -> Subject:
    """A file as the rules see it, every stage of it."""
    made: Plan = plan(parse(Source("Dockerfile", text)), build_platform=AMD, **options)  # type: ignore[arg-type]
    stages, errors = _lowered(made, {}, {})
    assert not errors
    return Subject(made, stages, Ignore.parse(ignore) if ignore else None)


def findings(text: str, ignore: str = "", check: str = "experimental=all", **options: object) -> list[Finding]:
    return run(subject(text, ignore, **options), Settings.parse(check))


def names(text: str, ignore: str = "", check: str = "", **options: object) -> list[str]:
    return [finding.rule for finding in findings(text, ignore, check, **options)]


def looked(text: str, wanted: Wanted = DEFAULT, ignore: str = "", names: tuple[str, ...] = ()) -> list[Finding]:
    """What `pybuild lint` says of a file, where there is no shellcheck."""
    seen = replace(subject(text, ignore), names=names)
    found, ran = look(seen, wanted, Settings.parse(seen.plan.dockerfile.directives.check))
    return judge(found, wanted, seen.plan.dockerfile, ran=ran, known=KNOWN)


def sections(rule: Rule) -> dict[str, str]:
    """The indented blocks of a rule's page, by their titles."""
    page = inspect.getdoc(rule.check) or ""
    found = re.findall(r"^(\S[^\n]*):\n((?:(?:    [^\n]*)?\n?)+)", page, re.MULTILINE)
    return {title: textwrap.dedent(body).strip() + "\n" for title, body in found}


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("rule", PAGED, ids=lambda rule: rule.name)
def test_the_bad_file_is_found_and_the_good_one_is_not(rule: Rule) -> None:
    page = sections(rule)
    ignore = page.get(".dockerignore", "")
    names = tuple(page.get("Context", "").split())
    if rule in RULES:
        bad = findings(page["Bad"], ignore, build_args={"TAG": "1"})
        good = findings(page["Good"], ignore)
    else:
        others = BY_NAME if rule.name == UNUSED else ()  # what is silenced has to be looked for
        wanted = Wanted(select=frozenset({rule.name, *others}))
        bad, good = (looked(page[title], wanted, ignore, names) for title in ("Bad", "Good"))
        assert [finding.rule for finding in bad] == [rule.name] * len(bad)
    assert rule.name in {finding.rule for finding in bad}
    assert rule.name not in {finding.rule for finding in good}
    for finding in bad:
        assert finding.span is not None
        assert finding.source is not None


@pytest.mark.parametrize("rule", [rule for rule in PAGED if rule not in RULES], ids=lambda rule: rule.name)
def test_a_good_file_is_silent_at_warning_level(rule: Rule) -> None:
    page = sections(rule)
    found = looked(page["Good"], names=tuple(page.get("Context", "").split()))
    assert [finding for finding in found if finding.severity is not Severity.INFO] == []


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.name)
def test_a_page_says_why(rule: Rule) -> None:
    page = inspect.getdoc(rule.check) or ""
    assert " ".join(page.split("\n\n")[0].split()) == rule.summary.rstrip(".") + "."
    assert "\nWhy: " in page


def test_there_are_the_22_checks_of_buildkit() -> None:
    assert len(BY_NAME) == len(RULES) == 22
    assert [rule.name for rule in EVERY[:22]] == [rule.name for rule in RULES]
    assert [rule.name for rule in RULES if rule.experimental] == ["InvalidDefinitionDescription"]
    assert BY_NAME["JSONArgsRecommended"].url.endswith("/rule/json-args-recommended/")
    assert BY_NAME["FromAsCasing"].url.endswith("/rule/from-as-casing/")
    assert not BY_NAME["InvalidBaseImagePlatform"].url


# ---------------------------------------------------------------- triggers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("from scratch AS a\n", ["FromAsCasing"], id="lower from"),
        pytest.param("From scratch aS a\n", ["ConsistentInstructionCasing"], id="mixed from is skipped"),
        pytest.param("FROM scratch\nenv A=1\n", ["ConsistentInstructionCasing"], id="a tie is upper case"),
        pytest.param("from scratch\nenv A=1\nENV B=1\n", ["ConsistentInstructionCasing"], id="majority lower"),
        pytest.param("FROM scratch AS x\nFROM scratch AS X\n",
                     ["StageNameCasing", "DuplicateStageName"], id="in any case"),
        pytest.param('FROM scratch\nSHELL ["/bin/sh", "-c"]\nCMD x\n', [], id="an explicit shell silences"),
        pytest.param('FROM scratch\nENTRYPOINT x\nENTRYPOINT ["y"]\n',
                     ["MultipleInstructionsDisallowed", "JSONArgsRecommended"], id="earlier one"),
        pytest.param('FROM scratch AS a\nCMD ["x"]\nFROM a\nCMD ["y"]\n', [], id="once in each stage"),
        pytest.param("FROM scratch\nHEALTHCHECK NONE\nHEALTHCHECK CMD x\n",
                     ["MultipleInstructionsDisallowed"], id="healthcheck"),
        pytest.param("FROM scratch\nWORKDIR /a\nWORKDIR b\n", [], id="only the first workdir"),
        pytest.param("FROM scratch AS a\nWORKDIR /a\nFROM a\nWORKDIR b\n", [], id="workdir of the stage below"),
        pytest.param("FROM scratch\nARG P=/a\nWORKDIR $P\n", [], id="workdir expanded"),
        pytest.param("ARG P=linux\nFROM --platform=$P scratch\n", [], id="platform from an ARG"),
        pytest.param("FROM --platform=linux/amd64 scratch AS build-amd64\n", [], id="called after its platform"),
        pytest.param("FROM --platform=linux/arm64 scratch AS linux\n", [], id="called after its system"),
        pytest.param("FROM --platform=arm64 scratch\n", ["FromPlatformFlagConstDisallowed"], id="constant"),
        pytest.param("FROM scratch\nENV PUBLIC_KEY=a KEY_FILE=b MONKEY=c\n", [], id="harmless names"),
        pytest.param("FROM scratch\nENV A_KEY=a\nARG key\n", ["SecretsUsedInArgOrEnv"] * 2, id="secrets"),
        pytest.param("ARG API_TOKEN\nFROM scratch\n", [], id="global args are not looked at"),
        pytest.param("FROM scratch\nEXPOSE 80 443/udp 1000-1010\n", [], id="plain ports"),
        pytest.param("FROM scratch\nEXPOSE 8080:80\n", ["ExposeInvalidFormat"], id="host port"),
        pytest.param("FROM scratch\nARG P=80/TCP\nEXPOSE $P\n", ["ExposeProtoCasing"], id="port expanded"),
        pytest.param("ARG T=${MUST:?be set}\nFROM a:$T\n", None, id="an ARG that asks for a value"),
        pytest.param("ARG A\nFROM scratch$A\nFROM scratch${A:+x}\n", [], id="declared without a value"),
        pytest.param("ARG A=busybox\nFROM ${A}:${B:-1}\n", ["UndefinedArgInFrom"], id="undefined with a default"),
        pytest.param("FROM scratch\nARG A\nENV B=$A\n", [], id="an ARG without a value is declared"),
        pytest.param("FROM scratch\nENV B=$C D=${E:-1}\n", ["UndefinedVar"] * 2, id="undefined in a default, too"),
        pytest.param("FROM scratch\nENV PATH=/x:$PATH\n", [], id="PATH is always there"),
        pytest.param("FROM scratch\nEXPOSE $PORT 80\n", [], id="no names are looked for in EXPOSE"),
    ],
)  # fmt: skip
def test_triggers(text: str, expected: list[str] | None) -> None:
    if expected is None:
        found = names(text, build_args={"MUST": "1", "T": "1"})
        assert found == []
    else:
        assert names(text) == expected


@pytest.mark.parametrize(
    ("ignore", "line", "found"),
    [
        ("*.log\n", "COPY a.log /", True),
        ("*.log\n", "ADD a.log /", True),
        ("logs\n", "COPY logs/a /", True),
        ("logs\n", "COPY /logs/a /", True),
        ("*.log\n!a.log\n", "COPY b.log /", False),
        ("*.log\n", "COPY . /", False),
        ("*\n", "COPY . /", True),
        ("**\n", "COPY / /", True),
        ("x\n", "ADD http://x/x /", False),
        ("x\n", "COPY --from=other x /", False),
    ],
)
def test_ignored_files(ignore: str, line: str, found: bool) -> None:
    assert ("CopyIgnoredFile" in names(f"FROM scratch\n{line}\n", ignore)) == found


def test_a_base_for_another_platform() -> None:
    seen = subject("FROM debian\n")
    base = ImageConfig(platform=Platform("linux", "arm64"))
    stage = seen.stages[0]
    wrong = Subject(seen.plan, (LintStage(stage.plan, stage.first, stage.lowered, base),))
    (finding,) = run(wrong, Settings())
    assert finding.rule == "InvalidBaseImagePlatform"
    assert finding.message == (
        'Base image debian was pulled with platform "linux/arm64", expected "linux/amd64" for current build'
    )


def test_nobody_knows_what_an_unknown_base_defines() -> None:
    made = plan(parse(Source("D", "FROM debian AS a\nENV B=$C\nFROM a\nENV D=$E\n")), build_platform=AMD)
    stages, _ = _lowered(made, {}, {0: "debian"})
    assert run(Subject(made, stages), Settings()) == []


def test_a_trigger_of_a_base_image_is_shown_in_its_own_text() -> None:
    made = plan(parse(Source("D", "FROM debian\nCMD x\n")), build_platform=AMD)
    made = with_triggers(made, 0, [parse_trigger("ENV A_TOKEN=$B")], Source("ONBUILD of debian", "ENV A_TOKEN=$B"))
    stages, _ = _lowered(made, {}, {})
    found = run(Subject(made, stages), Settings())
    assert [(finding.rule, finding.source and finding.source.name) for finding in found] == [
        ("UndefinedVar", "ONBUILD of debian"),
        ("SecretsUsedInArgOrEnv", "ONBUILD of debian"),
        ("JSONArgsRecommended", "D"),
    ]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Settings()),
        ("skip=A,B", Settings(frozenset({"A", "B"}))),
        (" skip= A , B ; error = true ", Settings(frozenset({"A", "B"}), error=True)),
        ("error=1;experimental=all", Settings(experimental=frozenset({"all"}), error=True)),
    ],
)
def test_settings(text: str, expected: Settings) -> None:
    assert Settings.parse(text) == expected


@pytest.mark.parametrize("text", ["skip", "error=maybe", "frobnicate=1"])
def test_settings_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ValueError):
        Settings.parse(text)


def test_skipping() -> None:
    text = "FROM scratch\nMAINTAINER x\nCMD x\n"
    assert names(text) == ["MaintainerDeprecated", "JSONArgsRecommended"]
    assert names(text, check="skip=JSONArgsRecommended") == ["MaintainerDeprecated"]
    assert names(text, check="skip=all") == []


def test_a_comment_skips_for_its_instruction_only() -> None:
    text = """\
FROM scratch
# check=skip=SecretsUsedInArgOrEnv
# the key of the map
ENV MAP_KEY=x
ENV API_KEY=x
"""
    (finding,) = findings(text, check="")
    assert finding.span is not None
    assert finding.span.line == 5


def test_a_comment_switches_an_experimental_rule_on() -> None:
    text = "FROM scratch\n# check=experimental=InvalidDefinitionDescription\n# what\nARG A\n# what\nARG B\n"
    assert [finding.span and finding.span.line for finding in findings(text, check="")] == [4]


def test_a_comment_does_not_make_errors_and_a_broken_one_is_a_comment() -> None:
    assert not Settings().with_comments(["check=error=true"]).error
    assert Settings().with_comments(["check=nonsense"]) == Settings()
    assert Settings().with_comments(["the check=skip=all"]) == Settings()


def test_findings_are_values() -> None:
    seen = subject("FROM scratch AS A\nMAINTAINER x\n")
    assert run(seen, Settings()) == run(seen, Settings())
    assert (
        json.dumps([finding.rule for finding in run(seen, Settings())]) == '["StageNameCasing", "MaintainerDeprecated"]'
    )

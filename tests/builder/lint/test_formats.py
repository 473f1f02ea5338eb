"""Findings for other programs: their schemas, their parsers, and what must not be lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from builder.lint import every
from builder.lint.formats import FORMATS, Page, Report, pages_of
from builder.model import Finding, Severity
from grammar.source import Source, Span

SCHEMA = Path(__file__).with_name("data") / "sarif-schema-2.1.0.json"
SOURCE = Source("dir name/Docker:file", "FROM a\nRUN sudo b \\\n    c\n")
WHOLE = Finding(
    "SudoInRun", 'sudo, 100% <of> "it" & more\nlines', Span(2, 5, 2, 9), SOURCE, "hint: leave it out", Severity.ERROR,
    (Span(1, 1, 1, 7),), 12345, ("var/log/x", "var/log/y"), 2, "RUN sudo b",
)  # fmt: skip
LINES = Finding("ConsecutiveRuns", "two lines", Span(2, 1, 3, 6), SOURCE)
NOWHERE = Finding("SC2086", "no place", severity=Severity.INFO)
ODD = Finding("Odd", "a \ud800 surrogate, a \x00 and a \x1b", Span(1, 1, 2, 1), SOURCE)


def report(*findings: Finding) -> Report:
    return Report(SOURCE.name, findings, pages_of(every()), "1.2.3")


ALL = report(WHOLE, LINES, NOWHERE, ODD)
NONE = report()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", [ALL, NONE], ids=["some", "none"])
def test_every_format_can_be_written_out(name: str, given: Report) -> None:
    text = FORMATS[name](given)
    text.encode("utf-8")
    assert not text or text.endswith("\n")
    assert FORMATS[name](given) == text


@pytest.mark.parametrize("given", [ALL, NONE], ids=["some", "none"])
def test_sarif_fits_its_schema(given: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft4Validator(schema).validate(json.loads(FORMATS["sarif"](given)))


def test_sarif() -> None:
    (run,) = json.loads(FORMATS["sarif"](ALL))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["SudoInRun", "ConsecutiveRuns", "SC2086", "Odd"]
    assert "DL3004" in rules[0]["properties"]["tags"]
    assert rules[0]["help"]["text"].startswith("Sudo should not be used.")
    assert rules[2]["helpUri"] == "https://www.shellcheck.net/wiki/SC2086"
    first, second, third, _ = run["results"]
    assert (first["ruleId"], first["ruleIndex"], first["level"]) == ("SudoInRun", 0, "error")
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "dir%20name/Docker%3Afile"
    assert place["region"] == {"startLine": 2, "startColumn": 5, "endLine": 2, "endColumn": 9}
    assert first["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 1
    assert first["properties"] == {
        "bytes": 12345, "paths": ["var/log/x", "var/log/y"], "layer": 2, "createdBy": "RUN sudo b",
    }  # fmt: skip
    assert "region" not in third["locations"][0]["physicalLocation"]
    assert "properties" not in second
    prints = [result["partialFingerprints"]["pybuild/v1"] for result in run["results"]]
    assert len(set(prints)) == 4


def test_a_fingerprint_outlives_lines_above() -> None:
    def printed(text: str, line: int) -> str:
        finding = Finding("SudoInRun", f"in line {line}", Span(line, 1, line, 4), Source("D", text))
        document = json.loads(FORMATS["sarif"](Report("D", (finding,), {})))
        return str(document["runs"][0]["results"][0]["partialFingerprints"]["pybuild/v1"])

    assert printed("FROM a\nRUN b\n", 2) == printed("FROM a\n\n\nRUN b\n", 4)
    assert printed("FROM a\nRUN b\n", 2) != printed("FROM a\nRUN c\n", 2)


def test_json() -> None:
    document = json.loads(FORMATS["json"](ALL))
    first: dict[str, Any] = document["findings"][0]
    assert first == {
        "rule": "SudoInRun", "severity": "error", "message": WHOLE.message, "file": SOURCE.name, "line": 2, "column": 5,
        "endLine": 2, "endColumn": 9, "hint": WHOLE.hint, "bytes": 12345, "paths": ["var/log/x", "var/log/y"],
        "related": [{"line": 1, "column": 1, "endLine": 1, "endColumn": 7}], "layer": 2, "createdBy": "RUN sudo b",
    }  # fmt: skip
    assert "line" not in document["findings"][2]


def test_github() -> None:
    lines = FORMATS["github"](ALL).splitlines()
    assert len(lines) == 4
    pattern = re.compile(r"::(error|warning|notice) ([a-zA-Z]+=[^,:]*(?:,[a-zA-Z]+=[^,:]*)*)::(.*)")
    assert all(pattern.fullmatch(line) for line in lines)
    assert lines[0] == (
        "::error file=dir name/Docker%3Afile,line=2,endLine=2,col=5,endColumn=9,title=SudoInRun::"
        'sudo, 100%25 <of> "it" & more%0Alines (12345 bytes): hint: leave it out'
    )
    assert lines[1].startswith("::warning file=dir name/Docker%3Afile,line=2,endLine=3,title=ConsecutiveRuns::")
    assert lines[2].startswith("::notice file=dir name/Docker%3Afile,title=SC2086::")
    assert ",line=1,endLine=1," in lines[3], "a place that ends before a line's first character ends above it"


def test_gitlab() -> None:
    document = json.loads(FORMATS["gitlab"](report(WHOLE, LINES, NOWHERE, WHOLE)))
    keys = {"description", "check_name", "fingerprint", "severity", "location"}
    assert all(set(entry) == keys for entry in document)
    assert [entry["severity"] for entry in document] == ["major", "minor", "info", "major"]
    assert document[1]["location"] == {"path": SOURCE.name, "lines": {"begin": 2, "end": 3}}
    assert document[2]["location"]["lines"] == {"begin": 1}
    assert len({entry["fingerprint"] for entry in document}) == 4


def test_junit() -> None:
    suites = ET.fromstring(FORMATS["junit"](ALL))
    (suite,) = suites
    assert (suites.tag, suite.tag) == ("testsuites", "testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("4", "3")
    assert len(suite.findall("testcase")) == 4
    failures = [failure.get("type") for failure in suite.iter("failure")]
    assert failures == ["error", "warning", "warning"]
    first = suite.find("testcase/failure")
    assert first is not None
    assert str(first.get("message")).startswith('sudo, 100% <of> "it" & more\nlines')
    (only,) = ET.fromstring(FORMATS["junit"](NONE)).iter("testcase")
    assert list(only) == []


def test_checkstyle() -> None:
    root = ET.fromstring(FORMATS["checkstyle"](ALL))
    (file,) = root
    assert file.get("name") == SOURCE.name
    facts = [(each.get("line"), each.get("column"), each.get("severity"), each.get("source")) for each in file]
    assert facts[0] == ("2", "5", "error", "pybuild.SudoInRun")
    assert facts[2] == ("0", "0", "info", "pybuild.SC2086")
    (file,) = ET.fromstring(FORMATS["checkstyle"](NONE))
    assert list(file) == []


def test_pages() -> None:
    pages = pages_of(every())
    assert pages["JSONArgsRecommended"].url.endswith("/rule/json-args-recommended/")
    assert not pages["SudoInRun"].url
    assert pages["SudoInRun"] == Page(
        "SudoInRun", "Sudo should not be used", text=pages["SudoInRun"].text, aliases=("DL3004",)
    )

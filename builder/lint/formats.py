"""Findings as text that other programs read: JSON, SARIF, GitHub, GitLab, JUnit, checkstyle. Pure.

Every format has a finding's rule, place, severity and message; JSON and SARIF have its bytes, paths and further lines,
too. A place in an image that has no build file is the image's name. What a file's name or a message holds is escaped as
the format asks for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from builder.model import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from builder.model import Finding
    from grammar.source import Span

Document = dict[str, Any]

_SARIF: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_SHELLCHECK: Final = "https://www.shellcheck.net/wiki/"


class Page(Struct, frozen=True):
    """What is known of a rule. summary: one sentence. text: its page. url: a page elsewhere, or empty."""

    name: str
    summary: str
    severity: Severity = Severity.WARNING
    text: str = ""
    url: str = ""
    aliases: tuple[str, ...] = ()


class Report(Struct, frozen=True):
    """All that is to be told. subject: what was looked at: a build file's name, or an image's. version: pybuild's.

    shipped, visible: of an image, the bytes in its layers, and those of them that can be seen.
    """

    subject: str
    findings: tuple[Finding, ...]
    pages: Mapping[str, Page]
    version: str = ""
    shipped: int | None = None
    visible: int | None = None

    def page(self, rule: str) -> Page:
        """The page of a rule; of a code of shellcheck's what can be said of it."""
        found = self.pages.get(rule)
        if found is None and rule.startswith("SC"):
            return Page(rule, f"shellcheck {rule}", url=f"{_SHELLCHECK}{rule}")
        return found or Page(rule, rule)

    def file(self, finding: Finding) -> str:
        """The name of the text that a finding is about."""
        return finding.source.name if finding.source is not None else self.subject


def _last_line(span: Span) -> int:
    """The last line that has a character of the place."""
    return span.end_line - (span.end_column == 1 and span.end_line > span.line)


def _sentence(finding: Finding) -> str:
    """The message with the hint and the bytes, in one line."""
    text = finding.message
    if finding.size:
        text += f" ({finding.size} bytes)"
    return f"{text}: {finding.hint}" if finding.hint else text


# ---------------------------------------------------------------- JSON


def _place(span: Span) -> Document:
    return {"line": span.line, "column": span.column, "endLine": span.end_line, "endColumn": span.end_column}


def as_json(report: Report) -> str:
    """A list of findings, as objects whose keys do not change; a key is left out where it has nothing to say."""
    found = []
    for finding in report.findings:
        entry: Document = {
            "rule": finding.rule,
            "severity": finding.severity.value,
            "message": finding.message,
            "file": report.file(finding),
        }
        if finding.span is not None:
            entry |= _place(finding.span)
        if finding.hint:
            entry["hint"] = finding.hint
        if finding.related:
            entry["related"] = [_place(span) for span in finding.related]
        if finding.size:
            entry["bytes"] = finding.size
        if finding.paths:
            entry["paths"] = list(finding.paths)
        if finding.layer is not None:
            entry["layer"] = finding.layer
        if finding.created_by:
            entry["createdBy"] = finding.created_by
        if report.page(finding.rule).url:
            entry["url"] = report.page(finding.rule).url
        found.append(entry)
    whole: Document = {"subject": report.subject, "findings": found}
    if report.shipped is not None:
        whole["efficiency"] = {"shipped": report.shipped, "visible": report.visible}
    return _dumped(whole)


def _dumped(document: object) -> str:
    # Names that are no UTF-8 came in as lone surrogates, which no reader of JSON takes.
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


# ---------------------------------------------------------------- SARIF


_SARIF_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def as_sarif(report: Report) -> str:
    """SARIF 2.1.0: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html."""
    used = list(dict.fromkeys(finding.rule for finding in report.findings))
    rules = [_sarif_rule(report.page(name)) for name in used]
    results = []
    for finding in report.findings:
        result: Document = {
            "ruleId": finding.rule,
            "ruleIndex": used.index(finding.rule),
            "level": _SARIF_LEVELS[finding.severity],
            "message": {"text": _sentence(finding)},
            "locations": [_sarif_location(report.file(finding), finding.span)],
            "partialFingerprints": {"pybuild/v1": _fingerprint(report, finding)},
        }
        if finding.related:
            result["relatedLocations"] = [_sarif_location(report.file(finding), span) for span in finding.related]
        facts = {
            "bytes": finding.size, "paths": list(finding.paths), "layer": finding.layer, "createdBy": finding.created_by
        }  # fmt: skip
        kept = {
            key: value
            for key, value in facts.items()
            if value not in (0, [], None, "") or (value == 0 and key == "layer")
        }
        if kept:
            result["properties"] = kept
        results.append(result)
    driver: Document = {"name": "pybuild", "rules": rules}
    if report.version:
        driver["version"] = report.version
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return _dumped({"$schema": _SARIF, "version": "2.1.0", "runs": [run]})


def _sarif_rule(page: Page) -> Document:
    rule: Document = {
        "id": page.name,
        "name": page.name,
        "shortDescription": {"text": page.summary},
        "defaultConfiguration": {"level": _SARIF_LEVELS[page.severity]},
    }
    if page.text:
        rule["help"] = {"text": page.text}
    if page.url:
        rule["helpUri"] = page.url
    if page.aliases:
        rule["properties"] = {"tags": list(page.aliases)}
    return rule


def _sarif_location(file: str, span: Span | None) -> Document:
    place: Document = {"artifactLocation": {"uri": _uri(file)}}
    if span is not None:
        place["region"] = {
            "startLine": span.line,
            "startColumn": span.column,
            "endLine": span.end_line,
            "endColumn": span.end_column,
        }
    return {"physicalLocation": place}


def _uri(path: str) -> str:
    """A path or an image's name as a URI reference: a colon in the first part would make a scheme of it."""
    from urllib.parse import quote

    return quote(path.encode("utf-8", "surrogateescape"), safe="/@!$&'()*+,;=~") if path else "-"


def _fingerprint(report: Report, finding: Finding) -> str:
    """What stays the same when lines are put in above: the rule, the file, the text of its line, the paths."""
    from hashlib import sha256

    line = ""
    if finding.source is not None and finding.span is not None:
        line = "".join(finding.source.lines(finding.span.line, finding.span.line)).strip()
    parts = [finding.rule, report.file(finding), line, finding.message if not line else "", *finding.paths[:1]]
    return sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


# ---------------------------------------------------------------- GitHub and GitLab


_GITHUB_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def as_github(report: Report) -> str:
    """Workflow commands, which GitHub shows at the lines of a pull request.

    https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands.
    """
    lines = []
    for finding in report.findings:
        facts: list[tuple[str, object]] = [("file", report.file(finding))]
        if finding.span is not None:
            facts += [("line", finding.span.line), ("endLine", _last_line(finding.span))]
            if finding.span.line == finding.span.end_line:
                # Columns over several lines are refused.
                facts += [("col", finding.span.column), ("endColumn", finding.span.end_column)]
        facts.append(("title", finding.rule))
        properties = ",".join(f"{key}={_github(str(value), property_=True)}" for key, value in facts)
        lines.append(f"::{_GITHUB_LEVELS[finding.severity]} {properties}::{_github(_sentence(finding))}\n")
    return "".join(lines)


def _github(text: str, *, property_: bool = False) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if property_ else text


_GITLAB_LEVELS: Final = {Severity.ERROR: "major", Severity.WARNING: "minor", Severity.INFO: "info"}


def as_gitlab(report: Report) -> str:
    """GitLab's code quality report: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format."""
    found = []
    seen: dict[str, int] = {}
    for finding in report.findings:
        fingerprint = _fingerprint(report, finding)
        count = seen[fingerprint] = seen.get(fingerprint, 0) + 1
        lines: Document = {"begin": finding.span.line if finding.span else 1}
        if finding.span is not None:
            lines["end"] = _last_line(finding.span)
        found.append(
            {
                "description": _sentence(finding),
                "check_name": finding.rule,
                # GitLab keeps one of those that are alike.
                "fingerprint": fingerprint if count == 1 else f"{fingerprint}-{count}",
                "severity": _GITLAB_LEVELS[finding.severity],
                "location": {"path": report.file(finding), "lines": lines},
            }
        )
    return _dumped(found)


# ---------------------------------------------------------------- XML


_JUNIT_FAILS: Final = (Severity.ERROR, Severity.WARNING)


def as_junit(report: Report) -> str:
    """JUnit: a test case for each finding, failed for errors and warnings; one that passed where there is none."""
    failed = sum(finding.severity in _JUNIT_FAILS for finding in report.findings)
    cases = []
    for finding in report.findings:
        place = f"{report.file(finding)}:{finding.span.line}" if finding.span else report.file(finding)
        head = f'    <testcase classname="{_xml(report.file(finding))}" name="{_xml(f"{finding.rule} {place}")}"'
        text = _xml(_sentence(finding))
        if finding.severity in _JUNIT_FAILS:
            kind = finding.severity.value
            cases.append(f'{head}>\n      <failure type="{kind}" message="{text}"/>\n    </testcase>\n')
        else:
            cases.append(f"{head}>\n      <system-out>{text}</system-out>\n    </testcase>\n")
    if not cases:
        cases.append(f'    <testcase classname="{_xml(report.subject)}" name="lint"/>\n')
    counts = f'tests="{len(cases)}" failures="{failed}" errors="0"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites {counts}>\n'
        f'  <testsuite name="pybuild lint" {counts}>\n{"".join(cases)}  </testsuite>\n</testsuites>\n'
    )


def as_checkstyle(report: Report) -> str:
    """Checkstyle 4.3, which many programs read for any language."""
    by_file: dict[str, list[str]] = {report.subject: []}
    for finding in report.findings:
        line, column = (finding.span.line, finding.span.column) if finding.span else (0, 0)
        by_file.setdefault(report.file(finding), []).append(
            f'    <error line="{line}" column="{column}" severity="{finding.severity.value}"'
            f' message="{_xml(_sentence(finding))}" source="pybuild.{_xml(finding.rule)}"/>\n'
        )
    files = "".join(f'  <file name="{_xml(name)}">\n{"".join(errors)}  </file>\n' for name, errors in by_file.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<checkstyle version="4.3">\n{files}</checkstyle>\n'


def _xml(text: str) -> str:
    """Text for an attribute. Characters that XML 1.0 has no way to write become U+FFFD."""
    known = "".join(
        char
        if char in "\t\n\r" or " " <= char <= "\ud7ff" or "\ue000" <= char <= "\ufffd" or char > "\uffff"
        else "\ufffd"
        for char in text
    )
    for char, escaped in (
        ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "&#10;"), ("\r", "&#13;"), ("\t", "&#9;")
    ):  # fmt: skip
        known = known.replace(char, escaped)
    return known


FORMATS: Final[Mapping[str, Callable[[Report], str]]] = {
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
    "gitlab": as_gitlab,
    "junit": as_junit,
    "checkstyle": as_checkstyle,
}
"""All but `text`, which is the terminal's."""


def formats() -> Sequence[str]:
    """What --format takes."""
    return ("text", *FORMATS)


def pages_of(rules: Iterable[Any]) -> dict[str, Page]:
    """The pages of rules, on the syntax or on the layers: a docstring is a page."""
    import inspect

    found = {}
    for rule in rules:
        text = inspect.getdoc(rule.check) or ""
        found[rule.name] = Page(
            rule.name, rule.summary, rule.severity, text, getattr(rule, "url", ""), tuple(rule.aliases)
        )
    return found

"""What can be mended mechanically: edits of BuildKit's rules, and how edits get into a text.

    fixed = mend(text, ignore, look)        every fix that holds: the file still reads, and the finding is gone

A fix is tried by itself and looked at again: one that leaves its finding there, or brings up another, or a mistake, is
left out. So what comes out reads and builds whenever what went in did. Pure.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

from builder.lint import shell
from builder.lint.subject import Edit, Subject
from grammar.instructions import Cmd, Entrypoint, Env, Expose, From, Label, Maintainer, ShellForm
from grammar.lines import Scanner
from grammar.source import Source, Span
from grammar.words import WordError, expand_with_names, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from builder.lint.subject import Rule
    from builder.model import Finding
    from grammar.instructions import Instruction

    Fix = Callable[[Subject, Finding], Iterable[Edit]]

_Kind = TypeVar("_Kind", bound="Instruction")
_FIRST: Final = frozenset({"ConsistentInstructionCasing"})
"""What others go by: AS is written as FROM is."""
_MOST: Final = 1000
"""So many fixes are made at most: a text that never comes to an end is a fault of a fix."""


# ---------------------------------------------------------------- edits of a text


def applied(text: str, edits: Iterable[Edit]) -> str:
    """The text with its edits, which must not overlap. What is put in has the text's own line ends."""
    wanted = sorted(((*_offsets(text, edit.span), edit.text) for edit in edits), reverse=True)
    ends = "\r\n" if "\r\n" in text else "\n"
    for start, end, put in wanted:
        # What goes behind the last line begins a line of its own.
        lead = ends if put and start == len(text) and start == end and text and not text.endswith("\n") else ""
        text = text[:start] + lead + put.replace("\n", ends) + text[end:]
    return text


def _offsets(text: str, span: Span) -> tuple[int, int]:
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    mark = text.startswith("\ufeff")

    def offset(line: int, column: int) -> int:
        if line > len(starts):
            return len(text)
        # A byte order mark stands in front of the first line's first character.
        return min(starts[line - 1] + column - 1 + (mark and line == 1), len(text))

    return offset(span.line, span.column), offset(span.end_line, span.end_column)


class Look(Struct, frozen=True):
    """A text, looked at. findings: as judged. broken: it has mistakes, which are not among the findings."""

    subject: Subject
    findings: tuple[Finding, ...]
    broken: bool = False


class Mended(Struct, frozen=True):
    """The texts after every fix that holds, and the findings that are gone. ignore: None where there is no file."""

    text: str
    ignore: str | None
    done: tuple[Finding, ...] = ()


def mend(text: str, ignore: str | None, look: Callable[[str, str | None], Look], rules: Iterable[Rule]) -> Mended:
    """Fix after fix, from the top of the file down. `look` looks at a file and an ignore file."""
    fixes = {**OF_BUILDKIT, **{rule.name: rule.fix for rule in rules if rule.fix is not None}}
    seen = look(text, ignore)
    if seen.broken:
        return Mended(text, ignore)
    done: list[Finding] = []
    refused: set[tuple[str, str, int]] = set()
    for _ in range(_MOST):
        for finding in sorted(seen.findings, key=lambda each: each.rule not in _FIRST):
            fix = fixes.get(finding.rule)
            mark = _mark(finding, seen.findings)
            if fix is None or mark in refused or finding.span is None:
                continue
            edits = tuple(fix(seen.subject, finding))
            new = applied(text, (edit for edit in edits if not edit.file)), ignore
            beside = [edit for edit in edits if edit.file]
            if beside:
                new = new[0], applied(ignore or "", beside)
            after = look(*new) if new != (text, ignore) else None
            if after is None or not _better(seen, after, finding.rule):
                refused.add(mark)
                continue
            (text, ignore), seen = new, after
            done.append(finding)
            break
        else:
            break
    return Mended(text, ignore, tuple(done))


def _mark(finding: Finding, among: Iterable[Finding]) -> tuple[str, str, int]:
    """What tells a finding from others when lines above it come and go: how many alike stand before it."""
    alike = [each for each in among if (each.rule, each.message) == (finding.rule, finding.message)]
    return finding.rule, finding.message, alike.index(finding)


def _better(before: Look, after: Look, rule: str) -> bool:
    """Whether one finding of the rule is gone, and nothing else has come."""
    if after.broken:
        return False
    old, new = (sorted(each.rule for each in seen.findings if each.rule != rule) for seen in (before, after))
    fewer = sum(each.rule == rule for each in after.findings) < sum(each.rule == rule for each in before.findings)
    came = [name for name in set(new) if new.count(name) > old.count(name)]
    return fewer and not came


# ---------------------------------------------------------------- BuildKit's rules


def casing(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """ConsistentInstructionCasing: the keyword as the hint has it."""
    for instruction in subject.instructions():
        if instruction.span == finding.span:
            lower = "(lowercase)" in finding.message
            yield Edit(_keyword(instruction), instruction.keyword.lower() if lower else instruction.keyword.upper())


def as_casing(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """FromAsCasing: AS as FROM is written."""
    for instruction in _at(subject, finding, From):
        found = re.search(r"[ \t](as)[ \t]+\S+[ \t]*\Z", instruction.text, re.IGNORECASE)
        if found:
            word = "as" if instruction.keyword.islower() else "AS"
            yield Edit(_part(subject, instruction, *found.span(1)), word)


def stage_name(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """StageNameCasing: the name in lower case. Those who use it need no change: they do not tell the cases apart."""
    for instruction in _at(subject, finding, From):
        found = re.search(r"[ \t](\S+)[ \t]*\Z", instruction.text)
        if found and found[1] == instruction.name_as_written:
            yield Edit(_part(subject, instruction, *found.span(1)), found[1].lower())


def no_blank_lines(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """NoEmptyContinuation: the blank lines away."""
    for instruction in (*subject.plan.dockerfile.global_args, *subject.instructions()):
        if finding.span is not None and finding.span.line in instruction.empty_continuations:
            for line in instruction.empty_continuations:
                yield Edit(Span(line, 1, line + 1, 1), "")


def label_instead(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """MaintainerDeprecated: the label."""
    for instruction in _at(subject, finding, Maintainer):
        if not re.search(r"[$\"\\`]", instruction.name) and _one_line(instruction):
            word = "label" if instruction.keyword.islower() else "LABEL"
            yield Edit(instruction.span, f'{word} org.opencontainers.image.authors="{instruction.name}"')


def with_sign(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """LegacyKeyValueFormat: `name=value`, where it means the same."""
    escape = subject.plan.dockerfile.directives.escape
    found: tuple[Env | Label, ...] = (*_at(subject, finding, Env), *_at(subject, finding, Label))
    for instruction in found:
        pair = instruction.pairs[0]
        value = pair.value or ""
        if not _one_line(instruction) or re.search(r"\s", pair.name):
            return
        try:
            quoted = value if len(split(value)) == 1 else f'"{value}"'
        except WordError:
            return
        if value and _meaning(value, escape) == _meaning(quoted, escape) is not None:
            yield Edit(instruction.span, f"{instruction.keyword} {pair.name}={quoted}")


def _meaning(word: str, escape: str) -> str | None:
    """What a word comes to, its variables shown as they are called; None when it can not be told."""
    if re.search(r"\$\{[A-Za-z0-9_]*[^A-Za-z0-9_}]", word):
        return None
    names = {name: f"<{name} {name}>" for name in re.findall(r"\$\{?([A-Za-z0-9_]+)", word)}
    try:
        return expand_with_names(word, names, escape).text
    except WordError:
        return None


def as_json(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """JSONArgsRecommended: an array, of a command that needs no shell."""
    for stage in subject.plan.dockerfile.stages:
        own = [item for item in stage.instructions if isinstance(item, Cmd | Entrypoint)]
        for instruction in own:
            if instruction.span != finding.span or not isinstance(instruction.command, ShellForm):
                continue
            words = _plain_words(instruction.command.text)
            # With both, what CMD says are arguments for ENTRYPOINT, and another form of it is another argument.
            if words and len({type(item) for item in own}) == 1 and _one_line(instruction):
                array = json.dumps(words, ensure_ascii=False)
                yield Edit(instruction.span, f"{instruction.keyword} {array}")


_OF_THE_SHELL: Final = frozenset({
    ".", ":", "[", "[[", "alias", "bg", "break", "cd", "command", "continue", "eval", "exec", "exit", "export", "false",
    "fg", "getopts", "hash", "jobs", "let", "local", "read", "readonly", "return", "set", "shift", "shopt", "source",
    "test", "times", "trap", "true", "type", "typeset", "ulimit", "umask", "unalias", "unset", "wait", "echo", "printf",
})  # fmt: skip


def _plain_words(text: str) -> list[str]:
    """The words of one simple command that a shell would only split; none for anything more."""
    script = shell.read(text)
    if not script.whole or len(script.commands) != 1:
        return []
    command = script.commands[0]
    words = [word for word in command.words if not (word is command.words[0] and word.literal == "exec")]
    special = command.redirects or command.assignments or command.depth or command.after or command.condition
    if special or not words or text.strip() != text[command.start : command.end] or words[0].literal in _OF_THE_SHELL:
        return []
    if not all(word.plain and not re.search(r"[*?\[{}~!\\]", word.text) for word in words):
        return []
    return [word.literal for word in words]


def protocol(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """ExposeProtoCasing: in lower case."""
    for instruction in _at(subject, finding, Expose):
        for word in instruction.ports:
            head, slash, name = word.text.rpartition("/")
            if slash and name != name.lower() and "$" not in word.text:
                yield Edit(word.span, f"{head}/{name.lower()}")


def container_port(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """ExposeInvalidFormat: the container's port alone."""
    for instruction in _at(subject, finding, Expose):
        for word in instruction.ports:
            if ":" in word.text and not re.search(r"[$'\"]", word.text):
                yield Edit(word.span, word.text.rpartition(":")[2])


def without_platform(subject: Subject, finding: Finding) -> Iterator[Edit]:
    """RedundantTargetPlatform: the flag away."""
    for instruction in _at(subject, finding, From):
        found = re.search(r"[ \t]--platform=\S+", instruction.text)
        if found:
            yield Edit(_part(subject, instruction, *found.span()), "")


def _at(subject: Subject, finding: Finding, kind: type[_Kind]) -> Iterator[_Kind]:
    for instruction in subject.instructions():
        if isinstance(instruction, kind) and instruction.span == finding.span:
            yield instruction


def _keyword(instruction: Instruction) -> Span:
    start = instruction.span
    return Span(start.line, start.column, start.line, start.column + len(instruction.keyword))


def _one_line(instruction: Instruction) -> bool:
    return instruction.span.line == instruction.span.end_line


def _part(subject: Subject, instruction: Instruction, start: int, end: int) -> Span:
    """The place of a part of an instruction's text."""
    source: Source = subject.plan.dockerfile.source
    line = Scanner(source).line_at(instruction.span.line)
    assert line is not None, "the instruction was read there"
    shift = max(line.text.find(instruction.text), 0)
    return line.span(shift + start, shift + end)


OF_BUILDKIT: Final[Mapping[str, Fix]] = {
    "ConsistentInstructionCasing": casing,
    "FromAsCasing": as_casing,
    "StageNameCasing": stage_name,
    "NoEmptyContinuation": no_blank_lines,
    "MaintainerDeprecated": label_instead,
    "LegacyKeyValueFormat": with_sign,
    "JSONArgsRecommended": as_json,
    "ExposeProtoCasing": protocol,
    "ExposeInvalidFormat": container_port,
    "RedundantTargetPlatform": without_platform,
}
"""Here and not at the rules, since each build loads those."""

"""`--call` and `--check`: what a build file offers and what is wrong with it, told instead of building.

The answers have the form of BuildKit's subrequests, as text and as JSON, so that what reads those reads these:
https://docs.docker.com/reference/cli/docker/buildx/build/#call.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from builder import lint
from builder.cli.flags import UsageError
from builder.cli.opened import open_store
from builder.model import CacheMount, RunStep, SecretMount, SshMount
from builder.terminal import printable, render, render_finding
from grammar.instructions import Arg, Pair
from grammar.words import WordError, expand_with_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from builder.lint import LintStage
    from builder.model import BuildRequest, Finding, Plan
    from builder.survey import Survey
    from grammar.instructions import Dockerfile, Instruction, Word
    from grammar.source import Source, Span

METHODS = ("build", "check", "outline", "targets")
_ALIASES = {"lint": "check"}
_FORMATS = ("text", "json")

Document = dict[str, Any]
"""One answer, ready to be written as JSON; its keys are BuildKit's."""


def method_of(given: Given) -> tuple[str, str, bool]:
    """Method, format, and whether findings leave the exit code alone, as --call or --check say. UsageError."""
    if given.on("check"):
        if given.has("call"):
            raise UsageError("--check and --call can not be given together", hint="--check is --call=check")
        return "check", "text", False
    name, *options = given.one("call", "build").split(",")
    name = name.removeprefix("frontend.")
    method = _ALIASES.get(name, name)
    if method not in METHODS:
        from grammar.suggest import did_you_mean

        hint = did_you_mean(name, METHODS) or f"it is one of {', '.join(METHODS)}"
        raise UsageError(f"--call={name} is not supported", hint=hint)
    form, lenient = "text", False
    for option in options:
        key, sign, value = option.partition("=")
        if key == "format" and value in _FORMATS:
            form = value
        elif key == "ignorestatus" and value in {"", "true"}:
            lenient = True
        elif key == "ignorestatus" and value == "false":
            lenient = False
        else:
            hint = "--call=METHOD[,format=text|json][,ignorestatus]"
            raise UsageError(f"--call has no option {option!r}" if sign or key else "--call has an empty option", hint)
    return method, form, lenient


def call(request: BuildRequest, method: str, form: str, around: Surroundings, given: Given) -> int:
    """Print the answer to standard output. 1 when a check found something, 0 else.

    Raises what keeps the other methods from answering, as a build would.
    """
    from builder.build import open_request
    from builder.survey import survey

    with open_store(given, around.environ) as store, open_request(request, store, around.stdin) as contexts:
        if method == "targets":
            from grammar.parser import parse

            _say(targets(parse(contexts.source)), form, around, _targets_text)
            return 0
        seen = survey(request, store, contexts, everything=method == "check" and not request.target)
        colour = around.colour(around.stderr)
        for note in seen.examined.notes:
            print(render_finding(note, colour=colour), end="", file=around.stderr)
        if method == "outline":
            if seen.failure is not None:
                raise seen.failure
            assert seen.plan is not None
            _say(outline(seen.plan, seen.stages), form, around, _outline_text)
            return 0
        for name in seen.unknown:
            text = f"base image {name} is not here: its variables are not known, so none is called undefined"
            print(f"note: {printable(text)}", file=around.stderr)
        if form == "json":
            around.say(json.dumps(check(seen, contexts.source), indent=2, ensure_ascii=False))
        else:
            around.say(_check_text(seen, colour=around.colour(around.stdout)).rstrip("\n"))
        return int(bool(seen.examined.findings or seen.failure))


def _say(document: Document, form: str, around: Surroundings, text: Any) -> None:
    shown = json.dumps(document, indent=2, ensure_ascii=False) if form == "json" else text(document)
    around.say(shown.rstrip("\n"))


# ---------------------------------------------------------------- check


def check(seen: Survey, source: Source) -> Document:
    """`frontend.lint`: the findings, the file that they are about, and what keeps it from being built."""
    rules = {rule.name: rule for rule in lint.RULES}
    sources: dict[str, int] = {source.name: 0}
    texts = [source]
    warnings: list[Document] = []
    for finding in seen.examined.findings:
        rule = rules[finding.rule]
        where = finding.source or source
        if where.name not in sources:
            sources[where.name] = len(texts)
            texts.append(where)
        entry: Document = {"ruleName": rule.name, "description": rule.summary}
        if rule.url:
            entry["url"] = rule.url
        entry["detail"] = _detail(finding)
        index = sources[where.name]
        spans = _lines(_whole(finding, seen)) if finding.span else []
        entry["location"] = {**({"sourceIndex": index} if index else {}), "ranges": spans}
        warnings.append(entry)
    document: Document = {
        "warnings": warnings,
        "sources": [{"filename": each.name, "language": "Dockerfile", "data": _data(each)} for each in texts],
    }
    if seen.failure is not None:
        span = seen.failure.span
        location = {"ranges": _lines(span)} if span else {}
        document["buildError"] = {"message": seen.failure.message, "location": location}
    return document


def _detail(finding: Finding) -> str:
    """The message, with a guess in parentheses, as BuildKit has it."""
    return f"{finding.message} ({finding.hint})" if finding.hint.startswith("did you mean ") else finding.message


def _whole(finding: Finding, seen: Survey) -> Span:
    """The place of the whole instruction, which is what BuildKit tells; a blank line is told by itself."""
    assert finding.span is not None
    if finding.rule == "NoEmptyContinuation" or seen.plan is None:
        return finding.span
    dockerfile = seen.plan.dockerfile
    if finding.source is not None and finding.source.name != dockerfile.source.name:
        return finding.span
    place = lint.instruction_at(_instructions(dockerfile), finding.span.line)
    return place.span if place else finding.span


def _instructions(dockerfile: Dockerfile) -> Iterator[Instruction]:
    yield from dockerfile.global_args
    for stage in dockerfile.stages:
        yield stage.from_
        yield from stage.instructions


def _lines(span: Span) -> list[Document]:
    """One range for each line of a place."""
    last = span.end_line if span.end_column > 1 or span.end_line == span.line else span.end_line - 1
    return [{"start": {"line": line}, "end": {"line": line}} for line in range(span.line, last + 1)]


def _data(source: Source) -> str:
    return base64.b64encode(source.text.encode("utf-8", "surrogateescape")).decode()


def _check_text(seen: Survey, *, colour: bool) -> str:
    findings = seen.examined.findings
    rules = {rule.name: rule for rule in lint.RULES}
    parts = []
    if findings:
        count = "1 warning has" if len(findings) == 1 else f"{len(findings)} warnings have"
        parts.append(f"Check complete, {count} been found!\n")
    for finding in findings:
        url = rules[finding.rule].url
        body = render_finding(finding, colour=colour).partition("\n")[2]
        parts.append(
            f"\nWARNING: {finding.rule}{' - ' * bool(url)}{url}\n{printable(finding.message)}\n{body.rstrip()}\n"
        )
    if seen.failure is not None:
        parts.append(("\n" if findings else "") + render(seen.failure, colour=colour))
    elif not findings:
        parts.append("Check complete, no warnings found.\n")
    return "".join(parts)


# ---------------------------------------------------------------- outline


def outline(plan: Plan, stages: Sequence[LintStage]) -> Document:
    """`frontend.outline`: what the target can be given: build arguments, secrets, agents, and its cache mounts."""
    by_index = {stage.plan.stage.index: stage for stage in stages}
    order = _from_target(plan.target, by_index)
    target = plan.dockerfile.stages[plan.target]
    args: dict[str, Document] = {}
    secrets: dict[str, Document] = {}
    agents: dict[str, Document] = {}
    caches: dict[str, Document] = {}
    for stage in order:
        for name, entry in _args_of(stage, plan).items():
            args.setdefault(name, entry)
        for lowered in stage.lowered:
            if not isinstance(lowered.step, RunStep):
                continue
            place = {"location": {"ranges": _lines(lowered.instruction.span)}}
            for mount in lowered.step.mounts:
                match mount:
                    case SecretMount() | SshMount():
                        needed = {"required": True} if mount.required else {}
                        into = secrets if isinstance(mount, SecretMount) else agents
                        into.setdefault(mount.id, {"name": mount.id, **needed, **place})
                    case CacheMount():
                        caches.setdefault(mount.id, {"ID": mount.id, **place})
                    case _:
                        pass
    document: Document = {"name": target.name, "description": _comment(target.from_, target.name)}
    lists = {"args": args, "secrets": secrets, "ssh": agents, "cache": caches}
    document |= {key: sorted(found.values(), key=_line_of) for key, found in lists.items()}
    document["sources"] = [_data(plan.dockerfile.source)]
    return {key: value for key, value in document.items() if value}


def _from_target(target: int, stages: dict[int, LintStage]) -> list[LintStage]:
    """The target, its base, then what it takes files from, each with what they need in turn."""
    order: list[LintStage] = []

    def visit(index: int) -> None:
        stage = stages.get(index)
        if stage is None or stage in order:
            return
        order.append(stage)
        base = stage.plan.base.stage
        for each in ([base] if base is not None else []) + sorted(stage.plan.needs):
            visit(each)

    visit(target)
    return order


def _args_of(stage: LintStage, plan: Plan) -> dict[str, Document]:
    """The build arguments that count for one stage: declared by it, used by its FROM, and used by their defaults."""
    declared: dict[str, tuple[Arg, Pair]] = {}
    for arg in plan.dockerfile.global_args:
        declared |= {pair.name: (arg, pair) for pair in arg.pairs}
    values = dict(plan.global_args)
    used = set()
    for word in (stage.plan.stage.from_.image, stage.plan.stage.from_.platform):
        used |= _names(word, values, plan)
    for lowered in stage.lowered:
        if not isinstance(lowered.instruction, Arg):
            continue
        for pair in lowered.instruction.pairs:
            used.add(pair.name)
            given = pair.name in dict(plan.build_args)
            if pair.value is None and not given and pair.name in dict(plan.global_args):
                continue  # it is the global one
            declared[pair.name] = (lowered.instruction, pair)
            values[pair.name] = dict(lowered.state.args).get(pair.name) or ""
    waiting = list(used)
    while waiting:
        name = waiting.pop()
        if name in declared and declared[name][1].value is not None:
            more = _names(declared[name][1], values, plan) - used
            used |= more
            waiting += more
    found: dict[str, Document] = {}
    for name in used & declared.keys():
        instruction, _ = declared[name]
        entry = {"name": name, "description": _comment(instruction, name), "value": values.get(name, "")}
        found[name] = {key: value for key, value in entry.items() if value}
        found[name]["location"] = {"ranges": _lines(instruction.span)}
    return found


def _names(word: Word | Pair | None, values: dict[str, str], plan: Plan) -> set[str]:
    """The variables that a word or a default uses and that have a value."""
    text = "" if word is None else word.value or "" if isinstance(word, Pair) else word.text
    try:
        return set(expand_with_names(text, values, plan.dockerfile.directives.escape).used)
    except WordError:
        return set()


def _comment(instruction: Instruction, name: str) -> str:
    """The description of a name: the comment above that begins with it, without it."""
    start = f"{name} "
    return next((text.removeprefix(start) for text in instruction.comments if name and text.startswith(start)), "")


def _line_of(entry: Document) -> int:
    ranges = entry["location"]["ranges"]
    return int(ranges[0]["start"]["line"]) if ranges else 0


def _outline_text(document: Document) -> str:
    parts = []
    if document.get("name") or document.get("description"):
        rows = [("TARGET:", document.get("name") or "(default)")]
        rows += [("DESCRIPTION:", document["description"])] if document.get("description") else []
        parts.append(_table(rows, 1))
    if document.get("args"):
        rows3 = [(arg["name"], arg.get("value", ""), arg.get("description", "")) for arg in document["args"]]
        parts.append(_table([("BUILD ARG", "VALUE", "DESCRIPTION"), *rows3], 3))
    for title, key in (("SECRET", "secrets"), ("SSH", "ssh")):
        if document.get(key):
            rows = [(each["name"], "true" if each.get("required") else "") for each in document[key]]
            parts.append(_table([(title, "REQUIRED"), *rows], 3))
    if document.get("cache"):
        parts.append(_table([("CACHE",), *((each["ID"],) for each in document["cache"])], 3))
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]], gap: int) -> str:
    """Rows as columns, as Go's tabwriter sets them."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in shown) + gap for column in range(len(shown[0]) - 1)] + [0]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "".join(f"{line.rstrip()}\n" for line in lines)


# ---------------------------------------------------------------- targets


def targets(dockerfile: Dockerfile) -> Document:
    """`frontend.targets`: every stage, with the comment above it that begins with its name."""
    found: list[Document] = []
    for stage in dockerfile.stages:
        entry: Document = {
            "name": stage.name,
            "default": stage is dockerfile.stages[-1],
            "description": _comment(stage.from_, stage.name),
            "base": stage.from_.image.text,
            "platform": stage.from_.platform.text if stage.from_.platform else "",
        }
        entry = {key: value for key, value in entry.items() if value}
        found.append({**entry, "location": {"ranges": _lines(stage.from_.span)}})
    return {"targets": found, "sources": [_data(dockerfile.source)]}


def _targets_text(document: Document) -> str:
    rows = []
    for target in document["targets"]:
        name = target.get("name", "")
        if target.get("default"):
            name = f"{name} (default)".strip()
        rows.append((name, target.get("description", "")))
    return _table([("TARGET", "DESCRIPTION"), *rows], 1)

"""What people and scripts see: progress, error excerpts, findings, tables. The only rich.

Events and errors come in, text goes out; nothing here decides anything. rich is loaded only by the live display, and
that starts only when a build takes longer than a glance: a build of cached steps never pays for it.
"""

from __future__ import annotations

import codecs
import os
import threading
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from msgspec import Struct, field

from builder.events import (
    BlobMoved,
    BuildFinished,
    BuildPlanned,
    ExportFinished,
    ExportStarted,
    Inspected,
    StepFailed,
    StepFinished,
    StepMissed,
    StepOutput,
    StepStarted,
    TierChosen,
    TransferFinished,
    TransferStarted,
    Warned,
)
from builder.quantities import human_seconds, human_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text

    from builder.events import Event
    from builder.lint.efficiency import Efficiency, Waste
    from builder.model import BuildResult, Finding
    from grammar.source import Source, Span

# ---------------------------------------------------------------- words


def printable(text: str) -> str:
    """`text` without what would act on a terminal: escape sequences dropped, other control characters shown as `?`."""
    if text.isprintable():
        return text
    import re

    # ECMA-48: control sequences, then strings such as window titles, then two-character escapes.
    text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)|\x1b.?", "", text)
    return "".join(char if char.isprintable() else "    " if char == "\t" else "?" for char in text)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns in docker's spacing: each at least 10 wide, 3 blanks between, the last one as it is."""
    if not rows:
        return ""
    widths = [max(10, *(_width(row[index]) + 3 for row in rows)) for index in range(len(rows[0]) - 1)]
    return "\n".join(
        "".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=False)) + row[-1]
        for row in rows
    )


class Branch(Struct, frozen=True):
    """Lines of a node of a tree, the first one its head, and what grows from it."""

    lines: tuple[str, ...]
    above: tuple[Branch, ...] = ()


def branches(node: Branch) -> list[str]:
    """The lines of a tree, with the twigs drawn."""
    bar = "│   " if node.above else "    "
    found = [node.lines[0], *(bar + line for line in node.lines[1:])]
    for number, inner in enumerate(node.above):
        first, rest = ("└── ", "    ") if number == len(node.above) - 1 else ("├── ", "│   ")
        head, *lines = branches(inner)
        found += [first + head, *(rest + line for line in lines)]
    return found


def _width(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _clipped(text: str, width: int) -> str:
    """`text` in no more than `width` cells, with `…` where some of it is left out."""
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[: max(min(width - 1, len(text) - 1), 0)]
    return text + "…"


# ---------------------------------------------------------------- errors

_RED, _YELLOW, _BLUE, _BOLD, _DIM = "1;31", "1;33", "1;34", "1", "2"
_EXCERPT_LINES = 6
_EXCERPT_WIDTH = 240


class _Paint:
    """ANSI colours, or none."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._colour and text else text


def render(error: BaseException, *, colour: bool = False) -> str:
    """An error as a person reads it: message, place with excerpt and caret, notes, hint. Ends in a line end.

    An error with several errors in it (`errors`) is rendered as all of them. Knows the errors of grammar, cache and
    builder by what they carry, and OSError by what the system says.
    """
    several = getattr(error, "errors", ())
    if several:
        return "\n".join(render(one, colour=colour) for one in several)
    paint = _Paint(colour=colour)
    span, source = getattr(error, "span", None), getattr(error, "source", None)
    lines = [paint(_RED, "error: ") + paint(_BOLD, printable(_message(error)))]
    lines += _excerpt(source, span, paint)
    lines += [f"  {printable(note)}" for note in getattr(error, "notes", ())]
    hint = getattr(error, "hint", "")
    if hint:
        lines.append(paint(_BLUE, "hint: ") + printable(hint))
    return "\n".join(lines) + "\n"


def render_finding(finding: Finding, *, colour: bool = False) -> str:
    """A finding in the same form as an error; a further line of the file that it speaks of below the first."""
    paint = _Paint(colour=colour)
    word = finding.severity.value
    head = f"{word}: {finding.rule}: " if finding.rule else f"{word}: "
    style = {"error": _RED, "warning": _YELLOW}.get(word, _BLUE)
    lines = [paint(style, head) + printable(finding.message)]
    lines += _excerpt(finding.source, finding.span, paint)
    for span in finding.related:
        lines += _excerpt(finding.source, span, paint)
    if finding.source is None and finding.layer is not None:
        made = f": {printable(_clipped(finding.created_by, _EXCERPT_WIDTH))}" if finding.created_by else ""
        lines.append(f" {paint(_BLUE, '-->')} layer {finding.layer}{made}")
    if finding.hint:
        lines.append(paint(_BLUE, "hint: ") + printable(finding.hint))
    return "\n".join(lines) + "\n"


def render_efficiency(found: Efficiency, *, colour: bool = False) -> str:
    """What each line ships and what of it can be seen, as a table; below it what can not, as a tree."""
    paint = _Paint(colour=colour)
    lined = any(row.line for row in found.lines)
    rows = [("LINE" if lined else "LAYER", "SHIPPED", "VISIBLE", "WASTED", "INSTRUCTION")]
    for row in found.lines if lined else found.layers:
        wasted = human_size(row.wasted) if row.wasted else "-"
        title = printable(_clipped(" ".join(row.title.split()), _TITLE)) or "-"
        title += "" if row.own or lined else " (base)"
        line = str(row.line or "-") if lined else str(row.layers[0])
        rows.append((line, human_size(row.shipped), human_size(row.visible), wasted, title))
    total = f"{human_size(found.visible)} of {human_size(found.shipped)} shipped bytes can be seen: {found.ratio:.1%}"
    lines = [columns(rows), paint(_BOLD, total)]
    if found.waste.size:
        lines += ["", "Shipped and not seen:", *_branches(found.waste, "")]
    return "\n".join(lines) + "\n"


_TITLE = 60
_BRANCHES = 8


def _branches(node: Waste, lead: str) -> Iterator[str]:
    """The lines of a tree's children, the largest first; a folder with one child stands in one line with it."""
    children = sorted(node.children.values(), key=lambda child: (-child.size, child.name))
    shown = children if len(children) <= _BRANCHES else children[: _BRANCHES - 1]
    rest = children[len(shown) :]
    for number, child in enumerate(shown):
        last = number == len(shown) - 1 and not rest
        name = child.name
        while len(child.children) == 1 and not child.why:
            (child,) = child.children.values()  # noqa: PLW2901 - one way down
            name += "/" + child.name
        name += "/" if child.children else ""
        why = f"  ({child.why})" if child.why else f"  {child.files} files"
        yield f"{lead}{'└── ' if last else '├── '}{human_size(child.size):>7}  {printable(name)}{printable(why)}"
        yield from _branches(child, lead + ("    " if last else "│   "))
    if rest:
        size, files = sum(child.size for child in rest), sum(child.files for child in rest)
        yield f"{lead}└── {human_size(size):>7}  {len(rest)} more names  {files} files"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        if isinstance(name, bytes):
            name = name.decode(errors="backslashreplace")
        return f"{name}: {error.strerror}" if name else error.strerror
    message = getattr(error, "message", "") or str(error) or type(error).__name__
    return str(message)


def _excerpt(source: Source | None, span: Span | None, paint: _Paint) -> list[str]:
    """The place, and the lines of it with carets under the exact characters."""
    if source is None:
        return []
    if span is None:
        return [f" {paint(_BLUE, '-->')} {printable(source.name)}"]
    head = f" {paint(_BLUE, '-->')} {printable(source.name)}:{span.line}:{span.column}"
    last = span.end_line if span.end_column > 1 or span.end_line == span.line else span.end_line - 1
    shown = source.lines(span.line, min(last, span.line + _EXCERPT_LINES - 1))
    gutter = len(str(span.line + len(shown)))
    rule = " " * gutter + paint(_BLUE, " |")
    lines = [head, rule]
    for offset, whole in enumerate(shown):
        number = span.line + offset
        column = span.column if number == span.line else 1
        text, start, end = _window(whole, column, span.end_column if number == span.end_line else len(whole) + 1)
        lines.append(f"{paint(_BLUE, f'{number:>{gutter}} |')} {printable(text)}".rstrip())
        if number == span.line:
            before, under = printable(text[:start]), printable(text[start:end])
            carets = "^" * max(_width(under.rstrip()), 1)
            lines.append(f"{rule} {' ' * _width(before)}{paint(_RED, carets)}")
    if last - span.line >= _EXCERPT_LINES:
        lines.append(f"{' ' * gutter} {paint(_BLUE, f'... to line {last}')}")
    return lines


def _window(text: str, column: int, end_column: int) -> tuple[str, int, int]:
    """The part of a very long line around a column, with the columns as offsets into it."""
    start, end = min(column - 1, len(text)), min(max(end_column - 1, column), len(text))
    if len(text) <= _EXCERPT_WIDTH:
        return text, start, end
    first = max(0, start - _EXCERPT_WIDTH // 2)
    part = text[first : first + _EXCERPT_WIDTH]
    if first:
        part = "..." + part[3:]
    if first + _EXCERPT_WIDTH < len(text):
        part = part[:-3] + "..."
    return part, start - first, min(end - first, len(part))


# ---------------------------------------------------------------- progress


class Progress(Protocol):
    """A display of one build. Calling it never raises and may come from several threads."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def close(self) -> None:
        """Finish what is on the screen. Idempotent; no call may follow."""
        ...


STYLES = ("auto", "plain", "tty", "quiet", "rawjson", "none")


def progress(style: str, stream: TextIO, *, colour: bool = False, dumb: bool = False) -> Progress:
    """The display called `style`, on `stream`. `auto` is `tty` on a terminal that is not dumb, else `plain`."""
    if style == "auto":
        style = "tty" if stream.isatty() and not dumb else "plain"
    match style:
        case "tty":
            return Live(stream, colour=colour)
        case "rawjson":
            return RawJson(stream)
        case "quiet" | "none":
            return Silent()
        case _:
            return Plain(stream, colour=colour)


class Silent:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""


class _Lines:
    """Bytes in any cut to whole lines. A carriage return ends a line too, so that nothing is written over."""

    # A line without an end must not fill the memory.
    LONGEST = 1 << 16

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[str]:
        """The lines that are complete now; with `final`, what is left too."""
        text = self._rest + self._decoder.decode(data, final)
        if text.endswith("\r") and not final:
            text, held = text[:-1], "\r"
        else:
            held = ""
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        # Only an overwritten line may be empty without having been meant so, but an empty one says little either way.
        yield from lines
        if self._rest and (final or len(self._rest) > self.LONGEST):
            yield self._rest
            self._rest = ""


# So much of a title matters more than how many files it made and why; where not even so little fits, lines wrap.
_FAIR_TITLE, _LEAST_TITLE = 16, 8


def _failure(event: StepFailed) -> str:
    return f"{'CANCELED' if event.cancelled else 'ERROR'} {human_seconds(event.seconds)}"


class _StepView(Struct):
    """A step that is running, as the displays know it."""

    number: int
    label: str
    title: str
    stage: str
    started: float
    lines: _Lines = field(default_factory=_Lines)
    tail: list[str] = field(default_factory=list)
    changes: tuple[str, ...] = ()


class _TransferView(Struct):
    """Blobs that cross the network, as the displays know them."""

    started: float
    blobs: dict[str, BlobMoved] = field(default_factory=dict)

    def summary(self) -> str:
        """How far all of it is, in few words."""
        moved = [blob for blob in self.blobs.values() if blob.state in {"moving", "done"}]
        done, size = sum(blob.done for blob in moved), sum(blob.size for blob in moved)
        return f"{human_size(done)} of {human_size(size)}  {_speed(done, time.monotonic() - self.started)}"


def _speed(size: float, seconds: float) -> str:
    return f"{human_size(size / max(seconds, 0.001))}/s"


_BLOB_STATES = {"present": "already there", "mounted": "taken over from another repository"}


def _transferred(event: TransferFinished) -> str:
    """How a transfer ended."""
    if event.failed:
        return f"ERROR {human_seconds(event.seconds)}"
    if not event.size:
        return f"DONE {human_seconds(event.seconds)}  nothing to move"
    blobs = f"{event.blobs} blob" + "s" * (event.blobs != 1)
    return (
        f"DONE {human_seconds(event.seconds)}  {human_size(event.size)} of {blobs}, {_speed(event.size, event.seconds)}"
    )


class _Display:
    """What the displays for people share: labels of steps, a lock, warnings kept for the end."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self.stream = stream
        self.paint = _Paint(colour=colour)
        self.colour = colour
        self.lock = threading.RLock()
        self.started = time.monotonic()
        self.steps: dict[int, _StepView] = {}
        self.last_number = 0
        self.single = False
        self.findings: list[Finding] = []
        self.efficiency: Efficiency | None = None
        self.exports: dict[str, int] = {}
        self.transfers: dict[str, _TransferView] = {}
        self.cached = 0
        self.done = 0
        self.total = 0
        self.size = 0
        self._broken = False

    def write(self, text: str) -> None:
        """Text to the stream. A reader that went away does not end the build."""
        if self._broken:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._broken = True

    def planned(self, event: BuildPlanned) -> None:
        """Take the totals. A lone stage without a name needs none in front of its steps."""
        stages = event.plan.stages
        # One for each platform comes before the first step.
        self.single = not self.total and len(stages) == 1 and not stages[0].stage.name
        # FROM is counted in `[2/5]`, and is no step of its own to wait for.
        self.total += sum(count - 1 for _, count in event.totals)

    def begin(self, event: StepStarted) -> _StepView:
        """Know a step from now on."""
        count = f"{event.number:>{len(str(event.total))}}/{event.total}"
        label = f"[{count}]" if self.single else f"[{event.stage} {count}]"
        view = _StepView(event.step, label, " ".join(event.title.split()), event.stage, time.monotonic())
        self.steps[event.step] = view
        self.last_number = max(self.last_number, event.step)
        return view

    def outcome(self, event: StepFinished) -> list[str]:
        """How a step ended, in few words; what matters most comes first."""
        if event.cached:
            return ["CACHED", *([self.paint(_DIM, f"  ({printable(event.reason)})")] if event.reason else [])]
        words = [f"DONE {human_seconds(event.seconds)}"]
        if event.files:
            words.append(f"  +{human_size(event.size)} {event.files} file" + "s" * (event.files != 1))
        if event.reason:
            words.append(self.paint(_DIM, f"  ({printable(event.reason)})"))
        return words

    def told(self) -> str:
        """What was kept for the end: warnings, and how much of the layers can be seen."""
        text = "".join(render_finding(finding, colour=self.colour) for finding in self.findings)
        self.findings.clear()
        if self.efficiency is not None:
            text += render_efficiency(self.efficiency, colour=self.colour) + "\n"
            self.efficiency = None
        return text

    def summary(self, result: BuildResult) -> str:
        """The last lines: warnings, then image, names, size, steps and time."""
        text = self.told()
        size = sum(layer.descriptor.size for layer in result.image.layers)
        names = ", ".join(result.names) or "no name"
        steps = f"{result.cached} of {result.steps} step" + "s" * (result.steps != 1) + " cached"
        facts = f"{result.image.id}  {human_size(size)}  {steps}  {result.seconds:.2f}s"
        return text + f"{self.paint(_BOLD, 'built ' + names)}  {facts}\n"


class Plain(_Display):
    """Lines for logs, never clipped: `#5 [build 2/4] RUN make`, `#5 0.123 output`, `#5 DONE 0.4s  +1.2MB 13 files`."""

    def __init__(self, stream: TextIO, *, colour: bool = False) -> None:
        super().__init__(stream, colour=colour)
        self._current = -1
        self._tty = stream.isatty()

    def __call__(self, event: Event) -> None:
        """See `Progress`."""
        with self.lock:
            match event:
                case BuildPlanned():
                    self.planned(event)
                case TierChosen():
                    self.write(f"RUN in tier {event.tier}: {event.reason}\n")
                case StepStarted():
                    view = self.begin(event)
                    self._turn_to(view.number, f"{view.label} {view.title}")
                case StepMissed():
                    view = self.steps[event.step]
                    if self._current != event.step:
                        self._turn_to(event.step, f"{view.label} {view.title}")
                    self.write("".join(f"#{event.step} not cached: {printable(line)}\n" for line in event.changes))
                case StepOutput():
                    self._lines(event.step, event.data, final=False)
                case StepFinished():
                    self._lines(event.step, b"", final=True)
                    self._end(event.step, "".join(self.outcome(event)))
                case StepFailed():
                    self._lines(event.step, b"", final=True)
                    self._end(event.step, _failure(event))
                case Warned():
                    self.findings.append(event.finding)
                case Inspected():
                    self.efficiency = event.efficiency
                case ExportStarted():
                    self.last_number += 1
                    self.exports[event.what] = self.last_number
                    self._turn_to(self.last_number, f"writing {event.what}")
                case ExportFinished():
                    size = f"  {human_size(event.size)}" if event.size else ""
                    self._end(self.exports.pop(event.what, 0), f"DONE {human_seconds(event.seconds)}{size}")
                case TransferStarted():
                    self.write(f"{printable(event.what)}\n")
                case BlobMoved():
                    if event.state != "moving":
                        outcome = _BLOB_STATES.get(event.state) or human_size(event.size)
                        self.write(f"  {event.blob[7:19]}: {outcome}\n")
                case TransferFinished():
                    self.write(f"{printable(event.what)}  {_transferred(event)}\n")
                case BuildFinished():
                    self.write("\n" + self.summary(event.result))

    def close(self) -> None:
        """See `Progress`."""
        with self.lock:
            self.write(self.told())

    def _turn_to(self, number: int, title: str) -> None:
        self.write(("\n" if self._current != -1 else "") + f"#{number} {printable(title)}\n")
        self._current = number

    def _lines(self, number: int, data: bytes, *, final: bool) -> None:
        view = self.steps.get(number)
        if view is None:
            return
        lines = list(view.lines.feed(data, final=final))
        if not lines:
            return
        if self._current != number:
            self._turn_to(number, f"{view.label} {view.title}")
        stamp = f"#{number} {time.monotonic() - view.started:.3f} "
        self.write("".join(f"{stamp}{printable(line) if self._tty else line}\n" for line in lines))

    def _end(self, number: int, outcome: str) -> None:
        view = self.steps.pop(number, None)
        if view is not None and self._current != number:
            self._turn_to(number, f"{view.label} {view.title}")
        self.write(f"#{number} {outcome}\n")


class RawJson:
    """One JSON object a line: `time` (seconds since the epoch), `event`, and the event's fields. README lists them."""

    def __init__(self, stream: TextIO) -> None:
        self._display = _Display(stream, colour=False)
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def __call__(self, event: Event) -> None:
        """See `Progress`."""
        import json

        with self._display.lock:
            fields = self._fields(event)
            line = {"time": round(time.time(), 3), **fields}
            self._display.write(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """See `Progress`."""

    def _fields(self, event: Event) -> dict[str, object]:
        match event:
            case BuildPlanned():
                totals = dict(event.totals)
                return {
                    "event": "build-planned",
                    "stages": [
                        {"stage": item.title, "steps": totals.get(item.stage.index, 0)} for item in event.plan.stages
                    ],
                    "target": next(item.title for item in event.plan.stages if item.stage.index == event.plan.target),
                }
            case TierChosen():
                return {"event": "tier-chosen", "tier": event.tier, "reason": event.reason}
            case StepStarted():
                return {
                    "event": "step-started",
                    "step": event.step,
                    "stage": event.stage,
                    "number": event.number,
                    "total": event.total,
                    "title": event.title,
                    "line": event.line,
                }
            case StepMissed():
                return {"event": "step-missed", "step": event.step, "changes": list(event.changes)}
            case StepOutput():
                decoder = self._decoders.get(event.step)
                if decoder is None:
                    decoder = self._decoders[event.step] = codecs.getincrementaldecoder("utf-8")("replace")
                return {"event": "step-output", "step": event.step, "text": decoder.decode(event.data)}
            case StepFinished():
                self._decoders.pop(event.step, None)
                return {
                    "event": "step-finished",
                    "step": event.step,
                    "cached": event.cached,
                    "seconds": round(event.seconds, 6),
                    "size": event.size,
                    "files": event.files,
                    "reason": event.reason,
                }
            case StepFailed():
                return {
                    "event": "step-failed",
                    "step": event.step,
                    "seconds": round(event.seconds, 6),
                    "cancelled": event.cancelled,
                }
            case Warned():
                finding = event.finding
                return {
                    "event": "warning",
                    "rule": finding.rule,
                    "message": finding.message,
                    "file": finding.source.name if finding.source else "",
                    "line": finding.span.line if finding.span else 0,
                    "hint": finding.hint,
                    "severity": finding.severity.value,
                    **_bytes_of(finding),
                }
            case Inspected():
                found = event.efficiency
                return {"event": "inspected", "shipped": found.shipped, "visible": found.visible}
            case ExportStarted():
                return {"event": "export-started", "what": event.what}
            case ExportFinished():
                return {
                    "event": "export-finished",
                    "what": event.what,
                    "seconds": round(event.seconds, 6),
                    "size": event.size,
                }
            case TransferStarted():
                return {"event": "transfer-started", "what": event.what}
            case BlobMoved():
                return {
                    "event": "blob-moved",
                    "what": event.what,
                    "blob": event.blob,
                    "done": event.done,
                    "size": event.size,
                    "state": event.state,
                }
            case TransferFinished():
                return {
                    "event": "transfer-finished",
                    "what": event.what,
                    "seconds": round(event.seconds, 6),
                    "size": event.size,
                    "blobs": event.blobs,
                    "failed": event.failed,
                }
            case BuildFinished():
                result = event.result
                return {
                    "event": "build-finished",
                    "image": result.image.id,
                    "manifest": result.image.manifest.digest,
                    "names": list(result.names),
                    "steps": result.steps,
                    "cached": result.cached,
                    "seconds": round(result.seconds, 6),
                }


def _bytes_of(finding: Finding) -> dict[str, object]:
    """What a finding about layers has beside others."""
    if finding.layer is None and not finding.size:
        return {}
    lines = [span.line for span in finding.related]
    return {"size": finding.size, "paths": list(finding.paths), "layer": finding.layer, "related": lines}


class Live(_Display):
    """A display that is drawn over: finished steps scroll by, running ones stand below with their last output.

    The live part, and rich with it, starts only when the build is still running after GLANCE seconds.
    """

    GLANCE = 0.15
    RATE = 0.1
    TAIL = 5

    def __init__(self, stream: TextIO, *, colour: bool = False) -> None:
        super().__init__(stream, colour=colour)
        self._over = threading.Event()
        self._painter: threading.Thread | None = None
        self._pending: list[str] = []
        self._drawing = False

    def __call__(self, event: Event) -> None:
        """See `Progress`."""
        with self.lock:
            if self._painter is None:
                # Not in __init__: a process with threads could not enter its user namespace any more.
                self._painter = threading.Thread(target=self._paint, name="display", daemon=True)
                self._painter.start()
            match event:
                case BuildPlanned():
                    self.planned(event)
                case TierChosen():
                    self._scroll(self.paint(_DIM, f"RUN in tier {event.tier}: {printable(event.reason)}"))
                case StepStarted():
                    self.begin(event)
                case StepMissed():
                    self.steps[event.step].changes = event.changes
                case StepOutput():
                    view = self.steps.get(event.step)
                    if view is not None:
                        lines = [printable(line) for line in view.lines.feed(event.data) if line.strip()]
                        view.tail = (view.tail + lines)[-self.TAIL :]
                case StepFinished():
                    view = self.steps.pop(event.step, None)
                    self.done += 1
                    self.cached += event.cached
                    self.size += event.size
                    if view is not None:
                        self._ended(view, self.outcome(event))
                        for line in view.changes:
                            self._scroll(self.paint(_DIM, f"   not cached: {printable(line)}"))
                case StepFailed():
                    view = self.steps.pop(event.step, None)
                    if view is not None:
                        self._ended(view, [self.paint(_DIM if event.cancelled else _RED, _failure(event))])
                case Warned():
                    self.findings.append(event.finding)
                case Inspected():
                    self.efficiency = event.efficiency
                case ExportStarted():
                    self.exports[event.what] = 0
                case ExportFinished():
                    self.exports.pop(event.what, None)
                    size = f"  {human_size(event.size)}" if event.size else ""
                    self._scroll(f" writing {printable(event.what)}  DONE {human_seconds(event.seconds)}{size}")
                case TransferStarted():
                    self.transfers[event.what] = _TransferView(time.monotonic())
                case BlobMoved():
                    if event.what in self.transfers:
                        self.transfers[event.what].blobs[event.blob] = event
                case TransferFinished():
                    self.transfers.pop(event.what, None)
                    self._scroll(f" {printable(event.what)}  {_transferred(event)}")
                case BuildFinished():
                    self._scroll(self.summary(event.result).rstrip("\n"))

    def close(self) -> None:
        """See `Progress`."""
        self._over.set()
        if self._painter is not None:
            self._painter.join()
        with self.lock:
            self.write(self.told())

    def _ended(self, view: _StepView, outcome: list[str]) -> None:
        """The line of a step that is over, with so much of its title and outcome as leaves it in one line."""
        title = printable(view.title)
        try:
            width = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            width = 0
        if width > 0:
            width -= _width(view.label) + 5
            while len(outcome) > 1 and width - _width(printable("".join(outcome))) < min(_width(title), _FAIR_TITLE):
                outcome = outcome[:-1]
            title = _clipped(title, max(width - _width(printable("".join(outcome))), _LEAST_TITLE))
        self._scroll(f" {self.paint(_BLUE, view.label)} {title}  {''.join(outcome)}")

    def _scroll(self, text: str) -> None:
        """A line that stays. While something is being drawn over, the painter puts it above."""
        if self._drawing:
            self._pending.append(text)
        else:
            self.write(text + "\n")

    def _paint(self) -> None:
        """The painter's thread: draw, if the build is no glance; should drawing fail, what was held back is written."""
        if self._over.wait(self.GLANCE):
            return
        try:
            self._redraw()
        except Exception:  # a fault in drawing, or a terminal that went away, must not end the build
            with self.lock:
                self._drawing = False
                lines, self._pending = self._pending, []
                self.write("".join(f"{line}\n" for line in lines))

    def _redraw(self) -> None:
        """Start rich and redraw until the build is over."""
        from rich.console import Console
        from rich.live import Live as Canvas
        from rich.text import Text

        console = Console(
            file=self.stream, force_terminal=True, no_color=not self.colour, highlight=False, soft_wrap=True
        )
        canvas = Canvas(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with canvas as live:
            # A process that is killed could not give a hidden cursor back.
            console.show_cursor(show=True)
            with self.lock:
                self._drawing = True
            over = False
            while not over:
                over = self._over.wait(self.RATE)
                with self.lock:
                    lines, self._pending = self._pending, []
                    picture = Text("") if over else self._picture(console.width, console.height)
                    self._drawing = not over
                # First what is new below, since printing above draws it again.
                live.update(picture, refresh=True)
                if lines:
                    console.print(Text.from_ansi("\n".join(lines)))

    def _picture(self, width: int, height: int) -> Text:
        """The live part: a line for each running step with its last output below, and one for the whole."""
        from rich.text import Text

        now = time.monotonic()
        running = list(self.steps.values())
        more = max(len(running) + len(self.exports) + len(self.transfers) + 2 - height, 0)
        if more:
            # One line more for saying so.
            more = min(more + 1, len(running))
            running = running[: len(running) - more]
        room = max(height - 3 - len(running) - len(self.exports) - len(self.transfers), 0)
        each = min(self.TAIL, room // max(len(running), 1))
        picture = Text(no_wrap=True, overflow="ellipsis")
        for view in running:
            clock = human_seconds(now - view.started)
            title = Text(f"{view.label} {printable(view.title)}")
            title.truncate(max(width - len(clock) - 6, 10), overflow="ellipsis")
            picture.append(" > ", "bold green").append(title).append(f"  {clock}\n", "cyan")
            for line in view.tail[-each:] if each else ():
                tail = Text(f"     {line}", "dim")
                tail.truncate(max(width - 1, 10), overflow="ellipsis")
                picture.append(tail).append("\n")
        if more:
            picture.append(f" > {more} more\n", "bold green")
        for what, transfer in self.transfers.items():
            head = Text(f" > {printable(what)}  {transfer.summary()}")
            head.truncate(max(width - 1, 10), overflow="ellipsis")
            picture.append(head).append("\n")
            moving = [blob for blob in transfer.blobs.values() if blob.state == "moving"]
            for blob in moving[: max(room, 0)]:
                filled = 20 * blob.done // max(blob.size, 1)
                bar = f"     {blob.blob[7:19]} [{'=' * filled:<20}] {human_size(blob.done)} of {human_size(blob.size)}"
                picture.append(bar[: max(width - 1, 10)], "dim").append("\n")
        for what in self.exports:
            writing = Text(f" > writing {printable(what)}")
            writing.truncate(max(width - 1, 10), overflow="ellipsis")
            picture.append(writing).append("\n")
        if not self.total:
            # Nothing is planned yet, or it is no build at all.
            return picture.append(f" {human_seconds(now - self.started)}", "bold")
        whole = f" {self.done}/{self.total} steps, {self.cached} cached, +{human_size(self.size)}, "
        picture.append(f"{whole}{human_seconds(now - self.started)}", "bold")
        return picture

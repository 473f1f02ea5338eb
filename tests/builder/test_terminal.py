from __future__ import annotations

import io
import json
import os
import termios
import threading
import time
from typing import TYPE_CHECKING

import pytest

from builder.errors import BuildError, BuildErrors, RunError
from builder.events import (
    BlobMoved,
    BuildFinished,
    BuildPlanned,
    ExportFinished,
    ExportStarted,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    TierChosen,
    TransferFinished,
    TransferStarted,
    Warned,
)
from builder.model import BuildResult, Finding, ImageResult, Plan, StageBase, StagePlan
from builder.quantities import human_age, human_size
from builder.terminal import (
    Live,
    Plain,
    columns,
    printable,
    progress,
    render,
    render_finding,
)
from cache.errors import NotFoundError
from cache.oci import Descriptor, Digest, ImageConfig
from grammar.parser import parse
from grammar.source import DockerfileError, DockerfileErrors, Source, Span

if TYPE_CHECKING:
    from builder.events import Event

SOURCE = Source("Dockerfile", "FROM a\n\tRUN make\nCOPY 日本 /x\nRUN one \\\n  two \\\n  three\n")
ID = Digest("sha256:" + "ab" * 32)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "size, text",
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (7_812, "7.81kB"), (124_400_000, "124MB"), (2_041_000_000, "2.04GB")],
)
def test_sizes_are_dockers(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (47 * 3600, "47 hours"),
        (3 * 86400, "3 days"),
        (15 * 86400, "2 weeks"),
        (70 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_ages_are_dockers(seconds: float, text: str) -> None:
    assert human_age(seconds) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain ä 日", "plain ä 日"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07 tab\tend", "bell? tab    end"),
        ("up\x1b[2A\x1b[K", "up"),
        ("cut \x1b[3", "cut 3"),
    ],
)
def test_control_characters_never_reach_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_columns_have_dockers_spacing() -> None:
    assert columns([["A", "B"], ["longer-than-ten", "x"]]) == "A                 B\nlonger-than-ten   x"
    assert columns([["A", "B"], ["日本", "x"]]) == "A         B\n日本      x"


# ---------------------------------------------------------------- errors


def test_an_error_shows_place_line_caret_and_hint() -> None:
    error = DockerfileError(
        "unknown instruction RNU", Span(1, 1, 1, 4), Source("a/Dockerfile", "RNU x\n"), "did you mean RUN?"
    )
    assert render(error) == (
        "error: unknown instruction RNU\n --> a/Dockerfile:1:1\n  |\n1 | RNU x\n  | ^^^\nhint: did you mean RUN?\n"
    )


def test_the_caret_stands_under_the_characters_behind_tabs_and_wide_ones() -> None:
    lines = render(BuildError("m", span=Span(2, 6, 2, 10), source=SOURCE)).splitlines()
    assert lines[3].index("make") == lines[4].index("^^^^")
    lines = render(BuildError("m", span=Span(3, 9, 3, 11), source=SOURCE)).splitlines()
    # Two wide characters take four cells.
    assert lines[4].index("^") == lines[3].index("/x") + 2


def test_a_span_of_several_lines_shows_them_all() -> None:
    text = render(BuildError("m", span=Span(4, 1, 6, 8), source=SOURCE))
    assert "4 | RUN one \\" in text
    assert "6 |   three" in text


def test_a_caret_at_the_end_of_the_line_is_shown() -> None:
    assert render(BuildError("m", span=Span(1, 7, 1, 7), source=SOURCE)).splitlines()[4] == "  |       ^"


def test_a_very_long_line_is_shown_around_the_place() -> None:
    source = Source("D", "RUN " + "x" * 5000 + " HERE " + "y" * 5000)
    lines = render(BuildError("m", span=Span(1, 5006, 1, 5010), source=source)).splitlines()
    assert len(lines[3]) < 300
    assert lines[3].index("HERE") == lines[4].index("^^^^")


def test_notes_are_shown_and_made_harmless() -> None:
    error = RunError("RUN ended with 2", 2, span=Span(2, 2, 2, 5), source=SOURCE, notes=("cc: \x1b[31mno\x1b[0m",))
    assert "\n  cc: no\n" in render(error)


def test_several_errors_are_shown_together() -> None:
    several = BuildErrors((BuildError("one"), BuildError("two")))
    assert render(several) == "error: one\n\nerror: two\n"
    spans = (Span(1, 1, 1, 2), Span(2, 2, 2, 3))
    both = DockerfileErrors(tuple(DockerfileError(f"wrong {span.line}", span, SOURCE) for span in spans))
    assert render(both).count("-->") == 2


def test_errors_of_the_store_and_the_system() -> None:
    assert (
        render(NotFoundError("no such image: a", "did you mean b?"))
        == "error: no such image: a\nhint: did you mean b?\n"
    )
    assert render(FileNotFoundError(2, "No such file or directory", "x")) == "error: x: No such file or directory\n"
    assert render(PermissionError(13, "Permission denied", b"\xff")) == "error: \\xff: Permission denied\n"


def test_colour_only_when_asked() -> None:
    error = BuildError("m", hint="h", span=Span(1, 1, 1, 3), source=SOURCE)
    assert "\x1b" not in render(error)
    assert "\x1b[" in render(error, colour=True)
    assert render_finding(Finding("Rule", "text")) == "warning: Rule: text\n"


# ---------------------------------------------------------------- progress


def planned(text: str = "FROM a AS build\nRUN make\nFROM scratch\nCOPY --from=build /x /\n") -> BuildPlanned:
    dockerfile = parse(Source("Dockerfile", text))
    stages = tuple(StagePlan(stage, StageBase("a")) for stage in dockerfile.stages)
    return BuildPlanned(
        Plan(dockerfile, stages, len(stages) - 1), tuple((stage.index, 2) for stage in dockerfile.stages)
    )


def finished() -> BuildFinished:
    manifest = Descriptor("application/x", ID, 12)
    return BuildFinished(
        BuildResult(ImageResult(ID, ImageConfig(), (), manifest), ("docker.io/library/a:1",), 2, 1, 0.5)
    )


EVENTS: list[Event] = [
    planned(),
    TierChosen("rootless", "newuidmap is there"),
    StepStarted(1, "build", 2, 2, "RUN make", 2),
    StepOutput(1, b"he"),
    StepOutput(1, "llo\nw\u00f6".encode()[:-1]),
    StepOutput(1, "\u00f6".encode()[-1:] + b"rld\rover\r\nend"),
    StepFinished(1, cached=False, seconds=0.42, size=1_200_000, files=13, reason="file a.c: content"),
    StepStarted(2, "stage-1", 2, 2, "COPY --from=build /x /", 4),
    StepFinished(2, cached=True, seconds=0.0),
    Warned(Finding("FromAsCasing", "casing", Span(1, 8, 1, 10), SOURCE)),
    ExportStarted("oci archive x.tar"),
    ExportFinished("oci archive x.tar", 0.1, 2048),
    finished(),
]


def test_plain_lines() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    for event in EVENTS:
        display(event)
    display.close()
    text = stream.getvalue()
    assert "#1 [build 2/2] RUN make\n" in text
    output = [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("#1 0.")]
    assert output == ["hello", "wörld", "over", "end"]
    assert "#1 DONE 0.4s  +1.2MB 13 files  (file a.c: content)\n" in text
    assert "#2 CACHED\n" in text
    assert "#3 writing oci archive x.tar\n#3 DONE 0.1s  2.05kB\n" in text
    assert "warning: FromAsCasing: casing\n --> Dockerfile:1:8\n" in text
    assert text.endswith(f"built docker.io/library/a:1  {ID}  0B  1 of 2 steps cached  0.50s\n")


def test_a_lone_stage_is_not_named() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    display(planned("FROM a\nRUN x\n"))
    display(StepStarted(1, "stage-0", 2, 2, "RUN x", 2))
    assert stream.getvalue() == "#1 [2/2] RUN x\n"


def test_steps_that_run_at_once_say_again_which_they_are() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    for event in (
        StepStarted(1, "a", 2, 2, "RUN a", 2),
        StepStarted(2, "b", 2, 2, "RUN b", 5),
        StepOutput(1, b"from a\n"),
        StepFailed(1, 0.1),
        StepFinished(2, cached=False, seconds=1),
    ):
        display(event)
    heads = [line.split(" ")[0] + line.split(" ")[1] for line in stream.getvalue().splitlines() if "[" in line]
    assert heads == ["#1[a", "#2[b", "#1[a", "#2[b"]
    assert "#1 ERROR 0.1s\n" in stream.getvalue()


def test_plain_never_clips_and_bounds_its_memory() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    display(StepStarted(1, "a", 2, 2, "RUN a", 2))
    for _ in range(300):
        display(StepOutput(1, b"x" * 1000))
    display(StepFinished(1, cached=False, seconds=1))
    lines = [line for line in stream.getvalue().splitlines() if "xxx" in line]
    assert sum(line.count("x") for line in lines) == 300_000
    assert max(map(len, lines)) < 70_000


def test_rawjson_is_one_object_a_line() -> None:
    stream = io.StringIO()
    display = progress("rawjson", stream)
    for event in EVENTS:
        display(event)
    display.close()
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in objects] == [
        "build-planned", "tier-chosen", "step-started", "step-output", "step-output", "step-output", "step-finished",
        "step-started", "step-finished", "warning", "export-started", "export-finished", "build-finished",
    ]  # fmt: skip
    assert "".join(each.get("text", "") for each in objects) == "hello\nwörld\rover\r\nend"
    assert objects[0]["stages"] == [{"stage": "build", "steps": 2}, {"stage": "stage-1", "steps": 2}]
    assert objects[-1]["image"] == ID


def test_a_reader_that_goes_away_does_not_end_the_build() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    for style in ("plain", "rawjson"):
        display = progress(style, Gone())
        for event in EVENTS:
            display(event)
        display.close()


def test_a_terminal_without_unicode_gets_something() -> None:
    raw = io.BytesIO()
    display = Plain(io.TextIOWrapper(raw, "ascii"))
    display(StepStarted(1, "a", 2, 2, "RUN ä", 2))
    assert b"RUN \\xe4" in raw.getvalue()


@pytest.mark.parametrize(
    "style, tty, dumb, expected",
    [
        ("auto", True, False, "Live"),
        ("auto", True, True, "Plain"),
        ("auto", False, False, "Plain"),
        ("quiet", True, False, "Silent"),
    ],
)
def test_auto_is_live_on_a_terminal_alone(style: str, tty: bool, dumb: bool, expected: str) -> None:
    stream = Terminal() if tty else io.StringIO()
    assert type(progress(style, stream, dumb=dumb)).__name__ == expected


def test_a_quick_build_on_a_terminal_needs_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    display = Live(stream)
    monkeypatch.setattr(Live, "GLANCE", 60)
    for event in EVENTS:
        display(event)
    display.close()
    assert "[build 2/2] RUN make  DONE 0.4s  +1.2MB 13 files  (file a.c: content)\n" in stream.getvalue()
    assert "built docker.io/library/a:1" in stream.getvalue()


def test_live_draws_running_steps_and_keeps_finished_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "GLANCE", 0)
    monkeypatch.setattr(Live, "RATE", 0.01)
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    display = Live(stream)
    display(planned())
    display(StepStarted(1, "build", 2, 2, "RUN make " + "long " * 40, 2))
    display(StepStarted(2, "stage-1", 2, 2, "RUN other", 2))
    display(StepOutput(1, b"\x1b[2Jfirst line\nsecond line\n"))
    seen = threading.Event()
    for _ in range(500):
        if "second line" in stream.getvalue():
            break
        seen.wait(0.01)
    display(StepFinished(1, cached=False, seconds=0.4))
    display(StepFailed(2, 0.1))
    display.close()
    text = stream.getvalue()
    assert "second line" in text
    assert "\x1b[2J" not in text
    assert "RUN other  ERROR 0.1s" in text
    assert text.rindex("DONE 0.4s") > text.rindex("second line")


def test_a_finished_step_takes_one_line_of_the_terminal() -> None:
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 60))
    with open(writer, "w", encoding="utf-8") as stream:
        display = Live(stream)
        display(planned())
        for number, title in enumerate(("RUN make " + "long " * 40, "RUN echo " + "日本" * 40, "RUN x"), start=1):
            display(StepStarted(number, "build", 2, 2, title, 2))
            display(StepFinished(number, cached=False, seconds=0.4, size=1_200_000, files=13))
        display(StepStarted(4, "a-stage-of-a-long-name", 2, 2, "RUN a command that is long", 2))
        display(StepFinished(4, cached=False, seconds=0.4, size=1_200_000, files=13, reason="no cache"))
        display.close()
        stream.flush()
        lines = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    assert [line.endswith("  DONE 0.4s  +1.2MB 13 files") for line in lines] == [True, True, True, False]
    assert len(lines[0]) == 59
    assert lines[1].startswith(" [build 2/2] RUN echo 日本日本…  DONE")
    assert "RUN x  DONE" in lines[2]
    assert lines[3] == " [a-stage-of-a-long-name 2/2] RUN a command tha…  DONE 0.4s"


def test_a_low_terminal_says_how_many_more_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "GLANCE", 60)
    display = Live(Terminal())
    display(planned())
    for number in range(1, 9):
        display(StepStarted(number, f"s{number}", 2, 2, "RUN x", 2))
    low = display._picture(60, 8).plain.splitlines()
    high = display._picture(60, 20).plain.splitlines()
    display.close()
    assert len(low) == 7
    assert low[-2] == " > 3 more"
    assert low[-1].startswith(" 0/2 steps")
    assert len(high) == 9


def test_a_step_that_was_stopped_is_not_at_fault() -> None:
    stream, raw = io.StringIO(), io.StringIO()
    for display in (Plain(stream), progress("rawjson", raw)):
        display(planned())
        display(StepStarted(1, "build", 2, 2, "RUN make", 2))
        display(StepFailed(1, 0.1, cancelled=True))
    assert "#1 CANCELED 0.1s\n" in stream.getvalue()
    assert json.loads(raw.getvalue().splitlines()[-1])["cancelled"] is True


def test_displays_take_events_from_many_threads() -> None:
    stream = io.StringIO()
    display = Plain(stream)

    def work(number: int) -> None:
        display(StepStarted(number, f"s{number}", 2, 2, "RUN x", 2))
        for _ in range(200):
            display(StepOutput(number, b"line\n"))
        display(StepFinished(number, cached=False, seconds=0))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.getvalue().count(" line\n") == 800


def test_a_fault_in_drawing_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: Live, _width: int, _height: int) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(Live, "GLANCE", 0)
    monkeypatch.setattr(Live, "_picture", broken)
    stream = Terminal()
    display = Live(stream)
    for event in EVENTS:
        display(event)
    display.close()
    assert "[build 2/2] RUN make  DONE 0.4s" in stream.getvalue()
    assert "built docker.io/library/a:1" in stream.getvalue()


PULL = "pulling reg.lan/app:1"
ONE, TWO, THREE = ("sha256:" + letter * 64 for letter in "123")
TRANSFER: tuple[Event, ...] = (
    TransferStarted(PULL),
    BlobMoved(PULL, ONE, 500_000, 2_000_000, "moving"),
    BlobMoved(PULL, TWO, 100, 100, "present"),
    BlobMoved(PULL, THREE, 100, 100, "mounted"),
    BlobMoved(PULL, ONE, 2_000_000, 2_000_000, "done"),
    TransferFinished(PULL, 2.0, 2_000_000, 3),
)


def test_transfers_in_lines() -> None:
    stream = io.StringIO()
    display = progress("plain", stream)
    for event in (*TRANSFER, TransferFinished(PULL, 0.1, 0, 3), TransferFinished(PULL, 1.0, 5, 3, failed=True)):
        display(event)
    display.close()
    assert stream.getvalue().splitlines() == [
        "pulling reg.lan/app:1",
        "  222222222222: already there",
        "  333333333333: taken over from another repository",
        "  111111111111: 2MB",
        "pulling reg.lan/app:1  DONE 2.0s  2MB of 3 blobs, 1MB/s",
        "pulling reg.lan/app:1  DONE 0.1s  nothing to move",
        "pulling reg.lan/app:1  ERROR 1.0s",
    ]


def test_transfers_as_json() -> None:
    stream = io.StringIO()
    display = progress("rawjson", stream)
    for event in TRANSFER:
        display(event)
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in objects] == ["transfer-started", *["blob-moved"] * 4, "transfer-finished"]
    assert objects[1].pop("time") > 0
    facts = {"what": PULL, "blob": ONE, "done": 500_000, "size": 2_000_000, "state": "moving"}
    assert objects[1] == {"event": "blob-moved", **facts}


def test_transfers_are_drawn_with_bytes_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "GLANCE", 0.0)
    monkeypatch.setattr(Live, "RATE", 0.01)
    stream = Terminal()
    display = Live(stream)
    for event in TRANSFER[:2]:
        display(event)
    deadline = time.monotonic() + 10
    while "500kB of 2MB" not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "> pulling reg.lan/app:1  500kB of 2MB" in stream.getvalue()
    assert "111111111111 [=====               ] 500kB of 2MB" in stream.getvalue()
    assert "0/0 steps" not in stream.getvalue()
    for event in TRANSFER[2:]:
        display(event)
    display.close()
    assert "pulling reg.lan/app:1  DONE 2.0s  2MB of 3 blobs, 1MB/s" in stream.getvalue()

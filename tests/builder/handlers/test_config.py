"""Instructions that only change the config: what they make of it, their history, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from builder.errors import BuildError
from builder.handlers import gotext, initial_state, lower_all
from builder.plan import plan
from cache.oci import Healthcheck
from grammar.parser import parse
from grammar.source import Source

if TYPE_CHECKING:
    from builder.model import Lowered


def last(body: str) -> Lowered:
    found = plan(parse(Source("Dockerfile", f"FROM scratch\n{body}\n")))
    scope = found.scope(0)
    return lower_all(found.stages[0].instructions, initial_state(None, scope), scope)[-1]


def refused(body: str) -> BuildError:
    with pytest.raises(BuildError) as caught:
        last(body)
    assert caught.value.span is not None
    return caught.value


def test_env_keeps_its_place() -> None:
    found = last("ENV A=1 B=2\nENV A=3 C=4")
    assert found.state.config.env[1:] == ("A=3", "B=2", "C=4")
    assert found.created_by == "ENV A=3 C=4"


def test_env_name_that_expands_to_nothing() -> None:
    assert "blank" in refused("ENV $NOTHING=1").message


def test_label() -> None:
    found = last('ENV K=key\nLABEL $K=1 a=1\nLABEL a="two words"')
    assert found.state.config.labels == (("key", "1"), ("a", "two words"))
    assert found.created_by == "LABEL a=two words"


@pytest.mark.parametrize(
    ("body", "ports", "history"),
    [
        ("EXPOSE 80", ("80/tcp",), "EXPOSE [80/tcp]"),
        ("EXPOSE 443/TCP 80/udp", ("443/tcp", "80/udp"), "EXPOSE [443/tcp 80/udp]"),
        ("EXPOSE 8-10 7/sctp", ("7/sctp", "8/tcp", "9/tcp", "10/tcp"), "EXPOSE [7/sctp 8/tcp 9/tcp 10/tcp]"),
        ('ARG P="1 2/udp"\nEXPOSE $P', ("1/tcp", "2/udp"), "EXPOSE [1/tcp 2/udp]"),
        ("EXPOSE 5000:6000", ("6000/tcp",), "EXPOSE [6000/tcp]"),
        ("EXPOSE 127.0.0.1:5000:6000/udp", ("6000/udp",), "EXPOSE [6000/udp]"),
        ("EXPOSE [::1]:5000:6000", ("6000/tcp",), "EXPOSE [6000/tcp]"),
        ("EXPOSE 5000-5009:6000", ("6000/tcp",), "EXPOSE [6000/tcp]"),
        ("EXPOSE 0 65535", ("0/tcp", "65535/tcp"), "EXPOSE [0/tcp 65535/tcp]"),
    ],
)
def test_expose(body: str, ports: tuple[str, ...], history: str) -> None:
    found = last(body)
    assert found.state.config.exposed_ports == ports
    assert found.created_by == history


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("70000", "invalid containerPort: 70000"),
        ("x", "invalid containerPort: x"),
        ("9-8", "invalid containerPort: 9-8"),
        ("80/quic", "invalid proto: quic"),
        ("80/tpc", "invalid proto: tpc"),
        ("/tcp", "no port specified"),
        ("a.b:1:2", "invalid IP address"),
        ("x:80", "invalid hostPort: x"),
        ("1-3:80-81", "invalid ranges"),
    ],
)
def test_expose_refuses(port: str, message: str) -> None:
    assert message in refused(f"EXPOSE {port}").message


def test_expose_suggests() -> None:
    assert refused("EXPOSE 80/tpc").hint == "did you mean tcp?"


def test_user_and_volume() -> None:
    assert last("ARG U=12\nUSER $U:34").state.config.user == "12:34"
    found = last('ENV D=/x\nVOLUME ["$D/a", "/b c"]\nVOLUME /x/a /d')
    assert found.state.config.volumes == ("/x/a", "/b c", "/d")
    assert found.created_by == "VOLUME [/x/a /d]"
    assert "empty" in refused("VOLUME $NOTHING").message


@pytest.mark.parametrize("signal", ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-14", "-1", "4711"])
def test_stopsignal(signal: str) -> None:
    assert last(f"STOPSIGNAL {signal}").state.config.stop_signal == signal


@pytest.mark.parametrize("signal", ["0", "SIGNONSENSE", "RTMIN+16", "SIG", "$NOTHING"])
def test_stopsignal_refuses(signal: str) -> None:
    assert "invalid signal" in refused(f"STOPSIGNAL {signal}").message


def test_stopsignal_suggests() -> None:
    assert "SIGKILL" in refused("STOPSIGNAL sigkil").hint


def test_maintainer() -> None:
    found = last("MAINTAINER a $b <c@d>")
    assert found.state.author == "a $b <c@d>"
    assert found.created_by == "MAINTAINER a $b <c@d>"


def test_entrypoint_resets_only_an_inherited_cmd() -> None:
    text = "FROM scratch AS p\nCMD a\nFROM p\nENTRYPOINT b\nCMD c\nENTRYPOINT d\n"
    found = plan(parse(Source("f", text)))
    below = lower_all(found.stages[0].instructions, initial_state(None, found.scope(0)), found.scope(0))[-1].state
    from builder.handlers import inherited_state

    lines = lower_all(found.stages[1].instructions, inherited_state(below, found.scope(1)), found.scope(1))
    assert lines[0].state.config.cmd is None
    assert lines[2].state.config.cmd == ("/bin/sh", "-c", "c")
    assert lines[2].state.config.entrypoint == ("/bin/sh", "-c", "d")


def test_cmd_history_is_quoted_as_go_does() -> None:
    assert last('CMD ["a\\"b", "é\\u0001"]').created_by == r'CMD ["a\"b" "é\x01"]'
    empty = last("CMD []")
    assert empty.state.config.cmd is None
    assert empty.created_by == "CMD []"


def test_healthcheck() -> None:
    found = last("HEALTHCHECK --interval=1m30s --timeout=1.5s --start-interval=100ms --retries=3 CMD a && b")
    assert found.state.config.healthcheck == Healthcheck(
        test=("CMD-SHELL", "a && b"), interval=90 * 10**9, timeout=15 * 10**8, start_interval=10**8, retries=3
    )
    assert found.created_by == (
        "HEALTHCHECK {Test:[CMD-SHELL a && b] Interval:1m30s Timeout:1.5s StartPeriod:0s StartInterval:100ms Retries:3}"
    )
    assert last("HEALTHCHECK CMD true\nHEALTHCHECK NONE").state.config.healthcheck == Healthcheck(test=("NONE",))


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"), (1, "1ns"), (1500, "1.5µs"), (10**6, "1ms"), (999_999_999, "999.999999ms"), (10**9, "1s"),
        (60 * 10**9, "1m0s"), (3600 * 10**9, "1h0m0s"), (3_661_500_000_000, "1h1m1.5s"), (-(10**9), "-1s"),
    ],
)  # fmt: skip
def test_durations(nanoseconds: int, text: str) -> None:
    assert gotext.duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("64", 64), ("64b", 64), ("64k", 65536), ("1KB", 1024), ("1.5 MiB", 1572864), ("2g", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert gotext.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "1kbb", "1 2"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        gotext.parse_size(text)

"""FROM's state, ARG's scopes, SHELL, ONBUILD, and how words of any instruction are expanded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from builder.errors import BuildError, BuildErrors
from builder.handlers import image_triggers, inherited_state, initial_state, lower_all
from builder.handlers.expansion import looks_secret
from builder.plan import plan, with_triggers
from cache.oci import ImageConfig, Platform, RuntimeConfig
from grammar.parser import parse
from grammar.source import Source

if TYPE_CHECKING:
    from builder.model import Lowered, StageState

AMD = Platform("linux", "amd64")
ARM = Platform("linux", "arm64")


def lowered(text: str, build_args: dict[str, str] | None = None, base: ImageConfig | None = None) -> list[Lowered]:
    """Every instruction of the last stage, lowered; stages are followed through FROM."""
    found = plan(parse(Source("Dockerfile", text)), "", build_args or {}, build_platform=AMD)
    states: dict[int, StageState] = {}
    result: list[Lowered] = []
    for stage in found.stages:
        scope = found.scope(stage.stage.index)
        below = stage.base.stage
        state = initial_state(base, scope) if below is None else inherited_state(states[below], scope)
        result = list(lower_all(stage.instructions, state, scope))
        states[stage.stage.index] = result[-1].state if result else state
    return result


def value(text: str, name: str, build_args: dict[str, str] | None = None) -> str | None:
    return dict(lowered(text, build_args)[-1].state.environment).get(name)


# ---------------------------------------------------------------- ARG and ENV


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("FROM scratch\nARG X=d\n", {}, "d"),
        ("FROM scratch\nARG X=d\n", {"X": "cli"}, "cli"),
        ("FROM scratch\nARG X\n", {}, None),
        ("FROM scratch\nARG X\n", {"X": "cli"}, "cli"),
        ("ARG X=global\nFROM scratch\nLABEL a=b\n", {}, None),
        ("ARG X=global\nFROM scratch\nARG X\n", {}, "global"),
        ("ARG X=global\nFROM scratch\nARG X=stage\n", {}, "stage"),
        ("ARG X=global\nFROM scratch\nARG X=stage\n", {"X": "cli"}, "cli"),
        # A later declaration wins, whatever it is.
        ("FROM scratch\nENV X=env\nARG X=arg\n", {}, "arg"),
        ("FROM scratch\nARG X=arg\nENV X=env\n", {"X": "cli"}, "env"),
        ("FROM scratch\nENV X=env\nARG X\n", {}, "env"),
        ("FROM scratch\nENV X=env\nARG X\n", {"X": "cli"}, "cli"),
        # One line of ARG sees what stands before it on the line; one of ENV does not.
        ("FROM scratch\nARG A=1 X=$A\n", {}, "1"),
        ("FROM scratch\nENV A=0\nENV A=1 X=$A\n", {}, "0"),
        # ARGs come along with FROM stage, and do not leak to a sibling.
        ("FROM scratch AS a\nARG X=a\nFROM a\nLABEL k=v\n", {}, "a"),
        ("FROM scratch AS a\nARG X=a\nFROM scratch\nCOPY --from=a /f /f\n", {}, None),
        ("FROM scratch\nARG TARGETARCH\nARG X=$TARGETARCH\n", {}, "amd64"),
        ("FROM scratch\nARG X=$TARGETARCH\n", {}, ""),
        ("FROM scratch\nARG BUILDKIT_SBOM_SCAN_STAGE=1\nARG X=$BUILDKIT_SBOM_SCAN_STAGE\n", {}, ""),
    ],
)
def test_scopes(text: str, given: dict[str, str], expected: str | None) -> None:
    assert value(text, "X", given) == expected


def test_an_argument_stays_out_of_the_config() -> None:
    (line,) = lowered("FROM scratch\nARG X=1\n")
    assert line.state.config.env == ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    assert line.created_by == "ARG X=1"
    assert line.step is None


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("TOKEN", True), ("GITHUB_TOKEN", True), ("api_key", True), ("APIKEY", True), ("DB_PASSWORD_OLD", True),
        ("PUBLIC_KEY", False), ("KEY_FILE", False), ("TOKEN_VERSION", False), ("KEYBOARD", False), ("MONKEY", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


def test_secrets_are_masked_in_history() -> None:
    lines = lowered("FROM scratch\nARG API_TOKEN\nARG V=1\nRUN true\n", {"API_TOKEN": "hunter2"})
    history = [line.created_by for line in lines]
    assert history == [
        "ARG API_TOKEN=***",
        "ARG V=1",
        "RUN |2 API_TOKEN=*** V=1 /bin/sh -c true # buildkit",
    ]


def test_undefined_variables_are_findings() -> None:
    lines = lowered("FROM scratch\nENV FOO=1\nARG UNSET\nLABEL a=$FOOO b=$UNSET c=${BAR:-x}\n")
    found = lines[-1].findings
    assert [(f.rule, f.message) for f in found] == [
        ("UndefinedVar", "Usage of undefined variable '$FOOO'"),
        ("UndefinedVar", "Usage of undefined variable '$BAR'"),
    ]
    assert found[0].hint == "did you mean $FOO?"


# ---------------------------------------------------------------- states


def test_scratch() -> None:
    state = initial_state(None, plan(parse(Source("f", "FROM scratch\n")), build_platform=ARM).scope(0))
    assert state.config.working_dir == "/"
    assert state.platform == ARM
    assert dict(state.environment)["PATH"].startswith("/usr/local/sbin")


def test_what_an_image_brings() -> None:
    base = ImageConfig(
        platform=ARM,
        config=RuntimeConfig(env=("A=1=2", "PATH=/bin"), working_dir="rel", user="u", on_build=("RUN x",)),
        author="me",
    )
    (line,) = lowered("FROM busybox\nLABEL k=$A\n", base=base)
    state = line.state
    assert dict(state.config.labels) == {"k": "1=2"}
    assert state.config.env == ("A=1=2", "PATH=/bin")
    assert state.config.working_dir == "/rel"
    assert state.config.on_build == ()
    assert (state.author, state.platform, state.config.user) == ("me", ARM, "u")


def test_the_target_bears_the_platform_that_was_asked_for() -> None:
    text = Source("f", "FROM busybox AS a\nFROM a\n")
    found = plan(parse(text), platform=ARM, build_platform=AMD)
    below = initial_state(ImageConfig(platform=AMD), found.scope(0))
    assert below.platform == AMD
    assert inherited_state(below, found.scope(1)).platform == ARM
    implicit = plan(parse(text), build_platform=AMD)
    assert (
        inherited_state(initial_state(ImageConfig(platform=ARM), implicit.scope(0)), implicit.scope(1)).platform == ARM
    )


def test_triggers_of_an_image_are_parsed() -> None:
    base = ImageConfig(config=RuntimeConfig(on_build=("RUN a", "COPY <<E /x\nbody\nE")))
    found = image_triggers(base, "parent")
    assert [type(item).__name__ for _, item in found] == ["Run", "Copy"]
    assert found[0][0].name == "ONBUILD of parent"
    assert image_triggers(None, "x") == ()


def test_triggers_that_can_not_be_read() -> None:
    base = ImageConfig(config=RuntimeConfig(on_build=("WIBBLE", "RUN a", "FROM x")))
    with pytest.raises(BuildErrors) as caught:
        image_triggers(base, "parent")
    assert len(caught.value.errors) == 2


def test_a_trigger_is_lowered_in_its_own_text() -> None:
    found = plan(parse(Source("Dockerfile", "# escape=`\nFROM parent\nLABEL b=1\n")), build_platform=AMD)
    base = ImageConfig(config=RuntimeConfig(on_build=("LABEL a=1\\ 2", "EXPOSE 1-0")))
    for source, trigger in image_triggers(base, "parent"):
        found = with_triggers(found, 0, [trigger], source)
    (stage,) = found.stages
    scope = found.scope(0)
    lines = lower_all(stage.instructions[:1], initial_state(base, scope), scope, stage.trigger_sources)
    assert lines[0].created_by == "LABEL a=1 2"
    assert lines[0].source is stage.trigger_sources[0]
    with pytest.raises(BuildError) as caught:
        lower_all(stage.instructions, initial_state(base, scope), scope, stage.trigger_sources)
    assert caught.value.source is stage.trigger_sources[1]


def test_onbuild_is_kept_as_text_and_leaves_no_history() -> None:
    (line,) = lowered("FROM scratch\nONBUILD  RUN echo $X\n")
    assert line.state.config.on_build == ("RUN echo $X",)
    assert line.created_by == ""


def test_shell_counts_from_its_line_on_and_in_the_image() -> None:
    lines = lowered('FROM scratch\nCMD a\nSHELL ["/bin/bash", "-c"]\nENTRYPOINT b\n')
    assert lines[-1].state.config.cmd == ("/bin/sh", "-c", "a")
    assert lines[-1].state.config.entrypoint == ("/bin/bash", "-c", "b")
    assert lines[1].created_by == "SHELL [/bin/bash -c]"


# ---------------------------------------------------------------- errors


def test_independent_mistakes_come_together() -> None:
    with pytest.raises(BuildErrors) as caught:
        lowered("FROM scratch\nEXPOSE 70000\nLABEL ok=1\nSTOPSIGNAL SIGNONSENSE\nENV A=${B!}\n")
    assert [error.span.line for error in caught.value.errors if error.span] == [2, 4, 5]


def test_the_place_of_a_mistake_inside_of_a_word() -> None:
    with pytest.raises(BuildError, match="unsupported modifier") as caught:
        lowered("FROM scratch\nUSER ab${A!b}\n")
    span = caught.value.span
    assert span is not None
    assert (span.line, span.column > 6) == (2, True)

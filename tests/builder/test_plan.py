"""The plan: which stages are built, on what, with which arguments; and which files can not be planned."""

from __future__ import annotations

import pytest

from builder.errors import BuildError, BuildErrors
from builder.model import CONTEXT, GitSource, Origin, Plan, StageBase, UrlSource
from builder.plan import plan, with_triggers
from cache.oci import Platform
from grammar.parser import parse, parse_trigger
from grammar.source import Source

AMD = Platform("linux", "amd64")
ARM = Platform("linux", "arm64")


def planned(text: str, **options: object) -> Plan:
    return plan(parse(Source("Dockerfile", text)), build_platform=AMD, **options)  # type: ignore[arg-type]


def indexes(found: Plan) -> list[int]:
    return [stage.stage.index for stage in found.stages]


def refused(text: str, **options: object) -> BuildError:
    with pytest.raises(BuildError) as caught:
        planned(text, **options)
    return caught.value


# ---------------------------------------------------------------- reachability


def test_only_what_the_target_needs_is_built() -> None:
    text = """\
FROM scratch AS base
FROM base AS tools
FROM scratch AS docs
FROM base
COPY --from=tools /t /t
"""
    found = planned(text)
    assert indexes(found) == [0, 1, 3]
    assert [stage.stage.index for stage in found.unused] == [2]
    assert found.stages[2].needs == {0, 1}
    assert found.target == 3


def test_a_stage_is_named_by_number_and_in_any_case() -> None:
    found = planned("FROM scratch AS One\nFROM scratch\nFROM scratch\nCOPY --from=oNE /a /a\nCOPY --from=1 /b /b\n")
    assert indexes(found) == [0, 1, 2]


def test_mounts_are_edges() -> None:
    text = (
        "FROM scratch AS s\nFROM busybox\nRUN --mount=type=cache,from=s,target=/c --mount=from=debian,target=/d true\n"
    )
    assert indexes(planned(text)) == [0, 1]


def test_a_mount_knows_no_stage_numbers() -> None:
    assert indexes(planned("FROM scratch\nFROM busybox\nRUN --mount=from=0,target=/m true\n")) == [1]


def test_of_two_stages_of_one_name_copy_means_the_last_and_from_the_one_above() -> None:
    text = "FROM a AS x\nFROM x AS y\nFROM b AS x\nFROM scratch\nCOPY --from=x /f /f\nCOPY --from=y /f /f\n"
    found = planned(text)
    assert indexes(found) == [0, 1, 2, 3]
    assert found.stages[1].base == StageBase(stage=0)
    assert found.stages[3].needs == {1, 2}


def test_target_is_a_name_in_any_case() -> None:
    found = planned("FROM scratch AS One\nFROM scratch\n", target="ONE")
    assert indexes(found) == [0]
    assert found.scope(0).global_args["TARGETSTAGE"] == "ONE"


def test_unknown_target() -> None:
    error = refused("FROM scratch AS one\nFROM one AS two\n", target="tow")
    assert error.message == 'target stage "tow" could not be found'
    assert "two" in error.hint


def test_a_number_is_no_target() -> None:
    assert "could not be found" in refused("FROM scratch\nFROM scratch\n", target="1").message


# ---------------------------------------------------------------- wrong edges


def test_copy_from_a_later_stage() -> None:
    error = refused("FROM scratch AS one\nCOPY --from=two /a /a\nFROM scratch AS two\nFROM one\n")
    assert error.message == 'cannot copy from stage "two": it needs to be defined before the current stage "one"'
    assert error.span is not None
    assert error.span.line == 2


def test_a_later_stage_is_no_mistake_where_nothing_needs_it() -> None:
    assert indexes(planned("FROM scratch AS one\nCOPY --from=two /a /a\nFROM scratch AS two\nFROM scratch\n")) == [2]


def test_copy_from_itself() -> None:
    error = refused("FROM scratch AS me\nCOPY a /a\nCOPY --from=me /a /b\nFROM scratch\n")
    assert "circular" in error.message
    assert error.span is not None
    assert error.span.line == 3


def test_a_circle_counts_even_where_nothing_needs_it() -> None:
    text = "FROM scratch AS a\nCOPY --from=b /x /x\nFROM scratch AS b\nCOPY --from=a /x /x\nFROM scratch\n"
    error = refused(text)
    assert "circular dependency" in error.message
    assert "a -> b -> a" in error.hint


def test_many_stages_in_a_row() -> None:
    text = "FROM scratch AS s0\n" + "".join(
        f"FROM scratch AS s{n}\nCOPY --from=s{n - 1} /a /a\n" for n in range(1, 1500)
    )
    assert len(planned(text).stages) == 1500


def test_index_too_big() -> None:
    error = refused("FROM scratch\nCOPY --from=5 /a /b\n")
    assert "invalid stage index 5" in error.message


def test_mount_from_a_later_stage() -> None:
    error = refused("FROM busybox AS a\nRUN --mount=from=b,target=/m true\nFROM scratch AS b\nFROM a\n")
    assert 'cannot mount from stage "b" to "/m"' in error.message


def test_several_mistakes_come_together() -> None:
    error = refused(
        "FROM scratch AS one\nCOPY --from=7 /a /a\nFROM scratch\nCOPY --from=8 /a /a\nCOPY --from=$X /a /a\n"
    )
    assert isinstance(error, BuildErrors)
    assert [one.span.line for one in error.errors if one.span] == [2, 4, 5]


# ---------------------------------------------------------------- FROM and arguments


def test_from_is_expanded_with_global_args_only() -> None:
    found = planned("ARG BASE=busybox\nARG TAG=$BASE-1\nFROM $BASE:$TAG AS a\nENV BASE=x\nFROM ${BASE}\n")
    assert found.stages[0].base.image == "busybox"
    assert found.unused[0].base.image == "busybox:busybox-1"


def test_build_args_win_over_defaults() -> None:
    found = planned("ARG BASE=busybox\nFROM $BASE\n", build_args={"BASE": "scratch"})
    assert found.stages[0].base == StageBase(image="scratch", platform=AMD)


def test_blank_base() -> None:
    error = refused("ARG IMG\nFROM $IMG\n")
    assert error.message == "base name ($IMG) should not be blank"
    assert error.span is not None
    assert error.span.line == 2


def test_undefined_argument_in_from_is_a_finding_with_a_suggestion() -> None:
    (finding,) = planned("ARG BASEIMG=scratch\nFROM ${BASEIMGE:-scratch}\n").findings
    assert finding.rule == "UndefinedArgInFrom"
    assert "BASEIMG" in finding.hint


def test_invalid_reference() -> None:
    error = refused("FROM Upper/Case:::bad\n")
    assert "invalid reference" in error.message


def test_a_stage_spelt_in_capitals_is_an_image_name_and_no_valid_one() -> None:
    error = refused("FROM scratch AS Second\nFROM Second\n")
    assert error.hint == "the stage is called second"


def test_platform_arguments() -> None:
    found = planned("FROM --platform=$BUILDPLATFORM busybox AS b\nFROM --platform=arm64 busybox\n", platform=ARM)
    args = dict(found.global_args)
    assert (args["TARGETPLATFORM"], args["TARGETARCH"], args["BUILDPLATFORM"]) == (
        "linux/arm64",
        "arm64",
        "linux/amd64",
    )
    assert args["TARGETSTAGE"] == "default"
    assert found.unused[0].base.platform == AMD
    assert found.stages[0].base.platform == ARM


def test_platform_is_brought_into_normal_form() -> None:
    found = planned("FROM scratch\n", platform=Platform("linux", "aarch64"))
    assert dict(found.global_args)["TARGETPLATFORM"] == "linux/arm64"
    assert found.scope(0).forced_platform == ARM


def test_scratch_has_the_targets_platform() -> None:
    assert planned("FROM --platform=linux/s390x scratch\n").stages[0].base.platform == AMD


@pytest.mark.parametrize("value", ["linux/amd64/v2/x", "beos", "$NOTHING", "linux/a b"])
def test_wrong_platforms(value: str) -> None:
    assert "platform" in refused(f'FROM --platform="{value}" busybox\n').message


def test_build_arg_overrides_platform_parts() -> None:
    found = planned("FROM scratch\n", build_args={"TARGETOS": "plan9"}, platform=ARM)
    assert dict(found.global_args)["TARGETOS"] == "plan9"
    assert found.findings == ()


def test_unconsumed_build_args() -> None:
    text = "ARG A\nFROM scratch AS base\nONBUILD ARG D\nFROM scratch AS other\nARG B\nFROM scratch\n"
    given = dict.fromkeys(("A", "B", "Bb", "D", "HTTP_PROXY", "no_proxy", "SOURCE_DATE_EPOCH"), "1")
    (finding,) = planned(text, build_args=given).findings
    assert finding.rule == "UnconsumedBuildArg"
    assert "'Bb'" in finding.message
    assert finding.hint == "did you mean B?"


def test_error_in_a_global_default_has_its_place() -> None:
    error = refused("ARG A=ok\nARG B=${A!}\nFROM scratch\n")
    assert error.span is not None
    assert error.span.line == 2


# ---------------------------------------------------------------- contexts and images


def test_named_context_stands_in_for_an_image() -> None:
    text = "FROM busybox AS b\nFROM scratch\nCOPY --from=b /a /a\n"
    found = planned(text, contexts=["docker.io/library/busybox:latest"])
    assert found.stages[0].base.context == "docker.io/library/busybox:latest"
    assert not found.stages[0].replaced


def test_named_context_stands_in_for_a_stage() -> None:
    text = "FROM busybox AS b\nCOPY --from=unused /x /x\nONBUILD RUN false\nFROM b\n"
    found = planned("FROM scratch AS unused\n" + text, contexts=["b"])
    assert indexes(found) == [1, 2]
    assert found.stages[0].replaced
    assert found.stages[0].instructions == ()
    assert found.stages[1].triggers == ()


def test_from_context_does_not_replace_a_stage() -> None:
    found = planned("FROM rootfs AS b\nCOPY a /\n", contexts=["rootfs"])
    assert found.stages[0].base.context == "rootfs"
    assert len(found.stages[0].instructions) == 1


def test_reserved_names_are_no_contexts() -> None:
    assert planned("FROM scratch\n", contexts=["scratch"]).stages[0].base.image == "scratch"


def test_copy_from_a_global_argument() -> None:
    found = planned("ARG TOOLS=base\nFROM busybox AS base\nFROM scratch\nCOPY --from=$TOOLS /a /a\n")
    assert indexes(found) == [0, 1]


def test_copy_from_a_stage_argument_is_refused() -> None:
    error = refused("FROM busybox AS base\nFROM scratch\nARG TOOLS=base\nCOPY --from=$TOOLS /a /a\n")
    assert "variable" in error.message
    assert "global" in error.message


# ---------------------------------------------------------------- ONBUILD


def test_triggers_of_a_stage_run_in_its_child_only() -> None:
    text = "FROM scratch AS in\nFROM scratch AS base\nONBUILD COPY --from=in /a /a\nFROM base AS mid\nFROM mid\n"
    found = planned(text)
    assert indexes(found) == [0, 1, 2, 3]
    assert [type(item).__name__ for item in found.stages[2].instructions] == ["Copy"]
    assert found.stages[3].instructions == ()


def test_triggers_of_an_image_may_need_stages() -> None:
    text = "FROM scratch AS tools\nFROM scratch AS never\nFROM parent\nCOPY a /a\n"
    before = planned(text, build_args={"WHO": "x"})
    assert indexes(before) == [2]
    assert len(before.findings) == 1
    after = with_triggers(before, 2, [parse_trigger("ARG WHO")], Source("ONBUILD of parent", "ARG WHO"))
    assert indexes(after) == [2]
    source = Source("ONBUILD of parent", "COPY --from=tools /t /t")
    after = with_triggers(after, 2, [parse_trigger(source.text)], source)
    assert indexes(after) == [0, 2]
    assert [type(item).__name__ for item in after.stages[1].instructions] == ["Arg", "Copy", "Copy"]
    assert [one.text for one in after.stages[1].trigger_sources] == ["ARG WHO", source.text]
    assert after.findings == ()


def test_a_trigger_of_an_image_can_not_reach_forward() -> None:
    before = planned("FROM parent AS first\nFROM scratch AS second\n", target="first")
    source = Source("ONBUILD of parent", "COPY --from=second /t /t")
    with pytest.raises(BuildError, match="needs to be defined before") as caught:
        with_triggers(before, 0, [parse_trigger(source.text)], source)
    assert caught.value.source is source


# ---------------------------------------------------------------- SOURCE_DATE_EPOCH


@pytest.mark.parametrize(
    ("text", "args", "epoch"),
    [
        ("FROM scratch\n", {}, None),
        ("FROM scratch\n", {"SOURCE_DATE_EPOCH": "1600000000"}, 1_600_000_000),
        ("ARG SOURCE_DATE_EPOCH=1500000000\nFROM scratch\n", {}, 1_500_000_000),
        ("ARG SOURCE_DATE_EPOCH=1500000000\nFROM scratch\n", {"SOURCE_DATE_EPOCH": "1600000000"}, 1_600_000_000),
        ("ARG SOURCE_DATE_EPOCH=1500000000\nFROM scratch\n", {"SOURCE_DATE_EPOCH": ""}, None),
    ],
)
def test_epoch(text: str, args: dict[str, str], epoch: int | None) -> None:
    assert planned(text, build_args=args).epoch == epoch


def test_epoch_from_a_context() -> None:
    assert planned("FROM scratch\n", build_args={"SOURCE_DATE_EPOCH": "context"}).epoch_source == CONTEXT
    found = planned("FROM scratch\n", build_args={"SOURCE_DATE_EPOCH": "extra"}, contexts=["extra"])
    assert found.epoch_source == Origin(context="extra")


def test_epoch_from_a_stage() -> None:
    text = "FROM scratch AS src\nARG V=1\nADD https://example.com/a-$V.tar /\nFROM scratch\n"
    found = planned(text, build_args={"SOURCE_DATE_EPOCH": "src"})
    assert isinstance(found.epoch_source, UrlSource)
    assert found.epoch_source.url == "https://example.com/a-1.tar"
    git = planned(text.replace("a-$V.tar", "a.git"), build_args={"SOURCE_DATE_EPOCH": "src"})
    assert isinstance(git.epoch_source, GitSource)


@pytest.mark.parametrize("body", ["COPY a /a", "ADD a /a", "ADD https://h/a https://h/b /", "LABEL a=b"])
def test_epoch_from_a_stage_that_does_more(body: str) -> None:
    error = refused(f"FROM scratch AS src\n{body}\nFROM scratch\n", build_args={"SOURCE_DATE_EPOCH": "src"})
    assert "SOURCE_DATE_EPOCH" in error.message


def test_wrong_epoch() -> None:
    assert "invalid SOURCE_DATE_EPOCH" in refused("FROM scratch\n", build_args={"SOURCE_DATE_EPOCH": "soon"}).message

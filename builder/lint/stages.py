"""Rules about FROM: how stages are called and what they stand on. Checks of BuildKit, by its names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.lint.subject import Rule, Subject
from builder.platforms import parse_platform
from grammar.words import Expansion, WordError, expand_with_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from builder.model import Finding
    from grammar.instructions import Word

_RESERVED = ("scratch", "context")
_PREDEFINED = ("BUILD", "TARGET")


def stage_name_casing(subject: Subject) -> Iterator[Finding]:
    """Stage names should be lowercase.

    Why: names of stages mean the same in any case, and are kept in lower case: the name in messages is another one than
    the name in the file.

    Bad:
        FROM scratch AS Base

    Good:
        FROM scratch AS base
    """
    for stage in subject.plan.dockerfile.stages:
        written = stage.from_.name_as_written
        if written != written.lower():
            message = f"Stage name '{written}' should be lowercase"
            yield subject.finding("StageNameCasing", message, stage.from_.span, f"write AS {written.lower()}")


def from_as_casing(subject: Subject) -> Iterator[Finding]:
    """The 'as' keyword should match the case of the 'from' keyword.

    Why: one line in two styles is hard to read.

    Bad:
        FROM scratch as base

    Good:
        FROM scratch AS base
    """
    for stage in subject.plan.dockerfile.stages:
        keyword, word = stage.from_.keyword, stage.from_.as_word
        if not word or keyword not in {keyword.lower(), keyword.upper()}:
            continue
        wanted = word.lower() if keyword == keyword.lower() else word.upper()
        if word != wanted:
            message = f"'{word}' and '{keyword}' keywords' casing do not match"
            yield subject.finding("FromAsCasing", message, stage.from_.span, f"write {wanted}")


def duplicate_stage_name(subject: Subject) -> Iterator[Finding]:
    """Stage names should be unique.

    Why: of two stages with one name, COPY --from means the last one and FROM the one above it.

    Bad:
        FROM scratch AS base
        FROM scratch AS base

    Good:
        FROM scratch AS one
        FROM scratch AS two
    """
    seen: set[str] = set()
    for stage in subject.plan.dockerfile.stages:
        if stage.name in seen:
            message = f'Duplicate stage name "{stage.name}", stage names should be unique'
            yield subject.finding("DuplicateStageName", message, stage.from_.span)
        elif stage.name:
            seen.add(stage.name)


def reserved_stage_name(subject: Subject) -> Iterator[Finding]:
    """Reserved words should not be used as stage names.

    Why: `scratch` and `context` mean something else in FROM and in --from.

    Bad:
        FROM scratch AS context

    Good:
        FROM scratch AS files
    """
    for stage in subject.plan.dockerfile.stages:
        if stage.name in _RESERVED:
            message = f'Stage name should not use the same name as reserved stage "{stage.name}"'
            yield subject.finding("ReservedStageName", message, stage.from_.span)


def undefined_arg_in_from(subject: Subject) -> Iterator[Finding]:
    """FROM command must use declared ARGs.

    Why: a variable that no ARG before the first FROM declares is empty; what is meant is probably another one.

    Bad:
        FROM scratch${SUFFIX}

    Good:
        ARG SUFFIX=
        FROM scratch${SUFFIX}
    """
    return (finding for finding in subject.plan.findings if finding.rule == "UndefinedArgInFrom")


def invalid_default_arg_in_from(subject: Subject) -> Iterator[Finding]:
    """Default value for global ARG results in an empty or invalid base image name.

    Why: the file builds only for those who know which --build-arg to give.

    Bad:
        ARG TAG
        FROM busybox:${TAG}

    Good:
        ARG TAG=latest
        FROM busybox:${TAG}
    """
    from cache.errors import StoreError
    from cache.reference import Reference

    plan = subject.plan
    escape = plan.dockerfile.directives.escape
    values = {name: value for name, value in plan.global_args if name.startswith(_PREDEFINED)}
    try:
        for arg in plan.dockerfile.global_args:
            for pair in arg.pairs:
                if pair.value is not None:
                    values[pair.name] = expand_with_names(pair.value, values, escape).text
        names = [expand_with_names(stage.from_.image.text, values, escape).text for stage in plan.dockerfile.stages]
    except WordError:
        return  # such as ${TAG:?must be set}: the file has its own way to ask for a value
    for stage, name in zip(plan.dockerfile.stages, names, strict=True):
        try:
            Reference.parse(name)
        except StoreError:
            written = stage.from_.image.text
            message = f"Default value for ARG {written} results in empty or invalid base image name"
            yield subject.finding("InvalidDefaultArgInFrom", message, stage.from_.span, "give the ARG a default")


def redundant_target_platform(subject: Subject) -> Iterator[Finding]:
    """Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior.

    Why: what goes without saying makes readers look for a reason.

    Bad:
        FROM --platform=$TARGETPLATFORM scratch

    Good:
        FROM scratch
    """
    values = dict(subject.plan.global_args)
    for stage in subject.plan.dockerfile.stages:
        word = stage.from_.platform
        found = _expanded(word, values, subject)
        if word is None or found is None or found.missing or found.used != {"TARGETPLATFORM"}:
            continue
        if found.text == values["TARGETPLATFORM"]:
            message = f"Setting platform to predefined {word.text} in FROM is redundant as this is the default behavior"
            yield subject.finding("RedundantTargetPlatform", message, stage.from_.span, "leave --platform out")


def from_platform_flag_const_disallowed(subject: Subject) -> Iterator[Finding]:
    """FROM --platform flag should not use a constant value.

    Why: such a file builds for one platform only, whatever --platform says. A stage that is meant to is best called
    after its platform, which also silences this.

    Bad:
        FROM --platform=linux/amd64 scratch AS base

    Good:
        FROM --platform=$BUILDPLATFORM scratch AS base
    """
    values = dict(subject.plan.global_args)
    for stage in subject.plan.dockerfile.stages:
        found = _expanded(stage.from_.platform, values, subject)
        if found is None or found.used or found.missing:
            continue
        try:
            platform = parse_platform(found.text, subject.plan.platform)
        except ValueError:
            continue
        if platform.os not in stage.name and platform.architecture not in stage.name:
            message = f'FROM --platform flag should not use constant value "{found.text}"'
            yield subject.finding("FromPlatformFlagConstDisallowed", message, stage.from_.span)


def _expanded(word: Word | None, values: Mapping[str, str], subject: Subject) -> Expansion | None:
    if word is None:
        return None
    try:
        return expand_with_names(word.text, values, subject.plan.dockerfile.directives.escape)
    except WordError:
        return None


def invalid_base_image_platform(subject: Subject) -> Iterator[Finding]:
    """Base image platform does not match expected target platform.

    Why: programs of another architecture do not start, here or where the image runs.
    """
    for stage in subject.stages:
        base, wanted = stage.base, stage.plan.base.platform or subject.plan.platform
        if base is None or not stage.plan.base.image or not base.platform.architecture:
            continue
        if (base.platform.os, base.platform.architecture) != (wanted.os, wanted.architecture):
            message = (
                f'Base image {stage.plan.base.image} was pulled with platform "{base.platform}", '
                f'expected "{wanted}" for current build'
            )
            yield subject.finding("InvalidBaseImagePlatform", message, stage.plan.stage.from_.span)


RULES = (
    Rule("StageNameCasing", "Stage names should be lowercase", stage_name_casing, documented=True),
    Rule(
        "FromAsCasing", "The 'as' keyword should match the case of the 'from' keyword", from_as_casing, documented=True
    ),
    Rule(
        "DuplicateStageName", "Stage names should be unique", duplicate_stage_name, aliases=("DL3024",), documented=True
    ),
    Rule(
        "ReservedStageName",
        "Reserved words should not be used as stage names",
        reserved_stage_name,
        aliases=("DL3063",),
        documented=True,
    ),
    Rule("UndefinedArgInFrom", "FROM command must use declared ARGs", undefined_arg_in_from, documented=True),
    Rule(
        "InvalidDefaultArgInFrom",
        "Default value for global ARG results in an empty or invalid base image name",
        invalid_default_arg_in_from,
        whole=True,
        documented=True,
    ),
    Rule(
        "RedundantTargetPlatform",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        redundant_target_platform,
        aliases=("DL3065",),
        documented=True,
    ),
    Rule(
        "FromPlatformFlagConstDisallowed",
        "FROM --platform flag should not use a constant value",
        from_platform_flag_const_disallowed,
        aliases=("DL3029",),
        documented=True,
    ),
    Rule(
        "InvalidBaseImagePlatform",
        "Base image platform does not match expected target platform",
        invalid_base_image_platform,
    ),
)

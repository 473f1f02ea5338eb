"""Rules about how instructions are written. Checks of BuildKit, by its names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.handlers import gotext
from builder.lint.subject import Rule, Subject
from grammar.instructions import (
    Arg,
    Cmd,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    ShellForm,
    Workdir,
)
from grammar.words import WordError, expand_with_names, expand_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.model import Finding, Lowered, Scope, StageState
    from grammar.instructions import Instruction


def no_empty_continuation(subject: Subject) -> Iterator[Finding]:
    r"""Empty continuation lines will become errors in a future release.

    Why: a blank line inside of an instruction looks like its end.

    Bad:
        FROM scratch
        ENV A=1 \

            B=2

    Good:
        FROM scratch
        ENV A=1 \
            B=2
    """
    source = subject.plan.dockerfile.source
    for instruction in (*subject.plan.dockerfile.global_args, *subject.instructions()):
        if instruction.empty_continuations:
            span = source.line_span(instruction.empty_continuations[0])
            yield subject.finding("NoEmptyContinuation", "Empty continuation line", span, "remove it, or put a # there")


def consistent_instruction_casing(subject: Subject) -> Iterator[Finding]:
    """All commands within the Dockerfile should use the same casing (either upper or lower).

    Why: mixed styles are hard to read, and to search for.

    Bad:
        FROM scratch
        ENV A=1
        env B=2

    Good:
        FROM scratch
        ENV A=1
        ENV B=2
    """
    keywords = [instruction.keyword for instruction in subject.instructions()]
    lower = sum(word == word.lower() for word in keywords) > sum(word == word.upper() for word in keywords)
    casing = "lowercase" if lower else "uppercase"
    for instruction in subject.instructions():
        wanted = instruction.keyword.lower() if lower else instruction.keyword.upper()
        if instruction.keyword != wanted:
            message = f"Command '{instruction.keyword}' should match the case of the command majority ({casing})"
            yield subject.finding("ConsistentInstructionCasing", message, instruction.span, f"write {wanted}")


def maintainer_deprecated(subject: Subject) -> Iterator[Finding]:
    """The MAINTAINER instruction is deprecated, use a label instead to define an image author.

    Why: labels are seen by `inspect` and inherited, and there may be several.

    Bad:
        FROM scratch
        MAINTAINER someone@example.com

    Good:
        FROM scratch
        LABEL org.opencontainers.image.authors="someone@example.com"
    """
    for instruction in subject.instructions():
        if isinstance(instruction, Maintainer):
            message = "Maintainer instruction is deprecated in favor of using label"
            hint = f"write LABEL org.opencontainers.image.authors={gotext.quoted(instruction.name)}"
            yield subject.finding("MaintainerDeprecated", message, instruction.span, hint)


def legacy_key_value_format(subject: Subject) -> Iterator[Finding]:
    """Legacy key/value format with whitespace separator should not be used.

    Why: the whole rest of the line is the value there, quotes and all, which is seldom what was meant.

    Bad:
        FROM scratch
        ENV DIRECTORY /some/path

    Good:
        FROM scratch
        ENV DIRECTORY=/some/path
    """
    for stage in subject.stages:
        for lowered in stage.lowered:
            instruction = lowered.instruction
            if isinstance(instruction, Env | Label) and instruction.legacy:
                word = instruction.keyword
                message = f'"{word} key=value" should be used instead of legacy "{word} key value" format'
                yield subject.finding("LegacyKeyValueFormat", message, instruction.span, source=lowered.source)


def multiple_instructions_disallowed(subject: Subject) -> Iterator[Finding]:
    """Multiple instructions of the same type should not be used in the same stage.

    Why: of several CMD, ENTRYPOINT or HEALTHCHECK only the last one has an effect.

    Bad:
        FROM scratch
        CMD ["one"]
        CMD ["two"]

    Good:
        FROM scratch
        CMD ["two"]
    """
    for stage in subject.stages:
        before: dict[type[Instruction], Lowered] = {}
        for lowered in stage.lowered:
            instruction = lowered.instruction
            if not isinstance(instruction, Cmd | Entrypoint | Healthcheck):
                continue
            earlier = before.get(type(instruction))
            if earlier is not None:
                message = (
                    f"Multiple {instruction.keyword} instructions should not be used in the same stage "
                    "because only the last one will be used"
                )
                hint = f"remove it; line {instruction.span.line} is the one that counts"
                span, source = earlier.instruction.span, earlier.source
                yield subject.finding("MultipleInstructionsDisallowed", message, span, hint, source)
            before[type(instruction)] = lowered


def json_args_recommended(subject: Subject) -> Iterator[Finding]:
    """JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals.

    Why: in the shell form a shell is process 1, and it does not pass SIGTERM on: the container has to be killed. A
    SHELL above says that a shell is meant.

    Bad:
        FROM scratch
        CMD server --port 80

    Good:
        FROM scratch
        CMD ["server", "--port", "80"]
    """
    for stage in subject.stages:
        for before, lowered in stage.steps():
            instruction = lowered.instruction
            if not isinstance(instruction, Cmd | Entrypoint) or not isinstance(instruction.command, ShellForm):
                continue
            if not before.config.shell:
                message = (
                    f"JSON arguments recommended for {instruction.keyword} "
                    "to prevent unintended behavior related to OS signals"
                )
                yield subject.finding("JSONArgsRecommended", message, instruction.span, source=lowered.source)


def workdir_relative_path(subject: Subject) -> Iterator[Finding]:
    """Relative workdir without an absolute workdir declared within the build can have unexpected results if the base
    image changes.

    Why: it starts at the base image's WORKDIR, which may be another one tomorrow.

    Bad:
        FROM scratch
        WORKDIR app

    Good:
        FROM scratch
        WORKDIR /app
    """  # noqa: D205 - the sentence is BuildKit's
    for stage in subject.stages:
        scope = subject.plan.scope(stage.plan.stage.index)
        for before, lowered in stage.steps():
            instruction = lowered.instruction
            if not isinstance(instruction, Workdir) or before.workdir_set:
                continue
            path = _text(instruction.path.text, before, scope)
            if not path.startswith("/"):
                quoted = gotext.quoted(path)
                message = f"Relative workdir {quoted} can have unexpected results if the base image changes"
                yield subject.finding("WorkdirRelativePath", message, instruction.span, source=lowered.source)


def expose_proto_casing(subject: Subject) -> Iterator[Finding]:
    """Protocol in EXPOSE instruction should be lowercase.

    Why: it is kept in lower case whatever is written.

    Bad:
        FROM scratch
        EXPOSE 80/TCP

    Good:
        FROM scratch
        EXPOSE 80/tcp
    """
    for lowered, port in _ports(subject):
        protocol = port.rpartition(":")[2].partition("/")[2]
        if protocol != protocol.lower():
            message = f"Defined protocol '{port}' in EXPOSE instruction should be lowercase"
            yield subject.finding("ExposeProtoCasing", message, lowered.instruction.span, source=lowered.source)


def expose_invalid_format(subject: Subject) -> Iterator[Finding]:
    """IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future
    release.

    Why: an image can not say which port of which machine it will be published on; all but the container's port is lost.

    Bad:
        FROM scratch
        EXPOSE 127.0.0.1:80:80

    Good:
        FROM scratch
        EXPOSE 80
    """  # noqa: D205 - the sentence is BuildKit's
    for lowered, port in _ports(subject):
        head, _, container = port.rpartition(":")
        if head.strip(":"):
            message = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
            hint = f"write EXPOSE {container.lower()}"
            yield subject.finding("ExposeInvalidFormat", message, lowered.instruction.span, hint, lowered.source)


def _ports(subject: Subject) -> Iterator[tuple[Lowered, str]]:
    """Every port of every EXPOSE, expanded."""
    for stage in subject.stages:
        scope = subject.plan.scope(stage.plan.stage.index)
        for before, lowered in stage.steps():
            instruction = lowered.instruction
            if isinstance(instruction, Expose):
                for word in sorted(instruction.ports, key=lambda word: word.text):
                    for port in expand_words(word.text, dict(before.environment), scope.escape):
                        yield lowered, port


def _text(text: str, state: StageState, scope: Scope) -> str:
    try:
        return expand_with_names(text, dict(state.environment), scope.escape).text
    except WordError:
        return text


def invalid_definition_description(subject: Subject) -> Iterator[Finding]:
    """Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not
    intended to be a description comment, add an empty line or comment between the instruction and the comment.

    Why: `--call=outline` and `--call=targets` show such comments; one without the name they pass over.

    Bad:
        # check=experimental=all
        # The version to build.
        ARG VERSION=1
        FROM scratch

    Good:
        # check=experimental=all
        # VERSION is what to build.
        ARG VERSION=1
        FROM scratch
    """  # noqa: D205 - the sentences are BuildKit's
    for instruction in (*subject.plan.dockerfile.global_args, *subject.instructions()):
        match instruction:
            case From() if instruction.name:
                names, keyword = [instruction.name], "FROM"
            case Arg():
                names, keyword = [pair.name for pair in instruction.pairs], "ARG"
            case _:
                continue
        if instruction.comments and instruction.comments[-1].split(" ")[0] not in names:
            name = names[0] if len(names) == 1 else "<arg_key>"
            message = f"Comment for {keyword} should follow the format: `# {name} <description>`"
            hint = "or part them by a line that is # alone"
            yield subject.finding("InvalidDefinitionDescription", message, instruction.span, hint)


RULES = (
    Rule(
        "NoEmptyContinuation",
        "Empty continuation lines will become errors in a future release",
        no_empty_continuation,
        documented=True,
    ),
    Rule(
        "ConsistentInstructionCasing",
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        consistent_instruction_casing,
        documented=True,
    ),
    Rule(
        "MaintainerDeprecated",
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        maintainer_deprecated,
        aliases=("DL4000",),
        documented=True,
    ),
    Rule(
        "LegacyKeyValueFormat",
        "Legacy key/value format with whitespace separator should not be used",
        legacy_key_value_format,
        documented=True,
    ),
    Rule(
        "MultipleInstructionsDisallowed",
        "Multiple instructions of the same type should not be used in the same stage",
        multiple_instructions_disallowed,
        aliases=("DL3012", "DL4003", "DL4004"),
        documented=True,
    ),
    Rule(
        "JSONArgsRecommended",
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        json_args_recommended,
        aliases=("DL3025",),
        documented=True,
    ),
    Rule(
        "WorkdirRelativePath",
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the "
        "base image changes",
        workdir_relative_path,
        aliases=("DL3000",),
        documented=True,
    ),
    Rule(
        "ExposeProtoCasing", "Protocol in EXPOSE instruction should be lowercase", expose_proto_casing, documented=True
    ),
    Rule(
        "ExposeInvalidFormat",
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a "
        "future release",
        expose_invalid_format,
        documented=True,
    ),
    Rule(
        "InvalidDefinitionDescription",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is "
        "not intended to be a description comment, add an empty line or comment between the instruction and the "
        "comment.",
        invalid_definition_description,
        experimental=True,
        documented=True,
    ),
)

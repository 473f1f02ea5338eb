"""Rules about variables, and about files that a build does not see. Checks of BuildKit, by its names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.handlers.expansion import looks_secret
from builder.lint.subject import Rule, Subject
from builder.model import FileStep, PathSource
from grammar.ignore import clean
from grammar.instructions import Add, Arg, Env

if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.model import Finding

_EVERYTHING = frozenset({"*", "**", "**/*"})


def undefined_var(subject: Subject) -> Iterator[Finding]:
    """Variables should be defined before their use.

    Why: a variable that neither ENV nor ARG nor the base image defines is empty: a slip of the finger, mostly.

    Bad:
        FROM scratch
        ARG DIRECTORY=/app
        WORKDIR /${DIRECTROY}

    Good:
        FROM scratch
        ARG DIRECTORY=/app
        WORKDIR /${DIRECTORY}
    """
    for stage in subject.stages:
        if stage.known:
            for lowered in stage.lowered:
                yield from (finding for finding in lowered.findings if finding.rule == "UndefinedVar")


def secrets_used_in_arg_or_env(subject: Subject) -> Iterator[Finding]:
    """Sensitive data should not be used in the ARG or ENV commands.

    Why: everybody who has the image can read both: ENV in its config, ARG in its history.

    Bad:
        FROM scratch
        ARG GITHUB_TOKEN

    Good:
        FROM scratch
        COPY --from=scratch . /
        RUN --mount=type=secret,id=github_token,env=GITHUB_TOKEN true
    """
    for stage in subject.stages:
        for lowered in stage.lowered:
            instruction = lowered.instruction
            if not isinstance(instruction, Arg | Env):
                continue
            keyword = "ARG" if isinstance(instruction, Arg) else "ENV"
            for pair in instruction.pairs:
                if looks_secret(pair.name):
                    message = f'Do not use ARG or ENV instructions for sensitive data ({keyword} "{pair.name}")'
                    hint = "give it to the RUN that needs it: --mount=type=secret,id=...,env=..."
                    yield subject.finding("SecretsUsedInArgOrEnv", message, instruction.span, hint, lowered.source)


def copy_ignored_file(subject: Subject) -> Iterator[Finding]:
    """Attempting to Copy file that is excluded by .dockerignore.

    Why: the build does not see the file. With a `!` line in the ignore file nothing is said, since it may bring the
    file back.

    .dockerignore:
        *.log

    Bad:
        FROM scratch
        COPY build.log /

    Good:
        FROM scratch
        COPY build.txt /
    """
    ignore = subject.ignore
    if ignore is None or any(rule.negated for rule in ignore.rules):
        return
    everything = any(rule.pattern in _EVERYTHING for rule in ignore.rules)
    for stage in subject.stages:
        for lowered in stage.lowered:
            step = lowered.step
            if not isinstance(step, FileStep) or step.origin.context != "":
                continue
            for source in step.sources:
                if not isinstance(source, PathSource):
                    continue
                path = clean(source.pattern) or "."
                whole = path in {".", "/"}
                if everything if whole else ignore.match(path.lstrip("/")):
                    act = "Add" if isinstance(lowered.instruction, Add) else "Copy"
                    message = f'Attempting to {act} file "{path}" that is excluded by .dockerignore'
                    rule = None if whole else ignore.decide(path.lstrip("/"))
                    hint = f"line {rule.line} of the ignore file leaves it out: {rule.text.strip()}" if rule else ""
                    yield subject.finding("CopyIgnoredFile", message, lowered.instruction.span, hint, lowered.source)


RULES = (
    Rule("UndefinedVar", "Variables should be defined before their use", undefined_var, documented=True),
    Rule(
        "SecretsUsedInArgOrEnv",
        "Sensitive data should not be used in the ARG or ENV commands",
        secrets_used_in_arg_or_env,
        aliases=("DL3064",),
        documented=True,
    ),
    Rule(
        "CopyIgnoredFile",
        "Attempting to Copy file that is excluded by .dockerignore",
        copy_ignored_file,
        documented=True,
    ),
)

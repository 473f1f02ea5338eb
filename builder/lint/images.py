"""Rules about the image that is built on, and about what the image says of itself: user, variables, labels, health."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Final

from builder.lint.subject import Rule, Subject
from builder.model import Severity
from grammar.instructions import Env, Healthcheck, Label, User
from grammar.words import WordError, expand_with_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from builder.model import Finding
    from grammar.instructions import Pair, Stage

# ---------------------------------------------------------------- FROM


def untagged_base(subject: Subject) -> Iterator[Finding]:
    """A base image should be named with its tag or digest.

    Why: without one it is `latest`, which is another image next month.

    Bad:
        FROM debian

    Good:
        FROM debian:12
    """
    for stage, name in _bases(subject):
        if not re.search(r":[^/]*\Z|@", name):
            message = f"{name} has no tag: it is whatever latest means today"
            yield subject.finding("UntaggedBase", message, stage.from_.image.span, f"write {name}:TAG")


def latest_base(subject: Subject) -> Iterator[Finding]:
    """A base image should not be `latest`.

    Why: it is another image next month, and nobody can say which one a build had.

    Bad:
        FROM debian:latest

    Good:
        FROM debian:12
    """
    for stage, name in _bases(subject):
        if name.endswith(":latest"):
            message = f"{name} is another image next month"
            hint = "name the version that you mean"
            yield subject.finding("LatestBase", message, stage.from_.image.span, hint)


def untrusted_registry(subject: Subject) -> Iterator[Finding]:
    """Base images should come from the registries that are allowed.

    Why: the configuration names them: `trusted-registries = ["docker.io", "*.example.com"]`. Nothing is said where
    there is no such list.
    """
    allowed = subject.options.registries
    if not allowed:
        return
    for stage, name in _bases(subject):
        first, slash, _ = name.partition("/")
        registry = first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"
        names = {registry, f"{registry}/{name}"} | ({"hub.docker.com"} if registry == "docker.io" else set())
        if not any(fnmatch.fnmatchcase(each, pattern) for each in names for pattern in allowed):
            message = f"{name} comes from {registry}, which is not allowed"
            hint = f"allowed are {', '.join(allowed)}"
            yield subject.finding("UntrustedRegistry", message, stage.from_.image.span, hint)


def _bases(subject: Subject) -> Iterator[tuple[Stage, str]]:
    """Each base that is an image of its own, by its name as the defaults of the ARGs make it."""
    plan = subject.plan
    values: dict[str, str] = dict(plan.global_args)
    for arg in plan.dockerfile.global_args:
        values |= {pair.name: pair.value.strip("'\"") for pair in arg.pairs if pair.value and pair.name not in values}
    contexts = frozenset(name for scope in plan.scopes[:1] for name in scope.contexts)
    planned = {stage.stage.index: stage.base for stage in (*plan.stages, *plan.unused)}
    names: set[str] = set()
    for stage in plan.dockerfile.stages:
        text = stage.from_.image.text
        base = planned.get(stage.index)
        try:
            found = expand_with_names(text, values, plan.dockerfile.directives.escape)
        except WordError:
            found = None
        name = found.text if found is not None and not found.missing else ""
        own = name and name.lower() not in names and name != "scratch" and name not in contexts
        if own and (base is None or base.image):
            yield stage, name
        if stage.name:
            names.add(stage.name)


# ---------------------------------------------------------------- USER


def last_user_root(subject: Subject) -> Iterator[Finding]:
    """The last USER should not be root.

    Why: the file goes back to root and stays there, so that the program runs as root.

    Bad:
        FROM debian:12
        USER app
        USER root

    Good:
        FROM debian:12
        USER root
        USER app
    """
    last = subject.plan.dockerfile.stages[-1:]
    for stage in last:
        users = [item for item in stage.instructions if isinstance(item, User)]
        if users and users[-1].user.text.strip("\"'").partition(":")[0] in {"root", "0"}:
            message = "the program will run as root"
            yield subject.finding("LastUserRoot", message, users[-1].span, "go to another USER behind it")


def named_user(subject: Subject) -> Iterator[Finding]:
    """USER should be a number.

    Why: Kubernetes can not tell whether a name is root's, and refuses it where runAsNonRoot is asked for.

    Bad:
        FROM debian:12
        USER www-data

    Good:
        FROM debian:12
        USER 33
    """
    for stage in subject.plan.dockerfile.stages[-1:]:
        users = [item for item in stage.instructions if isinstance(item, User)]
        name = users[-1].user.text.strip("\"'").partition(":")[0] if users else ""
        if name and not name.isdecimal() and "$" not in name and name != "root":
            message = f"whether {name} is root is not to be seen without the image's /etc/passwd"
            yield subject.finding("NamedUser", message, users[-1].user.span, "write its number")


# ---------------------------------------------------------------- ENV


def env_refers_to_itself(subject: Subject) -> Iterator[Finding]:
    """A variable should not be used in the ENV that sets it.

    Why: every word of an ENV is expanded with the values from before it: the new ones are not there yet.

    Bad:
        FROM scratch
        ENV ROOT=/opt BIN=$ROOT/bin

    Good:
        FROM scratch
        ENV ROOT=/opt
        ENV BIN=$ROOT/bin
    """
    defined: dict[str, set[str]] = {}
    for stage in subject.plan.dockerfile.stages:
        before = set(defined.get(stage.from_.image.text.lower(), set())) | {"PATH", "HOME"}
        for instruction in stage.instructions:
            if not isinstance(instruction, Env):
                before |= {pair.name for pair in getattr(instruction, "pairs", ())}
                continue
            own: set[str] = set()
            for pair in instruction.pairs:
                used = _used(pair, subject.plan.dockerfile.directives.escape)
                for name in sorted((used & own) - before):
                    message = f"{name} is not set yet where {pair.name} uses it"
                    yield subject.finding("EnvRefersToItself", message, pair.span, f"write ENV {pair.name}=... below")
                own.add(pair.name)
            before |= own
        if stage.name:
            defined[stage.name] = before


def _used(pair: Pair, escape: str) -> frozenset[str]:
    try:
        found = expand_with_names(pair.value or "", {}, escape)
    except WordError:
        return frozenset()
    return frozenset(found.used) | frozenset(found.missing)


# ---------------------------------------------------------------- HEALTHCHECK


def healthcheck_missing(subject: Subject) -> Iterator[Finding]:
    """An image of a service should have a HEALTHCHECK.

    Why: without one nobody asks whether it still answers. Off unless it is selected: Kubernetes has its own, and OCI
    images know of none.

    Bad:
        FROM debian:12
        CMD ["server"]

    Good:
        FROM debian:12
        HEALTHCHECK CMD ["server", "--check"]
        CMD ["server"]
    """
    for stage in subject.plan.dockerfile.stages[-1:]:
        chain = subject.shipped()
        stages = [each for each in subject.plan.dockerfile.stages if each.index in chain]
        if not any(isinstance(item, Healthcheck) for each in stages for item in each.instructions):
            yield subject.finding("HealthcheckMissing", "the image has no HEALTHCHECK", stage.from_.span)


# ---------------------------------------------------------------- LABEL

_KEY: Final = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+|_[a-z0-9]+)*\Z")
_RESERVED: Final = ("com.docker.", "io.docker.", "org.dockerproject.")
_KINDS: Final[dict[str, tuple[re.Pattern[str], str]]] = {
    "url": (re.compile(r"[a-z][a-z0-9+.-]*://\S+\Z", re.IGNORECASE), "a URL"),
    "rfc3339": (
        re.compile(
            r"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-6][0-9](?:\.[0-9]+)?"
            r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
        ),
        "a time such as 2026-01-31T12:00:00Z",
    ),
    "semver": (
        re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*)){2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?\Z"),
        "a version such as 1.2.3",
    ),
    "hash": (re.compile(r"(?:[0-9a-f]{7}|[0-9a-f]{40}|[0-9a-f]{64})\Z"), "a git commit's hash"),
    "email": (re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z"), "an address"),
    "spdx": (
        re.compile(r"\(*[A-Za-z0-9.+-]+(?::[A-Za-z0-9.+-]+)?\)*(?: (?:AND|OR|WITH) \(*[A-Za-z0-9.+:-]+\)*)*\Z"),
        "an SPDX expression such as Apache-2.0 OR MIT",
    ),
    "text": (re.compile(r"[\s\S]"), "some text"),
}
"""How a label's value of each type looks, and what to call it."""
_WELL_KNOWN: Final = {
    "org.opencontainers.image.created": "rfc3339",
    "org.opencontainers.image.url": "url",
    "org.opencontainers.image.documentation": "url",
    "org.opencontainers.image.source": "url",
    "org.opencontainers.image.licenses": "spdx",
}
"""https://github.com/opencontainers/image-spec/blob/main/annotations.md."""


def invalid_label_key(subject: Subject) -> Iterator[Finding]:
    """A label's key should be lower-case letters, digits, dots and hyphens.

    Why: so it can be written everywhere without quotes; some prefixes are Docker's own.

    Bad:
        FROM scratch
        LABEL Build_=1

    Good:
        FROM scratch
        LABEL com.example.build=1
    """
    for pair, key, _ in _labels(subject):
        if "$" in key:
            continue
        if key.startswith(_RESERVED):
            message = f"labels that begin with {key.split('.')[0]}.{key.split('.')[1]} are Docker's own"
            yield subject.finding("InvalidLabelKey", message, pair.span, "use a name of your own domain")
        elif not _KEY.match(key):
            message = f"the label {key} is more than lower-case letters, digits, dots and hyphens"
            yield subject.finding("InvalidLabelKey", message, pair.span)


def invalid_label_value(subject: Subject) -> Iterator[Finding]:
    """A label's value should be of the label's type.

    Why: programs read it. The types of OCI's own labels are known; `required-labels` in the configuration says others.

    Bad:
        FROM scratch
        LABEL org.opencontainers.image.created=yesterday

    Good:
        FROM scratch
        LABEL org.opencontainers.image.created=2026-01-31T12:00:00Z
    """
    kinds = _WELL_KNOWN | dict(subject.options.labels)
    for pair, key, value in _labels(subject):
        if "$" in value or key not in kinds:
            continue
        pattern, called = _KINDS[kinds[key]]
        if not pattern.match(value):
            message = f"{key} is {value!r}, which is not {called}" if value else f"{key} is empty"
            yield subject.finding("InvalidLabelValue", message, pair.span, f"write {called}")


def required_label_missing(subject: Subject) -> Iterator[Finding]:
    """Labels that are required should be there.

    Why: the configuration asks for them: `required-labels = {"org.opencontainers.image.source" = "url"}`. Nothing is
    said where it does not.
    """
    if not subject.options.labels or not subject.plan.dockerfile.stages:
        return
    chain = subject.shipped()
    there = {key for pair, key, _ in _labels(subject, chain)}
    for key, kind in subject.options.labels:
        if key not in there:
            span = subject.plan.dockerfile.stages[-1].from_.span
            message = f"the label {key} is missing"
            yield subject.finding("RequiredLabelMissing", message, span, f"write LABEL {key}={kind.upper()}")


def superfluous_label(subject: Subject) -> Iterator[Finding]:
    """Labels should be those that are required, and no others.

    Why: the configuration asks for it: `strict-labels = true`. Nothing is said where it does not.
    """
    if not subject.options.only_labels:
        return
    allowed = {key for key, _ in subject.options.labels}
    for pair, key, _ in _labels(subject):
        if key not in allowed and "$" not in key:
            yield subject.finding("SuperfluousLabel", f"the label {key} is not one of those required", pair.span)


def _labels(subject: Subject, stages: frozenset[int] | None = None) -> Iterator[tuple[Pair, str, str]]:
    """Every label with its key and value as they come out, variables of the file left as they are."""
    values: Mapping[str, str] = {}
    escape = subject.plan.dockerfile.directives.escape
    for stage in subject.plan.dockerfile.stages:
        if stages is not None and stage.index not in stages:
            continue
        for instruction in stage.instructions:
            if not isinstance(instruction, Label):
                continue
            for pair in instruction.pairs:
                key, value = pair.name, pair.value or ""
                try:
                    key = key if "$" in key else expand_with_names(key, values, escape).text
                    value = value if "$" in value else expand_with_names(value, values, escape).text
                except WordError:
                    continue
                yield pair, key, value


RULES = (
    Rule("UntaggedBase", "A base image should be named with its tag or digest", untagged_base, aliases=("DL3006",)),
    Rule("LatestBase", "A base image should not be `latest`", latest_base, aliases=("DL3007",)),
    Rule(
        "UntrustedRegistry",
        "Base images should come from the registries that are allowed",
        untrusted_registry,
        aliases=("DL3026",),
        severity=Severity.ERROR,
    ),
    Rule("LastUserRoot", "The last USER should not be root", last_user_root, aliases=("DL3002",), whole=True),
    Rule(
        "NamedUser",
        "USER should be a number",
        named_user,
        aliases=("DL3066",),
        severity=Severity.INFO,
        whole=True,
    ),
    Rule(
        "EnvRefersToItself",
        "A variable should not be used in the ENV that sets it",
        env_refers_to_itself,
        aliases=("DL3044",),
        whole=True,
    ),
    Rule(
        "HealthcheckMissing",
        "An image of a service should have a HEALTHCHECK",
        healthcheck_missing,
        optional=True,
        aliases=("DL3057",),
        severity=Severity.INFO,
        whole=True,
    ),
    Rule(
        "InvalidLabelKey",
        "A label's key should be lower-case letters, digits, dots and hyphens",
        invalid_label_key,
        aliases=("DL3048",),
        severity=Severity.INFO,
    ),
    Rule(
        "InvalidLabelValue",
        "A label's value should be of the label's type",
        invalid_label_value,
        aliases=("DL3051", "DL3052", "DL3053", "DL3054", "DL3055", "DL3056", "DL3058"),
    ),
    Rule(
        "RequiredLabelMissing",
        "Labels that are required should be there",
        required_label_missing,
        aliases=("DL3049",),
        whole=True,
    ),
    Rule(
        "SuperfluousLabel",
        "Labels should be those that are required, and no others",
        superfluous_label,
        aliases=("DL3050",),
        severity=Severity.INFO,
    ),
)

"""Who is meant by `COPY --from=NAME` and `RUN --mount=from=NAME`: a stage, a named context or an image.

COPY may name a stage by its number, and, beyond what BuildKit allows, by global ARGs: `COPY --from=$TOOLS`. A mount's
`from` has neither, as in BuildKit. A stage's name hides a context's, a context's hides an image's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from builder.errors import BuildError
from builder.model import CONTEXT, Origin, Scope
from cache.errors import StoreError
from grammar.instructions import Copy, Instruction, Run, Word
from grammar.mounts import mount_fields
from grammar.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grammar.source import Span

_NUMBER = re.compile(r"[+-]?\d+")
_PLAIN = re.compile(r"[^$'\"\\`]*")


class Use(Struct, frozen=True):
    """A name that an instruction takes files from. mount: the target of the mount that does, None for a COPY."""

    name: str
    span: Span
    mount: str | None = None


def uses(instruction: Instruction) -> tuple[Use, ...]:
    """The names that `instruction` takes files from, as written."""
    match instruction:
        case Copy(from_=Word() as word) if word.text:
            return (Use(word.text, word.span),)
        case Run(mounts=mounts):
            found = ((word.span, mount_fields(word.text)) for word in mounts)
            named = ((mount_from(fields), span, target_of(fields)) for span, fields in found)
            return tuple(Use(name, span, target) for name, span, target in named if name)
        case _:
            return ()


def mount_from(fields: Iterable[str]) -> str:
    """The `from` of a mount, as written, or empty. The last one counts."""
    return _last(fields, {"from"})


def target_of(fields: Iterable[str]) -> str:
    """The target of a mount, as written, or empty."""
    return _last(fields, {"target", "dst", "destination"})


def _last(fields: Iterable[str], keys: set[str]) -> str:
    found = ""
    for field in fields:
        key, equals, value = field.partition("=")
        if equals and key.lower() in keys:
            found = value
    return found


def resolve(use: Use, scope: Scope) -> Origin:
    """Where the files come from.

    BuildError: a variable that is no global ARG, a number without a stage, the stage itself or a later one, a name that
    can not be an image's.
    """
    index = stage_named(use, scope)
    if index is not None:
        check_earlier(index, use, scope)
        return Origin(stage=index)
    name = expanded(use, scope)
    if not name:
        return CONTEXT
    context = context_named(name, scope)
    if context is not None:
        return Origin(context=context)
    check_reference(name, use.span, scope)
    return Origin(image=name)


def stage_named(use: Use, scope: Scope) -> int | None:
    """The index of the stage that is meant, be it earlier or later; None when it is none."""
    name = expanded(use, scope)
    if use.mount is None and _NUMBER.fullmatch(name):
        index = int(name)
        if not 0 <= index < len(scope.titles):
            last = len(scope.titles) - 1
            msg = f"invalid stage index {index}: there is no such stage"
            hint = f"stages are numbered from 0 to {last}" if last else "stage 0 is the only one"
            raise BuildError(msg, span=use.span, source=scope.source, hint=hint)
        return index
    return scope.names.get(name.lower())


def check_earlier(index: int, use: Use, scope: Scope) -> None:
    """BuildError unless the stage comes before the one that uses it."""
    if index < scope.stage:
        return
    this, other = scope.titles[scope.stage], scope.titles[index]
    act = f'copy from stage "{other}"' if use.mount is None else f'mount from stage "{other}" to "{use.mount}"'
    if index == scope.stage:
        msg = f"cannot {act}: it is the current stage, which would be a circular dependency"
        hint = "files of the stage itself are there already; use RUN cp or RUN ln"
    else:
        msg = f'cannot {act}: it needs to be defined before the current stage "{this}"'
        hint = f'move the stage "{other}" up, above "{this}"'
    raise BuildError(msg, span=use.span, source=scope.source, hint=hint)


def expanded(use: Use, scope: Scope) -> str:
    """The name with the global ARGs put in (COPY), or as it is (a mount)."""
    if use.mount is not None:
        return use.name
    if _PLAIN.fullmatch(use.name):
        return use.name
    from grammar.words import WordError, expand_with_names

    try:
        found = expand_with_names(use.name, scope.global_args, scope.escape)
    except WordError as error:
        raise BuildError(f"--from={use.name}: {error}", span=use.span, source=scope.source) from None
    if found.missing:
        name = min(found.missing)
        msg = f"variable expansion in --from knows only global ARGs, and {name} is not one"
        hint = did_you_mean(name, scope.global_args) or f"declare ARG {name} before the first FROM"
        raise BuildError(msg, span=use.span, source=scope.source, hint=hint)
    if not found.text:
        msg = f"--from={use.name} is empty after expansion"
        raise BuildError(msg, span=use.span, source=scope.source, hint="give the ARG a default, or use --build-arg")
    return found.text


def context_named(name: str, scope: Scope) -> str | None:
    """The named context that stands in for the image `name`, as the user wrote it; None when there is none."""
    return scope.contexts.get(familiar(name)) if scope.contexts else None


def familiar(name: str) -> str:
    """`name` in the one spelling by which images and named contexts are compared, even when it can be no image's."""
    from cache.reference import Reference

    if name.lower() in {"scratch", "context"}:
        return ""
    try:
        return Reference.parse(name).familiar.removesuffix(":latest")
    except StoreError:
        return name


def check_reference(name: str, span: Span, scope: Scope) -> None:
    """BuildError when `name` is no image reference."""
    from cache.reference import Reference

    if name == "scratch":
        return
    try:
        Reference.parse(name)
    except StoreError as error:
        hint = error.hint or did_you_mean(name, scope.names)
        if name.lower() in scope.names:
            hint = f"the stage is called {name.lower()}"
        raise BuildError(
            f"invalid reference {name!r}: {error.message}", span=span, source=scope.source, hint=hint
        ) from None

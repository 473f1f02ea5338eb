"""`pybuild ignore`: which line of the ignore file decides about a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from builder.cli.flags import Command, Flag, UsageError

if TYPE_CHECKING:
    from builder.cli.flags import Given
    from builder.cli.surroundings import Surroundings
    from grammar.ignore import Ignore

IGNORE = Command(
    name="ignore",
    usage="[OPTIONS] PATH...",
    summary="Say for each path whether a build sees it, and which line of the ignore file decided.",
    words=(1, -1),
    flags=(
        Flag("context", "the build context (default: the current folder)", "C", "DIR"),
        Flag("file", "the Dockerfile, whose own <Dockerfile>.dockerignore goes first", "f", "PATH"),
        Flag("ignorefile", "the ignore file", value="FILE"),
    ),
    notes="""\
One line for each path: `in` or `out`, the path, and the deciding line. Paths are relative to the context; they need not
exist. The Dockerfile and the ignore file are read from the context even when they are out.""",
)


def ignore(given: Given, around: Surroundings) -> int:
    """Print the decisions."""
    from grammar.ignore import Ignore

    context = Path(given.one("context", "."))
    if not context.is_dir():
        raise UsageError(f"there is no folder {context}", hint="--context names the build context")
    file = _ignore_file(context, given)
    rules = Ignore.parse(file.read_text(encoding="utf-8", errors="surrogateescape"), str(file)) if file else None
    for word in given.words:
        path = _inside(word, context)
        rule = rules.decide(path) if rules and path else None
        if rule is None:
            around.say(f"in   {word}" + ("" if rules else "   (there is no ignore file)"))
        else:
            decided = f"{'in' if rule.negated else 'out':<4} {word}   {file}:{rule.line}: {rule.text.strip()}"
            around.say(
                decided + ("" if rule.negated or _prunable(rules, path) else "   (a ! line may bring back parts)")
            )
    return 0


def _prunable(rules: Ignore | None, path: str) -> bool:
    return rules is None or rules.prunable(path)


def _ignore_file(context: Path, given: Given) -> Path | None:
    """--ignorefile, else <Dockerfile>.dockerignore, else the context's .dockerignore; None when there is none."""
    if given.has("ignorefile"):
        return Path(given.one("ignorefile"))
    named = given.one("file")
    usual = [context / name for name in ("Dockerfile", "dockerfile")]
    dockerfile = Path(named) if named else next((path for path in usual if path.is_file()), usual[0])
    for candidate in (Path(f"{dockerfile}.dockerignore"), context / ".dockerignore"):
        if candidate.is_file():
            return candidate
    return None


def _inside(word: str, context: Path) -> str:
    """The path relative to the context; empty for the context itself."""
    whole = os.path.abspath(word) if os.path.isabs(word) else os.path.abspath(context / word)
    relative = os.path.relpath(whole, os.path.abspath(context))
    if relative.split("/", 1)[0] == "..":
        raise UsageError(f"{word} is outside of the context {context}")
    return "" if relative == "." else relative

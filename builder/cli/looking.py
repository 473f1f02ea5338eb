"""What `pybuild lint`, its `--fix` and `pybuild build --lint` share: settings found, and a build file looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from builder.cli.flags import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from builder.cli.surroundings import Surroundings
    from builder.context import Contexts
    from builder.lint.settings import Known, Settings
    from builder.model import BuildRequest, Finding, LintUse
    from builder.survey import Glance


def lint_use(request: BuildRequest, around: Surroundings) -> LintUse:
    """What a build with --lint is to go by: the settings of its context's folder, below the flags. UsageError."""
    from builder.lint import known
    from builder.lint.settings import Settings, SettingsError, budget

    folder = Path(request.context)
    try:
        settings = configured(folder if folder.is_dir() else Path(), None, known(), around) or Settings()
        return replace(request.lint, settings=settings, budget=budget(settings, request.lint.budget))
    except SettingsError as error:
        raise UsageError(error.message, hint=error.hint) from None


def configured(folder: Path, chosen: Path | None, known: Known, around: Surroundings) -> Settings | None:
    """The nearest settings from a folder upwards to its repository's root.

    In one folder pybuild's own go before hadolint's. Those that can not be read are no mistake of whoever wrote them
    for hadolint, so that is told, and they do not count.
    """
    from builder.lint import hadolint
    from builder.lint.settings import FILES, SettingsError, read_config

    if chosen is not None:
        found = read_config(_text(chosen), str(chosen), known)
        if found is None:
            raise UsageError(f"{chosen} has no settings of pybuild lint", hint="[tool.pybuild.lint], or [lint]")
        return found
    here = folder.resolve()
    for each in (here, *here.parents):
        for name in FILES:
            path = each / name
            if path.is_file():
                found = read_config(_text(path), os.path.relpath(path), known)
                if found is not None:
                    return found
        for name in hadolint.FILES:
            path = each / name
            if path.is_file():
                try:
                    return hadolint.read(_text(path), os.path.relpath(path), known)
                except SettingsError as error:
                    print(f"note: {error.message}; nothing of it counts: {error.hint}", file=around.stderr)
        if (each / ".git").exists():
            break
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="--config names the file with settings") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8", hint="TOML is") from None


def contexts_of(request: BuildRequest, around: Surroundings) -> Contexts:
    """The context and the text of the build file."""
    from builder.context import open_contexts

    return open_contexts(
        request.context,
        request.file,
        around.stdin,
        named=request.build_contexts,
        ignore_file=request.ignore_file,
    )


def judged(
    seen: Glance, settings: Settings, known: Known, others: Sequence[Finding] = (), looked: Iterable[str] = ()
) -> list[Finding]:
    """What rules on the syntax have to say of a file that was looked at, and what `others`, who `looked`, have."""
    from builder.lint import RULES, look
    from builder.lint.settings import judge

    found, ran = look(seen.subject, settings, seen.checks)
    errors = [rule.name for rule in RULES] if seen.checks.error else []
    dockerfile = seen.subject.plan.dockerfile
    return judge([*found, *others], settings, dockerfile, ran={*ran, *looked}, known=known, errors=errors)

"""Words of one instruction, expanded with the variables of the stage as they were before it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from builder.errors import BuildError
from builder.model import Finding, Scope, StageState
from grammar.suggest import did_you_mean
from grammar.words import Expansion, WordError, expand_heredoc, expand_with_names, expand_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from grammar.instructions import Heredoc, Pair, Word
    from grammar.source import Span

_Found = TypeVar("_Found")

_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_HARMLESS = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)

MASK = "***"
"""What stands for a secret's value wherever it would be kept or shown."""


def looks_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret: BuildKit's check SecretsUsedInArgOrEnv."""
    return _SECRET.search(name) is not None and _HARMLESS.search(name) is None


def masked(name: str, value: str) -> str:
    """The value, or a mask when the name says that it is a secret."""
    return MASK if value and looks_secret(name) else value


class Expander:
    """Expands the words of one instruction, and gathers what is to be said about them. One life: one instruction."""

    def __init__(self, state: StageState, scope: Scope) -> None:
        self.environment = dict(state.environment)
        self.scope = scope
        self.findings: list[Finding] = []
        self.secrets: set[str] = set()
        self._declared = {name for name, _ in state.args}

    def word(self, word: Word | None) -> str:
        """One word as one text; empty for None."""
        return "" if word is None else self.text(word.text, word.span)

    def text(self, text: str, span: Span) -> str:
        """As `word`, for a text that stands at `span`."""
        return self._note(
            self._try(lambda: expand_with_names(text, self.environment, self.scope.escape), text, span), span
        )

    def pairs(self, pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
        """Names and values of ENV or LABEL, all expanded with what held before the instruction."""
        return [(self.text(pair.name, pair.span), self.text(pair.value or "", pair.span)) for pair in pairs]

    def split(self, word: Word) -> list[str]:
        """One word as the words that it is after expansion. As in BuildKit, no name in it is called undefined."""
        return self._try(lambda: expand_words(word.text, self.environment, self.scope.escape), word.text, word.span)

    def body(self, heredoc: Heredoc) -> str:
        """A here-document's body: expanded unless its delimiter is quoted."""
        if not heredoc.expand:
            return heredoc.body
        return self._note(
            self._try(lambda: expand_heredoc(heredoc.body, self.environment), "", heredoc.span), heredoc.span
        )

    def masked(self, text: str) -> str:
        """`text` without the values of secrets that went into the words expanded so far."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text

    def _note(self, found: Expansion, span: Span) -> str:
        self.secrets |= {self.environment[name] for name in found.used if looks_secret(name)} - {""}
        for name in sorted(found.missing - self._declared):
            hint = did_you_mean(name, self.environment, prefix="$")
            self.findings.append(
                Finding("UndefinedVar", f"Usage of undefined variable '${name}'", span, self.scope.source, hint)
            )
        return found.text

    def _try(self, act: Callable[[], _Found], text: str, span: Span) -> _Found:
        try:
            return act()
        except WordError as failure:
            what = f"failed to process {text!r}: " if text else ""
            # Only a word that stands in the file as it is has the place of the mistake inside of it.
            if span.line == span.end_line and span.end_column - span.column == len(text):
                span = replace(span, column=span.column + min(failure.offset, len(text) - 1))
            raise BuildError(what + failure.message, span=span, source=self.scope.source) from None


def error(scope: Scope, message: str, span: Span, hint: str = "") -> BuildError:
    """A BuildError at a place in the scope's text."""
    return BuildError(message, span=span, source=scope.source, hint=hint)

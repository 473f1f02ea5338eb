"""hadolint's own configuration, as far as it can be read without a library for YAML. Pure.

What people write there is lists and maps of plain words, in block form or `[a, b]`: that is read, and anything else is
refused with its line, rather than guessed at. https://github.com/hadolint/hadolint#configure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from builder.lint.settings import LABEL_TYPES, Known, Settings, SettingsError, level, threshold
from builder.lint.subject import Options
from builder.model import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES: Final = (".hadolint.yaml", ".hadolint.yml")

_LINE: Final = re.compile(r"(?P<indent> *)(?:(?P<dash>- +|-\Z))?(?P<rest>.*)\Z")
_KEY: Final = re.compile(r"(?P<key>[A-Za-z0-9_.\"'/-]+):(?: +(?P<value>.*))?\Z")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./*:@-][^#{}\[\],&|>%`\"']*\Z")
_WITHOUT_EFFECT: Final = frozenset({"format", "no-color", "verbose", "disable-ignore-pragma", "no-fail"})

Tree = dict[str, "str | list[str] | Tree"]


def read(text: str, name: str, known: Known) -> Settings:
    """What of the settings pybuild has, too. SettingsError, with the line, for what can not be read."""
    tree = _tree(text, name)
    ignored = _names(tree, "ignored", name)
    severities: list[tuple[str, Severity]] = []
    override = tree.get("override", {})
    if not isinstance(override, dict):
        raise SettingsError(f"{name}: override is no map")
    for key in override:
        for rule in _names(override, key, name):
            severities += [(each, level(key)) for each in sorted(known.resolve(rule))]
    labels = tree.get("label-schema", {})
    if not isinstance(labels, dict):
        raise SettingsError(f"{name}: label-schema is no map")
    schema = []
    for label, kind in labels.items():
        if kind not in LABEL_TYPES:
            raise SettingsError(
                f"{name}: label {label} has the unknown type {kind}", f"one of {', '.join(LABEL_TYPES)}"
            )
        schema.append((label, str(kind)))
    for key in tree.keys() - _READ - _WITHOUT_EFFECT:
        raise SettingsError(f"{name}: {key} is not known here", "write what is meant into .pybuild.toml")
    limit = tree.get("failure-threshold", "")
    strict = tree.get("strict-labels", "false")
    return Settings(
        ignore=known.resolve_all(ignored),
        severities=tuple(severities),
        fail_on=_threshold(str(limit)) if limit else Severity.WARNING,
        options=Options(tuple(_names(tree, "trustedRegistries", name)), tuple(schema), strict == "true"),
    )


_READ: Final = frozenset({
    "ignored", "override", "label-schema", "failure-threshold", "strict-labels", "trustedRegistries",
})  # fmt: skip


def _threshold(text: str) -> Severity | None:
    return None if text == "ignore" else threshold(text)


def _names(tree: Tree, key: str, name: str) -> list[str]:
    found = tree.get(key, [])
    if not isinstance(found, list):
        raise SettingsError(f"{name}: {key} is no list")
    return found


def _tree(text: str, name: str) -> Tree:
    """Maps of words, of lists of words, and of such maps."""
    rows = list(_rows(text, name))
    tree = _map(rows, 0, name)
    if rows:
        raise _unread(name, rows[0].number)
    return tree


def _rows(text: str, name: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        bare = re.sub(r"(?:\A|\s+)#.*\Z", "", line).rstrip()
        if not bare or (bare in {"---", "..."} and number == 1):
            continue
        found = _LINE.match(bare)
        if found is None or "\t" in bare[: len(bare) - len(bare.lstrip())]:
            raise _unread(name, number)
        yield _Row(number, len(found["indent"]), found["dash"] is not None, found["rest"].strip())


class _Row(NamedTuple):
    """A line that says something. item: it is one of a list."""

    number: int
    indent: int
    item: bool
    text: str


def _map(rows: list[_Row], indent: int, name: str) -> Tree:
    """The map that stands at an indent; its rows are taken away."""
    tree: Tree = {}
    while rows and rows[0].indent == indent and not rows[0].item:
        row = rows.pop(0)
        number, rest = row.number, row.text
        found = _KEY.match(rest)
        if found is None:
            raise _unread(name, number)
        key = found["key"].strip("\"'")
        if found["value"]:
            tree[key] = _value(found["value"], name, number)
        else:
            tree[key] = _below(rows, indent, name)
    return tree


def _below(rows: list[_Row], indent: int, name: str) -> list[str] | Tree:
    """What stands below a key: a list, a map, or nothing, which is an empty list."""
    if not rows or rows[0].indent < indent:
        return []
    at = rows[0].indent
    if not rows[0].item:
        return _map(rows, at, name) if at > indent else []
    items: list[str] = []
    while rows and rows[0].item and rows[0].indent == at:
        row = rows.pop(0)
        items.append(_word(row.text, name, row.number))
    return items


def _value(text: str, name: str, number: int) -> str | list[str]:
    if text.startswith("[") and text.endswith("]"):
        return [_word(part.strip(), name, number) for part in text[1:-1].split(",") if part.strip()]
    return _word(text, name, number)


def _word(text: str, name: str, number: int) -> str:
    quoted = re.fullmatch(r"\"([^\"\\]*)\"|'([^']*)'", text)
    if quoted:
        return quoted[1] or quoted[2] or ""
    if not _PLAIN.match(text) or ": " in text:
        raise _unread(name, number)
    return text


def _unread(name: str, number: int) -> SettingsError:
    hint = "lists and maps of plain words are read; write it so, or into .pybuild.toml"
    return SettingsError(f"{name}:{number}: this can not be read", hint)

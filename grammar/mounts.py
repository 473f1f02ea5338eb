"""The fields of a `--mount` value, which lowering reads again once variables are expanded."""

from __future__ import annotations


def mount_fields(text: str) -> list[str]:
    """The comma-separated fields of a `--mount` value; double quotes hold commas together. Raises ValueError."""
    if not text:
        raise ValueError("it is empty")
    fields: list[str] = []
    at = 0
    while True:
        if text.startswith('"', at):
            end = at + 1
            while (end := text.find('"', end)) >= 0 and text.startswith('""', end):
                end += 2
            if end < 0 or text[end + 1 : end + 2] not in ("", ","):
                raise ValueError('extraneous or missing " in quoted-field')
            fields.append(text[at + 1 : end].replace('""', '"'))
            at = end + 1
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            if '"' in text[at:end]:
                raise ValueError('bare " in non-quoted field')
            fields.append(text[at:end])
            at = end
        if at >= len(text):
            return fields
        at += 1

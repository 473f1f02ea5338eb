"""hadolint's configuration: what is read of it, and what is refused."""

from __future__ import annotations

import pytest

from builder.lint import every
from builder.lint.hadolint import read
from builder.lint.settings import Known, SettingsError
from builder.model import Severity

EVERY = every()
KNOWN = Known(EVERY, [rule.name for rule in EVERY if rule.optional])

WHOLE = """\
---
# what is ours
failure-threshold: error   # and no less
format: tty
ignored:
  - DL3008
  - "SC2086"
  # none
  - 'DL3004'
override:
  error:
  - DL3007
  info: [DL3006, DL3015]
trustedRegistries:
- docker.io
- "*.example.com"
- my-company.com:5000
label-schema:
  author: text
  org.opencontainers.image.created: rfc3339
strict-labels: true
"""


def test_a_whole_file() -> None:
    found = read(WHOLE, ".hadolint.yaml", KNOWN)
    assert found.fail_on is Severity.ERROR
    assert found.ignore == frozenset({"UnpinnedSystemPackage", "SC2086", "SudoInRun"})
    assert dict(found.severities) == {
        "LatestBase": Severity.ERROR, "UntaggedBase": Severity.INFO, "RecommendedPackages": Severity.INFO,
    }  # fmt: skip
    assert found.options.registries == ("docker.io", "*.example.com", "my-company.com:5000")
    assert found.options.labels == (("author", "text"), ("org.opencontainers.image.created", "rfc3339"))
    assert found.options.only_labels


@pytest.mark.parametrize("text", ["", "# nothing\n", "ignored: []\n", "ignored:\n", "no-fail: true\n"])
def test_next_to_nothing(text: str) -> None:
    if text == "ignored:\n":
        assert read(text, "h", KNOWN).ignore == frozenset()
    else:
        assert read(text, "h", KNOWN).severities == ()


def test_no_threshold() -> None:
    assert read("failure-threshold: ignore", "h", KNOWN).fail_on is None
    assert read("failure-threshold: style", "h", KNOWN).fail_on is Severity.INFO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ignored:\n  - {a: b}\n", "h:2: this can not be read"),
        ("ignored: &x\n  - DL3008\n", "h:1: this can not be read"),
        ("ignored:\n  - a: b\n", "h:2: this can not be read"),
        ("ignored: |\n  x\n", "h:1: this can not be read"),
        ("\tignored:\n", "h:1: this can not be read"),
        ("just words\n", "h:1: this can not be read"),
        ("ignored:\n  - DL3008\n - DL3009\n", "h:3: this can not be read"),
        ("ignored: DL3008\n", "h: ignored is no list"),
        ("override: x\n", "h: override is no map"),
        ("ignored:\n  - DL9999\n", "there is no rule DL9999"),
        ("unknown: x\n", "h: unknown is not known here"),
        ("label-schema:\n  a: b\n", "h: label a has the unknown type b"),
        ("override:\n  bad:\n    - DL3008\n", "'bad' is no severity"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text, "h", KNOWN)
    assert caught.value.message == message

"""Image references: every spelling, every default, every refusal with a hint."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cache.errors import StoreError
from cache.reference import Reference

HEX = "a" * 64

# text | full | familiar
SPELLINGS = f"""
app                             | docker.io/library/app:latest             | app:latest
app:1.0                         | docker.io/library/app:1.0                | app:1.0
docker.io/app                   | docker.io/library/app:latest             | app:latest
docker.io/library/app:1.0       | docker.io/library/app:1.0                | app:1.0
index.docker.io/app             | docker.io/library/app:latest             | app:latest
me/app                          | docker.io/me/app:latest                  | me/app:latest
library/a/b                     | docker.io/library/a/b:latest             | library/a/b:latest
ghcr.io/me/app:v1               | ghcr.io/me/app:v1                        | ghcr.io/me/app:v1
localhost/app                   | localhost/app:latest                     | localhost/app:latest
localhost:5000/app              | localhost:5000/app:latest                | localhost:5000/app:latest
127.0.0.1:5000/app:x            | 127.0.0.1:5000/app:x                     | 127.0.0.1:5000/app:x
[::1]:5000/app                  | [::1]:5000/app:latest                    | [::1]:5000/app:latest
Registry/app                    | Registry/app:latest                      | Registry/app:latest
docker.io/a.b/c                 | docker.io/a.b/c:latest                   | docker.io/a.b/c:latest
docker.io/library/localhost     | docker.io/library/localhost:latest       | localhost:latest
a.b/c                           | a.b/c:latest                             | a.b/c:latest
a__b.c-d--e                     | docker.io/library/a__b.c-d--e:latest     | a__b.c-d--e:latest
app@sha256:{HEX}                | docker.io/library/app@sha256:{HEX}       | app@sha256:{HEX}
app:1@sha256:{HEX}              | docker.io/library/app:1@sha256:{HEX}     | app:1@sha256:{HEX}
app:_x.Y-z                      | docker.io/library/app:_x.Y-z             | app:_x.Y-z
"""


@pytest.mark.parametrize("line", SPELLINGS.strip().splitlines())
def test_spelling(line: str) -> None:
    text, full, familiar = (part.strip() for part in line.split("|"))
    parsed = Reference.parse(text)
    assert (parsed.full, parsed.familiar) == (full, familiar)


# text | part of the message | part of the hint
REFUSALS = f"""
                    | empty                 |
App                 | repository name       | lower case: app
me/App:1.0          | repository name       | lower case: me/app:1.0
app:                | not a tag             | colon
app:-x              | not a tag             | starts with none of
app:{"x" * 129}     | not a tag             | 128
app:1.0:2           | repository name       | separators
-app                | repository name       | separators
a..b                | repository name       | separators
a//b                | repository name       | separators
app/                | repository name       | separators
app@sha256:abc      | sha256 digest         | 64
app@sha512:{HEX}    | sha256 digest         | only sha256
app@                | sha256 digest         | 64
{HEX}               | image id              | app:1.0
https://x.y/app     | host name             |
a b                 | repository name       | separators
{"x" * 256}         | longer than 255       |
exa mple.com/app    | host name             |
../app              | host name             |
"""


@pytest.mark.parametrize("line", REFUSALS.strip("\n").splitlines())
def test_refusal(line: str) -> None:
    text, message, hint = (part.strip() for part in line.split("|"))
    with pytest.raises(StoreError) as caught:
        Reference.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


PART = st.from_regex(r"[a-z0-9]{1,5}(?:(?:\.|_|__|-)[a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(
    st.sampled_from(["", "docker.io/", "localhost/", "quay.io/", "h:5000/", "[fe80::1]/"]),
    st.lists(PART, min_size=1, max_size=4),
    st.from_regex(r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?", fullmatch=True),
    st.sampled_from(["", f"@sha256:{HEX}"]),
)
def test_both_spellings_parse_to_the_same(registry: str, path: list[str], tag: str, digest: str) -> None:
    # Without a registry, a first part with a dot would be one.
    assume(registry or len(path) == 1 or "." not in path[0])
    parsed = Reference.parse(registry + "/".join(path) + tag + digest)
    assert Reference.parse(parsed.full) == parsed
    assert Reference.parse(parsed.familiar) == parsed
    assert str(parsed) == parsed.familiar


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = Reference.parse(text)
    except StoreError:
        return
    assert Reference.parse(parsed.full) == parsed

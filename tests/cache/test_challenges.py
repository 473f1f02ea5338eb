"""What servers say when they ask who is calling."""

from __future__ import annotations

import pytest

from cache.challenges import Challenge, Tokens, challenges, preferred, rights, scopes


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a.example/token?x=1",service="b.example",scope="repository:c:pull,push"'],
            [Challenge("bearer", "https://a.example/token?x=1", "b.example", ("repository:c:pull,push",))],
        ),
        (['Basic realm="a, \\"b\\" = c"'], [Challenge("basic", 'a, "b" = c')]),
        (["Basic"], [Challenge("basic")]),
        (['bearer Realm = "a" , SERVICE=b'], [Challenge("bearer", "a", "b")]),
        (['Basic realm="a", Bearer realm="b",error="insufficient_scope"'], [
            Challenge("basic", "a"), Challenge("bearer", "b", error="insufficient_scope"),
        ]),
        (["Negotiate", 'Basic realm="a"'], [Challenge("negotiate"), Challenge("basic", "a")]),
        (["", ",,", '"'], []),
        (['Bearer realm="a', ""], [Challenge("bearer")]),
    ],
)  # fmt: skip
def test_reading(headers: list[str], expected: list[Challenge]) -> None:
    assert challenges(headers) == expected


def test_tokens_before_passwords() -> None:
    assert preferred(challenges(['Basic realm="a", Bearer realm="b"'])) == Challenge("bearer", "b")
    assert preferred(challenges(["Basic", "Bearer"])) == Challenge("basic")
    assert preferred(challenges(["Negotiate"])) is None


def test_scopes_are_gathered_by_resource() -> None:
    wanted = rights(["repository:b/c:pull,push", "repository:a:pull", "repository:host:5000/d:pull"])
    assert ("repository:host:5000/d", "pull") in wanted
    assert scopes(wanted) == ["repository:a:pull", "repository:b/c:pull,push", "repository:host:5000/d:pull"]


def test_a_token_serves_what_it_covers_until_its_end() -> None:
    now = 0.0
    tokens = Tokens(lambda: now)
    tokens.keep(rights(["repository:a:pull,push"]), "one", 60)
    assert tokens.find(rights(["repository:a:pull"])) == "one"
    assert tokens.find(rights(["repository:a:delete"])) is None
    now = 56.0
    assert tokens.find(rights(["repository:a:pull"])) is None
    tokens.keep(rights([]), "two", 60)
    tokens.drop("two")
    assert tokens.find(rights([])) is None

"""What is kept of files' bytes: gathered at each way into the store, the same for each, never a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cache import layers, listings
from cache.entries import BytesContent, Entry, Kind
from cache.layers import hashed, listed_traits, listing, recorded, unpacked
from cache.store import Store
from cache.traits import Elf, Look, Traits, look, secrets_in
from tests.handmade import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.oci import Digest, Layer

KEY = b"-----BEGIN %sPRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\n-----END PRIVATE KEY-----\n"
LOADER = "/lib64/ld-linux-x86-64.so.2"
LETTERS = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAbCdEfGhIjKlMnOpQrStUvWxYz0123456789"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


# ---------------------------------------------------------------- programs and scripts


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(program(LOADER, kind=3), Elf(3, 62, LOADER), id="dynamic"),
        pytest.param(program(), Elf(2, 62), id="static"),
        pytest.param(program(debug=4096), Elf(2, 62, debug=4096), id="unstripped"),
        pytest.param(program(kind=4), Elf(4, 62), id="core dump"),
        pytest.param(program(LOADER, 22, kind=3, big=True), Elf(3, 22, LOADER, little=False), id="big-endian"),
        pytest.param(program(LOADER, kind=3)[:200], Elf(3, 62, LOADER, debug=-1), id="cut off"),
        pytest.param(b"\x7fELF\x02\x01", None, id="too short"),
        pytest.param(b"\x7fELF\x09" + bytes(80), None, id="no class"),
    ],
)
def test_programs(data: bytes, expected: Elf | None) -> None:
    found = look(b"bin/x", data)
    assert (found.elf if found else None) == expected


def test_an_elf_header_with_wild_numbers_is_no_crash() -> None:
    for at in range(16, 64):
        data = bytearray(program(debug=100))
        data[at : at + 8] = b"\xff" * 8
        look(b"x", bytes(data))


@pytest.mark.parametrize(
    ("data", "script", "crlf"),
    [
        (b"#!/bin/sh\necho\n", "/bin/sh", False),
        (b"#! /usr/bin/env  python3 -u\n", "/usr/bin/env  python3 -u", False),
        (b"#!/bin/sh\r\necho\r\n", "/bin/sh", True),
        (b"#!/bin/sh", "/bin/sh", False),
    ],
)
def test_scripts(data: bytes, script: str, crlf: bool) -> None:
    assert look(b"usr/share/x", data) == Traits(script=script, crlf=crlf)


# ---------------------------------------------------------------- keys and tokens


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (KEY % b"", "private key"),
        (KEY % b"RSA ", "private key"),
        (KEY % b"OPENSSH ", "private key"),
        ((KEY % b"").replace(b"\n", b"\\n"), "private key"),
        (KEY % b"ENCRYPTED ", "encrypted private key"),
        ((KEY % b"RSA ").replace(b"-\nM", b"-\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nM"),
         "encrypted private key"),
        (b"token=ghp_" + LETTERS[:36].encode(), "GitHub token"),
        (b"github_pat_" + (LETTERS * 2)[:60].encode(), "GitHub token"),
        (b"glpat-" + LETTERS[:20].encode(), "GitLab token"),
        (b"xoxb-123456789012-" + LETTERS[:24].encode(), "Slack token"),
        (b"hf_" + b"aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH", "Hugging Face token"),
        (b"npm_" + LETTERS[:36].encode(), "npm token"),
        (b"key: sk-" + LETTERS[:48].encode(), "API key (sk-)"),
        (b"sk-proj-" + LETTERS[:40].encode(), "API key (sk-)"),
        (b"sk_live_" + LETTERS[:24].encode(), "Stripe key"),
        (b"AKIAQ2W3E4R5T6Y7U8I9", "AWS access key"),
        (b"AIza" + LETTERS[:35].encode(), "Google API key"),
        (b"pypi-AgEIcHlwaS5vcmc" + LETTERS[:40].encode(), "PyPI token"),
    ],
)  # fmt: skip
def test_secrets_by_their_form(text: bytes, kind: str) -> None:
    found = look(b"app/config", b"some text\n" + text + b"\nmore\n")
    assert found == Traits(secrets=(kind,))
    assert LETTERS[:12] not in repr(found)


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        (b"root/.npmrc", b"//registry.example.com/:_authToken=abcdef123456\n", "npm password"),
        (b"root/.netrc", b"machine a login b password c\n", "password of .netrc"),
        (b"root/.docker/config.json", b'{"auths":{"r":{"auth":"dXNlcjpwYXNz"}}}', "registry password"),
        (b"root/.aws/credentials", b"[default]\naws_secret_access_key = abc\n", "AWS secret key"),
        (b"root/.pypirc", b"[pypi]\nusername = a\npassword = b\n", "PyPI password"),
        (b"app/.git/config", b"[remote]\n\turl = https://me:hunter2@example.com/x\n", "password in a configuration"),
    ],
)
def test_secrets_by_their_files_name(path: bytes, text: bytes, kind: str) -> None:
    assert look(path, text) == Traits(secrets=(kind,))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param(b"a", b"-----BEGIN PRIVATE KEY----- begins a key in PEM\n", id="a manual"),
        pytest.param(b"a", b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 64, id="a public key"),
        pytest.param(b"a", b"ghp_" + b"x" * 36, id="a placeholder"),
        pytest.param(b"a", b"AKIAIOSFODNN7EXAMPLE", id="the vendor's example"),
        pytest.param(b"a", b"task-aaaabbbbccccddddeeeeffffgggghhhh1234", id="a word before sk-"),
        pytest.param(b"a", b"=-----------------------------------\n" * 20, id="rulers"),
        pytest.param(b"usr/lib/python3/test/key.pem", KEY % b"", id="a package's"),
        pytest.param(b"app/node_modules/a/test/key.pem", KEY % b"", id="a module's"),
        pytest.param(b"a", b"\0" + KEY % b"", id="a binary file"),
        pytest.param(b"root/.npmrc", b"//r/:_authToken=${NPM_TOKEN}\n", id="a variable"),
        pytest.param(b"root/.npmrc", b"registry=https://example.com\n", id="no password"),
        pytest.param(b"etc/config.json", b'{"auth": ""}', id="empty"),
    ],
)
def test_what_is_no_secret(path: bytes, text: bytes) -> None:
    assert look(path, text) is None


def test_a_short_text() -> None:
    assert secrets_in("token AKIAQ2W3E4R5T6Y7U8I9") == ("AWS access key",)
    assert secrets_in("nothing") == ()


# ---------------------------------------------------------------- in pieces


@pytest.mark.parametrize("size", [1, 7, 1000, (1 << 20) - 5])
@pytest.mark.parametrize(
    "data", [b"x" * ((1 << 20) - 8) + b" AKIAQ2W3E4R5T6Y7U8I9 ", b"#!/bin/sh\necho\n"], ids=["key", "script"]
)
def test_pieces_of_any_length_say_what_the_whole_says(size: int, data: bytes) -> None:
    watch = Look(b"a")
    data = data if size > 7 else data[-1500:]
    for at in range(0, len(data), size):
        watch.add(data[at : at + size])
    assert watch.found() == look(b"a", data)


def test_a_large_programs_sections_are_seen_at_its_end() -> None:
    data = program(debug=3 << 20)
    watch = Look(b"a")
    for at in range(0, len(data), 1 << 20):
        watch.add(data[at : at + (1 << 20)])
    assert watch.found() == Traits(elf=Elf(2, 62, debug=3 << 20))


# ---------------------------------------------------------------- with the layer

ENTRIES = (
    Entry(b"bin", Kind.DIRECTORY, 0o755),
    Entry(b"bin/run", Kind.FILE, 0o755, size=10, content=BytesContent(b"#!/bin/sh\n")),
    Entry(b"etc", Kind.DIRECTORY, 0o755),
    Entry(b"etc/key", Kind.FILE, 0o644, size=len(KEY % b""), content=BytesContent(KEY % b"")),
    Entry(b"etc/plain", Kind.FILE, 0o644, size=2, content=BytesContent(b"x\n")),
)
EXPECTED = {1: Traits(script="/bin/sh"), 3: Traits(secrets=("private key",))}


def made(store: Store) -> Layer:
    return layers.write(ENTRIES, store).layer


def test_a_layer_that_is_written_has_them(store: Store) -> None:
    assert listed_traits(store, made(store)) == EXPECTED


def test_a_layer_that_came_without_gets_them_once(store: Store) -> None:
    layer = made(store)
    (path,) = (store.root / "listings").iterdir()
    path.unlink()
    assert listed_traits(store, layer) == EXPECTED
    before = path.stat().st_mtime_ns
    assert listed_traits(store, layer) == EXPECTED
    assert path.stat().st_mtime_ns == before


def test_an_older_or_damaged_listing_is_made_anew(store: Store) -> None:
    layer = made(store)
    (path,) = (store.root / "listings").iterdir()
    entries = listing(store, layer)
    for data in (b"pybuild listing 1 0\n{}", path.read_bytes()[:-1] + b" ", b""):
        path.write_bytes(data)
        assert listed_traits(store, layer) == EXPECTED
        assert listing(store, layer) == entries


def test_a_layer_that_lies_elsewhere_has_them_from_there(store: Store) -> None:
    class Elsewhere:
        def bring(self, digest: Digest, /) -> bool:
            return False

        def listing(self, layer: Layer, /) -> bytes:
            return listings.encode(hashed(ENTRIES), EXPECTED)

    layer = made(store)
    (path,) = (store.root / "listings").iterdir()
    path.unlink()
    store.elsewhere = Elsewhere()
    assert listing(store, layer) == tuple(hashed(ENTRIES))
    assert listed_traits(store, layer) == EXPECTED
    assert not path.exists()


def test_unpacking_a_layer_leaves_them(store: Store) -> None:
    layer = made(store)
    (path,) = (store.root / "listings").iterdir()
    whole = path.read_bytes()
    path.unlink()
    with unpacked(store, layer) as source:
        for entry in recorded(source.entries, store, layer):
            if entry.content is not None:
                with entry.content.open() as stream:
                    stream.read()
    assert path.read_bytes() == whole


def test_hashing_entries_gathers_them() -> None:
    seen: dict[int, Traits] = {}
    assert len(list(hashed(ENTRIES, seen))) == 5
    assert seen == EXPECTED


def test_no_value_is_kept(store: Store) -> None:
    secret = b"token AKIAQ2W3E4R5T6Y7U8I9\n"
    layers.write((Entry(b"a", Kind.FILE, 0o644, size=len(secret), content=BytesContent(secret)),), store)
    (path,) = (store.root / "listings").iterdir()
    assert b"AWS access key" in path.read_bytes()
    assert b"AKIAQ2W3" not in path.read_bytes()


def test_a_listing_gives_back_what_it_was_given() -> None:
    data = listings.encode(ENTRIES, EXPECTED)
    assert listings.decode_traits(data) == EXPECTED
    assert listings.decode_traits(listings.encode(ENTRIES)) == {}
    assert listings.decode_traits(data[:-2]) is None


def test_they_change_no_byte_of_the_layer(store: Store) -> None:
    seen: dict[int, Traits] = {}
    plain: list[bytes] = []
    looked: list[bytes] = []
    for _ in layers.pack(ENTRIES, plain.append):
        pass
    for _ in layers.pack(ENTRIES, looked.append, None, seen):
        pass
    assert plain == looked
    assert seen == EXPECTED

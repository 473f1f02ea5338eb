from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from typing import TYPE_CHECKING

import pytest

from cache import compression
from cache.compression import GZIP, NONE, Compression, decompressed
from cache.entries import BytesContent, Entry, Kind
from cache.errors import CorruptError
from cache.layers import write
from cache.oci import DOCKER_CONFIG, DOCKER_MANIFEST, LAYER_ZSTD, History, ImageConfig, Manifest, digest_of, parse_json
from cache.prune import prune
from cache.repack import Form, compress, repacked
from cache.store import Image, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.oci import Descriptor, Layer

ZSTD = Compression("zstd")
TEXT = b"".join(b"line %d of a text\n" % (number * number) for number in range(80_000))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


def layer(store: Store, data: bytes, made: Compression = GZIP) -> Layer:
    entry = Entry(b"f", Kind.FILE, 0o644, size=len(data), content=BytesContent(data))
    return write([entry], store, made).layer


def image(store: Store, *layers: Layer) -> Image:
    config = ImageConfig(diff_ids=tuple(each.diff_id for each in layers), history=tuple(History("x") for _ in layers))
    return store.put_image(config, layers)


def manifest(store: Store, descriptor: Descriptor) -> Manifest:
    return Manifest.from_json(parse_json(store.read_blob(descriptor), "the manifest"))


def plain(store: Store, descriptor: Descriptor) -> str:
    with store.open_blob(descriptor) as blob, decompressed(blob) as stream:
        return digest_of(stream.read())


# ---------------------------------------------------------------- compressors


def packed(made: Compression, data: bytes, piece: int) -> bytes:
    compressor = made.compressor()
    found = b"".join(compressor.compress(data[at : at + piece]) for at in range(0, len(data), piece))
    return found + compressor.flush()


@pytest.mark.parametrize(
    "made",
    [GZIP, Compression("gzip", 9), Compression("gzip", exact=True), ZSTD, Compression("zstd", 19), NONE],
    ids=str,
)
def test_where_the_input_is_cut_makes_no_difference(made: Compression) -> None:
    data = TEXT[:300_000] if made.level == 19 else TEXT
    whole = packed(made, data, len(data))
    assert packed(made, data, 70_001) == whole
    assert packed(made, data, 1 << 20) == whole


def test_levels_differ() -> None:
    assert len(packed(Compression("gzip", 9), TEXT, 1 << 20)) < len(packed(Compression("gzip", 1), TEXT, 1 << 20))
    assert len(packed(Compression("zstd", 9), TEXT, 1 << 20)) < len(packed(ZSTD, TEXT, 1 << 20))


@pytest.mark.parametrize("made", [GZIP, Compression("gzip", 6), Compression("gzip", exact=True)], ids=str)
def test_a_gzip_header_tells_nothing_of_when_and_where(made: Compression) -> None:
    data = packed(made, TEXT, 1 << 20)
    assert data[:4] == b"\x1f\x8b\x08\x00", "no name, no comment"
    assert data[4:8] == bytes(4), "no time"
    assert gzip.decompress(data) == TEXT


def test_the_exact_one_is_zlib() -> None:
    expected = zlib.compressobj(4, zlib.DEFLATED, 31)
    assert packed(Compression("gzip", exact=True), TEXT, 1 << 20) == expected.compress(TEXT) + expected.flush()


def test_damaged_zstd_is_damaged(tmp_path: Path) -> None:
    data = packed(ZSTD, os.urandom(5000), 5000)
    for wrong in (data[:-10], data[:2000] + b"\0\0\0\0" + data[2004:]):
        (tmp_path / "x").write_bytes(wrong)
        with (tmp_path / "x").open("rb") as stream, pytest.raises(CorruptError, match="zstd"):
            decompressed(stream).read()


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("wanted", [ZSTD, NONE, Compression("gzip", 9)], ids=str)
def test_the_same_layer_in_another_blob(store: Store, wanted: Compression) -> None:
    before = layer(store, TEXT)
    after = compress(store, before, wanted)
    assert after.diff_id == before.diff_id
    assert after.descriptor.media_type == wanted.media_type
    assert after.descriptor.digest != before.descriptor.digest
    assert plain(store, after.descriptor) == before.diff_id
    assert store.blob_path(after.descriptor.digest).stat().st_size == after.descriptor.size


def test_what_is_compressed_so_already_stays(store: Store) -> None:
    before = layer(store, TEXT)
    assert compress(store, before, GZIP) == before
    assert compress(store, before, Compression("gzip", exact=True)) == before
    forced = compress(store, before, Compression("gzip", exact=True), force=True)
    assert forced.descriptor.digest != before.descriptor.digest


def test_what_was_done_is_not_done_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layer(store, TEXT)
    first = compress(store, before, ZSTD)
    store.blob_path(before.descriptor.digest).unlink()

    def fail() -> None:
        raise AssertionError

    monkeypatch.setattr(compression, "_zstd", fail)
    assert compress(store, before, ZSTD) == first


def test_a_damaged_layer_is_found_out_and_nothing_kept(store: Store) -> None:
    before = layer(store, TEXT, NONE)
    path = store.blob_path(before.descriptor.digest)
    path.write_bytes(path.read_bytes().replace(b"line 4 ", b"line 5 ", 1))
    blobs = len(list(path.parent.iterdir()))
    with pytest.raises(CorruptError):
        compress(store, before, ZSTD)
    assert len(list(path.parent.iterdir())) == blobs
    assert not list((store.root / "tmp").iterdir())


def test_a_layer_that_lies_elsewhere_stays(store: Store) -> None:
    from msgspec.structs import replace

    before = layer(store, b"x")
    foreign = replace(before, descriptor=replace(before.descriptor, urls=("https://example.org/x",)))
    assert compress(store, foreign, ZSTD, force=True) == foreign


def test_it_goes_with_the_image(store: Store) -> None:
    one = image(store, layer(store, TEXT))
    made = manifest(store, repacked(store, one.manifest, Form(ZSTD))).layers[0]
    assert store.has(made.digest)
    store.remove(one.id)
    prune(store, every=True)
    assert not store.has(made.digest)


# ---------------------------------------------------------------- images


def test_the_layers_of_the_base_stay_unless_forced(store: Store) -> None:
    one = image(store, layer(store, b"base"), layer(store, b"own"))
    base, own = manifest(store, repacked(store, one.manifest, Form(ZSTD), 1)).layers
    assert (base.media_type.rpartition("+")[2], own.media_type) == ("gzip", LAYER_ZSTD)
    forced = manifest(store, repacked(store, one.manifest, Form(ZSTD, force=True), 1))
    assert [each.media_type for each in forced.layers] == [LAYER_ZSTD] * 2
    assert forced.config == manifest(store, one.manifest).config


def test_dockers_words(store: Store) -> None:
    one = image(store, layer(store, b"one"), layer(store, b"two", NONE))
    found = repacked(store, one.manifest, Form(docker=True))
    document = parse_json(store.read_blob(found), "the manifest")
    assert isinstance(document, dict)
    assert document["mediaType"] == found.media_type == DOCKER_MANIFEST
    assert document["config"]["mediaType"] == DOCKER_CONFIG
    assert document["config"]["digest"] == one.id
    assert [each["mediaType"] for each in document["layers"]] == [
        "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar",
    ]  # fmt: skip
    assert repacked(store, found, Form()).digest == one.manifest.digest, "and back"


def test_docker_has_no_word_for_zstd(store: Store) -> None:
    one = image(store, layer(store, b"one", ZSTD))
    with pytest.raises(CorruptError, match="no word"):
        repacked(store, one.manifest, Form(docker=True))


def test_nothing_wanted_changes_nothing(store: Store) -> None:
    one = image(store, layer(store, b"one"))
    assert repacked(store, one.manifest, Form()).digest == one.manifest.digest
    assert hashlib.sha256(store.read_blob(one.manifest)).hexdigest() == one.manifest.digest[7:]

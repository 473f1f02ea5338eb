from __future__ import annotations

import gzip
import io
import time
import zipfile

import pytest

from builder.causes import AROUND, Sample, likely, of_fact, of_name
from builder.verify import _apart


def samples(one: bytes, other: bytes) -> list[Sample]:
    return [
        Sample(start, end, one[max(start - AROUND, 0) : end + AROUND], other[max(start - AROUND, 0) : end + AROUND])
        for start, end in _apart(one, other)
    ]


def archive(second: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr(zipfile.ZipInfo("name", (2024, 1, 1, 0, 0, second)), b"data")
    return stream.getvalue()


NOW = int(time.time())


@pytest.mark.parametrize(
    "path, one, other, what",
    [
        ("x.gz", gzip.compress(b"a" * 99, mtime=1), gzip.compress(b"a" * 99, mtime=2), "gzip header"),
        ("app.jar", archive(2), archive(4), "zip"),
        ("libx.a", b"!<arch>\nx.o/  1600000001  0", b"!<arch>\nx.o/  1600000002  0", "static library"),
        ("x.tar", b"a" * 257 + b"ustar\0" + b"1" * 250, b"b" * 257 + b"ustar\0" + b"1" * 250, "tar"),
        ("m.pyc", b"\xa7\r\r\n" + bytes(4) + b"1111", b"\xa7\r\r\n" + bytes(4) + b"2222", "byte code"),
        ("log", b"built at 2024-05-06 07:08:09\n", b"built at 2024-05-06 07:08:11\n", "time of the build"),
        ("seconds", b"stamp 1700000001\n", b"stamp 1700000007\n", "time of the build"),
        ("id", b"id=0b8f3b2e-1111-4222-8333-444455556666", b"id=9c8f3b2e-1111-4222-8333-444455556666", "random id"),
        ("out", b"from /tmp/tmpab12cd/x", b"from /tmp/tmpzz98yy/x", "temporary folder"),
        ("bin", b"\1\2\3" + NOW.to_bytes(4, "little") + b"\0\0", b"\1\2\3" + (NOW - 9).to_bytes(4, "little") + b"\0\0",
         "time of the build"),
        ("prog", b"\x7fELF" + b"\xff" * 40 + b"\xfe\x01", b"\x7fELF" + b"\xff" * 40 + b"\xfe\x02", "program"),
        ("etc/ld.so.cache", b"x", b"y", "ldconfig"),
        ("etc/machine-id", b"x", b"y", "machine id"),
        ("var/log/apt/term.log", b"x", b"y", "a log"),
        ("whatever", b"x", b"y", "unknown"),
    ],
    # Some of them have the time in them, and the names of tests have to be the same in every process.
    ids=range(15),
)  # fmt: skip
def test_what_differs_tells_why(path: str, one: bytes, other: bytes, what: str) -> None:
    assert what in likely(path.encode(), one[:512], samples(one, other)).what


def test_lines_in_another_order() -> None:
    one, other = b"b\na\n", b"a\nb\n"
    assert "another order" in likely(b"list", one, samples(one, other), reordered=True).what


def test_names_and_facts() -> None:
    assert "random" in of_name(b"x/0b8f3b2e-1111-4222-8333-444455556666").what
    assert "left behind" in of_name(b"var/tmp/pip-x").what
    assert "only one" in of_name(b"usr/bin/x").what
    assert "umask" in of_fact("mode").what
    assert "unknown" in of_fact("owner").what


def test_where_bytes_differ() -> None:
    assert list(_apart(b"abc", b"abc")) == []
    assert list(_apart(b"abc", b"abd")) == [(2, 3)]
    assert list(_apart(b"a" * 50, b"b" + b"a" * 40 + b"b" + b"a" * 8)) == [(0, 1), (41, 42)]
    assert list(_apart(b"a" * 10, b"a" * 12)) == [(10, 12)]
    assert list(_apart(b"xa", b"ya" + b"z" * 20)) == [(0, 22)]

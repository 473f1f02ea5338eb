"""Why a file is not the same in two builds of one context: guesses from its name, its kind and the bytes that differ.

A guess is wrong at times, so it is called likely wherever it is shown. `likely` tries the most telling signs first:
what the format keeps at the place that differs, then what the differing text looks like, then what the path is known
for.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence


class Cause(Struct, frozen=True):
    """What it likely comes from, and what to do about it."""

    what: str
    hint: str


class Sample(Struct, frozen=True):
    """A place that differs: the offset, and the bytes there in both builds with up to `AROUND` before and after."""

    offset: int
    end: int
    first: bytes
    second: bytes


AROUND = 48
"""Bytes before and after a difference that a sample has."""

HEAD = 512
"""Bytes of a file's beginning that tell its kind."""

TIME = Cause("the time of the build", "take times from SOURCE_DATE_EPOCH, which every RUN of a reproducible build has")
RANDOM = Cause("a random id", "fix the seed, or make the id at a container's start and not in the image")
ORDER = Cause("the same lines in another order", "sort what is written: a folder's order, a hash's, or parallel jobs'")
UNKNOWN = Cause("unknown", "compare the two files: --keep DIR writes them out")


def likely(path: bytes, head: bytes, samples: Sequence[Sample], *, reordered: bool = False) -> Cause:
    """The likely cause. head: the first bytes of the file. reordered: both have the same lines."""
    return (
        _of_format(path, head, samples)
        or _of_place(path)
        or (ORDER if reordered else None)
        or _of_text(samples)
        or _of_binary(head, samples)
        or UNKNOWN
    )


_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"etc/ld\.so\.cache|var/cache/ldconfig/.*",
        "the cache of ldconfig",
        "rm -f /var/cache/ldconfig/aux-cache at the end of the RUN",
    ),
    (r"(etc/machine-id|var/lib/dbus/machine-id)", "a machine id", "empty it in the same RUN: : > /etc/machine-id"),
    (
        r"etc/ssh/ssh_host_.*",
        "keys made at the installation",
        "remove them in the same RUN; make them at a container's start",
    ),
    (r"etc/(shadow|gshadow)-?", "the day, or the salt, of a password", "useradd without a password; chage -d 0"),
    (
        r".*\.(jks|p12)|.*/cacerts",
        "a key store with times and a salt",
        "make it at a container's start, or keep it in the context",
    ),
    (
        r"var/lib/apt/lists/.*",
        "lists of packages, new each day",
        "rm -rf /var/lib/apt/lists/* in the same RUN; fix the mirror's snapshot",
    ),
    (
        r"var/cache/(apt|debconf|man|fontconfig|apk|dnf)/.*|.*/fonts/.*\.uuid",
        "a cache of the package manager",
        "remove it in the same RUN",
    ),
    (
        r"var/lib/dpkg/status.*|var/lib/rpm/.*|lib/apk/db/.*",
        "the database of packages: other versions, or times of installation",
        "name the versions of packages; fix the mirror's snapshot",
    ),
    (r"(.*/)?\.git/.*", "a checkout's own records", "name .git in .dockerignore; git clone leaves times in .git/index"),
    (
        r"(var/log/.*|.*\.log)",
        "a log",
        "remove it in the same RUN, or keep it out of the image: --mount=type=tmpfs,target=/var/log",
    ),
    (
        r"(.*/)?(\.cache|__pycache__|node_modules/\.cache)/.*",
        "a cache of the build",
        "remove it in the same RUN, or --mount=type=cache",
    ),
    (r"(tmp|var/tmp|run)/.*", "a file that was left behind", "remove it in the same RUN"),
)


def _of_place(path: bytes) -> Cause | None:
    text = path.decode("utf-8", "surrogateescape")
    for pattern, what, hint in _KNOWN:
        if re.fullmatch(pattern, text):
            return Cause(what, hint)
    return None


def _of_format(path: bytes, head: bytes, samples: Sequence[Sample]) -> Cause | None:
    """What the format has at the first place that differs."""
    if not samples:
        return None
    first = samples[0]
    if path.endswith(b".pyc"):
        if first.offset < 16:
            return Cause(
                "Python byte code with its source's time",
                "PYTHONDONTWRITEBYTECODE=1, or compile with --invalidation-mode checked-hash",
            )
        return Cause("Python byte code: the order of sets, or the path of its source", "PYTHONHASHSEED=0")
    if head.startswith(b"\x1f\x8b") and 4 <= first.offset < 8:
        return Cause("the time in a gzip header", "gzip -n")
    if head.startswith(b"\x1f\x8b") and head[3:4] and head[3] & 8 and first.offset < 64:
        return Cause("the file's name in a gzip header", "gzip -n")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Cause(
            "the times and the order of a zip's entries",
            "zip -X of sorted names, files touched to SOURCE_DATE_EPOCH; jar --date; strip-nondeterminism",
        )
    if head.startswith(b"!<arch>\n"):
        return Cause(
            "times and ids in a static library or a .deb", "ar rcsD, ranlib -D; binutils with deterministic archives"
        )
    if head[257:262] == b"ustar":
        return Cause(
            "times, owners or the order in a tar",
            "tar --sort=name --mtime=@$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner",
        )
    if head.startswith(b"SQLite format 3\0"):
        return Cause("a database with times, or pages in the order of writing", "dump and restore it, VACUUM")
    if head.startswith(b"\x89PNG") and any(b"tIME" in each.first or b"tEXt" in each.first for each in samples):
        return Cause("the time in a PNG", "leave out time chunks: convert -define png:exclude-chunks=date,time")
    if head.startswith(b"%PDF") and any(b"Date" in each.first or b"/ID" in each.first for each in samples):
        return Cause("times and an id in a PDF", "SOURCE_DATE_EPOCH for its maker; a fixed /ID")
    return None


_UUID = re.compile(rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_DATE = re.compile(
    rb"\b(?:19|20)\d\d[-/.](?:0[1-9]|1[0-2])[-/.](?:0[1-9]|[12]\d|3[01])\b|\b\d\d:\d\d:\d\d\b|"
    rb"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\w*\.? {1,2}\d{1,2}\b|\b20\d{6}T?\d{4,6}Z?\b"
)
_TEMPORARY = re.compile(rb"(?:/tmp/|/var/tmp/|tmp[._-]?)[A-Za-z0-9_]{4,}|\.(?:conda|build|cache)-[a-z0-9]{6,}")
_SECONDS = re.compile(rb"(?<!\d)1[5-9]\d{8}(?:\.\d+|\d{3}|\d{6}|\d{9})?(?!\d)")
_HEX = re.compile(rb"[0-9a-fA-F]{16,}")


def _of_text(samples: Sequence[Sample]) -> Cause | None:
    """What the text at a place that differs looks like in both builds."""
    for sample in samples:
        for pattern, cause in (
            (_UUID, RANDOM),
            (_TEMPORARY, Cause("the name of a temporary folder", "build in a folder of a fixed name")),
            (_DATE, TIME),
            (_SECONDS, TIME),
            (_HEX, Cause("a random id, or a digest of something that differs", RANDOM.hint)),
        ):
            first, second = pattern.findall(sample.first), pattern.findall(sample.second)
            if first and second and first != second:
                return cause
    return None


def _of_binary(head: bytes, samples: Sequence[Sample]) -> Cause | None:
    now = time.time()
    for sample in samples:
        at = min(AROUND, sample.offset)
        # A time that has moved on by seconds differs in its lower bytes only.
        for start in range(max(at - 3, 0), at + 1):
            for order in ("little", "big"):
                values = [int.from_bytes(each[start : start + 4], order) for each in (sample.first, sample.second)]
                if all(now - 30 * 86400 < value <= now + 60 for value in values):
                    return TIME
    if head.startswith(b"\x7fELF"):
        return Cause(
            "a build id, a build path or __DATE__ in a program",
            "-ffile-prefix-map, -Wl,--build-id=none or sha1 of equal input; gcc takes __DATE__ from SOURCE_DATE_EPOCH",
        )
    return None


def of_name(path: bytes) -> Cause:
    """Of a path that only one of the builds has."""
    found = _of_place(path)
    if found is not None:
        return found
    name = path.rpartition(b"/")[2]
    if _UUID.search(name) or _HEX.search(name) or _SECONDS.search(name) or _DATE.search(name):
        return Cause("a name with a random or a time's part", "give it a fixed name")
    if name.startswith((b"tmp", b".tmp")) or name.endswith((b".tmp", b".lock", b".pid", b"~")):
        return Cause("a file that was left behind", "remove it in the same RUN")
    return Cause("only one of the builds made it", "look at what writes it: parallel jobs, downloads, leftovers")


def of_fact(fact: str) -> Cause:
    """Of something that is told of a file beside its content: its time, mode, owner ..."""
    match fact:
        case "time":
            return Cause("the time of the build", "pybuild --reproducible, or SOURCE_DATE_EPOCH")
        case "mode":
            return Cause("the umask of the checkout", "pybuild --reproducible, or COPY --chmod")
        case _:
            return UNKNOWN

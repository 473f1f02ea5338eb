"""What the bytes of a file say of it, as far as anyone asks later: programs, scripts, keys and tokens, swap of memory.

Gathered while a layer is written, from bytes that go by anyway, and kept with the layer's listing. A value that is
secret is never kept, only what kind it is of.

What it costs was measured: most files take three searches, each of which the regular expression engine does by
`memchr` for its first byte, so 3 kB of text take 4 µs. One expression for all patterns takes four times as long, and
searching every byte of a large file would show in the time of a build: hence the limits below.
"""

from __future__ import annotations

import re

from msgspec import Struct

_SEARCHED = 4 << 20
"""So many bytes of a text are searched for keys and tokens, in a binary file none."""

_BLOCK = 1 << 20
_OVERLAP = 512
"""What a pattern may be cut by between two pieces."""

_HEAD = 1024
_ELF = b"\x7fELF"
_MARKED = (b"\x7fE", b"#!")


class Elf(Struct, frozen=True, omit_defaults=True):
    """A program or library. kind: 1 object, 2 program, 3 program or library, 4 core dump; machine: as ELF numbers them.

    loader: PT_INTERP, the program that starts it; empty for a static one. debug: bytes in `.debug_*` sections, -1 where
    the table of sections was not seen. bits: 32 or 64. little: whether its least significant byte comes first.
    """

    kind: int
    machine: int
    loader: str = ""
    debug: int = 0
    bits: int = 64
    little: bool = True


class Traits(Struct, frozen=True, omit_defaults=True):
    """What is worth keeping of a file's bytes.

    script: the line after `#!`, without its end; crlf: that line ends as on Windows. secrets: kinds of keys and tokens
    in it, in their order.
    """

    elf: Elf | None = None
    script: str = ""
    crlf: bool = False
    secrets: tuple[str, ...] = ()


class Look:
    """A file being looked at while its bytes go by: `add` each piece in order, however small, then ask `found`."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._seen = 0
        self._head = b""
        self._before = b""
        self._last = b""
        self._kinds: dict[str, None] = {}
        self._searching = False

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._waiting >= _BLOCK:
            self._turn()

    def found(self) -> Traits | None:
        """What there is to say, None for nothing."""
        if not self._seen:
            return look(self._path, b"".join(self._pieces))
        self._turn()
        tail = self._before + self._last
        return _traits(self._head, tuple(self._kinds), tail, self._seen - len(tail))

    def _turn(self) -> None:
        """Look at what has come since the last time."""
        block = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if not self._seen:
            self._head = block
            self._searching = _is_searched(self._path, block)
        if self._searching and self._seen < _SEARCHED:
            for kind in _kinds(self._path, self._last[-_OVERLAP:] + block):
                self._kinds[kind] = None
        self._seen += len(block)
        # The table of a program's sections stands at its end, the names right before it.
        self._before, self._last = self._last, block
        self._pieces = []
        self._waiting = 0


def look(path: bytes, data: bytes) -> Traits | None:
    """`Look` for a file that is there as a whole, which most are."""
    kinds = _kinds(path, data[:_SEARCHED]) if _is_searched(path, data) else ()
    return _traits(data, kinds, data, 0) if kinds or data[:2] in _MARKED else None


def _traits(head: bytes, kinds: tuple[str, ...], tail: bytes, at: int) -> Traits | None:
    if head[:4] == _ELF:
        elf = _elf(head, tail, at)
        return None if elf is None else Traits(elf=elf)
    script, crlf = "", False
    if head[:2] == b"#!":
        # Longer first lines the kernel cuts off: BINPRM_BUF_SIZE.
        line, end, _ = head[2:256].partition(b"\n")
        crlf = bool(end) and line.endswith(b"\r")
        script = line.rstrip(b"\r").strip(b" \t").decode("utf-8", "replace")
    return Traits(script=script, crlf=crlf, secrets=kinds) if script or kinds else None


# ---------------------------------------------------------------- keys and tokens

_PACKAGED = (b"usr/share/", b"usr/lib/", b"usr/include/", b"lib/")
"""Where packages put their own files, beside modules: what looks like a key there is a test's or a manual's."""

_WORD = rb"[A-Za-z0-9_-]"
_PATTERNS = (
    # Each with one first byte that is rare in texts, and what most of its places in a text fail at right behind it. The
    # look-behinds hold what stands before that byte.
    (
        re.compile(
            rb"-(?=[A-Za-z0-9-][A-Za-z0-9_-]{8})"
            rb"(?:----BEGIN (?P<key>[A-Z ]{0,24})PRIVATE KEY(?: BLOCK)?-----(?:\\n|\r?\n)"
            rb"(?:[A-Za-z-]+: [^\n]{0,200}\n|\r?\n)*[A-Za-z0-9+/=]{40}"
            rb"|(?<=glpat-)(?P<gitlab>" + _WORD + rb"{20})"
            rb"|(?<=xox[abprs]-)(?P<slack>[0-9]{6,}-" + _WORD + rb"{10,})"
            rb"|(?<=pypi-)(?P<pypi>AgEIcHlwaS5vcmc" + _WORD + rb"{20,})"
            rb"|(?<=sk-)(?<![A-Za-z0-9_-]sk-)(?P<sk>(?:proj-|svcacct-|ant-)" + _WORD + rb"{32,}|[A-Za-z0-9]{32,}))"
        ),
        {"key": "private key", "gitlab": "GitLab token", "slack": "Slack token", "pypi": "PyPI token",
         "sk": "API key (sk-)"},
    ),
    (
        re.compile(
            rb"_(?=[A-Za-z0-9]{22})(?:(?<=gh[pousr]_)(?P<github>[A-Za-z0-9]{36})|(?<=github_pat_)(?P<pat>[A-Za-z0-9_]{60})"
            rb"|(?<=hf_)(?P<hf>[A-Za-z]{34}(?![A-Za-z]))|(?<=npm_)(?P<npm>[A-Za-z0-9]{36})"
            rb"|(?<=[sr]k_live_)(?P<stripe>[A-Za-z0-9]{24}))"
        ),
        {"github": "GitHub token", "pat": "GitHub token", "hf": "Hugging Face token", "npm": "npm token",
         "stripe": "Stripe key"},
    ),
    (
        re.compile(rb"A(?:KIA(?P<aws>[0-9A-Z]{16}(?![0-9A-Za-z]))|Iza(?P<google>" + _WORD + rb"{35}))"),
        {"aws": "AWS access key", "google": "Google API key"},
    ),
)  # fmt: skip

_DASH, _SCORE, _CAPITAL = (pattern.search for pattern, _ in _PATTERNS)

_NAMED = {
    b".npmrc": (re.compile(rb"^[^#;\n]*:?_(?:authToken|auth|password)\s*=\s*[^\s$]", re.MULTILINE), "npm password"),
    b".pypirc": (re.compile(rb"^\s*password\s*[=:]\s*\S", re.MULTILINE), "PyPI password"),
    b".netrc": (re.compile(rb"\bpassword\s+\S"), "password of .netrc"),
    b".git-credentials": (re.compile(rb"://[^/\s:]+:[^/\s@]+@"), "git password"),
    b"credentials": (re.compile(rb"^\s*aws_secret_access_key\s*=\s*\S", re.MULTILINE), "AWS secret key"),
    b"config.json": (re.compile(rb'"(?:auth|identitytoken)"\s*:\s*"[^"]{4,}"'), "registry password"),
    b".dockerconfigjson": (re.compile(rb'"auth"\s*:\s*"[^"]{4,}"'), "registry password"),
    b"config": (
        re.compile(
            rb"^\s*(?:url\s*=\s*https?://[^/\s:@]+:[^/\s@]+@|(?:client-key-data|token):\s*\S{16})", re.MULTILINE
        ),
        "password in a configuration",
    ),
}  # fmt: skip
"""By a file's name: what in it is a secret although it looks like anything."""


def _is_searched(path: bytes, data: bytes) -> bool:
    """Whether a file that begins with `data` is searched: a text, and not one that a package brought."""
    return (
        data.find(b"\0", 0, _HEAD) < 0
        and not path.startswith(_PACKAGED)
        and b"node_modules/" not in path
        and b"-packages/" not in path  # site-packages, dist-packages
    )


def _kinds(path: bytes, data: bytes) -> tuple[str, ...]:
    """The kinds of secrets in these bytes."""
    named = _NAMED.get(path.rpartition(b"/")[2])
    if named is None and not (_DASH(data) or _SCORE(data) or _CAPITAL(data)):
        return ()
    kinds: list[str] = []
    for pattern, names in _PATTERNS:
        if pattern.search(data) is None:
            continue
        for match in pattern.finditer(data):
            group = match.lastgroup
            if group is not None and (kind := _judged(group, match, names)):
                kinds.append(kind)
    if named is not None and named[0].search(data):
        kinds.append(named[1])
    return tuple(dict.fromkeys(kinds)) if kinds else ()


def _judged(group: str, match: re.Match[bytes], names: dict[str, str]) -> str:
    """What a match is; empty for what only stands for a secret, in a manual."""
    if group == "key":
        locked = b"ENCRYPTED" in match[0]
        return "encrypted private key" if locked else "private key"
    value = match[group]
    # `xxxxxxxx` and AWS's own example.
    return "" if len(set(value)) < 8 or value.endswith(b"EXAMPLE") else names[group]


def secrets_in(text: str) -> tuple[str, ...]:
    """The kinds of keys and tokens in a short text, such as a value of ENV."""
    return _kinds(b"", text.encode("utf-8", "surrogateescape"))


# ---------------------------------------------------------------- programs


def _elf(head: bytes, tail: bytes, at: int) -> Elf | None:
    """A program's header; `tail` is its end, from byte `at` on. None for what is none.

    https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
    """
    import struct

    if len(head) < 52:
        return None
    bits, little = {1: 32, 2: 64}.get(head[4], 0), head[5] == 1
    order = "<" if little else ">"
    if not bits or (bits == 64 and len(head) < 64):
        return None
    kind, machine = struct.unpack_from(order + "HH", head, 16)
    if bits == 64:
        programs, sections = struct.unpack_from(order + "QQ", head, 32)
        sizes = struct.unpack_from(order + "HHHHH", head, 54)
    else:
        programs, sections = struct.unpack_from(order + "II", head, 28)
        sizes = struct.unpack_from(order + "HHHHH", head, 42)
    loader = ""
    for number in range(sizes[1]):
        place = programs + number * sizes[0]
        if place + sizes[0] > len(head) or sizes[0] < (56 if bits == 64 else 32):
            break
        if struct.unpack_from(order + "I", head, place)[0] == 3:
            if bits == 64:
                offset, length = (struct.unpack_from(order + "Q", head, place + skip)[0] for skip in (8, 32))
            else:
                offset, length = (struct.unpack_from(order + "I", head, place + skip)[0] for skip in (4, 16))
            loader = head[offset : offset + min(length, 4096)].rstrip(b"\0").decode("utf-8", "replace")
    debug = _debug_bytes(tail, at, sections, sizes, bits, order) if kind != 4 else 0
    return Elf(kind, machine, loader, debug, bits, little)


def _debug_bytes(tail: bytes, at: int, sections: int, sizes: tuple[int, ...], bits: int, order: str) -> int:
    """What the `.debug_*` sections take; -1 when their table or names are not in `tail`."""
    import struct

    entry, count, names_at = sizes[2], sizes[3], sizes[4]
    if not count:
        return 0
    start = sections - at
    if start < 0 or entry < (64 if bits == 64 else 40) or names_at >= count or start + count * entry > len(tail):
        return -1
    found: list[tuple[int, int, int]] = []
    for number in range(count):
        place = start + number * entry
        (name,) = struct.unpack_from(order + "I", tail, place)
        if bits == 64:
            offset, length = struct.unpack_from(order + "QQ", tail, place + 24)
        else:
            offset, length = struct.unpack_from(order + "II", tail, place + 16)
        found.append((name, offset, length))
    names = found[names_at][1] - at
    if names < 0:
        return -1
    return sum(length for name, _, length in found if tail.startswith((b".debug_", b".zdebug_"), names + name))

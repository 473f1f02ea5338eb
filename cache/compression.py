"""What layers and archives are compressed with: gzip, zstd, bzip2, xz, or nothing.

Reading finds the format by its first bytes, never by a name or a media type. gzip goes through isal, several times as
fast as zlib. zstd is in Python's standard library from 3.14 on; before that a package has the same module.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, cast

from msgspec import Struct

from cache.errors import CorruptError
from cache.limits import LimitError, limits
from cache.oci import LAYER, LAYER_GZIP, LAYER_ZSTD

if TYPE_CHECKING:
    from types import ModuleType

_BLOCK = 1 << 20

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)


class Compressor(Protocol):
    """Bytes in, compressed bytes out."""

    def compress(self, data: bytes, /) -> bytes:
        """The compressed bytes that are ready."""
        ...

    def flush(self) -> bytes:
        """The rest, at the end."""
        ...


LEVELS = {"gzip": range(10), "zstd": range(1, 23), "none": range(0)}
"""The levels that each compression has."""

_EXACT_LEVEL = 4
"""Of zlib's levels: from the 5th on it is slower by half and saves a hundredth."""


class Compression(Struct, frozen=True):
    """How a layer is written. level: one of `LEVELS`, None for a quick one.

    exact: the same bytes give the same blob on any machine. gzip without a level goes through igzip, whose output
    depends on the processor's instructions; with a level, and where it is to be exact, through zlib, five times as
    slow, whose output depends on nothing (but that zlib-ng, which some Pythons have in its place, writes otherwise).
    """

    name: Literal["gzip", "zstd", "none"]
    level: int | None = None
    exact: bool = False

    @property
    def media_type(self) -> str:
        """The OCI media type of a layer so written."""
        return {"gzip": LAYER_GZIP, "zstd": LAYER_ZSTD, "none": LAYER}[self.name]

    def __str__(self) -> str:
        level = _EXACT_LEVEL if self.name == "gzip" and self.exact and self.level is None else self.level
        return self.name if level is None else f"{self.name} {level}"

    def compressor(self) -> Compressor:
        """A fresh one."""
        if self.name == "none":
            return _Plain()
        if self.name == "zstd":
            zstd = _zstd()
            parameter = zstd.CompressionParameter
            options = {parameter.compression_level: self.level or 3, parameter.checksum_flag: 1}
            return cast("Compressor", zstd.ZstdCompressor(options=options))
        # 31: a gzip header, which both write without a name and with time 0.
        if self.level is not None or self.exact:
            level = _EXACT_LEVEL if self.level is None else self.level
            return cast("Compressor", zlib.compressobj(level, zlib.DEFLATED, 31))
        from isal import isal_zlib

        return _Even(cast("Compressor", isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)))


GZIP = Compression("gzip")
NONE = Compression("none")


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _Even:
    """A compressor that is given blocks of one size: igzip's output depends on where its input is cut."""

    def __init__(self, inner: Compressor) -> None:
        self._inner = inner
        self._rest = b""

    def compress(self, data: bytes, /) -> bytes:
        data = self._rest + data if self._rest else data
        whole = len(data) - len(data) % _BLOCK
        self._rest = data[whole:]
        return b"".join(self._inner.compress(data[at : at + _BLOCK]) for at in range(0, whole, _BLOCK))

    def flush(self) -> bytes:
        rest, self._rest = self._rest, b""
        return self._inner.compress(rest) + self._inner.flush()


def compressed(stream: BinaryIO) -> bool:
    """Whether the seekable `stream` has a compression known here; its position stays."""
    start = stream.tell()
    head = _read_up_to(stream, 6)
    stream.seek(start)
    return _format(head) != ""


def decompressed(stream: BinaryIO, *, trusted: bool = False) -> BinaryIO:
    """The plain bytes of `stream`, from its position on. Closing it does not close `stream`.

    trusted: they are not measured: see `cache.limits`.

    Reading raises CorruptError where the data are damaged or end too early; opening raises StoreError where a format
    can not be read here.
    """
    head = _read_up_to(stream, 6)
    joined = _Joined(head, stream)
    whole = cast("BinaryIO", joined)
    measure = None if trusted else joined
    match _format(head):
        case "gzip":
            from isal import igzip

            decoder = cast("BinaryIO", igzip.GzipFile(fileobj=whole, mode="rb"))  # type: ignore[no-untyped-call]
            return cast("BinaryIO", _Decoded(decoder, "gzip", measure))
        case "zstd":
            return cast("BinaryIO", _Decoded(_unzstd(whole), "zstd", measure))
        case "bzip2":
            import bz2

            return cast("BinaryIO", _Decoded(cast("BinaryIO", bz2.BZ2File(whole)), "bzip2", measure))
        case "xz":
            import lzma

            return cast("BinaryIO", _Decoded(cast("BinaryIO", lzma.LZMAFile(whole)), "xz", measure))
        case _:
            return whole


def _format(head: bytes) -> str:
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    # https://github.com/facebook/zstd/blob/dev/doc/zstd_compression_format.md#skippable-frames
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"
    return ""


def _read_up_to(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end: pipes and sockets deliver in pieces."""
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


class _Joined(io.RawIOBase):
    """The bytes read already, then the rest of the stream. Seeking forward is passed on when the stream can seek."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream
        self.taken = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data = self._read(size)
        self.taken += len(data)
        return data

    def _read(self, size: int | None) -> bytes:
        if self._head:
            if size is None or size < 0:
                data = self._head + self._stream.read()
                self._head = b""
                return data
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(-1 if size is None else size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def skip(self, size: int) -> bool:
        """Leave out `size` bytes without reading them; False when the stream can not."""
        if self._head or not self._stream.seekable():
            return False
        at = self._stream.tell()
        inside = at + size <= self._stream.seek(0, 2)
        self._stream.seek(at + size if inside else at)
        return inside


class _Decoded(io.RawIOBase):
    """A decoder's bytes, its many kinds of errors made one. packed: what it reads, which they are measured by."""

    def __init__(self, decoder: BinaryIO, name: str, packed: _Joined | None) -> None:
        self._decoder = decoder
        self._name = name
        self._packed = packed
        self._made = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        try:
            data = self._decoder.read(-1 if size is None else size)
            self._made += len(data)
            if self._packed is not None:
                limits().measure(self._made, self._packed.taken)
            return data
        except LimitError:
            raise
        except (EOFError, zlib.error, ValueError) as error:
            raise self._corrupt(error) from None
        except OSError as error:
            # bz2 and gzip report damage as an OSError without a number.
            if error.errno is None:
                raise self._corrupt(error) from None
            raise
        except Exception as error:
            # lzma.LZMAError, ZstdError and isal's errors have no class in common, and naming them would load them.
            if type(error).__name__ in {"LZMAError", "ZstdError", "IsalError", "error"}:
                raise self._corrupt(error) from None
            raise

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._decoder.close()
        super().close()

    def _corrupt(self, error: Exception) -> CorruptError:
        return CorruptError(f"the {self._name} data are damaged or end too early: {error}")


def _unzstd(stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", _zstd().ZstdFile(stream))


def _zstd() -> Any:
    """The module that Python has from 3.14 on, or the package that has it for earlier ones."""
    import importlib

    found: ModuleType
    try:
        found = importlib.import_module("compression.zstd")
    except ImportError:
        found = importlib.import_module("backports.zstd")
    return found

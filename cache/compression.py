"""What layers and archives are compressed with: gzip, zstd, bzip2, xz, or nothing.

Reading finds the format by its first bytes, never by a name or a media type. gzip goes through isal, several times as
fast as zlib. zstd is in Python's standard library from 3.14 on; before that the package `zstandard` or the program
`zstd` is used, whichever is there.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, Self, cast

from msgspec import Struct

from cache.errors import CorruptError, StoreError
from cache.oci import LAYER, LAYER_GZIP

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen

_CHUNK = 1 << 18

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


class Compression(Struct, frozen=True):
    """How a layer is written. level: 0 to 3 of igzip, for gzip only.

    The same bytes give the same blob on machines of one kind; another processor may get other blobs from igzip, with
    the same diff id.
    """

    name: Literal["gzip", "none"]
    level: int = 1

    @property
    def media_type(self) -> str:
        """The OCI media type of a layer so written."""
        return LAYER_GZIP if self.name == "gzip" else LAYER

    def compressor(self) -> Compressor:
        """A fresh one."""
        if self.name == "none":
            return _Plain()
        from isal import isal_zlib

        # 31: a gzip header, which igzip writes without a name and with time 0.
        return cast("Compressor", isal_zlib.compressobj(self.level, isal_zlib.DEFLATED, 31))


GZIP = Compression("gzip")
NONE = Compression("none")


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressed(stream: BinaryIO) -> bool:
    """Whether the seekable `stream` has a compression known here; its position stays."""
    start = stream.tell()
    head = _read_up_to(stream, 6)
    stream.seek(start)
    return _format(head) != ""


def decompressed(stream: BinaryIO) -> BinaryIO:
    """The plain bytes of `stream`, from its position on. Closing it does not close `stream`.

    Reading raises CorruptError where the data are damaged or end too early; opening raises StoreError where a format
    can not be read here.
    """
    head = _read_up_to(stream, 6)
    whole = cast("BinaryIO", _Joined(head, stream))
    match _format(head):
        case "gzip":
            from isal import igzip

            decoder = cast("BinaryIO", igzip.GzipFile(fileobj=whole, mode="rb"))  # type: ignore[no-untyped-call]
            return cast("BinaryIO", _Decoded(decoder, "gzip"))
        case "zstd":
            return cast("BinaryIO", _Decoded(_unzstd(whole), "zstd"))
        case "bzip2":
            import bz2

            return cast("BinaryIO", _Decoded(cast("BinaryIO", bz2.BZ2File(whole)), "bzip2"))
        case "xz":
            import lzma

            return cast("BinaryIO", _Decoded(cast("BinaryIO", lzma.LZMAFile(whole)), "xz"))
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

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
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
    """A decoder's bytes, its many kinds of errors made one."""

    def __init__(self, decoder: BinaryIO, name: str) -> None:
        self._decoder = decoder
        self._name = name

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self._decoder.read(-1 if size is None else size)
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
    opener = _zstd_library()
    if opener is not None:
        return opener(stream)
    import shutil

    program = shutil.which("zstd")
    if program is None:
        raise StoreError(
            "this is compressed with zstd, which nothing here can read",
            "install the program zstd, or the Python package zstandard",
        )
    return cast("BinaryIO", _Program([program, "-dcq"], stream))


def _zstd_library() -> Callable[[BinaryIO], BinaryIO] | None:
    import importlib

    try:
        return cast("Callable[[BinaryIO], BinaryIO]", importlib.import_module("compression.zstd").ZstdFile)
    except ImportError:
        pass
    try:
        decompressor = importlib.import_module("zstandard").ZstdDecompressor()
    except ImportError:
        return None
    return lambda stream: cast("BinaryIO", decompressor.stream_reader(stream, read_across_frames=True, closefd=False))


class _Program(io.RawIOBase):
    """What a program makes of a stream that a thread feeds it."""

    def __init__(self, argv: list[str], stream: BinaryIO) -> None:
        import subprocess
        import threading

        self._process: Popen[bytes] = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._stream = stream
        self._failure: BaseException | None = None
        self._feeder = threading.Thread(target=self._feed, name="zstd", daemon=True)
        self._feeder.start()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(-1 if size is None else size)
        if size is None or size < 0 or (size and not data):
            self._finish()
        return data

    def close(self) -> None:
        if not self.closed and self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        if not self.closed:
            # The feeder ends at its next write: its pipe has no reader any more.
            self._feeder.join()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while data := self._stream.read(_CHUNK):
                    pipe.write(data)
        except BrokenPipeError:
            pass
        except BaseException as error:  # handed to the reader, whose call it belongs to
            self._failure = error

    def _finish(self) -> None:
        self._feeder.join()
        assert self._process.stderr is not None
        said = (
            self._process.stderr.read().decode("utf-8", "replace").strip() if self._process.returncode is None else ""
        )
        status = self._process.wait()
        if self._failure is not None:
            raise self._failure
        if status != 0:
            raise EOFError(said or f"zstd ended with status {status}")

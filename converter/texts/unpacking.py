"""The bytes of a text file -> text: packed or not, with or without a byte-order mark, and nothing that is no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from ..core.errors import InputError

FREE = 2**26
"""Bytes that a packed file may always become."""
MOST = 2**31
"""Bytes that no packed file may become; a text that is not packed may be as large as its disk allows."""
FACTOR = 200
"""Beyond `FREE`, a packed file may become this many times its size: text becomes three to thirty times as large."""
STEP = 2**20

PACKED: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}
PARQUET = b"PAR1"
NUMPY = b"\x93NUMPY"
NO_TEXT: dict[bytes, str] = {
    b"PK\x03\x04": "it is a zip archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "it is a 7z archive; unpack it first",
    b"\xfd7zXZ\x00": "it is packed with xz; unpack it first, with xz -d",
    b"\x28\xb5\x2f\xfd": "it is packed with zstd; unpack it first, with zstd -d",
    b"\x04\x22\x4d\x18": "it is packed with lz4; unpack it first, with lz4 -d",
    b"ARROW1\x00\x00": "it is an Arrow file; the datasets package writes such as JSON lines with to_json",
    b"\xff\xff\xff\xff": "it is an Arrow stream; the datasets package writes such as JSON lines with to_json",
    b"%PDF-": "it is a PDF; take its text out first, with pdftotext",
    b"SQLite format 3\x00": "it is a database; write its texts as JSON lines first",
    NUMPY: "it is a numpy array; token windows have the suffix .npy",
    b"GGUF": "it is a model",
    PARQUET: "it is Parquet inside a packed file; unpack it first",
}
# the longer ones first: UTF-32's begins with UTF-16's
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NUL_SHARE = 10
"""One NUL in so many letters, and a text is taken for UTF-16 whose byte-order mark is missing."""


def read_bytes(path: Path, spec: str) -> bytes:
    """All bytes of a file.

    Args:
        path: the file.
        spec: named in the error.

    Raises:
        InputError: a device, a folder, or not readable; FileNotFoundError is left to the caller.
    """
    if path.is_char_device() or path.is_block_device():
        raise InputError(f"{path}: is a device, not a text")
    if path.is_dir():
        raise InputError(f"{spec or path}: not readable, since it is a folder; give one file in it")
    return path.read_bytes()


def decoded(data: bytes, name: str) -> str:
    """The text that bytes hold, unpacked if they are packed; every end of a line is "\\n".

    UTF-8, or what a byte-order mark says; the mark itself is no part of the text.

    Raises:
        InputError: they are no text; one line with the way out.
    """
    if (packing := _packing(data)) is not None:
        data = unpacked(data, name)
        if _packing(data) is not None:
            raise InputError(f"{name}: is packed twice; unpack it first")
    for magic, reason in NO_TEXT.items():
        if data.startswith(magic):
            raise InputError(f"{name}: not readable as UTF-8 text: {reason}")
    mark, encoding = next(((mark, encoding) for mark, encoding in MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        kind = f"{encoding.upper()}, as its byte-order mark says" if mark else "UTF-8 text"
        hint = "" if mark else "; convert it, with iconv -f ITS_ENCODING -t UTF-8"
        place = f"byte 0x{error.object[error.start]:02x} at {error.start + len(mark):,}"
        inside = f" inside the {packing} file" if packing else ""
        raise InputError(f"{name}: not readable as {kind} ({place}{inside}){hint}") from None
    if text.count("\0") * NUL_SHARE > len(text):
        raise InputError(
            f"{name}: is full of NULs: UTF-16 without a byte-order mark, or no text; "
            "convert it, with iconv -f UTF-16LE -t UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unpacked(data: bytes, name: str) -> bytes:
    """The bytes inside a gzip or bzip2 file, all of its members one after another.

    Raises:
        InputError: damaged, cut off, or a bomb: larger than `MOST`, or than `FREE` and `FACTOR` times its size.
    """
    packing = _packing(data) or "gzip"
    limit = most_unpacked(len(data))
    pieces: list[bytes] = []
    total = 0
    try:
        with _OPENERS[packing](io.BytesIO(data)) as file:
            while piece := file.read(STEP):
                total += len(piece)
                if total > limit:
                    raise InputError(
                        f"{name}: {len(data):,} bytes become more than {limit:,} once they are unpacked, which no text "
                        "does; unpack it yourself if it is one"
                    )
                pieces.append(piece)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise InputError(f"{name}: damaged or truncated {packing} file ({error})") from None
    return b"".join(pieces)


def most_unpacked(size: int) -> int:
    """Bytes that a packed file of so many bytes may become."""
    return min(MOST, max(FREE, FACTOR * size))


def _packing(data: bytes) -> str | None:
    return next((name for magic, name in PACKED.items() if data.startswith(magic)), None)


_OPENERS: dict[str, Callable[[io.BytesIO], IO[bytes]]] = {
    "gzip": lambda data: cast(IO[bytes], gzip.GzipFile(fileobj=data)),
    "bzip2": lambda data: cast(IO[bytes], bz2.BZ2File(data)),
}

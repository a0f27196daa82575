"""Headers of safetensors files, malformed in every way that the format has."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHORT = ["--windows", 2, "--window-length", 32]
SIZE = 64  # bytes of data behind the headers below


def entry(begin: Any, end: Any, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def packed(header: Any, data: int = SIZE) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


DAMAGED = "damaged safetensors header"
HEADERS: dict[str, tuple[Any, str]] = {
    "list": ([], DAMAGED),
    "text": ("x", DAMAGED),
    "number": (7, DAMAGED),
    "null": (b"null", DAMAGED),
    "no json": (b"{", DAMAGED),
    "bytes": (b"\xff\xfe\x00", DAMAGED),
    "utf-16": ('{"x": 1}'.encode("utf-16"), DAMAGED),
    "spaces": (b" " * 40, DAMAGED),
    "nested lists": (b"[" * 100_000, DAMAGED),
    "nested objects": (b'{"x":' * 100_000, DAMAGED),
    "closed nest": (b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", DAMAGED),
    "digits": (b'{"x":' + b"9" * 100_000 + b"}", DAMAGED),
    "entry is a list": ({"x": [1]}, DAMAGED),
    "entry is null": ({"x": None}, DAMAGED),
    "entry is empty": ({"x": {}}, DAMAGED),
    "no offsets": ({"x": {"dtype": "F32", "shape": [4]}}, DAMAGED),
    "one offset": ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, DAMAGED),
    "three offsets": ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}, DAMAGED),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 16]}}, DAMAGED),
    "no dtype": ({"x": {"shape": [4], "data_offsets": [0, 16]}}, DAMAGED),
    "text offsets": ({"x": entry("0", "16")}, DAMAGED),
    "float offsets": ({"x": entry(0.0, 16.0)}, DAMAGED),
    "boolean offsets": ({"x": entry(False, True, (1,), "U8")}, DAMAGED),
    "NaN offsets": (b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [NaN, Infinity]}}', DAMAGED),
    "negative begin": ({"x": entry(-16, 0)}, "lies beyond the end"),
    "end before begin": ({"x": entry(16, 0)}, "lies beyond the end"),
    "beyond the end": ({"x": entry(0, 2**40)}, "lies beyond the end"),
    "far beyond": ({"x": entry(0, 10**300)}, "lies beyond the end"),
    "shape is text": ({"x": entry(0, 16, "4")}, DAMAGED),
    "shape is a number": ({"x": entry(0, 16, 4)}, DAMAGED),
    "text in shape": ({"x": entry(0, 16, ["4"])}, DAMAGED),
    "float in shape": ({"x": entry(0, 16, [4.0])}, DAMAGED),
    "boolean in shape": ({"x": entry(0, 16, [4, True])}, DAMAGED),
    "negative in shape": ({"x": entry(0, 16, [-4])}, DAMAGED),
    "two negatives": ({"x": entry(0, 16, [-2, -2])}, DAMAGED),
    "huge shape": ({"x": entry(0, 16, [2**40, 2**40])}, "has 16 bytes"),
    "huge number in shape": ({"x": entry(0, 16, [10**400])}, DAMAGED),
    "overflowing shape": ({"x": entry(0, 16, [2**62, 4])}, "has 16 bytes"),
    "many dimensions": ({"x": entry(0, 16, [9**18] * 100_000)}, DAMAGED),
    "too small": ({"x": entry(0, 16, [5])}, "takes 20"),
    "too large": ({"x": entry(0, 16, [3])}, "takes 12"),
    "nothing of something": ({"x": entry(0, 16, [0])}, "takes 0"),
    "unknown type": ({"x": entry(0, 16, dtype="F31")}, "unknown type 'F31'"),
    "long type": ({"x": entry(0, 16, dtype="F" * 100_000)}, "unknown type 'FFF"),
    "list for a type": ({"x": entry(0, 16, dtype=["F32"])}, DAMAGED),
    "null for a type": ({"x": entry(0, 16, dtype=None)}, "unknown type None"),
    "overlap": ({"x": entry(0, 16), "y": entry(8, 24)}, "does not begin where the one before it ends"),
    "same place": ({"x": entry(0, 16), "y": entry(0, 16)}, "does not begin where the one before it ends"),
    "gap": ({"x": entry(0, 16), "y": entry(32, 48)}, "does not begin where the one before it ends"),
    "late start": ({"x": entry(4, 20)}, "does not begin where the one before it ends"),
    "half a letter": (b'{"\\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', DAMAGED),
}


def file_of(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.mark.parametrize("case", HEADERS)
def test_headers(copied: Callable[[str], Path], refused: Callable[..., str], case: str) -> None:
    header, needle = HEADERS[case]
    file_of(folder := copied("dense")).write_bytes(packed(header))
    refused("inspect", folder, code=3, needle=needle)


@pytest.mark.parametrize("length", [0, 1, 10, 2**31, 2**62, 2**63, 2**64 - 1])
def test_length_of_the_header(copied: Callable[[str], Path], refused: Callable[..., str], length: int) -> None:
    file = file_of(folder := copied("dense"))
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused("inspect", folder, code=3, needle="safetensors")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -1])
def test_truncated(copied: Callable[[str], Path], refused: Callable[..., str], size: int) -> None:
    file = file_of(folder := copied("dense"))
    file.write_bytes(file.read_bytes()[:size])
    refused("inspect", folder, code=3, needle="truncated" if size < 2000 else "")


@pytest.mark.parametrize("metadata", [7, [], {"format": 7}, {"format": None}, "pt"])
def test_metadata_that_the_library_refuses(
    models: Path, copied: Callable[[str], Path], refused: Callable[..., str], metadata: Any
) -> None:
    file = file_of(folder := copied("dense"))
    content = file.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = {**json.loads(content[8:end]), "__metadata__": metadata}
    file.write_bytes(packed(header, 0) + content[end:])
    reads = ["--method", "asvd-stable-rank", "--calibration", models / "text.txt", *SHORT]
    refused("plan", "--model", folder, *reads, code=3, needle="cannot be read")


def test_names_that_steer_a_terminal(copied: Callable[[str], Path]) -> None:
    """They are shown, spelt out: of a tensor nobody wants, in a file that is sound otherwise."""
    from typer.testing import CliRunner

    from lowrank_export.cli import app

    names = ["\x1b[2J\x1b[31mred", "[bold]markup[/nothing]", "a\nb\rc", "\u202etxet", "x" * 50_000]
    header = {name: entry(16 * place, 16 * place + 16) for place, name in enumerate(names)}
    file_of(folder := copied("dense")).write_bytes(packed(header, 16 * len(names)))
    result = CliRunner().invoke(app, ["inspect", str(folder)])
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stderr and "\u202e" not in result.stderr and "\\x1b[2J" in result.stderr
    assert "[/nothing]" in result.stderr

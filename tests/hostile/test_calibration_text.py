"""Calibration text, JSON lines and token windows that are none."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Refused = Callable[..., str]


def plan(models: Path, text: Any) -> list[Any]:
    """The cheapest command that draws calibration windows."""
    small = ["--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    return ["plan", "--model", models / "dense", "--calibration", text, *small]


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "fewer than one window"),
    "short": (b"word", "fewer than one window"),
    "bytes": (b"\xff\xfd" * 100, "not readable as UTF-8"),
    "half of UTF-16": (b"\xff\xfe\x00\xd8" * 100, "not readable as UTF-16"),
    "UTF-32 beyond its end": (b"\xff\xfe\x00\x00" + b"\xff" * 40, "not readable as UTF-32"),
    "zeros": (bytes(1000), "full of NULs"),
    "cut gzip": (gzip.compress(b"word " * 1000)[:-9], "damaged or truncated gzip"),
    "wrong sum of gzip": (gzip.compress(b"word " * 1000)[:-8] + bytes(8), "damaged or truncated gzip"),
    "gzip's header": (b"\x1f\x8b\x08", "damaged or truncated gzip"),
    "gzip and more": (gzip.compress(b"word") + b"word", "damaged or truncated gzip"),
    "gzip in gzip": (gzip.compress(gzip.compress(b"word")), "packed twice"),
    "gzip of Parquet": (gzip.compress(b"PAR1" * 9), "Parquet inside a packed file"),
    "bzip2's header": (b"BZh9", "damaged or truncated bzip2"),
    "bomb": (gzip.compress(bytes(2**27)), "become more than 67,108,864"),
    "bomb of bzip2": (bz2.compress(bytes(2**27)), "become more than 67,108,864"),
    "nothing in gzip": (gzip.compress(b""), "fewer than one window"),
    "Parquet's magic": (b"PAR1", "Parquet"),
    "Parquet of zeros": (b"PAR1" + bytes(99) + b"PAR1", "Parquet"),
    "Parquet's long end": (b"PAR1" + bytes(99) + b"\xff\xff\xff\x7fPAR1", "Parquet"),
    "cut letter": ("ä".encode()[:1] * 2, "not readable as UTF-8"),
    "surrogate": (b"\xed\xa0\x80" * 100, "not readable as UTF-8"),
    "zip": (b"PK\x03\x04" + bytes(range(128, 256)), "not readable as UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(models: Path, refused: Refused, tmp_path: Path, case: str) -> None:
    content, needle = TEXTS[case]
    (path := tmp_path / "t.txt").write_bytes(content)
    refused(*plan(models, path), code=3, needle=needle)


@pytest.mark.parametrize(
    ("spec", "needle"),
    [
        ("none.txt", "no such text"),
        ("", "not readable"),
        (".", "not readable"),
        ("\0", "not readable"),
        ("x" * 300, "not readable"),
        ("~nobody-of-that-name/t.txt", "no such text"),
        ("/dev/zero", "is a device"),
        ("datasets:", "datasets:"),
        ("datasets:a/b", "datasets:a/b"),
        ("none.jsonl#text", "no such text"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_names(models: Path, refused: Refused, spec: str, needle: str) -> None:
    refused(*plan(models, spec), code=3, needle=needle)


LINES: dict[str, tuple[str, str]] = {
    "no json": ("word", "line 1 is not a JSON object"),
    "half": ('{"text": "x"', "line 1 is not a JSON object"),
    "list": ('["text"]', "line 1 is not a JSON object"),
    "text": ('"text"', "line 1 is not a JSON object"),
    "number": ("7", "line 1 is not a JSON object"),
    "null": ("null", "line 1 is not a JSON object"),
    "nested": ("[" * 100_000, "line 1 is not a JSON object"),
    "nested in a field": ('{"text": ' + "[" * 100_000, "line 1 is not a JSON object"),
    "digits": ('{"text": ' + "9" * 10_000 + "}", "line 1 is not a JSON object"),
    "other field": ('{"txet": "x"}', "line 1 has no field 'text'"),
    "many fields": (json.dumps({f"k{i}": i for i in range(50_000)}), "line 1 has no field 'text'"),
    "steering field": ('{"\\u001b[2J": "x"}', "line 1 has no field 'text'"),
    "second line": ('{"text": "x"}\n\n{"text": "y"}\nz', "line 4 is not a JSON object"),
    "array of numbers": ("[7]", "line 1 is not a JSON object"),
    "array of both": ('[{"text": "x"}, 7]', "element 2 is not a JSON object"),
    "array that ends": ('[{"text": "x"},', "line 1 is not a JSON object"),
    "number as text": ('{"text": 7}', "line 1: field 'text' is a number"),
    "long number as text": ('{"text": 1e' + "9" * 300 + "}", "line 1: field 'text' is a number"),
    "deep list as text": ('{"text": ' + "[" * 500 + "]" * 500 + "}", "line 1: field 'text' is a list"),
    "steering text": ('{"text": ["\\u001b[2J"]}', "line 1: field 'text' is a list"),
    "message of nothing": ('{"text": [{"role": null}]}', "a message whose role or content is no text"),
    "message": ('{"text": [{"role": "user", "content": "x"}]}', "has no chat template"),
    "nulls alone": ('{"text": null}\n' * 9, "fewer than one window"),
    "half a letter": ('{"text": "\\ud800"}', "half a surrogate pair"),
    "nothing": ("\n\n", "fewer than one window"),
}


@pytest.mark.parametrize("case", LINES)
def test_json_lines(models: Path, refused: Refused, tmp_path: Path, case: str) -> None:
    content, needle = LINES[case]
    (path := tmp_path / "t.jsonl").write_text(content)
    refused(*plan(models, path), code=3, needle=needle)


def test_line_separators_inside_json_are_text(tmp_path: Path) -> None:
    from lowrank_export.converter.texts.corpus import read_text

    (path := tmp_path / "t.jsonl").write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_text(str(path), "calibration") == "a\u2028b\x85c"


def npy(header: str | bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(shape: str = "(2, 16)", kind: str = "'<i4'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}}}\n"


UNREADABLE = "not readable as a numpy array"
ARRAYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", UNREADABLE),
    "magic alone": (b"\x93NUMPY", UNREADABLE),
    "unknown version": (npy(header(), version=b"\x09\x00"), UNREADABLE),
    "cut header": (npy(header())[:40], UNREADABLE),
    "long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{", UNREADABLE),
    "no data": (npy(header()), UNREADABLE),
    "huge shape": (npy(header("(1000000000, 1000000000)")), UNREADABLE),
    "overflowing shape": (npy(header("(9223372036854775807, 2)")), UNREADABLE),
    "shape of digits": (npy(header("(" + "9" * 5000 + ", 2)")), UNREADABLE),
    "negative shape": (npy(header("(-2, 16)"), bytes(128)), UNREADABLE),
    "shape is text": (npy(header("'x'"), bytes(128)), UNREADABLE),
    "float shape": (npy(header("(2.0, 16)"), bytes(128)), UNREADABLE),
    "code in the header": (npy("__import__('os').system('touch ran')\n"), UNREADABLE),
    "nested header": (npy("(" * 9000), UNREADABLE),
    "minus signs": (npy("-" * 9000 + "1"), UNREADABLE),
    "bytes in the header": (npy(b"\xff\x00" * 20), UNREADABLE),
    "no keys": (npy("{}\n"), UNREADABLE),
    "unknown type": (npy(header(kind="'<q9'"), bytes(128)), UNREADABLE),
    "type of types": (npy(header(kind="[('a', [('b', 'O')])]"), bytes(128)), UNREADABLE),
    "pickle": (saved(np.array([{"a": 1}], dtype=object)), UNREADABLE),
    "archive": (b"PK\x03\x04" + bytes(100), UNREADABLE),
    "floats": (saved(np.zeros((2, 16))), "expected integer token windows"),
    "texts": (saved(np.array([["a"]])), "expected integer token windows"),
    "records": (saved(np.zeros((2, 2), dtype="i4,i4")), "expected integer token windows"),
    "one row": (saved(np.zeros(16, dtype=np.int32)), "expected integer token windows"),
    "cube": (saved(np.zeros((2, 2, 2), dtype=np.int32)), "expected integer token windows"),
    "nothing": (saved(np.zeros((0, 16), dtype=np.int32)), "expected integer token windows"),
    "no tokens": (saved(np.zeros((16, 0), dtype=np.int32)), "expected integer token windows"),
    "scalar": (saved(np.int64(3)), "expected integer token windows"),
    "negative token": (saved(np.full((2, 16), -1)), "token ids -1"),
    "unknown token": (saved(np.full((2, 16), 320)), "but the model has 320 tokens"),
    "huge token": (saved(np.full((2, 16), 2**64 - 1, dtype=np.uint64)), "but the model has 320 tokens"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_token_windows(models: Path, refused: Refused, tmp_path: Path, case: str) -> None:
    content, needle = ARRAYS[case]
    (path := tmp_path / "t.npy").write_bytes(content)
    refused(*plan(models, path), code=3, needle=needle)


@pytest.mark.parametrize(
    ("record", "code", "needle"),
    [
        ("[" * 100_000, 3, "nested too deeply"),
        ("[]", 3, "expected a JSON object"),
        ('{"text": "/dev/zero"}', 3, "is a device"),
        ('{"text": "none.txt"}', 3, "no such text"),
        ('{"text": "python-docs", "windows": -1}', 3, "windows is -1"),
        ('{"text": "python-docs", "windows": "2"}', 3, "windows is '2'"),
        ('{"text": "python-docs", "window_length": 1000000000}', 3, "fewer than one window"),
        ('{"text": "python-docs", "windows": 2, "window_length": 32}', 3, "is not the text it was calibrated on"),
        ('{"text": "datasets:someone/else"}', 2, "to fetch that, give --calibration 'datasets:someone/else'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_records_of_a_checkpoint(
    copied: Callable[[str], Path], refused: Refused, record: str, code: int, needle: str
) -> None:
    """calibration.json came with the folder: it reaches no network, no device, and asks for no memory."""
    (folder := copied("factored")).joinpath("calibration.json").write_text(record)
    refused("imatrix", folder, "--out", "x.imatrix", code=code, needle=needle)

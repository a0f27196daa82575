"""GGUF files: bytes that are damaged, headers that lie, and headers that agree with themselves but not with ggml."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.exporters.llamacpp.runtime import find_runtime

Copy = Callable[[str], Path]
Refused = Callable[..., str]
needs_llama_cpp = pytest.mark.skipif(find_runtime() is None, reason="the llama.cpp runtime has not been built")


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(tensors: list[bytes], keys: list[bytes], data: int = 64, counts: tuple[int, int] | None = None) -> bytes:
    n, k = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, n, k) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


ARCHITECTURE = key("general.architecture", 8, text("llama"))
DAMAGED = "damaged or truncated GGUF file"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "magic alone": (b"GGUF", DAMAGED),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "version 0"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
    "many tensors": (file([], [], counts=(2**62, 0)), "the number of tensors"),
    "many keys": (file([], [], counts=(0, 2**62)), "the number of metadata keys"),
    "negative keys": (file([], [], counts=(0, 2**64 - 1)), "the number of metadata keys"),
    "missing keys": (file([], [ARCHITECTURE], 0, counts=(0, 2)), DAMAGED),
    "key without a name": (file([], [key("", 4, bytes(4))]), "a metadata key has no name"),
    "long key": (file([], [struct.pack("<Q", 2**60)]), "the length of a metadata key"),
    "key is no text": (file([], [key(b"\xff\xfe", 4, bytes(4))]), "is not UTF-8"),
    "key twice": (file([], [ARCHITECTURE, ARCHITECTURE]), "occurs twice"),
    "key steers": (file([], [key("\x1b[2J", 99, bytes(8))]), "unknown type 99"),
    "unknown type": (file([], [key("a", 13, bytes(8))]), "unknown type 13"),
    "array of unknown": (file([], [key("a", 9, struct.pack("<IQ", 13, 1))]), "unknown type 13"),
    "long text": (file([], [key("a", 8, struct.pack("<Q", 2**63))]), "the length of the value of 'a'"),
    "long array": (file([], [key("a", 9, struct.pack("<IQ", 8, 2**60))]), "the length of 'a'"),
    "array of numbers": (file([], [key("a", 9, struct.pack("<IQ", 10, 2**61 + 1))]), "the length of 'a'"),
    "array of bytes": (
        file([], [key("a", 9, struct.pack("<IQ", 0, 2**24 + 1) + bytes(2**24 + 1))]),
        "no more than 16,777,216 are read",
    ),
    "nested arrays": (file([], [key("a", 9, struct.pack("<IQ", 9, 1) * 10)], 99), "unknown type 9"),
    "alignment 0": (file([], [key("general.alignment", 4, struct.pack("<I", 0))]), "no power of two"),
    "alignment 24": (file([], [key("general.alignment", 4, struct.pack("<I", 24))]), "no power of two"),
    "alignment is text": (file([], [key("general.alignment", 8, text("32"))]), "it must be a u32"),
    "huge alignment": (file([tensor("a", (4,))], [key("general.alignment", 4, struct.pack("<I", 2**31))]), "ends at"),
    "no name": (file([tensor("", (4,))], [ARCHITECTURE]), "a tensor has no name"),
    "long name": (file([tensor("x" * 64, (4,))], [ARCHITECTURE]), "has 64 letters"),
    "name is no text": (file([tensor(b"\xff", (4,))], [ARCHITECTURE]), "is not UTF-8"),
    "no dimension": (file([tensor("a", ())], [ARCHITECTURE]), "has 0 dimensions"),
    "five dimensions": (file([tensor("a", (1,) * 5)], [ARCHITECTURE]), "has 5 dimensions"),
    "many dimensions": (
        file([text("a") + struct.pack("<I", 2**32 - 1)], [ARCHITECTURE], counts=(1, 1)),
        "has 4294967295 dimensions",
    ),
    "dimension 0": (file([tensor("a", (0, 4))], [ARCHITECTURE]), "cannot have"),
    "huge dimensions": (file([tensor("a", (2**62, 2**62))], [ARCHITECTURE]), "ends at"),
    "overflowing dimensions": (file([tensor("a", (2**32, 2**32, 4))], [ARCHITECTURE]), "ends at"),
    "unknown tensor type": (file([tensor("a", (4,), 99)], [ARCHITECTURE]), "unknown type 99"),
    "row that is no block": (file([tensor("a", (33,), 8)], [ARCHITECTURE]), "blocks of 32"),
    "beyond the end": (file([tensor("a", (4,), 0, 32 * 2**40)], [ARCHITECTURE]), "ends at"),
    "offset overflows": (file([tensor("a", (4,), 0, 2**64 - 32)], [ARCHITECTURE]), "ends at"),
    "offset not aligned": (file([tensor("a", (4,), 0, 4)], [ARCHITECTURE]), "not aligned"),
    "overlap": (file([tensor("a", (16,)), tensor("b", (4,), 0, 32)], [ARCHITECTURE]), "overlap"),
    "gap": (file([tensor("a", (4,)), tensor("b", (4,), 0, 64)], [ARCHITECTURE], 128), "after those before it"),
    "tensor twice": (file([tensor("a", (4,)), tensor("a", (4,), 0, 32)], [ARCHITECTURE]), "occurs twice"),
    "no architecture": (file([tensor("a", (4,))], []), "no general.architecture"),
    "architecture is a number": (
        file([tensor("a", (4,))], [key("general.architecture", 4, bytes(4))]),
        "no general.architecture",
    ),
    "a factor alone": (file([tensor("blk.0.attn_q.lowrank_u.weight", (4,))], [ARCHITECTURE]), "has no lowrank_v"),
    "block without a count": (file([tensor("blk.0.a.weight", (4,))], [ARCHITECTURE]), "no llama.block_count"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(refused: Refused, tmp_path: Path, case: str) -> None:
    """As an artifact and as a source."""
    content, needle = FILES[case]
    (path := tmp_path / "m.gguf").write_bytes(content)
    refused("inspect", path, code=3, needle=needle)
    refused("plan", "--model", path, "--method", "svd", code=3)


@pytest.mark.parametrize("size", [5, 23, 24, 100, 1000, 10_000, -1])
@pytest.mark.parametrize("name", ["m.gguf", "d.gguf"])
def test_truncated(copied: Copy, refused: Refused, name: str, size: int) -> None:
    path = copied(name)
    path.write_bytes(path.read_bytes()[:size])
    refused("inspect", path, code=3, needle=DAMAGED)
    refused("plan", "--model", path, "--method", "svd", code=3, needle=DAMAGED)


def rewritten(path: Path, changes: dict[str, Any]) -> Path:
    """A sound file with other metadata; None leaves a key out."""
    reader, made = GGUFReader(path), path.with_name("changed.gguf")
    writer = GGUFWriter(made, "")
    writer.kv_data[0].clear()
    kept = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name, field in kept.items():
        value, kind = changes.get(name, field.contents()), field.types[0]
        if value is not None:
            below = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, below)
    for name, value in changes.items():
        if name not in kept:
            writer.add_key_value(name, value, GGUFValueType.UINT32)
    for one in reader.tensors:
        writer.add_tensor(one.name, np.array(one.data), raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


SHAPES: dict[str, dict[str, Any]] = {
    "no heads": {"llama.attention.head_count": 0},
    "three heads": {"llama.attention.head_count": 3},
    "many heads": {"llama.attention.head_count": 2**31},
    "no keys": {"llama.attention.head_count_kv": 0},
    "three keys": {"llama.attention.head_count_kv": 3},
    "more keys than heads": {"llama.attention.head_count_kv": 8},
    "wide": {"llama.embedding_length": 2**31},
    "narrow": {"llama.embedding_length": 32},
    "deep": {"llama.block_count": 2**31},
    "shallow": {"llama.block_count": 1},
    "no blocks": {"llama.block_count": 0},
    "thick": {"llama.feed_forward_length": 2**31},
    "long heads": {"llama.attention.key_length": 2**30},
    "no head size": {"llama.attention.key_length": 0},
    "other architecture": {"general.architecture": "qwen2"},
}


@pytest.mark.parametrize("case", SHAPES)
def test_metadata_that_contradicts_the_tensors(copied: Copy, refused: Refused, case: str) -> None:
    path = rewritten(copied("d.gguf"), SHAPES[case])
    refused("inspect", path, code=3, needle="damaged GGUF file")
    refused("plan", "--model", path, "--method", "svd", code=3)


def test_bytes_at_random(copied: Copy, tmp_path: Path) -> None:
    """A hundred files with a few bytes of the header changed: read, or refused in one line."""
    sound, chance = copied("d.gguf").read_bytes(), random.Random(0)  # noqa: S311
    for _ in range(100):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(8000)] = chance.randrange(256)
        (path := tmp_path / "m.gguf").write_bytes(data)
        result = CliRunner().invoke(app, ["inspect", str(path)])
        assert result.exit_code in (0, 3) and "bug" not in result.stderr, result.stderr


KILLERS: dict[str, dict[str, Any]] = {
    "rope wider than a head": {"llama.rope.dimension_count": 1000},
    "rope of an odd width": {"llama.rope.dimension_count": 15},
    "huge rope": {"llama.rope.dimension_count": 2**31},
    "NaN epsilon": {"llama.attention.layer_norm_rms_epsilon": float("nan")},
    "negative epsilon": {"llama.attention.layer_norm_rms_epsilon": -1.0},
    "end of text beyond the vocabulary": {"tokenizer.ggml.eos_token_id": 2**31},
    "begin beyond the vocabulary": {"tokenizer.ggml.bos_token_id": 2**32 - 1},
    "unknown tokenizer": {"tokenizer.ggml.model": "none of them"},
    "sentencepiece without bytes": {"tokenizer.ggml.model": "llama"},
    "wordpiece": {"tokenizer.ggml.model": "bert"},
    "unknown pre-tokenizer": {"tokenizer.ggml.pre": "none of them"},
    "no context": {"llama.context_length": 0},
    "huge context": {"llama.context_length": 2**32 - 1},
    "unknown vocabulary size": {"llama.vocab_size": 2**31},
    "other value length": {"llama.attention.value_length": 24},
}


@needs_llama_cpp
@pytest.mark.parametrize("case", KILLERS)
def test_llama_cpp_never_takes_this_process_along(copied: Copy, tmp_path: Path, case: str) -> None:
    """Whatever llama.cpp says or does about a file that agrees with itself: an open backend, or one line."""
    from lowrank_export.converter.core.errors import InputError, LowRankError
    from lowrank_export.runtime_tests.backends.trial import check_survives

    path = rewritten(copied("d.gguf"), KILLERS[case])
    try:
        check_survives(path, "llama.cpp")
    except LowRankError as error:
        assert isinstance(error, InputError) and "\n" not in str(error)


@needs_llama_cpp
def test_an_abort_inside_ggml_is_one_line(copied: Copy, refused: Refused, models: Path, tmp_path: Path) -> None:
    """From the command line: the gate that the artifact runs fails, and says what ggml asserted."""
    path = rewritten(copied("m.gguf"), KILLERS["rope wider than a head"])
    measured = ["--evaluate", models / "text.txt", "--evaluation-windows", 1, "--evaluation-length", 16, "--threads", 1]
    command = ["validate", path, "--reference", models / "factored", "--no-speed", *measured]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 4, done.stderr[-2000:]
    assert "artifact.runs" in done.stderr and "Traceback" not in done.stderr


PARTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "one is missing": (lambda first, second: second.unlink(), "is not beside it"),
    "one is cut short": (
        lambda first, second: second.write_bytes(second.read_bytes()[:-64]),
        "damaged or truncated GGUF",
    ),
    "one comes twice": (lambda first, second: second.write_bytes(first.read_bytes()), "it must be part 1 of 2"),
    "one is rubbish": (lambda first, second: second.write_bytes(b"rubbish"), "not a GGUF file"),
    "one is a folder": (lambda first, second: (second.unlink(), second.mkdir()), "is not beside it"),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts(copied: Copy, refused: Refused, gguf_files: ModuleType, tmp_path: Path, case: str) -> None:
    """Whichever is given."""
    change, needle = PARTS[case]
    (folder := tmp_path / "parts").mkdir()
    first, second = gguf_files.split(copied("d.gguf"), folder, (5,))
    change(first, second)
    refused("inspect", first, code=3, needle=needle)

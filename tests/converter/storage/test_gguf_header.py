"""Headers: read as gguf-py reads them, and one line about what is wrong with a damaged one."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf


@pytest.fixture(scope="module")
def exported(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    tiny.save_factored(folder / "model", "llama", rank=20)
    return export_gguf(folder / "model", folder / "m.gguf", Quantization("q8_0"), progress=SilentProgress()).path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """An entry; `shape` in ggml's order. 32 F32 numbers by default, which take 128 bytes."""
    numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + numbers


def build(
    *entries: bytes, keys: tuple[bytes, ...] = (), version: int = 3, data: int = 256, counts: bytes = b""
) -> bytes:
    head = b"GGUF" + struct.pack("<I", version) + (counts or struct.pack("<QQ", len(entries), len(keys)))
    head += b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % 32 + data)


def read(path: Path, content: bytes) -> str:
    """What the error says."""
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_header(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_agrees_with_gguf_py(exported: Path) -> None:
    header, theirs = read_header(exported), GGUFReader(exported)
    assert [(t.name, t.type, t.offset, t.bytes) for t in header.tensors] == [
        (t.name, t.tensor_type.name.lower(), t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert [t.shape for t in header.tensors] == [tuple(int(n) for n in reversed(t.shape)) for t in theirs.tensors]
    ours = {name: value for name, value in header.metadata.items() if name != "tokenizer.ggml.scores"}
    assert ours == {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}


def test_files_of_others(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_array("numbers", [[1, 2], [3]])
    writer.add_tensor("a", np.ones((2, 3, 4), dtype=np.float16))
    writer.add_tensor("b", np.ones(5, dtype=np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata["numbers"] == [[1, 2], [3]]
    assert [(t.shape, t.type, t.offset % 64) for t in header.tensors] == [((2, 3, 4), "f16", 0), ((5,), "f64", 0)]


def test_a_sound_file_built_by_hand(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(build(tensor("a"), tensor("b", offset=128)))
    assert [t.name for t in read_header(tmp_path / "m").tensors] == ["a", "b"]


HUGE = 2**62
DAMAGE = {
    "not a GGUF file": b"PK\x03\x04" + bytes(100),
    "the version wants 4 bytes at 4, the file ends at 4": b"GGUF",
    "version 9; known are 2, 3": build(version=9),
    "number of tensors is 4,611,686,018,427,387,904, more than fit": build(counts=struct.pack("<QQ", HUGE, 0)),
    "number of metadata keys is 4,611,686,018,427,387,904, more than": build(counts=struct.pack("<QQ", 0, HUGE)),
    "length of a metadata key is 1,0": build(keys=(struct.pack("<Q", 1000) + b"x" * 5,), data=0),
    "metadata key 'a' has unknown type 99": build(keys=(key("a", 99, b""),)),
    "metadata key 'a' occurs twice": build(keys=(key("a", 0, b"1"), key("a", 0, b"1"))),
    "length of 'a' is 4,611,686,018,427,387,904": build(keys=(key("a", 9, struct.pack("<IQ", 4, HUGE)),)),
    "general.alignment is 33, no power of two": build(keys=(key("general.alignment", 4, struct.pack("<I", 33)),)),
    "a tensor has no name": build(tensor("")),
    "a tensor's name has 64 letters": build(tensor("x" * 64)),
    "tensor 'a' has 5 dimensions": build(tensor("a", (1, 1, 1, 1, 1))),
    "tensor 'a' has 0 dimensions": build(tensor("a", ())),
    "tensor 'a' has unknown type 77": build(tensor("a", kind=77)),
    "tensor 'a' has shape 3 x 33, which Q8_0 cannot have .blocks of 32": build(tensor("a", (33, 3), kind=8)),
    "tensor 'a' has shape 0, which F32 cannot have": build(tensor("a", (0,))),
    "tensor 'a' .4,611,686,018,427,387,904 x 4,611,686,018,427,387,904 f32. ends at": build(tensor("a", (HUGE, HUGE))),
    "tensor 'a' begins at 65, which is not aligned to 32": build(tensor("a", offset=1)),
    "tensor 'b' .32 f32. ends at 352, the file at 351": build(tensor("a"), tensor("b", offset=128))[:-1],
    "tensor 'a' occurs twice": build(tensor("a"), tensor("a", offset=128)),
    "tensors 'a' and 'b' overlap": build(tensor("a"), tensor("b", offset=96)),
    "tensor 'b' begins at 288, after those before it comes 224": build(tensor("a"), tensor("b", offset=192), data=400),
    "tensor 'a' begins at 224, after those before it comes 96": build(tensor("a", offset=128), tensor("b")),
    "a metadata key at 24 is not UTF-8": build(keys=(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1),)),
    "a tensor's name at 24 is not UTF-8": build(tensor("ab").replace(b"ab", b"\xc3\x28")),
    "general.alignment has type 8, it must be a u32": build(keys=(key("general.alignment", 8, text("64")),)),
    "general.alignment is 0, no power of two": build(keys=(key("general.alignment", 4, struct.pack("<I", 0)),)),
    "number of dimensions of 'a+' wants 4 bytes": build(text("a" * 20), data=0)[:52],
    "dimension of 'a' wants 8 bytes": build(text("a") + struct.pack("<IQ", 2, 8))[:45],
    "type of 'a+' wants 4 bytes": build(keys=(text("a" * 20),), data=0)[:52],
    "length of 'a' is 9, more than fit": build(keys=(key("a", 9, struct.pack("<IQ", 8, 9)),), data=0)[:54],
    "metadata key 'a' has unknown type 9": build(keys=(key("a", 9, struct.pack("<IQ", 9, 1) * 5),)),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_explained(tmp_path: Path, message: str) -> None:
    assert re.search(message, read(tmp_path / "m.gguf", DAMAGE[message]))


def test_every_truncation_is_noticed(exported: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    last = max(tensor.offset + tensor.bytes for tensor in read_header(exported).tensors)
    for keep in [0, 3, 4, 5, 23, *range(24, last, last // 60), last - 1]:
        read(tmp_path / "m.gguf", content[:keep])


def test_random_damage_is_an_input_error_or_harmless(exported: Path, tmp_path: Path) -> None:
    content, path = exported.read_bytes(), tmp_path / "m.gguf"
    header = min(tensor.offset for tensor in read_header(exported).tensors)
    for seed in range(300):
        rng, data = np.random.default_rng(seed), bytearray(content)
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.integers(4, header)] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_header(path)
        except InputError as error:
            assert "\n" not in str(error)

"""Files whose parts are sound but contradict each other: one line says what contradicts what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf.adapter import export_adapter
from lowrank_export.exporters.gguf.adapter_files import adapter_path
from lowrank_export.exporters.gguf.consistency import check_consistency
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.runtime_tests.artifacts import describe

Keys = dict[str, Any]
Tensors = dict[str, tuple[tuple[int, ...], str]]
Change = Callable[[Keys, Tensors], object]


def contents(path: Path) -> tuple[Keys, Tensors]:
    header = read_header(path)
    return dict(header.metadata), {tensor.name: (tensor.shape, tensor.type) for tensor in header.tensors}


def write(path: Path, keys: Keys, tensors: Tensors) -> Path:
    """A file of these keys and of zeros."""
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, value in keys.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    data = []
    for name, (shape, kind) in tensors.items():
        type_ = GGMLQuantizationType[kind.upper()]
        block, width = GGML_QUANT_SIZES[type_]
        data.append(np.zeros(int(np.prod(shape)) // block * width, dtype=np.uint8))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), data[-1].nbytes, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in data:
        writer.write_padding(writer.fout[0], writer.fout[0].tell())
        writer.fout[0].write(array.data)
        writer.write_padding(writer.fout[0], array.nbytes)
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files of every layout."""
    folder = tmp_path_factory.mktemp("sound")
    tiny.save_factored(folder / "factored", "llama", rank=20)
    tiny.save_factored(folder / "pivoted", "llama", rank=20, layout="pivot")
    made = {
        "native": export_gguf(
            folder / "factored",
            folder / "native.gguf",
            Quantization("f16"),
            progress=SilentProgress(),
        ),
        "dense": export_gguf(
            folder / "factored",
            folder / "dense.gguf",
            Quantization("f16"),
            layout="dense",
            progress=SilentProgress(),
        ),
        "pivot": export_gguf(
            folder / "pivoted",
            folder / "pivot.gguf",
            Quantization("f16"),
            progress=SilentProgress(),
        ),
        "base": export_adapter(
            folder / "factored",
            folder / "base.gguf",
            Quantization("q8_0"),
            progress=SilentProgress(),
        ),
    }
    found = {name: artifact.path for name, artifact in made.items()}
    return {**found, "adapter": adapter_path(found["base"])}


@pytest.mark.parametrize("layout", ["native", "dense", "pivot", "base", "adapter"])
def test_sound_files(files: dict[str, Path], tmp_path: Path, layout: str) -> None:
    """As exported, and as the helper of the tests below writes them."""
    check_consistency(read_header(files[layout]))
    describe(files[layout])
    check_consistency(read_header(write(tmp_path / "m.gguf", *contents(files[layout]))))


def of(key: str, value: Any) -> Change:
    return lambda keys, _: keys.__setitem__(key, value)


def without(name: str) -> Change:
    return lambda keys, tensors: tensors.pop(name) if name in tensors else keys.pop(name)


def shaped(name: str, *shape: int) -> Change:
    return lambda _, tensors: tensors.__setitem__(name, (shape, "f32"))


def without_block(keys: Keys, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        del tensors[name]


def wrong_kind(keys: Keys, tensors: Tensors) -> None:
    tensors["blk.0.attn_q.lowrank_perm"] = ((64,), "f32")


UP = "blk.1.ffn_up"
TOKENS = "tokenizer.ggml"
DAMAGE: dict[str, tuple[str, Change, str]] = {
    "no architecture": ("dense", without("general.architecture"), "no general.architecture"),
    "architecture that is no text": ("dense", of("general.architecture", 7), "no general.architecture"),
    "no block count": ("dense", without("llama.block_count"), "there are blocks, but no llama.block_count"),
    "more blocks than there are": ("dense", of("llama.block_count", 3), "block 2 is missing: llama.block_count is 3"),
    "fewer blocks than there are": ("dense", of("llama.block_count", 1), "a block 1, but llama.block_count is 1"),
    "block count that is no number": ("dense", of("llama.block_count", "two"), "'two', no whole number"),
    "huge block count": ("dense", of("llama.block_count", 2**31), "block 2 is missing"),
    "block gone": ("dense", without_block, "block 0 is missing"),
    "weight gone": ("dense", without(f"{UP}.weight"), f"no weight for '{UP}'"),
    "norm gone": ("native", without("blk.0.attn_norm.weight"), "no weight for 'blk.0.attn_norm'"),
    "output norm gone": ("dense", without("output_norm.weight"), "no weight for 'output_norm'"),
    "weight of another shape": (
        "dense",
        shaped(f"{UP}.weight", 160, 32),
        r"'blk.1.ffn_up.weight' has shape \(160, 32\), but its metadata says 160 x 64",
    ),
    "norm of another length": ("dense", shaped("blk.0.attn_norm.weight", 63), r"shape \(63,\), but its metadata says"),
    "another width": ("dense", of("llama.embedding_length", 128), "but its metadata says"),
    "another inner width": ("dense", of("llama.feed_forward_length", 96), "ffn_.* but its metadata says"),
    "another number of heads": ("dense", of("llama.attention.head_count", 3), "attn_.* but its metadata says"),
    "no heads": ("dense", of("llama.attention.head_count", 0), "head_count is 0"),
    "heads that are no number": ("dense", of("llama.attention.head_count", 2.5), r"head_count is 2\.5"),
    "embedding of another vocabulary": (
        "dense",
        shaped("token_embd.weight", 300, 64),
        "320 tokens, but token_embd.weight has 300 rows",
    ),
    "fewer scores than tokens": ("dense", of(f"{TOKENS}.scores", [0.0]), "token_type has|scores has 1 entries"),
    "fewer types than tokens": ("dense", of(f"{TOKENS}.token_type", [1, 1]), "token_type has 2 entries"),
    "tokens that are no texts": ("dense", of(f"{TOKENS}.tokens", [1, 2]), "no list of texts"),
    "U without V": ("native", without(f"{UP}.lowrank_v.weight"), "has no lowrank_v.weight beside it"),
    "V without U": ("native", without(f"{UP}.lowrank_u.weight"), "has no lowrank_u.weight beside it"),
    "ranks that differ": ("native", shaped(f"{UP}.lowrank_u.weight", 160, 19), "are of different ranks"),
    "factor of three dimensions": ("native", shaped(f"{UP}.lowrank_u.weight", 1, 160, 20), "are of different ranks"),
    "factors of another width": (
        "native",
        shaped(f"{UP}.lowrank_v.weight", 20, 48),
        r"lowrank_v.weight' has shape \(20, 48\), but its metadata says rank x 64",
    ),
    "whole and in factors": ("native", shaped(f"{UP}.weight", 160, 64), "is there whole and in factors"),
    "factors without a version": ("native", without("lowrank.version"), "no lowrank.version"),
    "P without C": ("pivot", without(f"{UP}.lowrank_c.weight"), "has no lowrank_c.weight beside it"),
    "C of another rank": ("pivot", shaped(f"{UP}.lowrank_c.weight", 140, 19), "are of different ranks"),
    "too few pivot rows": ("pivot", shaped(f"{UP}.lowrank_c.weight", 130, 20), "but its metadata says 160 rows"),
    "order of too few rows": (
        "pivot",
        lambda _, tensors: tensors.__setitem__("blk.0.attn_q.lowrank_perm", ((63,), "i32")),
        "is no order of the rows",
    ),
    "order in another type": ("pivot", wrong_kind, "is no order of the rows"),
    "A without B": ("adapter", without(f"{UP}.weight.lora_b"), "has no lora_b beside it"),
    "B without A": ("adapter", without(f"{UP}.weight.lora_a"), "has no lora_a beside it"),
    "A and B of different ranks": ("adapter", shaped(f"{UP}.weight.lora_a", 19, 64), "are of different ranks"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_contradictions_are_explained(files: dict[str, Path], tmp_path: Path, case: str) -> None:
    layout, change, message = DAMAGE[case]
    keys, tensors = contents(files[layout])
    change(keys, tensors)
    path = write(tmp_path / "m.gguf", keys, tensors)
    with pytest.raises(InputError, match=message) as caught:
        describe(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: damaged GGUF file: ") and "\n" not in said


WEIGHT = {"blk.0.any.weight": ((8, 8), "f32"), "blk.1.any.weight": ((8, 8), "f32")}


@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"general.architecture": "mamba", "mamba.block_count": 2}, WEIGHT),
        ({"general.architecture": "deci", "deci.block_count": 9}, WEIGHT),
        ({"general.architecture": "t5", "t5.block_count": 2}, {"enc.blk.0.x.weight": ((8, 8), "f32")}),
        ({"general.architecture": "llama", "llama.block_count": 2}, {}),  # a vocabulary alone
        ({"general.architecture": "clip", "general.type": "mmproj"}, WEIGHT),
        ({"general.type": "imatrix", "imatrix.chunk_count": 1}, {"blk.0.x.weight.in_sum2": ((1, 8), "f32")}),
        (
            {
                "general.architecture": "llama",
                "llama.block_count": 2,
                "llama.expert_count": 8,
                "llama.attention.head_count": [1, 2],
            },
            WEIGHT,
        ),
    ],
)
def test_files_of_others_are_not_held_to_our_families(tmp_path: Path, keys: Keys, tensors: Tensors) -> None:
    found = describe(write(tmp_path / "m.gguf", keys, tensors))
    assert len(found.tensors) == len(tensors) and found.bits_per_weight >= 0

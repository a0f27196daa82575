"""Encoding: sizes, closeness, range; gguf-py and ggml write the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError, ResourceError, UsageError
from lowrank_export.exporters.gguf.encoding import GGUF_PY, encode
from lowrank_export.exporters.gguf.ggml_encoder import ggml_decode, ggml_encode
from lowrank_export.exporters.gguf.types import TYPES, tensor_bytes

# Largest error of a normal weight relative to the largest: half a step of a block's scale, or of its sub-scale.
ERRORS = {
    "f32": 0.0,
    "f16": 5e-4,
    "bf16": 4e-3,
    "q8_0": 1 / 127,
    "q6_k": 0.04,
    "q5_k": 0.06,
    "q5_1": 0.05,
    "q5_0": 0.07,
    "q4_k": 0.1,
    "q4_1": 0.08,
    "q4_0": 0.14,
    "iq4_nl": 0.14,
    "iq4_xs": 0.14,
    "q3_k": 0.25,
    "q2_k": 0.4,
    "iq3_s": 0.25,
    "iq3_xxs": 0.35,
    "iq2_s": 0.45,
    "iq2_xs": 0.5,
    "iq2_xxs": 0.55,
}
BY_GGML = tuple(name for name in TYPES if name not in GGUF_PY)


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)


@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), type=st.sampled_from(GGUF_PY))
def test_predicted_bytes_are_the_encoded_bytes(rows: int, blocks: int, type: str) -> None:
    values = weights(rows, 32 * blocks)
    assert encode("w", values, type).nbytes == tensor_bytes(values.shape, type)


@pytest.mark.parametrize("type", TYPES)
def test_encoding_is_close(type: str, ggml: Path) -> None:
    values = weights(8, 512)
    values[3] = 0
    importance = np.ones(512, dtype=np.float32) if TYPES[type].importance else None
    encoded = encode("w", values, type, ggml, importance)
    assert encoded.nbytes == tensor_bytes(values.shape, type)
    back = dequantize(encoded, GGMLQuantizationType[type.upper()])
    assert np.abs(back - values).max() <= ERRORS[type] * np.abs(values).max()
    np.testing.assert_array_equal(back[3], 0)


@pytest.mark.parametrize("type", [name for name in GGUF_PY if name not in ("f32", "f16", "bf16")])
def test_both_encoders_write_the_same_bits(type: str, ggml: Path) -> None:
    values = weights(64, 512) * np.float32(0.02)
    values[1], values[2, :32], values[3] = 0, 1e-9, 7.0
    np.testing.assert_array_equal(encode("w", values, type), ggml_encode(ggml, values, type))


def test_leading_dimensions_are_kept(ggml: Path) -> None:
    values = weights(6, 256).reshape(2, 3, 256)
    assert ggml_encode(ggml, values, "q4_k").shape == (2, 3, 144)


@pytest.mark.parametrize("type", [name for name in TYPES if TYPES[name].block > 1])
def test_both_decoders_read_the_same_bits(type: str, ggml: Path) -> None:
    importance = np.random.default_rng(0).uniform(0.1, 4, 512).astype(np.float32)
    encoded = ggml_encode(ggml, weights(16, 512), type, importance)
    theirs = dequantize(encoded, GGMLQuantizationType[type.upper()])
    np.testing.assert_array_equal(ggml_decode(ggml, encoded, type, 512), theirs)


@pytest.mark.parametrize("type", ["q4_0", "q5_1", "iq4_nl", "q4_k", "q2_k", "iq3_s", "iq2_xs"])
def test_importance_moves_the_error_to_columns_that_matter_less(type: str, ggml: Path) -> None:
    values, importance = weights(64, 256), np.where(np.arange(256) % 2, 100, 1).astype(np.float32)
    losses = [
        float((importance * (ggml_decode(ggml, ggml_encode(ggml, values, type, seen), type, 256) - values) ** 2).sum())
        for seen in (importance, np.ones_like(importance))
    ]
    assert losses[0] < 0.95 * losses[1]


@pytest.mark.parametrize("type", [name for name in TYPES if TYPES[name].importance])
def test_types_that_want_an_importance(type: str, ggml: Path) -> None:
    with pytest.raises(UsageError, match=f"'w': {type} wants an importance matrix"):
        encode("w", weights(2, 256), type, ggml)


def test_importance_that_ggml_would_end_the_process_without(ggml: Path) -> None:
    with pytest.raises(InputError, match="iq2_xxs cannot be encoded without an importance matrix"):
        ggml_encode(ggml, weights(2, 256), "iq2_xxs")


def test_importance_of_other_columns(ggml: Path) -> None:
    with pytest.raises(ValueError, match="rows of 256 weights"):
        ggml_encode(ggml, weights(2, 256), "q4_k", np.ones(128, dtype=np.float32))


@pytest.mark.parametrize("type", BY_GGML)
def test_types_that_want_a_library(type: str) -> None:
    with pytest.raises(ValueError, match=f"{type} is encoded by ggml"):
        encode("w", weights(2, 256), type, importance=np.ones(256, dtype=np.float32))


def test_library_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "libggml-base.so"
    path.write_bytes(b"no library")
    with pytest.raises(ResourceError, match="not a usable ggml library"):
        encode("w", weights(2, 256), "q4_k", path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", ["f32", "q4_0", "q4_k"])
def test_values_that_are_not_finite(value: float, type: str) -> None:
    values = np.ones((2, 256), dtype=np.float32)
    values[1, 3] = value
    with pytest.raises(InputError, match=r"'blk\.0\.x'.*not finite"):
        encode("blk.0.x", values, type)


def test_values_beyond_half_precision() -> None:
    values = np.full((2, 256), 1e5, dtype=np.float32)
    for type in ("f16", "q5_1", "q4_k"):
        with pytest.raises(InputError, match=f"beyond the range of {type}; export as bf16"):
            encode("w", values, type)
    encode("w", values, "bf16")
    encode("w", values, "q8_0")

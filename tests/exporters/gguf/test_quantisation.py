"""Storage types, sizes and encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.errors import InputError, UsageError
from lowrank_export.exporters.gguf.quantisation import (
    TYPES,
    choose_type,
    encode,
    fallbacks,
    predict_bytes,
    tensor_bytes,
)


@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), type=st.sampled_from(sorted(TYPES)))
def test_predicted_bytes_are_the_encoded_bytes(rows: int, blocks: int, type: str) -> None:
    weights = np.random.default_rng(rows).standard_normal((rows, 32 * blocks)).astype(np.float32)
    assert encode("w", weights, type).nbytes == tensor_bytes(weights.shape, type)


@pytest.mark.parametrize(("type", "error"), [("f32", 0.0), ("f16", 5e-4), ("bf16", 4e-3), ("q8_0", 1 / 127)])
def test_encoding_is_close(type: str, error: float) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    back = dequantize(encode("w", weights, type), GGMLQuantizationType[type.upper()])
    assert np.abs(back - weights).max() <= error * np.abs(weights).max()


def test_types_per_tensor() -> None:
    assert choose_type("blk.0.attn_norm.weight", (64,), "q8_0") == "f32"
    assert choose_type("blk.0.attn_q.weight", (64, 64), "q8_0") == "q8_0"
    assert choose_type("blk.0.attn_q.lowrank_u.weight", (64, 20), "q8_0") == "f16"
    assert choose_type("blk.0.attn_q.lowrank_u.weight", (64, 20), "bf16") == "bf16"


def test_fallbacks_are_listed() -> None:
    shapes = {"a": (64, 20), "b": (64, 32), "norm": (64,)}
    assert fallbacks(shapes, "q8_0") == {"a": "f16"}
    assert fallbacks(shapes, "f32") == {}


def test_prediction_counts_alignment() -> None:
    assert predict_bytes({"norm": (3,), "w": (2, 32)}, "q8_0") == 32 + 96


def test_unknown_type() -> None:
    with pytest.raises(UsageError, match=r"q9_0.*f32, f16, q8_0, bf16"):
        choose_type("w", (2, 2), "q9_0")


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="rows of 20"):
        tensor_bytes((2, 20), "q8_0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    weights = np.ones((2, 32), dtype=np.float32)
    weights[1, 3] = value
    with pytest.raises(InputError, match=r"'blk\.0\.x'.*not finite"):
        encode("blk.0.x", weights, "f32")


def test_values_beyond_half_precision() -> None:
    weights = np.full((2, 32), 1e5, dtype=np.float32)
    with pytest.raises(InputError, match="beyond the range of f16; export as bf16"):
        encode("w", weights, "f16")
    encode("w", weights, "bf16")
    encode("w", weights, "q8_0")

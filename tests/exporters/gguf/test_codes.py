"""Codes chosen weight by weight: the bytes are what both decoders read, the nearest level is the nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from lowrank_export.exporters.gguf.codes import BLOCK, CODES
from lowrank_export.exporters.gguf.ggml_encoder import ggml_decode, ggml_encode


def blocks(rows: int = 50) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((rows, BLOCK)).astype(np.float32)
    values[0], values[1] = 0, 3  # all zero; all alike
    return values


@pytest.mark.parametrize("type", CODES)
def test_packed_codes_mean_their_values(type: str, ggml: Path) -> None:
    codes, encoded = CODES[type], ggml_encode(ggml, blocks(), type)
    scale, offset = codes.scales(encoded)
    chosen = np.random.default_rng(2).integers(0, len(codes.levels), (len(encoded), BLOCK)).astype(np.uint8)
    values = np.stack([codes.values(chosen[:, k], scale, offset) for k in range(BLOCK)], axis=1)
    packed = codes.pack(chosen, encoded)
    np.testing.assert_array_equal(ggml_decode(ggml, packed, type, BLOCK), values)
    np.testing.assert_array_equal(dequantize(packed, GGMLQuantizationType[type.upper()]), values)


@pytest.mark.parametrize("type", CODES)
def test_nearest_level(type: str, ggml: Path) -> None:
    codes, weights = CODES[type], blocks()
    scale, offset = codes.scales(ggml_encode(ggml, weights, type))
    levels = scale[:, None] * np.array(codes.levels, dtype=np.float32) + offset[:, None]
    for k in range(BLOCK):
        found = codes.values(codes.nearest(weights[:, k], scale, offset), scale, offset)
        best = np.abs(levels - weights[:, k, None]).min(axis=1)
        np.testing.assert_allclose(np.abs(found - weights[:, k]), best, rtol=1e-5, atol=1e-6)


def test_scales_of_a_type_can_be_negative(ggml: Path) -> None:
    """Q4_0 gives the largest weight the level -8, whatever its sign: the order of levels turns round."""
    scale, _ = CODES["q4_0"].scales(ggml_encode(ggml, blocks(), "q4_0"))
    assert (scale < 0).any() and (scale > 0).any()

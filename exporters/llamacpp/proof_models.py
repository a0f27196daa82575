"""Tiny models that a build of llama.cpp is proven with: one block of the `llama` architecture, random, no vocabulary.

Nothing here asks the library for anything.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "iq4_nl")
"""A type of every family that exports use."""
LAYOUTS = ("dense", "factored", "pivot")

WIDTH, INNER, VOCABULARY = 256, 512, 96  # K-quants need rows of 256
HEADS, KEY_HEADS, HEAD = 4, 2, 64
CONTEXT = 512  # tokens
RANK, K_RANK = 96, 256
SINGLE_BLOCK = ("attn_k", "attn_v", "ffn_gate")
"""Linears of rank 32: factors whose rows are one block, which kernels may treat by themselves; K-quants' always are."""
EPSILON, ROPE_BASE = 1e-5, 10000.0
SHAPES = {
    "attn_q": (HEADS * HEAD, WIDTH),
    "attn_k": (KEY_HEADS * HEAD, WIDTH),
    "attn_v": (KEY_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}
"""Linear -> rows and columns."""


@dataclass(frozen=True)
class Stored:
    """A weight as the file holds it, and what its bytes mean.

    Attributes:
        data: what is written: float32, or bytes (rows, bytes per row).
        values: (rows, columns), dequantized by gguf-py.
    """

    data: NDArray[np.generic]
    values: Floats


@dataclass(frozen=True)
class Model:
    """One model of the proof.

    Attributes:
        kind: storage type of every weight.
        layout: one of LAYOUTS.
        weights: tensor's name in the file -> weight; norms and orders of rows are not among them.
        orders: name -> order of a pivot weight's rows, (rows,) int32.
    """

    kind: str
    layout: str
    weights: dict[str, Stored]
    orders: dict[str, NDArray[np.int32]]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.kind}-{self.layout}"


def make_model(kind: str, layout: str) -> Model:
    """A model with weights that are the same on every machine.

    Args:
        kind: one of TYPES.
        layout: "dense"; "factored": W = U V; "pivot": the rows of W are those of P and of C P, in an order of its own
            (for the gate in the order they are in), where W has more rows than the rank.
    """
    random = np.random.default_rng(zlib.crc32(f"{kind} {layout}".encode()))
    weights = {
        name: _random_weight(random, kind, shape)
        for name, shape in {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH)}.items()
    }
    orders: dict[str, NDArray[np.int32]] = {}
    for linear, (rows, columns) in SHAPES.items():
        name = f"blk.0.{linear}"
        rank = K_RANK if kind.endswith("_k") else 32 if linear in SINGLE_BLOCK else RANK
        parts = {".weight": (rows, columns)}
        if layout == "factored":
            parts = {".lowrank_u.weight": (rows, rank), ".lowrank_v.weight": (rank, columns)}
        elif layout == "pivot" and rows > rank:
            parts = {".lowrank_p.weight": (rank, columns), ".lowrank_c.weight": (rows - rank, rank)}
            if linear != "ffn_gate":
                orders[f"{name}.lowrank_perm"] = random.permutation(rows).astype(np.int32)
        weights |= {name + suffix: _random_weight(random, kind, shape) for suffix, shape in parts.items()}
    return Model(kind, layout, weights, orders)


def write_model(model: Model, path: Path) -> None:
    """Write the model as a GGUF file."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    if model.layout != "dense":
        writer.add_uint32("lowrank.version", LAYOUTS.index(model.layout))
    stored = GGMLQuantizationType[model.kind.upper()]
    for name, weight in model.weights.items():
        writer.add_tensor(name, weight.data, raw_dtype=stored)
    for name, order in model.orders.items():
        writer.add_tensor(name, order)
    for norm in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(norm, np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt(length: int) -> NDArray[np.int32]:
    """The first `length` tokens of the one text."""
    tokens = np.random.default_rng(7).integers(0, VOCABULARY, CONTEXT)
    return tokens[:length].astype(np.int32)


def _random_weight(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> Stored:
    """Random values of standard deviation 1 / sqrt(columns), as the type stores them."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    rows, columns = shape
    deviation = columns**-0.5
    stored = GGMLQuantizationType[kind.upper()]
    if kind in BLOCKS:
        data: NDArray[np.generic] = BLOCKS[kind](random, rows, columns, deviation)
    else:
        data = quantize((random.standard_normal(shape) * deviation).astype(np.float32), stored)
    return Stored(data, dequantize(data, stored).astype(np.float64))


def _q4_k(random: np.random.Generator, rows: int, columns: int, deviation: float) -> Bytes:
    """Blocks of 256: d, dmin (float16), 12 bytes of scales and minima, 4-bit values. gguf-py only reads them."""
    blocks = random.integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
    scale = random.uniform(0.5, 1.5, blocks.shape[:2]) * deviation / 168  # what random bits deviate by
    halves = np.stack([scale, 7.5 * scale], axis=-1).astype(np.float16)
    blocks[..., :4] = halves.view(np.uint8)
    blocks[..., 8:12] = blocks[..., 4:8]  # the minimum of 32 values is 7.5 of their scales: a mean of 0
    blocks[..., 12:16] = blocks[..., 12:16] % 16 * 17
    return blocks.reshape(rows, -1)


def _iq4_nl(random: np.random.Generator, rows: int, columns: int, deviation: float) -> Bytes:
    """Blocks of 32: d (float16), 4-bit places in a table. gguf-py only reads them."""
    blocks = random.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    scale = random.uniform(0.5, 1.5, (*blocks.shape[:2], 1)) * deviation / 70  # what the table's values deviate by
    scale *= random.choice((-1, 1), scale.shape)  # the table's mean is not 0
    blocks[..., :2] = scale.astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


BLOCKS: dict[str, Callable[[np.random.Generator, int, int, float], Bytes]] = {"q4_k": _q4_k, "iq4_nl": _iq4_nl}

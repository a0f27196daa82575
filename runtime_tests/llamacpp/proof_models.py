"""Tiny models that a build of llama.cpp is proven with, and their logits in numpy from the very same stored weights.

One block of the `llama` architecture, random weights, no vocabulary. Nothing here asks the library for anything.

`python -m lowrank_export.runtime_tests.llamacpp.proof_models FOLDER NAME...` writes models and logits: a process of its
own can be told to multiply on one thread, which on a busy machine is several times faster than many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.errors import ResourceError

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Rounding = Callable[[Floats], Floats]

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "iq4_nl")
"""A type of every family that exports use."""
LAYOUTS = ("dense", "factored", "pivot")

WIDTH, INNER, VOCABULARY = 256, 512, 96  # K-quants need rows of 256
HEADS, KEY_HEADS, HEAD = 4, 2, 64
CONTEXT = 512  # tokens
ROUNDED_POSITIONS = 64
RANK, K_RANK = 96, 256
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
        values: (rows, columns), dequantised by gguf-py.
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
    random = np.random.default_rng(abs(hash_of(f"{kind} {layout}")))
    rank = K_RANK if kind.endswith("_k") else RANK
    weights = {
        name: _random_weight(random, kind, shape)
        for name, shape in {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH)}.items()
    }
    orders: dict[str, NDArray[np.int32]] = {}
    for linear, (rows, columns) in SHAPES.items():
        name = f"blk.0.{linear}"
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


def logits(model: Model, tokens: NDArray[np.int32], *, activations: Rounding) -> Floats:
    """Logits (T, VOCABULARY) in float64. Those of a shorter prompt are the first of these: attention is causal.

    Args:
        model: weights.
        tokens: (T,).
        activations: applied to what is multiplied with a weight, (T, features).
    """

    def times(name: str, x: Floats) -> Floats:
        parts = {part: model.weights.get(f"{name}{part}") for part in PARTS}
        whole, u, v, p, c = (part.values if part is not None else None for part in parts.values())
        if u is not None and v is not None:
            return activations(activations(x) @ v.T) @ u.T
        if p is not None and c is not None:
            pivots = activations(x) @ p.T
            rows = np.concatenate([pivots, activations(pivots) @ c.T], axis=1)
            order = model.orders.get(f"{name}.lowrank_perm")
            return rows if order is None else rows[:, order]
        assert whole is not None
        product: Floats = activations(x) @ whole.T
        return product

    x = model.weights["token_embd.weight"].values[tokens]
    normed = _normed(x)
    query, key, value = (times(f"blk.0.attn_{name}", normed).reshape(len(tokens), -1, HEAD) for name in "qkv")
    mixed = _attention(_rotated(query), _rotated(key), value)
    x = x + times("blk.0.attn_output", mixed)
    normed = _normed(x)
    gate = times("blk.0.ffn_gate", normed)
    x = x + times("blk.0.ffn_down", gate / (1 + np.exp(-gate)) * times("blk.0.ffn_up", normed))
    return times("output", _normed(x))


def expected(model: Model) -> tuple[Floats, float]:
    """Exact logits of the longest prompt, and what rounded activations change in them, as a share of their size."""
    tokens = prompt(CONTEXT)
    exact = logits(model, tokens, activations=exactly)
    rounding = rounding_of(model.kind)
    if rounding is exactly:
        return exact, 0.0
    rounded = logits(model, tokens[:ROUNDED_POSITIONS], activations=rounding)
    changes = np.linalg.norm(rounded - exact[:ROUNDED_POSITIONS], axis=1)
    return exact, float(np.sqrt((changes**2).mean())) / size_of(exact)


def size_of(values: Floats) -> float:
    """Root mean square over positions of the length of their logits."""
    return float(np.sqrt((values**2).sum(axis=1).mean()))


def check_numpy() -> None:
    """Hold numpy's matrix products to sums without a BLAS: an old BLAS on a new processor would blame the library.

    Raises:
        ResourceError: they differ, so that nothing can be proven with them.
    """
    left, right = np.random.default_rng(3).standard_normal((2, CONTEXT, WIDTH))
    if not np.allclose(
        left @ right[:VOCABULARY].T, np.einsum("ik,jk->ij", left, right[:VOCABULARY]), rtol=0, atol=1e-9
    ):
        raise ResourceError("numpy computes wrong matrix products on this processor; install a newer numpy")


PARTS = (".weight", ".lowrank_u.weight", ".lowrank_v.weight", ".lowrank_p.weight", ".lowrank_c.weight")


def exactly(x: Floats) -> Floats:
    """No rounding."""
    return x


def to_half(x: Floats) -> Floats:
    """To float16 and back."""
    return x.astype(np.float16).astype(np.float64)


def rounding_of(kind: str) -> Rounding:
    """What ggml does to activations before it multiplies them with weights of a type."""
    return {"f32": exactly, "f16": to_half, "bf16": _to_bfloat16, "q4_k": _to_8_bits(256)}.get(kind, _to_8_bits(32))


def hash_of(text: str) -> int:
    """A seed from a name; Python's own `hash` differs between processes."""
    import zlib

    return zlib.crc32(text.encode())


def _to_bfloat16(x: Floats) -> Floats:
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return nearest.view(np.float32).astype(np.float64)


def _to_8_bits(block: int) -> Rounding:
    def rounded(x: Floats) -> Floats:
        blocks = x.reshape(*x.shape[:-1], -1, block)
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        scale[scale == 0] = 1
        nearest: Floats = np.round(blocks / scale) * scale
        return nearest.reshape(x.shape)

    return rounded


def _normed(x: Floats) -> Floats:
    normed: Floats = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)
    return normed


def _rotated(x: Floats) -> Floats:
    """Rotary positions, (T, heads, HEAD): neighbours are a pair, as llama.cpp stores this architecture."""
    angles = np.arange(len(x))[:, None, None] * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.stack([even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)], -1)
    return turned.reshape(x.shape)


def _attention(query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention, (T, heads, HEAD) each -> (T, heads * HEAD)."""
    count = len(query)
    later = np.triu(np.full((count, count), -np.inf), 1)
    heads = []
    for head in range(HEADS):
        shared = head * KEY_HEADS // HEADS
        scores = query[:, head] @ key[:, shared].T / np.sqrt(HEAD) + later
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, shared])
    return np.concatenate(heads, axis=1)


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


def main(folder: Path, names: list[str]) -> None:
    """Write NAME.gguf and NAME.npz (`expected`'s two) of every model named."""
    check_numpy()
    for name in names:
        kind, _, layout = name.partition("-")
        model = make_model(kind, layout)
        write_model(model, folder / f"{name}.gguf")
        exact, rounded = expected(model)
        np.savez(folder / f"{name}.npz", exact=exact, rounded=rounded)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except (ResourceError, OSError) as error:
        sys.stderr.write(f"\n{error}\n")
        sys.exit(ResourceError.exit_code)

"""Logits of the tiny models in numpy, from the very same stored weights, and what rounding changes in them.

`python -m lowrank_export.exporters.llamacpp.proof_logits FOLDER NAME...` writes models and logits: a process of its
own can be set to multiply on one thread, which on a busy machine is several times faster than many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import ResourceError
from .proof_models import (
    CONTEXT,
    EPSILON,
    HEAD,
    HEADS,
    KEY_HEADS,
    ROPE_BASE,
    VOCABULARY,
    WIDTH,
    Floats,
    Model,
    make_model,
    prompt,
    write_model,
)

Rounding = Callable[[Floats], Floats]
ROUNDED_POSITIONS = 64
PARTS = (".weight", ".lowrank_u.weight", ".lowrank_v.weight", ".lowrank_p.weight", ".lowrank_c.weight")


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


def exactly(x: Floats) -> Floats:
    """No rounding."""
    return x


def to_half(x: Floats) -> Floats:
    """To float16 and back."""
    return x.astype(np.float16).astype(np.float64)


def rounding_of(kind: str) -> Rounding:
    """What ggml does to activations before it multiplies them with weights of a type."""
    return {"f32": exactly, "f16": to_half, "bf16": _to_bfloat16, "q4_k": _to_8_bits(256)}.get(kind, _to_8_bits(32))


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
    """Rotary positions, (T, heads, HEAD): neighbors are a pair, as llama.cpp stores this architecture."""
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
    except ResourceError as error:
        sys.stderr.write(f"\n{error}\n")
        sys.exit(ResourceError.exit_code)
    except OSError as error:
        sys.stderr.write(f"\nthe temporary folder takes no more ({error})\n")
        sys.exit(ResourceError.exit_code)

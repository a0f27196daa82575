"""Attention where PyTorch's own is not the best: in bfloat16 on the CPU, and with fewer key heads on CUDA.

On the CPU its kernel multiplies in bfloat16 no faster than in float32. Plain matrix products do, and a block of queries
needs the keys up to its last query only. On CUDA its kernel for float32 needs as many key heads as query heads; given
fewer, PyTorch computes all scores of a window, (B, heads, T, T), and holds them several times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME, REPEATED, CAPPED = "lowrank_causal", "lowrank_repeated", "lowrank_capped"
QUERIES = 256  # per block: few enough to skip most of the future, enough for the matmul to run at full speed


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K^T + causal mask) V.

    Args:
        query: (B, heads, T, d) bfloat16.
        key, value: (B, groups, T, d) bfloat16; a group serves heads / groups adjacent heads.
        scale: of the scores.

    Returns:
        (B, T, heads, d) bfloat16, contiguous.
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    query, key, value = query * scale, key.contiguous(), value.contiguous()
    future = query.new_full((QUERIES, QUERIES), float("-inf")).triu(1)
    parts = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        asked = query[:, :, start:stop].reshape(batch, groups, -1, size)
        scores = (asked @ key[:, :, :stop].transpose(-1, -2)).view(batch, heads, stop - start, stop)
        scores[..., start:] += future[: stop - start, : stop - start]
        weights = scores.softmax(-1).view(batch, groups, -1, stop)
        parts.append((weights @ value[:, :, :stop]).view(batch, heads, stop - start, -1))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`causal_attention` as transformers calls attention; whatever it cannot do goes to PyTorch's."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None or options.get("dropout") or options.get("is_causal") is False:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        return causal_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), scale), None


def repeated_attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """PyTorch's attention, as transformers calls it, with key and value heads repeated for the queries they serve."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    served = query.shape[1] // key.shape[1]
    if attention_mask is not None or options.get("softcap") is not None or served == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    key, value = key.repeat_interleave(served, 1), value.repeat_interleave(served, 1)
    causal = options.get("is_causal") is not False and query.shape[2] > 1
    y = nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=options.get("dropout") or 0.0, is_causal=causal, scale=options.get("scaling")
    )
    return y.transpose(1, 2).contiguous(), None


def capped_attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention with a soft cap c on scores, c tanh(s / c), as transformers calls it; scores of a block of queries."""
    served, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(served, 1), value.repeat_interleave(served, 1)
    scale, cap = options["scaling"], options["softcap"]
    parts = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        seen = slice(0, stop)
        scores = (query[:, :, start:stop] @ key[:, :, seen].transpose(-1, -2)).float() * (scale / cap)
        scores = scores.tanh() * cap
        if attention_mask is None:
            allowed = torch.ones(stop - start, stop, dtype=torch.bool, device=query.device).tril(start)
        else:
            allowed = attention_mask[..., start:stop, seen]
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        parts.append(weights.to(query.dtype) @ value[:, :, seen])
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register(device: torch.device, bfloat16: bool, config: Any) -> str:
    """The attention to ask transformers for, by name, after telling it about ours.

    Args:
        device: where it runs.
        bfloat16: whether it multiplies in bfloat16.
        config: of the model, which may have a soft cap on scores.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    for name, function in (
        (NAME, attention_function),
        (REPEATED, repeated_attention_function),
        (CAPPED, capped_attention_function),
    ):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)  # gives no mask where causal attention is all that is asked
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return CAPPED
    if device.type == "cuda":
        return REPEATED
    return NAME if bfloat16 and device.type == "cpu" else "sdpa"

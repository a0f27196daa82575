"""Gemma 3's text model: norms behind linears, a window in most blocks, a rotary embedding per kind of block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family, Gguf, Onnx, Setting, Value
from .gemma2 import DEFAULTS, MORE_NORMS, SETTINGS, score_scale, windows
from .parts import (
    ATTENTION_BIAS,
    GATED,
    GATED_ORDER,
    GGUF_BLOCK,
    GGUF_OUTSIDE,
    GGUF_POST_NORMS,
    GGUF_QUERY_KEY_NORMS,
    PLACES,
    QUERY_KEY_NORMS,
    TWO_NORMS,
    root_of_width,
)

PERIOD = 6  # each block of that number attends to everything, where nothing says which do
LARGEST = 62  # blocks of the 27B model, by which llama.cpp knows it


def _flat_rotary(config: Any) -> None:
    """GenAI's builder reads one set of rotary parameters, and the base of the other kind of block."""
    kinds = config.rope_parameters
    some = kinds.get("full_attention") or kinds.get("sliding_attention")
    config.rope_local_base_freq = (kinds.get("sliding_attention") or some)["rope_theta"]
    config.rope_parameters = dict(some)


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """Windows, and the rotary base of the blocks that have one; transformers 4 kept it apart."""
    score_scale(config, LARGEST)
    rotary = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    base = rotary.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0
    cap = config.get("final_logit_softcapping")
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or PERIOD
    found = windows(config, period)
    return {
        **found,
        "rope.freq_base_swa": float(base),
        **({"final_logit_softcapping": float(cap)} if cap else {}),
    }


def _restored(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scale of scores, windows, rotary bases and the soft cap, as llama.cpp takes them from a file."""
    blocks, width = int(said["block_count"]), int(said["embedding_length"]) // int(said["attention.head_count"])
    scale = width if blocks == LARGEST else int(said.get("attention.key_length", width))
    pattern, window = said.get("attention.sliding_window_pattern", PERIOD), said.get("attention.sliding_window")
    if not isinstance(pattern, list):
        pattern = [bool(block % int(pattern)) for block in range(1, blocks + 1)]
    everything = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base", 10000.0))}
    if said.get("rope.scaling.type") == "linear":
        everything = {**everything, "rope_type": "linear", "factor": float(said["rope.scaling.factor"])}
    sliding = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base_swa", 10000.0))}
    return {
        "query_pre_attn_scalar": scale,
        "layer_types": [
            "sliding_attention" if windowed and window else "full_attention" for windowed in pattern[:blocks]
        ],
        "rope_parameters": {"full_attention": everything, "sliding_attention": sliding},
        "final_logit_softcapping": said.get("final_logit_softcapping"),
    }


FAMILY = Family(
    "gemma3_text",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=(*TWO_NORMS, *MORE_NORMS, *QUERY_KEY_NORMS),
    biases=ATTENTION_BIAS,
    embedding_scale=root_of_width,
    gguf=Gguf(
        "gemma3",
        {**GGUF_BLOCK, **GGUF_POST_NORMS, **GGUF_QUERY_KEY_NORMS},
        GGUF_OUTSIDE,
        windows=True,
        norm_shift=1.0,
        rope_base=1e6,
        keys=_gguf_keys,
        factored=True,
        restored=_restored,
        tokenizer="llama",
        read=True,
    ),
    onnx=Onnx("Gemma3Model", genai_type="gemma3_text", adapt=_flat_rotary),
    settings={
        **SETTINGS,
        "attn_logit_softcapping": Setting(gguf=()),
        "rope_local_base_freq": Setting(),
        "sliding_window_pattern": Setting(),
        "_sliding_window_pattern": Setting(),
    },
    defaults={**DEFAULTS, "max_position_embeddings": 131072},
    tiny={
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
)

"""What several families have in common: places, groups of linears, GGUF names, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Experts, Gguf, InputGroup, Setting, SharedOrder

PLACES = ("model.layers", "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
"""Blocks, embedding, rotary embedding, final norm and head, where most families have them."""
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def input_groups(*linears: tuple[str, ...]) -> tuple[InputGroup, ...]:
    """The groups of a block: linears into attention, out of it, into the MLP, out of it."""
    names = ("attention in", "attention out", "mlp in", "mlp out")
    return tuple(InputGroup(name, group) for name, group in zip(names, linears, strict=True))


GATED = input_groups(ATTENTION[:3], ATTENTION[3:], GATED_MLP[:2], GATED_MLP[2:])
ATTENTION_GROUPS = GATED[:2]
GATED_ORDER = (SharedOrder(GATED_MLP[:2], GATED_MLP[2]),)
TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
QUERY_KEY_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
ATTENTION_BIAS = dict.fromkeys(ATTENTION, "attention_bias")
MLP_BIAS = dict.fromkeys(GATED_MLP, "mlp_bias")

LINEAR_SIZES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("q_proj",), ("queries", "hidden")),
    **dict.fromkeys(("k_proj", "v_proj"), ("keys", "hidden")),
    "qkv_proj": ("queries and keys", "hidden"),
    **dict.fromkeys(("o_proj", "out_proj"), ("hidden", "queries")),
    **dict.fromkeys(("gate_proj", "up_proj", "c_fc", "fc1"), ("inner", "hidden")),
    "gate_up_proj": ("twice inner", "hidden"),
    **dict.fromkeys(("down_proj", "c_proj", "fc2"), ("hidden", "inner")),
}
"""Name of a linear -> its outputs and inputs, in the words of `config_check`."""

GGUF_BLOCK: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_QUERY_KEY_NORMS: Mapping[str, str] = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GGUF_OUTSIDE: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


GGUF_POST_NORMS: Mapping[str, str] = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def verified_gguf(architecture: str, *, interleaved: bool = False, more: Mapping[str, str] | None = None) -> Gguf:
    """A family of gated blocks whose factored files, and files as input, were compared with torch."""
    return Gguf(
        architecture, {**GGUF_BLOCK, **(more or {})}, GGUF_OUTSIDE, interleaved=interleaved, factored=True, read=True
    )


def expert_gguf(
    architecture: str,
    experts: Experts,
    *,
    interleaved: bool = False,
    rope_base: float = 10000.0,
    wide_norms: bool = False,
    more: Mapping[str, str] | None = None,
) -> Gguf:
    """A family of experts whose factored files were compared with torch: one tensor for a linear of all experts."""
    attention = {path: name for path, name in GGUF_BLOCK.items() if not path.startswith("mlp.")}
    stacks = {
        experts.router: "ffn_gate_inp",
        experts.linear("*", experts.gate): "ffn_gate_exps",
        experts.linear("*", experts.up): "ffn_up_exps",
        experts.linear("*", experts.down): "ffn_down_exps",
    }
    return Gguf(
        architecture,
        {**attention, **stacks, **(more or {})},
        GGUF_OUTSIDE,
        interleaved=interleaved,
        rope_base=rope_base,
        wide_norms=wide_norms,
        keys=experts.gguf_keys,
        factored=True,
    )


SIZES = {
    name: Setting()
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    )
}
ROTARY = {
    "rope_theta": Setting(),
    "rope_scaling": Setting(),
    "rope_parameters": Setting(),
    "partial_rotary_factor": Setting(gguf=(1.0,)),
}
BASE: Mapping[str, Setting] = {**SIZES, **ROTARY, "tie_word_embeddings": Setting()}
GATED_SETTINGS: Mapping[str, Setting] = {**BASE, "hidden_act": Setting(gguf=("silu",)), "rms_norm_eps": Setting()}
WINDOWS = {"sliding_window": Setting(), "layer_types": Setting()}
QWEN_WINDOWS = {**WINDOWS, "use_sliding_window": Setting(), "max_window_layers": Setting()}
CAUSAL = {"use_bidirectional_attention": Setting(torch=(False,), gguf=(False,), onnx=(False,))}
TIED = {"tie_word_embeddings": Setting(gguf=(True,))}
GELU = {"hidden_activation": Setting(gguf=("gelu_pytorch_tanh",))}


def window_everywhere(config: Any) -> None:
    """Say that a sliding window holds in every block, which GenAI's builder needs spelled out."""
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def sliding_blocks(config: Mapping[str, Any], period: int) -> list[bool]:
    """Whether each block attends to a window: as config.json says, else all but every `period`-th."""
    kinds = config.get("layer_types")
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    return [bool(block % period) for block in range(1, int(config["num_hidden_layers"]) + 1)]


def root_of_width(config: Any) -> float:
    """Gemma's scale of embeddings."""
    return float(config.hidden_size**0.5)

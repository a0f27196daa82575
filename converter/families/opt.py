"""OPT: learned positions, layer norms, biases, a plain MLP."""

from __future__ import annotations

from .family import Family, Setting, SharedOrder
from .parts import input_groups

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
MLP = ("fc1", "fc2")

FAMILY = Family(
    "opt",
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    rotary="",
    norm="model.decoder.final_layer_norm",
    head="lm_head",
    groups=input_groups(ATTENTION[:3], ATTENTION[3:], MLP[:1], MLP[1:]),
    shared_orders=(SharedOrder(MLP[:1], MLP[1]),),
    compressed=True,
    positions="model.decoder.embed_positions",
    norms=("self_attn_layer_norm", "final_layer_norm"),
    norm_biases=True,
    biases=dict.fromkeys((*ATTENTION, *MLP), "enable_bias"),
    inner="ffn_dim",
    no_gguf="llama.cpp has no such architecture",
    settings={
        **{
            name: Setting()
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "ffn_dim",
                "word_embed_proj_dim",
                "max_position_embeddings",
                "activation_function",
                "enable_bias",
                "tie_word_embeddings",
                "pad_token_id",
            )
        },
        "do_layer_norm_before": Setting(torch=(True,)),
        "_remove_final_layer_norm": Setting(torch=(False,)),
        "layer_norm_elementwise_affine": Setting(torch=(True,)),
    },
    tiny={
        "ffn_dim": 160,
        "hidden_size": 80,
        "word_embed_proj_dim": 80,
        "pad_token_id": 1,
        "intermediate_size": None,
        "num_key_value_heads": None,
        "head_dim": None,
    },
    defaults={
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "enable_bias": True,
    },
)

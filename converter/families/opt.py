"""OPT, exported but not compressed: learned positions, layer norms."""

from __future__ import annotations

from .family import Family, Setting

FAMILY = Family(
    "opt",
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    rotary="",
    norm="model.decoder.final_layer_norm",
    head="lm_head",
    settings={
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
            "do_layer_norm_before",
            "_remove_final_layer_norm",
            "enable_bias",
            "layer_norm_elementwise_affine",
            "tie_word_embeddings",
            "pad_token_id",
        )
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
    defaults={"tie_word_embeddings": True},
)

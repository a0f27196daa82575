"""OLMo 2: norms behind attention and MLP only, and norms of all queries and all keys."""

from __future__ import annotations

from .family import Family, Gguf, Setting
from .parts import (
    ATTENTION_BIAS,
    GATED,
    GATED_ORDER,
    GATED_SETTINGS,
    GGUF_BLOCK,
    GGUF_OUTSIDE,
    GGUF_POST_NORMS,
    GGUF_QUERY_KEY_NORMS,
    PLACES,
    QUERY_KEY_NORMS,
)

NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILY = Family(
    "olmo2",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=(*NORMS, *QUERY_KEY_NORMS),
    biases=ATTENTION_BIAS,
    gguf=Gguf(
        "olmo2",
        {
            **{path: name for path, name in GGUF_BLOCK.items() if not path.endswith("layernorm")},
            **{norm: GGUF_POST_NORMS[norm] for norm in NORMS},
            **GGUF_QUERY_KEY_NORMS,
        },
        GGUF_OUTSIDE,
        wide_norms=True,
        factored=True,
    ),
    settings={
        **GATED_SETTINGS,
        "attention_bias": Setting(gguf=(False,)),
        "tie_word_embeddings": Setting(gguf=(False,)),
    },
    defaults={"max_position_embeddings": 2048},
    tiny={"tie_word_embeddings": False},
)

"""StarCoder 2: layer norms, biases, a plain MLP, a sliding window."""

from __future__ import annotations

from .family import Family, Gguf, Setting, SharedOrder
from .parts import ATTENTION, BASE, GGUF_BLOCK, GGUF_OUTSIDE, PLACES, TWO_NORMS, input_groups

MLP = ("mlp.c_fc", "mlp.c_proj")

FAMILY = Family(
    "starcoder2",
    *PLACES,
    groups=input_groups(ATTENTION[:3], ATTENTION[3:], MLP[:1], MLP[1:]),
    shared_orders=(SharedOrder(MLP[:1], MLP[1]),),
    compressed=True,
    norms=TWO_NORMS,
    norm_biases=True,
    biases=dict.fromkeys((*ATTENTION, *MLP), "use_bias"),
    gguf=Gguf(
        "starcoder2",
        {
            **{path: name for path, name in GGUF_BLOCK.items() if not path.startswith("mlp.")},
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        GGUF_OUTSIDE,
        layer_norm="norm_epsilon",
        factored=True,
    ),
    settings={
        **BASE,
        "hidden_act": Setting(gguf=("gelu_pytorch_tanh",)),
        "norm_epsilon": Setting(),
        "use_bias": Setting(gguf=(True,)),
        "sliding_window": Setting(),
    },
    defaults={"tie_word_embeddings": True, "num_key_value_heads": 2, "max_position_embeddings": 4096, "use_bias": True},
)

"""Keys of config.json: read, inert, neutral, or named in a refusal."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.settings import check_settings, uncarried_keys, unread_keys
from lowrank_export.converter.families.table import FAMILIES

LLAMA = FAMILIES["llama"]
REAL = {  # what published folders of these families hold beside their sizes
    "llama": {
        "_name_or_path": "some/where",
        "architectures": ["LlamaForCausalLM"],
        "is_llama_config": True,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "unsloth_fixed": True,
        "max_sequence_length": 2048,
        "eos_token_id": [128001, 128008, 128009],
        "neftune_noise_alpha": 5.0,
    },
    "qwen2": {"use_mrope": False, "sliding_window": 131072, "max_window_layers": 28, "use_sliding_window": False},
    "phi3": {
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attention_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]},
    },
    "gemma": {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": None},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family: str, tiny: ModuleType) -> None:
    """The whole config.json that transformers saves for a family has no key that the table does not know."""
    said = tiny.config(family).to_dict()
    assert unread_keys(said, FAMILIES[family]) == {}
    check_settings(said, FAMILIES[family], "here")


@pytest.mark.parametrize("family", REAL)
def test_what_people_have_is_read(family: str) -> None:
    check_settings(REAL[family], FAMILIES[family], "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logits_scaling", 8.0),
        ("embedding_multiplier", 12),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("sliding_window", 4096),
        ("use_qk_norm", True),
        ("bias", True),
        ("rotary", {"base": 10000, "type": "dynamic"}),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("position_embedding_type", "alibi"),
        ("num_local_experts", 8),
        ("quantization", {"bits": 4, "group_size": 64}),
        ("pruned_heads", {"0": [1]}),
        ("logit_scale", float("nan")),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "mrope_section": [16, 24, 24]}),
    ],
)
def test_a_key_that_a_llama_does_not_read_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"config.json says .*{key}.*which no llama model here reads"):
        check_settings({key: value}, LLAMA, "here")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.sampled_from([None, False, 0, 0.0, 1, 1.0, "", [], {}]),
        max_size=6,
    )
)
def test_what_changes_nothing_is_let_pass(config: dict[str, Any]) -> None:
    """Any key at all, as long as it is off; a setting of the family is somebody else's to judge."""
    strange = {key: value for key, value in config.items() if key not in LLAMA.settings}
    assert unread_keys(strange, LLAMA) == {}


def test_two_rotary_embeddings_that_differ() -> None:
    plain, scaled = {"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}
    check_settings({"rope_parameters": scaled, "rope_scaling": scaled}, LLAMA, "here")
    with pytest.raises(InputError, match="rope_parameters and rope_scaling, and they differ"):
        check_settings({"rope_parameters": plain, "rope_scaling": scaled}, LLAMA, "here")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("family", "config", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 64}}, "rope_parameters.beta_fast"),
        ("llama", {"rope_scaling": {**YARN, "attention_factor": 1.5}}, "rope_scaling.attention_factor"),
        ("llama", {"rope_parameters": {**YARN, "mscale": 1.0}}, "rope_parameters.mscale"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "rope_parameters.truncate"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
    ],
)
def test_what_gguf_does_not_say(family: str, config: dict[str, Any], named: str) -> None:
    assert list(uncarried_keys(config, FAMILIES[family], "gguf")) == [named]
    assert uncarried_keys(config, FAMILIES[family], "onnx") == {}
    with pytest.raises(InputError, match="which GGUF export does not carry"):
        check_settings(config, FAMILIES[family], "here", "gguf")


def test_what_gguf_takes_for_granted_may_be_said() -> None:
    said = {**YARN, "beta_fast": 32, "beta_slow": 1.0, "truncate": True, "attention_factor": None, "mscale": 0}
    check_settings({"rope_parameters": said, "hidden_act": "silu"}, LLAMA, "here", "gguf")


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_attention_to_what_follows(family: str) -> None:
    with pytest.raises(InputError, match="use_bidirectional_attention"):
        check_settings({"use_bidirectional_attention": True}, FAMILIES[family], "here")

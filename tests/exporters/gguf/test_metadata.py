"""Hyperparameters."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.exporters.gguf.metadata import read_hyperparameters, rope_factors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 131072,
    "intermediate_size": 128,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_defaults() -> None:
    found = read_hyperparameters(CONFIG)
    assert (found.key_value_heads, found.head_dim, found.rope_type, found.tied) == (4, 16, "default", False)
    assert found.rope["rope_theta"] == 10000.0
    assert rope_factors(found) == {}


def test_rope_of_older_transformers() -> None:
    found = read_hyperparameters({**CONFIG, "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert (found.rope_type, found.rope["rope_theta"], found.rope["factor"]) == ("linear", 1e6, 2.0)


def test_llama3_factors_equal_those_of_transformers(tiny: ModuleType) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = tiny.config("llama", rope_parameters=LLAMA3, head_dim=64, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    factors = rope_factors(read_hyperparameters({**CONFIG, "head_dim": 64, "rope_parameters": LLAMA3}))[
        "rope_freqs.weight"
    ]
    np.testing.assert_allclose(factors, plain / scaled.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial rotary"),
    ],
)
def test_what_cannot_be_expressed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hyperparameters({**CONFIG, **change})


GEMMA3 = {
    **CONFIG,
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
}


def test_windows_and_two_rotary_bases() -> None:
    """As transformers 4 wrote them, as 5 does, and where config.json is silent."""
    sliding = [True] * 5 + [False]
    per_kind = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    for said, bases in ((old, (5e5, 2e4)), ({"rope_parameters": per_kind}, (5e5, 2e4)), ({}, (1e6, 1e4))):
        found = read_hyperparameters({**GEMMA3, **said})
        assert (found.rope["rope_theta"], found.keys["rope.freq_base_swa"]) == bases
        assert (found.rope_type == "linear") == bool(said)
        assert found.keys["attention.sliding_window_pattern"] == sliding
    everything = read_hyperparameters({**GEMMA3, "layer_types": ["full_attention"] * 6, "final_logit_softcapping": 30})
    assert everything.keys["attention.sliding_window_pattern"] == [False] * 6
    assert everything.keys["final_logit_softcapping"] == 30.0


def test_scores_on_another_scale() -> None:
    with pytest.raises(InputError, match=r"query_pre_attn_scalar: 168, where llama\.cpp takes 256"):
        read_hyperparameters({**GEMMA3, "query_pre_attn_scalar": 168})
    largest = {"num_hidden_layers": 62, "hidden_size": 1344, "num_attention_heads": 8, "num_key_value_heads": 4}
    read_hyperparameters({**GEMMA3, **largest, "query_pre_attn_scalar": 168})


def test_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="rms_norm_eps"):
        read_hyperparameters({key: value for key, value in CONFIG.items() if key != "rms_norm_eps"})


def test_sliding_window_counts_where_it_is_used() -> None:
    assert read_hyperparameters({**CONFIG, "model_type": "mistral", "sliding_window": 4096}).sliding_window == 4096
    assert read_hyperparameters({**CONFIG, "model_type": "qwen2", "sliding_window": 4096}).sliding_window is None


@pytest.mark.parametrize("damage", [{"rope_parameters": {"sliding_attention": "x"}}, {"num_hidden_layers": []}])
def test_what_is_no_number(damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds something that is not a number"):
        read_hyperparameters({**CONFIG, "model_type": "gemma3_text", **damage})

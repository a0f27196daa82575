"""Which keys of a config.json are read: what a family's table does not know, and what a target does not carry.

A key that changes what a model computes and that nobody reads gives a wrong model in silence. So every key is one of
the family's settings, or known to change nothing, or has a value that changes nothing, or is named in a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..core.errors import InputError
from ..storage.documents import shown
from .family import Family, Setting

Target = Literal["torch", "gguf", "onnx"]
NAMES: Mapping[str, str] = {"torch": "this package", "gguf": "GGUF export", "onnx": "ONNX export"}

INERT = (
    # how the file came about, and what it is called
    "_*",
    "*_version",
    "architectures",
    "auto_map",
    "model_type",
    "unsloth_*",
    "transformers.js_config",
    "is_llama_config",
    "finetuning_task",
    "task_specific_params",
    "problem_type",
    "id2label",
    "label2id",
    "num_labels",
    # storage and speed
    "dtype",
    "torch_dtype",
    "*_dtype",
    "bf16",
    "fp16",
    "use_bfloat16",
    "torchscript",
    "tf_legacy_loss",
    "use_cache",
    "cache_implementation",
    "pretraining_tp",
    "gradient_checkpointing",
    "attn_implementation",
    "*flash_attn*",
    "*flash_attention*",
    "use_sdpa*",
    "use_liger*",
    "fused_*",
    "use_fused_*",
    "chunk_size_feed_forward",
    "quantization_config",  # read where the checkpoint is
    # training
    "*dropout*",
    "*pdrop",
    "layerdrop",
    "initializer_*",
    "init_std",
    "init_*",
    "neftune_*",
    "use_lm_head_bias_init",
    "router_aux_loss_coef",
    "label_smoothing*",
    "training_*",
    # what is returned, and how text is drawn from it
    "output_*",
    "return_dict*",
    "use_return_dict",
    "is_decoder",
    "is_encoder_decoder",
    "*_token_id",
    "*_token_ids",
    "*_token_index",
    "tokenizer_*",
    "*prefix",
    "generation_*",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beam*",
    "num_return_sequences",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "min_p",
    "*repetition_penalty",
    "length_penalty",
    "*no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "remove_invalid_values",
    # lengths that promise and do not compute
    "max_sequence_length",
    "max_seq_len*",
    "model_max_length",
    "seq_length",
    "seq_len",
    "original_max_position_embeddings",
    "dual_chunk_attention_config",  # attention over more tokens than transformers is asked for
)
"""Patterns of keys that do not change what a causal language model computes."""

SPOKEN = re.compile(r"act|norm|type|position|rope|rotary|attention|mode|scal")
"""Keys in whose names a text, and not a number, may stand for arithmetic; other texts are remarks."""

ROTARY_COMMON = frozenset(
    ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned")
)
ROTARY_KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset(("factor",)),
    "dynamic": frozenset(("factor", "alpha")),
    "yarn": frozenset(("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "llama3": frozenset(("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": frozenset(("factor", "attention_factor", "short_factor", "long_factor")),
    "su": frozenset(("factor", "attention_factor", "short_factor", "long_factor")),
}
"""Type of rotary embedding -> the keys that it reads, beside those of all."""

PARTIAL = "partial_rotary_factor"
GGUF_ROTARY: Mapping[str, tuple[Any, ...]] = {
    "beta_fast": (32,),
    "beta_slow": (1,),
    "attention_factor": (),
    "mscale": (0,),
    "mscale_all_dim": (0,),
    "truncate": (True,),
    PARTIAL: (1,),
}
"""What llama.cpp takes for granted of a rotary embedding's keys, which the file does not say."""

ROTARY = ("rope_parameters", "rope_scaling")


def unread_keys(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Keys of a config.json, with their values, that may change what the model computes and that nobody reads.

    Args:
        config: its content.
        family: of the model.

    Returns:
        Name -> value; of a rotary embedding's own keys "rope_parameters.name".
    """
    found = {
        key: value
        for key, value in config.items()
        if key not in family.settings
        and not any(fnmatchcase(key, pattern) for pattern in INERT)
        and not _neutral(key, value)
    }
    for place, rotary in _rotaries(config):
        kind = str(rotary.get("rope_type") or rotary.get("type") or "default")
        known = ROTARY_COMMON | ROTARY_KEYS.get(kind, frozenset(rotary))
        found |= {f"{place}.{key}": value for key, value in rotary.items() if key not in known and value is not None}
    return found


def uncarried_keys(config: Mapping[str, Any], family: Family, target: Target) -> dict[str, Any]:
    """Settings of a config.json, with their values, that a target does not carry.

    Args:
        config: its content.
        family: of the model.
        target: "torch" for the reading block by block, or a format.
    """
    found = {}
    for key, setting in family.settings.items():
        allowed = _allowed(setting, target)
        if allowed is not None and config.get(key) is not None and config[key] not in allowed:
            found[key] = config[key]
    if target == "gguf":
        for place, rotary in _rotaries(config):
            for key, allowed in GGUF_ROTARY.items():
                if key == PARTIAL and family.gguf is not None and family.gguf.partial_rotary:
                    continue
                if rotary.get(key) is not None and rotary[key] not in allowed:
                    found[f"{place}.{key}"] = rotary[key]
    return found


def check_settings(config: Mapping[str, Any], family: Family, where: str, target: Target = "torch") -> None:
    """Refuse a config.json that says something nobody reads, or that a target does not carry.

    Raises:
        InputError: names the keys.
    """
    if unread := unread_keys(config, family):
        raise InputError(
            f"{where}: config.json says {_listed(unread)}, which no {family.model_type} model here reads; "
            "take out what changes nothing, or the model would be another one"
        )
    rotary = [config[key] for key in ROTARY if config.get(key)]
    if len(rotary) == 2 and rotary[0] != rotary[1]:
        raise InputError(f"{where}: config.json says rope_parameters and rope_scaling, and they differ; keep one")
    if uncarried := uncarried_keys(config, family, target):
        raise InputError(f"{where}: config.json says {_listed(uncarried)}, which {NAMES[target]} does not carry")


def _allowed(setting: Setting, target: Target) -> tuple[Any, ...] | None:
    return {"torch": setting.torch, "gguf": setting.gguf, "onnx": setting.onnx}[target]


def _neutral(key: str, value: Any) -> bool:
    """Whether a value changes nothing whatever it is of: none, off, empty, zero, a factor of one, a remark."""
    if isinstance(value, str):
        return not value or SPOKEN.search(key) is None
    if isinstance(value, bool):
        return not value
    return not value or value == 1


def _rotaries(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Place and content of each set of rotary settings, one per kind of block where they are apart."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for place in ROTARY:
        value = config.get(place)
        if not isinstance(value, Mapping):
            continue
        kinds = {kind: part for kind, part in value.items() if isinstance(part, Mapping)}
        found += [(f"{place}.{kind}", part) for kind, part in kinds.items()] or [(place, value)]
    return found


def _listed(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{shown(key)}: {shown(value)}" for key, value in sorted(keys.items())[:4])

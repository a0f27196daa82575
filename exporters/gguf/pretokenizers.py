"""Which of llama.cpp's named pre-tokenizers splits text as a Hugging Face tokenizer does.

A wrong name loads without an error and quietly tokenizes differently, so it is derived from the structure of
tokenizer.json, and an unknown structure is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...converter.core.errors import InputError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL
QWEN35 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + (r"|\s*[\r\n]+|\s+(?!\S)|\s+")
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Step = tuple[str, ...]
GPT2_STEP: Step = ("bytes", "gpt-2")
BYTES_STEP: Step = ("bytes",)

# (steps, whole words looked up before merging) -> llama.cpp's name
NAMES: dict[tuple[tuple[Step, ...], bool], str] = {
    ((GPT2_STEP,), False): "gpt-2",
    ((("digits",), GPT2_STEP), False): "smollm",
    ((("split", LLAMA3), BYTES_STEP), True): "llama-bpe",
    ((("split", LLAMA3), BYTES_STEP), False): "smaug-bpe",
    ((("split", QWEN2), BYTES_STEP), False): "qwen2",
    ((("split", QWEN35), BYTES_STEP), False): "qwen35",
    ((("split", TEKKEN), BYTES_STEP), True): "tekken",
}


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.

    Args:
        tokenizer: tokenizer.json as data.

    Raises:
        InputError: no pre-tokenizer of llama.cpp is known to split text in the same way.
    """
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise InputError(f"tokenizer: normalizer {normalizer.get('type')!r} has no counterpart in llama.cpp")
    steps = tuple(_step(entry) for entry in _flat(tokenizer.get("pre_tokenizer")))
    whole_words = bool(tokenizer["model"].get("ignore_merges", False))
    name = NAMES.get((steps, whole_words))
    if name is None:
        raise InputError(f"tokenizer: no pre-tokenizer of llama.cpp is known to match {steps}")
    return name


def _flat(entry: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not entry:
        return []
    if entry["type"] == "Sequence":
        return [inner for nested in entry["pretokenizers"] for inner in _flat(nested)]
    return [entry]


def _step(entry: Mapping[str, Any]) -> Step:
    kind = entry["type"]
    if kind == "ByteLevel" and not entry.get("add_prefix_space", True):
        return GPT2_STEP if entry.get("use_regex", True) else BYTES_STEP
    if kind == "Digits" and entry.get("individual_digits"):
        return ("digits",)
    if kind == "Split" and entry.get("behavior") == "Isolated" and not entry.get("invert"):
        return ("split", str(entry["pattern"].get("Regex")))
    return ("unknown", str(dict(entry)))

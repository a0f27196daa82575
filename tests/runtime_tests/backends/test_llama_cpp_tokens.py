"""The exported vocabulary: llama.cpp and the Hugging Face tokenizer give the same ids."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

TEXTS = (
    "The whitened singular value decomposition keeps what the data need.",
    "  two spaces, a\ttab\n\nand    12345 digits, don't WE'LL",
    "def f(x):\n    return x[:3] + 'quoted' # comment\r\n",
    "Größe, naïve, 你好, привет, 🚀 and \u200d joined",
    " leading space",
    "",
)

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")


def same_tokens(source: Path, out: Path, tokenizer: Any) -> None:
    backend = LlamaCppBackend(export_gguf(source, out, Quantization("f16"), progress=SilentProgress()).path, n_ctx=64)
    for text in TEXTS:
        assert backend.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids, text
    backend.close()


def byte_level(tiny: ModuleType, *steps: Any, ignore_merges: bool = False) -> Any:
    """tests/tiny.py's tokenizer with another pre-tokenizer, trained on the same text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([tiny.TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_tokenizers(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    from lowrank_export.exporters.gguf.pretokenizers import LLAMA3, QWEN2, TEKKEN

    def split(regex: str) -> list[Any]:
        return [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]

    steps = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": split(LLAMA3),
        "qwen2": split(QWEN2),
        "tekken": split(TEKKEN),
    }[name]
    tiny.save_dense(tmp_path / "model", "llama")
    tokenizer = byte_level(tiny, *steps, ignore_merges=name in ("llama-bpe", "tekken"))
    tokenizer.save_pretrained(tmp_path / "model")
    same_tokens(tmp_path / "model", tmp_path / "m.gguf", tokenizer)


@pytest.mark.parametrize(("family", "space_before"), [("llama", True), ("gemma3_text", False)])
def test_sentencepiece_style(tiny: ModuleType, tmp_path: Path, family: str, space_before: bool) -> None:
    tokenizer = tiny.sentencepiece(space_before=space_before)
    tiny.save_dense(tmp_path / "model", family, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "model")
    same_tokens(tmp_path / "model", tmp_path / "m.gguf", tokenizer)


@pytest.mark.slow
def test_demo_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from lowrank_export.converter.model.source import open_source

    source = open_source("demo", SilentProgress()).path
    same_tokens(source, tmp_path / "m.gguf", AutoTokenizer.from_pretrained(str(source)))

"""Evaluation windows: evenly spread, disjoint, the same for everybody."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.runtime_tests.metrics.corpora import evaluation_windows, llama_cpp_windows


class CountingTokenizer:
    """Token i of the text is i, so that a window shows where it was cut."""

    name_or_path = ""
    bos_token_id: int | None = None
    eos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text)))}


@given(tokens=st.integers(2, 500), windows=st.integers(1, 12), length=st.integers(2, 40))
def test_windows_are_disjoint_and_evenly_spread(tokens: int, windows: int, length: int) -> None:
    if tokens < length:
        return
    made = evaluation_windows(CountingTokenizer(), "x" * tokens, windows=windows, length=length)  # type: ignore[arg-type]
    found = made.tokens
    assert not made.first.any()
    assert found.dtype == np.int32
    assert found.shape == (min(windows, tokens // length), length)
    assert (np.diff(found, axis=1) == 1).all()
    gaps = np.diff(found[:, 0])
    assert (gaps >= length).all() and len(set(gaps.tolist())) <= 1
    assert found[0, 0] == 0 and found.max() < tokens


@given(tokens=st.integers(2, 300), windows=st.integers(1, 12), length=st.integers(2, 40), data=st.data())
def test_stride_scores_every_token_once(tokens: int, windows: int, length: int, data: st.DataObject) -> None:
    if tokens < length:
        return
    stride = data.draw(st.integers(1, length - 1))
    found = evaluation_windows(
        CountingTokenizer(),  # type: ignore[arg-type]
        "x" * tokens,
        windows=windows,
        length=length,
        stride=stride,
    )
    scored = np.concatenate([found.targets(index) for index in range(len(found))])
    assert scored.tolist() == list(range(1, len(scored) + 1))  # token i is number i: none twice, none left out
    assert len(found) == min(windows, (tokens - length) // stride + 1)
    assert (found.first[1:] == length - 1 - stride).all() and found.counts.sum() == len(scored)


class BeginningTokenizer(CountingTokenizer):
    """Puts token 900 before a text, unless told not to."""

    bos_token_id: int | None = 900

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [900] * add_special_tokens + list(range(len(text)))}


@pytest.mark.parametrize("begins", [False, True])
def test_llama_cpps_windows(begins: bool) -> None:
    """Against the loop of llama.cpp's tools/perplexity, written out."""
    tokenizer = BeginningTokenizer() if begins else CountingTokenizer()
    if not begins:
        tokenizer.bos_token_id = None  # type: ignore[attr-defined]
    text, n_ctx = "x" * 107, 10
    found = llama_cpp_windows(tokenizer, text, windows=99, length=n_ctx)  # type: ignore[arg-type]
    tokens = [900] * begins + list(range(107))
    n_chunk = len(tokens) // n_ctx
    assert len(found) == n_chunk
    for chunk in range(n_chunk):
        window = tokens[chunk * n_ctx : (chunk + 1) * n_ctx]
        if begins:
            window[0] = 900
        assert found.tokens[chunk].tolist() == window
        assert found.targets(chunk).tolist() == window[n_ctx // 2 + 1 :]  # n_ctx - n_ctx / 2 - 1 of them
    with pytest.raises(InputError, match="needs 20"):
        llama_cpp_windows(tokenizer, "x" * 19, windows=1, length=10)  # type: ignore[arg-type]


def test_tokenizer_adds_nothing(tiny: ModuleType) -> None:
    tokenizer = tiny.tokenizer()
    found = evaluation_windows(tokenizer, tiny.TEXT, windows=1, length=16).tokens
    assert found[0].tolist() == tokenizer(tiny.TEXT, add_special_tokens=False)["input_ids"][:16]


def test_short_text_says_how_short() -> None:
    with pytest.raises(InputError, match=r"has 9 tokens.* needs 10"):
        evaluation_windows(CountingTokenizer(), "x" * 9, windows=1, length=10)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        evaluation_windows(CountingTokenizer(), "x" * 9, windows=0, length=10)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stride"):
        evaluation_windows(CountingTokenizer(), "x" * 90, windows=1, length=10, stride=10)  # type: ignore[arg-type]


@pytest.mark.reproduce
def test_the_fixed_windows_come_out(data: Path, demo: Path) -> None:
    """The windows that published figures were measured on are what this rule gives."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo)
    # the windows were made with the tokenizer as transformers reads it from a GGUF, which does not split numbers
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    lines = (data / "wiki.test.raw").read_text(encoding="utf-8").split("\n")
    text = "\n\n".join(line + "\n" if line.strip() else "" for line in lines)
    found = evaluation_windows(tokenizer, text, windows=12, length=1024).tokens
    np.testing.assert_array_equal(found, np.load(data / "smollm2_evaluation_12x1024.npy"))

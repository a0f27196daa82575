"""Greedy generation against transformers' own, and its ends."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lowrank_export.converter.core.errors import InputError
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend
from lowrank_export.runtime_tests.generation.generation import TEMPERATURE, TOP_P, draw, generate, sample


class ScriptedBackend:
    """Predicts a fixed sequence."""

    name = "scripted"

    def __init__(self, script: list[int], damaged: bool = False) -> None:
        self.script, self.damaged, self.step = script, damaged, 0

    def reset(self) -> None:
        self.step = 0

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        logits = np.zeros(10, np.float32)
        logits[self.script[self.step]] = np.nan if self.damaged else 1
        self.step += 1
        return logits

    def window_logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        raise AssertionError

    def close(self) -> None: ...


PROMPT = np.array([1, 2], dtype=np.int32)


def test_equals_transformers(tiny: ModuleType) -> None:
    model = tiny.model("llama")
    ids = torch.tensor([[5, 9, 11]])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    found = generate(TorchBackend(model), ids[0].numpy().astype(np.int32), max_tokens=12)
    assert found == expected[0, 3:].tolist()


def test_stops_at_the_end_token_and_at_the_limit() -> None:
    backend = ScriptedBackend([4, 5, 0, 6])
    assert generate(backend, PROMPT, max_tokens=9, end=(0,)) == [4, 5]
    assert generate(backend, PROMPT, max_tokens=1, end=(0,)) == [4]
    assert generate(backend, PROMPT, max_tokens=0, end=(0,)) == []


def test_nan_names_the_backend() -> None:
    with pytest.raises(InputError, match="scripted: NaN"):
        generate(ScriptedBackend([3], damaged=True), PROMPT, max_tokens=1)


def test_sample_is_text(tiny: ModuleType) -> None:
    tokenizer = tiny.tokenizer()
    found = sample(TorchBackend(tiny.model("qwen2")), tokenizer, "A rank is", max_tokens=5)
    assert found.prompt == "A rank is"
    assert len(found.tokens) <= 5
    assert found.text == tokenizer.decode(list(found.tokens))
    with pytest.raises(InputError, match="empty"):
        sample(TorchBackend(tiny.model("qwen2")), tokenizer, "", max_tokens=5)


def test_draws_from_the_nucleus_in_proportion() -> None:
    logits = np.log(np.array([0.02, 0.5, 0.3, 0.15, 0.03])).astype(np.float32)
    p = np.exp(logits / TEMPERATURE)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), TOP_P)) + 1]
    drawn = [draw(logits, uniform) for uniform in (np.arange(20_000) + 0.5) / 20_000]
    shares = np.bincount(drawn, minlength=5) / 20_000
    assert set(np.flatnonzero(shares)) == set(kept) and len(kept) < 5
    np.testing.assert_allclose(shares[kept], p[kept] / p[kept].sum(), atol=1e-3)
    assert draw(logits, 0.0) == 1 and draw(logits, np.nextafter(1, 0)) == kept[-1]


def test_draws_what_sorting_the_whole_vocabulary_gives() -> None:
    random = np.random.default_rng(0)
    for spread in (0.5, 4.0, 30.0):
        for _ in range(40):
            logits = (spread * random.standard_normal(3000)).round(1).astype(np.float32)  # rounded: many are equal
            uniform = float(random.random())
            scaled = logits.astype(np.float64) / TEMPERATURE
            order = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))
            total = np.cumsum(np.exp(scaled[order] - scaled.max()))
            kept = order[: int(np.searchsorted(total / total[-1], TOP_P)) + 1]
            place = np.searchsorted(total[: len(kept)], uniform * total[len(kept) - 1], side="right")
            assert draw(logits, uniform) == kept[int(place)]


def test_a_seed_gives_the_same_text(tiny: ModuleType) -> None:
    backend = TorchBackend(tiny.model("llama"))
    first, again, other = (generate(backend, PROMPT, max_tokens=12, seed=seed) for seed in (5, 5, 6))
    assert first == again != other
    assert first != generate(backend, PROMPT, max_tokens=12)

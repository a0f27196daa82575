"""Experts as linears of their own: the same sum as transformers', whatever else an expert is shown."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter.checkpoint.expert_modules import ExpertList, Shown, experts_of, separate_experts
from lowrank_export.converter.families.table import FAMILIES

EXPERTS = [name for name, family in FAMILIES.items() if family.experts is not None]
TOKENS, CHOSEN = 24, 2


def of_family(family: str, tiny: ModuleType) -> tuple[Any, ExpertList]:
    """transformers' experts of a block and, of the same weights, ours."""
    known = FAMILIES[family]
    assert known.experts is not None
    model, other = tiny.model(family, blocks=1), tiny.model(family, blocks=1)
    separate_experts(other, known)
    block = other.get_submodule(f"{known.blocks}.0")
    found = experts_of(block, known)
    assert found is not None
    return model.get_submodule(f"{known.blocks}.0.{known.experts.path}"), found


def routed(seed: int = 0, experts: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, experts of each token and their weights; the last of four experts gets no token."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, 64, generator=generator)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:CHOSEN] for _ in range(TOKENS)])
    return x, chosen, torch.rand(TOKENS, CHOSEN, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("family", EXPERTS)
def test_the_same_sum_as_transformers(tiny: ModuleType, family: str) -> None:
    stacked, experts = of_family(family, tiny)
    expected = stacked(*routed())
    assert bool(expected.any())
    torch.testing.assert_close(experts(*routed()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(experts._all(*routed()), expected, rtol=1e-5, atol=1e-5)
    separate_experts(tiny.model(family, blocks=1), FAMILIES[family])


@torch.no_grad()
def test_what_an_expert_is_shown_besides_counts_nothing(tiny: ModuleType) -> None:
    stacked, experts = of_family("mixtral", tiny)
    experts.shown = Shown(0.6)
    torch.testing.assert_close(experts(*routed()), stacked(*routed()), rtol=1e-5, atol=1e-5)
    sent, shown = experts.counts().T.tolist()
    assert sent[3] == 0 and sum(sent) == CHOSEN * TOKENS
    assert shown == [max(15, count) for count in sent]  # 0.6 x 24, rounded up
    rows = experts.shown.of(routed()[1])(3).tolist()
    assert len(set(rows)) == 15 and max(b - a for a, b in pairwise(rows)) <= 2  # evenly spaced


@torch.no_grad()
def test_two_models_see_the_same_tokens_first(tiny: ModuleType) -> None:
    """The other model's router differs; each expert sees that model's tokens, in its order, and then its own."""
    stacked, experts = of_family("mixtral", tiny)
    _, other = of_family("mixtral", tiny)
    other.shown, experts.shown = Shown(0.3), Shown(first=other)
    other(*routed(seed=1))
    torch.testing.assert_close(experts(*routed()), stacked(*routed()), rtol=1e-5, atol=1e-5)
    theirs, ours = other.shown.of(routed(seed=1)[1]), experts.shown.of(routed()[1])
    for number in range(len(experts)):
        rows = ours(number).tolist()
        assert rows[: len(theirs(number))] == theirs(number).tolist()
        assert len(set(rows)) == len(rows)
        assert set(rows) >= set(torch.where((routed()[1] == number).any(dim=1))[0].tolist())

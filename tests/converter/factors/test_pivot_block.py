"""Blocks with pivot rows compute what they computed with two factors, and need few permutations."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear, replace_linears
from lowrank_export.converter.checkpoint.pivot_linear import PivotLinear
from lowrank_export.converter.factors import pivot_block as module
from lowrank_export.converter.factors.pivot_block import as_pivot, pivot_block
from lowrank_export.converter.families.table import FAMILIES

OPTIONS: dict[str, dict[str, Any]] = {"llama": {"attention_bias": True, "mlp_bias": True}}
TOKENS = torch.arange(40)[None] * 7 % 320


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def convert(model: Any, family: str) -> dict[str, PivotLinear]:
    for block in model.get_submodule(FAMILIES[family].blocks):
        pivot_block(block, FAMILIES[family])
    return {name: found for name, found in model.named_modules() if isinstance(found, PivotLinear)}


def permuted(found: dict[str, PivotLinear]) -> set[str]:
    return {name.rpartition(".")[2] for name, linear in found.items() if linear.lowrank_perm is not None}


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.shared_orders])
def test_logits_are_kept_and_gate_and_up_need_no_permutation(tiny: ModuleType, family: str) -> None:
    model, ranks = tiny.factored(family, rank=20, **OPTIONS.get(family, {}))
    before = logits(model)
    found = convert(model, family)
    assert set(found) == set(ranks)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5 * max(1.0, float(before.abs().max())))
    of = FAMILIES[family]
    free = {name for order in of.shared_orders for name in order.producers}
    assert permuted(found) == {name.rpartition(".")[2] for name in of.linears if name not in free}


def test_different_ranks_share_an_order(tiny: ModuleType) -> None:
    model, _ = tiny.factored("qwen2", rank=20)
    up = model.model.layers[0].mlp.up_proj
    up.rank = 9
    up.lowrank_u.weight, up.lowrank_v.weight = (
        nn.Parameter(w) for w in (up.lowrank_u.weight[:, :9].clone(), up.lowrank_v.weight[:9].clone())
    )
    before = logits(model)
    found = convert(model, "qwen2")
    assert found["model.layers.0.mlp.up_proj"].lowrank_c.weight.shape == (151, 9)
    assert "up_proj" not in permuted(found) and "gate_proj" not in permuted(found)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dense", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
def test_dense_neighbors_are_reordered(tiny: ModuleType, dense: str) -> None:
    model = tiny.model("llama", mlp_bias=True)
    names = [name for name in FAMILIES["llama"].linears if name != dense]
    replace_linears(model, {f"model.layers.0.{name}": 20 for name in names})
    with torch.no_grad():
        for name in names:
            for parameter in model.model.layers[0].get_submodule(name).parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter))
    before = logits(model)
    found = convert(model, "llama")
    assert permuted(found).isdisjoint({"gate_proj", "up_proj"}) and len(found) == 6
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5)


def test_falls_back_to_the_first_where_no_order_suits_both(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_COEFFICIENT", 0.01)
    model, _ = tiny.factored("qwen2", rank=20)
    before = logits(model)
    found = convert(model, "qwen2")
    assert {"up_proj"} <= permuted(found) and "gate_proj" not in permuted(found)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5)


def test_block_without_factors_stays(tiny: ModuleType) -> None:
    model = tiny.model("llama")
    before = logits(model)
    assert convert(model, "llama") == {}
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factored = LowRankLinear(7, 9, 3, bias=True, dtype=dtype)
    made = as_pivot(factored)
    x = torch.randn(2, 5, 7, dtype=dtype)
    torch.testing.assert_close(made(x), factored(x), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    torch.testing.assert_close(made(x), nn.functional.linear(x, made.dense_weight(), made.bias), rtol=2e-2, atol=2e-2)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in made.state_dict().items()}
    assert shapes == {
        "bias": ((9,), dtype),
        "lowrank_perm": ((9,), torch.int32),
        "lowrank_p.weight": ((3, 7), dtype),
        "lowrank_c.weight": ((6, 3), dtype),
    }
    assert "rank=3" in repr(made) and "permuted=True" in repr(made)

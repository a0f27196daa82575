"""The two-factor linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear, replace_linears


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7), (0, 7)])
def test_equals_the_dense_linear_of_its_product(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    factored = LowRankLinear(7, 5, 3, bias=bias)
    if factored.bias is not None:
        nn.init.normal_(factored.bias)
    x = torch.randn(shape)
    expected = nn.functional.linear(x, factored.dense_weight(), factored.bias)
    torch.testing.assert_close(factored(x), expected)
    assert factored.dense_weight().shape == (5, 7)
    assert torch.linalg.matrix_rank(factored.dense_weight()) == 3


def test_names_and_sizes_are_those_of_the_checkpoint() -> None:
    factored = LowRankLinear(7, 5, 3, bias=True, dtype=torch.bfloat16)
    shapes = {name: tuple(tensor.shape) for name, tensor in factored.state_dict().items()}
    assert shapes == {"bias": (5,), "lowrank_v.weight": (3, 7), "lowrank_u.weight": (5, 3)}
    assert {tensor.dtype for tensor in factored.state_dict().values()} == {torch.bfloat16}
    assert "rank=3" in repr(factored)


def test_replaces_in_place_and_keeps_bias_dtype_and_device() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(7, 5, bias=True)}), "c": nn.Linear(5, 4, bias=False)})
    model.to(torch.float16)
    other = model["c"]
    replace_linears(model, {"a.b": 2})
    replaced = model.get_submodule("a.b")
    assert isinstance(replaced, LowRankLinear)
    assert (replaced.in_features, replaced.out_features, replaced.rank) == (7, 5, 2)
    assert replaced.bias is not None and replaced.bias.dtype == torch.float16
    assert model["c"] is other


def test_top_level_names_and_meta_tensors() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"c": nn.Linear(5, 4, bias=False)})
    replace_linears(model, {"c": 1})
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model["c"].bias is None


@pytest.mark.parametrize("name", ["a.x", "x", "x.b", "n", ""])
def test_names_that_are_no_linear(name: str) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(7, 5)}), "n": nn.LayerNorm(3)})
    with pytest.raises(KeyError):
        replace_linears(model, {name: 2})

"""What is not done with experts is refused in a line, before any work; a block's experts are kept dense together."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning.experts_check import check_experts
from lowrank_export.converter.planning.ranks import kept_dense

CONFIG = {"num_local_experts": 3}
MIXTRAL = FAMILIES["mixtral"].of(CONFIG)


@pytest.mark.parametrize(
    "asked",
    [
        {"layout": "pivot"},
        {"refine": "block"},
        {"method": "lc-svd"},
        {"calibration_reduction": "stack-of-batch"},
        {"max_bytes": 10**6},
        {"bits_per_weight": 4.0},
    ],
)
def test_refused(asked: dict[str, Any], tiny: ModuleType, tmp_path: Path) -> None:
    recipe = make_recipe({"model": str(tmp_path / "m"), **asked}, "test")
    check_experts(recipe, FAMILIES["llama"])
    with pytest.raises(UsageError, match="mixtral is a mixture of experts") as error:
        check_experts(recipe, MIXTRAL)
    assert "\n" not in str(error.value)
    if not recipe.sized:
        tiny.save_dense(tmp_path / "m", "mixtral", blocks=1)
        with pytest.raises(UsageError, match="mixture of experts"):
            compress(recipe, tmp_path / "out", progress=SilentProgress())
        assert not (tmp_path / "out").exists()


def test_experts_are_kept_dense_together() -> None:
    names = [MIXTRAL.linear_name(block, linear) for block in range(2) for linear in MIXTRAL.linears]
    kept = kept_dense(("layers.1.mlp.experts.2.w1", "0.*q_proj"), names, MIXTRAL)
    experts = {f"model.layers.1.mlp.experts.{expert}.w1" for expert in range(3)}
    assert kept == {*experts, "model.layers.0.self_attn.q_proj"}

"""What a recipe may ask of a mixture of experts, said before any work."""

from __future__ import annotations

from ..core.errors import UsageError
from ..core.recipe import Recipe
from ..families.family import Family


def check_experts(recipe: Recipe, family: Family) -> None:
    """Refuse what is not done with experts.

    Raises:
        UsageError: names the option.
    """
    if family.experts is None:
        return
    refused = {
        "layout": (recipe.layout != "two-factor", "no runtime computes pivot rows of experts"),
        "refine": (recipe.refine != "none", "blocks of experts are not refined by gradient descent"),
        "calibration_reduction": (
            recipe.calibration_reduction != "moments",
            "an expert sees another number of tokens of every window; there is no mean over windows",
        ),
        "max_bytes": (recipe.max_bytes is not None, "types and ranks are not chosen for experts"),
        "bits_per_weight": (recipe.bits_per_weight is not None, "types and ranks are not chosen for experts"),
        "choice": (bool(recipe.choice), "types and ranks are not chosen for experts"),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise UsageError(f"{name}: {family.model_type} is a mixture of experts: {why}")

"""The model card written beside a factored checkpoint."""

from __future__ import annotations

from typing import Any

from ..core.recipe import Recipe
from ..methods import METHODS
from ..model.source import Source


def model_card(recipe: Recipe, source: Source, plan: dict[str, Any], *, images: bool = False) -> str:
    """Markdown with the hub's front matter: source, licence carried over, recipe, sizes, how to load."""
    auto = "AutoModelForImageTextToText" if images else "AutoModelForCausalLM"
    retention = plan["retention"]
    return f"""---
license: {source.licence}
base_model: {recipe.model}
library_name: transformers
tags: [lowrank-export, low-rank, svd]
---
# {recipe.model}, factored

Compressed with lowrank-export: method `{recipe.method}` ({METHODS[recipe.method].source}).
Retention ratio of the linears {retention:.4f} (compression {1 - retention:.1%}), calibrated on `{recipe.calibration}`.

```python
import lowrank_export  # registers the format
from transformers import {auto}

model = {auto}.from_pretrained("path/to/this/folder")
```

## Recipe
```yaml
{recipe.to_yaml()}```
Ranks and losses per linear: `plan.json`. Calibration windows and source hash: `calibration.json`.
"""

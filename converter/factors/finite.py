"""NaN and Inf, looked for in parts: the look at a whole tensor takes more memory than the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # at once


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf."""
    rows = torch.atleast_1d(tensor)  # type: ignore[no-untyped-call]
    return all(bool(torch.isfinite(part).all()) for part in rows.split(ROWS))

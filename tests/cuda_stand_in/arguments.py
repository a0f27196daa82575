"""Arguments and results of PyTorch's functions: which tensors are in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

NOT_IN_PLACE = ("__int__", "__index__", "__invert__")


def in_place(name: str) -> bool:
    """Whether a function of this name changes its first argument."""
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name not in NOT_IN_PLACE)


def parts(index: Any) -> tuple[Any, ...]:
    """Of an index, one per dimension."""
    return index if isinstance(index, tuple) else (index,)


def tensors(given: Any) -> list[Tensor]:
    """Of arguments, however deep."""
    found: list[Tensor] = []
    for one in given.values() if isinstance(given, dict) else given if isinstance(given, tuple | list) else (given,):
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, tuple | list | dict):
            found += tensors(one)
    return found


def mapped(change: Callable[[Tensor], Any], given: Any) -> Any:
    """Arguments or results with their tensors changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, list):
        return [mapped(change, one) for one in given]
    if isinstance(given, dict):
        return {key: mapped(change, one) for key, one in given.items()}
    if isinstance(given, tuple):
        changed = [mapped(change, one) for one in given]
        return type(given)(*changed) if hasattr(given, "_fields") else type(given)(changed)
    return given

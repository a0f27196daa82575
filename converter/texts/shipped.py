"""Texts that are no file of the user's: Python's documentation, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..core.errors import InputError
from .records import Numbered

Split = Literal["calibration", "evaluation"]
PYTHON_DOCS = "python-docs"
DATASETS = "datasets:"
EVALUATION_TOPICS = 4
"""Every fourth topic of the Python documentation is held out for evaluation."""


def python_documentation(split: Split) -> list[str]:
    """The topics of one half of the documentation that ships with Python."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    held_out = set(names[::EVALUATION_TOPICS])
    return [topics[name] for name in names if (name in held_out) == (split == "evaluation")]


def rows_of_dataset(name: str, split: Split) -> Iterator[Numbered]:
    """The rows of a data set's train or test split.

    Args:
        name: OWNER/NAME, or OWNER/NAME:CONFIGURATION.

    Raises:
        InputError: the datasets package is missing, or it cannot read the set.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"datasets:{name}: needs the datasets package; pip install lowrank-export[datasets]") from None
    owner, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(owner, configuration or None, split="train" if split == "calibration" else "test")
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"datasets:{name}: cannot be read ({reason})") from None

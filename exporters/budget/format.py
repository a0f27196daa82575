"""What a budget has to know of a format, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ...converter.budget.forms import Form
from ...converter.checkpoint.reader import CheckpointReader


class FileSize(Protocol):
    """Bytes of what a model becomes, before there is any of it; never fewer than they turn out to be."""

    def __call__(self, forms: Mapping[str, Form], recipe_text: str) -> int:
        """Of everything the runtime loads.

        Args:
            forms: module -> what it becomes, every matrix of the model.
            recipe_text: the recipe that will be written into it.
        """

    def overhead(self, module: str) -> int:
        """Bytes that a linear takes beside its matrices beyond those of a dense one once it becomes two factors."""


class Format(Protocol):
    """A format: what it stores matrices in, what they take, and how it rounds."""

    @property
    def name(self) -> str:
        """Of the format and whatever of its options changes what rounding costs: costs are kept under it."""

    @property
    def types(self) -> Sequence[str]:
        """The storage types that are chosen among, factors' types first."""

    @property
    def factor_types(self) -> Sequence[str]:
        """Those of factors."""

    @property
    def plain(self) -> Sequence[tuple[str, str]]:
        """What a choice is held against: a type for all linears, and one for embedding and head."""

    def fits(self, type: str, row: int) -> bool:
        """Whether rows of a length can be stored in a type."""

    def fallback(self, type: str) -> str | None:
        """The type of plain exports where rows do not fit one; None where there is none."""

    def width(self, type: str) -> int:
        """Columns that aware rounding rounds together."""

    def bytes(self, shape: tuple[int, int], type: str) -> int:
        """Of a matrix, padding included."""

    def factors_pay(self, shape: tuple[int, int], form: Form) -> bool:
        """Whether two factors are worth the time of one product more.

        Args:
            shape: (m, n) of the dense matrix.
            form: two factors.
        """

    def round_plainly(self, weights: Tensor, type: str, importance: Tensor) -> Tensor:
        """Weights (m, n) rounded to the nearest, as a file gives them back; importance: mean square of inputs (n,)."""

    def round_vocabulary(self, weights: Tensor, type: str, importance: Tensor | None) -> Tensor:
        """Embedding or head (vocabulary, d) as a file gives it back; importance: mean square of the head's inputs (d,),
        None of an embedding that is not the head."""

    def size(self, reader: CheckpointReader, name: str, method: str) -> FileSize:
        """Of a model.

        Args:
            reader: the dense checkpoint.
            name: of the folder that it will be exported from.
            method: of the recipe.
        """

"""The table: method name -> which stages run with which data. A method is data; the stages live elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Stream = Literal["none", "dense", "compressed"]


@dataclass(frozen=True)
class Method:
    """A recipe of stages.

    Attributes:
        name: as on the command line.
        source: where the method was published.
        whitening: the activation stream whose second moment the truncation sees; "none" is the plain SVD.
        alpha: weight of the dense output W X in the target of the truncation, (1 - alpha) W X' + alpha W X.
        allocation: "uniform" or "adacr".
        compensation: "none", or "adacomp" on the compressed stream.
        tolerance: share of the parameter budget that may stay unused after rounding ranks down. The published
            baselines round down and leave it at that, so theirs is what that costs at rank multiple 1.
    """

    name: str
    source: str
    whitening: Stream
    allocation: Literal["uniform", "adacr"]
    compensation: Literal["none", "adacomp"]
    alpha: float = 0.0
    tolerance: float = 0.0

    @property
    def needs_dense_stream(self) -> bool:
        """Whether activations of the dense model are wanted."""
        return self.whitening == "dense" or self.alpha > 0

    @property
    def needs_compressed_stream(self) -> bool:
        """Whether activations of the model compressed so far are wanted."""
        return self.whitening == "compressed" or self.compensation != "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether any calibration text is read."""
        return self.needs_dense_stream or self.needs_compressed_stream or self.allocation == "adacr"


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("svd", "Eckart-Young truncation of the weight", "none", "uniform", "none", tolerance=0.005),
        Method(
            "svd-llm", "SVD-LLM (ICLR 2025), section 3.1, whitening only", "dense", "uniform", "none", tolerance=0.005
        ),
        Method("adasvd", "AdaSVD (2025), sections 3.1 and 3.2", "dense", "adacr", "adacomp"),
    )
}

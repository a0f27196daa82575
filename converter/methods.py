"""The table: method name -> which stages run with which data. A method is data; the stages live elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Metric = Literal["none", "dense", "compressed"]
Allocation = Literal["uniform", "adacr", "threshold"]
Compensation = Literal["none", "adacomp", "update-u"]
Installs = Literal["in passing", "at end"]
ROUNDED_DOWN = 0.005  # what rounding every rank down costs at rank multiple 1 on small models


@dataclass(frozen=True)
class Method:
    """A recipe of stages.

    Attributes:
        name: as on the command line.
        source: where the method was published.
        metric: what the truncation sees on the input side: "none" is the plain SVD, "dense" Sigma of the dense model's
            activations X, "compressed" Sigma' of X'.
        two_sided: the truncation sees G, the second moment of the loss gradient, on the output side.
        allocation: how ranks are chosen.
        compensation: what is fitted again on X' after the truncation.
        installs: when the factors of an input group take their place while the compressed stream runs through a block:
            "in passing", so that the groups after it see them, or "at end" of the block, so that none of it does.
        alpha: weight of the dense output W X in the target (1 - alpha) W X' + alpha W X of whatever is fitted on X'.
        tolerance: share of the parameter budget that may stay unused after rounding ranks down. The published
            baselines round down and leave it at that.
    """

    name: str
    source: str
    metric: Metric
    allocation: Allocation
    two_sided: bool = False
    compensation: Compensation = "none"
    installs: Installs = "in passing"
    alpha: float = 0.0
    tolerance: float = 0.0

    @property
    def needs_dense_moments(self) -> bool:
        """Whether Sigma of the dense model is wanted."""
        return self.metric == "dense"

    @property
    def needs_gradients(self) -> bool:
        """Whether G is wanted."""
        return self.two_sided or self.allocation == "threshold"

    @property
    def needs_compressed_stream(self) -> bool:
        """Whether activations of the model compressed so far are wanted."""
        return self.metric == "compressed" or self.compensation != "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether any calibration text is read."""
        return (
            self.needs_dense_moments
            or self.needs_gradients
            or self.needs_compressed_stream
            or self.allocation == "adacr"
        )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("svd", "Eckart-Young truncation of the weight", "none", "uniform", tolerance=ROUNDED_DOWN),
        Method("svd-llm", "SVD-LLM (ICLR 2025), whitening only", "dense", "uniform", tolerance=ROUNDED_DOWN),
        Method(
            "svd-llm-u",
            "SVD-LLM (ICLR 2025), whitening and closed-form update of U",
            "dense",
            "uniform",
            compensation="update-u",
            installs="at end",
            tolerance=ROUNDED_DOWN,
        ),
        Method("adasvd", "AdaSVD (2025), sections 3.1 and 3.2", "dense", "adacr", compensation="adacomp"),
        Method(
            "loss-aware",
            "this project: KFAC metric, one threshold in loss units, compressed-stream target",
            "compressed",
            "threshold",
            two_sided=True,
            alpha=0.25,
        ),
    )
}

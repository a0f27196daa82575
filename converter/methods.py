"""The table: method name -> which stages run with which data. A method is data; the stages live elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Metric = Literal["none", "dense", "compressed", "fisher-rows", "activation-scale"]
Allocation = Literal["uniform", "adacr", "threshold", "type-loss", "stable-rank", "perplexity", "block-error"]
Compensation = Literal["none", "adacomp", "update-u"]
Alpha = float | Literal["adaptive"]
Installs = Literal["sequential", "per block"]
Refine = Literal["none", "block", "model"]
ROUNDED_DOWN = 0.005  # what rounding every rank down costs at rank multiple 1 on small models


@dataclass(frozen=True)
class Method:
    """A recipe of stages.

    Attributes:
        name: as on the command line.
        source: where the method was published.
        metric: what the truncation sees on the input side: "none" is the plain SVD, "dense" Sigma of the dense model's
            activations X, "compressed" Sigma' of X', "fisher-rows" the Fisher information per input feature,
            "activation-scale" the mean absolute value of each input feature of X.
        two_sided: the truncation sees G, the second moment of the loss gradient, on the output side.
        allocation: how ranks are chosen.
        compensation: what is fitted again on X' after the truncation.
        installs: when the factors of an input group take their place while the compressed stream runs through a block:
            "sequential", group by group, so that the groups after it see them, or "per block", so that none of it does.
        alpha: weight of the dense output W X in the target (1 - alpha) W X' + alpha W X of whatever is fitted on X';
            "adaptive" chooses it per linear.
        refine: the refinement that belongs to the method; a recipe that names one has that instead.
        tolerance: share of the parameter budget that may stay unused after rounding ranks down. The published
            baselines round down and leave it at that.
    """

    name: str
    source: str
    metric: Metric
    allocation: Allocation
    two_sided: bool = False
    compensation: Compensation = "none"
    installs: Installs = "sequential"
    alpha: Alpha = 0.0
    refine: Refine = "none"
    tolerance: float = 0.0

    @property
    def needs_dense_moments(self) -> bool:
        """Whether Sigma, and mean |x|, of the dense model are wanted."""
        return self.metric in ("dense", "activation-scale") or self.allocation == "type-loss"

    @property
    def aligned(self) -> bool:
        """Whether what is fitted on X' aims at more than W X'."""
        return self.alpha == "adaptive" or self.alpha > 0

    @property
    def needs_gradients(self) -> bool:
        """Whether G is wanted."""
        return self.two_sided or self.allocation == "threshold"

    @property
    def needs_fisher(self) -> bool:
        """Whether the Fisher information of the weights is wanted."""
        return self.metric == "fisher-rows"

    @property
    def statistics(self) -> tuple[str, ...]:
        """Kinds of statistics of the dense model that are read."""
        wanted = {
            "dense": self.needs_dense_moments,
            "gradients": self.needs_gradients,
            "fisher": self.needs_fisher,
            "sensitivity": self.allocation == "perplexity",
            "block-error": self.allocation == "block-error",
        }
        return tuple(kind for kind, needed in wanted.items() if needed)

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
            or self.needs_fisher
            or self.needs_compressed_stream
            or self.allocation == "adacr"
        )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("svd", "Eckart-Young truncation of the weight", "none", "uniform", tolerance=ROUNDED_DOWN),
        Method("fwsvd", "FWSVD (ICLR 2022)", "fisher-rows", "uniform", tolerance=ROUNDED_DOWN),
        Method("asvd", "ASVD (2023)", "activation-scale", "perplexity", tolerance=ROUNDED_DOWN),
        Method(
            "asvd-stable-rank",
            "ASVD (2023), the stable-rank search of its code",
            "activation-scale",
            "stable-rank",
            tolerance=ROUNDED_DOWN,
        ),
        Method("svd-llm", "SVD-LLM (ICLR 2025), whitening only", "dense", "uniform", tolerance=ROUNDED_DOWN),
        Method(
            "svd-llm-u",
            "SVD-LLM (ICLR 2025), whitening and closed-form update of U",
            "dense",
            "uniform",
            compensation="update-u",
            installs="per block",
            tolerance=ROUNDED_DOWN,
        ),
        Method("svd-llm-v2", "SVD-LLM V2 (NAACL 2025)", "dense", "type-loss", tolerance=ROUNDED_DOWN),
        Method(
            "pifa-m",
            "MPIFA (ICML 2025), its error-correcting reconstruction M",
            "dense",
            "uniform",
            compensation="adacomp",
            alpha=0.25,
            tolerance=ROUNDED_DOWN,
        ),
        Method(
            "saes",
            "SAES-SVD (ICLR 2026), after the abstract and a public re-implementation",
            "compressed",
            "uniform",
            alpha="adaptive",
            tolerance=ROUNDED_DOWN,
        ),
        Method(
            "lc-svd",
            "LC-SVD (2025), after its abstract",
            "dense",
            "block-error",
            refine="block",
            tolerance=ROUNDED_DOWN,
        ),
        Method("adasvd", "AdaSVD (2025), sections 3.1 and 3.2", "dense", "adacr", compensation="adacomp"),
        Method(
            "loss-aware",
            "this project: KFAC metric, one threshold in loss units, compressed-stream target",
            "compressed",
            "threshold",
            two_sided=True,
            alpha=0.4,
        ),
    )
}

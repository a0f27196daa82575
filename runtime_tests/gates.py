"""Thresholds -> pass or fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .parity import Parity
from .perplexity import Perplexity


@dataclass(frozen=True)
class Gate:
    """One measured value against its threshold.

    Attributes:
        name: what is measured, e.g. "parity: mean KLD".
        value: what was measured; a value that is not a number fails.
        threshold: the largest value that passes.
        passed: value <= threshold.
    """

    name: str
    value: float
    threshold: float
    passed: bool


@dataclass(frozen=True)
class Limits:
    """Largest difference allowed between an artifact and the torch model it was exported from.

    Attributes:
        mean_kld: mean KL(torch || artifact) per token, in nats.
        perplexity_change: |PPL / PPL of torch - 1|.
    """

    mean_kld: float
    perplexity_change: float


PARITY_LIMITS: dict[tuple[str, str], Limits] = {
    ("checkpoint", "f32"): Limits(1e-6, 1e-3),
    ("gguf", "f32"): Limits(1e-4, 1e-3),
    ("gguf", "f16"): Limits(1e-4, 1e-3),
    # 8 bits of mantissa where float16 has 11: each weight is rounded 8 times as coarsely, and KLD grows with its square
    ("gguf", "bf16"): Limits(1e-3, 5e-3),
    ("gguf", "q8_0"): Limits(0.02, 0.02),
    # Below 8 bits rounding changes the model: these limits tell a lossy file from a broken one
    **{("gguf", name): Limits(0.15, 0.15) for name in ("q6_k", "q5_k_m")},
    **{("gguf", name): Limits(0.4, 0.5) for name in ("q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k_s")},
    **{("gguf", name): Limits(1.2, 2.0) for name in ("q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_m")},
    **{("gguf", name): Limits(4.0, 50.0) for name in ("q3_k", "q2_k", "iq3_s", "iq3_xxs")},
    **{("gguf", name): Limits(6.0, 200.0) for name in ("iq2_s", "iq2_xs", "iq2_xxs")},
    ("onnx", "fp32"): Limits(1e-6, 1e-3),
    ("onnx", "int8"): Limits(0.02, 0.02),
}
OTHER_LIMITS = Limits(0.05, 0.05)


def parity_limits(format: str, quantisation: str) -> Limits:
    """The default limits of a format ("gguf", "onnx", "checkpoint") and weight type; wide ones for unknown types."""
    return PARITY_LIMITS.get((format, quantisation), OTHER_LIMITS)


def gate(name: str, value: float, threshold: float) -> Gate:
    """Hold a value against the largest that passes. NaN fails."""
    return Gate(name, value, threshold, value <= threshold)


def parity_gates(parity: Parity, perplexity: Perplexity, reference: Perplexity, limits: Limits) -> tuple[Gate, ...]:
    """The gates of one artifact.

    Args:
        parity: artifact against the torch model it was exported from.
        perplexity: the artifact's.
        reference: that torch model's, over the same windows.
        limits: what is allowed.
    """
    change = abs(perplexity.value / reference.value - 1)
    return (
        gate("parity: mean KLD", parity.mean_kld, limits.mean_kld),
        gate("parity: relative PPL change", change, limits.perplexity_change),
    )


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates that did not pass."""
    return tuple(item for item in gates if not item.passed)

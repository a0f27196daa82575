"""What a compression on a GPU has in the machine's own memory: weights on their way in, results on their way out."""

from __future__ import annotations

from collections.abc import Mapping

from .memory_forecast import Holding, Stage
from .model_shape import FLOAT, ModelShape, WindowSizes


def host_forecast(
    shape: ModelShape, windows: WindowSizes, stages: Mapping[str, Stage], holding: Holding
) -> dict[str, int]:
    """Stage -> bytes of tensors in the machine's memory at its peak.

    Args:
        shape: of the dense model.
        windows: of the calibration.
        stages: of the GPU's memory, see `Forecast.stages`.
        holding: of activations.
    """
    kept_here = holding == "on the host"
    return {name: _working(name, shape, windows) + (stage.kept if kept_here else 0) for name, stage in stages.items()}


def _working(stage: str, shape: ModelShape, windows: WindowSizes) -> int:
    """Tensors of a stage beside the activations that are kept."""
    inputs = FLOAT * sum(n * n for n in shape.inputs.values())
    largest = FLOAT * max(n * n for n in shape.inputs.values())
    outputs = FLOAT * sum(m * m for m in shape.outputs.values())
    model = shape.model * FLOAT
    beside = {
        # loaded there as a whole
        "sampling calibration text from the whole model": shape.model * shape.weight_bytes,
        # statistics of a block, on their way to the disk
        "activations of the dense model": inputs * (2 if windows.held_out else 1),
        "gradients of the dense model": inputs + outputs,
        # one of them on its way back
        "loss of every rank": max(largest, outputs),
        "loss of truncating each linear alone": largest,
        "loss of truncating each block alone": largest,
        # two moments of a group; then the finished block, for the journal, or out of it: as read, and once more
        "compressing a block": max(2 * largest, 2 * shape.block),
        "refining a block": outputs + 2 * shape.block,
        # parameters, the best of them and two moments, for the journal
        "refining the whole model": 4 * model,
    }
    return beside.get(stage, 0) + _passing(shape)


def _passing(shape: ModelShape) -> int:
    """The largest tensor as it is stored, and in the dtype that is computed in."""
    return max(shape.largest_linear, shape.largest_other) * (shape.stored_bytes + shape.weight_bytes)

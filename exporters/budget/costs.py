"""What every form of every matrix of a model costs: gathered once per model and calibration, whatever the budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...converter.core.errors import UsageError
from ...converter.core.progress import Progress
from ...converter.factors.whitening import gradient_metric, whiten
from ...converter.machine.memory import release_freed
from ...converter.model.blocks import BlockSource
from ...converter.statistics.gathering import GRADIENT, SIGMA
from ...converter.statistics.sensitivity import finite_activations
from ...converter.statistics.store import Statistics
from ...converter.storage.files import replacing
from ..rounding.balancing import seed_of
from .format import Format
from .linears import LinearCosts, linear_costs, normal_error
from .vocabulary_costs import vocabulary_costs

VERSION = 1  # of the file; another one is gathered again
VOCABULARY_WINDOWS = 2


@dataclass(frozen=True)
class Costs:
    """Predicted losses of a model's matrices.

    Attributes:
        linears: name -> losses of its forms.
        vocabulary: "embedding", and "head" where it is another matrix -> type -> measured loss.
        relative: type of a factor -> relative error of rounding to it.
    """

    linears: Mapping[str, LinearCosts]
    vocabulary: Mapping[str, Mapping[str, float]]
    relative: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        linears = {name: costs.to_json() for name, costs in self.linears.items()}
        return {"linears": linears, "vocabulary": self.vocabulary, "relative": self.relative}


def read_costs(text: str) -> Costs:
    """Costs from JSON.

    Raises:
        ValueError, KeyError, TypeError: it is not theirs.
    """
    data = json.loads(text)
    linears = {
        str(name): LinearCosts(**{**found, "shape": tuple(found["shape"])}) for name, found in data["linears"].items()
    }
    return Costs(linears, data["vocabulary"], data["relative"])


def gathered_costs(
    blocks: BlockSource, windows: Tensor, store: Statistics, format: Format, progress: Progress
) -> Costs:
    """The costs of a model, from the folder of its statistics where they are there already.

    Args:
        blocks: the dense model.
        windows: token ids (N, T), of which a few tell what the vocabulary's matrices cost.
        store: statistics of kind "gradients"; keeps the costs.
        format: of the file.
        progress: receives blocks.

    Raises:
        UsageError: the file that is there is damaged.
    """
    path = store.folder / f"costs-{format.name}-{VERSION}.json"
    if path.is_file():
        try:
            return read_costs(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path}: damaged; remove it to gather it again") from None
    costs = measure_costs(blocks, windows[:VOCABULARY_WINDOWS], store, format, progress)
    with replacing(path, force=True, folder=False) as beside:
        Path(beside).write_text(json.dumps(costs.to_json()), encoding="utf-8")
    return costs


@torch.no_grad()
def measure_costs(blocks: BlockSource, windows: Tensor, store: Statistics, format: Format, progress: Progress) -> Costs:
    """See `gathered_costs`. One block and the moments of one linear are in memory."""
    linears: dict[str, LinearCosts] = {}
    with progress.stage("what every form of every linear costs", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            for group in blocks.family.groups:
                with finite_activations(blocks, index):
                    inputs = whiten(store.read_one("gradients", index, blocks.device, SIGMA + group.name))
                for path in group.linears:
                    name = blocks.family.linear_name(index, path)
                    weight: Tensor = block.get_submodule(path).weight  # type: ignore[assignment]
                    with finite_activations(blocks, index):
                        outputs = gradient_metric(store.read_one("gradients", index, blocks.device, GRADIENT + path))
                    types = {t: format.width(t) for t in format.types if format.fits(t, weight.shape[1])}
                    linears[name] = linear_costs(
                        weight, inputs, outputs, types, format.round_plainly, seed=seed_of(name)
                    )
                    del outputs, weight
                del inputs
            del block
            release_freed()
            advance(1)
    relative = {type: normal_error(type, format.round_plainly) for type in format.factor_types}
    tied = blocks.family.head + ".weight" not in blocks.reader.names or bool(
        blocks.reader.config.get("tie_word_embeddings")
    )
    width = int(blocks.reader.config["hidden_size"])
    fitting = [type for type in format.types if format.fits(type, width)]
    vocabulary = vocabulary_costs(blocks, windows, fitting, format.round_vocabulary, tied, progress)
    return Costs(linears, vocabulary, relative)

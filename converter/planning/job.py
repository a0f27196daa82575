"""A recipe with everything that the work on blocks needs: model, windows, statistics, ranks, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..allocation.plan import RankPlan
from ..core.recipe import Recipe
from ..distributed.workers import ALONE, Workers
from ..factors.whitening import OutputRoot, gradient_metric
from ..families.family import InputGroup
from ..methods import Method
from ..model.activations import Keep
from ..model.blocks import BlockSource
from ..model.source import Source
from ..statistics.calibration import Calibration
from ..statistics.gathering import GRADIENT, HELD_OUT, MEAN_ABS, ROWS, SIGMA
from ..statistics.moments import GroupMoments, Moment
from ..statistics.store import Statistics
from ..statistics.window_chunks import held_out_chunks, window_chunks
from .memory_plan import MemoryPlan


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names.

    Attributes:
        recipe: as asked.
        method: its row of the method table, with what the recipe changes of it.
        source: the dense model.
        blocks: its weights, block by block.
        calibration: token windows; None for a method that needs none.
        update_calibration: token windows of the compressed stream, where they are not those of `calibration`.
        statistics: of the dense model; those that the method needs are there.
        plan: ranks of every linear.
        memory: how activations are held, and the forecast.
        workers: the processes that share the job.
    """

    recipe: Recipe
    method: Method
    source: Source
    blocks: BlockSource
    calibration: Calibration | None
    update_calibration: Calibration | None
    statistics: Statistics
    plan: RankPlan
    memory: MemoryPlan
    workers: Workers = ALONE

    @property
    def refines(self) -> bool:
        """Whether gradient descent follows the closed forms."""
        return self.recipe.refine != "none"

    @property
    def keep(self) -> Keep:
        """Where activations lie between blocks."""
        return self.memory.keep

    @property
    def chunks(self) -> list[Tensor]:
        """This process's calibration windows as the compressed stream and, where both run, the dense one run them."""
        calibration = self.update_calibration or self.calibration
        return window_chunks(self.recipe, calibration, self.workers) if calibration else []

    @property
    def held_out_chunks(self) -> list[Tensor]:
        """This process's windows that no factor is fitted on."""
        calibration = self.update_calibration or self.calibration
        return held_out_chunks(calibration, self.workers) if calibration else []

    @property
    def windows(self) -> tuple[Tensor, int]:
        """Token ids (N, T) of the windows of all processes, in their order, and how many are not held out."""
        calibration = self.update_calibration or self.calibration
        assert calibration is not None
        fitted = torch.cat(window_chunks(self.recipe, calibration))
        return torch.cat([fitted, torch.from_numpy(calibration.held_out)]), len(fitted)

    def dense_moments(self, block: int, group: InputGroup) -> GroupMoments:
        """Moments of an input group, with those of the dense model where the method sees them."""
        moments = GroupMoments()
        if self.method.needs_dense_moments:
            wanted = [SIGMA + group.name, MEAN_ABS + group.name]
            if not (self.method.needs_compressed_stream or self.refines):
                wanted.append(HELD_OUT + group.name)
            found = self.statistics.read("dense", block, self.blocks.device, wanted.__contains__)
            moments.dense, moments.mean_abs = Moment(found[wanted[0]], tokens=1), found[wanted[1]]
            if HELD_OUT + group.name in found:
                moments.held_out = Moment(found[HELD_OUT + group.name], tokens=1)
        return moments

    def output_root(self, block: int, linear: str) -> OutputRoot:
        """R of a linear (path inside the block), where gradients were gathered."""
        read = self.statistics.read_one
        # in one expression: G is let go before its root is taken
        return OutputRoot(gradient_metric(read("gradients", block, self.blocks.device, GRADIENT + linear)).root)

    def fisher(self, block: int) -> dict[str, Tensor]:
        """Linear (path inside the block) -> Fisher information per input feature, where the truncation sees it."""
        if not self.method.needs_fisher:
            return {}
        found = self.statistics.read("fisher", block, self.blocks.device)
        return {name.removeprefix(ROWS): rows for name, rows in found.items()}

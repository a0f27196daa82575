"""Gradient descent that keeps the best parameters it has met, and resumes where an interrupted job stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor, nn

from ..core.progress import Advance
from ..journal import Journal

BETAS = (0.9, 0.95)
PATIENCE = 3  # epochs without a better held-out loss
SAVE_SECONDS = 600  # between states kept within an epoch: four times the parameters on the disk


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: at most.
        rate: of the first step; a tensor moves by `rate` times its RMS. Falls to zero along a cosine.
        seed: of the order of windows.
    """

    epochs: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Refined:
    """Held-out loss before and after, and the epochs that took."""

    before: float
    after: float
    epochs: int


@dataclass(frozen=True)
class Objective:
    """What is minimized.

    Attributes:
        examples: number of training examples.
        batch: examples per step.
        backward: given the numbers of a batch's examples, adds gradients to the parameters.
        held_out_loss: of the parameters as they are.
    """

    examples: int
    batch: int
    backward: Callable[[list[int]], None]
    held_out_loss: Callable[[], float]


def descend(
    trained: Sequence[nn.Parameter],
    objective: Objective,
    schedule: Schedule,
    journal: Journal | None = None,
    advance: Advance = lambda steps: None,
) -> Refined:
    """Adam with cosine decay, in place; the parameters of the epoch with the least held-out loss are kept.

    Args:
        trained: parameters, float32.
        objective: gradients and losses.
        schedule: epochs, rate, seed.
        journal: keeps the state after every epoch and every SAVE_SECONDS; a job that resumes starts from it.
        advance: receives steps.
    """
    state = _State(trained, objective, schedule, journal)
    if state.step:
        advance(state.step)
    saved = monotonic()
    while state.epoch < schedule.epochs and state.stale < PATIENCE:
        for numbers in state.batches():
            state.take_step(numbers)
            advance(1)
            if monotonic() - saved > SAVE_SECONDS:
                state.save()
                saved = monotonic()
        state.end_epoch()
        state.save()
        saved = monotonic()
    state.restore_best()
    return Refined(state.before, state.best, state.epoch)


class _State:
    """Parameters, optimizer and counts of a descent.

    Attributes:
        step, epoch: done so far.
        stale: epochs since the best one.
        before, best: held-out losses of the first and of the best parameters.
    """

    def __init__(
        self, trained: Sequence[nn.Parameter], objective: Objective, schedule: Schedule, journal: Journal | None
    ) -> None:
        self._trained, self._objective, self._schedule, self._journal = trained, objective, schedule, journal
        groups = [{"params": [p], "scale": float(p.detach().square().mean().sqrt())} for p in trained]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=0.0)
        self._generator = torch.Generator().manual_seed(schedule.seed)
        self._per_epoch = -(-objective.examples // objective.batch)
        self.step = self.epoch = self.stale = 0
        kept = None if journal is None else journal.read_refinement()
        if journal is not None and kept is not None:
            self._resume(journal, kept)
        else:
            self.best = self.before = objective.held_out_loss()
            self._keep()

    def batches(self) -> list[list[int]]:
        """The examples of the steps that are left of an epoch, shuffled anew in each."""
        order = torch.randperm(self._objective.examples, generator=self._generator).tolist()
        size = self._objective.batch
        first = (self.step - self.epoch * self._per_epoch) * size
        return [order[start : start + size] for start in range(first, self._objective.examples, size)]

    def take_step(self, numbers: list[int]) -> None:
        """One step down the gradient of a batch."""
        steps = self._schedule.epochs * self._per_epoch
        for group in self._optimizer.param_groups:
            group["lr"] = group["scale"] * self._schedule.rate * 0.5 * (1 + math.cos(math.pi * self.step / steps))
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self._objective.backward(numbers)
        self._optimizer.step()
        self.step += 1

    def end_epoch(self) -> None:
        """Measure the held-out loss; keep the parameters where it is the best so far."""
        loss = self._objective.held_out_loss()
        self.epoch += 1
        self.stale += 1
        if loss < self.best:
            self.best, self.stale = loss, 0
            self._keep()

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the parameters of the best epoch back."""
        for parameter, value in zip(self._trained, self._best, strict=True):
            parameter.copy_(value)

    def save(self) -> None:
        """Keep parameters, those of the best epoch, the optimizer's moments, counts and losses in the journal."""
        if self._journal is None:
            return
        tensors: dict[str, Tensor] = {}
        for index, (parameter, best) in enumerate(zip(self._trained, self._best, strict=True)):
            tensors |= {f"now.{index}": parameter, f"best.{index}": best}
            tensors |= {f"{name}.{index}": value for name, value in self._optimizer.state[parameter].items()}
        tensors["counts"] = torch.tensor([self.epoch, self.step, self.stale])
        tensors["losses"] = torch.tensor([self.before, self.best], dtype=torch.float64)
        self._journal.save_refinement(tensors)

    def _keep(self) -> None:
        self._best = [parameter.detach().clone() for parameter in self._trained]

    def _resume(self, journal: Journal, kept: Mapping[str, Tensor]) -> None:
        """Take up a kept state.

        Raises:
            UsageError: it is damaged, or of another schedule.
        """
        try:
            self._load(kept)
            self.before, self.best = (float(value) for value in kept["losses"])
            self.epoch, self.step, self.stale = (int(value) for value in kept["counts"])
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise journal.refinement_damage() from None
        in_epoch = self.step - self.epoch * self._per_epoch
        if not 0 <= self.epoch <= self._schedule.epochs or not 0 <= in_epoch <= self._per_epoch:
            raise journal.refinement_damage()
        for _ in range(self.epoch):
            torch.randperm(self._objective.examples, generator=self._generator)

    @torch.no_grad()
    def _load(self, kept: Mapping[str, Tensor]) -> None:
        for index, parameter in enumerate(self._trained):
            parameter.copy_(kept[f"now.{index}"])
            moments = {name: kept[f"{name}.{index}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {"step": kept[f"step.{index}"], **moments}
        self._best = [kept[f"best.{index}"].to(parameter.device) for index, parameter in enumerate(self._trained)]

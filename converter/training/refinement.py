"""Refinement: gradient descent on factors, first block by block against the dense block, then on the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor, nn

from ..core.progress import Advance
from ..distributed.workers import ALONE, Workers
from ..journal import Journal
from ..model.activations import Activations

BATCH_TOKENS = 1024  # small batches: a step costs as much as its tokens, and more steps go farther
BETAS = (0.9, 0.95)
PATIENCE = 3  # epochs without a better held-out loss
SAVE_SECONDS = 600  # between states kept within an epoch: four times the parameters on the disk
HEAD_ROWS = 256  # tokens whose logits are in memory at once


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


def descend(
    trained: Sequence[nn.Parameter],
    examples: int,
    batch: int,
    backward: Callable[[list[int]], None],
    held_out_loss: Callable[[], float],
    schedule: Schedule,
    journal: Journal | None = None,
    advance: Advance = lambda steps: None,
) -> Refined:
    """Adam with cosine decay, in place; the parameters of the epoch with the least held-out loss are kept.

    Args:
        trained: parameters, float32.
        examples: number of training examples.
        batch: examples per step.
        backward: given the numbers of a batch's examples, adds gradients to the parameters.
        held_out_loss: of the parameters as they are.
        schedule: epochs, rate, seed.
        journal: keeps the state after every epoch and every SAVE_SECONDS, and gives it back to a job that goes on.
        advance: told about steps.
    """
    groups = [{"params": [p], "scale": float(p.detach().square().mean().sqrt())} for p in trained]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=0.0)
    generator = torch.Generator().manual_seed(schedule.seed)
    per_epoch = -(-examples // batch)
    steps = schedule.epochs * per_epoch
    step = stale = epoch = 0
    if journal is not None and (state := journal.read_refinement()) is not None:
        try:
            kept = _restore(state, trained, optimiser)
            before, best = (float(value) for value in state["losses"])
            epoch, step, stale = (int(value) for value in state["counts"])
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise journal.refinement_damage() from None
        if not 0 <= epoch <= schedule.epochs or not 0 <= step - epoch * per_epoch <= per_epoch:
            raise journal.refinement_damage()
        for _ in range(epoch):
            torch.randperm(examples, generator=generator)
        advance(step)
    else:
        best = before = held_out_loss()
        kept = [parameter.detach().clone() for parameter in trained]

    saved = monotonic()

    def save() -> None:
        nonlocal saved
        if journal is not None:
            counts, losses = torch.tensor([epoch, step, stale]), torch.tensor([before, best], dtype=torch.float64)
            journal.save_refinement({**_state(trained, optimiser, kept), "counts": counts, "losses": losses})
        saved = monotonic()

    while epoch < schedule.epochs and stale < PATIENCE:
        order = torch.randperm(examples, generator=generator).tolist()
        for start in range((step - epoch * per_epoch) * batch, examples, batch):
            for group in optimiser.param_groups:
                group["lr"] = group["scale"] * schedule.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad():
                backward(order[start : start + batch])
            optimiser.step()
            step += 1
            advance(1)
            if monotonic() - saved > SAVE_SECONDS:
                save()
        now = held_out_loss()
        epoch += 1
        stale += 1
        if now < best:
            best, stale = now, 0
            kept = [parameter.detach().clone() for parameter in trained]
        save()
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    return Refined(before, best, epoch)


def _state(trained: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, kept: list[Tensor]) -> dict[str, Tensor]:
    """Parameters as they are, those of the best epoch, and the optimiser's moments."""
    tensors: dict[str, Tensor] = {}
    for index, (parameter, best) in enumerate(zip(trained, kept, strict=True)):
        tensors |= {f"now.{index}": parameter, f"best.{index}": best}
        tensors |= {f"{name}.{index}": value for name, value in optimiser.state[parameter].items()}
    return tensors


@torch.no_grad()
def _restore(
    state: Mapping[str, Tensor], trained: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer
) -> list[Tensor]:
    """Put a kept state back; returns the parameters of the best epoch."""
    for index, parameter in enumerate(trained):
        parameter.copy_(state[f"now.{index}"])
        moments = {name: state[f"{name}.{index}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": state[f"step.{index}"], **moments}
    return [state[f"best.{index}"].to(parameter.device) for index, parameter in enumerate(trained)]


@dataclass(frozen=True)
class Examples:
    """What a block is fitted to.

    Attributes:
        inputs: windows (T, d) of the compressed stream.
        targets: what the block should give for each, (T, d).
        fitted: that many windows are trained on, the others tell when to stop.
    """

    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    fitted: int


@dataclass(frozen=True)
class Teacher:
    """What a model is fitted to.

    Attributes:
        head: weight (vocabulary, d); logits are its product with hidden states.
        windows: token ids (N, T).
        wanted: the dense model's hidden states after its norm, (1, T, d) for each window.
        fitted: that many windows are trained on, the others tell when to stop.
    """

    head: Tensor
    windows: Tensor
    wanted: Activations | Sequence[Tensor]
    fitted: int


def refine_block(
    block: nn.Module,
    run: Callable[[nn.Module, Tensor], Tensor],
    examples: Examples,
    *,
    root: Tensor | None,
    frozen: Sequence[nn.Parameter],
    schedule: Schedule,
    workers: Workers = ALONE,
) -> Refined:
    """Fit all parameters of a block to given outputs, in place.

    minimise mean_t || R (y'_t - y_t) ||^2 with R^T R = G, the second moment of the loss gradient at the block's output:
    an error counts as far as the loss feels it.

    Args:
        block: in float32.
        run: the block's forward over (B, T, d).
        examples: this process's.
        root: R (d, d); None weighs all directions alike.
        frozen: parameters that stay as they are.
        schedule: epochs, rate, seed.
        workers: of the job: batches are those of one process, and who has a window of a batch computes its gradient.
    """
    inputs, targets, fitted = examples.inputs, examples.targets, examples.fitted
    shares = workers.gathered((fitted, len(inputs[0]) if inputs else 0))
    first, everywhere = (sum(windows for windows, _ in part) for part in (shares[: workers.index], shares))
    size = max(1, BATCH_TOKENS // max(length for _, length in shares))
    metric = None if root is None else root.to(next(block.parameters()).device, torch.float32)

    def loss_of(chosen: Sequence[int]) -> Tensor:
        x = torch.stack([inputs[i] for i in chosen]).float()
        error = run(block, x).float() - torch.stack([targets[i] for i in chosen]).float()
        return (error if metric is None else error @ metric.T).square().sum(-1).mean()

    def backward(chosen: list[int]) -> None:
        mine = [i - first for i in chosen if first <= i < first + fitted]
        if mine:
            (loss_of(mine) * (len(mine) / len(chosen))).backward()  # type: ignore[no-untyped-call]
        _add_up_gradients(trained, workers)

    def held_out_loss() -> float:
        with torch.no_grad():
            return _mean([float(loss_of([i])) for i in range(fitted, len(inputs))], workers)

    fixed = {id(parameter) for parameter in frozen}
    trained = [parameter for parameter in block.parameters() if id(parameter) not in fixed]
    with _gradients_wanted(trained):
        refined = descend(trained, everywhere, size, backward, held_out_loss, schedule)
    workers.broadcast_(trained)
    return refined


def refine_model(
    student: nn.Module,
    teacher: Teacher,
    *,
    trained: Sequence[nn.Parameter],
    schedule: Schedule,
    bfloat16: bool = False,
    journal: Journal | None = None,
    advance: Advance = lambda steps: None,
    workers: Workers = ALONE,
) -> Refined:
    """Fit parameters of a compressed model to the dense model's distribution of the next token, in place.

    minimise KL(dense || student), mean over tokens. Its gradient at the head is p_student - p_dense, so logits are in
    memory for a few rows at a time only; blocks are recomputed in the backward pass.

    Args:
        student: a transformers causal language model, float32, with the dense model's norm and head.
        teacher: the dense model's head and hidden states.
        trained: parameters of the student that move.
        schedule: epochs, rate, seed.
        bfloat16: whether forwards are autocast to it.
        journal: as for `descend`.
        advance: told about steps.
        workers: of the job; the windows of a batch are divided among them.
    """
    windows, fitted = teacher.windows, teacher.fitted
    size = max(1, BATCH_TOKENS // windows.shape[1])
    device = next(student.parameters()).device

    def compared(chosen: Sequence[int]) -> tuple[float, Tensor, Tensor]:
        """Mean KL of the chosen windows, the student's last hidden states and the gradient there."""
        tokens = windows[list(chosen)].to(device).long()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            found: Tensor = student.model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[operator]
        loss, gradient = _head_divergence(teacher.head, found.detach(), torch.cat([teacher.wanted[i] for i in chosen]))
        return loss, found, gradient

    def backward(chosen: list[int]) -> None:
        mine = workers.part(chosen)
        if mine:
            _, found, gradient = compared(mine)
            found.backward(gradient * (len(mine) / len(chosen)))  # type: ignore[no-untyped-call]
        _add_up_gradients(trained, workers)

    def held_out_loss() -> float:
        with torch.no_grad():
            return _mean([compared([i])[0] for i in workers.part(range(fitted, len(windows)))], workers)

    student.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    student.train()  # transformers checkpoints in training mode only; these families have no dropout by default
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    try:
        with _gradients_wanted(trained):
            return descend(trained, fitted, size, backward, held_out_loss, schedule, journal, advance)
    finally:
        student.eval()
        student.activation_checkpointing_disable()  # type: ignore[operator]


def _add_up_gradients(trained: Sequence[nn.Parameter], workers: Workers) -> None:
    """The gradient of the whole batch from those of its parts; one who has no part of it adds nothing."""
    if workers.count > 1:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            workers.all_reduce_(parameter.grad)


def _mean(losses: Sequence[float], workers: Workers) -> float:
    """Over the windows of all processes; the same bits everywhere, because it decides when to stop."""
    total, count = workers.totals([sum(losses), len(losses)])
    return total / count


@torch.no_grad()
def _head_divergence(head: Tensor, found: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """Mean KL(wanted || found) over tokens and its gradient at the hidden states found, (B, T, d)."""
    gradient = torch.empty_like(found)
    rows, goal, out = found.flatten(0, 1), wanted.flatten(0, 1), gradient.flatten(0, 1)
    total = 0.0
    for start in range(0, len(rows), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        log_p, log_q = ((x[part].to(head.dtype) @ head.T).float().log_softmax(-1) for x in (goal, rows))
        p = log_p.exp()
        total += float((p * (log_p - log_q)).sum())
        out[part] = ((log_q.exp() - p).to(head.dtype) @ head).to(out.dtype) / len(rows)
    return total / len(rows), gradient


@contextmanager
def _gradients_wanted(trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters require gradients inside the context only."""
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(False)
            parameter.grad = None

"""Refinement: gradient descent on factors, first block by block against the dense block, then on the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.progress import Advance
from ..distributed.workers import ALONE, Workers
from ..journal import Journal
from ..model.activations import Activations
from ..model.head import Head
from .descent import Objective, Refined, Schedule, descend

BATCH_TOKENS = 1024  # small batches: a step costs as much as its tokens, and more steps go farther
DROPOUTS = ("dropout", "attention_dropout", "residual_dropout", "embedding_dropout", "layerdrop")
HEAD_ROWS = 256  # tokens whose logits are in memory at once


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
        head: of the dense model, and of the one fitted.
        windows: token ids (N, T).
        wanted: the dense model's hidden states after its norm, (1, T, d) for each window.
        fitted: that many windows are trained on, the others tell when to stop.
    """

    head: Head
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

    minimize mean_t || R (y'_t - y_t) ||^2 with R^T R = G, the second moment of the loss gradient at the block's output:
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
        refined = descend(trained, Objective(everywhere, size, backward, held_out_loss), schedule)
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

    minimize KL(dense || student), mean over tokens. Its gradient at the head is p_student - p_dense, so logits are in
    memory for a few rows at a time only; blocks are recomputed in the backward pass.

    Args:
        student: a transformers causal language model, float32, with the dense model's norm and head.
        teacher: the dense model's head and hidden states.
        trained: parameters of the student that move.
        schedule: epochs, rate, seed.
        bfloat16: whether forwards are autocast to it.
        journal: as for `descend`.
        advance: receives steps.
        workers: of the job; the windows of a batch are divided among them.
    """
    windows, fitted = teacher.windows, teacher.fitted
    size = max(1, BATCH_TOKENS // windows.shape[1])
    device = next(student.parameters()).device

    def compared(chosen: Sequence[int]) -> tuple[float, Tensor, Tensor]:
        """Mean KL of the chosen windows, the student's last hidden states and the gradient there."""
        tokens = windows[list(chosen)].to(device).long()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            found: Tensor = student.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[operator]
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
    student.train()  # transformers checkpoints in training mode only
    _drop_nothing(student)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    try:
        with _gradients_wanted(trained):
            return descend(trained, Objective(fitted, size, backward, held_out_loss), schedule, journal, advance)
    finally:
        student.eval()
        student.activation_checkpointing_disable()  # type: ignore[operator]


def _drop_nothing(student: nn.Module) -> None:
    """Every probability of dropout to zero, for good."""
    for module in student.modules():
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


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
def _head_divergence(head: Head, found: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """Mean KL(wanted || found) over tokens and its gradient at the hidden states found, (B, T, d)."""
    gradient = torch.empty_like(found)
    rows, goal, out = found.flatten(0, 1), wanted.flatten(0, 1), gradient.flatten(0, 1)
    total = 0.0
    for start in range(0, len(rows), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        logits = head.logits(rows[part])
        log_p, log_q = head.logits(goal[part]).log_softmax(-1), logits.log_softmax(-1)
        p = log_p.exp()
        total += float((p * (log_p - log_q)).sum())
        out[part] = head.backward(log_q.exp() - p, logits).to(out.dtype) / len(rows)
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

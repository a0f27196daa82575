"""Refinement of one block: its parameters fitted to the dense block's output by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH_TOKENS = 2048
BETAS = (0.9, 0.95)
HELD_OUT_SHARE = 8  # one window in eight tells when to stop, where the recipe holds out none
PATIENCE = 3  # epochs without a better held-out loss


@dataclass(frozen=True)
class Refined:
    """Weighted squared output error per token on held-out windows, before and after, and the epochs that took."""

    before: float
    after: float
    epochs: int


def refine_block(
    block: nn.Module,
    run: Callable[[nn.Module, Tensor], Tensor],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    held_out: tuple[Sequence[Tensor], Sequence[Tensor]],
    *,
    root: Tensor | None,
    frozen: Iterable[nn.Parameter],
    epochs: int,
    learning_rate: float,
    seed: int,
) -> Refined:
    """Adam with cosine decay on all parameters of a block, in place; the epoch with the best held-out loss is kept.

    minimise mean_t || R (y'_t - y_t) ||^2 with R^T R = G, the second moment of the loss gradient at the block's output:
    the error counts where the loss feels it. Steps are relative: each tensor moves by `learning_rate` times its RMS.

    Args:
        block: in float32; bfloat16 autocast is used on CUDA.
        run: the block's forward over (B, T, d).
        inputs: windows (T, d) of the compressed stream.
        targets: what the block should give for each, (T, d).
        held_out: inputs and targets that no step sees.
        root: R (d, d); None weighs all directions alike.
        frozen: parameters that stay as they are.
        epochs: at most.
        learning_rate: of the first epoch, relative.
        seed: of the order of windows.
    """
    fixed = {id(parameter) for parameter in frozen}
    trained = [parameter for parameter in block.parameters() if id(parameter) not in fixed]
    for parameter in trained:
        parameter.requires_grad_(True)
    groups = [{"params": [p], "base": learning_rate * float(p.detach().square().mean().sqrt())} for p in trained]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=0.0)
    weight = None if root is None else root.to(inputs[0].device, torch.float32)
    size = max(1, BATCH_TOKENS // len(inputs[0]))
    steps = epochs * -(-len(inputs) // size)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
        found = torch.stack(list(x)).float()
        with torch.autocast(found.device.type, dtype=torch.bfloat16, enabled=found.device.type == "cuda"):
            error = run(block, found) - torch.stack(list(y))
        error = error.float()
        return (error if weight is None else error @ weight.T).square().sum(-1).mean()

    def held_out_loss() -> float:
        x, y = held_out
        with torch.no_grad():
            losses = [float(loss_of(x[i : i + size], y[i : i + size])) for i in range(0, len(x), size)]
        return sum(losses) / len(losses)

    best = before = held_out_loss()
    kept = [parameter.detach().clone() for parameter in trained]
    step = stale = epoch = 0
    while epoch < epochs:
        epoch += 1
        order = torch.randperm(len(inputs), generator=generator).tolist()
        for start in range(0, len(order), size):
            rate = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * rate
            chosen = order[start : start + size]
            with torch.enable_grad():
                loss = loss_of([inputs[i] for i in chosen], [targets[i] for i in chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
        now = held_out_loss()
        if now < best:
            best, stale = now, 0
            kept = [parameter.detach().clone() for parameter in trained]
        else:
            stale += 1
            if stale >= PATIENCE:
                break
    for parameter, value in zip(trained, kept, strict=True):
        parameter.detach_().copy_(value)
        parameter.requires_grad_(False)
    return Refined(before, best, epoch)

"""The dense model run backwards over calibration windows, one block at a time, last block first."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checkpoint.expert_modules import ExpertList, Shown, experts_of
from ..core.progress import Progress
from ..distributed.workers import ALONE, Workers
from ..model.activations import Activations, Keep, in_memory
from ..model.blocks import BlockSource
from ..model.head import Head
from .few_visits import least_share

Observer = Callable[[str, Tensor, Tensor], None]
"""Called with a linear's path inside the block, its inputs and the loss gradient at its outputs, (B, T, n or m)."""

CHUNK_WINDOWS = 2
HEAD_ROWS = 128  # tokens whose logits are in memory at once


def backward_blocks(
    blocks: BlockSource,
    windows: Tensor,
    seed: int | None,
    observe: Observer,
    progress: Progress,
    keep: Keep = in_memory,
    workers: Workers = ALONE,
    visited: Callable[[ExpertList], None] = lambda experts: None,
) -> Generator[int]:
    """Run the dense model forwards, then backwards; yields each block's index once `observe` has seen all of it.

    The loss is the cross-entropy summed over the positions of a window. With a seed labels are drawn from the model's
    own distribution, which makes E[g g^T] a block of the true Fisher information (KFAC, Martens & Grosse 2015); without
    one they are the next tokens of the text.

    One block is in memory. The residual stream of every window at every block (in bfloat16 where the forward is) lies
    where `keep` puts it. Each block runs forwards twice.

    Args:
        blocks: the dense model; parameters get no gradient.
        windows: token ids (N, T).
        seed: of the drawn labels, which are drawn on the CPU: the same numbers on every device; None for the text's.
        observe: sees every linear of every chunk of windows; of this process's windows where there are several.
        progress: receives blocks.
        keep: where the residual streams of all blocks, and the gradients at one, lie.
        visited: sees the experts of a block after each forward.
        workers: of the job: each runs its part of the windows, with the labels that one process would draw.
    """
    draws = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        draws = list(workers.part([_draws(windows.shape[1], generator) for _ in windows]))
    share = least_share(blocks, windows.numel())
    windows = windows[list(workers.part(range(len(windows))))]
    size = CHUNK_WINDOWS if blocks.family.experts is None else 1  # an expert's tokens are not told apart by window
    chunks = [windows[i : i + size] for i in range(0, len(windows), size)]
    with progress.stage("gradients of the dense model", 2 * blocks.block_count) as advance:
        kept, storage = list[Activations](), torch.bfloat16 if blocks.bfloat16 else blocks.dtype
        stream = keep(blocks.embed(chunks))
        with torch.no_grad():
            for index in range(blocks.block_count):
                block = blocks.block(index)
                kept.append(keep(x.to(storage) for x in stream))
                for chunk, x in enumerate(stream):
                    stream[chunk] = blocks.run(block, x)
                del block
                advance(1)
        _at_last_block(blocks, stream, chunks, draws)
        gradients = stream
        for index in reversed(range(blocks.block_count)):
            block = blocks.block(index)
            length = windows.shape[1] if blocks.family.experts is None else None
            for name in blocks.family.linears:
                block.get_submodule(name).register_forward_hook(_watch(name, length, observe))
            experts = experts_of(block, blocks.family)
            if experts is not None:
                experts.shown = Shown(share)
            for chunk, x in enumerate(kept.pop()):
                x = x.to(blocks.dtype).requires_grad_(True)
                with torch.enable_grad():
                    y = blocks.run(block, x)
                if experts is not None:
                    visited(experts)
                (gradients[chunk],) = torch.autograd.grad(y, x, gradients[chunk])
                del x, y
            del block, experts
            advance(1)
            yield index


def _watch(name: str, length: int | None, observe: Observer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook of a linear that observes it in windows of `length` tokens, which some blocks flatten; None leaves all."""

    def in_windows(x: Tensor) -> Tensor:
        return x if length is None else x.reshape(-1, length, x.shape[-1])

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], y: Tensor) -> None:
        x = in_windows(arguments[0].detach())
        y.register_hook(lambda gradient: observe(name, x, in_windows(gradient)))  # type: ignore[no-untyped-call]

    return hook


def _draws(length: int, generator: torch.Generator) -> list[Tensor]:
    """A number in [0, 1) per predicted token of a window, (rows, 1) for every `HEAD_ROWS` of them."""
    return [
        torch.rand(min(HEAD_ROWS, length - 1 - start), 1, generator=generator)
        for start in range(0, length - 1, HEAD_ROWS)
    ]


def _at_last_block(
    blocks: BlockSource, streams: Activations, tokens: list[Tensor], draws: list[list[Tensor]] | None
) -> None:
    """Put dL/dx at the last block's output, (B, T, d) per chunk, in its place; at the head it is p - onehot(label).

    Args:
        blocks: norm and head of the dense model.
        streams: output of the last block, per chunk.
        tokens: of every chunk, the labels.
        draws: of every window, where labels are drawn instead, see `_draws`.
    """
    remaining = iter(draws or ())
    head = blocks.head()
    if blocks.bfloat16:
        head = replace(head, weight=head.weight.bfloat16())
    for chunk, x in enumerate(streams):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            normed = head.norm(x)
        at_head = torch.zeros_like(normed)
        for window in range(len(x)):
            given = tokens[chunk][window].to(x.device).long()
            drawn = None if draws is None else next(remaining)
            _head_gradient(normed[window].detach(), head, given, drawn, at_head[window])
        (streams[chunk],) = torch.autograd.grad(normed, x, at_head)


def _head_gradient(x: Tensor, head: Head, tokens: Tensor, draws: list[Tensor] | None, out: Tensor) -> None:
    """Gradient (T, d) at the head's input x (T, d) for one window, written to `out`; the last row predicts nothing."""
    for start in range(0, len(x) - 1, HEAD_ROWS):
        stop = min(start + HEAD_ROWS, len(x) - 1)
        logits = head.logits(x[start:stop])
        gradient = logits.softmax(-1)
        label = tokens[start + 1 : stop + 1, None] if draws is None else _drawn(gradient, draws[start // HEAD_ROWS])
        gradient.scatter_add_(1, label, gradient.new_full((len(label), 1), -1.0))
        out[start:stop] = head.backward(gradient, logits)


def _drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """One index per row (T, 1), by inverting the cumulative sum: `multinomial` draws a number per entry instead."""
    cumulated = probabilities.cumsum(-1)
    chosen = draws.to(cumulated.device) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, chosen, right=True).clamp_(max=cumulated.shape[1] - 1)

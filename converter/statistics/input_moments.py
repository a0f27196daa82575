"""What the linears of a checkpoint, factored or dense, are fed: a pass that stops at every input group."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..core.progress import Progress
from ..families.family import InputGroup
from ..machine.memory import release_freed
from ..model.block_forward import StoppedForward, TappedBlock
from ..model.blocks import BlockSource
from .few_visits import least_share
from .moments import Moment


@dataclass(frozen=True)
class GroupStop:
    """Where the pass stands.

    Attributes:
        block: its index.
        group: the linears that share this input.
        tapped: the block; a linear that is replaced now is what the pass goes on through.
        moment: Sigma' (n, n) float64 of the input, over all tokens.
        cross_moment: Delta = (X - X')^T X' / T (n, n) float64, where X is the input in the model as it was; None where
            that does not run beside.
    """

    block: int
    group: InputGroup
    tapped: TappedBlock
    moment: Tensor
    cross_moment: Tensor | None = None


def input_moments(
    blocks: BlockSource, chunks: Sequence[Tensor], progress: Progress, label: str, *, beside: bool = False
) -> Generator[GroupStop]:
    """Run windows through a model and stop at every input group, in the order of the forward.

    One forward in all; one block's weights and one group's moment are in memory, and the residual streams.

    Args:
        blocks: the model.
        chunks: token windows, (B, T) each.
        progress: receives blocks.
        label: of the stage.
        beside: whether the model as it was runs beside the one whose linears are replaced: two forwards then.
    """
    streams = list(blocks.embed(chunks))
    share = least_share(blocks, sum(chunk.numel() for chunk in chunks))
    originals = list(streams) if beside else []
    with progress.stage(label, blocks.block_count) as advance:
        for index in range(blocks.block_count):
            tapped = TappedBlock(blocks.block(index), blocks.family, share=share)
            forwards = [StoppedForward(partial(blocks.run, tapped.block, stream)) for stream in streams]
            others: list[StoppedForward] = []
            if beside:
                original = TappedBlock(blocks.block(index), blocks.family, beside=tapped)
                others = [StoppedForward(partial(blocks.run, original.block, stream)) for stream in originals]
            for group in blocks.family.groups:
                moment, cross_moment = Moment(), Moment()
                for chunk, forward in enumerate(forwards):
                    y = forward.next_input()
                    moment.add(y)
                    if beside:
                        cross_moment.add_cross(others[chunk].next_input()[: len(y)] - y, y)
                yield GroupStop(index, group, tapped, moment.mean(), cross_moment.mean() if beside else None)
            streams = [forward.finish() for forward in forwards]
            originals = [other.finish() for other in others]
            release_freed()
            advance(1)

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
from .moments import Moment


@dataclass(frozen=True)
class GroupStop:
    """Where the pass stands.

    Attributes:
        block: its index.
        group: the linears that share this input.
        tapped: the block; a linear that is replaced now is what the pass goes on through.
        moment: Sigma (n, n) float64 of the input, over all tokens.
    """

    block: int
    group: InputGroup
    tapped: TappedBlock
    moment: Tensor


def input_moments(
    blocks: BlockSource, chunks: Sequence[Tensor], progress: Progress, label: str
) -> Generator[GroupStop]:
    """Run windows through a model and stop at every input group, in the order of the forward.

    One forward in all; one block's weights and one group's moment are in memory, and the residual streams.

    Args:
        blocks: the model.
        chunks: token windows, (B, T) each.
        progress: told about blocks.
        label: of the stage.
    """
    streams = list(blocks.embed(chunks))
    with progress.stage(label, blocks.block_count) as advance:
        for index in range(blocks.block_count):
            tapped = TappedBlock(blocks.block(index), blocks.family)
            forwards = [StoppedForward(partial(blocks.run, tapped.block, stream)) for stream in streams]
            for group in blocks.family.groups:
                moment = Moment()
                for forward in forwards:
                    moment.add(forward.next_input())
                yield GroupStop(index, group, tapped, moment.mean())
            streams = [forward.finish() for forward in forwards]
            release_freed()
            advance(1)

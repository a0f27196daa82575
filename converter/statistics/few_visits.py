"""Experts that calibration hardly visits: what stands in for the tokens that they are not sent.

The second moment of fewer tokens than a linear has inputs says of most directions that nothing comes from there, and a
truncation would drop them as free. So while inputs are gathered every expert is shown at least as many tokens as its
linears have inputs: its own, and tokens of the same text that the router sends elsewhere. With t tokens of its own its
moment is then (t Sigma + (n - t) Sigma_pooled) / n: the pooled moment of the layer where it has none, its own from
n tokens on. What it makes of the tokens lent to it counts nothing in the residual stream. benchmarks/few_visits.py
compares this with other rules; docs/methods.md has its table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..allocation.plan import FewTokens
from ..checkpoint.expert_modules import ExpertList
from ..distributed.workers import Workers
from ..families.family import Experts
from ..model.blocks import BlockSource
from .store import Kind, Statistics

VISITS = "visits"
"""Name in stored statistics: per expert, tokens that were sent to it and tokens that it was shown."""


class Visits:
    """How many tokens the experts of a block saw.

    Args:
        blocks: the model.
    """

    def __init__(self, blocks: BlockSource) -> None:
        experts = blocks.family.experts
        self._counts = None
        if experts is not None:
            size = (experts.number(blocks.reader.config), 2)
            self._counts = torch.zeros(size, dtype=torch.float64, device=blocks.device)

    def add(self, experts: ExpertList | None) -> None:
        """Count the last forward of a block's experts."""
        if experts is not None and self._counts is not None:
            self._counts += experts.counts()

    def total(self, workers: Workers) -> dict[str, Tensor]:
        """Of all processes, as it is stored: (experts, 2) under `VISITS`; nothing of a block without experts."""
        if self._counts is None:
            return {}
        workers.all_reduce_(self._counts)
        return {VISITS: self._counts}


def least_share(blocks: BlockSource, tokens: int) -> float:
    """Share of the tokens of each forward that an expert is shown at least.

    Args:
        blocks: the model.
        tokens: of all calibration windows.
    """
    if blocks.family.experts is None:
        return 0.0
    config = blocks.reader.config
    return min(1.0, fewest(config, blocks.family.experts) / max(1, tokens))


def fewest(config: Mapping[str, Any], experts: Experts) -> int:
    """Tokens that determine the moments of an expert's linears: as many as the widest of them has inputs."""
    return max(int(config["hidden_size"]), int(config[experts.inner]))


def shares_seen(blocks: BlockSource, store: Statistics, kind: Kind) -> dict[str, float]:
    """Linear of an expert -> of the tokens of the text, the share that it was shown while statistics were gathered.

    Args:
        blocks: the dense model.
        store: of its statistics.
        kind: of them.
    """
    family, found = blocks.family, dict[str, float]()
    if family.experts is None:
        return found
    used = family.experts.used_per_token(blocks.reader.config)
    for block, counts in enumerate(_counts(blocks, store, kind)):
        tokens = float(counts[:, 0].sum()) / used
        for group in family.groups:
            if group.expert is not None:
                share = float(counts[group.expert, 1]) / tokens
                found |= {family.linear_name(block, linear): share for linear in group.linears}
    return found


def few_tokens(blocks: BlockSource, store: Statistics, kinds: Collection[str]) -> tuple[FewTokens, ...]:
    """Experts that are sent fewer tokens than their linears have inputs, of the statistics with most tokens.

    Args:
        blocks: the dense model.
        store: of its statistics.
        kinds: of those that are there.
    """
    experts = blocks.family.experts
    kind: Kind | None = "dense" if "dense" in kinds else "gradients" if "gradients" in kinds else None
    if experts is None or kind is None:
        return ()
    needed = fewest(blocks.reader.config, experts)
    return tuple(
        FewTokens(block, expert, int(sent), int(shown))
        for block, counts in enumerate(_counts(blocks, store, kind))
        for expert, (sent, shown) in enumerate(counts.tolist())
        if sent < needed
    )


def _counts(blocks: BlockSource, store: Statistics, kind: Kind) -> Iterator[Tensor]:
    """Of every block, (experts, 2)."""
    return (store.read_one(kind, block, torch.device("cpu"), VISITS) for block in range(blocks.block_count))

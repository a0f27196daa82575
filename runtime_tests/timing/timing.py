"""Rows -> rows with speed, load time and memory: which models are timed together, and how often they are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.core.progress import Progress
from ..backends.formats import LLAMA_CPP
from ..backends.protocol import Backend
from ..metrics.footprint import measure_footprint
from ..report.report import Row
from .speed import Speed, measure_speed


@dataclass(frozen=True)
class Timing:
    """What is timed.

    Attributes:
        prompts: lengths of prompts; the first is the main one.
        threads: CPU threads; the first is the main number.
        decode_tokens, repeats: see `measure_speed`.
        context: longest sequence of the runtimes.
        tokens: any token ids (n,), repeated as far as needed.
        bandwidth: bytes per second the main number of threads reads from memory.
        device: that the runtimes compute on, those that can.
        opened: path, runtime and threads -> an open backend with the runtime's own defaults.
        progress: receives one stage.
    """

    prompts: tuple[int, ...]
    threads: tuple[int, ...]
    decode_tokens: int
    repeats: int
    context: int
    tokens: NDArray[np.int32]
    bandwidth: float
    device: str
    opened: Callable[[Path, str, int], AbstractContextManager[Backend]]
    progress: Progress


def with_speeds(rows: Sequence[Row], timing: Timing, *, factored: str, dense: str) -> list[Row]:
    """Time every row that ran; a factored one together with the dense one of its runtime, of its type if there is one.

    Args:
        rows: measured rows.
        factored, dense: `Row.model` of the two kinds.
    """
    timed: dict[int, Row] = {index: row for index, row in enumerate(rows) if row.error}
    with timing.progress.stage("speed", len(rows) - len(timed)) as advance:
        for index, row in enumerate(rows):
            if row.model != factored or index in timed:
                continue
            partner = _dense_partner(row, rows, dense)
            speeds = _interleaved([row] if partner is None else [rows[partner], row], timing)
            timed[index] = replace(row, speeds=speeds[-1], dense_speeds=() if partner is None else speeds[0])
            if partner is not None and partner not in timed:
                timed[partner] = replace(rows[partner], speeds=speeds[0])
                advance(1)
            advance(1)
        for index, row in enumerate(rows):
            if index not in timed:
                timed[index] = replace(row, speeds=_interleaved([row], timing)[0])
                advance(1)
    return [_with_footprint(timed[index], timing) for index in range(len(rows))]


def _dense_partner(row: Row, rows: Sequence[Row], dense: str) -> int | None:
    """Index of the dense row to time beside `row`: same runtime, preferably the same type."""
    same = [i for i, other in enumerate(rows) if other.model == dense and other.backend == row.backend]
    running = [i for i in same if not rows[i].error]
    exact = [i for i in running if rows[i].quantization == row.quantization]
    return next(iter([*exact, *running]), None)


def _interleaved(rows: Sequence[Row], timing: Timing) -> list[tuple[Speed, ...]]:
    """Speeds of every row: by thread count, then by prompt length."""
    tokens = np.resize(timing.tokens, max(timing.prompts) + timing.decode_tokens)
    found: list[list[Speed]] = [[] for _ in rows]
    for threads in timing.threads:
        with ExitStack() as stack:
            backends = [stack.enter_context(timing.opened(Path(row.path), row.backend, threads)) for row in rows]
            measured = measure_speed(
                backends,
                tokens,
                prompts=timing.prompts,
                decode_tokens=timing.decode_tokens,
                threads=threads,
                repeats=timing.repeats,
            )
        for speeds, more in zip(found, measured, strict=True):
            speeds.extend(more)
    return [tuple(speeds) for speeds in found]


def _with_footprint(row: Row, timing: Timing) -> Row:
    if row.error or row.speed is None:
        return row
    footprint = measure_footprint(
        Path(row.path),
        row.backend,
        threads=timing.threads[0],
        context=timing.context,
        prompt_tokens=timing.prompts[0],
        device=timing.device,
    )
    on_gpu = timing.device != "cpu" and row.backend != LLAMA_CPP  # which reads another memory
    share = None if on_gpu else row.bytes_per_token * row.speed.decode.median / timing.bandwidth
    return replace(row, footprint=footprint, bandwidth_share=share)

"""The only place that orders stages: moments, factors and the factored checkpoint, block by block."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint.factored_config import factored_config
from .checkpoint.lowrank_linear import replace_linears
from .checkpoint.model_card import model_card
from .checkpoint.writer import CheckpointWriter
from .core.progress import Progress, SilentProgress
from .core.recipe import RECIPE_FILE, Recipe
from .distributed.workers import ALONE, Workers
from .factors.fit import FitLoss
from .factors.pivot_block import pivot_block
from .journal import Journal, forget_finished, unfinished
from .machine.device import pick_device
from .machine.memory import release_freed
from .model.source import Source, check_same, open_source
from .model_refinement import refined_model
from .planning.disk_forecast import bytes_at, check_disk, compression_bytes
from .planning.experts_check import check_experts
from .planning.job import Job
from .planning.preparation import prepared
from .planning.ranks import check_settled
from .statistics.recorded_windows import SAMPLED
from .storage.byte_size import NO_LIMITS, MemoryLimits
from .storage.files import check_output, replacing
from .streams import Streams


@dataclass(frozen=True)
class Compression:
    """A finished factored checkpoint.

    Attributes:
        path: its folder.
        plan: as in plan.json.
        seconds: wall-clock seconds of the blocks' work.
        memory: forecast and peak, see `MemoryPlan.to_json`.
    """

    path: Path
    plan: dict[str, Any]
    seconds: float
    memory: dict[str, Any]


def compress(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    force: bool = False,
    statistics: Path | None = None,
    limits: MemoryLimits = NO_LIMITS,
    progress: Progress | None = None,
    workers: Workers = ALONE,
) -> Compression:
    """Compress a model into a factored checkpoint; an interrupted job resumes where it stopped.

    Args:
        recipe: what to do.
        out: the folder to make; it appears whole or not at all.
        device: "auto", "cpu", "cuda".
        force: replace `out` if it exists, and forget an unfinished job of that name and another recipe.
        statistics: a folder where statistics of the dense model are kept for other recipes on the same model and
            calibration text; a temporary one by default.
        limits: memory that this process may take, of its GPU by default what is free there. Activations that do not fit
            go to the machine's memory, or to a file beside `out`; the result is the same.
        progress: receives stages.
        workers: the processes that share the job (machine/joining.py); all call this alike, on a folder that all see,
            and one of them writes.

    Raises:
        UsageError, InputError, ResourceError: one line each, see converter.core.errors.
    """
    check_settled(recipe)
    if workers.is_main_process:
        forget_finished(out)
        check_output(out, force)
    progress = progress or SilentProgress()
    source = workers.main_process_first(lambda: open_source(recipe.model, progress))
    check_experts(recipe, source.family)
    check_same(source, workers)
    with unfinished(out, workers) as journal:
        where = pick_device(device, workers)
        if workers.is_main_process:
            check_disk(
                out,
                compression_bytes(recipe, source) - bytes_at(journal.folder),
                "the factored checkpoint and its journal",
            )
            journal.claim(_identity(recipe, source, where), force=force)
        workers.check_shared(journal.folder)
        kept = statistics or journal.statistics
        with prepared(
            recipe,
            device=device,
            statistics=kept,
            source=source,
            limits=limits,
            scratch=journal.folder,
            progress=progress,
            workers=workers,
        ) as job:
            return _execute(job, out, journal, force=force, progress=progress)


def _identity(recipe: Recipe, source: Source, device: torch.device) -> dict[str, Any]:
    """Whatever changes the result of a job, but for the calibration windows, which are drawn later."""
    versions = {name: version(name) for name in ("lowrank-export", "torch", "transformers")}
    return {**recipe.model_dump(mode="json"), "source_sha256": source.fingerprint(), "device": device.type, **versions}


@torch.no_grad()
def _execute(job: Job, out: Path, journal: Journal, *, force: bool, progress: Progress) -> Compression:
    """Carry out a prepared job."""
    drawn = {"calibration": job.calibration, "update": job.update_calibration}
    if job.workers.is_main_process:
        journal.claim_calibration({name: found.record() for name, found in drawn.items() if found is not None})
    if job.recipe.refine != "none":
        progress.note(f"refining blocks: about {_refinement_bytes(job) / 1e9:.1f} GB beside the library and one block")
    if job.plan.few_tokens:
        progress.note(job.plan.few_tokens_line)
    started = time.perf_counter()
    losses: dict[str, FitLoss] = {}
    with (
        replacing(out, force=force, folder=True) if job.workers.is_main_process else nullcontext() as folder,
        closing(_compressed_blocks(job, journal, losses, progress)) as compressed,
    ):
        blocks: Iterable[tuple[int, nn.Module]] = compressed
        if job.recipe.refine == "model":
            with TemporaryDirectory(prefix=".unrefined-", dir=folder) as unrefined:
                _write(job, Path(unrefined), blocks, losses)
                student = refined_model(job, Path(unrefined), journal, progress)
            inside = job.source.family.blocks
            blocks = ((i, student.get_submodule(f"{inside}.{i}")) for i in range(job.blocks.block_count))
        if folder is None:
            deque(blocks, maxlen=0)
        else:
            _write(job, folder, blocks, losses)
    progress.note(job.memory.line())
    return Compression(out, _plan_with_losses(job, losses), time.perf_counter() - started, job.memory.to_json())


def _compressed_blocks(
    job: Job, journal: Journal, losses: dict[str, FitLoss], progress: Progress
) -> Generator[tuple[int, nn.Module]]:
    """Number and block, with factors in place of their linears; adds each linear's losses to `losses`."""
    streams, going_on = Streams(job), False
    with progress.stage(f"compressing ({job.recipe.method})", job.blocks.block_count) as advance:
        for index in range(job.blocks.block_count):
            block, finished = job.blocks.block(index), journal.read_block(index)
            if finished is not None:
                tensors, found = finished
                try:
                    _restore(job, index, block, tensors)
                    losses |= {name: FitLoss(**loss) for name, loss in found.items() if name in job.plan.ranks}
                except (RuntimeError, TypeError, ValueError):  # other names or shapes than the block has
                    raise journal.damage(index) from None
                streams.pass_block(index, block)
                going_on = True
            else:
                if going_on:
                    progress.note(f"going on with block {index} of {job.blocks.block_count}, where the job stopped")
                    going_on = False
                fitted = streams.compress_block(index, block, progress)
                journal.save_block(index, block.state_dict(), {name: asdict(loss) for name, loss in fitted.items()})
                losses |= fitted
            if job.recipe.layout == "pivot" and (job.workers.is_main_process or job.recipe.refine == "model"):
                pivot_block(block, job.source.family)
            yield index, block
            del block
            release_freed()
            advance(1)


def _restore(job: Job, index: int, block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a block the factors, and whatever else was fitted, that the journal holds."""
    family = job.source.family
    names = {family.linear_name(index, name): name for name in family.linears}
    replace_linears(block, {names[name]: rank for name, rank in job.plan.ranks.items() if name in names})
    if any(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError("not finite")
    block.load_state_dict({name: t.to(job.blocks.device) for name, t in tensors.items()}, strict=True, assign=True)
    block.requires_grad_(False)


def _refinement_bytes(job: Job) -> int:
    """What the refinement of a block has in memory, all float32: residual streams of the compressed and the dense model
    and the targets over all windows; the block's parameters, their gradients, two moments and the best so far."""
    tokens = sum(chunk.numel() for chunk in [*job.chunks, *job.held_out_chunks])
    stream = tokens * int(job.blocks.reader.config["hidden_size"])
    per_block = Counter[int]()
    for linear in job.plan.linears:
        per_block[linear.shape.block] += linear.parameters
    return 4 * (3 * stream + 5 * max(per_block.values()))


def _write(job: Job, folder: Path, blocks: Iterable[tuple[int, nn.Module]], losses: Mapping[str, FitLoss]) -> None:
    """Write a checkpoint. `losses` is read after the blocks."""
    writer, whole_name = CheckpointWriter(folder), job.blocks.reader.whole_name
    for index, block in blocks:  # not enumerate, which holds on to a block while the next is made
        prefix = whole_name(f"{job.source.family.blocks}.{index}")
        writer.write_shard(f"block-{index:05d}", {f"{prefix}.{name}": t for name, t in block.state_dict().items()})
        del block
    for number, name in enumerate(_outside_blocks(job)):
        writer.write_shard(f"rest-{number:05d}", {whole_name(name): _as_stored(job, name)})
    writer.copy_beside(job.blocks.reader)
    plan = _plan_with_losses(job, losses)
    writer.finish(job.blocks.reader, _config(job), _texts(job, plan) if job.workers.is_main_process else {})
    if job.workers.is_main_process and job.calibration is not None and job.calibration.sampled is not None:
        np.save(folder / SAMPLED, job.calibration.sampled)


def _outside_blocks(job: Job) -> list[str]:
    """Names of embedding, norm and head: a shard for each, since one may be larger than a block."""
    return [name for name in job.blocks.reader.names if not name.startswith(job.source.family.blocks + ".")]


def _as_stored(job: Job, name: str) -> Tensor:
    """A tensor that compression leaves alone, in the checkpoint's dtype."""
    tensor = job.blocks.reader.tensor(name)
    return tensor.to(job.blocks.dtype) if tensor.is_floating_point() else tensor


def _config(job: Job) -> dict[str, Any]:
    lowrank = {
        "quant_method": "lowrank",
        "layout": job.recipe.layout,
        "method": job.recipe.method,
        "retention": job.plan.retention,
        "ranks": job.plan.ranks,
    }
    config = {**job.blocks.reader.config, "dtype": job.recipe.dtype, "quantization_config": lowrank}
    return factored_config(job.blocks.reader.whole_config(config))


def _plan_with_losses(job: Job, losses: Mapping[str, FitLoss]) -> dict[str, Any]:
    plan = job.plan.to_json()
    for name, loss in losses.items():
        plan["linears"][name]["relative_loss"] = asdict(loss)
    return plan


def _texts(job: Job, plan: dict[str, Any]) -> dict[str, str]:
    calibration = job.calibration.record() if job.calibration else {}
    if job.update_calibration is not None:
        calibration["update"] = job.update_calibration.record()
    provenance = {
        "source": job.source.spec,
        "source_sha256": job.source.fingerprint(),
        "source_licence": job.source.licence,
    }
    return {
        RECIPE_FILE: job.recipe.to_yaml(),
        "plan.json": json.dumps(plan, indent=2) + "\n",
        "calibration.json": json.dumps({**calibration, **provenance}, indent=2) + "\n",
        "README.md": model_card(job.recipe, job.source, plan, images=job.blocks.reader.around is not None),
    }

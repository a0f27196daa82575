"""The refinement of a whole compressed model: what is trained, on which windows, against what."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from .core.progress import Progress
from .journal import Journal
from .model.loading import load
from .planning.job import Job
from .statistics.last_hidden import last_hidden_states
from .training.descent import Schedule
from .training.refinement import BATCH_TOKENS, Teacher, refine_model


def refined_model(job: Job, checkpoint: Path, journal: Journal, progress: Progress) -> nn.Module:
    """The model of a checkpoint, refined as a whole against the dense model.

    Args:
        job: a recipe that asks for it, prepared.
        checkpoint: the factored checkpoint, as fitted block by block.
        journal: keeps the state, see `descend`.
        progress: receives a stage and both losses.
    """
    device = str(job.blocks.device)
    windows, fitted = job.windows
    targets = last_hidden_states(job.blocks, windows, job.keep, job.workers, progress)
    head = job.blocks.head()
    student = load(checkpoint, device=device, dtype=torch.float32)
    student.set_attn_implementation(job.blocks.attention)
    job.workers.broadcast_(student.state_dict().values())
    kept = {f"{linear.shape.name}." for linear in job.plan.linears if not linear.compressed}
    inside = job.source.family.blocks + "."
    trained = [p for name, p in student.named_parameters() if name.startswith(inside) and not _under(name, kept)]
    changing, fixed = (sum(p.numel() for p in ps) for ps in (trained, student.parameters()))
    # the factors, their gradients, two moments and the best so far, all float32; what is fixed, the head, the targets
    kept_here = 0 if job.memory.holding == "on disk" else windows.numel() * head.weight.shape[1]
    needed = 4 * (4 * changing + fixed + head.weight.numel() + kept_here)
    progress.note(f"refining the whole model: about {needed / 1e9:.1f} GB and activations")
    batches = -(-fitted // max(1, BATCH_TOKENS // windows.shape[1]))
    schedule = Schedule(job.recipe.refine_model_epochs, job.recipe.refine_model_rate, job.recipe.seed)
    with progress.stage("refining the whole model", schedule.epochs * batches) as advance:
        done = refine_model(
            student,
            Teacher(head, windows, targets, fitted),
            trained=trained,
            schedule=schedule,
            bfloat16=job.blocks.bfloat16,
            journal=journal,
            advance=advance,
            workers=job.workers,
        )
    progress.note(f"held-out KL divergence {done.before:.4f} -> {done.after:.4f} in {done.epochs} epochs")
    refined: nn.Module = nn.Module.to(student, job.blocks.dtype)
    return refined


def _under(name: str, prefixes: Collection[str]) -> bool:
    return any(name.startswith(prefix) for prefix in prefixes)

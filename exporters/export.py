"""One call for every format: checkpoint and request -> artifact."""

from __future__ import annotations

from pathlib import Path

from ..converter.core.progress import Progress, SilentProgress
from .artifact import Artifact
from .target import ExportRequest


def export(
    checkpoint: Path, out: Path, request: ExportRequest, *, force: bool = False, progress: Progress | None = None
) -> Artifact:
    """Export a checkpoint, factored or dense.

    Args:
        checkpoint: its folder.
        out: the file or folder to make; it appears whole or not at all.
        request: what to make, see `registry.requested`.
        force: replace `out` if it exists.

    Raises:
        UsageError, InputError, ResourceError: as the exporters say.
    """
    from ..converter.machine.float32 import float32_products

    with float32_products("cpu"):
        return request.export(checkpoint, out, force=force, progress=progress or SilentProgress())

"""An export with llama.cpp's library at hand, which encodes the GGUF types that gguf-py does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..converter.core.progress import Progress, SilentProgress
from ..exporters.artifact import Artifact
from ..exporters.export import export as run_export
from ..exporters.gguf.rounding_choice import Rounding
from ..exporters.llamacpp.runtime import ggml_library
from ..exporters.onnx.weights.types import OnnxOptions


def export(
    checkpoint: Path,
    out: Path,
    *,
    format: str,
    quantisation: str | None = None,
    embedding_type: str | None = None,
    head_type: str | None = None,
    layout: str = "native",
    dense: str | None = None,
    residual: str | None = None,
    rounding: Rounding | None = None,
    onnx: OnnxOptions | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Export a checkpoint, see `exporters.export.export`. Builds the llama.cpp runtime (once) if a type wants it.

    Raises:
        UsageError, InputError, ResourceError: as the exporters and `ensure_runtime` say.
    """
    progress = progress or SilentProgress()
    return run_export(
        checkpoint,
        out,
        format=format,
        quantisation=quantisation,
        embedding_type=embedding_type,
        head_type=head_type,
        layout=layout,
        dense=dense,
        residual=residual,
        rounding=rounding,
        onnx=onnx,
        library=partial(ggml_library, progress),
        force=force,
        progress=progress,
    )

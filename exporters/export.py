"""One call for every format: checkpoint -> artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..converter.core.errors import InputError, UsageError
from ..converter.core.progress import Progress, SilentProgress
from ..converter.core.recipe import nearest
from ..converter.families.table import gguf_of, onnx_of
from .artifact import Artifact
from .gguf.ggml_encoder import FindLibrary
from .gguf.mixes import CHOSEN, MIXES
from .gguf.rounding_choice import Rounding
from .onnx.weights.types import QUANTISATIONS as ONNX_TYPES
from .onnx.weights.types import OnnxOptions

# format -> its quantisations; the first is the default
QUANTISATIONS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("q8_0", *(name for name in MIXES if name != "q8_0")),
    "onnx": ("int8", *(name for name in ONNX_TYPES if name != "int8")),
}
LAYOUTS = ("native", "dense", "adapter")


def check_format(format: str, quantisation: str | None = None) -> str:
    """The quantisation to use for a format.

    Raises:
        UsageError: unknown format or quantisation; names the nearest.
    """
    if format not in QUANTISATIONS:
        raise UsageError(f"--format {format}: unknown format{nearest(format, QUANTISATIONS)}")
    known = QUANTISATIONS[format]
    if quantisation is None:
        return known[0]
    if quantisation not in known and (format, quantisation) != ("gguf", CHOSEN):
        raise UsageError(f"--{format}-type {quantisation}: unknown type{nearest(quantisation, known)}")
    return quantisation


def check_family(formats: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuse a model that one of the formats cannot hold, before any work.

    Args:
        formats: "gguf", "onnx".
        config: the parsed config.json.

    Raises:
        InputError: names the format and the families it knows.
    """
    checks: Mapping[str, Callable[[Mapping[str, Any]], object]] = {"gguf": gguf_of, "onnx": onnx_of}
    for format in formats:
        checks[format](config)


def knows_family(format: str, config: Mapping[str, Any]) -> bool:
    """Whether a format can hold this kind of model."""
    try:
        check_family([format], config)
    except InputError:
        return False
    return True


def artifact_name(format: str, quantisation: str) -> str:
    """File or folder name of an export inside an output folder."""
    return f"model-{quantisation}.gguf" if format == "gguf" else f"onnx-{quantisation}"


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
    library: FindLibrary | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Export a checkpoint, factored or dense.

    `runtime_tests.exporting.export` does the same with llama.cpp's library at hand, which encodes the K-quants.

    Args:
        checkpoint: its folder.
        out: the GGUF file or ONNX folder to make; it appears whole or not at all.
        format: "gguf" or "onnx".
        quantisation: see `QUANTISATIONS`; the format's first by default. GGUF: `mixes.CHOSEN` for a checkpoint that was
            made for a size.
        embedding_type, head_type: GGUF: storage types of token embedding and output head, where not the mix's.
        layout: "native" (two factors) or, for GGUF, "dense" (factors multiplied out) and "adapter" (a base of
            residuals, and the factors as a LoRA adapter beside it); both run in a llama.cpp without the patch.
        dense: layout "adapter": the model the checkpoint was made from, as `open_source` takes it.
        residual: layout "adapter": storage type of the residuals, or "zero".
        rounding: GGUF: what the rounding is told of the inputs; nothing by default.
        onnx: ONNX: how matrices are encoded.
        library: GGUF: finds a ggml library; called when a type is met that gguf-py does not encode.
        force: replace `out` if it exists.

    Raises:
        UsageError, InputError, ResourceError: as the exporters say.
    """
    quantisation = check_format(format, quantisation)
    progress = progress or SilentProgress()
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: unknown layout{nearest(layout, LAYOUTS)}")
    if layout != "adapter" and (dense or residual):
        raise UsageError("--dense and --gguf-residual-type belong to --layout adapter")
    if format == "onnx" and layout != "native":
        raise UsageError(f"--layout {layout}: ONNX has the native layout only")
    from ..converter.machine.float32 import float32_products

    with float32_products("cpu"):
        if format == "gguf" and layout == "adapter":
            from ..converter.model.source import open_source
            from .gguf.adapter import export_adapter

            return export_adapter(
                checkpoint,
                out,
                dense=None if dense is None else open_source(dense, progress),
                residual=residual,
                quantisation=quantisation,
                embedding_type=embedding_type,
                head_type=head_type,
                library=library,
                force=force,
                progress=progress,
            )
        if format == "gguf":
            from .gguf.writer import export_gguf

            return export_gguf(
                checkpoint,
                out,
                quantisation=quantisation,
                embedding_type=embedding_type,
                head_type=head_type,
                layout=layout,
                rounding=rounding,
                library=library,
                force=force,
                progress=progress,
            )
        from .onnx.export import export_onnx

        return export_onnx(checkpoint, out, quantisation=quantisation, options=onnx, force=force, progress=progress)

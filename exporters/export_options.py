"""What is exported, as options of the command line: formats, their types, rounding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..converter.core.errors import UsageError

if TYPE_CHECKING:
    from .onnx.weights.types import OnnxOptions

GGUF, ONNX = "GGUF", "ONNX"  # panels of --help

GgufType = Annotated[
    list[str] | None,
    typer.Option(
        help="q8_0 (default), f32, f16, bf16, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, q3_k, q2_k, "
        "iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, or a mix: q5_k_m, q4_k_m, q4_k_s, q3_k_m; repeatable. "
        "See docs/gguf.md.",
        rich_help_panel=GGUF,
    ),
]
GgufEmbeddingType = Annotated[
    str | None, typer.Option(help="Of the token embedding. Default: as the type says.", rich_help_panel=GGUF)
]
GgufHeadType = Annotated[
    str | None,
    typer.Option(help="Of the output head or tied embedding. Default: q6_k below 6 bits.", rich_help_panel=GGUF),
]
GgufRounding = Annotated[
    str,
    typer.Option(
        help="plain: every block of weights by itself; aware: on the calibration text, so that outputs stay close "
        "(minutes; worth it below 8 bits).",
        rich_help_panel=GGUF,
    ),
]
GgufImatrix = Annotated[
    Path | None, typer.Option(help="Importance matrix for plain rounding, see `imatrix`.", rich_help_panel=GGUF)
]
Calibration = Annotated[
    str | None, typer.Option(help="Text to run, as for `compress`. Default: the one the checkpoint records.")
]
OnnxType = Annotated[
    list[str] | None,
    typer.Option(
        help="int8 (default), int4, int4-mix (V in 8 bits, U in 4), fp16, fp32; repeatable. See docs/onnx.md.",
        metavar="NAME",
        rich_help_panel=ONNX,
    ),
]
OnnxRounding = Annotated[
    str, typer.Option(help="plain or aware, as --gguf-rounding; worth it below 8 bits.", rich_help_panel=ONNX)
]
OnnxBlockSize = Annotated[
    int, typer.Option(help="Columns that share a scale: 16, 32, 64, 128 or 256.", rich_help_panel=ONNX)
]
OnnxSymmetric = Annotated[
    bool,
    typer.Option(
        "--onnx-symmetric/--onnx-asymmetric", help="A scale per block, or a zero point too.", rich_help_panel=ONNX
    ),
]
OnnxAccuracyLevel = Annotated[
    int,
    typer.Option(
        help="4: activations in 8 bits inside matmuls; 0 or 1: in float, far slower at 8 bits.", rich_help_panel=ONNX
    ),
]

OnnxFactors = Annotated[
    str,
    typer.Option(
        help="auto: linears where one matmul costs less than two are multiplied out; all: none is.",
        rich_help_panel=ONNX,
    ),
]


def chosen_exports(
    formats: list[str] | None, gguf: list[str] | None, onnx: list[str] | None, sized: bool = False
) -> list[tuple[str, str]]:
    """(format, type) pairs asked for; GGUF in its default type where nothing was asked for.

    Args:
        formats, gguf, onnx: of the command line.
        sized: whether a size is asked for, which chooses types itself.

    Raises:
        UsageError: unknown, or more than a size leaves open.
    """
    from .export import check_format
    from .gguf.mixes import CHOSEN

    if sized and (gguf or onnx or set(formats or ["gguf"]) != {"gguf"}):
        raise UsageError("a size is met by a GGUF file, and chooses its types: leave out types and other formats")
    if sized:
        return [("gguf", CHOSEN)]
    types: dict[str, list[str] | None] = {"gguf": gguf, "onnx": onnx}
    defaults: list[str | None] = [None]
    chosen = [(kind, type) for kind in formats or ["gguf"] for type in types.get(kind) or defaults]
    return [(kind, check_format(kind, type)) for kind, type in dict.fromkeys(chosen)]


def chosen_encoding(
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
    rounding: str,
    factors: str,
    calibration: str | None = None,
    device: str = "cpu",
) -> OnnxOptions:
    """How ONNX exports are encoded."""
    from .onnx.weights.types import OnnxOptions

    text = calibration if rounding == "aware" else None
    return OnnxOptions(block_size, symmetric, accuracy_level, rounding, text, factors, device)

"""What an ONNX export is asked for, as options of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from ..target import TargetOption

PANEL = "ONNX"

OPTIONS: Mapping[str, TargetOption] = {
    "onnx_type": TargetOption(
        Annotated[
            list[str] | None,
            typer.Option(
                help="int8 (default), int4, int4-mix (V in 8 bits, U in 4), fp16, fp32; repeatable. See docs/onnx.md.",
                metavar="NAME",
            ),
        ],
        scope="type",
    ),
    "onnx_rounding": TargetOption(
        Annotated[
            str, typer.Option(help="plain or aware, as --gguf-rounding; worth it below 8 bits.", rich_help_panel=PANEL)
        ],
        "plain",
    ),
    "onnx_block_size": TargetOption(
        Annotated[int, typer.Option(help="Columns that share a scale: 16, 32, 64, 128 or 256.", rich_help_panel=PANEL)],
        32,
    ),
    "onnx_symmetric": TargetOption(
        Annotated[
            bool,
            typer.Option(
                "--onnx-symmetric/--onnx-asymmetric",
                help="A scale per block, or a zero point too.",
                rich_help_panel=PANEL,
            ),
        ],
        True,
    ),
    "onnx_accuracy_level": TargetOption(
        Annotated[
            int,
            typer.Option(
                help="4: activations in 8 bits inside matmuls; 0 or 1: in float, far slower at 8 bits.",
                rich_help_panel=PANEL,
            ),
        ],
        4,
    ),
    "onnx_factors": TargetOption(
        Annotated[
            str,
            typer.Option(
                help="auto: linears where one matmul costs less than two are multiplied out; all: none is.",
                rich_help_panel=PANEL,
            ),
        ],
        "auto",
    ),
}

"""What an ONNX export is asked for, as options of the command line."""

from __future__ import annotations

from collections.abc import Mapping

from ...converter.core.option_groups import option
from ..target import TargetOption

PANEL = "ONNX"

OPTIONS: Mapping[str, TargetOption] = {
    "onnx_type": TargetOption(
        option(
            list[str] | None,
            "int8 (default), int4, int4-mix (V in 8 bits, U in 4), fp16, fp32; repeatable. See docs/onnx.md.",
            metavar="NAME",
        ),
        scope="type",
    ),
    "onnx_rounding": TargetOption(
        option(str, "plain or aware, as --gguf-rounding; worth it below 8 bits.", panel=PANEL),
        "plain",
    ),
    "onnx_block_size": TargetOption(
        option(int, "Columns that share a scale: 16, 32, 64, 128 or 256.", panel=PANEL),
        32,
    ),
    "onnx_symmetric": TargetOption(
        option(bool, "A scale per block, or a zero point too.", "--onnx-symmetric/--onnx-asymmetric", panel=PANEL),
        True,
    ),
    "onnx_accuracy_level": TargetOption(
        option(int, "4: activations in 8 bits inside matmuls; 0 or 1: in float, far slower at 8 bits.", panel=PANEL),
        4,
    ),
    "onnx_factors": TargetOption(
        option(
            str, "auto: linears where one matmul costs less than two are multiplied out; all: none is.", panel=PANEL
        ),
        "auto",
    ),
}

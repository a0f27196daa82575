"""What a GGUF export is asked for, as options of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...converter.core.option_groups import option
from ..target import TargetOption

PANEL = "GGUF"

OPTIONS: Mapping[str, TargetOption] = {
    "gguf_type": TargetOption(
        option(
            list[str] | None,
            "q8_0 (default), f32, f16, bf16, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, q3_k, "
            "q2_k, iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, or a mix: q5_k_m, q4_k_m, q4_k_s, q3_k_m; repeatable. "
            "See docs/gguf.md.",
            metavar="NAME",
        ),
        scope="type",
    ),
    "gguf_embedding_type": TargetOption(
        option(str | None, "Of the token embedding. Default: as the type says.", panel=PANEL)
    ),
    "gguf_head_type": TargetOption(
        option(str | None, "Of the output head or tied embedding. Default: q6_k below 6 bits.", panel=PANEL)
    ),
    "gguf_rounding": TargetOption(
        option(
            str,
            "plain: every block of weights by itself; aware: on the calibration text, so that outputs stay "
            "close (minutes; worth it below 8 bits).",
            panel=PANEL,
        ),
        "plain",
    ),
    "gguf_imatrix": TargetOption(
        option(Path | None, "Importance matrix for plain rounding, see `imatrix`.", panel=PANEL),
        scope="artifact",
    ),
    "layout": TargetOption(
        option(
            str,
            "native (factors), dense (multiplied out), adapter (low-bit residuals and a LoRA adapter that "
            "holds the factors); the last two need no patch.",
            panel=PANEL,
        ),
        "native",
        "artifact",
    ),
    "dense": TargetOption(
        option(str | None, "Layout adapter: the dense model, whose residuals the base holds.", panel=PANEL),
        scope="artifact",
    ),
    "gguf_residual_type": TargetOption(
        option(str | None, "Layout adapter: type of the residuals, or zero. Default: q4_0 with --dense.", panel=PANEL),
        scope="artifact",
    ),
}

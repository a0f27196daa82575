"""What a GGUF export is asked for, as options of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..target import TargetOption

PANEL = "GGUF"

OPTIONS: Mapping[str, TargetOption] = {
    "gguf_type": TargetOption(
        Annotated[
            list[str] | None,
            typer.Option(
                help="q8_0 (default), f32, f16, bf16, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, q3_k, "
                "q2_k, iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, or a mix: q5_k_m, q4_k_m, q4_k_s, q3_k_m; repeatable. "
                "See docs/gguf.md.",
                metavar="NAME",
            ),
        ],
        scope="type",
    ),
    "gguf_embedding_type": TargetOption(
        Annotated[
            str | None, typer.Option(help="Of the token embedding. Default: as the type says.", rich_help_panel=PANEL)
        ]
    ),
    "gguf_head_type": TargetOption(
        Annotated[
            str | None,
            typer.Option(
                help="Of the output head or tied embedding. Default: q6_k below 6 bits.", rich_help_panel=PANEL
            ),
        ]
    ),
    "gguf_rounding": TargetOption(
        Annotated[
            str,
            typer.Option(
                help="plain: every block of weights by itself; aware: on the calibration text, so that outputs stay "
                "close (minutes; worth it below 8 bits).",
                rich_help_panel=PANEL,
            ),
        ],
        "plain",
    ),
    "gguf_imatrix": TargetOption(
        Annotated[
            Path | None,
            typer.Option(help="Importance matrix for plain rounding, see `imatrix`.", rich_help_panel=PANEL),
        ],
        scope="artifact",
    ),
    "layout": TargetOption(
        Annotated[
            str,
            typer.Option(
                help="native (factors), dense (multiplied out), adapter (low-bit residuals and a LoRA adapter that "
                "holds the factors); the last two need no patch.",
                rich_help_panel=PANEL,
            ),
        ],
        "native",
        "artifact",
    ),
    "dense": TargetOption(
        Annotated[
            str | None,
            typer.Option(
                help="Layout adapter: the dense model, whose residuals the base holds.", rich_help_panel=PANEL
            ),
        ],
        scope="artifact",
    ),
    "gguf_residual_type": TargetOption(
        Annotated[
            str | None,
            typer.Option(
                help="Layout adapter: type of the residuals, or zero. Default: q4_0 with --dense.",
                rich_help_panel=PANEL,
            ),
        ],
        scope="artifact",
    ),
}

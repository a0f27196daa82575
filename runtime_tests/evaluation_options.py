"""What is measured, and against which thresholds, as options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MEASUREMENT = "Measurement"  # panel of --help

Evaluate = Annotated[
    str, typer.Option(help="Text that is measured on, as for --calibration.", rich_help_panel=MEASUREMENT)
]
EvaluationWindows = Annotated[
    int, typer.Option(min=1, metavar="N", help="Windows measured.", rich_help_panel=MEASUREMENT)
]
EvaluationLength = Annotated[
    int, typer.Option(min=2, metavar="N", help="Tokens per measured window.", rich_help_panel=MEASUREMENT)
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="CPU threads of the runtimes. Default: all cores.", rich_help_panel=MEASUREMENT
    ),
]
Speed = Annotated[
    bool, typer.Option("--speed/--no-speed", help="Time prefill and decode.", rich_help_panel=MEASUREMENT)
]
Gates = Annotated[
    Path | None,
    typer.Option(
        help="Thresholds, see docs/validation.md. Default: ./gates.yaml if it is there.", rich_help_panel=MEASUREMENT
    ),
]
Gate = Annotated[
    list[str] | None,
    typer.Option(
        help="One threshold, over --gates: quality.mean_kld=0.5, or =off; repeatable.",
        metavar="NAME=VALUE",
        rich_help_panel=MEASUREMENT,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Overlapping windows, a new one every so many tokens; each token counts once.",
        rich_help_panel=MEASUREMENT,
    ),
]
LlamaWindows = Annotated[
    bool,
    typer.Option(
        "--llama-windows",
        help="llama.cpp's windows: chunks, of which the second half is scored.",
        rich_help_panel=MEASUREMENT,
    ),
]
PromptTokens = Annotated[
    list[int] | None,
    typer.Option(
        min=1, metavar="N", help="Prompt lengths that are timed; repeatable. Default: 256.", rich_help_panel=MEASUREMENT
    ),
]
MoreThreads = Annotated[
    list[int] | None,
    typer.Option(min=1, metavar="N", help="Thread counts timed besides; repeatable.", rich_help_panel=MEASUREMENT),
]
Continuations = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Pieces of the text that are continued to see whether the model repeats itself.",
        rich_help_panel=MEASUREMENT,
    ),
]
SampleSeed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Of sampled text and tasks.", rich_help_panel=MEASUREMENT)
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        help="Zero-shot task of lm-evaluation-harness: piqa, arc_easy, winogrande, hellaswag, mmlu; repeatable. "
        "NAME=FILE.jsonl takes its examples from a file.",
        metavar="NAME",
        rich_help_panel=MEASUREMENT,
    ),
]
TaskLimit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Examples per task. Default: all.", rich_help_panel=MEASUREMENT)
]

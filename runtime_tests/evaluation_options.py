"""What is measured, and against which thresholds, as options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Evaluate = Annotated[str, typer.Option(help="Text that is measured on, as for --calibration.")]
EvaluationWindows = Annotated[int, typer.Option(min=1, help="Windows measured.")]
EvaluationLength = Annotated[int, typer.Option(min=2, help="Tokens per measured window.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the runtimes. Default: all cores.")]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Time prefill and decode.")]
Gates = Annotated[
    Path | None, typer.Option(help="Thresholds, see docs/validation.md. Default: ./gates.yaml if it is there.")
]
Gate = Annotated[
    list[str] | None,
    typer.Option(help="One threshold, over --gates: quality.mean_kld=0.5, or =off; repeatable.", metavar="NAME=VALUE"),
]
Stride = Annotated[
    int | None, typer.Option(min=1, help="Overlapping windows, a new one every so many tokens; each token counts once.")
]
LlamaWindows = Annotated[
    bool, typer.Option("--llama-windows", help="llama.cpp's windows: chunks, of which the second half is scored.")
]
PromptTokens = Annotated[
    list[int] | None, typer.Option(min=1, help="Prompt lengths that are timed; repeatable. Default: 256.")
]
MoreThreads = Annotated[list[int] | None, typer.Option(min=1, help="Thread counts timed besides; repeatable.")]
Continuations = Annotated[
    int, typer.Option(min=1, help="Pieces of the text that are continued to see whether the model repeats itself.")
]
SampleSeed = Annotated[int, typer.Option(min=0, help="Of sampled text and tasks.")]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        help="Zero-shot task of lm-evaluation-harness: piqa, arc_easy, winogrande, hellaswag, mmlu; repeatable. "
        "NAME=FILE.jsonl takes its examples from a file.",
        metavar="NAME",
    ),
]
TaskLimit = Annotated[int | None, typer.Option(min=1, help="Examples per task. Default: all.")]

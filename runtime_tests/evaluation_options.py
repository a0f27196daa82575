"""What is measured, and against which thresholds, as options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..converter.core.option_groups import Command, Option, option_group

if TYPE_CHECKING:
    from .evaluation import Evaluation

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
EvaluationValues = dict[str, Any]
"""Values of `evaluation_options`."""
Scope = Literal["quality", "speed", "job", "gate"]
"""What a command measures: quality alone; speed too; both, held against thresholds; all that there is."""
QUALITY: Mapping[str, Option] = {
    "evaluate": (Evaluate, "python-docs"),
    "evaluation_windows": (EvaluationWindows, 8),
    "evaluation_length": (EvaluationLength, 512),
    "threads": (Threads, None),
}
SPEED: Mapping[str, Option] = {**QUALITY, "speed": (Speed, True)}
JOB: Mapping[str, Option] = {**SPEED, "gates": (Gates, None), "gate": (Gate, None)}
OPTIONS: Mapping[Scope, Mapping[str, Option]] = {
    "quality": QUALITY,
    "speed": SPEED,
    "job": JOB,
    "gate": {
        **JOB,
        "evaluation_stride": (Stride, None),
        "llama_windows": (LlamaWindows, False),
        "prompt_tokens": (PromptTokens, None),
        "more_threads": (MoreThreads, None),
        "continuations": (Continuations, 16),
        "seed": (SampleSeed, 0),
        "task": (TaskNames, None),
        "task_limit": (TaskLimit, None),
    },
}


def evaluation_options(scope: Scope) -> Callable[[Command], Command]:
    """Give a command the options of measuring; their values reach its parameter `evaluation`."""
    return option_group("evaluation", lambda: OPTIONS[scope])


def chosen_evaluation(values: EvaluationValues) -> Evaluation:
    """What was asked for; what a command does not offer has its default.

    Raises:
        UsageError, InputError: thresholds or tasks that there are not.
    """
    from .evaluation import Evaluation
    from .gates.gate_file import chosen_gates
    from .metrics.tasks import parse_task
    from .settings import DEFAULTS

    asked: dict[str, Any] = {name: values.get(name, default) for name, (_, default) in OPTIONS["gate"].items()}
    gates = {"gates": chosen_gates(asked["gates"], asked["gate"] or [])} if "gates" in values else {}
    return Evaluation(
        asked["evaluate"],
        asked["evaluation_windows"],
        asked["evaluation_length"],
        asked["threads"] or _cores(),
        asked["speed"],
        stride=asked["evaluation_stride"],
        like_llama_cpp=asked["llama_windows"],
        prompt_tokens=tuple(asked["prompt_tokens"] or DEFAULTS.prompt_tokens),
        more_threads=tuple(asked["more_threads"] or ()),
        continuations=asked["continuations"],
        seed=asked["seed"],
        tasks=tuple(parse_task(word) for word in asked["task"] or []),
        task_limit=asked["task_limit"],
        **gates,
    )


def _cores() -> int:
    import os

    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1

"""What is measured, and against which thresholds, as options of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..converter.core.option_groups import Command, Option, option, option_group

if TYPE_CHECKING:
    from .evaluation import Evaluation

MEASUREMENT = "Measurement"  # panel of --help

EvaluationValues = dict[str, Any]
"""Values of `evaluation_options`."""
Scope = Literal["quality", "speed", "job", "gate"]
"""What a command measures: quality alone; speed too; both, held against thresholds; all that there is."""
_measured = partial(option, panel=MEASUREMENT)
_number = partial(option, panel=MEASUREMENT, metavar="N", min=1)
QUALITY: Mapping[str, Option] = {
    "evaluate": (_measured(str, "Text that is measured on, as for --calibration."), "python-docs"),
    "evaluation_windows": (_number(int, "Windows measured."), 8),
    "evaluation_length": (_number(int, "Tokens per measured window.", min=2), 512),
    "threads": (_number(int | None, "CPU threads of the runtimes. Default: all cores."), None),
}
SPEED: Mapping[str, Option] = {
    **QUALITY,
    "speed": (_measured(bool, "Time prefill and decode.", "--speed/--no-speed"), True),
}
JOB: Mapping[str, Option] = {
    **SPEED,
    "gates": (
        _measured(Path | None, "Thresholds, see docs/validation.md. Default: ./gates.yaml if it is there."),
        None,
    ),
    "gate": (
        _measured(
            list[str] | None,
            "One threshold, over --gates: quality.mean_kld=0.5, or =off; repeatable.",
            metavar="NAME=VALUE",
        ),
        None,
    ),
}
OPTIONS: Mapping[Scope, Mapping[str, Option]] = {
    "quality": QUALITY,
    "speed": SPEED,
    "job": JOB,
    "gate": {
        **JOB,
        "evaluation_stride": (
            _number(int | None, "Overlapping windows, a new one every so many tokens; each token counts once."),
            None,
        ),
        "llama_windows": (
            _measured(bool, "llama.cpp's windows: chunks, of which the second half is scored.", "--llama-windows"),
            False,
        ),
        "prompt_tokens": (_number(list[int] | None, "Prompt lengths that are timed; repeatable. Default: 256."), None),
        "more_threads": (_number(list[int] | None, "Thread counts timed besides; repeatable."), None),
        "continuations": (
            _number(int, "Pieces of the text that are continued to see whether the model repeats itself."),
            16,
        ),
        "seed": (_number(int, "Of sampled text and tasks.", min=0), 0),
        "task": (
            _measured(
                list[str] | None,
                "Zero-shot task of lm-evaluation-harness: piqa, arc_easy, winogrande, hellaswag, mmlu; repeatable. "
                "NAME=FILE.jsonl takes its examples from a file.",
                metavar="NAME",
            ),
            None,
        ),
        "task_limit": (_number(int | None, "Examples per task. Default: all."), None),
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

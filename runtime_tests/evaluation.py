"""What models are measured on, and how: the text's windows, threads, thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import UsageError, naming
from ..converter.core.progress import Progress
from ..converter.model.loading import load_tokenizer
from ..converter.statistics.calibration import read_token_windows
from ..converter.texts.corpus import is_windows, read_corpus
from .gates.gate_file import GateSettings
from .metrics.corpora import evaluation_windows, llama_cpp_windows
from .metrics.tasks import Task
from .metrics.windows import Windows
from .settings import DEFAULTS, Settings


@dataclass(frozen=True)
class Evaluation:
    """On which text, and how, a release is measured.

    Attributes:
        text: as for calibration, or windows (.npy).
        windows, window_length: how much of it.
        threads: CPU threads of every runtime, those of `more_threads` besides when speed is timed.
        speed: whether to time.
        stride: see `evaluation_windows`.
        like_llama_cpp: take llama.cpp's own windows.
        prompt_tokens: lengths of prompts that are timed.
        continuations: pieces of the text that are continued to measure repetition.
        seed: of sampled text and tasks.
        tasks, task_limit: see `Settings`.
        gates: thresholds that were asked for.
    """

    text: str = "python-docs"
    windows: int = 8
    window_length: int = 512
    threads: int = 2
    speed: bool = True
    stride: int | None = None
    like_llama_cpp: bool = False
    prompt_tokens: tuple[int, ...] = DEFAULTS.prompt_tokens
    more_threads: tuple[int, ...] = ()
    continuations: int = DEFAULTS.pieces
    seed: int = 0
    tasks: tuple[Task, ...] = ()
    task_limit: int | None = None
    gates: GateSettings = field(default_factory=GateSettings)

    def settings(self, device: str = "cpu") -> Settings:
        """How `validate` is to measure."""
        return Settings(
            threads=self.threads,
            device=device,
            speed=self.speed,
            prompt_tokens=self.prompt_tokens,
            more_threads=self.more_threads,
            pieces=self.continuations,
            seed=self.seed,
            tasks=self.tasks,
            task_limit=self.task_limit,
        )

    def facts(self) -> dict[str, Any]:
        """What reports hold of it besides the windows themselves."""
        windowing = "llama.cpp" if self.like_llama_cpp else "even" if self.stride is None else f"stride {self.stride}"
        return {"text": self.text, "windowing": windowing}


def load_windows(evaluation: Evaluation, model: Path, progress: Progress | None = None) -> Windows:
    """Evaluation windows for a model folder's tokenizer; says how much the text was.

    Raises:
        UsageError: options that contradict each other.
        InputError: the text or tokenizer cannot be used.
    """
    if evaluation.like_llama_cpp and evaluation.stride is not None:
        raise UsageError("llama.cpp's windows have no stride: leave out --evaluation-stride or --llama-windows")
    tokenizer = load_tokenizer(model)
    if is_windows(evaluation.text):
        if evaluation.like_llama_cpp or evaluation.stride is not None:
            raise UsageError(f"{evaluation.text}: given windows are neither cut by a stride nor like llama.cpp")
        vocabulary = int(CheckpointReader(model).config["vocab_size"])
        with naming("--evaluate"):
            return Windows.whole(read_token_windows(Path(evaluation.text), vocabulary))
    with naming("--evaluate"):
        text = read_corpus(evaluation.text, "evaluation", tokenizer)
    count, length = evaluation.windows, evaluation.window_length
    if evaluation.like_llama_cpp:
        windows = llama_cpp_windows(tokenizer, text, windows=count, length=length)
    else:
        windows = evaluation_windows(tokenizer, text, windows=count, length=length, stride=evaluation.stride)
    if progress is not None and windows.drawn_from is not None:
        progress.note(windows.drawn_from.said(evaluation.text))
    return windows

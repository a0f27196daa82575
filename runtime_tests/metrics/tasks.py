"""Zero-shot tasks through lm-evaluation-harness (`pip install lowrank-export[tasks]`), in any of the runtimes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ...converter.core.errors import InputError, ResourceError, UsageError
from ...converter.core.progress import Progress
from ...converter.model.tokens import tokens_of
from ..backends.protocol import Backend, Tokens
from .perplexity import token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = ("acc_norm", "acc")  # the first that a task reports is the one shown
SPLITS = ("train", "validation", "dev", "test")  # whichever of them the task reads


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as the harness calls it: piqa, arc_easy, winogrande, hellaswag, mmlu_..., or a group of them.
        file: its examples as JSON lines, with the fields of the data set; None to let the harness fetch them.
    """

    name: str
    file: Path | None = None


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    Attributes:
        task: its name.
        metric: "acc_norm" (choices weighed by their length) or "acc".
        value: share of examples answered rightly.
        standard_error: of it.
        samples: number of examples.
        version: of the task, as the harness counts.
    """

    task: str
    metric: str
    value: float
    standard_error: float
    samples: int
    version: str


def parse_task(word: str) -> Task:
    """ "piqa" or "piqa=examples.jsonl".

    Raises:
        InputError: no such file.
    """
    name, equals, file = word.partition("=")
    if equals and not Path(file).is_file():
        raise InputError(f"--task {word}: no such file; give JSON lines with the fields of the data set")
    return Task(name.strip(), Path(file).resolve() if equals else None)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Miss the harness, or a task that it does not know, before any work.

    Raises:
        ResourceError: the harness is not installed.
        UsageError: an unknown task (names the nearest).
    """
    manager = _manager()
    for task in tasks:
        if task.name not in manager.all_tasks:
            near = get_close_matches(task.name, manager.all_tasks, 1)
            raise UsageError(f"unknown task {task.name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if task.file is not None and task.name not in manager.all_subtasks:
            raise UsageError(f"task {task.name}: a group takes no file; give its tasks one by one")


def run_tasks(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    longest: int,
    limit: int | None,
    seed: int,
    progress: Progress,
    label: str,
) -> tuple[TaskScore, ...]:
    """Run tasks on an open backend, zero-shot.

    Args:
        backend: its sequence is overwritten.
        tokenizer: of the reference, for every runtime alike.
        tasks: checked ones.
        longest: tokens that the backend holds; longer contexts lose their beginning.
        limit: examples per task; None for all.
        seed: of everything the harness draws.
        progress: receives one stage.
        label: name of the stage.

    Raises:
        InputError: examples that do not fit the task.
    """
    from jinja2 import TemplateError
    from lm_eval import evaluator

    manager = _manager()
    found = []
    with (
        progress.stage(f"{label}: tasks", len(tasks)) as advance,
        TemporaryDirectory(prefix="lowrank-tasks-") as scratch,
        _quiet_harness(),
    ):
        for task in tasks:
            try:
                result = evaluator.simple_evaluate(
                    _language_model(backend, tokenizer, longest),
                    tasks=[_configured(task, manager, Path(scratch))],
                    num_fewshot=0,
                    limit=limit,
                    task_manager=manager,
                    log_samples=False,
                    bootstrap_iters=0,
                    random_seed=seed,
                    numpy_random_seed=seed,
                    torch_random_seed=seed,
                    fewshot_random_seed=seed,
                )
            except (KeyError, ValueError, TypeError, OSError, TemplateError) as error:
                where = f" with {task.file}" if task.file else ""
                raise InputError(f"task {task.name}{where}: {type(error).__name__}: {_line(error)}") from None
            found.append(_score(task.name, result or {}))
            advance(1)
    return tuple(found)


def _manager() -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ResourceError("tasks need lm-evaluation-harness: pip install 'lowrank-export[tasks]'") from None
    return _made(TaskManager)


@cache
def _made(manager: Callable[[], Any]) -> Any:
    """Once for all artifacts: it reads thousands of descriptions."""
    return manager()


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """No progress bars and notes of the harness's own, nor its look for a git checkout: progress is shown once."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from lm_eval import evaluator
    from lm_eval.api import task

    bars, hash_of, count = are_progress_bars_disabled(), evaluator.get_git_commit_hash, task.tqdm
    log = logging.getLogger("lm_eval")
    level = log.level
    disable_progress_bars()
    evaluator.get_git_commit_hash = lambda: None
    task.tqdm = lambda items, **_: items
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        evaluator.get_git_commit_hash, task.tqdm = hash_of, count
        if not bars:
            enable_progress_bars()


def _configured(task: Task, manager: Any, scratch: Path) -> str:
    """The name of the harness's own task, or the path of a description of it on the given examples."""
    if task.file is None:
        return task.name
    described = {
        "include": str(manager.task_index[task.name].yaml_path),
        "task": task.name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": dict.fromkeys(SPLITS, str(task.file))},
    }
    path = scratch / f"{task.name}.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return str(path)


def _score(name: str, result: Mapping[str, Any]) -> TaskScore:
    figures = result.get("results", {}).get(name, {})
    for metric in METRICS:
        if (value := figures.get(f"{metric},none")) is not None:
            break
    else:
        raise InputError(f"task {name}: reports no accuracy; choose a multiple-choice task")
    counts = result.get("n-samples", {})
    samples = sum(int(count["effective"]) for task, count in counts.items() if task == name or name not in counts)
    error = math.sqrt(value * (1 - value) / (samples - 1)) if samples > 1 else math.nan
    return TaskScore(name, metric, float(value), error, samples, str(result.get("versions", {}).get(name, "")))


def continuation_loglikelihood(
    backend: Backend, context: Sequence[int], continuation: Sequence[int], longest: int
) -> tuple[float, bool]:
    """Log-likelihood of a continuation after a context, and whether greedy decoding would write it.

    Args:
        context: at least one token.
        continuation: at least one token.
        longest: tokens that the backend holds; the beginning of a longer context is dropped.
    """
    kept: Tokens = np.asarray([*context, *continuation][-(longest + 1) :], dtype=np.int32)
    rows = backend.window_logits(kept[:-1])[-len(continuation) :]
    targets = kept[-len(continuation) :]
    return -float(token_losses(rows, targets).sum()), bool((rows.argmax(axis=-1) == targets).all())


def _language_model(backend: Backend, tokenizer: PreTrainedTokenizerBase, longest: int) -> Any:
    """An open backend as the harness needs it. A function, since the base class is imported only when it is needed."""
    from lm_eval.api.model import LM

    first = tokens_of(tokenizer).first

    def encode(text: str) -> list[int]:
        return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def split(context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; spaces at the end of the context belong to the continuation, as in the harness."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = encode(context)
        after = encode(context + continuation)[len(before) :]
        return before or [first], after

    class BackendModel(LM):  # type: ignore[misc]
        """Log-likelihoods of continuations, one at a time."""

        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return [continuation_loglikelihood(backend, *split(*request.args), longest) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            raise ValueError("perplexity tasks are not run here: validate measures it itself")

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            raise ValueError("generation tasks are not run here")

    return BackendModel()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]

"""Log-likelihoods against torch; a task of the harness on a file of examples, in a runtime of this project."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError, ResourceError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend
from lowrank_export.runtime_tests.metrics import tasks
from lowrank_export.runtime_tests.metrics.tasks import (
    Task,
    check_tasks,
    continuation_loglikelihood,
    parse_task,
    run_tasks,
)

EXAMPLES = [
    {"goal": "keep what the data need", "sol1": "A rank is a budget.", "sol2": "Numbers: 0123456789.", "label": 0},
    {"goal": "spend it", "sol1": "return u, v", "sol2": "a budget is a choice; a choice is a rank.", "label": 1},
    {"goal": "factor", "sol1": "decomposition keeps", "sol2": "def", "label": 1},
    {"goal": "count", "sol1": "3.14159 too", "sol2": "whitened", "label": 0},
]


def loglikelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    """One token after another, the obvious way."""
    total = 0.0
    for index, token in enumerate(continuation):
        ids = torch.tensor([[*context, *continuation[:index]]])
        with torch.no_grad():
            total += float(model(input_ids=ids).logits[0, -1].double().log_softmax(-1)[token])
    return total


def test_loglikelihood_is_the_sum_over_the_continuation(tiny: ModuleType) -> None:
    model = tiny.model("llama")
    backend = TorchBackend(model)
    found, greedy = continuation_loglikelihood(backend, [3, 4, 5], [9, 8], longest=64)
    assert found == pytest.approx(loglikelihood(model, [3, 4, 5], [9, 8]), rel=1e-5) and not greedy
    best = int(backend.window_logits(np.array([3, 4, 5], np.int32))[-1].argmax())
    assert continuation_loglikelihood(backend, [3, 4, 5], [best], longest=64)[1]
    cut, _ = continuation_loglikelihood(backend, [7, 7, 3, 4, 5], [9, 8], longest=4)
    assert cut == pytest.approx(found, rel=1e-5)  # what does not fit is the context's beginning


def test_words_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "piqa.jsonl").write_text("{}\n")
    assert parse_task("piqa") == Task("piqa")
    assert parse_task(f"piqa={tmp_path / 'piqa.jsonl'}").file == tmp_path / "piqa.jsonl"
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        parse_task("piqa=none.jsonl")
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(ResourceError, match=r"lowrank-export\[tasks\]"):
        check_tasks([Task("piqa")])


def test_task_of_the_harness_on_a_file(
    tiny: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match="did you mean 'piqa'"):
        check_tasks([Task("piqaa")])
    file = tmp_path / "piqa.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES), encoding="utf-8")
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()

    def scored(limit: int | None) -> tuple[tasks.TaskScore, ...]:
        return run_tasks(
            TorchBackend(model),
            tokenizer,
            [Task("piqa", file)],
            longest=256,
            limit=limit,
            seed=0,
            progress=SilentProgress(),
            label="torch",
        )

    (score,) = scored(None)
    assert capfd.readouterr() == ("", "") and not caplog.records  # progress is shown in one place
    right = 0
    for example in EXAMPLES:
        context = tokenizer(f"Question: {example['goal']}\nAnswer:")["input_ids"]
        values = []
        for choice in (str(example["sol1"]), str(example["sol2"])):
            whole = tokenizer(f"Question: {example['goal']}\nAnswer: {choice}")["input_ids"]
            values.append(loglikelihood(model, context, whole[len(context) :]) / len(choice))
        right += int(np.argmax(values)) == example["label"]
    assert (score.task, score.metric, score.samples) == ("piqa", "acc_norm", 4)
    assert score.value == right / 4
    assert score.standard_error == pytest.approx(math.sqrt(score.value * (1 - score.value) / 3))
    assert scored(2)[0].samples == 2
    file.write_text('{"other": 1}\n')
    with pytest.raises(InputError, match=r"task piqa with .*piqa\.jsonl"):
        scored(None)

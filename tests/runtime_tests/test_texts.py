"""Texts and links through a whole job: what is said, and what is recorded."""

from __future__ import annotations

import gzip
import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.statistics.recorded_windows import recorded_windows
from lowrank_export.converter.storage.links import FOLLOW
from lowrank_export.runtime_tests.release import Evaluation, load_windows

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


class Told(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def instruct(tiny: ModuleType, tmp_path: Path) -> Path:
    """A model folder with a chat template."""
    tiny.save_dense(tmp_path / "m", "llama")
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def chat(tiny: ModuleType, tmp_path: Path) -> str:
    """Conversations, and a record without one."""
    lines = [{"messages": [{"role": "user", "content": line}]} for line in tiny.TEXT.splitlines() * 4 if line]
    packed = "\n".join(map(json.dumps, [*lines, {"messages": None}]))
    (tmp_path / "chat#1.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    return f"{tmp_path / 'chat#1.jsonl.gz'}#messages"


def recipe(model: Path, text: str) -> Recipe:
    return Recipe(
        model=str(model), method="svd-llm", calibration=text, windows=4, window_length=16, rank_multiple=4, held_out=1
    )


def test_conversations_are_calibrated_on_and_measured(
    instruct: Path, chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ModuleType
) -> None:
    progress, out = Told(), tmp_path / "out"
    compress(recipe(instruct, chat), out, progress=progress)
    record = json.loads((out / "calibration.json").read_text())
    count = 4 * sum(1 for line in tiny.TEXT.splitlines() if line)
    assert record["drawn_from"]["documents"] == count and record["drawn_from"]["skipped"] == 1
    said = f"{chat}: {count} documents, {record['drawn_from']['tokens']:,} tokens; 1 record without a text skipped"
    assert said in progress.notes
    tokenizer = tiny.tokenizer()
    assert "<user>" in "".join(map(tokenizer.decode, recorded_windows(out)))  # the template went with the checkpoint
    windows = load_windows(Evaluation(text=chat, windows=2, window_length=16), out, progress)
    assert windows.facts()["drawn_from"] == record["drawn_from"]
    assert progress.notes[-1] == said
    monkeypatch.chdir(tmp_path)
    Path(chat.removesuffix("#messages")).rename(tmp_path / "gone")
    with pytest.raises(
        InputError, match=r"calibration\.json names .*no such text.*; or give a text with --calibration$"
    ):
        recorded_windows(out)


def test_an_update_text_is_read_before_any_work(instruct: Path, chat: str, tmp_path: Path) -> None:
    asked = recipe(instruct, chat).model_copy(update={"method": "svd-llm-u", "update_calibration": "none.txt"})
    progress = Told()
    with pytest.raises(InputError, match=rf"^--update-calibration none\.txt: no such text in {Path.cwd()}; give"):
        compress(asked, tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()


def test_links_that_are_meant_are_followed_and_not_passed_on(
    instruct: Path, chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (farm := tmp_path / "farm").mkdir()
    for file in instruct.iterdir():
        (farm / file.name).symlink_to(file)
    with pytest.raises(InputError, match=f"set {FOLLOW}=1"):
        compress(recipe(farm, chat), tmp_path / "out", progress=SilentProgress())
    monkeypatch.setenv(FOLLOW, "1")
    compress(recipe(farm, chat), tmp_path / "out", progress=SilentProgress())
    monkeypatch.delenv(FOLLOW)
    assert CheckpointReader(tmp_path / "out").ranks
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_symlink()]

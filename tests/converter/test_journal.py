"""An interrupted job resumes where it stopped, and ends with the bytes of an uninterrupted one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import pytest
import torch
from torch import nn

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.journal import Journal, unfinished
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.streams import Streams
from lowrank_export.converter.training import descent, refinement

JOBS: dict[str, dict[str, Any]] = {
    "no stream": {"method": "svd-llm"},
    "one stream": {"method": "adasvd"},
    "two streams, pivot": {"method": "loss-aware", "layout": "pivot"},
    "update after the block": {"method": "svd-llm-u"},
    "refined blocks": {"method": "loss-aware", "layout": "pivot", "refine": "block", "refine_epochs": 2},
    "measured blocks, refined": {"method": "lc-svd", "refine_epochs": 1},
    "refined model": {"method": "loss-aware", "refine": "model", "refine_epochs": 1, "refine_model_epochs": 3},
}


@pytest.fixture
def recipe(tiny: ModuleType, small_recipe: Any, tmp_path: Path) -> Any:
    tiny.save_dense(tmp_path / "dense", "llama")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    return partial(small_recipe, tmp_path, windows=6, held_out=2, gradient_windows=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int, owner: Any, name: str) -> None:
    """The method raises KeyboardInterrupt once it has run that often."""
    real, done = getattr(owner, name), []

    def stopping(*arguments: Any, **options: Any) -> Any:
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(None)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("blocks", [0, 1])
def test_ends_with_the_same_bytes(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, blocks: int
) -> None:
    asked = recipe(**JOBS[job])
    compress(asked, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, blocks, Streams, "compress_block")
        compress(asked, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    assert len(list((tmp_path / ".cut.unfinished").glob("block-*"))) == blocks
    made: list[int] = []
    real = Streams.compress_block

    def counted(self: Streams, index: int, block: nn.Module, progress: Any) -> Any:
        made.append(index)
        losses = real(self, index, block, progress)
        # as what is read back: some kernels sum in another order where strides differ
        assert all(tensor.is_contiguous() for tensor in block.state_dict().values())
        return losses

    monkeypatch.setattr(Streams, "compress_block", counted)
    compress(asked, tmp_path / "cut")
    assert made == list(range(blocks, 2))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {"dense", "text.txt", "whole", "cut"}


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_refinement_goes_on_with_its_next_epoch(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    asked = recipe(**JOBS["refined model"])
    compress(asked, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, epochs, Journal, "save_refinement")
        compress(asked, tmp_path / "cut")
    steps: list[None] = []
    real = torch.optim.AdamW.step

    def counted(self: Any, *arguments: Any) -> Any:
        steps.append(None)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counted)
        compress(asked, tmp_path / "cut")
    assert len(steps) == 3 - epochs  # six windows of 32 are one batch
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_refinement_goes_on_within_an_epoch(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Six windows of 32 in batches of 64 tokens are three steps."""
    monkeypatch.setattr(refinement, "BATCH_TOKENS", 64)
    asked = recipe(**JOBS["refined model"])
    compress(asked, tmp_path / "whole")
    monkeypatch.setattr(descent, "SAVE_SECONDS", -1)  # after every step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, steps, Journal, "save_refinement")
        compress(asked, tmp_path / "cut")
    compress(asked, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_statistics_are_not_gathered_twice(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_export.converter.statistics import gathering

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 0, Streams, "compress_block")
        compress(recipe(method="loss-aware"), tmp_path / "out")
    interrupt_after(monkeypatch, 0, gathering, "backward_blocks")
    compress(recipe(method="loss-aware"), tmp_path / "out")


def test_an_unfinished_job_is_of_one_recipe(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1, Streams, "compress_block")
        compress(recipe(method="svd"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"another method \(.svd., here .svd-llm.\).*--force"):
        compress(recipe(method="svd-llm"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"another method \(.*\), another retention \(0.6, here 0.5\); .*--force"):
        compress(recipe(method="svd-llm", retention=0.5), tmp_path / "out")
    compress(recipe(method="svd-llm"), tmp_path / "out", force=True)
    assert "method: svd-llm" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert not (tmp_path / ".out.unfinished").exists()


def test_another_text_is_noticed(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1, Streams, "compress_block")
        compress(recipe(), tmp_path / "out")
    text = tmp_path / "text.txt"
    text.write_text(text.read_text() + " and some more words " * 200)
    with pytest.raises(UsageError, match=r"holds .* made with another calibration"):
        compress(recipe(), tmp_path / "out")


def test_a_damaged_block_is_one_line(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1, Streams, "compress_block")
        compress(recipe(method="svd"), tmp_path / "out")
    block = tmp_path / ".out.unfinished" / "block-00000.safetensors"
    block.write_bytes(block.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"block-00000\.safetensors: damaged .* remove it"):
        compress(recipe(method="svd"), tmp_path / "out")
    block.unlink()
    compress(recipe(method="svd"), tmp_path / "out")


def test_force_goes_on_too(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress(recipe(method="svd", retention=0.5), tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1, Streams, "compress_block")
        compress(recipe(method="svd"), tmp_path / "out", force=True)
    assert "retention: 0.5" in (tmp_path / "out" / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match="already exists"):
        compress(recipe(method="svd"), tmp_path / "out")
    assert (tmp_path / ".out.unfinished").exists()
    interrupt_after(monkeypatch, 1, Streams, "compress_block")
    compress(recipe(method="svd"), tmp_path / "out", force=True)
    assert "retention: 0.6" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_killed_when_all_was_done(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lowrank_export.converter.journal.remove", lambda path: None)
        compress(recipe(method="svd"), tmp_path / "out")
    assert (tmp_path / ".out.unfinished").exists()
    with pytest.raises(UsageError, match="already exists"):
        compress(recipe(method="svd"), tmp_path / "out")
    assert not (tmp_path / ".out.unfinished").exists()


def test_one_process_at_a_time(recipe: Any, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".out.lock"), pytest.raises(UsageError, match="another process"):
        compress(recipe(method="svd"), tmp_path / "out")


@pytest.mark.parametrize("error", [InputError("x"), UsageError("x"), KeyboardInterrupt()])
def test_nothing_stays_of_a_job_that_did_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), unfinished(tmp_path / "deep" / "out"):
        raise error
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_input_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(InputError), unfinished(tmp_path / "out") as journal:
        journal.save_block(0, {"a": torch.ones(2)}, {})
        raise InputError("x")
    assert not list(tmp_path.iterdir())


def test_reads_what_it_saved(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read_block(3) is None and journal.read_refinement() is None and not journal.holds_work()
    journal.save_block(3, {"a": torch.arange(3.0)}, {"q": {"truncated": 0.1 + 0.2}})
    tensors, losses = journal.read_block(3) or pytest.fail("nothing there")
    assert torch.equal(tensors["a"], torch.arange(3.0)) and losses == {"q": {"truncated": 0.1 + 0.2}}
    assert journal.holds_work()

"""Limits on memory: the same result however activations are held, a forecast that holds, refusals before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter import pipeline
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.model.block_forward import TappedBlock
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.passes import RecomputedPass, SuspendedPass
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning import memory_plan
from lowrank_export.converter.planning.memory_forecast import HOLDINGS, forecast
from lowrank_export.converter.planning.model_shape import ModelShape, WindowSizes, model_shape
from lowrank_export.converter.storage.byte_size import MemoryLimits
from lowrank_export.converter.streams import Streams


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "sharded" (the same in four shards) and "text.txt"."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny.save_dense(folder / "dense", "llama", blocks=3, tied=False)
    model.save_pretrained(folder / "sharded", max_shard_size="200KB")
    tiny.tokenizer().save_pretrained(folder / "sharded")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def recipe(models: Path, small_recipe: Any) -> Any:
    return partial(small_recipe, models, method="loss-aware", windows=5, gradient_windows=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "pivot", "activations": "bfloat16"},
        {"method": "adasvd", "calibration_reduction": "stack-of-batch", "buckets": 3},
        {"method": "svd-llm-u"},
        {"method": "fwsvd"},
        {"refine": "block", "refine_epochs": 1},
    ],
    ids=str,
)
def test_same_bytes_however_activations_are_held(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    made = []
    for holding in HOLDINGS:
        monkeypatch.setattr(memory_plan, "HOLDINGS", (holding,))
        out = tmp_path / holding.replace(" ", "-")
        done = compress(recipe(**options), out)
        assert done.memory["activations"] == holding
        assert (done.memory["scratch_bytes"] > 0) == (holding == "on disk")
        made.append(contents(out))
    assert made[0] == made[1] == made[2]
    assert {path.name for path in tmp_path.iterdir()} == {"in-memory", "repeated", "on-disk"}


def test_stopped_on_disk_and_ended_in_memory(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress(recipe(), tmp_path / "whole")
    plain = Streams.compress_block

    def stopped(self: Streams, index: int, *arguments: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return plain(self, index, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(memory_plan, "HOLDINGS", ("on disk",))
        patched.setattr(Streams, "compress_block", stopped)
        compress(recipe(), tmp_path / "cut")
    left = {path.name for path in (tmp_path / ".cut.unfinished").iterdir()}
    assert left == {
        "recipe.json",
        "calibration.json",
        "statistics",
        "block-00000.safetensors",
        "block-00001.safetensors",
    }
    compress(recipe(), tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_shards_or_one_file(recipe: Any, models: Path, tmp_path: Path) -> None:
    for name in ("dense", "sharded"):
        compress(recipe(model=str(models / name)), tmp_path / name)
    one, many = contents(tmp_path / "dense"), contents(tmp_path / "sharded")
    assert {name: one[name] for name in one if name.endswith(".safetensors")} == {
        name: many[name] for name in many if name.endswith(".safetensors")
    }


@pytest.mark.parametrize("method", ["adasvd", "loss-aware", "svd-llm-v2", "asvd", "asvd-stable-rank", "lc-svd"])
def test_never_more_than_a_block_of_a_stream_is_there(
    recipe: Any, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Blocks that are alive when one is read; two where two streams are compared, or one block is changed alone."""
    alive, most, plain = list[weakref.ref[torch.nn.Module]](), [0], BlockSource.block

    def block(self: BlockSource, index: int) -> torch.nn.Module:
        most[0] = max(most[0], 1 + sum(kept() is not None for kept in alive))
        made = plain(self, index)
        alive.append(weakref.ref(made))
        return made

    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(BlockSource, "block", block)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refused)
    compress(recipe(model=str(models / "sharded"), method=method), tmp_path / "out")
    assert len(alive) >= 3
    assert most[0] == (2 if METHODS[method].aligned or method in ("asvd", "lc-svd") else 1)


def test_the_dense_model_has_no_storage(models: Path) -> None:
    reader = CheckpointReader(models / "dense")
    blocks = BlockSource(reader, family_of(reader.config, "test"), torch.device("cpu"), torch.float32)
    assert all(parameter.is_meta for parameter in blocks._skeleton.parameters())
    block = blocks.block(1)
    assert not any(parameter.is_meta for parameter in block.parameters())
    assert all(parameter.is_meta for parameter in blocks._skeleton.parameters())


def test_a_limit_below_the_forecast_is_refused_before_any_work(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"--max-memory 50 MB: .* takes about .*; allow that much") as refused:
        compress(recipe(), tmp_path / "out", limits=MemoryLimits(50 * 10**6))
    assert refused.value.exit_code == 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "advice"),
    [({"calibration": "self"}, "leave out --calibration self"), ({"refine": "model"}, "leave out --refine model")],
)
def test_what_wants_the_whole_model_says_so(recipe: Any, models: Path, options: dict[str, str], advice: str) -> None:
    """Told from the shapes of a large model: nothing of that size is made."""
    reader = CheckpointReader(models / "dense")
    blocks = BlockSource(reader, family_of(reader.config, "test"), torch.device("cpu"), torch.float32)
    asked = recipe(**options)
    plan = memory_plan.plan_memory(asked, METHODS["loss-aware"], blocks, WindowSizes(4, 1, 32, 4), memory_plan.Room())
    assert any("whole model" in stage for stage, _ in plan.stages)
    found = forecast(asked, METHODS["loss-aware"], large(), WindowSizes(4, 1, 32, 4), "on disk")
    assert "whole model" in found.largest
    limited = memory_plan.MemoryPlan("on disk", tuple(found.memory.items()), found.disk, 10**9)
    assert advice in memory_plan._too_little(asked, limited, large())


@pytest.mark.parametrize(
    ("bytes", "shown"),
    [
        *((0, "0 MB"), (1.2, "1 MB"), (531_000_001, "532 MB"), (999_000_000, "999 MB")),
        *((999_000_001, "1.0 GB"), (8 * 10**9, "8.0 GB"), (8 * 2**30, "8.6 GB"), (8 * 10**9 + 1, "8.1 GB")),
    ],
)
def test_what_a_message_tells_to_allow_is_enough(bytes: float, shown: str) -> None:
    assert memory_plan.gigabytes(bytes) == shown


def test_a_full_disk_is_refused_before_any_work(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(memory_plan, "HOLDINGS", ("on disk",))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
    monkeypatch.setattr(pipeline, "check_disk", lambda *_: None)  # of the checkpoint, which comes before
    with pytest.raises(ResourceError, match="of disk, and 0 MB are free"):
        compress(recipe(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_trial_that_takes_more_than_forecast_is_refused(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "peak_of", lambda work: 10**12)
    with pytest.raises(ResourceError, match="a trial of one block took 1000"):
        compress(recipe(), tmp_path / "out", limits=MemoryLimits(10**11))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_the_trial_runs_for_every_method(recipe: Any, tmp_path: Path, method: str) -> None:
    done = compress(recipe(method=method), tmp_path / "out", limits=MemoryLimits(10**11))
    assert done.memory["limit_bytes"] == 10**11 and done.memory["activations"] == "in memory"


def large() -> ModelShape:
    """The shape of a 7B llama, in float32."""
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gated = ("mlp.gate_proj", "mlp.up_proj")
    return ModelShape(
        blocks=32,
        hidden=4096,
        vocabulary=32000,
        inputs={"attention in": 4096, "attention out": 4096, "mlp in": 4096, "mlp out": 11008},
        outputs={
            **dict.fromkeys((*attention, "self_attn.o_proj", "mlp.down_proj"), 4096),
            **dict.fromkeys(gated, 11008),
        },
        groups={
            "attention in": attention,
            "attention out": ("self_attn.o_proj",),
            "mlp in": gated,
            "mlp out": ("mlp.down_proj",),
        },
        block_parameters=4 * 4096**2 + 3 * 4096 * 11008,
        largest_other=32000 * 4096,
        other_parameters=2 * 32000 * 4096,
        weight_bytes=4,
        bfloat16=False,
    )


@pytest.mark.parametrize("method", ["svd-llm", "adasvd", "loss-aware"])
def test_a_7b_model_fits_into_8_gigabytes(method: str) -> None:
    """What docs/large-models.md says: 32 and 2 windows of 1024 tokens, 12 for gradients."""
    asked, windows = Recipe(model="7b", method=method), WindowSizes(32, 2, 1024, 4)
    found = {holding: forecast(asked, METHODS[method], large(), windows, holding) for holding in HOLDINGS}
    assert 600e6 + memory_plan.MARGIN * found["on disk"].peak < 8e9
    assert found["on disk"].peak <= found["repeated"].peak <= found["in memory"].peak


@pytest.mark.parametrize("method", ["svd", "svd-llm", "adasvd", "loss-aware", "saes"])
def test_several_processes_keep_what_they_truncated_ahead(method: str) -> None:
    """Beside the same windows: nothing where a truncation waits for the stream, else the factors of a share or more."""
    asked, row = Recipe(model="7b", method=method), METHODS[method]
    one, two = (
        forecast(asked, row, large(), WindowSizes(32, 2, 1024, 4, processes), "on disk").memory["compressing a block"]
        for processes in (1, 2)
    )
    more, factors = two - one, 8 * large().block_parameters // 2
    assert more == 0 if row.metric == "compressed" else more > factors


def test_blocks_cost_disk_and_no_memory() -> None:
    asked, windows = Recipe(model="7b", method="loss-aware"), WindowSizes(32, 2, 1024, 4)
    few, many = (
        forecast(asked, METHODS["loss-aware"], replace(large(), blocks=count), windows, "on disk") for count in (4, 80)
    )
    assert few.peak == many.peak
    assert many.disk - few.disk == 76 * 12 * 1024 * 4096 * 4


def test_the_shape_of_a_model(models: Path) -> None:
    reader = CheckpointReader(models / "sharded")
    blocks = BlockSource(reader, family_of(reader.config, "test"), torch.device("cpu"), torch.float32)
    shape = model_shape(blocks)
    entries = {name: torch.Size(reader.shape(name)).numel() for name in reader.names}
    inside = sum(count for name, count in entries.items() if ".layers.2." in name)
    assert (shape.blocks, shape.hidden, shape.block_parameters) == (3, 64, inside)
    assert shape.model == sum(entries.values())
    assert shape.inputs == {"attention in": 64, "attention out": 64, "mlp in": 64, "mlp out": 160}


SCRIPT = """
import json, sys
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.core.recipe import Recipe
from pathlib import Path
print(json.dumps(compress(Recipe(**json.loads(sys.argv[1])), Path(sys.argv[2])).memory))
"""
FACTOR = 1.5  # the forecast is a bound: attention, product and saving are counted as if at once


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adasvd", "loss-aware", "svd-llm"])
def test_the_forecast_is_above_the_peak_and_not_far(tiny: ModuleType, tmp_path: Path, method: str) -> None:
    """A width at which moments and activations are most of the process; in a process of its own."""
    sizes = {"hidden_size": 256, "intermediate_size": 4096, "blocks": 2, "head_dim": 64}
    tiny.save_dense(tmp_path / "dense", "llama", max_position_embeddings=2048, **sizes)
    (tmp_path / "text.txt").write_text(tiny.TEXT * 20, encoding="utf-8")
    asked = {
        "model": str(tmp_path / "dense"),
        "method": method,
        "calibration": str(tmp_path / "text.txt"),
        "windows": 9,
        "window_length": 512,
        "held_out": 1,
        "gradient_windows": 2,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
    )
    memory = json.loads(done.stdout)
    print(method, memory)
    assert memory["peak_bytes"] <= memory["forecast_bytes"] <= FACTOR * memory["peak_bytes"]


def test_a_pass_that_is_repeated_reads_what_one_that_sleeps_reads(models: Path) -> None:
    reader = CheckpointReader(models / "dense")
    family = family_of(reader.config, "test")
    blocks = BlockSource(reader, family, torch.device("cpu"), torch.float32)
    tokens = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    chunks = list(blocks.embed([tokens, tokens.flip(1)]))
    with torch.no_grad():
        plain = [blocks.run(blocks.block(0), x) for x in chunks]
        passes = [
            kind(blocks.run, TappedBlock(blocks.block(0), family).block, chunks)
            for kind in (SuspendedPass, RecomputedPass)
        ]
        for group in range(len(family.groups)):
            for chunk in range(2):
                first, second = (one.input(chunk, group) for one in passes)
                assert torch.equal(first, second)
        for one in passes:
            for chunk in range(2):
                torch.testing.assert_close(one.output(chunk), plain[chunk], rtol=0, atol=0)
            one.abandon()

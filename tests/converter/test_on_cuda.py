"""Whole compressions on the stand-in for a GPU: nothing is left on the wrong device, and the bytes are the CPU's.

On a GPU they are not, since its kernels round otherwise; what draws random numbers does so on the CPU, so that labels
are the same, but for windows sampled from the model.
"""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import lowrank_export
from lowrank_export.cli import app
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import ResourceError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.journal import Journal
from lowrank_export.converter.machine.device import pick_device
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning import memory_plan
from lowrank_export.converter.planning.memory_forecast import GPU_HOLDINGS
from lowrank_export.converter.planning.model_shape import WindowSizes
from lowrank_export.converter.planning.preparation import gather_statistics
from lowrank_export.converter.storage.byte_size import MemoryLimits
from lowrank_export.converter.streams import Streams

MB = 10**6


@pytest.fixture
def recipe(models: Path, small_recipe: Any) -> Any:
    windows = {"windows": 3, "window_length": 16, "held_out": 1, "gradient_windows": 2, "sensitivity_windows": 1}
    return partial(small_recipe, models, method="loss-aware", activations="float32", **windows)


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts are of tensors alone: what Python, libraries and a GPU's context take is left out."""
    monkeypatch.setattr(memory_plan, "resident_memory", lambda: 0)
    monkeypatch.setattr(memory_plan, "LIBRARIES", 0)
    monkeypatch.setattr(memory_plan, "DEVICE_LIBRARIES", 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


JOBS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "pivot": {"layout": "pivot"},
    "stacked": {"method": "adasvd", "calibration_reduction": "stack-of-batch", "buckets": 2},
    "block": {"method": "svd-llm", "refine": "block", "refine_epochs": 1},
    "model": {"method": "adasvd", "refine": "model", "refine_epochs": 1},
    "sampled": {"method": "svd-llm", "calibration": "self"},
    "float16": {"method": "svd-llm", "dtype": "float16"},
    # with gradients the bytes differ: those of keys and values that heads share are rounded before they are added
    "bfloat16": {"method": "adasvd", "dtype": "bfloat16"},
    "kept dense": {"keep_dense": ("q_proj",), "retention": 0.9},
}


@pytest.mark.parametrize("name", JOBS)
def test_every_kind_of_job_gives_the_cpus_bytes(
    recipe: Any, tmp_path: Path, cuda_stand_in: ModuleType, name: str
) -> None:
    asked = recipe(**JOBS[name])
    compress(asked, tmp_path / "cpu", device="cpu")
    with cuda_stand_in.StandIn() as gpu:
        compress(asked, tmp_path / "cuda", device="cuda")
        gc.collect()
        assert gpu.memory.peak > 0 == gpu.memory.allocated
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")


@pytest.fixture(scope="module")
def wide(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices outweigh what is the same for every size: panels of 256 rows, 128 rows of logits."""
    folder = tmp_path_factory.mktemp("wide") / "dense"
    tiny.save_dense(folder, "llama", hidden_size=128, head_dim=32, intermediate_size=768)
    return folder


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("name", ["asvd", "lc-svd", "svd-llm", "loss-aware", "adasvd", "model", "sampled"])
def test_both_memories_stay_below_the_forecast(recipe: Any, wide: Path, tmp_path: Path, gpu: Any, name: str) -> None:
    """Counted tensor by tensor, with the margin that any forecast has."""
    options = {"windows": 6, "window_length": 24 if name == "sampled" else 96, **JOBS[name]}
    memory = compress(recipe(model=str(wide), **options), tmp_path / "out", device="cuda").memory
    assert 0.3 * memory["device"]["forecast_bytes"] < gpu.memory.peak <= memory["device"]["forecast_bytes"]
    assert 0.3 * memory["forecast_bytes"] < gpu.host.peak <= memory["forecast_bytes"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma", "granite", "phi3"])
def test_every_family_gives_the_cpus_bytes(recipe: Any, tiny: ModuleType, tmp_path: Path, family: str) -> None:
    """Forwards, backwards, fits."""
    tiny.save_dense(tmp_path / "dense", family)
    for device in ("cpu", "cuda"):
        compress(recipe(model=str(tmp_path / "dense")), tmp_path / device, device=device)
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")


def test_every_operation_has_a_kernel_for_cuda(recipe: Any, tmp_path: Path, cuda_stand_in: ModuleType) -> None:
    """By PyTorch's own table of its operations, all but the CPU's attention, which stands for CUDA's."""
    import torchgen

    with cuda_stand_in.StandIn(record=True) as gpu:
        for name in ("loss-aware", "pivot", "model", "asvd", "saes"):
            compress(recipe(**JOBS[name]), tmp_path / name, device="cuda")
    file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    table = {f"aten::{entry['func'].partition('(')[0]}": entry for entry in entries}

    def runs(name: str) -> bool:
        entry = table[name]
        if "structured_delegate" in entry:
            return runs(f"aten::{entry['structured_delegate']}")
        keys = ",".join(entry.get("dispatch") or ["Composite"])
        return "CUDA" in keys or "Composite" in keys

    met = {name for name in gpu.operations if name.startswith("aten::") and "flash_attention_for_cpu" not in name}
    assert len(met) > 80
    assert [name for name in sorted(met) if not runs(name)] == []


@pytest.mark.usefixtures("gpu")
def test_forwards_in_bfloat16_are_autocast(recipe: Any, models: Path, tmp_path: Path) -> None:
    """They have a kernel of attention that the CPU's do not, so the bytes differ."""
    tokens = torch.arange(24)[None]
    dense = lowrank_export.load(models / "dense")(tokens).logits
    found = {}
    for device, activations in (("cpu", "float32"), ("cuda", "bfloat16")):
        asked = recipe(method="svd-llm", activations=activations)
        compress(asked, tmp_path / device, device=device)
        found[device] = lowrank_export.load(tmp_path / device)(tokens).logits
    moved = float((found["cuda"] - found["cpu"]).norm() / (found["cpu"] - dense).norm())
    assert 0 < moved < 0.1


def test_what_multiplies_bfloat16_is_asked_of_the_gpu(
    recipe: Any, models: Path, tmp_path: Path, cuda_stand_in: ModuleType
) -> None:
    for capability, activations in (((7, 5), "float32"), ((8, 0), "bfloat16")):
        with cuda_stand_in.StandIn(capability=capability):
            folder = tmp_path / activations
            gather_statistics(
                recipe(method="svd-llm", activations="auto"), folder, device="cuda", progress=SilentProgress()
            )
            assert json.loads((folder / "identity.json").read_text())["activations"] == activations


@pytest.mark.usefixtures("gpu")
def test_a_job_that_was_stopped_goes_on(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a block, and within the refinement of the whole model, whose parameters and moments come from the disk."""
    asked = recipe(refine="model", refine_epochs=1, refine_model_epochs=3)
    compress(asked, tmp_path / "whole", device="cuda")
    block, save = Streams.compress_block, Journal.save_refinement
    saved = []

    def stopped_at_block(self: Streams, index: int, *arguments: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return block(self, index, *arguments)

    def stopped_after_an_epoch(self: Journal, tensors: Any) -> None:
        save(self, tensors)
        saved.append(tensors)
        raise KeyboardInterrupt

    for owner, name, stopped in (
        (Streams, "compress_block", stopped_at_block),
        (Journal, "save_refinement", stopped_after_an_epoch),
    ):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(owner, name, stopped)
            compress(asked, tmp_path / "cut", device="cuda")
    assert len(saved) == 1
    with pytest.raises(UsageError, match="device"):
        compress(asked, tmp_path / "cut", device="cpu")
    compress(asked, tmp_path / "cut", device="cuda")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("no_base")
@pytest.mark.parametrize("options", [{}, {"method": "adasvd", "refine": "block", "refine_epochs": 1}], ids=str)
def test_same_bytes_however_activations_are_held(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any, options: dict[str, Any]
) -> None:
    made = []
    for holding in GPU_HOLDINGS:
        monkeypatch.setattr(memory_plan, "GPU_HOLDINGS", (holding,))
        gpu.memory.forget_peak()
        memory = compress(recipe(**options, windows=8), tmp_path / holding, device="cuda").memory
        assert memory["activations"] == holding
        assert gpu.memory.peak <= memory["device"]["forecast_bytes"]
        assert (memory["scratch_bytes"] > 0) == (holding == "on disk")
        made.append(contents(tmp_path / holding))
    assert all(one == made[0] for one in made)


@pytest.mark.usefixtures("no_base")
def test_what_the_gpu_has_free_is_the_limit(recipe: Any, models: Path, cuda_stand_in: ModuleType) -> None:
    """From a GPU with room for all, through those on which activations go elsewhere, to one on which nothing fits."""
    reader, seen, total = CheckpointReader(models / "dense"), [], 6 * MB
    asked = recipe(method="adasvd", windows=24)
    while True:
        with cuda_stand_in.StandIn(total=total):
            blocks = BlockSource(reader, family_of(reader.config, "test"), torch.device("cuda"), torch.float32)
            taken = torch.cuda.memory_allocated()  # by the rotary embedding
            try:
                plan = memory_plan.plan_memory(
                    asked, METHODS["adasvd"], blocks, WindowSizes(24, 1, 16, 256), memory_plan.Room()
                )
            except ResourceError as error:
                assert f"cuda: {memory_plan.gigabytes(total - taken)} are free" in str(error)
                assert "of cuda, even with activations on the disk; free that much; or use --device cpu" in str(error)
                break
            assert plan.device is not None and plan.device.peak <= plan.device.limit == total - taken
            seen.append(plan.holding)
        total = int(0.95 * total)
    assert list(dict.fromkeys(seen)) == ["in memory", "repeated", "on the host"]


@pytest.mark.usefixtures("no_base", "gpu")
def test_both_limits_count(recipe: Any, tmp_path: Path) -> None:
    """A GPU that wants activations elsewhere, and a process that does not want them either: they go to the disk."""
    asked = recipe(method="adasvd", windows=24)

    def plan(**limits: int) -> dict[str, Any]:
        return compress(asked, tmp_path / "out", device="cuda", force=True, limits=MemoryLimits(**limits)).memory

    free = plan()
    assert (free["activations"], free["limit_bytes"]) == ("in memory", None)
    small = free["device"]["forecast_bytes"]
    while (found := plan(device=small))["activations"] != "on the host":
        assert found["device"]["limit_bytes"] == small and found["limit_bytes"] is None
        small = found["device"]["forecast_bytes"] - 1
    both = plan(process=found["forecast_bytes"] - 1, device=small)
    assert both["activations"] == "on disk" and both["limit_bytes"] == found["forecast_bytes"] - 1
    with pytest.raises(ResourceError, match=r"^--max-memory 1 MB: .* takes about .*; allow that much"):
        plan(process=1)
    with pytest.raises(
        ResourceError, match=r"^--max-device-memory 1 MB: .* of cuda, .*allow that much.*; or use --dev"
    ):
        plan(device=1)
    with pytest.raises(UsageError, match="--max-device-memory: is of a GPU"):
        compress(asked, tmp_path / "other", device="cpu", limits=MemoryLimits(device=10**9))


@pytest.mark.usefixtures("no_base", "gpu")
def test_a_trial_that_takes_more_than_forecast_is_refused(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "device_peak_of", lambda device, work: 30 * MB)
    with pytest.raises(
        ResourceError, match=r"20 MB: a trial of one block took 30 MB of cuda, .* MB more than forecast"
    ):
        compress(recipe(), tmp_path / "out", device="cuda", limits=MemoryLimits(device=20 * MB))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_base")
def test_running_out_all_the_same_is_one_line(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_stand_in: ModuleType
) -> None:
    monkeypatch.setattr(memory_plan, "MARGIN", 0.0)
    monkeypatch.setattr(memory_plan, "device_peak_of", lambda device, work: 0)
    with cuda_stand_in.StandIn(total=10**6), pytest.raises(ResourceError) as refused:
        compress(recipe(), tmp_path / "out", device="cuda")
    assert str(refused.value).startswith("cuda: out of memory; add a lower --max-device-memory, use fewer")
    monkeypatch.setattr(Streams, "compress_block", failing("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    with cuda_stand_in.StandIn(), pytest.raises(ResourceError, match="cuda: out of memory"):
        compress(recipe(), tmp_path / "out", device="cuda")
    monkeypatch.setattr(Streams, "compress_block", failing("CUDA error: unspecified launch failure"))
    with cuda_stand_in.StandIn(), pytest.raises(RuntimeError, match="launch failure"):
        compress(recipe(), tmp_path / "out", device="cuda")


def failing(words: str) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    return fails


@pytest.mark.usefixtures("gpu")
def test_plan_shows_both_memories(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(models / "dense"), "--calibration", str(models / "text.txt"), "--windows=3"]
    options += ["--window-length=16", "--rank-multiple=4", "--device=cuda", "--max-device-memory=2GB"]
    said = CliRunner().invoke(app, ["plan", *options, "--json"])
    memory = json.loads(said.stdout)["memory"]
    assert memory["device"]["name"] == "cuda" and memory["device"]["limit_bytes"] == 2 * 10**9
    assert memory["stages"].keys() - memory["device"]["stages"].keys() == {"embedding and head"}
    assert "compressing a block: " in said.stderr and " MB of cuda" in said.stderr
    refused = CliRunner().invoke(app, ["plan", *options[:-1], "--max-device-memory=2"])
    assert refused.exit_code == 5 and refused.stderr.count("error: ") == 1
    refused = CliRunner().invoke(app, ["plan", *options[:-1], "--max-device-memory=much"])
    assert refused.exit_code == 2 and "--max-device-memory much: expected a size" in refused.stderr


def test_a_gpu_that_is_not_there_or_does_not_compute(
    cuda_stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cuda_stand_in.StandIn(count=2):
        assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(ResourceError, match="--device cuda:2: this machine has 2, counted from 0"):
            pick_device("cuda:2")
        monkeypatch.setattr(torch, "ones", failing("CUDA error: no kernel image is available for execution\nmore"))
        with pytest.raises(ResourceError, match=r"cuda: does not compute here \(CUDA error: no kernel .*use --device"):
            pick_device("auto")

"""Whole compressions of tiny random models of every family."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import lowrank_export
from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.recipe import Recipe, read_recipe
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.statistics.calibration import draw_windows, tokenize


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny.TEXT, encoding="utf-8")
    return path


@pytest.fixture
def recipe(text: Path) -> Any:
    def build(model: Path, **options: Any) -> Recipe:
        defaults: dict[str, Any] = {
            "retention": 0.6,
            "rank_multiple": 4,
            "calibration": str(text),
            "windows": 6,
            "window_length": 32,
            "held_out": 2,
            "activations": "float32",
        }
        return Recipe(model=str(model), **{**defaults, **options})

    return build


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(0, 320, (1, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_end_to_end(tiny: ModuleType, recipe: Any, tmp_path: Path, family: str, tied: bool) -> None:
    dense = tiny.save_dense(tmp_path / "dense", family, tied=tied)
    done = compress(recipe(tmp_path / "dense"), tmp_path / "out")
    reader = CheckpointReader(tmp_path / "out")
    assert reader.lowrank["method"] == "adasvd"
    assert done.plan["retention"] <= 0.6
    model = lowrank_export.load(tmp_path / "out")
    factored = {name for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    assert factored == set(reader.ranks) and factored
    if family == "qwen2":
        bias = model.get_submodule("model.layers.0.self_attn.q_proj").bias
        torch.testing.assert_close(bias, dense.get_submodule("model.layers.0.self_attn.q_proj").bias)
    assert torch.isfinite(logits(model)).all()
    small = sum(p.numel() for p in model.parameters())
    assert small < sum(p.numel() for p in dense.parameters())
    assert sum((tmp_path / "out" / f).stat().st_size for f in set(reader._shards.values())) < 4 * small * 1.3


@pytest.mark.parametrize("method", METHODS)
def test_retention_one_is_the_dense_model(tiny: ModuleType, recipe: Any, tmp_path: Path, method: str) -> None:
    dense = tiny.save_dense(tmp_path / "dense", "qwen2")
    compress(recipe(tmp_path / "dense", method=method, retention=1.0), tmp_path / "out")
    torch.testing.assert_close(logits(lowrank_export.load(tmp_path / "out")), logits(dense))


# the stable rank knows nothing of what a truncation loses: at 0.9 some linears go down to a tenth, others stay dense
@pytest.mark.parametrize("method", [name for name in METHODS if name != "asvd-stable-rank"])
def test_nearly_everything_kept_is_nearly_the_dense_model(
    tiny: ModuleType, recipe: Any, tmp_path: Path, method: str
) -> None:
    """Low-rank weights lose nothing: every method must find the rank that is there."""
    dense = tiny.model("llama")
    with torch.no_grad():
        for name, module in dense.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
                u, s, vt = torch.linalg.svd(module.weight, full_matrices=False)
                module.weight.copy_(u[:, :8] * s[:8] @ vt[:8])
    dense.save_pretrained(tmp_path / "dense")
    tiny.tokenizer().save_pretrained(tmp_path / "dense")
    compress(recipe(tmp_path / "dense", method=method, retention=0.9, min_retention=0.8), tmp_path / "out")
    torch.testing.assert_close(logits(lowrank_export.load(tmp_path / "out")), logits(dense), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["svd-llm", "adasvd"])
def test_bfloat16_forwards_give_nearly_the_same(tiny: ModuleType, recipe: Any, tmp_path: Path, method: str) -> None:
    """And they do run: the weights differ a little."""
    dense = logits(tiny.save_dense(tmp_path / "dense", "llama"))
    found = {}
    for activations in ("float32", "bfloat16"):
        compress(recipe(tmp_path / "dense", method=method, activations=activations), tmp_path / activations)
        found[activations] = logits(lowrank_export.load(tmp_path / activations))
    moved = float((found["bfloat16"] - found["float32"]).norm() / (found["float32"] - dense).norm())
    assert 0 < moved < 0.1


def test_each_stage_lowers_the_output_error(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """Whitening beats the plain SVD on the calibration tokens, measured at the logits."""
    dense = tiny.save_dense(tmp_path / "dense", "llama")
    errors = {}
    for method in ("svd", "svd-llm"):
        compress(recipe(tmp_path / "dense", method=method), tmp_path / method)
        tokens = torch.tensor(tiny.tokenizer()(tiny.TEXT)["input_ids"][:200])[None]
        with torch.no_grad():
            got, want = lowrank_export.load(tmp_path / method)(tokens).logits, dense(tokens).logits
        errors[method] = float((got - want).square().mean())
    assert errors["svd-llm"] < errors["svd"]


def test_matches_a_direct_computation_of_the_first_block(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """svd-llm on block 0 equals whitening with the moment of inputs caught by an ordinary hook."""
    dense = tiny.save_dense(tmp_path / "dense", "llama")
    compress(recipe(tmp_path / "dense", method="svd-llm", held_out=0), tmp_path / "out")
    tokens = draw_windows(tokenize(tiny.tokenizer(), tiny.TEXT), 6, 32, 0, "")
    caught: list[torch.Tensor] = []
    linear = dense.get_submodule("model.layers.0.mlp.down_proj")
    handle = linear.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].reshape(-1, 160)))
    with torch.no_grad():
        dense(torch.from_numpy(tokens).long())
    handle.remove()
    x = torch.cat(caught).double()
    s = torch.linalg.cholesky(x.T @ x)
    u, values, vt = torch.linalg.svd(linear.weight.double() @ s, full_matrices=False)
    rank = CheckpointReader(tmp_path / "out").ranks["model.layers.0.mlp.down_proj"]
    expected = (u[:, :rank] * values[:rank]) @ vt[:rank] @ torch.linalg.inv(s)
    found = lowrank_export.load(tmp_path / "out").get_submodule("model.layers.0.mlp.down_proj").dense_weight()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_later_groups_see_inputs_of_the_compressed_ones(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """adasvd's o_proj of block 0 is fitted on what the already factored q, k and v produce."""
    tiny.save_dense(tmp_path / "dense", "llama")
    done = compress(recipe(tmp_path / "dense", held_out=0, iterations=0, retention=0.4), tmp_path / "out")
    model = lowrank_export.load(tmp_path / "out")
    dense = tiny.model("llama")
    tokens = torch.from_numpy(draw_windows(tokenize(tiny.tokenizer(), tiny.TEXT), 6, 32, 0, "")).long()
    name = "model.layers.0.self_attn.o_proj"
    caught: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, i: caught.append(i[0].reshape(-1, 64).double()))
    with torch.no_grad():
        model(tokens)
    weight = dense.get_submodule(name).weight.detach().double()
    residual = weight - model.get_submodule(name).dense_weight().detach().double()
    loss = float((residual @ caught[0].T).square().sum() / (weight @ caught[0].T).square().sum())
    assert done.plan["linears"][name]["relative_loss"]["truncated"] == pytest.approx(loss, rel=1e-3)


def test_update_of_u_sees_the_dense_linears_of_its_own_block(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """svd-llm-u by hand: V^T of svd-llm, U by least squares on inputs behind compressed blocks and dense linears."""
    dense = tiny.save_dense(tmp_path / "dense", "llama")
    windows = np.random.default_rng(0).integers(0, 320, size=(5, 40), dtype=np.int32)
    np.save(tmp_path / "update.npy", windows)
    update = str(tmp_path / "update.npy")
    compress(recipe(tmp_path / "dense", method="svd-llm", held_out=0), tmp_path / "plain")
    options = {"method": "svd-llm-u", "held_out": 0, "update_calibration": update}
    done = compress(recipe(tmp_path / "dense", **options), tmp_path / "out")
    plain, updated = lowrank_export.load(tmp_path / "plain"), lowrank_export.load(tmp_path / "out")
    dense.model.layers[0] = updated.model.layers[0]
    for linear in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        name = f"model.layers.1.{linear}"
        caught: list[torch.Tensor] = []
        module = dense.get_submodule(name)
        handle = module.register_forward_pre_hook(lambda _, i, into=caught: into.append(i[0].flatten(0, 1).double()))
        with torch.no_grad():
            dense(torch.from_numpy(windows).long())
        handle.remove()
        x, weight = caught[0], module.weight.detach().double()
        v = plain.get_submodule(name).lowrank_v.weight.detach().double()
        u = torch.linalg.lstsq(x @ v.T, x @ weight.T).solution.T
        found = updated.get_submodule(name).dense_weight().detach().double()
        torch.testing.assert_close(found, u @ v, rtol=1e-3, atol=1e-4)
        losses = done.plan["linears"][name]["relative_loss"]
        assert losses["compensated"] < losses["truncated"]
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert record["update"]["windows"] == 5 and record["windows"] == 6


def test_svd_llm_v2_shares_out_by_the_losses_of_a_type(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """1 / log of the loss over all calibration tokens, from raw activations; ranks as rounding leaves them."""
    dense = tiny.save_dense(tmp_path / "dense", "llama")
    with torch.no_grad():  # random blocks lose alike
        dense.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(20)
    dense.save_pretrained(tmp_path / "dense")
    asked = recipe(tmp_path / "dense", method="svd-llm-v2", held_out=0, rank_multiple=1)
    plan = compress(asked, tmp_path / "out").plan["linears"]
    tokens = torch.from_numpy(draw_windows(tokenize(tiny.tokenizer(), tiny.TEXT), 6, 32, 0, "")).long()
    names, scores = [f"model.layers.{block}.mlp.up_proj" for block in (0, 1)], []
    for name in names:
        caught: list[torch.Tensor] = []
        linear = dense.get_submodule(name)
        handle = linear.register_forward_pre_hook(lambda _, i, into=caught: into.append(i[0].flatten(0, 1).double()))
        with torch.no_grad():
            dense(tokens)
        handle.remove()
        weight = linear.weight.detach().double()
        rank = int(0.6 * weight.numel() / sum(weight.shape))
        scores.append(1 / float(torch.linalg.svdvals(weight @ caught[0].T)[rank:].square().sum().sqrt().log()))
    wanted = [(1 - 2 * 0.4 * score / sum(scores)) * weight.numel() / sum(weight.shape) for score in scores]
    assert wanted[1] > wanted[0] + 4
    assert [plan[name]["rank"] for name in names] == pytest.approx(wanted, abs=1.5)


def test_lc_svd_gives_a_block_one_retention_and_fits_it_as_a_whole(
    tiny: ModuleType, recipe: Any, tmp_path: Path
) -> None:
    """The ranks of a measured search; then all its linears together come nearer to the dense block's output."""
    dense = tiny.save_dense(tmp_path / "dense", "llama", blocks=3)
    asked = {"method": "lc-svd", "rank_multiple": 1, "retention": 0.5, "refine_epochs": 5, "refine_rate": 0.02}
    errors, plans = {}, {}
    tokens = torch.from_numpy(draw_windows(tokenize(tiny.tokenizer(), tiny.TEXT), 6, 32, 0, "")).long()
    for name, refine in (("refined", {}), ("plain", {"refine": "none"})):
        done = compress(recipe(tmp_path / "dense", **asked, **refine), tmp_path / name)
        assert read_recipe(tmp_path / name / "recipe.yaml").refine == ("none" if refine else "block")
        plans[name] = {linear: row["rank"] for linear, row in done.plan["linears"].items()}
        model = lowrank_export.load(tmp_path / name)
        with torch.no_grad():
            found, wanted = (m(tokens, output_hidden_states=True).hidden_states[1] for m in (model, dense))
        errors[name] = float((found - wanted).square().mean())
    assert plans["refined"] == plans["plain"]
    assert errors["refined"] < 0.9 * errors["plain"]
    per_block = [
        {round(row["retention"], 1) for linear, row in done.plan["linears"].items() if f"layers.{block}." in linear}
        for block in range(3)
    ]
    assert all(max(found) - min(found) < 0.15 for found in per_block)  # ranks of a few, rounded
    assert len({max(found) for found in per_block}) > 1


def test_update_windows_need_a_method_that_fits_on_them(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="svd-llm fits nothing on the compressed model"):
        recipe(tmp_path, method="svd-llm", update_calibration="python-docs")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_the_target(tiny: ModuleType, recipe: Any, tmp_path: Path, method: str) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    done = compress(recipe(tmp_path / "dense", method=method, retention=0.5, rank_multiple=1), tmp_path / "out")
    assert 0.49 <= done.plan["retention"] <= 0.5
    assert torch.isfinite(logits(lowrank_export.load(tmp_path / "out"))).all()


def test_stack_of_batch_of_single_windows_is_the_exact_moment(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    """With as many buckets as windows nothing is averaged."""
    tiny.save_dense(tmp_path / "dense", "llama")
    options = {"held_out": 0, "windows": 4}
    compress(recipe(tmp_path / "dense", **options), tmp_path / "moments")
    stacked = recipe(tmp_path / "dense", calibration_reduction="stack-of-batch", buckets=4, **options)
    compress(stacked, tmp_path / "stacked")
    a, b = (logits(lowrank_export.load(tmp_path / name)) for name in ("moments", "stacked"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_same_seed_same_bytes(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "qwen3")
    for name in ("a", "b"):
        compress(recipe(tmp_path / "dense"), tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_calibration_from_the_model_itself(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    compress(recipe(tmp_path / "dense", calibration="self"), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert record["text"] == "self" and record["windows"] == 6 and len(record["sha256"]) == 64


def test_what_lies_beside_the_weights(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: mit\n---\n")
    asked = recipe(tmp_path / "dense", keep_dense=("model.layers.1.mlp.*",))
    compress(asked, tmp_path / "out")
    assert read_recipe(tmp_path / "out" / "recipe.yaml") == asked
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["linears"]["model.layers.1.mlp.up_proj"]["rank"] == "dense"
    loss = plan["linears"]["model.layers.0.mlp.up_proj"]["relative_loss"]
    assert 0 <= loss["truncated"] <= 1 and loss["held_out_truncated"] >= 0
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    tokenizer = tiny.tokenizer()
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("rank 31") == tokenizer.encode("rank 31")


def test_save_pretrained_round_trips_at_the_small_size(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    compress(recipe(tmp_path / "dense"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(model))
    first, second = (
        sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("out", "again")
    )
    assert second == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tiny: ModuleType, recipe: Any, tmp_path: Path, dtype: str) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    compress(recipe(tmp_path / "dense", dtype=dtype), tmp_path / "out")
    model = lowrank_export.load(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)
    assert torch.isfinite(logits(model)).all()


def edit_weight(folder: Path, name: str, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def poke(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 2] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_weight_is_named(tiny: ModuleType, recipe: Any, tmp_path: Path, value: float) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    edit_weight(tmp_path / "dense", "model.layers.1.mlp.up_proj.weight", poke(value))
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        compress(recipe(tmp_path / "dense"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*partial"))


def test_overflowing_activations_are_named(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    edit_weight(tmp_path / "dense", "model.layers.0.mlp.gate_proj.weight", lambda w: w * 3e4)
    with pytest.raises(InputError, match=r"activations at 'mlp out' of block 0 hold NaN or Inf in float16.*--dtype"):
        compress(recipe(tmp_path / "dense", dtype="float16", method="svd-llm"), tmp_path / "out")


def test_wrong_shape_and_truncation_are_named(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    edit_weight(tmp_path / "dense", "model.norm.weight", lambda w: w[:10].clone())
    edit_weight(tmp_path / "dense", "model.layers.0.mlp.up_proj.weight", lambda w: w[:, :50].clone())
    with pytest.raises(InputError, match=r"up_proj has shape \(160, 50\), but config\.json says \(160, 64\)"):
        compress(recipe(tmp_path / "dense"), tmp_path / "out")
    weights = tmp_path / "dense" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="truncated"):
        compress(recipe(tmp_path / "dense"), tmp_path / "out")


def test_existing_output_needs_force(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    compress(recipe(tmp_path / "dense", method="svd"), tmp_path / "out")
    before = (tmp_path / "out" / "plan.json").read_bytes()
    with pytest.raises(UsageError, match="--force"):
        compress(recipe(tmp_path / "dense", method="svd", retention=0.5), tmp_path / "out")
    assert (tmp_path / "out" / "plan.json").read_bytes() == before
    compress(recipe(tmp_path / "dense", method="svd", retention=0.5), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "plan.json").read_bytes() != before


def test_window_longer_than_the_attention(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "mistral", max_position_embeddings=16)
    with pytest.raises(InputError, match=r"attends over 16 tokens.*--window-length"):
        compress(recipe(tmp_path / "dense"), tmp_path / "out")


def test_token_windows_given_as_an_array(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    windows = np.random.default_rng(0).integers(0, 320, size=(3, 16), dtype=np.int32)
    np.save(tmp_path / "w.npy", windows)
    compress(recipe(tmp_path / "dense", calibration=str(tmp_path / "w.npy")), tmp_path / "out")
    np.save(tmp_path / "w.npy", windows + 300)
    with pytest.raises(InputError, match="but the model has 320 tokens"):
        compress(recipe(tmp_path / "dense", calibration=str(tmp_path / "w.npy")), tmp_path / "out2")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(tiny: ModuleType, recipe: Any, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    for device in ("cpu", "cuda"):
        compress(recipe(tmp_path / "dense"), tmp_path / device, device=device)
    a, b = (logits(lowrank_export.load(tmp_path / device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_pivot_layout_end_to_end(tiny: ModuleType, recipe: Any, tmp_path: Path, family: str) -> None:
    """More rank for the same parameters, and the same function as the best approximation of that rank."""
    dense = tiny.save_dense(tmp_path / "dense", family)
    wanted = recipe(tmp_path / "dense", method="svd", layout="pivot", rank_multiple=1)
    done = compress(wanted, tmp_path / "out")
    two_factor = compress(recipe(tmp_path / "dense", method="svd", rank_multiple=1), tmp_path / "two-factor")
    reader = CheckpointReader(tmp_path / "out")
    assert reader.layout == "pivot" and 0.595 < done.plan["retention"] <= 0.6
    ranks = CheckpointReader(two_factor.path).ranks
    assert all(rank > ranks[name] for name, rank in reader.ranks.items())
    kept = [name for name in reader.names if name.endswith(("lowrank_p.weight", "lowrank_c.weight"))]
    assert sum(reader.tensor(name).numel() for name in kept) == done.plan["kept_parameters"]
    model = lowrank_export.load(tmp_path / "out")
    for name, rank in reader.ranks.items():
        if name.endswith(("gate_proj", "up_proj", "down_proj")):
            continue  # their features are in another order
        u, s, vt = torch.linalg.svd(dense.get_submodule(name).weight.double(), full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(model.get_submodule(name).dense_weight().double(), best, rtol=0, atol=1e-5)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("method", METHODS)
def test_pivot_layout_of_every_method(tiny: ModuleType, recipe: Any, tmp_path: Path, method: str) -> None:
    tiny.save_dense(tmp_path / "dense", "qwen2")
    done = compress(recipe(tmp_path / "dense", method=method, layout="pivot"), tmp_path / "out")
    assert 0.57 < done.plan["retention"] <= 0.6
    reader = CheckpointReader(done.path)
    assert reader.layout == "pivot" and reader.ranks
    for name, rank in reader.ranks.items():
        assert rank < min(done.plan["linears"][name]["shape"]) and rank % 4 == 0
        assert float(reader.tensor(name + ".lowrank_c.weight").abs().max()) < 10
    assert torch.isfinite(logits(lowrank_export.load(done.path))).all()

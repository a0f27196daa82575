"""Whole choices of a tiny model: bytes to the last one, budgets met, hostile ones refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_export.converter.budget.forms import Candidate, Form
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import RECIPE_FILE, Recipe, make_recipe, read_recipe
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.budget.costs import read_costs
from lowrank_export.exporters.budget.gguf_format import GgufFormat
from lowrank_export.exporters.budget.gguf_size import GgufSize
from lowrank_export.exporters.budget.search import model_candidates
from lowrank_export.exporters.budget.sized import Sized, sized
from lowrank_export.exporters.chosen import CHOSEN
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.registry import requested

REQUEST = requested("gguf", CHOSEN, rounding=Rounding("aware"))
QUICK = {"windows": 4, "window_length": 32, "held_out": 1, "gradient_windows": 2}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    tiny.save_dense(folder, "llama", hidden_size=64, intermediate_size=128)
    return folder


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def recipe(dense: Path, **size: object) -> Recipe:
    return make_recipe({"model": str(dense), **QUICK, **size}, "test")


def choose(dense: Path, statistics: Path, **size: object) -> Sized:
    asked = recipe(dense, **size)
    source = open_source(asked.model, SilentProgress())
    return sized(asked, source, statistics, REQUEST, name="ckpt", device="cpu", progress=SilentProgress())


def smallest(dense: Path, statistics: Path) -> int:
    with pytest.raises(UsageError, match="the smallest file of this model takes") as refused:
        choose(dense, statistics, max_bytes=1)
    return int(str(refused.value).split("takes ")[1].split(" bytes")[0])


def test_the_file_has_the_bytes_that_were_promised(dense: Path, statistics: Path, tmp_path: Path, ggml: Path) -> None:
    budget = smallest(dense, statistics) + 3000
    chosen = choose(dense, statistics, max_bytes=budget)
    assert any(form.rank is not None for form in chosen.found.recipe.forms.values())
    assert budget * 0.97 <= chosen.found.bytes <= budget  # one step of so small a model is a large part of it
    compress(chosen.found.recipe, tmp_path / "ckpt", statistics=statistics)
    assert read_recipe(tmp_path / "ckpt" / RECIPE_FILE) == chosen.found.recipe
    files = []
    for name in ("a.gguf", "b.gguf"):
        made = export_gguf(
            tmp_path / "ckpt",
            tmp_path / name,
            Quantization(CHOSEN),
            rounding=Rounding("aware"),
            progress=SilentProgress(),
        )
        files.append(made.path.read_bytes())
        types = {tensor.name: tensor.type for tensor in made.tensors}
        assert types["token_embd.weight"] == chosen.found.recipe.choice["model.embed_tokens"]
    assert len(files[0]) == chosen.found.bytes
    assert files[0] == files[1]


def test_the_smallest_that_is_named_is_met(dense: Path, statistics: Path) -> None:
    least = smallest(dense, statistics)
    assert choose(dense, statistics, max_bytes=least).found.bytes <= least
    with pytest.raises(UsageError, match="smallest"):
        choose(dense, statistics, max_bytes=least - 32)


def test_more_bytes_never_predict_more_loss(dense: Path, statistics: Path) -> None:
    least = smallest(dense, statistics)
    losses = [choose(dense, statistics, max_bytes=least + more).found.loss for more in (0, 500, 2000, 5000, 10**6)]
    assert losses == sorted(losses, reverse=True)


def test_bits_per_weight_are_a_size(dense: Path, statistics: Path) -> None:
    reader = CheckpointReader(dense)
    tied = reader.config["tie_word_embeddings"]
    names = [name for name in reader.names if not (tied and name == "lm_head.weight")]
    weights = sum(torch.Size(reader.shape(name)).numel() for name in names)
    bits = 8 * (smallest(dense, statistics) + 4000) / weights
    assert choose(dense, statistics, bits_per_weight=bits).found.bytes <= bits * weights / 8


def test_the_choice_beats_plain_types_by_prediction(dense: Path, statistics: Path) -> None:
    chosen = choose(dense, statistics, max_bytes=smallest(dense, statistics) + 8000)
    assert chosen.plain is not None
    assert chosen.plain.found.bytes <= chosen.budget
    assert chosen.found.loss <= chosen.plain.found.loss


def test_a_prompt_of_fewer_operations(dense: Path, statistics: Path) -> None:
    """Costs loss at the same size; what nothing meets is refused, and the share that is named is met."""
    size = smallest(dense, statistics) + 8000
    free = choose(dense, statistics, max_bytes=size).found
    with pytest.raises(UsageError, match=r"max_prefill_flops 0.001: at max_bytes .* at least 0\.") as none:
        choose(dense, statistics, max_bytes=size, max_prefill_flops=0.001)
    least = float(str(none.value).split("at least ")[1].split(" ")[0])
    share = (least + free.flops) / 2
    limited = choose(dense, statistics, max_bytes=size, max_prefill_flops=share).found
    assert limited.bytes <= size
    assert limited.flops <= share < free.flops
    assert limited.loss > free.loss
    shapes = {name: CheckpointReader(dense).shape(name + ".weight") for name in limited.recipe.choice}
    spent = {
        name: form.rank * sum(shapes[name]) if form.rank else shapes[name][0] * shapes[name][1]
        for name, form in limited.recipe.forms.items()
        if ".layers." in name
    }
    whole = sum(m * n for name, (m, n) in shapes.items() if ".layers." in name)
    assert limited.flops == pytest.approx(sum(spent.values()) / whole)
    assert choose(dense, statistics, max_bytes=size, max_prefill_flops=least + 0.001).found.flops <= least + 0.001


def test_a_linear_that_is_kept_dense(dense: Path, statistics: Path) -> None:
    least = smallest(dense, statistics)
    chosen = choose(dense, statistics, max_bytes=least + 20000, keep_dense=("*",))
    assert all(form.rank is None for form in chosen.found.recipe.forms.values())


def test_costs_are_kept(dense: Path, statistics: Path, ggml: Path) -> None:
    choose(dense, statistics, max_bytes=10**6)
    (kept,) = statistics.glob("costs-gguf-*.json")
    costs = read_costs(kept.read_text(encoding="utf-8"))
    source = open_source(str(dense), SilentProgress())
    asked = recipe(dense, max_bytes=10**6)
    size = GgufSize(source.reader(), "ckpt", asked.method)
    candidates = model_candidates(costs, source, GgufFormat(ggml), size)
    largest = {module: max(found, key=lambda c: c.bytes).form for module, found in candidates.items()}
    assert size(largest, "") > size({module: Form(("q5_0",)) for module in largest}, "")
    kept.write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="damaged"):
        choose(dense, statistics, max_bytes=10**6)
    kept.unlink()


@pytest.mark.parametrize("size", ["0", "-1", "1e99GB", "12 parsecs", "", "9" * 40 + "GB"])
def test_hostile_budgets(size: str, dense: Path) -> None:
    with pytest.raises(UsageError) as refused:
        recipe(dense, max_bytes=size)
    assert "\n" not in str(refused.value) and "max_bytes" in str(refused.value)


def test_a_choice_of_another_model(dense: Path, tmp_path: Path) -> None:
    other = recipe(dense, max_bytes=10**6, choice={"model.layers.0.self_attn.q_proj": "q8_0"})
    with pytest.raises(UsageError, match="made for another model"):
        compress(other, tmp_path / "ckpt")


def test_candidates_of_a_linear_have_exact_bytes(ggml: Path) -> None:
    found = Candidate(GgufFormat(ggml).bytes((64, 32), "q8_0"), 0.0, Form(("q8_0",)))
    assert found.bytes == 64 * 34

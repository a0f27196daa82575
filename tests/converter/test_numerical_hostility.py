"""Models and text whose numbers are hostile: every method ends with finite factors within budget, or in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.pipeline import compress

RETENTION = 0.6
Damage = Callable[[nn.Module], object]


def linears(model: nn.Module) -> list[nn.Linear]:
    """Those of the blocks."""
    return [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in name]


def norms(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "layernorm" in name]


def embedding(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.get_submodule("model.embed_tokens").weight  # type: ignore[assignment]
    return found


def each(find: Callable[[nn.Module], list[nn.Linear]], change: Callable[[torch.Tensor], object]) -> Damage:
    return lambda model: [change(module.weight) for module in find(model)]


def rank_one(weight: torch.Tensor) -> None:
    weight.copy_(weight[:, :1] @ weight[:1])


def repeat_rows(weight: torch.Tensor) -> None:
    weight.copy_(weight[:1].expand_as(weight))


def dead(norm: torch.Tensor) -> None:
    norm[::2] = 0


DAMAGES: dict[str, Damage] = {
    "constant activations": lambda model: repeat_rows(embedding(model)),
    "zero activations": lambda model: embedding(model).zero_(),
    "duplicated features": lambda model: (
        [norm.fill_(1.0) for norm in norms(model)] + [embedding(model)[:, 1::2].copy_(embedding(model)[:, ::2])]
    ),
    "enormous activations": lambda model: [norm.mul_(1e3) for norm in norms(model)],
    "minute activations": lambda model: [norm.mul_(1e-18) for norm in norms(model)],
    "one enormous feature": lambda model: [norm[3].mul_(1e3) for norm in norms(model)],
    "dead channels": lambda model: [dead(norm) for norm in norms(model)],
    "weights of zeros": each(linears, lambda weight: weight.zero_()),
    "weights of rank one": each(linears, rank_one),
    "weights of one row": each(linears, repeat_rows),
    "constant weights": each(linears, lambda weight: weight.fill_(0.1)),
    "enormous weights": each(linears, lambda weight: weight.mul_(1e3)),
    "minute weights": each(linears, lambda weight: weight.mul_(1e-25)),
    "a dead linear": lambda model: linears(model)[0].weight.zero_(),
}
OVERFLOWS: dict[str, Damage] = {
    # scores of 1e10, which float32 holds to 1e3: PyTorch's flash attention takes exp of that error going backward
    "attention beyond what float32 resolves": lambda model: [norm.mul_(1e5) for norm in norms(model)],
    "attention to one feature": lambda model: [norm[3].mul_(1e9) for norm in norms(model)],
    "weights beyond what attention resolves": each(linears, lambda weight: weight.mul_(1e6)),
    "moments beyond float32": lambda model: [norm.mul_(1e12) for norm in norms(model)],
    "activations beyond float32": lambda model: [norm.mul_(1e30) for norm in norms(model)],
    "weights beyond float32": each(linears, lambda weight: weight.mul_(1e36)),
}
TEXTS = {
    "one token": np.zeros((3, 16), dtype=np.int32),
    "one window thrice": np.tile(np.arange(16, dtype=np.int32), (3, 1)),
    "fewer tokens than features": np.arange(16, dtype=np.int32)[None],
}
ORDINARY = np.random.default_rng(0).integers(0, 320, (4, 24)).astype(np.int32)


def damaged(tiny: ModuleType, folder: Path, damage: Damage | None) -> Path:
    model = tiny.model("llama", blocks=1, hidden_size=32, intermediate_size=48, head_dim=8)
    with torch.no_grad():
        if damage is not None:
            damage(model)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def recipe(method: str, model: Path, folder: Path, windows: np.ndarray, **keys: object) -> Recipe:
    np.save(folder / "windows.npy", windows)
    return Recipe(
        model=str(model),
        method=method,
        retention=RETENTION,
        rank_multiple=1,
        calibration=str(folder / "windows.npy"),
        gradient_windows=2,
        activations="float32",
        **keys,  # type: ignore[arg-type]
    )


def check(made: Path) -> None:
    """All numbers finite, and no more parameters than asked for."""
    for file in made.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.isfinite(tensor.float()).all(), name
    plan = json.loads((made / "plan.json").read_text())
    assert plan["kept_parameters"] <= RETENTION * plan["original_parameters"]
    assert plan["retention"] > RETENTION - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_models(tiny: ModuleType, tmp_path: Path, method: str) -> None:
    for name, damage in DAMAGES.items():
        (folder := tmp_path / name.replace(" ", "-")).mkdir()
        model = damaged(tiny, folder / "model", damage)
        try:
            check(compress(recipe(method, model, folder, ORDINARY), folder / "out", device="cpu").path)
        except BaseException as error:
            error.add_note(name)
            raise


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_texts(tiny: ModuleType, tmp_path: Path, method: str) -> None:
    model = damaged(tiny, tmp_path / "model", None)
    for name, windows in TEXTS.items():
        (folder := tmp_path / name.replace(" ", "-")).mkdir()
        try:
            alone = {"refine": "none"} if len(windows) == 1 else {}  # a refinement holds one out
            check(compress(recipe(method, model, folder, windows, **alone), folder / "out", device="cpu").path)
        except BaseException as error:
            error.add_note(name)
            raise


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_overflows(tiny: ModuleType, tmp_path: Path, method: str) -> None:
    """Numbers that float32 does not hold: done, by a method that does not meet them, or one line about the model."""
    for name, damage in OVERFLOWS.items():
        (folder := tmp_path / name.replace(" ", "-")).mkdir()
        model = damaged(tiny, folder / "model", damage)
        try:
            check(compress(recipe(method, model, folder, ORDINARY), folder / "out", device="cpu").path)
        except InputError as error:
            assert "\n" not in str(error)
            assert not (folder / "out").exists()
        except BaseException as error:
            error.add_note(name)
            raise


@pytest.mark.parametrize("method", ["adasvd", "loss-aware", "svd-llm"])
@pytest.mark.parametrize("case", ["zero activations", "weights of rank one", "dead channels"])
def test_the_worst_of_them(tiny: ModuleType, tmp_path: Path, method: str, case: str) -> None:
    """A few of the above that take no time."""
    model = damaged(tiny, tmp_path / "model", DAMAGES[case])
    check(compress(recipe(method, model, tmp_path, ORDINARY), tmp_path / "out", device="cpu").path)


@pytest.mark.parametrize("layout", ["two-factor", "pivot"])
@pytest.mark.parametrize("case", ["weights of rank one", "weights of zeros", "weights of one row", "constant weights"])
def test_layouts(tiny: ModuleType, tmp_path: Path, layout: str, case: str) -> None:
    """Pivot rows of a matrix that has fewer independent rows than the rank."""
    model = damaged(tiny, tmp_path / "model", DAMAGES[case])
    check(compress(recipe("svd", model, tmp_path, ORDINARY, layout=layout), tmp_path / "out", device="cpu").path)


def test_float16_overflow_names_the_tensor(tiny: ModuleType, tmp_path: Path) -> None:
    model = damaged(tiny, tmp_path / "model", OVERFLOWS["weights beyond what attention resolves"])
    with pytest.raises(InputError, match=r"proj\.weight goes beyond the range of float16; use another --dtype"):
        compress(recipe("svd", model, tmp_path, ORDINARY, dtype="float16"), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()

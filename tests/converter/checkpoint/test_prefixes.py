"""Names under a prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_export.converter.checkpoint.prefixes import foreign_prefixes, plain_name
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.model.loading import load
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested

Rename = Callable[[str], str]
RENAMES: dict[str, Rename] = {
    "compiled": lambda name: "_orig_mod." + name,
    "distributed": lambda name: "module." + name,
    "both": lambda name: "module._orig_mod." + name,
    "body alone": lambda name: name.removeprefix("model."),
    "language model": lambda name: name.replace("model.", "model.language_model.", 1),
    "language model, its head inside": lambda name: "language_model." + name,
    "compiled body": lambda name: name.replace("model.", "model._orig_mod.", 1),
}
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight")


@pytest.mark.parametrize("kind", RENAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_names_come_out_plain(kind: str, tied: bool) -> None:
    names = NAMES[: 3 if tied else 4]
    stored = [RENAMES[kind](name) for name in names]
    prefixes = foreign_prefixes(stored, FAMILIES["llama"])
    assert [plain_name(name, prefixes, {}) for name in stored] == list(names)


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        (*NAMES, "vision_tower.embed_tokens.weight"),
        ("a.embed_tokens.weight", "b.embed_tokens.weight"),
        ("language_model.model.embed_tokens.weight", "vision_tower.layers.0.mlp.up_proj.weight"),
        ("x",),
        (),
    ],
)
def test_names_that_are_left_alone(names: tuple[str, ...]) -> None:
    assert foreign_prefixes(names, FAMILIES["llama"]) == ()
    assert foreign_prefixes(names, None) == ()


@pytest.mark.parametrize("kind", RENAMES)
def test_the_model_is_the_same(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    """Torch, and a GGUF file byte for byte, whatever the names begin with."""
    folder = tmp_path / "m"
    model = tiny.save_dense(folder, "llama", blocks=1, tied=False)
    export(folder, tmp_path / "plain.gguf", requested("gguf", "q8_0"))
    tensors = load_file(folder / "model.safetensors")
    stored = {RENAMES[kind](name): tensor for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    reader = CheckpointReader(folder)
    assert set(reader.names) == set(tensors)
    assert all(reader.tensor(name).equal(tensor) for name, tensor in tensors.items())
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        np.testing.assert_array_equal(load(folder)(tokens).logits, model(tokens).logits)
    export(folder, tmp_path / "renamed.gguf", requested("gguf", "q8_0"))
    assert (tmp_path / "renamed.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()

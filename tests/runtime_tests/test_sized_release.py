"""A size in the main job: what is shipped is never worse than plain types, and unfinished jobs go on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.storage.byte_size import MemoryLimits
from lowrank_export.exporters.chosen import CHOSEN
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.sized_release import SIZE_FILE, Settled, settle

QUICK = {"windows": 4, "window_length": 32, "held_out": 1, "gradient_windows": 2}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    tiny.save_dense(folder, "llama", hidden_size=64, intermediate_size=128)
    return folder


@pytest.mark.parametrize(("format", "types"), [("gguf", ("q4_0", "q8_0")), ("onnx", ("int4", "int8"))])
def test_the_closer_file_is_shipped(format: str, types: tuple[str, str], dense: Path, tmp_path: Path) -> None:
    requests = [requested(format, type) for type in types]
    coarse, fine = (export(dense, tmp_path / request.name, request) for request in requests)
    recipe = make_recipe({"model": str(dense), **QUICK, "max_bytes": 10**6}, "test")
    held_out = np.random.default_rng(0).integers(0, 100, (1, 32), dtype=np.int32)
    settled = Settled(recipe, {}, None, held_out)
    assert settled.beaten(coarse, fine, dense, 1, SilentProgress())
    assert settled.facts["shipped"] == "plain"
    assert settled.facts["held_out_kld"]["plain"] < settled.facts["held_out_kld"]["chosen"]
    assert not settled.beaten(fine, coarse, dense, 1, SilentProgress())
    assert not Settled(recipe, {}, None, held_out[:0]).beaten(coarse, fine, dense, 1, SilentProgress())
    assert not list(tmp_path.glob(".held-out*"))


def test_what_was_chosen_is_kept(dense: Path, tmp_path: Path) -> None:
    source = open_source(str(dense), SilentProgress())
    recipe = make_recipe({"model": str(dense), **QUICK, "max_bytes": 110_000}, "test")

    def settled() -> Settled:
        return settle(
            recipe,
            source,
            requested("gguf", CHOSEN, rounding=Rounding("aware")),
            tmp_path,
            statistics=tmp_path / "statistics",
            device="cpu",
            limits=MemoryLimits(),
            progress=SilentProgress(),
        )

    first = settled()
    assert first.recipe.choice and first.plain is not None and len(first.held_out) == 1
    made = (tmp_path / SIZE_FILE).stat().st_mtime_ns
    again = settled()
    assert (again.recipe, again.facts, again.plain) == (first.recipe, first.facts, first.plain)
    assert (tmp_path / SIZE_FILE).stat().st_mtime_ns == made

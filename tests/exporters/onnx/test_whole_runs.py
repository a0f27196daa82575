"""Whole runs per family: compress, export, which checks itself, load in GenAI by hand, generate.

A family's structure and a type's storage are apart from each other: every family in one type, a few in every type.
`test_families.py` and `test_torch_exporter.py` compare logits of both together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.families.table import FAMILIES as KNOWN
from lowrank_export.converter.families.table import built_onnx, compressed, traced_onnx
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.weights.types import QUANTIZATIONS, OnnxOptions

EXACT = "fp32"
IN_EVERY_TYPE = ("llama", "phi3")  # plain, and with linears that the checkpoint holds as one
PROMPT, NEW = "A rank is a budget; a", 8
BUILT, TRACED, COMPRESSED = built_onnx(), traced_onnx(), compressed()
FAMILIES = (*BUILT, *TRACED)
EXPORTED_ONLY = tuple(family for family in FAMILIES if family not in COMPRESSED)
CASES = [
    pytest.param(family, type, marks=pytest.mark.slow if family in TRACED else ())
    for family in FAMILIES
    for type in QUANTIZATIONS
    if type == EXACT or family in IN_EVERY_TYPE
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Callable[[str], Path]:
    """Family -> a factored checkpoint: compressed here, or made by hand where `compress` refuses the family."""

    @cache
    def make(family: str) -> Path:
        folder: Path = tmp_path_factory.mktemp(family)
        if family in EXPORTED_ONLY:
            blocks = 1 if family in TRACED else 2  # tracing takes seconds for each; test_torch_exporter.py traces two
            tiny.save_factored(folder / "factored", family, rank=24, blocks=blocks)
            return folder / "factored"
        tiny.save_dense(folder / "dense", family)
        (folder / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
        compress(_recipe(folder), folder / "factored", progress=SilentProgress())
        return folder / "factored"

    return make


def _recipe(folder: Path) -> Recipe:
    return Recipe(
        model=str(folder / "dense"),
        method="svd-llm",
        retention=0.7,
        rank_multiple=8,
        calibration=str(folder / "notes.txt"),
        windows=4,
        window_length=64,
        held_out=0,
    )


def test_every_family_of_the_tiny_models_is_here(tiny: ModuleType) -> None:
    assert set(FAMILIES) == set(KNOWN)
    assert set(tiny.FAMILIES) == set(COMPRESSED) == set(FAMILIES) - set(EXPORTED_ONLY)


@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_compress_export_generate(
    tmp_path: Path, checkpoint: Callable[[str], Path], greedy: ModuleType, family: str, quantization: str
) -> None:
    if family in TRACED:
        pytest.importorskip("onnxscript")
    source, options = checkpoint(family), OnnxOptions(factors="all")
    made = export_onnx(source, tmp_path / "out", quantization=quantization, options=options, progress=SilentProgress())
    assert made.layout == "native" and CheckpointReader(source).ranks
    prompt, tokens, text = _generated(tmp_path / "out")
    assert tokens[: len(prompt)] == prompt and len(prompt) < len(tokens) <= len(prompt) + NEW
    assert text.startswith(PROMPT)
    if quantization in greedy.STORED:
        model = load(source)
        new = tokens[len(prompt) :]
        if len(new) < NEW:  # GenAI does not give the token that ends a text
            new = [*new, model.generation_config.eos_token_id]
        greedy.check_greedy(model, prompt, new, quantization)


@pytest.mark.parametrize("family", EXPORTED_ONLY)
def test_compress_refuses_what_is_exported_only(tmp_path: Path, tiny: ModuleType, family: str) -> None:
    tiny.save_dense(tmp_path / "dense", family)
    (tmp_path / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
    with pytest.raises(InputError, match=family) as error:
        compress(_recipe(tmp_path), tmp_path / "out", progress=SilentProgress())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def _generated(folder: Path) -> tuple[list[int], list[int], str]:
    """Tokens of the prompt, with the greedy continuation, and that as text; as docs/onnx.md loads a folder."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    prompt = [int(token) for token in tokenizer.encode(PROMPT)]
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NEW, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)]
    return prompt, tokens, str(tokenizer.decode(np.asarray(tokens, dtype=np.int32)))

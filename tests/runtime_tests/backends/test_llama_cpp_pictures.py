"""A factored language model in the patched llama.cpp, given what the whole model makes of a picture and words."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("llama_cpp_runtime")]
AXES = 4
"""Of positions where there are several: time, height, width and one that is not used."""


class Embedded(LlamaCppBackend):
    """llama.cpp given embeddings in the place of tokens, as its own tower gives them."""

    def embedded_logits(self, x: Any, positions: Any) -> Any:
        """Logits (T, vocabulary) of embeddings (T, d) at positions (T,), or (axes, T)."""
        count, width = x.shape
        batch = self._api.llama_batch_init(AXES * count, width, 1)  # with room for positions of all axes
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.pos, (positions.size,))[:] = positions.reshape(-1)
        np.ctypeslib.as_array(batch.embd, (count * width,))[:] = x.reshape(-1)
        for place in range(count):
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
        try:
            assert self._api.llama_decode(self._context, batch) == 0
            rows = self._api.llama_get_logits(self._context)
            return np.ctypeslib.as_array(rows, (count, self._vocabulary)).copy()
        finally:
            self._api.llama_batch_free(batch)


@pytest.mark.parametrize(
    ("name", "text"), [("llava", "mistral"), ("gemma3", "gemma3_text"), ("qwen2_5_vl", "qwen2"), ("smolvlm", "llama")]
)
def test_a_picture_is_seen_as_in_torch(
    name: str, text: str, tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any
) -> None:
    tiny_vision.save(tmp_path / "dense", tiny, name, text)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    compress(small_recipe(tmp_path, method="svd-llm", windows=4), tmp_path / "small")
    file = tmp_path / "model.gguf"
    export(tmp_path / "small", file, requested("gguf", "f32"), progress=SilentProgress())
    model, given = tiny_vision.load(tmp_path / "small"), dict[str, Any]()

    def note(module: Any, positional: Any, named: dict[str, Any]) -> None:
        given.update(named)

    inside: Any = model.get_submodule(tiny_vision.VISION_LANGUAGE[name].inside)
    inside.register_forward_pre_hook(note, with_kwargs=True)
    asked = {key: value for key, value in tiny_vision.question(name).items() if key != "token_type_ids"}
    with torch.no_grad():
        expected = model(**asked).logits[0].numpy()
    x = given["inputs_embeds"][0].numpy()
    positions = np.arange(len(x))
    if name == "qwen2_5_vl":
        places = given["position_ids"][-3:, 0].numpy()
        assert not (places == places[0]).all()  # a picture is wide and high
        positions = np.concatenate([places, np.zeros((AXES - 3, len(x)), dtype=places.dtype)])
    backend = Embedded(file, n_ctx=64)
    try:
        allowed = 2e-2 if name == "gemma3" else 1e-3  # ggml looks gelu up in a table of 16 bits
        np.testing.assert_allclose(backend.embedded_logits(x, positions), expected, atol=allowed)
    finally:
        backend.close()

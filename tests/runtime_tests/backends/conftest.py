"""What the tests of several backends share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.runtime_tests.backends.protocol import Backend, Together


@pytest.fixture(scope="session")
def onnx_export(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Callable[[str], tuple[Path, Any]]:
    """Family -> an ONNX folder of a tiny factored model, made once, and that model."""

    @cache
    def make(family: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("exported")
        model = tiny.save_factored(folder / "in", family, rank=40)
        export_onnx(folder / "in", folder / "out", progress=SilentProgress())
        return folder / "out", model

    return make


@pytest.fixture(scope="session")
def agrees_with_torch() -> Callable[[Backend, Any, NDArray[np.int32]], None]:
    """Check a backend's windows and fed sequences against its model in torch; closes the backend."""

    def together_agree(backend: Backend, model: Any, tokens: NDArray[np.int32]) -> None:
        assert isinstance(backend, Together) and backend.at_once(len(tokens)) >= 3
        together = np.stack([tokens[:12], tokens[5:17], tokens[::-1][:12]])
        for rows in (together, together[:2], together):  # each time from a reset
            with torch.no_grad():
                expected = model(torch.from_numpy(rows.astype(np.int64))).logits[:, -1].numpy()
            for part in (rows[:, :10], rows[:, 10:11], rows[:, 11:]):
                found = backend.feed_all(part)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            backend.reset()

    def check(backend: Backend, model: Any, tokens: NDArray[np.int32]) -> None:
        with torch.no_grad():
            reference = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
        np.testing.assert_allclose(backend.window_logits(tokens), reference, atol=1e-4)
        for _ in range(2):  # the second round starts from a reset
            np.testing.assert_allclose(backend.feed(tokens[:12]), reference[11], atol=1e-4)
            backend.window_logits(tokens[::-1])  # must not disturb the fed sequence
            np.testing.assert_allclose(backend.feed(tokens[12:13]), reference[12], atol=1e-4)
            np.testing.assert_allclose(backend.feed(tokens[13:]), reference[-1], atol=1e-4)
            backend.reset()
        if isinstance(backend, Together):
            together_agree(backend, model, tokens)
        backend.close()
        for use in (backend.window_logits, backend.feed):
            with pytest.raises(RuntimeError, match="closed"):
                use(tokens)

    return check

"""Published figures, made again with the demo model on fixed windows of real text: `make reproduce`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.pipeline import compress
from lowrank_export.runtime_tests.backends.torch_reference import open_torch
from lowrank_export.runtime_tests.metrics.perplexity import perplexity, token_losses

pytestmark = pytest.mark.reproduce

PUBLISHED_SVD_LLM = 267.28  # the official code, whitening only, retention 0.6, on these windows
PUBLISHED_SVD_LLM_U = 203.5  # its second step
ADASVD_LIMIT = 200.0  # below that
LOSS_AWARE_LIMITS = {"two-factor": 62.0, "pivot": 46.0}


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    """A model of this size is worth them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo model on the fixed windows, gathered by whichever test needs them first."""
    return tmp_path_factory.mktemp("statistics")


def fixed_windows_perplexity(data: Path, out: Path, statistics: Path, **options: Any) -> float:
    """Compress on the fixed calibration windows, score on the fixed evaluation windows."""
    calibration = str(data / "smollm2_calibration_32x1024.npy")
    compress(Recipe(model="demo", calibration=calibration, rank_multiple=1, **options), out, statistics=statistics)
    backend = open_torch(out, threads=2)
    try:
        windows = np.load(data / "smollm2_evaluation_12x1024.npy", allow_pickle=False)
        return perplexity(np.concatenate([token_losses(backend.window_logits(w)[:-1], w[1:]) for w in windows])).value
    finally:
        backend.close()


def test_svd_llm_is_what_the_official_code_gives(data: Path, tmp_path: Path, statistics: Path) -> None:
    found = fixed_windows_perplexity(data, tmp_path / "out", statistics, method="svd-llm", retention=0.6)
    assert found == pytest.approx(PUBLISHED_SVD_LLM, rel=0.02)


def test_svd_llm_with_updated_u_is_what_the_official_code_gives(data: Path, tmp_path: Path, statistics: Path) -> None:
    update = str(data / "smollm2_update_16x512.npy")
    found = fixed_windows_perplexity(
        data, tmp_path / "out", statistics, method="svd-llm-u", update_calibration=update, retention=0.6
    )
    assert found == pytest.approx(PUBLISHED_SVD_LLM_U, rel=0.02)


def test_adasvd_is_better_than_the_official_code(data: Path, tmp_path: Path, statistics: Path) -> None:
    assert fixed_windows_perplexity(data, tmp_path / "out", statistics, method="adasvd", retention=0.6) <= ADASVD_LIMIT


@pytest.mark.parametrize("layout", LOSS_AWARE_LIMITS)
def test_loss_aware_is_better_than_all_of_them(data: Path, tmp_path: Path, statistics: Path, layout: str) -> None:
    options = {"method": "loss-aware", "layout": layout, "retention": 0.6}
    assert fixed_windows_perplexity(data, tmp_path / "out", statistics, **options) <= LOSS_AWARE_LIMITS[layout]

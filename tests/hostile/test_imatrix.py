"""Importance matrices that are none: refused before a tensor is rounded by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Refused = Callable[..., str]
ONES = np.ones(64, dtype=np.float32)
COUNT = np.array([9], dtype=np.float32)
Tensors = dict[str, np.ndarray]


def of(sums: np.ndarray = ONES, counts: np.ndarray = COUNT, name: str = "blk.0.attn_q.weight") -> Tensors:
    return {f"{name}.in_sum2": sums, f"{name}.counts": counts}


NO_IMPORTANCE = "holds no importance of one matrix"
CASES: dict[str, tuple[Tensors, str]] = {
    "nothing": ({"a": ONES}, "holds no importance of any matrix"),
    "no counts": ({"a.in_sum2": ONES}, "has sums but no counts"),
    "two counts": (of(counts=np.ones(2, dtype=np.float32)), "has 2 x 32 inputs there, 64 here"),
    "three counts": (of(counts=np.ones(3, dtype=np.float32)), NO_IMPORTANCE),
    "NaN sums": (of(ONES * np.float32("nan")), NO_IMPORTANCE),
    "infinite sums": (of(ONES * np.float32("inf")), NO_IMPORTANCE),
    "negative sums": (of(-ONES), NO_IMPORTANCE),
    "NaN count": (of(counts=COUNT * np.float32("nan")), NO_IMPORTANCE),
    "overflowing mean": (of(ONES * np.float32(1e38), np.array([1e-30], dtype=np.float32)), NO_IMPORTANCE),
    "half": (of(ONES.astype(np.float16)), "is stored as f16, not f32"),
    "other model": (of(name="blk.9.nothing"), "holds nothing of this model's tensors"),
    "other width": (of(np.ones(7, dtype=np.float32), name="token_embd.weight"), "has 7 inputs there, 64 here"),
}


@pytest.mark.parametrize("case", CASES)
def test_matrices(models: Path, gguf_files: ModuleType, refused: Refused, tmp_path: Path, case: str) -> None:
    tensors, needle = CASES[case]
    path = gguf_files.imatrix(tmp_path / "x.imatrix", tensors)
    command = ["export", models / "dense", "--out", "out", "--gguf-type", "q4_0", "--gguf-imatrix", path]
    refused(*command, code=3, needle=needle)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x00" * 100, b"old binary imatrix"])
def test_files(models: Path, refused: Refused, tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "x.imatrix").write_bytes(content)
    refused("export", models / "dense", "--out", "out", "--gguf-imatrix", path, code=3, needle="GGUF")


def test_another_kind_of_file(models: Path, refused: Refused) -> None:
    command = ["export", models / "dense", "--out", "out", "--gguf-imatrix", models / "d.gguf"]
    refused(*command, code=3, needle="is not an importance matrix")

"""The importance matrix as a file: what is written is read, by this reader and gguf-py's; what is wrong is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gguf import GGUFReader

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.exporters.artifact import TensorRecord
from lowrank_export.exporters.gguf.imatrix import Importance, read_imatrix, write_imatrix
from lowrank_export.exporters.gguf.rounding_choice import Rounding

NAME = "blk.0.attn_q.lowrank_v.weight"
SQUARES = {NAME: np.array([1.0, 0.25, 0.0], np.float32), "blk.0.ffn_up.weight": np.ones(5, np.float32)}


def write(path: Path, **options: bool) -> Path:
    said = {"architecture": "llama", "text": "notes.txt", "windows": 4, "window_length": 16}
    write_imatrix(Importance(SQUARES, 64), path, **{**said, "force": False, **options})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_imatrix(write(tmp_path / "i.gguf"))
    assert found.keys() == SQUARES.keys()
    for name, squares in SQUARES.items():
        np.testing.assert_array_equal(found[name], squares)


def test_names_and_keys_are_those_of_llama_cpp(tmp_path: Path) -> None:
    reader = GGUFReader(write(tmp_path / "i.gguf"))
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert keys["general.type"] == "imatrix" and keys["imatrix.datasets"] == ["notes.txt"]
    assert (keys["imatrix.chunk_count"], keys["imatrix.chunk_size"]) == (4, 16)
    values = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert sorted(values) == sorted(f"{name}.{part}" for name in SQUARES for part in ("in_sum2", "counts"))
    np.testing.assert_array_equal(values[f"{NAME}.in_sum2"], 64 * SQUARES[NAME])
    np.testing.assert_array_equal(values[f"{NAME}.counts"], [64])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf")
    with pytest.raises(UsageError, match="already exists"):
        write(path)
    write(path, force=True)


def test_matrix_without_tokens_has_ones(gguf_files: ModuleType, tmp_path: Path) -> None:
    sums = {"w.in_sum2": np.zeros(3, np.float32), "w.counts": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(read_imatrix(gguf_files.imatrix(tmp_path / "i.gguf", sums))["w"], np.ones(3))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w.in_sum2": np.ones(3, np.float32)}, "w has sums but no counts"),
        ({"w.in_sum2": np.full(3, np.nan, np.float32), "w.counts": np.ones(1, np.float32)}, "no importance of one"),
        ({"w.in_sum2": -np.ones(3, np.float32), "w.counts": np.ones(1, np.float32)}, "no importance of one"),
        ({"w.in_sum2": np.ones((2, 3), np.float32), "w.counts": np.ones((4, 1), np.float32)}, "no importance of one"),
        ({"w.in_sum2": np.ones(3, np.float16), "w.counts": np.ones(1, np.float32)}, "stored as f16, not f32"),
        ({"w.weight": np.ones(3, np.float32)}, "no importance of any matrix"),
    ],
)
def test_damaged(gguf_files: ModuleType, tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_imatrix(gguf_files.imatrix(tmp_path / "i.gguf", tensors))


def test_other_files(gguf_files: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not an importance matrix"):
        read_imatrix(gguf_files.imatrix(tmp_path / "m.gguf", {"w.in_sum2": np.ones(3, np.float32)}, kind=None))
    (tmp_path / "old.dat").write_bytes(b"\1\0\0\0")
    with pytest.raises(InputError, match="not a GGUF file"):
        read_imatrix(tmp_path / "old.dat")


def record(name: str = NAME, columns: int = 3, type: str = "iq3_s") -> TensorRecord:
    return TensorRecord(name, (4, columns), type, 0)


def test_choice_refuses_what_contradicts_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gguf-rounding awar: unknown rounding; did you mean 'aware'"):
        Rounding("awar")
    with pytest.raises(UsageError, match="measures its own importance"):
        Rounding("aware", imatrix=tmp_path / "i.gguf")
    with pytest.raises(UsageError, match="plain rounding runs no text"):
        Rounding(calibration="notes.txt")


def test_types_that_want_an_importance(tmp_path: Path) -> None:
    given = Rounding(imatrix=write(tmp_path / "i.gguf"))
    assert list(given.importance([record(), record("output.weight", type="q6_k")])) == [NAME]
    for rounding, tensor in (
        (Rounding(), record()),
        (given, record("blk.1.attn_q.lowrank_v.weight")),
        (Rounding("aware"), record("output.weight")),
    ):
        with pytest.raises(UsageError, match=f"iq3_s needs the importance of the inputs of {tensor.name}: add"):
            rounding.importance([record("blk.0.ffn_up.weight", 5, "q4_0"), tensor])
    assert Rounding("aware").importance([record()]) == {}


def test_importance_of_another_model(tmp_path: Path) -> None:
    given = Rounding(imatrix=write(tmp_path / "i.gguf"))
    with pytest.raises(InputError, match="holds nothing of this model's tensors"):
        given.importance([record("output.weight", type="q6_k")])
    with pytest.raises(InputError, match=f"{NAME} has 3 inputs there, 7 here"):
        given.importance([record(columns=7)])

"""Texts in Parquet, read by pyarrow."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.texts import parquet
from lowrank_export.converter.texts.corpus import read_corpus, read_text

PARTS = ["one fox", "zwei Füchse", None, "三只狐狸😀"]
CHAT = [{"role": "user", "content": "a rank?"}, {"role": "assistant", "content": "a number"}]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Columns -> a Parquet file."""
    arrow: Any = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(columns: dict[str, list[Any]], name: str = "t.parquet", **options: Any) -> Path:
        pyarrow.parquet.write_table(arrow.table(columns), tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["t.parquet", "t", "t#1.PARQUET"])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 1}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_rows_are_documents(written: Any, name: str, options: dict[str, Any]) -> None:
    path = written({"text": PARTS * 50, "n": list(range(200))}, name, **options)
    found = read_corpus(str(path), "calibration")
    assert found.text == "\n\n".join(part for part in PARTS * 50 if part is not None)
    assert (found.documents, found.skipped) == (150, 50)
    assert read_text(f"{path}#text+text", "evaluation").startswith("one foxone fox\n\n")


def test_conversations_in_rows(written: Any, tiny: ModuleType) -> None:
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}{{ m.tool is defined }}: {{ m.content }}\n{% endfor %}"
    )
    path = written({"messages": [CHAT, [{"role": "user", "content": "x", "tool": "y"}], None]})
    found = read_corpus(f"{path}#messages", "calibration", tokenizer)
    assert found.text == "userFalse: a rank?\nassistantFalse: a number\nuserTrue: x\n"
    assert (found.documents, found.skipped) == (2, 1)


def test_columns_that_are_no_text(written: Any) -> None:
    path = written({"body": ["x"], "n": [1], "raw": [b"x"]})
    with pytest.raises(InputError, match=r"the table has no field 'text'; name its text fields: .*t\.parquet#body$"):
        read_text(str(path), "calibration")
    with pytest.raises(InputError, match="row 1: field 'n' is a number, not a text: 1"):
        read_text(f"{path}#n", "calibration")
    with pytest.raises(InputError, match="row 1: field 'raw' is bytes"):
        read_text(f"{path}#raw", "calibration")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(range(256)) * 40 + b"PAR1"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    (path := tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.parquet: not readable as Parquet \(") as caught:
        read_text(str(path), "calibration")
    assert "\n" not in str(caught.value)


def test_few_bytes_that_become_many(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written({"text": ["a" * 2**20] * 100})
    assert path.stat().st_size < 2**18
    with pytest.raises(InputError, match=r"becomes more than 67,108,864 letters once it is unpacked"):
        read_text(str(path), "calibration")
    plain = written({"text": [f"{n:07}" + "a" * 2**20 for n in range(70)]}, use_dictionary=False, compression="zstd")
    with pytest.raises(InputError, match="once they are unpacked, which no text does"):
        read_text(str(plain), "calibration")
    monkeypatch.setattr(parquet, "MOST_ROWS", 3)
    with pytest.raises(InputError, match="has 4 rows, more than the 3 that are read"):
        read_text(str(written({"text": PARTS})), "calibration")


def test_without_pyarrow_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install lowrank-export\[parquet\]; or write it as JSON lines"):
        read_text(str(path), "calibration")

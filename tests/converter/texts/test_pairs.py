"""Pictures with texts about them, out of a file of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.texts.pairs import names_pairs, read_pairs


def test_which_names_say_so() -> None:
    assert names_pairs("a.jsonl#image+text") and names_pairs("a#b.jsonl#image+caption")
    others = ("a.jsonl", "a.jsonl#text", "a.jsonl#text+image", "a.jsonl#image", "#image+text", "a#image+text+more")
    assert not any(map(names_pairs, others))


def test_pairs_in_order(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).touch()
    records = [{"image": "one.png", "text": "a", "id": 1}, {"image": str(tmp_path / "two.png"), "text": "b"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = read_pairs(f"{tmp_path / 'p.jsonl'}#image+text")
    assert [(pair.picture, pair.text) for pair in found] == [(tmp_path / "one.png", "a"), (tmp_path / "two.png", "b")]
    assert found[1].where == f"{tmp_path / 'p.jsonl'}: line 2"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"text": "a"}, "line 1 has no field 'image'"),
        ({"image": "one.png"}, "line 1 has no field 'text'"),
        ({"image": 3, "text": "a"}, "line 1: 3 and 'a' are no picture and text"),
        ({"image": "one.png", "text": None}, "'one.png' and None are no picture and text"),
        ({"image": "none.png", "text": "a"}, "line 1: no picture 'none.png' is there"),
        ([1], "line 1 is not a JSON object"),
    ],
)
def test_refused(record: Any, line: str, tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    (tmp_path / "p.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match=line):
        read_pairs(f"{tmp_path / 'p.jsonl'}#image+text")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not readable"):
        read_pairs(f"{tmp_path / 'p.jsonl'}#image+text")

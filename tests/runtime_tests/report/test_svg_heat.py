"""The heat map: a cell per value, stronger for larger ones, and nothing outside its frame."""

from __future__ import annotations

from xml.etree import ElementTree

from lowrank_export.runtime_tests.report.svg_chart import WIDTH
from lowrank_export.runtime_tests.report.svg_heat import heat_map

VALUES = {("a<b", 0): 1.0, ("a<b", 1): 3.0, ("c", 0): 2.0}


def test_cells() -> None:
    drawn = ElementTree.fromstring(heat_map(VALUES, rows=["a<b", "c"], columns=[0, 1], title="T&T", x_label="block"))
    cells = {cell.findtext("title"): cell for cell in drawn.iter("rect") if cell.find("title") is not None}
    assert set(cells) == {"a<b, block 0: 1", "a<b, block 1: 3", "c, block 0: 2"}
    strength = {said: float(str(cell.get("style")).rpartition(":")[2]) for said, cell in cells.items()}
    assert strength["a<b, block 0: 1"] < strength["c, block 0: 2"] < strength["a<b, block 1: 3"] == 1
    height = float(str(drawn.get("viewBox")).split()[3])
    for cell in drawn.iter("rect"):
        x, y, w, h = (float(str(cell.get(key))) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= WIDTH and y + h <= height
    texts = [text.text for text in drawn.iter("text")]
    assert texts[:1] == ["a<b"] and {"1", "3", "block"} <= set(texts)


def test_equal_values_do_not_divide_by_zero() -> None:
    assert "<rect" in heat_map({("a", 5): 2.0}, rows=["a"], columns=[5], title="", x_label="")

"""The files of a validation: JSON against its schema, JUnit, Markdown and page by strict parsers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from lowrank_export.runtime_tests import report as outputs
from lowrank_export.runtime_tests.gates.gates import gate
from lowrank_export.runtime_tests.metrics.perplexity import NOT_MEASURED
from lowrank_export.runtime_tests.report.junit import junit
from lowrank_export.runtime_tests.report.markdown import card, card_path, markdown
from lowrank_export.runtime_tests.report.outputs import OUTPUTS, check_outputs, write_outputs
from lowrank_export.runtime_tests.report.report import SCHEMA_VERSION, Report, Row
from lowrank_export.runtime_tests.report.report_page import report_page

SCHEMA = json.loads((Path(outputs.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))


def broken(report: Report) -> Report:
    """The same with an artifact that did not run, whose error is hostile."""
    error = 'bad <file> & "quotes" | pipe\x00\x1b[31m'
    row: Row = replace(
        report.rows[-1],
        perplexity=NOT_MEASURED,
        parity=None,
        quality=None,
        writing=None,
        tokenizer=None,
        tasks=(),
        speeds=(),
        dense_speeds=(),
        footprint=None,
        bandwidth_share=None,
        parameters=0,
        error=error,
        gates=(gate("artifact.runs", 0, 1, at_least=True, detail=error), gate("size.bytes", math.nan, 1)),
    )
    return replace(report, rows=(*report.rows[:-1], row))


def test_json_follows_the_schema(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for made in (report, broken(report), replace(report, rows=())):
        document = json.loads(json.dumps(made.to_json(), allow_nan=False))
        assert list(validator.iter_errors(document)) == []
        assert document["schema_version"] == SCHEMA_VERSION
    document["passed"] = "yes"
    document["more"] = 1
    del document["windows"]["sha256"]
    assert len(list(validator.iter_errors(document))) == 3


def test_schema_describes_every_value() -> None:
    objects: list[dict[str, Any]] = [SCHEMA, *SCHEMA["$defs"].values()]
    for found in objects:
        assert found["additionalProperties"] is False and sorted(found["required"]) == sorted(found["properties"])
        for name, value in found["properties"].items():
            assert value.get("description") or name == "schema_version", name


def test_junit(report: Report) -> None:
    root = ElementTree.fromstring(junit(report))
    suites = list(root)
    assert [suite.get("name") for suite in suites] == [row.label for row in report.rows if row.gates]
    assert (root.get("tests"), root.get("failures")) == ("13", "1")
    for suite in suites:
        assert int(suite.get("tests", 0)) == len(suite.findall("testcase"))
        assert int(suite.get("failures", 0)) == len(suite.findall("testcase/failure"))
    (failure,) = root.iter("failure")
    assert failure.get("message") == "quality.mean_kld 0.643, at most 0.5 is allowed"
    again = ElementTree.fromstring(junit(broken(report)))
    assert 'bad <file> & "quotes"' in str(next(again.iter("failure")).get("message"))


def test_markdown(report: Report) -> None:
    text = markdown(report)
    assert "**No:** 1 of 13 gates failed" in text and "quality.mean_kld 0.643, at most 0.5" in text
    assert "lowrank-export validate model-q8_0.gguf --reference checkpoint --dense 'demo model'" in text
    assert "| llama.cpp q8_0 (factored) | 1, 64 | 1600 (1400 to 1800) | 200.0 (180.0 to 220.0) | 0.80 | 423 |" in text
    for made in (text, markdown(broken(report))):
        tables = re.findall(r"(?:^\|.*\|$\n?)+", made, flags=re.M)
        for table in tables:
            assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
        assert not re.search("[\x00-\x08\x1b]", made)


def test_how_much_the_text_was_stands_beside_it(report: Report) -> None:
    counted = {**report.windows, "drawn_from": {"documents": 31, "tokens": 6814, "skipped": 32}}
    assert "documents 31, tokens 6814, skipped 32" in markdown(replace(report, windows=counted))


def test_card(report: Report, tmp_path: Path) -> None:
    path = Path(report.rows[-1].path)
    text = card(report, path)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    fields = yaml.safe_load(head)
    assert fields["license"] == "apache-2.0" and fields["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert report.rows[-1].sha256 in body and "method: loss-aware" in body and "ab" * 32 in body
    assert "1 gates failed" in body and "dense" in body  # the dense model's figures stand beside
    assert card_path(tmp_path) == tmp_path / "README.md"
    assert card_path(tmp_path / "m.gguf") == tmp_path / "m.gguf.md"


class Page:
    """A page in html5lib's strict mode."""

    def __init__(self, text: str) -> None:
        html5lib = pytest.importorskip("html5lib")
        self.text = text
        self.tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
        self.elements = list(self.tree.iter())


def pages(report: Report) -> list[Page]:
    return [Page(report_page(made)) for made in (report, broken(report), replace(report, ranks=()))]


def test_page_is_self_contained(report: Report) -> None:
    for page in pages(report):
        tags = {element.tag for element in page.elements}
        assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        for element in page.elements:
            for name, value in element.attrib.items():
                assert not name.startswith("on") and name not in ("src", "href", "srcset", "action"), (name, value)
        assert "url(" not in page.text and "@import" not in page.text
        assert not re.search(r"(https?:)?//", page.text)
        viewport = [e.get("content") for e in page.elements if e.tag == "meta" and e.get("name") == "viewport"]
        assert viewport == ["width=device-width, initial-scale=1"]
        assert "prefers-color-scheme: dark" in page.text and page.text.startswith("<!DOCTYPE html>")
        parents = {child: parent for parent in page.elements for child in parent}
        for table in (element for element in page.elements if element.tag == "table"):
            assert parents[table].get("class") == "wide"
        assert ".wide { overflow-x:auto" in page.text


def test_page_says_it_all(report: Report) -> None:
    page = pages(report)[0]
    words = " ".join("".join(page.tree.itertext()).split())
    captions = [" ".join(element.itertext()).strip() for element in page.elements if element.tag == "figcaption"]
    assert (
        len(captions) == len(set(captions)) == 8 == sum(str(element.tag).endswith("svg") for element in page.elements)
    )
    for needle in (
        "No. 1 of 13 gates failed",
        "a ford & a <market>",
        "26.80 ± 1.07",
        "--dense 'demo model'",
        "21.0 GB/s",
    ):
        assert needle in words, needle
    assert all(row.sha256 in words for row in report.rows)
    hostile = pages(report)[1]
    assert "bad <file> &" in " ".join("".join(hostile.tree.itertext()).split())
    assert "Yes." in report_page(replace(report, rows=report.rows[:-1]))


def test_written_together_or_refused(report: Report, tmp_path: Path) -> None:
    from lowrank_export.converter.core.errors import UsageError

    check_outputs(tmp_path / "out", force=False)
    write_outputs(report, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
    with pytest.raises(UsageError, match="--force"):
        check_outputs(tmp_path / "out", force=False)
    check_outputs(tmp_path / "out", force=True)


def test_a_size_is_shown(report: Report) -> None:
    """Bits and predicted loss of every linear as heat maps; figures beside them, matrices not one by one."""
    matrices = {
        f"model.layers.{block}.self_attn.{name}": {"form": "q5_0", "bits": 5.5 - block, "loss": 0.01 * (block + 1)}
        for block in range(2)
        for name in ("q_proj", "k_proj")
    }
    matrices["model.embed_tokens"] = {"form": "q8_0", "bits": 8.5, "loss": 0.0}
    size = {"budget": 1000, "chosen": {"bytes": 990, "loss": 0.02}, "shipped": "chosen", "matrices": matrices}
    sized = replace(report, provenance={**report.provenance, "size": size})
    page = report_page(sized)
    assert "Bits per weight of every linear" in page and "Predicted loss of every linear" in page
    assert "self_attn.k_proj, block 1: 4.5" in page and "embed_tokens" not in page
    assert "size: shipped" in page and "### Size" in markdown(sized) and "q_proj" not in markdown(sized)
    assert "Bits per weight of every linear" not in report_page(report)

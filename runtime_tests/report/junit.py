"""The gates as JUnit XML: a suite per artifact and runtime, a test case per gate."""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from .html import NOT_IN_XML
from .report import Report, Row


def junit(report: Report) -> str:
    """The document, as CI systems read it. Rows without gates, the torch references, are not in it."""
    gated = [row for row in report.rows if row.gates]
    tests, failures = sum(len(row.gates) for row in gated), len(report.failures)
    root = Element("testsuites", name="lowrank-export", tests=str(tests), failures=str(failures), errors="0")
    for row in gated:
        root.append(_suite(row))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(row: Row) -> Element:
    bad = sum(not gate.passed for gate in row.gates)
    suite = Element(
        "testsuite",
        name=_clean(row.label),
        tests=str(len(row.gates)),
        failures=str(bad),
        errors="0",
        skipped="0",
    )
    properties = SubElement(suite, "properties")
    for name, value in (("path", row.path), ("sha256", row.sha256), ("bytes", row.bytes), *_figures(row)):
        SubElement(properties, "property", name=name, value=_clean(str(value)))
    for gate in row.gates:
        case = SubElement(suite, "testcase", classname=_clean(row.label), name=gate.name)
        if not gate.passed:
            SubElement(case, "failure", message=_clean(gate.words), type="gate")
    return suite


def _figures(row: Row) -> list[tuple[str, str]]:
    if math.isnan(row.perplexity.value):
        return []
    found = [("perplexity", f"{row.perplexity.value:.6g}")]
    if row.parity is not None:
        found.append(("parity mean KLD", f"{row.parity.mean_kld:.6g}"))
    if row.quality is not None:
        found.append(("quality mean KLD", f"{row.quality.mean_kld:.6g}"))
    return found


def _clean(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)

"""A report -> report.json, junit.xml, report.md and report.html in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...converter.storage.files import check_output
from ...exporters.artifact import Artifact
from .junit import junit
from .markdown import card, card_path, markdown
from .report import Report, write_report, write_text
from .report_page import report_page

JSON, JUNIT, MARKDOWN, PAGE = "report.json", "junit.xml", "report.md", "report.html"
OUTPUTS = (JSON, JUNIT, MARKDOWN, PAGE)


def check_outputs(folder: Path, force: bool) -> None:
    """Refuse to write over a report.

    Raises:
        UsageError: one is there and `force` is not set, or the place is no folder.
    """
    for name in OUTPUTS:
        check_output(folder / name, force)


def write_outputs(report: Report, folder: Path) -> None:
    """Write all four, each whole or not at all; report.json last, as the sign that all are there.

    Raises:
        ResourceError: a file cannot be written.
    """
    write_text(junit(report), folder / JUNIT)
    write_text(markdown(report), folder / MARKDOWN)
    write_text(report_page(report), folder / PAGE)
    write_report(report, folder / JSON)


def write_cards(report: Report, artifacts: Sequence[Artifact]) -> None:
    """Write a card beside every artifact, replacing one that is there.

    Raises:
        ResourceError: a file cannot be written.
    """
    for artifact in artifacts:
        write_text(card(report, artifact.path), card_path(artifact.path))

"""A report as Markdown: the whole, and the card that lies beside one artifact."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...exporters.registry import TARGETS
from ..timing.speed import Rate
from .report import Report, Row
from .words import EXPLAINED, HEADINGS, MISSING, cells, one_line, share_words

TAGS = ["lowrank-export", "low-rank"]


def markdown(report: Report) -> str:
    """Verdict, figures, gates and provenance."""
    return _joined(
        "# Release gate",
        _verdict(report),
        _figures(report.rows),
        *_speed(report.rows),
        *_tasks(report.rows),
        _gates(report.rows),
        *_made(report),
    )


def card(report: Report, path: Path) -> str:
    """The card of one artifact: front matter for the hub, then the same for this artifact beside the torch models."""
    rows = [row for row in report.rows if row.path == str(path) or not row.gates]
    facts = {
        "license": report.provenance.get("license", "other"),
        "base_model": report.provenance.get("base_model"),
        "library_name": TARGETS[rows[-1].format].library if rows[-1].format in TARGETS else None,
        "tags": TAGS,
    }
    head = yaml.safe_dump({key: value for key, value in facts.items() if value}, sort_keys=False).strip()
    own = [row for row in rows if row.gates]
    failures = sum(not gate.passed for row in own for gate in row.gates)
    verdict = "All gates passed." if not failures else f"**{failures} gates failed.**"
    identity = f"`{path.name}`: {own[0].bytes:,} bytes, SHA-256 of its weights `{own[0].sha256}`."
    return f"---\n{head}\n---\n" + _joined(
        f"# {report.provenance.get('base_model', 'Model')}, {own[0].format} {own[0].quantization}",
        f"{identity} {verdict}",
        _figures(rows),
        *_speed(rows),
        *_tasks(rows),
        _gates(own),
        *_made(report),
    )


def card_path(artifact: Path) -> Path:
    """Where the card of an artifact lies: beside a file, in a folder."""
    return artifact / "README.md" if artifact.is_dir() else artifact.with_name(f"{artifact.name}.md")


def _verdict(report: Report) -> str:
    count = sum(len(row.gates) for row in report.rows)
    if report.passed:
        return f"**Yes:** all {count} gates passed."
    lines = [f"**No:** {len(report.failures)} of {count} gates failed.", ""]
    return "\n".join([*lines, *(f"- {row.label}: {_cell(gate.words)}" for row, gate in report.failures)])


def _figures(rows: Iterable[Row]) -> str:
    lines = [[f"{row.backend} {row.quantization}", row.model, *cells(row)] for row in rows]
    return f"{_table(('runtime', 'model', *HEADINGS), lines)}\n\n{EXPLAINED}"


def _gates(rows: Iterable[Row]) -> str:
    lines = [
        [
            row.label,
            gate.name,
            gate.measured,
            f"{'≥' if gate.at_least else '≤'} {gate.threshold:g}",
            "passed" if gate.passed else f"**failed** {gate.detail}".strip(),
        ]
        for row in rows
        for gate in row.gates
    ]
    return f"## Gates\n\n{_table(('artifact', 'gate', 'value', 'threshold', 'result'), lines)}"


def _speed(rows: Iterable[Row]) -> list[str]:
    lines = [
        [
            row.label,
            f"{speed.threads}, {speed.prompt_tokens}",
            _spread(speed.prefill, 0),
            _spread(speed.decode, 1),
            f"{row.footprint.load_seconds:.2f}",
            f"{row.footprint.peak_bytes / 1e6:.0f}",
            f"{row.bytes_per_token / 1e6:.1f}",
            MISSING if row.bandwidth_share is None else share_words(row.bandwidth_share),
        ]
        for row in rows
        for speed in row.speeds
        if row.footprint is not None
    ]
    headings = (
        "model",
        "threads, prompt",
        "prefill tok/s",
        "decode tok/s",
        "load s",
        "peak MB",
        "MB per token",
        "of bandwidth",
    )
    note = "Median (lowest to highest). Load, memory and share of bandwidth are of the first threads and prompt."
    return [f"## Speed and memory\n\n{_table(headings, lines)}\n\n{note}"] if lines else []


def _spread(rate: Rate, digits: int) -> str:
    return f"{rate.median:.{digits}f} ({rate.lowest:.{digits}f} to {rate.highest:.{digits}f})"


def _tasks(rows: Iterable[Row]) -> list[str]:
    lines = [
        [row.label, one.task, f"{100 * one.value:.1f}% ± {100 * one.standard_error:.1f}", one.metric, str(one.samples)]
        for row in rows
        for one in row.tasks
    ]
    headings = ("model", "task", "score", "metric", "examples")
    return [f"## Tasks, zero-shot\n\n{_table(headings, lines)}"] if lines else []


def _made(report: Report) -> list[str]:
    """How the figures came about."""
    windows, provenance = report.windows, report.provenance
    text = {**provenance.get("evaluation", {}), **windows.get("drawn_from", {})}
    hashes = {row.path: row.sha256 for row in report.rows}
    command = shlex.join(["lowrank-export", *map(str, provenance.get("command", []))])
    facts = [
        f"- command: `{command}`",
        f"- measured on {windows['count']} windows of {windows['length']} tokens, {windows['predicted_tokens']} "
        f"predictions, SHA-256 `{windows['sha256']}`, text {_inline(text)}",
        f"- seed of sampled text {report.settings.get('seed', 0)}, {report.settings.get('threads')} threads",
        *(f"- {key.replace('_', ' ')}: {provenance[key]}" for key in ("base_model", "license") if key in provenance),
        f"- machine: {_inline(report.machine)}",
        f"- versions: {_inline(report.versions)}",
        *(f"- weights of {Path(path).name}: SHA-256 `{sha256}`" for path, sha256 in hashes.items()),
    ]
    parts = ["## How it was made\n\n" + "\n".join(facts)]
    for title in ("size", "experts", "recipe", "calibration"):
        if title in provenance:
            kept = {key: value for key, value in provenance[title].items() if key != "matrices"}  # the recipe has them
            listed = yaml.safe_dump(kept, sort_keys=False)
            parts.append(f"### {title.capitalize()}\n\n```yaml\n{listed}```")
    return parts


def _inline(values: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) if isinstance(values, dict) else str(values)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _joined(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"

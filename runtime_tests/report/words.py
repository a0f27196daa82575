"""Figures of a row as words: what table, Markdown and page share."""

from __future__ import annotations

import math

from .report import Row

MISSING = "-"
HEADINGS = (
    "MB",
    "bits/w",
    "PPL ± s.e.",
    "parity KLD",
    "quality KLD",
    "same-top",
    "top-5",
    "repeats",
    "prefill tok/s",
    "decode tok/s",
    "peak MB",
)
EXPLAINED = (
    "KLD: mean KL divergence per token in nats; parity is against the torch model that was exported, quality against "
    "the dense one. Same-top, top-5: share of tokens ranked first, and among the first five, by the dense model that "
    "this one agrees on (against the exported model where there is no dense one). Repeats: share of 4-token spans that "
    "occurred before in the same text, of sampled continuations of the evaluation text. Speeds are medians; peak "
    "memory is of a process that holds nothing else."
)


def cells(row: Row) -> tuple[str, ...]:
    """A row under HEADINGS."""
    agreed = row.quality or row.parity
    text = row.writing.sampled_degeneration.repetition if row.writing else math.nan
    return (
        f"{row.bytes / 1e6:.1f}",
        number(row.bits_per_weight, 2),
        row.perplexity.words,
        kld_words(row.parity.mean_kld) if row.parity else MISSING,
        kld_words(row.quality.mean_kld) if row.quality else MISSING,
        share_words(agreed.same_top) if agreed else MISSING,
        share_words(agreed.top5) if agreed else MISSING,
        share_words(text),
        number(row.speed.prefill.median, 0) if row.speed else MISSING,
        number(row.speed.decode.median, 1) if row.speed else MISSING,
        f"{row.footprint.peak_bytes / 1e6:.0f}" if row.footprint else MISSING,
    )


def kld_words(value: float) -> str:
    """Small divergences as powers of ten."""
    return f"{value:.1e}" if value < 0.01 else f"{value:.3f}"


def share_words(value: float) -> str:
    """A share in per cent."""
    return MISSING if math.isnan(value) else f"{100 * value:.1f}%"


def number(value: float, digits: int) -> str:
    """A number, or a dash for none."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else MISSING


def one_line(text: str) -> str:
    """Text on one line without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))

"""The windows of one text or of several: "python-docs + self" gives windows of each, in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from ..texts.corpus import Counts, is_windows
from .calibration import SELF, Calibration, Tokens, calibrate
from .calibration import text_sha256 as sha256_of_one

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = " + "


def texts_in(spec: str) -> tuple[str, ...]:
    """The texts that a spec names; a file whose name has the separator in it is one.

    Raises:
        InputError: a text without a name or one that is named twice, or ready-made windows among several texts.
    """
    if SEPARATOR not in spec or _is_there(spec):
        return (spec,)
    texts = tuple(text.strip() for text in spec.split(SEPARATOR))
    for text in texts:
        if not text:
            raise InputError(f"{spec}: a text without a name; several are written `TEXT{SEPARATOR}TEXT`")
        if is_windows(text):
            raise InputError(f"{spec}: {text} is ready-made windows; only texts can be mixed")
    if len({*texts}) < len(texts):  # the seed would draw the same windows from it again
        raise InputError(f"{spec}: names a text twice, which gives the same windows twice; name each once")
    return texts


def shares(count: int, texts: int) -> list[int]:
    """How many of `count` windows each text gives: equally many, the first ones one more where that does not divide."""
    return [count // texts + (number < count % texts) for number in range(texts)]


def in_turn(parts: Sequence[Tokens]) -> Tokens:
    """Windows (N, T) of every text in turn, so that every run of them holds all texts.

    Args:
        parts: of every text, by `shares`.
    """
    order = sorted((row, part) for part, windows in enumerate(parts) for row in range(len(windows)))
    return np.stack([parts[part][row] for row, part in order])


def _is_there(spec: str) -> bool:
    """Whether a spec is the name of a file; one that no file system takes is none."""
    try:
        return Path(spec).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def samples(spec: str) -> bool:
    """Whether the model itself writes some of the windows.

    Raises:
        InputError: as `texts_in` says.
    """
    return SELF in texts_in(spec)


def draw(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    sample: Callable[[int, int, int], Tokens],
    *,
    windows: int,
    length: int,
    held_out: int,
    seed: int,
    rows: int | None = None,
) -> Calibration:
    """Draw calibration windows from all texts of a spec, as many of each.

    Args:
        spec: one text or several.
        tokenizer: of the model.
        sample: count, length and seed -> windows that the model writes itself; called where `self` is among the texts.
        windows, length, held_out, seed, rows: see `calibrate`.

    Raises:
        InputError: a text cannot be read or is shorter than one window.
    """
    texts = texts_in(spec)
    if texts == (spec,) and spec != SELF:
        return calibrate(spec, tokenizer, windows=windows, length=length, held_out=held_out, seed=seed, rows=rows)
    parts: list[Tokens] = []
    counts: list[Counts] = []
    sampled = None
    for text, share in zip(texts, shares(windows + held_out, len(texts)), strict=True):
        if share and text == SELF:
            sampled = sample(share, length, seed)
            parts.append(sampled)
        elif share:
            drawn = calibrate(text, tokenizer, windows=share, length=length, held_out=0, seed=seed, rows=rows)
            parts.append(drawn.windows)
            counts += [] if drawn.drawn_from is None else [drawn.drawn_from]
    found = in_turn(parts)
    return Calibration(found[:windows], found[windows:], spec, seed, _sum(counts), sampled)


def text_sha256(spec: str) -> str | None:
    """Hash of all texts of a spec; None where the model alone writes them. Raises as that of one text does."""
    hashes = [sha256_of_one(text) or SELF for text in texts_in(spec)]
    if len(hashes) == 1:
        return None if hashes == [SELF] else hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _sum(counts: Sequence[Counts]) -> Counts | None:
    if not counts:
        return None
    return Counts(*(sum(getattr(c, key) for c in counts) for key in ("documents", "tokens", "skipped")))

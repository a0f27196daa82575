"""Calibration text -> token windows, with seed and hash."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, UsageError
from ..storage.documents import shown
from ..texts.corpus import Counts, is_windows, read_corpus
from ..texts.corpus import text_sha256 as sha256_of_text
from ..texts.pairs import names_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int32]
SELF = "self"
HELD_OUT_SHARE = 16
PIECE = 2_000_000  # characters that are tokenized at once


@dataclass(frozen=True)
class Calibration:
    """Windows of token ids, (N, T) int32, and where they came from.

    Attributes:
        windows, held_out: token ids.
        text: its spec.
        seed: that they were drawn with.
        drawn_from: how much the text was; None of windows that were given, or sampled.
        sampled: those of the windows that the model wrote itself, (n, T); None if there are none.
        features: of pictures in the windows, (K, d) float32; None if there are none. See pictures.py.
    """

    windows: Tokens
    held_out: Tokens
    text: str
    seed: int
    drawn_from: Counts | None = None
    sampled: Tokens | None = None
    features: NDArray[np.float32] | None = None

    @property
    def sha256(self) -> str:
        """Hash of every token id, calibration and held-out, and of what pictures became."""
        seen = b"" if self.features is None else self.features.tobytes()
        return hashlib.sha256(self.windows.tobytes() + self.held_out.tobytes() + seen).hexdigest()

    def record(self) -> dict[str, Any]:
        """What calibration.json holds."""
        return {
            "text": self.text,
            "seed": self.seed,
            "windows": len(self.windows),
            "window_length": int(self.windows.shape[1]),
            "held_out": len(self.held_out),
            "sha256": self.sha256,
            **({} if self.drawn_from is None else {"drawn_from": asdict(self.drawn_from)}),
        }


def calibrate(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    windows: int,
    length: int,
    held_out: int,
    seed: int,
    rows: int | None = None,
) -> Calibration:
    """Draw calibration windows from a text (any spec but `self`).

    Args:
        rows: of the model's embedding; as many as the tokenizer has tokens by default.

    Raises:
        InputError: the text cannot be read, is shorter than one window, or holds a token that has no row.
    """
    rows = len(tokenizer) if rows is None else rows
    if names_pairs(spec):
        raise InputError(
            f"{spec}: pictures are seen while a vision-language model is compressed, and no other texts beside them; "
            "give a text"
        )
    if is_windows(spec):
        given = read_token_windows(Path(spec), rows)
        return Calibration(given, given[:0], spec, seed)
    corpus = read_corpus(spec, "calibration", tokenizer)
    tokens = tokenize(tokenizer, corpus.text)
    if len(tokens) and int(tokens.max()) >= rows:
        last = int(tokens.max())
        raise InputError(
            f"{spec}: holds token {last} ({shown(tokenizer.convert_ids_to_tokens(last))}), but the "
            f"model's embedding only {rows} rows; take the tokenizer that the model was made with"
        )
    drawn = draw_windows(tokens, windows + held_out, length, seed, spec)
    counts = Counts(corpus.documents, len(tokens), corpus.skipped)
    return Calibration(drawn[:windows], drawn[windows:], spec, seed, counts)


def hold_out(calibration: Calibration) -> Calibration:
    """The same windows with one in sixteen, at least one, held out where none is yet.

    Raises:
        UsageError: only one window.
    """
    if len(calibration.held_out):
        return calibration
    count = max(1, len(calibration.windows) // HELD_OUT_SHARE)
    if count >= len(calibration.windows):
        raise UsageError("--refine needs at least two calibration windows: one tells when to stop")
    kept, moved = calibration.windows[:-count], calibration.windows[-count:]
    return replace(calibration, windows=kept, held_out=moved)


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Token ids (n,) int32 of a text, without special tokens.

    A long text goes piece by piece, cut at ends of lines: the tokenizer's own lists are a hundred times the text.
    """
    found = (tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in _pieces(text))
    return np.concatenate([np.asarray(ids, dtype=np.int32) for ids in found])


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def draw_windows(tokens: Tokens, count: int, length: int, seed: int, where: str) -> Tokens:
    """`count` windows (count, length) int32 at random places of a token stream.

    Windows do not overlap while the stream is long enough: it is cut into slots of `length` from a random offset and
    slots are drawn without replacement; a shorter stream gives random starts.

    Raises:
        InputError: fewer than `length` tokens.
    """
    if len(tokens) < length:
        raise InputError(
            f"{where}: the text has {len(tokens)} tokens, fewer than one window of {length}; "
            "give a longer text or a smaller --window-length"
        )
    rng = np.random.default_rng(seed)
    slots = len(tokens) // length
    if slots >= count:
        offset = int(rng.integers(len(tokens) - slots * length + 1))
        starts = offset + length * rng.permutation(slots)[:count]
    else:
        starts = rng.integers(len(tokens) - length + 1, size=count)
    return np.stack([tokens[start : start + length] for start in starts])


def read_token_windows(path: Path, vocabulary: int) -> Tokens:
    """Read ready-made windows from a `.npy` file of integers, (N, T).

    Raises:
        InputError: missing, not such an array, or a token outside the vocabulary.
    """
    try:
        with warnings.catch_warnings():  # of a header that Python 2 wrote
            warnings.simplefilter("ignore")
            array = np.lib.format.open_memmap(path, mode="r")  # .npy only: no archive, no pickle
    except Exception as error:  # a header is Python's syntax: a hostile one fails in many ways
        raise InputError(f"{path}: not readable as a numpy array ({_first_line(error)})") from None
    if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: expected integer token windows (N, T), found {array.dtype} {array.shape}")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= vocabulary:
        raise InputError(f"{path}: token ids {lowest} to {highest}, but the model has {vocabulary} tokens")
    return np.array(array, dtype=np.int32)


def text_sha256(spec: str) -> str | None:
    """Hash of the calibration text or windows that a spec names: a file may change and keep its name.

    Returns:
        None for `self`, which the model and the seed decide.

    Raises:
        InputError: it cannot be read.
    """
    if spec == SELF:
        return None
    if is_windows(spec):
        return hashlib.sha256(read_token_windows(Path(spec), 2**31).tobytes()).hexdigest()
    return sha256_of_text(spec)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

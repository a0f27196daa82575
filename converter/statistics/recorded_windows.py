"""The calibration windows of a checkpoint, drawn again from the texts that it records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checkpoint.reader import read_json
from ..core.errors import InputError, UsageError, naming
from ..core.recipe import make_recipe
from ..model.loading import load_tokenizer
from .calibration import SELF, Calibration, Tokens, read_token_windows
from .mixture import draw, texts_in

RECORD = "calibration.json"
SAMPLED = "sampled_windows.npy"
"""Windows that the dense model wrote itself: from the factored one they cannot be had again."""
ASK = "give a text with --calibration"
Sample = Callable[[int, int, int], Tokens]
"""Count, length and seed -> windows."""


def recorded_windows(
    checkpoint: Path, text: str | None = None, rows: int | None = None, sample: Sample | None = None
) -> Tokens:
    """Token windows (N, T) int32 that a checkpoint was calibrated on, or as many of another text.

    Args:
        checkpoint: its folder; calibration.json there says which text, how many windows, how long, and their hash.
        text: instead of the recorded one, as for the recipe's `calibration`; windows held out are not drawn.
        rows: of the model's embedding, see `calibrate`.
        sample: writes windows with a dense checkpoint itself.

    Raises:
        UsageError: nothing is recorded, or windows that were sampled from the dense model and lie nowhere.
        InputError: the text cannot be read, or is another than it was.
    """
    path, usual = checkpoint / RECORD, make_recipe({"model": str(checkpoint)}, "defaults")
    record = read_json(path) if path.is_file() else {}

    def number(key: str, otherwise: int) -> int:
        value = record.get(key, otherwise)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{path}: {key} is {value!r}; {ASK}")
        return value

    sizes = {
        "windows": number("windows", usual.windows),
        "length": number("window_length", usual.window_length),
        "seed": number("seed", usual.seed),
    }
    sample = _sampled_before(checkpoint) or sample or _impossible
    if text is not None:
        with naming("--calibration"):
            return draw(text, load_tokenizer(checkpoint), sample, held_out=0, rows=rows, **sizes).windows
    recorded = record.get("text")
    if not recorded:
        raise UsageError(f"{checkpoint}: records no calibration text; {ASK}")
    for one in texts_in(str(recorded)):
        if one == SELF and sample is _impossible:
            raise UsageError(
                f"{checkpoint}: has windows sampled from the dense model, and {SAMPLED} is not there; {ASK}"
            )
        if one.startswith("datasets:"):  # the network is for whoever asks for it
            raise UsageError(
                f"{checkpoint}: was calibrated on {recorded}; to fetch that, give --calibration '{recorded}'"
            )
    tokenizer, held_out = load_tokenizer(checkpoint), number("held_out", 0)
    try:
        drawn = draw(str(recorded), tokenizer, sample, held_out=held_out, rows=rows, **sizes)
    except InputError as error:
        raise InputError(f"{path} names {error}; or {ASK}") from None
    if not _same(drawn, record):
        raise InputError(f"{checkpoint}: {recorded} is not the text it was calibrated on any more; {ASK}")
    return drawn.windows


def _sampled_before(checkpoint: Path) -> Sample | None:
    """Gives the windows that were kept, if as many of that length are there."""
    path = checkpoint / SAMPLED
    if not path.is_file():
        return None

    def read(count: int, length: int, seed: int) -> Tokens:
        kept = read_token_windows(path, len(load_tokenizer(checkpoint)))
        if kept.shape[0] < count or kept.shape[1] != length:
            raise InputError(f"{path}: {kept.shape[0]} windows of {kept.shape[1]} tokens, not {count} of {length}")
        return kept[:count]

    return read


def _impossible(count: int, length: int, seed: int) -> Tokens:
    raise UsageError(f"{SELF}: only the dense model samples windows; {ASK}")


def _same(drawn: Calibration, record: dict[str, object]) -> bool:
    return drawn.sha256 == record.get("sha256")

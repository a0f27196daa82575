"""The calibration windows of a checkpoint, drawn again from the text that it records."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.reader import read_json
from ..core.errors import InputError, UsageError, naming
from ..core.recipe import make_recipe
from ..model.loading import load_tokenizer
from .calibration import SELF, Calibration, Tokens, calibrate

RECORD = "calibration.json"
ASK = "give a text with --calibration"


def recorded_windows(checkpoint: Path, text: str | None = None, rows: int | None = None) -> Tokens:
    """Token windows (N, T) int32 that a checkpoint was calibrated on, or as many of another text.

    Args:
        checkpoint: its folder; calibration.json there says which text, how many windows, how long, and their hash.
        text: instead of the recorded one, as for the recipe's `calibration`; windows held out are not drawn.
        rows: of the model's embedding, see `calibrate`.

    Raises:
        UsageError: nothing is recorded, or windows that were sampled from the dense model, and no text is given.
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
    if text is not None:
        if text == SELF:
            raise UsageError(f"--calibration {SELF}: is for compressing; {ASK}")
        tokenizer = load_tokenizer(checkpoint)
        with naming("--calibration"):
            return calibrate(text, tokenizer, held_out=0, rows=rows, **sizes).windows
    recorded = record.get("text")
    if not recorded:
        raise UsageError(f"{checkpoint}: records no calibration text; {ASK}")
    if recorded == SELF:
        raise UsageError(f"{checkpoint}: its calibration windows were sampled from the dense model; {ASK}")
    if str(recorded).startswith("datasets:"):  # the network is for whoever asks for it
        raise UsageError(f"{checkpoint}: was calibrated on {recorded}; to fetch that, give --calibration {recorded}")
    tokenizer, held_out = load_tokenizer(checkpoint), number("held_out", 0)
    try:
        drawn = calibrate(str(recorded), tokenizer, held_out=held_out, rows=rows, **sizes)
    except InputError as error:
        raise InputError(f"{path} names {error}; or {ASK}") from None
    if not _same(drawn, record):
        raise InputError(f"{checkpoint}: {recorded} is not the text it was calibrated on any more; {ASK}")
    return drawn.windows


def _same(drawn: Calibration, record: dict[str, object]) -> bool:
    return drawn.sha256 == record.get("sha256")

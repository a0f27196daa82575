"""ONNX Runtime GenAI's own tokenizer against the checkpoint's: in a finished folder, and before there is one."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ....converter.core.errors import InputError
from ....converter.model.loading import load_tokenizer
from ....converter.model.tokens import PROBE, put_around
from ..session import one_line
from ..tokenizer_files import write_tokenizer
from .check_windows import TEXTS, Tokenized, tokenize_texts

ALONE = {"model": {"type": "gpt2", "context_length": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}}
"""A genai_config.json for a tokenizer without a model."""


def check_tokenizer(tokenizer: Any, expected: Tokenized, where: Path) -> None:
    """GenAI must read `TEXTS` as the checkpoint's tokenizer does, and write them again.

    Args:
        tokenizer: GenAI's.
        expected: what the checkpoint's makes of them.
        where: named in errors.

    Raises:
        InputError: names the text and the place.
    """
    for text, tokens, decoded in zip(TEXTS, expected.tokens, expected.decoded, strict=True):
        ids = [int(token) for token in tokenizer.encode(text)]
        if ids and ids[0] == expected.begin and ids[0] != tokens[0]:
            ids = ids[1:]
        if tuple(ids) != tokens:
            place = next((at for at, pair in enumerate(zip(ids, tokens, strict=False)) if pair[0] != pair[1]), None)
            raise InputError(
                f"{where}: ONNX Runtime GenAI's tokenizer reads {text[:20]!r}... otherwise than the checkpoint's"
                + (f", from token {place} on" if place is not None else f": {len(ids)} tokens, not {len(tokens)}")
            )
        written = str(tokenizer.decode(np.asarray(tokens, dtype=np.int32)))
        if written.strip() != decoded.strip():
            raise InputError(f"{where}: ONNX Runtime GenAI's tokenizer writes {written[:20]!r}, not {decoded[:20]!r}")


def left_out(checkpoint: Path, folder: Path) -> list[str]:
    """What the checkpoint's tokenizer puts before every text and GenAI's does not.

    Args:
        checkpoint: its directory.
        folder: the finished export.
    """
    import onnxruntime_genai

    tokenizer: Any = load_tokenizer(checkpoint)
    before = put_around(tokenizer).before
    ids = tuple(int(token) for token in onnxruntime_genai.Tokenizer(str(folder)).encode(PROBE))
    return [] if ids[: len(before)] == before else list(tokenizer.convert_ids_to_tokens(list(before)))


def check_readable(checkpoint: Path, vocabulary: int, context: int) -> None:
    """Refuse a checkpoint whose tokenizer GenAI does not read, before any work: a tokenizer needs no model there.

    Args:
        checkpoint: its directory.
        vocabulary: rows of its embedding.
        context: positions it knows.

    Raises:
        InputError: as `check_tokenizer`; or GenAI cannot open it.
    """
    import onnxruntime_genai

    expected = tokenize_texts(checkpoint, vocabulary)
    with TemporaryDirectory(prefix="lowrank-tokenizer-") as folder:
        write_tokenizer(checkpoint, Path(folder), context)
        (Path(folder) / "genai_config.json").write_text(json.dumps(ALONE), encoding="utf-8")
        try:
            tokenizer = onnxruntime_genai.Tokenizer(folder)
            check_tokenizer(tokenizer, expected, checkpoint)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # a RuntimeError, or what pybind11 makes of a C++ exception
            raise InputError(
                f"{checkpoint}: ONNX Runtime GenAI cannot read its tokenizer: {one_line(error)}"
            ) from error

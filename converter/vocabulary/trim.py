"""A model folder -> the same model with fewer tokens: rows of embedding and head, tokenizer, configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint.reader import CheckpointReader, read_json
from ..checkpoint.writer import CheckpointWriter
from ..core.errors import InputError, UsageError
from ..core.progress import Progress
from ..model.loading import load_tokenizer
from ..model.source import Source
from ..model.tokens import CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, chat_templates
from ..statistics.calibration import tokenize
from ..statistics.mixture import samples, texts_in
from ..storage.files import replacing
from ..texts.corpus import is_windows, read_corpus
from .rewriting import named_ids, rewritten_config, rewritten_tokenizer, rewritten_tokenizer_config
from .round_trip import check_round_trip, script_lines
from .selection import count_tokens, kept_tokens, renumbered
from .tokenizer_file import TokenizerFile, read_tokenizer_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT_FILE = "kept_tokens.npy"
"""Of a trimmed folder: the old id of every new one."""
STALE = ("vocab.*", "merges.txt", "added_tokens.json", "*.model")
"""Other forms of the same vocabulary, which would contradict tokenizer.json."""


@dataclass(frozen=True)
class Trimmed:
    """A folder with a smaller vocabulary.

    Attributes:
        path: the folder.
        kept: old id of every new one (n,), int64.
        rows: of the old embedding.
        parameters: that were dropped.
    """

    path: Path
    kept: NDArray[np.int64]
    rows: int
    parameters: int


def trim(
    source: Source, out: Path, *, texts: Sequence[str], size: int | None, force: bool = False, progress: Progress
) -> Trimmed:
    """Write a model with fewer tokens. One block, or one tensor outside, is in memory at a time.

    Args:
        source: the dense model.
        out: the folder to make; it appears whole or not at all.
        texts: specs as for calibration, whose tokens are counted.
        size: tokens of the new vocabulary; by default those that the texts use, and what any text needs.
        force: replace `out`.
        progress: receives tensors.

    Raises:
        UsageError: no text, or a size that cannot be.
        InputError: a text or the tokenizer cannot be used, or not every text comes back from fewer tokens.
    """
    if not texts:
        raise UsageError("keep_vocabulary: give at least one text, whose tokens are kept")
    for text in texts:
        if is_windows(text) or texts_in(text) != (text,) or samples(text):
            raise InputError(
                f"keep_vocabulary {text}: only a text's tokens are counted; give each in an option of its own"
            )
    reader, tokenizer = source.reader(), read_tokenizer_file(source.path)
    if reader.around is not None:
        raise InputError(
            f"{source.spec}: the vocabulary of a vision-language model is not cut: its processor names ids"
        )
    rows = reader.shape(source.family.embedding + ".weight")[0]
    whole = load_tokenizer(source.path)
    counts, needed = _counted(whole, texts, rows), _named(source.path, whole, tokenizer)
    kept = kept_tokens(tokenizer, counts, needed, size, rows)
    ids = renumbered(tokenizer, kept)
    order = np.array(sorted(ids, key=ids.__getitem__), dtype=np.int64)
    with replacing(out, force=force, folder=True) as folder:
        dropped = _write(reader, source, folder, order, progress)
        documents = {
            CONFIG: {**rewritten_config(reader.config, ids), "vocab_size": len(order)},
            TOKENIZER: rewritten_tokenizer(tokenizer, ids),
        }
        for name, rewrite in ((GENERATION, rewritten_config), (TOKENIZER_CONFIG, rewritten_tokenizer_config)):
            if (source.path / name).is_file():
                documents[name] = rewrite(read_json(source.path / name), ids)
        for pattern in STALE:
            for file in folder.glob(pattern):
                file.unlink()
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        np.save(folder / KEPT_FILE, order)
        check_round_trip(whole, load_tokenizer(folder), script_lines())
    return Trimmed(out, order, rows, dropped)


def _write(reader: CheckpointReader, source: Source, folder: Path, order: NDArray[np.int64], progress: Progress) -> int:
    """Write the tensors, and the tokenizer's files as they are; returns how many parameters were dropped."""
    writer, rows, dropped = CheckpointWriter(folder), torch.from_numpy(order), 0
    vocabulary = {source.family.embedding + ".weight", source.family.head + ".weight"}
    with progress.stage("writing the model with fewer tokens", len(reader.names)) as advance:
        for number, (_, names) in enumerate(groupby(reader.names, key=lambda name: _shard(name, source))):
            shard = {name: reader.tensor(name) for name in names}
            for name in vocabulary & shard.keys():
                dropped += (len(shard[name]) - len(rows)) * shard[name].shape[1]
                shard[name] = shard[name][rows]
            writer.write_shard(f"{number:05d}", shard)
            advance(len(shard))
    writer.finish(reader, reader.config, {})
    return dropped


def _shard(name: str, source: Source) -> str:
    """What is written together: a block, or one tensor outside the blocks."""
    inside = source.family.blocks + "."
    return name.removeprefix(inside).split(".")[0] if name.startswith(inside) else name


def _counted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: int) -> NDArray[np.int64]:
    counts = np.zeros(rows, dtype=np.int64)
    for text in texts:
        counts += count_tokens(tokenize(tokenizer, read_corpus(text, "calibration", tokenizer).text), rows)
    return counts


def _named(folder: Path, tokenizer: PreTrainedTokenizerBase, file: TokenizerFile) -> set[int]:
    """Ids that configurations name, that the tokenizer puts around texts, and that chat templates are written with."""
    found: set[int] = set()
    for name in (CONFIG, GENERATION):
        if (folder / name).is_file():
            found |= set(named_ids(read_json(folder / name)))
    found |= set(tokenizer("")["input_ids"])
    for template in chat_templates(tokenizer).values():
        found |= set(tokenizer(template, add_special_tokens=False)["input_ids"])
    return found & {*file.pieces, *file.added.values()}

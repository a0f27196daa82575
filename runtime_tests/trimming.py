"""What a smaller vocabulary costs: bits per byte, beside the same bytes saved by a storage type of the whole table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..converter.core.progress import Progress
from ..converter.model.loading import load, load_tokenizer
from ..converter.model.source import Source
from ..converter.texts.corpus import read_corpus
from ..converter.vocabulary.trim import Trimmed
from ..exporters.chosen import CHOSEN
from ..exporters.registry import requested
from .backends.torch_reference import TorchBackend
from .metrics.bits_per_byte import BitsPerByte, bits_per_byte, passages

if TYPE_CHECKING:
    from ..exporters.budget.format import Format

REFERENCE = "q8_0"
"""The type in which both tables are counted."""


@dataclass(frozen=True)
class TextCost:
    """One text under both vocabularies.

    Attributes:
        tokens: before and after.
        whole, trimmed: bits per byte of the dense model and of the trimmed one.
        typed: of the dense model with its whole table in `TrimCost.type`; None where no type is that small.
    """

    tokens: tuple[int, int]
    whole: BitsPerByte
    trimmed: BitsPerByte
    typed: BitsPerByte | None


@dataclass(frozen=True)
class TrimCost:
    """What was saved and what it costs.

    Attributes:
        rows: before and after.
        table_bytes: of embedding and head in `REFERENCE`, before and after.
        type: the largest storage type in which the whole table takes no more than the trimmed one; None if none does.
        typed_bytes: of the whole table in it.
        texts: spec -> its cost.
    """

    rows: tuple[int, int]
    table_bytes: tuple[int, int]
    type: str | None
    typed_bytes: int
    texts: dict[str, TextCost] = field(default_factory=dict)

    @property
    def advised(self) -> bool:
        """Whether no text is better off with all tokens and a smaller type."""
        return all(cost.typed is None or cost.trimmed.value <= cost.typed.value for cost in self.texts.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        texts = {}
        for name, cost in self.texts.items():
            above, error = cost.trimmed.above(cost.whole)
            texts[name] = {
                "tokens": list(cost.tokens),
                "bytes": int(cost.whole.bytes.sum()),
                "bits_per_byte": cost.whole.value,
                "trimmed_bits_per_byte": cost.trimmed.value,
                "difference": above,
                "standard_error": error,
                "typed_bits_per_byte": None if cost.typed is None else cost.typed.value,
            }
        return {
            "rows": list(self.rows),
            "table_bytes": list(self.table_bytes),
            "type": self.type,
            "typed_bytes": self.typed_bytes,
            "advised": self.advised,
            "texts": texts,
        }

    def lines(self) -> Iterator[str]:
        """The same in words."""
        before, after = self.table_bytes
        yield (
            f"{self.rows[0]:,} tokens -> {self.rows[1]:,}; table in {REFERENCE} {before / 1e6:.1f} MB -> "
            f"{after / 1e6:.1f} MB"
        )
        for name, cost in self.texts.items():
            above, error = (x / cost.whole.value for x in cost.trimmed.above(cost.whole))
            tokens = cost.tokens[1] / cost.tokens[0] - 1
            typed = "" if cost.typed is None else f"; all tokens in {self.type} {cost.typed.value:.4f}"
            found = f"{cost.whole.value:.4f} bits per byte -> {cost.trimmed.value:.4f} ({above:+.2%} ± {error:.2%})"
            yield f"{name}: {found}, {tokens:+.1%} tokens{typed}"
        if not self.advised:
            typed = f"all tokens in {self.type} take {self.typed_bytes / 1e6:.1f} MB"
            yield f"advised against: {typed}, no more than these in {REFERENCE}, and cost less"


def trim_cost(
    source: Source, trimmed: Trimmed, texts: list[str], *, count: int, characters: int, progress: Progress
) -> TrimCost:
    """Measure a trimmed model against the one that it was made from, in torch.

    Args:
        source: the dense model.
        trimmed: made from it.
        texts: specs, of which the evaluation part is read.
        count, characters: passages of each, and their length.
        progress: receives passages.
    """
    reader, family = source.reader(), source.family
    rows, width = reader.shape(family.embedding + ".weight")
    tables = 1 if bool(reader.config.get("tie_word_embeddings")) or family.head + ".weight" not in reader.names else 2
    format = requested("gguf", CHOSEN).budget(progress)
    before, after = (tables * format.bytes((n, width), REFERENCE) for n in (rows, len(trimmed.kept)))
    types = [t for t in format.types if format.fits(t, width) and tables * format.bytes((rows, width), t) <= after]
    type = max(types, key=lambda name: format.bytes((rows, width), name), default=None)
    read = {text: passages(read_corpus(text, "evaluation").text, count, characters) for text in texts}

    def scored(path: Path, label: str, table: str | None = None) -> dict[str, BitsPerByte]:
        tokenizer = load_tokenizer(path)
        with _opened(path, format, table) as backend, progress.stage(label, sum(map(len, read.values()))) as advance:
            return {text: bits_per_byte(backend, tokenizer, pieces, advance) for text, pieces in read.items()}

    whole, fewer = scored(source.path, "all tokens"), scored(trimmed.path, "fewer tokens")
    typed = None if type is None else scored(source.path, f"all tokens in {type}", type)
    costs = {
        text: TextCost(
            (whole[text].tokens, fewer[text].tokens), whole[text], fewer[text], None if typed is None else typed[text]
        )
        for text in texts
    }
    size = 0 if type is None else tables * format.bytes((rows, width), type)
    return TrimCost((rows, len(trimmed.kept)), (before, after), type, size, costs)


@contextmanager
def _opened(path: Path, format: Format, table: str | None) -> Iterator[TorchBackend]:
    """A dense model in float32, its embedding and head rounded to a type if one is given."""
    import torch

    model = load(path, dtype=torch.float32)
    if table is not None:
        weights = {id(module.weight): module.weight for module in _tables(model)}
        with torch.no_grad():
            for weight in weights.values():
                weight.copy_(format.round_vocabulary(weight.float(), table, None))
    backend = TorchBackend(model)
    try:
        yield backend
    finally:
        backend.close()


def _tables(model: Any) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]

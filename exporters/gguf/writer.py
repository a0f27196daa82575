"""Writes a checkpoint, factored or dense, as one GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError, UsageError
from ...converter.core.progress import Progress
from ...converter.families.family import Gguf
from ...converter.families.table import family_to_load, gguf_of
from ...converter.storage.files import replacing
from ..artifact import Artifact, TensorRecord
from ..chosen import CHOSEN, recorded_forms
from .chosen import chosen_types
from .encoding import encode, needs_ggml
from .file import open_writer, verify_file, write_tensors
from .metadata import Hyperparameters, read_hyperparameters
from .mixes import MIXES, Quantization, fallback_lines
from .mixes import records as tensor_records
from .names import interleave_rows, rotary_heads
from .rounding_choice import Rounding
from .shapes import check_shapes
from .tensors import PlannedTensor, plan_tensors, tensor_values
from .types import INTEGERS, TYPES
from .vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from ...converter.model.blocks import BlockSource

LAYOUTS = ("native", "dense")
PIVOT_BITS = 6.5  # below, C amplifies the rounding of P and its own beyond use: docs/gguf.md


@dataclass(frozen=True)
class Encoding:
    """What tensors are encoded with.

    Attributes:
        rounded: GGUF name -> file of rows that are encoded already, of a stack one per expert.
        importance: GGUF name -> importance of its columns.
        library: of ggml, where a type needs it.
    """

    rounded: Mapping[str, Sequence[Path]]
    importance: Mapping[str, NDArray[np.float32]]
    library: Path | None


def export_gguf(
    checkpoint: Path,
    out: Path,
    asked: Quantization,
    *,
    layout: str = "native",
    rounding: Rounding | None = None,
    force: bool = False,
    progress: Progress,
) -> Artifact:
    """Write a checkpoint as one GGUF file. Only one tensor is in memory at a time, with aware rounding one block.

    The file is written beside `out`, read back and compared with what was meant, then renamed into place; whatever
    goes wrong leaves neither a partial file nor a changed `out`.

    Args:
        checkpoint: a factored checkpoint or a dense Hugging Face directory.
        out: the file to write.
        asked: the types; for `chosen.CHOSEN` without any, those of the checkpoint's recipe. Norms and biases stay F32;
            matrices whose rows do not fit a type's blocks get its fallback, and each is reported. Types that gguf-py
            does not encode are encoded by llama.cpp's ggml, built once.
        layout: "native" stores the factors of each compressed linear (needs a patched llama.cpp); "dense" multiplies
            them out (runs anywhere). A dense checkpoint gives the same ordinary file either way.
        rounding: plain by default.
        force: replace an existing file.
        progress: receives stages and fallbacks.

    Returns:
        The record of the file. Its layout is "dense" where the file holds no factors.

    Raises:
        UsageError: unknown layout, `out` exists, or a type needs an importance, and there is none.
        InputError: an unsupported family, tensor or tokenizer, or a damaged checkpoint.
        ResourceError: no space left, or ggml cannot be built.
    """
    rounding = rounding or Rounding()
    asked = replace(asked, rounding=rounding.recorded)
    if layout not in LAYOUTS:
        raise UsageError(f"unknown GGUF layout {layout!r}; choose from {', '.join(LAYOUTS)}")
    if out.is_dir() or (out.exists() and not force):
        raise UsageError(f"{out} exists; choose another name" + ("" if out.is_dir() else " or force"))
    reader = CheckpointReader(checkpoint)
    of = gguf_of(reader.config)
    asked = with_choice(asked, reader)
    hyperparameters = read_hyperparameters(reader.config)
    native = layout == "native" and bool(reader.ranks)
    sources = plan_tensors(reader, of, hyperparameters, native=native)
    shapes = {source.name: source.shape for source in sources}
    check_shapes(shapes, of, hyperparameters)
    vocabulary = vocabulary_of(reader)
    records = tensor_records(shapes, asked)
    importance = rounding.importance(records)
    for line in (*fallback_lines(records), *vocabulary.notes):
        progress.note(line)
    coarse = asked.mix in MIXES and TYPES[MIXES[asked.mix].base].bits < PIVOT_BITS
    if native and reader.layout == "pivot" and coarse:
        progress.note(f"pivot rows lose far more to {asked.mix} than two factors do; q8_0 or q6_k suits them")
    if not of.windows and hyperparameters.sliding_window and hyperparameters.sliding_window < hyperparameters.context:
        progress.note(f"llama.cpp attends beyond this model's sliding window of {hyperparameters.sliding_window}")
    calibrated, head, rounds = None, rounding.weighed_head(records), any(map(rounding.encodes, records))
    if head is not None or rounds:
        from ..rounding.calibrated import open_calibrated

        calibrated = open_calibrated(reader, rounding.calibration, rounding.device, progress)
    if calibrated is not None and head is not None:
        from .head_importance import head_importance

        importance = {**importance, head: head_importance(*calibrated, progress)}
    library = library_for(records, progress, weighed=importance, rounding=rounding)
    with (
        replacing(out, force=force, folder=False) as partial,
        _rounded_linears(
            calibrated if rounds else None, records, library, out, progress, aligned=asked.mix == CHOSEN
        ) as rounded,
    ):
        encoding = Encoding(rounded, importance, library)
        stored = reader.layout if native else "dense"
        opened = open_writer(partial, reader, of, hyperparameters, asked, vocabulary, layout=stored)
        with closing(opened) as writer, progress.stage(f"writing {out.name}", len(sources)) as advance:
            pairs = zip(sources, records, strict=True)
            encoded = (_encoded(source, record, reader, of, hyperparameters, encoding) for source, record in pairs)
            write_tensors(writer, records, encoded, advance)
        verify_file(partial, records)
    return Artifact(
        path=out,
        format="gguf",
        quantization=asked.mix,
        layout="native" if native else "dense",
        bytes=out.stat().st_size,
        parameters=sum(prod(record.shape) for record in records if record.type != INTEGERS),
        tensors=records,
    )


def library_for(
    records: Iterable[TensorRecord],
    progress: Progress,
    *,
    weighed: Collection[str] = (),
    rounding: Rounding | None = None,
) -> Path | None:
    """llama.cpp's ggml library, built where there is none; None where nothing needs it.

    Args:
        records: the tensors of a file.
        progress: receives the build.
        weighed: names of the tensors whose columns have an importance.
        rounding: of the weights; what GPTQ rounds, ggml decodes.

    Raises:
        ResourceError, InputError: as `ensure_runtime` says.
    """
    from ..llamacpp.runtime import ggml_library

    rounds = rounding is not None and any(map(rounding.encodes, records))
    if rounds or any(needs_ggml(record.type, weighed=record.name in weighed) for record in records):
        return ggml_library(progress)
    return None


def with_choice(asked: Quantization, reader: CheckpointReader) -> Quantization:
    """The types asked for; for `CHOSEN` those of the checkpoint's recipe.

    Raises:
        UsageError: it chose none.
    """
    if asked.mix != CHOSEN or asked.chosen is not None:
        return asked
    return replace(asked, chosen=chosen_types(recorded_forms(reader), gguf_of(reader.config)))


def check_acceptable(
    reader: CheckpointReader, asked: Quantization | None = None, layout: str = "native"
) -> tuple[TensorRecord, ...]:
    """Refuse, from headers and texts alone, what writing a checkpoint or what is made of it would refuse.

    Args:
        reader: of the checkpoint.
        asked: the types, where they are known.
        layout: as of `export_gguf`.

    Returns:
        The tensors of the file; none where the types are not known.

    Raises:
        UsageError: the types contradict the model.
        InputError: the family, a setting, a tensor, the size of a head or the tokenizer has no place in a GGUF file.
    """
    of, hyper = gguf_of(reader.config), read_hyperparameters(reader.config)
    native = layout == "native" and bool(reader.ranks)
    shapes = {source.name: source.shape for source in plan_tensors(reader, of, hyper, native=native)}
    check_shapes(shapes, of, hyper)
    if of.interleaved and hyper.head_dim % 2:
        raise InputError(f"{reader.path}: heads of {hyper.head_dim} numbers do not split into halves that rotate")
    vocabulary_of(reader)
    return () if asked is None else tensor_records(shapes, asked)


def vocabulary_of(reader: CheckpointReader) -> Vocabulary:
    """The vocabulary of a checkpoint, with a token per row of its embedding; raises as `read_vocabulary` says."""
    return read_vocabulary(reader.path, reader.shape(family_to_load(reader.config, "").embedding + ".weight")[0])


def _encoded(
    source: PlannedTensor,
    record: TensorRecord,
    reader: CheckpointReader,
    of: Gguf,
    hyper: Hyperparameters,
    encoding: Encoding,
) -> NDArray[np.generic]:
    """One tensor as the file holds it; of a stack one matrix at a time is there in float32."""
    if source.name not in encoding.rounded:
        weighed = encoding.importance.get(record.name)
        found = [
            encode(
                record.name,
                tensor_values(matrix, reader, of, hyper),
                record.type,
                encoding.library,
                weighed[number] if source.experts and weighed is not None else weighed,
            )
            for number, matrix in enumerate(source.matrices)
        ]
        return np.stack(found) if source.experts else found[0]
    files = encoding.rounded[source.name]
    rows: NDArray[np.uint8] = np.stack([np.load(file) for file in files]) if source.experts else np.load(files[0])
    heads = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads)
    return rows if heads is None else interleave_rows(rows, heads)


def _rounded_linears(
    calibrated: tuple[BlockSource, list[Tensor]] | None,
    records: tuple[TensorRecord, ...],
    library: Path | None,
    out: Path,
    progress: Progress,
    *,
    aligned: bool,
) -> AbstractContextManager[Mapping[str, Sequence[Path]]]:
    """Files of the linears that GPTQ encodes, see `gptq_tensors.rounded_files`; none where the rounding is plain."""
    if library is None or calibrated is None:
        return nullcontext({})
    from .gptq_tensors import rounded_files

    return rounded_files(*calibrated, records, library, out, progress, aligned=aligned)

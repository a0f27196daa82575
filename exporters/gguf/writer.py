"""Writes a checkpoint, factored or dense, as one GGUF file, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError, UsageError
from ...converter.core.progress import Advance, Progress
from ...converter.families.family import Gguf
from ...converter.families.settings import check_settings
from ...converter.families.table import family_to_load, gguf_of
from ...converter.model.config_check import check_config
from ...converter.storage.files import replacing
from ...converter.storage.gguf_header import read_header
from ..artifact import Artifact, TensorRecord
from .chosen import chosen_types, recorded_forms
from .encoding import encode, needs_ggml
from .metadata import EXPORTED_AS, Hyperparameters, add_hyperparameters, read_hyperparameters, rope_frequency_factors
from .mixes import CHOSEN, MIXES, Quantisation, fallback_lines
from .mixes import records as tensor_records
from .names import gguf_name, interleave_rows, rotary_heads
from .rounding_choice import Rounding
from .shapes import check_shapes
from .types import INTEGERS, TYPES
from .vocabulary import Vocabulary, add_vocabulary, read_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

LAYOUTS = ("native", "dense")
LOWRANK_VERSIONS = {"two-factor": 1, "pivot": 2}
ROPE_FREQUENCIES = "rope_freqs.weight"
ALPHA = 0.4  # of aware rounding in chosen types, as of the fit that they are chosen for
PIVOT_BITS = 6.5  # below, C amplifies the rounding of P and its own beyond use: docs/gguf.md


@dataclass(frozen=True)
class Source:
    """One tensor to write: its GGUF name and shape, and the checkpoint tensors it is made of.

    Several parts are multiplied out. A tensor without parts is derived: rope frequencies, or the order of rows that
    were in order in the checkpoint but are not in llama.cpp's rotary order.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """What the encoding of tensors goes by.

    Attributes:
        rounded: GGUF name -> file of rows that are encoded already.
        importance: GGUF name -> importance of its columns.
        library: of ggml, where a type needs it.
    """

    rounded: Mapping[str, Path]
    importance: Mapping[str, NDArray[np.float32]]
    library: Path | None


def export_gguf(
    checkpoint: Path,
    out: Path,
    asked: Quantisation,
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
        asked: the types; for `mixes.CHOSEN` without any, those of the checkpoint's recipe. Norms and biases stay F32;
            matrices whose rows do not fit a type's blocks get its fallback, and each is reported. Types that gguf-py
            does not encode are encoded by llama.cpp's ggml, built once.
        layout: "native" stores the factors of each compressed linear (needs a patched llama.cpp); "dense" multiplies
            them out (runs anywhere). A dense checkpoint gives the same ordinary file either way.
        rounding: what the rounding is told; nothing by default.
        force: replace an existing file.
        progress: told about stages and fallbacks.

    Returns:
        The record of the file. Its layout is "dense" where the file holds no factors.

    Raises:
        UsageError: unknown layout, `out` exists, or a type needs an importance, and there is none.
        InputError: an unsupported family, tensor or tokenizer, or a damaged checkpoint.
        ResourceError: no space left, or ggml cannot be built.
    """
    rounding = rounding or Rounding()
    asked = replace(asked, rounding=rounding.said)
    if layout not in LAYOUTS:
        raise UsageError(f"unknown GGUF layout {layout!r}; choose from {', '.join(LAYOUTS)}")
    if out.is_dir() or (out.exists() and not force):
        raise UsageError(f"{out} exists; choose another name" + ("" if out.is_dir() else " or force"))
    reader = CheckpointReader(checkpoint)
    of = gguf_of(reader.config)
    if asked.mix == CHOSEN and asked.chosen is None:
        asked = replace(asked, chosen=chosen_types(recorded_forms(reader), of))
    hyperparameters = read_hyperparameters(reader.config)
    native = layout == "native" and bool(reader.ranks)
    sources = plan_tensors(reader, of, hyperparameters, native=native)
    shapes = {source.name: source.shape for source in sources}
    check_shapes(shapes, of, hyperparameters)
    vocabulary = vocabulary_of(reader)
    records = tensor_records(shapes, asked)
    importance, alpha = rounding.importance(records), ALPHA if asked.mix == CHOSEN else 0.0
    for line in (*fallback_lines(records), *vocabulary.notes):
        progress.note(line)
    coarse = asked.mix in MIXES and TYPES[MIXES[asked.mix].base].bits < PIVOT_BITS
    if native and reader.layout == "pivot" and coarse:
        progress.note(f"pivot rows lose far more to {asked.mix} than two factors do; q8_0 or q6_k suits them")
    if hyperparameters.sliding_window and hyperparameters.sliding_window < hyperparameters.context:
        progress.note(f"llama.cpp attends beyond this model's sliding window of {hyperparameters.sliding_window}")
    library = library_for(records, progress, weighed=importance, rounded=rounding.how == "aware")
    with (
        replacing(out, force=force, folder=False) as partial,
        _rounded_linears(reader, records, rounding, out, library, progress, alpha) as rounded,
    ):
        given = Given(rounded, importance, library)
        said = reader.layout if native else "dense"
        opened = open_writer(partial, reader, of, hyperparameters, asked, vocabulary, layout=said)
        with closing(opened) as writer, progress.stage(f"writing {out.name}", len(sources)) as advance:
            _write(writer, reader, of, hyperparameters, sources, records, given, advance)
        verify_file(partial, records)
    return Artifact(
        path=out,
        format="gguf",
        quantisation=asked.mix,
        layout="native" if native else "dense",
        bytes=out.stat().st_size,
        parameters=sum(prod(record.shape) for record in records if record.type != INTEGERS),
        tensors=records,
    )


def library_for(
    records: Iterable[TensorRecord], progress: Progress, *, weighed: Collection[str] = (), rounded: bool = False
) -> Path | None:
    """llama.cpp's ggml library, built where there is none; None where nothing needs it.

    Args:
        records: the tensors of a file.
        progress: told about the build.
        weighed: names of the tensors whose columns have an importance.
        rounded: linears are rounded aware of their inputs, which ggml decodes.

    Raises:
        ResourceError, InputError: as `ensure_runtime` says.
    """
    from ..llamacpp.runtime import ggml_library

    blocks = rounded and any(_is_rounded(record) for record in records)
    if blocks or any(needs_ggml(record.type, weighed=record.name in weighed) for record in records):
        return ggml_library(progress)
    return None


def _is_rounded(record: TensorRecord) -> bool:
    """Whether aware rounding encodes a tensor: a matrix of a block, in a type with blocks of weights."""
    return record.name.startswith("blk.") and len(record.shape) > 1 and TYPES[record.type].block > 1


def check_acceptable(reader: CheckpointReader) -> None:
    """Refuse, from headers and texts alone, what writing a checkpoint or what is made of it would refuse.

    Raises:
        InputError: the family, a setting, a tensor, the size of a head or the tokenizer has no place in a GGUF file.
    """
    of, hyper = gguf_of(reader.config), read_hyperparameters(reader.config)
    shapes = {source.name: source.shape for source in plan_tensors(reader, of, hyper, native=bool(reader.ranks))}
    check_shapes(shapes, of, hyper)
    if of.interleaved and hyper.head_dim % 2:
        raise InputError(f"{reader.path}: heads of {hyper.head_dim} numbers do not split into halves that rotate")
    vocabulary_of(reader)


def plan_tensors(reader: CheckpointReader, of: Gguf, hyper: Hyperparameters, *, native: bool) -> list[Source]:
    """Every tensor of the file in the order llama.cpp's own converter writes them: embedding, blocks, head.

    Raises:
        InputError: a tensor that the family does not have, or no output head.
    """
    sources: list[Source] = []
    family, where = family_to_load(reader.config, str(reader.path)), str(reader.path)
    left_out = check_config(reader, family)
    check_settings(reader.config, family, where, "gguf")
    for name in reader.names:
        if name in left_out:
            continue
        if hyper.tied and name == "lm_head.weight":
            continue  # the embedding again; llama.cpp reads it from there
        source = _source(name, reader, of, native=native)
        if source is not None:
            sources.append(source)
    if native and reader.layout == "pivot":
        sources += _rotary_orders(sources, of, hyper)
    names = {source.name.split(".")[0] for source in sources}
    if not hyper.tied and "output" not in names:
        raise InputError(f"{reader.path}: no lm_head.weight, though config.json says the head is not tied")
    if "token_embd" not in names:
        raise InputError(f"{reader.path}: no model.embed_tokens.weight")
    factors = rope_frequency_factors(hyper)
    if factors is not None:
        sources.append(Source(ROPE_FREQUENCIES, factors.shape, ()))
    return sorted(sources, key=_file_order)


def _source(name: str, reader: CheckpointReader, of: Gguf, *, native: bool) -> Source | None:
    """What becomes of one checkpoint tensor; None if it is not stored under its own name."""
    if native or not name.endswith((U_SUFFIX, V_SUFFIX, P_SUFFIX, C_SUFFIX, PERM_SUFFIX)):
        stored = gguf_name(name, of)
        return None if stored is None else Source(stored, reader.shape(name), (name,))
    if not name.endswith((V_SUFFIX, P_SUFFIX)):
        return None  # multiplied out where V or P is met
    linear = name.removesuffix(V_SUFFIX).removesuffix(P_SUFFIX)
    stored = gguf_name(linear + ".weight", of)
    left = linear + (U_SUFFIX if name.endswith(V_SUFFIX) else C_SUFFIX)
    (rows, _), (right_rows, columns) = reader.shape(left), reader.shape(name)
    shape = (rows if left.endswith(U_SUFFIX) else right_rows + rows, columns)
    return None if stored is None else Source(stored, shape, (left, name))


def _rotary_orders(sources: list[Source], of: Gguf, hyper: Hyperparameters) -> list[Source]:
    """Orders for linears whose pivot rows are in order, but not in llama.cpp's rotary order."""
    shapes = {source.name: source.shape for source in sources}
    missing = []
    for name, shape in shapes.items():
        perm = name.removesuffix(P_SUFFIX) + PERM_SUFFIX
        if (
            name.endswith(P_SUFFIX)
            and perm not in shapes
            and rotary_heads(perm, of, hyper.heads, hyper.key_value_heads)
        ):
            rows = shape[0] + shapes[name.removesuffix(P_SUFFIX) + C_SUFFIX][0]
            missing.append(Source(perm, (rows,), ()))
    return missing


def verify_file(path: Path, records: tuple[TensorRecord, ...]) -> None:
    """Read a file back: every tensor's name, shape, type and extent must be what was meant.

    Raises:
        InputError: something differs; names the first tensor.
    """
    found = {tensor.name: tensor for tensor in read_header(path).tensors}
    for record in records:
        tensor = found.pop(record.name, None)
        if tensor is None:
            raise InputError(f"{path}: read-back: tensor {record.name!r} is missing")
        if (tensor.shape, tensor.type, tensor.bytes) != (record.shape, record.type, record.bytes):
            raise InputError(f"{path}: read-back: {record.name!r} is {tensor.shape} {tensor.type}, not {record}")
    if found:
        raise InputError(f"{path}: read-back: unexpected tensor {next(iter(found))!r}")


def _file_order(source: Source) -> tuple[int, int, str]:
    parts = source.name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), source.name
    return (0 if parts[0] in ("token_embd", "rope_freqs") else 2), 0, source.name


def vocabulary_of(reader: CheckpointReader) -> Vocabulary:
    """The vocabulary of a checkpoint, with a token per row of its embedding; raises as `read_vocabulary` says."""
    return read_vocabulary(reader.path, reader.shape("model.embed_tokens.weight")[0])


def open_writer(
    path: Path,
    reader: CheckpointReader,
    of: Gguf,
    hyper: Hyperparameters,
    asked: Quantisation,
    vocabulary: Vocabulary,
    *,
    layout: str,
) -> GGUFWriter:
    """A writer with all metadata of a model set; `layout` is what a factored checkpoint's file says of itself."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    writer = GGUFWriter(path, of.architecture)
    writer.add_type("model")
    writer.add_name(reader.path.resolve().name)
    writer.add_quantized_by(f"{EXPORTED_AS}{asked}")
    writer.add_file_type(asked.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_hyperparameters(writer, hyper)
    if reader.lowrank:
        if layout in LOWRANK_VERSIONS:  # what makes an unpatched library's refusal explainable
            writer.add_uint32("lowrank.version", LOWRANK_VERSIONS[layout])
        writer.add_string("lowrank.layout", layout)
        writer.add_float32("lowrank.retention", float(reader.lowrank.get("retention", 1.0)))
        writer.add_string("lowrank.method", str(reader.lowrank.get("method", "")))
        writer.add_string("lowrank.recipe", reader.recipe_text)
    add_vocabulary(writer, vocabulary)
    return writer


def _write(
    writer: GGUFWriter,
    reader: CheckpointReader,
    of: Gguf,
    hyper: Hyperparameters,
    sources: list[Source],
    records: tuple[TensorRecord, ...],
    given: Given,
    advance: Advance,
) -> None:
    write_tensors(
        writer,
        records,
        (_encoded(source, record, reader, of, hyper, given) for source, record in zip(sources, records, strict=True)),
        advance,
    )


def write_tensors(
    writer: GGUFWriter, records: Sequence[TensorRecord], encoded: Iterable[NDArray[np.generic]], advance: Advance
) -> None:
    """Write header, metadata and every tensor, one in memory at a time, down to the disk.

    Args:
        writer: with all metadata set.
        records: what the file holds.
        encoded: the bytes of each, in that order.
        advance: told about each.
    """
    from gguf import GGMLQuantizationType

    for record in records:
        raw_type = GGMLQuantizationType[record.type.upper()]
        writer.add_tensor_info(record.name, record.shape, np.dtype(np.float32), record.bytes, raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    for data in encoded:
        # Not write_tensor_data: numpy's tofile loses the reason of a failed write.
        writer.write_padding(file, file.tell())
        file.write(data.reshape(-1).view(np.uint8).data)
        writer.write_padding(file, data.nbytes)
        advance(1)
    file.flush()
    os.fsync(file.fileno())


def _encoded(
    source: Source, record: TensorRecord, reader: CheckpointReader, of: Gguf, hyper: Hyperparameters, given: Given
) -> NDArray[np.generic]:
    """One tensor as the file holds it."""
    if source.name not in given.rounded:
        values = tensor_values(source, reader, of, hyper)
        return encode(record.name, values, record.type, given.library, given.importance.get(record.name))
    rows: NDArray[np.uint8] = np.load(given.rounded[source.name])
    heads = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads)
    return rows if heads is None else interleave_rows(rows, heads)


@contextmanager
def _rounded_linears(
    reader: CheckpointReader,
    records: tuple[TensorRecord, ...],
    rounding: Rounding,
    out: Path,
    library: Path | None,
    progress: Progress,
    alpha: float,
) -> Iterator[Mapping[str, Path]]:
    """Files of the linears that aware rounding has encoded; none where the rounding is plain."""
    types = {record.name: record.type for record in records if record.name.startswith("blk.") and len(record.shape) > 1}
    if rounding.how == "plain" or library is None or not any(map(_is_rounded, records)):
        yield {}
        return
    from ..rounding.calibrated import open_calibrated
    from .aware import round_linears

    blocks, chunks = open_calibrated(reader, rounding.calibration, rounding.device, progress)
    ending = f".{os.getpid()}.partial"  # removed by the next export, should this one be killed: see `replacing`
    with TemporaryDirectory(prefix=f".{out.name}.rounded-", suffix=ending, dir=out.parent) as folder:
        yield round_linears(blocks, chunks, types, gguf_of(reader.config), library, Path(folder), progress, alpha)


def tensor_values(
    source: Source, reader: CheckpointReader, of: Gguf, hyper: Hyperparameters
) -> NDArray[np.float32] | NDArray[np.int32]:
    """One tensor's values, factors multiplied out where there are two parts, rows in llama.cpp's order."""
    heads = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads)
    if source.name.endswith(PERM_SUFFIX):
        order: NDArray[np.int32] = (
            reader.tensor(source.parts[0]).numpy() if source.parts else np.arange(source.shape[0], dtype=np.int32)
        )
        return order if heads is None else interleave_rows(order, heads)
    if not source.parts:
        factors = rope_frequency_factors(hyper)
        assert factors is not None
        return factors
    values = _multiplied_out(source, reader)
    return values if heads is None else interleave_rows(values, heads)


def _multiplied_out(source: Source, reader: CheckpointReader) -> NDArray[np.float32]:
    """A tensor as stored, U V, or (P, C P) in the order of W's rows."""
    parts: list[NDArray[np.float32]] = [reader.tensor(part).float().numpy() for part in source.parts]
    if len(parts) == 1:
        return parts[0]
    left, right = parts
    product: NDArray[np.float32] = left @ right
    if not source.parts[1].endswith(P_SUFFIX):
        return product
    rows = np.concatenate([right, product])
    order = reader.permutation(source.parts[1].removesuffix(P_SUFFIX))
    return rows if order is None else rows[order.numpy()]

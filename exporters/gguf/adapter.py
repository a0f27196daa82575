"""Factors for a llama.cpp without the patch: a base file of low-bit residuals, and a LoRA adapter that holds U and V.

W x  ~  R x + U (V x),    R = W - U V rounded to few bits, or nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.layouts import U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader, read_json
from ...converter.core.errors import InputError, UsageError
from ...converter.core.nearest import nearest
from ...converter.core.progress import Progress
from ...converter.families.family import Gguf
from ...converter.families.table import family_to_load, gguf_of
from ...converter.model.source import Source
from ...converter.storage.files import file_sha256, replacing
from ...converter.storage.gguf_header import Header, StoredTensor, read_header
from ..artifact import Artifact, TensorRecord
from .adapter_files import (
    A_SUFFIX,
    ADAPTER_KEY,
    B_SUFFIX,
    HASH_KEY,
    LAYOUT,
    RESIDUAL_KEY,
    adapter_name,
    adapter_path,
    factor_name,
)
from .encoding import encode
from .file import open_writer, verify_file, write_tensors
from .metadata import EXPORTED_AS, Hyperparameters, read_hyperparameters
from .mixes import Quantization, fallback_lines
from .mixes import records as tensor_records
from .names import interleave_rows, rotary_heads
from .shapes import check_shapes
from .tensors import PlannedTensor, plan_tensors, tensor_values
from .types import TYPES, fitting_type, tensor_bytes
from .vocabulary import Vocabulary
from .writer import library_for, vocabulary_of

NOTHING = "zero"
RESIDUALS = (NOTHING, *TYPES)
DEFAULT_RESIDUAL = "q4_0"  # docs/gguf.md has what was measured
# Types for rows of zeros, smallest first. All of them decode zero bytes as zeros.
ZEROS = ("q1_0", "q4_0", "f16")


@dataclass(frozen=True)
class _Job:
    """What writing either file needs."""

    reader: CheckpointReader
    of: Gguf
    hyper: Hyperparameters
    asked: Quantization
    vocabulary: Vocabulary
    library: Path | None
    progress: Progress


def export_adapter(
    checkpoint: Path,
    out: Path,
    asked: Quantization,
    *,
    dense: Source | None = None,
    residual: str | None = None,
    force: bool = False,
    progress: Progress,
) -> Artifact:
    """Write a factored checkpoint as a base file and, beside it, an adapter. Only one tensor is in memory at a time.

    The residual is taken from the factors as they are stored, so it makes up for their rounding too. Both files are
    written beside their places and renamed when both are sound.

    Args:
        checkpoint: a factored checkpoint in two factors.
        out: the base file; the adapter becomes `adapter_path(out)`.
        dense: the model it was made from; without it there is no residual, and the pair computes what the factored
            model computes.
        residual: storage type of the residuals, or "zero" for none. Default: `DEFAULT_RESIDUAL` with `dense`.
        asked: types of the factors and of everything that is not factored.
        force, progress: as `writer.export_gguf` says.

    Returns:
        The record of both files: bytes and tensors of both; `parameters` are those of the base, so that bits per weight
        are per weight of the model; `quantization` is the residuals' type where there are any, the coarser one.

    Raises:
        UsageError: an unknown type, a residual without a dense model, or a file that exists.
        InputError: not in two factors, not made from `dense`, or as `writer.export_gguf` says.
        ResourceError: no space left.
    """
    reader = CheckpointReader(checkpoint)
    residual, model = check_adapter(reader, dense, residual)
    hyper = read_hyperparameters(reader.config)
    job = _Job(reader, gguf_of(reader.config), hyper, asked, vocabulary_of(reader), None, progress)
    sources, base, adapter = _plan(job, residual)
    job = replace(job, library=library_for(_encoded(base, adapter, residual), progress))
    for line in (*fallback_lines([*base, *adapter]), *job.vocabulary.notes):
        progress.note(line)
    beside = adapter_path(out)
    with replacing(beside, force=force, folder=False) as lora, replacing(out, force=force, folder=False) as partial:
        _write_adapter(lora, job, adapter, residual)
        extra = {ADAPTER_KEY: beside.name, HASH_KEY: file_sha256(lora), RESIDUAL_KEY: residual}
        _write_base(partial, job, sources, base, read_header(lora), lora, model, extra)
        verify_file(lora, adapter)
        verify_file(partial, base)
    return Artifact(
        path=out,
        format="gguf",
        quantization=asked.mix if residual == NOTHING else residual,
        layout=LAYOUT,
        bytes=out.stat().st_size + beside.stat().st_size,
        parameters=sum(prod(record.shape) for record in base),
        tensors=(*base, *adapter),
    )


def check_adapter(
    reader: CheckpointReader, dense: Source | None, residual: str | None
) -> tuple[str, CheckpointReader | None]:
    """Refuse what cannot be written as a base and an adapter.

    Args:
        reader: of the factored checkpoint.
        dense, residual: as of `export_adapter`.

    Returns:
        The type of the residuals, and the tensors that they are taken from; None where there are none.

    Raises:
        UsageError, InputError: as of `export_adapter`.
    """
    residual = residual or (DEFAULT_RESIDUAL if dense else NOTHING)
    if residual not in RESIDUALS:
        raise UsageError(f"unknown residual type {residual!r}{nearest(residual, RESIDUALS)}")
    if residual != NOTHING and dense is None:
        raise UsageError(f"a residual in {residual} is of the dense model: give --dense, or --gguf-residual-type zero")
    if reader.layout != "two-factor":
        raise InputError(f"{reader.path}: layout {reader.layout}; an adapter holds two factors")
    if family_to_load(reader.config, str(reader.path)).experts is not None:
        raise InputError(f"{reader.path}: a mixture of experts, which an adapter has no factors for")
    return residual, None if dense is None or residual == NOTHING else _checked(dense, reader)


def _checked(dense: Source, reader: CheckpointReader) -> CheckpointReader:
    """The dense model's tensors, if the factored checkpoint was made from them."""
    record = reader.path / "calibration.json"
    made_from = read_json(record).get("source_sha256") if record.is_file() else None
    if made_from and made_from != dense.fingerprint():
        raise InputError(f"{dense.spec}: not the model that {reader.path} was made from")
    found = dense.reader()
    for linear in reader.ranks:
        shape = (reader.shape(linear + U_SUFFIX)[0], reader.shape(linear + V_SUFFIX)[1])
        if found.shape(linear + ".weight") != shape:
            raise InputError(f"{dense.spec}: {linear} has shape {found.shape(linear + '.weight')}, not {shape}")
    return found


def _plan(job: _Job, residual: str) -> tuple[list[PlannedTensor], tuple[TensorRecord, ...], tuple[TensorRecord, ...]]:
    """Tensors of the base, their records, and the records of the adapter."""
    factored = plan_tensors(job.reader, job.of, job.hyper, native=True)
    shapes = {source.name: source.shape for source in factored}
    check_shapes(shapes, job.of, job.hyper)
    kept = {record.name: record for record in tensor_records(shapes, job.asked)}
    sources = plan_tensors(job.reader, job.of, job.hyper, native=False)
    base = tuple(kept.get(source.name) or _residual_record(source, residual) for source in sources)
    factors = [name for name in shapes if name.endswith((U_SUFFIX, V_SUFFIX))]
    return sources, base, tuple(replace(kept[name], name=adapter_name(name)) for name in factors)


def _encoded(
    base: tuple[TensorRecord, ...], adapter: tuple[TensorRecord, ...], residual: str
) -> tuple[TensorRecord, ...]:
    """The tensors that are encoded: rows of zeros are not."""
    if residual != NOTHING:
        return (*base, *adapter)
    factored = {record.name.removesuffix(A_SUFFIX) for record in adapter}
    return (*(record for record in base if record.name.removesuffix(".weight") not in factored), *adapter)


def _residual_record(source: PlannedTensor, residual: str) -> TensorRecord:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if residual != NOTHING:
        stored = fitting_type(residual, source.shape[-1])
        wanted = residual if stored != residual else None
        return TensorRecord(source.name, source.shape, stored, tensor_bytes(source.shape, stored), wanted)
    sizes = {name: GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]] for name in ZEROS}
    stored, (block, width) = next((n, size) for n, size in sizes.items() if source.shape[-1] % size[0] == 0)
    return TensorRecord(source.name, source.shape, stored, prod(source.shape) // block * width)


def _write_adapter(path: Path, job: _Job, records: tuple[TensorRecord, ...], residual: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    parts = {source.name: source for source in plan_tensors(job.reader, job.of, job.hyper, native=True)}
    with closing(GGUFWriter(path, job.of.architecture)) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)  # no scale: B A is added as it is
        writer.add_name(job.reader.path.resolve().name)
        writer.add_quantized_by(f"{EXPORTED_AS}{job.asked}")
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_string("lowrank.layout", LAYOUT)
        writer.add_string(RESIDUAL_KEY, residual)
        factors = ((record, parts[factor_name(record.name)]) for record in records)
        encoded = (
            encode(record.name, tensor_values(source, job.reader, job.of, job.hyper), record.type, job.library)
            for record, source in factors
        )
        with job.progress.stage("writing the adapter", len(records)) as advance:
            write_tensors(writer, records, encoded, advance)


def _write_base(
    path: Path,
    job: _Job,
    sources: list[PlannedTensor],
    records: tuple[TensorRecord, ...],
    adapter: Header,
    lora: Path,
    dense: CheckpointReader | None,
    extra: Mapping[str, str],
) -> None:
    with closing(open_writer(path, job.reader, job.of, job.hyper, job.asked, job.vocabulary, layout=LAYOUT)) as writer:
        for key, value in extra.items():
            writer.add_string(key, value)
        with job.progress.stage("writing the base", len(records)) as advance:
            write_tensors(writer, records, _base_tensors(job, sources, records, adapter, lora, dense), advance)


def _base_tensors(
    job: _Job,
    sources: list[PlannedTensor],
    records: tuple[TensorRecord, ...],
    adapter: Header,
    lora: Path,
    dense: CheckpointReader | None,
) -> Iterator[NDArray[np.generic]]:
    """Every tensor of the base, encoded, one after another."""
    factors = {tensor.name: tensor for tensor in adapter.tensors}
    for source, record in zip(sources, records, strict=True):
        module = source.name.removesuffix(".weight")
        if module + A_SUFFIX not in factors:
            values = tensor_values(source, job.reader, job.of, job.hyper)
        elif dense is None:
            yield np.zeros(record.bytes, dtype=np.uint8)
            continue
        else:
            weight = dense.tensor(source.parts[0].removesuffix(U_SUFFIX) + ".weight").float().numpy()
            heads = rotary_heads(source.name, job.of, job.hyper.heads, job.hyper.key_value_heads)
            values = weight if heads is None else interleave_rows(weight, heads)
            b, a = (_decoded(lora, factors[module + suffix]) for suffix in (B_SUFFIX, A_SUFFIX))
            values = values - b @ a
        yield encode(record.name, values, record.type, job.library)


def _decoded(path: Path, tensor: StoredTensor) -> NDArray[np.float32]:
    """A tensor of a file as the runtime decodes it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.fromfile(path, dtype=np.uint8, count=tensor.bytes, offset=tensor.offset)
    kind = GGMLQuantizationType[tensor.type.upper()]
    rows = data.reshape(*tensor.shape[:-1], -1)
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    decoded = rows.view(plain[kind]) if kind in plain else dequantize(rows, kind)
    return np.ascontiguousarray(decoded, dtype=np.float32)

"""Checkpoint -> ONNX folder: build beside the destination, check, then move into place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.checkpoint.expert_modules import separate_experts
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError, UsageError
from ...converter.families.settings import check_settings
from ...converter.families.table import family_to_load, onnx_of
from ...converter.model.loading import load, load_tokenizer, transformers_config
from ...converter.model.tokens import read_tokens
from ...converter.storage.documents import shown
from ...converter.storage.files import replacing
from ..artifact import Artifact
from ..chosen import CHOSEN, recorded_forms
from .builder import genai_builder
from .builder.builder_families import check_head_size, check_rotary
from .check.check_windows import reference_of
from .check.genai_tokenizer import check_readable, left_out
from .check.selfcheck import check_export, tolerance
from .contents import ENCODING_KEY, MODEL_FILE, QUANTIZATION_KEY, model_bytes, model_facts, tensor_records
from .flavours import check_single_flavour
from .special_tokens import state_tokens
from .tokenizer_files import write_tokenizer
from .traced import torch_exporter
from .weights.encoded import encode_model, gptq_matrices
from .weights.multiplied_out import multiplied_out, multiply_out
from .weights.stored import StoredWeights
from .weights.types import QUANTIZATIONS, OnnxOptions, chosen_types, has_codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...converter.core.progress import Progress

FORMAT_VERSION = "1"


def export_onnx(
    checkpoint: Path,
    out: Path,
    *,
    quantization: str = "fp32",
    options: OnnxOptions | None = None,
    force: bool = False,
    progress: Progress,
) -> Artifact:
    """Export a checkpoint, factored or dense, to the folder ONNX Runtime and ONNX Runtime GenAI load.

    The folder appears complete and checked, or not at all: it loads in both runtimes, its logits agree with torch's.

    Args:
        checkpoint: a factored checkpoint, or an ordinary Hugging Face directory.
        out: the folder to write: model.onnx, model.onnx.data, genai_config.json, tokenizer files.
        quantization: see `types.QUANTIZATIONS`, or `chosen.CHOSEN` for the types of the checkpoint's recipe;
            activations stay float32.
        options: how matrices are stored.
        force: replace an existing export.
        progress: receives one stage.

    Returns:
        What was written; `parameters` counts the model's weights, tied ones once, without scales.

    Raises:
        UsageError: unknown quantization, `out` exists, aware rounding has no text to run, or nothing chose the types.
        InputError: damaged checkpoint, unsupported family, or a result that does not agree with torch.
        ResourceError: no space left, out of memory, or two flavours of ONNX Runtime are installed.
    """
    checkpoint, out, options = Path(checkpoint), Path(out), options or OnnxOptions()
    if quantization not in (*QUANTIZATIONS, CHOSEN):
        raise UsageError(f"ONNX quantization {quantization!r} is unknown; one of {', '.join(QUANTIZATIONS)}")
    _check_destination(out, force=force)
    check_single_flavour()
    reader = CheckpointReader(checkpoint)
    if quantization == CHOSEN:
        options = replace(options, chosen=chosen_types(recorded_forms(reader)))
    special = read_tokens(checkpoint, rows=int(reader.config["vocab_size"]))
    family = onnx_of(reader.config)
    merged = multiplied_out({name: reader.shape(name) for name in sorted(reader.names)}, quantization, options)
    rounded = gptq_matrices(reader, quantization, options, merged, progress)
    with progress.stage(f"ONNX {quantization}", 3) as advance, replacing(out, force=force, folder=True) as folder:
        model = _load_float32(reader)
        multiply_out(model, merged)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = StoredWeights(
            encode_model(model, quantization, options, rounded),
            half=quantization == "fp16",
            block_size=options.block_size,
            accuracy_level=options.accuracy_level,
        )
        reference = reference_of(model, checkpoint)  # with the rounded weights: what the graph adds to them is checked
        advance(1)
        through = torch_exporter if family.builder is None else genai_builder
        metadata = {**_metadata(reader, quantization, options, merged), "lowrank.exporter": through.name_and_version()}
        through.build(model, checkpoint, folder, weights=weights, metadata=metadata)
        write_tokenizer(checkpoint, folder, reference.context)
        state_tokens(folder, special)
        del model, weights, rounded
        advance(1)
        allowed = tolerance(codes=has_codes(quantization))
        difference = check_export(folder, reference, allowed)
        advance(1)
    if merged:
        progress.note(f"{out}: {len(merged)} of {len(reader.ranks)} factored linears are one matmul, which costs less")
    if begin := left_out(checkpoint, out):
        progress.note(f"{out}: ONNX Runtime GenAI's tokenizer leaves out {begin}, which the model's puts before a text")
    if not special.ends:
        progress.note(f"{out}: no file of the model names a token that ends a text: add eos_token_id to config.json")
    tokens = sum(map(len, reference.windows))
    progress.note(f"{out}: {allowed.unit} to torch with these weights, {tokens} tokens, two runtimes {difference:.1e}")
    return Artifact(
        path=out,
        format="onnx",
        quantization=quantization,
        layout="native" if len(reader.ranks) > len(merged) else "dense",
        bytes=model_bytes(out),
        parameters=parameters,
        tensors=tensor_records(out),
        facts=model_facts(out),
    )


def check_acceptable(reader: CheckpointReader) -> None:
    """Refuse, from headers and texts alone, what exporting a checkpoint or what is made of it would refuse.

    Raises:
        InputError: the family, a setting, the rotary embedding, the size of a head or the tokenizer cannot be exported.
        ResourceError: a package that traces the model is missing.
    """
    where = str(reader.path)
    family = onnx_of(reader.config)
    check_settings(reader.config, family_to_load(reader.config, where), where, "onnx")
    config = transformers_config(reader)
    if family.builder is not None:
        check_rotary(config, where)
        check_head_size(config, where)
    else:
        torch_exporter.check_importable()
    check_token_ids(reader, load_tokenizer(reader.path))
    check_readable(reader.path, int(reader.config["vocab_size"]), int(config.max_position_embeddings))


def check_token_ids(reader: CheckpointReader, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives ids for which the embedding has no row.

    Raises:
        InputError: names the token.
    """
    rows = int(reader.config["vocab_size"])
    text, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if index >= rows:
        raise InputError(
            f"{reader.path}: the tokenizer has token id {index} ({shown(text)}), but the embedding only {rows} rows"
        )


def _load_float32(reader: CheckpointReader) -> PreTrainedModel:
    import torch

    model = load(reader.path, dtype=torch.float32)
    separate_experts(model, family_to_load(reader.config, str(reader.path)))  # what is stored in a type is a matrix
    return model


def _metadata(
    reader: CheckpointReader, quantization: str, options: OnnxOptions, merged: Collection[str]
) -> dict[str, str]:
    """What the model file says about its origin, in ONNX `metadata_props`."""
    from ...converter.core.version import __version__

    lowrank: dict[str, Any] = reader.lowrank
    factored = len(reader.ranks) > len(merged)
    said = {"lowrank.multiplied_out": f"{len(merged)} of {len(reader.ranks)} factored linears"} if reader.ranks else {}
    return {
        "lowrank.version": FORMAT_VERSION,
        "lowrank.producer": __version__,
        "lowrank.layout": str(lowrank["layout"]) if factored else "dense",
        "lowrank.method": str(lowrank.get("method", "")),
        "lowrank.retention": str(lowrank.get("retention", 1.0)),
        "lowrank.recipe": reader.recipe_text,
        QUANTIZATION_KEY: quantization,
        ENCODING_KEY: options.recorded(quantization),
        **said,
    }


def _check_destination(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise UsageError(f"{out} exists; choose another folder, or allow replacing it (--force)")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MODEL_FILE).is_file()):
        raise UsageError(f"{out} is not an ONNX export; remove it yourself, only an export is replaced")

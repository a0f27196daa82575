"""A model through ONNX Runtime GenAI's model builder; the upstream names that it relies on are listed in `upstream.py`.

GenAI's builder writes the graph: grouped-query attention, fused rotary embedding, skip layer norm, KV cache,
`genai_config.json`. A subclass per family, see lowrank_builder.py, adds factored linears and encodings; saving is
ours, so that the file says how it was made.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....converter.core.errors import InputError, LowRankError
from ....converter.families.table import FAMILIES
from ..contents import save_model
from ..weights.stored import StoredWeights
from .builder_families import check_head_size, check_rotary
from .lowrank_builder import lowrank_builder
from .plain_norms import write_out_norms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

_OUTPUT_TAIL = 600


def name_and_version() -> str:
    """What writes the graph."""
    import onnxruntime_genai

    return f"onnxruntime-genai {onnxruntime_genai.__version__}"


def build(
    model: PreTrainedModel, checkpoint: Path, folder: Path, *, weights: StoredWeights, metadata: Mapping[str, str]
) -> None:
    """Write `model` as an ONNX Runtime GenAI folder: graph, weights, genai_config.json.

    Args:
        model: the live torch model, float32, on CPU; factored linears are `LowRankLinear` or `PivotLinear`.
        checkpoint: its directory, where generation settings are read.
        folder: an existing, empty directory.
        weights: how its matrices are stored.
        metadata: written to the model's `metadata_props`.

    Raises:
        InputError: the family, or a feature of the model, is not one the builder handles.
        LowRankError: the builder does not look like the version this was written for.
        OSError: the disk is full or not writable.
    """
    import onnx_ir as ir

    config = _builder_config(model, checkpoint)
    family = FAMILIES[config.model_type].onnx
    float32 = ir.DataType.FLOAT
    options: dict[str, Any] = {"hf_token": False, "windowed_kv_cache": False}
    captured = io.StringIO()
    try:
        with redirect_stdout(captured), redirect_stderr(captured):
            builder = lowrank_builder(str(family.builder))(
                config, float32, float32, "cpu", str(folder / ".cache"), options, model, weights
            )
            builder.model_type = family.genai_type or builder.model_type
            builder.make_model("")
            builder.make_genai_config(config, {}, str(folder))
    except NotImplementedError as error:
        raise InputError(f"{checkpoint}: ONNX Runtime GenAI cannot express this model: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = " ".join(captured.getvalue()[-_OUTPUT_TAIL:].split())
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise LowRankError(f"{checkpoint}: the ONNX model builder failed: {problem} (it said: {said})") from error
    write_out_norms(builder.model)
    builder.model.graph.sort()
    # not by the builder, whose file would name the commit of any git repository around it
    save_model(builder.model, folder, metadata)


def _builder_config(model: PreTrainedModel, checkpoint: Path) -> Any:
    """The configuration as the builder needs it: no quantization method, sliding windows spelled out per block.

    Raises:
        InputError: unsupported family or rotary embedding.
    """
    from copy import deepcopy

    config = deepcopy(model.config)
    check_rotary(config, str(checkpoint))
    check_head_size(config, str(checkpoint))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = str(checkpoint)
    config.architectures = [type(model).__name__]
    if config.eos_token_id is None:
        config.eos_token_id = 0  # the builder needs one; genai_config.json gets what the files state
    adapt = FAMILIES[config.model_type].onnx.adapt
    if adapt is not None:
        adapt(config)
    return config

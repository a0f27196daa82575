"""Families the model builder lacks: traced by transformers' own ONNX exporter, then dressed for ONNX Runtime GenAI.

The traced graph has plain operators where the builder's has fused ones; it computes the same, more slowly. Its inputs
and outputs get the names GenAI knows, so the folder loads in both runtimes like any other.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....converter.core.errors import InputError, LowRankError, ResourceError
from ..contents import MODEL_FILE, save_model
from ..session import one_line
from ..upstream import torch_exporter
from ..weights.stored import StoredWeights
from .traced_weights import store_codes, store_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENAI_TYPE = "llama"
"""GenAI runs every decoder with a KV cache through one class, and looks its name up in a list that lacks these."""

_SAMPLE = (2, 4, 3)  # texts, cached tokens and new ones of the trace: none stays fixed in the graph, as one text would
_INPUTS = ("input_ids", "attention_mask", "position_ids")


def name_and_version() -> str:
    """What writes the graph."""
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def check_importable() -> None:
    """Miss now what tracing needs.

    Raises:
        ResourceError: names the package.
    """
    if find_spec("onnxscript") is None:
        raise ResourceError("the ONNX exporter of transformers needs onnxscript: pip install lowrank-export[trace]")


def build(
    model: PreTrainedModel, checkpoint: Path, folder: Path, *, weights: StoredWeights, metadata: Mapping[str, str]
) -> None:
    """Write `model` as a folder for ONNX Runtime and ONNX Runtime GenAI: graph, weights, genai_config.json.

    Args:
        model: the live torch model, float32, on CPU, factored linears included.
        checkpoint: its directory, named in errors.
        folder: an existing, empty directory.
        weights: how its matrices are stored.
        metadata: written to the model's `metadata_props`.

    Raises:
        ResourceError: onnxscript, which the exporter needs, is not installed.
        LowRankError: the exporter failed.
        InputError: the model does not keep one key and one value per block.
    """
    traced = _traced(model, checkpoint)
    _rename(traced.graph, int(model.config.num_hidden_layers), checkpoint)
    _forget_sources(traced)
    if weights.encoded:
        store_codes(traced, weights)
    elif weights.half:
        store_half(traced)
    save_model(traced, folder, metadata)
    (folder / "genai_config.json").write_text(
        json.dumps(_genai_config(model, traced.graph), indent=4), encoding="utf-8"
    )


def _traced(model: PreTrainedModel, checkpoint: Path) -> Any:
    """The graph as an `onnx_ir.Model`, with any batch, any number of new tokens and any number of cached ones."""
    import torch
    from torch.export import Dim

    exporters = torch_exporter()
    texts, cached, new = _SAMPLE
    cache = _cache(model, texts, cached)
    ids = torch.arange(1, 1 + new).repeat(texts, 1)
    positions = torch.arange(cached, cached + new).repeat(texts, 1)
    mask = torch.ones(texts, cached + new, dtype=torch.long)
    inputs = {**dict(zip(_INPUTS, (ids, mask, positions), strict=True)), "past_key_values": cache}
    free = Dim.AUTO
    shapes: dict[str, Any] = {name: {0: free, 1: free} for name in _INPUTS}
    shapes["past_key_values"] = [{0: free, 2: free}] * (2 * int(model.config.num_hidden_layers))
    config = exporters.OnnxConfig(dynamic=True, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)
    try:
        with _silent():
            return exporters.OnnxExporter().export(model, inputs, config).program
    except ImportError as error:
        raise ResourceError(
            f"the ONNX exporter of transformers cannot run ({one_line(error)}); `pip install onnxscript`"
        ) from error
    except Exception as error:  # torch.export's and torch.onnx's errors share no base class
        raise LowRankError(f"{checkpoint}: transformers' ONNX exporter failed: {one_line(error)}") from error


def _cache(model: PreTrainedModel, texts: int, length: int) -> Any:
    """A KV cache of `length` tokens of each of some texts, as the model itself fills it."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.inference_mode(mode=False), torch.no_grad():
        model(input_ids=torch.arange(1, 1 + length).repeat(texts, 1), past_key_values=cache, use_cache=True)
    return cache


@contextmanager
def _silent() -> Iterator[None]:
    """Swallow what the exporters print, log and warn; what goes wrong they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _rename(graph: Any, blocks: int, checkpoint: Path) -> None:
    """Give cache inputs and outputs the names that GenAI's configuration has for them.

    Raises:
        InputError: the trace has other inputs or outputs than one key and one value per block.
    """
    names = [(block, kind) for block in range(blocks) for kind in ("key", "value")]
    inputs = [value for value in graph.inputs if value.name not in _INPUTS]
    outputs = [value for value in graph.outputs if value.name != "logits"]
    if not len(names) == len(inputs) == len(outputs):
        raise InputError(f"{checkpoint}: its KV cache is not one key and one value per block; not exported to ONNX")
    for (block, kind), past, present in zip(names, inputs, outputs, strict=True):
        past.name, present.name = f"past_key_values.{block}.{kind}", f"present.{block}.{kind}"


def _forget_sources(traced: Any) -> None:
    """Drop what the trace notes about lines of Python: paths of this machine, and most of the graph's bytes."""
    values = [value for node in traced.graph for value in node.outputs]
    for item in (
        traced,
        traced.graph,
        *traced.graph,
        *traced.graph.inputs,
        *traced.graph.initializers.values(),
        *values,
    ):
        item.metadata_props.clear()
        item.doc_string = None


def _genai_config(model: PreTrainedModel, graph: Any) -> dict[str, Any]:
    """What GenAI reads; the cache's sizes are the graph's own, since families disagree on what they call them."""
    cache = next(value for value in graph.inputs if value.name == "past_key_values.0.key")
    config: Any = model.config
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": int(cache.shape[3]),
        "hidden_size": int(config.hidden_size),
        "inputs": {
            **{name: name for name in _INPUTS},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": int(config.num_attention_heads),
        "num_hidden_layers": int(config.num_hidden_layers),
        "num_key_value_heads": int(cache.shape[1]),
    }
    end = config.eos_token_id
    fallback = end[0] if isinstance(end, list) else end
    special = {
        "bos_token_id": config.bos_token_id if config.bos_token_id is not None else fallback,
        "eos_token_id": end,
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else fallback,
    }
    context = int(config.max_position_embeddings)
    return {
        "model": {
            **special,
            "context_length": context,
            "decoder": decoder,
            "type": GENAI_TYPE,
            "vocab_size": int(config.vocab_size),
        },
        "search": {"do_sample": False, "max_length": context, "min_length": 0, "past_present_share_buffer": False},
    }

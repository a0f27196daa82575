"""An ONNX folder before any runtime sees it: nothing outside it is read for it, no library loaded, no size believed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....converter.checkpoint.reader import read_json
from ....converter.core.errors import InputError
from ....converter.storage.documents import shown
from ....converter.storage.links import check_links
from ..contents import model_file

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

GENAI_CONFIG = "genai_config.json"
MAX_GRAPH_BYTES = 2**31  # of protobuf itself
LARGEST = 2**31  # of anything that genai_config.json counts
PACKED = (21, 22, 23, 25, 26)  # element types below one byte
SESSION_OPTIONS = frozenset({"log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads"})
NAME_PATTERN = re.compile(r"[\w.]{0,40}(%d[\w.]{0,20})?")  # GenAI hands it to snprintf
SIZES = ("context_length", "vocab_size", "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
KEYS = "num_key_value_heads"


def check_folder(folder: Path) -> ModelProto:
    """Check graph, external data and genai_config.json of an exported folder. Reads no weights.

    Returns:
        The graph, without external data.

    Raises:
        InputError: the folder or the graph is missing or damaged; data lie outside the folder or the file; the
            configuration names a library, another file, or a size that no model has.
    """
    import onnx

    path = model_file(folder)
    check_links(folder)
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise InputError(f"{path}: has more than {MAX_GRAPH_BYTES:,} bytes, which no graph can have")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf's DecodeError
        raise InputError(f"{path}: not an ONNX model, or truncated") from None
    try:
        _check_metadata(model)
        for tensor in model_tensors(model):
            _check_tensor(path, tensor)
        if (folder / GENAI_CONFIG).exists():
            _check_config(folder / GENAI_CONFIG, model.graph)
    except (TypeError, ValueError, AttributeError) as error:  # protobuf gives bytes where a text is none
        raise InputError(f"{path}: damaged ONNX model ({error})") from None
    return model


def _check_metadata(model: ModelProto) -> None:
    entries = [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    if not all(isinstance(text, str) for text in (*entries, *(item.domain for item in model.opset_import))):
        raise ValueError("its metadata are not UTF-8")


def model_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model holds, wherever it hides."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[TensorProto]:
    node: NodeProto
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
    for one in sparse:
        yield from (one.values, one.indices)
    for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
        yield from _graph_tensors(graph)


def _check_tensor(path: Path, tensor: TensorProto) -> None:
    """Its shape is one, and its external data lie in a file of the folder, as many as the shape takes."""
    from onnx import helper

    if not isinstance(tensor.name, str):
        raise ValueError("a tensor's name is no text")
    if any(n < 0 for n in tensor.dims):
        raise InputError(f"{path}: tensor {shown(tensor.name)} has shape {shown(tuple(tensor.dims))}")
    entry = {item.key: item.value for item in tensor.external_data}
    if not all(isinstance(text, str) for item in entry.items() for text in item):
        raise ValueError("the place of its data is not UTF-8")
    if not entry and tensor.data_location == 0:
        return
    name = entry.get("location", "")
    data = path.parent / name
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name or name not in _files(path.parent):
        raise InputError(f"{path}: its external data {shown(name)} is missing, or not a file of this folder")
    try:
        offset, length = (int(entry.get(key) or 0) for key in ("offset", "length"))
        width = 0 if tensor.data_type in PACKED else int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: damaged: the place of tensor {shown(tensor.name)} in {name}") from None
    if offset < 0 or length < 0 or offset + length > data.stat().st_size:
        raise InputError(f"{data}: truncated: tensor {shown(tensor.name)} lies beyond the end of the file")
    if "length" in entry and width and prod(tensor.dims) * width != length:
        raise InputError(f"{path}: tensor {shown(tensor.name)} has {length} bytes, not those of its shape")


def _files(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()}


def _check_config(path: Path, graph: GraphProto) -> None:
    """GenAI would load a library that its configuration names, read other files, and believe its sizes."""
    config = read_json(path)
    for key, value in _entries(config):
        if key == "session_options" and not (isinstance(value, dict) and SESSION_OPTIONS.issuperset(value)):
            other = sorted(set(value) - SESSION_OPTIONS)[0] if isinstance(value, dict) else value
            raise InputError(f"{path}: session_options hold {shown(other)}, which is not taken from a model's folder")
        if key == "provider_options" and value not in ([], [{"cpu": {}}], [{"cuda": {}}]):
            raise InputError(f"{path}: provider_options {shown(value)} are not taken from a model's folder")
        if "library" in key or "plugin" in key:
            raise InputError(f"{path}: {shown(key)} is not taken from a model's folder")
        if key == "filename" and value not in ("", "model.onnx"):
            raise InputError(f"{path}: names the file {shown(value)}; only model.onnx is run")
        if key in ("inputs", "outputs") and not (
            isinstance(value, dict) and all(isinstance(n, str) and NAME_PATTERN.fullmatch(n) for n in value.values())
        ):
            raise InputError(f"{path}: {key} hold {shown(value)}, no names of a graph")
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise InputError(f"{path}: model.decoder.head_size is missing")
    for place in (model, decoder):
        for key in (*SIZES, KEYS):
            if key in place and (type(place[key]) is not int or not 0 < place[key] < LARGEST):
                raise InputError(f"{path}: {key} is {shown(place[key])}, no number of things")
    caches = [value for value in graph.input if re.fullmatch(r"past_key_values\.\d+\.key", value.name)]
    dims = [list(value.type.tensor_type.shape.dim) for value in caches]
    heads = {dim[1].dim_value for dim in dims if len(dim) > 1 and dim[1].dim_value}
    agrees = decoder.get("num_hidden_layers", len(caches)) == len(caches)
    agrees = agrees and (not heads or decoder.get(KEYS, min(heads)) in heads)
    if not agrees or decoder.get("head_size", 0) > 2**16:
        raise InputError(f"{path}: its number of blocks, heads or features is not that of model.onnx")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested objects, with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)

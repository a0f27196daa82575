"""Every upstream name the ONNX export overrides or calls, in one table, and the import of the model builder.

ONNX Runtime GenAI's model builder is no public interface: releases rename and move things. Here stands what this
project was written for; `check_builder` compares it with what is installed, before any work and in the tests.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import LowRankError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTED_BUILDER = "0.18"

CLASSES = (
    "Model",
    "LlamaModel",
    "MistralModel",
    "QwenModel",
    "Qwen3Model",
    "GemmaModel",
    "Gemma2Model",
    "Gemma3Model",
    "GraniteModel",
    "Phi3MiniModel",
)
"""Of the module `onnxruntime_genai.models.builders`."""

METHODS: dict[str, tuple[str, ...]] = {
    # how a builder is made
    "__init__": ("config", "io_dtype", "onnx_dtype", "ep", "cache_dir", "extra_options"),
    # overridden: what the model is
    "load_weights": ("input_path",),
    "has_lm_head": ("module",),
    "make_tied_embeddings_init": ("config",),
    "make_tied_quantized_embedding_input_names": (),
    # overridden: rotary embeddings, attention, feed-forward
    "make_rope_init": ("config",),
    "make_rotary_embedding_caches": ("**kwargs",),
    "make_rotary_embedding_caches_from_scratch": (),
    "is_qkv_projection_packable": ("layer_id", "attention"),
    "make_attention": ("layer_id", "attention", "root_input", "**kwargs"),
    "make_attention_unpacked": ("layer_id", "attention", "root_input", "**kwargs"),
    "make_packed_matmul": ("q_matmul", "k_matmul", "v_matmul", "basename", "root_input", "**kwargs"),
    "make_mlp": ("layer_id", "mlp", "root_input"),
    "make_mlp_unpacked": ("layer_id", "mlp", "root_input"),
    "make_layernorm": ("layer_id", "layernorm", "skip", "simple", "location"),
    # overridden: weights
    "make_matmul": ("matmul", "basename", "root_input", "**kwargs"),
    "make_embedding_lookup": ("embedding", "basename", "lm_head"),
    # called
    "make_model": ("input_path",),
    "make_genai_config": ("config", "extra_kwargs", "out_dir"),
    "make_matmul_float": ("matmul", "name", "root_input", "**kwargs"),
    "make_matmul_nbits": ("matmul", "basename", "root_input", "**kwargs"),
    "make_hidden_state_shape": ("seq_dim", "last_dim"),
    "make_initializer": ("tensor", "name", "to", "raw"),
    "make_value": ("name", "dtype", "shape"),
    "make_node": ("op_type", "inputs", "outputs", "name", "domain", "**kwargs"),
    "make_split": ("name", "inputs", "outputs", "dtypes", "shapes", "axis", "num_outputs"),
    "make_slice": ("name", "inputs", "dtype", "shape"),
    "make_concat": ("name", "inputs", "dtype", "shape", "axis"),
    "make_cast": ("name", "root_input", "dtype", "shape"),
    "make_gather": ("name", "inputs", "dtype", "shape", "axis"),
    "make_transpose": ("name", "root_input", "dtype", "shape", "perm"),
}
"""Of `Model`: name -> parameters after self."""

CLASS_METHODS: dict[str, tuple[str, ...]] = {"Gemma3Model.make_rotary_embedding_multi_cache": ()}
"""Overridden in one class only."""

ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "Model": {
        # read
        "context_length": (),
        "input_names": ("input_ids",),
        "io_dtype": (),
        "kv_size": (),
        "layer_types": (),
        "model": (),
        "q_size": (),
        # set: under another name, upstream would go on with values of its own
        "attention_attrs": ("scale", "k_path", "v_path"),
        "embed_attrs": ("scale",),
        "layernorm_attrs": ("epsilon",),
        "model_type": (),
        "quant_attrs": ("matmul_block_size", "accuracy_level"),
        "rope_attrs": ("create_caches",),
        "tied_quantized_embeddings": (),
        "tied_unquantized_embeddings": (),
    },
    "Gemma3Model": {
        "cos_cache_global_name": (),
        "cos_cache_local_name": (),
        "sin_cache_global_name": (),
        "sin_cache_local_name": (),
    },
}
"""Class -> attributes of its instances, which its methods name -> keys, where they are dictionaries."""

TESTED_TRANSFORMERS = "5.23"

EXPORTER = ("model", "sample_inputs", "config")
"""Parameters of `transformers.exporters.OnnxExporter.export`."""

EXPORTER_OPTIONS = ("dynamic", "dynamic_shapes", "prefer_deferred_runtime_asserts_over_guards")
"""Of `transformers.exporters.OnnxConfig`."""

_TOP_LEVEL_NAMES = ("quantization", "loaders", "builders", "builder_config")  # what importing the builder adds


def check_builder(builders: Any) -> None:
    """Check every upstream name and signature in the tables above.

    Args:
        builders: the module `onnxruntime_genai.models.builders`.

    Raises:
        LowRankError: something is gone or takes other parameters; one line names all of it.
    """
    problems = differences(builders)
    if problems:
        raise LowRankError(
            f"ONNX Runtime GenAI's model builder has changed: {'; '.join(problems)}: this version was written for "
            f"onnxruntime-genai {TESTED_BUILDER}; install that one"
        )


def differences(builders: Any) -> list[str]:
    """One phrase per class, method or attribute of the tables that is missing or takes other parameters."""
    found = [f"it has no {name}" for name in CLASSES if not hasattr(builders, name)]
    methods = {f"Model.{name}": parameters for name, parameters in METHODS.items()} | CLASS_METHODS
    for path, expected in methods.items():
        owner, _, name = path.partition(".")
        if not hasattr(builders, owner):
            continue  # said already
        method = getattr(getattr(builders, owner), name, None)
        if method is None:
            found.append(f"it has no {path}")
        elif (actual := _parameters(method)) != expected:
            found.append(f"{path} takes ({', '.join(actual)}), not ({', '.join(expected)})")
    for owner, attributes in ATTRIBUTES.items():
        if hasattr(builders, owner):
            named = _named_of_self(getattr(builders, owner))
            wanted = {*attributes, *(f"{name}['{key}']" for name, keys in attributes.items() for key in keys)}
            found += [f"{owner} has no {name}" for name in sorted(wanted - named)]
    return found


def _named_of_self(owner: type) -> set[str]:
    """Every `X` and `X['key']` that the methods of a class name of `self`, from its source."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner)))):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                found.add(name)
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id="self"), attr=name), slice=ast.Constant(value=str(key))
            ):
                found.add(f"{name}['{key}']")
    return found


def torch_exporter() -> Any:
    """The module `transformers.exporters`, checked.

    Raises:
        ResourceError: it is not there.
        LowRankError: it does not look like the version this was written for.
    """
    from importlib import import_module

    try:
        exporters = import_module("transformers.exporters")
    except ImportError as error:
        raise ResourceError(
            f"this transformers has no ONNX exporter ({error}); install transformers {TESTED_TRANSFORMERS}"
        ) from error
    check_torch_exporter(exporters)
    return exporters


def check_torch_exporter(exporters: Any) -> None:
    """Check the names and signatures used of `transformers.exporters`.

    Raises:
        LowRankError: something is gone or takes other parameters; one line names all of it.
    """
    problems = []
    export = getattr(getattr(exporters, "OnnxExporter", None), "export", None)
    if export is None:
        problems.append("it has no OnnxExporter.export")
    elif (actual := _parameters(export)) != EXPORTER:
        problems.append(f"OnnxExporter.export takes ({', '.join(actual)}), not ({', '.join(EXPORTER)})")
    options = getattr(exporters, "OnnxConfig", None)
    known = () if options is None else tuple(inspect.signature(options).parameters)
    problems += [f"OnnxConfig has no {name}" for name in EXPORTER_OPTIONS if name not in known]
    if problems:
        raise LowRankError(
            f"transformers' ONNX exporter has changed: {'; '.join(problems)}: this version was written for "
            f"transformers {TESTED_TRANSFORMERS}; install that one"
        )


def _parameters(method: Any) -> tuple[str, ...]:
    """Names of a method's parameters after self, `*` and `**` included."""
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return tuple(marks.get(parameter.kind, "") + parameter.name for parameter in parameters)


@cache
def builder_classes() -> Any:
    """The module `onnxruntime_genai.models.builders`, checked; its top-level names stay out of everybody's way.

    Raises:
        ResourceError: it cannot be imported.
        LowRankError: it does not look like the version this was written for.
    """
    from importlib import import_module

    try:
        with private_modules():
            builders = import_module("onnxruntime_genai.models.builders")
    except ImportError as error:
        raise ResourceError(
            f"the ONNX model builder cannot be imported ({error}); "
            f"install onnxruntime-genai {TESTED_BUILDER} and onnx-ir"
        ) from error
    check_builder(builders)
    return builders


@contextmanager
def private_modules() -> Iterator[None]:
    """Import upstream's top-level modules from its folder, then put back what was there before."""
    from importlib.util import find_spec

    def taken() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in _TOP_LEVEL_NAMES]

    spec = find_spec("onnxruntime_genai")
    folders = [str(Path(place) / "models") for place in (spec.submodule_search_locations or [])] if spec else []
    hidden = {name: sys.modules.pop(name) for name in taken()}
    path = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = path
        for name in taken():
            del sys.modules[name]
        sys.modules.update(hidden)

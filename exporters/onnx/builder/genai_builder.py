"""A model through ONNX Runtime GenAI's model builder; the upstream names it relies on stand in `upstream.py`.

GenAI's builder writes the graph: grouped-query attention, fused rotary embedding, skip layer norm, KV cache,
`genai_config.json`. A small subclass per family teaches it the factored linear, our encodings and the sharing of a
tied embedding; saving is ours, so that the file says how it was made.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....converter.checkpoint.lowrank_linear import LowRankLinear
from ....converter.checkpoint.pivot_linear import PivotLinear
from ....converter.core.errors import InputError, LowRankError
from ....converter.families.table import FAMILIES
from ..contents import save_model
from ..upstream import builder_classes
from ..weights.quantise import QuantisedMatrix, stack
from ..weights.stored import StoredWeights
from .builder_families import check_head_size, check_rotary, rotary_tables
from .fused_linears import Part, split_attention, split_gate_up
from .plain_norms import write_out_norms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

Factored = LowRankLinear | PivotLinear

_OUTPUT_TAIL = 600


def name_and_version() -> str:
    """What writes the graph."""
    import onnxruntime_genai

    return f"onnxruntime-genai {onnxruntime_genai.__version__}"


def build(
    model: PreTrainedModel, checkpoint: Path, folder: Path, *, weights: StoredWeights, metadata: Mapping[str, str]
) -> None:
    """Write `model` as an ONNX Runtime GenAI folder: graph, weights, genai_config.json, tokenizer.

    Args:
        model: the live torch model, float32, on CPU; factored linears are `LowRankLinear` or `PivotLinear`.
        checkpoint: its directory, where tokenizer and generation settings are read.
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
            builder = _subclass(str(family.builder))(
                config, float32, float32, "cpu", str(folder / ".cache"), options, model, weights
            )
            builder.model_type = family.genai_type or builder.model_type
            builder.make_model("")
            builder.make_genai_config(config, {}, str(folder))
            builder.save_processing(str(checkpoint), {}, str(folder))
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
    """The configuration as the builder wants it: no quantisation method, sliding windows spelled out per block.

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
        config.eos_token_id = 0  # the builder wants one; genai_config.json is told what the files state
    adapt = FAMILIES[config.model_type].onnx.adapt
    if adapt is not None:
        adapt(config)
    return config


@cache
def _subclass(class_name: str) -> Any:
    """The builder's class of one family, taught factored linears, encoded weights and shared embeddings."""
    parent = getattr(builder_classes(), class_name)

    class LowRankBuilder(parent):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            *upstream, self._live_model, self._stored = arguments
            self._first: dict[Any, str] = {}  # linear -> where its W x, or its V x or P x, already is
            self._rotary_kind = ""
            super().__init__(*upstream)
            # upstream rounds Gemma's to two decimals
            scale = getattr(self._live_model.get_input_embeddings(), "scalar_embed_scale", self.embed_attrs["scale"])
            self.embed_attrs["scale"] = float(scale)

        def load_weights(self, input_path: str) -> Any:
            return self._live_model

        def make_tied_embeddings_init(self, config: Any) -> None:
            head, embedding = self._live_model.get_output_embeddings(), self._live_model.get_input_embeddings()
            tied = getattr(head, "weight", None) is embedding.weight
            self.tied_quantized_embeddings = tied and head in self._stored.encoded
            self.tied_unquantized_embeddings = tied and not self.tied_quantized_embeddings
            self.quant_attrs.update(
                matmul_block_size=self._stored.block_size, accuracy_level=self._stored.accuracy_level
            )

        def make_tied_quantized_embedding_input_names(self) -> tuple[int, str, str, str]:
            head = self._stored.encoded[self._live_model.get_output_embeddings()]
            zeros = "lm_head.MatMulNBits.qzeros" if head.qzeros is not None else ""
            return head.bits, "lm_head.MatMulNBits.qweight", "lm_head.MatMulNBits.scales", zeros

        def has_lm_head(self, module: Any) -> bool:
            # upstream takes any linear with as many rows as there are tokens, a factor too
            return module is self._live_model.get_output_embeddings()

        def make_rope_init(self, config: Any) -> None:
            """Nothing: the tables come from the torch model, where upstream computes only some kinds of them."""

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[Tensor, Tensor]:
            return rotary_tables(self._live_model.model.rotary_emb, self.context_length, self._rotary_kind)

        def make_rotary_embedding_multi_cache(self) -> None:
            # Gemma 3 has a table for each kind of block
            self.cos_cache_global_name, self.sin_cache_global_name = "cos_cache_global", "sin_cache_global"
            self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
            for kind, name in (("full_attention", "global"), ("sliding_attention", "local")):
                if kind in self.layer_types:
                    self._rotary_kind, self.rope_attrs["create_caches"] = kind, True
                    self.make_rotary_embedding_caches(
                        cos_cache_name=f"cos_cache_{name}", sin_cache_name=f"sin_cache_{name}"
                    )

        def make_layernorm(self, layer_id: int, layernorm: Any, skip: bool, simple: bool, location: str) -> None:
            self.layernorm_attrs["epsilon"] = _epsilon(layernorm)
            super().make_layernorm(layer_id, layernorm, skip, simple, location)

        def make_attention_unpacked(self, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
            """Nothing: `make_attention` did it."""

        def make_mlp_unpacked(self, layer_id: int, mlp: Any, root_input: str) -> None:
            """Nothing: `make_mlp` did it."""

        def make_packed_matmul(self, q: Any, k: Any, v: Any, basename: str, root_input: str, **options: Any) -> str:
            if isinstance(q, Part):
                fused: str = self.make_matmul(self._fused, basename, root_input, **options)
                return fused
            return self.make_matmul(_stacked(self, (q, k, v)), basename, root_input, **options)

        def is_qkv_projection_packable(self, layer_id: int, attention: Any) -> bool:
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            return not any(isinstance(linear, Factored) for linear in projections)

        def make_attention(self, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
            if hasattr(attention, "qkv_proj"):
                self._fused = attention.qkv_proj
                split_attention(attention, self.q_size, self.kv_size)
            self.attention_attrs["scale"] = attention.scaling
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            self._first.update(_stacked_first(self, projections, f"/model/layers.{layer_id}/attn/qkv_proj", root_input))
            # a block with packed q/k/v after one without would attend to the other block's keys and values
            self.attention_attrs.update(k_path="", v_path="")
            super().make_attention(layer_id, attention, root_input, **options)

        def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
            if hasattr(mlp, "gate_up_proj"):
                split_gate_up(self, layer_id, mlp, root_input)
            projections = (mlp.gate_proj, mlp.up_proj)
            basename = f"/model/layers.{layer_id}/mlp/gate_up_proj"
            self._first.update(_stacked_first(self, projections, basename, root_input))
            super().make_mlp(layer_id, mlp, root_input)

        def make_matmul(self, matmul: Any, basename: str, root_input: str, **options: Any) -> str:
            if isinstance(matmul, Part):
                return matmul.node
            if isinstance(matmul, Factored):
                stem = basename.rpartition("/")[0]
                inner = self._first.pop(matmul, None)
                if inner is None:
                    factor, kind = _inner_factor(matmul)
                    inner = self.make_matmul(factor, f"{stem}/{kind}/MatMul", root_input) + "/output_0"
                if isinstance(matmul, PivotLinear):
                    return _remaining_rows(self, matmul, stem, inner, **options)
                return self.make_matmul(matmul.lowrank_u, f"{stem}/lowrank_u/MatMul", inner, **options)
            if hasattr(matmul, "parameters") and matmul in self._first:
                return self._first.pop(matmul).removesuffix("/output_0")
            matrix = _stacked(self, (matmul,)) if hasattr(matmul, "parameters") else matmul
            if isinstance(matrix, QuantisedMatrix):
                name: str = self.make_matmul_nbits(matrix, basename, root_input, **options)
            elif self._stored.half:
                name = _half_matmul(self, matrix, basename, root_input, **options)
            else:
                name = self.make_matmul_float(matrix, basename, root_input, **options)
            return name

        def make_embedding_lookup(self, embedding: Tensor, basename: str, lm_head: Any) -> str:
            matrix = self._stored.encoded.get(self._live_model.get_input_embeddings())
            if matrix is not None and not self.tied_quantized_embeddings:
                return _quantised_lookup(self, matrix, basename)
            if self._stored.half:
                return _half_lookup(self, embedding, basename)
            name: str = super().make_embedding_lookup(embedding, basename, lm_head)
            return name

    return LowRankBuilder


def _epsilon(layernorm: Any) -> float:
    """Of a torch norm, whatever the family calls it."""
    return float(getattr(layernorm, "variance_epsilon", None) or layernorm.eps)


def _inner_factor(linear: Factored) -> tuple[Any, str]:
    """The factor that multiplies the input, V or P, and its name."""
    if isinstance(linear, PivotLinear):
        return linear.lowrank_p, "lowrank_p"
    return linear.lowrank_v, "lowrank_v"


def _remaining_rows(
    builder: Any, linear: PivotLinear, stem: str, inner: str, *, logits: bool = False, seq_dim: Any = "sequence_length"
) -> str:
    """P x -> (P x, C P x) in the order of W's rows; returns the name of the last node, as `make_matmul` does.

    The permutation gathers whole rows, between two transpositions: on the last axis, one number at a time, Gather is
    2 to 4 times as slow as all three on a prompt.
    """
    rest = builder.make_matmul(linear.lowrank_c, f"{stem}/lowrank_c/MatMul", inner, seq_dim=seq_dim)
    shape = builder.make_hidden_state_shape(seq_dim=seq_dim, last_dim=linear.out_features)
    last, dtype = f"{stem}/Concat", builder.io_dtype
    builder.make_concat(last, [inner, f"{rest}/output_0"], dtype, shape, axis=-1)
    if linear.lowrank_perm is not None:
        perm = stem[1:].replace("/", ".") + ".lowrank_perm"
        builder.make_initializer(linear.lowrank_perm, perm)
        turned = [shape[0], shape[2], shape[1]]
        builder.make_transpose(f"{stem}/Transpose_1", f"{last}/output_0", dtype, turned, [0, 2, 1])
        builder.make_gather(f"{stem}/Gather", [f"{stem}/Transpose_1/output_0", perm], dtype, turned, axis=1)
        last = f"{stem}/Transpose_2"
        builder.make_transpose(last, f"{stem}/Gather/output_0", dtype, shape, [0, 2, 1])
    if logits:
        builder.make_node("Identity", inputs=[f"{last}/output_0"], outputs=["logits"], name=f"{stem}/Identity")
    return last


def _stacked_first(builder: Any, linears: tuple[Any, ...], basename: str, root_input: str) -> dict[Any, str]:
    """Multiply what meets the common input of several linears in one matmul: V or P of factored ones, W of dense ones.

    Small matmuls cost more to start than to run: one instead of three is faster, and changes no result. A W of another
    type than the factors stays apart.

    Returns:
        For every linear that took part, the value that holds its V x, P x or W x; nothing where none is factored, or
        fewer than two would take part.
    """
    factored = [linear for linear in linears if isinstance(linear, Factored)]
    if not factored:
        return {}
    first, kind = _inner_factor(factored[0])
    matrices = {linear: _inner_factor(linear)[0] if linear in factored else linear for linear in linears}
    format = _format(builder, first)
    alike = {linear: matrix for linear, matrix in matrices.items() if _format(builder, matrix) == format}
    if len(alike) < 2:
        return {}
    matmul = builder.make_matmul(_stacked(builder, tuple(alike.values())), f"{basename}/{kind}/MatMul", root_input)
    split = f"{basename}/{kind}/Split"
    outputs = [f"{split}_{index}/output_0" for index in range(len(alike))]
    rows = [matrix.out_features for matrix in alike.values()]
    builder.make_split(
        split,
        inputs=[f"{matmul}/output_0", f"/model/constants/INT64/{rows}"],
        outputs=outputs,
        dtypes=[builder.io_dtype] * len(alike),
        shapes=[builder.make_hidden_state_shape(last_dim=count) for count in rows],
    )
    return dict(zip(alike, outputs, strict=True))


def _format(builder: Any, matrix: Any) -> Any:
    """How a matrix is encoded; None for floats, which are all alike."""
    encoded = builder._stored.encoded.get(matrix)
    return None if encoded is None else encoded.format


def _stacked(builder: Any, linears: tuple[Any, ...]) -> Any:
    """Linears of one input, one above the other: a `QuantisedMatrix`, or what has a `weight`."""
    from types import SimpleNamespace

    import torch

    matrices = [builder._stored.encoded[linear] for linear in linears if linear in builder._stored.encoded]
    if len(matrices) == len(linears):
        return stack(matrices)
    return SimpleNamespace(weight=torch.cat([linear.weight for linear in linears]))


def _half_matmul(
    builder: Any, matmul: Any, name: str, root_input: str, *, logits: bool = False, seq_dim: Any = "sequence_length"
) -> str:
    """A matmul with a float16 weight that ONNX Runtime makes float32 once, when it loads the model."""
    import onnx_ir as ir

    rows, columns = matmul.weight.shape
    weight = name[1:].replace("/", ".") + ".weight"
    builder.make_initializer(matmul.weight.T, weight, to=ir.DataType.FLOAT16)
    builder.make_cast(f"{name}/Cast", weight, builder.io_dtype, [columns, rows])
    output = "logits" if logits else f"{name}/output_0"
    builder.make_node("MatMul", inputs=[root_input, f"{name}/Cast/output_0"], outputs=[output], name=name)
    builder.make_value(output, builder.io_dtype, builder.make_hidden_state_shape(seq_dim=seq_dim, last_dim=rows))
    return name


def _half_lookup(builder: Any, embedding: Tensor, basename: str) -> str:
    """Look tokens up in a float16 embedding, the output head's where they are tied."""
    import onnx_ir as ir

    table, half = "model.embed_tokens.weight", ir.DataType.FLOAT16
    if builder.tied_unquantized_embeddings:
        turn = f"{basename}/Transpose"
        builder.make_transpose(turn, "lm_head.MatMul.weight", half, list(embedding.shape), [1, 0])
        table = f"{turn}/output_0"
    else:
        builder.make_initializer(embedding, table, to=half)
    gather, shape = f"{basename}/Gather", builder.make_hidden_state_shape()
    builder.make_gather(gather, [table, builder.input_names["input_ids"]], half, shape, axis=0)
    builder.make_cast(f"{basename}/Cast", f"{gather}/output_0", builder.io_dtype, shape)
    return f"{basename}/Cast/output_0"


def _quantised_lookup(builder: Any, table: QuantisedMatrix, basename: str) -> str:
    """Look tokens up in an embedding of codes of its own (upstream quantises only a shared one)."""
    import onnx_ir as ir

    flat = table.qweight.reshape(table.out_features, -1)
    builder.make_initializer(flat, "model.embed_tokens.qweight")
    builder.make_initializer(table.scales, "model.embed_tokens.scales", to=ir.DataType.FLOAT)
    inputs = ["model.embed_tokens.qweight", builder.input_names["input_ids"], "model.embed_tokens.scales"]
    if table.qzeros is not None:
        builder.make_initializer(table.qzeros, "model.embed_tokens.qzeros")
        inputs.append("model.embed_tokens.qzeros")
    gather, output = f"{basename}/GatherBlockQuantized", f"{basename}/GatherBlockQuantized/output_0"
    builder.make_node(
        "GatherBlockQuantized",
        inputs=inputs,
        outputs=[output],
        name=gather,
        domain="com.microsoft",
        bits=table.bits,
        block_size=table.group_size,
        gather_axis=0,
        quantize_axis=1,
    )
    padded = flat.shape[1] * 8 // table.bits
    if padded == table.in_features:
        return output
    builder.make_value(output, builder.io_dtype, shape=builder.make_hidden_state_shape(last_dim=padded))
    bounds = [f"/model/constants/INT64/[{value}]" for value in (0, table.in_features, -1)]  # start, end, axis
    builder.make_slice(f"{basename}/Slice", [output, *bounds], builder.io_dtype, builder.make_hidden_state_shape())
    return f"{basename}/Slice/output_0"

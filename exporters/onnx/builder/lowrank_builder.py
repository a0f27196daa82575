"""GenAI's builder of one family, extended: factored linears, this project's encodings, a shared embedding.

The upstream names that it relies on are listed in `upstream.py`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ....converter.checkpoint.pivot_linear import PivotLinear
from ..upstream import builder_classes
from ..weights.quantize import QuantizedMatrix
from .builder_families import rotary_tables
from .factored_matmuls import Factored, alike, inner_factor, remaining_rows, stacked, stacked_first
from .fused_linears import Part, split_attention, split_gate_up
from .stored_matrices import half_lookup, half_matmul, quantized_lookup

if TYPE_CHECKING:
    from torch import Tensor


@cache
def lowrank_builder(class_name: str) -> Any:
    """The class of one family, by the name of its class upstream."""
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
            return self.make_matmul(stacked(self, (q, k, v)), basename, root_input, **options)

        def is_qkv_projection_packable(self, layer_id: int, attention: Any) -> bool:
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            if any(isinstance(linear, Factored) for linear in projections):
                return False
            return isinstance(attention.q_proj, Part) or alike(self, projections)

        def make_attention(self, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
            if hasattr(attention, "qkv_proj"):
                self._fused = attention.qkv_proj
                split_attention(attention, self.q_size, self.kv_size)
            self.attention_attrs["scale"] = attention.scaling
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            self._first.update(stacked_first(self, projections, f"/model/layers.{layer_id}/attn/qkv_proj", root_input))
            # a block with packed q/k/v after one without would attend to the other block's keys and values
            self.attention_attrs.update(k_path="", v_path="")
            super().make_attention(layer_id, attention, root_input, **options)

        def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
            if hasattr(mlp, "gate_up_proj"):
                split_gate_up(self, layer_id, mlp, root_input)
            projections = (mlp.gate_proj, mlp.up_proj)
            basename = f"/model/layers.{layer_id}/mlp/gate_up_proj"
            self._first.update(stacked_first(self, projections, basename, root_input))
            super().make_mlp(layer_id, mlp, root_input)

        def make_matmul(self, matmul: Any, basename: str, root_input: str, **options: Any) -> str:
            if isinstance(matmul, Part):
                return matmul.node
            if isinstance(matmul, Factored):
                stem = basename.rpartition("/")[0]
                inner = self._first.pop(matmul, None)
                if inner is None:
                    factor, kind = inner_factor(matmul)
                    inner = self.make_matmul(factor, f"{stem}/{kind}/MatMul", root_input) + "/output_0"
                if isinstance(matmul, PivotLinear):
                    return remaining_rows(self, matmul, stem, inner, **options)
                return self.make_matmul(matmul.lowrank_u, f"{stem}/lowrank_u/MatMul", inner, **options)
            if hasattr(matmul, "parameters") and matmul in self._first:
                return self._first.pop(matmul).removesuffix("/output_0")
            matrix = stacked(self, (matmul,)) if hasattr(matmul, "parameters") else matmul
            if isinstance(matrix, QuantizedMatrix):
                name: str = self.make_matmul_nbits(matrix, basename, root_input, **options)
            elif self._stored.half:
                name = half_matmul(self, matrix, basename, root_input, **options)
            else:
                name = self.make_matmul_float(matrix, basename, root_input, **options)
            return name

        def make_embedding_lookup(self, embedding: Tensor, basename: str, lm_head: Any) -> str:
            matrix = self._stored.encoded.get(self._live_model.get_input_embeddings())
            if matrix is not None and not self.tied_quantized_embeddings:
                return quantized_lookup(self, matrix, basename)
            if self._stored.half:
                return half_lookup(self, embedding, basename)
            name: str = super().make_embedding_lookup(embedding, basename, lm_head)
            return name

    return LowRankBuilder


def _epsilon(layernorm: Any) -> float:
    """Of a torch norm, whatever the family calls it."""
    return float(getattr(layernorm, "variance_epsilon", None) or layernorm.eps)

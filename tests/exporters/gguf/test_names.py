"""Tensor names and the rotary row order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.table import gguf_of
from lowrank_export.exporters.gguf.names import gguf_name, interleave_rows, rotary_heads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("lm_head.lowrank_u.weight", "output.lowrank_u.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.7.post_attention_layernorm.weight", "blk.7.ffn_norm.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.11.self_attn.o_proj.lowrank_v.weight", "blk.11.attn_output.lowrank_v.weight"),
        ("model.layers.3.mlp.down_proj.lowrank_u.weight", "blk.3.ffn_down.lowrank_u.weight"),
        ("model.layers.3.self_attn.rotary_emb.inv_freq", None),
    ],
)
def test_names(name: str, expected: str | None) -> None:
    assert gguf_name(name, gguf_of({"model_type": "llama"})) == expected


def test_query_norm_belongs_to_qwen3_only() -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    assert gguf_name(name, gguf_of({"model_type": "qwen3"})) == "blk.0.attn_q_norm.weight"
    with pytest.raises(InputError, match="q_norm"):
        gguf_name(name, gguf_of({"model_type": "llama"}))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.1.weight", "model.layers.x.mlp.up_proj.weight", "x"])
def test_unknown_tensor_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no place"):
        gguf_name(name, gguf_of({"model_type": "llama"}))


def test_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"llama, mistral, qwen2, qwen3.*'gpt_neox'"):
        gguf_of({"model_type": "gpt_neox"})


def test_only_rows_of_q_and_k_are_reordered() -> None:
    llama = gguf_of({"model_type": "llama"})
    assert rotary_heads("blk.0.attn_q.weight", llama, 4, 2) == 4
    assert rotary_heads("blk.0.attn_q.bias", llama, 4, 2) == 4
    assert rotary_heads("blk.0.attn_k.lowrank_u.weight", llama, 4, 2) == 2
    assert rotary_heads("blk.0.attn_k.lowrank_v.weight", llama, 4, 2) is None
    assert rotary_heads("blk.0.attn_k.lowrank_perm", llama, 4, 2) == 2
    assert rotary_heads("blk.0.attn_k.lowrank_p.weight", llama, 4, 2) is None
    assert rotary_heads("blk.0.attn_k.lowrank_c.weight", llama, 4, 2) is None
    assert rotary_heads("blk.0.attn_v.weight", llama, 4, 2) is None
    assert rotary_heads("blk.0.attn_q.weight", gguf_of({"model_type": "qwen2"}), 4, 2) is None


@given(heads=st.integers(1, 4), half=st.integers(1, 5), width=st.integers(1, 3))
def test_row_i_and_its_partner_become_neighbors(heads: int, half: int, width: int) -> None:
    d = 2 * half
    rows = np.arange(heads * d * width, dtype=np.float32).reshape(heads * d, width)
    got = interleave_rows(rows, heads)
    for head in range(heads):
        for i in range(half):
            assert (got[head * d + 2 * i] == rows[head * d + i]).all()
            assert (got[head * d + 2 * i + 1] == rows[head * d + i + half]).all()


def test_reordering_rows_of_w_is_reordering_rows_of_u() -> None:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((32, 5)).astype(np.float32)
    v = rng.standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_allclose(interleave_rows(u @ v, 4), interleave_rows(u, 4) @ v, rtol=1e-5)


def test_rows_that_do_not_split_are_refused() -> None:
    with pytest.raises(InputError, match="10 rows"):
        interleave_rows(np.zeros((10, 2), dtype=np.float32), 4)

"""Which type every tensor gets."""

from __future__ import annotations

import pytest

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.storage.gguf_header import Header
from lowrank_export.exporters.gguf.mixes import (
    Quantization,
    choose_types,
    exported_as,
    fallback_lines,
    predict_bytes,
    records,
)
from lowrank_export.exporters.gguf.types import TYPES

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def file(rank: int | None, *, tied: bool = True, blocks: int = 2, pivot: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of a 512-wide model, factored at a rank or dense."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (320, 512), "output_norm.weight": (512,)}
    if not tied:
        shapes["output.weight"] = (320, 512)
    for block in range(blocks):
        for linear in LINEARS:
            name = f"blk.{block}.{linear}"
            if rank is None:
                shapes[f"{name}.weight"] = (512, 512)
            elif pivot:
                shapes |= {f"{name}.lowrank_p.weight": (rank, 512), f"{name}.lowrank_c.weight": (512 - rank, rank)}
                shapes[f"{name}.lowrank_perm"] = (512,)
            else:
                shapes |= {f"{name}.lowrank_u.weight": (512, rank), f"{name}.lowrank_v.weight": (rank, 512)}
        shapes[f"blk.{block}.attn_norm.weight"] = (512,)
    return shapes


def stored(shapes: dict[str, tuple[int, ...]], mix: str, **options: str) -> dict[str, str]:
    return {name: choice.stored for name, choice in choose_types(shapes, Quantization(mix, **options)).items()}


@pytest.mark.parametrize("name", TYPES)
def test_plain_types(name: str) -> None:
    types = stored(file(256, tied=False), name)
    assert types["blk.0.attn_norm.weight"] == "f32"
    assert {types["blk.0.ffn_up.lowrank_u.weight"], types["blk.1.ffn_down.lowrank_v.weight"]} == {name}
    assert types["token_embd.weight"] == ("q3_k" if TYPES[name].importance else name)
    assert types["output.weight"] == (name if TYPES[name].bits > 6 else "q6_k")


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize(
    ("mix", "base", "larger"),
    [
        ("q3_k_m", "q3_k", "q4_k"),
        ("q4_k_s", "q4_k", "q5_k"),
        ("q4_k_m", "q4_k", "q6_k"),
        ("q5_k_m", "q5_k", "q6_k"),
    ],
)
def test_mixes_of_factors(mix: str, base: str, larger: str, pivot: bool) -> None:
    types = stored(file(256, pivot=pivot), mix)
    assert {type for name, type in types.items() if name.startswith("token_embd")} == {"q6_k"}
    for name, type in types.items():
        linear = name.split(".")[2] if name.startswith("blk.") else ""
        if linear in LINEARS:
            expected = base if linear in ("ffn_gate", "ffn_up") else larger
            assert type == ("i32" if name.endswith("perm") else expected), name


def test_embedding_and_head_options() -> None:
    untied = file(256, tied=False)
    embedding, head = "token_embd.weight", "output.weight"
    types = stored(untied, "q4_k_m", embedding="q5_1", head="q8_0")
    assert (types[embedding], types[head]) == ("q5_1", "q8_0")
    assert (stored(untied, "q4_k_m")[embedding], stored(untied, "q4_k_m")[head]) == ("q4_k", "q6_k")
    for option in ("embedding", "head"):
        assert stored(file(256), "q4_k_m", **{option: "q8_0"})[embedding] == "q8_0"
    with pytest.raises(UsageError, match="one type, not f16 and q8_0"):
        stored(file(256), "q4_k_m", embedding="f16", head="q8_0")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"'q4_k_n'; did you mean 'q4_k"):
        Quantization("q4_k_n")
    with pytest.raises(UsageError, match="unknown GGUF type 'q4_k_m'"):
        Quantization("q8_0", head="q4_k_m")  # a mix is no type


def test_fallbacks_are_recorded() -> None:
    found = {record.name: record for record in records(file(96), Quantization("q4_k_m")) if record.wanted}
    up, query = found["blk.0.ffn_up.lowrank_u.weight"], found["blk.1.attn_q.lowrank_u.weight"]
    assert (up.wanted, up.type) == ("q4_k", "q5_0") and (query.wanted, query.type) == ("q6_k", "q8_0")
    assert all(name.endswith("lowrank_u.weight") for name in found) and len(found) == 14
    assert not any(record.wanted for record in records(file(96), Quantization("q8_0")))
    assert {record.type for record in records(file(20), Quantization("q8_0")) if record.wanted == "q8_0"} == {"f16"}


def test_fallback_lines_are_grouped() -> None:
    shapes = file(96, blocks=5)
    shapes |= {"blk.3.ffn_up.lowrank_u.weight": (512, 256), "blk.4.ffn_up.lowrank_u.weight": (512, 64)}
    lines = fallback_lines(records(shapes, Quantization("q4_k_m")))
    assert len(lines) == 2
    assert lines[0].startswith("stored as q8_0 (8.5 bits per weight) instead of q6_k (6.562), whose blocks of 256")
    assert "attn_q.lowrank_u.weight (rows of 96, blocks 0-4)" in lines[0]
    assert "ffn_up.lowrank_u.weight (rows of 64, 96, blocks 0-2, 4)" in lines[1]
    assert fallback_lines(records(file(256), Quantization("q4_k_m"))) == []


def test_prediction_counts_alignment_and_fallbacks() -> None:
    assert predict_bytes({"output_norm.weight": (3,), "token_embd.weight": (2, 32)}, Quantization("q8_0")) == 32 + 96
    assert predict_bytes({"token_embd.weight": (16, 288)}, Quantization("q4_k")) == 16 * 288 // 32 * 34


@pytest.mark.parametrize("asked", [Quantization("q4_k_m"), Quantization("q2_k", embedding="q8_0", head="f16")])
def test_what_a_file_says_of_itself(asked: Quantization) -> None:
    def header(made: str) -> Header:
        return Header({"general.quantized_by": made}, (), 0)

    assert exported_as(header(f"lowrank-export {asked}")) == asked
    for other in ("someone", f"other {asked}", "lowrank-export q4_k_x", "lowrank-export q4_k mouth=q8_0"):
        assert exported_as(header(other)) is None

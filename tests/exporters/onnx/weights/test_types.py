"""Types and options: which matrix is stored how, and what is refused."""

from __future__ import annotations

import pytest

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.exporters.onnx.weights.quantize import BlockFormat
from lowrank_export.exporters.onnx.weights.types import QUANTIZATIONS, OnnxOptions, bits_of, block_format, row_multiple

LINEAR = "model.layers.0.mlp.up_proj"


def test_bits_of_every_kind() -> None:
    names = [f"{LINEAR}.lowrank_{factor}.weight" for factor in "vpuc"]
    names += [f"{LINEAR}.weight", "model.embed_tokens.weight", "lm_head.weight"]
    assert [bits_of(name, "int4-mix") for name in names] == [8, 8, 4, 4, 4, 8, 8]
    narrowing = [f"model.layers.0.mlp.down_proj.lowrank_{factor}.weight" for factor in "vpuc"]
    assert [bits_of(name, "int4-mix") for name in narrowing] == [4, 8, 8, 4], (
        "the smaller of U and V; pivot rows always"
    )
    assert [bits_of(name, "int4") for name in names] == [4, 4, 4, 4, 4, 8, 8]
    assert {bits_of(name, "fp16") for name in names} == {16}


def test_format_is_none_for_floats() -> None:
    asked = OnnxOptions(64, symmetric=False)
    assert block_format(f"{LINEAR}.weight", "int8", asked) == BlockFormat(8, 64, symmetric=False)
    assert block_format(f"{LINEAR}.weight", "fp16", asked) is None


def test_rows_fill_their_blocks() -> None:
    found = {type: [row_multiple(type, OnnxOptions(block)) for block in (16, 32, 128)] for type in QUANTIZATIONS}
    assert found == {
        "fp32": [1, 1, 1],
        "fp16": [1, 1, 1],
        "int8": [16, 32, 128],
        "int4": [64, 64, 128],
        "int4-mix": [64, 64, 128],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 48}, "--onnx-block-size 48: one of 16, 32, 64, 128, 256"),
        ({"accuracy_level": 2}, "--onnx-accuracy-level 2: one of 0, 1, 4"),
        ({"rounding": "awar"}, "--onnx-rounding awar: unknown rounding, did you mean 'aware'"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        OnnxOptions(**options)  # type: ignore[arg-type]
    assert message in str(error.value).replace(";", ",")


def test_said_of_codes_and_factors() -> None:
    assert OnnxOptions().recorded("fp16") == "" and OnnxOptions(factors="all").recorded("fp16") == "all factors"
    assert OnnxOptions(factors="all").recorded("int8").endswith("plain rounding, all factors")
    assert (
        OnnxOptions(64, False, 0, "aware").recorded("int4")
        == "blocks of 64, asymmetric, accuracy level 0, aware rounding"
    )

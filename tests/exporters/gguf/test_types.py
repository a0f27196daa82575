"""Storage types: sizes, blocks and fallbacks agree with gguf-py's tables."""

from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.exporters.gguf.mixes import MIXES
from lowrank_export.exporters.gguf.types import TYPES, fitting_type, storage_type, tensor_bytes


@pytest.mark.parametrize("name", TYPES)
def test_blocks_are_those_of_ggml(name: str) -> None:
    assert (TYPES[name].block, TYPES[name].bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]


@pytest.mark.parametrize("name", MIXES)
def test_file_types_are_those_of_llama_cpp(name: str) -> None:
    """Plain K-quants have no number of their own: they go by that of the small mix."""
    file_type = LlamaFileType(MIXES[name].file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    assert file_type in (name, f"{name}_s")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("row", [256, 288, 20])
def test_what_stands_in_fits_and_is_at_least_as_precise(name: str, row: int) -> None:
    stored = fitting_type(name, row)
    assert row % TYPES[stored].block == 0
    assert TYPES[stored].bits >= TYPES[name].bits
    assert (stored == name) == (row % TYPES[name].block == 0)


def test_fallbacks_of_llama_cpp() -> None:
    asked = ["iq4_xs", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"]
    assert [fitting_type(name, 288) for name in asked] == ["iq4_nl", "iq4_nl", "iq4_nl", "q5_0", "q5_1", "q8_0", "q8_0"]
    assert {fitting_type(name, 20) for name in asked} == {"f16"}


def test_unknown_type() -> None:
    with pytest.raises(UsageError, match=r"unknown GGUF type 'q8_1'; did you mean 'q8_0'"):
        storage_type("q8_1")


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="rows of 20"):
        tensor_bytes((2, 20), "q8_0")

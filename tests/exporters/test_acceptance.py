"""What an export would refuse is refused before the work, with the same line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.recipe import read_recipe
from lowrank_export.converter.families.table import gguf_families
from lowrank_export.exporters.export import export
from lowrank_export.exporters.preflight import check_exports, refusals
from lowrank_export.exporters.registry import requested

BOTH = ("gguf", "onnx")
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "a family": ("opt", {}, ("gguf",), "GGUF export supports"),
    "an activation": ("llama", {"hidden_act": "gelu"}, ("gguf",), "hidden_act.*which GGUF export does not carry|silu"),
    "a rotary embedding": ("llama", {"rope_parameters": DYNAMIC}, BOTH, "dynamic"),
    "a size of heads": ("llama", {"head_dim": 24}, ("onnx",), "heads of 24 numbers .* multiples of 16"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_are_refused_first(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    family, options, formats, needle = REFUSED[kind]
    tiny.save_dense(tmp_path / "m", family, blocks=1, **options)
    for format in BOTH:
        request, reader = requested(format), CheckpointReader(tmp_path / "m")
        if format not in formats:
            check_exports(reader, [request])
            continue
        with pytest.raises(InputError, match=needle) as refused:
            check_exports(reader, [request])
        assert refusals(reader, [request]) == [f"{request.name}: {refused.value}"]
        with pytest.raises(InputError, match=needle):
            export(tmp_path / "m", tmp_path / "out", request)


@pytest.mark.parametrize("format", BOTH)
def test_a_tokenizer_with_more_tokens_than_rows(format: str, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path, "llama", blocks=1)
    tokenizer = type(tiny.tokenizer()).from_pretrained(str(tmp_path))
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has token id 320.* but the embedding only 320 rows"):
        check_exports(CheckpointReader(tmp_path), [requested(format)])


@pytest.mark.parametrize("format", BOTH)
def test_a_pretokenizer_and_no_tokenizer(format: str, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path, "llama", blocks=1)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, data["pre_tokenizer"]]}
    path.write_text(json.dumps(data))
    if format == "gguf":
        with pytest.raises(InputError, match=r"no pre-tokenizer of llama\.cpp"):
            check_exports(CheckpointReader(tmp_path), [requested(format)])
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match="no usable tokenizer"):
        check_exports(CheckpointReader(tmp_path), [requested(format)])


def test_every_family_and_layout_that_is_written_passes(tiny: ModuleType, tmp_path: Path) -> None:
    for family in tiny.FAMILIES:
        tiny.save_dense(tmp_path / family, family, blocks=1)
        formats = BOTH if family in gguf_families() else ("onnx",)
        check_exports(CheckpointReader(tmp_path / family), [requested(format) for format in formats])
    for layout in ("two-factor", "pivot"):
        tiny.save_factored(tmp_path / layout, "llama", blocks=1, rank=16, layout=layout)
        check_exports(CheckpointReader(tmp_path / layout), [requested(format) for format in BOTH])


def compress(folder: Path, out: Path, *options: str) -> Any:
    given = ["--model", str(folder), "--calibration", str(folder.parent / "text.txt"), "--method", "svd-llm"]
    sizes = ["--windows", "2", "--window-length", "16", "--held-out", "0", "--out", str(out)]
    return CliRunner().invoke(app, ["compress", *given, *sizes, *options])


def test_compress_asks_the_formats_that_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    """Only those; types of linears need no rounding yet; ranks suit the types, unless a multiple is given."""
    wide = {"hidden_size": 128, "intermediate_size": 384, "attention_bias": True}
    tiny.save_dense(tmp_path / "m", "gemma", blocks=1, **wide)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    for options in (["--format", "gguf"], ["--gguf-type", "iq2_xs"], ["--format", "onnx", "--format", "gguf"]):
        refused = compress(tmp_path / "m", tmp_path / "out", *options)
        assert refused.exit_code == 3 and "which GGUF export does not carry" in refused.stderr, refused.stderr
        assert "compressing" not in refused.stderr and not (tmp_path / "out").exists()
    wide = {"hidden_size": 768, "intermediate_size": 768, "num_key_value_heads": 4, "head_dim": 192}
    tiny.save_dense(tmp_path / "wide", "gemma", blocks=1, **wide)
    done = compress(tmp_path / "wide", tmp_path / "out", "--format", "onnx", "--onnx-type", "int4")
    assert done.exit_code == 0, done.stderr
    assert {rank % 64 for rank in CheckpointReader(tmp_path / "out").ranks.values()} == {0}
    assert read_recipe(tmp_path / "out" / "recipe.yaml").rank_multiple == 64
    tiny.save_dense(tmp_path / "llama", "llama", blocks=1, hidden_size=256, intermediate_size=384)
    done = compress(tmp_path / "llama", tmp_path / "iq", "--gguf-type", "iq2_xs", "--rank-multiple", "8")
    assert done.exit_code == 0, done.stderr

"""Whole exports of tiny random models of every family."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowrank_export.converter.checkpoint.layouts import LAYOUTS, Layout
from lowrank_export.converter.checkpoint.lowrank_linear import replace_linears
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.checkpoint.transformers_integration import LowRankConfig
from lowrank_export.converter.core.errors import InputError, LowRankError, ResourceError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load, load_tokenizer
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.exporters.onnx import upstream
from lowrank_export.exporters.onnx.check.selfcheck import kld
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.weights.multiplied_out import stored_shapes
from lowrank_export.exporters.onnx.weights.quantize import BlockFormat, quantize
from lowrank_export.exporters.onnx.weights.sizes import predict_bytes, rotary_elements
from lowrank_export.exporters.onnx.weights.types import QUANTIZATIONS, OnnxOptions, bits_of, block_format
from lowrank_export.runtime_tests.artifacts import describe

VOCABULARY = 320  # of tests/tiny.py
ODD_RANK = 37  # neither a multiple of the block nor of anything else
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CASES = [
    *[(family, factored, factored) for family in FAMILIES for factored in (True, False)],  # factored tied, dense untied
    ("llama", True, False),
    ("llama", False, True),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"hidden_size": 80},  # rows that do not fill their last block
    "qwen3": {},
}
Saved = Callable[..., tuple[Path, Any]]


class Frozen(dict[str, Any]):
    """A dictionary that can be the key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


# KLD to the torch model that the weights were rounded from: of a tiny random model, whose logits are small
LOSSES = {"fp32": 1e-6, "fp16": 1e-5, "int8": 0.005, "int4-mix": 0.1, "int4": 0.2}
TYPES = tuple(QUANTIZATIONS)
ALL = OnnxOptions(factors="all")  # a model this narrow would have hardly a factor left
ASYMMETRIC = OnnxOptions(block_size=16, symmetric=False, factors="all")


def export(
    checkpoint: Path,
    out: Path,
    quantization: str = "fp32",
    *,
    options: OnnxOptions | None = None,
    force: bool = False,
) -> Artifact:
    progress = SilentProgress()
    return export_onnx(
        checkpoint, out, quantization=quantization, options=options or ALL, force=force, progress=progress
    )


def torch_logits(model: Any, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Saved:
    """Write a checkpoint once per module: family, rank (None: dense), options -> path, torch model."""

    @cache
    def save(family: str, rank: int | None, **options: Any) -> tuple[Path, Any]:
        path = tmp_path_factory.mktemp("checkpoint")
        if rank is None:
            return path, tiny.save_dense(path, family, **options)
        return path, tiny.save_factored(path, family, rank=rank, **options)

    return save


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize(("family", "factored", "tied"), CASES)
def test_logits_agree_with_torch(
    tmp_path: Path, saved: Saved, tiny: ModuleType, family: str, factored: bool, tied: bool, quantization: str
) -> None:
    checkpoint, model = saved(family, ODD_RANK if factored else None, tied=tied, **OPTIONS[family])
    artifact = export(checkpoint, tmp_path / "out", quantization)
    tokens = np.random.default_rng(7).integers(0, tiny.VOCABULARY, 40, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    reference = torch_logits(model, tokens)
    if quantization == "fp32":
        np.testing.assert_allclose(logits, reference, atol=1e-4)
    else:
        assert kld(reference, logits).mean() < LOSSES[quantization]
        assert (logits.argmax(-1) == reference.argmax(-1)).mean() > (0.8 if quantization in ("fp16", "int8") else 0.4)
    assert artifact.layout == ("native" if factored else "dense")
    assert artifact.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing may be left beside the export"


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pivot_layout_agrees_with_torch(
    tmp_path: Path, saved: Saved, tiny: ModuleType, family: str, quantization: str
) -> None:
    checkpoint, model = saved(family, 27, layout="pivot", **OPTIONS[family])
    artifact = export(checkpoint, tmp_path / "out", quantization)
    tokens = np.random.default_rng(7).integers(0, tiny.VOCABULARY, 40, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    first, cache = decoder.run(tokens[:39], decoder.empty_cache, keep_cache=True)
    last, _ = decoder.run(tokens[39:], cache, keep_cache=False)
    logits, reference = np.concatenate([first, last]), torch_logits(model, tokens)
    if quantization == "fp32":
        np.testing.assert_allclose(logits, reference, atol=1e-4)
    else:
        assert kld(reference, logits).mean() < 2 * LOSSES[quantization]
    assert artifact.layout == "native"
    assert artifact.parameters == sum(parameter.numel() for parameter in model.parameters())
    permuted = {record.name for record in artifact.tensors if record.name.endswith("lowrank_perm")}
    assert "model.layers.0.attn.q_proj.lowrank_perm" in permuted and len(permuted) == 2 * 5
    assert "model.layers.0.mlp.up_proj.lowrank_perm" not in permuted
    metadata = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).metadata_props
    assert {entry.key: entry.value for entry in metadata}["lowrank.layout"] == "pivot"


@pytest.fixture(scope="module")
def factored(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    path: Path = tmp_path_factory.mktemp("factored") / "checkpoint"
    tiny.save_factored(path, "llama", rank=32)
    (path / "recipe.yaml").write_text("method: svd\n", encoding="utf-8")
    return path


def test_folder_and_metadata(tmp_path: Path, factored: Path) -> None:
    artifact = export(factored, tmp_path / "out")
    files = {path.name for path in artifact.path.iterdir()}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= files
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["lowrank.version"] == "1" and metadata["lowrank.layout"] == "two-factor"
    assert metadata["lowrank.method"] == "svd" and metadata["lowrank.retention"] == "1.0"
    assert metadata["lowrank.recipe"] == "method: svd\n"
    assert metadata["lowrank.exporter"].startswith("onnxruntime-genai 0.18")
    assert metadata["lowrank.opset.ai.onnx"] == str(next(one.version for one in model.opset_import if not one.domain))
    assert metadata["lowrank.ir_version"] == str(model.ir_version)
    assert describe(tmp_path / "out").facts == artifact.facts
    assert artifact.facts["opset.ai.onnx"] == "22" and "recipe" not in artifact.facts
    assert model.producer_name == "lowrank-export"
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(config) and str(factored) not in json.dumps(config)


def test_artifact_lists_the_tensors(tmp_path: Path, factored: Path) -> None:
    artifact = export(factored, tmp_path / "out", "int8")
    tensors = {record.name: record for record in artifact.tensors}
    record = tensors["model.layers.0.attn.q_proj.lowrank_u.MatMulNBits.qweight"]
    assert (record.shape, record.type, record.bytes) == ((64, 1, 32), "uint8", 64 * 32)
    stacked = tensors["model.layers.0.attn.qkv_proj.lowrank_v.MatMulNBits.qweight"]
    assert stacked.shape == (3 * 32, 2, 32), "one matmul for the V of q, k and v"
    assert artifact.bytes == sum((tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert 0 <= artifact.bytes - sum(record.bytes for record in artifact.tensors) < 60_000, "the graph, no second copy"


@pytest.mark.parametrize("quantization", TYPES)
def test_tied_embedding_is_stored_once(tmp_path: Path, factored: Path, tiny: ModuleType, quantization: str) -> None:
    artifact = export(factored, tmp_path / "out", quantization)
    stored = [record for record in artifact.tensors if np.prod(record.shape) >= tiny.VOCABULARY * tiny.HIDDEN]
    assert len(stored) == 1 and stored[0].name.startswith("lm_head")


@pytest.mark.parametrize("options", [OnnxOptions(), ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("quantization", TYPES)
def test_tying_saves_a_whole_embedding_in_the_file(
    tmp_path: Path, saved: Saved, tiny: ModuleType, quantization: str, options: OnnxOptions
) -> None:
    tied, untied = (
        export(saved("llama", 32, tied=tied)[0], tmp_path / str(tied), quantization, options=options)
        for tied in (True, False)
    )
    format = block_format("lm_head.weight", quantization, options)
    row = (
        tiny.HIDDEN * bits_of("lm_head.weight", quantization) // 8 if format is None else format.row_bytes(tiny.HIDDEN)
    )
    assert untied.bytes - tied.bytes == pytest.approx(tiny.VOCABULARY * row, abs=1500)


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize(
    ("family", "tied", "rank", "layout"),
    [("llama", True, 96, "two-factor"), ("llama", True, 96, "pivot"), ("qwen2", False, None, "two-factor")],
)
def test_predicted_bytes(
    tmp_path: Path, saved: Saved, family: str, tied: bool, rank: int | None, layout: Layout, quantization: str
) -> None:
    options = {"layout": layout} if rank else {}
    checkpoint, _ = saved(family, rank, tied=tied, blocks=1, hidden_size=256, head_dim=64, **options)
    reader, encoding = CheckpointReader(checkpoint), OnnxOptions() if tied else ASYMMETRIC
    predicted = predict_bytes(
        stored_shapes({name: reader.shape(name) for name in reader.names}, quantization, encoding),
        quantization,
        tied=tied,
        rotary_elements=rotary_elements(reader.config),
        options=encoding,
    )
    made = export(checkpoint, tmp_path / "out", quantization, options=encoding)
    assert predicted == pytest.approx(made.bytes, rel=0.03 if QUANTIZATIONS[quantization].dense > 4 else 0.06)


def test_prediction_pads_odd_ranks_to_whole_blocks() -> None:
    matrix = quantize(torch.randn(20, ODD_RANK), BlockFormat(8, OnnxOptions().block_size))
    stored = matrix.qweight.numel() + 4 * matrix.scales.numel()
    shape = {"x.lowrank_u.weight": (20, ODD_RANK)}
    assert predict_bytes(shape, "int8", tied=False) - predict_bytes({"x": (0,)}, "int8", tied=False) == stored


def test_prediction_counts_a_tied_head_once() -> None:
    shapes = {"model.embed_tokens.weight": (320, 64), "lm_head.weight": (320, 64)}
    embedding_only = {"model.embed_tokens.weight": (320, 64)}
    assert predict_bytes(shapes, "int8", tied=True) == predict_bytes(embedding_only, "int8", tied=True)
    assert predict_bytes(shapes, "int8", tied=False) > predict_bytes(shapes, "int8", tied=True)
    with pytest.raises(ValueError, match="int3"):
        predict_bytes(shapes, "int3", tied=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantization", TYPES)
def test_some_linears_factored_and_the_head_too(
    tmp_path: Path, tiny: ModuleType, quantization: str, layout: Layout
) -> None:
    layer = "model.layers.0."
    ranks = {f"{layer}self_attn.q_proj": 20, f"{layer}self_attn.v_proj": 31, f"{layer}mlp.up_proj": 40, "lm_head": 48}
    model = tiny.model("qwen2", tied=False)
    replace_linears(model, ranks, layout)
    with torch.no_grad():
        for name in ranks:
            for parameter in model.get_submodule(name).parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter))
            for buffer in model.get_submodule(name).buffers():
                buffer.copy_(torch.randperm(len(buffer)))
    model.config.quantization_config = LowRankConfig(layout=layout, ranks=ranks, retention=0.9, method="svd")
    model.save_pretrained(tmp_path / "in")
    tiny.tokenizer().save_pretrained(tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out", quantization)
    tokens = np.arange(1, 31, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    assert kld(torch_logits(model, tokens), logits).mean() < 2 * LOSSES[quantization]  # the head is in few bits too


def test_linear_as_wide_as_the_vocabulary_is_not_taken_for_the_head(tmp_path: Path, saved: Saved) -> None:
    checkpoint, model = saved("llama", None, intermediate_size=VOCABULARY)
    export(checkpoint, tmp_path / "out")
    tokens = np.arange(20, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    np.testing.assert_allclose(logits, torch_logits(model, tokens), atol=1e-4)


def test_existing_output(tmp_path: Path, factored: Path) -> None:
    out = tmp_path / "out"
    export(factored, out)
    with pytest.raises(UsageError, match="exists"):
        export(factored, out)
    (out / "stale").touch()
    export(factored, out, force=True)
    assert not (out / "stale").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_nothing_but_an_export(tmp_path: Path, factored: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="not an ONNX export"):
        export(factored, tmp_path, force=True)
    assert (tmp_path / "thesis.txt").exists()


def test_unknown_quantization_and_family(tmp_path: Path, factored: Path, tiny: ModuleType) -> None:
    with pytest.raises(UsageError, match="'int3' is unknown; one of fp32, fp16, int8, int4, int4-mix"):
        export(factored, tmp_path / "out", "int3")
    tiny.save_dense(tmp_path / "in", "llama")
    config = tmp_path / "in" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"llama"', '"bloom"'), encoding="utf-8")
    with pytest.raises(InputError, match="'bloom' cannot be exported to ONNX; supported: llama"):
        export(tmp_path / "in", tmp_path / "out")


def raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (MemoryError(), "out of memory"),
        (OSError(errno.EROFS, "Read-only file system"), "not writable"),
    ],
)
def test_full_disk_or_memory_leaves_the_old_export(
    tmp_path: Path, factored: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr("onnx_ir.save", raises(error))
    with pytest.raises(ResourceError, match=message):
        export(factored, out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.onnx").read_bytes() == b"old"


def test_tokenizer_of_another_model(tmp_path: Path, saved: Saved) -> None:
    checkpoint, _ = saved("llama", None, blocks=1, vocab_size=100)
    with pytest.raises(InputError, match="the model knows 100 tokens"):
        export(checkpoint, tmp_path / "out")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no usable tokenizer") as error:
        export(checkpoint, tmp_path / "out")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


ROPES = {
    "default": {"rope_theta": 500.0},
    "llama3": {
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_embeddings(tmp_path: Path, saved: Saved, kind: str) -> None:
    checkpoint, model = saved("llama", None, blocks=1, rope_parameters=Frozen(rope_type=kind, **ROPES[kind]))
    export(checkpoint, tmp_path / "out")
    tokens = np.random.default_rng(8).integers(0, VOCABULARY, 200, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    np.testing.assert_allclose(logits, torch_logits(model, tokens), atol=1e-4)


def test_builder_failure_is_one_line(tmp_path: Path, factored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.builder_classes().Model, "make_initializer", raises(TypeError("moved\nargument")))
    with pytest.raises(LowRankError, match="model builder failed: TypeError: moved argument") as error:
        export(factored, tmp_path / "out")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_nothing_is_printed(tmp_path: Path, factored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(factored, tmp_path / "out")
    printed = capfd.readouterr()
    assert printed.out == "" and "Reading" not in printed.err and "GroupQuery" not in printed.err


@pytest.mark.parametrize("options", [replace(ALL, block_size=64), ASYMMETRIC, replace(ALL, accuracy_level=0)], ids=str)
@pytest.mark.parametrize(("family", "rank", "tied"), [("llama", ODD_RANK, True), ("qwen2", None, False)])
def test_options_of_the_encoding(
    tmp_path: Path, saved: Saved, family: str, rank: int | None, tied: bool, options: OnnxOptions
) -> None:
    checkpoint, model = saved(family, rank, tied=tied, **OPTIONS[family])
    export(checkpoint, tmp_path / "out", "int4-mix", options=options)
    tokens = np.arange(1, 31, dtype=np.int32)
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    assert kld(torch_logits(model, tokens), logits).mean() < LOSSES["int4"]
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    nodes = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    found = {(a.name, a.i) for node in nodes for a in node.attribute if a.name in ("block_size", "accuracy_level")}
    assert found == {("block_size", options.block_size), ("accuracy_level", options.accuracy_level)}
    assert {len(node.input) for node in nodes} == {3 if options.symmetric else 4}
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata["lowrank.quantisation"] == "int4-mix"
    assert metadata["lowrank.encoding"] == options.recorded("int4-mix") != ""


def test_bits_of_every_kind_of_matrix(tmp_path: Path, factored: Path) -> None:
    export(factored, tmp_path / "out", "int4-mix")
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph
    bits = {
        node.name: attribute.i
        for node in graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    assert bits.pop("/lm_head/MatMulNBits") == bits.pop("/model/embed_tokens/GatherBlockQuantized") == 8
    wide = {name for name in bits if ("lowrank_u" if "down_proj" in name else "lowrank_v") in name}
    assert {name: 8 if name in wide else 4 for name in bits} == bits and len(wide) == 2 * 4


@pytest.fixture
def calibrated(tmp_path: Path, tiny: ModuleType) -> Callable[..., Path]:
    """Writes a checkpoint that records its calibration text."""

    def make(save: Callable[..., Any], **options: Any) -> Path:
        text = tmp_path / "notes.txt"
        text.write_text(tiny.TEXT, encoding="utf-8")
        save(tmp_path / "in", "llama", **options)
        drawn = calibrate(str(text), load_tokenizer(tmp_path / "in"), windows=6, length=64, held_out=0, seed=0)
        (tmp_path / "in" / "calibration.json").write_text(json.dumps(drawn.record()), encoding="utf-8")
        return tmp_path / "in"

    return make


@pytest.mark.parametrize("layout", [*LAYOUTS, None])
@pytest.mark.parametrize("quantization", ["int4", "int4-mix"])
def test_aware_rounding_stays_closer_to_torch(
    tmp_path: Path, tiny: ModuleType, calibrated: Callable[..., Path], layout: Layout | None, quantization: str
) -> None:
    save, options = (tiny.save_dense, {}) if layout is None else (tiny.save_factored, {"rank": 27, "layout": layout})
    checkpoint = calibrated(save, **options)
    reference = load(checkpoint)
    tokens = np.asarray(tiny.tokenizer().encode(tiny.TEXT)[200:328], dtype=np.int32)
    found = {}
    for how in ("plain", "aware"):
        # activations in float: what is compared is the rounding of weights
        asked = replace(ALL, accuracy_level=0, rounding=how)
        made = export(checkpoint, tmp_path / how, quantization, options=asked)
        decoder = open_decoder(tmp_path / how, threads=1)
        logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
        found[how] = float(kld(torch_logits(reference, tokens), logits).mean()), made.bytes
    assert found["aware"][0] < (0.75 if quantization == "int4" else 0.9) * found["plain"][0]
    assert found["aware"][1] == pytest.approx(found["plain"][1], abs=64)


def test_aware_rounding_wants_a_text_only_for_codes(tmp_path: Path, factored: Path) -> None:
    aware = OnnxOptions(rounding="aware")
    with pytest.raises(UsageError, match="records no calibration text"):
        export(factored, tmp_path / "int4", "int4", options=aware)
    export(factored, tmp_path / "fp16", "fp16", options=aware)


def test_weights_beyond_float16(tmp_path: Path, tiny: ModuleType) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "in")
    tiny.tokenizer().save_pretrained(tmp_path / "in")
    with pytest.raises(
        InputError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' holds 1e\+06, beyond the range of fp16"
    ):
        export(tmp_path / "in", tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()

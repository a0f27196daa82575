"""A target is a row of one table: a toy format that is registered here is planned, exported, validated and reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.budget.forms import Form
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.progress import Progress
from lowrank_export.exporters.artifact import Artifact, TensorRecord
from lowrank_export.exporters.budget.format import Format
from lowrank_export.exporters.chosen import CHOSEN
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.onnx.weights.types import OnnxOptions
from lowrank_export.exporters.options import chosen_exports
from lowrank_export.exporters.registry import TARGETS, requested
from lowrank_export.exporters.target import ExportTarget, Forecast, Given, TargetOption, checked_type
from lowrank_export.runtime_tests.backends.open import BACKENDS, Opening
from lowrank_export.runtime_tests.backends.protocol import Backend
from lowrank_export.runtime_tests.backends.torch_reference import open_torch

MARK = "toy.json"
WIDTHS = {"wide": 4, "narrow": 2}


@dataclass(frozen=True)
class ToyRequest:
    """A folder with a checkpoint in it, and a file that says in which type."""

    quantization: str

    format = "toy"
    reads_calibration = False

    @property
    def name(self) -> str:
        return f"toy-{self.quantization}"

    def check(self, reader: CheckpointReader | None = None) -> None:
        pass

    def check_model(self, config: Mapping[str, Any]) -> None:
        if config["model_type"] != "llama":
            raise InputError(f"toy knows llama, not {config['model_type']}")

    def check_source(self, reader: CheckpointReader) -> None:
        pass

    def check_checkpoint(self, reader: CheckpointReader) -> None:
        pass

    def row_multiple(self) -> int:
        return 4

    def aware(self) -> None:
        """Toys are not rounded."""

    def of_dense(self, calibration: str) -> ToyRequest:
        return self

    def check_choice(self, forms: Mapping[str, Form]) -> None:
        raise AssertionError("toys have no chosen types")

    def budget(self, progress: Progress) -> Format:
        raise AssertionError("toys have no chosen types")

    def plain(self, linears: str, rest: str, *, tied: bool) -> ToyRequest:
        raise AssertionError("toys have no chosen types")

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Forecast:
        width = WIDTHS[self.quantization]
        return Forecast(width * sum(map(prod, shapes.values())), 8 * width)

    def peak_memory(self, checkpoint: Path) -> int | None:
        return None

    def is_at(self, path: Path) -> bool:
        return bool(json.loads((path / MARK).read_text())["type"] == self.quantization)

    def export(self, checkpoint: Path, out: Path, *, force: bool, progress: Progress) -> Artifact:
        import torch

        from lowrank_export.converter.model.loading import load, load_tokenizer

        dtype = {"wide": torch.float32, "narrow": torch.float16}[self.quantization]
        shutil.rmtree(out, ignore_errors=True)
        load(checkpoint, dtype=dtype).save_pretrained(out / "model")
        load_tokenizer(checkpoint).save_pretrained(out / "model")
        (out / MARK).write_text(json.dumps({"type": self.quantization}))
        return ToyTarget().describe(out)


class ToyTarget:
    format, runtimes, library = "toy", ("toy-runtime",), "toys"
    options: Mapping[str, TargetOption] = {}

    def types(self) -> tuple[str, ...]:
        return tuple(WIDTHS)

    def parity_limits(self) -> Mapping[str, tuple[float, float]]:
        return {"wide": (1e-6, 1e-3), "narrow": (1e-3, 1e-2)}

    def request(self, quantization: str | None = None, **fields: Any) -> ToyRequest:
        return ToyRequest(checked_type(self, quantization), **fields)

    def requests(self, given: Given) -> Sequence[ToyRequest]:
        return [self.request(type) for type in self.types()]

    def sized_request(self, given: Given) -> ToyRequest | None:
        return None

    def recognizes(self, path: Path) -> bool:
        return (path / MARK).is_file()

    def describe(self, path: Path) -> Artifact:
        type = json.loads((path / MARK).read_text())["type"]
        reader = CheckpointReader(path / "model")
        tensors = tuple(
            TensorRecord(name, reader.shape(name), type, WIDTHS[type] * prod(reader.shape(name)))
            for name in reader.names
        )
        parameters = sum(prod(tensor.shape) for tensor in tensors)
        size = sum(file.stat().st_size for file in (path / "model").glob("*.safetensors"))
        return Artifact(path, "toy", type, "native" if reader.ranks else "dense", size, parameters, tensors)

    def check_tools(self) -> None:
        pass

    def prepare_runtime(self, progress: Progress) -> None:
        pass


def open_toy(path: Path, how: Opening) -> Backend:
    return open_torch(path / "model", device=how.device, dtype="float32", threads=how.threads)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ExportTarget:
    """All that a new target is to the rest of the package: a row here, and one for its runtime."""
    row: ExportTarget = ToyTarget()
    monkeypatch.setitem(TARGETS, "toy", row)
    monkeypatch.setitem(BACKENDS, "toy-runtime", open_toy)
    return row


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_factored(folder / "factored", "llama")
    (folder / "text.txt").write_text(tiny.TEXT * 8, encoding="utf-8")
    return folder


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def compression(models: Path) -> list[Any]:
    text = models / "text.txt"
    return [
        "--model",
        models / "dense",
        "--calibration",
        text,
        "--windows",
        4,
        "--window-length",
        32,
        "--rank-multiple",
        4,
    ]


def evaluation(models: Path) -> list[Any]:
    text = models / "text.txt"
    return ["--evaluate", text, "--evaluation-windows", 2, "--evaluation-length", 32, "--threads", 1, "--no-speed"]


def test_toy_is_planned(toy: ExportTarget, models: Path) -> None:
    planned = run("plan", *compression(models), "--format", "toy")
    assert planned["rank_multiple"] == 4
    sizes = planned["predicted_bytes"]
    assert sizes["toy wide"]["factored"] == 2 * sizes["toy narrow"]["factored"] < sizes["toy wide"]["dense"]
    assert planned["storage"]["toy narrow"]["bits_per_weight"] == 16
    assert {"gguf q8_0", "onnx int8"} <= set(sizes)


def test_toy_is_exported_inspected_and_validated(toy: ExportTarget, models: Path, tmp_path: Path) -> None:
    made = run("export", models / "factored", "--format", "toy", "--out", tmp_path)["artifacts"]
    assert [(one["format"], one["quantisation"]) for one in made] == [("toy", "wide"), ("toy", "narrow")]
    shown = run("inspect", tmp_path / "toy-narrow")
    assert shown == made[1]
    report = run("validate", tmp_path, "--reference", models / "factored", *evaluation(models))
    rows = {row["quantisation"]: row for row in report["rows"] if row["format"] == "toy"}
    assert set(rows) == {"wide", "narrow"} and {row["backend"] for row in rows.values()} == {"toy-runtime"}
    assert all(gate["passed"] for row in rows.values() for gate in row["gates"])
    limits = {
        row["quantisation"]: gate["threshold"]
        for row in rows.values()
        for gate in row["gates"]
        if gate["name"] == "parity.mean_kld"
    }
    assert limits == {"wide": 1e-6, "narrow": 1e-3}


def test_toy_goes_through_the_whole_job(toy: ExportTarget, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loose = ["--gate", "quality.mean_kld=off", "--gate", "quality.perplexity_increase=off"]
    command = [*compression(models), *evaluation(models), *loose, "--format", "toy", "--out", out]
    report = run(*command)
    rows = {(row["model"], row["quantisation"]) for row in report["rows"] if row["format"] == "toy"}
    assert rows == {(model, type) for model in ("dense", "factored") for type in WIDTHS}
    assert "library_name: toys" in (out / "toy-wide" / "README.md").read_text()
    for name in ("report.html", "report.md", "junit.xml"):
        assert "toy" in (out / name).read_text(), name
    (out / "toy-wide" / "left.txt").write_text("of the job before")
    run(*command, "--force")
    assert not (out / "toy-wide" / "left.txt").exists() and (out / "toy-wide" / "README.md").is_file()


def test_unknown_formats_and_types_are_named(toy: ExportTarget) -> None:
    with pytest.raises(UsageError, match=r"--format toys: unknown format; did you mean 'toy'"):
        requested("toys")
    with pytest.raises(UsageError, match=r"--toy-type wider: unknown type; did you mean 'wide'"):
        requested("toy", "wider")


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_requests_are_values(target: ExportTarget) -> None:
    requests = [target.request(type) for type in target.types()]
    assert len(set(requests)) == len({request.name for request in requests}) == len(requests)
    assert target.request() == requests[0] == target.requests(Given({}))[0]
    assert target.request().of_dense("some.txt") == requests[0], "plain rounding runs no text"
    with pytest.raises(FrozenInstanceError):
        requests[0].quantization = "other"  # type: ignore[misc]


def test_aware_requests_of_the_dense_model_run_the_text() -> None:
    gguf = requested("gguf", "q4_0", rounding=Rounding("aware"))
    onnx = requested("onnx", "int4", options=OnnxOptions(rounding="aware"))
    assert gguf.reads_calibration and onnx.reads_calibration
    assert gguf.of_dense("a.txt") == requested("gguf", "q4_0", rounding=Rounding("aware", calibration="a.txt"))
    assert onnx.of_dense("a.txt") == requested(
        "onnx", "int4", options=OnnxOptions(rounding="aware", calibration="a.txt")
    )


def test_a_size_chooses_the_types(toy: ExportTarget) -> None:
    (chosen,) = chosen_exports({"format": ["gguf"]}, sized=True)
    assert chosen == requested("gguf", CHOSEN, rounding=Rounding("aware"))
    (chosen,) = chosen_exports({"format": ["onnx"], "onnx_block_size": 64}, sized=True)
    assert chosen == requested("onnx", CHOSEN, options=OnnxOptions(64, rounding="aware"))
    for values in ({"format": ["toy"]}, {"format": ["gguf", "onnx"]}, {"gguf_type": ["q8_0"]}, {"onnx_type": ["int8"]}):
        with pytest.raises(UsageError, match="leave out types and other formats"):
            chosen_exports(values, sized=True)
    with pytest.raises(UsageError, match="its own types of embedding and head"):
        chosen_exports({"gguf_head_type": "q8_0"}, sized=True)


def test_options_become_requests() -> None:
    values = {"format": ["onnx", "gguf", "onnx"], "gguf_type": ["q4_0", "f16", "q4_0"], "gguf_head_type": "q8_0"}
    chosen = chosen_exports(values)
    assert [(one.format, one.quantization) for one in chosen] == [("onnx", "int8"), ("gguf", "q4_0"), ("gguf", "f16")]
    assert chosen[1] == requested("gguf", "q4_0", head_type="q8_0")
    assert chosen_exports({}) == (requested("gguf"),)
    with pytest.raises(UsageError, match="plain rounding runs no text"):
        chosen_exports({}, calibration="a.txt")
    with pytest.raises(UsageError, match="one of 16, 32"):
        chosen_exports({"onnx_block_size": 7})


def test_a_type_that_needs_an_importance_is_refused_before_the_work() -> None:
    with pytest.raises(UsageError, match="add --gguf-rounding aware"):
        requested("gguf", "iq2_xs").check()
    requested("gguf", "iq2_xs", rounding=Rounding("aware")).check()
    requested("gguf", "iq2_xs", rounding=Rounding(imatrix=Path("i.gguf"))).check()
    requested("gguf", "q2_k").check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "pivot"}, "unknown layout"),
        ({"dense": "x"}, "belong to --layout adapter"),
        ({"head_type": "q9"}, "q9"),
    ],
)
def test_contradictions_are_refused_when_a_request_is_made(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        requested("gguf", "q8_0", **fields)

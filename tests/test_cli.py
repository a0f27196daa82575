"""The command line: options, output streams, and one line with the documented exit code for every bad input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lowrank_export
from lowrank_export.cli import EXIT_CODES, app
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.core.recipe_options import RECIPE_OPTIONS, VOCABULARY
from lowrank_export.exporters.export import export
from lowrank_export.exporters.onnx import flavours
from lowrank_export.exporters.registry import requested

LIGHT = """
import sys
from lowrank_export.cli import app
sys.argv[0] = "lowrank-export"
try:
    app(prog_name="lowrank-export")
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({"torch", "transformers", "onnxruntime"} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "factored", "m.gguf" (factored), "onnx" and "text.txt"."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_factored(folder / "factored", "llama", rank=16)
    export(folder / "factored", folder / "m.gguf", requested("gguf"))
    export(folder / "factored", folder / "onnx", requested("onnx"))
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def quick(models: Path) -> list[str]:
    """Options of a compression that takes no time."""
    options = {"calibration": models / "text.txt", "windows": 4, "window-length": 32, "rank-multiple": 4}
    return ["--model", str(models / "dense"), *(str(p) for k, v in options.items() for p in (f"--{k}", v))]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: Any) -> Any:
    """Run in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_line(result: Any, code: int, *needles: str, work_began: bool = False) -> None:
    """The last line of stderr is the error and, unless work began (progress, notes), the only one; stdout is empty."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert (result.exit_code, errors, result.stdout) == (code, lines[-1:] if work_began else lines, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert all(needle in errors[0] for needle in needles), errors[0]


@pytest.mark.parametrize(
    ("options", "code", "needles"),
    [
        (["--model", "/none/at/all"], 3, ["/none/at/all", "no such folder or file"]),
        (["--method", "adsvd"], 2, ["'adsvd'", "did you mean 'adasvd'"]),
        (["--similarity", "cosin"], 2, ["similarity", "'cosin'"]),
        (["--dtype", "float64"], 2, ["dtype", "'float64'"]),
        (["--layout", "pivots"], 2, ["layout", "'pivots'", "'two-factor' or 'pivot'"]),
        (["--device", "tpu"], 2, ["--device tpu", "auto, cpu or cuda"]),
        (["--retention", "0"], 2, ["retention", "greater than 0"]),
        (["--retention", "1.5"], 2, ["retention", "less than or equal to 1", "1.5"]),
        (["--retention", "-1"], 2, ["retention"]),
        (["--retention", "nan"], 2, ["retention"]),
        (["--min-retention", "0.9"], 2, ["min_retention", "above retention 0.8"]),
        (["--rank-multiple", "512"], 2, ["rank multiple 512 is too large for model.layers.0.", "--rank-multiple"]),
        (["--retention", "0.01"], 2, ["retention 0.01 cannot be met with rank multiple 4"]),
        (["--keep-dense", "q_prj"], 2, ["q_prj", "matches no linear"]),
        (["--window-length", "100000"], 3, ["fewer than one window of 100000", "--window-length"]),
        (["--calibration", "none.txt"], 3, ["none.txt", "no such text", "python-docs"]),
        (["--recipe", "none.yaml"], 3, ["none.yaml", "no such recipe"]),
    ],
)
def test_bad_options(quick: list[str], empty_folder: Path, options: list[str], code: int, needles: list[str]) -> None:
    for command in (["plan"], ["compress", "--out", "out"]):
        result = run(*command, *quick, *options)
        assert_one_line(result, code, *needles, work_began="block importance" in result.stderr)
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        (["--format", "ggfu"], ["unknown format", "did you mean 'gguf'"]),
        (["--format", "gguf", "--gguf-type", "q8"], ["--gguf-type q8", "did you mean 'q8_0'"]),
        (["--format", "onnx", "--onnx-type", "int3"], ["--onnx-type int3", "unknown type"]),
    ],
)
def test_unknown_formats(
    quick: list[str], models: Path, empty_folder: Path, options: list[str], needles: list[str]
) -> None:
    assert_one_line(run(*quick, *options), 2, *needles)
    assert_one_line(run("export", models / "factored", "--out", "out", *options), 2, *needles)
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "needles"),
    [
        (["--gguf-rounding", "awar"], 2, ["--gguf-rounding awar", "did you mean 'aware'"]),
        (["--gguf-rounding", "aware"], 2, ["factored: records no calibration text", "--calibration"]),
        (["--gguf-rounding", "aware", "--calibration", "none.txt"], 3, ["none.txt", "no such text"]),
        (["--gguf-rounding", "aware", "--gguf-imatrix", "none.gguf"], 2, ["measures its own importance"]),
        (["--gguf-imatrix", "none.gguf"], 3, ["none.gguf", "no such file"]),
        (["--calibration", "python-docs"], 2, ["plain rounding runs no text"]),
    ],
)
def test_what_rounding_is_told(
    models: Path, empty_folder: Path, options: list[str], code: int, needles: list[str]
) -> None:
    result = run("export", models / "factored", "--out", "out", "--gguf-type", "q8_0", *options)
    assert_one_line(result, code, *needles, work_began="stored as" in result.stderr)
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "needles"),
    [
        (["--onnx-rounding", "awar"], 2, ["--onnx-rounding awar", "did you mean 'aware'"]),
        (["--onnx-rounding", "aware"], 2, ["factored: records no calibration text", "--calibration"]),
        (["--onnx-rounding", "aware", "--calibration", "none.txt"], 3, ["none.txt", "no such text"]),
        (["--onnx-block-size", "48"], 2, ["--onnx-block-size 48", "16, 32, 64"]),
        (["--onnx-accuracy-level", "3"], 2, ["--onnx-accuracy-level 3"]),
    ],
)
def test_how_onnx_is_encoded(
    models: Path, empty_folder: Path, options: list[str], code: int, needles: list[str]
) -> None:
    words = ["export", models / "factored", "--out", "out", "--format", "onnx", "--onnx-type", "int4-mix"]
    assert_one_line(run(*words, *options), code, *needles)
    assert not list(empty_folder.iterdir())


def test_importance_matrix_is_measured_and_used(models: Path, empty_folder: Path) -> None:
    measured = run("imatrix", models / "factored", "--out", "i.gguf", "--calibration", models / "text.txt", "--json")
    assert measured.exit_code == 0, measured.stderr
    assert "blk.1.ffn_down.lowrank_u.weight" in json.loads(measured.stdout)["matrices"]
    assert_one_line(run("imatrix", models / "factored", "--out", "i.gguf"), 2, "i.gguf", "already exists")
    used = run("export", models / "factored", "--out", "out", "--gguf-type", "q4_0", "--gguf-imatrix", "i.gguf")
    assert used.exit_code == 0, used.stderr
    assert b"lowrank-export" in (empty_folder / "out" / "model-q4_0.gguf").read_bytes()


def test_smallest_types_are_refused_before_any_work(quick: list[str], empty_folder: Path) -> None:
    refused = run(*quick, "--gguf-type", "iq2_xs")
    assert_one_line(refused, 2, "--gguf-type iq2_xs", "add --gguf-rounding aware")
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        (["--layout", "adaptor"], ["--layout adaptor", "did you mean 'adapter'"]),
        (["--dense", "demo"], ["--dense and --gguf-residual-type belong to --layout adapter"]),
        (["--layout", "adapter", "--gguf-residual-type", "q4_0"], ["give --dense"]),
        (["--layout", "adapter", "--gguf-residual-type", "q4"], ["unknown residual type 'q4'"]),
    ],
)
def test_layouts_that_do_not_fit(models: Path, empty_folder: Path, options: list[str], needles: list[str]) -> None:
    assert_one_line(run("export", models / "factored", "--out", "out", *options), 2, *needles)
    assert not list(empty_folder.iterdir())


def test_adapter_layout(models: Path, empty_folder: Path) -> None:
    options = ["--layout", "adapter", "--dense", models / "dense", "--json"]
    done = run("export", models / "factored", "--out", "out", *options)
    assert done.exit_code == 0, done.stderr
    (made,) = json.loads(done.stdout)["artifacts"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["model-q8_0.gguf", "model-q8_0.lora.gguf"]
    assert made["bytes"] == sum(path.stat().st_size for path in Path("out").iterdir())
    found = run("inspect", "out/model-q8_0.gguf", "--json")
    assert json.loads(found.stdout)["layout"] == "adapter"
    Path("out/model-q8_0.lora.gguf").unlink()
    assert_one_line(run("inspect", "out/model-q8_0.gguf"), 3, "its adapter model-q8_0.lora.gguf is not beside it")


def test_runtime_path(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One path on stdout and nothing else; one line where there is nothing to name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_folder))
    done = run("runtime", "path", "--patch")
    assert done.stderr == "" and Path(done.stdout.removesuffix("\n")).read_text().startswith("Low-rank weights")
    assert_one_line(run("runtime", "path"), 5, "not built yet", "`lowrank-export runtime build`")
    assert_one_line(run("runtime", "path", "--tool", "llama-cli"), 5, "`lowrank-export runtime build --tools`")
    assert_one_line(run("runtime", "path", "--tool", "lama-cli"), 2, "did you mean 'llama-cli'")
    assert_one_line(run("runtime", "path", "--tool", "llama-cli", "--patch"), 2, "one path at a time")


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        (["--methods", "svd,adsvd"], ["'adsvd'", "did you mean 'adasvd'"]),
        (["--retention", "0.8", "--retention", "0"], ["retention", "greater than 0"]),
        (["--retention", "0.8,much"], ["retention", "valid number", "'much'"]),
        (["--retention", "nan"], ["retention"]),
        (["--min-retention", "0.7", "--retention", "0.8,0.6"], ["min_retention", "above retention 0.6"]),
        (["--alpha", "2"], ["alpha", "less than or equal to 1"]),
    ],
)
def test_compare_checks_every_recipe_before_any_work(
    quick: list[str], empty_folder: Path, options: list[str], needles: list[str]
) -> None:
    assert_one_line(run("compare", *quick, "--out", "out", *options), 2, *needles)
    assert not list(empty_folder.iterdir())


def test_compare_needs_a_place_of_its_own(models: Path, quick: list[str], empty_folder: Path) -> None:
    (empty_folder / "file").touch()
    assert_one_line(run("compare", *quick, "--out", "file"), 2, "file: is not a folder")
    assert_one_line(run("compare", *quick, "--out", models), 2, "exists and is not empty")
    assert_one_line(run("compare", *quick, "--out", models, "--force"), 2, "not a folder this command made")
    assert_one_line(run("compare", *quick, "--out", "out", "--evaluate", "none.txt"), 3, "none.txt")
    assert [entry.name for entry in empty_folder.iterdir()] == ["file"]


def test_statistics_of_another_job_are_refused(quick: list[str], empty_folder: Path) -> None:
    done = run("statistics", *quick, "--method", "svd-llm", "--out", "kept", "--json")
    assert json.loads(done.stdout)["kinds"] == ["dense"]
    shared = ["--method", "svd-llm", "--statistics", "kept"]
    assert run("compress", *quick, *shared, "--out", "a").exit_code == 0
    other = run("compress", *quick, *shared, "--out", "b", "--seed", "1")
    assert_one_line(other, 2, "kept: holds statistics made with another seed (0, here 1)", work_began=True)
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "notes.txt").touch()
    foreign = run("compress", *quick, "--out", "b", "--statistics", "mine")
    assert_one_line(foreign, 2, "not a folder of statistics", work_began=True)
    kind = run("statistics", *quick, "--method", "svd-llm", "--kind", "gradients", "--out", "kept")
    assert_one_line(kind, 2, "'gradients'", "svd-llm reads statistics of kind dense")
    assert not (empty_folder / "b").exists()


GRID = {"method", "max_bytes", "bits_per_weight", "max_prefill_flops"}  # what a grid of recipes has other options for


def test_every_recipe_key_has_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert set(RECIPE_OPTIONS) == set(Recipe.model_fields) - {"choice"}  # which a size makes, and nobody types
    for command in ("", "compress", "plan", "statistics", "compare"):
        shown = run(*command.split(), "--help").stdout
        for key in set(RECIPE_OPTIONS) - (GRID if command == "compare" else set()) - set(VOCABULARY if command else ()):
            assert f"--{key.replace('_', '-')} " in shown, (command, key)


def test_evaluation_text_is_looked_at_before_any_work(quick: list[str], empty_folder: Path) -> None:
    assert_one_line(run(*quick, "--evaluate", "none.txt"), 3, "none.txt")
    assert_one_line(run(*quick, "--evaluation-length", "500000"), 3, "one window needs 500000")
    assert not list(empty_folder.iterdir())


def test_unknown_family(tiny: ModuleType, quick: list[str], empty_folder: Path) -> None:
    tiny.save_dense(empty_folder / "m", "bloom")
    for command in ([], ["plan"], ["compress", "--out", "out"]):
        result = run(*command, *quick, "--model", "m")
        assert_one_line(result, 3, "'bloom' is not supported", "llama, mistral, qwen2, qwen3")
    assert_one_line(run("export", "m", "--out", "out"), 3, "bloom")
    assert [entry.name for entry in empty_folder.iterdir()] == ["m"]


def poke(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path, name: str, value: float) -> None:
    os.truncate(folder / "model.safetensors", 100_000)


@pytest.mark.parametrize("stored", ["dense", "factored"])
@pytest.mark.parametrize(
    ("damage", "value", "message"),
    [
        (poke, float("nan"), ""),
        (poke, float("inf"), ""),
        (cut, 0, "model.layers.1.mlp.up_proj has shape"),
        (truncate, 0, "truncated"),
    ],
)
def test_damaged_weights(
    models: Path, quick: list[str], empty_folder: Path, stored: str, damage: Any, value: float, message: str
) -> None:
    name = "model.layers.1.mlp.up_proj." + ("weight" if stored == "dense" else "lowrank_v.weight")
    shutil.copytree(models / stored, "m")
    damage(Path("m"), name, value)
    if stored == "dense":
        measured = ["--evaluate", models / "text.txt", "--evaluation-length", 64]
        assert_one_line(run("compress", *quick, "--model", "m", "--out", "out"), 3, message or name, work_began=True)
        assert_one_line(run(*quick, "--model", "m", *measured), 3, message or name, work_began=True)
    for format in ("gguf", "onnx"):
        assert_one_line(run("export", "m", "--out", "exported", "--format", format), 3, work_began=True)
    assert [entry.name for entry in empty_folder.iterdir()] == ["m"]


def test_existing_outputs_need_force(models: Path, quick: list[str], empty_folder: Path) -> None:
    out = empty_folder / "out"
    out.mkdir()
    (out / "model-q8_0.gguf").write_text("mine")
    (out / "onnx-int8").mkdir()
    assert_one_line(run("compress", *quick, "--out", out), 2, "already exists", "--force")
    assert_one_line(run(*quick, "--out", out), 2, "exists and is not empty", "--force")
    assert_one_line(run(*quick, "--out", out, "--force"), 2, "not a folder this tool made")
    for format in ("gguf", "onnx"):
        assert_one_line(run("export", models / "factored", "--out", out, "--format", format), 2, "already exists")
    (empty_folder / "file").touch()
    assert_one_line(run("export", models / "factored", "--out", "file"), 2, "file: is not a folder")
    assert_one_line(run(*quick, "--out", "file"), 2, "file: is not a folder")
    assert (out / "model-q8_0.gguf").read_text() == "mine"
    assert run("export", models / "factored", "--out", out, "--force").exit_code == 0
    assert (out / "model-q8_0.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("command", ["compress", "gguf", "onnx"])
def test_full_disk(models: Path, quick: list[str], empty_folder: Path, command: str) -> None:
    """A limit on the size of files stands in for a full disk; writing beyond it fails in the same way."""
    arguments = ["compress", *quick] if command == "compress" else ["export", models / "factored", "--format", command]
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most))
    try:
        result = run(*arguments, "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert_one_line(result, 5, "space", work_began=True)
    assert not list(empty_folder.iterdir())


def test_no_compiler(models: Path, quick: list[str], empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("CC", "CXX"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_folder / "cache"))
    validated = ["validate", models / "m.gguf", "--reference", models / "factored", "--evaluate", models / "text.txt"]
    for arguments in (["runtime", "build"], [*quick, "--evaluate", models / "text.txt"], validated):
        result = run(*arguments)
        assert_one_line(result, 5, "no C++ compiler found", "build-essential", work_began="--evaluate" in arguments)
    assert not (empty_folder / "out").exists()
    assert not [path for path in empty_folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_both_flavours_of_onnxruntime(models: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "version", lambda name: "1")  # every flavour
    assert_one_line(run("export", models / "factored", "--out", "out", "--format", "onnx"), 5, "pip uninstall")
    assert not list(empty_folder.iterdir())
    result = run("doctor", "--json")
    assert result.exit_code == 5
    document = json.loads(result.stdout)
    assert not document["ok"] and "pip uninstall" in document["problems"][0]


def test_nothing_to_do(empty_folder: Path) -> None:
    for command in ([], ["plan"], ["compress", "--out", "out"]):
        assert_one_line(run(*command), 2, "--model demo", "recipe.yaml")
    assert not list(empty_folder.iterdir())


def test_recipe_of_the_current_folder(models: Path, empty_folder: Path) -> None:
    text = f"model: {models / 'dense'}\nmethod: svd\nrank_multiple: 4\nretention: 0.5\n"
    (empty_folder / "recipe.yaml").write_text(text)
    assert json.loads(run("plan", "--json").stdout)["target_retention"] == 0.5
    assert json.loads(run("plan", "--retention", "0.6", "--json").stdout)["target_retention"] == 0.6
    (empty_folder / "recipe.yaml").write_text(text + "retentoin: 0.5\n")
    assert_one_line(run("plan"), 2, "recipe.yaml: unknown key 'retentoin'; did you mean 'retention'")


def test_layout_gives_more_rank_for_the_same_size(quick: list[str], empty_folder: Path) -> None:
    plans = {
        layout: json.loads(run("plan", *quick, "--method", "svd", "--layout", layout, "--json").stdout)
        for layout in ("two-factor", "pivot")
    }
    retention = {layout: plan["retention"] for layout, plan in plans.items()}
    assert retention["pivot"] == pytest.approx(retention["two-factor"], abs=0.03)
    for name, linear in plans["pivot"]["linears"].items():
        assert linear["rank"] > plans["two-factor"]["linears"][name]["rank"]


@pytest.mark.parametrize("command", ["plan", "compress", "export", "inspect", "doctor", "runtime status"])
def test_json_is_the_only_thing_on_stdout(models: Path, quick: list[str], command: str) -> None:
    arguments: dict[str, list[Any]] = {
        "plan": quick,
        "compress": [*quick, "--out", "out"],
        "export": [models / "factored", "--out", "out", "--format", "gguf", "--format", "onnx"],
        "inspect": [models / "onnx"],
    }
    for as_json in ([], ["--json"]):
        shutil.rmtree("out", ignore_errors=True)
        result = run(*command.split(), *arguments.get(command, []), *as_json)
        assert result.exit_code == 0, result.stderr
        assert bool(result.stdout) == bool(as_json)
    json.loads(result.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize("what", ["--version", "--help", "runtime status", "compare --help", "dense", "m.gguf", "onnx"])
def test_answers_at_once(models: Path, what: str) -> None:
    """CPU seconds, since the wall clock says more about the machine's other work."""
    arguments = ["inspect", str(models / what)] if (models / what).exists() else what.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-500:]
    assert after.ru_utime - before.ru_utime < 1.5
    if what == "--version":
        assert done.stdout.strip() == lowrank_export.__version__


def test_help_names_the_exit_codes() -> None:
    shown = " ".join(run("--help").stdout.replace("│", " ").split())
    assert EXIT_CODES in shown
    assert run("--frmat", "gguf").exit_code == 2
    assert run("plam").exit_code == 2


def test_bugs_are_one_line_too(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("lowrank_export.runtime_tests.artifacts.describe", broken)
    assert_one_line(run("inspect", models / "onnx"), 1, "bug: ZeroDivisionError: first second", "LOWRANK_DEBUG")
    monkeypatch.setenv("LOWRANK_DEBUG", "1")
    assert isinstance(run("inspect", models / "onnx").exception, ZeroDivisionError)


@pytest.mark.parametrize("size", ["0", "-1", "1e99GB", "12 parsecs", "9" * 30 + "GB"])
def test_hostile_sizes(size: str, quick: list[str], empty_folder: Path) -> None:
    for command in ((), ("plan",)):
        assert_one_line(run(*command, *quick, "--max-bytes", size), 2, "max_bytes")
    assert not list(empty_folder.iterdir())


def test_a_size_that_nothing_meets(quick: list[str], empty_folder: Path) -> None:
    """Refused before any work, with the smallest there is."""
    assert_one_line(
        run(*quick, "--max-bytes", "1KB"), 2, "max_bytes 1000: the smallest file of this model takes", work_began=True
    )
    assert_one_line(
        run(*quick, "--bits-per-weight", "0.001"), 2, "bits_per_weight 0.001: the smallest file", work_began=True
    )
    assert_one_line(run("compress", *quick, "--max-bytes", "1MB", "--out", "c"), 2, "met by a file")
    assert_one_line(run(*quick, "--max-bytes", "1MB", "--gguf-type", "q8_0"), 2, "chooses its types")
    assert_one_line(run(*quick, "--max-bytes", "1MB", "--format", "onnx", "--format", "gguf"), 2, "in one format")
    assert_one_line(
        run(*quick, "--max-bytes", "1KB", "--format", "onnx"), 2, "the smallest file of this model", work_began=True
    )
    assert_one_line(run(*quick, "--max-bytes", "1MB", "--method", "svd"), 2, "loss-aware")
    Path("chosen.yaml").write_text("choice: {lm_head: uint4}\n", encoding="utf-8")
    for command in ((), ("plan",)):
        assert_one_line(run(*command, *quick, "--recipe", "chosen.yaml"), 2, "choice: uint4 is no type of gguf")
    Path("chosen.yaml").unlink()
    assert not list(empty_folder.iterdir())

"""Folders of sweeps, comparisons, unfinished jobs and statistics whose files are damaged or of something else."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lowrank_export.cli import app

Refused = Callable[..., str]
RATE = {"median": 10.0, "lowest": 9.0, "highest": 11.0}
ROW: dict[str, Any] = {
    "method": "svd",
    "retention": 0.8,
    "kept": 0.79,
    "format": "gguf",
    "quantisation": "q8_0",
    "backend": "llama.cpp",
    "bytes": 1000,
    "bits_per_weight": 8.5,
    "perplexity": {"value": 10.0, "standard_error": None, "tokens": 100},
    "quality": {
        **dict.fromkeys(("mean_kld", "kld_error", "median_kld", "p99_kld", "max_kld", "same_top", "top5"), 0.5),
        **dict.fromkeys(("mean_change", "rms_change", "max_change"), 0.1),
        "tokens": 100,
        "by_position": [],
    },
    "speed": {"prefill": RATE, "decode": RATE, "prompt_tokens": 8, "decode_tokens": 8, "repeats": 1, "threads": 1},
    "compress_seconds": 1.0,
    "on_front": True,
}


def sweep(*rows: Any, **keys: Any) -> str:
    return json.dumps({"schema_version": 1, "rows": list(rows), **keys})


WRONG = "not the sweep.json of a sweep"
SWEEPS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", WRONG),
    "bytes": (b"\xff\xfe", "not readable as UTF-8"),
    "nested": ("[" * 100_000, WRONG),
    "list": ("[]", WRONG),
    "null": ("null", WRONG),
    "no version": ("{}", WRONG),
    "other version": (sweep(schema_version=99), "of version 99"),
    "version steers": (sweep(schema_version="\x1b[2J" * 10_000), "of version"),
    "rows are text": (json.dumps({"schema_version": 1, "rows": "x"}), WRONG),
    "rows are a number": (json.dumps({"schema_version": 1, "rows": 7}), WRONG),
    "row is text": (sweep("x"), WRONG),
    "row is null": (sweep(None), WRONG),
    "row is empty": (sweep({}), WRONG),
    "unknown key": (sweep({**ROW, "evil": 1}), WRONG),
    "bytes are text": (sweep({**ROW, "bytes": "many"}), WRONG),
    "bytes are a list": (sweep({**ROW, "bytes": [1]}), WRONG),
    "perplexity is a list": (sweep({**ROW, "perplexity": [1]}), WRONG),
    "perplexity of texts": (sweep({**ROW, "perplexity": {"value": "x", "standard_error": 1, "tokens": 1}}), WRONG),
    "quality is null": (sweep({**ROW, "quality": None}), WRONG),
    "quality of lists": (sweep({**ROW, "quality": {**ROW["quality"], "mean_kld": []}}), WRONG),
    "positions are a number": (sweep({**ROW, "quality": {**ROW["quality"], "by_position": 7}}), WRONG),
    "speed is text": (sweep({**ROW, "speed": "fast"}), WRONG),
    "rate is text": (sweep({**ROW, "speed": {**ROW["speed"], "decode": {**RATE, "median": "x"}}}), WRONG),
    "method is a number": (sweep({**ROW, "method": 7}), WRONG),
}


@pytest.mark.parametrize("case", SWEEPS)
def test_sweeps(refused: Refused, tmp_path: Path, case: str) -> None:
    content, needle = SWEEPS[case]
    (tmp_path / "sweep.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("recommend", tmp_path, "--min-speed", 1, "--max-kld", 1, code=3, needle=needle)


@pytest.mark.parametrize("median", [0.0, -1.0, 1e308])
def test_strange_but_sound_sweeps(tmp_path: Path, median: float) -> None:
    row = {**ROW, "method": "\x1b[2Jsvd", "speed": {**ROW["speed"], "decode": {**RATE, "median": median}}}
    (tmp_path / "sweep.json").write_text(sweep(ROW, row))
    result = CliRunner().invoke(app, ["recommend", str(tmp_path), "--min-speed", "1e9"])
    assert result.exit_code in (0, 4) and "bug" not in result.stderr and "\x1b" not in result.stderr


@pytest.fixture(scope="module")
def job(models: Path) -> list[Any]:
    """A compression that takes no time."""
    small = ["--windows", 2, "--window-length", 32, "--rank-multiple", 4, "--held-out", 0]
    return [
        "compress",
        "--model",
        models / "dense",
        "--calibration",
        models / "text.txt",
        "--method",
        "svd-llm",
        *small,
    ]


@pytest.fixture(scope="module")
def unfinished(job: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the journal ".ckpt.unfinished" of that job, killed after its first block; and its statistics."""
    from lowrank_export.converter import pipeline

    folder = tmp_path_factory.mktemp("job")
    kept, count = pipeline.Streams.compress_block, []

    def stops(*arguments: Any) -> Any:
        count.append(1)
        if len(count) > 1:
            raise KeyboardInterrupt
        return kept(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Streams, "compress_block", stops)
        result = CliRunner().invoke(app, [str(word) for word in [*job, "--out", folder / "ckpt"]])
    assert result.exit_code == 130, result.stderr
    assert (folder / ".ckpt.unfinished" / "block-00000.safetensors").is_file()
    return folder


@pytest.fixture
def journal(unfinished: Path, tmp_path: Path) -> Path:
    """A copy of the journal, to damage."""
    shutil.copytree(unfinished / ".ckpt.unfinished", tmp_path / ".ckpt.unfinished")
    return tmp_path / ".ckpt.unfinished"


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], losses: Any = None) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=None if losses is None else {"losses": losses})


def any_of(tensors: dict[str, torch.Tensor]) -> str:
    return next(iter(tensors))


BLOCKS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no tensors": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"),
    "long header": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "no losses": lambda path: rewrite(path, lambda tensors: None),
    "losses are no json": lambda path: rewrite(path, lambda tensors: None, "x"),
    "losses nested": lambda path: rewrite(path, lambda tensors: None, "[" * 100_000),
    "losses are a list": lambda path: rewrite(path, lambda tensors: None, "[1]"),
    "loss is a number": lambda path: rewrite(path, lambda tensors: None, '{"x": 1}'),
    "a tensor too few": lambda path: rewrite(path, lambda tensors: tensors.pop(any_of(tensors)), "{}"),
    "a tensor too many": lambda path: rewrite(path, lambda tensors: tensors.update(x=torch.ones(2)), "{}"),
    "another shape": lambda path: rewrite(path, lambda t: t.update({any_of(t): torch.ones(3, 3)}), "{}"),
    "not finite": lambda path: rewrite(path, lambda t: t[any_of(t)].fill_(float("nan")), "{}"),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_of_a_journal(job: list[Any], journal: Path, refused: Refused, tmp_path: Path, case: str) -> None:
    """Refused; and once the block is removed, as the line says, the job is done."""
    BLOCKS[case](block := journal / "block-00000.safetensors")
    refused(*job, "--out", tmp_path / "ckpt", code=2, needle="block-00000.safetensors: damaged")
    block.unlink()
    result = CliRunner().invoke(app, [str(word) for word in [*job, "--out", tmp_path / "ckpt"]])
    assert result.exit_code == 0 and not journal.exists(), result.stderr


@pytest.mark.parametrize("name", ["recipe.json", "calibration.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", "null", "[" * 100_000, "\x00", '{"model": "x"}', '{"seed": 1' + "0" * 5000]
)
def test_claims_of_a_journal(
    job: list[Any], journal: Path, refused: Refused, tmp_path: Path, name: str, content: str
) -> None:
    (journal / name).write_text(content)
    refused(*job, "--out", tmp_path / "ckpt", code=2, needle=".ckpt.unfinished")


def test_a_journal_elsewhere(job: list[Any], journal: Path, refused: Refused, tmp_path: Path) -> None:
    journal.rename(tmp_path / "elsewhere")
    journal.symlink_to(tmp_path / "elsewhere")
    refused(*job, "--out", tmp_path / "ckpt", code=2, needle="is not the folder of an unfinished job")
    assert (tmp_path / "elsewhere" / "recipe.json").is_file()
    journal.unlink()
    journal.write_text("x")
    refused(*job, "--out", tmp_path / "ckpt", code=2, needle="is not the folder of an unfinished job")


STATISTICS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "long header": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "no tensors": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"),
    "a tensor too few": lambda path: rewrite(path, lambda tensors: tensors.pop(any_of(tensors))),
    "another shape": lambda path: rewrite(path, lambda t: t.update({any_of(t): torch.ones(3, 3)})),
    "another place": lambda path: path.write_bytes(b"\xff" * 100),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics(job: list[Any], unfinished: Path, refused: Refused, tmp_path: Path, case: str) -> None:
    shutil.copytree(unfinished / ".ckpt.unfinished" / "statistics", tmp_path / "kept")
    STATISTICS[case](tmp_path / "kept" / "dense-00001.safetensors")
    command = [*job, "--out", tmp_path / "ckpt", "--statistics", tmp_path / "kept"]
    refused(*command, code=2, needle="dense-00001.safetensors: damaged")


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000, "\x00", '{"seed": 99}'])
def test_claims_of_statistics(job: list[Any], unfinished: Path, refused: Refused, tmp_path: Path, content: str) -> None:
    shutil.copytree(unfinished / ".ckpt.unfinished" / "statistics", tmp_path / "kept")
    (tmp_path / "kept" / "identity.json").write_text(content)
    command = [*job, "--out", tmp_path / "ckpt", "--statistics", tmp_path / "kept"]
    refused(*command, code=2, needle=str(tmp_path / "kept"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        '{"made_from": 7, "result": {}, "schema_version": 2}',
        '{"made_from": [1], "result": {}, "schema_version": 2}',
        '{"made_from": {}, "result": {}, "schema_version": 99}',
        '{"made_from": {}, "result": {}, "schema_version": "' + "x" * 10**5 + '"}',
    ],
    ids=lambda value: str(value)[:40],
)
def test_rows_of_a_comparison(tmp_path: Path, content: str) -> None:
    from lowrank_export.converter.core.errors import UsageError
    from lowrank_export.runtime_tests.studies.rows import read_row

    (path := tmp_path / "row.json").write_text(content)
    with pytest.raises(UsageError) as error:
        read_row(path, {"a": 1})
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["method", "retention", "kept", "cost", "measured"])
@pytest.mark.parametrize("value", [None, [], {}, "x", {"a": [1]}])
def test_values_of_a_comparison(comparison_row: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    from lowrank_export.converter.core.errors import UsageError
    from lowrank_export.runtime_tests.studies.compare_results import CompareRow
    from lowrank_export.runtime_tests.studies.rows import restored

    assert restored(CompareRow.from_json, comparison_row, tmp_path).method == "svd"
    if (key, value) == ("method", "x"):
        return  # as good a name as any
    with pytest.raises(UsageError, match="damaged; remove it to measure it again"):
        restored(CompareRow.from_json, {**comparison_row, key: value}, tmp_path)


@pytest.fixture
def comparison_row() -> dict[str, Any]:
    measured = {
        "bytes": 10,
        "parameters": 5,
        "perplexity": ROW["perplexity"],
        "quality": ROW["quality"],
        "sample": {"prompt": "a", "text": "b", "tokens": [1, 2]},
    }
    cost = {"cpu_seconds": 1.0, "wall_seconds": 1.0, "peak_bytes": 1}
    return {"method": "svd", "retention": 0.8, "kept": 0.8, "cost": cost, "measured": measured}

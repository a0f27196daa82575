"""Every reader that the fuzzer knows, with sound inputs."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: as on the command line.
        seeds: sound inputs.
        kind: "bytes", "json" or "yaml": what changes make sense.
        read: reads an input, given as bytes.
        slow: runs for its own name only.
    """

    name: str
    seeds: tuple[bytes, ...]
    kind: str
    read: Callable[[bytes], object]
    slow: bool = False


def targets(folder: Path) -> list[Target]:
    """Every reader, with sound inputs made in `folder`."""
    import yaml

    from lowrank_export.converter.checkpoint.reader import CheckpointReader
    from lowrank_export.converter.core.recipe import Recipe, read_recipe
    from lowrank_export.converter.journal import Journal
    from lowrank_export.converter.model.loading import load_tokenizer
    from lowrank_export.converter.statistics.calibration import read_token_windows
    from lowrank_export.converter.statistics.store import Statistics
    from lowrank_export.converter.storage.claim import claim
    from lowrank_export.converter.storage.gguf_header import read_header as read_gguf
    from lowrank_export.converter.storage.safetensors_header import read_header
    from lowrank_export.converter.texts.corpus import read_text
    from lowrank_export.exporters.export import export
    from lowrank_export.exporters.gguf.imatrix import Importance, read_imatrix, write_imatrix
    from lowrank_export.exporters.onnx.check.folder_check import check_folder
    from lowrank_export.exporters.registry import requested
    from lowrank_export.runtime_tests.artifacts import describe
    from lowrank_export.runtime_tests.gates.gate_file import read_gates
    from lowrank_export.runtime_tests.report.provenance import model_provenance
    from lowrank_export.runtime_tests.studies.sweep_results import read_rows

    tiny = _tiny()
    tiny.save_dense(folder / "dense", "llama", blocks=1)
    tiny.save_factored(folder / "factored", "llama", rank=16, blocks=1)
    tiny.save_factored(folder / "pivot", "llama", rank=16, blocks=1, layout="pivot")
    export(folder / "factored", folder / "m.gguf", requested("gguf"))
    export(folder / "dense", folder / "d.gguf", requested("gguf", "f32"))
    export(folder / "factored", folder / "onnx", requested("onnx"))
    importance = Importance({"blk.0.attn_q": np.ones(64, dtype=np.float32)}, 9)
    facts = {"architecture": "llama", "text": "x", "windows": 1, "window_length": 9, "force": True}
    write_imatrix(importance, folder / "i.gguf", **facts)  # type: ignore[arg-type]
    _journal(folder)

    def within(place: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        """Write the input to its place in the folder, then read."""
        path = folder / place

        def run(data: bytes) -> object:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            return read(path)

        return run

    def of(*names: str) -> tuple[bytes, ...]:
        return tuple((folder / name).read_bytes() for name in names)

    def model(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda path: read(folder / name)

    for name in ("config", "index", "tokenizer"):
        shutil.copytree(folder / "dense", folder / name)
    shutil.copytree(folder / "pivot", folder / "ranks")
    shutil.copytree(folder / "factored", folder / "card")
    shutil.copytree(folder / "onnx", folder / "graph")
    shutil.copytree(folder / "onnx", folder / "genai")
    whole = io.BytesIO()
    np.save(whole, np.arange(64, dtype=np.int32).reshape(4, 16))
    weights = CheckpointReader(folder / "dense").names
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "model.safetensors")}).encode()
    recipe = Recipe(model="x", keep_dense=("a", "b")).to_yaml().encode()
    gates = yaml.safe_dump({"parity": {"mean_kld": 0.1}, "artifacts": {"gguf q8_0": {"quality": {"mean_kld": 1}}}})
    identity = {"seed": 1, "model": "x", "windows": [1, 2]}
    lines = b'{"text": "some text", "title": "x"}\n{"text": "more of it", "n": [1, 2]}\n'
    return [
        Target("safetensors", of("dense/model.safetensors"), "bytes", within("s.safetensors", read_header)),
        Target("safetensors header", (_header(folder / "dense"),), "json", within("h.safetensors", _reads_header)),
        Target("config", of("dense/config.json"), "json", within("config/config.json", model("config", _skeleton))),
        Target(
            "factored config", of("pivot/config.json"), "json", within("ranks/config.json", model("ranks", _skeleton))
        ),
        Target("index", (index,), "json", within(f"index/{INDEX}", model("index", CheckpointReader))),
        Target(
            "tokenizer",
            of("dense/tokenizer.json"),
            "json",
            within("tokenizer/tokenizer.json", model("tokenizer", load_tokenizer)),
        ),
        Target(
            "gguf",
            of("m.gguf", "d.gguf", "i.gguf"),
            "bytes",
            within("x.gguf", lambda path: (read_gguf(path), describe(path))),
        ),
        Target("imatrix", of("i.gguf"), "bytes", within("y.gguf", read_imatrix)),
        Target("recipe", (recipe,), "yaml", within("r.yaml", read_recipe)),
        Target("gates", (gates.encode(),), "yaml", within("g.yaml", read_gates)),
        Target("text", (b"word " * 100,), "bytes", within("t.txt", lambda path: read_text(str(path), "calibration"))),
        Target("json lines", (lines,), "yaml", within("t.jsonl", lambda path: read_text(str(path), "calibration"))),
        Target(
            "packed text",
            (gzip.compress(lines),),
            "bytes",
            within("t", lambda path: read_text(str(path), "calibration")),
        ),
        Target(
            "token windows", (whole.getvalue(),), "bytes", within("t.npy", lambda path: read_token_windows(path, 320))
        ),
        Target("onnx", of("onnx/model.onnx"), "bytes", within("graph/model.onnx", model("graph", describe))),
        Target(
            "genai",
            of("onnx/genai_config.json"),
            "json",
            within("genai/genai_config.json", model("genai", check_folder)),
        ),
        Target("sweep", (_sweep(),), "json", within("sweep.json", read_rows)),
        Target(
            "journal",
            of("journal/block-00000.safetensors"),
            "bytes",
            within("journal/block-00000.safetensors", lambda path: Journal(path.parent).read_block(0)),
        ),
        Target(
            "claim",
            (json.dumps(identity).encode(),),
            "json",
            within("c.json", lambda path: claim(path, identity, holds="x", otherwise="y")),
        ),
        Target(
            "statistics",
            of("journal/block-00000.safetensors"),
            "bytes",
            within("kept/dense-00000.safetensors", lambda path: _statistics(Statistics(path.parent))),
        ),
        Target(
            "card",
            (b"---\nlicense: mit\nbase_model: x/y\n---\ntext",),
            "yaml",
            within("card/README.md", model("card", model_provenance)),
        ),
        Target("kept recipe", (recipe,), "yaml", within("card/recipe.yaml", model("card", model_provenance))),
        *_runtimes(folder, within, of),
    ]


def _runtimes(folder: Path, within: Any, of: Any) -> list[Target]:
    from lowrank_export.runtime_tests.artifacts import describe
    from lowrank_export.runtime_tests.backends.trial import check_survives

    def tries(path: Path, name: str) -> None:
        describe(path)
        check_survives(path, name)

    shutil.copytree(folder / "onnx", folder / "ort")
    found = [
        Target(
            "llama.cpp", of("m.gguf", "d.gguf"), "bytes", within("z.gguf", lambda path: tries(path, "llama.cpp")), True
        )
    ]
    for name in ("onnxruntime", "onnxruntime-genai"):
        read = within("ort/model.onnx", lambda path, name=name: tries(path.parent, name))
        found.append(Target(name, of("onnx/model.onnx"), "bytes", read, True))
    return found


def _header(folder: Path) -> bytes:
    data = (folder / "model.safetensors").read_bytes()
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


def _reads_header(path: Path) -> None:
    """The input is the header alone: put its length before it and room for the data behind."""
    from lowrank_export.converter.storage.safetensors_header import read_header

    header = path.read_bytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with path.open("ab") as file:
        file.truncate(8 + len(header) + 800_000)
    read_header(path)


def _skeleton(folder: Path) -> None:
    import torch

    from lowrank_export.converter.checkpoint.reader import CheckpointReader
    from lowrank_export.converter.families.table import family_of
    from lowrank_export.converter.model.blocks import BlockSource

    reader = CheckpointReader(folder)
    BlockSource(reader, family_of(reader.config, str(folder)), torch.device("cpu"), torch.float32)


def _journal(folder: Path) -> None:
    import torch

    from lowrank_export.converter.journal import Journal

    Journal(folder / "journal").folder.mkdir()
    Journal(folder / "journal").save_block(0, {"a": torch.ones(2, 3), "b": torch.ones(4)}, {"x": {"truncated": 0.5}})


def _statistics(store: Any) -> None:
    import torch

    store.check("dense", 0, {"a": (2, 3)})
    store.read("dense", 0, torch.device("cpu"))


def _sweep() -> bytes:
    rate = {"median": 10.0, "lowest": 9.0, "highest": 11.0}
    quality: dict[str, Any] = dict.fromkeys(("mean_kld", "kld_error", "median_kld", "p99_kld", "max_kld"), 0.5)
    quality |= dict.fromkeys(("same_top", "top5", "mean_change", "rms_change", "max_change"), 0.1)
    quality |= {"tokens": 9, "by_position": [{"position": 1.0, "mean_kld": 0.1, "same_top": 0.5, "tokens": 3}]}
    speed = {"prefill": rate, "decode": rate, "prompt_tokens": 8, "decode_tokens": 8, "repeats": 1, "threads": 1}
    row = {"method": "svd", "retention": 0.8, "kept": 0.8, "format": "gguf", "quantisation": "q8_0", "backend": "b"}
    row |= {"bytes": 9, "bits_per_weight": 8.5, "perplexity": {"value": 1.0, "standard_error": None, "tokens": 9}}
    row |= {"quality": quality, "speed": speed, "compress_seconds": 1.0, "on_front": True}
    return json.dumps({"schema_version": 1, "rows": [row, row]}).encode()


def _tiny() -> Any:
    """tests/tiny.py: tiny random models."""
    place = Path(__file__).resolve().parent.parent / "tests" / "tiny.py"
    spec = importlib.util.spec_from_file_location("lowrank_fuzz_tiny", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Fuzz every reader for some seconds each and print how many inputs it met and what it did not survive.

    python benchmarks/fuzz.py --seconds 30                 # every reader
    python benchmarks/fuzz.py --seconds 60 --only gguf     # one of them
    python benchmarks/fuzz.py --only llama.cpp             # the runtimes too, a process per input

Inputs are sound files, changed at random: bytes, numbers at places that look like lengths, and in JSON and YAML whole
values. A reader may read them or raise a `LowRankError`; anything else is a finding, as is an input that costs more
than 256 MB of memory or 20 seconds of processor time. Exit code 1 if there is one. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOM, PATIENCE = 256 * 2**20, 20.0
NUMBERS = (0, 1, 2, 3, 7, 8, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        0.5,
        1e308,
        2**31,
        2**63,
        10**30,
        "",
        "x",
        "../x",
        "/etc/passwd",
        "\x1b[2J",
        "\ud800",
    ),
    *([], {}, [[]], [1], {"a": 1}, float("nan"), float("inf"), "0" * 1000, "~nobody-there/x"),
)
DEEP = ("[" * 5000, '{"a":' * 5000, "-" * 5000, "9" * 5000)
WORDS = (b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"2001-99-99", b"\x00", b"\xff", b"\xed\xa0\x80", b"../")


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


def mutate(data: bytes, kind: str, chance: random.Random) -> bytes:
    """One to six changes of a sound input."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if kind == "json" and chance.random() < 0.7:
            data = _other_value(data, chance)
        elif kind in ("json", "yaml") and chance.random() < 0.2:
            at = chance.randrange(len(data) + 1)
            data = data[:at] + chance.choice([word.encode() for word in DEEP] + list(WORDS)) + data[at:]
        else:
            data = _other_bytes(data, chance)
    return data


def _other_value(data: bytes, chance: random.Random) -> bytes:
    """JSON with one value, anywhere in it, put in another's place."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 50)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(document, dict | list):
        walk(document)
    if not places:
        return json.dumps(chance.choice(VALUES)).encode()
    node, key = chance.choice(places)
    if isinstance(node, dict) and chance.random() < 0.2:
        node[chance.choice(("", "x", "../x", "\ud800", "model", "__metadata__"))] = node.pop(key)
    elif chance.random() < 0.2:
        del node[key]
    else:
        other, place = chance.choice(places)
        node[key] = chance.choice((chance.choice(VALUES), json.loads(json.dumps(other[place]))))
    return json.dumps(document).encode()


def _other_bytes(data: bytes, chance: random.Random) -> bytes:
    size = len(data)
    head = min(size, 4096)  # what a reader believes stands at the beginning
    at = chance.randrange(head + 1) if chance.random() < 0.8 else chance.randrange(size + 1)
    change = chance.randrange(6)
    if change == 0:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if change == 1:
        return data[:at] + struct.pack("<Q", chance.choice(NUMBERS)) + data[at + 8 :]
    if change == 2:
        return data[:at] + struct.pack("<I", chance.choice(NUMBERS) % 2**32) + data[at + 4 :]
    if change == 3:
        return data[:at]
    end = min(size, at + chance.randrange(1, 64))
    return data[:at] + data[end:] if change == 4 else data[:end] + data[at:end] + data[end:]


@dataclass
class Found:
    """What came of fuzzing one reader.

    Attributes:
        inputs, refused: how many it met, and how many of them it refused in a line.
        findings: the others that it did not read, each as "what: input in hexadecimal".
    """

    inputs: int = 0
    refused: int = 0
    findings: tuple[str, ...] = ()


def meet(target: Target, data: bytes, found: Found) -> None:
    """Give a reader one input."""
    from lowrank_export.converter.errors import LowRankError

    before, began, what = _peak(), time.process_time(), ""
    try:
        target.read(data)
    except LowRankError as error:
        found.refused += 1
        what = "more than one line" if "\n" in str(error).strip() else ""
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        what = f"{type(error).__name__}: {str(error)[:200]}"
    if _peak() - before > ROOM:
        what = f"{(_peak() - before) / 2**20:.0f} MB of memory"
    if time.process_time() - began > PATIENCE:
        what = f"{time.process_time() - began:.0f} s"
    found.inputs += 1
    if what:
        found.findings = (*found.findings, f"{what}: {data[:400].hex()}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(target: Target, seconds: float, seed: int) -> Found:
    """Changed inputs for that many seconds of processor time, children included."""
    chance, found = random.Random(f"{target.name} {seed}"), Found()  # noqa: S311
    for data in target.seeds:
        meet(target, data, found)
    found.inputs = 0
    begin = _used()
    while _used() - begin < seconds and len(found.findings) < 20:
        meet(target, mutate(chance.choice(target.seeds), target.kind, chance), found)
    return found


def _used() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def targets(folder: Path) -> list[Target]:
    """Every reader, with sound inputs made in `folder`."""
    import yaml

    from lowrank_export.converter.checkpoint.folder import CheckpointReader, load_tokenizer
    from lowrank_export.converter.journal import Journal
    from lowrank_export.converter.recipe import Recipe, read_recipe
    from lowrank_export.converter.statistics.calibration import read_text, read_token_windows
    from lowrank_export.converter.statistics.store import Statistics
    from lowrank_export.converter.storage.claim import claim
    from lowrank_export.converter.storage.gguf_header import read_header as read_gguf
    from lowrank_export.converter.storage.safetensors_header import read_header
    from lowrank_export.exporters.export import export
    from lowrank_export.exporters.gguf.imatrix import Importance, read_imatrix, write_imatrix
    from lowrank_export.exporters.onnx.folder_check import check_folder
    from lowrank_export.runtime_tests.artifacts import describe
    from lowrank_export.runtime_tests.gate_file import read_gates
    from lowrank_export.runtime_tests.provenance import model_provenance
    from lowrank_export.runtime_tests.sweep_results import read_rows

    tiny = _tiny()
    tiny.save_dense(folder / "dense", "llama", blocks=1)
    tiny.save_factored(folder / "factored", "llama", rank=16, blocks=1)
    tiny.save_factored(folder / "pivot", "llama", rank=16, blocks=1, layout="pivot")
    export(folder / "factored", folder / "m.gguf", format="gguf")
    export(folder / "dense", folder / "d.gguf", format="gguf", quantisation="f32")
    export(folder / "factored", folder / "onnx", format="onnx")
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


INDEX = "model.safetensors.index.json"


def _runtimes(folder: Path, within: Any, of: Any) -> list[Target]:
    from lowrank_export.runtime_tests.artifacts import describe
    from lowrank_export.runtime_tests.trial import check_survives

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

    from lowrank_export.converter.checkpoint.folder import CheckpointReader
    from lowrank_export.converter.model.architectures import family_of
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of processor time, per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a reader's name; repeatable")
    asked = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="lowrank-fuzz-") as scratch:
        known = targets(Path(scratch))
        names = [target.name for target in known]
        if unknown := set(asked.only or ()) - set(names):
            parser.error(f"no such reader: {', '.join(unknown)}; known: {', '.join(names)}")
        print(f"{'reader':20} {'inputs':>9} {'refused':>9} {'findings':>9}")
        for target in known:
            if target.name in asked.only if asked.only else not target.slow:
                found = fuzz(target, asked.seconds, asked.seed)
                bad += len(found.findings)
                print(f"{target.name:20} {found.inputs:9,} {found.refused:9,} {len(found.findings):9,}", flush=True)
                for line in found.findings:
                    print(f"    {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The best file of a size: rank and type chosen together, beside types only and the best plain types of that size.

For every size: the choice, its file, and its KL divergence in its runtime from the dense model in torch, on every text
given; predicted beside measured. Statistics, references and results are kept in `--out`: started again, only what is
missing is made. About 15 CPU-minutes a row:

    python benchmarks/size_budgets.py --text docs=python-docs --text wiki=wiki.test.raw
    python benchmarks/size_budgets.py --size 79.8MB --kind joint --kind types
    python benchmarks/size_budgets.py --mix q4_k_m --size 105.2MB --kind types
    python benchmarks/size_budgets.py --format onnx --size 100.8MB --windows 8 --length 512 --evaluate 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import ConsoleProgress, Progress
from lowrank_export.converter.core.recipe import Recipe, make_recipe
from lowrank_export.converter.model.source import Source, open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.exporters.budget.sized import Sized, planned
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.registry import TARGETS, requested
from lowrank_export.exporters.target import ExportRequest, Given
from lowrank_export.runtime_tests.backends.formats import TORCH, backend_names
from lowrank_export.runtime_tests.backends.open import open_backend
from lowrank_export.runtime_tests.evaluation import Evaluation, load_windows
from lowrank_export.runtime_tests.metrics.measure import measure
from lowrank_export.runtime_tests.metrics.reference_logits import ReferenceLogits
from lowrank_export.runtime_tests.metrics.windows import Windows
from lowrank_export.runtime_tests.report.report import write_json

SIZES = ("91.7MB", "85.8MB", "79.8MB", "67.9MB")
KINDS = ("joint", "types", "plain")
PROGRESS: Progress = ConsoleProgress()


@dataclass(frozen=True)
class Result:
    """One file: its bytes, linears that became two factors, predicted and measured divergence in nats per token."""

    bytes: int
    factored: int
    predicted: float | None
    kld: dict[str, float]
    seconds: float


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--format", choices=tuple(TARGETS), default="gguf")
    parser.add_argument("--size", action="append", help=f"repeatable; by default {', '.join(SIZES)}")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; all by default")
    parser.add_argument("--mix", action="append", help="a uniform mix such as q4_k_m, rounded the same way; repeatable")
    parser.add_argument("--text", action="append", help="NAME=TEXT; repeatable; by default docs=python-docs")
    parser.add_argument("--calibration", default="python-docs")
    parser.add_argument("--windows", type=int, default=32, help="calibration windows")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a calibration window")
    parser.add_argument("--gradient-windows", type=int, default=12, help="of those, for the loss gradient")
    parser.add_argument("--evaluate", type=int, default=8, help="windows of 512 tokens that are measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/size_budgets"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = dict(text.split("=", 1) for text in options.text or ["docs=python-docs"])
    kept = options.out / "results.json"
    results: dict[str, Result] = {}
    if kept.is_file():
        results = {name: Result(**found) for name, found in json.loads(kept.read_text(encoding="utf-8")).items()}
    source = open_source(options.model, PROGRESS)
    for size in options.size or SIZES:
        for kind in options.kind or KINDS:
            name = f"{options.format} {size} {kind}"
            if name not in results or not texts.keys() <= results[name].kld.keys():
                found = run(source, size, kind, texts, options)
                if found is None:
                    continue
                results[name] = found
                write_json({name: asdict(result) for name, result in results.items()}, kept)
    for mix in options.mix or ():
        if mix not in results or not texts.keys() <= results[mix].kld.keys():
            started = time.process_time()
            request = requested("gguf", mix, rounding=Rounding("aware")).of_dense(options.calibration)
            artifact = export(source.path, options.out / mix / request.name, request, force=True, progress=PROGRESS)
            seconds = time.process_time() - started
            kld = divergences(artifact, mix, source, texts, options)
            results[mix] = Result(artifact.bytes, 0, None, kld, seconds)
            write_json({name: asdict(result) for name, result in results.items()}, kept)
    print("| size, kind | bytes | factored | predicted | " + " | ".join(texts) + " | CPU s |")
    print("|---" * (5 + len(texts)) + "|")
    for name, found in results.items():
        measured = " | ".join(f"{found.kld.get(text, float('nan')):.4f}" for text in texts)
        predicted = "" if found.predicted is None else f"{found.predicted:.4f}"
        print(f"| {name} | {found.bytes} | {found.factored} | {predicted} | {measured} | {found.seconds:.0f} |")


def run(source: Source, size: str, kind: str, texts: dict[str, str], options: argparse.Namespace) -> Result | None:
    """Make one file and measure it; None where no file of the kind is that small."""
    wanted: dict[str, Any] = {"model": options.model, "max_bytes": size, "calibration": options.calibration}
    wanted |= {"windows": options.windows, "window_length": options.length}
    wanted |= {"gradient_windows": options.gradient_windows}
    if kind == "types":
        wanted["keep_dense"] = ("*",)
    recipe = make_recipe(wanted, "benchmark")
    started = time.process_time()
    try:
        found = planned(recipe, source, options.out / "statistics", by_size(options), device="cpu", progress=PROGRESS)
    except UsageError as none:
        print(f"{size} {kind}: {none}")
        return None
    chosen = found.found if kind != "plain" else found.plain and found.plain.found
    if chosen is None:
        return None
    artifact = make(source, chosen.recipe, found, kind, options)
    seconds = time.process_time() - started
    kld = divergences(artifact, f"{size} {kind}", source, texts, options)
    factored = sum(form.rank is not None for form in chosen.recipe.forms.values())
    return Result(artifact.bytes, factored, chosen.loss, kld, seconds)


def divergences(
    artifact: Artifact, label: str, source: Source, texts: dict[str, str], options: argparse.Namespace
) -> dict[str, float]:
    """Mean KL divergence of a file from the dense model in torch, in nats per token, on every text."""
    kld = {}
    for name, windows, reference in references(source, texts, options):
        backend = open_backend(
            artifact.path, backend_names(artifact.path)[0], threads=options.threads, context=windows.length + 1
        )
        try:
            measured = measure(backend, windows, [reference], PROGRESS, label=f"{label} on {name}")
        finally:
            backend.close()
        kld[name] = measured.parities[0].mean_kld
    return kld


def make(source: Source, recipe: Recipe, found: Sized, kind: str, options: argparse.Namespace) -> Artifact:
    """The file of a choice; of plain types an ordinary export of the dense model, rounded the same way."""
    out, request = options.out / f"{options.format}-{recipe.max_bytes}-{kind}", by_size(options)
    checkpoint = out / "checkpoint"
    if kind == "plain":
        assert found.plain is not None
        tied = bool(source.reader().config.get("tie_word_embeddings"))
        plain = request.plain(found.plain.type, found.plain.rest, tied=tied).of_dense(options.calibration)
        return export(source.path, out / plain.name, plain, force=True, progress=PROGRESS)
    if not checkpoint.is_dir():
        compress(recipe, checkpoint, statistics=options.out / "statistics", progress=PROGRESS)
    return export(checkpoint, out / request.name, request, force=True, progress=PROGRESS)


def by_size(options: argparse.Namespace) -> ExportRequest:
    """The export whose types are chosen."""
    request = TARGETS[options.format].sized_request(Given({}))
    assert request is not None
    return request


def references(
    source: Source, texts: dict[str, str], options: argparse.Namespace
) -> Iterator[tuple[str, Windows, ReferenceLogits]]:
    """Name, windows and the dense model's logits of every text, recorded once."""
    for name, text in texts.items():
        windows = load_windows(Evaluation(text, options.evaluate, 512), source.path)
        stem = f"{name}-{options.evaluate}"
        logits, losses = options.out / f"{stem}.f32", options.out / f"{stem}.npy"
        if not losses.is_file():
            backend = open_backend(source.path, TORCH, threads=options.threads, context=windows.length)
            try:
                np.save(losses, ReferenceLogits.record(backend, windows, logits, PROGRESS).losses)
            finally:
                backend.close()
        vocabulary = int(source.reader().config["vocab_size"])
        yield name, windows, ReferenceLogits(logits, windows, np.load(losses), vocabulary)


if __name__ == "__main__":
    main()

"""Bytes against quality: dense and factored GGUF files in many types, beside each plain quantization of no more bytes.

Every row is one file (two for an adapter), run in llama.cpp: perplexity, and KL divergence from the dense model in
torch. The table is printed, and written with two charts to the folder `--out`. Results are kept in its `results.json`
and factored checkpoints beside it: started again, only what is missing is made. All rows take hours:

    python benchmarks/bytes_and_quality.py                                   # everything
    python benchmarks/bytes_and_quality.py --only 'dense *' --only '0.8 q4*'  # parts, by row name
    python benchmarks/bytes_and_quality.py --list                            # the names
    python benchmarks/bytes_and_quality.py --only nothing                    # table and charts of what is there
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_export.converter.core.progress import ConsoleProgress, Progress
from lowrank_export.converter.core.recipe import RECIPE_FILE, Recipe, read_recipe
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.formats import LLAMA_CPP, TORCH
from lowrank_export.runtime_tests.backends.open import open_backend
from lowrank_export.runtime_tests.evaluation import Evaluation, load_windows
from lowrank_export.runtime_tests.metrics.measure import measure
from lowrank_export.runtime_tests.metrics.reference_logits import ReferenceLogits
from lowrank_export.runtime_tests.metrics.windows import Windows
from lowrank_export.runtime_tests.report.report import write_json
from lowrank_export.runtime_tests.report.svg_chart import STYLE, Point, Series, line_chart

TYPES = ("q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_k", "q4_0", "iq4_nl", "q3_k_m")
RETENTIONS = (0.9, 0.8, 0.6)
ADAPTER_RETENTIONS = (0.2, 0.1)
ADAPTER_FACTORS = "q8_0"
RESIDUALS = ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q3_k", "q2_k")
DENSE = "dense"
AWARE_TYPES = ("q5_0", "iq4_nl")
AWARE = " aware"  # ends the series whose weights are rounded knowing the inputs; minutes per file


@dataclass(frozen=True)
class Row:
    """One file to make and measure.

    Attributes:
        series: the curve that it lies on: "dense", "0.8", "0.8 aware", "adapter 0.1".
        type: of the matrices; of an adapter's residuals.
        retention: of the factors, None for the dense model.
    """

    series: str
    type: str
    retention: float | None = None

    @property
    def name(self) -> str:
        """What `--only` matches."""
        return f"{self.series} {self.type}"


@dataclass(frozen=True)
class Result:
    """What one row came to: bytes of all its files, PPL with its standard error, mean KLD in nats."""

    bytes: int
    bits_per_weight: float
    ppl: float
    ppl_error: float
    kld: float
    same_top: float


def all_rows() -> list[Row]:
    """Dense first: the others are compared with it."""
    rows = [Row(DENSE, type) for type in TYPES]
    rows += [Row(f"{retention:g}", type, retention) for retention in RETENTIONS for type in TYPES]
    series = {DENSE: None, **{f"{retention:g}": retention for retention in RETENTIONS}}
    rows += [Row(name + AWARE, type, retention) for name, retention in series.items() for type in AWARE_TYPES]
    return rows + [Row(f"adapter {r:g}", type, r) for r in ADAPTER_RETENTIONS for type in RESIDUALS]


def main() -> None:
    """Measure what is missing, then show everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="glob of row names; repeatable")
    parser.add_argument("--list", action="store_true", help="print the row names")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="loss-aware")
    parser.add_argument("--calibration", default="python-docs")
    parser.add_argument("--evaluate", default="python-docs", help="text, or token windows (.npy)")
    parser.add_argument("--windows", type=int, default=8, help="evaluation windows")
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/bytes_and_quality"))
    arguments = parser.parse_args()
    rows = all_rows()
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in rows if any(fnmatch(row.name, pattern) for pattern in arguments.only or ["*"])]
    with Bench(arguments, ConsoleProgress()) as bench:
        results = bench.finished()
        for row in wanted:
            if row.name not in results:
                results[row.name] = bench.run(row)
                bench.keep(results)
                print(line(row, results), flush=True)
    shown = [row for row in rows if row.name in results]
    text = "\n".join([HEAD, *(line(row, results) for row in shown)])
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    for name, label in (("kld", "KLD (nats)"), ("ppl", "PPL")):
        (arguments.out / f"{name}.svg").write_text(chart(shown, results, name, label), encoding="utf-8")
    print(text)


class Bench:
    """Makes and measures rows; opens model, windows and reference only if a row wants them."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self._options, self._progress, self._stack = arguments, progress, ExitStack()
        self._results = arguments.out / "results.json"

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def finished(self) -> dict[str, Result]:
        """Rows measured before.

        Raises:
            SystemExit: they were measured otherwise.
        """
        if not self._results.is_file():
            return {}
        kept = json.loads(self._results.read_text(encoding="utf-8"))
        if kept["made_from"] != self._made_from:
            raise SystemExit(f"{self._results}: measured otherwise than asked for; give another --out")
        return {name: Result(**result) for name, result in kept["rows"].items()}

    def keep(self, results: Mapping[str, Result]) -> None:
        """Write all results, atomically."""
        rows = {name: asdict(result) for name, result in results.items()}
        write_json({"made_from": self._made_from, "rows": rows}, self._results)

    def run(self, row: Row) -> Result:
        """Export, measure, and remove the export."""
        with tempfile.TemporaryDirectory(dir=self._options.out) as folder:
            artifact = self._export(row, Path(folder) / "m.gguf")
            backend = open_backend(
                artifact.path, LLAMA_CPP, threads=self._options.threads, context=self._windows.length + 1
            )
            try:
                found = measure(backend, self._windows, [self._reference], self._progress, label=row.name)
            finally:
                backend.close()
        (parity,), ppl = found.parities, found.perplexity
        bits = 8 * artifact.bytes / self._parameters
        return Result(artifact.bytes, bits, ppl.value, ppl.standard_error, parity.mean_kld, parity.same_top)

    def _export(self, row: Row, out: Path) -> Artifact:
        checkpoint = self._source.path if row.retention is None else self._checkpoint(row.retention)
        if not row.series.startswith("adapter"):
            rounding = None
            if row.series.endswith(AWARE):  # a factored checkpoint records its calibration text
                text = self._options.calibration if row.retention is None else None
                rounding = Rounding("aware", calibration=text)
            return export(checkpoint, out, requested("gguf", row.type, rounding=rounding), progress=self._progress)
        return export(
            checkpoint,
            out,
            requested("gguf", ADAPTER_FACTORS, layout="adapter", dense=self._options.model, residual=row.type),
            progress=self._progress,
        )

    def _checkpoint(self, retention: float) -> Path:
        """The factored checkpoint at a retention; kept for the next row and the next run."""
        options = self._options
        recipe = Recipe(
            model=options.model, method=options.method, retention=retention, calibration=options.calibration
        )
        path: Path = options.out / f"checkpoint-{retention:g}"
        if path.is_dir() and read_recipe(path / RECIPE_FILE) != recipe:
            shutil.rmtree(path)
        if not path.is_dir():
            compress(recipe, path, statistics=options.out / "statistics", progress=self._progress)
        return path

    @cached_property
    def _source(self) -> Any:
        return open_source(self._options.model, self._progress)

    @cached_property
    def _windows(self) -> Windows:
        options = self._options
        return load_windows(Evaluation(options.evaluate, options.windows, options.length), self._source.path)

    @cached_property
    def _reference(self) -> ReferenceLogits:
        """The dense model's logits, recorded once."""
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._options.out))
        backend = open_backend(self._source.path, TORCH, threads=self._options.threads, context=self._windows.length)
        try:
            return ReferenceLogits.record(backend, self._windows, Path(scratch) / "dense.f32", self._progress)
        finally:
            backend.close()

    @cached_property
    def _parameters(self) -> int:
        """Weights of the dense model: every row's bits are per weight of it."""
        reader = self._source.reader()
        tied = reader.config.get("tie_word_embeddings")
        names = [name for name in reader.names if not (tied and name == "lm_head.weight")]
        return sum(int(np.prod(reader.shape(name))) for name in names)

    @cached_property
    def _made_from(self) -> dict[str, Any]:
        options = self._options
        return {
            "model": self._source.fingerprint(),
            "windows": self._windows.facts(),
            "method": options.method,
            "calibration": options.calibration,
        }


HEAD = (
    "| row | MB | bits/weight | PPL ± s.e. | KLD | same-top | plain, no larger | its MB | its PPL | its KLD |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row, results: Mapping[str, Result]) -> str:
    """One row of the table; beside anything but plain quantization, the best plain file that is no larger."""
    own = results[row.name]
    cells = [row.name, f"{own.bytes / 1e6:.1f}", f"{own.bits_per_weight:.2f}", f"{own.ppl:.2f} ± {own.ppl_error:.2f}"]
    cells += [f"{own.kld:.4f}", f"{own.same_top:.1%}"]
    plain = None if row.series == DENSE else no_larger(own.bytes, results)
    if plain is None:
        return "| " + " | ".join([*cells, *[""] * 4]) + " |"
    other = results[plain]
    return "| " + " | ".join([*cells, plain, f"{other.bytes / 1e6:.1f}", f"{other.ppl:.2f}", f"{other.kld:.4f}"]) + " |"


def no_larger(bytes: int, results: Mapping[str, Result]) -> str | None:
    """The plain file of least divergence that is no larger; None where there is none."""
    plain = {
        name: found
        for name, found in results.items()
        if name.startswith(f"{DENSE} ") and AWARE not in name and found.bytes <= bytes
    }
    return min(plain, key=lambda name: plain[name].kld) if plain else None


def chart(rows: Iterable[Row], results: Mapping[str, Result], value: str, label: str) -> str:
    """A file of its own: one curve per series, megabytes across."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        found = results[row.name]
        error = found.ppl_error if value == "ppl" else 0.0
        series.setdefault(row.series, []).append(Point(found.bytes / 1e6, getattr(found, value), error))
    curves = [Series(name, tuple(sorted(points, key=lambda p: p.x))) for name, points in series.items()]
    drawn = line_chart(curves, title=f"{label} against bytes", x_label="MB", y_label=label, log_y=True)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title>", f"<style>{STYLE}</style>\n<title>", 1
    )


if __name__ == "__main__":
    main()

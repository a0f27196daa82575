"""ONNX, dense and factored side by side in every type: bytes, quality, speed in both runtimes, and text.

Quality: perplexity, and KL divergence and same-top from the fp32 export of the same model, in ONNX Runtime. Speed:
prefill and decode in ONNX Runtime and ONNX Runtime GenAI, dense and factored timed in turn, round by round. Text:
greedy, by GenAI's own loop. `builder-int4` is what ONNX Runtime's quantizer, at its defaults, makes of the fp32 graph.

    python benchmarks/onnx_types.py                                  # the demo model: quality, speed, text
    python benchmarks/onnx_types.py --rounding plain --no-speed --type int4 --windows 2
    python benchmarks/onnx_types.py --random                         # speed alone, on a random llama, 2048 wide
    python benchmarks/onnx_types.py --random --width 256 --blocks 2 --repeats 1   # seconds

Prints a table, and writes `results.json` and `table.md` to the folder `--out`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from random_llama import save_random_factors, save_random_llama, speed_options, timed

from lowrank_export.converter.core.progress import ConsoleProgress, Progress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.loading import load_tokenizer, quiet_transformers
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.exporters.export import export
from lowrank_export.exporters.onnx.contents import MODEL_FILE
from lowrank_export.exporters.onnx.weights.types import QUANTIZATIONS, OnnxOptions, has_codes
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.formats import GENAI, ONNXRUNTIME
from lowrank_export.runtime_tests.backends.genai import GenAiBackend
from lowrank_export.runtime_tests.backends.open import open_backend
from lowrank_export.runtime_tests.backends.protocol import Backend
from lowrank_export.runtime_tests.evaluation import Evaluation, load_windows
from lowrank_export.runtime_tests.metrics.measure import measure
from lowrank_export.runtime_tests.metrics.reference_logits import ReferenceLogits
from lowrank_export.runtime_tests.metrics.windows import Windows
from lowrank_export.runtime_tests.report.report import write_json
from lowrank_export.runtime_tests.timing.speed import Speed

MODELS = ("dense", "factored")
BASELINE = "builder-int4"
PROMPT = "This function returns a list of"
TEXT_TOKENS = 24


@dataclass(frozen=True)
class Export:
    """One folder: which model, in which type, rounded how."""

    model: str
    type: str
    rounding: str
    path: Path
    bytes: int

    @property
    def name(self) -> str:
        """For people, and in the results."""
        return f"{self.model} {self.type}" + ("" if self.rounding == "plain" else f" {self.rounding}")


@dataclass(frozen=True)
class Quality:
    """PPL with its standard error; KLD in nats and same-top from the fp32 export of the same model; greedy text."""

    ppl: float
    ppl_error: float
    kld: float
    same_top: float
    text: str


def main() -> None:
    """Export everything, measure, print and write."""
    options = parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    progress = ConsoleProgress()
    with tempfile.TemporaryDirectory(dir=options.out) as scratch, quiet_transformers():
        sources = random_sources(Path(scratch), options) if options.random else model_sources(options, progress)
        made: list[Export] = []
        quality: dict[str, Quality] = {}
        with Judge(sources["dense"], Path(scratch), options, progress) as judge:
            for model in MODELS:
                for one in exports(sources[model], model, Path(scratch), options, progress):
                    made.append(one)
                    if not options.random:
                        quality[one.name] = judge.measure(one)
                        print(quality_line(one, quality[one.name]), flush=True)
        speeds = speeds_of(made, options) if options.speed else {}
    rows = [
        {
            "name": one.name,
            "model": one.model,
            "type": one.type,
            "rounding": one.rounding,
            "bytes": one.bytes,
            "quality": asdict(quality[one.name]) if one.name in quality else None,
            "speed": {runtime: asdict(speed) for runtime, speed in speeds.get(one.name, {}).items()},
        }
        for one in made
    ]
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    write_json({"options": asked, "rows": rows}, options.out / "results.json")
    text = "\n".join(table(made, quality, speeds))
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options that the speed benchmarks share, and this one's."""
    found = speed_options(__doc__, blocks=8, prompt=256)
    found.add_argument("--random", action="store_true", help="a random llama instead of --model: speed alone")
    found.add_argument("--model", default="demo")
    found.add_argument("--method", default="loss-aware")
    found.add_argument("--checkpoint", type=Path, help="a factored checkpoint of --model, instead of making one")
    found.add_argument("--calibration", default="python-docs")
    found.add_argument("--evaluate", default="python-docs", help="text, or token windows (.npy)")
    found.add_argument("--windows", type=int, default=8, help="evaluation windows")
    found.add_argument("--length", type=int, default=512, help="tokens per window")
    found.add_argument("--type", action="append", choices=[*QUANTIZATIONS, BASELINE])
    found.add_argument("--rounding", action="append", choices=["plain", "aware"])
    found.add_argument("--rounding-text", help="text, or token windows (.npy), of aware rounding; else --calibration")
    found.add_argument("--block-size", type=int, default=OnnxOptions().block_size)
    found.add_argument("--accuracy-level", type=int, default=OnnxOptions().accuracy_level)
    found.add_argument("--symmetric", action=argparse.BooleanOptionalAction, default=OnnxOptions().symmetric)
    found.add_argument("--factors", choices=["auto", "all"], default=OnnxOptions().factors)
    found.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True, help="the dense model too")
    found.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True)
    found.add_argument("--out", type=Path, default=Path("out/onnx_types"))
    found.set_defaults(retention=None)
    return found


def random_sources(scratch: Path, options: argparse.Namespace) -> dict[str, Path]:
    """A random llama, dense and factored."""
    options.rounding, options.retention = ["plain"], options.retention or 0.6
    dense, factored = scratch / "dense-model", scratch / "factored-model"
    save_random_llama(dense, options.width, options.blocks, options.prompt + options.decode)
    save_random_factors(factored, dense, Recipe(model=str(dense), method="svd", retention=options.retention))
    return {"dense": dense, "factored": factored}


def model_sources(options: argparse.Namespace, progress: Progress) -> dict[str, Path]:
    """The model, and its factored checkpoint, which is kept in `--out` for the next run."""
    options.retention = options.retention or 0.8
    dense = open_source(options.model, progress).path
    if options.checkpoint is not None:
        return {"dense": dense, "factored": options.checkpoint}
    factored = options.out / f"checkpoint-{options.method}-{options.retention:g}"
    if not factored.is_dir():
        recipe = Recipe(
            model=options.model, method=options.method, retention=options.retention, calibration=options.calibration
        )
        compress(recipe, factored, progress=progress)
    return {"dense": dense, "factored": factored}


def exports(
    source: Path, model: str, scratch: Path, options: argparse.Namespace, progress: Progress
) -> Iterator[Export]:
    """Every type of one model as it is made, fp32 first: the others are compared with it."""
    if model == "dense" and not options.dense:
        return
    wanted = options.type or [*QUANTIZATIONS, BASELINE]
    fp32 = Export(model, "fp32", "plain", scratch / f"{model}-fp32-plain", 0)
    for type in dict.fromkeys(["fp32", *wanted]):
        if type == BASELINE:
            yield baseline(fp32, scratch / f"{model}-{type}")
            continue
        for rounding in (options.rounding or ["plain", "aware"]) if has_codes(type) else ["plain"]:
            out = scratch / f"{model}-{type}-{rounding}"
            recorded = None if model == "factored" else options.calibration
            text = (options.rounding_text or recorded) if rounding == "aware" else None
            chosen = OnnxOptions(
                options.block_size, options.symmetric, options.accuracy_level, rounding, text, options.factors
            )
            made = export(source, out, requested("onnx", type, options=chosen), progress=progress)
            yield Export(model, type, rounding, out, made.bytes)


def baseline(fp32: Export, out: Path) -> Export:
    """Every matmul of an fp32 folder in 4 bits by ONNX Runtime's quantizer, as GenAI's builder calls it by default."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    shutil.copytree(fp32.path, out, ignore=shutil.ignore_patterns(f"{MODEL_FILE}*"))
    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(fp32.path / MODEL_FILE)), bits=4, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / MODEL_FILE), use_external_data_format=True)
    return Export(fp32.model, BASELINE, "plain", out, sum(file.stat().st_size for file in out.glob(f"{MODEL_FILE}*")))


class Judge:
    """Measures quality; the fp32 export of each model is recorded when it comes by, the others are held against it."""

    def __init__(self, dense: Path, scratch: Path, options: argparse.Namespace, progress: Progress) -> None:
        self._dense, self._scratch, self._options, self._progress = dense, scratch, options, progress
        self._references: dict[str, ReferenceLogits] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def measure(self, one: Export) -> Quality:
        """Of one export."""
        backend = self._opened(one)
        try:
            if one.model not in self._references:
                path = self._scratch / f"{one.model}.f32"
                recorded = ReferenceLogits.record(backend, self._windows, path, self._progress, label=one.model)
                self._references[one.model] = self._stack.enter_context(recorded)
            reference = self._references[one.model]
            result = measure(backend, self._windows, [reference], self._progress, label=one.name)
        finally:
            backend.close()
        (parity,), ppl = result.parities, result.perplexity
        return Quality(ppl.value, ppl.standard_error, parity.mean_kld, parity.same_top, self._text(one))

    def _opened(self, one: Export) -> Backend:
        options = self._options
        return open_backend(one.path, ONNXRUNTIME, threads=options.threads, context=options.length + 1)

    def _text(self, one: Export) -> str:
        prompt = np.asarray(self._tokenizer.encode(PROMPT), dtype=np.int32)
        genai = GenAiBackend(one.path, threads=self._options.threads, max_length=len(prompt) + TEXT_TOKENS)
        try:
            return str(self._tokenizer.decode(genai.generate(prompt, TEXT_TOKENS)))
        finally:
            genai.close()

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._dense)

    @cached_property
    def _windows(self) -> Windows:
        options = self._options
        return load_windows(Evaluation(options.evaluate, options.windows, options.length), self._dense)


def speeds_of(made: Sequence[Export], options: argparse.Namespace) -> dict[str, dict[str, Speed]]:
    """Name -> runtime -> speed; dense and factored of a type in turn. How weights were rounded costs no time."""
    found: dict[str, dict[str, Speed]] = {}
    for type in dict.fromkeys(one.type for one in made):
        firsts = list({one.model: one for one in reversed(made) if one.type == type}.values())
        for runtime in (ONNXRUNTIME, GENAI):
            for one, speed in zip(firsts, timed([_artifact(one) for one in firsts], runtime, options), strict=True):
                found.setdefault(one.name, {})[runtime] = speed
    return found


def _artifact(one: Export) -> Artifact:
    return Artifact(one.path, "onnx", one.type, one.model, one.bytes, 0, ())


def quality_line(one: Export, quality: Quality) -> str:
    """For people, while it runs."""
    return (
        f"{one.name}: {one.bytes / 1e6:.1f} MB, PPL {quality.ppl:.2f}, KLD {quality.kld:.4f}, "
        f"same-top {quality.same_top:.1%}: {quality.text!r}"
    )


def table(made: Sequence[Export], quality: dict[str, Quality], speeds: dict[str, dict[str, Speed]]) -> list[str]:
    """Markdown: a row per export; speeds with their ratio to dense in the same type."""
    runtimes = list(dict.fromkeys(runtime for row in speeds.values() for runtime in row))
    head = ["type", "rounding", "model", "MB"]
    head += ["PPL", "KLD", "same-top"] if quality else []
    head += [f"{runtime} {kind} tok/s" for runtime in runtimes for kind in ("prefill", "decode")]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in made:
        cells = [one.type, one.rounding, one.model, f"{one.bytes / 1e6:.1f}"]
        if quality:
            found = quality[one.name]
            cells += [f"{found.ppl:.2f} ± {found.ppl_error:.2f}", f"{found.kld:.4f}", f"{found.same_top:.1%}"]
        for runtime in runtimes:
            ours = speeds.get(one.name, {}).get(runtime)
            dense = speeds.get(f"dense {one.type}", {}).get(runtime) if one.model != "dense" else None
            cells += [rate(ours, dense, "prefill"), rate(ours, dense, "decode")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rate(speed: Speed | None, dense: Speed | None, kind: str) -> str:
    """Median tokens per second, and how many times dense that is."""
    if speed is None:
        return ""
    median = float(getattr(speed, kind).median)
    return f"{median:.1f}" + ("" if dense is None else f" ({median / getattr(dense, kind).median:.2f}x)")


if __name__ == "__main__":
    main()

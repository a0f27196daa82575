"""Does a build of llama.cpp compute what it should? Tiny models in a process of its own, against numpy.

A model of every type and layout reads prompts of several lengths on one and two threads, with the exact settings that
validation uses and with llama.cpp's defaults. Each position's logits have to agree with numpy's, which come from the
same stored weights. How far they may be off follows from the arithmetic:

- ggml rounds activations before it multiplies them with weights (float16, bfloat16, 8 bits a block). Numpy does the
  same on a few positions; ROUNDINGS times what that changes is allowed (2.0 times was seen, over 512 positions).
- Sums: float32 has 24 bits; float16 (flash attention's values, float16 weights on some processors) and what GPUs
  multiply float32 in have 11.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.errors import ResourceError
from ...converter.progress import Advance, Progress
from .proof_child import GPU, Run
from .proof_models import (
    CONTEXT,
    INNER,
    LAYOUTS,
    TYPES,
    Floats,
    Model,
    check_numpy,
    exactly,
    logits,
    models,
    prompt,
    rounding_of,
    write_model,
)
from .proof_process import lost_runs

PROMPTS = (1, 2, 33, CONTEXT)  # tokens: decoding; the least that is a prompt; more than a tile of rows; many
SETTINGS = ((1, True), (2, True), (2, False))  # threads, exact
ROUNDINGS = 4.0
ROUNDED_POSITIONS = 64
FLOAT32_SUMS = 8 * INNER * 2.0**-24  # so many sums of so many products follow each other
FLOAT16_SUMS = CONTEXT**0.5 * 2.0**-11
BEYOND = 1e6  # stands for what is no number


@dataclass(frozen=True)
class Failure:
    """What went wrong in one model.

    Attributes:
        kind, layout: of the model.
        tokens, threads: the first prompt that failed, and the threads it ran on.
        what: "illegal instruction (SIGILL)", "wrong logits", ...
        detail: more of it, or empty.
    """

    kind: str
    layout: str
    tokens: int
    threads: int
    what: str
    detail: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.kind} {self.where}: {self.what}" + (f": {self.detail}" if self.detail else "")

    @property
    def where(self) -> str:
        """Layout and prompt, for people."""
        return f"{self.layout}, prompt of {self.tokens} on {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Proof:
    """What came of proving one build.

    Attributes:
        runs: prompts that were to be run.
        seconds: wall time, models and numpy included.
        failures: the first of each model; none if the build passed.
        worst: type -> largest difference of logits from numpy's as a share of what is allowed; of runs that ended.
        repacked: whether all failures are gone where weights are not repacked for special kernels (AMX among them).
    """

    runs: int
    seconds: float
    failures: tuple[Failure, ...]
    worst: dict[str, float]
    repacked: bool = False

    @property
    def passed(self) -> bool:
        """Whether the build computes what it should."""
        return not self.failures

    def lines(self) -> Iterator[str]:
        """The whole proof for people: every failure, and how near the types came to what is allowed."""
        yield f"proof: {self.runs} prompts in {self.seconds} s: {'passed' if self.passed else 'FAILED'}"
        shares = ", ".join(f"{kind} {share:.2f}" for kind, share in self.worst.items())
        yield f"proof: logits differ from numpy's by at most, as a share of what is allowed: {shares or 'none ended'}"
        for failure in self.failures:
            yield f"FAILED: {failure.line}"
        if self.repacked:
            yield "without repacked weights, which AMX and other kernels use, none of them fails"

    def summary(self) -> str:
        """The failures in one line: types by what went wrong with them."""
        found: dict[str, list[Failure]] = {}
        for failure in self.failures:
            found.setdefault(failure.what, []).append(failure)
        parts = []
        for what, failures in found.items():
            first, kinds = failures[0], dict.fromkeys(failure.kind for failure in failures)
            detail = f": {first.detail}" if first.detail else ""
            parts.append(f"{what} in {', '.join(kinds)} (first {first.where}{detail})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {**asdict(self), "failures": [asdict(failure) for failure in self.failures], "passed": self.passed}


def prove(site: Path, progress: Progress, *, kinds: Sequence[str] = TYPES, layouts: Sequence[str] = LAYOUTS) -> Proof:
    """Run the tiny models in a build.

    Args:
        site: folder that holds the importable `llama_cpp`.
        progress: told every prompt.
        kinds, layouts: which models.

    Raises:
        ResourceError: numpy cannot be relied on here, or there is no room for the models.
    """
    check_numpy()
    try:
        with tempfile.TemporaryDirectory(prefix="lowrank-proof-") as folder:
            return _prove(site, progress, Path(folder), models(tuple(kinds), tuple(layouts)))
    except OSError as error:
        raise ResourceError(f"llama.cpp runtime: no room for the models of its proof: {error}") from None


def _prove(site: Path, progress: Progress, folder: Path, tiny: Iterable[Model]) -> Proof:
    started = time.monotonic()
    made = {str(folder / f"{model.name}.gguf"): model for model in tiny}
    for path, model in made.items():
        write_model(model, Path(path))
    runs = [Run(path, n, threads, exact) for path in made for threads, exact in SETTINGS for n in PROMPTS]
    with progress.stage("proving llama.cpp", len(runs)) as advance:
        failed = _failed(site, runs, made, folder, advance)
        again = [replace(run, repack=False) for run in failed.first]
        repacked = bool(again) and not _failed(site, again, made, folder, lambda _: None).first
    failures = tuple(_failure(made[run.model], run, words) for run, words in failed.first.items())
    return Proof(len(runs), round(time.monotonic() - started, 1), failures, failed.worst, repacked)


@dataclass(frozen=True)
class _Failed:
    """The first failed run of every model, with what and detail; and `Proof.worst`."""

    first: dict[Run, tuple[str, str]]
    worst: dict[str, float]


def _failed(site: Path, runs: Sequence[Run], made: dict[str, Model], folder: Path, advance: Advance) -> _Failed:
    first: dict[str, tuple[Run, tuple[str, str]]] = {}
    for run, words in lost_runs(site, runs, folder, advance):
        first[run.model] = (run, words)
    worst: dict[str, float] = {}
    for path, model in made.items():
        mine = [run for run in runs if run.model == path and (folder / f"{run.name}.npy").is_file()]
        if not mine:
            continue
        expected, rounded = _expected(model)
        for run in mine:
            found = np.load(folder / f"{run.name}.npy").astype(np.float64)
            fine = run.exact and model.kind != "f16" and not (folder / GPU).exists()
            allowed = ROUNDINGS * rounded + (FLOAT32_SUMS if fine else FLOAT16_SUMS)
            off = _difference(found, expected[: run.tokens], expected)
            worst[model.kind] = max(worst.get(model.kind, 0.0), min(round(off / allowed, 3), BEYOND))
            if not off <= allowed and (path not in first or runs.index(run) < runs.index(first[path][0])):
                first[path] = (run, ("wrong logits", f"off by {off:.2g} of their size, {allowed:.2g} is allowed"))
    return _Failed(dict(first.values()), worst)


def _expected(model: Model) -> tuple[Floats, float]:
    """Exact logits of the longest prompt, and what rounded activations change in them, as a share of their size."""
    tokens = prompt(CONTEXT)
    exact = logits(model, tokens, activations=exactly)
    rounding = rounding_of(model.kind)
    if rounding is exactly:
        return exact, 0.0
    rounded = logits(model, tokens[:ROUNDED_POSITIONS], activations=rounding)
    changes = np.linalg.norm(rounded - exact[:ROUNDED_POSITIONS], axis=1)
    return exact, float(np.sqrt((changes**2).mean())) / _size(exact)


def _difference(found: Floats, expected: Floats, all_expected: Floats) -> float:
    """The position whose logits are farthest off, as a share of the logits' size; infinite if one is no number."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - expected, axis=1).max()) / _size(all_expected)


def _size(values: Floats) -> float:
    """Root mean square over positions of the length of their logits."""
    return float(np.sqrt((values**2).sum(axis=1).mean()))


def _failure(model: Model, run: Run, words: tuple[str, str]) -> Failure:
    return Failure(model.kind, model.layout, run.tokens, run.threads, *words)

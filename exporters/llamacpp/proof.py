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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.core.errors import ResourceError
from ...converter.core.progress import Advance, Progress
from .proof_child import GPU, Run
from .proof_logits import size_of
from .proof_models import CONTEXT, INNER, LAYOUTS, TYPES, Floats
from .proof_process import Words, lost_runs, written_models

PROMPTS = (1, 2, 33, CONTEXT)  # tokens: decoding; the least that is a prompt; more than a tile of rows; many
SETTINGS = ((1, True), (2, True), (2, False))  # threads, exact
ROUNDINGS = 4.0
FLOAT32_SUMS = 8 * INNER * 2.0**-24  # so many sums of so many products follow each other
FLOAT16_SUMS = CONTEXT**0.5 * 2.0**-11
BEYOND = 1e6  # in place of NaN


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
        progress: receives every prompt.
        kinds, layouts: which models.

    Raises:
        ResourceError: numpy cannot be relied on here, or there is no room for the models.
    """
    names = [f"{kind}-{layout}" for kind in kinds for layout in layouts]
    try:
        with tempfile.TemporaryDirectory(prefix="lowrank-proof-") as folder:
            return _prove(site, progress, Path(folder), names)
    except OSError as error:
        raise ResourceError(f"llama.cpp runtime: no room for the models of its proof: {error}") from None


def _prove(site: Path, progress: Progress, folder: Path, names: Sequence[str]) -> Proof:
    started = time.monotonic()
    files = written_models(folder, names)
    runs = [Run(str(file), n, threads, exact) for file in files for threads, exact in SETTINGS for n in PROMPTS]
    with progress.stage("proving llama.cpp", len(runs)) as advance:
        failed = _failed(site, runs, folder, advance)
        again = [replace(run, repack=False) for run in failed.first]
        repacked = bool(again) and not _failed(site, again, folder, lambda _: None).first
    failures = tuple(_failure(run, words) for run, words in failed.first.items())
    return Proof(len(runs), round(time.monotonic() - started, 1), failures, failed.worst, repacked)


@dataclass(frozen=True)
class _Failed:
    """The first failed run of every model, with what and detail; and `Proof.worst`."""

    first: dict[Run, Words]
    worst: dict[str, float]


def _failed(site: Path, runs: Sequence[Run], folder: Path, advance: Advance) -> _Failed:
    first = {run.model: (run, words) for run, words in lost_runs(site, runs, folder, advance)}
    gpu = (folder / GPU).exists()
    worst: dict[str, float] = {}
    for run in runs:
        file = folder / f"{run.name}.npy"
        if not file.is_file():
            continue
        kind, _ = _kind_and_layout(run)
        with np.load(Path(run.model).with_suffix(".npz")) as expected:
            exact, rounded = expected["exact"], float(expected["rounded"])
        fine = run.exact and kind != "f16" and not gpu
        allowed = ROUNDINGS * rounded + (FLOAT32_SUMS if fine else FLOAT16_SUMS)
        off = _difference(np.load(file).astype(np.float64), exact[: run.tokens], exact)
        worst[kind] = max(worst.get(kind, 0.0), min(round(off / allowed, 3), BEYOND))
        before = first.get(run.model)
        if not off <= allowed and (before is None or runs.index(run) < runs.index(before[0])):
            first[run.model] = (run, ("wrong logits", f"off by {off:.2g} of their size, {allowed:.2g} is allowed"))
    return _Failed(dict(first.values()), worst)


def _difference(found: Floats, expected: Floats, all_expected: Floats) -> float:
    """The position whose logits are farthest off, as a share of the logits' size; infinite if one is NaN."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - expected, axis=1).max()) / size_of(all_expected)


def _failure(run: Run, words: Words) -> Failure:
    return Failure(*_kind_and_layout(run), run.tokens, run.threads, *words)


def _kind_and_layout(run: Run) -> tuple[str, str]:
    kind, _, layout = Path(run.model).stem.partition("-")
    return kind, layout

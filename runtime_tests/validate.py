"""Artifacts -> report: the order in which models are loaded, measured and freed.

One model is in memory at a time, two while speed is timed side by side; nothing an artifact does can reach the next.
"""

from __future__ import annotations

import gc
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..converter.errors import InputError
from ..converter.progress import Progress, SilentProgress
from ..exporters.artifact import Artifact
from ..exporters.gguf.mixes import fallback_lines
from .artifacts import describe
from .backends.open import TORCH, backend_names, open_backend
from .backends.protocol import Backend
from .environment import library_versions, machine_facts
from .gates import parity_gates, parity_limits
from .generation import Sample, sample
from .llamacpp.runtime import ensure_runtime
from .measure import Measured, compare, measure
from .perplexity import Perplexity, perplexity
from .reference_logits import ReferenceLogits
from .report import Report, Row
from .speed import Speed, measure_speed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DENSE, FACTORED = "dense", "factored"
PROMPT = "The history of the city begins with"


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        dtype: dtype of the torch models.
        speed: whether to time prefill and decode.
        prompt_tokens, decode_tokens, repeats: what speed is timed with.
        prompt: text that every model continues greedily; empty for none.
        sample_tokens: longest continuation.
    """

    device: str = "cpu"
    dtype: str = "float32"
    speed: bool = True
    prompt_tokens: int = 256
    decode_tokens: int = 32
    repeats: int = 3
    prompt: str = PROMPT
    sample_tokens: int = 32


DEFAULTS = Settings()


@dataclass(frozen=True)
class _Run:
    """What every step of one validation needs."""

    settings: Settings
    threads: int
    windows: NDArray[np.int32]
    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    context: int


def validate(
    artifacts: Sequence[Artifact | Path],
    *,
    reference: Path,
    windows: NDArray[np.int32],
    dense: Path | None = None,
    dense_artifacts: Sequence[Artifact | Path] = (),
    threads: int = 1,
    settings: Settings = DEFAULTS,
    scratch: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure artifacts in their runtimes against the torch models they come from.

    Args:
        artifacts: exports of `reference`: GGUF files, ONNX folders, checkpoint folders.
        reference: the factored checkpoint (parity is against it).
        windows: token ids (N, T); every runtime is measured on exactly these, at the same N (T - 1) positions.
        dense: the uncompressed checkpoint (quality is against it).
        dense_artifacts: exports of `dense`; each is shown beside the factored one of its runtime and type, and timed in
            one run with it.
        threads: CPU threads of every runtime.
        settings: device, and what speed and samples are measured with.
        scratch: folder for recorded logits, 4 bytes x N x (T - 1) x vocabulary for each of the two torch models;
            the system's temporary folder by default. Nothing is left in it.
        provenance: seeds and hashes to be written into the report.
        progress: receives stages.

    Raises:
        InputError: a missing or damaged artifact, logits that are not finite (names runtime and window), a vocabulary
            that differs, windows the model cannot hold.
        ResourceError: no room for recorded logits, a runtime that is missing, out of memory.
    """
    candidates = [describe(item) for item in artifacts]
    beside = [describe(item) for item in dense_artifacts]
    if beside and dense is None:
        raise InputError("dense artifacts were given without the dense model they were exported from")
    run = _prepare(reference, windows, threads, settings, progress or SilentProgress())
    if any(item.format == "gguf" for item in [*candidates, *beside]):
        ensure_runtime(run.progress)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowrank-validate-", dir=scratch)))
        dense_logits = None
        if dense is not None:
            dense_logits, row = _torch_row(dense, folder / "dense.f32", DENSE, None, run)
            stack.enter_context(dense_logits)
            rows.append(row)
        factored_logits, row = _torch_row(reference, folder / "factored.f32", FACTORED, dense_logits, run)
        stack.enter_context(factored_logits)
        rows.append(row)
        if dense_logits is not None:
            for artifact in beside:
                rows.extend(_artifact_rows(artifact, DENSE, dense_logits, None, run))
        for artifact in candidates:
            rows.extend(_artifact_rows(artifact, FACTORED, factored_logits, dense_logits, run))
    if settings.speed:
        rows = _with_speeds(rows, run)
    return Report(
        rows=tuple(_ordered(rows)),
        windows=window_facts(windows),
        settings={"threads": threads, **asdict(run.settings)},
        provenance=dict(provenance or {}),
        versions=library_versions(),
        machine=machine_facts(),
    )


def _prepare(reference: Path, windows: NDArray[np.int32], threads: int, settings: Settings, progress: Progress) -> _Run:
    """Check windows and settings against the model's configuration before anything is loaded."""
    from ..converter.checkpoint import CheckpointReader, load_tokenizer

    longest = check_windows(windows, CheckpointReader(reference).config)
    decode = min(settings.decode_tokens, max(1, longest // 4))
    prompt = min(settings.prompt_tokens, longest - decode)
    settings = replace(settings, prompt_tokens=prompt, decode_tokens=decode)
    tokenizer = load_tokenizer(reference)
    sampled = len(tokenizer(settings.prompt)["input_ids"]) + settings.sample_tokens if settings.prompt else 0
    context = min(longest, max(windows.shape[1], prompt + decode, sampled) + 1)
    return _Run(settings, threads, windows, tokenizer, progress, context)


def check_windows(windows: NDArray[np.int32], config: Mapping[str, Any]) -> int:
    """Check evaluation windows against a model's configuration.

    Returns:
        The longest sequence, in tokens, that the model holds.

    Raises:
        InputError: windows of another shape, vocabulary or length.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise InputError(f"evaluation windows have shape {windows.shape}; need at least one window of two tokens")
    vocabulary, longest = int(config["vocab_size"]), int(config["max_position_embeddings"])
    if windows.min() < 0 or windows.max() >= vocabulary:
        raise InputError(
            f"evaluation windows hold token {windows.max()}, the model knows {vocabulary}: wrong tokenizer"
        )
    if windows.shape[1] > longest:
        raise InputError(f"evaluation windows of {windows.shape[1]} tokens, but the model holds {longest}")
    return longest


@contextmanager
def _opened(path: Path, name: str, run: _Run, *, exact: bool) -> Iterator[Backend]:
    """An open backend that is closed and freed whatever happens."""
    settings = run.settings
    backend = open_backend(
        path,
        name,
        threads=run.threads,
        context=run.context,
        exact=exact,
        device=settings.device,
        dtype=settings.dtype,
    )
    try:
        yield backend
    finally:
        backend.close()
        del backend
        gc.collect()


def _torch_row(
    path: Path, scratch: Path, model: str, dense: ReferenceLogits | None, run: _Run
) -> tuple[ReferenceLogits, Row]:
    """Record one torch model's logits and describe it; quality is against `dense`."""
    with _opened(path, TORCH, run, exact=True) as backend:
        logits = ReferenceLogits.record(backend, run.windows, scratch, run.progress, label=f"torch ({model})")
        text = _sample(backend, run)
    try:
        quality = compare(dense, logits, run.progress, label=f"torch ({model}): quality") if dense else None
    except BaseException:
        logits.close()
        raise
    row = _row(describe(path), TORCH, model, Measured(perplexity(logits.losses), ()), text)
    return logits, replace(row, quality=quality)


def _artifact_rows(
    artifact: Artifact, model: str, reference: ReferenceLogits, dense: ReferenceLogits | None, run: _Run
) -> Iterator[Row]:
    """Measure one artifact in each runtime that runs it."""
    references = [reference] if dense is None else [reference, dense]
    limits = parity_limits(artifact.format, artifact.quantisation)
    target: Perplexity = perplexity(reference.losses)
    for name in backend_names(artifact.path):
        with _opened(artifact.path, name, run, exact=True) as backend:
            label = f"{name} {artifact.quantisation} ({model})"
            found = measure(backend, run.windows, references, run.progress, label=label)
            text = _sample(backend, run)
        row = _row(artifact, name, model, found, text)
        yield replace(row, gates=parity_gates(found.parities[0], found.perplexity, target, limits))


def _row(artifact: Artifact, backend: str, model: str, found: Measured, text: Sample | None) -> Row:
    parities = (*found.parities, None, None)
    return Row(
        model=model,
        backend=backend,
        path=str(artifact.path),
        format=artifact.format,
        quantisation=artifact.quantisation,
        layout=artifact.layout,
        bytes=artifact.bytes,
        parameters=artifact.parameters,
        perplexity=found.perplexity,
        parity=parities[0],
        quality=parities[1],
        speed=None,
        dense_speed=None,
        sample=text,
        gates=(),
        fallbacks=tuple(fallback_lines(artifact.tensors)),
    )


def _sample(backend: Backend, run: _Run) -> Sample | None:
    settings = run.settings
    if not settings.prompt or not settings.sample_tokens:
        return None
    return sample(backend, run.tokenizer, settings.prompt, max_tokens=settings.sample_tokens)


def _with_speeds(rows: Sequence[Row], run: _Run) -> list[Row]:
    """Time every row; a factored row together with the dense one of its runtime, the same type if there is one."""
    settings = run.settings
    timed: dict[int, Row] = {}
    with run.progress.stage("speed", len(rows)) as advance:
        for index, row in enumerate(rows):
            if row.model == FACTORED:
                partner = _dense_partner(row, rows)
                speeds = _interleaved([row] if partner is None else [rows[partner], row], run)
                timed[index] = replace(row, speed=speeds[-1], dense_speed=None if partner is None else speeds[0])
                if partner is not None and partner not in timed:
                    timed[partner] = replace(rows[partner], speed=speeds[0])
                    advance(1)
                advance(1)
        for index, row in enumerate(rows):
            if index not in timed:
                timed[index] = replace(row, speed=_interleaved([row], run)[0])
                advance(1)
    run.progress.note(
        f"speed: prompt of {settings.prompt_tokens} tokens, {settings.decode_tokens} decoded, {settings.repeats} rounds"
    )
    return [timed[index] for index in range(len(rows))]


def _dense_partner(row: Row, rows: Sequence[Row]) -> int | None:
    """Index of the dense row to time beside `row`: same runtime, preferably the same type."""
    same = [i for i, other in enumerate(rows) if other.model == DENSE and other.backend == row.backend]
    exact = [i for i in same if rows[i].quantisation == row.quantisation]
    return next(iter([*exact, *same]), None)


def _interleaved(rows: Sequence[Row], run: _Run) -> list[Speed]:
    settings = run.settings
    tokens = np.resize(run.windows, settings.prompt_tokens + settings.decode_tokens)
    with ExitStack() as stack:
        backends = [stack.enter_context(_opened(Path(row.path), row.backend, run, exact=False)) for row in rows]
        return measure_speed(backends, tokens, prompt_tokens=settings.prompt_tokens, repeats=settings.repeats)


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Rows of one runtime and type together, dense first, in the order the runtimes and types first appear."""
    places: dict[tuple[str, str], int] = {}
    for row in rows:
        places.setdefault((row.backend, row.quantisation), len(places))
    runtimes = list(dict.fromkeys(row.backend for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            runtimes.index(row.backend),
            places[row.backend, row.quantisation],
            row.model != DENSE,
        ),
    )


def window_facts(windows: NDArray[np.int32]) -> dict[str, Any]:
    """Count, length and hash of evaluation windows, as reports hold them."""
    data = np.ascontiguousarray(windows, dtype="<i4").tobytes()
    count, length = windows.shape
    return {
        "count": count,
        "length": length,
        "predicted_tokens": count * (length - 1),
        "sha256": hashlib.sha256(data).hexdigest(),
    }

"""Models and artifacts -> the rows of a report: one is open at a time, measured, and freed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import InputError
from ..converter.core.progress import Progress
from ..converter.model.loading import load_tokenizer
from ..exporters.artifact import Artifact
from ..exporters.gguf.mixes import fallback_lines
from .artifacts import describe
from .backends.formats import TORCH, backend_names
from .backends.open import open_backend, released
from .backends.protocol import Backend
from .generation.continuations import Pieces, pieces
from .generation.writing import Writing, write
from .metrics.footprint import bytes_per_token
from .metrics.measure import Measured, compare, measure
from .metrics.perplexity import NOT_MEASURED, perplexity
from .metrics.reference_logits import ReferenceLogits
from .metrics.tasks import TaskScore, run_tasks
from .metrics.tokenizer_check import check_tokenizer
from .metrics.windows import Windows, check_windows
from .report.provenance import weights_sha256
from .report.report import Row
from .settings import Settings
from .timing.timing import Timing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK_CONTEXT = 1024  # tokens; longer examples lose their beginning


@dataclass(frozen=True)
class Run:
    """What every row of one validation is measured with.

    Attributes:
        settings: adjusted to what the model holds.
        windows: of the evaluation text.
        pieces: of it, that are continued to measure repetition.
        tokenizer: of the reference.
        progress: receives stages and notes.
        context: tokens that runtimes are opened for.
    """

    settings: Settings
    windows: Windows
    pieces: Pieces
    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    context: int


def prepare(reference: Path, windows: Windows, settings: Settings, progress: Progress) -> Run:
    """Check windows and settings against the model's configuration before anything is loaded."""
    longest = check_windows(windows, CheckpointReader(reference).config)
    decode = min(settings.decode_tokens, max(1, longest // 4))
    lengths = tuple(dict.fromkeys(min(length, longest - decode) for length in settings.prompt_tokens))
    settings = replace(settings, prompt_tokens=lengths, decode_tokens=decode)
    tokenizer = load_tokenizer(reference)
    cut = pieces(windows, settings.pieces, settings.piece_tokens)
    prompts = [cut.shape[1], *(len(tokenizer(text)["input_ids"]) for text in settings.prompts)]
    sampled = max(prompts) + settings.sample_tokens
    context = min(longest, max(windows.length, max(lengths) + decode, sampled, TASK_CONTEXT * bool(settings.tasks)) + 1)
    return Run(settings, windows, cut, tokenizer, progress, context)


def _opened(
    path: Path, name: str, run: Run, *, exact: bool, threads: int | None = None
) -> AbstractContextManager[Backend]:
    settings = run.settings
    backend = open_backend(
        path,
        name,
        threads=threads or run.settings.threads,
        context=run.context,
        exact=exact,
        device=settings.device,
        dtype=settings.dtype,
    )
    return released(backend)


def timing_of(run: Run, bandwidth: float) -> Timing:
    """What is timed of the rows of a validation.

    Args:
        run: its settings.
        bandwidth: bytes per second that the main number of threads reads from memory.
    """
    settings = run.settings
    return Timing(
        prompts=settings.prompt_tokens,
        threads=(run.settings.threads, *(count for count in settings.more_threads if count != run.settings.threads)),
        decode_tokens=settings.decode_tokens,
        repeats=settings.repeats,
        context=run.context,
        tokens=run.windows.tokens.reshape(-1),
        bandwidth=bandwidth,
        device=run.settings.device,
        opened=lambda path, name, threads: _opened(path, name, run, exact=False, threads=threads),
        progress=run.progress,
    )


def torch_row(
    path: Path, scratch: Path, model: str, dense: ReferenceLogits | None, run: Run
) -> tuple[ReferenceLogits, Row]:
    """Record one torch model's logits and describe it; quality is against `dense`."""
    with _opened(path, TORCH, run, exact=True) as backend:
        logits = ReferenceLogits.record(backend, run.windows, scratch, run.progress, label=f"torch ({model})")
        try:
            text, scores = _written(backend, run, f"torch ({model})"), _tasked(backend, run, f"torch ({model})")
        except BaseException:
            logits.close()
            raise
    try:
        quality = compare(dense, logits, run.progress, label=f"torch ({model}): quality") if dense else None
    except BaseException:
        logits.close()
        raise
    row = _row(describe(path), TORCH, model, Measured(perplexity(logits.losses), ()))
    return logits, replace(row, quality=quality, writing=text, tasks=scores)


def artifact_rows(
    artifact: Artifact, error: str, model: str, references: Sequence[ReferenceLogits], run: Run
) -> Iterator[Row]:
    """Measure one artifact in each runtime that runs it: parity with the first reference, quality with the second."""
    for name in backend_names(artifact.path):
        label = f"{name} {artifact.quantization} ({model})"
        row, reason = _row(artifact, name, model, Measured(NOT_MEASURED, ())), error
        if not error:
            try:
                row = _measured(artifact, name, model, references, run)
            except InputError as refused:
                reason = str(refused)
        if reason:
            run.progress.note(f"{label}: {reason}")
        yield replace(row, error=reason)


def _measured(artifact: Artifact, name: str, model: str, references: Sequence[ReferenceLogits], run: Run) -> Row:
    label = f"{name} {artifact.quantization} ({model})"
    with _opened(artifact.path, name, run, exact=True) as backend:
        found = measure(backend, run.windows, references, run.progress, label=label)
        return replace(
            _row(artifact, name, model, found),
            writing=_written(backend, run, label),
            tokenizer=check_tokenizer(backend, artifact.path, run.tokenizer),
            tasks=_tasked(backend, run, label),
        )


def _row(artifact: Artifact, backend: str, model: str, found: Measured) -> Row:
    parities = (*found.parities, None, None)
    return Row(
        model=model,
        backend=backend,
        path=str(artifact.path),
        sha256=weights_sha256(artifact.path),
        format=artifact.format,
        quantization=artifact.quantization,
        layout=artifact.layout,
        bytes=artifact.bytes,
        parameters=artifact.parameters,
        bytes_per_token=bytes_per_token(artifact.tensors),
        perplexity=found.perplexity,
        parity=parities[0],
        quality=parities[1],
        fallbacks=tuple(fallback_lines(artifact.tensors)),
    )


def _written(backend: Backend, run: Run, label: str) -> Writing | None:
    settings = run.settings
    if not settings.prompts or not settings.sample_tokens:
        return None
    texts = 2 * len(settings.prompts) + len(run.pieces)
    with run.progress.stage(f"{label}: text", texts * settings.sample_tokens) as advance:
        return write(
            backend,
            run.tokenizer,
            settings.prompts,
            run.pieces,
            max_tokens=settings.sample_tokens,
            seed=settings.seed,
            advance=advance,
        )


def _tasked(backend: Backend, run: Run, label: str) -> tuple[TaskScore, ...]:
    settings = run.settings
    if not settings.tasks:
        return ()
    return run_tasks(
        backend,
        run.tokenizer,
        settings.tasks,
        longest=run.context - 1,
        limit=settings.task_limit,
        seed=settings.seed,
        progress=run.progress,
        label=label,
    )

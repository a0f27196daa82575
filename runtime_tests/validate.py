"""Artifacts -> report: the order in which models are loaded, measured and freed.

One model is in memory at a time, two while speed is timed side by side; nothing an artifact does can reach the next.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..converter.core.errors import InputError
from ..converter.core.progress import Progress, SilentProgress
from ..exporters.artifact import Artifact
from ..exporters.gguf.mixes import fallback_lines
from ..exporters.registry import TARGETS
from .artifacts import describe
from .backends.formats import TORCH, artifact_format, backend_names
from .backends.open import open_backend, released
from .backends.protocol import Backend
from .environment import library_versions, machine_facts
from .gates.gate_file import GateSettings, gates_of
from .gates.gate_metrics import RUNS, Context
from .gates.gates import gate
from .generation.continuations import Pieces, pieces
from .generation.writing import Writing, write
from .metrics.footprint import bytes_per_token, memory_bandwidth
from .metrics.measure import Measured, compare, measure
from .metrics.perplexity import NOT_MEASURED, perplexity
from .metrics.reference_logits import ReferenceLogits
from .metrics.tasks import Task, TaskScore, check_tasks, run_tasks
from .metrics.tokenizer_check import check_tokenizer
from .metrics.windows import Windows
from .report.provenance import factored_ranks, model_provenance, weights_sha256
from .report.report import Report, Row
from .timing.timing import Timing, with_speeds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK_CONTEXT = 1024  # tokens; longer examples lose their beginning
DENSE, FACTORED = "dense", "factored"
PROMPT = "The history of the city begins with"
PROMPTS = (PROMPT, "To make bread, you first", "The reason why the sky is blue is that")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: CPU threads of every runtime.
        device: "cpu" or "cuda".
        dtype: dtype of the torch models.
        speed: whether to time prefill and decode, and measure load time and memory.
        prompt_tokens: lengths of the prompts that speed is timed with, the main one first.
        decode_tokens, repeats: what follows a prompt, and how often.
        more_threads: thread counts to time besides the main one.
        prompts: texts that every model continues, greedily and sampled; none for no text.
        pieces, piece_tokens: how many pieces of the evaluation text are continued to measure repetition, how long.
        sample_tokens: longest continuation.
        seed: of sampled text and of tasks.
        tasks: zero-shot tasks, see `tasks.py`.
        task_limit: examples per task; None for all.
    """

    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    speed: bool = True
    prompt_tokens: tuple[int, ...] = (256,)
    decode_tokens: int = 32
    repeats: int = 3
    more_threads: tuple[int, ...] = ()
    prompts: tuple[str, ...] = PROMPTS
    pieces: int = 16
    piece_tokens: int = 32
    sample_tokens: int = 64
    seed: int = 0
    tasks: tuple[Task, ...] = ()
    task_limit: int | None = None


DEFAULTS = Settings()
NO_GATES = GateSettings()


@dataclass(frozen=True)
class DenseModel:
    """The uncompressed model.

    Attributes:
        path: its folder.
        artifacts: exports of it; each is shown beside the factored one of its runtime and type, and timed in one run
            with it.
    """

    path: Path
    artifacts: Sequence[Artifact | Path] = ()


@dataclass(frozen=True)
class _Run:
    """What every step of one validation needs."""

    settings: Settings
    windows: Windows
    pieces: Pieces
    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    context: int


def validate(
    artifacts: Sequence[Artifact | Path],
    *,
    reference: Path,
    windows: Windows,
    dense: DenseModel | None = None,
    settings: Settings = DEFAULTS,
    gates: GateSettings = NO_GATES,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure artifacts in their runtimes against the torch models they come from.

    An artifact that is there but damaged, or computes no numbers, fails its gate "artifact.runs"; the others are
    measured all the same.

    Args:
        artifacts: exports of `reference`: GGUF files, ONNX folders, checkpoint folders.
        reference: the factored checkpoint (parity is against it).
        windows: what every runtime is measured on.
        dense: the uncompressed model (quality is against it).
        settings: device, threads, and what speed and text are measured with.
        gates: thresholds; the defaults fill in the rest.
        scratch: folder for recorded logits, 4 bytes x scored predictions x vocabulary for each of the two torch models;
            the system's temporary folder by default. Nothing is left in it.
        progress: receives stages.

    Raises:
        InputError: a missing artifact, a damaged torch model (names the window of logits that are not finite), windows
            that the model cannot hold.
        ResourceError: no room for recorded logits, a runtime that is missing, out of memory.
    """
    candidates = [_described(item) for item in artifacts]
    beside = [] if dense is None else [_described(item) for item in dense.artifacts]
    run = _prepare(reference, windows, settings, progress or SilentProgress())
    if settings.tasks:
        check_tasks(settings.tasks)
    for format in dict.fromkeys(item.format for item, _ in [*candidates, *beside]):
        if format in TARGETS:
            TARGETS[format].prepare_runtime(run.progress)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowrank-validate-", dir=scratch)))
        dense_logits = dense_row = None
        if dense is not None:
            dense_logits, dense_row = _torch_row(dense.path, folder / "dense.f32", DENSE, None, run)
            stack.enter_context(dense_logits)
            rows.append(dense_row)
        factored_logits, factored_row = _torch_row(reference, folder / "factored.f32", FACTORED, dense_logits, run)
        stack.enter_context(factored_logits)
        rows.append(factored_row)
        if dense_logits is not None:
            for artifact, error in beside:
                rows.extend(_artifact_rows(artifact, error, DENSE, [dense_logits], run))
        references = [factored_logits, dense_logits] if dense_logits is not None else [factored_logits]
        for artifact, error in candidates:
            rows.extend(_artifact_rows(artifact, error, FACTORED, references, run))
    torch_rows = rows[:1] if dense_row is None else rows[:2]
    bandwidth = 0.0
    if settings.speed:
        bandwidth = memory_bandwidth(settings.threads)
        rows = with_speeds(rows, _timing(run, bandwidth), factored=FACTORED, dense=DENSE)
    contexts = {FACTORED: Context(factored_row, dense_row)}
    if dense_row is not None:
        contexts[DENSE] = Context(dense_row, None)
    rows[len(torch_rows) :] = [_gated(row, contexts[row.model], gates) for row in rows[len(torch_rows) :]]
    return Report(
        rows=tuple(_ordered(rows)),
        windows=windows.facts(),
        settings=asdict(run.settings),
        provenance={**model_provenance(reference), "command": sys.argv[1:]},
        versions=library_versions(),
        machine={**machine_facts(), **({"memory_bytes_per_second": round(bandwidth)} if bandwidth else {})},
        ranks=factored_ranks(reference),
        thresholds=gates.to_json(),
    )


def _described(item: Artifact | Path) -> tuple[Artifact, str]:
    """The record of an artifact; of one that cannot be read, what is known, and why."""
    if isinstance(item, Artifact):
        return item, ""
    kind = artifact_format(item)
    try:
        return describe(item), ""
    except InputError as error:
        files = [item] if item.is_file() else [file for file in item.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        return Artifact(item, kind, "unknown", "unknown", size, 0, ()), str(error)


def _prepare(reference: Path, windows: Windows, settings: Settings, progress: Progress) -> _Run:
    """Check windows and settings against the model's configuration before anything is loaded."""
    from ..converter.checkpoint.reader import CheckpointReader
    from ..converter.model.loading import load_tokenizer

    longest = check_windows(windows, CheckpointReader(reference).config)
    decode = min(settings.decode_tokens, max(1, longest // 4))
    lengths = tuple(dict.fromkeys(min(length, longest - decode) for length in settings.prompt_tokens))
    settings = replace(settings, prompt_tokens=lengths, decode_tokens=decode)
    tokenizer = load_tokenizer(reference)
    cut = pieces(windows, settings.pieces, settings.piece_tokens)
    prompts = [cut.shape[1], *(len(tokenizer(text)["input_ids"]) for text in settings.prompts)]
    sampled = max(prompts) + settings.sample_tokens
    context = min(longest, max(windows.length, max(lengths) + decode, sampled, TASK_CONTEXT * bool(settings.tasks)) + 1)
    return _Run(settings, windows, cut, tokenizer, progress, context)


def check_windows(windows: Windows, config: Mapping[str, Any]) -> int:
    """Check evaluation windows against a model's configuration.

    Returns:
        The longest sequence, in tokens, that the model holds.

    Raises:
        InputError: windows of another shape, vocabulary or length.
    """
    tokens = windows.tokens
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise InputError(f"evaluation windows have shape {tokens.shape}; need at least one window of two tokens")
    vocabulary, longest = int(config["vocab_size"]), int(config["max_position_embeddings"])
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(f"evaluation windows hold token {tokens.max()}, the model knows {vocabulary}: wrong tokenizer")
    if tokens.shape[1] > longest:
        raise InputError(f"evaluation windows of {tokens.shape[1]} tokens, but the model holds {longest}")
    return longest


def _opened(
    path: Path, name: str, run: _Run, *, exact: bool, threads: int | None = None
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


def _timing(run: _Run, bandwidth: float) -> Timing:
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


def _torch_row(
    path: Path, scratch: Path, model: str, dense: ReferenceLogits | None, run: _Run
) -> tuple[ReferenceLogits, Row]:
    """Record one torch model's logits and describe it; quality is against `dense`."""
    with _opened(path, TORCH, run, exact=True) as backend:
        logits = ReferenceLogits.record(backend, run.windows, scratch, run.progress, label=f"torch ({model})")
        try:
            text, scores = _written(backend, run), _tasked(backend, run, f"torch ({model})")
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


def _artifact_rows(
    artifact: Artifact, error: str, model: str, references: Sequence[ReferenceLogits], run: _Run
) -> Iterator[Row]:
    """Measure one artifact in each runtime that runs it: parity with the first reference, quality with the second."""
    for name in backend_names(artifact.path):
        label = f"{name} {artifact.quantisation} ({model})"
        row, reason = _row(artifact, name, model, Measured(NOT_MEASURED, ())), error
        if not error:
            try:
                row = _measured(artifact, name, model, references, run)
            except InputError as refused:
                reason = str(refused)
        if reason:
            run.progress.note(f"{label}: {reason}")
        yield replace(row, error=reason)


def _measured(artifact: Artifact, name: str, model: str, references: Sequence[ReferenceLogits], run: _Run) -> Row:
    label = f"{name} {artifact.quantisation} ({model})"
    with _opened(artifact.path, name, run, exact=True) as backend:
        found = measure(backend, run.windows, references, run.progress, label=label)
        return replace(
            _row(artifact, name, model, found),
            writing=_written(backend, run),
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
        quantisation=artifact.quantisation,
        layout=artifact.layout,
        bytes=artifact.bytes,
        parameters=artifact.parameters,
        bytes_per_token=bytes_per_token(artifact.tensors),
        perplexity=found.perplexity,
        parity=parities[0],
        quality=parities[1],
        fallbacks=tuple(fallback_lines(artifact.tensors)),
    )


def _written(backend: Backend, run: _Run) -> Writing | None:
    settings = run.settings
    if not settings.prompts or not settings.sample_tokens:
        return None
    return write(
        backend, run.tokenizer, settings.prompts, run.pieces, max_tokens=settings.sample_tokens, seed=settings.seed
    )


def _tasked(backend: Backend, run: _Run, label: str) -> tuple[TaskScore, ...]:
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


def _gated(row: Row, context: Context, gates: GateSettings) -> Row:
    """The row with its gates; one that did not run has no other."""
    runs = gate(RUNS, 0.0 if row.error else 1.0, 1.0, at_least=True, detail=row.error)
    if row.error:
        return replace(row, gates=(runs,))
    return replace(row, gates=(runs, *gates_of(row, context, gates, against_dense=row.model == FACTORED)))


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

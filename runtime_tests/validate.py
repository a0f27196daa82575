"""Artifacts -> report: the order in which models are loaded, measured and freed.

One model is in memory at a time, two while speed is timed side by side; nothing an artifact does can reach the next.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..converter.core.errors import InputError
from ..converter.core.progress import Progress, SilentProgress
from ..exporters.artifact import Artifact
from ..exporters.registry import TARGETS
from .artifacts import describe
from .backends.formats import artifact_format
from .environment import library_versions, machine_facts
from .gates.gate_file import GateSettings, gates_of
from .gates.gate_metrics import RUNS, Context
from .gates.gates import gate
from .measured_rows import Run, artifact_rows, prepare, timing_of, torch_row
from .metrics.footprint import memory_bandwidth
from .metrics.reference_logits import ReferenceLogits
from .metrics.tasks import check_tasks
from .metrics.windows import Windows
from .report.provenance import factored_ranks, model_provenance
from .report.report import Report, Row
from .settings import DEFAULTS, Settings
from .timing.timing import with_speeds

DENSE, FACTORED = "dense", "factored"
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
    run = prepare(reference, windows, settings, progress or SilentProgress())
    if settings.tasks:
        check_tasks(settings.tasks)
    for format in dict.fromkeys(item.format for item, _ in [*candidates, *beside]):
        if format in TARGETS:
            TARGETS[format].prepare_runtime(run.progress)
    with tempfile.TemporaryDirectory(prefix="lowrank-validate-", dir=scratch) as folder:
        measured = _measured(candidates, beside, reference, None if dense is None else dense.path, run, Path(folder))
    torch_rows, rows, bandwidth = measured.torch_rows, [*measured.torch_rows, *measured.exports], 0.0
    if settings.speed:
        bandwidth = memory_bandwidth(settings.threads)
        rows = with_speeds(rows, timing_of(run, bandwidth), factored=FACTORED, dense=DENSE)
    exports = [_gated(row, measured.context(row.model), gates) for row in rows[len(torch_rows) :]]
    return Report(
        rows=tuple(_ordered([*rows[: len(torch_rows)], *exports])),
        windows=windows.facts(),
        settings=asdict(run.settings),
        provenance={**model_provenance(reference), "command": sys.argv[1:]},
        versions=library_versions(),
        machine={**machine_facts(), **({"memory_bytes_per_second": round(bandwidth)} if bandwidth else {})},
        ranks=factored_ranks(reference),
        thresholds=gates.to_json(),
    )


@dataclass(frozen=True)
class _Measured:
    """The rows of one validation, without speed and gates.

    Attributes:
        dense: the uncompressed torch model's, where there is one.
        factored: the factored torch model's.
        exports: those of the dense model first.
    """

    dense: Row | None
    factored: Row
    exports: tuple[Row, ...]

    @property
    def torch_rows(self) -> list[Row]:
        """Those of the torch models."""
        return [self.factored] if self.dense is None else [self.dense, self.factored]

    def context(self, model: str) -> Context:
        """What the gates of an export of `model` compare it with."""
        if model == FACTORED:
            return Context(self.factored, self.dense)
        assert self.dense is not None
        return Context(self.dense, None)


Described = tuple[Artifact, str]
"""The record of an artifact, and why it cannot be read, or nothing."""


def _measured(
    candidates: Sequence[Described],
    beside: Sequence[Described],
    reference: Path,
    dense: Path | None,
    run: Run,
    scratch: Path,
) -> _Measured:
    """Run everything over the windows: torch models first, whose logits the others are compared with."""
    exports: list[Row] = []
    with ExitStack() as stack:
        dense_logits = dense_row = None
        if dense is not None:
            dense_logits, dense_row = torch_row(dense, scratch / "dense.f32", DENSE, None, run)
            stack.enter_context(dense_logits)
        logits, factored_row = torch_row(reference, scratch / "factored.f32", FACTORED, dense_logits, run)
        stack.enter_context(logits)
        references: list[ReferenceLogits] = [logits]
        if dense_logits is not None:
            references.append(dense_logits)
            for artifact, error in beside:
                exports.extend(artifact_rows(artifact, error, DENSE, [dense_logits], run))
        for artifact, error in candidates:
            exports.extend(artifact_rows(artifact, error, FACTORED, references, run))
    return _Measured(dense_row, factored_row, tuple(exports))


def _described(item: Artifact | Path) -> Described:
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
        places.setdefault((row.backend, row.quantization), len(places))
    runtimes = list(dict.fromkeys(row.backend for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            runtimes.index(row.backend),
            places[row.backend, row.quantization],
            row.model != DENSE,
        ),
    )

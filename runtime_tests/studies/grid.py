"""A grid of experiments on one model, in a folder of its own: what `compare` and `sweep` share.

DIR/rows/        a result each; those that are there are not made again
DIR/statistics/  of the dense model, shared by the methods; removed at the end
DIR/.work/       recipes, logs and recorded logits while it runs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...converter.core.progress import Advance, Progress, SilentProgress
from ...converter.core.recipe import Recipe
from ...converter.machine.device import pick_device
from ...converter.model.source import Source, open_source
from ...converter.planning.disk_forecast import check_disk, checkpoint_bytes, factored_shapes
from ...converter.storage.byte_size import MemoryLimits
from ...converter.storage.files import remove
from ...exporters.preflight import check_exports, export_bytes
from ...exporters.target import ExportRequest
from ..backends.open import open_backend, released
from ..backends.protocol import Backend
from ..child import Cost, run_child
from ..environment import library_versions, machine_facts
from ..evaluation import Evaluation, load_windows
from ..metrics.measure import check_measurable
from ..metrics.reference_logits import ReferenceLogits
from ..metrics.windows import Windows, check_windows
from ..report.report import write_json, write_text
from .places import check_own_folder, work_folder
from .rows import text_hashes

ROWS, STATISTICS, WORK = "rows", "statistics", ".work"


@dataclass(frozen=True)
class Grid:
    """One model, one evaluation text, one folder.

    Attributes:
        recipes: what the model is compressed by; alike but for method and size.
        out: the folder.
        source: the dense model.
        windows: that every row is measured on.
        longest: tokens of the longest sequence that the model holds.
        evaluation: how rows are measured.
        device: of the compressions.
        texts: recipe key -> hash of the text that it names.
        limits: memory that a compression may take.
        progress: receives notes, a step per row.
    """

    recipes: Sequence[Recipe]
    out: Path
    source: Source
    windows: Windows
    longest: int
    evaluation: Evaluation
    device: str
    texts: Mapping[str, str | None]
    limits: MemoryLimits
    progress: Progress

    @property
    def origin(self) -> dict[str, Any]:
        """What every row is made from."""
        return {"source_sha256": self.source.fingerprint(), "device": self.device}

    def compressed_from(self, recipe: Recipe) -> dict[str, Any]:
        """What a compression is made from besides."""
        return {"recipe": recipe.model_dump(mode="json"), "text_sha256": self.texts}

    @property
    def statistics(self) -> Path:
        """The folder of the dense model's statistics."""
        return self.out / STATISTICS

    def file(self, name: str) -> Path:
        """Where a row is kept."""
        return self.out / ROWS / f"{name}.json"

    def start_over(self, *names: str) -> None:
        """Remove what earlier runs left: rows, statistics, and entries of the folder by their names."""
        for name in (ROWS, STATISTICS, WORK, *names):
            remove(self.out / name)

    @contextmanager
    def working(self, label: str, steps: int) -> Iterator[tuple[Path, Advance]]:
        """A folder to work in, and a stage of progress."""
        with work_folder(self.out, WORK, ROWS) as work, self.progress.stage(label, steps) as advance:
            yield work, advance

    def run(self, arguments: Sequence[str], recipe: Recipe, work: Path) -> tuple[dict[str, Any], Cost]:
        """Run a command that takes a recipe in a process of its own; what it prints, and what it costs."""
        written = work / "recipe.yaml"
        written.write_text(recipe.to_yaml(), encoding="utf-8")
        placed = ["--recipe", str(written), "--device", self.device, *self.limits.options()]
        return run_child([*arguments, *placed], work / "log")

    def compress(self, recipe: Recipe, checkpoint: Path, work: Path) -> tuple[float, Cost]:
        """Make a factored checkpoint in a process of its own; the retention reached, and what it costs."""
        arguments = ["compress", "--out", str(checkpoint), "--force", "--statistics", str(self.statistics)]
        summary, cost = self.run(arguments, recipe, work)
        return float(summary["retention"]), cost

    def opened(
        self, path: Path, runtime: str, *, context: int, exact: bool = True, device: str = "cpu"
    ) -> AbstractContextManager[Backend]:
        """A model in a runtime, see `open_backend`."""
        threads = self.evaluation.threads
        return released(open_backend(path, runtime, threads=threads, context=context, exact=exact, device=device))

    def dense_logits(self, backend: Backend, work: Path) -> ReferenceLogits:
        """Record what every row is compared with."""
        return ReferenceLogits.record(backend, self.windows, work / "dense.f32", SilentProgress(), label="dense")

    def facts(self) -> dict[str, Any]:
        """What the results of all rows have in common: where the model comes from, libraries, machine."""
        origin = {"spec": self.source.spec, "sha256": self.source.fingerprint(), "licence": self.source.licence}
        return {"source": origin, "versions": library_versions(), "machine": machine_facts()}

    def write(self, name: str, document: Mapping[str, Any], page: str) -> None:
        """Write the results as NAME.json and NAME.html."""
        write_json(document, self.out / f"{name}.json")
        write_text(page, self.out / f"{name}.html")


def _bytes_at_once(recipes: Sequence[Recipe], source: Source, exports: Sequence[ExportRequest]) -> int:
    """The largest checkpoint of any recipe, and the largest export of it."""
    config = source.reader().config
    every = [(recipe, factored_shapes(recipe, source)) for recipe in recipes]
    return max(
        checkpoint_bytes(recipe, shapes) + max((export_bytes([one], shapes, config) for one in exports), default=0)
        for recipe, shapes in every
    )


def open_grid(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    evaluation: Evaluation,
    device: str,
    limits: MemoryLimits,
    progress: Progress | None,
    exports: Sequence[ExportRequest] = (),
) -> Grid:
    """Find the model and the evaluation windows, and check both before any work.

    Args:
        recipes, out, evaluation, limits: as in `Grid`.
        device: "auto", "cpu", "cuda".
        progress: see `Grid`; silent without one.
        exports: what will be made of every checkpoint.

    Raises:
        UsageError: `out` holds something else.
        InputError, ResourceError: the model cannot be measured or exported.
    """
    check_own_folder(out, ROWS)
    progress, chosen = progress or SilentProgress(), str(pick_device(device))
    source = open_source(recipes[0].model, progress)
    reader = source.reader()
    if exports:
        check_exports(reader, exports)
    check_measurable(reader, limits, chosen)
    windows = load_windows(evaluation, source.path, progress)
    check_disk(out, _bytes_at_once(recipes, source, exports), "a checkpoint and an export at a time")
    return Grid(
        recipes=recipes,
        out=out,
        source=source,
        windows=windows,
        longest=check_windows(windows, reader.config),
        evaluation=evaluation,
        device=chosen,
        texts=text_hashes(recipes[0]),
        limits=limits,
        progress=progress,
    )

"""The main job: compress, export, validate, in one folder; a job that was cut short goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import CheckpointReader, read_json
from ..converter.core.errors import UsageError, naming
from ..converter.core.progress import Progress
from ..converter.core.recipe import RECIPE_FILE, Recipe, read_recipe
from ..converter.model.loading import load_tokenizer
from ..converter.model.source import open_source
from ..converter.pipeline import compress
from ..converter.statistics.calibration import read_token_windows
from ..converter.storage.byte_size import MemoryLimits
from ..converter.storage.files import check_output, remove
from ..converter.texts.corpus import is_windows, read_corpus
from ..exporters.artifact import Artifact
from ..exporters.export import export
from ..exporters.forecast import with_rank_multiple
from ..exporters.registry import TARGETS
from ..exporters.target import ExportRequest
from .artifacts import describe
from .gates.gate_file import GateSettings
from .metrics.corpora import evaluation_windows, llama_cpp_windows
from .metrics.measure import check_measurable
from .metrics.tasks import Task
from .metrics.windows import Windows
from .report.markdown import card_path
from .report.outputs import OUTPUTS, write_cards, write_outputs
from .report.report import Report
from .sized_release import HELD_OUT_FILE, SIZE_FILE, STATISTICS, settle
from .validate import DEFAULTS, Settings, validate

CHECKPOINT = "checkpoint"
DENSE = "dense"
REPORT = "report.json"
NO_LIMITS = MemoryLimits()


@dataclass(frozen=True)
class Evaluation:
    """On which text, and how, a release is measured.

    Attributes:
        text: as for calibration, or windows (.npy).
        windows, window_length: how much of it.
        threads: CPU threads of every runtime, those of `more_threads` besides when speed is timed.
        speed: whether to time.
        stride: see `evaluation_windows`.
        like_llama_cpp: take llama.cpp's own windows.
        prompt_tokens: lengths of prompts that are timed.
        continuations: pieces of the text that are continued to measure repetition.
        seed: of sampled text and tasks.
        tasks, task_limit: see `Settings`.
        gates: thresholds that were asked for.
    """

    text: str = "python-docs"
    windows: int = 8
    window_length: int = 512
    threads: int = 2
    speed: bool = True
    stride: int | None = None
    like_llama_cpp: bool = False
    prompt_tokens: tuple[int, ...] = DEFAULTS.prompt_tokens
    more_threads: tuple[int, ...] = ()
    continuations: int = DEFAULTS.pieces
    seed: int = 0
    tasks: tuple[Task, ...] = ()
    task_limit: int | None = None
    gates: GateSettings = field(default_factory=GateSettings)

    def settings(self, device: str = "cpu") -> Settings:
        """How `validate` is to measure."""
        return Settings(
            device=device,
            speed=self.speed,
            prompt_tokens=self.prompt_tokens,
            more_threads=self.more_threads,
            pieces=self.continuations,
            seed=self.seed,
            tasks=self.tasks,
            task_limit=self.task_limit,
        )

    def facts(self) -> dict[str, Any]:
        """What reports hold of it besides the windows themselves."""
        windowing = "llama.cpp" if self.like_llama_cpp else "even" if self.stride is None else f"stride {self.stride}"
        return {"text": self.text, "windowing": windowing}


def release(
    recipe: Recipe,
    exports: Sequence[ExportRequest],
    out: Path,
    *,
    evaluation: Evaluation,
    statistics: Path | None = None,
    device: str,
    limits: MemoryLimits = NO_LIMITS,
    force: bool,
    progress: Progress,
) -> Report:
    """Compress, export and validate into `out`: checkpoint/, an artifact and its card per export, the report's files.

    Finished stages of a job that was cut short are kept when the recipe is the same.

    Args:
        recipe: what to compress and how.
        exports: what to make of it; of the dense model too, whose rounding runs the recipe's calibration text.
        out: the folder to make.
        evaluation: text and size of the measurement.
        statistics: a folder where statistics of the dense model are kept, for other recipes and sizes.
        device: of the compression.
        limits: memory that the compression may take.
        force: start over, replacing what is there.

    Raises:
        UsageError: `out` holds a finished job or one of another recipe, and `force` is not set.
        InputError, ResourceError: from the stages.
    """
    for request in exports:
        request.check()
    of_dense = [request.of_dense(recipe.calibration) for request in exports]
    _check_place(recipe, out, force)
    for format in dict.fromkeys(request.format for request in exports):
        TARGETS[format].check_tools()
    source = open_source(recipe.model, progress)
    check_measurable(source.reader(), MemoryLimits(limits.process))
    config = CheckpointReader(source.path).config
    for request in exports:
        request.check_model(config)
    windows = load_windows(evaluation, source.path, progress)
    if force:
        _clear(out)
    checkpoint, size = out / CHECKPOINT, None
    if recipe.sized and not recipe.choice:
        statistics = statistics or out / STATISTICS  # the choice and the fit read the same
        size = settle(
            recipe, source, out, CHECKPOINT, statistics=statistics, device=device, limits=limits, progress=progress
        )
        recipe = size.recipe
    elif not recipe.choice:
        recipe = with_rank_multiple(recipe, source, exports)
    make = partial(
        compress,
        out=checkpoint,
        device=device,
        statistics=statistics,
        max_memory=limits.process,
        max_device_memory=limits.device,
        progress=progress,
    )
    if not checkpoint.exists():
        make(recipe, force=force)
    elif read_json(checkpoint / "calibration.json").get("source_sha256") != source.fingerprint():
        raise UsageError(f"{out}: holds an unfinished job of another {recipe.model}; add --force to start over")
    if recipe.choice:  # what a size has to beat, in place of the dense model in the same type
        plain = None if size is None else size.plain
        of_dense = [] if plain is None else [plain.request(device).of_dense(recipe.calibration)]
    factored = [_export(checkpoint, out, request, progress) for request in exports]
    dense = [_export(source.path, out / DENSE, request, progress) for request in of_dense]
    if size is not None and size.plain is not None:
        beaten = size.beaten(factored[0], dense[0], source.path, evaluation.threads, progress)
        if beaten:
            recipe = size.plain.recipe
            make(recipe, force=True)
            factored = [_export(checkpoint, out, exports[0], progress, again=True)]
    report = validate(
        factored,
        reference=checkpoint,
        windows=windows,
        dense=source.path,
        dense_artifacts=dense,
        threads=evaluation.threads,
        settings=evaluation.settings(),
        gates=evaluation.gates,
        scratch=out,
        provenance={
            "recipe": recipe.model_dump(mode="json"),
            "calibration": read_json(checkpoint / "calibration.json"),
            "evaluation": evaluation.facts(),
            **({} if size is None else {"size": size.facts}),
        },
        progress=progress,
    )
    write_cards(report, factored)
    write_outputs(report, out)
    for folder in (DENSE, STATISTICS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in (SIZE_FILE, HELD_OUT_FILE):
        remove(out / file)
    return report


def load_windows(evaluation: Evaluation, model: Path, progress: Progress | None = None) -> Windows:
    """Evaluation windows for a model folder's tokenizer; says how much the text was.

    Raises:
        UsageError: options that contradict each other.
        InputError: the text or tokenizer cannot be used.
    """
    if evaluation.like_llama_cpp and evaluation.stride is not None:
        raise UsageError("llama.cpp's windows have no stride: leave out --evaluation-stride or --llama-windows")
    tokenizer = load_tokenizer(model)
    if is_windows(evaluation.text):
        if evaluation.like_llama_cpp or evaluation.stride is not None:
            raise UsageError(f"{evaluation.text}: given windows are neither cut by a stride nor like llama.cpp")
        vocabulary = int(CheckpointReader(model).config["vocab_size"])
        with naming("--evaluate"):
            return Windows.whole(read_token_windows(Path(evaluation.text), vocabulary))
    with naming("--evaluate"):
        text = read_corpus(evaluation.text, "evaluation", tokenizer)
    count, length = evaluation.windows, evaluation.window_length
    if evaluation.like_llama_cpp:
        windows = llama_cpp_windows(tokenizer, text, windows=count, length=length)
    else:
        windows = evaluation_windows(tokenizer, text, windows=count, length=length, stride=evaluation.stride)
    if progress is not None and windows.drawn_from is not None:
        progress.note(windows.drawn_from.said(evaluation.text))
    return windows


def _check_place(recipe: Recipe, out: Path, force: bool) -> None:
    """Refuse a folder that is neither new, nor holds finished stages of this very job, nor may be replaced."""
    check_output(out / REPORT, force)
    if not out.is_dir():
        return
    made = out / CHECKPOINT / RECIPE_FILE
    foreign = [entry for entry in out.iterdir() if not entry.name.startswith(".")]
    if foreign and not made.is_file():
        hint = "it is not a folder this tool made" if force else "or add --force"
        raise UsageError(f"{out}: exists and is not empty; choose another --out{', ' if force else ' '}{hint}")
    if foreign and not force and not _same(read_recipe(made), recipe):
        raise UsageError(f"{out}: holds an unfinished job of another recipe; choose another --out or add --force")


def _same(made: Recipe, asked: Recipe) -> bool:
    """Whether a recipe is what was asked for; an automatic rank multiple is whichever was chosen."""
    chosen = {"rank_multiple": asked.rank_multiple or made.rank_multiple, "choice": asked.choice or made.choice}
    return made == asked.model_copy(update=chosen)


def _clear(out: Path) -> None:
    """Remove what a job makes, and nothing else."""
    names = {target.request(type).name for target in TARGETS.values() for type in target.parity_limits()}
    remove(out / SIZE_FILE)
    for name in names:
        remove(card_path(out / name))
    for name in (CHECKPOINT, DENSE, *OUTPUTS, *names):
        remove(out / name)


def _export(
    checkpoint: Path, folder: Path, request: ExportRequest, progress: Progress, *, again: bool = False
) -> Artifact:
    """Export, unless a finished one of the same request is there from before and it is not to be made again."""
    target = folder / request.name
    if target.exists() and not again and request.is_at(target):
        return describe(target)
    folder.mkdir(parents=True, exist_ok=True)
    return export(checkpoint, target, request, force=True, progress=progress)

"""The main job: compress, export, validate, in one folder; a job that was cut short goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import CheckpointReader, read_json
from ..converter.core.errors import UsageError
from ..converter.core.progress import Progress
from ..converter.core.recipe import RECIPE_FILE, Recipe, read_recipe
from ..converter.model.loading import load_tokenizer
from ..converter.model.source import open_source
from ..converter.pipeline import compress
from ..converter.statistics.calibration import SELF, read_token_windows
from ..converter.storage.byte_size import MemoryLimits
from ..converter.storage.files import check_output, remove
from ..converter.storage.gguf_header import read_header
from ..converter.texts.corpus import is_windows, read_corpus
from ..exporters.artifact import Artifact
from ..exporters.export import QUANTISATIONS, artifact_name, check_family, check_format
from ..exporters.forecast import with_rank_multiple
from ..exporters.gguf.mixes import CHOSEN, MIXES, Quantisation, exported_as
from ..exporters.gguf.rounding_choice import Rounding
from ..exporters.gguf.types import TYPES
from ..exporters.llamacpp.build import check_compiler
from ..exporters.llamacpp.runtime import find_runtime
from ..exporters.onnx.contents import written_as
from ..exporters.onnx.flavours import check_single_flavour
from ..exporters.onnx.weights.types import OnnxOptions
from .exporting import export
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
    exports: Sequence[tuple[str, str]],
    out: Path,
    *,
    evaluation: Evaluation,
    embedding_type: str | None = None,
    head_type: str | None = None,
    rounding: str = "plain",
    onnx: OnnxOptions | None = None,
    statistics: Path | None = None,
    device: str,
    max_memory: int | None = None,
    max_device_memory: int | None = None,
    force: bool,
    progress: Progress,
) -> Report:
    """Compress, export and validate into `out`: checkpoint/, an artifact and its card per export, the report's files.

    Finished stages of a job that was cut short are kept when the recipe is the same.

    Args:
        recipe: what to compress and how.
        exports: (format, quantisation) pairs.
        out: the folder to make.
        evaluation: text and size of the measurement.
        embedding_type, head_type: of GGUF files, where not those of the type or mix.
        rounding: of GGUF files, "plain" or "aware"; the dense ones run the recipe's calibration text.
        onnx: how ONNX exports are encoded; with aware rounding, too, the dense ones run the recipe's calibration text.
        statistics: a folder where statistics of the dense model are kept, for other recipes and sizes.
        device: of the compression, and of the text that aware rounding runs.
        max_memory: bytes that the compression may take.
        max_device_memory: bytes of its GPU that it may take; by default what is free there.
        force: start over, replacing what is there.

    Raises:
        UsageError: `out` holds a finished job or one of another recipe, and `force` is not set.
        InputError, ResourceError: from the stages.
    """
    chosen = [(format, check_format(format, quantisation)) for format, quantisation in dict.fromkeys(exports)]
    Quantisation(QUANTISATIONS["gguf"][0], embedding_type, head_type)  # refused before any work
    if recipe.sized or recipe.choice:
        rounding = "aware"  # what the choice reckons with
    roundings = _roundings(recipe, rounding, [type for format, type in chosen if format == "gguf"], device)
    encodings = _encodings(recipe, replace(onnx or OnnxOptions(), device=device))
    _check_place(recipe, out, force)
    _check_tools({format for format, _ in chosen})
    source = open_source(recipe.model, progress)
    check_measurable(source.reader(), MemoryLimits(max_memory))
    check_family(dict.fromkeys(format for format, _ in chosen), CheckpointReader(source.path).config)
    windows = load_windows(evaluation, source.path, progress)
    if force:
        _clear(out)
    checkpoint, size = out / CHECKPOINT, None
    if recipe.sized and not recipe.choice:
        limits = MemoryLimits(max_memory, max_device_memory)
        statistics = statistics or out / STATISTICS  # the choice and the fit read the same
        size = settle(
            recipe, source, out, CHECKPOINT, statistics=statistics, device=device, limits=limits, progress=progress
        )
        recipe = size.recipe
    elif not recipe.choice:
        recipe = with_rank_multiple(recipe, source, chosen, onnx)
    make = partial(
        compress,
        out=checkpoint,
        device=device,
        statistics=statistics,
        max_memory=max_memory,
        max_device_memory=max_device_memory,
        progress=progress,
    )
    if not checkpoint.exists():
        make(recipe, force=force)
    elif read_json(checkpoint / "calibration.json").get("source_sha256") != source.fingerprint():
        raise UsageError(f"{out}: holds an unfinished job of another {recipe.model}; add --force to start over")
    types = (embedding_type, head_type)
    beside, plain_types = ([] if recipe.choice else chosen), types
    if size is not None:  # what it has to beat, in place of the dense model in the same type
        beside = [] if size.plain is None else [("gguf", size.plain.type)]
        plain_types = types if size.plain is None else size.plain.types
    factored, dense = (
        [_export(model, folder, format, type, given, rounding, encoding, progress) for format, type in exported]
        for model, folder, exported, given, rounding, encoding in (
            (checkpoint, out, chosen, types, roundings[0], encodings[0]),
            (source.path, out / DENSE, beside, plain_types, roundings[1], encodings[1]),
        )
    )
    if size is not None and size.plain is not None:
        beaten = size.beaten(factored[0], dense[0], source.path, evaluation.threads, progress)
        if beaten:
            recipe = size.plain.recipe
            make(recipe, force=True)
            factored = [_export(checkpoint, out, *chosen[0], types, roundings[0], encodings[0], progress, again=True)]
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
    shutil.rmtree(out / DENSE, ignore_errors=True)
    shutil.rmtree(out / STATISTICS, ignore_errors=True)
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
        return Windows.whole(
            read_token_windows(Path(evaluation.text), int(CheckpointReader(model).config["vocab_size"]))
        )
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


def _roundings(recipe: Recipe, how: str, types: Sequence[str], device: str) -> tuple[Rounding, Rounding]:
    """Of the factored model's files and of the dense one's.

    Raises:
        UsageError: a type wants to be told more than it is, or there is no text to tell it.
    """
    factored = Rounding(how, device=device)
    if how == "plain":
        wanting = [type for type in types if TYPES[MIXES[type].base].importance]
        if wanting:
            raise UsageError(f"--gguf-type {wanting[0]}: wants to know what the inputs are; add --gguf-rounding aware")
        return factored, factored
    if recipe.calibration == SELF:
        raise UsageError(f"--gguf-rounding {how}: wants a calibration text, and `{SELF}` is none")
    return factored, replace(factored, calibration=recipe.calibration)


def _encodings(recipe: Recipe, asked: OnnxOptions) -> tuple[OnnxOptions, OnnxOptions]:
    """Of the factored model's ONNX exports and of the dense one's.

    Raises:
        UsageError: aware rounding has no text to run.
    """
    if asked.rounding == "plain":
        return asked, asked
    if recipe.calibration == SELF:
        raise UsageError(f"--onnx-rounding {asked.rounding}: wants a calibration text, and `{SELF}` is none")
    return asked, replace(asked, calibration=recipe.calibration)


def _check_tools(formats: set[str]) -> None:
    """Miss what the runtimes need now rather than after hours of work."""
    if "gguf" in formats and find_runtime() is None:
        check_compiler()
    if "onnx" in formats:
        check_single_flavour()


def _clear(out: Path) -> None:
    """Remove what a job makes, and nothing else."""
    names = {artifact_name(format, type) for format, types in QUANTISATIONS.items() for type in types}
    names.add(artifact_name("gguf", CHOSEN))
    remove(out / SIZE_FILE)
    for name in names:
        remove(card_path(out / name))
    for name in (CHECKPOINT, DENSE, *OUTPUTS, *names):
        remove(out / name)


def _export(
    checkpoint: Path,
    folder: Path,
    format: str,
    quantisation: str,
    types: tuple[str | None, str | None],
    rounding: Rounding,
    encoding: OnnxOptions,
    progress: Progress,
    *,
    again: bool = False,
) -> Artifact:
    """Export, unless a finished one of the same types is there from before and it is not to be made again."""
    from .artifacts import describe

    target = folder / artifact_name(format, quantisation)
    asked = Quantisation(quantisation, *types, rounding.said) if format == "gguf" else None
    if target.exists() and not again:
        said = exported_as(read_header(target)) if asked else written_as(target)
        if said == (asked or (quantisation, encoding.said(quantisation))):
            return describe(target)
    folder.mkdir(parents=True, exist_ok=True)
    return export(
        checkpoint,
        target,
        format=format,
        quantisation=quantisation,
        embedding_type=types[0],
        head_type=types[1],
        rounding=rounding,
        onnx=encoding,
        force=True,
        progress=progress,
    )

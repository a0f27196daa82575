"""One export that is asked for, a frozen request; and what makes requests: a target, a row of `registry.TARGETS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..converter.core.errors import UsageError
from ..converter.core.nearest import nearest
from ..converter.core.progress import Progress
from .artifact import Artifact

if TYPE_CHECKING:
    from ..converter.budget.forms import Form
    from ..converter.checkpoint.reader import CheckpointReader
    from .budget.format import Format

Scope = Literal["type", "encoding", "artifact"]
"""Which commands offer an option: all that export; those that write artifacts; `export` alone."""
SCOPES: Mapping[Scope, tuple[Scope, ...]] = {
    "type": ("type",),
    "encoding": ("type", "encoding"),
    "artifact": ("type", "encoding", "artifact"),
}


@dataclass(frozen=True)
class TargetOption:
    """An option of the command line that belongs to a target.

    Attributes:
        annotation: for Typer: type, help, panel.
        default: its value where it is not given.
        scope: the commands that offer it.
    """

    annotation: Any
    default: Any = None
    scope: Scope = "encoding"


@dataclass(frozen=True)
class Given:
    """What was asked for on the command line, or in its place.

    Attributes:
        values: option -> value; an option that a command does not offer is missing.
        calibration: the text that rounding runs, where it is not the one that the checkpoint records.
        device: that it runs on: "auto", "cpu", "cuda".
    """

    values: Mapping[str, Any]
    calibration: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Forecast:
    """What an export will take.

    Attributes:
        bytes: of everything the runtime loads, metadata excluded where it cannot be known.
        bits_per_weight: of all matrices, padding included.
        fallback_share: of the weights that are stored in another type than they should be, because its blocks do not
            fit their rows.
        fallbacks: a line each.
    """

    bytes: int
    bits_per_weight: float
    fallback_share: float = 0.0
    fallbacks: tuple[str, ...] = ()

    def storage(self) -> dict[str, Any]:
        """How it is stored, JSON-ready."""
        shares = {"bits_per_weight": self.bits_per_weight, "fallback_share": self.fallback_share}
        return {**shares, "fallbacks": list(self.fallbacks)}


class ExportRequest(Protocol):
    """One artifact that is asked for. Frozen and hashable; what contradicts itself is refused when it is made."""

    @property
    def format(self) -> str:
        """That of its target."""

    @property
    def quantization(self) -> str:
        """The type or mix of its weights, as reports print it."""

    @property
    def name(self) -> str:
        """File or folder name of the artifact inside an output folder."""

    @property
    def reads_calibration(self) -> bool:
        """Whether its rounding runs a text."""

    def check(self, reader: CheckpointReader | None = None) -> None:
        """Refuse what cannot come out well.

        Args:
            reader: of the model, dense or factored; without it, what is so whatever the model.

        Raises:
            UsageError: names the option to change.
        """

    def check_model(self, config: Mapping[str, Any]) -> None:
        """Refuse a model that the format cannot hold, before any work.

        Args:
            config: the parsed config.json.

        Raises:
            InputError: names the format and the families it knows.
        """

    def check_source(self, reader: CheckpointReader) -> None:
        """Refuse a model, dense or factored, by its names, shapes and tokenizer, before any work.

        Args:
            reader: of the model.

        Raises:
            InputError: what the export would refuse later.
        """

    def check_checkpoint(self, reader: CheckpointReader) -> None:
        """Refuse, before anything is written, what of the very checkpoint that is exported does not fit: the text that
        it records, types that were chosen for it, its layout, and the files that the request names.

        Args:
            reader: of the checkpoint.

        Raises:
            UsageError, InputError: what the export would refuse later.
        """

    def row_multiple(self) -> int:
        """What ranks should be a multiple of, so that no fallback is needed."""

    def of_dense(self, calibration: str) -> ExportRequest:
        """The same export of the dense model, whose folder records no text: it is given `calibration`.

        Raises:
            UsageError: that is no text, and the rounding needs one.
        """

    def aware(self) -> ExportRequest | None:
        """The same with rounding that runs a text; None where it does already, or there is nothing to round."""

    def check_choice(self, forms: Mapping[str, Form]) -> None:
        """Refuse a recipe's choice that was made for another format.

        Args:
            forms: module -> what it becomes.

        Raises:
            UsageError: names a type that the format lacks.
        """

    def budget(self, progress: Progress) -> Format:
        """Its format as a choice of types under a budget of bytes sees it; of requests in chosen types alone.

        Args:
            progress: receives tools that are built for it.

        Raises:
            ResourceError: they cannot be had.
        """

    def plain(self, linears: str, rest: str, *, tied: bool) -> ExportRequest:
        """The export in plain types that a choice is held against, rounded the same way.

        Args:
            linears: type of all linears.
            rest: of embedding and head.
            tied: whether they are one matrix.
        """

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Forecast:
        """What it will take, from shapes alone.

        Args:
            shapes: tensor name in the checkpoint -> shape; a factored linear as its factors and permutation.
            config: the parsed config.json.
        """

    def peak_memory(self, checkpoint: Path) -> int | None:
        """Bytes of tensors at the peak of the export; None where there is no forecast."""

    def is_at(self, path: Path) -> bool:
        """Whether the artifact at `path` says that it was made by this very request.

        Raises:
            InputError: a damaged artifact.
        """

    def export(self, checkpoint: Path, out: Path, *, force: bool, progress: Progress) -> Artifact:
        """Make the artifact; it appears whole and checked, or not at all.

        Args:
            checkpoint: a factored checkpoint or a dense Hugging Face directory.
            out: the file or folder to make.
            force: replace what is there.
            progress: receives stages and notes.

        Raises:
            UsageError, InputError, ResourceError: see the exporter.
        """


class ExportTarget(Protocol):
    """A format and everything that depends on it. Imported by the command line: heavy imports stand inside methods."""

    @property
    def format(self) -> str:
        """Its name: "gguf"."""

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the backends that run its artifacts, see `runtime_tests/backends/open.py`."""

    @property
    def library(self) -> str:
        """What model cards call its library."""

    @property
    def options(self) -> Mapping[str, TargetOption]:
        """Its options of the command line, by parameter name."""

    def types(self) -> tuple[str, ...]:
        """What weights can be stored in; the first is the default."""

    def parity_limits(self) -> Mapping[str, tuple[float, float]]:
        """Every type that an artifact can say it has -> largest mean KL divergence and relative change of perplexity
        that a sound one has."""

    def request(self, quantization: str | None = None, **fields: Any) -> ExportRequest:
        """One export, from the fields of its request.

        Raises:
            UsageError: an unknown type, or fields that contradict each other.
        """

    def requests(self, given: Given) -> Sequence[ExportRequest]:
        """Every export that options ask for; one in the default type where they name none.

        Raises:
            UsageError: as `request`.
        """

    def sized_request(self, given: Given) -> ExportRequest | None:
        """The export whose types are chosen with the ranks, for a size; None where the format has no such choice.

        Raises:
            UsageError: options that leave no choice.
        """

    def recognizes(self, path: Path) -> bool:
        """Whether a file or folder is an artifact of this format, by its name or by what lies in it."""

    def describe(self, path: Path) -> Artifact:
        """The record of an artifact, from its headers.

        Raises:
            InputError: a damaged artifact.
        """

    def check_tools(self) -> None:
        """Miss what its exporter and runtimes need now rather than after hours of work.

        Raises:
            ResourceError: names it.
        """

    def prepare_runtime(self, progress: Progress) -> None:
        """Build or find what its runtimes need.

        Raises:
            ResourceError: it cannot be had.
        """


def checked_type(target: ExportTarget, quantization: str | None) -> str:
    """The type to use: the target's first where none was asked for.

    Raises:
        UsageError: unknown; names the nearest.
    """
    known = target.types()
    if quantization is None:
        return known[0]
    if quantization not in known:
        raise UsageError(f"--{target.format}-type {quantization}: unknown type{nearest(quantization, known)}")
    return quantization

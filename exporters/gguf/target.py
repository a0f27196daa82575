"""The GGUF row of the table of targets, and what one GGUF export is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import UsageError
from ...converter.core.nearest import nearest
from ...converter.core.progress import Progress
from ..artifact import Artifact
from ..target import Forecast, Given, TargetOption, checked_type
from .options import OPTIONS

if TYPE_CHECKING:
    from ...converter.budget.forms import Form
    from ...converter.checkpoint.reader import CheckpointReader
    from ..budget.gguf_format import GgufFormat
    from .mixes import Quantization
    from .rounding_choice import Rounding

LAYOUTS = ("native", "dense", "adapter")
SUFFIX = ".gguf"


def _plain() -> Rounding:
    from .rounding_choice import Rounding

    return Rounding()


@dataclass(frozen=True)
class GgufRequest:
    """One GGUF file that is asked for.

    Attributes:
        quantization: a storage type or mix, see `mixes.MIXES`; `chosen.CHOSEN` for a checkpoint that was made for a
            size, whose recipe has a type for every matrix.
        embedding_type, head_type: of the token embedding and the output head, where they are not the mix's.
        layout: "native" (two factors); "dense" (factors multiplied out) and "adapter" (a base of residuals, and the
            factors as a LoRA adapter beside it) run in a llama.cpp without the patch.
        dense: layout "adapter": the model the checkpoint was made from, as `open_source` takes it.
        residual: layout "adapter": storage type of the residuals, or "zero".
        rounding: how weights are rounded to their types.

    Raises:
        UsageError: an unknown type or layout, or fields that contradict each other.
    """

    quantization: str = "q8_0"
    embedding_type: str | None = None
    head_type: str | None = None
    layout: str = "native"
    dense: str | None = None
    residual: str | None = None
    rounding: Rounding = field(default_factory=_plain)

    format = "gguf"

    def __post_init__(self) -> None:
        from ..chosen import CHOSEN

        if self.quantization != CHOSEN:
            checked_type(GgufTarget(), self.quantization)
        _ = self.asked
        if self.layout not in LAYOUTS:
            raise UsageError(f"--layout {self.layout}: unknown layout{nearest(self.layout, LAYOUTS)}")
        if self.layout != "adapter" and (self.dense or self.residual):
            raise UsageError("--dense and --gguf-residual-type belong to --layout adapter")

    @property
    def name(self) -> str:
        """The file's name."""
        return f"model-{self.quantization}{SUFFIX}"

    @property
    def asked(self) -> Quantization:
        """The types, as the file says them of itself."""
        from .mixes import Quantization

        return Quantization(self.quantization, self.embedding_type, self.head_type, self.rounding.recorded)

    @property
    def reads_calibration(self) -> bool:
        """Aware rounding does."""
        return self.rounding.how == "aware"

    def check(self, reader: CheckpointReader | None = None) -> None:
        """A type that needs the importance of its inputs, and gets none."""
        from .mixes import MIXES
        from .types import TYPES
        from .writer import check_acceptable

        if self.reads_calibration or self.rounding.imatrix is not None:
            return
        if self.quantization in MIXES and TYPES[MIXES[self.quantization].base].importance:
            raise UsageError(
                f"--gguf-type {self.quantization}: needs the importance of its inputs; add --gguf-rounding aware"
            )
        if reader is not None and self.quantization in MIXES:
            self.rounding.importance(check_acceptable(reader, self.asked))

    def check_model(self, config: Mapping[str, Any]) -> None:
        """llama.cpp has to know the family."""
        from ...converter.families.table import gguf_of

        gguf_of(config)

    def check_source(self, reader: CheckpointReader) -> None:
        """Settings, tensors, heads and tokenizer have to be such as a GGUF file expresses."""
        from ..chosen import CHOSEN
        from .writer import check_acceptable

        check_acceptable(reader, None if self.quantization == CHOSEN else self.asked)

    def check_checkpoint(self, reader: CheckpointReader) -> None:
        """Its layout and choice, the importance matrix, the dense model, the text that aware rounding runs."""
        from ...converter.core.progress import SilentProgress
        from ...converter.model.source import open_source
        from ..rounding.calibrated import check_calibrated
        from .adapter import check_adapter
        from .writer import check_acceptable, with_choice

        if self.layout == "adapter":
            dense = None if self.dense is None else open_source(self.dense, SilentProgress(), "--dense")
            check_adapter(reader, dense, self.residual)
            return
        records = check_acceptable(reader, with_choice(self.asked, reader), self.layout)
        self.rounding.importance(records)
        if self.reads_calibration:
            check_calibrated(reader, self.rounding.calibration)

    def row_multiple(self) -> int:
        """The larger block of the types of its factors."""
        from .mixes import row_multiple

        return row_multiple(self.quantization)

    def of_dense(self, calibration: str) -> GgufRequest:
        """Aware rounding runs `calibration`."""
        if not self.reads_calibration:
            return self
        return replace(self, rounding=replace(self.rounding, calibration=calibration))

    def aware(self) -> GgufRequest | None:
        """Every type but the floats is rounded."""
        from .rounding import PLAIN

        if self.reads_calibration or self.quantization in PLAIN:
            return None
        return replace(self, rounding=replace(self.rounding, how="aware", imatrix=None))

    def check_choice(self, forms: Mapping[str, Form]) -> None:
        """Its types have to be ggml's."""
        from ..chosen import check_types
        from .types import TYPES

        check_types(forms.values(), TYPES, self.format)

    def budget(self, progress: Progress) -> GgufFormat:
        """Rounded with ggml."""
        from ..budget.gguf_format import GgufFormat
        from ..llamacpp.runtime import ggml_library

        return GgufFormat(ggml_library(progress))

    def plain(self, linears: str, rest: str, *, tied: bool) -> GgufRequest:
        """Of a mix, which has a type of its own for the head."""
        return GgufRequest(linears, rest, None if tied else rest, rounding=self.rounding)

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Forecast:
        """From the types of every tensor; metadata and vocabulary come on top."""
        from ...converter.families.table import gguf_of
        from .mixes import fallback_lines, predict_bytes, records
        from .names import gguf_shapes

        of = gguf_of(config)
        stored = gguf_shapes(shapes, of)
        matrices = [tensor for tensor in records(stored, self.asked) if len(tensor.shape) > 1]
        weights = sum(prod(tensor.shape) for tensor in matrices)
        replaced = sum(prod(tensor.shape) for tensor in matrices if tensor.wanted is not None)
        bits = 8 * sum(tensor.bytes for tensor in matrices) / weights
        return Forecast(predict_bytes(stored, self.asked), bits, replaced / weights, tuple(fallback_lines(matrices)))

    def peak_memory(self, checkpoint: Path) -> int | None:
        """Of plain rounding, in one file."""
        from .memory import largest_tensor

        if self.layout == "adapter" or self.reads_calibration:
            return None
        return largest_tensor(checkpoint, self.asked, self.layout)

    def is_at(self, path: Path) -> bool:
        """Compared in what the file says of its types and rounding."""
        from ...converter.storage.gguf_header import read_header
        from .mixes import exported_as

        return exported_as(read_header(path)) == self.asked

    def export(self, checkpoint: Path, out: Path, *, force: bool, progress: Progress) -> Artifact:
        """Write the file, and the adapter beside it in that layout."""
        if self.layout == "adapter":
            from ...converter.model.source import open_source
            from .adapter import export_adapter

            dense = None if self.dense is None else open_source(self.dense, progress, "--dense")
            return export_adapter(
                checkpoint, out, self.asked, dense=dense, residual=self.residual, force=force, progress=progress
            )
        from .writer import export_gguf

        return export_gguf(
            checkpoint, out, self.asked, layout=self.layout, rounding=self.rounding, force=force, progress=progress
        )


class GgufTarget:
    """Files for llama.cpp."""

    format = "gguf"
    runtimes = ("llama.cpp",)
    library = "llama.cpp"
    options: Mapping[str, TargetOption] = OPTIONS

    def types(self) -> tuple[str, ...]:
        """Storage types and mixes."""
        from .mixes import MIXES

        return ("q8_0", *(name for name in MIXES if name != "q8_0"))

    def parity_limits(self) -> Mapping[str, tuple[float, float]]:
        """Below 8 bits rounding changes the model: there they tell a lossy file from a broken one."""
        from ..chosen import CHOSEN

        return {
            **dict.fromkeys(("f32", "f16"), (1e-4, 1e-3)),
            # 8 bits of mantissa where float16 has 11: weights are rounded 8 times as coarsely, and KLD is its square
            "bf16": (1e-3, 5e-3),
            "q8_0": (0.02, 0.02),
            **dict.fromkeys(("q6_k", "q5_k_m"), (0.15, 0.15)),
            **dict.fromkeys(("q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k_s"), (0.4, 0.5)),
            **dict.fromkeys((CHOSEN, "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_m"), (1.2, 2.0)),
            **dict.fromkeys(("q3_k", "q2_k", "iq3_s", "iq3_xxs"), (4.0, 50.0)),
            **dict.fromkeys(("iq2_s", "iq2_xs", "iq2_xxs"), (6.0, 200.0)),
        }

    def request(self, quantization: str | None = None, **fields: Any) -> GgufRequest:
        """See `GgufRequest`."""
        return GgufRequest(quantization or self.types()[0], **fields)

    def requests(self, given: Given) -> list[GgufRequest]:
        """One per --gguf-type."""
        from .rounding_choice import Rounding

        asked = {name: given.values.get(name, option.default) for name, option in OPTIONS.items()}
        how = asked["gguf_rounding"]
        text = None if how == "plain" else given.calibration
        rounding = Rounding(how, asked["gguf_imatrix"], text, given.device)
        return [
            self.request(
                type,
                embedding_type=asked["gguf_embedding_type"],
                head_type=asked["gguf_head_type"],
                layout=asked["layout"],
                dense=asked["dense"],
                residual=asked["gguf_residual_type"],
                rounding=rounding,
            )
            for type in asked["gguf_type"] or [None]
        ]

    def sized_request(self, given: Given) -> GgufRequest | None:
        """Rounded aware of the inputs, as the choice reckons."""
        from ..chosen import CHOSEN
        from .rounding_choice import Rounding

        embedding, head = (given.values.get(f"gguf_{part}_type") for part in ("embedding", "head"))
        return GgufRequest(CHOSEN, embedding, head, rounding=Rounding("aware", device=given.device))

    def recognizes(self, path: Path) -> bool:
        """By what it begins with; a damaged file by the ending."""
        from ...converter.model.places import is_gguf

        return is_gguf(path) or (path.is_file() and path.suffix.lower() == SUFFIX)

    def describe(self, path: Path) -> Artifact:
        """From the header."""
        from .describe import describe_gguf

        return describe_gguf(path)

    def check_tools(self) -> None:
        """A compiler, where the runtime has yet to be built."""
        from ..llamacpp.build import check_compiler
        from ..llamacpp.runtime import find_runtime

        if find_runtime() is None:
            check_compiler()

    def prepare_runtime(self, progress: Progress) -> None:
        """Build the patched llama.cpp, once."""
        from ..llamacpp.runtime import ensure_runtime

        ensure_runtime(progress)

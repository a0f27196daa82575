"""The ONNX row of the table of targets, and what one ONNX export is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.progress import Progress
from ..artifact import Artifact
from ..target import Forecast, Given, TargetOption, checked_type
from .options import OPTIONS

if TYPE_CHECKING:
    from ...converter.budget.forms import Form
    from ...converter.checkpoint.reader import CheckpointReader
    from ..budget.onnx_format import OnnxFormat
    from .weights.types import OnnxOptions


def _defaults() -> OnnxOptions:
    from .weights.types import OnnxOptions

    return OnnxOptions()


@dataclass(frozen=True)
class OnnxRequest:
    """One ONNX folder that is asked for.

    Attributes:
        quantization: see `weights.types.QUANTIZATIONS`; `chosen.CHOSEN` for a checkpoint that was made for a size,
            whose recipe has a type for every matrix.
        options: how matrices are stored.

    Raises:
        UsageError: an unknown type.
    """

    quantization: str = "int8"
    options: OnnxOptions = field(default_factory=_defaults)

    format = "onnx"

    def __post_init__(self) -> None:
        from ..chosen import CHOSEN

        if self.quantization != CHOSEN:
            checked_type(OnnxTarget(), self.quantization)

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"onnx-{self.quantization}"

    @property
    def reads_calibration(self) -> bool:
        """Aware rounding does."""
        return self.options.rounding == "aware"

    def check(self, reader: CheckpointReader | None = None) -> None:
        """Every type can be made of every model."""

    def check_model(self, config: Mapping[str, Any]) -> None:
        """GenAI's builder or transformers' exporter has to know the family."""
        from ...converter.families.table import onnx_of

        onnx_of(config)

    def check_source(self, reader: CheckpointReader) -> None:
        """Settings, rotary embedding, heads and tokenizer have to be such as the graph expresses."""
        from .export import check_acceptable

        check_acceptable(reader)

    def check_checkpoint(self, reader: CheckpointReader) -> None:
        """Its choice, and the text that aware rounding runs."""
        from ..chosen import CHOSEN, recorded_forms
        from ..rounding.calibrated import check_calibrated
        from .weights.types import block_format, chosen_types, has_codes

        if self.quantization == CHOSEN:
            options = replace(self.options, chosen=chosen_types(recorded_forms(reader)))
            tied = bool(reader.config.get("tie_word_embeddings"))
            for name in reader.names:
                if len(reader.shape(name)) == 2 and not (tied and name == "lm_head.weight"):
                    block_format(name, self.quantization, options)
        if self.reads_calibration and has_codes(self.quantization):
            check_calibrated(reader, self.options.calibration)

    def row_multiple(self) -> int:
        """Whole blocks."""
        from .weights.types import row_multiple

        return row_multiple(self.quantization, self.options)

    def of_dense(self, calibration: str) -> OnnxRequest:
        """Aware rounding runs `calibration`."""
        if not self.reads_calibration:
            return self
        return replace(self, options=replace(self.options, calibration=calibration))

    def aware(self) -> OnnxRequest | None:
        """Every type with codes is rounded."""
        from .weights.types import has_codes

        if self.reads_calibration or not has_codes(self.quantization):
            return None
        return replace(self, options=replace(self.options, rounding="aware"))

    def check_choice(self, forms: Mapping[str, Form]) -> None:
        """Its types have to be those of codes."""
        from .weights.types import chosen_types

        chosen_types(forms)

    def budget(self, progress: Progress) -> OnnxFormat:
        """In blocks as its options say."""
        from ..budget.onnx_format import OnnxFormat

        return OnnxFormat(self.options)

    def plain(self, linears: str, rest: str, *, tied: bool) -> OnnxRequest:
        """The type itself says what embedding and head are."""
        return replace(self, quantization=linears)

    def forecast(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Forecast:
        """Rows are padded to whole blocks; no type falls back to another."""
        from .weights.multiplied_out import stored_shapes
        from .weights.sizes import predict_bytes, rotary_elements, tensor_bytes

        stored = stored_shapes(shapes, self.quantization, self.options)
        total = predict_bytes(
            stored,
            self.quantization,
            tied=bool(config.get("tie_word_embeddings")),
            rotary_elements=rotary_elements(config),
            options=self.options,
        )
        matrices = {name: shape for name, shape in stored.items() if len(shape) > 1}
        bytes = sum(tensor_bytes(name, shape, self.quantization, self.options) for name, shape in matrices.items())
        return Forecast(total, 8 * bytes / sum(prod(shape) for shape in matrices.values()))

    def peak_memory(self, checkpoint: Path) -> int | None:
        """Nothing is known of the graph's builders."""
        return None

    def is_at(self, path: Path) -> bool:
        """Compared in what the model file says of its type and encoding."""
        from .contents import written_as

        return written_as(path) == (self.quantization, self.options.recorded(self.quantization))

    def export(self, checkpoint: Path, out: Path, *, force: bool, progress: Progress) -> Artifact:
        """Write the folder."""
        from .export import export_onnx

        return export_onnx(
            checkpoint, out, quantization=self.quantization, options=self.options, force=force, progress=progress
        )


class OnnxTarget:
    """Folders for ONNX Runtime and ONNX Runtime GenAI."""

    format = "onnx"
    runtimes = ("onnxruntime", "onnxruntime-genai")
    library = "onnxruntime"
    options: Mapping[str, TargetOption] = OPTIONS

    def types(self) -> tuple[str, ...]:
        """Of its matrices."""
        from .weights.types import QUANTIZATIONS

        return ("int8", *(name for name in QUANTIZATIONS if name != "int8"))

    def parity_limits(self) -> Mapping[str, tuple[float, float]]:
        """At 4 bits they tell a lossy folder from a broken one."""
        from ..chosen import CHOSEN

        return {
            "fp32": (1e-6, 1e-3),
            "fp16": (1e-4, 1e-3),
            "int8": (0.02, 0.02),
            "int4": (1.2, 2.0),
            "int4-mix": (1.2, 2.0),
            CHOSEN: (1.2, 2.0),
        }

    def request(self, quantization: str | None = None, **fields: Any) -> OnnxRequest:
        """See `OnnxRequest`."""
        return OnnxRequest(quantization or self.types()[0], **fields)

    def requests(self, given: Given) -> list[OnnxRequest]:
        """One per --onnx-type."""
        options = self._options(given, str(given.values.get("onnx_rounding", OPTIONS["onnx_rounding"].default)))
        return [self.request(type, options=options) for type in given.values.get("onnx_type") or [None]]

    def sized_request(self, given: Given) -> OnnxRequest:
        """Rounded aware of the inputs, as the choice reckons."""
        from ..chosen import CHOSEN

        return OnnxRequest(CHOSEN, self._options(given, "aware"))

    def _options(self, given: Given, rounding: str) -> OnnxOptions:
        """How matrices are stored, with a rounding."""
        from .weights.types import OnnxOptions

        asked = {name: given.values.get(name, option.default) for name, option in OPTIONS.items()}
        return OnnxOptions(
            asked["onnx_block_size"],
            asked["onnx_symmetric"],
            asked["onnx_accuracy_level"],
            rounding,
            given.calibration if rounding == "aware" else None,
            asked["onnx_factors"],
            given.device,
        )

    def recognizes(self, path: Path) -> bool:
        """By the model in it."""
        return (path / "model.onnx").is_file()

    def describe(self, path: Path) -> Artifact:
        """From the graph."""
        from .describe import describe_onnx

        return describe_onnx(path)

    def check_tools(self) -> None:
        """One flavour of ONNX Runtime."""
        from .flavours import check_single_flavour

        check_single_flavour()

    def prepare_runtime(self, progress: Progress) -> None:
        """It is installed with the package."""

"""What an artifact holds, as a table for people."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING

from ...converter.storage.printable import printable
from ...exporters.artifact import Artifact
from ...exporters.gguf.mixes import fallback_lines

if TYPE_CHECKING:
    from rich.console import RenderableType


LONGEST_NAME = 200


def artifact_table(artifact: Artifact) -> RenderableType:
    """Totals, bytes per storage type, and every tensor."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(
        f"{artifact.path}: {artifact.format} {artifact.quantization}, layout {artifact.layout}, "
        f"{artifact.bytes:,} bytes, {artifact.parameters:,} weights, {artifact.bits_per_weight:.3f} bits per weight"
    )
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    tensors = Table(title="Tensors", title_justify="left")
    for column in ("name", "shape", "type", "bytes"):
        tensors.add_column(column, justify="right" if column == "bytes" else "left")
    for tensor in artifact.tensors:
        sums = totals[tensor.type]
        sums[0] += 1
        sums[1] += prod(tensor.shape)
        sums[2] += tensor.bytes
        type = tensor.type if tensor.wanted is None else f"{tensor.type} (for {tensor.wanted})"
        shown = Text(printable(tensor.name, LONGEST_NAME))
        tensors.add_row(shown, " x ".join(map(str, tensor.shape)), Text(type), f"{tensor.bytes:,}")
    types = Table(title="Storage types", title_justify="left")
    for column in ("type", "tensors", "elements", "bytes", "bits per element"):
        types.add_column(column, justify="left" if column == "type" else "right")
    for name, (count, elements, size) in sorted(totals.items()):
        types.add_row(Text(name), str(count), f"{elements:,}", f"{size:,}", f"{8 * size / max(elements, 1):.3f}")
    named = ", ".join(f"{key} {value}" for key, value in sorted(artifact.facts.items()))
    facts = [Text(printable(named))] if named else []
    return Group(tensors, types, head, *facts, *(Text(printable(line)) for line in fallback_lines(artifact.tensors)))

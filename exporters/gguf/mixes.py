"""Policy: which storage type every tensor of a file gets. Plain types, the usual mixes, and fallbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.core.errors import InputError, UsageError
from ...converter.core.nearest import nearest
from ...converter.storage.gguf_header import Header
from ..artifact import TensorRecord
from ..chosen import CHOSEN
from .metadata import EXPORTED_AS
from .types import INTEGERS, TYPES, fitting_type, padded, storage_type, tensor_bytes

EMBEDDING, HEAD = "token_embd", "output"
ROUTER = "ffn_gate_inp"  # a few rows that decide where tokens go: in float32, as llama.cpp's quantizer leaves it
FACTORS = (U_SUFFIX, V_SUFFIX, P_SUFFIX, C_SUFFIX)
HEAD_BITS = 6.5  # below, head and tied embedding are stored in q6_k, as llama.cpp's quantizer does
# Rounding gate and up costs least per byte: docs/gguf.md has the figures.
SENSITIVE = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_down")

Blocks = Callable[[int, int], bool]
"""(block, number of blocks) -> whether a rule holds there."""


@dataclass(frozen=True)
class Mix:
    """Types of the kinds of matrices of a file. Rows that do not fit a type get its fallback.

    Attributes:
        base: of every matrix that no field below names.
        head: of the output head, or of the embedding that serves as one.
        file_type: llama.cpp's number for such files.
        sensitive: of both factors of the `SENSITIVE` linears; U and V alike, see docs/gguf.md.
        dense: module -> rules for a linear that is not factored, the first that holds wins: llama.cpp's own.
        embedding: of an embedding that is not the head too, where it is not the base: nothing tells its importance.
    """

    base: str
    head: str
    file_type: int
    sensitive: str
    dense: Mapping[str, tuple[tuple[Blocks, str], ...]] = field(default_factory=dict)
    embedding: str | None = None


def _everywhere(_block: int, _blocks: int) -> bool:
    return True


def _outer_and_each_third(block: int, blocks: int) -> bool:
    """llama.cpp's use_more_bits: the first and the last eighth, and every third block between."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _first(count: int) -> Blocks:
    return lambda block, _: block < count


def _first_part(parts: int) -> Blocks:
    return lambda block, blocks: block < blocks // parts


_MEDIUM = dict.fromkeys(("attn_v", "ffn_down"), ((_outer_and_each_third, "q6_k"),))
MIXES = {
    **{
        name: Mix(
            base=name,
            head="q6_k" if type.bits < HEAD_BITS else name,
            file_type=type.file_type,
            sensitive=name,
            embedding="q3_k" if type.importance else None,
        )
        for name, type in TYPES.items()
    },
    "q5_k_m": Mix("q5_k", "q6_k", 17, "q6_k", {**_MEDIUM, "attn_qkv": ((_everywhere, "q6_k"),)}),
    "q4_k_m": Mix("q4_k", "q6_k", 15, "q6_k", {**_MEDIUM, "attn_qkv": ((_everywhere, "q5_k"),)}),
    "q4_k_s": Mix(
        "q4_k", "q6_k", 14, "q5_k", {"attn_v": ((_first(4), "q5_k"),), "ffn_down": ((_first_part(8), "q5_k"),)}
    ),
    "q3_k_m": Mix(
        "q3_k",
        "q6_k",
        12,
        "q4_k",
        {
            "attn_v": ((_first(2), "q5_k"), (_everywhere, "q4_k")),
            "attn_qkv": ((_everywhere, "q4_k"),),
            "attn_output": ((_everywhere, "q4_k"),),
            "ffn_down": ((_first_part(16), "q5_k"), (_everywhere, "q4_k")),
        },
    ),
}
"""What can be asked for: every storage type, and the mixes."""


GUESSED_FILE_TYPE = 1024  # llama.cpp's number for a file whose tensors tell


@dataclass(frozen=True)
class Choice:
    """The type a tensor should have, and the one it is stored in: another where its rows do not fit."""

    wanted: str
    stored: str

    @property
    def fallback(self) -> bool:
        """Whether a fallback is stored instead."""
        return self.stored != self.wanted


@dataclass(frozen=True)
class Quantization:
    """How a file is quantized.

    Attributes:
        mix: a key of `MIXES`, or `CHOSEN`.
        embedding: type of the token embedding, where it is not the mix's.
        head: type of the output head, where it is not the mix's. A tied embedding is both.
        rounding: what files record of it, `rounding_choice.Rounding.recorded`; None for plain rounding.
        chosen: with `CHOSEN`, GGUF name -> type of every matrix.
    """

    mix: str
    embedding: str | None = None
    head: str | None = None
    rounding: str | None = None
    chosen: Mapping[str, str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for type in (self.chosen or {}).values():
            storage_type(type)
        if self.mix == CHOSEN and (self.embedding or self.head):
            raise UsageError(f"{CHOSEN}: has its own types of embedding and head")
        if self.mix != CHOSEN and self.mix not in MIXES:
            raise UsageError(f"unknown GGUF type {self.mix!r}{nearest(self.mix, MIXES)}")
        for option in (self.embedding, self.head):
            if option is not None:
                storage_type(option)

    @property
    def file_type(self) -> int:
        """llama.cpp's number for such files."""
        return GUESSED_FILE_TYPE if self.mix == CHOSEN else MIXES[self.mix].file_type

    def __str__(self) -> str:
        """In one word per choice, the mix first: what a file says of itself."""
        options = {"embedding": self.embedding, "head": self.head, "rounding": self.rounding}
        return " ".join([self.mix, *(f"{name}={type}" for name, type in options.items() if type is not None)])


def choose_types(shapes: Mapping[str, tuple[int, ...]], asked: Quantization) -> dict[str, Choice]:
    """The type of every tensor of a file.

    Norms and biases (one dimension) stay F32, permutations are integers.

    Args:
        shapes: every tensor of the file, GGUF name -> row-major shape; the last entry is the row length.
        asked: what was asked for.

    Raises:
        InputError: a tensor without dimensions.
        UsageError: a tied embedding was given two types.
    """
    tied = not any(name.split(".")[0] == HEAD for name in shapes)
    blocks = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blk.")), default=0)
    wanted = {name: _wanted(name, shape, asked, tied=tied, blocks=blocks) for name, shape in shapes.items()}
    return {
        name: Choice(type, type if type == INTEGERS else fitting_type(type, shapes[name][-1]))
        for name, type in wanted.items()
    }


def _wanted(name: str, shape: tuple[int, ...], asked: Quantization, *, tied: bool, blocks: int) -> str:
    if not shape:
        raise InputError(f"tensor {name!r} has no dimensions")
    if name.endswith(PERM_SUFFIX):
        return INTEGERS
    if len(shape) == 1 or f".{ROUTER}." in name:
        return "f32"
    if asked.mix == CHOSEN:
        if asked.chosen is None or name not in asked.chosen:
            raise UsageError(f"{CHOSEN}: the choice says nothing of {name}; export in a type or mix")
        return asked.chosen[name]
    mix, parts = MIXES[asked.mix], name.split(".")
    if parts[0] == EMBEDDING and tied:
        if asked.embedding and asked.head and asked.embedding != asked.head:
            raise UsageError(
                f"the embedding of this model is its head too: one type, not {asked.embedding} and {asked.head}"
            )
        return asked.embedding or asked.head or mix.head
    if parts[0] == EMBEDDING:
        return asked.embedding or mix.embedding or mix.base
    if parts[0] == HEAD:
        return asked.head or mix.head
    module = parts[2].removesuffix("_exps") if parts[0] == "blk" else ""
    if name.endswith(FACTORS):
        return mix.sensitive if module in SENSITIVE else mix.base
    return next((type for holds, type in mix.dense.get(module, ()) if holds(int(parts[1]), blocks)), mix.base)


def row_multiple(mix: str) -> int:
    """What rows of factors must be multiples of, so that no fallback is needed.

    Raises:
        UsageError: unknown type.
    """
    Quantization(mix)
    return max(TYPES[MIXES[mix].base].block, TYPES[MIXES[mix].sensitive].block)


def predict_bytes(shapes: Mapping[str, tuple[int, ...]], asked: Quantization) -> int:
    """Bytes of a file's tensor data, alignment included. Metadata and vocabulary come on top.

    Raises:
        InputError, UsageError: as `choose_types` says.
    """
    return sum(padded(record.bytes) for record in records(shapes, asked))


def records(shapes: Mapping[str, tuple[int, ...]], asked: Quantization) -> tuple[TensorRecord, ...]:
    """Every tensor as a file holds it.

    Raises:
        InputError, UsageError: as `choose_types` says.
    """
    return tuple(
        TensorRecord(
            name=name,
            shape=shapes[name],
            type=choice.stored,
            bytes=tensor_bytes(shapes[name], choice.stored),
            wanted=choice.wanted if choice.fallback else None,
        )
        for name, choice in choose_types(shapes, asked).items()
    )


def fallback_lines(tensors: Iterable[TensorRecord]) -> list[str]:
    """One line per pair of types: which kinds of tensors are stored in another type, in which blocks, which rows."""
    groups: dict[tuple[str, str], dict[str, list[TensorRecord]]] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if tensor.wanted is not None:
            kind = ".".join(tensor.name.split(".")[2:]) if tensor.name.startswith("blk.") else tensor.name
            groups.setdefault((tensor.wanted, tensor.type), {}).setdefault(kind, []).append(tensor)
    return [
        f"stored as {stored} ({TYPES[stored].bits:.4g} bits per weight) instead of {wanted} "
        f"({TYPES[wanted].bits:.4g}), whose blocks of {TYPES[wanted].block} their rows do not fit: "
        + "; ".join(_kind_line(kind, found) for kind, found in kinds.items())
        for (wanted, stored), kinds in groups.items()
    ]


def _kind_line(kind: str, tensors: list[TensorRecord]) -> str:
    rows = sorted({tensor.shape[-1] for tensor in tensors})
    lengths = f"{rows[0]} to {rows[-1]}" if len(rows) > 3 else ", ".join(map(str, rows))
    if not tensors[0].name.startswith("blk."):
        return f"{kind} (rows of {lengths})"
    plural = "s" if len(tensors) > 1 else ""
    return f"{kind} (rows of {lengths}, block{plural} {_ranges(tensor.name.split('.')[1] for tensor in tensors)})"


def _ranges(blocks: Iterable[str]) -> str:
    """'0-3, 7' of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for block in sorted({int(block) for block in blocks}):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def exported_as(header: Header) -> Quantization | None:
    """What a file of this project says it was exported in, None for another's."""
    made = str(header.metadata.get("general.quantized_by", ""))
    mix, *options = made.removeprefix(EXPORTED_AS).split(" ")
    if not made.startswith(EXPORTED_AS):
        return None
    try:
        given = dict(option.split("=", 1) for option in options)
        embedding, head, rounding = (given.pop(name, None) for name in ("embedding", "head", "rounding"))
        return None if given else Quantization(mix, embedding, head, rounding)
    except (UsageError, ValueError):
        return None

"""What a matrix becomes in a file of a given size: dense in one storage type, or two factors in one each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """One way to store a matrix.

    Attributes:
        types: its storage type; of two factors that of U, then that of V^T.
        rank: of two factors; None for the dense matrix.
    """

    types: tuple[str, ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        if len(self.types) != (1 if self.rank is None else 2) or not all(self.types):
            raise ValueError(f"a form has one type, or a rank and two: {self.rank} {self.types}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank} is not positive")

    def flops(self, m: int, n: int) -> int:
        """Additions and multiplications of its product with a vector, in place of a matrix of m rows and n columns."""
        return 2 * m * n if self.rank is None else 2 * self.rank * (m + n)

    def __str__(self) -> str:
        """ "q5_0", or "128 q8_0 iq4_nl": rank, type of U, type of V^T."""
        return " ".join([*([] if self.rank is None else [str(self.rank)]), *self.types])


def read_form(text: str) -> Form:
    """The form that `str` of it gives back.

    Raises:
        ValueError: the text is none.
    """
    words = text.split()
    if len(words) == 1:
        return Form((words[0],))
    if len(words) == 3 and words[0].isascii() and words[0].isdigit() and len(words[0]) < 8:
        return Form((words[1], words[2]), int(words[0]))
    raise ValueError(f"{text!r}: expected a type such as q5_0, or rank and two types such as 128 q8_0 iq4_nl")


@dataclass(frozen=True)
class Candidate:
    """One form of a matrix, with what it takes and what it costs.

    Attributes:
        bytes: in the file, padding included.
        loss: predicted, in nats per token.
        form: what it is.
        flops: that it takes per token of a prompt.
    """

    bytes: int
    loss: float
    form: Form
    flops: int = 0

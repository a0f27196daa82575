"""Exact bytes of a GGUF file before there is one: header, metadata, vocabulary, padding and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from ...converter.budget.forms import Form
from ...converter.checkpoint.layouts import U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.families.family import Gguf
from ...converter.families.table import gguf_of
from ..chosen import CHOSEN
from ..gguf.chosen import chosen_types
from ..gguf.file import open_writer
from ..gguf.metadata import read_hyperparameters
from ..gguf.mixes import Quantization, records
from ..gguf.names import gguf_name
from ..gguf.tensors import plan_tensors
from ..gguf.types import ALIGNMENT, padded
from ..gguf.writer import vocabulary_of

LENGTH, KIND = 8, 4  # bytes before a string or a list, and of a value's kind
NUMBER = 4


class GgufSize:
    """The file that a model becomes, by the forms of its matrices.

    Args:
        reader: the dense checkpoint.
        name: of the folder that the file will be exported from: the file calls itself that.
        method: of the recipe.
    """

    def __init__(self, reader: CheckpointReader, name: str, method: str) -> None:
        self._of = gguf_of(reader.config)
        hyper = read_hyperparameters(reader.config)
        self._sources = plan_tensors(reader, self._of, hyper, native=False)
        vocabulary = vocabulary_of(reader)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "header.gguf"
            asked = Quantization(CHOSEN, rounding="aware")
            with closing(open_writer(path, reader, self._of, hyper, asked, vocabulary, layout="dense")) as writer:
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
            self._metadata = path.stat().st_size
        self._metadata += len(name.encode()) - len(reader.path.resolve().name.encode())
        strings = {"layout": "two-factor", "method": method, "recipe": ""}
        self._lowrank = sum(_key(f"lowrank.{key}") + LENGTH + len(value) for key, value in strings.items())
        self._lowrank += sum(_key(f"lowrank.{key}") + NUMBER for key in ("version", "retention"))

    def __call__(self, forms: Mapping[str, Form], recipe_text: str) -> int:
        """Bytes of the file.

        Args:
            forms: module -> what it becomes, every matrix of the model.
            recipe_text: the recipe that the file will hold.
        """
        tensors = records(self._shapes(forms), Quantization(CHOSEN, chosen=chosen_types(forms, self._of)))
        infos = sum(
            LENGTH + len(tensor.name) + 4 + 8 * len(tensor.shape) + KIND + 8 for tensor in tensors
        )  # name, number of dimensions, dimensions, type, offset
        header = self._metadata + self._lowrank + len(recipe_text.encode()) + infos
        return -(-header // ALIGNMENT) * ALIGNMENT + sum(padded(tensor.bytes) for tensor in tensors)

    def overhead(self, module: str) -> int:
        """Bytes that a linear takes in the header beyond those of a dense one once it becomes two factors."""
        one, *two = (_stored(module + ending, self._of) for ending in (".weight", U_SUFFIX, V_SUFFIX))
        return sum(map(len, two)) - len(one) + LENGTH + 4 + 2 * 8 + KIND + 8

    def _shapes(self, forms: Mapping[str, Form]) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file, with the factors in place of the linears that become some."""
        shapes = {source.name: source.shape for source in self._sources}
        for module, form in forms.items():
            if form.rank is not None:
                m, n = shapes.pop(_stored(module + ".weight", self._of))
                shapes[_stored(module + U_SUFFIX, self._of)] = (m, form.rank)
                shapes[_stored(module + V_SUFFIX, self._of)] = (form.rank, n)
        return shapes


def _stored(name: str, of: Gguf) -> str:
    found = gguf_name(name, of)
    assert found is not None
    return found


def _key(key: str) -> int:
    return LENGTH + len(key) + KIND

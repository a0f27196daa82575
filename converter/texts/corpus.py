"""What a text's name stands for -> its documents -> one text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..storage.documents import shown
from .conversations import Message, is_conversation, messages_in, rendered
from .parquet import rows_in
from .records import Numbered, Record, missing_field, records_in
from .shipped import DATASETS, PYTHON_DOCS, Split, python_documentation, rows_of_dataset
from .unpacking import NUMPY, PARQUET, decoded, most_unpacked, read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "text"
WINDOWS = ".npy"


@dataclass(frozen=True)
class Conversation:
    """Messages that are not yet a text, and where they stand."""

    where: str
    messages: tuple[Message, ...]


Document = str | Conversation


@dataclass(frozen=True)
class Documents:
    """What a text's name stands for.

    Attributes:
        found: in order.
        skipped: how many records had null, or an empty conversation, in place of a text.
    """

    found: tuple[Document, ...]
    skipped: int = 0


@dataclass(frozen=True)
class Corpus:
    """A text to be tokenized.

    Attributes:
        text: all documents.
        documents: how many.
        skipped: records without a text.
    """

    text: str
    documents: int
    skipped: int


@dataclass(frozen=True)
class Counts:
    """How much a text was.

    Attributes:
        documents: how many it has.
        tokens: of all of them.
        skipped: records that have no text.
    """

    documents: int
    tokens: int
    skipped: int

    def said(self, spec: str) -> str:
        """One line about it."""
        skipped = f"; {_counted(self.skipped, 'record')} without a text skipped" if self.skipped else ""
        return f"{spec}: {_counted(self.documents, 'document')}, {_counted(self.tokens, 'token')}{skipped}"


def read_corpus(spec: str, split: Split, tokenizer: PreTrainedTokenizerBase | None = None) -> Corpus:
    """Read a text.

    Args:
        spec: `python-docs` (ships with Python); a file; FILE#FIELD or FILE#FIELD+FIELD, fields of its records, "text"
            if none is named; `datasets:NAME` (with the datasets package and a network), fields likewise.
        split: which half of `python-docs`; train or test of a data set. A file is one text for both.
        tokenizer: whose chat template conversations go through.

    Raises:
        InputError: it cannot be read; one line that names the place.
    """
    documents = read_documents(spec, split)
    texts = [one if isinstance(one, str) else _rendered(one, tokenizer) for one in documents.found]
    apart = "" if any(isinstance(one, Conversation) for one in documents.found) else "\n\n"
    return Corpus(apart.join(texts), len(texts), documents.skipped)


def read_text(spec: str, split: Split) -> str:
    """The text alone, of a spec without conversations; see `read_corpus`."""
    return read_corpus(spec, split).text


def text_sha256(spec: str, split: Split = "calibration") -> str:
    """Hash of a text, whatever the tokenizer: a file may change and keep its name.

    Raises:
        InputError: it cannot be read.
    """
    found = read_documents(spec, split).found
    plain = [one if isinstance(one, str) else json.dumps(one.messages, sort_keys=True) for one in found]
    return hashlib.sha256("\n\n".join(plain).encode()).hexdigest()


def is_windows(spec: str) -> bool:
    """Whether a spec names token windows instead of a text: by the suffix `.npy`, or by what the file begins with."""
    if spec.lower().endswith(WINDOWS):
        return True
    try:
        return _begins(Path(spec).expanduser(), NUMPY)
    except (OSError, ValueError, RuntimeError):
        return False


def read_documents(spec: str, split: Split) -> Documents:
    """The documents of a text; arguments and errors as of `read_corpus`."""
    if spec == PYTHON_DOCS:
        return Documents(tuple(python_documentation(split)))
    if spec.startswith(DATASETS):
        name, _, wanted = spec.removeprefix(DATASETS).partition("#")
        return _of_records(rows_of_dataset(name, split), spec.partition("#")[0], _fields(wanted), None)
    path, wanted = _place(spec)
    try:
        if _begins(path, PARQUET):
            fields = _fields(wanted)
            return _of_records(rows_in(path, fields), str(path), fields, most_unpacked(path.stat().st_size))
        text = decoded(read_bytes(path, spec), str(path))
    except FileNotFoundError:
        raise _no_such_text(spec) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{spec}: not readable as UTF-8 text ({error})") from None
    records = records_in(text, str(path), bool(wanted))
    if records is None:
        return Documents((text,))
    return _of_records(records, str(path), _fields(wanted), None)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _begins(path: Path, magic: bytes) -> bool:
    """Whether a file begins so; what can be read only once is left alone."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _place(spec: str) -> tuple[Path, str]:
    """A file, and the fields named after it: `#` may be part of a file's name.

    Raises:
        InputError: nothing of that name is there.
    """
    try:
        cuts = [len(spec), *(at for at in range(len(spec) - 1, -1, -1) if spec[at] == "#")]
        for cut in cuts:
            if (path := Path(spec[:cut]).expanduser()).exists() or not cuts[1:]:
                return path, spec[cut + 1 :]
    except RuntimeError:  # the home of nobody
        raise _no_such_text(spec) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{spec}: not readable as UTF-8 text ({error})") from None
    raise _no_such_text(spec)


def _no_such_text(spec: str) -> InputError:
    here = "" if spec.startswith(("/", "~")) else f" in {Path.cwd()}"
    return InputError(
        f"{spec}: no such text{here}; give a text or .jsonl file, `{PYTHON_DOCS}`, `self` or `datasets:NAME`"
    )


def _fields(wanted: str) -> tuple[str, ...]:
    return tuple(wanted.split("+")) if wanted else (FIELD,)


def _of_records(records: Iterable[Numbered], name: str, fields: tuple[str, ...], most: int | None) -> Documents:
    """The documents of records.

    Args:
        most: letters that all of them may have; None if they are in memory already.
    """
    found: list[Document] = []
    skipped = letters = 0
    for where, record in records:
        document = _document(record, fields, name, where)
        if document is None:
            skipped += 1
            continue
        found.append(document)
        letters += len(document) if isinstance(document, str) else sum(map(_letters, document.messages))
        if most is not None and letters > most:
            raise InputError(f"{name}: becomes more than {most:,} letters once it is unpacked, which no text does")
    return Documents(tuple(found), skipped)


def _letters(message: Message) -> int:
    return sum(len(value) for value in message.values() if isinstance(value, str))


def _document(record: Record, fields: tuple[str, ...], name: str, where: str) -> Document | None:
    """What a record's fields hold: a text, a conversation, or nothing.

    Raises:
        InputError: a field is missing, or holds something else.
    """
    parts: list[str] = []
    for field in fields:
        if field not in record:
            raise missing_field(name, where, field, _could_be_meant(record))
        value = record[field]
        if value is None or value == []:
            continue
        if is_conversation(value):
            if len(fields) > 1:
                raise InputError(f"{name}: {where}: field {field!r} is a conversation, which stands alone")
            return Conversation(f"{name}: {where}", messages_in(value, f"{name}: {where}"))
        if not isinstance(value, str):
            kind = _KINDS.get(type(value), type(value).__name__)
            raise InputError(f"{name}: {where}: field {field!r} is {kind}, not a text: {shown(value)}")
        parts.append(value)
    if not parts:
        return None
    return _checked("".join(parts), f"{name}: {where}")


def _checked(text: str, where: str) -> str:
    """A text without halves of letters, which JSON can spell.

    Raises:
        InputError: it has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair, which is no text") from None
    return text


def _could_be_meant(record: Record) -> Iterator[str]:
    return (str(name) for name, value in record.items() if isinstance(value, str) or is_conversation(value))


def _rendered(conversation: Conversation, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        raise InputError(f"{conversation.where}: is a conversation, which only a model's chat template makes a text")
    return _checked(rendered(conversation.messages, tokenizer, conversation.where), conversation.where)


_KINDS: dict[type[Any], str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "a list",
    bytes: "bytes",
}

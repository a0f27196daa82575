"""A checkpoint, dense or factored, as transformers' model and tokenizer; what its libraries raise as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError, LowRankError
from ..families.settings import check_settings
from ..families.table import family_to_load
from ..storage.documents import shown
from ..storage.links import check_links
from .config_check import check_config
from .tensor_check import DERIVED, check_types
from .tokenizer_trial import check_tokenizer_file
from .tokens import TOKENIZER

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def refusing(path: Path | str, what: str) -> Iterator[None]:
    """Turn whatever a library raises over a model folder or file into one line about it.

    Args:
        path: named in the error.
        what: what could not be done.

    Raises:
        InputError: the library failed, for another reason than memory.
    """
    try:
        yield
    except (LowRankError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of tokenizers' Rust is no Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "out of memory" in reason.lower() or "can't allocate memory" in reason.lower():
            raise
        raise InputError(f"{path}: {what} ({reason})") from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and warnings of transformers' own: this package reports in its own words."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def transformers_config(reader: CheckpointReader) -> Any:
    """A checkpoint's configuration as transformers has it; of a vision-language model that of its language model.

    Raises:
        InputError: transformers refuses config.json.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with refusing(reader.path, "transformers cannot read config.json"), quiet_transformers():
        if reader.around is None:
            return AutoConfig.from_pretrained(str(reader.path), local_files_only=True, trust_remote_code=False)
        family: Any = CONFIG_MAPPING[reader.config["model_type"]]
        return family.from_dict(reader.config)


def load(path: Path | str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a checkpoint (factored or dense) as a transformers model in evaluation mode.

    Of a vision-language model this is the language model; `AutoModelForImageTextToText` loads the whole.

    Args:
        path: the checkpoint directory.
        device: torch device of the parameters.
        dtype: parameter dtype; the stored one by default.

    Raises:
        InputError: the directory is damaged or not a checkpoint.
    """
    from transformers import AutoModelForCausalLM

    reader = CheckpointReader(Path(path))
    family = family_to_load(reader.config, str(path))
    if family.groups:
        check_config(reader, family)
    else:
        check_settings(reader.config, family, str(path))
        check_types(reader, (name for name in reader.names if not DERIVED.search(name)))
    renamed = {f"^{re.escape(prefix.stored)}": prefix.plain for prefix in reader.prefixes if prefix.stored}
    factory: Any = AutoModelForCausalLM
    with refusing(path, "transformers cannot load this checkpoint"), quiet_transformers():
        model, found = factory.from_pretrained(
            str(path),
            dtype=dtype if dtype is not None else "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,  # reported in `found`, and refused below
            output_loading_info=True,
            **({"key_mapping": renamed} if renamed else {}),
            **({} if reader.around is None else {"config": transformers_config(reader)}),
        )
    check_complete(Path(path), found)
    if strange := [] if family.groups else sorted(n for n in found["unexpected_keys"] if not DERIVED.search(n)):
        raise InputError(f"{path}: holds {shown(strange[0])}, for which a {family.model_type} model has no place")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory: what its tokenizer.json says, where it has one.

    Not the class that transformers picks by the model's type: some have rules of their own in place of the file's.

    Raises:
        InputError: there is none, or transformers cannot load it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_links(path)
    check_tokenizer_file(path)
    factory: Any = PreTrainedTokenizerFast if (path / TOKENIZER).is_file() else AutoTokenizer
    with refusing(path, "no usable tokenizer"), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = factory.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        tokenizer("a")
    return tokenizer


def check_complete(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse a model in which transformers left a weight at random.

    Args:
        path: named in errors.
        found: the loading information of `from_pretrained`.

    Raises:
        InputError: a tensor is missing or has another shape than the config says.
    """
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise InputError(f"{path}: {name} has shape {tuple(stored)}, but config.json says {tuple(expected)}")
    for name in sorted(found["missing_keys"]):
        raise InputError(f"{path}: tensor {name!r} is missing")

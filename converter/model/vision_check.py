"""What lies beside the language model of a vision-language checkpoint, held against transformers' own model of it."""

from __future__ import annotations

from typing import Any

from ..checkpoint.language_part import lies_beside
from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from ..storage.documents import shown
from .loading import quiet_transformers, refusing

COUNTS = ("num_hidden_layers", "depth")
"""Keys that say how many blocks a model is built of."""


def check_beside(reader: CheckpointReader) -> None:
    """Make sure that every tensor of tower and projector is there, in the shape that config.json says.

    From names and shapes alone: transformers' own renamings lead from the files to its model, which has no weights.

    Raises:
        InputError: one is missing, or has another shape, or transformers cannot build what config.json says.
    """
    if reader.around is None:
        return
    _check_counts(reader)
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    factory: Any = AutoModelForImageTextToText
    with (
        refusing(reader.path, "transformers cannot build this model"),
        quiet_transformers(),
        torch.device("meta"),
    ):
        model = factory.from_config(one_block(reader))
        steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    places = {name: tuple(meta.shape) for name, meta in model.state_dict().items() if lies_beside(name, reader.around)}
    found = {
        rename_source_key(name, renamings, converters, model.base_model_prefix, model.state_dict())[0]: name
        for name in reader.beside
    }
    for place, shape in places.items():
        if place not in found:
            raise InputError(f"{reader.path}: tensor {place!r} is missing, of what lies beside the language model")
        if reader.beside[found[place]] != shape:
            there = reader.beside[found[place]]
            raise InputError(f"{reader.path}: {found[place]} has shape {there}, but config.json says {shape}")


def one_block(reader: CheckpointReader) -> Any:
    """transformers' configuration of a vision-language model, with one block of its language model."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(str(reader.path), local_files_only=True, trust_remote_code=False)
    config.text_config.num_hidden_layers = 1
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:1]
    return config


def _check_counts(reader: CheckpointReader) -> None:
    """Refuse more blocks than there are tensors of, before any of them is built."""
    vision = reader.whole_config(reader.config).get("vision_config")
    for part, config, tensors in (
        ("vision_config", vision, reader.beside),
        ("text_config", reader.config, reader.names),
    ):
        for key in COUNTS:
            count = config.get(key) if isinstance(config, dict) else None
            if isinstance(count, (int, float)) and count > len(tensors):
                raise InputError(
                    f"{reader.path}: config.json says {key} of {part} is {shown(count)}, but there are "
                    f"{len(tensors)} tensors of it"
                )

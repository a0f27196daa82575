"""What lies beside the language model of a vision-language checkpoint, held against transformers' own model of it."""

from __future__ import annotations

from typing import Any

from ..checkpoint.language_part import lies_beside
from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from .loading import quiet_transformers, refusing


def check_beside(reader: CheckpointReader) -> None:
    """Make sure that every tensor of tower and projector is there, in the shape that config.json says.

    From names and shapes alone: transformers' own renamings lead from the files to its model, which has no weights.

    Raises:
        InputError: one is missing, or has another shape, or transformers cannot build what config.json says.
    """
    if reader.around is None:
        return
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    factory: Any = AutoModelForImageTextToText
    with (
        refusing(reader.path, "transformers cannot build this model"),
        quiet_transformers(),
        torch.device("meta"),
    ):
        config: Any = AutoConfig.from_pretrained(str(reader.path), local_files_only=True, trust_remote_code=False)
        model = factory.from_config(config)
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

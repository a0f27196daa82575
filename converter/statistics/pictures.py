"""Calibration windows with pictures: what the tower makes of each takes the place of the tokens that stand for it.

A feature of a picture has a number like a token's, beyond those of the vocabulary: windows are drawn, cut and shuffled
as of a text, and the embedding (`BlockSource.embed`) looks both up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from ..model.loading import quiet_transformers, refusing
from ..model.vision_check import one_block
from ..storage.documents import shown
from ..texts.corpus import Counts
from ..texts.pairs import Pair, read_pairs
from .calibration import Calibration, Tokens, draw_windows

if TYPE_CHECKING:
    from PIL.Image import Image


class _Seen(Exception):
    """What the language model is given: embeddings (1, T, d)."""


def calibrate_on_pairs(
    spec: str,
    reader: CheckpointReader,
    *,
    windows: int,
    length: int,
    held_out: int,
    seed: int,
    first: int,
    device: torch.device,
) -> Calibration:
    """Draw calibration windows from pictures with texts, as the model's processor and tower put them.

    Args:
        spec: `FILE#image+FIELD`.
        reader: of a dense vision-language model.
        windows, length, held_out, seed: as of `calibrate`.
        first: number of the first feature of a picture; those below are tokens.
        device: where the tower runs.

    Raises:
        InputError: a record, a picture or the processor is not readable, the pairs are shorter than one window, or a
            token has no row.
    """
    if reader.around is None or not reader.around.as_text:
        raise InputError(f"{spec}: places of pictures are no places of text for {reader.path}; give a text")
    pairs, processor = read_pairs(spec), _processor(reader)
    model = _seeing(reader, device)
    streams, features, count = list[Tokens](), list[NDArray[np.float32]](), first
    for pair in pairs:
        ids, seen = _tokens_and_features(pair, processor, model, reader)
        at = ids == model.config.image_token_id
        ids[at] = count + np.arange(len(seen), dtype=np.int32)
        if (most := int(ids[~at].max(initial=0))) >= int(reader.config["vocab_size"]):
            raise InputError(f"{pair.where}: holds token {most}, but the model's embedding has no row of it")
        count += len(seen)
        streams.append(ids)
        features.append(seen)
    tokens = np.concatenate([np.zeros(0, np.int32), *streams])
    drawn = draw_windows(tokens, windows + held_out, length, seed, spec)
    kept = np.unique(drawn[drawn >= first])
    numbered = np.where(drawn >= first, first + np.searchsorted(kept, drawn), drawn).astype(np.int32)
    table = np.concatenate(features)[kept - first]
    counts = Counts(len(pairs), len(tokens), 0)
    return Calibration(numbered[:windows], numbered[windows:], spec, seed, counts, features=table)


def _tokens_and_features(
    pair: Pair, processor: Any, model: Any, reader: CheckpointReader
) -> tuple[Tokens, NDArray[np.float32]]:
    """Token ids (T,) of a text around a picture, and the features (K, d) at the places of those that stand for it."""
    text = pair.text if processor.image_token in pair.text else f"{processor.image_token}\n{pair.text}"
    with refusing(pair.where, f"the model's processor cannot read {shown(pair.picture.name)}"), quiet_transformers():
        given = processor(images=[_opened(pair)], text=[text], return_tensors="pt")
        ids: Tensor = given["input_ids"][0]
        embedded = _embedded(model, reader, {name: value.to(model.device) for name, value in given.items()})
    found: NDArray[np.float32] = embedded[ids == model.config.image_token_id].numpy()
    return ids.numpy().astype(np.int32), found


@torch.no_grad()
def _embedded(model: nn.Module, reader: CheckpointReader, given: dict[str, Tensor]) -> Tensor:
    """What a vision-language model gives its language model, (T, d) float32."""

    def stop(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Seen(named["inputs_embeds"])

    assert reader.around is not None
    hook = model.get_submodule(reader.around.inside).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**given)
    except _Seen as seen:
        found: Tensor = seen.args[0][0].float().cpu()
        return found
    finally:
        hook.remove()
    raise RuntimeError("the language model was not reached")


def _opened(pair: Pair) -> Image:
    import PIL.Image

    with PIL.Image.open(pair.picture) as picture:
        return picture.convert("RGB")


def _processor(reader: CheckpointReader) -> Any:
    """Raises InputError where the folder has none, or Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError(f"{reader.path}: pictures are read with Pillow: pip install pillow") from None
    from transformers import AutoProcessor

    with refusing(reader.path, "no usable processor of pictures"), quiet_transformers():
        factory: Any = AutoProcessor
        processor = factory.from_pretrained(str(reader.path), local_files_only=True, trust_remote_code=False)
        _ = processor.image_token, processor.image_processor
        return processor


def _seeing(reader: CheckpointReader, device: torch.device) -> Any:
    """The model in float32, with one block of its language model: tower, projector, embedding."""
    from transformers import AutoModelForImageTextToText

    factory: Any = AutoModelForImageTextToText
    with refusing(reader.path, "transformers cannot load this checkpoint"), quiet_transformers():
        model = factory.from_pretrained(
            str(reader.path),
            config=one_block(reader),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
        )
    return model.to(device).eval()

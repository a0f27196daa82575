"""Documents of a model folder with other token ids: tokenizer.json, its companions, and what configurations name."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .tokenizer_file import TokenizerFile, merge_pairs

Ids = Mapping[int, int]
"""Old id -> new id, of the tokens that are kept."""
NAMES_AN_ID = re.compile(r"(_token_ids?|_token_index|^(begin_)?suppress_tokens|^bad_words_ids|^forced_decoder_ids)$")


def rewritten_tokenizer(tokenizer: TokenizerFile, ids: Ids) -> dict[str, Any]:
    """tokenizer.json with only the tokens that are kept, under their new ids."""
    data = copy.deepcopy(dict(tokenizer.data))
    model = data["model"]
    if tokenizer.kind == "BPE":
        model["vocab"] = _in_order({piece: ids[old] for piece, old in tokenizer.ids.items() if old in ids})
        model["merges"] = [
            list(pair)
            for pair in merge_pairs(tokenizer.model)
            if all(part in model["vocab"] for part in (*pair, "".join(pair)))
        ]
    else:
        entries = [(ids[old], entry) for old, entry in enumerate(model["vocab"]) if old in ids]
        model["vocab"] = [entry for _, entry in sorted(entries, key=lambda found: found[0])]
        if type(model.get("unk_id")) is int:
            model["unk_id"] = ids.get(model["unk_id"])
    tokens = [{**token, "id": ids[token["id"]]} for token in data.get("added_tokens") or [] if token["id"] in ids]
    data["added_tokens"] = sorted(tokens, key=lambda token: int(token["id"]))
    data["post_processor"] = _processor(data.get("post_processor"), ids)
    return data


def _in_order(vocabulary: dict[str, int]) -> dict[str, int]:
    return dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))


def _processor(part: Any, ids: Ids) -> Any:
    """A post-processor, which names ids beside the special tokens that it adds."""
    if isinstance(part, list):
        return [_processor(inner, ids) for inner in part]
    if not isinstance(part, dict):
        return part
    found = {}
    for key, value in part.items():
        if key == "ids" and isinstance(value, list):
            found[key] = [ids.get(index, index) for index in value]
        elif key in ("sep", "cls") and isinstance(value, list) and len(value) == 2:
            found[key] = [value[0], ids.get(value[1], value[1])]
        else:
            found[key] = _processor(value, ids)
    return found


def rewritten_config(document: Any, ids: Ids) -> Any:
    """config.json or generation_config.json, with new ids in the keys that name tokens; a dropped id becomes null."""
    if isinstance(document, list):
        return [rewritten_config(inner, ids) for inner in document]
    if not isinstance(document, dict):
        return document
    return {
        key: _renamed(value, ids) if NAMES_AN_ID.search(key) else rewritten_config(value, ids)
        for key, value in document.items()
    }


def _renamed(value: Any, ids: Ids) -> Any:
    if isinstance(value, list):
        found = [_renamed(inner, ids) for inner in value]
        return [inner for inner in found if inner is not None]
    return ids.get(value) if type(value) is int and value >= 0 else value


def named_ids(document: Any) -> Iterator[int]:
    """The token ids that a configuration names."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _numbers(value) if NAMES_AN_ID.search(key) else named_ids(value)
    elif isinstance(document, list):
        for inner in document:
            yield from named_ids(inner)


def _numbers(value: Any) -> Iterator[int]:
    if type(value) is int and value >= 0:
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def rewritten_tokenizer_config(document: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """tokenizer_config.json, which may list added tokens by their ids."""
    found = dict(document)
    listed = found.get("added_tokens_decoder")
    if isinstance(listed, dict):
        entries = [(ids[int(old)], token) for old, token in listed.items() if old.isdecimal() and int(old) in ids]
        found["added_tokens_decoder"] = {str(new): token for new, token in sorted(entries, key=lambda entry: entry[0])}
    return found

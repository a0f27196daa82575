"""A smaller vocabulary: what is kept, that any text comes back, and that the model computes what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.vocabulary.round_trip import check_round_trip, script_lines
from lowrank_export.converter.vocabulary.selection import kept_tokens
from lowrank_export.converter.vocabulary.tokenizer_file import BYTE_TOKENS, byte_alphabet, read_tokenizer_file
from lowrank_export.converter.vocabulary.trim import KEPT_FILE, Trimmed, trim

TEXT = "the rank of the theory is the rank of that other matrix, and the matrices there are theirs\n" * 20
OTHER = "compression keeps what the loss wants; everything else is rounded away, said nobody yesterday\n" * 20
SPECIAL = [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]


def byte_level(vocabulary: int = 600) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [TEXT, OTHER],
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return raw


def byte_fallback() -> Tokenizer:
    """As Gemma's and Llama 2's: characters are pieces, bytes stand in for those that are none."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator([TEXT, OTHER], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    data = json.loads(learned.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *data["vocab"]]
    raw = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [tuple(merge) for merge in data["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens([*SPECIAL, AddedToken("<unk>", special=True)])
    return raw


def unigram() -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(
        [TEXT, OTHER],
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
        ),
    )
    return raw


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "unigram": unigram,
}


def folder_of(tiny: ModuleType, path: Path, raw: Tokenizer, *, tied: bool = True, **more: Any) -> Path:
    """A tiny llama whose embedding has three rows more than the tokenizer has tokens."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny.save_dense(path, "llama", tied=tied, vocab_size=len(tokenizer) + 3, **config, **more)
    for file in path.glob("*token*"):
        file.unlink()
    tokenizer.save_pretrained(path)
    return path


def trimmed(folder: Path, out: Path, text: str, size: int | None) -> Trimmed:
    texts = out.with_suffix(".txt")
    texts.write_text(text, encoding="utf-8")
    return trim(
        open_source(str(folder), SilentProgress()), out, texts=[str(texts)], size=size, progress=SilentProgress()
    )


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tiny, tmp_path_factory.mktemp("dense") / request.param, KINDS[request.param]())


def ids_of(folder: Path, text: str) -> list[int]:
    found: list[int] = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    return found


def test_text_of_kept_tokens_is_the_same_tokens_with_the_same_logits(folder: Path, tmp_path: Path) -> None:
    made = trimmed(folder, tmp_path / "small", TEXT, None)
    before, after = ids_of(folder, TEXT), ids_of(made.path, TEXT)
    assert [int(made.kept[index]) for index in after] == before
    dense, small = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder, made.path))
    assert small.config.vocab_size == len(made.kept) < dense.config.vocab_size
    with torch.no_grad():
        wanted, found = (model(torch.tensor([ids[:64]])).logits[0] for model, ids in ((dense, before), (small, after)))
    torch.testing.assert_close(found, wanted[:, torch.from_numpy(made.kept)], rtol=1e-5, atol=1e-6)
    assert made.parameters == (dense.config.vocab_size - len(made.kept)) * dense.config.hidden_size
    np.testing.assert_array_equal(np.load(made.path / KEPT_FILE), made.kept)


def test_special_tokens_keep_their_meaning(folder: Path, tmp_path: Path) -> None:
    made = trimmed(folder, tmp_path / "small", "a", None)
    old, new = (AutoTokenizer.from_pretrained(path) for path in (folder, made.path))
    config = json.loads((made.path / "config.json").read_text())
    for role in ("bos_token", "eos_token"):
        assert getattr(new, role) == getattr(old, role)
        assert made.kept[getattr(new, role + "_id")] == getattr(old, role + "_id")
        assert config[role + "_id"] == getattr(new, role + "_id")
    assert new("</s>")["input_ids"][-1] == new.eos_token_id
    assert len(new) == len(made.kept)


@pytest.mark.parametrize("kind", list(KINDS))
@given(text=st.text(max_size=60), kept=st.integers(0, 40))
@settings(deadline=None, max_examples=30)
def test_any_text_comes_back_as_it_did(
    kind: str, text: str, kept: int, tiny: ModuleType, tmp_path_factory: Any
) -> None:
    """Whatever the size; what the whole vocabulary loses, an unknown character say, is lost alike."""
    path = tmp_path_factory.getbasetemp() / f"any-{kind}"
    if not path.exists():
        folder_of(tiny, path, KINDS[kind]())
    small = path.with_name(f"{path.name}-{kept}")
    if not small.exists():
        least = smallest(path, path.with_name("none"))
        trimmed(path, small, TEXT, min(least + kept, rows_of(path) - 1))
    check_round_trip(*(AutoTokenizer.from_pretrained(p) for p in (path, small)), [text])


def rows_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def smallest(folder: Path, out: Path) -> int:
    with pytest.raises(UsageError, match=r"vocabulary_size 1: .* take \d+ already") as refused:
        trimmed(folder, out, TEXT, 1)
    return int(str(refused.value).split("take ")[1].split(" ")[0])


def test_the_size_is_met_and_the_frequent_come_first(folder: Path, tmp_path: Path) -> None:
    least = smallest(folder, tmp_path / "none")
    most = rows_of(folder) - 1
    sizes = [least, least + (most - least) // 3, most]
    made = [trimmed(folder, tmp_path / f"{size}", TEXT, size) for size in sizes]
    for size, one in zip(sizes, made, strict=True):
        assert size - 4 <= len(one.kept) <= size  # rows without a token are none
    counts = [len(ids_of(one.path, TEXT)) for one in made]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_what_a_piece_is_merged_from_is_kept(folder: Path) -> None:
    file = read_tokenizer_file(folder)
    counts = np.zeros(1000, dtype=np.int64)
    longest = max(file.ids, key=lambda piece: (len(piece), piece))
    counts[file.ids[longest]] = 1
    kept = {file.pieces.get(index) for index in kept_tokens(file, counts, (), None, 1000)}
    assert longest in kept
    if file.kind == "BPE":
        assert any(a + b == longest and {a, b} <= kept for a, b in file.merges)


def test_both_matrices_of_an_untied_model(tiny: ModuleType, tmp_path: Path) -> None:
    folder = folder_of(tiny, tmp_path / "dense", byte_level(), tied=False)
    made = trimmed(folder, tmp_path / "small", TEXT, None)
    dense, small = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, made.path))
    for get in ("get_input_embeddings", "get_output_embeddings"):
        wanted = getattr(dense, get)().weight[torch.from_numpy(made.kept)]
        torch.testing.assert_close(getattr(small, get)().weight, wanted, rtol=0, atol=0)


def test_hostile_input(tiny: ModuleType, tmp_path: Path) -> None:
    folder = folder_of(tiny, tmp_path / "dense", byte_level())
    rows = rows_of(folder)
    with pytest.raises(UsageError, match=f"has only {rows} rows"):
        trimmed(folder, tmp_path / "small", TEXT, rows)
    with pytest.raises(UsageError, match="at least one text"):
        trim(open_source(str(folder), SilentProgress()), tmp_path / "x", texts=[], size=None, progress=SilentProgress())
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    for change, message in (
        ({"type": "WordPiece"}, "kind 'WordPiece' cannot be cut, only BPE and Unigram"),
        ({"vocab": 5}, "damaged"),
        ({"merges": ["a"]}, "damaged"),
        ({"end_of_word_suffix": "</w>"}, "prefix or suffix"),
    ):
        path.write_text(json.dumps({**data, "model": {**data["model"], **change}}))
        with pytest.raises(InputError, match=message):
            read_tokenizer_file(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        read_tokenizer_file(folder)
    assert not (tmp_path / "small").exists()


def test_lines_cover_the_scripts() -> None:
    lines = script_lines()
    assert len(lines) > 2000
    assert lines == script_lines()
    assert len(byte_alphabet()) == len(set(byte_alphabet())) == 256


def test_what_is_left_of_a_size_is_of_the_scripts_of_the_texts(tiny: ModuleType, tmp_path: Path) -> None:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["мир труд май рука мука рак " * 60, TEXT, OTHER], trainer)  # Cyrillic is learned first
    folder = folder_of(tiny, tmp_path / "dense", raw)
    file = read_tokenizer_file(folder)
    counts = np.zeros(rows_of(folder), dtype=np.int64)
    for index in ids_of(folder, "the rank of the rank"):
        counts[index] += 1
    small = len(kept_tokens(file, counts, (), None, len(counts)))
    kept = kept_tokens(file, counts, (), small + 20, len(counts))
    more = {
        file.pieces[index] for index in kept if len(file.pieces[index]) > 1 and not file.pieces[index].startswith("<")
    }
    assert len(more) >= 20
    assert not any(letter in piece for piece in more for letter in "ÐÑ")  # first bytes of Cyrillic

"""Texts, and the token windows drawn from them."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.statistics import calibration
from lowrank_export.converter.statistics.calibration import (
    calibrate,
    draw_windows,
    read_token_windows,
    tokenize,
)

OPTIONS = {"windows": 4, "length": 16, "held_out": 2, "seed": 3}


@given(data=st.data(), length=st.integers(1, 20), count=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_windows_are_cut_from_the_text_without_overlap(data: st.DataObject, length: int, count: int, seed: int) -> None:
    tokens = np.arange(data.draw(st.integers(length * count, length * count + 50)), dtype=np.int32)
    drawn = draw_windows(tokens, count, length, seed, "text")
    assert drawn.shape == (count, length) and drawn.dtype == np.int32
    assert (np.diff(drawn, axis=1) == 1).all()
    assert len(np.unique(drawn)) == count * length


def test_short_text_gives_random_starts() -> None:
    tokens = np.arange(20, dtype=np.int32)
    drawn = draw_windows(tokens, 6, 18, 0, "text")
    assert drawn.shape == (6, 18) and (np.diff(drawn, axis=1) == 1).all()
    np.testing.assert_array_equal(draw_windows(tokens, 2, 20, 0, "text"), np.stack([tokens, tokens]))


@pytest.mark.parametrize("tokens", [0, 15])
def test_text_shorter_than_a_window(tokens: int) -> None:
    message = rf"^here: the text has {tokens} tokens, fewer than one window of 16; .*--window-length$"
    with pytest.raises(InputError, match=message):
        draw_windows(np.zeros(tokens, np.int32), 1, 16, 0, "here")


def test_seed_and_hash(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(tiny.TEXT, encoding="utf-8")

    def draw(**changed: Any) -> Any:
        return calibrate(str(path), tiny.tokenizer(), **{**OPTIONS, **changed})

    first, same, other = draw(), draw(), draw(seed=4)
    assert first.windows.shape == (4, 16) and first.held_out.shape == (2, 16)
    np.testing.assert_array_equal(first.windows, same.windows)
    assert first.record() == same.record()
    assert first.sha256 != other.sha256
    assert first.record()["seed"] == 3 and first.record()["held_out"] == 2
    assert draw(held_out=0).held_out.shape == (0, 16)


@pytest.mark.parametrize("text", ["", "one line", "a\nbc\n\ndef\n" * 9, "no end of a line " * 9, "\n" * 40])
def test_a_long_text_is_tokenized_piece_by_piece(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Pieces are bounded, end where lines do if they can, and lose nothing."""
    seen: list[str] = []

    def tokenizer(piece: str, **_: Any) -> dict[str, list[int]]:
        seen.append(piece)
        return {"input_ids": [ord(letter) for letter in piece]}

    monkeypatch.setattr(calibration, "PIECE", 10)
    tokens = tokenize(tokenizer, text)  # type: ignore[arg-type]
    assert tokens.dtype == np.int32 and "".join(map(chr, tokens)) == "".join(seen) == text
    assert all(len(piece) <= 10 for piece in seen)
    assert all(piece.endswith("\n") for piece in seen[:-1]) or len(text.splitlines()) <= 1


def test_no_special_tokens(tiny: ModuleType) -> None:
    tokens = tokenize(tiny.tokenizer(), "a rank")
    assert tokens.dtype == np.int32 and 0 not in tokens
    assert tiny.tokenizer().decode(tokens) == "a rank"


def test_ready_made_windows(tiny: ModuleType, tmp_path: Path) -> None:
    windows = np.arange(32, dtype=np.int64).reshape(2, 16)
    np.save(tmp_path / "w.npy", windows)
    drawn = calibrate(str(tmp_path / "w.npy"), tiny.tokenizer(), **OPTIONS)
    np.testing.assert_array_equal(drawn.windows, windows)
    assert drawn.windows.dtype == np.int32 and drawn.held_out.shape == (0, 16)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4), np.float32), r"expected integer token windows \(N, T\), found float32 \(2, 4\)"),
        (np.zeros(4, np.int32), r"found int32 \(4,\)"),
        (np.zeros((0, 4), np.int32), "expected integer"),
        (np.zeros((2, 4), bool), "found bool"),
        (np.full((2, 4), 320), "token ids 320 to 320, but the model has 320 tokens"),
        (np.full((2, 4), -1), "token ids -1 to -1"),
        (np.array([[1], "x"], dtype=object), "not readable as a numpy array"),
    ],
)
def test_arrays_that_are_no_windows(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "w.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        read_token_windows(tmp_path / "w.npy", 320)


def test_an_array_of_python_2_is_read_without_a_word(tmp_path: Path) -> None:
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2L, 4L), }".ljust(117) + "\n"
    size = len(header).to_bytes(2, "little")
    (tmp_path / "w.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + size + header.encode() + np.arange(8, dtype="<i4").tobytes()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_token_windows(tmp_path / "w.npy", 320), np.arange(8).reshape(2, 4))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    np.save(tmp_path / "w.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        read_token_windows(tmp_path / "w.npy", 320)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"not an array at all", b"\x93NUMPY\x01\x00\x10\x00{'descr': 'x'"]
)
def test_damaged_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.npy: not readable as a numpy array") as error:
        read_token_windows(tmp_path / "w.npy", 320)
    assert "\n" not in str(error.value)


def test_archives_and_missing_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "w", a=np.zeros((2, 4), np.int32))
    (tmp_path / "w.npz").rename(tmp_path / "w.npy")
    for name in ("w.npy", "none.npy"):
        with pytest.raises(InputError, match=name):
            read_token_windows(tmp_path / name, 320)


def test_a_token_without_a_row(tiny: ModuleType, tmp_path: Path) -> None:
    """Wherever in the text it stands, and whether or not a window with it is drawn."""
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    (tmp_path / "text.txt").write_text("<|im_end|>" + tiny.TEXT)
    spec, options = str(tmp_path / "text.txt"), {**OPTIONS, "windows": 1}
    with pytest.raises(
        InputError, match=r"text.txt: holds token 320 \('<\|im_end\|>'\), but the model's embedding only 320"
    ):
        calibrate(spec, tokenizer, rows=320, **options)
    assert calibrate(spec, tokenizer, rows=321, **options).windows.max() <= 320
    np.save(tmp_path / "w.npy", np.full((2, 4), 321))
    with pytest.raises(InputError, match="token ids 321 to 321, but the model has 321 tokens"):
        calibrate(str(tmp_path / "w.npy"), tokenizer, rows=321, **options)
    calibrate(str(tmp_path / "w.npy"), tokenizer, rows=352, **options)  # rows that the tokenizer leaves unused

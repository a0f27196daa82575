"""Builds of llama.cpp that are broken in one way: the real library, and a wrapper that does what a bad compiler did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

# The package's other modules, and the library beside them, are found where they really are.
WRAPPER = """
import os, signal
from pathlib import Path

__path__.insert(0, {real!r})
from . import llama_cpp

load, decode, logits = llama_cpp.llama_model_load_from_file, llama_cpp.llama_decode, llama_cpp.llama_get_logits
given = {{}}


def llama_model_load_from_file(path, options):
    given.update(model=Path(path.decode()).name, repack=options.use_extra_bufts)
    return load(path, options)


def struck(tokens):
    return {kind!r} in given["model"] and tokens >= {tokens} and (given["repack"] or not {repacked})


def llama_decode(context, batch):
    given["tokens"] = batch.n_tokens
    if struck(batch.n_tokens):
        {fault}
    return decode(context, batch)


def llama_get_logits(context):
    rows = logits(context)
    if {wrong} and struck(given["tokens"]):
        rows[0] += {wrong}
    return rows


for function in (llama_model_load_from_file, llama_decode, llama_get_logits):
    setattr(llama_cpp, function.__name__, function)
"""


@pytest.fixture(scope="session")
def broken(llama_cpp_runtime: Path) -> Callable[..., Path]:
    """Makes a build in a folder that the real library is wrapped in."""

    def make(
        folder: Path, kind: str, *, fault: str = "pass", tokens: int = 1, repacked: bool = False, wrong: float = 0.0
    ) -> Path:
        """Args: where; which models' names it strikes; a statement; from which prompt on; whether weights have to be
        repacked; what is added to the first logit."""
        package = folder / "llama_cpp"
        (package / "lib").mkdir(parents=True)
        real = str(llama_cpp_runtime / "llama_cpp")
        text = WRAPPER.format(real=real, kind=kind, fault=fault, tokens=tokens, repacked=repacked, wrong=wrong)
        (package / "__init__.py").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of runtimes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lowrank-export" / "llama.cpp"

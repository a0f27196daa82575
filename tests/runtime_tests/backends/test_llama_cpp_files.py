"""Files that cannot be run give one line and never end the process; a stock llama.cpp refuses factored files."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from gguf import GGUFReader

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf import file
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.runtime_tests.backends.inspection import GgufSummary, check_loadable, inspect_gguf
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

STOCK = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 64
server = xllamacpp.Server(params)
print("loaded", flush=True)
os._exit(0)  # stopping the server can wait for itself forever
"""
MUTATIONS = """
import random, sys
from pathlib import Path
import numpy as np
from lowrank_export.converter.core.errors import LowRankError
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend
source, copy = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
for seed in range(24):
    rng, data = random.Random(seed), bytearray(source)
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(4, 40_000)] = rng.randrange(256)
    copy.write_bytes(data)
    try:
        backend = LlamaCppBackend(copy, n_ctx=64)
        backend.window_logits(np.arange(8, dtype=np.int32))
        backend.close()
    except LowRankError as error:
        assert str(error).count(chr(10)) == 0
print("survived")
"""


@pytest.fixture(scope="module")
def pivot(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pivot")
    tiny.save_factored(folder / "model", "qwen2", rank=20, layout="pivot")
    export_gguf(folder / "model", folder / "m.gguf", Quantization("f32"), progress=SilentProgress())
    return folder / "m.gguf"


@pytest.fixture(scope="module")
def factored(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny.save_factored(folder / "model", "qwen2")
    export_gguf(folder / "model", folder / "native.gguf", Quantization("f32"), progress=SilentProgress())
    export_gguf(folder / "model", folder / "dense.gguf", Quantization("f32"), layout="dense", progress=SilentProgress())
    return folder


def run(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0, "not a GGUF file"), (3, "not a GGUF file"), (4, "damaged or truncated"), (20_000, "damaged or truncated")],
)
def test_truncated(factored: Path, tmp_path: Path, keep: int, message: str) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes((factored / "native.gguf").read_bytes()[:keep])
    with pytest.raises(InputError, match=message):
        LlamaCppBackend(path)


def test_last_byte_missing(factored: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes((factored / "native.gguf").read_bytes()[:-200])
    with pytest.raises(InputError, match="truncated"):
        LlamaCppBackend(path)


def test_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match="not a GGUF file"):
        LlamaCppBackend(path)
    with pytest.raises(InputError, match="no such file"):
        LlamaCppBackend(tmp_path / "none.gguf")


def test_library_without_the_patch(factored: Path) -> None:
    stock = cast(ModuleType, SimpleNamespace(llama_cpp=SimpleNamespace(_lib=SimpleNamespace())))
    with pytest.raises(InputError, match=r"version 1\), but this llama\.cpp library lacks the low-rank patch"):
        LlamaCppBackend(factored / "native.gguf", module=stock)


def test_newer_layout(factored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_cpp_runtime: Path) -> None:
    monkeypatch.setitem(file.LOWRANK_VERSIONS, "two-factor", 3)
    export_gguf(factored / "model", tmp_path / "m.gguf", Quantization("f16"), progress=SilentProgress())
    with pytest.raises(InputError, match="knows version 2"):
        LlamaCppBackend(tmp_path / "m.gguf")


def test_architecture_that_is_not_verified() -> None:
    with pytest.raises(InputError, match=r"'deepseek2'; verified are llama, qwen2, qwen3"):
        check_loadable(Path("m.gguf"), GgufSummary("deepseek2", 1, 10), patched_version=1)
    check_loadable(Path("m.gguf"), GgufSummary("deepseek2", 0, 10), patched_version=0)


def test_inspection(factored: Path) -> None:
    assert inspect_gguf(factored / "native.gguf") == GgufSummary("qwen2", 1, 320)
    assert inspect_gguf(factored / "dense.gguf") == GgufSummary("qwen2", 0, 320)


def test_missing_tensor_is_named(factored: Path, tmp_path: Path, llama_cpp_runtime: Path) -> None:
    data = (factored / "native.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(data.replace(b"blk.1.ffn_up.lowrank_v", b"blk.1.ffn_up.lowrank_x", 1))
    with pytest.raises(InputError, match=r"cannot load.*'blk\.1\.ffn_up\.lowrank_v\.weight' not found"):
        LlamaCppBackend(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lowrank_c.weight", r"'blk\.1\.ffn_up\.lowrank_c\.weight' not found"),
        ("lowrank_p.weight", r"ffn_up\.weight' not"),
    ],
)
def test_missing_pivot_tensor_is_named(
    pivot: Path, tmp_path: Path, llama_cpp_runtime: Path, name: str, message: str
) -> None:
    path = tmp_path / "m.gguf"
    found = f"blk.1.ffn_up.{name}".encode()
    path.write_bytes(pivot.read_bytes().replace(found, found.replace(b"lowrank", b"lowrink"), 1))
    with pytest.raises(InputError, match=r"cannot load.*" + message):
        LlamaCppBackend(path)


@pytest.mark.parametrize("value", [-1, 64, 2**31 - 1, 3])
def test_order_that_is_no_permutation(pivot: Path, tmp_path: Path, llama_cpp_runtime: Path, value: int) -> None:
    reader = GGUFReader(pivot)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.lowrank_perm")
    data = bytearray(pivot.read_bytes())
    offset = int(tensor.data_offset) + 4 * (2 if int(tensor.data[2]) != value else 5)
    data[offset : offset + 4] = value.to_bytes(4, "little", signed=True)
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        LlamaCppBackend(path)


def test_library_that_knows_two_factors_only(pivot: Path) -> None:
    assert inspect_gguf(pivot) == GgufSummary("qwen2", 2, 320)
    with pytest.raises(InputError, match=r"factored GGUF \(version 2\), but this llama\.cpp library knows version 1"):
        check_loadable(pivot, inspect_gguf(pivot), patched_version=1)


@pytest.mark.parametrize("layout", ["two-factor", "pivot"])
def test_damaged_headers_never_end_the_process(
    factored: Path, pivot: Path, tmp_path: Path, llama_cpp_runtime: Path, layout: str
) -> None:
    done = run(MUTATIONS, pivot if layout == "pivot" else factored / "native.gguf", tmp_path / "m.gguf")
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr[-500:]


def test_nothing_on_stderr(factored: Path, llama_cpp_runtime: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend\n"
        "LlamaCppBackend(Path(sys.argv[1]), n_ctx=64).close()"
    )
    done = run(code, factored / "native.gguf")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp (a stock llama.cpp) is not installed")
def test_stock_library_refuses_the_factored_file_and_runs_the_dense_one(factored: Path) -> None:
    refused = run(STOCK, factored / "native.gguf")
    assert refused.returncode == 1  # an exception, not a signal
    assert "tensor 'blk.0.attn_q.weight' not found" in refused.stderr + refused.stdout
    accepted = run(STOCK, factored / "dense.gguf")
    assert accepted.stdout.strip().endswith("loaded")


def test_a_file_in_parts(pivot: Path, tmp_path: Path, gguf_files: ModuleType, llama_cpp_runtime: Path) -> None:
    """Given any part, llama.cpp computes what it computes of the whole; its permutations are looked at too."""
    parts = gguf_files.split(pivot, tmp_path, (7, 15))
    tokens = np.arange(24, dtype=np.int32)
    expected = logits(pivot, tokens)
    for part in parts:
        np.testing.assert_array_equal(logits(part, tokens), expected)
    place = next(tensor for tensor in read_header(parts[1]).tensors if tensor.name.endswith("lowrank_perm"))
    data = bytearray(parts[1].read_bytes())
    data[place.offset : place.offset + 4] = b"\xff\x00\x00\x00"
    parts[1].write_bytes(data)
    with pytest.raises(InputError, match=rf"{place.name} is no permutation"):
        inspect_gguf(parts[0])


def logits(path: Path, tokens: Any) -> Any:
    backend = LlamaCppBackend(path, n_ctx=64)
    try:
        return backend.window_logits(tokens)
    finally:
        backend.close()

"""Reading checkpoints: lazily, and with nothing taken on trust."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_export.converter.checkpoint.reader import CheckpointReader, read_json
from lowrank_export.converter.checkpoint.writer import CheckpointWriter
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.model.loading import load

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny.save_factored(folder, "llama", rank=16)
    return folder


@pytest.fixture
def factored(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "factored"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_lowrank(folder: Path, **changes: Any) -> None:
    edit_config(folder, quantization_config={**CheckpointReader(folder).lowrank, **changes})


def write_header(path: Path, header: Any, data: bytes = bytes(64)) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_reads_what_is_there(factored: Path) -> None:
    reader = CheckpointReader(factored)
    assert reader.ranks[Q_PROJ] == 16 and reader.lowrank["layout"] == "two-factor"
    stored = load_file(factored / "model.safetensors")
    assert reader.names == tuple(sorted(stored))
    for name, tensor in stored.items():
        assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), "F32")
        torch.testing.assert_close(reader.tensor(name), tensor, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"tensor 'model\.none' is missing"):
        reader.tensor("model.none")


def test_shards(factored: Path) -> None:
    whole = CheckpointReader(factored)
    writer_folder = factored.parent / "sharded"
    writer_folder.mkdir()
    writer = CheckpointWriter(writer_folder)
    for index, name in enumerate(whole.names):
        writer.write_shard(f"{index:05d}", {name: whole.tensor(name)})
    writer.finish(whole, whole.config, {"note.txt": "ü"})
    sharded = CheckpointReader(writer_folder)
    assert sharded.names == whole.names
    assert (writer_folder / "note.txt").read_text("utf-8") == "ü" and (writer_folder / "tokenizer.json").is_file()
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(load(writer_folder)(tokens).logits, load(factored)(tokens).logits)


def test_writer_refuses_what_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x: holds NaN or Inf in torch\.float16; choose a wider --dtype"):
        CheckpointWriter(tmp_path).write_shard("0", {"x": torch.tensor([1e5]).half()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 7, 8, 200, -1, -1000])
def test_truncated(factored: Path, kept: int) -> None:
    path = factored / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    for read in (CheckpointReader, load):
        with pytest.raises(InputError, match=r"model\.safetensors: .*truncated"):
            read(factored)


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 200_000_000])
def test_absurd_header_length(factored: Path, length: int) -> None:
    path = factored / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(InputError, match="not a safetensors file, or truncated"):
        CheckpointReader(factored)


def entry(begin: Any, end: Any, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (entry(0, 65), "truncated: tensor 'x' lies beyond"),
        (entry(0, 10**30), "truncated: tensor 'x' lies beyond"),
        (entry(-16, 0), "tensor 'x'"),
        (entry(16, 0), "tensor 'x'"),
        (entry(0, 16, shape=(5,)), r"tensor 'x' has 16 bytes, but its shape \(5,\) in F32 takes 20"),
        (entry(0, 16, shape=(2**40, 2**40)), "tensor 'x' has 16 bytes"),
        (entry(0, 16, shape=("4",)), "damaged safetensors header"),
        (entry("0", "16"), "damaged safetensors header"),
        ({"x": {"dtype": "F32"}}, "damaged safetensors header"),
        ({"x": [1, 2]}, "damaged safetensors header"),
        (["x"], "damaged safetensors header"),
        (b'{"x":' + b"[" * 50_000, "damaged safetensors header"),
        (b"\xff{}", "damaged safetensors header"),
    ],
)
def test_headers_that_lie(factored: Path, header: Any, message: str) -> None:
    write_header(factored / "model.safetensors", header)
    with pytest.raises(InputError, match=message) as error:
        CheckpointReader(factored)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/hostname", "..", ".", "sub/m.safetensors", "", "none", 7]
)
def test_shards_outside_the_folder(factored: Path, name: Any) -> None:
    shutil.copy(factored / "model.safetensors", factored.parent / "model.safetensors")
    (factored / "sub").mkdir()
    shutil.copy(factored / "model.safetensors", factored / "sub" / "m.safetensors")
    (factored / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(InputError, match="is not a file of this folder"):
        CheckpointReader(factored)


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_index_without_a_map(factored: Path, weight_map: Any) -> None:
    (factored / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"index\.json"):
        CheckpointReader(factored)


def test_rank_that_disagrees(factored: Path) -> None:
    edit_lowrank(factored, ranks={**CheckpointReader(factored).ranks, Q_PROJ: 15})
    with pytest.raises(InputError, match=r"q_proj has factors \(64, 16\) and \(16, 64\), but rank 15 in config\.json"):
        load(factored)


@pytest.mark.parametrize("ranks", [{"model.none": 4}, {Q_PROJ: "16"}, {Q_PROJ: None}, [Q_PROJ], 7])
def test_ranks_of_the_wrong_kind(factored: Path, ranks: Any) -> None:
    edit_config(factored, quantization_config={"quant_method": "lowrank", "ranks": ranks})
    with pytest.raises(InputError, match=r"none|rank"):
        CheckpointReader(factored)


def test_layout_of_a_later_version(factored: Path) -> None:
    edit_lowrank(factored, layout="butterfly")
    with pytest.raises(InputError, match="layout 'butterfly'; this version reads: two-factor, pivot"):
        load(factored)


@pytest.mark.parametrize("quantization", [{"quant_method": "gptq"}, {"bits": 4}, ["gptq"], "gptq"])
def test_quantized_checkpoints_are_refused(factored: Path, quantization: Any) -> None:
    edit_config(factored, quantization_config=quantization)
    with pytest.raises(InputError, match="already quantized"):
        CheckpointReader(factored)


def test_pickles_are_not_read(factored: Path) -> None:
    torch.save(load_file(factored / "model.safetensors"), factored / "pytorch_model.bin")
    (factored / "model.safetensors").unlink()
    for read in (CheckpointReader, load):
        with pytest.raises(InputError, match=r"no model\.safetensors .*\(pickles are not read\)"):
            read(factored)


def test_missing_tensor_is_no_random_weight(factored: Path) -> None:
    """transformers would fill it with random numbers and only print a warning."""
    tensors = load_file(factored / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, factored / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor 'model\.norm\.weight' is missing"):
        load(factored)


def test_wrong_shape_is_named(factored: Path) -> None:
    tensors = load_file(factored / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:10].clone()
    save_file(tensors, factored / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \(10,\), but config\.json says \(64,\)"):
        load(factored)


@pytest.mark.parametrize("content", ["", "{", "[]", "\ud800"])
def test_config_that_is_no_object(factored: Path, content: str) -> None:
    (factored / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"config\.json"):
        load(factored)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load(tmp_path / "none")
    with pytest.raises(InputError, match=r"config\.json: missing"):
        load(tmp_path)
    with pytest.raises(InputError, match="not readable"):
        read_json(tmp_path)


@pytest.mark.parametrize("order", ["lowrank_export, transformers", "transformers, lowrank_export"])
def test_plain_transformers_reads_it_once_the_package_is_imported(factored: Path, order: str) -> None:
    code = (
        f"import sys, {order}; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        f"print(type(model.get_submodule({Q_PROJ!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, factored], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "LowRankLinear", done.stderr[-500:]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, lowrank_export; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.fixture(scope="module")
def pivot(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pivot")
    tiny.save_factored(folder, "qwen2", rank=20, layout="pivot")
    return folder


def test_pivot_layout_and_its_permutations_survive(tiny: ModuleType, pivot: Path, tmp_path: Path) -> None:
    reader = CheckpointReader(pivot)
    assert (reader.layout, reader.dtype(Q_PROJ + ".lowrank_perm")) == ("pivot", "I32")
    assert "model.layers.0.mlp.gate_proj.lowrank_perm" not in reader.names
    model = load(pivot, dtype=torch.bfloat16)
    perm = model.get_submodule(Q_PROJ).lowrank_perm
    assert isinstance(perm, torch.Tensor) and perm.dtype == torch.int32
    assert torch.equal(perm, reader.tensor(Q_PROJ + ".lowrank_perm"))
    assert model.get_submodule("model.layers.0.mlp.gate_proj").lowrank_perm is None
    load(pivot).save_pretrained(tmp_path / "again")
    again = CheckpointReader(tmp_path / "again")
    assert (again.names, again.lowrank) == (reader.names, reader.lowrank)
    for name in reader.names:
        assert torch.equal(again.tensor(name), reader.tensor(name))
    tokens = torch.arange(8)[None]
    expected = tiny.factored("qwen2", rank=20)[0](tokens).logits
    torch.testing.assert_close(load(tmp_path / "again")(tokens).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("perm", [[0] * 64, list(range(1, 65)), list(range(63)), [-1, *range(63)]])
def test_order_that_is_no_permutation(pivot: Path, tmp_path: Path, perm: list[int]) -> None:
    folder = Path(shutil.copytree(pivot, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors[Q_PROJ + ".lowrank_perm"] = torch.tensor(perm, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"q_proj\.lowrank_perm is not a permutation of 64 rows in int32"):
        load(folder)


def test_pivot_rank_that_disagrees(pivot: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pivot, tmp_path / "m"))
    edit_lowrank(folder, ranks={**CheckpointReader(folder).ranks, Q_PROJ: 15})
    message = r"q_proj has pivot rows \(20, 64\) and coefficients \(44, 20\), but rank 15 in config\.json"
    with pytest.raises(InputError, match=message):
        load(folder)


def test_weights_that_config_names(factored: Path) -> None:
    """transformers would read another file than this package."""
    path = factored / "config.json"
    config = json.loads(path.read_text())
    for name, refused in (("model.safetensors", False), (None, False), ("other.safetensors", True), (["x"], True)):
        path.write_text(json.dumps({**config, "transformers_weights": name}))
        if not refused:
            CheckpointReader(factored)
            continue
        with pytest.raises(InputError, match=r"config.json says transformers_weights is .*; call the weights model"):
            CheckpointReader(factored)

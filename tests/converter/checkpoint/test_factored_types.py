"""A factored checkpoint elsewhere is refused; here it loads, saves and loads again, and so do folders of before."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter.checkpoint.factored_config import factored_config, plain_config
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.model.loading import load
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested

TOKENS = torch.arange(1, 20)[None]
AUTO = """
import sys
{first}
from transformers import {auto}
{auto}.from_pretrained(sys.argv[1])
"""


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def held_by(config: dict[str, Any]) -> Any:
    return config["quantization_config"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


@pytest.fixture(scope="module")
def factored(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    folder: Path = tmp_path_factory.mktemp("factored")
    tiny.save_factored(folder, "llama", rank=16, blocks=1)
    return folder


def elsewhere(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


BY_CLASS = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM
for folder in sys.argv[1:]:
    for given in ({}, {"config": LlamaConfig.from_pretrained(folder)}):
        try:
            LlamaForCausalLM.from_pretrained(folder, **given)
        except ValueError as error:
            print(error)
"""


def test_a_class_by_name_refuses_too(factored: Path, tmp_path: Path) -> None:
    """Not a model of random weights with a warning: of a folder as written here, and as transformers saves it again."""
    load(factored).save_pretrained(tmp_path / "again")
    done = elsewhere(BY_CLASS, factored, tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert [line.count("has no `quant_method` attribute") for line in done.stdout.splitlines()] == [1] * 4
    assert "newly initialized" not in done.stderr


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoConfig"])
def test_transformers_alone_refuses(auto: str, factored: Path) -> None:
    done = elsewhere(AUTO.format(first="", auto=auto), factored)
    assert done.returncode != 0 and "model type `lowrank_llama`" in done.stderr


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"])
def test_with_this_package_it_loads(auto: str, factored: Path) -> None:
    done = elsewhere(AUTO.format(first="import lowrank_export", auto=auto), factored)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr


def test_the_names_that_converters_go_by(factored: Path) -> None:
    """llama.cpp's converter looks the first architecture up in its table."""
    said = config(factored)
    assert (said["model_type"], said["architectures"]) == ("lowrank_llama", ["LowRankLlamaForCausalLM"])
    assert said["quantization_config"]["format"] == "lowrank" and "quant_method" not in said["quantization_config"]
    assert CheckpointReader(factored).config["model_type"] == "llama"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_saves(family: str, tiny: ModuleType, tmp_path: Path) -> None:
    made = tiny.save_factored(tmp_path / "m", family, rank=16, blocks=1)
    assert config(tmp_path / "m")["model_type"] == f"lowrank_{family}"
    loaded = load(tmp_path / "m")
    assert (type(loaded), loaded.config.model_type) == (type(made), family)
    loaded.save_pretrained(tmp_path / "again")
    assert config(tmp_path / "again")["model_type"] == f"lowrank_{family}"
    torch.testing.assert_close(logits(load(tmp_path / "again")), logits(made), rtol=0, atol=0)


def test_a_folder_of_before(factored: Path, tmp_path: Path) -> None:
    """Under the dense model's names and a `quant_method`, as earlier versions wrote it; its exports are the same."""
    folder = tmp_path / factored.name
    folder.mkdir()
    for file in factored.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(plain_config(config(factored))))
    said = config(folder)
    assert (said["model_type"], said["quantization_config"]["quant_method"]) == ("llama", "lowrank")
    torch.testing.assert_close(logits(load(folder)), logits(load(factored)), rtol=0, atol=0)
    for source in (factored, folder):
        export(source, tmp_path / f"{source.parent.name}.gguf", requested("gguf", "f32"))
    one, other = (tmp_path / f"{source.parent.name}.gguf" for source in (factored, folder))
    assert one.read_bytes() == other.read_bytes()


def test_copies_keep_the_name(factored: Path) -> None:
    said = load(factored).config
    for other in (copy.deepcopy(said), pickle.loads(pickle.dumps(said))):  # noqa: S301
        assert other.to_dict()["model_type"] == "lowrank_llama"
        del other.quantization_config
        assert other.to_dict()["model_type"] == "llama"


def test_names_there_and_back() -> None:
    held = {"quant_method": "lowrank", "ranks": {"a": 1}}
    plain = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 8,
        "quantization_config": held,
    }
    assert plain_config(factored_config(plain)) == plain
    assert factored_config(factored_config(plain)) == factored_config(plain)
    assert plain_config(plain) == plain
    foreign = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "format": "lowrank"}}
    assert plain_config(foreign) == foreign and factored_config(foreign)["quantization_config"] == held_by(foreign)
    assert plain_config({"model_type": ["llama"], "architectures": [1]}) == {
        "model_type": ["llama"],
        "architectures": [1],
    }

"""The block-by-block backward pass against autograd through the whole model at once."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.statistics.gathering import GRADIENT, ROWS, SIGMA, gather_fisher, gather_gradients
from lowrank_export.converter.statistics.gradients import backward_blocks
from lowrank_export.converter.statistics.store import Statistics

CPU = torch.device("cpu")


def blocks_of(path: Path) -> BlockSource:
    source = open_source(str(path), SilentProgress())
    return BlockSource(source.reader(), source.family, CPU, torch.float32)


def windows(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 320, (count, 12), generator=torch.Generator().manual_seed(5), dtype=torch.int32)


def whole_model_gradients(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Linear -> its inputs and output gradients (N, T, .), the loss summed over all next tokens of the text."""
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(name: str) -> object:
        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
            y.retain_grad()
            seen[name] = [arguments[0].detach(), y]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_hook(watch(name))
    with torch.enable_grad():
        logits = model(tokens.long()).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].long().flatten(), reduction="sum"
        )
        losses.backward()
    count, length = tokens.shape
    return {name: tuple(t.reshape(count, length, -1) for t in (x, y.grad)) for name, (x, y) in seen.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "opt"])
def test_is_autograd_through_the_whole_model(tiny: ModuleType, tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny.save_dense(tmp_path / "m", family, tied=tied)
    expected = whole_model_gradients(model, windows())
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    order = []
    observed: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def observe(linear: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
        observed.setdefault(linear, []).append((x, gradient.detach().clone()))

    for index in backward_blocks(blocks_of(tmp_path / "m"), windows(), None, observe, SilentProgress()):
        order.append(index)
        found.update({FAMILIES[family].linear_name(index, name): pairs for name, pairs in observed.items()})
        observed.clear()
    assert order == [1, 0] and found.keys() == expected.keys()
    for name, pairs in found.items():
        x, gradient = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        torch.testing.assert_close(x, expected[name][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, expected[name][1], rtol=1e-3, atol=1e-5)


def test_gathered_moments_are_those_of_drawn_labels(tiny: ModuleType, tmp_path: Path) -> None:
    """Many drawn labels: E[g] = 0 at the head, so G of different seeds agree while those of the text differ from it."""
    tiny.save_dense(tmp_path / "m", "llama")
    blocks = blocks_of(tmp_path / "m")
    stores = [Statistics(tmp_path / name) for name in "abc"]
    for store, seed in zip(stores, (0, 0, 1), strict=True):
        store.folder.mkdir()
        gather_gradients(blocks, windows(8), seed, store, SilentProgress())
    first, again, other = (store.read("gradients", 0, CPU) for store in stores)
    assert all(torch.equal(first[name], again[name]) for name in first)
    linears = set(blocks.family.linears)
    assert {name.removeprefix(GRADIENT) for name in first if name.startswith(GRADIENT)} == linears
    assert {name.removeprefix(SIGMA) for name in first if name.startswith(SIGMA)} == {
        group.name for group in blocks.family.groups
    }
    g, h = first[GRADIENT + "mlp.down_proj"], other[GRADIENT + "mlp.down_proj"]
    assert not torch.equal(g, h)
    assert float(g.trace()) == pytest.approx(float(h.trace()), rel=0.3)  # two samples of one expectation
    assert float(torch.linalg.eigvalsh(g).min()) > -1e-6 * float(g.trace())


def test_fisher_rows_are_squared_window_gradients(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.save_dense(tmp_path / "m", "llama")
    store = Statistics(tmp_path / "s")
    store.folder.mkdir()
    gather_fisher(blocks_of(tmp_path / "m"), windows(), store, SilentProgress())
    expected = torch.zeros(tiny.HIDDEN)
    weight = model.get_submodule("model.layers.1.self_attn.q_proj").weight
    for window in windows():
        model.zero_grad()
        with torch.enable_grad():
            logits = model(window[None].long()).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, window[1:].long(), reduction="sum").backward()
        expected += weight.grad.square().mean(dim=0)
    found = store.read("fisher", 1, CPU)[ROWS + "self_attn.q_proj"]
    torch.testing.assert_close(found.float(), expected / len(windows()), rtol=1e-3, atol=1e-7)


def test_gathering_again_reads_what_is_there(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama")
    store = Statistics(tmp_path / "s")
    store.folder.mkdir()
    gather_gradients(blocks_of(tmp_path / "m"), windows(), 0, store, SilentProgress())
    before = {file.name: file.stat().st_mtime_ns for file in store.folder.iterdir()}
    gather_gradients(blocks_of(tmp_path / "m"), windows(), 0, store, SilentProgress())
    assert before == {file.name: file.stat().st_mtime_ns for file in store.folder.iterdir()} and len(before) == 2

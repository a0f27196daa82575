"""Products of float32 matrices stay in float32, whatever the processor offers and the caller or environment allows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank_export
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.machine import float32
from lowrank_export.converter.machine.float32 import check_products, float32_products, float32_settings
from lowrank_export.runtime_tests.backends.torch_reference import open_torch

ROOT = Path(__file__).parents[3]
# operator -> where its two matrices stand among the arguments
MATRICES = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "linear": 0, "_linear_pointwise": 0}
ONEDNN = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()), reason="no oneDNN beside MKL"
)


class _Amx(TorchDispatchMode):
    """A processor with bfloat16 matrix units: oneDNN uses them for float32 matrices as soon as that is allowed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        first = MATRICES.get(func.overloadpacket.__name__)
        if first is not None and torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            args = [
                x.bfloat16().float() if first <= i < first + 2 and x.dtype == torch.float32 else x
                for i, x in enumerate(args)
            ]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def careless() -> Iterator[None]:
    """A program that has allowed everything, on such a processor."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with _Amx():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def error_bound(a: Tensor, b: Tensor) -> Tensor:
    """What float32 can be away from A B, in any order of summation: k u |A| |B|, elementwise, with u = 2^-24."""
    k = a.shape[-1]
    return k * 2**-24 / (1 - k * 2**-24) * (a.double().abs() @ b.double().abs())


def test_the_stand_in_for_such_a_processor_rounds(careless: None) -> None:
    """Else the tests below could not fail."""
    a, b = torch.randn(64, 576), torch.randn(576, 64)
    exact = a.double() @ b.double()
    assert ((a @ b - exact).abs() > error_bound(a, b)).any()
    with float32_settings():
        assert ((a @ b - exact).abs() <= error_bound(a, b)).all()


def test_a_compression_never_rounds(models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Forwards, gradients, moments, whitening, fits and descent: the same bytes."""
    recipe = Recipe(
        method="loss-aware",
        refine="block",
        model=str(models / "dense"),
        calibration=str(models / "text.txt"),
        windows=2,
        held_out=1,
        window_length=16,
        gradient_windows=1,
        refine_epochs=1,
        rank_multiple=4,
        activations="float32",
    )
    lowrank_export.compress(recipe, tmp_path / "plain", device="cpu")
    request.getfixturevalue("careless")
    lowrank_export.compress(recipe, tmp_path / "careless", device="cpu")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "careless" / file.name).read_bytes(), file.name


def test_the_reference_of_a_validation_never_rounds(models: Path, request: pytest.FixtureRequest) -> None:
    backend = open_torch(models / "dense")
    tokens = torch.arange(40).numpy()
    plain = backend.window_logits(tokens)
    request.getfixturevalue("careless")
    assert (backend.window_logits(tokens) == plain).all()
    backend.close()


def test_settings_are_forced_and_put_back() -> None:
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    found = [setting.fp32_precision for setting in settings]
    torch.set_float32_matmul_precision("medium")  # TF32 on CUDA, bfloat16 on the CPU
    allowed = [setting.fp32_precision for setting in settings]
    try:
        with pytest.raises(KeyError), float32_products("cpu"):
            assert [setting.fp32_precision for setting in settings] == ["ieee", "ieee"]
            raise KeyError
        assert [setting.fp32_precision for setting in settings] == allowed == ["tf32", "bf16"]
    finally:
        for setting, value in zip(settings, found, strict=True):
            setting.fp32_precision = value


@pytest.mark.parametrize("name", float32.PRODUCTS)
@pytest.mark.parametrize("bits", [8, 11], ids=["bfloat16", "tf32"])
def test_a_device_that_rounds_all_the_same_is_refused(name: str, bits: int) -> None:
    """As with `NVIDIA_TF32_OVERRIDE=1`."""

    def rounded(a: Tensor, b: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(a)
        return float32.PRODUCTS[name](torch.ldexp((mantissa * 2**bits).round(), exponent - bits), b)

    check_products("cpu")
    with pytest.raises(ResourceError, match=f"cpu: a product of float32 {name} .*unset .*NVIDIA_TF32_OVERRIDE"):
        check_products("cpu", {**float32.PRODUCTS, name: rounded})


@ONEDNN
@pytest.mark.parametrize("bias", [True, False])
def test_linears_on_onednn(bias: bool) -> None:
    """Value and gradients are those of float32: within its error of the same in float64."""
    source = torch.Generator().manual_seed(0)
    x, weight, g = (
        torch.randn(*shape, generator=source, requires_grad=True)
        for shape in ((2, 150, 576), (173, 576), (2, 150, 173))
    )
    b = torch.randn(173, generator=source, requires_grad=True) if bias else None
    with float32_products("cpu", fast=True):
        y = nn.functional.linear(x, weight, b)
        assert "_LinearBackward" in type(y.grad_fn).__name__
        y.backward(g)
        with torch.no_grad():
            assert torch.equal(nn.functional.linear(x, weight, b), y)
    rows, gradient = x.detach().flatten(0, 1), g.detach().flatten(0, 1)
    added = 0 if b is None else b.detach().double()
    for found, left, right, plus in (
        (y.detach().flatten(0, 1), rows, weight.detach().T, added),
        (x.grad.flatten(0, 1), gradient, weight.detach(), 0),
        (weight.grad, gradient.T, rows, 0),
    ):
        exact = left.double() @ right.double() + plus
        assert ((found - exact).abs() <= error_bound(left, right) + exact.abs() * 2**-23).all()
    if b is not None:
        torch.testing.assert_close(b.grad, gradient.double().sum(0).float())


@ONEDNN
def test_linears_that_stay_with_pytorch() -> None:
    """Small ones, other types, and whatever autocast multiplies in bfloat16."""
    x, weight = torch.randn(300, 576, requires_grad=True), torch.randn(173, 576)
    with float32_products("cpu", fast=True):
        for y in (nn.functional.linear(x[:20], weight), nn.functional.linear(x.double(), weight.double())):
            assert "_LinearBackward" not in type(y.grad_fn).__name__
        with torch.autocast("cpu", torch.bfloat16):
            assert nn.functional.linear(x, weight).dtype == torch.bfloat16


def test_nothing_else_speaks_of_precision() -> None:
    """One file sets it, and to float32."""
    allowing = ("fp32_precision", "allow_tf32", "float32_matmul_precision", "set_flags")
    files = [file for part in ("converter", "exporters", "runtime_tests") for file in (ROOT / part).rglob("*.py")]
    speaking = [file for file in files if any(word in file.read_text(encoding="utf-8") for word in allowing)]
    assert speaking == [ROOT / "converter" / "machine" / "float32.py"]
    assigned = re.findall(r"fp32_precision = (.*)", speaking[0].read_text(encoding="utf-8"))
    assert assigned == ['"ieee"', "value"]  # and what it was before

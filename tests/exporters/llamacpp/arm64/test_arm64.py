"""Factored files on emulated arm64 processors, with and without their integer dot products, against x86-64."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import gguf_families
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.importance import export_imatrix
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend
from lowrank_export.runtime_tests.gates.gate_file import parity_defaults
from lowrank_export.runtime_tests.metrics.parity import divergence

# Rows of 256, which every type fits
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_key_value_heads": 4}
TOKENS = np.random.default_rng(0).integers(0, 320, 24).astype(np.int32)
COUNTS = (21, 1, 1, 1)  # a prompt that no kernel's block divides, then tokens one by one
BUILDS = ("armv8.0", "dotprod", "i8mm")
EVERY_FAMILY = ("q8_0", "q4_0", "q4_k_m")
# Both sides multiply the same integers. Sums of float32 in another order can round an activation to the neighboring
# 8-bit value; all of them rounded anew is what the gate of q8_0 allows.
ACTIVATIONS = parity_defaults("gguf", "q8_0")["parity.mean_kld"]
FILES = [(family, type) for family in gguf_families() for type in EVERY_FAMILY]
FILES += [("llama", type) for type in TYPES if type not in EVERY_FAMILY]

Settings = Literal["exact", "default"]
Exported = Callable[..., tuple[Path, NDArray[np.float32]]]

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("llama_cpp_runtime")]


def x86_logits(path: Path, settings: Settings) -> NDArray[np.float32]:
    backend = LlamaCppBackend(path, n_ctx=32, exact=settings == "exact")
    try:
        return backend.window_logits(TOKENS)
    finally:
        backend.close()


def mean_kld(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    return float(divergence(reference[:-1], logits[:-1], TOKENS[1:]).kld.mean())


@pytest.fixture(scope="session")
def exported(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Family, type, layout and settings of the runtime -> a factored file, made once, and its logits on x86-64."""

    @cache
    def checkpoint(family: str, layout: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{family}-{layout}")
        rank, seed = 128 if layout == "pivot" else None, list(gguf_families()).index(family)
        tiny.save_factored(folder / "in", family, layout=layout, rank=rank, seed=seed, **WIDE)
        return folder

    @cache
    def imatrix(folder: Path) -> Path:
        (folder / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
        (folder / "in" / "calibration.json").write_text('{"windows": 8, "window_length": 64}', encoding="utf-8")
        out = folder / "imatrix.gguf"
        export_imatrix(folder / "in", out, text=str(folder / "notes.txt"), force=False, progress=SilentProgress())
        return out

    @cache
    def make(
        family: str, type: str, layout: str = "two-factor", settings: Literal["exact", "default"] = "exact"
    ) -> Any:
        folder = checkpoint(family, layout)
        rounding = Rounding(imatrix=imatrix(folder)) if type in TYPES and TYPES[type].importance else None
        path = folder / f"{type}-{settings}.gguf"
        export(folder / "in", path, requested("gguf", type, rounding=rounding))
        return path, x86_logits(path, settings)

    return make


@pytest.fixture
def compare(
    cross: ModuleType, programs: Path, exported: Exported, measured: dict[str, dict[str, float]]
) -> Callable[..., None]:
    """Run a file in a build on its emulated processor, and hold its logits against those of x86-64."""

    def run(name: str, family: str, type: str, *options: str, threads: int = 1) -> None:
        path, reference = exported(family, type, *options)
        build = next(build for build in cross.BUILDS if build.name == name)
        settings = options[1] if options[1:] else "exact"
        program = programs / name
        logits, about = cross.logits(program, build.cpu, path, TOKENS, COUNTS, settings=settings, threads=threads)
        features = {feature.split(" = ")[0].strip() for feature in about.split("|")[1:]}
        assert about.startswith("lowrank = 2 ") and features & cross.KERNELS == set(build.features)
        measured[" ".join([family, type, *options])][name] = kld = mean_kld(reference, logits)
        assert kld < min(parity_defaults("gguf", type)["parity.mean_kld"], ACTIVATIONS)

    return run


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("family", "type"), FILES)
def test_logits_are_those_of_x86(compare: Callable[..., None], family: str, type: str, build: str) -> None:
    compare(build, family, type)


@pytest.mark.parametrize("build", BUILDS)
def test_pivot_layout(compare: Callable[..., None], build: str) -> None:
    compare(build, "llama", "q8_0", "pivot", threads=2)


@pytest.mark.parametrize("build", BUILDS)
def test_float16_cache_and_flash_attention(compare: Callable[..., None], build: str) -> None:
    """As an app runs it."""
    compare(build, "llama", "q8_0", "two-factor", "default", threads=2)


def test_the_limit_tells_one_file_from_another(exported: Exported) -> None:
    (_, eight_bits), (_, four_bits) = exported("llama", "q8_0"), exported("llama", "q4_0")
    assert mean_kld(eight_bits, four_bits) > ACTIVATIONS


@pytest.mark.parametrize(("build", "lesser"), [("dotprod", "cortex-a53"), ("i8mm", "cortex-a76")])
def test_the_instructions_are_really_used(
    cross: ModuleType, programs: Path, exported: Exported, build: str, lesser: str
) -> None:
    """On a processor that lacks them the program ends by SIGILL."""
    path, _ = exported("llama", "q8_0")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        cross.logits(programs / build, lesser, path, TOKENS, COUNTS)
    assert caught.value.returncode == -signal.SIGILL

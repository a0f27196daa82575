"""Which builds of llama.cpp to try, best first, and how to go down from one that fails its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...converter.core.errors import ResourceError
from .processor import Processor
from .proof import Proof


@dataclass(frozen=True)
class Rung:
    """One way to build.

    Attributes:
        name: short; also of the folder that it is built in.
        left_out: what this build does without, for people; empty for the first.
        options: for CMake, beside those that all builds share.
        repacked: what is left out works on repacked weights alone (True), on others alone (False), or on both (None);
            see `Proof.repacked`.
    """

    name: str
    left_out: str
    options: tuple[str, ...]
    repacked: bool | None = None


NATIVE = Rung("native", "", ("-DGGML_NATIVE=ON",))
# -march=native brings AMX along, and CMake has no option against it: ggml has that code where this macro is defined.
AMX_OFF = ("-DCMAKE_C_FLAGS_INIT=-U__AMX_INT8__", "-DCMAKE_CXX_FLAGS_INIT=-U__AMX_INT8__")
REPACK_OFF, LLAMAFILE_OFF = "-DGGML_CPU_REPACK=OFF", "-DGGML_LLAMAFILE=OFF"
PORTABLE = "-DGGML_NATIVE=OFF"
V2, V3 = ("SSE42",), ("AVX", "AVX2", "FMA", "F16C", "BMI2")  # ggml's options; x86-64-v3 is both
V3_FEATURES = frozenset({"avx", "avx2", "fma", "f16c", "bmi2"})


def rungs(processor: Processor) -> tuple[Rung, ...]:
    """The builds worth trying on a processor, best first: no two are the same there."""
    amx = "amx_int8" in processor.features
    native = (*NATIVE.options, *AMX_OFF) if amx else NATIVE.options
    found = [NATIVE]
    if amx:
        found.append(Rung("no-amx", "AMX", native, repacked=True))
    found.append(Rung("no-repack", "AMX and repacking" if amx else "repacking", (*native, REPACK_OFF), repacked=True))
    found.append(Rung("no-llamafile", "llamafile's kernels", (*NATIVE.options, LLAMAFILE_OFF), repacked=False))
    return (*found, *_portable(processor))


def _portable(processor: Processor) -> Iterator[Rung]:
    """Builds that do not ask which processor this is; the last has none of the special kernels."""
    machine = processor.machine.lower()
    if machine in ("x86_64", "amd64"):
        if processor.features >= V3_FEATURES:
            yield Rung("x86-64-v3", "what x86-64-v3 lacks", (PORTABLE, *_switched(V2, "ON"), *_switched(V3, "ON")))
        options = (PORTABLE, *_switched(V2, "ON"), *_switched(V3, "OFF"), REPACK_OFF, LLAMAFILE_OFF)
        yield Rung("x86-64-v2", "what x86-64-v2 lacks, repacking and llamafile's kernels", options)
    elif machine in ("aarch64", "arm64"):
        if "asimddp" in processor.features:
            arch = "armv8.2-a+dotprod"
            yield Rung("armv8.2-dotprod", f"what {arch} lacks", (PORTABLE, f"-DGGML_CPU_ARM_ARCH={arch}"))
        options = (PORTABLE, "-DGGML_CPU_ARM_ARCH=armv8-a", REPACK_OFF, LLAMAFILE_OFF)
        yield Rung("armv8", "what armv8-a lacks, repacking and llamafile's kernels", options)
    else:
        left_out = "what is this processor's own, repacking and llamafile's kernels"
        yield Rung("portable", left_out, (PORTABLE, REPACK_OFF, LLAMAFILE_OFF))


def _switched(names: Sequence[str], value: str) -> tuple[str, ...]:
    return tuple(f"-DGGML_{name}={value}" for name in names)


@dataclass(frozen=True)
class Built:
    """A build that passed its proof.

    Attributes:
        site: where it lies.
        rung: how it was built.
        proof: what it passed.
        failed: builds before it, and how they failed.
    """

    site: Path
    rung: Rung
    proof: Proof
    failed: tuple[tuple[Rung, Proof], ...]

    @property
    def because(self) -> str:
        """Why something was left out: how the first build failed. Empty where nothing was."""
        return self.failed[0][1].summary() if self.failed else ""


def descend(
    ladder: Sequence[Rung],
    build: Callable[[Rung], Path],
    prove: Callable[[Path], Proof],
    note: Callable[[str], None],
) -> Built:
    """Build and prove, from the top down, until a build passes.

    Where no failure is left without repacked weights, what works on those (AMX) is left out; else something else is.

    Args:
        ladder: at least one rung.
        build: makes one of them.
        prove: runs it.
        note: receives a line: what is left out next, and why.

    Raises:
        ResourceError: none passes; says what each failed at.
    """
    failed: list[tuple[Rung, Proof]] = []
    for rung in ladder:
        if failed and rung.repacked not in (None, failed[-1][1].repacked):
            continue
        if failed:
            note(f"llama.cpp runtime: building again without {rung.left_out}, because of {failed[-1][1].summary()}")
        site = build(rung)
        proof = prove(site)
        if proof.passed:
            return Built(site, rung, proof, tuple(failed))
        failed.append((rung, proof))
    said = "; ".join(f"{rung.name}: {proof.summary()}" for rung, proof in failed)
    raise ResourceError(
        f"llama.cpp runtime: no build computes what it should on this processor ({said}); "
        "try another compiler: CC=clang CXX=clang++ lowrank-export runtime build"
    )

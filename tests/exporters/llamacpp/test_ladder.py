"""Which builds are tried, in which order, and after which failures: nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.exporters.llamacpp.ladder import NATIVE, V3_FEATURES, Rung, descend, rungs
from lowrank_export.exporters.llamacpp.processor import Processor
from lowrank_export.exporters.llamacpp.proof import Failure, Proof

GOOD = Proof(4, 1.0, (), {"f32": 0.1})


def failing(*, repacked: bool, kind: str = "q8_0") -> Proof:
    failure = Failure(kind, "dense", 2, 1, "illegal instruction (SIGILL)")
    return Proof(4, 1.0, (failure,), {}, repacked)


def processor(machine: str, *features: str) -> Processor:
    return Processor("a processor", machine, frozenset(features), "")


XEON = processor("x86_64", *V3_FEATURES, "amx_int8", "amx_tile")
EPYC = processor("x86_64", *V3_FEATURES)
EVERYWHERE = {
    ("xeon", XEON): ["native", "no-amx", "no-repack", "no-llamafile", "x86-64-v3", "x86-64-v2"],
    ("epyc", EPYC): ["native", "no-repack", "no-llamafile", "x86-64-v3", "x86-64-v2"],
    ("old", processor("x86_64", "sse4_2", "avx")): ["native", "no-repack", "no-llamafile", "x86-64-v2"],
    ("phone", processor("aarch64", "asimddp", "i8mm")): [
        "native",
        "no-repack",
        "no-llamafile",
        "armv8.2-dotprod",
        "armv8",
    ],
    ("board", processor("aarch64", "asimd")): ["native", "no-repack", "no-llamafile", "armv8"],
    ("another", processor("riscv64")): ["native", "no-repack", "no-llamafile", "portable"],
}


@pytest.mark.parametrize(("case", "names"), EVERYWHERE.items(), ids=lambda value: value[0])
def test_rungs_of_processors(case: tuple[str, Processor], names: list[str]) -> None:
    found = rungs(case[1])
    assert [rung.name for rung in found] == names and found[0] == NATIVE
    assert len({rung.options for rung in found}) == len(found)
    assert all(rung.left_out for rung in found[1:])
    for (
        rung
    ) in found:  # each says for itself whether it is native: what a build before it left in the folder is no matter
        assert sum(option.startswith("-DGGML_NATIVE=") for option in rung.options) == 1


class Ladder:
    """Builds that are only names, and what their proofs give."""

    def __init__(self, **proofs: Proof) -> None:
        self.proofs = proofs
        self.built: list[str] = []
        self.notes: list[str] = []

    def descend(self, machine: Processor) -> Rung:
        built = descend(rungs(machine), self.build, self.prove, self.notes.append)
        assert built.site == Path(built.rung.name) and built.proof.passed
        self.because = built.because
        return built.rung

    def build(self, rung: Rung) -> Path:
        self.built.append(rung.name)
        return Path(rung.name)

    def prove(self, site: Path) -> Proof:
        return self.proofs.get(str(site).replace("-", "_").replace(".", "_"), GOOD)


def test_a_good_build_is_the_only_one() -> None:
    ladder = Ladder()
    assert ladder.descend(XEON) == NATIVE
    assert (ladder.built, ladder.notes, ladder.because) == (["native"], [], "")


def test_amx_is_left_out_where_it_is_to_blame() -> None:
    ladder = Ladder(native=failing(repacked=True))
    assert ladder.descend(XEON).name == "no-amx" and ladder.built == ["native", "no-amx"]
    assert ladder.because == "illegal instruction (SIGILL) in q8_0 (first dense, prompt of 2 on 1 thread)"
    assert ladder.notes == [f"llama.cpp runtime: building again without AMX, because of {ladder.because}"]


def test_what_fails_without_repacked_weights_too_is_not_met_by_leaving_amx_out() -> None:
    ladder = Ladder(native=failing(repacked=False, kind="f16"))
    assert ladder.descend(XEON).name == "no-llamafile" and ladder.built == ["native", "no-llamafile"]


def test_down_to_the_last() -> None:
    bad = {"native": failing(repacked=True), "no_amx": failing(repacked=True), "no_repack": failing(repacked=False)}
    ladder = Ladder(**bad, no_llamafile=failing(repacked=False), x86_64_v3=failing(repacked=False, kind="f32"))
    assert ladder.descend(XEON).name == "x86-64-v2"
    assert ladder.built == ["native", "no-amx", "no-repack", "no-llamafile", "x86-64-v3", "x86-64-v2"]
    assert "SIGILL) in f32" in ladder.notes[-1] and len(ladder.notes) == 5
    assert "in q8_0" in ladder.because  # why the best build did not do


def test_no_build_passes() -> None:
    ladder = Ladder(**dict.fromkeys(("native", "no_llamafile", "armv8"), failing(repacked=False)))
    with pytest.raises(
        ResourceError, match=r"no build computes .* \(native: illegal .*; armv8: .*CXX=clang\+\+"
    ) as caught:
        ladder.descend(processor("aarch64"))
    assert "\n" not in str(caught.value)

"""What is kept beside a build, and builds of other processors in the same cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_export.exporters.llamacpp.ladder import NATIVE, Built, Rung
from lowrank_export.exporters.llamacpp.processor import Processor
from lowrank_export.exporters.llamacpp.proof import Failure, Proof
from lowrank_export.exporters.llamacpp.record import (
    NAME,
    compilers_of,
    other_processors,
    read_record,
    write_record,
)

XEON = Processor("Xeon", "x86_64", frozenset({"avx2", "amx_int8"}), "xeon")
EPYC = Processor("EPYC", "x86_64", frozenset({"avx2", "avx512f"}), "epyc")
GOOD = Proof(252, 3.5, (), {"f32": 0.1})
BAD = Proof(252, 3.5, (Failure("q8_0", "dense", 2, 1, "illegal instruction (SIGILL)"),), {}, True)
GCC = {"C": "GNU 12.2.0", "CXX": "GNU 12.2.0"}


def build(folder: Path, processor: Processor) -> Path:
    folder.mkdir(parents=True)
    write_record(Built(folder, NATIVE, GOOD, ()), processor, GCC)
    return folder


def test_round_trip_and_words(tmp_path: Path) -> None:
    rung = Rung("no-amx", "AMX", ("-DX=ON",), repacked=True)
    written = write_record(Built(tmp_path, rung, GOOD, ((NATIVE, BAD),)), XEON, GCC)
    assert read_record(tmp_path) == written
    assert list(written.lines()) == [
        "built no-amx by GNU 12.2.0 for Xeon; proven by 252 prompts in 3.5 s",
        "built without AMX, because of illegal instruction (SIGILL) in q8_0 (first dense, prompt of 2 on 1 thread)",
    ]
    assert len(list(replace(written, left_out="", because="").lines())) == 1


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"rung": 1}', "\x00"])
def test_none_that_can_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / NAME).write_text(text)
    assert read_record(tmp_path) is None


def test_compilers_are_those_that_cmake_took(tmp_path: Path) -> None:
    folder = tmp_path / "CMakeFiles" / "3.25.1"
    folder.mkdir(parents=True)
    for language, name in (("C", "Clang"), ("CXX", "GNU")):
        lines = f'set(CMAKE_{language}_COMPILER "/usr/bin/x")\nset(CMAKE_{language}_COMPILER_ID "{name}")\n'
        lines += (
            f'set(CMAKE_{language}_COMPILER_VERSION "19.1.7")\nset(CMAKE_{language}_COMPILER_VERSION_INTERNAL "")\n'
        )
        (folder / f"CMake{language}Compiler.cmake").write_text(lines)
    assert compilers_of(tmp_path) == {"C": "Clang 19.1.7", "CXX": "GNU 19.1.7"}
    assert compilers_of(tmp_path / "none") == {}


def test_a_build_for_another_processor(tmp_path: Path) -> None:
    """Said where there is no other; a build of another version is none of this one's."""
    assert other_processors(tmp_path, "1.0", EPYC) == ""
    build(tmp_path / "2.0-a", XEON)
    assert other_processors(tmp_path, "1.0", EPYC) == ""
    build(tmp_path / "1.0-a", XEON)
    line = other_processors(tmp_path, "1.0", EPYC)
    assert (
        line == "the build in the cache is for another processor (Xeon); this one lacks amx_int8: this one gets its own"
    )
    assert other_processors(tmp_path, "1.0", XEON) == ""
    assert "lacks" not in other_processors(tmp_path, "1.0", replace(EPYC, features=XEON.features | {"more"}))
    build(tmp_path / "1.0-b", EPYC)
    assert other_processors(tmp_path, "1.0", EPYC) == ""

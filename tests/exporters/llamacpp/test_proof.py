"""The proof on the real library, good and broken: its processes are real, and die by real signals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.llamacpp import proof_process, proven, runtime
from lowrank_export.exporters.llamacpp.ladder import Rung
from lowrank_export.exporters.llamacpp.processor import Processor
from lowrank_export.exporters.llamacpp.proof import PROMPTS, SETTINGS, Failure, Proof, prove
from lowrank_export.exporters.llamacpp.proof_child import Run
from lowrank_export.exporters.llamacpp.proof_models import LAYOUTS, TYPES
from lowrank_export.exporters.llamacpp.proof_process import lost_runs

Broken = Callable[..., Path]
SIGILL = "os.kill(os.getpid(), signal.SIGILL)"


def small(site: Path, *kinds: str, layouts: tuple[str, ...] = ("dense",)) -> Proof:
    return prove(site, SilentProgress(), kinds=kinds, layouts=layouts)


def test_the_build_of_this_machine(llama_cpp_runtime: Path) -> None:
    """Every type and layout, with room to what is allowed."""
    proof = prove(llama_cpp_runtime, SilentProgress())
    assert proof.passed and proof.summary() == "", list(proof.lines())
    assert proof.runs == len(TYPES) * len(LAYOUTS) * len(SETTINGS) * len(PROMPTS)
    assert set(proof.worst) == set(TYPES) and max(proof.worst.values()) < 0.8


def test_a_signal_in_one_type(broken: Broken, tmp_path: Path) -> None:
    """As AMX tiles without a shape: a single token runs, the first prompt dies; other types go on."""
    site = broken(tmp_path, "q8_0", fault=SIGILL, tokens=2, repacked=True)
    proof = small(site, "f32", "q8_0", "q4_0", layouts=("dense", "factored"))
    assert [(one.kind, one.layout, one.tokens, one.threads) for one in proof.failures] == [
        ("q8_0", "dense", 2, 1),
        ("q8_0", "factored", 2, 1),
    ]
    assert {one.what for one in proof.failures} == {"illegal instruction (SIGILL)"} and proof.repacked
    assert proof.worst["f32"] < 1 and proof.worst["q4_0"] < 1
    assert proof.summary() == "illegal instruction (SIGILL) in q8_0 (first dense, prompt of 2 on 1 thread)"
    assert any("FAILED: q8_0 factored, prompt of 2" in line for line in proof.lines())


def test_wrong_logits(broken: Broken, tmp_path: Path) -> None:
    """One logit of one position is off or no number, from the third prompt on; with and without repacked weights."""
    wrong = "(3.0 if 'bf16' in given['model'] else float('nan'))"
    proof = small(broken(tmp_path, "-dense", tokens=33, wrong=wrong), "f16", "bf16")
    found = [(one.kind, one.tokens, one.what) for one in proof.failures]
    assert found == [("f16", 33, "wrong logits"), ("bf16", 33, "wrong logits")]
    assert not proof.repacked and min(proof.worst.values()) > 1
    json.loads(json.dumps(proof.to_json(), allow_nan=False))


def test_other_ends(broken: Broken, tmp_path: Path) -> None:
    """Each in one type: an assertion, an exit, an error of Python's."""
    ends = {
        "f32": 'os.write(2, b"ggml.c:1: GGML_ASSERT(x) failed\\n"), os.abort()',
        "f16": "os._exit(0)",
        "bf16": "raise RuntimeError('no')",
    }
    chosen = f"exec({ends!r}[given['model'].partition('-')[0]])"
    found = small(broken(tmp_path, "-dense", fault=chosen), *ends).failures
    assert [one.what for one in found] == ["aborted (SIGABRT)", "an end before its time", "an error"]
    assert found[0].detail.endswith("GGML_ASSERT(x) failed") and found[2].detail == "RuntimeError: no"


def test_a_hang_has_an_end(broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_process, "SECONDS", 2.0)
    site = broken(tmp_path, "f32", fault="__import__('time').sleep(600)")
    assert [one.what for one in small(site, "f32").failures] == ["no end within 2 s"]


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    """A library that it needs is missing: no other build would load. One that dies while it loads fails its proof."""
    package, run = tmp_path / "llama_cpp", Run("none.gguf", 1, 1, True)
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libomp.so: no such file')\n")
    with pytest.raises(ResourceError, match=r"does not load: OSError: libomp\.so: no such file"):
        list(lost_runs(tmp_path, [run], tmp_path, lambda _: None))
    (package / "__init__.py").write_text(f"import os, signal\n{SIGILL}\n")
    found = list(lost_runs(tmp_path, [run], tmp_path, lambda _: None))
    assert found == [(run, ("illegal instruction (SIGILL)", ""))]


def test_models_that_cannot_be_made_are_not_held_against_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_process, "MODELS", "no_such_module")
    with pytest.raises(ResourceError, match=r"its proof could not be made: .*No module named"):
        small(tmp_path, "f32")


def test_want_of_memory_is_not_held_against_the_build(broken: Broken, tmp_path: Path) -> None:
    for name, fault in (("killed", "os.kill(os.getpid(), signal.SIGKILL)"), ("none", "raise MemoryError")):
        with pytest.raises(ResourceError, match=r"want of memory|no memory"):
            small(broken(tmp_path / name, "f32", fault=fault), "f32")


FAILED = Proof(1, 1.0, (Failure("f32", "dense", 1, 1, "wrong logits", "by far"),), {})
XEON = Processor("Xeon", "x86_64", frozenset({"amx_int8"}), "xeon")


def test_a_build_goes_down_the_ladder(
    cache: Path, broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling is made believe: with AMX a library dies in q8_0, without it is good. All else is as it is."""
    notes: list[str] = []

    class Told(SilentProgress):
        def note(self, message: str) -> None:
            notes.append(message)

    def compiled(folder: Path, log: Path, progress: object, rung: Rung) -> Path:
        good = {} if rung.name == "no-amx" else {"fault": SIGILL, "tokens": 2, "repacked": True}
        return broken(folder / rung.name, "q8_0", **good)

    monkeypatch.setattr(proven, "compile_runtime", compiled)
    monkeypatch.setattr(proven, "this_processor", lambda: XEON)
    monkeypatch.setattr(proven, "prove", lambda site, progress: small(site, "f32", "q8_0"))
    found = runtime.ensure_runtime(Told())
    assert found == runtime.find_runtime()
    record = runtime.runtime_record()
    assert record is not None and (record.rung, record.left_out, record.processor) == ("no-amx", "AMX", "Xeon")
    assert record.because.startswith("illegal instruction (SIGILL) in q8_0") and record.proof["passed"]
    assert len(notes) == 2 and notes[0].startswith("llama.cpp runtime: building again without AMX, because of illegal")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(result.stdout)["build"]["left_out"] == "AMX", result.stderr
    assert "built without AMX, because of illegal instruction (SIGILL) in q8_0" in result.stderr


def test_a_build_that_never_passes_gets_no_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "compile_runtime", lambda folder, log, progress, rung: folder / rung.name)
    monkeypatch.setattr(proven, "prove", lambda site, progress: FAILED)
    result = CliRunner().invoke(app, ["runtime", "build"])
    assert result.exit_code == 5 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: llama.cpp runtime: no build computes what it should")
    assert runtime.find_runtime() is None
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_check(cache: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a build that has become bad, say by a library that it is linked to."""
    invoke = CliRunner().invoke
    missing = invoke(app, ["runtime", "build", "--check"])
    assert missing.exit_code == 5 and "not built yet" in missing.stderr
    monkeypatch.setattr(runtime, "prove", lambda site, progress: small(site, "f32", "q8_0"))
    site = broken(cache / runtime.runtime_key(), "q8_0", fault=SIGILL)
    failed = invoke(app, ["runtime", "build", "--check", "--json"])
    assert failed.exit_code == 5 and "FAILED: q8_0 dense, prompt of 1 on 1 thread: illegal" in failed.stderr
    assert "runtime build --force" in failed.stderr.splitlines()[-1]
    found = json.loads(failed.stdout)["proof"]
    assert not found["passed"] and found["failures"][0]["what"] == "illegal instruction (SIGILL)"
    (site / "llama_cpp" / "lib").rmdir()
    (site / "llama_cpp" / "__init__.py").unlink()
    (site / "llama_cpp").rmdir()
    broken(site, "none")
    passed = invoke(app, ["runtime", "build", "--check", "--json"])
    assert passed.exit_code == 0 and json.loads(passed.stdout)["proof"]["passed"], passed.stderr
    assert invoke(app, ["runtime", "build", "--check", "--force"]).exit_code == 2

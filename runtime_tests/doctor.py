"""Is this installation able to do its work? What is there, what is missing, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..converter.core.errors import LowRankError
from ..converter.machine.device import check_gpu
from ..exporters.llamacpp.build import check_compiler
from ..exporters.llamacpp.record import Record
from ..exporters.llamacpp.runtime import find_runtime, runtime_record
from ..exporters.onnx.flavours import check_single_flavour, installed_flavours
from ..exporters.onnx.providers import SessionProbe, probe
from ..exporters.onnx.session import PROVIDERS
from .environment import library_versions, machine_facts


@dataclass(frozen=True)
class Findings:
    """What `diagnose` found.

    Attributes:
        versions, machine: as in reports.
        onnxruntime: installed ONNX Runtime distributions.
        providers: execution providers the installed ONNX Runtime was built with; a session may still not get them.
        sessions: provider asked for -> providers a tiny session really got, or why it got none.
        runtime: folder of the patched llama.cpp, or None.
        build: how it was built and proven; None where that is not known.
        problems: one line each, with what to do.
    """

    versions: dict[str, str]
    machine: dict[str, str | int]
    onnxruntime: list[str]
    providers: list[str]
    sessions: dict[str, str]
    runtime: str | None
    build: Record | None
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        build = self.build.to_json() if self.build else None
        return {**self.__dict__, "build": build, "ok": not self.problems}

    def lines(self) -> list[str]:
        """The findings for people."""
        lines = [f"{name} {version}" for name, version in self.versions.items()]
        lines += [f"{name}: {value}" for name, value in self.machine.items()]
        lines.append(f"ONNX Runtime installed as: {', '.join(self.onnxruntime) or 'nothing'}")
        lines.append(f"ONNX Runtime built with: {', '.join(self.providers)}")
        lines += [f"ONNX Runtime session that asks for {asked}: {got}" for asked, got in self.sessions.items()]
        lines.append(f"llama.cpp runtime: {self.runtime or 'not built yet (built when first needed)'}")
        lines += [f"llama.cpp runtime: {line}" for line in (self.build.lines() if self.build else ())]
        lines += [f"PROBLEM: {problem}" for problem in self.problems] or ["no problems found"]
        return lines


def _check_gpus() -> None:
    """See that every GPU that PyTorch finds computes."""
    import torch

    for index in range(torch.cuda.device_count()):
        check_gpu(torch.device("cuda", index))


def diagnose() -> Findings:
    """Look at the installation. Nothing is changed, nothing is fetched."""
    problems = []
    runtime = find_runtime()
    for check in [check_single_flavour, _check_gpus, *([] if runtime else [check_compiler])]:
        try:
            check()
        except LowRankError as error:
            problems.append(str(error))
    probes: list[SessionProbe] = []
    try:
        import onnxruntime

        providers = list(onnxruntime.get_available_providers())
        probes = [probe(name) for name, full in PROVIDERS.items() if full in providers]
    except (ImportError, AttributeError) as error:
        providers = []
        problems.append(f"onnxruntime cannot be imported ({error}); reinstall it")
    problems += [f"{found.asked}: {found.error}" for found in probes if not found.got]
    return Findings(
        versions=library_versions(),
        machine=machine_facts(),
        onnxruntime=installed_flavours(),
        providers=providers,
        sessions={found.asked: ", ".join(found.got) or found.error for found in probes},
        runtime=str(runtime) if runtime else None,
        build=runtime_record(),
        problems=problems,
    )

"""What a figure depends on besides the model: the machine and the versions of everything that computed it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from ..converter.machine.memory import peak_memory

LIBRARIES = (
    "lowrank-export",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gguf",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
)


def library_versions() -> dict[str, str]:
    """Versions of Python, of the installed libraries that take part, and of the project's own llama.cpp build.

    Names what that build does without, where it failed its proof with it.
    """
    from ..exporters.llamacpp.runtime import runtime_record
    from ..exporters.llamacpp.source import VERSION

    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    record = runtime_record()
    lacks = f", without {record.left_out}" if record and record.left_out else ""
    versions["llama-cpp-python (patched)"] = VERSION + lacks
    return versions


def machine_facts() -> dict[str, str | int]:
    """CPU model, physical and logical cores, bytes of memory, operating system, and the GPU if torch sees one."""
    import psutil
    import torch

    from ..exporters.llamacpp.processor import this_processor

    facts: dict[str, str | int] = {
        "cpu": this_processor().name,
        "physical_cores": psutil.cpu_count(logical=False) or 0,
        "logical_cores": os.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def process_cost() -> dict[str, float | int]:
    """CPU seconds and peak resident memory of this process so far."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": peak_memory()}

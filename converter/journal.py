"""What a compression has finished, kept beside its output: an interrupted job resumes where it stopped.

Every file appears whole (see files.replacing), so that a kill or a power loss costs the block under way and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core.errors import InputError, UsageError
from .distributed.workers import ALONE, Workers
from .storage.claim import claim
from .storage.documents import parse_json
from .storage.files import parent_folder, remove, replacing

RECIPE, CALIBRATION, STATISTICS, REFINEMENT = "recipe.json", "calibration.json", "statistics", "refinement.safetensors"
START_OVER = "finish it with that, or start over with --force"


class Journal:
    """The folder of one unfinished job. Its processes all read it, and one of them writes.

    Attributes:
        folder: where it is.
        workers: the processes that share the job.
    """

    def __init__(self, folder: Path, workers: Workers = ALONE) -> None:
        self.folder = folder
        self.workers = workers

    @property
    def statistics(self) -> Path:
        """A folder for statistics of the dense model."""
        return self.folder / STATISTICS

    def claim(self, identity: Mapping[str, Any], *, force: bool) -> None:
        """Go on with what is kept if it is of the same recipe, source and versions.

        Args:
            identity: JSON-ready.
            force: forget what is of another.

        Raises:
            UsageError: it is of another, see `claim`.
        """
        try:
            claim(self.folder / RECIPE, identity, holds="an unfinished job", otherwise=START_OVER)
        except UsageError:
            if not force:
                raise
            remove(self.folder)
            self.folder.mkdir()
            claim(self.folder / RECIPE, identity, holds="an unfinished job", otherwise=START_OVER)

    def claim_calibration(self, identity: Mapping[str, Any]) -> None:
        """See `claim`: what was drawn from the calibration texts."""
        claim(self.folder / CALIBRATION, identity, holds="an unfinished job", otherwise=f"remove {self.folder}")

    def save_block(self, index: int, tensors: Mapping[str, Tensor], losses: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep a finished block.

        Args:
            index: its number.
            tensors: of the block in two factors, names inside the block.
            losses: linear -> its losses, JSON-ready.

        Raises:
            ResourceError: no space left.
        """
        if self.workers.is_main_process:
            _save(self._block(index), tensors, {"losses": json.dumps(losses)})

    def read_block(self, index: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]] | None:
        """Tensors and losses of a block that is finished.

        Raises:
            UsageError: the file is damaged.
        """
        found = self._read(self._block(index))
        if found is None:
            return None
        try:
            losses = parse_json(found[1]["losses"])
            return found[0], {str(name): dict(loss) for name, loss in losses.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self.damage(index) from None

    def damage(self, index: int) -> UsageError:
        """What to raise over a block that does not hold what it must."""
        return UsageError(f"{self._block(index)}: damaged; remove it, and the job makes it again")

    def save_refinement(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state of a refinement of the whole model.

        Raises:
            ResourceError: no space left.
        """
        if self.workers.is_main_process:
            _save(self.folder / REFINEMENT, tensors, {})

    def read_refinement(self) -> dict[str, Tensor] | None:
        """The state kept last.

        Raises:
            UsageError: the file is damaged.
        """
        found = self._read(self.folder / REFINEMENT)
        return None if found is None else found[0]

    def refinement_damage(self) -> UsageError:
        """What to raise over a state of another refinement."""
        return UsageError(f"{self.folder / REFINEMENT}: damaged; remove it, and the job makes it again")

    def holds_work(self) -> bool:
        """Whether anything is kept that took time."""
        return any(self.folder.rglob("*.safetensors"))

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What a file holds where the writer had made it when all came here."""
        return _read(path) if self.workers.broadcast_object(path.is_file) else None


@contextmanager
def unfinished(out: Path, workers: Workers = ALONE) -> Iterator[Journal]:
    """The journal of a job that makes `out`: removed when the job ends well, or by an error of its input.

    Args:
        out: the job's output.
        workers: the processes that share the job.

    Raises:
        UsageError: another process is at this job.
    """
    import filelock

    folder = _folder(out)
    if not workers.is_main_process:
        yield Journal(folder, workers)
        return
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: is not the folder of an unfinished job; remove it")
    with parent_folder(out):
        lock = filelock.FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(f"{out}: another process is making it; wait for it, or choose another name") from None
        try:
            known = folder.exists()
            folder.mkdir(exist_ok=True)
            journal = Journal(folder, workers)
            try:
                yield journal
            except InputError:
                remove(folder)  # the same input fails again
                raise
            except BaseException as error:
                if not known and (isinstance(error, UsageError) or not journal.holds_work()):
                    remove(folder)
                raise
            remove(folder)
        finally:
            lock.release()
            remove(folder.with_suffix(".lock"))


def forget_finished(out: Path) -> None:
    """Remove the journal of a job that was killed when its output was in place already, and its lock."""
    import filelock

    folder = _folder(out)
    made, begun = out, folder / RECIPE
    if not (made.exists() and begun.is_file() and made.stat().st_mtime > begun.stat().st_mtime):
        return
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    with suppress(filelock.Timeout):  # it lives, and is about to do so itself
        lock.acquire(timeout=0)
        try:
            remove(folder)
        finally:
            lock.release()
            remove(folder.with_suffix(".lock"))


def forget(out: Path) -> None:
    """Remove the journal of an unfinished job."""
    remove(_folder(out))


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, force=True, folder=False) as beside:
        save_file(stored, beside, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of a file, None where there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.clone(file.get_tensor(name)) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({error}); remove it, and the job makes it again") from None

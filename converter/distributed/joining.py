"""Joins the processes that torchrun started to one job, and takes them apart again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core.errors import AlreadyReportedError, LowRankError, UsageError, WorkerLostError

if TYPE_CHECKING:
    from .workers import Workers

PATIENCE = timedelta(hours=2)
"""Longer than the longest wait for one that lives: while the writer samples a text, or one process factors a linear on
a CPU. A process that died is noticed at once, by its closed connections and by torchrun."""

FIRST_RANK_GRACE_SECONDS = 30
"""Seconds that the others give the first to say what is wrong."""


def started() -> int:
    """How many processes torchrun started."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if "RANK" in os.environ and count.isdigit() else 1


def require_single_process(command: str) -> None:
    """For what one process does.

    Raises:
        UsageError: torchrun started several; AlreadyReportedError in all but the first of them.
    """
    if started() > 1:
        if os.environ["RANK"] != "0":
            with suppress(KeyboardInterrupt):  # torchrun ends all when one has ended; the first reports before that
                time.sleep(FIRST_RANK_GRACE_SECONDS)
            raise AlreadyReportedError(UsageError.exit_code)
        raise UsageError(f"{command}: is the work of one process; torchrun is for compress and statistics")


@contextmanager
def joined(device: str, threads: int | None = None) -> Iterator[Workers]:
    """This process among those that torchrun started, connected with each other; alone without torchrun.

    When one fails, the first that notices raises, the others end silently.

    Args:
        device: "auto", "cpu", "cuda".
        threads: of this process on the CPU; by default its share of the cores, alone PyTorch's own choice.

    Raises:
        UsageError: the environment does not say how to connect.
        WorkerLostError: another process is gone, or this one was stopped because of that.
    """
    import torch

    from .workers import ALONE, Workers

    if started() == 1:
        if threads is not None:
            torch.set_num_threads(threads)
        yield ALONE
        return
    import torch.distributed as dist

    # Its functions take the group of the moment they are defined in as a default. Imported later (transformers does),
    # they would keep the group, and its threads, alive until the interpreter ends, which then aborts now and then.
    import torch.distributed.nn.functional

    workers = Workers(int(os.environ["RANK"]), started(), int(os.environ.get("LOCAL_RANK", "0")))
    torch.set_num_threads(threads or _share_of_cores())
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(workers.local_index % torch.cuda.device_count())
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
        # with --max-restarts the store still holds what the attempt before left there
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(restarts, store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=workers.index, world_size=workers.count, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the processes of torchrun cannot be connected ({str(error).splitlines()[0]})") from None
    with _reported_once(store):
        yield workers
        workers.barrier()  # for the writer's last file
    dist.destroy_process_group()


def _share_of_cores() -> int:
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def _reported_once(store: Any) -> Iterator[None]:
    """Let one process only report a failure: the first, which is the one that knows its cause."""
    stopping = False

    def stop_requested(*_: object) -> None:  # by torchrun, when another process has ended
        nonlocal stopping
        stopping = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop_requested)
    try:
        yield
    except BaseException as error:
        before = signal.SIG_IGN  # it ends already
        signal.signal(signal.SIGTERM, before)
        first = True
        with suppress(Exception):  # its host may be what is gone
            first = store.add("failed", 1) == 1
        if not first:
            raise AlreadyReportedError(error.exit_code if isinstance(error, LowRankError) else 1) from None
        if stopping:
            raise WorkerLostError(
                "told to stop, because another worker of this job is gone or the job was canceled; "
                "the same command goes on"
            ) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

"""Options of most commands: where they run, how much memory they may take, what they may replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..storage.byte_size import MemoryLimits, device_limit, memory_limit
from .option_groups import Command, Option, option_group

RUNNING = "Running"  # panel of --help

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUNNING)]
ProcessThreads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads of a process. Default: its share of the cores.", rich_help_panel=RUNNING),
]
Statistics = Annotated[
    Path | None,
    typer.Option(
        help="Keep statistics of the dense model here, for other methods, retentions and sizes.",
        rich_help_panel=RUNNING,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Largest memory of this process: 8GB, 512MiB; what is beyond it goes to the disk or is refused.",
        metavar="SIZE",
        rich_help_panel=RUNNING,
    ),
]
MeasuredMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Largest memory of a compression: 8GB, 512MiB. Refused if the dense model, which is measured, is larger.",
        metavar="SIZE",
        rich_help_panel=RUNNING,
    ),
]
MaxDeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Largest memory on the GPU: 8GB, 512MiB. Default: what is free there. What is beyond it goes to this "
        "machine's memory or the disk, or is refused.",
        metavar="SIZE",
        rich_help_panel=RUNNING,
    ),
]
Running = dict[str, Any]
"""Values of `running_options`."""


def running_options(kind: Literal["work", "measured"] = "work") -> Callable[[Command], Command]:
    """Give a command device and memory limits; their values reach its parameter `running`.

    Args:
        kind: "measured" where the dense model is measured besides, in memory.
    """

    def offered() -> Mapping[str, Option]:
        memory = MaxMemory if kind == "work" else MeasuredMemory
        return {"device": (Device, "auto"), "max_memory": (memory, None), "max_device_memory": (MaxDeviceMemory, None)}

    return option_group("running", offered)


def chosen_limits(running: Running) -> MemoryLimits:
    """The limits that were asked for.

    Raises:
        UsageError: no size.
    """
    return MemoryLimits(memory_limit(running["max_memory"]), device_limit(running["max_device_memory"]))

"""Who does what, and what one process alone does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import ResourceError, UsageError
from lowrank_export.converter.distributed.workers import ALONE, Parcel, Workers
from lowrank_export.converter.machine import device
from lowrank_export.converter.statistics.moments import Moment

CPU = torch.device("cpu")


@settings(max_examples=50, deadline=None)
@given(items=st.integers(0, 40), count=st.integers(1, 9), larger_first=st.booleans())
def test_parts_are_all_of_it_in_order_and_even(items: int, count: int, larger_first: bool) -> None:
    parts = [Workers(index, count).part(range(items), larger_first=larger_first) for index in range(count)]
    assert [item for part in parts for item in part] == list(range(items))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if items % count:
        assert len(parts[0 if larger_first else -1]) == max(sizes)


@settings(max_examples=50, deadline=None)
@given(costs=st.lists(st.floats(0.1, 100), max_size=12), count=st.integers(1, 5))
def test_owners_are_near_the_best_balance(costs: list[float], count: int) -> None:
    """No process has more to do than the mean and one task (Graham 1966)."""
    tasks = dict(enumerate(costs))
    owners = Workers(0, count).owners(tasks)
    assert owners.keys() == tasks.keys() and set(owners.values()) <= set(range(count))
    assert owners == Workers(count - 1, count).owners(tasks)
    loads = [sum(cost for task, cost in tasks.items() if owners[task] == index) for index in range(count)]
    assert max(loads) <= sum(costs) / count + max(costs, default=0)


def test_alone_everything_is_as_it_was() -> None:
    tensor = torch.randn(3, 2)
    assert ALONE.is_main_process and ALONE.gathered(5) == [5] and ALONE.totals([1.5, 2]) == [1.5, 2]
    assert ALONE.broadcast_object(lambda: "text") == "text" and ALONE.main_process_first(lambda: 3) == 3
    assert ALONE.sent(Parcel({"x": tensor}, "said"), 0, CPU).tensors["x"] is tensor
    kept = tensor.clone()
    ALONE.all_reduce_(tensor)
    ALONE.broadcast_([tensor])
    assert torch.equal(tensor, kept)
    moment = Moment()
    moment.all_reduce_(2, ALONE, CPU)
    assert moment.total is None


def test_each_process_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device, "check_gpu", lambda gpu: None)
    second = Workers(5, 8, local_index=1)
    assert device.pick_device("auto", second) == device.pick_device("cuda", second) == torch.device("cuda:1")
    assert device.pick_device("cpu", second) == CPU and device.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="a GPU of its own"):
        device.pick_device("cuda:0", second)
    with pytest.raises(ResourceError, match="has 2 GPUs for more processes"):
        device.pick_device("auto", Workers(2, 8, local_index=2))

"""Speed: what is fed, in which order, and the arithmetic, on a clock that the test owns."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank_export.runtime_tests.timing import speed
from lowrank_export.runtime_tests.timing.speed import measure_speed

TOKENS = np.arange(14, dtype=np.int32)


class Clock:
    """Seconds that pass only when a backend works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedBackend:
    """Takes a fixed time per token and logs what it was fed."""

    def __init__(self, name: str, seconds: float, clock: Clock, log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log
        self.fed: list[int] = []

    def reset(self) -> None:
        self.fed = []

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        self.clock.now += self.seconds * len(tokens)
        self.fed.extend(tokens.tolist())
        self.log.append((self.name, len(tokens)))
        return np.zeros(3, np.float32)

    def window_logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        raise AssertionError("speed must not compute whole windows")

    def close(self) -> None: ...


def test_interleaved_rounds_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(speed, "perf_counter", clock)
    slow, fast = TimedBackend("a", 0.5, clock, log), TimedBackend("b", 0.25, clock, log)
    (first,), (second,) = measure_speed([slow, fast], TOKENS, prompts=[10], decode_tokens=4, threads=2)
    assert [entry for entry in log if entry[1] == 10] == [("a", 10), ("b", 10)] * 4  # one warm-up round
    assert slow.fed == fast.fed == TOKENS.tolist()
    assert (first.prefill.median, first.decode.median) == pytest.approx((2, 2))
    assert (second.prefill.median, second.decode.median) == pytest.approx((4, 4))
    assert (first.prompt_tokens, first.decode_tokens, first.repeats, first.threads) == (10, 4, 3, 2)


def test_median_and_spread_leave_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "perf_counter", clock)
    backend = TimedBackend("a", 100.0, clock, [])
    times = iter([100.0, 1.0, 0.5, 0.25])
    monkeypatch.setattr(backend, "reset", lambda: setattr(backend, "seconds", next(times)))
    ((found,),) = measure_speed([backend], TOKENS, prompts=[10], decode_tokens=4, threads=1)
    assert (found.prefill.lowest, found.prefill.median, found.prefill.highest) == pytest.approx((1, 2, 4))


def test_every_prompt_length(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(speed, "perf_counter", clock)
    (found,) = measure_speed(
        [TimedBackend("a", 0.5, clock, log)], TOKENS, prompts=[8, 12], decode_tokens=2, threads=1, repeats=1
    )
    assert [one.prompt_tokens for one in found] == [8, 12]
    assert [entry[1] for entry in log if entry[1] > 1] == [8, 8, 12, 12]


@pytest.mark.parametrize("prompt", [0, 14])
def test_impossible_lengths(prompt: int) -> None:
    with pytest.raises(ValueError, match="cannot time"):
        measure_speed([], TOKENS, prompts=[prompt], decode_tokens=1, threads=1)

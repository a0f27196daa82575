"""How artifacts are measured: device, threads, and what speed and text are measured with."""

from __future__ import annotations

from dataclasses import dataclass

from .metrics.tasks import Task

PROMPT = "The history of the city begins with"
PROMPTS = (PROMPT, "To make bread, you first", "The reason why the sky is blue is that")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: CPU threads of every runtime.
        device: "cpu" or "cuda".
        dtype: dtype of the torch models.
        speed: whether to time prefill and decode, and measure load time and memory.
        prompt_tokens: lengths of the prompts that speed is timed with, the main one first.
        decode_tokens, repeats: what follows a prompt, and how often.
        more_threads: thread counts to time besides the main one.
        prompts: texts that every model continues, greedily and sampled; none for no text.
        pieces, piece_tokens: how many pieces of the evaluation text are continued to measure repetition, how long.
        sample_tokens: longest continuation.
        seed: of sampled text and of tasks.
        tasks: zero-shot tasks, see `tasks.py`.
        task_limit: examples per task; None for all.
    """

    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    speed: bool = True
    prompt_tokens: tuple[int, ...] = (256,)
    decode_tokens: int = 32
    repeats: int = 3
    more_threads: tuple[int, ...] = ()
    prompts: tuple[str, ...] = PROMPTS
    pieces: int = 16
    piece_tokens: int = 32
    sample_tokens: int = 64
    seed: int = 0
    tasks: tuple[Task, ...] = ()
    task_limit: int | None = None


DEFAULTS = Settings()

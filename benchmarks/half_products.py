"""CPU seconds of the products that do half the work, beside the plain ones, in float64 on one thread.

python benchmarks/half_products.py --rows 5504 --columns 2048
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from lowrank_export.converter.factors.products import energy, outer_form, symmetric_product, upper_times


def main() -> None:
    """A line per product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5504)
    parser.add_argument("--columns", type=int, default=2048)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(asked.rows, asked.columns, dtype=torch.float64)
    moment = torch.randn(asked.rows, asked.rows, dtype=torch.float64)
    upper = moment.triu()
    moment = (moment + moment.T) / 2
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "triangular R W": (lambda: upper @ weight, lambda: upper_times(upper, weight)),
        "symmetric W^T W": (lambda: weight.T @ weight, lambda: symmetric_product(weight, weight)),
        "W^T G W": (lambda: weight.T @ (moment @ weight), lambda: outer_form(weight.T, moment)),
        "tr(W^T G W)": (lambda: ((moment @ weight) * weight).sum(), lambda: energy(weight.T, moment)),
    }
    print(f"{'':16} plain   half")
    for name, (plain, half) in pairs.items():
        print(f"{name:16} {seconds(plain):5.2f}  {seconds(half):5.2f}", flush=True)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the better of two."""
    found = []
    for _ in range(2):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


if __name__ == "__main__":
    main()

"""A model on many devices, by arithmetic: bytes exchanged per block, memory per process, hours.

Nothing is compressed. What a block costs is measured on this machine with the converter's own functions, on shapes that
are `--reduce` times smaller in every side, and scaled: work per token with the square, work per linear with the cube.
CPU seconds of one thread, or seconds of a GPU. `loss-aware`, the method with the most to do:

    python benchmarks/many_devices.py                                  # a 70B llama, one thread per process
    python benchmarks/many_devices.py --device cuda --reduce 2         # on the GPU that is to be rented
    python benchmarks/many_devices.py --width 4096 --inner 11008 --keys 4096 --blocks 32
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch

from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.distributed.workers import Workers
from lowrank_export.converter.factors.factorization import spectrum
from lowrank_export.converter.factors.fit import fit_linear, group_metric
from lowrank_export.converter.factors.whitening import gradient_metric, whiten
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.planning.memory_forecast import HOLDINGS, forecast
from lowrank_export.converter.planning.model_shape import ModelShape, WindowSizes
from lowrank_export.converter.statistics.moments import GroupMoments, Moment, upper_gram

METHOD = "loss-aware"
TOKENS = 1024  # that the work per token is measured on
GROUPS = {"attention in": ("q", "k", "v"), "attention out": ("o",), "mlp in": ("gate", "up"), "mlp out": ("down",)}


@dataclass(frozen=True)
class Model:
    """A llama.

    Attributes:
        shapes: linear -> (out, in).
        blocks: how many.
        vocabulary: tokens.
    """

    shapes: dict[str, tuple[int, int]]
    blocks: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Of the linears of a block."""
        return sum(m * n for m, n in self.shapes.values())

    def features(self, group: str) -> int:
        """Of an input group."""
        return self.shapes[GROUPS[group][0]][1]


@dataclass(frozen=True)
class Costs:
    """Seconds on one device.

    Attributes:
        forward: per token, through all linears of a block.
        inputs: per token, second moments of the group inputs.
        cross_moment: per token, cross moments of the two streams.
        outputs: per token, second moments of the gradients of a block.
        fit: linear -> its fit.
        ranks: of a block, the loss of every rank.
    """

    forward: float
    inputs: float
    cross_moment: float
    outputs: float
    fit: dict[str, float]
    ranks: float


def main() -> None:
    """Print bytes, then a line per number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--inner", type=int, default=28672)
    parser.add_argument("--keys", type=int, default=1024, help="features of keys, of values")
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--window-length", type=int, default=2048)
    parser.add_argument("--gradient-windows", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--retention", type=float, default=0.6)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--gigabytes-per-second", type=float, default=25.0, help="of the slowest link")
    parser.add_argument("--disk", type=float, default=1.0, help="gigabytes per second, reading and writing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reduce", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    d, f, k = options.width, options.inner, options.keys
    shapes = {"q": (d, d), "k": (k, d), "v": (k, d), "o": (d, d), "gate": (f, d), "up": (f, d), "down": (d, f)}
    model = Model(shapes, options.blocks, options.vocabulary)
    costs = measured(model, options.reduce, torch.device(options.device), options.retention)
    summed = exchanged(model)
    sent = sum(options.retention * m * n * 2 for m, n in shapes.values())
    print(f"linears of a block: {model.parameters / 1e6:.0f} million parameters, {2 * model.parameters / 1e9:.2f} GB")
    for name, size in {**summed, "factors, from who fitted them": sent}.items():
        print(f"exchanged per block: {name:32s} {size / 1e9:7.2f} GB")
    fits = sum(costs.fit.values())
    print(f"one device, per block: fits {fits:.1f} s, loss of every rank {costs.ranks:.1f} s; per 1000 tokens: forward")
    print(f"  {1e3 * costs.forward:.2f} s, moments {1e3 * (costs.inputs + costs.cross_moment):.2f} s")
    print(
        "processes | GB of memory each | GB sent each per block | hours: tokens, ranks, fits, exchange, disk = all | x"
    )
    alone = 0.0
    for count in options.counts:
        parts = hours(model, costs, count, options, sum(summed.values()), sent)
        alone = alone or sum(parts)
        memory = ", ".join(f"{holding} {size / 1e9:.1f}" for holding, size in memories(model, count, options).items())
        share = (2 * sum(summed.values()) * (count - 1) / count + (sent if count > 1 else 0)) / 1e9
        listed = ", ".join(f"{part:.2f}" for part in parts)
        print(f"{count:4d} | {memory} | {share:.1f} | {listed} = {sum(parts):.2f} | {alone / sum(parts):.1f}")


def exchanged(model: Model) -> dict[str, int]:
    """Bytes of float64 sums per block: upper triangles, and whole matrices of the cross moments."""
    features = {group: model.features(group) for group in GROUPS}
    cross_moment = 0
    for group, names in GROUPS.items():
        rows = model.shapes[names[0]][0] if len(names) == 1 else features[group]
        cross_moment += min(rows, features[group]) * features[group]
    inputs = sum(n * n // 2 for n in features.values())
    return {
        "gradients of the outputs": 8 * sum(m * m // 2 for m, _ in model.shapes.values()),
        "inputs, over gradient windows": 8 * inputs,
        "inputs, of the compressed stream": 8 * inputs,
        "inputs, held out": 8 * inputs,
        "cross moments of the streams": 8 * cross_moment,
    }


def measured(model: Model, reduce: int, device: torch.device, retention: float) -> Costs:
    """Costs on this device, scaled from smaller shapes."""
    small = {name: (m // reduce, n // reduce) for name, (m, n) in model.shapes.items()}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = {name: torch.randn(shape, device=device) / shape[1] ** 0.5 for name, shape in small.items()}
    inputs = {group: torch.randn(TOKENS, small[names[0]][1], device=device) for group, names in GROUPS.items()}
    outputs = {name: torch.randn(TOKENS, m, device=device) for name, (m, _) in small.items()}
    cast = {name: weight.to(dtype) for name, weight in weights.items()}

    def forward() -> None:
        for group, names in GROUPS.items():
            for name in names:
                _ = inputs[group].to(dtype) @ cast[name].T

    def cross_moments() -> None:
        for group, names in GROUPS.items():
            x = inputs[group]
            narrow = len(names) == 1 and small[names[0]][0] < x.shape[1]
            _ = (outputs[names[0]] if narrow else x).T @ x

    per_token = reduce**2 / TOKENS
    fit, ranks = {}, 0.0
    for names in GROUPS.values():
        sigma = moment(small[names[0]][1], device)
        for name in names:
            gradient, weight = moment(small[name][0], device), weights[name]
            fit[name] = reduce**3 * seconds(lambda s=sigma, g=gradient, w=weight: fitted(w, s, g, retention), device)
            ranks += reduce**3 * seconds(
                lambda s=sigma, g=gradient, w=weight: spectrum(w, whiten(s.clone()), gradient_metric(g.clone())), device
            )
    return Costs(
        per_token * seconds(forward, device),
        per_token * seconds(lambda: [upper_gram(x) for x in inputs.values()], device),
        per_token * seconds(cross_moments, device),
        per_token * seconds(lambda: [upper_gram(y) for y in outputs.values()], device),
        fit,
        ranks,
    )


def moment(size: int, device: torch.device) -> torch.Tensor:
    """A regular second moment (n, n)."""
    x = torch.randn(2 * size, size, dtype=torch.float64, device=device)
    return x.T @ x / len(x)


def fitted(weight: torch.Tensor, sigma: torch.Tensor, gradient: torch.Tensor, retention: float) -> None:
    """One linear, with what the method sees of it."""
    found = GroupMoments(
        compressed=Moment(sigma.clone(), 1), cross_moment=Moment(0.01 * sigma, 1), held_out=Moment(sigma.clone(), 1)
    )
    m, n = weight.shape
    metric = group_metric(METHODS[METHOD], found, "moments")
    fit_linear(
        weight, max(1, int(retention * m * n / (m + n))), metric, iterations=1, outputs=gradient_metric(gradient)
    )


def seconds(act: Callable[[], object], device: torch.device) -> float:
    """The faster of two runs after a first one."""
    times = []
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        started = clock()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return min(times[1:])


def hours(
    model: Model, costs: Costs, count: int, options: argparse.Namespace, summed: float, sent: float
) -> tuple[float, ...]:
    """Of work on tokens, the loss of every rank, fits, exchange, and the disk."""
    length = options.window_length
    gradient = ceil(options.gradient_windows / count) * length
    fitted, held_out = ceil(options.windows / count) * length, ceil(options.held_out / count) * length
    tokens = gradient * (3 * costs.forward + costs.inputs + costs.outputs)  # forward twice, backward once
    tokens += (fitted + held_out) * (2 * costs.forward + costs.inputs) + fitted * costs.cross_moment
    fits = 0.0
    for names in GROUPS.values():  # one group after the other; within a group as the processes share its linears
        sizes = {name: float(m * n * min(m, n)) for name, (m, n) in model.shapes.items() if name in names}
        owners, load = Workers(0, count).owners(sizes), [0.0] * count
        for name in names:
            load[owners[name]] += costs.fit[name]
        fits += max(load)
    ranks = costs.ranks * ceil(model.blocks / count)
    exchange = (2 * summed * (count - 1) / count + (sent if count > 1 else 0)) / (options.gigabytes_per_second * 1e9)
    # every process reads a block for two gradient passes, the ranks and both streams; one writes moments and factors
    disk = (5 * 2 * model.parameters + summed / 2 + 2 * sent) / (options.disk * 1e9)
    per_block = (tokens, 0.0, fits, exchange, disk)
    whole = [model.blocks * part for part in per_block]
    whole[1] = ranks
    return tuple(part / 3600 for part in whole)


def memories(model: Model, count: int, options: argparse.Namespace) -> dict[str, float]:
    """Way of holding activations -> bytes of tensors at the peak, as --max-memory forecasts them."""
    other = model.vocabulary * options.width
    shape = ModelShape(
        blocks=model.blocks,
        hidden=options.width,
        vocabulary=model.vocabulary,
        inputs={group: model.features(group) for group in GROUPS},
        outputs={name: m for name, (m, _) in model.shapes.items()},
        groups=GROUPS,
        block_parameters=model.parameters,
        largest_other=other,
        other_parameters=2 * other,
        weight_bytes=2,
        bfloat16=True,
    )
    fitted, held_out = ceil(options.windows / count), ceil(options.held_out / count)
    windows = WindowSizes(fitted, held_out, options.window_length, max(1, 4096 // options.window_length), count)
    gradient_windows = ceil(options.gradient_windows / count)
    recipe = Recipe(model="m", method=METHOD, dtype="bfloat16", gradient_windows=gradient_windows)
    return {holding: forecast(recipe, METHODS[METHOD], shape, windows, holding).peak for holding in HOLDINGS}


if __name__ == "__main__":
    main()

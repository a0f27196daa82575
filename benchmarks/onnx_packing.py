"""U of linears that share their input: one matmul each, or one block-diagonal matmul? ONNX Runtime, alone and in turn.

V is stacked in both. Separate: a Split, then one U each. Block-diagonal: one U for all, whose zeros are stored and
multiplied; q, k, v then leave as one matrix, which attention takes, gate and up are split. Prints the least time of a
group, in microseconds: of a chain of copies, so that weights come from where they would in a model. Seconds to minutes:

    python benchmarks/onnx_packing.py
    python benchmarks/onnx_packing.py --width 576 --threads 1 --tokens 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

COPIES = 12
BLOCK = 32
RETENTION = 0.6
KINDS = {"fp32": 32, "int8": 8, "int4": 4}
PACKINGS = ("separate", "block-diagonal")


class Chain:
    """Nodes and weights of copies of one input group, each fed by the one before it."""

    def __init__(self, width: int, ranks: Sequence[int], outs: Sequence[int], bits: int, packing: str) -> None:
        self._nodes: list[NodeProto] = []
        self._weights: list[TensorProto] = []
        self._random, self._bits = np.random.default_rng(0), bits
        ends, value = [], "x"
        for _ in range(COPIES):
            latent = self._matmul(value, width, sum(ranks))
            if packing == "separate":
                parts = zip(self._split(latent, ranks), ranks, outs, strict=True)
                results = [self._matmul(part, rank, out) for part, rank, out in parts]
            else:
                whole = self._matmul(latent, sum(ranks), sum(outs))
                results = self._split(whole, outs) if len(outs) == 2 else [whole]
            ends += results[1:]
            value = self._first(results[0], width)
        self._outputs = [value, *ends]

    def session(self, threads: int) -> Any:
        """ONNX Runtime with this graph."""
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._outputs]
        tokens = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, None])
        graph = helper.make_graph(self._nodes, "chain", [tokens], outputs, self._weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _matmul(self, value: str, columns: int, rows: int) -> str:
        if self._bits == 32:
            weight = self._random.standard_normal((columns, rows)).astype(np.float32) * columns**-0.5
            return self._node("MatMul", [value, self._weight(weight)])[0]
        blocks = -(-columns // BLOCK)
        shape = (rows, blocks, BLOCK * self._bits // 8)
        codes = self._weight(self._random.integers(0, 256, shape, dtype=np.uint8))
        scales = self._weight(np.full((rows, blocks), 1e-3, dtype=np.float32))
        sizes = {"K": columns, "N": rows, "bits": self._bits, "block_size": BLOCK, "accuracy_level": 4}
        return self._node("MatMulNBits", [value, codes, scales], domain="com.microsoft", **sizes)[0]

    def _split(self, value: str, sizes: Sequence[int]) -> list[str]:
        return self._node("Split", [value, self._weight(np.array(sizes, dtype=np.int64))], count=len(sizes), axis=-1)

    def _first(self, value: str, width: int) -> str:
        bounds = [self._weight(np.array([bound], dtype=np.int64)) for bound in (0, width, 2)]  # start, end, axis
        return self._node("Slice", [value, *bounds])[0]

    def _node(self, kind: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[str]:
        outputs = [f"y{len(self._nodes)}.{index}" for index in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def _weight(self, values: np.ndarray[Any, Any]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name


def groups(width: int) -> dict[str, tuple[list[int], list[int]]]:
    """Input group -> ranks at `RETENTION` and rows, of a llama with a quarter as many key/value heads."""
    wide, narrow = width * 11 // 4, max(BLOCK, width // 4)

    def rank(rows: int) -> int:
        return max(BLOCK, int(RETENTION * rows * width / (rows + width)) // BLOCK * BLOCK)

    rows = {"q, k, v": [width, narrow, narrow], "gate, up": [wide, wide]}
    return {name: ([rank(count) for count in counts], counts) for name, counts in rows.items()}


def main() -> None:
    """Print one line per width, group, type and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, action="append")
    parser.add_argument("--tokens", type=int, action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    for width in options.width or (256, 576, 1024, 2048):
        for group, (ranks, outs) in groups(width).items():
            for kind, bits in KINDS.items():
                sessions = [Chain(width, ranks, outs, bits, packing).session(options.threads) for packing in PACKINGS]
                for tokens in options.tokens or (1, 64):
                    x = np.random.default_rng(1).standard_normal((1, tokens, width)).astype(np.float32)
                    separate, diagonal = times(sessions, x, options.repeats)
                    print(
                        f"{width:5d} wide  {group:8s} {kind}  {tokens:3d} tokens: separate {separate:8.1f} us, "
                        f"block-diagonal {diagonal:8.1f} us = {separate / diagonal:.2f}x as fast",
                        flush=True,
                    )


def times(sessions: Sequence[Any], x: np.ndarray[Any, Any], repeats: int) -> list[float]:
    """Least microseconds of one copy in each session, run in turn."""
    best = [float("inf")] * len(sessions)
    for turn in range(repeats + 1):
        for index, session in enumerate(sessions):
            begin = perf_counter()
            session.run(None, {"x": x})
            if turn:  # the first round warms up
                best[index] = min(best[index], perf_counter() - begin)
    return [1e6 * seconds / COPIES for seconds in best]


if __name__ == "__main__":
    main()

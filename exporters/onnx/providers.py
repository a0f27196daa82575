"""What a session really runs on: a tiny model is opened on a provider, run, and asked.

`onnxruntime.get_available_providers()` names what the package was built with, a GPU or not; only a session tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from .session import PROVIDERS, QUIET, one_line

_SIZE = 8


@dataclass(frozen=True)
class SessionProbe:
    """What became of one session.

    Attributes:
        asked: provider asked for, "cpu" or "cuda".
        got: providers the session has, in its order of preference; empty where it did not open or run.
        error: why not, or empty.
    """

    asked: str
    got: tuple[str, ...]
    error: str = ""


def probe(provider: str) -> SessionProbe:
    """Open a tiny session on a provider, run it, and ask it what it has.

    Args:
        provider: "cpu" or "cuda".

    Raises:
        ImportError: ONNX Runtime is not installed, or broken.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    onnxruntime.set_default_logger_severity(QUIET)
    wanted = list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]]))
    try:
        session = onnxruntime.InferenceSession(_tiny_model(), options, providers=wanted)
        ones = np.ones((_SIZE, _SIZE), dtype=np.float32)
        (result,) = session.run(None, {"x": ones})
    except Exception as error:  # onnxruntime's errors share no base class
        return SessionProbe(provider, (), one_line(error))
    if not bool((result == _SIZE).all()):
        return SessionProbe(provider, (), "a product of matrices of ones came out wrong")
    return SessionProbe(provider, tuple(session.get_providers()))


def _tiny_model() -> bytes:
    """y = x x, 8 x 8."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE, _SIZE]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized

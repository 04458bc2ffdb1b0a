"""What the integer kernels are timed against: numpy, PyTorch and ONNX Runtime, those that are installed.

Every function returns name -> a call without arguments that does the same job once; weights are prepared beforehand,
inputs are converted where the rival cannot take them as they are, outside the call.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

Call = Callable[[], Any]
PAUSE_S = 0.02
"""Between two contenders: an idle OpenMP thread of one may spin for milliseconds on a core that the next one needs."""


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def interleaved_s(calls: Mapping[str, Call], rounds: int, block_s: float) -> dict[str, list[float]]:
    """Name -> seconds of every timed call: `rounds` rounds, in each a block of about `block_s` for every contender."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first: dict[str, float] = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        first[name] = max(time.perf_counter() - start, 1e-7)
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            call()
            for _ in range(min(1000, max(2, round(block_s / first[name])))):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def set_threads(threads: int) -> None:
    """Threads of PyTorch; ONNX Runtime's are set in each session, numpy's by the environment of the process."""
    if installed("torch"):
        import torch

        torch.set_num_threads(threads)


def _session(
    inputs: Mapping[str, Any], outputs: str, nodes: Any, constants: Mapping[str, np.ndarray], threads: int
) -> Any:
    """An ONNX Runtime session of a small graph: input name -> element type, one int32 or float output."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "rival",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(outputs, TensorProto.INT32, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gemm(a: np.ndarray, w: np.ndarray, threads: int) -> dict[str, Call]:
    """a int8 (m, k) times w int8 (n, k) transposed. ONNX Runtime gets uint8 inputs: int8 x int8 is its slow way."""
    m = len(a)
    a_float, w_float = a.astype(np.float32), np.ascontiguousarray(w.T).astype(np.float32)
    calls: dict[str, Call] = {"numpy float32": lambda: a_float @ w_float}
    if installed("torch"):
        import torch

        a_torch, w_torch = torch.from_numpy(a_float), torch.from_numpy(w.astype(np.float32))
        calls["torch float32"] = lambda: torch.nn.functional.linear(a_torch, w_torch)
        if m > 16:  # torch._int_mm refuses fewer rows
            a_int, w_int = torch.from_numpy(a), torch.from_numpy(w).t()
            calls["torch._int_mm"] = lambda: torch._int_mm(a_int, w_int)
    if installed("onnxruntime") and installed("onnx"):
        from onnx import TensorProto, helper

        node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
        session = _session({"a": TensorProto.UINT8}, "y", [node], {"w": np.ascontiguousarray(w.T)}, threads)
        feed = {"a": a.view(np.uint8)}
        calls["onnxruntime"] = lambda: session.run(None, feed)[0]
    return calls


def attention(a: np.ndarray, b: np.ndarray, threads: int) -> dict[str, Call]:
    """a 8-bit (heads, m, k) times b int8 (heads, k, n), both known only at the call."""
    a_float, b_float = a.astype(np.float32), np.ascontiguousarray(b).astype(np.float32)
    calls: dict[str, Call] = {"numpy float32": lambda: a_float @ b_float}
    if installed("torch"):
        import torch

        a_torch, b_torch = torch.from_numpy(a_float), torch.from_numpy(b_float)
        calls["torch float32"] = lambda: torch.bmm(a_torch, b_torch)
        a_int, b_int = torch.from_numpy(a.view(np.int8)), torch.from_numpy(b)
        calls["torch._int_mm"] = lambda: [torch._int_mm(x, y) for x, y in zip(a_int, b_int, strict=True)]
    if installed("onnxruntime") and installed("onnx"):
        from onnx import TensorProto, helper

        node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
        session = _session({"a": TensorProto.UINT8, "b": TensorProto.INT8}, "y", [node], {}, threads)
        feed = {"a": a.view(np.uint8), "b": np.ascontiguousarray(b)}
        calls["onnxruntime"] = lambda: session.run(None, feed)[0]
    return calls


def rows(operator: str, x: np.ndarray) -> dict[str, Call]:
    """PyTorch's float32 softmax, layer_norm, gelu or add of x (rows, cols)."""
    if not installed("torch"):
        return {}
    import torch
    from torch.nn import functional

    values = torch.from_numpy(x.astype(np.float32) / 16)
    other = values.flip(0)
    one, zero = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    calls: dict[str, Call] = {
        "softmax": lambda: functional.softmax(values, -1),
        "layer_norm": lambda: functional.layer_norm(values, (x.shape[1],), one, zero),
        "gelu": lambda: functional.gelu(values),
        "add": lambda: values + other,
    }
    return {"torch float32": calls[operator]}

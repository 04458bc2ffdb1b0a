"""A single GEMM as a `Graph`, for people who have a shape and not a model."""

from __future__ import annotations

import re

from accelsim.errors import SpecError
from accelsim.graph import DType, Graph, Role, Tensor
from accelsim.ops import Linear

PREFIX = "gemm:"


def gemm_graph(m: int, k: int, n: int) -> Graph:
    """Graph of one `linear` op, (m, k) times (k, n), no bias.

    >>> gemm_graph(128, 768, 3072).macs
    301989888

    Raises SpecError for a size below 1 or a product too large to be exact.
    """
    for name, value in (("m", m), ("k", k), ("n", n)):
        if value < 1:
            raise SpecError(f"gemm {name}", value, "an integer >= 1")
    label = f"{PREFIX}{m}x{k}x{n}"
    tensors = [
        Tensor("a", (m, k), DType.FLOAT32, Role.INPUT),
        Tensor("b", (n, k), DType.FLOAT32, Role.WEIGHT),
        Tensor("out", (m, n), DType.FLOAT32),
    ]
    op = Linear(name="gemm", inputs=("a", "b"), output="out", group="")
    meta = {"model": label, "seq": str(m), "batch": "1", "head": "none", "precision": "fp32", "source": "shape"}
    return Graph(label, {t.name: t for t in tensors}, (op,), ("a",), ("out",), meta).check()


def parse_gemm(text: str) -> Graph:
    """Graph for `gemm:MxKxN`. Raises SpecError for another spelling."""
    match = re.fullmatch(r"gemm:(\d{1,12})x(\d{1,12})x(\d{1,12})", text)
    if match is None:
        raise SpecError("model", text, "gemm:MxKxN with three positive integers, as gemm:128x768x3072")
    return gemm_graph(*(int(g) for g in match.groups()))

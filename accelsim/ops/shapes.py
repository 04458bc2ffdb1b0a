"""Checks of shapes and dtypes that the ops share."""

from __future__ import annotations

import numpy as np

from accelsim.errors import SpecError
from accelsim.graph import Op, Tensor

Shape = tuple[int, ...]


def fit(op: Op, ok: bool, shapes: tuple[Shape, ...], want: str) -> None:
    """Raise SpecError unless `ok`."""
    if not ok:
        raise SpecError(f"{op.name}: input shapes", shapes, want)


def broadcast(op: Op, shapes: tuple[Shape, ...]) -> Shape:
    """The common shape; np.broadcast_shapes without its cost where all shapes are equal."""
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise SpecError(f"{op.name}: input shapes", shapes, "shapes that broadcast") from None


def broadcasts(shapes: tuple[Shape, ...], target: Shape) -> bool:
    """Whether each shape broadcasts to `target` without changing it."""
    return all(
        len(s) <= len(target) and all(a in (1, b) for a, b in zip(s[::-1], target[::-1], strict=False)) for s in shapes
    )


def check_dtype(op: Op, dtype: str, output: Tensor) -> None:
    if output.dtype.value != dtype:
        raise SpecError(f"{op.name}: dtype of {output.name}", output.dtype.value, dtype)

"""Writing files whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def write_whole(target: Path, write: Callable[[Path], object]) -> Path:
    """`target`, after `write` has filled a temporary file beside it that was then renamed; a failure leaves nothing."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        write(partial)
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)

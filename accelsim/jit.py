"""Compilation: `atom` for formulas, `compiled` and `kernel` for loops, `record` to hand a dataclass to a loop.

numba's disk cache looks only at the file a function is written in. A loop here also contains formulas of other files,
so the cache stamp is a digest of all of them: change one atom and every loop is compiled anew. The models of time and
the integer kernels have a digest each.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numba
import numpy as np
from numba.extending import register_jitable

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = ("jit.py", "formulas.py", "work.py", "mapping.py", "events.py", "price.py", "sweep.py", "platforms")
KERNEL_SOURCES = ("jit.py", "numerics")


@functools.cache
def source_digest(sources: tuple[str, ...] = SOURCES) -> str:
    """sha256 of the source text of every file whose functions are compiled."""
    root = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for name in sources:
        path = root / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def atom(function: F) -> F:
    """A formula: called from Python it is plain Python, called from a compiled loop it is compiled into it."""
    registered: F = register_jitable(function)
    return registered


def inlined(function: F) -> F:
    """As `atom`, copied into its caller before types are known: constants given to it become constants in it."""
    registered: F = register_jitable(inline="always")(function)
    return registered


def compiled(function: F) -> F:
    """A loop over formulas: compiled at its first call, cached on disk under `source_digest`."""
    return _cached(function, SOURCES, "the models of time, once for this version (about 20 s)", parallel=False)


def kernel(function: F) -> F:
    """A loop of the integer core, on the thread that calls it."""
    return _cached(function, KERNEL_SOURCES, "the integer kernels, once for this version", parallel=False)


def parallel_kernel(function: F) -> F:
    """A loop of the integer core whose `numba.prange` runs on numba's threads."""
    return _cached(function, KERNEL_SOURCES, "the integer kernels, once for this version", parallel=True)


def _cached(function: F, sources: tuple[str, ...], what: str, parallel: bool) -> F:
    dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=parallel)(function)
    cache = dispatcher._cache
    cache._cache_file._source_stamp = source_digest(sources)
    cache.load_overload = _announced(cache.load_overload, what)
    result: F = dispatcher
    return result


def _announced(load: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Say once, to a terminal, that the wait is for the compiler."""

    def load_or_say(*args: Any) -> Any:
        found = load(*args)
        if found is None and what not in _said and sys.stderr.isatty():
            _said.add(what)
            print(f"accelsim: compiling {what}", file=sys.stderr)
        return found

    return load_or_say


_said: set[str] = set()


def record_dtype(kind: Any) -> np.dtype[Any]:
    """Structured dtype with the numeric fields of a hardware dataclass, nested dataclasses nested."""
    types = get_type_hints(kind)
    members: list[Any] = []
    for f in fields(kind):
        if types[f.name] is str:
            continue
        if is_dataclass(types[f.name]):
            members.append((f.name, record_dtype(types[f.name])))
        else:
            members.append((f.name, np.float64 if types[f.name] is float else np.int64))
    return np.dtype(members)


_DTYPES: dict[type, np.dtype[Any]] = {}


def record(value: Any) -> np.ndarray:
    """(1,) structured array with the numbers of a hardware dataclass; enums as their integers, names left out."""
    kind = type(value)
    if kind not in _DTYPES:
        _DTYPES[kind] = record_dtype(kind)
    return np.array([_row(value)], dtype=_DTYPES[kind])


def _row(value: Any) -> tuple[Any, ...]:
    row: list[Any] = []
    for f in fields(value):
        item = getattr(value, f.name)
        if isinstance(item, str):
            continue
        row.append(_row(item) if is_dataclass(item) else int(item) if isinstance(item, IntEnum) else item)
    return tuple(row)

"""Write the zoo's graphs as package data, symbolic in seq and batch: `python -m accelsim_models.ship [MODEL ...]`.

Each graph is traced at four (seq, batch) points; every integer that differs between them is fitted by
c0 + c1 batch + c2 seq + c3 batch seq, exactly, and a trace of nearly the longest must agree. One token is a file of
its own: there every layout is contiguous, so that the copies of other lengths disappear. At the longest the slice of
the position ids disappears; `accelsim.trace` sees to that.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from accelsim_models import zoo

from accelsim.errors import SpecError
from accelsim.trace import at_size, trace

Point = tuple[int, int]

FIT: tuple[Point, ...] = ((8, 1), (8, 4), (24, 1), (24, 4))
TERMS = ("1", "batch", "seq", "batch*seq")


def main(arguments: list[str]) -> None:
    """Rebuild the files of the models named, or of all; one line of progress for each graph."""
    import accelsim

    folder = Path(accelsim.__file__).parent / "graphs"
    folder.mkdir(exist_ok=True)
    for model in arguments or zoo.names():
        zoo.max_seq(model)  # refuses an unknown name
        for head in zoo.heads():
            start = time.perf_counter()
            total = sum(_write(folder / f"{model}@{head}{suffix}.json.gz", data) for suffix, data in ship(model, head))
            print(f"{model} {head}: {total / 1024:.1f} KiB, {time.perf_counter() - start:.1f} s", flush=True)


def ship(model: str, head: str) -> list[tuple[str, dict[str, Any]]]:
    """(file name suffix, data): of every length but one token, of one token, and of one such alone if it differs."""
    longest = zoo.max_seq(model)
    module = zoo.build(model, head)

    def traced(points: tuple[Point, ...]) -> list[Any]:
        graphs = []
        for seq, batch in points:
            graph = json.loads(json.dumps(trace(module, seq=seq, batch=batch).to_json()))
            graph["name"] = model
            graph["meta"] |= {"model": model, "head": head}
            del graph["meta"]["seq"], graph["meta"]["batch"]
            graphs.append(graph)
        return graphs

    files = {"": fit(FIT, traced, ((longest - 1, 2),)), "@seq1": fit(((1, 2), (1, 5)), traced, ())}
    (single,) = traced(((1, 1),))
    if at_size(json.dumps(files["@seq1"]), 1, 1) != single:
        files["@seq1@batch1"] = single
    return [(suffix, {"max_seq": longest, "graph": graph}) for suffix, graph in files.items()]


def fit(points: tuple[Point, ...], traced: Any, verify: tuple[Point, ...]) -> Any:
    """One graph for all sizes from those at `points`. Raises SpecError if one at `verify` is another."""
    formula = _merge(traced(points), [_terms(p) for p in points], "graph")
    for (seq, batch), data in zip(verify, traced(verify), strict=True):
        if at_size(json.dumps(formula), seq, batch) != data:
            raise SpecError(f"graph at seq {seq}, batch {batch}", "another graph", "the one that was fitted")
    return formula


def _terms(point: Point) -> list[int]:
    seq, batch = point
    return [1, batch, seq, batch * seq]


def _merge(values: list[Any], terms: list[list[int]], path: str) -> Any:
    first = values[0]
    if all(v == first and type(v) is type(first) for v in values):
        return first
    if all(isinstance(v, dict) and v.keys() == first.keys() for v in values):
        return {k: _merge([v[k] for v in values], terms, f"{path}.{k}") for k in first}
    if all(isinstance(v, list) and len(v) == len(first) for v in values):
        return [_merge(list(items), terms, f"{path}[{i}]") for i, items in enumerate(zip(*values, strict=True))]
    if all(type(v) is int for v in values):
        used = range(4) if len(values) == 4 else range(2)  # of one token, only the batch varies
        solved = _solve([[row[i] for i in used] for row in terms], values)
        if all(c.denominator == 1 for c in solved):
            return {TERMS[i]: int(c) for i, c in zip(used, solved, strict=True) if c}
    raise SpecError(path, values, "one structure, and integers that are bilinear in batch and seq")


def _solve(rows: list[list[int]], values: list[int]) -> list[Fraction]:
    """Exact solution of a small regular system, by elimination."""
    system = [[Fraction(x) for x in (*row, value)] for row, value in zip(rows, values, strict=True)]
    for i in range(len(system)):
        pivot = next(j for j in range(i, len(system)) if system[j][i])
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [x / system[i][i] for x in system[i]]
        for j, row in enumerate(system):
            if j != i:
                system[j] = [x - row[i] * y for x, y in zip(row, system[i], strict=True)]
    return [row[-1] for row in system]


def _write(path: Path, data: dict[str, Any]) -> int:
    """Bytes written; the same data give the same file."""
    packed = gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(packed)
    partial.replace(path)
    return len(packed)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A quantized model against its PyTorch reference, op by op, and against the same model without rounding.

    accelsim validate model
    accelsim validate model my_model.safetensors --figure error.png

A row for each op: elements that differ between the integer executor and the reference (must be 0), elements that were
clamped, and the ratio of signal to rounding error in dB against the float model with the same weights. Held-out texts
of movie reviews; the last row is the accuracy on all of them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import accelsim
from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.graph import DType, Graph, Op
from accelsim.params import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT = "minilm-l6-fq-bert-movie-reviews"
MODEL, HEAD = "minilm-l6", "sequence-classification"
COLUMNS = ("op", "operator", "layer", "dtype", "elements", "mismatches", "clamped", "snr_db")
COMPARED_TEXTS, BATCH = 128, 32
"""Texts on which every op is compared, shortest and longest among them."""

Check = Callable[[int, int, np.ndarray, np.ndarray], None]


def graph_at(batch: int, seq: int, params: Params, labels: int = 2) -> Graph:
    """The integer graph of the model at a size."""
    from accelsim_models.graphs import graphs

    return accelsim.quantize(graphs(MODEL, HEAD, labels)(batch, seq), params.spec)


def table(params: Params, texts: int = COMPARED_TEXTS) -> Iterator[dict[str, Any]]:
    """One row for each op, then the accuracy; keys as COLUMNS. Needs the extra [torch] and the fetched texts."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SpecError("validate model", "no PyTorch", 'pip install "accelsim[torch]": it is the reference') from None
    from accelsim_models import data, fetch

    reviews = data.movie_reviews()
    encoded = data.tokenizer(fetch.minilm_l6()).encode(reviews.dev.texts)
    rows = _compared(params, list(data.batches(_spread(encoded, texts), BATCH)))
    _add_snr(params, rows, encoded)
    yield from rows.values()
    yield _accuracy(params, encoded, reviews.dev.labels)


def _spread(encoded: list[np.ndarray], texts: int) -> list[np.ndarray]:
    """So many texts of all lengths."""
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    return [encoded[i] for i in order[np.unique(np.linspace(0, len(order) - 1, min(texts, len(order))).astype(int))]]


def _compared(params: Params, batches: list[Any]) -> dict[str, dict[str, Any]]:
    """Rows by op, with mismatches and clamped elements summed over the batches."""
    import torch
    from accelsim_models.graphs import graphs
    from accelsim_models.quantized_bert import QuantizedBert

    model = QuantizedBert.from_params(graphs(MODEL, HEAD), params)
    rows: dict[str, dict[str, Any]] = {}
    for batch in batches:
        graph = model.graph(*batch.input_ids.shape)
        wanted: dict[str, np.ndarray] = {}
        with torch.no_grad():
            model(
                torch.from_numpy(batch.input_ids),
                torch.from_numpy(batch.attention_mask),
                watch=lambda op, found, wanted=wanted: wanted.__setitem__(op.name, found.numpy()),  # type: ignore[misc]
            )

        def watch(op: Op, found: np.ndarray, clamped: int, graph: Graph = graph, wanted: Any = wanted) -> None:
            row = rows.setdefault(op.name, _row(op, graph))
            row["elements"] += found.size
            row["clamped"] += clamped
            row["mismatches"] += _different(found, wanted[op.name])

        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        accelsim.execute(graph, params, inputs, watch=watch)
    return rows


def _row(op: Op, graph: Graph) -> dict[str, Any]:
    dtype = graph.tensors[op.output].dtype.value
    return {"op": op.name, "operator": op.operator, "layer": op.layer, "dtype": dtype,
            "elements": 0, "mismatches": 0, "clamped": 0, "snr_db": None}  # fmt: skip


def _different(found: np.ndarray, wanted: np.ndarray) -> int:
    """Elements that differ: of integers and masks at all, of real numbers by more than float32 rounding explains."""
    if found.shape != wanted.shape:
        return found.size
    if found.dtype.kind == "f":
        return int((~np.isclose(found, wanted, rtol=1e-4, atol=1e-4)).sum())
    return int((found != wanted).sum())


def _add_snr(params: Params, rows: dict[str, dict[str, Any]], encoded: list[np.ndarray]) -> None:
    """Fill in snr_db, on the texts that have the commonest length, so that nothing is padding."""
    import torch
    from accelsim_models.graphs import graphs
    from accelsim_models.quantized_bert import QuantizedBert

    lengths = np.array([len(ids) for ids in encoded])
    usual = int(np.bincount(lengths).argmax())
    ids = np.stack([e for e in encoded if len(e) == usual][:BATCH])
    mask = np.ones_like(ids)
    model = QuantizedBert.from_params(graphs(MODEL, HEAD), params)
    model.mode = "float"
    real: dict[str, np.ndarray] = {}
    with torch.no_grad():
        tensors = torch.from_numpy(ids), torch.from_numpy(mask)
        model(*tensors, watch=lambda op, found: real.__setitem__(op.name, found.numpy()))
    graph = model.graph(*ids.shape)

    def watch(op: Op, found: np.ndarray, clamped: int) -> None:
        if graph.tensors[op.output].dtype in (DType.BOOL, DType.INT64):
            return
        ours, signal = params.real(graph, op.output, found), real[op.name].astype(np.float64)
        noise = float(np.square(ours - signal).sum())
        rows[op.name]["snr_db"] = 10 * math.log10(float(np.square(signal).sum()) / noise) if noise else math.inf

    accelsim.execute(graph, params, {"input_ids": ids, "attention_mask": mask}, watch=watch)


def _accuracy(params: Params, encoded: list[np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The row of the accuracy; a mismatch if it is not the one the checkpoint was saved with."""
    right = predictions(params, encoded) == labels
    recorded = params.about.get("accuracy")
    same = recorded is None or math.isclose(recorded, float(right.mean()), abs_tol=1e-12)
    row = {"op": "accuracy on movie-reviews", "operator": "model", "layer": -1, "dtype": "", "elements": len(labels)}
    return {**row, "mismatches": int(not same), "clamped": 0, "snr_db": None, "accuracy": float(right.mean())}


def predictions(params: Params, encoded: list[np.ndarray], threads: int = 1) -> np.ndarray:
    """int64 (texts,): the class of each, computed in integers, in batches sorted by length."""
    from accelsim_models import data

    found = np.empty(len(encoded), np.int64)
    for batch in data.batches(encoded, 64):
        graph = _cached(params, *batch.input_ids.shape)
        (name,) = graph.outputs
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        out = accelsim.execute(graph, params, inputs, threads=threads)
        found[batch.rows] = params.real(graph, name, out[name]).argmax(axis=1)
    return found


def _cached(params: Params, batch: int, seq: int) -> Graph:
    key = ("integer graph", batch, seq)
    if key not in params.kernels:
        params.kernels[key] = graph_at(batch, seq, params)
    found: Graph = params.kernels[key]
    return found


def first_difference(rows: list[dict[str, Any]]) -> str | None:
    """Name of the first op whose integers differ; None if there is none."""
    return next((row["op"] for row in rows if row["mismatches"]), None)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows as .csv or .json."""

    def write(partial: Path) -> None:
        if path.suffix.lower() == ".json":
            partial.write_text(json.dumps({"rows": as_json(rows)}, indent=1) + "\n")
            return
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, "accuracy"))
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def as_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which an infinite ratio, of numbers that are equal, is null: JSON has no infinity."""
    return [{k: None if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()} for row in rows]


def text(rows: list[dict[str, Any]], params: Params) -> Iterator[str]:
    """A summary by operator, the layers' outputs, and what the checkpoint is."""
    integers = [r for r in rows if r["operator"] != "model" and r["dtype"] not in ("bool", "int64")]
    yield f"{params.spec.name}; {params.about.get('source', 'no record of its origin')}"
    yield ""
    yield f"{'operator':16} {'ops':>4} {'elements':>12} {'mismatches':>10} {'clamped':>9} {'worst SNR':>10}"
    for operator in dict.fromkeys(r["operator"] for r in integers):
        mine = [r for r in integers if r["operator"] == operator]
        ratios = [r["snr_db"] for r in mine if r["snr_db"] is not None]
        worst = f"{min(ratios):.1f} dB" if ratios else ""
        sums = [sum(r[key] for r in mine) for key in ("elements", "mismatches", "clamped")]
        yield f"{operator:16} {len(mine):4} {sums[0]:12,} {sums[1]:10,} {sums[2]:9,} {worst:>10}"
    yield ""
    for r in integers:
        if r["operator"] == "add_layer_norm":
            yield f"{r['op']:52} {r['snr_db']:6.1f} dB"
    first = first_difference(rows)
    yield ""
    yield "every op is bit-equal to the reference" if first is None else f"first op that differs: {first}"
    for r in rows:
        if "accuracy" in r:
            yield f"accuracy {r['accuracy']:.2%} of {r['elements']} held-out movie reviews"


def figure(rows: list[dict[str, Any]], title: str) -> Figure:
    """Where the error enters: signal-to-noise ratio after every op, in order of execution."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    from accelsim.plots import DOUBLE, STYLE

    shown = ("linear", "matmul", "softmax", "add_layer_norm", "gelu", "tanh")
    points = [r for r in rows if r["operator"] in shown and r["snr_db"] is not None and math.isfinite(r["snr_db"])]
    with context(STYLE, after_reset=True):
        drawn = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
        axes = drawn.add_subplot()
        axes.plot(range(len(points)), [p["snr_db"] for p in points], color="#B0B0B0", linewidth=0.6, zorder=1)
        for operator, marker in zip(shown, "os^DvP", strict=True):
            places = [i for i, p in enumerate(points) if p["operator"] == operator]
            axes.scatter(places, [points[i]["snr_db"] for i in places], s=11, marker=marker, label=operator, zorder=2)
        starts = {}
        for i, p in enumerate(points):
            starts.setdefault(p["layer"] if p["layer"] >= 0 else ("emb." if i == 0 else "head"), i)
        for name, i in starts.items():
            axes.axvline(i - 0.5, color="#D8D8D8", linewidth=0.5, zorder=0)
            words = name if isinstance(name, str) else f"layer {name}"
            axes.annotate(words, (-1.9 if i == 0 else i, 1.0), xycoords=("data", "axes fraction"), va="bottom", size=6)
        axes.set_xlim(-2, len(points))
        axes.set_xticks([])
        axes.set_xlabel("ops in order of execution")
        axes.set_ylabel("signal to rounding error (dB)")
        axes.grid(axis="y")
        axes.set_title(title, loc="left", pad=12, weight="bold")
        axes.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return drawn

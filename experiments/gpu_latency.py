"""Roofline presets against NVIDIA's published TensorRT latencies of BERT (TensorRT demo/BERT README, fixed lengths).

Nothing is fitted: every row is a prediction from data sheets and stated assumptions.

    python -m accelsim_experiments.gpu_latency
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import accelsim

PUBLISHED = Path(__file__).parent / "published" / "gpu_bert_inference.csv"
PRESET = {"A100-40GB": "a100", "T4": "t4"}
PRECISION = {"int8": "int8", "fp16": "fp16"}


def points() -> list[dict[str, str]]:
    """The printed rows for devices that have a preset."""
    with PUBLISHED.open() as file:
        return [row for row in csv.DictReader(file) if row["device"] in PRESET and row["status"] == "printed"]


def table() -> list[dict[str, Any]]:
    """A row per published latency: printed and predicted milliseconds, and their ratio."""
    rows: list[dict[str, Any]] = []
    for point in points():
        graph = accelsim.trace(
            point["model"], seq=int(point["seq"]), batch=int(point["batch"]), head="question-answering"
        )
        chip = accelsim.platform(PRESET[point["device"]])
        predicted = accelsim.simulate(graph, chip, precision=PRECISION[point["precision"]]).total.time_s * 1e3
        printed = float(point["latency_ms"])
        rows.append({**point, "printed_ms": printed, "predicted_ms": predicted, "ratio": predicted / printed})
    return rows


def main() -> None:
    """Print the table and the mean absolute error of each device."""
    rows = table()
    for row in rows:
        print(
            f"{row['model']:10} {row['device']:10} {row['precision']:5} seq {row['seq']:>4} batch {row['batch']:>4}   "
            f"printed {row['printed_ms']:8.2f} ms   predicted {row['predicted_ms']:8.2f} ms   ratio {row['ratio']:.2f}"
        )
    for device in PRESET:
        errors = [abs(row["ratio"] - 1) for row in rows if row["device"] == device]
        print(f"{device}: mean absolute error {sum(errors) / len(errors):.0%} over {len(errors)} rows, nothing fitted")


if __name__ == "__main__":
    main()

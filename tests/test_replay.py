"""Does a refactor move a digit? Totals of a few runs, as committed; `python -m tests.test_replay` writes them anew."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from accelsim.platforms import platform
from accelsim.simulate import simulate
from accelsim.trace import trace

FILE = Path(__file__).parent / "replay.json"
RUNS = [
    (model, seq, batch, name, detail)
    for model, seq, batch in (("bert-base", 128, 1), ("minilm-l6", 50, 3), ("bert-large", 384, 1))
    for name in ("systolic-16x16", "systolic-128x128", "tpu-v1", "a100", "i7-8700")
    for detail in ("analytic", "events")
]


def key(run) -> str:
    return " ".join(map(str, run))


def totals(run) -> dict:
    model, seq, batch, name, detail = run
    report = simulate(trace(model, seq=seq, batch=batch, source="shipped"), platform(name), detail=detail)
    return {k: v for k, v in asdict(report.total).items() if v is not None} | {"rows": len(report.columns["op"])}


@pytest.mark.parametrize("run", RUNS, ids=key)
def test_totals_are_those_committed(run):
    committed = json.loads(FILE.read_text())[key(run)]
    now = totals(run)
    assert set(now) == set(committed)
    for name, value in now.items():
        if isinstance(value, int):
            assert value == committed[name], name
        else:
            assert value == pytest.approx(committed[name], rel=1e-12), name


if __name__ == "__main__":
    FILE.write_text(json.dumps({key(run): totals(run) for run in RUNS}, indent=1) + "\n")

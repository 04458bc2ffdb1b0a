"""Does a report add up, and do its files, figures and timelines show the same numbers?"""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import html, plots
from accelsim.errors import SpecError
from accelsim.platforms.base import platform
from accelsim.report import LABELS, SCHEMA, SUMMED, Report, Total
from accelsim.simulate import simulate
from accelsim.trace import trace

RUNS = [
    (model, name, detail)
    for model, name in (
        ("bert-tiny", "systolic-32x32"),
        ("bert-base", "systolic-32x32"),
        ("bert-base", "systolic-128x128"),
    )
    for detail in ("analytic", "events")
]
_reports: dict[tuple[str, str, str], Report] = {}
_graphs: dict[str, Any] = {}


def real(model: str, name: str, detail: str) -> Report:
    """The report of one run at seq 128, made once."""
    if (model, name, detail) not in _reports:
        if model not in _graphs:
            _graphs[model] = trace(model, seq=128)
        _reports[model, name, detail] = simulate(_graphs[model], platform(name), detail=detail)
    return _reports[model, name, detail]


@pytest.fixture(params=RUNS, ids="-".join)
def report(request: pytest.FixtureRequest) -> Report:
    return real(*request.param)


@pytest.fixture
def tiny() -> Report:
    return real("bert-tiny", "systolic-32x32", "events")


ROW = st.fixed_dictionaries(
    {
        "place": st.sampled_from(
            [
                ("embeddings.word_embeddings", "embedding", -1, "dma", "move"),
                ("encoder.layer.0.attention.self", "matmul", 0, "array", "gemm"),
                ("encoder.layer.1.attention.self.query", "linear", 1, "array", "gemm"),
                ("encoder.layer.1.intermediate", "gelu", 1, "vector", "vector"),
                ("encoder.layer.0.output", "view", 0, "none", "free"),
                ("", "add", -1, "vector", "vector"),
                ("pooler", "tanh", -1, "vector", "vector"),
            ]
        ),
        "phase": st.sampled_from(["forward", "backward"]),
        "bound": st.sampled_from(["compute", "memory", "latency"]),
        "compute": st.integers(0, 10**9),
        "stall": st.integers(0, 10**9),
        "gap": st.floats(-100, 1e6),
        "store": st.floats(0, 1e4),
        "macs": st.integers(0, 2**50),
        "bytes": st.integers(0, 2**40),
    }
)


def synthetic(rows: list[dict[str, Any]], clock_hz: float = 1e9, detail: str = "events") -> Report:
    """A report with these rows: on each unit ops start in order, and may start before the last results are stored."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
    begins: dict[str, float] = {}
    for i, row in enumerate(rows):
        group, operator, layer, unit, kind = row["place"]
        free = kind == "free"
        compute, stall = (0, 0) if free else (row["compute"], row["stall"])
        start = max(0.0, begins.get(unit, 0.0) + row["gap"])
        finish = start if free else start + compute + stall + row["store"]
        begins[unit] = start + compute + stall
        values = {
            "op": f"{group}.{operator}.{i}".lstrip("."), "group": group, "operator": operator, "phase": row["phase"],
            "layer": layer, "platform": "made-up", "unit": unit, "kind": kind, "count": 1,
            "macs": row["macs"] if kind == "gemm" else 0, "flops": 2 * row["macs"], "cycles": compute + stall,
            "compute_cycles": compute, "stall_cycles": stall, "start_cycle": start, "finish_cycle": finish,
            "time_s": (compute + stall) / clock_hz, "sram_bytes": row["bytes"], "dram_bytes": row["bytes"] // 3,
            "energy_j": row["macs"] * 1e-12, "utilization": 0.5, "bound": "free" if free else row["bound"],
        }  # fmt: skip
        for name, value in values.items():
            columns[name].append(value)
    cycles, compute = sum(columns["cycles"]), sum(columns["compute_cycles"])
    total = Total(
        macs=sum(columns["macs"]), flops=sum(columns["flops"]), cycles=cycles, compute_cycles=compute,
        stall_cycles=cycles - compute, time_s=cycles / clock_hz, sram_bytes=sum(columns["sram_bytes"]),
        dram_bytes=sum(columns["dram_bytes"]), energy_j=sum(columns["energy_j"]), power_w=0.0, utilization=0.5,
    )  # fmt: skip
    return Report("m", "made-up", 8, 1, "int8", detail, clock_hz, columns, total, {"mac": total.energy_j})


SYNTHETIC = st.lists(ROW, min_size=1, max_size=30).map(synthetic)


# --- does a breakdown add up? -------------------------------------------------------------------------------------


def adds_up(breakdown: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Whether every summed column has the sum it has in the table, and the shares are those of cycles."""
    whole = all(int(breakdown[c].sum()) == int(table[c].sum()) for c in SUMMED if table[c].dtype == np.int64)
    real = all(np.isclose(breakdown[c].sum(), table[c].sum(), rtol=1e-12) for c in ("time_s", "energy_j"))
    shares = np.allclose(breakdown["share"] * max(1, table["cycles"].sum()), breakdown["cycles"])
    return whole and real and bool(shares)


@given(SYNTHETIC)
@settings(max_examples=40, deadline=None)
def test_every_breakdown_sums_to_the_table(report: Report) -> None:
    for by in LABELS:
        breakdown = report.breakdown(by)
        assert adds_up(breakdown, report.table)
        assert breakdown.index.name == by
        assert breakdown.index.is_unique
        assert breakdown["cycles"].is_monotonic_decreasing


def test_every_breakdown_of_a_real_run_sums_to_its_total(report: Report) -> None:
    for by in LABELS:
        assert adds_up(report.breakdown(by), report.table)
    for name in ("macs", "flops", "sram_bytes", "dram_bytes"):
        assert int(report.breakdown()[name].sum()) == getattr(report.total, name)
    if report.detail == "analytic":
        assert int(report.breakdown()["cycles"].sum()) == report.total.cycles
    assert report.breakdown()["energy_j"].sum() == pytest.approx(report.total.energy_j)
    assert sum(report.energy_by_part_j.values()) == pytest.approx(report.total.energy_j)


def test_a_breakdown_that_lost_a_row_does_not_add_up(tiny: Report) -> None:
    shorter = replace(tiny, columns={name: list(values)[:-1] for name, values in tiny.columns.items()})
    assert not adds_up(shorter.breakdown(), tiny.table)


def test_breakdown_names_the_nearest_label(tiny: Report) -> None:
    with pytest.raises(SpecError, match="nearest: layer"):
        tiny.breakdown("layers")


@given(SYNTHETIC, SYNTHETIC, st.sampled_from(LABELS))
@settings(max_examples=40, deadline=None)
def test_compare_keeps_both_reports_whole(a: Report, b: Report, by: str) -> None:
    both = a.compare(b, by)
    assert set(both.index) == set(a.breakdown(by).index) | set(b.breakdown(by).index)
    for side, report in (("a", a), ("b", b)):
        for column in ("cycles", "dram_bytes"):
            assert both[f"{column}.{side}"].sum() == report.table[column].sum()
        assert both[f"time_s.{side}"].sum() == pytest.approx(report.table["time_s"].sum())


def test_compare_ratios(tiny: Report) -> None:
    same = tiny.compare(tiny)
    assert (same["time_s.ratio"].dropna() == 1).all()
    assert (same["energy_j.ratio"].dropna() == 1).all()
    analytic = real("bert-tiny", "systolic-32x32", "analytic")
    both = analytic.compare(tiny, "block")
    assert both["time_s.ratio"].to_dict() == pytest.approx((both["time_s.b"] / both["time_s.a"]).to_dict())


# --- do files hold what the report says? --------------------------------------------------------------------------


def read_csv(path: Path) -> pd.DataFrame:
    # "" is a module path (the model itself), not a missing value
    return pd.read_csv(path, keep_default_na=False, engine="python")


def read_json(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(path.read_text())["ops"])


@pytest.mark.parametrize(
    ("name", "read"),
    [("run.csv", read_csv), ("run.parquet", pd.read_parquet), ("run.json", read_json), ("RUN.CSV", read_csv)],
)
@pytest.mark.parametrize("detail", ["analytic", "events"])
def test_files_read_back_equal(tmp_path: Path, name: str, read: Callable[[Path], pd.DataFrame], detail: str) -> None:
    report = real("bert-tiny", "systolic-32x32", detail)
    path = report.save(tmp_path / name)
    assert path == tmp_path / name
    pd.testing.assert_frame_equal(read(path), report.table, check_exact=True)
    assert list(report.table) == list(SCHEMA)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_json_holds_the_head_and_the_total(tiny: Report, tmp_path: Path) -> None:
    data = json.loads(tiny.save(tmp_path / "run.json").read_text())
    assert data == json.loads(json.dumps(tiny.to_json()))
    assert {"model", "platform", "seq", "batch", "precision", "detail", "total", "ops"} <= set(data)
    assert data["total"]["cycles"] == tiny.total.cycles
    assert len(data["ops"]) == len(tiny.table)


def writers(report: Report) -> list[tuple[Callable[[Path], Path], str]]:
    """Everything that writes, with a suffix it refuses."""
    figure = plots.breakdown_figure(report.table, "t")
    return [
        (report.save, "run.xlsx"),
        (lambda p: plots.save_figure(figure, p), "run.jpg"),
        (lambda p: html.save_perfetto(report, p), "run.csv"),
    ]


def test_an_unknown_suffix_or_folder_is_refused_and_nothing_is_written(tiny: Report, tmp_path: Path) -> None:
    for write, wrong in writers(tiny):
        for path in (tmp_path / wrong, tmp_path / "run", tmp_path / "absent" / "run.json"):
            with pytest.raises(SpecError, match="want"):
                write(path)
    for write, good in zip([w for w, _ in writers(tiny)], ("a.csv", "a.png", "a.json"), strict=True):
        with pytest.raises(SpecError, match="a folder that exists"):
            write(tmp_path / "absent" / good)
    assert list(tmp_path.iterdir()) == []


# --- do figures draw the table? -----------------------------------------------------------------------------------


def figures(report: Report) -> dict[str, Any]:
    """Every figure there is, of one report."""
    return {
        "breakdown": plots.breakdown_of(report),
        "roofline": plots.roofline_of(report),
        "compare": plots.compare_figure({"a": report.table, "b": report.table}, "t", footnote="a note"),
    }


def drawn_bars(figure: Any) -> dict[str, dict[str, float]]:
    """Chart -> compute or stall -> length of all its bars, in seconds. A block's bar counts, those inside it do not."""
    lengths: dict[str, dict[str, float]] = {}
    for axes in figure.axes:
        scale = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[axes.get_xlabel().split("(")[1].rstrip(")")]
        for container in axes.containers:
            part, _, chart = container.get_label().partition(" ")
            outer = [p for p in container if p.get_height() > 0.6]
            lengths.setdefault(chart, {})[part] = scale * sum(p.get_width() for p in outer)
    return lengths


def bars_match(figure: Any, table: pd.DataFrame) -> bool:
    """Whether every chart of a breakdown adds up to the table's compute and stall time."""
    seconds = table["time_s"].sum() / table["cycles"].sum()
    want = [table["compute_cycles"].sum() * seconds, table["stall_cycles"].sum() * seconds]
    charts = drawn_bars(figure)
    assert set(charts) == {"by operator", "by unit", "by block"}
    return all(np.allclose([c["compute"], c["stall"]], want, rtol=1e-9) for c in charts.values())


def test_breakdown_bars_sum_to_the_total(report: Report) -> None:
    figure = figures(report)["breakdown"]
    assert bars_match(figure, report.table)
    assert not bars_match(figure, report.table.drop(index=report.table["cycles"].idxmax()))


@given(st.lists(ROW, min_size=1, max_size=20).map(synthetic))
@settings(max_examples=10, deadline=None)
def test_breakdown_bars_sum_to_any_table(report: Report) -> None:
    if report.total.cycles == 0:
        with pytest.raises(SpecError, match="no row that takes time"):
            plots.breakdown_figure(report.table, "t")
        return
    assert bars_match(plots.breakdown_figure(report.table, "t"), report.table)


def test_breakdown_prints_the_numbers_it_draws(tiny: Report) -> None:
    figure = figures(tiny)["breakdown"]
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    for label, row in tiny.breakdown("block").iterrows():
        at = said.index(str(label))
        assert float(said[at + 1]) == pytest.approx(1e6 * row["time_s"], abs=0.05)
        assert float(said[at + 2]) == pytest.approx(100 * row["share"], abs=0.051)
        assert float(said[at + 3]) == pytest.approx(100 * row["stall_cycles"] / row["cycles"], abs=0.051)
    below = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    for fact in ("bert-tiny", "seq 128", "batch 1", "systolic-32x32", "int8", "events", "fold timing: pipelined"):
        assert fact in below


def test_blocks_have_the_operators_inside_them(tiny: Report) -> None:
    right = figures(tiny)["breakdown"].axes[1]
    widths = [c.get_width() + s.get_width() for c, s in zip(*right.containers, strict=True)]
    outer = [p.get_height() > 0.6 for p in right.containers[0]]
    starts = [i for i, o in enumerate(outer) if o] + [len(outer)]
    assert outer[0]
    assert any(b - a > 1 for a, b in pairwise(starts))
    for a, b in pairwise(starts):
        if b - a > 1:
            assert sum(widths[a + 1 : b]) == pytest.approx(widths[a])


def test_roofline_draws_every_work_where_the_table_says(report: Report) -> None:
    axes = figures(report)["roofline"].axes[0]
    table = report.table[(report.table["flops"] > 0) & (report.table["dram_bytes"] > 0)]
    sums = table.groupby(["operator", "kind", "macs", "flops", "dram_bytes"])[["time_s"]].agg(["sum", "size"])
    want = sorted(
        (flops / nbytes, flops * n / time_s)
        for (*_, flops, nbytes), (time_s, n) in zip(sums.index, sums.values, strict=True)
    )
    (markers,) = axes.collections
    np.testing.assert_allclose(sorted(map(tuple, markers.get_offsets())), want, rtol=1e-9)
    shares = np.sort(sums[("time_s", "sum")].to_numpy()) / report.table["time_s"].sum()
    np.testing.assert_allclose(np.sort(markers.get_sizes()), np.maximum(5.0, 350 * shares), rtol=1e-9)
    roof = axes.lines[0].get_xydata()
    ridge = report.roof["flops_per_s"] / report.roof["dram_bytes_per_s"]
    assert roof[1] == pytest.approx((ridge, report.roof["flops_per_s"]))
    assert roof[0][1] / roof[0][0] == pytest.approx(report.roof["dram_bytes_per_s"])
    if report.detail == "analytic":
        for intensity, attained in want:
            assert attained <= 1.0001 * min(report.roof["flops_per_s"], intensity * report.roof["dram_bytes_per_s"])


def test_roofline_lists_the_five_heaviest() -> None:
    report = real("bert-base", "systolic-128x128", "analytic")
    said = [text.get_text() for text in figures(report)["roofline"].texts]
    assert said[said.index("1") + 1] == "attention query, key, value, output"
    assert {"2", "3", "4", "5", "feed-forward intermediate", "feed-forward output"} <= set(said)
    assert "6" not in said


def test_compare_stacks_every_table() -> None:
    tables = {
        f"{name}, {detail}": real("bert-base", name, detail).table
        for name in ("systolic-32x32", "systolic-128x128")
        for detail in ("analytic", "events")
    }
    (axes,) = plots.compare_figure(tables, "t").axes
    lengths = np.sum([[p.get_width() for p in c] for c in axes.containers], axis=0)
    np.testing.assert_allclose(lengths * 1e-3, [t["time_s"].sum() for t in tables.values()], rtol=1e-9)
    assert [t.get_text() for t in axes.get_yticklabels()] == list(tables)


def test_no_text_of_a_figure_covers_another_or_leaves_the_page(report: Report) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, figure in figures(report).items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
        for axes in figure.axes:
            texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
            for axis, i in ((axes.xaxis, 0), (axes.yaxis, 1)):
                low, high = sorted(axis.get_view_interval())
                texts += [t for t in axis.get_ticklabels() if low <= t.get_position()[i] <= high]
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
        page = figure.bbox
        for text, box in boxes:
            assert box.x0 >= -1, (name, text)
            assert box.y0 >= -1, (name, text)
            assert box.x1 <= page.x1 + 1, (name, text)
            assert box.y1 <= page.y1 + 1, (name, text)
        for (text, box), (other, other_box) in combinations(boxes, 2):
            assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), (name, text, other)


MAGIC = {".png": b"\x89PNG\r\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", MAGIC)
def test_figure_files_are_what_they_say_and_always_the_same(tiny: Report, tmp_path: Path, suffix: str) -> None:
    first, second = figures(tiny), figures(tiny)
    for name in first:
        once = plots.save_figure(first[name], tmp_path / f"{name}{suffix}").read_bytes()
        again = plots.save_figure(second[name], tmp_path / f"{name}{suffix}").read_bytes()
        assert once.startswith(MAGIC[suffix])
        assert once == again
    assert len(list(tmp_path.iterdir())) == 3


def test_a_figure_that_cannot_be_written_leaves_what_was_there(tiny: Report, tmp_path: Path) -> None:
    class Broken:
        def savefig(self, path: Path, **_: Any) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(Broken(), path)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_figures_refuse_what_they_cannot_draw(tiny: Report) -> None:
    table = tiny.table
    with pytest.raises(SpecError, match="without compute_cycles, time_s"):
        plots.breakdown_figure(table.drop(columns=["time_s", "compute_cycles"]), "t")
    with pytest.raises(SpecError, match="no row that takes time"):
        plots.breakdown_figure(table[table["cycles"] == 0], "t")
    with pytest.raises(SpecError, match="FLOPs"):
        plots.roofline_figure(table[table["kind"] == "move"], 1e12, 1e9, "t")
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SpecError, match="a positive number"):
            plots.roofline_figure(table, bad, 1e9, "t")
    with pytest.raises(SpecError, match="no tables"):
        plots.compare_figure({}, "t")


def test_reports_load_no_matplotlib_and_plots_no_pyplot() -> None:
    code = (
        "import sys, accelsim.report, accelsim.html; assert 'matplotlib' not in sys.modules;"
        "import accelsim.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- is the timeline a trace that a viewer opens? -----------------------------------------------------------------


def check_trace(trace: dict[str, Any], report: Report) -> None:
    """Assert the rules of the trace event format, and that each row with work is one slice."""
    events = trace["traceEvents"]
    for event in events:
        assert set(event) >= {"name", "ph", "pid", "tid", "ts", "args"}, "a required key is missing"
        assert event["ph"] in ("M", "X", "C"), "unknown phase"
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event["ts"], (int, float))
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sum(e["name"] == "process_name" for e in events) == 1
    assert len(set(named.values())) == len(named)
    stamps = [e["ts"] for e in events if e["ph"] != "M"]
    assert stamps == sorted(stamps), "not sorted by time"
    slices = [e for e in events if e["ph"] == "X"]
    ends: dict[int, int] = {}
    for event in slices:
        assert event["dur"] >= 0, "negative duration"
        ts, dur = (int(event[key] * 1000) for key in ("ts", "dur"))  # whole ns, cut off as Perfetto's reader does
        assert ts >= ends.get(event["tid"], 0), "slices of one track overlap"
        ends[event["tid"]] = ts + dur
        row = event["args"]["row"]
        assert named[event["tid"]] == report.columns["unit"][row]
        assert event["name"] == report.columns["op"][row]
        assert all(event["args"][name] == report.columns[name][row] for name in html.ARGUMENTS)
        start = report.columns["start_cycle"][row] / report.clock_hz * 1e6
        finish = report.columns["finish_cycle"][row] / report.clock_hz * 1e6
        assert abs(event["ts"] - start) <= 6e-4 + 1e-12 * start
        assert event["ts"] + event["dur"] <= finish + 1.1e-3 + 1e-12 * finish
    want = [i for i, kind in enumerate(report.columns["kind"]) if kind != "free"]
    assert sorted(e["args"]["row"] for e in slices) == want, "not one slice per row with work"
    assert trace["otherData"]["free_ops"] + len(slices) == len(report.table)


def test_trace_of_a_real_run_is_valid_and_loads(report: Report, tmp_path: Path) -> None:
    path = html.save_perfetto(report, tmp_path / "run.perfetto.json")
    loaded = json.load(io.StringIO(path.read_text()), parse_constant=pytest.fail)
    assert loaded == html.perfetto(report)
    check_trace(loaded, report)
    assert len(list(tmp_path.iterdir())) == 1
    units = {e["args"]["name"] for e in loaded["traceEvents"] if e["name"] == "thread_name"}
    assert units == set(report.table["unit"]) - {"none"}


@given(st.lists(ROW, min_size=1, max_size=30), st.sampled_from([1e6, 7e8, 1e9, 3.3e9]))
@settings(max_examples=60, deadline=None)
def test_trace_of_any_report_is_valid(rows: list[dict[str, Any]], clock_hz: float) -> None:
    for detail in ("analytic", "events"):
        report = synthetic(rows, clock_hz, detail)
        check_trace(html.perfetto(report), report)


def test_slices_keep_their_length_unless_the_next_op_starts(tiny: Report) -> None:
    slices = [e for e in html.perfetto(tiny)["traceEvents"] if e["ph"] == "X"]
    by_track: dict[int, list[dict[str, Any]]] = {}
    for event in slices:
        by_track.setdefault(event["tid"], []).append(event)
    for track in by_track.values():
        for event, following in zip(track, [*track[1:], None], strict=True):
            full = event["args"]["finish_cycle"] / tiny.clock_hz * 1e6
            end = full if following is None else min(full, following["ts"])
            assert event["ts"] + event["dur"] == pytest.approx(end, abs=1.1e-3)


def test_dram_counter_moves_the_bytes_of_the_report() -> None:
    report = real("bert-tiny", "systolic-32x32", "analytic")
    events = html.perfetto(report)["traceEvents"]
    counters = [e for e in events if e["ph"] == "C"]
    moved = sum(a["args"]["bytes_per_s"] * (b["ts"] - a["ts"]) * 1e-6 for a, b in pairwise(counters))
    assert moved == pytest.approx(report.total.dram_bytes, rel=1e-6)
    assert max(e["args"]["bytes_per_s"] for e in counters) <= report.roof["dram_bytes_per_s"] * 1.0001


def _mutations(trace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    first = next(i for i, e in enumerate(trace["traceEvents"]) if e["ph"] == "X" and e["dur"] > 0)
    wrong = {}
    for name in ("overlap", "negative", "lost", "twice", "order", "keys", "argument"):
        wrong[name] = copy.deepcopy(trace)
        events = wrong[name]["traceEvents"]
        if name == "overlap":
            events[first]["dur"] += 1e6
        elif name == "negative":
            events[first]["dur"] = -1.0
        elif name == "lost":
            del events[first]
        elif name == "twice":
            events.insert(first, copy.deepcopy(events[first]))
        elif name == "order":
            events[first], events[-1] = events[-1], events[first]
        elif name == "keys":
            del events[first]["pid"]
        else:
            events[first]["args"]["macs"] += 1
    return wrong


def test_each_broken_trace_is_noticed(tiny: Report) -> None:
    trace = html.perfetto(tiny)
    check_trace(trace, tiny)
    for wrong in _mutations(trace).values():
        with pytest.raises(AssertionError):
            check_trace(wrong, tiny)

"""Figures from tables: where the time goes, the roofline, and several reports beside each other.

A function takes a table with the columns of a report and plain numbers, and returns a matplotlib `Figure`. Widths are
those of a paper: `SINGLE` or `DOUBLE` column. Nothing here needs a display.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.style import context
from matplotlib.text import Text

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.report import Report, block_of, check_output, module_of

if TYPE_CHECKING:
    import pandas as pd

STYLE = "accelsim.accelsim"
"""matplotlib's name for accelsim.mplstyle of this package."""

SINGLE, DOUBLE = 3.4, 7.0
"""Width of a figure in inches: one column or two."""

COMPUTE, STALL = "#0072B2", "#E69F00"
"""Blue and orange of Okabe and Ito: far apart to colour-blind readers and in grey print."""

FAMILIES = {
    "linear": "#0072B2",
    "matmul": "#56B4E9",
    "softmax": "#E69F00",
    "layer norm": "#009E73",
    "activation": "#D55E00",
    "add": "#CC79A7",
    "embedding": "#F0E442",
    "copies": "#A0A0A0",
    "other": "#000000",
}
"""Family of operators -> colour, in the order of legends and stacks."""

_ACTIVATIONS = {"gelu": "GELU", "relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "SiLU"}
_NAMES = {"layer_norm": "layer norm", "linear": "linear", "softmax": "softmax", "add": "add", "embedding": "embedding"}
_ATTENTION = {"scores": "attention scores", "context": "attention context"}
_GENERIC = frozenset(
    {"encoder", "transformer", "model", "bert", "layer", "layers", "albert_layers", "*", "self", "dense", "linear"}
)

_ROW, _FOOT, _EDGE = 0.165, 0.095, 0.08  # inches: a line of a bar chart, a line of the footnote, the margin
_GAP = 1.4  # lines between two bar charts in one column
_NAMES_WIDTH, _BARS, _CELLS = 0.98, 1.08, (0.43, 0.87, 1.22)  # inches: names, bars, right ends of the cells after them
_GREY = "#606060"


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart, in seconds. bold: the sum of those after it, which are `inside`."""

    name: str
    compute_s: float
    stall_s: float
    bold: bool = False
    inside: bool = False


def family(operator: str, kind: str) -> str:
    """Family of an operator, a key of FAMILIES.

    >>> family("gelu", "vector"), family("clone", "move"), family("bitwise_and", "vector")
    ('activation', 'copies', 'other')
    """
    if operator in _ACTIVATIONS:
        return "activation"
    if operator in _NAMES:
        return _NAMES[operator]
    if kind == "gemm":
        return "matmul"
    return "copies" if kind == "move" else "other"


def label(op: str, operator: str, kind: str) -> str:
    """What a bar of this operator is called; the two matrix products of attention are told apart.

    >>> label("encoder.layer.0.attention.self.scores", "matmul", "gemm")
    'attention scores'
    """
    if kind == "gemm" and operator != "linear":
        return _ATTENTION.get(op.rpartition(".")[2].rstrip("0123456789"), "matmul")
    return _ACTIVATIONS.get(operator) or {"other": "elementwise"}.get(f := family(operator, kind), f)


def caption(
    *,
    model: str,
    seq: int,
    batch: int,
    platform: str,
    precision: str,
    detail: str,
    assumptions: Mapping[str, str] | None = None,
) -> str:
    """One line that says what was simulated and what the numbers stand on, for the foot of a figure."""
    shape = f"{model}, seq {seq}, batch {batch}" if seq else model
    said = "; ".join(f"{key}: {value}" for key, value in (assumptions or {}).items())
    return f"{shape}, {precision}, on {platform}, {detail} model" + (f" ({said})" if said else "")


def breakdown_figure(table: pd.DataFrame, title: str, *, total_s: float | None = None, footnote: str = "") -> Figure:
    """Bar charts of the time in ops, by operator, by unit and by block, each bar split into compute and stall.

    Beside each bar: its time, its share of the time in all ops, and the share of the bar that is stall. Every chart
    adds up to the time in all ops; what is too small for a line of its own shares one.
    total_s: time from start to end, said in the heading where it differs from the sum of the ops.
    footnote: what was simulated, see `caption`.

    Raises SpecError for a table with a column missing or without a row that takes time.
    """
    bars = _bars(table, title)
    everything = float(bars["time_s"].sum())
    operators = [Bar(*row) for row in _fold_small(_sums(bars, "label"), 0.0005 * everything)]
    units = [Bar(*row) for row in _sums(bars, "unit")]
    blocks: list[Bar] = []
    for block, compute_s, stall_s in _sums(bars, "block"):
        blocks.append(Bar(block, compute_s, stall_s, bold=True))
        if compute_s + stall_s >= 0.02 * everything:
            inside = _sums(bars[bars["block"] == block], "label")
            blocks += [Bar(*row, inside=True) for row in _fold_small(inside, 0.003 * everything)]
    with context(STYLE, after_reset=True):
        lines = (len(operators) + _GAP + len(units), len(blocks))
        foot = _wrap(footnote, DOUBLE)
        top, bottom = 0.62, 0.44 + _FOOT * len(foot)
        height = _ROW * (max(lines) + 0.2)
        figure = Figure(figsize=(DOUBLE, top + height + bottom))
        unit, scale = _time_unit(total_s or everything)
        _heading(figure, title, _total_line(bars, total_s))
        _bar_legend(figure)
        left, right = (
            _axes(figure, x, bottom + height - _ROW * (n + 0.2), _BARS, _ROW * (n + 0.2))
            for x, n in zip((_EDGE + _NAMES_WIDTH, DOUBLE - _EDGE - _CELLS[-1] - _BARS), lines, strict=True)
        )
        below = _draw_bars(left, operators, 0.0, everything, unit, scale, "by operator")
        _draw_bars(left, units, below + _GAP, everything, unit, scale, "by unit")
        _draw_bars(right, blocks, 0.0, everything, unit, scale, "by block")
        for axes, n in zip((left, right), lines, strict=True):
            _finish_bars(axes, n + 0.2, f"time in ops ({unit})")
        _footnote(figure, foot)
    return figure


def roofline_figure(
    table: pd.DataFrame, flops_per_s: float, dram_bytes_per_s: float, title: str, *, footnote: str = ""
) -> Figure:
    """Log-log chart of FLOP per DRAM byte against FLOP/s attained, under the roof of the platform.

    One marker per distinct work (same operator, FLOPs and bytes), its area the share of time, its colour the family.
    The five heaviest are numbered; a list below says which modules ask for them and how near to the roof they come.
    Ops without FLOPs or without DRAM traffic have no place in it: their share of the time is said below.
    flops_per_s: peak of the array. dram_bytes_per_s: DRAM peak.

    Raises SpecError for a table with a column missing, one without any FLOP, or a roof that is not positive.
    """
    for name, value in (("flops_per_s", flops_per_s), ("dram_bytes_per_s", dram_bytes_per_s)):
        if not (math.isfinite(value) and value > 0):
            raise SpecError(f"roofline {name}", value, "a positive number")
    bars = _bars(table, title)
    drawn = bars[(bars["flops"] > 0) & (bars["dram_bytes"] > 0)]
    if drawn.empty:
        raise SpecError(f"figure {title!r}", "no op with FLOPs and DRAM bytes", "a table with one")
    points = _roofline_points(drawn, float(bars["time_s"].sum()))
    notes = [_roofline_note(points, flops_per_s, dram_bytes_per_s), footnote]
    with context(STYLE, after_reset=True):
        foot = [line for note in notes for line in _wrap(note, SINGLE)]
        heaviest = points[:5]
        below = _FOOT * len(foot) + 0.11
        listed = below + 0.12 * (len(heaviest) + 1) + 0.06
        top, height, bottom = 0.26, 2.15, listed + 0.88
        figure = Figure(figsize=(SINGLE, top + height + bottom))
        _heading(figure, title, "")
        axes = _axes(figure, 0.48, bottom, SINGLE - 0.48 - _EDGE, height)
        _draw_roof(axes, points, flops_per_s, dram_bytes_per_s)
        axes.scatter(
            [p["intensity"] for p in points],
            [p["attained"] for p in points],
            s=[p["area"] for p in points],
            c=[FAMILIES[p["family"]] for p in points],
            alpha=0.85,
            edgecolors="#202020",
            linewidths=0.4,
            zorder=3,
        )
        _roofline_legends(figure, points, listed)
        _list_heaviest(figure, heaviest, below, flops_per_s, dram_bytes_per_s)
        _footnote(figure, foot)
        _place_numbers(figure, axes, heaviest, points)
    return figure


def compare_figure(
    tables: Mapping[str, pd.DataFrame],
    title: str,
    *,
    totals_s: Mapping[str, float] | None = None,
    footnote: str = "",
) -> Figure:
    """One bar per table, stacked by family of operators, on one axis of time.

    totals_s: name -> time from start to end, printed beside the bar; otherwise the sum of its ops.

    Raises SpecError for no tables, a table with a column missing or one without a row that takes time.
    """
    if not tables:
        raise SpecError(f"figure {title!r}", "no tables", "at least one")
    stacks: dict[str, dict[str, float]] = {}
    for name, table in tables.items():
        bars = _bars(table, name)
        stacks[name] = {f: float(bars.loc[bars["family"] == f, "time_s"].sum()) for f in FAMILIES}
    longest = max(sum(stack.values()) for stack in stacks.values())
    unit, scale = _time_unit(longest)
    with context(STYLE, after_reset=True):
        foot = _wrap(footnote, DOUBLE)
        top, bottom, pitch = 0.30, 0.66 + _FOOT * len(foot), 0.30
        left = 0.25 + 0.062 * max(len(name) for name in stacks)
        figure = Figure(figsize=(DOUBLE, top + pitch * len(stacks) + bottom))
        _heading(figure, title, "")
        axes = _axes(figure, left, bottom, DOUBLE - left - 0.75, pitch * len(stacks))
        axes.set_xlim(0, longest / scale * 1.02)
        axes.set_ylim(len(stacks) - 0.5, -0.5)
        axes.set_yticks(range(len(stacks)), list(stacks))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"time in ops ({unit})")
        axes.grid(axis="x")
        starts = np.zeros(len(stacks))
        for name, colour in FAMILIES.items():
            widths = np.array([stack[name] / scale for stack in stacks.values()])
            if widths.any():
                drawn = axes.barh(range(len(stacks)), widths, left=starts, height=0.62, color=colour, label=name)
                _label_segments(drawn, widths, longest / scale, colour)
            starts += widths
        for i, (name, stack) in enumerate(stacks.items()):
            seconds = (totals_s or {}).get(name, sum(stack.values()))
            text = f"{_number(seconds / scale, seconds / scale)} {unit}"
            axes.annotate(text, (starts[i], i), (4, 0), textcoords="offset points", va="center", weight="bold")
        handles, names = axes.get_legend_handles_labels()
        _legend(figure, handles, names, _FOOT * len(foot) + 0.02, columns=9)
        _footnote(figure, foot)
    return figure


def breakdown_of(report: Report) -> Figure:
    """`breakdown_figure` of a report's table, under its own title and caption."""
    title = f"{report.model} on {report.platform}: where the time goes"
    return breakdown_figure(report.table, title, total_s=report.total.time_s, footnote=_caption_of(report))


def roofline_of(report: Report) -> Figure:
    """`roofline_figure` of a report's table under the roof of its platform."""
    roof = report.roof["flops_per_s"], report.roof["dram_bytes_per_s"]
    return roofline_figure(report.table, *roof, f"{report.model} on {report.platform}", footnote=_caption_of(report))


def _caption_of(report: Report) -> str:
    return caption(
        model=report.model, seq=report.seq, batch=report.batch, platform=report.platform, precision=report.precision,
        detail=report.detail, assumptions=report.assumptions,
    )  # fmt: skip


def front_figure(
    values: np.ndarray, is_front: np.ndarray, knee: int, labels: Sequence[str], title: str, *, footnote: str = ""
) -> Figure:
    """Every two objectives of points against each other, the front over the others, its knee marked.

    values: float (n, d), d >= 2, smaller is better, one panel for each pair of the first three. is_front: bool (n,) in
    all d objectives at once, so that in a panel a point of the front may be behind another. knee: its row. labels: of
    the objectives, with units. An axis is logarithmic where its values span more than a factor of 20.

    Raises SpecError for fewer than two objectives or no point of the front.
    """
    count = values.shape[1]
    if count < 2 or not is_front.any():
        raise SpecError(f"figure {title!r}", f"{count} objectives, {int(is_front.sum())} points", "at least 2, and 1")
    pairs = [(0, 1)] if count == 2 else [(0, 1), (0, 2), (1, 2)]
    with context(STYLE, after_reset=True):
        width = SINGLE if len(pairs) == 1 else DOUBLE
        foot = _wrap(footnote, width)
        top, bottom, left, gap = 0.3, 0.62 + _FOOT * len(foot), 0.48, 0.52
        each = (width - left - _EDGE - 0.06 - gap * (len(pairs) - 1)) / len(pairs)
        height = each * (0.78 if len(pairs) == 1 else 1.0)
        figure = Figure(figsize=(width, top + height + bottom))
        _heading(figure, title, "")
        for k, (x, y) in enumerate(pairs):
            axes = _axes(figure, left + k * (each + gap), bottom, each, height)
            axes.grid()
            style: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0}
            axes.plot(*values[~is_front][:, [x, y]].T, ".", ms=1.6, color="#B4B4B4", rasterized=True, **style)
            axes.plot(*values[is_front][:, [x, y]].T, "o", ms=2.6, color=COMPUTE, **style)
            axes.plot(*values[knee, [x, y]], **_KNEE)
            for i, scale, name in ((x, axes.set_xscale, axes.set_xlabel), (y, axes.set_yscale, axes.set_ylabel)):
                name(labels[i])
                known = values[:, i][np.isfinite(values[:, i])]
                if known.min() > 0 and known.max() > 20 * known.min():
                    scale("log")
        dots = [_dot("#B4B4B4", 4), _dot(COMPUTE, 7), Line2D([], [], **_KNEE)]
        _legend(figure, dots, ["others", "front", "knee"], _FOOT * len(foot) + 0.05, columns=3)
        _footnote(figure, foot)
    return figure


_KNEE: dict[str, Any] = {
    "marker": "D", "linestyle": "", "markersize": 5, "markerfacecolor": STALL, "markeredgecolor": "#202020",
    "markeredgewidth": 0.6,
}  # fmt: skip


def knobs_figure(
    knobs: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]], title: str, *, footnote: str = ""
) -> Figure:
    """A bar chart per knob: which share of all points, and of the points of the front, has each of its values.

    knobs: name with unit -> (values as text, points with each value, points of the front with each value). More than
    16 values share bars, each named after its first.

    Raises SpecError for no knobs.
    """
    if not knobs:
        raise SpecError(f"figure {title!r}", "no knobs", "at least one")
    columns = min(4, len(knobs))
    lines = -(-len(knobs) // columns)
    with context(STYLE, after_reset=True):
        foot = _wrap(footnote, DOUBLE)
        top, bottom, left, gap, height, pitch = 0.3, 0.5 + _FOOT * len(foot), 0.42, 0.28, 0.85, 1.32
        each = (DOUBLE - left - _EDGE - gap * (columns - 1)) / columns
        figure = Figure(figsize=(DOUBLE, top + pitch * lines + bottom - 0.3))
        _heading(figure, title, "")
        for i, (name, (values, everything, of_front)) in enumerate(knobs.items()):
            line, column = divmod(i, columns)
            above = bottom + 0.1 + pitch * (lines - 1 - line)
            axes = _axes(figure, left + column * (each + gap), above, each, height)
            per = -(-len(values) // 16)
            starts = np.arange(0, len(values), per)
            for shift, counts, colour in ((-0.2, everything, "#B4B4B4"), (0.2, of_front, COMPUTE)):
                shares = 100 * np.add.reduceat(counts, starts) / max(1, counts.sum())
                axes.bar(np.arange(len(starts)) + shift, shares, width=0.4, color=colour)
            names = [values[int(start)] for start in starts]
            turn = 90 if sum(map(len, names)) + len(names) > each / 0.05 else 0
            axes.set_xticks(range(len(starts)), names, rotation=turn, size=5.5)
            axes.tick_params(axis="x", length=0)
            axes.set_title(textwrap.shorten(name, 34), size=6.5, pad=3)
            axes.locator_params(axis="y", nbins=4)
            axes.grid(axis="y")
            if column == 0:
                axes.set_ylabel("share of points (%)")
        handles = [Patch(color="#B4B4B4"), Patch(color=COMPUTE)]
        _legend(
            figure, handles, ["points within the limits", "points of the front"], _FOOT * len(foot) + 0.05, columns=2
        )
        _footnote(figure, foot)
    return figure


_METADATA = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Path of the .png, .pdf or .svg written; the same figure gives the same bytes.

    Written under a temporary name, then renamed. Raises SpecError for another suffix or a folder that is not there.
    """
    target = Path(path)
    check_output(target, _METADATA)
    suffix = target.suffix.lower()
    with context(STYLE, after_reset=True):
        return write_whole(target, lambda p: figure.savefig(p, format=suffix[1:], metadata=_METADATA[suffix]))


# --- tables -------------------------------------------------------------------------------------------------------

_NEEDED = (
    "op",
    "group",
    "operator",
    "unit",
    "kind",
    "macs",
    "layer",
    "cycles",
    "compute_cycles",
    "time_s",
    "flops",
    "dram_bytes",
)


def _bars(table: pd.DataFrame, title: str) -> pd.DataFrame:
    """The rows that take time, with block, label, family, compute_s and stall_s added."""
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise SpecError(f"figure {title!r}", f"a table without {', '.join(missing)}", "the columns of a report")
    rows = table[table["cycles"] > 0]
    if rows.empty:
        raise SpecError(f"figure {title!r}", "no row that takes time", "at least one")
    kinds = list(zip(rows["op"], rows["operator"], rows["kind"], strict=True))
    compute_s = rows["time_s"] * (rows["compute_cycles"] / rows["cycles"])
    return rows.assign(
        block=[block_of(group, layer) for group, layer in zip(rows["group"], rows["layer"], strict=True)],
        label=[label(*k) for k in kinds],
        family=[family(*k[1:]) for k in kinds],
        compute_s=compute_s,
        stall_s=rows["time_s"] - compute_s,
    )


def _sums(bars: pd.DataFrame, by: str) -> list[tuple[str, float, float]]:
    """(label, compute_s, stall_s), largest first; equal ones by label."""
    sums = bars.groupby(by)[["compute_s", "stall_s"]].sum()
    rows = [(str(name), float(c), float(s)) for name, c, s in sums.itertuples()]
    return sorted(rows, key=lambda row: (-(row[1] + row[2]), row[0]))


def _fold_small(rows: list[tuple[str, float, float]], least_s: float) -> list[tuple[str, float, float]]:
    """The rows with those below least_s added up in one, where that saves a line."""
    small = [row for row in rows if row[1] + row[2] < least_s]
    if len(small) < 2:
        return rows
    kept = [row for row in rows if row[1] + row[2] >= least_s]
    return [*kept, (f"{len(small)} others", sum(r[1] for r in small), sum(r[2] for r in small))]


def _roofline_points(drawn: pd.DataFrame, everything_s: float) -> list[dict[str, Any]]:
    """One entry per distinct work, heaviest first: intensity, attained, share, area, family, names."""
    points = []
    for key, rows in drawn.groupby(["operator", "kind", "macs", "flops", "dram_bytes"], sort=False):
        time_s, flops = float(rows["time_s"].sum()), float(rows["flops"].sum())
        share = time_s / everything_s
        names = dict.fromkeys(
            _short_name(*row) for row in rows[["op", "group", "layer", "operator", "kind"]].itertuples(index=False)
        )
        points.append(
            {
                "intensity": flops / float(rows["dram_bytes"].sum()),
                "attained": flops / time_s,
                "share": share,
                "area": _area(share),
                "family": family(str(key[0]), str(key[1])),
                "names": _join_names(list(names)),
            }
        )
    return sorted(points, key=lambda p: (-p["share"], p["names"]))


def _area(share: float) -> float:
    """Area in square points of a marker: proportional to the share of time, but never too small to be seen."""
    return max(5.0, 350.0 * share)


def _roofline_note(points: list[dict[str, Any]], flops_per_s: float, dram_bytes_per_s: float) -> str:
    absent = 1 - sum(p["share"] for p in points)
    note = "Marker area: share of time."
    if absent > 5e-4:
        note += f" Not drawn: {_share(absent)} % of the time, in ops without FLOPs."
    if any(p["attained"] > 1.001 * min(flops_per_s, p["intensity"] * dram_bytes_per_s) for p in points):
        note += " Above the slope: operands that were loaded during earlier ops."
    return note


def _short_name(op: str, group: str, layer: int, operator: str, kind: str) -> str:
    """Where a linear op stands; what another op is.

    >>> _short_name("encoder.layer.3.output.dense.linear", "encoder.layer.3.output.dense", 3, "linear", "gemm")
    'feed-forward output'
    """
    if operator != "linear":
        return label(op, operator, kind)
    words = [part for part in module_of(op).split(".") if part not in _GENERIC]
    block = block_of(group, layer)
    return " ".join(words if words[:1] == [block] or layer < 0 else [block, *words]) or operator


def _join_names(names: Sequence[str]) -> str:
    """The names in a row with what they begin with said once.

    >>> _join_names(["attention query", "attention key", "attention value"])
    'attention query, key, value'
    """
    words = [name.split() for name in names]
    common = 0
    while all(len(w) > common + 1 and w[common] == words[0][common] for w in words):
        common += 1
    joined = ", ".join([names[0], *(" ".join(w[common:]) for w in words[1:])])
    if len(joined) > 38 and len(names) > 1:
        joined = f"{names[0]} and {len(names) - 1} more"
    return joined if len(joined) <= 40 else f"... {joined[-36:]}"


# --- drawing ------------------------------------------------------------------------------------------------------


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place given in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _heading(figure: Figure, title: str, subtitle: str) -> None:
    w, h = figure.get_size_inches()
    figure.text(_EDGE / w, 1 - 0.07 / h, title, va="top", size=8.5, weight="bold")
    figure.text(_EDGE / w, 1 - 0.23 / h, subtitle, va="top", size=7)


def _footnote(figure: Figure, lines: Sequence[str]) -> None:
    w, h = figure.get_size_inches()
    figure.text(_EDGE / w, 0.04 / h, "\n".join(lines), va="bottom", size=5.5, color=_GREY, linespacing=1.25)


def _wrap(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int((width - 2 * _EDGE) / 0.0405)) if text else []


def _time_unit(seconds: float) -> tuple[str, float]:
    """Unit that prints this time with a digit before the point, and its seconds."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return unit, scale
    return "ns", 1e-9


def _number(value: float, largest: float) -> str:
    """With the decimals that a column with this largest value needs.

    >>> _number(0.37272, 12.4), _number(0.0002, 1.04)
    ('0.37', '<0.001')
    """
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    return f"<{10.0**-decimals}" if 0 < value < 0.5 * 10.0**-decimals else f"{value:,.{decimals}f}"


def _share(share: float) -> str:
    """In percent."""
    return _number(100 * share, 100)


def _total_line(bars: pd.DataFrame, total_s: float | None) -> str:
    compute_s, stall_s = float(bars["compute_s"].sum()), float(bars["stall_s"].sum())
    everything = compute_s + stall_s
    total = total_s or everything
    unit, scale = _time_unit(total)
    split = f"{_share(compute_s / everything)} % compute, {_share(stall_s / everything)} % stall"
    if math.isclose(total, everything, rel_tol=1e-6):
        return f"{_number(total / scale, total / scale)} {unit}: {split}"
    return (
        f"{_number(total / scale, total / scale)} {unit} from start to end; the ops, which overlap and wait for each "
        f"other, take {_number(everything / scale, total / scale)} {unit}: {split}"
    )


def _draw_bars(
    axes: Any, bars: Sequence[Bar], first: float, everything_s: float, unit: str, scale: float, name: str
) -> float:
    """Draw one line per bar from line `first` on; the line after the last."""
    places = first + np.arange(len(bars))
    compute = np.array([bar.compute_s for bar in bars]) / scale
    stall = np.array([bar.stall_s for bar in bars]) / scale
    heights = [0.5 if bar.inside else 0.76 for bar in bars]
    axes.barh(places, compute, height=heights, color=COMPUTE, label=f"compute {name}")
    axes.barh(places, stall, left=compute, height=heights, color=STALL, label=f"stall {name}")
    across = axes.get_yaxis_transform()
    columns = [(1 + x / _BARS, name) for x, name in zip(_CELLS, (unit, "share %", "stall %"), strict=True)]
    margin, indent = -_NAMES_WIDTH / _BARS, 0.09 / _BARS
    axes.text(margin, first - 0.72, name, transform=across, size=7.5, weight="bold", va="bottom")
    for x, heading in columns:
        axes.text(x, first - 0.72, heading, transform=across, ha="right", va="bottom", size=6.5, color=_GREY)
    for y, bar in zip(places, bars, strict=True):
        style = {"transform": across, "va": "center_baseline", "size": 6.5 if bar.inside else 7}
        style["weight"] = "bold" if bar.bold else "normal"
        axes.text(margin + indent * bar.inside, y, bar.name, **style)
        time_s = bar.compute_s + bar.stall_s
        cells = (
            _number(time_s / scale, everything_s / scale),
            _share(time_s / everything_s),
            _share(bar.stall_s / time_s),
        )
        for (x, _), cell in zip(columns, cells, strict=True):
            axes.text(x, y, cell, ha="right", **style)
    return float(first + len(bars))


def _finish_bars(axes: Any, lines: float, xlabel: str) -> None:
    axes.set_xlim(0, max(patch.get_x() + patch.get_width() for patch in axes.patches) * 1.03)
    axes.set_ylim(lines - 0.5, -0.6)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _bar_legend(figure: Figure) -> None:
    w, h = figure.get_size_inches()
    handles = [Patch(color=COMPUTE, label="compute"), Patch(color=STALL, label="stall (waits for memory)")]
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - _EDGE / w, 1 - 0.03 / h), ncols=2, borderaxespad=0
    )


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], above: float, columns: int) -> None:
    """A legend `above` inches over the lower edge."""
    w, h = figure.get_size_inches()
    figure.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(_EDGE / w, (above + 0.03) / h),
        ncols=columns,
        borderaxespad=0,
        borderpad=0.2,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def _label_segments(drawn: Any, widths: np.ndarray, longest: float, colour: str) -> None:
    """The time inside every segment wide enough to hold it."""
    dark = colour in ("#0072B2", "#009E73", "#D55E00", "#000000")
    for patch, width in zip(drawn, widths, strict=True):
        if width > 0.06 * longest:
            x, y = patch.get_x() + width / 2, patch.get_y() + patch.get_height() / 2
            patch.axes.text(
                x, y, _number(width, longest), ha="center", va="center", size=6.5, color="white" if dark else "black"
            )


def _draw_roof(axes: Any, points: list[dict[str, Any]], flops_per_s: float, dram_bytes_per_s: float) -> None:
    ridge = flops_per_s / dram_bytes_per_s
    low = min(ridge, *(p["intensity"] for p in points)) / 3
    high = max(ridge, *(p["intensity"] for p in points)) * 12
    bottom = min(p["attained"] for p in points) / 3
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, flops_per_s * 5)
    axes.grid(which="major")
    axes.plot([low, ridge, high], [low * dram_bytes_per_s, flops_per_s, flops_per_s], color="#202020", zorder=2)
    axes.plot([ridge, ridge], [bottom, flops_per_s], color=_GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
    axes.plot([ridge], [flops_per_s], marker="D", markersize=3, color="white", markeredgecolor="#202020", zorder=4)
    axes.set_xlabel("operational intensity (FLOP per DRAM byte)")
    axes.set_ylabel("attained (FLOP/s)")
    axes.annotate(
        f"ridge {ridge:.3g} FLOP/byte",
        (ridge, bottom),
        (-3, 3),
        textcoords="offset points",
        ha="right",
        color=_GREY,
        size=6,
    )
    axes.annotate(
        f"peak {_si(flops_per_s)}FLOP/s", (high, flops_per_s), (0, 7), textcoords="offset points", ha="right", size=6.5
    )
    box = axes.get_position().size * axes.figure.get_size_inches()
    slope = math.degrees(math.atan2(box[1] / math.log(flops_per_s * 5 / bottom), box[0] / math.log(high / low)))
    start = max(low, bottom / dram_bytes_per_s) * 1.6
    axes.annotate(
        f"DRAM {_si(dram_bytes_per_s)}B/s", (start, start * dram_bytes_per_s), (-3, 3), textcoords="offset points",
        rotation=slope, rotation_mode="anchor", size=6.5,
    )  # fmt: skip


def _si(value: float) -> str:
    """Three digits and the SI prefix.

    >>> _si(25.6e9), _si(2.048e12)
    ('25.6 G', '2.05 T')
    """
    power = min(5, max(0, math.floor(math.log10(value) / 3))) if value >= 1 else 0
    return f"{f'{value / 1000**power:#.3g}'.rstrip('.')} {['', 'k', 'M', 'G', 'T', 'P'][power]}"


def _list_heaviest(
    figure: Figure, heaviest: Sequence[dict[str, Any]], above: float, flops_per_s: float, dram_bytes_per_s: float
) -> None:
    """The numbered works, `above` inches over the lower edge: name, time, FLOP/s, share of the roof."""
    w, h = figure.get_size_inches()
    rows = [("", "heaviest works", "time %", "FLOP/s", "of roof %")]
    for i, point in enumerate(heaviest):
        roof = min(flops_per_s, point["intensity"] * dram_bytes_per_s)
        rates = (_si(point["attained"]), _share(point["attained"] / roof))
        rows.append((str(i + 1), point["names"], _share(point["share"]), *rates))
    places = ((_EDGE, "left"), (_EDGE + 0.12, "left"), (2.43, "right"), (2.86, "right"), (SINGLE - _EDGE, "right"))
    for line, row in enumerate(rows):
        y = (above + 0.12 * (len(rows) - 1 - line)) / h
        for (x, ha), cell in zip(places, row, strict=True):
            figure.text(
                x / w, y, cell, ha=ha, va="baseline", size=6, color="#202020" if line else _GREY,
                weight="bold" if line and x == _EDGE else "normal",
            )  # fmt: skip


def _roofline_legends(figure: Figure, points: list[dict[str, Any]], foot: float) -> None:
    present = [name for name in FAMILIES if any(p["family"] == name for p in points)]
    dots = [_dot(FAMILIES[name], _area(0.07)) for name in present]
    _legend(figure, dots, present, foot + 0.20, columns=4)
    shares = (0.01, 0.1, 0.25)
    sizes = [f"{100 * s:.0f} % of time" for s in shares]
    _legend(figure, [_dot("#FFFFFF", _area(s)) for s in shares], sizes, foot, columns=3)


def _dot(colour: str, area: float) -> Any:
    return Line2D(
        [], [], marker="o", linestyle="", markersize=math.sqrt(area), markerfacecolor=colour,
        markeredgecolor="#202020", markeredgewidth=0.4,
    )  # fmt: skip


def _place_numbers(figure: Figure, axes: Any, numbered: list[dict[str, Any]], points: list[dict[str, Any]]) -> None:
    """Number the markers 1, 2, ..., each at the nearest of a fixed set of places where the number hides least."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axes.get_window_extent(renderer)
    texts = np.array([text.get_window_extent(renderer).extents for text in axes.texts])
    others = [_boxes_along(axes.transData.transform(line.get_xydata()), 150) for line in axes.lines[:2]]
    for point in points:
        x, y = axes.transData.transform((point["intensity"], point["attained"]))
        r = math.sqrt(point["area"]) / 2 * figure.dpi / 72
        others.append(np.array([[x - r, y - r, x + r, y + r]]))
    marks, leaders = np.concatenate(others), np.zeros((0, 4))
    for number, point in enumerate(numbered, 1):
        r = math.sqrt(point["area"]) / 2
        at = (point["intensity"], point["attained"])
        centre = axes.transData.transform(at)
        text = axes.annotate(
            str(number), at, (0, 0), textcoords="offset points", size=6.5, weight="bold", zorder=5, ha="center",
            va="center", gid="number",
        )  # fmt: skip
        text.update_positions(renderer)
        half: np.ndarray = np.asarray(Text.get_window_extent(text, renderer).size) / 2
        fewest, chosen = math.inf, None
        for direction, distance in _PLACES:
            middle = centre + direction * (half + (r + distance) * figure.dpi / 72)
            box = np.concatenate([middle - half, middle + half])
            nearest = np.clip(centre, box[:2], box[2:])
            leader = _boxes_along(np.array([nearest, centre]), 12)[:8]
            outside = box[0] < frame.x0 or box[1] < frame.y0 or box[2] > frame.x1 + 2 or box[3] > frame.y1
            hidden = 1000 * outside + 5 * _overlaps(box[None], marks) + _overlaps(leader, leaders) + distance / 20
            hidden += 50 * (_overlaps(box[None], np.vstack([texts, leaders])) + _overlaps(leader, texts))
            if hidden < fewest:
                fewest, chosen = hidden, (middle, box, leader, nearest)
        assert chosen is not None
        middle, box, leader, nearest = chosen
        text.set_position((middle - centre) * 72 / figure.dpi)
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": _GREY, "shrinkA": 0, "shrinkB": r}
        offset = (nearest - centre) * 72 / figure.dpi
        if np.hypot(*offset) > r + 3:
            axes.annotate("", at, offset, textcoords="offset points", arrowprops=line, zorder=2.5)
        texts, leaders = np.vstack([texts, box]), np.vstack([leaders, leader])


_PLACES = [
    (np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]).round(6), d)
    for d in (1, 4, 8, 12, 16, 21, 27)
    for a in (0, 180, 90, 270, 45, 135, 225, 315, 165, 15, 195, 345, 150, 30, 210, 330, 115, 65, 245, 295)
]
"""Directions and distances in points from a marker where its number may stand, nearest first."""


def _boxes_along(path: np.ndarray, pieces: int) -> np.ndarray:
    """(n, 4) small boxes along a line in pixels."""
    t = np.linspace(0, 1, pieces)[:, None]
    at = np.concatenate([a + t * (b - a) for a, b in pairwise(path)])
    return np.hstack([at - 1, at + 1])


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> int:
    """How many pairs of boxes of the two sets have an area in common."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return int((low < high).all(axis=2).sum())

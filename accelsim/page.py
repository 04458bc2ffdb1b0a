"""A study as one HTML file: linked views of its front and a sample, summaries of everything else, no network.

`data_of` chooses what is embedded, `render` puts it into page.html. Nothing in the page is looked up: a browser opens
the file from disk, and its content security policy forbids connections.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.pareto import front, knee, objectives_of
from accelsim.platforms import describe, names, platform, systolic
from accelsim.report import block_of, check_output
from accelsim.simulate import simulate
from accelsim.space import MODEL_AXES, Space
from accelsim.study import Study
from accelsim.sweep import graph_of, keep
from accelsim.transforms.prune import PARTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN, SAMPLE, DETAILED, SEED = 3000, 5000, 100, 0
"""Points of the front and of the rest that are embedded, points with a breakdown by op, seed of the sample."""
LABELS = {
    "time_s": ("time", "s"),
    "energy_j": ("energy", "J"),
    "power_w": ("power", "W"),
    "fps_per_w": ("efficiency", "sequences/s/W"),
    "area_mm2": ("area", "mm²"),
    "utilization": ("utilization", "%"),
    "error": ("error", "%"),
    "dsp": ("DSP", "slices"),
    "bram18k": ("BRAM18K", "blocks"),
    "uram": ("URAM", "blocks"),
    "lut": ("LUT", ""),
    "ff": ("FF", ""),
    "macs": ("MACs", ""),
    "sram_bytes": ("on-chip traffic", "B"),
    "dram_bytes": ("DRAM traffic", "B"),
}
"""Column -> what it is called, and its unit before any prefix."""
_UNITS = {
    "bytes_per_cycle": "B/cycle", "pj_per_byte": "pJ/B", "bytes": "B", "hz": "Hz", "bits": "bit",
    "w": "W", "pj": "pJ", "nm": "nm", "s": "s", "j": "J", "mm2": "mm²",
}  # fmt: skip
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


# --- what counts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The points of a study that the hardware can run and that keep its limits."""

    study: Study
    objectives: tuple[str, ...]
    """Columns that are minimized."""
    table: pd.DataFrame
    """A row per kept point: `point` and every result that some point has."""
    priced: int
    feasible: int

    @cached_property
    def values(self) -> np.ndarray:
        """float64 (n, d), the objectives."""
        return np.asarray(self.table[list(self.objectives)].to_numpy(), float)

    @cached_property
    def front(self) -> np.ndarray:
        """Rows of the table that no other dominates, by the first objective, then the others, then the point."""
        rows = np.flatnonzero(front(self.values))
        keys = [self.table["point"].to_numpy()[rows], *self.values[rows].T[::-1]]
        return rows[np.lexsort(keys)]

    @cached_property
    def extremes(self) -> list[int]:
        """For each objective the row of the front where it is least; of equal ones the first of the front."""
        return [int(self.front[int(self.values[self.front, i].argmin())]) for i in range(len(self.objectives))]

    @cached_property
    def knee(self) -> int:
        """The row of the front that `pareto.knee` names."""
        return int(self.front[knee(self.values[self.front])])

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Axis -> int64 (n,), the place of each kept point's value in `Axis.values`."""
        return self.study.space.places(self.table["point"].to_numpy())


def kept(study: Study) -> Kept:
    """The points of a study that count.

    Raises SpecError if there is none, or if an objective has no values.
    """
    import pandas as pd

    space = study.space
    results = [name for name in study.columns if name not in space.columns]
    table = study.table(results).drop_duplicates("point", ignore_index=True)
    mask = keep(space, {name: table[name].to_numpy() for name in results})
    feasible = int(table["feasible"].sum())
    found = table[mask].reset_index(drop=True)
    if found.empty:
        said = f"{len(table)} points, {feasible} that the hardware can run, 0 within the limits"
        raise SpecError(f"study {study.folder}", said, "at least one point to show")
    numbers = [n for n in results if n not in ("point", "feasible") and pd.api.types.is_numeric_dtype(found[n])]
    known = [name for name in numbers if found[name].notna().any()]
    wanted = objectives_of(study)
    for name in wanted:
        if name not in known:
            raise SpecError(f"study {study.folder}: objective {name}", "no values", "a column of results with numbers")
    if not found[[*wanted]].notna().all(axis=1).any():
        raise SpecError(f"study {study.folder}", f"no point with {', '.join(wanted)}", "a point where all are known")
    return Kept(study, tuple(wanted), found[["point", *known]], len(table), feasible)


def thinned(found: Kept) -> np.ndarray:
    """Rows of the front that are embedded: all up to SHOWN; else extremes, knee and SHOWN evenly along the front."""
    return _along(found, SHOWN)


def detailed(found: Kept) -> np.ndarray:
    """Rows of the front with a breakdown by op: extremes, knee, and others evenly along the front, DETAILED at most."""
    return _along(found, DETAILED)


def _along(found: Kept, count: int) -> np.ndarray:
    rows = found.front
    if len(rows) <= count:
        return rows
    first = {*found.extremes, found.knee}
    evenly = np.linspace(0, len(rows) - 1, count - len(first)).round().astype(int)
    chosen = first | set(rows[evenly].tolist())
    return rows[np.isin(rows, list(chosen))]


# --- the data of a page -----------------------------------------------------------------------------------------------


def data_of(study: Study) -> dict[str, Any]:
    """Everything a page shows, as JSON has it; columns of numbers as base64 of little-endian float64, exact."""
    found = kept(study)
    return page_data(found)


def page_data(found: Kept, with_breakdown: bool = True) -> dict[str, Any]:
    """`data_of` a study of which is known what counts."""
    space = found.study.space
    shown = thinned(found)
    rest = np.setdiff1d(np.arange(len(found.table)), found.front, assume_unique=True)
    if len(rest) > SAMPLE:
        rest = np.sort(np.random.default_rng(SEED).choice(rest, SAMPLE, replace=False))
    rows = np.concatenate([shown, rest])
    where = {int(row): i for i, row in enumerate(shown)}
    table = found.table.iloc[rows]
    return {
        "title": f"{_said(space, 'model')} on {space.platform}",
        "about": {
            "model": space.model, "head": space.head, "seq": space.seq, "batch": space.batch,
            "precision": space.precision, **{part: getattr(space, part) for part in PARTS},
            "mapping": space.mapping, "platform": space.platform,
            "preset": _preset(space), "limits": [str(limit) for limit in space.limits],
        },
        "counts": {
            "points": space.points, "priced": found.priced, "feasible": found.feasible, "kept": len(found.table),
            "front": len(found.front), "shown": len(shown), "sample": len(rest), "seed": SEED,
        },
        "axes": [_axis(found, axis.path, rows) for axis in space.axes],
        "metrics": [_metric(found, name, table[name].to_numpy()) for name in _metrics(found)],
        "points": _packed(table["point"].to_numpy()),
        "knee": where[found.knee],
        "extremes": {name: where[row] for name, row in zip(found.objectives, found.extremes, strict=True)},
        "base": space.base,
        "followed": _followed(space, found.places, rows),
        "breakdown": _breakdown(found, where) if with_breakdown else {"groups": [], "at": {}},
    }  # fmt: skip


def _said(space: Space, name: str) -> str:
    """A setting of the model in words: its value, or how many values its axis has."""
    if name not in space.columns:
        return str(getattr(space, name))
    count = len(space.axis(name).values)
    return f"{count} {name}s" if count > 1 else str(space.axis(name).values[0])


def _metrics(found: Kept) -> list[str]:
    """Objectives first, then results that are not the same for all points."""
    others = [name for name in found.table.columns if name not in ("point", *found.objectives)]
    return [*found.objectives, *(name for name in others if found.table[name].nunique() > 1)]


def _metric(found: Kept, name: str, values: np.ndarray) -> dict[str, Any]:
    everything = found.table[name].to_numpy(dtype=float)
    label, unit = LABELS.get(name) or (name.replace("_", " "), _unit_of(name))
    unit, scale = scaled(unit, everything)
    quantiles = np.nanquantile(everything, [0, 0.25, 0.5, 0.75, 1])
    return {
        "name": name, "label": label, "unit": unit, "scale": scale, "objective": name in found.objectives,
        "quantiles": quantiles.tolist(), "values": _packed(values),
    }  # fmt: skip


def _axis(found: Kept, path: str, rows: np.ndarray) -> dict[str, Any]:
    axis = found.study.space.axis(path)
    places = found.places[path]
    unit, scale = "", 1.0
    if all(type(v) in (int, float) for v in axis.values):
        unit, scale = scaled(_unit_of(path), np.array(axis.values, float))
    return {
        "path": path, "follows": axis.follows, "model": path in MODEL_AXES, "values": list(axis.values), "unit": unit,
        "scale": scale, "kept": np.bincount(places, minlength=len(axis.values)).tolist(),
        "front": np.bincount(places[found.front], minlength=len(axis.values)).tolist(),
    }  # fmt: skip


def _unit_of(name: str) -> str:
    """Unit that the end of a field's name says.

    >>> _unit_of("dram.bytes_per_cycle"), _unit_of("clock_hz"), _unit_of("rows")
    ('B/cycle', 'Hz', '')
    """
    last = name.rpartition(".")[2]
    if last in ("seq", "batch"):
        return {"seq": "tokens", "batch": "sequences"}[last]
    return next((unit for end, unit in _UNITS.items() if last == end or last.endswith(f"_{end}")), "")


def scaled(unit: str, values: np.ndarray) -> tuple[str, float]:
    """(unit with the prefix that suits the values, how much one of it is).

    >>> scaled("s", np.array([2e-5, 4e-5]))
    ('µs', 1e-06)
    >>> scaled("B", np.array([65536.0, 131072.0]))
    ('KiB', 1024.0)
    """
    if unit == "%":
        return unit, 0.01
    there = np.abs(values[np.isfinite(values) & (values != 0)])
    if unit == "B" and len(there) and (there % 1024 == 0).all():
        return ("MiB", 1024.0**2) if (there % 1024**2 == 0).all() else ("KiB", 1024.0)
    if unit not in ("s", "J", "W", "Hz", "B") or not len(there):
        return unit, 1.0
    typical = float(np.median(there))
    scale, prefix = next((p for p in _PREFIXES if typical >= p[0]), _PREFIXES[-1])
    return prefix + unit, scale


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def _followed(space: Space, places: Mapping[str, np.ndarray], rows: np.ndarray) -> list[dict[str, Any]]:
    """Fields of the platform that follow its axes: values of the rows, or one for all where they are the same."""
    if space.energies == "stated":
        return []
    designs = space.designs({path: at[rows] for path, at in places.items()})
    fields = {path: systolic.field_of(designs, path) for path in systolic.ENERGIES}
    return [{"path": path, "values": _packed(v[:1] if (v == v[0]).all() else v)} for path, v in fields.items()]


def _preset(space: Space) -> str:
    """The name that the command line gives the base platform, or "" if no preset is as it, or fields follow axes."""
    if space.platform not in names() or space.energies != "stated":
        return ""
    return space.platform if describe(platform(space.platform)) == dict(space.base) else ""


def _breakdown(found: Kept, where: Mapping[int, int]) -> dict[str, Any]:
    """Time and energy by group of ops of `detailed` points, from `simulate` on each point's own platform."""
    points = found.table["point"].to_numpy()
    sums: dict[int, dict[str, tuple[float, float]]] = {}
    for row in detailed(found):
        if int(row) in where:
            sums[where[int(row)]] = group_sums(found.study.space, int(points[row]))
    heaviest: dict[str, float] = {}
    for groups in sums.values():
        for name, (time_s, _) in groups.items():
            heaviest[name] = max(heaviest.get(name, 0.0), time_s)
    order = sorted(heaviest, key=lambda name: (-heaviest[name], name))
    return {
        "groups": order,
        "at": {str(i): [list(groups.get(name, (0.0, 0.0))) for name in order] for i, groups in sums.items()},
    }


def group_sums(space: Space, point: int) -> dict[str, tuple[float, float]]:
    """Group of ops -> (s, J) of a point; they add up to its time and energy. Ops that cost nothing are left out."""
    own = space.values(point)
    precision = str(own.get("precision", space.precision)) or None
    report = simulate(graph_of(space, own), space.chip(point), precision=precision, mapping=space.mapping)
    columns = report.columns
    sums: dict[str, tuple[float, float]] = {}
    for i in range(len(columns["op"])):
        block, operator = block_of(columns["group"][i], columns["layer"][i]), columns["operator"][i]
        time_s, energy_j = float(columns["time_s"][i]), float(columns["energy_j"][i])
        if time_s or energy_j:
            name = f"{block}: {operator.replace('_', ' ')}"
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + time_s, before[1] + energy_j
    return sums


# --- the file ---------------------------------------------------------------------------------------------------------


def render(data: Mapping[str, Any], template: str = "") -> str:
    """The page that shows `data`. template: another text than page.html, for tests."""
    text = template or TEMPLATE.read_text(encoding="utf-8")
    parts = {kind: re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL) for kind in ("style", "script")}
    hashes = {kind: _hash(part[1]) for kind, part in parts.items() if part}
    policy = (
        f"default-src 'none'; style-src '{hashes['style']}'; script-src '{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # allow_nan: numbers that may be unknown are packed; a NaN elsewhere is our own mistake
    content = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    named = {"TITLE": html.escape(str(data["title"])), "POLICY": html.escape(policy), "DATA": content}
    return re.sub(r"@@(TITLE|POLICY|DATA)@@", lambda match: named[match[1]], text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def save_page(found: Kept, path: str | os.PathLike[str]) -> Path:
    """Path of the .html written, under a temporary name first, then renamed; the same study gives the same bytes.

    Raises SpecError for another suffix or a place that cannot be written.
    """
    target = Path(path)
    check_page(target)
    text = render(page_data(found))
    try:
        return write_whole(target, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"output {target}", error.strerror or str(error), "a file that can be written") from None


def check_page(target: Path) -> None:
    """Raise SpecError unless `target` can be the name of a page."""
    check_output(target, dict.fromkeys((".html", ".htm")))
    if target.is_dir():
        raise SpecError(f"output {target}", "a folder", "a file that can be written")


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(found: Kept) -> dict[str, Figure]:
    """Name -> figure: `front`, every two objectives against each other, and `knobs`, their values on the front."""
    from accelsim import plots

    data = page_data(found, with_breakdown=False)
    space, counts = found.study.space, data["counts"]
    rows = np.frombuffer(base64.b64decode(data["points"]), "<f8").astype(np.int64)
    axes = [m for m in data["metrics"] if m["objective"]]
    values = np.stack([np.frombuffer(base64.b64decode(m["values"]), "<f8") / m["scale"] for m in axes], axis=1)
    labels = [f"{m['label']} ({m['unit']})" if m["unit"] else m["label"] for m in axes]
    rest = counts["kept"] - counts["front"]
    fixed = [n for n in ("seq", "batch", *PARTS) if n not in space.columns and getattr(space, n) is not None]
    sizes = [f"{name} {_said(space, name)}" for name in fixed]
    parts = (
        f"{', '.join([_said(space, 'model'), *sizes])}, on {space.platform} with {len(space.free)} free knobs: "
        f"{counts['points']:,} points, {counts['kept']:,} within the limits, "
        f"{counts['front']:,} on the front of {', '.join(m['label'] for m in axes)}"
    )
    drawn = f"; drawn: {counts['shown']:,} of the front and {counts['sample']:,} of the other {rest:,}."
    title = data["title"]
    knobs = {
        (f"{a['path']} ({a['unit']})" if a["unit"] else a["path"]): (
            [_brief(v, a["scale"]) for v in a["values"]], np.array(a["kept"]), np.array(a["front"])
        )
        for a in data["axes"]
        if not a["follows"] and len(a["values"]) > 1
    }  # fmt: skip
    made = {}
    if len(axes) > 1:
        made["front"] = plots.front_figure(
            values, np.arange(len(rows)) < counts["shown"], data["knee"], labels, f"{title}: the front",
            footnote=parts + drawn,
        )  # fmt: skip
    if knobs:
        made["knobs"] = plots.knobs_figure(knobs, f"{title}: knobs on the front", footnote=parts + ".")
    return made


def _brief(value: Any, scale: float) -> str:
    return f"{value / scale:g}" if type(value) in (int, float) else str(value)


def save_figures(found: Kept, folder: Path) -> list[Path]:
    """Paths of NAME.png and NAME.pdf of `figures`. Raises SpecError for a folder that cannot be made or written."""
    from accelsim import plots

    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = figures(found).items()
        return [plots.save_figure(figure, folder / f"{name}.{end}") for name, figure in made for end in ("png", "pdf")]
    except OSError as error:
        raise SpecError(f"output {folder}", error.strerror or str(error), "a folder that can be written") from None

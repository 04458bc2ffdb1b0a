"""Fronts and what moves them: non-dominated points, hypervolume, knee, best points, sensitivity. Tables, not figures.

Rows of `values` are points, columns are objectives, smaller is better. Row a dominates row b if it is nowhere larger
and somewhere smaller. So equal rows do not dominate each other: all of them are in the front, or none is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.space import Axis, Space
from accelsim.study import Study
from accelsim.sweep import evaluate, keep

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = ("time_s", "energy_j", "area_mm2", "dsp", "error")
"""Objectives of a study that names none, where they are known."""
CHUNK = 2**16
"""Rows filtered at once: they fit a core's cache."""
PENDING = 2**20
"""Rows that wait at least before they are held against the front so far."""
EXACT_POINTS = 2**20
"""Largest space of which every point is priced for its sensitivity."""
_LARGEST = float(np.finfo(np.float64).max)


# --- the front --------------------------------------------------------------------------------------------------------


def front(values: Any) -> np.ndarray:
    """bool (n,): rows of (n, d) values that no other row dominates. Exact.

    A row with a NaN, an unknown value, is never in it; inf counts as the largest number. Compared as float64.
    10^7 x 3 random rows take a tenth of a second, a front of a third of the rows some tens: benchmarks/front.py.

    >>> front([[1, 2], [2, 1], [2, 2], [1, 2]]).tolist()
    [True, True, False, True]
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise SpecError("values", values.shape, "an array of shape (points, objectives)")
    rows, _ = front_of(values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    mask = np.zeros(len(values), bool)
    mask[rows] = True
    return mask


def front_of(chunks: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the rows in the front, int64 (k,), ascending; their values, float64 (k, d)) of rows in chunks.

    Rows are numbered through all chunks from 0. The same rows as `front` of all chunks together; what is held is one
    chunk, the front so far, and rows that wait: at most 2^20 or twice the front.
    """
    growing = Growing()
    start = 0
    for chunk in chunks:
        values = np.asarray(chunk, np.float64)
        growing.add(np.arange(start, start + len(values)), values)
        start += len(values)
    return growing.front()


class Growing:
    """The front of the rows added so far. Rows are filtered in three steps, each of which drops dominated rows only:
    those behind one good row, those behind a row of their own chunk, those behind a row of another chunk."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._held = 0
        """Rows in all, the front of those before `_settled` included."""
        self._settled = 0
        """Length of the front that comes first in the lists."""
        self._columns = 0
        self._good: np.ndarray | None = None
        self._is_dense = False
        """Whether most rows of the last chunk were in its own front, so that to look for it is work for nothing."""

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Add (n, d) values, at most about CHUNK of them, and their numbers (n,)."""
        self._columns = values.shape[1]
        values = np.clip(values, -_LARGEST, _LARGEST)  # moocore has no infinity
        known = ~np.isnan(values).any(axis=1)
        if not known.all():
            rows, values = rows[known], values[known]
        if not len(values):
            return
        if self._good is None:
            self._good = _good_row(values)
        ahead = np.flatnonzero(~_dominated(values, self._good))
        if not self._is_dense:
            own = _non_dominated(values[ahead])
            self._is_dense = len(values) > 1024 and 2 * own.sum() > len(values)
            ahead = ahead[own]
        self._rows.append(rows[ahead])
        self._values.append(values[ahead])
        self._held += len(ahead)
        if self._held - self._settled > max(PENDING, 2 * self._settled) or self._settled == 0:
            self._settle()

    def _settle(self) -> None:
        rows, values = np.concatenate(self._rows), np.concatenate(self._values)
        if not len(rows):
            return
        mask = _non_dominated(values)
        self._rows, self._values = [rows[mask]], [values[mask]]
        self._held = self._settled = int(mask.sum())
        self._good = _good_row(self._values[0])

    def front(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the rows in the front, ascending, their values (k, d))."""
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros((0, self._columns))
        self._settle()
        order = np.argsort(self._rows[0], kind="stable")
        return self._rows[0][order], self._values[0][order]


def _non_dominated(values: np.ndarray) -> np.ndarray:
    """bool (n,) of (n, d) values without NaN."""
    if not len(values):
        return np.zeros(0, bool)
    if values.shape[1] == 1:
        lowest: np.ndarray = values[:, 0] == values.min()
        return lowest
    import moocore

    mask: np.ndarray = np.asarray(moocore.is_nondominated(values, keep_weakly=True), bool)
    return mask


def _good_row(values: np.ndarray) -> np.ndarray:
    """A row that dominates many: of the largest box between it and the worst values. Any row would be correct."""
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = values.min(axis=0), values.max(axis=0)
        size = np.prod(np.nan_to_num((high - values) / (high - low), nan=0.0), axis=1)
    row: np.ndarray = values[int(size.argmax())].copy()
    return row


def _dominated(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """bool (n,): whether `row` dominates each of the values."""
    behind, equal = values[:, 0] >= row[0], values[:, 0] == row[0]
    for column, bound in zip(values.T[1:], row[1:], strict=True):
        behind &= column >= bound
        equal &= column == bound
    return np.asarray(behind & ~equal)


# --- of a front -------------------------------------------------------------------------------------------------------


def hypervolume(values: Any, reference: Sequence[float]) -> float:
    """Volume that the rows of (n, d) values dominate, up to the reference point (d,). Exact, by moocore.

    >>> hypervolume([[1, 2], [2, 1]], [3, 3])
    3.0
    """
    import moocore

    values = np.asarray(values, float)
    values = values[~np.isnan(values).any(axis=1)]
    return float(moocore.hypervolume(values, ref=list(reference))) if len(values) else 0.0


def knee(values: Any) -> int:
    """The row of a front (n, d) that loses least in all objectives at once: the first of the smallest sums.

    Each objective goes from 0 at its least to 1 at its most, by its logarithm where all of it is positive. This is the
    bend of Das (1999): the row furthest towards the origin from the plane through the extremes.

    Raises SpecError for no rows.
    """
    values = np.asarray(values, float)
    if not len(values):
        raise SpecError("front", "no points", "at least one")
    positive = (values > 0).all(axis=0)
    scaled = np.where(positive, np.log(np.where(positive, values, 1)), values)
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    return int(((scaled - low) / np.where(high > low, high - low, 1)).sum(axis=1).argmin())


# --- of a study -------------------------------------------------------------------------------------------------------


def objectives_of(study: Study, asked: Sequence[str] = ()) -> list[str]:
    """The objectives asked for, else those of the search, else those of OBJECTIVES that the study has values of.

    Raises SpecError for an objective that is no column of results.
    """
    results = [name for name in study.columns if name not in ("point", "feasible", *study.space.columns)]
    for name in asked or study.objectives:
        if name not in results:
            raise SpecError.unknown("objective", name, results)
    if asked or study.objectives:
        return [*(asked or study.objectives)]
    there = [name for name in OBJECTIVES if name in results]
    seen: set[str] = set()
    for chunk in study.chunks(there):
        seen |= {name for name in there if np.any(np.nan_to_num(chunk[name].astype(float)) != 0)}
        if len(seen) == len(there):
            break
    return [name for name in there if name in seen]


def kept_chunks(study: Study, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each file of a study: (point (n,), whether it runs within the limits (n,), the columns, float64 (n, d))."""
    wanted = dict.fromkeys(["point", "feasible", *columns, *(limit.field for limit in study.space.limits)])
    for chunk in study.chunks([*wanted]):
        values = np.stack([chunk[name].astype(np.float64) for name in columns], axis=1)
        yield chunk["point"], keep(study.space, chunk), values


def study_front(study: Study, objectives: Sequence[str]) -> pd.DataFrame:
    """The rows of a study that run within its limits and that no other such row dominates, by the first objective.

    Raises SpecError if no point runs within the limits.
    """
    growing = Growing()
    for points, kept, values in kept_chunks(study, objectives):
        growing.add(points[kept], values[kept])
    points, _ = growing.front()
    _some(study, points)
    return study.rows(points).sort_values([objectives[0], "point"], ignore_index=True)


def top(study: Study, objective: str, count: int) -> pd.DataFrame:
    """The `count` rows of a study with the least of an objective, among those that run within its limits."""
    best, found = np.zeros(0, np.int64), np.zeros(0)
    for points, kept, values in kept_chunks(study, [objective]):
        mine = kept & ~np.isnan(values[:, 0])
        best, found = np.concatenate([best, points[mine]]), np.concatenate([found, values[mine, 0]])
        first = np.lexsort([best, found])[:count]
        best, found = best[first], found[first]
    _some(study, best)
    return study.rows(best).sort_values([objective, "point"], ignore_index=True)


def _some(study: Study, points: np.ndarray) -> None:
    if not len(points):
        raise SpecError(f"study {study.folder}", "no point runs within its limits", "looser limits or a larger space")


# --- what moves it ----------------------------------------------------------------------------------------------------


def one_at_a_time(space: Space, objectives: Sequence[str], point: int) -> pd.DataFrame:
    """What each knob alone does around a point, a row per knob and objective: `knob`, `objective`, `least`, `most`,
    `ratio` = most / least, `at_least` and `at_most`, the knob's values there, `fails`: values that do not run.

    Values that do not run are left out; limits are not looked at.
    """
    import pandas as pd

    here = {axis.path: space.places(np.array([point]))[axis.path] for axis in space.free}
    rows = []
    for axis in space.free:
        at = {path: int(place[0]) for path, place in here.items()}
        points = np.array([space.number({**at, axis.path: i}) for i in range(len(axis.values))])
        columns = evaluate(space, points)
        runs = np.asarray(columns["feasible"], bool)
        for name in objectives:
            values = np.where(runs, np.asarray(columns[name], float), np.nan)
            if np.isnan(values).all():
                continue
            low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
            rows.append(
                {
                    "knob": axis.path, "objective": name, "least": values[low], "most": values[high],
                    "ratio": values[high] / values[low] if values[low] else math.nan,
                    "at_least": axis.values[low], "at_most": axis.values[high], "fails": int((~runs).sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def sobol(space: Space, objectives: Sequence[str], samples: int = 1024, seed: int = 0) -> pd.DataFrame:
    """Sobol indices, a row per objective and knob with more than one value: `first`, the share of the variance that the
    knob explains alone, `total`, with all it interacts with, `first_error` and `total_error`, half a 95 % interval.

    Of the logarithm of the objective, each point as likely; one that does not run counts as the worst that does.
    Exact, with errors 0, for up to EXACT_POINTS points; else estimated by scipy from `samples` x (knobs + 2) points
    (Saltelli 2010). An objective that does not vary, or is not positive, has NaN.

    Raises SpecError if scipy is needed and not there.
    """
    import pandas as pd

    knobs = [axis for axis in space.free if len(axis.values) > 1]
    found = _all_shares(space, objectives, knobs) if space.points <= EXACT_POINTS else None
    if found is None:
        found = _sampled_shares(space, objectives, knobs, samples, seed)
    rows = [
        {"objective": name, "knob": axis.path, **dict(zip(_SHARES, found[name][:, i].tolist(), strict=True))}
        for name in objectives
        for i, axis in enumerate(knobs)
    ]
    return pd.DataFrame(rows, columns=["objective", "knob", *_SHARES])


_SHARES = ("first", "total", "first_error", "total_error")


def _logs(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """float64 (n,): logarithm of a column, NaN for points that do not run."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(columns[name], float)
        return np.asarray(np.where((values > 0) & np.isfinite(values), np.log(values), np.nan))


def _filled(values: np.ndarray) -> np.ndarray:
    """The values with the largest in place of NaN; all 0 if there is nothing else."""
    there = values[~np.isnan(values)]
    filled: np.ndarray = np.where(np.isnan(values), there.max(initial=-math.inf) if len(there) else 0.0, values)
    return filled


def _all_shares(space: Space, objectives: Sequence[str], knobs: Sequence[Axis]) -> dict[str, np.ndarray]:
    """Objective -> (4, knobs) of every point of the space."""
    parts = [
        {name: _logs(columns, name) for name in objectives}
        for columns in (
            evaluate(space, np.arange(start, min(space.points, start + CHUNK)))
            for start in range(0, space.points, CHUNK)
        )
    ]
    places = space.places(np.arange(space.points))
    found = {}
    for name in objectives:
        values = _filled(np.concatenate([part[name] for part in parts]))
        shares = np.full((4, len(knobs)), np.nan)
        spread = np.var(values)
        for i, axis in enumerate(knobs if spread > 0 else ()):
            # a point's number with the knob's place taken out names the setting of all other knobs
            others = np.arange(space.points) - places[axis.path] * _stride(space, axis)
            shares[:, i] = _between(places[axis.path], values), spread - _between(others, values), 0, 0
        found[name] = shares / (spread or 1)
    return found


def _stride(space: Space, axis: Axis) -> int:
    """How many points apart neighbours along a free axis are."""
    later = space.free[space.free.index(axis) + 1 :]
    return math.prod(len(a.values) for a in later)


def _between(group: np.ndarray, values: np.ndarray) -> float:
    """Variance of the means of groups of equal size."""
    counts = np.bincount(group)
    return float(np.var(np.bincount(group, values)[counts > 0] / counts[counts > 0]))


def _sampled_shares(
    space: Space, objectives: Sequence[str], knobs: Sequence[Axis], samples: int, seed: int
) -> dict[str, np.ndarray]:
    """Objective -> (4, knobs) of samples of the space."""
    try:
        from scipy.stats import qmc, sobol_indices
    except ImportError:
        raise SpecError("sensitivity", "scipy is not installed", "pip install 'accelsim[search]'") from None
    count, size = 2 ** math.ceil(math.log2(samples)), len(knobs)
    drawn = qmc.Sobol(2 * size, rng=np.random.default_rng(seed)).random(count)
    lengths = np.array([len(axis.values) for axis in knobs])
    places = np.minimum((drawn * np.tile(lengths, 2)).astype(np.int64), np.tile(lengths, 2) - 1)
    strides = np.array([_stride(space, axis) for axis in knobs])
    a, b = places[:, :size], places[:, size:]
    mixed = np.repeat(a[None], size, axis=0)
    mixed[range(size), :, range(size)] = b.T
    points = (np.concatenate([a[None], b[None], mixed]) * strides).sum(axis=2)  # (2 + knobs, count)
    columns = evaluate(space, points.reshape(-1))
    found = {}
    for name in objectives:
        values = _filled(_logs(columns, name)).reshape(points.shape)
        shares = np.full((4, size), np.nan)
        if np.var(values[:2]) > 0:
            of_all = {"f_A": values[:1], "f_B": values[1:2], "f_AB": values[2:, None]}
            result = sobol_indices(func=of_all, n=count)
            with warnings.catch_warnings():  # of knobs that do nothing
                warnings.simplefilter("ignore")
                limits = result.bootstrap(confidence_level=0.95, n_resamples=99)
            shares[0], shares[1] = result.first_order, result.total_order
            for row, part in ((2, limits.first_order), (3, limits.total_order)):
                shares[row] = (part.confidence_interval.high - part.confidence_interval.low) / 2
        found[name] = shares
    return found

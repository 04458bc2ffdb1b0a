"""`Space`: a base platform, axes over its fields and over the model, linked axes, limits. Data only, never evaluated.

    platform: systolic-32x32
    model: bert-base
    axes:
      seq: [128, 384]
      precision: [int8, fq-bert]
      rows: {powers_of_two: [8, 256]}
      cols: {same_as: rows}
      dram.bytes_per_cycle: {from: 8, to: 512, points: 7, scale: log}
      input_buffer.capacity_bytes: [65536, 262144, 1048576]
    limits:
      - area_mm2 <= 20
      - power_w <= 10

`platform` may also be the mapping of a platform file, `mapping` a rule of `mapping.RULES`. `energies: technology` lets
energies and leakage of a systolic platform follow its node and sizes; else they stay what the platform states.
`error_of: {task: movie-reviews}` adds a column `error`, measured of each point's model and precision (`accuracy`);
`error_of: {task: movie-reviews, model: minilm-l6}` takes that model's in place of one that was not measured.
`layers`, `heads` and `ffn`, axes or settings as `seq` is, are what is kept of the model (`transforms.prune`).

Axes are put in the order model, array, capacities of its buffers, everything else, and the last one varies fastest:
neighbours share work. A point is a number from 0 to `points` - 1: a space is never held in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from accelsim.accuracy import measured
from accelsim.errors import SpecError
from accelsim.files import read_description
from accelsim.jit import record
from accelsim.mapping import RULES
from accelsim.platforms import Platform, describe, from_mapping, platform, systolic
from accelsim.trace import trace
from accelsim.transforms.prune import PARTS, check_part, size_of

MODEL_AXES = ("model", "seq", "batch", "precision", *PARTS)
FIELDS = (
    "platform",
    "model",
    "head",
    "seq",
    "batch",
    "precision",
    *PARTS,
    "mapping",
    "energies",
    "error_of",
    "set",
    "axes",
    "limits",
)
ENERGIES = ("stated", "technology")
CAPACITIES = tuple(f"{name}.capacity_bytes" for name in ("input_buffer", "weight_buffer", "accumulator"))
"""Fields that decide which tiles fit an array, and nothing else about their time."""
MAX_POINTS = 10**12
MAX_VALUES = 10**4
_LIMIT = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=)\s*(\S+)\s*")


Places = Mapping[str, np.ndarray]
"""Axis -> int64 (n,): where in `Axis.values` each point's value is."""


@dataclass(frozen=True)
class Axis:
    """Values of one field, as a file writes them: numbers or words. `follows`: the axis it is linked to, or ""."""

    path: str
    values: tuple[Any, ...]
    follows: str = ""
    times: float = 1
    """What a linked axis multiplies the values it follows with."""


@dataclass(frozen=True)
class Limit:
    """A bound on a column of the results: `field` <= or >= `bound`."""

    field: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.field} {self.relation} {self.bound!r}"

    def keeps(self, values: np.ndarray) -> np.ndarray:
        """bool (n,): which values keep the bound. NaN, an unknown value, does not."""
        kept: np.ndarray = values <= self.bound if self.relation == "<=" else values >= self.bound
        return kept


@dataclass(frozen=True)
class Space:
    """See the head of this file. `settings`: overrides of the base platform that hold for every point."""

    platform: str
    base: Mapping[str, Any]
    """Description of the base platform, as `from_mapping` reads it."""
    model: str
    head: str
    seq: int
    batch: int
    precision: str
    """"" for the platform's default."""
    mapping: str
    """How each work is laid on the platform: a rule of `mapping.RULES`."""
    energies: str
    """stated: as the platform's fields say; technology: as `systolic.set_energies` has them for every point."""
    axes: tuple[Axis, ...]
    limits: tuple[Limit, ...]
    error_of: tuple[str, str] = ("", "")
    """(task, model) whose measured error the points have; no model: each point's own. No task: no error."""
    layers: int | None = None
    """Encoder layers that are kept, as `prune` keeps them; None: all. So with `heads` and `ffn`."""
    heads: int | None = None
    ffn: int | None = None

    @property
    def free(self) -> tuple[Axis, ...]:
        """Axes that follow no other, slowest first."""
        return tuple(a for a in self.axes if not a.follows)

    @property
    def points(self) -> int:
        """How many points there are."""
        return math.prod(len(axis.values) for axis in self.free)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the axes, in the order of the file of results."""
        return tuple(axis.path for axis in self.axes)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The mapping that `space` reads back, whole by itself: the base platform is written out."""
        links = {a.path: {"same_as": a.follows, "times": a.times} for a in self.axes if a.follows}
        return {
            "platform": self.base,
            "model": self.model,
            "head": self.head,
            "seq": self.seq,
            "batch": self.batch,
            "precision": self.precision,
            **{part: n for part in PARTS if (n := getattr(self, part)) is not None},
            "mapping": self.mapping,
            "energies": self.energies,
            "axes": {a.path: links.get(a.path, list(a.values)) for a in self.axes},
            "limits": [str(limit) for limit in self.limits],
            **({"error_of": dict(zip(("task", "model"), self.error_of, strict=True))} if self.error_of[0] else {}),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides what a point is."""
        return hashlib.sha256(json.dumps(self.description).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its description, which a process reads once."""
        return _unpickled, (json.dumps(self.description),)

    def error(self, model: str, precision: str) -> float:
        """Measured error of points of a model in a precision. Raises SpecError if it was not measured."""
        task, instead = self.error_of
        return measured(instead or model, task, precision).error

    def axis(self, path: str) -> Axis:
        """The axis of that path."""
        return next(axis for axis in self.axes if axis.path == path)

    def key(self, places: Places, fields: Iterable[str], without: Iterable[str] = ()) -> np.ndarray:
        """int64 (n,): equal for points that are the same in `fields` of the platform and in the model.

        places: of the points. without: axes that may differ all the same. Numbers ascend with the points if the axes
        that matter are slowest.
        """
        wanted = {a.follows or a.path for a in self.axes if a.path in MODEL_AXES or _is_read(a.path, fields)}
        wanted -= {a.follows or a.path for a in self.axes if a.path in without} - {
            a.follows or a.path for a in self.axes if _is_read(a.path, fields) and a.path not in without
        }
        size, total = 1, np.zeros(len(places[self.axes[0].path]), np.int64)
        for axis in reversed(self.free):
            if axis.path in wanted:
                total += places[axis.path] * size
                size *= len(axis.values)
        return total

    def places(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Axis -> int64 (n,), the place of each point's value in `Axis.values`."""
        rest = np.asarray(points, np.int64)
        found: dict[str, np.ndarray] = {}
        for axis in reversed(self.free):
            above = rest // len(axis.values)
            rest, found[axis.path] = above, rest - above * len(axis.values)  # half the time of divmod
        return {a.path: found[a.follows or a.path] for a in self.axes}

    def values(self, point: int) -> dict[str, Any]:
        """Axis -> value of one point."""
        if not 0 <= point < self.points:
            raise SpecError("point", point, f"0 to {self.points - 1}")
        places = self.places(np.array([point]))
        return {a.path: a.values[int(places[a.path][0])] for a in self.axes}

    def number(self, places: Mapping[str, int]) -> int:
        """The point with these places of the values, by free axis."""
        found = 0
        for axis in self.free:
            found = found * len(axis.values) + places[axis.path]
        return found

    def chip(self, point: int) -> Platform:
        """The platform of one point."""
        self.values(point)  # refuses a number that is none
        return self.platform_at({path: int(at[0]) for path, at in self.places(np.array([point])).items()})

    def platform_at(self, places: Mapping[str, int]) -> Platform:
        """The platform whose axes have the values at these places."""
        own = {a.path: a.values[places[a.path]] for a in self.axes if a.path not in MODEL_AXES}
        chip = from_mapping(self.base, self.platform, own)
        if self.energies == "stated":
            return chip
        one = record(chip)
        systolic.set_energies(one, self.base["technology_nm"])
        found = {path: float(systolic.field_of(one, path)[0]) for path in systolic.ENERGIES}
        return from_mapping(self.base, self.platform, {**own, **found})

    @property
    def followed(self) -> tuple[str, ...]:
        """Axes that energies of a systolic platform should follow."""
        if self.base["kind"] != "systolic":
            return ()
        return tuple(a.path for a in self.axes if a.path in systolic.ENERGIES_READ)

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        """Axis of the platform -> its values as the compiled record holds them."""
        return {a.path: _as_numbers(self.base, self.platform, a) for a in self.axes if a.path not in MODEL_AXES}

    def designs(self, places: Places) -> np.ndarray:
        """(n,) structured array: the platforms of points with these places, as `jit.record` gives one."""
        out = np.repeat(record(from_mapping(self.base, self.platform)), len(places[self.free[0].path]))
        for path, numbers in self._numbers.items():
            column = out
            for part in path.split("."):
                column = column[part]
            column[:] = numbers[places[path]]
        if self.energies == "technology":
            systolic.set_energies(out, self.base["technology_nm"])
        return out


def _is_read(path: str, fields: Iterable[str]) -> bool:
    """Whether a dotted path is one of some fields, or inside one. Leakage must be named: no work depends on it."""
    if path in fields:
        return True
    return path.rpartition(".")[2] != "leakage_w" and any(path.startswith(f + ".") for f in fields)


def _as_numbers(base: Mapping[str, Any], source: str, axis: Axis) -> np.ndarray:
    """Each value as a platform that has it holds it: checked, enums as integers."""
    found = []
    for value in axis.values:
        held: Any = record(from_mapping(base, source, {axis.path: value}))[0]
        for part in axis.path.split("."):
            held = held[part]
        found.append(held)
    return np.array(found)


# --- reading ----------------------------------------------------------------------------------------------------------


def space(source: str | os.PathLike[str] | Mapping[str, Any]) -> Space:
    """The space of a YAML or JSON file, or of a mapping with the same keys.

    Raises SpecError with path, value, what is legal and the nearest name for anything that is not right.
    """
    text = "space" if isinstance(source, Mapping) else os.fspath(source)
    data = source if isinstance(source, Mapping) else read_description(Path(source))
    if not isinstance(data, Mapping):
        raise SpecError(text, type(data).__name__, "a mapping with platform, model and axes")
    for key in data:
        if key not in FIELDS:
            raise SpecError.unknown(f"{text}: field {key}", key, FIELDS)
    settings = data.get("set") or {}
    if not isinstance(settings, Mapping):
        raise SpecError(f"{text}: set", settings, "a mapping of platform fields to values")
    given = _given(data, "platform", text)
    if isinstance(given, Mapping):
        base = describe(from_mapping(given, f"{text}: platform", settings))
    else:
        base = describe(platform(str(given), settings))
    name = str(base["name"])
    axes = axes_of(_given(data, "axes", text), base, name, text)
    found = Space(
        platform=name,
        base=base,
        model=str(data.get("model", "bert-base")),
        head=str(data.get("head", "none")),
        seq=_whole(data.get("seq", 128), f"{text}: seq"),
        batch=_whole(data.get("batch", 1), f"{text}: batch"),
        precision=str(data.get("precision", "")),
        mapping=str(data.get("mapping", "best")),
        energies=str(data.get("energies", "stated")),
        axes=_ordered(axes, base["kind"]),
        limits=tuple(_limit(entry, f"{text}: limits") for entry in data.get("limits") or ()),
        error_of=_error_of(data.get("error_of"), text),
        **{part: _whole(data[part], f"{text}: {part}") for part in PARTS if data.get(part) is not None},
    )
    if found.mapping not in RULES:
        raise SpecError.unknown(f"{text}: mapping", found.mapping, RULES)
    if found.energies not in ENERGIES:
        raise SpecError.unknown(f"{text}: energies", found.energies, ENERGIES)
    if found.energies == "technology":
        _check_energies(found, text)
    _check_parts(found, text)
    if found.error_of[0]:
        _check_error(found, text)
    elif any(limit.field == "error" for limit in found.limits):
        raise SpecError(f"{text}: limits", "a limit of error", "error_of: {task: TASK}, or it is not known")
    _check_limits(found.limits, text)
    return found


def _error_of(given: Any, text: str) -> tuple[str, str]:
    if given is None:
        return "", ""
    if not isinstance(given, Mapping) or "task" not in given:
        raise SpecError(f"{text}: error_of", given, "task: TASK and, if wanted, model: MODEL")
    for key in given:
        if key not in ("task", "model"):
            raise SpecError.unknown(f"{text}: error_of.{key}", key, ("task", "model"))
    return str(given["task"]), str(given.get("model") or "")


def _check_parts(found: Space, text: str) -> None:
    """Raise SpecError unless every model of the space has the layers, heads and neurons that are to be kept."""
    models = found.axis("model").values if "model" in found.columns else (found.model,)
    for part in PARTS:
        if part in found.columns:
            kept, where = found.axis(part).values, f"{text}: axes.{part}"
        else:
            kept, where = tuple(n for n in [getattr(found, part)] if n is not None), f"{text}: {part}"
        if kept:
            smallest = min(
                (trace(str(name), seq=1, head=found.head) for name in models), key=partial(size_of, part=part)
            )
            for count in kept:
                check_part(part, count, smallest, where)


def _check_error(found: Space, text: str) -> None:
    """Raise SpecError unless the error of every model and precision of the space was measured."""
    for part in PARTS:
        if getattr(found, part) is not None or part in found.columns:
            raise SpecError(f"error_of: {part}", "pruned models", "whole ones: no other was measured")
    for part in PARTS:
        if part in found.columns or getattr(found, part) is not None:
            raise SpecError(
                f"{text}: error_of", f"of models with fewer {part}", f"no {part}: errors are of whole models"
            )
    own = {name: [getattr(found, name)] for name in ("model", "precision")}
    own |= {a.path: list(a.values) for a in found.axes if a.path in own}
    for model in own["model"]:
        for precision in own["precision"]:
            found.error(str(model), str(precision))


def _check_energies(found: Space, text: str) -> None:
    """Raise SpecError for a platform whose energies follow no table, or an axis of an energy that would follow one."""
    if found.base["kind"] != "systolic":
        legal = "stated: the tables are of ASICs, platforms of kind systolic"
        raise SpecError(f"{text}: energies", f"technology, of a {found.base['kind']} platform", legal)
    for axis in found.axes:
        if axis.path in systolic.ENERGIES:
            raise SpecError(f"{text}: axes.{axis.path}", "an axis", "energies: stated, or no axis of an energy")


@lru_cache(maxsize=8)
def _unpickled(description: str) -> Space:
    return space(json.loads(description))


def _given(data: Mapping[str, Any], key: str, text: str) -> Any:
    if data.get(key) in (None, "", {}):
        raise SpecError(f"{text}: {key}", data.get(key), "a value: nothing to explore without it")
    return data[key]


def _whole(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(path, value, "an integer >= 1")
    return value


def axes_of(data: Any, base: Mapping[str, Any], source: str, text: str) -> tuple[Axis, ...]:
    """The axes of a mapping, models first. source: name of the platform; text: of the file, for messages."""
    if not isinstance(data, Mapping):
        raise SpecError(f"{text}: axes", data, "a mapping of fields to values")
    found, links = [], []
    for path, given in data.items():
        where = f"{text}: axes.{path}"
        if path not in MODEL_AXES:
            _check_path(str(path), base, where)
        if isinstance(given, Mapping) and "same_as" in given:
            links.append((str(path), given, where))
            continue
        found.append(Axis(str(path), _values(given, where)))
    points = math.prod(len(axis.values) for axis in found)
    if points > MAX_POINTS:
        raise SpecError(f"{text}: points", points, f"at most {MAX_POINTS}: fewer values or fewer axes")
    for axis in found:
        _check_values(axis, base, source, f"{text}: axes.{axis.path}")
    for path, given, where in links:
        leaders = {axis.path: axis for axis in found}
        leader = given["same_as"]
        if leader not in leaders:
            raise SpecError.unknown(f"{where}.same_as", leader, leaders)
        times = given.get("times", 1)
        if set(given) - {"same_as", "times"} or isinstance(times, bool) or not isinstance(times, int | float):
            raise SpecError(where, dict(given), "same_as: AXIS and, if wanted, times: NUMBER")
        axis = Axis(path, tuple(_times(v, times, where) for v in leaders[leader].values), leader, times)
        _check_values(axis, base, source, where)
        found.append(axis)
    found.sort(key=lambda axis: axis.path not in MODEL_AXES)  # stable: models outermost
    return tuple(found)


def _ordered(axes: tuple[Axis, ...], kind: str) -> tuple[Axis, ...]:
    """Axes of the model, of the platform's first unit, capacities of its buffers, others: so that neighbours share."""
    reads = next(iter(Platform.kinds[kind].reads.values()))

    def place(path: str) -> int:
        if path in MODEL_AXES:
            return 0
        return 3 if not _is_read(path, reads) else 2 if path in CAPACITIES else 1

    first = {a.path: min(place(b.path) for b in axes if a.path in (b.path, b.follows)) for a in axes if not a.follows}
    return tuple(sorted(axes, key=lambda axis: (first[axis.follows or axis.path], bool(axis.follows))))


def _times(value: Any, times: float, where: str) -> Any:
    if times == 1:
        return value
    if not isinstance(value, int | float):
        raise SpecError(f"{where}.times", times, f"1, as {value!r} is no number")
    product = value * times
    return int(product) if isinstance(value, int) and product == int(product) else product


def _check_path(path: str, base: Mapping[str, Any], where: str) -> None:
    """Raise SpecError unless `path` names a number or a word of the platform."""
    held: Any = base
    parts = path.split(".")
    for i, part in enumerate(parts):
        if not isinstance(held, Mapping) or part not in held:
            legal = [".".join([*parts[:i], n]) for n in held] if isinstance(held, Mapping) else []
            raise SpecError.unknown(where, ".".join(parts[: i + 1]), [*legal, *(MODEL_AXES if i == 0 else ())])
        held = held[part]
    if isinstance(held, Mapping):
        raise SpecError(where, path, f"a field inside it: {', '.join(held)}")
    if path in ("name", "kind"):
        raise SpecError(where, path, "a number or a policy of the platform")


def _check_values(axis: Axis, base: Mapping[str, Any], source: str, where: str) -> None:
    """Raise SpecError for a value that the platform or a model cannot have, or that comes twice."""
    if not axis.follows and len(set(map(str, axis.values))) < len(axis.values):
        raise SpecError(where, list(axis.values)[:8], "each value once")
    if axis.path in ("seq", "batch", *PARTS):
        for value in axis.values:
            _whole(value, where)
    elif axis.path not in MODEL_AXES:
        _as_numbers(base, source, axis)


def _values(given: Any, where: str) -> tuple[Any, ...]:
    """The values of an axis: a list, powers_of_two, a range, or points from one number to another."""
    if isinstance(given, list | tuple):
        values = tuple(given)
    elif not isinstance(given, Mapping):
        values = (given,)
    elif set(given) == {"powers_of_two"}:
        low, high = _pair(given["powers_of_two"], f"{where}.powers_of_two")
        values = tuple(2**i for i in range(63) if low <= 2**i <= high)
    elif set(given) == {"range"}:
        bounds = given["range"]
        if not isinstance(bounds, list) or len(bounds) != 3 or not all(type(b) is int for b in bounds) or bounds[2] < 1:
            raise SpecError(f"{where}.range", bounds, "[first, last, step], integers, step >= 1")
        _few((bounds[1] - bounds[0]) // bounds[2] + 1, where)
        values = tuple(range(bounds[0], bounds[1] + 1, bounds[2]))
    elif {"from", "to", "points"} <= set(given) <= {"from", "to", "points", "scale"}:
        values = _spaced(given, where)
    else:
        legal = "a list, {powers_of_two: [low, high]}, {range: [first, last, step]}, {from, to, points, scale: log} or "
        raise SpecError(where, dict(given), legal + "{same_as: AXIS}")
    if not values:
        raise SpecError(where, given, "at least one value")
    _few(len(values), where)
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise SpecError(where, value, "finite numbers")
    return values


def _few(count: int, where: str) -> None:
    if count > MAX_VALUES:
        raise SpecError(where, count, f"at most {MAX_VALUES} values")


def _pair(given: Any, where: str) -> tuple[float, float]:
    fine = isinstance(given, list) and len(given) == 2 and all(type(g) in (int, float) for g in given)
    if not fine or not given[0] <= given[1] or not all(math.isfinite(g) for g in given):
        raise SpecError(where, given, "[low, high], numbers, low <= high")
    return given[0], given[1]


def _spaced(given: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    low, high = _pair([given["from"], given["to"]], where)
    points, scale = _whole(given["points"], f"{where}.points"), given.get("scale", "linear")
    _few(points, where)
    if scale not in ("linear", "log"):
        raise SpecError.unknown(f"{where}.scale", scale, ("linear", "log"))
    if scale == "log" and low <= 0:
        raise SpecError(f"{where}.from", low, "a number > 0, for a log scale")
    spread = np.geomspace(low, high, points) if scale == "log" else np.linspace(low, high, points)
    if isinstance(given["from"], int) and isinstance(given["to"], int):
        return tuple(dict.fromkeys(int(v) for v in np.rint(spread)))
    return tuple(dict.fromkeys(float(v) for v in spread))


RESULTS = (
    "time_s", "energy_j", "power_w", "fps_per_w", "area_mm2", "cycles", "compute_cycles", "macs", "sram_bytes",
    "dram_bytes", "utilization", "dsp", "bram18k", "uram", "lut", "ff", "error",
)  # fmt: skip
"""Columns of results that a limit may bound."""


def _limit(entry: Any, where: str) -> Limit:
    match = _LIMIT.fullmatch(entry) if isinstance(entry, str) else None
    if match is None:
        raise SpecError(where, entry, "FIELD <= NUMBER or FIELD >= NUMBER, as in area_mm2 <= 20")
    field, relation, number = match.groups()
    if field not in RESULTS:
        raise SpecError.unknown(f"{where}: {entry}", field, RESULTS)
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise SpecError(f"{where}: {entry}", number, "a finite number")
    return Limit(field, relation, bound)


def _check_limits(limits: Iterable[Limit], text: str) -> None:
    """Raise SpecError if two limits of one field leave nothing."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for limit in limits:
        if limit.relation == "<=":
            high[limit.field] = min(high.get(limit.field, math.inf), limit.bound)
        else:
            low[limit.field] = max(low.get(limit.field, -math.inf), limit.bound)
    for field in low.keys() & high.keys():
        if low[field] > high[field]:
            both = f"{field} >= {low[field]:g} and {field} <= {high[field]:g}"
            raise SpecError(f"{text}: limits", both, "limits that some number keeps")

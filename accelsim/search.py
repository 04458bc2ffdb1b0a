"""`search`: the front of a space too large to sweep, by Optuna, whole populations priced at once by `sweep.evaluate`.

A batch is a coarse sweep at first; later half of it are neighbours of the front found so far, one step along one axis,
and half children by the sampler. Its rows go to the study's chunks, its trials to Optuna's storage (SQLite unless said
otherwise); a search that was stopped goes on with the batch it was at, and ends with the same rows.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accelsim import study
from accelsim.errors import SpecError
from accelsim.pareto import OBJECTIVES, front
from accelsim.space import RESULTS, Space
from accelsim.study import Best, held, read_rows, write_rows
from accelsim.sweep import evaluate, keep

SAMPLERS = ("nsga2", "nsga3", "tpe", "random")
POPULATION = 200
WORST = 1e300
"""Value of every objective where a point does not run: its constraint is broken, so that nobody looks at it."""


@dataclass(frozen=True)
class Plan:
    """How to search. budget: points to price; population: trials of a batch; warm: with coarse sweep and neighbours."""

    objectives: tuple[str, ...]
    budget: int
    seed: int = 0
    sampler: str = "nsga2"
    population: int = POPULATION
    warm: bool = True


def plan_of(
    space: Space, objectives: Sequence[str], budget: int | None, seed: int, sampler: str, warm: bool = True
) -> Plan:
    """A plan, checked. budget None: 1 % of the space, at least 1,000 and at most 20,000 points. No objectives: time,
    energy, and area or DSP where the platform has one.

    Raises SpecError for an objective that is no result, a repeated one, an unknown sampler or a budget below 1.
    """
    objectives = objectives or [
        *OBJECTIVES[:2],
        *{"systolic": ["area_mm2"], "fpga": ["dsp"]}.get(space.base["kind"], []),
    ]
    for name in objectives:
        if name not in RESULTS:
            raise SpecError.unknown("--minimize", name, RESULTS)
    if "error" in objectives and not space.error_of[0]:
        raise SpecError("--minimize error", "not known", "a space with error_of: {task: TASK}")
    if len(set(objectives)) < len(objectives):
        raise SpecError("--minimize", list(objectives), "each objective once")
    if sampler not in SAMPLERS:
        raise SpecError.unknown("--sampler", sampler, SAMPLERS)
    if budget is not None and budget < 1:
        raise SpecError("--budget", budget, "an integer >= 1")
    points = min(space.points, budget or min(20_000, max(1_000, space.points // 100)))
    return Plan(tuple(objectives), points, seed, sampler, min(POPULATION, max(8, points // 10)), warm)


class Archive:
    """Every point priced so far: its objectives, NaN where it does not run or breaks a limit."""

    def __init__(self, space: Space, objectives: Sequence[str]) -> None:
        self._space, self._objectives = space, objectives
        self.found: dict[int, tuple[float, ...]] = {}

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Take the rows of a chunk."""
        kept = keep(self._space, columns)
        for name in self._objectives:
            known = [c for c in RESULTS if c in columns and not np.isnan(columns[c][kept].astype(float)).all()]
            if name not in columns or (kept.any() and name not in known):
                raise SpecError(
                    f"--minimize {name}", f"not known of {self._space.platform}", f"one of {', '.join(known)}"
                )
        values = [np.where(kept, np.asarray(columns[name], float), np.nan) for name in self._objectives]
        rows = zip(*(v.tolist() for v in values), strict=True)
        self.found.update(zip(columns["point"].tolist(), rows, strict=True))

    @property
    def best(self) -> Best:
        """Objective -> (the least of it so far, its point); an objective that no point has yet is left out."""
        points = np.array([*self.found], np.int64)
        values = np.array([*self.found.values()]).reshape(-1, len(self._objectives))
        rows = {n: int(np.nanargmin(v)) for n, v in zip(self._objectives, values.T, strict=True) if (v == v).any()}
        return {name: (float(values[row, i]), int(points[row])) for i, (name, row) in enumerate(rows.items())}

    def front(self) -> list[int]:
        """The points that nothing beats, ascending."""
        points = np.array(sorted(self.found), np.int64)
        if len(points) == 0:
            return []
        values = np.array([self.found[p] for p in points.tolist()])
        chosen: list[int] = points[front(values)].tolist()
        return chosen


def run(
    space: Space,
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    storage: str = "sqlite",
    tell: Callable[[int, Best], None] = lambda points, best: None,
) -> Archive:
    """Search into a study folder; what was priced, when the budget is spent.

    storage: "sqlite" or "journal" for a file in the folder, else a URL of SQLAlchemy (postgresql://). tell: called with
    the number of points of each batch and the best so far. Raises SpecError as `sweep.run` does, and for an objective
    that the platform does not have.
    """
    optuna = _optuna()
    about = {
        "kind": "search", "objectives": list(plan.objectives), "seed": plan.seed, "sampler": plan.sampler,
        "warm": plan.warm, "population": plan.population,
    }  # fmt: skip
    with held(folder):
        study.start(space, folder, resume, plan.population, about)
        stored = _stored(optuna, folder, storage, space, plan, resume)
        mine = optuna.create_study(directions=["minimize"] * len(plan.objectives))
        archive = Archive(space, plan.objectives)
        done = list(_batches(stored.trials))
        for batch in range(_guard(space, plan)):
            if len(archive.found) >= plan.budget:
                break
            old = done[batch] if batch < len(done) else []
            path = batch_path(space, plan, folder, batch)
            trials = old if old and len(old) == old[0].user_attrs["size"] else None
            if trials is None:
                points, asked = _ask(optuna, mine, space, plan, archive, batch)
            else:
                points = [space.number(t.params) for t in trials]
            fresh = np.array(sorted(set(points) - set(archive.found)), np.int64)
            columns = read_rows(path, len(fresh)) if len(fresh) else None
            if len(fresh) and columns is None:
                columns = evaluate(space, fresh)
                write_rows(path, columns)
            if columns is not None:
                archive.add(columns)
            if trials is None:
                _tell(optuna, mine, archive, points, asked, batch)
                stored.add_trials(mine.trials[-len(points) :][len(old) :])
            else:
                mine.add_trials(trials)
            tell(len(fresh), archive.best)
        return archive


def _guard(space: Space, plan: Plan) -> int:
    """Most batches: a sampler that only repeats itself ends."""
    return 10 + 4 * math.ceil(plan.budget / plan.population)


def batch_path(space: Space, plan: Plan, folder: Path, batch: int) -> Path:
    """Where the rows of a batch are."""
    key = f"{space.digest} {plan.objectives} {plan.seed} {plan.sampler} {plan.warm} {plan.population} {batch}"
    return folder / "chunks" / f"{batch:013d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SpecError("accelsim search", "optuna is not installed", "pip install 'accelsim[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", module="optuna")  # the form that all supported versions have
    return optuna


def _stored(optuna: Any, folder: Path, storage: str, space: Space, plan: Plan, resume: bool) -> Any:
    """Optuna's study in its storage, made or, to resume, found."""
    name = f"accelsim-{space.digest[:16]}-{plan.sampler}-{plan.seed}"
    storages, directions = optuna.storages, ["minimize"] * len(plan.objectives)
    try:
        if storage == "journal":
            place = storages.JournalStorage(storages.journal.JournalFileBackend(str(folder / "search.journal")))
        else:
            place = storages.RDBStorage(f"sqlite:///{folder / 'search.db'}" if storage == "sqlite" else storage)
        return optuna.create_study(study_name=name, storage=place, directions=directions, load_if_exists=resume)
    except optuna.exceptions.DuplicatedStudyError:
        raise SpecError(f"--storage {storage}", f"has {name} already", "--resume, or another storage") from None
    except Exception as error:  # drivers raise what they like
        short = str(error).splitlines()[0]
        legal = f"sqlite, journal or the URL of a database that can be reached ({short})"
        raise SpecError("--storage", storage, legal) from None


def _batches(trials: Sequence[Any]) -> Iterator[list[Any]]:
    """Stored trials batch by batch."""
    batch: list[Any] = []
    for trial in trials:
        if batch and trial.user_attrs["batch"] != batch[0].user_attrs["batch"]:
            yield batch
            batch = []
        batch.append(trial)
    if batch:
        yield batch


def _sampler(optuna: Any, plan: Plan, batch: int) -> Any:
    """A sampler whose draws depend on seed and batch alone, so that a resumed search draws the same."""
    seed = int(hashlib.sha256(f"{plan.seed} {batch}".encode()).hexdigest()[:8], 16)

    def constraints(trial: Any) -> Sequence[float]:
        broken: list[float] = trial.user_attrs["constraints"]
        return broken

    samplers = optuna.samplers
    if plan.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if plan.sampler == "tpe":
        return samplers.TPESampler(seed=seed, constraints_func=constraints, multivariate=True)
    kind = samplers.NSGAIIISampler if plan.sampler == "nsga3" else samplers.NSGAIISampler
    return kind(population_size=plan.population, seed=seed, constraints_func=constraints)


def _ask(optuna: Any, mine: Any, space: Space, plan: Plan, archive: Archive, batch: int) -> tuple[list[int], list[Any]]:
    """(points, trials) of the next batch."""
    rng = np.random.default_rng([plan.seed, batch])
    chosen: list[int] = []
    if plan.warm:
        chosen = coarse(space, max(plan.population, plan.budget // 8), rng) if batch == 0 else []
        if batch > 0:
            chosen = neighbours(space, archive, max(1, plan.population // 2), rng)
    left = plan.budget - len(archive.found)
    chosen = chosen[:left]
    for point in chosen:
        places = space.places(np.array([point]))
        mine.enqueue_trial({a.path: int(places[a.path][0]) for a in space.free})
    mine.sampler = _sampler(optuna, plan, batch)
    points, asked = [], []
    fresh = 0
    for i in range(max(len(chosen), plan.population)):
        trial = mine.ask()
        point = space.number({a.path: trial.suggest_int(a.path, 0, len(a.values) - 1) for a in space.free})
        fresh += point not in archive.found and point not in points
        points.append(point)
        asked.append(trial)
        if fresh >= left and i + 1 >= len(chosen):
            break
    return points, asked


def _tell(optuna: Any, mine: Any, archive: Archive, points: list[int], asked: list[Any], batch: int) -> None:
    for point, trial in zip(points, asked, strict=True):
        values = archive.found[point]
        runs = not any(math.isnan(v) for v in values)
        trial.set_user_attr("batch", batch)
        trial.set_user_attr("size", len(points))
        trial.set_user_attr("constraints", [-1.0 if runs else 1.0])
        mine.tell(trial, list(values) if runs else [WORST] * len(values))


def coarse(space: Space, count: int, rng: np.random.Generator) -> list[int]:
    """About `count` points of an even grid: axes get one more value in turn, those with most left first, ends first."""
    levels = {axis.path: 1 for axis in space.free}
    while True:
        open_axes = [a for a in space.free if levels[a.path] < len(a.values)]
        open_axes.sort(key=lambda a: (levels[a.path], -len(a.values)))
        size = math.prod(levels.values())
        grown = next((a for a in open_axes if size // levels[a.path] * (levels[a.path] + 1) <= count), None)
        if grown is None:
            break
        levels[grown.path] += 1
    places = []
    for axis in space.free:
        last, n = len(axis.values) - 1, levels[axis.path]
        places.append(np.unique(np.rint(np.linspace(0, last, n) if n > 1 else [last / 2]).astype(np.int64)))
    grid = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, len(places))
    points = [space.number(dict(zip([a.path for a in space.free], row, strict=True))) for row in grid.tolist()]
    return [points[i] for i in rng.permutation(len(points))]


def neighbours(space: Space, archive: Archive, count: int, rng: np.random.Generator) -> list[int]:
    """At most `count` points not priced yet, one step along one axis from points of the front, in random order."""
    found: dict[int, None] = {}
    chosen = archive.front()
    for i in rng.permutation(len(chosen)).tolist():
        at = {path: int(place[0]) for path, place in space.places(np.array([chosen[i]])).items()}
        for axis in space.free:
            for step in (-1, 1):
                place = at[axis.path] + step
                if 0 <= place < len(axis.values):
                    point = space.number({**at, axis.path: place})
                    if point not in archive.found:
                        found[point] = None
    points = list(found)
    return [points[i] for i in rng.permutation(len(points))[:count].tolist()]

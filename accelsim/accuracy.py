"""Measured error of models in a precision, from the records in `models/accuracy.json`. Nothing is interpolated.

The records are made by `accelsim reproduce fqbert-accuracy`: real weights, real text, several seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from accelsim.errors import SpecError


@dataclass(frozen=True)
class Measured:
    """Share of held-out texts that a model gets wrong, mean over seeds."""

    model: str
    task: str
    precision: str
    stage: str
    """aware: trained with its quantizers; control: fp32, with as many epochs. So that errors may be compared."""
    error: float
    sd: float
    """Standard deviation between seeds."""
    seeds: int
    texts: int


@cache
def records() -> tuple[Measured, ...]:
    """Every measurement that comes with the package."""
    text = (resources.files("accelsim_models") / "accuracy.json").read_text()
    return tuple(Measured(**row) for row in json.loads(text))


def measured(model: str, task: str, precision: str) -> Measured:
    """The measurement of a model in a precision.

    Raises SpecError for a task, model or precision that was not measured, with those that were.
    """
    found = records()
    for name, value in (("task", task), ("model", model), ("precision", precision)):
        legal = dict.fromkeys(getattr(row, name) for row in found)
        found = tuple(row for row in found if getattr(row, name) == value)
        if not found:
            what = f"error of {model}, {precision or 'precision of the platform'}, on {task}: {name} measured"
            raise SpecError.unknown(what, value, legal)
    return found[0]

"""Quantized models that come with the package, ready for `accelsim.execute`. No torch needed.

    params = load("minilm-l6-fq-bert-movie-reviews")
    params.about["command"], params.about["accuracy"]      # what made it, and what it reached

A file holds every integer and step but the word embeddings: those were not trained, so they are the float table of the
fetched MiniLM-L6, quantized again with the recorded step and checked by the sha256 of the result.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from accelsim_models import fetch

from accelsim.errors import SpecError
from accelsim.files import read_safetensors
from accelsim.params import Params

SUFFIX = ".safetensors"
DERIVED = "derived"
"""Key of `Params.about`: tensor -> {"tensor": its name in the fetched weights, "sha256": of the int8 table}."""


def names() -> tuple[str, ...]:
    """Names of the checkpoints in the package."""
    folder = resources.files("accelsim_models") / "checkpoints"
    return tuple(sorted(e.name.removesuffix(SUFFIX) for e in folder.iterdir() if e.name.endswith(SUFFIX)))


def path_of(name: str) -> Path:
    """File of a checkpoint. Raises SpecError for an unknown name."""
    if name not in names():
        raise SpecError.unknown("checkpoint", name, names())
    return Path(str(resources.files("accelsim_models") / "checkpoints" / f"{name}{SUFFIX}"))


def load(name_or_path: str | os.PathLike[str]) -> Params:
    """A checkpoint by name, or from a file that `save` or `Params.save` wrote.

    Raises SpecError for an unknown name, a file that is cut short or of another format, or weights that cannot be
    fetched or give another table than the recorded one.
    """
    text = os.fspath(name_or_path)
    params = Params.load(text if text.endswith(SUFFIX) else path_of(text))
    derived: dict[str, Any] = params.about.get(DERIVED, {})
    if not derived:
        return params
    base, _ = read_safetensors(fetch.minilm_l6() / "model.safetensors", "")
    arrays = dict(params.arrays)
    for name, origin in derived.items():
        arrays[name] = table(base[origin["tensor"]], params.step(name).scale)
        found = sha256(arrays[name])
        if found != origin["sha256"]:
            raise SpecError(f"{text}: {name}: sha256", found, origin["sha256"])
    return replace(params, arrays=arrays)


def save(params: Params, path: str | os.PathLike[str], base: dict[str, np.ndarray]) -> None:
    """Write `params` without those int8 tables that a float table of `base` gives again."""
    derived = {}
    for name, array in params.arrays.items():
        tensor = name.removeprefix("bert.")
        large = array.dtype == np.int8 and array.nbytes > 2**20 and tensor in base
        if large and (table(base[tensor], params.step(name).scale) == array).all():
            derived[name] = {"tensor": tensor, "sha256": sha256(array)}
    kept = {name: array for name, array in params.arrays.items() if name not in derived}
    replace(params, arrays=kept, about={**params.about, DERIVED: derived}).save(path)


def table(real: np.ndarray, scale: float) -> np.ndarray:
    """int8: a float table in steps of `scale`, ties to even, clamped to +-127."""
    result: np.ndarray = np.clip(np.rint(real.astype(np.float64) / scale), -127, 127).astype(np.int8)
    return result


def sha256(array: np.ndarray) -> str:
    """Of the bytes of a contiguous array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

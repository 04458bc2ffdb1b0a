"""Fine-tuning: in float, after-training quantization with a calibration, and training with the quantizers in the model.

    task = text_task("movie-reviews")
    model = classifier(task, quant_spec("fp32"), seed=0)
    fit(model, task, FLOAT, seed=0, folder="runs/float-0")
    accuracy(model, task)

Everything random follows from the seed and the epoch, so a run that was interrupted goes on as if it had not been:
`fit` writes weights, optimizer and ranges after every epoch, as safetensors, and starts from what it finds.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelsim_models import data, fetch
from accelsim_models.graphs import graphs
from accelsim_models.quantized_bert import QuantizedBert, observing
from torch import Tensor

import accelsim
from accelsim.errors import SpecError
from accelsim.files import read_safetensors, write_whole
from accelsim.params import Params
from accelsim.quantspec import QuantSpec

MODEL = "minilm-l6"
HEAD = "sequence-classification"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, linear warm-up and decay, gradients clipped by their norm."""

    epochs: int
    learning_rate: float
    batch: int = 32
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Of matrices; biases and norms have none."""
    clip_norm: float = 1.0
    frozen: tuple[str, ...] = ("embeddings",)
    """Tensors with one of these in their name, and two dimensions, are not trained."""
    refresh_steps: int = 64
    """Steps after which the steps (scales) of the weights are found anew."""


FLOAT = Recipe(epochs=3, learning_rate=1e-4)
"""As the float accuracy was reached: AdamW, batch 32, 1e-4, 3 epochs, embedding tables frozen."""
AWARE = Recipe(epochs=1, learning_rate=5e-5)
"""Quantization-aware fine-tuning that follows; the float control gets the same."""
CALIBRATION_BATCHES = 32
"""Batches of the training split that ranges of activations are taken from before anything is rounded."""


@dataclass(frozen=True, eq=False)
class Task:
    """Texts as token ids: int64 arrays, labels int64 (n,)."""

    name: str
    classes: tuple[str, ...]
    train: list[np.ndarray]
    train_labels: np.ndarray
    dev: list[np.ndarray]
    dev_labels: np.ndarray
    max_length: int

    def part(self, texts: int) -> Task:
        """The same task with at most so many texts to train on and to measure on, spread evenly over each split."""

        def some(n: int) -> np.ndarray:
            return np.unique(np.linspace(0, n - 1, min(n, texts)).round().astype(int))

        t, d = some(len(self.train)), some(len(self.dev))
        return replace(
            self,
            train=[self.train[i] for i in t],
            train_labels=self.train_labels[t],
            dev=[self.dev[i] for i in d],
            dev_labels=self.dev_labels[d],
        )


TASKS = ("movie-reviews", "tweets")
TWEETS_PER_CLASS = 3000
"""Of 38,158 tweets, so that a run takes as long as one on the reviews."""


def text_task(name: str, max_length: int = 64) -> Task:
    """A task by name, fetched where it is not in the cache. Raises SpecError for an unknown one."""
    if name not in TASKS:
        raise SpecError.unknown("task", name, TASKS)
    found = data.movie_reviews() if name == "movie-reviews" else data.tweets(TWEETS_PER_CLASS)
    tokenizer = data.tokenizer(fetch.minilm_l6(), max_length=max_length)
    train, dev = tokenizer.encode(found.train.texts), tokenizer.encode(found.dev.texts)
    return Task(found.name, found.classes, train, found.train.labels, dev, found.dev.labels, max_length)


@lru_cache(maxsize=1)
def minilm_weights() -> Mapping[str, Tensor]:
    """Float weights of MiniLM-L6 by the names of the classifier's graph."""
    arrays, _ = read_safetensors(fetch.minilm_l6() / "model.safetensors", "")
    return {f"bert.{name}": torch.from_numpy(a) for name, a in arrays.items()}


def classifier(task: Task, spec: QuantSpec, *, seed: int, weights: Mapping[str, Tensor] | None = None) -> QuantizedBert:
    """MiniLM-L6 with a new classifier made from the seed, or with the weights of a trained one."""
    at = graphs(MODEL, HEAD, len(task.classes))
    return QuantizedBert(at, minilm_weights() if weights is None else weights, spec, seed=seed)


def float_weights(model: QuantizedBert) -> dict[str, Tensor]:
    """Copies of the float weights by name, to start another model from."""
    return {name.replace("/", "."): w.detach().clone() for name, w in model.weights.items()}


# --- measuring --------------------------------------------------------------------------------------------------------


def logits(model: QuantizedBert, encoded: list[np.ndarray], batch: int = 64) -> np.ndarray:
    """float32 (texts, classes) in the model's mode, in the order of the texts."""
    model.eval()
    found: np.ndarray | None = None
    with torch.no_grad():
        for part in data.batches(encoded, batch):
            y = model(torch.from_numpy(part.input_ids), torch.from_numpy(part.attention_mask)).float().numpy()
            found = np.empty((len(encoded), y.shape[1]), np.float32) if found is None else found
            found[part.rows] = y
    assert found is not None
    return found


def integer_logits(
    params: Params, model: QuantizedBert, encoded: list[np.ndarray], *, batch: int = 64, threads: int = 1
) -> np.ndarray:
    """float32 (texts, classes), computed by `accelsim.execute`: integers from token ids to sums of the classifier."""
    found: np.ndarray | None = None
    for part in data.batches(encoded, batch):
        graph = model.graph(*part.input_ids.shape)
        inputs = {"input_ids": part.input_ids, "attention_mask": part.attention_mask}
        (name,) = graph.outputs
        y = params.real(graph, name, accelsim.execute(graph, params, inputs, threads=threads)[name])
        found = np.empty((len(encoded), y.shape[1]), np.float32) if found is None else found
        found[part.rows] = y
    assert found is not None
    return found


def accuracy(model: QuantizedBert, task: Task, batch: int = 64) -> float:
    """Share of the dev split that is classified correctly: in float mode, or exactly as the integers do."""
    return float((logits(model, task.dev, batch).argmax(axis=1) == task.dev_labels).mean())


def paired_p(right: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test: of the texts that one of two models gets right and the other does not.

    right, other: bool (texts,).
    """
    b, c = int((right & ~other).sum()), int((~right & other).sum())
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n if n else 1.0
    return min(1.0, 2 * tail)


# --- training ---------------------------------------------------------------------------------------------------------


def calibrate(model: QuantizedBert, task: Task, seed: int, batches: int = CALIBRATION_BATCHES) -> None:
    """Find the steps of weights and, from batches of the training split in float, the ranges of activations."""
    model.eval()
    model.mode = "float"
    model.low.clear()
    model.high.clear()
    model.seen.clear()
    with torch.no_grad(), observing(model):
        for i, part in enumerate(data.shuffled_batches(task.train, 32, seed, 0)):
            if i == batches:
                break
            model(torch.from_numpy(part.input_ids), torch.from_numpy(part.attention_mask))
    model.refresh()


def fit(
    model: QuantizedBert,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    folder: str | os.PathLike[str] | None = None,
    label: str = "training",
    bf16: bool | None = None,
) -> list[float]:
    """Train the model in its mode, "float" or "fake"; mean loss of each epoch.

    folder: where the state after every epoch is kept; a whole one that is there is gone on from. bf16: products of
    matrices in bfloat16; None, if the processor has instructions for it. Raises SpecError for a state of another run.
    """
    half = has_bf16() if bf16 is None else bf16
    for name, w in model.weights.items():
        w.requires_grad_(not (w.dim() == 2 and any(part in name for part in recipe.frozen)))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
    )
    run = {"recipe": json.loads(json.dumps(asdict(recipe))), "seed": seed, "spec": model.spec.name, "mode": model.mode,
           "texts": len(task.train), "task": task.name, "bf16": half}  # fmt: skip
    steps = -(-len(task.train) // recipe.batch)
    losses = _restore(model, optimizer, trained, folder, run)
    for epoch in range(len(losses), recipe.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        model.train()
        total = 0.0
        parts = data.shuffled_batches(task.train, recipe.batch, seed, epoch)
        for i, part in enumerate(_tracked(parts, f"{label}, epoch {epoch + 1} of {recipe.epochs}", steps)):
            if model.mode == "fake" and i % recipe.refresh_steps == 0:
                model.refresh()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _rate(epoch * steps + i, recipe.epochs * steps, recipe.warmup)
            with torch.autocast("cpu", torch.bfloat16, enabled=half), observing(model):
                y = model(torch.from_numpy(part.input_ids), torch.from_numpy(part.attention_mask))
            loss = F.cross_entropy(y.float(), torch.from_numpy(task.train_labels[part.rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.values(), recipe.clip_norm)
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / steps)
        if not math.isfinite(losses[-1]):
            raise SpecError(f"{label}: loss", losses[-1], "a finite number: lower the learning rate")
        _keep(model, optimizer, trained, folder, run, losses)
    model.refresh()
    model.eval()
    return losses


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by instructions of its own."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: up over the warm-up, then down to 0 at the end."""
    rising = max(1, round(warmup * steps))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def _keep(
    model: QuantizedBert, optimizer: Any, trained: Mapping[str, Tensor], folder: Any, run: Any, losses: list[float]
) -> None:
    if folder is None:
        return
    from safetensors.torch import save_file

    tensors = {f"weight.{n}": p.detach().contiguous() for n, p in trained.items()}
    for name, p in trained.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = optimizer.state[p][key].contiguous()
    about = {"run": run, "losses": losses, "low": model.low, "high": model.high, "seen": model.seen}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "state.safetensors", lambda p: save_file(tensors, p, {"state": json.dumps(about)}))


def _restore(model: QuantizedBert, optimizer: Any, trained: Mapping[str, Tensor], folder: Any, run: Any) -> list[float]:
    """Losses of the epochs that were trained before; the model and optimizer as they were after them."""
    path = None if folder is None else Path(folder) / "state.safetensors"
    if path is None or not path.exists():
        return []
    arrays, about = read_safetensors(path, "state")
    if about.get("run") != run:
        raise SpecError(str(path), about.get("run"), f"a state of this run, {run}, or an empty folder")
    losses = list(about["losses"])
    steps = -(-run["texts"] // run["recipe"]["batch"])
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(torch.from_numpy(arrays[f"weight.{name}"]))
            optimizer.state[p] = {
                "step": torch.tensor(float(len(losses) * steps)),
                "exp_avg": torch.from_numpy(arrays[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.from_numpy(arrays[f"exp_avg_sq.{name}"]),
            }
    model.low.update(about["low"])
    model.high.update(about["high"])
    model.seen.update(about.get("seen", {}))
    return losses


def _tracked(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """The items, with a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, total=total, description=description, console=console, disable=not sys.stderr.isatty())

"""Accuracy of a fully quantized BERT, measured: MiniLM-L6 on movie reviews and on tweets, beside FQ-BERT's own numbers.

    accelsim reproduce fqbert-accuracy --small     # evaluates the shipped checkpoint, minutes
    accelsim reproduce fqbert-accuracy             # trains everything, hours on two cores; goes on where it stopped

Every trained or evaluated model is one `Run`. Its record (accuracy, and for each held-out text whether it was right) is
a line of runs.jsonl; tables and figures are made from the records alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.quantspec import FP32, FQ_BERT, I_BERT, W8A8, QuantSpec, with_weight_bits

if TYPE_CHECKING:
    from accelsim_models.training import Task
    from matplotlib.figure import Figure

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published" / "fqbert.json").read_text())
RESULTS = Path(__file__).parent / "results" / "fqbert-accuracy"
SEEDS = (0, 1, 2)
TASKS = ("movie-reviews", "tweets")
BITS = tuple(range(2, 9))


@dataclass(frozen=True)
class Run:
    """One model: what is done to it, on which task, from which seed.

    stage: "float", 3 epochs; "control", one epoch more in float; "aware", the same epoch with quantizers in the model;
    "post-training", quantizers put around the float model after a calibration, nothing trained.
    """

    task: str
    seed: int
    stage: str
    spec: QuantSpec

    @property
    def key(self) -> str:
        """Name of the run, in records and folders."""
        return f"{self.task}/{self.seed}/{self.stage}/{self.spec.name}"


def ablation() -> tuple[tuple[str, QuantSpec], ...]:
    """(label, spec) in the order of the paper's Table II, then what it leaves out.

    Where an operator is not quantized yet it is computed in float32 between 8-bit operands and results.
    """
    steps = replace(
        FQ_BERT, name="weights-activations", embeddings=FP32.embeddings, scale_format="float32", softmax="float",
        layer_norm="float", norm_bits=32, gelu="float",
    )  # fmt: skip
    scales = replace(steps, name="scales", scale_format="scale8")
    softmax = replace(scales, name="softmax", softmax="table")
    norm = replace(softmax, name="layer-norm", layer_norm="fixed", norm_bits=8)
    gelu = replace(norm, name="gelu", gelu="table")
    labels = ("+ weights and activations", "+ scale factors", "+ softmax", "+ layer norm", "+ GELU", "+ embeddings")
    return tuple(zip(labels, (steps, scales, softmax, norm, gelu, FQ_BERT), strict=True))


def weight_specs() -> tuple[QuantSpec, ...]:
    """fq-bert with weights of 2 to 8 bits, ranges by largest magnitude or clip search, per tensor and per channel."""
    found = []
    for bits in BITS:
        for observer in ("abs_max", "mse"):
            for per_channel in (False, True):
                spec = with_weight_bits(FQ_BERT, bits)
                name = f"w{bits}-{observer}-{'channel' if per_channel else 'tensor'}"
                weights = replace(spec.weights, observer=observer, per_channel=per_channel)
                found.append(replace(spec, name=name, weights=weights))
    return tuple(found)


def points(seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """Every run of the full experiment, the main table first; a run comes after the float run it starts from."""
    found: list[Run] = []
    for task in TASKS:
        for seed in seeds:
            found.append(Run(task, seed, "float", FP32))
            found.append(Run(task, seed, "control", FP32))
            for spec in (FQ_BERT, I_BERT, W8A8):
                found += [Run(task, seed, "post-training", spec), Run(task, seed, "aware", spec)]
    for seed in seeds:
        found += [Run(TASKS[0], seed, "post-training", spec) for spec in weight_specs()]
        found += [Run(TASKS[0], seed, "post-training", spec) for _, spec in ablation()[:-1]]
    for seed in seeds:
        found += [Run(TASKS[0], seed, "aware", spec) for _, spec in ablation()[:-1]]
        found += [
            Run(TASKS[0], seed, "aware", spec)
            for spec in weight_specs()
            if spec.weights.bits <= 4 and not spec.weights.per_channel
        ]
    return found


# --- running ----------------------------------------------------------------------------------------------------------


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by key, from runs.jsonl. Raises SpecError for a line that is no record."""
    path = folder / "runs.jsonl"
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            raise SpecError(f"{path}: line {number}", line[:60], "a record of a run, as JSON") from None
    return found


def run_all(runs: list[Run], folder: Path, work: Path, tell: Callable[[str], None] = print) -> None:
    """Do what has no record yet. work: where states of training are kept; a run that was cut off goes on from there."""
    from accelsim_models import training

    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Task] = {}
    floats: dict[tuple[str, int], Any] = {}
    for run in runs:
        done = records(folder)
        if run.key in done:
            continue
        task = tasks.setdefault(run.task, training.text_task(run.task))
        model = _trained(run, task, floats, work)
        right = _right(run, model, task)
        record = {
            "key": run.key,
            "task": run.task,
            "seed": run.seed,
            "stage": run.stage,
            "spec": run.spec.name,
            "bf16": training.has_bf16(),
            "texts": len(right),
            "accuracy": float(right.mean()),
            "right": np.packbits(right).tobytes().hex(),
        }
        done[run.key] = record
        text = "".join(json.dumps(r) + "\n" for r in done.values())
        write_whole(folder / "runs.jsonl", lambda path, text=text: path.write_text(text))  # type: ignore[misc]
        tell(f"{run.key}: {record['accuracy']:.2%}")


def _trained(run: Run, task: Task, floats: dict[tuple[str, int], Any], work: Path) -> Any:
    """The model of a run, trained or calibrated, from the float model of the same task and seed."""
    from accelsim_models import training

    start = (run.task, run.seed)
    if start not in floats:
        model = training.classifier(task, FP32, seed=run.seed)
        folder = work / f"{run.task}-{run.seed}-float"
        training.fit(model, task, training.FLOAT, seed=run.seed, folder=folder, label=f"{run.task}, float")
        floats.clear()
        floats[start] = training.float_weights(model)
    model = training.classifier(task, run.spec, seed=run.seed, weights=floats[start])
    if run.stage == "float":
        return model
    folder = work / run.key.replace("/", "-")
    if run.spec.quantized:
        training.calibrate(model, task, run.seed)
        model.mode = "fake"
    if run.stage != "post-training":
        training.fit(model, task, training.AWARE, seed=run.seed + 1000, folder=folder, label=run.key)
    if run.spec.quantized:
        model.mode = "exact"
    return model


def _right(run: Run, model: Any, task: Task) -> np.ndarray:
    """bool (texts,): which held-out texts are classified correctly, by the integer executor where all is integers."""
    from accelsim_models import training

    if run.spec.quantized and all_integers(run.spec):
        found = training.integer_logits(model.params(), model, task.dev)
    else:
        found = training.logits(model, task.dev)
    right: np.ndarray = found.argmax(axis=1) == task.dev_labels
    return right


def all_integers(spec: QuantSpec) -> bool:
    """Whether nothing between token ids and the sums of the classifier is a real number."""
    methods = (spec.softmax, spec.layer_norm, spec.gelu)
    return spec.scope == "all" and spec.embeddings.quantized and "float" not in methods


# --- tables -----------------------------------------------------------------------------------------------------------


def _of(done: Mapping[str, Mapping[str, Any]], task: str, stage: str, spec: str) -> dict[int, Mapping[str, Any]]:
    """Records of one model by seed."""
    wanted = (task, stage, spec)
    return {r["seed"]: r for r in done.values() if (r["task"], r["stage"], r["spec"]) == wanted}


def _right_of(record: Mapping[str, Any]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(record["right"]), np.uint8))
    return bits[: record["texts"]].astype(bool)


def _mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """(mean, standard deviation between seeds, None for one seed), in per cent."""
    mean = 100 * float(np.mean(values))
    return mean, 100 * float(np.std(values, ddof=1)) if len(values) > 1 else None


def main_table(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of task, model, stage, seeds, accuracy and spread in per cent, points to the control, paired p.

    p: McNemar's exact test on the texts of all seeds together, against the float model that was trained as long.
    """
    from accelsim_models.training import paired_p

    rows = []
    for task in TASKS:
        controls = _of(done, task, "control", "fp32")
        for stage, name in (
            ("float", "fp32"),
            ("control", "fp32"),
            *((stage, name) for name in ("w8a8", "i-bert", "fq-bert") for stage in ("post-training", "aware")),
        ):
            found = _of(done, task, stage, name)
            if not found:
                continue
            mean, spread = _mean_and_spread([r["accuracy"] for r in found.values()])
            shared = sorted(found.keys() & controls.keys())
            points, p = None, None
            if shared and stage != "control":
                ours = np.concatenate([_right_of(found[s]) for s in shared])
                theirs = np.concatenate([_right_of(controls[s]) for s in shared])
                points, p = 100 * float(ours.mean() - theirs.mean()), paired_p(ours, theirs)
            rows.append(
                {"task": task, "model": name, "stage": stage, "seeds": len(found), "accuracy": mean, "spread": spread,
                 "points": points, "p": p}
            )  # fmt: skip
    return rows


def measured(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `models/accuracy.json`: mean error of every preset that was trained, and of float at equal epochs."""
    widths = {bits: f"w{bits}-mse-tensor" for bits in BITS}
    of_presets = {
        "fp32": ("control", "fp32"), "w8a8": ("aware", "w8a8"), "i-bert": ("aware", "i-bert"),
        "fq-bert": ("aware", "fq-bert"), "w4a8": ("aware", "fq-bert"), "w3a8": ("aware", widths[3]),
        "w2a8": ("aware", widths[2]),
    }  # fmt: skip
    rows = []
    for task in TASKS:
        for precision, (stage, spec) in of_presets.items():
            found = list(_of(done, task, stage, spec).values())
            if len(found) > 1:
                errors = np.array([1 - record["accuracy"] for record in found])
                rows.append(
                    {
                        "model": "minilm-l6", "task": task, "precision": precision, "stage": stage,
                        "error": round(float(errors.mean()), 12), "sd": round(float(errors.std(ddof=1)), 12),
                        "seeds": len(found), "texts": found[0]["texts"],
                    }
                )  # fmt: skip
    return rows


def ablation_table(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of step, the paper's SST-2 accuracy (None where it has no row), ours after training and without, seeds."""
    paper = [value for _, value in PUBLISHED["ablation_sst2_cumulative"]]
    rows = []
    for i, (label, stage, spec) in enumerate(
        [("float, same epochs", "control", "fp32"), *((label, "aware", spec.name) for label, spec in ablation())]
    ):
        found = _of(done, TASKS[0], stage, spec)
        after = _of(done, TASKS[0], "float" if stage == "control" else "post-training", spec)
        row: dict[str, Any] = {"step": label, "paper": paper[i] if i < len(paper) else None}
        row["ours"], row["spread"] = (
            _mean_and_spread([r["accuracy"] for r in found.values()]) if found else (None, None)
        )
        row["post_training"] = _mean_and_spread([r["accuracy"] for r in after.values()])[0] if after else None
        rows.append({**row, "seeds": len(found)})
    return rows


def bits_table(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of stage, weight bits, observer, per channel, accuracy and spread in per cent, seeds."""
    rows = []
    for stage in ("post-training", "aware"):
        for spec in weight_specs():
            found = _of(done, TASKS[0], stage, spec.name)
            if found:
                mean, spread = _mean_and_spread([r["accuracy"] for r in found.values()])
                rows.append(
                    {"stage": stage, "bits": spec.weights.bits, "observer": spec.weights.observer,
                     "per_channel": spec.weights.per_channel, "accuracy": mean, "spread": spread, "seeds": len(found)}
                )  # fmt: skip
    return rows


def compression_table() -> list[dict[str, Any]]:
    """Rows of model, what is counted, float and quantized bytes, ratio; FQ-BERT's way of counting and the whole model.

    The paper's 7.94: the encoder's parameters alone, weights of 4 bits, biases of 32, layer-norm parameters of 8.
    """
    import accelsim
    from accelsim.graph import Role
    from accelsim.transforms.quantize import quantize

    rows = []
    for name in ("bert-base", "minilm-l6"):
        for head in ("none", "sequence-classification"):
            graph = accelsim.trace(name, head=head)
            integer = quantize(graph, FQ_BERT)
            for part, counted in (
                ("encoder", lambda n: ".layer." in n or n.startswith("encoder.layer.")),
                ("whole model", lambda n: True),
            ):
                if (part == "encoder") != (head == "none"):
                    continue
                weights = [n for n, t in graph.tensors.items() if t.role is Role.WEIGHT and counted(n)]
                before = sum(graph.tensors[n].bytes for n in weights)
                after = sum(integer.tensors[n].bytes for n in weights)
                paper = PUBLISHED["accuracy"][1]["compression"] if (name, part) == ("bert-base", "encoder") else None
                rows.append(
                    {"model": name, "counted": part, "float_bytes": before, "bytes": after, "ratio": before / after,
                     "paper": paper}
                )  # fmt: skip
    return rows


def targets(rows: list[dict[str, Any]]) -> list[str]:
    """What was aimed at and what was reached, one line each."""
    lines = []
    for name, allowed in (("fq-bert", 1.0), ("i-bert", 0.5)):
        for row in rows:
            if (row["task"], row["model"], row["stage"]) == (TASKS[0], name, "aware") and row["points"] is not None:
                reached = "reached" if row["points"] >= -allowed else "NOT reached"
                lines.append(f"{name} within {allowed} points of fp32 on {TASKS[0]}: {row['points']:+.2f}, {reached}")
    paper = [entry["sst2"] for entry in PUBLISHED["accuracy"]]
    lines.append(f"the paper, BERT-base on SST-2: {paper[0]} float, {paper[1]} FQ-BERT, {paper[1] - paper[0]:+.2f}")
    return lines


def text(done: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """All tables as lines of Markdown."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None or (isinstance(value, float) and math.isnan(value)) else format(value, form)

    main = main_table(done)
    yield "| task | model | stage | accuracy, % | sd between seeds | seeds | points to control | paired p |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for r in main:
        yield (
            f"| {r['task']} | {r['model']} | {r['stage']} | {r['accuracy']:.2f} | {number(r['spread'], '.2f')} | "
            f"{r['seeds']} | {number(r['points'], '+.2f')} | {number(r['p'], '.2g')} |"
        )
    yield ""
    yield from targets(main)
    yield ""
    yield "| cumulative step | paper, SST-2 | ours, trained | sd | seeds | ours, not trained |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for r in ablation_table(done):
        cells = [number(r[key], ".2f") for key in ("paper", "ours", "spread")]
        yield f"| {r['step']} | {' | '.join(cells)} | {r['seeds']} | {number(r['post_training'], '.2f')} |"
    yield ""
    yield "| weight bits | stage | abs-max, tensor | clip, tensor | abs-max, channel | clip, channel |"
    yield "| --- | --- | --- | --- | --- | --- |"
    bits = bits_table(done)
    for stage in ("post-training", "aware"):
        for b in BITS:
            cells = {
                (r["observer"], r["per_channel"]): r["accuracy"] for r in bits if (r["stage"], r["bits"]) == (stage, b)
            }
            if cells:
                order = [("abs_max", False), ("mse", False), ("abs_max", True), ("mse", True)]
                yield f"| {b} | {stage} | " + " | ".join(number(cells.get(c), ".2f") for c in order) + " |"
    yield ""
    yield "| model | counted | float, bytes | fq-bert, bytes | ratio | paper |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for r in compression_table():
        yield (
            f"| {r['model']} | {r['counted']} | {r['float_bytes']:,} | {r['bytes']:,} | {r['ratio']:.2f} | "
            f"{number(r['paper'], '.2f')} |"
        )


def reproduce(folder: Path, small: bool) -> Iterator[str]:
    """Lines to print. small: the shipped checkpoint's accuracy beside the recorded table; else everything, trained.

    Writes tables.md and the figures into `folder`, in full also accuracy.json, which models/ has a copy of; runs that
    have a record there are not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if small:
        yield from _shipped()
        done = records(RESULTS)
    else:
        told: list[str] = []
        for run in points():
            run_all([run], folder, folder / "work", told.append)
            yield from told
            told.clear()
        done = records(folder)
        write_whole(folder / "accuracy.json", lambda path: path.write_text(json.dumps(measured(done), indent=1) + "\n"))
    lines = list(text(done))
    write_whole(folder / "tables.md", lambda path: path.write_text("\n".join(lines) + "\n"))
    yield ""
    yield from lines
    from accelsim.plots import save_figure

    for name, drawn in figures(done).items():
        yield f"wrote {save_figure(drawn, folder / f'{name}.png')}"


def _shipped() -> Iterator[str]:
    """Accuracy of the checkpoint in the package, computed in integers, beside what it was saved with."""
    from accelsim_experiments import model
    from accelsim_models import checkpoints, data, fetch

    params = checkpoints.load(model.DEFAULT)
    reviews = data.movie_reviews()
    encoded = data.tokenizer(fetch.minilm_l6()).encode(reviews.dev.texts)
    reached = float((model.predictions(params, encoded) == reviews.dev.labels).mean())
    yield f"{model.DEFAULT}: {reached:.2%} of {len(encoded)} held-out reviews, recorded {params.about['accuracy']:.2%}"
    if not math.isclose(reached, params.about["accuracy"], abs_tol=1e-12):
        raise RuntimeError("the shipped checkpoint does not reach its recorded accuracy")


def figures(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Figures by name: accuracy against weight bits (the paper's Figure 3), and the ablation (its Table II)."""
    found = {}
    if bits_table(done):
        found["weight-bits"] = _bits_figure(bits_table(done), main_table(done))
    if any(row["ours"] is not None for row in ablation_table(done)):
        found["ablation"] = _ablation_figure(ablation_table(done))
    return found


def _bits_figure(rows: list[dict[str, Any]], main: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.style import context

    from accelsim.plots import DOUBLE, STYLE

    stages = [stage for stage in ("post-training", "aware") if any(r["stage"] == stage for r in rows)]
    names = {"post-training": "quantized after training", "aware": "trained with quantizers"}
    with context(STYLE, after_reset=True):
        drawn = Figure(figsize=(DOUBLE, 2.5), layout="constrained")
        axes = drawn.subplots(1, len(stages), sharey=True, squeeze=False)[0]
        for place, stage in zip(axes, stages, strict=True):
            for observer, per_channel, words, colour, dash in (
                ("abs_max", False, "abs-max, per tensor", "C0", "--"),
                ("mse", False, "clip search, per tensor", "C0", "-"),
                ("abs_max", True, "abs-max, per channel", "C1", "--"),
                ("mse", True, "clip search, per channel", "C1", "-"),
            ):
                mine = [
                    r for r in rows if (r["stage"], r["observer"], r["per_channel"]) == (stage, observer, per_channel)
                ]
                if mine:
                    spread = [r["spread"] or 0 for r in mine]
                    bits, values = [r["bits"] for r in mine], [r["accuracy"] for r in mine]
                    place.errorbar(bits, values, spread, color=colour, linestyle=dash, marker="o", markersize=2.5,
                                   capsize=1.5, elinewidth=0.5, label=words)  # fmt: skip
            for row in main:
                if (row["task"], row["model"], row["stage"]) == (TASKS[0], "fp32", "control"):
                    place.axhline(row["accuracy"], color="#606060", linewidth=0.6, label="fp32, trained as long")
            place.set_xlabel("bits of a weight")
            place.set_title(names[stage], loc="left", weight="bold")
            place.grid(axis="y")
            place.set_xticks(BITS)
        axes[0].set_ylabel("accuracy on held-out movie reviews (%)")
        axes[0].legend(loc="lower right")
    return drawn


def _ablation_figure(rows: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.style import context

    from accelsim.plots import SINGLE, STYLE

    with context(STYLE, after_reset=True):
        drawn = Figure(figsize=(SINGLE, 2.6), layout="constrained")
        axes = drawn.add_subplot()
        places = range(len(rows))
        for key, words, colour, marker in (
            ("paper", "paper: BERT-base, SST-2 (872 texts)", "#606060", "s"),
            ("ours", "ours: MiniLM-L6, movie reviews, trained", "C0", "o"),
            ("post_training", "ours, not trained", "C1", "^"),
        ):
            mine = [(i, row[key]) for i, row in zip(places, rows, strict=True) if row[key] is not None]
            if mine:
                axes.plot(*zip(*mine, strict=True), color=colour, marker=marker, markersize=3, label=words)
        axes.set_xticks(list(places), [row["step"] for row in rows], rotation=30, ha="right")
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")
        axes.legend()
    return drawn


# --- the checkpoint in the package ------------------------------------------------------------------------------------

SHIPPED = Run(TASKS[0], 0, "aware", FQ_BERT)
"""The run whose model is in the package."""


def ship(work: Path, target: Path, run: Run = SHIPPED) -> dict[str, Any]:
    """Train the run (or take up its states in `work`), write its integers to `target`; the record kept beside them."""
    from dataclasses import asdict

    import torch
    from accelsim_experiments import model as measured
    from accelsim_models import checkpoints, fetch, training

    from accelsim.files import read_safetensors

    task = training.text_task(run.task)
    trained = _trained(run, task, {}, work)
    params = trained.params()
    right = measured.predictions(params, task.dev) == task.dev_labels
    about = {
        "source": "MiniLM-L6 (all-MiniLM-L6-v2, Apache-2.0), fine-tuned on movie reviews of Hutto and Gilbert (2014)",
        "command": "python -m accelsim_experiments.fqbert_accuracy --work WORK --ship FILE",
        "run": run.key,
        "float": asdict(training.FLOAT),
        "aware": asdict(training.AWARE),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bf16": training.has_bf16(),
        "classes": list(task.classes),
        "texts": len(right),
        "accuracy": float(right.mean()),
    }
    base, _ = read_safetensors(fetch.minilm_l6() / "model.safetensors", "")
    checkpoints.save(replace(params, about=about), target, base)
    return about


def main() -> None:
    """Train and write the checkpoint of the package."""
    import argparse

    parser = argparse.ArgumentParser(description=ship.__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for states of training")
    parser.add_argument("--ship", type=Path, required=True, help="file to write, .safetensors")
    options = parser.parse_args()
    print(json.dumps(ship(options.work, options.ship), indent=1))


if __name__ == "__main__":
    main()

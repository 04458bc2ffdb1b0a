"""Whole development set through MiniLM-L6: the integer executor against PyTorch and ONNX Runtime, in one run.

    python benchmarks/model.py [--rounds 3] [--texts 2099]

Contenders take turns on the same length-sorted batches at the same number of threads: (a) PyTorch float32, (b) PyTorch
dynamic int8, (c) ONNX Runtime dynamic int8, exported from the same module; ours in w4a8 (fq-bert) and in 8 bits
(i-bert). Building graphs, packing and the first batch of each size are before the clock. Memory: the peak of a process
of its own that loads the shipped checkpoint and does nothing else. Writes results/model.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from accelsim_experiments import model as experiment
from accelsim_models import checkpoints, data, fetch

import accelsim
from accelsim.files import write_whole
from accelsim.params import Params

RESULTS = Path(__file__).parent / "results" / "model.json"
BATCH = 32
Run = Callable[[Any], np.ndarray]


def dev_batches(texts: int) -> tuple[list[Any], np.ndarray]:
    """(batches sorted by length, labels by text)."""
    reviews = data.movie_reviews()
    encoded = data.tokenizer(fetch.minilm_l6()).encode(reviews.dev.texts[:texts])
    return list(data.batches(encoded, BATCH)), reviews.dev.labels[:texts]


def executor(params: Params, threads: int) -> Run:
    """Logits of a batch by `accelsim.execute`."""
    graphs: dict[tuple[int, int], Any] = {}

    def run(batch: Any) -> np.ndarray:
        size = batch.input_ids.shape
        if size not in graphs:
            graphs[size] = experiment.graph_at(*size, params)
        graph = graphs[size]
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        out = accelsim.execute(graph, params, inputs, threads=threads)
        return params.real(graph, graph.outputs[0], out[graph.outputs[0]])

    return run


def modules(params: Params) -> Any:
    """Hugging Face's module with the float numbers that the checkpoint's integers stand for."""
    import torch
    from accelsim_models.graphs import graphs
    from accelsim_models.quantized_bert import QuantizedBert
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    module = BertForSequenceClassification(config).eval()
    reference = QuantizedBert.from_params(graphs(experiment.MODEL, experiment.HEAD), params)
    state = {name.replace("/", "."): w.detach() for name, w in reference.weights.items()}
    module.load_state_dict(state, strict=False)
    with torch.no_grad():
        ids = torch.randint(5, 20000, (2, 9))
        ones = torch.ones_like(ids)
        reference.mode = "float"
        difference = float((module(ids, ones).logits - reference(ids, ones)).abs().max())
    assert difference < 1e-3, f"the float module computes something else: {difference}"
    return module


def in_torch(module: Any) -> Run:
    """Logits of a batch by a PyTorch module."""
    import torch

    def run(batch: Any) -> np.ndarray:
        with torch.inference_mode():
            found = module(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).logits
        return np.asarray(found)

    return run


def in_onnxruntime(module: Any, threads: int, folder: Path) -> Run:
    """Logits of a batch by ONNX Runtime, linear layers in dynamic int8 (uint8 inputs, int8 weights)."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ids = torch.ones(2, 16, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    if not (folder / "int8.onnx").exists():
        axes = {name: {0: "batch", 1: "seq"} for name in names}
        torch.onnx.export(module, (ids, torch.ones_like(ids)), str(folder / "float.onnx"), input_names=names,
                          output_names=["logits"], dynamic_axes=axes, dynamo=False, opset_version=17)  # fmt: skip
        quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "int8.onnx"), options, providers=["CPUExecutionProvider"])

    def run(batch: Any) -> np.ndarray:
        found: np.ndarray = session.run(None, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})[0]
        return found

    return run


def measure(runs: dict[str, Run], batches: list[Any], labels: np.ndarray, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds for all batches, best and median of the rounds, and accuracy, by contender."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    right: dict[str, int] = {}
    for name, run in runs.items():  # every size once, and the predictions
        right[name] = sum(int((run(b).argmax(axis=1) == labels[b.rows]).sum()) for b in batches)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for batch in batches:
                run(batch)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"best_s": min(s), "median_s": median(s), "accuracy": right[name] / len(labels)}
        for name, s in seconds.items()
    }


def memory_mib(texts: int) -> float:
    """Peak resident memory, in MiB, of a process that evaluates the shipped checkpoint."""
    command = [sys.executable, __file__, "--alone", "--texts", str(texts)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(texts: int) -> None:
    """Evaluate the shipped checkpoint in this process and print its peak memory in MiB."""
    batches, _ = dev_batches(texts)
    run = executor(checkpoints.load(experiment.DEFAULT), threads=1)
    for batch in batches:
        run(batch)
    assert "torch" not in sys.modules
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=2099)
    parser.add_argument("--eight-bits", type=Path, default=None, help="an i-bert checkpoint, to be measured as well")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.texts)
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    batches, labels = dev_batches(options.texts)
    params = checkpoints.load(experiment.DEFAULT)
    quantized = {"accelsim fq-bert (w4a8)": params}
    if options.eight_bits is not None:
        quantized["accelsim i-bert (w8a8)"] = checkpoints.load(options.eight_bits)
    module = modules(params)
    dynamic = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)
    found: dict[str, Any] = {
        "cores": os.cpu_count(), "system": platform.platform(), "torch": torch.__version__, "texts": len(labels),
        "batch": BATCH, "load_at_start": os.getloadavg()[0], "memory_mib": memory_mib(options.texts),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs = {name: executor(p, threads) for name, p in quantized.items()}
            runs |= {"torch float32": in_torch(module), "torch dynamic int8": in_torch(dynamic)}
            runs["onnxruntime dynamic int8"] = in_onnxruntime(module, threads, Path(folder))
            found[f"threads {threads}"] = measure(runs, batches, labels, options.rounds)
    found["load_at_end"] = os.getloadavg()[0]
    for threads in (1, 2):
        rows = found[f"threads {threads}"]
        print(f"\n{threads} thread(s), {len(labels)} texts, batches of {BATCH} sorted by length")
        print("| contender | best, s | median, s | texts/s | its time / ours | accuracy |")
        print("| --- | --- | --- | --- | --- | --- |")
        ours = rows["accelsim fq-bert (w4a8)"]["best_s"]
        for name, row in rows.items():
            print(
                f"| {name} | {row['best_s']:.2f} | {row['median_s']:.2f} | {len(labels) / row['best_s']:.0f} | "
                f"{row['best_s'] / ours:.2f} | {row['accuracy']:.2%} |"
            )
    print(f"\npeak memory of a process with the executor alone: {found['memory_mib']:.0f} MiB")
    write_whole(RESULTS, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()

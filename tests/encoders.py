"""Tiny encoders with random weights, one of each family, and how to run graph and module on the same input."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.execute import execute
from accelsim.graph import Graph
from accelsim.trace import parameters, trace

SEQ, BATCH = 9, 2
_BERT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
_ROBERTA = {**_BERT, "max_position_embeddings": 34, "pad_token_id": 1}
TINY: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {
        "vocab_size": 50,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 32,
    },
    "roberta": _ROBERTA,
    "albert": {**_BERT, "embedding_size": 10, "hidden_act": "gelu_new"},
    "mobilebert": {
        **_BERT,
        "intermediate_size": 24,
        "intra_bottleneck_size": 12,
        "true_hidden_size": 12,
        "embedding_size": 8,
    },
    "electra": {**_BERT, "embedding_size": 10},
    "ernie": _BERT,
    "megatron-bert": _BERT,
    "ibert": {**_ROBERTA, "quant_mode": False},
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "data2vec-text": _ROBERTA,
}


def tiny(family: str, auto: str = "AutoModel", **options: Any) -> Any:
    """Module with weights drawn from N(0, 0.2^2), in eval mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**TINY[family], **options.pop("config", {})})
    module = getattr(transformers, auto).from_config(config, **options).eval()
    for p in module.parameters():
        p.data.normal_(0, 0.2)
    return module


def arrays(batch: int = BATCH, seq: int = SEQ) -> dict[str, np.ndarray]:
    """Random ids; every sequence but the first has padding."""
    mask = np.ones((batch, seq), np.int64)
    for i in range(1, batch):
        mask[i, -(i + 3) :] = 0
    return {"input_ids": np.random.default_rng(0).integers(3, 50, (batch, seq)), "attention_mask": mask}


def reference(module: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the torch module computes."""
    import torch

    with torch.no_grad():
        out = module(**{k: torch.from_numpy(v) for k, v in given.items()})
    values = out if isinstance(out, tuple | list) else out.to_tuple() if hasattr(out, "to_tuple") else [out]
    return [v.numpy() for v in values if v is not None]


def error(graph: Graph, module: Any, given: dict[str, np.ndarray]) -> float:
    """Largest difference between graph and module, relative to the largest value of each output."""
    ours = list(execute(graph, parameters(module), given).values())
    theirs = reference(module, given)
    assert len(ours) == len(theirs)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


def traced(module: Any) -> Graph:
    """Graph of a tiny module."""
    return trace(module, seq=SEQ, batch=BATCH)

"""The model zoo: name -> published configuration -> `transformers` module on the meta device. Never the network.

Importing this file imports neither torch nor transformers. Heads:

- none: the encoder as its family's base class gives it (with the pooler where the family has one);
- pretraining: masked language model and next sentence (BERT, MobileBERT), and sentence order (ALBERT); replaced-token
  detection for ELECTRA's discriminator; the masked language model alone for DistilBERT and RoBERTa;
- sequence-classification, token-classification: two labels unless a local configuration says otherwise;
- question-answering: start and end of the span.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelsim.errors import SpecError

if TYPE_CHECKING:
    import torch

HEADS = {
    "none": "AutoModel",
    "pretraining": "AutoModelForPreTraining",
    "sequence-classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "token-classification": "AutoModelForTokenClassification",
}
"""Head -> the `transformers` class that builds it from a configuration."""

FAMILIES = {
    "bert": 0,
    "distilbert": 0,
    "albert": 0,
    "mobilebert": 0,
    "electra": 0,
    "ernie": 0,
    "megatron-bert": 0,
    "ibert": 1,
    "roberta": 1,
    "xlm-roberta": 1,
    "camembert": 1,
    "roberta-prelayernorm": 1,
    "data2vec-text": 1,
}
"""`model_type` of every BERT-like family -> 1 where positions are counted from the padding index plus one."""


MASKED_HEADS = {
    "bert": "cls.predictions",
    "ernie": "cls.predictions",
    "megatron-bert": "cls.predictions",
    "mobilebert": "cls.predictions",
    "distilbert": "vocab_transform",
    "albert": "predictions",
    "roberta": "lm_head",
    "xlm-roberta": "lm_head",
    "camembert": "lm_head",
    "roberta-prelayernorm": "lm_head",
    "data2vec-text": "lm_head",
    "ibert": "lm_head",
}
"""`model_type` -> the module where its masked-language-model head begins."""

_LABELS = ("labels", "next_sentence_label", "sentence_order_label", "start_positions", "end_positions")


@dataclass(frozen=True)
class Spec:
    """A published configuration: `family` is its `model_type`, `source` where the numbers of `config` are printed."""

    family: str
    source: str
    max_seq: int
    config: Mapping[str, Any] = field(default_factory=dict)


def _bert(layers: int, hidden: int, heads: int, ffn: int, source: str) -> Spec:
    """A BERT; vocabulary 30,522, 512 positions, 2 segments, GELU, eps 1e-12 (Devlin et al., bert_config.json)."""
    return Spec(
        "bert",
        source,
        512,
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": ffn,
        },
    )


_TURC = "Turc et al., arXiv:1908.08962: heads = hidden / 64, ffn = 4 hidden; config.json of google/bert_uncased_{}"

ZOO: dict[str, Spec] = {
    "bert-tiny": _bert(2, 128, 2, 512, _TURC.format("L-2_H-128_A-2")),
    "bert-mini": _bert(4, 256, 4, 1024, _TURC.format("L-4_H-256_A-4")),
    "bert-small": _bert(4, 512, 8, 2048, _TURC.format("L-4_H-512_A-8")),
    "bert-medium": _bert(8, 512, 8, 2048, _TURC.format("L-8_H-512_A-8")),
    "bert-base": _bert(12, 768, 12, 3072, "Devlin et al., arXiv:1810.04805, section 3; bert-base-uncased"),
    "bert-large": _bert(24, 1024, 16, 4096, "Devlin et al., arXiv:1810.04805, section 3; bert-large-uncased"),
    "minilm-l6": _bert(6, 384, 12, 1536, "config.json of nreimers/MiniLM-L6-H384-uncased (all-MiniLM-L6-v2)"),
    "minilm-l12": _bert(12, 384, 12, 1536, "Wang et al., arXiv:2002.10957; microsoft/MiniLM-L12-H384-uncased"),
    "tinybert-4l-312": _bert(4, 312, 12, 1200, "Jiao et al., arXiv:1909.10351, section 4; TinyBERT_General_4L_312D"),
    "distilbert": Spec(
        "distilbert",
        "Sanh et al., arXiv:1910.01108; config.json of distilbert-base-uncased",
        512,
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "n_layers": 6,
            "dim": 768,
            "n_heads": 12,
            "hidden_dim": 3072,
            "activation": "gelu",
            "sinusoidal_pos_embds": False,
        },
    ),
    "roberta-base": Spec(
        "roberta",
        "Liu et al., arXiv:1907.11692; config.json of roberta-base (514 positions, of which 2 are the padding's)",
        512,
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "pad_token_id": 1,
        },
    ),
    "albert-base": Spec(
        "albert",
        "Lan et al., arXiv:1909.11942, table 1; config.json of albert-base-v2",
        512,
        {
            "vocab_size": 30000,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "embedding_size": 128,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-12,
        },
    ),
    "mobilebert": Spec(
        "mobilebert",
        "Sun et al., arXiv:2004.02984, table 1; config.json of google/mobilebert-uncased",
        512,
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "num_hidden_layers": 24,
            "hidden_size": 512,
            "embedding_size": 128,
            "intra_bottleneck_size": 128,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "num_feedforward_networks": 4,
            "hidden_act": "relu",
            "normalization_type": "no_norm",
            "trigram_input": True,
            "use_bottleneck": True,
            "use_bottleneck_attention": False,
            "key_query_shared_bottleneck": True,
            "classifier_activation": False,
        },
    ),
    "electra-small": Spec(
        "electra",
        "Clark et al., arXiv:2003.10555, table 6; config.json of google/electra-small-discriminator",
        512,
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "embedding_size": 128,
            "hidden_size": 256,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        },
    ),
}


def names() -> tuple[str, ...]:
    """Names of the zoo, in the order of its table."""
    return tuple(ZOO)


def heads() -> tuple[str, ...]:
    """Names of the heads."""
    return tuple(HEADS)


def max_seq(name_or_path: str) -> int:
    """Longest sequence in tokens the model has positions for. Imports neither torch nor transformers for zoo names."""
    folder = _folder(name_or_path)
    if folder is None:
        return ZOO[name_or_path].max_seq
    data = _read_config(folder)
    if "max_position_embeddings" not in data:  # then the family's default holds, which transformers knows
        return _usable_positions(_local_config(folder))
    return positions(data["model_type"], data["max_position_embeddings"], data.get("pad_token_id", 1))


def positions(family: str, max_position_embeddings: int, pad_token_id: int | None) -> int:
    """Tokens a model can number: RoBERTa counts from its padding index plus one, so that 514 positions hold 512."""
    return max_position_embeddings - FAMILIES.get(family, 0) * ((1 if pad_token_id is None else pad_token_id) + 1)


def _usable_positions(config: Any) -> int:
    return positions(config.model_type, config.max_position_embeddings, config.pad_token_id)


def config(name_or_path: str) -> Any:
    """The `transformers` configuration object of a zoo name or a local folder with a config.json."""
    folder = _folder(name_or_path)
    if folder is not None:
        return _local_config(folder)
    from transformers import AutoConfig

    spec = ZOO[name_or_path]
    return AutoConfig.for_model(spec.family, **spec.config)


def build(name_or_path: str, head: str = "none") -> torch.nn.Module:
    """The module in eval mode on the meta device: shapes only, no weights.

    Raises SpecError for a name that is not in the zoo (the nearest one is offered), a folder without a legal
    config.json, a model that is not of the BERT family, an unknown head.
    """
    if head not in HEADS:
        raise SpecError.unknown("head", head, HEADS)
    _folder(name_or_path)  # refuses an unknown name before the slow imports
    import torch
    import transformers

    with torch.device("meta"), quiet():
        try:
            module = getattr(transformers, HEADS[head]).from_config(config(name_or_path))
        except SpecError:
            raise
        except Exception as error:  # whatever a configuration with impossible numbers makes the constructor raise
            reason = f"a configuration that builds ({_first_line(error)})"
            raise SpecError("model", name_or_path, reason) from None
    result: torch.nn.Module = module.eval()
    return result


def labels(module: torch.nn.Module, seq: int, batch: int, masked: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the int64 labels that make the module's `forward` give a loss; {} for one that takes none.

    masked: labels of so many tokens in each sequence, instead of all.
    """
    import inspect

    taken = inspect.signature(module.forward).parameters
    shapes: dict[str, tuple[int, ...]] = {name: (batch,) for name in _LABELS if name in taken}
    if "labels" in shapes and not type(module).__name__.endswith("ForSequenceClassification"):
        shapes["labels"] = (batch, seq) if masked is None else (batch * masked,)
    return shapes


def masked_head(module: torch.nn.Module) -> torch.nn.Module:
    """The part of a masked language model that only masked tokens need.

    Raises SpecError for a module without one.
    """
    config: Any = getattr(module, "config", None)
    path = MASKED_HEADS.get(str(getattr(config, "model_type", "")), "")
    found = dict(module.named_modules())
    if not path or path not in found:
        raise SpecError("masked", type(module).__name__, "a model with a masked-language-model head")
    return found[path]


@contextlib.contextmanager
def quiet() -> Any:
    """Silence what transformers logs while a module is built."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _folder(name_or_path: str) -> Path | None:
    """None for a zoo name, else an existing folder; a zoo name wins unless the text has a path separator."""
    separated = "/" in name_or_path or os.sep in name_or_path
    if name_or_path in ZOO and not separated:
        return None
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if separated:
        raise SpecError("model", name_or_path, f"a folder with config.json, or one of {', '.join(sorted(ZOO))}")
    raise SpecError.unknown("model", name_or_path, ZOO)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise SpecError(str(path), error.strerror, "a readable file") from None
    except ValueError as error:
        raise SpecError(str(path), str(error), "complete JSON") from None
    if not isinstance(data, dict):
        raise SpecError(str(path), type(data).__name__, "a JSON object")
    if data.get("model_type") not in FAMILIES:
        raise SpecError.unknown(f"{path}: model_type", data.get("model_type"), FAMILIES)
    for key, low in (("max_position_embeddings", 1), ("pad_token_id", 0)):
        value = data.get(key)
        if value is not None and (not isinstance(value, int) or value < low):
            raise SpecError(f"{path}: {key}", value, f"an integer >= {low}")
    return data


def _local_config(folder: Path) -> Any:
    _read_config(folder)
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise SpecError(f"{folder}/config.json", _first_line(error), "a configuration transformers accepts") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Files: written whole or not at all; descriptions and tensors read, with one clear error for what is wrong."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from accelsim.errors import SpecError


def write_whole(target: Path, write: Callable[[Path], object]) -> Path:
    """`target`, after `write` has filled a temporary file beside it that was then renamed; a failure leaves nothing.

    The temporary file has a name of its own, so that two processes may write the same target.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_safetensors(path: str | os.PathLike[str], key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays by name, the JSON object that the metadata keep under `key`, empty if there is none).

    Raises SpecError for a file that is missing, cut short, no safetensors or of a type that numpy has not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(key, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise SpecError(str(path), error.strerror or str(error), "a readable file") from None
    except (SafetensorError, AttributeError, TypeError, ValueError, RecursionError) as error:
        # AttributeError, TypeError: a type that numpy has not; the last two: text that is no JSON
        raise SpecError(str(path), str(error), "a complete safetensors file") from None
    return tensors, about if isinstance(about, dict) else {}


def read_description(path: Path) -> Any:
    """The content of a YAML or JSON file. Raises SpecError if it cannot be read or parsed."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), getattr(error, "strerror", None) or "not text", "a readable text file") from None
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise SpecError(str(path), str(error), "complete JSON") from None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise SpecError(str(path), " ".join(str(error).split())[:160], "YAML") from None


def spec_error(error: Any, target: type, source: str) -> SpecError:
    """The first complaint of pydantic as one of ours."""
    import typing
    from dataclasses import fields, is_dataclass
    from enum import Enum

    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    holder: Any = target
    for part in location[:-1]:
        holder = typing.get_type_hints(holder).get(part, holder)
    if first["type"] == "unexpected_keyword_argument" and is_dataclass(holder):
        return SpecError.unknown(f"{source}: field {path}", location[-1], [f.name for f in fields(holder)])
    hint = typing.get_type_hints(holder).get(location[-1]) if location else None
    if isinstance(hint, type) and issubclass(hint, Enum):
        return SpecError.unknown(f"{source}: {path}", first["input"], [m.name.lower() for m in hint])
    if first["type"].startswith("missing"):
        return SpecError(f"{source}: field {path}", None, "a value: the field is missing")
    legal = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return SpecError(f"{source}: {path}", first["input"], legal)

"""`Study`: a folder of results. manifest.json says which space and which version, chunks/*.parquet hold the rows.

Every file is written whole or not at all, under a name that its content decides, so a run that was stopped at any
moment goes on where it was, and two folders of the same space hold the same rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accelsim.errors import SpecError
from accelsim.files import write_whole
from accelsim.jit import source_digest
from accelsim.space import Space, space

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
Best = Mapping[str, tuple[float, int]]
"""Objective -> (its least value, the point that has it)."""


@dataclass(frozen=True)
class Study:
    """A folder that a sweep or a search wrote: its space, and its rows as a table."""

    folder: Path
    manifest: Mapping[str, Any]

    @cached_property
    def space(self) -> Space:
        """The space of the study, with the base platform as it was."""
        return space(self.manifest["description"])

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """What a search minimized; empty for a sweep."""
        return tuple(self.manifest.get("objectives", ()))

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that hold finished rows. Raises SpecError if there are none."""
        found = tuple(sorted((self.folder / "chunks").glob("*.parquet")))
        if not found:
            raise SpecError(f"study {self.folder}", "no finished rows", "a study with at least one chunk")
        return found

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        import pyarrow.parquet as pq

        return tuple(_read(self.files[0], pq.read_schema).names)

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The finished rows file by file, column -> (n,). Raises SpecError for a column that is not there."""
        import pyarrow.parquet as pq

        for name in columns or ():
            if name not in self.columns:
                raise SpecError.unknown(f"{self.folder}: column", name, self.columns)
        for path in self.files:
            table = _read(path, lambda p: pq.read_table(p, columns=None if columns is None else [*columns]))
            yield {name: table[name].to_numpy() for name in table.column_names}

    def rows(self, points: np.ndarray) -> pd.DataFrame:
        """The finished rows of some points, sorted by `point`."""
        import pandas as pd

        found = [pd.DataFrame(c)[np.isin(c["point"], points)] for c in self.chunks()]
        return pd.concat([f for f in found if len(f)] or found[:1]).sort_values("point", ignore_index=True)

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A row per finished point, sorted by `point`: axes, `feasible`, results with their units in the names.

        columns: only these. Raises SpecError for a file that is cut short or a column that is not there.
        """
        import pandas as pd

        found = pd.concat([pd.DataFrame(chunk) for chunk in self.chunks(columns)], ignore_index=True)
        return found.sort_values("point", ignore_index=True) if "point" in found else found


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` gives for a file. Raises SpecError if it is cut short."""
    import pyarrow as pa

    try:
        return read(path)
    except (OSError, pa.ArrowException) as error:
        short = str(error).splitlines()[0]
        raise SpecError(str(path), short, "a complete Parquet file; --resume prices it again") from None


def read_study(folder: str | os.PathLike[str]) -> Study:
    """The study of a folder, finished or not. Raises SpecError if there is none or its manifest cannot be read."""
    place = Path(folder)
    path = place / "manifest.json"
    if not path.exists():
        raise SpecError(f"study {place}", "no manifest.json", "a folder written by accelsim sweep or accelsim search")
    return Study(place, _read_manifest(path))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        there = json.loads(path.read_text())
        if isinstance(there, dict) and int(there["format"]) == FORMAT and int(there["chunk"]) > 0:
            return there
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise SpecError(str(path), "not readable", f"the manifest of a study, format {FORMAT}")


def start(found: Space, folder: Path, resume: bool, chunk: int, about: Mapping[str, Any]) -> int:
    """Points of a chunk, after the manifest was written or, to resume, found to be of this space and version.

    about: what else decides the rows (kind of study, objectives, seed). Call it while `held`.
    """
    path = folder / "manifest.json"
    mine = {"format": FORMAT, "space": found.digest, "code": source_digest(), **about}
    if path.exists():
        there = _read_manifest(path)
        if not resume:
            raise SpecError(f"study {folder}", "has a manifest", "an empty folder, or --resume")
        for key, value in mine.items():
            if there.get(key) != value:
                raise SpecError(f"{path}: {key}", there.get(key), f"{value}: of this space and this version")
        return int(there["chunk"])
    if any(folder.glob("chunks/*.parquet")):
        raise SpecError(f"study {folder}", "chunks without a manifest", "an empty folder")
    content = {**mine, "points": found.points, "chunk": chunk, "description": found.description}
    _write(path, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))
    return chunk


def clean(folder: Path) -> None:
    """Remove what writers that were killed left behind. Call it while `held`, when nobody writes."""
    for partial in (folder / "chunks").glob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. Raises SpecError naming the process that holds it."""
    import fcntl

    try:
        (folder / "chunks").mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise SpecError(f"study {folder}", error.strerror, "a folder that can be written") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = f"held by {file.read().strip() or 'another process'}"
            raise SpecError(f"study {folder}", holder, "a folder that no other process works on") from None
        file.truncate(0)
        with suppress(OSError):  # a full disk: the lock holds, its holder stays unnamed
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield  # the file stays: whoever waits for it must not get hold of one that is gone


def chunk_path(found: Space, folder: Path, start: int, stop: int) -> Path:
    """Where the rows of points start to stop - 1 are: a name that space, version and range decide."""
    key = f"{found.digest} {source_digest()} {start} {stop}"
    return folder / "chunks" / f"{start:013d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"


def write_rows(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns as one Parquet file, whole or not at all. Raises SpecError if that fails, as on a full disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({n: pa.array(v.tolist() if v.dtype.kind in "OU" else v) for n, v in columns.items()})
    _write(path, lambda p: pq.write_table(table, p, compression="zstd", compression_level=1))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise SpecError(str(path), error.strerror or str(error), "a disk with room; --resume goes on") from None


def read_rows(path: Path, rows: int) -> dict[str, np.ndarray] | None:
    """The columns of a file of `rows` rows, or None where there is no such file or it is cut short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return {n: table[n].to_numpy() for n in table.column_names} if table.num_rows == rows else None

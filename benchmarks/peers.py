"""The other simulators: an environment for each, the job they are given, and the measurement of a whole process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""For every tool alike: idle threads of a BLAS spin, which would be counted as CPU seconds."""

Shape = tuple[int, int, int]
"""m, k, n of a GEMM."""


class PeerError(RuntimeError):
    """A peer could not be installed or did not run; the text says which and why."""


@dataclass(frozen=True)
class Peer:
    """Another simulator, and how it is asked."""

    name: str
    package: str
    driver: str
    order: str
    """What is left to the peer's own search: "free" = the order of the loops, "stationary" = m is pinned innermost."""
    about: str


PEERS = (
    Peer(
        "scalesim",
        "scalesim",
        "peer_scalesim.py",
        "stationary",
        "steps the array cycle by cycle; bandwidth estimated, no trace files, silent: its cheapest mode",
    ),
    Peer("zigzag", "zigzag", "peer_zigzag.py", "free", "as its tutorial runs it: LOMA search, its default limits"),
    Peer(
        "zigzag-pinned",
        "zigzag",
        "peer_zigzag.py",
        "stationary",
        "the same with the weight stationary loop pinned, so that it searches less",
    ),
)


@dataclass(frozen=True)
class Process:
    """What one fresh process took, everything it started and waited for included."""

    cpu_s: float
    """User plus system."""
    wall_s: float
    peak_bytes: int
    stdout: str


def peer_job(peer: Peer, array: dict[str, int], gemms: list[Shape]) -> dict[str, Any]:
    """The JSON object a peer's driver reads: the numbers of the array in bytes and bytes per cycle, and the GEMMs.

    array: rows, cols, input_buffer_bytes, weight_buffer_bytes, accumulator_bytes, dram_bytes_per_cycle.
    """
    return {**array, "gemms": gemms, "order": peer.order, "lpf_limit": 6}


def run_process(command: list[str], stdin: str = "", environment: dict[str, str] | None = None) -> Process:
    """CPU seconds, wall seconds and peak bytes of a command run from start to end, and what it printed.

    Raises PeerError with the end of its stderr when it fails.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    with (
        tempfile.TemporaryFile("w+") as source,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        source.write(stdin)
        source.seek(0)
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=source, stdout=out, stderr=err, env=inherited | ONE_THREAD | (environment or {})
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            end = "\n".join(err.read().strip().splitlines()[-8:])
            raise PeerError(f"{' '.join(command)}: exit status {process.returncode}\n{end}")
        peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Process(usage.ru_utime + usage.ru_stime, wall_s, peak_bytes, out.read())


def cache_folder() -> Path:
    """Where the peers' environments live; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accelsim" / "peers"


def requirements(package: str) -> Path:
    return HERE / f"requirements-{package}.txt"


def peer_python(package: str, python: str = sys.executable) -> Path:
    """Interpreter of the package's own environment, made at the first call and again when its requirements change.

    python: the interpreter that makes it (3.11 or newer). Raises PeerError when pip fails.
    """
    wanted = hashlib.sha256(requirements(package).read_bytes() + os.path.realpath(python).encode()).hexdigest()
    folder = cache_folder() / package
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp = folder / "requirements.sha256"
    with (folder.parent / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted):
            print(f"installing {package} into {folder}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            run_process([python, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            run_process([*pip, "-r", str(requirements(package))])
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def peer_versions(interpreter: Path) -> dict[str, str]:
    """Version of the interpreter and of each package installed beside it, as pip tells them."""
    listed = run_process([str(interpreter), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"])
    version = run_process([str(interpreter), "-c", "import platform; print(platform.python_version())"])
    return {"python": version.stdout.strip(), **{p["name"]: p["version"] for p in json.loads(listed.stdout)}}


def run_peer(peer: Peer, interpreter: Path, array: dict[str, int], gemms: list[Shape]) -> tuple[Process, list[Any]]:
    """The whole process, and per GEMM the answer: shape, cycles, compute_cycles, cpu_s_inner, wall_s_inner."""
    job = json.dumps(peer_job(peer, array, gemms))
    process = run_process([str(interpreter), str(HERE / peer.driver)], job)
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    if [tuple(a["shape"]) for a in answers] != gemms:
        raise PeerError(f"{peer.name}: asked for {gemms}, answered {[a['shape'] for a in answers]}")
    return process, answers

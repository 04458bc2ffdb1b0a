"""`this-cpu`: the machine this runs on as a roofline, measured with numpy in a few seconds and then kept as a file.

The file lies in the user's cache folder and holds the description with `provenance`: when and how it was measured.
Delete it, or move it to another machine, and the next use measures anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform as host
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accelsim.errors import SpecError

VERSION = 1
"""Of what is measured: a file of another version is measured anew."""

FALLBACK_CLOCK_HZ = 2.5e9
FALLBACK_INNER_BYTES = 512 * 1024
FALLBACK_OUTER_BYTES = 8 * 2**20
FALLBACK_DRAM_BYTES = 8 * 2**30


class Effort(NamedTuple):
    """How much is computed and moved: a few seconds by default."""

    gemm_side: int = 1024
    copy_bytes: int = 2**28
    """At least; four times the last cache if that is more, but at most an eighth of the memory."""
    cache_loop_bytes: int = 2**25
    """Moved in one timing within the caches."""
    launches: int = 2000
    repeats: int = 5


class Found(NamedTuple):
    """A number and how it was found."""

    value: float
    how: str


def this_cpu_description(effort: Effort = Effort()) -> dict[str, Any]:  # noqa: B008  # an immutable tuple
    """Fields of a `Roofline` for this machine, from the cache file or else measured and written there.

    fp32 is measured; every other number format has peak 0, which means not computed here. A file that is damaged, of
    another version or from another machine is measured anew; a cache folder that cannot be written is no error.
    """
    saved = _load(cache_file())
    if saved is None:
        saved = measure(effort)
        _save(cache_file(), saved)
    description: dict[str, Any] = saved["description"]
    return description


def this_cpu_provenance() -> dict[str, str]:
    """Field of the description -> when or how it was found; empty before the first measurement."""
    saved = _load(cache_file())
    return dict(saved["provenance"]) if saved else {}


def cache_file() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/accelsim/this-cpu.json"""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "accelsim" / "this-cpu.json"


def _load(path: Path) -> dict[str, Any] | None:
    """The file's content if it describes this machine and reads as a platform, else None."""
    from accelsim.platforms.base import from_mapping

    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["version"] != VERSION or saved["machine"] != machine():
            return None
        from_mapping(saved["description"], str(path))
        if not isinstance(saved["provenance"], dict):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecError):
        return None
    return dict(saved)


def _save(path: Path, saved: dict[str, Any]) -> None:
    """Write under a temporary name, then rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


# --- measuring --------------------------------------------------------------------------------------------------


def measure(effort: Effort) -> dict[str, Any]:
    """Content of the cache file: version, machine, provenance, description."""
    cores = core_count()
    inner, outer = cache_bytes(cores)
    memory = memory_bytes()
    clock = clock_hz()
    side = effort.gemm_side
    peak = gemm_flops_per_s(side, effort.repeats)
    copied = int(min(max(effort.copy_bytes, 4 * outer.value), max(memory.value / 8, 2**20)))
    dram = copy_bytes_per_s(copied // cores, cores, 1, effort.repeats)
    loops = effort.cache_loop_bytes

    def cached(level_bytes: float) -> float:
        each = max(4096, int(level_bytes) // (2 * cores))
        return cores * copy_bytes_per_s(each // 2, 1, max(1, loops // each), effort.repeats)

    fast, slow = cached(inner.value), cached(outer.value)
    vector = cores * vector_flops_per_s(int(inner.value) // cores, loops, effort.repeats)
    launch = launch_s(effort.launches, effort.repeats)
    zeros = dict.fromkeys(("fp32", "fp16", "bf16", "int8", "int4"), 0.0)
    description = {
        "kind": "roofline",
        "name": "this-cpu",
        "clock_hz": clock.value,
        "compute_units": cores,
        "peak_flops_per_s": {**zeros, "fp32": peak},
        "peak_efficiency": 1.0,
        "tile_m": 128,
        "tile_n": 128,
        "min_tile": 16,
        "k_half": 16.0,
        "vector_flops_per_s": vector,
        "exp_flops": 20.0,
        "launch_s": launch,
        "inner": {"capacity_bytes": int(inner.value), "bytes_per_s": fast, "pj_per_byte": 0.0},
        "outer": {"capacity_bytes": int(outer.value), "bytes_per_s": slow, "pj_per_byte": 0.0},
        "dram": {
            "bytes_per_s": dram,
            "efficiency": 1.0,
            "capacity_bytes": int(memory.value),
            "pj_per_byte": 0.0,
        },
        "pj_per_flop": zeros,
        "vector_pj_per_flop": 0.0,
        "static_w": 0.0,
        "die_mm2": 0.0,
    }
    best = f"best of {effort.repeats}"
    provenance = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": f"{os.getloadavg()[0]:.1f} runnable processes" if hasattr(os, "getloadavg") else "not known",
        "clock_hz": clock.how,
        "compute_units": "os.cpu_count(), or the cores this process may use if fewer",
        "peak_flops_per_s": f"fp32: numpy {np.__version__} product of {side}x{side} matrices, all threads, {best}; "
        "others are not measured, and so not computed",
        "peak_efficiency": "1: the peak is a measured product",
        "tile_m, tile_n, min_tile, k_half, exp_flops": "assumed: as i7-8700",
        "vector_flops_per_s": f"numpy multiplication within the inner cache, one thread x {cores}, {best}",
        "launch_s": f"numpy addition of two numbers, {best}",
        "inner.capacity_bytes": inner.how,
        "inner.bytes_per_s": f"numpy copy within the inner cache, read and write, one thread x {cores}, {best}",
        "outer.capacity_bytes": outer.how,
        "outer.bytes_per_s": f"numpy copy within the outer cache, read and write, one thread x {cores}, {best}",
        "dram.bytes_per_s": f"numpy copy of {copied} bytes, read and write, {cores} threads, {best}",
        "dram.efficiency": "1: the rate is a measured copy",
        "dram.capacity_bytes": memory.how,
        "energy": "not measured: 0",
    }
    return {"version": VERSION, "machine": machine(), "provenance": provenance, "description": description}


def _best_s(repeats: int, run: Callable[[], object]) -> float:
    """Shortest time of one call in seconds, after one call that is not counted."""
    run()
    shortest = float("inf")
    for _ in range(max(1, repeats)):
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return max(shortest, 1e-9)


def gemm_flops_per_s(side: int, repeats: int) -> float:
    """fp32 multiplications and additions per second of a (side, side) product: 2 side^3 / time."""
    a = np.full((side, side), 0.5, np.float32)
    b = np.full((side, side), 0.25, np.float32)
    out = np.empty((side, side), np.float32)
    return 2.0 * side**3 / _best_s(repeats, lambda: np.matmul(a, b, out=out))


def copy_bytes_per_s(nbytes: int, threads: int, loops: int, repeats: int) -> float:
    """Bytes read and written per second when each thread copies `nbytes` from array to array, `loops` times."""
    length = max(1, nbytes)
    pairs = [(np.ones(length, np.uint8), np.zeros(length, np.uint8)) for _ in range(threads)]

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(loops):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_s(repeats, lambda: list(pool.map(copy, pairs)))
    return 2.0 * length * threads * loops / seconds


def vector_flops_per_s(core_cache_bytes: int, moved_bytes: int, repeats: int) -> float:
    """fp32 multiplications per second of one thread on arrays that fill half of a core's inner cache."""
    length = max(64, core_cache_bytes // 2 // 8)
    loops = max(1, moved_bytes // (8 * length))
    a, out = np.ones(length, np.float32), np.empty(length, np.float32)

    def multiply() -> None:
        for _ in range(loops):
            np.multiply(a, a, out=out)

    return float(length * loops) / _best_s(repeats, multiply)


def launch_s(calls: int, repeats: int) -> float:
    """Seconds of a numpy call that computes next to nothing."""
    a, out = np.ones(2, np.float32), np.empty(2, np.float32)

    def run() -> None:
        for _ in range(max(1, calls)):
            np.add(a, a, out=out)

    return _best_s(repeats, run) / max(1, calls)


# --- what the machine says about itself ---------------------------------------------------------------------------


def machine() -> str:
    """Model of the processor and number of cores: a file measured elsewhere is not used here."""
    model = _cpuinfo("model name") or _sysctl_text("machdep.cpu.brand_string") or host.processor() or host.machine()
    return f"{model}, {core_count()} cores"


def core_count() -> int:
    """Cores this process may use."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, min(cores, 65536))


def clock_hz() -> Found:
    """Cycles per second; only the unit in which cycles are reported."""
    text = _cpuinfo("cpu MHz")
    with contextlib.suppress(TypeError, ValueError):
        if text and 1.0 <= float(text) < 1e6:
            return Found(float(text) * 1e6, "/proc/cpuinfo")
    rate = _sysctl_number("hw.cpufrequency")
    if rate:
        return Found(float(rate), "sysctl hw.cpufrequency")
    return Found(FALLBACK_CLOCK_HZ, "assumed: this system does not tell; times do not depend on it")


def cache_bytes(cores: int, root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> tuple[Found, Found]:
    """(second level of all cores together, last level), each with where the number comes from."""
    levels: dict[int, int] = {}
    for index in sorted(root.glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            if (index / "type").read_text().strip() != "Instruction":
                levels[int((index / "level").read_text())] = _kib((index / "size").read_text())
    how = str(root)
    if 2 not in levels:
        how = "os.sysconf"
        levels = {n: size for n in (2, 3) if (size := _sysconf(f"SC_LEVEL{n}_CACHE_SIZE")) > 0}
    if 2 not in levels:
        how = "sysctl hw.l2cachesize, hw.l3cachesize"
        levels = {n: size for n in (2, 3) if (size := _sysctl_number(f"hw.l{n}cachesize")) > 0}
    if 2 not in levels:
        return (
            Found(FALLBACK_INNER_BYTES * cores, "assumed: this system does not tell, 512 KiB for each core"),
            Found(FALLBACK_OUTER_BYTES, "assumed: this system does not tell, 8 MiB"),
        )
    inner = Found(levels[2] * cores, f"{how}: {levels[2]} bytes for each core")
    if 3 not in levels:
        return inner, Found(inner.value, f"{how}: no third level, as inner")
    return inner, Found(levels[3], f"{how}: third level")


def memory_bytes() -> Found:
    """Bytes of main memory."""
    pages, page = _sysconf("SC_PHYS_PAGES"), _sysconf("SC_PAGE_SIZE")
    if pages > 0 and page > 0:
        return Found(pages * page, "os.sysconf")
    size = _sysctl_number("hw.memsize")
    if size:
        return Found(size, "sysctl hw.memsize")
    return Found(FALLBACK_DRAM_BYTES, "assumed: this system does not tell, 8 GiB")


def _kib(text: str) -> int:
    """Bytes of '512K' or '32M'."""
    text = text.strip()
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:].upper(), 1)
    return int(text.rstrip("KMGkmg")) * unit


def _sysconf(name: str) -> int:
    """A value of os.sysconf, 0 where there is none."""
    try:
        return int(os.sysconf(name))
    except (AttributeError, ValueError, OSError):
        return 0


def _cpuinfo(key: str) -> str:
    """First value of a key in /proc/cpuinfo, empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _sysctl(name: str) -> bytes:
    """Raw value of a BSD or macOS sysctl, empty where there is none."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        call = ctypes.CDLL(None).sysctlbyname
        size = ctypes.c_size_t(256)
        buffer = ctypes.create_string_buffer(256)
        if call(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return buffer.raw[: size.value]
    return b""


def _sysctl_number(name: str) -> int:
    return int.from_bytes(_sysctl(name), "little")


def _sysctl_text(name: str) -> str:
    return _sysctl(name).split(b"\0")[0].decode(errors="replace")

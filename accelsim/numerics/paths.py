"""Which instructions the integer kernels are built from, and how one set is chosen.

A path is chosen from what the processor has *and* what numba compiles for: code for an instruction that the target
lacks does not fail to compile, it aborts the process inside LLVM. `ACCELSIM_KERNELS` or an argument choose another one.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from accelsim.errors import SpecError

ENVIRONMENT = "ACCELSIM_KERNELS"
"""Environment variable that names the path where no argument does."""


@dataclass(frozen=True)
class Path:
    """A set of instructions: `needs` are alternatives, each a set of LLVM feature names that is sufficient.

    dot: the multiply-accumulate it stands on. macs: products of one such step. tested: whether the project's tests have
    run it on hardware.
    """

    name: str
    dot: str
    macs: int
    needs: tuple[frozenset[str], ...]
    tested: bool


PATHS = {
    path.name: path
    for path in (
        Path("avx512-vnni", "vpdpbusd, 512 bits", 64, (frozenset({"avx512f", "avx512bw", "avx512vnni"}),), True),
        Path(
            "avx-vnni",
            "vpdpbusd, 256 bits",
            32,
            (frozenset({"avx2", "avxvnni"}), frozenset({"avx2", "avx512vl", "avx512vnni"})),
            True,
        ),
        Path("avx2", "vpmaddwd on widened bytes, 256 bits", 16, (frozenset({"avx2"}),), True),
        Path("portable", "products of widened bytes, in the vectors the processor has", 1, (frozenset(),), True),
    )
}
"""Fastest first. All give the same bits."""

NOT_BUILT = {"arm-dotprod": "sdot, udot, usdot: not built and not tested; ARM processors take the portable path"}
"""What the seam has room for."""


@functools.cache
def target_features() -> frozenset[str]:
    """LLVM features that the processor has and that numba's own target is compiled for."""
    import llvmlite.binding as llvm
    from numba.core.registry import cpu_target

    try:
        host = {name for name, there in llvm.get_host_cpu_features().items() if there}
    except RuntimeError:  # LLVM cannot tell for this kind of processor
        return frozenset()
    _, _, compiled_for = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(host & {name[1:] for name in compiled_for.split(",") if name.startswith("+")})


@functools.cache
def target_cpu() -> str:
    """Name of the processor that numba compiles for."""
    from numba.core.registry import cpu_target

    return str(cpu_target.target_context.codegen().magic_tuple()[1])


def available() -> tuple[str, ...]:
    """Names of the paths that run here, fastest first. `portable` always does."""
    have = target_features()
    return tuple(name for name, path in PATHS.items() if any(need <= have for need in path.needs))


@functools.cache
def select(path: str | None = None) -> str:
    """The path to run: the argument, else the environment variable `ACCELSIM_KERNELS`, else the fastest available.

    The variable is read once. Raises SpecError for a name that is unknown or that this process cannot run.
    """
    named = path if path is not None else os.environ.get(ENVIRONMENT) or available()[0]
    source = "path" if path is not None else ENVIRONMENT
    if named not in PATHS:
        raise SpecError.unknown(source, named, PATHS)
    if named not in available():
        gaps = [sorted(need - target_features()) for need in PATHS[named].needs]
        lacks = min(gaps, key=lambda gap: len(gap))
        runs = ", ".join(available())
        raise SpecError(source, named, f"a path that runs here ({runs}); {target_cpu()} lacks {', '.join(lacks)}")
    return named

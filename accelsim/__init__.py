"""What would this BERT cost on that hardware?

    import accelsim
    graph = accelsim.trace("bert-base", seq=128, batch=1)
    report = accelsim.simulate(graph, accelsim.platform("systolic-32x32"))
    report.total.time_s, report.breakdown(by="operator")

Names are imported when they are first used, so that `import accelsim` is cheap; torch and matplotlib come only with
what needs them.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelsim.errors import Infeasible as Infeasible
    from accelsim.errors import SpecError as SpecError
    from accelsim.execute import execute as execute
    from accelsim.gemm import gemm_graph as gemm_graph
    from accelsim.graph import Graph as Graph
    from accelsim.literal import bim_trace as bim_trace
    from accelsim.literal import systolic_trace as systolic_trace
    from accelsim.mapping import Mapping as Mapping
    from accelsim.mapping import best as best
    from accelsim.params import Params as Params
    from accelsim.platforms import Platform as Platform
    from accelsim.platforms import platform as platform
    from accelsim.quantspec import QuantSpec as QuantSpec
    from accelsim.quantspec import quant_spec as quant_spec
    from accelsim.report import Report as Report
    from accelsim.simulate import simulate as simulate
    from accelsim.sweep import sweep as sweep
    from accelsim.trace import trace as trace
    from accelsim.transforms.prune import prune as prune
    from accelsim.transforms.quantize import quantize as quantize
    from accelsim.transforms.quantize import with_precision as with_precision
    from accelsim.work import Work as Work

__version__ = "0.1.0"

_HOME = {
    "Graph": "graph",
    "Infeasible": "errors",
    "Mapping": "mapping",
    "Params": "params",
    "Platform": "platforms",
    "QuantSpec": "quantspec",
    "Report": "report",
    "SpecError": "errors",
    "Work": "work",
    "best": "mapping",
    "bim_trace": "literal",
    "execute": "execute",
    "gemm_graph": "gemm",
    "platform": "platforms",
    "prune": "transforms.prune",
    "quant_spec": "quantspec",
    "quantize": "transforms.quantize",
    "simulate": "simulate",
    "sweep": "sweep",
    "systolic_trace": "literal",
    "trace": "trace",
    "with_precision": "transforms.quantize",
}

__all__ = sorted(_HOME)


class _Package(types.ModuleType):
    """Keeps `accelsim.simulate` the function when the file of the same name is imported, and so `trace`, `execute`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME.get(name) == name and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'accelsim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"accelsim.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

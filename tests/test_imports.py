"""Do imports point one way? The layers of DESIGN, and nothing heavy at import time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "files", "work", "jit", "formulas", "technology", "executors", "accuracy"},
    {"platforms", "graph", "kernels", "numerics", "literal", "quantspec"},
    {"mapping", "ops", "gemm"},
    {
        "simulate",
        "events",
        "space",
        "price",
        "study",
        "sweep",
        "transforms",
        "memory",
        "trace",
        "joint",
        "explain",
        "export",
        "validate",
    },
    {"params", "integers", "execute", "twin"},
    {"pareto", "search"},
    {"plots", "html", "page"},
    {"cli", "__main__"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
LEVEL["report"] = 3  # simulate fills it, plots read it
HEAVY = {"torch", "transformers", "matplotlib", "pandas", "pyarrow", "ruamel", "rich"}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules a file imports: in all of it, or only when it is imported itself (TYPE_CHECKING left out)."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def core(path: Path) -> str:
    return path.relative_to(ROOT / "accelsim").parts[0].removesuffix(".py")


def breaks(name: str, found: set[str]) -> list[str]:
    """Imports of a core file that point up, or to models or experiments where only cli and trace may."""
    wrong = []
    for module in found:
        parts = module.split(".")
        if parts[0] in ("models", "experiments") or (parts[0] == "accelsim_experiments" and name != "cli"):
            wrong.append(module)
        if parts[0] == "accelsim_models" and name not in ("cli", "trace"):
            wrong.append(module)
        if parts[0] == "accelsim" and len(parts) > 1 and parts[1] in LEVEL and LEVEL[parts[1]] > LEVEL[name]:
            wrong.append(module)
        if name == "platforms" and parts[:2] in (["accelsim", "graph"], ["accelsim", "ops"]):
            wrong.append(module)
        if name == "graph" and parts[:2] == ["accelsim", "platforms"]:
            wrong.append(module)
    return wrong


FILES = sorted(p for p in (ROOT / "accelsim").rglob("*.py") if core(p) not in ("__init__", "graphs"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    assert core(path) in LEVEL, "a new core file needs its layer in this test"
    assert breaks(core(path), imports(path)) == []


@pytest.mark.parametrize("path", [p for p in FILES if core(p) != "plots"], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_heavy_is_imported_with_a_module(path):
    assert {m.split(".")[0] for m in imports(path, everywhere=False)} & HEAVY == set()


def test_the_layer_test_can_fail():
    assert breaks("graph", {"accelsim.platforms.base"})
    assert breaks("platforms", {"accelsim.graph"})
    assert breaks("report", {"accelsim.plots"})
    assert breaks("simulate", {"accelsim_models.zoo"})
    assert breaks("trace", {"accelsim_experiments.kernels"})
    assert not breaks("simulate", {"accelsim.events", "numpy"})


def test_only_trace_imports_torch():
    users = [core(p) for p in FILES if {m.split(".")[0] for m in imports(p)} & {"torch", "transformers"}]
    assert set(users) == {"trace", "joint"}


def test_models_and_experiments_do_not_import_by_their_folder_names():
    for folder in ("models", "experiments", "accelsim"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {m for m in imports(path) if m.split(".")[0] in ("models", "experiments")}, path


def test_functions_keep_their_names_when_their_files_are_imported():
    """accelsim.simulate is both a function and a file; the import system must not replace the one by the other."""
    import importlib

    import accelsim

    for name in ("simulate", "trace", "execute"):
        importlib.import_module(f"accelsim.{name}")
        assert callable(getattr(accelsim, name)), name
    code = "import accelsim.simulate, accelsim.trace, accelsim; assert callable(accelsim.simulate), accelsim.simulate"
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code], check=True)

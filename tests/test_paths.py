"""Is a set of instructions chosen that the processor and the compiler have, and do threads and processes mix?"""

from __future__ import annotations

import pytest

from accelsim import SpecError
from accelsim.numerics import paths
from tests.integers import PATHS, TWO_THREADS, in_a_process

CHOICE = """
import json
from accelsim import SpecError, numerics
from accelsim.numerics import loops, paths
from tests.integers import mismatches

refused = {}
for name in paths.PATHS:
    try:
        numerics.select(name)
    except SpecError as error:
        refused[name] = str(error)
wrong = mismatches()
kernels = [kernel for pair in loops.KERNELS.values() for kernel in pair]
print(json.dumps({
    "available": numerics.available(),
    "selected": numerics.select(),
    "refused": refused,
    "wrong": sum(wrong.values()),
    "compiled": [path for path, pair in loops.KERNELS.items() if any(kernel.overloads for kernel in pair)],
    "read": sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels),
    "built": sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels),
}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def test_a_processor_without_vectors_takes_the_portable_path(cache):
    """numba's generic processor: an instruction that it lacks would abort the process inside LLVM.

    The second process finds the kernel on disk and compiles nothing.
    """
    for read, built in ((0, 1), (1, 0)):
        found = in_a_process(CHOICE, NUMBA_CPU_NAME="generic", NUMBA_CACHE_DIR=str(cache), ACCELSIM_KERNELS="")
        assert found["available"] == ["portable"]
        assert (found["selected"], found["compiled"]) == ("portable", ["portable"])
        assert found["wrong"] == 0
        assert (found["read"], found["built"]) == (read, built)
        assert sorted(found["refused"]) == sorted(set(paths.PATHS) - {"portable"})
        lacks = "want a path that runs here (portable); generic lacks avx512bw, avx512f, avx512vnni"
        assert found["refused"]["avx512-vnni"] == f"path: got 'avx512-vnni', {lacks}"
        assert found["refused"]["avx2"].endswith("generic lacks avx2")


@pytest.mark.skipif("avx2" not in PATHS, reason="the processor has no AVX2")
@pytest.mark.parametrize(
    ("cpu", "features", "available"),
    [("generic", "+avx,+avx2", ["avx2", "portable"]), ("haswell", None, list(PATHS))],
)
def test_what_the_compiler_may_use_counts_not_its_name(cpu, features, available, cache):
    """Features switched on or off by NUMBA_CPU_FEATURES; not given, they are the host's, whatever the name."""
    given = {} if features is None else {"NUMBA_CPU_FEATURES": features}
    environment = {"NUMBA_CPU_NAME": cpu, "NUMBA_OPT": "0", "NUMBA_CACHE_DIR": str(cache), "ACCELSIM_KERNELS": ""}
    found = in_a_process(CHOICE, **environment, **given)
    assert (found["available"], found["wrong"]) == (available, 0)
    assert found["selected"] == found["compiled"][0] == available[0]


def test_the_environment_names_a_path():
    found = in_a_process(CHOICE, ACCELSIM_KERNELS="portable")
    assert found["available"] == list(PATHS)
    assert (found["selected"], found["compiled"], found["wrong"]) == ("portable", ["portable"], 0)


@pytest.fixture
def environment(monkeypatch):
    paths.select.cache_clear()
    yield monkeypatch
    paths.select.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avx512vnni", "got 'avx512vnni', want one of avx-vnni, avx2, avx512-vnni, portable (nearest: avx512-vnni)"),
        ("Portable", "got 'Portable', want one of avx-vnni, avx2, avx512-vnni, portable (nearest: portable)"),
        ("arm-dotprod", "got 'arm-dotprod', want one of avx-vnni, avx2, avx512-vnni, portable"),
    ],
)
def test_an_unknown_path(environment, name, message):
    with pytest.raises(SpecError) as caught:
        paths.select(name)
    assert f"path: {message}" in str(caught.value)
    environment.setenv(paths.ENVIRONMENT, name)
    with pytest.raises(SpecError) as caught:
        paths.select()
    assert f"ACCELSIM_KERNELS: {message}" in str(caught.value)
    assert paths.select("portable") == "portable"


def test_an_argument_that_names_nothing_is_refused_an_empty_variable_is_not(environment):
    environment.setenv(paths.ENVIRONMENT, "")
    assert paths.select() == PATHS[0]
    with pytest.raises(SpecError, match="path: got '', want one of"):
        paths.select("")


def test_every_path_that_runs_here_can_be_asked_for(environment):
    environment.delenv(paths.ENVIRONMENT, raising=False)
    assert PATHS[-1] == "portable"
    assert [paths.select(name) for name in PATHS] == list(PATHS)
    assert paths.select() == PATHS[0]
    assert list(PATHS) == [name for name in paths.PATHS if name in PATHS]  # fastest first


MIXED = """
import json, sys
from tests.integers import mismatches
from accelsim.numerics import loops
wrong = [sum(mismatches(path).values()) for path in sys.argv[1:]]
print(json.dumps([wrong, [loops.KERNELS[path][0].stats.cache_hits.total() for path in sys.argv[1:]]]))
"""


@pytest.mark.skipif(PATHS == ("portable",), reason="there is one path")
def test_a_kernel_from_disk_beside_one_compiled_here(tmp_path):
    """Each calls functions of its own: numba tells functions apart by a name that must differ from path to path."""
    environment = {"NUMBA_OPT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert in_a_process(MIXED, PATHS[0], **environment) == [[0], [0]]
    assert in_a_process(MIXED, "portable", PATHS[0], **environment) == [[0, 0], [0, 1]]


# --- beside others ----------------------------------------------------------------------------------------------------

TOGETHER = """
import json, multiprocessing
from concurrent.futures import ThreadPoolExecutor
from tests.integers import wrong_on_threads

if __name__ == "__main__":
    found = {"parent": wrong_on_threads(0, 2)}
    import numba
    found["numba keeps its threads"] = numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    with ThreadPoolExecutor(4) as pool:
        found["threads"] = sum(pool.map(wrong_on_threads, range(40), [1, 2] * 20))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found["processes"] = sum(pool.starmap(wrong_on_threads, [(seed, 1 + seed % 2) for seed in range(8)]))
    import torch
    torch.set_num_threads(2)
    x = torch.arange(-600, 600, dtype=torch.float64).reshape(30, 40).repeat(10, 10)
    want = x @ x.T
    wrong = differs = 0
    for seed in range(25):
        differs += not torch.equal(x @ x.T, want)
        wrong += wrong_on_threads(seed, 2)
    found["beside torch"] = wrong
    found["torch itself"] = differs
    found["after torch"] = wrong_on_threads(3, 1)
    print(json.dumps(found))
"""


@pytest.mark.skipif(not TWO_THREADS, reason="numba has one thread here")
def test_threads_pools_and_torch_in_one_process():
    """Two threads in the parent, a pool of threads that each ask for one or two, spawned processes, then torch."""
    pytest.importorskip("torch")
    found = in_a_process(TOGETHER)
    assert found.pop("numba keeps its threads") is True
    assert found == dict.fromkeys(["parent", "threads", "processes", "beside torch", "torch itself", "after torch"], 0)

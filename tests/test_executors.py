"""Do threads and a Ray cluster leave the same files, and does a study survive real kills, Ctrl-C and a full disk?"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from accelsim import executors
from accelsim.errors import SpecError
from accelsim.space import space
from accelsim.sweep import run
from tests.test_cli import run as cli

SPACE = {
    "platform": "systolic-32x32", "model": "bert-mini", "seq": 64,
    "axes": {
        "rows": {"range": [8, 64, 1]}, "cols": {"range": [8, 64, 8]}, "dataflow": ["os", "ws", "is"],
        "input_buffer.capacity_bytes": [16384, 262144], "dram.bytes_per_cycle": [8, 64],
    },
}  # fmt: skip
FOUND = space(SPACE)
CHUNK = 32
CHUNKS = FOUND.points // CHUNK
"""Enough of them that a sweep lasts some seconds, so that it can be disturbed."""


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content of everything in the chunks of a study."""
    return {path.name: path.read_bytes() for path in (folder / "chunks").iterdir()}


def count(folder: Path) -> int:
    return len(list((folder / "chunks").glob("*.parquet")))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.json"
    path.write_text(json.dumps(SPACE))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a sweep that nobody disturbs leaves, its summary, its folder."""
    folder = tmp_path_factory.mktemp("undisturbed") / "s"
    summary = run(FOUND, folder, chunk=CHUNK)
    found = files(folder)
    assert len(found) == CHUNKS > 100
    return found, summary, folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster of two nodes with one CPU each, on this machine, in a folder of its own."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        place = Path("/tmp") / f"r{os.getpid()}"  # short: names of sockets have at most 107 characters
        place.mkdir()
        patch.setenv("RAY_TMPDIR", str(place))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            started.add_node(**node)
            started.wait_for_nodes()
            yield started
        finally:
            started.shutdown()
            shutil.rmtree(place, ignore_errors=True)


def command(file: Path, out: Path, *options: str) -> list[str]:
    sweep = ["sweep", str(file), "--out", str(out), "--chunk", str(CHUNK), *options]
    return [sys.executable, "-m", "accelsim", *sweep]


def start(file: Path, out: Path, *options: str, finished: int = 3) -> subprocess.Popen[str]:
    """A sweep as a process, when it has finished some chunks."""
    process = subprocess.Popen(command(file, out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: count(out) >= finished or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def until(happened, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def parents() -> dict[int, tuple[int, str]]:
    """Process -> (its parent, its title)."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(place.name)] = (parent, (place / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):
            continue
    return found


def busy(cluster) -> list[int]:
    """Workers of this cluster that price a chunk."""
    raylets = {n.all_processes["raylet"][0].process.pid for n in [cluster.head_node, *cluster.worker_nodes]}
    return [pid for pid, (parent, title) in parents().items() if parent in raylets and "ray::_task" in title]


EXECUTORS = ["local", "ray"]


@pytest.fixture
def options(request):
    """Options of the command line for an executor."""
    if request.param == "local":
        return ["--jobs", "1"]
    return ["--executor", "ray", "--address", request.getfixturevalue("cluster").address]


# --- the same files ---------------------------------------------------------------------------------------------------


def test_ray_leaves_the_same_files(cluster, tmp_path, undisturbed):
    told = []

    def tell(points, best):
        told.append(points)

    summary = run(FOUND, tmp_path / "s", chunk=CHUNK, executor="ray", address=cluster.address, tell=tell)
    assert (files(tmp_path / "s"), summary) == undisturbed[:2]
    assert told == [CHUNK] * CHUNKS
    table = pd.read_parquet(tmp_path / "s" / "chunks")
    assert table["point"].sort_values().tolist() == list(range(FOUND.points))


def test_a_pickled_space_is_the_same_space():
    again = pickle.loads(pickle.dumps(FOUND))
    assert again.digest == FOUND.digest
    assert len(pickle.dumps(FOUND)) < 20_000


def test_few_chunks_are_in_flight():
    """Spans are not all queued at once, and what is closed early is not gone on with."""
    drawn, done = [], []

    def spans():
        for i in range(10_000):
            drawn.append(i)
            yield i, i + 1

    parts = executors.on_threads(lambda a, b: done.append(a), spans(), 2, "")
    for _ in range(10):
        next(parts)
    parts.close()
    assert len(drawn) <= 10 + 2 * executors.AHEAD * 2
    finished = len(done)
    time.sleep(0.05)
    assert len(done) == finished


def test_a_sql_engine_reads_the_chunks(undisturbed):
    duckdb = pytest.importorskip("duckdb")
    _, summary, folder = undisturbed
    query = f"select count(*), count(distinct point), min(time_s) from '{folder}/chunks/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(FOUND.points, FOUND.points, summary.best["time_s"][0])]


# --- disturbed --------------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_no_rows(cluster, tmp_path, undisturbed, file):
    """SIGKILL of a worker in the middle of a chunk: the run itself ends with the same files."""
    target = tmp_path / "s"
    driver = start(file, target, "--executor", "ray", "--address", cluster.address, "--json")
    killed = 0
    while killed == 0:
        assert driver.poll() is None, "the sweep ended before its worker was killed"
        for worker in busy(cluster):
            os.kill(worker, signal.SIGSTOP)
            if worker in busy(cluster):  # it stands still in the middle of a chunk
                killed = worker
                os.kill(worker, signal.SIGKILL)
                break
            os.kill(worker, signal.SIGCONT)
    assert count(target) < CHUNKS
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    assert "A worker died or was killed while executing a task" in err
    assert files(target) == undisturbed[0]
    assert json.loads(out)["points"] == FOUND.points


@pytest.mark.parametrize("options", EXECUTORS, indirect=True)
def test_a_killed_driver_goes_on_to_the_same_files(options, tmp_path, undisturbed, file):
    target = tmp_path / "s"
    driver = start(file, target, *options)
    driver.kill()
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert 0 < count(target) < CHUNKS
    resumed = subprocess.run(command(file, target, "--resume", *options), capture_output=True, text=True, timeout=60)
    assert resumed.returncode == 0, resumed.stderr
    assert files(target) == undisturbed[0]


@pytest.mark.parametrize("options", EXECUTORS, indirect=True)
def test_ctrl_c_keeps_what_is_finished(options, tmp_path, undisturbed, file):
    target = tmp_path / "s"
    driver = start(file, target, *options)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert err.splitlines()[-1] == "accelsim: stopped; what is finished is kept, --resume goes on"
    assert "Traceback" not in err
    there = files(target)
    assert 0 < count(target) < CHUNKS
    assert all(undisturbed[0][name] == content for name, content in there.items() if name.endswith(".parquet"))
    run(FOUND, target, resume=True)
    assert files(target) == undisturbed[0]


def test_truncated_chunks_are_priced_again_by_ray(cluster, tmp_path, undisturbed):
    target = tmp_path / "s"
    run(FOUND, target, chunk=CHUNK)
    first, second, third, *_ = sorted((target / "chunks").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(b"")
    third.unlink()
    (target / "chunks" / f".{third.name}.0.partial").write_bytes(b"half")
    run(FOUND, target, resume=True, executor="ray", address=cluster.address)
    assert files(target) == undisturbed[0]


SMALL_DISK = """
set -e
mount -t tmpfs -o size=300k tmpfs "$1"
shift
set +e; "$@"; echo "first $?"; ls $DISK/s/chunks/*.parquet | wc -l; df --output=avail $DISK | tail -1
head -c 1M /dev/zero > $DISK/filler 2> /dev/null; "$@" --resume; echo "full $?"; rm $DISK/filler; set -e
mount -o remount,size=100m tmpfs $DISK
"$@" --resume
cp -r $DISK/s $COPY
"""


def test_a_full_disk(tmp_path, undisturbed, file):
    """ENOSPC of a real file system, in a mount namespace that ends with the process."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "mount -t tmpfs tmpfs /mnt"]).returncode != 0:
        pytest.skip("no file system may be mounted here, not even in a namespace of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = {**os.environ, "DISK": str(disk), "COPY": str(tmp_path / "copy")}
    arguments = [*alone, SMALL_DISK, "bash", str(disk), *command(file, disk / "s")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "first 2" in lines
    assert "full 2" in lines
    assert 0 < int(lines[lines.index("first 2") + 1]) < CHUNKS
    assert done.stderr.count("No space left on device', want a disk with room; --resume goes on") == 2
    assert "Traceback" not in done.stderr
    assert files(tmp_path / "copy") == undisturbed[0]


def test_files_that_may_not_grow(tmp_path, undisturbed):
    """As a full disk, where nothing may be mounted: a limit on the size of files."""
    code = (
        "import resource, sys, pathlib; from tests.test_executors import FOUND, CHUNK, run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, -1))\n"
        "run(FOUND, pathlib.Path(sys.argv[1]), chunk=CHUNK)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True)
    assert "SpecError" in done.stderr
    assert "File too large" in done.stderr
    assert list((tmp_path / "s" / "chunks").iterdir()) == []
    run(FOUND, tmp_path / "s", chunk=CHUNK, resume=True)
    assert files(tmp_path / "s") == undisturbed[0]


def test_the_second_process_is_refused_and_the_first_one_named(cluster, tmp_path, undisturbed, capsys, file):
    target = tmp_path / "s"
    driver = start(file, target, "--executor", "ray", "--address", cluster.address)
    code, _, err = cli(capsys, "sweep", file, "--out", target, "--resume")
    assert driver.poll() is None
    assert code == 2
    assert f"held by process {driver.pid} on {socket.gethostname()}" in err
    assert "Traceback" not in err
    driver.communicate(timeout=60)
    assert files(target) == undisturbed[0]


# --- refused ----------------------------------------------------------------------------------------------------------


def test_workers_of_another_version_are_refused(cluster, tmp_path, monkeypatch):
    mine = executors.source_digest()[:16]
    monkeypatch.setattr(executors, "source_digest", lambda: "f" * 64)
    with pytest.raises(SpecError, match=f"{mine} on .*, want {'f' * 16}, as here, on every worker"):
        run(FOUND, tmp_path / "s", executor="ray", address=cluster.address)


def test_an_error_of_a_worker_comes_back_as_it_is(cluster, tmp_path):
    found = space({**SPACE, "limits": ["dsp <= 3"]})
    with pytest.raises(SpecError, match=r"^limit dsp <= 3.0: got 'dsp', want one of") as here:
        run(found, tmp_path / "a")
    with pytest.raises(SpecError) as there:
        run(found, tmp_path / "b", executor="ray", address=cluster.address)
    assert str(there.value) == str(here.value)


def test_workers_that_do_not_see_the_folder_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("accelsim.study.start", lambda *a: CHUNK)  # no manifest: as on a disk of another machine
    with pytest.raises(SpecError, match=f"no manifest on {socket.gethostname()}.*a folder that every worker sees"):
        run(FOUND, tmp_path / "s", executor="ray", address=cluster.address)
    assert list((tmp_path / "s" / "chunks").iterdir()) == []


def test_workers_that_always_die_end_the_sweep(cluster):
    parts = executors.on_ray(die, [(0, 1)], None, cluster.address)
    with pytest.raises(SpecError, match="workers that live; --resume goes on"):
        next(parts)


def die(start: int, stop: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--executor", "rya"], "got 'rya', want one of local, ray (nearest: ray)"),
        (["--executor", "ray"], "want HOST:PORT of the head"),
        (["--executor", "ray", "--address", "ray://h:1"], "want HOST:PORT of the head"),
        (["--executor", "ray", "--address", "127.0.0.1:9"], "a Ray cluster that can be reached"),
        (["--executor", "ray", "--address", "nowhere.invalid:9"], "a Ray cluster that can be reached"),
        (["--address", "127.0.0.1:9"], "an address together with --executor ray"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, words, capsys, tmp_path, file):
    if "--address" in arguments and "ray" in arguments:
        pytest.importorskip("ray")
    began = time.monotonic()
    code, _, err = cli(capsys, "sweep", file, "--out", tmp_path / "s", *arguments)
    assert code == 2
    assert words in err
    assert err.splitlines()[-1].startswith("accelsim: --")
    assert "Traceback" not in err
    assert time.monotonic() - began < 2 * executors.REACH_S


def test_ray_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"ray is not installed.*accelsim\[ray\]"):
        run(FOUND, tmp_path / "s", executor="ray", address="127.0.0.1:9")

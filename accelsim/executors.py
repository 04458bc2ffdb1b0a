"""Who prices the chunks of a sweep: threads of this process, or tasks on a Ray cluster.

An executor calls `work(start, stop)` for every span of points and yields what it returns, in the order in which spans
end. Few spans are under way at once, however many there are. `work` leaves its rows in the study's folder, so nothing
but a few numbers goes back, and doing a span twice does no harm. An executor that is closed early leaves finished
spans as they are.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from accelsim.errors import SpecError
from accelsim.jit import source_digest

T = TypeVar("T")
Span = tuple[int, int]
"""First point and the one after the last."""
Work = Callable[[int, int], T]

AHEAD = 2
"""Spans handed out for each core, so that none waits for the next one."""
RETRIES = 3
"""How often Ray does a span again whose worker died."""
REACH_S = 5.0
"""Wait for a cluster's head to accept a connection."""


def on_threads(work: Work[T], spans: Iterable[Span], jobs: int | None, address: str) -> Generator[T]:
    """By `jobs` threads of this process; default: one for each core."""
    if address:
        raise SpecError("--address", address, "an address together with --executor ray")
    many = jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(many)
    running: set[Future[T]] = set()
    try:
        for span in spans:
            running.add(pool.submit(work, *span))
            if len(running) >= AHEAD * many:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (task.result() for task in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (task.result() for task in done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def on_ray(work: Work[T], spans: Iterable[Span], jobs: int | None, address: str) -> Generator[T]:
    """By tasks of one CPU each on the Ray cluster whose head is at `address`, HOST:PORT; at most `jobs` at once.

    `work` is pickled once. Every worker must see the study's folder under the same path and have the same accelsim; a
    worker that dies is replaced by Ray. Raises SpecError for a cluster that cannot be reached or that lost a span
    RETRIES + 1 times, and what `work` raises.
    """
    ray = _ray()
    _connect(ray, address)
    running: list[Any] = []
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_task)
        sent = ray.put(work)
        for span in spans:
            running.append(task.remote(source_digest(), sent, *span))
            # counted anew each time: a cluster may grow
            while len(running) >= (jobs or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0)))):
                (done,), running = ray.wait(running)
                yield _result(ray, done)
        while running:
            (done,), running = ray.wait(running)
            yield _result(ray, done)
    finally:
        ray.shutdown()  # which ends what is still running


EXECUTORS: Mapping[str, Callable[[Work[Any], Iterable[Span], int | None, str], Generator[Any]]] = {
    "local": on_threads,
    "ray": on_ray,
}


def _task(source: str, work: Work[T], start: int, stop: int) -> T:
    """`work` on a worker. source: digest of the formulas that the driver has."""
    if source_digest() != source:
        mine = f"{source_digest()[:16]} on {socket.gethostname()}"
        raise SpecError("--executor ray: formulas of accelsim", mine, f"{source[:16]}, as here, on every worker")
    return work(start, stop)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise SpecError("--executor ray", "ray is not installed", "pip install 'accelsim[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect to the cluster at HOST:PORT. Raises SpecError if there is none."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise SpecError("--address", address, "HOST:PORT of the head of a running Ray cluster, as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()  # Ray itself waits for minutes
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (Exception, SystemExit) as error:  # Ray raises what it likes
        short = (str(error).splitlines() or [""])[0]
        raise SpecError("--address", address, f"a Ray cluster that can be reached ({short})") from None


def _result(ray: Any, done: Any) -> Any:
    """What a task returned. Raises what it raised, SpecError for one that Ray gave up."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SpecError):
            raise error.cause from None
        if isinstance(error.cause, ImportError):
            raise SpecError("--executor ray", str(error.cause), "the same accelsim on every worker") from None
        raise
    except ray.exceptions.RayError as error:
        short = str(error).splitlines()[0]
        raise SpecError("--executor ray", short, "workers that live; --resume goes on") from None

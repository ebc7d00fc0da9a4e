"""Runs one after the other here, or side by side on processes of this machine or on the workers of a dask scheduler.

A run is a call ``make(payload, run)`` that returns what is kept of it; only the process that asked for it writes files.
Processes train, never threads: a worker makes one run at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from mmrec_helpers.config import InputError, check_at_least, counted, out_of_memory
from mmrec_helpers.data import Interactions
from mmrec_helpers.progress import Level, duration, under_way
from mmrec_helpers.training.step import TrainingError

if TYPE_CHECKING:
    from distributed import Client

    from mmrec_helpers.experiments.accuracy.study import Runs

RETRIES = 1  # by the scheduler, of a run that failed, or that was at a worker when it died
_CONNECT_S, _WORKERS_S = 10, 60
_EVERYWHERE = ("python", "dask", "distributed", "cloudpickle", "msgpack", "tornado", "toolz")
_ON_WORKERS = ("numpy", "scipy", "pandas", "torch", "torch-geometric", "numba", "mmrec-helpers")


@dataclass(frozen=True)
class Payload:
    """What all runs need, sent to a worker once: a data set, and files by name."""

    data: Interactions
    files: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.data.fingerprint.encode())
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)}".encode() + content)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Engine:
    """What makes runs: ``submit(make, run)`` is given at most ``slots`` at a time; about: in words."""

    submit: Callable[[Callable[..., Any], Any], Future]
    slots: int
    workers: int
    about: str


def do_runs(engine: Engine, make: Callable[[Payload, Any], Any], runs: Runs, say: Callable[[str], None]) -> None:
    """Make all runs, and give each result to ``runs.keep`` as it comes; ``say`` is given a line for each.

    A run that cannot be made leaves the others alone; at the end TrainingError names those. One whose workers died,
    which may be another's fault, is first made again by itself when the others are done. Raises TrainingError at once
    when the scheduler is lost, and whatever else a run raises but that and want of memory.
    """
    running: dict[Future, Any] = {}
    failed: dict[str, str] = {}
    suspects: set[str] = set()
    began, first = time.perf_counter(), len(runs.done)

    def ended() -> int:
        return len(runs.done) + len(failed)

    def left() -> str:
        made = ended() - first
        left_s = (time.perf_counter() - began) / made * (runs.total - ended()) if made else None
        return "" if left_s is None else f"about {duration(left_s)} left"

    while True:
        named = {run.name for run in running.values()} | failed.keys()
        ready = [run for run in runs.ready() if run.name not in named]
        at_work = min(engine.workers, len(running) + len(ready))
        parts = [f"{at_work} running" * (at_work > 1), f"{len(failed)} failed" * bool(failed), left(), "training run"]
        with under_way(Level(", ".join(filter(None, parts)), ended(), runs.total)):
            others = [run for run in ready if run.name not in suspects]
            for run in others[: engine.slots - len(running)] or (ready[:1] if not running else []):
                running[engine.submit(make, run)] = run
            if not running:
                break
            done = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
        for future in done:
            run = running.pop(future)
            try:
                said = runs.keep(run, future.result())
            except Exception as error:
                said = f"not made: {_reason(error)}"
                if type(error).__name__ == "KilledWorker" and run.name not in suspects:
                    suspects.add(run.name)
                    said += ", and again by itself when the others are done"
                else:
                    failed[run.name] = said
            say(f"[{ended()}/{runs.total}] {run.name}: {said}; {left()}")
    if failed:
        name, why = next(iter(failed.items()))
        more = f", and {counted(len(failed) - 1, 'other run')}" if len(failed) > 1 else ""
        raise TrainingError(f"{name} was {why}{more}; what is done is kept: the same command tries the rest again")


def _reason(error: Exception) -> str:
    """Why a run could not be made, in a line; errors that concern more than the run are raised."""
    if type(error).__name__ == "KilledWorker":
        return "its workers died, most likely for want of memory (take fewer --jobs)"
    if isinstance(error, CancelledError):
        raise TrainingError(
            "the scheduler or its workers' data are lost; finished runs are kept: the same command goes on"
        ) from None
    said = str(error) if isinstance(error, TrainingError) else out_of_memory(error)
    if said is None:
        raise error
    return said


def check_where(jobs: int, scheduler: str) -> None:
    """Raise the InputError that ``open_engine`` would, as far as that can be said at once."""
    check_at_least("runs", 1, jobs=jobs)
    if scheduler and jobs > 1:
        raise InputError(f"--jobs {jobs} is the size of a cluster of this machine: expected it without --scheduler")


@contextlib.contextmanager
def open_engine(payload: Payload, jobs: int = 1, scheduler: str = "", device: str = "cpu") -> Iterator[Engine]:
    """What makes the runs of a block.

    jobs       1 makes them here, one after the other; more on as many worker processes of this machine, each with its
               share of the cores, of the memory and of the GPUs
    scheduler  in place of those, the address of a dask scheduler, such as "tcp://host:8786": its workers have one
               thread each (``dask worker ADDRESS --nthreads 1``), and the same versions and code as this process. Where
               they have the resource GPU, a run on CUDA takes one

    Raises InputError, before any run starts, for a scheduler that does not answer or has no workers, and for workers
    that differ, and ModuleNotFoundError without dask.distributed.
    """
    check_where(jobs, scheduler)
    if jobs == 1 and not scheduler:
        yield Engine(partial(_here, payload), 1, 1, "one at a time")
        return
    connect = _remote(scheduler) if scheduler else _local(jobs, device)
    with connect as (client, workers, options):
        blob = pickle.dumps(payload, protocol=5)
        data = client.submit(pickle.loads, blob, key=f"data-{payload.fingerprint}")  # computed again when it is lost
        resources = {"GPU": 1} if options.pop("gpu", False) and device.startswith("cuda") else None
        loop: Any = client.loop
        how = {"pure": False, "retries": RETRIES, "resources": resources, **options}

        def submit(make: Callable[..., Any], run: Any) -> Future:
            ours: Future = Future()
            theirs = client.submit(_on_worker, make, data, run, code_digest(), **how)

            async def pass_on() -> None:
                try:  # a result that is lost on its way is awaited again, which dask's own executor does not do
                    ours.set_result(await client.gather(theirs, asynchronous=True))
                except BaseException as error:
                    ours.set_exception(error)

            loop.add_callback(pass_on)
            return ours

        slots = sys.maxsize if scheduler else jobs  # here in their order; there workers may still come
        yield Engine(submit, slots, workers, f"{workers} at a time; dashboard: {client.dashboard_link}")


def _here(payload: Payload, make: Callable[..., Any], run: Any) -> Future:
    future: Future = Future()
    try:
        future.set_result(make(payload, run))
    except Exception as error:
        future.set_exception(error)
    return future


def _on_worker(
    make: Callable[..., Any], payload: Payload, run: Any, code: str, threads: Mapping[str, int], gpus: int = 0
) -> Any:
    """A run on a worker of the cluster, also on one that came later than those that were checked.

    threads  of torch, by host; gpus: how many the workers share, or 0 to leave that alone
    """
    from distributed import get_worker

    worker = get_worker()
    _check_worker(worker.address, about_worker(worker), code)
    torch.set_num_threads(threads.get(platform.node(), 1))
    if gpus:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(int(worker.name) % gpus))
    return make(payload, run)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns or raises in a process of its own, which ends with this one, however that ends.

    Raises TrainingError when that process dies. A worker of dask is a daemon, which multiprocessing lets have no
    children; hence a plain command, which is given its call and gives back its answer through pipes.
    """
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", f"from {__name__} import answer; answer()"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile() as errors:
        process: Any = subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True, **pipes)
        try:
            with contextlib.suppress(BrokenPipeError):
                pickle.dump((function, arguments), process.stdin, protocol=5)
                process.stdin.flush()  # and left open: its end is this process's
            answer_, status = process.stdout.read(), process.wait()
        finally:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
        if status:
            errors.seek(0)
            last = [""] + errors.read().decode(errors="replace").split("\n")
            killed = f"was killed (signal {-status}), most likely for want of memory" if status < 0 else ""
            raise TrainingError(f"its process {killed or f'ended with {status}: {last[-2]}'}")
    returned, value = pickle.loads(answer_)
    if not returned:
        raise value
    return value


def answer() -> None:
    """The process of ``in_own_process``."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
    try:
        result = True, function(*arguments)
    except Exception as error:
        result = False, error if type(error).__module__.startswith(("builtins", "mmrec_helpers")) else _plain(error)
    with out:
        pickle.dump(result, out, protocol=5)


def _plain(error: Exception) -> Exception:
    """An error of a library, which may not survive its way between processes."""
    return (MemoryError if out_of_memory(error) else RuntimeError)(f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------ clusters


@contextlib.contextmanager
def _local(jobs: int, device: str) -> Iterator[tuple[Client, int, dict[str, Any]]]:
    """As many workers on this machine; when the block raises, they end at once."""
    import dask
    from distributed import Client, LocalCluster

    threads, gpus = max(1, _cores() // jobs), torch.cuda.device_count() if device == "cuda" else 0
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    chosen = {
        "distributed.scheduler.allowed-failures": RETRIES,
        "distributed.scheduler.worker-ttl": None,  # a machine that was suspended has lost nothing
        "distributed.nanny.pre-spawn-environ": variables,  # without dask's MALLOC_TRIM_THRESHOLD_, which slows training
        "distributed.worker.profile.enabled": False,  # stacks sampled every 10 ms: 4 % of the embedded study
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.large-graph-warning-threshold": "1 TB",
    }
    look = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    limit = psutil.virtual_memory().total // jobs
    before = {name: os.environ.get(name) for name in variables}
    with dask.config.set(chosen):
        with _interrupts_held():  # threads and processes inherit it: this process alone decides about Ctrl-C
            cluster = LocalCluster(n_workers=0, threads_per_worker=1, processes=True, memory_limit=limit, **look)
            client = Client(cluster)
        try:
            cluster.scale(jobs)
            yield client, jobs, {"threads": {platform.node(): threads}, "gpus": gpus}
        except BaseException:
            _kill(cluster)
            raise
        finally:
            client.close()
            cluster.close()
            for name, value in before.items():  # dask sets them here, too
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _kill(cluster: Any) -> None:
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # it does not start another
        if nanny.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(nanny.pid).kill()


@contextlib.contextmanager
def _remote(scheduler: str) -> Iterator[tuple[Client, int, dict[str, Any]]]:
    """The workers of a scheduler, checked."""
    import dask
    from distributed import Client

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}), contextlib.ExitStack() as held:
        log = logging.getLogger("distributed.client")  # would tell with a traceback what is said in a line here
        held.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions: checked below
            try:
                client = held.enter_context(Client(scheduler, timeout=_CONNECT_S))
            except (OSError, ValueError) as error:
                why = str(error).splitlines()[0]
                expected = "expected an address such as tcp://host:8786"
                raise InputError(f"--scheduler {scheduler}: no dask scheduler answers ({why}): {expected}") from error
        workers = _checked_workers(client, scheduler)
        hosts = [found["host"] for found in workers.values()]
        threads = {found["host"]: max(1, found["cores"] // hosts.count(found["host"])) for found in workers.values()}
        yield client, len(workers), {"threads": threads, "gpu": any("GPU" in w["resources"] for w in workers.values())}


def _checked_workers(client: Client, scheduler: str) -> dict[str, dict[str, Any]]:
    from distributed import TimeoutError as NoneCame

    try:
        client.wait_for_workers(1, timeout=_WORKERS_S)
    except NoneCame:
        start = f"`dask worker {scheduler} --nthreads 1`"
        raise InputError(f"--scheduler {scheduler}: no worker came in {_WORKERS_S} s: start some by {start}") from None
    versions: Any = client.get_versions(packages=_ON_WORKERS)
    here = versions["client"]["packages"]
    _check_versions("the scheduler", versions["scheduler"], here, _EVERYWHERE)
    for address, there in versions["workers"].items():
        _check_versions(f"worker {address}", there, here, (*_EVERYWHERE, *_ON_WORKERS))
    try:
        found = client.run(about_worker)
    except Exception as error:
        raise InputError(f"--scheduler {scheduler}: its workers cannot import mmrec_helpers ({error})") from error
    for address, about in found.items():
        _check_worker(address, about, code_digest())
    return found


def _check_versions(where: str, there: Any, here: Mapping[str, str], packages: Sequence[str]) -> None:
    """Refuse other versions; what tells builds apart (2.13.0+cpu) does not count, nor Python's third number."""
    for name in packages:
        both = [((of or {}).get(name) or "none").partition("+")[0] for of in ((there or {}).get("packages"), here)]
        one, other = (".".join(text.split(".")[:2]) for text in both) if name == "python" else both
        if one != other:
            raise InputError(f"{where} has {name} {one}: expected {other}, as here")


def about_worker(dask_worker: Any) -> dict[str, Any]:
    """What decides whether runs can be made on a worker, and with how many threads."""
    state = dask_worker.state
    own = {"host": platform.node(), "cores": _cores(), "code": code_digest()}
    return own | {"nthreads": state.nthreads, "resources": dict(state.total_resources)}


def _check_worker(address: str, about: Mapping[str, Any], code: str) -> None:
    if about["nthreads"] != 1:
        raise InputError(f"worker {address} has {about['nthreads']} threads: expected one (`dask worker --nthreads 1`)")
    if about["code"] != code:
        raise InputError(f"worker {address} has other code of mmrec_helpers: expected the same as here")


@cache
def code_digest() -> str:
    """Of the package's Python files, by name."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from threads and processes that the block starts (they inherit it blocked)."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

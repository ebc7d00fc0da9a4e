"""An accuracy study on disk: one record per run, written as the run ends; a study goes on where it stopped.

Runs go side by side in worker processes of one thread each. The records are in ``<folder>/records/<run>.json``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from mmrec_helpers.config import InputError, check_at_least, resolve_device
from mmrec_helpers.data import DataSource, Interactions
from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary
from mmrec_helpers.experiments.accuracy.study import Run, StudySettings, count_runs, runs_in_turn, runs_ready, train_run
from mmrec_helpers.experiments.steps import memory_advice
from mmrec_helpers.files import reports_folder
from mmrec_helpers.records.record import SCHEMA, plain, read_record, store_record, write_record
from mmrec_helpers.training.step import TrainingError

KIND = "study-run"


def run_study(
    source: DataSource,
    study: StudySettings,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Do the runs of a study that have no record yet, and return the content of all by name; a line on standard error
    for each that ends.

    jobs      runs side by side: 1 trains in this process, with its threads; more train in as many worker processes of
              one thread each. Times taken beside other runs are marked so (``beside_other_work``)
    progress  a bar for each run (with one job)

    A record that is there is kept if it is of the same run and data; else InputError names the difference. Runs that
    were not finished start again. Ctrl-C ends at once; the records of finished runs stay.
    """
    check_at_least("study", 1, jobs=jobs)
    device, folder = str(resolve_device(device)), Path(folder)
    data = source.open()
    done = finished_runs(folder, study, data)
    task = _Task(study, folder, device, beside_other_work=jobs > 1, progress=progress)
    log = _Log(count_runs(study), len(done), jobs)
    if jobs == 1:
        for run in runs_in_turn(study, done):
            done[run.name] = task.train(run, data)
            log.finished(done[run.name])
            log.done += _take_finished(folder, study, data, done)
        return done
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _start_worker, (source,)) as pool:
        try:
            _run_side_by_side(pool, jobs, task, data, done, log)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return done


@dataclass(frozen=True)
class _Task:
    """How the runs of a study are trained, and where their records go."""

    study: StudySettings
    folder: Path
    device: str
    beside_other_work: bool
    progress: bool

    def train(self, run: Run, data: Interactions | None = None) -> dict[str, Any]:
        """Train one run on ``data`` (None: a worker's own) and write its record."""
        data = _worker_data[0] if data is None else data
        with memory_advice(data, self.device, self.study.batch_size):
            content = train_run(data, run, self.study, self.device, self.progress)
        content |= {"beside_other_work": self.beside_other_work}
        path = _path(self.folder, run)
        write_record(path, KIND, content, settings=self.study, data=data, device=self.device, seed=run.seed)
        return read_record(path, KIND)["content"]


_worker_data: list[Interactions] = []


def _start_worker(source: DataSource) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_data.append(source.open())


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)  # else a worker whose parent was killed waits for ever


def _run_side_by_side(
    pool: ProcessPoolExecutor,
    jobs: int,
    task: _Task,
    data: Interactions,
    done: dict[str, dict[str, Any]],
    log: _Log,
) -> None:
    running: dict[Future, Run] = {}
    while True:
        started = {run.name for run in running.values()}
        ready = [run for run in runs_ready(task.study, done) if run.name not in started]
        for run in ready[: jobs - len(running)]:
            with _interrupts_held():
                running[pool.submit(task.train, run)] = run
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            try:
                content = future.result()
            except BrokenProcessPool:
                raise TrainingError(
                    "a worker process died, most likely for want of memory: take fewer --jobs; finished runs are kept"
                ) from None
            done[running.pop(future).name] = content
            log.finished(content)
        log.done += _take_finished(task.folder, task.study, data, done)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from processes that the block starts (they inherit it blocked); this one gets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def finished_runs(folder: str | Path, study: StudySettings, data: Interactions) -> dict[str, dict[str, Any]]:
    """The content of the study's records in ``folder`` by name; InputError if one is of another run or other data."""
    done: dict[str, dict[str, Any]] = {}
    _take_finished(folder, study, data, done)
    return done


def _take_finished(
    folder: str | Path, study: StudySettings, data: Interactions, done: dict[str, dict[str, Any]]
) -> int:
    """Add to ``done`` the runs that could be started now but have a record; returns how many."""
    before = len(done)
    while found := [run for run in runs_ready(study, done) if _path(folder, run).exists()]:
        for run in found:
            done[run.name] = _checked(_path(folder, run), run, study, data)
    return len(done) - before


def read_study(folder: str | Path) -> dict[str, dict[str, Any]]:
    """All records of runs in a folder, by name, whatever study they belong to."""
    paths = sorted(Path(folder).glob("records/*-seed*.json"))
    return {path.stem: read_record(path, KIND) for path in paths}


def _checked(path: Path, run: Run, study: StudySettings, data: Interactions) -> dict[str, Any]:
    record = read_record(path, KIND)
    there, here = record["content"]["identity"], plain(run.identity(study))
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            raise InputError(
                f"{path}: {name} is {there.get(name)!r} there and {here.get(name)!r} here: give another folder, or "
                "the same settings"
            )
    made_on = record["provenance"]["data"]["fingerprint"]
    if made_on != data.fingerprint:
        raise InputError(f"{path}: made on data {made_on}, not {data.fingerprint}: give another folder")
    return record["content"]


def _path(folder: str | Path, run: Run) -> Path:
    return Path(folder) / "records" / f"{run.name}.json"


class _Log:
    """A line on standard error for each finished run, with an estimate of the time left."""

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.total, self.done, self.trained = total, done, 0
        self.started = time.perf_counter()
        print(f"{done} of {total} runs are done, {jobs} at a time", file=sys.stderr, flush=True)

    def finished(self, content: Mapping[str, Any]) -> None:
        self.done, self.trained = self.done + 1, self.trained + 1
        left = (time.perf_counter() - self.started) / self.trained * (self.total - self.done)
        line = f"[{self.done}/{self.total}] {content['name']}: {_outcome(content)}; about {_duration(left)} left"
        print(line, file=sys.stderr, flush=True)


def _outcome(content: Mapping[str, Any]) -> str:
    if content["failed"]:
        return f"failed ({content['failed']})"
    parts = [f"test recall@20 {content['test']['recall@20']:.4f}"]
    if content["valid"] is not None:
        parts.insert(0, f"validation {content['valid']['recall@20']:.4f} in epoch {content['best_epoch'] + 1}")
    return f"{', '.join(parts)}, {len(content['epochs'])} epochs in {_duration(content['seconds'])}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def write_accuracy(folder: str | Path) -> Path:
    """Summarise the study's finished runs and write ``<folder>/records/accuracy.json`` (kind "accuracy").

    Its provenance is that of the run written last, since it measures nothing of its own. Raises InputError when there
    is no run, or when they were made on different data.
    """
    records = list(read_study(folder).values())
    if not records:
        raise InputError(f"no finished run in {Path(folder) / 'records'}: start with `python -m mmrec_helpers study`")
    if len({record["provenance"]["data"]["fingerprint"] for record in records}) > 1:
        raise InputError(f"the runs in {folder} were made on different data: expected one study per folder")
    content = accuracy_summary([record["content"] for record in records])
    last = max(records, key=lambda record: record["provenance"]["time"])
    made = last["provenance"] | {"seed": None}  # it is of all seeds
    record = {"schema": SCHEMA, "kind": "accuracy", "provenance": made, "content": plain(content)}
    return store_record(Path(folder) / "records" / "accuracy.json", record)


def read_accuracy(folder: str | Path) -> dict[str, Any] | None:
    """The accuracy record of a study: of ``folder``, or of that name below ``reports/``; None if there is none."""
    paths = [base / "records" / "accuracy.json" for base in (Path(folder), reports_folder() / folder)]
    path = next((path for path in paths if path.is_file()), None) if str(folder) else None
    return None if path is None else read_record(path, "accuracy")

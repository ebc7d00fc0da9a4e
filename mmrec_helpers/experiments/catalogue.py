"""What the notebooks measure, part by part, without the notebooks: for a machine that has a GPU and little else.

A part writes the record that its notebook writes, under the same name, so that the pages can be drawn from the folder
anywhere (``report --records``). Parts are in the order of how much they tell.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmrec_helpers.config import InputError, check_at_least, check_positive
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.bench import run_bench
from mmrec_helpers.experiments.cuda_graphs import measure_graphed_steps
from mmrec_helpers.experiments.dead_work import examine_references
from mmrec_helpers.experiments.derivation import measure_derivation
from mmrec_helpers.experiments.epoch import measure_epoch
from mmrec_helpers.experiments.fixes import measure_fixes
from mmrec_helpers.experiments.memory_settings import measure_memory_settings
from mmrec_helpers.experiments.roofline import measured_roofline
from mmrec_helpers.experiments.routing import measure_attention, measure_routing
from mmrec_helpers.experiments.scaling import measure_scaling
from mmrec_helpers.files import project_root
from mmrec_helpers.records.record import read_record, write_record

GPU_MARK = "mark.gpu"  # stands in the files that have tests of a GPU


@dataclass(frozen=True)
class Task:
    """What every part is given: the data and the device, how to measure, and where the records go.

    seconds  bounds each interleaved group of timings
    """

    data: Interactions
    device: torch.device
    folder: Path
    batch_size: int = 2048
    repeats: int = 9
    seed: int = 0
    seconds: float = 30.0
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_at_least("measure", 1, batch_size=self.batch_size, repeats=self.repeats)
        check_positive("measure", seconds=self.seconds)

    @property
    def counts(self) -> dict[str, Any]:
        names = ("batch_size", "repeats", "seed")
        return {name: getattr(self, name) for name in names} | {"max_seconds": self.seconds}

    def path(self, record: str) -> Path:
        return self.folder / "records" / f"{record}.json"


@dataclass(frozen=True)
class Part:
    """record: the file's name without ``.json``; kind: of the record; measure: from a task to the record's content."""

    record: str
    kind: str
    about: str
    measure: Callable[[Task], Any]


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "measured", "there already", "no time left", or "failed" with the error in one line."""

    part: str
    state: str
    seconds: float = 0.0
    error: str = ""


def measure_parts(
    names: Iterable[str], task: Task, *, budget_s: float | None = None, again: bool = False
) -> Iterator[Outcome]:
    """Measure the parts in order, and yield how each ended; a failure does not stop those that follow.

    A part whose record is there already is passed over unless ``again``. No part is started once ``budget_s`` is spent.
    """
    began = time.perf_counter()
    for name in names:
        part, start = PARTS[name], time.perf_counter()
        if task.path(part.record).is_file() and not again:
            yield Outcome(name, "there already")
        elif budget_s is not None and start - began >= budget_s:
            yield Outcome(name, "no time left")
        else:
            error = _measure(part, task)
            yield Outcome(name, "failed" if error else "measured", time.perf_counter() - start, error)


def _measure(part: Part, task: Task) -> str:
    """Measure one part and write its record; the error in one line if that fails, else ""."""
    settings = (task.settings or {}) | task.counts
    try:
        content = part.measure(task)
        write_record(
            task.path(part.record),
            part.kind,
            content,
            settings=settings,
            data=task.data,
            device=task.device,
            seed=task.seed,
        )
    except Exception as error:  # whatever it is, the parts that follow can still be measured
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        gc.collect()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
    return ""


def _tests(task: Task) -> dict[str, Any]:
    """Run the tests marked ``gpu`` in a process of their own: counts, seconds, and what failed or was skipped.

    Only the files that have such tests are collected: others may import packages that a GPU machine lacks.
    """
    root = project_root()
    if root is None:
        raise InputError("the tests: mmrec_helpers is installed without its checkout: expected tests/ beside it")
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        every = sorted((root / "tests").glob("test_*.py"))
        files = [str(path) for path in every if GPU_MARK in path.read_text(encoding="utf-8")]
        options = ["-q", "-m", "gpu", "--continue-on-collection-errors", "--junit-xml", str(report)]
        command = [sys.executable, "-m", "pytest", *options, *files]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise InputError(f"the tests did not run: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        suite = ET.parse(report).getroot().find("testsuite")
    cases = [
        {
            "test": f"{case.get('classname')}::{case.get('name')}",
            "outcome": case[0].tag if len(case) and case[0].tag in ("failure", "error", "skipped") else "passed",
            "message": case[0].get("message", "")[:300] if len(case) else "",
        }
        for case in suite.iter("testcase")
    ]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {**counts, "seconds": float(suite.get("time", 0)), "cases": cases}


def _epoch(settings: str) -> Callable[[Task], Any]:
    def measure(task: Task) -> Any:
        traces = task.folder / "traces" / settings
        return measure_epoch(task.data, settings, device=task.device, trace_folder=traces, **task.counts)[0]

    return measure


def _attention(task: Task) -> Any:
    return measure_attention(task.data, repeats=task.repeats, seed=task.seed, device=task.device)


def _roofline(task: Task) -> Any:
    epoch = read_record(task.path(PARTS["epoch"].record), "epoch")["content"]
    return measured_roofline(task.data, task.device, epoch)


def _bench(task: Task) -> Any:
    return run_bench(task.data, device=task.device, say=print, **task.counts)


def _dead_work(task: Task) -> Any:
    return examine_references(task.data, seed=task.seed, device=task.device)


def _counted(function: Callable[..., Any]) -> Callable[[Task], Any]:
    return lambda task: function(task.data, device=task.device, **task.counts)


ON_CUDA_ALONE = ("tests", "cuda-graphs")
PARTS: dict[str, Part] = {
    "tests": Part("tests", "tests", "the tests marked gpu", _tests),
    "epoch": Part("04-epoch", "epoch", "GRCN and DRAGON as a matched pair, MMRec's settings", _epoch("plain")),
    "bench": Part("bench", "bench", "the backends against each other: step, attention block, sampler", _bench),
    "epoch-diagnosed": Part("04-epoch-diagnosed", "epoch", "the pair, the diagnosed settings", _epoch("diagnosed")),
    "routing": Part("05-routing", "routing", "0 to 3 iterations, as shipped and live", _counted(measure_routing)),
    "attention": Part("05-attention", "attention", "one attention against one convolution", _attention),
    "memory": Part("10-memory", "memory", "the memory settings, alone and together", _counted(measure_memory_settings)),
    "roofline": Part("07-roofline", "roofline", "rates of the device, stages against them", _roofline),
    "fixes": Part("08-fixes", "fixes", "every proposed fix: time, memory, exactness", _counted(measure_fixes)),
    "scaling": Part("11-scaling", "scaling", "time and memory against each size", _counted(measure_scaling)),
    "derivation": Part("12-derivation", "derivation", "the fast step, stage by stage", _counted(measure_derivation)),
    "cuda-graphs": Part(
        "12-cuda-graphs", "cuda-graphs", "the fast steps replayed from a CUDA graph", _counted(measure_graphed_steps)
    ),
    "dead-work": Part("06-dead-work", "dead-work", "work that changes nothing", _dead_work),
}

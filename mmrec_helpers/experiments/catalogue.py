"""What a run measures: every part, once. Notebooks, ``report``, ``measure`` and the ledger all read this list.

A part's name is its record's kind, the name of the module that measures it, and what ``measure`` calls it; its record
lies in ``records/<nn>-<name>.json``, nn being the notebook that is its home.
"""

import gc
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import PRESETS, Interactions, compare_to_reported, describe
from mmrec_helpers.experiments.backends import measure_backends
from mmrec_helpers.experiments.cuda_graphs import measure_cuda_graphs
from mmrec_helpers.experiments.dead_work import measure_dead_work
from mmrec_helpers.experiments.epoch import measure_epoch
from mmrec_helpers.experiments.examine import measure_examine
from mmrec_helpers.experiments.fixes import measure_fixes
from mmrec_helpers.experiments.kernels import measure_kernels
from mmrec_helpers.experiments.memory_settings import measure_memory_settings
from mmrec_helpers.experiments.prediction import measure_prediction
from mmrec_helpers.experiments.roofline import measure_roofline
from mmrec_helpers.experiments.routing import measure_routing
from mmrec_helpers.experiments.same_curve import measure_same_curve
from mmrec_helpers.experiments.scaling import measure_scaling
from mmrec_helpers.experiments.steps import MeasureOptions, Stopped, measure_steps, memory_advice
from mmrec_helpers.experiments.structure import measure_structure_dragon, measure_structure_grcn
from mmrec_helpers.files import check_folder, only_writer, project_root
from mmrec_helpers.progress import TerminalBar, watch
from mmrec_helpers.records import check_record_path, plain, read_record, write_record

_TIMED_ON = (PRESETS["embedded"].n_train, PRESETS["tiktok"].n_train)  # training interactions
GPU_MARK = "mark.gpu"  # stands in the files that have tests of a GPU


@dataclass(frozen=True)
class Part:
    """One thing that a run measures.

    name      of the part
    home      the two digits of the notebook that draws it
    about     a line for ``measure --list``
    measure   from data, MeasureOptions and ``more`` to the record's content
    default   whether ``measure`` takes it when no part is named ("cuda": on CUDA alone)
    kind      of the record, where that is not the name
    seconds   that it takes on two CPU cores on the embedded data set and on TikTok; None where that was not measured
    """

    name: str
    home: str
    about: str
    measure: Callable[..., Any]
    default: bool | str = True
    kind: str = ""
    seconds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.name)

    @property
    def record(self) -> str:
        """The record's file name without ``.json``."""
        return f"{self.home}-{self.name}"

    def expected_s(self, n_train: int) -> float | None:
        """How long it takes on a data set with so many training interactions, on two CPU cores: the line through the
        two data sets that it was timed on, and no less than on the smaller one's share."""
        if self.seconds is None:
            return None
        small, large = self.seconds
        share = (n_train - _TIMED_ON[0]) / (_TIMED_ON[1] - _TIMED_ON[0])
        return max(small + share * (large - small), small * min(1.0, n_train / _TIMED_ON[0]))

    def path(self, folder: str | Path) -> Path:
        return Path(folder) / "records" / f"{self.record}.json"

    def check_path(self, folder: str | Path) -> None:
        """Whether the record can be written there without loss (``records.check_record_path``), before work begins."""
        check_record_path(self.path(check_folder(folder)), self.kind)


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "measured", "there already", "no time left", or "failed" with the error in one line."""

    part: str
    state: str
    seconds: float = 0.0
    error: str = ""


def measure_data(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "data": ``describe``'s sizes, and the same beside the diagnosed workload."""
    return {"summary": describe(data), "nearness": compare_to_reported(data)}


def run_gpu_tests(data: Interactions | None = None, options: MeasureOptions | None = None) -> dict[str, Any]:
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
        options_ = ["-q", "-m", "gpu", "--continue-on-collection-errors", "--junit-xml", str(report)]
        command = [sys.executable, "-m", "pytest", *options_, *files]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise InputError(f"the tests did not run: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        suite = next(ET.parse(report).iter("testsuite"))
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


def _diagnosed_epoch(data: Interactions, options: MeasureOptions, **more: Any) -> dict[str, Any]:
    return measure_epoch(data, options, "diagnosed", **more)


_LIST = (
    Part("gpu-tests", "00", "the tests marked gpu", run_gpu_tests, default="cuda"),
    Part(
        "steps",
        "04",
        "the steps of all variants, interleaved: every step time of a run",
        measure_steps,
        seconds=(29, 111),
    ),
    Part(
        "epoch",
        "04",
        "GRCN's and DRAGON's step by stage and operator; sampling, validation",
        measure_epoch,
        seconds=(4.1, 9.7),
    ),
    Part("epoch-diagnosed", "04", "the same under the diagnosed settings", _diagnosed_epoch, kind="epoch"),
    Part(
        "structure-grcn", "02", "what GRCN calls: layers, edges, parameters", measure_structure_grcn, seconds=(0.4, 2.7)
    ),
    Part(
        "structure-dragon",
        "03",
        "what DRAGON calls: layers, edges, parameters",
        measure_structure_dragon,
        seconds=(0.4, 5.2),
    ),
    Part(
        "routing",
        "05",
        "what 0 to 3 iterations change; one attention against one convolution",
        measure_routing,
        seconds=(3.0, 13.3),
    ),
    Part(
        "memory-settings", "10", "the memory settings, alone and together", measure_memory_settings, seconds=(14.7, 83)
    ),
    Part(
        "roofline",
        "07",
        "rates of the device, and what each stage needs at least",
        measure_roofline,
        seconds=(4.8, 6.5),
    ),
    Part("fixes", "08", "torch.compile and the batch size", measure_fixes, seconds=(11.9, 33.5)),
    Part("scaling", "11", "time and memory against each size", measure_scaling, seconds=(50, 57)),
    Part("prediction", "11", "steps on GPUs, predicted from counts, not measured", measure_prediction, default=False),
    Part(
        "kernels",
        "11",
        "the Triton kernels, compiled for GPUs and not run",
        measure_kernels,
        default=False,
    ),
    Part("backends", "12", "attention block, evaluation and sampler by backend", measure_backends, seconds=(11.4, 21)),
    Part("cuda-graphs", "12", "the fast steps replayed from a CUDA graph", measure_cuda_graphs, default="cuda"),
    Part("same-curve", "12", "training in two backends from one seed (minutes)", measure_same_curve, default=False),
    Part("dead-work", "06", "work that changes nothing", measure_dead_work, seconds=(18.7, 74)),
    Part("examine", "14", "what a step of a model costs and wastes, line by line", measure_examine, seconds=(23, 61)),
    Part("data", "01", "the data set's sizes beside the diagnosed workload", measure_data, seconds=(0.4, 1.8)),
)
PARTS: dict[str, Part] = {part.name: part for part in _LIST}


def default_parts(device: torch.device | str) -> list[str]:
    """The parts that ``measure`` takes when none is named."""
    return [part.name for part in _LIST if part.default is True or part.default == torch.device(device).type]


def measure_parts(
    names: Iterable[str],
    data: Interactions,
    options: MeasureOptions,
    folder: str | Path,
    *,
    settings: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]] | None = None,
    budget_s: float | None = None,
    again: bool = False,
) -> Iterator[Outcome]:
    """Measure the parts in order, one record each, and yield how each ended; a failure does not stop those that follow.

    settings  of the data source, for the records
    more      per part, keyword arguments beyond the options
    budget_s  no part is started once so many seconds are spent
    again     also measure a part whose record is there already
    """
    began = time.perf_counter()
    for name in names:
        part, start = PARTS[name], time.perf_counter()
        if part.path(folder).is_file() and not again:
            yield Outcome(name, "there already")
        elif budget_s is not None and start - began >= budget_s:
            yield Outcome(name, "no time left")
        else:
            error = ""
            try:
                measure_part(part, data, options, folder, settings, **(more or {}).get(name, {}))
            except Exception as problem:  # whatever it is, the parts that follow can still be measured
                error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            yield Outcome(name, "failed" if error else "measured", time.perf_counter() - start, error)


def measure_part(
    part: Part,
    data: Interactions,
    options: MeasureOptions,
    folder: str | Path | None,
    settings: Mapping[str, Any],
    **more: Any,
) -> Any:
    """Measure one part under a bar and write its record, which no other process may write meanwhile; returns its
    content as a record holds it. Without a folder no record is written."""
    bar = TerminalBar(part.name, part.expected_s(data.train.shape[1]))
    try:
        with memory_advice(data, options.device, options.batch_size), watch(bar):
            if folder is None:
                return plain(part.measure(data, options, **more), part.kind)
            path = part.path(folder)
            with only_writer(path.parent, path.name):
                measure_and_record(part, data, options, path, settings, **more)
            return read_record(path, part.kind)["content"]
    finally:
        gc.collect()
        if not options.on_cpu:
            torch.cuda.empty_cache()


def measure_and_record(
    part: Part,
    data: Interactions,
    options: MeasureOptions,
    path: str | Path,
    settings: Mapping[str, Any],
    **more: Any,
) -> None:
    """Measure one part and write its record, with the settings that it was measured with; of one that is stopped what
    was measured by then, unless a record is there already."""
    stopped = None
    try:
        content = part.measure(data, options, **more)
    except Stopped as stop:
        if Path(path).exists():
            raise
        content, stopped = stop.content, stop
    shown = {name: value for name, value in more.items() if not isinstance(value, Path)}
    made_with = dict(settings) | options.settings | shown
    write_record(path, part.kind, content, settings=made_with, data=data, device=options.device, seed=options.seed)
    if stopped is not None:
        raise stopped

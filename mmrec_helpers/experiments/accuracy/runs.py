"""An accuracy study on disk: one record per run, written as the run ends; a study goes on where it stopped.

The records are in ``<folder>/records/<run>.json``. Where the runs are made: ``experiments.cluster``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmrec_helpers.config import InputError, resolve_device
from mmrec_helpers.data import DataSource, Interactions
from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary
from mmrec_helpers.experiments.accuracy.study import Plan, Runs, runs_ready
from mmrec_helpers.experiments.cluster import Payload, check_where, do_runs, open_engine
from mmrec_helpers.files import reports_folder, write_text
from mmrec_helpers.records.record import SCHEMA, new_record, plain, read_record, store_record


def run_study(
    source: DataSource | Payload,
    study: Plan,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    scheduler: str = "",
) -> dict[str, dict[str, Any]]:
    """Do the runs of a study that have no record yet, and return the content of all by name; a line on standard error
    for each that ends.

    source           a data set, or what else the runs need with it
    jobs, scheduler  where the runs are made, see ``cluster.open_engine``: one job trains in this process. Times taken
                     beside other runs are marked so (``beside_other_work``)

    A record that is there is kept if it is of the same run and data; else InputError names the difference. Runs that
    were not finished start again. Ctrl-C ends at once; the records of finished runs stay, and so they do when a run
    cannot be made (the others go on, then TrainingError names it) or the scheduler is lost.
    """
    check_where(jobs, scheduler)
    device = str(device if scheduler else resolve_device(device))
    payload = source if isinstance(source, Payload) else Payload(source.open())
    runs = _Recorded(study, Path(folder), payload.data)
    make = partial(_train, study, device, jobs > 1 or bool(scheduler))
    with open_engine(payload, jobs, scheduler, device) as engine:
        _say(f"{len(runs.done)} of {runs.total} runs are done, {engine.about}")
        do_runs(engine, make, runs, _say)
    return runs.done


class _Recorded(Runs):
    """The runs of a study whose records are in a folder, with the log of those that have one beside them."""

    def __init__(self, study: Plan, folder: Path, data: Interactions) -> None:
        super().__init__(study)
        self.folder, self.data = folder, data
        for path in _paths(folder) if study.shared else ():
            self._check(path, study.shared)
        self.ready()

    def ready(self) -> list[Any]:
        """Those that could start now and have no record; those that have are done."""
        while found := [run for run in runs_ready(self.study, self.done) if self._path(run).exists()]:
            for run in found:
                self.done[run.name] = self._check(self._path(run), self.study.identity(run), whole=True)
        return runs_ready(self.study, self.done)

    def keep(self, run: Any, result: dict[str, Any]) -> str:
        if log := result["content"].pop("log", ""):
            write_text(self.folder / "logs" / f"{run.name}.log", log)
        store_record(self._path(run), result)
        return super().keep(run, result["content"])

    def _path(self, run: Any) -> Path:
        return self.folder / "records" / f"{run.name}.json"

    def _check(self, path: Path, identity: Mapping[str, Any], whole: bool = False) -> dict[str, Any]:
        """The content of a record, if it is of this identity (``whole``: and of nothing else) and this data."""
        record = read_record(path, self.study.kind)
        there, here = record["content"]["identity"], plain(identity)
        for name in dict.fromkeys([*here, *(there if whole else ())]):
            if there.get(name) != here.get(name):
                raise InputError(
                    f"{path}: {name} is {there.get(name)!r} there and {here.get(name)!r} here: give another folder, or "
                    "the same settings"
                )
        made_on = record["provenance"]["data"]["fingerprint"]
        if made_on != self.data.fingerprint:
            raise InputError(f"{path}: made on data {made_on}, not {self.data.fingerprint}: give another folder")
        return record["content"]


def _train(study: Plan, device: str, beside_other_work: bool, payload: Payload, run: Any) -> dict[str, Any]:
    """Train one run and return its record, made where it was trained."""
    chosen = resolve_device(device)
    content = study.train(payload, run, chosen) | {"beside_other_work": beside_other_work}
    return new_record(study.kind, content, settings=study, data=payload.data, device=chosen, seed=run.seed)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def read_study(folder: str | Path, kind: str = "study-run") -> dict[str, dict[str, Any]]:
    """All records of runs in a folder, by name, whatever study they belong to."""
    return {path.stem: read_record(path, kind) for path in _paths(folder)}


def _paths(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("records/*-seed*.json"))


def write_accuracy(folder: str | Path) -> Path:
    """Summarise the study's finished runs and write ``<folder>/records/accuracy.json`` (kind "accuracy").

    Its provenance is that of the run written last, since it measures nothing of its own. Raises InputError when there
    is no run, or when they were made on different data.
    """
    return write_summary(folder, "study", "accuracy", accuracy_summary)


def write_summary(
    folder: str | Path, command: str, kind: str, summarise: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> Path:
    """``write_accuracy`` for the runs of any command: its record's kind, and what makes the content from theirs."""
    records = list(read_study(folder, f"{command}-run").values())
    if not records:
        raise InputError(
            f"no finished run in {Path(folder) / 'records'}: start with `python -m mmrec_helpers {command}`"
        )
    if len({record["provenance"]["data"]["fingerprint"] for record in records}) > 1:
        raise InputError(f"the runs in {folder} were made on different data: expected one {command} per folder")
    content = summarise([record["content"] for record in records])
    last = max(records, key=lambda record: record["provenance"]["time"])
    made = last["provenance"] | {"seed": None}  # it is of all seeds
    record = {"schema": SCHEMA, "kind": kind, "provenance": made, "content": plain(content)}
    return store_record(Path(folder) / "records" / f"{kind}.json", record)


def read_summary(folder: str | Path, kind: str = "accuracy") -> dict[str, Any] | None:
    """The summary of a study or a sweep: of ``folder``, or of that name below ``reports/``; None if there is none."""
    paths = [base / "records" / f"{kind}.json" for base in (Path(folder), reports_folder() / folder)]
    path = next((path for path in paths if path.is_file()), None) if str(folder) else None
    return None if path is None else read_record(path, kind)

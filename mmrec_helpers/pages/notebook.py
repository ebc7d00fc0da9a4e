"""What a notebook's first code cell calls: its data, its device, and where its records go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmrec_helpers.config import InputError, resolve_device, seed_everything
from mmrec_helpers.data import Interactions
from mmrec_helpers.files import dataset_label, reports_folder, write_text
from mmrec_helpers.pages.display import show_markdown
from mmrec_helpers.records import machine_of
from mmrec_helpers.records.record import find_records, plain, read_record, write_record


def start(
    notebook: str,
    *,
    dataset: str = "embedded",
    visual: str = "",
    textual: str = "",
    device: str = "auto",
    seed: int = 0,
    scale: float = 1.0,
    run: str = "",
    records: str = "",
) -> Session:
    """Open the data set and the run's folder for one notebook, and seed Python, NumPy and torch.

    notebook         the notebook's own file name without ``.ipynb``, such as ``"04-dragon"``
    dataset          a preset's name, or a folder in MMRec's layout (relative to the working directory)
    visual, textual  feature files inside that folder; "" for none
    run              the run's folder; "" for ``reports/interactive-<dataset>`` of the checkout
    records          a folder with records that were measured elsewhere, which ``Session.measured`` then reads instead
                     of measuring; "" to measure
    """
    from mmrec_helpers.data import open_dataset

    if not re.match(r"\d\d-", notebook):
        raise InputError(f"notebook {notebook!r}: expected its file name, beginning with two digits, as in '04-dragon'")
    chosen = resolve_device(device)
    seed_everything(seed)
    return Session(
        notebook=notebook.removesuffix(".ipynb"),
        data=open_dataset(dataset, visual=visual or None, textual=textual or None, seed=seed, scale=scale),
        device=chosen,
        seed=seed,
        run_folder=Path(run) if run else reports_folder() / f"interactive-{dataset_label(dataset)}",
        elsewhere=_folder_of_records(records) if records else None,
        settings={
            "dataset": dataset_label(dataset),
            "visual": dataset_label(visual) if visual else "",
            "textual": dataset_label(textual) if textual else "",
            "scale": scale,
        },
    )


@dataclass(frozen=True)
class Session:
    """One notebook at work on one data set in one run."""

    notebook: str
    data: Interactions
    device: torch.device
    seed: int
    run_folder: Path
    settings: dict[str, Any]
    elsewhere: Path | None = None
    _headlines: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> str:
        """The two digits that begin the notebook's name and the names of its records."""
        return self.notebook[:2]

    def _file(self, name: str) -> str:
        return f"{self.number}-{name}.json"

    def record(self, kind: str, name: str, content: Any, settings: Any = None) -> None:
        """Write a record as ``<run>/records/<nn>-<name>.json``, in place of an earlier one of that name.

        ``settings`` (a mapping or a dataclass: what this measurement was made with) joins the run's own settings.
        """
        path = self.run_folder / "records" / self._file(name)
        settings = self.settings | plain(settings or {}, f"{name}.settings")
        write_record(path, kind, content, settings=settings, data=self.data, device=self.device, seed=self.seed)

    def measured(
        self, kind: str, name: str, function: Callable[..., Any], settings: Mapping[str, Any] | None = None, **more: Any
    ) -> Any:
        """What ``function(data, device=..., **settings, **more)`` measures, recorded as ``<nn>-<name>.json``.

        If the session was started with ``records``, nothing is measured: the record of that name is read there, checked
        to be of ``kind`` and of this data set, and copied into the run with the provenance that it has. Either way what
        comes back is as a record holds it (lists for tuples and frames, None for NaN).
        """
        settings = dict(settings or {})
        path = self.run_folder / "records" / self._file(name)
        if self.elsewhere is None:
            self.record(kind, name, function(self.data, device=self.device, **settings, **more), settings=settings)
            return read_record(path, kind)["content"]
        source = self.elsewhere / path.name
        record = read_record(source, kind)
        self._check_same_data(path.stem, record)
        if source.resolve() != path.resolve():
            write_text(path, source.read_text(encoding="utf-8"))
        return record["content"]

    def has_cuda_for(self, name: str) -> bool:
        """Whether ``measured`` can give a record that needs CUDA: it is among those measured elsewhere, or, where there
        are none, this session's device is CUDA."""
        if self.elsewhere is not None:
            return (self.elsewhere / self._file(name)).is_file()
        return self.device.type == "cuda"

    def machine(self, name: str) -> str:
        """Where this notebook's record ``name`` was made, such as ``AMD EPYC, 2 threads; tiktok``."""
        return machine_of(read_record(self.run_folder / "records" / self._file(name)))

    def read(self, kind: str, made_by: str = "", name: str = "") -> Any:
        """The content of this run's record of ``kind``.

        made_by  the notebook that makes it, to say which one to run when it is missing
        name     needed when the run holds several of that kind: the record's name, with or without its two digits

        Raises InputError when there is none, when several fit, and when it was measured on other data.
        """
        found = {file: record for file, record in find_records(self.run_folder, kind).items() if _fits(file, name)}
        if not found:
            what = f"{kind!r} named {name!r}" if name else f"{kind!r}"
            hint = f": run {made_by} first" if made_by else ""
            raise InputError(f"no record of kind {what} in {self.run_folder / 'records'}{hint}")
        if len(found) > 1:
            raise InputError(f"{len(found)} records of kind {kind!r}: give name, one of {', '.join(found)}")
        ((file, record),) = found.items()
        self._check_same_data(file, record)
        return record["content"]

    def headline(self, label: str, value: Any, unit: str = "", note: str = "") -> None:
        """Put one number on the run's index page (again with the same label: replaces it)."""
        self._headlines[label] = {"label": label, "value": value, "unit": unit, "note": note, "page": self.notebook}
        self.record("headline", "headline", list(self._headlines.values()))

    def answer(self, question: str, answer: str) -> None:
        """Keep the notebook's answer in one or two sentences (Markdown) for the index and the page's head; show it."""
        self.record("answer", "answer", {"question": question, "answer": answer, "page": self.notebook})
        show_markdown(f"**{question}** {answer}", role="answer")

    def _check_same_data(self, file: str, record: dict[str, Any]) -> None:
        measured = record["provenance"]["data"]
        if measured and measured["fingerprint"] != self.data.fingerprint:
            raise InputError(
                f"record {file} was made on {measured['name']} ({measured['fingerprint']}), but this notebook runs on "
                f"{self.data.name} ({self.data.fingerprint}): run notebook {file[:2]} again with this data"
            )


def _folder_of_records(folder: str) -> Path:
    """The folder itself, or its ``records`` if it is a run's."""
    path = Path(folder)
    path = path / "records" if (path / "records").is_dir() else path
    if not path.is_dir():
        raise InputError(f"records {folder}: there is no such folder")
    return path


def _fits(file: str, name: str) -> bool:
    return name in ("", file, file.partition("-")[2])

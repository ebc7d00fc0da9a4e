"""What a notebook's first code cell calls: its data, its device, its run's records and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmrec_helpers.claims import evidence
from mmrec_helpers.claims.recommendations import Recommendation, first_answer, recommend
from mmrec_helpers.config import InputError, resolve_device, seed_everything
from mmrec_helpers.data import DataSource, Interactions
from mmrec_helpers.experiments.catalogue import PARTS, Part, measure_and_record
from mmrec_helpers.experiments.quantities import find_value, quantities, quantity_table, quantity_text
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.files import reports_folder
from mmrec_helpers.pages.display import NotebookBar, shell, show_answer, show_markdown, show_notice, show_style
from mmrec_helpers.progress import watch
from mmrec_helpers.records import (
    different_settings,
    find_records,
    machine_of,
    plain,
    read_record,
    store_record,
    write_record,
)

ACCOUNT = "00-quantities"  # the record of all stated quantities of a run
ADVICE = "00-advice"  # the record of what to do
_HOW_OFTEN = ("repeats", "warmup", "max_seconds")  # how precisely something is measured, not what


def start(
    notebook: str, source: DataSource, *, device: str = "auto", seed: int = 0, run: str = "", records: str = ""
) -> Session:
    """Open one notebook's session, and seed Python, NumPy and torch.

    notebook  the notebook's own file name without ``.ipynb``, such as ``"05-routing"``
    source    the data set; it is opened when it is first asked for
    run       the run's folder; "" for ``reports/interactive-<dataset>`` of the checkout
    records   a folder with records that were measured elsewhere, which ``Session.measured`` then reads instead of
              measuring; "" to measure

        session = start("05-routing", DataSource(dataset, visual, textual, scale, seed), device=device, run=run)
    """
    if not re.match(r"\d\d-", notebook):
        raise InputError(
            f"notebook {notebook!r}: expected its file name, beginning with two digits, as in '05-routing'"
        )
    chosen = resolve_device(device)
    seed_everything(seed)
    show_style()
    warn_of_unknown_parameters()
    folder = Path(run) if run else reports_folder() / f"interactive-{source.label}"
    elsewhere = _folder_of_records(records) if records else None
    return Session(notebook.removesuffix(".ipynb"), source, chosen, seed, folder, elsewhere)


@dataclass(frozen=True)
class Session:
    """One notebook at work on one data set in one run."""

    notebook: str
    source: DataSource
    device: torch.device
    seed: int
    run_folder: Path
    elsewhere: Path | None = None
    _headlines: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _notes: list[str] = field(default_factory=list, repr=False)  # on other settings, as shown so far

    @cached_property
    def data(self) -> Interactions:
        with self.busy("opening the data"):
            return self.source.open()

    def busy(self, title: str, expected_s: float | None = None) -> AbstractContextManager[None]:
        """Show a bar while the block runs: how long it takes (where that is known), and the phase that it is in.

        with session.busy("training"):
            run_study(...)
        """
        return watch(NotebookBar(title, expected_s))

    @property
    def number(self) -> str:
        """The two digits that begin the notebook's name and the names of its records."""
        return self.notebook[:2]

    def options(self, **chosen: Any) -> MeasureOptions:
        """Measuring options with this session's device and seed; ``chosen``: batch_size, repeats, ..."""
        return MeasureOptions(device=self.device, seed=self.seed, **chosen)

    def measured(self, name: str, options: MeasureOptions, **more: Any) -> Any:
        """The content of the run's record of a part of the catalogue (``experiments.catalogue``).

        The part's home notebook measures it. Another notebook takes the record that the run has, if it was made on this
        data and device with the same settings; else it measures and records the part itself. If the session was started
        with ``records``, nothing is measured: the record is read there, checked to be of this kind and data set, and
        copied into the run with the provenance that it has; where it was made with other settings than those asked for,
        the page says with which. What comes back is as a record holds it (lists for tuples and frames, None for NaN).

        more  keyword arguments of the part's function beyond the options
        """
        content = self._measured(PARTS[name], options, more)
        if PARTS[name].kind == name:
            self.contents[name] = content
        return content

    def has_cuda_for(self, name: str) -> bool:
        """Whether ``measured`` can give a record that needs CUDA: it is among those measured elsewhere, or, where there
        are none, this session's device is CUDA."""
        if self.elsewhere is not None:
            return (self.elsewhere / PARTS[name].path(".").name).is_file()
        return self.device.type == "cuda"

    def machine(self, name: str) -> str:
        """Where the run's record of a part was made, such as ``tiktok on AMD EPYC, 2 threads``."""
        return machine_of(read_record(PARTS[name].path(self.run_folder)))

    def record(self, kind: str, name: str, content: Any, settings: Any = None) -> None:
        """Write a record as ``<run>/records/<nn>-<name>.json``, in place of an earlier one of that name.

        ``settings`` (a mapping or a dataclass: what this was made with) joins the data source's own.
        """
        path = self.run_folder / "records" / f"{self.number}-{name}.json"
        settings = self.source.settings | plain(settings or {}, f"{name}.settings")
        data = self.__dict__.get("data")  # a notebook that only reads records does not open it
        write_record(path, kind, content, settings=settings, data=data, device=self.device, seed=self.seed)

    @cached_property
    def contents(self) -> dict[str, Any]:
        """The content of each part's record in the run, by kind; what this session measures joins it."""
        return {kind: record["content"] for kind, record in part_records(self.run_folder).items()}

    def value(self, name: str, unit: bool = True) -> str:
        """A registered quantity of this run as text, such as "61.8 ms", marked for the test of the account.

        Quantities are listed in experiments/quantities.csv; "not measured" where a record is missing.
        """
        value = find_value(name, self.contents)
        return "not measured" if value is None else quantity_text(name, value, unit, mark=True)

    def headline(self, name: str, note: str = "") -> None:
        """Put a registered quantity on the run's index page as a card."""
        quantity, value = quantities()[name], find_value(name, self.contents)
        if value is not None:
            about = {"label": quantity.label, "value": value, "unit": quantity.unit, "digits": quantity.digits}
            self._headlines[name] = {"quantity": name, **about, "note": note, "page": self.notebook}
            self.record("headline", "headline", list(self._headlines.values()))

    def answer(self, question: str, answer: str) -> None:
        """Keep the notebook's answer in one or two sentences (Markdown) for the index and the page's head; show it."""
        self.record("answer", "answer", {"question": question, "answer": answer, "page": self.notebook})
        write_account(self.run_folder)
        show_answer(question, answer)

    def advise(self, committed: bool = True) -> tuple[list[Recommendation], list[dict[str, Any]]]:
        """What to do, and the records that it rests on: this run's and, unless told otherwise, those committed with the
        project. The first of it is kept as the record "advice", which opens the index and page 00."""
        own = evidence.run_records(self.run_folder)
        every = own + (evidence.committed_records() if committed else [])
        advice = recommend(every, own)
        write_record(self.run_folder / "records" / f"{ADVICE}.json", "advice", {"answer": first_answer(advice, every)})
        return advice, every

    def _measured(self, part: Part, options: MeasureOptions, more: Mapping[str, Any]) -> Any:
        path = part.path(self.run_folder)
        if self.elsewhere is not None:
            return self._from_elsewhere(part, self.elsewhere / path.name, options, more)
        if part.home != self.number and path.is_file():
            record = read_record(path, part.kind)
            if self._matches(record, options, more):
                return record["content"]
        with self.busy(part.name, part.expected_s(self.data.train.shape[1])):
            measure_and_record(part, self.data, options, path, self.source.settings, **more)
        return read_record(path, part.kind)["content"]

    def _from_elsewhere(self, part: Part, source: Path, options: MeasureOptions, more: Mapping[str, Any]) -> Any:
        path, record = part.path(self.run_folder), read_record(source, part.kind)
        self._check_same_data(source.stem, record)
        other = _other_settings(record, options, more)
        made = ", ".join(f"{name} {'unknown' if there is None else repr(there)}" for name, (there, _) in other.items())
        here = ", ".join(f"{name} {asked!r}" for name, (_, asked) in other.items())
        note = f"*Drawn from a record made with {made}; this page's own {here} did not apply.*"
        if other and note not in self._notes:
            show_markdown(note)
            self._notes.append(note)
        if source.resolve() != path.resolve():
            store_record(path, record)
        return record["content"]

    def _matches(self, record: Mapping[str, Any], options: MeasureOptions, more: Mapping[str, Any]) -> bool:
        made = record["provenance"]
        same = made["data"]["fingerprint"] == self.data.fingerprint and made["device"]["type"] == self.device.type
        return same and not _other_settings(record, options, more)

    def _check_same_data(self, file: str, record: Mapping[str, Any]) -> None:
        measured = record["provenance"]["data"]
        if measured and measured["fingerprint"] != self.data.fingerprint:
            raise InputError(
                f"record {file} was made on {measured['name']} ({measured['fingerprint']}), but this notebook runs on "
                f"{self.data.name} ({self.data.fingerprint}): give the data set that it was made on"
            )


def _other_settings(
    record: Mapping[str, Any], options: MeasureOptions, more: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """In which settings of what is measured (not: how often) a record differs from those asked for."""
    asked = options.settings | {name: value for name, value in more.items() if not isinstance(value, Path)}
    return {n: pair for n, pair in different_settings(record, asked).items() if n not in _HOW_OFTEN}


def warn_of_unknown_parameters() -> None:
    """Say which parameters papermill was given that this notebook does not have; nothing outside IPython."""
    notebook = shell()
    cells = notebook.user_ns.get("In", []) if notebook else []
    given = [at for at, cell in enumerate(cells) if cell.startswith("# Parameters\n")]  # papermill's own cell
    if given and given[0] > 1:
        known, names = (set(re.findall(r"^(\w+)\s*(?::.*)?=", cells[at], re.M)) for at in (given[0] - 1, given[0]))
        if unknown := sorted(names - known):
            show_notice(
                f"Given, but no parameter of this notebook, and so without effect: {', '.join(unknown)}. It has "
                f"{', '.join(sorted(known))}."
            )


def part_records(run_folder: str | Path) -> dict[str, dict[str, Any]]:
    """The run's records of the catalogue's parts, by kind (of the diagnosed settings: none)."""
    found = find_records(run_folder)
    return {part.kind: found[part.record] for part in PARTS.values() if part.record in found and part.kind == part.name}


def write_account(run_folder: str | Path) -> None:
    """Write the record of kind "quantities": every registered quantity that the run's records give, with its home."""
    records = part_records(run_folder)
    if records:
        contents = {kind: record["content"] for kind, record in records.items()}
        about = next(iter(records.values()))["provenance"]
        path = Path(run_folder) / "records" / f"{ACCOUNT}.json"
        write_record(path, "quantities", quantity_table(contents), settings=about["settings"])


def _folder_of_records(folder: str) -> Path:
    """The folder itself, or its ``records`` if it is a run's."""
    path = Path(folder)
    path = path / "records" if (path / "records").is_dir() else path
    if not path.is_dir():
        raise InputError(f"records {folder}: there is no such folder")
    return path

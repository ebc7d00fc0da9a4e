"""MMRec's training logs as a tidy table, whatever the model, the metrics, and however the run ended."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError

COLUMNS = [
    "model",
    "dataset",
    "modalities",
    "n_users",
    "n_items",
    "n_train",
    "run",
    "parameters",
    "epoch",
    "epoch_s",
    "loss",
    "time",
    "valid_score",
    "improved",
]
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_LEVEL = r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_RECORD = re.compile(rf"^(?P<stamp>\S.{{0,40}}?\d\d:\d\d(?::\d\d)?) {_LEVEL}(?: (?P<text>.*))?$")
_TRAINED = re.compile(r"^epoch\s+(\d+)\s+training\s*\[(.*)\]\s*$", re.I | re.S)
_TERMS_ONLY = re.compile(r"^train_loss\d+\s*:.*\]\s*$", re.I | re.S)  # what MMRec writes for a loss of several terms
_EVALUATED = re.compile(rf"^epoch\s+(\d+)\b[^\n]*?valid_score:\s*({_NUMBER})", re.I)
_RESULT = re.compile(r"^(valid|test)\s*result\s*:(.*)", re.I | re.S)
_RUN = re.compile(r"^=+\s*(\d+)/(\d+)\s*:\s*Parameters:\s*(\[.*?\])\s*=\s*(.*?)=*\s*$", re.S)
_METRIC = re.compile(rf"([A-Za-z][\w@.\-]*)['\"]?\s*[:,]\s*(?:[\w.]+\()?({_NUMBER})", re.I)
_LOSS = re.compile(rf"train[ _]loss\d*\s*:\s*({_NUMBER})", re.I)
_FILE_NAME = re.compile(r"^(?P<model>[^-]+)-(?P<dataset>.+)-[A-Z][a-z]{2}-\d{1,2}-\d{4}-\d\d-\d\d-\d\d")
_MODALITY_FILES = {"visual": "vision_feature_file", "textual": "text_feature_file"}


def read_log(path: str | Path) -> pd.DataFrame:
    """Read one log that MMRec (or a fork that kept its format) wrote: one row per epoch.

    Columns: model, dataset, modalities (a tuple such as ("visual", "textual")), n_users, n_items, n_train (training
    interactions), run (1, 2, ... through a grid of hyper-parameters), parameters (of the run, a dict), epoch, epoch_s
    (training only), loss (of a loss of several terms the sum), time (when the epoch's training ended), valid_score,
    improved (best validation so far); then the metrics as the log names them, such as "valid.recall@20" and
    "test.recall@20". What the log does not say is missing (NaN or NA). ``attrs["settings"]`` holds MMRec's settings.

    A log that breaks off keeps its complete epochs; one that ends before the first epoch gives an empty table. A run
    that was resumed (a new start whose first epoch is not 0, same model, data set and parameters) stays one run, its
    repeated epochs taken from the later start. Lines of unknown form are passed over. Raises InputError if the file
    is missing, empty, or no log of MMRec.
    """
    path = Path(path)
    reader = _Reader(path.name)
    for time, text, cut in _messages(_text_of(path)):
        reader.take(time, text, cut)
    if not reader.recognised:
        raise InputError(
            f"{path}: no training log of MMRec: expected lines such as 'epoch 0 training [time: 1.23s, ...]'"
        )
    return reader.table()


def _text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no log {path}") from None
    except OSError as error:
        raise InputError(f"cannot read log {path}: {error.strerror or error}") from error
    if not raw.strip():
        raise InputError(f"{path}: the log is empty")
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return raw.decode(encoding, errors="replace").replace("\r\n", "\n")


def _messages(text: str) -> Iterator[tuple[datetime | None, str, bool]]:
    """(time, message, whether the file may break off in it): a record with the lines that follow without a stamp."""
    time: datetime | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        record = _RECORD.match(line)
        if record:
            yield time, "\n".join(lines).strip(), False
            time, lines = _time_of(record["stamp"]), [record["text"] or ""]
        else:
            lines.append(line)
    yield time, "\n".join(lines).strip(), not text.endswith("\n")


def _time_of(stamp: str) -> datetime | None:
    try:
        return datetime.strptime(" ".join(stamp.split()[-4:]), "%d %b %Y %H:%M:%S")
    except ValueError:
        return None  # another language's months, or the short form of the console, which has no year


@dataclass
class _Run:
    """One combination of hyper-parameters: its rows by epoch."""

    number: int
    parameters: dict[str, Any]
    facts: dict[str, Any]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)


class _Reader:
    """Takes the messages of a log one by one and keeps the rows."""

    def __init__(self, file_name: str) -> None:
        self.recognised = False
        self._named = _FILE_NAME.match(file_name)
        self._settings: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._runs: list[_Run] = []
        self._pending: tuple[int, dict[str, Any]] | None = None  # a run announced whose first epoch is yet to come
        self._row: dict[str, Any] | None = None
        self._last_epoch = -1

    def take(self, time: datetime | None, text: str, cut: bool) -> None:
        if match := _TRAINED.match(text):
            seconds = re.search(rf"time:\s*({_NUMBER})\s*s", match[2])
            self._start_row(int(match[1]), time, float(seconds[1]) if seconds else None, match[2])
        elif _TERMS_ONLY.match(text):
            self._start_row(self._last_epoch + 1, time, None, text)
        elif match := _EVALUATED.match(text):
            self._evaluated(int(match[1]), None if cut and not text.endswith("]") else float(match[2]))
        elif (match := _RESULT.match(text)) and self._row is not None:
            numbers = _complete_metrics(match[2], cut)
            self._row.update({f"{match[1].lower()}.{name}": value for name, value in numbers.items()})
        elif "best validation results updated" in text.lower() and self._row is not None:
            self._row["improved"] = True
        elif match := _RUN.match(text):
            self._announce(int(match[1]), _parameters(match[3], match[4]))
        elif text.lower().startswith(("best valid", "+++++finished")):
            self._row = None  # a summary of the run follows, whose results belong to no epoch
        elif "The number of inters:" in text:
            self._take_sizes(text)
        else:
            self._take_settings(text)

    def _take_settings(self, text: str) -> None:
        pairs = re.findall(r"^(\w+)=(.*)$", text, re.M)
        if len(pairs) >= 3:
            self.recognised = True
            self._settings = {key: _literal(value) for key, value in pairs}
            self._sizes, self._row = {}, None

    def _take_sizes(self, text: str) -> None:
        self.recognised = True
        found = dict(re.findall(r"The number of (users|items|inters):\s*(\d+)", text))
        if "Training" in text.split("The number", 1)[0]:
            self._sizes["n_train"] = int(found["inters"])
        elif "==" not in text and {"users", "items"} <= found.keys():
            self._sizes |= {"n_users": int(found["users"]), "n_items": int(found["items"])}

    def _announce(self, number: int, parameters: dict[str, Any]) -> None:
        self.recognised = True
        self._pending, self._row, self._last_epoch = (number, parameters), None, -1

    def _start_row(self, epoch: int, time: datetime | None, seconds: float | None, losses: str) -> None:
        self.recognised = True
        run = self._run_of(epoch)
        terms = [float(value) for value in _LOSS.findall(losses)]
        self._row = {"epoch": epoch, "epoch_s": seconds, "loss": sum(terms) if terms else None, "time": time}
        run.rows = {number: row for number, row in run.rows.items() if number < epoch} | {epoch: self._row}
        self._last_epoch = epoch

    def _run_of(self, epoch: int) -> _Run:
        """The run that an epoch belongs to: the current one, a new one, or an earlier one that is resumed."""
        if self._pending is None and self._runs and epoch > 0:
            return self._runs[-1]
        number, parameters = self._pending or (1, {})
        self._pending = None
        facts = self._facts()
        if epoch > 0:
            for run in reversed(self._runs):
                if (run.parameters, run.facts) == (parameters, facts):
                    self._runs.remove(run)
                    self._runs.append(run)
                    return run
        taken = {run.number for run in self._runs}
        self._runs.append(_Run(number if number not in taken else max(taken) + 1, parameters, facts))
        return self._runs[-1]

    def _facts(self) -> dict[str, Any]:
        named = self._named.groupdict() if self._named else {}
        files = self._settings if self._settings.get("is_multimodal_model", True) else {}
        return {
            "model": self._settings.get("model", named.get("model")),
            "dataset": self._settings.get("dataset", named.get("dataset")),
            "modalities": tuple(m for m, key in _MODALITY_FILES.items() if files.get(key)),
            "n_users": self._sizes.get("n_users"),
            "n_items": self._sizes.get("n_items"),
            "n_train": self._sizes.get("n_train"),
        }

    def _evaluated(self, epoch: int, score: float | None) -> None:
        if self._row is None:
            return
        if self._row["epoch"] != epoch:  # the training line did not name its epoch
            rows = self._runs[-1].rows
            rows[epoch] = rows.pop(self._row["epoch"])
            self._row["epoch"] = self._last_epoch = epoch
        self._row["valid_score"] = score

    def table(self) -> pd.DataFrame:
        rows = []
        for run in sorted(self._runs, key=lambda run: run.number):
            for _, row in sorted(run.rows.items()):
                rows.append({**run.facts, "run": run.number, "parameters": run.parameters, "improved": False, **row})
        seen = dict.fromkeys(key for row in rows for key in row if "." in key)
        metrics = [key for side in ("valid.", "test.") for key in seen if key.startswith(side)]
        table = pd.DataFrame(rows, columns=COLUMNS + metrics)
        counts = dict.fromkeys(("n_users", "n_items", "n_train", "run", "epoch"), "Int64")
        floats = dict.fromkeys(("epoch_s", "loss", "valid_score"), float)
        table = table.astype(counts | floats).assign(time=pd.to_datetime(table["time"]))
        table.attrs["settings"] = self._settings
        return table


def _complete_metrics(text: str, cut: bool) -> dict[str, float]:
    """Name to value. All numbers of a line have the same decimals: where the log breaks off, a shorter one is cut."""
    found = [(name.lower(), number) for name, number in _METRIC.findall(text)]
    if cut and found and not text.endswith((" ", "}", ")")):
        whole = len(found[0][1].partition(".")[2]) if len(found) > 1 else 4
        found = [(name, number) for name, number in found if len(number.partition(".")[2]) >= whole]
    return {name: float(number) for name, number in found}


def _parameters(names: str, values: str) -> dict[str, Any]:
    names, values = _literal(names), _literal(values.strip())
    if isinstance(names, list) and isinstance(values, (tuple, list)) and len(names) == len(values):
        return dict(zip(names, values))
    return {"text": f"{names}={values}"}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

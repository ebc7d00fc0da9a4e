"""MMRec's training logs as a tidy table, whatever the model, the metrics, and however the run ended."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError
from mmrec_helpers.files import parse_literal

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
# Every pattern below has one way to match a text, so that none takes more than linear time.
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|inf)"
_LEVEL = r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RECORD = re.compile(rf"^(?P<stamp>\S.{{0,40}}?\d\d:\d\d(?::\d\d)?) {_LEVEL}(?: (?P<text>.*))?$")
_TRAINED = re.compile(r"epoch\s+(\d{1,9})\s+training\s*\[(.*)\]", re.I)
_SECONDS = re.compile(rf"time:\s*({_NUMBER})\s*s")
_TERMS_ONLY = re.compile(r"train_loss\d+\s*:.*\]", re.I)  # what MMRec writes for a loss of several terms
_EVALUATED = re.compile(rf"epoch\s+(\d{{1,9}})\b.*?valid_score:\s*({_NUMBER})", re.I)
_RESULT = re.compile(r"(valid|test)\s*result\s*:", re.I)
_RUN = re.compile(r"=+\s*(\d{1,9})/\d+\s*:\s*Parameters:\s*(\[[^]]*\])\s*=(.*)")
_SIZE = re.compile(r"The number of (users|items|inters):[ \t]*(\d{1,15})(?![\d.])")
_METRIC = re.compile(
    rf"(?<![\w@.\-])([A-Za-z][\w@.\-]*)['\"]?\s*[:,]\s*(?:[A-Za-z][\w.]*\()?({_NUMBER})(?![\w.])", re.I
)
_BETWEEN_METRICS = re.compile(r"(?:\w*dict)?[\s,;()\[\]{}'\"]*", re.I)
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
    repeated epochs taken from the later start. Lines of unknown form are passed over wherever they stand, and so are
    numbers that cannot be (an epoch of ten digits). Raises InputError if the file is missing, empty, or no such log.
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
    except (OSError, ValueError) as error:  # a ValueError: no path at all
        raise InputError(f"cannot read log {path}: {getattr(error, 'strerror', error)}") from error
    if not raw.strip():
        raise InputError(f"{path}: the log is empty")
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = raw.decode(encoding, errors="replace").replace("\r\n", "\n").replace("\r", "\n")  # \r: a progress bar's
    return _COLOUR.sub("", text)


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
        self._runs: dict[int, _Run] = {}  # by number
        self._last_number = 0  # the highest so far
        self._resumable: dict[str, _Run] = {}  # the last run of each model, data set and parameters
        self._run: _Run | None = None  # that of the last epoch
        self._pending: tuple[int, dict[str, Any]] | None = None  # a run announced whose first epoch is yet to come
        self._row: dict[str, Any] | None = None
        self._row_is_named = True  # whether its training line names the epoch
        self._last_epoch = -1

    def take(self, time: datetime | None, text: str, cut: bool) -> None:
        first, _, more = text.partition("\n")  # what follows the line of an epoch is someone else's
        if match := _TRAINED.match(first):
            seconds = _SECONDS.search(match[2])
            self._start_row(int(match[1]), time, float(seconds[1]) if seconds else None, match[2])
            self._row_is_named = True
        elif _TERMS_ONLY.match(first):
            self._start_row(self._last_epoch + 1, time, None, first)
            self._row_is_named = False
        elif match := _EVALUATED.match(first):
            whole = more or not cut or first.endswith("]")
            self._evaluated(int(match[1]), float(match[2]) if whole else None)
        elif (match := _RESULT.match(first)) and self._row is not None:
            numbers = _metrics(text[match.end() :], cut)
            self._row.update({f"{match[1].lower()}.{name}": value for name, value in numbers.items()})
        elif "best validation results updated" in first.lower() and self._row is not None:
            self._row["improved"] = True
        elif match := _RUN.match(first):
            self._announce(int(match[1]), _parameters(match[2], match[3]))
        elif first.lower().startswith(("best valid", "+++++finished")):
            self._row = None  # a summary of the run follows, whose results belong to no epoch
        elif "The number of inters:" in text:
            self._take_sizes(text)
        else:
            self._take_settings(text)

    def _take_settings(self, text: str) -> None:
        pairs = re.findall(r"^(\w+)=(.*)$", text, re.M)
        if len(pairs) >= 3:
            self.recognised = True
            names = ("model", "dataset")  # text, even if it looks like a number
            self._settings = {key: value if key in names else parse_literal(value) for key, value in pairs}
            self._sizes, self._row = {}, None

    def _take_sizes(self, text: str) -> None:
        self.recognised = True
        found = {what: int(number) for what, number in _SIZE.findall(text)}
        if "Training" in text.split("The number", 1)[0]:
            self._sizes |= {"n_train": found["inters"]} if "inters" in found else {}
        elif "==" not in text and {"users", "items"} <= found.keys():
            self._sizes |= {"n_users": found["users"], "n_items": found["items"]}

    def _announce(self, number: int, parameters: dict[str, Any]) -> None:
        self.recognised = True
        self._pending, self._row, self._last_epoch = (number, parameters), None, -1

    def _start_row(self, epoch: int, time: datetime | None, seconds: float | None, losses: str) -> None:
        self.recognised = True
        self._run = self._run_of(epoch)
        terms = [float(value) for value in _LOSS.findall(losses)]
        self._row = {"epoch": epoch, "epoch_s": seconds, "loss": sum(terms) if terms else None, "time": time}
        self._keep_row(self._run, self._row)

    def _keep_row(self, run: _Run, row: dict[str, Any]) -> None:
        """The row becomes the run's last; those of this epoch and later ones, from before a resumption, go."""
        rows, epoch = run.rows, row["epoch"]
        while rows and next(reversed(rows)) >= epoch:
            rows.popitem()
        rows[epoch], self._last_epoch = row, epoch

    def _run_of(self, epoch: int) -> _Run:
        """The run that an epoch belongs to: the current one, a new one, or an earlier one that is resumed."""
        if self._pending is None and self._run is not None and epoch > 0:
            return self._run
        number, parameters = self._pending or (1, {})
        self._pending = None
        facts = self._facts()
        key = repr((parameters, facts))
        if epoch > 0 and key in self._resumable:
            return self._resumable[key]
        if number in self._runs:
            number = self._last_number + 1
        self._last_number = max(number, self._last_number)
        self._runs[number] = self._resumable[key] = _Run(number, parameters, facts)
        return self._runs[number]

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
        if self._row is None or self._run is None:
            return
        if self._row["epoch"] != epoch:
            if self._row_is_named:  # the training line of this epoch is missing or unreadable
                self._row = None
                return
            self._run.rows.popitem()
            self._row["epoch"] = epoch
            self._keep_row(self._run, self._row)
        self._row["valid_score"] = score

    def table(self) -> pd.DataFrame:
        rows = []
        for _, run in sorted(self._runs.items()):
            for row in run.rows.values():
                rows.append({**run.facts, "run": run.number, "parameters": run.parameters, "improved": False, **row})
        seen = dict.fromkeys(key for row in rows for key in row if "." in key)
        metrics = [key for side in ("valid.", "test.") for key in seen if key.startswith(side)]
        table = pd.DataFrame(rows, columns=COLUMNS + metrics)
        counts = dict.fromkeys(("n_users", "n_items", "n_train", "run", "epoch"), "Int64")
        floats = dict.fromkeys(("epoch_s", "loss", "valid_score"), float)
        table = table.astype(counts | floats).assign(time=pd.to_datetime(table["time"], errors="coerce"))
        table.attrs["settings"] = self._settings
        return table


def _metrics(text: str, cut: bool) -> dict[str, float]:
    """Name to value, from the lines at the beginning that are nothing but metrics.

    All numbers of a line have the same decimals: where the log breaks off, a shorter one is cut.
    """
    found: dict[str, float] = {}
    lines = text.strip().split("\n")
    for at, line in enumerate(lines, start=1):
        broken = cut and at == len(lines) and not line.endswith(("}", ")"))
        if broken and not re.fullmatch(_NUMBER, line.split(" ")[-1]):
            line = line.rpartition(" ")[0]  # a name that has lost its number
        pairs = _METRIC.findall(line)
        if not pairs or not _BETWEEN_METRICS.fullmatch(_METRIC.sub("", line)):
            break
        decimals = [len(number.partition(".")[2]) for _, number in pairs]
        least = (decimals[0] if len(pairs) > 1 else 4) if broken else 0
        found |= {name.lower(): float(number) for (name, number), n in zip(pairs, decimals) if n >= least}
    return found


def _parameters(names: str, values: str) -> dict[str, Any]:
    text = f"{names}={values.strip(' =')}"
    names, values = (parse_literal(part.strip(" =")) for part in (names, values))
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if named and isinstance(values, (tuple, list)) and len(names) == len(values):
        return dict(zip(names, values))
    return {"text": text}

"""Records: what was measured, as JSON with its provenance, so that pages can be drawn anywhere.

A record is ``{"schema": 1, "kind": ..., "provenance": {...}, "content": ...}``. Records of a run lie in
``<run>/records/``, named ``<nn>-<name>.json`` after the notebook that makes them.
"""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import InputError, counted
from mmrec_helpers.files import check_file, write_text
from mmrec_helpers.records.provenance import provenance
from mmrec_helpers.records.shape import misfit

SCHEMA = 1


def write_record(
    path: str | Path,
    kind: str,
    content: Any,
    *,
    settings: Any = None,
    data: Any = None,
    device: Any = None,
    seed: int | None = None,
) -> Path:
    """Write one record, whole or not at all, and return its path.

    ``content`` may hold NumPy, pandas and torch values and dataclasses; a DataFrame becomes a list of rows (its index
    is dropped), NaN and infinities become null. Raises TypeError naming the place of a value that JSON cannot hold,
    InputError for a file that is there and is no record of this kind, and NotWritten when the file cannot be written.
    """
    return store_record(path, new_record(kind, content, settings=settings, data=data, device=device, seed=seed))


def new_record(
    kind: str, content: Any, *, settings: Any = None, data: Any = None, device: Any = None, seed: int | None = None
) -> dict[str, Any]:
    """A record of what was measured here and now, as ``store_record`` takes it; see ``write_record``."""
    made = provenance(device=device, seed=seed, settings=plain(settings, "settings"), data=data)
    return {"schema": SCHEMA, "kind": kind, "provenance": made, "content": plain(content, kind)}


def store_record(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write a record as it is, its provenance unchanged; otherwise as ``write_record``."""
    check_record_path(path, record["kind"])
    return write_text(path, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def check_record_path(path: str | Path, kind: str) -> Path:
    """The path, if a record of this kind can be written there without loss (see ``files.check_file``): one that lacks
    what its kind must hold now can be made anew."""

    def is_ours(there: Path) -> bool:
        try:
            record = json.loads(there.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(record, dict) and "schema" in record and record.get("kind") == kind

    return check_file(path, f"record of kind {kind!r}", is_ours)


def read_record(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Read one record; raises an InputError that names the file, and the field, when it is missing, broken, of another
    kind, too new, or without what its kind must hold (``records.shape``)."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
        json.dumps(record, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise InputError(f"no record {path}: make it with `{_command_for(path)}`") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or numbers and brackets beyond all bounds
        raise InputError(f"{path}: not a record: broken JSON ({error})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if found := misfit(record, SCHEMA):
        raise InputError(f"{path}: not a record: {found}")
    if kind is not None and record["kind"] != kind:
        raise InputError(f"{path}: a record of kind {record['kind']!r}: expected {kind!r}")
    return record


def find_records(run_folder: str | Path, kind: str | None = None) -> dict[str, dict[str, Any]]:
    """The records of a run by file name (without ``.json``), in order of name; only those of ``kind`` if given."""
    found = {path.stem: read_record(path) for path in sorted(Path(run_folder).glob("records/*.json"))}
    return {name: record for name, record in found.items() if kind in (None, record["kind"])}


def readable_records(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The records at these paths, of which other runs may have broken some: those are passed over with a warning."""
    found = {}
    for path in paths:
        try:
            found[path] = read_record(path)
        except InputError as error:
            warnings.warn(f"passed over {error}", RuntimeWarning, stacklevel=2)
    return found


def different_settings(record: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In which settings a record was not made as ``asked``: name to (there, here); None where a record has no such
    setting. ``asked`` may hold whatever ``plain`` takes.

    different_settings(record, {"batch_size": 4096})  # {"batch_size": (2048, 4096)}
    """
    there = record["provenance"]["settings"] or {}
    here = plain(asked, "settings")
    return {name: (there.get(name), value) for name, value in here.items() if there.get(name) != value}


def machine_of(record: Mapping[str, Any]) -> str:
    """What a verdict says of where its record was made, such as ``tiktok on AMD EPYC, 2 threads``."""
    made = record["provenance"]
    threads = f", {counted(made['machine']['threads'], 'thread')}" if made["device"]["type"] == "cpu" else ""
    data = (made.get("data") or {}).get("name")
    return f"{data + ' on ' if data else ''}{made['device']['name']}{threads}"


def n_train_of(record: Mapping[str, Any]) -> int:
    """Training interactions of the data set that a record was made on; 0 for one made without a data set."""
    return int((record["provenance"].get("data") or {}).get("n_train", 0))


def plain(value: Any, where: str = "value") -> Any:
    """``value`` as what JSON knows: dict, list, str, int, float, bool, None. NaN and infinities become None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, Mapping):
        return {str(plain(key, where)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    converted = _converted(value)
    if converted is value:
        raise TypeError(f"{where} is a {type(value).__name__}, which a record cannot hold")
    return plain(converted, where)


def _converted(value: Any) -> Any:
    """One step from a library's value towards plain Python; ``value`` itself if it is none that is known."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_dict(orient="records")
    if isinstance(value, (pd.Series, pd.Index)):
        return value.tolist()
    if isinstance(value, (pd.Timestamp, pd.Timedelta)):
        return value.isoformat()
    if isinstance(value, (torch.device, torch.dtype)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def _finite(text: str) -> float:
    """A number of JSON text; refuses NaN, Infinity, and what is as large."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _command_for(path: Path) -> str:
    command = "python -m mmrec_helpers report"
    number = re.match(r"\d\d(?=-)", path.name)
    if number and path.parent.name == "records":
        command += f" --only {number.group()} --run {path.parent.parent.name}"
    return command

"""MMRec's layout on disk: a folder with one interaction file and one ``.npy`` file of features per modality."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_helpers.config import InputError, check_memory
from mmrec_helpers.data.interactions import MODALITIES, Interactions, check_graph_fits, checked_features
from mmrec_helpers.files import atomic_file, check_folder, is_vacant, only_writer

COLUMNS = ("userID", "itemID", "x_label")
SPLITS = ("train", "valid", "test")  # x_label 0, 1, 2
FEATURE_FILES = {"visual": "image_feat.npy", "textual": "text_feat.npy"}  # what MMRec calls them
LARGEST_ID = 2**31 - 2


def load_mmrec(
    folder: str | os.PathLike,
    visual: str | os.PathLike | None = None,
    textual: str | os.PathLike | None = None,
    name: str | None = None,
) -> Interactions:
    """Read a data set in MMRec's layout, into memory.

    folder           holds the interaction file: the one ``*.inter``, else the one ``*.csv`` or ``*.tsv`` whose header
                     has the columns ``userID``, ``itemID`` and ``x_label`` (0 train, 1 valid, 2 test). Fields are
                     separated by tabs (a ``.csv`` without a tab in its header: by commas); the order of columns is
                     free and further columns are ignored. Ids are integers counted from 0.
    visual, textual  ``.npy`` files, absolute or relative to ``folder``, of shape (n_items, width) and any float type;
                     None or "" for a modality that the data set does not have. Nothing is unpickled.
    name             what to call the data set; by default the interaction file's name without its ending.

    There are as many users as the highest user id of any split says. Items are the rows of the features where there
    are features (at least the highest item id plus one), else they too follow from the highest id. Users and items
    without training interactions are normal. The same pair twice in one split is an error; in two splits it is
    allowed, as in MMRec (a training pair is never ranked in evaluation: see ``describe`` for how many there are).

    Raises InputError naming the file, the line as an editor counts it or the row and column, the value, and what was
    expected.

        tiktok = load_mmrec("data/tiktok", visual="image_feat.npy", textual="audio_feat.npy")
        tiktok.n_users, tiktok.train.shape, tiktok.features["visual"].shape
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: expected a folder in MMRec's layout")
    try:
        path = _interaction_file(folder)
        table = _read_interactions(path)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    features = {m: _read_features(folder, f) for m, f in zip(MODALITIES, (visual, textual)) if f not in (None, "")}
    n_items = _count_items(path, table, features)
    split_of = table["x_label"].to_numpy()
    pairs = table[["userID", "itemID"]].to_numpy().T  # (2, n)
    n_users = int(pairs[0].max()) + 1
    check_graph_fits(f"{path}, by its highest ids", n_users, n_items)
    return Interactions.from_arrays(
        n_users=n_users,
        n_items=n_items,
        features={modality: array for modality, (array, _) in features.items()},
        name=name or path.stem,
        **{split: pairs[:, split_of == label] for label, split in enumerate(SPLITS)},
    )


def write_mmrec(data: Interactions, folder: str | os.PathLike) -> Path:
    """Write ``data`` to ``folder`` in MMRec's layout and return the folder.

    Makes ``NAME.inter`` and, for the modalities there are, ``image_feat.npy`` and ``text_feat.npy`` (float32). They
    appear when all are written, the interactions last. A folder that is not empty is refused (InputError; NotWritten
    where it cannot be written). So is a data set whose last user or item has neither an interaction nor a feature row,
    since the layout could not say that it exists: what is written loads again as the same users, items, interactions
    (in their order) and features.
    """
    folder = check_new_folder(folder)
    _check_last_ids(data)
    stem = re.sub(r"[^\w.-]+", "-", data.name).strip(".-") or "unnamed"
    with only_writer(folder), ExitStack() as files:
        check_new_folder(folder)  # now that no other process can change it
        table = files.enter_context(atomic_file(folder / f"{stem}.inter", "w"))
        for modality, array in data.features.items():
            file = files.enter_context(atomic_file(folder / FEATURE_FILES[modality], "wb"))
            np.save(file, array, allow_pickle=False)
        _interaction_table(data).to_csv(table, sep="\t", index=False, lineterminator="\n")
    return folder


def check_new_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, if ``write_mmrec`` could write a data set there: new, empty, or left unfinished by a killed one."""
    folder = check_folder(folder)
    unfinished = folder.is_dir() and any(folder.glob(".*.inter.*.tmp"))  # features appear before the interactions
    if not is_vacant(folder, FEATURE_FILES.values() if unfinished else ()):
        raise InputError(f"{folder}: exists already: expected a new or an empty folder to write to")
    return folder


# ---------------------------------------------------------------------------------------------- interactions


def _interaction_file(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in files if p.suffix == ".inter"]
    if not found:
        tables = [p for p in files if p.suffix in (".csv", ".tsv")]
        found = [p for p in tables if set(COLUMNS) <= set(_header(p)[0])]
    if len(found) == 1:
        return found[0]
    have = f"found {', '.join(p.name for p in found)}" if found else "found none"
    raise InputError(
        f"{folder}: {have}: expected exactly one interaction file, *.inter (or *.csv, *.tsv) "
        f"with the columns {', '.join(COLUMNS)}"
    )


def _lines(stream: io.BufferedReader | io.BytesIO) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1 as an editor numbers them."""
    for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace"), start=1):
        if line.strip(" \r\n"):
            yield number, line.rstrip("\r\n")


def _header(path: Path) -> tuple[list[str], str]:
    """The column names and the separator of ``path``; no names if it is empty."""
    with path.open("rb") as stream:
        line = next((line for _, line in _lines(stream)), "")
    separator = "," if path.suffix == ".csv" and "\t" not in line else "\t"
    return (line.split(separator) if line else []), separator


def _read_interactions(path: Path) -> pd.DataFrame:
    """The three columns as int64, every value checked."""
    names, separator = _header(path)
    if not names:
        raise InputError(f"{path} is empty: expected a header with {', '.join(COLUMNS)} and one line per interaction")
    for column in COLUMNS:
        if names.count(column) != 1:
            raise InputError(
                f"{path}: column {column} stands {names.count(column)} times in the header ({', '.join(names)[:200]}): "
                f"expected {', '.join(COLUMNS)} once each, separated by {'tabs' if separator == chr(9) else 'commas'}"
            )
    content = path.read_bytes()
    table = _parse(content, separator)
    separators = {line.count(separator.encode()) for line in content.splitlines() if line}
    if table is None or b"\0" in content or separators != {len(names) - 1}:  # pandas 2 ends a field at a NUL
        _raise_for_first_bad_line(path, content, names, separator)
    if table is None:
        raise InputError(f"{path} cannot be read: expected integers in {', '.join(COLUMNS)}")
    if len(table) == 0:
        raise InputError(f"{path} has a header and no interactions: expected at least one")
    _check_values(path, content, table)
    return table


def _parse(content: bytes, separator: str) -> pd.DataFrame | None:
    """The three columns as int64; None if anything in them is not an int64."""
    try:
        table = pd.read_csv(
            io.BytesIO(content),
            sep=separator,
            usecols=list(COLUMNS),
            index_col=False,
            quoting=3,  # quotes mean nothing
            encoding="utf-8-sig",
            encoding_errors="replace",
            low_memory=False,
        )
    except (ValueError, OverflowError):  # parser errors are ValueErrors
        return None
    if len(table) and any(dtype != np.int64 for dtype in table.dtypes):
        return None
    return table


def _raise_for_first_bad_line(path: Path, content: bytes, names: list[str], separator: str) -> None:
    """Raise for the first line with a wrong number of fields or an id or label that is not an integer, if any."""
    lines = _lines(io.BytesIO(content))
    next(lines)  # the header
    for number, line in lines:
        fields = line.split(separator)
        if len(fields) != len(names):
            raise InputError(f"{path}, line {number}: {len(fields)} fields: expected {len(names)}, as in the header")
        for column in COLUMNS:
            value = fields[names.index(column)]
            if not re.fullmatch(r" *[+-]?[0-9]{1,18} *", value):
                raise InputError(f"{path}, line {number}: {column} is {value[:80]!r}: expected an integer")


def _check_values(path: Path, content: bytes, table: pd.DataFrame) -> None:
    """Raise for the first id or label out of range, else for the first pair that repeats within its split."""
    for column, largest in (("userID", LARGEST_ID), ("itemID", LARGEST_ID), ("x_label", 2)):
        values = table[column].to_numpy()
        outside = np.flatnonzero((values < 0) | (values > largest))
        if outside.size:
            row = int(outside[0])
            expected = "0 (train), 1 (valid) or 2 (test)" if column == "x_label" else f"0 to {largest}"
            line = _line_of(content, row)
            raise InputError(f"{path}, line {line}: {column} is {values[row]}: expected {expected}")
    again = np.flatnonzero(table.duplicated(list(COLUMNS)).to_numpy())
    if again.size:
        user, item, label = (int(value) for value in table.iloc[again[0]][list(COLUMNS)])
        raise InputError(
            f"{path}, line {_line_of(content, int(again[0]))}: user {user} and item {item} stand in {SPLITS[label]} "
            f"already ({again.size} duplicates in all): expected each pair once in a split"
        )
    if not (table["x_label"] == 0).any():
        raise InputError(f"{path}: no line has x_label 0: expected at least one training interaction")


def _line_of(content: bytes, row: int) -> int:
    """The line, as an editor counts, of the interaction with index ``row``."""
    lines = _lines(io.BytesIO(content))
    for _ in range(row + 1):
        next(lines)
    return next(lines)[0]


def _interaction_table(data: Interactions) -> pd.DataFrame:
    parts = [(getattr(data, split), label) for label, split in enumerate(SPLITS)]
    users, items = np.concatenate([pairs for pairs, _ in parts], axis=1)
    labels = np.concatenate([np.full(pairs.shape[1], label) for pairs, label in parts])
    return pd.DataFrame(dict(zip(COLUMNS, (users, items, labels))))


def _check_last_ids(data: Interactions) -> None:
    pairs = np.concatenate([data.train, data.valid, data.test], axis=1)
    last_user, last_item = pairs.max(axis=1)
    for kind, last, count in (("user", last_user, data.n_users), ("item", last_item, data.n_items)):
        if last + 1 < count and not (kind == "item" and data.features):
            raise InputError(
                f"{data.name}: {kind} {count - 1} has no interaction in any split: "
                f"MMRec's layout cannot hold {kind}s after the last that has one ({last})"
            )


# ------------------------------------------------------------------------------------------------- features


def _read_features(folder: Path, file: str | os.PathLike) -> tuple[np.ndarray, Path]:
    path = folder / file
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in folder.glob("*.npy"))) or "none"
        raise InputError(f"{path}: no such file: expected a .npy file of item features (in {folder}: {have})")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # allocates nothing, and knows no pickle
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(f"{array.dtype} {array.shape} is less than the file holds")
    except Exception as error:  # whatever NumPy stumbles over in a damaged header
        raise InputError(
            f"{path} cannot be read as .npy ({error}): expected a float array (n_items, width) as numpy.save writes it"
        ) from error
    check_memory(f"{path}: shape {array.shape}", 8 * array.size)  # two copies as float32
    return checked_features(array, str(path)), path


def _count_items(path: Path, table: pd.DataFrame, features: dict[str, tuple[np.ndarray, Path]]) -> int:
    seen = int(table["itemID"].max()) + 1
    if not features:
        return seen
    rows = {len(array) for array, _ in features.values()}
    if len(rows) > 1:
        counts = " and ".join(f"{file} has {len(array)} rows" for array, file in features.values())
        raise InputError(f"{counts}: expected as many in both, one per item")
    for array, file in features.values():
        if len(array) < seen:
            raise InputError(f"{file} has {len(array)} rows: expected at least {seen}, one per item in {path.name}")
    return rows.pop()

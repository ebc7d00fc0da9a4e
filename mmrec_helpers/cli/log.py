"""``log``: MMRec's training logs as a table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "Read training logs of MMRec: one row an epoch"
EXAMPLES = """\
  python -m mmrec_helpers log GRCN-baby-Jan-15-2026-19-13-29.log
  python -m mmrec_helpers log logs/*.log --csv epochs.csv
"""
_FIRST_COLUMNS = b"model,dataset,modalities,"  # of a file that --csv may replace
_SIZES = (("n_users", "users"), ("n_items", "items"), ("n_train", "training interactions"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="log files that MMRec wrote")
    parser.add_argument("--csv", metavar="OUT", help="write every column to this file instead of printing")


def run(args: argparse.Namespace) -> int:
    import pandas as pd

    from mmrec_helpers.config import counted
    from mmrec_helpers.files import check_file, write_text
    from mmrec_helpers.mmrec import read_log

    if args.csv is not None:
        check_file(args.csv, "table of epochs", lambda path: path.read_bytes().startswith(_FIRST_COLUMNS))
    tables = {file: read_log(file) for file in args.files}
    if args.csv is not None:
        rows = pd.concat([_flat(table, Path(file).name) for file, table in tables.items()], ignore_index=True)
        write_text(args.csv, rows.to_csv(index=False, lineterminator="\n"))
        print(f"{counted(len(rows), 'epoch')} of {counted(len(tables), 'log')} written to {args.csv}")
        return 0
    for file, table in tables.items():
        if table.empty:
            print(f"{Path(file).name}: no epoch was finished\n")
        for _, epochs in table.groupby("run"):
            _print_run(Path(file).name, epochs)
    return 0


def _flat(table: pd.DataFrame, file: str) -> pd.DataFrame:
    """What a CSV can hold: modalities joined by "+", parameters as JSON, the file's name."""
    return table.assign(
        file=file,
        modalities=table["modalities"].map(lambda names: "+".join(names) if isinstance(names, tuple) else ""),
        parameters=table["parameters"].map(lambda given: json.dumps(given) if isinstance(given, dict) else ""),
    )


def _print_run(file: str, epochs: pd.DataFrame) -> None:
    """What the run was, in two lines; then its epochs, with the metrics that a terminal has room for."""
    import pandas as pd

    first = epochs.iloc[0]
    sizes = [f"{first[name]:,} {what}" for name, what in _SIZES if pd.notna(first[name])]
    modalities = "+".join(first["modalities"]) if isinstance(first["modalities"], tuple) else "modalities unknown"
    print(f"{file}: {first['model']} on {first['dataset']}, {modalities}; {', '.join(sizes) or 'sizes unknown'}")
    given = first["parameters"] if isinstance(first["parameters"], dict) else {}
    settings = ", ".join(f"{name} {value}" for name, value in given.items()) or "parameters unknown"
    print(f"run {first['run']}: {settings}; median epoch {epochs['epoch_s'].median():,.1f} s")
    metrics = [name for name in epochs if name.startswith(("valid.recall", "test.recall", "valid.ndcg", "test.ndcg"))]
    columns = ["epoch", "epoch_s", "loss", "valid_score", *metrics]
    print(epochs[columns].dropna(axis="columns", how="all").to_string(index=False, na_rep="-"), end="\n\n")

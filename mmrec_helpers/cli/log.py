"""``log``: MMRec's training logs as a table."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

SUMMARY = "Read training logs of MMRec: one row an epoch"
EXAMPLES = """\
  python -m mmrec_helpers log GRCN-baby-Jan-15-2026-19-13-29.log
  python -m mmrec_helpers log logs/*.log --csv epochs.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="log files that MMRec wrote")
    parser.add_argument(
        "--csv", default="", metavar="OUT", help="write all columns to this file instead of printing some"
    )


def run(args: argparse.Namespace) -> int:
    import pandas as pd

    from mmrec_helpers.config import InputError
    from mmrec_helpers.mmrec import read_log
    from mmrec_helpers.reporting.files import write_text

    for file in args.files:
        if not Path(file).is_file():
            raise InputError(f"{file}: no such file")
    table = pd.concat([read_log(file).assign(file=Path(file).name) for file in args.files], ignore_index=True)
    if args.csv:
        buffer = io.StringIO()
        table.to_csv(buffer, index=False)
        write_text(args.csv, buffer.getvalue())
        print(f"{len(table):,} epochs of {len(args.files)} log(s) in {args.csv}")
    else:
        constant = [c for c in table if len(table) > 1 and table[c].astype(str).nunique() == 1]
        for column in constant:
            print(f"{column:<12}{table[column].iloc[0]}")
        print(table.drop(columns=constant).to_string(index=False))
    return 0

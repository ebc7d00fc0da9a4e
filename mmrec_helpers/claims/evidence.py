"""The evidence behind the verdicts: this run's records and the committed ones, and links to the pages drawn from them.

``reports/evidence.txt`` names the folders of committed records (measured at length or on other machines), one per
line, relative to ``reports/``.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.claims.ledger import VERDICTS, Record, Verdict, ledger_table, load_claims, part_of
from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.files import project_root, reports_folder
from mmrec_helpers.records import find_records, read_record

LIST = "evidence.txt"
HOMES = {name: part.home for name, part in PARTS.items()} | {"accuracy": "09"}  # the study is no part of a run
_NEITHER = ("answer", "advice", "headline", "run", "quantities", "prediction", "kernels")  # kinds that measure nothing


def committed_records(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The records in the folders that ``evidence.txt`` of ``folder`` (default: the checkout's ``reports/``) names, each
    with its path as "source". None without such a file; a folder that is named and not there is an InputError."""
    base = Path(folder) if folder else reports_folder()
    if not (base / LIST).is_file():
        return []
    lines = [line.partition("#")[0].strip() for line in (base / LIST).read_text(encoding="utf-8").splitlines()]
    found = []
    for name in filter(None, lines):
        if not (base / name).is_dir():
            raise InputError(f"{base / LIST}: names {name!r}: there is no such folder")
        found += [read_record(path) | {"source": path} for path in sorted((base / name).rglob("*.json"))]
    return [record for record in found if record["kind"] not in _NEITHER]


def run_records(run_folder: str | Path) -> list[dict[str, Any]]:
    """The measurements of a run, each with its path as "source"."""
    folder = Path(run_folder)
    found = [record | {"source": folder / "records" / f"{n}.json"} for n, record in find_records(folder).items()]
    return [record for record in found if record["kind"] not in _NEITHER]


def ledger_with_links(verdicts: Sequence[Verdict], here: Iterable[Verdict], run_folder: str | Path) -> pd.DataFrame:
    """The ledger for reading, grouped by verdict: ``ledger_table`` with the columns this_run (what this run's records
    alone say, where that differs, else "") and evidence (links in Markdown, relative to ``run_folder``).

    verdicts  from all records at hand
    here      from this run's alone
    """
    own = {verdict.claim_id: verdict.verdict for verdict in here}
    table = ledger_table(verdicts).assign(
        this_run=[own[v.claim_id] if own[v.claim_id] != v.verdict else "" for v in verdicts],
        evidence=[evidence_links(v, run_folder) for v in verdicts],
    )
    return table.sort_values("verdict", key=lambda names: names.map(VERDICTS.index), kind="stable", ignore_index=True)


def evidence_links(verdict: Verdict, run_folder: str | Path) -> str:
    """Links to the pages (else the records) that a verdict rests on; "public logs" for published figures."""
    links = [_link(record, Path(run_folder)) for record in verdict.records]
    published = any(c.id == verdict.claim_id and "published" in c.decided_by for c in load_claims())
    return ", ".join(dict.fromkeys(links + ["public logs"] * published))


def _link(record: Record, run_folder: Path) -> str:
    source: Path = record["source"]
    run, page = source.parent.parent, _page_of(part_of(record))
    own = run.resolve() == run_folder.resolve()
    if page and source.parent.name == "records" and (own or (run / f"{page}.html").is_file()):
        text, target = page if own else f"{run.name}, {page}", run / f"{page}.html"
    else:
        text, target = f"{source.parent.name}/{source.stem}", source
    return f"[{text}]({Path(os.path.relpath(target.resolve(), run_folder.resolve())).as_posix()})"


def _page_of(part: str) -> str | None:
    """The name of the notebook that is a part's home; None for a part that has none, or without a checkout."""
    root = project_root()
    names = root.glob(f"notebooks/{HOMES[part]}-*.ipynb") if root and part in HOMES else []
    return next((path.stem for path in sorted(names)), None)

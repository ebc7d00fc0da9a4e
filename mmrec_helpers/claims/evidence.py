"""The evidence behind the verdicts: this run's records and the committed ones, and links to the pages drawn from them.

``reports/evidence.txt`` names the folders of committed records (measured at length or on other machines), one a line,
relative to ``reports/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.claims.ledger import Claim, Missing, Records, Verdict
from mmrec_helpers.config import InputError
from mmrec_helpers.files import project_root, reports_folder
from mmrec_helpers.records.record import find_records, read_record

LIST = "evidence.txt"
_NEITHER = ("answer", "headline", "run")  # kinds that measure nothing


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


def ledger_with_links(
    claims: Iterable[Claim], verdicts: Iterable[Verdict], here: Iterable[Verdict], records: Records, run_folder: Path
) -> pd.DataFrame:
    """The ledger as Markdown text, one row a claim: claim, verdict, why (the numbers and the machine), what this run's
    records alone say, and links to the evidence, relative to ``run_folder``."""
    rows = [
        {
            "claim": claim.claim,
            "verdict": f"**{verdict.verdict}**",
            "why": f"{verdict.sentence} *{verdict.machine}*" if verdict.machine else verdict.sentence,
            "on this run": own.verdict,
            "evidence": evidence_links(claim, records, run_folder),
        }
        for claim, verdict, own in zip(claims, verdicts, here, strict=True)
    ]
    return pd.DataFrame(rows)


def evidence_links(claim: Claim, records: Records, run_folder: Path) -> str:
    """Links to the pages (else the records) of the kinds that decide a claim; "public logs" for published figures."""
    links = []
    for kind in claim.decided_by:
        if kind == "published":
            links.append("public logs")
            continue
        try:
            links.append(_link(records.nearest(kind), run_folder))
        except Missing:
            links.append(f"no {kind} yet")
    return ", ".join(dict.fromkeys(links))


def _link(record: Mapping[str, Any], run_folder: Path) -> str:
    source: Path = record["source"]
    number = source.name[:2]
    run = source.parent.parent
    page = _page_name(number) if source.parent.name == "records" else None
    own = run.resolve() == run_folder.resolve()
    if page and (own or (run / f"{page}.html").is_file()):
        text, target = (number, run / f"{page}.html") if own else (f"{run.name} {number}", run / f"{page}.html")
    else:
        text, target = f"{source.parent.name}/{source.stem}", source
    return f"[{text}]({Path(os.path.relpath(target.resolve(), run_folder.resolve())).as_posix()})"


def _page_name(number: str) -> str | None:
    """The name of the notebook of that number; None if it has none."""
    root = project_root()
    names = sorted(path.stem for path in (root / "notebooks").glob(f"{number}-*.ipynb")) if root else []
    return names[0] if names else None

"""The pages around the notebooks: a run's ``index.html``, the list of runs, and the links between pages.

Everything on them is drawn from records.
"""

import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from mmrec_helpers.config import counted
from mmrec_helpers.experiments.quantities import quantity_text
from mmrec_helpers.files import write_text
from mmrec_helpers.pages.html import markdown_to_html, stylesheet
from mmrec_helpers.records.record import find_records, read_record, readable_records

_TEMPLATES = Path(__file__).parent / "template"
_GENERATOR = '<meta name="generator" content="mmrec_helpers">'  # how an index of ours is told from another page
_LINKS = re.compile(r"<!--pages-->.*?<!--/pages-->", re.DOTALL)
# the cards that stand open; the others are folded
_FIRST = ("grcn.epoch", "grcn-to-dragon.step", "grcn.dead-calls", "grcn-fused.factor", "grcn-fused.memory")
# The cards that stand open; the others are folded.
_FIRST = ("grcn.epoch", "grcn-to-dragon.step", "grcn.dead-calls", "grcn-fused.factor", "grcn-fused.memory")
_STATES = {
    "running": "still running",
    "complete": "complete",
    "partial": "incomplete: not all notebooks were run",
    "stopped": "incomplete: stopped at a failure",
    "interrupted": "incomplete: interrupted",
}
_PAGE_STATES = {"pending": "not run", "failed": "stopped", "interrupted": "interrupted", "done": ""}


def build_index(run_folder: str | Path) -> Path:
    """Write ``<run>/index.html`` from the run's records; raises InputError when there is no record of the run."""
    run_folder = Path(run_folder)
    run = read_record(run_folder / "records" / "run.json", "run")["content"]
    records = find_records(run_folder)
    above = [r["content"]["answer"] for r in records.values() if r["kind"] == "advice"]  # page 00's answer, too
    answers = {
        r["content"]["page"]: r["content"]
        for r in records.values()
        if r["kind"] == "answer" and r["content"]["answer"] not in above
    }
    headlines = [item for r in records.values() if r["kind"] == "headline" for item in r["content"]]
    page = (
        _environment()
        .get_template("run.html.j2")
        .render(
            title=run["title"],
            state=run["state"],
            state_text=_state_text(run),
            pages=[_page(page, answers.get(page["name"]), run_folder) for page in run["pages"]],
            advice=next(
                (markdown_to_html(r["content"]["answer"]) for r in records.values() if r["kind"] == "advice"), ""
            ),
            first=[_headline(item, run_folder) for item in headlines if item["quantity"] in _FIRST],
            more=[_headline(item, run_folder) for item in headlines if item["quantity"] not in _FIRST],
            records=[{"file": f"records/{name}.json", "name": name, "kind": r["kind"]} for name, r in records.items()],
            facts=_facts(records),
            provenance=_provenance_rows(records),
            parameters=run["parameters"],
        )
    )
    return write_text(run_folder / "index.html", page)


def build_reports_index(reports_folder: str | Path) -> Path | None:
    """Write ``<reports>/index.html``: the runs below it that have a record of themselves, the newest first.

    An ``index.html`` there that is not of this kind stays as it is; returns None then.
    """
    reports_folder = Path(reports_folder)
    target = reports_folder / "index.html"
    if target.exists() and _GENERATOR not in target.read_text(encoding="utf-8", errors="replace"):
        return None
    runs = []
    for path in readable_records(sorted(reports_folder.glob("*/records/run.json"))):
        records = {file.stem: r for file, r in readable_records(sorted(path.parent.glob("*.json"))).items()}
        run = records["run"]["content"]
        time = records["run"]["provenance"]["time"]
        link = f"{path.parent.parent.name}/index.html"
        runs.append({"link": link, "title": run["title"], "time": time, "state": _state_text(run)} | _facts(records))
    runs.sort(key=lambda run: run["time"], reverse=True)
    return write_text(target, _environment().get_template("runs.html.j2").render(runs=runs))


def link_pages(run_folder: str | Path) -> None:
    """Bring the links between a run's pages up to date: to the index, and to the neighbours that exist."""
    run_folder = Path(run_folder)
    run = read_record(run_folder / "records" / "run.json", "run")["content"]
    pages = [page for page in run["pages"] if page["file"] and (run_folder / page["file"]).exists()]
    for at, page in enumerate(pages):
        before, after = pages[at - 1] if at else None, pages[at + 1] if at + 1 < len(pages) else None
        links = '<a class="up" href="index.html">All pages of this run</a>'
        links += _link("prev", "←", before) + _link("next", "→", after)
        path = run_folder / page["file"]
        old = path.read_text(encoding="utf-8")
        new = f"<!--pages-->{links}<!--/pages-->".join(_LINKS.split(old))
        if new != old:
            write_text(path, new)


def _link(relation: str, arrow: str, page: dict[str, Any] | None) -> str:
    if page is None:
        return ""
    title = escape(page["title"])
    text = f"{arrow} {title}" if relation == "prev" else f"{title} {arrow}"
    return f'<a class="{relation}" rel="{relation}" href="{escape(page["file"])}">{text}</a>'


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["generator"] = _GENERATOR
    environment.globals["css"] = stylesheet("page.css", "shared.css")
    return environment


def _state_text(run: dict[str, Any]) -> str:
    failed = next((page for page in run["pages"] if page["state"] == "failed"), None)
    text = _STATES.get(run["state"], run["state"])
    if run["state"] == "stopped" and failed:
        text += f" in {failed['name']}, code cell {failed['cell']}"
    return text


def _advice(records: dict[str, Any]) -> str:
    found = [r["content"]["answer"] for r in records.values() if r["kind"] == "advice"]
    return markdown_to_html(found[0]) if found else ""


def _page(page: dict[str, Any], answer: dict[str, Any] | None, run_folder: Path) -> dict[str, Any]:
    exists = page["file"] and (run_folder / page["file"]).exists()
    state = _PAGE_STATES.get(page["state"], page["state"])
    if page["state"] == "failed":
        state = f"stopped at code cell {page['cell']}: {page['error']}"
    return {
        "link": page["file"] if exists else None,
        "number": page["name"][:2],
        "title": page["title"],
        "answer": markdown_to_html(answer["answer"]) if answer and page["state"] == "done" else "",
        "state": state,
        "bad": page["state"] in ("failed", "interrupted"),
        "seconds": page["seconds"],
    }


def _headline(item: dict[str, Any], run_folder: Path) -> dict[str, Any]:
    link = f"{item['page']}.html"
    value = quantity_text(item["quantity"], item["value"], unit=False, mark=True)
    return item | {"value": value, "link": link if (run_folder / link).exists() else None}


def _measured(records: dict[str, Any]) -> dict[str, Any]:
    """The provenance of the first record that was measured on data; else of the run itself."""
    with_data = [r["provenance"] for r in records.values() if r["provenance"]["data"]]
    return with_data[0] if with_data else next(iter(records.values()))["provenance"]


def _facts(records: dict[str, Any]) -> dict[str, str]:
    about = _measured(records)
    device, machine = about["device"], about["machine"]
    data = about["data"] and (
        "{name}: {n_users:,} users, {n_items:,} items, {n_train:,} training interactions".format(**about["data"])
    )
    where = device["name"] if device["type"] == "cuda" else f"{machine['cpu']}, {counted(machine['threads'], 'thread')}"
    return {"data": data or "", "machine": where, "when": about["time"][:16].replace("T", " ")}


def _provenance_rows(records: dict[str, Any]) -> list[tuple[str, str]]:
    """What the run's measurements were made with, for reading: a label and a text each."""
    about = _measured(records)
    data, device, machine, code = about["data"], about["device"], about["machine"], about["code"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {_gibibytes(machine['memory_bytes'])}, {machine['platform']}"
    rows = [
        ("data", f"{data['name']}, fingerprint {data['fingerprint']}" if data else None),
        ("seed", about["seed"]),
        ("machine", f"{cpu}; {counted(machine['threads'], 'thread')} used"),
        ("device", _device(device)),
        ("allocator", ", ".join(f"{k}={v}" for k, v in about["allocator"].items()) or "the system's defaults"),
        ("software", ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v)),
        ("code", code["commit"] and code["commit"][:12] + (", modified" if code["modified"] else "")),
        ("size", _size(code)),
        ("time", about["time"].replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(label, "–" if text is None else str(text)) for label, text in rows]


def _device(device: dict[str, Any]) -> str:
    if device["type"] != "cuda":
        return device["type"].upper()
    memory = _gibibytes(device["memory_bytes"])
    return f"{device['name']}, {memory}, CUDA {device['cuda']}, driver {device['driver'] or 'unknown'}"


def _size(code: dict[str, Any]) -> str | None:
    """Of the code that made the records; None for records from before it was kept."""
    if "lines" not in code:
        return None
    return f"{code['lines']:,} lines in {code['files']} files, {code['dependencies']} packages needed to run it"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

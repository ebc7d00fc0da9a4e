"""Notebooks drawn from records in which all is equal, none or one say so: no sentence reads as a template."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from mmrec_helpers.config import counted, listed
from mmrec_helpers.pages import sentences
from tests.conftest import SMALL

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
DRAWN = [path for path in NOTEBOOKS if path.stem[:2] in ("02", "03", "04", "05", "07", "08", "10", "11", "12")]
TEMPLATE = {
    "a count of none": r"(?<![\d.,:/-])0 (?:of|[a-z]+s)\b(?! to \d)",
    "one of many": r"(?<![\d.,])1 (?!ms|is|was|has|as|its|times)[a-z]*[a-rt-z]s\b",
    "a share of none": r"(?<![\d.,])0(?:\.0+)? ?%",
    "no number": r"\b(?:nan|inf|NaN|None(?! (?:is|takes)))\b",
    "a span of nothing": r"(?<![\d.,])([\d.,]+) to \1(?![\d.,])(?! iter)",
    "an empty list": r"(?:: *[.;]|, *[.;,]|\(\)|\*\*\*\*)",
}
RATIO = {"median", "q1", "q3"}


def complaints(text):
    """What in a sentence reads as a template: what is wrong, and the words around it."""
    return [
        f"{what}: {text[max(0, match.start() - 30) : match.end() + 20]}"
        for what, pattern in TEMPLATE.items()
        for match in re.finditer(pattern, text)
    ]


def equal(key, value):
    """Every ratio 1, every time the same, no noise and no difference at all."""
    if isinstance(value, dict) and value.keys() >= RATIO:
        return value | dict.fromkeys(RATIO, 1.0) | ({"noise": 0.0} if "noise" in value else {})
    if key in ("share", "ratio_of_medians", "epoch_ratio", "memory_ratio"):
        return 1.0
    if key in ("median_ms", "q1_ms", "q3_ms", "step_ms") and isinstance(value, float):
        return 100.0
    return 0.0 if str(key).endswith("_difference") and value is not None else value


def nothing(key, value):
    """All within noise; nothing copied, narrowed, compiled, agreed on or without a gradient; no validation."""
    known = {"noise": 9.0, "receives_gradient": True, "edge_bytes": {}, "agree": 0, "agrees": True, "exact": False}
    known |= {"validation_s": 0.0, "sampling_s": 0.0, "unattributed_share": 0.0, "default_malloc": None}
    known |= {"graphs": value if isinstance(value, dict) else 0}
    return known.get(key, value) if value is not None else value


def one(key, value):
    """One step in an epoch, one profiled, one graph compiled, one parameter unused, one variant left out."""
    known = dict.fromkeys(("steps_per_epoch", "launches_per_step", "user_graph_runs", "agree", "names"), 1)
    known |= {"graphs": value if isinstance(value, dict) else 1}
    known |= {"left_out": [{"variant": "x", "label": "GRCN, elsewhere", "reason": "it needs a GPU"}]}
    known |= {"step": 0}
    if key == "profiled_step_ms":
        return value[:1]
    if key == "parameters" and isinstance(value, list) and isinstance(value[0], dict):
        return [row | {"receives_gradient": at > 0} for at, row in enumerate(value)]
    return known.get(key, value) if value is not None else value


def doctored(value, change, key=None):
    value = change(key, value) if change else value
    if isinstance(value, dict):
        return {name: doctored(inner, change, name) for name, inner in value.items()}
    return [doctored(inner, change) for inner in value] if isinstance(value, list) else value


def said_by(notebook, run, folder, change, monkeypatch):
    """The sentences that a notebook shows, drawn from the run's records after a change."""
    elsewhere, said = folder / "changed", []
    elsewhere.mkdir()
    for path in (run / "records").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["content"] = doctored(record["content"], change)
        (elsewhere / path.name).write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr("IPython.display.display", lambda data, **_: said.append(data))
    names = SMALL | {"run": str(folder / "run"), "records": str(elsewhere)}
    space = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook.stem, "exec"), space)
            space |= names if "parameters" in cell.metadata.get("tags", []) else {}
    shown = [data for data in said if "text/markdown" in data or 'class="answer"' in data.get("text/html", "")]
    return [data["text/plain"] for data in shown]


@pytest.mark.parametrize("change", [None, equal, nothing, one], ids=["as measured", "equal", "nothing", "one"])
@pytest.mark.parametrize("notebook", DRAWN, ids=lambda path: path.stem[:2])
def test_sentences_are_written_for_the_numbers_that_they_hold(notebook, change, run, tmp_path, monkeypatch):
    said = said_by(notebook, run, tmp_path, change, monkeypatch)
    assert len(said) >= 5
    assert [complaint for text in said for complaint in complaints(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Sampling is 0.0 % of an epoch at most.",
        "0 arms could not run here.",
        "0 of 4 trainings would still move.",
        "In 1 steps of GRCN.",
        "The 1 stages that move bytes.",
        "It takes nan times as long.",
        "Peaks are 1.2 to 1.2 times the predicted ones.",
        "Slower than the reference: .",
        "Autocast narrows **** of them.",
    ],
)
def test_a_template_would_be_found(text):
    assert len(complaints(text)) == 1


@pytest.mark.parametrize("text", ["1.0 times, 10 of 12 in 1 ms, 100 % and 0.05%", "0 to 3 iterations: 1 step is 0.1 s"])
def test_plain_sentences_are_left_alone(text):
    assert complaints(text) == []


def test_counts_shares_and_spans_in_words():
    lists = [listed(names) for names in ([], ["a"], ["a", "b, c"], ["a", "b", "c"], ["a", "b, c", "d"])]
    assert lists == ["none", "a", "a and b, c", "a, b and c", "a; b, c; and d"]
    assert [counted(count, "step") for count in (0, 1, 2000)] == ["no steps", "1 step", "2,000 steps"]
    shares = [sentences.share_of(n, total, "stage") for n, total in ((0, 7), (3, 7), (7, 7), (2, 2), (1, 1), (0, 0))]
    assert shares == ["no stage", "3 of 7 stages", "all 7 stages", "both stages", "the only stage", "no stage"]
    assert (sentences.spanned(1.201, 1.2, 2), sentences.spanned(1, 1.5)) == ("1.2", "1 to 1.50")
    assert [sentences.as_long(x) for x in (1.0, "<data>1 times</data>", 1.35)] == [
        *["as long"] * 2,
        "1.35 times as long",
    ]
    assert [sentences.percent(x) for x in (0.42, 0.0000468)] == ["42%", "0.0047%"]
    assert sentences.which(["a", "b"], "Slower:", "None.") == "Slower: a and b."
    assert sentences.which([], "Slower:", "None.") == "None."

"""Every notebook of the collection, run in order on a tenth of the embedded data set: pages, records, verdicts."""

import pytest
from bs4 import BeautifulSoup

from mmrec_helpers.pages.collection import find_notebooks, run_order
from mmrec_helpers.pages.html import external_requests
from mmrec_helpers.pages.runner import run_collection
from mmrec_helpers.records import find_records

NOTEBOOKS = find_notebooks()
SMALL = {"dataset": "embedded", "scale": 0.1, "device": "cpu", "repeats": 3, "epochs": 1, "batch_size": 512}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_collection(run_order(NOTEBOOKS), folder, SMALL, title="small", device="cpu")
    return folder


@pytest.fixture(scope="module")
def records(run):
    return find_records(run)


@pytest.mark.parametrize("name", [notebook.name for notebook in NOTEBOOKS])
def test_each_page_stands_alone_and_opens_with_its_answer(run, name):
    html = (run / f"{name}.html").read_text(encoding="utf-8")
    page = BeautifulSoup(html, "html.parser")
    assert external_requests(html) == []
    assert page.h1
    assert page.find(class_="answer")
    assert not page.find(class_="error")
    assert all(image.get("alt") for image in page.find_all("img"))
    assert "Traceback" not in html
    assert "UserWarning" not in html


def test_no_page_or_record_tells_a_path_of_this_machine(run):
    for file in [*run.glob("*.html"), *run.glob("records/*.json")]:
        text = file.read_text(encoding="utf-8")
        assert str(run) not in text, file.name
        assert "site-packages" not in text, file.name


def test_the_records_hold_what_the_notebooks_measured(records):
    kinds = {record["kind"] for record in records.values()}
    wanted = {"data", "structure.grcn", "structure.dragon", "epoch", "training", "routing", "attention", "dead-work"}
    assert wanted | {"roofline", "answer", "headline"} <= kinds
    epoch = next(r for r in records.values() if r["kind"] == "epoch")["content"]
    for model in epoch["models"]:
        parts = sum(row["ms"] for row in model["regions"])
        assert parts == pytest.approx(sum(model["profiled_step_ms"]) / model["steps"], rel=0.05)
        assert model["epoch_s"] == pytest.approx(model["steps_s"] + model["sampling_s"])


def test_the_index_lists_every_page_with_its_answer_and_the_headlines(run):
    page = BeautifulSoup((run / "index.html").read_text(encoding="utf-8"), "html.parser")
    links = {a["href"] for a in page.find_all("a", href=True)}
    assert {f"{notebook.name}.html" for notebook in NOTEBOOKS} <= links
    text = page.get_text()
    assert "GRCN over DRAGON, a step" in text
    assert "Dead calls in GRCN's step" in text


def test_the_start_page_decides_the_claims_that_these_records_decide(run):
    text = BeautifulSoup((run / "00-start-here.html").read_text(encoding="utf-8"), "html.parser").get_text(" ")
    assert "Every iteration refines the user preferences." in text
    assert "refuted" in text

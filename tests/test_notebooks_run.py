"""Every notebook of the collection, run in order on a tenth of the embedded data set: pages, records, verdicts."""

import shutil

import pytest
from bs4 import BeautifulSoup

from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.experiments.epoch import epoch_table, stage_times
from mmrec_helpers.experiments.quantities import quantities
from mmrec_helpers.pages.collection import find_notebooks
from mmrec_helpers.pages.html import external_requests
from mmrec_helpers.pages.notebook import ACCOUNT
from mmrec_helpers.records import find_records

NOTEBOOKS = find_notebooks()


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
    on_a_cpu = {part.kind for part in PARTS.values() if part.default is True}
    assert on_a_cpu | {"quantities", "answer", "headline", "accuracy"} <= kinds


def test_tables_of_an_epoch_a_step_and_its_stages_add_up(records):
    epoch, steps = (records[PARTS[name].record]["content"] for name in ("epoch", "steps"))
    table = epoch_table(epoch, steps)
    stages = stage_times(epoch, steps).groupby("model")["ms"].sum()
    assert stages.reindex(table.index).to_numpy() == pytest.approx(table["step_ms"].to_numpy())
    assert table["epoch_s"].to_numpy() == pytest.approx((table["steps_s"] + table["sampling_s"]).to_numpy())


def contradictions(run):
    """Where a page states another value for a registered quantity than the run's account, or another text than a page
    before it: "page: quantity value, account"."""
    account = {row["quantity"]: row["value"] for row in find_records(run, "quantities")[ACCOUNT]["content"]}
    texts, found = {}, []
    for path in sorted(run.glob("*.html")):
        for mark in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select("data.quantity"):
            name, value, text = mark["data-quantity"], float(mark["value"]), mark.get_text().rstrip("%").split()[0]
            first = texts.setdefault(name, text)
            if value != pytest.approx(account.get(name), rel=1e-5) or text != first:
                found.append(f"{path.name}: {name} {mark.get_text()}, {account.get(name)}")
    return texts, found


def test_no_two_pages_state_different_values_for_one_quantity(run):
    stated, found = contradictions(run)
    assert found == []
    assert len(stated) >= 20


def test_a_contradiction_would_be_found(run, tmp_path):
    shutil.copytree(run / "records", tmp_path / "records")
    page = (run / "04-epoch.html").read_text(encoding="utf-8")
    (tmp_path / "04-epoch.html").write_text(
        page.replace('data-quantity="grcn.epoch" value="', 'data-quantity="grcn.epoch" value="1')
    )
    assert "04-epoch.html: grcn.epoch" in contradictions(tmp_path)[1][0]


def test_every_registered_quantity_that_this_run_measured_is_in_its_account(run):
    account = {row["quantity"] for row in find_records(run, "quantities")[ACCOUNT]["content"]}
    assert account == set(quantities())


def test_the_index_lists_every_page_with_its_answer_and_the_headlines(run):
    page = BeautifulSoup((run / "index.html").read_text(encoding="utf-8"), "html.parser")
    links = {a["href"] for a in page.find_all("a", href=True)}
    assert {f"{notebook.name}.html" for notebook in NOTEBOOKS} <= links
    assert quantities()["grcn-to-dragon.step"].label in page.get_text()


def test_the_start_page_decides_the_claims_that_these_records_decide(run):
    text = BeautifulSoup((run / "00-start-here.html").read_text(encoding="utf-8"), "html.parser").get_text(" ")
    assert "Every iteration refines the user preferences." in text
    assert "refuted" in text

"""Epoch records of several data sets side by side."""

import json

import pytest
from matplotlib.figure import Figure

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.anatomies import epoch_table, step_regions
from mmrec_helpers.pages.readme_figure import draw_readme_figure
from mmrec_helpers.plots import anatomies_side_by_side
from tests.test_ledger import record


def epoch(name, n_train, settings="plain", step_ms=10.0):
    regions = [
        {"region": "routing.visual.0", "phase": "forward", "ms": 15.0},
        {"region": "loss", "phase": "backward", "ms": 5.0},
    ]
    models = [{"model": model, "regions": regions} for model in ("GRCN", "DRAGON")]
    ratio = {"median": 1.0, "q1": 0.9, "q3": 1.1, "rounds": 3}
    heaps = [
        {"heap": heap, "step_ms_median": dict.fromkeys(("GRCN", "DRAGON"), ms), "ratio_grcn_to_dragon": ratio}
        for heap, ms in (("default malloc", 3 * step_ms), ("malloc trimming disabled", step_ms))
    ]
    content = {"settings_name": settings, "batch_size": 8, "models": models, "heaps": heaps}
    return record("epoch", content, name=name, n_train=n_train)


def test_plain_settings_and_small_data_come_first_and_regions_add_up_to_the_unprofiled_step():
    records = [epoch("big", 1000), epoch("big", 1000, "diagnosed"), epoch("small", 10)]
    steps, table = step_regions(records), epoch_table(records)
    assert list(zip(table["data"], table["settings"])) == [("small", "plain"), ("big", "plain"), ("big", "diagnosed")]
    first = steps[(steps["data"] == "small") & (steps["model"] == "GRCN")]
    assert first["ms"].tolist() == pytest.approx([7.5, 2.5])


def test_without_records_there_is_nothing():
    assert step_regions([]).empty
    assert epoch_table([]).empty


def test_each_bar_has_its_milliseconds_and_shares_end_at_a_hundred():
    left, right = Figure().subplots(1, 2)
    anatomies_side_by_side(left, right, step_regions([epoch("small", 10), epoch("big", 1000, step_ms=1234.0)]))
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "small, GRCN",
        "small, DRAGON",
        "big, GRCN",
        "big, DRAGON",
    ]
    assert {text.get_text().strip() for text in right.texts} == {"10 ms", "1,234 ms"}
    ends = {round(bar.get_x() + bar.get_width(), 6) for bar in left.patches}
    assert 100.0 in ends
    assert max(ends) == 100.0


def test_the_readme_figure_shows_the_plain_records_and_is_the_same_file_each_time(tmp_path):
    records = tmp_path / "anatomy" / "records"
    records.mkdir(parents=True)
    for name, settings in (("small", "plain"), ("big", "diagnosed")):
        (records / f"{name}.json").write_text(json.dumps(epoch(name, 10, settings)))
    drawn = draw_readme_figure(tmp_path).read_bytes()
    assert b"small, GRCN" in drawn
    assert b"big, GRCN" not in drawn
    assert draw_readme_figure(tmp_path).read_bytes() == drawn


def test_without_plain_records_the_readme_figure_stays_as_it_is(tmp_path):
    (tmp_path / "step-anatomy.svg").write_text("old")
    with pytest.raises(InputError, match=r"anatomy: no record of kind epoch under the plain settings"):
        draw_readme_figure(tmp_path)
    assert (tmp_path / "step-anatomy.svg").read_text() == "old"

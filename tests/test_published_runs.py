"""What published logs say: runs summarised, epochs taken apart, comparisons."""

import pandas as pd
import pytest

from mmrec_helpers.claims import published_runs
from mmrec_helpers.mmrec import read_log

LOG = """\
Thu 15 Jan 2026 19:13:29 INFO
model={model}
dataset=Toy
n_layers={layers}
train_batch_size=4096
use_amp=True
vision_feature_file=a.npy
text_feature_file={text}

Thu 15 Jan 2026 19:13:30 INFO
============1/1: Parameters:['seed']=(999,)=======
Thu 15 Jan 2026 19:13:40 INFO epoch 0 training [time: 10.00s, train loss: 0.5]
Thu 15 Jan 2026 19:13:52 INFO epoch 1 training [time: 12.00s, train loss: 0.4]
"""


def summary(tmp_path, **changes):
    path = tmp_path / "GRCN-Toy-Jan-15-2026-19-13-29.log"
    path.write_text(LOG.format(**{"model": "GRCN", "layers": 1, "text": "t.npy"} | changes))
    return published_runs.run_summary({path.name: read_log(path)}).iloc[0]


def test_a_run_is_summarised_with_its_settings(tmp_path):
    row = summary(tmp_path)
    assert (row["model"], row["modalities"], row["epochs"]) == ("GRCN", "visual+textual", 2)
    assert (row["median_s"], row["min_s"], row["max_s"]) == (11, 10, 12)
    assert (row["n_layers"], row["train_batch_size"]) == (1, 4096)


def test_runs_differ_only_where_their_settings_do(tmp_path):
    both, visual = summary(tmp_path), summary(tmp_path, text="")
    assert published_runs.differences(both, visual) == {"modalities": ("visual+textual", "visual")}
    assert published_runs.differences(both, both) == {}


def test_each_pair_of_runs_says_where_it_does_not_match(tmp_path):
    grcn, dragon = summary(tmp_path), summary(tmp_path, model="DRAGON", text="")
    dragon["median_s"] = 5.5
    table = published_runs.match_table(pd.DataFrame([grcn, dragon]))
    assert len(table) == 1
    assert table["ratio"][0] == 2
    assert table["differences"][0] == "modalities: visual+textual against visual"
    dragon["modalities"] = grcn["modalities"]
    assert published_runs.match_table(pd.DataFrame([grcn, dragon]))["differences"][0] == "none"


def test_an_epoch_is_taken_apart_into_all_lines_that_the_points_allow():
    parts = published_runs.decompose((1, [100, 110]), (3, [160]))
    assert parts.per_iteration_s == (25, 30)
    assert parts.fixed_s == (70, 85)
    assert parts.predicted_s(1) == (100, 110)
    assert parts.predicted_s(3) == (160, 160)
    assert parts.ratio(3, 1) == pytest.approx((160 / 110, 160 / 100))


def test_the_published_figures_give_the_reported_ratio_and_that_under_equal_settings():
    table = published_runs.comparison_table()
    assert table["ratio_low"][0] == pytest.approx(1575.34 / 228)
    assert table["ratio_high"][2] < table["ratio_low"][1] < table["ratio_low"][0]
    assert published_runs.published_interactions() == (4_082_045, [1_239_508, 726_065, 298_492])
    assert published_runs.span(published_runs.logged_epochs("DRAGON", "only")) == "215 to 243"
    assert len(published_runs.published_summary()) == 11
    assert published_runs.published_decomposition().predicted_s(1) == pytest.approx((1026.83, 1192.76))

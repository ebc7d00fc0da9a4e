"""The memory settings: each alone and all together, on a small data set; types and held bytes by hand."""

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.epoch import step_runners
from mmrec_helpers.experiments.memory_settings import (
    ALL,
    CHECKPOINTING,
    HOST,
    NONE,
    PRECISION,
    arms,
    arms_table,
    edge_bytes,
    held_bytes,
    largest_table,
    measure_memory_settings,
    types_table,
)
from mmrec_helpers.models import build
from mmrec_helpers.plots import memory_timeline, stage_legend, time_against_memory
from mmrec_helpers.training import TrainSettings


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.2)


@pytest.fixture(scope="module")
def content(data):
    return measure_memory_settings(data, precision="bfloat16", batch_size=256, repeats=3)


def test_every_setting_is_measured_for_both_models(content):
    rows = {(row["model"], row["arm"]): row for row in content["arms"]}
    assert set(rows) == {(m, arm) for m in ("GRCN", "DRAGON") for arm in (NONE, CHECKPOINTING, PRECISION, HOST, ALL)}
    for (model, arm), row in rows.items():
        assert row["total_bytes"] == row["peak_bytes"] + row["held_bytes"]
        assert row["step_ms_q1"] <= row["step_ms_median"] <= row["step_ms_q3"]
        assert row["checkpointing"] == (arm in (CHECKPOINTING, ALL)), model
        assert (row["mixed_precision"] is None) == (arm in (NONE, CHECKPOINTING, HOST))
        assert (row["predicted_bytes"] is None) == (arm in (PRECISION, ALL))
    assert rows["GRCN", NONE]["time_ratio"]["median"] == 1
    assert rows["GRCN", CHECKPOINTING]["peak_bytes"] < 0.6 * rows["GRCN", NONE]["peak_bytes"]


def test_on_a_cpu_nothing_is_said_to_be_copied(content, data):
    hosted = [row for row in content["arms"] if row["features_on_host"]]
    assert [row["copied_bytes"] for row in hosted] == [None] * 4
    by_shape = sum(data.n_items * values.shape[1] * 4 for values in data.features.values())
    assert content["features"]["bytes_per_step"] == by_shape
    assert content["features"]["bytes_per_epoch"] == by_shape * content["steps_per_epoch"]


def test_the_tables_and_drawings_take_what_a_record_holds(content):
    table = arms_table(content)
    assert len(table) == 10
    assert table.loc[table["setting"] == PRECISION, "predicted, MB"].isna().all()
    assert set(types_table(content)["setting"]) == set(arms())
    assert {"MB", "model", "region", "operator"} <= set(largest_table(content, rows=2).columns)
    assert len(largest_table(content, rows=2)) == 4
    timeline = pd.DataFrame(content["profiles"][0]["timeline"])
    left, right = Figure().subplots(1, 2)
    memory_timeline(left, timeline, predicted_bytes=2e6)
    stage_legend(left, timeline["region"])
    assert "final attention" in {text.get_text() for text in left.get_legend().get_texts()}
    rows = [("GRCN", NONE, 1.0, 1.0, 1.0, 1.0), ("GRCN", CHECKPOINTING, 1.4, 1.3, 1.5, 0.5)]
    time_against_memory(right, pd.DataFrame(rows, columns=["model", "arm", "time", "q1", "q3", "memory"]))
    assert {"GRCN", NONE, CHECKPOINTING} <= {text.get_text() for text in right.get_legend().get_texts()}


def test_held_bytes_count_each_storage_once(data):
    model = build("grcn", data, backend="reference")
    (runner,) = step_runners({"grcn": model}, data, TrainSettings(batch_size=64)).values()
    before = held_bytes(runner)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    features = sum(values.nbytes for values in data.features.values())
    edges = model.edge_index.numel() * 8
    assert before == parameters + features + edges
    runner()
    grown = held_bytes(runner) - before  # gradients and Adam's two averages, and its counts of steps
    trained = sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None)
    assert 3 * trained <= grown <= 3 * trained + 4 * len(list(model.parameters()))


class Narrow(nn.Module):
    def loss(self, batch):
        rows = torch.ones(7, 3)  # no edge array: of another length
        wide = torch.ones(10, 3)  # (E, d)
        narrow = torch.ones(20, 3, dtype=torch.float16)  # (2 E, d)
        wide.view(10, 3)  # a view is not new
        return rows.sum() + wide.sum() + narrow.sum()


def test_edge_arrays_are_told_by_their_rows_and_width():
    assert edge_bytes(Narrow(), torch.zeros(1), n_edges=10, width=3) == {"float16": 20 * 3 * 2, "float32": 10 * 3 * 4}


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision"):
        arms("float8")

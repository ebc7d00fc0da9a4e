"""The memory settings: each alone and all together, on a small data set; types and held bytes by hand."""

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.memory_settings import (
    ALL,
    NONE,
    edge_bytes,
    held_bytes,
    largest_table,
    measure_memory_settings,
    memory_frame,
    types_table,
)
from mmrec_helpers.experiments.steps import MeasureOptions, step_runners
from mmrec_helpers.models import build
from mmrec_helpers.models.variants import MEMORY_SETTINGS
from mmrec_helpers.plots import memory_timeline, stage_legend
from mmrec_helpers.training import TrainSettings

OPTIONS = MeasureOptions(batch_size=256, repeats=3)


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.2)


@pytest.fixture(scope="module")
def content(data):
    return measure_memory_settings(data, OPTIONS, precision="bfloat16")


def test_every_setting_is_measured_for_both_models(content):
    rows = {(row["model"], row["setting"]): row for row in content["rows"]}
    assert set(rows) == {(model, setting) for model in ("grcn", "dragon") for setting in (NONE, *MEMORY_SETTINGS)}
    for (model, setting), row in rows.items():
        assert row["total_bytes"] == row["peak_bytes"] + row["held_bytes"]
        assert row["memory_ratio"] == pytest.approx(row["total_bytes"] / rows[model, NONE]["total_bytes"])
        assert (row["predicted_bytes"] is None) == (setting in ("mixed-precision", ALL))
        assert row["base"] == (model if (model, setting) != ("dragon", NONE) else "grcn")
    assert rows["grcn", "checkpointing"]["peak_bytes"] < 0.6 * rows["grcn", NONE]["peak_bytes"]
    assert "bfloat16" in rows["grcn", "mixed-precision"]["edge_bytes"] or rows["grcn", ALL]["edge_bytes"]
    assert content["control"]["rounds"] == 3


def test_on_a_cpu_nothing_is_said_to_be_copied(content, data):
    copied = {row["setting"]: row["copied_bytes"] for row in content["rows"]}
    assert copied["features-on-host"] is copied[ALL] is None
    assert copied[NONE] == copied["checkpointing"] == 0
    by_shape = sum(data.n_items * values.shape[1] * 4 for values in data.features.values())
    assert content["features"]["bytes_per_step"] == by_shape
    assert content["features"]["bytes_per_epoch"] == by_shape * content["steps_per_epoch"]


def test_the_tables_and_drawings_take_what_a_record_holds(content):
    table = memory_frame(content)
    assert list(table["model"].unique()) == ["GRCN", "DRAGON"]
    assert (table.loc[table["setting"] == NONE, ["time", "q1", "q3", "memory_ratio"]] == 1).all(axis=None)
    assert set(types_table(content)["setting"]) == set(table["label"])
    assert {"MB", "model", "region", "operator"} <= set(largest_table(content, rows=2).columns)
    assert len(largest_table(content, rows=2)) == 4
    timeline = pd.DataFrame(content["profiles"][0]["timeline"])
    figure = Figure(layout="constrained")
    memory_timeline(figure.subplots(), timeline, predicted_bytes=2e6)
    stage_legend(figure, timeline["region"])
    assert "final attention" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_the_narrow_type_has_its_column_though_nothing_is_narrow(content):
    wide = {"rows": [row | {"edge_bytes": {"float32": 2e6}} for row in content["rows"]]}
    table = types_table(content | wide)
    assert table[["float32", content["precision"]]].to_numpy().tolist() == [[2.0, 0.0]] * len(table)


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


def test_an_unknown_precision_is_refused(data):
    with pytest.raises(InputError, match="precision"):
        measure_memory_settings(data, OPTIONS, precision="float8")

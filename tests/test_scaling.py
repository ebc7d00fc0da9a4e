"""How cost grows: subsets of a data set, points measured, a fit that finds known coefficients, predictions."""

import numpy as np
import pandas as pd
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions, subset, synthesize
from mmrec_helpers.experiments import scaling
from mmrec_helpers.experiments.scaling_fit import (
    TERMS,
    error_table,
    fit_scaling,
    gather_slowdown,
    predict_workload,
    predicted_beside_measured,
    prediction_table,
    terms,
)
from mmrec_helpers.experiments.steps import MeasureOptions

OPTIONS = MeasureOptions(batch_size=256, repeats=1)
SIZES = {"feature_width": 96, "hidden_width": 0, "modalities": 2}


def test_a_subset_keeps_the_interactions_among_what_it_keeps():
    train = np.array([[0, 0, 1, 2, 3], [0, 1, 1, 2, 0]])
    data = Interactions.from_arrays(4, 3, train, features={"visual": np.arange(6.0).reshape(3, 2)})
    whole = subset(data)
    assert (whole.n_users, whole.n_items) == (4, 3)
    np.testing.assert_array_equal(whole.train, data.train)
    half = subset(data, items=2 / 3, seed=1)
    kept = [int(np.flatnonzero((data.features["visual"] == row).all(axis=1))[0]) for row in half.features["visual"]]
    expected = {(u, kept.index(i)) for u, i in train.T.tolist() if i in kept}
    assert {tuple(pair) for pair in half.train.T.tolist()} == expected


def test_smaller_subsets_lie_inside_larger_ones():
    data = synthesize("embedded", scale=0.5)
    few, many = (subset(data, interactions=share, seed=3) for share in (0.2, 0.6))
    assert {*map(tuple, few.train.T.tolist())} < {*map(tuple, many.train.T.tolist())}


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="users is"):
        subset(synthesize("embedded", scale=0.2), users=share)


def made_up_points(coefficients, noise=0.0):
    """Points on a grid whose step time is the given sum of terms."""
    stream = np.random.default_rng(0)
    rows = []
    for edges, width, iterations, batch in [
        (e, w, r, b) for e in (500, 2_000, 9_000) for w in (16, 64) for r in (0, 1, 3) for b in (256, 1024)
    ]:
        sizes = {"n_users": edges // 9, "n_items": edges // 7, "n_edges": edges, "width": width} | SIZES
        row = {
            "variant": "grcn",
            "label": "GRCN",
            "sweep": "grid",
            "iterations": iterations,
            "batch_size": batch,
        } | sizes
        value = sum(coefficients.get(name, 0) * x for name, x in terms(row).items())
        rows.append(row | {"step_ms": value * (1 + noise * stream.uniform(-1, 1)), "peak_bytes": value * 1e3})
    held = {
        "variant": "grcn",
        "label": "GRCN",
        "sweep": "held out",
        "iterations": 3,
        "batch_size": 1024,
        "width": 64,
        **SIZES,
    }
    held |= {"n_users": 9_000, "n_items": 7_000, "n_edges": 80_000}
    value = sum(coefficients.get(name, 0) * x for name, x in terms(held).items())
    return pd.DataFrame([*rows, held | {"step_ms": value, "peak_bytes": value * 1e3}])


KNOWN = {"fixed": 5.0, "loop": 1e-5, "edges": 2e-4, "node rows": 3e-6}


def test_the_fit_finds_the_coefficients_that_made_the_points():
    fit = fit_scaling(made_up_points(KNOWN))["grcn", "step_ms"]
    assert fit.coefficients == pytest.approx({name: KNOWN.get(name, 0.0) for name in TERMS}, rel=1e-4, abs=1e-9)
    assert abs(fit.held_out_error) < 1e-6


def test_the_held_out_error_is_of_a_point_that_the_fit_has_not_seen():
    points = made_up_points(KNOWN)
    points.loc[points["sweep"] == "held out", "step_ms"] *= 2
    fit = fit_scaling(points)["grcn", "step_ms"]
    assert fit.held_out_error == pytest.approx(-0.5, abs=1e-6)
    assert fit.largest_error < 1e-6


def test_noise_stays_within_the_stated_error():
    points = made_up_points(KNOWN, noise=0.1)
    fits = fit_scaling(points)
    table = prediction_table(points, fits)
    fitted = table[table["sweep"] != "held out"]
    off = (fitted["predicted_step_ms"] / fitted["step_ms"] - 1).abs().max()
    assert off == pytest.approx(fits["grcn", "step_ms"].largest_error)
    assert 0 < off < 0.25
    assert set(error_table(fits)["quantity"]) == {"step_ms", "peak_bytes"}


GATHER = [{"rows": 100, "gb_s": 20.0}, {"rows": 10_000, "gb_s": 10.0}, {"rows": 1_000_000, "gb_s": 5.0}]
LARGE = {"n_users": 90, "n_items": 80, "n_edges": 800_000, "feature_width": 96, "modalities": 2, "batch_size": 4096}


def record_of(points):
    middle = points.iloc[[0]].assign(sweep="middle")
    return {"points": pd.concat([middle, points]).to_dict("records"), "gather": GATHER}


def test_a_prediction_counts_steps_and_how_far_it_reaches():
    points = made_up_points(KNOWN)
    (row,) = predict_workload(record_of(points), fit_scaling(points), LARGE).to_dict("records")
    loop = 3 * 1e-5 * 800_000 * 2 * 64
    rest = 5 + 2e-4 * 800_000 * 2 + 3e-6 * 170 * 64 * 3
    assert row["step_ms"] == pytest.approx(loop + rest, rel=1e-3)
    assert row["epoch_s"] == pytest.approx(196 * row["step_ms"] / 1e3)
    assert (row["beyond"], row["slowdown"]) == (10, 1.0)  # the reference streams its edge arrays


def test_tables_that_leave_the_caches_slow_the_gathers_of_the_fast_backends():
    assert gather_slowdown(GATHER, 100, 10_000) == 2
    assert gather_slowdown(GATHER, 10_000, 100) == 1
    assert gather_slowdown(GATHER, 100, 1_000) == pytest.approx(20 / 15)
    points = made_up_points(KNOWN).assign(variant="grcn-live-fused")
    fits, record = fit_scaling(points), record_of(points)
    sizes = LARGE | {"n_users": 500_000, "n_items": 500_000}
    near, far = (predict_workload(record, fits, size).iloc[0] for size in (LARGE, sizes))
    nodes = 3e-6 * 64 * 3
    edges = (near["step_ms"] - 5 - nodes * 170) / near["slowdown"]
    assert far["slowdown"] > 2
    assert far["step_ms"] == pytest.approx(5 + nodes * 1_000_000 + far["slowdown"] * edges, rel=1e-3)


def test_a_prediction_stands_beside_what_was_measured_with_the_factor():
    points = made_up_points(KNOWN)
    fits, record = fit_scaling(points), record_of(points)
    predicted = predict_workload(record, fits, LARGE).iloc[0]
    row = {"variant": "grcn", "step_ms": 2.5 * predicted["step_ms"], "peak_bytes": 0.5e9 * predicted["peak_gb"]}
    steps = {"sizes": LARGE, "variants": [row]}
    other = {"content": steps, "provenance": {"data": {"name": "large"}}}
    (row,) = predicted_beside_measured(record, fits, [other]).to_dict("records")
    assert (row["data"], row["factor"], row["memory_factor"]) == ("large", pytest.approx(2.5), pytest.approx(0.5))
    assert predicted_beside_measured(record, fits, []).empty


def test_no_points_are_refused():
    with pytest.raises(InputError, match="no points"):
        fit_scaling(pd.DataFrame())


def test_measured_points_name_their_sizes_and_leave_the_whole_data_set_out_of_the_fit():
    data = synthesize("embedded", scale=0.4)
    content = scaling.measure_scaling(data, OPTIONS, ["grcn-live-fused"])
    points = pd.DataFrame(content["points"])
    held = points[points["sweep"] == "held out"].iloc[0]
    assert held["n_edges"] == data.train.shape[1] > points[points["sweep"] != "held out"]["n_edges"].max()
    assert sorted(points[points["sweep"] == "iterations"]["iterations"]) == [0, 1, 2]
    assert (points[["step_ms", "peak_bytes"]] > 0).all(axis=None)
    assert content["left_out"] == []


def test_what_does_not_fit_the_machine_is_left_out_with_its_number(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.profiling.memory.HOST_LIMIT_BYTES", 3e6)
    data = synthesize("embedded", scale=0.4)
    content = scaling.measure_scaling(data, OPTIONS, ["grcn"])
    assert "held out" in {row["sweep"] for row in content["left_out"]}
    assert all(row["predicted_bytes"] > 3e6 for row in content["left_out"])


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="variant"):
        scaling.measure_scaling(synthesize("embedded", scale=0.4), OPTIONS, ["grcn-faster"])

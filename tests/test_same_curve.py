"""Reference and fused from one seed give the same losses; another seed or another model does not."""

from dataclasses import replace

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import same_curve as module
from mmrec_helpers.experiments.same_curve import LEARNING_RATES, find_same_curve, measure_same_curve, same_curve_table
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.records import write_record
from mmrec_helpers.training import fit

DATA = synthesize("embedded", scale=0.15)
OPTIONS = MeasureOptions(batch_size=256)


@pytest.fixture(scope="module")
def rows():
    return {row["variant"]: row for row in measure_same_curve(DATA, OPTIONS, epochs=3)["rows"]}


@pytest.mark.parametrize("variant", LEARNING_RATES)
def test_two_backends_train_the_same_curve(rows, variant):
    row = rows[variant]
    assert row["same"], row["loss_differences"]
    assert max(row["loss_differences"]) < 1e-4
    assert len(row["metric_differences"]) == 3
    assert row["time_ratio"] > 0
    assert len(set(row["runs"]["reference"]["loss"])) == 3


def test_control_two_models_or_two_rates_do_not(rows, monkeypatch):
    shipped, live = (rows[name]["runs"]["fused"]["loss"] for name in ("grcn", "grcn-live"))
    assert max(abs(a - b) / a for a, b in zip(shipped, live, strict=True)) > 1e-4
    monkeypatch.setitem(LEARNING_RATES, "grcn-live", 2e-3)
    (other,) = measure_same_curve(DATA, OPTIONS, ("grcn-live",), epochs=3)["rows"]
    assert other["runs"]["fused"]["loss"] != live


def test_control_a_difference_beyond_rounding_is_seen(monkeypatch):
    def fit_at_a_rising_rate(model, data, settings, **kwargs):
        rates.append(100 ** len(rates) * settings.learning_rate)
        return fit(model, data, replace(settings, learning_rate=rates[-1]), **kwargs)

    rates = []
    monkeypatch.setattr(module, "fit", fit_at_a_rising_rate)
    content = measure_same_curve(DATA, OPTIONS, ("dragon",), epochs=1)
    assert rates == [1e-4, 1e-2]
    assert not content["rows"][0]["same"]


def test_the_table_for_reading(rows):
    table = same_curve_table({"rows": list(rows.values())})
    assert list(table["model"]) == ["GRCN", "GRCN, paper's routing", "DRAGON"]
    assert table["reference, s"][0] == pytest.approx(sum(rows["grcn"]["runs"]["reference"]["epoch_s"]))


def test_a_record_at_hand_is_found_in_the_order_of_the_folders(tmp_path):
    assert find_same_curve(tmp_path / "none") is None
    write_record(tmp_path / "a" / "records" / "04-steps.json", "steps", {}, data=DATA)
    assert find_same_curve(tmp_path) is None
    for name in ("b", "c"):
        write_record(tmp_path / name / "records" / "12-same-curve.json", "same-curve", {"from": name}, data=DATA)
    assert find_same_curve(tmp_path / "c", tmp_path / "b")["content"] == {"from": "c"}
    (tmp_path / "c" / "records" / "12-same-curve.json").write_text("{")
    with pytest.warns(RuntimeWarning, match=r"passed over .*same-curve\.json: not a record"):
        assert find_same_curve(tmp_path / "c", tmp_path / "b")["content"] == {"from": "b"}


def test_bad_input():
    with pytest.raises(InputError, match="variant to train"):
        measure_same_curve(DATA, OPTIONS, ("lightgcn",))
    with pytest.raises(InputError, match="epochs is 0"):
        measure_same_curve(DATA, OPTIONS, epochs=0)

"""An epoch: stages scaled to the account's step, sampling, validation; and a step that loads its data."""

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.epoch import (
    epoch_table,
    find_pairs,
    loop_share,
    measure_epoch,
    side_by_side,
    stage_times,
)
from mmrec_helpers.experiments.steps import MeasureOptions, measure_steps
from mmrec_helpers.records import plain, write_record

OPTIONS = MeasureOptions(batch_size=128, repeats=2, warmup=1)


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.2)


@pytest.fixture(scope="module")
def epoch(data, tmp_path_factory):
    return plain(measure_epoch(data, OPTIONS, trace_folder=tmp_path_factory.mktemp("traces")))


@pytest.fixture(scope="module")
def steps(data):
    return plain(measure_steps(data, OPTIONS, ["grcn-0", "dragon", "dragon-diagnosed"], compare=False))


def test_stages_add_up_to_the_step_and_steps_to_the_epoch(epoch, steps):
    step_ms = {row["model"]: row["step_ms"] for row in steps["variants"] if row["variant"] in ("grcn", "dragon")}
    sums = stage_times(epoch, steps).groupby("model")["ms"].sum()
    table = epoch_table(epoch, steps)
    for model, label in (("grcn", "GRCN"), ("dragon", "DRAGON")):
        assert sums[label] == pytest.approx(step_ms[model])
        assert table.loc[label, "steps_s"] == pytest.approx(epoch["steps_per_epoch"] * step_ms[model] / 1e3)
    assert (table["epoch_s"] == table["steps_s"] + epoch["sampling_s"]).all()


def test_operators_are_scaled_like_the_stages(epoch, steps):
    stages, operators = stage_times(epoch, steps), stage_times(epoch, steps, "top_operators")
    for model in ("GRCN", "DRAGON"):
        listed, whole = (table.loc[table["model"] == model, "ms"].sum() for table in (operators, stages))
        assert 0 < listed < whole
    known = operators[operators["megabytes"].notna() & (operators["ms"] > 0)]
    assert known["gbytes_s"].to_numpy() == pytest.approx((known["megabytes"] / known["ms"]).to_numpy())


def test_the_loop_has_a_share_and_dragon_has_none(epoch, steps):
    assert 0.05 < loop_share(epoch) < 0.8
    stages = stage_times(epoch, steps).query("model == 'GRCN'")
    loop_ms = stages.loc[stages["region"].str.startswith("routing."), "ms"].sum()
    assert loop_share(epoch) == pytest.approx(loop_ms / stages["ms"].sum())
    assert loop_share(epoch, "DRAGON") == 0


def test_a_profiled_step_samples_and_loads_its_share(epoch):
    for model in epoch["models"]:
        assert {"sampling", "data", "optimizer"} <= {row["region"] for row in model["regions"]}
        assert model["trace_bytes"] > 0
        assert model["validation_s"] > 0


def test_the_diagnosed_settings_are_other_variants(data):
    content = measure_epoch(data, OPTIONS, "diagnosed")
    assert [model["variant"] for model in content["models"]] == ["grcn-diagnosed", "dragon-diagnosed"]
    with pytest.raises(InputError, match="unknown settings 'fast'"):
        measure_epoch(data, OPTIONS, "fast")


def test_data_sets_stand_side_by_side_the_smallest_first(epoch, steps):
    def record(content, name, n_train):
        return {"content": content, "provenance": {"data": {"name": name, "n_train": n_train}}}

    pairs = [(record(epoch, name, n), record(steps, name, n)) for name, n in (("large", 9), ("small", 5))]
    table = side_by_side(pairs)
    assert list(table["data"].unique()) == ["small", "large"]
    assert side_by_side([]).empty


def test_pairs_lie_together_and_were_made_alike(data, epoch, steps, tmp_path):
    other = synthesize("embedded", seed=1, scale=0.2)
    for run, made_on in (("alone", None), ("elsewhere", other), ("pair", data), ("pair-again", data)):
        folder = tmp_path / run / "records"
        write_record(folder / "04-epoch.json", "epoch", epoch, data=data)
        if made_on is not None:
            write_record(folder / "04-steps.json", "steps", steps, data=made_on)
    (tmp_path / "pair" / "records" / "run.json").write_text('{"schema": 1}')  # broken: passed over
    with pytest.warns(RuntimeWarning, match=r"passed over .*run\.json: not a record: kind is None: expected text"):
        ((one, two),) = find_pairs([tmp_path])
    (tmp_path / "pair" / "records" / "run.json").unlink()
    assert (one["kind"], two["kind"]) == ("epoch", "steps")
    assert find_pairs([tmp_path], "cuda") == []
    write_record(tmp_path / "pair" / "records" / "04-epoch.json", "epoch", epoch | {"sampling_s": 9.0}, data=data)
    ((one, _),) = find_pairs([tmp_path / "pair-again", tmp_path / "pair", tmp_path / "alone"])
    assert one["content"]["sampling_s"] == 9.0

"""The study: its order, pairs that see the same batches, and records from which it goes on."""

import json

import pytest

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource, synthesize
from mmrec_helpers.experiments.accuracy import study as study_module
from mmrec_helpers.experiments.accuracy.runs import read_study, run_study, write_accuracy
from mmrec_helpers.experiments.accuracy.study import (
    SEARCH,
    Run,
    StudySettings,
    best_run,
    count_runs,
    runs_ready,
    search_runs,
    train_run,
    unpack,
)
from mmrec_helpers.models import build
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.records import read_record
from mmrec_helpers.training import evaluate
from mmrec_helpers.training.step import TrainingError

SOURCE = DataSource(scale=0.1)
TINY = StudySettings(
    variants=("grcn", "lightgcn", "popularity"), seeds=2, searched=2, epochs=2, batch_size=128, backend="sparse"
)


def content(valid):
    return {"valid": None if valid is None else {"recall@20": valid}}


def test_all_variants_are_searched_before_any_further_seed():
    study = StudySettings(variants=("grcn", "grcn-mean", "popularity"), seeds=3, searched=2)
    search = runs_ready(study, {})
    assert [(run.variant, run.setting, run.seed) for run in search] == [
        ("grcn", 0, 0),
        ("grcn", 1, 0),
        ("grcn-mean", 0, 0),
        ("grcn-mean", 1, 0),
        ("popularity", None, 0),
    ]
    done = {run.name: content(None if run.setting is None else run.setting / 10) for run in search}
    seeds = [(run.variant, run.setting, run.seed) for run in runs_ready(study, done)]
    assert seeds == [("grcn", 1, 1), ("grcn-mean", 1, 1), ("grcn", 1, 2), ("grcn-mean", 1, 2)]
    assert count_runs(study, {}) == count_runs(study, done) == len(search) + len(seeds)
    done |= {run.name: content(None) for run in search if run.variant == "grcn"}
    assert count_runs(study, done) == len(search) + len(seeds) - 2


def test_settings_beyond_the_default_search_are_tried_only_when_asked_for():
    default, beyond = search_runs(StudySettings()), search_runs(StudySettings(searched=7))
    rates = {run.chosen.learning_rate for run in default if run.variant == "grcn-live"}
    assert rates == {1e-3, 3e-3}
    more = [run.chosen.learning_rate for run in beyond if run.variant == "grcn-live" and run not in default]
    assert sorted(more) == [3e-4, 3e-4, 1e-2]
    assert min(run.chosen.learning_rate for run in beyond if run.variant == "dragon") == 3e-5


def test_a_variant_whose_search_is_done_need_not_wait_for_the_others():
    study = StudySettings(variants=("grcn", "grcn-mean"), seeds=2, searched=1)
    done = {Run("grcn", 0, 0).name: content(0.1)}
    assert runs_ready(study, done) == [Run("grcn-mean", 0, 0), Run("grcn", 0, 1)]


def test_failed_settings_are_not_chosen_and_of_equal_ones_the_first_is():
    study = StudySettings(variants=("grcn-mean",), searched=3)
    runs = runs_ready(study, {})
    done = dict(zip((run.name for run in runs), map(content, (None, 0.2, 0.2)), strict=True))
    assert best_run(study, "grcn-mean", done) == runs[1]
    assert best_run(study, "grcn-mean", {run.name: content(None) for run in runs}) is None


def test_what_a_study_compares_is_in_the_list_of_variants_and_as_the_reference_computes_it():
    assert all(VARIANTS[variant].backend == "reference" and not VARIANTS[variant].training for variant in SEARCH)


def test_names_differ_and_fit_file_names():
    runs = [Run(variant, k, seed) for variant, of in SEARCH.items() for k in range(len(of)) for seed in (0, 1)]
    assert len({run.name for run in runs}) == len(runs)
    assert all(set(run.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for run in runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(SOURCE, TINY, folder)
    return folder


def test_a_study_leaves_one_record_per_run(folder):
    assert len(read_study(folder)) == count_runs(TINY, {}) == 7
    records = read_study(folder).values()
    assert {record["kind"] for record in records} == {"study-run"}
    assert not any(record["content"]["beside_other_work"] for record in records)


def test_the_users_metrics_average_to_the_test_metrics(folder):
    for record in read_study(folder).values():
        values = unpack(record["content"]["users"]["recall@20"])
        assert values.mean() == pytest.approx(record["content"]["test"]["recall@20"], rel=1e-5)


def test_popularity_is_tested_as_it_is_built(folder):
    data = SOURCE.open()
    there = read_record(folder / "records" / "popularity-seed0.json")["content"]["test"]["recall@20"]
    assert there == evaluate(build("popularity", data), data, "test")["recall@20"]


def test_a_finished_study_trains_nothing_again(folder, monkeypatch):
    monkeypatch.setattr("mmrec_helpers.experiments.accuracy.study.train_run", lambda *_: pytest.fail("trained again"))
    assert len(run_study(SOURCE, TINY, folder)) == 7


def test_a_missing_run_is_trained_again_to_the_same_result(folder, capsys):
    path = folder / "records" / "grcn-lr0.001-reg0.1-seed0.json"
    before = read_record(path)["content"]
    path.unlink()
    run_study(SOURCE, TINY, folder)
    after = read_record(path)["content"]
    assert (
        len(capsys.readouterr().err.splitlines()) == 2
    )  # the run of seed 1 is recognised once the search is whole again
    assert after["users"] == before["users"]
    assert [row["loss"] for row in after["epochs"]] == [row["loss"] for row in before["epochs"]]


@pytest.mark.parametrize(
    ("source", "study", "message"),
    [
        (SOURCE, {"epochs": 3}, "epochs is 2 there and 3 here"),
        (DataSource(scale=0.11), {}, "made on data"),
    ],
)
def test_records_of_another_study_are_refused(folder, source, study, message):
    with pytest.raises(InputError, match=message):
        run_study(source, StudySettings(**(vars(TINY) | study)), folder)


def test_a_run_that_cannot_be_trained_is_a_record_too(monkeypatch):
    def explode(*_, **__):
        raise TrainingError("epoch 0, step 0 of 3: the loss is nan")

    monkeypatch.setattr(study_module, "fit", explode)
    found = train_run(synthesize("embedded", scale=0.1), Run("lightgcn", 0, 0), TINY)
    assert "the loss is nan" in found["failed"]
    assert found["test"] is None


def test_an_interrupted_run_leaves_no_record(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrec_helpers.experiments.accuracy.study.train_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(SOURCE, TINY, tmp_path)
    assert read_study(tmp_path) == {}


def test_the_summary_is_a_record_without_paths(folder):
    path = write_accuracy(folder)
    record = read_record(path, "accuracy")
    assert {row["variant"] for row in record["content"]["variants"]} == set(TINY.variants)
    assert not record["content"]["full"]
    assert str(folder) not in path.read_text()
    assert all(str(folder) not in json.dumps(run) for run in read_study(folder).values())


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        write_accuracy(tmp_path)


def test_the_command_runs_a_study_and_refuses_unknown_variants(tmp_path, capsys):
    small = ["--scale", "0.1", "--epochs", "1", "--seeds", "1", "--searched", "1", "--backend", "sparse"]
    arguments = ["study", "--out", str(tmp_path), "--variants", "lightgcn", "popularity", "--batch-size", "128", *small]
    assert main(arguments) == 0
    assert (tmp_path / "records" / "accuracy.json").exists()
    assert main([*arguments[:4], "deep", *small]) == 2
    assert "unknown variant of a study 'deep'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"), [({"seeds": 0}, "seeds is 0"), ({"variants": ()}, "variants is empty")]
)
def test_impossible_studies_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        StudySettings(**options)

"""MMRec's logs: single and grid runs, other models and metrics, logs that break off or were resumed, no logs at all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.mmrec import read_log

REAL = Path(__file__).parents[2] / "shared" / "logs"
STAMP = "Thu 15 Jan 2026 19:13:{:02d} INFO "


def written(tmp_path, *messages, name="any.log", end="\n"):
    text = "\n".join(STAMP.format(second % 60) + message for second, message in enumerate(messages)) + end
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def head(model="GRCN", text="text_feat.npy", multimodal=True):
    settings = [
        f"is_multimodal_model={multimodal}",
        "epochs=1000",
        "learning_rate=[0.001]",
        "field_separator=\t",
        "vision_feature_file=image_feat.npy",
        f"text_feature_file={text}",
        "n_layers=3",
        f"model={model}",
        "dataset=baby",
    ]
    return [
        "██Server: \tsomewhere",
        "██Dir: \tsrc\n",
        "\n" + "\n".join(settings) + "\n\n",
        sizes("", 40, 30, 500),
        sizes("\n====Training====\n", 40, 29, 400),
        sizes("\n====Validation====\n", 35, 20, 50),
        "\n\n=================================\n\n",
    ]


def sizes(title, users, items, inters):
    lines = [f"The number of users: {users}", "Average actions of users: 12.5", f"The number of items: {items}"]
    return title + "\n".join(["baby", *lines, f"The number of inters: {inters}", "The sparsity of the dataset: 58.3%"])


def run(number=1, of=1, reg=0.001):
    return f"========={number}/{of}: Parameters:['seed', 'reg_weight']=(999, {reg})======="


def upstream(epoch, loss=2.5, recall=0.1):
    """An epoch as the public MMRec writes it: results on a line of their own."""
    return [
        f"epoch {epoch} training [time: 1.25s, train loss: {loss:.4f}]",
        f"epoch {epoch} evaluating [time: 0.30s, valid_score: {recall:.6f}]",
        f"valid result: \nrecall@20: {recall:.4f}    ndcg@20: 0.0500    ",
        f"test result: \nrecall@20: {recall / 2:.4f}    ndcg@20: 0.0400    ",
    ]


def fork(epoch):
    """An epoch as the public fork writes it."""
    return [
        f"Epoch {epoch} training [time: 1026.83s, Train loss: 268.8508]",
        f"Epoch {epoch}: valid_score: 0.1849",
        "Valid result: recall@20_full: 0.0004    map@20_full: 0.0001    ",
        "Test result : recall@20_full: 0.0003    map@20_full: 0.0002    ",
        "██ GRCN--Best validation results updated!!!",
    ]


def ending(recall=0.9):
    return [
        "+++++Finished training, best eval result in epoch 1",
        f"best valid result: recall@20: {recall}    ",
        f"test result: recall@20: {recall}    ",
        f"████Current BEST████:\nParameters: ['seed']=(999,),\nValid: recall@20: {recall}    ,\n\n\n",
    ]


def test_a_run_of_the_public_code(tmp_path):
    log = read_log(
        written(tmp_path, *head(), run(), "GRCN(\n  (MLP): Linear()\n)", *upstream(0), *upstream(1), *ending())
    )
    assert len(log) == 2
    first = log.iloc[0]
    assert (first.model, first.dataset, first.modalities) == ("GRCN", "baby", ("visual", "textual"))
    assert (first.n_users, first.n_items, first.n_train, first.run) == (40, 30, 400, 1)
    assert first.parameters == {"seed": 999, "reg_weight": 0.001}
    assert log["epoch"].tolist() == [0, 1]
    assert (first.epoch_s, first.loss, first.valid_score) == (1.25, 2.5, 0.1)
    assert log[["valid.recall@20", "valid.ndcg@20", "test.recall@20", "test.ndcg@20"]].iloc[1].tolist() == [
        0.1,
        0.05,
        0.05,
        0.04,
    ]
    assert first.time == pd.Timestamp("2026-01-15 19:13:09")
    assert log.attrs["settings"]["n_layers"] == 3
    assert not log["improved"].any()


def test_a_run_of_the_fork(tmp_path):
    log = read_log(written(tmp_path, *head(), run(), "Mixed Precision Training (FP16) enabled", *fork(0)))
    row = log.iloc[0]
    assert (row.epoch_s, row.loss, row.valid_score, row["valid.recall@20_full"], row["test.map@20_full"]) == (
        1026.83,
        268.8508,
        0.1849,
        0.0004,
        0.0002,
    )
    assert row.improved


def test_a_grid_keeps_runs_and_their_parameters_apart(tmp_path):
    second = [run(2, 2, reg=0.1), *upstream(0, loss=7), *upstream(1), *upstream(2), *ending()]
    log = read_log(written(tmp_path, *head(), run(1, 2), *upstream(0), *upstream(1), *ending(), *second))
    assert log["run"].tolist() == [1, 1, 2, 2, 2]
    assert log["parameters"].map(lambda p: p["reg_weight"]).tolist() == [0.001, 0.001, 0.1, 0.1, 0.1]
    assert log.loc[log["run"] == 2, "loss"].iloc[0] == 7
    assert log["test.recall@20"].max() == 0.05  # not that of a run's summary


def test_other_models_and_metrics(tmp_path):
    messages = [
        "epoch 0 training [time: 3.10s, train loss: 1.0000]",
        "epoch 0 evaluating [time: 0.30s, valid_score: 0.300000]",
        "valid result: \n{'hit@5': np.float64(0.25), 'auc': 0.75}",
        "test result: \nOrderedDict([('hit@5', 0.2), ('auc', 7e-1)])",
    ]
    log = read_log(written(tmp_path, *head("BPR", multimodal=False), run(), *messages))
    assert log.iloc[0][["valid.hit@5", "valid.auc", "test.hit@5", "test.auc"]].tolist() == [0.25, 0.75, 0.2, 0.7]
    assert log["modalities"].iloc[0] == ()
    assert read_log(written(tmp_path, *head(text="None"), run(), *upstream(0)))["modalities"].iloc[0] == ("visual",)


def test_epochs_without_evaluation_have_no_metrics(tmp_path):
    log = read_log(written(tmp_path, *head(), run(), upstream(0)[0], *upstream(1)))
    assert np.isnan(log["valid.recall@20"].iloc[0])
    assert log["valid.recall@20"].iloc[1] == 0.1


def test_losses_of_several_terms_are_summed(tmp_path):
    messages = []
    for epoch in range(2):
        messages += [f"train_loss1: {epoch + 1}.5000, train_loss2: 0.2500]", *upstream(epoch)[1:]]
    log = read_log(written(tmp_path, *head(), run(), *messages))
    assert log["loss"].tolist() == [1.75, 2.75]
    assert log["epoch"].tolist() == [0, 1]
    assert log["epoch_s"].isna().all()


@pytest.mark.parametrize("lost", range(1, 420, 7))
def test_a_log_that_breaks_off_never_shows_a_wrong_number(tmp_path, lost):
    whole = written(tmp_path, *head(), run(), *upstream(0), *upstream(1, loss=12.3456, recall=0.1234))
    full = read_log(whole)
    text = whole.read_text(encoding="utf-8")
    (tmp_path / "cut.log").write_text(text[:-lost], encoding="utf-8")
    cut = read_log(tmp_path / "cut.log")
    assert len(cut) <= len(full)
    for column in cut.columns:
        for got, expected in zip(cut[column], full[column]):
            assert got == expected or pd.isna(got), column


@pytest.mark.parametrize(
    "foreign",
    [
        "/x/y.py:10: UserWarning: deprecated\n  warnings.warn('x')",
        "[codecarbon INFO @ 10:00:05] Energy consumed for RAM : 0.000012 kWh",
        "tensor([[    0, 37655],\n        [    1, 60006]], device='cuda:0')",
        "100%|###| 20/20 [00:01<00:00, 3.4it/s]\r 10%|#| 2/20",
        "epoch 7 training [time: 1.00s, train loss: 1.0]",
    ],
    ids=["warning", "emissions", "tensor", "bar", "printed"],
)
def test_lines_of_others_take_and_add_nothing(tmp_path, foreign):
    messages = [*head(), run(), *upstream(0), *upstream(1), *fork(2), *upstream(3)[:1]]
    expected = read_log(written(tmp_path, *messages))
    assert len(expected) == 4
    log = read_log(written(tmp_path, *(f"{message}\n{foreign}" for message in messages)))
    pd.testing.assert_frame_equal(log, expected)


def test_results_of_an_epoch_whose_training_line_is_lost_are_no_other_epochs(tmp_path):
    expected = read_log(written(tmp_path, *head(), run(), *upstream(0), *upstream(2)))
    log = read_log(written(tmp_path, *head(), run(), *upstream(0), *upstream(1, recall=0.9)[1:], *upstream(2)))
    pd.testing.assert_frame_equal(log.drop(columns="time"), expected.drop(columns="time"))


def test_colour_codes_are_no_part_of_a_log(tmp_path):
    path = written(tmp_path, *head(), run(), *upstream(0))
    expected = read_log(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(f"\x1b[1;32m{line}\x1b[0m" for line in lines), encoding="utf-8")
    pd.testing.assert_frame_equal(read_log(path), expected)


@pytest.mark.parametrize(
    "values",
    [
        "({[]: 1},)",
        "({1, 2},)",
        "(b'x', {(1,): 2})",
        f"({'9' * 4500},)",
        "-" * 50_000,
        "(" * 5000,
        "(1,2,3)",
        "'\\ud800'",
        "{**1}",
    ],
    ids=["unhashable", "set", "bytes", "digits", "signs", "brackets", "too many", "no character", "no literal"],
)
def test_parameters_that_are_no_literal_are_kept_as_text(tmp_path, values):
    announced = f"=========1/1: Parameters:['seed']={values}======="
    assert read_log(written(tmp_path, announced, *upstream(0)))["parameters"][0] == {"text": f"['seed']={values}"}


def test_numbers_that_cannot_be_are_passed_over(tmp_path):
    many = "9" * 4500
    log = read_log(written(tmp_path, *head(), sizes("", many, 3, many), *upstream(many), run(many), *upstream(0)))
    assert log["epoch"].tolist() == [0]
    assert log["n_users"].tolist() == [40]
    assert len(read_log(written(tmp_path, "The number of inters: "))) == 0
    path = written(tmp_path, *upstream(0))
    path.write_text(path.read_text().replace("2026", "1500"))
    assert len(read_log(path)) == 1  # with a time that not every version of pandas can hold


def test_a_log_that_ends_before_the_first_epoch_is_an_empty_table(tmp_path):
    log = read_log(written(tmp_path, *head()))
    assert len(log) == 0
    assert list(log.columns[:4]) == ["model", "dataset", "modalities", "n_users"]


def test_a_resumed_run_stays_one_run(tmp_path):
    first = [*head(), run(), *upstream(0), *upstream(1), *upstream(2, loss=99)]
    log = read_log(written(tmp_path, *first, *head(), run(), *upstream(2, loss=3), *upstream(3)))
    assert log["run"].tolist() == [1, 1, 1, 1]
    assert log["epoch"].tolist() == [0, 1, 2, 3]
    assert log["loss"].tolist() == [2.5, 2.5, 3, 2.5]
    again = read_log(written(tmp_path, *first, *head(), run(), *upstream(0)))
    assert again["run"].tolist() == [1, 1, 1, 2]


def test_without_its_head_a_log_is_named_by_its_file(tmp_path):
    log = read_log(written(tmp_path, *upstream(0), name="LightGCN-baby-Jan-05-2026-10-11-12.log"))
    assert (log["model"].iloc[0], log["dataset"].iloc[0]) == ("LightGCN", "baby")
    assert pd.isna(log["n_users"].iloc[0])
    assert log["parameters"].iloc[0] == {}


def test_windows_and_console_logs(tmp_path):
    text = written(tmp_path, *head(), run(), *upstream(0)).read_text(encoding="utf-8")
    (tmp_path / "windows.log").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    assert read_log(tmp_path / "windows.log")["loss"].tolist() == [2.5]
    (tmp_path / "console.log").write_text(text.replace("Thu 15 Jan 2026 19:13", "15 Jan 19").replace("INFO", "INFO"))
    log = read_log(tmp_path / "console.log")
    assert log["loss"].tolist() == [2.5]
    assert pd.isna(log["time"].iloc[0])


def test_several_logs_can_be_joined(tmp_path):
    one = read_log(written(tmp_path, *head(), run(), *upstream(0), name="a.log"))
    two = read_log(written(tmp_path, *head("DRAGON"), run(), *fork(0), name="b.log"))
    both = pd.concat([one, two], ignore_index=True)
    assert both.groupby("model")["epoch_s"].median().to_dict() == {"GRCN": 1.25, "DRAGON": 1026.83}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no log"),
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"userID\titemID\tx_label\n1\t2\t0\n", "no training log of MMRec"),
        (bytes(range(256)) * 10, "no training log of MMRec"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, content, message):
    path = tmp_path / "some.log"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_log(path)
    with pytest.raises(InputError, match=r"cannot read log|no log"):
        read_log(tmp_path)


@pytest.mark.real
def test_logs_with_lines_of_others():
    rows = {path.stem: read_log(path) for path in (REAL / "foreign").glob("*.log")}
    assert {name: log["epoch"].tolist() for name, log in rows.items()} == {
        "DRAGON-elec-print": [0, 1],
        "FREEDOM-baby-warning": [0, 1, 2],
        "MENTOR-baby-terms-evalstep2": [0, 1, 2, 3],
    }
    names = [f"{split}.recall@{k}" for split in ("valid", "test") for k in (10, 20)]
    for log in (rows["DRAGON-elec-print"], rows["FREEDOM-baby-warning"]):
        assert [name for name in log if "." in name] == names


@pytest.mark.real
def test_the_logs_of_the_public_fork():
    expected = {
        "DRAGON-Music4All-Jan-10-2026-13-09-57.log": (93, ("visual",), 225.2),
        "DRAGON-Music4All-Jan-18-2026-12-49-38.log": (83, ("visual", "textual"), 411.9),
        "GRCN-Music4All-Jan-15-2026-19-13-29.log": (2, ("visual", "textual"), 1109.8),
    }
    for name, (epochs, modalities, median_s) in expected.items():
        log = read_log(REAL / name)
        assert len(log) == epochs
        assert log["modalities"].iloc[0] == modalities
        assert log["epoch_s"].median() == pytest.approx(median_s, abs=0.05)
        assert log.filter(regex=r"^(valid|test)\.recall@20").notna().any(axis=1).all()
    assert log["n_train"].iloc[0] == 4_082_045

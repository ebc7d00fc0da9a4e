"""A sweep: MMRec's models over a grid by MMRec's own trainer; its plan, its runs, what they leave, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource
from mmrec_helpers.experiments.accuracy.runs import read_study, run_study
from mmrec_helpers.experiments.cluster import in_own_process
from mmrec_helpers.experiments.sweep import make_payload, plan_sweep, spans_decades, sweep_summary
from mmrec_helpers.mmrec import open_checkout, read_log
from mmrec_helpers.mmrec.training import train_by_mmrec
from mmrec_helpers.records import read_record
from mmrec_helpers.training.step import TrainingError
from tests.mmrec_checkout import make_checkout
from tests.test_checkout import REAL
from tests.test_cluster import Elsewhere
from tests.test_notebooks_prose import complaints

SOURCE = DataSource(scale=0.2)
RATES = {"learning_rate": [0.01, 0.001]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout"))


def words(checkout, out, *more):
    return ["sweep", "--mmrec", str(checkout), "--scale", "0.2", "--device", "cpu", "--out", str(out), *more]


@pytest.fixture(scope="module")
def swept(checkout, tmp_path_factory):
    """GRCN (accelerated) and BPR (as it is), one rate of which diverges; two seeds."""
    out = tmp_path_factory.mktemp("swept")
    grid = ["--model", "GRCN", "BPR", "--seeds", "2", "--grid", "learning_rate=0.01,1e30"]
    assert main(words(checkout, out, *grid)) == 0
    return out


# ------------------------------------------------------------------------------------------------ the plan


def test_the_lists_of_mmrecs_settings_files_are_the_grid(checkout):
    grid = plan_sweep(checkout, ["GRCN", "BPR"], "embedded").grid
    assert grid == {"GRCN": [{"reg_weight": 0.1}, {"reg_weight": 0.01}], "BPR": [{"reg_weight": 0.1}]}
    assert plan_sweep(checkout, ["GRCN"], "embedded", settings={"reg_weight": 0.5}).grid == {"GRCN": [{}]}


def test_a_grid_is_the_product_of_its_values_for_every_model(checkout):
    plan = plan_sweep(checkout, ["GRCN", "BPR"], "embedded", {**RATES, "n_layers": [1, 2, 1]}, seeds=3)
    assert [run.name for run in plan.search("BPR")] == [
        f"BPR-learning_rate{rate}-n_layers{layers}-seed999" for rate in (0.01, 0.001) for layers in (1, 2)
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "NGCF"], "unknown model 'NGCF': expected one of BPR, Broken, DRAGON, GRCN"),
        (["--model", "ItemKNN"], "ItemKNN has no training: its settings say req_training: False"),
        (["--model", "GRCN", "--grid", "rate=1"], "unknown setting of MMRec 'rate': expected one of"),
        (["--model", "GRCN", "--set", "rate=1"], "unknown setting of MMRec 'rate': expected one of"),
        (
            ["--model", "GRCN", "--grid", "learning_rate=fast"],
            "rate=fast for GRCN: expected a number, as MMRec's own",
        ),
        (["--model", "GRCN", "--set", "n_layers=True"], "n_layers=True for GRCN: expected a number, as MMRec's own 3"),
        (
            ["--model", "GRCN", "--grid", "learning_rate="],
            "--grid learning_rate: it has no values: expected",
        ),
        (["--model", "GRCN", "--grid", "learning_rate"], "--grid learning_rate: expected NAME=VALUE"),
        (["--model", "GRCN", "--grid", "seed=1,2"], "seed is given twice: expected --seeds"),
        (["--model", "GRCN", "--grid", "epochs=1", "--set", "epochs=1"], "epochs is given twice: expected --grid or"),
        (["--model", "GRCN", "--seeds", "0"], "seeds is 0"),
        (["--model", "GRCN", "--jobs", "0"], "jobs is 0"),
        (["--model", "GRCN", "--dataset", "nowhere"], "unknown data set 'nowhere'"),
        ([], "--mmrec and --model are missing"),
    ],
)
def test_what_cannot_be_swept_is_one_line_before_any_run(checkout, tmp_path, capsys, more, said):
    assert main(words(checkout, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    assert main(words(tmp_path, tmp_path / "out", "--model", "GRCN")) == 2
    assert "is no checkout of MMRec" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the runs


def test_each_run_leaves_a_record_and_a_log_in_mmrecs_format(swept):
    records = read_study(swept, "sweep-run")
    assert len(records) == 6
    for name, record in records.items():
        log = read_log(swept / "logs" / f"{name}.log")
        run = record["content"]
        if run["failed"]:
            continue
        assert log["loss"].tolist() == [row["loss"] for row in run["epochs"]]
        assert log["parameters"][0] == {"seed": record["provenance"]["seed"], **run["identity"]["chosen"]}
        best = log[log["improved"]].iloc[-1]
        assert best["epoch"] == run["best_epoch"]
        assert run["valid"]["recall@20"] == pytest.approx(best["valid.recall@20"], abs=6e-5)
        assert run["test"]["recall@20"] == pytest.approx(best["test.recall@20"], abs=6e-5)
        assert run["peak_bytes"] > 10**8
        assert str(swept) not in json.dumps(record)


def test_a_run_that_diverges_is_named_and_the_rest_goes_on(swept):
    runs = {name: record["content"] for name, record in read_study(swept, "sweep-run").items()}
    assert runs["BPR-learning_rate1e+30-seed999"]["failed"].startswith("Loss is nan at epoch: 0, batch index: 1")
    assert [name for name, run in runs.items() if not run["failed"]] == [
        f"{model}-learning_rate0.01-seed{seed}" for model in ("BPR", "GRCN") for seed in (1000, 999)
    ]


def test_a_model_is_accelerated_where_that_can_be_and_its_run_says_so(swept):
    runs = {name: record["content"] for name, record in read_study(swept, "sweep-run").items()}
    grcn, bpr = (runs[f"{model}-learning_rate0.01-seed999"] for model in ("GRCN", "BPR"))
    assert grcn["note"].startswith("GRCN accelerated on cpu")
    assert grcn["gain"]["factor"]["rounds"] >= 3
    assert bpr["note"].startswith("as it is: BPR is not one of MMRec's models")
    assert "refused" in bpr["gain"]
    assert runs["GRCN-learning_rate0.01-seed1000"]["gain"] is None


def test_the_summary_has_the_grid_the_best_and_the_cost(swept):
    content = read_record(swept / "records" / "sweep.json", "sweep")["content"]
    assert [(row["variant"], row["setting"], row["seeds"]) for row in content["variants"]] == [
        ("BPR", {"learning_rate": 0.01}, 2),
        ("GRCN", {"learning_rate": 0.01}, 2),
    ]
    assert [
        (row["model"], row["chosen"]["learning_rate"], row["valid_recall@20"] is None) for row in content["grid"]
    ] == [
        ("BPR", 0.01, False),
        ("BPR", 1e30, True),
        ("GRCN", 0.01, False),
        ("GRCN", 1e30, True),
    ]
    assert content["pairs"][0]["seeds"] == 2
    cost = {row["model"]: row for row in content["cost"]}
    assert (cost["GRCN"]["runs"], cost["GRCN"]["failed"], cost["BPR"]["factor"]) == (3, 1, None)
    assert cost["GRCN"]["as_it_is_s"] - cost["GRCN"]["seconds"] == pytest.approx(longer(swept), rel=1e-9)


def longer(swept):
    """Seconds that GRCN's runs would have taken more, by hand."""
    runs = [record["content"] for record in read_study(swept, "sweep-run").values()]
    runs = [run for run in runs if run["identity"]["variant"] == "GRCN" and not run["failed"]]
    (gain,) = (run["gain"] for run in runs if run["gain"])
    fast_ms = gain["own_ms"] / gain["factor"]["median"]
    return sum(run["steps"] for run in runs) * (gain["own_ms"] - fast_ms) / 1000


def test_validation_chooses_not_the_test():
    def run(point, seed, valid, test):
        users = {"count": 2, "digest": "d", **dict.fromkeys(("recall@20", "ndcg@20"), packed([test, test]))}
        common = {"epochs": [], "failed": None, "steps": 1, "seconds": 1.0, "peak_bytes": 1, "note": "", "gain": None}
        identity = {"variant": "M", "seed": seed, "chosen": {"a": point}}
        shown = {"identity": identity, "name": "r", "setting": point, "search": seed == 999, "users": users}
        return shown | common | {"valid": {"recall@20": valid}, "test": {"recall@20": test}}

    content = sweep_summary([run(0, 999, 0.5, 0.1), run(1, 999, 0.4, 0.9), run(0, 1000, 0.5, 0.2)])
    assert content["variants"][0]["setting"] == {"a": 0}
    assert content["variants"][0]["recall@20"] == pytest.approx(0.15)
    assert "test" not in json.dumps(content["grid"])


def packed(values):
    from mmrec_helpers.experiments.accuracy.study import pack

    return pack(np.array(values))


def test_a_finished_sweep_trains_nothing_again_and_a_wider_grid_only_what_is_new(checkout, swept, tmp_path, capsys):
    out = shutil.copytree(swept, tmp_path / "out")
    common = ["--model", "GRCN", "BPR", "--seeds", "2", "--grid"]
    assert main(words(checkout, out, *common, "learning_rate=0.01,1e30")) == 0
    assert capsys.readouterr().err.splitlines() == ["6 of 6 runs are done, one at a time"]
    assert main(words(checkout, out, "--model", "BPR", "--seeds", "2", "--grid", "learning_rate=0.002,0.01")) == 0
    first, *said = capsys.readouterr().err.splitlines()
    assert first.startswith("1 of 3 runs are done")
    assert said[0].startswith("[2/3] BPR-learning_rate0.002-seed999")
    assert all("rate0.002" in line for line in said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plain"], "accelerated is True there and False here"),
        (["--set", "epochs=3"], "options is {} there and {'epochs': 3} here"),
        (["--scale", "0.1"], "made on data"),
    ],
)
def test_a_folder_with_another_sweep_is_refused_before_any_run(checkout, swept, tmp_path, capsys, more, said):
    out = shutil.copytree(swept, tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(words(checkout, out, "--model", "BPR", "--grid", "learning_rate=0.003", *more)) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_with_a_sweep_of_other_code_or_with_a_study_is_refused(checkout, swept, tmp_path, capsys):
    other = shutil.copytree(checkout, tmp_path / "MMRec")
    (other / "src" / "models" / "bpr.py").write_text((other / "src" / "models" / "bpr.py").read_text() + "\n")
    out = shutil.copytree(swept, tmp_path / "out")
    assert main(words(other, out, "--model", "BPR", "--grid", "learning_rate=0.01")) == 2
    assert "checkout is " in capsys.readouterr().err
    study = ["study", "--scale", "0.1", "--variants", "popularity", "--out", str(tmp_path / "study")]
    assert main(study) == 0
    assert main(words(checkout, tmp_path / "study", "--model", "BPR")) == 2
    assert "a record of kind 'study-run': expected 'sweep-run'" in capsys.readouterr().err


def test_two_sweeps_do_not_write_one_folder(checkout, tmp_path, capsys):
    from mmrec_helpers.files import only_writer

    with only_writer(tmp_path / "out"):
        command = [sys.executable, "-m", "mmrec_helpers", *words(checkout, tmp_path / "out", "--model", "BPR")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 1
    assert "another process is writing it" in done.stderr.splitlines()[-1]


def test_a_model_that_cannot_be_built_is_a_failed_run(checkout, tmp_path):
    plan = plan_sweep(checkout, ["Broken", "BPR"], "embedded", {"learning_rate": [0.01]}, seeds=1)
    found = run_study(make_payload(checkout, SOURCE, plan.variants), plan, tmp_path)
    assert "Broken cannot be built" in found["Broken-learning_rate0.01-seed999"]["failed"]
    assert found["BPR-learning_rate0.01-seed999"]["failed"] is None


def test_plain_trains_the_model_as_it_is_to_nearly_the_same(checkout):
    data, settings = SOURCE.open(), {"epochs": 2, "learning_rate": 0.01}
    fast, own = (train_one(checkout, data, settings, accelerated) for accelerated in (True, False))
    assert own.note == "as it is"
    np.testing.assert_allclose(losses(fast.log), losses(own.log), rtol=1e-3)
    assert fast.metrics["test"]["recall@20"].mean() == pytest.approx(own.metrics["test"]["recall@20"].mean(), abs=0.02)


def train_one(checkout, data, settings, accelerated):
    how = {"settings": settings, "accelerated": accelerated}
    return in_own_process(_train_one, str(checkout), data, how)


def _train_one(checkout, data, how):
    torch.set_num_threads(1)
    return train_by_mmrec(open_checkout(checkout), "GRCN", data, **how)


def losses(log):
    import re

    return [float(value) for value in re.findall(r"train loss: ([\d.]+)", log)]


def test_workers_need_neither_the_checkout_nor_the_data(tmp_path):
    """Another machine, as far as files go: what the runs need is gone before they start."""
    checkout, there = make_checkout(tmp_path), Elsewhere(tmp_path)
    try:
        plan = plan_sweep(checkout, ["BPR", "DRAGON"], "embedded", {"learning_rate": [0.01]}, seeds=1)
        payload = make_payload(checkout, SOURCE, plan.variants)
        assert "beside/user_graph_dict.npy" in payload.files
        shutil.rmtree(checkout)
        found = run_study(payload, plan, tmp_path / "out", scheduler=there.address)
    finally:
        there.stop()
    assert [run["failed"] for run in found.values()] == [None, None]


# ------------------------------------------------------------------------------------------------ the page


def page(folder, tmp_path, monkeypatch):
    """What page 15 shows of a sweep: all of it as plain text, and its sentences."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    names, space = {"sweep": str(folder), "run": str(tmp_path / "run")}, {}
    for cell in nbformat.read(Path(__file__).parents[1] / "notebooks" / "15-sweep.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "15-sweep", "exec"), space)
            space |= names if "parameters" in cell.metadata.get("tags", []) else {}
    said = [data for data in shown if "text/markdown" in data or 'class="answer"' in data.get("text/html", "")]
    return ["\n".join(data.get("text/plain", "") for data in some) for some in (shown, said)]


def test_the_page_says_what_is_best_and_what_failed(swept, tmp_path, monkeypatch):
    text, said = page(swept, tmp_path, monkeypatch)
    assert "the highest mean test recall@20 is that of GRCN, 0." in text
    assert "at learning_rate 0.01. 6 runs took" in text
    assert "; unaccelerated " in text
    assert "4 points searched; 2 runs failed. Validation chose GRCN at learning_rate 0.01;" in text
    assert "Fewer than 5 paired seeds of each model decide nothing." in text
    assert complaints(said) == []


def test_the_page_of_a_grid_draws_a_map_or_lines_and_one_of_failures_says_so(swept, tmp_path, monkeypatch):
    record = read_record(swept / "records" / "sweep.json")
    (tmp_path / "sweep" / "records").mkdir(parents=True)
    path, content = tmp_path / "sweep" / "records" / "sweep.json", record["content"]
    found = [
        {**content["grid"][0], "model": model, "chosen": {"a": a, "b": b}, "failed": None, "valid_recall@20": a * b}
        for model, values in (("Two", (1, 2)), ("One", (1,)))
        for a in (0.1, 0.2)
        for b in values
    ]
    path.write_text(json.dumps(record | {"content": content | {"grid": found}}))
    text, said = page(tmp_path / "sweep", tmp_path, monkeypatch)
    assert "Two: validation recall@20 by a and b; the best is at a 0.2 and b 2." in text
    assert "Validation recall@20 by a, a line per model." in text
    nothing = content | {"grid": [row | {"valid_recall@20": None, "failed": "it is broken"} for row in found]}
    cost = [row | {"factor": None, "as_it_is_s": None} for row in content["cost"]]
    path.write_text(json.dumps(record | {"content": nothing | {"variants": [], "pairs": [], "cost": cost}}))
    text, said = page(tmp_path / "sweep", tmp_path, monkeypatch)
    assert "No model could be trained on" in text
    assert "none was accelerated" in text
    assert complaints(said) == []


def test_a_page_without_a_sweep_says_how_to_make_one(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="make one with `python -m mmrec_helpers sweep`"):
        page(tmp_path / "nowhere", tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------ a process of its own


def answer_with(value):
    print("not an answer")
    return os.getpid(), value


def fail_with(error):
    raise error


def end_with(status):
    os._exit(status)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_of_its_own_gives_back_what_the_call_returns_or_raises():
    pid, value = in_own_process(answer_with, [1.5])
    assert value == [1.5]
    assert pid != os.getpid()
    with pytest.raises(InputError, match="no such thing"):
        in_own_process(fail_with, InputError("no such thing"))
    with pytest.raises(RuntimeError, match="EmptyDataError: none"):
        in_own_process(fail_with, __import__("pandas").errors.EmptyDataError("none"))


def test_a_process_that_dies_is_named():
    with pytest.raises(TrainingError, match="its process ended with 3"):
        in_own_process(end_with, 3)
    with pytest.raises(TrainingError, match=r"its process was killed \(signal 9\), most likely for want of memory"):
        in_own_process(kill_itself)


WAITS = """
import signal, time
from mmrec_helpers.experiments.cluster import in_own_process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
in_own_process(time.sleep, 600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_parent(number):
    parent = subprocess.Popen([sys.executable, "-c", WAITS], env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=-3)
    for _ in range(600):
        if children := psutil.Process(parent.pid).children():
            break
        time.sleep(0.05)
    time.sleep(1)
    parent.send_signal(number)
    parent.wait(20)
    assert psutil.wait_procs(children, timeout=20)[1] == []


# ------------------------------------------------------------------------------------------------ the real checkout


def quick_start(name, data, settings):
    """The log of MMRec's own ``quick_start``."""
    torch.set_num_threads(1)
    checkout = open_checkout(os.environ.get("MMREC", REAL))
    with checkout.built(name, data, "cpu", 999, settings) as (_, batches):
        batches._compatibility.building = True  # DRAGON could not be built on a CPU
        config = dict(batches.config.final_config_dict) | settings | {"hyper_parameters": ["seed"], "seed": [999]}
        import_module("utils.quick_start").quick_start(name, config["dataset"], config, save_model=False)
        return next(Path("log").glob("*.log")).read_text(encoding="utf-8")


def sweep_log(name, data, settings):
    torch.set_num_threads(1)
    checkout = open_checkout(os.environ.get("MMREC", REAL))
    return train_by_mmrec(checkout, name, data, settings=settings, accelerated=False).log


@pytest.mark.real
@pytest.mark.parametrize("name", ["FREEDOM", "GRCN", "DRAGON", "LightGCN", "VBPR"])
def test_a_run_is_that_of_mmrecs_own_quick_start(name, tmp_path):
    data, settings = DataSource("tiktok", scale=0.05).open(), {"epochs": 3}
    tables = []
    for at, function in enumerate((quick_start, sweep_log)):
        path = tmp_path / f"{at}.log"
        path.write_text(in_own_process(function, name, data, settings), encoding="utf-8")
        tables.append(read_log(path).drop(columns=["time", "epoch_s", "parameters"]))
    assert len(tables[0]) == 3
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("values", "several"), [([1e-3, 1e-2], True), ([1e-3, 2e-3], False), ([0.0, 1.0], False), (["add", "mean"], False)]
)
def test_a_parameter_of_several_sizes_is_drawn_on_a_logarithmic_axis(values, several):
    assert spans_decades(pd.Series(values)) is several

"""``examine`` on this project's models and on those of a checkout, by function and by command."""

import json
import textwrap

import pytest

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import write_mmrec
from mmrec_helpers.experiments import examine as experiment
from mmrec_helpers.experiments.examine import checkout_table, measure_examine
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.files import only_writer
from mmrec_helpers.records import read_record
from tests.mmrec_checkout import laid_out_data, make_checkout

OPTIONS = MeasureOptions(batch_size=64, repeats=1, warmup=0)
FAILING = """
    from torch import nn
    from common.base import Recommender

    class Failing(Recommender):
        def __init__(self, config, loader):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def calculate_loss(self, batch):
            return self.layer.no_such_part
    """


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.fixture
def checkout(tmp_path):
    root = make_checkout(tmp_path)
    (root / "src" / "models" / "failing.py").write_text(textwrap.dedent(FAILING))
    return root


def test_the_dead_calls_of_grcn_are_found_at_their_line():
    (found,) = measure_examine(laid_out_data(), OPTIONS)["models"]
    dead = next(row for row in found["waste"] if row["kind"] == "dead call")
    assert dead["calls"] == 6
    assert "attention (call 0, 1, 2)" in dead["what"]
    assert "models/grcn.py" in dead["place"]
    assert any("remove_self_loops" in row["source"] for row in found["waste"] if row["kind"] == "constant")


def test_every_model_of_a_checkout_has_a_row(checkout):
    contents = measure_examine(laid_out_data(), OPTIONS, "all", checkout, dead_seconds=0.0)["models"]
    table = checkout_table(contents).set_index("model")
    assert list(table.index) == ["BPR", "Broken", "DRAGON", "Failing", "GRCN", "ItemKNN", "Old"]
    assert "torchvision" in table.loc["Broken", "note"]
    assert "no training step" in table.loc["ItemKNN", "note"]
    assert "AttributeError" in table.loc["Failing", "note"]
    assert "(models/failing.py, line 11)" in table.loc["Failing", "note"]
    assert (table.loc[["DRAGON", "GRCN", "Old"], "step_ms"] > 0).all()
    assert (table.loc[["DRAGON", "GRCN"], "accelerated"] > 0).all()
    assert table.loc["Old", "lost"] == 1


def test_a_model_too_large_is_refused_with_the_number(checkout, monkeypatch):
    monkeypatch.setitem(experiment.LARGE, "items", 1)
    monkeypatch.setattr(experiment, "_PARTS", (0.4, 0.8))
    monkeypatch.setattr(experiment, "step_limit_bytes", lambda device: 1000.0)
    with pytest.raises(InputError, match=r"GRCN on toys is predicted to take .* GiB"):
        measure_examine(laid_out_data(), OPTIONS, "GRCN", checkout)


def test_a_step_too_large_is_refused_before_it_with_the_number(checkout, monkeypatch):
    monkeypatch.setattr(experiment, "step_limit_bytes", lambda device: 1000.0)
    with pytest.raises(InputError, match=r"a step of GRCN on toys is predicted to take .* GiB"):
        measure_examine(laid_out_data(), OPTIONS, "GRCN", checkout)


def test_an_interrupt_among_several_models_keeps_those_that_were_examined(checkout, tmp_path, monkeypatch):
    examined = experiment._examine_mmrec

    def interrupted(mmrec, name, *others):
        if name == "DRAGON":
            raise KeyboardInterrupt
        return examined(mmrec, name, *others)

    monkeypatch.setattr(experiment, "_examine_mmrec", interrupted)
    out, folder = tmp_path / "out", write_mmrec(laid_out_data(), tmp_path / "toys")
    given = ["examine", "--mmrec", str(checkout), "--dataset", str(folder), "--device", "cpu", "--visual"]
    given += [
        "image_feat.npy",
        "--textual",
        "text_feat.npy",
        "--repeats",
        "1",
        "--dead-seconds",
        "0",
        "--out",
        str(out),
    ]
    assert main(given) == 130
    record = out / "records" / "14-examine.json"
    assert [found["model"] for found in read_record(record, "examine")["content"]["models"]] == ["BPR", "Broken"]
    monkeypatch.setattr(experiment, "_examine_mmrec", examined)
    assert main(given) == 0
    complete = record.read_bytes()
    monkeypatch.setattr(experiment, "_examine_mmrec", interrupted)
    assert main(given) == 130
    assert record.read_bytes() == complete


def test_the_command_writes_one_record_and_says_what_to_do(checkout, tmp_path, capsys):
    folder, out = write_mmrec(laid_out_data(), tmp_path / "toys"), tmp_path / "out"
    arguments = ["examine", "--mmrec", str(checkout), "--model", "Old", "--dataset", str(folder), "--device", "cpu"]
    arguments += ["--visual", "image_feat.npy", "--textual", "text_feat.npy", "--repeats", "1", "--out", str(out)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "lost gradient (proved) hidden" in said
    assert "Register it" in said
    record = read_record(out / "records" / "14-examine.json", "examine")
    assert [found["model"] for found in record["content"]["models"]] == ["Old"]
    assert str(tmp_path) not in json.dumps(record)


def test_it_is_recorded_as_every_part_is(checkout, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "out" / "records" / "14-examine.json"
    given = ["examine", "--mmrec", str(checkout), "--model", "Old", "--set", "n_layers=1", "--device", "cpu"]
    given += ["--dataset", "embedded", "--scale", "0.1", "--repeats", "1", "--dead-seconds", "0", "--out", str(out)]
    with only_writer(path.parent, path.name):
        assert main(given) == 1
    assert "another process is writing it" in capsys.readouterr().err
    assert main(given) == 0
    settings = read_record(path, "examine")["provenance"]["settings"]
    asked = {"model": "Old", "dead_seconds": 0.0, "mmrec_settings": {"n_layers": 1}, "scale": 0.1, "repeats": 1}
    assert asked.items() <= settings.items()
    path.write_text("my notes")
    assert main([*given, "--dataset", "no-such"]) == 2  # before any data is opened
    assert "it is left as it is" in capsys.readouterr().err
    assert path.read_text() == "my notes"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mmrec", "no-such"], "no-such is no checkout of MMRec"),
        (["--model", "NGCF"], "'NGCF'"),
        (["--set", "n_layers=1"], "expected with --mmrec"),
    ],
)
def test_bad_input_is_one_line(more, message, capsys):
    assert main(["examine", "--device", "cpu", *more]) == 2
    assert message in capsys.readouterr().err

"""``measure``: the catalogue's parts, unattended, one record each."""

import dataclasses

import pytest

from mmrec_helpers.cli import main
from mmrec_helpers.experiments import catalogue
from mmrec_helpers.experiments.catalogue import PARTS, run_gpu_tests
from mmrec_helpers.pages.collection import find_notebooks
from mmrec_helpers.records import read_record

SMALL = ["--dataset", "embedded", "--scale", "0.1", "--device", "cpu", "--batch-size", "256"]
SMALL += ["--repeats", "1", "--max-seconds", "1", "--warmup", "1"]


def test_parts_are_measured_and_one_that_is_there_is_not_measured_again(tmp_path, capsys):
    wanted = ["measure", "routing", "data", *SMALL, "--out", str(tmp_path)]
    assert main(wanted) == 0
    assert "routing: measured" in capsys.readouterr().out
    made = read_record(tmp_path / "records" / "05-routing.json", "routing")
    assert made["provenance"]["settings"]["scale"] == 0.1
    assert made["provenance"]["settings"]["batch_size"] == 256
    assert main(wanted) == 0
    assert "routing: there already" in capsys.readouterr().out
    assert read_record(tmp_path / "records" / "05-routing.json") == made


def test_steps_and_traces_without_a_notebook(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert main(["measure", "steps", "epoch", *SMALL, *out, "--variants", "grcn-fused", "dragon"]) == 0
    text = capsys.readouterr().out
    assert "GRCN, fused" in text
    assert "ui.perfetto.dev" in text
    assert {row["variant"] for row in read_record(tmp_path / "records" / "04-steps.json")["content"]["variants"]} == {
        "grcn",
        "grcn-fused",
        "dragon",
    }
    assert (tmp_path / "traces" / "epoch" / "GRCN.trace.json.gz").is_file()
    assert list((tmp_path / "traces" / "epoch" / "tensorboard").iterdir())


def test_a_part_that_fails_leaves_no_record_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(data, options):
        raise RuntimeError("CUDA out of memory\nlong story")

    monkeypatch.setitem(PARTS, "routing", dataclasses.replace(PARTS["routing"], measure=fail))
    assert main(["measure", "routing", "data", *SMALL, "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "RuntimeError: CUDA out of memory" in text
    assert "long story" not in text
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["01-data.json"]


def test_no_part_is_started_once_the_time_is_spent(tmp_path, capsys):
    assert main(["measure", "routing", *SMALL, "--out", str(tmp_path), "--total-seconds", "0"]) == 0
    assert "routing: no time left" in capsys.readouterr().out
    assert not (tmp_path / "records").exists()


def test_what_needs_cuda_or_minutes_is_left_out_unless_it_is_asked_for(tmp_path, capsys):
    assert main(["measure", *SMALL, "--out", str(tmp_path), "--total-seconds", "0"]) == 0
    text = capsys.readouterr().out
    assert "steps: no time left" in text
    assert not any(f"{part.name}: " in text for part in PARTS.values() if part.default is not True)
    assert main(["measure", "cuda-graphs", *SMALL, "--out", str(tmp_path)]) == 1
    assert "cuda-graphs: failed" in capsys.readouterr().out


def test_the_parts_and_variants_are_listed_and_unknown_ones_refused(tmp_path, capsys):
    assert main(["measure", "--list"]) == 0
    text = capsys.readouterr().out
    assert "epoch-diagnosed" in text
    assert "grcn-live-fused" in text
    assert main(["measure", "everything", *SMALL, "--out", str(tmp_path)]) == 2
    assert main(["measure", *SMALL]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("old", ["profile", "bench", "curves"])
def test_an_old_command_names_the_new_one(old, capsys):
    assert main([old, "--dataset", "baby"]) == 2
    assert f"error: {old} is now `python -m mmrec_helpers measure" in capsys.readouterr().err


def test_a_part_is_what_its_home_notebook_measures_and_its_module_is_named_after_it():
    sources = {book.name[:2]: book.path.read_text(encoding="utf-8") for book in find_notebooks()}
    for part in PARTS.values():
        chosen = part.name.startswith("epoch")  # by a parameter of its notebook
        drawn = ("gpu-tests", "same-curve", "prediction", "kernels")  # from committed records
        if part.name not in drawn:
            call = "session.measured(part," if chosen else f'session.measured(\\"{part.name}\\"'
            assert call in sources[part.home], part.name
        if part.home != "00" and part.name != "epoch-diagnosed":
            module = part.measure.__module__.rpartition(".")[2].replace("_", "-")
            assert module == part.name or part.name.startswith("structure-") or part.name == "data"


def test_the_tests_marked_gpu_are_counted(tmp_path, monkeypatch):
    mark = catalogue.GPU_MARK
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        f"import pytest\npytestmark = pytest.{mark}\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_away(): pytest.skip('no GPU')\n"
    )
    (tmp_path / "tests" / "test_other.py").write_text("import a_package_that_is_not_here\n")
    (tmp_path / "tests" / "test_broken.py").write_text(f"import a_package_that_is_not_here  # pytest.{mark}\n")
    monkeypatch.setattr(catalogue, "project_root", lambda: tmp_path)
    found = run_gpu_tests()
    assert (found["tests"], found["failures"], found["errors"], found["skipped"]) == (4, 1, 1, 1)
    outcomes = {case["test"].split("::")[-1].removeprefix("tests."): case["outcome"] for case in found["cases"]}
    expected = {"test_good": "passed", "test_bad": "failure", "test_away": "skipped", "test_broken": "error"}
    assert outcomes == expected

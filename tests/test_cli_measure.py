"""``measure``: the notebooks' measurements, part by part, unattended."""

from mmrec_helpers.cli import main
from mmrec_helpers.experiments import catalogue as parts
from mmrec_helpers.pages.collection import find_notebooks
from mmrec_helpers.records import read_record

SMALL = ["measure", "--dataset", "embedded", "--scale", "0.3", "--device", "cpu", "--batch-size", "256"]
SMALL += ["--repeats", "1", "--part-seconds", "1"]


def test_parts_are_measured_and_one_that_is_there_is_not_measured_again(tmp_path, capsys):
    wanted = [*SMALL, "--out", str(tmp_path), "--parts", "attention", "roofline"]
    assert main(wanted) == 1  # the roofline needs the epoch's record
    told = capsys.readouterr().out
    assert "attention: measured" in told
    assert "roofline: failed" in told
    assert "04-epoch.json" in told
    made = read_record(tmp_path / "records" / "05-attention.json", "attention")
    assert made["provenance"]["settings"]["scale"] == 0.3
    assert main(wanted) == 1
    assert "attention: there already" in capsys.readouterr().out
    assert read_record(tmp_path / "records" / "05-attention.json") == made


def test_a_part_that_fails_leaves_no_record_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(task):
        raise RuntimeError("CUDA out of memory\nlong story")

    broken = parts.Part("05-routing", "routing", "", fail)
    monkeypatch.setitem(parts.PARTS, "routing", broken)
    assert main([*SMALL, "--out", str(tmp_path), "--parts", "routing", "attention"]) == 1
    told = capsys.readouterr().out
    assert "RuntimeError: CUDA out of memory" in told
    assert "long story" not in told
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["05-attention.json"]


def test_no_part_is_started_once_the_time_is_spent(tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path), "--parts", "attention", "--seconds", "0"]) == 0
    assert "attention: no time left" in capsys.readouterr().out
    assert not (tmp_path / "records").exists()


def test_what_needs_cuda_is_left_out_on_a_cpu_unless_it_is_asked_for(tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path), "--seconds", "0"]) == 0
    told = capsys.readouterr().out
    assert "derivation: no time left" in told
    assert not any(f"{name}: " in told for name in parts.ON_CUDA_ALONE)
    assert main([*SMALL, "--out", str(tmp_path), "--parts", "cuda-graphs"]) == 1
    assert "cuda-graphs: failed" in capsys.readouterr().out


def test_the_parts_are_listed_and_unknown_ones_refused(tmp_path, capsys):
    assert main(["measure", "--list"]) == 0
    assert "epoch-diagnosed" in capsys.readouterr().out
    assert main([*SMALL, "--out", str(tmp_path), "--parts", "everything"]) == 2
    assert main(SMALL) == 2
    assert "--out" in capsys.readouterr().err


def test_records_have_the_names_that_the_notebooks_read():
    sources = {book.name[:2]: book.path.read_text(encoding="utf-8") for book in find_notebooks()}
    for part in parts.PARTS.values():
        number, _, name = part.record.partition("-")
        if number.isdigit():
            assert f'session.measured(\\"{part.kind}\\"' in sources[number], part
            assert f'\\"{name.removesuffix("-diagnosed")}\\"' in sources[number], part


def test_the_tests_marked_gpu_are_counted(tmp_path, monkeypatch):
    mark = parts.GPU_MARK
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        f"import pytest\npytestmark = pytest.{mark}\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_away(): pytest.skip('no GPU')\n"
    )
    (tmp_path / "tests" / "test_other.py").write_text("import a_package_that_is_not_here\n")
    (tmp_path / "tests" / "test_broken.py").write_text(f"import a_package_that_is_not_here  # pytest.{mark}\n")
    monkeypatch.setattr(parts, "project_root", lambda: tmp_path)
    found = parts.PARTS["tests"].measure(None)
    assert (found["tests"], found["failures"], found["errors"], found["skipped"]) == (4, 1, 1, 1)
    outcomes = {case["test"].split("::")[-1].removeprefix("tests."): case["outcome"] for case in found["cases"]}
    expected = {"test_good": "passed", "test_bad": "failure", "test_away": "skipped", "test_broken": "error"}
    assert outcomes == expected

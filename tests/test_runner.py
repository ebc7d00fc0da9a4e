"""The runner: order, parameters, pages of finished and failing notebooks, interruption, existing runs."""

import errno
import os
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.files import only_writer, parse_literal
from mmrec_helpers.pages import runner
from mmrec_helpers.pages.collection import check_parameters, find_notebooks, run_order, select
from mmrec_helpers.pages.html import external_requests
from mmrec_helpers.records import find_records, read_record

SHARED = [
    "depth = 1  # unused",
    'dataset = "embedded"  # the data',
    "scale = 1.0  # its share",
    'device = "auto"  # where',
    'run = ""  # the folder',
]
WORK = [
    "from mmrec_helpers import pages\nfrom mmrec_helpers.data import DataSource\n"
    'session = pages.start("01-data", DataSource(dataset, scale=scale), device=device, run=run)',
    'session.record("sizes", "sizes", {"n_users": session.data.n_users})\n'
    'session.answer("How many?", f"**{session.data.n_users}** users.")',
    "import pandas as pd\n"
    'pages.show_table(pd.DataFrame({"split": ["train"], "pairs": [12345]}), caption="Splits")\n'
    'pages.takeaway("That is $n$.")',
]


def write(folder: Path, name: str, title: str, parameters: list[str], code: list[str]) -> None:
    cells = [new_markdown_cell(f"# {title}"), new_code_cell("\n".join(parameters), metadata={"tags": ["parameters"]})]
    book = new_notebook(cells=[*cells, *(new_code_cell(source) for source in code)])
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    write(folder, "00-start", "Start here", ['run = ""  # the folder'], ["import sys", "print(sys.executable)"])
    write(folder, "01-data", "What is the data?", SHARED, WORK)
    fail = "fail = True  # stop on purpose"
    write(
        folder,
        "02-more",
        "What more?",
        [fail, 'run = ""  # the folder'],
        ["x = 1", "if fail:\n    raise ValueError('on purpose')"],
    )
    return folder


@pytest.fixture(scope="module")
def stopped(notebooks, tmp_path_factory):
    """A run that stops in its second notebook: the run's folder, exit status, what stood on the terminal."""
    run = tmp_path_factory.mktemp("reports") / "night"
    return run, *call("report", "--notebooks", notebooks, "--run", run, "--scale", "0.5", "--device", "cpu")


def call(*words) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command, run in this process."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


# ---------------------------------------------------------------------------------------------- whole runs


def test_a_failing_cell_stops_the_run_and_says_where(stopped):
    run, status, out, err = stopped
    assert status == 1
    assert out == ""
    assert "notebook 1 of 3, 01-data: 4 cells in" in err
    assert "error: 02-more stopped at code cell 3 of 3" in err
    assert "    if fail:\n        raise ValueError('on purpose')\nValueError: on purpose\n" in err
    assert f"pages so far: {run / 'index.html'}" in err
    assert f"report --resume {run} --notebooks" in err
    assert "Traceback" not in err


def test_a_stopped_run_keeps_the_finished_pages(stopped):
    run = stopped[0]
    assert sorted(p.name for p in run.glob("*.html")) == ["01-data.html", "02-more.html", "index.html"]
    assert sorted(p.name for p in (run / "notebooks").iterdir()) == ["01-data.ipynb", "02-more.ipynb"]
    index = BeautifulSoup((run / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert "incomplete: stopped at a failure in 02-more, code cell 3" in index.select_one(".notice").get_text()
    assert [li.select_one(".question").get_text() for li in index.select(".pages li")] == [
        "Start here",
        "What is the data?",
        "What more?",
    ]
    failed = BeautifulSoup((run / "02-more.html").read_text(encoding="utf-8"), "html.parser")
    assert "code cell 3" not in failed.select_one("main").get_text()
    assert "ValueError: on purpose" in failed.select_one(".notice.failed").get_text()
    assert failed.find(id="failed").select_one(".traceback")


def test_a_finished_page_shows_the_answer_and_asks_no_network(stopped):
    run = stopped[0]
    text = (run / "01-data.html").read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert external_requests(text) == []
    assert "400 users." in page.select_one("section.answer").get_text()
    assert page.select_one("table caption").get_text() == "Parameters of this page"
    assert page.select_one("blockquote math")
    assert "12,345" in [cell.get_text() for cell in page.select("td.number")]
    assert [link["href"] for link in page.select("header nav a")] == ["index.html", "02-more.html"]


def test_records_and_executed_notebooks_hold_no_path_of_the_machine(stopped, notebooks):
    run = stopped[0]
    assert {name: r["kind"] for name, r in find_records(run).items()} == {
        "01-answer": "answer",
        "01-sizes": "sizes",
        "run": "run",
    }
    for path in [*run.glob("records/*.json"), *run.glob("notebooks/01*.ipynb"), *run.glob("*.html")]:
        assert str(run.parent) not in path.read_text(encoding="utf-8")
        assert str(notebooks) not in path.read_text(encoding="utf-8")


def test_a_run_goes_on_where_it_stopped(stopped, notebooks, tmp_path):
    """The last two notebooks alone, with the run's own parameters; the first page and its records stay."""
    run = Path(shutil.copytree(stopped[0], tmp_path / "night"))
    words = ["report", "--notebooks", notebooks, "--resume", run]
    before = (run / "records" / "01-sizes.json").read_bytes()
    status, out, err = call(*words, "-p", "fail", "false", "-p", "depth", "2")
    assert status == 0, err
    assert out == f"{run / 'index.html'}\n"
    assert f"updating the run {run}: pages 02, 00 are made, the others stay\n" in err
    assert "note: none of the chosen notebooks has the parameter depth\n" in err
    assert "notebook 1 of 2, 02-more" in err
    assert "notebook 2 of 2, 00-start" in err
    assert (run / "records" / "01-sizes.json").read_bytes() == before
    assert read_record(run / "records" / "run.json", "run")["content"]["state"] == "complete"
    start = BeautifulSoup((run / "00-start.html").read_text(encoding="utf-8"), "html.parser")
    assert sys.executable in start.select_one("pre.stream").get_text()
    assert not start.select(".notice")
    assert "night" in (run.parent / "index.html").read_text(encoding="utf-8")
    status, out, _ = call(*words)
    assert (status, out) == (0, f"nothing is left to do: {run / 'index.html'}\n")


# ---------------------------------------------------------------------------------------------- without a kernel


@pytest.fixture
def executed(monkeypatch):
    """Replaces execution: notebooks are copied, or raise what is put into the dictionary under their name."""
    raises: dict[str, BaseException] = {}

    def execute(source, target, parameters, manager, progress):
        book = nbformat.read(source, as_version=4)
        book.metadata["papermill"] = {"parameters": parameters}
        for cell in book.cells:
            cell.metadata["papermill"] = {"start_time": "then"}
        nbformat.write(book, target)
        if source.stem in raises:
            raise raises[source.stem]

    monkeypatch.setattr(runner, "_execute", execute)
    return raises


def test_ctrl_c_leaves_finished_pages_and_an_index(notebooks, tmp_path, executed):
    executed["02-more"] = KeyboardInterrupt()
    status, _, err = call("report", "--notebooks", notebooks, "--run", tmp_path / "run")
    assert status == 130
    assert err.splitlines()[-1].startswith("interrupted; go on with: python -m mmrec_helpers report --resume")
    assert "Traceback" not in err
    assert sorted(p.name for p in (tmp_path / "run").glob("*.html")) == ["01-data.html", "index.html"]
    assert [p.name for p in (tmp_path / "run" / "notebooks").iterdir()] == ["01-data.ipynb"]
    assert "incomplete: interrupted" in (tmp_path / "run" / "index.html").read_text(encoding="utf-8")


def test_a_full_disk_is_one_clear_error(notebooks, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runner, "execute_notebook", full)
    status, _, err = call("report", "--notebooks", notebooks, "--run", tmp_path / "run")
    partial = tmp_path / "run" / "notebooks" / ".01-data.partial.ipynb"
    assert (status, err) == (1, f"error: cannot write {partial}: No space left on device\n")
    assert not partial.exists()


def test_a_dead_kernel_is_a_failure(notebooks, tmp_path, executed):
    executed["02-more"] = DeadKernelError("Kernel died")
    status, _, err = call("report", "--notebooks", notebooks, "--run", tmp_path / "run")
    assert status == 1
    assert "02-more stopped at code cell 3 of 3" in err
    assert "the kernel died, most likely for want of memory" in err


def test_a_finished_page_outlives_a_later_failure(notebooks, tmp_path, executed):
    words = ["report", "--notebooks", notebooks, "--run", tmp_path / "run"]
    assert call(*words)[0] == 0
    page = (tmp_path / "run" / "02-more.html").read_text(encoding="utf-8")
    executed["02-more"] = DeadKernelError("Kernel died")
    assert call(*words, "--only", "02")[0] == 1
    main_text = page[page.index("<main") :]
    assert main_text in (tmp_path / "run" / "02-more.html").read_text(encoding="utf-8")
    assert "This notebook stopped" in (tmp_path / "run" / "02-more-failed.html").read_text(encoding="utf-8")
    executed.clear()
    assert call(*words, "--only", "02")[0] == 0
    assert not list((tmp_path / "run").rglob("*-failed*"))


def test_an_existing_run_is_updated_in_place_and_replaced_only_when_told_to(notebooks, tmp_path, executed):
    run = tmp_path / "run"
    words = ["report", "--notebooks", notebooks, "--run", run]
    assert call(*words)[0] == 0
    (run / "mine.txt").write_text("kept until the new run is done")
    status, _, err = call(*words)
    assert (status, "updating the run" in err) == (0, True)
    status, _, err = call(*words, "--scale", "0.5")
    assert (status, "was made with scale 1.0, not 0.5: give the same, another name with --run, or" in err) == (2, True)
    executed["02-more"] = KeyboardInterrupt()
    assert call(*words, "--overwrite")[0] == 130
    assert (run / "mine.txt").exists()
    executed.clear()
    assert call(*words, "--overwrite")[0] == 0
    assert not (run / "mine.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "run"]


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_kill_while_a_run_is_replaced_loses_neither(notebooks, tmp_path, executed, monkeypatch, renamed):
    words = ["report", "--notebooks", notebooks, "--run", tmp_path / "run"]
    assert call(*words)[0] == 0
    real, seen = os.rename, []

    def killed_after(*paths):
        real(*paths)
        seen.append(paths)
        if len(seen) == renamed:
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed_after)
        with pytest.raises(SystemExit):
            call(*words, "--overwrite")
    assert call("report", "--resume", tmp_path / "run", "--notebooks", notebooks)[1].startswith("nothing is left to do")
    assert call(*words, "--overwrite")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "run"]


def test_a_folder_of_the_users_at_the_place_of_the_new_run_stays(notebooks, tmp_path, executed):
    words = ["report", "--notebooks", notebooks, "--run", tmp_path / "run"]
    assert call(*words)[0] == 0
    (tmp_path / "run.new").mkdir()
    (tmp_path / "run.new" / "thesis.txt").write_text("precious")
    status, _, err = call(*words, "--overwrite")
    assert (status, "run.new exists and is not a run" in err) == (2, True)
    assert (tmp_path / "run.new" / "thesis.txt").exists()


def test_what_a_record_does_not_keep_has_to_be_named_again_to_resume(notebooks, tmp_path, executed):
    assert call("data", "synthesize", "embedded", tmp_path / "mine", "--scale", "0.1")[0] == 0
    executed["02-more"] = KeyboardInterrupt()
    words = ["report", "--notebooks", notebooks, "--run", tmp_path / "run", "--dataset", tmp_path / "mine"]
    go_on = call(*words)[2].splitlines()[-1].partition("python -m mmrec_helpers ")[2]
    executed.clear()
    status, _, err = call("report", "--resume", tmp_path / "run", "--notebooks", notebooks)
    assert (status, "it was made on the folder 'mine': give it with --dataset" in err) == (2, True)
    assert call(*shlex.split(go_on))[0] == 0
    status, _, err = call("report", "--resume", tmp_path / "nowhere", "--notebooks", notebooks)
    assert (status, "is no run: expected one that `report` made" in err) == (2, True)


def test_two_reports_on_one_run_do_not_mix(notebooks, tmp_path, executed):
    with only_writer(tmp_path / "run"):
        status, _, err = call("report", "--notebooks", notebooks, "--run", tmp_path / "run")
    assert (status, "another process is writing it" in err) == (1, True)
    assert call("report", "--notebooks", notebooks, "--run", tmp_path / "run")[0] == 0


def test_an_index_beside_the_run_that_is_somebody_elses_stays(notebooks, tmp_path, executed):
    (tmp_path / "index.html").write_text("<p>my own page")
    assert call("report", "--notebooks", notebooks, "--run", tmp_path / "run")[0] == 0
    assert (tmp_path / "index.html").read_text() == "<p>my own page"


def test_a_folder_that_is_no_run_is_refused(notebooks, tmp_path, executed):
    (tmp_path / "thesis.txt").write_text("precious")
    for extra in ([], ["--overwrite"], ["--only", "01"]):
        status, _, err = call("report", "--notebooks", notebooks, "--run", tmp_path, *extra)
        assert (status, "exists and is not a run" in err) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_relative_dataset_reaches_the_notebooks_as_an_absolute_folder(notebooks, tmp_path, executed, monkeypatch):
    assert call("data", "synthesize", "embedded", tmp_path / "sets" / "mine", "--scale", "0.5")[0] == 0
    given = {}
    copy = runner._execute
    monkeypatch.setattr(runner, "_execute", lambda *args: (given.update({args[0].stem: args[2]}), copy(*args)))
    monkeypatch.chdir(tmp_path / "sets")
    words = ["report", "--notebooks", notebooks, "--dataset", "mine", "--run", tmp_path / "run"]
    assert call(*words)[0] == 0
    assert given["01-data"] == {"dataset": str(tmp_path / "sets" / "mine"), "run": str(tmp_path / "run")}
    assert given["02-more"] == {"run": str(tmp_path / "run")}
    assert read_record(tmp_path / "run" / "records" / "run.json")["content"]["parameters"] == {"dataset": "mine"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "embeded"], "embeded"),
        (["--device", "tpu"], "unknown device 'tpu': expected auto, cpu, cuda or cuda:N"),
        (["--scale", "-1"], "scale is -1.0: expected a number greater than 0"),
        (
            ["-p", "epoch", "3"],
            "unknown parameter 'epoch': the notebooks 00, 01, 02 have dataset, depth, device, fail, run, scale",
        ),
        (["--seed", "3"], "unknown parameter 'seed'"),
        (["--dataset", "nowhere"], "unknown data set 'nowhere': expected one of embedded,"),
        (["-p", "fail", "3"], "parameter fail is 3: expected True or False, like True"),
        (["-p", "scale", "3"], "-p scale: expected --scale 3"),
        (["--only", "07"], "--only '07': expected numbers of notebooks, or ranges of them: 01, 02, 00"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(notebooks, tmp_path, executed, words, message):
    status, out, err = call("report", "--notebooks", notebooks, "--run", tmp_path / "run", *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- the collection


def test_the_opening_notebook_runs_last(notebooks):
    found = find_notebooks(notebooks)
    assert [n.name for n in found] == ["00-start", "01-data", "02-more"]
    assert [n.name for n in run_order(found)] == ["01-data", "02-more", "00-start"]
    assert found[1].title == "What is the data?"
    assert found[1].defaults == {"dataset": "embedded", "scale": 1.0, "device": "auto", "run": "", "depth": 1}


@pytest.mark.parametrize(
    ("only", "names"),
    [("", ["01", "02", "00"]), ("02", ["02"]), ("00,01", ["01", "00"]), ("02-", ["02", "00"]), ("1-2", ["01", "02"])],
)
def test_notebooks_are_chosen_by_number(notebooks, only, names):
    assert [n.name[:2] for n in select(find_notebooks(notebooks), only)] == names


def test_a_whole_number_is_good_for_a_float_parameter(notebooks):
    check_parameters(find_notebooks(notebooks), {"scale": 2})
    with pytest.raises(InputError, match=r"parameter scale is 'big': expected a number, like 1\.0"):
        check_parameters(find_notebooks(notebooks), {"scale": "big"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("None", None), ("null", None), ("[1, 2]", [1, 2]), ("tiktok", "tiktok")],
)
def test_values_on_the_command_line_are_literals_or_text(text, value):
    assert parse_literal(text) == value


def test_a_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected files named like 01-data\.ipynb"):
        find_notebooks(tmp_path)
    (tmp_path / "01-x.ipynb").write_text("{")
    with pytest.raises(InputError, match=r"01-x\.ipynb: not a notebook"):
        find_notebooks(tmp_path)

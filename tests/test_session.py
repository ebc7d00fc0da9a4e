"""What a notebook calls: its data, the records it measures or reads, the registered numbers that it states."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource, write_mmrec
from mmrec_helpers.experiments import catalogue
from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.experiments.quantities import find_value, quantities, quantity_table
from mmrec_helpers.pages import noise_note, start
from mmrec_helpers.pages.notebook import ACCOUNT, warn_of_unknown_parameters
from mmrec_helpers.progress import progress
from mmrec_helpers.records import find_records, read_record

SOURCE = DataSource("embedded", scale=0.5, seed=2)


@pytest.fixture
def open_session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def opened(notebook="04-epoch", source=SOURCE, run="run", **options):
        return start(notebook, source, device="cpu", seed=2, run=str(tmp_path / run), **options)

    return opened


@pytest.fixture
def counted(monkeypatch):
    """A part that counts how often it is measured; its home is notebook 05."""
    calls = []

    def measure(data, options, times=1):
        calls.append(times)
        return {"edges": (data.train.shape[1],), "times": times, "batch_size": options.batch_size}

    monkeypatch.setitem(PARTS, "routing", dataclasses.replace(PARTS["routing"], measure=measure))
    return calls


def test_what_is_measured_is_recorded_and_comes_back_as_the_record_holds_it(open_session, counted):
    session = open_session("05-routing")
    content = session.measured("routing", session.options(batch_size=64), times=2)
    assert content == {"edges": [session.data.train.shape[1]], "times": 2, "batch_size": 64}
    record = read_record(session.run_folder / "records" / "05-routing.json", "routing")
    settings = record["provenance"]["settings"]
    assert (settings["times"], settings["batch_size"], settings["scale"]) == (2, 64, 0.5)
    assert record["provenance"]["seed"] == 2
    assert session.data.name in session.machine("routing")
    assert session.contents["routing"] == content


def test_another_notebook_reads_what_the_run_has_and_the_home_measures_anew(open_session, counted):
    home, other = open_session("05-routing"), open_session("02-structure-grcn")
    for session, expected in ((home, 1), (other, 1), (home, 2)):
        session.measured("routing", session.options(batch_size=64, repeats=expected))
        assert len(counted) == expected


@pytest.mark.parametrize("change", ["batch size", "data", "argument"])
def test_another_notebook_measures_what_was_made_otherwise(open_session, counted, change):
    home = open_session("05-routing")
    home.measured("routing", home.options(batch_size=64))
    source = DataSource("embedded", scale=0.4) if change == "data" else SOURCE
    other = open_session("02-structure-grcn", source)
    more = {"times": 3} if change == "argument" else {}
    other.measured("routing", other.options(batch_size=32 if change == "batch size" else 64), **more)
    assert len(counted) == 2


def test_with_records_from_elsewhere_nothing_is_measured_and_their_settings_are_shown(
    open_session, counted, monkeypatch
):
    home = open_session("05-routing")
    home.measured("routing", home.options(batch_size=4096))
    shown = []
    monkeypatch.setattr("mmrec_helpers.pages.notebook.show_markdown", shown.append)
    drawn = open_session("05-routing", run="drawn", records=str(home.run_folder))
    assert drawn.measured("routing", drawn.options(batch_size=64))["batch_size"] == 4096
    assert len(counted) == 1
    assert "batch_size 4096; this page's own batch_size 64 did not apply" in shown[0]
    drawn.measured("routing", drawn.options(batch_size=64))
    drawn.measured("routing", drawn.options(batch_size=4096, repeats=2))
    assert len(shown) == 1  # said once; how often something was repeated is not another measurement
    made, copied = (find_records(session.run_folder, "routing") for session in (home, drawn))
    assert copied == made


def test_records_from_elsewhere_have_to_be_there_and_of_this_data(open_session, counted, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_session(records=str(tmp_path / "nowhere"))
    home = open_session("05-routing")
    home.measured("routing", home.options())
    drawn = open_session(run="drawn", records=str(home.run_folder))
    with pytest.raises(InputError, match=r"no record .*04-steps\.json"):
        drawn.measured("steps", drawn.options())
    other = open_session("05-routing", DataSource("embedded", scale=0.4), "other", records=str(home.run_folder))
    with pytest.raises(InputError, match="was made on"):
        other.measured("routing", other.options())


def steps_content(noise=0.02, agrees=True):
    ratio = {"median": 1.0, "q1": 0.99, "q3": 1.02, "rounds": 7}
    row = {"label": "GRCN", "variant": "grcn", "ratio": ratio, "step_ms": 61.789, "agrees": agrees, "peak_bytes": 1e6}
    fast = row | {"label": "GRCN, fused", "variant": "grcn-fused", "step_ms": 7.7}
    control = ratio | {"noise": noise}
    return {"variants": [row, fast], "control": control, "malloc": "malloc trimming disabled"}


def test_a_registered_quantity_is_stated_with_its_mark(open_session, monkeypatch):
    session = open_session()
    session.contents["steps"] = steps_content()
    text = session.value("grcn.step")
    assert text == '<data class="quantity" data-quantity="grcn.step" value="61.789">61.8 ms</data>'
    assert session.value("grcn.step", unit=False).endswith(">61.8</data>")
    assert session.value("grcn-fused.factor").endswith(">8.02 times</data>")
    assert session.value("dragon.step") == "not measured"
    assert ">2%</data>" in session.value("noise")
    with pytest.raises(KeyError):
        session.value("grcn.pace")


def test_cards_show_registered_quantities_alone(open_session):
    session = open_session()
    session.contents["steps"] = steps_content()
    session.headline("grcn.step", "reference")
    session.headline("dragon.step")  # not measured: no card
    (record,) = find_records(session.run_folder, "headline").values()
    (card,) = record["content"]
    assert (card["quantity"], card["value"], card["unit"], card["page"]) == ("grcn.step", 61.789, "ms", "04-epoch")


def test_the_account_lists_every_quantity_that_the_records_give(open_session, monkeypatch, counted):
    monkeypatch.setitem(
        PARTS, "steps", dataclasses.replace(PARTS["steps"], measure=lambda data, options: steps_content())
    )
    session = open_session()
    session.measured("steps", session.options())
    session.answer("How long?", f"**{session.value('grcn.step')}**.")
    record = read_record(session.run_folder / "records" / f"{ACCOUNT}.json", "quantities")
    rows = {row["quantity"]: row for row in record["content"]}
    assert rows["grcn.step"]["value"] == 61.789
    assert rows["grcn.step"]["home"] == "steps"
    assert "dragon.step" not in rows
    (answer,) = find_records(session.run_folder, "answer").values()
    assert answer["content"]["question"] == "How long?"


def test_every_registered_quantity_has_a_home_that_is_measured():
    for quantity in quantities().values():
        assert {quantity.home, *quantity.reads} <= set(PARTS) | {"accuracy"}
        assert find_value(quantity.name, {}) is None
    assert quantity_table({}).empty


def test_the_note_on_steps_names_what_does_not_agree():
    assert "up to 2%" in noise_note(steps_content())
    assert "does not differ" in noise_note(steps_content(noise=0.0))
    assert "For" not in noise_note(steps_content())
    apart = steps_content(agrees=False)
    assert "For “GRCN” and “GRCN, fused” the ratio" in noise_note(apart)
    assert "For all 4 variants the ratio" in noise_note(apart | {"variants": 2 * apart["variants"]})
    assert "no control" in noise_note(steps_content(noise=None))


def test_other_records_take_the_runs_settings(open_session):
    session = open_session("09-accuracy")
    session.data.name  # noqa: B018
    session.record("table", "small", {"frame": pd.DataFrame({"a": [1]})}, settings={"epochs": 3})
    about = read_record(session.run_folder / "records" / "09-small.json", "table")["provenance"]
    assert about["settings"] == {"dataset": "embedded", "visual": "", "textual": "", "scale": 0.5, "epochs": 3}
    assert about["data"]["fingerprint"] == session.data.fingerprint


def test_folders_of_data_stay_out_of_records(open_session, monkeypatch, tmp_path, counted):
    write_mmrec(SOURCE.open(), tmp_path / "sets" / "mine")
    monkeypatch.chdir(tmp_path / "sets")
    mine = open_session("05-routing", DataSource("mine", visual="image_feat.npy"))
    assert mine.data.modalities == ("visual",)
    mine.measured("routing", mine.options())
    path = mine.run_folder / "records" / "05-routing.json"
    assert str(tmp_path) not in path.read_text()
    assert read_record(path)["provenance"]["settings"]["dataset"] == "mine"


def test_without_a_run_the_records_go_to_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = start("04-epoch", SOURCE, device="cpu").run_folder
    assert folder == Path(__file__).resolve().parents[1] / "reports" / "interactive-embedded-0.5"


def test_a_notebook_without_a_number_is_refused():
    with pytest.raises(InputError, match="expected its file name, beginning with two digits"):
        start("epoch", SOURCE)


def test_a_part_measured_by_a_command_is_the_one_that_a_page_reads(open_session, counted, tmp_path):
    options = {"settings": SOURCE.settings, "more": {}}
    session = open_session("05-routing", records="")
    list(catalogue.measure_parts(["routing"], session.data, session.options(), tmp_path / "measured", **options))
    drawn = open_session("05-routing", run="drawn", records=str(tmp_path / "measured"))
    assert drawn.measured("routing", drawn.options())["times"] == 1
    assert len(counted) == 1


def test_plain_papermill_with_an_unknown_parameter_leaves_a_notice(monkeypatch):
    """papermill puts what it was given into a cell of its own below the one tagged parameters."""
    cells = ["", "seed: int = 0  # of all\nrun = ''", "# Parameters\nseed = 3\nepochz = 4\n", "start()"]
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(user_ns={"In": cells}))
    monkeypatch.setattr("mmrec_helpers.pages.notebook.show_notice", shown.append)
    warn_of_unknown_parameters()
    assert len(shown) == 1
    assert "without effect: epochz. It has run, seed." in shown[0]
    cells[2] = "# Parameters\nseed = 3\n"
    warn_of_unknown_parameters()
    assert len(shown) == 1


def test_a_part_that_is_measured_shows_a_bar_that_is_gone_afterwards(open_session, monkeypatch, tmp_path):
    """Its text also goes to the file that the runner follows."""
    told = []
    file = tmp_path / "progress"
    monkeypatch.setenv("MMREC_PROGRESS", str(file))

    def measure(data, options):
        for _ in progress(range(2), "timing"):
            told.append(file.read_text())
        return {}

    monkeypatch.setitem(PARTS, "routing", dataclasses.replace(PARTS["routing"], measure=measure, seconds=(20.0, 90.0)))
    session = open_session("05-routing")
    session.measured("routing", session.options())
    assert told[0].startswith("routing: timing 1/2 · ")
    assert told[0].endswith(" of about 11 s")  # half the embedded set's interactions and some
    assert file.read_text() == ""


def test_the_expected_time_follows_the_line_through_both_data_sets():
    part = dataclasses.replace(PARTS["routing"], seconds=(10.0, 57.541))
    assert part.expected_s(12_000) == 10
    assert part.expected_s(59_541) == pytest.approx(57.541)
    assert part.expected_s(4_082_045) == pytest.approx(4080, rel=0.01)
    assert part.expected_s(1_200) == 1
    assert dataclasses.replace(part, seconds=None).expected_s(12_000) is None

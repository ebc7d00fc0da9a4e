"""Records on disk, their provenance, and what notebooks show."""

import dataclasses
import errno
import io
import json
import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmrec_helpers import files as files_module
from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.files import NotWritten, project_root
from mmrec_helpers.pages import number, show_figure, show_table
from mmrec_helpers.records import (
    different_settings,
    find_records,
    provenance,
    read_record,
    readable_records,
    write_record,
)
from mmrec_helpers.records.shape import MADE_ON_DATA


@pytest.fixture
def data() -> Interactions:
    return Interactions.from_arrays(n_users=2, n_items=3, train=np.array([[0, 1], [0, 2]]), name="tiny")


@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int
    rate: float


# ---------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_plain_values(tmp_path, data):
    content = {
        "numpy": np.float32(0.5),
        "array": np.array([[1, 2], [3, 4]]),
        "tensor": torch.tensor([1.5, float("nan")]),
        "flag": np.bool_(True),
        "missing": [np.nan, float("inf"), None, pd.NA, pd.NaT],
        "frame": pd.DataFrame({"model": ["a", "b"], "ms": [1.0, np.nan]}),
        "series": pd.Series([1, 2]),
        "device": torch.device("cpu"),
        ("key",)[0]: (1, 2),
        5: Settings(3, 1e-3),
    }
    path = write_record(
        tmp_path / "records" / "01-all.json", "all", content, data=data, seed=3, settings=Settings(3, 1.0)
    )
    record = read_record(path, "all")
    assert record["content"] == {
        "numpy": 0.5,
        "array": [[1, 2], [3, 4]],
        "tensor": [1.5, None],
        "flag": True,
        "missing": [None] * 5,
        "frame": [{"model": "a", "ms": 1.0}, {"model": "b", "ms": None}],
        "series": [1, 2],
        "device": "cpu",
        "key": [1, 2],
        "5": {"epochs": 3, "rate": 1e-3},
    }
    assert record["schema"] == 1
    assert record["provenance"]["seed"] == 3
    assert record["provenance"]["settings"] == {"epochs": 3, "rate": 1.0}
    assert record["provenance"]["data"]["n_train"] == 2
    assert record["provenance"]["data"]["fingerprint"] == data.fingerprint


def test_a_value_that_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"steps\.runs\[1\]\.model is a object, which a record cannot hold"):
        write_record(tmp_path / "x.json", "steps", {"runs": [1, {"model": object()}]})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file_behind(tmp_path, monkeypatch):
    class FullDisk(io.TextIOWrapper):
        def write(self, text):
            super().write(text[:10])
            self.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write_record(tmp_path / "records" / "01-x.json", "x", {"value": 1})
    before = path.read_bytes()
    monkeypatch.setattr(files_module, "open", lambda path, *a, **k: FullDisk(io.FileIO(path, "w")), raising=False)
    for target in (path, tmp_path / "records" / "02-new.json"):
        with pytest.raises(NotWritten, match=rf"cannot write .*{target.name}: No space left on device"):
            write_record(target, "x", {"value": 2})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["01-x.json"]


def test_what_cannot_be_read_says_why(tmp_path, data):
    run = tmp_path / "night"
    with pytest.raises(InputError, match=r"make it with `python -m mmrec_helpers report --only 05 --run night`"):
        read_record(run / "records" / "05-epoch.json")
    path = write_record(run / "records" / "05-epoch.json", "epoch", {}, data=data)
    with pytest.raises(InputError, match=r"05-epoch\.json: a record of kind 'epoch': expected 'step'"):
        read_record(path, "step")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"schema": 2}))
    with pytest.raises(InputError, match=r"schema is 2: expected 1 to 1; a greater one needs a newer mmrec_helpers"):
        read_record(path)
    path.write_text(json.dumps(record)[:-9])
    with pytest.raises(InputError, match=r"05-epoch\.json: not a record: broken JSON"):
        read_record(path)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="expected an object with schema, kind, provenance, content"):
        read_record(path)


RUN = {"title": "t", "state": "complete", "parameters": {}, "pages": []}


@pytest.mark.parametrize(
    ("kind", "place", "value", "message"),
    [
        ("epoch", ("content",), None, "content is None: expected something"),
        ("epoch", ("schema",), -1, "schema is -1: expected 1 to 1"),
        ("epoch", ("schema",), True, "schema is True: expected a whole number"),
        ("epoch", ("kind",), ["epoch"], r"kind is \['epoch'\]: expected text"),
        ("epoch", ("provenance",), None, "provenance is None: expected an object"),
        ("epoch", ("provenance", "data"), {}, "provenance.data.name is None: expected text"),
        ("epoch", ("provenance", "data"), None, "provenance.data is None: expected an object with name, fingerprint"),
        (
            "epoch",
            ("provenance", "data", "n_users"),
            "many",
            "provenance.data.n_users is 'many': expected a whole number",
        ),
        ("epoch", ("provenance", "device"), "cpu", "provenance.device is 'cpu': expected an object with type, name"),
        ("epoch", ("provenance", "settings"), [], r"provenance.settings is \[\]: expected an object"),
        ("run", ("content", "pages"), [{}], r"content.pages\[0\].name is None: expected text"),
        ("run", ("content",), [], r"content is \[\]: expected an object with title, state, parameters, pages"),
    ],
)
def test_a_record_without_what_its_kind_must_hold_is_refused(tmp_path, data, kind, place, value, message):
    path = write_record(tmp_path / "r.json", kind, RUN, data=data)
    record = read_record(path)  # the control
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"r\.json: not a record: {message}"):
        read_record(path)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000 + "]" * 100_000, '"\\ud800"', "01", "\x00"]
)
def test_numbers_and_nesting_beyond_bounds_are_refused(tmp_path, text):
    path = write_record(tmp_path / "r.json", "x", "here")
    path.write_text(path.read_text().replace('"here"', text))
    with pytest.raises(InputError, match=r"r\.json: not a record: broken JSON"):
        read_record(path)


def test_what_is_measured_on_data_says_on_which():
    assert {part.kind for part in PARTS.values()} - {"kernels"} <= MADE_ON_DATA  # kernels are compiled for none


def test_every_committed_record_is_read():
    assert len([read_record(path) for path in (project_root() / "reports").rglob("*.json")]) > 100


def test_broken_records_of_other_runs_are_passed_over_with_a_warning(tmp_path):
    good = write_record(tmp_path / "good.json", "x", 1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.warns(RuntimeWarning, match=r"passed over .*broken\.json: not a record"):
        found = readable_records([tmp_path / "broken.json", good])
    assert list(found) == [good]


def test_settings_that_were_not_asked_for_are_recognised(tmp_path):
    asked = {"batch_size": 4096, "widths": (1, 2), "device": torch.device("cpu")}
    record = read_record(write_record(tmp_path / "r.json", "x", 1, settings=asked | {"more": 1}))
    assert different_settings(record, asked) == {}
    other = {"batch_size": 2048, "repeats": 3}
    assert different_settings(record, other) == {"batch_size": (4096, 2048), "repeats": (None, 3)}
    assert different_settings(read_record(write_record(tmp_path / "r.json", "x", 1)), other).keys() == other.keys()


def test_records_of_a_run_are_found_by_kind(tmp_path):
    for name, kind in [("02-b", "step"), ("01-a", "other"), ("01-c", "step")]:
        write_record(tmp_path / "records" / f"{name}.json", kind, name)
    assert list(find_records(tmp_path)) == ["01-a", "01-c", "02-b"]
    assert {name: r["content"] for name, r in find_records(tmp_path, "step").items()} == {
        "01-c": "01-c",
        "02-b": "02-b",
    }
    assert find_records(tmp_path / "nowhere") == {}


# ---------------------------------------------------------------------------------------------- provenance


def test_provenance_tells_the_machine_but_not_whose(monkeypatch, data):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so")
    about = provenance(device="cpu", seed=1, settings={"a": 1}, data=data)
    assert about["versions"]["torch"] == torch.__version__
    assert about["versions"]["python"] == platform.python_version()
    assert about["machine"]["threads"] == torch.get_num_threads()
    assert about["machine"]["cores"] >= 1
    assert about["device"]["type"] == "cpu"
    assert about["allocator"] == {"MALLOC_TRIM_THRESHOLD_": "1000000", "LD_PRELOAD": "libjemalloc.so"}
    assert about["time"].endswith("+00:00")
    shown = json.dumps(about)
    for secret in (platform.node(), str(Path.home()), str(Path.cwd()), "somebody"):
        assert secret in ("", "/") or secret not in shown


def test_the_commit_is_none_outside_a_checkout(monkeypatch):
    import sys

    module = sys.modules[provenance.__module__]

    module._code.cache_clear()
    monkeypatch.setattr(module, "project_root", lambda: None)
    try:
        found = module._code()
        assert (found["commit"], found["modified"]) == (None, None)
        assert found["lines"] > found["files"] > 50
    finally:
        module._code.cache_clear()


# ---------------------------------------------------------------------------------------------- display


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (1575.34, "1,575"),
        (12.345, "12.3"),
        (0.0804, "0.0804"),
        (1.2e-7, "1.20e-07"),
        (-0.5, "-0.500"),
        (0, "0"),
        (3.0, "3"),
        (None, "–"),
        (float("nan"), "–"),
        ("yes", "yes"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (np.float32(2.5), "2.50"),
    ],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_a_figure_without_alternative_text_is_refused():
    with pytest.raises(ValueError, match="alt is empty"):
        show_figure(None, alt=" ")


def test_a_table_without_rows_is_a_sentence(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    show_table(pd.DataFrame(columns=["call", "reason"]), "Findings")
    assert [data["text/markdown"] for data in shown] == ["Findings: none."]


def test_tables_round_numbers_and_name_their_index_in_the_corner(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data["text/html"]))
    frame = pd.DataFrame(
        {"step_ms": [1234.5, np.nan], "n": [1000000, 2], "exact": [True, False], "idle": [None, None]},
        index=pd.Index(["a<b", "c"], name="model"),
    )
    show_table(frame, "Times & counts", index=True)
    (table,) = shown
    assert "<caption>Times &amp; counts</caption>" in table
    for cell in ("1,234", "–", "1,000,000"):
        assert f'<td class="number">{cell}</td>' in table
    for cell in (
        "<td>yes</td>",
        "<td>a&lt;b</td>",
        '<th scope="col">model</th>',
        '<th scope="col" class="number">n</th>',
    ):
        assert cell in table
    assert table.count(">–</td>") == 3
    assert table.count("<tr") == 3
    assert table.index(">model</th>") < table.index(">step ms</th>")

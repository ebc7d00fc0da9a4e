"""Whatever a file or an argument holds: one clear error or a right result, nothing else, in linear time.

Hypothesis makes valid input and damages it. What is read must be what an independent, strict reader finds in the same
bytes. Some dozens of cases of each kind run always, thousands with the mark ``slow``; the counts are printed.
"""

import ast
import collections
import contextlib
import io
import json
import os
import re
import shutil
import time
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import cache, load_mmrec
from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary
from mmrec_helpers.experiments.accuracy.tables import accuracy_table, answers, difference_table, state_of
from mmrec_helpers.files import parse_literal, project_root
from mmrec_helpers.mmrec import read_log
from mmrec_helpers.records import read_record
from mmrec_helpers.training.checkpoint import load_checkpoint, save_checkpoint
from tests.test_log_reader import fork, head, run, upstream

COLUMNS = ("userID", "itemID", "x_label")
ODD = ["", " ", "1.5", "1e3", "nan", "True", "0x1", "１", "1\0", '"1"', "9" * 20, "-1", "+1", " 2 ", "1_0", "0001"]
ODD += ["2147483646", "2147483647", "x", "\ufeff", "1\t2", "1\n2", "1\r", "9" * 5000, "\ud800", "é"]
JUNK = ["", "Traceback (most recent call last):", "tensor([1.5, 2], device='cuda:0')", "loss: 3 of 4", "a=b", "\x1b[0m"]
JUNK += ["[codecarbon INFO @ 10:00:05] RAM : 0.1 kWh", "100%|##| 3/3 [00:01<00:00]\r", "epoch 9 training [", "=" * 99]

some_bytes = st.binary(max_size=6)
places = st.floats(0, 1, exclude_max=True)
byte_damage = st.lists(st.tuples(st.sampled_from(["replace", "insert", "cut", "drop"]), places, some_bytes), max_size=3)


def damaged(content: bytes, damage) -> bytes:
    for how, place, new in damage:
        at = int(place * (len(content) + 1))
        after = {"replace": at + len(new), "insert": at, "cut": len(content), "drop": at + 7 * len(new)}[how]
        content = content[:at] + (b"" if how in ("cut", "drop") else new) + content[after:]
    return content


def refusal(path, read, *arguments):
    """What ``read`` gives, or None if it refuses in one line that names the file; nothing may be left beside it."""
    before, message = sorted(path.parent.iterdir()), path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(*arguments)
    except InputError as error:
        message = str(error)
    finally:
        assert sorted(path.parent.iterdir()) == before
        assert "\n" not in message
        assert path.name in message or path.parent.name in message
    return None


# --------------------------------------------------------------------------------------------- interactions


@st.composite
def interaction_files(draw):
    pairs = draw(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2)), min_size=1, unique=True)
    )
    columns = draw(st.permutations([*COLUMNS, *draw(st.lists(st.sampled_from("abc"), unique=True))]))
    known = [dict(zip(COLUMNS, map(str, pair))) for pair in [*pairs, (31, 31, 0)]]
    rows = [[*columns], *([row.get(name, "é 1.5") for name in columns] for row in known)]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(ODD))
    if draw(st.booleans()):
        rows.insert(draw(st.integers(1, len(rows))), draw(st.sampled_from([*rows[1:], [], [" "], ["1"] * 9])))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = (
        draw(st.sampled_from(["", "\ufeff"]))
        + end.join("\t".join(row) for row in rows)
        + draw(st.sampled_from(["", end]))
    )
    return damaged(text.encode("utf-8", "replace"), draw(byte_damage) if draw(st.booleans()) else [])


def strict_pairs(content: bytes):
    """The pairs of each split as sets, or None where the file is not what the layout says; without pandas."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = [line.split("\t") for line in re.split("\r\n|\r|\n", text) if line.strip(" ")]
    names = lines[0] if lines else []
    if any(names.count(name) != 1 for name in COLUMNS) or any(len(line) != len(names) for line in lines):
        return None
    rows = [[line[names.index(name)] for name in COLUMNS] for line in lines[1:]]
    if not all(re.fullmatch(" *[+-]?[0-9]{1,4000} *", value) for row in rows for value in row):
        return None
    rows = [tuple(map(int, row)) for row in rows]
    bad = [row for row in rows if min(row) < 0 or row[2] > 2 or sum(row[:2]) + 2 > FREE // 16]
    if bad or len(set(rows)) < len(rows) or not any(label == 0 for *_, label in rows):
        return None
    return [{row[:2] for row in rows if row[2] == label} for label in range(3)]


def check_interactions(content, folder):
    path = folder / "x.inter"
    path.write_bytes(content)
    data, expected = refusal(path, load_mmrec, folder), strict_pairs(content)
    assert (data is None) == (expected is None)
    if data is not None:
        assert [set(zip(*pairs.tolist())) for pairs in (data.train, data.valid, data.test)] == expected
    return data is not None


# ------------------------------------------------------------------------------------------------- features


class Pickled:
    """Says so if anything unpickles it."""

    ran = False

    def __reduce__(self):
        return setattr, (Pickled, "ran", True)


@st.composite
def feature_files(draw):
    kind = draw(st.sampled_from(["<f2", "<f4", ">f8", "<f4", "<f8", "<i4", "|b1", "<c8", "object", "i4,f4"]))
    shape = draw(st.sampled_from([(5, 3), (5, 1), (6, 2), (5, 3), (4, 3), (5,), (), (5, 0), (0, 3), (5, 3, 1)]))
    array = np.full(shape, Pickled()) if kind == "object" else np.arange(np.prod(shape), dtype=int).reshape(shape)
    array = np.asarray(array if kind == "object" else array.astype(kind), order=draw(st.sampled_from("CF")))
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=draw(st.sampled_from([(1, 0), (2, 0), (3, 0)])))
    content = file.getvalue()
    if draw(st.integers(0, 2)) == 0:  # in the header
        old = draw(
            st.sampled_from(["shape", "(5, 3)", "(5,", "descr", "'", "<f", "}", ":", "4", "False", ", }", "NUMPY"])
        )
        new = draw(
            st.sampled_from(
                [f"({2**64}, 5)", f"({2**40},", "(-5, 3)", "(5, 2)", "(", "\0", "True", ">f", "[[", "", "8"]
            )
        )
        content = content.replace(old.encode(), new.encode(), 1)
    return damaged(content, draw(byte_damage) if draw(st.integers(0, 2)) == 0 else [])


def check_features(content, folder):
    (folder / "x.inter").write_text("userID\titemID\tx_label\n0\t4\t0\n")
    path = folder / "x.npy"
    path.write_bytes(content)
    data = refusal(path, load_mmrec, folder, "x.npy")
    assert not Pickled.ran
    if data is not None:
        expected = np.load(path, allow_pickle=False)
        np.testing.assert_array_equal(data.features["visual"], expected.astype(np.float32))
        assert len(content) - expected.nbytes in range(64, 300)  # the header, and not a byte too many
    return data is not None


# ----------------------------------------------------------------------------------------------------- logs


@st.composite
def log_files(draw):
    """A log with lines of others between its own; which epochs it has; whether anything in it was damaged."""
    epochs = draw(st.integers(0, 6))
    messages = [*head(), run()]
    for epoch in range(epochs):
        loss = draw(st.integers(0, 99999)) / 1e4
        messages += upstream(epoch, loss, loss / 1e2) if draw(st.booleans()) else fork(epoch)
    lines = []
    for message in messages:
        lines.append(f"Thu 15 Jan 2026 19:13:00 INFO {message}")
        lines += draw(st.lists(st.sampled_from(JUNK), max_size=2))
    text = "\n".join([*lines, ""]).encode() if draw(st.integers(0, 9)) else b"\n".join(draw(st.lists(some_bytes)))
    content = damaged(text, draw(byte_damage) if draw(st.booleans()) else [])
    return content, range(epochs) if content == text and b"Parameters" in text else None


def check_log(case, folder):
    content, epochs = case
    path = folder / "x.log"
    path.write_bytes(content)
    log = refusal(path, read_log, path)
    if log is None:
        assert epochs is None
        return False
    assert epochs is None or log["epoch"].tolist() == list(epochs)
    text = re.sub("\x1b\\[0m", "", content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))
    trained = re.findall(r"epoch +(\d+) +training *\[time: *([\d.]+)s, train loss: *([\d.]+)", text, re.I)
    trained = {(int(epoch), float(seconds), float(loss)) for epoch, seconds, loss in trained}
    whole = log.dropna(subset=["epoch_s", "loss"])
    assert {*zip(whole["epoch"], whole["epoch_s"], whole["loss"])} <= trained
    numbers = {(name.lower(), float(number)) for name, number in re.findall(r"(\w[\w@]*): *([\d.]+\d)", text)}
    for column in (name for name in log if name.startswith(("valid.", "test."))):
        assert {(column.partition(".")[2], value) for value in log[column].dropna()} <= numbers
    return True


# -------------------------------------------------------------------------------------------------- records

RECORDS = ["tiktok-cpu/records/run.json", "tiktok-cpu/records/05-answer.json", "tiktok-cpu/records/05-routing.json"]
RECORDS += [
    f"accuracy/tiktok/records/{name}.json" for name in ("accuracy", "popularity-seed0", "grcn-lr0.003-reg0.1-seed0")
]
values = st.sampled_from(["null", "{}", "[]", '""', '"x"', "-1", "1e9", str(10**30), "true", "[null]", '{"name": {}}'])


@st.composite
def record_files(draw):
    record = json.loads((project_root() / "reports" / draw(st.sampled_from(RECORDS))).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(0, 2))):
        at, steps = record, draw(st.integers(0, 4))
        for step in range(steps + 1):
            keys = [*at] if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else []
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if step == steps:
                at[key] = json.loads(draw(values))
            at = at[key]
    text = json.dumps(record)
    if draw(st.booleans()):
        new = draw(st.sampled_from(["NaN", "1e999", "9" * 5000, "[" * 9**5, '"\\ud800"', "Infinity", "{}"]))
        text = text.replace(draw(st.sampled_from(["null", "1", "[", '"'])), new, 1)
    return damaged(text.encode(), draw(byte_damage) if draw(st.integers(0, 3)) == 0 else [])


def check_record(content, folder):
    path = folder / "x.json"
    path.write_bytes(content)
    record = refusal(path, read_record, path)
    if record is None:
        return False
    assert record == json.loads(content)
    json.dumps(record, allow_nan=False)
    if record["kind"] == "study-run":
        with contextlib.suppress(InputError):
            accuracy_summary([record["content"]], resamples=4)
    elif record["kind"] == "accuracy":
        for read in (accuracy_table, difference_table, answers, state_of):
            read(record["content"])
    return True


# ------------------------------------------------------------------------------------- checkpoints and cache

IDENTITY = {"data fingerprint": "abc", "parameter": {"w": [2, 3]}}


def checkpoint_content():
    state = {"w": torch.arange(6.0).reshape(2, 3)}
    course = {"rows": [{"epoch": 0, "loss": 1.0}], "best_epoch": 0, "best_state": dict(state), "waited": 0}
    parts = {"identity": IDENTITY, "epochs_done": 1, "model": state, "optimizer": {"state": {}}, "scaler": {}}
    return parts | {"progress": course, "rng": {"cpu": torch.get_rng_state()}}


def check_checkpoint(damage, folder):
    path = folder / "x.pt"
    save_checkpoint(path, checkpoint_content())
    content = path.read_bytes()
    path.write_bytes(damaged(content, damage))
    unchanged = path.read_bytes() == content
    found = refusal(path, load_checkpoint, path, IDENTITY)
    assert (found is not None) == unchanged
    return unchanged


def alter(value, draw):
    """A value, or one somewhere inside it, in the place of which something else stands."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: alter(value[key], draw)}
    return draw(
        st.sampled_from([None, "text", -1, 2.5, [], {}, torch.zeros(3), torch.zeros(2, 3, dtype=torch.int8), {1: 2}])
    )


def check_altered_checkpoint(draw_altered, folder):
    path = folder / "x.pt"
    torch.save(draw_altered, path)
    assert refusal(path, load_checkpoint, path, IDENTITY) is None
    return False


@st.composite
def altered_checkpoints(draw):
    return alter({"format": 2, **checkpoint_content()}, draw)


ARRAYS = {"ids": np.arange(12, dtype=np.int32).reshape(4, 3), "weights": np.linspace(0, 1, 4)}
EXPECTED = {
    "ids": cache.Expected((4, 3), np.int32, 0, 11),
    "weights": cache.Expected((4,), np.float64, 0, 1),
}
other_arrays = st.sampled_from(
    [ARRAYS["ids"] - 5, ARRAYS["ids"][:, 1:], ARRAYS["ids"].astype(int), np.full(4, np.nan), np.full(4, 2.0), None]
)


@st.composite
def cache_files(draw):
    file = io.BytesIO()
    arrays = ARRAYS | draw(st.dictionaries(st.sampled_from([*ARRAYS, "more"]), other_arrays, max_size=2))
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return damaged(file.getvalue(), draw(byte_damage) if draw(st.booleans()) else [])


def check_cache(content, folder):
    path = folder / "x.npz"
    path.write_bytes(content)
    found = refusal(path, cache._read, path, EXPECTED)
    if found is not None:
        for name in ARRAYS:
            np.testing.assert_array_equal(found[name], ARRAYS[name])
    return found is not None


# -------------------------------------------------------------------------------- literals and command lines

pieces = st.sampled_from(
    [*"()[]{},:-+.'\"\\ 0123456789aeEjbx", "True", "None", "null", "1e999", "\\ud800", "9" * 5000, "(" * 300]
)
numbers = st.sampled_from(["", "x", "nan", "inf", "-1", "0", "1e9", "1e308", "0.1", "3", "9" * 30, "1.5", "\0"])
names = st.sampled_from(
    ["embedded", "embeded", "", ".", "nowhere", "new", "\0", "a/b", "x.inter", "--help-me", "\ud800"]
)
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(), st.lists, max_leaves=5)
literals = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=20) | plain.map(repr)


def check_literal(text, folder):
    value = parse_literal(text)
    json.dumps(value, allow_nan=False, ensure_ascii=False) if value != text else None
    if value != text and text.lower() not in ("true", "false", "none", "null"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert value == ast.literal_eval(text)
    return value != text


commands = st.one_of(
    st.tuples(st.just("synthesize"), names, names, st.just("--scale"), numbers, st.just("--seed"), numbers).map(
        lambda words: ["data", *words]
    ),
    st.tuples(names, st.just("--visual"), names).map(lambda words: ["data", "check", *words]),
    st.lists(names, min_size=1).map(lambda words: ["log", *words]),
)


def check_command(words, folder):
    """A command of random words ends with a status, and writes nothing unless that is 0."""
    folder = folder / "cwd"
    folder.mkdir(exist_ok=True)
    home = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            status = main(words)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    finally:
        os.chdir(home)
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert status in (0, 2)
    assert status == 0 or not left
    return status == 0


# ------------------------------------------------------------------------------------------------- the tests

FREE = 2**30  # bytes, as the readers see it
KINDS = {
    "interactions": (interaction_files(), check_interactions),
    "features": (feature_files(), check_features),
    "logs": (log_files(), check_log),
    "records": (record_files(), check_record),
    "checkpoints": (byte_damage, check_checkpoint),
    "altered checkpoints": (altered_checkpoints(), check_altered_checkpoint),
    "cache files": (cache_files(), check_cache),
    "literals": (literals, check_literal),
    "command lines": (commands, check_command),
}


def generate(kind, folder, count, monkeypatch):
    strategy, check = KINDS[kind]
    monkeypatch.setattr("mmrec_helpers.config.psutil.virtual_memory", lambda: types.SimpleNamespace(available=FREE))
    outcomes = collections.Counter()

    @settings(max_examples=count, deadline=None, derandomize=count < 1000, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(case):
        outcomes["read" if check(case, folder) else "refused"] += 1

    one()
    print(f"{kind}: {dict(outcomes)}")
    assert outcomes["refused"] > 0
    assert outcomes["read"] > 0 or kind in ("altered checkpoints", "command lines")


@pytest.mark.parametrize("kind", KINDS)
def test_some_dozens_of_damaged_inputs(kind, tmp_path, monkeypatch):
    generate(kind, tmp_path, 40, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_inputs(kind, tmp_path, monkeypatch):
    generate(kind, tmp_path, 3000, monkeypatch)


# ------------------------------------------------------------------------------------------------------ time


def cpu_s(function, argument):
    """The least of three process times, which other processes do not lengthen."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        function(argument)
        taken.append(time.process_time() - began)
    return min(taken)


def log_of(*lines):
    return "\n".join(["Thu 15 Jan 2026 19:13:00 INFO epoch 0 training [time: 1.00s, train loss: 1.0]", *lines, ""])


def stamped(messages):
    return (f"Thu 15 Jan 2026 19:13:00 INFO {message}" for message in messages)


LONG_LOGS = {
    "epochs": lambda n: log_of(*stamped(f"epoch {k} training [time: 1.0s, train loss: 1.0]" for k in range(n // 60))),
    "resumed": lambda n: log_of(
        *(line for k in range(n // 150) for line in stamped((f"={k}/9: Parameters:['a']=({k},)=", *upstream(1)[:1])))
    ),
    "signs before": lambda n: log_of(*stamped(["=" * n + "1/2: Parameters:"])),
    "signs after": lambda n: log_of(*stamped(["=1/2: Parameters:['a']=(1,)" + "=" * n + "x"])),
    "brackets": lambda n: log_of(*stamped(["=1/2: Parameters:" + "[" * n])),
    "digits": lambda n: log_of(*stamped([f"epoch 1 training [time: {'1' * n}x, train loss: {'1' * n}]"])),
    "blanks": lambda n: log_of(*stamped(["epoch" + " " * n + "1 training [", "valid result: a:" + " " * n + "x"])),
    "letters": lambda n: log_of(*stamped(["valid result: " + "a" * n])),
    "names": lambda n: log_of(*stamped(["valid result: " + "a:" * n])),
    "stamps": lambda n: log_of("Thu 15 Jan 2026 19:13:00 INFO " * (n // 30)),
    "colours": lambda n: log_of("\x1b[" * n),
    "scores": lambda n: log_of(*stamped(["epoch 1 evaluating " + "valid_score: " * (n // 13)])),
}


@pytest.mark.parametrize("name", LONG_LOGS)
def test_a_log_is_read_in_linear_time(name, tmp_path):
    path = tmp_path / "x.log"

    def seconds(n):
        path.write_text(LONG_LOGS[name](n))
        return cpu_s(read_log, path)

    small, large = seconds(40_000), seconds(640_000)
    assert large < 0.2 + 50 * small  # sixteen times as much; quadratic time would be 256 times


def test_literals_and_interactions_take_linear_time(tmp_path):
    for text in ("(", "-", "1+", "[1,", "'", "\\", "{"):
        assert cpu_s(parse_literal, text * 10**6) < 0.5

    def seconds(n):
        lines = [f"{k}\t{k}\t0\n" for k in range(n)] + ["x\t0\t0\n"]
        (tmp_path / "x.inter").write_text("userID\titemID\tx_label\n" + "".join(lines))
        return cpu_s(lambda path: refusal(path / "x.inter", load_mmrec, path), tmp_path)

    assert seconds(160_000) < 0.2 + 50 * seconds(10_000)

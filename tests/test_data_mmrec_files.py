"""MMRec's layout on disk: what loads, what is refused and with which words, and what is written."""

import os
import types

import numpy as np
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource, Interactions, load_mmrec, write_mmrec
from mmrec_helpers.data import mmrec_files as files

HEADER = "userID\titemID\tx_label\n"
LINES = "0\t1\t0\n0\t2\t1\n1\t0\t0\n1\t1\t2\n3\t3\t2\n"  # 4 users, 4 items; user 2 nowhere, user 3 in test alone
VISUAL = np.linspace(-1, 1, 12).reshape(4, 3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy.inter").write_text(HEADER + LINES)
    np.save(tmp_path / "image_feat.npy", VISUAL.astype(np.float16))
    np.save(tmp_path / "text_feat.npy", VISUAL[:, :1])
    return tmp_path


def same(one: Interactions, other: Interactions) -> bool:
    return one.fingerprint == other.fingerprint and one.name == other.name


# ------------------------------------------------------------------------------------------------ what loads


def test_by_hand(folder):
    data = load_mmrec(folder, visual="image_feat.npy", textual=folder / "text_feat.npy")
    assert (data.n_users, data.n_items, data.name) == (4, 4, "toy")
    assert data.train.tolist() == [[0, 1], [1, 0]]
    assert data.valid.tolist() == [[0], [2]]
    assert data.test.tolist() == [[1, 3], [1, 3]]
    assert data.modalities == ("visual", "textual")
    assert data.features["visual"].dtype == np.float32
    np.testing.assert_array_equal(data.features["visual"], VISUAL.astype(np.float16).astype(np.float32))


def test_modalities_and_name_are_optional(folder):
    assert load_mmrec(str(folder)).modalities == ()
    assert load_mmrec(folder, visual="", textual="text_feat.npy", name="mine").modalities == ("textual",)
    assert load_mmrec(folder, name="mine").name == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "x_label\titemID\trating\tuserID\ttimestamp\n0\t1\t5.0\t0\t\n1\t2\tgood\t0\t7\n0\t0\t\t1\t\n2\t1\tx\t1\t\n2\t3\t0\t3\t\n",
        "\ufeff" + HEADER + LINES,
        (HEADER + LINES).replace("\n", "\r\n"),
        "\n" + HEADER + LINES.replace("\n", "\n\n") + "\n\n",
        (HEADER + LINES)[:-1],
        HEADER + LINES.replace("\t", " \t ").replace("3 ", "+03 "),
    ],
    ids=["order and further columns", "byte order mark", "CRLF", "blank lines", "no last newline", "blanks and signs"],
)
def test_other_ways_to_write_the_same_data(folder, text):
    expected = load_mmrec(folder)
    (folder / "toy.inter").write_bytes(text.encode())
    assert same(load_mmrec(folder), expected)


def test_csv_and_tsv_count_when_just_one_has_the_columns(folder):
    expected = load_mmrec(folder)
    (folder / "toy.inter").unlink()
    (folder / "i_id_mapping.csv").write_text("asin\titemID\nB0\t0\n")
    (folder / "empty.tsv").write_text("")
    (folder / "toy.csv").write_text((HEADER + LINES).replace("\t", ","))
    assert same(load_mmrec(folder), expected)
    (folder / "toy.csv").rename(folder / "other.csv")
    (folder / "toy.tsv").write_text(HEADER + LINES)
    with pytest.raises(InputError, match=r"found other\.csv, toy\.tsv: expected exactly one"):
        load_mmrec(folder)


def test_more_feature_rows_than_items_seen_are_further_items(folder):
    np.save(folder / "image_feat.npy", np.zeros((6, 2)))
    assert load_mmrec(folder, visual="image_feat.npy").n_items == 6
    assert load_mmrec(folder).n_items == 4


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "longdouble"])
def test_any_float_type_and_memory_order(folder, dtype):
    np.save(folder / "image_feat.npy", np.asfortranarray(VISUAL.astype(dtype)))
    loaded = load_mmrec(folder, visual="image_feat.npy").features["visual"]
    assert loaded.flags.c_contiguous
    np.testing.assert_allclose(loaded, VISUAL, atol=1e-3)


def test_the_same_pair_in_two_splits_is_allowed(folder):
    (folder / "toy.inter").write_text(HEADER + LINES + "0\t1\t2\n")
    assert load_mmrec(folder).test.shape == (2, 3)


# --------------------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"toy\.inter is empty"),
        ("\n \n", r"toy\.inter is empty"),
        (HEADER, "a header and no interactions"),
        (HEADER.replace("x_label", "label") + LINES, r"column x_label stands 0 times .*userID, itemID, label"),
        (HEADER.replace("\t", ",") + LINES, r"column userID stands 0 times .*separated by tabs"),
        (HEADER.replace("\n", "\tuserID\n") + LINES, "column userID stands 2 times"),
        (HEADER + LINES + "a7\t0\t0\n", r"toy\.inter, line 7: userID is 'a7': expected an integer"),
        (HEADER + "\n" + LINES + "0\t1.5\t0\n", "line 8: itemID is '1.5': expected an integer"),
        (HEADER + LINES + "0\t\t0\n", "line 7: itemID is '': expected an integer"),
        (HEADER + LINES + "True\t0\t0\n", "line 7: userID is 'True'"),
        (HEADER + LINES + "\t\t\n", "line 7: userID is ''"),
        (HEADER + LINES + '"0"\t0\t0\n', "line 7: userID is '\"0\"'"),
        (HEADER + LINES + "99999999999999999999\t0\t0\n", "line 7: userID is '99999999999999999999'"),
        (HEADER + LINES + "4294967296\t0\t0\n", "line 7: userID is 4294967296: expected 0 to 2147483646"),
        (HEADER + LINES + "0\t3\n", "line 7: 2 fields: expected 3"),
        (HEADER + "0\t3\t0\t5\n" + LINES, "line 2: 4 fields: expected 3"),
        (HEADER + LINES + "0\t-3\t0\n", "line 7: itemID is -3: expected 0 to"),
        (HEADER + LINES + "-1\t3\t0\n", "line 7: userID is -1: expected 0 to"),
        (HEADER + "\r\n\r\n" + LINES + "0\t3\t3\n", "line 9: x_label is 3: expected 0 .train., 1 .valid. or 2 .test."),
        (HEADER + LINES + "0\t3\t-1\n", "line 7: x_label is -1"),
        (HEADER + LINES + "\n1\t1\t2\n0\t1\t0\n", "line 8: user 1 and item 1 stand in test already .2 duplicates"),
        (HEADER + LINES.replace("\t0\n", "\t1\n"), "no line has x_label 0: expected at least one training"),
        ("PK\x03\x04\x00\x00", "column userID stands 0 times"),
        (HEADER + LINES + "1\x002\t3\t0\n", r"line 7: userID is '1\\x002': expected an integer"),
        (HEADER[:-1] + "\tmore\n" + "0\t1\t0\n" + "1\t1\t0\t2\t3\n", "line 2: 3 fields: expected 4"),
    ],
)
def test_wrong_interaction_files_are_named_with_line_and_value(folder, text, message):
    load_mmrec(folder)  # the control
    (folder / "toy.inter").write_bytes(text.encode())
    with pytest.raises(InputError, match=message):
        load_mmrec(folder)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.Path, "read_bytes", denied)
    with pytest.raises(InputError, match=r"toy\.inter cannot be read: Permission denied"):
        load_mmrec(folder)


def test_sizes_that_memory_cannot_hold_are_named(folder, monkeypatch):
    (folder / "toy.inter").write_text(HEADER + LINES + "0\t2147483646\t0\n")
    free = types.SimpleNamespace(available=2**30)
    monkeypatch.setattr("mmrec_helpers.config.psutil.virtual_memory", lambda: free)
    with pytest.raises(
        InputError, match=r"toy\.inter, by .*2,147,483,647 items: needs 32\.0 GiB .* the 1\.0 GiB that are"
    ):
        load_mmrec(folder)
    free.available = 90
    with pytest.raises(InputError, match=r"image_feat\.npy: shape \(4, 3\): needs"):
        files._read_features(folder, "image_feat.npy")
    with pytest.raises(InputError, match=r"fewer than 2\*\*63 pairs"):
        Interactions.from_arrays(2**32, 2**32, np.zeros((2, 1), dtype=int))


def test_missing_folder_and_files(folder):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_mmrec(folder / "nowhere")
    with pytest.raises(InputError, match=r"audio\.npy: no such file.*image_feat\.npy, text_feat\.npy"):
        load_mmrec(folder, visual="audio.npy")
    (folder / "second.inter").write_text(HEADER + LINES)
    with pytest.raises(InputError, match=r"found second\.inter, toy\.inter: expected exactly one"):
        load_mmrec(folder)
    for path in folder.glob("*.inter"):
        path.unlink()
    with pytest.raises(InputError, match=r"found none: expected exactly one interaction file"):
        load_mmrec(folder)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def _in_header(old, new):
    """Damage: other bytes in the header, of the same length."""
    new = new.ljust(len(old))
    return lambda path: path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: np.save(path, VISUAL[:3]),
            r"image_feat\.npy has 3 rows: expected at least 4, one per item in toy",
        ),
        (lambda path: np.save(path, VISUAL[0]), r"image_feat\.npy: shape \(3,\): expected \(n_items, width\)"),
        (lambda path: np.save(path, VISUAL[None]), r"npy: shape \(1, 4, 3\)"),
        (lambda path: np.save(path, VISUAL[:, :0]), r"npy: shape \(4, 0\)"),
        (lambda path: np.save(path, (9 * VISUAL).astype(int)), "npy: dtype int64: expected a float type"),
        (lambda path: np.save(path, np.where(VISUAL == 1, np.nan, VISUAL)), "row 3, column 2 is nan"),
        (lambda path: np.save(path, np.where(VISUAL == -1, -np.inf, VISUAL)), "row 0, column 0 is -inf"),
        (lambda path: np.save(path, VISUAL.astype(object)), "cannot be read as .npy .*Python objects"),
        (_in_header("(4, 3)", "(4, 2)"), r"cannot be read as .npy \(float16 \(4, 2\) is less than the file holds"),
        (_in_header("(4, 3)", "(4, 9)"), "cannot be read as .npy"),
        (_in_header("(4, 3), }            ", f"({2**64}, 5), }}"), "cannot be read as .npy"),
        (_in_header("(4, 3), }         ", f"({2**50}, 5), }}"), "cannot be read as .npy"),
        (_in_header("False", "Fa(se"), "cannot be read as .npy"),
        (_in_header("'descr'", "'desc''"), "cannot be read as .npy"),
        (_truncate, "cannot be read as .npy"),
        (lambda path: path.write_bytes(b""), "cannot be read as .npy"),
        (lambda path: path.write_text("not an array"), "cannot be read as .npy"),
    ],
)
def test_wrong_features_are_named(folder, damage, message):
    load_mmrec(folder, visual="image_feat.npy")  # the control
    damage(folder / "image_feat.npy")
    with pytest.raises(InputError, match=message):
        load_mmrec(folder, visual="image_feat.npy")


def test_modalities_of_different_length(folder):
    np.save(folder / "text_feat.npy", np.zeros((5, 2)))
    with pytest.raises(
        InputError, match=r"image_feat\.npy has 4 rows and .*text_feat\.npy has 5 rows: expected as many"
    ):
        load_mmrec(folder, visual="image_feat.npy", textual="text_feat.npy")


# ------------------------------------------------------------------------------------------- what is written


def test_round_trip(folder, tmp_path):
    data = load_mmrec(folder, visual="image_feat.npy", textual="text_feat.npy")
    target = write_mmrec(data, tmp_path / "new" / "copy")
    assert sorted(path.name for path in target.iterdir()) == ["image_feat.npy", "text_feat.npy", "toy.inter"]
    assert same(load_mmrec(target, visual="image_feat.npy", textual="text_feat.npy"), data)
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(folder, tmp_path):
    data = load_mmrec(folder)
    (tmp_path / "empty").mkdir()
    write_mmrec(data, tmp_path / "empty")
    before = (tmp_path / "empty" / "toy.inter").stat().st_mtime_ns
    with pytest.raises(InputError, match="exists already"):
        write_mmrec(data, tmp_path / "empty")
    assert (tmp_path / "empty" / "toy.inter").stat().st_mtime_ns == before


def test_a_failed_write_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    data = load_mmrec(folder, visual="image_feat.npy")
    monkeypatch.setattr(files.np, "save", full)
    (tmp_path / "parent").mkdir()
    with pytest.raises(OSError, match="No space left"):
        write_mmrec(data, tmp_path / "parent" / "copy")
    assert os.listdir(tmp_path / "parent") == []


def test_what_the_layout_cannot_hold_is_refused(tmp_path):
    pairs, features = np.array([[0], [0]]), {"visual": np.ones((3, 2))}
    with pytest.raises(InputError, match="user 1 has no interaction"):
        write_mmrec(Interactions.from_arrays(2, 1, pairs), tmp_path / "users")
    with pytest.raises(InputError, match="item 2 has no interaction"):
        write_mmrec(Interactions.from_arrays(1, 3, pairs), tmp_path / "items")
    kept = Interactions.from_arrays(1, 3, pairs, features=features, name="a/b c")
    loaded = load_mmrec(write_mmrec(kept, tmp_path / "kept"), visual="image_feat.npy")
    assert (loaded.n_items, loaded.name) == (3, "a-b-c")


# ------------------------------------------------------------------------------------------------ DataSource


def test_a_source_opens_a_preset_or_a_folder(folder):
    assert DataSource("embedded", scale=0.2, seed=3).open().name == "embedded-x0.2"
    source = DataSource(str(folder), visual="image_feat.npy")
    assert same(source.open(), load_mmrec(folder, visual="image_feat.npy"))
    source.check()


@pytest.mark.parametrize("method", ["open", "check"])
def test_a_source_that_is_none_is_refused(folder, method):
    for source, text in (
        (DataSource("babby"), r"unknown data set 'babby': .*music4all, baby, .* or a folder in MMRec"),
        (DataSource("embedded", "image_feat.npy"), r"visual is 'image_feat\.npy': expected none with the preset"),
        (DataSource(str(folder), scale=0.5), r"scale is 0\.5 with the folder"),
        (DataSource("baby", scale=0.0), r"scale is 0\.0"),
        (
            DataSource("baby", scale=1e9),
            r"scale is 1000000000\.0 for baby: needs 85,937,380\.8 GiB of memory: expected at most the",
        ),
        (DataSource("baby", scale=1e308), r"scale is 1e\+308 for baby: needs inf GiB"),
    ):
        with pytest.raises(InputError, match=text):
            getattr(source, method)()


def test_a_source_says_what_it_is_without_its_path(folder, monkeypatch):
    source = DataSource(str(folder), visual="image_feat.npy")
    assert source.settings == {"dataset": folder.name, "visual": "image_feat.npy", "textual": "", "scale": 1.0}
    assert source.label == folder.name
    assert DataSource("baby", scale=0.1).label == "baby-0.1"
    assert source.given() == {"dataset": str(folder), "visual": "image_feat.npy"}
    monkeypatch.chdir(folder.parent)
    assert DataSource(folder.name).absolute().dataset == str(folder.resolve())
    assert DataSource("baby").absolute() == DataSource("baby")


@pytest.mark.real
def test_tiktok():
    data = load_mmrec("../shared/data/tiktok", visual="image_feat.npy", textual="audio_feat.npy")
    assert (data.n_users, data.n_items) == (9308, 6710)
    assert [pairs.shape[1] for pairs in (data.train, data.valid, data.test)] == [59541, 3051, 6130]
    assert {modality: array.shape for modality, array in data.features.items()} == {
        "visual": (6710, 128),
        "textual": (6710, 128),
    }

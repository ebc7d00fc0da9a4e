"""What a data set in memory accepts, and what it says to what it does not."""

import numpy as np
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import PRESETS, Interactions, compare_to_reported, degree_table, describe

TRAIN = np.array([[0, 0, 2], [1, 0, 1]])
FEATURES = np.arange(6, dtype=np.float64).reshape(3, 2)


def make(**changes):
    arguments = {"n_users": 3, "n_items": 3, "train": TRAIN, "features": {"visual": FEATURES}, "name": "mine"}
    return Interactions.from_arrays(**(arguments | changes))


def test_arrays_are_copied_and_converted():
    pairs, features = TRAIN.astype(np.int32), np.asfortranarray(FEATURES)
    data = make(train=pairs, features={"textual": features, "visual": features.astype(np.float16)})
    pairs[:] = 0
    features[:] = 0
    assert data.train.tolist() == TRAIN.tolist()
    assert data.train.dtype == np.int64
    assert data.modalities == ("visual", "textual")
    for array in data.features.values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, FEATURES)
    assert data.valid.shape == data.test.shape == (2, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_users": 0}, "n_users is 0"),
        ({"n_items": 2.5}, "n_items is 2.5"),
        ({"train": TRAIN.T[:, :1]}, r"train has shape \(3, 1\)"),
        ({"train": TRAIN + 0.5}, "train has dtype float64"),
        ({"train": np.empty((2, 0), dtype=int)}, "train has no interactions"),
        ({"train": np.array([[3], [0]])}, "train: user 3 in column 0: expected 0 to 2"),
        ({"test": np.array([[0, 0], [0, -1]])}, "test: item -1 in column 1: expected 0 to 2"),
        ({"valid": np.array([[1, 1], [2, 2]])}, r"valid: the pair \(user 1, item 2\) stands there more than once"),
        ({"features": {"audio": FEATURES}}, "unknown modality 'audio': expected one of visual, textual"),
        ({"features": {"visual": FEATURES[0]}}, r"visual features: shape \(2,\): expected \(n_items, width\)"),
        ({"features": {"visual": FEATURES[:2]}}, "visual features: 2 rows: expected 3, one per item"),
        ({"features": {"visual": FEATURES.astype(int)}}, "visual features: dtype int64"),
        ({"features": {"visual": np.where(FEATURES == 3, np.nan, FEATURES)}}, "row 1, column 1 is nan"),
        ({"features": {"visual": np.where(FEATURES == 4, 1e39, FEATURES)}}, r"row 2, column 0 is 1e\+39"),
    ],
)
def test_wrong_input_is_named(changes, message):
    make()  # the control: without the change it is a data set
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_fingerprint_follows_the_content():
    data = make()
    assert data.fingerprint == make(name="other").fingerprint
    changed = [
        make(n_users=4),
        make(train=TRAIN[:, :2]),
        make(test=np.array([[1], [1]])),
        make(valid=np.array([[1], [1]])),
        make(features={"textual": FEATURES}),
        make(features={"visual": FEATURES + 1}),
        make(features={}),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in changed)}) == len(changed) + 1


def test_describe_by_hand():
    numbers = describe(make(n_users=4, valid=np.array([[0, 1], [2, 2]]), test=np.array([[0, 0], [0, 2]])))
    expected = {
        "n_users": 4,
        "n_items": 3,
        "n_train": 3,
        "n_valid": 2,
        "n_test": 2,
        "density": 0.25,
        "users_without_train": 2,
        "items_without_train": 1,
        "valid_users": 2,
        "test_users": 1,
        "pairs_in_two_splits": 2,  # (0, 0) in train and test, (0, 2) in valid and test
        "widths": {"visual": 2},
        "feature_bytes": 24,
        "pair_bytes": 112,
    }
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["user_degree"]["mean"] == 0.75
    assert (numbers["item_degree"]["min"], numbers["item_degree"]["max"]) == (0, 2)


def test_degree_table_by_hand():
    table = degree_table(make())
    assert table.to_dict("list") == {
        "side": ["user"] * 3 + ["item"] * 3,
        "degree": [0, 1, 2, 0, 1, 2],
        "count": [1, 1, 1, 1, 1, 1],
        "share_at_least": pytest.approx([1, 2 / 3, 1 / 3] * 2),
    }


def test_comparison_with_the_reported_workload_by_hand():
    table = compare_to_reported(make()).set_index("quantity")
    assert table.loc["interactions per user", "here"] == 1
    assert table.loc["textual feature width", ["here", "here / reported"]].tolist() == [0, 0]
    assert table.loc["items", "here / reported"] == 3 / PRESETS["music4all"].n_items

"""The disk cache: computed once, written whole, and never a reason to fail."""

import numpy as np
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import cache
from mmrec_helpers.data.cache import Expected, cache_folder

EXPECTED = {"ids": Expected((2, 3), np.int64, 0, 5), "weights": Expected((2,), np.float32, 0, 1)}


def cached_arrays(kind, fingerprint, compute):
    return cache.cached_arrays(kind, fingerprint, compute, EXPECTED)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Count:
    """A computation that says how often it ran."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"ids": np.arange(6).reshape(2, 3), "weights": np.full(2, 0.5, dtype=np.float32)}


def test_second_call_reads_the_same_arrays(folder):
    compute = Count()
    first = cached_arrays("item_graph", "abc k=10", compute)
    second = cached_arrays("item_graph", "abc k=10", compute)
    assert compute.calls == 1
    assert list(first) == list(second) == ["ids", "weights"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_another_fingerprint_or_kind_is_another_entry(folder):
    compute = Count()
    for kind, fingerprint in [("item_graph", "abc k=10"), ("item_graph", "abc k=20"), ("user_graph", "abc k=10")]:
        cached_arrays(kind, fingerprint, compute)
    assert compute.calls == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_corrupt_file_is_computed_again_with_a_warning(folder, damage):
    compute = Count()
    expected = cached_arrays("item_graph", "abc", compute)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    middle = whole.index(np.float32(0.5).tobytes())
    path.write_bytes(
        {"truncated": whole[:100], "empty": b"", "flipped": whole[:middle] + b"\xff" + whole[middle + 1 :]}[damage]
    )
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        again = cached_arrays("item_graph", "abc", compute)
    np.testing.assert_array_equal(again["weights"], expected["weights"])
    assert compute.calls == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ids": None}, "ids is not a file"),
        ({"ids": np.arange(4).reshape(2, 2)}, r"ids is int64 \(2, 2\): expected int64 \(2, 3\)"),
        ({"ids": np.arange(6.0).reshape(2, 3)}, r"ids is float64 \(2, 3\)"),
        ({"ids": np.arange(6).reshape(2, 3) - 5}, "ids goes from -5 to 0: expected 0 to 5"),
        ({"weights": np.array([0.5, np.nan], np.float32)}, "weights goes from nan to nan: expected 0 to 1"),
        ({"ids": np.array([[None] * 3] * 2)}, "Object arrays"),
        (np.arange(6), "cannot be read"),
    ],
    ids=["key", "shape", "type", "range", "nan", "objects", "npy"],
)
def test_what_is_not_expected_is_computed_again_with_a_warning(folder, content, message):
    compute = Count()
    cached_arrays("item_graph", "abc", compute)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    with path.open("wb") as file:
        if isinstance(content, dict):
            np.savez(file, **{name: array for name, array in (compute() | content).items() if array is not None})
        else:
            np.save(file, content)
    compute.calls = 1
    with pytest.warns(RuntimeWarning, match=message):
        again = cached_arrays("item_graph", "abc", compute)
    assert again["ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert compute.calls == 2
    assert path.read_bytes() == whole


def test_full_disk_is_a_warning_and_leaves_nothing(folder, monkeypatch):
    def full(handle, **_):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        arrays = cached_arrays("item_graph", "abc", Count())
    assert arrays["ids"].shape == (2, 3)
    assert list(folder.iterdir()) == []


def test_unwritable_folder_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot write"):
        cached_arrays("item_graph", "abc", Count())


def test_off_computes_every_time(monkeypatch):
    monkeypatch.setenv(cache.FOLDER_VARIABLE, "off")
    compute = Count()
    cached_arrays("item_graph", "abc", compute)
    cached_arrays("item_graph", "abc", compute)
    assert compute.calls == 2
    assert cache_folder() is None


def test_without_a_checkout_the_users_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv(cache.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "site-packages" / "mmrec_helpers" / "data" / "cache.py"))
    assert cache_folder().name == "mmrec_helpers"


def test_pickled_objects_and_odd_kinds_are_refused(folder):
    with pytest.raises(ValueError, match="Object arrays"):
        cached_arrays("item_graph", "abc", lambda: {"ids": np.array([None])})
    assert list(folder.glob("*")) == []
    with pytest.raises(InputError, match="cache kind"):
        cached_arrays("../outside", "abc", Count())

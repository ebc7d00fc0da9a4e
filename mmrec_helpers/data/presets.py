"""The shapes of the data sets that ``synthesize`` generates, read from ``presets.csv``."""

import csv
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from mmrec_helpers.config import InputError, check_memory, check_positive, choose

LARGEST_DENSITY = 0.3  # training interactions per pair of user and trained item


@dataclass(frozen=True)
class Shape:
    """Sizes of a data set, and how unequal its users and items are.

    n_users_in_train, n_items_in_train  users and items with at least one training interaction; the others occur in
                                        validation or test alone
    n_valid_users, n_test_users         users with at least one interaction in that split
    min_train                           training interactions that each user in training has at least
    user_spread, item_spread            standard deviation of the logarithm of activity and of popularity: 1 is a
                                        moderate long tail, 2 a heavy one
    visual, textual                     feature widths
    source                              where the sizes come from
    """

    n_users: int
    n_items: int
    n_train: int
    n_valid: int
    n_test: int
    n_users_in_train: int
    n_items_in_train: int
    n_valid_users: int
    n_test_users: int
    visual: int
    textual: int
    min_train: int
    user_spread: float
    item_spread: float
    source: str


def _read() -> dict[str, Shape]:
    types = {"source": str, "user_spread": float, "item_spread": float}
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as table:
        rows = {row.pop("preset"): row for row in csv.DictReader(table)}
    return {name: Shape(**{key: types.get(key, int)(row[key]) for key in row}) for name, row in rows.items()}


PRESETS = _read()


def scaled_shape(preset: str, scale: float = 1.0) -> Shape:
    """The sizes of ``preset`` with users, items and interactions multiplied by ``scale`` (rounded, at least 1).

    Mean degrees and feature widths stay; density grows by 1 / scale. A scale at which the users' interactions would
    no longer fit among the items is an InputError that names the smallest one; so is one that needs more memory than is
    free, which names how much.
    """
    shape = PRESETS[choose("preset", preset, PRESETS)]
    check_positive("synthesize", scale=scale)
    smallest = shape.n_train / (shape.n_users_in_train * shape.n_items_in_train * LARGEST_DENSITY)
    smallest = max(smallest, 10 / min(shape.n_users, shape.n_items))
    if scale < smallest:
        raise InputError(
            f"synthesize: scale is {scale}: expected at least {math.ceil(1e4 * smallest) / 1e4} for {preset}"
        )
    interactions = shape.n_train + shape.n_valid + shape.n_test
    # as measured at the peak: the features twice, ten integers per interaction
    check_memory(
        f"synthesize: scale is {scale} for {preset}",
        scale * (8 * shape.n_items * (shape.visual + shape.textual) + 80 * interactions),
    )
    counts = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape) if f.name.startswith("n_")}
    return dataclasses.replace(shape, **{name: max(1, round(count * scale)) for name, count in counts.items()})

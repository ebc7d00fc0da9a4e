"""The shapes of the data sets that ``synthesize`` generates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from mmrec_helpers.config import InputError, check_positive, choose

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


PRESETS = {
    "embedded": Shape(
        n_users=800,
        n_items=600,
        n_train=12_000,
        n_valid=1_600,
        n_test=1_600,
        n_users_in_train=800,
        n_items_in_train=590,
        n_valid_users=800,
        n_test_users=800,
        visual=64,
        textual=32,
        min_train=4,
        user_spread=1.0,
        item_spread=1.1,
        source="made up: small enough for a laptop",
    ),
    "music4all": Shape(
        n_users=14_127,
        n_items=99_596,
        n_train=4_082_045,
        n_valid=39_418,
        n_test=42_132,
        n_users_in_train=14_127,
        n_items_in_train=98_431,
        n_valid_users=7_491,
        n_test_users=7_662,
        visual=1024,
        textual=384,
        min_train=8,
        user_spread=0.9,
        item_spread=1.2,
        source="Music4All cs_lowcount_10, training logs of jckuan/MMRec (visual: audio features)",
    ),
    "baby": Shape(
        n_users=19_445,
        n_items=7_050,
        n_train=118_551,
        n_valid=20_559,
        n_test=21_682,
        n_users_in_train=19_445,
        n_items_in_train=7_050,
        n_valid_users=19_445,
        n_test_users=19_445,
        visual=1024,
        textual=384,
        min_train=3,
        user_spread=1.2,
        item_spread=1.1,
        source="Amazon Baby, MMRec split (visual there: 4096 wide)",
    ),
    "sports": Shape(
        n_users=35_598,
        n_items=18_357,
        n_train=218_409,
        n_valid=37_899,
        n_test=40_029,
        n_users_in_train=35_598,
        n_items_in_train=18_357,
        n_valid_users=35_598,
        n_test_users=35_598,
        visual=4096,
        textual=384,
        min_train=3,
        user_spread=1.2,
        item_spread=1.1,
        source="Amazon Sports, MMRec split",
    ),
    "clothing": Shape(
        n_users=39_387,
        n_items=23_033,
        n_train=197_338,
        n_valid=40_150,
        n_test=41_189,
        n_users_in_train=39_387,
        n_items_in_train=23_020,
        n_valid_users=39_387,
        n_test_users=39_387,
        visual=4096,
        textual=384,
        min_train=3,
        user_spread=1.1,
        item_spread=1.0,
        source="Amazon Clothing, MMRec split, training log of jckuan/MMRec",
    ),
    "tiktok": Shape(
        n_users=9_308,
        n_items=6_710,
        n_train=59_541,
        n_valid=3_051,
        n_test=6_130,
        n_users_in_train=9_298,
        n_items_in_train=6_245,
        n_valid_users=3_051,
        n_test_users=6_130,
        visual=128,
        textual=128,
        min_train=1,
        user_spread=2.2,
        item_spread=1.4,
        source="TikTok, DiffMM split (textual: audio features)",
    ),
}


def scaled_shape(preset: str, scale: float = 1.0) -> Shape:
    """The sizes of ``preset`` with users, items and interactions multiplied by ``scale`` (rounded, at least 1).

    Mean degrees and feature widths stay; density grows by 1 / scale. A scale at which the users' interactions would
    no longer fit among the items is an InputError that names the smallest one.
    """
    shape = PRESETS[choose("preset", preset, PRESETS)]
    check_positive("synthesize", scale=scale)
    smallest = shape.n_train / (shape.n_users_in_train * shape.n_items_in_train * LARGEST_DENSITY)
    smallest = max(smallest, 10 / min(shape.n_users, shape.n_items))
    if scale < smallest:
        raise InputError(
            f"synthesize: scale is {scale}: expected at least {math.ceil(1e4 * smallest) / 1e4} for {preset}"
        )
    counts = {f.name: getattr(shape, f.name) for f in dataclasses.fields(shape) if f.name.startswith("n_")}
    return dataclasses.replace(shape, **{name: max(1, round(count * scale)) for name, count in counts.items()})

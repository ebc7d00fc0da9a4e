"""A recommendation data set in memory: three sets of interactions and the items' features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mmrec_helpers.config import InputError, check_at_least, check_memory
from mmrec_helpers.data.graph import BipartiteGraph

MODALITIES = ("visual", "textual")  # in this order wherever both are there


@dataclass(frozen=True, eq=False)
class Interactions:
    """Users, items, interactions and item features. Build one with ``from_arrays``, ``load_mmrec`` or ``synthesize``.

    train, valid, test  int64 (2, n): row 0 users, row 1 items, both counted from 0, no pair twice in one split
    features            {"visual": float32 (n_items, width), "textual": ...}; either may be absent
    """

    n_users: int
    n_items: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "unnamed"

    @classmethod
    def from_arrays(
        cls,
        n_users: int,
        n_items: int,
        train: np.ndarray,
        valid: np.ndarray | None = None,
        test: np.ndarray | None = None,
        features: Mapping[str, np.ndarray] | None = None,
        name: str = "unnamed",
    ) -> Interactions:
        """Check the arrays and make a data set of them; raises InputError naming the first field that is wrong.

        train, valid, test  integers (2, n): row 0 users, row 1 items, counted from 0; only ``train`` must have some
        features            {"visual": float (n_items, width), "textual": ...}, finite; either may be left out
        name                how messages and records call it

        The arrays are copied: changing yours afterwards does not change the data set.

            pairs = np.array([[0, 0, 1], [0, 2, 1]])  # user 0 has items 0 and 2, user 1 has item 1
            Interactions.from_arrays(2, 3, train=pairs, features={"visual": np.eye(3)})
        """
        check_at_least(name, 1, n_users=n_users, n_items=n_items)
        check_graph_fits(name, n_users, n_items)
        splits = {
            split: checked_pairs(np.empty((2, 0)) if pairs is None else pairs, f"{name}: {split}", n_users, n_items)
            for split, pairs in (("train", train), ("valid", valid), ("test", test))
        }
        if splits["train"].shape[1] == 0:
            raise InputError(f"{name}: train has no interactions: expected at least one")
        return cls(
            n_users=int(n_users),
            n_items=int(n_items),
            features=_checked_features(features or {}, name, n_items),
            name=name,
            **splits,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have features, visual before textual."""
        return tuple(m for m in MODALITIES if m in self.features)

    @cached_property
    def graph(self) -> BipartiteGraph:
        """The training graph on the CPU, built once."""
        return BipartiteGraph.from_pairs(self.train, self.n_users, self.n_items)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when any interaction or feature changes (the name does not count)."""
        digest = hashlib.sha256(f"{self.n_users} {self.n_items}".encode())
        for label, array in [("train", self.train), ("valid", self.valid), ("test", self.test), *self.features.items()]:
            digest.update(f"{label} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def subset(
    data: Interactions, users: float = 1.0, items: float = 1.0, interactions: float = 1.0, seed: int = 0
) -> Interactions:
    """A smaller data set: shares above 0 and at most 1, chosen at random by ``seed``; without validation and test.

    users, items  shares kept, numbered anew from 0, with all training interactions among them
    interactions  share of the training interactions that are left then

    With the same seed a smaller share is part of a larger one. Raises InputError for a share out of range, or if no
    interaction is left.
    """
    shares = {"users": users, "items": items, "interactions": interactions}
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise InputError(f"subset of {data.name}: {name} is {share!r}: expected a share above 0 and at most 1")
    streams = [np.random.default_rng([seed, k]) for k in range(3)]
    kept, pairs = [], np.empty_like(data.train)  # -1: not kept
    for row, (count, share) in enumerate(((data.n_users, users), (data.n_items, items))):
        kept.append(np.sort(streams[row].permutation(count)[: max(1, round(count * share))]))
        numbers = np.full(count, -1)
        numbers[kept[row]] = np.arange(len(kept[row]))
        pairs[row] = numbers[data.train[row]]
    drawn = streams[2].random(data.train.shape[1]) < interactions
    pairs = pairs[:, (pairs >= 0).all(axis=0) & drawn]
    if not pairs.shape[1]:
        raise InputError(f"subset of {data.name}: no interaction is left of {data.train.shape[1]}: take larger shares")
    return Interactions.from_arrays(
        len(kept[0]),
        len(kept[1]),
        pairs,
        features={modality: array[kept[1]] for modality, array in data.features.items()},
        name="-".join([data.name, *(f"{name}{share:g}" for name, share in shares.items() if share < 1)]),
    )


def check_graph_fits(where: str, n_users: int, n_items: int) -> None:
    """Raise an InputError if the memory cannot hold the training graph of so many users and items."""
    n_users, n_items = int(n_users), int(n_items)
    if n_users * n_items >= 2**63:
        raise InputError(f"{where}: {n_users} users and {n_items} items: expected fewer than 2**63 pairs of them")
    check_memory(f"{where}: {n_users:,} users and {n_items:,} items", 16 * (n_users + n_items))  # counts and offsets


def checked_pairs(pairs: np.ndarray, where: str, n_users: int, n_items: int) -> np.ndarray:
    """A copy as int64 (2, n); raises InputError that begins with ``where`` for what is no set of users over items."""
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[0] != 2:
        raise InputError(f"{where} has shape {pairs.shape}: expected (2, n), users over items")
    if pairs.size and not np.issubdtype(pairs.dtype, np.integer):
        raise InputError(f"{where} has dtype {pairs.dtype}: expected integers")
    pairs = pairs.astype(np.int64, copy=True)
    for row, (what, count) in enumerate((("user", n_users), ("item", n_items))):
        outside = np.flatnonzero((pairs[row] < 0) | (pairs[row] >= count))
        if outside.size:
            at = int(outside[0])
            raise InputError(f"{where}: {what} {pairs[row, at]} in column {at}: expected 0 to {count - 1}")
    keys = np.sort(pairs[0] * n_items + pairs[1])
    twice = keys[1:][keys[1:] == keys[:-1]]
    if twice.size:
        user, item = divmod(int(twice[0]), n_items)
        raise InputError(
            f"{where}: the pair (user {user}, item {item}) stands there more than once "
            f"({twice.size} duplicates in all): expected each pair once"
        )
    return pairs


def _checked_features(features: Mapping[str, np.ndarray], name: str, n_items: int) -> dict[str, np.ndarray]:
    for modality in features:
        if modality not in MODALITIES:
            raise InputError(f"{name}: unknown modality {modality!r}: expected one of {', '.join(MODALITIES)}")
    checked = {m: checked_features(features[m], f"{name}: {m} features") for m in MODALITIES if m in features}
    for modality, array in checked.items():
        if len(array) != n_items:
            raise InputError(f"{name}: {modality} features: {len(array)} rows: expected {n_items}, one per item")
    return checked


def checked_features(array: np.ndarray, where: str) -> np.ndarray:
    """A copy as float32 (rows, width); raises InputError that begins with ``where`` for what is no finite matrix."""
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{where}: shape {array.shape}: expected (n_items, width)")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{where}: dtype {array.dtype}: expected a float type")
    with np.errstate(over="ignore"):
        checked = array.astype(np.float32, order="C", copy=True)
    bad = ~np.isfinite(checked).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        column = int(np.flatnonzero(~np.isfinite(checked[row]))[0])
        raise InputError(
            f"{where}: row {row}, column {column} is {array[row, column]} "
            f"({int(bad.sum())} rows in all): expected finite float32 numbers"
        )
    return checked

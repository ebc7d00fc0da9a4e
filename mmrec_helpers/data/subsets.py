"""A smaller data set out of a larger one: a share of its users, of its items, of its training interactions."""

from __future__ import annotations

import numpy as np

from mmrec_helpers.config import InputError
from mmrec_helpers.data.interactions import Interactions


def subset(
    data: Interactions, users: float = 1.0, items: float = 1.0, interactions: float = 1.0, seed: int = 0
) -> Interactions:
    """Keep shares, each above 0 and at most 1, chosen at random by ``seed``; validation and test are left out.

    users, items  those kept are numbered anew from 0, with all training interactions among them
    interactions  share of the training interactions that are left then

    With the same seed a smaller share is part of a larger one. Raises InputError for a share out of range, or if no
    interaction is left.
    """
    shares = {"users": users, "items": items, "interactions": interactions}
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise InputError(f"subset of {data.name}: {name} is {share!r}: expected a share above 0 and at most 1")
    streams = [np.random.default_rng([seed, k]) for k in range(3)]
    kept_users = _chosen(data.n_users, users, streams[0])
    kept_items = _chosen(data.n_items, items, streams[1])
    new_user, new_item = _numbers(kept_users, data.n_users), _numbers(kept_items, data.n_items)
    pairs = np.stack((new_user[data.train[0]], new_item[data.train[1]]))  # -1: not kept
    drawn = streams[2].random(data.train.shape[1]) < interactions
    pairs = pairs[:, (pairs >= 0).all(axis=0) & drawn]
    if not pairs.shape[1]:
        raise InputError(f"subset of {data.name}: no interaction is left of {data.train.shape[1]}: take larger shares")
    return Interactions.from_arrays(
        len(kept_users),
        len(kept_items),
        pairs,
        features={modality: array[kept_items] for modality, array in data.features.items()},
        name="-".join([data.name, *(f"{name}{share:g}" for name, share in shares.items() if share < 1)]),
    )


def _chosen(count: int, share: float, stream: np.random.Generator) -> np.ndarray:
    return np.sort(stream.permutation(count)[: max(1, round(count * share))])


def _numbers(kept: np.ndarray, count: int) -> np.ndarray:
    numbers = np.full(count, -1, dtype=np.int64)
    numbers[kept] = np.arange(len(kept))
    return numbers

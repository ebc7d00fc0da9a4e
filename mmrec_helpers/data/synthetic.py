"""Generated data sets with the shape of published ones and with preferences that graph and features both carry.

How a set is made, for U users and I items:

1. Items belong to tastes (about 1.2 sqrt(I) of them) and tastes to genres. An item's latent vector is its genre's
   centre plus its taste's offset plus a little of its own; its popularity is log-normal.
2. A user has an activity (log-normal training interactions, exact total) and a few favourite tastes, more of them
   the more active, most of them from one genre.
3. An interaction is drawn from a favourite taste (two in three) or from all items, by popularity; a pair drawn twice
   is drawn again. Which of a user's pairs are held out is left to chance.
4. Items that should be in training and are not replace a popular item of their taste there; items that should not
   (cold ones) do so in validation or test.
5. Visual and textual features are linear maps of overlapping parts of the latent vectors, each with noise.

Everything discrete is decided by NumPy's PCG64 and integer arithmetic, and the features use no BLAS: the same preset,
seed and scale give the same arrays whatever the number of threads (with the same version of NumPy).
"""

import zlib
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mmrec_helpers.config import InputError, check_at_least
from mmrec_helpers.data.interactions import Interactions
from mmrec_helpers.data.presets import Shape, scaled_shape

LATENT_WIDTH = 24
LATENTS_OF = {"visual": slice(0, 16), "textual": slice(8, 24)}
FAVOURITE_SHARE = 0.65  # of a user's interactions; the rest is drawn from all items by popularity
HOME_SHARE = 0.7  # of a user's favourite tastes; the rest is drawn from all tastes
ROUNDS = 60  # of drawing again what was drawn twice, before the rest is filled directly


def synthesize(preset: str, seed: int = 0, scale: float = 1.0) -> Interactions:
    """Generate a data set with the shape of ``preset`` (see the module), the same for the same arguments.

    preset  "embedded" (for a laptop), "music4all", "baby", "sports", "clothing" or "tiktok"; sizes, widths and their
            sources stand in ``mmrec_helpers.data.PRESETS``. At scale 1 users, items, the interactions of each split,
            the items in training and the users of each split are exactly as published. (MMRec's visual features of
            Amazon Baby are 4096 wide; here they are 1024.)
    scale   multiplies users, items and interactions: mean degrees and feature widths stay, density grows by 1 / scale

    Degrees are long-tailed on both sides. No pair occurs twice, neither in a split nor across splits. Columns are
    sorted by user and item. Raises InputError for an unknown preset, a negative seed, or a scale that is too small.

        synthesize("tiktok", scale=0.1)  # 931 users, 671 items, visual and textual features 128 wide
    """
    shape = scaled_shape(preset, scale)
    check_at_least("synthesize", 0, seed=seed)
    name = preset if scale == 1 else f"{preset}-x{scale:g}"
    streams = _streams(preset, seed)
    n_rows = shape.n_items * len(LATENTS_OF)
    total = shape.n_train + shape.n_valid + shape.n_test + n_rows
    with tqdm(total=total, desc=name, unit_scale=True, delay=2, leave=False, disable=None) as bar:
        catalogue = _draw_catalogue(shape, streams["items"])
        quotas = _draw_quotas(shape, streams["users"])
        favourites = _draw_favourites(quotas.sum(axis=0), catalogue, streams["favourites"])
        users, items = _draw_pairs(quotas.sum(axis=0), favourites, catalogue, streams["pairs"], bar)
        splits = _split(users, items, quotas, catalogue, streams["splits"])
        features = {m: _draw_features(catalogue.latent, m, getattr(shape, m), streams[m], bar) for m in LATENTS_OF}
    return Interactions.from_arrays(shape.n_users, shape.n_items, **splits, features=features, name=name)


def _streams(preset: str, seed: int) -> dict[str, np.random.Generator]:
    """Independent random streams, so that changing one stage leaves the others as they were."""
    stages = ("items", "users", "favourites", "pairs", "splits", "visual", "textual")
    sequences = np.random.SeedSequence([seed, zlib.crc32(preset.encode())]).spawn(len(stages))
    return {stage: np.random.Generator(np.random.PCG64(sequence)) for stage, sequence in zip(stages, sequences)}


# -------------------------------------------------------------------------------------------- items and users


@dataclass(frozen=True)
class _Catalogue:
    """Items with their tastes. Weights are integers, so that sums of them are exact.

    weight   (I,)              popularity; 0 for a cold item
    cold     (I,)              whether the item is kept out of training
    taste    (I,)              taste of each item
    genre    (tastes,)         genre of each taste
    latent   (I, LATENT_WIDTH) float32
    by_taste (I,)              items grouped by taste
    running  (I + 1,)          running sum of the weights in that order
    start    (tastes + 1,)     where each taste begins in that order
    """

    weight: np.ndarray
    cold: np.ndarray
    taste: np.ndarray
    genre: np.ndarray
    latent: np.ndarray
    by_taste: np.ndarray
    running: np.ndarray
    start: np.ndarray


def _draw_catalogue(shape: Shape, rng: np.random.Generator) -> _Catalogue:
    n_items = shape.n_items
    n_tastes = max(2, round(1.2 * n_items**0.5))
    genre = np.arange(n_tastes) // 4
    taste = rng.permutation(np.arange(n_items) % n_tastes)
    weight = _long_tailed(rng, n_items, shape.item_spread)
    cold = np.zeros(n_items, dtype=bool)
    cold[_least_popular(weight, n_items - shape.n_items_in_train, rng)] = True
    weight = np.where(cold, 0, weight)
    centre = rng.standard_normal((genre[-1] + 1, LATENT_WIDTH), dtype=np.float32)
    offset = rng.standard_normal((n_tastes, LATENT_WIDTH), dtype=np.float32)
    own = rng.standard_normal((n_items, LATENT_WIDTH), dtype=np.float32)
    latent = (centre[genre] + np.float32(0.8) * offset)[taste] + np.float32(0.4) * own
    by_taste = np.argsort(taste, kind="stable")
    return _Catalogue(
        weight=weight,
        cold=cold,
        taste=taste,
        genre=genre,
        latent=latent,
        by_taste=by_taste,
        running=_running_sum(weight[by_taste]),
        start=_running_sum(np.bincount(taste, minlength=n_tastes)),
    )


def _least_popular(weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` items, unpopular ones first but not strictly: a random half of the least popular."""
    pool = np.argsort(weight, kind="stable")[: 2 * count]
    return rng.permutation(pool)[:count]


def _long_tailed(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Integer weights (count,), log-normal around 1000, none zero."""
    return np.ceil(1000 * np.exp(spread * rng.standard_normal(count))).astype(np.int64)


def _running_sum(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _draw_quotas(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Interactions of each user in training, validation and test: int64 (3, U), with exact sums."""
    n_users = shape.n_users
    trained = np.ones(n_users, dtype=bool)
    trained[rng.permutation(n_users)[shape.n_users_in_train :]] = False
    activity = _long_tailed(rng, n_users, shape.user_spread)
    least = min(shape.min_train, shape.n_train // shape.n_users_in_train)
    most = max(shape.n_items_in_train // 2, -(-shape.n_train // shape.n_users_in_train))
    train = _apportion(shape.n_train, np.where(trained, activity, 0), np.where(trained, least, 0), most)
    spare = shape.n_items_in_train - train
    test = _held_out(shape.n_test, shape.n_test_users, train, ~trained, spare // 2, rng)
    valid = _held_out(shape.n_valid, shape.n_valid_users, train, ~trained & (test == 0), spare // 2, rng)
    return np.stack([train, valid, test])


def _held_out(
    total: int, n_users: int, train: np.ndarray, first: np.ndarray, most: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """``total`` interactions over ``n_users`` users, at least one each, else in proportion to activity."""
    order = rng.permutation(len(train))
    order = order[np.argsort(~first[order], kind="stable")]  # users without training must occur somewhere
    chosen = np.zeros(len(train), dtype=bool)
    chosen[order[:n_users]] = True
    return _apportion(total, np.where(chosen, train + 1, 0), chosen.astype(np.int64), np.maximum(most, 1))


def _apportion(total: int, weights: np.ndarray, least: np.ndarray, most: int | np.ndarray) -> np.ndarray:
    """Integers (n,) that sum to ``total``: ``least`` each and the rest by integer weights, none above ``most``."""
    counts = least.astype(np.int64)
    weights = weights.copy()
    while (left := total - int(counts.sum())) > 0:
        weights[counts >= most] = 0
        sum_of_weights = int(weights.sum())
        share, remainder = np.divmod(weights * left, sum_of_weights)
        largest = np.argsort(-remainder, kind="stable")[: left - int(share.sum())]
        share[largest] += 1
        counts = np.minimum(counts + share, most)
    return counts


@dataclass(frozen=True)
class _Favourites:
    """The favourite tastes of all users, one user after another.

    start (U + 1,), taste (F,), running (F + 1,): running sum of integer weights
    """

    start: np.ndarray
    taste: np.ndarray
    running: np.ndarray


def _draw_favourites(totals: np.ndarray, catalogue: _Catalogue, rng: np.random.Generator) -> _Favourites:
    """A user with n interactions gets tastes with some 3 n items between them, at least two tastes."""
    n_tastes = len(catalogue.genre)
    items_per_taste = len(catalogue.taste) / n_tastes
    counts = np.minimum(2 + (3 * totals / items_per_taste).astype(np.int64), max(2, n_tastes // 2))
    of_user = np.repeat(np.arange(len(totals)), counts)
    demand = np.diff(catalogue.running[catalogue.start])  # (tastes,) summed popularity
    of_taste = _running_sum(demand)
    home = catalogue.genre[_draw_between(np.zeros_like(totals), np.full_like(totals, of_taste[-1]), of_taste, rng)]
    first = np.searchsorted(catalogue.genre, home, side="left")[of_user]
    last = np.searchsorted(catalogue.genre, home, side="right")[of_user]
    away = rng.random(len(of_user)) >= HOME_SHARE
    low = np.where(away, 0, of_taste[first])
    high = np.where(away, of_taste[-1], of_taste[last])
    liking = np.ceil(1000 * (0.2 + rng.standard_exponential(len(of_user)))).astype(np.int64)
    return _Favourites(_running_sum(counts), _draw_between(low, high, of_taste, rng), _running_sum(liking))


def _draw_between(low: np.ndarray, high: np.ndarray, running: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each pair of bounds, an index drawn by the weights whose running sum lies between them."""
    point = low + (rng.random(len(low)) * (high - low)).astype(np.int64)
    return np.searchsorted(running, point, side="right") - 1


# --------------------------------------------------------------------------------------------- interactions


def _draw_pairs(
    totals: np.ndarray, favourites: _Favourites, catalogue: _Catalogue, rng: np.random.Generator, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Users and items (n,), sorted, no pair twice, ``totals[u]`` of them for user u."""
    n_items = len(catalogue.taste)
    accepted = np.empty(0, dtype=np.int64)  # user * n_items + item, sorted
    missing = totals
    for _ in range(ROUNDS):
        users = np.repeat(np.arange(len(totals)), missing)
        keys = np.unique(users * n_items + _draw_items(users, favourites, catalogue, rng))
        keys = keys[~_contains(accepted, keys)]
        accepted = np.sort(np.concatenate([accepted, keys]), kind="stable")
        missing = missing - np.bincount(keys // n_items, minlength=len(totals))
        bar.update(len(keys))
        if not missing.any():
            break
    rest = [_fill(user, missing[user], accepted, catalogue, rng) for user in np.flatnonzero(missing).tolist()]
    accepted = np.sort(np.concatenate([accepted, *rest]), kind="stable")
    return np.divmod(accepted, n_items)


def _draw_items(
    users: np.ndarray, favourites: _Favourites, catalogue: _Catalogue, rng: np.random.Generator
) -> np.ndarray:
    """One item for each entry of ``users`` (n,), by popularity within a favourite taste or within all items."""
    low, high = (favourites.running[favourites.start[users + end]] for end in (0, 1))
    taste = favourites.taste[_draw_between(low, high, favourites.running, rng)]
    anything = rng.random(len(users)) >= FAVOURITE_SHARE
    first = np.where(anything, 0, catalogue.start[taste])
    last = np.where(anything, len(catalogue.taste), catalogue.start[taste + 1])
    place = _draw_between(catalogue.running[first], catalogue.running[last], catalogue.running, rng)
    return catalogue.by_taste[place]


def _contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each of ``keys`` is among ``sorted_keys``."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[place] == keys


def _fill(user: int, count: int, accepted: np.ndarray, catalogue: _Catalogue, rng: np.random.Generator) -> np.ndarray:
    """``count`` further keys of a user who has most of the items of its tastes: by popularity, without replacement."""
    n_items = len(catalogue.taste)
    own = accepted[np.searchsorted(accepted, user * n_items) : np.searchsorted(accepted, (user + 1) * n_items)]
    arrival = rng.standard_exponential(n_items) / np.maximum(catalogue.weight, 1)
    arrival[catalogue.cold] = np.inf
    arrival[own - user * n_items] = np.inf
    return user * n_items + np.argsort(arrival, kind="stable")[:count]


# --------------------------------------------------------------------------------------------------- splits


def _split(
    users: np.ndarray, items: np.ndarray, quotas: np.ndarray, catalogue: _Catalogue, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Deal each user's pairs out at random, then see to it that just the right items are in training."""
    n_items = len(catalogue.taste)
    order = np.lexsort((rng.random(len(users)), users))
    users, items = users[order], items[order]
    totals = quotas.sum(axis=0)
    rank = np.arange(len(users)) - np.repeat(_running_sum(totals)[:-1], totals)  # within the user
    label = (rank >= quotas[0][users]).astype(np.int8) + (rank >= quotas[:2].sum(axis=0)[users])
    train = label == 0
    unseen = np.flatnonzero(~catalogue.cold & (np.bincount(items[train], minlength=n_items) == 0))
    held_out = np.sort((users * n_items + items)[~train])
    items[train] = _bring_in(unseen, users[train], items[train], held_out, catalogue, rng)
    cold = np.flatnonzero(catalogue.cold)  # in no pair so far, so any will do
    items[~train] = _bring_in(cold, users[~train], items[~train], np.empty(0, dtype=np.int64), catalogue, rng)
    order = np.argsort(users * n_items + items, kind="stable")
    pairs, label = np.stack([users, items])[:, order], label[order]
    return {split: pairs[:, label == code] for code, split in enumerate(("train", "valid", "test"))}


def _bring_in(
    absent: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    forbidden: np.ndarray,
    catalogue: _Catalogue,
    rng: np.random.Generator,
) -> np.ndarray:
    """The items of the pairs (``users``, ``items``), each of ``absent`` in the place of one that occurs elsewhere too.

    The items exchanged are of the same taste as far as possible. forbidden: sorted keys (user * n_items + item) of
    pairs that must not arise; what would make one is tried again elsewhere.
    """
    items = items.copy()
    n_items = len(catalogue.taste)
    for _ in range(ROUNDS):
        places = rng.permutation(len(items))
        needed = places[np.unique(items[places], return_index=True)[1]]  # one place of each item
        places = places[~np.isin(places, needed)]
        now, later = absent[: len(places)], absent[len(places) :]
        if not now.size:
            break
        place = _match(catalogue.taste[now], catalogue.taste[items[places]], places)
        allowed = ~_contains(forbidden, users[place] * n_items + now)
        items[place[allowed]] = now[allowed]
        absent = np.concatenate([now[~allowed], later])
    if absent.size:
        raise InputError(f"synthesize: no place for {absent.size} items: expected a larger scale")
    return items


def _match(wanted: np.ndarray, offered: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A different one of ``places`` for each entry of ``wanted``, with the wanted taste as far as they go round.

    wanted (m,), offered (n,): tastes, m <= n; places (n,). The k-th to want a taste gets the k-th place to offer it.
    """
    order = np.argsort(offered, kind="stable")
    first, last = (np.searchsorted(offered[order], wanted, side=side) for side in ("left", "right"))
    turn = np.empty(len(wanted), dtype=np.int64)
    by_taste = np.argsort(wanted, kind="stable")
    turn[by_taste] = np.arange(len(wanted)) - np.searchsorted(wanted[by_taste], wanted[by_taste], side="left")
    same = first + turn < last
    match = np.full(len(wanted), -1)
    match[same] = order[(first + turn)[same]]
    free = np.setdiff1d(np.arange(len(offered)), match[same], assume_unique=True)
    match[~same] = free[: np.count_nonzero(~same)]
    return places[match]


# ------------------------------------------------------------------------------------------------- features


def _draw_features(latent: np.ndarray, modality: str, width: int, rng: np.random.Generator, bar: tqdm) -> np.ndarray:
    """float32 (I, width): a random linear map of the modality's part of the latents, plus noise.

    Half the noise is in the latents (no width averages it out), half in the features. Visual features have standard
    deviation near 1, textual rows length near 1, as image and sentence encoders give.
    """
    part = latent[:, LATENTS_OF[modality]]
    part = part + np.float32(0.6) * rng.standard_normal(part.shape, dtype=np.float32)
    linear_map = rng.standard_normal((part.shape[1], width), dtype=np.float32) * np.float32(part.shape[1] ** -0.5)
    scale = np.float32(0.6 if modality == "visual" else 0.6 * width**-0.5)
    features = np.empty((len(part), width), dtype=np.float32)
    for start in range(0, len(part), 128):  # blocks that stay in cache; sums in a fixed order, so no BLAS
        rows = part[start : start + 128]
        block = np.float32(0.6) * rng.standard_normal((len(rows), width), dtype=np.float32)
        for k in range(rows.shape[1]):
            block += rows[:, k, None] * linear_map[k]
        features[start : start + 128] = scale * block
        bar.update(len(rows))
    return features

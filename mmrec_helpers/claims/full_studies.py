"""Which accuracy studies at hand decide something, and what of them: variants and pairs with enough seeds.

A study grows run by run. What has fewer than five paired seeds is left out wherever accuracy is quoted; a variant that
is half done takes nothing from the others.
"""

from collections.abc import Mapping
from typing import Any

from mmrec_helpers.claims.ledger import Records, n_train_of
from mmrec_helpers.experiments.accuracy.intervals import FULL_SEEDS, find_pair


def full_studies(records: Records, n_train: int = 0) -> list[Mapping[str, Any]]:
    """The accuracy records that compare variants over enough seeds, the one with most such pairs first.

    n_train  training interactions that a data set must have. Of studies with as many pairs the one nearest to the
             diagnosed workload comes first.
    """
    large = [record for record in records.all("accuracy") if n_train_of(record) >= n_train]
    pairs = {id(record): sum(_enough(pair) for pair in record["content"]["pairs"]) for record in large}
    compared = [record for record in large if pairs[id(record)]]
    return sorted(compared, key=lambda record: pairs[id(record)], reverse=True)


def full_variants(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of an accuracy record of trained variants with enough seeds."""
    return [row for row in record["content"]["variants"] if row["trained"] and _enough(row)]


def full_pair(record: Mapping[str, Any], first: str, second: str) -> Mapping[str, Any] | None:
    """The difference of two variants, first minus second; None without enough paired seeds."""
    pair = find_pair(record["content"], first, second)
    return pair if pair is not None and _enough(pair) else None


def difference_text(pair: Mapping[str, Any]) -> str:
    """A pair's difference of test recall@20 with its interval, such as ``+0.0030 (+0.0020 to +0.0040)``."""
    return f"{pair['recall@20']:+.4f} ({pair['recall@20_low']:+.4f} to {pair['recall@20_high']:+.4f})"


def _enough(row: Mapping[str, Any]) -> bool:
    return row["seeds"] >= FULL_SEEDS

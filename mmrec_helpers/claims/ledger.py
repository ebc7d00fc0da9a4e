"""The ledger of claims: what the diagnosis says, and what the records at hand make of it.

A verdict is computed from records (and from published figures where the claim names them), never typed in. A rule is a
function of the records; without the records it needs, or without its full-size measurement, a claim stays undecided
and says what is missing.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.records import machine_of, n_train_of  # noqa: F401

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERDICTS = ("supported", "partly", "refuted", "not applicable", "undecided")
REPORTED_N_TRAIN = 4_082_045  # training interactions of the diagnosed workload (facts.csv)


@dataclass(frozen=True)
class Claim:
    """One claim of the diagnosis. decided_by: the kinds of record that its rule reads."""

    id: str
    claim: str
    hypothesis: str
    decided_by: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the records say of one claim: one of VERDICTS, a sentence with the numbers in it, and the numbers."""

    claim_id: str
    verdict: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""

    def __post_init__(self) -> None:
        choose("verdict", self.verdict, VERDICTS)


class Records:
    """The records at hand, by kind, nearest to the diagnosed workload first.

    "Nearest": on CUDA before on CPU, then by how many training interactions the data set has.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._by_kind: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            self._by_kind.setdefault(record["kind"], []).append(record)
        for kind in self._by_kind:
            self._by_kind[kind].sort(key=_nearness, reverse=True)

    def all(self, kind: str) -> list[Mapping[str, Any]]:
        return self._by_kind.get(kind, [])

    def nearest(self, kind: str) -> Mapping[str, Any]:
        """The record of ``kind`` nearest to the diagnosed workload; raises Missing when there is none."""
        found = self.all(kind)
        if not found:
            raise Missing(kind)
        return found[0]


class Missing(LookupError):
    """A rule asked for a kind of record that is not at hand."""


Rule = Callable[[Records], Verdict]
_RULES: dict[str, Rule] = {}


def rule(claim_id: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule that decides the claim of that id."""

    def register(function: Rule) -> Rule:
        _RULES[claim_id] = function
        return function

    return register


@cache
def load_claims() -> tuple[Claim, ...]:
    """The claims in the order of the ledger, from claims.toml."""
    text = resources.files("mmrec_helpers.claims").joinpath("claims.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["claim"]
    return tuple(Claim(r["id"], r["claim"], r["hypothesis"], tuple(r["decided_by"])) for r in rows)


@cache
def published_facts() -> tuple[Mapping[str, str], ...]:
    """The published figures of facts.csv, one mapping a row, each with its source."""
    with resources.files("mmrec_helpers.claims").joinpath("facts.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def decide(records: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """One verdict a claim, in the order of the ledger, computed from these records alone."""
    shelf = Records(records)
    return [_decide_one(claim, shelf) for claim in load_claims()]


def decide_claim(claim_id: str, records: Iterable[Mapping[str, Any]]) -> Verdict:
    """The verdict on one claim."""
    by_id = {claim.id: claim for claim in load_claims()}
    choose("claim", claim_id, by_id)
    return _decide_one(by_id[claim_id], Records(records))


def ledger_table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """The ledger as a table: columns claim_id, claim, verdict, why, machine."""
    claims = {claim.id: claim.claim for claim in load_claims()}
    rows = [(v.claim_id, claims[v.claim_id], v.verdict, v.sentence, v.machine) for v in verdicts]
    return pd.DataFrame(rows, columns=["claim_id", "claim", "verdict", "why", "machine"])


def matches_reported_size(record: Mapping[str, Any]) -> bool:
    """Whether the record was made on a data set with at least nine tenths of the diagnosed interactions."""
    return n_train_of(record) >= 0.9 * REPORTED_N_TRAIN


def _decide_one(claim: Claim, shelf: Records) -> Verdict:
    decide_it = _RULES.get(claim.id)
    if decide_it is None:
        return Verdict(claim.id, "undecided", f"No rule yet; it will read: {', '.join(claim.decided_by)}.")
    try:
        return decide_it(shelf)
    except Missing as missing:
        return Verdict(claim.id, "undecided", f"Missing: a record of kind {str(missing)!r}.")
    except KeyError as error:
        raise InputError(f"claim {claim.id}: a record lacks the field {error}: was it made by this version?") from error


def _nearness(record: Mapping[str, Any]) -> tuple[bool, int, str]:
    made = record["provenance"]
    return (made["device"]["type"] == "cuda", n_train_of(record), str(made["time"]))

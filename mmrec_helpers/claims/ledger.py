"""The ledger of claims: what was reported, and what the records at hand make of it.

A verdict is computed from records (and from published figures where the claim names them), never typed in. A rule is a
function of the records; without the records it needs, or without its full-size measurement, a claim stays undecided
and says what is missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from operator import is_not
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.data import PRESETS
from mmrec_helpers.experiments.quantities import find_value, quantities, quantity_text
from mmrec_helpers.records import machine_of, n_train_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERDICTS = ("supported", "partly", "refuted", "not applicable", "undecided")
REPORTED_N_TRAIN = PRESETS["music4all"].n_train  # training interactions of the diagnosed workload
FASTER, SLOWER, NOISE = "faster", "slower", "noise"

Record = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One reported claim. decided_by: the parts of the catalogue whose records its rule reads, "accuracy" for the
    study, "published" for figures of facts.csv."""

    id: str
    claim: str
    hypothesis: str
    decided_by: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the records say of one claim: one of VERDICTS, a sentence with the numbers in it, the records used."""

    claim_id: str
    verdict: str
    sentence: str
    records: tuple[Record, ...] = ()

    def __post_init__(self) -> None:
        choose("verdict", self.verdict, VERDICTS)

    @property
    def machine(self) -> str:
        return machine_of(self.records[0]) if self.records else ""


class Missing(LookupError):
    """What was asked for and the records at hand do not have, in words. known: a sentence on what can be said without
    it."""

    def __init__(self, what: str, known: str = "") -> None:
        super().__init__(what)
        self.known = known


@dataclass(frozen=True)
class Measured:
    """Records that belong together, and the numbers that they give.

    mark  show quantities with their marks (``quantity_text``): the records are those of the run that the page is of
    """

    records: tuple[Record, ...]
    mark: bool = False

    @property
    def content(self) -> Any:
        """Of the first record."""
        return self.records[0]["content"]

    @property
    def contents(self) -> dict[str, Any]:
        """Kind of record to its content."""
        return {record["kind"]: record["content"] for record in self.records}

    def has(self, name: str) -> bool:
        """Whether these records give the registered quantity."""
        return find_value(name, self.contents) is not None

    def value(self, name: str) -> float:
        """A registered quantity (experiments/quantities.csv); raises Missing where these records do not give it."""
        found = find_value(name, self.contents)
        if found is None:
            quantity = quantities()[name]
            raise Missing(f"{quantity.label} in a record of kind {quantity.home!r}")
        return found

    def fill(self, template: str) -> str:
        """A sentence whose registered quantities, in braces, become numbers with units; ``{name, variant}`` also says
        where that variant's ratio to its base is noise.

            here.fill("Without the loop the step is {loop.saving, grcn-0} shorter.")
        """
        return re.sub(r"\{([\w.-]+)(?:, ([\w-]+))?\}", lambda found: self._text(*found.groups()), template)

    def variant(self, name: str) -> Row:
        """A variant's row in the record of kind "steps"."""
        return find(self.contents["steps"]["variants"], variant=name)

    def base_over(self, variant: str) -> dict[str, float]:
        """Median and quartiles of the step of a variant's base over its own, paired: its ratio, inverted."""
        ratio = self.variant(variant)["ratio"]
        return {"median": 1 / ratio["median"], "q1": 1 / ratio["q3"], "q3": 1 / ratio["q1"]}

    def _text(self, name: str, variant: str | None) -> str:
        return quantity_text(name, self.value(name), mark=self.mark) + (
            noise_note(self.variant(variant)) if variant else ""
        )


class Records:
    """The records at hand, by part of the catalogue, nearest to the diagnosed workload first.

    "Nearest": on CUDA before on CPU, then by training interactions of the data set, then by time.
    """

    def __init__(self, records: Iterable[Record], mark: bool = False) -> None:
        self._mark = mark
        self._by_part: dict[str, list[Record]] = {}
        for record in sorted(records, key=_nearness, reverse=True):
            self._by_part.setdefault(part_of(record), []).append(record)

    def all(self, part: str) -> list[Record]:
        return self._by_part.get(part, [])

    def where(self, condition: Callable[[Record], bool]) -> Records:
        kept = (record for found in self._by_part.values() for record in found if condition(record))
        return Records(kept, self._mark)

    def as_reported(self) -> Records:
        """Those made on CUDA and on at least nine tenths of the diagnosed interactions."""
        return self.where(lambda record: on_cuda(record) and n_train_of(record) >= 0.9 * REPORTED_N_TRAIN)

    def together(self, *parts: str) -> Measured:
        """One record of each part, of one data set, device and batch size, the first nearest to the diagnosed workload;
        raises Missing. Without parts: none.

            here = records.together("steps", "epoch")
            here.value("loop.saving")
        """
        missing = [f"a record of kind {part!r}" for part in parts if not self.all(part)]
        if missing:
            raise Missing(" and ".join(missing))
        if not parts:
            return Measured(())
        for first in self.all(parts[0]):
            belonging = ([r for r in self.all(part) if _belong(first, r)] for part in parts[1:])
            others = [found[0] for found in belonging if found]
            if len(others) == len(parts) - 1:
                return Measured((first, *others), self._mark)
        raise Missing(f"records of kinds {', '.join(map(repr, parts))} of one data set, device and batch size")


def find(rows: Iterable[Row], **keys: Any) -> Row:
    """The first row that has these values; raises Missing.

    find(content["variants"], variant="grcn-0")
    """
    for row in rows:
        if all(row[key] == value for key, value in keys.items()):
            return row
    raise Missing(f"a row with {', '.join(f'{key} {value!r}' for key, value in keys.items())}")


def direction(row: Row, control: Row | None = None) -> str:
    """FASTER or SLOWER than its base by the row's ``ratio``; NOISE where that is no farther from 1 than the control's,
    or its quartiles lie on both sides of 1.

    control  of the measurement, for a row that has no ``within_noise``
    """
    ratio = row["ratio"]
    noise = row["within_noise"] if control is None else abs(ratio["median"] - 1) <= (control["noise"] or 0)
    if noise or ratio["q1"] <= 1 <= ratio["q3"]:
        return NOISE
    return FASTER if ratio["median"] < 1 else SLOWER


def noise_note(row: Row, control: Row | None = None) -> str:
    return " (within noise)" if direction(row, control) == NOISE else ""


def verdict_of(*parts: bool) -> str:
    """supported where all parts of a claim hold, partly where some do, refuted where none does."""
    return "supported" if all(parts) else "partly" if any(parts) else "refuted"


def quartiles(ratio: Mapping[str, float]) -> str:
    return f"quartiles {ratio['q1']:.2f} to {ratio['q3']:.2f}"


Rule = Callable[[Any], tuple[Any, ...]]
_RULES: dict[str, tuple[Rule, bool]] = {}


def rule(claim_id: str, choosing: bool = False) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule that decides the claim of that id.

    It is given the records that the claim is decided by, together (``Measured``), and returns the verdict and its
    sentence. One that is choosing is given all records at hand (``Records``) and also returns those that it used.
    """

    def register(function: Rule) -> Rule:
        _RULES[claim_id] = (function, choosing)
        return function

    return register


@cache
def load_claims() -> tuple[Claim, ...]:
    """The claims in the order of the ledger, from claims.toml."""
    text = resources.files("mmrec_helpers.claims").joinpath("claims.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["claim"]
    return tuple(Claim(r["id"], r["claim"], r["hypothesis"], tuple(r["decided_by"])) for r in rows)


def decide(records: Iterable[Record]) -> list[Verdict]:
    """One verdict per claim, in the order of the ledger, computed from these records alone."""
    shelf = Records(records)
    return [_decide(claim, shelf) for claim in load_claims()]


def ledger_table(verdicts: Iterable[Verdict], predicted: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The ledger as a table: columns claim_id, claim, verdict, why, machine.

    predicted  claim to what is predicted of it (``predicted.predicted_verdicts``), for a column of that name: empty for
               a claim that is decided
    """
    verdicts = list(verdicts)
    claims = {claim.id: claim.claim for claim in load_claims()}
    rows = [(v.claim_id, claims[v.claim_id], v.verdict, v.sentence, v.machine) for v in verdicts]
    table = pd.DataFrame(rows, columns=["claim_id", "claim", "verdict", "why", "machine"])
    if predicted is not None:
        table["predicted"] = [predicted.get(v.claim_id, "") if v.verdict == "undecided" else "" for v in verdicts]
    return table


def part_of(record: Record) -> str:
    """The part of the catalogue that a record is of: its kind, but for an epoch under the diagnosed settings."""
    diagnosed = record["kind"] == "epoch" and record["content"]["settings_name"] == "diagnosed"
    return "epoch-diagnosed" if diagnosed else record["kind"]


def on_cuda(record: Record) -> bool:
    return record["provenance"]["device"]["type"] == "cuda"


def from_nearest(function: Callable[[Records], Any], records: Records) -> Any:
    """What a function makes of the records; where the nearest record of kind "steps" lacks what is asked for (some
    variants alone were measured there), of the records without it. Raises the first Missing where none serves."""
    first = None
    while True:
        try:
            return function(records)
        except Missing as missing:
            first = first or missing
            if not records.all("steps"):
                raise first from None
            nearest = records.all("steps")[0]
            records = records.where(partial(is_not, nearest))


def _decide(claim: Claim, records: Records) -> Verdict:
    try:
        verdict, sentence, here = from_nearest(lambda found: _judge(claim, found), records)
        return Verdict(claim.id, verdict, sentence, here.records)
    except Missing as missing:
        return Verdict(claim.id, "undecided", f"{missing.known} Missing: {missing}.".strip())
    except KeyError as error:
        raise InputError(f"claim {claim.id}: a record lacks the field {error}: was it made by this version?") from error


def _judge(claim: Claim, records: Records) -> tuple[str, str, Measured]:
    function, choosing = _RULES[claim.id]
    if choosing:
        return function(records)
    here = records.together(*(part for part in claim.decided_by if part != "published"))
    return *function(here), here


def _nearness(record: Record) -> tuple[bool, int, str]:
    return on_cuda(record), n_train_of(record), str(record["provenance"]["time"])


def _belong(first: Record, second: Record) -> bool:
    return all(a == b or None in (a, b) for a, b in zip(_made_on(first), _made_on(second), strict=True))


def _made_on(record: Record) -> tuple[Any, ...]:
    """Device, threads, data set and batch size of a record, None for what it does not say."""
    made, content = record["provenance"], record["content"]
    batch = content.get("batch_size") if isinstance(content, Mapping) else None
    data = made.get("data") or {}
    device = (made["device"]["type"], made["device"]["name"], made["machine"]["threads"])
    return *device, data.get("name"), data.get("fingerprint"), data.get("n_train"), batch

"""What to do, situation by situation, each with the gain that the records at hand show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mmrec_helpers.claims.full_studies import difference_text, full_pair, full_studies, full_variants
from mmrec_helpers.claims.ledger import Missing, Records, machine_of

TRIMMING_DISABLED = "malloc trimming disabled"


@dataclass(frozen=True)
class Recommendation:
    """situation: who it is for; action: what to do; gain: computed, or what is missing; machine: of the record."""

    situation: str
    action: str
    gain: str
    machine: str = ""


def recommend(records: Records) -> list[Recommendation]:
    """One recommendation a situation, in order of how little it asks of the reader."""
    return [_made(situation, action, gain, records) for situation, action, gain in _SITUATIONS]


def recommendation_table(recommendations: list[Recommendation]) -> pd.DataFrame:
    """Columns situation, action, gain, machine."""
    rows = [(r.situation, r.action, r.gain, r.machine) for r in recommendations]
    return pd.DataFrame(rows, columns=["situation", "action", "gain", "machine"])


Gain = Callable[[Records], tuple[str, Mapping[str, Any]]]  # the sentence, and the record it was computed from


def _made(situation: str, action: str, gain: Gain, records: Records) -> Recommendation:
    try:
        sentence, record = gain(records)
    except Missing as missing:
        return Recommendation(situation, action, f"Not measured yet: a record of kind {str(missing)!r} is missing.")
    return Recommendation(situation, action, sentence, machine_of(record))


def _without_loop(records: Records) -> tuple[str, Mapping[str, Any]]:
    record = records.nearest("routing")
    content = record["content"]
    ratio = _find(content["ratios"], "routing ratio 3 to 0", routing="as_shipped", numerator=3, denominator=0)
    change = max(arm["output_change"] for arm in content["arms"] if arm["routing"] == "as_shipped")
    low, high = f"{1 / ratio['q3']:.0%}", f"{1 / ratio['q1']:.0%}"
    sentence = (
        f"The step takes {1 / ratio['median']:.0%} of its time with three iterations (quartiles {low} to {high}); the "
        f"output moves by at most {change:.0e}."
    )
    return sentence, record


def _accelerated(records: Records) -> tuple[str, Mapping[str, Any]]:
    record, grcn = _bench_ratio(records, "GRCN step, as shipped")
    _, dragon = _bench_ratio(records, "DRAGON step")
    told = [
        f"{name} {r['median']:.1f} times faster ({_quartiles(r)})" for name, r in (("GRCN", grcn), ("DRAGON", dragon))
    ]
    return f"The same numbers: a step of {' and of '.join(told)} than the reference.", record


def _live(records: Records) -> tuple[str, Mapping[str, Any]]:
    record, ratio = _bench_ratio(records, "GRCN step, live, 3 iterations")
    faster = f"Three live iterations in {1 / ratio['median']:.0%} of the reference's step."
    return f"{faster} {_accuracy(records, 'live-3', 'as-shipped')}", record


def _iterations(records: Records) -> tuple[str, Mapping[str, Any]]:
    record = _full_study(records)
    return f"{_accuracy(records, 'live-1', 'live-3')} {_accuracy(records, 'live-1', 'live-2')}", record


def _memory(records: Records) -> tuple[str, Mapping[str, Any]]:
    record, grcn = _bench_ratio(records, "GRCN step, as shipped")
    _, dragon = _bench_ratio(records, "DRAGON step")
    told = [
        f"{name} {r['peak_ratio']:.0f} times" for name, r in (("GRCN", grcn), ("DRAGON", dragon)) if r["peak_ratio"]
    ]
    return f"Peak memory of a step beyond parameters: {' and '.join(told)} less than the reference's.", record


def _comparison(records: Records) -> tuple[str, Mapping[str, Any]]:
    record = records.nearest("epoch")
    ratio = record["content"]["ratio_grcn_to_dragon"]
    return f"Matched, GRCN's step takes {ratio['median']:.2f} times DRAGON's ({_quartiles(ratio, 2)}).", record


def _choice(records: Records) -> tuple[str, Mapping[str, Any]]:
    record = _full_study(records)
    arms = sorted(full_variants(record), key=lambda arm: arm["recall@20"], reverse=True)
    told = "; ".join(
        f"{arm['label']} {arm['recall@20']:.4f} ({arm['recall@20_low']:.4f} to {arm['recall@20_high']:.4f})"
        for arm in arms[:4]
    )
    return f"Test recall@20, best first, over {arms[0]['seeds']} seeds: {told}.", record


_SITUATIONS: list[tuple[str, str, Gain]] = [
    (
        "You run MMRec's GRCN as it is and want it faster today",
        "Set `n_layers: 0` in GRCN's settings file. The loop changes nothing; no package is needed.",
        _without_loop,
    ),
    (
        "You run MMRec's GRCN or DRAGON and can install a package",
        "`accelerate(model)`: one line, the same outputs, gradients, parameters and checkpoints.",
        _accelerated,
    ),
    (
        "You want the routing that the paper describes",
        "Read first what it does to accuracy. Then turn the loop's edges round (two lines, see the page on the switch) "
        'and `accelerate(model, routing="live")`.',
        _live,
    ),
    (
        "You wonder how many iterations to take",
        "As shipped: none. With live routing: the fewest that accuracy allows.",
        _iterations,
    ),
    (
        "You are short of memory",
        "`accelerate(model)` before checkpointing, mixed precision or features on the host.",
        _memory,
    ),
    (
        "You compare GRCN with DRAGON",
        "Give both the same modalities, batch and settings, and time them in one run.",
        _comparison,
    ),
    (
        "You choose a model for your data",
        "Train several seeds of each; validation chooses. One seed decides nothing.",
        _choice,
    ),
]


def _bench_ratio(records: Records, what: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The record nearest to the diagnosed workload that has the ratio, and the ratio, with the heap retained."""
    for record in records.all("bench"):
        rows = [row for row in record["content"]["ratios"] if row["what"] == what]
        retained = [row for row in rows if row["heap"] in ("", TRIMMING_DISABLED)]
        if retained or rows:
            return record, (retained or rows)[0]
    raise Missing(f"bench, {what}")


def _quartiles(ratio: Mapping[str, float], digits: int = 1) -> str:
    return f"quartiles {ratio['q1']:.{digits}f} to {ratio['q3']:.{digits}f}"


def _full_study(records: Records) -> Mapping[str, Any]:
    for record in full_studies(records):
        return record
    raise Missing("accuracy, of a study with enough seeds")


def _accuracy(records: Records, first: str, second: str) -> str:
    """The paired difference of two arms in words; what is missing where no full study has both."""
    for record in full_studies(records):
        pair = full_pair(record, first, second)
        if pair is not None:
            labels = {arm["arm"]: arm["label"] for arm in record["content"]["arms"]}
            versus = f"{labels[first]} less {labels[second]}"
            return f"{versus}: test recall@20 {difference_text(pair)}, {pair['seeds']} paired seeds."
    return f"The accuracy of {first} against {second} waits for a study with enough seeds."


def _find(rows: list[Mapping[str, Any]], what: str, **wanted: Any) -> Mapping[str, Any]:
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            return row
    raise Missing(what)
